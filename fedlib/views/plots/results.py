"""Figures of the run store: scores of the arms, learning curves, communication, clients, errors, calibration."""

from collections.abc import Sequence
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from fedlib import tasks
from fedlib.analysis.arms import arm_name, by_arm
from fedlib.analysis.comparison import least_finished, optimizer_steps
from fedlib.analysis.scores import confusion as confusion_matrix
from fedlib.training.plateau import CLIMBING, PLATEAU, TOO_FEW
from fedlib.training.run_store import Run
from fedlib.views.plots.figure import COLOURS, DASHES, INK, MARKERS, PAGE, SOFT, AccessibleFigure, accessible_figure, styled

WIDE = 5.6
"""Width of a panel in inches. Panels stand below each other, so that a phone shows them at a legible size."""
AXES = {"rounds": "round", "steps": "optimizer steps of a client"}
PALE = sns.diverging_palette(15, 250, s=90, l=65, as_cmap=True)
"""Red, white, blue: ink is legible on all of it."""
ENDS = {PLATEAU: r"$\rightarrow$", CLIMBING: r"$\nearrow$", TOO_FEW: "$?$"}
"""Signs at the end of a learning curve, by the state of its training."""


@styled
def comparison(table: pd.DataFrame, level: str = "95%") -> AccessibleFigure:
    """Plot test scores by number of clients from `analysis.compare`, with intervals and the paper's figures."""
    columns = ["value", "low", "high"]
    figure, axes = _by_clients(table, columns, "test {}")
    for axis, (_, arms) in zip(axes, table.groupby("metric", sort=False), strict=True):
        for row in arms[arms["mode"] == "centralized"].itertuples():
            axis.axhline(row.value, color=INK, lw=1.2, label=f"centralized, {level} interval")
            axis.axhspan(row.low, row.high, color=SOFT, alpha=0.18, lw=0)
        published = arms[(arms["mode"] == "federated") & arms["paper"].notna()].drop_duplicates("n_clients")
        if len(published):
            style = {"ls": "", "marker": "x", "color": INK, "ms": 7}
            axis.plot(published["n_clients"], published["paper"], label="the paper, federated (its own data)", **style)
    return _with_numbers(figure, table, [*columns, "paper"], f"Test scores of every arm with {level} intervals")


@styled
def differences(table: pd.DataFrame, level: str = "95%") -> AccessibleFigure:
    """Plot each arm's difference from centralized by number of clients, from `analysis.compare`, between the margins."""
    table, columns = table[table["difference"].notna()], ["difference", "difference_low", "difference_high"]
    figure, axes = _by_clients(table, columns, "difference from centralized,\ntest {}")
    for axis, margin in zip(axes, table.groupby("metric", sort=False)["margin"].max(), strict=True):
        axis.axhline(0, color=INK, ls="--", lw=1, label="no difference")
        axis.axhline(-margin, color=INK, ls=":", lw=1.2, label=f"margin, {margin:g}")
        axis.axhline(margin, color=INK, ls=":", lw=1.2)
    words = f"Differences from centralized with {level} intervals, beside the margin"
    return _with_numbers(figure, table, [*columns, "margin", "verdict"], words)


def _by_clients(table: pd.DataFrame, columns: list[str], label: str) -> tuple[plt.Figure, np.ndarray]:
    """Plot a value with its interval, in `columns`, by number of clients: a panel per metric, named by `label`."""
    groups = table.groupby("metric", sort=False)
    figure, axes = _panels(groups.ngroups)
    arms = table[table["mode"] != "centralized"]
    kinds, counts = [name for name in COLOURS if name in set(arms["partition"])], sorted(arms["n_clients"].unique())
    for axis, metric in zip(axes, groups.groups, strict=True):
        for (mode, kind), arm in arms[arms["metric"] == metric].groupby(["mode", "partition"], sort=False):
            aside = 0.2 * (kinds.index(kind) - (len(kinds) - 1) / 2) + (0.05 if mode == "local" else -0.05)
            middle, low, high = arm[columns].to_numpy().T
            style = {"ls": "-"} if mode == "federated" else {"ls": ":", "mfc": PAGE}
            style |= {"color": COLOURS[kind], "marker": MARKERS[kind], "label": f"{mode}, {kind}".replace("_", " ")}
            axis.errorbar(
                arm["n_clients"] * 2**aside, middle, (middle - low, high - middle), capsize=3, elinewidth=1.1, **style
            )
        axis.set_xscale("log", base=2)
        axis.minorticks_off()
        if counts:  # else the centralized run alone is done
            axis.set(xticks=counts, xticklabels=counts, xlim=(counts[0] / 1.6, counts[-1] * 1.6))
        axis.set_ylabel(label.format(tasks.NAMES[metric]))
        axis.grid(axis="y")
    axes[-1].set_xlabel("number of clients")
    return figure, axes


def _with_numbers(figure: plt.Figure, table: pd.DataFrame, columns: list[str], words: str) -> AccessibleFigure:
    """Add the legend, the first of `columns` in words, and a table of all of them."""
    _legend(figure)
    numbers = table.assign(arm=[arm_name(arm) for arm in table.itertuples()], metric=table["metric"].map(tasks.NAMES))
    found = [
        f"{metric}: {', '.join(f'{arm} {value:z.3f}' for arm, value in zip(part['arm'], part[columns[0]], strict=True))}"
        for metric, part in numbers.groupby("metric", sort=False)
    ]
    return accessible_figure(
        figure, f"{words}. {'. '.join(found)}.", numbers[["arm", *columns, "metric"]].dropna(axis=1, how="all")
    )


@styled
def learning_curves(
    runs: list[Run], metrics: Sequence[str] = (), x: Literal["rounds", "steps"] = "rounds"
) -> AccessibleFigure:
    """Plot the validation score of the global model, a line per arm and a panel per metric (default: the primary).

    Over rounds, or over optimizer steps: the mean over an arm's clients. A line is the mean over seeds, with a band from the
    lowest to the highest. The sign at its end says whether the training had reached its plateau (`training.plateau`).
    """
    metrics, arms, evidence = list(metrics or tasks.get(runs[0].config.task).PRIMARY), by_arm(runs), runs[0].config
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
    return accessible_figure(figure, alt, table)


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
    rows = [(run.config.n_clients, run.result["bytes"] / 1e6 / run.config.rounds, run.result["bytes"] / 1e6) for run in runs]
    numbers = pd.DataFrame(rows, columns=["number of clients", "MB per round", "MB in all"])
    numbers = numbers.groupby("number of clients", as_index=False).mean()
    figure, axis = plt.subplots(figsize=(WIDE, 3.6))
    sns.barplot(
        numbers, x="number of clients", y="MB per round", width=0.5, color=COLOURS["balanced"], saturation=1, ax=axis
    )
    labels = [f"{one:,.1f} MB a round\n{total:,.1f} MB in all" for _, one, total in numbers.itertuples(index=False)]
    axis.bar_label(axis.containers[0], labels, fontsize=9, padding=3)
    axis.set(ylabel="MB per round, both ways", xlim=(-0.75, len(numbers) - 0.25))
    axis.margins(y=0.2)
    words = [f"{n} clients: {label}".replace("\n", ", ") for n, label in zip(numbers.iloc[:, 0], labels, strict=True)]
    return accessible_figure(figure, f"Weights sent by federated training. {'; '.join(words)}.", numbers)


@styled
def by_site(tables: dict[str, pd.DataFrame]) -> AccessibleFigure:
    """Plot tables of `analysis.by_site` by title: each model's score on the test cases of each site.

    A cell also has the difference from the site's own local model, and its colour: blue is better, red is worse.
    """
    numbers = pd.concat(tables, names=["partition"]).reset_index("partition")
    reach = np.nanmax([numbers["difference"].abs().max(), 0.01])  # white stays white where nothing differs
    heights, words = [table["model"].nunique() for table in tables.values()], []
    sizes = {"figsize": (WIDE, 1 + sum(0.45 * rows + 0.8 for rows in heights)), "height_ratios": heights}
    colours = {"cmap": PALE, "vmin": -reach, "vmax": reach, "cbar": False, "linewidths": 2, "linecolor": PAGE}
    figure, axes = plt.subplots(len(tables), 1, squeeze=False, **sizes)
    for axis, (title, table) in zip(axes[:, 0], tables.items(), strict=True):
        patients, size = table.groupby("site")["n_patients"].max(), min(8, 72 / table["site"].nunique())
        differences, inside = _site_cells(table)
        written = {"annot": inside, "fmt": "", "annot_kws": {"size": size, "color": INK}}
        sns.heatmap(differences.fillna(0), mask=inside == "no test case", ax=axis, **written, **colours)
        axis.set_xticklabels([f"site {site}\nn = {n}" for site, n in patients.items()], fontsize=size)
        axis.set(title=title.replace("_", " "), xlabel="", ylabel="", facecolor="lightgrey")
        axis.tick_params(axis="y", rotation=0)
        told = inside[~inside.index.str.startswith("local")].replace("\n", " ", regex=True)
        words += [f"{title}, {name}: {', '.join(row)}" for name, row in told.iterrows()]
    label, place = "difference from the site's own model", {"fraction": 0.02, "pad": 0.02, "aspect": 40}
    bar = figure.colorbar(axis.collections[0], ax=axes, location="bottom", **place)
    bar.set_label(f"{label} (red: worse, blue: better)")
    alt = f"Scores of joint models at each site, each with the {label}. {'; '.join(words)}."
    return accessible_figure(figure, alt, numbers)


def _site_cells(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the differences from the own model, models by sites, and what the cells say: score and difference."""
    cells = table.pivot(index="model", columns="site", values=["value", "difference"]).loc[table["model"].unique()]
    scores, differences = cells["value"], cells["difference"]
    inside = scores.map("{:.3f}".format) + differences.map("\n{:+z.3f}".format).replace("\n+nan", "")
    for site in scores:
        inside.loc[inside.index == f"local {site}", site] += "\nown"
    return differences, inside.where(scores.notna(), "no test case")


@styled
def confusion(runs: list[Run]) -> AccessibleFigure:
    """Plot confusion matrices on the test split: rows are the true classes, cells the share of that class's patients."""
    figure, axes = plt.subplots(len(runs), 1, figsize=(4.8, 3.6 * len(runs)), squeeze=False)
    names, shares, words = [arm_name(run.config) for run in runs], [], []
    for axis, run, name in zip(axes[:, 0], runs, names, strict=True):
        matrix = confusion_matrix(run.cases)
        share = matrix.div(matrix.sum(axis=1), axis=0)  # NaN for a class without a case
        share.index = share.columns = [label.replace("_", " ") for label in matrix]
        sns.heatmap(share, annot=True, fmt=".2f", cmap="Blues", cbar=False, vmin=0, vmax=1, square=True, ax=axis)
        axis.set(title=name, xlabel="predicted", ylabel="true")
        axis.tick_params(axis="y", rotation=0)
        plt.setp(axis.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
        shares.append(share)
        words.append(f"{name}: {', '.join(f'{label} {share.loc[label, label]:.2f}' for label in share)}")
    table = pd.concat(shares, keys=names, names=["arm", "true class"]).add_prefix("predicted ").reset_index()
    return accessible_figure(figure, f"Confusion matrices on the test split. Sensitivity, {'; '.join(words)}.", table)


@styled
def reliability(table: pd.DataFrame) -> AccessibleFigure:
    """Plot the share of correct predictions against the confidence of the model, from `analysis.calibration`."""
    table = table.assign(arm=[arm_name(row) for row in table.itertuples()])
    errors = table.groupby("arm", sort=False)["ece"].first()
    figure, axes = plt.subplots(len(errors), 1, figsize=(4.2, 3.2 * len(errors)), sharex=True, squeeze=False)
    for axis, (name, arm) in zip(axes[:, 0], table.groupby("arm", sort=False), strict=True):
        width = arm["high"] - arm["low"]
        style = {"align": "edge", "color": COLOURS["balanced"], "edgecolor": PAGE, "label": "answers of this confidence"}
        axis.bar(arm["low"], arm["accuracy"], width, **style)
        axis.plot([0, 1], [0, 1], "--", color=SOFT, lw=1, label="calibrated")
        axis.set(title=f"{name}\nECE {errors[name]:.3f}", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    axes[-1, 0].set_xlabel("confidence")
    _legend(figure)
    words = ", ".join(f"{name} {error:.3f}" for name, error in errors.items())
    alt = f"Reliability: share of right predictions by confidence. Expected calibration error: {words}."
    return accessible_figure(figure, alt, table[["arm", "low", "high", "patients", "confidence", "accuracy"]])


def _panels(n: int) -> tuple[plt.Figure, np.ndarray]:
    """Return `n` panels below each other, with one x axis."""
    figure, axes = plt.subplots(n, 1, figsize=(WIDE, 1.4 + 2.6 * n), sharex=True, squeeze=False)
    return figure, axes[:, 0]


def _legend(figure: plt.Figure) -> None:
    """Add one legend below the panels that names what any of them shows."""
    panels = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes]
    handles = {label: handle for panel in panels for handle, label in panel}
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=2)
