"""A `AccessibleFigure`: a figure with its alternative text and the table of its numbers. One style for all of them."""

import base64
import io
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fedlib.config import Partition

INK, SOFT, PAGE = "#1c1e21", "#555b64", "#ffffff"
SERIES = ("#005a9c", "#d97706", "#02815e", "#8b3fa0", "#c02532", "#0f7f93", "#7a5230", "#5b6470")
"""At least 3:1 on white. The first two also differ in lightness, so that a grey print keeps them apart."""
COLOURS = dict(zip(Partition.__args__, SERIES, strict=False))
MARKERS = dict(zip(Partition.__args__, "os^Dvp", strict=True))
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)), (0, (4, 1, 1, 1)))
"""Line styles, so that no line depends on its colour."""
STYLE = {
    "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "legend.fontsize": 9, "legend.frameon": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.edgecolor": SOFT, "axes.spines.top": False, "axes.spines.right": False, "grid.color": SOFT, "grid.alpha": 0.25,
    "grid.linewidth": 0.6, "lines.linewidth": 1.8, "lines.markersize": 5, "figure.facecolor": PAGE, "figure.dpi": 100,
}  # fmt: skip
styled = plt.rc_context(STYLE)
"""Decorator of the functions that draw. A student's own figures keep matplotlib's look."""


@dataclass(frozen=True)
class AccessibleFigure:
    """A figure with its alternative text and the table of its numbers (None: it shows images).

    The figure has a white background, so that it is legible in a light and in a dark theme. Jupyter keeps text and table
    beside the image. Our pages show the text as `alt` and the table, also as CSV, below the figure.
    """

    figure: Figure
    alt: str
    table: pd.DataFrame | None = None

    @property
    def width(self) -> int:
        """Width in the pixels of a page."""
        return round(100 * self.figure.get_figwidth())

    def _repr_mimebundle_(self, **_: object) -> tuple[dict, dict]:
        shown = {"image/png": encoded(self.figure, "png", dpi=200), "text/plain": self.alt}
        if self.table is not None:
            shown["text/csv"] = self.table.to_csv(index=False, float_format="%.6g")
        return shown, {"image/png": {"alt": self.alt, "width": self.width}}


def accessible_figure(figure: Figure, alt: str, table: pd.DataFrame | None = None) -> AccessibleFigure:
    """Lay the figure out and close it, since Jupyter would show an open one a second time."""
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
    plt.close(figure)
    return AccessibleFigure(figure, alt, table)


def encoded(figure: Figure, form: str, dpi: int = 100) -> str:
    """Return a figure as base64 text of an image; a page shows 100 pixels for each inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=dpi)
    return base64.b64encode(buffer.getvalue()).decode()


def grid(rows: int, columns: int, side: float) -> tuple[Figure, np.ndarray]:
    """Return axes for images, each `side` inches wide and high, without ticks."""
    figure, axes = plt.subplots(rows, columns, figsize=(side * columns, side * rows), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return figure, axes
