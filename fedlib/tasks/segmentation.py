"""Cardiac volumes, left ventricle (LV) and myocardium (Myo): 3D U-Net, Dice similarity coefficient, HD95 and ASSD."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.losses import DiceCELoss
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance
from monai.networks import one_hot
from monai.networks.nets import UNet

from fedlib.config import RunConfig
from fedlib.data.augment import random_affine
from fedlib.data.dataset import PreparedDataset

# MONAI 1.6 warns of an argument that it passes itself.
warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*", category=FutureWarning)
# A missed structure: score_cases has a rule for it.
warnings.filterwarnings("ignore", message=".*this may result in nan/inf distance.*", category=UserWarning)

TITLE = "Hearts: segmentation"
METRICS = {
    **{"dice_LV": "DSC, left ventricle", "dice_Myo": "DSC, myocardium"},
    **{"hd95_LV": "HD95, left ventricle (mm)", "hd95_Myo": "HD95, myocardium (mm)"},
    **{"assd_LV": "ASSD, left ventricle (mm)", "assd_Myo": "ASSD, myocardium (mm)"},
}
PRIMARY = ("dice_LV", "dice_Myo")
TRAINING_METRIC = "training_dice"
ABOUT = SIMILAR = ()
# The study names 16 clients, too; the abstract gives no figure for them.
PAPER = {
    ("centralized", 1): {"dice_Myo": 0.877, "dice_LV": 0.926},
    ("federated", 2): {"dice_Myo": 0.867, "dice_LV": 0.922},
    ("federated", 4): {"dice_Myo": 0.867, "dice_LV": 0.923},
    ("federated", 8): {"dice_Myo": 0.863, "dice_LV": 0.921},
}
# Over a test set of two sources. Strong evidence, no proof, that they are the paper's.
SCRIPTS = {("federated", 2, "unbalanced"): {"dice_Myo": 0.844, "dice_LV": 0.905}}


NETWORK = UNet


def network_arguments(config: RunConfig, n_classes: int) -> dict[str, Any]:
    """3D U-Net with residual units (Kerfoot et al., 2019), four levels, instance normalisation."""
    shape = {"spatial_dims": 3, "in_channels": 1, "out_channels": n_classes}
    return shape | {"channels": [config.width * 2**level for level in range(4)], "strides": [2, 2, 2], "num_res_units": 2}


def build_model(config: RunConfig, n_classes: int) -> torch.nn.Module:
    """Return MONAI's network."""
    return NETWORK(**network_arguments(config, n_classes))


def loss_function() -> torch.nn.Module:
    """Soft Dice over the structures plus cross-entropy, of logits (B, C, X, Y, Z) and labels (B, 1, X, Y, Z)."""
    return DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)


def augment(
    images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator, data: PreparedDataset, config: RunConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate (in the plane of the slices), scale and translate image and label together (*chosen*).

    No mirror image: which side the heart is on is anatomy.
    """
    if config.augmentation == "none":
        return images, labels
    limits = {"degrees": 10, "scale": 0.1, "shift": 0.05}
    return random_affine(images, labels, generator, **limits, spacing=data.spacing_mm, low=config.input_low)


def training_metric(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean Dice of the structures within a batch, on every eighth voxel: cheap, for the curves of the clients."""
    logits, labels = (volume[..., ::2, ::2, ::2] for volume in (logits, labels))
    return _dice(logits.argmax(1, keepdim=True), labels, logits.shape[1]).nanmean()


def score_cases(data: PreparedDataset, rows: list[int], logits: torch.Tensor, final: bool) -> pd.DataFrame:
    """A row per case: Dice of each structure and, if `final`, its HD95 and its average symmetric surface distance in mm.

    Rule for empty masks: a structure that is missed has Dice 0 and no distance (an infinite one has no mean; count the
    empty cells); one that the reference lacks has neither.
    """
    labels = torch.from_numpy(data.labels[rows]).long().unsqueeze(1)  # (B, 1, X, Y, Z)
    predicted, n = logits.argmax(1, keepdim=True).cpu(), len(data.classes)
    table = data.cases.iloc[rows].filter(["case", "patient", "source"]).reset_index(drop=True)
    scores = {"dice": _dice(predicted, labels, n)}
    if final:
        one_hots = one_hot(predicted, n), one_hot(labels, n)
        scores["hd95"] = compute_hausdorff_distance(*one_hots, percentile=95, spacing=list(data.spacing_mm))
        scores["assd"] = compute_average_surface_distance(*one_hots, symmetric=True, spacing=list(data.spacing_mm))
    for score, values in scores.items():
        for structure, column in zip(data.classes[1:], values.double().numpy().T, strict=True):
            table[f"{score}_{structure}"] = np.where(np.isfinite(column), column, np.nan)
    return table


def patient_scores(cases: pd.DataFrame, metric: str) -> pd.Series:
    """Return each patient's mean of a metric, of those who have one; index (stratum, patient), with one stratum."""
    stratum = pd.Series("", cases.index, name="stratum")
    return cases.groupby([stratum, "patient"])[metric].mean().dropna()


def summarize(cases: pd.DataFrame) -> dict[str, float]:
    """Return the mean over patients of every score in a table made by `score_cases`."""
    return {metric: float(patient_scores(cases, metric).mean()) for metric in METRICS if metric in cases}


def _dice(predicted: torch.Tensor, labels: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Dice of each structure, (B, structures); NaN where the reference has none."""
    return compute_dice(one_hot(predicted, n_classes), one_hot(labels, n_classes), include_background=False)
