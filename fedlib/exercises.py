"""What the notebooks ask, and checks that say what is wrong with an answer.

Every check takes the answer first and gives a `Feedback`: right, not yet (with the reason), or not answered yet. None and
`...` are calmly passed over, so that "run all" works before anything is solved. A wrong answer that stems from a known
mistake is told by that mistake; the right ones are computed from the study at hand.
"""

import functools
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fedlib.config import StudyConfig
from fedlib.data import PreparedSet
from fedlib.partition import shares

CLOSE = 0.005
"""Relative difference within which a number is the right one: rounding is no mistake."""
GUESS = 0.15
"""The same for a prediction of a count: it asks for the rule, not for the last case."""
TIE = 0.01
"""Measured values that differ by less have no order."""


@dataclass(frozen=True)
class Feedback:
    """What a check says. `right` is None while there is no answer."""

    right: bool | None
    text: str

    def __repr__(self) -> str:
        return f"{ {True: 'Right', False: 'Not yet', None: 'Not answered yet'}[self.right] }: {self.text}"


class _Unreadable(Exception):
    """An answer of another kind than the question asks for."""


def _check(function: Callable[..., Feedback]) -> Callable[..., Feedback]:
    """A check that passes over a missing answer, and says which kind of answer it expects."""

    @functools.wraps(function)
    def checked(answer: Any, *given: Any) -> Feedback:
        if answer is None or answer is ...:
            return Feedback(None, "put your answer in place of None and run this cell again.")
        try:
            return function(answer, *given)
        except _Unreadable as reason:
            return Feedback(False, str(reason))

    return checked


# 00: the question, the study, the machine

TRAVELS = {
    "images": "images never leave a hospital; that is the point of it all.",
    "labels": "labels are used where the images are, in the training step, and stay there.",
    "weights": "without the clients' weights there would be nothing to average.",
    "number of cases": "the mean is weighted by cases, so each client tells how many it has.",
    "training loss": "each client reports its loss, for the curves in notebook 3.",
}


@_check
def check_travels(answer: Iterable[str]) -> Feedback:
    """Which of TRAVELS leave a hospital in federated averaging?"""
    chosen = {answer} if isinstance(answer, str) else _read(set, answer, "a set of words, such as {'images', 'labels'}")
    if unknown := chosen - set(TRAVELS):
        return Feedback(False, f"{_words(unknown)} is none of the words to choose from: {_words(TRAVELS)}.")
    right = {"weights", "number of cases", "training loss"}
    if too_much := sorted(chosen - right):
        return Feedback(False, f"{too_much[0]}: {TRAVELS[too_much[0]]}")
    if missing := sorted(right - chosen):
        return Feedback(False, f"something is missing. {len(missing)} more: what does the server need to take its mean?")
    return Feedback(True, "weights, a number of cases and a loss travel; images and labels do not.")


@_check
def check_runs(answer: float, study: StudyConfig) -> Feedback:
    """How many runs does the study make?"""
    arms, seeds = len(study.client_counts) * len(study.partitions), len(study.seeds)
    mistakes = {
        "the centralized run is missing: it is trained once for each seed.": 2 * arms * seeds,
        "the clients that stay alone are runs too, as many as the federations.": (1 + arms) * seeds,
        "every number of clients is run with each partition.": (1 + 2 * len(study.client_counts)) * seeds,
        "every seed repeats the whole grid.": 1 + 2 * arms,
        "centralized training has no clients: there is one run of it, not one for each arm.": 3 * arms * seeds,
    }
    return _number(answer, (1 + 2 * arms) * seeds, mistakes, f"one centralized and {arms} + {arms} others for each seed.")


@_check
def check_study(answer: StudyConfig) -> Feedback:
    """A study of hearts with 2 and 4 clients, five rounds, seeds 1 to 3."""
    if not isinstance(answer, StudyConfig):
        return Feedback(False, f"expected what StudyConfig.make(...) returns; this is {_kind(answer)}.")
    asked = {"task": "segmentation", "client_counts": (2, 4), "rounds": 5, "seeds": (1, 2, 3)}
    for name, value in asked.items():
        if (found := getattr(answer, name)) != value:
            return Feedback(False, f"{'seed' if name == 'seeds' else name} is {found}, expected {value}.")
    return Feedback(True, f"{len(answer.runs(''))} runs, and all that you did not name comes from the profile.")


# 01: data


def split_by_image() -> pd.DataFrame:
    """A set of thirteen images that a colleague split at random, image by image: image, patient, split."""
    patients = ["Ada", "Ada", "Ben", "Cem", "Cem", "Cem", "Dua", "Eli", "Eli", "Fay", "Gil", "Gil", "Hal"]
    splits = ["train", "test", "train", "train", "train", "val", "test", "train", "train", "val", "test", "train", "test"]
    images = [f"image-{number:02}" for number in range(1, 1 + len(patients))]
    return pd.DataFrame({"image": images, "patient": patients, "split": splits})


@_check
def check_leak(answer: float) -> Feedback:
    """How many patients of `split_by_image` are in more than one split?"""
    table = split_by_image()
    splits, images = table.groupby("patient")["split"].nunique(), table.groupby("patient").size()
    mistakes = {
        "that is how many images such patients have; the question is how many patients.": images[splits > 1].sum(),
        "several images are no leak if all of them are in one split.": (images > 1).sum(),
        "that is how many patients there are.": len(splits),
        "a leak from training to validation counts too.": 2,
    }
    right = int((splits > 1).sum())
    return _number(answer, right, mistakes, "these patients would be recognised, not diagnosed.")


@_check
def check_baseline(answer: float, data: PreparedSet) -> Feedback:
    """What share of the test set is right when the commonest label of the training set is always said?

    Labels are the classes of images, or those of voxels.
    """
    train, test = (np.asarray(data.labels[data.split(split)]) for split in ("train", "test"))
    commonest = np.bincount(train.ravel()).argmax()
    right = float((test == commonest).mean())
    mistakes = {
        "that is the share among the training cases; the question is what the test would say.": (train == commonest).mean(),
        "that would be so if all labels were equally frequent.": 1 / len(data.classes),
        "that is what such a guess gets wrong.": 1 - right,
        "expected a share between 0 and 1, not a percentage.": 100 * right,
    }
    return _number(answer, right, mistakes, f"{data.classes[commonest]!r} every time, and no image looked at.")


@_check
def check_smallest_client(answer: float, data: PreparedSet, study: StudyConfig) -> Feedback:
    """How many training cases does the smallest client get in the unbalanced partition with the most clients?"""
    n_clients, n = max(study.client_counts), len(data.split("train"))
    own = n * shares(n_clients, "unbalanced", study.unbalance_ratio)
    mistakes = {
        "that is an equal share; here the shares fall from client to client.": n / n_clients,
        "that is the largest client.": own[0],
        "not the ratio times fewer than an equal share: the largest client has that many times the smallest.": (
            n / n_clients / study.unbalance_ratio
        ),
    }
    said = f"about {own[-1]:.0f} of {n} cases, {own[-1] / n:.0%}, and the largest has {own[0]:.0f}."
    return _number(answer, own[-1], mistakes, said, max(GUESS, 1 / own[-1]))


# 02: centralized training


@_check
def check_steps(answer: float, study: StudyConfig, data: PreparedSet) -> Feedback:
    """How many optimiser steps does the centralized run take?"""
    epochs, n = study.rounds * study.local_epochs, len(data.split("train"))
    right = epochs * -(-n // study.batch_size)
    mistakes = {
        "that is one epoch; the run has rounds x local epochs of them.": right / epochs,
        "that leaves the local epochs out: there are rounds x local epochs epochs.": right / study.local_epochs,
        "the last cases of an epoch are trained on too: round the steps of an epoch up.": epochs * (n // study.batch_size),
        "that is how many images are seen; a step takes a whole batch of them.": epochs * n,
    }
    return _number(answer, right, mistakes, f"{epochs} epochs of {right // epochs} steps.")


def two_masks() -> tuple[np.ndarray, np.ndarray]:
    """A true structure and a prediction of it, (8, 8) bool each: the prediction is too small and one row too low."""
    truth, predicted = np.zeros((2, 8, 8), bool)
    truth[2:6, 2:6] = True
    predicted[3:7, 3:6] = True
    return truth, predicted


@_check
def check_dice(answer: float, truth: np.ndarray, predicted: np.ndarray) -> Feedback:
    """The DSC of two masks."""
    both, either = (truth & predicted).sum(), (truth | predicted).sum()
    mistakes = {
        "that is the Jaccard index, |P ∩ T| / |P ∪ T|; the DSC divides by |P| + |T|.": both / either,
        "the factor 2 is missing: equal masks must have a DSC of 1.": both / (truth.sum() + predicted.sum()),
        "that counts the background, where both say nothing, as a success.": (truth == predicted).mean(),
        "that is the share of the true structure that was found; what was found beside it counts too.": both / truth.sum(),
        "that is the share of the prediction that is true; what was missed counts too.": both / predicted.sum(),
    }
    return _number(answer, 2 * both / (truth.sum() + predicted.sum()), mistakes, "2 |P ∩ T| / (|P| + |T|).")


def rare_disease() -> pd.DataFrame:
    """A confusion matrix in cases: rows are the truth, columns what a model said. One class is rare."""
    names = pd.Index(["ill", "healthy"])
    return pd.DataFrame([[6, 14], [5, 175]], names.rename("truth"), names.rename("said"))


@_check
def check_sensitivity(answer: float, confusion: pd.DataFrame) -> Feedback:
    """The sensitivity averaged over the classes of a confusion matrix."""
    cells = confusion.to_numpy()
    own = cells.diagonal() / cells.sum(axis=1)
    mistakes = {
        "that is the accuracy: it weighs the common class more.": cells.diagonal().sum() / cells.sum(),
        "that is the mean over the columns: what was said to be ill and is (the predictive value).": (
            cells.diagonal() / cells.sum(axis=0)
        ).mean(),
        f"that is the sensitivity of {confusion.index[0]!r} alone.": own[0],
        f"that is the sensitivity of {confusion.index[1]!r} alone.": own[1],
    }
    words = " and ".join(f"{share:.2f} of the {name}" for name, share in zip(confusion.index, own, strict=True))
    return _number(answer, own.mean(), mistakes, f"{words} are found, and each class counts alike.")


# 03: federated averaging


@_check
def check_average(answer: np.ndarray, sent: list[np.ndarray], cases: list[int]) -> Feedback:
    """FedAvg of one weight array that several clients sent."""
    stacked = np.stack(sent).astype(float)  # (K, ...)
    weighted = np.tensordot(np.asarray(cases, float), stacked, axes=1)
    mistakes = {
        "that is the plain mean: every client counts by its cases.": stacked.mean(axis=0),
        "that is the weighted sum; divide by the number of all cases.": weighted,
        "that is the plain sum of what the clients sent.": stacked.sum(axis=0),
        "the counts are those of other clients: the order is reversed.": np.tensordot(cases[::-1], stacked, 1) / sum(cases),
    }
    praise = "the mean of what the clients sent, each counted by its cases."
    return _array(answer, weighted / sum(cases), mistakes, praise, "the sum over the clients of n_k / n times w_k")


@_check
def check_megabytes(answer: float, n_weights: int, n_clients: int, rounds: int) -> Feedback:
    """How many MB travel in a federation, both ways, at 4 bytes a weight?"""
    right = 2 * 4 * n_weights * n_clients * rounds / 1e6
    mistakes = {
        "weights go down to the clients and up again: twice that.": right / 2,
        "every client sends and receives them.": right / n_clients,
        "that is one round.": right / rounds,
        "a weight of 32 bits has 4 bytes.": right * 8,
        "that counts a weight as one byte; it has 4.": right / 4,
        "expected MB, not bytes.": right * 1e6,
    }
    return _number(answer, right, mistakes, "both ways, every client, every round.", 0.02)


# 05: going further


@_check
def check_pull(answer: np.ndarray, weights: np.ndarray, sent: np.ndarray, mu: float) -> Feedback:
    """What FedProx adds to the gradient at `weights`, when the server had sent `sent`."""
    right = mu * (weights - sent)
    mistakes = {
        "that points away from the weights that were sent: a gradient is subtracted in a step.": -right,
        "μ is missing.": weights - sent,
        "that is half of it: the derivative of ½ x² is x.": right / 2,
        "that is twice as much: the loss has μ/2, not μ.": right * 2,
    }
    praise = "the further a client has gone, the harder it is pulled back."
    return _array(answer, right, mistakes, praise, "the derivative of μ/2 · |w − w_sent|² by w")


@_check
def check_leftover(answer: np.ndarray, sent: np.ndarray, updates: np.ndarray) -> Feedback:
    """What is left of the masks in the server's sum when the last client does not answer."""
    right = (sent[:-1] - updates[:-1]).sum(axis=0)
    mistakes = {
        "that is the server's sum; take away what the clients that are there truly wanted to say.": sent[:-1].sum(axis=0),
        "the update of the client that is gone is not in the sum.": sent[:-1].sum(axis=0) - updates.sum(axis=0),
        "with all clients there is nothing left; without the last one the masks shared with it stay.": 0 * right,
        "those are the masks of the client that is gone, as it would have added them: the others hold the opposite.": -right,
    }
    praise = "the sum is worthless until somebody tells the masks of the client that is gone."
    return _array(answer, right, mistakes, praise, "what the others sent, minus what they wanted to say, summed over them")


@_check
def check_clients_needed(answer: float, noise_multiplier: float, clipping_norm: float, wanted: float) -> Feedback:
    """How many clients does it take until the noise in their mean has the standard deviation `wanted`?"""
    right = noise_multiplier * clipping_norm / wanted
    mistakes = {
        "the noise is added once to the sum: it falls with the number of clients, not with its square.": right**0.5,
        "that would be so if the noise fell with the square root of the number of clients.": right**2,
        "the clipping norm is missing.": noise_multiplier / wanted,
        "the noise multiplier is missing.": clipping_norm / wanted,
    }
    return _number(answer, right, mistakes, "z C / K: it takes many clients to drown the noise.", 0.02)


# predictions, in any notebook


@_check
def check_order(answer: Iterable[str], measured: Mapping[str, float]) -> Feedback:
    """A prediction of an order, the largest first, beside what was measured. What differs by less than TIE has no order."""
    measured = {str(name): float(value) for name, value in dict(measured).items()}
    said = [answer] if isinstance(answer, str) else [str(name) for name in _read(list, answer, "a list of names")]
    if sorted(said) != sorted(measured):
        return Feedback(False, f"expected a list of all of these names, each once: {_words(measured)}.")
    found = ", ".join(f"{name} {measured[name]:.2f}" for name in sorted(measured, key=measured.get, reverse=True))
    for before, after in zip(said, said[1:], strict=False):
        if measured[after] > measured[before] + TIE:
            return Feedback(False, f"{after} is above {before}. Measured: {found}. What explains it?")
    if max(measured.values()) - min(measured.values()) <= TIE:
        return Feedback(True, f"any order would do, for no difference is to be seen here. Measured: {found}.")
    return Feedback(True, f"measured: {found}.")


def _number(answer: Any, right: float, mistakes: Mapping[str, float], praise: str, within: float = CLOSE) -> Feedback:
    """Compare a number with the right one, then with what known mistakes give."""
    if isinstance(answer, str) or not isinstance(answer, numbers.Number | np.ndarray | np.generic) or np.size(answer) != 1:
        raise _Unreadable(f"expected one number; this is {_kind(answer)}.")
    answer = float(np.asarray(answer).item())
    if abs(answer - right) <= within * abs(right) + 1e-9:
        return Feedback(True, praise)
    for why, value in mistakes.items():
        if abs(answer - float(value)) <= CLOSE * abs(float(value)) + 1e-9:
            return Feedback(False, f"{answer:.4g}: {why}")
    return Feedback(False, f"{answer:.4g} is too {'small' if answer < right else 'large'}.")


def _array(answer: Any, right: np.ndarray, mistakes: Mapping[str, np.ndarray], praise: str, expected: str) -> Feedback:
    """The same for an array."""
    answer = _read(lambda value: np.asarray(value, float), answer, "an array of numbers")
    if answer.shape != right.shape:
        return Feedback(False, f"the shape is {answer.shape}, expected {right.shape}.")
    same = functools.partial(np.allclose, answer, rtol=1e-3, atol=1e-5)
    if same(right):
        return Feedback(True, praise)
    known = next((why for why, value in mistakes.items() if same(value)), None)
    return Feedback(False, known or f"off by up to {np.abs(answer - right).max():.2g}; expected {expected}.")


def _read(kind: Callable[[Any], Any], answer: Any, expected: str) -> Any:
    try:
        return kind(answer)
    except (TypeError, ValueError):
        raise _Unreadable(f"expected {expected}; this is {_kind(answer)}.") from None


def _kind(answer: Any) -> str:
    return f"{type(answer).__name__} {str(answer)[:40]!r}"


def _words(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, names)))
