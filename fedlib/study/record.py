"""study.json: what a study's folder keeps of its settings and its data, so that it can be read without the images."""

import json
from pathlib import Path
from typing import Any

from fedlib import tasks
from fedlib.config import StudyConfig, UserError
from fedlib.data.dataset import PreparedDataset
from fedlib.data.files import write_atomically
from fedlib.training.run_store import Run

KEPT = ("title", "synthetic", "choices", "counts")
"""What is kept of a prepared set's manifest. `choices` says how an image of it was prepared."""
DATA = ("title", "synthetic", "fingerprint", "train", "val", "test")
"""What readers need at least."""


def remember_study(study: StudyConfig, data: PreparedDataset) -> None:
    """Keep in study.json what the report needs to know: the configuration of each task, decided, and its data."""
    path = study.out_dir / "study.json"
    try:
        known = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # none yet, or damaged
        known = {}
    described = {name: data.manifest[name] for name in KEPT if name in data.manifest} | {"fingerprint": data.fingerprint}
    described |= {split: len(data.split(split)) for split in ("train", "val", "test")}
    known[study.task] = {"study": json.loads(study.decided().model_dump_json(by_alias=True)), "data": described}
    write_atomically(path, json.dumps(known, indent=2))


def recall_studies(out_dir: Path) -> list[tuple[StudyConfig, dict[str, Any]]]:
    """Return the study of each task with what study.json keeps of its data. Raises UserError where it is damaged."""
    path = out_dir / "study.json"
    if not path.exists():
        raise UserError(f"{out_dir}: no study.json; expected a folder written by `python -m fedlib study`")
    try:
        known = json.loads(path.read_text())
        known = [known[task] for task in tasks.TASKS if task in known]
        _ = [one["data"][name] for one in known for name in DATA]
        return [(StudyConfig.make(**one["study"] | {"out_dir": out_dir}), one["data"]) for one in known]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); the command that made the study writes it anew") from None


def open_run(folder: Path) -> tuple[Run, StudyConfig, dict[str, Any]]:
    """Return a finished run with one model, its study, and what study.json keeps of its data.

    Raises UserError when the folder holds no such run, every client has its own model, or study.json is of other data.
    """
    run, out_dir = Run(folder.absolute()), folder.absolute().parent.parent
    if not (folder / "status.json").exists():
        raise UserError(f"{folder}: no status.json; expected the folder of a run, as in STUDY/runs/RUN_ID")
    if not run.done:
        raise UserError(f"{folder}: {run.status['state']}; expected a run that is done")
    if run.config.has_client_models:
        raise UserError(f"{folder}: every client has a model of its own; expected a centralized run, or a federated one")
    for study, data in recall_studies(out_dir):
        if data["fingerprint"] == run.config.data_fingerprint:
            return run, study, data
    raise UserError(f"{out_dir}: its study.json is of other data than {run.folder.name}; expected the run's own study")
