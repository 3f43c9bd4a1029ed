"""Predict new images with a run's model: probabilities of the classes, or labels on each input's own grid. Research only."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from monai.inferers import sliding_window_inference
from scipy.ndimage import affine_transform

from fedlib.data.dataset import PreparedDataset, chosen
from fedlib.data.files import require_empty
from fedlib.data.progress import ProgressBar
from fedlib.training.execution import load_model
from fedlib.training.loop import device, forward
from fedlib.training.run_store import Run
from fedlib.views import plots

RESEARCH_ONLY = "research only, no medical use"


def write_predictions(run: Run, choices: list[dict[str, Any]], images: Iterable[tuple[str, Any]], out: Path) -> pd.DataFrame:
    """Write predictions.csv, a picture of each image and, of volumes, the labels as NIfTI to `out`; return the table.

    `choices`: how the run's set was prepared. `images`: names, each with the prepared image (`data_prep.single.Single`) or
    why it cannot be used, which is then its row's `problem`. Raises UserError when `out` is not empty.
    """
    require_empty(out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    prepared = chosen(choices)
    manifest = {"task": run.config.task, "classes": run.classes, "spacing_mm": prepared.get("spacing_mm")}
    axes = 4 if run.config.task == "classification" else 5
    empty = PreparedDataset(run.folder, manifest, pd.DataFrame(), np.empty((0,) * axes), np.empty(0))
    model, rows = load_model(run, empty).eval(), []
    for name, single in ProgressBar(images, "predicting", unit="image"):
        if isinstance(single, str):
            rows.append({"file": name, "problem": single})
            continue
        data = replace(empty, images=single.image[np.newaxis], labels=np.zeros(1, np.int64))
        probabilities = _probabilities(model, data, run, prepared["size"])
        picture = out / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        if run.config.task == "classification":
            said = {f"p_{label}": float(p) for label, p in zip(run.classes, probabilities, strict=True)}
            rows.append({"file": name, "prediction": run.classes[probabilities.argmax()]} | said)
        else:
            data = replace(data, labels=probabilities.argmax(0).astype(np.uint8)[np.newaxis])
            labels = out / f"{name.removesuffix('.gz').removesuffix('.nii')}_labels.nii.gz"
            labels = out / f"{name}_labels.nii.gz" if labels.exists() else labels  # scan.nii beside scan.nii.gz
            said = _write_labels(_on_own_grid(probabilities, single), single.own_affine, run.classes, labels)
            rows.append({"file": name} | said | {"labels": str(labels.relative_to(out))})
        plots.prediction(data, said, f"{name}\n{RESEARCH_ONLY}").figure.savefig(picture)
        rows[-1]["picture"] = str(picture.relative_to(out))
    table = pd.DataFrame(rows)
    table.to_csv(out / "predictions.csv", index=False)
    return table


@torch.inference_mode()
def _probabilities(model: torch.nn.Module, data: PreparedDataset, run: Run, size: Any) -> np.ndarray:
    """Return the probabilities of the classes (C,) or structures (C, X, Y, Z); of a large volume part by part."""
    images, _ = data.load_batch(np.array([0]), device(), run.config.input_low)
    if run.config.task == "classification":
        logits = forward(model, images, run.config)
    else:
        logits = sliding_window_inference(images, size, 1, lambda part: forward(model, part, run.config))
    return logits.softmax(1)[0].cpu().numpy()


def _on_own_grid(probabilities: np.ndarray, single: Any) -> np.ndarray:
    """Return the most probable label at each voxel of the file, uint8, by linear interpolation; 0 outside of the window."""
    where = np.linalg.inv(single.affine) @ single.own_affine  # from the file's voxels to those of the prepared volume
    labels = np.zeros(single.own_shape, np.uint8)
    for number, volume in enumerate(probabilities):
        options = {"output_shape": single.own_shape, "order": 1, "mode": "grid-constant", "cval": float(number == 0)}
        found = affine_transform(volume, where, **options)
        if number == 0:
            best = found
        labels[found > best] = number
        best = np.maximum(best, found)
    return labels


def _write_labels(labels: np.ndarray, affine: np.ndarray, classes: list[str], path: Path) -> dict[str, float]:
    """Write a label volume as NIfTI; return the volume of each structure in ml."""
    volume = nib.Nifti1Image(labels, affine)
    volume.header["descrip"] = f"{', '.join(f'{n} {name}' for n, name in enumerate(classes) if n)}; {RESEARCH_ONLY}"[:79]
    nib.save(volume, path)
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    return {f"{name}_ml": round(float((labels == n).sum() * voxel_ml), 2) for n, name in enumerate(classes) if n}
