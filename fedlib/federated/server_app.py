"""The Flower ServerApp: rounds, validation and checkpoints of one federated run.

`flwr run . FEDERATION --run-config '...'` starts it on any federation, between hospitals or in Flower's simulation; its keys
are in `[tool.flwr.app.config]` of pyproject.toml. `serve` is the same for a federation in this process.
"""

import functools
import logging
import os
import time
from pathlib import Path

from filelock import Timeout
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedlib import tasks
from fedlib.config import RunConfig, StudyConfig, UserError
from fedlib.data.dataset import PreparedDataset, open_prepared
from fedlib.data.partition import clients_of
from fedlib.federated.checked_strategy import CheckedStrategy, FederationError
from fedlib.federated.client_app import shared_state
from fedlib.federated.privacy import epsilon_after
from fedlib.federated.strategies import get_server_state, load_server_state
from fedlib.training.execution import execute
from fedlib.training.loop import evaluate, initial_model
from fedlib.training.run_store import RunRecord, RunStore, State, software

STUDY_FIELDS = {"n_clients": "client_counts", "partition": "partitions"}
"""Keys with another name in a study, which can hold several values of them."""
CONNECT_SECONDS = 120.0
"""How long the server waits for the clients' nodes to connect (*chosen*)."""

FOLLOW = "`flwr list` shows its number, `flwr log NUMBER` follows it, `flwr stop NUMBER` ends it"

server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, score and store one federated run, as `python -m fedlib study` does; a run that is done is read."""
    logging.getLogger("flwr").addFilter(_in_one_line)
    config, data, store = parse_run_config(context.run_config)
    try:
        run = execute(config, data, store, functools.partial(serve, grid), wait=False)
    except Timeout:
        raise UserError(f"{config.run_id}: already running. {FOLLOW}") from None
    store.write_results()
    scores = ", ".join(f"{name} {run.result[name]:.3f}" for name in tasks.get(config.task).PRIMARY)
    print(f"done: {scores}; {run.folder}")


def parse_run_config(run_config: dict[str, str | int | float | bool]) -> tuple[RunConfig, PreparedDataset, RunStore]:
    """Return the one federated run that a run config describes; empty values are the profile's.

    Flower sends the run config to all nodes. The server's folders may instead be in its environment, as FEDLIB_DATA_DIR and
    FEDLIB_OUT_DIR. Raises UserError, naming the key, on a wrong value, a folder that is not absolute, or several runs.
    """
    given = {key.replace("-", "_"): value for key, value in run_config.items() if value != ""}
    for name in ("data_dir", "out_dir"):
        given.setdefault(name, os.environ.get(f"FEDLIB_{name.upper()}", ""))
        if not Path(given[name]).is_absolute():
            key = name.replace("_", "-")
            raise UserError(f"{key} = {given[name]!r}: expected an absolute path on the SuperLink's machine")
    study = StudyConfig.make(**{STUDY_FIELDS.get(name, name): value for name, value in given.items()})
    data = open_prepared(study.prepared_dir, study.task)
    config, *more = study.runs(data.fingerprint, ("federated",))
    if more:
        raise UserError(f"{1 + len(more)} runs: expected one n-clients, one partition and one seed")
    return config, data, RunStore(study.out_dir)


def serve(grid: Grid, config: RunConfig, data: PreparedDataset, record: RunRecord) -> None:
    """Run the federation; rounds, clients and final weights go to the record, and from its checkpoint a run resumes.

    Raises FederationError, naming client, round and cause; UserError when the prepared set is not the run's.
    """
    if data.fingerprint != config.data_fingerprint:
        found, expected = data.fingerprint[:12], config.data_fingerprint[:12]
        raise UserError(f"{data.folder}: data fingerprint {found}, expected {expected}")
    _Server(grid, config, data, record).run()


class _Server:
    """One run: the grid of its clients, its strategy, its weights and its record."""

    def __init__(self, grid: Grid, config: RunConfig, data: PreparedDataset, record: RunRecord):
        self.grid, self.config, self.data, self.record = grid, config, data, record
        self.settings = ConfigRecord({"run": config.model_dump_json()})
        self.model = initial_model(config, data)
        state, self.progress = record.load_checkpoint("global")
        nodes = map_nodes_to_clients(grid, config, self.settings)
        cases = [len(rows) for rows in clients_of(config, data)]
        self.strategy = CheckedStrategy(config, self.model, nodes, cases, self.progress.clients)
        self.weights = shared_state(config, self.model)
        if state:
            load_server_state(self.strategy.base, state)
            self.weights = {name: state[name] for name in self.weights}
            record.log_clients(self.progress.clients)
            record.log_rounds(self.progress.rounds)

    def run(self) -> None:
        """Carry out the rounds that are left, and write the final weights."""
        self.strategy.start(
            self.grid,
            ArrayRecord(self.weights),
            num_rounds=self.config.rounds - len(self.progress.rounds),
            timeout=self.config.reply_timeout,
            train_config=self.settings,
            evaluate_config=ConfigRecord(dict(self.settings)),
            evaluate_fn=self.after_round,
        )
        self.record.save_weights(self.final_weights())

    def after_round(self, server_round: int, arrays: ArrayRecord) -> None:
        """Score, log and save what a round gave. Flower calls once before the first round, with 0.

        A round's seconds are those of its messages, the clients' validation under FedBN included, not of scoring here.
        """
        if server_round > 0:
            seconds = time.perf_counter() - self.began
            self.weights, clients = arrays.to_torch_state_dict(), list(self.strategy.rows.values())
            number = len(self.progress.rounds) + 1
            traffic = {way: sum(row[way] for row in clients) for way in ("bytes_down", "bytes_up")}
            row = {"round": number, **self.scores(number), "seconds": seconds, **traffic}
            if self.config.privacy != "none":
                row["epsilon"] = epsilon_after(self.config, number)
            self.progress.rounds.append(row)
            self.progress.clients += clients
            self.record.log_clients(clients)
            self.record.log_rounds([row])
            self.record.save_checkpoint("global", self.weights | get_server_state(self.strategy.base), self.progress)
        self.began = time.perf_counter()

    def scores(self, number: int) -> dict[str, float]:
        """Score the global model on the validation split; where each client has its own, return their mean."""
        if self.config.is_personalized:
            return self.strategy.validation
        self.model.load_state_dict(self.weights)
        cases = evaluate(self.model, self.data, self.data.split("val"), self.config)
        self.record.log_validation(number, cases)
        return tasks.get(self.config.task).summarize(cases)

    def final_weights(self) -> State:
        """Return the global model or, where each client has its own, all of them, by client."""
        if not self.config.is_personalized:
            return self.weights
        messages = [self.strategy.client_message(node, self.settings, "query.local") for node in self.strategy.nodes]
        weights = {}
        for reply in query_nodes(self.grid, messages, self.config.reply_timeout):
            client = self.strategy.nodes[reply.metadata.src_node_id]
            model = self.weights | reply.content["arrays"].to_torch_state_dict()
            weights |= {f"client{client}.{name}": model[name].clone() for name in self.model.state_dict()}
        return weights


def map_nodes_to_clients(grid: Grid, config: RunConfig, settings: ConfigRecord) -> dict[int, int]:
    """Ask every node which client it is: node id -> client. Node ids are random, clients are not.

    Raises FederationError when nodes are missing after CONNECT_SECONDS, when software or data of one is not the server's, or
    when they are not the clients 0 to n_clients - 1.
    """
    until, wanted = time.monotonic() + CONNECT_SECONDS, config.n_clients
    while len(node_ids := list(grid.get_node_ids())) < wanted:
        if time.monotonic() > until:
            raise FederationError(f"{len(node_ids)} of {wanted} clients connected within {CONNECT_SECONDS:.0f} s")
        time.sleep(0.2)
    content = RecordDict({"config": settings, "software": ConfigRecord(software())})
    messages = [Message(content, dst_node_id=node, message_type="query") for node in node_ids]
    replies = query_nodes(grid, messages, config.reply_timeout)
    nodes = {reply.metadata.src_node_id: int(reply.content["metrics"]["client"]) for reply in replies}
    if sorted(nodes.values()) != list(range(wanted)):
        found = f"the connected nodes are clients {sorted(nodes.values())}"
        raise FederationError(f"{found}, expected each of 0 to {wanted - 1} once (partition-id in a node's configuration)")
    return nodes


def query_nodes(grid: Grid, messages: list[Message], timeout: float) -> list[Message]:
    """Send a query to every node and return the replies. Raises FederationError unless all of them reply."""
    replies = list(grid.send_and_receive(messages, timeout=timeout))
    faults = sorted(" ".join(reply.error.reason.split()) for reply in replies if reply.has_error())
    if faults or len(replies) < len(messages):
        missing = len(messages) - len(replies)
        faults += [f"{missing} of {len(messages)} nodes: no reply within {timeout:g} s"] * bool(missing)
        when = "before the first round" if messages[0].metadata.message_type == "query" else "after the last round"
        raise FederationError(f"{when}: {'; '.join(faults)}")
    return replies


def _in_one_line(record: logging.LogRecord) -> bool:
    """Logging filter: show a refusal in one line, where Flower would log a traceback."""
    if record.exc_info and isinstance(record.exc_info[1], UserError | FederationError):
        record.msg, record.args, record.exc_info = "%s", (str(record.exc_info[1]),), None
    return True
