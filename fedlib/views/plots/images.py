"""Figures of prepared sets: images, grey values, partitions, and predicted outlines."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedlib import tasks
from fedlib.data import partition
from fedlib.data.dataset import PreparedDataset
from fedlib.training.run_store import Run
from fedlib.views.plots.figure import DASHES as LINES
from fedlib.views.plots.figure import PAGE, SERIES, SOFT, AccessibleFigure, accessible_figure, grid, styled

STRUCTURE_COLOURS = {"orange": "#ffb000", "blue": "#1fa8ff"}
"""Distinct on grey images and with each kind of colour blindness."""
DASHES = ("solid", (0, (3, 2)))
"""Of true and of predicted outlines."""
AXES = {"slice": 2, "across slices": 1}
"""The axis of a volume (X, Y, Z) that a plane is taken along. Axial and coronal in CT; short-axis MRI is neither."""
HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "++", "--")
"""Of stacked bars, so that no class depends on its colour."""


@styled
def gallery(data: PreparedDataset, columns: int = 4) -> AccessibleFigure:
    """Show the first training cases: a row per class, or two planes per volume with the structures outlined."""
    return _image_gallery(data, columns) if data.labels.ndim == 1 else _volume_gallery(data, columns)


def _image_gallery(data: PreparedDataset, columns: int) -> AccessibleFigure:
    train, shown = data.split("train"), []
    figure, axes = grid(len(data.classes), columns, 1.25)
    for number, name in enumerate(data.classes):
        rows = train[data.labels[train] == number][:columns]
        shown.append(rows)
        for axis, row in zip(axes[number], rows, strict=False):
            axis.imshow(data.images[row, 0], cmap="gray", vmin=0, vmax=255)
        axes[number, 0].set_ylabel(name.replace("_", " "))
    alt = f"{data.manifest['title']}: {columns} training images of each class, {', '.join(data.classes)}."
    return accessible_figure(figure, alt, _case_table(data, np.sort(np.concatenate(shown))))


def _volume_gallery(data: PreparedDataset, columns: int) -> AccessibleFigure:
    rows = data.split("train")[:columns]
    figure, axes = grid(len(AXES), columns, 1.35)
    for line, (plane, along) in zip(axes, AXES.items(), strict=True):
        for axis, row in zip(line, rows, strict=False):
            draw_slice(axis, data, row, [data.labels[row]], along)
        line[0].set_ylabel(plane)
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
    train, edges, densities, middle = data.split("train"), np.arange(0, 257, 4), {}, {}
    for number, name in enumerate(name.replace("_", " ") for name in data.classes):
        if data.labels.ndim == 1:
            values = data.images[train[data.labels[train] == number][:each]]
        else:
            values = np.concatenate([data.images[row, 0][data.labels[row] == number] for row in train[:each]])
        densities[name], middle[name] = np.histogram(values, edges, density=True)[0], np.median(values)
    table = pd.DataFrame(densities, pd.Index(edges[:-1], name="grey value (0 to 255)"))
    figure, axis = plt.subplots(figsize=(5.2, 3))
    palette = sns.color_palette("colorblind", len(middle))
    sns.lineplot(table, palette=palette, estimator=None, drawstyle="steps-post", ax=axis)
    axis.set_ylabel("density")
    axis.set_ylim(0, min(axis.get_ylim()[1], 0.06))  # the black background would flatten all else
    words = ", ".join(f"{name} {value:.0f}" for name, value in middle.items())
    return accessible_figure(figure, f"Distribution of grey values; medians: {words}.", table.reset_index())


@styled
def partitions(data: PreparedDataset, clients_by_title: dict[str, list[np.ndarray]]) -> AccessibleFigure:
    """Plot the training cases of each client, stacked by class; one panel for each title."""
    counts = {title: partition.table(data.cases, rows) for title, rows in clients_by_title.items()}
    largest = max(table["total"].max() for table in counts.values())
    sizes = "; ".join(f"{title}: {', '.join(map(str, table['total']))}" for title, table in counts.items())
    table = pd.concat(counts, names=["partition"]).drop(columns=["total", "share"]).fillna(0).astype(int).sort_index(axis=1)
    table = table.rename(columns=lambda name: name.replace("_", " "))
    figure, axes = plt.subplots(len(counts), 1, figsize=(4.6, 0.6 + 2.3 * len(counts)), squeeze=False)
    for axis, title in zip(axes[:, 0], counts, strict=True):
        colours = sns.color_palette("colorblind", len(table.columns))
        _stack(axis, table.loc[title], colours, title=title, ylim=(0, 1.05 * largest), legend=False)
        axis.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if len(table.columns) > 1:
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return accessible_figure(figure, f"Training cases of each client. {sizes}.", table.reset_index())


@styled
def sites(table: pd.DataFrame) -> AccessibleFigure:
    """Plot what clients tell before they train: cases by class, stacked, and the shares of their grey values, a line each.

    `table`: a row a client, from `fedlib.federated.in_process.site_statistics`. A client that hides everything has neither
    bar nor line; what others hide of their total is on top.
    """
    told = table.apply(pd.to_numeric, errors="coerce")
    total, shares = told["all"]["cases"], told["share of grey values"]
    classes = told["cases of a class"] if "cases of a class" in told else total.to_frame("cases")
    counts = classes.assign(hidden=total - classes.sum(axis=1)).rename(columns=lambda name: name.replace("_", " "))
    figure, (bars, lines) = plt.subplots(2, 1, figsize=(4.6, 6.6))
    colours = [*sns.color_palette("colorblind", len(classes.columns)), SOFT]
    _stack(bars, counts, colours)
    for number, (client, own) in enumerate(shares.iterrows()):
        lines.plot(own, color=SERIES[number % len(SERIES)], ls=LINES[number % len(LINES)], label=f"client {client}")
    lines.set(xlabel="grey value", ylabel="share of all pixels", ylim=(0, None))
    lines.tick_params(axis="x", rotation=30)
    bars.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    figure.legend(*lines.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    words = ", ".join(f"client {client} {n}" for client, n in table["all"]["cases"].items())
    numbers = pd.concat([counts, shares.add_prefix("grey ")], axis=1).reset_index()
    return accessible_figure(figure, f"What each client tells before training. Cases: {words}.", numbers)


def _stack(axis: plt.Axes, counts: pd.DataFrame, colours: Sequence, **options: Any) -> None:
    """Draw a stacked bar for each client (row), a colour and a hatch for each column."""
    counts.plot.bar(
        stacked=True, ax=axis, ylabel="training cases", width=0.8, rot=0, color=colours, edgecolor=PAGE, **options
    )
    for bars, hatch in zip(axis.containers, itertools.cycle(HATCHES), strict=False):
        plt.setp(bars.patches, hatch=hatch)


@styled
def contours(
    data: PreparedDataset, predictions: Mapping[str, np.ndarray], rows: np.ndarray, titles: Sequence[str] = ()
) -> AccessibleFigure:
    """Show true and predicted outlines of volumes, with the DSC of each structure; a column per row number in `rows`.

    `predictions` maps a title to label volumes (len(rows), X, Y, Z); `titles` names the columns, such as worst and best.
    """
    figure, axes = grid(1 + len(predictions), len(rows), 2.2)
    shown = {"truth" if data.manifest["synthetic"] else "expert": data.labels[rows]} | dict(predictions)
    names, scores = list(data.cases["case"].iloc[rows]), []
    for line, (title, volumes) in zip(axes, shown.items(), strict=True):
        line[0].set_ylabel(title.replace(", ", "\n"), fontsize=9)
        for axis, row, name, volume in zip(line, rows, names, volumes, strict=True):
            draw_slice(axis, data, row, [volume])
            if title in predictions:
                dice = {name: _dice(volume, data.labels[row], n) for n, name in enumerate(data.classes) if n}
                axis.set_xlabel("\n".join(f"DSC {structure} {value:.2f}" for structure, value in dice.items()), fontsize=9)
                scores.append({"case": name, "model": title} | {f"DSC {key}": value for key, value in dice.items()})
    for number, (axis, name) in enumerate(zip(axes[0], names, strict=True)):
        axis.set_title("\n".join([*titles[number : number + 1], name]), fontsize=9)
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
    if "truth" in cases:
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
    for volume, dashes in zip(outlines, DASHES, strict=False):
        for structure, colour in reversed(list(enumerate(STRUCTURE_COLOURS.values(), 1))):  # the inner outline on top
            mask = cut(volume) == structure
            if mask.any():
                axis.contour(mask, levels=[0.5], colors=colour, linewidths=1.3, linestyles=[dashes])


def outline_key(data: PreparedDataset) -> str:
    """Return words for the colours of the structures."""
    pairs = zip(data.classes[1:], STRUCTURE_COLOURS, strict=True)
    return ", ".join(f"{structure} outlined in {colour}" for structure, colour in pairs)


def _structure_legend(figure: plt.Figure, data: PreparedDataset) -> None:
    pairs = zip(data.classes[1:], STRUCTURE_COLOURS.values(), strict=True)
    lines = [Line2D([], [], color=colour, label=structure) for structure, colour in pairs]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))


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
        axes[0, 1].barh(list(words), list(words.values()), color=SERIES[0])
        axes[0, 1].set(xlim=(0, 1), xticks=[0, 1], yticks=range(len(words)), yticklabels=words, xlabel="probability")
        axes[0, 1].invert_yaxis()
    figure.suptitle(title, fontsize=9, parse_math=False)  # a file's name may hold a $
    return accessible_figure(figure, f"{title}: {', '.join(f'{name} {value:.3g}' for name, value in words.items())}.")
