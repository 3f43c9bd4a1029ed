"""How the server aggregates: Flower's strategies by name, each with the values that its paper proposes (*chosen*).

Medians, server momentum and server optimisers are meant for weights that gradients move. The buffers of a model (running
mean and variance of BatchNorm, its counter) are averaged by cases under every strategy: an Adam step on a variance could
make it negative, and a counter is a whole number. Where a strategy has a half at the client (FedProx, SCAFFOLD), it stands
here beside the server's: a function that is called at every step with the gradients in place (`train_round`'s `adjust`).

FedBN (Li et al., 2021) is no strategy here but the choice `batch_norm = local`, which goes with each of these.
"""

from collections.abc import Callable, Iterable

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

from fedlib.federated.messages import LiveArray, record_of


class Scaffold(FedAvg):
    """SCAFFOLD (Karimireddy et al., 2020, algorithm 1): control variates correct the drift of clients that differ.

    Client i steps along g_i(y) - c_i + c (eq. 3) and ends with c_i+ = c_i - c + (x - y_i) / (K lr) (option II), which for
    its plain SGD is the mean of g_i over the K own steps; that mean is what is taken here, since our clients use AdamW
    (*chosen*). The server averages weights as FedAvg and moves c by the mean of c_i+ - c_i (eq. 5), clients weighted by
    their share of all cases, so that one that sits out counts with no change.
    """

    control: dict[str, np.ndarray] | None = None
    """c: one array for each learned weight; nothing before the first round, which stands for zeros."""
    cases: list[int]
    """Training cases of each client."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Flower's messages, with the server's control variate beside the weights."""
        if not self.control:
            self.control = {name: np.zeros(array.shape, array.dtype) for name, array in arrays.items()}
        control = record_of({name: LiveArray(array) for name, array in self.control.items()})
        for message in super().configure_train(server_round, arrays, config, grid):
            message.content = RecordDict({**message.content, CONTROL: control})
            yield message

    def aggregate_train(self, server_round: int, replies: list[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """FedAvg of the weights; the changes of the control variates are added to the server's."""
        for reply in replies:
            share = reply.content["metrics"]["num-examples"] / sum(self.cases)
            for name, change in reply.content.pop(CONTROL).items():
                self.control[name] = self.control[name] + np.float32(share) * change.numpy()
        return super().aggregate_train(server_round, replies)


class ControlVariate:
    """The client's half of SCAFFOLD, for one round: corrects every gradient, and remembers their mean before that.

    `server` holds c, by name of the weight; `before` what `kept` gave in the client's last round, if there was one.
    """

    def __init__(self, model: torch.nn.Module, server: dict[str, torch.Tensor], before: dict[str, torch.Tensor]):
        self.weights = {name: weight for name, weight in model.named_parameters() if name in server}
        self.own = {
            name: before.get(f"{CONTROL}.{name}", torch.zeros_like(weight, device="cpu"))
            for name, weight in self.weights.items()
        }
        self.correction = {name: (server[name] - self.own[name]).to(w.device) for name, w in self.weights.items()}
        self.sum = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self.steps = 0

    def __call__(self) -> None:
        """Correct the gradients of one step (eq. 3)."""
        self.steps += 1
        for name, weight in self.weights.items():
            self.sum[name] += weight.grad
            weight.grad += self.correction[name]

    def kept(self) -> dict[str, torch.Tensor]:
        """c_i+, for the client's next round."""
        return {f"{CONTROL}.{name}": (total / self.steps).cpu() for name, total in self.sum.items()}

    def change(self) -> dict[str, torch.Tensor]:
        """c_i+ - c_i, what the client sends."""
        return {name: mean - self.own[name] for name, mean in zip(self.weights, self.kept().values(), strict=True)}


def proximal(model: torch.nn.Module, mu: float) -> Callable[[], None]:
    """The client's half of FedProx: the gradient of mu/2 |w - w_global|^2 (Li et al., 2020, eq. 2); w_global is now."""
    sent = [parameter.detach().clone() for parameter in model.parameters()]

    def adjust() -> None:
        for parameter, origin in zip(model.parameters(), sent, strict=True):
            parameter.grad.add_(parameter.detach() - origin, alpha=mu)

    return adjust


CONTROL = "control"
"""Name of SCAFFOLD's control variates in messages."""
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
    "scaffold": (Scaffold, {}),  # Karimireddy et al., 2020: clients correct their steps by how they differ from the rest
}
MEMORY = ("m_t", "v_t", "momentum_vector", "control")
"""What strategies carry from round to round: by name of the weight, only FedAvgM's momentum in their order."""


class Sound:
    """Mixed into a Flower strategy: it aggregates what was learned, buffers are averaged, and types stay as they were."""

    initial: ArrayRecord
    """The weights that the federation starts from; every later one has their names, shapes and types."""
    learned: frozenset[str]
    """Names of the weights that gradients move."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Flower's messages; they carry all weights, though the strategy keeps in mind the learned ones."""
        for message in super().configure_train(server_round, self._part(arrays, learned=True), config, grid):
            message.content = RecordDict({**message.content, "arrays": arrays})  # Flower's content is one for all
            yield message

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
        return record_of(merged), metrics

    def _part(self, arrays: ArrayRecord, learned: bool) -> ArrayRecord:
        return record_of({name: array for name, array in arrays.items() if (name in self.learned) == learned})


def memory_of(strategy: FedAvg) -> dict[str, torch.Tensor]:
    """What a strategy carries to the next round, for a checkpoint."""
    kept: dict[str, torch.Tensor] = {}
    for attribute in MEMORY:
        values = getattr(strategy, attribute, None) or {}
        named = values.items() if isinstance(values, dict) else enumerate(values)
        kept |= {f"strategy.{attribute}.{name}": torch.from_numpy(np.array(value)) for name, value in named}
    return kept


def remind(strategy: FedAvg, state: dict[str, torch.Tensor]) -> None:
    """Give a strategy back what `memory_of` took."""
    for attribute in MEMORY:
        head = f"strategy.{attribute}."
        values = {name.removeprefix(head): tensor.numpy() for name, tensor in state.items() if name.startswith(head)}
        if values and attribute == "momentum_vector":
            strategy.momentum_vector = [values[str(number)] for number in range(len(values))]
        elif values:
            setattr(strategy, attribute, values)


def _typed(array: Array, initial: Array) -> Array:
    """The array in the type of the model's: an average of whole numbers is rounded, not cut."""
    values = array.numpy()
    if np.issubdtype(np.dtype(initial.dtype), np.integer):
        values = np.rint(values)
    return LiveArray(np.asarray(values, initial.dtype))
