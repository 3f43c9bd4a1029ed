"""Writes a prepared set: aside, case by case, resumable; it appears at its place whole or not at all.

Beside `NAME` stands `.NAME.partial` while it is written, with one .npz a case. A file that is whole was read; the next call
takes it over. At the end the cases are put one after another into the arrays, and the folder takes the place of NAME.
"""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from fedlib.config import UserError
from fedlib.data.dataset import ARRAYS, PreparedDataset, describe, open_prepared
from fedlib.data.files import to_disk, write_atomically

NOT_WHOLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
"""What NumPy raises at a file that a power cut left."""


class PreparedWriter:
    """Takes cases by a key that changes when a file of theirs does; what an interrupted call read is known by its key.

    `reading` tells how cases are read (adapter, sizes, window): what was read in another way is not taken over. Memory holds
    what is known of each case, never the arrays.
    """

    def __init__(self, out: Path | str, reading: dict[str, Any]):
        # A link to a larger disk stays one: what it leads to is replaced.
        self.out = Path(out).resolve() if os.path.islink(out) else Path(out).absolute()
        self.folder = self.out.with_name(f".{self.out.name}.partial")
        self._whole = self.folder / "set" / "manifest.json"
        """There only while a whole set waits to be put in its place."""
        self.reading = reading
        self._entries: dict[str, dict[str, Any]] = {}

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
            self.folder.mkdir(exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._whole.exists() and not any(self.folder.glob("*.npz")):
            shutil.rmtree(self.folder, ignore_errors=True)
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def known(self, key: str) -> dict[str, Any] | None:
        """Return what was remembered of a case; None when it was not read."""
        if key not in self._entries:
            with suppress(*NOT_WHOLE), np.load(self._path(key)) as case:
                self._entries[key] = json.loads(str(case["entry"]))
        return self._entries.get(key)

    def add(self, key: str, image: np.ndarray, label: np.ndarray | int, **entry: Any) -> None:
        """Keep a case: a uint8 image (1, ...), a class index or a uint8 volume (...), and what else to remember."""
        text = json.dumps(entry)
        self._entries[key] = json.loads(text)  # as the next call will find it
        content = BytesIO()
        np.savez(content, image=image, label=np.asarray(label, np.uint8 if np.ndim(label) else np.int64), entry=text)
        with _disk(self.out):
            aside = self._path(key).with_suffix(".tmp")
            aside.write_bytes(content.getvalue())
            os.replace(aside, self._path(key))

    def finish(self, manifest: dict[str, Any], keys: list[str], tables: dict[str, pd.DataFrame]) -> PreparedDataset:
        """Write the set of the cases `keys`, in this order, with its tables by file name, and put it in its place."""
        with _disk(self.out):
            ready = self.folder / "set"
            shutil.rmtree(ready, ignore_errors=True)
            ready.mkdir(parents=True)
            self._write_arrays(ready, keys)
            for name, table in tables.items():
                table.to_csv(ready / name, index=False)
            described = describe({name: ready / name for name in (*ARRAYS, *tables)}, manifest)
            for path in ready.iterdir():
                to_disk(path)
            write_atomically(self._whole, json.dumps(described, indent=2))
            self._put_in_place()
        return open_prepared(self.out)

    def _write_arrays(self, folder: Path, keys: list[str]) -> None:
        """Put the cases one after another; not through a memory map, where a full disk would be a crash."""
        with (folder / ARRAYS[0]).open("wb") as images, (folder / ARRAYS[1]).open("wb") as labels:
            for number, key in enumerate(keys):
                for file, array in zip((images, labels), self._arrays(key), strict=True):
                    if number == 0:
                        shape = (len(keys), *array.shape)
                        header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(file, header)
                    file.write(array.tobytes())

    def _arrays(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            with np.load(self._path(key)) as case:
                return case["image"], case["label"]
        except NOT_WHOLE as error:
            self._path(key).unlink(missing_ok=True)
            raise UserError(f"--out {self.out}: a case was damaged ({error}); the same command reads it again") from None

    def _path(self, key: str) -> Path:
        read = json.dumps([self.reading, key])
        return self.folder / f"{hashlib.sha256(read.encode()).hexdigest()}.npz"

    def _put_in_place(self) -> None:
        old = self.folder / "old"
        if self.out.exists():
            shutil.rmtree(old, ignore_errors=True)
            self.out.rename(old)
        (self.folder / "set").rename(self.out)
        shutil.rmtree(self.folder)


@contextmanager
def _disk(out: Path) -> Iterator[None]:
    """Turn what the file system refuses (full, read-only) into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error}); expected a folder with room") from None
