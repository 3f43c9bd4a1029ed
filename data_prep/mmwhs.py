"""Cardiac volumes as NIfTI pairs in the naming of MM-WHS: `*_image.nii.gz` and `*_label.nii.gz`, or .nii.

Label values of MM-WHS: LV blood pool 500, myocardium 205. Whatever else is labelled becomes background.

Thick slices (short-axis MRI, say): --modality mr --spacing 2.5,2.5,6 --size 64,64,16
"""

from data_prep.cardiac import Settings
from data_prep.cases import Case
from data_prep.files import Files
from data_prep.nifti import by_case, paired

DEFAULTS = Settings(lv="500", myo="205")
NONE = "no *_image.nii.gz with *_label.nii.gz; expected MM-WHS naming"


def find_cases(files: Files, settings: Settings) -> tuple[list[Case], Settings]:
    """Pair images and labels by name; return them with the settings as they are. Raises UserError as `nifti.paired` does."""
    images, labels = (by_case(files, rf"(?:.*/)?([^/]*)(?i:_{kind})") for kind in ("image", "label"))
    return paired(files, images, labels, "{}_image.nii.gz beside it"), settings
