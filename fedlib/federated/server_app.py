"""The Flower ServerApp: rounds, validation and checkpoints of one federated run.

`flwr run . FEDERATION --run-config '...'` starts it on any federation, between hospitals or in Flower's simulation; its keys
are in `[tool.flwr.app.config]` of pyproject.toml. `serve` is the same for a federation in this process.
"""

import functools
import logging
import os
import time
from pathlib import Path

import pandas as pd
from filelock import Timeout
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fedlib import tasks
from fedlib.config import RunConfig, StudyConfig, UserError
from fedlib.data.dataset import PreparedDataset, open_prepared
from fedlib.data.files import write_atomically
from fedlib.data.partition import clients_of
from fedlib.federated.checked_strategy import CheckedStrategy, FederationError
from fedlib.federated.client_app import shared_state
from fedlib.federated.privacy import epsilon_after
from fedlib.federated.strategies import get_server_state, load_server_state
from fedlib.training.execution import by_client, execute
from fedlib.training.loop import evaluate, initial_model
from fedlib.training.run_store import Run, RunStore

STUDY_FIELDS = {"n_clients": "client_counts", "partition": "partitions"}
"""Keys with another name in a study, which can hold several values of them."""
FOLLOW = "`flwr list` shows its number, `flwr log NUMBER` follows it, `flwr stop NUMBER` ends it"

server_app = ServerApp()
log = logging.getLogger("flwr")


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, score and store one federated run, as `python -m fedlib study` does; a run that is done is read.

    With `statistics=true` only ask the clients for theirs, and write them.
    """
    log.addFilter(_in_one_line)
    if type(statistics := context.run_config["statistics"]) is not bool:
        raise UserError(f"statistics = {statistics!r}: expected true or false")
    config, data, store = parse_run_config(context.run_config)
    if statistics:
        table, path = ask_statistics(grid, config, data).T, store.out_dir / "statistics.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, table.to_csv())
        print(f"{table.to_string()}\nnothing was trained; {path}")
        return
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
    given = {key.replace("-", "_"): value for key, value in run_config.items() if value != "" and key != "statistics"}
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


def ask_statistics(grid: Grid, config: RunConfig, data: PreparedDataset) -> pd.DataFrame:
    """Ask each client of a run what it tells of its training cases (`describe_site`): a row a client. Nothing is trained.

    The server's own copy of the set has no part in it. Raises FederationError, as `serve` does.
    """
    return CheckedStrategy(grid, config, initial_model(config, data), cases=[], clients=[]).statistics()


def serve(grid: Grid, config: RunConfig, data: PreparedDataset, run: Run) -> None:
    """Train a federation; rounds, clients and final weights go to the run's folder, and from its checkpoint it resumes.

    A round's seconds are those of its messages, the clients' validation under FedBN included, not of scoring here.
    Raises FederationError, naming client, round and cause; UserError when the prepared set is not the run's.
    """
    if data.fingerprint != config.data_fingerprint:
        found, expected = data.fingerprint[:12], config.data_fingerprint[:12]
        raise UserError(f"{data.folder}: data fingerprint {found}, expected {expected}")
    state, rounds, clients = run.load_checkpoint("global")
    model = initial_model(config, data)
    strategy = CheckedStrategy(grid, config, model, [len(rows) for rows in clients_of(config, data)], clients)
    weights = shared_state(config, model)
    if state:
        load_server_state(strategy.strategy, state)
        weights = {name: state[name] for name in weights}
    arrays = ArrayRecord(weights)
    for number in range(len(rounds) + 1, config.rounds + 1):
        began = time.perf_counter()
        arrays = strategy.train(number, arrays)
        scores = strategy.validate(number, arrays) if config.is_personalized else {}
        seconds = time.perf_counter() - began
        weights = arrays.to_torch_state_dict()
        if not config.is_personalized:
            model.load_state_dict(weights)
            cases = evaluate(model, data, data.split("val"), config)
            run.log_validation(number, cases)
            scores = tasks.get(config.task).summarize(cases)
        traffic = {way: sum(row[way] for row in clients if row["round"] == number) for way in ("bytes_down", "bytes_up")}
        epsilon = {} if config.privacy == "none" else {"epsilon": epsilon_after(config, number)}
        rounds.append({"round": number, **scores, "seconds": seconds, **traffic, **epsilon})
        run.write_table("clients.csv", clients)
        run.write_table("rounds.csv", rounds)
        run.save_checkpoint("global", weights | get_server_state(strategy.strategy), rounds, clients)
        log.info("round %d of %d: %s", number, config.rounds, ", ".join(f"{name} {scores[name]:.3f}" for name in scores))
    if config.is_personalized:
        weights = by_client({client: weights | local for client, local in strategy.local_states().items()})
    run.save_weights(weights)


def _in_one_line(record: logging.LogRecord) -> bool:
    """Logging filter: show a refusal in one line, where Flower would log a traceback."""
    if record.exc_info and isinstance(record.exc_info[1], UserError | FederationError):
        record.msg, record.args, record.exc_info = "%s", (str(record.exc_info[1]),), None
    return True
