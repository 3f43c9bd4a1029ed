"""The Flower ClientApp: train the global model on one client's cases, round by round.

A message holds the run's configuration and weights, never a path. The node itself holds `partition-id`, the number of its
client, and the folders `data-dir` (its prepared set) and `state-dir` (what the client keeps between rounds).
"""

import copy
import functools
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from safetensors.torch import load_file, save

from fedlib import tasks
from fedlib.config import RunConfig, UserError
from fedlib.data.dataset import PreparedDataset, open_prepared
from fedlib.data.files import write_atomically
from fedlib.data.partition import clients_of
from fedlib.federated.privacy import local_privacy, seed_noise
from fedlib.federated.statistics import describe_site
from fedlib.federated.strategies import CONTROL, ControlVariate, proximal_term
from fedlib.training.loop import evaluate, initial_model, train_round
from fedlib.training.run_store import RunStore, State, software

CLIENT_APP_ERROR = 2
"""Flower's code for a ClientApp that raised an exception."""
stop_training = threading.Event()
"""Set to end the clients of this process: each looks at it before every step of the optimizer."""
turns = threading.Lock()
"""Held while initial weights are drawn (torch has one random generator for all threads) and while arrays are read: NumPy
parses their headers as Python, and two threads that parse at once may fail in CPython 3.11 (its issue 106905)."""

client_app = ClientApp()


class NodeError(UserError):
    """A refusal in words of this module, without paths or values of the node: its text may reach the server."""


class ClientState:
    """Tensors that a client keeps from round to round in a file on its own disk.

    Only the state of a round whose reply the server accepted counts; the server names that round in its next message. So the
    file holds two states: that of the last accepted round, and that of the round whose reply is under way.
    """

    def __init__(self, path: Path, accepted: int):
        """Read the state after the last accepted round (0: none). Raises NodeError when the file does not hold it."""
        self.path, self.accepted, head = path, accepted, f"{accepted}."
        stored = load_file(path) if accepted and path.exists() else {}
        self.kept = {name.removeprefix(head): tensor for name, tensor in stored.items() if name.startswith(head)}
        if accepted and not self.kept:
            begin = "remove the run's checkpoint at the server to begin anew"
            raise NodeError(f"its state of round {accepted} is missing from its state-dir; {begin}")

    def save(self, round_number: int, state: State) -> None:
        """Add the state after this round; forget those of other rounds, of rejected replies or of an interrupted run."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        states = {self.accepted: self.kept, round_number: state}
        named = {f"{number}.{name}": tensor for number, kept in states.items() for name, tensor in kept.items()}
        write_atomically(self.path, save(named))


@dataclass(frozen=True)
class ClientTask:
    """What a message asks of a client, and what the client needs for it."""

    config: RunConfig
    data: PreparedDataset
    client: int
    round: int
    rows: np.ndarray
    """The client's training rows."""
    template: torch.nn.Module
    """The run's initial model."""
    state: ClientState | None
    """None where a client keeps nothing."""

    @classmethod
    def from_message(cls, message: Message, context: Context) -> "ClientTask":
        """Read message and node. Raises NodeError when the node lacks a key or holds another prepared set than the run's."""
        settings, client = message.content["config"], context.node_config.get("partition-id")
        if type(client) is not int:
            raise NodeError("no partition-id in its --node-config; expected the number of its client, from 0")
        config = RunConfig.model_validate_json(str(settings["run"]))
        data = open_prepared(_folder(context, "data-dir", "data-dir"), config.task)
        if data.fingerprint != config.data_fingerprint:
            found = f"its prepared set has fingerprint {data.fingerprint[:12]}"
            raise NodeError(f"{found}, expected {config.data_fingerprint[:12]}, the run's")
        state = None
        if config.strategy == "scaffold" or config.is_personalized:
            folder = RunStore(_folder(context, "state-dir", "out-dir")).folder / config.run_id / "checkpoints"
            state = ClientState(folder / f"client{client}.safetensors", int(settings.get("accepted-round", 0)))
        with turns:
            template, partition = _model_and_partition(config, data.folder)
        return cls(config, data, client, int(settings.get("server-round", 0)), partition[client], template, state)

    def model(self, message: Message) -> torch.nn.Module:
        """Build the model of this message: the weights that were sent, if any, and those that the client has kept."""
        model, kept = copy.deepcopy(self.template), self.state.kept if self.state else {}
        with turns:
            sent = message.content.get("arrays", ArrayRecord()).to_torch_state_dict()
        own = {name: tensor for name, tensor in kept.items() if not name.startswith(f"{CONTROL}.")}
        model.load_state_dict(model.state_dict() | sent | own)
        return model


def report_errors(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Mod: turn an exception into an error reply that names the client and the kind of error.

    Texts of exceptions hold paths, which must not leave a hospital: they go to the node's log. Only in process, where
    server and clients are one, does the reply hold the text.
    """
    try:
        return call_next(message, context)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        if not (isinstance(error, NodeError) or context.node_config.get("full-errors")):
            logging.getLogger("flwr").exception("the client failed")
            cause = f"{type(error).__name__} (the node's log says more)"
        client = context.node_config.get("partition-id")
        name = f"node {context.node_id}" if client is None else f"client {client}"
        return Message(Error(CLIENT_APP_ERROR, f"{name} failed: {' '.join(cause.split())}"), reply_to=message)


@client_app.query(mods=[report_errors])
def identify(message: Message, context: Context) -> Message:
    """Reply with the node's client id, once its software and its data have proved to be the run's."""
    server = message.content["software"]
    for name, found in software().items():
        if found != server.get(name):
            raise NodeError(f"{name} {found}, expected {server.get(name)}, the server's")
    task = ClientTask.from_message(message, context)
    return Message(RecordDict({"metrics": MetricRecord({"client": task.client})}), reply_to=message)


@client_app.query("statistics", mods=[report_errors])
def send_statistics(message: Message, context: Context) -> Message:
    """Reply with what the client tells of its training cases before it trains; small numbers are hidden here."""
    task = ClientTask.from_message(message, context)
    tables = {title: MetricRecord(cells) for title, cells in describe_site(task.data, task.rows).items()}
    return Message(RecordDict({"metrics": MetricRecord(), **tables}), reply_to=message)


@client_app.train(mods=[report_errors])
def train(message: Message, context: Context) -> Message:
    """Train the global model on the client's cases for one round; reply with the weights that are shared."""
    task = ClientTask.from_message(message, context)
    config, model, correct = task.config, task.model(message), None
    if CONTROL in message.content:
        with turns:
            control = message.content[CONTROL].to_torch_state_dict()
        correct = ControlVariate(model, control, task.state.kept)
    elif mu := message.content["config"].get("proximal-mu"):
        correct = proximal_term(model, mu)

    def adjust() -> None:
        if stop_training.is_set():
            raise RuntimeError("the server has stopped")
        if correct:
            correct()

    trained = train_round(model, task.data, task.rows, config, task.client, task.round, adjust)
    content, state = RecordDict({"arrays": ArrayRecord(shared_state(config, model))}), local_state(config, model)
    if isinstance(correct, ControlVariate):
        content[CONTROL], state = ArrayRecord(correct.change()), state | correct.state()
    if task.state:
        task.state.save(task.round, state)
    trained["num-examples"] = trained.pop("n")
    content["metrics"] = MetricRecord(trained)
    reply = Message(content, reply_to=message)
    if config.privacy == "local":
        content["metrics"] = MetricRecord({"seconds": trained["seconds"]})  # epsilon covers noisy weights, no exact metrics
        seed_noise(config, task.client, task.round)
        reply = local_privacy(config)(message, context, lambda *_: reply)
    return reply


@client_app.evaluate(mods=[report_errors])
def validate(message: Message, context: Context) -> Message:
    """Score the client's own model, where it has one, on the validation split."""
    began, task = time.perf_counter(), ClientTask.from_message(message, context)
    cases = evaluate(task.model(message), task.data, task.data.split("val"), task.config)
    scores = tasks.get(task.config.task).summarize(cases)
    metrics = MetricRecord({**scores, "seconds": time.perf_counter() - began})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@client_app.query("local", mods=[report_errors])
def send_local_state(message: Message, context: Context) -> Message:
    """Reply with the client's local weights, at the end of a run: the study scores every model on one test set.

    A hospital would not send them; it would score its model at home.
    """
    task = ClientTask.from_message(message, context)
    content = {"arrays": ArrayRecord(local_state(task.config, task.model(message))), "metrics": MetricRecord()}
    return Message(RecordDict(content), reply_to=message)


def local_state(config: RunConfig, model: torch.nn.Module) -> State:
    """Return what of a model stays at its client: BatchNorm, weights and statistics, under FedBN; else nothing."""
    if not config.is_personalized:
        return {}
    layers = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    return {name: tensor for name, tensor in model.state_dict().items() if name.rpartition(".")[0] in layers}


def shared_state(config: RunConfig, model: torch.nn.Module) -> State:
    """Return what of a model travels."""
    local = local_state(config, model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in local}


def _folder(context: Context, key: str, in_simulation: str) -> Path:
    """Return a folder of the node; in Flower's simulation, all on one machine, it is a folder of the run config."""
    if folder := context.node_config.get(key) or context.run_config.get(in_simulation):
        return Path(str(folder))
    raise NodeError(f"no {key} in its --node-config; expected a folder of the node")


@functools.lru_cache(maxsize=1)
def _model_and_partition(config: RunConfig, folder: Path) -> tuple[torch.nn.Module, list[np.ndarray]]:
    data = open_prepared(folder)
    return initial_model(config, data), clients_of(config, data)
