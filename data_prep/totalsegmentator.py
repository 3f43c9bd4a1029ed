"""Body scans of TotalSegmentator: a folder a case, `s0001/ct.nii.gz` with one mask a structure in `s0001/segmentations/`.

Of the 104 and more masks only those of LV and myocardium are read. Most scans do not show the heart: their masks are
empty, and --on-bad skip lists them in qc.csv.
"""

from data_prep.cardiac import Settings, parts
from data_prep.cases import Case
from data_prep.files import Files, read_table
from data_prep.nifti import by_case, others, stem
from fedlib.config import UserError

DEFAULTS = Settings(crop="heart", lv="heart_ventricle_left", myo="heart_myocardium")
NONE = "no folder with ct.nii.gz; expected s0001/ct.nii.gz and s0001/segmentations/"
KEPT = ["age", "gender", "institute", "study_type", "manufacturer", "scanner_model", "kvp", "pathology", "published_split"]
"""Columns of meta.csv that go to cases.csv; its `split` becomes `published_split`, since we make our own."""


def find_cases(files: Files, settings: Settings) -> tuple[list[Case], Settings]:
    """Return a case for each folder with ct.nii.gz (or mri.nii.gz), and the settings as they are.

    The loader refuses cases that lack a mask. Raises UserError when no case has a mask so named, when two cases have one
    name, or when meta.csv cannot be read.
    """
    _check_masks(files, settings)
    about, cases = _about(files), []
    for case, name in by_case(files, r"(?:.*/)?([^/]+)/(?i:ct|mri)").items():
        below = f"{name.rpartition('/')[0]}/segmentations/"
        wanted = [below + mask + end for mask in parts(settings.lv) + parts(settings.myo) for end in (".nii.gz", ".nii")]
        masks = tuple(mask for mask in wanted if mask in files.stamps)
        cases.append(Case(case, case, name, label_files=masks, columns=about.get(case, {})))
    return cases, settings


def _check_masks(files: Files, settings: Settings) -> None:
    masks = {stem(name) for name in files.stamps if "segmentations" in name.split("/")[:-1]}
    for option, text in (("--lv", settings.lv), ("--myo", settings.myo)):
        for part in parts(text):
            if part not in masks:
                two = "heart" in masks and "heart_myocardium" not in masks
                expected = "expected version 1; this is version 2 or later, with one mask `heart`" if two else ""
                expected = expected or f"expected names of masks{others(files)}"
                raise UserError(f"{option} {part}: no segmentations/{part}.nii.gz in {files.source}; {expected}")


def _about(files: Files) -> dict[str, dict[str, str]]:
    """Return what meta.csv, where there is one, states about each case."""
    if "meta.csv" not in files.stamps:
        return {}
    where, expected = files.where("meta.csv"), "expected a column image_id with each case once, and ; between columns"
    try:
        table = read_table(files.read("meta.csv"), ";")
    except ValueError as error:
        raise UserError(f"{where}: unreadable ({error}); {expected}") from None
    table.columns = table.columns.str.lower()
    if "image_id" not in table or table["image_id"].duplicated().any():
        raise UserError(f"{where}: {expected}")
    table = table.set_index("image_id").rename(columns={"split": "published_split"})
    return table[[column for column in KEPT if column in table]].to_dict("index")
