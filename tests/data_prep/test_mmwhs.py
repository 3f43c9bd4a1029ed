"""NIfTI pairs: labels mapped, axes turned the same way whatever the file's orientation, nothing lost without a word."""

import nibabel as nib
import numpy as np
import pytest

from data_prep import mmwhs
from data_prep.sources import prepare_mmwhs
from fedlib.config import UserError
from tests.data_prep import raw

SETTINGS = mmwhs.Settings(spacing_mm=(2.0, 2.0, 2.0), size=(16, 16, 16))


def load(folder, settings=SETTINGS):
    """The first case as prepared: image, label, columns."""
    return mmwhs.loader(settings)(mmwhs.find_cases(folder)[0])


def rewrite(folder, change):
    """Write the first pair anew with `change` applied to each of its two nibabel images."""
    for path in folder.glob("case_1_*"):
        volume = nib.load(path)
        changed = change(nib.Nifti1Image(np.asarray(volume.dataobj), volume.affine))
        nib.save(changed, path)


@pytest.fixture
def folder(tmp_path):
    return raw.pairs(tmp_path / "raw")


def test_labels_are_mapped_and_everything_else_is_background(folder):
    image, label, columns = load(folder)
    assert image.dtype == label.dtype == np.uint8
    assert (image.shape, label.shape) == ((1, 16, 16, 16), (16, 16, 16))
    assert [(label == n).sum() for n in (1, 2)] == [3 * 3 * 4, 7 * 5 * 6 - 3 * 3 * 4]
    assert set(np.unique(label)) == {0, 1, 2}
    assert columns["LV_ml"] == columns["LV_ml_prepared"] == pytest.approx(36 * 8 / 1000, abs=0.01)


def test_arrays_run_to_the_right_the_front_and_up(folder):
    _, label, _ = load(folder)
    stored = raw.heart(1)[1]  # to the left and to the back
    assert ((label == 1) == (stored == 500)[::-1, ::-1]).all()


def test_the_intensity_window_is_fixed_for_ct(folder):
    image, _, _ = load(folder)
    hu = raw.heart(1)[0][::-1, ::-1].astype(float)
    low, high = mmwhs.HU_WINDOW
    assert np.abs(image[0] - ((hu - low) / (high - low) * 255).clip(0, 255)).max() <= 1


TURNS = {
    "mirrored": lambda volume: volume.slicer[::-1],
    "upside down and mirrored": lambda volume: volume.slicer[::-1, :, ::-1],
    "axes exchanged": lambda volume: volume.as_reoriented(np.array([[2, 1], [0, 1], [1, -1]])),
}


@pytest.mark.parametrize("turn", TURNS)
def test_orientation_comes_from_the_affine(folder, turn):
    expected = load(folder)
    rewrite(folder, TURNS[turn])
    turned = load(folder)
    assert (turned[1] == expected[1]).all()
    assert np.abs(turned[0].astype(int) - expected[0]).max() <= 1
    assert turned[2] == expected[2]


def test_volumes_keep_their_size_in_mm(folder):
    _, label, columns = load(folder, mmwhs.Settings(spacing_mm=(1.0, 1.0, 1.0), size=(32, 32, 32)))
    assert columns["Myo_ml_prepared"] == pytest.approx(columns["Myo_ml"], rel=0.15)
    assert (label == 2).sum() > 6 * raw.heart(1)[1].astype(bool).sum()


def test_other_label_values_and_mri_units(tmp_path, folder):
    def scaled(volume):
        array = np.asarray(volume.dataobj)
        is_label = set(np.unique(array)) <= {0, 205, 500, 600}
        values = np.select([array == 500, array == 205], [1, 2]) if is_label else array * 10 + 7
        return nib.Nifti1Image(values.astype(np.int16), volume.affine)

    ct_as_mr = load(folder, mmwhs.Settings(**vars(SETTINGS) | {"modality": "mr"}))
    rewrite(folder, scaled)
    settings = mmwhs.Settings(**vars(SETTINGS) | {"modality": "mr", "lv_value": 1, "myo_value": 2})
    image, label, _ = load(folder, settings)
    assert (label == ct_as_mr[1]).all()
    assert np.abs(image.astype(int) - ct_as_mr[0]).max() <= 1, "percentiles do not care for units"


def test_a_crop_that_loses_a_structure_is_refused(folder):
    def padded(volume):
        return nib.Nifti1Image(np.pad(np.asarray(volume.dataobj), ((0, 40), (0, 0), (0, 0))), volume.affine)

    rewrite(folder, padded)  # the heart is now far from the centre
    with pytest.raises(UserError, match=r"case_1_label.nii.gz.*LV.*crop"):
        load(folder)


def test_cases_are_found_in_subfolders_in_the_order_of_their_numbers(tmp_path):
    raw.pairs(tmp_path / "raw" / "ct_train", 11)
    names = [case.case for case in mmwhs.find_cases(tmp_path / "raw")]
    assert names == [f"case_{n}" for n in range(1, 12)]


def test_folder_and_zip_give_the_same_set(tmp_path, folder):
    one = prepare_mmwhs(folder, tmp_path / "one", SETTINGS)
    two = prepare_mmwhs(raw.zipped(folder, tmp_path / "a.zip", "top"), tmp_path / "two", SETTINGS)
    assert one.fingerprint == two.fingerprint
    assert one.spacing_mm == (2.0, 2.0, 2.0)
    assert one.classes == ["background", "LV", "Myo"]


def sized(affine_mm, header_mm):
    """A change that leaves the directions and states one voxel size in the affine, another in the header."""

    def change(volume):
        affine = volume.affine.copy()
        affine[:3, :3] = np.diag([-1.0, -1.0, 1.0]) * affine_mm
        changed = nib.Nifti1Image(np.asarray(volume.dataobj), affine)
        changed.header["pixdim"][1:4] = header_mm
        changed.header.set_sform(affine, 2)
        changed.header.set_qform(None, 0)
        return changed

    return change


def test_an_affine_of_unit_voxels_takes_the_size_from_the_header(folder):
    expected = load(folder)
    rewrite(folder, sized(1.0, 2.0))
    found = load(folder)
    assert (found[1] == expected[1]).all()
    assert found[2] == expected[2]
    assert found[2]["voxel_mm"] == "2x2x2"


def test_two_voxel_sizes_that_disagree_are_refused(folder):
    rewrite(folder, sized(1.5, 2.0))
    with pytest.raises(UserError, match=r"case_1_image.nii.gz.*1\.5.*affine.*2\. .*header"):
        load(folder)
