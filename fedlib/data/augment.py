"""Random augmentation of a batch, on its device, from a generator: the same draws wherever it runs."""

import torch
import torch.nn.functional as F


def random_affine(
    images: torch.Tensor,
    labels: torch.Tensor | None,
    generator: torch.Generator,
    degrees: float,
    scale: float,
    shift: float,
    spacing: tuple[float, ...] | None = None,
    low: float = -1,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rotate, scale and translate every case of a batch at random, on its device.

    The rotation is rigid in mm and lies in the plane of the first two axes: an image's own plane, or the slices of a
    volume (right-left, front-back). Scaling and translation have a draw per axis.

    images: float (B, 1, H, W) or (B, 1, X, Y, Z) in [low, 1], interpolated linearly; outside is black (low).
    labels: int64 volumes of the same shape, interpolated by nearest neighbour; or None.
    degrees, scale, shift: largest angle, relative change of size, and translation as a fraction of the field of view.
    spacing: size of a pixel or voxel in mm along each axis; None: equal on all axes.
    """
    n, axes = len(images), images.ndim - 2

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    angle = torch.deg2rad(degrees * uniform(n))
    factor = 1 + scale * uniform(n, axes)  # drawn in the order of grid_sample: the last axis of the plane first
    offset = 2 * shift * uniform(n, axes)
    height, width = (length * mm for length, mm in zip(images.shape[2:4], spacing or (1, 1), strict=False))
    plane = torch.zeros(n, 2, 3)  # output -> input coordinates in [-1, 1]; rows: second axis, first axis
    plane[:, 0, 0], plane[:, 0, 1] = angle.cos(), -angle.sin() * (height / width)
    plane[:, 1, 0], plane[:, 1, 1] = angle.sin() * (width / height), angle.cos()
    plane[:, :, :2] *= factor[:, None, :2]
    plane[:, :, 2] = offset[:, :2]
    through = torch.stack([factor[:, 2], offset[:, 2]], 1) if axes == 3 else None  # (B, 2): factor and offset along Z
    if images.device.type == "cuda":
        plane, through = (t if t is None else t.pin_memory().to(images.device, non_blocking=True) for t in (plane, through))
    images = _resample(images - low, plane, through, "bilinear") + low  # zeros come from outside
    return images, None if labels is None else _resample(labels.float(), plane, through, "nearest").long()


def random_appearance(images: torch.Tensor, generator: torch.Generator, low: float = -1) -> torch.Tensor:
    """Sharpen, blur and translate every image of a batch at random: (B, 1, H, W) in [low, 1].

    *From the first author's scripts*: random sharpness, Gaussian blur (3 x 3, sigma 0.1 to 2), translation by up to 10%.
    *Chosen*: sharpness doubles for every second image.
    """
    n = len(images)
    sharpen = (torch.rand(n, generator=generator) < 0.5).float()
    sigma = 0.1 + 1.9 * torch.rand(n, generator=generator)
    centre = torch.zeros(3, 3)
    centre[1, 1] = 1
    smooth = torch.tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13
    kernels = centre + sharpen[:, None, None] * (centre - smooth)  # (B, 3, 3)
    row = torch.exp(-((torch.arange(3) - 1) ** 2) / (2 * sigma[:, None] ** 2))
    row /= row.sum(1, keepdim=True)
    sharpened = _convolve(images, kernels).clamp(low, 1)
    blurred = _convolve(sharpened, row[:, :, None] * row[:, None, :])
    return random_affine(blurred, None, generator, degrees=0, scale=0, shift=0.1, low=low)[0]


def _convolve(images: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Convolve each image, (B, 1, H, W), with its own 3 x 3 kernel, (B, 3, 3); edges are reflected."""
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect").transpose(0, 1)  # (1, B, H + 2, W + 2)
    return F.conv2d(padded, kernels[:, None].to(images.device), groups=len(images)).transpose(0, 1)


def _resample(images: torch.Tensor, plane: torch.Tensor, through: torch.Tensor | None, mode: str) -> torch.Tensor:
    """Resample (B, 1, H, W) or (B, 1, X, Y, Z), with zeros from outside.

    A volume's slices are channels of one image, all moved alike in their plane; a matrix then moves them along Z. That is
    the same as one warp in 3D, in a fifth of the time.
    """
    volume = through is not None
    slices = images[:, 0].movedim(-1, 1) if volume else images  # (B, Z, X, Y) or (B, 1, H, W)
    grid = F.affine_grid(plane, [len(slices), 1, *slices.shape[2:]], align_corners=False)
    moved = F.grid_sample(slices, grid, mode, align_corners=False)
    if volume:
        moved = torch.einsum("bij,bjxy->bxyi", _between_slices(through, slices.shape[1], mode), moved).unsqueeze(1)
    return moved


def _between_slices(through: torch.Tensor, depth: int, mode: str) -> torch.Tensor:
    """Return how much of each slice is in each new one, (B, depth, depth)."""
    slices = torch.arange(depth, device=through.device)
    centre = (2 * slices + 1) / depth - 1
    at = ((through[:, :1] * centre + through[:, 1:] + 1) * depth - 1) / 2  # (B, depth), in slices
    if mode == "nearest":
        return (at.round().unsqueeze(2) == slices).float()
    return (1 - (at.unsqueeze(2) - slices).abs()).clamp(min=0)
