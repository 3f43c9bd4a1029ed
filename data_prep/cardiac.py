"""Cardiac volumes with LV and myocardium: how a NIfTI image and its label become arrays of one shape.

The adapters (`mmwhs`, `totalsegmentator`, `msd`) know how a source names its files; what is done to a volume stands here.
A label of another patient is seen only where its shape or its affine differ from the image's.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np

from data_prep import nifti
from data_prep.cases import Case, Loader, choice
from fedlib.config import UserError

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


def _setting(value: Any, reason: str) -> Any:
    return field(default=value, metadata={"reason": reason})


@dataclass(frozen=True)
class Settings:
    """How volumes become arrays of one shape; all *chosen*. Axes run to the right, to the front, and up."""

    spacing_mm: tuple[float, float, float] = _setting((2.0, 2.0, 2.0), "one for all, at which a heart fits into a small GPU")
    size: tuple[int, int, int] = _setting((96, 96, 96), "multiples of 8: the 3D U-Net halves a volume three times")
    modality: Literal["ct", "mr"] = _setting("ct", "Hounsfield units mean the same in every CT; MRI has no unit")
    window: tuple[float, float] | None = _setting(None, "intensities that become 0 and 255; by modality if not given")
    crop: Literal["heart", "centre"] = _setting("centre", "needs no label, as in clinical use; heart is for body scans")
    margin_mm: float = _setting(10.0, "surroundings of the heart that the window must still show, with crop heart")
    max_loss: float = _setting(0.2, "a structure that loses more is cut off or too thin for this voxel size")
    lv: str = _setting("500", "the source's label value, or names of mask files, of the blood pool; commas merge several")
    myo: str = _setting("205", "the same for the myocardium of the LV")


def choices(settings: Settings) -> list[dict[str, Any]]:
    """Return what was chosen and why, for manifest.json: rows with setting, value, reason, label."""
    values = asdict(settings) | {"window": window_of(settings) or f"percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g}"}
    return [
        *(choice(setting.name, values[setting.name], setting.metadata["reason"]) for setting in fields(Settings)),
        choice("orientation", "RAS", "axes run to the right, the front and up, whatever the order in the file"),
        choice("interpolation", "image linear, label nearest", "the label keeps its values, and its volumes in ml best"),
    ]


def window_of(settings: Settings) -> tuple[float, float] | None:
    """The intensities that become 0 and 255; None where each volume has its own."""
    return settings.window or (HU_WINDOW if settings.modality == "ct" else None)


def parts(text: str) -> list[str]:
    """The values or names in a setting such as `500,501`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def loader(settings: Settings) -> Loader:
    """Return a loader: uint8 image (1, X, Y, Z) and label (X, Y, Z) with 0 background, 1 LV, 2 Myo, in RAS axes.

    In `lv` and `myo` a number is a value in the one label volume of a case, a name is a mask file of that name.
    Raises UserError when `lv` or `myo` is empty, when both name the same, or when the window has more than MAX_VOXELS; the
    loader, for a case that cannot be used.
    """
    from data_prep import resampling  # here: MONAI takes seconds to import, which radiographs and --help do not need

    named = _named(settings)
    if (voxels := int(np.prod(settings.size, dtype=object))) > MAX_VOXELS:
        raise UserError(f"--size {','.join(map(str, settings.size))}: {voxels} voxels; expected at most {MAX_VOXELS}")

    def load(case: Case, contents: list[bytes]) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        label, volumes = _read_label(case, contents[1:], named)
        image = nifti.read(case.image, contents[0])
        _check_pair(image, volumes)
        check_finite(image)
        label, affine = nifti.to_ras(label, image.affine)
        box, columns = _measured(label, nifti.spacing(affine))
        part = _around_heart(case, box, affine, settings) if settings.crop == "heart" else ...
        check_memory(case.image, label[part].shape * nifti.spacing(affine), settings)
        resampled = resampling.at_spacing(label[part], affine, settings.spacing_mm, "nearest")
        prepared = resampling.to_size(resampled, settings.size)[0].numpy().astype(np.uint8)
        for number, structure in enumerate(CLASSES[1:], 1):
            ml = float(np.count_nonzero(prepared == number) * np.prod(settings.spacing_mm) / 1000)
            _check_loss(case, structure, columns[f"{structure}_ml"], ml, settings)
            columns[f"{structure}_ml_prepared"] = round(ml, 2)
        windowed, (low, high), lowest = grey_values(image, settings, part)
        grey = np.rint(resampling.to_size(windowed, settings.size).numpy()).astype(np.uint8)
        _check_contrast(case, grey[0], prepared, f"between {low:g} and {high:g}")
        columns["note"] = image.note or next((volume.note for volume in volumes if volume.note), "")
        if settings.modality == "ct" and not settings.window and not columns["note"] and lowest >= 0:
            columns["note"] = f"no value below 0, and air is -1000 in Hounsfield units; {OTHER_UNITS}"
        return grey, prepared, columns

    return load


def grey_values(image: nifti.Volume, settings: Settings, part: Any = ...) -> tuple[Any, tuple[float, float], float]:
    """Return a volume, or a part of it in RAS axes, at the prepared voxel size, its window mapped to 0 to 255.

    Float (1, X, Y, Z), with the affine of the whole; the window; and the lowest intensity. Raises UserError when it has no
    contrast.
    """
    from data_prep import resampling  # as above

    stored, affine = nifti.to_ras(image.stored, image.affine)
    resampled = resampling.at_spacing(image.scaled(stored[part]), affine, settings.spacing_mm, "bilinear")
    low, high = window_of(settings) or resampling.percentiles(resampled, PERCENTILES)
    windowed = resampling.in_window(resampled, low, high)
    if windowed.max() - windowed.min() < MIN_GREYS:
        raise UserError(f"{image.name}: one grey value between {low:g} and {high:g}; expected an image ({OTHER_UNITS})")
    return windowed, (low, high), float(resampled.min())


def _named(settings: Settings) -> list[list[str]]:
    """Return the values or names of LV and of Myo."""
    lv, myo = parts(settings.lv), parts(settings.myo)
    if not lv or not myo or set(lv) & set(myo) or len({part.isdecimal() for part in lv + myo}) > 1:
        given = f"lv {settings.lv!r}, myo {settings.myo!r}"
        raise UserError(f"{given}: expected label values for both, or names for both, and none of them twice")
    return [lv, myo]


def _read_label(case: Case, contents: list[bytes], named: list[list[str]]) -> tuple[np.ndarray, list[nifti.Volume]]:
    """Return the label (X, Y, Z) uint8 in the order of the file's axes, 0 background, 1 LV, 2 Myo, and its volumes.

    Raises UserError when files are missing, unreadable or of different shapes, or a structure is missing.
    """
    by_value = named[0][0].isdecimal()
    present = {nifti.stem(name) for name in case.label_files}
    lacking = [] if by_value else [name for names in named for name in names if name not in present]
    if not case.label_files or lacking:
        expected = f"{', '.join(lacking) or 'a label volume'} beside it"
        raise UserError(f"{case.image}: an image without its label; expected {expected}")
    volumes = [nifti.read(name, content) for name, content in zip(case.label_files, contents, strict=True)]
    mapped = np.zeros(volumes[0].stored.shape, np.uint8, order="F")
    for volume in volumes:
        _check_shape(volume, volumes[0])
        for number, (structure, wanted) in enumerate(zip(CLASSES[1:], named, strict=True), 1):
            if by_value or nifti.stem(volume.name) in wanted:
                _mark(mapped, volume, number, structure, [int(value) for value in wanted] if by_value else [])
    if mapped.max() > 2:
        shared = f"LV and Myo share {np.count_nonzero(mapped == 3)} voxels with {volumes[-1].name}"
        raise UserError(f"{volumes[0].name}: {shared}; expected structures apart")
    return mapped, volumes


def _mark(mapped: np.ndarray, volume: nifti.Volume, number: int, structure: str, values: list[int]) -> None:
    """Set the bit of a structure where `volume` has one of `values`; without values, where it is not 0."""
    some = False
    for z, found in enumerate(volume.slices()):
        whole = np.rint(found)
        if found.dtype.kind == "f" and (odd := sorted(set(found[~(np.abs(found - whole) <= WHOLE)].tolist()))[:3]):
            raise UserError(f"{volume.name}: has values that are no whole numbers ({_listed(odd)}); expected a label")
        marked = np.isin(whole, values) if values else whole != 0
        mapped[:, :, z] |= marked.view(np.uint8) << (number - 1)
        some = some or bool(marked.any())
    if not some:
        has = set().union(*(np.unique(found).tolist() for found in volume.slices()))
        told = f" ({_listed(values)}); it has the values {_listed(sorted(has)[:12])}" if values else ""
        raise UserError(f"{volume.name}: no voxel of {structure}{told}")


def _listed(values: list) -> str:
    return ", ".join(f"{value:.7g}" for value in values)


def _check_shape(volume: nifti.Volume, other: nifti.Volume) -> None:
    if volume.stored.shape != other.stored.shape:
        expected = f"{other.stored.shape}, that of {other.name}"
        raise UserError(f"{volume.name}: shape {volume.stored.shape}; expected {expected}")


def _check_pair(image: nifti.Volume, labels: list[nifti.Volume]) -> None:
    for label in labels:
        _check_shape(label, image)
        apart = nifti.voxels_apart(image.affine, label.affine, image.stored.shape)
        if apart > SHIFT:
            place = f"lies {apart:.3g} voxels off {image.name} by its affine"
            raise UserError(f"{label.name}: {place}; expected at most {SHIFT}")


def check_finite(image: nifti.Volume) -> None:
    """Refuse voxels that are NaN or infinite, also by the header's scaling."""
    whole = image.stored.dtype.kind != "f" and (image.slope, image.inter) == (1, 0)
    # As float32 they would become infinite, too.
    if not whole and not all((np.abs(values) <= np.finfo(np.float32).max).all() for values in image.slices()):
        raise UserError(f"{image.name}: has voxels that are not finite (NaN or infinite); expected numbers")


def _check_contrast(case: Case, grey: np.ndarray, label: np.ndarray, window: str) -> None:
    """Refuse a window in which LV and Myo are both black or both white: over the whole volume it may look fine."""
    for value, colour in ((0, "black"), (255, "white")):
        if all((grey[label == number] == value).mean() >= SATURATED for number in (1, 2)):
            raise UserError(f"{case.image}: LV and Myo are both {colour} {window}; expected a difference ({OTHER_UNITS})")


def _measured(label: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Box around LV and Myo, [[first voxels], [last voxels + 1]], and columns on the raw volume."""
    # Axis by axis: indices of all voxels of a large heart would take more memory than the volume.
    taken = [np.flatnonzero(label.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    box = np.array([[along[0] for along in taken], [along[-1] + 1 for along in taken]])
    heart = label[tuple(slice(*ends) for ends in box.T)]
    columns: dict[str, Any] = {"spacing_mm": nifti.by(spacing), "shape": "x".join(map(str, label.shape))}
    columns["cut_by_border"] = bool((box[0] == 0).any() or (box[1] == label.shape).any())
    for number, structure in enumerate(CLASSES[1:], 1):
        columns[f"{structure}_ml"] = round(float(np.count_nonzero(heart == number) * spacing.prod() / 1000), 2)
    return box, columns


def _around_heart(case: Case, box: np.ndarray, affine: np.ndarray, settings: Settings) -> tuple[slice, ...]:
    """The raw voxels that the window shows when its middle is that of the heart; a body scan is never resampled whole.

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


def check_memory(name: str, sides_mm: np.ndarray, settings: Settings) -> None:
    voxels = np.prod(sides_mm / settings.spacing_mm)
    if voxels > MAX_VOXELS:
        cut = f"{nifti.by(sides_mm)} mm are {voxels:.2g} voxels of {nifti.by(np.array(settings.spacing_mm))} mm"
        raise UserError(f"{name}: {cut}; expected at most {MAX_VOXELS:.2g} (a larger --spacing, or --crop heart)")


def _check_loss(case: Case, structure: str, raw_ml: float, ml: float, settings: Settings) -> None:
    if ml == 0 or ml < (1 - settings.max_loss) * raw_ml:
        kept = f"{structure} has {raw_ml:.4g} ml and keeps {ml:.4g} ml after crop and resampling"
        raise UserError(f"{case.label_files[0]}: {kept}; expected a loss of at most {100 * settings.max_loss:g} %")
