"""Partitions: disjoint, complete and patient-disjoint, whatever the cases are; each rule by what it promises."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedlib import analysis
from fedlib.config import RunConfig, UserError
from fedlib.data.partition import MIN_CASES, client_shares, clients_of, deal_alike, held_out, partition, table
from fedlib.study import experiment
from fedlib.training.run_store import RunStore
from fedlib.views import plots
from tests.helpers import SIZES, run_config


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


def check_partition(cases, rows, clients, n_clients):
    assert len(clients) == n_clients
    assert sorted(np.concatenate(clients)) == sorted(rows)
    assert min(map(len, clients)) >= MIN_CASES
    patients = [set(cases.iloc[own]["patient"]) for own in clients]
    assert len(set.union(*patients)) == sum(map(len, patients)), "no patient is at two clients"


def partitioned(rule, cases, rows, n_clients, seed=0, **settings):
    """Partition rows of a made-up table of cases, under a run's configuration."""
    about = {"task": "classification", "mode": "local", "data_fingerprint": "aa", "n_missing": 1, "alpha": 0.3}
    values = SIZES | about | {"unbalance_ratio": 3, "partition": rule, "n_clients": n_clients, "seed": seed}
    return partition(RunConfig(**values | settings), cases, rows)


RULES = ("balanced", "quantity_skew", "unbalanced", "label_skew", "missing_classes")


@pytest.mark.parametrize("rule", RULES)
@given(example=mixed(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_every_rule_gives_whole_patients_and_every_case_once_or_refuses(rule, example, seed):
    cases, rows, k = example
    try:
        clients = partitioned(rule, cases, rows, k, seed)
    except UserError:  # what is refused, and how, is tested below
        return
    assert len(clients) == k
    assert sorted(np.concatenate(clients)) == sorted(rows)
    patients = [set(cases.iloc[own]["patient"]) for own in clients]
    assert len(set.union(*patients)) == sum(map(len, patients)), "no patient is at two clients"
    assert all(map(np.array_equal, clients, partitioned(rule, cases, rows, k, seed))), "the seed alone decides"


def phantom_cases(per_class, names="abcd"):
    """One image a patient, so many of each class."""
    labels = [name for name in names for _ in range(per_class)]
    return pd.DataFrame({"patient": [str(n) for n in range(len(labels))], "label": labels})


@pytest.mark.parametrize("rule", ["balanced", "unbalanced", "label_skew", "missing_classes"])
def test_another_seed_gives_other_patients(rule):
    cases = phantom_cases(30)
    one, two = (partitioned(rule, cases, np.arange(120), 3, seed) for seed in (1, 2))
    assert not all(map(np.array_equal, one, two))


@given(per_class=st.integers(8, 40), k=st.integers(1, 8), seed=st.integers(0, 99))
@settings(deadline=None)
def test_balanced_gives_every_client_its_share_of_every_class(per_class, k, seed):
    cases = phantom_cases(per_class)
    clients = partitioned("balanced", cases, np.arange(len(cases)), k, seed)
    counts = np.array([cases.iloc[own]["label"].value_counts().reindex(list("abcd"), fill_value=0) for own in clients])
    assert np.ptp(counts, axis=0).max() <= 1


@pytest.mark.parametrize(("k", "ratio"), [(2, 4), (8, 4), (16, 3)])
def test_quantity_skew_falls_geometrically_by_the_stated_ratio(k, ratio):
    wanted = client_shares(k, ratio)
    cases = phantom_cases(1000, "a")
    assert wanted[0] / wanted[-1] == pytest.approx(ratio)
    assert np.ptp(wanted[1:] / wanted[:-1]) == pytest.approx(0)
    clients = partitioned("quantity_skew", cases, np.arange(1000), k, unbalance_ratio=ratio)
    assert np.abs([len(own) for own in clients] - 1000 * wanted).max() <= 1


@pytest.mark.parametrize(("rule", "alpha"), [("unbalanced", 1.0), ("label_skew", 0.5), ("label_skew", 2.0)])
def test_shares_of_a_class_are_dirichlet_draws(rule, alpha):
    """A client's share of a class is Beta(alpha, (K - 1) alpha): Kolmogorov and Smirnov, 300 seeds, against SciPy's."""
    cases, rows = phantom_cases(500, "ab"), np.arange(1000)
    shares = [(partitioned(rule, cases, rows, 4, seed, alpha=alpha)[0] < 500).sum() / 500 for seed in range(300)]
    assert stats.kstest(shares, stats.beta(alpha, 3 * alpha).cdf).pvalue > 0.01


def test_unbalanced_clients_of_the_authors_set_look_like_theirs():
    """16,930 training images and 8 clients: the authors had 511 to 4,030 images; both lie within the range over 40 seeds."""
    counts = {"COVID": 2893, "Lung_Opacity": 4810, "Normal": 8153, "Viral Pneumonia": 1074}
    labels = [name for name, n in counts.items() for _ in range(n)]
    cases = pd.DataFrame({"patient": np.arange(len(labels)).astype(str), "label": labels})
    sizes = np.array(
        [[len(own) for own in partitioned("unbalanced", cases, np.arange(len(labels)), 8, seed)] for seed in range(40)]
    )
    assert np.quantile(sizes.min(1), 0.05) < 511 < np.quantile(sizes.min(1), 0.95)
    assert np.quantile(sizes.max(1), 0.05) < 4030 < np.quantile(sizes.max(1), 0.95)


@given(
    per_class=st.integers(16, 60), k=st.integers(2, 16), seed=st.integers(0, 99), names=st.sampled_from(["a", "ab", "abcd"])
)
@settings(deadline=None)
def test_under_unbalanced_every_client_can_train(per_class, k, seed, names):
    """A patient of every class; enough patients are the only condition."""
    cases = phantom_cases(2 * per_class, names)
    clients = partitioned("unbalanced", cases, np.arange(len(cases)), k, seed)
    assert sorted(np.concatenate(clients)) == list(range(len(cases)))
    assert all(set(cases.iloc[own]["label"]) == set(names) for own in clients)


@pytest.mark.parametrize(("n_missing", "k"), [(1, 4), (2, 2), (2, 4), (2, 8), (1, 2)])
def test_missing_classes_are_missing_and_every_class_is_at_some_client(n_missing, k):
    cases = phantom_cases(40)
    clients = partitioned("missing_classes", cases, np.arange(160), k, 3, n_missing=n_missing)
    check_partition(cases, np.arange(160), clients, k)
    held = [set(cases.iloc[own]["label"]) for own in clients]
    assert [4 - len(own) for own in held] == [n_missing] * k
    assert set.union(*held) == set("abcd")


def skew(cases, clients):
    """Mean distance of the clients' mixes of classes from that of all cases (total variation, 0 to 1)."""
    mix = [cases.iloc[own]["label"].value_counts(normalize=True) for own in [*clients, np.concatenate(clients)]]
    shares = pd.DataFrame(mix).fillna(0).to_numpy()
    return np.abs(shares[:-1] - shares[-1]).sum(axis=1).mean() / 2


def test_a_small_alpha_skews_more_than_a_large_one():
    cases, rows = phantom_cases(100), np.arange(400)

    def mean_skew(alpha):
        return np.mean([skew(cases, partitioned("label_skew", cases, rows, 4, seed, alpha=alpha)) for seed in range(20)])

    skews = [mean_skew(alpha) for alpha in (0.05, 0.5, 5, 500)]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.5
    assert skews[-1] < 0.05


@pytest.mark.parametrize(
    ("rule", "cases", "k", "words"),
    [
        ("balanced", pd.DataFrame({"patient": list("aabcdef"), "label": ["rare"] * 3 + ["common"] * 4}), 3, "'rare' has 2"),
        ("unbalanced", phantom_cases(3), 4, "'a' has 3"),
        ("unbalanced", phantom_cases(3, "a"), 4, "'a' has 3.*at least 4"),
        ("label_skew", phantom_cases(9, "a"), 2, "one class; expected unbalanced"),
        ("label_skew", phantom_cases(2, "ab"), 4, "alpha = 0.3, n_clients = 4: some client"),
        ("missing_classes", phantom_cases(9, "a"), 2, "n_missing = 1: .* of 1 classes"),
        ("missing_classes", phantom_cases(9, "abc"), 1, "n_clients = 1: no client would hold '[abc]'"),
    ],
)
def test_what_a_rule_cannot_do_is_refused_in_one_line(rule, cases, k, words):
    with pytest.raises(UserError, match=words) as caught:
        partitioned(rule, cases, np.arange(len(cases)), k, 0)
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_table_counts_cases(images):
    rows = images.split("train")
    counts = table(images.cases, partitioned("unbalanced", images.cases, rows, 2, 1))
    assert counts["total"].sum() == len(rows)
    assert (counts[images.classes].sum(axis=1) == counts["total"]).all()
    assert counts[images.classes].sum().to_dict() == images.cases.iloc[rows]["label"].value_counts().to_dict()
    assert counts["share"].sum() == pytest.approx(1, abs=0.01)


@given(mixed())
def test_groups_are_dealt_whole_and_none_is_split(example):
    cases, rows, n_clients = example
    if cases.iloc[rows]["hospital"].nunique() < 2:
        return
    try:
        clients = partitioned("by_group", cases, rows, n_clients, group_column="hospital")
    except UserError:  # what is refused, and how, is tested below
        check_partition(cases, rows, partitioned("by_group", cases, rows, 1, group_column="hospital"), 1)
        return
    check_partition(cases, rows, clients, n_clients)
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
    clients = partitioned("by_group", cases, np.arange(12), 3, group_column="hospital")
    assert [own.tolist() for own in clients] == [[0, 1, 2, 7, 8, 9], [3, 4, 5, 6], [10, 11]]
    assert table(cases, clients, "hospital")["groups"].tolist() == ["A, B", "B", "(empty)"]
    two = partitioned("by_group", cases, np.arange(12), 2, group_column="hospital")
    assert [own.tolist() for own in two] == [[0, 1, 2, 7, 8, 9], [3, 4, 5, 6, 10, 11]]


def test_what_by_group_cannot_do_is_refused_with_what_it_can():
    cases = pd.DataFrame({"patient": list("abcdefg"), "label": list("xyxyxyx"), "hospital": list("AAABBBC"), "one": "same"})
    cases["ml"] = np.arange(7) / 3
    with pytest.raises(UserError, match=r"n_clients = 3: 'hospital' has 3 groups.*A 3, B 3, C 1.*expected fewer clients"):
        partitioned("by_group", cases, np.arange(7), 3, group_column="hospital")
    with pytest.raises(UserError, match=r"'one'.*values in it: 1; .*: label, hospital, ml$"):
        partitioned("by_group", cases, np.arange(7), 2, group_column="one")
    assert len(partitioned("by_group", cases, np.arange(7), 2, group_column="patient")) == 2, (
        "a column that is not proposed may still be asked for"
    )
    many = pd.DataFrame({"patient": [str(n) for n in range(60)], "label": "", "ml": np.arange(60) / 3})
    with pytest.raises(UserError, match=r"'ml'.*values in it: 60; .*\(there is none\)$"):
        partitioned("by_group", many, np.arange(60), 2, group_column="ml")


def test_a_federation_trains_on_each_rule_and_the_reader_finds_it(images, tmp_path):
    rules = [
        {"partition": "label_skew", "alpha": 0.3},
        {"partition": "missing_classes", "n_missing": 2},
        {"partition": "by_group", "group_column": "scanner"},
    ]
    configs = [run_config(images, "federated", rounds=1, n_clients=3, **rule) for rule in rules]
    store = RunStore(tmp_path)
    runs = [experiment.run(config, images, store) for config in [run_config(images, "centralized", rounds=1), *configs]]
    for run in runs[1:]:
        assert run.clients["n"].tolist() == [len(rows) for rows in clients_of(run.config, images)]
        assert run.config.partition in run.config.run_id
    assert store.results()["partition"].tolist() == ["none", "by_group", "label_skew", "missing_classes"]
    compared = analysis.compare(runs)
    assert compared["partition"].unique().tolist() == ["none", "label_skew", "missing_classes", "by_group"]
    for picture in (plots.comparison(compared), plots.learning_curves(runs)):
        assert "3 clients, label skew" in picture.alt
        assert "3 clients, by group" in picture.alt


@pytest.mark.parametrize("rule", [*RULES, "by_group"])
@given(example=mixed(), seed=st.integers(0, 99))
@settings(max_examples=50)
def test_other_cases_are_dealt_whole_to_sites_as_the_training_cases_are(rule, example, seed):
    cases, rows, k = example
    try:
        clients = partitioned(rule, cases, rows, k, seed, group_column="hospital")
    except UserError:
        return
    config = RunConfig(**SIZES, task="classification", mode="local", data_fingerprint="aa", partition=rule, n_clients=k,
                       seed=seed, group_column="hospital")  # fmt: skip
    others = np.setdiff1d(np.arange(len(cases)), rows)
    sites = deal_alike(config, cases, clients, others)
    assert len(sites) == k
    dealt = np.concatenate(sites)
    assert len(set(dealt)) == len(dealt)
    assert set(dealt) <= set(others)
    homes = [set(cases.iloc[own]["patient"]) for own in sites]
    assert len(set.union(*homes)) == sum(map(len, homes)), "no patient is at two sites"
    assert all(map(np.array_equal, sites, deal_alike(config, cases, clients, others))), "the seed alone decides"
    column = "hospital" if rule == "by_group" else "label"
    kinds = pd.crosstab(cases["patient"], cases[column]).idxmax(axis=1)
    known = kinds[cases["patient"].iloc[rows]].unique()
    left = np.setdiff1d(others, dealt)
    assert not kinds[cases["patient"].iloc[left]].isin(known).any(), "all but patients of a kind that nobody trains on"
    for client, own in zip(clients, sites, strict=True):
        assert set(kinds[cases["patient"].iloc[own]]) <= set(kinds[cases["patient"].iloc[client]]), "no kind that it lacks"


@given(held=st.lists(st.lists(st.integers(0, 30), min_size=4, max_size=4), min_size=1, max_size=6), n=st.integers(0, 40))
def test_a_site_has_its_share_of_each_class_rounded_up_or_down(held, n):
    """One case a patient; `held` has the training cases of each client by class, and `n` test cases are of each class."""
    labels = [
        (client, name)
        for client, counts in enumerate(held)
        for name, c in zip("abcd", counts, strict=True)
        for _ in range(c)
    ]
    test = [(-1, name) for name in "abcd" for _ in range(n)]
    cases = pd.DataFrame([*labels, *test], columns=["client", "label"])
    cases["patient"] = cases.index.astype(str)
    clients = [np.flatnonzero(cases["client"] == client) for client in range(len(held))]
    config = RunConfig(**SIZES, task="classification", mode="local", data_fingerprint="aa", partition="unbalanced",
                       n_clients=len(held), seed=1)  # fmt: skip
    sites = deal_alike(config, cases, clients, np.flatnonzero(cases["client"] == -1))
    found = np.array([[(cases["label"].iloc[own] == name).sum() for name in "abcd"] for own in sites])
    trained = np.array(held).sum(axis=0)
    wanted = n * np.array(held) / np.maximum(trained, 1)
    assert (np.abs(found - wanted) < 1).all()
    assert found.sum(axis=0).tolist() == [n * bool(total) for total in trained]


def test_test_cases_of_a_group_are_at_its_client_s_site(images):
    config = run_config(images, "federated", n_clients=3, partition="by_group", group_column="scanner")
    sites = held_out(config, images)
    assert sorted(np.concatenate(sites)) == list(images.split("test"))
    for client, site in zip(clients_of(config, images), sites, strict=True):
        assert set(images.cases["scanner"].iloc[site]) <= set(images.cases["scanner"].iloc[client])
