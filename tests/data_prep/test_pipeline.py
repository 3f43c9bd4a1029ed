"""From files to a set: what cannot be used is named, what was read is not read again, and the way there does not matter."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from data_prep import pipeline
from fedlib.config import UserError
from fedlib.data.dataset import open_prepared
from tests.data_prep.sets import MANIFEST, cases_of, load, pixels, prepared, raw


class Counting:
    """A loader that notes what it was asked for, and stops where it is told to."""

    def __init__(self, stop=None, error=KeyboardInterrupt):
        self.stop, self.error, self.seen = stop, error, []

    def __call__(self, case, contents):
        if case.case == self.stop:
            raise self.error
        self.seen.append(case.case)
        return load(case, contents)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def spoil(folder, *numbers):
    for number in numbers:
        (folder / f"c{number}.raw").write_text("grey")


@pytest.fixture
def source(tmp_path):
    return raw(tmp_path / "raw")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "sets" / "out"


def test_what_the_files_hold_is_prepared_in_their_order(source, out):
    data = prepared(source, out)
    assert data.cases["case"].tolist() == [f"c{n}" for n in range(1, 13)]
    assert data.cases["file"].tolist() == [f"c{n}.raw" for n in range(1, 13)]
    assert data.cases["label"].tolist() == ["a", "b"] * 6
    assert data.labels.tolist() == [0, 1] * 6
    assert all((data.images[n] == pixels(n + 1)).all() for n in range(12))
    assert (data.cases["width"] == 32).all(), "what the loader says of a case"
    assert set(data.cases["split"]) == {"train", "val", "test"}
    assert data.manifest["counts"] == {
        "found": 12, "prepared": 12, "rejected": 0, "patients": 12, "patients_in_several_classes": 0,
        "patients_in_several_splits": 0, "exact_duplicates": 0, "near_duplicates": 0,
        "near_duplicates_across_classes": 0}  # fmt: skip
    assert names(out.parent) == ["out"]
    assert "counts" not in MANIFEST, "the caller's manifest is left alone"


def test_bad_cases_are_listed_in_the_order_of_their_names(source, out):
    spoil(source, 11, 2)
    data = prepared(source, out, on_bad="skip")
    listed = pd.read_csv(out / "qc.csv")
    assert listed.to_numpy().tolist() == [[f"c{n}.raw", f"c{n}.raw: 'grey', expected a number"] for n in (2, 11)]
    assert (data.manifest["counts"]["rejected"], data.manifest["counts"]["found"]) == (2, 12)


def test_a_set_with_skipped_cases_does_not_pass_for_a_whole_one(source, out):
    spoil(source, 3)
    one = prepared(source, out, on_bad="skip").fingerprint
    with pytest.raises(UserError, match="--overwrite"):
        prepared(source, out)
    with pytest.raises(UserError, match="c3.raw: 'grey'"):
        prepared(source, out, overwrite=True)
    assert open_prepared(out).fingerprint == one, "the old set stands"


@pytest.mark.parametrize("error", [ZeroDivisionError("what?\nwhat?"), OSError("no such codec"), MemoryError("full")])
def test_what_a_library_did_not_think_of_is_the_fault_of_the_case(source, out, error):
    data = prepared(source, out, Counting("c4", error), on_bad="skip")
    (reason,) = pd.read_csv(out / "qc.csv")["reason"]
    assert reason == f"c4.raw: cannot be prepared ({type(error).__name__}: {' '.join(str(error).split())})"
    assert len(data.cases) == 11


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_interruption_passes_and_the_next_call_reads_only_the_rest(source, out, jobs):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.raises(KeyboardInterrupt):
        prepared(source, out, Counting("c8"), jobs=jobs)
    assert torch.get_num_threads() == 2, "given back although the error is kept"
    torch.set_num_threads(threads)
    assert not out.exists()
    rest = Counting()
    data = prepared(source, out, rest, jobs=jobs)
    assert sorted(rest.seen) == sorted(f"c{n}" for n in range(8, 13))
    assert data.fingerprint == prepared(source, out.with_name("whole")).fingerprint
    assert names(out.parent) == ["out", "whole"]


def test_after_an_error_what_has_not_begun_is_not_read(source, out):
    spoil(source, 1)
    loader = Counting()
    with pytest.raises(UserError):
        prepared(source, out, loader, jobs=4)
    assert len(loader.seen) <= 9, "no more than are in the queue, and bounded whatever the number of cases"


def test_another_seed_deals_again(source, out):
    one, two = prepared(source, out), prepared(source, out, seed=1, overwrite=True)
    assert not two.cases["split"].equals(one.cases["split"])


@pytest.mark.parametrize("jobs", [4, 30])
def test_the_number_of_jobs_does_not_change_the_set(source, out, jobs):
    spoil(source, 7)
    one, many = (prepared(source, out / str(n), jobs=n, on_bad="skip") for n in (1, jobs))
    assert one.fingerprint == many.fingerprint


def test_a_finished_set_with_refusals_is_the_same_in_one_go_or_two(source, out):
    spoil(source, 3, 10)
    with pytest.raises(KeyboardInterrupt):
        prepared(source, out / "two", Counting("c8"), on_bad="skip")
    one, two = (prepared(source, out / name, on_bad="skip") for name in ("one", "two"))
    assert one.manifest["files"] == two.manifest["files"]


def test_a_name_twice_is_an_error(source, out):
    cases = cases_of(source)
    for twin in (replace(cases[0], image="c2.raw"), replace(cases[0], label="b"), cases[0]):
        with pytest.raises(UserError, match="is case 'c1', as is c1.raw") as caught:
            prepared(source, out, cases=[*cases, replace(twin)])
        assert "\n" not in str(caught.value)


def test_no_case_at_all_is_an_error(source, out):
    with pytest.raises(UserError, match="no case can be used; none was found"):
        prepared(source, out, cases=[])
    assert names(out.parent) == []


def test_duplicates_are_listed_kept_together_and_refused_where_classes_differ(source, out):
    (source / "c3.raw").write_text("1")  # both of class a
    (source / "c6.raw").write_text("5")  # of b and a
    with pytest.raises(UserError, match="c5.raw: the same pixels in more than one class: c5 .a., c6 .b."):
        prepared(source, out)
    data = prepared(source, out, on_bad="skip")
    assert pd.read_csv(out / "qc.csv")["file"].tolist() == ["c5.raw", "c6.raw"]
    assert pd.read_csv(out / "duplicates.csv")[["case_a", "case_b", "kind"]].to_numpy().tolist() == [["c1", "c3", "exact"]]
    cases = data.cases.set_index("case")
    assert cases.loc["c1", "split"] == cases.loc["c3", "split"]
    assert cases.loc["c1", "dup_group"] == cases.loc["c3", "dup_group"] != ""
    counts = data.manifest["counts"]
    assert (counts["prepared"], counts["rejected"], counts["exact_duplicates"]) == (10, 2, 1)
    assert len(data.images) == 10
    assert (data.images[4] == pixels(7)).all(), "arrays and table go together"


def test_a_patient_whom_only_the_file_names_is_one_patient(source, out):
    def knowing(case, contents):
        image, label, columns = load(case, contents)
        return image, label, columns | {"patient": "p7" if case.case in ("c1", "c3", "c5") else ""}

    data = prepared(source, out, knowing)
    cases = data.cases.set_index("case")
    assert cases.loc[["c1", "c3", "c5"], "patient"].tolist() == ["p7"] * 3
    assert cases.loc[["c1", "c3", "c5"], "split"].nunique() == 1
    assert cases.loc["c2", "patient"] == "c2", "no name is no patient shared by all"
    assert data.manifest["counts"]["patients"] == 10
    stated = [replace(case, patient=f"s{case.case}") for case in cases_of(source)]
    assert prepared(source, out / "stated", knowing, stated).cases["patient"][0] == "sc1", "the source comes first"


def test_columns_of_the_source_are_kept_and_stated_splits_honoured(source, out):
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 4
    cases = [
        replace(case, split=split, columns={"hospital": f"h{n % 2}", "width": 7})
        for n, (case, split) in enumerate(zip(cases_of(source), splits, strict=True))
    ]
    data = prepared(source, out, cases=cases)
    assert data.cases["split"].tolist() == splits
    assert data.cases["hospital"].tolist() == ["h0", "h1"] * 6
    assert (data.cases["width"] == 7).all(), "what the source says comes before what the file says"


def test_a_log_gets_a_line_now_and_then_no_bar(capsys):
    assert list(pipeline.progress(range(10_000), "preparing")) == list(range(10_000))
    assert len(capsys.readouterr().out.splitlines()) <= 1, "ten seconds have not passed"
