"""Cardiac volumes as NIfTI pairs in the naming of MM-WHS: `*_image.nii.gz` and `*_label.nii.gz`.

Label values of MM-WHS: LV blood pool 500, myocardium 205. Whatever else is labelled becomes background.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    Orientationd,
    ResizeWithPadOrCropd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Spacingd,
)

from data_prep.pipeline import Case, Loader, natural_key
from fedlib.config import UserError

TASK = "segmentation"
CLASSES = ["background", "LV", "Myo"]
HU_WINDOW = (-160.0, 440.0)
"""From fat to contrast-filled blood (*chosen*); CT only."""
PERCENTILES = (1.0, 99.0)
"""Intensity range of a volume whose units mean nothing, such as MRI (*chosen*)."""


@dataclass(frozen=True)
class Settings:
    """How volumes become arrays of one shape."""

    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)
    """Size of a voxel along right-left, posterior-anterior, inferior-superior."""
    size: tuple[int, int, int] = (96, 96, 96)
    """Voxels kept around the centre of the volume; padded where the volume is smaller."""
    modality: Literal["ct", "mr"] = "ct"
    lv_value: int = 500
    myo_value: int = 205


def find_cases(folder: Path) -> list[Case]:
    """Pair images and labels by name. Raises UserError when there are none, or one of a pair is missing."""
    images = {path.name.removesuffix("_image.nii.gz"): path for path in folder.rglob("*_image.nii.gz")}
    labels = {path.name.removesuffix("_label.nii.gz"): path for path in folder.rglob("*_label.nii.gz")}
    if not images and not labels:
        raise UserError(f"--input {folder}: no *_image.nii.gz with *_label.nii.gz; expected MM-WHS naming")
    for alone in sorted(labels.keys() - images.keys()):
        raise UserError(f"{labels[alone]}: a label without its image; expected {alone}_image.nii.gz beside it")
    return [
        Case(case=name, patient=name, image=images[name], label_file=labels.get(name))
        for name in sorted(images, key=natural_key)
    ]


def loader(settings: Settings) -> Loader:
    """A loader for `prepare`: uint8 image (1, X, Y, Z) and label (X, Y, Z) with 0 background, 1 LV, 2 Myo, in RAS axes."""
    transform = _transform(settings)

    def load(case: Case) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        image, label, affine = read_pair(case, settings)
        volumes = {name: MetaTensor(volume[None], affine=affine) for name, volume in (("image", image), ("label", label))}
        done = transform(volumes)
        prepared = done["label"][0].numpy().astype(np.uint8)
        columns = _volumes(label, abs(np.linalg.det(affine[:3, :3])), prepared, np.prod(settings.spacing_mm))
        columns["voxel_mm"] = "x".join(f"{side:.3g}" for side in np.linalg.norm(affine[:3, :3], axis=0))
        for structure in CLASSES[1:]:
            if columns[f"{structure}_ml_prepared"] == 0:
                raise UserError(f"{case.label_file}: {structure} lies outside the crop of {settings.size} voxels")
        return np.rint(done["image"].numpy()).clip(0, 255).astype(np.uint8), prepared, columns

    return load


def read_pair(case: Case, settings: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read and check one pair: image float32 (X, Y, Z), label uint8 (0, 1, 2) of the same shape, affine (4, 4).

    Raises UserError on an unreadable file, a missing label, differing shapes or affines, or a label without LV or Myo.
    """
    if case.label_file is None:
        raise UserError(f"{case.image}: an image without its label; expected {case.case}_label.nii.gz beside it")
    (image, affine), (label, label_affine) = _read(case.image), _read(case.label_file)
    if image.ndim != 3 or image.shape != label.shape:
        raise UserError(f"{case.label_file}: shape {label.shape}, expected a volume of the image's {image.shape}")
    if not np.allclose(affine, label_affine, atol=1e-3):
        raise UserError(f"{case.label_file}: its affine differs from that of {case.image.name}; expected the same")
    values = np.rint(label).astype(np.int64)
    mapped = np.zeros(values.shape, np.uint8)
    for number, (structure, value) in enumerate(zip(CLASSES[1:], (settings.lv_value, settings.myo_value), strict=True), 1):
        if not (values == value).any():
            found = ", ".join(map(str, np.unique(values)[:12]))
            raise UserError(f"{case.label_file}: no voxel of {structure} ({value}); it has the values {found}")
        mapped[values == value] = number
    return image.astype(np.float32), mapped, affine


def _transform(settings: Settings) -> Compose:
    keys = ["image", "label"]
    if settings.modality == "ct":
        window = ScaleIntensityRanged("image", *HU_WINDOW, 0, 255, clip=True)
    else:
        window = ScaleIntensityRangePercentilesd("image", *PERCENTILES, 0, 255, clip=True)
    return Compose(
        [
            Orientationd(keys, axcodes="RAS", labels=None),
            Spacingd(keys, pixdim=settings.spacing_mm, mode=("bilinear", "nearest")),
            window,
            ResizeWithPadOrCropd(keys, settings.size),
        ]
    )


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        volume = nib.load(path)
        array = np.asanyarray(volume.dataobj)
    except Exception as error:  # nibabel, gzip and zlib raise many kinds for a damaged file
        raise UserError(f"{path}: unreadable volume ({type(error).__name__}: {error}); expected NIfTI") from None
    return array, _affine_in_mm(path, volume)


def _affine_in_mm(path: Path, volume: nib.spatialimages.SpatialImage) -> np.ndarray:
    """The affine, with the header's voxel size where the affine states none.

    Some tools (public copies of ACDC went through one) write an affine of unit voxels and keep the true size in `pixdim`
    only. Taken at its word, a slice of 10 mm would be 1 mm thick. Any other disagreement has no obvious cure.
    """
    affine, pixdim = volume.affine.copy(), np.array(volume.header.get_zooms()[:3])
    stated = np.linalg.norm(affine[:3, :3], axis=0)
    if len(pixdim) == 3 and not np.allclose(stated, pixdim, rtol=0.01):
        if not np.allclose(stated, 1, rtol=1e-3):
            sizes = f"{stated.round(3)} mm in its affine, {pixdim.round(3)} mm in its header"
            raise UserError(f"{path}: voxels of {sizes}; expected one size")
        affine[:3, :3] *= pixdim
    return affine


def _volumes(label: np.ndarray, voxel_mm3: float, prepared: np.ndarray, prepared_mm3: float) -> dict[str, float]:
    """Volume in ml of each structure, as labelled and as prepared: what resampling and cropping lost is seen."""
    columns: dict[str, float] = {}
    for number, structure in enumerate(CLASSES[1:], 1):
        columns[f"{structure}_ml"] = round(float((label == number).sum() * voxel_mm3 / 1000), 2)
        columns[f"{structure}_ml_prepared"] = round(float((prepared == number).sum() * prepared_mm3 / 1000), 2)
    return columns
