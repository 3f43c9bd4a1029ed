"""make bench: data preparation against the bare decoder on the same cores, its memory against the number of cases; opening a
prepared set against a copy of its arrays in memory.

    python -m tests.bench.preparation --images 21165 --volumes 1000     the sizes of the study (about half an hour, 20 GB)

Files are generated: grey PNGs of 299 x 299 pixels, and NIfTI volumes of 320 x 320 x 200 voxels. Each preparation runs as a
user starts it, in a process of its own; the bare decoder reads the same files with as many threads and keeps nothing.
Writes reports/bench/preparation.json.
"""

import argparse
import gzip
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from data_prep.pipeline import CORES
from fedlib.config import ROOT
from fedlib.data import dataset as data
from fedlib.data.dataset import ARRAYS, open_prepared
from tests.bench.harness import ratio, side_by_side, write

SHAPE = (320, 320, 200)
SAMPLE = 400
CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")


def write_images(folder: Path, n: int) -> None:
    """Soft pictures with grain, each mixed of two out of many: no two are duplicates, and a PNG has some 60 kB."""
    rng = np.random.default_rng(0)
    soft = [gaussian_filter(rng.normal(size=(299, 299)), 299 / 24) for _ in range(300)]
    soft = [(picture - picture.min()) / np.ptp(picture) * 120 for picture in soft]
    for name in CLASSES:
        (folder / name / "images").mkdir(parents=True)

    def write(number: int) -> None:
        own = np.random.default_rng(number)
        first, second = own.choice(len(soft), 2, replace=False)
        grain = own.integers(0, 8, (299, 299))
        name = CLASSES[number % len(CLASSES)]
        pixels = (soft[first] + np.roll(soft[second], number % 299, axis=number % 2) + grain).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name / "images" / f"{name}-{number}.png", compress_level=1)

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(write, range(n)))


def write_volumes(folder: Path, n: int) -> None:
    """Pairs in MM-WHS naming. A volume is a random order of compressed slices: gzip files may be joined end to end."""
    rng = np.random.default_rng(0)
    affine = np.diag([0.7, 0.7, 0.8, 1.0])
    header = nib.Nifti1Image(np.zeros(SHAPE, np.int16), affine).to_bytes()[:352]
    slices = []
    for _ in range(100):
        soft = gaussian_filter(rng.normal(size=SHAPE[:2]), 12)
        slices.append(gzip.compress(_fortran(soft / soft.std() * 150 + rng.integers(-8, 8, SHAPE[:2])), 1))
    x, y, z = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    distance = np.sqrt(((x - 170) / 60) ** 2 + ((y - 150) / 55) ** 2 + ((z - 100) / 50) ** 2)
    label = gzip.compress(header + _fortran(np.where(distance < 0.7, 500, np.where(distance < 1, 205, 0))), 1)
    folder.mkdir()
    for number in range(n):
        order = np.random.default_rng(number).integers(0, len(slices), SHAPE[2])
        image = gzip.compress(header, 1) + b"".join(slices[at] for at in order)
        (folder / f"case_{number}_image.nii.gz").write_bytes(image)
        (folder / f"case_{number}_label.nii.gz").write_bytes(label)


def _fortran(array: np.ndarray) -> bytes:
    return array.astype(np.int16).tobytes(order="F")


def decode_image(path: Path) -> None:
    """What no preparation of images can be faster than."""
    Image.open(BytesIO(path.read_bytes())).load()


def decode_volume(path: Path) -> None:
    """What no preparation of compressed volumes can be faster than."""
    with gzip.open(path) as stream:  # gzip.decompress would copy what is left of the file once for each slice
        stream.read()


def bare_seconds(decode: Callable[[Path], None], files: list[Path]) -> float:
    """Wall seconds to decode all files, a thread a core; of very many, told from a sample."""
    sample = random.Random(0).sample(files, min(len(files), SAMPLE))
    began = time.perf_counter()
    with ThreadPoolExecutor(CORES) as pool:
        for future in [pool.submit(decode, file) for file in sample]:
            future.result()
    return (time.perf_counter() - began) * len(files) / len(sample)


def preparation(arguments: list[str], folder: Path, out: Path) -> dict[str, float]:
    """Wall seconds and peak memory (MB) of `python -m data_prep` in a process of its own."""
    command = [sys.executable, "-m", "data_prep", *arguments, "--input", str(folder), "--out", str(out)]
    measure = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode; "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", measure, *command], cwd=ROOT, capture_output=True, text=True, check=True)
    return {"seconds": time.perf_counter() - began, "peak_mb": int(done.stdout) / 1024}


def measured(kind: str, n: int, scratch: Path) -> dict[str, float]:
    """One row of the table: n generated cases, bare decoder, preparation, and a second call that finds nothing to do."""
    raw, out = scratch / f"{kind}-{n}", scratch / f"{kind}-{n}-prepared"
    write, decode, arguments = KINDS[kind]
    write(raw, n)
    files = [path for path in raw.rglob("*") if path.is_file()]
    row = {"cases": n, "mb": sum(path.stat().st_size for path in files) / 1e6, "bare_s": bare_seconds(decode, files)}
    first = preparation(arguments, raw, out)
    again = preparation(arguments, raw, out)
    row |= first | {"again_s": again["seconds"], "over_bare": {"ratio": first["seconds"] / row["bare_s"], "noise": 0.1}}
    row |= opening(out)
    shutil.rmtree(raw)
    shutil.rmtree(out)
    return row


def opening(out: Path) -> dict[str, dict[str, float]]:
    """Opening a set over a copy of its arrays in memory: the first time in a process, when files are hashed, and again."""
    arrays = [np.load(out / name) for name in ARRAYS]

    def once(first: bool) -> None:
        if first:
            data._open.cache_clear()
        open_prepared(out)

    openings = {"opened": lambda: once(first=True), "opened again": lambda: once(first=False)}
    taken = side_by_side(openings | {"copy": lambda: [array.copy() for array in arrays]}, 7)
    return {f"{name} over copy": ratio(taken, name, "copy") for name in openings}


KINDS = {
    "images": (write_images, decode_image, ["covid19-radiography", "--subset"]),
    "volumes": (write_volumes, decode_volume, ["mmwhs"]),
}


def main() -> None:
    """Measure both kinds, at a quarter of the size and at the size asked for; print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--volumes", type=int, default=16)
    asked = vars(parser.parse_args())
    report: dict[str, object] = {"threads": CORES}
    print(f"{'':10}{'cases':>7}{'MB':>8}{'cases/s':>9}{'MB/s':>7}{'s':>8}{'/ bare':>8}{'again s':>9}{'peak MB':>9}")
    with tempfile.TemporaryDirectory() as scratch:
        for kind, most in asked.items():
            rows = [measured(kind, n, Path(scratch)) for n in (most // 4, most)]
            for row in rows:
                rates = f"{row['cases'] / row['seconds']:9.1f}{row['mb'] / row['seconds']:7.1f}{row['seconds']:8.1f}"
                cost = f"{row['over_bare']['ratio']:8.2f}{row['again_s']:9.1f}{row['peak_mb']:9.0f}"
                print(f"{kind:10}{row['cases']:7}{row['mb']:8.0f}{rates}{cost}", flush=True)
                print(", ".join(f"{name} {found['ratio']:.2f}" for name, found in row.items() if "copy" in name), flush=True)
            report[kind] = {f"{row['cases']} cases": row for row in rows}
    write("preparation", report)


if __name__ == "__main__":
    main()
