"""make bench: our runs against what one would otherwise write. Writes reports/bench/contenders.json.

Alone: after MONAI's tutorials, with MONAI's stem. Federated: plain clients in Flower's Ray simulation and in NVFlare's
simulator, two at a time, with our model. Cases, batches, rounds, epochs and each round's learning rate are the same; each
contender is a process, timed from its start to its final weights, with the machine to itself. All weights are scored by us,
on the same test cases.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from fedlib import tasks
from fedlib.config import ROOT, RunConfig, StudyConfig
from fedlib.data.dataset import PreparedDataset, open_prepared
from fedlib.data.partition import clients_of
from fedlib.training.loop import device, evaluate, initial_model, learning_rate
from tests.bench import plain
from tests.bench.federation import train
from tests.bench.harness import prepared, ratio, show, side_by_side, write

NVFLARE = ROOT / ".venv-nvflare" / "bin" / "python"
OTHERS = {
    "centralized": {"alone": [sys.executable, "-m", "tests.bench.plain"]},
    "federated": {
        "flower": [sys.executable, "-m", "tests.bench.plain_flower"],
        "nvflare": [str(NVFLARE), "-m", "tests.bench.plain_nvflare"],
    },
}
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def model_of(config: RunConfig, data: PreparedDataset) -> dict:
    """The run's model by its class and arguments, as NVFlare takes it; alone it has the stem that MONAI gives it."""
    if config.task == "segmentation":
        channels = [config.width * 2**level for level in range(4)]
        sizes = {"spatial_dims": 3, "in_channels": 1, "out_channels": len(data.classes), "channels": channels}
        return {"class_path": "monai.networks.nets.UNet", "args": sizes | {"strides": [2, 2, 2], "num_res_units": 2}}
    blocks = {"block": "basic", "layers": [2, 2, 2, 2], "block_inplanes": [64, 128, 256, 512]}
    sizes = {"spatial_dims": 2, "n_input_channels": 1, "num_classes": len(data.classes), "widen_factor": config.width / 64}
    stem = {"conv1_t_stride": 1 if config.mode == "centralized" else 2}
    return {"class_path": "monai.networks.nets.ResNet", "args": blocks | sizes | stem}


def give(config: RunConfig, data: PreparedDataset, folder: Path) -> None:
    """Write what the others need: a job, and each client's cases."""
    folder.mkdir()
    names = ("task", "rounds", "local_epochs", "batch_size")
    job = {name: getattr(config, name) for name in names} | {"clients": config.n_clients}
    job["threads"] = torch.get_num_threads() if config.n_clients == 1 else 1
    job["learning_rates"] = [learning_rate(config, done + 0.5) for done in range(config.rounds)]
    (folder / "job.json").write_text(json.dumps(job | {"model": model_of(config, data)}))
    for client, rows in enumerate(clients_of(config, data)):
        images, labels = data.load_batch(rows)
        np.savez(folder / f"client{client}.npz", images=images.numpy(), labels=labels.numpy())


def started(name: str, command: list[str]) -> Callable[[], None]:
    """A contender as a process; what it says is shown if it fails. How OpenMP's threads wait is for ours alone to set."""
    environment = {key: value for key, value in os.environ.items() if name == "ours" or key not in WAITING}

    def whole() -> None:
        done = subprocess.run(command, cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")

    return whole


def ours(config: str, data_dir: str, folder: str) -> None:
    """Our run, to its final weights."""
    record = train(RunConfig.model_validate_json(config), open_prepared(data_dir), Path(folder))
    (record.folder / "weights.safetensors").replace(Path(folder) / "ours.safetensors")


def scored(config: RunConfig, data: PreparedDataset, model: torch.nn.Module, state: dict) -> float:
    """The first figure of merit of a model with these weights, on the test split."""
    model.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
    task = tasks.get(config.task)
    return task.summarize(evaluate(model.to(device()), data, data.split("test"), config, final=True))[task.PRIMARY[0]]


def compare(config: RunConfig, data: PreparedDataset, folder: Path, repeats: int) -> dict:
    """Seconds, score, and time over ours, of each contender."""
    give(config, data, folder)
    own = [sys.executable, "-m", "tests.bench.contenders", "--ours", config.model_dump_json(), str(data.folder), str(folder)]
    commands = {"ours": own} | {name: [*command, str(folder)] for name, command in OTHERS[config.mode].items()}
    taken = side_by_side({name: started(name, command) for name, command in commands.items()}, repeats, warm_up=False)
    theirs, report = plain.model_of(json.loads((folder / "job.json").read_text())), {}
    for name, seconds in taken.items():
        if name == "ours":
            model, state = initial_model(config, data), load_file(folder / "ours.safetensors")
        else:
            model, state = theirs, np.load(folder / f"{name}.npz")
        report[name] = {"seconds": statistics.median(seconds), "score": scored(config, data, model, dict(state))}
        report[name] |= ratio(taken, name, "ours")
    return report


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--task", choices=plain.LOSSES, action="append", help="default: both")
    parser.add_argument("--ours", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        return ours(*options.ours)
    if not NVFLARE.exists():
        parser.error(f"{NVFLARE} is missing; expected: make {NVFLARE.parent.parent.name}")
    report = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU", "profile": options.profile}
    with tempfile.TemporaryDirectory() as temporary:
        for task in options.task or plain.LOSSES:
            sizes = {"profile": options.profile, "client_counts": options.clients, "partitions": "balanced"}
            study = StudyConfig.make(task=task, out_dir=temporary, **sizes)
            data = prepared(task, study.synthetic_cases, study.size, Path(temporary))
            for config in study.runs(data.fingerprint, ("centralized", "federated")):
                found = compare(config, data, Path(temporary) / f"{task}-{config.mode}", options.repeats)
                show(f"{task}, {config.mode}, {options.profile}", [{"": name, **row} for name, row in found.items()])
                report[f"{task}, {config.mode}"] = found
    write("contenders", report)


if __name__ == "__main__":
    main()
