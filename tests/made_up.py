"""A study whose runs are made up, in the run store's own form: a grid of any size in a second, and nothing is trained."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fedlib import tasks
from fedlib.config import RunConfig, StudyConfig
from fedlib.training.run_store import Run, RunStore, state_sha256

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
FINGERPRINT = "f" * 64
N_TEST = 40


def made_up(out_dir: Path, classes=CLASSES, modes=("centralized", "local", "federated"), **parameters) -> StudyConfig:
    """Write a study folder of one task without pages; returns its configuration. `classes`: those in the test set."""
    study = StudyConfig.make(out_dir=out_dir, **parameters)
    out_dir.mkdir(parents=True, exist_ok=True)
    data = {"title": "made-up cases", "synthetic": True, "fingerprint": FINGERPRINT, "train": 120, "val": 20, "test": N_TEST}
    known = {study.task: {"study": json.loads(study.model_dump_json(by_alias=True)), "data": data}}
    (out_dir / "study.json").write_text(json.dumps(known))
    for config in study.runs(FINGERPRINT, modes):
        made_up_run(RunStore(out_dir), config, classes)
    return study


def made_up_run(store: RunStore, config: RunConfig, classes=CLASSES, prefix="case") -> Run:
    """A finished run with scores that fall a little with the number of clients. `prefix`: of the test cases' names."""
    rng = np.random.default_rng([config.seed, config.n_clients, len(config.mode)])
    top, lost = {"centralized": (0.9, 0), "federated": (0.9, 0.01), "local": (0.82, 0.02)}[config.mode]
    level = top - lost * config.n_clients
    record = store.begin(config)
    names, alone = tasks.get(config.task), config.mode == "local"
    tables = [_cases(config, classes, level, rng, prefix) for _ in range(config.n_clients if alone else 1)]
    scores = [names.summarize(cases) for cases in tables]
    sent = 1_000_000 * (config.mode == "federated")
    rounds = range(1, config.rounds + 1)
    curve = {metric: score for metric, score in scores[0].items() if metric in names.PRIMARY}
    traffic = {"bytes_down": sent, "bytes_up": sent}
    record.write_table(
        "rounds.csv",
        [{"round": n, **{m: s * (1 - 0.5 / n) for m, s in curve.items()}, "seconds": 1.0,
          **{name: count * config.n_clients for name, count in traffic.items()}} for n in rounds]
    )  # fmt: skip
    record.write_table(
        "clients.csv",
        [{"round": n, "client": client, "n": 10, "loss": 1 / n, names.TRAINING_METRIC: 0.5, "seconds": 0.5, **traffic}
         for n in rounds for client in range(config.n_clients)]
    )  # fmt: skip
    record.write_table(
        "cases.csv", pd.concat([t.assign(client=c) if alone else t for c, t in enumerate(tables)], ignore_index=True)
    )
    state = {"weight": torch.tensor(rng.random(4))}
    record.save_weights(state)
    return record.finish(_provenance(config, state_sha256(state)), _result(config, scores, state_sha256(state), sent))


def _cases(config: RunConfig, classes, level, rng, prefix) -> pd.DataFrame:
    """The same test cases for every run: X-rays of ten patients with two images and of twenty with one, a volume a heart."""
    names = [f"{prefix}{n}" for n in range(N_TEST)]
    if config.task == "segmentation":
        spread = rng.normal(0, 0.02, (N_TEST, 2))
        table = pd.DataFrame({"case": names, "patient": names})
        return table.assign(dice_LV=level + spread[:, 0], dice_Myo=level - 0.1 + spread[:, 1], hd95_LV=5.0, hd95_Myo=6.0)
    patients = [n // 2 if n < 20 else n for n in range(N_TEST)]
    truth = [classes[patient % len(classes)] for patient in patients]
    table = pd.DataFrame({"case": names, "patient": [f"patient{patient}" for patient in patients], "truth": truth})
    table["prediction"] = [name if rng.random() < level else classes[0] for name in truth]
    return table.assign(**{f"p_{name}": 0.85 * (table["prediction"] == name) + 0.0375 for name in CLASSES})


def _provenance(config: RunConfig, sha: str) -> dict:
    return {
        "weights_sha256": sha, "data_fingerprint": config.data_fingerprint, "seed": config.seed,
        "precision": config.precision, "device": "made up", "threads": 1, "python": "3.11.0",
        "versions": {"torch": "2.13.0"}, "commit": "c" * 40,
    }  # fmt: skip


def _result(config: RunConfig, scores: list[dict], sha: str, sent: int) -> dict:
    shown = ("task", "mode", "n_clients", "partition", "strategy", "seed", "rounds", "local_epochs")
    turns = config.rounds * config.n_clients
    return {
        "run_id": config.run_id, **{name: getattr(config, name) for name in shown}, "n_train": 120, "n_test": N_TEST,
        **pd.DataFrame(scores).mean().to_dict(), "seconds": 0.5 * turns, "bytes": 2 * sent * turns, "weights_sha256": sha,
    }  # fmt: skip
