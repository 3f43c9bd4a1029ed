"""Body scans of TotalSegmentator: a folder a case, `s0001/ct.nii.gz` with one mask a structure in `s0001/segmentations/`.

Of the 104 and more masks only those of LV and myocardium are read. Most scans do not show the heart: their masks are
empty, and the loader refuses them one by one.
"""

from data_prep.cardiac import Settings, parts
from data_prep.cases import Case
from data_prep.files import Files, cleaned, read_table
from data_prep.nifti import SUFFIXES, others, stem
from fedlib.config import UserError

DEFAULTS = Settings(crop="heart", lv="heart_ventricle_left", myo="heart_myocardium")
IMAGES = ("ct", "mri")
KEPT = ["age", "gender", "institute", "study_type", "manufacturer", "scanner_model", "kvp", "pathology"]
"""Columns of meta.csv that go to cases.csv; its `split` becomes `published_split`, since we make our own."""


def resolved(files: Files, settings: Settings) -> Settings:
    """Return the settings as `cardiac.loader` takes them. Raises UserError when no case has a mask so named."""
    masks = {stem(name) for name in files.stamps if "segmentations" in name.split("/")[:-1]}
    for option, text in (("--lv", settings.lv), ("--myo", settings.myo)):
        for part in parts(text):
            if part not in masks:
                two = "heart" in masks and "heart_myocardium" not in masks
                expected = "expected version 1; this is version 2 or later, with one mask `heart`" if two else ""
                expected = expected or f"expected names of masks{others(files)}"
                raise UserError(f"{option} {part}: no segmentations/{part}.nii.gz in {files.source}; {expected}")
    return settings


def find_cases(files: Files, settings: Settings) -> list[Case]:
    """One case for each folder with ct.nii.gz (or mri.nii.gz); the loader refuses those that lack a mask.

    Raises UserError when there are none, two have one name, or meta.csv cannot be read.
    """
    about, found = _about(files), {}
    for name in files.stamps:
        folder = name.rpartition("/")[0]
        if stem(name).lower() not in IMAGES or stem(name) == name.rpartition("/")[2]:
            continue
        case = cleaned((folder or files.prefix.rstrip("/") or files.source.stem).rsplit("/", 1)[-1])
        if case in found:
            raise UserError(f"{files.where(name)}: the same case as {found[case].image}; expected each name once")
        wanted = [_mask(files, folder, part) for part in parts(settings.lv) + parts(settings.myo)]
        masks = tuple(mask for mask in wanted if mask)
        found[case] = Case(case=case, patient=case, image=name, label_files=masks, columns=about.get(case, {}))
    if not found:
        expected = "no folder with ct.nii.gz; expected s0001/ct.nii.gz and s0001/segmentations/"
        raise UserError(f"--input {files.source}: {expected}{others(files)}")
    return list(found.values())


def _mask(files: Files, folder: str, mask: str) -> str:
    """Return the name of a mask's file; empty when the case lacks it."""
    names = (f"{folder}/segmentations/{mask}{suffix}".lstrip("/") for suffix in SUFFIXES)
    return next((name for name in names if name in files.stamps), "")


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
    return table[[column for column in [*KEPT, "published_split"] if column in table]].to_dict("index")
