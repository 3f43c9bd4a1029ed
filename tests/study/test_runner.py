"""A study: done once, not done again; stopped anywhere, it goes on; a failed run is named and gives exit code 1."""

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pandas as pd
import psutil
import pytest
import torch

from fedlib.config import StudyConfig
from fedlib.study import runner as study
from fedlib.study.report import missing_runs
from fedlib.study.runner import STAGES, Job, run_study
from fedlib.training.run_store import RunStore
from tests.helpers import python, snapshot, started, until

TASKS = ("classification", "segmentation")
DEADLINE = 300
COMMAND = ("-m", "fedlib", "study", "--profile", "smoke", "--task", "segmentation", "--out")


@pytest.fixture
def _own_signals():
    """Put back what run_study sets for the process."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def studies(smoke):
    return [StudyConfig.make(profile="smoke", task=task, out_dir=smoke, seed=[1]) for task in TASKS]


@pytest.mark.usefixtures("_own_signals")
def test_the_same_command_again_does_nothing(smoke, studies, monkeypatch):
    def submitted(_, function, job):
        raise AssertionError(f"{job.notebook} is executed again")

    monkeypatch.setattr(study.ProcessPoolExecutor, "submit", submitted)
    before = snapshot(smoke)
    assert run_study(studies) == []
    after = snapshot(smoke)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed <= {"index.html", "study.json", "results.csv"}


def test_a_task_s_comparison_does_not_wait_for_the_other_task(tmp_path, monkeypatch):
    first, other = (StudyConfig.make(profile="smoke", task=task, out_dir=tmp_path) for task in TASKS)
    jobs = [Job(study, notebook) for stage in STAGES[1:] for notebook in reversed(stage) for study in (first, other)]
    began, compared = [], threading.Event()

    def execute(job):
        began.append((job.study.task, job.notebook[:2]))
        if began[-1] == (first.task, "04"):
            compared.set()
        elif began[-1] == (other.task, "03"):
            return None if compared.wait(60) else "03 of the other task waits in vain"

    monkeypatch.setattr(study, "execute", execute)
    with study._Bar([first, other]) as bar, ThreadPoolExecutor(2) as pool:
        assert study._execute_all(jobs, pool, 2, bar) == []
    assert sorted(began) == sorted((job.study.task, job.notebook[:2]) for job in jobs)
    for task in TASKS:
        assert [name for whose, name in began if whose == task] == ["03", "02", "04"]


def test_a_notebook_is_done_only_for_its_own_parameters(studies):
    for each in studies:
        jobs = [Job(each, notebook) for stage in STAGES for notebook in stage]
        assert [job.is_done() for job in jobs] == [True] * 4
        for changed in ({"rounds": 3}, {"seeds": (1, 2)}, {"client_counts": (2, 4)}):
            other = each.model_copy(update=changed)
            assert not any(Job(other, job.notebook).is_done() for job in jobs)


def test_a_notebook_is_not_done_when_its_source_or_one_of_its_runs_changed(studies, monkeypatch, tmp_path):
    training, comparison = Job(studies[1], "02_centralized_training"), Job(studies[1], "04_compare_results")
    done = RunStore.done
    monkeypatch.setattr(RunStore, "done", lambda store, configs: done(store, configs)[1:])
    assert not training.is_done()
    assert not comparison.is_done()
    monkeypatch.undo()
    edited = tmp_path / "notebooks"
    edited.mkdir()
    for source in study.NOTEBOOKS.glob("*.ipynb"):
        (edited / source.name).write_text(source.read_text().replace("Comparison of results", "Comparison"))
    monkeypatch.setattr(study, "NOTEBOOKS", edited)
    assert training.is_done()
    assert not comparison.is_done()


def test_parameters_in_an_executed_notebook_are_flat_literals(smoke):
    for page in smoke.rglob("*.ipynb"):
        parameters = json.loads(page.read_text())["metadata"]["papermill"]["parameters"]
        assert all(isinstance(value, (str, int, float, list)) for value in parameters.values())
        assert parameters["profile"] == "smoke"


def test_what_is_left_behind_is_only_what_is_stated(smoke):
    shown = {path.name for path in smoke.iterdir() if not path.name.startswith(".")}
    assert shown == {*TASKS, "data", "lesson", "runs", "index.html", "results.csv", "study.json"}
    assert [path for task in TASKS for path in (smoke / task).iterdir() if path.suffix not in (".ipynb", ".html")] == []
    assert [path for path in (smoke / "data").iterdir() if "partial" in path.name] == []


def results(folder):
    """The segmentation runs of a study, without what a clock says."""
    table = pd.read_csv(folder / "results.csv").sort_index(axis=1)  # the order depends on which task comes first
    return table[table["task"] == "segmentation"].dropna(axis=1, how="all").drop(columns="seconds").reset_index(drop=True)


def session(leader):
    """Processes that a process has started, dead ones that nobody has asked for left out."""
    found = []
    for process in psutil.process_iter(["status", "cmdline"]):
        with suppress(ProcessLookupError):
            if os.getsid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.info["cmdline"])
    return found


def in_the_middle(out):
    """Whether a study has a run that is done and one that is under way."""
    return {run.status["state"] for run in RunStore(out).all()} >= {"done", "running"}


def stop_in_the_middle(out, how, *given, **options):
    """Start a study, stop it by a signal when one run is done and one is under way, and give its exit code.

    Nothing of it is left.
    """
    command = [sys.executable, *COMMAND, str(out), *map(str, given)]
    process = started(command, stderr=subprocess.DEVNULL, start_new_session=True, **options)
    try:
        until(lambda: in_the_middle(out) or process.poll() is not None, "no run", DEADLINE)
        assert process.returncode is None, "it ended before it could be stopped"
        os.kill(process.pid, how) if how == signal.SIGKILL else os.killpg(
            process.pid, how
        )  # a terminal tells the whole group
        code = process.wait(DEADLINE)
        until(lambda: not session(process.pid), "processes are left", 60)
        return code
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
def test_a_study_that_was_stopped_goes_on_to_the_same_results(smoke, tmp_path, how):
    out = tmp_path / "study"
    code = stop_in_the_middle(out, how)
    assert code == {signal.SIGKILL: -9}.get(how, 130)
    finished = {run.folder: (run.folder / "status.json").stat().st_mtime_ns for run in RunStore(out).all() if run.done}
    assert 0 < len(finished) < 5, "it was stopped in the middle"
    again = python(*COMMAND, out)
    assert again.returncode == 0, again.stderr[-2000:]
    pd.testing.assert_frame_equal(results(out), results(smoke))
    assert {folder: (folder / "status.json").stat().st_mtime_ns for folder in finished} == finished, "not trained again"
    assert len(list(out.rglob("*.html"))) == 5


@pytest.mark.slow
def test_a_failed_run_does_not_stop_the_others_and_is_named(smoke, tmp_path):
    out = tmp_path / "study"
    failing = next(run_id for run_id in results(smoke)["run_id"] if "federated-k2-balanced" in run_id)
    obstacle = out / "runs" / failing / "weights.safetensors"
    obstacle.mkdir(parents=True)  # a folder where the weights belong: they cannot be written
    done = python(*COMMAND, out)
    assert done.returncode == 1
    named = [line for line in done.stderr.splitlines() if failing in line and "weights.safetensors" in line]
    assert named
    assert "Traceback" not in done.stderr
    text = (out / "index.html").read_text()
    assert failing in text
    assert "weights.safetensors" in text
    pd.testing.assert_frame_equal(results(out), results(smoke).query("run_id != @failing").reset_index(drop=True))
    obstacle.rmdir()
    assert python(*COMMAND, out).returncode == 0
    pd.testing.assert_frame_equal(results(out), results(smoke))
    assert failing not in (out / "index.html").read_text()


@pytest.mark.slow
def test_two_jobs_at_once_give_the_same_results(tmp_path, prepared):
    given = ["--partitions", "balanced", "--data", prepared["segmentation"].folder.parent, "--jobs", 2]
    one, two = (tmp_path / name for name in ("one", "two"))
    threads = {"OMP_NUM_THREADS": "1"}  # with two jobs a core each: other thread counts may give other bits
    assert python(*COMMAND, one, *given[:-2], env=os.environ | threads).returncode == 0
    assert python(*COMMAND, two, *given, env=os.environ | threads).returncode == 0
    pd.testing.assert_frame_equal(results(one), results(two))
    configured = StudyConfig.make(profile="smoke", task="segmentation", partitions="balanced", out_dir=two)
    assert missing_runs(two, configured, prepared["segmentation"].fingerprint) == []


@pytest.mark.parametrize(
    ("visible", "count", "jobs", "expected"),
    [
        (None, 2, 2, ["0", "1"]),
        (None, 2, 3, ["0", "1", "0"]),
        (None, 4, 2, ["0", "1"]),
        ("3,5", 2, 2, ["3", "5"]),
        ("GPU-8a,GPU-8b,GPU-8c", 2, 3, ["GPU-8a", "GPU-8b", "GPU-8a"]),
        (None, 1, 2, []),
        (None, 2, 1, []),
        ("", 0, 2, []),
    ],
)
def test_jobs_take_a_gpu_each_in_turn(visible, count, jobs, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    pools = []
    monkeypatch.setattr(study, "ProcessPoolExecutor", lambda *arguments: pools.append(arguments[2:]))
    study._pool(jobs)
    taken = []
    for _ in expected:
        (_, (free,)) = pools[0]
        study._take_gpu(free)
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert taken == expected
    assert bool(pools[0][1][0]) == bool(expected)


def test_a_job_s_process_sees_its_gpu_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with study._pool(2) as pool:
        assert pool.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result() in ("0", "1")
