"""train_round() and evaluate(): the only training loop and the only scoring loop in the project.

Centralized, local-only and federated training are the same function on other cases: a *round* of local epochs with a fresh
optimiser. Nothing but the whereabouts of the data differs between the arms, and one client that holds everything is, to the
bit, the centralized run.
"""

import math
import os
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from fedlib import tasks
from fedlib.config import RunConfig, UserError
from fedlib.data.dataset import PreparedDataset, batches

WARM_UP = 0.1
"""Share of the run over which the learning rate rises (*chosen*)."""
torch.utils.deterministic.fill_uninitialized_memory = False  # no memory is read before it is written
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS has no deterministic kernels
if "OMP_NUM_THREADS" not in os.environ:  # threads that wait for each other crawl beside other work: two cores stay free
    torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) - 2)))


def cores() -> int:
    """Return the processor cores of this process: all of the machine, or OMP_NUM_THREADS where it is set."""
    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else os.cpu_count() or 1


def device() -> torch.device:
    """The GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def initial_model(config: RunConfig, data: PreparedDataset) -> torch.nn.Module:
    """The task's model with weights drawn from the run's seed: the same start for every arm of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = tasks.get(config.task).build_model(config, len(data.classes))
    return model.to(device(), memory_format=memory_format(data.images))


def get_state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A model's weights as safetensors takes them: contiguous, on the CPU. Where they are so already, they are its own."""
    return {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}


def train_round(
    model: torch.nn.Module,
    data: PreparedDataset,
    rows: np.ndarray,
    config: RunConfig,
    client: int,
    round_number: int,
    adjust: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Train `model` in place for one round (from 1): local_epochs passes over `rows`, with augmentation.

    The order and the augmentation come from a generator of this seed, client and round alone, so neither the runtime nor the
    order of clients can change the result. `adjust` is called when the gradients of a step are there, before they are
    used: the client's half of a strategy changes them in place.
    Returns n (cases), loss and the task's training metric (means over the samples seen), and seconds.
    Raises UserError when the loss is not finite.
    """
    task, began = tasks.get(config.task), time.perf_counter()
    generator = torch.Generator().manual_seed(derive_seed(config.seed, client, round_number))
    optimizer, loss_function = make_optimizer(model, config), task.loss_function()
    cuts = (batches(rows, config.batch_size, generator, config.drop_last) for _ in range(config.local_epochs))
    plan = [batch for epoch in cuts for batch in epoch]
    totals = torch.zeros(2, device=device())  # read once, at the end: a GPU must not be waited for at every step
    model.train()
    for step, batch in enumerate(plan):
        images, labels = task.augment(*data.load_batch(batch, device(), config.input_low), generator, data, config)
        logits = forward(model, images, config)
        loss = loss_function(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        if adjust:
            adjust()
        optimizer.param_groups[0]["lr"] = learning_rate(config, round_number - 1 + (step + 0.5) / len(plan))
        optimizer.step()
        totals += len(batch) * torch.stack([loss.detach(), task.training_metric(logits.detach(), labels)])
    loss, metric = (totals / sum(map(len, plan))).tolist()
    if not math.isfinite(loss):
        raise UserError(f"loss = {loss} at client {client} in round {round_number}: not finite; try a lower learning_rate")
    return {"n": len(rows), "loss": loss, task.TRAINING_METRIC: metric, "seconds": time.perf_counter() - began}


def make_optimizer(model: torch.nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """Return torch's optimizer for one round; the learning rate is set at every step."""
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), **options)
    return torch.optim.SGD(model.parameters(), momentum=config.momentum, **options)


def forward(model: torch.nn.Module, images: torch.Tensor, config: RunConfig) -> torch.Tensor:
    """Return the model's logits (float32) in the run's precision.

    From here on this process takes kernels that give the same bits every time, unless the run does without; torch warns of
    an operation that has none. On a CPU all of ours are such; on a GPU some are slower for it.
    """
    torch.set_deterministic_debug_mode("warn" if config.deterministic else "default")
    with torch.autocast(device().type, torch.bfloat16, enabled=config.precision == "bf16"):
        return model(images.contiguous(memory_format=memory_format(images))).float()


@torch.inference_mode()
def evaluate(
    model: torch.nn.Module, data: PreparedDataset, rows: np.ndarray, config: RunConfig, final: bool = False
) -> pd.DataFrame:
    """Score every case of `rows`: one row a case (the task's `score_cases`); `final` adds what only the test set needs."""
    task = tasks.get(config.task)
    model.eval()
    tables = []
    for batch in batches(rows, 4 * config.batch_size):
        images, _ = data.load_batch(batch, device(), config.input_low)
        logits = forward(model, images, config).cpu()
        tables.append(task.score_cases(data, batch, logits, final))
    return pd.concat(tables, ignore_index=True)


def learning_rate(config: RunConfig, rounds_done: float) -> float:
    """Return the rate at this point of the run, in rounds: constant, or linear warm-up to the peak and then cosine to zero.

    Source: Loshchilov and Hutter, 2017 (cosine).
    """
    if config.schedule == "constant":
        return config.learning_rate
    progress = rounds_done / config.rounds
    if progress < WARM_UP:
        return config.learning_rate * progress / WARM_UP
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def derive_seed(seed: int, client: int, round_number: int) -> int:
    """A seed for one client in one round; well mixed, so that neighbouring streams have nothing in common."""
    return int(np.random.SeedSequence([seed, client, round_number]).generate_state(1, np.uint64)[0])


def memory_format(images: np.ndarray | torch.Tensor) -> torch.memory_format:
    """Channels last: the same numbers, half as fast again on a CPU."""
    return torch.channels_last if images.ndim == 4 else torch.channels_last_3d
