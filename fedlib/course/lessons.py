"""Steps that the notebooks take by hand: one round of FedAvg, divergence of clients, a leak, a shortcut, a lag."""

import warnings
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from monai.visualize import OcclusionSensitivity
from torchmetrics.functional import pairwise_cosine_similarity

from fedlib import tasks
from fedlib.analysis.arms import arm_scores, strata
from fedlib.analysis.comparison import paired_difference
from fedlib.analysis.inference import interval
from fedlib.analysis.tables import bracketed
from fedlib.config import RunConfig, StudyConfig
from fedlib.data.dataset import PreparedDataset, batches
from fedlib.data.partition import clients_of
from fedlib.training.execution import load_model
from fedlib.training.loop import device, evaluate, initial_model, train_round
from fedlib.training.run_store import Run
from fedlib.views.plots.figure import SERIES, SOFT, AccessibleFigure, accessible_figure, grid, styled

Weights = dict[str, np.ndarray]
MOSTLY_TESTED = (0.5, 0.1, 0.4)
"""Shares of training, validation and test in the lesson on joining, so that every site has test cases (*chosen*)."""
IMAGES_PER_PATIENT = 5
"""In the lesson on leakage: so many that, split by image, nearly every test patient is in training too."""


@dataclass(frozen=True)
class Round:
    """The messages of one round: the server's weights, those of each client, and the clients' numbers of cases."""

    start: Weights
    sent: list[Weights]
    cases: list[int]


def beside(prediction: Any, result: Any) -> Any:
    """Print a prediction above its result, and return the result for the notebook to show. None: nothing was predicted."""
    print("Your prediction:", "none yet" if prediction is None else prediction)
    return result


def one_round(config: RunConfig, data: PreparedDataset) -> Round:
    """Train every client for its first round from the same weights, and aggregate nothing."""
    start, sent, clients = _weights(initial_model(config, data)), [], clients_of(config, data)
    for client, rows in enumerate(clients):
        model = initial_model(config, data)
        train_round(model, data, rows, config, client, 1)
        sent.append(_weights(model))
    return Round(start, sent, [len(rows) for rows in clients])


def last_layer(weights: Weights) -> str:
    """Return the name of the last array that has rows, the weights of the last layer."""
    return [name for name, array in weights.items() if array.ndim > 1][-1]


def flower_average(sent: list[Weights], cases: list[int]) -> Weights:
    """Return Flower's FedAvg of the clients' weights."""
    replies = [
        RecordDict({"arrays": ArrayRecord.from_numpy_ndarrays(list(weights.values())), "metrics": MetricRecord({"n": n})})
        for weights, n in zip(sent, cases, strict=True)
    ]
    return dict(zip(sent[0], aggregate_arrayrecords(replies, "n").to_numpy_ndarrays(), strict=True))


def divergence(step: Round) -> pd.DataFrame:
    """Return the L2 length of each client's update, and its cosine with the mean of the others' updates.

    The last two rows are the length of the mean update and the mean of the lengths, both weighted by cases.
    """
    updates = torch.stack([_vector(weights) - _vector(step.start) for weights in step.sent])  # (K, weights)
    shares = torch.tensor(step.cases)[:, None] / sum(step.cases)
    mean, lengths = (shares * updates).sum(0), updates.norm(dim=1)
    others = (mean - shares * updates) / (1 - shares)  # NaN for a single client
    cosines = torch.nn.functional.cosine_similarity(updates, others).tolist()
    summary = [mean.norm().item(), (shares[:, 0] * lengths).sum().item()]
    clients = pd.Index([*range(1, len(updates) + 1), "mean update", "mean length"], name="client")
    columns = {"length of the update": lengths.tolist() + summary, "cosine with the others": [*cosines, np.nan, np.nan]}
    return pd.DataFrame(columns, clients).assign(cases=[*step.cases, *[sum(step.cases)] * 2])


def gradient_agreement(config: RunConfig, data: PreparedDataset) -> pd.DataFrame:
    """Return the cosines between the clients' gradients at the same untrained weights, (K, K).

    A gradient is the mean over all training cases of a client, with BatchNorm's running statistics: neither the chance of
    a batch nor AdamW's equal steps hide the difference between the clients' data.
    """
    model, loss_function = initial_model(config, data).eval(), tasks.get(config.task).loss_function()
    gradients = []
    for rows in clients_of(config, data):
        model.zero_grad()
        for batch in batches(rows, 4 * config.batch_size):
            images, labels = data.load_batch(batch, device())
            (loss_function(model(images), labels) * len(batch) / len(rows)).backward()
        gradients.append(torch.cat([weight.grad.reshape(-1) for weight in model.parameters()]).cpu())
    cosines = pairwise_cosine_similarity(torch.stack(gradients), zero_diagonal=False).numpy()
    names = pd.RangeIndex(1, len(gradients) + 1, name="client")
    return pd.DataFrame(cosines, names, names)


def mean_pairwise_cosine(agreement: pd.DataFrame) -> float:
    """Return the mean over the pairs of different clients."""
    return float(agreement.to_numpy()[np.triu_indices(len(agreement), 1)].mean())


@styled
def agreement_figure(agreements: dict[str, pd.DataFrame]) -> AccessibleFigure:
    """Draw a matrix of cosines for each title: blue where two clients agree, red where they oppose each other."""
    figure, axes = plt.subplots(1, len(agreements), figsize=(3.6 * len(agreements), 3.2), squeeze=False)
    for axis, (title, cosines) in zip(axes[0], agreements.items(), strict=True):
        axis.imshow(cosines, cmap="RdBu", vmin=-1, vmax=1)
        for (row, column), value in np.ndenumerate(cosines.to_numpy()):
            ink = "w" if abs(value) > 0.6 else "k"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=9)
        axis.set(title=title, xlabel="client", ylabel="client")
        axis.set_xticks(range(len(cosines)), cosines.columns)
        axis.set_yticks(range(len(cosines)), cosines.index)
    means = "; ".join(f"{title}: {mean_pairwise_cosine(cosines):.2f}" for title, cosines in agreements.items())
    rows = [(title, *pair, value) for title, cosines in agreements.items() for pair, value in cosines.stack().items()]
    table = pd.DataFrame(rows, columns=["partition", "client", "other client", "cosine"])
    return accessible_figure(figure, f"Cosines between the clients' gradients. Mean over pairs of clients: {means}.", table)


def shortcut_study(study: StudyConfig) -> StudyConfig:
    """Return the lesson's small study of chest X-rays, in a folder of its own beside the runs of `study`.

    Both sizes train long enough for the tag to decide nearly every prediction.
    """
    small = {"synthetic_cases": 96, "rounds": 8, "batch_size": 8, "learning_rate": 0.003}
    profile, sizes = ("smoke", small) if study.profile == "smoke" else ("quick", {"synthetic_cases": 400, "rounds": 3})
    return StudyConfig.make(
        task="classification", profile=profile, seed=study.seeds[0], out_dir=study.out_dir / "lesson", **sizes
    )


def shortcut_scores(run: Run, sets: dict[str, PreparedDataset], label: str) -> pd.DataFrame:
    """Score a model on the same test patients under several tags: accuracy, and how often `label` is found or wrong."""
    rows = {}
    for title, data in sets.items():
        cases = evaluate(load_model(run, data), data, data.split("test"), run.config)
        true, predicted = cases["truth"] == label, cases["prediction"] == label
        rows[title] = {
            "accuracy": (cases["truth"] == cases["prediction"]).mean(),
            f"{label} found": predicted[true].mean(),
            f"others taken for {label}": predicted[~true].mean(),
        }
    return pd.DataFrame(rows).T


def occlusion(run: Run, data: PreparedDataset, rows: np.ndarray) -> np.ndarray:
    """Return how far the logit of the predicted class falls when a grey patch hides each place, (B, H, W).

    MONAI's OcclusionSensitivity, with a patch of 3/16 of the image, moved by half its side.
    """
    model, maps = load_model(run, data).eval(), []
    side = max(4, 3 * data.images.shape[-1] // 16)
    occluded = OcclusionSensitivity(model, side, n_batch=128, overlap=0.5, mode="mean_img", verbose=False, activate=False)
    for image in data.load_batch(rows, device())[0]:
        with torch.inference_mode():
            logits = model(image[None])[0]
        predicted = int(logits.argmax())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using a non-tuple sequence")  # MONAI 1.6 under torch 2.13
            hidden, _ = occluded(image[None])
        maps.append(np.asarray((logits[predicted] - hidden[0, predicted]).detach().cpu()))
    return np.stack(maps)


@styled
def occlusion_figure(data: PreparedDataset, rows: np.ndarray, maps: dict[str, np.ndarray]) -> AccessibleFigure:
    """Draw images in the first line and, for each title, their occlusion maps below, on one scale for each title."""
    figure, axes = grid(1 + len(maps), len(rows), 1.9)
    peaks = []
    for line, (title, heats) in zip(axes, {"": None, **maps}.items(), strict=True):
        line[0].set_ylabel(title, fontsize=9)
        for column, (axis, row) in enumerate(zip(line, rows, strict=True)):
            axis.imshow(data.images[row, 0], cmap="gray", vmin=0, vmax=255)
            if heats is None:
                axis.set_title(data.classes[int(data.labels[row])].replace("_", " "), fontsize=9)
                continue
            axis.imshow(heats[column], cmap="inferno", vmin=0, vmax=max(float(heats.max()), 1e-6), alpha=0.6)
            peaks.append("row {}, column {}".format(*np.unravel_index(heats[column].argmax(), heats[column].shape)))
    words = f"Bright: hiding that place lowers the score most. Peaks at {'; '.join(peaks)} of {data.images.shape[-1]}."
    return accessible_figure(figure, f"Occlusion maps of {', '.join(maps)} for {len(rows)} images. {words}")


def leakage_study(study: StudyConfig) -> StudyConfig:
    """Return the lesson's small study of patients with IMAGES_PER_PATIENT X-rays each, in a folder of its own.

    Mild findings, few patients, no augmentation: hard to learn, easy to remember.
    """
    small = {"synthetic_cases": 100, "size": 32, "rounds": 2, "seed": (1, 2)}
    sizes = small if study.profile == "smoke" else {"synthetic_cases": 400, "size": 48, "rounds": 12, "seed": (1, 2, 3)}
    return _lesson(study, "leakage", findings="mild", augmentation="none", **sizes)


def leakage(runs: dict[str, list[Run]]) -> pd.DataFrame:
    """Return the test accuracy under each split, and their difference: of each seed, and over patients with an interval.

    `runs`: those of the splits `patient` and `image`, by seed. The difference is over the patients tested under both.
    """
    scores = {split: {f"seed {run.config.seed}": run.result["accuracy"] for run in own} for split, own in runs.items()}
    table = pd.DataFrame.from_dict(scores, "index")
    table.loc["difference"] = table.loc["image"] - table.loc["patient"]
    spans = {split: interval(strata(arm_scores(own, "accuracy")), bounds=(0, 1))[:3] for split, own in runs.items()}
    paired = paired_difference(runs["image"], runs["patient"], "accuracy", runs["image"][0].config)
    spans["difference"] = [paired[name] for name in ("difference", "difference_low", "difference_high")]
    spans = pd.Series({split: bracketed(*span) for split, span in spans.items()})
    return table.assign(**{"over patients [95%]": spans}).rename({"patient": "split by patient", "image": "split by image"})


@styled
def leakage_figure(runs: dict[str, list[Run]]) -> AccessibleFigure:
    """Plot the accuracy on training images and on test patients under each split, a line per seed."""
    rows = [(f"split by {split}", run.config.seed, run.clients["training_accuracy"].iloc[-1], run.result["accuracy"])
            for split, own in runs.items() for run in own]  # fmt: skip
    numbers = pd.DataFrame(rows, columns=["split", "seed", "training images", "test patients"])
    figure, axis = plt.subplots(figsize=(5.6, 3.4))
    for shown, look, colour in (("training images", "s--", SOFT), ("test patients", "o-", SERIES[0])):
        lines = axis.plot(numbers.pivot(index="split", columns="seed", values=shown), look, color=colour)
        lines[0].set_label(shown)
    axis.set(ylabel="accuracy", ylim=(0, 1.03), xmargin=0.3)
    axis.grid(axis="y")
    figure.legend(loc="outside lower left", ncols=2)
    means = numbers.groupby("split")[["training images", "test patients"]].mean()
    words = "; ".join(f"{row.Index}: training {row[1]:.2f}, test {row[2]:.2f}" for row in means.itertuples())
    return accessible_figure(figure, f"Accuracy by split, mean over seeds. {words}.", numbers)


def lag_study(study: StudyConfig, findings: str) -> StudyConfig:
    """Return the lesson's study of one federation on images with clear or mild findings, in a folder of its own."""
    small = {"synthetic_cases": 96, "size": 32, "client_counts": 2}
    sizes = small if study.profile == "smoke" else {"synthetic_cases": 480, "size": 48, "client_counts": 4, "rounds": 12}
    settings = {"findings": findings, "partitions": "balanced", "learning_rate": 0.003, "seed": study.seeds[0]}
    return _lesson(study, findings, **settings, **sizes)


def joining_study(study: StudyConfig) -> StudyConfig:
    """Return the lesson's study of three sites under three partitions, the last by scanner, in a folder of its own."""
    small = {"synthetic_cases": 72, "size": 32, "rounds": 1}
    sizes = small if study.profile == "smoke" else {"synthetic_cases": 600, "size": 48, "rounds": 8}
    sites = {"client_counts": 3, "partitions": "unbalanced,missing_classes,by_group", "group_column": "scanner"}
    settings = {"findings": "clear", "batch_size": 16, "learning_rate": 0.005, "seed": study.seeds[0]}
    return _lesson(study, "joining", **settings, **sites, **sizes)


def _lesson(study: StudyConfig, name: str, **settings: Any) -> StudyConfig:
    """Return a small study of chest X-rays in the folder `lesson/name` beside the runs of `study`."""
    profile, out_dir = "smoke" if study.profile == "smoke" else "quick", study.out_dir / "lesson" / name
    sizes = {"width": 16, "batch_size": 8} | settings
    return StudyConfig.make(task="classification", profile=profile, out_dir=out_dir, **sizes)


@styled
def row_of_images(images: list[np.ndarray], titles: list[str]) -> AccessibleFigure:
    """Draw grey images (H, W) side by side under their titles."""
    figure, axes = grid(1, len(images), 1.9)
    for axis, image, title in zip(axes[0], images, titles, strict=True):
        axis.imshow(image, cmap="gray")
        axis.set_title(title.replace("_", " "), fontsize=9)
    return accessible_figure(figure, f"Images, from left to right: {', '.join(titles)}.")


def _weights(model: torch.nn.Module) -> Weights:
    """Return copies of the learned weights, by name."""
    return {name: weight.detach().cpu().numpy().copy() for name, weight in model.named_parameters()}


def _vector(weights: Weights) -> torch.Tensor:
    return torch.cat([torch.from_numpy(array).reshape(-1) for array in weights.values()])
