"""Flower's strategies by name, each with its values, and SCAFFOLD, which Flower lacks.

The values are *chosen*: with them every strategy ends within 0.05 of FedAvg's accuracy in a quick study of eight clients.
docs/reproduce.md, "Strategies", has the figures. The papers tune theirs for each task.

Where a strategy has a client's half (FedProx, SCAFFOLD) it is here, too: a function called at every step, with the gradients
in place (`adjust` of `train_round`). FedBN (Li et al., 2021) is the setting `batch_norm = local`, with any of these.
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
    Krum,
    Strategy,
)

from fedlib.config import RunConfig
from fedlib.federated.privacy import central_privacy

CONTROL = "control"
"""Name of SCAFFOLD's control variates in messages and files."""


class Scaffold(FedAvg):
    """SCAFFOLD (Karimireddy et al., 2020, algorithm 1): control variates correct the drift of clients that differ.

    Client i steps along g_i(y) - c_i + c (eq. 3) and ends with c_i+ = c_i - c + (x - y_i) / (K lr) (option II). With the
    paper's SGD that is the mean of g_i over the K local steps; the mean is taken here, since our clients use AdamW
    (*chosen*). The server averages weights as FedAvg and moves c by the mean of c_i+ - c_i (eq. 5). A client weighs as its
    share of all cases, also of those of clients that sit out: c stays the weighted mean of all c_i.
    """

    def __init__(self, total_cases: int, **options):
        super().__init__(**options)
        self.total_cases = total_cases
        self.control: dict[str, np.ndarray] = {}
        """c: an array per trainable weight; empty before the first round, for zeros."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Return Flower's messages, with the server's control variate beside the weights."""
        if not self.control:
            self.control = {name: np.zeros(array.shape, array.dtype) for name, array in arrays.items()}
        control = ArrayRecord({name: Array(values) for name, values in self.control.items()})
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message in messages:
            message.content = RecordDict({**message.content, CONTROL: control})
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """Average the weights as FedAvg; add the changes of the clients' control variates to the server's."""
        replies = list(replies)
        for reply in replies:
            share = np.float32(reply.content["metrics"]["num-examples"] / self.total_cases)
            for name, change in reply.content.pop(CONTROL).items():
                self.control[name] = self.control[name] + share * change.numpy()
        return super().aggregate_train(server_round, replies)


class ControlVariate:
    """The client's half of SCAFFOLD for one round: correct every gradient, and take the mean of the uncorrected ones.

    `server` holds c by name of the weight; `kept` what `state` returned in the client's last round, if there was one.
    """

    def __init__(self, model: torch.nn.Module, server: dict[str, torch.Tensor], kept: dict[str, torch.Tensor]):
        self.weights = {name: weight for name, weight in model.named_parameters() if name in server}
        self.before = {name: kept.get(f"{CONTROL}.{name}", torch.zeros_like(server[name])) for name in self.weights}
        self.correction = {name: (server[name] - self.before[name]).to(w.device) for name, w in self.weights.items()}
        self.sum = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self.steps = 0

    def __call__(self) -> None:
        """Correct the gradients of one step (eq. 3)."""
        self.steps += 1
        for name, weight in self.weights.items():
            self.sum[name] += weight.grad
            weight.grad += self.correction[name]

    def state(self) -> dict[str, torch.Tensor]:
        """Return c_i+, for the client's next round."""
        return {f"{CONTROL}.{name}": (total / self.steps).cpu().contiguous() for name, total in self.sum.items()}

    def change(self) -> dict[str, torch.Tensor]:
        """Return c_i+ - c_i, which the client sends."""
        return {name: self.state()[f"{CONTROL}.{name}"] - before for name, before in self.before.items()}


def proximal_term(model: torch.nn.Module, mu: float) -> Callable[[], None]:
    """Return the client's half of FedProx: the gradient of mu/2 |w - w_global|^2 (Li et al., 2020, eq. 2).

    The model's weights of now are w_global.
    """
    start = [parameter.detach().clone() for parameter in model.parameters()]

    def adjust() -> None:
        for parameter, origin in zip(model.parameters(), start, strict=True):
            parameter.grad.add_(parameter.detach() - origin, alpha=mu)

    return adjust


STRATEGIES: dict[str, tuple[type[FedAvg], dict[str, float]]] = {
    "fedavg": (FedAvg, {}),  # McMahan et al., 2017: the mean, weighted by cases
    "fedavgm": (FedAvgM, {"server_learning_rate": 0.5, "server_momentum": 0.5}),  # Hsu et al., 2019; a step of 1 in all
    "fedprox": (FedProx, {"proximal_mu": 0.01}),  # Li et al., 2020: clients are held near the global weights
    "fedadam": (FedAdam, {"eta": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001}),  # Reddi et al., 2021
    "fedadagrad": (FedAdagrad, {"eta": 0.01, "tau": 0.001}),  # the same
    "fedmedian": (FedMedian, {}),  # Yin et al., 2018: a few clients that send nonsense do no harm
    "fedtrimmedavg": (FedTrimmedAvg, {"beta": 0.2}),  # the same; trims nothing below five clients
    "krum": (Krum, {"num_malicious_nodes": 1}),  # Blanchard et al., 2017: the weights of the client nearest to the others
    "scaffold": (Scaffold, {}),  # Karimireddy et al., 2020: clients correct their steps by how they differ from the rest
}


def flower_strategy(config: RunConfig, cases: list[int]) -> Strategy:
    """Build the strategy of a run. `cases`: training cases of each client."""
    kind, options = STRATEGIES[config.strategy]
    if kind is Scaffold:
        options = {"total_cases": sum(cases)}
    strategy = kind(min_train_nodes=1, min_available_nodes=1, **options)
    return central_privacy(config, strategy) if config.privacy == "central" else strategy


SERVER_STATE = ("m_t", "v_t", "momentum_vector", "control")
"""Attributes that strategies carry from round to round: by name of the weight, only FedAvgM's momentum in their order."""


def get_server_state(strategy: Strategy) -> dict[str, torch.Tensor]:
    """Return what a strategy carries to the next round, for a checkpoint."""
    state: dict[str, torch.Tensor] = {}
    for attribute in SERVER_STATE:
        values = getattr(strategy, attribute, None) or {}
        named = values.items() if isinstance(values, dict) else enumerate(values)
        state |= {f"strategy.{attribute}.{name}": torch.from_numpy(np.array(value)) for name, value in named}
    return state


def load_server_state(strategy: Strategy, state: dict[str, torch.Tensor]) -> None:
    """Restore what `get_server_state` returned."""
    for attribute in SERVER_STATE:
        head = f"strategy.{attribute}."
        values = {name.removeprefix(head): tensor.numpy() for name, tensor in state.items() if name.startswith(head)}
        if values and attribute == "momentum_vector":
            strategy.momentum_vector = [values[str(number)] for number in range(len(values))]
        elif values:
            setattr(strategy, attribute, values)
