"""Statistics on a store made by hand: paired differences, patients as the unit, and readings that claim no equality."""

import numpy as np
import pandas as pd
import pytest

from fedlib import statistics, tasks
from fedlib.config import RunConfig
from fedlib.runs import RunStore
from tests.helpers import ARMS, SIZES

CENTRAL = {"p1": [0.9, 0.7], "p2": [0.6], "p3": [0.4], "p4": [0.8], "p5": [0.5]}  # p1 has two test volumes


def write_run(store, mode, dice, seed=1, **changes):
    """A finished segmentation run with the given Dice of each patient's cases; Myo is half of LV."""
    base = SIZES | ARMS[mode] | {"task": "segmentation", "mode": mode, "seed": seed, "data_fingerprint": "f"}
    record = store.begin(RunConfig(**base | changes))
    rows = [{"case": f"{p}-{n}", "patient": p, "dice_LV": d} for p, all_of in dice.items() for n, d in enumerate(all_of)]
    record.log_cases(pd.DataFrame(rows).assign(dice_Myo=lambda table: table["dice_LV"] / 2))
    return record.finish({}, {})


def shifted(by):
    return {patient: [value + by[n] for value in values] for n, (patient, values) in enumerate(CENTRAL.items())}


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path)


def row_of(table, metric="dice_LV", **arm):
    for name, value in {"metric": metric, **arm}.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_differences_are_paired_by_patient(store):
    by = [-0.1, 0.02, -0.03, 0.04, -0.2]
    runs = [write_run(store, "centralized", CENTRAL), write_run(store, "federated", shifted(by))]
    table = statistics.compare(runs)
    central, federated = row_of(table, mode="centralized"), row_of(table, mode="federated")
    assert central["value"] == pytest.approx(np.mean([0.8, 0.6, 0.4, 0.8, 0.5])), "p1 counts once"
    assert central["n_patients"] == 5
    assert np.isnan(central["difference"])
    assert federated["difference"] == pytest.approx(np.mean(by))
    assert federated["difference_low"] < federated["difference"] < federated["difference_high"]
    assert row_of(table, "dice_Myo", mode="federated")["difference"] == pytest.approx(np.mean(by) / 2)


def test_pairing_is_by_name_and_not_by_place(store):
    back_to_front = dict(reversed(shifted([0.1] * 5).items()))
    runs = [write_run(store, "centralized", CENTRAL), write_run(store, "federated", back_to_front)]
    row = row_of(statistics.compare(runs), mode="federated")
    differences = row[["difference", "difference_low", "difference_high"]].astype(float)
    assert differences.tolist() == pytest.approx([0.1] * 3), "the same for every patient: nothing to be unsure of"


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ([-0.3, -0.2, -0.25, -0.3, -0.2], "lower"),
        ([0.1, 0.05, 0.08, 0.1, 0.06], "higher"),
        ([0.1, -0.1, 0.12, -0.1, 0.02], "inconclusive"),
        ([0, 0, 0, 0, 0], "inconclusive"),
    ],
)
def test_readings(store, by, expected):
    runs = [write_run(store, "centralized", CENTRAL), write_run(store, "federated", shifted(by))]
    table = statistics.compare(runs)
    assert row_of(table, mode="federated")["reading"] == expected
    said = " ".join(statistics.answer(table))
    assert {"lower": "lower", "higher": "higher", "inconclusive": "chance"}[expected] in said
    assert "equal" not in said, "an interval that holds zero shows no equality"


def test_seeds_and_clients_are_averaged_within_a_patient(store):
    runs = [write_run(store, "centralized", CENTRAL)]
    runs += [write_run(store, "federated", shifted([by] * 5), seed) for seed, by in ((1, 0.1), (2, 0.3))]
    both_clients = {patient: [values[0] - 0.1, values[0] - 0.3] for patient, values in CENTRAL.items()}
    runs.append(write_run(store, "local", both_clients))
    table = statistics.compare(runs)
    federated = row_of(table, mode="federated")
    assert (federated["seeds"], federated["n_patients"]) == (2, 5)
    assert federated["difference"] == pytest.approx(0.2)
    assert row_of(table, mode="local")["n_patients"] == 5


def test_a_patient_without_a_score_is_left_out_on_both_sides(store):
    lacking = shifted([0.1] * 5) | {"p3": [np.nan]}
    table = statistics.compare([write_run(store, "centralized", CENTRAL), write_run(store, "federated", lacking)])
    row = row_of(table, mode="federated")
    assert row["n_patients"] == 4
    assert row["difference"] == pytest.approx(0.1)


def test_every_arm_has_its_row_and_the_paper_its_column(store):
    runs = [write_run(store, "centralized", CENTRAL)]
    arms = [(mode, k, p) for mode in ("federated", "local") for p in ("balanced", "unbalanced") for k in (2, 4, 16)]
    runs += [write_run(store, mode, CENTRAL, n_clients=k, partition=p) for mode, k, p in reversed(arms)]
    table = statistics.compare(runs)
    own = table[table["metric"] == "dice_LV"]
    assert own[["mode", "n_clients", "partition"]].apply(tuple, axis=1).tolist() == [("centralized", 1, "none"), *arms]
    paper = tasks.get("segmentation").PAPER
    assert row_of(table, mode="federated", n_clients=4, partition="balanced")["paper"] == paper["federated", 4]["dice_LV"]
    assert own[(own["mode"] == "local") | (own["n_clients"] == 16)]["paper"].isna().all(), "no figure is invented"
    assert ("federated", 16) not in paper


def test_an_interval_holds_its_mean_narrows_with_cases_and_repeats():
    rng = np.random.default_rng(1)
    few, many = (rng.normal(0.5, 0.1, n) for n in (10, 400))
    (mean, low, high), (_, low_many, high_many) = statistics.interval(few), statistics.interval(many)
    assert low < mean < high
    assert mean == pytest.approx(few.mean())
    assert high_many - low_many < (high - low) / 3
    assert high_many - low_many == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15), "95% of a normal mean"
    assert statistics.interval(few) == (mean, low, high)
    assert statistics.interval(np.array([0.3])) == (0.3, 0.3, 0.3)
