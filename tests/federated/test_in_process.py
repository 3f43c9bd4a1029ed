"""The engines: whatever runs the clients, the bits are the same, a failure is named, and nothing is left behind."""

import _thread
import os
import signal
import threading
import time

import pytest
import torch

import fedlib.federated.client_app
from fedlib import analysis
from fedlib.config import UserError
from fedlib.federated import in_process as engines
from fedlib.federated.server import FederationError, shares
from fedlib.study import experiment
from fedlib.training.run_store import RunStore
from tests.helpers import no_ray_is_left, outcome, run_config


def without(run, *names):
    return {name: value for name, value in outcome(run).items() if name not in ("run_id", "engine", *names)}


def both(data, out, **changes):
    """The same run in this process and in Ray."""
    runs = [run_config(data, "federated", engine=engine, **changes) for engine in ("inprocess", "ray")]
    return [experiment.run(config, data, RunStore(out)) for config in runs]


@pytest.fixture
def two_threads():
    """As on a machine of two cores; the tests themselves have one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def at_work():
    """Threads in which clients train."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("client")]


def hang(seconds=60):
    """A client that waits for something, looking for it again and again."""
    until, never = time.monotonic() + seconds, threading.Event()
    while time.monotonic() < until:
        never.wait(0.01)


@pytest.mark.parametrize(
    ("threads", "changes", "expected"),
    [
        (1, {"n_clients": 4}, (1, 1)),
        (2, {"n_clients": 4}, (2, 1)),
        (8, {"n_clients": 4}, (4, 2)),
        (8, {"n_clients": 3}, (3, 2)),
        (8, {"n_clients": 1}, (1, 8)),
        (8, {"n_clients": 200, "participation": 0.01}, (2, 4)),
        (8, {"n_clients": 4, "privacy": "local"}, (1, 8)),
    ],
)
def test_threads_are_shared_out_among_the_clients_of_a_round(images, monkeypatch, threads, changes, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert shares(run_config(images, "federated", **changes)) == expected


def test_by_default_a_client_trains_on_every_core_with_one_thread(images, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert shares(run_config(images, "federated", n_clients=4)) == (2, 1)
    assert shares(run_config(images, "federated", n_clients=1)) == (1, 1), "as the centralized run"


@pytest.mark.parametrize("kind", ["four clients", "segmentation", "what clients keep"])
def test_clients_side_by_side_end_with_the_bits_of_clients_in_turn(prepared, tmp_path, two_threads, kind):
    data = prepared["segmentation" if kind == "segmentation" else "classification"]
    config = run_config(data, "federated", **{"n_clients": 4, "rounds": 3} | HARD.get(kind, {}))
    together = experiment.run(config, data, RunStore(tmp_path / "together"))
    torch.set_num_threads(1)
    in_turn = experiment.run(config, data, RunStore(tmp_path / "in turn"))
    assert together.result["weights_sha256"] == in_turn.result["weights_sha256"]
    assert together.clients.drop(columns="seconds").equals(in_turn.clients.drop(columns="seconds"))


def test_two_clients_are_at_work_at_a_time(images, tmp_path, monkeypatch, two_threads):
    original, meet = fedlib.federated.client_app.train_round, threading.Barrier(2, timeout=60)

    def train_round(*arguments):
        meet.wait()
        assert torch.get_num_threads() == 1
        return original(*arguments)

    monkeypatch.setattr(fedlib.federated.client_app, "train_round", train_round)
    experiment.run(run_config(images, "federated", n_clients=4), images, RunStore(tmp_path))
    assert torch.get_num_threads() == 2
    assert at_work() == []


def test_a_failure_stops_the_client_beside_it_and_none_begins_after_it(images, tmp_path, monkeypatch, two_threads):
    began = []

    def train_round(model, data, rows, config, client, *more):
        began.append(client)
        if client == 0:
            raise OSError("disk full")
        hang()

    monkeypatch.setattr(fedlib.federated.client_app, "train_round", train_round)
    start = time.monotonic()
    with pytest.raises(FederationError, match="round 1: client 0 failed: OSError: disk full"):
        experiment.run(run_config(images, "federated", n_clients=4), images, RunStore(tmp_path))
    assert time.monotonic() - start < 30
    assert 0 in began
    assert set(began) <= {0, 1}
    assert at_work() == []


def test_a_client_that_never_answers_is_missed_by_the_quorum_alone(images, tmp_path, monkeypatch, two_threads):
    original = fedlib.federated.client_app.train_round

    def train_round(model, data, rows, config, client, *more):
        return hang() if client == 1 else original(model, data, rows, config, client, *more)

    experiment.run(run_config(images, "federated"), images, RunStore(tmp_path / "warm"))  # what is slow the first time only
    monkeypatch.setattr(fedlib.federated.client_app, "train_round", train_round)
    run = experiment.run(run_config(images, "federated", quorum=0.5, reply_timeout=3), images, RunStore(tmp_path))
    why = "client 1: no answer within 3 s"
    assert analysis.absences([run])[["round", "client", "absent"]].to_numpy().tolist() == [[1, 1, why], [2, 1, why]]


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def listening():
    """Ctrl-C is an exception here, even where the tests run in the background of a shell, which turns that off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("interrupt", [ctrl_c, _thread.interrupt_main], ids=["Ctrl-C", "ray.cancel"])
def test_an_interruption_stops_all_clients_at_once(images, tmp_path, monkeypatch, two_threads, listening, interrupt):
    meet = threading.Barrier(2, timeout=60)

    def train_round(*_):
        if meet.wait() == 0:
            interrupt()
        hang()

    monkeypatch.setattr(fedlib.federated.client_app, "train_round", train_round)
    config, store, start = run_config(images, "federated"), RunStore(tmp_path), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, images, store)
    assert time.monotonic() - start < 30
    assert store.get(config.run_id).status["state"] == "queued"
    assert at_work() == []


def test_ray_ends_with_the_same_bits(images, tmp_path, two_threads):
    plain, ray = both(images, tmp_path)
    assert without(ray) == without(plain)
    assert ray.cases.equals(plain.cases)
    assert ray.clients.drop(columns="seconds").equals(plain.clients.drop(columns="seconds"))


HARD = {
    "segmentation": {},
    "unbalanced": {"partition": "unbalanced", "n_clients": 4, "participation": 0.5},
    "what clients keep": {"strategy": "scaffold", "batch_norm": "local", "transport": "fp16"},
    "noise": {"privacy": "local", "batch_norm": "group"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HARD)
def test_ray_ends_with_the_same_bits_in_harder_cases(prepared, tmp_path, kind):
    data = prepared["segmentation" if kind == "segmentation" else "classification"]
    plain, ray = both(data, tmp_path, **HARD[kind])
    assert without(ray) == without(plain)


def test_a_client_that_fails_under_ray_stops_the_run_by_name_and_leaves_nothing(images, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "client_app", breaking())
    config, store = run_config(images, "federated", engine="ray"), RunStore(tmp_path)
    with pytest.raises(FederationError, match="round 2: client 1 failed: OSError: disk full; expected"):
        experiment.run(config, images, store)
    assert store.get(config.run_id).status["state"] == "failed"
    no_ray_is_left()
    monkeypatch.undo()
    whole = experiment.run(run_config(images, "federated"), images, store)
    assert without(experiment.run(config, images, store)) == without(whole), "it goes on from its checkpoint"


def breaking():
    """A ClientApp whose client 1 fails in round 2; self-contained, as it is sent to other processes."""
    from flwr.clientapp import ClientApp

    app = ClientApp()
    app.query(mods=[fedlib.federated.client_app.named])(fedlib.federated.client_app.present)

    @app.train(mods=[fedlib.federated.client_app.named])
    def train(message, context):
        if context.node_config["partition-id"] == 1 and message.content["config"]["server-round"] == 2:
            raise OSError("disk full")
        return fedlib.federated.client_app.train(message, context)

    return app


@pytest.mark.slow
def test_ray_runs_on_a_cluster_by_its_address(images, tmp_path, monkeypatch):
    """A cluster of two nodes, here both on this machine; it is there before the run and after it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        plain, ray = both(images, tmp_path)
        assert without(ray) == without(plain)
        assert len(cluster.list_all_nodes()) == 2
    finally:
        cluster.shutdown()
    no_ray_is_left()


@pytest.mark.slow
def test_under_ray_a_quorum_lets_a_round_go_on(images, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "client_app", breaking())
    run = experiment.run(run_config(images, "federated", engine="ray", quorum=0.5), images, RunStore(tmp_path))
    assert analysis.absences([run])[["round", "client", "absent"]].to_numpy().tolist() == [
        [2, 1, "client 1 failed: OSError: disk full"]
    ]


def test_an_engine_without_its_package_is_one_line(images, tmp_path, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"engine = 'ray': Ray is not installed; expected: pip install -e '\.\[ray\]'"):
        experiment.run(run_config(images, "federated", engine="ray"), images, RunStore(tmp_path))
