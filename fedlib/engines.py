"""Where client code runs. `inprocess`: a Flower Grid that calls the ClientApp in this process, one client at a time."""

from collections.abc import Iterable
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity  # private: Flower sets it in its own runtimes; kept in this file

from fedlib.config import RunConfig
from fedlib.federation import FederationError, client_app, server_app

SERVER_NODE, FIRST_CLIENT_NODE = 1, 2


class InProcessGrid(Grid):
    """Delivers messages by calling the ClientApp, in the order of the clients, with no copy and no other process."""

    def __init__(self, app: ClientApp, contexts: list[Context]):
        self.app = app
        self.contexts = {context.node_id: context for context in contexts}
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SERVER_NODE

    def get_node_ids(self) -> list[int]:
        """Ids of the clients' nodes."""
        return list(self.contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Call the ClientApp for every message. Raises FederationError naming the client, the round and the cause."""
        return [self._deliver(message) for message in sorted(messages, key=lambda message: message.metadata.dst_node_id)]

    def _deliver(self, message: Message) -> Message:
        context = self.contexts[message.metadata.dst_node_id]
        try:
            return self.app(message, context)
        except Exception as error:
            round_number = message.content["config"]["server-round"]
            client = context.node_config["partition-id"]
            cause = f"{type(error).__name__}: {error}"
            raise FederationError(f"client {client} failed in round {round_number}: {cause}") from error

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
