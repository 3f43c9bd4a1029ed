"""Score arms beyond the primary endpoints: over seeds, per class, calibration, per structure, per client.

A patient's cases weigh one together, under all models of an arm (one per seed, and per client when local).
"""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pandas as pd

from fedlib import tasks
from fedlib.analysis import inference
from fedlib.analysis.arms import ARM, by_arm, check_comparable, n_patients
from fedlib.config import AnalysisConfig
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
        (*arm, metric, run.config.seed, run.result[metric])
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


def part_scores(runs: list[Run], study: AnalysisConfig | None = None) -> pd.DataFrame:
    """Return the scores of each class or structure, mean over patients with its interval.

    A class has sensitivity over its patients (no value without one) and specificity over the others. A structure has DSC,
    HD95 and ASSD (mm). One that the model misses has DSC 0 and no distance, since an infinite one has no mean; one that the
    reference lacks has neither. So never read a distance without `missed`.
    Columns: ARM, class or structure, metric, value, low, high, how, n_patients; of structures missed, absent: cases where
    the model missed the structure, and where the reference has none, each summed over the arm's models.
    """
    check_comparable(runs)
    significance, rows = (study or runs[0].config).significance, []
    parts = {"classification": _classes, "segmentation": _structures}[runs[0].config.task]
    for arm, members in by_arm(runs).items():
        for part, scores, bounds, counts in parts(pd.concat([run.cases for run in members], ignore_index=True)):
            found = inference.interval([scores.to_numpy()], significance, bounds)._asdict()
            rows.append(arm._asdict() | part | found | {"n_patients": n_patients(scores)} | counts)
    return pd.DataFrame(rows)


def _classes(cases: pd.DataFrame) -> Iterator[tuple]:
    for name, metric in product(classes_of(cases), ("sensitivity", "specificity")):
        positive = metric == "sensitivity"
        chosen = cases[(cases["truth"] == name) == positive]
        right = ((chosen["prediction"] == name) == positive).astype(float)
        yield {"class": name, "metric": metric}, right.groupby([chosen["truth"], chosen["patient"]]).mean(), (0, 1), {}


def _structures(cases: pd.DataFrame) -> Iterator[tuple]:
    for column in cases.filter(regex="^(dice|hd95|assd)_"):
        metric, structure = column.split("_", 1)
        dice = cases[f"dice_{structure}"]
        missed = dice.notna() & cases.get(f"hd95_{structure}", dice.replace(0, np.nan)).isna()
        counts = {"missed": int(missed.sum()), "absent": int(dice.isna().sum())}
        scores = cases.groupby("patient")[column].mean().dropna()
        yield {"structure": structure, "metric": metric}, scores, (0, 1) if metric == "dice" else None, counts


def classes_of(cases: pd.DataFrame) -> list[str]:
    """Return the classes that a table of cases has probabilities of."""
    return [column.removeprefix("p_") for column in cases.filter(regex="^p_")]


def weights(cases: pd.DataFrame) -> pd.Series:
    """Return the weight of each case, so that the cases of a patient in a class weigh one together."""
    return 1 / cases.groupby(["patient", "truth"])["case"].transform("size")


def confusion(cases: pd.DataFrame) -> pd.DataFrame:
    """Return one model's confusion matrix in patients: truth (rows) by prediction (columns)."""
    counts = pd.crosstab(cases["truth"], cases["prediction"], weights(cases), aggfunc="sum")
    return counts.reindex(index=classes_of(cases), columns=classes_of(cases)).fillna(0.0)


def calibration(runs: list[Run]) -> pd.DataFrame:
    """Return the reliability of the predicted class's probability, in BINS equal bins (Guo et al., 2017).

    Columns: ARM, bin, low, high (edges), patients, confidence, accuracy, ece (of the arm: the sum over bins of share x
    |accuracy - confidence|; the same in each of its rows). A bin without patients has no row. Where an arm has several
    models, their predictions of a patient weigh one together.
    """
    check_comparable(runs)
    tables = []
    for arm, members in by_arm(runs).items():
        cases = pd.concat([run.cases for run in members], ignore_index=True)
        weight, confidence = weights(cases), cases.filter(regex="^p_").max(axis=1)
        right, bins = cases["truth"] == cases["prediction"], (confidence * BINS).astype(int).clip(upper=BINS - 1)
        sums = pd.DataFrame({"patients": weight, "confidence": weight * confidence, "accuracy": weight * right})
        table = sums.groupby(bins.rename("bin")).sum()
        ece = (table["accuracy"] - table["confidence"]).abs().sum() / table["patients"].sum()
        shares = table[["confidence", "accuracy"]].div(table["patients"], axis=0)
        tables.append(table.assign(**arm._asdict(), **shares, ece=ece).reset_index())
    table = pd.concat(tables, ignore_index=True)
    table = table.assign(low=table["bin"] / BINS, high=(table["bin"] + 1) / BINS)
    return table[[*ARM, "bin", "low", "high", "patients", "confidence", "accuracy", "ece"]]
