"""Raw cardiac files made small: the bytes of a NIfTI pair, whole or spoiled, and the layouts of three sources."""

import gzip
import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np

from data_prep.cases import Case
from tests.data_prep.raw import AFFINE, heart

IMAGE, LABEL = "a_image.nii.gz", "a_label.nii.gz"
CASE = Case(case="a", patient="a", image=IMAGE, label_files=(LABEL,))
MASKS = {"heart_ventricle_left": 500, "heart_myocardium": 205}


def nifti(array: np.ndarray, affine: np.ndarray = AFFINE, version: int = 1, **header) -> bytes:
    """A plain .nii; `header` sets fields of the header after all else."""
    volume = (nib.Nifti1Image if version == 1 else nib.Nifti2Image)(array, affine)
    content = volume.to_bytes()
    written = type(volume.header).from_fileobj(io.BytesIO(content), check=False)  # that in memory has no offset
    for field, value in header.items():
        written[field] = value
    return written.binaryblock + content[written.sizeof_hdr :]


def packed(array: np.ndarray, affine: np.ndarray = AFFINE, **header) -> bytes:
    """A .nii.gz."""
    return gzip.compress(nifti(array, affine, **header), 1)


def pair(seed: int = 1) -> list[bytes]:
    """Image and label of one heart."""
    return [packed(array) for array in heart(seed)]


def scans(folder: Path, n: int = 2) -> Path:
    """The layout of TotalSegmentator, with a mask of another structure beside LV and myocardium, and meta.csv."""
    for number in range(1, n + 1):
        case = folder / f"s{number:04}"
        (case / "segmentations").mkdir(parents=True)
        image, label = heart(number)
        (case / "ct.nii.gz").write_bytes(packed(image))
        for mask, value in (MASKS | {"liver": 600}).items():
            (case / "segmentations" / f"{mask}.nii.gz").write_bytes(packed((label == value).astype(np.uint8)))
    rows = [f"s{number:04};{60 + number};m;Basel;ct thorax;train" for number in range(1, n + 1)]
    (folder / "meta.csv").write_text("\n".join(["image_id;age;gender;institute;study_type;split", *rows]))
    return folder


def tasks(folder: Path, n: int = 2, channels: tuple[str, ...] = ("",), **table) -> Path:
    """The layout of the Decathlon or, with channels such as _0000, of nnU-Net; `table` replaces keys of dataset.json."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number in range(1, n + 1):
        image, label = (packed(array) for array in heart(number))
        for channel in channels:
            (folder / "imagesTr" / f"heart_{number}{channel}.nii.gz").write_bytes(image)
        (folder / "labelsTr" / f"heart_{number}.nii.gz").write_bytes(label)
    labels = {"0": "background", "500": "LV", "205": "Myo"}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "numTraining": n} | table))
    return folder


def loaded(load, files, case: Case):
    """What the loader makes of a case that was found."""
    return load(case, [files.read(name) for name in case.files])
