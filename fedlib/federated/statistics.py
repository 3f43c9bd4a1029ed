"""What clients tell of their training cases before they train: counts, shares and means, never an image.

So hospitals see that they differ. Every number is of MIN_CELL patients or more, or it is hidden before it is sent. What is
left still tells something, and holds for one query: whoever asks again after a case was added can subtract the replies.
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from flwr.app import Message

from fedlib.data.dataset import PreparedDataset

MIN_CELL = 5
"""Patients that a number must be of (*chosen*). Statistical agencies ask for three or five: *threshold rule* in the Glossary
of Statistical Disclosure Control, UNECE and Eurostat, 2005, https://stats.oecd.org/glossary/detail.asp?ID=7010."""
HIDDEN = "hidden"
"""In the server's table: of fewer than MIN_CELL patients, or hidden with such a number, or not known."""
GREY_STEP = 32
"""Grey values, of 256, in a bin of the histogram (*chosen*)."""
SIDES = {"shape": ("mean size as acquired", 0), "spacing_mm": ("mean spacing as acquired (mm)", 1)}
"""Columns of cases.csv, as in 128x128: what is told of them, and its decimals."""


def describe_site(data: PreparedDataset, rows: np.ndarray) -> dict[str, dict[str, float]]:
    """Return the tables that a client sends of its training cases, NaN in each hidden cell.

    With fewer than MIN_CELL patients every cell is hidden. Shares of grey values, over all pixels of all images, are told in
    steps of what one of the patients is worth, so that one image moves a share by a step at most.
    """
    own = data.cases.iloc[rows]
    patients = own["patient"].nunique()
    pixels = sum(np.bincount(data.images[row].ravel() // GREY_STEP, minlength=256 // GREY_STEP) for row in rows)
    shares = np.round(np.round(pixels / pixels.sum() * patients) / patients, 3)
    bins = [f"{low} to {low + GREY_STEP - 1}" for low in range(0, 256, GREY_STEP)]
    tables = {
        "all": {"cases": len(own), "patients": patients},
        "cases of a class": visible_counts(own, data.classes) if data.labels.ndim == 1 else {},
        "share of grey values": dict(zip(bins, shares.tolist(), strict=True)),
        **{title: _mean_sides(own[column], decimals) for column, (title, decimals) in SIDES.items() if column in own},
    }
    if patients < MIN_CELL:
        return {title: dict.fromkeys(cells, math.nan) for title, cells in tables.items()}
    return tables


def visible_counts(cases: pd.DataFrame, classes: list[str]) -> dict[str, float]:
    """Return the number of cases of each class, NaN for a class of fewer than MIN_CELL patients.

    The server learns a client's total, at the latest when it trains, and could subtract. So the first class is hidden with
    any other, the second with the first alone, and further ones until MIN_CELL patients are hidden together: whatever the
    numbers, for to hide the smallest would tell that the rest are larger. A small number then is one of MIN_CELL or more.
    """

    def patients(names: set[str]) -> int:
        return cases.loc[cases["label"].isin(names), "patient"].nunique()

    hidden = {name for name in classes if patients({name}) < MIN_CELL}
    if hidden:
        hidden.add(classes[0])
        for name in classes:
            if len(hidden) == 1 or patients(hidden) < MIN_CELL:
                hidden.add(name)
    return {name: math.nan if name in hidden else int((cases["label"] == name).sum()) for name in classes}


def statistics_table(replies: Mapping[int, Message]) -> pd.DataFrame:
    """Return what the clients sent, by number of the client: a row a client, from 1, a column a cell."""
    rows = [
        {(title, name): value for title, cells in reply.content.metric_records.items() for name, value in cells.items()}
        for reply in replies.values()
    ]
    table = pd.DataFrame(rows, [client + 1 for client in replies], dtype=object).fillna(HIDDEN)
    table.columns = pd.MultiIndex.from_tuples(table.columns)
    return table.rename_axis("client")


def _mean_sides(sides: pd.Series, decimals: int) -> dict[str, float]:
    """Return the mean along each axis of sizes such as 128x128; nothing where one is not stated."""
    numbers = sides.astype(str).str.split("x", expand=True).apply(pd.to_numeric, errors="coerce")
    means = numbers.mean().round(decimals).tolist() if numbers.notna().all(axis=None) else []
    return dict(zip("xyz", means, strict=False))
