"""Prepared sets: checked when opened, read from disk; groups, batches and augmentation. test_writer.py tests writing."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedlib.data.dataset
from fedlib.config import UserError
from fedlib.data.dataset import assign_groups, batches, open_prepared, read_cases
from tests.helpers import snapshot


@given(st.integers(1, 200), st.integers(1, 40), st.booleans())
def test_batches_cover_all_rows_in_nearly_equal_sizes(n, batch_size, shuffled):
    rows = np.arange(1000, 1000 + n)
    cut = list(batches(rows, batch_size, torch.Generator().manual_seed(3) if shuffled else None))
    sizes = [len(batch) for batch in cut]
    assert sorted(np.concatenate(cut)) == rows.tolist()
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(cut) == -(-n // batch_size), "no more steps than needed"


def test_batches_are_shuffled_by_the_generator_alone():
    one, two, other = (
        np.concatenate(list(batches(np.arange(50), 8, torch.Generator().manual_seed(seed)))) for seed in (1, 1, 2)
    )
    assert (one == two).all()
    assert (one != other).any()
    assert (one != np.arange(50)).any()
    assert (np.concatenate(list(batches(np.arange(50), 8))) == np.arange(50)).all()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.lists(st.floats(0.05, 1), min_size=1, max_size=6))
def test_groups_are_dealt_whole_and_near_the_shares(sizes, parts):
    fractions = np.array(parts) / sum(parts)
    groups = pd.Series(sizes, [f"g{n}" for n in range(len(sizes))])
    receiver_of = assign_groups(groups, fractions, np.random.default_rng(0))
    assert set(receiver_of) == set(groups.index)
    held = groups.groupby(pd.Series(receiver_of)).sum().reindex(range(len(parts)), fill_value=0)
    if len(groups) >= len(parts):
        assert (held > 0).all(), "nobody stays empty"
    assert (held - fractions * groups.sum()).max() <= max(sizes) + 1e-9, "above a share by one group at most"


@pytest.fixture
def folder(images, tmp_path) -> Path:
    """A copy of a prepared set that this test may damage."""
    return shutil.copytree(images.folder, tmp_path / "set")


def refused(folder: Path, task: str | None = None) -> str:
    """The one line with which a set is refused."""
    with pytest.raises(UserError) as caught:
        open_prepared(folder, task)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_manifest(folder: Path, **changes) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def edit(path: Path) -> None:
    """Change the last byte but one: the size stays, the time does not."""
    content, before = bytearray(path.read_bytes()), path.stat()
    content[-2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


FILES = ("images.npy", "labels.npy", "cases.csv", "qc.csv", "duplicates.csv")


@pytest.mark.parametrize("opened_before", [False, True])
@pytest.mark.parametrize("damage", [edit, cut, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_by_its_name(folder, name, damage, opened_before):
    if opened_before:
        open_prepared(folder)
    damage(folder / name)
    assert str(folder / name) in refused(folder)


def test_a_file_that_is_a_link_to_nowhere_is_missing(folder):
    (folder / "images.npy").unlink()
    (folder / "images.npy").symlink_to("gone.npy")
    assert "images.npy: cannot be read (No such file or directory)" in refused(folder)


@pytest.mark.parametrize("reader", ["file_sha256", "read_cases"])
def test_a_file_that_may_not_be_read_is_named(folder, monkeypatch, reader):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(fedlib.data.dataset, reader, denied)
    name = "images.npy" if reader == "file_sha256" else "cases.csv"
    assert refused(folder) == f"{folder / name}: cannot be read (Permission denied); expected a prepared set"


def test_a_folder_without_a_manifest_is_no_set(folder):
    (folder / "manifest.json").unlink()
    assert "not a prepared set (no manifest.json)" in refused(folder)
    assert str(folder / "nowhere") in refused(folder / "nowhere")


@pytest.mark.parametrize("text", ["", '{"task": "classi', "[]", "3", '{"format": 2}', "\xff"])
def test_a_manifest_that_is_none_is_refused(folder, text):
    (folder / "manifest.json").write_text(text, encoding="latin-1")
    assert f"{folder}/manifest.json: not readable" in refused(folder)


@pytest.mark.parametrize("version", [None, 1, 3, "2"])
def test_a_set_of_another_format_is_refused(folder, version):
    with_manifest(folder, format=version, files=None)
    assert f"manifest.json: format {version}, expected 2" in refused(folder)


@pytest.mark.parametrize(
    "changes", [{"classes": ["ill", "healthy"]}, {"synthetic": False}, {"task": "segmentation"}, {"fingerprint": "0"}]
)
def test_an_edited_manifest_is_refused(folder, changes):
    open_prepared(folder)
    assert "manifest.json: edited" in refused(with_manifest(folder, **changes))


@pytest.mark.parametrize("changes", [{"fingerprint": None}, {"files": {}}, {"files": {"images.npy": 3}}])
def test_a_manifest_that_lacks_something_is_refused(folder, changes):
    assert "manifest.json: " in refused(with_manifest(folder, **changes))


def hashed(monkeypatch) -> list[str]:
    """Names of the files that are hashed from now on."""
    names, real = [], fedlib.data.files.file_sha256
    monkeypatch.setattr(fedlib.data.dataset, "file_sha256", lambda path: names.append(path.name) or real(path))
    return names


def test_a_set_is_hashed_once_while_it_stays_the_same(folder, images, monkeypatch):
    names = hashed(monkeypatch)
    assert open_prepared(folder).fingerprint == images.fingerprint
    assert open_prepared(folder) is open_prepared(folder)
    assert sorted(names) == sorted(FILES)
    os.utime(folder / "labels.npy", ns=(99, 99))
    open_prepared(folder)
    assert sorted(names) == sorted(2 * FILES)


def test_opening_leaves_nothing_behind(folder):
    before = snapshot(folder)
    open_prepared(folder)
    assert snapshot(folder) == before


def test_a_set_is_found_by_its_task_and_that_of_the_other_task_is_refused(images, volumes):
    with pytest.raises(UserError, match="classification.*expected segmentation"):
        open_prepared(images.folder, "segmentation")
    assert open_prepared(volumes.folder.parent, "segmentation").fingerprint == volumes.fingerprint


def test_the_manifest_gives_size_and_hash_of_every_file(data, tmp_path):
    files = json.loads((data.folder / "manifest.json").read_text())["files"]
    assert set(files) == set(FILES)
    assert all((data.folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    copy = shutil.copytree(data.folder, tmp_path / "moved")
    assert open_prepared(copy).fingerprint == data.fingerprint


def test_names_in_the_tables_are_text(tmp_path):
    (tmp_path / "cases.csv").write_text("case,patient,label,age,sex\n001,NA,None,,\n2,,7,50,F\n")
    cases = read_cases(tmp_path / "cases.csv")
    assert cases[["case", "patient", "label"]].to_numpy().tolist() == [["001", "NA", "None"], ["2", "", "7"]]
    assert cases["age"].isna().tolist() == [True, False]
    assert cases["sex"].isna().tolist() == [True, False]


def test_tensors_span_minus_one_to_one(data):
    rows = data.split("train")[:3]
    pictures, labels = data.load_batch(rows)
    assert pictures.shape == (3, 1, *data.images.shape[2:])
    assert torch.allclose(pictures, torch.from_numpy(data.images[rows] / 127.5 - 1).float(), atol=1e-6)
    assert labels.dtype == torch.int64
    assert labels.shape == ((3,) if data.task == "classification" else (3, 1, *data.images.shape[2:]))


def test_splits_hold_every_case_once(data):
    parts = [data.split(name) for name in ("train", "val", "test")]
    assert sorted(np.concatenate(parts)) == list(range(len(data.cases)))
    assert all(len(part) for part in parts)


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        (["1.5", "", "1e-05", "inf"], "float64"),
        (["1", "-2"], "int64"),
        (["", ""], "float64"),
        (["True", "False"], "bool"),
        (["1", ""], "object"),
        (["1.0", "2"], "object"),
        (["1E3", "1000"], "object"),
        (["007", "7"], "object"),
        (["nan", "1.5"], "object"),
        (["9007199254740993", "1"], "object"),
        (["1_0", "10"], "object"),
    ],
)
def test_a_column_is_numbers_only_where_each_is_written_so(tmp_path, written, kind):
    (tmp_path / "cases.csv").write_text("\n".join(["case,code", *(f"c,{code}" for code in written)]) + "\n")
    codes = read_cases(tmp_path / "cases.csv")["code"]
    assert str(codes.dtype).replace("str", "object") == kind
    assert ["" if pd.isna(code) else str(code) for code in codes] == written
