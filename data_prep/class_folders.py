"""Images in one folder a class, with or without a table of patients and duplicates.

<CLASS>/ill-1.png   <CLASS>/images/ill-1.png   <CLASS>/<patient>/.../view-1.dcm      PNG, JPEG, DICOM
manifest.csv        optional: file, class, patient, dup_group, split, and any other columns, which are kept

A folder `images` is passed through, `mask` and `masks` are left alone, and so are files of other kinds. Suffixes are taken
in upper and lower case; a file without any counts as DICOM. With a manifest only the listed files are taken.
"""

from io import StringIO
from pathlib import PurePosixPath
from typing import Any
from unicodedata import normalize

import numpy as np
import pandas as pd

from data_prep.cases import Case, Loaded, Loader
from data_prep.files import Files
from data_prep.radiographs import PERCENTILES, header_columns, read_grey, squared
from fedlib.config import UserError
from fedlib.data.dataset import SPLITS

TASK = "classification"
SUFFIXES = {".png", ".jpg", ".jpeg", ".dcm", ".dicom"}
NO_IMAGES = {"DICOMDIR", "LICENSE", "README", "VERSION"}
"""Files without a suffix that are no images."""
KNOWN = ("file", "class", "patient", "dup_group", "split")
RESERVED = {"case", "label"}
"""Columns that cases.csv fills itself."""


def find_cases(files: Files, where: str | None = None) -> list[Case]:
    """List the images of every class, with patients, duplicate groups and splits if manifest.csv states them.

    `where`, as in `mini=1`, keeps the rows of manifest.csv with that value. Without a manifest the first folder inside the
    class is the patient, and images that lie in no such folder are patients of their own (`patient` equals `case`).
    Raises UserError when there are fewer than two classes, or the manifest cannot be used or lists a file that is not there.
    """
    beside = [*files.stamps, *files.unsafe]
    manifest = next((name for name in beside if name.lower() == "manifest.csv"), None)
    if manifest:
        cases = _from_manifest(files, manifest, where)
    elif where is not None:
        raise UserError(f"--where {where}: needs {files.where('manifest.csv')}, which does not exist")
    else:
        cases = _from_folders(files)
    classes = class_names(cases)
    if len(classes) < 2:
        found = f" ({classes[0]})" if classes else ""
        top = files.where("").rstrip(":/")
        raise UserError(f"--input {top}: {len(classes)} class folders with images{found}, expected at least 2")
    return cases


def class_names(cases: list[Case]) -> list[str]:
    """Names of the classes, sorted: their order is that of the class indices."""
    return sorted({case.label for case in cases})


def loader(cases: list[Case], size: int) -> Loader:
    """A loader: uint8 images (1, size, size), the index of the class among the sorted names, and columns.

    Those are the `shape` in pixels and, as far as a DICOM header states them, age, sex, view, manufacturer and patient (only
    the loader sees headers: finding cases reads no images). The pipeline takes `patient` where neither manifest nor folder
    named one.
    """
    index = {name: number for number, name in enumerate(class_names(cases))}

    def load(case: Case, contents: list[bytes]) -> Loaded:
        columns = header_columns(case.image, contents[0])
        grey = read_grey(case.image, contents[0])
        columns["shape"] = f"{grey.width}x{grey.height}"
        return squared(grey, size)[np.newaxis], index[case.label], columns

    return load


def choices(size: int) -> list[dict[str, Any]]:
    """What was chosen and why, for manifest.json: rows with setting, value, reason, label."""
    percentiles = f"percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g}"
    told = {
        "size": (size, "pixels a side; 224 is the size most classifiers of the literature were made for"),
        "shape": ("padded to a square with black", "nothing is cut off, and nothing is stretched"),
        "interpolation": ("bilinear, smoothed before it shrinks", "fine lines fade and leave no false patterns"),
        "grey values": (
            f"the header's window, else {percentiles}",
            "of more than 8 bits; 12 bits stored in 16 stay visible",
        ),
    }
    return [{"setting": key, "value": value, "reason": why, "label": "chosen"} for key, (value, why) in told.items()]


def _from_folders(files: Files) -> list[Case]:
    cases = []
    for name in filter(_is_image, files.stamps):
        *folders, file = (part for part in name.split("/") if part.lower() != "images")
        if not folders or any(part.lower() in {"mask", "masks"} for part in folders):
            continue
        if folders[0].lower() in SPLITS:
            raise UserError(
                f"{files.where(name)}: a split where a class is expected; "
                "expected one folder a class, or a manifest.csv with file, class, split"
            )
        case = "/".join([*folders, _stem(file)])
        cases.append(Case(case, patient=folders[1] if len(folders) > 1 else case, image=name, label=folders[0]))
    return cases


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES or (not path.suffix and path.name.upper() not in NO_IMAGES)


def _stem(name: str) -> str:
    """Without the suffix, if it is one of ours: `1.2.840.15` is a whole name."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in SUFFIXES else name


def _from_manifest(files: Files, manifest: str, where: str | None) -> list[Case]:
    table = _table(files, manifest)
    if where is not None:
        column, _, value = where.partition("=")
        if column not in table.columns:
            raise UserError(
                f"--where {where}: no column {column!r} in {files.where(manifest)}; "
                f"expected one of {', '.join(table.columns)}"
            )
        table = table[table[column] == value]
        if table.empty:
            raise UserError(f"--where {where}: no such row in {files.where(manifest)}; expected at least one")
    table = table.assign(file=_matched(files, manifest, list(table["file"])))
    cases = []
    for row in table.to_dict("records"):
        image, name = row["file"], _stem(row["file"])
        if not row["class"]:
            raise UserError(f"{files.where(manifest)}: no class for {image}; expected a name")
        if (split := row.get("split", "")) not in ("", *SPLITS):
            raise UserError(f"{files.where(manifest)}: split {split!r} for {image}; expected {', '.join(SPLITS)} or nothing")
        more = {column: value for column, value in row.items() if column not in KNOWN}
        patient, dup_group = row.get("patient") or name, row.get("dup_group", "")
        cases.append(Case(name, patient, image, row["class"], dup_group=dup_group, split=split, columns=more))
    return cases


def _table(files: Files, manifest: str) -> pd.DataFrame:
    """The manifest as text: UTF-8 with or without a mark at its start, separated by commas or semicolons.

    Blanks around a value do not count: `ill ` would be a class of its own. They stay in the names of files.
    """
    where, expected = files.where(manifest), "expected columns file, class[, patient, dup_group, split]"
    content = _content(files, manifest)
    head = content.split(b"\n", 1)[0]
    separator = ";" if b";" in head and b"," not in head else ","
    try:
        text = content.decode("utf-8-sig")
        table = pd.read_csv(StringIO(text), sep=separator, dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' own kinds: no columns, ragged rows, not text
        raise UserError(f"{where}: not a table ({' '.join(str(error).split())}); {expected}, in UTF-8") from None
    table.columns = table.columns.str.strip()
    if table.columns.has_duplicates:
        raise UserError(f"{where}: column {table.columns[table.columns.duplicated()][0]} twice; {expected}")
    table = table.apply(lambda column: column if column.name == "file" else column.str.strip())
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes what is too much for row names
        raise UserError(f"{where}: its rows have more fields than it has columns; {expected}")
    if missing := {"file", "class"} - set(table.columns):
        raise UserError(f"{where}: no column {', '.join(sorted(missing))}; {expected}")
    if taken := RESERVED & set(table.columns):
        raise UserError(f"{where}: column {', '.join(sorted(taken))} is one that cases.csv fills itself; rename it")
    if table.empty:
        raise UserError(f"{where}: lists no files; expected a row an image")
    return table


def _content(files: Files, name: str) -> bytes:
    if reason := files.unsafe.get(name):
        raise UserError(f"{files.where(name)}: {reason}")
    return files.read(name)


def _matched(files: Files, manifest: str, listed: list[str]) -> list[str]:
    """The names in `files` of the listed ones, which may spell their umlauts another way (macOS does in its zips)."""
    known = {normalize("NFC", name): name for name in files.stamps}
    found, missing = {}, []
    for file in listed:
        if "\\" in file:
            raise UserError(f"{files.where(manifest)}: lists {file}; expected / between folders")
        name = normalize("NFC", str(PurePosixPath(file)))
        if reason := files.unsafe.get(name):
            raise UserError(f"{files.where(manifest)}: lists {file}: {reason}")
        if name in found:
            raise UserError(f"{files.where(manifest)}: lists {file} twice; expected a row an image")
        found[name] = known.get(name)
        if not found[name]:
            missing.append(file)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        are = "do" if more else "does"
        raise UserError(f"{files.where(manifest)}: lists {missing[0]}{more}, which {are} not exist")
    return list(found.values())
