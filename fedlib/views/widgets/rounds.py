"""A run played round by round, from what its folder keeps: scores, losses, the weight of each client, predictions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fedlib import tasks
from fedlib.training.run_store import Run
from fedlib.views.widgets import svg
from fedlib.views.widgets.explorer import Explorer, Shown

NOTE = (
    "From rounds.csv, clients.csv and validation.csv. The last holds what the averaged model of each round said of the "
    "validation cases; a run without such a model has no predictions to play."
)
BLUE, ORANGE, GREEN, _ = svg.SERIES
MOST_STILLS = 24


def round_player(runs: Run | Sequence[Run]) -> Explorer:
    """Play the rounds of finished runs: the validation score so far, each client's training loss, each client's share of the
    round's cases, which is its weight in FedAvg, and what the average of the round says of the validation cases.

    Raises ValueError when there is no run.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs:
        raise ValueError("runs: none, expected at least one finished run")
    told = [_Told(run) for run in runs]
    last = max(one.last for one in told)

    def draw(run: int, round: int) -> Shown:  # noqa: A002
        return told[run].after(min(round, told[run].last))

    def controls() -> dict[str, Any]:
        import ipywidgets

        slider = ipywidgets.IntSlider(last, 1, last, description="round")
        play = ipywidgets.Play(value=last, min=1, max=last, interval=700, description="play the rounds")
        ipywidgets.link((play, "value"), (slider, "value"))
        options = [(one.name, number) for number, one in enumerate(told)]
        return {"run": ipywidgets.Dropdown(options=options, description="run"), "round": slider, "play": play}

    some = sorted({int(n) for n in np.linspace(1, last, min(last, MOST_STILLS)).round()})
    axes = {
        "run": {one.name: {"run": number} for number, one in enumerate(told[:4])},
        "round": {str(n): {"round": n} for n in some},
    }
    return Explorer(f"{len(runs)} runs", draw, controls, {"run": 0, "round": last}, axes, NOTE)


class _Told:
    """The tables of a run, read once, and how they look after each round."""

    def __init__(self, run: Run):
        config, self.rounds, self.clients, self.validation = run.config, run.rounds, run.clients, run.validation
        self.last, self.n_clients, self.mode = int(self.rounds["round"].max()), config.n_clients, config.mode
        task = tasks.get(config.task)
        self.metrics, self.rows = task.PRIMARY, {}
        dealt = "" if config.mode == "centralized" else f", {config.n_clients} clients, {config.partition}"
        self.ticks = {n: str(n) for n in range(1, self.last + 1, -(-self.last // 10))}
        self.name = f"{config.mode}{dealt}, seed {config.seed}"
        if "absent" not in self.clients:
            self.clients["absent"] = np.nan
        self.here = self.clients[self.clients["absent"].isna()]

    def after(self, number: int) -> Shown:
        charts = [self._scores(number), self._losses(number), self._weights(number), *self._predictions(number)]
        now = self.rounds[self.rounds["round"] == number].iloc[0]
        words = ", ".join(f"{tasks.NAMES[metric]} {now[metric]:.3f}" for metric in self.metrics)
        losses = self.here[self.here["round"] == number].set_index("client")["loss"]
        words = f"{self.name}, round {number} of {self.last}: validation {words}; training loss {losses.min():.2f}"
        words += f" (client {losses.idxmin() + 1}) to {losses.max():.2f} (client {losses.idxmax() + 1})"
        return Shown(svg.together(charts, words), words)

    def _scores(self, number: int) -> svg.Chart:
        low = float(min(self.rounds[metric].min() for metric in self.metrics))
        chart = svg.Chart(
            (0.5, self.last + 0.5), (max(0.0, low - 0.05), 1.0), "score", "round", "validation score", self.ticks
        )
        past = self.rounds[self.rounds["round"] <= number]
        for metric, colour, dashes in zip(self.metrics, svg.SERIES, svg.DASHES, strict=False):
            points = list(zip(past["round"], past[metric], strict=True))
            chart.line(points, colour, dashes)
            chart.dot(*points[-1], colour, f"{tasks.NAMES[metric]} {points[-1][1]:.3f}")
        names = [tasks.NAMES[metric] for metric in self.metrics]
        chart.legend(dict(zip(names, zip(svg.SERIES, svg.DASHES, strict=True), strict=False)))
        return chart

    def _losses(self, number: int) -> svg.Chart:
        """A line for each client, ending in its number."""
        top = 1.05 * float(self.here["loss"].max())
        chart = svg.Chart((0.5, self.last + 1), (0, top), "loss of each client", "round", "training loss", self.ticks)
        ends = {}
        for client, own in self.here[self.here["round"] <= number].groupby("client"):
            points = list(zip(own["round"], own["loss"], strict=True))
            chart.line(points, BLUE, width=1.3)
            chart.dot(*points[-1], BLUE, f"client {client + 1}: {points[-1][1]:.3f}", radius=3)
            ends[f"{client + 1}"] = points[-1]
        chart.names_at(ends)
        return chart

    def _weights(self, number: int) -> svg.Chart:
        averaged = self.mode == "federated"
        title = "weight in FedAvg: share of cases" if averaged else "share of cases (nothing is averaged)"
        now = self.clients[self.clients["round"] == number]
        share = now["n"] / now["n"].sum()
        ticks = {client: str(client) for client in range(1, self.n_clients + 1)}
        chart = svg.Chart((0.4, self.n_clients + 0.6), (0, 1.1 * float(self._largest())), title, "client", "share", ticks)
        for client, part, absent in zip(now["client"] + 1, share, now["absent"], strict=True):
            if pd.isna(absent):
                chart.bar(client, 0, part, 0.8, GREEN, f"client {client}: {part:.3f}")
            else:
                chart.words(client, 0, "absent")
        return chart

    def _predictions(self, number: int) -> list[svg.Chart]:
        """The validation cases: of each class the share that is told, or the DSC of each volume."""
        if self.validation is None:
            return []
        cases = self.validation[self.validation["round"] == number]
        return [_by_class(cases) if "truth" in cases else _overlaps(cases, self.metrics)]

    def _largest(self) -> float:
        return (self.clients["n"] / self.clients.groupby("round")["n"].transform("sum")).max()


def _by_class(cases: pd.DataFrame) -> svg.Chart:
    """A bar for each true class: told right, and above it what was taken for another class."""
    classes = sorted(cases["truth"].unique())
    ticks = {n: name.replace("_", " ").partition(" ")[0] for n, name in enumerate(classes, 1)}
    chart = svg.Chart((0.4, len(classes) + 0.6), (0, 1.2), "predictions", "true class of validation cases", "share", ticks)
    for x, name in enumerate(classes, 1):
        said = cases.loc[cases["truth"] == name, "prediction"].value_counts()
        n, right = said.sum(), said.get(name, 0)
        wrong = ", ".join(f"{count} taken for {other}" for other, count in said.items() if other != name)
        chart.bar(x, 0, right / n, 0.8, BLUE, f"{name}: {right} of {n} right")
        chart.bar(x, right / n, 1, 0.8, ORANGE, f"{name}: {wrong or 'none wrong'}")
    chart.key({"right": BLUE, "wrong": ORANGE})
    return chart


def _overlaps(cases: pd.DataFrame, metrics: Sequence[str]) -> svg.Chart:
    """A column of dots for each volume: the DSC of its structures."""
    ticks = {n: str(n) for n in range(1, len(cases) + 1, -(-len(cases) // 10))}
    chart = svg.Chart((0.4, len(cases) + 0.6), (0, 1.2), "predictions", "validation volume", "DSC", ticks)
    for metric, colour in zip(metrics, svg.SERIES, strict=False):
        for x, value in enumerate(cases[metric], 1):
            chart.dot(x, value, colour, f"volume {x}, {tasks.NAMES[metric]}: {value:.3f}")
    chart.key({metric.partition("_")[2]: colour for metric, colour in zip(metrics, svg.SERIES, strict=False)})
    return chart
