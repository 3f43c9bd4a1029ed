"""Train the runs of a study on a Ray cluster, one task per run.

A task calls `experiment.run`, so the run store holds its result or its error, and an interrupted run resumes. All nodes need
this project at the same commit, and see out_dir and the prepared sets under the same paths.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fedlib.config import RunConfig, StudyConfig, UserError
from fedlib.data.dataset import open_prepared
from fedlib.training.run_store import RunStore

CONNECT_TIMEOUT_S = 10.0


def connect(address: str | None) -> None:
    """Connect this process to the Ray cluster at `address`, HOST:PORT, or at RAY_ADDRESS.

    Raises UserError within seconds when Ray is not installed or no cluster replies at the address.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--executor ray: Ray is not installed; expected: pip install -e '.[ray]'") from None
    address = address or os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()  # Ray itself would try for minutes
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        found = f"--address {address}: no Ray cluster replies there ({' '.join(str(error).split())})"
        raise UserError(f"{found}; expected HOST:PORT of one, as `ray start --head` prints it") from None


def train_on_cluster(studies: list[StudyConfig], threads: int, show_progress: Callable[[], None]) -> None:
    """Train all runs that are not done, each as a task with `threads` cores, and a GPU where the cluster has any.

    A failure is written to the run's status; it does not stop the other runs.
    Raises UserError when no node has so many cores, or a node writes its runs elsewhere.
    """
    import ray

    largest = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    if threads > largest:
        found = f"--executor ray: a run gets {threads} cores (this machine's over --jobs), the largest node has {largest:g}"
        raise UserError(f"{found}; expected a larger --jobs")
    task = ray.remote(num_cpus=threads, num_gpus=1 if ray.cluster_resources().get("GPU") else 0)(_train)
    waiting = {}
    for study in studies:
        data, store = open_prepared(study.prepared_dir, study.task), RunStore(study.out_dir)
        for config in study.runs(data.fingerprint):
            if not store.done([config]):
                waiting[task.remote(config, data.folder, study.out_dir, threads)] = config, store
    try:
        while waiting:
            for ended in ray.wait(list(waiting), timeout=0.5)[0]:
                _check(ended, *waiting.pop(ended))
            show_progress()
    finally:
        ray.shutdown()  # the cluster ends the tasks that are left


def _train(config: RunConfig, data_dir: Path, out_dir: Path, threads: int) -> None:
    from fedlib.study.experiment import run  # here: a refusal must not wait for MONAI

    torch.set_num_threads(threads)
    run(config, open_prepared(data_dir), RunStore(out_dir))


def _check(task: Any, config: RunConfig, store: RunStore) -> None:
    """Record why a task ended if its run could not: a lost node, no memory, data that the node does not see."""
    import ray

    try:
        ray.get(task)
    except ray.exceptions.RayError as error:
        if not (known := store.get(config.run_id)) or known.status["state"] != "failed":
            cause = getattr(error, "cause", error)
            store.begin(config).set_status("failed", error=f"{type(cause).__name__}: {' '.join(str(cause).split())}")
        return
    if not store.done([config]):
        raise UserError(f"--out {store.out_dir}: a node wrote its run elsewhere; expected a folder that all nodes share")
