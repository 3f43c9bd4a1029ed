"""make bench: what Flower's deployment runtime costs on one machine, beside the same run in this process.

Start: SuperLink and SuperNodes up and connected. Run: from the start to the weights. A round: its median, as rounds.csv has
it. Every client and round is a new process that imports everything again, and a node looks for work every three seconds:
that is what a round costs here, however small its training. Writes reports/bench/deployment.json.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from data_prep.sources import prepare_synthetic
from fedlib.config import ROOT, RunConfig, StudyConfig
from fedlib.data.dataset import PreparedSet
from fedlib.federated.deployment import local_federation
from fedlib.federated.in_process import run_federation
from fedlib.training.run_store import Run, RunStore, state_sha256

CLIENTS = (2, 4)
ROUNDS = 3


def start_and_stop(n_clients: int) -> dict[str, float]:
    """Seconds until a local federation is there, and until it is gone."""
    began = time.perf_counter()
    with local_federation(n_clients):
        there = time.perf_counter()
    return {"start": there - began, "stop": time.perf_counter() - there}


def run(config: RunConfig, data: PreparedSet, folder: Path) -> tuple[dict[str, float], str]:
    """Seconds of a whole run and of its rounds, and the hash of its weights."""
    record, began = RunStore(folder).begin(config), time.perf_counter()
    run_federation(config, data.folder, record.folder)
    seconds, done = time.perf_counter() - began, Run(record.folder)
    return {"run": seconds, "round": statistics.median(done.rounds["seconds"])}, state_sha256(done.weights())


def main() -> None:
    """Measure, print a table, write the JSON."""
    report = {"threads": torch.get_num_threads(), "rounds": ROUNDS, "clients": {}}
    with tempfile.TemporaryDirectory() as temporary:
        data = prepare_synthetic("classification", Path(temporary) / "data", cases=80, size=32)
        for n_clients in CLIENTS:
            figures, hashes = {"federation": start_and_stop(n_clients)}, set()
            for engine in ("inprocess", "deployment"):
                study = StudyConfig.make(
                    client_counts=n_clients, partitions="balanced", rounds=ROUNDS, engine=engine, out_dir=temporary
                )
                (config,) = study.runs(data.fingerprint, ("federated",))
                figures[engine], sha256 = run(config, data, Path(temporary) / engine)
                hashes.add(sha256)
            assert len(hashes) == 1, "other weights than in this process"
            report["clients"][n_clients] = figures
            for what, seconds in figures.items():
                print(f"{n_clients} clients  {what:12}", *(f"{name} {value:7.2f} s" for name, value in seconds.items()))
    path = ROOT / "reports" / "bench" / "deployment.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
