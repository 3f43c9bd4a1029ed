"""What a study is used for afterwards: predict new images, export the model, verify the folder; through the command line."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nibabel.processing import resample_to_output
from PIL import Image
from rocrate.rocrate import ROCrate

from data_prep.single import singles
from data_prep.sources import prepare_synthetic
from fedlib.config import StudyConfig
from fedlib.study import archive, experiment
from fedlib.study.record import remember_study
from fedlib.study.report import write_index
from fedlib.training.execution import load_model
from fedlib.training.loop import forward
from fedlib.training.run_store import RunStore
from tests.data_prep.radiographs_raw import dicom
from tests.helpers import python

pytestmark = pytest.mark.slow
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
    shutil.copy(next((given / "png").iterdir()), given / "a$x_{$.png")  # no mathematics
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
    nib.save(raw, given / "turned.nii")  # the name of another, but for .gz
    (given / "broken.nii.gz").write_bytes(b"no volume")
    table, _ = study.predict("segmentation", given, tmp_path / "out")
    table = table.set_index("file")
    ((_, single),) = singles(given / "turned.nii.gz", "segmentation", study.data["segmentation"].manifest["choices"])
    own = MetaTensor(own_probabilities(study, row), affine=torch.from_numpy(single.affine))
    for name in ("turned.nii.gz", "finer.nii", "turned.nii"):
        volume, labels = nib.load(given / name), nib.load(tmp_path / "out" / table["labels"][name])
        assert labels.shape == volume.shape
        np.testing.assert_allclose(labels.affine, volume.affine, atol=1e-4)
        place = {"dst_affine": torch.from_numpy(volume.affine), "spatial_size": volume.shape}
        expected = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=False)(own, **place).argmax(0)
        found = np.asarray(labels.dataobj)
        assert min(dice(found, expected.numpy())) >= 0.98
        ml = [(found == n).sum() * np.prod(labels.header.get_zooms()) / 1000 for n in (1, 2)]
        np.testing.assert_allclose(table.loc[name, ["LV_ml", "Myo_ml"]].astype(float), ml, atol=0.01)
    assert "no NIfTI" in table["problem"]["broken.nii.gz"]


@pytest.fixture(scope="module")
def bundles(study, tmp_path_factory):
    """The bundle of each task's centralized run, by the command; and what it says."""
    made = {}
    for task in TASKS:
        to = tmp_path_factory.mktemp("bundles") / task
        done = python("-m", "fedlib", "export", study.runs[task, "centralized"].folder, "--to", to)
        assert done.returncode == 0, done.stderr
        made[task] = to, done.stdout
    return made


TENSOR = ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"]
REQUIRED = "schema version monai_version pytorch_version numpy_version required_packages_version task description authors"
SCHEMA = {
    "type": "object",
    "required": [*REQUIRED.split(), "copyright", "network_data_format"],
    "properties": {
        "network_data_format": {
            "required": ["inputs", "outputs"],
            "additionalProperties": {"additionalProperties": {"type": "object", "required": TENSOR}},
        }
    },
}
"""What MONAI's specification of bundles demands of metadata.json; its own file of it is on a network."""


@pytest.mark.parametrize("task", TASKS)
def test_onnx_gives_the_probabilities_of_torch(study, bundles, task):
    run, data = study.runs[task, "centralized"], study.data[task]
    to, said = bundles[task]
    images, _ = data.load_batch(data.split("test")[:3], low=run.config.input_low)
    (found,) = onnxruntime.InferenceSession(to / "models" / "model.onnx").run(None, {"image": images.numpy()})
    with torch.inference_mode():
        expected = forward(load_model(run, data).eval(), images, run.config)
    np.testing.assert_allclose(torch.from_numpy(found).softmax(1), expected.softmax(1), atol=1e-4)
    assert float(said.split("at most ")[1].split()[0]) < 1e-4


@pytest.mark.parametrize("task", TASKS)
def test_the_bundle_passes_monais_own_checks(bundles, tmp_path, task):
    configs = bundles[task][0] / "configs"
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    verify_metadata(meta_file=str(configs / "metadata.json"), filepath=tmp_path / "schema.json")
    files = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json")}
    verify_net_in_out("network_def", device="cpu", **files)


@pytest.mark.parametrize("task", TASKS)
def test_the_bundles_config_predicts_what_the_run_predicts(study, bundles, tmp_path, task):
    data, row = study.data[task], int(study.data[task].split("test")[0])
    raw = study.raw / task / data.cases["file"][row]
    table, _ = study.predict(task, raw, tmp_path / "out")
    parser = ConfigParser(json.loads((bundles[task][0] / "configs" / "inference.json").read_text()))
    parser.update({"bundle_root": str(bundles[task][0]), "files": [{"image": str(raw)}]})
    parser.get_parsed_content("initialize")
    case = parser.get_parsed_content("dataset")[0]
    with torch.inference_mode():
        network = parser.get_parsed_content("network").eval()
        case["pred"] = parser.get_parsed_content("inferer")(case["image"][None], network)[0]
    steps = parser.get_parsed_content("postprocessing").transforms[:-1]  # the last one writes a file
    for step in steps:
        case = step(case)
    if task == "classification":
        np.testing.assert_allclose(case["pred"], table[[f"p_{name}" for name in data.classes]].iloc[0], atol=1e-5)
    else:
        labels = nib.load(tmp_path / "out" / table["labels"][0])
        assert min(dice(case["pred"][0].numpy(), np.asarray(labels.dataobj))) >= 0.98


def test_the_model_card_says_what_the_run_recorded(study, bundles):
    run, cards = study.runs["classification", "centralized"], {}
    for task in TASKS:
        cards[task] = (bundles[task][0] / "docs" / "README.md").read_text()
        for words in ("Research and teaching only", "split by patient", "95% intervals", "CLAIM", "Where it fails"):
            assert words in cards[task]
        assert "{{" not in cards[task]
    for words in (run.result["weights_sha256"], run.config.data_fingerprint, "COVID", f"{run.result['accuracy']:.3f}"):
        assert words in cards["classification"]
    assert "missed in" in cards["segmentation"]


def test_what_cannot_be_exported_or_predicted_is_one_line(study, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    run, raw = study.runs["classification", "centralized"].folder, study.raw / "classification"
    refused = {
        ("predict", run, "--input", raw, "--out", tmp_path / "full"): "is not empty",
        ("predict", run, "--input", tmp_path / "nothing", "--out", tmp_path / "out"): "does not exist",
        ("predict", tmp_path, "--input", raw, "--out", tmp_path / "out"): "no status.json",
        ("export", run, "--to", tmp_path / "full"): "is not empty",
        ("verify", tmp_path): "no finished run",
        ("verify", study.out, "--run", "run-7"): "run-7",
    }
    for command, words in refused.items():
        done = python("-m", "fedlib", *command)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert words in done.stderr


def test_verify_trains_the_shortest_run_again_and_finds_the_same_weights(study):
    done = python("-m", "fedlib", "verify", study.out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 of 3 runs are as they were recorded" in done.stdout
    assert "has the same weights to the bit" in done.stdout


def test_verify_names_what_was_edited_and_says_why_weights_may_differ(study, tmp_path, monkeypatch):
    copy = shutil.copytree(study.out, tmp_path / "copy")
    (run,) = [run for run in RunStore(copy).all() if run.config.mode == "federated"]
    (copy / "results.csv").write_text("edited")
    (run.folder / "weights.safetensors").write_bytes(b"cut")
    other = replace(study.runs["classification", "centralized"])
    vars(other)["result"] = other.result | {"weights_sha256": "f" * 64}
    monkeypatch.setattr(archive, "_train_again", lambda run, data: (other, False))
    wrong, agreed = archive.verify(copy)
    assert sorted(problem.split(":")[0].rpartition("/")[2] for problem in wrong) == [
        "results.csv", "weights.safetensors", "weights.safetensors"]  # fmt: skip
    assert "may: sums run in another order" in agreed
    monkeypatch.setattr(archive, "_train_again", lambda run, data: (other, True))
    assert "under the same recorded conditions" in archive.verify(copy)[0][-1]
    shutil.rmtree(copy / "data")
    wrong, agreed = archive.verify(copy)
    assert len(wrong) == 3, "what is wrong is told without the data, too"
    assert "none was trained again" in agreed
    (run.folder / "status.json").unlink()
    assert any(f"{run.folder}: not a finished run any more" in problem for problem in archive.verify(copy)[0])


def test_the_crate_says_who_made_what_from_what(study):
    crate = ROCrate(study.out)
    assert crate.root_dataset["datePublished"]
    actions = [entity for entity in crate.contextual_entities if entity.type == "CreateAction"]
    assert len(actions) == 3
    for action in actions:
        run = next(run for run in study.runs.values() if action.id.endswith(run.folder.name))
        result, data = action["result"], action["object"]
        assert result["identifier"] == run.result["weights_sha256"]
        assert data["identifier"] == run.config.data_fingerprint
        assert action["instrument"]["softwareVersion"] == run.provenance["commit"]
    for entity in crate.data_entities:
        assert (study.out / entity.id).exists()
