"""Pairs in the naming of MM-WHS are found anywhere below the input."""

from dataclasses import replace

from data_prep import mmwhs
from data_prep.files import opened
from tests.data_prep import raw

SETTINGS = replace(mmwhs.DEFAULTS, size=(16, 16, 16))


def cases_in(source):
    with opened(source) as files:
        return mmwhs.find_cases(files, SETTINGS)[0]


def test_cases_come_in_the_order_of_their_numbers(tmp_path):
    raw.pairs(tmp_path / "raw" / "ct_train", 11)
    raw.pairs(tmp_path / "raw" / "other", 1).joinpath("case_1_image.nii.gz").rename(tmp_path / "raw" / "b_image.nii.gz")
    (tmp_path / "raw" / "other" / "case_1_label.nii.gz").rename(tmp_path / "raw" / "other" / "b_label.nii.gz")
    found = cases_in(tmp_path / "raw")
    assert [case.case for case in found if case.case != "b"] == [f"case_{n}" for n in range(1, 12)]
    assert ("b_image.nii.gz", "other/b_label.nii.gz") in [case.files for case in found]
