"""The comparison of arms on a store made by hand: paired differences, patients as the unit, verdicts, and refusals."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fedlib import analysis, tasks
from fedlib.analysis.comparison import optimizer_steps
from fedlib.config import StudyConfig, UserError
from fedlib.training.run_store import RunStore
from tests.stores import central_dice, shifted, write_classification, write_run

LOSS = [-0.1, 0.02, -0.03, 0.04, -0.2, 0, 0.01, -0.02]


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path)


def row_of(table, metric="dice_LV", **arm):
    for name, value in {"metric": metric, **arm}.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


# Pairs


def test_differences_are_paired_by_patient(store):
    runs = [write_run(store, "centralized", central_dice()), write_run(store, "federated", shifted(LOSS))]
    table = analysis.compare(runs)
    central, federated = row_of(table, mode="centralized"), row_of(table, mode="federated")
    assert central["value"] == pytest.approx(np.mean([np.mean(values) for values in central_dice().values()])), (
        "p1 counts once"
    )
    assert central["n_patients"] == 8
    assert np.isnan(central["difference"])
    assert federated["difference"] == pytest.approx(np.mean(LOSS))
    assert federated["difference_low"] < federated["difference"] < federated["difference_high"]
    assert row_of(table, "dice_Myo", mode="federated")["difference"] == pytest.approx(np.mean(LOSS) / 2)


def test_pairing_is_by_name_and_not_by_place(store):
    back_to_front = dict(reversed(shifted([0.1] * 8).items()))
    runs = [write_run(store, "centralized", central_dice()), write_run(store, "federated", back_to_front)]
    row = row_of(analysis.compare(runs), mode="federated")
    assert row["difference"] == pytest.approx(0.1)


def test_seeds_and_clients_are_averaged_within_a_patient(store):
    runs = [write_run(store, "centralized", central_dice(), seed) for seed in (1, 2)]
    runs += [write_run(store, "federated", shifted([by] * 8), seed) for seed, by in ((1, 0.1), (2, 0.3))]
    runs.append(write_run(store, "local", [shifted([-0.1] * 8), shifted([-0.3] * 8)]))
    table = analysis.compare(runs)
    federated = row_of(table, mode="federated")
    assert (federated["seeds"], federated["n_patients"]) == (2, 8)
    assert federated["difference"] == pytest.approx(0.2)
    assert row_of(table, mode="local")["n_patients"] == 8
    assert row_of(table, mode="local")["difference"] == pytest.approx(-0.2)


def test_only_seeds_that_both_arms_have_are_compared(store):
    runs = [write_run(store, "centralized", central_dice(), seed) for seed in (1, 2)]
    runs += [write_run(store, "federated", shifted([by] * 8), seed) for seed, by in ((2, 0.01), (3, 0.4))]
    row = row_of(analysis.compare(runs), mode="federated")
    assert (row["seeds"], row["paired_seeds"]) == (2, 1)
    assert row["difference"] == pytest.approx(0.01)
    none = analysis.compare([runs[0], runs[3]])
    row = row_of(none, mode="federated")
    assert (row["verdict"], row["difference_how"]) == ("inconclusive", "none: no seed in common")
    assert np.isnan(row["difference"])
    assert "no seed in common" in " ".join(analysis.answer(none))


def test_a_patient_without_a_score_is_left_out_on_both_sides(store):
    lacking = shifted([0.1] * 8) | {"p3": [np.nan]}
    table = analysis.compare([write_run(store, "centralized", central_dice()), write_run(store, "federated", lacking)])
    row = row_of(table, mode="federated")
    assert (row["n_patients"], row["paired_patients"]) == (7, 7)
    assert row["difference"] == pytest.approx(0.1)


def test_macro_sensitivity_weighs_classes_alike_and_knows_its_class_sizes(store):
    """An error in a class of 10 costs four times one in a class of 40."""
    right = {"a": [1] * 40, "b": [1] * 9 + [0]}
    runs = [
        write_classification(store, "centralized", right),
        write_classification(store, "federated", right | {"a": [0] * 4 + [1] * 36}),
    ]
    table = analysis.compare(runs)
    central, federated = (row_of(table, "sensitivity", mode=mode) for mode in ("centralized", "federated"))
    assert (central["value"], federated["value"]) == (pytest.approx(0.95), pytest.approx(0.9))
    assert central["high"] <= 1, "a share is never above 1"
    assert federated["difference"] == pytest.approx(-0.05)
    accuracy = row_of(table, "accuracy", mode="federated")
    assert (accuracy["difference"], accuracy["test"]) == (pytest.approx(-4 / 50), "McNemar")
    assert accuracy["p"] == pytest.approx(2 * 0.5**4), "four changes, all one way"


# Verdicts


@pytest.mark.parametrize(
    ("by", "verdict", "direction"),
    [
        ([-0.3, -0.2, -0.25, -0.3, -0.2, -0.25, -0.2, -0.3], "inferior", "lower"),
        ([-0.012, -0.01, -0.011, -0.012, -0.01, -0.012, -0.01, -0.011], "equivalent", "lower"),
        ([0.1, 0.05, 0.08, 0.1, 0.06, 0.1, 0.05, 0.07], "superior", "higher"),
        ([0.1, -0.001, 0.05, 0.04, -0.001, 0.02, 0.001, 0.03], "superior", "higher"),
        ([0.1, -0.1, 0.12, -0.1, 0.02, -0.1, 0.1, 0], "inconclusive", "no difference shown"),
        ([0, 0, 0, 0, 0, 0, 0, 0], "inconclusive", "no difference shown"),
    ],
)
def test_verdicts(store, by, verdict, direction):
    runs = [write_run(store, "centralized", central_dice()), write_run(store, "federated", shifted(by))]
    table = analysis.compare(runs)
    row = row_of(table, mode="federated")
    assert (row["verdict"], row["direction"], row["margin"]) == (verdict, direction, 0.02)
    said = analysis.answer(table)[0]
    assert f"federated training is *{verdict}* in 1 of 1 arm" in said
    assert ("does not mean equal" in said) == (verdict == "inconclusive")


def test_the_margin_of_the_study_decides_and_a_late_one_is_named(store):
    by = [-0.03, -0.02, -0.025, -0.03, -0.02, -0.025, -0.02, -0.03]
    runs = [write_run(store, "centralized", central_dice()), write_run(store, "federated", shifted(by))]
    assert row_of(analysis.compare(runs), mode="federated")["verdict"] == "inferior", "at the margin that the runs record"
    study = StudyConfig.make(task="segmentation", margin_dice=0.05, out_dir=store.out_dir)
    late = analysis.compare(runs, study)
    row = row_of(late, mode="federated")
    assert (row["verdict"], row["margin"]) == ("equivalent", 0.05)
    assert row["margin_note"] == "not what was stated before the runs, which record 0.02"
    assert row["margin_note"] in analysis.answer(late)[0]
    table = analysis.settings(runs, study).set_index("setting")
    assert "record 0.02" in table.loc["margin_dice", "note"]
    assert (table.loc["margin_dice", "value"], table.loc["significance", "value"]) == ("0.05", "0.05")
    assert table.loc["significance", "note"] == "stated before the runs"
    assert set(table["label"]) == {"chosen"}


def test_holm_s_family_is_the_rows_of_one_mode(store):
    runs = [write_run(store, "centralized", central_dice())]
    runs += [write_run(store, "federated", shifted(LOSS), n_clients=k) for k in (2, 4)]
    runs.append(write_run(store, "local", [shifted(LOSS)] * 2))
    table = analysis.compare(runs)
    federated, local = (table[table["mode"] == mode] for mode in ("federated", "local"))
    assert federated["p_holm"].to_numpy() == pytest.approx(np.minimum(1, 4 * federated["p"].to_numpy()))
    assert local["p_holm"].to_numpy() == pytest.approx(np.minimum(1, 2 * local["p"].to_numpy()))


# Other questions


def grid(store, score):
    """Runs of both partitions with 2, 4 and 8 clients, local too; `score` gives the shift of each arm."""
    runs = [write_run(store, "centralized", central_dice())]
    for partition in ("balanced", "unbalanced"):
        for k in (2, 4, 8):
            noise = np.array(LOSS) / 10
            runs.append(
                write_run(store, "federated", shifted(score(partition, k) + noise), n_clients=k, partition=partition)
            )
            alone = [shifted([score(partition, k) - 0.2] * 8)] * k
            runs.append(write_run(store, "local", alone, n_clients=k, partition=partition))
    return runs


def test_trend_partition_and_worth_find_what_was_put_in(store):
    runs = grid(store, lambda partition, k: -0.02 * np.log2(k) - 0.03 * (partition == "unbalanced"))
    trend = analysis.client_trend(runs)
    assert trend["client_counts"].unique().tolist() == ["2, 4, 8"]
    assert row_of(trend, partition="balanced")["slope"] == pytest.approx(-0.02), "per doubling of the number of clients"
    unbalance = analysis.partition_effect(runs)
    assert unbalance["partition"].unique().tolist() == ["unbalanced"]
    assert row_of(unbalance, n_clients=4)["difference"] == pytest.approx(-0.03)
    worth = analysis.federated_vs_local(runs)
    assert len(worth) == 6 * 2
    assert row_of(worth, n_clients=8, partition="unbalanced")["difference"] == pytest.approx(0.2 + np.mean(LOSS) / 10)
    assert set(worth["verdict"]) == {"superior"}


def test_questions_that_a_study_cannot_answer_have_empty_tables(store):
    runs = [write_run(store, "centralized", central_dice()), write_run(store, "federated", shifted(LOSS))]
    for question in (analysis.client_trend, analysis.partition_effect, analysis.federated_vs_local):
        table = question(runs)
        assert table.empty
        assert {"metric", "direction"} <= set(table)


def test_every_arm_has_its_row_and_the_paper_its_table(store):
    runs = grid(store, lambda partition, k: 0) + [write_run(store, "federated", central_dice(), n_clients=16)]
    table = analysis.compare(list(reversed(runs)))
    own = table[table["metric"] == "dice_LV"]
    dealt = [(mode, k, p) for mode in ("federated", "local") for p in ("balanced", "unbalanced") for k in (2, 4, 8)]
    dealt.insert(3, ("federated", 16, "balanced"))
    assert own[["mode", "n_clients", "partition"]].apply(tuple, axis=1).tolist() == [("centralized", 1, "none"), *dealt]
    assert own[(own["mode"] == "local") | (own["n_clients"] == 16)]["paper"].isna().all(), "no figure is invented"
    paper = analysis.paper_table(table)
    assert set(paper["mode"]) == {"centralized", "federated"}
    assert 16 not in set(paper["n_clients"])
    row = row_of(paper, mode="federated", n_clients=4, partition="balanced")
    figure = tasks.get("segmentation").PAPER["federated", 4]["dice_LV"]
    assert (row["paper"], row["paper_says"]) == (figure, "0.923")
    assert row["paper_change"] == pytest.approx(0.923 - 0.926)


def test_what_the_abstract_says_in_words_is_no_number(store):
    right = {"a": [1] * 40, "b": [1] * 9 + [0]}
    runs = [write_classification(store, mode, right) for mode in ("centralized", "federated")]
    table = analysis.compare(runs)
    assert "about 0.94" in list(analysis.readable(table)["the paper"])
    paper = analysis.paper_table(table)
    assert np.isnan(row_of(paper, "sensitivity", mode="federated")["paper_change"]), "no change between two *about*"
    assert row_of(paper, "accuracy", mode="federated")["paper_says"] == "similar to centralized"
    assert np.isnan(row_of(paper, "accuracy", mode="federated")["paper_change"])
    assert row_of(paper, "sensitivity", mode="federated")["paper_says"] == "about 0.94"


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_row_of_the_protocol_has_an_origin_and_this_run_s_value(store, task):
    right = {"a": [1] * 40, "b": [1] * 9 + [0]}
    runs = [
        write_classification(store, "federated", right)
        if task == "classification"
        else write_run(store, "federated", central_dice())
    ]
    table = analysis.protocol(runs).set_index("what")
    assert set(table["origin"]) == {"from the paper", "from the first author's scripts", "inferred", "chosen"}
    assert table.loc["rounds", "this run"] == str(runs[0].config.rounds)
    assert table.loc["clients", "this run"] == str(runs[0].config.n_clients)
    assert table.index.is_unique


def test_an_arm_that_still_improves_has_not_finished_training(store):
    climbing = [0.1 * number for number in range(1, 9)]
    runs = [write_run(store, "centralized", central_dice()), write_run(store, "federated", shifted(LOSS), curve=climbing)]
    table = analysis.compare(runs).set_index("mode")
    assert set(table.loc["centralized", "training"]) == {"plateau"}
    assert set(table.loc["federated", "training"]) == {"not finished training"}
    words = analysis.answer(table.reset_index())
    assert all("**Not finished training**: 1 of 2 arms" in text for text in words)
    budget = analysis.training_table(runs)
    assert budget["epochs"].tolist() == [2, 2]
    assert budget["most_steps"].tolist() == [2, 2], "8 cases in batches of 8, two epochs"
    local = write_run(store, "local", [shifted(LOSS)] * 2, curve=climbing)
    words = analysis.answer(analysis.compare([*runs, local]))
    assert all("1 of 1 local arms had not finished training: a gain over them may shrink." in text for text in words)
    finished = [runs[0], write_run(store, "federated", shifted(LOSS), n_clients=4)]
    assert "Not finished" not in " ".join(analysis.answer(analysis.compare(finished)))


def test_a_tiny_loss_is_not_written_as_minus_zero(store):
    runs = [write_run(store, "centralized", central_dice())]
    runs += [write_run(store, "federated", shifted([-0.0001] * 8), n_clients=n) for n in (2, 4)]
    runs.append(write_run(store, "local", [shifted([0] * 8)] * 2))
    table, trend = analysis.compare(runs), analysis.client_trend(runs)
    told = analysis.in_short(trend, analysis.partition_effect(runs), analysis.federated_vs_local(runs))
    told += [*analysis.answer(table), analysis.readable(table).to_string(), analysis.readable(trend).to_string()]
    told.append(analysis.readable(analysis.seed_spread(runs)).to_string())
    assert "+0.000" in told[1]
    assert not any("-0.000" in text for text in told)


def test_a_class_is_named_as_in_the_pictures():
    table = pd.DataFrame({"class": ["Lung_Opacity"], "value": [0.9]})
    assert analysis.readable(table)["class"].tolist() == ["Lung Opacity"]


def test_a_client_that_was_absent_took_no_steps():
    config = SimpleNamespace(local_epochs=2, batch_size=8, drop_last=False)
    clients = pd.DataFrame({"round": [1, 1, 2], "client": [0, 1, 1], "n": [10, np.nan, 8]})
    assert optimizer_steps(SimpleNamespace(config=config, clients=clients)).tolist() == [4, 0, 2]


# What must not be compared, and what there is nothing to compare with


def test_without_a_counterpart_there_is_no_verdict_but_words(store):
    central, federated = write_run(store, "centralized", central_dice()), write_run(store, "federated", shifted(LOSS))
    for runs, words in (([central], "no finished federated run"), ([federated], "no finished centralized run")):
        table = analysis.compare(runs)
        assert table["verdict"].isna().all()
        assert all(words in sentence and "nan" not in sentence for sentence in analysis.answer(table))
        assert len(analysis.paper_table(table)) == 2
    with pytest.raises(UserError, match="no finished run"):
        analysis.compare([])


def test_too_few_patients_give_scores_and_no_interval(store):
    few = {"p1": [0.9], "p2": [0.5]}
    runs = [write_run(store, "centralized", few), write_run(store, "federated", {"p1": [0.8], "p2": [0.5]})]
    table = analysis.compare(runs)
    assert table["value"].notna().all()
    assert table["low"].isna().all()
    assert set(table["how"]) == {"none: 2 patients, at least 6 needed"}
    said = " ".join(analysis.answer(table))
    assert "No interval: 2 patients, at least 6 needed." in said
    assert "nan" not in said


OTHER = {
    "budgets": ({"rounds": 3}, ["budgets (rounds x local_epochs) of 2 and 3"]),
    "epochs": ({"local_epochs": 2}, ["budgets", "2 and 4"]),
    "data": ({"data_fingerprint": "other"}, ["data fingerprints f and other"]),
    "batches": ({"batch_size": 4}, ["batch_size 8 and 4"]),
    "strategies": ({"strategy": "fedadam"}, ["same arm and seed"]),
}


@pytest.mark.parametrize("name", OTHER)
def test_runs_that_differ_in_more_than_arm_and_seed_are_refused(store, name):
    changes, words = OTHER[name]
    mode = "federated" if "strategy" in changes else "centralized"
    runs = [write_run(store, "federated", central_dice()), write_run(store, mode, central_dice(), **changes)]
    for question in (analysis.compare, analysis.seed_spread, analysis.client_trend, analysis.part_scores):
        with pytest.raises(UserError, match="cannot be compared") as caught:
            question(runs)
        assert all(word in str(caught.value) for word in words)
        assert "\n" not in str(caught.value)


def test_the_same_budget_in_other_pieces_is_another_training(store):
    runs = [write_run(store, "centralized", central_dice(), rounds=1, local_epochs=2)]
    runs.append(write_run(store, "federated", central_dice()))
    with pytest.raises(UserError, match="rounds 1 and 2"):
        analysis.compare(runs)


def test_other_test_cases_are_refused_with_an_example(store):
    others = central_dice() | {"p9": [0.3]}
    runs = [write_run(store, "centralized", central_dice()), write_run(store, "federated", others)]
    with pytest.raises(UserError, match=r"1 test cases, such as p9-0, .* same test set"):
        analysis.compare(runs)


def cut(run):
    path = run.folder / "cases.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


def edit(run):
    path = run.folder / "cases.csv"
    path.write_text(path.read_text().replace("0.9", "0.4", 1))


def swap(run):
    path = run.folder / "provenance.json"
    path.write_text(json.dumps(run.provenance | {"weights_sha256": "another"}))


def rename(run):
    path = run.folder / "config.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))


def garble(run):
    (run.folder / "cases.csv").write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize("damage", [cut, edit, swap, rename, garble])
def test_a_run_that_was_edited_or_cut_short_is_named_and_left_out(store, damage):
    good = write_run(store, "centralized", central_dice())
    bad = write_run(store, "federated", central_dice())
    damage(bad)
    runs, missing = analysis.check_integrity(store, [good.folder.name, bad.folder.name, "never"])
    assert [run.folder for run in runs] == [good.folder]
    assert list(missing) == [bad.folder.name, "never"]
    assert missing["never"] == "not begun"
    assert missing[bad.folder.name].startswith("damaged: ")
    assert "\n" not in missing[bad.folder.name]


def test_intact_runs_have_no_problem(store):
    runs = grid(store, lambda partition, k: -0.01)
    runs.append(write_run(store, "federated", shifted([0.1] * 8) | {"p3": [np.nan]}, n_clients=16))
    assert analysis.check_integrity(store, [run.folder.name for run in runs]) == (runs, {})
