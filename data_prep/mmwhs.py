"""Cardiac volumes as NIfTI pairs in the naming of MM-WHS: `*_image.nii.gz` and `*_label.nii.gz`, or .nii.

Label values of MM-WHS: LV blood pool 500, myocardium 205. Whatever else is labelled becomes background.
"""

from data_prep.cardiac import Settings
from data_prep.cases import Case
from data_prep.files import Files
from data_prep.nifti import by_case, others, paired, stem
from fedlib.config import UserError

DEFAULTS = Settings(lv="500", myo="205")


def find_cases(files: Files, settings: Settings) -> tuple[list[Case], Settings]:
    """Pair images and labels by name; return them with the settings as they are.

    Raises UserError when there are no pairs, or as `nifti.paired` does.
    """
    images, labels = _named(files, "_image"), _named(files, "_label")
    if not images and not labels:
        expected = "no *_image.nii.gz with *_label.nii.gz; expected MM-WHS naming"
        raise UserError(f"--input {files.source}: {expected}{others(files)}")
    return paired(files, images, labels, "{}_image.nii.gz beside it"), settings


def _named(files: Files, ending: str) -> dict[str, str]:
    return by_case(files, lambda name: stem(name)[: -len(ending)] if stem(name).lower().endswith(ending) else None)
