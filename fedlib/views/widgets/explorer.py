"""An `Explorer`: a picture that follows its controls, and its twin for pages that have no kernel.

Live, in JupyterLab, ipywidgets are the controls. Where nobody can move one (papermill, nbconvert) the twin is all there is:
one piece of HTML that holds a still for each of some chosen states, and the selects and the slider that show one of them.
A live output carries the twin too, so that a notebook saved in JupyterLab can be exported.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from fedlib.views.progress import is_live

if TYPE_CHECKING:
    import ipywidgets

State = dict[str, Any]
MOVE = (
    "const figure=this.closest('figure'),all=figure.querySelectorAll('.frame');let n=0;"
    "for(const one of figure.querySelectorAll('select,input'))n=n*one.dataset.states+Number(one.value);"
    "all.forEach((frame,number)=>frame.hidden=number!=n);"
    "const caption=all[n].dataset.caption;figure.querySelector('output').textContent=caption;"
    "figure.querySelectorAll('input').forEach(one=>one.setAttribute('aria-valuetext',caption))"
)
"""Attributes, not a script: nothing in the page needs an id. Frames are in the order of the product of the axes."""


@dataclass(frozen=True)
class Shown:
    """What one state looks like."""

    picture: str
    """An element with its own alternative text."""
    caption: str
    """The sentence beside the controls, and what a screen reader says when they move."""
    below: str = ""
    """HTML under the caption, such as a table."""


@dataclass
class Explorer:
    """Leave it as a cell's value."""

    name: str
    draw: Callable[..., Shown]
    """State -> picture."""
    controls: Callable[[], "dict[str, ipywidgets.Widget]"]
    """Makes the live controls; called only where somebody can move them. Those without a part in `start` are helpers."""
    start: State
    """What `draw` is called with at first."""
    axes: Mapping[str, Mapping[str, State]]
    """The twin's controls: label -> option -> what it changes in `start`. The last one is the slider."""
    note: str = ""
    """What a reader should know of all pictures."""

    def twin(self) -> str:
        """The self-contained HTML: works from a disk, without a kernel and without a network."""
        combinations = list(itertools.product(*(options.items() for options in self.axes.values())))
        first = next((n for n, chosen in enumerate(combinations) if self._is_start(chosen)), 0)
        shown = [self.draw(**self.start | {key: value for _, one in chosen for key, value in one.items()})
                 for chosen in combinations]  # fmt: skip
        frames = "".join(
            f'<div class="frame" data-caption="{escape(one.caption)}"{"" if n == first else " hidden"}>'
            f"{one.picture}{one.below}</div>"
            for n, one in enumerate(shown)
        )
        caption, note = escape(shown[first].caption), f"<p><small>{escape(self.note)}</small></p>" if self.note else ""
        output = f"<output>{caption}</output>"
        controls = self._static_controls([option for option, _ in combinations[first]], caption)
        return f'<figure class="explorer"><figcaption>{controls}<p>{output}</p></figcaption>{frames}{note}</figure>'

    def _static_controls(self, chosen: list[str], caption: str) -> str:
        html = []
        for (label, options), option in zip(self.axes.items(), chosen, strict=True):
            names, at = list(options), list(options).index(option)
            told = f'data-states="{len(names)}" autocomplete="off" oninput="{MOVE}"'
            if label == list(self.axes)[-1]:
                told += f' min="0" max="{len(names) - 1}" value="{at}" aria-valuetext="{caption}"'
                html.append(f'<label>{escape(label)} <input type="range" {told}></label>')
            else:
                listed = "".join(
                    f'<option value="{n}"{" selected" if n == at else ""}>{escape(name)}</option>'
                    for n, name in enumerate(names)
                )
                html.append(f"<label>{escape(label)} <select {told}>{listed}</select></label>")
        return " ".join(html)

    def _is_start(self, chosen: tuple) -> bool:
        return all(self.start.get(key, value) == value for _, one in chosen for key, value in one.items())

    def live(self) -> "ipywidgets.VBox":
        """The widget: controls above, the picture, its caption. A change of any control draws anew."""
        import ipywidgets  # here: half a second that a page without a kernel need not wait

        controls = self.controls()
        picture, caption, below = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()

        def show(_: object = None) -> None:
            shown = self.draw(**{name: controls[name].value for name in self.start})
            picture.value = shown.picture
            below.value = f'<div class="jp-RenderedHTMLCommon">{shown.below}</div>'  # a table as outputs have it
            caption.value = f'<span aria-live="polite">{escape(shown.caption)}</span>'

        for name in self.start:
            controls[name].observe(show, "value")
            controls[name].style.description_width = "initial"  # no name is cut
            if isinstance(controls[name], ipywidgets.Dropdown):
                controls[name].layout.width = "max-content"  # nor what is chosen
        show()
        note = [ipywidgets.HTML(f"<small>{escape(self.note)}</small>")] if self.note else []
        row = ipywidgets.HBox(list(controls.values()), layout=ipywidgets.Layout(flex_flow="row wrap", grid_gap="0 1.5em"))
        box = ipywidgets.VBox([row, picture, caption, below, *note])
        return box.add_class("explorer")

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        still = {"text/html": self.twin(), "text/plain": repr(self)}
        return self.live()._repr_mimebundle_() | still if is_live() else still

    def __repr__(self) -> str:
        return f"{self.name}, by {', '.join(self.axes)}"
