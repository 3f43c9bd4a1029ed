"""Make this package's tables readable: arms and metrics in words, `estimate [interval]`, three decimals."""

import pandas as pd

from fedlib import tasks
from fedlib.analysis.arms import ARM, arm_name

LIMITS = {"value": ("low", "high"), "this_run": ("low", "high"), "slope": ("low", "high"),
          "difference": ("difference_low", "difference_high")}  # fmt: skip
"""Estimates, and the columns of their intervals."""
DETAILS = ["how", "difference_how", "margin_note", "margin", "smallest_margin", "test", "p", "p_holm", "paired_seeds",
           "paired_patients"]  # fmt: skip
"""Columns for those who compute with the table."""
SIGNED = ("change", "paper_change", "difference_mean")
FIRST = ["source", "arm", "partition", "n_clients", "metric", "verdict", "training", "difference", "value", "direction",
         "this_run", "paper"]  # fmt: skip
"""Columns that come first, in this order."""
TITLES = {"value": "score", "n_patients": "patients", "n_clients": "clients", "paper_says": "the paper says",
          "slope": "change per doubling", "paper": "the paper"}  # fmt: skip


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `fedlib.analysis` as text, what names a row first, then verdict and difference. Empty columns go."""
    hidden = [*DETAILS, "paper"] if "paper_says" in table else DETAILS
    table = table.drop(columns=[name for name in hidden if name in table])
    for name, limits in LIMITS.items():
        if {name, *limits} <= set(table):
            sign = "" if name in ("value", "this_run") else "+"
            table[name] = [bracketed(*row, sign) for row in table[[name, *limits]].itertuples(index=False)]
            table = table.drop(columns=[*limits])
    if set(ARM) <= set(table):
        table = table.assign(arm=[arm_name(row) for row in table.itertuples()]).drop(columns=ARM)
    if {"metric", "paper"} <= set(table):
        table["paper"] = list(map(published, table["metric"], table["paper"]))
    if "metric" in table:
        table["metric"] = table["metric"].map(lambda metric: tasks.NAMES.get(metric, metric))
    if "class" in table:
        table["class"] = table["class"].str.replace("_", " ")
    table = table.apply(_as_text)
    first = [name for name in FIRST if name in table]
    table = table.loc[:, [*first, *(name for name in table if name not in first and (table[name] != "").any())]]
    return table.rename(columns=TITLES).rename(columns=lambda name: name.replace("_", " "))


def published(metric: str, figure: float) -> str:
    """Return a figure of the paper as the abstract states it: `0.867`, `about 0.94`; nothing for NaN."""
    about = any(metric in tasks.get(task).ABOUT for task in tasks.TASKS)
    return "" if pd.isna(figure) else f"{'about ' * about}{figure:g}"


def bracketed(value: float, low: float, high: float, sign: str = "") -> str:
    """Return `0.812 [0.790, 0.834]`; without an interval `0.812`; nothing without a value. Never `-0.000`."""
    if pd.isna(value):
        return ""
    return f"{value:{sign}z.3f}" + ("" if pd.isna(low) else f" [{low:{sign}z.3f}, {high:{sign}z.3f}]")


def _as_text(column: pd.Series) -> pd.Series:
    """Return whole numbers as they are, others with three decimals, nothing for NaN."""
    if not pd.api.types.is_float_dtype(column):
        return column.astype(object).where(column.notna(), "").astype(str)
    sign = "+" if column.name in SIGNED else ""
    return column.map(lambda value: "" if pd.isna(value) else f"{value:{sign}z.3f}")
