"""Feedback, and how an answer is read: what is wrong, in one line, and never an exception."""

import functools
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

CLOSE = 0.005
"""Relative difference within which a number is the right one: rounding is no mistake."""
TIE = 0.01
"""Measured values that differ by less have no order."""


@dataclass(frozen=True)
class Feedback:
    """What a check says. `right` is None while there is no answer."""

    right: bool | None
    text: str

    def __repr__(self) -> str:
        return f"{ {True: 'Right', False: 'Not yet', None: 'Not answered yet'}[self.right] }: {self.text}"


class Unreadable(Exception):
    """An answer of another kind than the question asks for."""


def check(function: Callable[..., Feedback]) -> Callable[..., Feedback]:
    """A check that passes over a missing answer, and says which kind of answer it expects."""

    @functools.wraps(function)
    def checked(answer: Any, *given: Any) -> Feedback:
        if answer is None or answer is ...:
            return Feedback(None, "put your answer in place of None and run this cell again.")
        try:
            return function(answer, *given)
        except Unreadable as reason:
            return Feedback(False, str(reason))

    return checked


@check
def check_order(answer: Iterable[str], measured: Mapping[str, float]) -> Feedback:
    """A prediction of an order, the largest first, beside what was measured. What differs by less than TIE has no order."""
    measured = {str(name): float(value) for name, value in dict(measured).items()}
    said = [answer] if isinstance(answer, str) else [str(name) for name in read(list, answer, "a list of names")]
    if sorted(said) != sorted(measured):
        return Feedback(False, f"expected a list of all of these names, each once: {listed(measured)}.")
    found = ", ".join(f"{name} {measured[name]:.2f}" for name in sorted(measured, key=measured.get, reverse=True))
    for before, after in zip(said, said[1:], strict=False):
        if measured[after] > measured[before] + TIE:
            return Feedback(False, f"{after} is above {before}. Measured: {found}. What explains it?")
    if max(measured.values()) - min(measured.values()) <= TIE:
        return Feedback(True, f"any order would do, for no difference is to be seen here. Measured: {found}.")
    return Feedback(True, f"measured: {found}.")


def number(answer: Any, right: float, mistakes: Mapping[str, float], praise: str, within: float = CLOSE) -> Feedback:
    """Compare a number with the right one, then with what known mistakes give."""
    if isinstance(answer, str) or not isinstance(answer, numbers.Number | np.ndarray | np.generic) or np.size(answer) != 1:
        raise Unreadable(f"expected one number; this is {described(answer)}.")
    answer = float(np.asarray(answer).item())
    if abs(answer - right) <= within * abs(right) + 1e-9:
        return Feedback(True, praise)
    for why, value in mistakes.items():
        if abs(answer - float(value)) <= CLOSE * abs(float(value)) + 1e-9:
            return Feedback(False, f"{answer:.4g}: {why}")
    return Feedback(False, f"{answer:.4g} is too {'small' if answer < right else 'large'}.")


def array(answer: Any, right: np.ndarray, mistakes: Mapping[str, np.ndarray], praise: str, expected: str) -> Feedback:
    """The same for an array."""
    answer = read(lambda value: np.asarray(value, float), answer, "an array of numbers")
    if answer.shape != right.shape:
        return Feedback(False, f"the shape is {answer.shape}, expected {right.shape}.")
    same = functools.partial(np.allclose, answer, rtol=1e-3, atol=1e-5)
    if same(right):
        return Feedback(True, praise)
    known = next((why for why, value in mistakes.items() if same(value)), None)
    return Feedback(False, known or f"off by up to {np.abs(answer - right).max():.2g}; expected {expected}.")


def read(kind: Callable[[Any], Any], answer: Any, expected: str) -> Any:
    try:
        return kind(answer)
    except (TypeError, ValueError):
        raise Unreadable(f"expected {expected}; this is {described(answer)}.") from None


def described(answer: Any) -> str:
    return f"{type(answer).__name__} {str(answer)[:40]!r}"


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, names)))
