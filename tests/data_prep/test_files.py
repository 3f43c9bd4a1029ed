"""Raw files: a folder and its zip are the same to the reader, and what leads out of them is not followed."""

import os
import struct
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.files import natural_key, opened
from fedlib.config import UserError
from tests.data_prep.raw import zipped

TREE = {"a/2.png": b"two", "a/10.png": b"ten", "b/x/1.png": b"one"}


def tree(folder, content=TREE):
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def archive(path, *members, compression=zipfile.ZIP_DEFLATED):
    """A zip of (name, content), in that order."""
    with zipfile.ZipFile(path, "w", compression) as packed:
        for name, content in members:
            packed.writestr(name, content)
    return path


def content(source):
    with opened(source) as files:
        return {name: files.read(name) for name in files.stamps}


def refused(source):
    """The one line with which `source` is refused."""
    with pytest.raises(UserError) as caught, opened(source):
        pass
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


NAMES = st.text("ab1", min_size=1, max_size=3)
PATHS = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=9), min_size=1, max_size=8
).filter(lambda found: not any(other.startswith(f"{name}/") for name in found for other in found))


@given(PATHS)
def test_a_folder_and_its_zip_are_the_same(found):
    with tempfile.TemporaryDirectory() as temporary:
        folder = tree(Path(temporary, "raw"), found)
        one, two = content(folder), content(zipped(folder, Path(temporary, "raw.zip")))
        three = content(zipped(folder, Path(temporary, "top.zip"), top="some/top"))
    assert list(one.items()) == list(two.items()) == list(three.items())
    assert sorted(one.values()) == sorted(found.values())


def test_lone_top_folders_are_left_out_and_names_are_in_natural_order(tmp_path):
    tree(tmp_path / "raw" / "Dataset_1" / "data")
    (tmp_path / "raw" / "__MACOSX").mkdir()
    with opened(tmp_path / "raw") as files:
        assert list(files.stamps) == ["a/2.png", "a/10.png", "b/x/1.png"]
        assert files.where("a/2.png") == f"{tmp_path}/raw/Dataset_1/data/a/2.png"
    with opened(zipped(tmp_path / "raw", tmp_path / "raw.zip")) as files:
        assert list(files.stamps) == ["a/2.png", "a/10.png", "b/x/1.png"]
        assert files.where("a/2.png") == f"{tmp_path}/raw.zip:Dataset_1/data/a/2.png"


def test_what_operating_systems_leave_behind_is_ignored(tmp_path):
    left = [".DS_Store", "a/.DS_Store", "__MACOSX/a/._2.png", "a/Thumbs.db", "b/desktop.ini", ".git/config"]
    folder = tree(tmp_path / "raw", TREE | dict.fromkeys(left, b"x"))
    os.symlink("/nowhere", folder / ".link")
    with opened(folder) as files:
        assert set(files.stamps) == set(TREE)
        assert files.unsafe == {}
    assert set(content(archive(tmp_path / "raw.zip", *TREE.items(), *((name, b"x") for name in left)))) == set(TREE)


def test_a_file_that_changed_has_another_stamp(tmp_path):
    def stamp(source):
        with opened(source) as files:
            return files.stamps["a/2.png"]

    folder = tree(tmp_path / "raw")
    before = stamp(folder)
    assert stamp(folder) == before
    (folder / "a" / "2.png").write_bytes(b"TWO")
    os.utime(folder / "a" / "2.png", ns=(1, 1))
    assert stamp(folder) != before
    one, two = (archive(tmp_path / f"{text}.zip", *(TREE | {"a/2.png": text}).items()) for text in ("two", "TWO"))
    assert stamp(one) != stamp(two)


def test_a_source_that_is_a_link_is_read(tmp_path):
    os.symlink(tree(tmp_path / "raw"), tmp_path / "link")
    assert content(tmp_path / "link") == TREE


def patched(path, what, offset, value):
    """Overwrite a 2 or 4 byte field of the first entry in the central directory (b"PK12") or of the first file (b"PK34")."""
    data = bytearray(path.read_bytes())
    start = data.index({"central": b"PK\x01\x02", "local": b"PK\x03\x04"}[what]) + offset
    data[start : start + len(value)] = value
    path.write_bytes(data)
    return path


def test_a_member_that_is_larger_than_it_says_does_not_fill_the_memory(tmp_path):
    path = archive(tmp_path / "raw.zip", ("bomb.png", bytes(50 * 2**20)), ("fine.png", b"x"))
    with opened(patched(path, "central", 24, struct.pack("<I", 1000))) as files:
        tracemalloc.start()
        with pytest.raises(UserError, match=r"^bomb.png: damaged"):
            files.read("bomb.png")
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
        tracemalloc.stop()
        assert files.read("fine.png") == b"x"


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=3), st.integers(0, 2))
def test_whatever_is_wrong_with_a_zip_is_said_in_one_line(flips, flag):
    with tempfile.TemporaryDirectory() as temporary:
        path = archive(Path(temporary, "raw.zip"), *TREE.items())
        data = bytearray(path.read_bytes())
        start = (0, data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06"))[flag]  # files, directory, end
        for where, bits in flips:
            data[start + where % (len(data) - start)] ^= bits
        path.write_bytes(data)
        said = "nothing"
        try:
            with opened(path) as files:
                for name in files.stamps:
                    files.read(name)
        except UserError as error:
            said = str(error)
        assert len(said.splitlines()) == 1


def test_a_file_that_cannot_be_read_is_a_user_error(tmp_path):
    folder = tree(tmp_path / "raw")
    with opened(folder) as files:
        (folder / "a" / "2.png").unlink()
        with pytest.raises(UserError, match=r"^a/2.png: damaged or not readable"):
            files.read("a/2.png")


@pytest.mark.parametrize("call", ["scandir", "lstat"])
def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch, call):
    """It cannot be listed or, with the rights `r--`, no more than listed."""

    def denied(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    folder = tree(tmp_path / "raw")
    monkeypatch.setattr(*(os, "scandir") if call == "scandir" else (Path, "lstat"), denied)
    assert "cannot be read (Permission denied)" in refused(folder)


def test_names_whose_numbers_are_equal_have_one_order_too(tmp_path):
    members = [("a/01.png", b"x"), ("a/1.png", b"x"), ("a/001.png", b"x")]
    one, two = (list(content(archive(tmp_path / f"{step}.zip", *members[::step]))) for step in (1, -1))
    assert one == two


def test_natural_order():
    assert sorted(["c10", "c9", "c1", "b2"], key=natural_key) == ["b2", "c1", "c9", "c10"]
    assert natural_key("9" * 5000), "Python refuses to read a number that long"
