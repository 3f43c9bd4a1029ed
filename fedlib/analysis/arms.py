"""Group runs into arms: which runs are intact, which may be compared, and what each patient scored.

An arm is one point of a figure: mode, number of clients and partition. Its runs differ in the seed alone.
"""

import pandas as pd

from fedlib import tasks
from fedlib.config import AnalysisConfig, Partition, RunConfig, StudyConfig, TrainingConfig, UserError
from fedlib.training.run_store import Run

ARM = ["mode", "n_clients", "partition"]
TOLERANCE = 1e-6
"""Between the scores in status.json and those of the table of cases."""


def arm_of(config: RunConfig) -> tuple[str, int, str]:
    """Return the arm of a configuration."""
    return config.mode, config.n_clients, config.partition


def arm_name(arm: "RunConfig | tuple") -> str:
    """Return an arm in words: `federated, 4 clients, unbalanced`. `arm`: anything with mode, n_clients and partition."""
    if arm.mode == "centralized":
        return "centralized"
    return f"{arm.mode}, {arm.n_clients} {'client' if arm.n_clients == 1 else 'clients'}, {arm.partition.replace('_', ' ')}"


def by_arm(runs: list[Run]) -> dict[tuple, list[Run]]:
    """Return the runs of each arm, by seed; centralized first, then federated, then local, by partition and client count."""
    modes, partitions = ("centralized", "federated", "local"), ("none", *Partition.__args__)
    arms: dict[tuple, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.config.seed):
        arms.setdefault(arm_of(run.config), []).append(run)
    return dict(sorted(arms.items(), key=lambda arm: (modes.index(arm[0][0]), partitions.index(arm[0][2]), arm[0][1])))


def check_integrity(runs: list[Run]) -> tuple[list[Run], pd.DataFrame]:
    """Return the runs whose files are as they were when the run ended, and the others: a row each, run_id and problem.

    Tables are compared with the hashes and the scores in status.json. Weights are compared when they are loaded.
    """
    intact, problems = [], []
    for run in runs:
        try:
            _inspect(run)
            intact.append(run)
        except (ValueError, LookupError, TypeError, OSError) as error:  # UserError is a ValueError
            cause = str(error) if isinstance(error, UserError) else f"not readable ({type(error).__name__}: {error})"
            problems.append({"run_id": run.folder.name, "problem": cause})
    return intact, pd.DataFrame(problems, columns=["run_id", "problem"])


def _inspect(run: Run) -> None:
    """Raise UserError, or what reading a damaged file raises, when a run's files do not fit together."""
    for name in set(run.status["files"]) - {"weights.safetensors"}:
        run.verified_path(name)
    if run.config.run_id != run.folder.name:
        raise UserError(f"{run.folder / 'config.json'}: of run {run.config.run_id}, expected {run.folder.name}")
    if run.provenance["weights_sha256"] != run.result["weights_sha256"]:
        raise UserError(f"{run.folder / 'provenance.json'}: weights_sha256 differs from that in status.json")
    for metric in tasks.get(run.config.task).PRIMARY:
        score, recorded = mean_score([run], metric), run.result[metric]
        if not abs(score - recorded) <= TOLERANCE and pd.notna(recorded):
            raise UserError(f"{run.folder / 'cases.csv'}: {metric} {score:.4f}, expected {recorded:.4f} as in status.json")


def check_comparable(runs: list[Run]) -> None:
    """Raise UserError, in one line that names two runs, when runs differ in more than their arm and seed."""
    if not runs:
        raise UserError("no finished run to compare; run notebooks 02 and 03 first")
    first, seen, cases = runs[0], {}, set(runs[0].cases["case"])
    expected = _conditions(first.config)
    for run in runs:
        pair, found = f"{first.config.run_id} and {run.config.run_id} cannot be compared", _conditions(run.config)
        for what, value in expected.items():
            if found[what] != value:
                raise UserError(f"{pair}: {what} {value} and {found[what]}, expected the same")
        key = (*arm_of(run.config), run.config.seed)
        if key in seen:
            raise UserError(f"{seen[key]} and {run.config.run_id} cannot be compared: both are the same arm and seed")
        seen[key] = run.config.run_id
        if differing := cases ^ set(run.cases["case"]):
            example = f"{len(differing)} test cases, such as {min(differing)}, are in one of them only"
            raise UserError(f"{pair}: {example}; expected the same test set")


def _conditions(config: RunConfig) -> dict:
    """Return what must be the same in all runs, by name."""
    first = {"tasks": config.task, "data fingerprints": config.data_fingerprint[:12]}
    first["budgets (rounds x local_epochs) of"] = config.rounds * config.local_epochs
    return first | {name: getattr(config, name) for name in TrainingConfig.model_fields}


def models_of(runs: list[Run]) -> list[pd.DataFrame]:
    """Return the table of test cases of each trained model: one per run, of a local run one per client."""
    tables = [run.cases.groupby("client") if "client" in run.cases else [("", run.cases)] for run in runs]
    return [cases for models in tables for _, cases in models]


def arm_scores(runs: list[Run], metric: str) -> pd.Series:
    """Return each patient's mean over all models of an arm; index (stratum, patient)."""
    return tasks.get(runs[0].config.task).patient_scores(pd.concat([run.cases for run in runs]), metric)


def mean_score(runs: list[Run], metric: str) -> float:
    """Return the score of an arm: the mean over the strata of their patients' means."""
    return float(arm_scores(runs, metric).groupby("stratum").mean().mean())


def strata(scores: pd.Series) -> list:
    """Return the sample behind `arm_scores`: an array per stratum."""
    return [values.to_numpy() for _, values in scores.groupby(level="stratum")]


def n_patients(scores: pd.Series | pd.DataFrame) -> int:
    """Return the number of patients in `arm_scores`: one with cases of two classes counts once."""
    return scores.index.get_level_values("patient").nunique()


def resolve_margins(runs: list[Run], study: StudyConfig | None = None) -> AnalysisConfig:
    """Return margins and significance: the study's; without a study the strictest that the runs record."""
    if study is not None:
        return study
    return AnalysisConfig(**{name: min(getattr(run.config, name) for run in runs) for name in AnalysisConfig.model_fields})


def margin_note(runs: list[Run], evidence: AnalysisConfig, name: str) -> str:
    """Return a warning when a setting differs from what the runs recorded when they began; else an empty text."""
    recorded = sorted({getattr(run.config, name) for run in runs})
    if recorded == [getattr(evidence, name)]:
        return ""
    return f"not what was stated before the runs, which record {' and '.join(map(str, recorded))}"


def missing_clients(runs: list[Run]) -> pd.DataFrame:
    """Return a row per client and round in which it was missing, with the reason; empty when every client replied."""
    arm, columns = ["n_clients", "partition", "seed"], ["round", "client", "absent"]
    missing = [pd.DataFrame(columns=[*arm, *columns])]
    for run in runs:
        clients = run.clients.assign(**{name: getattr(run.config, name) for name in arm})
        if "absent" in clients:
            missing.append(clients.loc[clients["absent"].notna(), [*arm, *columns]])
    return pd.concat(missing, ignore_index=True)
