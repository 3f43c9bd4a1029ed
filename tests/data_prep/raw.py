"""Raw images as a hospital would deliver them, made small: class folders of PNGs and pairs of NIfTI volumes."""

import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

AFFINE = np.diag([-2.0, -2.0, 2.0, 1.0])  # axes run to the left, to the back and up, as CT is often stored
SETTINGS = ("--spacing", "2,2,2", "--size", "16,16,16")


def picture(seed: int, size: int = 20) -> np.ndarray:
    """A grey picture (size, size) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)


def class_folders(folder: Path, counts: dict[str, int] | None = None) -> Path:
    """Write PNGs into <class>/, numbered so that sorting as text and as numbers differ."""
    for number, (name, n) in enumerate((counts or {"healthy": 12, "ill": 12}).items()):
        (folder / name).mkdir(parents=True)
        for image in range(n):
            Image.fromarray(picture(1000 * number + image)).save(folder / name / f"{name}-{image + 1}.png")
    return folder


def heart(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image in HU and label with the values of MM-WHS, both (16, 16, 16) int16; no symmetry."""
    rng = np.random.default_rng(seed)
    image = rng.integers(-200, 100, (16, 16, 16), dtype=np.int16)
    label = np.zeros((16, 16, 16), np.int16)
    label[4:11, 5:10, 3:9] = 205
    label[6:9, 6:9, 4:8] = 500
    label[13, 13, 13] = 600  # some other structure
    image[label > 0] += 250
    return image, label


def write_volume(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nib.save(nib.Nifti1Image(array, affine), path)


def pairs(folder: Path, n: int = 6) -> Path:
    """Write pairs case_<n>_image.nii.gz and case_<n>_label.nii.gz."""
    folder.mkdir(parents=True)
    for number in range(1, n + 1):
        for kind, array in zip(("image", "label"), heart(number), strict=True):
            write_volume(folder / f"case_{number}_{kind}.nii.gz", array)
    return folder


def zipped(folder: Path, archive: Path, top: str = "") -> Path:
    """Pack a folder, below a top folder if one is named."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, Path(top) / path.relative_to(folder))
    return archive
