"""A grid whose replies are known beforehand."""

from types import SimpleNamespace

from flwr.app import Message, MetricRecord, RecordDict

from fedlib.federated.client_app import client_app
from fedlib.federated.in_process import FIRST_CLIENT_NODE, InProcessGrid


def canned(replies):
    """Return a grid that answers whatever is asked by these replies."""
    nodes = [FIRST_CLIENT_NODE + client for client in range(len(replies))]
    return SimpleNamespace(get_node_ids=lambda: nodes, send_and_receive=lambda messages, timeout: replies)


def asked(client):
    """Return a message to a client, for a reply to it."""
    InProcessGrid(client_app, 0)  # sets who the server is, which a message needs
    return Message(RecordDict(), dst_node_id=FIRST_CLIENT_NODE + client, message_type="train")


def identities(n_clients):
    """Return the replies of nodes that say which client they are."""
    contents = [RecordDict({"metrics": MetricRecord({"client": client})}) for client in range(n_clients)]
    return [Message(content, reply_to=asked(client)) for client, content in enumerate(contents)]
