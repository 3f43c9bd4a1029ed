"""What a page says of one task: the verdict, the tables and the figures, from `fedlib.analysis` and the run store.

The only place where the report meets the statistics.
"""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from markupsafe import Markup

from fedlib import analysis, tasks
from fedlib.analysis.arms import ARM
from fedlib.config import StudyConfig, UserError
from fedlib.training.run_store import Run
from fedlib.views import plots

GOOD, BAD = ("equivalent", "non-inferior"), ("inferior",)
INTERVAL = "[interval]"
WORDS = (
    "metric",
    "clients",
    "partition",
    "noise added",
    "verdict",
    "reading",
    "the paper says",
    "label",
    "why",
    "value",
    "note",
)
"""Columns of text."""


@dataclass(frozen=True)
class Table:
    """A table of the page, and a file beside it."""

    name: str
    title: str
    frame: pd.DataFrame
    caption: str = ""
    """More than the title, where there is more to say."""
    words: tuple[str, ...] = ()
    """Columns of text, set from the left."""
    raw: pd.DataFrame | None = None
    """What the CSV holds, where it is not what the page shows."""
    notes: tuple[str, ...] = ()
    """What must be said below it."""

    def csv(self) -> str:
        return (self.frame if self.raw is None else self.raw).to_csv(index=False, float_format="%.6g")


@dataclass(frozen=True)
class Plot:
    """A figure of the page with its caption."""

    name: str
    picture: plots.Picture
    caption: str


@dataclass
class Findings:
    """All that the page says of a task's runs."""

    refused: str = ""
    """Why there is no verdict, where there is none."""
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    """Per endpoint: metric, margin, how many federated arms have which verdict, scores of centralized and federated."""
    answers: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    further: list[Table] = field(default_factory=list)
    """Tables for those who look closer."""
    assumed: list[Table] = field(default_factory=list)
    """What the comparison rests on."""
    plots: list[Plot] = field(default_factory=list)


def findings(runs: list[Run], study: StudyConfig) -> Findings:
    """Compare the intact runs of a task. Runs that must not be compared are refused in words, and only shown one by one."""
    found = Findings(_lacking(runs), caveats=_caveats(runs, study))
    if not runs:
        return found
    found.plots = _own_plots(runs)
    found.further = _federations(runs)
    try:
        table = analysis.compare(runs, study)
    except UserError as refusal:
        found.refused = f"Not compared. {refusal}"
        return found
    found.answers = analysis.answer(table)
    found.verdicts = _verdicts(table)
    found.tables = [_comparison(own, runs) for _, own in table.groupby("metric", sort=False)]
    found.further = _further(runs, study, table) + found.further
    found.assumed = [
        Table("settings", "What counted as no worse", analysis.settings(runs, study), words=WORDS),
        Table("assumptions", "Every assumption, with its label", analysis.assumptions(runs, study), words=WORDS),
    ]
    found.plots = [_compared(own, study.level) for _, own in table.groupby("metric", sort=False)] + found.plots
    return found


def show_comparison(table: pd.DataFrame) -> "pd.io.formats.style.Styler":
    """The comparison table as a person reads it: estimate [95% interval]."""
    readable = _readable(table)
    readable.insert(1, "metric", table["metric"].map(tasks.NAMES).to_list())
    return readable.style.hide(axis="index").set_uuid(table["metric"].iloc[0])  # the same page for the same runs


def verdict_mark(verdict: str) -> Markup | str:
    """A verdict as a word whose weight and colour say it too; nothing where there is none."""
    if not isinstance(verdict, str) or not verdict:
        return ""
    look = "good" if verdict in GOOD else "bad" if verdict in BAD else ""
    return Markup('<span class="verdict {}">{}</span>').format(look, verdict)


def bracketed(row: pd.Series, value: str, low: str, high: str, sign: str = "") -> str:
    """`0.812 [0.790, 0.834]`; without an interval `0.812`; nothing where there is no value."""
    if pd.isna(row[value]):
        return ""
    if pd.isna(row[low]) or pd.isna(row[high]):
        return f"{row[value]:{sign}.3f}"
    return f"{row[value]:{sign}.3f} [{row[low]:{sign}.3f}, {row[high]:{sign}.3f}]"


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    rows = [row for _, row in table.iterrows()]
    readable = pd.DataFrame(
        {
            "arm": [plots.arm_name(row) for row in table.itertuples()],
            "score": [bracketed(row, "value", "low", "high") for row in rows],
            "difference": [bracketed(row, "difference", "difference_low", "difference_high", "+") for row in rows],
            "verdict": table["verdict"].fillna("").to_list(),
            "the paper": ["" if pd.isna(value) else f"{value:.3f}" for value in table["paper"]],
            "patients": table["n_patients"].to_list(),
            "seeds": table["seeds"].to_list(),
        }
    )
    return readable.loc[:, (readable != "").any()]


def _comparison(own: pd.DataFrame, runs: list[Run]) -> Table:
    """The table of one endpoint. What is the same in every row stands in the caption."""
    metric, readable = own["metric"].iloc[0], _readable(own)
    title = caption = tasks.NAMES[metric][0].upper() + tasks.NAMES[metric][1:]
    for column in ("patients", "seeds"):
        if readable[column].nunique() == 1:
            count = readable.pop(column).iloc[0]
            caption += f", {count} {column.removesuffix('s') if count == 1 else column}"
    if "verdict" in readable:
        readable["verdict"] = readable["verdict"].map(verdict_mark)
    if len({run.config.seed for run in runs}) > 1:
        readable["over seeds: mean (SD)"] = _over_seeds(runs, own)
    return Table(f"scores-{metric}", title, readable, caption, ("verdict",), own, _notes(own))


def _notes(own: pd.DataFrame) -> tuple[str, ...]:
    """Why an interval is not there, and whether the margin was changed after the runs."""
    hows = own.loc[own["value"].notna(), "how"], own.loc[own["difference"].notna(), "difference_how"]
    told = [how.removeprefix("none: ") for how in pd.concat(hows).dropna().unique() if how.startswith("none")]
    late = [f"the margin is {note}" for note in own["margin_note"].dropna().unique() if note]
    return tuple(f"No interval: {how}." for how in told) + tuple(f"Note: {words}." for words in late)


def _over_seeds(runs: list[Run], own: pd.DataFrame) -> list[str]:
    """Mean and standard deviation over the seeds, for the rows of `own`."""
    keys = [*ARM, "metric"]
    spread = own[keys].merge(analysis.seed_spread(runs), "left", keys)
    return [
        "" if pd.isna(row.mean_) else f"{row.mean_:.3f}" + ("" if pd.isna(row.sd) else f" ({row.sd:.3f})")
        for row in spread.rename(columns={"mean": "mean_"}).itertuples()
    ]


def _verdicts(table: pd.DataFrame) -> list[dict[str, Any]]:
    found = []
    for metric, own in table[table["mode"] == "federated"].groupby("metric", sort=False):
        counts = own["verdict"].value_counts()
        if counts.sum():
            named = [(verdict, int(counts[verdict])) for verdict in (*GOOD, *BAD, "inconclusive") if verdict in counts]
            central = table.loc[(table["mode"] == "centralized") & (table["metric"] == metric), "value"].iloc[0]
            scores = {"central": central, "least": own["value"].min(), "most": own["value"].max()}
            found.append(
                {"metric": tasks.NAMES[metric], "margin": own["margin"].iloc[0], "counts": named, "arms": len(own), **scores}
            )
    return found


def _further(runs: list[Run], study: StudyConfig, table: pd.DataFrame) -> list[Table]:
    """Second questions; a table that would be empty is left out."""
    worth, effect = analysis.federation_worth(runs, study), analysis.partition_effect(runs, study)
    asked = [
        ("federation-worth", "What federation is worth: federated minus local-only", worth),
        ("partition-effect", "What the partition does: each minus balanced, federated", effect),
    ]
    found = [Table(name, title, _contrast(frame), words=WORDS, raw=frame) for name, title, frame in asked if len(frame)]
    trend = analysis.client_trend(runs, study)
    if len(trend):
        shown = pd.DataFrame(
            {
                "partition": trend["partition"],
                "metric": trend["metric"].map(tasks.NAMES),
                "clients": trend["client_counts"],
                f"change per doubling {INTERVAL}": [bracketed(r, "slope", "low", "high", "+") for _, r in trend.iterrows()],
                "reading": trend["reading"],
            }
        )
        found.append(Table("client-trend", "Trend over the number of clients, federated", shown, words=WORDS, raw=trend))
    paper = analysis.paper_table(table)
    if len(paper):
        found.append(_paper(paper))
    return found


def _federations(runs: list[Run]) -> list[Table]:
    """Who was missing under a quorum, and what privacy was spent; nothing where all answered and none was asked for."""
    found, absent = [], analysis.absences(runs)
    if len(absent):
        shown = absent.rename(columns={"n_clients": "clients", "client": "client (from 0)", "absent": "why"})
        found.append(Table("absences", "Clients that were absent: these rounds went on without them", shown, words=WORDS))
    private = [run for run in runs if "privacy" in run.provenance]
    if private:
        spent = [run.provenance["privacy"] for run in private]
        shown = pd.DataFrame(
            {
                "arm": [plots.arm_name(run.config) for run in private],
                "seed": [run.config.seed for run in private],
                "noise added": [{"central": "by the server", "local": "by each client"}[own["mechanism"]] for own in spent],
                "noise multiplier": [run.config.noise_multiplier for run in private],
                "clipping norm": [run.config.clipping_norm for run in private],
                "epsilon": [f"{own['epsilon']:.2f}" for own in spent],
                "delta": [f"{own['delta']:g}" for own in spent],
            }
        )
        notes = ("The unit is a client, not a patient. The noise comes from the seed: fit for study, not for a hospital.",)
        notes += tuple(f"Epsilon covers {words}." for words in sorted({own["covers"] for own in spent}))
        found.append(Table("privacy", "Differential privacy: what the rounds spent", shown, words=WORDS, notes=notes))
    return found


def _contrast(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "arm": [f"{row.n_clients} clients, {row.partition.replace('_', ' ')}" for row in frame.itertuples()],
            "metric": frame["metric"].map(tasks.NAMES),
            f"difference {INTERVAL}": [
                bracketed(row, "difference", "difference_low", "difference_high", "+") for _, row in frame.iterrows()
            ],
            "verdict": frame["verdict"].map(verdict_mark),
        }
    )


def _paper(paper: pd.DataFrame) -> Table:
    shown = pd.DataFrame(
        {
            "arm": [plots.arm_name(row) for row in paper.itertuples()],
            "metric": paper["metric"].map(tasks.NAMES),
            "the paper says": paper["paper_says"],
            f"this run {INTERVAL}": [bracketed(row, "this_run", "low", "high") for _, row in paper.iterrows()],
            "difference": ["" if pd.isna(value) else f"{value:+.3f}" for value in paper["difference"]],
        }
    )
    title = "Beside the figures of the paper's abstract (other images, other sizes: no replication)"
    return Table("paper", title, shown, words=WORDS, raw=paper)


def _compared(own: pd.DataFrame, level: str) -> Plot:
    metric = own["metric"].iloc[0]
    caption = f"Test {tasks.NAMES[metric]} by number of clients. Whiskers, band: {level} intervals over the test patients."
    return Plot(f"comparison-{metric}", plots.comparison(own, level), caption)


def _own_plots(runs: list[Run]) -> list[Plot]:
    """Figures of single runs, which need no comparison."""
    metrics = tasks.get(runs[0].config.task).PRIMARY
    modes = {mode: [run for run in runs if run.config.mode == mode] for mode in ("centralized", "federated", "local")}
    shown, found = modes["centralized"] + modes["federated"], []
    seeds = {run.config.seed for run in shown}
    band = " Line: mean over the seeds; band: lowest to highest." if len(seeds) > 1 else ""
    for metric in metrics if shown else ():
        caption = f"Validation {tasks.NAMES[metric]} after every round.{band}"
        found.append(Plot(f"learning-{metric}", plots.learning_curves(shown, [metric]), caption))
    for metric in metrics if modes["local"] else ():
        caption = f"Clients that stay alone: test {tasks.NAMES[metric]} of each one's own model, all on the same test cases."
        found.append(Plot(f"clients-{metric}", plots.spread(runs, metric), caption))
    if modes["federated"]:
        caption = "Weights sent in one round, down to every client and up again. The other arms send none."
        found.append(Plot("communication", plots.traffic(modes["federated"]), caption))
    return found


def _lacking(runs: list[Run]) -> str:
    """Why these runs allow no verdict; empty if they do."""
    modes = {run.config.mode for run in runs}
    if not runs:
        return "No verdict: no run is done, so there is nothing to show yet."
    if "centralized" not in modes:
        return "No verdict: the centralized run is missing, and without it there is nothing to compare with."
    if "federated" not in modes:
        return "No verdict: no federated run is done, so there is nothing to compare with centralized training."
    return ""


def _caveats(runs: list[Run], study: StudyConfig) -> list[str]:
    """What keeps these numbers from meaning more than they do."""
    found = []
    if len(absent := analysis.absences(runs)):
        found.append(f"In {len(absent)} turns a client was absent and its round went on without it: see the table below.")
    if len(study.seeds) == 1:
        found.append(
            "One seed: the intervals tell how far a score would move with other patients, not how far with another training."
        )
    for run in runs[:1]:
        classes = [column.removeprefix("p_") for column in run.cases if column.startswith("p_")]
        absent = [name.replace("_", " ") for name in classes if name not in set(run.cases["truth"])]
        if absent:
            found.append(f"The test set has no case of {', '.join(absent)}: how well it is recognised was not measured.")
    return found
