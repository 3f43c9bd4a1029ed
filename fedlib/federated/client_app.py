"""A client of the federation: one Flower ClientApp, the same under every engine.

What a turn needs comes with the message (the run, where the prepared set lies, how many threads) or from the node itself:
`partition-id`, which client it is, and, where its disk is its own, `data-dir` and `state-dir`. No image leaves this module.
"""

import functools
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from fedlib import tasks
from fedlib.config import RunConfig, UserError
from fedlib.data.dataset import PreparedSet, open_prepared
from fedlib.data.partition import clients_of
from fedlib.federated.messages import cast, live, packed
from fedlib.federated.privacy import locally_private
from fedlib.federated.strategies import CONTROL, ControlVariate, proximal
from fedlib.training.loop import evaluate, initial_model, train_round, working_copy
from fedlib.training.run_store import ClientMemory

RAISED = 2
"""Flower's code for a ClientApp that raised an exception."""
_thread, _building = threading.local(), threading.Lock()
"""What a thread keeps; and who draws weights: torch has one generator for all threads."""

client_app = ClientApp()


@dataclass(frozen=True)
class Turn:
    """What a message asks of which client."""

    config: RunConfig
    data: PreparedSet
    client: int
    round: int
    memory: ClientMemory

    @classmethod
    def of(cls, message: Message, context: Context) -> "Turn":
        """Read message and node. Raises UserError when the node's prepared set is not the run's."""
        told, node = message.content["config"], context.node_config
        torch.set_num_threads(int(told["threads"]))
        config = RunConfig.model_validate_json(str(told["run"]))
        client, data = int(node["partition-id"]), open_prepared(str(node.get("data-dir", told["data-dir"])), config.task)
        if data.fingerprint != config.data_fingerprint:
            found = f"{data.folder}: data fingerprint {data.fingerprint[:12]}"
            raise UserError(f"{found}, expected {config.data_fingerprint[:12]}, the run's")
        memory = ClientMemory(str(node.get("state-dir", told["state-dir"])), config.run_id, client)
        return cls(config, data, client, int(told.get("server-round", 0)), memory)

    @property
    def rows(self) -> np.ndarray:
        """The client's own training rows."""
        return _clients(self.config, self.data.folder)[self.client]

    def model(self, message: Message, before: int) -> torch.nn.Module:
        """The model of this turn: the weights that were sent, and what the client kept before round `before`.

        In memory of its own: what the last turn trained may still be on its way, and is not copied for it.
        """
        model, own = _start(self.config, self.data.folder)
        own = own | {name: kept for name, kept in self.memory.before(before).items() if name in own}
        sent = message.content["arrays"].to_torch_state_dict() | own
        model.load_state_dict({name: working_copy(tensor, self.config) for name, tensor in sent.items()}, assign=True)
        return model


def named(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Mod: an exception becomes an answer that names client and cause, the same under every engine."""
    client = client_name(int(context.node_config["partition-id"]))
    try:
        return call_next(message, context)
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        return Message(Error(RAISED, f"{client} failed: {cause}"), reply_to=message)


def half_precision(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Mod: arrays travel as fp16 where the run says so; here they are fp32."""
    if message.content["config"]["transport"] != "fp16":
        return call_next(message, context)
    message.content = cast(message.content, np.float32)
    reply = call_next(message, context)
    if not reply.has_error():
        reply.content = cast(reply.content, np.float16)
    return reply


def private(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Mod: local differential privacy, where the run asks for it."""
    turn = Turn.of(message, context)
    if turn.config.privacy != "local":
        return call_next(message, context)
    return locally_private(turn.config, turn.client, turn.round)(message, context, call_next)


@client_app.query(mods=[named])
def present(message: Message, context: Context) -> Message:
    """The roll call: which client this node is. It has opened its data by then."""
    turn = Turn.of(message, context)
    return Message(RecordDict({"metrics": MetricRecord({"client": turn.client})}), reply_to=message)


@client_app.train(mods=[named, half_precision, private])
def train(message: Message, context: Context) -> Message:
    """A client's turn: take the global weights, train one round on the own cases, send the weights back."""
    turn = Turn.of(message, context)
    model, told = turn.model(message, turn.round), message.content["config"]
    adjust, kept = None, {}
    if mu := told.get("proximal-mu"):
        adjust = proximal(model, mu)
    elif CONTROL in message.content:
        control = message.content[CONTROL].to_torch_state_dict()
        adjust = ControlVariate(model, control, turn.memory.before(turn.round))
    trained = train_round(model, turn.data, turn.rows, turn.config, turn.client, turn.round, adjust)
    pack = live if turn.config.privacy == "none" else packed  # a norm adds in memory's order; C is that of every engine
    content = RecordDict({"arrays": pack(shared(turn.config, model))})
    if isinstance(adjust, ControlVariate):
        content[CONTROL], kept = packed(adjust.change()), adjust.kept()
    if kept or turn.config.personal:
        turn.memory.keep(turn.round, _plain(kept | own(turn.config, model)))
    content["metrics"] = MetricRecord({"num-examples": trained.pop("n"), **trained})
    return Message(content, reply_to=message)


@client_app.evaluate(mods=[named, half_precision])
def validate(message: Message, context: Context) -> Message:
    """Score the client's own model, with what it keeps to itself, on the validation split (`personal` runs)."""
    turn = Turn.of(message, context)
    rows = turn.data.split("val")
    cases = evaluate(turn.model(message, turn.round + 1), turn.data, rows, turn.config)
    scores = tasks.get(turn.config.task).summarize(cases)
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": len(rows), **scores})}), reply_to=message)


@client_app.query("own", mods=[named])
def hand_over(message: Message, context: Context) -> Message:
    """What the client kept to itself of its model, once, at the end: the study scores every model on one test set.

    A hospital would not give it away; it would score its model at home.
    """
    turn = Turn.of(message, context)
    _, start = _start(turn.config, turn.data.folder)
    kept = turn.memory.before(turn.config.rounds + 1)
    arrays = packed({name: kept.get(name, tensor) for name, tensor in start.items()})
    return Message(RecordDict({"arrays": arrays}), reply_to=message)


def own(config: RunConfig, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What of a model stays at its client: BatchNorm, weights and statistics, under FedBN; else nothing."""
    if not config.personal:
        return {}
    layers = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    return {name: tensor for name, tensor in model.state_dict().items() if name.rpartition(".")[0] in layers}


def shared(config: RunConfig, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What of a model travels."""
    kept = own(config, model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in kept}


def client_name(client: int) -> str:
    """How errors name a client."""
    return f"client {client}"


def _plain(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _start(config: RunConfig, folder: Path) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """One model for all clients of a thread, and what of it is a client's own before its first round.

    Every turn overwrites all of the model, and memory stays flat in the number of clients.
    """
    run = config, folder
    if getattr(_thread, "run", None) != run:
        with _building:
            model = initial_model(config, open_prepared(folder))
        _thread.run, _thread.start = run, (model, _plain(own(config, model)))
    return _thread.start


@functools.lru_cache(maxsize=1)
def _clients(config: RunConfig, folder: Path) -> list[np.ndarray]:
    return clients_of(config, open_prepared(folder))
