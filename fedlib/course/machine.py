"""What a notebook may expect of this machine: cores, memory, GPU, versions, and about how many minutes it takes."""

import os
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch

from fedlib.config import ROOT, StudyConfig
from fedlib.data.dataset import PreparedSet, open_prepared
from fedlib.training.loop import device, initial_model, train_round
from fedlib.training.run_store import PACKAGES

GB = 1e9
ENOUGH = {"cores": 2, "memory": 4.0, "disk": 3.0}
"""Processor cores, GB of memory and of disk that the quick study is at ease with (*measured* on it, rounded up)."""
TRAINED = 0.6
"""Share of the cases that train (data_prep deals 60 / 10 / 30)."""
STARTING = 20.0
"""Seconds that any notebook takes to start Python, import and draw, on two quiet cores (*measured*, rounded up)."""
SCORING = 1.25
"""Training and scoring after each round over training alone (*measured*, rounded up)."""
REMEDIES = {"classification": 7, "segmentation": 5}
"""Federations that notebook 05 trains, each with the steps of a centralized run."""


def describe(out_dir: Path) -> pd.DataFrame:
    """A row for each part: what is here, and what that means for the notebooks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(next(folder for folder in (out_dir, *out_dir.parents) if folder.exists())).free / GB
    few = "slower than the times given for two cores" if cores < ENOUGH["cores"] else "as the times in the notebooks assume"
    rows = [
        ("processor cores", str(cores), few),
        (
            "memory",
            f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB free",
            _enough("memory", memory.available / GB),
        ),
        ("disk for results", f"{disk:.1f} GB free", _enough("disk", disk)),
        ("GPU", *_gpu()),
        ("Python", platform.python_version(), "3.11 or newer is needed"),
    ]
    locked = _locked()
    for package in PACKAGES:
        here, wanted = version(package), locked.get(package, "")
        same = here.partition("+")[0] == wanted
        rows.append((package, here, "as locked" if same else f"tested with {wanted}: results may differ"))
    return pd.DataFrame(rows, columns=["part", "here", "what to expect"])


def minutes(study: StudyConfig) -> pd.DataFrame:
    """About how many minutes each notebook takes here, from a few training steps of this study's model, timed now.

    Nothing is read from a run store: notebooks whose runs are done take a fraction of it.
    """
    step, steps = seconds_a_step(study), steps_a_run(study)
    run = steps * step * SCORING
    arms = 2 * len(study.client_counts) * len(study.partitions)
    seeds = len(study.seeds)
    seconds = {
        "01_data_preparation": (STARTING, "starting, and drawing phantoms once"),
        "02_centralized_training": (STARTING + seeds * run, f"{seeds} run{'s' * (seeds > 1)} of {steps} steps"),
        "03_federated_simulation": (STARTING + seeds * arms * run, f"{seeds * arms} runs of about as many steps"),
        "04_compare_results": (STARTING, "no training"),
        "05_going_further": (STARTING + REMEDIES[study.task] * run, f"{REMEDIES[study.task]} runs of about as many steps"),
    }
    return pd.DataFrame(
        [(name, max(1, round(value / 60)), why) for name, (value, why) in seconds.items()],
        columns=["notebook", "minutes, about", "because"],
    )


def steps_a_run(study: StudyConfig) -> int:
    """Optimiser steps of a centralized run; its federations take about as many."""
    if study.data_dir:
        n = len(open_prepared(study.data_dir, study.task).split("train"))
    else:
        n = round(TRAINED * study.synthetic_cases)
    return study.rounds * study.local_epochs * -(-n // study.batch_size)


def seconds_a_step(study: StudyConfig, steps: int = 4) -> float:
    """Time of a training step of this study's model on noise; a first round warms up, the second is timed."""
    config = study.runs("none", ("centralized",))[0].model_copy(update={"local_epochs": 1})
    data, began = noise(study, steps * study.batch_size), 0.0
    model = initial_model(config, data)
    for number in (1, 2):
        began = time.perf_counter()
        train_round(model, data, np.arange(len(data.images)), config, 0, number)
    return (time.perf_counter() - began) / steps


def noise(study: StudyConfig, n: int) -> PreparedSet:
    """A set of `n` cases of noise in memory, of the size of this study's images."""
    rng, side = np.random.default_rng(0), study.size
    if study.data_dir:
        side = open_prepared(study.data_dir, study.task).images.shape[2:]
    shape = (side,) * (2 if study.task == "classification" else 3) if isinstance(side, int) else side
    images = rng.integers(0, 255, (n, 1, *shape), np.uint8)
    if study.task == "classification":
        classes, labels = ["a", "b", "c", "d"], rng.integers(0, 4, n)
    else:
        classes, labels = ["background", "LV", "Myo"], rng.integers(0, 3, (n, *shape), np.uint8)
    return PreparedSet(Path(), {"task": study.task, "classes": classes}, pd.DataFrame(), images, labels)


def _enough(part: str, found: float) -> str:
    return "enough for the quick study" if found >= ENOUGH[part] else f"{ENOUGH[part]:g} GB are safer"


def _gpu() -> tuple[str, str]:
    if device().type == "cpu":
        return "none", "everything runs on the processor; profile paper would take hours"
    return torch.cuda.get_device_name(), "is used; profile paper is for it"


def _locked() -> dict[str, str]:
    """Versions of constraints.txt, the ones that the project was tested with."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
