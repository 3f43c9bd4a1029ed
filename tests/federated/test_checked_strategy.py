"""The wrapper: FedAvg by algebra in any order of arrival, every faulty reply by name, quorum and sampling."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict

from fedlib import analysis
from fedlib.config import StudyConfig, UserError
from fedlib.federated.checked_strategy import CheckedStrategy, FederationError, count_bytes, participants
from fedlib.study import experiment, report
from fedlib.training.run_store import RunStore
from tests.federated.canned import asked, canned, identities
from tests.federated.spoil import spoil_round
from tests.helpers import outcome, run_config

N = [10, 30, 60]


@pytest.fixture
def config(images):
    return run_config(images, "federated", n_clients=3)


def made(config):
    """A checked strategy of three clients."""
    return CheckedStrategy(canned(identities(3)), config, Model(), N, [])


def trained(strategy, number, messages):
    """The weights after a round in which these replies arrive, in this order."""
    strategy.grid = canned(messages)
    return strategy.train(number, strategy.initial)


@pytest.fixture
def strategy(config):
    return made(config)


def reply(client, weights, n):
    arrays = ArrayRecord.from_torch_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
    metrics = MetricRecord({"num-examples": n, "loss": 0.5})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=asked(client))


def get_state_dict(client):
    rng = np.random.default_rng(client)
    return {"w": rng.standard_normal((5, 3), dtype=np.float32), "b": rng.standard_normal(4, dtype=np.float32)}


class Model(torch.nn.Module):
    """Two weights by the names of `get_state_dict`."""

    def __init__(self):
        super().__init__()
        for name, array in get_state_dict(99).items():
            self.register_parameter(name, torch.nn.Parameter(torch.as_tensor(array)))


def replies():
    return [reply(client, get_state_dict(client), n) for client, n in enumerate(N)]


def test_fedavg_gives_the_same_bits_in_any_order_of_arrival(config):
    seen = set()
    for order in itertools.permutations(replies()):
        arrays = trained(made(config), 1, list(order))
        seen.add(b"".join(array.numpy().tobytes() for array in arrays.to_torch_state_dict().values()))
    assert len(seen) == 1


def test_what_each_client_did_is_kept_in_client_order(strategy):
    sent = [count_bytes(reply.content) for reply in replies()]
    trained(strategy, 4, replies()[::-1])
    rows = pd.DataFrame(strategy.clients)
    assert rows[["round", "client", "n"]].to_numpy().tolist() == [[4, client, n] for client, n in enumerate(N)]
    assert rows["bytes_up"].tolist() == sent
    assert sent[0] >= 4 * (5 * 3 + 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_names_client_and_round(strategy, bad):
    spoilt = get_state_dict(1)
    spoilt["w"][2, 1] = bad
    messages = [reply(0, get_state_dict(0), 10), reply(1, spoilt, 30), reply(2, get_state_dict(2), 60)]
    with pytest.raises(FederationError, match=r"round 5: client 1: w is not finite; expected .* 3 of 3"):
        trained(strategy, 5, messages)


ODD = {
    "a name less": (lambda sent: {"w": sent["w"]}, "missing or unknown weights, b"),
    "a name more": (lambda sent: sent | {"x": sent["b"]}, "missing or unknown weights, x"),
    "another shape": (lambda sent: sent | {"w": sent["w"].T.copy()}, r"w is float32 \(3, 5\), expected float32 \(5, 3\)"),
    "another type": (lambda sent: sent | {"b": sent["b"].astype(np.float64)}, r"b is float64 \(4,\), expected float32"),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_update_of_another_model_names_client_round_and_weights(strategy, kind):
    spoil, words = ODD[kind]
    messages = [reply(0, get_state_dict(0), 10), reply(1, spoil(get_state_dict(1)), 30), reply(2, get_state_dict(2), 60)]
    with pytest.raises(FederationError, match=rf"round 5: client 1: {words}"):
        trained(strategy, 5, messages)


def test_a_client_cannot_claim_more_cases_than_it_has(strategy):
    messages = [reply(0, get_state_dict(0), 10), reply(1, get_state_dict(1), 3000), reply(2, get_state_dict(2), 60)]
    with pytest.raises(FederationError, match="round 2: client 1: trained on 3000 cases, expected 30"):
        trained(strategy, 2, messages)


def test_a_client_cannot_reply_twice(strategy):
    with pytest.raises(FederationError, match="round 2: client 1: replied twice"):
        trained(strategy, 2, [*replies(), reply(1, get_state_dict(1), 30)])


def test_a_client_that_does_not_reply_is_named(strategy):
    with pytest.raises(FederationError, match="round 2: client 0: no reply \\(within 3600 s\\); client 2: no .* 3 of 3"):
        trained(strategy, 2, replies()[1:2])


def test_a_node_that_is_gone_is_named(strategy):
    """Flower replies in the SuperLink's name, node 1."""
    gone = Message(Error(5, "Error: Node\nUnavailable"), reply_to=Message(RecordDict(), dst_node_id=1, message_type="train"))
    with pytest.raises(FederationError, match=r"round 2: client 1: no reply \(Error: Node Unavailable\); expected"):
        trained(strategy, 2, [replies()[0], gone, replies()[2]])


@pytest.mark.parametrize(("how", "cause"), [(OSError("disk full"), "disk full"), (float("nan"), "not finite")])
def test_a_client_that_fails_stops_its_run_by_name_and_no_other(data, tmp_path, monkeypatch, how, cause):
    store, lines = RunStore(tmp_path), []
    bad, good = run_config(data, "federated"), run_config(data, "centralized")
    with monkeypatch.context() as patched:
        spoil_round(patched, 1, 2, how)
        done = experiment.run_all([bad, good], data, store, report=lines.append)
    assert [run.config for run in done] == [good]
    status = store.get(bad.run_id).status
    assert status["state"] == "failed"
    for words in ("client 1", "round 2", cause):
        assert words in status["error"]
        assert any(bad.run_id in line and words in line for line in lines)
    assert bad.run_id not in (tmp_path / "results.csv").read_text()
    assert outcome(experiment.run(bad, data, store)) == outcome(experiment.run(bad, data, RunStore(tmp_path / "other")))


@pytest.fixture
def lenient(images):
    """Three clients, of which two must reply."""
    return made(run_config(images, "federated", n_clients=3, quorum=0.5))


SPOILT = {
    "no reply": (lambda messages: messages[:2], "client 2: no reply (within 3600 s)"),
    "an error": (
        lambda messages: [*messages[:2], Message(Error(code=0, reason="client 2 failed: out of memory"), reply_to=asked(2))],
        "client 2 failed: out of memory",
    ),
    "not a number": (
        lambda messages: [*messages[:2], reply(2, {name: w * np.nan for name, w in get_state_dict(2).items()}, 60)],
        "client 2: w is not finite",
    ),
    "another size": (lambda messages: [*messages[:2], reply(2, get_state_dict(2), 61)], "client 2: trained on 61 cases"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_with_a_quorum_a_round_goes_on_and_the_table_says_who_was_missing(lenient, kind):
    spoil, reason = SPOILT[kind]
    arrays = trained(lenient, 1, spoil(replies()))
    by_hand = sum(n / 40 * get_state_dict(client)["w"] for client, n in enumerate(N[:2]))
    assert np.allclose(arrays["w"].numpy(), by_hand, atol=1e-6)
    table = pd.DataFrame(lenient.clients)
    assert table["absent"].isna().tolist() == [True, True, False]
    assert table["absent"][2].startswith(reason)
    assert table["n"].tolist() == [10, 30, 0]
    assert table["bytes_up"].iloc[:2].gt(0).all()
    assert table["bytes_up"].iloc[2] == 0


def test_a_client_that_trains_and_does_not_validate_is_told_too(lenient):
    timed = replies()
    for message in timed:
        message.content["metrics"]["seconds"] = 1.0
    trained(lenient, 1, timed)
    scores = MetricRecord({"accuracy": 0.5, "seconds": 0.5})
    lenient.grid = canned([Message(RecordDict({"metrics": scores}), reply_to=asked(client)) for client in (0, 1)])
    assert lenient.validate(1, lenient.initial) == {"accuracy": 0.5}
    assert [row["seconds"] for row in lenient.clients] == [1.5, 1.5, 1.0]
    assert [row.get("absent", "") for row in lenient.clients] == ["", "", "client 2: no reply (within 3600 s)"]
    told = []
    lenient.grid.send_and_receive = lambda messages, timeout: told.extend(messages) or replies()
    lenient.train(2, lenient.initial)
    assert [message.content["config"]["accepted-round"] for message in told] == [1, 1, 1], "its update was accepted"


def test_below_the_quorum_the_round_stops(lenient):
    with pytest.raises(FederationError, match="round 4: client 1: no reply .*; client 2: no reply .*; expected .* 2 of 3"):
        trained(lenient, 4, replies()[:1])


def test_a_run_with_a_quorum_tells_who_was_missing_in_which_round(images, tmp_path, monkeypatch):
    config, store = run_config(images, "federated", quorum=0.5), RunStore(tmp_path)
    with monkeypatch.context() as patched:
        spoil_round(patched, 1, 2, OSError("disk full"))
        run = experiment.run(config, images, store)
    missing = analysis.missing_clients([run])
    assert missing[["round", "client"]].to_numpy().tolist() == [[2, 1]]
    assert missing["absent"][0] == "client 1 failed: OSError: disk full"
    assert run.clients["n"].tolist()[-1] == 0
    caveats = report.caveats([run], StudyConfig.make(profile="smoke", out_dir=tmp_path), {"synthetic": False})
    assert "A client was absent 1 times" in " ".join(caveats)
    whole = experiment.run(run_config(images, "federated"), images, store)
    assert whole.config.run_id != config.run_id
    assert whole.result["weights_sha256"] != run.result["weights_sha256"]
    assert analysis.missing_clients([whole]).empty


def test_a_round_samples_its_clients_from_the_seed(images):
    config = run_config(images, "federated", n_clients=10, fraction_train=0.3)
    drawn = [tuple(participants(config, number)) for number in range(1, 40)]
    assert all(len(set(clients)) == 3 and list(clients) == sorted(clients) for clients in drawn)
    assert set(np.concatenate(drawn)) == set(range(10)), "everybody in the end"
    assert len(set(drawn)) > 20
    assert drawn == [tuple(participants(config, number)) for number in range(1, 40)]
    assert participants(config.model_copy(update={"fraction_train": 0.01}), 1), "one at least"
    assert participants(config.model_copy(update={"fraction_train": 1.0}), 1) == list(range(10))


def test_those_who_are_not_asked_are_not_absent(images, tmp_path):
    config = run_config(images, "federated", n_clients=4, fraction_train=0.5, rounds=3)
    run = experiment.run(config, images, RunStore(tmp_path))
    assert "absent" not in run.clients
    assert run.clients.groupby("round")["client"].agg(list).tolist() == [participants(config, n) for n in (1, 2, 3)]


def test_krum_needs_five_replies(tmp_path):
    for given, counts in (({}, "2,8"), ({"quorum": 0.4}, "5,8"), ({"fraction_train": 0.5}, "8,16")):
        with pytest.raises(UserError, match="client_counts = .*: strategy krum needs 5 replies .* expected at least 5"):
            StudyConfig.make(strategy="krum", client_counts=counts, out_dir=tmp_path, **given)
    assert StudyConfig.make(strategy="krum", client_counts="5,8", out_dir=tmp_path).client_counts == (5, 8)
    assert StudyConfig.make(strategy="krum", client_counts="8", quorum=0.6, out_dir=tmp_path).quorum == 0.6


def test_bytes_are_those_of_the_weights(data, tmp_path):
    run = experiment.run(run_config(data, "federated"), data, RunStore(tmp_path))
    size = sum(tensor.numel() * tensor.element_size() for tensor in run.weights().values())
    assert (run.clients[["bytes_up", "bytes_down"]] >= size).all().all()
    assert (run.clients[["bytes_up", "bytes_down"]] < size * 1.5 + 50_000).all().all()
    totals = run.clients.groupby("round")[["bytes_up", "bytes_down"]].sum()
    assert (run.rounds.set_index("round")[["bytes_up", "bytes_down"]] == totals).all().all()
    assert run.result["bytes"] == totals.to_numpy().sum()
