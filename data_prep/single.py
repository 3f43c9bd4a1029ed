"""Single images without a label, prepared as the cases of a set were: what a prediction needs."""

import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import cardiac, nifti
from data_prep.cases import named
from data_prep.files import Files, opened
from data_prep.radiographs import read_grey, squared
from fedlib.config import UserError
from fedlib.data.dataset import chosen


@dataclass(frozen=True)
class Single:
    """A prepared image and, of a volume, where it lies: affines lead from voxels to mm in RAS."""

    image: np.ndarray
    """uint8 (1, H, W) or (1, X, Y, Z)."""
    affine: np.ndarray | None = None
    own_shape: tuple[int, ...] = ()
    """(X, Y, Z) of the file, in the order of its own axes."""
    own_affine: np.ndarray | None = None


def singles(source: Path, task: str, choices: list[dict[str, Any]]) -> Iterator[tuple[str, Single | str]]:
    """Yield each file of a folder, a zip, or one file by name, with its image prepared or why it cannot be used.

    `choices` are those of a set's manifest. A set cut around labelled hearts is no guide where a new one lies: such volumes
    are prepared whole. Raises UserError when `source` does not exist or is empty.
    """
    stated = chosen(choices)
    settings = _settings(stated) if task == "segmentation" else None
    with _files(source) as files:
        yield from files.unsafe.items()
        for name in files.stamps:
            try:
                with named(name):
                    content = files.read(name)
                    found = _volume(name, content, settings) if settings else _radiograph(name, content, stated["size"])
            except UserError as error:
                found = str(error)
            yield name, found


def _files(source: Path) -> AbstractContextManager[Files]:
    if source.is_file() and not zipfile.is_zipfile(source):
        about = source.stat()
        return nullcontext(Files(source.parent, "", {source.name: (about.st_size, about.st_mtime_ns)}))
    return opened(source)


def _settings(stated: dict[str, Any]) -> cardiac.Settings:
    window = None if isinstance(stated["window"], str) else stated["window"]
    if stated["crop"] != "centre" and not window:
        raise UserError("crop = heart: grey values by percentiles around a labelled heart; a new volume has no label")
    crop = "centre" if stated["crop"] == "centre" else "heart"  # a merged set says how each of its parts was cropped
    same = {name: stated[name] for name in ("spacing_mm", "size", "modality")}
    return cardiac.Settings(window=window, crop=crop, **same)


def _radiograph(name: str, content: bytes, size: int) -> Single:
    grey, aspect, *_ = read_grey(name, content)
    return Single(squared(grey, size, aspect)[np.newaxis])


def _volume(name: str, content: bytes, settings: cardiac.Settings) -> Single:
    volume = nifti.read(name, content)
    grey, *_ = cardiac.grey_values(volume, settings)
    size = settings.size if settings.crop == "centre" else grey.shape[1:]
    return Single(*cardiac.fitted(grey, size), volume.values.shape, volume.affine)
