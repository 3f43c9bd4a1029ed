"""Pictures of the run store: how the arms compare, how they learned, what travelled, how clients differ."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from fedlib import tasks
from fedlib.analysis.arms import arm_name
from fedlib.analysis.scores import confusion as confusion_matrix
from fedlib.training.run_store import Run
from fedlib.views.plots.picture import COLOURS, DASHES, INK, MARKERS, PAGE, SOFT, Picture, picture, styled


@styled
def comparison(table: pd.DataFrame, level: str = "95%") -> Picture:
    """Test score by number of clients, from `statistics.compare`: intervals (of that level), the paper's figures."""
    metrics = list(table["metric"].unique())
    figure, axes = plt.subplots(1, len(metrics), figsize=(5.2 * len(metrics), 4), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        _comparison_panel(axis, table[table["metric"] == metric], level)
        axis.set_ylabel(f"test {tasks.NAMES[metric]}")
    _legend(figure, columns=2 * len(metrics))
    own = table[table["metric"] == metrics[0]]
    words = ", ".join(f"{arm_name(row)} {row.value:.3f}" for row in own.itertuples())
    numbers = table.assign(arm=[arm_name(row) for row in table.itertuples()], metric=table["metric"].map(tasks.NAMES))
    numbers = numbers[["arm", *["metric"][: len(metrics) - 1], "value", "low", "high", "paper"]].dropna(axis=1, how="all")
    return picture(figure, f"Test {tasks.NAMES[metrics[0]]} of every arm with {level} intervals: {words}.", numbers)


def _comparison_panel(axis: plt.Axes, table: pd.DataFrame, level: str) -> None:
    dealt = table[table["mode"] != "centralized"]
    counts, partitions = sorted(dealt["n_clients"].unique()), [name for name in COLOURS if name in set(dealt["partition"])]
    for row in table[table["mode"] == "centralized"].itertuples():
        axis.axhline(row.value, color=INK, lw=1.2, label=f"centralized, {level} interval")
        axis.axhspan(row.low, row.high, color=SOFT, alpha=0.18, lw=0)
    for (mode, partition), arm in dealt.groupby(["mode", "partition"], sort=False):
        beside = partitions.index(partition) - (len(partitions) - 1) / 2
        shift = 0.2 * beside + (0.05 if mode == "local" else -0.05)
        at = [counts.index(n) + shift for n in arm["n_clients"]]
        style = {"ls": "-"} if mode == "federated" else {"ls": ":", "mfc": PAGE}
        spread = np.abs(arm[["low", "high"]].to_numpy().T - arm["value"].to_numpy())
        style |= {"color": COLOURS[partition], "marker": MARKERS[partition]}
        axis.errorbar(at, arm["value"], spread, label=f"{mode}, {partition}", capsize=3, elinewidth=1.1, **style)
    published = table[(table["mode"] == "federated") & table["paper"].notna()].drop_duplicates("n_clients")
    if len(published):
        at = [counts.index(n) for n in published["n_clients"]]
        axis.plot(at, published["paper"], "x", color=INK, ms=7, label="the paper, federated (its own data)")
    axis.set(xlabel="number of clients", xticks=range(len(counts)), xticklabels=counts)
    axis.set_xmargin(0.15)
    axis.grid(axis="y")


@styled
def learning_curves(runs: list[Run], metrics: Sequence[str] = ()) -> Picture:
    """Validation score of the global model after each round, a line per arm: the mean over its seeds, a band from the
    lowest to the highest. One panel per metric (the primary ones, if none is named).
    """
    metrics = list(metrics or tasks.get(runs[0].config.task).PRIMARY)
    numbers = _rounds_of(runs, metrics)
    figure, axes = plt.subplots(1, len(metrics), figsize=(5.2 * len(metrics), 4), squeeze=False)
    counts = sorted(numbers.loc[numbers["mode"] != "centralized", "n_clients"].unique())
    for axis, metric in zip(axes[0], metrics, strict=True):
        for (mode, partition, n_clients), arm in numbers.groupby(["mode", "partition", "n_clients"], sort=False):
            by_round = arm.groupby("round")[metric]
            style = _line(mode, partition, counts.index(n_clients) if n_clients in counts else 0)
            axis.plot(by_round.mean(), label=arm["arm"].iloc[0], **style)
            if arm["seed"].nunique() > 1:
                low, high = by_round.min(), by_round.max()
                axis.fill_between(low.index, low, high, color=style["color"], alpha=0.12, lw=0)
        axis.set(xlabel="round", ylabel=f"validation {tasks.NAMES[metric]}")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(axis="y")
    _legend(figure, columns=2 * len(metrics))
    last = numbers[numbers["round"] == numbers["round"].max()].groupby("arm", sort=False)[metrics[0]].mean()
    words = ", ".join(f"{arm} {value:.2f}" for arm, value in last.items())
    alt = f"Validation {tasks.NAMES[metrics[0]]} by round. After the last round: {words}."
    return picture(figure, alt, _by_round(numbers, metrics))


def _by_round(numbers: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """A row per round and a column per arm (and metric, if several): the mean over seeds, with lowest and highest."""
    if numbers["seed"].nunique() == 1:
        table = numbers.pivot(index="round", columns="arm", values=metrics)
    else:
        each = numbers.groupby(["round", "arm"])[metrics]
        low, mean, high = each.min(), each.mean(), each.max()
        words = {
            metric: [f"{m:.3f} ({a:.3f}–{b:.3f})" for m, a, b in zip(mean[metric], low[metric], high[metric], strict=True)]
            for metric in metrics
        }
        table = pd.DataFrame(words, index=mean.index).unstack("arm")
    table = table[[(metric, arm) for metric in metrics for arm in numbers["arm"].unique()]]
    table.columns = [arm if len(metrics) == 1 else f"{tasks.NAMES[metric]}, {arm}" for metric, arm in table.columns]
    return table.reset_index()


def _rounds_of(runs: list[Run], metrics: list[str]) -> pd.DataFrame:
    """The rounds of several runs in one table, with what names their arms."""
    tables = [
        run.rounds[["round", *metrics]].assign(
            arm=arm_name(run.config), **run.config.model_dump(include={"mode", "partition", "n_clients", "seed"})
        )
        for run in runs
    ]
    return pd.concat(tables, ignore_index=True)


def _line(mode: str, partition: str, rank: int) -> dict:
    """Colour and marker by partition, dashes by the rank of the number of clients; centralized is the thick one."""
    if mode == "centralized":
        return {"color": INK, "lw": 2.6, "alpha": 0.85}
    dashes, marker = DASHES[rank % len(DASHES)], MARKERS[partition]
    return {"color": COLOURS[partition], "lw": 1.4, "ls": dashes, "marker": marker, "ms": 4}


@styled
def traffic(runs: list[Run]) -> Picture:
    """Megabytes that weights took both ways, in one round and in all, against the number of clients; federated runs only.

    A mean over partitions and seeds, which change nothing in it as long as every client answers.
    """
    rows = [(run.config.n_clients, run.config.rounds, run.result["bytes"] / 1e6) for run in runs]
    numbers = pd.DataFrame(rows, columns=["number of clients", "rounds", "MB in all"])
    numbers = numbers.groupby("number of clients", as_index=False).mean().astype({"rounds": int})
    numbers.insert(1, "MB per round", numbers["MB in all"] / numbers["rounds"])
    figure, axis = plt.subplots(figsize=(5.2, 4))
    bars = axis.bar(range(len(numbers)), numbers["MB per round"], 0.5, color=COLOURS["balanced"])
    labels = [f"{each:.3g} MB a round\n{total:.3g} MB in all" for _, each, _, total in numbers.itertuples(index=False)]
    axis.bar_label(bars, labels, fontsize=9, padding=3)
    axis.set(xlabel="number of clients", xticks=range(len(numbers)), xticklabels=numbers["number of clients"])
    axis.set_ylabel("MB per round, both ways")
    axis.set_xlim(-0.75, len(numbers) - 0.25)
    axis.margins(y=0.2)
    words = "; ".join(
        f"{n} clients: {each:.3g} MB a round, {total:.3g} MB in all" for n, each, _, total in numbers.itertuples(index=False)
    )
    return picture(figure, f"What federation sent. {words}.", numbers)


@styled
def spread(runs: list[Run], metric: str) -> Picture:
    """Test score of each client's own model (local-only), with the federation of the same clients where there is one."""
    numbers = _clients_of(runs, metric)
    alone = numbers[numbers["model"] == "its own"]
    counts = sorted(alone["number of clients"].unique())
    partitions = [name for name in COLOURS if name in set(alone["partition"])]
    figure, axis = plt.subplots(figsize=(5.2, 4))
    for number, partition in enumerate(partitions):
        shift = 0.3 * (number - (len(partitions) - 1) / 2)
        own, look = alone[alone["partition"] == partition], {"color": COLOURS[partition]}
        pairs = zip(own["client"], own["number of clients"], strict=True)
        at = [counts.index(n) + shift + 0.2 * ((int(client) - 0.5) / n - 0.5) for client, n in pairs]
        label = f"each client alone, {partition}"
        axis.plot(at, own["score"], ls="", marker=MARKERS[partition], mfc="none", ms=5, label=label, **look)
        together = numbers[(numbers["model"] == "federated") & (numbers["partition"] == partition)]
        together = together[together["number of clients"].isin(counts)].groupby("number of clients")["score"].mean()
        at = np.array([counts.index(n) + shift for n in together.index])
        if len(at):
            axis.hlines(together, at - 0.12, at + 0.12, lw=2.6, label=f"their federation, {partition}", **look)
    axis.set(xlabel="number of clients", xticks=range(len(counts)), xticklabels=counts, ylabel=f"test {tasks.NAMES[metric]}")
    axis.set_xlim(-0.6, len(counts) - 0.4)
    axis.grid(axis="y")
    _legend(figure, columns=2)
    words = "; ".join(
        f"{n} clients {partition}: {own['score'].min():.3f} to {own['score'].max():.3f}"
        for (n, partition), own in alone.groupby(["number of clients", "partition"])
    )
    alt = f"Test {tasks.NAMES[metric]} of the clients that stay alone, lowest to highest. {words}."
    return picture(figure, alt, _side_by_side(numbers))


def _side_by_side(numbers: pd.DataFrame) -> pd.DataFrame:
    """A row per number of clients, partition and seed: the clients' own scores in their order, and their federation's."""
    arm, is_own = ["number of clients", "partition", "seed"], numbers["model"] == "its own"
    alone = numbers[is_own].groupby(arm)["score"]
    listed = alone.agg(lambda scores: ", ".join(f"{score:.3f}" for score in scores))
    together = numbers[~is_own].set_index(arm)["score"]
    columns = {"each client alone": listed, "lowest": alone.min(), "highest": alone.max(), "their federation": together}
    return pd.DataFrame(columns).dropna(subset="each client alone").reset_index()


def _clients_of(runs: list[Run], metric: str) -> pd.DataFrame:
    """A row per client's own model, and one per federation: number of clients, partition, seed, client, model, score."""
    rows = []
    for run in runs:
        config = run.config
        arm = {"number of clients": config.n_clients, "partition": config.partition, "seed": config.seed}
        if config.mode == "local":
            scores = run.clients.dropna(subset=f"test_{metric}").set_index("client")[f"test_{metric}"]
            rows += [arm | {"client": str(c + 1), "model": "its own", "score": score} for c, score in scores.items()]
        elif config.mode == "federated":
            rows.append(arm | {"client": "all", "model": "federated", "score": run.result[metric]})
    return pd.DataFrame(rows).sort_values(["number of clients", "partition", "seed"], kind="stable")


@styled
def confusion(runs: list[Run]) -> Picture:
    """Confusion matrices on the test split: rows are the truth, cells the share of its patients."""
    figure, axes = plt.subplots(1, len(runs), figsize=(4.4 * len(runs), 3.6), squeeze=False)
    numbers = []
    for axis, run in zip(axes[0], runs, strict=True):
        matrix = confusion_matrix(run.cases)
        share = matrix.div(matrix.sum(axis=1).replace(0, np.nan), axis=0).to_numpy()
        ticks = [name.replace("_", " ") for name in matrix]
        sns.heatmap(share, annot=True, fmt=".2f", cmap="Blues", cbar=False, vmin=0, vmax=1, ax=axis,
                    xticklabels=ticks, yticklabels=ticks, square=True, annot_kws={"size": 8})  # fmt: skip
        axis.set_title(arm_name(run.config))
        axis.set(xlabel="predicted", ylabel="true")
        axis.tick_params(axis="x", rotation=30)
        table = pd.DataFrame(share, columns=[f"predicted {tick}" for tick in ticks])
        table.insert(0, "true", ticks)
        table.insert(0, "arm", arm_name(run.config))
        numbers.append(table)
    diagonal = ", ".join(f"{name} {value:.2f}" for name, value in zip(ticks, share.diagonal(), strict=True))
    alt = f"Confusion matrices on the test split. Sensitivity, {arm_name(runs[-1].config)}: {diagonal}."
    return picture(figure, alt, pd.concat(numbers))


@styled
def reliability(table: pd.DataFrame) -> Picture:
    """How often an answer is right against how sure the model is of it, from `statistics.calibration`; a panel per arm."""
    arms = list(table.groupby(["mode", "n_clients", "partition"], sort=False))
    figure, axes = plt.subplots(1, len(arms), figsize=(3.6 * len(arms), 3.6), sharey=True, squeeze=False)
    words, numbers = [], []
    for axis, (_, own) in zip(axes[0], arms, strict=True):
        name, ece = arm_name(next(own.itertuples())), own["ece"].iloc[0]
        width = own["high"] - own["low"]
        axis.bar(own["low"], own["accuracy"], width, align="edge", color=COLOURS["balanced"], edgecolor=PAGE)
        axis.plot([0, 1], [0, 1], "--", color=SOFT, lw=1)
        axis.set(title=f"{name}\nECE {ece:.3f}", xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
        words.append(f"{name} {ece:.3f}")
        numbers.append(own.drop(columns=["mode", "n_clients", "partition", "bin", "ece"]).assign(arm=name))
    axes[0, 0].set_ylabel("share that is right")
    alt = f"Reliability: share of right answers in each bin of confidence. Expected calibration error: {', '.join(words)}."
    table = pd.concat(numbers)
    return picture(figure, alt, table[["arm", *table.columns[:-1]]])


def _legend(figure: plt.Figure, columns: int) -> None:
    """One legend below the panels, of what any of them has: nothing is hidden behind it."""
    panels = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes]
    handles = {label: handle for panel in panels for handle, label in panel}
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=columns)
