"""Figures of prepared sets: images, grey values, volumes, partitions, and predicted outlines."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

from fedlib import tasks
from fedlib.data.dataset import PreparedDataset
from fedlib.training.run_store import Run
from fedlib.views.plots.figure import DASHES, INK, PAGE, SOFT, AccessibleFigure, accessible_figure, grid, styled

STRUCTURE_COLOURS = ("#ffb000", "#1fa8ff")
"""Orange and blue: distinct on grey images and with each kind of colour blindness."""
TRUE_DASHES, PREDICTED_DASHES = "solid", (0, (3, 2))
AXES = {"slice": 2, "cut across the slices": 1}
"""The axis of a volume (X, Y, Z) that a plane is taken along. Axial and coronal in CT; short-axis MRI is neither."""
HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "++", "--")
"""Of stacked bars, so that no class depends on its colour."""


@styled
def gallery(data: PreparedDataset, columns: int = 5) -> AccessibleFigure:
    """Show the first training cases: a row per class, or two planes per volume with the structures outlined."""
    return _image_gallery(data, columns) if data.task == "classification" else _volume_gallery(data, columns)


def _image_gallery(data: PreparedDataset, columns: int) -> AccessibleFigure:
    train, shown = data.split("train"), []
    figure, axes = grid(len(data.classes), columns, 1.4)
    for number, name in enumerate(data.classes):
        rows = train[data.labels[train] == number][:columns]
        shown.append(rows)
        for axis, row in zip(axes[number], rows, strict=False):
            axis.imshow(data.images[row, 0], cmap="gray", vmin=0, vmax=255)
        axes[number, 0].set_ylabel(name.replace("_", " "), fontsize=9)
    alt = f"{data.manifest['title']}: {columns} training images of each class, {', '.join(data.classes)}."
    return accessible_figure(figure, alt, _case_table(data, np.sort(np.concatenate(shown))))


def _volume_gallery(data: PreparedDataset, columns: int) -> AccessibleFigure:
    rows = data.split("train")[:columns]
    figure, axes = grid(len(AXES), columns, 1.6)
    for line, (plane, along) in zip(axes, AXES.items(), strict=True):
        for axis, row in zip(line, rows, strict=False):
            draw_slice(axis, data, row, [data.labels[row]], along)
        line[0].set_ylabel(plane, fontsize=9)
    _structure_legend(figure, data)
    alt = f"{data.manifest['title']}: a slice, and a cut across the slices, of {len(rows)} training volumes."
    return accessible_figure(figure, f"{alt} {outline_key(data)}.", _case_table(data, rows))


@styled
def masks(shown: Mapping[str, np.ndarray]) -> AccessibleFigure:
    """Show small masks (H, W), True where a structure is, on a grid that lets a reader count pixels."""
    figure, axes = grid(1, len(shown), 2.4)
    for axis, (title, mask) in zip(axes[0], shown.items(), strict=True):
        axis.pcolormesh(mask, cmap="Blues", vmin=0, vmax=1.4, edgecolors=SOFT, linewidth=0.5)
        axis.set(title=title, aspect="equal")
        axis.invert_yaxis()
    return accessible_figure(figure, f"Masks of {len(mask)} rows and {len(mask.T)} columns on a grid: {', '.join(shown)}.")


@styled
def intensities(data: PreparedDataset, each: int = 100) -> AccessibleFigure:
    """Plot the density of grey values of each class (images) or structure (volumes), over at most `each` training cases."""
    figure, axis = plt.subplots(figsize=(6.4, 3))
    train, middle, densities = data.split("train"), {}, {}
    for number, (name, colour, dashes) in enumerate(
        zip(data.classes, sns.color_palette("colorblind"), DASHES, strict=False)
    ):
        if data.task == "classification":
            values = data.images[train[data.labels[train] == number][:each]]
        else:
            values = np.concatenate([data.images[row, 0][data.labels[row] == number] for row in train[:each]])
        share, edges = np.histogram(values, bins=64, range=(0, 256), density=True)
        densities[f"density, {name.replace('_', ' ')}"] = share.reshape(16, 4).mean(axis=1)
        axis.stairs(share, edges, color=colour, label=name.replace("_", " "), lw=1.5, ls=dashes)
        middle[name] = float(np.median(values))
    axis.set(xlabel="grey value (0 to 255)", ylabel="density")
    axis.set_ylim(0, min(axis.get_ylim()[1], 0.06))  # the black background would flatten all else
    axis.legend(fontsize=8)
    words = ", ".join(f"{name} {value:.0f}" for name, value in middle.items())
    shares = pd.DataFrame({"grey value from": edges[:-1:4].astype(int)} | densities)
    return accessible_figure(figure, f"Distribution of grey values; medians: {words}.", shares)


@styled
def volumes(data: PreparedDataset) -> AccessibleFigure:
    """Plot the volume of each structure as prepared against as labelled, in ml: the effect of resampling and crop."""
    figure, axis = plt.subplots(figsize=(4.6, 3.6))
    words = []
    for structure, colour, marker in zip(data.classes[1:], STRUCTURE_COLOURS, "os", strict=True):
        before, after = data.cases[f"{structure}_ml"], data.cases[f"{structure}_ml_prepared"]
        axis.plot(before, after, marker, ms=4, mec=SOFT, mew=0.5, color=colour, label=structure)
        words.append(f"{structure} {before.median():.0f} ml, {(after / before).min():.1%} kept in the worst case")
    axis.axline((0, 0), slope=1, color="0.5", lw=0.8)
    axis.set(xlabel="ml as labelled", ylabel="ml as prepared")
    axis.legend(fontsize=8)
    measured = [f"{structure}_ml{when}" for structure in data.classes[1:] for when in ("", "_prepared")]
    alt = f"Volume of each structure before and after preparation; medians: {'; '.join(words)}."
    return accessible_figure(figure, alt, data.cases[["case", *measured]])


@styled
def partitions(data: PreparedDataset, clients_by_title: dict[str, list[np.ndarray]]) -> AccessibleFigure:
    """Plot the training cases of each client, stacked by class; one panel for each title."""
    n = len(clients_by_title)
    figure, axes = plt.subplots(1, n, figsize=(max(4.2, 3.2 * n), 2.8), sharey=True, squeeze=False)
    labels = data.cases["label"].replace("", "volumes")
    names, counted = sorted(labels.unique()), []
    for axis, (title, clients) in zip(axes[0], clients_by_title.items(), strict=True):
        numbers, bottom = range(1, len(clients) + 1), np.zeros(len(clients))
        for name, colour, hatch in zip(names, sns.color_palette("colorblind"), HATCHES, strict=False):
            counts = np.array([(labels.iloc[rows] == name).sum() for rows in clients])
            label = name.replace("_", " ")
            counted += [(title, *row) for row in zip(numbers, [label] * len(clients), counts, strict=True)]
            axis.bar(numbers, counts, bottom=bottom, color=colour, hatch=hatch, edgecolor=PAGE, lw=0.5, label=label)
            bottom += counts
        axis.set(title=title, xlabel="client", xticks=numbers)
    axes[0, 0].set_ylabel("training cases")
    largest = max(len(rows) for clients in clients_by_title.values() for rows in clients)
    axes[0, 0].set_ylim(0, 1.05 * largest)  # an absent class, drawn on top without height, would end the axis at the bar
    if len(names) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names), fontsize=8)
    sizes = [f"{title}: {', '.join(str(len(rows)) for rows in clients)}" for title, clients in clients_by_title.items()]
    table = pd.DataFrame(counted, columns=["partition", "client", "class", "training cases"])
    return accessible_figure(figure, f"Training cases of each client. {'; '.join(sizes)}.", table)


@styled
def contours(
    data: PreparedDataset, predictions: Mapping[str, np.ndarray], rows: np.ndarray, titles: Sequence[str] = ()
) -> AccessibleFigure:
    """Show true and predicted outlines of volumes, with the DSC of each structure; a column per row number in `rows`.

    `predictions` maps a title to label volumes (len(rows), X, Y, Z); `titles` names the columns, such as worst and best.
    """
    figure, axes = grid(1 + len(predictions), len(rows), 2.1)
    names, scores = list(data.cases["case"].iloc[rows]), []
    for column, row in enumerate(rows):
        draw_slice(axes[0, column], data, row, [data.labels[row]])
        axes[0, column].set_title("\n".join([*titles[column : column + 1], names[column]]), fontsize=9)
        for line, (title, predicted) in enumerate(predictions.items(), 1):
            draw_slice(axes[line, column], data, row, [predicted[column]])
            dice = {name: _dice(predicted[column], data.labels[row], n) for n, name in enumerate(data.classes) if n}
            axes[line, column].set_xlabel(", ".join(f"{name} {value:.2f}" for name, value in dice.items()), fontsize=9)
            scores.append({"case": names[column], "model": title} | {f"DSC {name}": value for name, value in dice.items()})
    for axis, title in zip(axes[:, 0], ["expert" if not data.manifest["synthetic"] else "truth", *predictions], strict=True):
        axis.set_ylabel(title.replace(", ", "\n"), fontsize=9)
    _structure_legend(figure, data)
    alt = f"Slices of {len(rows)} test volumes with true and predicted outlines. {outline_key(data)}."
    return accessible_figure(figure, alt, pd.DataFrame(scores))


def _dice(predicted: np.ndarray, truth: np.ndarray, label: int) -> float:
    """Return the Dice similarity coefficient of one label of two volumes."""
    both, sizes = ((predicted == label) & (truth == label)).sum(), (predicted == label).sum() + (truth == label).sum()
    return float(2 * both / sizes) if sizes else float("nan")


def rank_by_error(run: Run, data: PreparedDataset) -> np.ndarray:
    """Return row numbers of a run's test cases, the worst first: by mean DSC, or by the true class's probability.

    The run has one model for all clients.
    """
    cases = run.cases
    if run.config.task == "classification":
        score = cases.apply(lambda case: case[f"p_{case['truth']}"], axis=1)
    else:
        score = cases[list(tasks.get(run.config.task).PRIMARY)].mean(axis=1)
    row_of = {case: row for row, case in enumerate(data.cases["case"])}
    return cases["case"].iloc[np.argsort(score, kind="stable")].map(row_of).to_numpy()


def draw_slice(
    axis: plt.Axes,
    data: PreparedDataset,
    row: int,
    outlines: Sequence[np.ndarray],
    along: int = 2,
    index: int | None = None,
    grey: tuple[float, float] = (0, 255),
) -> None:
    """Draw a plane of a volume in radiological convention: the patient's right is on the left.

    `outlines`: label volumes (X, Y, Z), the first one solid, others dashed. `index`: position along the axis; None: where
    the true structures are largest. `grey`: the stored values shown as black and as white.
    """
    if index is None:
        index = int((data.labels[row] > 0).sum(axis=tuple({0, 1, 2} - {along})).argmax())

    def cut(volume: np.ndarray) -> np.ndarray:
        return np.take(volume, index, axis=along)[::-1].T

    aspect = data.spacing_mm[3 - along] / data.spacing_mm[0]
    axis.imshow(cut(data.images[row, 0]), cmap="gray", vmin=grey[0], vmax=grey[1], origin="lower", aspect=aspect)
    for volume, dashes in zip(outlines, (TRUE_DASHES, PREDICTED_DASHES), strict=False):
        for structure, colour in reversed(list(enumerate(STRUCTURE_COLOURS, 1))):  # the inner outline on top
            mask = cut(volume) == structure
            if mask.any():
                axis.contour(mask, levels=[0.5], colors=colour, linewidths=1.3, linestyles=[dashes])


def outline_key(data: PreparedDataset) -> str:
    """Return words for the colours of the structures."""
    return ", ".join(
        f"{name} outlined in {colour}" for name, colour in zip(data.classes[1:], ("orange", "blue"), strict=True)
    )


def _structure_legend(figure: plt.Figure, data: PreparedDataset) -> None:
    lines = [
        Line2D([], [], color=colour, label=name) for name, colour in zip(data.classes[1:], STRUCTURE_COLOURS, strict=True)
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), labelcolor=INK)


def _case_table(data: PreparedDataset, rows: np.ndarray) -> pd.DataFrame:
    """Return which cases a figure shows."""
    return data.cases.iloc[rows][["case", "patient", "split", "label"]]


@styled
def prediction(data: PreparedDataset, said: Mapping[str, float], title: str) -> AccessibleFigure:
    """Show one predicted case: an image beside its probabilities, or two planes of a volume with the outlines found."""
    figure, axes = grid(1, 2, 2.8)
    words = {name.removeprefix("p_").removesuffix("_ml").replace("_", " "): value for name, value in said.items()}
    if data.task == "segmentation":
        for axis, along in zip(axes[0], AXES.values(), strict=True):
            draw_slice(axis, data, 0, [data.labels[0]], along)
        axes[0, 0].set_xlabel(", ".join(f"{name} {value:.1f} ml" for name, value in words.items()))
        _structure_legend(figure, data)
    else:
        axes[0, 0].imshow(data.images[0, 0], cmap="gray", vmin=0, vmax=255)
        axes[0, 1].barh(list(words), list(words.values()), color=STRUCTURE_COLOURS[1])
        axes[0, 1].set(xlim=(0, 1), xticks=[0, 1], yticks=range(len(words)), yticklabels=words, xlabel="probability")
        axes[0, 1].invert_yaxis()
    figure.suptitle(title, fontsize=9)
    return accessible_figure(figure, f"{title}: {', '.join(f'{name} {value:.3g}' for name, value in words.items())}.")
