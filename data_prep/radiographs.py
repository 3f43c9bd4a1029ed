"""One radiograph: the bytes of a PNG, JPEG or DICOM file to a small grey square."""

import re
import warnings
from io import BytesIO

import numpy as np
import pydicom
from PIL import Image, ImageOps, UnidentifiedImageError
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing, pixel_array
from pydicom.uid import UID

from fedlib.config import UserError

PERCENTILES = (0.5, 99.5)
"""The grey values shown as black and white where no window is stated (*chosen*). 12 bits stored in 16 stay visible."""
HEADER = {"sex": "PatientSex", "view": "ViewPosition", "manufacturer": "Manufacturer", "patient": "PatientID"}
"""Columns that are taken from a DICOM header as they are. Names and birth dates are not among them."""
DAYS = {"D": 1, "W": 7, "M": 365.25 / 12, "Y": 365.25}

warnings.filterwarnings("ignore", module=r"PIL\.")  # of bombs, which _picture refuses itself, or of EXIF with faults
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # scanners break rules that do not matter here


def read_grey(name: str, content: bytes) -> Image.Image:
    """The image (mode L) in a PNG, a JPEG or a single-frame DICOM, in its own size.

    8 or 16 bit, colour, palette; what is transparent is black; EXIF orientation is followed. DICOM: rescale, window or
    lookup table of the header, MONOCHROME1 inverted. What holds more than 8 bits and states no window is shown from the
    0.5th to the 99.5th percentile. Raises UserError, beginning with `name`, when the file is empty, damaged, of another
    kind, too large, holds several frames, cannot be decoded here, or has no contrast.
    """
    if not content:
        raise UserError(f"{name}: is empty; expected a PNG, JPEG or DICOM")
    read = _radiogram if is_dicom(content) else _picture
    try:
        grey = read(content)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Exception as error:  # PIL and pydicom answer bad bytes with some twenty kinds, AttributeError among them
        raise UserError(f"{name}: unreadable ({_one_line(error)}); expected a whole PNG, JPEG or DICOM") from None
    darkest, brightest = grey.getextrema()
    if darkest == brightest:
        raise UserError(f"{name}: no contrast, all pixels are {darkest}; expected an image")
    return grey


def squared(grey: Image.Image, size: int) -> np.ndarray:
    """Uint8 (size, size), padded to a square with black, then shrunk: PIL smooths before it does."""
    return np.asarray(ImageOps.pad(grey, (size, size), Image.Resampling.BILINEAR))


def is_dicom(content: bytes) -> bool:
    """Whether the bytes are those of a DICOM file, whatever its name."""
    return content[128:132] == b"DICM"


def header_columns(name: str, content: bytes) -> dict[str, str | float]:
    """What a DICOM header says of a case, as far as it does: age in years, sex, view, manufacturer, patient id.

    Empty for other files. Raises UserError, beginning with `name`, when the header is damaged.
    """
    if not is_dicom(content):
        return {}
    try:
        header = pydicom.dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=[*HEADER.values(), "PatientAge"])
        columns = {column: str(header.get(tag) or "").strip() for column, tag in HEADER.items()}
        age = re.fullmatch(r"(\d{1,3})([DWMY])", str(header.get("PatientAge")).strip())
    except Exception as error:  # see read_grey
        raise UserError(f"{name}: unreadable header ({_one_line(error)}); expected a whole DICOM") from None
    years = {"age": round(int(age[1]) * DAYS[age[2]] / DAYS["Y"], 2)} if age else {}
    return years | {column: value for column, value in columns.items() if value}


def _picture(content: bytes) -> Image.Image:
    """Mode L, from a PNG or JPEG. Raises UserError without a name, and whatever PIL raises."""
    try:
        image = Image.open(BytesIO(content), formats=["PNG", "JPEG"])
    except UnidentifiedImageError:
        raise UserError("neither PNG, JPEG nor DICOM, or cut short; expected one of them, whole") from None
    with image:
        _check_pixels(image.width, image.height)
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise UserError(f"{frames} frames; expected one image")
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16 bit, which PIL would clip to 8
            return Image.fromarray(_stretched(np.asarray(image)))
        if image.has_transparency_data:
            clear = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", clear.size, "black"), clear).convert("L")
        return image.convert("L")


def _radiogram(content: bytes) -> Image.Image:
    """Mode L, from a DICOM file. Raises UserError without a name, and whatever pydicom raises."""
    dicom = pydicom.dcmread(BytesIO(content))
    if "PixelData" not in dicom:
        kind = UID(dicom.get("SOPClassUID") or dicom.file_meta.get("MediaStorageSOPClassUID") or "of no kind").name
        raise UserError(f"DICOM without an image ({kind}); expected a radiograph")
    if (frames := int(dicom.get("NumberOfFrames") or 1)) > 1:
        raise UserError(f"{frames} frames; expected one image")
    _check_pixels(dicom.Columns, dicom.Rows)
    pixels = _decoded(dicom)
    if dicom.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dicom)
    if pixels.ndim == 3:
        colours = pixels if pixels.dtype == np.uint8 else _stretched(pixels)
        return Image.fromarray(colours).convert("L")
    shown = _windowed(apply_modality_lut(pixels.astype(np.int64), dicom), dicom)
    return Image.fromarray(255 - shown if dicom.PhotometricInterpretation == "MONOCHROME1" else shown)


def _decoded(dicom: pydicom.Dataset) -> np.ndarray:
    """Stored pixels (rows, columns[, 3]); the error names a compression that cannot be undone here."""
    syntax = dicom.file_meta.TransferSyntaxUID
    try:
        return pixel_array(dicom)
    except (NotImplementedError, RuntimeError):  # a video, say; no decoder, or none that could read this file
        raise UserError(
            f"pixels of transfer syntax {syntax} ({syntax.name}) cannot be decoded; expected a whole file, and for JPEG "
            "other than 8-bit baseline and JPEG 2000: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
        ) from None


def _windowed(values: np.ndarray, dicom: pydicom.Dataset) -> np.ndarray:
    """Values after rescaling as uint8: by the header's lookup table or first window, else from percentiles."""
    if dicom.get("VOILUTSequence"):
        depth = dicom.VOILUTSequence[0].LUTDescriptor[2]
        return _scaled(apply_voi(np.rint(values).astype(np.int64), dicom), 0, 2**depth - 1)
    if dicom.get("WindowCenter") is not None and dicom.get("WindowWidth") is not None:
        ends = apply_windowing(np.array([-np.inf, np.inf]), dicom)  # what the window makes of black and of white
        return _scaled(apply_windowing(values, dicom), *ends)
    return _stretched(values)


def _stretched(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, PERCENTILES)
    if low == high:  # a few marks on plain ground
        low, high = values.min(), values.max()
    return _scaled(values, low, high)


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Uint8 with `low` at 0 and `high` at 255; `low` may be the larger (a negative slope)."""
    if low == high:
        return np.zeros(values.shape, np.uint8)
    unit = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    if not np.isfinite(unit).all():
        raise UserError("grey values that are not finite, by the rescaling or window in its header; expected numbers")
    return np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)


def _check_pixels(width: int, height: int) -> None:
    if width * height > Image.MAX_IMAGE_PIXELS:
        raise UserError(f"{width} x {height} pixels; expected at most {Image.MAX_IMAGE_PIXELS} (a decompression bomb?)")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
