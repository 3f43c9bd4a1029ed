"""Prepared sets: arrays on disk, memory-mapped, with a table of cases and a manifest.

A prepared set is a folder with `images.npy`, `labels.npy`, `cases.csv`, `qc.csv` and `manifest.json`. It appears
whole or not at all, and the manifest holds the size and hash of every file in it.
"""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fedlib.config import UserError

SPLITS = ("train", "val", "test")
TEXT_COLUMNS = ("case", "patient", "split", "label", "dup_group", "truth", "prediction")
FILES = ("images.npy", "labels.npy", "cases.csv", "qc.csv")


@dataclass(frozen=True)
class PreparedSet:
    """One task's images, ready to train on. Arrays are memory-mapped: opening costs milliseconds, not memory."""

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
        """Names behind the label values: the classes, or background and the structures."""
        return self.manifest["classes"]

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Size of a voxel in mm (segmentation)."""
        return tuple(self.manifest["spacing_mm"])

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    def split(self, name: str) -> np.ndarray:
        """Row numbers of the cases in split `train`, `val` or `test`."""
        return np.flatnonzero(self.cases["split"].to_numpy() == name)

    def tensors(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Read cases from disk: images float32 in [-1, 1], (B, 1, ...), and labels int64, (B,) or (B, 1, ...)."""
        images = torch.from_numpy(self.images[rows]).float().mul_(2 / 255).sub_(1)
        labels = torch.from_numpy(self.labels[rows]).long()
        return images, labels if labels.ndim == 1 else labels.unsqueeze(1)  # segmentation: (B, X, Y, Z) -> (B, 1, ...)


def batches(rows: np.ndarray, batch_size: int, generator: torch.Generator | None = None) -> Iterator[np.ndarray]:
    """Cut rows into batches of nearly equal size, at most `batch_size`; shuffled when a generator is given.

    Equal sizes instead of a short last batch: BatchNorm cannot work on a batch of one.
    """
    if generator is not None:
        rows = rows[torch.randperm(len(rows), generator=generator).numpy()]
    yield from np.array_split(rows, -(-len(rows) // batch_size))


def deal_groups(sizes: pd.Series, fractions: np.ndarray, rng: np.random.Generator) -> dict:
    """Deal whole groups (patients) to receivers (clients, splits) so that each gets about its fraction of the cases.

    `sizes` holds the cases of each group. In random order, every receiver gets one group first; then the one furthest below
    its share is served. Returns group -> receiver number.
    """
    wanted, held, receiver_of = fractions * sizes.sum(), np.zeros(len(fractions)), {}
    for number, (group, size) in enumerate(sizes.iloc[rng.permutation(len(sizes))].items()):
        receiver = number if number < len(fractions) else int(np.argmax(wanted - held))
        receiver_of[group] = receiver
        held[receiver] += size
    return receiver_of


class PreparedWriter:
    """Writes a prepared set case by case, aside; `finish` renames it to `out`, so a half-written one is never seen.

    Memory does not grow with the number of cases, and that number need not be known before the last case was read.
    """

    def __init__(self, out: Path | str):
        self.out = Path(out).absolute()
        self.folder = self.out.with_name(f".{self.out.name}.partial-{os.getpid()}")
        self.rows: list[dict] = []

    def __enter__(self) -> "PreparedWriter":
        shutil.rmtree(self.folder, ignore_errors=True)  # of a killed process that had our number
        self.folder.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, row: dict, image: np.ndarray, label: np.ndarray | int) -> None:
        """Append a case: its row of cases.csv, a uint8 image (1, ...), and a class index or a uint8 volume (...)."""
        label = np.asarray(label, np.uint8 if np.ndim(label) else np.int64)
        if not self.rows:
            self._images = _GrowingArray(self.folder / "images.npy", image)
            self._labels = _GrowingArray(self.folder / "labels.npy", label)
        self._images.append(image)
        self._labels.append(label)
        self.rows.append(row)

    def finish(self, manifest: dict, cases: pd.DataFrame, rejected: pd.DataFrame) -> PreparedSet:
        """Write the tables and the manifest with the hashes of all files, and put the set in its place."""
        for array in (self._images, self._labels):
            array.close()
        cases.to_csv(self.folder / "cases.csv", index=False)
        rejected.to_csv(self.folder / "qc.csv", index=False)
        paths = {name: self.folder / name for name in FILES}
        files = {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in paths.items()}
        content = json.dumps([manifest["classes"], manifest["spacing_mm"], files], sort_keys=True)
        manifest = manifest | {"files": files, "fingerprint": hashlib.sha256(content.encode()).hexdigest()}
        (self.folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
        shutil.rmtree(self.out, ignore_errors=True)
        self.folder.rename(self.out)
        return open_prepared(self.out)


class _GrowingArray:
    """An .npy file that grows by appending: NumPy pads its header so that the first axis can be rewritten in place."""

    def __init__(self, path: Path, first: np.ndarray):
        self.file, self.shape, self.dtype, self.n = path.open("wb+"), first.shape, first.dtype, 0
        self._write_header()

    def append(self, array: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(array).tobytes())
        self.n += 1

    def close(self) -> None:
        self.file.seek(0)
        self._write_header()
        self.file.close()

    def _write_header(self) -> None:
        described = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.n, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, described)


def open_prepared(folder: Path | str, task: str | None = None) -> PreparedSet:
    """Open a prepared set, or the one in the subfolder named after `task`.

    Raises UserError when there is none, when it is of another task, or when a file is missing, cut short or edited.
    """
    found = find_prepared(folder, task)
    if not found:
        raise UserError(f"data_dir = {str(folder)!r}: not a prepared set (no manifest.json); make one: python -m data_prep")
    prepared = _open(found.absolute(), (found / "manifest.json").stat().st_mtime_ns)
    if task and prepared.task != task:
        raise UserError(f"data_dir = {str(folder)!r}: prepared for {prepared.task}, expected {task}")
    return prepared


def read_cases(path: Path) -> pd.DataFrame:
    """Read a cases.csv, names as they stand: a class called `None` or a patient `NA` is no missing value."""
    numbers = {column: [""] for column in pd.read_csv(path, nrows=0).columns if column not in TEXT_COLUMNS}
    return pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=False, na_values=numbers)


def find_prepared(folder: Path | str, task: str | None = None) -> Path | None:
    """The folder itself or its subfolder named after the task, whichever has a manifest; None when neither has."""
    own = [Path(folder), *([Path(folder) / task] if task else [])]
    return next((candidate for candidate in own if (candidate / "manifest.json").exists()), None)


@functools.lru_cache(maxsize=4)
def _open(folder: Path, _written_at: int) -> PreparedSet:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except ValueError as error:
        raise UserError(f"{folder / 'manifest.json'}: not readable ({error}); prepare the set again") from None
    for name, expected in manifest["files"].items():
        path = folder / name
        size = path.stat().st_size if path.exists() else 0
        if size != expected["bytes"]:
            raise UserError(f"{path}: {size} bytes, expected {expected['bytes']}; prepare the set again")
        if name.endswith(".csv") and _sha256(path) != expected["sha256"]:
            raise UserError(f"{path}: edited since it was prepared (its hash differs); prepare the set again")
    return PreparedSet(
        folder,
        manifest,
        read_cases(folder / "cases.csv"),
        np.load(folder / "images.npy", mmap_mode="r"),
        np.load(folder / "labels.npy", mmap_mode="r"),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def random_affine(
    images: torch.Tensor,
    labels: torch.Tensor | None,
    generator: torch.Generator,
    degrees: float,
    scale: float,
    shift: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Turn (in the plane of the last two axes), stretch and shift every case of a batch at random, on its device.

    images (B, C, ...) are interpolated linearly, label volumes (B, 1, ...) by nearest neighbour. `scale` and `shift` are
    fractions of the field of view. One resampling for the whole batch costs a tenth of a transform per case.
    """
    n, axes = len(images), images.ndim - 2

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    angle = torch.deg2rad(degrees * uniform(n))
    theta = torch.eye(axes, axes + 1).repeat(n, 1, 1)  # (B, axes, axes + 1): output -> input coordinates in [-1, 1]
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos(), -angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin(), angle.cos()
    theta[:, :, :axes] *= 1 + scale * uniform(n, 1, axes)
    theta[:, :, axes] = 2 * shift * uniform(n, axes)
    grid = torch.nn.functional.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    warp = functools.partial(torch.nn.functional.grid_sample, grid=grid, align_corners=False)
    images = warp(images + 1) - 1  # what comes from outside is 0 there: black, -1 here
    return images, None if labels is None else warp(labels.float(), mode="nearest").long()
