"""What the runs of a study say: scores of every arm with intervals, and paired differences from centralized training.

Reads the run store and nothing else. The unit is the patient: a patient's cases, a seed's runs and a local arm's clients are
averaged first, so that none of them counts as independent evidence.
"""

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from fedlib import tasks
from fedlib.config import Partition
from fedlib.runs import Run

RESAMPLES = 2000
ARM = ["mode", "n_clients", "partition"]


def compare(runs: list[Run]) -> pd.DataFrame:
    """One row per arm and primary metric of one task, centralized first.

    Columns: mode, n_clients, partition, metric, seeds, n_patients, value, low, high (BCa 95% interval over patients),
    difference, difference_low, difference_high (paired, from the centralized arm; empty for itself), reading, paper.
    """
    task = tasks.get(runs[0].config.task)
    arms: dict[tuple, list[Run]] = {}
    for run in runs:
        arms.setdefault((run.config.mode, run.config.n_clients, run.config.partition), []).append(run)
    scores = {arm: patient_scores(members) for arm, members in arms.items()}
    central = scores.get(("centralized", 1, "none"))
    rows = []
    for arm, members in sorted(arms.items(), key=_order):
        for metric in task.PRIMARY:
            own = scores[arm][metric].dropna()
            row = dict(zip(ARM, arm, strict=True)) | {"metric": metric, "seeds": len(members), "n_patients": len(own)}
            row |= dict(zip(("value", "low", "high"), interval(own.to_numpy()), strict=True))
            if central is not None and arm[0] != "centralized":
                paired = (scores[arm][metric] - central[metric]).dropna().to_numpy()
                row |= dict(zip(("difference", "difference_low", "difference_high"), interval(paired), strict=True))
                row["reading"] = reading(row["difference_low"], row["difference_high"])
            row["paper"] = task.PAPER.get(arm[:2], {}).get(metric) if arm[0] != "local" else None
            rows.append(row)
    return pd.DataFrame(rows).reindex(
        columns=[
            *ARM,
            "metric",
            "seeds",
            "n_patients",
            "value",
            "low",
            "high",
            "difference",
            "difference_low",
            "difference_high",
            "reading",
            "paper",
        ]  # fmt: skip
    )


def patient_scores(runs: list[Run]) -> pd.DataFrame:
    """Mean score of each patient (index) under one arm's runs, a column per primary metric."""
    task = tasks.get(runs[0].config.task)
    tables = [task.case_scores(run.cases) for run in runs]
    return pd.concat(tables).groupby("patient")[list(task.PRIMARY)].mean()


def absences(runs: list[Run]) -> pd.DataFrame:
    """Which client was missing in which round, and why: a row each; empty when every client answered in every round."""
    arm, columns = ["n_clients", "partition", "seed"], ["round", "client", "absent"]
    missing = [pd.DataFrame(columns=[*arm, *columns])]
    for run in runs:
        clients = run.clients.assign(**{name: getattr(run.config, name) for name in arm})
        if "absent" in clients:
            missing.append(clients.loc[clients["absent"].notna(), [*arm, *columns]])
    return pd.concat(missing, ignore_index=True)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and its 95% interval by the BCa bootstrap (Efron, 1987); a fixed seed, so a report can be made again."""
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:  # nothing to resample
        return mean, mean, mean
    found = bootstrap((values,), np.mean, n_resamples=RESAMPLES, rng=np.random.default_rng(0)).confidence_interval
    return mean, float(found.low), float(found.high)


def reading(low: float, high: float) -> str:
    """What an interval of differences lets one say. One that holds zero does not show that two arms are equal."""
    if high < 0:
        return "lower"
    return "higher" if low > 0 else "inconclusive"


def _order(item: tuple[tuple, list[Run]]) -> tuple:
    mode, n_clients, partition = item[0]
    return ("centralized", "federated", "local").index(mode), ("none", *Partition.__args__).index(partition), n_clients


def answer(table: pd.DataFrame) -> list[str]:
    """The study's question answered in sentences, one a metric, from `compare`'s table."""
    sentences = []
    for metric, own in table.groupby("metric", sort=False):
        central = own[own["mode"] == "centralized"].iloc[0]
        text = f"{tasks.NAMES[metric]}: centralized training reaches {central.value:.3f}"
        text += f" [{central.low:.3f}, {central.high:.3f}]. "
        federated = own[own["mode"] == "federated"]
        for verdict, words in (
            ("lower", "Federated training is lower, and its interval excludes 0, with"),
            ("higher", "It is higher, and its interval excludes 0, with"),
            ("inconclusive", "No difference can be told from chance with"),
        ):
            arms = federated[federated["reading"] == verdict]
            listed = [f"{row.n_clients} clients {row.partition} ({row.difference:+.3f})" for row in arms.itertuples()]
            text += f"{words} {'; '.join(listed)}. " if listed else ""
        local = own[own["mode"] == "local"]
        if len(local):
            worst = local.loc[local["value"].idxmin()]
            text += (
                f"Clients alone reach {worst.value:.3f} on average at worst ({worst.n_clients} clients, {worst.partition})."
            )
        sentences.append(text.strip())
    return sentences
