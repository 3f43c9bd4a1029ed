"""Wrap a Flower strategy in what a study needs: seeded sampling, checked replies, a fixed order, and a row per client.

Flower leaves these open. It aggregates in order of arrival, which gives other weights each time; it averages the rest when
a client fails; and it drops what each client did. A client that fails stops the run here, unless a quorum allows for it.
"""

import math
from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from fedlib.config import RunConfig
from fedlib.federated.client_app import local_state, shared_state
from fedlib.federated.privacy import central_privacy, seed_noise
from fedlib.federated.strategies import CONTROL, flower_strategy

ABSENT = {"n": 0, "seconds": 0.0, "bytes_down": 0, "bytes_up": 0}
"""What an absent client adds to a round."""


class FederationError(RuntimeError):
    """Too many clients failed: their numbers, the round and the causes."""


class CheckedStrategy(Strategy):
    """A wrapper like Flower's own for privacy: the wrapped strategy sees trainable weights of accepted replies only.

    Buffers (running mean and variance of BatchNorm, its counter) are averaged by cases under every strategy: a step of
    Adam on a variance could make it negative, and a counter is a whole number.
    `nodes`: the client of each node id. `cases`: training cases of each client. `clients`: rows of clients.csv so far.
    """

    def __init__(self, config: RunConfig, model: torch.nn.Module, nodes: dict[int, int], cases: list[int], clients: list):
        self.config, self.nodes, self.cases = config, nodes, cases
        self.base: FedAvg = flower_strategy(config.strategy, cases)
        self.strategy: Strategy = central_privacy(config, self.base) if config.privacy == "central" else self.base
        self.initial = ArrayRecord(shared_state(config, model))
        self.trainable = {name for name, _ in model.named_parameters()} - set(local_state(config, model))
        self.accepted = {row["client"]: row["round"] for row in clients if "absent" not in row}
        self.rounds_before = max((row["round"] for row in clients), default=0)
        self.asked: list[int] = []
        self.bytes_down: dict[int, int] = {}
        self.rows: dict[int, dict] = {}
        """Rows of clients.csv of the last round, by client."""
        self.validation: dict[str, float] = {}
        """Mean of the clients' validation scores after the last round, where each has its own model."""

    def summary(self) -> None:
        """Log the wrapped strategy's summary."""
        self.strategy.summary()

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> list[Message]:
        """Return Flower's messages to this round's clients; rounds are counted over the whole run, not from a restart."""
        number = self.rounds_before + server_round
        self.asked = participants(self.config, number)
        node_ids = [node for node, client in self.nodes.items() if client in self.asked]
        sampled = SimpleNamespace(get_node_ids=lambda: node_ids)  # all that Flower asks of a grid here
        messages = self.strategy.configure_train(number, self._select(arrays, trainable=True), config, sampled)
        return [self._addressed(message, arrays) for message in messages]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """Check the replies, and let the strategy aggregate the accepted ones in the order of the clients.

        Raises FederationError when fewer clients than the quorum sent a valid reply, or one replied twice.
        """
        number = self.rounds_before + server_round
        received, absent = self._receive(number, replies)
        absent |= {client: fault for client, reply in received.items() if (fault := self._fault(client, reply))}
        accepted = {client: received[client] for client in sorted(received) if client not in absent}
        self._check_quorum(number, len(accepted), absent)
        self.accepted |= dict.fromkeys(accepted, number)
        self.rows = {client: {"round": number, "client": client} for client in self.asked}
        for client, reply in accepted.items():
            traffic = {"bytes_down": self.bytes_down[client], "bytes_up": count_bytes(reply.content)}
            self.rows[client] |= {"n": self.cases[client], **_metrics(reply), **traffic}
        for client, reason in absent.items():
            self.rows[client] |= {**ABSENT, "absent": reason}
        return self._aggregate(number, accepted), MetricRecord()

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> list[Message]:
        """Ask all clients to validate where each has its own model; else nobody."""
        if not self.config.is_personalized:
            return []
        self.asked = sorted(self.nodes.values())
        content = RecordDict({"arrays": arrays, "config": config})
        messages = [Message(content, dst_node_id=node, message_type="evaluate") for node in self.nodes]
        return [self._addressed(message, arrays) for message in messages]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Average the validation scores of the clients' own models; their messages count as traffic of the round."""
        if not self.config.is_personalized:
            return
        number = self.rounds_before + server_round
        received, absent = self._receive(number, replies)
        self._check_quorum(number, len(received), absent)
        for client, reply in received.items():
            self.rows[client]["bytes_down"] += self.bytes_down[client]
            self.rows[client]["bytes_up"] += count_bytes(reply.content)
            self.rows[client]["seconds"] += reply.content["metrics"].pop("seconds")
        self.validation = pd.DataFrame([_metrics(received[client]) for client in sorted(received)]).mean().to_dict()

    def client_message(self, node: int, config: ConfigRecord, kind: str) -> Message:
        """Return a message without weights to a node."""
        return self._addressed(Message(RecordDict({"config": config}), dst_node_id=node, message_type=kind))

    def _addressed(self, message: Message, arrays: ArrayRecord | None = None) -> Message:
        """Add the client's last accepted round and all shared weights to a message; Flower's content is one for all."""
        client = self.nodes[message.metadata.dst_node_id]
        config = ConfigRecord({**message.content["config"], "accepted-round": self.accepted.get(client, 0)})
        weights = {} if arrays is None else {"arrays": arrays}
        message.content = RecordDict({**message.content, "config": config, **weights})
        self.bytes_down[client] = count_bytes(message.content)
        return message

    def _receive(self, number: int, replies: Iterable[Message]) -> tuple[dict[int, Message], dict[int, str]]:
        """Return the reply of each client, and why others have none; as soon as too many failed, stop the run."""
        received, absent, unnamed = {}, {}, []
        for reply in replies:
            client = self.nodes.get(reply.metadata.src_node_id)
            if client is None:  # in the SuperLink's name, for a node that is gone
                unnamed.append(" ".join(reply.error.reason.split()))
            elif client in received or client in absent:
                raise FederationError(f"round {number}: client {client}: replied twice")
            elif reply.has_error():
                reason = " ".join(reply.error.reason.split())
                absent[client] = reason if reason.startswith(f"client {client} ") else f"client {client}: {reason}"
                self._check_quorum(number, len(self.asked) - len(absent), absent)
            else:
                received[client] = reply
        why = "; ".join(sorted(set(unnamed))) or f"within {self.config.reply_timeout:g} s"
        silent = set(self.asked) - set(received) - set(absent)
        return received, absent | {client: f"client {client}: no reply ({why})" for client in silent}

    def _check_quorum(self, number: int, valid: int, absent: dict[int, str]) -> None:
        needed, asked = math.ceil(self.config.quorum * len(self.asked)), len(self.asked)
        if valid < needed:
            reasons = "; ".join(absent[client] for client in sorted(absent))
            raise FederationError(
                f"round {number}: {reasons}; expected valid replies from {needed} of {asked} clients, {valid} possible"
            )

    def _fault(self, client: int, reply: Message) -> str:
        """Say what is wrong with an update: other cases, names, shapes or types than expected, or not finite."""
        n = reply.content["metrics"].get("num-examples", self.cases[client])
        if n != self.cases[client]:  # the weight of its update
            return f"client {client}: trained on {n} cases, expected {self.cases[client]}, its share"
        expected = {"arrays": self.initial}
        if self.config.strategy == "scaffold":
            expected[CONTROL] = self._select(self.initial, trainable=True)
        for key, arrays in expected.items():
            if fault := _array_fault(reply.content.get(key, {}), arrays):
                return f"client {client}: {fault}"
        return ""

    def _aggregate(self, number: int, accepted: dict[int, Message]) -> ArrayRecord:
        """Return the strategy's aggregate of the trainable weights, with the mean of the buffers."""
        buffers = []
        for client, reply in accepted.items():
            weight = 1 if self.config.privacy == "central" else self.cases[client]  # its noise suits equal clients
            reply.content["metrics"] = metrics = MetricRecord({"num-examples": weight})
            update = reply.content["arrays"]
            buffers.append(RecordDict({"arrays": self._select(update, trainable=False), "metrics": metrics}))
            reply.content["arrays"] = self._select(update, trainable=True)
        if self.config.privacy == "central":
            seed_noise(self.config, self.config.n_clients, number)
        weights, _ = self.strategy.aggregate_train(number, list(accepted.values()))
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


def _array_fault(update: ArrayRecord, expected: ArrayRecord) -> str:
    if odd := sorted(set(update) ^ set(expected)):
        return f"missing or unknown weights, {', '.join(odd[:3])}; expected those of the model"
    for name, array in update.items():
        values, wanted = array.numpy(), expected[name]
        if (values.shape, str(values.dtype)) != (tuple(wanted.shape), wanted.dtype):
            return f"{name} is {values.dtype} {values.shape}, expected {wanted.dtype} {tuple(wanted.shape)}"
        if not np.isfinite(values).all():
            return f"{name} is not finite"
    return ""


def _metrics(reply: Message) -> dict:
    return {name: value for name, value in reply.content["metrics"].items() if name != "num-examples"}


def _as_type(array: Array, dtype: str) -> Array:
    """Return the array in the type of the model's: an average of whole numbers is rounded, not truncated."""
    if array.dtype == dtype:
        return array
    values = array.numpy()
    return Array(np.asarray(np.rint(values) if np.issubdtype(np.dtype(dtype), np.integer) else values, dtype))
