"""What a reader opens: every executed notebook as one HTML file, and index.html over the whole study. Both work offline."""

import json
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from nbconvert import HTMLExporter

from fedlib import plots, statistics, tasks
from fedlib.config import StudyConfig, UserError
from fedlib.data import PreparedSet, write_atomically
from fedlib.runs import Run, RunStore

TEMPLATES = Path(__file__).resolve().parent / "templates"
HEADINGS = {
    "classification": "Classification: ResNet18, chest X-ray, one of several categories",
    "segmentation": "Segmentation: 3D U-Net, left ventricle and myocardium",
}


def render_notebook(notebook: Path) -> Path:
    """Write an executed notebook as one self-contained HTML file beside it; returns its path."""
    exporter = HTMLExporter(template_name="offline", extra_template_basedirs=[str(TEMPLATES)])
    exporter.register_preprocessor("nbconvert.preprocessors.CoalesceStreamsPreprocessor", enabled=True)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("widgets", None)  # saved by JupyterLab: without a kernel their twins are shown instead
    html, _ = exporter.from_notebook_node(content, resources={"metadata": {"name": notebook.stem.replace("_", " ")}})
    page = notebook.with_suffix(".html")
    write_atomically(page, html)
    return page


def remember_study(study: StudyConfig, data: PreparedSet) -> None:
    """Keep in study.json what the report needs to know: the configuration of each task and its data."""
    path = study.out_dir / "study.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    described = {"title": data.manifest["title"], "synthetic": data.manifest["synthetic"], "fingerprint": data.fingerprint}
    described |= {split: len(data.split(split)) for split in ("train", "val", "test")}
    known[study.task] = {"study": json.loads(study.model_dump_json(by_alias=True)), "data": described}
    write_atomically(path, json.dumps(known, indent=2))


def write_report(out_dir: Path) -> Path:
    """Rebuild every page of a study folder from its notebooks and its run store; trains nothing.

    Raises UserError when `out_dir` holds no study.
    """
    path = out_dir / "study.json"
    if not path.exists():
        raise UserError(f"{out_dir}: no study.json; expected a folder written by `python -m fedlib study`")
    RunStore(out_dir).write_results()
    known = json.loads(path.read_text())
    for task in known:
        for notebook in sorted((out_dir / task).glob("[0-9]*.ipynb")):
            render_notebook(notebook)
    return write_index(out_dir)


def write_index(out_dir: Path) -> Path:
    """Write index.html from the run store alone."""
    known = json.loads((out_dir / "study.json").read_text())
    sections = [_section(out_dir, **known[task]) for task in tasks.TASKS if task in known]
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    html = environment.get_template("index.html.j2").render(name=out_dir.name, tasks=sections)
    write_atomically(out_dir / "index.html", html)
    return out_dir / "index.html"


def missing_runs(out_dir: Path, study: StudyConfig, data_fingerprint: str) -> list[dict[str, str]]:
    """Planned runs that are not done: run_id and why."""
    store, missing = RunStore(out_dir), []
    for config in study.runs(data_fingerprint):
        run = store.get(config.run_id)
        if not run or not run.done:
            status = run.status if run else {"state": "not begun"}
            missing.append({"run_id": config.run_id, "why": status.get("error", status["state"])})
    return missing


def _section(out_dir: Path, study: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """What the index tells of one task."""
    config = StudyConfig.make(**study | {"out_dir": out_dir})
    planned = config.runs(data["fingerprint"])
    runs = RunStore(out_dir).done(planned)
    section = config.model_dump(include={"profile", "rounds", "local_epochs", "seeds"}) | {
        "name": config.task,
        "heading": HEADINGS[config.task],
        "data": data,
        "planned": len(planned),
        "missing": missing_runs(out_dir, config, data["fingerprint"]),
        "pages": sorted(page.stem for page in (out_dir / config.task).glob("[0-9]*.html")),
    }
    if not any(run.config.mode == "centralized" for run in runs):
        return section
    return section | _findings(runs, config.seeds[0])


def _findings(runs: list[Run], first_seed: int) -> dict[str, Any]:
    table = statistics.compare(runs)
    shown = [run for run in runs if run.config.mode != "local" and run.config.seed == first_seed]
    return {
        "answer": statistics.answer(table),
        "comparison": plots.comparison(table),
        "curves": plots.learning_curves(shown),
        "table": show_comparison(table).to_html(border=0),
        "has_paper": bool(table.loc[table["mode"] == "federated", "paper"].notna().any()),
        "provenance": runs[0].provenance,
    }


def show_comparison(table: pd.DataFrame) -> "pd.io.formats.style.Styler":
    """The comparison table as a person reads it: estimate [95% interval]."""

    def bracketed(row: pd.Series, value: str, low: str, high: str, sign: str = "") -> str:
        return "" if pd.isna(row[value]) else f"{row[value]:{sign}.3f} [{row[low]:{sign}.3f}, {row[high]:{sign}.3f}]"

    readable = pd.DataFrame(
        {
            "arm": [plots.arm_name(row) for row in table.itertuples()],
            "metric": table["metric"].map(tasks.NAMES),
            "score [95% interval]": [bracketed(row, "value", "low", "high") for _, row in table.iterrows()],
            "difference from centralized": [
                bracketed(row, "difference", "difference_low", "difference_high", "+") for _, row in table.iterrows()
            ],
            "reading": table["reading"].fillna(""),
            "paper": ["" if pd.isna(value) else f"{value:.3f}" for value in table["paper"]],
            "patients": table["n_patients"],
            "seeds": table["seeds"],
        }
    )
    return readable.style.hide(axis="index").set_uuid(table["metric"].iloc[0])  # the same page for the same runs
