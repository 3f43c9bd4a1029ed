"""Phantoms: the same from the same seed, files in the layout of the real data, and no cheap tell between classes."""

import numpy as np
import pandas as pd
import pytest

from data_prep import cardiac, sources
from fedlib.config import StudyConfig, UserError
from fedlib.data.dataset import open_prepared

CASES = {"classification": 24, "segmentation": 4}


@pytest.mark.parametrize("task", CASES)
def test_the_seed_decides_every_byte(tmp_path, task):
    one, two, other = (
        sources.prepare_synthetic(task, tmp_path / name, CASES[task], 16, seed)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert one.fingerprint == two.fingerprint != other.fingerprint
    assert one.manifest["synthetic"] is True
    assert not np.array_equal(one.images, other.images)


@pytest.mark.parametrize("task", CASES)
def test_raw_files_go_through_the_door_of_real_data(tmp_path, task):
    made = sources.prepare_synthetic(task, tmp_path / "a", CASES[task], 16, seed=1, keep_raw=tmp_path / "raw")
    if task == "classification":
        again = sources.prepare_class_folders(tmp_path / "raw", tmp_path / "b", 16, seed=1)
    else:
        settings = cardiac.Settings(spacing_mm=made.spacing_mm, size=(16, 16, 16))
        again = sources.prepare_cardiac("mmwhs", tmp_path / "raw", tmp_path / "b", settings, seed=1)
    assert np.array_equal(again.images, made.images)
    assert np.array_equal(again.labels, made.labels)
    assert again.cases.equals(made.cases)
    assert again.manifest["synthetic"] is False, "only who drew them knows"
    assert again.fingerprint != made.fingerprint, "phantoms are never taken for patients"
    with pytest.raises(UserError, match="--keep-raw"):
        sources.prepare_synthetic(task, tmp_path / "c", CASES[task], 16, seed=1, keep_raw=tmp_path / "raw")


def test_classes_are_balanced_and_some_patients_have_two_images(images):
    assert images.cases["label"].value_counts().nunique() == 1
    assert len(images.classes) == 4
    per_patient = images.cases["patient"].value_counts()
    assert (images.cases.groupby("patient")["label"].nunique() == 1).all()
    assert per_patient.max() >= 2


def test_hearts_lie_whole_inside_the_crop(volumes):
    for structure in ("LV", "Myo"):
        assert np.allclose(volumes.cases[f"{structure}_ml"], volumes.cases[f"{structure}_ml_prepared"], rtol=0.15)
    label = np.asarray(volumes.labels)
    assert all(set(np.unique(volume)) == {0, 1, 2} for volume in label)


def test_blood_is_brighter_than_muscle_as_with_contrast(volumes):
    picture, label = np.asarray(volumes.images[:, 0]), np.asarray(volumes.labels)
    assert all(one[mask == 1].mean() > one[mask == 2].mean() for one, mask in zip(picture, label, strict=True))


def test_plain_brightness_does_not_tell_the_class(images):
    means = pd.Series(images.images.mean(axis=(1, 2, 3)))
    by_class = means.groupby(images.cases["label"])
    assert by_class.mean().max() - by_class.mean().min() < 3 * by_class.std().mean()


def test_a_study_makes_its_set_once_and_again_when_the_recipe_changed(tmp_path):
    sizes = {"task": "segmentation", "profile": "smoke", "synthetic_cases": 4, "size": 16, "out_dir": tmp_path}
    first = sources.ensure(StudyConfig.make(**sizes))
    written = (first.folder / "manifest.json").stat().st_mtime_ns
    assert sources.ensure(StudyConfig.make(**sizes)).fingerprint == first.fingerprint
    assert (first.folder / "manifest.json").stat().st_mtime_ns == written
    other = sources.ensure(StudyConfig.make(**sizes | {"synthetic_cases": 5}))
    assert len(other.cases) == 5
    assert open_prepared(tmp_path / "data", "segmentation").fingerprint == other.fingerprint


def test_a_study_takes_a_given_set_and_never_draws_over_it(tmp_path, images):
    study = StudyConfig.make(task="classification", profile="smoke", data_dir=images.folder, out_dir=tmp_path)
    assert sources.ensure(study).fingerprint == images.fingerprint
    missing = StudyConfig.make(task="classification", profile="smoke", data_dir=tmp_path / "none", out_dir=tmp_path)
    with pytest.raises(UserError, match="none"):
        sources.ensure(missing)
    assert not (tmp_path / "none").exists()
