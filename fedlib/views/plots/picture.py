"""A `Picture`: a figure, the sentence that stands for it, and the numbers in it. One look for all of them."""

import base64
import io
import re
from dataclasses import dataclass
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fedlib.config import Partition

INK, SOFT, PAGE = "#1c1e21", "#555b64", "#ffffff"
SERIES = ("#005a9c", "#d97706", "#02815e", "#8b3fa0", "#b3264a", "#5d6b1f")
"""Blue, orange, green, purple: at least 3:1 on white, and the first two also far apart in lightness, for grey print."""
VARIABLES = {INK: "ink", SOFT: "soft", PAGE: "page"} | dict(
    zip(SERIES, ("blue", "orange", "green", "purple", "red", "olive"), strict=True)
)
"""What style.css calls the colours: in a page an SVG follows the reader's light or dark theme."""
COLOURS = dict(zip(Partition.__args__, SERIES, strict=True))
MARKERS = dict(zip(Partition.__args__, "os^Dvp", strict=True))
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)), (0, (4, 1, 1, 1)))
"""Of lines: told apart without colour."""
STYLE = {
    "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "legend.fontsize": 9, "legend.frameon": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.edgecolor": SOFT, "axes.spines.top": False, "axes.spines.right": False, "grid.color": SOFT, "grid.alpha": 0.25,
    "grid.linewidth": 0.6, "lines.linewidth": 1.8, "lines.markersize": 5, "svg.fonttype": "none", "figure.dpi": 100,
}  # fmt: skip
styled = plt.rc_context(STYLE)
"""Decorator of the functions that draw; the figures that a student draws keep matplotlib's own look."""


@dataclass(frozen=True)
class Picture:
    """A figure with its alternative text and the table of its numbers (None: a picture of images).

    Jupyter keeps both beside the image; our HTML shows the first as `alt` and the second under the figure.
    """

    figure: Figure
    alt: str
    table: pd.DataFrame | None = None

    def png(self) -> str:
        """The figure as base64 text, on white."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight", facecolor="white")
        return base64.b64encode(buffer.getvalue()).decode()

    def svg(self, name: str) -> str:
        """The figure as an `<svg>` element to put into a page that has style.css; `name` makes its ids its own."""
        buffer = io.StringIO()
        with plt.rc_context(STYLE | {"svg.hashsalt": name}):
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
        text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
        text = text.replace("<svg", f'<svg role="img" aria-label="{escape(self.alt)}"', 1)
        text = re.sub(r'(id="|href="#|url\(#)', rf"\1{name}-", text)
        for colour, variable in VARIABLES.items():
            text = text.replace(colour, f"var(--{variable})")
        return text

    def csv(self) -> str | None:
        """The table as CSV text, six significant digits."""
        return None if self.table is None else self.table.to_csv(index=False, float_format="%.6g")

    def _repr_mimebundle_(self, **_: object) -> tuple[dict, dict]:
        shown = {"image/png": self.png(), "text/plain": self.alt}
        return shown if self.table is None else shown | {"text/csv": self.csv()}, {"image/png": {"alt": self.alt}}


def picture(figure: Figure, alt: str, table: pd.DataFrame | None = None) -> Picture:
    """Lay the figure out and close it: Jupyter would show it a second time."""
    figure.set_layout_engine("constrained")
    plt.close(figure)
    return Picture(figure, alt, table)


def grid(rows: int, columns: int, side: float) -> tuple[Figure, np.ndarray]:
    """Axes for images, `side` inches each, without ticks."""
    figure, axes = plt.subplots(rows, columns, figsize=(side * columns, side * rows), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return figure, axes
