"""Prepared sets made small and fast: by the writer itself, and by `prepare` with a loader that needs no decoder."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from data_prep.cases import Case, Loaded
from data_prep.files import opened
from data_prep.pipeline import prepare
from data_prep.writer import PreparedWriter
from fedlib.config import UserError
from fedlib.data.dataset import PreparedDataset

READING = {"source": "made-up", "classes": ["a", "b"], "recipe": {"size": 32}, "synthetic": True}
MANIFEST = READING | {"task": "classification", "spacing_mm": None, "title": "t"}


def pixels(seed: int, size: int = 32) -> np.ndarray:
    """A picture that looks like no other: blurred noise, uint8 (1, size, size)."""
    smooth = gaussian_filter(np.random.default_rng(seed).random((1, size, size)), (0, 2, 2))
    return np.uint8(255 * (smooth - smooth.min()) / np.ptp(smooth))


def write(out: Path, numbers: Iterable[int] = range(6), before: Callable[[int], None] = lambda number: None, **reading):
    """Write or resume the set of the cases `numbers`; `before(number)` is called before each that is not known yet."""
    with PreparedWriter(out, READING | reading) as writer:
        for number in numbers:
            if not writer.known(f"k{number}"):
                before(number)
                writer.add(f"k{number}", pixels(number), number % 2, columns={"n": number})
        table = pd.DataFrame(
            {"case": [f"c{number}" for number in numbers], "patient": [f"00{number}" for number in numbers]}
        ).assign(split="train", label="a", n=[writer.known(f"k{number}")["columns"]["n"] for number in numbers])
        return writer.finish(MANIFEST | reading, [f"k{number}" for number in numbers], {"cases.csv": table})


def raw(folder: Path, n: int = 12) -> Path:
    """Write n files c1.raw, c2.raw, ... that hold nothing but their number; see `cases_of` and `load`."""
    folder.mkdir(exist_ok=True)
    for number in range(1, n + 1):
        (folder / f"c{number}.raw").write_text(str(number))
    return folder


def cases_of(folder: Path) -> list[Case]:
    """A case a file, in two classes in turn."""
    with opened(folder) as files:
        return [Case(name[:-4], name[:-4], name, "ab"[number % 2]) for number, name in enumerate(files.stamps)]


def load(case: Case, contents: list[bytes]) -> Loaded:
    """The picture whose number stands in the file."""
    text = contents[0].decode()
    if not text.isdigit():
        raise UserError(f"{case.image}: {text!r}, expected a number")
    return pixels(int(text)), "ab".index(case.label), {"width": 32}


def prepared(
    folder: Path, out: Path, load=load, cases: list[Case] | None = None, manifest=MANIFEST, **options
) -> PreparedDataset:
    """`prepare` for such a folder, one case at a time unless asked otherwise."""
    with opened(folder) as files:
        return prepare(files, cases_of(folder) if cases is None else cases, load, out, manifest, **{"jobs": 1} | options)
