"""Exercises of the notebooks, with checks that name the mistake behind a wrong answer.

Every check takes the answer first and returns a `Feedback`: right, not yet (with the reason) or not answered yet. None and
`...` count as no answer, so "run all" works before anything is solved. Right answers are computed from the study at hand.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from fedlib.analysis import verdict
from fedlib.config import StudyConfig
from fedlib.course.feedback import Feedback, Solution, check, check_value, compare, described, listed, named, read
from fedlib.data.dataset import SPLITS, PreparedDataset
from fedlib.data.partition import client_shares

TIE = 0.01
"""Measured values that differ by less have no order."""
PERCENT = "expected a share between 0 and 1, not a percentage."
TRAVELS = {"weights", "number of cases", "training loss"}
STAYS = {
    "images": "images never leave a hospital. That is the purpose of federated learning.",
    "labels": "labels are used in the training step, beside the images, and stay there.",
}


@check
def check_travels(answer: Iterable[str]) -> Feedback:
    """Check which things leave a hospital in federated averaging."""
    chosen = read(set, named(answer), "a set of words, such as {'images', 'labels'}")
    if unknown := chosen - TRAVELS - set(STAYS):
        return Feedback(False, f"unknown: {listed(unknown)}. Choose from {listed(TRAVELS | set(STAYS))}.")
    if private := sorted(chosen & set(STAYS)):
        return Feedback(False, STAYS[private[0]])
    if missing := len(TRAVELS - chosen):
        return Feedback(False, f"something is missing. {missing} more: what does the server need to take its mean?")
    return Feedback(True, "weights, a number of cases and a loss travel; images and labels do not.")


@check_value
def check_runs(study: StudyConfig) -> Solution:
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
    return Solution((1 + 2 * arms) * seeds, praise, mistakes, rtol=0)


@check
def check_study(answer: StudyConfig) -> Feedback:
    """Check a study of hearts with 2 and 4 clients, five rounds, seeds 1 to 3."""
    if not isinstance(answer, StudyConfig):
        return Feedback(False, f"expected what StudyConfig.make(...) returns; this is {described(answer)}.")
    for name, value in {"task": "segmentation", "client_counts": [2, 4], "rounds": 5, "seeds": [1, 2, 3]}.items():
        found = getattr(answer, name)
        if (sorted(found) if isinstance(found, tuple) else found) != value:
            return Feedback(False, f"{'seed' if name == 'seeds' else name} is {found}, expected {value}.")
    return Feedback(True, f"{len(answer.runs(''))} runs. The profile supplies everything that you did not name.")


def split_by_image() -> pd.DataFrame:
    """Return thirteen images that were split at random, image by image: image, patient, split."""
    patients = ["Ada", "Ada", "Ben", "Cem", "Cem", "Cem", "Dua", "Eli", "Eli", "Fay", "Gil", "Gil", "Hal"]
    splits = ["train", "test", "train", "train", "train", "val", "test", "train", "train", "val", "test", "train", "test"]
    images = [f"image-{number:02}" for number in range(1, 1 + len(patients))]
    return pd.DataFrame({"image": images, "patient": patients, "split": splits})


@check_value
def check_leak() -> Solution:
    """Check how many patients of `split_by_image` are in more than one split."""
    patients = split_by_image().groupby("patient")["split"]
    splits, images = patients.nunique(), patients.size()
    mistakes = {
        "that is how many images such patients have. Count the patients.": images[splits > 1].sum(),
        "several images are no leak if all of them are in one split.": (images > 1).sum(),
        "that is how many patients there are.": len(splits),
        "a leak from training to validation counts too.": 2,
    }
    return Solution((splits > 1).sum(), "these patients would be recognised, not diagnosed.", mistakes, rtol=0)


@check_value
def check_seen(data: PreparedDataset) -> Solution:
    """Check the share of the test images whose patient has an image in training."""
    train, val, test = (data.cases[data.cases["split"] == split]["patient"] for split in SPLITS)
    right, patients = test.isin(train).mean(), test.drop_duplicates()
    mistakes = {
        "that is a share of the patients. One with several test images counts several times.": patients.isin(train).mean(),
        "that counts patients of the validation split too, on whom no model trains.": test.isin([*train, *val]).mean(),
        "that is the share of the training images whose patient is in the test.": train.isin(test).mean(),
        PERCENT: 100 * right,
    }
    return Solution(right, "the model met these patients, with their diagnosis, in training.", mistakes)


@check_value
def check_baseline(data: PreparedDataset) -> Solution:
    """Check the test accuracy of always predicting the commonest training label, of an image or of a voxel."""
    train, test = (np.asarray(data.labels[data.split(split)]) for split in ("train", "test"))
    commonest = np.bincount(train.ravel()).argmax()
    right = (test == commonest).mean()
    mistakes = {
        "that is the share among the training cases. The question is about the test set.": (train == commonest).mean(),
        "that would be so if all labels were equally frequent.": 1 / len(data.classes),
        "that is the share that this guess gets wrong.": 1 - right,
        PERCENT: 100 * right,
    }
    return Solution(right, f"{data.classes[commonest]!r} every time, without a look at any image.", mistakes)


@check_value
def check_smallest_client(data: PreparedDataset, study: StudyConfig) -> Solution:
    """Check the training cases of the smallest client, under quantity_skew with the most clients, within 15%."""
    n_clients, n, ratio = max(study.client_counts), len(data.split("train")), study.unbalance_ratio
    largest, *_, smallest = n * client_shares(n_clients, ratio)
    mistakes = {
        "that is an equal share; here the shares fall from client to client.": n / n_clients,
        "that is the largest client.": largest,
        "the ratio compares the smallest client with the largest, not with an equal share.": n / n_clients / ratio,
    }
    praise = f"about {smallest:.0f} of {n} cases, {smallest / n:.0%}; the largest client has {largest:.0f}."
    return Solution(smallest, praise, mistakes, rtol=0.15, atol=0.5)


@check_value
def check_steps(study: StudyConfig, data: PreparedDataset) -> Solution:
    """Check the number of optimizer steps of the centralized run."""
    epochs, n = study.rounds * study.local_epochs, len(data.split("train"))
    right = epochs * -(-n // study.batch_size)
    mistakes = {
        "that is one epoch; the run has rounds x local epochs of them.": right / epochs,
        "local epochs are missing: the run has rounds x local epochs epochs.": right / study.local_epochs,
        "the last cases of an epoch are trained on too: round the steps of an epoch up.": epochs * (n // study.batch_size),
        "that is how many images are seen; a step takes a whole batch of them.": epochs * n,
    }
    return Solution(right, f"{epochs} epochs of {right // epochs} steps.", mistakes, rtol=0)


def two_masks() -> tuple[np.ndarray, np.ndarray]:
    """Return a true structure and a prediction, (8, 8) bool each: the prediction is too small and one row too low."""
    truth, predicted = np.zeros((2, 8, 8), bool)
    truth[2:6, 2:6] = True
    predicted[3:7, 3:6] = True
    return truth, predicted


@check_value
def check_dice(truth: np.ndarray, predicted: np.ndarray) -> Solution:
    """Check the DSC of two masks."""
    both, sizes = (truth & predicted).sum(), truth.sum() + predicted.sum()
    mistakes = {
        "that is the Jaccard index, |P ∩ T| / |P ∪ T|; the DSC divides by |P| + |T|.": both / (truth | predicted).sum(),
        "the factor 2 is missing: equal masks must have a DSC of 1.": both / sizes,
        "that counts background in both masks as a success.": (truth == predicted).mean(),
        "that is the share of the true structure that was found; what was found beside it counts too.": both / truth.sum(),
        "that is the share of the prediction that is true; what was missed counts too.": both / predicted.sum(),
        PERCENT: 100 * 2 * both / sizes,
    }
    return Solution(2 * both / sizes, "2 |P ∩ T| / (|P| + |T|).", mistakes)


def rare_disease() -> pd.DataFrame:
    """Return a confusion matrix in cases, a row for each true class and a column for each predicted one. One is rare."""
    names = pd.Index(["ill", "healthy"])
    return pd.DataFrame([[6, 14], [5, 175]], names.rename("truth"), names.rename("predicted"))


@check_value
def check_sensitivity(confusion: pd.DataFrame) -> Solution:
    """Check the sensitivity averaged over the classes of a confusion matrix."""
    cells = confusion.to_numpy()
    found, (first, second) = cells.diagonal() / cells.sum(axis=1), confusion.index
    mistakes = {
        "that is the accuracy, in which the common class counts more.": cells.diagonal().sum() / cells.sum(),
        "that is the mean over the columns, the predictive values.": (cells.diagonal() / cells.sum(axis=0)).mean(),
        f"that is the sensitivity of {first!r} only.": found[0],
        f"that is the sensitivity of {second!r} only.": found[1],
        PERCENT: 100 * found.mean(),
    }
    praise = f"{found[0]:.2f} of the {first} and {found[1]:.2f} of the {second} are found, and each class counts alike."
    return Solution(found.mean(), praise, mistakes)


@check
def check_order(answer: Iterable[str], measured: Mapping[str, float]) -> Feedback:
    """Compare a predicted order, largest first, with measured values. Values within TIE of each other may swap."""
    values = {str(name): float(value) for name, value in dict(measured).items()}
    if isinstance(answer, set | frozenset | Mapping):
        raise TypeError(f"expected a list, because a {type(answer).__name__} has no order.")
    spelt = {name.lower(): name for name in values}
    predicted = [str(name).strip() for name in read(list, named(answer), "a list of names")]
    predicted = [spelt.get(name.lower(), name) for name in predicted]
    if sorted(predicted) != sorted(values):
        return Feedback(False, f"expected a list of all of these names, each once: {listed(values)}.")
    found = ", ".join(f"{name} {values[name]:.2f}" for name in sorted(values, key=values.get, reverse=True))
    for before, after in zip(predicted, predicted[1:], strict=False):
        if values[after] > values[before] + TIE:
            return Feedback(False, f"{after} is above {before}. Measured: {found}. What explains it?")
    if max(values.values()) - min(values.values()) <= TIE:
        return Feedback(True, f"any order is right, because no difference is visible here. Measured: {found}.")
    return Feedback(True, f"measured: {found}.")


@check_value
def check_average(sent: list[np.ndarray], cases: list[int]) -> Solution:
    """Check the FedAvg mean of one weight array, sent by several clients."""
    stacked, n = np.stack(sent).astype(float), np.asarray(cases, float)  # (K, ...), (K,)
    total = np.tensordot(n, stacked, axes=1)
    mistakes = {
        "that is the plain mean. Weight every client by its cases.": stacked.mean(axis=0),
        "that is the weighted sum. Divide it by the number of all cases.": total,
        "that is the plain sum of the clients' arrays.": stacked.sum(axis=0),
        "the weights belong to other clients: their order is reversed.": np.tensordot(n[::-1], stacked, axes=1) / n.sum(),
    }
    return Solution(total / n.sum(), "the mean over the clients, weighted by their cases.", mistakes, rtol=1e-3)


@check_value
def check_megabytes(n_weights: int, n_clients: int, rounds: int) -> Solution:
    """Check the traffic of a federation in MB, both ways, with 4 bytes a weight."""
    right = 2 * 4 * n_weights * n_clients * rounds / 1e6
    mistakes = {
        "weights go down to the clients and up again: twice that.": right / 2,
        "every client sends and receives them.": right / n_clients,
        "that is one round.": right / rounds,
        "a weight of 32 bits has 4 bytes.": right * 8,
        "that counts one byte for a weight, which has 4.": right / 4,
        "expected MB, not bytes.": right * 1e6,
        "a MB is a million bytes here, not 2^20.": right * 1e6 / 2**20,
    }
    return Solution(right, "both ways, every client, every round.", mistakes, rtol=0.02)


def five_arms() -> pd.DataFrame:
    """Return five arms against the centralized one, at a margin of 0.05: mean difference and its 95% interval."""
    columns = ["difference", "95% low", "95% high"]
    rows = {
        "A": [-0.015, -0.024, -0.006],
        "B": [0.012, -0.041, 0.066],
        "C": [-0.080, -0.102, -0.058],
        "D": [-0.010, -0.068, 0.047],
        "E": [0.081, 0.052, 0.110],
    }
    return pd.DataFrame(rows, columns).T.rename_axis("arm")


NEEDED = {
    "equivalent": "its interval must lie within the margin on both sides; to hold zero does not show that two are equal",
    "superior": "its whole interval must lie above zero, and reach beyond the margin",
    "non-inferior": "its interval must lie above minus the margin, hold zero, and reach beyond the margin",
    "inferior": "its whole interval must lie below minus the margin; being below zero is not enough",
    "inconclusive": "its interval must lie on both sides of minus the margin",
}
"""Verdicts, and what each of them takes."""


@check
def check_verdicts(answer: dict[str, str], arms: pd.DataFrame, margin: float) -> Feedback:
    """Check the verdict on each arm of `five_arms`."""
    given = read(dict, answer, "a dictionary, such as {'A': 'equivalent', ...}")
    if missing := set(arms.index) - set(given):
        return Feedback(False, f"a verdict is missing for {listed(missing)}.")
    for arm, row in arms.iterrows():
        said = str(given[arm]).strip().lower().replace("non inferior", "non-inferior")
        if said not in NEEDED:
            return Feedback(False, f"{arm}: {given[arm]!r} is none of {listed(NEEDED)}.")
        if said != verdict(row["95% low"], row["95% high"], margin):
            return Feedback(False, f"{arm} is not {said}: for that {NEEDED[said]}.")
    return Feedback(True, "the verdict comes from where the interval lies, not from whether it holds zero.")


def eight_patients() -> pd.DataFrame:
    """Return the DSC of eight patients under two models: hearts differ far more than the models do."""
    centralized = [0.95, 0.71, 0.88, 0.93, 0.64, 0.90, 0.79, 0.84]
    federated = [0.94, 0.69, 0.87, 0.91, 0.63, 0.89, 0.76, 0.83]
    names = pd.RangeIndex(1, 1 + len(centralized), name="patient")
    return pd.DataFrame({"centralized": centralized, "federated": federated}, names)


@check_value
def check_standard_error(patients: pd.DataFrame) -> Solution:
    """Check the standard error of the mean difference, paired by patient."""
    difference, n = patients["federated"] - patients["centralized"], len(patients)
    right, unpaired = difference.std() / np.sqrt(n), np.sqrt(patients.var().sum() / n)
    mistakes = {
        "that is for models tested on different patients; take the difference of each patient first.": unpaired,
        "that is the standard deviation of the differences; the standard error is that of their mean.": difference.std(),
        "divide by the square root of the number of patients, not by the number.": difference.std() / n,
        "that is the mean difference itself.": difference.mean(),
        "NumPy's std divides by n; for a sample it is n - 1 (ddof=1).": difference.std(ddof=0) / np.sqrt(n),
    }
    praise = f"unpaired it would be {unpaired / right:.0f} times as large, from the same 16 numbers."
    return Solution(right, praise, mistakes)


@check
def check_margin(answer: float, table: pd.DataFrame) -> Feedback:
    """Check the margin at which no federated arm of `analysis.compare` would be worse, to the table's three digits."""
    smallest = table.loc[table["mode"] == "federated", "smallest_margin"]
    if smallest.isna().all():
        return Feedback(True, "any answer is right: with so few patients no arm has an interval, and so no margin.")
    mistakes = {
        "that margin does for one arm; every arm is asked for.": smallest.min(),
        "the mean does not do for the arms above it.": smallest.mean(),
    }
    praise = "chosen like this, after the result, it proves nothing."
    return compare(answer, Solution(smallest.max(), praise, mistakes, atol=0.0006))


@check_value
def check_rounds(central_steps: int, client_steps: int, rounds: int) -> Solution:
    """Check how many rounds give a client, who took `client_steps` in `rounds`, the steps of the centralized run."""
    right = -(-central_steps * rounds // client_steps)
    mistakes = {
        "that is how many times as many rounds it takes.": central_steps / client_steps,
        "so many rounds leave a client some steps short: round up.": central_steps * rounds // client_steps,
        "that is how many steps are wanted; a round has several.": central_steps,
    }
    return Solution(right, f"a client takes {client_steps / rounds:g} steps in a round.", mistakes, rtol=0)


@check_value
def check_pull(weights: np.ndarray, sent: np.ndarray, mu: float) -> Solution:
    """Check the term that FedProx adds to the gradient at `weights`, when the server sent `sent`."""
    right = mu * (weights - sent)
    mistakes = {
        "that points away from the server's weights: an optimizer steps against the gradient.": -right,
        "μ is missing.": weights - sent,
        "that is half of it: the derivative of ½ x² is x.": right / 2,
        "that is twice as much: the loss has μ/2, not μ.": right * 2,
    }
    return Solution(right, "the further a client has moved, the harder it is pulled back.", mistakes)


def two_models() -> pd.DataFrame:
    """Return the sensitivity of a site's own model, which has seen few cases of the rare disease, and of the federation."""
    return pd.DataFrame({"own": [0.96, 0.30], "federated": [0.90, 0.78]}, ["common disease", "rare disease"])


@check_value
def check_break_even(models: pd.DataFrame) -> Solution:
    """Check the share of patients with the rare disease at which both of `two_models` are right equally often."""
    lost, won = (models["federated"] - models["own"]).abs()
    right = lost / (lost + won)
    mistakes = {
        "that is the share of patients with the common disease.": 1 - right,
        "that is how many have the rare disease for each one with the common: divide by both together.": lost / won,
        PERCENT: 100 * right,
        "at equal shares both differences weigh the same, and they are not equally large.": 0.5,
    }
    return Solution(right, "with more of the rare disease than that, joining is worth it; with less it is not.", mistakes)


@check_value
def check_leftover(sent: np.ndarray, updates: np.ndarray) -> Solution:
    """Check the masks that remain in the server's sum when the last client drops out."""
    right, total = (sent[:-1] - updates[:-1]).sum(axis=0), sent[:-1].sum(axis=0)
    mistakes = {
        "that is the server's sum. Subtract the updates of the clients that remain.": total,
        "the update of the client that dropped out is not in the sum.": total - updates.sum(axis=0),
        "with all clients nothing remains. Without the last one, the masks shared with it do.": 0 * right,
        "those are the masks that the lost client would have added. The others hold the opposite sign.": -right,
    }
    return Solution(right, "the sum is useless until somebody reveals the lost client's masks.", mistakes, rtol=1e-3)


@check_value
def check_clients_needed(noise_multiplier: float, clipping_norm: float, wanted: float) -> Solution:
    """Check how many clients bring the noise in their mean down to the standard deviation `wanted`."""
    right = noise_multiplier * clipping_norm / wanted
    mistakes = {
        "the noise is added once to the sum: it falls with the number of clients, not with its square.": right**0.5,
        "that would be so if the noise fell with the square root of the number of clients.": right**2,
        "the clipping norm is missing.": noise_multiplier / wanted,
        "the noise multiplier is missing.": clipping_norm / wanted,
    }
    return Solution(right, "z C / K: it takes many clients to drown the noise.", mistakes, rtol=0.02)


@check_value
def check_recovered(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> Solution:
    """Check the image that a fully connected layer's step gives away: `weight` (H, P) and `bias` (H,), before and after."""
    weight, bias = after["weight"] - before["weight"], after["bias"] - before["bias"]
    strongest = np.abs(bias).argmax()
    right = weight[strongest] / bias[strongest]
    mistakes = {
        "divide by the change of the same neuron's bias: that removes error and learning rate.": weight[strongest],
        "take what the step changed, not the weights after it.": after["weight"][strongest] / after["bias"][strongest],
        "one of the two differences has the wrong sign.": -right,
    }
    praise = "pixel by pixel, from one message, without the learning rate and without the label."
    return Solution(right, praise, mistakes, atol=0.01)
