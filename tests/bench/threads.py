"""make bench: one training on one thread and on two, on an idle machine and beside two busy processes.

An excerpt of a round, a few steps of the profile `quick`, is trained by turns on one and on two threads of this process.
Wall and processor seconds are medians, ratios those of neighbours in time. `--spin N` sets GOMP_SPINCOUNT, how often a
waiting thread of OpenMP looks before it sleeps. Writes reports/bench/threads.json.
"""

import os
import sys

if "--spin" in sys.argv:  # read once, when torch is imported
    os.environ["GOMP_SPINCOUNT"] = sys.argv[sys.argv.index("--spin") + 1]
import fedlib  # noqa: F401, before torch: it sets how threads wait

# isort: split
import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fedlib.config import StudyConfig
from fedlib.training.loop import initial_model, train_round
from tests.bench.harness import prepared, ratio, show, side_by_side, write

CASES = {"classification": 64, "segmentation": 12}
STEPS = {"classification": 4, "segmentation": 3}


@contextmanager
def busy(n: int) -> Iterator[None]:
    """Run `n` processes that never rest, and end them."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def training(task: str, folder: Path, threads: int, processor: list[float]) -> Callable[[], None]:
    """Return an action that trains the excerpt on `threads` threads and appends its processor seconds."""
    study = StudyConfig.make(task=task, profile="quick", local_epochs=1, out_dir=folder)
    data = prepared(task, CASES[task], study.size, folder)
    (config,) = study.runs(data.fingerprint, ("centralized",))
    model, rows = initial_model(config, data), data.split("train")[: STEPS[task] * config.batch_size]

    def action() -> None:
        torch.set_num_threads(threads)
        began = time.process_time()
        train_round(model, data, rows, config, 0, 1)
        processor.append(time.process_time() - began)

    return action


def measure(task: str, others: int, repeats: int, folder: Path) -> dict:
    """Return wall and processor seconds on one and two threads, and the ratio of two over one."""
    processor: dict[str, list[float]] = {"one thread": [], "two threads": []}
    actions = {name: training(task, folder, n, processor[name]) for n, name in enumerate(processor, 1)}
    for action in actions.values():
        action()
    with busy(others):
        taken = side_by_side(actions, repeats, warm_up=False)
    report: dict = {
        name: {"wall": statistics.median(taken[name]), "processor": statistics.median(processor[name][1:])} for name in taken
    }
    show(f"{task}, {others} busy processes", [{"training on": name, **row} for name, row in report.items()])
    report["two over one"] = ratio(taken, "two threads", "one thread")
    print("two over one:", report["two over one"])
    return report


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--spin", type=int, help="GOMP_SPINCOUNT; default: as fedlib sets it")
    options = parser.parse_args()
    report: dict = {"cores": os.cpu_count(), "spin": os.environ["GOMP_SPINCOUNT"]}
    with tempfile.TemporaryDirectory() as folder:
        for task in CASES:
            for others in (0, 2):
                report[f"{task}, {others} busy"] = measure(task, others, options.repeats, Path(folder))
    write("threads", report)


if __name__ == "__main__":
    main()
