"""From raw images to a prepared set: find the cases, load each, deal them to splits, write. One way for every source."""

import re
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from fedlib.config import UserError
from fedlib.data import SPLITS, PreparedSet, PreparedWriter, deal_groups

FRACTIONS = (0.6, 0.1, 0.3)
"""Train, val, test (*chosen*): a large test split, since the study's question is about differences."""


@dataclass(frozen=True)
class Case:
    """One image or volume, found but not yet read."""

    case: str
    patient: str
    image: Path
    label: str = ""
    """Class name (classification)."""
    label_file: Path | None = None
    """Label volume (segmentation)."""
    dup_group: str = ""
    """Cases with the same text here are duplicates of each other; empty: none known."""
    columns: dict[str, Any] = field(default_factory=dict)
    """What else the source says of the case; kept in cases.csv."""


Loader = Callable[[Case], tuple[np.ndarray, np.ndarray | int, dict[str, Any]]]
"""Reads a case: uint8 image (1, ...), class index or uint8 label volume, and more columns for cases.csv."""


def prepare(
    cases: list[Case],
    load: Loader,
    out: Path,
    manifest: dict[str, Any],
    seed: int = 0,
    on_bad: Literal["stop", "skip"] = "stop",
    overwrite: bool = False,
) -> PreparedSet:
    """Load all cases into a prepared set at `out`, split by patient and duplicate group, stratified by class.

    Raises UserError at the first case that cannot be used or, with `on_bad="skip"`, lists it in qc.csv and goes on.
    """
    check_out(out, overwrite)
    rejected: list[dict[str, str]] = []
    with PreparedWriter(out) as writer:
        for case in progress(cases, f"preparing {out.name}", "case"):
            try:
                image, label, columns = load(case)
            except UserError as error:
                if on_bad == "stop":
                    raise UserError(f"{error} (--on-bad skip leaves such cases out and lists them in qc.csv)") from None
                rejected.append({"file": str(case.image), "reason": str(error)})
                continue
            own = {"case": case.case, "patient": case.patient, "label": case.label, "dup_group": case.dup_group}
            writer.add(own | case.columns | columns, image, label)
        if not writer.rows:
            raise UserError(f"{out.name}: none of {len(cases)} cases can be used; the first: {rejected[0]['reason']}")
        table = assign_splits(pd.DataFrame(writer.rows), seed)
        return writer.finish(manifest, table, pd.DataFrame(rejected, columns=["file", "reason"]))


def assign_splits(cases: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Add the column `split`: groups of cases that share a patient or a duplicate group stay together.

    Raises UserError when a class has too few groups to be in every split.
    """
    group = pd.Series(_connected(cases), cases.index)
    label_of = cases.groupby(group)["label"].first()
    sizes = cases.groupby(group).size()
    rng, receiver = np.random.default_rng(seed), {}
    for label, members in label_of.groupby(label_of):
        if len(members) < len(SPLITS):
            name = f"class {label!r}" if label else "the set"
            raise UserError(f"{name} has {len(members)} patients, expected at least {len(SPLITS)}: one per split")
        receiver |= deal_groups(sizes[members.index], np.array(FRACTIONS), rng)
    cases.insert(2, "split", group.map(receiver).map(dict(enumerate(SPLITS))))
    return cases


def _connected(cases: pd.DataFrame) -> np.ndarray:
    """Number of the connected component of each case; two cases are linked by a patient or by a duplicate group."""
    n = len(cases)
    patient = pd.factorize(cases["patient"])[0]
    dup_group = pd.factorize(cases["dup_group"].replace("", None))[0]
    linked = np.flatnonzero(dup_group >= 0)
    nodes = np.concatenate([n + patient, n + patient.max() + 1 + dup_group[linked]])
    rows = np.concatenate([np.arange(n), linked])
    links = coo_array((np.ones(len(rows)), (rows, nodes)), shape=(nodes.max() + 1,) * 2)
    return connected_components(links, directed=False)[1][:n]


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse an output folder that would be lost: anything but a prepared set, and that only with --overwrite."""
    if not out.exists():
        return
    if not (out / "manifest.json").exists():
        if not out.is_dir() or any(out.iterdir()):
            raise UserError(f"--out {out}: exists and is not a prepared set; expected a new folder")
    elif not overwrite:
        raise UserError(f"--out {out}: holds a prepared set already; expected a new folder, or --overwrite")


@contextmanager
def opened(source: Path) -> Iterator[Path]:
    """The folder that holds the images: `source` itself, or the contents of a zip, a lone top folder entered.

    Raises UserError when it is missing, empty, or a file that is not a zip.
    """
    if not source.exists():
        raise UserError(f"--input {source}: does not exist; expected a folder or a zip")
    if source.is_dir():
        yield _innermost(source, source)
        return
    if not zipfile.is_zipfile(source):
        raise UserError(f"--input {source}: is not a zip; expected a folder or a zip")
    with tempfile.TemporaryDirectory(prefix="data_prep-") as unpacked:
        _unpack(source, Path(unpacked))
        yield _innermost(Path(unpacked), source)


def _unpack(source: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            for member in progress(archive.infolist(), f"unpacking {source.name}", "file"):
                archive.extract(member, target)
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # RuntimeError: a password, an unknown compression
        raise UserError(f"--input {source}: damaged or protected ({error}); expected a plain zip") from None


def _innermost(folder: Path, source: Path) -> Path:
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
    if not entries:
        raise UserError(f"--input {source}: is empty; expected images")
    if len(entries) == 1 and entries[0].is_dir():
        return _innermost(entries[0], source)
    return folder


def progress(items: Iterable, description: str, unit: str) -> Iterable:
    """A progress bar that leaves nothing behind: on standard output, which notebooks do not paint red."""
    return tqdm(items, desc=description, unit=unit, leave=False, file=sys.stdout)


def natural_key(name: str) -> list:
    """Sort key that puts `case-2` before `case-10`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
