"""make bench: what a federation costs, side by side in one run. Writes reports/bench/federation-PART.json.

1. Federated over centralized training time at equal samples, for each number of clients, in this process.
2. A round that trains nothing, against the number of clients and the size of the model.
3. Peak memory against the number of clients and of rounds, each in a process of its own.
"""

import fedlib  # noqa: F401, before torch, as in every process of ours: it says how threads wait

# isort: split
import argparse
import functools
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedlib.config import ROOT, RunConfig, StudyConfig
from fedlib.data.dataset import PreparedDataset, open_prepared
from fedlib.data.partition import clients_of
from fedlib.federated.checked_strategy import CheckedStrategy
from fedlib.federated.client_app import identify
from fedlib.federated.in_process import InProcessGrid, train_federated
from fedlib.training.execution import train_locally
from fedlib.training.loop import initial_model
from fedlib.training.run_store import Run, RunStore
from tests.bench.harness import prepared, ratio, seconds, show, side_by_side, write
from tests.helpers import peak_mb

CLIENTS = (2, 4, 8, 16)
CASES = {
    "quick": {"classification": 1067, "segmentation": 107},
    "paper": {"classification": 860, "segmentation": 54},
}
"""Three fifths are for training: 16 clients have whole batches (40 images and 4 volumes; paper: 16 images, 2 volumes)."""
ECHO = ClientApp()
ECHO.query()(identify)


@ECHO.train()
def echo(message: Message, _) -> Message:
    """A client that trains nothing."""
    arrays = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(arrays), reply_to=message)


def grid_of(task: str, data: PreparedDataset, folder: Path, **changes) -> list[RunConfig]:
    """The centralized run, and a balanced federation for each number of clients."""
    sizes = {"profile": "quick", "rounds": 2, "local_epochs": 1, "client_counts": CLIENTS, "partitions": "balanced"}
    study = StudyConfig.make(task=task, out_dir=folder, **sizes | changes)
    return study.runs(data.fingerprint, ("centralized", "federated"))


def train(config: RunConfig, data: PreparedDataset, folder: Path) -> Run:
    """Train a run in a folder of its own, up to its weights; scoring on the test split is the same for every arm."""
    run = RunStore(tempfile.mkdtemp(dir=folder)).begin(config)
    (train_federated if config.mode == "federated" else train_locally)(config, data, run)
    return run


def steps_of(config: RunConfig, data: PreparedDataset) -> int:
    """Optimiser steps of a round: batches are cut client by client."""
    return sum(-(-len(rows) // config.batch_size) for rows in clients_of(config, data)) * config.local_epochs


def against_centralized(arms: list[RunConfig], data: PreparedDataset, folder: Path, repeats: int) -> dict[str, dict]:
    """By number of clients: time of training over the centralized run's, and steps over its."""
    contenders = {str(config.n_clients): functools.partial(train, config, data, folder) for config in arms}
    taken = side_by_side(contenders, repeats)
    steps = {str(config.n_clients): steps_of(config, data) for config in arms}
    return {
        f"{n} clients": {**ratio(taken, n, "1"), "seconds": statistics.median(taken[n]), "steps": steps[n] / steps["1"]}
        for n in taken
        if n != "1"
    }


def empty_rounds(data: PreparedDataset, folder: Path, rounds: int = 5) -> list[dict]:
    """Rows: clients, megabytes of a message, seconds of a round that trains nothing."""
    rows = []
    for width in (16, 64):
        for config in grid_of("classification", data, folder, width=width)[1:]:
            grid = InProcessGrid(ECHO, config.n_clients, {"data-dir": str(data.folder)})
            strategy = CheckedStrategy(grid, config, initial_model(config, data), [1] * config.n_clients, [])
            strategy.train(1, strategy.initial)
            taken = seconds(lambda: [strategy.train(number, strategy.initial) for number in range(rounds)])  # noqa: B023
            size = strategy.clients[0]["bytes_down"] / 1e6
            rows.append({"clients": config.n_clients, "MB": size, "seconds": taken / rounds})
    return rows


def peaks(data: PreparedDataset, folder: Path) -> list[dict]:
    """Rows: clients (1: centralized), peak MB of a process that carries out one run of 2 rounds, and of 6."""
    rows = []
    for config in grid_of("classification", data, folder, width=64):
        row = {"clients": config.n_clients}
        for rounds in (2, 6):
            longer = config.model_copy(update={"rounds": rounds})
            arguments = ["--peak", longer.model_dump_json(), str(data.folder), str(folder)]
            command = [sys.executable, "-m", "tests.bench.federation", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            row[f"peak MB, {rounds} rounds"] = int(done.stdout.split()[-1])
        rows.append(row)
    return rows


def peak(config: str, data_dir: str, folder: str) -> None:
    """Carry out one run and print this process's peak memory in MB."""
    train(RunConfig.model_validate_json(config), open_prepared(data_dir), Path(folder))
    print(peak_mb())


def costs(sets: Path, folder: Path) -> dict[str, list[dict]]:
    """What messages cost by themselves: few and small images, so that training is next to nothing."""
    data = prepared("classification", 160, 32, sets)
    return {"a round that trains nothing": empty_rounds(data, folder), "peak memory, ResNet18": peaks(data, folder)}


def compared(task: str, profile: str, repeats: int, sets: Path, folder: Path) -> dict[str, dict]:
    """Federated against centralized."""
    size = StudyConfig.make(task=task, profile=profile).size
    data = prepared(task, CASES[profile][task], size, sets)
    return {"over centralized": against_centralized(grid_of(task, data, folder, profile=profile), data, folder, repeats)}


def main() -> None:
    """Measure, print tables, write a JSON for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", default="quick", help="paper: for a GPU, against centralized only")
    parser.add_argument("--part", choices=("classification", "segmentation", "costs"), action="append", help="default: all")
    parser.add_argument("--folder", type=Path, help="where phantoms are kept from one call to the next")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        return peak(*options.peak)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    about = {"device": device, "threads": torch.get_num_threads(), "profile": options.profile}
    with tempfile.TemporaryDirectory() as temporary:
        where = options.folder or Path(temporary), Path(temporary)
        for part in options.part or ("classification", "segmentation", "costs"):
            found = costs(*where) if part == "costs" else compared(part, options.profile, options.repeats, *where)
            for title, rows in found.items():
                named = [{"": name, **row} for name, row in rows.items()] if isinstance(rows, dict) else rows
                show(f"{part}: {title}", named)
            write(f"federation-{part}", about | found)


if __name__ == "__main__":
    main()
