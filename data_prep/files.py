"""The raw files of a source: a folder or a zip through one door, read one at a time and never unpacked."""

import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from unicodedata import category, normalize

import pandas as pd

from fedlib.config import UserError
from fedlib.data.dataset import ARRAYS

MAX_BYTES = 4 * 2**30
"""No image or volume is larger; what claims to be would only fill the memory (a zip bomb)."""
IGNORED = {"__MACOSX", "Thumbs.db", "desktop.ini"}
"""What operating systems leave behind; so are names that begin with a dot."""
DAMAGED = (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, struct.error, zlib.error, EOFError)
"""What zipfile raises."""


@dataclass(frozen=True)
class Files:
    """The files below a folder or in a zip, by name: relative, with `/`, without the lone top folders."""

    source: Path
    prefix: str
    """The lone top folders, as in `COVID-19_Radiography_Dataset/`; empty or ending in `/`."""
    stamps: dict[str, tuple[int, int]]
    """Name to size and time of change (folder) or checksum (zip), in natural order: equal stamps, unchanged file."""
    archive: zipfile.ZipFile | None = None
    unsafe: dict[str, str] = field(default_factory=dict)
    """Names that are not read, with the reason: links and paths that lead out, pipes, names that are no text."""

    def where(self, name: str) -> str:
        """Return how messages name a file."""
        return f"{self.source}{':' if self.archive else '/'}{self.prefix}{name}"

    def read(self, name: str, most: int | None = None) -> bytes:
        """Return the content of a file, or its first `most` bytes.

        Raises UserError (`name: ...`) when it is missing, damaged or larger than MAX_BYTES.
        """
        size = self.stamps[name][0]
        if size > MAX_BYTES and most is None:
            raise UserError(f"{name}: {size} bytes, expected at most {MAX_BYTES}")
        try:
            with self._open(name) as stream:
                return stream.read(size if most is None else most)  # no more than declared, whatever is in a zip
        except DAMAGED as error:
            cause = error if isinstance(error, OSError) else None  # of the disk, which may do better next time
            raise UserError(f"{name}: damaged or not readable ({error}); expected a whole file") from cause

    def _open(self, name: str) -> BinaryIO:
        if self.archive:
            return self.archive.open(self.prefix + name)
        return (self.source / self.prefix / name).open("rb")


@contextmanager
def opened(source: Path) -> Iterator[Files]:
    """Open a folder or a zip. Raises UserError when it is missing, empty, protected, or no zip."""
    if not os.path.exists(source):  # Path.exists raises where a name is too long
        raise UserError(f"--input {source}: does not exist; expected a folder or a zip")
    if source.is_dir():
        yield _files(source, *_walk(source))
        return
    if not source.is_file() or not zipfile.is_zipfile(source):
        raise UserError(f"--input {source}: is not a zip, or cut short; expected a folder or a whole zip")
    try:
        archive = zipfile.ZipFile(source)
    except DAMAGED as error:
        raise UserError(f"--input {source}: damaged ({error}); expected a plain zip") from None
    with archive:
        if any(member.flag_bits & 1 for member in archive.infolist()):
            raise UserError(f"--input {source}: protected by a password; expected a plain zip")
        yield _files(source, *_members(archive), archive)


def read_table(content: bytes, separator: str) -> pd.DataFrame:
    """Return a table in UTF-8, with or without a mark at its start, as cleaned text. Raises ValueError, in one line."""
    try:
        table = pd.read_csv(StringIO(content.decode("utf-8-sig")), sep=separator, dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' own kinds: no columns, ragged rows, not text
        raise ValueError(f"not a table, or not in UTF-8: {' '.join(str(error).split())}") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes what is too much for row names
        raise ValueError("its rows have more fields than it has columns")
    table.columns = [cleaned(column) for column in table.columns]
    if table.columns.has_duplicates:
        raise ValueError(f"column {table.columns[table.columns.duplicated()][0]} twice")
    return table.apply(lambda column: column if column.name == "file" else column.map(cleaned))


def cleaned(text: str) -> str:
    """Return a name as people read it: one Unicode form, no invisible characters, single blanks and none around it."""
    return " ".join("".join(sign for sign in normalize("NFC", text) if category(sign) != "Cf").split())


def natural_key(name: str) -> list[str | int]:
    """Return a sort key that puts `case-2` before `case-10`."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"(\d{1,18})", name))]


def _files(
    source: Path, stamps: dict[str, tuple[int, int]], unsafe: dict[str, str], archive: zipfile.ZipFile | None = None
) -> Files:
    shown = {name: stamp for name, stamp in stamps.items() if not _ignored(name)}
    refused = {name: unsafe[name] for name in sorted(unsafe) if not _ignored(name)}
    if not shown:
        first = "".join(f", except {name} ({why})" for name, why in list(refused.items())[:1])
        raise UserError(f"--input {source}: is empty{first}; expected images")
    common = PurePosixPath(os.path.commonpath([str(PurePosixPath(name).parent) for name in shown]))
    prefix = "" if str(common) == "." else f"{common}/"
    inner = {name.removeprefix(prefix): shown[name] for name in sorted(sorted(shown), key=natural_key)}
    return Files(source, prefix, inner, archive, {name.removeprefix(prefix): why for name, why in refused.items()})


def _ignored(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") or part in IGNORED for part in name.split("/"))


def _walk(folder: Path) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    stamps, unsafe, root = {}, {}, folder.resolve()

    def refuse(error: OSError) -> None:
        raise UserError(f"--input {error.filename}: cannot be listed ({error.strerror}); expected a readable folder")

    for parent, folders, files in os.walk(folder, onerror=refuse):
        if {*ARRAYS, "manifest.json"} <= set(files):  # a prepared set among its raw files is none of them
            folders.clear()
            continue
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for entry in files + links:
            path = Path(parent, entry)
            name = path.relative_to(folder).as_posix()
            if reason := _why_unsafe(path, name, root):
                unsafe[" ".join(name.encode(errors="replace").decode().split())] = reason
            elif entry in files:
                found = path.stat()
                stamps[name] = (found.st_size, found.st_mtime_ns)
    return stamps, unsafe


def _why_unsafe(path: Path, name: str, root: Path) -> str:
    try:
        name.encode()
        real = path.resolve(strict=True)
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        if isinstance(error, PermissionError) and not os.path.islink(path):
            why = f"cannot be entered ({error.strerror}); expected a readable folder"
            raise UserError(f"--input {path.parent}: {why}") from None
        return "a link that leads nowhere"
    if len(name.splitlines()) > 1:
        return "a line break in its name; rename it"
    if not real.is_relative_to(root):
        return f"a link out of the folder, to {real}; expected a file in it"
    return "" if real.is_dir() or stat.S_ISREG(real.stat().st_mode) else "neither a file nor a folder"


def _members(archive: zipfile.ZipFile) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    stamps, unsafe = {}, {}
    for member in archive.infolist():
        name = member.filename
        if member.is_dir():
            continue
        if {"", ".", ".."} & set(name.split("/")) or ":" in name.split("/")[0]:
            unsafe[name] = "its path leads out of the zip, or is not plain; expected one like folder/name"
        elif "\\" in name or len(name.splitlines()) > 1:
            unsafe[" ".join(name.split())] = "a backslash or a line break in its name; expected / between folders"
        elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            unsafe[name] = "packed in a way that cannot be read safely; expected plain zip compression (deflate)"
        elif stat.S_ISLNK(member.external_attr >> 16):
            unsafe[name] = "a link inside a zip; expected a file"
        elif name in stamps or name in unsafe:
            stamps.pop(name, None)
            unsafe[name] = "twice in the zip; expected it once"
        else:
            stamps[name] = (member.file_size, member.CRC)
    return stamps, unsafe
