"""The federation: one Flower ClientApp, one Flower ServerApp, and what guards the rounds.

Flower brings the messages and the strategies. What it leaves open is closed here: replies are put in the order of the
clients (aggregation in order of arrival gives other weights each time), a client that fails or answers nonsense stops
the run by name (Flower would average the rest), and what each client did is kept (Flower drops it after averaging).
"""

import functools
import logging
import math
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedlib import tasks
from fedlib.config import RunConfig
from fedlib.data import open_prepared
from fedlib.partition import clients_of
from fedlib.runs import RunRecord
from fedlib.strategies import STRATEGIES, Sound
from fedlib.training import evaluate, initial_model, train_round, weights_of

logging.getLogger("flwr").setLevel(logging.ERROR)  # a run store and a progress bar say it better

client_app = ClientApp()
server_app = ServerApp()


NOTHING = {"n": 0, "seconds": 0.0, "bytes_down": 0, "bytes_up": 0}
"""What a client that was absent added to a round."""


class FederationError(RuntimeError):
    """Too many clients failed: their numbers, the round and the causes."""


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """A client's turn: take the global weights, train one round on the own cases, send the weights back.

    The client's number is `node_config["partition-id"]`; the run's configuration and the folder of the prepared set are in
    `run_config`. No image leaves this function.
    """
    config, data = _of_run(context)
    client, round_number = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"])
    model = _model(config, data.folder)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    rows, proximal_mu = _clients(config, data.folder)[client], message.content["config"].get("proximal-mu", 0.0)
    trained = train_round(model, data, rows, config, client, round_number, proximal_mu)
    arrays = ArrayRecord.from_torch_state_dict(model.state_dict())
    metrics = {
        "client": client,
        "num-examples": trained.pop("n"),
        "bytes_down": message.content["arrays"].count_bytes(),
        "bytes_up": arrays.count_bytes(),
    } | trained
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=message)


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """The server: run the strategy; after every round score the global model on the validation split, and keep it.

    Rounds, clients and final weights go to the run's folder, `run_config["run-dir"]`; from a checkpoint there it goes on.
    """
    config, data = _of_run(context)
    model = initial_model(config, data)
    record = RunRecord(str(context.run_config["run-dir"]))
    state, progress = record.load_checkpoint("global")
    cases = [len(rows) for rows in _clients(config, data.folder)]
    strategy = guarded_strategy(config, record, model, cases, rounds_before=len(progress.rounds))
    if state:
        strategy.remember(state)
        model.load_state_dict({name: state[name] for name in model.state_dict()})
        record.log_clients(progress.clients)
        record.log_rounds(progress.rounds)
    began = time.perf_counter()

    def after_round(server_round: int, arrays: ArrayRecord) -> None:
        nonlocal began
        if server_round > 0:  # Flower calls once before the first round
            seconds = time.perf_counter() - began
            model.load_state_dict(arrays.to_torch_state_dict())
            scores = tasks.get(config.task).summarize(evaluate(model, data, data.split("val"), config))
            done = strategy.rounds_before + server_round
            progress.rounds.append({"round": done, **scores, "seconds": seconds, **strategy.traffic()})
            progress.clients += strategy.last_round
            record.log_rounds(progress.rounds[-1:])
            record.save_checkpoint("global", weights_of(model) | strategy.memory(), progress)
        began = time.perf_counter()

    left = config.rounds - len(progress.rounds)
    start = ArrayRecord.from_torch_state_dict(model.state_dict())
    strategy.start(grid, start, num_rounds=left, evaluate_fn=after_round)
    record.save_weights(weights_of(model))


class _Guards:
    """Mixed into a Flower strategy: order, checks and a row for every client, before it aggregates."""

    config: RunConfig
    record: RunRecord
    cases: list[int]
    """Training cases of each client, as the partition has them."""
    rounds_before: int
    """Rounds of an earlier try; Flower counts from one again."""
    last_round: list[dict]
    """Rows of clients.csv of the round that was aggregated last."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Flower's messages, with the number of the round in the whole run."""
        return super().configure_train(self.rounds_before + server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]):
        """Check one round's replies, keep their metrics, and let the strategy aggregate the sound ones in client order.

        Raises FederationError when fewer clients than the quorum gave a sound answer, or one answered twice.
        """
        server_round = self.rounds_before + server_round
        answers, reasons = self._received(server_round, replies)
        clients = [_client_of(reply) for reply in answers]
        if len(set(clients)) != len(clients):
            raise FederationError(f"round {server_round}: answers from clients {clients}, expected one of each")
        absent = {_client_of(reply): fault for reply in answers if (fault := self._fault(reply))}
        for client in set(range(self.config.n_clients)) - set(clients):
            own = (reason for reason in reasons if reason.startswith(f"{client_name(client)} "))
            absent[client] = next(own, f"{client_name(client)}: no answer")
        sound = [reply for reply in answers if _client_of(reply) not in absent]
        self._need(server_round, len(sound), [*reasons, *(absent[client] for client in sorted(absent))])
        rows = [_client_row(server_round, reply.content["metrics"]) for reply in sound]
        rows += [{"round": server_round, "client": client, **NOTHING, "absent": why} for client, why in absent.items()]
        self.last_round = sorted(rows, key=lambda row: row["client"])
        self.record.log_clients(self.last_round)
        return super().aggregate_train(server_round, sound)

    def _received(self, server_round: int, replies: Iterable[Message]) -> tuple[list[Message], list[str]]:
        """Answers in client order, and the reasons of errors; it does not wait for the rest when too many failed."""
        answers, reasons = [], []
        for reply in replies:
            if not reply.has_error():
                answers.append(reply)
                continue
            reasons.append(reply.error.reason)
            self._need(server_round, self.config.n_clients - len(reasons), reasons)
        return sorted(answers, key=_client_of), reasons

    def _need(self, server_round: int, sound: int, faults: list[str]) -> None:
        needed, of = math.ceil(self.config.quorum * self.config.n_clients), self.config.n_clients
        if sound < needed:
            expected = f"expected sound answers from {needed} of {of} clients, {sound} can be had"
            raise FederationError(f"round {server_round}: {'; '.join(dict.fromkeys(faults))}; {expected}")

    def _fault(self, reply: Message) -> str:
        """What is wrong with an update; empty when it is sound."""
        client, n = _client_of(reply), reply.content["metrics"]["num-examples"]
        if not 0 <= client < self.config.n_clients:
            return f"{client_name(client)}: unknown, expected 0 to {self.config.n_clients - 1}"
        if n != self.cases[client]:  # the weight of its update
            return f"{client_name(client)}: trained on {n} cases, expected {self.cases[client]}, its share"
        fault = fault_of(reply.content["arrays"], self.initial)
        return fault and f"{client_name(client)}: {fault}"

    def traffic(self) -> dict[str, int]:
        """Bytes of the last round, over all clients."""
        return {way: sum(row[way] for row in self.last_round) for way in ("bytes_down", "bytes_up")}


def guarded_strategy(
    config: RunConfig, record: RunRecord, model: torch.nn.Module, cases: list[int], rounds_before: int = 0
) -> FedAvg:
    """Flower's strategy of that name under our guards; every client takes part in every round."""
    base, options = STRATEGIES[config.strategy]
    strategy = type(f"Guarded{base.__name__}", (_Guards, Sound, base), {})(
        fraction_evaluate=0.0, min_train_nodes=config.n_clients, min_available_nodes=config.n_clients, **options
    )
    strategy.config, strategy.record = config, record
    strategy.initial = ArrayRecord.from_torch_state_dict(model.state_dict())
    strategy.learned = frozenset(name for name, _ in model.named_parameters())
    strategy.cases, strategy.rounds_before = cases, rounds_before
    return strategy


def fault_of(update: ArrayRecord, initial: ArrayRecord) -> str:
    """What is wrong with an update: other names, shapes or types than the model's, or numbers that are not finite.

    Averaged, one number that is not finite would spoil every client. Empty when nothing is wrong.
    """
    if odd := sorted(set(update) ^ set(initial)):
        return f"missing or unknown weights, {', '.join(odd[:3])}; expected those of the model"
    for name, array in update.items():
        if (tuple(array.shape), array.dtype) != (tuple(initial[name].shape), initial[name].dtype):
            kinds = [f"{kind.dtype} {tuple(kind.shape)}" for kind in (array, initial[name])]
            return f"{name} is {kinds[0]}, expected {kinds[1]}"
        if not np.isfinite(array.numpy()).all():
            return f"{name} is not finite"
    return ""


def client_name(client: int) -> str:
    """How errors name a client."""
    return f"client {client}"


def _client_of(reply: Message) -> int:
    return reply.content["metrics"]["client"]


def _client_row(round_number: int, metrics: MetricRecord) -> dict:
    row = dict(metrics)
    return {"round": round_number, "client": row.pop("client"), "n": row.pop("num-examples"), **row}


def _of_run(context: Context):
    config = RunConfig.model_validate_json(str(context.run_config["config"]))
    return config, open_prepared(str(context.run_config["data-dir"]), config.task)


@functools.lru_cache(maxsize=1)
def _model(config: RunConfig, folder: Path) -> torch.nn.Module:
    """One model for all clients of a process: every round overwrites all of it, and memory stays flat in K."""
    return initial_model(config, open_prepared(folder))


@functools.lru_cache(maxsize=1)
def _clients(config: RunConfig, folder: Path):
    return clients_of(config, open_prepared(folder))
