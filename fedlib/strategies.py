"""How the server aggregates: Flower's strategies by name, each with the values that its paper proposes (*chosen*).

Medians, server momentum and server optimisers are meant for weights that gradients move. The buffers of a model (running
mean and variance of BatchNorm, its counter) are averaged by cases under every strategy: an Adam step on a variance could
make it negative, and a counter is a whole number.
"""

from collections.abc import Iterable

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
)
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

STRATEGIES: dict[str, tuple[type[FedAvg], dict[str, float]]] = {
    "fedavg": (FedAvg, {}),  # McMahan et al., 2017: the mean, weighted by cases
    "fedavgm": (FedAvgM, {"server_learning_rate": 1.0, "server_momentum": 0.9}),  # Hsu et al., 2019
    "fedprox": (FedProx, {"proximal_mu": 0.01}),  # Li et al., 2020: clients are held near the global weights
    "fedadam": (FedAdam, {"eta": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001}),  # Reddi et al., 2021
    "fedyogi": (FedYogi, {"eta": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001}),  # the same
    "fedadagrad": (FedAdagrad, {"eta": 0.01, "tau": 0.001}),  # the same
    "fedmedian": (FedMedian, {}),  # Yin et al., 2018: a few clients that send nonsense do no harm
    "fedtrimmedavg": (FedTrimmedAvg, {"beta": 0.2}),  # the same; trims nothing below five clients
    "krum": (Krum, {"num_malicious_nodes": 1}),  # Blanchard et al., 2017: the weights of the client nearest to the others
}
MEMORY = ("m_t", "v_t", "momentum_vector")
"""What Flower's strategies carry from round to round: Adam's moments by name of the weight, momentum in their order."""


class Sound:
    """Mixed into a Flower strategy: it aggregates what was learned, buffers are averaged, and types stay as they were."""

    initial: ArrayRecord
    """The weights that the federation starts from; every later one has their names, shapes and types."""
    learned: frozenset[str]
    """Names of the weights that gradients move."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Flower's messages; they carry all weights, though the strategy keeps in mind the learned ones."""
        messages = list(super().configure_train(server_round, self._part(arrays, learned=True), config, grid))
        for message in messages:
            message.content["arrays"] = arrays
        return messages

    def aggregate_train(self, server_round: int, replies: list[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """The strategy's aggregate of the learned weights, with the mean of the buffers."""
        updates = [reply.content["arrays"] for reply in replies]
        buffers = [
            RecordDict({"arrays": self._part(update, learned=False), "metrics": reply.content["metrics"]})
            for update, reply in zip(updates, replies, strict=True)
        ]
        means = aggregate_arrayrecords(buffers, "num-examples")
        for update, reply in zip(updates, replies, strict=True):
            reply.content["arrays"] = self._part(update, learned=True)
        aggregated, metrics = super().aggregate_train(server_round, replies)
        merged = {
            name: _typed((aggregated if name in self.learned else means)[name], self.initial[name]) for name in self.initial
        }
        return ArrayRecord(merged), metrics

    def memory(self) -> dict[str, torch.Tensor]:
        """What the strategy carries to the next round, for a checkpoint."""
        kept: dict[str, torch.Tensor] = {}
        for attribute in MEMORY:
            values = getattr(self, attribute, None) or {}
            named = values.items() if isinstance(values, dict) else enumerate(values)
            kept |= {f"strategy.{attribute}.{name}": torch.from_numpy(np.array(value)) for name, value in named}
        return kept

    def remember(self, memory: dict[str, torch.Tensor]) -> None:
        """Take back what `memory` gave."""
        for attribute in MEMORY:
            head = f"strategy.{attribute}."
            values = {name.removeprefix(head): tensor.numpy() for name, tensor in memory.items() if name.startswith(head)}
            if values and attribute == "momentum_vector":
                self.momentum_vector = [values[str(number)] for number in range(len(values))]
            elif values:
                setattr(self, attribute, values)

    def _part(self, arrays: ArrayRecord, learned: bool) -> ArrayRecord:
        return ArrayRecord({name: array for name, array in arrays.items() if (name in self.learned) == learned})


def _typed(array: Array, initial: Array) -> Array:
    """The array in the type of the model's: an average of whole numbers is rounded, not cut."""
    values = array.numpy()
    if np.issubdtype(np.dtype(initial.dtype), np.integer):
        values = np.rint(values)
    return Array(np.asarray(values, initial.dtype))
