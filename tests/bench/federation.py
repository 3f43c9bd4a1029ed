"""make bench: what a federation costs, side by side in one run. Writes reports/bench/federation.json.

1. Federated over centralized wall time at equal samples, for each number of clients, in this process.
2. The same run in this process and under Ray, its start included.
3. A round that trains nothing, against the number of clients and the size of the model.
4. Peak memory against the number of clients, each in a process of its own.

Machines are shared and noisy: contenders are run several times in alternating order, and medians and their ratios are what
counts. The first run of each task warms up and is not counted.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from data_prep.sources import prepare_synthetic
from fedlib.client import present
from fedlib.config import ROOT, RunConfig, StudyConfig
from fedlib.data import PreparedSet, open_prepared
from fedlib.engines import InProcessGrid
from fedlib.experiment import clients_of, run
from fedlib.federation import guarded_strategy, roll_call
from fedlib.runs import RunRecord, RunStore
from fedlib.training import initial_model

CLIENTS = (2, 4, 8, 16)
SIZES = {"classification": {"cases": 2080, "size": 64}, "segmentation": {"cases": 160, "size": 40}}
"""Enough for 16 clients to have whole batches: 78 images or 6 volumes each."""
WIDTH = {"classification": 64, "segmentation": 8}
ECHO = ClientApp()
ECHO.query()(present)


@ECHO.train()
def echo(message: Message, _) -> Message:
    """A client that trains nothing."""
    arrays = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(arrays), reply_to=message)


def grid_of(task: str, data: PreparedSet, folder: Path, seed: int, **changes) -> list[RunConfig]:
    """The centralized run, and a balanced federation for each number of clients."""
    study = StudyConfig.make(
        task=task,
        client_counts=CLIENTS,
        partitions="balanced",
        rounds=2,
        width=WIDTH[task],
        out_dir=folder,
        seed=seed,
        **changes,
    )
    return study.runs(data.fingerprint, ("centralized", "federated"))


def seconds_of(config: RunConfig, data: PreparedSet, folder: Path) -> float:
    """Wall seconds of a run, scoring and writing included."""
    began = time.perf_counter()
    run(config, data, RunStore(folder))
    return time.perf_counter() - began


def steps_of(config: RunConfig, data: PreparedSet) -> int:
    """Optimiser steps of a round: batches are cut client by client."""
    return sum(-(-len(rows) // config.batch_size) for rows in clients_of(config, data)) * config.local_epochs


def against_centralized(task: str, data: PreparedSet, folder: Path, repeats: int) -> list[dict]:
    """Rows: clients, median seconds, over centralized, steps over centralized."""
    seconds: dict[int, list[float]] = {}
    for repeat in range(repeats + 1):
        arms = grid_of(task, data, folder, seed=repeat)
        for config in arms if repeat % 2 else reversed(arms):
            taken = seconds_of(config, data, folder)
            if repeat:
                seconds.setdefault(config.n_clients, []).append(taken)
    steps = {config.n_clients: steps_of(config, data) for config in arms}
    medians = {n: statistics.median(taken) for n, taken in seconds.items()}
    return [
        {"clients": n, "seconds": medians[n], "over centralized": medians[n] / medians[1], "steps": steps[n] / steps[1]}
        for n in sorted(medians)
    ]


def against_ray(task: str, data: PreparedSet, folder: Path) -> list[dict]:
    """Rows: clients, seconds in this process, seconds under Ray."""
    rows = []
    for n in (2, 8):
        taken = {
            engine: seconds_of(
                next(c for c in grid_of(task, data, folder, 99, engine=engine) if c.n_clients == n), data, folder / engine
            )
            for engine in ("inprocess", "ray")
        }
        rows.append({"clients": n, **taken, "ray over inprocess": taken["ray"] / taken["inprocess"]})
    return rows


def empty_rounds(data: PreparedSet, folder: Path, rounds: int = 5) -> list[dict]:
    """Rows: clients, megabytes of a message, seconds of a round that trains nothing."""
    rows = []
    for width in (16, 64):
        for config in grid_of("classification", data, folder, 1):
            if config.mode == "centralized":
                continue
            config = config.model_copy(update={"width": width})
            model, grid = initial_model(config, data), InProcessGrid(ECHO, config.n_clients)
            told = ConfigRecord({"run": config.model_dump_json(), "data-dir": str(data.folder), "state-dir": str(folder),
                                 "threads": torch.get_num_threads(), "transport": "fp32"})  # fmt: skip
            (folder / "empty").mkdir(exist_ok=True)
            nodes = roll_call(grid, config, told)
            strategy = guarded_strategy(config, RunRecord(folder / "empty"), model, [1] * config.n_clients, nodes)
            arrays = ArrayRecord.from_torch_state_dict(model.state_dict())
            strategy.start(grid, arrays, num_rounds=1, train_config=told)
            began = time.perf_counter()
            strategy.start(grid, arrays, num_rounds=rounds, train_config=told)
            each = (time.perf_counter() - began) / rounds
            rows.append({"clients": config.n_clients, "megabytes": strategy.bytes_down / 1e6, "seconds": each})
    return rows


def peaks(data: PreparedSet, folder: Path) -> list[dict]:
    """Rows: clients (1: centralized), peak MB of a process that carries out one run."""
    rows = []
    for config in grid_of("classification", data, folder, 1):
        arguments = [sys.executable, __file__, "--peak", config.model_dump_json(), str(data.folder), str(folder / "peaks")]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=ROOT)
        rows.append({"clients": config.n_clients, "peak MB": int(done.stdout.split()[-1])})
    return rows


def peak(config: str, data_dir: str, folder: str) -> None:
    """Carry out one run and print this process's peak memory in MB."""
    import resource

    data = open_prepared(data_dir)
    run(RunConfig.model_validate_json(config), data, RunStore(folder))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def show(title: str, rows: list[dict]) -> None:
    """Print rows as a table."""
    print(f"\n{title}")
    print("".join(f"{name:>20}" for name in rows[0]))
    for row in rows:
        print("".join(f"{value:20.3f}" if isinstance(value, float) else f"{value:20}" for value in row.values()))


def main() -> None:
    """Measure, print tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        return peak(*options.peak)
    report: dict = {"threads": torch.get_num_threads(), "repeats": options.repeats}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sets = {task: prepare_synthetic(task, folder / task, **size) for task, size in SIZES.items()}
        for task, data in sets.items():
            report[f"{task}: over centralized"] = against_centralized(task, data, folder, options.repeats)
            report[f"{task}: under Ray"] = against_ray(task, data, folder)
        report["a round that trains nothing"] = empty_rounds(sets["classification"], folder)
        report["peak memory, ResNet18"] = peaks(sets["classification"], folder)
    for title, rows in report.items():
        if isinstance(rows, list):
            show(title, rows)
    path = ROOT / "reports" / "bench" / "federation.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
