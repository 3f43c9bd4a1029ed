"""Pairs in the naming of MM-WHS are found anywhere below the input."""

from dataclasses import replace

import pytest

from data_prep import cardiac, mmwhs
from data_prep.files import opened
from fedlib.config import UserError
from tests.data_prep import raw
from tests.data_prep.cardiac_raw import loaded

SETTINGS = replace(mmwhs.DEFAULTS, size=(16, 16, 16))


def cases_in(source):
    with opened(source) as files:
        return mmwhs.find_cases(files, SETTINGS)


@pytest.fixture
def folder(tmp_path):
    return raw.pairs(tmp_path / "raw", 2)


def test_cases_come_in_the_order_of_their_numbers(tmp_path):
    raw.pairs(tmp_path / "raw" / "ct_train", 11)
    raw.pairs(tmp_path / "raw" / "other", 1).joinpath("case_1_image.nii.gz").rename(tmp_path / "raw" / "b_image.nii.gz")
    (tmp_path / "raw" / "other" / "case_1_label.nii.gz").rename(tmp_path / "raw" / "other" / "b_label.nii.gz")
    found = cases_in(tmp_path / "raw")
    assert [case.case for case in found if case.case != "b"] == [f"case_{n}" for n in range(1, 12)]
    assert ("b_image.nii.gz", "other/b_label.nii.gz") in [case.files for case in found]


def test_folder_and_zip_are_the_same(tmp_path, folder):
    results = []
    for source in (folder, raw.zipped(folder, tmp_path / "a.zip", "top")):
        with opened(source) as files:
            case = mmwhs.find_cases(files, SETTINGS)[0]
            results.append(loaded(cardiac.loader(mmwhs.resolved(files, SETTINGS)), files, case))
    assert (results[0][0] == results[1][0]).all()
    assert results[0][2] == results[1][2]


def test_an_image_without_label_is_a_case_that_the_loader_refuses(folder):
    (folder / "case_2_label.nii.gz").unlink()
    with opened(folder) as files, pytest.raises(UserError, match=r"^case_2_image.nii.gz: .*without its label"):
        loaded(cardiac.loader(SETTINGS), files, mmwhs.find_cases(files, SETTINGS)[1])


def test_a_label_without_image_stops(folder):
    (folder / "case_2_image.nii.gz").unlink()
    with pytest.raises(UserError, match=r"case_2_label.nii.gz: .*expected case_2_image.nii.gz"):
        cases_in(folder)


def test_one_name_twice_stops(folder):
    raw.pairs(folder / "again", 1)
    with pytest.raises(UserError, match=r"case_1_image.nii.gz: the same case as"):
        cases_in(folder)


def test_nothing_found_stops(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match=r"no \*_image.nii.gz.*expected MM-WHS"):
        cases_in(tmp_path)


def test_names_are_no_label_values(folder):
    with opened(folder) as files, pytest.raises(UserError, match=r"--lv left: expected label values"):
        mmwhs.resolved(files, replace(SETTINGS, lv="left"))
