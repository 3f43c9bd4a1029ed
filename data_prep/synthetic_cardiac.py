"""Synthetic contrast-enhanced cardiac CT in the layout of the MM-WHS challenge.

No patient is behind any of these volumes. They are a phantom chosen by this project (implicit surfaces painted with
Hounsfield-like values, blur and noise, not a simulation of a scanner): a score on them says something about a training
procedure, nothing about a heart.

Lengths are in mm and positions in world axes as NIfTI defines them (x to the patient's right, y anterior, z superior),
relative to the centre of the heart. As in MM-WHS, the papillary muscles belong to the LV blood pool and only the ascending
aorta is labelled; right atrium, pulmonary artery and descending aorta stay background here. Distances are signed, negative
inside, and like images and labels of shape (nx, ny, nz).
"""

import gzip
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
from scipy import ndimage

from data_prep.pipeline import progress

LABELS = {"left ventricle": 500, "myocardium": 205, "right ventricle": 600, "left atrium": 420, "aorta": 820}
FIRST_NUMBER = 1001
AIR, LUNG, FAT, MUSCLE, LIVER = -1000.0, -840.0, -95.0, 50.0, 85.0
LONG_AXIS, TO_RIGHT_VENTRICLE = np.array([-0.62, 0.60, -0.50]), np.array([0.68, 0.73, 0.05])


@dataclass(frozen=True)
class Grid:
    """Voxel centres along the three axes, mm from the heart's centre: shapes (nx, 1, 1), (1, ny, 1), (1, 1, nz)."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray

    def along(self, axis: np.ndarray, point: np.ndarray) -> np.ndarray:
        """Signed distance from `point` in direction `axis`, (nx, ny, nz)."""
        ax, ay, az = np.float32(axis)
        px, py, pz = np.float32(point)
        return (ax * (self.x - px) + ay * (self.y - py)) + az * (self.z - pz)


def _draw_heart(rng: np.random.Generator) -> SimpleNamespace:
    """Draw one patient's heart, and what contrast medium makes of it in Hounsfield units."""
    axis = LONG_AXIS + rng.normal(0, 0.13, 3)
    axis /= np.linalg.norm(axis)
    side = TO_RIGHT_VENTRICLE + rng.normal(0, 0.13, 3)
    side -= axis * (side @ axis)
    side /= np.linalg.norm(side)
    short = rng.uniform(17.5, 28)
    long = rng.uniform(40, 50) + 0.3 * (short - 20)
    kind = rng.choice(["normal", "hypertrophic", "infarct"], p=[0.6, 0.2, 0.2])
    wall = rng.uniform(10.5, 13) if kind == "hypertrophic" else rng.uniform(7.5, 10.5)
    left = rng.uniform(200, 450)
    bright, washed_out, unenhanced = left * rng.uniform(0.85, 1.1), left * rng.uniform(0.4, 0.8), rng.uniform(40, 70)
    return SimpleNamespace(
        frame=np.stack([axis, side, np.cross(axis, side)]),  # rows: base to apex, towards the RV, and across both
        centre=np.array([-20.0, 2.0, -10.0]) + rng.normal(0, 2, 3),  # of the LV
        semi=(long, short),  # half-axes of the LV blood pool, which is cut at `base` along the long axis
        base=-rng.uniform(0.45, 0.6) * long,
        wall=wall,
        # Direction in radians, level along the axis, relative change of the wall's thickness.
        bump=(rng.normal(0, 0.6), rng.uniform(-0.3, 0.2), rng.uniform(0.1, 0.3) if kind == "hypertrophic" else 0.05),
        scar=(rng.uniform(0, 2 * np.pi), rng.uniform(-0.1, 0.6), rng.uniform(0.3, 0.5) if kind == "infarct" else 0.0),
        rv=(rng.uniform(24, 32), rng.uniform(36, 44)),
        atrium=rng.uniform(19, 26),
        aorta=rng.uniform(12, 16),
        fat=rng.uniform(4, 10),
        left_hu=left,
        muscle_hu=rng.uniform(80, 140),
        right_hu=float(rng.choice([bright, washed_out, unenhanced], p=[0.4, 0.35, 0.25])),
    )


def _place(heart: SimpleNamespace, along: float, to_rv: float, cross: float = 0.0) -> np.ndarray:
    """World position (3,) of a point given in the heart's own axes."""
    return heart.centre + np.array([along, to_rv, cross]) @ heart.frame


def _draw_grid(rng: np.random.Generator) -> tuple[Grid, np.ndarray]:
    """Sampling grid around the heart and the affine (4, 4), whose first two axes run to the left and to the back."""
    spacing = np.array([*[rng.uniform(1.5, 2.2)] * 2, rng.uniform(2, 3)])
    extent = np.array([*[rng.uniform(170, 200)] * 2, rng.uniform(140, 160)])
    shape = np.round(extent / spacing).astype(int)
    table = rng.uniform(-150, 150, 3)  # where the scanner's own origin lies, seen from the heart
    step = spacing * [-1, -1, 1]
    first = -step * (shape - 1) / 2 + rng.uniform(-12, 12, 3) / np.sqrt(3)
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = first + table
    x, y, z = (np.float32(f + s * np.arange(n)) for f, s, n in zip(first, step, shape, strict=True))
    return Grid(x[:, None, None], y[None, :, None], z[None, None, :]), affine


def _ellipsoid(grid: Grid, centre: np.ndarray, frame: np.ndarray, semi: tuple[float, float, float]) -> np.ndarray:
    """Approximate distance to an ellipsoid."""
    squares = sum(grid.along(axis / length, centre) ** 2 for axis, length in zip(frame, semi, strict=True))
    return (np.sqrt(squares) - 1) * min(semi)


def _tube(grid: Grid, points: list[np.ndarray], radius: float) -> np.ndarray:
    """Distance to a tube through `points`."""
    squares = []
    for start, end in zip(points[:-1], points[1:], strict=True):
        length = float(np.linalg.norm(end - start))
        along = grid.along((end - start) / length, start)
        x, y, z = np.float32(start)
        # Pythagoras: what is left of the distance to `start` is across the axis, plus the overshoot at either end.
        to_start = ((grid.x - x) ** 2 + (grid.y - y) ** 2) + (grid.z - z) ** 2
        squares.append(to_start - along**2 + (along - np.clip(along, 0, length)) ** 2)
    return np.sqrt(np.maximum(np.minimum.reduce(squares), 0)) - radius


def _ripple(grid: Grid, rng: np.random.Generator, wavelength: float) -> np.ndarray:
    """Smooth irregularity between -1 and 1: a product of waves costs one pass over the volume."""
    k, phase = 2 * np.pi / wavelength, np.float32(rng.uniform(0, 6.28, 3))
    return np.sin(k * grid.x + phase[0]) * np.sin(k * grid.y + phase[1]) * np.sin(k * grid.z + phase[2])


def _grains(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Noise of the given shape with grains three voxels wide, for what has no shape of its own (lung vessels)."""
    coarse = rng.standard_normal([n // 3 + 1 for n in shape], dtype=np.float32)
    return ndimage.zoom(coarse, np.array(shape) / coarse.shape, order=1, mode="nearest", grid_mode=True)


def _left_ventricle(
    grid: Grid, heart: SimpleNamespace, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances to endocardium and epicardium, and position along the axis."""
    s, p, q = (grid.along(axis, heart.centre) for axis in heart.frame)
    long, short = heart.semi
    across = p**2 + q**2
    rho = np.sqrt((s / long) ** 2 + across / short**2) + 1e-3
    radius = np.sqrt(s**2 + across)
    endo = radius * (1 - 1 / rho) + 0.9 * _ripple(grid, rng, 17)
    spoke = 1 / (np.sqrt(across) + 1e-3)
    level = s / long
    wall = heart.wall * (1 - 0.3 * np.clip(level, 0, 1) ** 2)
    for angle, height, change, width in ((*heart.bump, 1.5), (*(heart.scar[:2]), -heart.scar[2], 3.0)):
        if change:
            facing = (p * np.float32(np.cos(angle)) + q * np.float32(np.sin(angle))) * spoke
            patch = np.exp(width * (facing - 1) - ((level - height) / 0.5) ** 2)
            wall *= 1 + change * patch
    return endo, endo - wall, s


def _papillary(grid: Grid, heart: SimpleNamespace) -> np.ndarray:
    """Distance to the two papillary muscles, which stand on the wall opposite the septum."""
    long, short = heart.semi
    roots = [(0.5 * long, -0.45 * short, sign * 0.5 * short) for sign in (-1, 1)]
    tips = [(-0.05 * long, -0.35 * short, sign * 0.4 * short) for sign in (-1, 1)]
    muscles = [_tube(grid, [_place(heart, *r), _place(heart, *t)], 0.13 * short) for r, t in zip(roots, tips, strict=True)]
    return np.minimum(*muscles)


def _chambers(grid: Grid, heart: SimpleNamespace, s: np.ndarray) -> dict[str, np.ndarray]:
    """Distances to chambers and great vessels other than the LV; the ventricle's wall still overlaps."""
    base, (_, short), (rv_width, rv_height) = heart.base, heart.semi, heart.rv
    upright, shell = np.eye(3), short + heart.wall
    rv_centre = _place(heart, -6, shell + 0.05 * rv_width)
    rv = _ellipsoid(grid, rv_centre, heart.frame, (heart.semi[0] * 0.92, rv_width, rv_height))
    outflow = [_place(heart, base * 0.5, shell + 6) + [-6, 8, 16], _place(heart, base, shell) + [-14, 10, 30]]
    root = _place(heart, base + 2, 0.45 * short)
    aorta = [root, root + [12, 8, 32], root + [9, 0, 62], root + [-8, -20, 78]]
    atrium = _place(heart, base - 0.85 * heart.atrium, -3) + [0, -6, 2]
    right_atrium = _place(heart, base - 14, shell + 4) + [6, -4, -6]
    r = heart.atrium
    return {
        "right atrium": _ellipsoid(grid, right_atrium, upright, (22, 24, 28)),
        "vena cava": _tube(grid, [right_atrium + [2, -8, 10], right_atrium + [4, -12, 95]], 9),
        "pulmonary artery": _tube(grid, [*outflow, outflow[1] + [-4, -24, 22], outflow[1] + [-30, -44, 26]], 12),
        "veins": _tube(grid, [atrium + [-48, -22, 14], atrium, atrium + [55, -20, 8]], 6.5),
        "left atrium": np.maximum(_ellipsoid(grid, atrium, upright, (1.35 * r, 0.85 * r, r)), s - base),
        "right ventricle": np.maximum(np.minimum(rv, _tube(grid, outflow, 11)), base - 8 - s),
        "aorta": _tube(grid, aorta, heart.aorta),
        "descending aorta": _tube(grid, [np.array([-8.0, -56, -120]), np.array([-6.0, -54, 90])], 0.85 * heart.aorta),
    }


def _thorax(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Hounsfield units of the chest without heart and spine: wall, ribs, lungs, liver, mediastinal fat."""
    middle, half = np.float32([15, -12]), np.float32([rng.uniform(112, 128), rng.uniform(74, 84)])
    dx, dy = grid.x - middle[0], grid.y - middle[1]
    depth = (np.sqrt((dx / half[0]) ** 2 + (dy / half[1]) ** 2) - 1) * half[1]
    hu = np.where(depth < 7, np.float32(MUSCLE), FAT)
    hu = np.where(depth < rng.uniform(14, 30), hu, AIR) + np.zeros_like(grid.z)
    ribs = np.sin((grid.z + 0.55 * dy) * (2 * np.pi / 26)) > 0.35
    hu[ribs & (depth > 1) & (depth < 7)] = rng.uniform(280, 420)
    hu[ribs & (depth > 2.5) & (depth < 5.5)] = 130
    right, left = (((grid.x - middle) ** 2 + (grid.y + 10) ** 2) / 170 for middle in (80, -50))
    domes = np.maximum(rng.uniform(-45, -28) - right, rng.uniform(-50, -38) - left)
    from_hilum = np.sqrt((grid.x / 60) ** 2 + ((grid.y + 25) / 60) ** 2 + ((grid.z - 25) / 60) ** 2)
    vessels = _grains(hu.shape, rng) > 0.7 + 0.35 * from_hilum
    lung = np.where(vessels, MUSCLE, LUNG - 0.6 * dy)
    chest = depth < 0
    hu = np.where(chest, np.where(grid.z > domes, lung, np.where(grid.x > -25, LIVER, MUSCLE)), hu).astype(np.float32)
    column = ((dx + 4) / 30) ** 2 + ((dy + 36) / 42) ** 2 < 1
    upper = ((dx + 6) / 42) ** 2 + ((dy + 2) / 52) ** 2 < 1
    front = (np.abs(dx + 4) < 14) & (dy > 30)
    mediastinum = chest & ((column | front) | (upper & (grid.z > 30))) & (grid.z > domes - 1)
    hu[mediastinum] = FAT
    return hu


def _paint_skeleton(hu: np.ndarray, grid: Grid) -> None:
    """Spine (bodies with a cortex, discs, canal) and breastbone, painted in place."""
    dx, dy = grid.x - 15, grid.y + 78
    body = np.sqrt((dx / 19) ** 2 + (dy / 16) ** 2)
    disc = np.cos(grid.z * (2 * np.pi / 27)) > 0.8
    bone = np.where(disc, 90, np.where(body > 0.86, 420, 190))
    np.copyto(hu, bone, where=body < 1)
    np.copyto(hu, 40, where=(dx / 12) ** 2 + ((dy + 22) / 8) ** 2 < 1)
    np.copyto(hu, 260, where=((dx / 16) ** 2 + ((grid.y - 72) / 6) ** 2 < 1) & (grid.z > -40))


def _paint(grid: Grid, heart: SimpleNamespace, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Hounsfield units (float32) and labels (int16) without blur and noise."""
    hu = _thorax(grid, rng)
    _paint_skeleton(hu, grid)
    endo, epi, s = _left_ventricle(grid, heart, rng)
    chambers = _chambers(grid, heart, s)
    envelope = np.minimum(epi, np.minimum.reduce([d for name, d in chambers.items() if name != "veins"]))
    hu[envelope < heart.fat] = FAT
    hu[envelope < 2.5] = MUSCLE
    label = np.zeros(hu.shape, np.int16)
    right_side = {"right atrium", "vena cava", "pulmonary artery", "right ventricle"}
    for name, distance in chambers.items():
        inside = distance < 0
        hu[inside] = heart.right_hu if name in right_side else heart.left_hu * 0.97
        label[inside] = LABELS.get(name, 0)
    above_base = s > heart.base
    wall, pool = above_base & (epi < 0), above_base & (endo < 0)
    hu[wall], label[wall] = heart.muscle_hu, LABELS["myocardium"]
    hu[pool], label[pool] = heart.left_hu, LABELS["left ventricle"]
    hu[pool & (_papillary(grid, heart) < 0)] = heart.muscle_hu
    return hu, label


def _scan(hu: np.ndarray, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Image (int16) as a scanner would deliver it: partial volume, gain, streaks, correlated noise."""
    image = ndimage.gaussian_filter(hu, rng.uniform(0.5, 0.8), truncate=2.5)
    image *= 1 + rng.normal(0, 0.03) * grid.x / 90 + rng.normal(0, 0.03) * grid.z / 75
    dx, dy = grid.x - 35, grid.y - 15  # streaks start at the densest contrast, in the right atrium
    rays = np.sin(np.arctan2(dy, dx) * np.float32(rng.integers(14, 24)) + rng.uniform(0, 6.28))
    image += rng.uniform(0, 22) * rays * np.exp(-(dx**2 + dy**2) / 3600)
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, (0.6, 0.6, 0), truncate=2.5)
    image += rng.uniform(15, 45) / 0.47 * noise
    return np.clip(np.round(image), -1024, 3071).astype(np.int16)


def render_case(case: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw case 0, 1, ...: image (int16, HU), labels (int16), and affine (4, 4) in mm; another patient each."""
    rng = np.random.default_rng([seed, case])
    grid, affine = _draw_grid(rng)
    hu, label = _paint(grid, _draw_heart(rng), rng)
    return _scan(hu, grid, rng), label, affine


def write_cardiac_ct(folder: Path, n_cases: int, seed: int = 0) -> None:
    """Write `n_cases` pairs ct_train_<number>_image.nii.gz and ..._label.nii.gz."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in progress(range(n_cases), "drawing hearts"):
        *arrays, affine = render_case(case, seed)
        for kind, array in zip(("image", "label"), arrays, strict=True):
            volume = nib.Nifti1Image(array, affine)
            volume.header.set_xyzt_units("mm")
            content = gzip.compress(volume.to_bytes(), 1, mtime=0)  # without a time: the seed decides every byte
            (folder / f"ct_train_{FIRST_NUMBER + case}_{kind}.nii.gz").write_bytes(content)
