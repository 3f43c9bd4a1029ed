"""Volumes to one voxel size, one intensity window and one shape, by MONAI."""

from collections.abc import Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import ResizeWithPadOrCrop, ScaleIntensityRange, Spacing
from monai.transforms.utils_pytorch_numpy_unification import percentile


def at_spacing(volume: np.ndarray, affine: np.ndarray, spacing_mm: Sequence[float], mode: str) -> MetaTensor:
    """A volume (X, Y, Z) at another voxel size, float32 (1, X', Y', Z') with its affine; `mode` is bilinear or nearest."""
    # NIfTI stores the last axis first: MONAI gets the axes in that order, since turning a CT round takes seconds.
    stored = torch.from_numpy(np.ascontiguousarray(volume.T, np.float32))[None]
    # Single precision halves the memory; a label needs double, or its voxels fall to one side where two are as near.
    resample = Spacing(tuple(spacing_mm)[::-1], mode=mode, dtype=np.float64 if mode == "nearest" else np.float32)
    resampled = resample(MetaTensor(stored, affine=affine[:, [2, 1, 0, 3]]))
    return MetaTensor(resampled.as_tensor().permute(0, 3, 2, 1), affine=resampled.affine[:, [2, 1, 0, 3]])


def percentiles(volume: MetaTensor, shares: Sequence[float]) -> list[float]:
    """The intensities below which these percents of the voxels lie."""
    return [float(percentile(volume, share)) for share in shares]


def in_window(volume: MetaTensor, low: float, high: float) -> MetaTensor:
    """Intensities from `low` to `high` scaled to 0 to 255; all 0 when the two are equal."""
    return ScaleIntensityRange(low, high, 0, 255, clip=True)(volume) if low < high else torch.zeros_like(volume)


def to_size(volume: MetaTensor, size: Sequence[int]) -> MetaTensor:
    """The middle of a volume (1, X, Y, Z), cut or padded with 0 to `size`, with its affine."""
    return ResizeWithPadOrCrop(size)(volume)
