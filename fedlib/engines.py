"""Where client code runs: the same ClientApp and the same server under every engine, with the same bits.

`inprocess`: a Flower Grid that calls the ClientApp in this process, one client at a time. `ray`: Flower's simulation
runtime, clients in parallel, on this machine or on the Ray cluster that RAY_ADDRESS names. `deployment`: Flower's SuperLink
and SuperNodes, a process each, over the network (`deployment.py`).
"""

import importlib.util
import os
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity  # private: Flower sets it in its own runtimes; kept in this file

from fedlib.client import client_app
from fedlib.config import RunConfig, UserError
from fedlib.federation import FederationError, serve

SERVER_NODE, FIRST_CLIENT_NODE = 1, 2


class InProcessGrid(Grid):
    """Delivers messages by calling the ClientApp, in the order of the clients, with no copy and no other process."""

    def __init__(self, app: ClientApp, n_clients: int):
        self.app = app
        self.contexts = {
            FIRST_CLIENT_NODE + client: Context(
                run_id=1,
                node_id=FIRST_CLIENT_NODE + client,
                node_config={"partition-id": client, "num-partitions": n_clients},
                state=RecordDict(),
                run_config={},
            )
            for client in range(n_clients)
        }
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SERVER_NODE

    def get_node_ids(self) -> list[int]:
        """Ids of the clients' nodes."""
        return list(self.contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Call the ClientApp for every message, and give its answer.

        One by one, as they are asked for: after a failure that stops the round no other client trains in vain.
        """
        for message in sorted(messages, key=lambda message: message.metadata.dst_node_id):
            with _alarm(timeout):
                reply = self.app(message, self.contexts[message.metadata.dst_node_id])
            yield reply

    # What follows belongs to a runtime with a network; no strategy calls it here.
    run = property(lambda self: self._unavailable())

    def set_run(self, run) -> None:
        self._unavailable()

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        self._unavailable()

    def push_messages(self, messages) -> list[str]:
        self._unavailable()

    def pull_messages(self, message_ids) -> list[Message]:
        self._unavailable()

    def _unavailable(self):
        raise RuntimeError("the in-process grid only sends and receives in one call (send_and_receive)")


@contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    """Raise TimeoutError in what takes longer. Only the main thread can be interrupted so; elsewhere nothing happens."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise TimeoutError(f"no answer within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_federation(config: RunConfig, data_dir: Path, run_dir: Path) -> None:
    """Run a federation of `config.n_clients` clients under `config.engine`; the outcome is in `run_dir`."""
    ENGINES[config.engine](config, data_dir, run_dir)


def _inprocess(config: RunConfig, data_dir: Path, run_dir: Path) -> None:
    serve(InProcessGrid(client_app, config.n_clients), config, data_dir, run_dir)


def _ray(config: RunConfig, data_dir: Path, run_dir: Path) -> None:
    """Every client at a time gets as many cores as this process has threads: equal threads, equal bits."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("engine = 'ray': Ray is not installed; expected: pip install -e '.[ray]'")
    from flwr.simulation import run_simulation  # here: it takes seconds to import, and Ray more

    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, config, data_dir, run_dir)

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as session:
        connection = {} if "RAY_ADDRESS" in os.environ else {"_temp_dir": session}
        resources = {"num_cpus": torch.get_num_threads(), "num_gpus": 1.0 if torch.cuda.is_available() else 0.0}
        try:
            run_simulation(
                server_app,
                client_app,
                config.n_clients,
                backend_config={"init_args": connection, "client_resources": resources},
            )
        except RuntimeError as error:
            if isinstance(error, FederationError):
                raise
            raise UserError(f"engine = 'ray': {_first_cause(error)}") from error  # Flower says that something went wrong


def _first_cause(error: BaseException) -> str:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return " ".join(f"{type(error).__name__}: {error}".split())


def _deployment(config: RunConfig, data_dir: Path, run_dir: Path) -> None:
    from fedlib.deployment import run_deployment  # here: only this engine needs it

    run_deployment(config, data_dir, run_dir)


ENGINES = {"inprocess": _inprocess, "ray": _ray, "deployment": _deployment}
