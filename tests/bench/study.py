"""make bench: what of a study's wall time is training, and what two jobs at a time bring.

    python -m tests.bench.study --profile smoke      a look at it in two minutes; its shares mean nothing

The study runs as a user starts it, on phantoms that are there already, with one thread a job: first one job, then two.
Training is the sum of all clients' turns as the runs have it; the rest is validation and test scoring, Python's imports,
Jupyter kernels, figures and the report. Writes reports/bench/study.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from fedlib.config import ROOT, StudyConfig
from tests.bench.harness import prepared, seconds, show, write


def study(task: str, profile: str, jobs: int, data: Path, out: Path) -> dict[str, float]:
    """Wall seconds of a whole study, and the seconds of training in it."""
    command = [sys.executable, "-m", "fedlib", "study", "--task", task, "--profile", profile, "--jobs", str(jobs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    where = ["--data", str(data), "--out", str(out)]
    wall = seconds(lambda: subprocess.run([*command, *where], check=True, cwd=ROOT, env=environment, capture_output=True))
    return {"jobs": jobs, "wall": wall, "training": float(pd.read_csv(out / "results.csv")["seconds"].sum())}


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--task", default="segmentation", choices=("classification", "segmentation"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sizes = StudyConfig.make(task=options.task, profile=options.profile)
        data = prepared(options.task, sizes.synthetic_cases, sizes.size, folder)
        rows = [study(options.task, options.profile, jobs, data.folder, folder / str(jobs)) for jobs in (1, 2)]
    for row in rows:
        row["training share"] = row["training"] / row["wall"] / row["jobs"]
    show(f"{options.task}, {options.profile}", rows)
    report = {f"{row['jobs']} jobs": row for row in rows}
    report["one job over two"] = {"ratio": rows[0]["wall"] / rows[1]["wall"], "noise": 0.05}
    write("study", report)


if __name__ == "__main__":
    main()
