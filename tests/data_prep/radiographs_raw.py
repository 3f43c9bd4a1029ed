"""Radiographs and their tables as bytes, made small: PNG and JPEG of every mode, DICOM, metadata sheets."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from pydicom import encaps
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from data_prep.covid19_radiography import COUNTS


def encoded(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    """The image as a file of that kind."""
    stream = BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def huge_png(side: int = 50_000) -> bytes:
    """A PNG of a few bytes that claims side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def dicom(pixels: np.ndarray | None, syntax: UID = ExplicitVRLittleEndian, **header: object) -> bytes:
    """A DICOM file of unsigned or signed pixels (rows, columns[, 3]); `header` sets, or with None removes, elements."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = syntax
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["one"])
    file.PatientName, file.PatientBirthDate = "Doe^Jane", "19700101"
    if pixels is not None:
        colour = pixels.ndim == 3
        file.Rows, file.Columns = pixels.shape[:2]
        file.SamplesPerPixel, file.PlanarConfiguration = (3, 0) if colour else (1, 0)
        file.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        file.BitsAllocated = file.BitsStored = 8 * pixels.itemsize
        file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(pixels.dtype.kind == "i")
        file.PixelData = pixels.tobytes()
        file["PixelData"].VR = "OW"
        file["PixelData"].is_undefined_length = syntax.is_compressed
    for name, value in header.items():
        if value is None:
            del file[name]
        else:
            setattr(file, name, value)
    stream = BytesIO()
    file.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def encapsulated(frame: bytes) -> bytes:
    """Pixel data of a compressed transfer syntax."""
    return encaps.encapsulate([frame])


def lookup_table(entries: list[int], first: int, bits: int) -> list[Dataset]:
    """A VOI LUT Sequence."""
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), first, bits], entries
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return [item]


def radiography_database(folder: Path, counts: dict[str, int] = COUNTS) -> Path:
    """The tree of the COVID-19 Radiography Database, with empty files; its names are all that finding cases reads."""
    for name, n in counts.items():
        for kind in ("images", "masks"):
            (folder / name / kind).mkdir(parents=True)
            for number in range(1, n + 1):
                (folder / name / kind / f"{name}-{number}.png").touch()
    (folder / "README.md.txt").write_text("read me")
    return folder


def metadata(path: Path, urls: dict[str, str]) -> None:
    """The sheet that lies beside a class: URL by FILE NAME."""
    rows = [(name, "PNG", "256*256", url) for name, url in urls.items()]
    pd.DataFrame(rows, columns=["FILE NAME", "FORMAT", "SIZE", "URL"]).to_excel(path, index=False)
