"""The two tasks of the study. Each module exports the same names, so that everything above is one loop over them.

METRICS, PRIMARY, TRAINING_METRIC, PAPER; build_model, loss_function, augment, training_metric, score_cases, summarize,
case_scores.
"""

from types import ModuleType

from fedlib.tasks import classification, segmentation

TASKS = ("classification", "segmentation")
NAMES = {
    "accuracy": "accuracy",
    "sensitivity": "sensitivity (macro)",
    "dice_LV": "DSC, left ventricle",
    "dice_Myo": "DSC, myocardium",
    "training_accuracy": "training accuracy",
    "training_dice": "training DSC",
    "loss": "training loss",
}


def get(task: str) -> ModuleType:
    """The module of a task."""
    return {"classification": classification, "segmentation": segmentation}[task]
