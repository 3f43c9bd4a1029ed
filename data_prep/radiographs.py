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
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
"""Where a DICOM header states the height and width of a pixel, the best first."""
MAX_ASPECT = 4
"""A pixel that is so many times as wide as high, or as high as wide, is a mistake (*chosen*)."""
MAGIC = {
    "PNG": rb"\x89PNG",
    "JPEG": rb"\xff\xd8\xff",
    "DICOM": rb"[\s\S]{128}DICM|[\x02\x08]\x00[\s\S]\x00",  # the second is one without its preamble
    "TIFF": rb"II\*\x00|MM\x00\*",
    "GIF": rb"GIF8",
    "BMP": rb"BM[\s\S]{4}\x00{4}",
    "WebP": rb"RIFF[\s\S]{4}WEBP",
    "JPEG 2000": rb"\x00\x00\x00\x0cjP|\xff\x4f\xff\x51",
    "HEIC": rb"[\s\S]{4}ftyp(heic|heix|mif1)",
}

warnings.filterwarnings("ignore", module=r"PIL\.")  # of bombs, which _picture refuses itself, or of EXIF with faults
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # scanners break rules that do not matter here


def kind_of(head: bytes) -> str:
    """Return the kind of an image by its first 132 bytes; empty when they are of no image we know."""
    return next((kind for kind, pattern in MAGIC.items() if re.match(pattern, head)), "")


def read_grey(name: str, content: bytes) -> tuple[Image.Image, float, dict[str, str | float]]:
    """Return what is in a PNG, a JPEG or a single-frame DICOM: image, its pixels' width by height, columns of cases.csv.

    The image is of mode L, in its own size. 8 or 16 bit, colour, palette; what is transparent is black; EXIF orientation is
    followed. DICOM: rescale, window or lookup table of the header, MONOCHROME1 inverted, padding black. What holds more than
    8 bits and states no window is shown from the 0.5th to the 99.5th percentile. The columns are those that a DICOM header
    states: age in years, sex, view, manufacturer, patient id. Raises UserError, beginning with `name`, when the file is
    empty, damaged, of another kind, too large, holds several frames, cannot be decoded here, or has no contrast.
    """
    kind = kind_of(content[:132])
    try:
        if not content:
            raise UserError("is empty; expected a PNG, JPEG or DICOM")
        grey, aspect, columns = (_radiogram if kind == "DICOM" else _picture)(content)
        if not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
            raise UserError(f"pixels {aspect:.3g} times as wide as high; expected at most {MAX_ASPECT} times")
        darkest, brightest = grey.getextrema()
        if darkest == brightest:
            raise UserError(f"no contrast, all pixels are {darkest}; expected an image")
    except UserError as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from None  # what a header says may hold line breaks
    except UnidentifiedImageError:
        found = f"a {kind}, and so " if kind not in ("", "PNG", "JPEG") else ""
        raise UserError(f"{name}: {found}neither PNG, JPEG nor DICOM, or cut short; expected one of them, whole") from None
    except Exception as error:  # PIL and pydicom answer bad bytes with some twenty kinds, AttributeError among them
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: unreadable ({why}); expected a whole PNG, JPEG or DICOM") from None
    return grey, aspect, columns


def squared(grey: Image.Image, size: int, aspect: float = 1.0) -> np.ndarray:
    """Return uint8 (size, size): pixels made square, padded with black, then shrunk, for which PIL smooths first."""
    if aspect != 1:
        longer = round(grey.width * max(aspect, 1)), round(grey.height * max(1 / aspect, 1))
        grey = grey.resize(longer, Image.Resampling.BILINEAR)
    return np.asarray(ImageOps.pad(grey, (size, size), Image.Resampling.BILINEAR))


def _picture(content: bytes) -> tuple[Image.Image, float, dict]:
    """Read a PNG or JPEG. Raises UserError without a name, and whatever PIL raises."""
    with Image.open(BytesIO(content), formats=["PNG", "JPEG"]) as image:
        _check_pixels(image.width, image.height)
        # An MPO is a photograph with further pictures for depth or a preview: its first one is the photograph.
        if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
            raise UserError(f"{frames} frames; expected one image")
        raw = image.tile[0][3] if image.tile else ""
        aspect = _ratio(image.info.get("dpi") or image.info.get("aspect") or image.info.get("jfif_density"))
        if image.getexif().get(0x0112, 1) > 4:  # turned by a quarter
            aspect = 1 / aspect
        if raw in ("RGB;16B", "RGBA;16B", "LA;16B"):
            return Image.fromarray(_stretched(_sixteen_bits(content, raw))), aspect, {}
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16 bit, which PIL would clip to 8
            return Image.fromarray(_stretched(np.asarray(image))), aspect, {}
        if image.has_transparency_data:
            clear = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", clear.size, "black"), clear)
        return image.convert("L"), aspect, {}


def _sixteen_bits(content: bytes, raw: str) -> np.ndarray:
    """Return the grey values (H, W) of a PNG with colours or transparency of 16 bits each, on black.

    PIL has no such mode and keeps the high bytes: the low ones are read as the high ones of the other byte order.
    """

    def layer(raw: str) -> np.ndarray:
        image = Image.open(BytesIO(content), formats=["PNG"])
        image.tile = [image.tile[0]._replace(args=raw)]
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(image, np.float64)

    if raw == "LA;16B":  # four bytes, as RGBA has
        grey, alpha = (256 * pair[..., 0] + pair[..., 1] for pair in np.split(layer("RGBA"), 2, axis=-1))
    else:
        colours = 256 * layer(raw) + layer(raw.removesuffix("B") + "L")
        grey, alpha = colours[..., :3] @ (0.299, 0.587, 0.114), colours[..., 3] if raw == "RGBA;16B" else 65535
    return np.rint(grey * alpha / 65535)


def _radiogram(content: bytes) -> tuple[Image.Image, float, dict[str, str | float]]:
    """Read a DICOM file, with or without its preamble. Raises UserError without a name, and whatever pydicom raises."""
    dicom = pydicom.dcmread(BytesIO(content), force=content[128:132] != b"DICM")
    if "PixelData" not in dicom:
        kind = UID(dicom.get("SOPClassUID") or dicom.file_meta.get("MediaStorageSOPClassUID") or "of no kind").name
        raise UserError(f"DICOM without an image ({kind}); expected a radiograph")
    if "TransferSyntaxUID" not in dicom.file_meta:
        raise UserError("a DICOM without a transfer syntax, so nobody can say how its pixels are stored; expected one")
    if (frames := int(dicom.get("NumberOfFrames") or 1)) > 1:
        raise UserError(f"{frames} frames; expected one image")
    _check_pixels(dicom.Columns, dicom.Rows)
    pixels, aspect = _decoded(dicom), next((ratio for tag in SPACINGS if (ratio := _ratio(dicom.get(tag), 0))), 1.0)
    columns = {column: str(dicom.get(tag) or "").strip() for column, tag in HEADER.items()}
    if age := re.fullmatch(r"(\d{1,3})([DWMY])", str(dicom.get("PatientAge")).strip()):
        columns = {"age": round(int(age[1]) * DAYS[age[2]] / DAYS["Y"], 2)} | columns
    columns = {column: value for column, value in columns.items() if value != ""}
    if dicom.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dicom)
    if pixels.ndim == 3:
        colours = pixels if pixels.dtype == np.uint8 else _stretched(pixels)
        return Image.fromarray(colours).convert("L"), aspect, columns
    shown, padding = np.zeros(pixels.shape, np.uint8), _padding(pixels, dicom)
    shown[~padding] = _windowed(apply_modality_lut(pixels[~padding].astype(np.int64), dicom), dicom)
    if dicom.PhotometricInterpretation == "MONOCHROME1":
        shown[~padding] = 255 - shown[~padding]
    return Image.fromarray(shown), aspect, columns


def _decoded(dicom: pydicom.Dataset) -> np.ndarray:
    """Return the stored pixels (rows, columns[, 3]); the error names a compression that cannot be undone here."""
    syntax = dicom.file_meta.TransferSyntaxUID
    try:
        return pixel_array(dicom)
    except (NotImplementedError, RuntimeError):  # a video, say; no decoder, or none that could read this file
        raise UserError(
            f"pixels of transfer syntax {syntax} ({syntax.name}) cannot be decoded; expected a whole file, and for JPEG "
            "other than 8-bit baseline and JPEG 2000: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
        ) from None


def _padding(pixels: np.ndarray, dicom: pydicom.Dataset) -> np.ndarray:
    """Return where the stored pixels are padding by the header: outside of what was exposed, say."""
    first = dicom.get("PixelPaddingValue")
    if first is None:
        return np.zeros(pixels.shape, bool)
    limit = dicom.get("PixelPaddingRangeLimit")
    ends = np.array([first, first if limit is None else limit], np.int64)
    low, high = sorted(ends.astype(pixels.dtype))  # a negative one may be written as if it had no sign
    padding = (pixels >= low) & (pixels <= high)
    if padding.all():
        raise UserError("no contrast, all pixels are padding; expected an image")
    return padding


def _ratio(sides: object, unknown: float = 1.0) -> float:
    """Return the second by the first of two positive numbers, 1 if they are nearly equal; `unknown` where they are none."""
    try:
        first, second = (float(side) for side in sides)
    except (TypeError, ValueError):
        return unknown
    if not (0 < first < np.inf and 0 < second < np.inf):
        return unknown
    return 1.0 if abs(second / first - 1) < 0.01 else second / first


def _windowed(values: np.ndarray, dicom: pydicom.Dataset) -> np.ndarray:
    """Return values after rescaling as uint8: by the header's lookup table or first window, else from percentiles."""
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
    """Return uint8 with `low` at 0 and `high` at 255; `low` may be the larger (a negative slope)."""
    if low == high:
        return np.zeros(values.shape, np.uint8)
    unit = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    if not np.isfinite(unit).all():
        raise UserError("grey values that are not finite, by the rescaling or window in its header; expected numbers")
    return np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)


def _check_pixels(width: int, height: int) -> None:
    if width * height > Image.MAX_IMAGE_PIXELS:
        raise UserError(f"{width} x {height} pixels; expected at most {Image.MAX_IMAGE_PIXELS} (a decompression bomb?)")
