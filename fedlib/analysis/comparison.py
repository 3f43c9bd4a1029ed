"""Arms against each other, paired by patient and seed: against centralized, against balanced, against staying alone."""

import numpy as np
import pandas as pd

from fedlib import tasks
from fedlib.analysis import inference
from fedlib.analysis.arms import ARM, arm_scores, by_arm, comparable, late, seeds_of, stated, strata
from fedlib.config import Evidence, StudyConfig
from fedlib.training.run_store import Run

CENTRALIZED = ("centralized", 1, "none")
SCORE, DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)
"""Bounds of the primary endpoints and of their differences."""
CONTRAST = ["difference", "difference_low", "difference_high", "difference_how", "tost_low", "tost_high", "margin",
            "non_inferior", "equivalent", "verdict", "reading", "p_tost", "test", "p", "p_holm", "dz", "rank_biserial",
            "smallest_margin", "detectable_margin"]  # fmt: skip


def compare(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """One row per arm and primary endpoint of one task, centralized first.

    Columns: mode, n_clients, partition, metric, seeds, n_patients, value, low, high, how (BCa 95% interval over patients);
    paired_seeds, paired_patients and the columns of `contrast` against centralized (empty for itself and without it);
    margin_note (empty, or that the margin is not what was stated before the runs); paper (the abstract's figure or NaN).
    Holm's family is all rows of one mode. Without `study` the margins are those that the runs record.
    Raises UserError for runs that must not be compared.
    """
    comparable(runs)
    evidence, arms, task = stated(runs, study), by_arm(runs), tasks.get(runs[0].config.task)
    rows = []
    for arm, members in arms.items():
        for metric in task.PRIMARY:
            scores = arm_scores(members, metric)
            found = inference.interval(strata(scores), evidence.significance, SCORE)
            row = dict(zip(ARM, arm, strict=True)) | {"metric": metric, "seeds": len(members)}
            row |= {"n_patients": scores.index.get_level_values("patient").nunique(), **_limits(found)}
            if arm != CENTRALIZED and CENTRALIZED in arms:
                paired = contrast(members, arms[CENTRALIZED], metric, evidence)
                row |= {f"paired_{name}": paired.pop(key) for name, key in (("seeds", "seeds"), ("patients", "n_patients"))}
                row |= paired | {"margin_note": late(runs, evidence, f"margin_{metric.partition('_')[0]}")}
            row["paper"] = task.PAPER.get(arm[:2], {}).get(metric) if arm[0] != "local" else None
            rows.append(row)
    own = [*ARM, "metric", "seeds", "n_patients", "value", "low", "high", "how", "paired_seeds", "paired_patients"]
    return _corrected(pd.DataFrame(rows).reindex(columns=[*own, *CONTRAST, "margin_note", "paper"]), ["mode"])


def contrast(runs: list[Run], reference: list[Run], metric: str, evidence: Evidence) -> dict:
    """One arm minus another, paired by patient, over the seeds that both have.

    A patient's scores are averaged over these seeds (and over the clients of a local arm) first. So the interval covers
    other patients of the same kind, for the models at hand; how far the difference moves with another seed stands in
    `seed_spread`. Returns seeds, n_patients; difference with its 95% limits and how they were had; tost_low, tost_high
    (90%); margin, non_inferior, equivalent, verdict, reading (see `inference`); p_tost (t-based, by statsmodels: near
    `equivalent`, not the same; for macro sensitivity of class-weighted differences, somewhat cautious); test, p (secondary),
    p_holm (set by the caller); dz, rank_biserial; smallest_margin, detectable_margin.
    """
    shared = set(seeds_of(runs)) & set(seeds_of(reference))
    margin, row = evidence.margin(metric), {"seeds": len(shared), "n_patients": 0}
    if not shared:
        nothing = "none: no seed in common"
        return row | {"difference_how": nothing, "margin": margin, "verdict": "inconclusive", "reading": "inconclusive"}
    pairs = _aligned({"one": runs, "other": reference}, shared, metric)
    row["n_patients"] = pairs.index.get_level_values("patient").nunique()
    sample = strata(pairs["one"] - pairs["other"])
    found = inference.interval(sample, evidence.significance, DIFFERENCE)
    # Class-weighted, so that the mean over all patients is the macro average; with one stratum every weight is 1.
    share = pairs.groupby(level="stratum")["one"].transform("size") * len(sample) / len(pairs)
    weighted = (pairs["one"] / share).to_numpy(), (pairs["other"] / share).to_numpy()
    test, p = inference.difference_test(*weighted)
    return row | {
        **{f"difference{name}": value for name, value in zip(("", "_low", "_high"), found[:3], strict=True)},
        "difference_how": found.how,
        "tost_low": found.tost_low,
        "tost_high": found.tost_high,
        "margin": margin,
        "non_inferior": found.low > -margin,
        "equivalent": -margin < found.tost_low and found.tost_high < margin,
        "verdict": inference.verdict(found, margin),
        "reading": inference.reading(found.low, found.high),
        "p_tost": inference.tost_p(*weighted, margin),
        "test": test,
        "p": p,
        **inference.effect_sizes(weighted[0] - weighted[1]),
        **inference.margins(sample, found, evidence.significance),
    }


def partition_effect(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """Federated under each other partition minus balanced, for the same number of clients: did the unbalance cost anything?

    Columns: n_clients, partition, metric, seeds, n_patients and those of `contrast`; empty without a pair.
    """
    pairs = {(mode, k, partition): (mode, k, "balanced") for mode, k, partition in by_arm(runs) if mode == "federated"}
    return _contrasts(runs, study, {arm: other for arm, other in pairs.items() if arm != other})


def federation_worth(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """Federated minus local-only, for the same partition and number of clients: what a hospital gains by taking part.

    Columns as in `partition_effect`. A local arm's score is the mean over its clients' own models, as for a patient who
    comes to any of the hospitals with the same chance.
    """
    return _contrasts(runs, study, {arm: ("local", *arm[1:]) for arm in by_arm(runs) if arm[0] == "federated"})


def _contrasts(runs: list[Run], study: StudyConfig | None, pairs: dict[tuple, tuple]) -> pd.DataFrame:
    """A row per pair of arms (that exist) and primary endpoint. Holm's family is the whole table."""
    comparable(runs)
    arms, evidence = by_arm(runs), stated(runs, study)
    rows = [
        {"n_clients": arm[1], "partition": arm[2], "metric": metric, **contrast(arms[arm], arms[other], metric, evidence)}
        for arm, other in pairs.items() if arm in arms and other in arms
        for metric in tasks.get(runs[0].config.task).PRIMARY
    ]  # fmt: skip
    columns = ["n_clients", "partition", "metric", "seeds", "n_patients", *CONTRAST]
    return _corrected(pd.DataFrame(rows).reindex(columns=columns), [])


def _corrected(table: pd.DataFrame, family: list[str]) -> pd.DataFrame:
    """Fill p_holm within each family."""
    groups = table.groupby(family).indices.values() if family else [np.arange(len(table))]
    corrected = np.full(len(table), np.nan)
    for rows in groups:
        corrected[rows] = inference.holm(table["p"].to_numpy(float)[rows])
    return table.assign(p_holm=corrected)


def client_trend(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """Change of the federated score per doubling of the number of clients, for each partition and primary endpoint.

    Each patient has a slope, by least squares on log2 of the number of clients; the row is their mean with its BCa interval.
    Columns: partition, metric, client_counts, seeds, n_patients, slope, low, high, how, reading. Needs two client counts.
    """
    comparable(runs)
    evidence, arms, rows = stated(runs, study), by_arm(runs), []
    for partition in dict.fromkeys(arm[2] for arm in arms if arm[0] == "federated"):
        members = {arm[1]: own for arm, own in arms.items() if arm[0] == "federated" and arm[2] == partition}
        shared = set.intersection(*(set(seeds_of(own)) for own in members.values()))
        for metric in tasks.get(runs[0].config.task).PRIMARY if shared and len(members) > 1 else ():
            table = _aligned(members, shared, metric)
            doublings = np.log2(list(members)) - np.mean(np.log2(list(members)))
            steepest = np.abs(doublings).sum() / 2 / (doublings @ doublings)  # 0 at all counts below the mean, 1 above
            slopes = strata(table @ doublings / (doublings @ doublings))
            found = inference.interval(slopes, evidence.significance, (-steepest, steepest))
            counts = ", ".join(map(str, members))
            rows.append({"partition": partition, "metric": metric, "client_counts": counts, "seeds": len(shared),
                         "n_patients": table.index.get_level_values("patient").nunique(), **_limits(found, "slope"),
                         "reading": inference.reading(found.low, found.high)})  # fmt: skip
    columns = ["partition", "metric", "client_counts", "seeds", "n_patients", "slope", "low", "high", "how", "reading"]
    return pd.DataFrame(rows, columns=columns)


def _aligned(arms: dict, seeds: set[int], metric: str) -> pd.DataFrame:
    """Scores under these seeds, a column per arm; rows (stratum, patient) with a score in all of them."""
    own = {name: [run for run in runs if run.config.seed in seeds] for name, runs in arms.items()}
    scores = {name: arm_scores(runs, metric) for name, runs in own.items()}
    return pd.concat(scores, axis=1).dropna()


def _limits(found: inference.Interval, name: str = "value") -> dict:
    return {name: found.value, "low": found.low, "high": found.high, "how": found.how}
