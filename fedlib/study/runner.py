"""A study: the notebooks of each task, run by papermill in order, with resume; then the report.

A notebook that was executed with these parameters, and whose runs are all done, is not executed again; a run that is done
is not trained again. So the same command goes on wherever it was stopped.

Each process of the pool imports this module before it starts a kernel, which imports all that it needs itself. So what takes
seconds to import, MONAI and the report's libraries, is imported here where it is used.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from fedlib.config import ROOT, RunConfig, StudyConfig, UserError
from fedlib.data.dataset import PreparedSet, find_prepared, open_prepared
from fedlib.data.partition import clients_of
from fedlib.training.run_store import RunStore, remember_study

NOTEBOOKS = ROOT / "notebooks"
STAGES = (("01_data_preparation",), ("02_centralized_training", "03_federated_simulation"), ("04_compare_results",))
"""A notebook needs those of the stages before, of its own task; those of one stage do not need each other."""
MODES = {"02": ("centralized",), "03": ("local", "federated"), "04": ("centralized", "local", "federated")}


@dataclass(frozen=True)
class Job:
    """One notebook to execute for one task of a study."""

    study: StudyConfig
    notebook: str

    @property
    def output(self) -> Path:
        return self.study.out_dir / self.study.task / f"{self.notebook}.ipynb"

    @property
    def stamp(self) -> dict[str, Any]:
        """What the output depends on, besides the runs: kept in its metadata."""
        source = (NOTEBOOKS / f"{self.notebook}.ipynb").read_bytes()
        return {"source_sha256": hashlib.sha256(source).hexdigest(), "parameters": self.parameters}

    @property
    def parameters(self) -> dict[str, Any]:
        """What differs from the profile's own study: what a person would have to set in the notebook."""
        usual = StudyConfig.make(task=self.study.task, profile=self.study.profile)
        given, known = (json.loads(study.model_dump_json(by_alias=True)) for study in (self.study, usual))
        return {name: value for name, value in given.items() if value != known[name] or name in ("task", "profile")}

    @property
    def stage(self) -> int:
        """Where it stands in STAGES."""
        return next(number for number, stage in enumerate(STAGES) if self.notebook in stage)

    def needs(self, other: "Job") -> bool:
        """Whether the other must have ended before this one begins."""
        return other.study == self.study and other.stage < self.stage

    def runs(self) -> list[RunConfig]:
        """The runs that this notebook trains or reads."""
        modes = MODES.get(self.notebook[:2])
        return self.study.runs(open_prepared(self.study.prepared_dir, self.study.task).fingerprint, modes) if modes else []

    def is_done(self) -> bool:
        """Whether the notebook was executed as it would be now, after the last of its runs."""
        prepared = find_prepared(self.study.prepared_dir, self.study.task)
        if not self.output.with_suffix(".html").exists() or not prepared:
            return False
        if json.loads(self.output.read_text())["metadata"].get("fedlib") != self.stamp:
            return False
        configs, store = self.runs(), RunStore(self.study.out_dir)
        finished = [run.folder / "status.json" for run in store.done(configs)]
        executed_at = self.output.stat().st_mtime
        return len(finished) == len(configs) and all(status.stat().st_mtime <= executed_at for status in finished)


def run_study(studies: list[StudyConfig], n_jobs: int = 1, executor: str = "local", address: str | None = None) -> list[str]:
    """Carry out the studies (one per task, one out_dir) and write the report. Returns what went wrong, a line each.

    With executor `ray` the Ray cluster at `address` trains the runs, before the notebooks that tell of them; a run that
    fails there is tried once more by its notebook.
    Raises UserError before any training when the data, the grid of runs or the cluster cannot work.
    """
    if not NOTEBOOKS.is_dir():
        raise UserError(f"{NOTEBOOKS}: no notebooks there; run from a checkout of the repository (pip install -e .)")
    for study in studies:
        if study.data_dir:
            check(study)
    if executor == "ray":
        from fedlib.study.ray_cluster import check_ray, run_on_ray

        check_ray(studies, address)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill stops the children too
    threads = torch.get_num_threads()
    if n_jobs > 1:
        threads = max(1, (os.cpu_count() or 1) // n_jobs)
        os.environ["OMP_NUM_THREADS"] = str(threads)
    problems: list[str] = []
    with (
        _alone(studies[0].out_dir),
        _Bar(studies) as bar,
        _pool(n_jobs) as pool,
    ):
        first, *later = STAGES
        problems += _execute_all([Job(study, notebook) for notebook in first for study in studies], pool, n_jobs, bar)
        # From here on there must be data, and a task without any has failed.
        studies = [study for study in studies if find_prepared(study.prepared_dir, study.task)]
        for study in studies:
            remember_study(study, check(study))
        if executor == "ray":
            run_on_ray(studies, threads, address, lambda: bar.show([]))
        threading.Thread(
            target=import_module, args=["fedlib.study.report"]
        ).start()  # while this process waits for the others
        # 03 is by far the longest and comes before 02: no core should be idle while the other still has it to do.
        todo = [Job(study, notebook) for stage in later for notebook in reversed(stage) for study in studies]
        problems += _execute_all(todo, pool, n_jobs, bar)
    if studies:
        from fedlib.study.report import write_index

        problems += [f"{run['run_id']}: {run['why']}" for study in studies for run in _missing(study)]
        write_index(studies[0].out_dir)
    return problems


def _pool(n_jobs: int) -> ProcessPoolExecutor:
    """Processes for `n_jobs` notebooks at a time; where there are several GPUs, each sees one of them, dealt in turn."""
    spawn = multiprocessing.get_context("spawn")
    gpus, free = _gpus(), None
    if n_jobs > 1 and len(gpus) > 1:
        free = spawn.SimpleQueue()
        for gpu in islice(cycle(gpus), n_jobs):
            free.put(gpu)
    return ProcessPoolExecutor(n_jobs, spawn, _begin, (free,))


def _begin(free: "multiprocessing.SimpleQueue[str] | None") -> None:
    """What a process of the pool does first: take its GPU, and see to it that it ends with the study, even a killed one."""
    if free:
        _take_gpu(free)
    threading.Thread(target=_end_with_the_study, daemon=True).start()


def _end_with_the_study() -> None:
    """The kernel of a notebook looks after its parent in the same way."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else list(map(str, range(count)))


def _take_gpu(free: "multiprocessing.SimpleQueue[str]") -> None:
    """From now on this process, and the kernels that it starts, see this GPU alone."""
    os.environ["CUDA_VISIBLE_DEVICES"] = free.get()


@contextmanager
def _alone(out_dir: Path) -> Iterator[None]:
    """Refuse a second study in the same folder; remove what a killed one left aside."""
    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out_dir / ".study.lock", timeout=0):
            for aside in out_dir.glob("*/.*.ipynb"):
                aside.unlink()
            yield
    except Timeout:
        raise UserError(f"--out {out_dir}: another study is running there; wait for it or choose another folder") from None


def check(study: StudyConfig) -> PreparedSet:
    """Open the data and deal every partition of the grid: what cannot work fails here, in seconds. Returns the data."""
    data = open_prepared(study.prepared_dir, study.task)
    for config in study.runs(data.fingerprint):
        clients_of(config, data)
    return data


def _missing(study: StudyConfig) -> list[dict[str, str]]:
    from fedlib.study.report import missing_runs

    return missing_runs(study.out_dir, study, open_prepared(study.prepared_dir, study.task).fingerprint)


def _execute_all(jobs: list[Job], pool: ProcessPoolExecutor, n_jobs: int, bar: "_Bar") -> list[str]:
    """Execute notebooks, `n_jobs` at a time, in this order but for those that need others. Returns their errors."""
    todo, problems = list(jobs), []
    waiting: dict[Future, Job] = {}
    try:
        while todo or waiting:
            for job in [job for job in todo if not any(map(job.needs, (*todo, *waiting.values())))]:
                todo.remove(job)
                if job.is_done():
                    bar.notebook_done()
                else:
                    waiting[pool.submit(execute, job)] = job
            bar.show(list(waiting.values())[:n_jobs])  # the pool takes them in this order
            wait(waiting, 0.3, FIRST_COMPLETED)
            for future in [future for future in waiting if future.done()]:
                job = waiting.pop(future)
                bar.notebook_done()
                if error := future.result():
                    problems.append(f"{job.study.task}/{job.notebook}: {error}")
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            child.terminate()  # their kernels notice that the parent is gone and stop
        raise
    return problems


def execute(job: Job) -> str | None:
    """Execute a notebook aside, stamp it, render it, put both in place. Returns the error in one line, if there was one."""
    import papermill

    from fedlib.study.pages import render_notebook

    job.output.parent.mkdir(parents=True, exist_ok=True)
    aside, error = job.output.with_name(f".{os.getpid()}-{job.output.name}"), None
    source = NOTEBOOKS / f"{job.notebook}.ipynb"
    try:
        papermill.execute_notebook(
            source, aside, job.parameters, progress_bar=False, cwd=NOTEBOOKS, extra_arguments=["--log-level=ERROR"]
        )
        content = json.loads(aside.read_text())
        content["metadata"]["fedlib"] = job.stamp
        aside.write_text(json.dumps(content))
    except papermill.PapermillExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}"
    except Exception as failure:  # the kernel died, of memory for example, or never began
        error = f"{type(failure).__name__}: {failure}"
    if aside.exists():
        aside.replace(job.output)
        render_notebook(job.output)
    return error


class _Bar:
    """A progress bar over notebooks and runs; it counts what the run store holds."""

    def __init__(self, studies: list[StudyConfig]):
        self.studies, self.notebooks = studies, 0
        n_notebooks = len(studies) * sum(map(len, STAGES))
        self.bar = tqdm(total=n_notebooks + sum(len(study.runs("")) for study in studies), unit="step", dynamic_ncols=True)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def notebook_done(self) -> None:
        self.notebooks += 1
        self.show([])

    def show(self, running: list[Job]) -> None:
        self.bar.set_description(", ".join(f"{job.study.task} {job.notebook[:2]}" for job in running), refresh=False)
        before, self.bar.n = self.bar.n, self.notebooks + sum(map(self._runs_done, self.studies))
        if sys.stderr.isatty() or self.bar.n > before:  # a log gets a line only when something is done
            self.bar.refresh()

    @staticmethod
    def _runs_done(study: StudyConfig) -> int:
        if not find_prepared(study.prepared_dir, study.task):
            return 0
        data = open_prepared(study.prepared_dir, study.task)
        return len(RunStore(study.out_dir).done(study.runs(data.fingerprint)))
