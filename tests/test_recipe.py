"""The version RECIPE of fedlib.config goes up when the same configuration gives other results.

`python -m tests.test_recipe` writes tests/recipe.json anew, and refuses to unless RECIPE has gone up.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.sources import prepare_synthetic
from fedlib import tasks
from fedlib.config import RECIPE
from fedlib.data.dataset import batches
from fedlib.data.partition import clients_of
from fedlib.study import experiment
from fedlib.training import loop
from fedlib.training.run_store import RunStore
from tests.conftest import CASES, TASKS
from tests.helpers import run_config

GOLDEN = Path(__file__).parent / "recipe.json"


def probe(data, folder):
    """Return numbers that show whatever makes the results of one task, from the partition to the loss of two rounds."""
    config, task = run_config(data, "federated"), tasks.get(data.task)
    weights = torch.cat([weight.flatten() for weight in loop.initial_model(config, data).state_dict().values()])
    images, labels = data.load_batch(data.split("train")[:4])
    changed = {}
    for name in ("affine",) if data.task == "segmentation" else ("affine", "authors"):
        generator = torch.Generator().manual_seed(3)
        changed[name] = task.augment(images, labels, generator, data, run_config(data, "centralized", augmentation=name))[0]
    losses = {}
    for mode in ("centralized", "federated"):
        run = experiment.run(run_config(data, mode), data, RunStore(folder))
        losses[mode] = run.clients["loss"].tolist()
    kinds = ("balanced", "unbalanced")
    rows = {kind: clients_of(run_config(data, "federated", partition=kind), data) for kind in kinds}
    return {
        "clients": {kind: [[len(part), int(part.sum())] for part in parts] for kind, parts in rows.items()},
        "order": [batch.tolist() for batch in batches(np.arange(9), 4, torch.Generator().manual_seed(3))],
        "seeds": [loop.derive_seed(1, 2, 3) % 10**6, loop.derive_seed(3, 2, 1) % 10**6],
        "rates": [loop.learning_rate(config, done) for done in (0.05, 0.1, 0.5, 1.5)],
        "weights": [float(weights.float().abs().mean()), float(weights.float().std())],
        "augmentation": {name: [float((x - images).abs().mean()), float(x.std())] for name, x in changed.items()},
        "loss": losses,
    }


def flat(value, name=""):
    """Return (name, number) of every number in nested dicts and lists."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [item for key, part in pairs for item in flat(part, f"{name}/{key}")]
    return [(name, value)]


def differences(found, golden):
    """Return the names of the numbers that differ by more than another processor's rounding."""
    known = dict(flat(golden))
    return [
        name for name, value in flat(found) if value != pytest.approx(known.get(name), rel=0.01 if "loss" in name else 1e-3)
    ]


@pytest.mark.parametrize("task", TASKS)
def test_results_change_only_with_the_version_of_the_recipe(prepared, tmp_path, task):
    golden = json.loads(GOLDEN.read_text())
    assert golden["recipe"] == RECIPE
    assert differences(probe(prepared[task], tmp_path), golden[task]) == [], "raise RECIPE, then python -m tests.test_recipe"


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [(loop, "WARM_UP", 0.2), (tasks.classification, "GROUPS", 8), (torch.optim, "AdamW", torch.optim.Adam)],
)
def test_a_changed_constant_or_library_call_is_noticed(images, tmp_path, monkeypatch, where, name, value):
    monkeypatch.setattr(where, name, value)
    found = differences(probe(images, tmp_path), json.loads(GOLDEN.read_text())["classification"])
    assert bool(found) == (name != "GROUPS"), "GroupNorm is not part of the usual run"


def main():
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"recipe": 0}
    with tempfile.TemporaryDirectory() as folder:
        sets = {task: prepare_synthetic(task, Path(folder) / task, CASES[task], size=16) for task in TASKS}
        found = {task: probe(data, Path(folder) / "runs" / task) for task, data in sets.items()}
    if golden["recipe"] == RECIPE and differences(found, {task: golden[task] for task in TASKS}):
        raise SystemExit(f"the results changed, and RECIPE is still {RECIPE}: raise it in fedlib/config.py first")
    GOLDEN.write_text(json.dumps({"recipe": RECIPE} | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
