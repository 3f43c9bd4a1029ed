"""Synthetic chest X-rays in the layout of the COVID-19 Radiography Database.

Synthetic data: no patient is behind any of these pictures. They are a phantom chosen by this project (sums of
smooth shapes and filtered noise, not a simulation of X-ray physics), so a score on them says something about a
training procedure and nothing about a diagnosis.

A picture is built as a map of attenuation on the detector, in anatomical coordinates: u runs from -1 (image left,
the patient's right) to +1, v from -1 (head) to +1 (feet), about 35 cm across. Exposure turns attenuation into grey.
"""

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
REPEAT_RATE = 0.1  # chance that a case is a second image of the patient before it in the same class
# Scanner: point spread (field units), grain (relative), grain correlation (field units), edge enhancement, gamma.
SCANNERS = {"A": (0.004, 0.8, 0.004, 0.0, 1.0), "B": (0.007, 1.0, 0.009, 0.9, 0.85), "C": (0.011, 1.4, 0.006, 0.0, 1.15)}
SIDES = np.array([-1.0, 1.0])
INVISIBLE = 0.07
"""Share of the clear findings that are not drawn: nobody can tell them, as with some real labels (*chosen*)."""
Pair = tuple[float, float]
Findings = Literal["clear", "mild"]


@dataclass(frozen=True)
class Anatomy:
    """One patient: lengths in field units (half the picture is 1), angles in radians, the rest relative."""

    rotation: float
    shift: Pair
    zoom: float
    lung_width: Pair
    apex: float
    dome: Pair
    heart: float
    heart_tilt: float
    mediastinum: float
    body: float
    bone: float
    rib_pitch: float
    rib_phase: float
    breast: float
    bubble: float
    vessels: float
    scanner: str


@dataclass(frozen=True)
class Lungs:
    """Both lungs on the grid, each (size, size): depth inside the outline (field units, negative outside),
    x from -1 (medial) to 1 (lateral), y from 0 (apex) to 1 (dome), chest-wall half-width, and gas content 0..1."""

    depth: np.ndarray
    x: np.ndarray
    y: np.ndarray
    wall: np.ndarray
    gas: np.ndarray


def _draw_anatomy(rng: np.random.Generator) -> Anatomy:
    width, dome = rng.uniform(0.30, 0.37), rng.uniform(0.34, 0.54)
    return Anatomy(
        rotation=rng.normal(0, 0.035),
        shift=(rng.normal(0, 0.035), rng.normal(0, 0.035)),
        zoom=rng.uniform(1.02, 1.18),
        lung_width=(width * rng.uniform(0.97, 1.05), width * rng.uniform(0.93, 1.01)),
        apex=rng.uniform(-0.84, -0.74),
        dome=(dome, dome + rng.uniform(0.01, 0.08)),
        heart=rng.uniform(0.84, 1.2),
        heart_tilt=rng.uniform(0.3, 0.8),
        mediastinum=rng.uniform(0.10, 0.145),
        body=rng.uniform(0.90, 1.05),
        bone=rng.uniform(0.6, 1.2),
        rib_pitch=rng.uniform(0.145, 0.18),
        rib_phase=rng.uniform(0, 1),
        breast=rng.uniform(0, 1),
        bubble=rng.uniform(0, 1),
        vessels=rng.uniform(0.6, 1.2),
        scanner=str(rng.choice(list(SCANNERS))),
    )


def _grid(size: int, a: Anatomy) -> tuple[np.ndarray, np.ndarray]:
    """Anatomical coordinates (u, v) of every pixel, each (size, size) float32."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    x, y = (axis[None, :] - a.shift[0]) / a.zoom, (axis[:, None] - a.shift[1]) / a.zoom
    cos, sin = np.float32(np.cos(a.rotation)), np.float32(np.sin(a.rotation))
    return (cos * x + sin * y).astype(np.float32), (cos * y - sin * x).astype(np.float32)


def _to_pixels(points: np.ndarray, size: int, a: Anatomy) -> np.ndarray:
    """Inverse of _grid: anatomical points (..., 2) to pixel positions (..., 2) of a picture `size` wide."""
    cos, sin = np.cos(a.rotation), np.sin(a.rotation)
    x, y = cos * points[..., 0] - sin * points[..., 1], sin * points[..., 0] + cos * points[..., 1]
    return ((np.stack([x, y], -1) * a.zoom + a.shift) + 1) * size / 2


def _step(x: np.ndarray) -> np.ndarray:
    """Smooth edge: 0 far below zero, 1 far above, 10-90% over about 2.2 units."""
    return 0.5 + 0.5 * np.tanh(x)


def _ellipse(u: np.ndarray, v: np.ndarray, centre: Pair, axes: Pair, tilt: float = 0.0) -> np.ndarray:
    """Squared normalised radius of an ellipse: below 1 inside; first axis turned by `tilt` (radians)."""
    du, dv, cos, sin = u - np.float32(centre[0]), v - np.float32(centre[1]), np.cos(tilt), np.sin(tilt)
    along, across = du * np.float32(cos / axes[0]), du * np.float32(-sin / axes[1])
    return (along + dv * np.float32(sin / axes[0])) ** 2 + (across + dv * np.float32(cos / axes[1])) ** 2


def _noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise (size, size), about unit variance, with `cells` grains across the picture."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)) * np.float32(1.4)


def _lungs(u: np.ndarray, v: np.ndarray, a: Anatomy) -> Lungs:
    left = u > 0
    width = np.where(left, np.float32(a.lung_width[1]), np.float32(a.lung_width[0]))
    dome = np.where(left, np.float32(a.dome[1]), np.float32(a.dome[0]))
    x = (np.abs(u) - np.float32(0.09) - width) / width
    rise = np.clip((np.float32(0.3) - v) / np.float32(0.3 - a.apex), 0, 1.2)
    taper = 1 - np.minimum(rise, 1) ** 2.6
    outline = (np.abs(x) ** 2.6 + rise**2.6) ** np.float32(1 / 2.6)
    floor = dome + np.float32(0.2) * np.clip(x + 0.1, 0, None) ** 2 + np.float32(0.06) * np.clip(-x, 0, None) - v
    depth = np.minimum((1 - outline) * width, floor)
    gas = 1 - np.exp(-np.clip(depth, 0, None) / np.float32(0.055))
    y = (v - np.float32(a.apex)) / (dome - np.float32(a.apex))
    wall = np.float32(0.1) + width * (1 + np.maximum(taper, 0) ** np.float32(1 / 2.6)) + np.float32(0.02)
    return Lungs(depth, x, y, wall, gas)


def _heart(u: np.ndarray, v: np.ndarray, a: Anatomy) -> np.ndarray:
    """Thickness (0..1) of heart and great vessels, with their borders: ventricle, right atrium, knob, trunk."""
    base = min(a.dome) - 0.02
    parts = (
        ((0.13 * a.heart, base - 0.13), (0.38 * a.heart, 0.27 * a.heart), a.heart_tilt, 1.0),
        ((-0.06, base - 0.17), (0.14 * a.heart, 0.25), 0.0, 0.85),
        ((0.09, -0.38), (0.08, 0.09), 0.0, 0.7),
        ((0.11, -0.17), (0.09, 0.16), 0.2, 0.65),
    )
    thickness = np.zeros_like(u)
    for centre, axes, tilt, peak in parts:
        inside = np.clip(1 - _ellipse(u, v, centre, axes, tilt), 0, 1)
        np.maximum(thickness, np.float32(peak) * inside ** np.float32(0.4), out=thickness)
    return thickness


def _soft_tissue(u: np.ndarray, v: np.ndarray, lungs: Lungs, heart: np.ndarray, a: Anatomy) -> np.ndarray:
    """Attenuation of the torso without gas and bone: wall, mediastinum, heart, trachea, abdomen, breasts."""
    across = np.abs(u)
    shoulder = _step((v + np.float32(0.98) - 0.34 * across) / np.float32(0.035))
    neck = _step((0.27 - across) / np.float32(0.02))
    side = np.float32(a.body) * (1 + np.float32(0.25) * _step((-0.30 - v) / np.float32(0.1)))
    chord = np.clip(1 - (u / side) ** 2, 0, 1)
    body = chord ** np.float32(0.35) * np.maximum(shoulder, neck * np.float32(0.75)) * np.float32(0.95)
    half_width = a.mediastinum + 0.03 * np.clip(v + 0.2, 0, 1)
    band = _step((half_width - np.abs(u - np.float32(0.01))) / np.float32(0.022)) * _step((v + 0.80) / np.float32(0.12))
    softness = np.float32(0.04) + 0.5 * np.clip(lungs.x - np.float32(0.95), 0, 1)
    below = _step((lungs.y - 1) / softness) * (1 - lungs.gas) * (chord > 0)
    body += np.maximum.reduce([np.float32(0.24) * band, np.float32(0.36) * heart, np.float32(0.28) * below])
    body -= np.float32(0.13) * np.exp(-((u / np.float32(0.04)) ** 4)) * _step((-0.22 - v) / np.float32(0.03))
    bubble = _ellipse(u, v, (0.36, a.dome[1] + 0.12), (0.15, 0.07), -0.2)
    body -= np.float32(0.3 * a.bubble) * np.sqrt(np.clip(1 - bubble, 0, 1))
    breast = _ellipse(across, v, (0.5, 0.30), (0.32, 0.27), 0.1)
    return body + np.float32(0.10 * a.breast) * np.sqrt(np.clip(1 - breast, 0, 1))


def _tube(distance: np.ndarray, radius: float) -> np.ndarray:
    """Projection of a bone tube with a dense cortex, from the distance to its axis (field units)."""
    r2 = (distance / np.float32(radius)) ** 2
    return np.sqrt(np.clip(1 - r2, 0, 1)) * (np.float32(0.6) + np.float32(0.7) * r2)


def _ribs(v: np.ndarray, reach: np.ndarray, a: Anatomy) -> np.ndarray:
    """Posterior ribs (near level, then bending down) and anterior ones (falling to the middle); reach 1 = wall."""
    span = np.clip(reach, 0, 1.05)
    pitch = np.float32(a.rib_pitch)

    def ladder(level: np.ndarray, radius: float) -> np.ndarray:
        phase = level / pitch + np.float32(a.rib_phase)
        return _tube((phase - np.floor(phase) - np.float32(0.5)) * pitch, radius)

    posterior = ladder(v - 0.20 * span**2 - 0.22 * span**8 + 0.05 * span, 0.034)
    anterior = ladder(v - 0.42 * (1 - span) - 0.02, 0.030) * _step((span - 0.5) / np.float32(0.08))
    caged = _step((1.04 - reach) / np.float32(0.012)) * _step((0.66 - v) / np.float32(0.1))
    return (posterior * np.float32(0.9) + anterior * np.float32(0.55)) * caged * _step((v + 0.86) / np.float32(0.03))


def _bones(u: np.ndarray, v: np.ndarray, lungs: Lungs, a: Anatomy) -> np.ndarray:
    """Attenuation of ribs, clavicles, shoulder blades and spine, (size, size)."""
    across = np.abs(u)
    ribs = _ribs(v, across / lungs.wall, a)
    line = -0.58 - 0.20 * across + 0.035 * np.sin(across * np.float32(9))
    ends = _step((across - 0.09) / np.float32(0.015)) * _step((0.86 - across) / np.float32(0.02))
    clavicle = _tube(v - line, 0.036) * ends
    blade = _tube(across - 0.80 + 0.10 * (v + 0.4) ** 2 + 0.25 * (v + 0.4), 0.03) * (v < -0.05) * (v > -0.62)
    body = _step((0.075 - across) / np.float32(0.012))
    discs = np.cos(v * np.float32(2 * np.pi / 0.17)) ** 8
    spine = body * (1 - np.float32(0.4) * discs)
    return np.float32(a.bone) * (0.17 * ribs + 0.24 * clavicle + 0.08 * blade + 0.10 * spine)


def _vessel_tree(rng: np.random.Generator, size: int, a: Anatomy) -> np.ndarray:
    """Branching vessels from both hila, (size, size) in 0..1; drawn at double size, since lines have hard edges."""
    canvas = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(canvas)
    side = np.repeat(SIDES, 9)
    start = np.stack([side * 0.17, np.where(side > 0, -0.10, -0.05)], -1)
    angle = np.tile(np.linspace(-1.25, 1.45, 9), 2) + rng.normal(0, 0.12, 18)
    length, width = rng.uniform(0.10, 0.17, 18), rng.uniform(0.013, 0.024, 18)
    for _ in range(5):
        end = start + length[:, None] * np.stack([side * np.cos(angle), np.sin(angle)], -1)
        lines = _to_pixels(np.stack([start, end], 1), 2 * size, a).reshape(-1, 4).tolist()
        for line, w in zip(lines, (width * a.zoom * size).tolist(), strict=True):
            draw.line(line, fill=min(255, int(60 + 90 * w)) if w < 2 else 255, width=max(1, round(w)))
        fork = rng.uniform(0.2, 0.55, (2, len(side))) * np.array([[1.0], [-1.0]])
        start, side, angle = np.tile(end, (2, 1)), np.tile(side, 2), (angle + fork).ravel()
        length = np.tile(length, 2) * rng.uniform(0.6, 0.95, len(side))
        width = np.tile(width, 2) * rng.uniform(0.5, 0.78, len(side))
    tree = np.asarray(canvas.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255
    return ndimage.gaussian_filter(tree, 0.004 * size)


def _lobar(rng: np.random.Generator, u: np.ndarray, lungs: Lungs, severity: float) -> np.ndarray:
    """One consolidated lobe: a sharp edge at the fissure, fading away from it."""
    side, lobe = rng.choice(SIDES), rng.choice(["upper", "middle", "lower"])
    slope, bow, extent = rng.uniform(-0.12, 0.12), rng.uniform(-0.06, 0.06), 0.14 + 0.3 * severity
    fissure = lungs.y - (0.62 if lobe == "lower" else 0.5) + slope * lungs.x + bow * lungs.x**2
    fissure = -fissure if lobe == "upper" else fissure
    ragged = np.float32(0.25) * _noise(rng, u.shape[0], 9)
    centre, reach = rng.uniform(-0.4, 0.4), 0.65 + 0.7 * severity
    away = np.clip(fissure / extent, 0, None) ** 2 + ((lungs.x - centre) / reach) ** 2 + ragged
    field = _step(fissure / np.float32(0.015)) * _step((1 - away) / np.float32(0.25))
    mottle = 1 + np.float32(0.15) * _noise(rng, u.shape[0], 14)
    return np.float32(0.16 + 0.5 * severity) * field * mottle * (u * side > 0)


def _ground_glass(rng: np.random.Generator, u: np.ndarray, lungs: Lungs, severity: float) -> np.ndarray:
    """Patchy haze in both lungs, along the periphery and mostly in the lower zones."""
    haze = np.zeros_like(u)
    for side in SIDES:
        lung = u * side > 0
        for _ in range(rng.integers(2, 4) + round(2 * severity)):
            x, y = rng.uniform(0.35, 0.85), np.clip(rng.normal(0.72, 0.13), 0.3, 0.95)
            axes, tilt = (rng.uniform(0.25, 0.45), rng.uniform(0.08, 0.15)), rng.uniform(-0.3, 0.3)
            r2 = _ellipse(lungs.x, lungs.y, (x, y), axes, tilt)
            haze += rng.uniform(0.6, 1.1) * np.exp(-(r2**2)) * lung
    mottle = np.clip(1 + np.float32(0.35) * _noise(rng, u.shape[0], 24), 0, None)
    return np.float32(0.10 + 0.32 * severity) * (1 - np.exp(-haze)) * mottle


def _interstitial(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, tree: np.ndarray, severity: float) -> np.ndarray:
    """Fine net and thickened bronchial walls in both lungs, strongest around the hila."""
    hilar = np.exp(-_ellipse(np.abs(u), v, (0.2, -0.05), (0.45, 0.6)))
    net = sum(np.exp(-((_noise(rng, u.shape[0], cells) / np.float32(0.35)) ** 2)) for cells in (22, 36))
    return np.float32(0.08 + 0.3 * severity) * (0.25 + hilar) * (0.6 * net + 0.15 + 0.4 * tree)


def _severity(rng: np.random.Generator, findings: Findings) -> tuple[float, float]:
    """Draw how severe a finding is, from about 0 to 1.3, and how strongly it is drawn.

    mild: many mild cases, slow to learn. clear: quick to learn, with a ceiling: 7% are not drawn at all (*chosen*).
    """
    if findings == "mild":
        return float(rng.beta(1.5, 1.2)), 1.0
    return float(rng.uniform(0.7, 1.3)), 0.0 if rng.random() < INVISIBLE else 1.5


def _attenuation(
    rng: np.random.Generator, a: Anatomy, label: str, size: int, findings: Findings
) -> tuple[np.ndarray, np.ndarray]:
    """Attenuation (size, size) float32 of one patient, and the lung mask (size, size) bool."""
    u, v = _grid(size, a)
    lungs, heart = _lungs(u, v, a), _heart(u, v, a)
    tree = _vessel_tree(rng, size, a)
    gas = lungs.gas * (1 - np.float32(0.75) * np.minimum(heart * 1.3, 1))
    total = _soft_tissue(u, v, lungs, heart, a) + _bones(u, v, lungs, a)
    severity, strength = _severity(rng, findings)
    haze = {
        "COVID": lambda: _ground_glass(rng, u, lungs, severity),
        "Normal": lambda: np.float32(0),
        "Lung_Opacity": lambda: _lobar(rng, u, lungs, severity),
        "Viral Pneumonia": lambda: _interstitial(rng, u, v, tree, severity),
    }[label]()
    total += gas * (np.float32(0.22 * a.vessels) * tree + np.float32(strength) * haze - np.float32(0.62))
    return total, (lungs.depth > 0) & (heart < 0.35)


def _expose(rng: np.random.Generator, attenuation: np.ndarray, scanner: str) -> np.ndarray:
    """Grey values (size, size) uint8 of one exposure: blur, quantum noise that follows the dose, window, gamma."""
    blur, grain, correlation, edges, gamma = SCANNERS[scanner]
    size = attenuation.shape[0]
    image = ndimage.gaussian_filter(attenuation, blur * size / 2)
    speckle = ndimage.gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), correlation * size / 2)
    # Fewer photons arrive behind dense tissue: the standard deviation of the log signal grows as exp(attenuation / 2).
    dose = rng.uniform(0.008, 0.022) * grain
    image += np.float32(dose / speckle.std()) * speckle * np.exp(image * np.float32(0.7) - np.float32(0.5))
    if edges:
        image += np.float32(edges) * (image - ndimage.gaussian_filter(image, 0.03 * size / 2))
    # The air beside the body would eat half of the grey scale: only the middle of the picture sets the window.
    middle = image[size // 4 :: 4, size // 6 : -size // 6 : 4]
    low, high = np.quantile(middle, [rng.uniform(0.003, 0.02), rng.uniform(0.975, 0.998)])
    low -= np.float32(0.06) * (high - low)  # a lung is dark, not black
    grey = np.clip((image - low) / (high - low), 0, 1) ** np.float32(gamma * rng.uniform(0.8, 1.25))
    return (grey * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _first_case(seed: int, case: int, images_per_patient: int | None = None) -> int:
    """The case whose patient this one shows: itself, or the case before it in the class (never two steps back).

    With `images_per_patient`, that many cases of a class in a row show one patient.
    """
    if images_per_patient:
        return case - len(CLASSES) * (case // len(CLASSES) % images_per_patient)
    before = case - len(CLASSES)
    repeat = before >= 0 and np.random.default_rng([seed, case]).random() < REPEAT_RATE
    return before if repeat and _first_case(seed, before) == before else case


def render_case(
    case: int, size: int = 299, seed: int = 0, findings: Findings = "mild", images_per_patient: int | None = None
) -> tuple[np.ndarray, np.ndarray, str, int]:
    """AccessibleFigure (size, size) uint8, lung mask (size, size) uint8 0/255, scanner, and the patient's first case."""
    first = _first_case(seed, case, images_per_patient)
    patient_rng, _ = np.random.default_rng([seed, first]).spawn(2)
    _, exposure_rng = np.random.default_rng([seed, case]).spawn(2)
    anatomy = _draw_anatomy(patient_rng)
    attenuation, mask = _attenuation(patient_rng, anatomy, CLASSES[case % len(CLASSES)], size, findings)
    return _expose(exposure_rng, attenuation, anatomy.scanner), mask.astype(np.uint8) * 255, anatomy.scanner, first


def write_chest_xrays(
    folder: Path,
    n_cases: int,
    size: int = 299,
    seed: int = 0,
    findings: Findings = "mild",
    images_per_patient: int | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda it: it,
) -> None:
    """Write `n_cases` pictures and lung masks (8-bit PNG, size x size pixels) and manifest.csv under `folder`.

    Case i (from 0) has class CLASSES[i % 4] and depends on the other arguments alone. About one patient in ten has two
    images, or each has `images_per_patient`: same anatomy, same finding, another exposure. `progress` wraps the iterable of
    case numbers (tqdm, for example).
    """
    for name in CLASSES:
        for kind in ("images", "masks"):
            (Path(folder) / name / kind).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / "manifest.csv", "w", newline="", encoding="utf-8") as stream:
        manifest = csv.writer(stream, lineterminator="\n")
        manifest.writerow(["file", "class", "patient", "scanner"])
        for case in progress(range(n_cases)):
            image, mask, scanner, first = render_case(case, size, seed, findings, images_per_patient)
            name = CLASSES[case % len(CLASSES)]
            file = f"{name}-{case // len(CLASSES) + 1}.png"
            Image.fromarray(image).save(Path(folder) / name / "images" / file)
            Image.fromarray(mask).save(Path(folder) / name / "masks" / file)
            manifest.writerow([f"{name}/images/{file}", name, f"synthetic-{first + 1:04d}", scanner])
