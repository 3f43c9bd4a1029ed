"""Cardiac volumes: axes turned the same way whatever the file's, nothing lost without a word, bad files named."""

import gzip
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, ResizeWithPadOrCropd, ScaleIntensityRanged, Spacingd

from data_prep import cardiac
from data_prep import nifti as decoding
from data_prep.cardiac import Settings
from data_prep.cases import Case
from fedlib.config import UserError
from tests.data_prep.cardiac_raw import CASE, IMAGE, LABEL, nifti, packed, pair
from tests.data_prep.raw import AFFINE, heart

SETTINGS = Settings(size=(16, 16, 16))


def load(contents, settings=SETTINGS, case=CASE):
    """Image, label, columns."""
    return cardiac.load(case, contents, settings)


def test_labels_are_mapped_and_everything_else_is_background():
    image, label, columns = load(pair())
    assert image.dtype == label.dtype == np.uint8
    assert (image.shape, label.shape) == ((1, 16, 16, 16), (16, 16, 16))
    assert [(label == n).sum() for n in (1, 2)] == [3 * 3 * 4, 7 * 5 * 6 - 3 * 3 * 4]
    assert set(np.unique(label)) == {0, 1, 2}
    assert columns["LV_ml"] == columns["LV_ml_prepared"] == pytest.approx(36 * 8 / 1000, abs=0.01)
    assert (columns["spacing_mm"], columns["shape"], columns["cut_by_border"]) == ("2x2x2", "16x16x16", False)


def test_arrays_run_to_the_right_the_front_and_up():
    _, label, _ = load(pair())
    assert ((label == 1) == (heart(1)[1] == 500)[::-1, ::-1]).all()  # stored to the left and to the back


@pytest.mark.parametrize("window", [None, (-100.0, 200.0)])
def test_the_intensity_window_is_fixed_for_ct(window):
    image, _, _ = load(pair(), replace(SETTINGS, window=window))
    low, high = window or cardiac.HU_WINDOW
    hu = heart(1)[0][::-1, ::-1].astype(float)
    assert np.abs(image[0] - ((hu - low) / (high - low) * 255).clip(0, 255)).max() <= 1


@settings(max_examples=40, deadline=None)
@given(
    axes=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from((-1, 1))] * 3),
    crop=st.sampled_from(("heart", "centre")),
    spacing=st.tuples(*[st.floats(1.2, 2.6)] * 3),
)
def test_the_order_of_axes_in_the_file_changes_nothing(axes, signs, crop, spacing):
    chosen = Settings(spacing, (24, 24, 16), crop=crop, margin_mm=0, max_loss=0.9)
    volumes = [nib.Nifti1Image(array[:, :, :13], np.diag([-1.7, -2.0, 1.4, 1])) for array in heart(1)]
    turned = [volume.as_reoriented(np.stack([axes, signs], axis=1)) for volume in volumes]
    expected = load([packed(np.asarray(v.dataobj), v.affine) for v in volumes], chosen)
    found = load([packed(np.asarray(v.dataobj), v.affine) for v in turned], chosen)
    assert (found[0] == expected[0]).all()
    assert (found[1] == expected[1]).all()
    assert found[2] == expected[2]


@settings(max_examples=25, deadline=None)
@given(size=st.tuples(*[st.integers(1, 3)] * 3), spacing=st.tuples(*[st.floats(0.9, 3.7)] * 3))
def test_the_centre_is_cut_as_monai_does(size, spacing):
    chosen = Settings(spacing, tuple(8 * n for n in size), max_loss=1.0)
    keys, arrays = ("image", "label"), heart(1)
    label = np.select([arrays[1] == 500, arrays[1] == 205], [1, 2])
    monai = Compose(
        [
            Orientationd(keys, axcodes="RAS", labels=None),
            Spacingd(keys, pixdim=spacing, mode=("bilinear", "nearest")),
            ScaleIntensityRanged("image", *cardiac.HU_WINDOW, 0, 255, clip=True),
            ResizeWithPadOrCropd(keys, chosen.size),
        ]
    )
    affine = np.diag(np.float32([-1.9, -2.1, 2.3, 1])).astype(float)  # as NIfTI stores it
    whole = {"image": arrays[0].astype(np.float32), "label": label.astype(np.float32)}
    expected = monai({key: MetaTensor(array[None], affine=affine) for key, array in whole.items()})
    try:
        image, found, _ = load([packed(array, affine) for array in arrays], chosen)
    except UserError:
        assert not all((expected["label"] == n).any() for n in (1, 2))
    else:
        assert np.abs(image - expected["image"].numpy()).max() <= 0.501
        assert (found != expected["label"][0].numpy()).mean() < 0.01, "but for voxels that are as near to two"


def test_volumes_keep_their_size_in_mm():
    _, label, columns = load(pair(), Settings((1.0, 1.0, 1.0), (32, 32, 32), max_loss=0.5))
    assert columns["Myo_ml_prepared"] == pytest.approx(columns["Myo_ml"], rel=0.15)
    assert (label == 2).sum() > 6 * heart(1)[1].astype(bool).sum()


def test_other_label_values_merged_ones_and_mri_units():
    image, label = heart(1)
    values = np.select([label == 500, label == 205], [1, 2]).astype(np.uint8)
    values[7, 7, 5] = 3
    settings = replace(SETTINGS, modality="mr", lv="1,3", myo="2")
    found = load([packed((image * 10 + 7).astype(np.int16)), packed(values)], settings)
    expected = load(pair(), replace(SETTINGS, modality="mr"))
    assert (found[1] == expected[1]).all()
    assert np.abs(found[0].astype(int) - expected[0]).max() <= 1, "percentiles do not care for units"


SPELLINGS = {
    "float labels": lambda image, label: [packed(image), packed(label.astype(np.float64))],
    "float image": lambda image, label: [packed(image.astype(np.float32)), packed(label)],
    "scaled": lambda image, label: [packed(image), packed(label // 5, scl_slope=5, scl_inter=0)],
    "big-endian": lambda image, label: [packed(image), nifti_big(label)],
    "NIfTI-2": lambda image, label: [packed(image, version=2), packed(label)],
    "a trailing axis of 1": lambda image, label: [packed(image[..., None]), packed(label)],
}


def nifti_big(array):
    header = nib.Nifti1Header(endianness=">")
    return gzip.compress(nib.Nifti1Image(array.astype(">i2"), AFFINE, header).to_bytes())


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_heart_in_many_spellings(spelling):
    expected, found = load(pair()), load(SPELLINGS[spelling](*heart(1)))
    assert (found[0] == expected[0]).all()
    assert (found[1] == expected[1]).all()


def test_plain_nii():
    case = Case(case="a", patient="a", image="a.nii", label_files=("b.nii",))
    assert (load([nifti(array) for array in heart(1)], case=case)[1] == load(pair())[1]).all()


def far(cells=40):
    """A heart far from the middle of its volume."""
    return [packed(np.pad(array, ((0, cells), (0, 0), (0, 0)))) for array in heart(1)]


def test_crop_heart_finds_what_crop_centre_loses():
    with pytest.raises(UserError, match=rf"{LABEL}.*LV.*keeps 0 ml after crop"):
        load(far())
    image, label, columns = load(far(), replace(SETTINGS, crop="heart", margin_mm=4))
    assert columns["LV_ml_prepared"] == columns["LV_ml"]
    assert columns["Myo_ml_prepared"] == columns["Myo_ml"]
    taken = np.argwhere(label)
    assert np.abs(taken.min(0) + taken.max(0) - 15).max() <= 2, "the heart is in the middle, to a voxel"
    assert image[0].any()


def test_a_heart_with_its_margin_must_fit():
    assert load(pair(), replace(SETTINGS, crop="heart", margin_mm=9))[1].any()
    with pytest.raises(UserError, match=r"margin of 9.5 mm is 33x29x31 mm, the window 32x32x32 mm"):
        load(pair(), replace(SETTINGS, crop="heart", margin_mm=9.5))


def test_what_is_lost_is_measured_and_limited():
    cut = replace(SETTINGS, size=(16, 16, 8))  # the heart reaches to the border of this window, and beyond it
    with pytest.raises(UserError, match=r"Myo has .* ml and keeps .* ml .* at most 5 %"):
        load(pair(), replace(cut, max_loss=0.05))
    columns = load(pair(), replace(cut, max_loss=0.5))[2]
    assert columns["Myo_ml_prepared"] < 0.95 * columns["Myo_ml"]
    assert columns["cut_by_border"] is False


def test_a_heart_that_touches_the_border_of_its_volume_is_told():
    assert load([packed(array[..., 3:]) for array in heart(1)])[2]["cut_by_border"] is True


def sized(affine_mm, header_mm):
    """The pair with one voxel size in the affine and another in the header."""
    affine = np.diag([-affine_mm, -affine_mm, affine_mm, 1.0])
    return [
        packed(array, affine, qform_code=0, sform_code=2, pixdim=[1, *[header_mm] * 3, 0, 0, 0, 0]) for array in heart(1)
    ]


def test_an_affine_of_unit_voxels_takes_the_size_from_the_header():
    expected, found = load(pair()), load(sized(1.0, 2.0))
    assert (found[1] == expected[1]).all()
    assert found[2] == expected[2]


def moved(mm):
    affine = AFFINE.copy()
    affine[0, 3] += mm
    return affine


H, L = heart(1)


def test_a_volume_of_one_value_has_no_percentiles():
    with pytest.raises(UserError, match=f"^{IMAGE}: one grey value"):
        load([packed(np.full_like(H, 40)), pair()[1]], replace(SETTINGS, modality="mr"))


def test_a_bomb_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match=f"^{LABEL}: .*expected at most 1000"):
        load(pair())


def test_rounding_of_headers_is_no_shift():
    assert load([pair()[0], packed(L, moved(0.001))])[1].any()


@pytest.mark.parametrize(("lv", "myo"), [("", "205"), ("500", " , "), ("500", "500,205"), ("left", "205")])
def test_structures_must_be_told_apart(lv, myo):
    with pytest.raises(UserError, match=rf"lv '{lv}', myo '{myo}'.*expected"):
        cardiac.check_structures(replace(SETTINGS, lv=lv, myo=myo))


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_every_setting_has_a_reason(modality):
    rows = cardiac.choices(replace(SETTINGS, modality=modality))
    assert {row["setting"] for row in rows} >= set(vars(SETTINGS))
    assert all(row["reason"] and row["value"] is not None and row["label"] == "chosen" for row in rows)
