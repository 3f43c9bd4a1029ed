"""Several prepared sets as one: hospitals, scanners or archives, told apart by the column `source`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from data_prep.duplicates import find_pairs, hashes, name_groups
from data_prep.pipeline import HASHES, digest, up_to_date
from data_prep.quality import listed
from data_prep.splits import assign_splits
from data_prep.writer import PreparedWriter
from fedlib.config import UserError
from fedlib.data.dataset import PreparedDataset, chosen, open_prepared

SAME = ("task", "classes", "spacing_mm", "size", "modality", "window")
"""What the sets must have in common; where the window lies (`crop`) may differ."""
COUNTED = ("counts", "passed_over")
NAMES = ("case", "patient", "dup_group")
"""Columns that mean nothing outside of their set."""


def merge(sets: Sequence[Path], out: Path, overwrite: bool = False) -> PreparedDataset:
    """Put prepared sets one after another, each case with the name of its set's folder as `source`.

    Every set keeps its splits. A column `source` of a set's own becomes `origin`. Raises UserError when the sets were not
    prepared alike, which names what differs, and when an image of one split is a duplicate of one in another.
    """
    folders, sets = sets, {folder.resolve().name: open_prepared(folder) for folder in sets}
    if len(sets) < 2 or len(sets) < len(folders):
        raise UserError(f"merge {' '.join(map(str, folders))}: expected two sets or more, in folders of different names")
    settings = {name: chosen(data.manifest["choices"]) | data.manifest for name, data in sets.items()}
    _check_alike(settings)
    made_from = digest([(name, data.fingerprint) for name, data in sets.items()])
    if found := up_to_date(out, made_from, overwrite):
        return found
    manifests = [data.manifest for data in sets.values()]
    by_image = any(manifest["splits"]["split_by"] == "image" for manifest in manifests)
    splitting = {"split_by": "image" if by_image else "patient", "near_bits": manifests[0]["splits"]["near_bits"]}
    table = pd.concat([_table(name, data) for name, data in sets.items()], ignore_index=True)
    pairs = find_pairs(table, splitting["near_bits"])
    table["split"] = assign_splits(table, pairs, 0, split_by=splitting["split_by"])
    table["dup_group"] = name_groups(table, pairs)
    qc = pd.concat([listed(data, "qc").assign(source=name) for name, data in sets.items()])
    manifest = {name: manifests[0][name] for name in ("task", "classes", "spacing_mm")} | {
        "source": "merge",
        "title": " and ".join(manifest["title"] for manifest in manifests),
        "synthetic": any(manifest["synthetic"] for manifest in manifests),
        "recipe": {name: data.fingerprint for name, data in sets.items()},
        "choices": [_joined(row, settings) for row in manifests[0]["choices"]],
        "splits": splitting,
        "made_from": made_from,
        "warnings": [f"{name}: {warning}" for name, data in sets.items() for warning in data.manifest["warnings"]],
        **{name: pd.DataFrame([own[name] for own in manifests]).sum().astype(int).to_dict() for name in COUNTED},
    }
    with PreparedWriter(out, {"reader": made_from}) as writer:
        for name, data in sets.items():
            for row, case in enumerate(data.cases["case"]):
                writer.add(f"{name}/{case}", data.images[row], data.labels[row])
        tables = {"cases.csv": table.drop(columns=[*HASHES]), "qc.csv": qc, "duplicates.csv": pairs}
        return writer.finish(manifest, table["case"].to_list(), tables)


def _check_alike(settings: dict[str, dict[str, Any]]) -> None:
    first, expected = next(iter(settings.items()))
    # Percentiles are those of the part that the crop leaves: the same words are another rule with another crop.
    same = (*SAME, "crop") if isinstance(expected.get("window"), str) else SAME
    for name, found in settings.items():
        for setting in same:
            one, two = expected.get(setting), found.get(setting)
            if one != two:
                raise UserError(f"{name}: {setting} {two}; expected {one}, as in {first}; prepare both alike")


def _table(name: str, data: PreparedDataset) -> pd.DataFrame:
    cases = data.cases.rename(columns={"source": "origin"})
    for column in NAMES:
        cases[column] = (f"{name}/" + cases[column]).where(cases[column] != "", "")
    return cases.assign(source=name, **dict(zip(HASHES, zip(*map(hashes, data.images), strict=True), strict=True)))


def _joined(row: dict[str, Any], settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a row of the first set's choices; where another chose otherwise, the value says what each did."""
    values = {name: found.get(row["setting"]) for name, found in settings.items()}
    if all(value == row["value"] for value in values.values()):
        return row
    return row | {"value": ", ".join(f"{value} ({name})" for name, value in values.items())}
