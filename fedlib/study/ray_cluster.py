"""Where the runs of a study are trained when it is not by its notebooks: as tasks of a Ray cluster, a task a run.

A task is `execution.run`, so what holds for a run holds here: the run store remembers it, an interrupted one goes on from
its checkpoint, a failed one says why. The notebooks come afterwards and find the runs done. All nodes have this project at
the same commit, and see out_dir and the prepared sets under the same paths.
"""

import hashlib
import importlib.util
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from fedlib.config import RunConfig, StudyConfig, UserError
from fedlib.data.dataset import open_prepared
from fedlib.study.experiment import run
from fedlib.training.run_store import RunStore

PATIENCE = 10.0
"""Seconds for a cluster to answer."""
LAST_STEPS = 30.0
"""Seconds for a cluster's tasks to end when a study is interrupted; on a busy machine two seconds become twelve."""


def check_ray(studies: list[StudyConfig], address: str | None) -> None:
    """Raise UserError, in seconds, when no study could be carried out by Ray: not installed, nobody at its address."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("--executor ray: Ray is not installed; expected: pip install -e '.[ray]'")
    if address := address or os.environ.get("RAY_ADDRESS"):
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:  # Ray itself asks for minutes, and then ends the process
            socket.create_connection((host, int(port)), PATIENCE).close()
        except (OSError, ValueError) as error:
            found = f"--address {address}: no Ray cluster answers there ({error})"
            raise UserError(f"{found}; expected HOST:PORT of one, as `ray start --head` prints it") from None


def run_on_ray(studies: list[StudyConfig], threads: int, address: str | None, tick: Callable[[], None]) -> None:
    """Carry out all runs that are not done, each as a task with `threads` cores, and a GPU where the cluster has any.

    `tick` is called about twice a second. What came of a run is in the run store, failures too; none stops the others.
    Raises UserError when a node does not see the study's folders, or none has so many cores.
    """
    import ray  # here: it takes seconds, and most studies do without

    with _connected(address):
        most = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
        if threads > most:
            found = f"--executor ray: a run gets {threads} cores (this machine's over --jobs), the largest node has {most:g}"
            raise UserError(f"{found}; expected a larger --jobs")
        remote = ray.remote(num_cpus=threads, num_gpus=1 if ray.cluster_resources().get("GPU") else 0)(_carry_out)
        waiting = {remote.remote(*_given(config, study, threads)): (config, study) for config, study in _to_do(studies)}
        try:
            while waiting:
                for task in ray.wait(list(waiting), timeout=0.5)[0]:
                    _settle(task, *waiting.pop(task))
                tick()
        finally:
            for task, (config, study) in waiting.items():
                if not RunStore(study.out_dir).done([config]):  # Ray ends this process if it cancels what is just answering
                    ray.cancel(task)  # KeyboardInterrupt there: the run is put back in the queue
            if waiting:
                ray.wait(list(waiting), num_returns=len(waiting), timeout=LAST_STEPS)


def _to_do(studies: list[StudyConfig]) -> Iterator[tuple[RunConfig, StudyConfig]]:
    for study in studies:
        planned = study.runs(open_prepared(study.prepared_dir, study.task).fingerprint)
        done = {known.config.run_id for known in RunStore(study.out_dir).done(planned)}
        yield from ((config, study) for config in planned if config.run_id not in done)


def _given(config: RunConfig, study: StudyConfig, threads: int) -> tuple[str, str, str, str, int]:
    """What a task is told: plain text and numbers."""
    data = open_prepared(study.prepared_dir, study.task)
    return config.model_dump_json(), str(data.folder), str(study.out_dir), _seal(study.out_dir), threads


def _settle(task: Any, config: RunConfig, study: StudyConfig) -> None:
    """Raise UserError when the task's node is not fit for the study; tell the run store of a worker that died."""
    import ray

    try:
        problem = ray.get(task)
    except ray.exceptions.RayError as error:  # out of memory, for example, or its node is gone, and so after each retry
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        RunStore(study.out_dir).begin(config).set_status("failed", error=why)
        return
    if problem:
        raise UserError(f"--executor ray: {problem}; expected out_dir and data_dir on a file system that all nodes share")


def _carry_out(config: str, data_dir: str, out_dir: str, seal: str, threads: int) -> str | None:
    """Train and score one run, whatever node this is. Returns why the node cannot; a run's failure is in the run store."""
    import ray

    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ray.cancel is one; a cluster begun with `&` ignores them
    if ray.get_runtime_context().is_canceled():  # until now, that is
        return None
    try:
        data = open_prepared(data_dir)
        if _seal(Path(out_dir)) != seal:
            return f"node {socket.gethostname()}: {out_dir} is another folder there"
    except (OSError, UserError) as error:
        return f"node {socket.gethostname()}: {error}"
    with suppress(Exception):  # it is in the run store
        run(RunConfig.model_validate_json(config), data, RunStore(out_dir))
    return None


def _seal(out_dir: Path) -> str:
    """What tells this study's folder from one of the same name on another machine."""
    return hashlib.sha256((out_dir / "study.json").read_bytes()).hexdigest()


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """A connection to the cluster at `address` or RAY_ADDRESS, or to one of this machine alone, which ends with it."""
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    handler = signal.getsignal(signal.SIGTERM)  # Ray puts its own in its place
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as session:
        where = {"address": address} if address else {"address": "local", "_temp_dir": session, "include_dashboard": False}
        try:
            ray.init(**where, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"--executor ray: {' '.join(str(error).split())}; expected a node of a running cluster"
            ) from None
        signal.signal(signal.SIGTERM, handler)
        try:
            yield
        finally:
            ray.shutdown()
