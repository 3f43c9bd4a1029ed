"""Two sources as one set: cases told apart by `source`, splits kept; sets that were prepared otherwise are refused."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from data_prep import __main__ as door
from data_prep.synthetic_cardiac import LABELS, write_cardiac_ct
from fedlib import analysis
from fedlib.config import UserError
from fedlib.data.dataset import open_prepared
from fedlib.data.partition import clients_of
from fedlib.study import experiment
from fedlib.training.run_store import RunStore
from tests.data_prep import raw
from tests.data_prep.cardiac_raw import MASKS
from tests.helpers import run_config

N = 8
WINDOW = ("--spacing", "6,6,6", "--size", "16,16,16", "--max-loss", "1", "--margin", "0")


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    """Phantoms from two scanners: mmwhs, and totalsegmentator with a softer, noisier image and more contrast agent."""
    folder = tmp_path_factory.mktemp("hospitals")
    for name, seed in (("Basel", 1), ("Leeds", 2)):
        (folder / name).mkdir()
        write_cardiac_ct(folder / name, N, seed)
    for number, path in enumerate(sorted((folder / "Leeds").glob("*_image.nii.gz"))):
        case, image = folder / "scans" / f"s{number:04}", nib.load(path)
        label = np.asarray(nib.load(str(path).replace("_image", "_label")).dataobj)
        noise = np.random.default_rng(number).normal(0, 60, image.shape)
        (case / "segmentations").mkdir(parents=True)
        raw.write_volume(case / "ct.nii.gz", np.int16(0.7 * image.get_fdata() + 80 + noise), image.affine)
        for mask, structure in zip(MASKS, ("left ventricle", "myocardium"), strict=True):
            part = np.uint8(label == LABELS[structure])
            raw.write_volume(case / "segmentations" / f"{mask}.nii.gz", part, image.affine)
    return folder


@pytest.fixture(scope="module")
def sets(hospitals):
    """The two sets as prepared; nobody writes to them."""
    folders = {"Basel": ("mmwhs", "Basel"), "Leeds": ("totalsegmentator", "scans")}
    for name, (source, given) in folders.items():
        arguments = [source, "--input", hospitals / given, "--out", hospitals / "sets" / name, *WINDOW]
        door.app(map(str, arguments), standalone_mode=False)
    return [hospitals / "sets" / name for name in folders]


def merged(command, sets, out):
    code, said, told = command("merge", *sets, "--out", out)
    assert (code, said) == (0, []), said
    return open_prepared(out), told


def test_each_case_keeps_image_split_and_what_its_source_said(command, sets, tmp_path):
    both, told = merged(command, sets, tmp_path / "both")
    assert both.cases["source"].value_counts().to_dict() == {"Basel": N, "Leeds": N}
    rows = iter(range(2 * N))
    for folder in sets:
        one = open_prepared(folder)
        for own, row in zip(range(N), rows, strict=False):
            assert (both.images[row] == one.images[own]).all()
            assert (both.labels[row] == one.labels[own]).all()
            case = both.cases.iloc[row]
            assert (case["case"], case["split"]) == (f"{folder.name}/{one.cases['case'][own]}", one.cases["split"][own])
            assert case["LV_ml"] == one.cases["LV_ml"][own]
    chosen = {row["setting"]: row["value"] for row in both.manifest["choices"]}
    assert chosen["crop"] == "centre (Basel), heart (Leeds)"
    assert both.manifest["counts"]["prepared"] == 2 * N
    assert merged(command, sets, tmp_path / "both")[0].fingerprint == both.fingerprint, "it is there already"
    assert any("16 cases" in line for line in told)


def test_clients_and_verdicts_can_be_read_by_source(command, sets, tmp_path):
    both, _ = merged(command, sets, tmp_path / "both")
    arms = [("centralized", {}), ("federated", {"partition": "by_group", "group_column": "source"})]
    runs = []
    for mode, more in arms:
        config = run_config(both, mode, rounds=1, width=4, batch_size=2, **more)
        runs.append(experiment.run(config, both, RunStore(tmp_path / "study")))
    for rows in clients_of(runs[1].config, both):
        assert both.cases["source"].iloc[rows].nunique() == 1
    table = analysis.by_source(runs)
    assert set(table["source"]) == {"Basel", "Leeds"}
    alone = runs[0].cases.query("source == 'Leeds'")
    found = table.query("source == 'Leeds' and mode == 'centralized' and metric == 'dice_LV'")
    assert found["n_patients"].item() == len(alone)
    assert found["value"].item() == pytest.approx(alone["dice_LV"].mean())
    assert "source" in analysis.readable(table)
    for run in runs:
        run.cases.drop(columns="source", inplace=True)
    assert analysis.by_source(runs).empty, "of a set with one source there is nothing to tell"


DIFFERENT = {"spacing_mm": ("--spacing", "5,5,5"), "size": ("--size", "24,24,24"), "window": ("--window", "0,300"),
             "modality": ("--modality", "mr")}  # fmt: skip


@pytest.mark.parametrize("setting", DIFFERENT)
def test_what_was_prepared_otherwise_is_refused_by_name(command, hospitals, sets, tmp_path, setting):
    options = [*WINDOW, *DIFFERENT[setting]]
    command("mmwhs", "--input", hospitals / "Basel", "--out", tmp_path / "other", *options)
    code, (line,), _ = command("merge", sets[0], tmp_path / "other", "--out", tmp_path / "both")
    assert code == 2
    assert line.startswith(f"error: other: {setting} ")
    assert "as in Basel" in line
    assert not (tmp_path / "both").exists()


def test_other_mistakes_are_one_line(command, sets, images, tmp_path):
    for given, words in (
        ([sets[0]], "two sets or more"),
        ([sets[0], sets[0]], "different names"),
        ([sets[0], images.folder], "task classification; expected segmentation"),
        ([sets[0], tmp_path], "not a prepared set"),
    ):
        code, (line,), _ = command("merge", *given, "--out", tmp_path / "both")
        assert code == 2
        assert words in line


def test_one_image_in_two_splits_of_two_sources_is_a_leak(command, hospitals, sets, tmp_path):
    again = tmp_path / "again"
    command("mmwhs", "--input", hospitals / "Basel", "--out", again, *WINDOW, "--seed", 5)
    splits = [pd.read_csv(folder / "cases.csv")["split"] for folder in (sets[0], again)]
    assert (splits[0] != splits[1]).any()
    code, (line,), _ = command("merge", sets[0], again, "--out", tmp_path / "both")
    assert code == 2
    assert "a leak between splits" in line
    with pytest.raises(UserError):
        open_prepared(tmp_path / "both")
