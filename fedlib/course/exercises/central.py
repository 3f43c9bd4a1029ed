"""Notebooks 00 to 02: the study, its data, centralized training."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from fedlib.config import StudyConfig
from fedlib.course.exercises.feedback import Feedback, check, described, listed, number, read
from fedlib.data.dataset import PreparedSet
from fedlib.data.partition import shares

GUESS = 0.15
"""Relative difference within which a predicted count is right: it asks for the rule, not for the last case."""

# 00: the question, the study, the machine

TRAVELS = {
    "images": "images never leave a hospital; that is the point of it all.",
    "labels": "labels are used where the images are, in the training step, and stay there.",
    "weights": "without the clients' weights there would be nothing to average.",
    "number of cases": "the mean is weighted by cases, so each client tells how many it has.",
    "training loss": "each client reports its loss, for the curves in notebook 3.",
}


@check
def check_travels(answer: Iterable[str]) -> Feedback:
    """Which of TRAVELS leave a hospital in federated averaging?"""
    chosen = {answer} if isinstance(answer, str) else read(set, answer, "a set of words, such as {'images', 'labels'}")
    if unknown := chosen - set(TRAVELS):
        return Feedback(False, f"{listed(unknown)} is none of the words to choose from: {listed(TRAVELS)}.")
    right = {"weights", "number of cases", "training loss"}
    if too_much := sorted(chosen - right):
        return Feedback(False, f"{too_much[0]}: {TRAVELS[too_much[0]]}")
    if missing := sorted(right - chosen):
        return Feedback(False, f"something is missing. {len(missing)} more: what does the server need to take its mean?")
    return Feedback(True, "weights, a number of cases and a loss travel; images and labels do not.")


@check
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
    return number(answer, (1 + 2 * arms) * seeds, mistakes, f"one centralized and {arms} + {arms} others for each seed.")


@check
def check_study(answer: StudyConfig) -> Feedback:
    """A study of hearts with 2 and 4 clients, five rounds, seeds 1 to 3."""
    if not isinstance(answer, StudyConfig):
        return Feedback(False, f"expected what StudyConfig.make(...) returns; this is {described(answer)}.")
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


@check
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
    return number(answer, right, mistakes, "these patients would be recognised, not diagnosed.")


@check
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
    return number(answer, right, mistakes, f"{data.classes[commonest]!r} every time, and no image looked at.")


@check
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
    return number(answer, own[-1], mistakes, said, max(GUESS, 1 / own[-1]))


# 02: centralized training


@check
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
    return number(answer, right, mistakes, f"{epochs} epochs of {right // epochs} steps.")


def two_masks() -> tuple[np.ndarray, np.ndarray]:
    """A true structure and a prediction of it, (8, 8) bool each: the prediction is too small and one row too low."""
    truth, predicted = np.zeros((2, 8, 8), bool)
    truth[2:6, 2:6] = True
    predicted[3:7, 3:6] = True
    return truth, predicted


@check
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
    return number(answer, 2 * both / (truth.sum() + predicted.sum()), mistakes, "2 |P ∩ T| / (|P| + |T|).")


def rare_disease() -> pd.DataFrame:
    """A confusion matrix in cases: rows are the truth, columns what a model said. One class is rare."""
    names = pd.Index(["ill", "healthy"])
    return pd.DataFrame([[6, 14], [5, 175]], names.rename("truth"), names.rename("said"))


@check
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
    return number(answer, own.mean(), mistakes, f"{words} are found, and each class counts alike.")
