"""Pictures of prepared sets: what the models are trained and tested on, and what they make of it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from fedlib import tasks
from fedlib.data.dataset import PreparedSet
from fedlib.training.run_store import Run
from fedlib.views.plots.picture import DASHES, PAGE, SOFT, Picture, grid, picture, styled

STRUCTURE_COLOURS = ("#ffb000", "#1fa8ff")
PLANES = ("slice", "across the slices")
"""Axial and coronal in CT; short-axis MRI is neither, so no such name is printed."""
HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "++", "--")
"""Of stacked bars: told apart without colour."""


@styled
def gallery(data: PreparedSet, columns: int = 5) -> Picture:
    """The first training cases: a row per class, or two slices per volume with the structures outlined."""
    return _image_gallery(data, columns) if data.task == "classification" else _volume_gallery(data, columns)


def _image_gallery(data: PreparedSet, columns: int) -> Picture:
    train, shown = data.split("train"), []
    figure, axes = grid(len(data.classes), columns, 1.7)
    for number, name in enumerate(data.classes):
        rows = train[data.labels[train] == number][:columns]
        shown.append(rows)
        for axis, row in zip(axes[number], rows, strict=False):
            axis.imshow(data.images[row, 0], cmap="gray", vmin=0, vmax=255)
        axes[number, 0].set_ylabel(name.replace("_", " "), fontsize=9)
    alt = f"{data.manifest['title']}: {columns} training images of each class, {', '.join(data.classes)}."
    return picture(figure, alt, _listed(data, np.sort(np.concatenate(shown))))


def _volume_gallery(data: PreparedSet, columns: int) -> Picture:
    rows = data.split("train")[:columns]
    figure, axes = grid(2, columns, 1.9)
    for column, row in enumerate(rows):
        for axis, plane in zip(axes[:, column], PLANES, strict=True):
            _slice(axis, data, row, plane, [data.labels[row]])
    for axis, plane in zip(axes[:, 0], PLANES, strict=True):
        axis.set_ylabel(plane)
    what = f"a slice, and a cut across the slices, of {len(rows)} training volumes"
    return picture(figure, f"{data.manifest['title']}: {what}; {_outline_words()}.", _listed(data, rows))


@styled
def intensities(data: PreparedSet, each: int = 100) -> Picture:
    """Distribution of the grey values of each class (images) or structure (volumes), over `each` training cases of it."""
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
    axis.set_ylim(0, min(axis.get_ylim()[1], 0.06))  # black surroundings would press all else flat
    axis.legend(fontsize=8)
    words = ", ".join(f"{name} {value:.0f}" for name, value in middle.items())
    shares = pd.DataFrame({"grey value from": edges[:-1:4].astype(int)} | densities)
    return picture(figure, f"Distribution of grey values; medians: {words}.", shares)


@styled
def volumes(data: PreparedSet) -> Picture:
    """Volume of each structure as prepared against as labelled, in ml: what resampling and crop changed."""
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
    return picture(figure, alt, data.cases[["case", *measured]])


@styled
def partitions(data: PreparedSet, dealt: dict[str, list[np.ndarray]]) -> Picture:
    """Training cases of each client, stacked by class; one panel for each title in `dealt`."""
    figure, axes = plt.subplots(1, len(dealt), figsize=(max(4.2, 3.2 * len(dealt)), 2.8), sharey=True, squeeze=False)
    labels = data.cases["label"].replace("", "volumes")
    names, counted = sorted(labels.unique()), []
    for axis, (title, clients) in zip(axes[0], dealt.items(), strict=True):
        bottom = np.zeros(len(clients))
        for name, colour, hatch in zip(names, sns.color_palette("colorblind"), HATCHES, strict=False):
            counts = np.array([(labels.iloc[rows] == name).sum() for rows in clients])
            counted += [
                {"partition": title, "client": client, "class": name.replace("_", " "), "training cases": count}
                for client, count in enumerate(counts, 1)
            ]
            axis.bar(
                range(1, len(clients) + 1),
                counts,
                bottom=bottom,
                color=colour,
                hatch=hatch,
                edgecolor=PAGE,
                lw=0.5,
                label=name.replace("_", " "),
            )
            bottom += counts
        axis.set(title=title, xlabel="client", xticks=range(1, len(clients) + 1))
    axes[0, 0].set_ylabel("training cases")
    largest = max(len(rows) for clients in dealt.values() for rows in clients)
    axes[0, 0].set_ylim(0, 1.05 * largest)  # an absent class, drawn on top with no height, would end the axis at the bar
    if len(names) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names), fontsize=8)
    sizes = "; ".join(f"{title}: {', '.join(str(len(rows)) for rows in clients)}" for title, clients in dealt.items())
    return picture(figure, f"Training cases of each client. {sizes}.", pd.DataFrame(counted))


@styled
def contours(data: PreparedSet, predictions: dict[str, np.ndarray], rows: np.ndarray) -> Picture:
    """True outlines beside predicted ones. `predictions` maps a title to label volumes (len(rows), X, Y, Z)."""
    figure, axes = grid(1 + len(predictions), len(rows), 2.0)
    for column, row in enumerate(rows):
        _slice(axes[0, column], data, row, PLANES[0], [data.labels[row]])
        for line, predicted in enumerate(predictions.values(), 1):
            _slice(axes[line, column], data, row, PLANES[0], [predicted[column]])
    for axis, title in zip(axes[:, 0], ["expert" if not data.manifest["synthetic"] else "truth", *predictions], strict=True):
        axis.set_ylabel(title, fontsize=9)
    alt = f"Slices of {len(rows)} test volumes, true and predicted outlines; {_outline_words()}."
    return picture(figure, alt, _listed(data, rows))


def worst_first(run: Run, data: PreparedSet) -> np.ndarray:
    """Row numbers of the test cases of a run with one model, the worst first: by mean DSC, or by the truth's probability."""
    cases = run.cases
    if run.config.task == "classification":
        score = cases.apply(lambda case: case[f"p_{case['truth']}"], axis=1)
    else:
        score = cases[list(tasks.get(run.config.task).PRIMARY)].mean(axis=1)
    row_of = {case: row for row, case in enumerate(data.cases["case"])}
    return cases["case"].iloc[np.argsort(score, kind="stable")].map(row_of).to_numpy()


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
        for structure, colour in reversed(list(enumerate(STRUCTURE_COLOURS, 1))):  # the inner outline on top
            mask = cut(outline) == structure
            if mask.any():
                axis.contour(mask, levels=[0.5], colors=colour, linewidths=1.2)


def _outline_words() -> str:
    return "left ventricle outlined in orange, myocardium in blue"


def _listed(data: PreparedSet, rows: np.ndarray) -> pd.DataFrame:
    """Which cases a picture shows."""
    return data.cases.iloc[rows][["case", "patient", "split", "label"]]
