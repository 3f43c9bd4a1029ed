"""The layout of the Medical Segmentation Decathlon and of nnU-Net: `imagesTr/`, `labelsTr/` and `dataset.json`.

dataset.json names the label values: `{"1": "LV"}` in the Decathlon, `{"LV": 1}` in nnU-Net. nnU-Net's images carry a channel
(`heart_01_0000.nii.gz` beside the label `heart_01.nii.gz`); of several channels the first, `_0000`, is taken.
"""

import json
import re
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any
from unicodedata import normalize

from data_prep.cardiac import Settings, parts
from data_prep.cases import Case
from data_prep.files import Files, cleaned
from data_prep.nifti import by_case, others, stem
from fedlib.config import UserError

DEFAULTS = Settings(lv="LV", myo="Myo")
TABLE = "dataset.json"


def resolved(files: Files, settings: Settings) -> Settings:
    """The settings with label values in place of names, as `cardiac.loader` takes them.

    Names are compared without regard to case. Raises UserError when dataset.json has no such label.
    """
    values = _label_values(files)

    def numbers(option: str, text: str) -> str:
        found: list[str] = []
        for part in parts(text):
            known = [part] if any(part in group for group in values.values()) else values.get(cleaned(part).lower())
            if known is None:
                labels = ", ".join(f"{name} ({','.join(group)})" for name, group in values.items())
                raise UserError(f"{option} {part}: no label of {files.where(_table_name(files))}; expected some of {labels}")
            found += [value for value in known if value not in found]
        return ",".join(found)

    return replace(settings, lv=numbers("--lv", settings.lv), myo=numbers("--myo", settings.myo))


def find_cases(files: Files, settings: Settings) -> list[Case]:
    """Pair the images and labels that dataset.json lists; where it lists none, imagesTr/ and labelsTr/ by name.

    An image without a label is a case that the loader refuses. Raises UserError when there are none, a label has no image,
    a listed file does not exist, or dataset.json counts other cases.
    """
    table_name, table = _table_name(files), _table(files)
    top = table_name.removesuffix(TABLE)
    cases = _listed(files, top) if table.get("training") or table.get("dataset") else _by_name(files, top)
    if not cases:
        expected = "no volume in imagesTr/; expected imagesTr/*.nii.gz and labelsTr/*.nii.gz"
        raise UserError(f"--input {files.source}: {expected}{others(files)}")
    stated = table.get("numTraining", len(cases))
    if stated != len(cases):
        raise UserError(f"{files.where(table_name)}: numTraining is {stated}; expected {len(cases)}, the cases found")
    return cases


def _by_name(files: Files, top: str) -> list[Case]:
    """Pair the volumes of imagesTr/ and labelsTr/ by their names without suffix."""
    images, labels = _named(files, top + "imagesTr/"), _named(files, top + "labelsTr/")
    cases: dict[str, list[str]] = {}
    for image in images:
        base = re.sub(r"_\d{4}$", "", image)  # the name without the channel, where it has channels
        cases.setdefault(base if image not in labels and f"{base}_0000" in images else image, []).append(images[image])
    for alone in [name for name in labels if name not in cases]:
        raise UserError(f"{files.where(labels[alone])}: a label without its image; expected {alone}.nii.gz in imagesTr/")
    return [
        Case(name, name, channels[0], label_files=(labels[name],) if name in labels else (), columns=_channels(channels))
        for name, channels in cases.items()
    ]


def _channels(names: list[str]) -> dict[str, int]:
    return {"channels": len(names)}


def _listed(files: Files, top: str) -> list[Case]:
    """Return the cases that dataset.json lists: `training` in the Decathlon and nnU-Net 1, `dataset` in nnU-Net 2."""
    table, where = _table(files), files.where(_table_name(files))
    rows = table.get("training") or table["dataset"]
    found: dict[str, Case] = {}
    try:
        for row in rows.values() if isinstance(rows, dict) else rows:
            paths = row["images"] if "images" in row else [row["image"]]
            image, *more = [_existing(files, where, top + path) for path in [*paths, row["label"]]]
            case = cleaned(stem(more[-1]))
            if case in found:
                raise UserError(f"{where}: lists {case} twice; expected each case once")
            found[case] = Case(case, case, image, label_files=(more[-1],), columns=_channels(paths))
    except (TypeError, KeyError, AttributeError):
        expected = "expected {'image': './imagesTr/...', 'label': './labelsTr/...'}"
        raise UserError(f"{where}: its list of training cases is not readable; {expected}") from None
    return list(found.values())


def _existing(files: Files, where: str, path: str) -> str:
    """Return the file of a listed path; nnU-Net 1 lists `heart_1.nii.gz` for heart_1_0000.nii.gz."""
    known = {normalize("NFC", name): name for name in files.stamps}
    name = normalize("NFC", str(PurePosixPath(path)))
    bare = name.removesuffix(".gz").removesuffix(".nii")
    for spelling in (name, f"{bare}_0000{name.removeprefix(bare)}"):
        if spelling in known:
            return known[spelling]
    raise UserError(f"{where}: lists {path}, which does not exist")


def _named(files: Files, folder: str) -> dict[str, str]:
    """Map names without suffix to files, for the volumes in a folder."""
    return by_case(files, lambda name: stem(name) if name.rpartition("/")[0] == folder.rstrip("/") else None)


def _table_name(files: Files) -> str:
    tables = [name for name in files.stamps if name.rsplit("/", 1)[-1] == TABLE]
    if len(tables) != 1:
        raise UserError(f"--input {files.source}: {len(tables)} files {TABLE}; expected one, beside imagesTr/ and labelsTr/")
    return tables[0]


def _table(files: Files) -> dict[str, Any]:
    name = _table_name(files)
    try:
        table = json.loads(files.read(name))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{files.where(name)}: no JSON ({error}); expected the Decathlon's or nnU-Net's table") from None
    if not isinstance(table, dict) or not isinstance(table.get("labels"), dict):
        raise UserError(f"{files.where(name)}: has no table labels; expected it, as in {{'labels': {{'0': 'background'}}}}")
    return table


def _label_values(files: Files) -> dict[str, list[str]]:
    """Name of each label, in lower case, to its values: several for a region of nnU-Net."""
    found: dict[str, list[str]] = {}
    for key, value in _table(files)["labels"].items():
        name, numbers = (value, key) if key.isdecimal() else (key, value)
        group = [str(number) for number in (numbers if isinstance(numbers, list) else [numbers])]
        if not isinstance(name, str) or not all(number.isdecimal() for number in group) or cleaned(name).lower() in found:
            row = f"{key!r}: {value!r}"
            raise UserError(f"{files.where(_table_name(files))}: label {row}; expected each name once, with whole numbers")
        found[cleaned(name).lower()] = group
    return found
