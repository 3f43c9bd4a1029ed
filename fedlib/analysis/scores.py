"""Score arms beyond the primary endpoints: over seeds, per class, calibration, per structure, per client.

A patient's cases weigh one together. An arm's models (one per seed, and per client when local) are scored one by one, then
averaged.
"""

import numpy as np
import pandas as pd

from fedlib import tasks
from fedlib.analysis import inference
from fedlib.analysis.arms import ARM, by_arm, check_comparable, mean_score, models_of, n_patients, resolve_margins
from fedlib.config import StudyConfig
from fedlib.training.run_store import Run

BINS = 10
"""Of the reliability diagram, equally wide (*chosen*; Guo et al., 2017, take 15 for 10,000 cases)."""


def seed_spread(runs: list[Run]) -> pd.DataFrame:
    """Return how far an arm moves with the seed, which the intervals over patients do not show.

    Columns: ARM, metric, seeds (listed), mean, sd (n - 1; NaN with one seed), least, most; difference_mean, difference_sd
    from the centralized run of the same seed (NaN without one).
    """
    check_comparable(runs)
    rows = [
        (*arm, metric, run.config.seed, mean_score([run], metric))
        for arm, members in by_arm(runs).items() for run in members for metric in tasks.get(run.config.task).PRIMARY
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=[*ARM, "metric", "seed", "score"])
    central = table[table["mode"] == "centralized"].set_index(["metric", "seed"])["score"]
    reference = central.reindex(pd.MultiIndex.from_frame(table[["metric", "seed"]])).to_numpy()
    table["difference"] = (table["score"] - reference).where(table["mode"] != "centralized")
    return table.groupby([*ARM, "metric"], sort=False).agg(
        seeds=("seed", lambda seeds: ", ".join(map(str, seeds))), mean=("score", "mean"), sd=("score", "std"),
        least=("score", "min"), most=("score", "max"),
        difference_mean=("difference", "mean"), difference_sd=("difference", "std"),
    ).reset_index()  # fmt: skip


def confusion(cases: pd.DataFrame) -> pd.DataFrame:
    """Return one model's confusion matrix in patients: truth (rows) by prediction (columns)."""
    names = classes_of(cases)
    counts = weights(cases).groupby([cases["truth"], cases["prediction"]]).sum().unstack(fill_value=0)
    return counts.reindex(index=names, columns=names, fill_value=0).astype(float)


def classes_of(cases: pd.DataFrame) -> list[str]:
    """Return the classes that a table of cases has probabilities of."""
    return [column.removeprefix("p_") for column in cases.columns if column.startswith("p_")]


def weights(cases: pd.DataFrame) -> pd.Series:
    """Return the weight of each case, so that the cases of a patient in a class weigh one together."""
    return 1 / cases.groupby(["patient", "truth"])["case"].transform("size")


def class_scores(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """Return sensitivity and specificity of each class, mean over patients with its interval.

    Columns: ARM, class, metric, value, low, high, how, n_patients (of the class for sensitivity, else of the others).
    A class without a test case has a row without a value.
    """
    check_comparable(runs)
    significance, rows = resolve_margins(runs, study).significance, []
    for arm, members in by_arm(runs).items():
        cases = pd.concat([run.cases for run in members])
        for name in classes_of(cases):
            for metric, chosen in (("sensitivity", cases["truth"] == name), ("specificity", cases["truth"] != name)):
                of_class = cases[chosen]
                right = ((of_class["prediction"] == name) == (metric == "sensitivity")).astype(float)
                scores = right.groupby([of_class["truth"].rename("stratum"), of_class["patient"]]).mean()
                found = inference.interval([scores.to_numpy()], significance, (0, 1))
                rows.append((*arm, name, metric, *found, n_patients(scores)))
    return pd.DataFrame(rows, columns=[*ARM, "class", "metric", "value", "low", "high", "how", "n_patients"])


def calibration(runs: list[Run]) -> pd.DataFrame:
    """Return the reliability of the predicted class's probability, in BINS equal bins (Guo et al., 2017), over the models.

    Columns: ARM, bin, low, high (edges), patients, confidence, accuracy (NaN in an empty bin), ece (of the arm: the mean
    over the models of sum over bins of share x |accuracy - confidence|; the same in each of its rows).
    """
    check_comparable(runs)
    tables, edges = [], np.linspace(0, 1, BINS + 1)
    for arm, members in by_arm(runs).items():
        binned = [_binned(cases) for cases in models_of(members)]
        gaps = [(sums["accuracy"] - sums["confidence"]).abs().sum() / sums["patients"].sum() for sums in binned]
        table = sum(binned) / len(binned)
        table[["confidence", "accuracy"]] = table[["confidence", "accuracy"]].div(
            table["patients"].replace(0, np.nan), axis=0
        )
        table = table.assign(bin=range(BINS), low=edges[:-1], high=edges[1:], ece=np.mean(gaps))
        tables.append(table.assign(**dict(zip(ARM, arm, strict=True))))
    columns = [*ARM, "bin", "low", "high", "patients", "confidence", "accuracy", "ece"]
    return pd.concat(tables, ignore_index=True)[columns]


def _binned(cases: pd.DataFrame) -> pd.DataFrame:
    """Return patients, and the sums of their confidence and of their right predictions, of each bin."""
    weight, confidence = weights(cases), cases[[f"p_{name}" for name in classes_of(cases)]].max(axis=1)
    bins = (confidence * BINS).astype(int).clip(upper=BINS - 1)
    right = weight * (cases["truth"] == cases["prediction"])
    sums = pd.DataFrame({"patients": weight, "confidence": weight * confidence, "accuracy": right}).groupby(bins).sum()
    return sums.reindex(range(BINS), fill_value=0.0)


def structure_scores(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """Return DSC, HD95 and ASSD (mm) of each structure, mean over patients with its interval.

    A structure that the model misses has DSC 0 and no distance, since an infinite one has no mean; one that the reference
    lacks has neither. So never read a distance without `missed`.
    Columns: ARM, structure, metric, value, low, high, how, n_patients; missed, absent: cases where the model missed the
    structure, and where the reference has none, each summed over the arm's models.
    """
    check_comparable(runs)
    significance, rows = resolve_margins(runs, study).significance, []
    for arm, members in by_arm(runs).items():
        cases = pd.concat([run.cases for run in members])
        for column in [name for name in cases if name.startswith(("dice_", "hd95_", "assd_"))]:
            metric, structure = column.split("_", 1)
            dice = cases[f"dice_{structure}"]
            missed = dice.notna() & cases.get(f"hd95_{structure}", dice.replace(0, np.nan)).isna()
            units = cases.groupby("patient")[column].mean().dropna().to_numpy()
            found = inference.interval([units], significance, (0, 1) if metric == "dice" else None)
            rows.append((*arm, structure, metric, *found, len(units), int(missed.sum()), int(dice.isna().sum())))
    columns = ["structure", "metric", "value", "low", "high", "how", "n_patients", "missed", "absent"]
    return pd.DataFrame(rows, columns=[*ARM, *columns])


def client_scores(runs: list[Run]) -> pd.DataFrame:
    """Return the primary scores of each federated model on each client's training cases.

    No test case belongs to a client, so they show whom the model serves less well, not what a new patient can expect.
    Columns: ARM, seed, client (from 0), metric, n_patients, value.
    """
    check_comparable(runs)
    rows = [
        (*(getattr(run.config, name) for name in (*ARM, "seed")), client, metric, cases["patient"].nunique(),
         tasks.get(run.config.task).summarize(cases)[metric])
        for run in runs if run.config.mode == "federated"
        for client, cases in run.train_cases.groupby("client") for metric in tasks.get(run.config.task).PRIMARY
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=[*ARM, "seed", "client", "metric", "n_patients", "value"])
