"""make bench: what a federation costs over centralized training at equal samples, side by side in one run.

Machines are shared and noisy, so every contender is run several times in alternating order, and medians and their ratios
are what counts. Writes reports/bench/federation.json.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from data_prep.sources import prepare_synthetic
from fedlib.config import ROOT, StudyConfig
from fedlib.data import PreparedSet
from fedlib.experiment import run
from fedlib.runs import RunStore

REPEATS = 3
CLIENTS = (2, 4, 8)
SIZES = {"classification": {"cases": 400, "size": 64}, "segmentation": {"cases": 40, "size": 40}}


def seconds_of(task: str, data: PreparedSet, folder: Path, repeat: int) -> dict[str, float]:
    """Wall seconds, scoring included, of the centralized run and of a federation for each number of clients."""
    study = StudyConfig.make(task=task, client_counts=CLIENTS, partitions="balanced", rounds=3, out_dir=folder, seed=repeat)
    arms = study.runs(data.fingerprint, ("centralized", "federated"))
    store, seconds = RunStore(folder / str(repeat)), {}
    for config in arms if repeat % 2 else reversed(arms):
        began = time.perf_counter()
        run(config, data, store)
        name = "centralized" if config.mode == "centralized" else f"federated, {config.n_clients} clients"
        seconds[name] = time.perf_counter() - began
    return seconds


def main() -> None:
    """Measure both tasks, print a table, write the JSON."""
    report = {"threads": torch.get_num_threads(), "repeats": REPEATS, "tasks": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for task, size in SIZES.items():
            data = prepare_synthetic(task, Path(temporary) / task, **size)
            warm_up, *timed = [seconds_of(task, data, Path(temporary), repeat) for repeat in range(REPEATS + 1)]
            medians = {name: statistics.median(each[name] for each in timed) for name in warm_up}
            ratios = {name: median / medians["centralized"] for name, median in medians.items()}
            report["tasks"][task] = {"seconds": medians, "over centralized": ratios}
            for name in sorted(medians):
                print(f"{task:16}{name:24}{medians[name]:8.2f} s{ratios[name]:8.2f}")
    path = ROOT / "reports" / "bench" / "federation.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
