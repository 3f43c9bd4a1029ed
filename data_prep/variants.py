"""For lessons: a prepared set with other splits, or with a shortcut planted; in memory, with a fingerprint of its own."""

import hashlib
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from data_prep.quality import listed
from data_prep.splits import assign_splits
from fedlib.data.dataset import PreparedDataset

TAG_SHARE = 10
"""The tag's side is this part of the image's."""


def resplit(data: PreparedDataset, split_by: Literal["patient", "image"], seed: int) -> PreparedDataset:
    """Return the same images with splits drawn anew, as by `--split-by`."""
    cases = data.cases.assign(split="")
    cases["split"] = assign_splits(cases, listed(data, "duplicates"), seed, split_by=split_by)
    return _variant(data, " ".join(cases["split"]), cases=cases)


def tagged(data: PreparedDataset, label: str) -> PreparedDataset:
    """Return a copy with a white square near the upper left corner of every image of class `label`, in all splits.

    A hospital's letter L or R is such a tag: a model that is trained where the tag goes with one class learns the tag.
    Raises ValueError when there is no such class.
    """
    images = np.array(data.images)
    side = max(2, images.shape[-1] // TAG_SHARE)
    place = slice(side // 2, side // 2 + side)
    images[data.labels == data.classes.index(label), :, place, place] = 255
    return _variant(data, f"with a tag on {label}", images=images)


def _variant(data: PreparedDataset, what: str, **changes: Any) -> PreparedDataset:
    fingerprint = hashlib.sha256(f"{data.fingerprint} {what}".encode()).hexdigest()
    return replace(data, manifest=data.manifest | {"fingerprint": fingerprint}, **changes)
