"""Group runs into arms: which runs are intact, which may be compared, and what each patient scored.

An arm is one point of a figure: mode, number of clients and partition. Its runs differ in the seed alone.
"""

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

from fedlib import tasks
from fedlib.config import AnalysisConfig, Partition, RunConfig, TrainingConfig, UserError
from fedlib.training.run_store import Run, RunStore


class Arm(NamedTuple):
    """What the runs of an arm have in common."""

    mode: str
    n_clients: int
    partition: str


ARM = list(Arm._fields)
TOLERANCE = 1e-6
"""Between the scores in status.json and those of the table of cases."""


def arm_of(config: RunConfig) -> Arm:
    """Return the arm of a configuration."""
    return Arm(config.mode, config.n_clients, config.partition)


def arm_name(arm: Arm | RunConfig) -> str:
    """Return an arm in words: `federated, 4 clients, unbalanced`. `arm`: anything with mode, n_clients and partition."""
    if arm.mode == "centralized":
        return "centralized"
    return f"{arm.mode}, {arm.n_clients} {'client' if arm.n_clients == 1 else 'clients'}, {arm.partition.replace('_', ' ')}"


def by_arm(runs: list[Run]) -> dict[Arm, list[Run]]:
    """Return the runs of each arm, by seed; centralized first, then federated, then local, by partition and client count."""
    modes, partitions = ("centralized", "federated", "local"), ("none", *Partition.__args__)
    arms: dict[Arm, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.config.seed):
        arms.setdefault(arm_of(run.config), []).append(run)
    order = sorted(arms, key=lambda arm: (modes.index(arm.mode), partitions.index(arm.partition), arm.n_clients))
    return {arm: arms[arm] for arm in order}


def check_integrity(store: RunStore, run_ids: Iterable[str]) -> tuple[list[Run], dict[str, str]]:
    """Return the runs that are done and whose files are as they were then; and of each other one, why it is not there.

    Tables are compared with the hashes and the scores in status.json. Weights are compared when they are loaded.
    """
    intact, missing = [], {}
    for run_id in run_ids:
        run = store.get(run_id)
        if not run or not run.done:
            missing[run_id] = run.status.get("error", run.status["state"]) if run else "not begun"
            continue
        try:
            _inspect(run)
            intact.append(run)
        except (ValueError, LookupError, TypeError, OSError) as error:  # UserError is a ValueError
            cause = str(error) if isinstance(error, UserError) else f"not readable ({type(error).__name__}: {error})"
            missing[run_id] = f"damaged: {cause.replace(f'{run.folder}/', '')}"  # a page does not tell where it was made
    return intact, missing


def _inspect(run: Run) -> None:
    """Raise UserError, or what reading a damaged file raises, when a run's files do not fit together."""
    for name in set(run.status["files"]) - {"weights.safetensors"}:
        run.verified_path(name)
    if run.config.run_id != run.folder.name:
        raise UserError(f"{run.folder / 'config.json'}: of run {run.config.run_id}, expected {run.folder.name}")
    if run.provenance["weights_sha256"] != run.result["weights_sha256"]:
        raise UserError(f"{run.folder / 'provenance.json'}: weights_sha256 differs from that in status.json")
    for metric, score in tasks.get(run.config.task).summarize(run.cases).items():
        recorded = run.result[metric]
        if not abs(score - recorded) <= TOLERANCE and pd.notna(recorded):
            raise UserError(f"{run.folder / 'cases.csv'}: {metric} {score:.4f}, expected {recorded:.4f} as in status.json")


def check_comparable(runs: list[Run]) -> None:
    """Raise UserError, in one line that names two runs, when runs differ in more than their arm and seed."""
    if not runs:
        raise UserError("no finished run to compare; run notebooks 02 and 03 first")
    first, seen, cases = runs[0], {}, set(runs[0].cases["case"])
    for run in runs:
        for (what, expected), found in zip(_conditions(first).items(), _conditions(run).values(), strict=True):
            if found != expected:
                raise _refusal(first, run, f"{what} {expected} and {found}, expected the same")
        if (same := seen.setdefault((*arm_of(run.config), run.config.seed), run)) is not run:
            raise _refusal(same, run, "both are the same arm and seed")
        if differing := cases ^ set(run.cases["case"]):
            example = f"{len(differing)} test cases, such as {min(differing)}, are in one of them only"
            raise _refusal(first, run, f"{example}; expected the same test set")


def _refusal(one: Run, other: Run, why: str) -> UserError:
    return UserError(f"{one.config.run_id} and {other.config.run_id} cannot be compared: {why}")


def _conditions(run: Run) -> dict:
    """Return what must be the same in all runs, by name."""
    config = run.config
    first = {"tasks": config.task, "data fingerprints": config.data_fingerprint[:12]}
    first["budgets (rounds x local_epochs) of"] = config.rounds * config.local_epochs
    return first | {name: getattr(config, name) for name in TrainingConfig.model_fields}


def arm_scores(runs: list[Run], metric: str) -> pd.Series:
    """Return each patient's mean over all models of an arm; index (stratum, patient)."""
    return tasks.get(runs[0].config.task).patient_scores(pd.concat([run.cases for run in runs]), metric)


def strata(scores: pd.Series) -> list:
    """Return the sample behind `arm_scores`: an array per stratum."""
    return [values.to_numpy() for _, values in scores.groupby(level="stratum")]


def n_patients(scores: pd.Series | pd.DataFrame) -> int:
    """Return the number of patients in `arm_scores`: one with cases of two classes counts once."""
    return scores.index.get_level_values("patient").nunique()


def margin_note(runs: list[Run], evidence: AnalysisConfig, name: str) -> str:
    """Return a warning when a setting differs from what the runs recorded when they began; else an empty text."""
    recorded = sorted({getattr(run.config, name) for run in runs})
    if recorded == [getattr(evidence, name)]:
        return ""
    return f"not what was stated before the runs, which record {' and '.join(map(str, recorded))}"


def missing_clients(runs: list[Run]) -> pd.DataFrame:
    """Return a row per client and round in which it was missing, with the reason; empty when every client replied."""
    arm = ["n_clients", "partition", "seed"]
    tables = [run.clients.assign(**{name: getattr(run.config, name) for name in arm}) for run in runs]
    table = pd.concat([pd.DataFrame(), *tables]).reindex(columns=[*arm, "round", "client", "absent"])
    return table.dropna(subset="absent", ignore_index=True)
