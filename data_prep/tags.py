"""A shortcut, planted: copies of a prepared set of images with a bright tag burnt in, as a hospital's letter L or R is.

For a lesson: a model that is trained where the tag goes with one class learns the tag. The copies are prepared sets like any
other, with a fingerprint of their own.
"""

from pathlib import Path

import numpy as np
from filelock import FileLock

from data_prep.quality import listed
from data_prep.writer import PreparedWriter
from fedlib.data.dataset import PreparedDataset, find_prepared, open_prepared

KEPT = ("task", "classes", "spacing_mm", "synthetic", "recipe", "choices", "counts", "splits", "passed_over", "warnings")
"""Of the manifest of the set that is copied."""
SHARE = 10
"""The tag's side is this part of the image's."""


def burn(image: np.ndarray) -> np.ndarray:
    """A white square in the upper left corner of an image (1, H, W), uint8; gives a copy."""
    side = max(2, image.shape[-1] // SHARE)
    image = np.array(image)
    image[:, side // 2 : side // 2 + side, side // 2 : side // 2 + side] = 255
    return image


def tagged(data: PreparedDataset, out: Path, label: str) -> PreparedDataset:
    """The set at `out`: `data` with the tag in every image of class `label`, in all splits. Made when it is missing.

    Cases, labels and splits are those of `data`. Raises ValueError when it has no such class.
    """
    number = data.classes.index(label)
    made_from = f"{data.fingerprint} with a tag on {label}"
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f".{out.name}.lock")):
        if find_prepared(out) and (known := open_prepared(out)).manifest["made_from"] == made_from:
            return known
        kept = {key: data.manifest[key] for key in KEPT}
        about = {"source": "tagged", "title": f"{data.manifest['title']}, a tag on {label}", "made_from": made_from}
        tables = {"cases.csv": data.cases} | {f"{name}.csv": listed(data, name) for name in ("qc", "duplicates")}
        with PreparedWriter(out, {"reader": made_from}) as writer:
            keys = data.cases["case"].to_list()
            for row, key in enumerate(keys):
                image, own = data.images[row], int(data.labels[row])
                writer.add(key, burn(image) if own == number else image, own)
            return writer.finish(kept | about, keys, tables)
