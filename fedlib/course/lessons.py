"""What the notebooks do by hand: one round of FedAvg, how far clients disagree, what a shortcut does to a model."""

import warnings
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from monai.visualize import OcclusionSensitivity

from fedlib import tasks
from fedlib.config import RunConfig, StudyConfig
from fedlib.data.dataset import PreparedSet, batches
from fedlib.data.partition import clients_of
from fedlib.training.execution import load_model
from fedlib.training.loop import device, evaluate, initial_model, train_round
from fedlib.training.run_store import Run
from fedlib.views.plots.picture import Picture, grid, picture, styled

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Round:
    """What went down and came up in one round: the server's weights, those of each client, and the clients' cases."""

    start: Weights
    sent: list[Weights]
    cases: list[int]


def one_round(config: RunConfig, data: PreparedSet) -> Round:
    """Train every client of a federation for its first round, from the same weights; average nothing."""
    start, sent, dealt = _weights(initial_model(config, data)), [], clients_of(config, data)
    for client, rows in enumerate(dealt):
        model = initial_model(config, data)
        train_round(model, data, rows, config, client, 1)
        sent.append(_weights(model))
    return Round(start, sent, [len(rows) for rows in dealt])


def last_layer(weights: Weights) -> str:
    """Name of the largest array of the last layer of a model."""
    return [name for name, array in weights.items() if array.ndim > 1][-1]


def flower_average(sent: list[Weights], cases: list[int]) -> Weights:
    """What Flower's FedAvg makes of the clients' weights."""
    replies = [
        RecordDict({"arrays": ArrayRecord.from_numpy_ndarrays(list(weights.values())), "metrics": MetricRecord({"n": n})})
        for weights, n in zip(sent, cases, strict=True)
    ]
    return dict(zip(sent[0], aggregate_arrayrecords(replies, "n").to_numpy_ndarrays(), strict=True))


def divergence(step: Round) -> pd.DataFrame:
    """How far each client went in its round (L2 length of its update), and how its direction fits that of the others' mean.

    The last row is the mean, weighted by cases: what is left of the updates after averaging.
    """
    start = _vector(step.start)
    updates = np.stack([_vector(weights) - start for weights in step.sent])  # (K, weights)
    share = np.array(step.cases) / sum(step.cases)
    mean = share @ updates
    rows = []
    for own, update in zip(share, updates, strict=True):
        others = (mean - own * update) / (1 - own) if own < 1 else mean
        rows.append({"length of the update": np.linalg.norm(update), "cosine with the others": _cosine(update, others)})
    rows.append({"length of the update": np.linalg.norm(mean)})
    names = [*range(1, len(updates) + 1), "mean"]
    return pd.DataFrame(rows, pd.Index(names, name="client")).assign(cases=[*step.cases, sum(step.cases)])


def gradient_agreement(config: RunConfig, data: PreparedSet) -> pd.DataFrame:
    """Cosine between the gradients of each two clients, (K, K): where each would go from the same, untrained weights.

    Over all training cases of a client, with BatchNorm as in use (its running statistics, the same for all), so that neither
    the chance of a batch nor AdamW's equal steps hide what the data say. 1: the same direction; below 0: against each other.
    """
    model, loss_function = initial_model(config, data).eval(), tasks.get(config.task).loss_function()
    gradients = []
    for rows in clients_of(config, data):
        model.zero_grad()
        for batch in batches(rows, 4 * config.batch_size):
            images, labels = data.tensors(batch, device())
            (loss_function(model(images), labels) * len(batch) / len(rows)).backward()
        gradients.append(torch.cat([weight.grad.reshape(-1) for weight in model.parameters()]).cpu())
    directions = torch.nn.functional.normalize(torch.stack(gradients), dim=1)  # (K, weights)
    names = pd.RangeIndex(1, len(gradients) + 1, name="client")
    return pd.DataFrame((directions @ directions.T).numpy(), names, names)


def between_clients(agreement: pd.DataFrame) -> float:
    """Mean over the pairs of different clients."""
    cosines = agreement.to_numpy()
    return float(cosines[np.triu_indices_from(cosines, 1)].mean())


@styled
def agreement_picture(agreements: dict[str, pd.DataFrame]) -> Picture:
    """A matrix of cosines for each title, blue where two clients agree, red where they pull against each other."""
    figure, axes = plt.subplots(1, len(agreements), figsize=(3.6 * len(agreements), 3.2), squeeze=False)
    for axis, (title, cosines) in zip(axes[0], agreements.items(), strict=True):
        axis.imshow(cosines, cmap="RdBu", vmin=-1, vmax=1)
        for (row, column), value in np.ndenumerate(cosines.to_numpy()):
            axis.text(
                column, row, f"{value:.2f}", ha="center", va="center", color="w" if abs(value) > 0.6 else "k", fontsize=9
            )
        axis.set(title=title, xticks=range(len(cosines)), yticks=range(len(cosines)), xlabel="client", ylabel="client")
        axis.set_xticklabels(cosines.columns)
        axis.set_yticklabels(cosines.index)
    words = "; ".join(f"{title}: {between_clients(cosines):.2f}" for title, cosines in agreements.items())
    rows = [(title, *pair, value) for title, cosines in agreements.items() for pair, value in cosines.stack().items()]
    table = pd.DataFrame(rows, columns=["partition", "client", "other client", "cosine"])
    return picture(figure, f"Cosines between the clients' gradients. Mean over pairs of clients: {words}.", table)


def shortcut_study(study: StudyConfig) -> StudyConfig:
    """The lesson's own little study of chest X-rays, in its own folder: its runs are none of the study's."""
    small = study.profile == "smoke"
    sizes = {"synthetic_cases": 48, "rounds": 2} if small else {"synthetic_cases": 400, "rounds": 3}
    profile, folder = "smoke" if small else "quick", study.out_dir / "lesson"
    return StudyConfig.make(task="classification", profile=profile, seed=study.seeds[0], out_dir=folder, **sizes)


def tag_scores(run: Run, sets: dict[str, PreparedSet], label: str) -> pd.DataFrame:
    """A model on the same test patients under several tags: accuracy, cases of `label` found, and others taken for it."""
    rows = {}
    for title, data in sets.items():
        cases = evaluate(load_model(run, data), data, data.split("test"), run.config)
        ill, said = cases["truth"] == label, cases["prediction"] == label
        rows[title] = {
            "accuracy": tasks.get(run.config.task).summarize(cases)["accuracy"],
            f"{label} found": said[ill].mean(),
            f"others taken for {label}": said[~ill].mean(),
        }
    return pd.DataFrame(rows).T


def occlusion(run: Run, data: PreparedSet, rows: np.ndarray) -> np.ndarray:
    """What a model looks at, (B, H, W): how far its score for the class it says falls when a grey patch hides a place.

    MONAI's OcclusionSensitivity on logits, with a patch of 3/16 of the image, moved by half its side.
    """
    model = load_model(run, data).eval()
    side = max(4, 3 * data.images.shape[-1] // 16)
    seen = OcclusionSensitivity(model, side, n_batch=128, overlap=0.5, mode="mean_img", verbose=False, activate=False)
    images, maps = data.tensors(rows, device())[0], []
    for image in images:
        with torch.inference_mode():
            logits = model(image[None])[0]
        said = int(logits.argmax())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using a non-tuple sequence")  # MONAI 1.6 under torch 2.13
            hidden, _ = seen(image[None])
        maps.append((logits[said] - hidden[0, said]).detach().cpu().numpy())
    return np.stack([np.asarray(each) for each in maps])


@styled
def occlusion_picture(data: PreparedSet, rows: np.ndarray, maps: dict[str, np.ndarray]) -> Picture:
    """Images in the first line; below, for each title, what that model looks at, on one scale for each title."""
    figure, axes = grid(1 + len(maps), len(rows), 1.9)
    peaks = []
    for axis, row in zip(axes[0], rows, strict=True):
        axis.imshow(data.images[row, 0], cmap="gray", vmin=0, vmax=255)
        axis.set_title(data.classes[int(data.labels[row])].replace("_", " "), fontsize=9)
    for line, (title, each) in zip(axes[1:], maps.items(), strict=True):
        top = max(float(each.max()), 1e-6)
        for axis, row, heat in zip(line, rows, each, strict=True):
            axis.imshow(data.images[row, 0], cmap="gray", vmin=0, vmax=255)
            axis.imshow(heat, cmap="inferno", vmin=0, vmax=top, alpha=0.6)
            down, across = np.unravel_index(heat.argmax(), heat.shape)
            peaks.append(f"row {down}, column {across}")
        line[0].set_ylabel(title, fontsize=9)
    words = f"Bright: hiding that place lowers the score most. Peaks at {'; '.join(peaks)} of {data.images.shape[-1]}."
    return picture(figure, f"Occlusion maps of {', '.join(maps)} for {len(rows)} images. {words}")


@styled
def row_of_images(images: list[np.ndarray], titles: list[str]) -> Picture:
    """Grey images (H, W) side by side under their titles."""
    figure, axes = grid(1, len(images), 1.9)
    for axis, image, title in zip(axes[0], images, titles, strict=True):
        axis.imshow(image, cmap="gray")
        axis.set_title(title.replace("_", " "), fontsize=9)
    return picture(figure, f"Images, from left to right: {', '.join(titles)}.")


def _weights(model: torch.nn.Module) -> Weights:
    """Copies of the learned weights, by name."""
    return {name: weight.detach().cpu().numpy().copy() for name, weight in model.named_parameters()}


def _vector(weights: Weights) -> np.ndarray:
    return np.concatenate([array.ravel() for array in weights.values()])


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
