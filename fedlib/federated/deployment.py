"""Flower's deployment runtime on this machine: a SuperLink and SuperNodes over TLS, each node known by its key.

`local_federation` starts one and takes it down; `run_deployment` is the engine `deployment`. The same apps run on a
federation between hospitals (README). Here everything lives in one temporary folder and below one guard process
(`guard.py`), so that nothing is left behind, whatever happens.
"""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch

from fedlib.config import ROOT, RunConfig, UserError
from fedlib.data.dataset import open_prepared
from fedlib.data.partition import clients_of
from fedlib.federated.certificates import AUTHORITY, HOST, SERVER, SERVER_KEY, write_certificates, write_node_key
from fedlib.federated.client_app import client_name
from fedlib.federated.guard import Processes
from fedlib.federated.server import FederationError

COMMANDS = ("flwr", "flower-superlink", "flower-supernode", "flower-superexec", "flwr-serverapp", "flwr-clientapp")
START_SECONDS = 120
"""Longest wait for a SuperLink or a SuperNode to be there (*chosen*; 2 to 8 s are usual)."""
SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "NO_PROXY": HOST,
    "no_proxy": HOST,
}
CONNECTION = "local"
"""The federation's name in its config.toml: `FLWR_HOME=... flwr run . local`."""
SUPERLINK, RUN = "superlink", "run"
NODE_REFUSED = "[code: 2004]"
"""Flower's code for a node that the SuperLink does not let in."""

APP = """\
[project]
name = "fedlib"
version = "0"
[tool.flwr.app]
publisher = "fedlib"
[tool.flwr.app.components]
clientapp = "fedlib.federated.client_app:client_app"
serverapp = "fedlib.federated.server_app:engine_app"
[tool.flwr.app.config]
"""
"""The engine's app is this file alone: its code is the one imported here, to the last uncommitted line."""


@dataclass
class LocalFederation:
    """A SuperLink and SuperNodes on this machine, with the commands that start and use them."""

    processes: Processes
    port: int
    certificates: Path
    n_clients: int
    nodes: dict[int, str] = field(default_factory=dict)
    """Client to the name of its SuperNode's process."""

    @property
    def flwr_home(self) -> Path:
        """FLWR_HOME of `flwr` commands; its config.toml knows this federation as `local`."""
        return self.processes.folder / "flwr"

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it answers. Raises UserError when it does not, or not with this certificate."""
        ca, certificate, key = (str(self.certificates / name) for name in (AUTHORITY, SERVER, SERVER_KEY))
        tls = ["--ssl-ca-certfile", ca, "--ssl-certfile", certificate, "--ssl-keyfile", key, "--enable-supernode-auth"]
        offline = "--disable-runtime-dependency-installation"
        self._start(SUPERLINK, ["flower-superlink", "--host", HOST, "--port", str(self.port), *tls, offline])
        self._wait("the SuperLink", SUPERLINK, self._answers)
        self.flwr_home.mkdir()
        connection = _toml({"address": f"{HOST}:{self.port}", "root-certificates": ca})
        (self.flwr_home / "config.toml").write_text(f"[superlink.{CONNECTION}]\n{connection}")

    def start_nodes(self, ports: list[int]) -> None:
        """Register a key for each client, start its SuperNode, and wait until all are connected."""
        keys = [self.processes.folder / f"client{client}.key" for client in range(self.n_clients)]
        registrations = {f"register{client}": write_node_key(key) for client, key in enumerate(keys)}
        for name, public_key in registrations.items():
            self._start(name, ["flwr", "supernode", "register", str(public_key), CONNECTION], self.flwr_home.name)
        for name in registrations:
            if self.processes.wait(name, START_SECONDS) != 0:
                raise UserError(f"the SuperLink did not take a node's key: {last_words(self.processes.log(name))}")
        for client, (key, port) in enumerate(zip(keys, ports, strict=True)):
            self.start_node(client, key, port)
        for client in self.nodes:
            self.wait_for_node(client)

    def start_node(self, client: int, key: Path, port: int) -> None:
        """Start the SuperNode of one client, with its private key, on a free port."""
        self.nodes[client] = name = f"node{client}"
        identity = ["--root-certificates", str(self.certificates / AUTHORITY), "--auth-supernode-private-key", str(key)]
        share = f"partition-id={client} num-partitions={self.n_clients}"
        to = ["--superlink", f"{HOST}:{self.port}", "--port", str(port), "--node-config", share]
        self._start(name, ["flower-supernode", *to, *identity])

    def wait_for_node(self, client: int) -> None:
        """Wait until a client's SuperNode is connected. Raises UserError with its last words when it ends before."""
        name = self.nodes[client]
        self._wait(f"{client_name(client)}: its SuperNode", name, lambda: "SuperNode ID" in self.processes.log(name))

    def submit(self, run_config: dict[str, str | int]) -> None:
        """`flwr run` for one federated run; the process `run` ends when the run has ended."""
        app = self.processes.folder / "app"
        app.mkdir()
        (app / "pyproject.toml").write_text(APP + _toml(run_config))
        self._start(RUN, ["flwr", "run", str(app), CONNECTION, "--stream"], self.flwr_home.name)

    def lost(self) -> list[str]:
        """What became of SuperNodes, and of the SuperLink, that ought to be running."""
        watched = {name: f"{client_name(client)}: its SuperNode" for client, name in self.nodes.items()}
        return [f"{who} {end}" for name, who in (watched | {SUPERLINK: "the SuperLink"}).items() if (end := self._end(name))]

    def environment(self, home: str) -> dict[str, str]:
        """A process's environment. Each has a FLWR_HOME of its own: two that unpack one app in one folder collide."""
        for folder in (home, "tmp"):
            (self.processes.folder / folder).mkdir(exist_ok=True)
        code = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        places = {"FLWR_HOME": str(self.processes.folder / home), "TMPDIR": str(self.processes.folder / "tmp")}
        return os.environ | SETTINGS | {"PATH": _search_path(), "PYTHONPATH": code} | places

    def _start(self, name: str, command: list[str], home: str = "") -> None:
        program = shutil.which(command[0], path=_search_path())
        self.processes.start(name, [str(program), *command[1:]], self.environment(home or f"{name}-home"))

    def _wait(self, who: str, name: str, is_there: Callable[[], bool]) -> None:
        until = time.monotonic() + START_SECONDS
        while not is_there():
            if end := self._end(name):
                raise UserError(f"{who} {end}")
            if time.monotonic() > until:
                raise UserError(f"{who} was not there after {START_SECONDS} s: {last_words(self.processes.log(name))}")
            time.sleep(0.05)

    def _end(self, name: str) -> str:
        """How a process ended; empty while it runs."""
        code = self.processes.exit_code(name)
        if code is None:
            return ""
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        words = last_words(self.processes.log(name))
        if NODE_REFUSED in words:  # Flower tells the node nothing more
            words = "the SuperLink refused it; expected a key that is registered there, and no second node with the same"
        return f"ended: {words}"

    def _answers(self) -> bool:
        try:
            context = ssl.create_default_context(cafile=self.certificates / AUTHORITY)
            with socket.create_connection((HOST, self.port), 5) as plain, context.wrap_socket(plain, server_hostname=HOST):
                return True
        except ssl.SSLError as error:
            why = getattr(error, "verify_message", error)
            expected = f"a certificate for {HOST}, signed by {AUTHORITY}, valid today"
            raise UserError(f"{self.certificates / SERVER}: {why}; expected {expected}") from None
        except OSError:
            return False


@contextmanager
def local_federation(n_clients: int, port: int = 0, certificates: Path | None = None) -> Iterator[LocalFederation]:
    """A SuperLink and `n_clients` connected SuperNodes on loopback, over TLS, each node known by its key; gone at the end.

    `port`: the SuperLink's; 0: a free one. `certificates`: a folder with ca.crt, server.crt and server.key; None: new ones.
    Gone means gone: whatever ends this process, even kill -9, every process and the temporary folder go with it.
    Raises UserError, in one line, when a command is missing, the port is in use, or anything does not start.
    """
    if missing := [command for command in COMMANDS if not shutil.which(command, path=_search_path())]:
        raise UserError(f"{', '.join(missing)}: not found beside {sys.executable} or on PATH; expected Flower's commands")
    with ExitStack() as stack:
        (own, *others) = [stack.enter_context(_reserved(wanted)) for wanted in (port, *[0] * n_clients)]
        processes = stack.enter_context(Processes())
        if certificates is None:
            write_certificates(processes.folder)
        federation = LocalFederation(processes, own, certificates or processes.folder, n_clients)
        federation.start_superlink()
        federation.start_nodes(others)
        yield federation


def run_deployment(config: RunConfig, data_dir: Path, run_dir: Path) -> None:
    """Run one federated run on a local federation of `config.n_clients` SuperNodes; the outcome is in `run_dir`.

    Raises FederationError when the ServerApp failed, with its own reason, and as soon as a SuperNode is lost that the quorum
    cannot spare; UserError when the federation cannot start.
    """
    clients_of(config, open_prepared(data_dir, config.task))  # what cannot be dealt fails before anything starts
    with local_federation(config.n_clients) as federation:
        outcome = federation.processes.folder / "outcome.json"
        places = {"data-dir": str(data_dir), "run-dir": str(run_dir), "outcome": str(outcome)}
        federation.submit({"run": config.model_dump_json(), "threads": torch.get_num_threads()} | places)
        while federation.processes.exit_code(RUN) is None:
            if (lost := federation.lost()) and config.quorum == 1:
                raise FederationError(f"round {_rounds_done(run_dir) + 1}: {'; '.join(lost)}")
            time.sleep(0.1)
        if not outcome.exists():
            raise FederationError(f"the ServerApp did not end well: {last_words(federation.processes.log(RUN))}")
        error, message = json.loads(outcome.read_text())
    if error:
        raise {"UserError": UserError}.get(error, FederationError)(message)


def last_words(log: str) -> str:
    """Why a Flower command ended: what it says after its exit code, else its last error, else its last line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", log)
    if after_code := re.search(r"Exit Code: \d+\n(.+?)(\n\s*\n|$)", text, re.DOTALL):
        return " ".join(after_code[1].split())
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)]
    return (errors or lines or ["it said nothing"])[-1]


@contextmanager
def _reserved(port: int) -> Iterator[int]:
    """A port that nobody else is given while it is held; a server that sets SO_REUSEADDR, as Flower's do, may use it."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((HOST, port))
        except OSError as error:
            raise UserError(f"port = {port}: {error.strerror}; expected a free port") from None
        yield held.getsockname()[1]


def _search_path() -> str:
    """Where commands are looked for: beside this Python first, as in an environment that was not activated."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _rounds_done(run_dir: Path) -> int:
    table = run_dir / "rounds.csv"
    return len(pd.read_csv(table)) if table.exists() else 0


def _toml(values: dict[str, str | int]) -> str:
    """Lines of TOML; what JSON makes of text and integers is TOML too."""
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())
