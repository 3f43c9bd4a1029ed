"""A slider that needs no kernel and no network: every frame is in the page, the range input shows one of them.

It works in a live notebook, after papermill, and in an exported page alike. Small frames keep the page light: at 128 x 128
grey values a frame takes about 10 kB.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

MOVE = (
    "const frames=[...this.closest('figure').querySelectorAll('img')];"
    "frames.forEach((frame,number)=>frame.hidden=number!=this.value);"
    "const caption=frames[this.value].alt;"
    "this.setAttribute('aria-valuetext',caption);"
    "this.closest('figure').querySelector('output').textContent=caption"
)
"""An attribute, not a script: two sliders in a page cannot meet, and nothing needs an id."""


@dataclass(frozen=True)
class Stills:
    """Frames with a caption each, shown one at a time by a slider."""

    label: str
    frames: Sequence[np.ndarray]
    """Grey (H, W) or colour (H, W, 3), uint8, row 0 at the top."""
    captions: Sequence[str]
    """What each frame shows: its alternative text, and what is read beside the slider."""
    start: int = 0
    """The frame that is shown first, and the only one on paper."""

    def __post_init__(self) -> None:
        if not len(self.frames) == len(self.captions) > self.start >= 0:
            raise ValueError(f"{len(self.frames)} frames, {len(self.captions)} captions, start = {self.start}")

    def _repr_html_(self) -> str:
        images = "".join(
            f'<img src="data:image/png;base64,{_png(frame)}" alt="{escape(caption)}" width="320"'
            f"{'' if number == self.start else ' hidden'}>"
            for number, (frame, caption) in enumerate(zip(self.frames, self.captions, strict=True))
        )
        label, caption = escape(self.label), escape(self.captions[self.start])
        return (
            f'<figure class="stills">{images}<figcaption><input type="range" min="0" max="{len(self.frames) - 1}" '
            f'value="{self.start}" autocomplete="off" aria-label="{label}" aria-valuetext="{caption}" oninput="{MOVE}"> '
            f"<output>{caption}</output></figcaption></figure>"
        )

    def __repr__(self) -> str:
        return f"{self.label}: {len(self.frames)} frames, {self.captions[0]} to {self.captions[-1]}"


def _png(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
