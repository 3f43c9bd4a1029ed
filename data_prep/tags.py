"""A shortcut, planted: a set of images in which one class has a bright tag burnt in, as a hospital's letter L or R is.

For a lesson: a model that is trained where the tag goes with one class learns the tag.
"""

import hashlib
from dataclasses import replace

import numpy as np

from fedlib.data.dataset import PreparedDataset

SHARE = 10
"""The tag's side is this part of the image's."""


def tagged(data: PreparedDataset, label: str) -> PreparedDataset:
    """Return a set with a white square near the upper left corner of each image of class `label`, in all splits.

    It is a copy in memory, with a fingerprint of its own. Raises ValueError when there is no such class.
    """
    images = np.array(data.images)
    side = max(2, images.shape[-1] // SHARE)
    place = slice(side // 2, side // 2 + side)
    images[data.labels == data.classes.index(label), :, place, place] = 255
    fingerprint = hashlib.sha256(f"{data.fingerprint} with a tag on {label}".encode()).hexdigest()
    about = {"title": f"{data.manifest['title']}, a tag on {label}", "fingerprint": fingerprint}
    return replace(data, images=images, manifest=data.manifest | about)
