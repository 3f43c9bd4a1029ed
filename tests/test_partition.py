"""Partitions: disjoint, complete, patient-disjoint, and every class at each client, whatever the cases are."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlib.config import UserError
from fedlib.partition import deal, shares, table


@st.composite
def dealt(draw, most_images: int = 3):
    """Cases with patients of one class and some images each, and how they are to be dealt."""
    n_clients = draw(st.integers(1, 6))
    n_classes = draw(st.integers(1, 3))
    patients = [draw(st.integers(n_clients, 15)) for _ in range(n_classes)]
    images = [(c, p) for c, n in enumerate(patients) for p in range(n) for _ in range(draw(st.integers(1, most_images)))]
    order = draw(st.permutations(images))
    cases = pd.DataFrame({"patient": [f"{c}-{p}" for c, p in order], "label": [f"class {c}" for c, _ in order]})
    rows = np.flatnonzero(np.array(draw(st.lists(st.booleans(), min_size=len(cases), max_size=len(cases)))))
    partition, seed = draw(st.sampled_from(["balanced", "unbalanced"])), draw(st.integers(0, 99))
    kept = cases.iloc[rows].groupby("label")["patient"].nunique() if len(rows) else pd.Series([0])
    enough = len(kept) == n_classes and kept.min() >= n_clients
    return cases, rows if enough else np.arange(len(cases)), (n_clients, partition, draw(st.floats(1, 8)), seed)


@given(dealt())
def test_clients_are_disjoint_and_complete(example):
    cases, rows, arguments = example
    clients = deal(cases, rows, *arguments)
    assert len(clients) == arguments[0]
    assert sorted(np.concatenate(clients)) == sorted(rows)


@given(dealt())
def test_no_patient_is_at_two_clients_and_every_class_at_each(example):
    cases, rows, arguments = example
    clients = deal(cases, rows, *arguments)
    patients = [set(cases.iloc[own]["patient"]) for own in clients]
    assert len(set.union(*patients)) == sum(map(len, patients))
    assert all(set(cases.iloc[own]["label"]) == set(cases["label"]) for own in clients)


@given(dealt(most_images=1))
def test_sizes_follow_the_shares(example):
    cases, rows, arguments = example
    n_clients, partition, ratio, _ = arguments
    sizes = [len(own) for own in deal(cases, rows, *arguments)]
    assert sizes == sorted(sizes, reverse=True), "with one image a patient no client outgrows the one before it"
    if partition == "balanced":
        assert max(sizes) - min(sizes) <= cases["label"].nunique()


@given(dealt(), st.integers(0, 99))
def test_the_seed_alone_decides(example, other_seed):
    cases, rows, arguments = example
    first, again = (deal(cases, rows, *arguments) for _ in range(2))
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    deal(cases, rows, *arguments[:3], other_seed)  # another seed leaves nothing behind that a third call could see
    assert all(map(np.array_equal, first, deal(cases, rows, *arguments)))


def test_another_seed_deals_other_patients():
    cases = pd.DataFrame({"patient": [str(n) for n in range(60)], "label": ""})
    one, two = (deal(cases, np.arange(60), 3, "balanced", 1, seed) for seed in (1, 2))
    assert not all(map(np.array_equal, one, two))


@pytest.mark.parametrize(("n_clients", "ratio"), [(2, 4), (8, 4), (16, 3)])
def test_unbalanced_shares_fall_by_the_stated_ratio(n_clients, ratio):
    wanted = shares(n_clients, "unbalanced", ratio)
    assert wanted.sum() == pytest.approx(1)
    assert wanted[0] / wanted[-1] == pytest.approx(ratio)
    assert np.ptp(wanted[1:] / wanted[:-1]) == pytest.approx(0), "a geometric fall"
    cases = pd.DataFrame({"patient": [str(n) for n in range(1000)], "label": ""})
    sizes = [len(own) for own in deal(cases, np.arange(1000), n_clients, "unbalanced", ratio, 0)]
    assert np.abs(np.array(sizes) - 1000 * wanted).max() <= 1


def test_balanced_ignores_the_ratio_and_one_client_gets_all():
    assert shares(4, "balanced", 9).tolist() == [0.25] * 4
    cases = pd.DataFrame({"patient": list("abcb"), "label": list("xyxy")})
    assert deal(cases, np.array([3, 0, 1]), 1, "unbalanced", 9, 0)[0].tolist() == [0, 1, 3]


def test_a_class_with_fewer_patients_than_clients_is_named():
    cases = pd.DataFrame({"patient": list("aabcdef"), "label": ["rare"] * 3 + ["common"] * 4})
    with pytest.raises(UserError, match="n_clients = 3.*'rare' has 2"):
        deal(cases, np.arange(7), 3, "balanced", 1, 0)


def test_volumes_without_a_class_are_dealt_too(volumes):
    rows = volumes.split("train")
    clients = deal(volumes.cases, rows, 3, "balanced", 1, 0)
    assert sorted(np.concatenate(clients)) == sorted(rows)
    with pytest.raises(UserError, match=f"n_clients = 99.*{len(rows)}.*99"):
        deal(volumes.cases, rows, 99, "balanced", 1, 0)


def test_table_counts_cases(images):
    rows = images.split("train")
    counts = table(images.cases, deal(images.cases, rows, 2, "unbalanced", 3, 1))
    assert counts["total"].sum() == len(rows)
    assert (counts[images.classes].sum(axis=1) == counts["total"]).all()
    assert counts[images.classes].sum().to_dict() == images.cases.iloc[rows]["label"].value_counts().to_dict()
    assert counts["share"].sum() == pytest.approx(1, abs=0.01)
