"""The two tasks of the study. Each module exports the same names, so that everything above is one loop over them.

METRICS, PRIMARY, TRAINING_METRIC, PAPER, ABOUT, SIMILAR, NETWORK; network_arguments, build_model, loss_function, augment,
training_metric, score_cases, patient_scores, summarize. A score is a mean over patients, everywhere: a patient's cases are
averaged first.
"""

from types import ModuleType

from fedlib.tasks import classification, segmentation

TASKS = ("classification", "segmentation")
NAMES = {
    "accuracy": "accuracy",
    "sensitivity": "sensitivity (macro)",
    "dice_LV": "DSC, left ventricle",
    "dice_Myo": "DSC, myocardium",
    "hd95_LV": "HD95, left ventricle (mm)",
    "hd95_Myo": "HD95, myocardium (mm)",
    "assd_LV": "ASSD, left ventricle (mm)",
    "assd_Myo": "ASSD, myocardium (mm)",
    "training_accuracy": "training accuracy",
    "training_dice": "training DSC",
    "loss": "training loss",
}


def get(task: str) -> ModuleType:
    """The module of a task."""
    return {"classification": classification, "segmentation": segmentation}[task]
