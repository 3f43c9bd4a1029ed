"""Feedback on a student's answer: one line that says what is wrong with it, and never an exception."""

import functools
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import torch

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


@dataclass(frozen=True)
class Solution:
    """The right number or array, and the value that each known mistake leads to, by the feedback on it.

    `rtol` and `atol` are NumPy's tolerances. Correct rounding is right as well, but for a count, whose `rtol` is 0.
    """

    right: Any
    praise: str
    mistakes: Mapping[str, Any] = field(default_factory=dict)
    rtol: float = 0.005
    atol: float = 0.0


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


def check_value(solve: Callable[..., Solution]) -> Callable[..., Feedback]:
    """Turn a function that solves an exercise into the check of an answer: `check_x(answer, *given)`."""

    @check
    def checked(answer: Any, *given: Any) -> Feedback:
        return compare(answer, solve(*given))

    checked.__name__, checked.__doc__ = solve.__name__, solve.__doc__
    return checked


def compare(answer: Any, solution: Solution) -> Feedback:
    """Compare a number or an array with the right one, then with the results of known mistakes.

    Raises TypeError when the answer is no finite number, or several where one is expected.
    """
    right = np.asarray(solution.right, float)
    expected = "an array of finite numbers" if right.ndim else "one finite number"
    values = read(lambda value: np.asarray(_plain(value)), answer, expected)
    is_numeric = values.dtype.kind in "iuf" and np.isfinite(values).all()
    if not is_numeric or (right.ndim == 0 and values.size != 1):
        raise TypeError(f"expected {expected}; this is {described(answer)}.")
    values = values.astype(float) if right.ndim else values.astype(float).reshape(())
    if values.shape != right.shape:
        return Feedback(False, f"the shape is {values.shape}, expected {right.shape}.")
    if _is_close(values, right, solution.rtol, solution.atol):
        return Feedback(True, solution.praise)
    for why, wrong in solution.mistakes.items():
        if _is_close(values, np.asarray(wrong, float), min(solution.rtol, Solution.rtol)):
            return Feedback(False, why)
    if right.ndim:
        return Feedback(False, f"off by up to {np.abs(values - right).max():.2g}.")
    return Feedback(False, f"{values:.4g} is too {'small' if values < right else 'large'}.")


def _is_close(values: np.ndarray, target: np.ndarray, rtol: float, atol: float = 0.0) -> bool:
    """Return whether each value is close to its target, or is its target rounded to two significant digits or more."""
    tiny = 1e-6 * np.abs(target).max()  # what float32 may differ by
    close = np.isclose(values, target, rtol, atol + tiny)
    for digits in range(2, 7) if rtol else ():
        close |= np.isclose(values, np.char.mod(f"%.{digits}g", target).astype(float), 1e-6, 0)
    return bool(close.all())


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


def named(answer: Any) -> Any:
    """Return names that were written as one text, with commas, as a list; all else stays as it is."""
    return [name.strip() for name in answer.split(",")] if isinstance(answer, str) else answer


def _plain(answer: Any) -> Any:
    """Return tensors, arrays and Series as lists, and numbers of every kind as floats; all else stays as it is."""
    if isinstance(answer, torch.Tensor):
        answer = answer.detach()
    if isinstance(answer, torch.Tensor | np.ndarray | pd.Series):
        return _plain(answer.tolist())
    if isinstance(answer, list | tuple):
        return [_plain(each) for each in answer]
    is_number = isinstance(answer, numbers.Real | Decimal) and not isinstance(answer, bool)
    return float(answer) if is_number else answer
