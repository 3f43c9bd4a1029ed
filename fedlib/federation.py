"""The federation: one Flower ClientApp, one Flower ServerApp, and what guards the rounds.

Flower brings the messages and the strategies. What it leaves open is closed here: replies are put in the order of the
clients (aggregation in order of arrival gives other weights each time), a client that fails or answers nonsense stops
the run by name (Flower would average the rest), and what each client did is kept (Flower drops it after averaging).
"""

import functools
import logging
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedlib import tasks
from fedlib.config import RunConfig
from fedlib.data import open_prepared
from fedlib.partition import clients_of
from fedlib.runs import RunRecord
from fedlib.training import evaluate, initial_model, train_round

STRATEGIES = {"fedavg": FedAvg}

logging.getLogger("flwr").setLevel(logging.ERROR)  # a run store and a progress bar say it better

client_app = ClientApp()
server_app = ServerApp()


class FederationError(RuntimeError):
    """A client failed: its number, the round and the cause."""


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
    trained = train_round(model, data, _clients(config, data.folder)[client], config, client, round_number)
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
    """The server: run the strategy; after every round score the global model on the validation split.

    Rounds, clients and final weights go to the run's folder, `run_config["run-dir"]`.
    """
    config, data = _of_run(context)
    model = initial_model(config, data)
    record = RunRecord(str(context.run_config["run-dir"]))
    strategy = guarded_strategy(config, record)
    began = time.perf_counter()

    def after_round(server_round: int, arrays: ArrayRecord) -> None:
        nonlocal began
        model.load_state_dict(arrays.to_torch_state_dict())
        if server_round > 0:  # Flower calls once before the first round
            seconds = time.perf_counter() - began
            cases = evaluate(model, data, data.split("val"), config)
            traffic = strategy.traffic()
            scores = tasks.get(config.task).summarize(cases)
            record.log_round({"round": server_round, **scores, "seconds": seconds, **traffic})
        began = time.perf_counter()

    initial = ArrayRecord.from_torch_state_dict(model.state_dict())
    strategy.start(grid, initial, num_rounds=config.rounds, evaluate_fn=after_round)
    record.save_weights({name: tensor.contiguous() for name, tensor in model.state_dict().items()})


class _Guards:
    """Mixed into a Flower strategy: order, checks and a row for every client, before it aggregates."""

    config: RunConfig
    record: RunRecord
    _last: list[dict]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]):
        """Check one round's replies, keep their metrics, and let the strategy aggregate them in client order."""
        replies = list(replies)
        for reply in replies:
            if reply.has_error():
                raise FederationError(f"round {server_round}: a client failed: {reply.error.reason}")
        replies.sort(key=lambda reply: reply.content["metrics"]["client"])
        answered = [reply.content["metrics"]["client"] for reply in replies]
        if missing := set(range(self.config.n_clients)) - set(answered):
            raise FederationError(f"round {server_round}: no answer from client {', '.join(map(str, sorted(missing)))}")
        for reply in replies:
            check_update(reply.content["arrays"], reply.content["metrics"]["client"], server_round)
        self._last = [_client_row(server_round, reply.content["metrics"]) for reply in replies]
        self.record.log_clients(self._last)
        return super().aggregate_train(server_round, replies)

    def traffic(self) -> dict[str, int]:
        """Bytes of the last round, over all clients."""
        return {way: sum(row[way] for row in self._last) for way in ("bytes_down", "bytes_up")}


def guarded_strategy(config: RunConfig, record: RunRecord) -> FedAvg:
    """Flower's strategy of that name under our guards; every client takes part in every round."""
    base = STRATEGIES[config.strategy]
    strategy = type(f"Guarded{base.__name__}", (_Guards, base), {})(
        fraction_evaluate=0.0, min_train_nodes=config.n_clients, min_available_nodes=config.n_clients
    )
    strategy.config, strategy.record = config, record
    return strategy


def check_update(arrays: ArrayRecord, client: int, round_number: int) -> None:
    """Raise FederationError if an update holds a number that is not finite: averaged, it would spoil every client."""
    for name, tensor in arrays.to_torch_state_dict().items():
        if not torch.isfinite(tensor).all():
            raise FederationError(f"client {client}, round {round_number}: {name} is not finite")


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
