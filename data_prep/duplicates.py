"""Duplicates: the same image twice, to the pixel or nearly. A model that saw one in training knows the other.

Exactly: the prepared pixels have the same hash. Nearly: perceptual hashes (pHash of ImageHash, 256 bits a plane) that differ
in a few bits, as after another compression, a slight crop or a change of contrast.
"""

import hashlib

import imagehash
import networkx as nx
import numpy as np
import pandas as pd
from PIL import Image

from fedlib.config import UserError

NEAR_BITS = 20
"""Bits of 256 in which near-duplicates may differ (*chosen* on 11,491 radiographs, see data_prep/README.md)."""
MAX_PAIRS_PER_CASE = 50
"""More pairs than this are no duplicates but images that the hash cannot tell apart."""
COLUMNS = ["case_a", "case_b", "kind", "bits", "class_a", "class_b"]


def hashes(image: np.ndarray) -> tuple[str, str]:
    """SHA-256 of the pixels and perceptual hash, both in hex, of a prepared image (1, H, W) or volume (1, X, Y, Z).

    Of a volume, the three planes through its middle are hashed: 768 bits.
    """
    pixels = image[0]
    middle = [size // 2 for size in pixels.shape]
    planes = [pixels] if pixels.ndim == 2 else [np.take(pixels, middle[axis], axis) for axis in range(3)]
    near = "".join(str(imagehash.phash(Image.fromarray(plane), hash_size=16)) for plane in planes)
    return hashlib.sha256(image.tobytes()).hexdigest(), near


def find_pairs(cases: pd.DataFrame, near_bits: int = NEAR_BITS) -> pd.DataFrame:
    """List duplicates among the rows of `cases` (columns case, label, sha256, phash): one row a pair.

    Exact duplicates stand against the first of their kind; near ones each against each. Raises UserError when so many look
    alike that the hash says nothing.
    """
    name, label = cases["case"].to_numpy(), cases["label"].to_numpy()
    first = pd.Series(np.arange(len(cases))).groupby(cases["sha256"].to_numpy()).transform("min").to_numpy()
    exact = [(a, b, "exact", 0) for b, a in enumerate(first) if a != b]
    single = np.flatnonzero(first == np.arange(len(cases)))
    words = np.stack([np.frombuffer(bytes.fromhex(text), np.uint64) for text in cases["phash"].iloc[single]])
    near = [(single[a], single[b], "near", bits) for a, b, bits in _near(words, near_bits)]
    pairs = [(name[a], name[b], kind, bits, label[a], label[b]) for a, b, kind, bits in exact + near]
    return pd.DataFrame(pairs, columns=COLUMNS)


def _near(words: np.ndarray, near_bits: int) -> list[tuple[int, int, int]]:
    """Pairs of rows of `words`, uint64 (N, W), that differ in few bits: each against each, a few rows at a time."""
    limit, found = near_bits * words.shape[1] // 4, []  # four words are the 256 bits of a plane
    for start in range(0, len(words), 64):
        rows = words[start : start + 64]
        bits = np.bitwise_count(rows[:, None] ^ words[None, start:]).sum(-1, dtype=np.uint16)
        a, b = np.nonzero(bits <= limit)
        later = a < b  # each pair once
        found += zip(
            (start + a[later]).tolist(), (start + b[later]).tolist(), bits[a[later], b[later]].tolist(), strict=True
        )
        if len(found) > MAX_PAIRS_PER_CASE * len(words):
            raise UserError(
                f"--near {near_bits}: over {len(found)} pairs of {len(words)} cases look alike; expected fewer bits, or "
                "images that differ more (0 lists only equal hashes)"
            )
    return found


def contradicting(cases: pd.DataFrame) -> dict[str, str]:
    """Return the cases (columns case, label, sha256) whose very pixels stand in another class too, with the reason.

    Which label is right, nobody can say.
    """
    reasons = {}
    for _, same in cases.groupby("sha256", sort=False):
        if same["label"].nunique() > 1:
            text = ", ".join(f"{row.case} ({row.label})" for row in same.head(4).itertuples())
            reasons |= dict.fromkeys(same["case"], f"the same pixels in more than one class: {text}; expected one class")
    return reasons


def linked(cases: pd.DataFrame, pairs: pd.DataFrame) -> np.ndarray:
    """Number of the connected component of each case; cases are linked by a patient, a dup_group, or a pair."""
    links = nx.Graph()
    links.add_nodes_from(cases["case"])  # first: components are numbered in the order of their first cases
    for case, patient, group in zip(cases["case"], cases["patient"], cases["dup_group"], strict=True):
        links.add_edge(case, ("patient", patient))
        if group:
            links.add_edge(case, ("group", group))
    links.add_edges_from(zip(pairs["case_a"], pairs["case_b"], strict=True))
    number_of = {case: number for number, part in enumerate(nx.connected_components(links)) for case in part}
    return cases["case"].map(number_of).to_numpy()


def name_groups(cases: pd.DataFrame, pairs: pd.DataFrame) -> pd.Series:
    """A dup_group for all duplicates: the source's name where it gave one, a number else; empty for single cases."""
    group = pd.Series(linked(cases.assign(patient=cases["case"]), pairs), cases.index)
    stated = cases["dup_group"].groupby(group).max()  # the empty text is the smallest
    numbered = stated.mask(stated == "", "duplicates-" + stated.index.astype(str))
    names = numbered.where((stated != "") | (group.value_counts().sort_index() > 1), "")
    return group.map(names)
