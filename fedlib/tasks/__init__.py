"""The tasks. Each is a module with the names of `TaskSpec`, and a table of values beside it (NAME.py and NAME.yaml).

A score is a mean over patients, everywhere: a patient's cases are averaged first.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pandas as pd
import torch

from fedlib.config import TASKS, RunConfig
from fedlib.data.dataset import PreparedDataset

Figures = Mapping[tuple, Mapping[str, float]]
Batch = torch.Tensor


class TaskSpec(Protocol):
    """What a task's module states. tests/tasks/test_tasks.py holds every task to it."""

    TITLE: str
    """Heading in a report."""
    METRICS: Mapping[str, str]
    """Scores of the test set, with their names in words. No other task has a metric of the same name."""
    PRIMARY: tuple[str, ...]
    """Primary endpoints, between 0 and 1. A name up to its first `_` leads to the margin: `margin_dice` for `dice_LV`."""
    TRAINING_METRIC: str
    """Name of `training_metric` in the tables."""
    PAPER: Figures
    """The abstract's figures: (mode, clients) -> metric -> value. Empty where no paper is followed."""
    ABOUT: tuple[str, ...]
    """Metrics whose figures the abstract calls *about*."""
    SIMILAR: tuple[str, ...]
    """Metrics that the abstract calls similar to centralized, without a figure."""
    SCRIPTS: Figures
    """Figures saved beside the first author's scripts: (mode, clients, partition) -> metric -> value."""

    NETWORK: Callable[..., torch.nn.Module]
    """MONAI's network, by which a bundle names the model."""
    network_arguments: Callable[[RunConfig, int], dict[str, Any]]
    """(config, n_classes) -> the arguments of NETWORK, as JSON can hold them."""
    build_model: Callable[[RunConfig, int], torch.nn.Module]
    """(config, n_classes) -> the model, its weights drawn from torch's global generator."""
    loss_function: Callable[[], torch.nn.Module]
    """() -> the loss of (logits, labels)."""
    augment: Callable[[Batch, Batch, torch.Generator, PreparedDataset, RunConfig], tuple[Batch, Batch]]
    """(images, labels, generator, data, config) -> both, augmented; shapes as from `PreparedDataset.load_batch`."""
    training_metric: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """(logits, labels) -> a score of a batch, a scalar: cheap, for the curves of the clients."""
    score_cases: Callable[[PreparedDataset, list[int], torch.Tensor, bool], pd.DataFrame]
    """(data, rows, logits, final) -> a row per case: case, patient, what `patient_scores` needs; if `final`, all METRICS."""
    patient_scores: Callable[[pd.DataFrame, str], pd.Series]
    """(cases, metric) -> each patient's mean, by (stratum, patient). A score is the mean of the strata's means."""
    summarize: Callable[[pd.DataFrame], dict[str, float]]
    """(cases) -> the metrics of a table made by `score_cases`."""


def get(task: str) -> TaskSpec:
    """Return the module of a task."""
    return importlib.import_module(f"fedlib.tasks.{task}")


NAMES = {metric: words for task in TASKS for metric, words in get(task).METRICS.items()}
"""Every metric in words."""
