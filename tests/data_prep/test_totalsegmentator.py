"""A folder a case with a mask a structure: only the masks that are needed are read."""

from dataclasses import replace

import numpy as np
import pytest

from data_prep import cardiac
from data_prep import totalsegmentator as source
from data_prep.files import opened
from fedlib.config import UserError
from tests.data_prep import raw
from tests.data_prep.cardiac_raw import loaded, packed, pair, scans
from tests.data_prep.test_cardiac import load

SETTINGS = replace(source.DEFAULTS, size=(16, 16, 16), margin_mm=0)


@pytest.fixture
def folder(tmp_path):
    return scans(tmp_path / "raw")


def first(folder, settings=SETTINGS):
    with opened(folder) as files:
        return loaded(cardiac.loader(source.resolved(files, settings)), files, source.find_cases(files, settings)[0])


def test_masks_give_what_a_label_volume_gives(folder):
    expected = load(pair(), replace(SETTINGS, lv="500", myo="205"))
    found = first(folder)
    assert (found[0] == expected[0]).all()
    assert (found[1] == expected[1]).all()
    assert found[2] == expected[2]


def test_only_the_needed_masks_and_what_meta_csv_says(folder):
    with opened(folder) as files:
        case = source.find_cases(files, SETTINGS)[1]
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


def test_without_meta_csv_and_with_one_case_only(folder):
    (folder / "meta.csv").unlink()
    for path in sorted((folder / "s0002").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "s0002").rmdir()
    with opened(folder) as files:
        (case,) = source.find_cases(files, SETTINGS)
    assert (case.case, case.image, case.columns) == ("s0001", "ct.nii.gz", {})
    assert first(folder)[1].any()


def test_several_masks_merge(folder):
    settings = replace(SETTINGS, myo="heart_myocardium,liver", size=(24, 24, 24))
    assert (first(folder, settings)[1] == 2).sum() == (
        first(folder, replace(settings, myo="heart_myocardium"))[1] == 2
    ).sum() + 1


def test_a_case_without_its_masks_is_refused_when_loaded(folder):
    (folder / "s0001" / "segmentations" / "heart_myocardium.nii.gz").unlink()
    with pytest.raises(UserError, match=r"^s0001/ct.nii.gz: an image without its label; expected heart_myocardium"):
        first(folder)


def test_a_scan_that_does_not_show_the_heart_is_refused(folder):
    mask = folder / "s0001" / "segmentations" / "heart_ventricle_left.nii.gz"
    mask.write_bytes(packed(np.zeros((16, 16, 16), np.uint8)))
    with pytest.raises(UserError, match=r"^s0001/segmentations/heart_ventricle_left.nii.gz: no voxel of LV"):
        first(folder)


@pytest.mark.parametrize(
    ("mask", "said"), [(np.ones((16, 16, 16), np.uint8), "LV and Myo share"), (np.ones((15, 16, 16), np.uint8), "shape")]
)
def test_masks_that_do_not_go_together_are_refused(folder, mask, said):
    (folder / "s0001" / "segmentations" / "heart_myocardium.nii.gz").write_bytes(packed(mask))
    with pytest.raises(UserError, match=said):
        first(folder)


@pytest.mark.parametrize("lv", ["heart_ventricel_left", "500"])
def test_a_mask_that_no_case_has_stops(folder, lv):
    with opened(folder) as files, pytest.raises(UserError, match=rf"--lv {lv}: no segmentations/{lv}.nii.gz"):
        source.resolved(files, replace(SETTINGS, lv=lv))


@pytest.mark.parametrize(
    "table",
    [b"", b"image_id,age\ns0001,1", b"\xff\xfe;", b"image_id;age\na;1\na;2", b'image_id;a\n"x', b"image_id;age\ns0001;1;2"],
)
def test_a_bad_meta_csv_stops(folder, table):
    (folder / "meta.csv").write_bytes(table)
    with opened(folder) as files, pytest.raises(UserError, match=r"meta.csv: .*expected") as caught:
        source.find_cases(files, SETTINGS)
    assert "\n" not in str(caught.value)


def test_nothing_found_and_one_name_twice_stop(tmp_path, folder):
    scans(folder / "more", 1)
    with opened(folder) as files, pytest.raises(UserError, match="the same case as"):
        source.find_cases(files, SETTINGS)
    with opened(raw.pairs(tmp_path / "other", 1)) as files, pytest.raises(UserError, match="expected s0001/ct.nii.gz"):
        source.find_cases(files, SETTINGS)
