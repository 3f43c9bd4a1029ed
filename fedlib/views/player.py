"""A player of prepared frames: images behind selects and a slider, as one piece of HTML.

The same HTML works in JupyterLab, in VS Code and in an exported page. All frames are in it, so that a move needs no kernel,
no network and no library.
"""

import base64
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from fedlib.views.plots.figure import encoded

MOVE = (
    "const figure=this.closest('figure'),frames=figure.querySelectorAll('.frame');let n=0;"
    "for(const one of figure.querySelectorAll('select,input'))n=n*one.dataset.options+Number(one.value);"
    "frames.forEach((frame,number)=>frame.hidden=number!=n);"
    "const caption=frames[n].dataset.caption;figure.querySelector('output').textContent=caption;"
    "figure.querySelectorAll('input').forEach(one=>one.setAttribute('aria-valuetext',caption))"
)
"""An attribute of each control, so that nothing in the page needs an id. Frames follow the product of the controls."""
SIDE = 128
"""Longest side of an image in pixels: a page stays light."""
WHITE = "overflow-x:auto;background:#fff;width:fit-content;max-width:100%"
"""Frames keep a white ground in a dark theme; a wide one scrolls on a phone instead of shrinking."""


@dataclass(frozen=True)
class Frame:
    """An image for one state of the controls, as a `data:` URL, and HTML below it; `width` in the page's pixels.

    The caption is also the image's alternative text. Where the image is empty, it says why.
    """

    image: str
    caption: str
    below: str = ""
    width: int = 320

    def html(self, hidden: bool) -> str:
        """Return the frame as an element."""
        size = f'width="{self.width}" style="min-width:{min(self.width, 340)}px;max-width:100%;height:auto;display:block"'
        image = f'<img {size} src="{self.image}" alt="{escape(self.caption)}">'
        image = f'<div style="{WHITE}" tabindex="0" role="group" aria-label="picture">{image}</div>' if self.image else ""
        return f'<div class="frame" data-caption="{escape(self.caption)}"{" hidden" * hidden}>{image}{self.below}</div>'


class Player:
    """Selects and a slider that choose among frames. Leave it as a cell's value."""

    def __init__(
        self,
        draw: Callable[..., Frame],
        controls: Mapping[str, Sequence[Any]],
        slider: str = "",
        start: Mapping[str, Any] | None = None,
    ):
        """Draw a frame for each combination of options.

        `controls` maps a label to its options, which `draw` takes in the same order. The label `slider` becomes a slider,
        the others selects. `start` maps a label to the option shown first (default: the first one).
        """
        self.controls = {label: list(options) for label, options in controls.items()}
        self.slider, start = slider, start or {}
        self.first = [options.index(start.get(label, options[0])) for label, options in self.controls.items()]
        self.frames = [draw(*options) for options in itertools.product(*self.controls.values())]

    def _repr_html_(self) -> str:
        shown = int(np.ravel_multi_index(self.first, [len(options) for options in self.controls.values()]))
        caption = escape(self.frames[shown].caption)
        controls = " ".join(self._control(label, at, caption) for label, at in zip(self.controls, self.first, strict=True))
        frames = "".join(frame.html(hidden=number != shown) for number, frame in enumerate(self.frames))
        top = f"<figcaption>{controls}<p><output>{caption}</output></p></figcaption>"
        return f'<figure class="explorer" style="margin:1em 0">{top}{frames}</figure>'

    def _control(self, label: str, at: int, caption: str) -> str:
        options = self.controls[label]
        keys = "data-lm-suppress-shortcuts"  # else JupyterLab takes the arrow keys
        attributes = f'data-options="{len(options)}" {keys} autocomplete="off" oninput="{MOVE}"'
        if label == self.slider:
            about = f'aria-label="{escape(label)}" aria-valuetext="{caption}"'
            control = f'<input type="range" min="0" max="{len(options) - 1}" value="{at}" {about} {attributes}>'
        else:
            listed = "".join(
                f'<option value="{n}"{" selected" * (n == at)}>{escape(str(name))}</option>'
                for n, name in enumerate(options)
            )
            control = f'<select style="max-width:100%" {attributes}>{listed}</select>'
        return f'<label style="margin-right:1em">{escape(label)} {control}</label>'

    def __repr__(self) -> str:
        return f"{len(self.frames)} frames, by {', '.join(self.controls)}"


def image_url(pixels: np.ndarray) -> str:
    """Return grey values (H, W) uint8 as the URL of a PNG of at most SIDE x SIDE pixels."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def figure_url(figure: Figure) -> str:
    """Return a figure as the URL of a WebP image, a third of a PNG's size, and close it."""
    plt.close(figure)
    return f"data:image/webp;base64,{encoded(figure, 'webp')}"


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers 1 to `count`, evenly spread, with both ends."""
    return sorted({int(n) for n in np.linspace(1, count, min(count, most)).round()})
