"""How cases are dealt to clients, under the reader's hand."""

from html import escape
from typing import Any

import numpy as np

from fedlib.config import StudyConfig, UserError
from fedlib.data import partition
from fedlib.data.dataset import PreparedSet
from fedlib.views.widgets import svg
from fedlib.views.widgets.explorer import Explorer, Shown

MOST_CLIENTS, MOST_SEED = 16, 20
RATIOS = (1, 2, 3, 4, 6, 8, 10, 16)
NEEDS = {"unbalanced": "ratio", "label_skew": "alpha", "by_group": "column"}
"""The control that a partition listens to, besides the number of clients and the seed."""


def partition_explorer(data: PreparedSet, study: StudyConfig) -> Explorer:
    """Deal the training cases again at every move: number of clients, partition, ratio, alpha, seed; bars for each client.

    It deals as the runs do (`data.partition`), and starts as the study does. What cannot be dealt is said in a sentence.
    """
    train, columns = data.split("train"), partition_columns(data)
    kinds = ["balanced", "unbalanced", *["label_skew"] * (len(_names(data)) > 1), *["by_group"] * bool(columns)]

    def draw(clients: int, kind: str, ratio: float, alpha: float, column: str, seed: int) -> Shown:
        try:
            dealt = _deal(data, train, clients, kind, ratio, alpha, column, seed)
        except UserError as refusal:
            return Shown(f'<p role="alert">{escape(str(refusal))}</p>', str(refusal))
        detail = {"unbalanced": f", ratio {ratio:g}", "label_skew": f", alpha {alpha:g}", "by_group": f" of {column}"}
        chance = f", seed {seed}" if kind != "by_group" else ""
        title = f"{clients} clients, {kind}{detail.get(kind, '')}{chance}"
        return _bars(data, dealt, title)

    start = {
        "clients": min(max(study.client_counts), MOST_CLIENTS),
        "kind": study.partitions[0] if study.partitions[0] in kinds else kinds[0],
        "ratio": min(RATIOS, key=lambda ratio: abs(ratio - study.unbalance_ratio)),
        "alpha": min(partition.ALPHAS, key=lambda alpha: abs(alpha - study.alpha)),
        "column": study.group_column if study.group_column in columns else next(iter(columns), ""),
        "seed": min(study.seeds[0], MOST_SEED),
    }
    return Explorer("partitions", draw, lambda: _controls(start, kinds, columns), start, _axes(data, start, kinds))


def partition_columns(data: PreparedSet) -> list[str]:
    """Columns of the table of cases whose values by_group can deal."""
    training = data.cases.iloc[data.split("train")]
    return [name for name in training if name not in (*partition.SINGLE, "split", "label")
            and 2 <= training[name].nunique(dropna=False) <= partition.MOST_GROUPS]  # fmt: skip


def _deal(data: PreparedSet, train: np.ndarray, clients: int, kind: str, ratio: float, alpha: float, column: str, seed: int):
    if kind == "label_skew":
        return partition.deal_skewed(data.cases, train, clients, alpha, seed)
    if kind == "by_group":
        return partition.deal_by_group(data.cases, train, clients, column)
    return partition.deal(data.cases, train, clients, kind, ratio, seed)


def _names(data: PreparedSet) -> list[str]:
    """Classes of the training cases; volumes have none."""
    return sorted(data.cases["label"].iloc[data.split("train")].unique())


def _bars(data: PreparedSet, dealt: list[np.ndarray], title: str) -> Shown:
    """A bar for each client, stacked by class, with its number of cases on top."""
    labels, names = data.cases["label"].to_numpy(), _names(data)
    counts = np.array([[(labels[rows] == name).sum() for name in names] for rows in dealt])  # (clients, classes)
    shown = [name.replace("_", " ") or "volumes" for name in names]
    totals, n = counts.sum(axis=1), len(dealt)
    ticks = {client: str(client) for client in range(1, n + 1)}
    chart = svg.Chart((0.4, n + 0.6), (0, 1.3 * totals.max()), title, "client", "training cases", ticks, size=(640, 280))
    for client, row in enumerate(counts, 1):
        bottom = 0
        for name, count, colour in zip(shown, row, svg.SERIES * 3, strict=False):
            chart.bar(client, bottom, bottom + count, 0.8, colour, f"client {client}, {name}: {count}")
            bottom += count
        chart.words(client, bottom, str(bottom))
    if len(names) > 1:
        chart.key(dict(zip(shown, svg.SERIES * 3, strict=False)))
    told = f"{title}. Training cases of each client: {', '.join(map(str, totals))}"
    missing = [f"client {client} has no {shown[number]}" for client, row in enumerate(counts, 1)
               for number in np.flatnonzero(row == 0)]  # fmt: skip
    told += f"; {'; '.join(missing)}" if missing else ""
    return Shown(svg.together([chart], told), told)


def _controls(start: dict[str, Any], kinds: list[str], columns: list[str]) -> dict[str, Any]:
    import ipywidgets

    controls = {
        "clients": ipywidgets.IntSlider(start["clients"], 1, MOST_CLIENTS, description="clients"),
        "kind": ipywidgets.Dropdown(options=kinds, value=start["kind"], description="partition"),
        "ratio": ipywidgets.SelectionSlider(options=RATIOS, value=start["ratio"], description="ratio"),
        "alpha": ipywidgets.SelectionSlider(options=partition.ALPHAS, value=start["alpha"], description="alpha"),
        "column": ipywidgets.Dropdown(options=columns or [""], value=start["column"], description="group by"),
        "seed": ipywidgets.IntSlider(start["seed"], 0, MOST_SEED, description="seed"),
    }

    def enable(_: object = None) -> None:
        for kind, name in NEEDS.items():
            controls[name].disabled = controls["kind"].value != kind
        controls["seed"].disabled = controls["kind"].value == "by_group"  # no chance has a part in it

    controls["kind"].observe(enable, "value")
    enable()
    return controls


def _axes(data: PreparedSet, start: dict[str, Any], kinds: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """The twin: few partitions, each with a weak and a strong setting, by the number of clients."""
    named = {"balanced": {"balanced": {"kind": "balanced"}}, "by_group": {"by group": {"kind": "by_group"}}}
    ratios = sorted({2, start["ratio"], 10})
    named["unbalanced"] = {f"unbalanced, ratio {r:g}": {"kind": "unbalanced", "ratio": r} for r in ratios}
    alphas = sorted({0.1, start["alpha"], 10})
    named["label_skew"] = {f"label skew, alpha {a:g}": {"kind": "label_skew", "alpha": a} for a in alphas}
    training = data.cases.iloc[data.split("train")]
    rarest = training.groupby("label")["patient"].nunique().min()  # with more clients some would see no patient of a class
    counts = sorted({n for n in (2, 4, 8, 16) if n <= rarest} | {start["clients"]})
    return {
        "partition": {title: state for kind in kinds for title, state in named[kind].items()},
        "clients": {str(n): {"clients": n} for n in counts},
    }
