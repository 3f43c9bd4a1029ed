"""Single images without a label, prepared as the cases of a set were: what a prediction needs."""

import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import cardiac, nifti
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
    settings = chosen(choices)
    prepare = _volumes(settings) if task == "segmentation" else _radiographs(settings["size"])
    with _files(source) as files:
        yield from files.unsafe.items()
        for name in files.stamps:
            try:
                found = prepare(name, files.read(name))
            except UserError as error:
                found = str(error)
            except Exception as error:  # a library met what its authors did not think of, as in `pipeline`
                found = " ".join(f"{name}: cannot be prepared ({type(error).__name__}: {error})".split())
            yield name, found


def _files(source: Path) -> AbstractContextManager[Files]:
    if source.is_file() and not zipfile.is_zipfile(source):
        about = source.stat()
        return nullcontext(Files(source.parent, "", {source.name: (about.st_size, about.st_mtime_ns)}))
    return opened(source)


def _radiographs(size: int) -> Callable[[str, bytes], Single]:
    def prepare(name: str, content: bytes) -> Single:
        grey, aspect, *_ = read_grey(name, content)
        return Single(squared(grey, size, aspect)[np.newaxis])

    return prepare


def _volumes(stated: dict[str, Any]) -> Callable[[str, bytes], Single]:
    from data_prep import resampling  # here: MONAI takes seconds to import, which radiographs do not need

    window = None if isinstance(stated["window"], str) else tuple(stated["window"])
    whole = stated["crop"] != "centre"
    if whole and not window:
        raise UserError("crop = heart: grey values by percentiles around a labelled heart; a new volume has no label")
    sizes = {name: tuple(stated[name]) for name in ("spacing_mm", "size")}
    settings = cardiac.Settings(modality=stated["modality"], window=window, **sizes)

    def prepare(name: str, content: bytes) -> Single:
        volume = nifti.read(name, content)
        cardiac.check_finite(volume)
        cardiac.check_memory(name, volume.stored.shape * nifti.spacing(volume.affine), settings)
        grey, *_ = cardiac.grey_values(volume, settings)
        grey = grey if whole else resampling.to_size(grey, settings.size)
        return Single(np.rint(grey.numpy()).astype(np.uint8), grey.affine.numpy(), volume.stored.shape, volume.affine)

    return prepare
