"""What the benchmarks share: contenders side by side, in alternating order; medians, ratios and their noise; a JSON.

Machines are shared and noisy. A ratio is that of two neighbours in time, its value the median over the repeats, its noise
half the distance between the quartiles; `make bench` ends by holding the ratios to the accepted ones (`accepted.json`).
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.sources import prepare_synthetic
from fedlib.config import ROOT
from fedlib.data.dataset import PreparedDataset, open_prepared

REPORTS = ROOT / "reports" / "bench"
ACCEPTED = ROOT / "reports" / "reference" / "bench.json"


def seconds(action: Callable[[], object]) -> float:
    """Wall seconds of an action."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def side_by_side(contenders: dict[str, Callable[[], object]], repeats: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds of each contender, `repeats` times, every other time in reverse order; a first time warms up."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(-warm_up, repeats):
        for name in list(contenders)[:: -1 if repeat % 2 else 1]:
            value = seconds(contenders[name])
            if repeat >= 0:
                taken[name].append(value)
    return taken


def ratio(taken: dict[str, list[float]], of: str, over: str) -> dict[str, float]:
    """Median of the paired ratios of two contenders, and half the distance between their quartiles."""
    ratios = np.array(taken[of]) / np.array(taken[over])
    low, high = np.quantile(ratios, (0.25, 0.75))
    return {"ratio": statistics.median(ratios), "noise": (high - low) / 2}


def prepared(task: str, cases: int, size: int, folder: Path) -> PreparedDataset:
    """Phantoms to measure on, drawn in `folder` unless they are there."""
    own = folder / f"{task}-{cases}-{size}"
    return open_prepared(own) if own.exists() else prepare_synthetic(task, own, cases=cases, size=size)


def show(title: str, rows: list[dict]) -> None:
    """Print rows as a table; a row may lack what others have."""
    print(f"\n{title}")
    names = list(dict.fromkeys(name for row in rows for name in row))
    width = max(16, *(len(name) + 2 for name in names))
    print("".join(f"{name:>{width}}" for name in names))
    for row in rows:
        values = [row.get(name, "") for name in names]
        print("".join(f"{v:{width}.3f}" if isinstance(v, float) else f"{v:>{width}}" for v in values), flush=True)


def write(name: str, report: dict) -> None:
    """Write reports/bench/NAME.json, floats to four digits."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json.loads(json.dumps(report), parse_float=lambda digits: float(f"{float(digits):.4g}")), indent=2)
    (REPORTS / f"{name}.json").write_text(text + "\n")


def ratios_of(folder: Path = REPORTS) -> dict[str, dict[str, float]]:
    """Every `ratio` with its `noise` in the reports of a folder, by name of the report and path in it."""
    found: dict[str, dict[str, float]] = {}

    def visit(path: str, value: object) -> None:
        if isinstance(value, dict) and "ratio" in value:
            found[path] = {"ratio": value["ratio"], "noise": value.get("noise", 0.0)}
        elif isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{path} / {key}", inner)

    for report in sorted(folder.glob("*.json")):
        visit(report.stem, json.loads(report.read_text()))
    return found
