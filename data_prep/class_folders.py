"""Images in one folder a class, with or without a table of patients and duplicates.

<CLASS>/ill-1.png   <CLASS>/images/ill-1.png   <CLASS>/<patient>/.../view-1.dcm      PNG, JPEG, DICOM
manifest.csv        optional: file, class, patient, dup_group, split, and any other columns, which are kept

A folder `images` is passed through, `mask` and `masks` are left alone, and so are texts and tables. Every other file counts
as an image, whatever its name: the loader looks at its content. With a manifest only the listed files are taken.
"""

import re
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any
from unicodedata import normalize

import pandas as pd

from data_prep.cases import Case, Loaded, choice
from data_prep.files import Files, cleaned, read_table
from data_prep.radiographs import PERCENTILES, kind_of, read_grey, squared
from fedlib.config import UserError
from fedlib.data.dataset import SPLITS

SUFFIX = re.compile(r"\.(png|jpe?g|jpe|jfif|dcm|dicom|tiff?|bmp|gif|webp)$", re.IGNORECASE)
"""Left out of the names of cases: `1.2.840.15` is a whole name."""
TEXTS = re.compile(r"\.(txt|[ct]sv|xlsx?|ods|json|xml|md|rtf|html?|pdf|docx?)", re.IGNORECASE)
"""Suffixes of what is not taken for an image, unless its content is one."""
NO_IMAGES = {"DICOMDIR", "LICENSE", "README", "VERSION"}
SPLITTING = r"(train|training|trn|val|valid|validation|dev|test|testing|tst|holdout|folds?)"
PARTS = rf"({SPLITTING}|sets?|data|images?|imgs?|parts?|batch|subset|split|folder|files|png|jpe?g|dicom|dcm)"
"""Words that, with numbers, name neither a class nor a patient."""
KNOWN = ("file", "class", "patient", "dup_group", "split")
ALIKE = {
    "file": r"(image|picture|img)?(file|path|image|img)(name|path)?s?",
    "class": r"(labels?|diagnos[ie]s|findings?|category|disease|classes|classname|target)",
    "patient": r"(id)?(patient(en|in)?|pat|subject|subj|person|participant|proband|mrn|pid)s?"
    r"(id|no|nr|num|number|code|key|uid|name|identifier|pseudonym)?s?",
    "dup_group": r"(near)?dup(licate|e)?s?(group|set|cluster|of)?(id|s)?",
    "split": r"(data(set)?)?(split|subset|set|fold|partition)s?(name|no)?",
}
"""Spellings (letters only) that ask for a known column; a table without it is refused, with the question."""


def find_cases(files: Files, where: str | None = None) -> list[Case]:
    """List the images of every class, with patients, duplicate groups and splits if manifest.csv states them.

    `where`, as in `mini=1`, keeps the rows of manifest.csv with that value. Without a manifest the first folder inside the
    class is the patient, and images that lie in no such folder are patients of their own (`patient` equals `case`).
    Raises UserError when there are fewer than two classes, when a folder may be a class or something else, or when the
    manifest cannot be used or lists a file that is not there.
    """
    beside = [*files.stamps, *files.unsafe]
    manifest = next((name for name in beside if name.lower() == "manifest.csv"), None)
    if manifest:
        cases = _from_manifest(files, manifest, where)
    elif where is not None:
        raise UserError(f"--where {where}: needs {files.where('manifest.csv')}, which does not exist")
    else:
        cases = _from_folders(files)
    classes, top = class_names(cases), files.where("").rstrip(":/")
    if len(classes) < 2:
        found = f" ({classes[0]})" if classes else ""
        raise UserError(f"--input {top}: {len(classes)} class folders with images{found}, expected at least 2")
    alike = pd.Series(classes, [re.sub(r"[\W_]", "", normalize("NFKC", name).casefold()) for name in classes])
    if len(twins := alike[alike.index.duplicated(keep=False) & (alike.index != "")].sort_index()):
        raise UserError(f"--input {top}: classes {twins.iloc[0]!r} and {twins.iloc[1]!r} look alike; expected one spelling")
    return cases


def class_names(cases: list[Case]) -> list[str]:
    """Return the names of the classes in the order of their indices."""
    return sorted({case.label for case in cases})


def load(case: Case, contents: list[bytes], classes: list[str], size: int) -> Loaded:
    """Return a uint8 image (1, size, size), the index of its class, and columns.

    The columns are the `shape` in pixels and what a DICOM header states. The pipeline takes its `patient` where neither
    manifest nor folder named one.
    """
    grey, aspect, columns = read_grey(case.image, contents[0])
    return squared(grey, size, aspect)[None], classes.index(case.label), columns | {"shape": f"{grey.width}x{grey.height}"}


def choices(size: int) -> list[dict[str, Any]]:
    """Return what was chosen and why, for manifest.json: rows with setting, value, reason, label."""
    percentiles = f"percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g}"
    return [
        choice("size", size, "pixels a side; 224 is the size most classifiers of the literature were made for"),
        choice("shape", "padded to a square with black", "nothing is cut off, and nothing is stretched"),
        choice("interpolation", "bilinear, smoothed before it shrinks", "fine lines fade and leave no false patterns"),
        choice("grey values", f"the header's window, else {percentiles}", "12 bits stored in 16 stay visible"),
    ]


def is_image(files: Files, name: str) -> bool:
    """Tell whether a file has to be taken or refused as an image, rather than passed over."""
    path = PurePosixPath(name)
    if path.name.upper() in NO_IMAGES:
        return False
    try:
        return not TEXTS.fullmatch(path.suffix) or kind_of(files.read(name, 132)) != ""
    except UserError:  # a text that cannot be read
        return False


def _from_folders(files: Files) -> list[Case]:
    found: dict[str, list[str]] = {}
    for name in files.stamps:
        *folders, _ = (part for part in name.split("/") if part.lower() != "images")
        if not any(part.lower() in {"mask", "masks"} for part in folders) and is_image(files, name):
            if folders:
                found[name] = [cleaned(part) for part in folders]
            else:
                files.unsafe[name] = "an image in no class folder; expected it in one"
    _check_levels(files, found)
    cases = []
    for name, folders in found.items():
        case = "/".join([*folders, cleaned(SUFFIX.sub("", name.rsplit("/", 1)[-1]))])
        cases.append(Case(case, patient=folders[1] if len(folders) > 1 else case, image=name, label=folders[0]))
    return cases


def _check_levels(files: Files, found: dict[str, list[str]]) -> None:
    """Refuse folders that may be something else than a class, or a patient inside a class: nobody can say which."""
    expected = "expected one folder a class, or a manifest.csv with file, class, patient, split"
    for folders in dict.fromkeys(map(tuple, found.values())):
        for level, folder in enumerate(folders):
            if not _rest(folder, PARTS if level < 2 else SPLITTING):
                meant = "a class" if level == 0 else "a patient"
                path = files.where("/".join(folders[: level + 1]) + "/")
                raise UserError(f"{path}: looks like a part or a split where {meant} is expected; {expected}")
    classes, parts = {folders[0] for folders in found.values()}, {}
    for name in sorted(classes, key=lambda name: len(_rest(name, "(?!)"))):
        rest = _rest(name, SPLITTING)
        if (other := parts.setdefault(rest, name)) != name and rest != _rest(name, "(?!)"):
            raise UserError(f"{files.where('')}: {other} and {name} look like a split of one class; {expected}")
    inner = {name: {folders[1] for folders in found.values() if folders[0] == name and len(folders) > 1} for name in classes}
    mixed = {folders[0] for folders in found.values() if len(folders) == 1}  # with images beside the inner folders
    counted = pd.Series([folder for name in sorted(classes - mixed) for folder in inner[name]], dtype=object).value_counts()
    shared = sorted(counted.index[counted > 1])
    if len(shared) > len(counted) / 2:
        shown = ", ".join(shared[:3])
        raise UserError(f"{files.where('')}: {shown} lie in several folders, so either may be the class; {expected}")


def _rest(folder: str, words: str) -> str:
    """Return a folder's name without `words` and, where it has one of them, without numbers."""
    parts = [part.lower() for part in re.findall(r"\d+|[A-Z]*[^\W\d_A-Z]+|[A-Z]+", folder)]
    kept = [part for part in parts if not re.fullmatch(rf"{words}(set|data)?", part)]
    return " ".join(part for part in kept if len(kept) == len(parts) or not part.isdigit()) if parts else folder


def _from_manifest(files: Files, manifest: str, where: str | None) -> list[Case]:
    table, of = _table(files, manifest), files.where(manifest)
    if where is not None:
        column, _, value = map(cleaned, where.partition("="))
        if column not in table.columns:
            raise UserError(f"--where {where}: no column {column!r} in {of}; expected one of {', '.join(table.columns)}")
        table = table[table[column] == value]
        if table.empty:
            raise UserError(f"--where {where}: no such row in {of}; expected at least one")
    table = table.reindex(columns=table.columns.union(KNOWN, sort=False), fill_value="")
    known = {normalize("NFC", name): name for name in files.stamps}  # macOS writes another Unicode form
    path = table["file"].map(lambda file: normalize("NFC", str(PurePosixPath(file))))
    for wrong, words in (
        (table["file"].str.contains("\\", regex=False), "lists {file}; expected / between folders"),
        (path.isin(files.unsafe), "lists {file}: {unsafe}"),
        (path.duplicated(), "lists {file} twice; expected a row an image"),
        (~path.isin(known), "lists {file}, which does not exist"),
        (table["class"] == "", "no class for {file}; expected a name"),
        (~table["split"].isin(["", *SPLITS]), "split {split!r} for {file}; expected train, val, test or nothing"),
    ):
        for row, unsafe in zip(table[wrong].to_dict("records"), path[wrong].map(files.unsafe), strict=True):
            more = f" ({wrong.sum()} such rows)" if wrong.sum() > 1 else ""
            raise UserError(f"{of}: {words.format_map(row | {'unsafe': unsafe})}{more}")
    cases = []
    for image, row in zip(path.map(known), table.to_dict("records"), strict=True):
        name, more = cleaned(SUFFIX.sub("", image)), {column: value for column, value in row.items() if column not in KNOWN}
        cases.append(Case(name, row["patient"] or name, image, row["class"], (), row["dup_group"], row["split"], more))
    return cases


def _table(files: Files, manifest: str) -> pd.DataFrame:
    """Return the manifest as cleaned text, its known columns by their names. Names of files stay as they are."""
    where, expected = files.where(manifest), "expected columns file, class[, patient, dup_group, split]"
    if reason := files.unsafe.get(manifest):
        raise UserError(f"{where}: {reason}")
    content = files.read(manifest)
    head = content.split(b"\n", 1)[0]
    try:
        table = read_table(content, ";" if b";" in head and b"," not in head else ",")
    except ValueError as error:
        raise UserError(f"{where}: {error}; {expected}") from None
    letters = {column: re.sub(r"[\W\d_]", "", column.casefold()) for column in table.columns}
    known = {name.replace("_", ""): name for name in KNOWN}
    table = table.rename(columns={column: known[key] for column, key in letters.items() if key in known})
    if table.columns.has_duplicates:
        raise UserError(f"{where}: column {table.columns[table.columns.duplicated()][0]} twice; {expected}")
    for name in [name for name in KNOWN if name not in table]:
        close = get_close_matches(name.replace("_", ""), [key for key in letters.values() if key not in known], 1, 0.85)
        for column, key in letters.items():
            if re.fullmatch(ALIKE[name], key) or key in close:
                raise UserError(f"{where}: column {column}: did you mean {name}? rename it so, or to what it is")
    if missing := [name for name in ("class", "file") if name not in table]:
        raise UserError(f"{where}: no column {', '.join(missing)}; {expected}")
    if taken := {"case", "label"} & set(table.columns):
        raise UserError(f"{where}: column {', '.join(sorted(taken))} is one that cases.csv fills itself; rename it")
    if table.empty:
        raise UserError(f"{where}: lists no files; expected a row an image")
    return table
