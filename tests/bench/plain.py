"""What one would otherwise write: training in plain PyTorch and MONAI, alone or in Flower's and NVFlare's simulators.

    python -m tests.bench.plain FOLDER      alone: FOLDER/job.json, client0.npz; writes alone.npz there

It is after their quick starts and MONAI's tutorials: CacheDataset, DataLoader, transforms case by case, fp32. Model, cases,
batches and epochs are those of the federation it is measured against. Nothing of fedlib is imported: NVFlare's environment
has none.
"""

import importlib
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.losses import DiceCELoss
from monai.transforms import Compose, EnsureTyped, RandAffined, ShiftIntensityd

LOSSES = {
    "classification": torch.nn.CrossEntropyLoss(),
    "segmentation": DiceCELoss(to_onehot_y=True, softmax=True, include_background=False),
}


def augmentation(size: tuple[int, ...]) -> Compose:
    """The augmentation of the study as MONAI's transforms of one case, of an image (two sides) or a volume (three).

    Black is -1 and MONAI fills with 0: images are moved up for it, as ours are.
    """
    if len(size) == 2:
        keys, shift, mode, how = ("image",), 0.04, "bilinear", {"rotate_range": 0.14, "scale_range": 0.08}
    else:
        keys, shift, mode = ("image", "label"), 0.05, ("bilinear", "nearest")
        how = {"rotate_range": (0.17, 0, 0), "scale_range": 0.1}
    how |= {"translate_range": [shift * side for side in size], "padding_mode": "zeros", "mode": mode}
    up, down = ShiftIntensityd("image", 1), ShiftIntensityd("image", -1)
    return Compose([EnsureTyped(keys), up, RandAffined(keys, prob=1.0, **how), down])


def loader_of(images: np.ndarray | torch.Tensor, labels: np.ndarray | torch.Tensor, batch_size: int) -> DataLoader:
    """Shuffled batches of images (B, 1, ...) and labels (B,) or (B, 1, ...), augmented case by case."""
    cases = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
    cached = CacheDataset(cases, augmentation(images.shape[2:]), progress=False)
    return DataLoader(cached, batch_size=batch_size, shuffle=True)  # by name: MONAI's second argument is num_workers


def train(model: torch.nn.Module, loader: DataLoader, task: str, epochs: int, learning_rate: float) -> None:
    """Some epochs, the loss read at every step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    optimizer, loss_function = torch.optim.AdamW(model.parameters(), learning_rate), LOSSES[task]
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss = loss_function(model(batch["image"].to(device)), batch["label"].to(device))
            loss.backward()
            optimizer.step()
            loss.item()


class Site:
    """The data and the model of one client, kept from round to round."""

    def __init__(self, folder: Path, client: int) -> None:
        self.job = json.loads((folder / "job.json").read_text())
        self.model = model_of(self.job)
        torch.set_num_threads(self.job["threads"])
        arrays = np.load(folder / f"client{client}.npz")
        self.n = len(arrays["images"])
        self.loader = loader_of(torch.tensor(arrays["images"]), torch.tensor(arrays["labels"]), self.job["batch_size"])

    def round(self, state: dict, number: int) -> dict:
        """Train from the weights of the server in this round (from 0); returns those of the client."""
        self.model.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
        train(self.model, self.loader, self.job["task"], self.job["local_epochs"], self.job["learning_rates"][number])
        return self.model.cpu().state_dict()


site = cache(Site)


def model_of(job: dict) -> torch.nn.Module:
    """The model that the job names: its class, and the class's arguments."""
    module, _, name = job["model"]["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**job["model"]["args"])


def save(path: Path, state: dict) -> None:
    """Write the final weights."""
    np.savez(path, **{name: np.asarray(value) for name, value in state.items()})


if __name__ == "__main__":
    where = Path(sys.argv[1])
    alone = site(where, 0)
    weights = alone.model.state_dict()
    for number in range(alone.job["rounds"]):
        weights = alone.round(weights, number)
    save(where / "alone.npz", weights)
