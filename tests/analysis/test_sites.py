"""Whether joining is worth it: each model on the test cases of each site, against tables made by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fedlib import analysis
from fedlib.analysis import inference
from fedlib.config import UserError
from fedlib.training.run_store import RunStore
from fedlib.views import plots
from tests.stores import classified, segmented, write_tables

TEST = {"a": [1] * 8, "b": [1] * 8}
"""Answers of a model that is always right, about eight patients of each class."""


def prepared():
    """A set with two wards, each with the patients of a class."""
    train = pd.DataFrame({"case": [f"t{n}" for n in range(8)], "patient": [f"t{n}" for n in range(8)], "split": "train"})
    train["label"], train["ward"] = ["a"] * 4 + ["b"] * 4, ["one"] * 4 + ["two"] * 4
    tested = classified(TEST, "ab")[["case", "patient", "truth"]].rename(columns={"truth": "label"})
    tested["ward"] = tested["label"].map({"a": "one", "b": "two"})
    cases = pd.concat([train, tested.assign(split="test")], ignore_index=True)
    rows = {split: np.flatnonzero(cases["split"] == split) for split in ("train", "test")}
    return SimpleNamespace(cases=cases, split=rows.get, fingerprint="f", folder="set")


WARDS = {"partition": "by_group", "group_column": "ward"}


@pytest.fixture
def runs(tmp_path):
    """Two local models that know one class each, a federation that knows a and half of b, and FedBN that knows both."""
    half = [1, 0] * 4
    store, local = RunStore(tmp_path), [{"a": [1] * 8, "b": [0] * 8}, {"a": [0] * 8, "b": [1] * 8}]
    own = [write_tables(store, "classification", "local", [classified(right, "ab") for right in local], **WARDS)]
    own.append(write_tables(store, "classification", "federated", [classified({"a": [1] * 8, "b": half}, "ab")], **WARDS))
    right = pd.concat([classified(TEST, "ab").assign(client=client) for client in range(2)], ignore_index=True)
    own.append(write_tables(store, "classification", "federated", [right], **WARDS, batch_norm="local"))
    return own


def test_every_model_is_scored_on_the_cases_of_each_site(runs):
    table = analysis.by_site(runs, prepared(), "accuracy")
    scores = table.pivot(index="model", columns="site", values="value")
    assert scores.to_dict("index") == {
        "local 1": {1: 1.0, 2: 0.0}, "local 2": {1: 0.0, 2: 1.0}, "federated": {1: 1.0, 2: 0.5}, "FedBN": {1: 1.0, 2: 1.0},
    }  # fmt: skip
    assert set(table["n_patients"]) == {8}


def test_differences_are_from_the_site_s_own_model_paired_by_patient(runs):
    table = analysis.by_site(runs, prepared(), "accuracy").set_index(["model", "site"])
    assert table["difference"].dropna().to_dict() == {
        **{("local 2", 1): -1, ("local 1", 2): -1, ("federated", 1): 0, ("federated", 2): -0.5},
        **{("FedBN", 1): 0, ("FedBN", 2): 0},
    }  # fmt: skip
    expected = inference.interval([np.array([0, -1] * 4)], 0.05, (-1, 1))
    found = table.loc[("federated", 2), ["difference", "difference_low", "difference_high"]]
    assert found.tolist() == pytest.approx(list(expected[:3]))
    assert table.loc[("federated", 2), "direction"] == "lower"


def test_in_words_and_as_a_matrix(runs):
    table = analysis.by_site(runs, prepared(), "accuracy")
    words = analysis.worth_joining(table)
    assert words.startswith(
        "*federated* is better than the site's own model at 0 of 2 sites and worse at 1 (beyond chance: 0 and 1); "
    )
    assert words.endswith(
        "*FedBN* is better than the site's own model at 0 of 2 sites and worse at 0 (beyond chance: 0 and 0)"
    )
    matrix = analysis.site_matrix(table)
    assert list(matrix.index) == ["test patients", "local 1", "local 2", "federated", "FedBN"]
    assert list(matrix.columns) == ["site 1", "site 2"]
    assert matrix.loc["test patients"].tolist() == ["8", "8"]
    assert matrix.loc["federated", "site 2"].startswith("0.500 [")


def test_a_site_without_test_cases_is_named_and_scored_by_nobody(runs):
    data = prepared()
    data.cases["ward"] = data.cases["ward"].mask(data.cases["split"] == "test", "one")
    table = analysis.by_site(runs, data, "accuracy")
    second = table[table["site"] == 2]
    assert set(second["n_patients"]) == {0}
    assert second[["value", "difference", "direction"]].isna().all(axis=None)
    assert analysis.worth_joining(table).startswith(
        "no test case at site 2; *federated* is better than the site's own model at 1 of 1 sites"
    )
    assert analysis.site_matrix(table)["site 2"].tolist() == ["0", "", "", "", ""]
    picture = plots.by_site({"by ward": table})
    assert "by ward, federated: 0.750 +0.250, no test case" in picture.alt
    assert len(picture.figure.axes[0].texts) == 4, "nothing is written where nobody was tested"


def test_without_local_models_there_are_scores_and_no_comparison(runs):
    table = analysis.by_site(runs[1:], prepared(), "accuracy")
    assert table["difference"].isna().all()
    assert "federated: 1.000, 0.500; " in plots.by_site({"by ward": table}).alt
    assert analysis.worth_joining(table) == "no local model to compare with"
    assert analysis.alone_and_together(runs[1:2]) == {}


def test_runs_of_other_clients_or_of_another_set_are_refused(runs, tmp_path):
    data = prepared()
    other = write_tables(RunStore(tmp_path), "classification", "local", [classified(TEST, "ab")] * 2, seed=2, **WARDS)
    with pytest.raises(UserError, match="same clients"):
        analysis.by_site([runs[0], other], data, "accuracy")
    data.fingerprint = "another"
    with pytest.raises(UserError, match="trained on set"):
        analysis.by_site(runs, data, "accuracy")


def test_a_patient_with_two_volumes_counts_once(tmp_path):
    """Without classes the sites share all cases; DSC is a mean over patients of means over their volumes."""
    train = {"case": ["t0", "t1", "t2"], "patient": ["t0", "t1", "t2"], "split": "train", "label": ""}
    tested = segmented({"p1": [0.9, 0.7], "p2": [0.6]})
    cases = pd.concat([pd.DataFrame(train), tested.assign(split="test", label="")], ignore_index=True)
    rows = {split: np.flatnonzero(cases["split"] == split) for split in ("train", "test")}
    data = SimpleNamespace(cases=cases, split=rows.get, fingerprint="f", folder="set")
    run = write_tables(RunStore(tmp_path), "segmentation", "federated", [tested], n_clients=1)
    [row] = analysis.by_site([run], data, "dice_LV").to_dict("records")
    assert (row["value"], row["n_patients"]) == (pytest.approx(0.7), 2)


def test_pairs_have_the_most_clients_that_leave_a_site_patients(tmp_path):
    store, runs = RunStore(tmp_path), []
    for n_clients, partition in ((2, "balanced"), (4, "balanced"), (4, "unbalanced")):
        for mode in ("local", "federated"):
            tables = [classified(TEST, "ab")] * (n_clients if mode == "local" else 1)
            for seed in (1, 2)[mode == "federated" :]:
                arm = {"n_clients": n_clients, "partition": partition}
                runs.append(write_tables(store, "classification", mode, tables, seed, **arm))
    pairs = analysis.alone_and_together(runs)  # 16 patients: eight a site of two, four a site of four
    found = {
        name: [(run.config.mode, run.config.n_clients, run.config.seed) for run in pair] for name, pair in pairs.items()
    }
    assert found == {name: [("local", n, 2), ("federated", n, 2)] for name, n in (("balanced", 2), ("unbalanced", 4))}


def test_the_picture_has_every_cell_and_colours_it_by_the_difference(runs):
    table = analysis.by_site(runs, prepared(), "accuracy")
    picture = plots.by_site({"by_group": table, "again": table})
    assert len(picture.table) == 2 * len(table)
    assert "by_group, federated: 1.000 +0.000, 0.500 -0.500" in picture.alt
    assert picture.width <= 640
    first = picture.figure.axes[0]
    assert {text.get_text() for text in first.texts} >= {"1.000\nown", "0.500\n-0.500", "1.000\n+0.000"}
    assert [label.get_text() for label in first.get_xticklabels()] == ["site 1\nn = 8", "site 2\nn = 8"]


def test_where_nothing_differs_no_cell_is_coloured(runs):
    table = analysis.by_site(runs, prepared(), "accuracy").assign(difference=0.0)
    (cells,) = plots.by_site({"alike": table}).figure.axes[0].collections
    assert (cells.cmap(cells.norm(cells.get_array()))[..., :3] > 0.9).all()
