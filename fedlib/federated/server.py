"""The server of the federation: one Flower ServerApp's work, and what guards the rounds.

Flower brings the messages and the strategies. What it leaves open is closed here: replies are put in the order of the
clients (aggregation in order of arrival gives other weights each time), a client that fails or answers nonsense stops
the run by name (Flower would average the rest), and what each client did is kept (Flower drops it after averaging).
"""

import logging
import math
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedlib import tasks
from fedlib.config import RunConfig, UserError
from fedlib.data.dataset import PreparedSet, open_prepared
from fedlib.data.partition import clients_of
from fedlib.federated.client_app import client_name, own, shared
from fedlib.federated.messages import cast, fault_of, packed, serialized_bytes
from fedlib.federated.privacy import CentralPrivacy, epsilon_after
from fedlib.federated.strategies import CONTROL, STRATEGIES, Sound, memory_of, remind
from fedlib.training.loop import cores, device, evaluate, initial_model
from fedlib.training.run_store import Progress, RunRecord

logging.getLogger("flwr").setLevel(logging.ERROR)  # a run store and a progress bar say it better

NOTHING = {"n": 0, "seconds": 0.0, "bytes_down": 0, "bytes_up": 0}
"""What a client that was absent added to a round."""
ROLL_CALL_SECONDS = 120.0
"""How long the server waits for the clients' nodes to be there (*chosen*)."""


class FederationError(RuntimeError):
    """Too many clients failed: their numbers, the round and the causes."""


def serve(grid: Grid, config: RunConfig, data_dir: Path, run_dir: Path) -> None:
    """Run the strategy; after every round score the global model on the validation split, and keep it.

    Rounds, clients and final weights go to `run_dir`, the run's folder; from a checkpoint there it goes on.
    Raises FederationError, and UserError when the prepared set is not the run's.
    """
    data = open_prepared(data_dir, config.task)
    if data.fingerprint != config.data_fingerprint:
        raise UserError(f"{data_dir}: data fingerprint {data.fingerprint[:12]}, expected {config.data_fingerprint[:12]}")
    _Server(grid, config, data, RunRecord(run_dir)).run()


class _Server:
    """One run: the grid of its clients, its model and its record."""

    def __init__(self, grid: Grid, config: RunConfig, data: PreparedSet, record: RunRecord):
        self.grid, self.config, self.data, self.record = grid, config, data, record
        self.told = ConfigRecord({
            "run": config.model_dump_json(), "data-dir": str(data.folder), "transport": config.transport,
            "state-dir": str(record.folder / "checkpoints"), "threads": shares(config)[1]})  # fmt: skip
        self.model = initial_model(config, data)
        self.shared = shared(config, self.model)
        self.progress = Progress()

    def run(self) -> None:
        """Call the roll, then carry out the rounds that are still to do, and write the final weights.

        Raises FederationError, naming client, round and cause, when the guards stop the run.
        """
        state, self.progress = self.record.load_checkpoint("global")
        self.nodes = roll_call(self.grid, self.config, self.told)
        cases = [len(rows) for rows in clients_of(self.config, self.data)]
        done = len(self.progress.rounds)
        self.strategy = guarded_strategy(self.config, self.record, self.model, cases, self.nodes, done)
        if state:
            remind(self.strategy, state)
            self.shared = {name: state[name] for name in self.shared}
            self.record.log_clients(self.progress.clients)
            self.record.log_rounds(self.progress.rounds)
        self.began = time.perf_counter()
        self.strategy.start(
            self.grid,
            packed(self.shared),
            num_rounds=self.config.rounds - done,
            timeout=self.config.reply_timeout,
            train_config=self.told,
            evaluate_config=ConfigRecord(dict(self.told)),
            evaluate_fn=self.after_round,
        )
        self.record.save_weights(self.final_weights())

    def after_round(self, server_round: int, arrays: ArrayRecord) -> None:
        """Score, log and keep what a round gave. Flower calls once before the first round, with 0."""
        if server_round > 0:
            seconds = time.perf_counter() - self.began
            self.shared = arrays.to_torch_state_dict()
            number = len(self.progress.rounds) + 1
            row = {"round": number, **self.scores(), "seconds": seconds, **self.strategy.traffic()}
            if self.config.privacy != "none":
                row["epsilon"] = epsilon_after(self.config, number)
            self.progress.rounds.append(row)
            self.progress.clients += self.strategy.last_round
            self.record.log_rounds([row])
            self.record.save_checkpoint("global", self.shared | memory_of(self.strategy), self.progress)
        self.began = time.perf_counter()

    def scores(self) -> dict[str, float]:
        """On the validation split: of the global model or, where each client has its own, their mean."""
        if self.config.personal:
            return self.strategy.validated
        self.model.load_state_dict(self.shared)
        cases = evaluate(self.model, self.data, self.data.split("val"), self.config)
        self.record.log_validation(len(self.progress.rounds) + 1, cases)
        return tasks.get(self.config.task).summarize(cases)

    def final_weights(self) -> dict[str, torch.Tensor]:
        """The global model or, where each client has its own, all of them, by client."""
        if not self.config.personal:
            return self.shared
        weights = {}
        for reply in ask(self.grid, self.nodes, self.config, "query.own", self.told):
            client = self.nodes[reply.metadata.src_node_id]
            model = self.shared | reply.content["arrays"].to_torch_state_dict()
            weights |= {f"client{client}.{name}": model[name].clone() for name in self.model.state_dict()}
        return weights


def roll_call(grid: Grid, config: RunConfig, told: ConfigRecord) -> dict[int, int]:
    """Ask every node which client it is: node id -> client. Node ids are random, clients are not.

    Raises FederationError when nodes are missing after ROLL_CALL_SECONDS, or are not the clients 0 to n_clients - 1.
    """
    until, wanted = time.monotonic() + ROLL_CALL_SECONDS, config.n_clients
    while len(ids := list(grid.get_node_ids())) < wanted:
        if time.monotonic() > until:
            raise FederationError(f"{len(ids)} of {wanted} clients connected within {ROLL_CALL_SECONDS:.0f} s")
        time.sleep(0.2)
    replies = ask(grid, dict.fromkeys(ids), config, "query", told)
    nodes = {reply.metadata.src_node_id: int(reply.content["metrics"]["client"]) for reply in replies}
    if sorted(nodes.values()) != list(range(wanted)):
        found = f"the nodes that are there are clients {sorted(nodes.values())}"
        raise FederationError(f"{found}, expected each of 0 to {wanted - 1} once (partition-id in a node's configuration)")
    return nodes


def ask(grid: Grid, nodes: dict[int, int | None], config: RunConfig, kind: str, told: ConfigRecord) -> list[Message]:
    """One question to all nodes. Raises FederationError unless every one of them answers it."""
    content = RecordDict({"config": told})
    messages = [Message(content, dst_node_id=node, message_type=kind) for node in nodes]
    replies = list(grid.send_and_receive(messages, timeout=config.reply_timeout))
    faults = [reply.error.reason for reply in replies if reply.has_error()]
    silent = set(nodes) - {reply.metadata.src_node_id for reply in replies}
    faults += [f"{_node_name(nodes, node)}: no answer within {config.reply_timeout:g} s" for node in silent]
    if faults:
        raise FederationError(f"{kind}: {'; '.join(sorted(faults))}")
    return replies


class _Roster:
    """Stands for the grid where Flower's strategies look for nodes: those that take part in a round, and no other."""

    def __init__(self, node_ids: list[int]):
        self.node_ids = node_ids

    def get_node_ids(self) -> list[int]:
        return self.node_ids


class _Guards:
    """Mixed into a Flower strategy: who takes part, order, checks and a row for every client, before it aggregates."""

    config: RunConfig
    record: RunRecord
    nodes: dict[int, int]
    """Client of each node id."""
    cases: list[int]
    """Training cases of each client, as the partition has them."""
    rounds_before: int
    """Rounds of an earlier try; Flower counts from one again."""
    asked: list[int]
    """Clients that take part in this round."""
    bytes_down: int = 0
    """Size of the message that each of them got."""
    last_round: list[dict]
    """Rows of clients.csv of the round that was aggregated last."""
    validated: dict[str, float]
    """Mean of the clients' validation scores after the last round, where each has its own model."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Flower's messages to this round's clients, with the number of the round in the whole run."""
        number = self.rounds_before + server_round
        self.asked = participants(self.config, number)
        roster = _Roster([node for node, client in self.nodes.items() if client in self.asked])
        for message in super().configure_train(number, arrays, config, roster):
            yield self._sent(message)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]):
        """Check one round's replies, keep their metrics, and let the strategy aggregate the sound ones in client order.

        Raises FederationError when fewer clients than the quorum gave a sound answer, or one answered twice.
        """
        number = self.rounds_before + server_round
        answers, absent = self._received(number, replies)
        bytes_up = {client: serialized_bytes(reply.content) for client, reply in answers.items()}
        for client, reply in answers.items():
            if self.config.transport == "fp16":
                reply.content = cast(reply.content, np.float32)
            if fault := self._fault(client, reply):
                absent[client] = fault
        sound = {client: answers[client] for client in sorted(answers) if client not in absent}
        self._need(number, len(sound), absent)
        rows = [
            {"round": number, "client": client, **_metrics(reply)}
            | {"bytes_down": self.bytes_down, "bytes_up": bytes_up[client]}
            for client, reply in sound.items()
        ]
        rows += [{"round": number, "client": client, **NOTHING, "absent": why} for client, why in absent.items()]
        self.last_round = sorted(rows, key=lambda row: row["client"])
        self.record.log_clients(self.last_round)
        return super().aggregate_train(number, list(sound.values()))

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid):
        """Where each client has its own model, all of them validate; else nobody is asked."""
        if not self.config.personal:
            return
        config["server-round"] = self.rounds_before + server_round
        content = RecordDict({"arrays": arrays, "config": config})
        self.asked = sorted(self.nodes.values())
        for node in self.nodes:
            yield self._sent(Message(content, dst_node_id=node, message_type="evaluate"))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Mean validation score of the clients' own models."""
        if not self.config.personal:
            return
        number = self.rounds_before + server_round
        answers, absent = self._received(number, replies)
        self._need(number, len(answers), absent)
        table = pd.DataFrame([_metrics(answers[client]) for client in sorted(answers)])
        self.validated = table.drop(columns="n").mean().to_dict()

    def traffic(self) -> dict[str, int]:
        """Bytes of the last round, over all clients."""
        return {way: sum(row[way] for row in self.last_round) for way in ("bytes_down", "bytes_up")}

    def _sent(self, message: Message) -> Message:
        if self.config.transport == "fp16":
            message.content = cast(message.content, np.float16)
        self.bytes_down = serialized_bytes(message.content)
        return message

    def _received(self, number: int, replies: Iterable[Message]) -> tuple[dict[int, Message], dict[int, str]]:
        """Answer of each client, and why others gave none; it does not wait for the rest when too many failed."""
        answers, absent = {}, {}
        for reply in replies:
            client = self.nodes[reply.metadata.src_node_id]
            if client in answers or client in absent:
                raise FederationError(f"round {number}: {client_name(client)}: answered twice")
            if reply.has_error():
                absent[client] = _reason(client, reply.error.reason)
                self._need(number, len(self.asked) - len(absent), absent)
            else:
                answers[client] = reply
        for client in set(self.asked) - set(answers) - set(absent):
            absent[client] = f"{client_name(client)}: no answer within {self.config.reply_timeout:g} s"
        return answers, absent

    def _need(self, number: int, sound: int, faults: dict[int, str]) -> None:
        needed, of = math.ceil(self.config.quorum * len(self.asked)), len(self.asked)
        if sound < needed:
            told = "; ".join(faults[client] for client in sorted(faults))
            raise FederationError(
                f"round {number}: {told}; expected sound answers from {needed} of {of} clients, {sound} can be had"
            )

    def _fault(self, client: int, reply: Message) -> str:
        """What is wrong with an update; empty when it is sound."""
        n = reply.content["metrics"]["num-examples"]
        if n != self.cases[client]:  # the weight of its update
            return f"{client_name(client)}: trained on {n} cases, expected {self.cases[client]}, its share"
        expected = {"arrays": self.initial}
        if self.config.strategy == "scaffold":
            expected[CONTROL] = {name: array for name, array in self.initial.items() if name in self.learned}
        for name, wanted in expected.items():
            if fault := fault_of(reply.content.get(name, {}), wanted):
                return f"{client_name(client)}: {fault}"
        return ""


def guarded_strategy(
    config: RunConfig,
    record: RunRecord,
    model: torch.nn.Module,
    cases: list[int],
    nodes: dict[int, int],
    rounds_before: int = 0,
) -> Strategy:
    """Flower's strategy of that name under our guards."""
    base, options = STRATEGIES[config.strategy]
    bases = (_Guards, Sound, base)
    few = {"min_train_nodes": 1, "min_available_nodes": 1, "fraction_evaluate": 0.0}
    if config.privacy == "central":
        bases, options = (_Guards, CentralPrivacy), {"config": config, "rounds_before": rounds_before}
    strategy = type(f"Guarded{base.__name__}", bases, {})(**few, **options)
    strategy.config, strategy.record, strategy.nodes = config, record, nodes
    strategy.initial = packed(shared(config, model))
    strategy.learned = frozenset(name for name, _ in model.named_parameters()) - set(own(config, model))
    strategy.cases, strategy.rounds_before, strategy.asked = cases, rounds_before, sorted(nodes.values())
    return strategy


def shares(config: RunConfig) -> tuple[int, int]:
    """Clients that train at a time, and threads for each, of those that this process has.

    A thread more brings small models little, a client more at a time nearly all of a core. Every engine does the same: equal
    threads, equal bits. A GPU is one client's; so is NumPy's generator, which makes the noise of local privacy.
    """
    alone = device().type == "cuda" or config.privacy == "local"
    at_a_time = 1 if alone else min(cores(), config.sampled(config.n_clients))
    return at_a_time, max(1, torch.get_num_threads() // at_a_time)


def participants(config: RunConfig, round_number: int) -> list[int]:
    """The clients of a round: a draw from the seed and the round alone, so that it can be made again."""
    rng = np.random.default_rng([config.seed, config.n_clients, round_number])
    return sorted(rng.choice(config.n_clients, config.sampled(config.n_clients), replace=False).tolist())


def _metrics(reply: Message) -> dict:
    metrics = dict(reply.content["metrics"])
    return {"n": metrics.pop("num-examples"), **metrics}


def _reason(client: int, reason: str) -> str:
    """Why a client gave no answer: its own words, or Flower's, such as those for a node that is gone."""
    name = client_name(client)
    return reason if reason.startswith(f"{name} ") else f"{name}: {' '.join(reason.split())}"


def _node_name(nodes: dict[int, int | None], node: int) -> str:
    return f"node {node}" if nodes[node] is None else client_name(nodes[node])
