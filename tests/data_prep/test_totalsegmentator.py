"""A folder a case with a mask a structure: only the masks that are needed are read."""

from dataclasses import replace
from functools import partial

import pytest

from data_prep import cardiac
from data_prep import totalsegmentator as source
from data_prep.files import opened
from tests.data_prep.cardiac_raw import loaded, pair, scans
from tests.data_prep.test_cardiac import load

SETTINGS = replace(source.DEFAULTS, size=(16, 16, 16), margin_mm=0)


@pytest.fixture
def folder(tmp_path):
    return scans(tmp_path / "raw")


def first(folder, settings=SETTINGS):
    with opened(folder) as files:
        cases, settings = source.find_cases(files, settings)
        return loaded(partial(cardiac.load, settings=settings), files, cases[0])


def test_masks_give_what_a_label_volume_gives(folder):
    expected = load(pair(), replace(SETTINGS, lv="500", myo="205"))
    found = first(folder)
    assert (found[0] == expected[0]).all()
    assert (found[1] == expected[1]).all()
    assert found[2] == expected[2]


def test_only_the_needed_masks_and_what_meta_csv_says(folder):
    with opened(folder) as files:
        case = source.find_cases(files, SETTINGS)[0][1]
    masks = [f"s0002/segmentations/{name}.nii.gz" for name in ("heart_ventricle_left", "heart_myocardium")]
    assert case.files == ("s0002/ct.nii.gz", *masks)
    assert case.columns == {
        "age": "62",
        "gender": "m",
        "institute": "Basel",
        "study_type": "ct thorax",
        "published_split": "train",
    }
    assert case.split == "", "we deal our own"


def test_without_meta_csv(folder):
    (folder / "meta.csv").unlink()
    with opened(folder) as files:
        case = source.find_cases(files, SETTINGS)[0][0]
    assert (case.case, case.image, case.columns) == ("s0001", "s0001/ct.nii.gz", {})
    assert first(folder)[1].any()


def test_several_masks_merge(folder):
    settings = replace(SETTINGS, myo="heart_myocardium,liver", size=(24, 24, 24))
    assert (first(folder, settings)[1] == 2).sum() == (
        first(folder, replace(settings, myo="heart_myocardium"))[1] == 2
    ).sum() + 1
