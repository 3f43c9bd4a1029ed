"""A client's turn: what it keeps to itself, what travels and how, who takes part, and how long the server waits."""

import os
import time

import numpy as np
import pytest
import torch

import fedlib.federated.client_app
from fedlib.config import UserError
from fedlib.federated import in_process as engines
from fedlib.federated import server as federation
from fedlib.federated.client_app import own, shared
from fedlib.federated.server import FederationError, participants
from fedlib.study import experiment
from fedlib.training import execution
from fedlib.training.run_store import ClientMemory, RunStore
from tests.helpers import outcome, python, run_config


def federated(images, out, **changes):
    return experiment.run(run_config(images, "federated", **changes), images, RunStore(out))


def test_what_a_client_keeps_is_there_for_the_next_round_and_for_the_same_round_again(tmp_path):
    memory = ClientMemory(tmp_path, "run", 1)
    assert memory.before(5) == {}
    for number in (1, 3, 4):
        memory.keep(number, {"w": torch.tensor([float(number)])})
    assert [memory.before(number)["w"].item() for number in (5, 4)] == [4, 3]
    assert len(list((tmp_path / "run").iterdir())) == 2, "the last two rounds"
    assert ClientMemory(tmp_path, "run", 11).before(9) == {}, "another client's"
    assert ClientMemory(tmp_path, "other", 1).before(9) == {}, "another run's"


def test_batch_norm_that_stays_at_its_client_is_no_part_of_what_travels(images):
    config = run_config(images, "federated", batch_norm="local")
    model = execution.initial_model(config, images)
    kept, travels = own(config, model), shared(config, model)
    assert set(kept) | set(travels) == set(model.state_dict())
    assert set(kept) & set(travels) == set()
    assert {"bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.num_batches_tracked", "layer1.0.bn2.running_var"} <= set(kept)
    assert not any("conv" in name or name.startswith("fc") for name in kept)
    assert own(config.model_copy(update={"batch_norm": "average"}), model) == {}


def test_fedbn_leaves_every_client_a_model_that_shares_all_but_batch_norm(images, tmp_path):
    run = federated(images, tmp_path, batch_norm="local")
    models = [execution.load_model(run, images, client).state_dict() for client in (0, 1)]
    kept = set(own(run.config, execution.initial_model(run.config, images)))
    differ = {name for name in models[0] if not torch.equal(models[0][name], models[1][name])}
    assert differ
    assert differ <= kept
    last = run.clients.groupby("client").last()
    assert last["test_accuracy"].mean() == pytest.approx(run.result["accuracy"])
    assert len(run.cases) == 2 * len(images.split("test"))
    assert run.rounds["accuracy"].between(0, 1).all()
    plain = federated(images, tmp_path)
    assert run.clients["bytes_up"].max() < plain.clients["bytes_up"].min()
    assert execution.predict(run, images, images.split("test")[:3]).shape == (3,)


def test_fedbn_by_hand_for_one_round(images, tmp_path):
    """Li et al., 2021, algorithm 1: the mean of the rest; each client's BatchNorm as its own training left it."""
    run = federated(images, tmp_path, batch_norm="local", rounds=1)
    config, trained = run.config, []
    for client, rows in enumerate(execution.clients_of(config, images)):
        model = execution.initial_model(config, images)
        execution.train_round(model, images, rows, config, client, 1)
        trained.append((len(rows), model.state_dict()))
    total = sum(n for n, _ in trained)
    kept = own(config, model)
    for client, (_, state) in enumerate(trained):
        final = execution.load_model(run, images, client).state_dict()
        assert all(torch.equal(final[name], state[name]) for name in kept)
        for name in set(final) - set(kept):
            mean = sum(n / total * other[name] for n, other in trained)
            assert torch.allclose(final[name], mean, atol=1e-6), name


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_what_clients_keep_survives_an_interruption(images, tmp_path, monkeypatch, strategy):
    changes = {"batch_norm": "local", "strategy": strategy, "rounds": 3}
    whole, original = federated(images, tmp_path / "whole", **changes), fedlib.federated.client_app.train_round

    def stops(model, data, rows, config, client, number, *more):
        if (client, number) == (1, 3):  # client 0 has kept its third round by now
            raise KeyboardInterrupt
        return original(model, data, rows, config, client, number, *more)

    with monkeypatch.context() as patched:
        patched.setattr(fedlib.federated.client_app, "train_round", stops)
        with pytest.raises(KeyboardInterrupt):
            federated(images, tmp_path / "parts", **changes)
    assert outcome(federated(images, tmp_path / "parts", **changes)) == outcome(whole)


def test_group_norm_is_another_model_in_every_arm(images, tmp_path):
    for mode in ("centralized", "local", "federated"):
        run = experiment.run(run_config(images, mode, batch_norm="group"), images, RunStore(tmp_path))
        assert not any("running_mean" in name for name in run.weights())
        layers = execution.initial_model(run.config, images).modules()
        assert any(isinstance(layer, torch.nn.GroupNorm) for layer in layers)


def test_half_precision_halves_the_bytes_and_changes_little(data, tmp_path):
    full = experiment.run(run_config(data, "federated"), data, RunStore(tmp_path))
    half = experiment.run(run_config(data, "federated", transport="fp16"), data, RunStore(tmp_path))
    for way in ("bytes_up", "bytes_down"):
        assert half.clients[way].max() < 0.56 * full.clients[way].min()
    weights, rounded = full.weights(), half.weights()
    assert all(rounded[name].dtype == tensor.dtype for name, tensor in weights.items())
    assert half.result["weights_sha256"] != full.result["weights_sha256"]
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point() and tensor.ndim > 1)
    assert torch.allclose(weights[name], rounded[name], atol=0.05)


def test_a_weight_too_large_for_half_precision_names_its_client(images, tmp_path, monkeypatch):
    original = fedlib.federated.client_app.train_round

    def grows(model, data, rows, config, client, number, *more):
        done = original(model, data, rows, config, client, number, *more)
        if client == 1:
            torch.nn.init.constant_(next(model.parameters()), 1e6)
        return done

    monkeypatch.setattr(fedlib.federated.client_app, "train_round", grows)
    with pytest.raises(FederationError, match="round 1: client 1: .* is not finite"):
        federated(images, tmp_path, transport="fp16")


def test_a_round_samples_its_clients_from_the_seed(images):
    config = run_config(images, "federated", n_clients=10, participation=0.3)
    drawn = [tuple(participants(config, number)) for number in range(1, 40)]
    assert all(len(set(clients)) == 3 and list(clients) == sorted(clients) for clients in drawn)
    assert set(np.concatenate(drawn)) == set(range(10)), "everybody in the end"
    assert len(set(drawn)) > 20
    assert drawn == [tuple(participants(config, number)) for number in range(1, 40)]
    assert participants(config.model_copy(update={"participation": 0.01}), 1), "one at least"
    assert participants(config.model_copy(update={"participation": 1.0}), 1) == list(range(10))


def test_those_who_are_not_asked_are_not_absent(images, tmp_path):
    run = federated(images, tmp_path, n_clients=4, participation=0.5, rounds=3)
    clients = run.clients
    assert "absent" not in clients
    assert clients.groupby("round")["client"].agg(list).tolist() == [participants(run.config, n) for n in (1, 2, 3)]
    again = federated(images, tmp_path / "again", n_clients=4, participation=0.5, rounds=3)
    assert outcome(again) == outcome(run)


def test_a_client_that_never_answers_stops_the_run(images, tmp_path, monkeypatch):
    federated(images, tmp_path / "warm")  # what is slow the first time only

    def hangs(model, data, rows, config, client, number, *more):
        until = time.monotonic() + 60
        while time.monotonic() < until:
            np.linalg.norm(np.ones(10))
        return {}

    monkeypatch.setattr(fedlib.federated.client_app, "train_round", hangs)
    began = time.monotonic()
    with pytest.raises(FederationError, match=r"round 1: client 0: no answer within 0\.5 s; expected"):
        federated(images, tmp_path, reply_timeout=0.5)
    assert time.monotonic() - began < 30


def test_a_node_with_another_prepared_set_is_found_in_the_roll_call(images, volumes, tmp_path, monkeypatch):
    monkeypatch.setattr(
        fedlib.federated.client_app.Turn,
        "of",
        spoiled_context(fedlib.federated.client_app.Turn.of, {"data-dir": str(volumes.folder)}),
    )
    with pytest.raises(FederationError, match="query: client 0 failed: UserError: .*prepared for segmentation"):
        federated(images, tmp_path)
    assert not list(tmp_path.glob("runs/*/rounds.csv")), "before anything is trained"


def spoiled_context(original, node):
    def of(message, context):
        context.node_config = context.node_config | node
        return original(message, context)

    return of


def test_two_nodes_that_are_the_same_client_are_found_in_the_roll_call(images, tmp_path, monkeypatch):
    monkeypatch.setattr(
        fedlib.federated.client_app.Turn, "of", spoiled_context(fedlib.federated.client_app.Turn.of, {"partition-id": 0})
    )
    with pytest.raises(FederationError, match=r"clients \[0, 0\], expected each of 0 to 1 once"):
        federated(images, tmp_path)


def test_nodes_that_never_come_are_counted(images, tmp_path, monkeypatch):
    monkeypatch.setattr(federation, "ROLL_CALL_SECONDS", 0.3)
    monkeypatch.setattr(engines.InProcessGrid, "get_node_ids", lambda grid: list(grid.contexts)[:1])
    with pytest.raises(FederationError, match="1 of 2 clients connected within 0 s"):
        federated(images, tmp_path)


def test_a_node_may_keep_what_is_its_own_on_its_own_disk(images, tmp_path, monkeypatch):
    own_disk = {"state-dir": str(tmp_path / "hospital")}
    monkeypatch.setattr(
        fedlib.federated.client_app.Turn, "of", spoiled_context(fedlib.federated.client_app.Turn.of, own_disk)
    )
    run = federated(images, tmp_path / "study", strategy="scaffold")
    kept = sorted(path.name for path in (tmp_path / "hospital" / run.config.run_id).iterdir())
    assert kept == [f"client{client}-0000{number}.safetensors" for client in (0, 1) for number in (1, 2)]


def test_a_run_of_another_set_is_refused(images, tmp_path):
    config = run_config(images, "federated", data_fingerprint="0" * 64)
    with pytest.raises(UserError, match="data fingerprint .*, expected 000000000000"):
        experiment.run(config, images, RunStore(tmp_path))


@pytest.mark.slow
def test_two_hundred_clients_of_which_few_take_part_cost_the_memory_of_few(tmp_path):
    """Peak memory grows with the clients of a round, not with all of them."""
    peaks = {n: int(python_peak(tmp_path / str(n), n, sampled)) for n, sampled in ((10, 10), (200, 10))}
    assert peaks[200] < peaks[10] + 120, f"MB: {peaks}"


PEAK = """
import sys
from pathlib import Path
from data_prep.sources import prepare_synthetic
from fedlib.training import execution
from fedlib.training.run_store import RunStore
from tests.helpers import peak_mb, run_config

out, n, sampled = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
data = prepare_synthetic("classification", out / "set", 1600, size=16)
config = run_config(data, "federated", n_clients=n, participation=sampled / n, width=64)
experiment.run(config, data, RunStore(out))
print(peak_mb())
"""


def python_peak(folder, n_clients, sampled):
    """MB. glibc keeps freed blocks as long as it may guess; told to map what is large, it gives the same peak each time."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = python("-c", PEAK, folder, n_clients, sampled, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
