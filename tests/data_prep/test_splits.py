"""Splits: whatever links the cases, linked ones stay together; classes and fractions are kept; leaks are refused."""

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_prep.duplicates import COLUMNS
from data_prep.splits import FRACTIONS, assign_splits
from fedlib.config import UserError
from fedlib.data.dataset import SPLITS

NO_PAIRS = pd.DataFrame(columns=COLUMNS)


def table(n=12, **columns):
    names = [f"c{i}" for i in range(n)]
    return pd.DataFrame({"case": names, "patient": names, "label": "a", "dup_group": "", "split": ""} | columns)


def pairs_of(*links):
    return pd.DataFrame([(f"c{a}", f"c{b}", "near", 3, "a", "a") for a, b in links], columns=COLUMNS)


@st.composite
def manifests(draw):
    """Patients with several images, in one or more classes; duplicates named by the source, and found by us."""
    n = draw(st.integers(9, 60))
    number = st.integers(0, n - 1)
    cases = table(
        n,
        patient=[f"p{draw(number)}" for _ in range(n)],
        label=[draw(st.sampled_from("aaaab")) for _ in range(n)],
        dup_group=[draw(st.sampled_from([""] * 8 + ["d1", "d2"])) for _ in range(n)],
    )
    return cases, pairs_of(*draw(st.lists(st.tuples(number, number), max_size=4)))


def groups_of(cases, pairs):
    graph = nx.Graph()
    for row in cases.itertuples():
        graph.add_edges_from([(row.case, ("patient", row.patient)), (row.case, ("group", row.dup_group or row.case))])
    graph.add_edges_from(pairs[["case_a", "case_b"]].itertuples(index=False))
    return [[name for name in part if isinstance(name, str)] for part in nx.connected_components(graph)]


@settings(deadline=None)
@given(manifests(), st.integers(0, 9))
def test_groups_stay_whole_classes_are_in_every_split_and_fractions_are_kept(drawn, seed):
    cases, pairs = drawn
    groups, label = groups_of(cases, pairs), cases.set_index("case")["label"]
    try:
        split = pd.Series(assign_splits(cases, pairs, seed).to_numpy(), cases["case"])
    except UserError:
        pure = [{*label[group]} for group in groups]
        assert min(pure.count({name}) for name in set(label)) < len(SPLITS)
        return
    assert all(split[group].nunique() == 1 for group in groups)
    for name in set(label):
        if sum({*label[group]} == {name} for group in groups) >= len(SPLITS):
            assert set(split[label == name]) == set(SPLITS)
    largest, strata = max(map(len, groups)), label.nunique() + 1
    for name, fraction in zip(SPLITS, FRACTIONS, strict=True):
        assert (split == name).sum() - fraction * len(cases) <= largest * strata + 1e-9


@settings(deadline=None)
@given(manifests(), st.integers(0, 9))
def test_the_same_seed_gives_the_same_splits_in_whatever_order_pairs_came(drawn, seed):
    cases, pairs = drawn
    try:
        one = assign_splits(cases.copy(), pairs, seed)
    except UserError:
        assume(False)
    assert one.equals(assign_splits(cases, pairs.iloc[::-1], seed))


def test_splits_are_stratified_and_another_seed_gives_others():
    cases = table(200, label=["rare" if n % 10 == 0 else "common" for n in range(200)])
    one, other = (assign_splits(cases, NO_PAIRS, seed) for seed in (0, 1))
    assert not one.equals(other)
    counts = pd.crosstab(cases["label"], one)
    assert counts.loc["common"].to_dict() == pytest.approx({"train": 108, "val": 18, "test": 54}, abs=1)
    assert counts.loc["rare"].to_dict() == pytest.approx({"train": 12, "val": 2, "test": 6}, abs=1)


def test_patients_in_two_classes_are_a_stratum_of_their_own_when_there_are_enough():
    """Sixty patients with an image in either class: dealt with the first class, they would unbalance the second."""
    n = 120
    cases = table(n, patient=[f"p{i // 2}" for i in range(n)], label=["ab"[i % 2] for i in range(n)])
    counts = pd.crosstab(cases["label"], assign_splits(cases, NO_PAIRS, 0))
    assert (
        counts.loc["a"].to_dict() == counts.loc["b"].to_dict() == pytest.approx({"train": 36, "val": 6, "test": 18}, abs=1)
    )


def test_volumes_need_no_class():
    assert set(assign_splits(table(3, label=""), NO_PAIRS, 0)) == set(SPLITS)
    with pytest.raises(UserError, match="the set has 2 patients.*at least 3"):
        assign_splits(table(2, label=""), NO_PAIRS, 0)


def test_a_class_with_too_few_patients_is_an_error_that_names_it():
    cases = table(20, label=["few"] * 4 + ["many"] * 16, patient=["p", "p", *(f"q{n}" for n in range(18))])
    assert set(assign_splits(cases, NO_PAIRS, 0)) == set(SPLITS)
    with pytest.raises(UserError, match=r"class 'few' has 2 patients \(duplicates count as one\)"):
        assign_splits(cases, pairs_of((1, 2)), 0)


STATED = ["train"] * 6 + ["val"] * 2 + ["test"] * 4


@given(st.permutations(STATED), st.integers(0, 3))
def test_stated_splits_are_honoured(stated, seed):
    assert assign_splits(table(split=stated), NO_PAIRS, seed).tolist() == list(stated)


@pytest.mark.parametrize(
    ("columns", "pairs", "why"),
    [
        ({"patient": ["p0", *"bcdefghijk", "p0"]}, NO_PAIRS, "c0 (train) and c11 (test) are both of patient p0"),
        ({}, pairs_of((2, 7)), "c2 (train) and c7 (val) are linked by duplicates"),
        ({"dup_group": [*11 * [""], "d"], "patient": [*"abcdefghijkl"]}, pairs_of((6, 11)), "c6 (val) and c11 (test)"),
        ({"dup_group": ["d", *10 * [""], "d"]}, NO_PAIRS, "c0 (train) and c11 (test) are linked by duplicates"),
    ],
)
def test_a_leak_in_stated_splits_is_an_error_with_two_witnesses(columns, pairs, why):
    with pytest.raises(UserError) as caught:
        assign_splits(table(split=STATED, **columns), pairs, 0)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_are_told_by_position_not_by_index():
    cases = table(30).set_index(np.arange(30)[::-1])
    assert assign_splits(cases, NO_PAIRS, 0).tolist() == assign_splits(table(30), NO_PAIRS, 0).tolist()
