"""Hand out the notebooks without their solutions, beside the finished runs that they read."""

import shutil
from pathlib import Path

import nbformat
from nbconvert.preprocessors import TagRemovePreprocessor

from fedlib.config import ROOT, UserError
from fedlib.training.run_store import RunStore

NOTEBOOKS = ROOT / "notebooks"
KEPT_BACK = shutil.ignore_patterns("*.ipynb", "*.html", ".*")
"""Executed notebooks and their pages, because they show the solutions; and locks."""


def hand_out(folder: Path, out_dir: Path) -> str:
    """Write `notebooks/` and a copy of the runs, `reports/<name of out_dir>/`, into a new folder. Return a line about them.

    Cells tagged `solution` are left out.
    Raises UserError when out_dir has no finished run, or the folder is not a new one outside of it.
    """
    n_runs = require_finished(out_dir)
    if folder.exists() or folder.absolute().is_relative_to(out_dir.absolute()):
        raise UserError(f"--to {folder}: expected a new folder, outside of {out_dir}")
    shutil.copytree(out_dir, folder / "reports" / out_dir.absolute().name, ignore=KEPT_BACK)
    without_solutions = TagRemovePreprocessor(remove_cell_tags={"solution"})
    (folder / "notebooks").mkdir()
    for path in NOTEBOOKS.glob("*.ipynb"):
        book, _ = without_solutions.preprocess(nbformat.read(path, as_version=4), {})
        nbformat.write(book, folder / "notebooks" / path.name)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{folder}: notebooks without solutions and {n_runs} finished runs, {size / 1e6:.0f} MB in all"


def require_finished(out_dir: Path) -> int:
    """Return the number of finished runs in a study's folder. Raises UserError when there are none."""
    if n_runs := sum(run.done for run in RunStore(out_dir).all()):
        return n_runs
    raise UserError(f"--out-dir {out_dir}: no finished runs; expected a folder written by `python -m fedlib study`")
