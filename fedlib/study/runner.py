"""Run a study: papermill executes the notebooks of each task, several at a time; then the index page is written.

A notebook is not executed again while its source, parameters, data and runs stay the same. A finished run is not trained
again. So the same command resumes a study wherever it was stopped.
"""

import hashlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import papermill
import psutil
import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from tqdm import tqdm

from fedlib.config import ROOT, RunConfig, StudyConfig, UserError
from fedlib.data.dataset import PreparedDataset, find_prepared, open_prepared
from fedlib.data.files import write_atomically
from fedlib.data.partition import clients_of
from fedlib.data.progress import ProgressBar
from fedlib.study.pages import render_notebook
from fedlib.study.record import remember_study
from fedlib.training.run_store import RunStore

NOTEBOOKS = ROOT / "notebooks"
ORDER = ("01_data_preparation", "03_federated_simulation", "02_centralized_training", "04_compare_results")
"""03 takes longest and starts before 02, so that no core idles while it ends. 04 reads what both have trained."""
COURSE = ("05_going_further", "00_start_here")
"""Notebooks without a part in the study's answer; 05 trains federations of its own."""
MODES = {"02": ("centralized",), "03": ("local", "federated"), "04": ("centralized", "local", "federated")}
_worker = threading.local()
"""Of a thread that executes notebooks: `gpus`, those that its kernels see."""


@dataclass(frozen=True)
class Job:
    """One notebook to execute for one task of a study."""

    study: StudyConfig
    notebook: str

    def __str__(self) -> str:
        return f"{self.study.task}/{self.notebook}"

    @property
    def output(self) -> Path:
        """Return the path of the executed notebook."""
        return self.study.out_dir / f"{self}.ipynb"

    @property
    def parameters(self) -> dict[str, Any]:
        """Return what differs from the profile's defaults: what a reader would have to set in the notebook."""
        default = StudyConfig.make(task=self.study.task, profile=self.study.profile)
        given, known = (json.loads(study.model_dump_json(by_alias=True)) for study in (self.study, default))
        return {name: value for name, value in given.items() if value != known[name] or name in ("task", "profile")}

    def stamp(self) -> dict[str, Any] | None:
        """Return what the executed notebook depends on, kept in its metadata; None while its data or a run is missing."""
        planned = planned_runs(self.study, MODES.get(self.notebook[:2], ()))
        done, prepared = RunStore(self.study.out_dir).done(planned), find_prepared(self.study.prepared_dir, self.study.task)
        if not prepared or len(done) < len(planned):
            return None
        return {
            "source_sha256": hashlib.sha256((NOTEBOOKS / f"{self.notebook}.ipynb").read_bytes()).hexdigest(),
            "parameters": self.parameters,
            "data": open_prepared(prepared).fingerprint,
            "runs": {run.folder.name: run.result["weights_sha256"] for run in done},
        }

    def is_done(self) -> bool:
        """Return whether the notebook was executed and rendered with all its runs, and nothing changed since."""
        if not self.output.with_suffix(".html").exists():
            return False
        stamp = self.stamp()
        try:
            return stamp is not None and json.loads(self.output.read_text())["metadata"].get("fedlib") == stamp
        except (ValueError, LookupError, TypeError):  # a damaged file
            return False


class Kernel(AsyncKernelManager):
    """Run a notebook in this Python interpreter, whichever kernel is `python3` on JUPYTER_PATH."""

    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])

    async def start_kernel(self, **options: Any) -> None:
        """Start the kernel in the folder of the notebooks, with the GPUs of the calling thread."""
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": _worker.gpus}
        await super().start_kernel(cwd=str(NOTEBOOKS), env=environment, **options)

    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
        """Ask the kernel to end. The inherited method interrupts it first, which an idle kernel may log as an error."""
        await self.request_shutdown()
        await self.finish_shutdown()


def run_study(
    studies: list[StudyConfig], n_jobs: int = 1, executor: str = "local", address: str | None = None, course: bool = False
) -> list[str]:
    """Carry out the studies (one per task, one out_dir) and write the report. Returns one line per failure.

    With `course`, the notebooks that have no part in the answer are executed too.
    With executor `ray` the Ray cluster at `address` trains the runs before the notebooks show them; a run that fails there
    is tried once more by its notebook.
    Raises UserError before any training when the data, the grid of runs or the cluster cannot work.
    """
    if not NOTEBOOKS.is_dir():
        raise UserError(f"{NOTEBOOKS}: no notebooks there; run from a checkout of the repository (pip install -e .)")
    for study in studies:
        if study.data_dir:
            check(study)
    if executor == "ray":
        from fedlib.study.ray_cluster import connect, train_on_cluster  # here: Ray is an optional dependency

        connect(address)
    from fedlib.analysis import check_integrity  # here: a refusal must not wait for MONAI
    from fedlib.study.report import write_index
    from fedlib.training.loop import cores

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the study as Ctrl-C does
    threads = max(1, cores() // n_jobs)
    if n_jobs > 1:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    later = (*ORDER[1:-1], *COURSE * course, ORDER[-1])
    total = len(studies) * (1 + len(later)) + sum(len(study.runs("")) for study in studies)
    with _lock(studies[0].out_dir), _pool(n_jobs) as pool, _Progress(studies, total) as progress:
        problems = _execute_all([Job(study, ORDER[0]) for study in studies], pool, progress)
        studies = [study for study in studies if find_prepared(study.prepared_dir, study.task)]
        for study in studies:
            remember_study(study, check(study))
        if executor == "ray":
            train_on_cluster(studies, threads, progress.show)
        problems += _execute_all([Job(study, notebook) for notebook in later for study in studies], pool, progress)
        for study in studies:
            _, missing = check_integrity(RunStore(study.out_dir), [config.run_id for config in planned_runs(study)])
            problems += [f"{run_id}: {why}" for run_id, why in missing.items()]
        if studies:
            progress.show()
            write_index(studies[0].out_dir, tell=tqdm.write)
    return problems


def planned_runs(study: StudyConfig, modes: Sequence[str] = MODES["04"]) -> list[RunConfig]:
    """Return the runs of a study's grid; none before its data is prepared."""
    prepared = find_prepared(study.prepared_dir, study.task)
    return study.runs(open_prepared(prepared).fingerprint, modes) if prepared else []


def check(study: StudyConfig) -> PreparedDataset:
    """Open the data and partition it for every run. Returns the data; raises UserError if a run could not be trained."""
    data = open_prepared(study.prepared_dir, study.task)
    for config in study.runs(data.fingerprint):
        clients_of(config, data)
    return data


def _lock(out_dir: Path) -> AcquireReturnProxy:
    """Lock the folder against a second study. The lock ends with the process."""
    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(out_dir / ".study.lock").acquire(timeout=0)
    except Timeout:
        raise UserError(f"--out {out_dir}: another study is running there; wait for it or choose another folder") from None


def _pool(n_jobs: int) -> ThreadPoolExecutor:
    """Return threads for `n_jobs` notebooks at a time; where there are several GPUs, each thread has one of them."""
    count = torch.cuda.device_count()
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    shares = cycle(gpus.split(",")[: max(1, count)] if n_jobs > 1 else [gpus])
    return ThreadPoolExecutor(n_jobs, initializer=lambda: setattr(_worker, "gpus", next(shares)))


def _execute_all(jobs: list[Job], pool: ThreadPoolExecutor, progress: "_Progress") -> list[str]:
    """Execute notebooks in this order, as many at a time as the pool takes. Returns one line per failure."""
    futures: dict[Job, Future] = {}
    for job in jobs:
        needed = [future for other, future in futures.items() if other.study == job.study and job.notebook == ORDER[-1]]
        futures[job] = pool.submit(execute, job, needed)
    progress.futures |= futures
    try:
        while wait(futures.values(), 0.5).not_done:
            progress.show()
    except BaseException:
        _stop(pool, futures)
        raise
    return [f"{job}: {error}" for job, future in futures.items() if (error := future.result())]


def _stop(pool: ThreadPoolExecutor, futures: dict[Job, Future]) -> None:
    """Cancel what has not begun and kill the kernels: Ctrl-C does not reach them, they have sessions of their own."""
    logging.getLogger("papermill").disabled = True  # it would report every kernel that dies
    pool.shutdown(wait=False, cancel_futures=True)
    while not all(future.done() for future in futures.values()):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        time.sleep(0.1)


def execute(job: Job, needed: Sequence[Future] = ()) -> str | None:
    """Execute and render a notebook after those that it needs, unless it is done. Returns its error in one line."""
    wait(needed)
    if job.is_done():
        return None
    job.output.parent.mkdir(parents=True, exist_ok=True)
    unfinished, error = job.output.with_name(f".{job.output.name}"), None
    options = {"progress_bar": False, "kernel_manager_class": Kernel, "extra_arguments": ["--log-level=ERROR"]}
    try:
        papermill.execute_notebook(NOTEBOOKS / f"{job.notebook}.ipynb", unfinished, job.parameters, **options)
        content = json.loads(unfinished.read_text())
        content["metadata"]["fedlib"] = job.stamp()
        write_atomically(unfinished, json.dumps(content))
    except Exception as failure:  # a cell raised; or the kernel died, of memory for example, or never began
        error = f"{getattr(failure, 'ename', type(failure).__name__)}: {getattr(failure, 'evalue', failure)}"
    if unfinished.exists():
        unfinished.replace(job.output)
        render_notebook(job.output)
    return error


class _Progress(ProgressBar):
    """Show how many notebooks and runs are done."""

    def __init__(self, studies: list[StudyConfig], total: int):
        self.studies, self.futures = studies, {}
        super().__init__(total=total, unit="step", dynamic_ncols=True, miniters=0)

    def show(self) -> None:
        """Count again and show what has changed."""
        running = ", ".join(str(job) for job, future in self.futures.items() if future.running())
        self.set_description_str(running, refresh=False)
        done = sum(future.done() for future in self.futures.values())
        done += sum(len(RunStore(study.out_dir).done(planned_runs(study))) for study in self.studies)
        self.update(done - self.n)
