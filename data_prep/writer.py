"""Writes a prepared set: aside, case by case, resumable; it appears at its place whole or not at all.

Beside `NAME` stands `.NAME.partial` while it is written: the arrays in the order in which cases arrived, and
`journal.jsonl`, a line for each case that was read. An array is on the disk before the line that tells of it, so after any
interruption the journal is right; the next writer cuts the arrays to what it says and goes on.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from fedlib.config import UserError
from fedlib.data.dataset import ARRAYS, PreparedSet, describe, open_prepared
from fedlib.data.files import to_disk, write_atomically

COMMIT_SECONDS = 2.0
"""At most so much work is lost to a power cut."""


class PreparedWriter:
    """Takes cases by a key that changes when a file of theirs does; what an earlier call read is known by its key.

    `reading` says how cases are read (adapter, sizes, window): what was read in another way is not taken over. Memory holds
    the entries of the journal, never the arrays.
    """

    def __init__(self, out: Path | str, reading: dict[str, Any]):
        # A link to a larger disk stays one: what it leads to is replaced.
        self.out = Path(out).resolve() if os.path.islink(out) else Path(out).absolute()
        self.folder = self.out.with_name(f".{self.out.name}.partial")
        self._whole = self.folder / "set" / "manifest.json"
        """There only while a whole set waits to be put in its place."""
        self.reading = json.loads(json.dumps(reading))
        self.entries: dict[str, dict[str, Any]] = {}
        """Key to what is known of a case: its `row` in the arrays and what came with it, or the `reason` it was refused."""
        self._arrays: list[_GrowingArray] = []
        self._lines: list[str] = []
        self._committed = time.monotonic()

    def __enter__(self) -> "PreparedWriter":
        if self.out.is_mount():
            raise UserError(f"--out {self.out}: a mount point, which cannot be replaced; expected a folder inside it")
        with _disk(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.out.with_name(f".{self.out.name}.partial.lock"), timeout=0)
            Path(self._lock.lock_file).touch()  # says what is wrong with the place; FileLock would only say Timeout
            try:
                self._lock.acquire()
            except Timeout:
                raise UserError(f"--out {self.out}: another data_prep is writing it; wait for it, or stop it") from None
            if self._whole.exists():  # killed while it was being put in its place
                self._put_in_place()
            if not self._resume():
                shutil.rmtree(self.folder, ignore_errors=True)
                self.entries = self._finished()
        return self

    def __exit__(self, *_: object) -> None:
        for last in (self._commit, *(array.file.close for array in self._arrays)):
            with suppress(OSError):  # the disk that was full is still full; the error that brought us here says so
                last()
        if not self._arrays and not self._whole.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def add(self, key: str, image: np.ndarray, label: np.ndarray | int, **known: Any) -> None:
        """Append a case: a uint8 image (1, ...), a class index or a uint8 volume (...), and what else to remember."""
        label = np.asarray(label, np.uint8 if np.ndim(label) else np.int64)
        with _disk(self.out):
            if not self._arrays:
                self._start(image, label)
            for array, value in zip(self._arrays, (image, label), strict=True):
                array.append(value)
            self._remember(key, known | {"row": self._arrays[0].n - 1})

    def refuse(self, key: str, reason: str) -> None:
        """Remember that a case cannot be used, and why."""
        with _disk(self.out):
            self._remember(key, {"reason": reason})

    def finish(self, manifest: dict[str, Any], keys: list[str], tables: dict[str, pd.DataFrame]) -> PreparedSet:
        """Write the set of the cases `keys`, in this order, with its tables by file name, and put it in its place."""
        with _disk(self.out):
            if not self._arrays:
                self._start()
            self._commit()
            ready = self.folder / "set"
            shutil.rmtree(ready, ignore_errors=True)
            ready.mkdir()
            rows = [self.entries[key]["row"] for key in keys]
            paths = {array.path.name: array.in_order(rows, ready) for array in self._arrays}
            for name, table in tables.items():
                table.to_csv(ready / name, index=False)
                paths[name] = ready / name
            kept = {key: self.entries[key] | {"row": row} for row, key in enumerate(keys)}
            refused = {key: entry for key, entry in self.entries.items() if "reason" in entry}
            (ready / "journal.jsonl").write_text("".join(_line(*item) for item in (kept | refused).items()))
            described = describe(paths, manifest | {"reading": self.reading})
            for name, path in paths.items():
                path.rename(ready / name)
            for path in ready.iterdir():
                to_disk(path)
            write_atomically(self._whole, json.dumps(described, indent=2))
            self._arrays = []
            self._put_in_place()
        return open_prepared(self.out)

    def _resume(self) -> bool:
        """Take over what an interrupted call left, if it read cases in our way and its arrays hold what its journal says."""
        if _json(self.folder / "reading.json") != self.reading:
            return False
        self.entries = _journal(self.folder)
        write_atomically(self.folder / "journal.jsonl", "".join(_line(*item) for item in self.entries.items()))
        rows = sum("row" in entry for entry in self.entries.values())
        try:
            self._arrays = [_GrowingArray(self.folder / name, rows) for name in ARRAYS]
        except (OSError, ValueError):
            return False
        return True

    def _finished(self) -> dict[str, dict[str, Any]]:
        """The entries of the finished set, if it was read in our way; `_start` then copies its arrays."""
        try:
            known = open_prepared(self.out)
        except UserError:  # none, or a damaged one: every file is read again
            return {}
        return _journal(self.out) if known.manifest["reading"] == self.reading else {}

    def _start(self, *first: np.ndarray) -> None:
        """Begin the partial folder: with the finished set's arrays where its entries are known, else with empty ones."""
        self.folder.mkdir(exist_ok=True)
        rows = sum("row" in entry for entry in self.entries.values())
        for number, name in enumerate(ARRAYS):
            if rows:
                shutil.copyfile(self.out / name, self.folder / name)
            self._arrays.append(_GrowingArray(self.folder / name, rows, None if rows else first[number]))
        self._lines = [_line(*item) for item in self.entries.items()]
        (self.folder / "reading.json").write_text(json.dumps(self.reading))

    def _remember(self, key: str, entry: dict[str, Any]) -> None:
        line = _line(key, entry)
        self.entries[key] = json.loads(line)[1]  # as the next call will find it
        self._lines.append(line)
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        if not self._arrays or not self._lines:  # only refusals so far, nothing that was costly to find; or nothing new
            return
        for array in self._arrays:
            array.file.flush()
            os.fsync(array.file.fileno())
        with (self.folder / "journal.jsonl").open("a") as journal:
            journal.writelines(self._lines)
        self._lines, self._committed = [], time.monotonic()

    def _put_in_place(self) -> None:
        old = self.folder / "old"
        if self.out.exists():
            shutil.rmtree(old, ignore_errors=True)
            self.out.rename(old)
        (self.folder / "set").rename(self.out)
        shutil.rmtree(self.folder)


class _GrowingArray:
    """An .npy file that grows by appending: NumPy pads its header so that the first axis can be rewritten in place.

    New with the shape of `first`, or the first `n` cases of the one at `path`: ValueError when it has fewer.
    """

    def __init__(self, path: Path, n: int, first: np.ndarray | None = None):
        self.path, self.n = path, n
        if first is not None:
            self.file, self.shape, self.dtype = path.open("wb+"), first.shape, first.dtype
            self._write_header()
            return
        self.file = path.open("rb+")
        np.lib.format.read_magic(self.file)
        (_, *shape), _, self.dtype = np.lib.format.read_array_header_1_0(self.file)
        self.shape = tuple(shape)
        end = self.file.tell() + n * self.dtype.itemsize * int(np.prod(self.shape))
        if self.file.seek(0, os.SEEK_END) < end:
            raise ValueError(f"{path}: shorter than {n} cases")
        self.file.truncate(end)
        self.file.seek(end)

    def append(self, array: np.ndarray) -> None:
        if (array.shape, array.dtype) != (self.shape, self.dtype):
            raise ValueError(f"{self.path.name}: {array.dtype} {array.shape}, expected {self.dtype} {self.shape}")
        self.file.write(np.ascontiguousarray(array).data)
        self.n += 1

    def in_order(self, rows: list[int], folder: Path) -> Path:
        """Close the array and give the file that holds just these rows: itself, or a copy in `folder`."""
        self.file.seek(0)
        self._write_header()
        self.file.close()
        if rows == list(range(self.n)):
            return self.path
        known = np.load(self.path, mmap_mode="r")
        copy = _GrowingArray(folder / self.path.name, 0, known[0])  # no map: on a full disk, writing to one is a crash
        for row in rows:
            copy.append(known[row])
        return copy.in_order(list(range(copy.n)), folder)

    def _write_header(self) -> None:
        described = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.n, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, described)


@contextmanager
def _disk(out: Path) -> Iterator[None]:
    """Turn what the file system refuses (full, read-only) into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error}); expected a folder with room") from None


def _line(key: str, entry: dict[str, Any]) -> str:
    return json.dumps([key, entry]) + "\n"


def _journal(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries that stand whole in the journal: a process that was killed may leave half a line at its end."""
    try:
        lines = (folder / "journal.jsonl").read_text().splitlines()
    except (OSError, ValueError):
        return {}
    entries = {}
    for line in lines:
        try:
            key, entry = json.loads(line)
        except ValueError:
            break  # what follows cannot be right either: rows count up
        entries[key] = entry
    return entries


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
