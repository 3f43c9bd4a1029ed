"""The layout of the Medical Segmentation Decathlon and of nnU-Net: `imagesTr/`, `labelsTr/` and `dataset.json`.

dataset.json names the label values: `{"1": "LV"}` in the Decathlon, `{"LV": 1}` in nnU-Net. So --lv and --myo are names or
values. nnU-Net's images carry a channel (`heart_01_0000.nii.gz` beside the label `heart_01.nii.gz`); of several channels the
first, `_0000`, is taken.
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
from data_prep.nifti import by_case, paired, stem
from fedlib.config import UserError

DEFAULTS = Settings(lv="LV", myo="Myo")
NONE = "no volume in imagesTr/; expected imagesTr/*.nii.gz and labelsTr/*.nii.gz"
TABLE = "dataset.json"


def find_cases(files: Files, settings: Settings) -> tuple[list[Case], Settings]:
    """Pair the images and labels that dataset.json lists; where it lists none, imagesTr/ and labelsTr/ by name.

    Return them with the settings, in which label values take the place of names; these are compared without regard to case.
    Raises UserError when dataset.json cannot be used, names no such label, lists a file that does not exist or counts other
    cases, or as `nifti.paired` does.
    """
    tables = [name for name in files.stamps if name.rsplit("/", 1)[-1] == TABLE]
    if len(tables) != 1:
        raise UserError(f"--input {files.source}: {len(tables)} files {TABLE}; expected one, beside imagesTr/ and labelsTr/")
    where, top = files.where(tables[0]), tables[0].removesuffix(TABLE)
    table = _table(files.read(tables[0]), where)
    rows = table.get("training") or table.get("dataset")
    cases = _listed(files, where, top, rows) if rows else _by_name(files, top)
    if cases and (stated := table.get("numTraining", len(cases))) != len(cases):
        raise UserError(f"{where}: numTraining is {stated}; expected {len(cases)}, the cases found")
    named = {"lv": settings.lv, "myo": settings.myo}
    labels = _label_values(table["labels"], where)
    return cases, replace(settings, **{name: _values(labels, name, text, where) for name, text in named.items()})


def _table(content: bytes, where: str) -> dict[str, Any]:
    try:
        table = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no JSON ({error}); expected the Decathlon's or nnU-Net's table") from None
    if not isinstance(table, dict) or not isinstance(table.get("labels"), dict):
        raise UserError(f"{where}: has no table labels; expected it, as in {{'labels': {{'0': 'background'}}}}")
    return table


def _label_values(labels: dict[str, Any], where: str) -> dict[str, list[str]]:
    """Return the name of each label, in lower case, with its values: several for a region of nnU-Net."""
    found: dict[str, list[str]] = {}
    for key, value in labels.items():
        name, numbers = (value, key) if key.isdecimal() else (key, value)
        group = [str(number) for number in (numbers if isinstance(numbers, list) else [numbers])]
        if not isinstance(name, str) or not all(number.isdecimal() for number in group) or cleaned(name).lower() in found:
            raise UserError(f"{where}: label {key!r}: {value!r}; expected each name once, with whole numbers")
        found[cleaned(name).lower()] = group
    return found


def _values(labels: dict[str, list[str]], option: str, text: str, where: str) -> str:
    """Return the label values, without repeats, for a text of values and names."""
    known = {value: [value] for group in labels.values() for value in group} | labels
    values: list[str] = []
    for part in parts(text):
        if (name := cleaned(part).lower()) not in known:
            listed = ", ".join(f"{name} ({','.join(group)})" for name, group in labels.items())
            raise UserError(f"--{option} {part}: no label of {where}; expected some of {listed}")
        values += known[name]
    return ",".join(dict.fromkeys(values))


def _by_name(files: Files, top: str) -> list[Case]:
    """Pair the volumes of imagesTr/ and labelsTr/ by their names without suffix."""
    images, labels = (by_case(files, rf"{re.escape(top)}{kind}Tr/([^/]*)") for kind in ("images", "labels"))
    channels: dict[str, list[str]] = {}
    for image, file in images.items():
        base = re.sub(r"_\d{4}$", "", image)  # the name without the channel, where it has channels
        channels.setdefault(base if image not in labels and f"{base}_0000" in images else image, []).append(file)
    cases = paired(files, {name: several[0] for name, several in channels.items()}, labels, "{}.nii.gz in imagesTr/")
    return [replace(case, columns={"channels": len(channels[case.case])}) for case in cases]


def _listed(files: Files, where: str, top: str, rows: Any) -> list[Case]:
    """Return the cases that dataset.json lists: `training` in the Decathlon and nnU-Net 1, `dataset` in nnU-Net 2."""
    found: dict[str, Case] = {}
    known = {normalize("NFC", name): name for name in files.stamps}

    def existing(path: str) -> str:
        """Return the file of a listed path; nnU-Net 1 lists `heart_1.nii.gz` for heart_1_0000.nii.gz."""
        name = normalize("NFC", str(PurePosixPath(top + path)))
        bare = name.removesuffix(".gz").removesuffix(".nii")
        for spelling in (name, f"{bare}_0000{name.removeprefix(bare)}"):
            if spelling in known:
                return known[spelling]
        raise UserError(f"{where}: lists {path}, which does not exist")

    try:
        for row in rows.values() if isinstance(rows, dict) else rows:
            paths = row["images"] if "images" in row else [row["image"]]
            image, *_, label = [existing(path) for path in [*paths, row["label"]]]
            case = cleaned(stem(label))
            if case in found:
                raise UserError(f"{where}: lists {case} twice; expected each case once")
            found[case] = Case(case, case, image, label_files=(label,), columns={"channels": len(paths)})
    except (TypeError, KeyError, AttributeError):
        expected = "expected {'image': './imagesTr/...', 'label': './labelsTr/...'}"
        raise UserError(f"{where}: its list of training cases is not readable; {expected}") from None
    return list(found.values())
