"""Strategies against algebra done by hand, on two weights, one running mean and one counter."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fedlib.config import Strategy
from fedlib.federated.checked_strategy import CheckedStrategy
from fedlib.federated.strategies import CONTROL, STRATEGIES, ControlVariate, get_server_state, proximal_term
from fedlib.study import experiment
from fedlib.training import execution
from fedlib.training.run_store import RunStore
from tests.federated.canned import asked, canned, identities
from tests.federated.spoil import spoil_round
from tests.helpers import run_config

N = [10, 30, 60, 20, 40]
SHARE = np.array(N) / sum(N)


class Model(torch.nn.Module):
    """A weight of two numbers, a running mean, a counter."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        self.register_buffer("mean", torch.tensor([0.5]))
        self.register_buffer("count", torch.tensor(7))


START = {name: tensor.numpy().copy() for name, tensor in Model().state_dict().items()}


@pytest.fixture
def made(images):
    """A wrapped strategy by name, and what it makes of updates, one round after the other."""

    def make(name, **changes):
        config = run_config(images, "federated", n_clients=len(N), strategy=name, **changes)
        return CheckedStrategy(canned(identities(len(N))), config, Model(), N, [])

    return make


CHANGES = np.random.default_rng(9).normal(size=(2, 5, 2)).astype("f4")
"""SCAFFOLD's c_i+ - c_i in two rounds: (round, client, weight)."""


def updates(round_number=1):
    """Weights (5, 2), running means and counters of the clients after a round."""
    rng = np.random.default_rng(round_number)
    return rng.normal(size=(5, 2)).astype("f4"), rng.random((5, 1)).astype("f4"), np.array([10, 11, 12, 10, 12])


def aggregated(strategy, arrays, round_number, w, means, counts):
    """One round with these updates as replies."""
    replies = []
    for client, (own, mean, count) in enumerate(zip(w, means, counts, strict=True)):
        state = {"w": torch.tensor(own), "mean": torch.tensor(mean), "count": torch.tensor(count)}
        metrics = {"num-examples": N[client], "loss": 0.5}
        content = RecordDict({"arrays": ArrayRecord.from_torch_state_dict(state), "metrics": MetricRecord(metrics)})
        if strategy.config.strategy == "scaffold":
            content[CONTROL] = ArrayRecord({"w": Array(CHANGES[round_number - 1][client])})
        replies.append(Message(content, reply_to=asked(client)))
    strategy.grid = canned(replies)
    return strategy.train(round_number, arrays)


def two_rounds(strategy):
    """The learned weight after each of two rounds."""
    arrays, seen = ArrayRecord.from_torch_state_dict(Model().state_dict()), []
    for round_number in (1, 2):
        arrays = aggregated(strategy, arrays, round_number, *updates(round_number))
        seen.append(arrays["w"].numpy())
    return seen


def means_of_two_rounds():
    return [SHARE @ updates(number)[0] for number in (1, 2)]


def test_the_names_are_those_of_the_configuration():
    assert set(STRATEGIES) == set(Strategy.__args__)


@pytest.mark.parametrize("name", STRATEGIES)
def test_buffers_are_averaged_and_types_stay(made, name):
    w, means, counts = updates()
    result = aggregated(made(name), ArrayRecord.from_torch_state_dict(Model().state_dict()), 1, w, means, counts)
    assert list(result) == list(START)
    assert {key: (result[key].dtype, tuple(result[key].shape)) for key in result} == {
        key: (str(array.dtype), array.shape) for key, array in START.items()
    }
    assert result["mean"].numpy() == pytest.approx(SHARE @ means, abs=1e-6)
    assert result["count"].numpy() == round(float(SHARE @ counts)), "rounded, not cut"


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "scaffold"])
def test_the_mean_weighted_by_cases(made, name):
    for own, mean in zip(two_rounds(made(name)), means_of_two_rounds(), strict=True):
        assert own == pytest.approx(mean, abs=1e-6)


def test_fedavgm(made):
    """Hsu et al., 2019: v = 0.5 v + (w - mean), w = w - 0.5 v: in the long run a step as long as FedAvg's."""
    w, v, expected = START["w"], 0.0, []
    for mean in means_of_two_rounds():
        v = 0.5 * v + (w - mean)
        w = w - 0.5 * v
        expected.append(w)
    assert np.allclose(two_rounds(made("fedavgm")), expected, atol=1e-5)


def optimiser(name):
    """Reddi et al., 2021, algorithm 2; Flower corrects the bias of Adam, counting rounds from two."""
    options, w, m, v, expected = STRATEGIES[name][1], START["w"].astype(float), 0.0, 0.0, []
    for number, mean in enumerate(means_of_two_rounds(), 1):
        delta, rate = mean - w, options["eta"]
        m = options.get("beta_1", 0.0) * m + (1 - options.get("beta_1", 0.0)) * delta
        if name == "fedadagrad":
            v = v + delta**2
        else:
            v = options["beta_2"] * v + (1 - options["beta_2"]) * delta**2
            rate *= np.sqrt(1 - options["beta_2"] ** (number + 1)) / (1 - options["beta_1"] ** (number + 1))
        w = w + rate * m / (np.sqrt(v) + options["tau"])
        expected.append(w)
    return expected


@pytest.mark.parametrize("name", ["fedadam", "fedadagrad"])
def test_server_optimisers(made, name):
    assert np.allclose(two_rounds(made(name)), optimiser(name), atol=1e-5)


def test_fedmedian_does_not_mind_one_client_far_off(made):
    w, means, counts = updates()
    w[3] = 1e6
    arrays = ArrayRecord.from_torch_state_dict(Model().state_dict())
    assert aggregated(made("fedmedian"), arrays, 1, w, means, counts)["w"].numpy() == pytest.approx(np.median(w, axis=0))


def test_fedtrimmedavg_leaves_out_the_ends(made):
    w, means, counts = updates()
    arrays = ArrayRecord.from_torch_state_dict(Model().state_dict())
    trimmed = np.sort(w, axis=0)[1:-1].mean(axis=0)
    assert aggregated(made("fedtrimmedavg"), arrays, 1, w, means, counts)["w"].numpy() == pytest.approx(trimmed, abs=1e-6)


def test_krum_takes_the_client_nearest_to_the_others(made):
    w, means, counts = updates()
    apart = ((w[:, None] - w[None]) ** 2).sum(-1)
    score = np.sort(apart, axis=1)[:, 1:3].sum(axis=1)  # five clients, one of them bad: the two nearest count
    arrays = ArrayRecord.from_torch_state_dict(Model().state_dict())
    assert aggregated(made("krum"), arrays, 1, w, means, counts)["w"].numpy() == pytest.approx(w[score.argmin()])


def test_the_proximal_term_holds_a_client_near_the_global_weights(images):
    config = run_config(images, "federated", rounds=1, local_epochs=3)
    rows, moved = execution.clients_of(config, images)[0], []
    for mu in (0.0, 0.01, 100.0):
        model = execution.initial_model(config, images)
        start = [parameter.detach().clone() for parameter in model.parameters()]
        execution.train_round(model, images, rows, config, 0, 1, proximal_term(model, mu))
        moved.append(sum(((p.detach() - s) ** 2).sum() for p, s in zip(model.parameters(), start, strict=True)).item())
    assert moved[2] < 0.9 * moved[0]
    assert moved[1] != moved[0]


def test_scaffold_moves_the_server_s_control_variate_by_the_mean_change(made):
    strategy = made("scaffold")
    two_rounds(strategy)
    assert strategy.strategy.control["w"] == pytest.approx(SHARE @ CHANGES[0] + SHARE @ CHANGES[1], abs=1e-6)


def test_a_client_that_sits_out_counts_with_no_change_of_its_control_variate(made):
    """Karimireddy et al., 2020, eq. 5: |S|/N times the mean over the clients S of the round."""
    strategy, (w, means, counts) = made("scaffold", quorum=0.4), updates()
    aggregated(strategy, ArrayRecord.from_torch_state_dict(Model().state_dict()), 1, w[:2], means[:2], counts[:2])
    assert strategy.strategy.control["w"] == pytest.approx(SHARE[:2] @ CHANGES[0][:2], abs=1e-6)


def test_the_client_s_half_of_scaffold_is_the_paper_s_option_two_for_sgd():
    """Three steps of SGD on w (a - w)^2 / 2 by hand: y <- y - lr (g(y) - c_i + c); c_i+ = c_i - c + (x - y) / (K lr)."""
    target, rate, steps = torch.tensor([3.0, 1.0]), 0.1, 3
    server, own = torch.tensor([0.2, -0.1]), torch.tensor([0.5, 0.4])
    model, y = Model(), torch.tensor([1.0, -2.0])
    adjust = ControlVariate(model, {"w": server}, {f"{CONTROL}.w": own})
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        ((model.w - target) ** 2 / 2).sum().backward()
        adjust()
        optimizer.step()
        y = y - rate * ((y - target) - own + server)
    assert torch.allclose(model.w, y)
    kept = own - server + (torch.tensor([1.0, -2.0]) - y) / (steps * rate)
    assert torch.allclose(adjust.state()[f"{CONTROL}.w"], kept, atol=1e-5)
    assert torch.allclose(adjust.change()["w"], kept - own, atol=1e-5)


def trained(data, out, **changes):
    """Unequal clients, as a median of two equal ones is their mean; two epochs, as the first step feels no proximal pull."""
    sizes = {"partition": "unbalanced", "local_epochs": 2}
    return experiment.run(run_config(data, "federated", **sizes | changes), data, RunStore(out))


@pytest.fixture(scope="module")
def plain(prepared, tmp_path_factory):
    """FedAvg's weights of each task, by hash."""
    out = tmp_path_factory.mktemp("plain")
    return {task: trained(data, out).result["weights_sha256"] for task, data in prepared.items()}


TRAINED = [("classification", name) for name in STRATEGIES if name not in ("fedavg", "krum")]
TRAINED += [("segmentation", name) for name in ("fedavgm", "scaffold")]  # one at the server, one at the clients


@pytest.mark.parametrize(("task", "name"), TRAINED)
def test_every_strategy_trains_in_its_own_way(prepared, plain, tmp_path, task, name):
    run = trained(prepared[task], tmp_path, strategy=name)
    assert all(torch.isfinite(tensor).all() for tensor in run.weights().values())
    assert run.result["weights_sha256"] != plain[task]


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedadagrad", "scaffold"])
def test_a_resumed_run_keeps_the_server_s_state(images, tmp_path, monkeypatch, made, name):
    config = run_config(images, "federated", strategy=name, rounds=3)
    whole = experiment.run(config, images, RunStore(tmp_path / "whole"))
    with monkeypatch.context() as patched:
        spoil_round(patched, 0, 3, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config, images, RunStore(tmp_path / "parts"))
    run = experiment.run(config, images, RunStore(tmp_path / "parts"))
    assert run.result["weights_sha256"] == whole.result["weights_sha256"]
    strategy = made(name)
    two_rounds(strategy)
    assert get_server_state(strategy.strategy), "there is something to keep"
