"""Compare arms, paired by patient and seed: with centralized, with balanced, and with local training.

`study` sets margins and significance; without it they are those that the first run records.
"""

from collections.abc import Iterable
from itertools import product

import numpy as np
import pandas as pd

from fedlib import tasks
from fedlib.analysis import inference
from fedlib.analysis.arms import ARM, Arm, arm_scores, by_arm, check_comparable, margin_note, n_patients, strata
from fedlib.config import AnalysisConfig
from fedlib.data.dataset import batches
from fedlib.training.plateau import CLIMBING, PLATEAU, TOO_FEW, training_state
from fedlib.training.run_store import Run

CENTRALIZED = Arm("centralized", 1, "none")
SCORE, DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)
"""Bounds of the primary endpoints and of their differences."""
PAIRED = ["difference", "difference_low", "difference_high", "difference_how", "margin", "verdict", "direction",
          "smallest_margin", "test", "p", "p_holm"]  # fmt: skip


def compare(runs: list[Run], study: AnalysisConfig | None = None) -> pd.DataFrame:
    """Return one row per arm and primary endpoint of one task, centralized first.

    Columns: mode, n_clients, partition, metric, seeds, n_patients, value, low, high, how (see `inference.Interval`);
    those of `paired_difference` from centralized (empty for itself and without it), and p_holm;
    training (of the arm's least finished run, see `training.plateau`); margin_note (empty, or that the margin is not what
    was stated before the runs); paper (the abstract's figure or NaN).
    Verdicts are not corrected for their number. For p_holm the family is all rows of one mode.
    Raises UserError for runs that must not be compared.
    """
    check_comparable(runs)
    evidence, arms, task, rows = study or runs[0].config, by_arm(runs), tasks.get(runs[0].config.task), []
    for (arm, members), metric in product(arms.items(), task.PRIMARY):
        scores = arm_scores(members, metric)
        row = arm._asdict() | {"metric": metric, "seeds": len(members), "n_patients": n_patients(scores)}
        row |= inference.interval(strata(scores), evidence.significance, SCORE)._asdict()
        if arm != CENTRALIZED and CENTRALIZED in arms:
            row |= paired_difference(members, arms[CENTRALIZED], metric, evidence)
            row["margin_note"] = margin_note(runs, evidence, f"margin_{metric.partition('_')[0]}")
        row["training"] = least_finished(members, metric, evidence)
        row["paper"] = task.PAPER.get(arm[:2], {}).get(metric) if arm.mode != "local" else None
        rows.append(row)
    scored = [*ARM, "metric", "seeds", "n_patients", *inference.Interval._fields, "paired_seeds", "paired_patients"]
    table = pd.DataFrame(rows, columns=[*scored, *PAIRED, "training", "margin_note", "paper"])
    return table.assign(p_holm=table.groupby("mode")["p"].transform(inference.holm))


def least_finished(runs: list[Run], metric: str, evidence: AnalysisConfig) -> str:
    """Return how far the least finished of an arm's runs was (see `training.plateau`)."""
    states = {training_state(run.rounds[metric].tolist(), evidence.margin(metric)) for run in runs}
    return next(state for state in (CLIMBING, TOO_FEW, PLATEAU) if state in states)


def optimizer_steps(run: Run) -> pd.Series:
    """Return the optimizer steps of each row of clients.csv, one client's round; 0 where the client was absent."""
    config, cases = run.config, run.clients["n"].fillna(0).astype(int)
    return config.local_epochs * cases.map(
        lambda n: len(batches(np.arange(n), config.batch_size, None, config.drop_last)) if n else 0
    )


def training_table(runs: list[Run], study: AnalysisConfig | None = None) -> pd.DataFrame:
    """Return each arm's rounds, epochs, optimizer steps of a client (fewest and most), and whether training was finished."""
    rows = []
    for arm, members in by_arm(runs).items():
        config, steps = members[0].config, [optimizer_steps(run).groupby(run.clients["client"]).sum() for run in members]
        row = {"rounds": config.rounds, "epochs": config.rounds * config.local_epochs}
        row |= {"fewest_steps": min(map(min, steps)), "most_steps": max(map(max, steps))}
        for metric in tasks.get(config.task).PRIMARY:
            row[tasks.NAMES[metric]] = least_finished(members, metric, study or runs[0].config)
        rows.append(arm._asdict() | row)
    return pd.DataFrame(rows)


def paired_difference(runs: list[Run], reference: list[Run], metric: str, evidence: AnalysisConfig) -> dict:
    """Return one arm minus another, paired by patient, over the seeds that both have.

    A patient's scores are averaged over these seeds (and over the clients of a local arm) first. So the interval covers
    other patients of the same kind, for the models at hand; `seed_spread` shows how far another seed moves the difference.
    Keys: paired_seeds, paired_patients; difference with its limits and how they were computed; margin, verdict, direction
    (see `inference`); smallest_margin, the smallest at which the arm is no worse; test and its p (secondary).
    """
    seeds, margin = _shared_seeds([runs, reference]), evidence.margin(metric)
    found, more = inference.Interval(np.nan, np.nan, np.nan, "none: no seed in common"), {"paired_patients": 0}
    if seeds:
        pairs = _aligned({"one": runs, "other": reference}, seeds, metric)
        sample = strata(pairs["one"] - pairs["other"])
        found = inference.interval(sample, evidence.significance, DIFFERENCE)
        # Class-weighted, so that the mean over all patients is the macro average; with one stratum every weight is 1.
        share = pairs.groupby(level="stratum")["one"].transform("size") * len(sample) / len(pairs)
        test, p = inference.difference_test((pairs["one"] / share).to_numpy(), (pairs["other"] / share).to_numpy())
        more = {"paired_patients": n_patients(pairs), "smallest_margin": np.maximum(0.0, -found.low), "test": test, "p": p}
    verdict, direction = inference.verdict(found.low, found.high, margin), inference.direction(found.low, found.high)
    row = {"paired_seeds": len(seeds), "margin": margin, "verdict": verdict, "direction": direction}
    return row | dict(zip(PAIRED, found, strict=False)) | more


def partition_effect(runs: list[Run], study: AnalysisConfig | None = None) -> pd.DataFrame:
    """Return federated under each other partition minus balanced, for the same number of clients.

    Columns: n_clients, partition, metric, seeds, n_patients and those of `paired_difference`; empty without a pair.
    """
    uneven = [arm for arm in by_arm(runs) if arm.mode == "federated" and arm.partition != "balanced"]
    return _differences(runs, study, {arm: arm._replace(partition="balanced") for arm in uneven})


def federated_vs_local(runs: list[Run], study: AnalysisConfig | None = None) -> pd.DataFrame:
    """Return federated minus local-only, for the same partition and number of clients: what a hospital gains by taking part.

    Columns as in `partition_effect`. A local arm's score is the mean over its clients' models, as for a patient who comes to
    any of the hospitals with the same chance.
    """
    return _differences(runs, study, {arm: arm._replace(mode="local") for arm in by_arm(runs) if arm.mode == "federated"})


def _differences(runs: list[Run], study: AnalysisConfig | None, pairs: dict[Arm, Arm]) -> pd.DataFrame:
    """Return a row per pair of arms (that exist) and primary endpoint. Holm's family is the whole table."""
    check_comparable(runs)
    arms, rows = by_arm(runs), []
    for (arm, other), metric in product(pairs.items(), tasks.get(runs[0].config.task).PRIMARY):
        if arm in arms and other in arms:
            paired = paired_difference(arms[arm], arms[other], metric, study or runs[0].config)
            rows.append(arm._asdict() | {"metric": metric} | paired)
    table = pd.DataFrame(rows, columns=["n_clients", "partition", "metric", "paired_seeds", "paired_patients", *PAIRED])
    table = table.rename(columns={"paired_seeds": "seeds", "paired_patients": "n_patients"})
    return table.assign(p_holm=inference.holm(table["p"]))


def client_trend(runs: list[Run], study: AnalysisConfig | None = None) -> pd.DataFrame:
    """Return the change of the federated score per doubling of the number of clients, per partition and primary endpoint.

    Each patient has a slope, by least squares on log2 of the number of clients; the row is their mean with its interval.
    Columns: partition, metric, client_counts, seeds, n_patients, slope, low, high, how, direction. Needs two client counts.
    """
    check_comparable(runs)
    evidence, rows, federated = study or runs[0].config, [], {}
    for arm, members in by_arm(runs).items():
        if arm.mode == "federated":
            federated.setdefault(arm.partition, {})[arm.n_clients] = members
    for (partition, arms), metric in product(federated.items(), tasks.get(runs[0].config.task).PRIMARY):
        if (seeds := _shared_seeds(arms.values())) and len(arms) > 1:
            table, doublings = _aligned(arms, seeds, metric), np.log2(list(arms)) - np.mean(np.log2(list(arms)))
            steepest = np.abs(doublings).sum() / 2 / (doublings @ doublings)  # 0 at all counts below the mean, 1 above
            slopes = strata(table @ doublings / (doublings @ doublings))
            found = inference.interval(slopes, evidence.significance, (-steepest, steepest))
            about = partition, metric, ", ".join(map(str, arms)), len(seeds), n_patients(table)
            rows.append((*about, *found, inference.direction(found.low, found.high)))
    columns = ["partition", "metric", "client_counts", "seeds", "n_patients", "slope", "low", "high", "how", "direction"]
    return pd.DataFrame(rows, columns=columns)


def _shared_seeds(arms: Iterable[list[Run]]) -> set[int]:
    return set.intersection(*({run.config.seed for run in runs} for runs in arms))


def _aligned(arms: dict, seeds: set[int], metric: str) -> pd.DataFrame:
    """Return scores under these seeds, a column per arm; rows (stratum, patient) with a score in all of them."""
    scores = {name: arm_scores([run for run in runs if run.config.seed in seeds], metric) for name, runs in arms.items()}
    return pd.concat(scores, axis=1).dropna()
