"""The server's half of this project as a Flower app; the clients' half is `client.client_app`.

`server_app`: `flwr run . FEDERATION --run-config '...'`, on any federation, between hospitals for example; its keys are in
`[tool.flwr.app.config]` of pyproject.toml. `engine_app`: the engine `deployment`, which hands over a run that is begun.
"""

import json
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from filelock import Timeout
from flwr.app import Context, Error, Message
from flwr.serverapp import Grid, ServerApp

from fedlib import tasks
from fedlib.config import RunConfig, StudyConfig, UserError
from fedlib.data.dataset import PreparedSet, open_prepared
from fedlib.data.files import write_atomically
from fedlib.federated.server import FederationError, serve
from fedlib.training import execution
from fedlib.training.run_store import RunRecord, RunStore

FIELDS = {"n_clients": "client_counts", "partition": "partitions"}
"""Keys that go by another name in a study, which can hold several values of them."""

POLL_SECONDS = 0.5
"""Between two looks for answers (*chosen*)."""

FOLLOW = "`flwr list` shows its number, `flwr log NUMBER` follows it, `flwr stop NUMBER` ends it"

server_app = ServerApp()
engine_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, score and store one federated run, as `python -m fedlib study` does; a run that is done is read."""
    logging.getLogger("flwr").addFilter(_in_one_line)
    config, data, store = asked_for(context.run_config)

    def train(config: RunConfig, data: PreparedSet, record: RunRecord) -> None:
        serve(Answers(grid), config, data.folder, record.folder)

    try:
        run = execution.execute(config, data, store, train, wait=False)
    except Timeout:
        raise UserError(f"{config.run_id}: already running. {FOLLOW}") from None
    store.write_results()
    scores = ", ".join(f"{name} {run.result[name]:.3f}" for name in tasks.get(config.task).PRIMARY)
    print(f"done: {scores}; {run.folder}")


@engine_app.main()
def serve_engine(grid: Grid, context: Context) -> None:
    """Serve the run of the engine `deployment`, and leave a word on how it ended."""
    told, outcome = context.run_config, ["", ""]
    torch.set_num_threads(int(told["threads"]))
    try:
        config = RunConfig.model_validate_json(str(told["run"]))
        serve(Answers(grid), config, Path(str(told["data-dir"])), Path(str(told["run-dir"])))
    except Exception as error:
        outcome = [type(error).__name__, str(error)]
        raise
    finally:
        write_atomically(Path(str(told["outcome"])), json.dumps(outcome))


class Answers:
    """Stands for Flower's grid over the network: answers as they come, each in the name of its node.

    Flower's own `send_and_receive` gives them when the last is there, which is late to stop a round that has failed, and in
    the SuperLink's name where a node is gone (a minute after its last heartbeat).
    """

    def __init__(self, grid: Grid):
        self.grid = grid

    def get_node_ids(self) -> list[int]:
        """Ids of the nodes that are connected."""
        return list(self.grid.get_node_ids())

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send the messages, and give the answers that come within `timeout` seconds."""
        sent, until = list(messages), time.monotonic() + (timeout or float("inf"))
        waiting = dict(zip(self.grid.push_messages(sent), sent, strict=True))
        if None in waiting:
            yield Message(Error(0, "the SuperLink did not take its message"), reply_to=waiting.pop(None))
        while waiting and time.monotonic() < until:
            for reply in self.grid.pull_messages(waiting):
                asked = waiting.pop(reply.metadata.reply_to_message_id)
                yield Message(reply.error, reply_to=asked) if reply.has_error() else reply
            time.sleep(POLL_SECONDS)


def asked_for(run_config: dict[str, str | int | float | bool]) -> tuple[RunConfig, PreparedSet, RunStore]:
    """The one federated run that a run-config describes; empty values are the profile's.

    Raises UserError, naming the key, on a wrong value, a folder that is not absolute, or more than one run.
    """
    given = {key.replace("-", "_"): value for key, value in run_config.items() if value != ""}
    for folder in ("data_dir", "out_dir"):
        if not Path(given.get(folder, "")).is_absolute():
            name = folder.replace("_", "-")
            raise UserError(f"{name} = {given.get(folder, '')!r}: expected an absolute path on the SuperLink's machine")
    study = StudyConfig.make(engine="deployment", **{FIELDS.get(name, name): value for name, value in given.items()})
    data = open_prepared(study.prepared_dir, study.task)
    config, *more = study.runs(data.fingerprint, ("federated",))
    if more:
        raise UserError(f"{1 + len(more)} runs: expected one n-clients, one partition and one seed")
    return config, data, RunStore(study.out_dir)


def _in_one_line(record: logging.LogRecord) -> bool:
    """Logging filter: what we refuse is one line, here too; Flower would log it with a traceback."""
    if record.exc_info and isinstance(record.exc_info[1], UserError | FederationError):
        record.msg, record.args, record.exc_info = "%s", (str(record.exc_info[1]),), None
    return True
