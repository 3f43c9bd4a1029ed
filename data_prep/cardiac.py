"""Cardiac volumes with LV and myocardium: how a NIfTI image and its label become arrays of one shape.

The adapters (`mmwhs`, `totalsegmentator`, `msd`) know how a source names its files; what is done to a volume stands here.
A label of another patient is seen only where its shape or its affine differ from the image's.

MONAI is imported where it is used: that takes seconds, which radiographs and --help do not need.
"""

from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from scipy import ndimage

from data_prep import nifti
from data_prep.cases import Case, Loaded, choice
from fedlib.config import Listed, UserError

CLASSES = ["background", "LV", "Myo"]
HU_WINDOW = (-160.0, 440.0)
"""From fat to contrast-filled blood (*chosen*); CT only."""
PERCENTILES = (1.0, 99.0)
"""Intensity range of a volume whose units mean nothing, such as MRI (*chosen*): of the whole volume with crop "centre", of
the part around the heart with crop "heart"."""
MAX_VOXELS = 2**26
"""Of a volume at the prepared voxel size (*chosen*): resampling takes some 60 bytes for each, 4 GB in all."""
SHIFT = 0.01
"""Voxels by which the corners of an image and its label may differ (*chosen*): rounding of headers, not another place."""
WHOLE = 0.01
"""Distance from a whole number that still is that label (*chosen*): the rounding of a scaled header."""
MIN_GREYS = 8
"""Grey values that a prepared image must span (*chosen*)."""
SATURATED = 0.9
"""Share of both structures that may not be all black or all white (*chosen*)."""
OTHER_UNITS = "is an intercept missing, as of a CT stored with 1024 added, or is it MRI: --modality mr; or set --window"


def _few_enough(size: tuple[int, ...]) -> tuple[int, ...]:
    if (voxels := int(np.prod(size, dtype=object))) > MAX_VOXELS:
        raise ValueError(f"{voxels} voxels; expected at most {MAX_VOXELS}")
    return size


def _rising(window: tuple[float, float]) -> tuple[float, float]:
    if window[0] >= window[1]:
        raise ValueError("expected the smaller number first, as in -160,440")
    return window


THREE, TWO = (Field(min_length=number, max_length=number) for number in (3, 2))
Spacing = Annotated[Listed[Annotated[float, Field(ge=nifti.SPACING_MM[0], le=nifti.SPACING_MM[1])]], THREE]
Size = Annotated[Listed[Annotated[int, Field(gt=0, multiple_of=8)]], THREE, AfterValidator(_few_enough)]
Window = Annotated[Listed[Annotated[float, Field(ge=-1e6, le=1e6)]], TWO, AfterValidator(_rising)]


@dataclass(frozen=True, config={"use_attribute_docstrings": True})
class Settings:
    """How volumes become arrays of one shape, what each setting is and why: the options of the command line; all *chosen*.

    Raises pydantic's ValidationError; `fedlib.config.validated` makes one line of it.
    """

    spacing_mm: Spacing = (2.0, 2.0, 2.0)
    """Voxels in mm, right-left, front-back, feet-head: one size for all, at which a heart fits into a small GPU."""
    size: Size = (96, 96, 96)
    """Voxels of the window, along the same axes: multiples of 8, since the 3D U-Net halves a volume three times."""
    modality: Literal["ct", "mr"] = "ct"
    """ct: Hounsfield units, which mean the same in every CT; mr: percentiles of each volume, since MRI has no unit."""
    window: Window | None = None
    """Intensities that become black and white, as in -160,440; by modality if not given."""
    crop: Literal["heart", "centre"] = "centre"
    """centre: of the volume, which needs no label, as in clinical use; heart: around LV and myocardium, for body scans."""
    margin_mm: Annotated[float, Field(ge=0, le=1000)] = 10.0
    """With crop heart: mm around LV and myocardium that the window must still show."""
    max_loss: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of its volume that a structure may lose; more is cut off, or too thin for this voxel size."""
    lv: str = "500"
    """The source's label value, or names of mask files, of the blood pool; commas merge several."""
    myo: str = "205"
    """The same for the myocardium of the LV."""


def choices(settings: Settings) -> list[dict[str, Any]]:
    """Return what was chosen and why, for manifest.json: rows with setting, value, reason, label."""
    values = asdict(settings) | {"window": window_of(settings) or f"percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g}"}
    return [
        *(choice(name, values[name], field.description) for name, field in Settings.__pydantic_fields__.items()),
        choice("orientation", "RAS", "axes run to the right, the front and up, whatever the order in the file"),
        choice("interpolation", "image linear, label nearest", "the label keeps its values, and its volumes in ml best"),
    ]


def window_of(settings: Settings) -> tuple[float, float] | None:
    """Return the intensities that become 0 and 255; None where each volume has its own."""
    return settings.window or (HU_WINDOW if settings.modality == "ct" else None)


def parts(text: str) -> list[str]:
    """Return the values or names in a setting such as `500,501`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def load(case: Case, contents: list[bytes], settings: Settings) -> Loaded:
    """Return uint8 image (1, X, Y, Z) and label (X, Y, Z) with 0 background, 1 LV, 2 Myo, in RAS axes, and columns.

    In `lv` and `myo` a number is a value in the one label volume of a case, a name is a mask file of that name.
    Raises UserError when the case cannot be used.
    """
    label, volumes = _read_label(case, contents[1:], settings)
    image = nifti.read(case.image, contents[0])
    _check_pair(image, volumes)
    label, affine = nifti.to_ras(label, image.affine)
    box, columns = _measured(label, nifti.spacing(affine))
    part = _around_heart(case, box, affine, settings) if settings.crop == "heart" else ...
    windowed, (low, high), lowest = grey_values(image, settings, part)
    grey, _ = fitted(windowed, settings.size)
    prepared = fitted(_at_spacing(label[part], affine, settings.spacing_mm, "nearest"), settings.size)[0][0]
    for number, structure in enumerate(CLASSES[1:], 1):
        ml = float(np.count_nonzero(prepared == number) * np.prod(settings.spacing_mm) / 1000)
        _check_loss(case, structure, columns[f"{structure}_ml"], ml, settings)
        columns[f"{structure}_ml_prepared"] = round(ml, 2)
    _check_contrast(case, grey[0], prepared, f"between {low:g} and {high:g}")
    columns["note"] = image.note or next((volume.note for volume in volumes if volume.note), "")
    if settings.modality == "ct" and not settings.window and not columns["note"] and lowest >= 0:
        columns["note"] = f"no value below 0, and air is -1000 in Hounsfield units; {OTHER_UNITS}"
    return grey, prepared, columns


def grey_values(image: nifti.Volume, settings: Settings, part: Any = ...) -> tuple[Any, tuple[float, float], float]:
    """Return a volume, or a part of it in RAS axes, at the prepared voxel size, its window mapped to 0 to 255.

    MetaTensor float32 (1, X, Y, Z), with the affine of the whole; the window; and the lowest intensity. Raises UserError
    when voxels are not finite, when there would be more than MAX_VOXELS, or when it has no contrast.
    """
    from monai.transforms import ScaleIntensityRange
    from monai.transforms.utils_pytorch_numpy_unification import percentile

    if image.values.dtype.kind == "f" and not (np.abs(image.values) <= np.finfo(np.float32).max).all():
        raise UserError(f"{image.name}: has voxels that are not finite (NaN or infinite); expected numbers")
    values, affine = nifti.to_ras(image.values, image.affine)
    sides_mm = values[part].shape * nifti.spacing(affine)
    if (voxels := np.prod(sides_mm / settings.spacing_mm)) > MAX_VOXELS:
        cut = f"{nifti.by(sides_mm)} mm are {voxels:.2g} voxels of {nifti.by(settings.spacing_mm)} mm"
        raise UserError(f"{image.name}: {cut}; expected at most {MAX_VOXELS:.2g} (a larger --spacing, or --crop heart)")
    resampled = _at_spacing(values[part], affine, settings.spacing_mm, "bilinear")
    low, high = window_of(settings) or (float(percentile(resampled, share)) for share in PERCENTILES)
    windowed = ScaleIntensityRange(low, high, 0, 255, clip=True)(resampled) if low < high else torch.zeros_like(resampled)
    if windowed.max() - windowed.min() < MIN_GREYS:
        raise UserError(f"{image.name}: one grey value between {low:g} and {high:g}; expected an image ({OTHER_UNITS})")
    return windowed, (low, high), float(resampled.min())


def fitted(volume: Any, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle of a MetaTensor (1, X, Y, Z), cut or padded with 0 to `size`, as uint8, and its affine."""
    from monai.transforms import ResizeWithPadOrCrop

    part = ResizeWithPadOrCrop(size)(volume)
    return np.rint(part.numpy()).astype(np.uint8), part.affine.numpy()


def _at_spacing(volume: np.ndarray, affine: np.ndarray, spacing_mm: tuple[float, ...], mode: str) -> Any:
    """Return (X, Y, Z) at another voxel size, MetaTensor float32 (1, X', Y', Z'); `mode` is bilinear or nearest."""
    from monai.data import MetaTensor
    from monai.transforms import Spacing

    # NIfTI stores the last axis first: MONAI gets the axes in that order, since turning a CT round takes seconds.
    stored = torch.from_numpy(np.ascontiguousarray(volume.T, np.float32))[None]
    # Single precision halves the memory; a label needs double, or its voxels fall to one side where two are as near.
    resample = Spacing(spacing_mm[::-1], mode=mode, dtype=np.float64 if mode == "nearest" else np.float32)
    resampled = resample(MetaTensor(stored, affine=affine[:, [2, 1, 0, 3]]))
    return MetaTensor(resampled.as_tensor().permute(0, 3, 2, 1), affine=resampled.affine[:, [2, 1, 0, 3]])


def check_structures(settings: Settings) -> None:
    """Raise UserError when `lv` or `myo` is empty, when both name the same, or when one is values and the other names."""
    lv, myo = parts(settings.lv), parts(settings.myo)
    if not lv or not myo or set(lv) & set(myo) or len({part.isdecimal() for part in lv + myo}) > 1:
        given = f"lv {settings.lv!r}, myo {settings.myo!r}"
        raise UserError(f"{given}: expected label values for both, or names for both, and none of them twice")


def _read_label(case: Case, contents: list[bytes], settings: Settings) -> tuple[np.ndarray, list[nifti.Volume]]:
    """Return the label (X, Y, Z) uint8 in the order of the file's axes, 0 background, 1 LV, 2 Myo, and its volumes.

    Raises UserError when files are missing, unreadable or of different shapes, or a structure is missing.
    """
    named = [parts(settings.lv), parts(settings.myo)]
    by_value = named[0][0].isdecimal()
    present = {nifti.stem(name) for name in case.label_files}
    lacking = [] if by_value else [name for names in named for name in names if name not in present]
    if not case.label_files or lacking:
        expected = f"{', '.join(lacking) or 'a label volume'} beside it"
        raise UserError(f"{case.image}: an image without its label; expected {expected}")
    volumes = [nifti.read(name, content) for name, content in zip(case.label_files, contents, strict=True)]
    label = np.zeros(volumes[0].values.shape, np.uint8, order="F")
    for volume in volumes:
        _check_shape(volume, volumes[0])
        for number, (structure, wanted) in enumerate(zip(CLASSES[1:], named, strict=True), 1):
            if by_value or nifti.stem(volume.name) in wanted:
                label |= number * _where(volume, structure, [int(value) for value in wanted] if by_value else [])
    if label.max() > 2:
        shared = f"LV and Myo share {np.count_nonzero(label == 3)} voxels with {volumes[-1].name}"
        raise UserError(f"{volumes[0].name}: {shared}; expected structures apart")
    return label, volumes


def _where(volume: nifti.Volume, structure: str, values: list[int]) -> np.ndarray:
    """Return 1 where `volume` has one of `values` or, without values, where it is not 0; uint8 (X, Y, Z)."""
    found = volume.values
    if found.dtype.kind == "f":
        whole = np.rint(found)
        if len(odd := np.unique(found[~(np.abs(found - whole) <= WHOLE)])):
            raise UserError(f"{volume.name}: has values that are no whole numbers ({_listed(odd[:3])}); expected a label")
        found = whole
    marked = np.isin(found.T, values).T if values else found != 0  # NIfTI stores the last axis first
    if not marked.any():
        told = f" ({_listed(values)}); it has the values {_listed(np.unique(found)[:12])}" if values else ""
        raise UserError(f"{volume.name}: no voxel of {structure}{told}")
    return marked.view(np.uint8)


def _listed(values: Any) -> str:
    return ", ".join(f"{value:.7g}" for value in values)


def _check_shape(volume: nifti.Volume, other: nifti.Volume) -> None:
    if volume.values.shape != other.values.shape:
        expected = f"{other.values.shape}, that of {other.name}"
        raise UserError(f"{volume.name}: shape {volume.values.shape}; expected {expected}")


def _check_pair(image: nifti.Volume, labels: list[nifti.Volume]) -> None:
    for label in labels:
        _check_shape(label, image)
        apart = nifti.voxels_apart(image.affine, label.affine, image.values.shape)
        if apart > SHIFT:
            place = f"lies {apart:.3g} voxels off {image.name} by its affine"
            raise UserError(f"{label.name}: {place}; expected at most {SHIFT}")


def _check_contrast(case: Case, grey: np.ndarray, label: np.ndarray, window: str) -> None:
    """Refuse a window in which LV and Myo are both black or both white: over the whole volume it may look fine."""
    for value, colour in ((0, "black"), (255, "white")):
        if all((grey[label == number] == value).mean() >= SATURATED for number in (1, 2)):
            raise UserError(f"{case.image}: LV and Myo are both {colour} {window}; expected a difference ({OTHER_UNITS})")


def _measured(label: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the box around LV and Myo, [[first voxels], [last voxels + 1]], and columns on the raw volume."""
    [part] = (ends[::-1] for ends in ndimage.find_objects(label.T > 0, 1))
    box = np.array([(along.start, along.stop) for along in part]).T
    columns: dict[str, Any] = {"spacing_mm": nifti.by(spacing), "shape": "x".join(map(str, label.shape))}
    columns["cut_by_border"] = bool((box[0] == 0).any() or (box[1] == label.shape).any())
    for number, structure in enumerate(CLASSES[1:], 1):
        columns[f"{structure}_ml"] = round(float(np.count_nonzero(label[part] == number) * spacing.prod() / 1000), 2)
    return box, columns


def _around_heart(case: Case, box: np.ndarray, affine: np.ndarray, settings: Settings) -> tuple[slice, ...]:
    """Return the raw voxels that the window shows when its middle is that of the heart: no body is resampled whole.

    Raises UserError when the heart with its margin does not fit into the window.
    """
    spacing, room = nifti.spacing(affine), np.array(settings.size) * settings.spacing_mm
    heart = (box[1] - box[0]) * spacing + 2 * settings.margin_mm
    if (heart > room).any():
        sides = f"{nifti.by(heart)} mm, the window {nifti.by(room)} mm"
        raise UserError(
            f"{case.label_files[0]}: the heart with a margin of {settings.margin_mm:g} mm is {sides}; expected less"
        )
    start = np.round((box[0] + box[1] - room / spacing) / 2).astype(int)
    stop = start + np.ceil(room / spacing).astype(int)
    return tuple(slice(max(first, 0), last) for first, last in zip(start, stop, strict=True))


def _check_loss(case: Case, structure: str, raw_ml: float, ml: float, settings: Settings) -> None:
    if ml == 0 or ml < (1 - settings.max_loss) * raw_ml:
        kept = f"{structure} has {raw_ml:.4g} ml and keeps {ml:.4g} ml after crop and resampling"
        raise UserError(f"{case.label_files[0]}: {kept}; expected a loss of at most {100 * settings.max_loss:g} %")
