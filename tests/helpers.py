"""What several test modules need: the commands as a user types them, and small configurations."""

import functools
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedlib.config import ROOT, RunConfig
from fedlib.data.dataset import PreparedDataset
from fedlib.training.run_store import Run

RAY = re.compile(r"raylet|gcs_server|^ray::")
SIZES = {
    "rounds": 2,
    "local_epochs": 1,
    "batch_size": 8,
    "learning_rate": 0.001,
    "width": 16,
    "unbalance_ratio": 2,
    "precision": "fp32",
}
CLIENTS = {"n_clients": 2, "partition": "balanced"}
FLOWER = {"strategy": "fedavg"}
ARMS = {"centralized": {}, "local": CLIENTS, "federated": CLIENTS | FLOWER}


def run_config(data: PreparedDataset, mode: str, **changes) -> RunConfig:
    """A run that takes a fraction of a second."""
    values = SIZES | ARMS[mode] | {"task": data.task, "mode": mode, "seed": 1, "data_fingerprint": data.fingerprint}
    return RunConfig(**values | changes)


def python(*arguments: object, **options) -> subprocess.CompletedProcess:
    """`python ARGUMENTS` in the repository's root, to its end."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, **{"cwd": ROOT, **options})


def started(command: list[str], stdout: int = subprocess.DEVNULL, **options) -> subprocess.Popen:
    """A process that Ctrl-C can stop, even where the tests run in the background of a shell, which turns that off."""
    listens = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stdout=stdout, preexec_fn=listens, **{"cwd": ROOT, **options})


def outcome(run: Run) -> dict:
    """A run's row of results.csv without what a clock says."""
    return {name: value for name, value in run.result.items() if name != "seconds"}


def snapshot(folder: Path) -> dict[str, int]:
    """Every file below a folder with the time it was last written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


@contextmanager
def files_of_at_most(n: int) -> Iterator[None]:
    """The file system refuses to let a file grow, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


PATIENCE = 400
"""Seconds after which a test gives up on what it waits for: a round takes a minute where others work too."""


def until(is_so: Callable[[], Any], what: str, seconds: float = PATIENCE, every: float = 0.05) -> Any:
    """Wait for something that another process does; what `is_so` found then."""
    end = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < end, what
        time.sleep(every)  # not busily: Ray's workers have the lowest priority
    return found


def no_ray_is_left() -> None:
    """Fail if Ray runs anything on this machine; workers need a moment to see that their raylet is gone."""
    until(lambda: not any(map(RAY.search, commands())), "Ray is left", 120)


def commands() -> Iterator[str]:
    """Command lines of all processes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended while we looked
            yield path.read_bytes().replace(b"\0", b" ").decode(errors="replace")


def peak_mb() -> int:
    """Most memory that this process has had, in MB (Linux). What `resource` says is no less than what its parent had."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 // 10**6
