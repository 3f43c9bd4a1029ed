"""Splits keep patients and duplicates together whatever the links; a set is refused rather than written half."""

from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.pipeline import Case, assign_splits, check_out, natural_key, prepare
from fedlib.config import UserError

MANIFEST = {"task": "classification", "classes": ["a"], "spacing_mm": None, "title": "t", "synthetic": True}


@st.composite
def linked_cases(draw):
    """One to three images a patient, each perhaps a duplicate of another patient's."""
    n = draw(st.integers(12, 40))
    patients = [str(draw(st.integers(0, n))) for _ in range(n)]
    duplicates = [draw(st.sampled_from(["", "", "", "d1", "d2"])) for _ in range(n)]
    return pd.DataFrame({"case": [f"c{i}" for i in range(n)], "patient": patients, "label": "", "dup_group": duplicates})


@given(linked_cases(), st.integers(0, 9))
def test_splits_are_patient_and_duplicate_disjoint(cases, seed):
    links = nx.Graph()
    for row in cases.itertuples():
        links.add_edge(row.case, f"patient {row.patient}")
        if row.dup_group:
            links.add_edge(row.case, f"duplicate {row.dup_group}")
    groups = [[name for name in group if name.startswith("c")] for group in nx.connected_components(links)]
    if len(groups) < 3:
        with pytest.raises(UserError, match="at least 3"):
            assign_splits(cases, seed)
        return
    split = assign_splits(cases, seed).set_index("case")["split"]
    assert all(split[group].nunique() == 1 for group in groups)
    assert set(split) == {"train", "val", "test"}


def test_splits_are_stratified_by_class_and_come_from_the_seed():
    names = [f"c{n}" for n in range(200)]
    label = ["rare" if n % 10 == 0 else "common" for n in range(200)]
    cases = pd.DataFrame({"case": names, "patient": names, "label": label, "dup_group": ""})
    one, two, other = (assign_splits(cases.copy(), seed) for seed in (0, 0, 1))
    assert one.equals(two)
    assert not one.equals(other)
    counts = pd.crosstab(one["label"], one["split"])
    assert counts.loc["common"].to_dict() == pytest.approx({"train": 108, "val": 18, "test": 54}, abs=1)
    assert counts.loc["rare"].to_dict() == pytest.approx({"train": 12, "val": 2, "test": 6}, abs=1)


def cases_of(n):
    return [Case(case=f"c{i}", patient=f"p{i}", image=Path(f"c{i}.png"), label="a") for i in range(n)]


def loading(bad=(), error=None):
    def load(case):
        if case.case in bad:
            raise error or UserError(f"{case.image}: unreadable")
        return np.zeros((1, 2, 2), np.uint8), 0, {"width": 2}

    return load


def test_a_bad_case_stops_and_names_the_way_out(tmp_path):
    with pytest.raises(UserError, match=r"c4.png: unreadable.*--on-bad skip"):
        prepare(cases_of(6), loading({"c4"}), tmp_path / "out", MANIFEST)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_case_is_skipped_and_listed_when_asked(tmp_path):
    data = prepare(cases_of(6), loading({"c1", "c4"}), tmp_path / "out", MANIFEST, on_bad="skip")
    listed = pd.read_csv(tmp_path / "out" / "qc.csv")
    assert listed["file"].tolist() == ["c1.png", "c4.png"]
    assert listed["reason"].str.contains("unreadable").all()
    assert data.cases["case"].tolist() == ["c0", "c2", "c3", "c5"]
    assert len(data.images) == len(data.labels) == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("full"), OSError("disk full")])
def test_whatever_stops_it_nothing_is_left(tmp_path, error):
    with pytest.raises(type(error)):
        prepare(cases_of(6), loading({"c4"}, error), tmp_path / "out", MANIFEST, on_bad="skip")
    assert list(tmp_path.iterdir()) == []


def test_no_usable_case_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"none of 2 cases.*c0.png: unreadable"):
        prepare(cases_of(2), loading({"c0", "c1"}), tmp_path / "out", MANIFEST, on_bad="skip")
    assert list(tmp_path.iterdir()) == []


def test_an_old_set_is_replaced_only_when_asked_and_only_by_a_whole_one(tmp_path):
    out = tmp_path / "out"
    first = prepare(cases_of(6), loading(), out, MANIFEST).fingerprint
    with pytest.raises(UserError, match="--overwrite"):
        prepare(cases_of(7), loading(), out, MANIFEST)
    with pytest.raises(UserError, match="unreadable"):
        prepare(cases_of(7), loading({"c6"}), out, MANIFEST, overwrite=True)
    assert prepare(cases_of(7), loading(), out, MANIFEST, overwrite=True).fingerprint != first
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_not_a_prepared_set_is_never_replaced(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    check_out(precious, overwrite=False)  # empty: nothing to lose
    (precious / "thesis.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="precious"):
            check_out(precious, overwrite)
    with pytest.raises(UserError, match=r"thesis.txt"):
        check_out(precious / "thesis.txt", overwrite=True)


def test_what_a_killed_process_left_does_not_stop_the_next(tmp_path, monkeypatch):
    """In a container the next process has the same number, and would meet the folder of the one that was killed."""
    monkeypatch.setattr("fedlib.data.shutil.rmtree", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        prepare(cases_of(6), loading({"c4"}, KeyboardInterrupt()), tmp_path / "out", MANIFEST)
    monkeypatch.undo()
    assert len(prepare(cases_of(6), loading(), tmp_path / "out", MANIFEST).cases) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_natural_order():
    assert sorted(["c10", "c9", "c1", "b2"], key=natural_key) == ["b2", "c1", "c9", "c10"]
