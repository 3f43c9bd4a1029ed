"""make bench: the course in figures, notebook by notebook: its size, and what it takes to run.

    python tests/bench/notebooks.py --task segmentation --profile smoke

Cells are code cells, with the median and the longest of their lines; words those of the text, without folded code; figures
those of the executed notebook, still or to be moved. Each notebook runs as `papermill` runs it, all in one folder, so that
01 draws the phantoms and the others find them: minutes of the whole process, seconds from its start to the first picture.
Writes reports/bench/notebooks-TASK.json and keeps the executed notebooks beside it.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import nbformat

from fedlib.config import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def size(book: nbformat.NotebookNode) -> dict[str, float]:
    """What a reader has before them."""
    lines = [len(cell.source.splitlines()) for cell in book.cells if cell.cell_type == "code"]
    code = "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    words = re.sub(r"```.*?```|<[^>]+>|\]\([^)]*\)", " ", text, flags=re.DOTALL).split()
    exercises = len(re.findall(r"^exercises\.check_", code, re.MULTILINE))
    return {
        "cells": len(lines),
        "median": statistics.median(lines),
        "longest": max(lines),
        "words": len(words),
        "exercises": exercises,
    }


def is_figure(output: nbformat.NotebookNode) -> bool:
    data = output.get("data", {})
    return "image/png" in data or 'class="explorer"' in data.get("text/html", "")


def executed(notebook: Path, out: Path, **parameters: str) -> dict[str, float]:
    """Run a notebook by papermill; figures, minutes, and seconds until the first picture was there."""
    given = [word for name, value in parameters.items() for word in ("-p", name, value)]
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", notebook, out, *given]
    began, started = time.time(), time.perf_counter()
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    minutes = (time.perf_counter() - started) / 60
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    cells = [cell for cell in nbformat.read(out, 4).cells if cell.cell_type == "code"]
    first = next(cell for cell in cells if any(map(is_figure, cell.outputs)))
    shown = datetime.fromisoformat(first.metadata.papermill.end_time).timestamp()
    figures = sum(is_figure(output) for cell in cells for output in cell.outputs)
    return {"figures": figures, "minutes": round(minutes, 1), "picture": round(shown - began, 1)}


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="classification")
    parser.add_argument("--profile", default="quick")
    chosen = parser.parse_args()
    report, kept = {"load": os.getloadavg(), "profile": chosen.profile}, ROOT / "reports" / "bench"
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for notebook in NOTEBOOKS:
            parameters = {"task": chosen.task, "profile": chosen.profile, "out_dir": folder}
            row = size(nbformat.read(notebook, 4)) | executed(notebook, kept / notebook.name, **parameters)
            report[notebook.stem] = row
            print(f"{notebook.stem:26}", *(f"{name} {value}" for name, value in row.items()), flush=True)
    report["load at the end"] = os.getloadavg()
    (kept / f"notebooks-{chosen.task}.json").write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
