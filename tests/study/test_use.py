"""What a study is used for afterwards: predict new images, export the model, verify the folder; through the command line."""

import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nibabel.processing import resample_to_output
from PIL import Image

from data_prep.single import singles
from data_prep.sources import prepare_synthetic
from fedlib.config import StudyConfig
from fedlib.study import experiment
from fedlib.study.record import remember_study
from fedlib.study.report import write_index
from fedlib.training.execution import load_model
from fedlib.training.loop import forward
from fedlib.training.run_store import RunStore
from tests.data_prep.radiographs_raw import dicom
from tests.helpers import python

TASKS = {"classification": (48, {}), "segmentation": (12, {"rounds": 12, "width": 8, "learning_rate": 0.005})}
"""Cases, and settings with which the outlines of a minute-old model are outlines."""


class Study:
    """A study of both tasks with a centralized run each, and a federated one of X-rays; raw files, sets and runs by task."""

    def __init__(self, folder):
        self.out, self.raw, self.data, self.runs = folder / "study", folder / "raw", {}, {}
        for task, (cases, settings) in TASKS.items():
            study = StudyConfig.make(profile="smoke", task=task, out_dir=self.out, client_counts=2, partitions="balanced",
                                     **settings)  # fmt: skip
            self.data[task] = prepare_synthetic(task, study.prepared_dir, cases, 24, keep_raw=self.raw / task)
            remember_study(study, self.data[task])
            for config in study.runs(self.data[task].fingerprint):
                if config.mode == "centralized" or (config.mode, task) == ("federated", "classification"):
                    self.runs[task, config.mode] = experiment.run(config, self.data[task], RunStore(self.out))
        write_index(self.out)

    def predict(self, task, given, out, mode="centralized"):
        """The table of predictions, by the command, and what it says."""
        done = python("-m", "fedlib", "predict", self.runs[task, mode].folder, "--input", given, "--out", out)
        assert done.returncode == 0, done.stderr
        return pd.read_csv(out / "predictions.csv"), done

    def volume(self, row):
        """The raw volume of a case."""
        return nib.load(self.raw / "segmentation" / self.data["segmentation"].cases["file"][row])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(tmp_path_factory.mktemp("use"))


def turned(volume, axes):
    """The same volume, its axes in another order and direction."""
    return volume.as_reoriented(ornt_transform(io_orientation(volume.affine), axcodes2ornt(axes)))


def dice(one, other):
    """Of each structure."""
    return [2 * ((one == n) & (other == n)).sum() / ((one == n).sum() + (other == n).sum()) for n in (1, 2)]


def own_probabilities(study, row):
    """What the run's model says of a case of its own set: probabilities (3, X, Y, Z)."""
    run, data = study.runs["segmentation", "centralized"], study.data["segmentation"]
    with torch.inference_mode():
        images, _ = data.load_batch(np.array([row]), low=run.config.input_low)
        return forward(load_model(run, data).eval(), images, run.config).softmax(1)[0]


def test_a_png_and_a_dicom_give_the_probabilities_of_the_run_itself(study, tmp_path):
    run, data = study.runs["classification", "federated"], study.data["classification"]
    given = tmp_path / "given"
    shutil.copytree(study.raw / "classification" / "COVID" / "images", given / "png")
    grey = np.asarray(Image.open(next((given / "png").iterdir())))
    (given / "scan").write_bytes(dicom(grey))
    (given / "notes.txt").write_text("no image")
    table, done = study.predict("classification", given, tmp_path / "out", "federated")
    assert "research only, no medical use" in done.stdout
    files = data.cases.set_index("case")["file"]
    expected = run.cases.assign(file=run.cases["case"].map(files).str.replace("COVID/images", "png")).set_index("file")
    shared = table[table["file"].isin(expected.index)].set_index("file")
    assert len(shared) >= 2
    columns = [f"p_{name}" for name in data.classes]
    np.testing.assert_allclose(shared[columns], expected.loc[shared.index, columns], atol=1e-5)
    assert (shared["prediction"] == expected.loc[shared.index, "prediction"]).all()
    (problem,) = table["problem"].dropna()
    assert "notes.txt" in problem
    assert f"not used: {problem}" in done.stderr
    scan = table.set_index("file").loc["scan"]
    assert 0.99 < scan[columns].sum() < 1.01
    assert Image.open(tmp_path / "out" / scan["picture"]).size[0] > 100


def test_a_volume_in_any_orientation_comes_back_on_its_own_grid(study, tmp_path):
    row, given = int(study.data["segmentation"].split("test")[0]), tmp_path / "given"
    given.mkdir()
    raw = study.volume(row)
    nib.save(turned(raw, "SPR"), given / "turned.nii.gz")
    nib.save(turned(resample_to_output(raw, (1.2, 1.3, 1.1), order=1), "PSL"), given / "finer.nii")
    (given / "broken.nii.gz").write_bytes(b"no volume")
    table, _ = study.predict("segmentation", given, tmp_path / "out")
    table = table.set_index("file")
    ((_, single),) = singles(given / "turned.nii.gz", "segmentation", study.data["segmentation"].manifest["choices"])
    own = MetaTensor(own_probabilities(study, row), affine=torch.from_numpy(single.affine))
    for name in ("turned.nii.gz", "finer.nii"):
        volume, labels = nib.load(given / name), nib.load(tmp_path / "out" / table["labels"][name])
        assert labels.shape == volume.shape
        np.testing.assert_allclose(labels.affine, volume.affine, atol=1e-4)
        place = {"dst_affine": torch.from_numpy(volume.affine), "spatial_size": volume.shape}
        expected = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=False)(own, **place).argmax(0)
        found = np.asarray(labels.dataobj)
        print(name, dice(found, expected.numpy()))
        assert min(dice(found, expected.numpy())) >= 0.98
        ml = [(found == n).sum() * np.prod(labels.header.get_zooms()) / 1000 for n in (1, 2)]
        np.testing.assert_allclose(table.loc[name, ["LV_ml", "Myo_ml"]].astype(float), ml, atol=0.01)
    assert "no NIfTI" in table["problem"]["broken.nii.gz"]
