"""Images of a prepared set under the reader's hand: slices, window and level, true and predicted outlines."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedlib.data.dataset import PreparedSet
from fedlib.views.widgets import svg
from fedlib.views.widgets.explorer import Explorer, Shown

COLOURS = ("#ffb000", "#1fa8ff")
"""Of the structures, as in the other pictures: told apart with each kind of colour blindness."""
PREDICTED = "5 4"
"""Dashes of a predicted outline; a true one is solid."""
CUTS = {"slices": 2, "across, from the front": 1, "across, from the side": 0}
"""Axis that a cut is taken along. Axial, coronal, sagittal in CT; short-axis MRI is none of them, so no such name."""
MOST_VOLUMES, MOST_IMAGES, MOST_STILLS = 8, 24, 24
STILL = 128
"""Longest side, in pixels, of an image in the twin: a page of many stays light."""


def viewer(
    data: PreparedSet, rows: np.ndarray | None = None, predictions: Mapping[str, np.ndarray] | None = None
) -> Explorer:
    """Look through cases of a prepared set: its slices with outlines (volumes), or one image after another (radiographs).

    `rows`: row numbers; None: the first training cases. `predictions`: title -> what `execution.predict` gave for `rows`,
    classes (len(rows),) or structures (len(rows), X, Y, Z); true outlines are solid, predicted ones dashed.
    Raises ValueError when a prediction is not of as many cases as there are rows.
    """
    most = MOST_IMAGES if data.task == "classification" else MOST_VOLUMES
    rows = data.split("train")[:most] if rows is None else np.asarray(rows)
    predictions = dict(predictions or {})
    for title, labels in predictions.items():
        if len(labels) != len(rows):
            raise ValueError(f"predictions[{title!r}]: {len(labels)} cases, expected {len(rows)}, one for each of rows")
    return (_images if data.task == "classification" else _volumes)(data, rows, predictions)


def _images(data: PreparedSet, rows: np.ndarray, predictions: dict[str, np.ndarray]) -> Explorer:
    grey = _Grey(data)

    def draw(number: int, window: float, level: float, side: int = 0) -> Shown:
        row = rows[number - 1]
        caption = f"image {number} of {len(rows)}: {data.classes[data.labels[row]]}"
        caption += "".join(f"; {title}: {data.classes[labels[number - 1]]}" for title, labels in predictions.items())
        pixels = _at_most(data.images[row, 0], side)
        return Shown(svg.image(grey(pixels, window, level), caption), caption)

    def controls() -> dict[str, Any]:
        import ipywidgets

        return {"number": ipywidgets.IntSlider(1, 1, len(rows), description="image"), **grey.controls()}

    return Explorer(
        f"{len(rows)} images",
        draw,
        controls,
        {"number": 1} | grey.start,
        {"image": {str(n): {"number": n, "side": STILL} for n in _spread(len(rows), MOST_STILLS, 1)}},
    )


def _volumes(data: PreparedSet, rows: np.ndarray, predictions: dict[str, np.ndarray]) -> Explorer:
    grey, names = _Grey(data), [str(data.cases["case"].iloc[row]) for row in rows]
    outlines = {"none": [], "true": ["true"]} | {f"true and {title}": ["true", title] for title in predictions}

    def draw(case: int, cut: str, position: int, outline: str, window: float, level: float) -> Shown:
        axis, row = CUTS[cut], rows[case]
        depth = data.images.shape[2 + axis]
        index = min(position, depth) - 1
        shapes = {"true": data.labels[row]} | {title: labels[case] for title, labels in predictions.items()}
        drawn = [
            (_cut(shapes[title], axis, index) == structure, colour, "" if title == "true" else PREDICTED)
            for title in outlines[outline]
            for structure, colour in reversed(list(enumerate(COLOURS, 1)))  # the inner outline on top
        ]
        caption = f"{names[case]}, {cut.replace('slices', 'slice')} {index + 1} of {depth}; outlines: {outline}"
        pixels = grey(_cut(data.images[row, 0], axis, index), window, level)
        return Shown(svg.image(pixels, f"{caption}; {_key(data, outline)}", drawn, _aspect(data, axis)), caption)

    def controls() -> dict[str, Any]:
        import ipywidgets

        cut = ipywidgets.Dropdown(options=list(CUTS), description="cut")
        position = ipywidgets.IntSlider(start["position"], 1, data.images.shape[4], description="slice")

        def fit(change: dict) -> None:
            position.max = data.images.shape[2 + CUTS[change["new"]]]

        cut.observe(fit, "value")
        cases = [(name, number) for number, name in enumerate(names)]
        return {
            "case": ipywidgets.Dropdown(options=cases, description="volume"),
            "cut": cut,
            "position": position,
            "outline": ipywidgets.Dropdown(options=list(outlines), value=list(outlines)[-1], description="outlines"),
            **grey.controls(),
        }

    shown = names[:3]
    positions = _spread(data.images.shape[4], MOST_STILLS // len(shown), 1)
    start = {"case": 0, "cut": "slices", "position": positions[len(positions) // 2], "outline": list(outlines)[-1]}
    axes = {
        "volume": {name: {"case": number} for number, name in enumerate(shown)},
        "slice": {str(n): {"position": n} for n in positions},
    }
    return Explorer(
        f"{len(rows)} volumes", draw, controls, start | grey.start, axes, f"Outlines: {_key(data, start['outline'])}."
    )


class _Grey:
    """Window and level, in Hounsfield units where the manifest has the window of a CT, else in stored grey values."""

    def __init__(self, data: PreparedSet):
        settings = {choice["setting"]: choice["value"] for choice in data.manifest.get("choices", [])}
        window = settings.get("window")
        is_ct = settings.get("modality") == "ct" and isinstance(window, list)
        self.low, self.high = window if is_ct else (0.0, 255.0)
        self.unit = "HU" if is_ct else "grey"
        self.start = {"window": self.high - self.low, "level": (self.high + self.low) / 2}

    def __call__(self, stored: np.ndarray, window: float, level: float) -> np.ndarray:
        """What was stored as 0..255, shown so that level +- window / 2 is white and black."""
        values = self.low + stored.astype(np.float32) * ((self.high - self.low) / 255)
        return np.clip((values - (level - window / 2)) * (255 / window), 0, 255).round().astype(np.uint8)

    def controls(self) -> dict[str, Any]:
        """Sliders of window and level, in the unit of the volume, by the names that `draw` takes."""
        import ipywidgets

        width, step = self.high - self.low, (self.high - self.low) / 100
        slider = {"step": step, "readout_format": ".0f"}
        window = ipywidgets.FloatSlider(width, min=step, max=width, description=f"window, {self.unit}", **slider)
        level = ipywidgets.FloatSlider(
            self.start["level"], min=self.low, max=self.high, description=f"level, {self.unit}", **slider
        )
        return {"window": window, "level": level}


def _cut(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A plane of a volume (X, Y, Z) with row 0 at the top: the patient's right on the left, their front on the left."""
    return np.take(volume, index, axis=axis)[::-1, ::-1].T


def _aspect(data: PreparedSet, axis: int) -> float:
    across, up = [spacing for number, spacing in enumerate(data.spacing_mm) if number != axis]
    return up / across


def _at_most(image: np.ndarray, side: int) -> np.ndarray:
    """Every n-th pixel of an image, so that neither side is longer than `side`; 0: the image as it is."""
    step = -(-max(image.shape) // side) if side else 1
    return image[::step, ::step]


def _spread(count: int, most: int, first: int) -> list[int]:
    """At most `most` of the numbers from `first`, evenly spread, the ends among them."""
    return sorted({int(n) for n in np.linspace(first, first + count - 1, min(count, most)).round()})


def _key(data: PreparedSet, outline: str) -> str:
    colours = " and ".join(f"{name} {colour}" for name, colour in zip(data.classes[1:], ("orange", "blue"), strict=False))
    return f"{colours}; true solid, predicted dashed" if outline not in ("none", "true") else f"true, {colours}"
