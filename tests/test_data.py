"""Prepared sets: whole or not at all, checked when opened, read from disk; batches and augmentation."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlib.config import UserError
from fedlib.data import PreparedWriter, batches, deal_groups, open_prepared, random_affine

MANIFEST = {"task": "classification", "classes": ["a", "b"], "spacing_mm": None, "title": "t", "synthetic": True}


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
    receiver_of = deal_groups(groups, fractions, np.random.default_rng(0))
    assert set(receiver_of) == set(groups.index)
    held = groups.groupby(pd.Series(receiver_of)).sum().reindex(range(len(parts)), fill_value=0)
    if len(groups) >= len(parts):
        assert (held > 0).all(), "nobody stays empty"
    assert (held - fractions * groups.sum()).max() <= max(sizes) + 1e-9, "above a share by one group at most"


def write(out, n=6, fails_at=None):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (n, 1, 4, 4), dtype=np.uint8)
    with PreparedWriter(out) as writer:
        for number, picture in enumerate(pictures):
            if number == fails_at:
                raise KeyboardInterrupt
            writer.add({"case": f"{number}", "patient": f"00{number}", "split": "train"}, picture, number % 2)
        cases = pd.DataFrame(writer.rows)
        writer.finish(MANIFEST, cases, pd.DataFrame(columns=["file", "reason"]))
    return pictures


def test_what_was_written_is_what_is_read(tmp_path):
    pictures = write(tmp_path / "set")
    data = open_prepared(tmp_path / "set", "classification")
    assert (data.images == pictures).all()
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.cases["patient"].tolist() == [f"00{n}" for n in range(6)], "names stay text"
    assert isinstance(data.images, np.memmap), "opened, not loaded"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("fails_at", [0, 3, 5])
def test_a_writer_that_is_stopped_leaves_nothing(tmp_path, fails_at):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", fails_at=fails_at)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_is_stopped_leaves_the_old_set(tmp_path):
    write(tmp_path / "set")
    before = open_prepared(tmp_path / "set").fingerprint
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", n=4, fails_at=3)
    assert open_prepared(tmp_path / "set").fingerprint == before


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    write(tmp_path / "one"), write(tmp_path / "two"), write(tmp_path / "three", n=7)
    one, two, three = (open_prepared(tmp_path / name).fingerprint for name in ("one", "two", "three"))
    assert one == two != three


def cut_short(folder):
    (folder / "images.npy").write_bytes((folder / "images.npy").read_bytes()[:-10])
    return "images.npy"


def edited(folder):
    text = (folder / "cases.csv").read_text()
    (folder / "cases.csv").write_text(text.replace("train", "tests"))  # as long as before
    return "cases.csv"


def missing(folder):
    (folder / "labels.npy").unlink()
    return "labels.npy"


def without_manifest(folder):
    (folder / "manifest.json").unlink()
    return str(folder)


def garbled_manifest(folder):
    (folder / "manifest.json").write_text('{"task": "classi')
    return "manifest.json"


@pytest.mark.parametrize("damage", [cut_short, edited, missing, without_manifest, garbled_manifest])
def test_a_damaged_set_is_refused_by_the_name_of_the_file(tmp_path, damage):
    write(tmp_path / "set")
    folder = (tmp_path / "set").rename(tmp_path / "copied")  # a set that this process has not opened yet
    name = damage(folder)
    with pytest.raises(UserError) as caught:
        open_prepared(folder, "classification")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_set_is_found_by_its_task_and_that_of_the_other_task_is_refused(images, volumes):
    with pytest.raises(UserError, match="classification.*expected segmentation"):
        open_prepared(images.folder, "segmentation")
    assert open_prepared(volumes.folder.parent, "segmentation").fingerprint == volumes.fingerprint


def test_the_manifest_gives_size_and_hash_of_every_file(data, tmp_path):
    files = json.loads((data.folder / "manifest.json").read_text())["files"]
    assert set(files) == {"images.npy", "labels.npy", "cases.csv", "qc.csv"}
    assert all((data.folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    copy = shutil.copytree(data.folder, tmp_path / "moved")
    assert open_prepared(copy).fingerprint == data.fingerprint


def test_tensors_span_minus_one_to_one(data):
    rows = data.split("train")[:3]
    pictures, labels = data.tensors(rows)
    assert pictures.shape == (3, 1, *data.images.shape[2:])
    assert torch.allclose(pictures, torch.from_numpy(data.images[rows] / 127.5 - 1).float(), atol=1e-6)
    assert labels.dtype == torch.int64
    assert labels.shape == ((3,) if data.task == "classification" else (3, 1, *data.images.shape[2:]))


def test_splits_hold_every_case_once(data):
    parts = [data.split(name) for name in ("train", "val", "test")]
    assert sorted(np.concatenate(parts)) == list(range(len(data.cases)))
    assert all(len(part) for part in parts)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blob(*shape):
    """A batch with a box off the centre, as image (-1 outside, 1 inside) and as label."""
    label = torch.zeros(2, 1, *shape, dtype=torch.int64)
    label[(..., *[slice(3, n // 2 + 2) for n in shape])] = 2
    return label.float() - 1, label


@pytest.mark.parametrize("shape", [(16, 16), (12, 16, 16)])
def test_augmentation_moves_image_and_label_together(shape):
    picture, label = blob(*shape)
    moved, moved_label = random_affine(picture, label, generator(), degrees=20, scale=0.2, shift=0.1)
    assert not torch.equal(label, moved_label)
    assert set(moved_label.unique().tolist()) <= {0, 2}, "labels are not blended"
    agree = ((moved > 0) == (moved_label == 2)).float().mean()
    assert agree > 0.99
    assert not torch.equal(moved_label[0], moved_label[1]), "every case is moved on its own"


def test_augmentation_comes_from_the_generator_and_can_be_nothing():
    picture, label = blob(16, 16)
    torch.manual_seed(1)
    one, _ = random_affine(picture, label, generator(5), 20, 0.2, 0.1)
    torch.manual_seed(2)
    two, _ = random_affine(picture, label, generator(5), 20, 0.2, 0.1)
    assert torch.equal(one, two)
    same, same_label = random_affine(picture, label, generator(), 0, 0, 0)
    assert torch.allclose(same, picture, atol=1e-5)
    assert torch.equal(same_label, label)
    assert random_affine(picture, None, generator(), 5, 0, 0)[1] is None
