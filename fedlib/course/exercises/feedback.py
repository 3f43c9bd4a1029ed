"""Feedback on a student's answer: one line that says what is wrong with it, and never an exception."""

import functools
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

CLOSE, EXACT = 0.005, 0.0
"""Relative differences within which a number is right: of a measured value, and of a count."""
TIE = 0.01
"""Measured values that differ by less have no order."""
MIME_TYPE = "application/vnd.fedlib.feedback+json"
"""Of feedback as a notebook stores it, so that it can be told from what a cell prints."""


@dataclass(frozen=True)
class Feedback:
    """The result of a check. `right` is None while there is no answer."""

    right: bool | None
    text: str

    def __repr__(self) -> str:
        head = {True: "Right", False: "Not yet", None: "Not answered yet"}[self.right]
        return f"{head}: {' '.join(self.text.split())}"  # one line, whatever an answer puts into it

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"text/plain": repr(self), MIME_TYPE: {"right": self.right, "text": self.text}}


def check(function: Callable[..., Feedback]) -> Callable[..., Feedback]:
    """Make a check skip a missing answer, and turn every error into feedback."""

    @functools.wraps(function)
    def checked(answer: Any, *given: Any) -> Feedback:
        if answer is None or answer is ...:
            return Feedback(None, "put your answer in place of None and run this cell again.")
        try:
            return function(answer, *given)
        except Exception as error:  # an answer can be any object, and its methods can raise anything
            return Feedback(False, str(error) or f"{type(answer).__name__} is no answer to this question.")

    return checked


@check
def check_order(answer: Iterable[str], measured: Mapping[str, float]) -> Feedback:
    """Compare a predicted order, largest first, with measured values. Values within TIE of each other may swap."""
    values = {str(name): float(value) for name, value in dict(measured).items()}
    if isinstance(answer, set | frozenset | Mapping):
        raise TypeError(f"expected a list, because a {type(answer).__name__} has no order.")
    predicted = [answer] if isinstance(answer, str) else [str(name) for name in read(list, answer, "a list of names")]
    if sorted(predicted) != sorted(values):
        return Feedback(False, f"expected a list of all of these names, each once: {listed(values)}.")
    found = ", ".join(f"{name} {values[name]:.2f}" for name in sorted(values, key=values.get, reverse=True))
    for before, after in zip(predicted, predicted[1:], strict=False):
        if values[after] > values[before] + TIE:
            return Feedback(False, f"{after} is above {before}. Measured: {found}. What explains it?")
    if max(values.values()) - min(values.values()) <= TIE:
        return Feedback(True, f"any order is right, because no difference is visible here. Measured: {found}.")
    return Feedback(True, f"measured: {found}.")


def number(answer: Any, right: float, mistakes: Mapping[str, float], praise: str, within: float = CLOSE) -> Feedback:
    """Compare a number with the right one, then with the results of known mistakes.

    Unless `within` is EXACT, a correct rounding to two significant digits or more is right as well.
    """
    values = _floats(answer, "one number")
    if values.size != 1 or not np.isfinite(values).all():
        raise TypeError(f"expected one number, and a finite one; this is {described(answer)}.")
    value = values.item()
    rounded = [] if within == EXACT else [float(f"{right:.{digits}g}") for digits in range(2, 7)]
    if np.isclose(value, right, within, 1e-9) or np.isclose(value, rounded, 1e-6, 0).any():
        return Feedback(True, praise)
    for why, wrong in mistakes.items():
        if np.isclose(value, float(wrong), min(within, CLOSE), 1e-9):
            return Feedback(False, f"{value:.4g}: {why}")
    return Feedback(False, f"{value:.4g} is too {'small' if value < right else 'large'}.")


def array(answer: Any, right: np.ndarray, mistakes: Mapping[str, np.ndarray], praise: str, expected: str) -> Feedback:
    """Compare an array with the right one, then with the results of known mistakes."""
    values = _floats(answer, "an array of numbers")
    if values.shape != right.shape:
        return Feedback(False, f"the shape is {values.shape}, expected {right.shape}.")
    same = functools.partial(np.allclose, values, rtol=1e-3, atol=1e-5)
    if same(right):
        return Feedback(True, praise)
    known = next((why for why, wrong in mistakes.items() if same(wrong)), None)
    return Feedback(False, known or f"off by up to {np.abs(values - right).max():.2g}; expected {expected}.")


def read(kind: Callable[[Any], Any], answer: Any, expected: str) -> Any:
    """Return `kind(answer)`. Raises TypeError, saying what was expected, where that fails."""
    try:
        return kind(answer)
    except (TypeError, ValueError):
        raise TypeError(f"expected {expected}; this is {described(answer)}.") from None


def described(answer: Any) -> str:
    """Return the type and the first characters of an answer."""
    return f"{type(answer).__name__} {str(answer)[:40]!r}"


def listed(names: Iterable[Any]) -> str:
    """Return names in alphabetical order, with commas."""
    return ", ".join(sorted(map(str, names)))


def _floats(answer: Any, expected: str) -> np.ndarray:
    """Return a number, sequence, array, Series or tensor as an array of floats; text and booleans are refused."""
    found = read(lambda value: np.asarray(_plain(value)), answer, expected)
    if found.dtype.kind not in "iuf":
        raise TypeError(f"expected {expected}; this is {described(answer)}.")
    return found.astype(float)


def _plain(answer: Any) -> Any:
    """Return tensors as lists, since NumPy takes none that needs a gradient, and fractions as floats."""
    if isinstance(answer, torch.Tensor):
        return answer.detach().tolist()
    if isinstance(answer, list | tuple):
        return [_plain(each) for each in answer]
    return float(answer) if isinstance(answer, numbers.Rational) and not isinstance(answer, bool) else answer
