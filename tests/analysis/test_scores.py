"""Scores of an arm: over seeds, per class, calibration, structures, clients; held to torchmetrics and counts by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from torchmetrics.functional import classification as torchmetrics

from fedlib import analysis
from fedlib.training.run_store import RunStore
from tests.stores import classified, segmented, shifted, write_classification, write_run, write_tables

CLASSES = ["Ab", "Cd", "Ef", "Gh"]


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path)


def drawn(n=200, seed=0, images_each=1):
    """A table of test cases with random probabilities, and the same as tensors (probabilities, truth)."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, n)
    logits = rng.normal(size=(n, 4)) + 1.5 * np.eye(4)[truth]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    table = pd.DataFrame(shares, columns=[f"p_{name}" for name in CLASSES])
    table["truth"], table["prediction"] = ([CLASSES[k] for k in of] for of in (truth, shares.argmax(axis=1)))
    table["case"], table["patient"] = [f"c{k}" for k in range(n)], [f"p{k // images_each}" for k in range(n)]
    return table, torch.tensor(shares), torch.tensor(truth)


def test_class_scores_confusion_and_calibration_are_those_of_torchmetrics(store):
    table, shares, truth = drawn()
    runs = [write_tables(store, "classification", "centralized", [table])]
    found = analysis.part_scores(runs)
    ours = found.pivot(index="class", columns="metric", values="value").loc[CLASSES]
    recall = torchmetrics.multiclass_recall(shares, truth, 4, average="none")
    specificity = torchmetrics.multiclass_specificity(shares, truth, 4, average="none")
    assert ours["sensitivity"].to_numpy() == pytest.approx(recall.numpy(), abs=1e-6)
    assert ours["specificity"].to_numpy() == pytest.approx(specificity.numpy(), abs=1e-6)
    assert (found["low"] <= found["value"]).all()
    assert (found["value"] <= found["high"]).all()
    of_class = table["truth"].value_counts()
    for metric, expected in (("sensitivity", of_class), ("specificity", 200 - of_class)):
        counted = found[found["metric"] == metric].set_index("class")["n_patients"]
        assert counted[CLASSES].tolist() == expected[CLASSES].tolist(), "the patients behind the figure"
    matrix = analysis.confusion(table)
    assert matrix.index.tolist() == matrix.columns.tolist() == CLASSES
    assert (matrix.to_numpy() == torchmetrics.multiclass_confusion_matrix(shares, truth, 4).numpy()).all()
    bins = analysis.calibration(runs)
    theirs = torchmetrics.multiclass_calibration_error(shares, truth, 4, n_bins=10, norm="l1")
    assert bins["ece"].unique() == pytest.approx([theirs.item()], abs=1e-6)
    assert bins["patients"].sum() == 200
    assert (bins["patients"] > 0).all()
    assert bins["confidence"].between(bins["low"], bins["high"]).all()


def test_a_patient_with_many_images_weighs_no_more(store):
    """Ten images of one patient, all wrong, against ten patients that are right."""
    many = classified({"a": [0] * 10}).assign(patient="only one")
    rest = classified({"a": [1] * 10, "b": [1] * 8, "c": [1] * 8}).assign(case=lambda table: "r" + table["case"])
    run = write_tables(store, "classification", "centralized", [pd.concat([many, rest], ignore_index=True)])
    found = analysis.part_scores([run]).set_index(["class", "metric"])
    assert found.loc[("a", "sensitivity"), "value"] == pytest.approx(10 / 11)
    assert found.loc[("a", "sensitivity"), "n_patients"] == 11
    assert analysis.compare([run]).set_index("metric").loc["accuracy", "value"] == pytest.approx(26 / 27)
    assert analysis.confusion(run.cases).loc["a", "b"] == pytest.approx(1)


@pytest.mark.filterwarnings("error")
def test_a_class_without_a_test_case_is_named_and_counts_nowhere(store):
    cases = classified({"a": [1] * 10, "b": [1] * 9 + [0]})  # the wrong one is called c
    run = write_tables(store, "classification", "centralized", [cases])
    found = analysis.part_scores([run]).set_index(["class", "metric"])
    assert np.isnan(found.loc[("c", "sensitivity"), "value"])
    assert found.loc[("c", "sensitivity"), ["how", "n_patients"]].tolist() == ["none: no patient has a score", 0]
    assert run.result["sensitivity"] == pytest.approx(0.95)
    assert (analysis.confusion(run.cases).loc["c"] == 0).all()


def test_a_patient_counts_once_under_all_models_of_an_arm(store):
    half, none = {"a": [1, 0] * 4, "b": [1] * 8}, {"a": [0] * 8, "b": [1] * 8}
    local = write_classification(store, "local", [half, none])
    found = analysis.part_scores([local]).set_index(["class", "metric"])
    assert found.loc[("a", "sensitivity"), "value"] == pytest.approx(0.25)
    assert analysis.calibration([local])["patients"].sum() == pytest.approx(16), "a patient counts once"


# Seeds


def test_the_spread_over_seeds_is_that_of_the_runs(store):
    runs = [write_run(store, "centralized", shifted([by] * 8), seed) for seed, by in ((1, 0.0), (2, 0.02), (3, 0.04))]
    runs += [write_run(store, "federated", shifted([by] * 8), seed) for seed, by in ((1, 0.01), (2, 0.01))]
    table = analysis.seed_spread(runs).set_index(["mode", "metric"])
    central, federated = table.loc[("centralized", "dice_LV")], table.loc[("federated", "dice_LV")]
    assert (central["seeds"], central["sd"]) == ("1, 2, 3", pytest.approx(0.02))
    assert central["most"] - central["least"] == pytest.approx(0.04)
    assert federated["difference_mean"] == pytest.approx(0), "+0.01 and -0.01 from the run of the same seed"
    assert federated["difference_sd"] == pytest.approx(np.std([0.01, -0.01], ddof=1))
    alone = analysis.seed_spread(runs[:1])
    assert alone["sd"].isna().all(), "one seed has no spread"


# Structures


def test_a_missed_structure_counts_in_dice_and_is_counted_beside_the_distances(store):
    cases = segmented({f"p{n}": [0.8] for n in range(8)} | {"p8": [0.0], "p9": [np.nan]})
    distances = [2.0] * 8 + [np.nan] * 2
    cases = cases.assign(hd95_LV=distances, hd95_Myo=distances, assd_LV=1.0, assd_Myo=1.0)
    cases.loc[8:, ["assd_LV", "assd_Myo"]] = np.nan
    table = analysis.part_scores([write_tables(store, "segmentation", "centralized", [cases])])
    table = table[table["structure"] == "LV"].set_index("metric")
    assert table.loc["dice", "value"] == pytest.approx(0.8 * 8 / 9)
    assert table.loc["hd95", "value"] == 2.0
    assert table["missed"].tolist() == [1, 1, 1]
    assert table["absent"].tolist() == [1, 1, 1]
    assert table["n_patients"].tolist() == [9, 8, 8]
    assert table.loc["hd95", "how"] == "none: all patients are equal"
