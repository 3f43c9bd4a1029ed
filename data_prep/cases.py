"""What an adapter finds in its source: the cases, and how one of them is turned into arrays."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedlib.config import UserError


@dataclass(frozen=True)
class Case:
    """One image or volume, found but not yet read. Names of files are those of `Files`."""

    case: str
    patient: str
    image: str
    label: str = ""
    """Class name (classification)."""
    label_files: tuple[str, ...] = ()
    """Label volume, or one mask a structure (segmentation)."""
    dup_group: str = ""
    """Cases with the same text here are duplicates of each other; empty: none known."""
    split: str = ""
    """train, val or test where the source states it; empty: to be assigned."""
    columns: dict[str, Any] = field(default_factory=dict)
    """What else the source states about the case; kept in cases.csv."""

    @property
    def files(self) -> tuple[str, ...]:
        """All files of the case, the image first."""
        return (self.image, *self.label_files)


Loaded = tuple[np.ndarray, np.ndarray | int, dict[str, Any]]
"""uint8 image (1, ...), class index or uint8 label volume (...), and more columns for cases.csv. Text in the column `note`
is not kept there: it becomes a warning."""

Loader = Callable[[Case, list[bytes]], Loaded]
"""Turns the content of `case.files`, in that order, into arrays. Raises UserError, in one line that begins with the name of
the file at fault (`ill/ill-3.png: ...`) and says what was expected; the pipeline puts folder or zip before it."""


def choice(setting: str, value: Any, reason: str) -> dict[str, Any]:
    """Return a row of the manifest's `choices`: what was chosen, and why."""
    return {"setting": setting, "value": value, "reason": reason, "label": "chosen"}


@contextmanager
def named(file: str) -> Iterator[None]:
    """Turn what a library raises, where its authors did not think of such a file, into a UserError about that file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{file}: cannot be prepared ({why})") from None
