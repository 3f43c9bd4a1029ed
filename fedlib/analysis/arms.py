"""From the run store to arms: which runs are intact, which may be compared, and what each patient scored under an arm.

An arm is what stands behind one point of a figure: mode, number of clients and partition. Its runs differ in the seed alone.
"""

import pandas as pd

from fedlib import tasks
from fedlib.analysis.inference import RESAMPLES, Sample
from fedlib.config import Evidence, Partition, RunConfig, StudyConfig, Training, UserError
from fedlib.training.run_store import Run

ARM = ["mode", "n_clients", "partition"]
ALL = ""
"""The stratum of endpoints that are a plain mean over the patients."""
TOLERANCE = 1e-4
"""Between a run's figures and those of its table: the former are float32."""


def arm_of(config: RunConfig) -> tuple[str, int, str]:
    """The arm that a configuration belongs to."""
    return config.mode, config.n_clients, config.partition


def by_arm(runs: list[Run]) -> dict[tuple, list[Run]]:
    """The runs of each arm, by seed; centralized first, then federated, then local, by partition and number of clients."""
    arms: dict[tuple, list[Run]] = {}
    for run in sorted(runs, key=_order):
        arms.setdefault(arm_of(run.config), []).append(run)
    return arms


def _order(run: Run) -> tuple:
    mode, n_clients, partition = arm_of(run.config)
    places = ("centralized", "federated", "local"), ("none", *Partition.__args__)
    return places[0].index(mode), places[1].index(partition), n_clients, run.config.seed


def seeds_of(runs: list[Run]) -> list[int]:
    """The seeds of an arm's runs."""
    return [run.config.seed for run in runs]


def sound(runs: list[Run]) -> tuple[list[Run], pd.DataFrame]:
    """The runs whose files are as they were when they were done, and the others: a row each, run_id and problem.

    A table is held to the hash in status.json, and to the figures there: as many test cases, the same primary scores. The
    weights (large, and not read for a table) are held to their hash when they are loaded.
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
    for name in set(run.status.get("files", ())) - {"weights.safetensors"}:
        run.whole(name)
    if run.config.run_id != run.folder.name:
        raise UserError(f"{run.folder / 'config.json'}: of run {run.config.run_id}, expected {run.folder.name}")
    if run.provenance["weights_sha256"] != run.result["weights_sha256"]:
        raise UserError(f"{run.folder / 'provenance.json'}: weights_sha256 differs from that in status.json")
    path, models = run.folder / "cases.csv", models_of([run])
    if (found := {len(cases) for cases in models}) != {run.result["n_test"]}:
        raise UserError(f"{path}: {', '.join(map(str, sorted(found)))} test cases, expected {run.result['n_test']}")
    task = tasks.get(run.config.task)
    scores = pd.DataFrame([task.summarize(cases) for cases in models]).mean()
    for metric in task.PRIMARY:
        if not abs(scores[metric] - run.result[metric]) <= TOLERANCE and pd.notna(run.result[metric]):
            raise UserError(f"{path}: {metric} {scores[metric]:.4f}, expected {run.result[metric]:.4f} as in status.json")


def comparable(runs: list[Run]) -> None:
    """Refuse runs that differ in more than their arm and seed: UserError, in one line that names two of them and why."""
    if not runs:
        raise UserError("no finished run to compare; run notebooks 02 and 03 first")
    first, seen = runs[0], {}
    for run in runs:
        for what, one, other in _conditions(first, run):
            if one != other:
                names = f"{first.config.run_id} and {run.config.run_id}"
                raise UserError(f"{names} cannot be compared: {what} {one} and {other}, expected the same")
        key = (*arm_of(run.config), run.config.seed)
        if key in seen:
            raise UserError(f"{seen[key]} and {run.config.run_id} cannot be compared: both are the same arm and seed")
        seen[key] = run.config.run_id
    cases = set(first.cases["case"])
    for run in runs:
        if differing := cases ^ set(run.cases["case"]):
            names = f"{first.config.run_id} and {run.config.run_id}"
            example = f"{len(differing)} test cases, such as {min(differing)}, are in one of them only"
            raise UserError(f"{names} cannot be compared: {example}; expected the same test set")


def _conditions(one: Run, other: Run) -> list[tuple]:
    """What has to be the same in two runs: its name, and its value in each."""
    a, b = one.config, other.config
    budget = "budgets (rounds x local_epochs) of", *(config.rounds * config.local_epochs for config in (a, b))
    values = [("tasks", a.task, b.task), ("data fingerprints", a.data_fingerprint[:12], b.data_fingerprint[:12]), budget]
    return values + [(name, getattr(a, name), getattr(b, name)) for name in Training.model_fields]


def models_of(runs: list[Run]) -> list[pd.DataFrame]:
    """The table of test cases of each trained model: one a run, of a local run one a client."""
    tables = [run.cases.groupby("client") if "client" in run.cases else [("", run.cases)] for run in runs]
    return [cases for models in tables for _, cases in models]


def unit_scores(cases: pd.DataFrame, task_name: str, metric: str) -> pd.Series:
    """Mean score of each patient over their rows, of however many cases and models: index (stratum, patient).

    Strata are the classes for macro sensitivity, where a patient with cases of two classes counts in both; else it is one.
    A patient without a score, for the reference lacks the structure, is left out.
    """
    task = tasks.get(task_name)
    scores = task.case_scores(cases)
    if metric not in task.STRATIFIED:
        scores["stratum"] = ALL
    return scores.groupby(["stratum", "patient"])[metric].mean().dropna()


def arm_scores(runs: list[Run], metric: str) -> pd.Series:
    """`unit_scores` over all models of an arm: each scored every case once, so all weigh the same."""
    return unit_scores(pd.concat([run.cases for run in runs]), runs[0].config.task, metric)


def strata(scores: pd.Series) -> Sample:
    """The sample behind `unit_scores`: an array per stratum."""
    return [own.to_numpy() for _, own in scores.groupby(level="stratum")]


def stated(runs: list[Run], study: StudyConfig | None = None) -> Evidence:
    """Margins and significance: the study's; without a study the strictest that the runs record."""
    if study is not None:
        return study
    return Evidence(**{name: min(getattr(run.config, name) for run in runs) for name in Evidence.model_fields})


def late(runs: list[Run], evidence: Evidence, name: str) -> str:
    """What to say of a setting that differs from what the runs recorded when they began; empty when it was stated before."""
    recorded = sorted({getattr(run.config, name) for run in runs})
    if recorded == [getattr(evidence, name)]:
        return ""
    return f"not what was stated before the runs, which record {' and '.join(map(str, recorded))}"


def settings(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """What the verdicts rest on: setting, value (text), label, and note: whether it stood before the runs began."""
    evidence, task = stated(runs, study), tasks.get(runs[0].config.task)
    names = list(dict.fromkeys(f"margin_{metric.partition('_')[0]}" for metric in task.PRIMARY)) + ["significance"]
    rows = [{"setting": name, "value": f"{getattr(evidence, name):g}", "note": late(runs, evidence, name)} for name in names]
    table = pd.DataFrame(rows).assign(note=lambda rows: rows["note"].replace("", "stated before the runs"))
    endpoints = ", ".join(tasks.NAMES[metric] for metric in task.PRIMARY)
    fixed = [("primary endpoints", endpoints, "of the task"), ("unit of analysis", "patient", "cases averaged first"),
             ("bootstrap resamples", f"{RESAMPLES}", "BCa, over patients, seeded")]  # fmt: skip
    whole = pd.concat([table, pd.DataFrame(fixed, columns=["setting", "value", "note"])], ignore_index=True)
    return whole.assign(label="chosen")[["setting", "value", "label", "note"]]


def absences(runs: list[Run]) -> pd.DataFrame:
    """Which client was missing in which round, and why: a row each; empty when every client answered in every round."""
    arm, columns = ["n_clients", "partition", "seed"], ["round", "client", "absent"]
    missing = [pd.DataFrame(columns=[*arm, *columns])]
    for run in runs:
        clients = run.clients.assign(**{name: getattr(run.config, name) for name in arm})
        if "absent" in clients:
            missing.append(clients.loc[clients["absent"].notna(), [*arm, *columns]])
    return pd.concat(missing, ignore_index=True)
