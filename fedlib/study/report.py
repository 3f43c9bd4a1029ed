"""The report of a study: every notebook as a page, and index.html over all runs, made from the run store alone.

The index is a notebook too, with the tables and figures of notebook 04, made here and rendered like the others.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from fedlib import analysis, tasks
from fedlib.config import RunConfig, StudyConfig, UserError
from fedlib.data.files import write_atomically
from fedlib.study.archive import write_crate
from fedlib.study.pages import render, render_notebook
from fedlib.study.record import recall_studies
from fedlib.training.run_store import Run, RunStore
from fedlib.views import plots

TITLES = {"classification": "Chest X-rays: classification", "segmentation": "Hearts: segmentation"}
INTRODUCTION = """# Federated against centralized learning

How do the number of clients and an unbalanced data distribution change what federated learning reaches, compared with
training on all data in one place?

## What this study found"""
READING = """Each federated arm is compared with the centralized run, patient by patient, by the interval of the difference.
*equivalent*: it lies within the margin on both sides; *superior*: not so, and it lies above zero; *non-inferior*: neither,
and a loss of the margin is ruled out; *inferior*: a loss of more than the margin is shown; *inconclusive*: these patients
cannot tell, which is not the same as equal. Verdicts are not corrected for their number. The question is that of
Rakotoarisedy et al., SPIE Medical Imaging 2025 ([doi 10.1117/12.3043130](https://doi.org/10.1117/12.3043130)), with other
data and at another size. One row per run: [results.csv](results.csv). Research and teaching only; no medical use."""
FURTHER = {
    "What federation is worth: federated minus local-only": analysis.federated_vs_local,
    "What the partition does: each minus balanced, federated": analysis.partition_effect,
    "Trend over the number of clients, federated": analysis.client_trend,
    "Each source of the set alone": analysis.by_source,
}


def write_report(out_dir: Path) -> Path:
    """Rebuild every page of a study folder from its notebooks and its run store; trains nothing.

    Raises UserError when `out_dir` holds no study, or its study.json is damaged.
    """
    for task in recall_studies(out_dir):
        for notebook in sorted((out_dir / task).glob("[0-9]*.ipynb")):
            render_notebook(notebook)
    return write_index(out_dir)


def write_index(out_dir: Path) -> Path:
    """Write index.html, results.csv and the RO-Crate from the run store alone; return the page's path."""
    known, store = recall_studies(out_dir), RunStore(out_dir)
    summary, details = [_text(INTRODUCTION)], [_text(READING)]
    for task in (task for task in tasks.TASKS if task in known):
        config = StudyConfig.make(**known[task]["study"] | {"out_dir": out_dir})
        planned, data = config.runs(known[task]["data"]["fingerprint"]), known[task]["data"]
        runs, missing = _intact(store, planned)
        try:
            table = analysis.compare(runs, config)
            answers = analysis.answer(table, analysis.client_trend(runs, config), analysis.partition_effect(runs, config))
        except UserError as refusal:
            table, answers = None, [_note(f"<strong>Not compared.</strong> {refusal}")]
        summary.append(_text(f"### {TITLES[task]}", *answers, *_incomplete(missing, planned), *caveats(runs, config, data)))
        details += _comparison(task, runs, config, data, table)
        details += _provenance(task, runs, config, missing, store, planned)
    intact, _ = analysis.check_integrity([run for run in store.all() if run.done])
    write_atomically(out_dir / "results.csv", store.results(intact).to_csv(index=False))
    write_atomically(out_dir / "index.html", render(new_notebook(cells=summary + details)))
    write_crate(out_dir, intact)
    return out_dir / "index.html"


def missing_runs(out_dir: Path, study: StudyConfig, data_fingerprint: str) -> list[dict[str, str]]:
    """Return planned runs that are not done, or whose folder was damaged or edited: run_id and why."""
    return _intact(RunStore(out_dir), study.runs(data_fingerprint))[1]


def _intact(store: RunStore, planned: list[RunConfig]) -> tuple[list[Run], list[dict[str, str]]]:
    """Return the planned runs that are done and intact, and the others: run_id and why."""
    intact, problems = analysis.check_integrity(store.done(planned))
    damaged, missing = dict(zip(problems["run_id"], problems["problem"], strict=True)), []
    for config in planned:
        run = store.get(config.run_id)
        status = run.status if run else {"state": "not begun"}
        if status["state"] != "done":
            missing.append({"run_id": config.run_id, "why": status.get("error", status["state"])})
        elif config.run_id in damaged:
            why = damaged[config.run_id].replace(f"{run.folder}/", "")  # a page does not name the folder it was made in
            missing.append({"run_id": config.run_id, "why": f"damaged: {why}"})
    return intact, missing


def caveats(runs: list[Run], study: StudyConfig, data: dict[str, Any]) -> Iterator[str]:
    """Yield what keeps these numbers from meaning more than they do, a sentence each."""
    if data["synthetic"]:
        yield "Synthetic images, drawn by a program: no patient, no clinical meaning."
        if "clear findings" in data["title"]:
            yield "Their findings were made quick to learn, so that training ends in minutes: an illustration, no evidence."
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
    for run in runs[:1]:
        classes = [column.removeprefix("p_") for column in run.cases if column.startswith("p_")]
        if absent := [name.replace("_", " ") for name in classes if name not in set(run.cases["truth"])]:
            yield f"The test set has no case of {', '.join(absent)}: how well it is recognised was not measured."


def _comparison(task: str, runs: list[Run], study: StudyConfig, data: dict, table: pd.DataFrame | None) -> Iterator:
    """Yield the cells of a task's tables and figures."""
    cases = f"{data['train']} cases for training, {data['val']} for validation, {data['test']} for the test"
    yield _text(f"## {TITLES[task]}", f"**Data:** {data['title']}{' (synthetic)' * data['synthetic']}; {cases}.")
    if table is not None:
        yield _text(
            f"Difference: from the centralized run, paired by patient. In brackets: {study.level} intervals over the test "
            "patients. The paper: figures of its abstract, from its own data."
        )
        for metric, arms in table.groupby("metric", sort=False):
            yield _text(f"### Test {tasks.NAMES[metric]}")
            yield _table(tasks.NAMES[metric], analysis.readable(arms).drop(columns="metric"), arms)
            yield _figure(
                plots.comparison(arms, study.level), f"Test {tasks.NAMES[metric]} by number of clients, with intervals."
            )
    shown, local = ([run for run in runs if (run.config.mode == "local") == is_local] for is_local in (False, True))
    for metric in tasks.get(task).PRIMARY:
        if shown:
            yield _figure(plots.learning_curves(shown, [metric]), f"Validation {tasks.NAMES[metric]} after every round.")
        if local:
            yield _figure(plots.client_scores(runs, metric), f"Each client's own model: test {tasks.NAMES[metric]}.")
    if federated := [run for run in runs if run.config.mode == "federated"]:
        yield _figure(plots.communication(federated), "Weights sent in one round, to every client and back.")
    if table is not None:
        yield _table("Budget and training of each arm", analysis.readable(analysis.training_table(runs, study)))
        for title, question in FURTHER.items():
            found = question(runs, study)
            yield _table(title, analysis.readable(found), found, True)
        spread = analysis.seed_spread(runs)
        yield _table("Over seeds", analysis.readable(spread), spread, True)
        paper = analysis.paper_table(table)
        yield _table("Beside the figures of the paper's abstract: no replication", analysis.readable(paper), paper, True)
        yield _table("What counted as no worse", analysis.settings(runs, study), None, True)
        yield _table("The protocol, the origin of each value, and this run", analysis.protocol(runs), None, True)


def _provenance(task: str, runs: list, study: StudyConfig, missing: list, store: RunStore, planned: list) -> Iterator:
    """Yield the cells on a task's runs: what is missing, where they come from, and the notebooks."""
    others = {run.folder.name for run in store.all() if run.folder.name.startswith(task)} - {own.run_id for own in planned}
    yield _text(f"### Runs of {task}", f"{len(runs)} of {len(planned)} planned runs are done, profile {study.profile}.",
                f"{len(others)} other runs in this folder have no part in this study." if others else "")  # fmt: skip
    if missing:
        yield _table("Missing runs, which have no part in the figures above", pd.DataFrame(missing))
    if runs:
        yield _table("Every run with its origin and the hash of its weights", runs_table(runs), None, True)
    notebooks = sorted(page.stem for page in (store.out_dir / task).glob("[0-9]*.html"))
    yield _text(*(f"- [{name.replace('_', ' ')}]({task}/{name}.html)" for name in notebooks or ()))


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


def _incomplete(missing: list, planned: list) -> list[str]:
    return [_note(f"<strong>Not complete:</strong> {len(missing)} of {len(planned)} runs missing.")] if missing else []


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
    return _output(
        {"text/html": html, "text/csv": (shown if raw is None else raw).to_csv(index=False, float_format="%.6g")}, title
    )


def _figure(picture: plots.AccessibleFigure, caption: str) -> NotebookNode:
    data, metadata = picture._repr_mimebundle_()
    return _output(data, caption, metadata)


def _output(data: dict[str, Any], title: str, metadata: dict | None = None) -> NotebookNode:
    output = new_output("display_data", data=data, metadata=(metadata or {}) | {"title": title})
    return new_code_cell("", outputs=[output])
