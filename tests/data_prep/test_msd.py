"""The layout of the Decathlon and of nnU-Net: label names from dataset.json, channels, counts."""

from dataclasses import replace
from functools import partial

import pytest

from data_prep import cardiac, msd
from data_prep.files import opened
from fedlib.config import UserError
from tests.data_prep.cardiac_raw import loaded, pair, tasks
from tests.data_prep.test_cardiac import load

SETTINGS = replace(msd.DEFAULTS, size=(16, 16, 16))
NNUNET = {"labels": {"background": 0, "LV": 500, "Myo": 205, "heart": [205, 500]}, "channel_names": {"0": "CT"}}


def first(folder, settings=SETTINGS):
    with opened(folder) as files:
        cases, settings = msd.find_cases(files, settings)
        return loaded(partial(cardiac.load, settings=settings), files, cases[0])


@pytest.mark.parametrize("names", [("lv", "MYO"), ("500", "205"), ("LV", "205")])
@pytest.mark.parametrize(("channels", "table"), [(("",), {}), (("_0000",), NNUNET), (("_0000", "_0001"), NNUNET)])
def test_both_spellings_give_what_a_pair_gives(tmp_path, channels, table, names):
    folder = tasks(tmp_path / "raw", 2, channels, **table)
    expected, found = load(pair()), first(folder, replace(SETTINGS, lv=names[0], myo=names[1]))
    assert (found[0] == expected[0]).all()
    assert (found[1] == expected[1]).all()


def test_names_become_values_and_regions_several(tmp_path):
    with opened(tasks(tmp_path / "raw", **NNUNET)) as files:
        assert msd.find_cases(files, SETTINGS)[1] == replace(SETTINGS, lv="500", myo="205")
        assert msd.find_cases(files, replace(SETTINGS, myo="heart,LV"))[1].myo == "205,500"


def test_the_first_of_several_channels_is_taken_and_told(tmp_path):
    with opened(tasks(tmp_path / "raw", 11, ("_0000", "_0001"), **NNUNET)) as files:
        cases, _ = msd.find_cases(files, SETTINGS)
    assert [case.case for case in cases] == [f"heart_{n}" for n in range(1, 12)]
    assert {case.image[-12:] for case in cases} == {"_0000.nii.gz"}
    assert {case.columns["channels"] for case in cases} == {2}


def test_a_case_whose_name_looks_like_a_channel(tmp_path):
    folder = tasks(tmp_path / "raw", 1)
    for part in ("imagesTr", "labelsTr"):
        (folder / part / "heart_1.nii.gz").rename(folder / part / "heart_0007.nii.gz")
    with opened(folder) as files:
        assert [case.case for case in msd.find_cases(files, SETTINGS)[0]] == ["heart_0007"]


@pytest.mark.parametrize("lv", ["left", "7"])
def test_a_label_that_the_table_lacks_stops(tmp_path, lv):
    with opened(tasks(tmp_path / "raw")) as files, pytest.raises(UserError, match=rf"--lv {lv}: .*lv \(500\), myo \(205\)"):
        msd.find_cases(files, replace(SETTINGS, lv=lv))
