"""Where client code runs. `inprocess`: a Flower Grid that calls the ClientApp in this process, one client at a time."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity  # private: Flower sets it in its own runtimes; kept in this file

from fedlib.config import RunConfig
from fedlib.federation import client_app, client_name, server_app

SERVER_NODE, FIRST_CLIENT_NODE = 1, 2
RAISED = 2  # Flower's code for a ClientApp that raised an exception


class InProcessGrid(Grid):
    """Delivers messages by calling the ClientApp, in the order of the clients, with no copy and no other process."""

    def __init__(self, app: ClientApp, contexts: list[Context]):
        self.app = app
        self.contexts = {context.node_id: context for context in contexts}
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SERVER_NODE

    def get_node_ids(self) -> list[int]:
        """Ids of the clients' nodes."""
        return list(self.contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Call the ClientApp for every message; what it raises comes back as Flower's error, naming client and cause.

        One by one, as they are asked for: after a failure that stops the round no other client trains in vain.
        """
        return map(self._deliver, sorted(messages, key=lambda message: message.metadata.dst_node_id))

    def _deliver(self, message: Message) -> Message:
        context = self.contexts[message.metadata.dst_node_id]
        try:
            return self.app(message, context)
        except Exception as error:
            logging.getLogger(__name__).debug("a client failed", exc_info=True)
            cause = f"{client_name(context.node_config['partition-id'])} failed: {type(error).__name__}: {error}"
            return Message(Error(RAISED, cause), reply_to=message)

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
    """Run the ServerApp with `config.n_clients` clients; the outcome is in `run_dir`."""
    shared = {"config": config.model_dump_json(), "data-dir": str(data_dir), "run-dir": str(run_dir)}

    def context(node_id: int, **node_config: int) -> Context:
        return Context(run_id=1, node_id=node_id, node_config=node_config, state=RecordDict(), run_config=dict(shared))

    nodes = [
        context(FIRST_CLIENT_NODE + k, **{"partition-id": k, "num-partitions": config.n_clients})
        for k in range(config.n_clients)
    ]
    server_app(InProcessGrid(client_app, nodes), context(SERVER_NODE))
