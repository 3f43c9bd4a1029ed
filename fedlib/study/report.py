"""The report of a study: every notebook as a page, and index.html over all runs, made from the run store alone.

The index is a notebook too, with the tables and figures of notebook 04, made here and rendered like the others.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from fedlib import analysis, tasks
from fedlib.analysis.scores import classes_of
from fedlib.config import StudyConfig, UserError
from fedlib.data.files import write_atomically
from fedlib.study.archive import write_crate
from fedlib.study.pages import TEMPLATES, heading, link_pages, render, render_notebook
from fedlib.study.record import recall_studies
from fedlib.training.run_store import Run, RunStore
from fedlib.views import plots

INTRODUCTION = """# Federated against centralized learning

How do the number of clients and an unbalanced data distribution change what federated learning reaches, compared with
training on all data in one place?

## What this study found"""
READING = """Each federated arm (a number of clients with a partition) is compared with the centralized run, patient by
patient, by the interval of the difference. *equivalent*: it lies within the margin on both sides; *superior*: not so, and
it lies above zero; *non-inferior*: neither, and a loss of the margin is ruled out; *inferior*: a loss of more than the
margin is shown; *inconclusive*: these patients cannot tell, which is not the same as equal. Verdicts are not corrected for
their number. Macro sensitivity is the mean of the classes' sensitivities; DSC, the Dice similarity coefficient, is the
overlap with the true structure, from 0 to 1. The question is that of Rakotoarisedy et al., SPIE Medical Imaging 2025 ([doi
10.1117/12.3043130](https://doi.org/10.1117/12.3043130)), with other data and at another size. One row per run:
[results.csv](results.csv). Research and teaching only; no medical use."""
MARGIN = """A margin is to be chosen before the runs, by what loss would matter to a patient. This one was {margin:g}{note}.
Move it to see how much the verdicts of this table rest on it; a margin that is chosen after the results proves nothing."""
SITES = "#Is-joining-worth-it-for-each-site?"
"""The section of notebook 04 that needs the prepared set, and so is not on the index."""
TRAINING = """All arms see each training image equally often; the steps are those of the client with the fewest, and the
most. *plateau*: in the last quarter of the rounds the validation score gained at most half the margin over the quarter
before. A verdict on an arm that had *not finished training* says as much about its length as about federation."""
FURTHER = {
    analysis.federated_vs_local: "What federation is worth: federated minus local-only",
    analysis.partition_effect: "What the partition does: each minus balanced, federated",
    analysis.client_trend: "Trend over the number of clients, federated",
    analysis.by_source: "Each source of the set alone",
}


def write_report(out_dir: Path) -> Path:
    """Rebuild every page of a study folder from its notebooks and its run store; trains nothing.

    Raises UserError when `out_dir` holds no study, or its study.json or a notebook is damaged.
    """
    for study, _ in recall_studies(out_dir):
        for notebook in sorted((out_dir / study.task).glob("[0-9]*.ipynb")):
            try:
                render_notebook(notebook)
            except ValueError as error:
                raise UserError(f"{notebook}: damaged ({error}); remove it, and run the study's command again") from None
    return write_index(out_dir)


def write_index(out_dir: Path, tell: Callable[[str], None] | None = None) -> Path:
    """Write index.html, results.csv and the RO-Crate from the run store alone; return the page's path.

    `tell` is called with the answer of each task, as plain text.
    """
    store, summary, details = RunStore(out_dir), [_text(INTRODUCTION)], [_text(READING)]
    for study, data in recall_studies(out_dir):
        planned = [config.run_id for config in study.runs(data["fingerprint"])]
        runs, missing = analysis.check_integrity(store, planned)
        try:
            table, further = analysis.compare(runs, study), {question: question(runs, study) for question in FURTHER}
            changes = (analysis.client_trend, analysis.partition_effect, analysis.federated_vs_local)
            answers = [*analysis.in_short(*(further[each] for each in changes)), *analysis.answer(table)]
        except UserError as refusal:
            table, further, answers = None, {}, [_note(f"<strong>Not compared.</strong> {refusal}")]
        if missing:
            answers.append(_note(f"<strong>Not complete:</strong> {len(missing)} of {len(planned)} runs missing."))
        if tell:
            tell(re.sub(r"\*|<[^>]+>", "", "\n".join([tasks.get(study.task).TITLE, *answers])))
        summary.append(_text(f"### {tasks.get(study.task).TITLE}", *answers, *caveats(runs, study, data)))
        if table is not None:
            picture = plots.comparison(table, study.level)
            summary.append(_figure(picture, f"Test scores of {study.task} by number of clients, with intervals."))
        details += _comparison(runs, study, data, table, further)
        details += _provenance(runs, study, missing, store, planned)
        link_pages(out_dir / study.task)
    intact, _ = analysis.check_integrity(store, [run.folder.name for run in store.all() if run.done])
    write_atomically(out_dir / "results.csv", store.results(intact).to_csv(index=False))
    script = f"<script>{(TEMPLATES / 'margin.js').read_text()}</script>"
    cells = [*summary, *details, _output({"text/html": script}, {})]
    write_atomically(out_dir / "index.html", render(new_notebook(cells=cells)))
    write_crate(out_dir, intact)
    return out_dir / "index.html"


def caveats(runs: list[Run], study: StudyConfig, data: dict[str, Any]) -> Iterator[str]:
    """Yield what keeps these numbers from meaning more than they do, a sentence each."""
    if data["synthetic"]:
        yield "Synthetic images, drawn by a program: no patient, no clinical meaning."
        if "clear findings" in data["title"]:
            yield "Their findings were made quick to learn, so that training ends in minutes: an illustration, not evidence."
    if study.profile == "smoke":
        yield "Profile smoke: a test of the whole line; its figures mean nothing."
    if len(study.seeds) == 1:
        yield "One seed: the intervals show how far a score would move with other patients, not with another training."
    if missed := len(analysis.missing_clients(runs)):
        yield f"A client was absent {missed} times, and its round continued without it: clients.csv has the reason."
    if any("epsilon" in run.result for run in runs):
        covers = {run.provenance["privacy"]["covers"] for run in runs if "epsilon" in run.result}
        yield f"Epsilon protects a client, not a patient, and covers {' and '.join(sorted(covers))}."
        yield "The noise comes from the seed: fit for study, not for a hospital."
    for cases in (run.cases for run in runs[:1]):
        if absent := [name.replace("_", " ") for name in classes_of(cases) if name not in set(cases["truth"])]:
            yield f"The test set has no case of {', '.join(absent)}: how well it is recognised was not measured."


def _comparison(runs: list[Run], study: StudyConfig, data: dict, table: pd.DataFrame | None, further: dict) -> Iterator:
    """Yield the cells of a task's tables and figures; the tables are there when the runs can be compared."""
    cases = f"{data['train']} cases for training, {data['val']} for validation, {data['test']} for the test"
    title = f"{data['title']}{' (synthetic)' * (data['synthetic'] and 'synthetic' not in data['title'])}"
    pages = sorted((study.out_dir / study.task).glob("[0-9]*.html"))
    notebooks = ", ".join(f"[{heading(page)}]({study.task}/{page.name})" for page in pages)
    about = [f"**Data:** {title}; {cases}.", f"**Notebooks:** {notebooks}." * bool(notebooks)]
    about += [f"**Site by site:** [is joining worth it for each?]({study.task}/{page.name}{SITES})"
              for page in pages if page.name.startswith("04")]  # fmt: skip
    yield _text(f"## {tasks.get(study.task).TITLE}, in numbers", *about)
    if table is not None:
        yield _text(
            f"Difference: from the centralized run, paired by patient. In brackets: {study.level} intervals over the test "
            "patients. The paper: figures of its abstract, from its own data."
        )
        training = analysis.training_table(runs, study)
        yield _text(f"### Budget and training, {study.task}", TRAINING)
        yield _table("Budget and training of each arm", analysis.readable(training), training)
        for metric, arms in table.groupby("metric", sort=False):
            name = tasks.NAMES[metric]
            yield _text(f"### Test {name}")
            shown = _table(name, analysis.readable(arms).drop(columns="metric"), arms)
            shown.outputs[0].data["text/html"] = _margin(name, arms) + shown.outputs[0].data["text/html"]
            yield shown
    shown = [run for run in runs if run.config.mode != "local"]
    for metric, name in ((metric, tasks.NAMES[metric]) for metric in tasks.get(study.task).PRIMARY if shown):
        for x, unit in (("rounds", "round"), ("steps", "optimizer step of a client")):
            yield _figure(plots.learning_curves(shown, [metric], x), f"Validation {name}, by {unit}.")
    if federated := [run for run in runs if run.config.mode == "federated"]:
        yield _figure(plots.communication(federated), "Weights sent in one round, to every client and back.")
    if table is not None:
        for question, title in FURTHER.items():
            yield _table(title, analysis.readable(further[question]), further[question], True)
        spread, paper = analysis.seed_spread(runs), analysis.paper_table(table)
        yield _table("Over seeds", analysis.readable(spread), spread, True)
        yield _table("Beside the figures of the paper's abstract: no replication", analysis.readable(paper), paper, True)
        yield _table("What counted as no worse", analysis.settings(runs, study), None, True)
        yield _table("The protocol, the origin of each value, and this run", analysis.protocol(runs), None, True)


def _provenance(runs: list[Run], study: StudyConfig, missing: dict, store: RunStore, planned: list) -> Iterator:
    """Yield the cells on a task's runs: what is missing, and where they come from."""
    others = {run.folder.name for run in store.all() if run.folder.name.startswith(study.task)} - set(planned)
    done = f"{len(runs)} of {len(planned)} planned runs are done, profile {study.profile}."
    strange = f"{len(others)} other runs in this folder have no part in this study."
    yield _text(f"### Runs of {study.task}", done, strange * bool(others))
    why = pd.DataFrame(missing.items(), columns=["run_id", "why"])
    yield _table("Missing runs, which have no part in the figures above", why)
    yield _table("Every run with its origin and the hash of its weights", runs_table(runs), None, True)


def runs_table(runs: list[Run]) -> pd.DataFrame:
    """Return arm, seed, cost and origin of every run; epsilon where privacy was asked for."""
    rows = [
        {"arm": analysis.arm_name(run.config), "seed": run.config.seed, "seconds": f"{run.result['seconds']:.0f}",
         "MB sent": f"{run.result['bytes'] / 1e6:.1f}", "epsilon": run.result.get("epsilon"),
         **{name: run.provenance[name] for name in ("device", "threads", "python", "commit", "data_fingerprint")},
         "versions": ", ".join(f"{name} {version}" for name, version in run.provenance["versions"].items()),
         "weights_sha256": run.result["weights_sha256"]}
        for run in runs
    ]  # fmt: skip
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def _margin(name: str, arms: pd.DataFrame) -> str:
    """Return a slider that recomputes the verdicts of the table below it, in the page; nothing where there is no verdict."""
    judged = arms.dropna(subset="verdict")
    if judged.empty:
        return ""
    margin, note = judged[["margin", "margin_note"]].iloc[0]
    intervals = judged[["difference_low", "difference_high"]].to_json(orient="values", double_precision=15)
    reach = f'min="{margin / 20}" max="{margin * 4}" step="{margin / 20}" value="{margin}" autocomplete="off"'
    slider = f'<label>Margin, {name} <input type="range" {reach} data-intervals="{intervals}"></label>'
    why = MARGIN.format(margin=margin, note=f" ({note})" if note else "")
    back = f'<button type="button">Back to {margin:g}</button>'
    return f'<div class="note margin" hidden>{slider}{back}<output></output><p class="small">{why}</p></div>'


def _note(html: str) -> str:
    return f'<div class="note failed">{html}</div>'


def _text(*paragraphs: str) -> NotebookNode:
    return new_markdown_cell("\n\n".join(filter(None, paragraphs)))


def _table(title: str, shown: pd.DataFrame, raw: pd.DataFrame | None = None, folded: bool = False) -> NotebookNode:
    """Return a cell that shows a table (nothing where it is empty), with `raw` as its CSV."""
    if shown.empty:
        return _text("")
    html = shown.to_html(index=False, border=0, na_rep="")
    html = f"<details><summary>{title}</summary>{html}</details>" if folded else html
    csv = (shown if raw is None else raw).to_csv(index=False, float_format="%.6g")
    return _output({"text/html": html, "text/csv": csv}, {"title": title})


def _figure(picture: plots.AccessibleFigure, caption: str) -> NotebookNode:
    data, metadata = picture._repr_mimebundle_()
    return _output(data, metadata | {"title": caption})


def _output(data: dict[str, Any], metadata: dict) -> NotebookNode:
    return new_code_cell("", outputs=[new_output("display_data", data=data, metadata=metadata)])
