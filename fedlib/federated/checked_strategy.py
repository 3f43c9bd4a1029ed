"""Train by a Flower strategy as a study needs it: seeded sampling, checked replies, a fixed order, and a row per client.

Flower leaves these open. It aggregates in order of arrival, which gives other weights each time; it averages the rest when
a client fails; and it drops what each client did. A client that fails stops the run here, unless a quorum allows for it.
"""

import math
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from fedlib.config import RunConfig
from fedlib.federated.client_app import local_state, shared_state, turns
from fedlib.federated.privacy import seed_noise
from fedlib.federated.statistics import statistics_table
from fedlib.federated.strategies import CONTROL, flower_strategy
from fedlib.training.run_store import State, software

CONNECT_SECONDS = 120.0
"""How long the server waits for the clients' nodes to connect (*chosen*)."""
ABSENT = {"seconds": 0.0, "bytes_down": 0, "bytes_up": 0}
"""What an absent client adds to a round."""


class FederationError(RuntimeError):
    """Too many clients failed: their numbers, the round and the causes."""


class CheckedStrategy:
    """A Flower strategy and the clients that it trains. It sees trainable weights of valid replies only.

    Buffers (running mean and variance of BatchNorm, its counter) are averaged by cases under every strategy: a step of
    Adam on a variance could make it negative, and a counter is a whole number.
    `cases`: training cases of each client. `clients`: rows of clients.csv so far; each round adds its own.
    """

    def __init__(self, grid: Grid, config: RunConfig, model: torch.nn.Module, cases: list[int], clients: list[dict]):
        self.grid, self.config, self.cases, self.clients = grid, config, cases, clients
        self.strategy = flower_strategy(config, cases)
        self.initial = ArrayRecord(shared_state(config, model))
        self.trainable = {name for name, _ in model.named_parameters()} - set(local_state(config, model))
        self.nodes = self._identify()
        """The client of each node id. Node ids are random, clients are not."""

    def statistics(self) -> pd.DataFrame:
        """Return what each client tells of its training cases (`describe_site`), a row a client."""
        replies, _ = self._ask("before the first round", "query.statistics", {}, self.nodes)
        return statistics_table(replies)

    def train(self, number: int, arrays: ArrayRecord) -> ArrayRecord:
        """Train round `number` from these weights and return their aggregate. Raises what `_ask` raises."""
        asked = participants(self.config, number)
        nodes = {node: client for node, client in self.nodes.items() if client in asked}
        sampled = SimpleNamespace(get_node_ids=lambda: list(nodes))  # all that Flower asks of a grid here
        trainable = self._select(arrays, trainable=True)
        message, *_ = self.strategy.configure_train(number, trainable, ConfigRecord(), sampled)  # the same content for all
        content = {**message.content, "arrays": arrays}
        replies, rows = self._ask(f"round {number}", "train", content, nodes, self.config.quorum)
        for client, row in rows.items():
            n = self.cases[client] if client in replies else 0
            self.clients.append({"round": number, "client": client, "n": n, **row})
        return self._aggregate(number, replies)

    def validate(self, number: int, arrays: ArrayRecord) -> dict[str, float]:
        """Return the mean of the clients' validation scores, each of its own model; add traffic and time to the round."""
        replies, rows = self._ask(f"round {number}", "evaluate", {"arrays": arrays}, self.nodes, self.config.quorum)
        trained = {row["client"]: row for row in self.clients if row["round"] == number}
        for client, row in rows.items():
            for name in ABSENT:
                trained[client][name] += row.pop(name)
            if "absent" in row:  # it trained, perhaps, and did not validate
                trained[client].setdefault("absent", row["absent"])
        return pd.DataFrame([rows[client] for client in replies]).mean().to_dict()

    def local_states(self) -> dict[int, State]:
        """Return what each client keeps of the model for itself."""
        replies, _ = self._ask("after the last round", "query.local", {}, self.nodes)
        return {client: reply.content["arrays"].to_torch_state_dict() for client, reply in replies.items()}

    def _identify(self) -> dict[int, int]:
        """Ask every node which client it is: node id -> client.

        Raises FederationError when nodes are missing after CONNECT_SECONDS, when software or data of one is not the
        server's, or when they are not the clients 0 to n_clients - 1.
        """
        until, wanted = time.monotonic() + CONNECT_SECONDS, self.config.n_clients
        while len(node_ids := list(self.grid.get_node_ids())) < wanted:
            if time.monotonic() > until:
                raise FederationError(f"{len(node_ids)} of {wanted} clients connected within {CONNECT_SECONDS:.0f} s")
            time.sleep(0.2)
        content = {"software": ConfigRecord(software())}
        _, rows = self._ask("before the first round", "query", content, {node: node for node in node_ids})
        nodes = {node: int(row["client"]) for node, row in rows.items()}
        if sorted(nodes.values()) != list(range(wanted)):
            found = f"the connected nodes are clients {sorted(nodes.values())}"
            raise FederationError(f"{found}, expected each of 0 to {wanted - 1} once (their partition-id)")
        return nodes

    def _ask(
        self, when: str, kind: str, content: dict[str, Any], nodes: dict[int, int], quorum: float = 1.0
    ) -> tuple[dict[int, Message], dict[int, dict]]:
        """Send a message to clients, by node id; return their valid replies, and a row for each client.

        A row holds metrics and bytes, or why the client is absent. Both are in the order of the clients, not of arrival.
        Each message also has the run's settings and the client's last accepted round. Before the clients are known, nodes
        stand for them.
        Raises FederationError as soon as fewer valid replies than the quorum are possible, or when a client replies twice.
        """
        who, down, messages = "node" if kind == "query" else "client", count_bytes(RecordDict(content)), []
        accepted = {row["client"]: row["round"] for row in self.clients if row["n"]} if who == "client" else {}
        settings = {**content.get("config", {}), "run": self.config.model_dump_json()}
        for node, client in nodes.items():
            config = ConfigRecord({**settings, "accepted-round": accepted.get(client, 0)})
            messages.append(Message(RecordDict({**content, "config": config}), dst_node_id=node, message_type=kind))
        replies, rows, unnamed = {}, {}, set()
        for reply in self.grid.send_and_receive(messages, timeout=self.config.reply_timeout):
            client = nodes.get(reply.metadata.src_node_id)
            if client is None:  # in the SuperLink's name, for a node that is gone
                unnamed.add(" ".join(reply.error.reason.split()))
            elif client in rows:
                raise FederationError(f"{when}: {who} {client}: replied twice")
            elif fault := self._fault(client, kind, reply):
                named = fault.startswith(("client ", "node "))
                rows[client] = {**ABSENT, "absent": fault if named else f"{who} {client}: {fault}"}
                _check_quorum(when, quorum, len(nodes), rows)
            else:
                replies[client] = reply
                metrics = {name: value for name, value in reply.content["metrics"].items() if name != "num-examples"}
                rows[client] = {**metrics, "bytes_down": down, "bytes_up": count_bytes(reply.content)}
        why = "; ".join(sorted(unnamed)) or f"within {self.config.reply_timeout:g} s"
        silent = set(nodes.values()) - set(rows)
        rows |= {client: {**ABSENT, "absent": f"{who} {client}: no reply ({why})"} for client in silent}
        _check_quorum(when, quorum, len(nodes), rows)
        return dict(sorted(replies.items())), dict(sorted(rows.items()))

    def _fault(self, client: int, kind: str, reply: Message) -> str:
        """Say what is wrong with a reply: an error, or other cases, names, shapes or types than expected, or not finite."""
        if reply.has_error():
            return " ".join(reply.error.reason.split())
        if kind != "train":
            return ""
        n = reply.content["metrics"].get("num-examples", self.cases[client])
        if n != self.cases[client]:  # the weight of its update
            return f"trained on {n} cases, expected {self.cases[client]}, its share"
        fault = _array_fault(reply.content.get("arrays", {}), self.initial)
        if self.config.strategy == "scaffold":
            fault = fault or _array_fault(reply.content.get(CONTROL, {}), self._select(self.initial, trainable=True))
        return fault

    def _aggregate(self, number: int, replies: dict[int, Message]) -> ArrayRecord:
        """Return the strategy's aggregate of the trainable weights, with the mean of the buffers."""
        buffers = []
        for client, reply in replies.items():
            weight = 1 if self.config.privacy == "central" else self.cases[client]  # its noise suits equal clients
            reply.content["metrics"] = metrics = MetricRecord({"num-examples": weight})
            update = reply.content["arrays"]
            buffers.append(RecordDict({"arrays": self._select(update, trainable=False), "metrics": metrics}))
            reply.content["arrays"] = self._select(update, trainable=True)
        if self.config.privacy == "central":
            seed_noise(self.config, self.config.n_clients, number)
        weights, _ = self.strategy.aggregate_train(number, list(replies.values()))
        merged = {**weights, **aggregate_arrayrecords(buffers, "num-examples")}
        return ArrayRecord({name: _as_type(merged[name], array.dtype) for name, array in self.initial.items()})

    def _select(self, arrays: ArrayRecord, trainable: bool) -> ArrayRecord:
        return ArrayRecord({name: array for name, array in arrays.items() if (name in self.trainable) == trainable})


def participants(config: RunConfig, round_number: int) -> list[int]:
    """Draw the clients of a round from the seed and the round alone, so that the draw can be repeated."""
    rng = np.random.default_rng([config.seed, config.n_clients, round_number])
    return sorted(rng.choice(config.n_clients, config.clients_per_round(config.n_clients), replace=False).tolist())


def count_bytes(content: RecordDict) -> int:
    """Return the bytes of weights and metrics in a message, without the run's settings."""
    return sum(record.count_bytes() for record in content.values() if not isinstance(record, ConfigRecord))


def _check_quorum(when: str, quorum: float, asked: int, rows: dict[int, dict]) -> None:
    """Raise FederationError when too many of the rows are those of absent clients."""
    reasons = [row["absent"] for _, row in sorted(rows.items()) if "absent" in row]
    needed, possible = math.ceil(quorum * asked), asked - len(reasons)
    if possible < needed:
        expected = f"expected valid replies from {needed} of {asked} clients, {possible} possible"
        raise FederationError(f"{when}: {'; '.join(reasons)}; {expected}")


def _array_fault(update: ArrayRecord, expected: ArrayRecord) -> str:
    if odd := sorted(set(update) ^ set(expected)):
        return f"missing or unknown weights, {', '.join(odd[:3])}; expected those of the model"
    for name, array in update.items():
        with turns:
            values, wanted = array.numpy(), expected[name]
        if (values.shape, str(values.dtype)) != (tuple(wanted.shape), wanted.dtype):
            return f"{name} is {values.dtype} {values.shape}, expected {wanted.dtype} {tuple(wanted.shape)}"
        if not np.isfinite(values).all():
            return f"{name} is not finite"
    return ""


def _as_type(array: Array, dtype: str) -> Array:
    """Return the array in the type of the model's: an average of whole numbers is rounded, not truncated."""
    if array.dtype == dtype:
        return array
    values = array.numpy()
    return Array(np.asarray(np.rint(values) if np.issubdtype(np.dtype(dtype), np.integer) else values, dtype))
