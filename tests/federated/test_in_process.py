"""Clients in threads of this process: the same bits however many, an interrupt ends them, nothing is left behind."""

import _thread
import logging
import os
import signal
import threading
import time

import pytest
import torch
from flwr.app import Array

from fedlib.config import UserError
from fedlib.federated import checked_strategy, client_app
from fedlib.federated.checked_strategy import FederationError
from fedlib.federated.in_process import InProcessGrid, parallel_clients
from fedlib.study import experiment
from fedlib.training.run_store import RunStore
from tests.federated.spoil import spoil_round
from tests.helpers import outcome, python, run_config


@pytest.fixture
def two_threads():
    """As on a machine of two cores; the tests themselves have one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def training_threads():
    """Names of the threads in which clients train."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("client")]


@pytest.mark.parametrize(
    ("threads", "changes", "expected"),
    [
        (1, {"n_clients": 4}, (1, 1)),
        (2, {"n_clients": 4}, (2, 1)),
        (8, {"n_clients": 4}, (4, 2)),
        (8, {"n_clients": 3}, (3, 2)),
        (8, {"n_clients": 1}, (1, 8)),
        (8, {"n_clients": 200, "fraction_train": 0.01}, (2, 4)),
        (8, {"n_clients": 4, "privacy": "local"}, (1, 8)),
    ],
)
def test_threads_are_shared_out_among_the_clients_of_a_round(images, monkeypatch, threads, changes, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert parallel_clients(run_config(images, "federated", **changes)) == expected


def test_by_default_a_client_trains_on_every_core_with_one_thread(images, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert parallel_clients(run_config(images, "federated", n_clients=4)) == (2, 1)
    assert parallel_clients(run_config(images, "federated", n_clients=1)) == (1, 1), "as the centralized run"


KINDS = {
    "plain": {},
    "sampled": {"partition": "unbalanced", "n_clients": 4, "fraction_train": 0.5},
    "what clients keep": {"strategy": "scaffold", "batch_norm": "local", "n_clients": 4},
    "noise": {"privacy": "central", "batch_norm": "group"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_side_by_side_in_turn_repeated_and_resumed_runs_end_with_the_same_bits(
    images, tmp_path, monkeypatch, two_threads, kind
):
    config = run_config(images, "federated", **{"rounds": 3} | KINDS[kind])
    together = experiment.run(config, images, RunStore(tmp_path / "together"))
    torch.set_num_threads(1)
    in_turn = experiment.run(config, images, RunStore(tmp_path / "in turn"))
    with monkeypatch.context() as patched:
        spoil_round(patched, together.clients["client"].iloc[-1], 3, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config, images, RunStore(tmp_path / "parts"))
    resumed = experiment.run(config, images, RunStore(tmp_path / "parts"))
    for run in (in_turn, resumed):
        assert outcome(run) == outcome(together)
        for table, expected in ((run.clients, together.clients), (run.rounds, together.rounds)):
            assert table.drop(columns="seconds").equals(expected.drop(columns="seconds"))


def test_two_clients_train_at_a_time_with_a_thread_each(images, tmp_path, monkeypatch, two_threads):
    original, meet = client_app.train_round, threading.Barrier(2, timeout=60)

    def train_round(*arguments):
        meet.wait()
        assert torch.get_num_threads() == 1
        return original(*arguments)

    monkeypatch.setattr(client_app, "train_round", train_round)
    experiment.run(run_config(images, "federated", n_clients=4), images, RunStore(tmp_path))
    assert torch.get_num_threads() == 2
    assert training_threads() == []


def test_a_client_leaves_the_threads_of_its_machine_alone(images, tmp_path, monkeypatch):
    """Only the grid of this process sets threads; a hospital has its own."""
    monkeypatch.setattr(torch, "set_num_threads", None)
    monkeypatch.setattr("fedlib.federated.in_process.torch.get_num_threads", lambda: 1)
    monkeypatch.setattr("fedlib.federated.in_process.ThreadPoolExecutor", PoolWithoutInitializer)
    experiment.run(run_config(images, "federated"), images, RunStore(tmp_path))


class PoolWithoutInitializer(threading.local):
    """Stand for the pool: calls in this thread."""

    def __init__(self, *_, **__):
        self.shutdown = lambda **_: None

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        future = Future()
        future.set_result(function(*arguments))
        return future


def endless(model, data, rows, config, client, number, adjust):
    """A client whose steps never end."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        adjust()
        time.sleep(0.01)


def test_a_failure_stops_the_client_beside_it_and_none_begins_after_it(images, tmp_path, monkeypatch, two_threads):
    began = []

    def train_round(model, data, rows, config, client, *more):
        began.append(client)
        if client == 0:
            raise OSError("disk full")
        endless(model, data, rows, config, client, *more)

    monkeypatch.setattr(client_app, "train_round", train_round)
    with pytest.raises(FederationError, match="round 1: client 0 failed: OSError: disk full; expected"):
        experiment.run(run_config(images, "federated", n_clients=4), images, RunStore(tmp_path))
    assert 0 in began
    assert set(began) <= {0, 1}
    assert training_threads() == []


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_threads_take_turns_at_reading_arrays(images, tmp_path, monkeypatch, two_threads, strategy):
    """NumPy parses Python there, and CPython 3.11 may fail where two threads do so at once: a client failed for it, once."""
    unlocked, read = [], Array.numpy

    def numpy(array):
        if training_threads() and threading.current_thread() is not threading.main_thread():
            unlocked.append(not client_app.turns.locked())
        return read(array)

    monkeypatch.setattr(Array, "numpy", numpy)
    experiment.run(run_config(images, "federated", strategy=strategy), images, RunStore(tmp_path))
    assert unlocked
    assert not any(unlocked)


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def listening():
    """Ctrl-C is an exception here, even where the tests run in the background of a shell, which turns that off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("interrupt", [ctrl_c, _thread.interrupt_main], ids=["Ctrl-C", "ray.cancel"])
def test_an_interrupt_stops_all_clients_at_their_next_step(images, tmp_path, monkeypatch, two_threads, listening, interrupt):
    meet, (config, store) = threading.Barrier(2, timeout=60), (run_config(images, "federated"), RunStore(tmp_path))

    def train_round(*arguments):
        if meet.wait() == 0:
            interrupt()
        endless(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(client_app, "train_round", train_round)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config, images, store)
    assert store.get(config.run_id).status["state"] == "queued"
    assert training_threads() == []
    assert experiment.run(config, images, store).done, "the next run is not stopped"


def test_nodes_that_never_connect_are_counted(images, tmp_path, monkeypatch):
    monkeypatch.setattr(checked_strategy, "CONNECT_SECONDS", 0)
    monkeypatch.setattr(InProcessGrid, "get_node_ids", lambda grid: list(grid.contexts)[:1])
    with pytest.raises(FederationError, match="1 of 2 clients connected within 0 s"):
        experiment.run(run_config(images, "federated"), images, RunStore(tmp_path))


def test_a_run_of_another_set_is_refused(images, tmp_path):
    config = run_config(images, "federated", data_fingerprint="0" * 64)
    with pytest.raises(UserError, match="data fingerprint .*, expected 000000000000"):
        experiment.run(config, images, RunStore(tmp_path))


def test_flower_s_log_is_silent_during_a_run_only(images, tmp_path, capfd):
    before = logging.getLogger("flwr").level
    experiment.run(run_config(images, "federated"), images, RunStore(tmp_path))
    assert logging.getLogger("flwr").level == before
    assert capfd.readouterr().err == ""


PEAK = """
import sys
from pathlib import Path
from data_prep.sources import prepare_synthetic
from fedlib.study import experiment
from fedlib.training.run_store import RunStore
from tests.helpers import peak_mb, run_config

out, n, sampled = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
data = prepare_synthetic("classification", out / "set", 1600, size=16)
config = run_config(data, "federated", n_clients=n, fraction_train=sampled / n, width=64)
experiment.run(config, data, RunStore(out))
print(peak_mb())
"""


@pytest.mark.slow
def test_two_hundred_clients_of_which_few_take_part_cost_the_memory_of_few(tmp_path):
    """MB. glibc keeps freed blocks as long as it may guess; told to map what is large, it gives the same peak each time."""
    environment, peaks = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}, {}
    for n_clients in (10, 200):
        done = python("-c", PEAK, tmp_path / str(n_clients), n_clients, 10, env=environment)
        assert done.returncode == 0, done.stderr
        peaks[n_clients] = int(done.stdout.splitlines()[-1])
    assert peaks[200] < peaks[10] + 120
