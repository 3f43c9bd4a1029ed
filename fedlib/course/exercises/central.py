"""Exercises of the notebooks 00 to 02: the study, its data, centralized training."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from fedlib.config import StudyConfig
from fedlib.course.exercises.feedback import EXACT, Feedback, check, described, listed, number, read
from fedlib.data.dataset import SPLITS, PreparedDataset
from fedlib.data.partition import client_shares

ROUGHLY = 0.15
"""Relative difference within which a predicted partition is right: the rule counts, not the last case."""

TRAVELS = {"weights", "number of cases", "training loss"}
STAYS = {
    "images": "images never leave a hospital. That is the purpose of federated learning.",
    "labels": "labels are used in the training step, beside the images, and stay there.",
}


@check
def check_travels(answer: Iterable[str]) -> Feedback:
    """Check which things leave a hospital in federated averaging."""
    chosen = {answer} if isinstance(answer, str) else read(set, answer, "a set of words, such as {'images', 'labels'}")
    if unknown := chosen - TRAVELS - set(STAYS):
        return Feedback(False, f"unknown: {listed(unknown)}. Choose from {listed(TRAVELS | set(STAYS))}.")
    for name in STAYS:
        if name in chosen:
            return Feedback(False, f"{name}: {STAYS[name]}")
    if missing := len(TRAVELS - chosen):
        return Feedback(False, f"something is missing. {missing} more: what does the server need to take its mean?")
    return Feedback(True, "weights, a number of cases and a loss travel; images and labels do not.")


@check
def check_runs(answer: float, study: StudyConfig) -> Feedback:
    """Check the number of runs in the study's grid."""
    arms, seeds = len(study.client_counts) * len(study.partitions), len(study.seeds)
    mistakes = {
        "the centralized run is missing: there is one for each seed.": 2 * arms * seeds,
        "the local models are runs too, as many as the federations.": (1 + arms) * seeds,
        "every number of clients is run with each partition.": (1 + 2 * len(study.client_counts)) * seeds,
        "every seed repeats the whole grid.": 1 + 2 * arms,
        "centralized training has no clients: there is one run of it, not one for each arm.": 3 * arms * seeds,
    }
    praise = f"one centralized run, {arms} federations and {arms} local runs for each seed."
    return number(answer, (1 + 2 * arms) * seeds, mistakes, praise, EXACT)


@check
def check_study(answer: StudyConfig) -> Feedback:
    """Check a study of hearts with 2 and 4 clients, five rounds, seeds 1 to 3."""
    if not isinstance(answer, StudyConfig):
        return Feedback(False, f"expected what StudyConfig.make(...) returns; this is {described(answer)}.")
    for name, value in {"task": "segmentation", "client_counts": (2, 4), "rounds": 5, "seeds": (1, 2, 3)}.items():
        if (found := getattr(answer, name)) != value:
            return Feedback(False, f"{'seed' if name == 'seeds' else name} is {found}, expected {value}.")
    return Feedback(True, f"{len(answer.runs(''))} runs. The profile supplies everything that you did not name.")


def split_by_image() -> pd.DataFrame:
    """Return thirteen images that were split at random, image by image: image, patient, split."""
    patients = ["Ada", "Ada", "Ben", "Cem", "Cem", "Cem", "Dua", "Eli", "Eli", "Fay", "Gil", "Gil", "Hal"]
    splits = ["train", "test", "train", "train", "train", "val", "test", "train", "train", "val", "test", "train", "test"]
    images = [f"image-{number:02}" for number in range(1, 1 + len(patients))]
    return pd.DataFrame({"image": images, "patient": patients, "split": splits})


@check
def check_leak(answer: float) -> Feedback:
    """Check how many patients of `split_by_image` are in more than one split."""
    patients = split_by_image().groupby("patient")["split"]
    splits, images = patients.nunique(), patients.size()
    mistakes = {
        "that is how many images such patients have. Count the patients.": images[splits > 1].sum(),
        "several images are no leak if all of them are in one split.": (images > 1).sum(),
        "that is how many patients there are.": len(splits),
        "a leak from training to validation counts too.": 2,
    }
    return number(answer, (splits > 1).sum(), mistakes, "these patients would be recognised, not diagnosed.", EXACT)


@check
def check_seen(answer: float, data: PreparedDataset) -> Feedback:
    """Check the share of the test images whose patient has an image in training."""
    train, val, test = (data.cases[data.cases["split"] == split]["patient"] for split in SPLITS)
    mistakes = {
        "that is a share of the test patients. A patient with several test images counts several times.": (
            test.drop_duplicates().isin(train).mean()
        ),
        "that counts patients of the validation split too, on whom no model trains.": test.isin([*train, *val]).mean(),
        "that is the share of the training images whose patient is in the test.": train.isin(test).mean(),
        "expected a share between 0 and 1, not a percentage.": 100 * test.isin(train).mean(),
    }
    return number(
        answer, test.isin(train).mean(), mistakes, "the model met these patients, with their diagnosis, in training."
    )


@check
def check_baseline(answer: float, data: PreparedDataset) -> Feedback:
    """Check the test accuracy of always predicting the commonest training label, of an image or of a voxel."""
    train, test = (np.asarray(data.labels[data.split(split)]) for split in ("train", "test"))
    commonest = np.bincount(train.ravel()).argmax()
    right = float((test == commonest).mean())
    mistakes = {
        "that is the share among the training cases. The question is about the test set.": (train == commonest).mean(),
        "that would be so if all labels were equally frequent.": 1 / len(data.classes),
        "that is the share that this guess gets wrong.": 1 - right,
        "expected a share between 0 and 1, not a percentage.": 100 * right,
    }
    return number(answer, right, mistakes, f"{data.classes[commonest]!r} every time, without a look at any image.")


@check
def check_smallest_client(answer: float, data: PreparedDataset, study: StudyConfig) -> Feedback:
    """Check the training cases of the smallest client, under quantity_skew with the most clients."""
    n_clients, n, ratio = max(study.client_counts), len(data.split("train")), study.unbalance_ratio
    sizes = n * client_shares(n_clients, ratio)
    mistakes = {
        "that is an equal share; here the shares fall from client to client.": n / n_clients,
        "that is the largest client.": sizes[0],
        "the ratio compares the smallest client with the largest, not with an equal share.": n / n_clients / ratio,
    }
    praise = f"about {sizes[-1]:.0f} of {n} cases, {sizes[-1] / n:.0%}; the largest client has {sizes[0]:.0f}."
    return number(answer, sizes[-1], mistakes, praise, max(ROUGHLY, 1 / sizes[-1]))


@check
def check_steps(answer: float, study: StudyConfig, data: PreparedDataset) -> Feedback:
    """Check the number of optimizer steps of the centralized run."""
    epochs, n = study.rounds * study.local_epochs, len(data.split("train"))
    right = epochs * -(-n // study.batch_size)
    mistakes = {
        "that is one epoch; the run has rounds x local epochs of them.": right / epochs,
        "local epochs are missing: the run has rounds x local epochs epochs.": right / study.local_epochs,
        "the last cases of an epoch are trained on too: round the steps of an epoch up.": epochs * (n // study.batch_size),
        "that is how many images are seen; a step takes a whole batch of them.": epochs * n,
    }
    return number(answer, right, mistakes, f"{epochs} epochs of {right // epochs} steps.", EXACT)


def two_masks() -> tuple[np.ndarray, np.ndarray]:
    """Return a true structure and a prediction, (8, 8) bool each: the prediction is too small and one row too low."""
    truth, predicted = np.zeros((2, 8, 8), bool)
    truth[2:6, 2:6] = True
    predicted[3:7, 3:6] = True
    return truth, predicted


@check
def check_dice(answer: float, truth: np.ndarray, predicted: np.ndarray) -> Feedback:
    """Check the DSC of two masks."""
    both, sizes = (truth & predicted).sum(), truth.sum() + predicted.sum()
    mistakes = {
        "that is the Jaccard index, |P ∩ T| / |P ∪ T|; the DSC divides by |P| + |T|.": both / (truth | predicted).sum(),
        "the factor 2 is missing: equal masks must have a DSC of 1.": both / sizes,
        "that counts background in both masks as a success.": (truth == predicted).mean(),
        "that is the share of the true structure that was found; what was found beside it counts too.": both / truth.sum(),
        "that is the share of the prediction that is true; what was missed counts too.": both / predicted.sum(),
    }
    return number(answer, 2 * both / sizes, mistakes, "2 |P ∩ T| / (|P| + |T|).")


def rare_disease() -> pd.DataFrame:
    """Return a confusion matrix in cases, a row for each true class and a column for each predicted one. One is rare."""
    names = pd.Index(["ill", "healthy"])
    return pd.DataFrame([[6, 14], [5, 175]], names.rename("truth"), names.rename("predicted"))


@check
def check_sensitivity(answer: float, confusion: pd.DataFrame) -> Feedback:
    """Check the sensitivity averaged over the classes of a confusion matrix."""
    cells = confusion.to_numpy()
    found, (first, second) = cells.diagonal() / cells.sum(axis=1), confusion.index
    mistakes = {
        "that is the accuracy, in which the common class counts more.": cells.diagonal().sum() / cells.sum(),
        "that is the mean over the columns, the predictive values.": (cells.diagonal() / cells.sum(axis=0)).mean(),
        f"that is the sensitivity of {first!r} only.": found[0],
        f"that is the sensitivity of {second!r} only.": found[1],
    }
    praise = f"{found[0]:.2f} of the {first} and {found[1]:.2f} of the {second} are found, and each class counts alike."
    return number(answer, found.mean(), mistakes, praise)
