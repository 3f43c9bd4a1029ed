"""The federation: FedAvg by algebra, in any order of arrival, and every failure by name."""

import itertools

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict

from fedlib import engines, experiment, federation
from fedlib.config import UserError
from fedlib.federation import FederationError, guarded_strategy
from fedlib.runs import RunRecord, RunStore
from tests.helpers import outcome, run_config

N = [10, 30, 60]


@pytest.fixture
def config(images):
    return run_config(images, "federated", n_clients=3)


@pytest.fixture
def strategy(config, tmp_path):
    return guarded_strategy(config, RunRecord(tmp_path))


def asked(client):
    engines.InProcessGrid(federation.client_app, [])  # sets who the server is, which a message needs
    return Message(RecordDict(), dst_node_id=client + 2, message_type="train")


def reply(client, weights, n):
    arrays = ArrayRecord.from_torch_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
    metrics = MetricRecord({"client": client, "num-examples": n, "bytes_down": 1, "bytes_up": 2, "loss": 0.5})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=asked(client))


def weights_of(client):
    rng = np.random.default_rng(client)
    return {"w": rng.standard_normal((5, 3), dtype=np.float32), "b": rng.standard_normal(4, dtype=np.float32)}


def replies():
    return [reply(client, weights_of(client), n) for client, n in enumerate(N)]


def test_fedavg_is_the_mean_weighted_by_cases(strategy):
    arrays, _ = strategy.aggregate_train(1, replies())
    averaged = arrays.to_torch_state_dict()
    for name in ("w", "b"):
        by_hand = sum(n / sum(N) * weights_of(client)[name] for client, n in enumerate(N))
        assert np.allclose(averaged[name].numpy(), by_hand, atol=1e-6)
        plain_mean = np.mean([weights_of(client)[name] for client in range(3)], axis=0)
        assert not np.allclose(averaged[name].numpy(), plain_mean, atol=1e-3)


def test_fedavg_gives_the_same_bits_in_any_order_of_arrival(config, tmp_path):
    seen = set()
    for order in itertools.permutations(replies()):
        arrays, _ = guarded_strategy(config, RunRecord(tmp_path)).aggregate_train(1, list(order))
        seen.add(b"".join(array.numpy().tobytes() for array in arrays.to_torch_state_dict().values()))
    assert len(seen) == 1


def test_what_each_client_did_is_kept_in_client_order(strategy, tmp_path):
    strategy.aggregate_train(4, replies()[::-1])
    rows = (tmp_path / "clients.csv").read_text().splitlines()
    assert rows[0].startswith("round,client,n,")
    assert [row.split(",")[:3] for row in rows[1:]] == [["4", str(client), str(n)] for client, n in enumerate(N)]
    assert strategy.traffic() == {"bytes_down": 3, "bytes_up": 6}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_names_client_and_round(strategy, bad):
    spoilt = weights_of(1)
    spoilt["w"][2, 1] = bad
    messages = [reply(0, weights_of(0), 1), reply(1, spoilt, 1), reply(2, weights_of(2), 1)]
    with pytest.raises(FederationError, match=r"client 1.*round 5"):
        strategy.aggregate_train(5, messages)


def test_a_client_that_does_not_answer_is_named(strategy):
    with pytest.raises(FederationError, match=r"round 2.*client 0, 2"):
        strategy.aggregate_train(2, replies()[1:2])


def test_an_answer_that_is_an_error_stops_the_round(strategy):
    failed = Message(Error(code=0, reason="out of memory"), reply_to=asked(1))
    with pytest.raises(FederationError, match=r"round 3.*out of memory"):
        strategy.aggregate_train(3, [replies()[0], failed, replies()[2]])


def failing(monkeypatch, client, round_number, spoil):
    """Let one client fail in one round."""
    train_round = federation.train_round

    def train(model, data, rows, config, own, number):
        done = train_round(model, data, rows, config, own, number)
        if (own, number) == (client, round_number):
            spoil(model)
        return done

    monkeypatch.setattr(federation, "train_round", train)


def raises(_):
    raise OSError("disk full")


def turns_nan(model):
    torch.nn.init.constant_(next(model.parameters()), float("nan"))


@pytest.mark.parametrize(("spoil", "cause"), [(raises, "disk full"), (turns_nan, "not finite")])
def test_a_client_that_fails_stops_its_run_by_name_and_no_other(data, tmp_path, monkeypatch, spoil, cause):
    store = RunStore(tmp_path)
    bad, good = run_config(data, "federated"), run_config(data, "centralized")
    said: list[str] = []
    with monkeypatch.context() as patched:
        failing(patched, 1, 2, spoil)
        done = experiment.run_all([bad, good], data, store, report=said.append)
        with pytest.raises(FederationError):
            experiment.run(bad, data, store)
    assert [run.config for run in done] == [good]
    status = store.get(bad.run_id).status
    assert status["state"] == "failed"
    for words in ("client 1", "round 2", cause):
        assert words in status["error"]
        assert any(bad.run_id in line and words in line for line in said)
    assert bad.run_id not in (tmp_path / "results.csv").read_text()
    assert outcome(experiment.run(bad, data, store)) == outcome(experiment.run(bad, data, RunStore(tmp_path / "other")))


def test_all_clients_failing_stops_the_run(images, tmp_path, monkeypatch):
    def broken(*_):
        raise UserError("no images today")

    monkeypatch.setattr(federation, "train_round", broken)
    with pytest.raises(FederationError, match=r"client 0.*round 1.*no images today"):
        experiment.run(run_config(images, "federated"), images, RunStore(tmp_path))


def test_clients_train_on_their_own_cases_only(data, tmp_path, monkeypatch):
    config, asked_for = run_config(data, "federated", partition="unbalanced"), []
    train_round = federation.train_round

    def watched(model, data, rows, config, client, number):
        asked_for.append((number, client, rows.tolist()))
        return train_round(model, data, rows, config, client, number)

    monkeypatch.setattr(federation, "train_round", watched)
    experiment.run(config, data, RunStore(tmp_path))
    own = [rows.tolist() for rows in experiment.clients_of(config, data)]
    assert asked_for == [(number, client, own[client]) for number in (1, 2) for client in (0, 1)]


def test_bytes_are_those_of_the_weights(data, tmp_path):
    run = experiment.run(run_config(data, "federated"), data, RunStore(tmp_path))
    size = sum(tensor.numel() * tensor.element_size() for tensor in run.weights().values())
    assert (run.clients["bytes_up"] >= size * 0.99).all()
    assert (run.clients["bytes_up"] < size * 1.5 + 50_000).all()
    totals = run.clients.groupby("round")[["bytes_up", "bytes_down"]].sum()
    assert (run.rounds.set_index("round")[["bytes_up", "bytes_down"]] == totals).all().all()
    assert run.result["bytes"] == totals.to_numpy().sum()
