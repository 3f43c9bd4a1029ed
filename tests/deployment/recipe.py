"""The commands of docs/federate.md, and the machines that they run on: here folders of one machine."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from fedlib.config import ROOT
from fedlib.data.dataset import PreparedDataset
from fedlib.study import experiment
from fedlib.training.run_store import Run, RunStore
from tests.helpers import PATIENCE, outcome, started, until

DOCUMENT = ROOT / "docs" / "federate.md"
BLOCK = re.compile(r"^```sh\n# ([^\n]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
START = "Everywhere: environment"


def blocks() -> dict[str, str]:
    """Commands of each block of the document, by its title, the comment in its first line."""
    return dict(BLOCK.findall(DOCUMENT.read_text()))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@dataclass
class Started:
    """A command that stays in the foreground, and what it has written so far."""

    process: subprocess.Popen
    log: Path

    def words(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, words: str, times: int = 1) -> None:
        """Wait until the command has written these words, so many times. Fails with all it wrote when it ends before."""
        until(lambda: self.words().count(words) >= times or self.process.poll() is not None, f"no {words!r}: {self.words()}")
        assert self.words().count(words) >= times, self.words()

    def signal(self, number: int) -> None:
        """Send a signal to the command and all that it started, as a terminal does, and wait for its end."""
        if self.process.poll() is None:
            below = psutil.Process(self.process.pid).children(recursive=True)
            os.killpg(self.process.pid, number)
            self.process.wait(PATIENCE)
            psutil.wait_procs(below, PATIENCE)  # what is in a session of its own sees that its parent is gone


class Machine:
    """A party of the federation: a home folder, in which blocks of the document run with some words replaced."""

    def __init__(self, home: Path, words: dict[str, str], start: str = START, threads: int | None = None):
        home.mkdir(parents=True)
        self.threads = threads or torch.get_num_threads()
        (home / "fedlib").symlink_to(ROOT)
        self.home, self.words, self.start_block = home, words, start
        self.started: list[Started] = []

    @property
    def folder(self) -> Path:
        return self.home / "study"

    def run(self, title: str, words: dict[str, str] | None = None) -> str:
        """Run a block to its end; returns what it wrote. Fails when a command fails."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": 2 * PATIENCE}
        done = subprocess.run(self._command(title, words), env=self._environment(), cwd=self.home, **options)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start(self, title: str, words: dict[str, str] | None = None) -> Started:
        """Start a block whose command stays in the foreground."""
        log = self.home / f"{len(self.started)}.log"
        with log.open("wb") as output:
            options = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "start_new_session": True}
            process = started(self._command(title, words), output, env=self._environment(), cwd=self.home, **options)
        self.started.append(Started(process, log))
        return self.started[-1]

    def close(self) -> None:
        """End what still runs. Fails, after it has killed it, when anything is left of it after a minute."""
        for one in self.started:
            one.signal(signal.SIGKILL)
        try:
            until(lambda: not self._processes(), f"left: {self._processes()}", 60)
        finally:
            for left in self._processes():
                left.kill()

    def _processes(self) -> list[psutil.Process]:
        found = psutil.process_iter(["environ"])  # None where the process is another user's or has ended
        return [one for one in found if (one.info["environ"] or {}).get("HOME") == str(self.home)]

    def _command(self, title: str, words: dict[str, str] | None) -> list[str]:
        text = (blocks()[self.start_block] + blocks()[title]) if self.start_block else blocks()[title]
        for old, new in (self.words | (words or {})).items():
            text = text.replace(old, new)
        return ["bash", "-euc", text]

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {"HOME": str(self.home), "PATH": path, "OMP_NUM_THREADS": str(self.threads)}
        return os.environ | own | {"NO_PROXY": "127.0.0.1"}


def sizes(rounds: int, **more: object) -> dict[str, str]:
    """Replace the document's run by a tiny one, with more settings."""
    settings = {"profile": "smoke", "rounds": rounds, "batch-size": 8, "width": 16, **more}
    return {"rounds=15": " ".join(f"{name}={json.dumps(value, default=str)}" for name, value in settings.items())}


def the_run(out: Path) -> Run:
    """The only run of a store."""
    (run,) = RunStore(out).all()
    return run


def check_same_bits(run: Run, data: PreparedDataset, folder: Path) -> None:
    """Fail unless the same run in this process ends with the same row of results, weights included."""
    assert outcome(run) == outcome(experiment.run(run.config, data, RunStore(folder)))


class Federation:
    """A server and two hospitals, on folders of this machine, as the document sets them up."""

    def __init__(self, folder: Path, data: Path):
        port = free_port()
        address = {"fl.example.org:8000": f"127.0.0.1:{port}", "127.0.0.1:8000": f"127.0.0.1:{port}"}
        self.words = address | {"--host 0.0.0.0 --port 8000": f"--host 127.0.0.1 --port {port}", "/data/heart": str(data)}
        self.out = folder / "runs"
        self.words |= {"/data/runs": str(self.out)}
        self.server = Machine(folder / "server", self.words)
        self.hospitals = [self._hospital(folder, client, letter) for client, letter in enumerate("ab")]
        self.nodes: list[Started] = []

    def _hospital(self, folder: Path, client: int, letter: str) -> Machine:
        home = folder / f"hospital_{letter}"
        own = {"hospital_a": home.name, "partition-id=0": f"partition-id={client}", "/data/fedlib": str(home / "state")}
        threads = torch.get_num_threads()  # of which in process each of two clients has its share, or both in turn all
        words = self.words | own | {" --node-config": f" --port {free_port()} --node-config"}
        return Machine(home, words, threads=threads // min(threads, 2))

    def set_up(self) -> None:
        """Steps 1 to 5 of the document."""
        self.server.run("Server: certificates")
        self.start_superlink()
        self.server.run("Server: connection")
        for hospital in self.hospitals:
            hospital.run("Hospital: key")
            shutil.copy(self.server.folder / "ca.crt", hospital.folder)
            shutil.copy(hospital.folder / f"{hospital.home.name}.pub", self.server.folder)
            self.server.run("Server: admission, once per hospital", {"hospital_a": hospital.home.name})
        self.nodes = [self.start_node(hospital) for hospital in self.hospitals]

    def start_superlink(self) -> None:
        self.superlink = self.server.start("Server: SuperLink (stays in the foreground)")
        self.superlink.wait_for("Uvicorn running")

    def start_node(self, hospital: Machine) -> Started:
        node = hospital.start("Hospital: node (stays in the foreground)")
        node.wait_for("SuperNode ID")
        return node

    def listed(self) -> str:
        """The SuperLink's list of nodes, as JSON: one that it missed for long enough is "offline", and let in again."""
        return self.server.run("Server: list", {"flwr list study": "flwr supernode list study --format json"})

    def close(self) -> None:
        """End everything."""
        for machine in (*self.hospitals, self.server):
            machine.close()
