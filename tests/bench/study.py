"""make bench: what of a study's wall time is training and scoring, and what two jobs at a time bring.

    python -m tests.bench.study --profile smoke      a look at it in four minutes; its shares mean nothing

Both tasks run as a user starts them, on phantoms that are there already: two jobs of one thread, as two cores are shared
out, against one job of one thread and one of two. Training is the sum of what the runs took, a lesson's own two among them.
Scoring is measured afterwards on each run's model, with as many processes at work as there were jobs, once for each split,
and counted as often as the run did it. The rest is Python's imports, Jupyter kernels, figures, what lessons do beside their
runs, the report. Writes reports/bench/study.json.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from data_prep.sources import prepare_synthetic
from fedlib.config import ROOT, StudyConfig
from fedlib.data.dataset import open_prepared
from fedlib.tasks import TASKS
from fedlib.training.execution import load_model
from fedlib.training.loop import evaluate
from fedlib.training.run_store import Run, RunStore
from tests.bench.harness import seconds, show, write


def study(profile: str, jobs: int, threads: int, sets: dict[str, Path], out: Path) -> dict[str, float]:
    """Wall seconds of a whole study, and the seconds of training and of scoring in it."""
    command = [sys.executable, "-m", "fedlib", "study", "--profile", profile, "--jobs", str(jobs), "--out", str(out)]
    where = ["--data", str(out.parent)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    wall = seconds(lambda: subprocess.run([*command, *where], check=True, cwd=ROOT, env=environment, capture_output=True))
    runs = RunStore(out).all()
    training = sum(run.result["seconds"] for run in runs + RunStore(out / "lesson").all())
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        scored = list(pool.map(scoring, runs, [sets[run.config.task] for run in runs]))
    return {"jobs": jobs, "threads": threads, "wall": wall, "training": training, "scoring": sum(scored)}


def scoring(run: Run, folder: Path) -> float:
    """Seconds that a run spent on validation after every round, and on the test split."""
    config, data = run.config, open_prepared(folder)
    model = load_model(run, data, 0 if config.has_client_models else None)

    def taken(split: str) -> float:
        return seconds(lambda: evaluate(model, data, data.split(split), config, final=split == "test"))

    models = config.n_clients if config.has_client_models else 1
    return models * (config.rounds * taken("val") + taken("test"))


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="quick")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, sets = Path(temporary), {}
        for task in TASKS:
            sizes = StudyConfig.make(task=task, profile=options.profile)
            sets[task] = prepare_synthetic(task, folder / task, cases=sizes.synthetic_cases, size=sizes.size).folder
        rows = [study(options.profile, *how, sets, folder / "{}x{}".format(*how)) for how in ((2, 1), (1, 1), (1, 2))]
    for row in rows:
        row["rest"] = 1 - (row["training"] + row["scoring"]) / row["wall"] / row["jobs"]
    show(f"both tasks, {options.profile}", rows)
    two, *ones = rows
    report = {f"{row['jobs']} jobs, {row['threads']} threads": row for row in rows}
    for one, name in zip(ones, ("one job", "one job of two threads"), strict=True):
        report[f"{name} over two"] = {"ratio": one["wall"] / two["wall"], "noise": 0.05}
    write("study", report)


if __name__ == "__main__":
    main()
