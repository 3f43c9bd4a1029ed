"""What each arm reached, beside the primary endpoints: over seeds, per class, calibration, per structure, per client.

Within a patient cases are averaged first: a patient with three images weighs as much as one with a single image. An arm's
models (one per seed, and per client when local) are scored one by one, then averaged.
"""

import numpy as np
import pandas as pd

from fedlib import tasks
from fedlib.analysis import inference
from fedlib.analysis.arms import ARM, arm_scores, by_arm, comparable, models_of, stated, strata, unit_scores
from fedlib.config import StudyConfig
from fedlib.training.run_store import Run

BINS = 10
"""Of the reliability diagram, equally wide (*chosen*; Guo et al., 2017, take 15 for 10,000 cases)."""
RATES = ("sensitivity", "specificity", "ppv", "f1", "auroc")


def seed_spread(runs: list[Run]) -> pd.DataFrame:
    """How far an arm moves with the seed, which the intervals over patients do not tell.

    Columns: ARM, metric, seeds (listed), mean, sd (n - 1; NaN with one seed), least, most; difference_mean, difference_sd
    from the centralized run of the same seed (NaN without one).
    """
    comparable(runs)
    rows = []
    for arm, members in by_arm(runs).items():
        for run in members:
            for metric in tasks.get(run.config.task).PRIMARY:
                score = float(inference.mean(*strata(arm_scores([run], metric))))
                rows.append((*arm, metric, run.config.seed, score))
    table = pd.DataFrame(rows, columns=[*ARM, "metric", "seed", "score"])
    central = table[table["mode"] == "centralized"].set_index(["metric", "seed"])["score"]
    reference = central.reindex(pd.MultiIndex.from_frame(table[["metric", "seed"]])).to_numpy()
    table["difference"] = (table["score"] - reference).where(table["mode"] != "centralized")
    return table.groupby([*ARM, "metric"], sort=False).agg(
        seeds=("seed", lambda seeds: ", ".join(map(str, seeds))), mean=("score", "mean"), sd=("score", "std"),
        least=("score", "min"), most=("score", "max"),
        difference_mean=("difference", "mean"), difference_sd=("difference", "std"),
    ).reset_index()  # fmt: skip


def classes_of(cases: pd.DataFrame) -> list[str]:
    """The classes that a table of cases has probabilities of."""
    return [column.removeprefix("p_") for column in cases.columns if column.startswith("p_")]


def weights(cases: pd.DataFrame) -> pd.Series:
    """Weight of each case, so that the cases of a patient in a class weigh one together."""
    return 1 / cases.groupby(["patient", "truth"])["case"].transform("size")


def _matrix(cases: pd.DataFrame) -> np.ndarray:
    """Confusion matrix in patients, (truth, prediction)."""
    names = classes_of(cases)
    counts = weights(cases).groupby([cases["truth"], cases["prediction"]]).sum().unstack(fill_value=0)
    return counts.reindex(index=names, columns=names, fill_value=0).to_numpy(float)


def confusion(runs: list[Run]) -> pd.DataFrame:
    """Confusion matrix of each arm, mean over its models. Columns: ARM, truth, prediction, patients, share (of the truth).

    A class without a test case has 0 patients and no share.
    """
    comparable(runs)
    tables = []
    for arm, members in by_arm(runs).items():
        models = models_of(members)
        names, matrix = classes_of(models[0]), np.mean([_matrix(cases) for cases in models], axis=0)
        cells = pd.MultiIndex.from_product([names, names], names=["truth", "prediction"]).to_frame(index=False)
        sums = matrix.sum(axis=1, keepdims=True)
        share = np.divide(matrix, sums, out=np.full_like(matrix, np.nan), where=sums > 0)
        tables.append(cells.assign(patients=matrix.ravel(), share=share.ravel(), **dict(zip(ARM, arm, strict=True))))
    return pd.concat(tables, ignore_index=True)[[*ARM, "truth", "prediction", "patients", "share"]]


def rates(cases: pd.DataFrame) -> pd.DataFrame:
    """Sensitivity, specificity, PPV, F1 and one-against-rest AUROC (columns) of each class (index), of one model.

    NaN where it is not defined: all of a class without a test case, PPV of a class that is never predicted.
    """
    matrix, names = _matrix(cases), classes_of(cases)
    right, of_truth, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    others = matrix.sum() - of_truth
    with np.errstate(invalid="ignore", divide="ignore"):
        table = pd.DataFrame({
            "sensitivity": right / of_truth,
            "specificity": (others - predicted + right) / others,
            "ppv": right / predicted,
            "f1": 2 * right / (of_truth + predicted),
            "auroc": [auroc(cases[f"p_{name}"], cases["truth"] == name, weights(cases)) for name in names],
        }, index=names)  # fmt: skip
    return table[of_truth > 0].reindex(names)


def auroc(score: pd.Series, positive: pd.Series, weight: pd.Series) -> float:
    """Chance that a positive case scores above a negative one, ties counting half (Mann and Whitney), with case weights."""
    order = np.unique(score, return_inverse=True)[1]
    ups, downs = (np.bincount(order, weight * is_in, order.max() + 1) for is_in in (positive, ~positive))
    below = np.cumsum(downs) - downs / 2
    return float(ups @ below / (ups.sum() * downs.sum()))


def class_scores(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """Sensitivity, specificity, PPV, F1 and AUROC per class and macro (their plain mean), each the mean over the models.

    Columns: ARM, class, metric, value, low, high (over patients, where the truth alone says whose: sensitivity, and
    specificity of a class), n_patients (of the class; all for macro), note. A class without a test case is a row without a
    value, left out of the macro mean, and named.
    """
    comparable(runs)
    significance, rows = stated(runs, study).significance, []
    for arm, members in by_arm(runs).items():
        models = models_of(members)
        macro = inference.interval(strata(arm_scores(members, "sensitivity")), significance, (0, 1))[1:3]
        table = pd.concat([rates(cases) for cases in models]).groupby(level=0, sort=False).mean()
        patients = models[0].groupby("truth")["patient"].nunique().reindex(table.index, fill_value=0)
        for name, values in table.iterrows():
            limits = _limits_of_class(models, name, significance) if patients[name] else {}
            for metric in RATES:
                missing = "no test case of this class" if not patients[name] else "never predicted"
                rows.append((*arm, name, metric, values[metric], *limits.get(metric, (np.nan, np.nan)), patients[name],
                             missing if np.isnan(values[metric]) else ""))  # fmt: skip
        for metric in RATES:
            n, note = int(table[metric].notna().sum()), f"mean over {table[metric].count()} of {len(table)} classes"
            rows.append((*arm, "macro", metric, table[metric].mean(),
                         *(macro if metric == "sensitivity" else (np.nan, np.nan)), models[0]["patient"].nunique(),
                         note if n < len(table) else ""))  # fmt: skip
    return pd.DataFrame(rows, columns=[*ARM, "class", "metric", "value", "low", "high", "n_patients", "note"])


def _limits_of_class(models: list[pd.DataFrame], name: str, significance: float) -> dict[str, tuple[float, float]]:
    """Intervals of a class's sensitivity and specificity over patients."""
    cases = pd.concat(models)
    said, truth = cases["prediction"] == name, cases["truth"] == name
    limits = {}
    for metric, right, chosen in (("sensitivity", said, truth), ("specificity", ~said, ~truth)):
        units = right[chosen].astype(float).groupby([cases.loc[chosen, "truth"], cases.loc[chosen, "patient"]]).mean()
        limits[metric] = inference.interval([units.to_numpy()], significance, (0, 1))[1:3]
    return limits


def calibration(runs: list[Run]) -> pd.DataFrame:
    """Reliability of the probability of the predicted class, in BINS equal bins (Guo et al., 2017), mean over the models.

    Columns: ARM, bin, low, high (edges), patients, confidence, accuracy (NaN in an empty bin), ece (of the arm: the mean
    over the models of sum over bins of share x |accuracy - confidence|; the same in each of its rows).
    """
    comparable(runs)
    tables = []
    for arm, members in by_arm(runs).items():
        sums, errors = np.zeros((3, BINS)), []
        models = models_of(members)
        for cases in models:
            own = _binned(cases)
            errors.append(np.abs(own[2] - own[1]).sum() / own[0].sum())
            sums += own / len(models)
        edges = np.linspace(0, 1, BINS + 1)
        with np.errstate(invalid="ignore"):
            table = {"bin": range(BINS), "low": edges[:-1], "high": edges[1:], "patients": sums[0],
                     "confidence": sums[1] / sums[0], "accuracy": sums[2] / sums[0], "ece": np.mean(errors)}  # fmt: skip
        tables.append(pd.DataFrame(dict(zip(ARM, arm, strict=True)) | table))
    return pd.concat(tables, ignore_index=True)


def _binned(cases: pd.DataFrame) -> np.ndarray:
    """Patients, and the sums of their confidence and of their right answers, of each bin: (3, BINS)."""
    confidence = cases[[f"p_{name}" for name in classes_of(cases)]].to_numpy().max(axis=1)
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    of_each = np.ones(len(cases)), confidence, cases["truth"] == cases["prediction"]
    return np.array([np.bincount(place, weights(cases) * values, BINS) for values in of_each])


def structure_scores(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """DSC, HD95 and ASSD (mm) of each structure, mean over patients with its interval.

    The rule for empty masks: a structure that the model misses has DSC 0 and no distance, for an infinite one has no mean;
    one that the reference lacks has neither. So a distance is never to be read without `missed`.
    Columns: ARM, structure, metric, value, low, high, how, n_patients; scored, missed, absent: cases with this score, cases
    where the structure was missed, where the reference has none, each summed over the arm's models.
    """
    comparable(runs)
    significance, rows = stated(runs, study).significance, []
    for arm, members in by_arm(runs).items():
        cases = pd.concat([run.cases for run in members])
        for structure in [name.removeprefix("dice_") for name in cases if name.startswith("dice_")]:
            absent = cases[f"dice_{structure}"].isna()
            missed = ~absent & cases.get(f"hd95_{structure}", cases[f"dice_{structure}"].replace(0, np.nan)).isna()
            for metric in [name for name in ("dice", "hd95", "assd") if f"{name}_{structure}" in cases]:
                column = cases[f"{metric}_{structure}"]
                units = column.groupby(cases["patient"]).mean().dropna().to_numpy()
                found = inference.interval([units], significance, (0, 1) if metric == "dice" else None)
                rows.append((*arm, structure, metric, *found[:3], found.how, len(units),
                             int(column.notna().sum()), int(missed.sum()), int(absent.sum())))  # fmt: skip
    columns = ["structure", "metric", "value", "low", "high", "how", "n_patients", "scored", "missed", "absent"]
    return pd.DataFrame(rows, columns=[*ARM, *columns])


def client_scores(runs: list[Run]) -> pd.DataFrame:
    """Primary scores client by client: of the federated model at each client, and of each client's own model.

    Federated: the global model on the client's own cases. No test case belongs to a client, so these are the cases it
    trained on: they show whom the model serves less well, not what a new patient can expect. Local-only: each client's model
    on the common test set. Columns: ARM, seed, client (from 0), model (global, own), scored_on, metric, n_patients, value.
    """
    comparable(runs)
    tables = []
    for run in [run for run in runs if run.config.mode != "centralized"]:
        federated = run.config.mode == "federated"
        model, scored_on = ("global", "own training cases") if federated else ("own", "test set")
        cases = run.own_cases if federated else run.cases
        for metric in tasks.get(run.config.task).PRIMARY:
            units = [unit_scores(own, run.config.task, metric) for _, own in cases.groupby("client")]
            about = {name: getattr(run.config, name) for name in (*ARM, "seed")} | {"model": model, "scored_on": scored_on}
            found = {"value": [float(inference.mean(*strata(own))) if len(own) else np.nan for own in units],
                     "n_patients": [own.index.get_level_values("patient").nunique() for own in units]}  # fmt: skip
            tables.append(pd.DataFrame({"client": sorted(cases["client"].unique())} | found).assign(metric=metric, **about))
    columns = [*ARM, "seed", "client", "model", "scored_on", "metric", "n_patients", "value"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
