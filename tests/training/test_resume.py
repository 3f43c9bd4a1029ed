"""A run that was interrupted goes on after its last finished round, and ends with the same bits."""

import signal

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

import fedlib.federated.client_app
from fedlib.config import UserError
from fedlib.federated.checked_strategy import FederationError
from fedlib.study import experiment
from fedlib.training import execution
from fedlib.training.run_store import RunStore
from tests.helpers import outcome, python, run_config

MODES = ("centralized", "local", "federated")
KILLED = """
import os, signal, sys
import fedlib.federated.client_app
from fedlib.study import experiment
from fedlib.training import execution
from fedlib.config import RunConfig
from fedlib.data.dataset import open_prepared
from fedlib.training.run_store import RunStore

config, data = RunConfig.model_validate_json(sys.argv[1]), open_prepared(sys.argv[2])
original, turns = execution.train_round, []

def train_round(*arguments):
    turns.append(arguments)
    if len(turns) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)

execution.train_round = fedlib.federated.client_app.train_round = train_round
experiment.run(config, data, RunStore(sys.argv[3]))
"""


@pytest.fixture
def turns(monkeypatch):
    """Every turn (client, round) that is trained; the one in `turns.stop` is interrupted before it begins."""
    original = execution.train_round

    class Turns(list):
        stop: tuple[int, int] | None = None

    seen = Turns()

    def train_round(model, data, rows, config, client, number, *more):
        if (client, number) == seen.stop:
            raise KeyboardInterrupt
        seen.append((client, number))
        return original(model, data, rows, config, client, number, *more)

    monkeypatch.setattr(execution, "train_round", train_round)
    monkeypatch.setattr(fedlib.federated.client_app, "train_round", train_round)
    return seen


def tables(run):
    """Rounds and clients without what a clock says."""
    return [table.drop(columns="seconds") for table in (run.rounds, run.clients)]


@pytest.fixture(scope="module")
def without_a_stop(prepared, tmp_path_factory):
    """The run of three rounds of a task and mode that nobody interrupted, trained once."""
    store = RunStore(tmp_path_factory.mktemp("whole"))
    return lambda task, mode: experiment.run(run_config(prepared[task], mode, rounds=3), prepared[task], store)


STOPS = {"centralized": [(0, 1), (0, 2), (0, 3)], "local": [(0, 1), (0, 3), (1, 2)], "federated": [(0, 1), (0, 3), (1, 2)]}
STOPPED = [("classification", mode, stop) for mode in MODES for stop in STOPS[mode]]
STOPPED += [("segmentation", mode, STOPS[mode][-1]) for mode in MODES]


@pytest.mark.parametrize(("task", "mode", "stop"), STOPPED)
def test_it_goes_on_after_the_last_finished_round(prepared, tmp_path, without_a_stop, turns, task, mode, stop):
    data, whole = prepared[task], without_a_stop(task, mode)
    config, every = whole.config, [(client, number) for client in range(whole.config.n_clients) for number in (1, 2, 3)]
    turns.clear()
    turns.stop, store = stop, RunStore(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, data, store)
    before, turns.stop = turns.copy(), None
    assert store.get(config.run_id).status["state"] == "queued"
    turns.clear()
    run = experiment.run(config, data, store)
    assert outcome(run) == outcome(whole)
    assert run.cases.equals(whole.cases)
    if mode == "federated":
        assert run.validation.equals(whole.validation)
    for own, expected in zip(tables(run), tables(whole), strict=True):
        pd.testing.assert_frame_equal(own, expected, check_exact=True)
    assert sorted({*before, *turns}) == every
    again = set(before) & set(turns)
    assert len({number for _, number in again}) <= 1, "one round at most is trained twice"
    if mode != "federated":
        assert again == set(), "alone, a round is a client's own"


def test_killed_outright_it_loses_the_round_it_was_in(images, tmp_path, without_a_stop, turns):
    whole = without_a_stop("classification", "federated")
    config = whole.config
    turns.clear()
    store = RunStore(tmp_path / "killed")
    killed = python("-c", KILLED, config.model_dump_json(), images.folder, store.out_dir, 6)  # the last turn of three rounds
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert store.get(config.run_id).status["state"] == "running"
    run = experiment.run(config, images, store)
    assert sorted(turns) == [(0, 3), (1, 3)]
    assert run.result["weights_sha256"] == whole.result["weights_sha256"]


def test_a_failed_run_goes_on_from_there_too(images, tmp_path, turns, monkeypatch):
    config, store = run_config(images, "federated", rounds=3), RunStore(tmp_path)
    with monkeypatch.context() as patched:

        def fails(model, data, rows, config, client, number, *more):
            if number == 3:
                raise OSError("disk full")
            return execution.train_round(model, data, rows, config, client, number, *more)

        patched.setattr(fedlib.federated.client_app, "train_round", fails)
        with pytest.raises(FederationError, match="round 3: client 0 failed: OSError: disk full"):
            experiment.run(config, images, store)
    turns.clear()
    experiment.run(config, images, store)
    assert sorted(turns) == [(0, 3), (1, 3)]


def interrupted(data, store, turns):
    """The path of the checkpoint of a federation that was stopped in its second round."""
    config = run_config(data, "federated")
    turns.stop = (1, 2)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, data, store)
    turns.stop = None
    return config, store.folder / config.run_id / "checkpoints" / "global.safetensors"


def test_a_checkpoint_cut_short_is_one_line_and_the_store_stays_whole(images, tmp_path, turns):
    store = RunStore(tmp_path)
    config, path = interrupted(images, store, turns)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"global\.safetensors: damaged .*remove it to begin anew"):
        experiment.run(config, images, store)
    assert store.get(config.run_id).status["state"] == "failed"
    path.unlink()
    turns.clear()
    experiment.run(config, images, store)
    assert sorted(turns) == [(0, 1), (0, 2), (1, 1), (1, 2)]


@pytest.mark.parametrize("about", [None, {"run_id": "another"}, {"rounds": "[]"}])
def test_another_run_s_checkpoint_is_refused(images, tmp_path, turns, about):
    store = RunStore(tmp_path)
    config, path = interrupted(images, store, turns)
    known = {"rounds": "[]", "clients": "[]"}  # without run_id
    save_file(load_file(path), path, about and known | about)
    with pytest.raises(UserError, match=r"global\.safetensors: (of run another|damaged)"):
        experiment.run(config, images, store)
