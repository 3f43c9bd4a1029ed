"""Cardiac volumes as NIfTI pairs in the naming of MM-WHS: `*_image.nii.gz` and `*_label.nii.gz`, or .nii.

Label values of MM-WHS: LV blood pool 500, myocardium 205. Whatever else is labelled becomes background.
"""

from data_prep.cardiac import Settings, parts
from data_prep.cases import Case
from data_prep.files import Files
from data_prep.nifti import by_case, others, stem
from fedlib.config import UserError

DEFAULTS = Settings(lv="500", myo="205")


def resolved(files: Files, settings: Settings) -> Settings:
    """Return the settings as `cardiac.loader` takes them. Raises UserError when `lv` or `myo` is not a label value."""
    for option, text in (("--lv", settings.lv), ("--myo", settings.myo)):
        if not all(part.isdecimal() for part in parts(text)):
            raise UserError(f"{option} {text}: expected label values, as in 500 or 500,501")
    return settings


def find_cases(files: Files, settings: Settings) -> list[Case]:
    """Pair images and labels by name; an image without a label is a case that the loader refuses.

    Raises UserError when there are none, a label has no image, or two files are one case's.
    """
    images, labels = _named(files, "_image"), _named(files, "_label")
    if not images and not labels:
        expected = "no *_image.nii.gz with *_label.nii.gz; expected MM-WHS naming"
        raise UserError(f"--input {files.source}: {expected}{others(files)}")
    for alone in sorted(labels.keys() - images.keys()):
        raise UserError(f"{files.where(labels[alone])}: a label without its image; expected {alone}_image.nii.gz beside it")
    return [
        Case(case=name, patient=name, image=image, label_files=(labels[name],) if name in labels else ())
        for name, image in images.items()
    ]


def _named(files: Files, ending: str) -> dict[str, str]:
    """Map cases to files, for the names that end so."""
    return by_case(files, lambda name: stem(name)[: -len(ending)] if stem(name).lower().endswith(ending) else None)
