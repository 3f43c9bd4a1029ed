"""Good raw files of every source, made small, and the tools that spoil them: zips and NIfTI pairs with one fault."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.covid19_radiography import COUNTS
from tests.data_prep import cardiac_raw, raw


def radiographs(folder: Path, n: int = 4) -> Path:
    """The COVID-19 Radiography Database with `n` images a class, their masks, and one table of sites."""
    for number, name in enumerate(COUNTS):
        for kind in ("images", "masks"):
            (folder / name / kind).mkdir(parents=True)
            for image in range(1, n + 1):
                picture = Image.fromarray(raw.picture(100 * number + image))
                picture.save(folder / name / kind / f"{name}-{image}.png")
    return folder


@dataclass(frozen=True)
class Source:
    """Writes good raw files into a new folder, and the options that fit them."""

    make: Callable[[Path], Path]
    options: tuple[str, ...]
    cases: int
    task: str


VOLUMES = raw.SETTINGS
SOURCES = {
    "class-folders": Source(
        lambda folder: raw.class_folders(folder, {"healthy": 6, "ill": 6}), ("--size", "16"), 12, "classification"
    ),
    "covid19-radiography": Source(radiographs, ("--size", "16", "--subset"), 16, "classification"),
    "mmwhs": Source(lambda folder: raw.pairs(folder, 5), VOLUMES, 5, "segmentation"),
    "totalsegmentator": Source(lambda folder: cardiac_raw.scans(folder, 5), (*VOLUMES, "--margin", "0"), 5, "segmentation"),
    "msd": Source(lambda folder: cardiac_raw.tasks(folder, 5), VOLUMES, 5, "segmentation"),
}


def zipped(folder: Path) -> Path:
    """Pack a folder into `x.zip` beside it."""
    return raw.zipped(folder, folder.parent / "x.zip")


def with_member(folder: Path, name: str, like: str, kind: int = zipfile.ZIP_DEFLATED, mode: int = 0) -> Path:
    """Pack a folder into `x.zip`, and once more its file `like` as `name`, which may be one that no tool would write."""
    archive = zipped(folder)
    member = zipfile.ZipInfo(name)
    member.compress_type, member.external_attr = kind, mode << 16
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr(member, (folder / like).read_bytes())
    return archive


def with_bytes(archive: Path, start: int, replaced: bytes) -> Path:
    """Overwrite bytes of a file in place."""
    content = bytearray(archive.read_bytes())
    content[start : start + len(replaced)] = replaced
    archive.write_bytes(content)
    return archive


def shifted(voxels: float) -> np.ndarray:
    """The affine of the raw volumes, moved along the first axis."""
    affine = raw.AFFINE.copy()
    affine[0, 3] += 2 * voxels
    return affine


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    """The array as float32, with one other value."""
    changed = array.astype(np.float32)
    changed[3, 3, 3] = value
    return changed


def flipped(content: bytes) -> bytes:
    """The bytes with every bit turned round."""
    return bytes(byte ^ 255 for byte in content)


def put(folder: Path, name: str, content: bytes) -> None:
    """Write a file below a folder."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def removed(folder: Path, *names: str) -> None:
    """Remove files below a folder."""
    for name in names:
        (folder / name).unlink()
