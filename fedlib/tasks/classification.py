"""Chest X-rays, one of several categories: ResNet18, accuracy and macro-averaged sensitivity."""

from typing import Any

import pandas as pd
import torch
from monai.networks.nets import resnet18
from monai.networks.utils import replace_modules

from fedlib.config import RunConfig
from fedlib.data.augment import random_affine, random_appearance
from fedlib.data.dataset import PreparedDataset

TITLE = "Chest X-rays: classification"
METRICS = {"accuracy": "accuracy", "sensitivity": "sensitivity (macro)"}
PRIMARY = tuple(METRICS)
TRAINING_METRIC = "training_accuracy"

ABOUT = ("sensitivity",)  # the abstract says "about 0.94"
SIMILAR = ("accuracy",)  # the abstract says "similar to CL" of every federation
PAPER = {
    ("centralized", 1): {"accuracy": 0.93, "sensitivity": 0.94},
    ("federated", 2): {"sensitivity": 0.94},
    ("federated", 4): {"sensitivity": 0.94},
    ("federated", 8): {"sensitivity": 0.94},
}
# Strong evidence, no proof, that they are the paper's. What the scripts call local is centralized here.
SCRIPTS = {
    ("centralized", 1, "none"): {"accuracy": 0.927, "sensitivity": 0.935},
    ("federated", 2, "balanced"): {"accuracy": 0.942, "sensitivity": 0.945},
    ("federated", 2, "unbalanced"): {"accuracy": 0.929, "sensitivity": 0.942},
    ("federated", 2, "missing_classes"): {"accuracy": 0.750, "sensitivity": 0.801},  # on the validation images
}
GROUPS = 8
"""Of GroupNorm (Wu and He, 2018), when it replaces BatchNorm (*chosen*)."""


NETWORK = resnet18


def network_arguments(config: RunConfig, n_classes: int) -> dict[str, Any]:
    """ResNet18 (He et al., 2016) for one grey channel. Stride 2 in the stem: MONAI's default of 1 is not the paper's."""
    shape = {"spatial_dims": 2, "n_input_channels": 1, "num_classes": n_classes}
    return shape | {"conv1_t_stride": 2, "widen_factor": config.width / 64}


def build_model(config: RunConfig, n_classes: int) -> torch.nn.Module:
    """Return MONAI's network, or the same with GroupNorm in place of BatchNorm."""
    model = NETWORK(**network_arguments(config, n_classes))
    if config.batch_norm == "group":  # MONAI 1.6's argument `norm` reaches the first layer only
        for name, layer in list(model.named_modules()):
            if isinstance(layer, torch.nn.BatchNorm2d):
                replace_modules(model, name, torch.nn.GroupNorm(GROUPS, layer.num_features))
    return model


def loss_function() -> torch.nn.Module:
    """Cross-entropy of logits (B, C) and class indices (B,)."""
    return torch.nn.CrossEntropyLoss()


def augment(
    images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator, data: PreparedDataset, config: RunConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment images as the config says (affine: *chosen*). No mirror image: the heart is on the left."""
    if config.augmentation == "affine":
        images, _ = random_affine(images, None, generator, degrees=8, scale=0.08, shift=0.04, low=config.input_low)
    elif config.augmentation == "authors":
        images = random_appearance(images, generator, config.input_low)
    return images, labels


def training_metric(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Accuracy within a batch: cheap, for the curves of the clients."""
    return (logits.argmax(1) == labels).float().mean()


def score_cases(data: PreparedDataset, rows: list[int], logits: torch.Tensor, final: bool) -> pd.DataFrame:
    """A row per case: truth, prediction (class names), and the probability of each class."""
    probabilities = logits.float().softmax(1)
    names = data.classes
    table = data.cases.iloc[rows].filter(["case", "patient", "source"]).reset_index(drop=True)
    table["truth"] = [names[label] for label in data.labels[rows]]
    table["prediction"] = [names[label] for label in probabilities.argmax(1).tolist()]
    columns = [f"p_{name}" for name in names]
    return pd.concat([table, pd.DataFrame(probabilities.tolist(), columns=columns)], axis=1)


def patient_scores(cases: pd.DataFrame, metric: str) -> pd.Series:
    """Return each patient's mean of a primary metric; index (stratum, patient).

    For sensitivity the strata are the true classes: a patient with images of two classes counts in both. Else it is one.
    """
    right = (cases["truth"] == cases["prediction"]).astype(float).rename(metric)
    stratum = cases["truth"] if metric == "sensitivity" else pd.Series("", cases.index)
    return right.groupby([stratum.rename("stratum"), cases["patient"]]).mean()


def summarize(cases: pd.DataFrame) -> dict[str, float]:
    """Return accuracy by patient, and sensitivity by patient averaged over the classes that have cases."""
    return {metric: float(patient_scores(cases, metric).groupby("stratum").mean().mean()) for metric in METRICS}
