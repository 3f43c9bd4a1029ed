"""The report of a study: every notebook as a page, and index.html over all runs, rebuilt from the run store alone."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from fedlib import analysis, tasks
from fedlib.config import RunConfig, StudyConfig, UserError
from fedlib.data.files import write_atomically
from fedlib.study import checklist
from fedlib.study.findings import Findings, findings, show_comparison, verdict_mark
from fedlib.study.pages import STYLE, environment, render_notebook
from fedlib.training.run_store import Run, RunStore
from fedlib.views import plots

__all__ = ["missing_runs", "show_comparison", "write_index", "write_report"]
SHORT = {"classification": "Chest X-rays: classification", "segmentation": "Hearts: segmentation"}
HEADINGS = {
    "classification": "Classification: ResNet18, chest X-ray, one of several categories",
    "segmentation": "Segmentation: 3D U-Net, left ventricle and myocardium",
}


def write_report(out_dir: Path) -> Path:
    """Rebuild every page of a study folder from its notebooks and its run store; trains nothing.

    Raises UserError when `out_dir` holds no study, or its study.json is damaged.
    """
    for task in _known(out_dir):
        for notebook in sorted((out_dir / task).glob("[0-9]*.ipynb")):
            render_notebook(notebook)
    return write_index(out_dir)


def write_index(out_dir: Path) -> Path:
    """Write index.html, the tables beside it and results.csv from the run store alone."""
    known, store = _known(out_dir), RunStore(out_dir)
    sections, tables = [], {}
    for task in (task for task in tasks.TASKS if task in known):
        section, files = _section(store, **known[task])
        sections.append(section)
        tables |= files
    intact, _ = analysis.sound([run for run in store.all() if run.done])
    write_atomically(out_dir / "results.csv", store.results(intact).to_csv(index=False))
    for name, text in tables.items():
        (out_dir / name).parent.mkdir(exist_ok=True)
        write_atomically(out_dir / name, text)
    for old in set((out_dir / "tables").glob("*.csv")) - {out_dir / name for name in tables}:
        old.unlink()
    pages = environment()
    pages.filters |= {"image": lambda picture: Markup(picture.html()), "mark": verdict_mark, "capital": _capital}
    html = pages.get_template("index.html.j2").render(
        name=out_dir.resolve().name, style=Markup(STYLE), tasks=sections, person=checklist.PERSON
    )
    write_atomically(out_dir / "index.html", html)
    return out_dir / "index.html"


def missing_runs(out_dir: Path, study: StudyConfig, data_fingerprint: str) -> list[dict[str, str]]:
    """Planned runs that are not done, or whose folder was damaged or edited: run_id and why."""
    return _ledger(RunStore(out_dir), study.runs(data_fingerprint))[1]


def _known(out_dir: Path) -> dict[str, Any]:
    path = out_dir / "study.json"
    if not path.exists():
        raise UserError(f"{out_dir}: no study.json; expected a folder written by `python -m fedlib study`")
    try:
        known = json.loads(path.read_text())
        for task in known:
            StudyConfig.make(**known[task]["study"] | {"out_dir": out_dir})
            _ = [known[task]["data"][name] for name in ("title", "synthetic", "fingerprint", "train", "val", "test")]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); the command that made the study writes it anew") from None
    return known


def _ledger(store: RunStore, planned: list[RunConfig]) -> tuple[list[Run], list[dict[str, str]]]:
    """The planned runs that are done and intact, and the others: run_id and why."""
    intact, problems = analysis.sound(store.done(planned))
    damaged, missing = dict(zip(problems["run_id"], problems["problem"], strict=True)), []
    for config in planned:
        run = store.get(config.run_id)
        status = run.status if run else {"state": "not begun"}
        if status["state"] != "done":
            missing.append({"run_id": config.run_id, "why": status.get("error", status["state"])})
        elif config.run_id in damaged:
            why = damaged[config.run_id].replace(f"{run.folder}/", "")  # a page does not tell where it was made
            missing.append({"run_id": config.run_id, "why": f"damaged: {why}"})
    return intact, missing


def _section(store: RunStore, study: dict[str, Any], data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """What the index tells of one task, and the files beside it (name to text)."""
    config = StudyConfig.make(**study | {"out_dir": store.out_dir})
    planned = config.runs(data["fingerprint"])
    runs, missing = _ledger(store, planned)
    found = findings(runs, config)
    origin = _origin(runs)
    files, links = _files(config.task, found, runs)
    section = {
        "name": config.task, "short": SHORT[config.task], "heading": HEADINGS[config.task], "study": config, "data": data,
        "found": found, "files": links, "planned": len(planned), "missing": missing,
        "strangers": _strangers(store, planned, config.task), "runs": _runs_table(runs),
        "pages": sorted(page.stem for page in (store.out_dir / config.task).glob("[0-9]*.html")),
        "made": _made(config, data) + origin,
        "claim": checklist.filled(config, data, dict(origin).get("versions", "no run is done")),
    }  # fmt: skip
    return section, files


def _files(task: str, found: Findings, runs: list[Run]) -> tuple[dict[str, str], dict[str, str]]:
    """The CSV files of a task's tables and figures: path to text, and name to path."""
    texts = {table.name: table.csv() for table in found.tables + found.further + found.assumed}
    texts |= {plot.name: plot.picture.csv() for plot in found.plots}
    if runs:
        texts["runs"] = _runs_table(runs).to_csv(index=False)
    links = {name: f"tables/{task}-{name}.csv" for name in texts}
    return {links[name]: text for name, text in texts.items()}, links


def _runs_table(runs: list[Run]) -> pd.DataFrame | None:
    """Arm, seed and origin of every run that is shown."""
    rows = [
        {
            "arm": plots.arm_name(run.config),
            "seed": run.config.seed,
            "seconds": f"{run.result['seconds']:.0f}",
            "MB sent": f"{run.result['bytes'] / 1e6:.1f}",
            "device": run.provenance["device"],
            "threads": run.provenance["threads"],
            "commit": run.provenance["commit"][:12],
            "weights_sha256": Markup('<code class="hash">{}</code>').format(run.result["weights_sha256"]),
        }
        for run in runs
    ]
    return pd.DataFrame(rows) if rows else None


def _made(config: StudyConfig, data: dict[str, Any]) -> list[tuple[str, str]]:
    epochs = config.rounds * config.local_epochs
    return [
        ("profile", config.profile),
        ("budget", f"rounds {config.rounds}, local epochs {config.local_epochs}; the other arms: {epochs} epochs (equal)"),
        ("training", f"batches of {config.batch_size}, peak learning rate {config.learning_rate:g}, width {config.width}, "
                     f"{config.precision}{'' if config.deterministic else ', kernels free to vary'}"),
        ("federation", f"{config.strategy}, engine {config.engine}, quorum {config.quorum:g}, participation "
                       f"{config.participation:g}, BatchNorm {config.batch_norm}, {config.transport} on the way, "
                       f"privacy {config.privacy}"),
        ("clients", f"{', '.join(map(str, config.client_counts))}; {', '.join(config.partitions).replace('_', ' ')}"),
        ("seeds", ", ".join(map(str, config.seeds))),
        ("data fingerprint", data["fingerprint"]),
    ]  # fmt: skip


def _origin(runs: list[Run]) -> list[tuple[str, str]]:
    """Where the runs were made. What differs between them is counted, not averaged away."""

    def told(values: list[str]) -> str:
        counts = pd.Series(values).value_counts()
        if len(counts) == 1:
            return counts.index[0]
        return "; ".join(f"{value} ({count} of {len(values)} runs)" for value, count in counts.items())

    if not runs:
        return []
    origins = [run.provenance for run in runs]
    versions = [", ".join(f"{name} {version}" for name, version in origin["versions"].items()) for origin in origins]
    return [
        ("commit", told([origin["commit"] for origin in origins])),
        ("device", told([f"{origin['device']}, {origin['threads']} threads" for origin in origins])),
        ("versions", told([f"Python {origin['python']}, {own}" for origin, own in zip(origins, versions, strict=True)])),
    ]


def _strangers(store: RunStore, planned: list[RunConfig], task: str) -> list[dict[str, str]]:
    """Runs of the task that the study did not plan, and in what they differ from the most similar planned one."""
    ids, found = {config.run_id for config in planned}, []
    for run in store.all():
        if run.folder.name in ids or not run.folder.name.startswith(task):
            continue
        try:
            own = run.config.model_dump()
        except (OSError, ValueError):
            found.append({"run_id": run.folder.name, "why": "config.json cannot be read"})
            continue
        wanted = [config.model_dump() for config in planned]
        closest = min(wanted, key=lambda other: sum(own[name] != other[name] for name in own))
        names = [name for name in own if own[name] != closest[name]]
        why = "; ".join(f"{name} {_brief(own[name])}, planned {_brief(closest[name])}" for name in names)
        found.append({"run_id": run.folder.name, "why": why or "the folder's name is not the run's"})
    return found


def _brief(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def _capital(words: str) -> str:
    """`DSC, myocardium` as it is, `accuracy` as `Accuracy`."""
    return words[0].upper() + words[1:]
