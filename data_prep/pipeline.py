"""From raw files to a prepared set: read each case, find duplicates, split, write. One way for every source."""

import hashlib
import json
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pandas as pd
import torch

from data_prep.cases import Case, Loader, named
from data_prep.duplicates import NEAR_BITS, contradicting, find_pairs, hashes, name_groups
from data_prep.files import Files, cleaned, natural_key
from data_prep.quality import warnings
from data_prep.splits import FRACTIONS, assign_splits, choices
from data_prep.writer import PreparedWriter
from fedlib.config import UserError
from fedlib.data.dataset import ARRAYS, PreparedDataset, open_prepared
from fedlib.data.progress import ProgressBar

READER = 2
"""Raised when the same settings give other arrays: what an older reader prepared is then not up to date."""
HASHES = ("sha256", "phash")
OWN = {*ARRAYS, "cases.csv", "qc.csv", "duplicates.csv", "journal.jsonl", "manifest.json", "verified.json"}
"""What a prepared set consists of, older ones included; a folder with anything else is never replaced."""
TABLE = re.compile(r"(manifest|meta)\.csv|(.*/)?dataset\.json|[^/]*\.metadata\.xlsx", re.IGNORECASE)
"""What adapters read to find the cases."""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare(
    files: Files,
    cases: list[Case],
    load: Loader,
    out: Path,
    manifest: dict[str, Any],
    *,
    seed: int = 0,
    fractions: tuple[float, ...] | None = None,
    split_by: Literal["patient", "image"] = "patient",
    near_bits: int = NEAR_BITS,
    on_bad: Literal["stop", "skip"] = "stop",
    overwrite: bool = False,
    jobs: int = CORES,
) -> PreparedDataset:
    """Read all cases into a prepared set at `out`; patients and duplicates within one split, stratified by class.

    Streams: memory holds a few cases a thread, and some facts of each. After an interruption the same call resumes, and
    reads no case again whose files did not change; a set that is up to date already is opened and returned.

    Raises UserError at the first case that cannot be used or, with `on_bad="skip"`, lists it in qc.csv and continues; and
    when `fractions` (None: FRACTIONS) are given for a source that states its splits.
    """
    if fractions and any(case.split for case in cases):
        raise UserError(f"--fractions: {files.source} states its own splits; expected the option or the column, not both")
    keyed = _keyed(files, cases)
    reading = {"reader": READER} | {name: manifest[name] for name in ("source", "classes", "recipe", "synthetic")}
    splitting = {"seed": seed, "fractions": fractions or FRACTIONS, "split_by": split_by, "near_bits": near_bits}
    settings = [reading, splitting, on_bad, files.unsafe, [(key, repr(case)) for key, case in keyed.items()]]
    made_from = manifest.get("made_from") or digest(settings)
    if found := up_to_date(out, made_from, overwrite):
        return found
    rejected = _Rejected(files, on_bad)
    for name, reason in files.unsafe.items():
        rejected.add(name, f"{name}: {reason}")
    with PreparedWriter(out, reading) as writer:
        if found := up_to_date(out, made_from, overwrite):  # it was whole when an earlier call was killed
            return found
        entries = _read(files, keyed, load, writer, rejected, jobs)
        rejected.require_all_classes([keyed[key] for key in entries], cases)
        keys, table, pairs = _without_contradictions(keyed, entries, near_bits, rejected)
        notes = {keyed[key].image: entries[key]["note"] for key in keys if entries[key].get("note")}
        table["split"] = assign_splits(table, pairs, seed, fractions or FRACTIONS, split_by)
        table["dup_group"] = name_groups(table, pairs)
        manifest = manifest | {
            "splits": splitting,
            "choices": [*manifest.get("choices", []), *choices(split_by, fractions or FRACTIONS)],
            "made_from": made_from,
            "counts": _counts(keyed, table, pairs, rejected),
            "passed_over": _passed_over(files, cases),
            "warnings": warnings(table, notes),
        }
        return writer.finish(manifest, keys, {"cases.csv": table, "qc.csv": rejected.table(), "duplicates.csv": pairs})


class _Rejected(dict[str, str]):
    """File to reason of what cannot be used; or the first of it as an error, if the user wants to stop there."""

    def __init__(self, files: Files, on_bad: str):
        super().__init__()
        self.files, self.on_bad = files, on_bad

    def add(self, file: str, reason: str) -> None:
        if self.on_bad == "stop":
            raise UserError(f"{self.files.where('')}{reason} (--on-bad skip leaves such cases out and lists them in qc.csv)")
        self[file] = reason

    def require_all_classes(self, left: Iterable[Case], cases: Collection[Case]) -> None:
        """Raise UserError when no case is left, or none of a class: a model cannot learn what it never saw."""
        if not cases:
            raise UserError(f"--input {self.files.source}: no case can be used; none was found")
        labels = {case.label for case in left}
        for case in cases:
            if case.label not in labels:
                of = f" of class {case.label!r}" if labels else ""
                raise UserError(f"--input {self.files.source}: no case{of} can be used; the first: {self[case.image]}")

    def table(self) -> pd.DataFrame:
        """Return the columns file, reason: by name, so that a set made in two goes has the same."""
        return pd.DataFrame([(file, self[file]) for file in sorted(self, key=natural_key)], columns=["file", "reason"])


def _keyed(files: Files, cases: list[Case]) -> dict[str, Case]:
    """Map cases by a text that changes when one of their files does. Raises UserError when two cases have one name."""
    first: dict[str, Case] = {}
    for case in cases:
        if (other := first.setdefault(case.case, case)) is not case:
            raise UserError(f"{files.where(case.image)}: is case {case.case!r}, as is {other.image}; expected it once")
    return {
        json.dumps([case.case, case.label, *((name, *files.stamps[name]) for name in case.files)]): case for case in cases
    }


def digest(content: Any) -> str:
    """Return a hash of what a set is made from."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def up_to_date(out: Path, made_from: str, overwrite: bool) -> PreparedDataset | None:
    """Return this set if it is there already. Raises UserError rather than lose what else is there."""
    check_out(out)
    try:
        found = open_prepared(out) if (out / "manifest.json").exists() else None
    except UserError:  # damaged
        if not overwrite:
            raise
        return None
    if found and found.manifest.get("made_from") == made_from:
        return found
    if found and not overwrite:
        raise UserError(
            f"--out {out}: holds a set prepared from other files or with other settings (its manifest.json says which); "
            "expected a new folder, or --overwrite, which makes it anew"
        )
    return None


def check_out(out: Path) -> None:
    """Refuse an output folder that is neither new, nor empty, nor a prepared set: replacing it would lose what is there."""
    try:
        names = {path.name for path in out.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"--out {out}: is not a prepared set ({error.strerror}); expected a new folder") from None
    other = {name for name in names - OWN if not name.startswith(".")} if "manifest.json" in names else names
    if other:
        raise UserError(f"--out {out}: is not a prepared set, it holds {min(other)}; expected a new folder")


def _read(
    files: Files, keyed: dict[str, Case], load: Loader, writer: PreparedWriter, rejected: _Rejected, jobs: int
) -> dict[str, dict[str, Any]]:
    """Read what the writer does not know yet, several cases at a time; return what is known of usable cases by key."""
    new = [key for key in keyed if not writer.known(key)]

    def read(key: str) -> tuple[Any, Any, dict[str, Any]]:
        case = keyed[key]
        with named(case.image):
            image, label, columns = load(case, [files.read(name) for name in case.files])
        note = columns.pop("note", "")
        return image, label, dict(zip(HASHES, hashes(image), strict=True)) | {"columns": columns, "note": note}

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # decoders, NumPy and torch let go of the interpreter: a thread a case
    bar = progress(new, f"preparing {writer.out.name}", len(keyed), len(keyed) - len(new))
    try:
        with ThreadPoolExecutor(jobs) as pool:
            waiting = deque(pool.submit(read, key) for key in new[: 2 * jobs])
            for number, key in enumerate(bar, 2 * jobs):
                try:
                    image, label, entry = waiting.popleft().result()
                except UserError as error:
                    rejected.add(keyed[key].image, str(error))
                else:
                    writer.add(key, image, label, **entry)
                waiting.extend(pool.submit(read, key) for key in new[number : number + 1])
    finally:
        torch.set_num_threads(threads)
        bar.close()
    return {key: entry for key in keyed if (entry := writer.known(key))}


def _without_contradictions(
    keyed: dict[str, Case], entries: dict[str, dict[str, Any]], near_bits: int, rejected: _Rejected
) -> tuple[list[str], pd.DataFrame, pd.DataFrame]:
    """Return keys, table and duplicate pairs of the cases whose very pixels do not stand in another class too."""
    table = pd.DataFrame([_row(keyed[key], entry["columns"]) for key, entry in entries.items()])
    hashed = table[["case", "label"]].assign(**{name: [entry[name] for entry in entries.values()] for name in HASHES})
    against = contradicting(hashed)
    contradicted = table["case"].isin(against)
    for row in table[contradicted].itertuples():
        rejected.add(row.file, f"{row.file}: {against[row.case]}")
    keys = [key for key in entries if keyed[key].case not in against]
    rejected.require_all_classes([keyed[key] for key in keys], [keyed[key] for key in entries])
    return keys, table[~contradicted].reset_index(drop=True), find_pairs(hashed[~contradicted], near_bits)


def _row(case: Case, columns: dict[str, Any]) -> dict[str, Any]:
    """Return a row of cases.csv: what the source states about the case comes before what its file does."""
    patient = columns.get("patient") if case.patient == case.case else None  # DICOM knows it once it is read
    row = {"case": case.case, "patient": cleaned(patient or case.patient), "split": case.split, "label": case.label}
    row |= {"dup_group": case.dup_group, "file": case.image}
    return row | {name: value for name, value in (columns | case.columns).items() if name not in row}


def _passed_over(files: Files, cases: list[Case]) -> dict[str, int]:
    """Count the files of the source that belong to no case, by suffix."""
    taken = {name for case in cases for name in case.files}
    others = (
        PurePosixPath(name) for name in files.stamps if not (name in taken or name in files.unsafe or TABLE.match(name))
    )
    kinds = ("".join(path.suffixes[-1 - path.name.endswith(".gz") :]).lower() or path.name for path in others)
    return dict(Counter(kinds).most_common(20))


def _counts(keyed: dict[str, Case], table: pd.DataFrame, pairs: pd.DataFrame, rejected: _Rejected) -> dict[str, int]:
    """Return what a reader should know of the set at a glance."""
    return {
        "found": len(keyed),
        "prepared": len(table),
        "rejected": len(rejected),
        "patients": table["patient"].nunique(),
        "patients_in_several_classes": int((table.groupby("patient")["label"].nunique() > 1).sum()),
        "patients_in_several_splits": int((table.groupby("patient")["split"].nunique() > 1).sum()),
        "exact_duplicates": int((pairs["kind"] == "exact").sum()),
        "near_duplicates": int((pairs["kind"] == "near").sum()),
        "near_duplicates_across_classes": int((pairs["class_a"] != pairs["class_b"]).sum()),
    }


def progress(cases: Iterable, description: str, total: int | None = None, done: int = 0) -> Iterable:
    """Wrap a progress bar on standard output, which notebooks do not paint red."""
    given = {"desc": description, "unit": "case", "total": total, "initial": done, "file": sys.stdout}
    return ProgressBar(cases, **given, leave=False)
