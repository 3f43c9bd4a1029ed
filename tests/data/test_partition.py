"""Partitions: disjoint, complete and patient-disjoint, whatever the cases are; each rule by what it promises."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlib import analysis
from fedlib.config import UserError
from fedlib.data.partition import FEWEST, deal, deal_by_group, deal_skewed, shares, table
from fedlib.study import experiment
from fedlib.training import execution
from fedlib.training.run_store import RunStore
from fedlib.views import plots
from tests.helpers import run_config


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


@st.composite
def mixed(draw):
    """Cases in any order: patients of a class with some images each, most of them in one group, some in several."""
    patients = draw(st.integers(4, 40))
    label = draw(st.lists(st.sampled_from("xyz"), min_size=patients, max_size=patients))
    home = draw(st.lists(st.sampled_from(["A", "B", "C", ""]), min_size=patients, max_size=patients))
    images = [p for p in range(patients) for _ in range(draw(st.integers(1, 3)))]
    cases = pd.DataFrame({"patient": [f"p{p}" for p in images], "label": [label[p] for p in images]})
    elsewhere = [draw(st.integers(0, 9)) == 0 for _ in images]
    cases["hospital"] = ["C" if away else home[p] for p, away in zip(images, elsewhere, strict=True)]
    cases = cases.iloc[draw(st.permutations(range(len(cases))))].reset_index(drop=True)
    rows = np.flatnonzero(draw(st.lists(st.booleans(), min_size=len(cases), max_size=len(cases))))
    return cases, rows if len(rows) >= 8 else np.arange(len(cases)), draw(st.integers(1, 5))


def check_dealt(cases, rows, clients, n_clients):
    assert len(clients) == n_clients
    assert sorted(np.concatenate(clients)) == sorted(rows)
    assert min(map(len, clients)) >= FEWEST
    patients = [set(cases.iloc[own]["patient"]) for own in clients]
    assert len(set.union(*patients)) == sum(map(len, patients))


@given(mixed(), st.floats(0.005, 50), st.integers(0, 99))
@settings(deadline=None)
def test_label_skew_deals_whole_patients_or_names_what_would_do(example, alpha, seed):
    cases, rows, n_clients = example
    try:
        clients = deal_skewed(cases, rows, n_clients, alpha, seed)
    except UserError as error:
        if "one class" in str(error):
            assert cases.iloc[rows]["label"].nunique() == 1
            return
        expected = str(error).split("expected")[1]
        for larger in re.findall(r"alpha = ([0-9.]+)", expected):
            check_dealt(cases, rows, deal_skewed(cases, rows, n_clients, float(larger), seed), n_clients)
        for fewer in map(int, re.findall(r"n_clients = (\d+)", expected)):
            check_dealt(cases, rows, deal_skewed(cases, rows, fewer, alpha, seed), fewer)
        assert re.search(r"n_clients = \d|at most \d", expected)
    else:
        check_dealt(cases, rows, clients, n_clients)
        assert all(map(np.array_equal, clients, deal_skewed(cases, rows, n_clients, alpha, seed)))


def skew(cases, clients):
    """Mean distance of the clients' mixes of classes from that of all cases (total variation, 0 to 1)."""
    mix = [cases.iloc[own]["label"].value_counts(normalize=True) for own in [*clients, np.concatenate(clients)]]
    table = pd.DataFrame(mix).fillna(0).to_numpy()
    return np.abs(table[:-1] - table[-1]).sum(axis=1).mean() / 2


def test_a_small_alpha_skews_more_than_a_large_one():
    cases = pd.DataFrame({"patient": [str(n) for n in range(400)], "label": [f"class {n % 4}" for n in range(400)]})

    def mean_skew(alpha):
        return np.mean([skew(cases, deal_skewed(cases, np.arange(400), 4, alpha, seed)) for seed in range(20)])

    skews = [mean_skew(alpha) for alpha in (0.05, 0.5, 5, 500)]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.5
    assert skews[-1] < 0.05
    one, two = (deal_skewed(cases, np.arange(400), 4, 1, seed) for seed in (1, 2))
    assert not all(map(np.array_equal, one, two))


def test_classes_are_shared_out_as_drawn():
    """The share of a class at a client has the mean and the spread of a Dirichlet draw: 1/K and (K - 1) / K^2 (K a + 1)."""
    cases = pd.DataFrame({"patient": [str(n) for n in range(2000)], "label": ["x", "y"] * 1000})
    dealt = [deal_skewed(cases, np.arange(2000), 4, 2, seed) for seed in range(400)]
    share = np.array([[(own % 2 == 0).sum() / 1000 for own in clients] for clients in dealt])
    assert share.mean(axis=0) == pytest.approx([0.25] * 4, abs=0.03)
    assert share.var() == pytest.approx(3 / (16 * 9), rel=0.15)


@given(mixed())
def test_groups_are_dealt_whole_and_none_is_split(example):
    cases, rows, n_clients = example
    if cases.iloc[rows]["hospital"].nunique() < 2:
        return
    try:
        clients = deal_by_group(cases, rows, n_clients, "hospital")
    except UserError as error:
        fewer = int(re.search(r"at most (\d)", str(error))[1])
        assert fewer < n_clients
        check_dealt(cases, rows, deal_by_group(cases, rows, fewer, "hospital"), fewer)
        return
    check_dealt(cases, rows, clients, n_clients)
    names = cases.iloc[rows].groupby("patient")["hospital"].agg(lambda own: own.replace("", "(empty)").mode()[0])
    homes = [set(names[cases.iloc[own]["patient"]]) for own in clients]
    assert len(set.union(*homes)) == sum(map(len, homes)), "no group is at two clients"
    if n_clients == len(set(names)):
        sizes = [len(own) for own in clients]
        assert sizes == sorted(sizes, reverse=True), "each group is a client, the largest first"


def test_each_group_is_a_client_and_a_patient_of_two_stays_whole():
    hospital = ["A"] * 3 + ["B"] * 4 + ["A", "A", "B"] + [None] * 2
    patient = ["a1", "a2", "a3", "b1", "b2", "b3", "b4", "both", "both", "both", "u1", "u2"]
    cases = pd.DataFrame({"patient": patient, "label": "", "hospital": hospital})
    clients = deal_by_group(cases, np.arange(12), 3, "hospital")
    assert [own.tolist() for own in clients] == [[0, 1, 2, 7, 8, 9], [3, 4, 5, 6], [10, 11]]
    assert table(cases, clients, "hospital")["groups"].tolist() == ["A, B", "B", "(empty)"]
    two = deal_by_group(cases, np.arange(12), 2, "hospital")
    assert [own.tolist() for own in two] == [[0, 1, 2, 7, 8, 9], [3, 4, 5, 6, 10, 11]]


def test_what_by_group_cannot_do_is_refused_with_what_it_can():
    cases = pd.DataFrame({"patient": list("abcdefg"), "label": list("xyxyxyx"), "hospital": list("AAABBBC"), "one": "same"})
    cases["ml"] = np.arange(7) / 3
    with pytest.raises(UserError, match=r"n_clients = 3: 'hospital' has 3 groups.*at most 2 .*A 3, B 3, C 1"):
        deal_by_group(cases, np.arange(7), 3, "hospital")
    with pytest.raises(UserError, match=r"'one'.*values in it: 1; .*: label, hospital, ml$"):
        deal_by_group(cases, np.arange(7), 2, "one")
    assert len(deal_by_group(cases, np.arange(7), 2, "patient")) == 2, "a column that is not proposed may still be asked for"
    many = pd.DataFrame({"patient": [str(n) for n in range(60)], "label": "", "ml": np.arange(60) / 3})
    with pytest.raises(UserError, match=r"'ml'.*values in it: 60; .*\(there is none\)$"):
        deal_by_group(many, np.arange(60), 2, "ml")


def test_a_federation_trains_on_each_rule_and_the_reader_finds_it(images, tmp_path):
    rules = [{"partition": "label_skew", "alpha": 0.3}, {"partition": "by_group", "group_column": "scanner"}]
    configs = [run_config(images, "federated", rounds=1, n_clients=3, **rule) for rule in rules]
    store = RunStore(tmp_path)
    runs = [experiment.run(config, images, store) for config in [run_config(images, "centralized", rounds=1), *configs]]
    for run in runs[1:]:
        assert run.clients["n"].tolist() == [len(rows) for rows in execution.clients_of(run.config, images)]
        assert run.config.partition in run.config.run_id
    assert store.results()["partition"].tolist() == ["none", "by_group", "label_skew"]
    compared = analysis.compare(runs)
    assert compared["partition"].unique().tolist() == ["none", "label_skew", "by_group"]
    for picture in (plots.comparison(compared), plots.learning_curves(runs)):
        assert "3 clients, label skew" in picture.alt
        assert "3 clients, by group" in picture.alt
