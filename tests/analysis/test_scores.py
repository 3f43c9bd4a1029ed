"""Scores of an arm: over seeds, per class, calibration, structures, clients; held to torchmetrics and counts by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional import classification as torchmetrics

from fedlib import analysis, tasks
from fedlib.analysis import scores
from fedlib.study import experiment
from fedlib.training.run_store import RunStore
from tests.helpers import run_config
from tests.stores import central_dice, classified, segmented, shifted, write_classification, write_run, write_tables

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


def test_rates_of_each_class_are_those_of_torchmetrics(store):
    table, shares, truth = drawn()
    found = analysis.class_scores([write_tables(store, "classification", "centralized", [table])])
    ours = found.pivot(index="class", columns="metric", values="value")
    options = {"num_classes": 4, "average": "none"}
    theirs = {
        "sensitivity": torchmetrics.multiclass_recall(shares, truth, **options),
        "specificity": torchmetrics.multiclass_specificity(shares, truth, **options),
        "ppv": torchmetrics.multiclass_precision(shares, truth, **options),
        "f1": torchmetrics.multiclass_f1_score(shares, truth, **options),
        "auroc": torchmetrics.multiclass_auroc(shares, truth, **options),
    }
    for metric, values in theirs.items():
        assert ours.loc[CLASSES, metric].to_numpy() == pytest.approx(values.numpy(), abs=1e-6), metric
        assert ours.loc["macro", metric] == pytest.approx(values.mean().item(), abs=1e-6), metric
    with_interval = found[found["low"].notna()]
    assert set(with_interval["metric"]) == {"sensitivity", "specificity"}
    assert (with_interval["low"] <= with_interval["value"]).all()
    assert (with_interval["value"] <= with_interval["high"]).all()


def test_confusion_and_calibration_are_those_of_torchmetrics(store):
    table, shares, truth = drawn()
    runs = [write_tables(store, "classification", "centralized", [table])]
    matrix = analysis.confusion(runs).pivot(index="truth", columns="prediction", values="patients").loc[CLASSES, CLASSES]
    assert (matrix.to_numpy() == torchmetrics.multiclass_confusion_matrix(shares, truth, 4).numpy()).all()
    bins = analysis.calibration(runs)
    theirs = torchmetrics.multiclass_calibration_error(shares, truth, 4, n_bins=10, norm="l1")
    assert bins["ece"].unique() == pytest.approx([theirs.item()], abs=1e-6)
    assert bins["patients"].sum() == 200
    filled = bins[bins["patients"] > 0]
    assert filled["confidence"].between(filled["low"], filled["high"]).all()
    assert bins.loc[bins["patients"] == 0, ["confidence", "accuracy"]].isna().all().all()


def test_a_patient_with_many_images_weighs_no_more(store):
    """Ten images of one patient, all wrong, against ten patients that are right."""
    many = classified({"a": [0] * 10}).assign(patient="only one")
    rest = classified({"a": [1] * 10, "b": [1] * 8, "c": [1] * 8}).assign(case=lambda table: "r" + table["case"])
    run = write_tables(store, "classification", "centralized", [pd.concat([many, rest], ignore_index=True)])
    found = analysis.class_scores([run]).set_index(["class", "metric"])
    assert found.loc[("a", "sensitivity"), "value"] == pytest.approx(10 / 11)
    assert found.loc[("a", "sensitivity"), "n_patients"] == 11
    assert analysis.compare([run]).set_index("metric").loc["accuracy", "value"] == pytest.approx(26 / 27)
    matrix = analysis.confusion([run]).set_index(["truth", "prediction"])
    assert matrix.loc[("a", "b"), "patients"] == pytest.approx(1)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(1, 3)), min_size=2, max_size=25))
def test_weights_in_auroc_are_repetitions(rows):
    score, positive, weight = (pd.Series(column) for column in zip(*rows, strict=True))
    if 0 < positive.sum() < len(positive):
        every = [column.repeat(weight) for column in (score, positive, weight * 0 + 1)]
        assert scores.auroc(score, positive, weight) == pytest.approx(scores.auroc(*every))
        assert scores.auroc(-score, positive, weight) == pytest.approx(1 - scores.auroc(score, positive, weight))


@pytest.mark.filterwarnings("error")
def test_a_class_without_a_test_case_is_named_and_counts_nowhere(store):
    cases = classified({"a": [1] * 10, "b": [1] * 9 + [0]})  # the wrong one is called c
    run = write_tables(store, "classification", "centralized", [cases])
    found = analysis.class_scores([run]).set_index(["class", "metric"])
    assert found.loc["c", "value"].isna().all()
    assert set(found.loc["c", "note"]) == {"no test case of this class"}
    assert found.loc[("macro", "sensitivity"), "value"] == pytest.approx(0.95)
    assert found.loc[("macro", "sensitivity"), "note"] == "mean over 2 of 3 classes"
    assert run.result["sensitivity"] == pytest.approx(0.95), "and so says results.csv"
    assert analysis.confusion([run]).set_index("truth").loc["c", "share"].isna().all()


@pytest.mark.filterwarnings("error")
def test_a_class_that_is_never_predicted_has_no_ppv(store):
    run = write_tables(store, "classification", "centralized", [classified({"a": [1] * 8, "b": [0] * 8, "c": [1] * 8})])
    found = analysis.class_scores([run]).set_index(["class", "metric"])
    assert np.isnan(found.loc[("b", "ppv"), "value"])
    assert found.loc[("b", "ppv"), "note"] == "never predicted"
    assert (found.loc[("b", "sensitivity"), "value"], found.loc[("b", "f1"), "value"]) == (0, 0)


def test_models_of_an_arm_are_scored_one_by_one(store):
    half, none = {"a": [1, 0] * 4, "b": [1] * 8}, {"a": [0] * 8, "b": [1] * 8}
    local = write_classification(store, "local", [half, none])
    found = analysis.class_scores([local]).set_index(["class", "metric"])
    assert found.loc[("a", "sensitivity"), "value"] == pytest.approx(0.25)
    assert analysis.confusion([local])["patients"].sum() == pytest.approx(16), "a mean over the clients' models"
    assert analysis.calibration([local])["patients"].sum() == pytest.approx(16)


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
    table = analysis.structure_scores([write_tables(store, "segmentation", "centralized", [cases])])
    table = table[table["structure"] == "LV"].set_index("metric")
    assert table.loc["dice", "value"] == pytest.approx(0.8 * 8 / 9)
    assert table.loc["hd95", "value"] == 2.0
    assert table["missed"].tolist() == [1, 1, 1]
    assert table["absent"].tolist() == [1, 1, 1]
    assert table["scored"].tolist() == [9, 8, 8]
    assert table.loc["hd95", "how"] == "none: all patients are equal"


# Clients


def test_clients_of_real_runs(images, tmp_path):
    store = RunStore(tmp_path)
    configs = [run_config(images, mode, rounds=1, n_clients=2) for mode in ("local", "federated")]
    runs = experiment.run_all(configs, images, store, report=str)
    table = analysis.client_scores(runs)
    assert list(table.groupby(["mode", "model", "scored_on"]).size().items()) == [
        (("federated", "global", "own training cases"), 4), (("local", "own", "test set"), 4)]  # fmt: skip
    right = runs[0].cases["truth"] == runs[0].cases["prediction"]
    by_patient = right.groupby([runs[0].cases["client"], runs[0].cases["patient"]]).mean()
    local = table[(table["mode"] == "local") & (table["metric"] == "accuracy")].set_index("client")
    assert local["value"].tolist() == pytest.approx(by_patient.groupby("client").mean().tolist())
    held = images.cases[images.cases["split"] == "train"]["patient"].nunique()
    federated = table[table["mode"] == "federated"]
    assert federated.groupby("metric")["n_patients"].sum().tolist() == [held, held], "no patient is at two clients"
    assert table["value"].between(0, 1).all()
    assert analysis.client_scores(runs[:1])["model"].unique().tolist() == ["own"]


def test_a_real_run_is_sound_and_has_every_table(prepared, tmp_path):
    for task, data in prepared.items():
        store = RunStore(tmp_path / task)
        configs = [run_config(data, mode, rounds=1) for mode in ("centralized", "local", "federated")]
        runs, problems = analysis.sound(experiment.run_all(configs, data, store, report=str))
        assert (len(runs), len(problems)) == (3, 0)
        assert len(analysis.compare(runs)) == 3 * len(tasks.get(task).PRIMARY)
        per_part = analysis.class_scores if task == "classification" else analysis.structure_scores
        assert len(per_part(runs)) == 3 * (25 if task == "classification" else 6)


def test_the_mean_of_one_image_a_patient_is_that_of_results_csv(store):
    run = write_run(store, "centralized", {patient: values[:1] for patient, values in central_dice().items()})
    assert analysis.compare([run])["value"].tolist() == pytest.approx([run.result[m] for m in ("dice_LV", "dice_Myo")])
