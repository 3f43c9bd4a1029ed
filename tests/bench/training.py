"""make bench: training against the bare loop, and against what one would write after MONAI's tutorials.

    python -m tests.bench.training --profile paper --epochs 4        a GPU: 224 px, 96 voxels a side

The bare loop does forward, backward and the optimiser's step on batches that lie in the device's memory, in this run's
precision and memory format: no reading, no augmentation, no metric. The tutorial is CacheDataset, DataLoader, transforms
for each case, fp32, MONAI's default stem. "Any kernels" is ours without `deterministic`. All take the same steps. Writes
reports/bench/training.json.
"""

import fedlib  # noqa: F401, before torch, as in every process of ours: it says how threads wait

# isort: split
import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from fedlib import tasks
from fedlib.config import RunConfig, StudyConfig
from fedlib.data.dataset import PreparedDataset, batches
from fedlib.training.loop import device, evaluate, initial_model, memory_format, train_round
from tests.bench import plain
from tests.bench.contenders import model_of
from tests.bench.harness import prepared, ratio, show, side_by_side, write

CASES = {"classification": 800, "segmentation": 50}


def synchronized(action: Callable[[], object]) -> Callable[[], None]:
    """The action with the GPU's work included."""

    def whole() -> None:
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return whole


def bare(config: RunConfig, data: PreparedDataset) -> Callable[[], None]:
    """Forward, backward and step on resident batches."""
    model = initial_model(config, data).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01, fused=True)
    loss_function = tasks.get(config.task).loss_function()
    there = [data.load_batch(rows, device()) for rows in batches(data.split("train"), config.batch_size)]
    there = [(images.contiguous(memory_format=memory_format(images)), labels) for images, labels in there]

    def epoch() -> None:
        for images, labels in there * config.local_epochs:
            with torch.autocast(device().type, torch.bfloat16, enabled=config.precision == "bf16"):
                logits = model(images)
            loss = loss_function(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def ours(config: RunConfig, data: PreparedDataset, model: torch.nn.Module) -> Callable[[], None]:
    """One round of the only training loop: reading, augmentation and metrics included."""
    rows = data.split("train")
    return lambda: train_round(model, data, rows, config, 0, 1)


def tutorial(config: RunConfig, data: PreparedDataset) -> Callable[[], None]:
    """As in MONAI's tutorials: a cache, transforms case by case, a loader, fp32, the loss read at every step."""
    model = plain.model_of({"model": model_of(config, data)})
    loader = plain.loader_of(*data.load_batch(data.split("train")), config.batch_size)
    return lambda: plain.train(model, loader, config.task, config.local_epochs, config.learning_rate)


def measure(task: str, options: argparse.Namespace, folder: Path) -> dict:
    """Cases a second of the three, and their ratios."""
    repeats, epochs = options.repeats, options.epochs
    study = StudyConfig.make(task=task, profile=options.profile, local_epochs=epochs, out_dir=folder)
    data = prepared(task, options.cases or CASES[task], study.size, options.folder or folder)
    (config,) = study.runs(data.fingerprint, ("centralized",))
    model = initial_model(config, data)
    contenders = {"bare": bare(config, data), "ours": ours(config, data, model), "tutorial": tutorial(config, data)}
    contenders["any kernels"] = ours(config.model_copy(update={"deterministic": False}), data, initial_model(config, data))
    taken = side_by_side({name: synchronized(action) for name, action in contenders.items()}, repeats)
    n = epochs * len(data.split("train"))
    rows = [{"loop": name, "cases/s": n / sorted(seconds)[repeats // 2]} for name, seconds in taken.items()]
    sizes = f"{n} cases of {data.images.shape[2:]}, batch {config.batch_size}, {config.precision}"
    show(f"{task}, {options.profile}: {sizes}", rows)
    report = {row["loop"]: {"cases per second": row["cases/s"]} for row in rows}
    report["bare over ours"] = ratio(taken, "bare", "ours")
    report["tutorial over ours"] = ratio(taken, "tutorial", "ours")
    report["ours over any kernels"] = ratio(taken, "ours", "any kernels")
    for split, final in (("val", False), ("test", True)):
        cases = data.split(split)
        taken = side_by_side({"": lambda: evaluate(model, data, cases, config, final)}, 3)  # noqa: B023
        report[f"{split} cases per second"] = len(cases) / min(taken[""])
        print(f"{split}: {report[f'{split} cases per second']:.1f} cases/s scored")
    show("ratios of time", [{"of": name, **value} for name, value in report.items() if "over" in name])
    return report


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--task", choices=CASES, action="append")
    parser.add_argument("--cases", type=int, help="default: 800 images, 50 volumes")
    parser.add_argument("--epochs", type=int, default=1, help="a time is that of so many")
    parser.add_argument("--folder", type=Path, help="where phantoms are kept from one call to the next")
    options = parser.parse_args()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    report = {"device": where, "threads": torch.get_num_threads(), "profile": options.profile}
    with tempfile.TemporaryDirectory() as folder:
        for task in options.task or CASES:
            report[task] = measure(task, options, Path(folder))
    write("training", report)


if __name__ == "__main__":
    main()
