"""Differential privacy: the noise by hand, the accountant against another one, and what does not go with it."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm

from fedlib.config import DELTA, EPSILON_COVERS, StudyConfig, UserError
from fedlib.federated.in_process import InProcessGrid
from fedlib.federated.privacy import epsilon_after
from fedlib.study import experiment, report
from fedlib.training import execution
from fedlib.training.run_store import RunStore
from tests.helpers import outcome, run_config

PRIVATE = {"batch_norm": "group"}


def federated(data, out, **changes):
    sizes = {"local_epochs": 2} | (PRIVATE if data.task == "classification" else {})
    return experiment.run(run_config(data, "federated", **sizes | changes), data, RunStore(out))


def exact_epsilon(noise_multiplier: float, rounds: int) -> float:
    """Balle and Wang, 2018, theorem 8: the Gaussian mechanism's exact delta(epsilon), solved for epsilon.

    T releases with noise z are one release with noise z / sqrt(T).
    """
    mu = np.sqrt(rounds) / noise_multiplier

    def delta(epsilon):
        return norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)

    return brentq(lambda epsilon: delta(epsilon) - DELTA, 0, 700)


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (1.0, 20), (4.0, 10), (10.0, 50)])
def test_epsilon_is_a_close_bound_above_the_exact_value(images, noise, rounds):
    config = run_config(images, "federated", privacy="central", noise_multiplier=noise)
    exact = exact_epsilon(noise, rounds)
    assert exact <= epsilon_after(config, rounds) <= 1.15 * exact


def test_more_noise_costs_less_and_more_rounds_cost_more(images):
    config = run_config(images, "federated", privacy="central")
    spent = [epsilon_after(config, rounds) for rounds in (1, 2, 10)]
    assert spent == sorted(spent)
    assert epsilon_after(config.model_copy(update={"noise_multiplier": 2.0}), 10) < spent[-1]


@pytest.mark.parametrize("privacy", ["central", "local"])
def test_a_private_run_states_its_epsilon_and_can_be_made_again(data, tmp_path, privacy):
    run = federated(data, tmp_path, privacy=privacy, noise_multiplier=2.0)
    expected = epsilon_after(run.config, run.config.rounds)
    known = {"delta": DELTA, "unit": "client", "mechanism": privacy, "covers": EPSILON_COVERS[privacy]}
    assert run.provenance["privacy"] == {"epsilon": expected} | known
    assert run.result["epsilon"] == expected
    assert run.rounds["epsilon"].tolist() == [epsilon_after(run.config, number) for number in (1, 2)]
    assert outcome(federated(data, tmp_path / "again", privacy=privacy, noise_multiplier=2.0)) == outcome(run)
    assert report.runs_table([run])["epsilon"].tolist() == [expected]
    (caveat,) = [
        words for words in report.caveats([run], StudyConfig.make(task=data.task), data.manifest) if "covers" in words
    ]
    assert EPSILON_COVERS[privacy] in caveat
    plain = federated(data, tmp_path)
    assert "privacy" not in plain.provenance
    assert "epsilon" not in report.runs_table([plain])


def test_nothing_exact_leaves_a_client_under_local_privacy(data, tmp_path, monkeypatch):
    """Epsilon covers weights only, so no loss or score travels; the server knows the cases from the partition."""
    sent, send = [], InProcessGrid.send_and_receive

    def watched(grid, messages, **options):
        for reply in send(grid, messages, **options):
            sent.append((reply.metadata.message_type, sorted(reply.content), sorted(reply.content["metrics"])))
            yield reply

    monkeypatch.setattr(InProcessGrid, "send_and_receive", watched)
    run = federated(data, tmp_path, privacy="local")
    assert {kind for kind, *_ in sent} == {"query", "train"}
    assert all(content == [["arrays", "metrics"], ["seconds"]] for kind, *content in sent if kind == "train")
    assert "loss" not in run.clients
    cases = [len(rows) for rows in execution.clients_of(run.config, data)]
    assert run.clients["n"].tolist() == cases * run.config.rounds


def trained_alone(run, data):
    """Start, and each client's update in the first round, as vectors."""
    config, updates = run.config, []
    start = vector(execution.initial_model(config, data))
    for client, rows in enumerate(execution.clients_of(config, data)):
        model = execution.initial_model(config, data)
        execution.train_round(model, data, rows, config, client, 1)
        updates.append(vector(model) - start)
    return start, updates


def vector(model):
    return torch.cat([tensor.detach().reshape(-1) for tensor in model.state_dict().values()]).double().numpy()


@pytest.mark.parametrize("privacy", ["central", "local"])
def test_updates_are_clipped_averaged_and_get_the_noise_of_the_mechanism(images, tmp_path, privacy):
    """Mean of two clients' clipped updates w_k u_k, and noise: z C / K (central, w = 1/K); 2 z C |w| (local)."""
    noise, clip = 0.02, 0.2
    changes = {"privacy": privacy, "noise_multiplier": noise, "clipping_norm": clip, "rounds": 1, "partition": "unbalanced"}
    run = federated(images, tmp_path, **changes)
    start, updates = trained_alone(run, images)
    assert min(map(np.linalg.norm, updates)) > clip, "there is something to clip"
    clipped = [update * clip / np.linalg.norm(update) for update in updates]
    n = np.array([len(rows) for rows in execution.clients_of(run.config, images)])
    weights = np.array([1 / 2, 1 / 2]) if privacy == "central" else n / n.sum()
    share = 1 / 2 if privacy == "central" else 2 * np.linalg.norm(weights)
    added = vector(execution.load_model(run, images)) - start - sum(w * u for w, u in zip(weights, clipped, strict=True))
    assert added.std() == pytest.approx(noise * clip * share, rel=0.02)
    assert abs(added.mean()) < 5 * added.std() / np.sqrt(added.size)


CONFLICTS = {
    "BatchNorm": ({"privacy": "central"}, "batch_norm = 'average': statistics .* expected 'group'"),
    "a strategy": ({"privacy": "local", "strategy": "fedprox", **PRIVATE}, "strategy = 'fedprox': expected 'fedavg'"),
    "a quorum": ({"privacy": "central", "quorum": 0.5, **PRIVATE}, r"quorum = 0\.5: .* expected 1"),
    "no BatchNorm": ({"task": "segmentation", "batch_norm": "local"}, "batch_norm = 'local': .* expected 'average'"),
    "own models": ({"batch_norm": "local", "fraction_train": 0.5}, r"fraction_train = 0\.5: .* expected 1"),
    "no noise": ({"privacy": "central", "noise_multiplier": 0, **PRIVATE}, "noise_multiplier = 0: .*greater than 0"),
    "no room": ({"privacy": "central", "clipping_norm": -1, **PRIVATE}, "clipping_norm = -1: .*greater than 0"),
    "nobody": ({"fraction_train": 0}, "fraction_train = 0: .*greater than 0"),
}


@pytest.mark.parametrize("kind", CONFLICTS)
def test_what_does_not_go_together_is_refused_in_one_line(tmp_path, kind):
    parameters, words = CONFLICTS[kind]
    with pytest.raises(UserError, match=words) as caught:
        StudyConfig.make(profile="smoke", out_dir=tmp_path, **parameters)
    assert "\n" not in str(caught.value)
