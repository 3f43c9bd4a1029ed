"""A study: done once, not done again; stopped anywhere, it resumes; a failed run is named and gives exit code 1."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import torch

from fedlib.config import StudyConfig, UserError
from fedlib.data.dataset import open_prepared
from fedlib.study import runner
from fedlib.study.record import recall_studies, remember_study
from fedlib.study.report import write_report
from fedlib.study.runner import ORDER, Job, run_study
from fedlib.training.run_store import RunStore
from tests.helpers import python, snapshot, started, until

TASKS = ("classification", "segmentation")
DEADLINE = 300
COMMAND = ("-m", "fedlib", "study", "--profile", "smoke", "--task", "segmentation", "--out")


@pytest.fixture
def _own_process(monkeypatch):
    """Put back what run_study sets for its process."""
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", str(torch.get_num_threads())))
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def studies(smoke):
    return [StudyConfig.make(profile="smoke", task=task, out_dir=smoke, seed=[1]) for task in TASKS]


@pytest.mark.usefixtures("_own_process")
def test_the_same_command_again_does_nothing(smoke, studies, monkeypatch):
    monkeypatch.setattr(runner.papermill, "execute_notebook", lambda notebook, *_, **__: pytest.fail(f"{notebook} again"))
    before = snapshot(smoke)
    assert run_study(studies) == []
    after = snapshot(smoke)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed <= {"index.html", "study.json", "results.csv", "ro-crate-metadata.json"}


def test_a_comparison_waits_for_the_notebooks_of_its_task_alone(tmp_path, monkeypatch):
    first, other = (StudyConfig.make(profile="smoke", task=task, out_dir=tmp_path) for task in TASKS)
    ended, compared = [], threading.Event()

    def execute(job, needed):
        if job == Job(other, ORDER[1]):
            assert compared.wait(60), "the other task's comparison waits for this notebook"
        runner.wait(needed)
        ended.append(str(job))
        if job == Job(first, ORDER[-1]):
            compared.set()

    monkeypatch.setattr(runner, "execute", execute)
    jobs = [Job(study, notebook) for notebook in ORDER[1:] for study in (first, other)]
    with runner._Progress([first, other], 10) as progress, ThreadPoolExecutor(3) as pool:
        assert runner._execute_all(jobs, pool, progress) == []
    assert sorted(ended) == sorted(map(str, jobs))
    for task in TASKS:
        assert [name for name in ended if name.startswith(task)][-1] == f"{task}/{ORDER[-1]}"


def test_a_notebook_is_done_only_for_its_own_parameters(studies):
    for each in studies:
        jobs = [Job(each, notebook) for notebook in ORDER]
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
    for source in runner.NOTEBOOKS.glob("*.ipynb"):
        (edited / source.name).write_text(source.read_text().replace("Comparison of results", "Comparison"))
    monkeypatch.setattr(runner, "NOTEBOOKS", edited)
    assert training.is_done()
    assert not comparison.is_done()


def test_a_damaged_notebook_is_executed_again_and_named_by_the_report(studies, smoke, tmp_path):
    for name in ("study.json", "segmentation", "runs", "data/segmentation"):
        copy = shutil.copytree if (smoke / name).is_dir() else shutil.copy
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy(smoke / name, tmp_path / name)
    job = Job(studies[1].model_copy(update={"out_dir": tmp_path}), ORDER[0])
    job.output.write_text("")
    assert not job.is_done()
    with pytest.raises(UserError, match=r"01_data_preparation.ipynb: damaged .*; remove it"):
        write_report(tmp_path)
    (tmp_path / "study.json").write_text("{")
    remember_study(job.study, open_prepared(job.study.prepared_dir))
    assert [study.task for study, _ in recall_studies(tmp_path)] == ["segmentation"]


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Execute a notebook of one cell as a study does; gives the error, and what the cell printed."""
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path)

    def execute_cell(source):
        given = nbformat.v4.new_code_cell("task = profile = out_dir = None", metadata={"tags": ["parameters"]})
        cells = [given, nbformat.v4.new_code_cell(source)]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(
            nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / f"{ORDER[0]}.ipynb"
        )
        job = Job(StudyConfig.make(profile="smoke", task=TASKS[0], out_dir=tmp_path / "out"), ORDER[0])
        with runner._pool(1) as pool:
            error = pool.submit(runner.execute, job).result()
        printed = [
            output.text for output in nbformat.read(job.output, 4).cells[-1].outputs if output.output_type == "stream"
        ]
        return error, "".join(printed)

    return execute_cell


def test_a_notebook_runs_in_this_interpreter_whatever_kernel_jupyter_finds(execute, tmp_path, monkeypatch, capfd):
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "Other", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    source = "import os, sys; print(sys.executable, os.getcwd(), os.environ['CUDA_VISIBLE_DEVICES'])"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert execute(source) == (None, f"{sys.executable} {tmp_path} 7\n")
    assert capfd.readouterr().err == "", "a good run prints nothing that scares"


def test_a_cell_that_raises_and_a_kernel_that_dies_are_named(execute):
    assert execute("print('so far'); raise OSError('disk full')") == ("OSError: disk full", "so far\n")
    error, _ = execute("import os; os._exit(9)")
    assert error.startswith("DeadKernelError: ")


def test_parameters_in_an_executed_notebook_are_flat_literals(smoke):
    for page in smoke.rglob("*.ipynb"):
        parameters = json.loads(page.read_text())["metadata"]["papermill"]["parameters"]
        assert all(isinstance(value, (str, int, float, list)) for value in parameters.values())
        assert parameters["profile"] == "smoke"


def test_what_is_left_behind_is_only_what_is_stated(smoke):
    shown = {path.name for path in smoke.iterdir() if not path.name.startswith(".")}
    assert shown == {*TASKS, "data", "lesson", "runs", "index.html", "results.csv", "study.json", "ro-crate-metadata.json"}
    assert [path for task in TASKS for path in (smoke / task).iterdir() if path.suffix not in (".ipynb", ".html")] == []
    assert [path for path in (smoke / "data").iterdir() if "partial" in path.name] == []


def test_the_progress_of_a_study_counts_notebooks_and_runs(studies):
    with runner._Progress(studies, 18) as progress:
        progress.show()
        assert progress.n == 10, "the runs; no notebook was executed here"


@pytest.mark.slow
def test_with_the_course_every_notebook_has_a_page(tmp_path):
    done = python(*COMMAND, tmp_path, "--course")
    assert done.returncode == 0, done.stderr[-2000:]
    pages = sorted(path.stem for path in (tmp_path / "segmentation").glob("*.html"))
    assert pages == sorted(path.stem for path in runner.NOTEBOOKS.glob("*.ipynb"))
    assert "05_going_further.html" in (tmp_path / "segmentation" / "04_compare_results.html").read_text()
    index = (tmp_path / "index.html").read_text()
    assert all(f"segmentation/{page}.html" in index for page in pages)


def results(folder):
    """The segmentation runs of a study, without what a clock says."""
    table = pd.read_csv(folder / "results.csv").sort_index(axis=1)  # the order depends on which task comes first
    return table[table["task"] == "segmentation"].dropna(axis=1, how="all").drop(columns="seconds").reset_index(drop=True)


def marked(mark):
    """Command lines of the living processes whose environment has the mark: a study's own, and all that it started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("STUDY") == mark:
                found.append(process.cmdline())
    return found


def in_the_middle(out):
    """Whether a study has a run that is done and one that is under way."""
    return {run.status["state"] for run in RunStore(out).all()} >= {"done", "running"}


def stop_in_the_middle(out, how, *given, env=os.environ):
    """Start a study, stop it by a signal when one run is done and one is under way. Returns its exit code and stderr.

    Nothing of it is left.
    """
    command, mark = [sys.executable, *COMMAND, str(out), *map(str, given)], str(uuid.uuid4())
    process = started(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=env | {"STUDY": mark})
    try:
        until(lambda: in_the_middle(out) or process.poll() is not None, "no run", DEADLINE)
        assert process.returncode is None, "it ended before it could be stopped"
        assert how != signal.SIGKILL or marked(mark)
        (os.kill if how == signal.SIGKILL else os.killpg)(process.pid, how)  # a terminal tells the whole group
        _, stderr = process.communicate(timeout=DEADLINE)
        until(lambda: not marked(mark), "processes are left", 60)
        return process.returncode, stderr
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
def test_a_study_that_was_stopped_resumes_to_the_same_results(smoke, tmp_path, how):
    out = tmp_path / "study"
    code, stderr = stop_in_the_middle(out, how)
    assert code == {signal.SIGKILL: -9}.get(how, 130)
    if how != signal.SIGKILL:
        assert stderr.splitlines()[-1] == "Interrupted. The same command resumes the study."
    assert {line.split(";")[0] for line in stderr.split("\n") if " steps, " not in line} <= {
        "Interrupted. The same command resumes the study.", ""}  # fmt: skip
    finished = {run.folder: (run.folder / "status.json").stat().st_mtime_ns for run in RunStore(out).all() if run.done}
    assert 0 < len(finished) < 5, "it was stopped in the middle"
    again = python(*COMMAND, out)
    assert again.returncode == 0, again.stderr[-2000:]
    pd.testing.assert_frame_equal(results(out), results(smoke))
    assert {folder: (folder / "status.json").stat().st_mtime_ns for folder in finished} == finished, "not trained again"
    assert len(list(out.rglob("*.html"))) == 5
    assert list(out.rglob(".*.ipynb")) == []


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
    again = python(*COMMAND, out)
    assert (again.returncode, Path(again.stdout.split()[-1]).name) == (0, "index.html")
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
    planned = configured.runs(prepared["segmentation"].fingerprint)
    assert len(RunStore(two).done(planned)) == len(planned)


@pytest.mark.parametrize(
    ("visible", "count", "jobs", "expected"),
    [
        (None, 2, 2, ["0", "1"]),
        (None, 2, 3, ["0", "1", "0"]),
        (None, 4, 2, ["0", "1"]),
        ("3,5", 2, 2, ["3", "5"]),
        ("GPU-8a,GPU-8b,GPU-8c", 2, 3, ["GPU-8a", "GPU-8b", "GPU-8a"]),
        (None, 1, 2, ["0", "0"]),
        (None, 2, 1, ["0,1"]),
        ("3,5", 2, 1, ["3,5"]),
        ("", 0, 2, ["", ""]),
    ],
)
def test_jobs_take_a_gpu_each_in_turn(visible, count, jobs, expected, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    together = threading.Barrier(jobs)

    def gpu(_):
        together.wait(60)  # so that every thread takes one
        return runner._worker.gpus

    with runner._pool(jobs) as pool:
        assert sorted(pool.map(gpu, range(jobs))) == sorted(expected)
