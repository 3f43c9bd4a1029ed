"""State what the comparison assumes, set the paper's figures beside this run's, and answer the study's question in words."""

import pandas as pd

from fedlib import tasks
from fedlib.analysis.arms import ARM, margin_note
from fedlib.analysis.inference import RESAMPLES, VERDICTS
from fedlib.analysis.tables import published
from fedlib.config import AnalysisConfig, FederationConfig, RunConfig, TrainingConfig, task_values
from fedlib.training.plateau import CLIMBING
from fedlib.training.run_store import Run

ORIGINS = {"paper": "from the paper", "scripts": "from the first author's scripts",
           "inferred": "inferred", "chosen": "chosen"}  # fmt: skip
FIELDS = {"client_counts": "n_clients", "partitions": "partition"}
"""Settings of a study that go by another name in a run."""
FEDERATED = ("n_clients", "partition", "strategy")


def paper_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the abstract's figures beside those of this run, from `compare`'s table.

    Columns: ARM, metric, paper (NaN where it gives words only), paper_says ("0.867", "about 0.94", "similar to
    centralized"), scripts (saved beside the first author's scripts; NaN where there is none), this_run, low, high,
    paper_change and change (federated minus centralized, there and here; NaN between figures that are *about*). Other data
    and training than the paper's: a difference is no error of either.
    """
    rows, numbers = [], ["paper", "scripts", "value", "low", "high", "paper_change", "difference"]
    for row in table[table["mode"] != "local"].to_dict("records"):
        task = next(task for task in map(tasks.get, tasks.TASKS) if row["metric"] in task.PRIMARY)
        known = task.PAPER.get((row["mode"], row["n_clients"]))
        if known is None:
            continue
        says = published(row["metric"], row["paper"])
        if row["metric"] not in known and row["metric"] in task.SIMILAR:
            says = "similar to centralized"
        elif row["mode"] == "federated" and row["metric"] not in task.ABOUT:
            row["paper_change"] = row["paper"] - task.PAPER["centralized", 1][row["metric"]]
        scripts = task.SCRIPTS.get(tuple(row[name] for name in ARM), {}).get(row["metric"])
        rows.append(row | {"paper_says": says, "scripts": scripts})
    beside = pd.DataFrame(rows, columns=[*ARM, "metric", "paper", "paper_says", *numbers[1:]])
    return beside.astype(dict.fromkeys(numbers, float)).rename(columns={"value": "this_run", "difference": "change"})


def settings(runs: list[Run], study: AnalysisConfig | None = None) -> pd.DataFrame:
    """Return what the verdicts rest on: setting, value (text), label, and note: whether it was stated before the runs."""
    evidence, task = study or runs[0].config, tasks.get(runs[0].config.task)
    names = dict.fromkeys([*(f"margin_{metric.partition('_')[0]}" for metric in task.PRIMARY), "significance"])
    notes = {name: margin_note(runs, evidence, name) or "stated before the runs" for name in names}
    rows = [
        *((name, f"{getattr(evidence, name):g}", note) for name, note in notes.items()),
        ("primary endpoints", ", ".join(tasks.NAMES[metric] for metric in task.PRIMARY), "of the task"),
        ("unit of analysis", "patient", "cases averaged first; images of one patient are no independent evidence"),
        ("intervals", f"{evidence.level}, BCa bootstrap", f"{RESAMPLES} resamples of patients, seeded"),
        ("verdicts", "not corrected for their number", "each arm has its own interval; p_holm is corrected"),
    ]
    return pd.DataFrame(rows, columns=["setting", "value", "note"]).assign(label=ORIGINS["chosen"])


def protocol(runs: list[Run]) -> pd.DataFrame:
    """Return the study's protocol beside these runs: what, protocol, origin of that value, this run (empty: no setting).

    Settings of the runs that the protocol does not name follow it.
    """
    configs, rows = [run.config for run in runs], []
    known = [*task_values(configs[0].task)["protocol"]]
    defaults = {name: field.default for name, field in FederationConfig.model_fields.items()}
    changed = [name for name, default in defaults.items() if {getattr(config, name) for config in configs} != {default}]
    others = [name for name in (*TrainingConfig.model_fields, *changed) if name not in {row.get("field") for row in known}]
    known += [{"what": name.replace("_", " "), "value": "", "origin": "chosen", "field": name} for name in others]
    for row in known:
        field = FIELDS.get(row.get("field"), row.get("field"))
        shown = [config for config in configs if config.mode == "federated" or field not in FEDERATED]
        found = {getattr(config, field) for config in shown} if field in RunConfig.model_fields else set()
        value = row["value"] if isinstance(row["value"], list) else [row["value"]]
        rows.append((row["what"], _listed(value), ORIGINS[row["origin"]], _listed(sorted(found))))
    return pd.DataFrame(rows, columns=["what", "protocol", "origin", "this run"])


def _listed(values: list) -> str:
    return ", ".join(str(value).replace("_", " ") for value in values)


def in_short(trend: pd.DataFrame, effect: pd.DataFrame, gain: pd.DataFrame) -> list[str]:
    """Answer the study's question in one sentence (Markdown, a list) over all primary endpoints; no text without a change.

    The tables are those of `client_trend`, `partition_effect` and `federated_vs_local`. Each change is a range over the arms
    and endpoints, with the number of intervals on each side of 0.
    """
    changes = {"every doubling of the number of clients": trend.rename(columns={"slope": "difference"})}
    for partition, rows in effect.groupby("partition", sort=False):
        changes[f"{_listed([partition])} instead of balanced clients"] = rows
    changes["federated instead of local training"] = gain
    changes = {what: rows for what, rows in changes.items() if rows["difference"].notna().any()}
    if not changes:
        return []
    names = " and ".join(f"*{tasks.NAMES[metric]}*" for metric in pd.concat(changes)["metric"].unique())
    said = [f"- by {_range(rows['difference'])} with {what} ({_directions(rows)})" for what, rows in changes.items()]
    return [f"**In short:** {names} change", "\n".join(said)]


def _range(values: pd.Series) -> str:
    return " to ".join(dict.fromkeys(f"{value:+z.3f}" for value in (values.min(), values.max())))


def _directions(rows: pd.DataFrame) -> str:
    """Return where the intervals of these differences lie: `lower in 3, no difference shown in 1 of 4`."""
    kinds = rows.dropna(subset="difference")["direction"].value_counts()
    return f"{', '.join(f'{kind} in {count}' for kind, count in kinds.items())} of {kinds.sum()}"


def answer(table: pd.DataFrame) -> list[str]:
    """Return the verdicts in `compare`'s table in sentences (Markdown), a text per metric."""
    return [_answer(metric, arms) for metric, arms in table.groupby("metric", sort=False)]


def _answer(metric: str, arms: pd.DataFrame) -> str:
    title = f"**{tasks.NAMES[metric][0].upper()}{tasks.NAMES[metric][1:]}**"
    central, federated = arms[arms["mode"] == "centralized"], arms[arms["mode"] == "federated"]
    if central.empty or federated.empty:
        missing = "centralized" if central.empty else "federated"
        return f"{title}: no verdict, since there is no finished {missing} run to compare with."
    counts, (margin, note) = federated["verdict"].value_counts(), federated[["margin", "margin_note"]].iloc[0]
    verdicts = ", ".join(f"*{verdict}* in {counts[verdict]}" for verdict in VERDICTS if verdict in counts)
    n, scores = len(federated), dict.fromkeys(f"{score:.3f}" for score in federated["value"].agg(["min", "max"]))
    said = [f"{title}: federated training is {verdicts} of {n} arm{'s' * (n > 1)}, at a margin of {margin:g}"
            f"{f' ({note})' if note else ''}.",
            f"Centralized training reaches {central['value'].iloc[0]:.3f}, federated {' to '.join(scores)}."]  # fmt: skip
    if climbing := (pd.concat([central, federated])["training"] == CLIMBING).sum():
        said.append(f"**Not finished training**: {climbing} of {n + 1} arms were still improving when they ended, so their "
                    "verdicts are about the length of the training as much as about federation.")  # fmt: skip
    local = arms.loc[arms["mode"] == "local", "training"]
    if climbing := (local == CLIMBING).sum():
        said.append(f"{climbing} of {len(local)} local arms had not finished training: a gain over them may shrink.")
    lacking = pd.concat([arms["how"], federated["difference_how"]]).dropna().unique()
    said += [f"No interval: {how.removeprefix('none: ')}." for how in lacking if how.startswith("none")]
    return " ".join([*said, *(["Inconclusive does not mean equal."] * ("inconclusive" in counts))])
