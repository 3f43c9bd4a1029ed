"""What this machine offers to the notebooks, and about how many minutes each of them takes on it."""

import os
import platform
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch

from fedlib.config import ROOT, StudyConfig
from fedlib.data.dataset import PreparedDataset, find_prepared, open_prepared
from fedlib.training.loop import initial_model, train_round
from fedlib.training.run_store import PACKAGES, RunStore

STARTING = 20.0
"""Seconds that any notebook takes to start Python, import and draw, on two quiet cores (*measured*, rounded up)."""
SCORING = 1.25
"""Training with scoring after each round, relative to training (*measured*, rounded up)."""
TRAINED = 0.6
"""Share of the cases that data_prep puts into the training split."""
REMEDIES = {"classification": 7, "segmentation": 5}
"""Federations that notebook 05 trains."""


def describe(out_dir: Path) -> pd.DataFrame:
    """Return a row for each part of this machine: what is here, and what the notebooks need."""
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(next(folder for folder in (out_dir, *out_dir.parents) if folder.exists())).free
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    rows = [
        ("processor cores", str(os.cpu_count()), "the times in the notebooks are for two"),
        ("memory", f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free", "the profile quick needs 4 GB"),
        ("disk for results", f"{disk / 1e9:.1f} GB free", "the profile quick needs 3 GB"),
        ("GPU", gpu, "used if there is one; without it the profile paper would take days"),
        ("Python", platform.python_version(), "3.11 or newer is needed"),
    ]
    locked = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    rows += [(package, version(package), f"tested with {locked[package]}") for package in PACKAGES]
    return pd.DataFrame(rows, columns=["part", "here", "what to expect"])


def minutes(study: StudyConfig) -> pd.DataFrame:
    """Return about how many minutes each notebook takes here, from a few training steps timed now.

    Finished runs of the study take no time. Notebook 05 is counted in full.
    """
    found = find_prepared(study.prepared_dir, study.task)
    data = open_prepared(found, study.task) if found else None
    n = len(data.split("train")) if data else round(TRAINED * study.synthetic_cases)
    steps = study.rounds * study.local_epochs * -(-n // study.batch_size)
    left = {"01_data_preparation": 0}
    for name, modes in (("02_centralized_training", ("centralized",)), ("03_federated_simulation", ("local", "federated"))):
        planned = study.runs(data.fingerprint if data else "", modes)
        left[name] = len(planned) - len(RunStore(study.out_dir).done(planned))
    left |= {"04_compare_results": 0, "05_going_further": REMEDIES[study.task]}
    table = pd.DataFrame({"notebook": left.keys(), "runs to train": left.values(), "steps a run": steps})
    seconds = STARTING + table["runs to train"] * steps * SCORING * seconds_a_step(study, data)
    return table.assign(**{"minutes, about": (seconds / 60).round().clip(1).astype(int)})


def seconds_a_step(study: StudyConfig, data: PreparedDataset | None = None, steps: int = 4) -> float:
    """Return the seconds of a training step of this study's model on noise, after a round to warm up."""
    images, rng, n = study.task == "classification", np.random.default_rng(0), steps * study.batch_size
    shape = data.images.shape[2:] if data else (study.size,) * (2 if images else 3)
    classes = ["a", "b", "c", "d"] if images else ["a", "b", "c"]
    labels = rng.integers(0, len(classes), n if images else (n, *shape), np.uint8)
    noise = rng.integers(0, 255, (n, 1, *shape), np.uint8)
    about = {"task": study.task, "classes": classes, "spacing_mm": [1.0, 1.0, 1.0]}
    made_up = PreparedDataset(Path(), about, pd.DataFrame(), noise, labels)
    config = study.runs("", ("centralized",))[0].model_copy(update={"local_epochs": 1})
    model = initial_model(config, made_up)
    train_round(model, made_up, np.arange(n), config, 0, 1)
    return train_round(model, made_up, np.arange(n), config, 0, 2)["seconds"] / steps
