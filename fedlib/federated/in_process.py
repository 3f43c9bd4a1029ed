"""Run a federation in this process: Flower's strategies on a Grid that calls the ClientApp in threads."""

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice

import pandas as pd
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity  # private; Flower's own runtimes set it, and messages need it

from fedlib.config import RunConfig
from fedlib.data.dataset import PreparedDataset
from fedlib.federated.client_app import client_app, stop_training
from fedlib.federated.server_app import ask_statistics, serve
from fedlib.training.loop import cores, device
from fedlib.training.run_store import Run

SERVER_NODE, FIRST_CLIENT_NODE = 1, 2
log = logging.getLogger("flwr")


def train_federated(config: RunConfig, data: PreparedDataset, run: Run) -> None:
    """Run a federation of `config.n_clients` clients; the outcome is in the run's folder.

    Raises what `serve` raises.
    """
    import torch._dynamo  # noqa: F401  torch's optimizers import it, and parse; here before there are threads (client_app.turns)

    node = {"data-dir": str(data.folder), "state-dir": str(run.folder.parent.parent), "full-errors": True}
    at_a_time, threads = parallel_clients(config)
    with InProcessGrid(client_app, config.n_clients, node, at_a_time, threads) as grid:
        serve(grid, config, data, run)


def site_statistics(config: RunConfig, data: PreparedDataset) -> pd.DataFrame:
    """Return what each client of a run tells of its training cases (`describe_site`): a row a client. Nothing is trained.

    Raises what `ask_statistics` raises.
    """
    node = {"data-dir": str(data.folder), "state-dir": str(data.folder), "full-errors": True}  # no state is kept
    with InProcessGrid(client_app, config.n_clients, node) as grid:
        return ask_statistics(grid, config, data)


def parallel_clients(config: RunConfig) -> tuple[int, int]:
    """Return how many clients train at a time, and the threads of each, out of those that this process has.

    One more client at a time uses nearly a whole core, one more thread of a small model far less. A GPU serves one client
    at a time; so does NumPy's global generator, which draws the noise of local privacy.
    """
    alone = device().type == "cuda" or config.privacy == "local"
    at_a_time = 1 if alone else min(cores(), config.clients_per_round(config.n_clients))
    return at_a_time, max(1, torch.get_num_threads() // at_a_time)


class InProcessGrid(Grid):
    """Deliver messages by calling the ClientApp, `at_a_time` clients in a thread each.

    Within its context Flower logs errors only: a progress bar and the run store show the rest. Leaving it stops the clients
    that are training, at their next step.
    """

    def __init__(self, app: ClientApp, n_clients: int, node: dict | None = None, at_a_time: int = 1, threads: int = 1):
        self.app, self.at_a_time = app, at_a_time
        self.pool = ThreadPoolExecutor(at_a_time, "client", initializer=torch.set_num_threads, initargs=(threads,))
        self.contexts = {}
        for client in range(n_clients):
            node_id, place = FIRST_CLIENT_NODE + client, {"partition-id": client, "num-partitions": n_clients}
            self.contexts[node_id] = Context(1, node_id, place | (node or {}), RecordDict(), {})
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SERVER_NODE

    def __enter__(self) -> "InProcessGrid":
        stop_training.clear()
        self.log_level = log.level
        log.setLevel(logging.ERROR)
        return self

    def __exit__(self, *_: object) -> None:
        stop_training.set()
        self.pool.shutdown(cancel_futures=True)
        log.setLevel(self.log_level)

    def get_node_ids(self) -> list[int]:
        """Return the ids of the clients' nodes."""
        return list(self.contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Call the ClientApp for every message; yield the replies as they come. There is no timeout in process.

        A client begins when an earlier reply has been taken: none begins in vain after a failure that stops the round.
        """
        in_order = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        futures = (self.pool.submit(self.app, message, self.contexts[message.metadata.dst_node_id]) for message in in_order)
        running = set(islice(futures, self.at_a_time))
        while running:
            done, running = wait(running, 1.0, FIRST_COMPLETED)  # ray.cancel interrupts this thread and does not wake it
            yield from (future.result() for future in done)
            running |= set(islice(futures, len(done)))

    def _unsupported(self, *_: object, **__: object):
        raise NotImplementedError("the in-process grid has send_and_receive only")

    set_run = create_message = push_messages = pull_messages = _unsupported
    run = property(_unsupported)
