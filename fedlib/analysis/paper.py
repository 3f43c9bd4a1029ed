"""State what the comparison assumes, set the paper's figures beside this run's, and answer the study's question in words."""

import pandas as pd

from fedlib import tasks
from fedlib.analysis.arms import ARM, margin_note, resolve_evidence
from fedlib.analysis.inference import RESAMPLES, VERDICTS
from fedlib.analysis.tables import bracketed
from fedlib.config import Federation, RunConfig, StudyConfig, Training
from fedlib.training.run_store import Run

PAPER, INFERRED, CHOSEN = "from the paper", "inferred", "chosen"
STUDIED = {"classification": (2, 4, 8), "segmentation": (2, 4, 8, 16)}
"""Numbers of clients in the paper."""
MODELS = {"classification": "ResNet18", "segmentation": "3D U-Net"}


def paper_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the abstract's figures beside those of this run, from `compare`'s table.

    Columns: ARM, metric, paper (NaN where it gives words only), paper_says ("0.867", "about 0.94", "similar to
    centralized"), this_run, low, high, paper_change and change (federated minus centralized, there and here). Other data and
    training than the paper's: a difference is no error of either.
    """
    rows = []
    for row in table[table["mode"] != "local"].itertuples():
        task = next(task for task in map(tasks.get, tasks.TASKS) if row.metric in task.PRIMARY)
        known = task.PAPER.get((row.mode, row.n_clients))
        if known is None:
            continue
        similar, change = row.metric in task.SIMILAR and row.metric not in known, None
        words = f"{'about ' * (row.metric in task.ABOUT)}{row.paper:g}" if not similar else "similar to centralized"
        if row.mode == "federated" and not similar:
            change = row.paper - task.PAPER["centralized", 1][row.metric]
        arm = [getattr(row, name) for name in (*ARM, "metric")]
        rows.append((*arm, row.paper, words, row.value, row.low, row.high, change, row.difference))
    columns = ["paper", "paper_says", "this_run", "low", "high", "paper_change", "change"]
    numbers = dict.fromkeys(set(columns) - {"paper_says"}, float)
    return pd.DataFrame(rows, columns=[*ARM, "metric", *columns]).astype(numbers)


def settings(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """Return what the verdicts rest on: setting, value (text), label, and note: whether it was stated before the runs."""
    evidence, task = resolve_evidence(runs, study), tasks.get(runs[0].config.task)
    names = list(dict.fromkeys(f"margin_{metric.partition('_')[0]}" for metric in task.PRIMARY)) + ["significance"]
    notes = {name: margin_note(runs, evidence, name) or "stated before the runs" for name in names}
    rows = [(name, f"{getattr(evidence, name):g}", CHOSEN, note) for name, note in notes.items()] + [
        ("primary endpoints", ", ".join(tasks.NAMES[metric] for metric in task.PRIMARY), CHOSEN, "of the task"),
        ("unit of analysis", "patient", CHOSEN, "cases averaged first; images of one patient are no independent evidence"),
        ("intervals", f"{evidence.level}, BCa bootstrap", CHOSEN, f"{RESAMPLES} resamples of patients, seeded"),
        ("verdicts", "not corrected for their number", CHOSEN, "each arm has its own interval; p_holm is corrected"),
    ]
    return pd.DataFrame(rows, columns=["setting", "value", "label", "note"])


def assumptions(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """Return all else that this run assumes: what, value, label (from the paper, inferred, chosen), why."""
    configs = [run.config for run in runs]
    rows = [*_design(configs), *_endpoints(configs[0].task), *_training(configs)]
    return pd.DataFrame(rows, columns=["what", "value", "label", "why"])


def _design(configs: list[RunConfig]) -> list[tuple[str, str, str, str]]:
    task, config = configs[0].task, configs[0]
    counts = sorted({config.n_clients for config in configs if config.mode != "centralized"})
    partitions = sorted({config.partition for config in configs} - {"none"})
    strategies = sorted({config.strategy for config in configs} - {"none"})
    return [
        ("number of clients", ", ".join(map(str, counts)) or "none yet", PAPER if {*counts} <= {*STUDIED[task]} else CHOSEN,
         f"in the paper {', '.join(map(str, STUDIED[task]))}"),
        ("aggregation", ", ".join(strategies) or "none yet", CHOSEN, "the abstract does not say"),
        ("partitions", ", ".join(partitions) or "none yet", PAPER if {*partitions} <= {"balanced", "unbalanced"} else CHOSEN,
         "the paper has balanced and unbalanced data"),
        ("partition of the paper's figures", "set beside each partition", INFERRED, "the abstract does not say which"),
        ("data", f"fingerprint {config.data_fingerprint[:12]}", CHOSEN, "the abstract names no data set, size or split"),
    ]  # fmt: skip


def _endpoints(task: str) -> list[tuple[str, str, str, str]]:
    if task == "classification":
        return [("the four categories", "COVID-19 Radiography Database", INFERRED, "it has exactly four categories"),
                ("figures of merit", "accuracy, sensitivity", PAPER, ""),
                ("sensitivity", "mean over the classes", INFERRED, "the abstract does not say how classes are averaged"),
                ]  # fmt: skip
    return [("modality", "cardiac CT", PAPER, "synthetic volumes and MRI are neither; see the data"),
            ("figures of merit", "DSC of LV and Myo", PAPER, ""), ("DSC", "mean over patients", INFERRED, "the usual way"),
            ("a missed structure", "DSC 0, no distance, counted", CHOSEN, "an infinite distance has no mean")]  # fmt: skip


def _training(configs: list[RunConfig]) -> list[tuple[str, str, str, str]]:
    config, why = configs[0], "the abstract does not say"
    federated = next((config for config in configs if config.mode == "federated"), config)
    changed = [name for name, field in Federation.model_fields.items() if getattr(federated, name) != field.default]
    settings = [(name, config) for name in Training.model_fields] + [(name, federated) for name in changed]
    return [
        ("model", MODELS[config.task], PAPER, ""),
        ("start", "random weights, no pre-training", CHOSEN, why),
        ("equal budget", "rounds x local epochs, the same in every arm", CHOSEN, why),
        *((name.replace("_", " "), str(getattr(of, name)), CHOSEN, why) for name, of in settings),
    ]


def answer(table: pd.DataFrame, trend: pd.DataFrame | None = None, effect: pd.DataFrame | None = None) -> list[str]:
    """Answer the study's question in sentences (Markdown), a text per metric, verdict first.

    `table`, `trend` and `effect` are those of `compare`, `client_trend` and `partition_effect`.
    """
    others = [
        other if other is not None else pd.DataFrame(columns=["metric", "difference", "partition"])
        for other in (trend, effect)
    ]
    return [_answer(metric, arms, *(other[other["metric"] == metric] for other in others))
            for metric, arms in table.groupby("metric", sort=False)]  # fmt: skip


def _answer(metric: str, arms: pd.DataFrame, trend: pd.DataFrame, effect: pd.DataFrame) -> str:
    title = f"**{tasks.NAMES[metric][0].upper()}{tasks.NAMES[metric][1:]}**"
    central, federated = arms[arms["mode"] == "centralized"], arms[arms["mode"] == "federated"]
    if central.empty or federated.empty:
        missing = "centralized" if central.empty else "federated"
        return f"{title}: no verdict, since there is no finished {missing} run to compare with."
    counts, (margin, note) = federated["verdict"].value_counts(), federated[["margin", "margin_note"]].iloc[0]
    verdicts = ", ".join(f"*{verdict}* in {counts[verdict]}" for verdict in VERDICTS if verdict in counts)
    scores = " to ".join(dict.fromkeys(f"{score:.3f}" for score in (federated["value"].min(), federated["value"].max())))
    text = f"{title}: federated training is {verdicts} of {len(federated)} arm{'s' * (len(federated) > 1)}, at a margin of "
    text += f"{margin:g}{f' ({note})' if note else ''}. "
    text += f"Centralized training reaches {central['value'].iloc[0]:.3f}, federated {scores}. "
    slopes = [f"{bracketed(row.slope, row.low, row.high, '+')} ({row.partition})" for row in trend.itertuples()]
    text += f"Change with every doubling of the number of clients: {', '.join(slopes)}. ".replace("_", " ") * bool(slopes)
    for partition, rows in effect.dropna(subset="difference").groupby("partition", sort=False):
        kinds = ", ".join(f"{kind} in {count}" for kind, count in rows["direction"].value_counts().items())
        text += f"{partition.replace('_', ' ').capitalize()} against balanced: {kinds} of {len(rows)}. "
    lacking = pd.concat([arms["how"], federated["difference_how"]]).dropna().unique()
    text += "".join(f"No interval: {how.removeprefix('none: ')}. " for how in lacking if how.startswith("none"))
    return (text + "Inconclusive does not mean equal." * ("inconclusive" in counts)).strip()
