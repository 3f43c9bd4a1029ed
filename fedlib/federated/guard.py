"""Processes that end when their owner ends, in whatever way: closed, by an exception, Ctrl-C, or kill -9.

A small guard process starts them, adopts what they leave orphaned, and reads its orders
from a pipe. The operating system closes that pipe when the owner dies; then the guard kills every process below it and
removes FOLDER, where their files are. It imports the standard library only, so it is there at once.
"""

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ADOPT_ORPHANS = 36
"""PR_SET_CHILD_SUBREAPER of Linux's prctl: orphaned descendants become children of the guard, not of process 1."""


class Processes:
    """The owner's side: a temporary folder and the processes that work in it. A context manager, closed at its end."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="fedlib-"))
        command = [sys.executable, "-m", "fedlib.federated.guard", str(self.folder)]
        root = str(Path(__file__).resolve().parent.parent)
        # A session of its own: Ctrl-C in a terminal reaches the owner alone, which then closes the guard.
        self._guard = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd=root, start_new_session=True)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        """Start a command; its output goes to `log(name)`."""
        order = {"name": name, "command": command, "environment": environment}
        print(json.dumps(order), file=self._guard.stdin, flush=True)

    def exit_code(self, name: str) -> int | None:
        """How a process ended: 0 or more by itself, a negative number by that signal; None while it runs."""
        with contextlib.suppress(OSError, ValueError):  # not there yet, or just being written
            return int((self.folder / f"{name}.exit").read_text())
        return None

    def wait(self, name: str, seconds: float) -> int | None:
        """Wait for a process to end; returns its exit code, or None when the time is over."""
        until = time.monotonic() + seconds
        while (code := self.exit_code(name)) is None and time.monotonic() < until:
            time.sleep(0.05)
        return code

    def log(self, name: str) -> str:
        """What a process has written so far."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        """End every process and remove the folder."""
        with contextlib.suppress(OSError):  # the guard itself was killed
            self._guard.stdin.close()
        self._guard.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def guard(folder: Path) -> None:
    """The guard's side: start what standard input orders, until it ends; then kill everything and remove the folder."""
    if sys.platform == "linux":  # elsewhere Flower's own processes watch their parents
        ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1, 0, 0, 0)
    started = [_start(folder, **json.loads(line)) for line in sys.stdin]
    for process, _ in started:
        process.kill()
    while children := _children():
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(child, 9)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)  # never to wait: killing one process makes its children ours, alive
        time.sleep(0.01)
    for _, watcher in started:
        watcher.join()
    shutil.rmtree(folder, ignore_errors=True)


def _start(
    folder: Path, name: str, command: list[str], environment: dict[str, str]
) -> tuple[subprocess.Popen, threading.Thread]:
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )

    def note_its_end() -> None:
        code = process.wait()
        (folder / f"{name}.exit").write_text(str(code))

    watcher = threading.Thread(target=note_its_end)
    watcher.start()
    return process, watcher


def _children() -> list[int]:
    """Own and adopted child processes, the dead ones that nobody has waited for included."""
    return [int(child) for path in Path("/proc/self/task").glob("*/children") for child in path.read_text().split()]


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
