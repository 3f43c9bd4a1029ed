"""Small pictures as SVG text: charts, and images with outlines. Made in a millisecond or two, so that a slider feels direct.

A figure of matplotlib takes 50 to 100 ms, which is a slider's whole budget on two cores; the pictures of the notebooks stay
matplotlib's. Text and axes take the colour of the page around them; what a mark stands for is its tooltip too.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
from contourpy import contour_generator
from matplotlib.ticker import MaxNLocator
from PIL import Image

SERIES = tuple(f"var(--{name}, {colour})" for name, colour in (
    ("blue", "#2a78b8"), ("orange", "#d97706"), ("green", "#02815e"), ("purple", "#8b3fa0")
))  # fmt: skip
"""The variables of a page's style sheet, where it has them, so that colours follow the reader's theme."""
DASHES = ("", "7 4", "2 3", "9 3 2 3")
"""Of lines: told apart without colour."""
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 26, 40
"""Room around the data of a chart, in the picture's units."""


class Chart:
    """Axes that collect marks. Positions are data; `svg` gives the `<g>` with everything in it."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        title: str,
        xlabel: str,
        ylabel: str,
        xticks: Mapping[float, str] | None = None,
        yticks: Mapping[float, str] | None = None,
        size: tuple[int, int] = (330, 260),
        left: int = LEFT,
    ):
        self.x, self.y, self.size, self.left = x, y, size, left
        self.marks = [self._text(left, 16, title, "start", "font-weight:600")]
        right, bottom = size[0] - RIGHT, size[1] - BOTTOM
        self.marks.append(self._text((left + right) / 2, size[1] - 6, xlabel, "middle"))
        self.marks.append(f'<g transform="translate(13 {(TOP + bottom) / 2}) rotate(-90)">{self._text(0, 0, ylabel)}</g>')
        for value, text in (yticks or _ticks(*y)).items():
            self.marks.append(self._segment(left, self.at_y(value), right, self.at_y(value), 'opacity=".15"'))
            self.marks.append(self._text(left - 6, self.at_y(value) + 4, text, "end"))
        for value, text in (xticks or _ticks(*x)).items():
            self.marks.append(self._text(self.at_x(value), bottom + 16, text))
        self.marks.append(self._segment(left, bottom, right, bottom))

    def at_x(self, value: float) -> float:
        low, high = self.x
        return round(self.left + (value - low) / (high - low) * (self.size[0] - RIGHT - self.left), 1)

    def at_y(self, value: float) -> float:
        low, high = self.y
        return round(self.size[1] - BOTTOM - (value - low) / (high - low) * (self.size[1] - BOTTOM - TOP), 1)

    def bar(self, x: float, low: float, high: float, width: float, colour: str, says: str) -> None:
        """A bar around x, `width` wide, from low to high."""
        left, right, top = self.at_x(x - width / 2), self.at_x(x + width / 2), self.at_y(high)
        box = f'x="{left}" y="{top}" width="{right - left:.1f}" height="{self.at_y(low) - top:.1f}"'
        self.marks.append(f'<rect {box} fill="{colour}">{_title(says)}</rect>')

    def line(self, points: Iterable[tuple[float, float]], colour: str, dashes: str = "", width: float = 2) -> None:
        path = " ".join(f"{self.at_x(x)},{self.at_y(y)}" for x, y in points)
        style = f'fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"'
        self.marks.append(f'<polyline points="{path}" {style}/>')

    def dot(self, x: float, y: float, colour: str, says: str, hollow: bool = False, radius: float = 4) -> None:
        fill = "none" if hollow else colour
        place = f'cx="{self.at_x(x)}" cy="{self.at_y(y)}" r="{radius}"'
        self.marks.append(f'<circle {place} fill="{fill}" stroke="{colour}" stroke-width="2">{_title(says)}</circle>')

    def band(self, x0: float, x1: float, says: str) -> None:
        """A grey band over the whole height."""
        left, right = self.at_x(x0), self.at_x(x1)
        box = f'x="{left}" y="{TOP}" width="{right - left:.1f}" height="{self.size[1] - BOTTOM - TOP}"'
        self.marks.append(f'<rect {box} fill="currentColor" opacity=".12">{_title(says)}</rect>')

    def words(self, x: float, y: float, text: str) -> None:
        """Text just above a point of the data."""
        self.marks.append(self._text(self.at_x(x), self.at_y(y) - 5, text))

    def names_at(self, ends: Mapping[str, tuple[float, float]]) -> None:
        """The names of lines at their ends, moved up where they would lie on each other."""
        free = float("inf")
        for name, (x, y) in sorted(ends.items(), key=lambda end: end[1][1]):
            free = min(free - 11, self.at_y(y) + 4)
            self.marks.append(self._text(self.at_x(x) + 7, free, name, "start"))

    def legend(self, names: Mapping[str, tuple[str, str]]) -> None:
        """Name -> (colour, dashes) of lines, in the lower right corner, which rising curves leave free."""
        for n, (name, (colour, dashes)) in enumerate(reversed(names.items())):
            x, y = self.size[0] - RIGHT - 8, self.size[1] - BOTTOM - 12 - 16 * n
            self.marks.append(self._text(x - 28, y + 4, name, "end"))
            self.marks.append(self._segment(x - 22, y, x, y, f'stroke-width="3" stroke-dasharray="{dashes}"', colour))

    def key(self, names: Mapping[str, str]) -> None:
        """Name -> colour of bars, in a row above the data."""
        x, y = self.left + 8, TOP + 8
        for name, colour in names.items():
            self.marks.append(f'<rect x="{x}" y="{y - 8}" width="10" height="10" fill="{colour}"/>')
            self.marks.append(self._text(x + 15, y + 1, name, "start"))
            x += 35 + 7 * len(name)

    @staticmethod
    def _text(x: float, y: float, text: str, anchor: str = "middle", style: str = "") -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}" style="{style}">{escape(text)}</text>'

    @staticmethod
    def _segment(x0: float, y0: float, x1: float, y1: float, more: str = "", colour: str = "currentColor") -> str:
        return f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="{colour}" {more}/>'


def together(charts: Sequence[Chart], alt: str, columns: int = 2) -> str:
    """Charts in rows of `columns` as one `<svg>`; `alt` is what a screen reader says in their place."""
    inside, width, height = "", max(chart.size[0] for chart in charts) + 10, max(chart.size[1] for chart in charts) + 10
    for number, chart in enumerate(charts):
        x, y = width * (number % columns), height * (number // columns)
        inside += f'<g transform="translate({x} {y})">{"".join(chart.marks)}</g>'
    across, down = min(columns, len(charts)), -(-len(charts) // columns)
    return _svg(inside, width * across - 10, height * down - 10, alt)


def image(
    pixels: np.ndarray, alt: str, outlines: Sequence[tuple[np.ndarray, str, str]] = (), aspect: float = 1.0, side: int = 320
) -> str:
    """Grey values (H, W) uint8, row 0 at the top, as an `<svg>` whose longer side is `side`; the browser enlarges smoothly.

    `outlines`: (mask (H, W), colour, dashes) each. `aspect`: height of a pixel over its width.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    height, width = pixels.shape[0] * aspect, pixels.shape[1]
    scale = side / max(height, width)
    where = f'width="{width * scale:.1f}" height="{height * scale:.1f}" preserveAspectRatio="none"'
    inside = f'<image href="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}" {where}/>'
    for mask, colour, dashes in outlines:
        style = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"'
        inside += f'<path d="{_outline(mask, scale, scale * aspect)}" {style}/>'
    return _svg(inside, width * scale, height * scale, alt)


def _outline(mask: np.ndarray, across: float, down: float) -> str:
    """The border of a mask as the path of an SVG; pixel (row, column) lies at its middle."""
    if not mask.any():
        return ""
    padded = np.pad(mask.astype(np.float32), 1)  # a structure cut by the border is closed there
    lines = contour_generator(z=padded).lines(0.5)
    corners = [(line - 0.5) * (across, down) for line in lines]
    return "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line) + "Z" for line in corners)


def _svg(inside: str, width: float, height: float, alt: str) -> str:
    style = f"width:{width:.0f}px;max-width:100%;height:auto;font:12px system-ui,sans-serif"
    about = (
        f'role="img" aria-label="{escape(alt)}" viewBox="0 0 {width:.0f} {height:.0f}" style="{style}" fill="currentColor"'
    )
    return f'<svg xmlns="http://www.w3.org/2000/svg" {about}>{inside}</svg>'


def _ticks(low: float, high: float) -> dict[float, str]:
    values = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return {value: f"{value:.4g}" for value in values if low - 1e-9 <= value <= high + 1e-9}


def _title(says: str) -> str:
    return f"<title>{escape(says)}</title>"
