"""The pictures of the notebooks and the report. Each is a `Picture`: a figure and the sentence that stands for it.

They read prepared sets and the run store, never a training in progress.
"""

import base64
import io
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torchmetrics.functional.classification import multiclass_confusion_matrix

from fedlib import tasks
from fedlib.config import Partition, RunConfig
from fedlib.data import PreparedSet
from fedlib.runs import Run

COLOURS = dict(zip(Partition.__args__, [sns.color_palette("colorblind")[n] for n in (0, 1, 2, 9)], strict=True))
"""Blue, orange, green, sky blue: told apart with each kind of colour blindness."""
STRUCTURE_COLOURS = ("#ffb000", "#1fa8ff")
PLANES = ("slice", "across the slices")
"""Axial and coronal in CT; short-axis MRI is neither, so no such name is printed."""


@dataclass(frozen=True)
class Picture:
    """A figure with its alternative text, which Jupyter keeps in the output's metadata and our HTML shows as `alt`."""

    figure: Figure
    alt: str

    def png(self) -> str:
        """The figure as base64 text."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight", facecolor="white")
        return base64.b64encode(buffer.getvalue()).decode()

    def _repr_mimebundle_(self, **_: object) -> tuple[dict, dict]:
        return {"image/png": self.png(), "text/plain": self.alt}, {"image/png": {"alt": self.alt}}


def gallery(data: PreparedSet, columns: int = 5) -> Picture:
    """The first training cases: a row per class, or two slices per volume with the structures outlined."""
    return _image_gallery(data, columns) if data.task == "classification" else _volume_gallery(data, columns)


def _image_gallery(data: PreparedSet, columns: int) -> Picture:
    train = data.split("train")
    figure, axes = _grid(len(data.classes), columns, 1.7)
    for number, name in enumerate(data.classes):
        rows = train[data.labels[train] == number]
        for axis, row in zip(axes[number], rows, strict=False):
            axis.imshow(data.images[row, 0], cmap="gray", vmin=0, vmax=255)
        axes[number, 0].set_ylabel(name.replace("_", " "), fontsize=9)
    alt = f"{data.manifest['title']}: {columns} training images of each class, {', '.join(data.classes)}."
    return _picture(figure, alt)


def _volume_gallery(data: PreparedSet, columns: int) -> Picture:
    rows = data.split("train")[:columns]
    figure, axes = _grid(2, columns, 1.9)
    for column, row in enumerate(rows):
        for axis, plane in zip(axes[:, column], PLANES, strict=True):
            _slice(axis, data, row, plane, [data.labels[row]])
    for axis, plane in zip(axes[:, 0], PLANES, strict=True):
        axis.set_ylabel(plane)
    what = f"a slice, and a cut across the slices, of {len(rows)} training volumes"
    return _picture(figure, f"{data.manifest['title']}: {what}; {_outline_words()}.")


def intensities(data: PreparedSet, each: int = 100) -> Picture:
    """Distribution of the grey values of each class (images) or structure (volumes), over `each` training cases of it."""
    figure, axis = plt.subplots(figsize=(6.4, 3))
    train, middle = data.split("train"), {}
    for number, (name, colour) in enumerate(zip(data.classes, sns.color_palette("colorblind"), strict=False)):
        if data.task == "classification":
            values = data.images[train[data.labels[train] == number][:each]]
        else:
            values = np.concatenate([data.images[row, 0][data.labels[row] == number] for row in train[:each]])
        share, edges = np.histogram(values, bins=64, range=(0, 256), density=True)
        axis.stairs(share, edges, color=colour, label=name.replace("_", " "), lw=1.5)
        middle[name] = float(np.median(values))
    axis.set(xlabel="grey value (0 to 255)", ylabel="density")
    axis.set_ylim(0, min(axis.get_ylim()[1], 0.06))  # black surroundings would press all else flat
    axis.legend(fontsize=8)
    words = ", ".join(f"{name} {value:.0f}" for name, value in middle.items())
    return _picture(figure, f"Distribution of grey values; medians: {words}.")


def volumes(data: PreparedSet) -> Picture:
    """Volume of each structure as prepared against as labelled, in ml: what resampling and crop changed."""
    figure, axis = plt.subplots(figsize=(4.6, 3.6))
    words = []
    for structure, colour in zip(data.classes[1:], STRUCTURE_COLOURS, strict=True):
        before, after = data.cases[f"{structure}_ml"], data.cases[f"{structure}_ml_prepared"]
        axis.plot(before, after, ".", color=colour, label=structure)
        words.append(f"{structure} {before.median():.0f} ml, {(after / before).min():.1%} kept in the worst case")
    axis.axline((0, 0), slope=1, color="0.5", lw=0.8)
    axis.set(xlabel="ml as labelled", ylabel="ml as prepared")
    axis.legend(fontsize=8)
    return _picture(figure, f"Volume of each structure before and after preparation; medians: {'; '.join(words)}.")


def partitions(data: PreparedSet, dealt: dict[str, list[np.ndarray]]) -> Picture:
    """Training cases of each client, stacked by class; one panel for each title in `dealt`."""
    figure, axes = plt.subplots(1, len(dealt), figsize=(max(4.2, 3.2 * len(dealt)), 2.8), sharey=True, squeeze=False)
    labels = data.cases["label"].replace("", "volumes")
    names = sorted(labels.unique())
    for axis, (title, clients) in zip(axes[0], dealt.items(), strict=True):
        bottom = np.zeros(len(clients))
        for name, colour in zip(names, sns.color_palette("colorblind"), strict=False):
            counts = np.array([(labels.iloc[rows] == name).sum() for rows in clients])
            axis.bar(range(1, len(clients) + 1), counts, bottom=bottom, color=colour, label=name.replace("_", " "))
            bottom += counts
        axis.set(title=title, xlabel="client", xticks=range(1, len(clients) + 1))
    axes[0, 0].set_ylabel("training cases")
    largest = max(len(rows) for clients in dealt.values() for rows in clients)
    axes[0, 0].set_ylim(0, 1.05 * largest)  # an absent class, drawn on top with no height, would end the axis at the bar
    if len(names) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names), fontsize=8)
    sizes = "; ".join(f"{title}: {', '.join(str(len(rows)) for rows in clients)}" for title, clients in dealt.items())
    return _picture(figure, f"Training cases of each client. {sizes}.")


def learning_curves(runs: list[Run]) -> Picture:
    """Validation score of the global model after each round, one line per run; first seed only."""
    metrics = tasks.get(runs[0].config.task).PRIMARY
    figure, axes = plt.subplots(1, len(metrics), figsize=(5.6 * len(metrics), 3.4), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for run in runs:
            rounds = run.rounds
            axis.plot(rounds["round"], rounds[metric], label=arm_name(run.config), **_line(run.config))
        axis.set(xlabel="round", ylabel=f"validation {tasks.NAMES[metric]}")
    axes[0, -1].legend(fontsize=8, loc="lower right")
    last = ", ".join(f"{arm_name(run.config)} {run.rounds[metrics[0]].iloc[-1]:.2f}" for run in runs)
    return _picture(figure, f"Validation {tasks.NAMES[metrics[0]]} by round. After the last round: {last}.")


def client_curves(run: Run) -> Picture:
    """Training loss and metric of every client by round, as the clients reported them."""
    metric, clients = tasks.get(run.config.task).TRAINING_METRIC, run.clients
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    palette = sns.color_palette("viridis", run.config.n_clients)
    for axis, column in zip(axes, ("loss", metric), strict=True):
        for client, own in clients.groupby("client"):
            label = f"client {client + 1} (n = {own['n'].max()})"
            axis.plot(own["round"], own[column], marker=".", color=palette[client], label=label)
        axis.set(xlabel="round", ylabel=tasks.NAMES[column])
    axes[1].legend(fontsize=7, ncols=1 + run.config.n_clients // 9)
    end = clients[clients["round"] == clients["round"].max()]["loss"]
    alt = f"Training loss and {tasks.NAMES[metric]} of each client by round, {arm_name(run.config)}. "
    return _picture(figure, alt + f"Final losses lie between {end.min():.2f} and {end.max():.2f}.")


def confusion(runs: list[Run]) -> Picture:
    """Confusion matrices on the test split: rows are the truth, cells the share of that truth."""
    figure, axes = plt.subplots(1, len(runs), figsize=(4.4 * len(runs), 3.6), squeeze=False)
    for axis, run in zip(axes[0], runs, strict=True):
        names = [column.removeprefix("p_") for column in run.cases.columns if column.startswith("p_")]
        truth, prediction = (torch.tensor(run.cases[column].map(names.index)) for column in ("truth", "prediction"))
        share = multiclass_confusion_matrix(prediction, truth, len(names), normalize="true")
        ticks = [name.replace("_", " ") for name in names]
        sns.heatmap(share.numpy(), annot=True, fmt=".2f", cmap="Blues", cbar=False, vmin=0, vmax=1, ax=axis,
                    xticklabels=ticks, yticklabels=ticks, square=True, annot_kws={"size": 8})  # fmt: skip
        axis.set_title(arm_name(run.config), fontsize=10)
        axis.set(xlabel="predicted", ylabel="true")
        axis.tick_params(axis="x", rotation=30)
    diagonal = ", ".join(f"{name} {value:.2f}" for name, value in zip(ticks, share.diagonal().tolist(), strict=True))
    return _picture(figure, f"Confusion matrices on the test split. Sensitivity, {arm_name(runs[-1].config)}: {diagonal}.")


def contours(data: PreparedSet, predictions: dict[str, np.ndarray], rows: np.ndarray) -> Picture:
    """True outlines beside predicted ones. `predictions` maps a title to label volumes (len(rows), X, Y, Z)."""
    figure, axes = _grid(1 + len(predictions), len(rows), 2.0)
    for column, row in enumerate(rows):
        _slice(axes[0, column], data, row, PLANES[0], [data.labels[row]])
        for line, predicted in enumerate(predictions.values(), 1):
            _slice(axes[line, column], data, row, PLANES[0], [predicted[column]])
    for axis, title in zip(axes[:, 0], ["expert" if not data.manifest["synthetic"] else "truth", *predictions], strict=True):
        axis.set_ylabel(title, fontsize=9)
    return _picture(figure, f"Slices of {len(rows)} test volumes, true and predicted outlines; {_outline_words()}.")


def comparison(table: pd.DataFrame) -> Picture:
    """Test score against the number of clients, from `statistics.compare`: intervals over patients, the paper's figures."""
    metrics = list(table["metric"].unique())
    figure, axes = plt.subplots(1, len(metrics), figsize=(5.6 * len(metrics), 3.8), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        _comparison_panel(axis, table[table["metric"] == metric])
        axis.set_ylabel(f"test {tasks.NAMES[metric]}")
    handles = {label: handle for handle, label in zip(*axes[0, 0].get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8)
    own = table[table["metric"] == metrics[0]]
    words = ", ".join(f"{arm_name(row)} {row.value:.3f}" for row in own.itertuples())
    return _picture(figure, f"Test {tasks.NAMES[metrics[0]]} of every arm with 95% intervals: {words}.")


def _comparison_panel(axis: plt.Axes, table: pd.DataFrame) -> None:
    dealt = table[table["mode"] != "centralized"]
    counts, partitions = sorted(dealt["n_clients"].unique()), [name for name in COLOURS if name in set(dealt["partition"])]
    for row in table[table["mode"] == "centralized"].itertuples():
        axis.axhline(row.value, color="0.3", label="centralized, 95% interval")
        axis.axhspan(row.low, row.high, color="0.3", alpha=0.15, lw=0)
    for (mode, partition), arm in dealt.groupby(["mode", "partition"]):
        beside = partitions.index(partition) - (len(partitions) - 1) / 2
        shift = 0.2 * beside + (0.05 if mode == "local" else -0.05)
        at = [counts.index(n) + shift for n in arm["n_clients"]]
        style = {"marker": "o", "ls": "-"} if mode == "federated" else {"marker": "s", "ls": ":", "mfc": "white"}
        spread = np.abs(arm[["low", "high"]].to_numpy().T - arm["value"].to_numpy())
        axis.errorbar(at, arm["value"], spread, color=COLOURS[partition], label=f"{mode}, {partition}", capsize=2, **style)
    published = table[(table["mode"] == "federated") & table["paper"].notna()].drop_duplicates("n_clients")
    at = [counts.index(n) for n in published["n_clients"]]
    if at:
        axis.plot(at, published["paper"], "kD", mfc="none", label="the paper, federated (its own data)")
    axis.set(xlabel="clients", xticks=range(len(counts)), xticklabels=counts)
    axis.set_xmargin(0.15)


def worst_middle_best(run: Run, data: PreparedSet) -> np.ndarray:
    """Row numbers of the test volumes with the worst, the middle and the best mean DSC."""
    metrics = list(tasks.get(run.config.task).PRIMARY)
    ordered = run.cases.assign(mean=run.cases[metrics].mean(axis=1)).sort_values("mean")["case"].to_list()
    chosen = [ordered[0], ordered[len(ordered) // 2], ordered[-1]]
    return np.array([int(np.flatnonzero(data.cases["case"] == case)[0]) for case in chosen])


def arm_name(arm: "RunConfig | tuple") -> str:
    """Words for an arm: `federated, 4 clients, unbalanced`."""
    if arm.mode == "centralized":
        return "centralized"
    return f"{arm.mode}, {arm.n_clients} clients, {arm.partition}"


def _line(config: RunConfig) -> dict:
    """Colour by partition, dashes by mode, marker by number of clients."""
    dashes = {"centralized": "-", "federated": "-", "local": ":"}[config.mode]
    marker = {1: None, 2: "o", 4: "s", 8: "^", 16: "D"}.get(config.n_clients, ".")
    width = 2.5 if config.mode == "centralized" else 1.3
    colour = "0.2" if config.mode == "centralized" else COLOURS[config.partition]
    return {"ls": dashes, "marker": marker, "color": colour, "lw": width, "ms": 4}


def _slice(axis: plt.Axes, data: PreparedSet, row: int, plane: str, outlines: list[np.ndarray]) -> None:
    """Draw the slice with the largest true outline, radiological convention: the patient's right is on the left."""
    across = 2 if plane == PLANES[0] else 1
    truth = data.labels[row] > 0
    index = int(truth.sum(axis=tuple({0, 1, 2} - {across})).argmax())
    spacing = data.spacing_mm

    def cut(volume: np.ndarray) -> np.ndarray:
        return np.take(volume, index, axis=across)[::-1].T

    axis.imshow(
        cut(data.images[row, 0]), cmap="gray", vmin=0, vmax=255, origin="lower", aspect=spacing[3 - across] / spacing[0]
    )
    for outline in outlines:
        for structure, colour in enumerate(STRUCTURE_COLOURS, 1):
            mask = cut(outline) == structure
            if mask.any():
                axis.contour(mask, levels=[0.5], colors=colour, linewidths=1.2)


def _outline_words() -> str:
    return "left ventricle outlined in orange, myocardium in blue"


def _grid(rows: int, columns: int, side: float) -> tuple[Figure, np.ndarray]:
    figure, axes = plt.subplots(rows, columns, figsize=(side * columns, side * rows), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure, axes


def _picture(figure: Figure, alt: str) -> Picture:
    figure.set_layout_engine("constrained")
    plt.close(figure)  # Jupyter would show it a second time
    return Picture(figure, alt)
