"""What a reader moves: images, partitions and rounds. Each is a `Player` of frames."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from fedlib import tasks
from fedlib.config import StudyConfig, UserError
from fedlib.data.dataset import PreparedDataset, chosen
from fedlib.data.partition import clients_of
from fedlib.training.run_store import Run
from fedlib.views.player import Frame, Player, figure_url, image_url, spread
from fedlib.views.plots import arm_name, partitions
from fedlib.views.plots.figure import DASHES, INK, PAGE, SERIES, styled
from fedlib.views.plots.images import draw_slice, outline_key

MOST_IMAGES, MOST_VOLUMES, MOST_SLICES, MOST_RUNS, MOST_ROUNDS = 16, 3, 8, 3, 6
"""Limits of a player's frames: a page stays light, and drawing takes a few seconds."""
SIGNS = "os^DvP*X"
"""Markers of clients, so that no line depends on its colour."""
RATIOS, ALPHAS = (2, 10), (10, 2, 0.5, 0.1)
"""Settings of a partition, from even to uneven."""


def viewer(
    data: PreparedDataset, rows: np.ndarray | None = None, predictions: Mapping[str, np.ndarray] | None = None
) -> Player:
    """Step through cases of a prepared set: images, or slices of volumes, in several windows.

    `rows`: row numbers; None: the first training cases. `predictions` maps a title to what `execution.predict` returned for
    `rows`. With predictions the truth is hidden until the reader asks for it.
    Raises ValueError when a prediction has another number of cases than `rows`.
    """
    is_image, predictions = data.labels.ndim == 1, dict(predictions or {})
    rows = data.split("train")[:MOST_IMAGES] if rows is None else np.asarray(rows)
    for title, labels in predictions.items():
        if len(labels) != len(rows):
            raise ValueError(f"predictions[{title!r}]: {len(labels)} cases, expected {len(rows)}, one for each of rows")
    return (_images if is_image else _volumes)(data, rows, predictions)


def _images(data: PreparedDataset, rows: np.ndarray, predictions: dict[str, np.ndarray]) -> Player:
    windows, names = _windows(data), [name.replace("_", " ") for name in data.classes]

    def draw(window: str, number: int) -> Frame:
        row, (low, high) = rows[number - 1], windows[window]
        image = image_url(np.clip((data.images[row, 0] - low) * 255 / (high - low), 0, 255).astype(np.uint8))
        truth, caption = names[data.labels[row]], f"image {number} of {len(rows)}, {window}"
        if not predictions:
            return Frame(image, f"{caption}: {truth}")
        said = "; ".join(f"{title}: {names[labels[number - 1]]}" for title, labels in predictions.items())
        answer = f"<details><summary>Show the truth and the prediction</summary>truth: {truth}; {said}</details>"
        return Frame(image, caption, answer)

    return Player(draw, {"grey values": list(windows), "image": spread(len(rows), MOST_IMAGES)}, "image")


def _volumes(data: PreparedDataset, rows: np.ndarray, predictions: dict[str, np.ndarray]) -> Player:
    windows, names = _windows(data), [str(name) for name in data.cases["case"].iloc[rows[:MOST_VOLUMES]]]
    whole, depth = next(iter(windows)), data.images.shape[4]
    shows = [*([whole] if predictions else windows), "truth", *(f"truth and {title}" for title in predictions)]

    def draw(name: str, show: str, position: int) -> Frame:
        case, figure = names.index(name), plt.figure(figsize=(3.2, 3.2))
        volumes = [] if show in windows else [data.labels[rows[case]]]
        volumes += [labels[case] for title, labels in predictions.items() if show == f"truth and {title}"]
        axis = figure.add_axes((0, 0, 1, 1))
        axis.axis("off")
        draw_slice(axis, data, rows[case], volumes, index=position - 1, grey=windows.get(show, windows[whole]))
        key = f": {outline_key(data)}" * bool(volumes) + ", the truth solid, the prediction dashed" * (len(volumes) > 1)
        return Frame(figure_url(figure), f"{name}, slice {position} of {depth}, {show}{key}")

    slices = spread(depth, MOST_SLICES)
    controls = {"volume": names, "show": shows, "slice": slices}
    return Player(draw, controls, "slice", {"slice": slices[len(slices) // 2]})


def _windows(data: PreparedDataset) -> dict[str, tuple[float, float]]:
    """Return the stored values shown as black and white, by name: the whole range, and narrow windows at three levels.

    Names are in Hounsfield units where the manifest has the window of a CT, else in stored grey values.
    """
    settings = chosen(data.manifest.get("choices", []))
    window = settings.get("window")
    is_ct = settings.get("modality") == "ct" and isinstance(window, list)
    (low, high), unit = (window, "HU") if is_ct else ((0, 255), "grey values")
    found = {}
    for width, level in ((1, 0.5), (0.4, 0.2), (0.4, 0.5), (0.4, 0.8)):
        name = f"window {width * (high - low):.0f}, level {low + level * (high - low):.0f} ({unit})"
        found[name] = (255 * (level - width / 2), 255 * (level + width / 2))
    return found


def partition_explorer(data: PreparedDataset, study: StudyConfig) -> Player:
    """Partition the training cases by the rule that the runs use, for several numbers of clients and settings.

    Starts with the study's largest number of clients. A partition that is impossible is named in a sentence.
    """
    settings: dict[str, dict] = {"balanced": {"partition": "balanced"}}
    settings |= {f"unbalanced, seed {seed}": {"partition": "unbalanced", "seed": seed} for seed in (1, 2, 3)}
    ratios = sorted({*RATIOS, study.unbalance_ratio})
    settings |= {f"quantity skew, ratio {r:g}": {"partition": "quantity_skew", "unbalance_ratio": r} for r in ratios}
    if data.labels.ndim == 1:
        alphas = sorted({*ALPHAS, study.alpha}, reverse=True)
        settings |= {f"label skew, alpha {a:g}": {"partition": "label_skew", "alpha": a} for a in alphas}
        settings |= {f"missing classes, {n}": {"partition": "missing_classes", "n_missing": n} for n in (1, 2)}
    if study.group_column:
        settings[f"by group, {study.group_column}"] = {"partition": "by_group", "group_column": study.group_column}
    usual = study.runs(data.fingerprint, ("local",))[0]

    def draw(n_clients: int, setting: str) -> Frame:
        title = f"{n_clients} clients, {setting}"
        try:
            clients = clients_of(usual.model_copy(update={"n_clients": n_clients, **settings[setting]}), data)
        except UserError as refusal:
            return Frame("", f"{title}: {refusal}")
        picture = partitions(data, {title: clients})
        counts = picture.table.melt(["partition", "client"], var_name="name", value_name="cases").query("cases == 0")
        missing = "".join(f" Client {row.client} has no {row.name}." for row in counts.itertuples(index=False))
        return Frame(figure_url(picture.figure), picture.alt + missing, width=picture.width)

    largest = max(study.client_counts)
    controls = {"clients": sorted(study.client_counts), "partition": list(settings)}
    return Player(draw, controls, "partition", {"clients": largest})


def round_player(runs: Run | Sequence[Run]) -> Player:
    """Step through the rounds of finished runs: each client's training loss and weight, and the average's predictions.

    Shows the first three runs and at most six of their rounds. Raises ValueError when there is no run.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs:
        raise ValueError("runs: none, expected at least one finished run")
    by_name = {f"{arm_name(run.config)}, seed {run.config.seed}": run for run in runs[:MOST_RUNS]}
    rounds = spread(min(len(run.rounds) for run in by_name.values()), MOST_ROUNDS)
    controls = {"run": list(by_name), "round": rounds}
    return Player(lambda name, number: _round(by_name[name], name, number), controls, "round", {"round": rounds[-1]})


@styled
def _round(run: Run, name: str, number: int) -> Frame:
    """Draw the losses and weights of the clients up to a round, and the predictions of its average."""
    told = "loss" in run.clients  # with privacy = local no client tells it
    panels = told + (run.validation is not None)
    figure, axes = plt.subplots(panels, 1, figsize=(4.8, 1.2 + 2.4 * panels), layout="constrained", squeeze=False)
    ends = ""
    if told:
        losses = _losses(axes[0, 0], run.clients, number)
        title = "client: weight in the average" if run.config.mode == "federated" else "client: share of the cases"
        figure.legend(*axes[0, 0].get_legend_handles_labels(), title=title, loc="outside lower center", ncols=3, fontsize=9)
        low, high = (f"{losses[client]:.2f} (client {client})" for client in (losses.idxmin(), losses.idxmax()))
        ends = f"; training loss {low} to {high}"
    if run.validation is not None:
        _predictions(axes[-1, 0], run.validation[run.validation["round"] == number], run.config.task)
    metrics, now = tasks.get(run.config.task).PRIMARY, run.rounds.set_index("round").loc[number]
    words = ", ".join(f"{tasks.NAMES[metric]} {now[metric]:.3f}" for metric in metrics)
    caption = f"{name}, round {number} of {len(run.rounds)}: validation {words}{ends}"
    return Frame(figure_url(figure), caption, width=480)


def _losses(axis: plt.Axes, clients: pd.DataFrame, number: int) -> pd.Series:
    """Draw a line for each client up to a round, named with its weight; return the losses of that round by client."""
    table = clients.assign(client=clients["client"] + 1).pivot(index="round", columns="client", values=["loss", "n"])
    losses, n = table["loss"], table["n"].loc[number]
    for at, (client, loss) in enumerate(losses.loc[:number].items()):
        weight = f"{n[client] / n.sum():.2f}" if n[client] else "absent"
        weight = "not drawn" if pd.isna(n[client]) else weight
        style = {"color": SERIES[at % len(SERIES)], "ls": DASHES[at // len(SERIES) % len(DASHES)]}
        axis.plot(loss, marker=SIGNS[at % len(SIGNS)], ms=4, lw=1.4, label=f"client {client}: {weight}", **style)
    axis.set(title="training loss of each client", xlabel="round", xlim=(0.5, len(losses) + 0.5))
    axis.set_ylim(0, 1.05 * losses.max(axis=None))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.grid(axis="y")
    return losses.loc[number].dropna()


def _predictions(axis: plt.Axes, cases: pd.DataFrame, task: str) -> None:
    """Draw what a model makes of the validation cases: right and wrong by class, or the DSC of each volume."""
    if "truth" in cases:
        right = (cases["truth"] == cases["prediction"]).groupby(cases["truth"]).mean()
        names = [name.replace("_", "\n").replace(" ", "\n") for name in right.index]
        axis.bar(names, right, color=INK, label="right")
        axis.bar(names, 1 - right, bottom=right, color=PAGE, edgecolor=INK, hatch="//", label="wrong")
        axis.set_title("predictions of the average by true class")
    else:
        for metric, marker, inside in zip(tasks.get(task).PRIMARY, "os", (INK, PAGE), strict=True):
            axis.plot(range(1, len(cases) + 1), cases[metric], marker, color=INK, mfc=inside, label=tasks.NAMES[metric])
        axis.set(title="DSC of the average", xlabel="validation volume", xlim=(0.5, len(cases) + 0.5))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set(ylim=(0, 1.3), yticks=(0, 0.5, 1))
    axis.legend(loc="upper left", ncols=2)
