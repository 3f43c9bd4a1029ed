"""Prepared sets: arrays on disk, memory-mapped, with a table of cases and a manifest.

A prepared set is a folder with `images.npy`, `labels.npy`, `cases.csv`, `qc.csv`, `duplicates.csv` and `manifest.json`.
data_prep writes it, whole or not at all; the manifest holds the size and hash of every file.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fedlib.config import UserError
from fedlib.data.files import file_sha256

SPLITS = ("train", "val", "test")
TEXT_COLUMNS = ("case", "patient", "split", "label", "dup_group", "file", "truth", "prediction")
ARRAYS = ("images.npy", "labels.npy")
FORMAT = 2
"""Of prepared sets; another one is refused."""


@dataclass(frozen=True)
class PreparedDataset:
    """One task's images, ready to train on. Arrays are memory-mapped: they take no memory until they are read."""

    folder: Path
    manifest: dict
    cases: pd.DataFrame
    """One row a case, in array order: case, patient, split, label (class name or empty), and the source's columns."""
    images: np.ndarray
    """uint8 (N, 1, H, W) or (N, 1, X, Y, Z): the intensity window mapped to 0..255."""
    labels: np.ndarray
    """int64 (N,) class indices, or uint8 (N, X, Y, Z) structure indices with 0 the background."""

    @property
    def task(self) -> str:
        return self.manifest["task"]

    @property
    def classes(self) -> list[str]:
        """Return the names behind the label values: the classes, or background and the structures."""
        return self.manifest["classes"]

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Return the size of a voxel in mm (volumes only)."""
        return tuple(self.manifest["spacing_mm"])

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    def split(self, name: str) -> np.ndarray:
        """Return the row numbers of the cases in split `train`, `val` or `test`."""
        return np.flatnonzero(self.cases["split"].to_numpy() == name)

    def load_batch(
        self, rows: np.ndarray, device: torch.device | str = "cpu", low: float = -1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read cases from disk: images float32 in [low, 1], (B, 1, ...), and labels int64, (B,) or (B, 1, ...).

        GPU transfers use uint8, a quarter of float32, pinned and asynchronous.
        """
        images, labels = (torch.from_numpy(array[rows]) for array in (self.images, self.labels))
        if torch.device(device).type == "cuda":
            images, labels = (tensor.pin_memory().to(device, non_blocking=True) for tensor in (images, labels))
        images, labels = images.float().mul_((1 - low) / 255).add_(low), labels.long()
        return images, labels if labels.ndim == 1 else labels.unsqueeze(1)  # (B, X, Y, Z) -> (B, 1, X, Y, Z)


def chosen(choices: list[dict]) -> dict:
    """Return the value of each setting in a manifest's `choices`: how an image of the set was prepared."""
    return {row["setting"]: row["value"] for row in choices}


def batches(
    rows: np.ndarray, batch_size: int, generator: torch.Generator | None = None, drop_last: bool = False
) -> list[np.ndarray]:
    """Cut rows into batches of nearly equal size, at most `batch_size`; shuffled when a generator is given.

    Equal sizes instead of a short last batch: BatchNorm cannot train on a batch of one. With `drop_last` every batch is
    full and the rest is dropped, unless there is less than one batch.
    """
    if generator is not None:
        rows = rows[torch.randperm(len(rows), generator=generator).numpy()]
    if drop_last and len(rows) >= batch_size:
        return np.split(rows[: len(rows) // batch_size * batch_size], len(rows) // batch_size)
    return np.array_split(rows, -(-len(rows) // batch_size))


def assign_groups(sizes: pd.Series, fractions: np.ndarray, rng: np.random.Generator) -> dict:
    """Assign whole groups (patients) to receivers (clients, splits) so that each gets about its fraction of the cases.

    `sizes` holds the cases of each group. In random order, every receiver gets one group first; then the one furthest below
    its share is served. Returns group -> receiver number.
    """
    wanted, held, receiver_of = fractions * sizes.sum(), np.zeros(len(fractions)), {}
    for number, (group, size) in enumerate(sizes.iloc[rng.permutation(len(sizes))].items()):
        receiver = number if number < len(fractions) else int(np.argmax(wanted - held))
        receiver_of[group] = receiver
        held[receiver] += size
    return receiver_of


def describe(paths: dict[str, Path], manifest: dict) -> dict:
    """Return the manifest with its format, the size and hash of each file (`paths`: by name), and the set's fingerprint."""
    files = {name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for name, path in paths.items()}
    manifest = {"format": FORMAT} | manifest | {"files": files}
    return manifest | {"fingerprint": _fingerprint(manifest)}


def _fingerprint(manifest: dict) -> str:
    """Hash all that a training sees: equal fingerprints, equal results. Where the raw files were has no part in it."""
    content = [manifest[key] for key in ("task", "synthetic", "classes", "spacing_mm")]
    content += [manifest["files"][name]["sha256"] for name in (*ARRAYS, "cases.csv")]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def open_prepared(folder: Path | str, task: str | None = None) -> PreparedDataset:
    """Open a prepared set, or the one in the subfolder named after `task`.

    Raises UserError, naming the file, when there is none, when it is of another task or version of this project, or when a
    file is missing, cut short, edited or not readable.
    """
    try:
        found = find_prepared(folder, task)
        prepared = _open(found.absolute(), _stamps(found)) if found else None
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror}); expected a prepared set") from None
    if not prepared:
        raise UserError(f"data_dir = {str(folder)!r}: not a prepared set (no manifest.json); make one: python -m data_prep")
    if task and prepared.task != task:
        raise UserError(f"data_dir = {str(folder)!r}: prepared for {prepared.task}, expected {task}")
    return prepared


def read_cases(path: Path) -> pd.DataFrame:
    """Read a cases.csv: every column as text, but for those in which each number reads as it would be written.

    A class called `None`, a patient `NA` and the hospitals 007, 1E3 and 1000 stay what they are. Empty is NaN, except names.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return table.apply(lambda column: column if column.name in TEXT_COLUMNS else _as_numbers(column))


def _as_numbers(column: pd.Series) -> pd.Series:
    """Return a column as bool, int64 or float64 if that changes no character of it, else as text; empty is NaN."""
    if len(column) and column.isin(["True", "False"]).all():
        return column == "True"
    for kind in (int, float) if "nan" not in set(column) else ():
        try:
            numbers = column.replace("", "nan").map(kind)
        except ValueError:
            continue
        if (kind is float or (numbers.abs() < 2**53).all()) and (numbers.map(str).where(column != "", "") == column).all():
            return numbers.astype(kind)
    return column.mask(column == "")


def find_prepared(folder: Path | str, task: str | None = None) -> Path | None:
    """Return the folder, or its subfolder named after the task, whichever has a manifest; None when neither has."""
    own = [Path(folder), *([Path(folder) / task] if task else [])]
    return next((candidate for candidate in own if (candidate / "manifest.json").exists()), None)


def _stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of change of a folder's files: while they stay the same, a set is opened once."""
    found = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


@functools.lru_cache(maxsize=4)
def _open(folder: Path, stamps: tuple) -> PreparedDataset:
    """Open a set after holding each of its files to the manifest's hash: once per process and state of the folder."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        version = manifest.get("format")
        intact = version == FORMAT and _fingerprint(manifest) == manifest["fingerprint"]
        hashes = {name: entry["sha256"] for name, entry in manifest["files"].items()} if intact else {}
    except (OSError, ValueError, AttributeError, LookupError, TypeError) as error:
        raise UserError(f"{path}: not readable ({type(error).__name__}: {error}); prepare the set again") from None
    if version != FORMAT:
        raise UserError(f"{path}: format {version}, expected {FORMAT}; made by another version, prepare the set again")
    if not intact:
        raise UserError(f"{path}: edited since it was prepared (its fingerprint differs); prepare the set again")
    for name, sha256 in hashes.items():
        if file_sha256(folder / name) != sha256:
            raise UserError(f"{folder / name}: edited or cut short since it was prepared; prepare the set again")
    images, labels = (np.load(folder / name, mmap_mode="r") for name in ARRAYS)
    return PreparedDataset(folder, manifest, read_cases(folder / "cases.csv"), images, labels)
