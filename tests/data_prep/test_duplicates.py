"""Duplicates: found whatever their class, exactly or nearly, and never two pictures that only look similar."""

import io

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep import duplicates
from data_prep.duplicates import COLUMNS, NEAR_BITS, contradicting, find_pairs, hashes, linked, name_groups
from fedlib.config import UserError
from tests.data_prep.sets import pixels

SIZE = 224


def table(*images, labels=None):
    """A row a picture: c0, c1, ... of class a unless told otherwise."""
    rows = [dict(zip(("sha256", "phash"), hashes(image), strict=True)) for image in images]
    return pd.DataFrame(rows).assign(case=[f"c{n}" for n in range(len(rows))], label=list(labels or "a" * len(rows)))


def recompressed(image):
    packed = io.BytesIO()
    Image.fromarray(image[0]).save(packed, "JPEG", quality=60)
    return np.asarray(Image.open(packed))[None]


def brighter(image):
    return np.uint8(image * 0.97 + 4)


def cropped(image):
    inner = Image.fromarray(image[0, 1:-1, 1:-1])
    return np.asarray(inner.resize((SIZE, SIZE)))[None]


def kinds(pairs):
    return [(row.case_a, row.case_b, row.kind) for row in pairs.itertuples()]


def picture(seed):
    """Blurred noise, enlarged: shapes as large as those in a radiograph."""
    return np.asarray(Image.fromarray(pixels(seed)[0]).resize((SIZE, SIZE)))[None]


@pytest.mark.parametrize("changed", [recompressed, brighter, cropped])
@pytest.mark.parametrize("seed", range(3))
def test_slight_changes_are_near_duplicates(changed, seed):
    image = picture(seed)
    assert (changed(image) != image).any()
    pairs = find_pairs(table(picture(seed + 10), image, picture(seed + 20), changed(image)))
    assert kinds(pairs) == [("c1", "c3", "near")]
    assert 0 <= pairs["bits"][0] <= NEAR_BITS


def test_other_pictures_are_no_duplicates():
    assert find_pairs(table(*(picture(seed) for seed in range(40)))).empty
    assert list(find_pairs(table(picture(0)))) == COLUMNS


def test_the_same_pixels_are_found_whatever_the_class_each_against_the_first():
    pairs = find_pairs(table(picture(0), picture(1), picture(0), picture(0), labels="abba"))
    assert kinds(pairs) == [("c0", "c2", "exact"), ("c0", "c3", "exact")]
    assert pairs["bits"].tolist() == [0, 0]
    assert pairs[["class_a", "class_b"]].to_numpy().tolist() == [["a", "b"], ["a", "a"]]


def test_near_ones_are_listed_once_each_against_each_and_against_the_first_of_the_same():
    image = picture(0)
    pairs = find_pairs(table(image, recompressed(image), brighter(image), image))
    assert sorted(kinds(pairs)) == [("c0", "c1", "near"), ("c0", "c2", "near"), ("c0", "c3", "exact"), ("c1", "c2", "near")]


def bits_apart(*words):
    """A table of given perceptual hashes (256 bits)."""
    rows = [{"case": f"c{n}", "label": "a", "sha256": f"{n}", "phash": f"{word:064x}"} for n, word in enumerate(words)]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("limit", "found"), [(0, 1), (6, 1), (7, 3), (8, 3)])
def test_bits_are_counted_and_bounded(limit, found):
    pairs = find_pairs(bits_apart(0, 0b1111111 << 120, 0), limit)
    assert len(pairs) == found
    assert set(pairs["bits"]) == ({0} if found == 1 else {0, 7})


def test_pairs_are_found_across_the_blocks_in_which_they_are_looked_for():
    rng = np.random.default_rng(0)
    words = [int.from_bytes(rng.bytes(32), "little") for _ in range(150)]
    words[149], words[70], words[63] = words[0] ^ 1, words[65] ^ 1 << 255, words[64]
    assert kinds(find_pairs(bits_apart(*words))) == [("c0", "c149", "near"), ("c63", "c64", "near"), ("c65", "c70", "near")]


def test_images_that_the_hash_cannot_tell_apart_are_an_error(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_PAIRS_PER_CASE", 3)
    with pytest.raises(UserError, match="--near 20: over .* pairs of 9 cases look alike") as caught:
        find_pairs(bits_apart(*range(9)))
    assert "\n" not in str(caught.value)


def test_volumes_are_compared_by_three_planes():
    volume = np.stack([pixels(seed, 24)[0] for seed in range(24)])[None]
    other, shifted = volume[:, ::-1].copy(), np.uint8(np.clip(volume + 3.0, 0, 255))
    assert len(hashes(volume)[1]) == 3 * len(hashes(volume[:, 0])[1])
    assert kinds(find_pairs(table(volume, other, shifted))) == [("c0", "c2", "near")]


def test_the_bits_of_a_volume_are_those_of_its_three_planes():
    words = bits_apart(0, 2**60 - 1, 2**192 - 1)
    volumes = words.assign(phash=[f"{text:0>192}" for text in words["phash"]])
    assert kinds(find_pairs(volumes, 20)) == [("c0", "c1", "near")]
    assert find_pairs(volumes, 19).empty


def test_copies_in_more_than_one_class_are_all_refused():
    cases = table(*(picture(n) for n in (0, 1, 0, 0, 1, 2)), labels="abbaba")
    reasons = contradicting(cases)
    assert set(reasons) == {"c0", "c2", "c3"}
    assert all("c0 (a), c2 (b), c3 (a)" in reason for reason in reasons.values())
    cases = table(*(picture(n) for n in (0, 0, 0)), labels="abb")
    assert set(contradicting(cases)) == {"c0", "c1", "c2"}, "the first alone in its class"


def test_near_duplicates_in_two_classes_are_kept():
    image = picture(0)
    cases = table(image, recompressed(image), labels="ab")
    assert contradicting(cases) == {}


def pairs_of(links):
    return pd.DataFrame([(f"c{a}", f"c{b}", "near", 3, "a", "a") for a, b in links], columns=COLUMNS)


@st.composite
def links(draw):
    n = draw(st.integers(1, 15))
    number = st.integers(0, n - 1)
    cases = pd.DataFrame({
        "case": [f"c{i}" for i in range(n)],
        "patient": [f"p{draw(number)}" for _ in range(n)],
        "dup_group": [draw(st.sampled_from(["", "", "d1", "d2"])) for _ in range(n)],
    })  # fmt: skip
    return cases, pairs_of(draw(st.lists(st.tuples(number, number), max_size=5)))


@given(links())
def test_linked_cases_are_those_a_graph_connects(drawn):
    cases, pairs = drawn
    graph = nx.Graph()
    for row in cases.itertuples():
        graph.add_edge(row.case, f"patient {row.patient}")
        if row.dup_group:
            graph.add_edge(row.case, f"group {row.dup_group}")
    graph.add_edges_from(pairs[["case_a", "case_b"]].itertuples(index=False))
    expected = {frozenset(name for name in part if name[0] == "c") for part in nx.connected_components(graph)}
    found = pd.Series(cases["case"].to_numpy()).groupby(linked(cases, pairs)).agg(frozenset)
    assert set(found) == expected


def test_groups_are_named_by_the_source_or_by_number():
    cases = pd.DataFrame(
        {"case": [f"c{n}" for n in range(7)], "patient": "p", "dup_group": ["", "twins", "", "", "", "", "own"]}
    )
    names = name_groups(cases, pairs_of([(0, 1), (2, 3)]))
    assert names[[0, 1]].tolist() == ["twins", "twins"]
    assert names[2] == names[3] != ""
    assert names[2].startswith("duplicates-")
    assert names[[4, 5, 6]].tolist() == ["", "", "own"], "a patient's cases are no duplicates"
