"""Compare arms, paired by patient and seed: with centralized, with balanced, and with local training."""

import numpy as np
import pandas as pd

from fedlib import tasks
from fedlib.analysis import inference
from fedlib.analysis.arms import ARM, arm_scores, by_arm, check_comparable, margin_note, n_patients, resolve_margins, strata
from fedlib.config import AnalysisConfig, StudyConfig
from fedlib.data.dataset import batches
from fedlib.training.plateau import CLIMBING, PLATEAU, TOO_FEW, training_state
from fedlib.training.run_store import Run

CENTRALIZED = ("centralized", 1, "none")
SCORE, DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)
"""Bounds of the primary endpoints and of their differences."""
PAIRED = ["difference", "difference_low", "difference_high", "difference_how", "margin", "verdict", "direction",
          "smallest_margin", "test", "p", "p_holm"]  # fmt: skip


def compare(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """Return one row per arm and primary endpoint of one task, centralized first.

    Columns: mode, n_clients, partition, metric, seeds, n_patients, value, low, high, how (see `inference.Interval`);
    paired_seeds, paired_patients and the columns of `paired_difference` from centralized (empty for itself and without it);
    training (of the arm's least finished run, see `training.plateau`); margin_note (empty, or that the margin is not what
    was stated before the runs); paper (the abstract's figure or NaN).
    Verdicts are not corrected for their number. For p_holm the family is all rows of one mode. Without `study` the margins
    are those that the runs record. Raises UserError for runs that must not be compared.
    """
    check_comparable(runs)
    evidence, arms, task = resolve_margins(runs, study), by_arm(runs), tasks.get(runs[0].config.task)
    rows = []
    for arm, members in arms.items():
        for metric in task.PRIMARY:
            scores = arm_scores(members, metric)
            row = dict(zip(ARM, arm, strict=True)) | {
                "metric": metric,
                "seeds": len(members),
                "n_patients": n_patients(scores),
            }
            row |= inference.interval(strata(scores), evidence.significance, SCORE)._asdict()
            row["training"] = least_finished(members, metric, evidence)
            if arm != CENTRALIZED and CENTRALIZED in arms:
                paired = paired_difference(members, arms[CENTRALIZED], metric, evidence)
                row |= {"paired_seeds": paired.pop("seeds"), "paired_patients": paired.pop("n_patients")} | paired
                row["margin_note"] = margin_note(runs, evidence, f"margin_{metric.partition('_')[0]}")
            row["paper"] = task.PAPER.get(arm[:2], {}).get(metric) if arm[0] != "local" else None
            rows.append(row)
    scored = [*ARM, "metric", "seeds", "n_patients", "value", "low", "high", "how", "paired_seeds", "paired_patients"]
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


def training_table(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """Return each arm's rounds, epochs, optimizer steps of a client (least and most), and whether training was finished."""
    evidence, rows = resolve_margins(runs, study), []
    for arm, members in by_arm(runs).items():
        config, metrics = members[0].config, tasks.get(members[0].config.task).PRIMARY
        steps = pd.concat([optimizer_steps(run).groupby(run.clients["client"]).sum() for run in members])
        states = {tasks.NAMES[metric]: least_finished(members, metric, evidence) for metric in metrics}
        row = {"rounds": config.rounds, "epochs": config.rounds * config.local_epochs}
        row |= {"least_steps": steps.min(), "most_steps": steps.max()}
        rows.append(dict(zip(ARM, arm, strict=True)) | row | states)
    return pd.DataFrame(rows)


def paired_difference(runs: list[Run], reference: list[Run], metric: str, evidence: AnalysisConfig) -> dict:
    """Return one arm minus another, paired by patient, over the seeds that both have.

    A patient's scores are averaged over these seeds (and over the clients of a local arm) first. So the interval covers
    other patients of the same kind, for the models at hand; `seed_spread` shows how far another seed moves the difference.
    Keys: seeds, n_patients; difference with its limits and how they were computed; margin, verdict, direction (see
    `inference`); smallest_margin, the smallest at which the arm is no worse; test and its p (secondary).
    """
    shared = _seeds(runs) & _seeds(reference)
    margin, row = evidence.margin(metric), {"seeds": len(shared), "n_patients": 0}
    if not shared:
        return row | {"difference_how": "none: no seed in common", "margin": margin, "verdict": "inconclusive",
                      "direction": "no difference shown"}  # fmt: skip
    pairs = _aligned({"one": runs, "other": reference}, shared, metric)
    sample = strata(pairs["one"] - pairs["other"])
    value, low, high, how = inference.interval(sample, evidence.significance, DIFFERENCE)
    # Class-weighted, so that the mean over all patients is the macro average; with one stratum every weight is 1.
    share = pairs.groupby(level="stratum")["one"].transform("size") * len(sample) / len(pairs)
    test, p = inference.difference_test((pairs["one"] / share).to_numpy(), (pairs["other"] / share).to_numpy())
    return row | {
        "n_patients": n_patients(pairs),
        "difference": value,
        "difference_low": low,
        "difference_high": high,
        "difference_how": how,
        "margin": margin,
        "verdict": inference.verdict(low, high, margin),
        "direction": inference.direction(low, high),
        "smallest_margin": low if np.isnan(low) else max(0.0, -low),
        "test": test,
        "p": p,
    }


def partition_effect(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """Return federated under each other partition minus balanced, for the same number of clients.

    Columns: n_clients, partition, metric, seeds, n_patients and those of `paired_difference`; empty without a pair.
    """
    pairs = {arm: (*arm[:2], "balanced") for arm in by_arm(runs) if arm[0] == "federated" and arm[2] != "balanced"}
    return _differences(runs, study, pairs)


def federated_vs_local(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """Return federated minus local-only, for the same partition and number of clients: what a hospital gains by taking part.

    Columns as in `partition_effect`. A local arm's score is the mean over its clients' models, as for a patient who comes to
    any of the hospitals with the same chance.
    """
    return _differences(runs, study, {arm: ("local", *arm[1:]) for arm in by_arm(runs) if arm[0] == "federated"})


def _differences(runs: list[Run], study: StudyConfig | None, pairs: dict[tuple, tuple]) -> pd.DataFrame:
    """Return a row per pair of arms (that exist) and primary endpoint. Holm's family is the whole table."""
    check_comparable(runs)
    arms, evidence = by_arm(runs), resolve_margins(runs, study)
    rows = [
        {"n_clients": arm[1], "partition": arm[2], "metric": metric}
        | paired_difference(arms[arm], arms[other], metric, evidence)
        for arm, other in pairs.items() if arm in arms and other in arms
        for metric in tasks.get(runs[0].config.task).PRIMARY
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["n_clients", "partition", "metric", "seeds", "n_patients", *PAIRED])
    return table.assign(p_holm=inference.holm(table["p"]))


def client_trend(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """Return the change of the federated score per doubling of the number of clients, per partition and primary endpoint.

    Each patient has a slope, by least squares on log2 of the number of clients; the row is their mean with its interval.
    Columns: partition, metric, client_counts, seeds, n_patients, slope, low, high, how, direction. Needs two client counts.
    """
    check_comparable(runs)
    evidence, arms, rows = resolve_margins(runs, study), by_arm(runs), []
    for partition in dict.fromkeys(arm[2] for arm in arms if arm[0] == "federated"):
        members = {arm[1]: of_arm for arm, of_arm in arms.items() if arm[0] == "federated" and arm[2] == partition}
        shared = set.intersection(*map(_seeds, members.values()))
        doublings = np.log2(list(members)) - np.mean(np.log2(list(members)))
        for metric in tasks.get(runs[0].config.task).PRIMARY if shared and len(members) > 1 else ():
            table = _aligned(members, shared, metric)
            steepest = np.abs(doublings).sum() / 2 / (doublings @ doublings)  # 0 at all counts below the mean, 1 above
            slopes = strata(table @ doublings / (doublings @ doublings))
            slope, low, high, how = inference.interval(slopes, evidence.significance, (-steepest, steepest))
            about = partition, metric, ", ".join(map(str, members)), len(shared), n_patients(table)
            rows.append((*about, slope, low, high, how, inference.direction(low, high)))
    columns = ["partition", "metric", "client_counts", "seeds", "n_patients", "slope", "low", "high", "how", "direction"]
    return pd.DataFrame(rows, columns=columns)


def _seeds(runs: list[Run]) -> set[int]:
    return {run.config.seed for run in runs}


def _aligned(arms: dict, seeds: set[int], metric: str) -> pd.DataFrame:
    """Return scores under these seeds, a column per arm; rows (stratum, patient) with a score in all of them."""
    scores = {name: arm_scores([run for run in runs if run.config.seed in seeds], metric) for name, runs in arms.items()}
    return pd.concat(scores, axis=1).dropna()
