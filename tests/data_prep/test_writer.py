"""The writer of prepared sets: whole or not at all, resumable after any stop, and the same bits whichever way."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest

from data_prep import writer
from data_prep.writer import PreparedWriter
from fedlib.config import UserError
from fedlib.data.dataset import open_prepared
from tests.data_prep.sets import READING, pixels, write


def stop_at(stop, error=KeyboardInterrupt):
    """A `before` that stops before case `stop`, and the list of the cases that came before it."""
    seen = []

    def before(number):
        if number == stop:
            raise error
        seen.append(number)

    return before, seen


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def interrupted(out, stop=4, **options):
    """Leave what a writer leaves that is stopped before case `stop` of six; its partial folder."""
    with pytest.raises(KeyboardInterrupt):
        write(out, before=stop_at(stop)[0], **options)
    return out.with_name(f".{out.name}.partial")


def finish_counting(out, numbers=range(6), **options):
    """Finish a set; it has the bits of one made in one go. Gives the cases that were read for it."""
    before, seen = stop_at(None)
    data = write(out, numbers, before, **options)
    assert (data.images == np.stack([pixels(number) for number in numbers])).all()
    assert data.labels.tolist() == [number % 2 for number in numbers]
    assert data.cases["n"].tolist() == list(numbers)
    assert data.fingerprint == write(out.with_name("whole"), numbers, **options).fingerprint
    assert names(out.parent) == sorted([out.name, "whole"]), "nothing is left beside a finished set"
    return seen


def test_what_was_written_is_what_is_read(tmp_path):
    write(tmp_path / "set")
    data = open_prepared(tmp_path / "set", "classification")
    assert (data.images == np.stack([pixels(number) for number in range(6)])).all()
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.labels.dtype == np.int64
    assert data.cases["patient"].tolist() == [f"00{n}" for n in range(6)], "names stay text"
    assert isinstance(data.images, np.memmap), "opened, not loaded"
    assert names(tmp_path) == ["set"]


def test_volumes_keep_their_labels_as_bytes(tmp_path):
    image, label = np.full((1, 2, 3, 4), 7, np.uint8), np.arange(24).reshape(2, 3, 4)
    with PreparedWriter(tmp_path / "set", READING) as target:
        target.add("k", image, label)
        data = target.finish(
            READING | {"task": "segmentation", "spacing_mm": [1.0]}, ["k"], {"cases.csv": pd.DataFrame({"case": ["c"]})}
        )
    assert data.labels.dtype == np.uint8
    assert (data.labels[0] == label).all()


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    one, two, three = (write(tmp_path / name, range(n)).fingerprint for name, n in (("1", 6), ("2", 6), ("3", 7)))
    assert one == two != three


@pytest.mark.parametrize("stop", range(6))
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_stopped_writer_leaves_no_set_and_the_next_reads_only_the_rest(tmp_path, stop, error):
    with pytest.raises(error):
        write(tmp_path / "set", before=stop_at(stop, error)[0])
    assert names(tmp_path) == ([".set.partial"] if stop else [])
    assert finish_counting(tmp_path / "set") == list(range(stop, 6))


def test_a_set_stopped_again_and_again_is_the_same(tmp_path):
    for stop in range(1, 6):
        interrupted(tmp_path / "set", stop)
    assert finish_counting(tmp_path / "set") == [5]


def test_a_stopped_writer_leaves_the_old_set(tmp_path):
    before = write(tmp_path / "set", range(3)).fingerprint
    interrupted(tmp_path / "set")
    assert open_prepared(tmp_path / "set").fingerprint == before
    assert finish_counting(tmp_path / "set") == [4, 5]


def test_what_was_read_in_another_way_is_not_taken_over(tmp_path):
    interrupted(tmp_path / "set")
    assert finish_counting(tmp_path / "set", recipe={"size": 64}) == [0, 1, 2, 3, 4, 5]
    assert finish_counting(tmp_path / "set") == [0, 1, 2, 3, 4, 5], "nor from a finished set"


def assert_appears(out):
    """A set that was whole already takes its place when the next writer opens."""
    with PreparedWriter(out, READING):
        assert len(open_prepared(out).cases) == 6
    assert names(out.parent) == [out.name]


@pytest.mark.parametrize("old", [False, True])
def test_a_set_whose_writer_was_killed_while_putting_it_in_place_appears(tmp_path, old):
    whole, partial = write(tmp_path / "set").folder, tmp_path / ".set.partial"
    partial.mkdir()
    whole.rename(partial / "set")
    if old:
        shutil.copytree(partial / "set", partial / "old")
    assert_appears(tmp_path / "set")


@pytest.mark.parametrize("renames", [0, 1])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_stop_while_putting_in_place_loses_neither_the_old_nor_the_new_set(tmp_path, monkeypatch, renames, error):
    write(tmp_path / "set", range(3))
    real, done = type(tmp_path).rename, []

    def rename(path, target):
        if path.name == "set":
            if len(done) == renames:
                raise error
            done.append(path)
        return real(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(type(tmp_path), "rename", rename)
        with pytest.raises(UserError if error is OSError else error):
            write(tmp_path / "set")
    assert_appears(tmp_path / "set")


def test_a_manifest_that_was_not_written_to_its_end_does_not_count(tmp_path, monkeypatch):
    old = write(tmp_path / "set", range(3)).fingerprint
    with monkeypatch.context() as patched:
        real = type(tmp_path).write_bytes

        def write_bytes(path, content):
            if "manifest" in path.name:
                real(path, content[:20])
                raise KeyboardInterrupt
            return real(path, content)

        patched.setattr(type(tmp_path), "write_bytes", write_bytes)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "set")
    assert open_prepared(tmp_path / "set").fingerprint == old
    finish_counting(tmp_path / "set")


def test_every_file_is_on_the_disk_before_the_set_counts_as_whole(tmp_path, monkeypatch):
    """After a power cut a name may stand before an empty file, unless it was asked for."""
    real, synced = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")) or real(file))
    data = write(tmp_path / "set")
    manifest = next(number for number, name in enumerate(synced) if "manifest.json" in name)
    assert set(data.manifest["files"]) <= {name.rsplit("/", 1)[-1] for name in synced[:manifest]}


def test_two_writers_of_one_set_are_refused(tmp_path):
    with PreparedWriter(tmp_path / "set", READING) as first:
        first.add("k0", pixels(0), 0, columns={"n": 0})
        with pytest.raises(UserError, match="another data_prep is writing") as caught, PreparedWriter(tmp_path / "set", {}):
            pass
        assert "\n" not in str(caught.value)
    assert finish_counting(tmp_path / "set") == [1, 2, 3, 4, 5], "the first one did not notice"


def test_a_mount_point_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(type(tmp_path), "is_mount", lambda path: path.name == "set")
    with pytest.raises(UserError, match="mount point"):
        write(tmp_path / "set")
    assert names(tmp_path) == []


def cases_of(partial):
    """The files of the cases that were read, in the order in which they were."""
    return sorted(partial.glob("*.npz"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_case_whose_file_is_not_whole_is_read_again(tmp_path, damage):
    path = cases_of(interrupted(tmp_path / "set"))[1]
    path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    assert finish_counting(tmp_path / "set") == [1, 4, 5]


def test_a_flipped_bit_in_a_case_is_found_at_the_end_and_the_case_read_again(tmp_path):
    path = cases_of(interrupted(tmp_path / "set"))[1]
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="a case was damaged .* the same command reads it again"):
        write(tmp_path / "set")
    assert finish_counting(tmp_path / "set") == [1]


@pytest.mark.parametrize("at", ["describe", "to_disk"])
def test_a_stop_while_finishing_loses_no_case(tmp_path, monkeypatch, at):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writer, at, stop)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "set")
    assert finish_counting(tmp_path / "set") == []


def test_entries_are_the_same_before_and_after_a_stop(tmp_path):
    """Else cases.csv would differ: a tuple is a list once it was read from JSON."""
    with PreparedWriter(tmp_path / "set", READING) as target:
        target.add("k0", pixels(0), 0, columns={"spacing": (1.0, 2.5), 3: None})
        known = target.known("k0")
    with PreparedWriter(tmp_path / "set", READING) as target:
        assert target.known("k0") == known
