"""A third task: is a chest X-ray normal, or not? tests/tasks/test_third_task.py adds it to fedlib."""

import pandas as pd
import torch

from fedlib.config import RunConfig
from fedlib.data.augment import random_affine
from fedlib.data.dataset import PreparedDataset

TITLE = "Chest X-rays: screening"
METRICS = {"accuracy_screening": "accuracy, normal or not"}
PRIMARY = tuple(METRICS)
TRAINING_METRIC = "training_accuracy"
PAPER = SCRIPTS = {}
ABOUT = SIMILAR = ()
NORMAL = 2
"""Number of the class that counts as normal."""


def build_model(config: RunConfig, n_classes: int) -> torch.nn.Module:
    """Return a convolution and a linear layer, with one logit: how likely it is that the image is not normal."""
    layers = torch.nn.Conv2d(1, config.width, 3, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten()
    return torch.nn.Sequential(*layers, torch.nn.Linear(16 * config.width, 1))


def loss_function():
    """Return the binary cross-entropy of logits (B, 1) and class numbers (B,)."""
    loss = torch.nn.BCEWithLogitsLoss()
    return lambda logits, labels: loss(logits[:, 0], (labels != NORMAL).float())


def augment(
    images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator, data: PreparedDataset, config: RunConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate images a little."""
    return random_affine(images, None, generator, degrees=8, scale=0, shift=0, low=config.input_low)[0], labels


def training_metric(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the accuracy within a batch."""
    return ((logits[:, 0] > 0) == (labels != NORMAL)).float().mean()


def score_cases(data: PreparedDataset, rows: list[int], logits: torch.Tensor, final: bool) -> pd.DataFrame:
    """Return a row per case: truth and prediction."""
    table, names = data.cases.iloc[rows][["case", "patient"]].reset_index(drop=True), ("normal", "not normal")
    table["truth"] = [names[ill] for ill in (data.labels[rows] != NORMAL).astype(int)]
    return table.assign(prediction=[names[ill] for ill in (logits[:, 0] > 0).int().tolist()])


def patient_scores(cases: pd.DataFrame, metric: str) -> pd.Series:
    """Return each patient's share of right predictions; index (stratum, patient), with one stratum."""
    right = (cases["truth"] == cases["prediction"]).astype(float)
    return right.groupby([pd.Series("", cases.index, name="stratum"), cases["patient"]]).mean()


def summarize(cases: pd.DataFrame) -> dict[str, float]:
    """Return the mean over patients."""
    return {metric: float(patient_scores(cases, metric).mean()) for metric in METRICS}
