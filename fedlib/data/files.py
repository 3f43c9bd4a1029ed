"""Files that are whole or not there, and their hashes."""

import contextlib
import hashlib
import os
from pathlib import Path

from fedlib.config import UserError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a temporary file in the same folder, then rename it: a reader sees the old file or the new one, never a part.

    That holds after a power cut, too. What cannot be written (a full disk) raises OSError and leaves nothing aside.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        to_disk(aside)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error says what is wrong
            aside.unlink()
        raise


def require_empty(folder: Path, option: str) -> None:
    """Raise UserError, naming the option, when a folder to be written has something in it."""
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{option} {folder}: is not empty; expected a new folder")


def to_disk(path: Path) -> None:
    """Wait until the content of a file is on the disk: a rename may get there sooner, and then names an empty file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def file_sha256(path: Path) -> str:
    """Return the hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
