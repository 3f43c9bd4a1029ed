"""The raw files of a source: a folder or a zip through one door, read one at a time and never unpacked."""

import os
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import BinaryIO
from unicodedata import category, normalize

import pandas as pd

from fedlib.config import UserError
from fedlib.data.dataset import ARRAYS

MAX_BYTES = 4 * 2**30
"""No image or volume is larger; what claims to be would only fill the memory (a zip bomb)."""
IGNORED = {"__MACOSX", "Thumbs.db", "desktop.ini"}
"""What operating systems leave behind; so are names that begin with a dot."""
Stamp = tuple[int, int]
"""Size and time of change (folder) or checksum (zip): an equal stamp, an unchanged file."""


@dataclass(frozen=True)
class Files:
    """The files below a folder or in a zip, by name: relative, with `/`, without the lone top folders."""

    source: Path
    prefix: str
    """The lone top folders, as in `COVID-19_Radiography_Dataset/`; empty or ending in `/`."""
    stamps: dict[str, Stamp]
    """In natural order."""
    archive: zipfile.ZipFile | None = None
    unsafe: dict[str, str] = field(default_factory=dict)
    """Names that are not read, with the reason: links, paths that lead out, pipes, names that are no text."""

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
        except Exception as error:  # zipfile answers bad bytes with some ten kinds
            raise UserError(f"{name}: damaged or not readable ({error}); expected a whole file") from None

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
        yield _sorted(source, _in_folder(source))
        return
    try:
        archive = zipfile.ZipFile(source if source.is_file() else os.devnull)  # a pipe would be waited for
    except Exception as error:  # see Files.read
        why = f"is not a zip, cut short or damaged ({error})"
        raise UserError(f"--input {source}: {why}; expected a folder or a whole zip") from None
    with archive:
        if any(member.flag_bits & 1 for member in archive.infolist()):
            raise UserError(f"--input {source}: protected by a password; expected a plain zip")
        yield _sorted(source, _in_zip(archive), archive)


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


def _sorted(source: Path, entries: Iterable[tuple[str, Stamp | str]], archive: zipfile.ZipFile | None = None) -> Files:
    """Sort names with their stamps, or with the reason why they are not read."""
    stamps, unsafe = {}, {}
    for name, found in entries:
        if any(part.startswith(".") and part not in (".", "..") or part in IGNORED for part in name.split("/")):
            continue
        shown = " ".join(name.encode(errors="replace").decode().split())
        if name in stamps or shown in unsafe:
            stamps.pop(name, None)
            found = "twice in the zip; expected it once"
        if isinstance(found, str):
            unsafe[shown] = found
        else:
            stamps[name] = found
    if not stamps:
        first = "".join(f", except {name} ({why})" for name, why in sorted(unsafe.items())[:1])
        raise UserError(f"--input {source}: is empty{first}; expected images")
    common = os.path.commonpath([os.path.dirname(name) for name in stamps])
    prefix = common and f"{common}/"
    inner = {name.removeprefix(prefix): stamps[name] for name in sorted(sorted(stamps), key=natural_key)}
    return Files(source, prefix, inner, archive, {name.removeprefix(prefix): unsafe[name] for name in sorted(unsafe)})


def _in_folder(folder: Path) -> Iterator[tuple[str, Stamp | str]]:
    def refuse(error: OSError) -> None:
        why = f"cannot be read ({error.strerror}); expected a readable folder"
        raise UserError(f"--input {error.filename}: {why}") from None

    for parent, folders, names in os.walk(folder, onerror=refuse):
        if {*ARRAYS, "manifest.json"} <= set(names):  # a prepared set among its raw files is none of them
            folders.clear()
            continue
        for path in (Path(parent, name) for name in names + folders):
            try:
                found = path.lstat()
            except OSError as error:
                refuse(error)
            if not stat.S_ISDIR(found.st_mode):
                name = path.relative_to(folder).as_posix()
                yield name, _why_unsafe(name, found.st_mode) or (found.st_size, found.st_mtime_ns)


def _why_unsafe(name: str, mode: int) -> str:
    if name != name.encode(errors="replace").decode() or len(name.splitlines()) > 1:
        return "a line break, or what is not UTF-8, in its name; rename it"
    if stat.S_ISLNK(mode):
        return "a link; expected the file itself"
    return "" if stat.S_ISREG(mode) else "neither a file nor a folder"


def _in_zip(archive: zipfile.ZipFile) -> Iterator[tuple[str, Stamp | str]]:
    for member in archive.infolist():
        name = member.filename
        if member.is_dir():
            continue
        if {"", ".", ".."} & set(name.split("/")) or ":" in name.split("/")[0]:
            yield name, "its path leads out of the zip, or is not plain; expected one like folder/name"
        elif "\\" in name or len(name.splitlines()) > 1:
            yield name, "a backslash or a line break in its name; expected / between folders"
        elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            yield name, "packed in a way that cannot be read safely; expected plain zip compression (deflate)"
        elif stat.S_ISLNK(member.external_attr >> 16):
            yield name, "a link; expected the file itself"
        else:
            yield name, (member.file_size, member.CRC)
