"""Figures of the run store: scores of the arms, learning curves, communication, clients, errors, calibration."""

from collections.abc import Sequence
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from fedlib import tasks
from fedlib.analysis.arms import arm_name, by_arm, resolve_margins
from fedlib.analysis.comparison import least_finished, optimizer_steps
from fedlib.analysis.scores import confusion as confusion_matrix
from fedlib.training.plateau import CLIMBING, PLATEAU, TOO_FEW
from fedlib.training.run_store import Run
from fedlib.views.plots.figure import COLOURS, DASHES, INK, MARKERS, PAGE, SOFT, AccessibleFigure, accessible_figure, styled

WIDE = 5.6
"""Width of a panel in inches. Panels stand below each other, so that a phone shows them at a legible size."""
AXES = {"rounds": "round", "steps": "optimizer steps of a client"}
ENDS = {PLATEAU: r"$\rightarrow$", CLIMBING: r"$\nearrow$", TOO_FEW: "$?$"}
"""Signs at the end of a learning curve, by the state of its training."""


@styled
def comparison(table: pd.DataFrame, level: str = "95%") -> AccessibleFigure:
    """Plot test scores by number of clients from `analysis.compare`, with intervals and the paper's figures."""
    metrics = list(table["metric"].unique())
    figure, axes = _panels(len(metrics))
    for axis, metric in zip(axes, metrics, strict=True):
        _comparison_panel(axis, table[table["metric"] == metric], level)
        axis.set_ylabel(f"test {tasks.NAMES[metric]}")
    axes[-1].set_xlabel("number of clients")
    _legend(figure)
    words = [
        f"{tasks.NAMES[metric]}: {', '.join(f'{arm_name(row)} {row.value:.3f}' for row in rows.itertuples())}"
        for metric, rows in table.groupby("metric", sort=False)
    ]
    numbers = table.assign(arm=[arm_name(row) for row in table.itertuples()], metric=table["metric"].map(tasks.NAMES))
    numbers = numbers[["arm", *["metric"][: len(metrics) - 1], "value", "low", "high", "paper"]].dropna(axis=1, how="all")
    return accessible_figure(figure, f"Test scores of every arm with {level} intervals. {'. '.join(words)}.", numbers)


def _comparison_panel(axis: plt.Axes, table: pd.DataFrame, level: str) -> None:
    arms = table[table["mode"] != "centralized"]
    counts, partitions = sorted(arms["n_clients"].unique()), [name for name in COLOURS if name in set(arms["partition"])]
    for row in table[table["mode"] == "centralized"].itertuples():
        axis.axhline(row.value, color=INK, lw=1.2, label=f"centralized, {level} interval")
        axis.axhspan(row.low, row.high, color=SOFT, alpha=0.18, lw=0)
    for (mode, partition), arm in arms.groupby(["mode", "partition"], sort=False):
        beside = partitions.index(partition) - (len(partitions) - 1) / 2
        shift = 0.2 * beside + (0.05 if mode == "local" else -0.05)
        at = [counts.index(n) + shift for n in arm["n_clients"]]
        style = {"ls": "-"} if mode == "federated" else {"ls": ":", "mfc": PAGE}
        error = np.abs(arm[["low", "high"]].to_numpy().T - arm["value"].to_numpy())
        style |= {"color": COLOURS[partition], "marker": MARKERS[partition]}
        axis.errorbar(at, arm["value"], error, label=f"{mode}, {partition}", capsize=3, elinewidth=1.1, **style)
    published = table[(table["mode"] == "federated") & table["paper"].notna()].drop_duplicates("n_clients")
    if len(published):
        at = [counts.index(n) for n in published["n_clients"]]
        axis.plot(at, published["paper"], "x", color=INK, ms=7, label="the paper, federated (its own data)")
    axis.set(xticks=range(len(counts)), xticklabels=counts)
    axis.set_xmargin(0.15)
    axis.grid(axis="y")


@styled
def differences(table: pd.DataFrame, level: str = "95%") -> AccessibleFigure:
    """Plot the difference from centralized of every arm of one metric, from `analysis.compare`, between the margins."""
    arms = table[table["difference"].notna()]
    figure, axis = plt.subplots(figsize=(WIDE + 0.8, 1.4 + 0.3 * len(arms)))
    margin, places = arms["margin"].max(), -np.arange(len(arms))
    axis.axvline(0, color=INK, ls="--", lw=1, label="no difference")
    for number, end in enumerate((-margin, margin)):
        axis.axvline(end, color=INK, ls=":", lw=1.2, label=f"margin, {margin:g}" if number == 0 else None)
    for mode, partition in arms[["mode", "partition"]].drop_duplicates().itertuples(index=False):
        one = ((arms["mode"] == mode) & (arms["partition"] == partition)).to_numpy()
        part = arms[one]
        error = np.abs(part[["difference_low", "difference_high"]].to_numpy().T - part["difference"].to_numpy())
        style = {"color": COLOURS[partition], "marker": MARKERS[partition], "mfc": PAGE if mode == "local" else None}
        axis.errorbar(part["difference"], places[one], xerr=error, ls="", capsize=3, label=f"{mode}, {partition}", **style)
    names = [arm_name(arm) for arm in arms.itertuples()]
    axis.set(yticks=places, yticklabels=names, ylim=(places.min() - 0.6, 0.6))
    axis.set(title=f"test {tasks.NAMES[arms['metric'].iloc[0]]}", xlabel=f"difference from centralized, {level} interval")
    axis.grid(axis="x")
    _legend(figure)
    words = ", ".join(f"{name} {value:+.3f}" for name, value in zip(names, arms["difference"], strict=True))
    numbers = arms.assign(arm=names)[["arm", "difference", "difference_low", "difference_high", "margin", "verdict"]]
    return accessible_figure(
        figure, f"Differences from centralized with {level} intervals and the margin {margin:g}: {words}.", numbers
    )


@styled
def learning_curves(
    runs: list[Run], metrics: Sequence[str] = (), x: Literal["rounds", "steps"] = "rounds"
) -> AccessibleFigure:
    """Plot the validation score of the global model, a line per arm and a panel per metric (default: the primary).

    Over rounds, or over optimizer steps: the mean over an arm's clients. A line is the mean over seeds, with a band from the
    lowest to the highest. The sign at its end says whether the training had reached its plateau (`training.plateau`).
    """
    metrics, arms, evidence = list(metrics or tasks.get(runs[0].config.task).PRIMARY), by_arm(runs), resolve_margins(runs)
    numbers, words = pd.concat([_rounds_of(run, metrics) for run in runs], ignore_index=True), []
    figure, axes = _panels(len(metrics))
    counts = sorted({n_clients for mode, n_clients, _ in arms if mode != "centralized"})
    for axis, metric in zip(axes, metrics, strict=True):
        ends = []
        for (mode, n_clients, partition), members in arms.items():
            name, style = arm_name(members[0].config), _line(mode, partition, n_clients, counts)
            by_round = numbers[numbers["arm"] == name].groupby("round")
            at, scores = by_round[AXES[x]].mean(), by_round[metric].mean()
            axis.plot(at, scores, label=name, **style)
            if len(members) > 1:
                low, high = by_round[metric].min(), by_round[metric].max()
                axis.fill_between(at, low, high, color=style["color"], alpha=0.12, lw=0)
            ends.append((name, at.iloc[-1], scores.iloc[-1], least_finished(members, metric, evidence), style["color"]))
        for _, last, score, state, colour in ends:
            axis.plot(last, score, marker=ENDS[state], ms=12, ls="", color=colour, label=state, clip_on=False)
        reached = ", ".join(f"{name} {score:.2f} ({state})" for name, _, score, state, _ in ends)
        words.append(f"{tasks.NAMES[metric]}: {reached}")
        axis.set_ylabel(f"validation {tasks.NAMES[metric]}")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(axis="y")
    axes[-1].set_xlabel(AXES[x])
    _legend(figure)
    alt = f"Validation scores by {AXES[x]}. After the last round, {'; '.join(words)}."
    table = numbers.groupby(["arm", "round"], sort=False, as_index=False).mean()
    return accessible_figure(figure, alt, _by_round(numbers, metrics) if x == "rounds" else table)


def _by_round(numbers: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Return a row per round and a column per arm (and metric, if several): the mean over seeds."""
    table = numbers.pivot_table(index="round", columns="arm", values=metrics, sort=False)
    table = table[[(metric, arm) for metric in metrics for arm in numbers["arm"].unique()]]
    table.columns = [arm if len(metrics) == 1 else f"{tasks.NAMES[metric]}, {arm}" for metric, arm in table.columns]
    return table.reset_index()


def _rounds_of(run: Run, metrics: list[str]) -> pd.DataFrame:
    """Return a row per round: arm, the columns of AXES, and the metrics."""
    steps = optimizer_steps(run).groupby(run.clients["round"]).sum().cumsum() / run.config.n_clients
    rounds = run.rounds[["round", *metrics]]
    return rounds.assign(**{"arm": arm_name(run.config), AXES["steps"]: rounds["round"].map(steps)})


def _line(mode: str, partition: str, n_clients: int, counts: list[int]) -> dict:
    """Return a line's style: colour and marker by partition, dashes by number of clients; centralized is thick."""
    if mode == "centralized":
        return {"color": INK, "lw": 2.6, "alpha": 0.85}
    dashes, marker = DASHES[counts.index(n_clients) % len(DASHES)], MARKERS[partition]
    return {"color": COLOURS[partition], "lw": 1.4, "ls": dashes, "marker": marker, "ms": 4}


@styled
def communication(runs: list[Run]) -> AccessibleFigure:
    """Plot the megabytes of weights sent both ways, per round and in all, by number of clients; federated runs only.

    A mean over partitions and seeds, which do not change it as long as every client replies.
    """
    rows = [(run.config.n_clients, run.config.rounds, run.result["bytes"] / 1e6) for run in runs]
    numbers = pd.DataFrame(rows, columns=["number of clients", "rounds", "MB in all"])
    numbers = numbers.groupby("number of clients", as_index=False).mean().astype({"rounds": int})
    numbers.insert(1, "MB per round", numbers["MB in all"] / numbers["rounds"])
    figure, axis = plt.subplots(figsize=(WIDE, 3.6))
    bars = axis.bar(range(len(numbers)), numbers["MB per round"], 0.5, color=COLOURS["balanced"])
    labels = [f"{_mb(each)} a round\n{_mb(total)} in all" for _, each, _, total in numbers.itertuples(index=False)]
    axis.bar_label(bars, labels, fontsize=9, padding=3)
    axis.set(xlabel="number of clients", xticks=range(len(numbers)), xticklabels=numbers["number of clients"])
    axis.set_ylabel("MB per round, both ways")
    axis.set_xlim(-0.75, len(numbers) - 0.25)
    axis.margins(y=0.2)
    words = [f"{n} clients: {label}".replace("\n", ", ") for n, label in zip(numbers.iloc[:, 0], labels, strict=True)]
    return accessible_figure(figure, f"Weights sent by federated training. {'; '.join(words)}.", numbers)


def _mb(value: float) -> str:
    """Return megabytes with three significant digits at least, never in powers of ten."""
    return f"{value:,.0f} MB" if value >= 100 else f"{value:.3g} MB"


@styled
def client_scores(runs: list[Run], metric: str) -> AccessibleFigure:
    """Plot the test score of each client's local model, beside the federation of the same clients where there is one."""
    numbers = _client_scores(runs, metric)
    local = numbers[numbers["model"] == "local"]
    together = numbers[(numbers["model"] == "federated") & numbers["number of clients"].isin(local["number of clients"])]
    partitions = [name for name in COLOURS if name in set(local["partition"])]
    figure, axis = plt.subplots(figsize=(WIDE, 4))
    look = {
        "x": "number of clients",
        "y": "score",
        "hue": "partition",
        "hue_order": partitions,
        "palette": COLOURS,
        "ax": axis,
    }
    sns.stripplot(local, dodge=True, jitter=False, size=5, alpha=0.6, legend=False, **look)
    if len(together):
        dodge = 0.4 if len(partitions) > 1 else False  # seaborn divides by the number of hues but one
        sns.pointplot(together, dodge=dodge, markers="_", ms=22, ls="", errorbar=None, legend=False, **look)
    for partition in partitions:
        axis.plot([], [], "o", color=COLOURS[partition], label=f"each local model, {partition}")
        axis.plot([], [], lw=3, color=COLOURS[partition], label=f"their federation, {partition}")
    axis.set_ylabel(f"test {tasks.NAMES[metric]}")
    axis.grid(axis="y")
    _legend(figure)
    words = "; ".join(
        f"{n} clients {partition}: {part['score'].min():.3f} to {part['score'].max():.3f}"
        for (n, partition), part in local.groupby(["number of clients", "partition"])
    )
    return accessible_figure(
        figure, f"Test {tasks.NAMES[metric]} of the clients' local models, lowest to highest. {words}.", numbers
    )


def _client_scores(runs: list[Run], metric: str) -> pd.DataFrame:
    """Return a row per local model and per federation: number of clients, partition, seed, client, model, score."""
    rows = []
    for run in runs:
        arm = (run.config.n_clients, run.config.partition, run.config.seed)
        if run.config.mode == "local":
            scores = run.clients.dropna(subset=f"test_{metric}").set_index("client")[f"test_{metric}"]
            rows += [(*arm, str(client + 1), "local", score) for client, score in scores.items()]
        elif run.config.mode == "federated":
            rows.append((*arm, "all", "federated", run.result[metric]))
    columns = ["number of clients", "partition", "seed", "client", "model", "score"]
    return pd.DataFrame(rows, columns=columns).sort_values(columns[:3], kind="stable")


@styled
def confusion(runs: list[Run]) -> AccessibleFigure:
    """Plot confusion matrices on the test split: rows are the true classes, cells the share of that class's patients."""
    figure, axes = plt.subplots(len(runs), 1, figsize=(4.8, 3.6 * len(runs)), squeeze=False)
    numbers, words = [], []
    for axis, run in zip(axes[:, 0], runs, strict=True):
        matrix = confusion_matrix(run.cases)
        share = matrix.div(matrix.sum(axis=1).replace(0, np.nan), axis=0).to_numpy()
        ticks = [name.replace("_", " ") for name in matrix]
        sns.heatmap(share, annot=True, fmt=".2f", cmap="Blues", cbar=False, vmin=0, vmax=1, ax=axis,
                    xticklabels=ticks, yticklabels=ticks, square=True, annot_kws={"size": 9})  # fmt: skip
        axis.set(title=arm_name(run.config), xlabel="predicted", ylabel="true")
        axis.tick_params(axis="x", rotation=30)
        axis.tick_params(axis="y", rotation=0)
        table = pd.DataFrame(share, columns=[f"predicted {tick}" for tick in ticks])
        table.insert(0, "true", ticks)
        table.insert(0, "arm", arm_name(run.config))
        numbers.append(table)
        found = ", ".join(f"{name} {value:.2f}" for name, value in zip(ticks, share.diagonal(), strict=True))
        words.append(f"{arm_name(run.config)}: {found}")
    return accessible_figure(
        figure, f"Confusion matrices on the test split. Sensitivity, {'; '.join(words)}.", pd.concat(numbers)
    )


@styled
def reliability(table: pd.DataFrame) -> AccessibleFigure:
    """Plot the share of correct predictions against the confidence of the model, from `analysis.calibration`."""
    arms = list(table.groupby(["mode", "n_clients", "partition"], sort=False))
    figure, axes = plt.subplots(len(arms), 1, figsize=(4.2, 3.2 * len(arms)), sharex=True, squeeze=False)
    words, numbers = [], []
    for axis, (_, arm) in zip(axes[:, 0], arms, strict=True):
        name, ece = arm_name(next(arm.itertuples())), arm["ece"].iloc[0]
        width = arm["high"] - arm["low"]
        axis.bar(arm["low"], arm["accuracy"], width, align="edge", color=COLOURS["balanced"], edgecolor=PAGE)
        axis.plot([0, 1], [0, 1], "--", color=SOFT, lw=1)
        axis.set(title=f"{name}\nECE {ece:.3f}", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
        words.append(f"{name} {ece:.3f}")
        numbers.append(arm.drop(columns=["mode", "n_clients", "partition", "bin", "ece"]).assign(arm=name))
    axes[-1, 0].set_xlabel("confidence")
    alt = (
        f"Reliability: share of right predictions in each bin of confidence. Expected calibration error: {', '.join(words)}."
    )
    table = pd.concat(numbers)
    return accessible_figure(figure, alt, table[["arm", *table.columns[:-1]]])


def _panels(n: int) -> tuple[plt.Figure, np.ndarray]:
    """Return `n` panels below each other, with one x axis."""
    figure, axes = plt.subplots(n, 1, figsize=(WIDE, 1.4 + 2.6 * n), sharex=True, squeeze=False)
    return figure, axes[:, 0]


def _legend(figure: plt.Figure) -> None:
    """Add one legend below the panels that names what any of them shows."""
    panels = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes]
    handles = {label: handle for panel in panels for handle, label in panel}
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=2)
