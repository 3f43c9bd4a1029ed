"""Synthetic chest X-rays in the layout of the COVID-19 Radiography Database.

No patient is behind any of these pictures. They are a phantom chosen by this project (sums of smooth shapes and filtered
noise, not a simulation of X-ray physics): a score on them says something about a training procedure, nothing about a lung.

A picture is a map of attenuation on the detector, float32 (size, size), in anatomical coordinates: u runs from -1 (image
left, the patient's right) to 1, v from -1 (head) to 1 (feet), about 35 cm across. Exposure turns attenuation into grey.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from scipy import ndimage

from data_prep.pipeline import progress

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
REPEAT_RATE = 0.1  # chance that a case is a second image of the patient before it in the same class
# Scanner: point spread (field units), grain (relative), grain correlation (field units), edge enhancement, gamma.
SCANNERS = {"A": (0.004, 0.8, 0.004, 0.0, 1.0), "B": (0.007, 1.0, 0.009, 0.9, 0.85), "C": (0.011, 1.4, 0.006, 0.0, 1.15)}
SIDES = np.array([-1.0, 1.0])
INVISIBLE = 0.07  # share of the clear findings that are not drawn: nobody can tell them, as with some real labels (*chosen*)
Pair = tuple[float, float]
Findings = Literal["clear", "mild"]


def _draw_anatomy(rng: np.random.Generator) -> SimpleNamespace:
    """Draw one patient: lengths in field units (half the picture is 1), angles in radians, the rest relative."""
    width, dome = rng.uniform(0.30, 0.37), rng.uniform(0.34, 0.54)
    return SimpleNamespace(
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


def _grid(size: int, a: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    """Return the anatomical coordinates (u, v) of every pixel."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    x, y = (axis[None, :] - a.shift[0]) / a.zoom, (axis[:, None] - a.shift[1]) / a.zoom
    cos, sin = np.float32(np.cos(a.rotation)), np.float32(np.sin(a.rotation))
    return cos * x + sin * y, cos * y - sin * x


def _to_pixels(points: np.ndarray, size: int, a: SimpleNamespace) -> np.ndarray:
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
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)) * 1.4


def _lungs(u: np.ndarray, v: np.ndarray, a: SimpleNamespace) -> SimpleNamespace:
    """Both lungs: x from -1 (medial) to 1 (lateral), y from 0 (apex) to 1 (dome), half-width of the wall, gas 0 to 1."""
    width, dome = (np.where(u > 0, np.float32(left), np.float32(right)) for right, left in (a.lung_width, a.dome))
    x = (np.abs(u) - 0.09 - width) / width
    rise = np.clip((0.3 - v) / (0.3 - a.apex), 0, 1.2)
    taper = 1 - np.minimum(rise, 1) ** 2.6
    outline = (np.abs(x) ** 2.6 + rise**2.6) ** (1 / 2.6)
    floor = dome + 0.2 * np.clip(x + 0.1, 0, None) ** 2 + 0.06 * np.clip(-x, 0, None) - v
    depth = np.minimum((1 - outline) * width, floor)
    wall = 0.1 + width * (1 + np.maximum(taper, 0) ** (1 / 2.6)) + 0.02
    return SimpleNamespace(
        x=x, y=(v - a.apex) / (dome - a.apex), wall=wall, gas=1 - np.exp(-np.clip(depth, 0, None) / 0.055)
    )


def _heart(u: np.ndarray, v: np.ndarray, a: SimpleNamespace) -> np.ndarray:
    """Thickness (0..1) of heart and great vessels, with their borders: ventricle, right atrium, knob, trunk."""
    base = min(a.dome) - 0.02
    parts = (
        ((0.13 * a.heart, base - 0.13), (0.38 * a.heart, 0.27 * a.heart), a.heart_tilt, 1.0),
        ((-0.06, base - 0.17), (0.14 * a.heart, 0.25), 0.0, 0.85),
        ((0.09, -0.38), (0.08, 0.09), 0.0, 0.7),
        ((0.11, -0.17), (0.09, 0.16), 0.2, 0.65),
    )
    return np.maximum.reduce([
        peak * np.clip(1 - _ellipse(u, v, centre, axes, tilt), 0, 1) ** 0.4 for centre, axes, tilt, peak in parts
    ])  # fmt: skip


def _soft_tissue(u: np.ndarray, v: np.ndarray, lungs: SimpleNamespace, heart: np.ndarray, a: SimpleNamespace) -> np.ndarray:
    """Attenuation of the torso without gas and bone: wall, mediastinum, heart, trachea, abdomen, breasts."""
    across = np.abs(u)
    shoulder = _step((v + 0.98 - 0.34 * across) / 0.035)
    neck = _step((0.27 - across) / 0.02)
    side = a.body * (1 + 0.25 * _step((-0.30 - v) / 0.1))
    chord = np.clip(1 - (u / side) ** 2, 0, 1)
    body = chord**0.35 * np.maximum(shoulder, neck * 0.75) * 0.95
    half_width = a.mediastinum + 0.03 * np.clip(v + 0.2, 0, 1)
    band = _step((half_width - np.abs(u - 0.01)) / 0.022) * _step((v + 0.80) / 0.12)
    below = _step((lungs.y - 1) / (0.04 + 0.5 * np.clip(lungs.x - 0.95, 0, 1))) * (1 - lungs.gas) * (chord > 0)
    body += np.maximum.reduce([0.24 * band, 0.36 * heart, 0.28 * below])
    body -= 0.13 * np.exp(-((u / 0.04) ** 4)) * _step((-0.22 - v) / 0.03)
    bubble = _ellipse(u, v, (0.36, a.dome[1] + 0.12), (0.15, 0.07), -0.2)
    body -= 0.3 * a.bubble * np.sqrt(np.clip(1 - bubble, 0, 1))
    breast = _ellipse(across, v, (0.5, 0.30), (0.32, 0.27), 0.1)
    return body + 0.10 * a.breast * np.sqrt(np.clip(1 - breast, 0, 1))


def _tube(distance: np.ndarray, radius: float) -> np.ndarray:
    """Projection of a bone tube with a dense cortex, from the distance to its axis (field units)."""
    r2 = (distance / radius) ** 2
    return np.sqrt(np.clip(1 - r2, 0, 1)) * (0.6 + 0.7 * r2)


def _ribs(v: np.ndarray, reach: np.ndarray, a: SimpleNamespace) -> np.ndarray:
    """Posterior ribs (near level, then bending down) and anterior ones (falling to the middle); reach 1 = wall."""
    span = np.clip(reach, 0, 1.05)

    def ladder(level: np.ndarray, radius: float) -> np.ndarray:
        phase = level / a.rib_pitch + a.rib_phase
        return _tube((phase - np.floor(phase) - 0.5) * a.rib_pitch, radius)

    posterior = ladder(v - 0.20 * span**2 - 0.22 * span**8 + 0.05 * span, 0.034)
    anterior = ladder(v - 0.42 * (1 - span) - 0.02, 0.030) * _step((span - 0.5) / 0.08)
    caged = _step((1.04 - reach) / 0.012) * _step((0.66 - v) / 0.1)
    return (posterior * 0.9 + anterior * 0.55) * caged * _step((v + 0.86) / 0.03)


def _bones(u: np.ndarray, v: np.ndarray, lungs: SimpleNamespace, a: SimpleNamespace) -> np.ndarray:
    """Attenuation of ribs, clavicles, shoulder blades and spine."""
    across = np.abs(u)
    ribs = _ribs(v, across / lungs.wall, a)
    line = -0.58 - 0.20 * across + 0.035 * np.sin(across * 9)
    clavicle = _tube(v - line, 0.036) * (_step((across - 0.09) / 0.015) * _step((0.86 - across) / 0.02))
    blade = _tube(across - 0.80 + 0.10 * (v + 0.4) ** 2 + 0.25 * (v + 0.4), 0.03) * (v < -0.05) * (v > -0.62)
    spine = _step((0.075 - across) / 0.012) * (1 - 0.4 * np.cos(v * (2 * np.pi / 0.17)) ** 8)
    return a.bone * (0.17 * ribs + 0.24 * clavicle + 0.08 * blade + 0.10 * spine)


def _vessel_tree(rng: np.random.Generator, size: int, a: SimpleNamespace) -> np.ndarray:
    """Branching vessels from both hila, 0 to 1; drawn at double size, since lines have hard edges."""
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


def _lobar(rng: np.random.Generator, u: np.ndarray, lungs: SimpleNamespace, severity: float) -> np.ndarray:
    """One consolidated lobe: a sharp edge at the fissure, fading away from it."""
    side, lobe = rng.choice(SIDES), rng.choice(["upper", "middle", "lower"])
    slope, bow, extent = rng.uniform(-0.12, 0.12), rng.uniform(-0.06, 0.06), 0.14 + 0.3 * severity
    fissure = lungs.y - (0.62 if lobe == "lower" else 0.5) + slope * lungs.x + bow * lungs.x**2
    fissure = -fissure if lobe == "upper" else fissure
    ragged = 0.25 * _noise(rng, len(u), 9)
    centre, reach = rng.uniform(-0.4, 0.4), 0.65 + 0.7 * severity
    away = np.clip(fissure / extent, 0, None) ** 2 + ((lungs.x - centre) / reach) ** 2 + ragged
    field = _step(fissure / 0.015) * _step((1 - away) / 0.25)
    return (0.16 + 0.5 * severity) * field * (1 + 0.15 * _noise(rng, len(u), 14)) * (u * side > 0)


def _ground_glass(rng: np.random.Generator, u: np.ndarray, lungs: SimpleNamespace, severity: float) -> np.ndarray:
    """Patchy haze in both lungs, along the periphery and mostly in the lower zones."""
    haze = np.zeros_like(u)
    for side in SIDES:
        for _ in range(rng.integers(2, 4) + round(2 * severity)):
            x, y = rng.uniform(0.35, 0.85), np.clip(rng.normal(0.72, 0.13), 0.3, 0.95)
            axes, tilt = (rng.uniform(0.25, 0.45), rng.uniform(0.08, 0.15)), rng.uniform(-0.3, 0.3)
            patch = _ellipse(lungs.x, lungs.y, (x, y), axes, tilt) ** 2
            haze += rng.uniform(0.6, 1.1) * np.exp(-patch) * (u * side > 0)
    mottle = np.clip(1 + 0.35 * _noise(rng, len(u), 24), 0, None)
    return (0.10 + 0.32 * severity) * (1 - np.exp(-haze)) * mottle


def _interstitial(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, tree: np.ndarray, severity: float) -> np.ndarray:
    """Fine net and thickened bronchial walls in both lungs, strongest around the hila."""
    hilar = np.exp(-_ellipse(np.abs(u), v, (0.2, -0.05), (0.45, 0.6)))
    net = sum(np.exp(-((_noise(rng, len(u), cells) / 0.35) ** 2)) for cells in (22, 36))
    return (0.08 + 0.3 * severity) * (0.25 + hilar) * (0.6 * net + 0.15 + 0.4 * tree)


def _severity(rng: np.random.Generator, findings: Findings) -> tuple[float, float]:
    """Draw how severe a finding is, from about 0 to 1.3, and how strongly it is drawn.

    mild: many mild cases, slow to learn. clear: quick to learn, with a ceiling: some are not drawn at all (*chosen*).
    """
    if findings == "mild":
        return rng.beta(1.5, 1.2), 1.0
    return rng.uniform(0.7, 1.3), 0.0 if rng.random() < INVISIBLE else 1.5


def _attenuation(rng: np.random.Generator, a: SimpleNamespace, label: str, size: int, findings: Findings) -> np.ndarray:
    """Attenuation of one patient."""
    u, v = _grid(size, a)
    lungs, heart = _lungs(u, v, a), _heart(u, v, a)
    tree = _vessel_tree(rng, size, a)
    total = _soft_tissue(u, v, lungs, heart, a) + _bones(u, v, lungs, a)
    severity, strength = _severity(rng, findings)
    haze = {
        "COVID": lambda: _ground_glass(rng, u, lungs, severity),
        "Normal": lambda: 0,
        "Lung_Opacity": lambda: _lobar(rng, u, lungs, severity),
        "Viral Pneumonia": lambda: _interstitial(rng, u, v, tree, severity),
    }[label]()
    gas = lungs.gas * (1 - 0.75 * np.minimum(heart * 1.3, 1))
    return total + gas * (0.22 * a.vessels * tree + strength * haze - 0.62)


def _expose(rng: np.random.Generator, attenuation: np.ndarray, scanner: str) -> np.ndarray:
    """Grey values (size, size) uint8 of one exposure: blur, quantum noise that follows the dose, window, gamma."""
    blur, grain, correlation, edges, gamma = SCANNERS[scanner]
    size = len(attenuation)
    image = ndimage.gaussian_filter(attenuation, blur * size / 2)
    speckle = ndimage.gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), correlation * size / 2)
    # Fewer photons arrive behind dense tissue: the standard deviation of the log signal grows as exp(attenuation / 2).
    image += rng.uniform(0.008, 0.022) * grain / speckle.std() * speckle * np.exp(image * 0.7 - 0.5)
    if edges:
        image += edges * (image - ndimage.gaussian_filter(image, 0.03 * size / 2))
    # The air beside the body would eat half of the grey scale: only the middle of the picture sets the window.
    middle = image[size // 4 :: 4, size // 6 : -size // 6 : 4]
    low, high = np.quantile(middle, [rng.uniform(0.003, 0.02), rng.uniform(0.975, 0.998)])
    low -= np.float32(0.06) * (high - low)  # a lung is dark, not black
    grey = np.clip((image - low) / (high - low), 0, 1) ** np.float32(gamma * rng.uniform(0.8, 1.25))
    return (grey * 255 + 0.5).astype(np.uint8)


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
) -> tuple[np.ndarray, str, int]:
    """Draw a case: picture (size, size) uint8, the name of its scanner, and the first case of its patient.

    Case i (from 0) has class CLASSES[i % 4] and depends on the arguments alone. About one patient in ten has two images, or
    each has `images_per_patient`: the same anatomy and finding, another exposure.
    """
    first = _first_case(seed, case, images_per_patient)
    patient_rng, _ = np.random.default_rng([seed, first]).spawn(2)
    _, exposure_rng = np.random.default_rng([seed, case]).spawn(2)
    anatomy = _draw_anatomy(patient_rng)
    attenuation = _attenuation(patient_rng, anatomy, CLASSES[case % len(CLASSES)], size, findings)
    return _expose(exposure_rng, attenuation, anatomy.scanner), anatomy.scanner, first


def write_chest_xrays(
    folder: Path,
    n_cases: int,
    size: int = 299,
    seed: int = 0,
    findings: Findings = "mild",
    images_per_patient: int | None = None,
) -> None:
    """Write `n_cases` pictures (8-bit PNG) and manifest.csv below `folder`."""
    rows = []
    for name in CLASSES:
        (folder / name / "images").mkdir(parents=True)
    for case in progress(range(n_cases), "drawing chest X-rays"):
        image, scanner, first = render_case(case, size, seed, findings, images_per_patient)
        name = CLASSES[case % len(CLASSES)]
        file = f"{name}/images/{name}-{case // len(CLASSES) + 1}.png"
        Image.fromarray(image).save(folder / file)
        rows.append((file, name, f"synthetic-{first + 1:04d}", scanner))
    pd.DataFrame(rows, columns=["file", "class", "patient", "scanner"]).to_csv(folder / "manifest.csv", index=False)
