"""Where client code runs: the same ClientApp and the same server under every engine, with the same bits.

`inprocess`: a Flower Grid that calls the ClientApp in threads of this process. `ray`: Flower's simulation runtime, clients
in processes, on this machine or on the Ray cluster that RAY_ADDRESS names. `deployment`: Flower's SuperLink and SuperNodes,
a process each, over the network (`deployment.py`). How many clients train at a time, and with how many threads, is the same.
"""

import ctypes
import importlib.util
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity  # private: Flower sets it in its own runtimes; kept in this file

from fedlib.config import RunConfig, UserError
from fedlib.federated.client_app import RAISED, client_app
from fedlib.federated.server import FederationError, serve, shares
from fedlib.training.loop import kernels

SERVER_NODE, FIRST_CLIENT_NODE = 1, 2


class Interrupted(BaseException):
    """Raised in the thread of a client whose answer nobody waits for. Not an Exception: those become a client's answer."""


class InProcessGrid(Grid):
    """Delivers messages by calling the ClientApp, with no copy and no other process, `at_a_time` clients in a thread each.

    The end of its context stops the clients that are still at work.
    """

    def __init__(self, app: ClientApp, n_clients: int, at_a_time: int = 1):
        self.pool, self.at_a_time = ThreadPoolExecutor(at_a_time, "client"), at_a_time
        self.at_work: set[int] = set()
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

    def __enter__(self) -> "InProcessGrid":
        return self

    def __exit__(self, *_: object) -> None:
        for thread in list(self.at_work):
            self._interrupt(thread)
        self.pool.shutdown(cancel_futures=True)

    def get_node_ids(self) -> list[int]:
        """Ids of the clients' nodes."""
        return list(self.contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Call the ClientApp for every message, and give the answers as they come: after `timeout` seconds an error.

        A client begins when the answer before is taken: after a failure that stops the round none begins in vain.
        """
        in_order = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        turns = (self.pool.submit(self._turn, message, timeout) for message in in_order)  # begins when it is taken from here
        running = set(islice(turns, self.at_a_time))
        while running:
            done, running = wait(running, 1.0, FIRST_COMPLETED)  # ray.cancel interrupts this thread and does not wake it
            yield from (turn.result() for turn in done)
            running |= set(islice(turns, len(done)))

    def _turn(self, message: Message, timeout: float | None) -> Message:
        thread = threading.get_ident()
        bell = threading.Timer(timeout, self._interrupt, [thread])
        self.at_work.add(thread)
        bell.start()
        try:
            return self.app(message, self.contexts[message.metadata.dst_node_id])
        except Interrupted:
            return Message(Error(RAISED, f"no answer within {timeout:g} s"), reply_to=message)
        finally:
            bell.cancel()
            self.at_work.discard(thread)

    def _interrupt(self, thread: int) -> None:
        """Raise Interrupted in a client's thread, as soon as it is back from torch or NumPy."""
        if thread in self.at_work:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Interrupted))

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


def run_federation(config: RunConfig, data_dir: Path, run_dir: Path) -> None:
    """Run a federation of `config.n_clients` clients under `config.engine`; the outcome is in `run_dir`."""
    ENGINES[config.engine](config, data_dir, run_dir)


def _inprocess(config: RunConfig, data_dir: Path, run_dir: Path) -> None:
    """The kernels are chosen for all threads at once: here, and not by each client for itself alone."""
    with kernels(config), InProcessGrid(client_app, config.n_clients, shares(config)[0]) as grid:
        serve(grid, config, data_dir, run_dir)


def _ray(config: RunConfig, data_dir: Path, run_dir: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        raise UserError("engine = 'ray': Ray is not installed; expected: pip install -e '.[ray]'")
    from flwr.simulation import run_simulation  # here: it takes seconds to import, and Ray more

    server_app, threads = ServerApp(), torch.get_num_threads()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        torch.set_num_threads(threads)  # Flower calls it in a thread of its own
        serve(grid, config, data_dir, run_dir)

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as session:
        connection = {} if "RAY_ADDRESS" in os.environ else {"_temp_dir": session}
        resources = {"num_cpus": shares(config)[1], "num_gpus": 1.0 if torch.cuda.is_available() else 0.0}
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
    from fedlib.federated.deployment import run_deployment  # here: only this engine needs it

    run_deployment(config, data_dir, run_dir)


ENGINES = {"inprocess": _inprocess, "ray": _ray, "deployment": _deployment}
