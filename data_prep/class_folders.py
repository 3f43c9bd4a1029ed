"""Images in one folder a class: the layout of the COVID-19 Radiography Database and of most other collections.

<CLASS>/*.png   or   <CLASS>/images/*.png          (png, jpg, jpeg; folders named `masks` are left alone)
manifest.csv    optional: file, class, patient, dup_group, and any other columns, which are kept
"""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from data_prep.pipeline import Case, Loader, natural_key
from fedlib.config import UserError

TASK = "classification"
SUFFIXES = {".png", ".jpg", ".jpeg"}


def find_cases(folder: Path, where: str | None = None) -> list[Case]:
    """List the images of every class, with patients and duplicate groups if manifest.csv states them.

    `where`, as in `mini=1`, keeps the rows of manifest.csv with that value. Without a manifest every image is taken as a
    patient of its own. Raises UserError when there are fewer than two classes, or a listed file is not there.
    """
    manifest = folder / "manifest.csv"
    if manifest.exists():
        cases = _from_manifest(manifest, where)
    elif where:
        raise UserError(f"--where {where}: needs {manifest}, which does not exist")
    else:
        cases = _from_folders(folder)
    classes = {case.label for case in cases}
    if len(classes) < 2:
        raise UserError(f"--input {folder}: {len(classes)} class folders with images, expected at least 2")
    return cases


def loader(cases: list[Case], size: int) -> Loader:
    """A loader for `prepare`: uint8 images (1, size, size) and the index of the class among the sorted names."""
    index = {name: number for number, name in enumerate(class_names(cases))}
    return lambda case: (read_image(case.image, size)[np.newaxis], index[case.label], {})


def class_names(cases: list[Case]) -> list[str]:
    """Names of the classes, sorted: their order is that of the class indices."""
    return sorted({case.label for case in cases})


def read_image(path: Path, size: int) -> np.ndarray:
    """Read an image as uint8 grey (size, size): 8 or 16 bit, colour or palette, padded to a square with black.

    Raises UserError when it cannot be read.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):  # 16 bit, which PIL would clip to 8
                image = Image.fromarray((np.asarray(image, np.uint16) >> 8).astype(np.uint8))
            grey = image.convert("RGB").convert("L") if image.mode != "L" else image.copy()
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: unreadable image ({error}); expected a PNG or JPEG") from None
    return np.asarray(ImageOps.pad(grey, (size, size), Image.Resampling.BILINEAR))  # PIL smooths before it shrinks


def _from_folders(folder: Path) -> list[Case]:
    cases = []
    for class_folder in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        images = class_folder / "images" if (class_folder / "images").is_dir() else class_folder
        files = [file for file in images.iterdir() if file.suffix.lower() in SUFFIXES]
        for file in sorted(files, key=lambda file: natural_key(file.name)):
            name = f"{class_folder.name}/{file.stem}"
            cases.append(Case(case=name, patient=name, image=file, label=class_folder.name))
    return cases


def _from_manifest(manifest: Path, where: str | None) -> list[Case]:
    try:
        table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' own kinds: no columns, ragged rows, not text
        raise UserError(f"{manifest}: not a table ({error}); expected columns file, class[, patient, dup_group]") from None
    if missing := {"file", "class"} - set(table.columns):
        raise UserError(f"{manifest}: no column {', '.join(sorted(missing))}; expected file, class[, patient, dup_group]")
    if where:
        column, _, value = where.partition("=")
        if column not in table.columns:
            known = ", ".join(table.columns)
            raise UserError(f"--where {where}: no column {column!r} in {manifest}; expected one of {known}")
        table = table[table[column] == value]
    known = {"file", "class", "patient", "dup_group"}
    cases = []
    for row in table.to_dict("records"):
        image, name = manifest.parent / row["file"], str(Path(row["file"]).with_suffix(""))
        if not image.exists():
            raise UserError(f"{manifest}: lists {row['file']}, which does not exist")
        cases.append(
            Case(
                case=name,
                patient=row.get("patient") or name,
                image=image,
                label=row["class"],
                dup_group=row.get("dup_group", ""),
                columns={key: value for key, value in row.items() if key not in known},
            )
        )
    return cases
