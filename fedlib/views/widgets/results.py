"""The comparison of a study, arm by arm, under the reader's hand."""

from typing import Any

import pandas as pd

from fedlib import tasks
from fedlib.views.widgets import svg
from fedlib.views.widgets.explorer import Explorer, Shown

BLUE, ORANGE, GREEN, PURPLE = svg.SERIES
COLOURS = {"centralized": "currentColor", "federated": BLUE, "local": ORANGE}
SHOWS = {
    "score": ("value", "low", "high"),
    "difference from centralized": ("difference", "difference_low", "difference_high"),
}
ALL = "all"


def result_explorer(table: pd.DataFrame) -> Explorer:
    """Choose among the arms of `statistics.compare`'s table: metric, mode, partition; score or difference; with intervals.

    Raises ValueError when the table is empty.
    """
    if table.empty:
        raise ValueError("table: no arm in it, expected the table of statistics.compare")
    metrics = {tasks.NAMES[metric]: metric for metric in table["metric"].unique()}
    modes = [ALL, *(mode for mode in table["mode"].unique() if mode != "centralized")]
    kinds = [kind for kind in table["partition"].unique() if kind != "none"]
    kinds = [ALL, *kinds] if len(kinds) > 1 else [ALL]
    shows = list(SHOWS) if table["difference"].notna().any() else ["score"]

    def draw(metric: str, show: str, mode: str, partition: str) -> Shown:
        arms = table[table["metric"] == metric]
        if show != "score":
            arms = arms[arms["difference"].notna()]
        for column, chosen in (("mode", mode), ("partition", partition)):
            arms = arms[(arms[column] == chosen) | (arms["mode"] == "centralized") | (chosen == ALL)]
        chosen = [*[mode] * (mode != ALL), *[partition] * (partition != ALL)]
        return _forest(arms, metric, ", ".join([show, *chosen]), SHOWS[show])

    def controls() -> dict[str, Any]:
        import ipywidgets

        wide = {"button_width": "initial"}
        return {
            "metric": ipywidgets.ToggleButtons(options=metrics, description="metric", style=wide),
            "show": ipywidgets.ToggleButtons(options=shows, description="show", style=wide),
            "mode": ipywidgets.Dropdown(options=modes, description="mode"),
            "partition": ipywidgets.Dropdown(options=kinds, description="partition"),
        }

    start = {"metric": next(iter(metrics.values())), "show": "score", "mode": ALL, "partition": ALL}
    axes = {
        "show": {show: {"show": show} for show in shows},
        "partition": {kind: {"partition": kind} for kind in kinds},
        "metric": {name: {"metric": metric} for name, metric in metrics.items()},
    }
    return Explorer(f"{len(table)} results", draw, controls, start, axes)


def _forest(arms: pd.DataFrame, metric: str, what: str, columns: tuple[str, str, str]) -> Shown:
    """An arm a line: its estimate, its 95% interval; dashed the centralized one or no difference, dotted the margins."""
    values, n = arms[list(columns)].astype(float), len(arms)
    if columns == SHOWS["score"]:
        lines = dict.fromkeys(arms.loc[arms["mode"] == "centralized", "value"], "4 4")
    else:
        margin = arms["margin"].max()
        lines = {0.0: "4 4", -margin: "1 4", margin: "1 4"}
    ends = [*values.min(), *values.max(), *lines]
    low, high = min(ends), max(ends)
    room = 0.05 * (high - low) or 0.05
    names = [_name(arm) for arm in arms.itertuples()]
    ticks = {n - number: name for number, name in enumerate(names)}
    title = f"test {tasks.NAMES[metric]}, {what}; 95% interval over patients"
    size = (640, 70 + 24 * n)
    chart = svg.Chart(
        (low - room, high + room), (0.4, n + 0.6), title, what.partition(",")[0], "", None, ticks, size=size, left=220
    )
    for x, dashes in lines.items():
        chart.line([(x, 0.4), (x, n + 0.6)], "currentColor", dashes, 1)
    for y, mode, row in zip(ticks, arms["mode"], values.to_numpy(), strict=True):
        value, begin, end = row
        says = f"{ticks[y]}: {value:.3f} [{begin:.3f}, {end:.3f}]"
        if begin == begin:  # an interval that cannot be had is NaN
            chart.line([(begin, y), (end, y)], COLOURS[mode])
        chart.dot(value, y, COLOURS[mode], says, hollow=mode == "local")
    told = "; ".join(f"{name} {value:.3f}" for name, value in zip(names, values[columns[0]], strict=True))
    caption = f"Test {tasks.NAMES[metric]}, {what}: {n} arms."
    return Shown(svg.together([chart], f"{caption} {told}"), caption, _table(arms, names, list(columns)))


def _name(arm: Any) -> str:
    return arm.mode if arm.mode == "centralized" else f"{arm.mode}, {arm.n_clients} clients, {arm.partition}"


def _table(arms: pd.DataFrame, names: list[str], columns: list[str]) -> str:
    shown = arms[[*columns, "verdict", "n_patients", "seeds"]].rename(columns=lambda column: column.replace("_", " "))
    table = shown.set_index(pd.Index(names, name="arm")).to_html(border=0, na_rep="", float_format="%.3f", index_names=False)
    return table.replace("<table ", '<table style="margin:0" ', 1)  # JupyterLab would set it in the middle
