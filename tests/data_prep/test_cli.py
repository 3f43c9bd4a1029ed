"""python -m data_prep: every source from folder and zip, options, disks, and going on after whatever stopped it."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from data_prep import __main__ as door
from data_prep import sources
from data_prep.files import Files
from fedlib.data.dataset import open_prepared
from tests.data_prep import raw
from tests.data_prep.radiographs_raw import dicom, encoded
from tests.data_prep.spoiled import SOURCES, zipped
from tests.helpers import files_of_at_most, python, snapshot, started


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that are read from now on."""
    names, read = [], Files.read
    monkeypatch.setattr(Files, "read", lambda files, name: names.append(name) or read(files, name))
    return names


def stated_fingerprint(lines):
    return lines[-1].split()[1].removesuffix(";")


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_from_folder_and_from_zip(tmp_path, prepare, reads, source):
    folder = SOURCES[source].make(tmp_path / "raw")
    shutil.copytree(folder, tmp_path / "below" / "one" / "two")
    inputs = {"folder": folder, "zip": zipped(folder), "deeper": tmp_path / "below"}
    for name, given in inputs.items():
        code, said, told = prepare(source, given, tmp_path / name)
        assert (code, said) == (0, [])
        data = open_prepared(tmp_path / name, SOURCES[source].task)
        assert stated_fingerprint(told) == data.fingerprint[:12]
        assert told[-1].endswith(str(tmp_path / name))
        assert data.manifest["source"] == source
        assert len(data.cases) == SOURCES[source].cases
    assert len({open_prepared(tmp_path / name).fingerprint for name in inputs}) == 1
    assert not {path.name for path in tmp_path.iterdir()} - {*inputs, "raw", "below", "x.zip"}, "nothing is unpacked"


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("more", [(), ("--overwrite",)], ids=["again", "overwrite"])
def test_the_same_command_again_reads_nothing_and_leaves_the_set_alone(tmp_path, prepare, reads, source, more):
    folder = SOURCES[source].make(tmp_path / "raw")
    first = prepare(source, folder, tmp_path / "out")
    before = snapshot(tmp_path)
    reads.clear()
    again = prepare(source, folder, tmp_path / "out", *more)
    assert [name for name in reads if name.endswith((".png", ".nii.gz"))] == []
    assert (again[0], again[2][-4:]) == (0, first[2][-4:])
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("top", ["", "Dataset"], ids=["beside the classes", "beside their top folder"])
def test_a_set_among_its_raw_files_is_none_of_them(tmp_path, prepare, top):
    folder = tmp_path / "raw"
    SOURCES["class-folders"].make(folder / top)
    for _ in range(2):
        assert prepare("class-folders", folder, folder / "prepared")[:2] == (0, [])
    assert open_prepared(folder / "prepared").classes == ["healthy", "ill"]


@pytest.mark.parametrize("there", [True, False], ids=["to a folder", "to nowhere yet"])
def test_a_link_to_a_larger_disk_stays_one(tmp_path, prepare, there):
    folder, disk, out = SOURCES["class-folders"].make(tmp_path / "raw"), tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    if there:
        (disk / "set").mkdir()
    out.symlink_to(disk / "set")
    for more in ([], ["--overwrite", "--seed", "3"]):
        assert prepare("class-folders", folder, out, *more)[:2] == (0, [])
        assert out.is_symlink()
        assert (disk / "set" / "manifest.json").exists()
        assert open_prepared(out).fingerprint == open_prepared(disk / "set").fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "disk", "out"}


@pytest.mark.parametrize(("source", "n"), [("synthetic-cxr", 20), ("synthetic-cardiac", 3)])
def test_phantoms_of_another_recipe_are_refused_before_they_are_drawn(tmp_path, command, monkeypatch, source, n):
    def call(*more):
        return command(source, "--cases", n, "--size", "16", "--out", tmp_path / "out", *more)

    assert call()[:2] == (0, [])
    before = snapshot(tmp_path)
    monkeypatch.setattr(sources, "write_chest_xrays", None)
    monkeypatch.setattr(sources, "write_cardiac_ct", None)
    assert call()[:2] == (0, [])
    code, said, _ = call("--seed", "5")
    assert (code, len(said)) == (2, 1)
    assert f"--out {tmp_path / 'out'}" in said[0]
    assert "--overwrite" in said[0]
    assert snapshot(tmp_path) == before
    monkeypatch.undo()
    (tmp_path / "out" / "images.npy").write_bytes(b"")
    assert call("--overwrite")[:2] == (0, [])
    assert len(open_prepared(tmp_path / "out").cases) == n


ODD = {"gesund & älter 🫀": 5, "krank, „grippal“ ü": 5, "Class; with 'spaces'": 5}


def test_names_with_spaces_umlauts_and_emoji_work(tmp_path, prepare):
    folder = raw.class_folders(tmp_path / "Röntgen 🩻 bilder", ODD)
    for given, out in ((folder, "aus Ordner ü"), (zipped(folder), "aus 🗜")):
        assert prepare("class-folders", given, tmp_path / out)[:2] == (0, [])
    one, two = (open_prepared(tmp_path / name) for name in ("aus Ordner ü", "aus 🗜"))
    assert one.fingerprint == two.fingerprint
    assert one.classes == sorted(ODD)
    assert set(one.cases["label"]) == set(ODD)


def test_the_content_of_an_image_counts_not_its_suffix(tmp_path, prepare):
    folder = SOURCES["class-folders"].make(tmp_path / "raw")
    (folder / "ill" / "ill-1.png").write_bytes(encoded(Image.fromarray(raw.picture(50)), "JPEG"))
    (folder / "ill" / "ill-2.png").write_bytes(dicom(raw.picture(51)))
    (folder / "ill" / "shout.PNG").write_bytes(encoded(Image.fromarray(raw.picture(52))))
    (folder / "ill" / "patient.png").mkdir()  # a folder that is called like a file
    for n in (1, 2):
        Image.fromarray(raw.picture(60 + n)).save(folder / "ill" / "patient.png" / f"{n}.png")
    assert prepare("class-folders", folder, tmp_path / "out")[:2] == (0, [])
    cases = open_prepared(tmp_path / "out").cases.set_index("case")
    assert len(cases) == 15
    assert cases.loc[["ill/patient.png/1", "ill/patient.png/2"], "patient"].tolist() == ["patient.png"] * 2


def test_a_patient_in_two_classes_is_counted_and_kept_in_one_split(tmp_path, prepare):
    folder = SOURCES["class-folders"].make(tmp_path / "raw")
    for n, name in enumerate(("healthy", "ill")):
        (folder / name / "both").mkdir()
        Image.fromarray(raw.picture(70 + n)).save(folder / name / "both" / "1.png")
    code, _, told = prepare("class-folders", folder, tmp_path / "out")
    assert code == 0
    assert "1 patients in several classes" in told[-2]
    cases = open_prepared(tmp_path / "out").cases
    assert cases[cases["patient"] == "both"]["split"].nunique() == 1
    assert cases[cases["patient"] == "both"]["label"].nunique() == 2


def test_after_a_file_is_mended_the_same_command_goes_on(tmp_path, prepare, reads):
    folder = SOURCES["class-folders"].make(tmp_path / "raw")
    last = folder / "ill" / "ill-6.png"
    good = last.read_bytes()
    last.write_bytes(good[:90])
    assert prepare("class-folders", folder, tmp_path / "out", "--jobs", "1")[0] == 2
    last.write_bytes(good)
    reads.clear()
    assert prepare("class-folders", folder, tmp_path / "out", "--jobs", "1")[0] == 0
    assert reads == ["ill/ill-6.png"]
    assert prepare("class-folders", folder, tmp_path / "anew")[0] == 0
    assert open_prepared(tmp_path / "out").fingerprint == open_prepared(tmp_path / "anew").fingerprint


def test_files_that_came_are_added_only_when_asked(tmp_path, prepare):
    folder, out = SOURCES["class-folders"].make(tmp_path / "raw"), tmp_path / "out"
    prepare("class-folders", folder, out)
    Image.fromarray(raw.picture(50)).save(folder / "ill" / "ill-7.png")
    before = snapshot(out)
    code, said, _ = prepare("class-folders", folder, out)
    assert (code, len(said)) == (2, 1)
    assert f"--out {out}" in said[0]
    assert "--overwrite" in said[0]
    assert snapshot(out) == before
    assert prepare("class-folders", folder, out, "--overwrite")[:2] == (0, [])
    assert len(open_prepared(out).cases) == 13


@pytest.mark.parametrize("changed", [("--size", "24"), ("--seed", "5"), ("--near", "0"), ("--on-bad", "skip")])
def test_other_settings_need_overwrite(tmp_path, prepare, changed):
    folder, out = SOURCES["class-folders"].make(tmp_path / "raw"), tmp_path / "out"
    prepare("class-folders", folder, out)
    before = snapshot(out)
    code, said, _ = prepare("class-folders", folder, out, *changed)
    assert (code, len(said)) == (2, 1)
    assert "other settings" in said[0]
    assert "--overwrite" in said[0]
    assert snapshot(out) == before
    assert prepare("class-folders", folder, out, *changed, "--overwrite")[:2] == (0, [])
    assert prepare("class-folders", folder, out, *changed)[:2] == (0, [])


def test_labels_renamed_in_dataset_json_are_read_anew(tmp_path, prepare):
    folder, out = SOURCES["msd"].make(tmp_path / "raw"), tmp_path / "out"
    prepare("msd", folder, out)
    first = open_prepared(out).fingerprint
    table = folder / "dataset.json"
    table.write_text(table.read_text().replace("LV", "swap").replace("Myo", "LV").replace("swap", "Myo"))
    assert prepare("msd", folder, out)[0] == 2
    assert prepare("msd", folder, out, "--overwrite")[0] == 0
    assert open_prepared(out).fingerprint != first


BAD_OPTIONS = [
    ("class-folders", ["--size", "15"], ["--size", "15", "16"]),
    ("class-folders", ["--size", "5000"], ["--size", "5000", "16<=x<=4096"]),
    ("class-folders", ["--size", "16.5"], ["--size", "16.5", "integer"]),
    ("class-folders", ["--seed", "-1"], ["--seed", "-1", ">=0"]),
    ("class-folders", ["--near", "65"], ["--near", "65", "0<=x<=64"]),
    ("class-folders", ["--jobs", "0"], ["--jobs", "0", "1<=x<=256"]),
    ("class-folders", ["--jobs", "100000"], ["--jobs", "100000", "1<=x<=256"]),
    ("class-folders", ["--on-bad", "perhaps"], ["--on-bad", "perhaps", "stop", "skip"]),
    ("class-folders", ["--where", "mini=1"], ["--where mini=1", "manifest.csv"]),
    ("class-folders", ["--where", ""], ["--where : ", "manifest.csv"]),
    ("class-folders", ["--spacing", "2,2,2"], ["--spacing"]),
    ("mmwhs", ["--size", "16,16"], ["size = '16,16': ", "at least 3 items"]),
    ("mmwhs", ["--size", "16,16,20"], ["size = '20': ", "a multiple of 8"]),
    ("mmwhs", ["--size", "16,16,-8"], ["size = '-8': ", "greater than 0"]),
    ("mmwhs", ["--size", "8000,8000,8000"], ["size = '8000,8000,8000'", "512000000000 voxels", "expected at most 67108864"]),
    ("mmwhs", ["--size", "16,16,inf"], ["size = 'inf': ", "a valid integer"]),
    ("mmwhs", ["--spacing", "2,2,0"], ["spacing_mm = '0': ", "greater than or equal to 0.05"]),
    ("mmwhs", ["--spacing", "two"], ["spacing_mm = 'two': ", "a valid number"]),
    ("mmwhs", ["--spacing", ""], ["spacing_mm = '': ", "at least 1 item"]),
    ("mmwhs", ["--spacing", "1,99,1"], ["spacing_mm = '99': ", "less than or equal to 50"]),
    ("mmwhs", ["--window", "1"], ["window = '1': ", "at least 2 items"]),
    ("mmwhs", ["--window", "-1e300,1e300"], ["window = '-1e300': ", "greater than or equal to -1000000"]),
    ("mmwhs", ["--window", "nan,1"], ["window = 'nan': ", "less than or equal to 1000000"]),
    ("mmwhs", ["--window", "440,-160"], ["window = '440,-160': ", "the smaller number first"]),
    ("mmwhs", ["--modality", "pet"], ["modality = 'pet': ", "'ct' or 'mr'"]),
    ("mmwhs", ["--crop", "middle"], ["crop = 'middle': ", "'heart' or 'centre'"]),
    ("mmwhs", ["--margin", "-1"], ["margin_mm = '-1': ", "greater than or equal to 0"]),
    ("mmwhs", ["--margin", "nan"], ["margin_mm = 'nan': "]),
    ("mmwhs", ["--max-loss", "1.5"], ["max_loss = '1.5': ", "less than or equal to 1"]),
    ("mmwhs", ["--lv", "LV"], ["lv 'LV'", "expected label values"]),
    ("mmwhs", ["--lv", ""], ["lv ''", "expected"]),
    ("mmwhs", ["--lv", "205"], ["lv '205', myo '205'", "expected"]),
    ("totalsegmentator", ["--myo", "myocard"], ["--myo myocard", "segmentations/myocard.nii.gz", "expected"]),
    ("totalsegmentator", ["--lv", "500"], ["--lv 500", "expected names of masks"]),
    ("msd", ["--lv", "atrium"], ["--lv atrium", "dataset.json", "expected some of"]),
    ("msd", ["--myo", "LV"], ["myo", "expected"]),
]


@pytest.mark.parametrize(("source", "options", "words"), BAD_OPTIONS, ids=lambda value: " ".join(value[:2]))
def test_a_bad_option_is_one_line_and_nothing_is_written(tmp_path, prepare, source, options, words):
    folder = SOURCES[source].make(tmp_path / "raw")
    code, said, _ = prepare(source, folder, tmp_path / "out", *options)
    assert (code, len(said)) == (2, 1), said
    assert said[0].startswith("error: ")
    assert [word for word in words if word not in said[0]] == [], said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["synthetic-cxr", "--cases", "19"], ["--cases", "19", ">=20"]),
        (["synthetic-cardiac", "--size", "sixteen"], ["--size", "sixteen"]),
        (["synthetic-cardiac", "--size", "20", "--out", "set"], ["size = 20: ", "a multiple of 8"]),
        (["radiographs"], ["radiographs"]),
        (["class-folders"], ["--input"]),
        (["mmwhs", "--input", "."], ["--out"]),
        (["--verbose"], ["--verbose"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_the_command_line_itself_refuses_names_option_and_value(tmp_path, monkeypatch, command, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, said, _ = command(*arguments)
    assert (code, len(said)) == (2, 1)
    assert all(word in said[0] for word in words), said
    assert list(tmp_path.iterdir()) == []


def beside_a_thesis(folder):
    (folder / "out").mkdir()
    (folder / "out" / "thesis.txt").write_text("years of work")
    return folder / "out"


def beside_a_thesis_with_a_manifest(folder):
    """Many tools write a manifest.json; that does not make their folder a prepared set."""
    (beside_a_thesis(folder) / "manifest.json").write_text("{}")
    return folder / "out"


def a_file(folder):
    (folder / "out").write_text("years of work")
    return folder / "out"


def below_a_file(folder):
    return a_file(folder) / "deeper" / "set"


def endless_name(folder):
    return folder / ("x" * 300)


def name_with_no_room_for_ours(folder):
    return folder / ("x" * 250)


def below_proc(folder):
    return Path("/proc/self/set")


def below_sys(folder):
    return Path("/sys/kernel/set")


def the_raw_files(folder):
    return folder / "raw"


@pytest.mark.parametrize("more", [(), ("--overwrite",)], ids=["", "overwrite"])
@pytest.mark.parametrize(
    "place",
    [beside_a_thesis, beside_a_thesis_with_a_manifest, a_file, below_a_file, endless_name, name_with_no_room_for_ours]
    + [below_proc, below_sys, the_raw_files],
    ids=lambda place: place.__name__,
)
def test_a_place_that_cannot_be_written_is_one_line_and_nothing_is_lost(tmp_path, prepare, place, more):
    folder = SOURCES["class-folders"].make(tmp_path / "raw")
    out = place(tmp_path)
    before = snapshot(tmp_path)
    code, said, _ = prepare("class-folders", folder, out, *more)
    assert (code, len(said)) == (2, 1), said
    assert said[0].startswith(f"error: --out {out}: ")
    assert "expected a" in said[0]
    assert snapshot(tmp_path) == before


def test_a_damaged_set_is_named_and_made_anew_when_asked(tmp_path, prepare):
    folder, out = SOURCES["class-folders"].make(tmp_path / "raw"), tmp_path / "out"
    prepare("class-folders", folder, out)
    first = open_prepared(out).fingerprint
    for name in ("images.npy", "cases.csv", "manifest.json"):
        (out / name).write_bytes((out / name).read_bytes()[:100])
        code, said, _ = prepare("class-folders", folder, out)
        assert (code, len(said)) == (2, 1)
        assert str(out / name) in said[0]
        assert prepare("class-folders", folder, out, "--overwrite")[:2] == (0, [])
        assert open_prepared(out).fingerprint == first


@pytest.mark.parametrize("room", [0, 60, 200, 1000, 2000, 3100])
@pytest.mark.parametrize("there", [False, True], ids=["new", "update"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path, prepare, room, there):
    folder, out = SOURCES["class-folders"].make(tmp_path / "raw"), tmp_path / "results" / "out"
    more = ["--overwrite"] if there else []
    if there:
        prepare("class-folders", folder, out)
        Image.fromarray(raw.picture(50)).save(folder / "healthy" / "healthy-0.png")
    before = snapshot(out)
    with files_of_at_most(room):
        code, said, _ = prepare("class-folders", folder, out, *more)
    assert (code, len(said)) == (2, 1), said
    assert said[0].startswith(f"error: --out {out}: cannot be written (File too large); expected a folder with room")
    assert {path.name for path in out.parent.iterdir()} <= {"out", ".out.partial"}
    assert snapshot(out) == before
    assert prepare("class-folders", folder, out, *more)[:2] == (0, [])
    assert prepare("class-folders", folder, tmp_path / "anew")[0] == 0
    assert open_prepared(out).fingerprint == open_prepared(tmp_path / "anew").fingerprint
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("name", door.app.commands)
def test_help_says_what_every_option_means(command, name):
    code, _, told = command(name, "--help")
    text = " ".join(" ".join(told).split())
    assert code == 0
    assert door.app.commands[name].help.split("\n")[0].split(":")[0] in text
    for parameter in door.app.commands[name].params:
        words = parameter.metavar or parameter.opts[0]  # an argument has no words but its name
        assert words in text, parameter.name
        assert words == parameter.metavar or parameter.help, parameter.name
    assert name == "merge" or "default: 0" in text
    assert name not in ("mmwhs", "totalsegmentator", "msd") or "default: 96,96,96" in text


def test_help_names_every_source(command):
    code, _, told = command("--help")
    assert code == 0
    assert all(name in " ".join(told) for name in door.app.commands)
    assert set(door.app.commands) > set(SOURCES)


# Real processes.


@pytest.fixture
def half_way(tmp_path):
    """A real command over 300 images, which had prepared some of them when it was last looked at."""
    folder = raw.class_folders(tmp_path / "raw", {"healthy": 150, "ill": 150})
    arguments = ["class-folders", "--input", folder, "--out", tmp_path / "out", "--size", "64", "--near", "0"]
    process = started([sys.executable, "-m", "data_prep", *map(str, arguments)], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while len(list((tmp_path / ".out.partial").glob("*.npz"))) < 20:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.001)
    yield process, arguments
    process.kill()
    process.wait()
    process.stderr.close()


def assert_goes_on(tmp_path, command, arguments, reads):
    assert not (tmp_path / "out").exists()
    assert command(*arguments)[:2] == (0, [])
    assert 0 < len(reads) < 300
    assert command(*map(str, arguments[:4]), tmp_path / "anew", *arguments[5:])[0] == 0
    assert open_prepared(tmp_path / "out").fingerprint == open_prepared(tmp_path / "anew").fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "out", "anew"}


def test_a_killed_command_goes_on(tmp_path, command, reads, half_way):
    process, arguments = half_way
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert_goes_on(tmp_path, command, arguments, reads)


def test_ctrl_c_is_one_line_and_the_command_goes_on(tmp_path, command, reads, half_way):
    """While it works, a second one refuses."""
    process, arguments = half_way
    process.send_signal(signal.SIGSTOP)
    code, said, _ = command(*arguments)
    process.send_signal(signal.SIGINT)  # delivered the moment it goes on
    process.send_signal(signal.SIGCONT)
    assert (code, len(said)) == (2, 1)
    assert f"--out {tmp_path / 'out'}: another data_prep is writing it" in said[0]
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert said.splitlines() == ["", "Interrupted. The same command resumes."]
    assert_goes_on(tmp_path, command, arguments, reads)


def test_a_process_on_a_full_disk_says_so_in_one_line(tmp_path):
    folder = SOURCES["mmwhs"].make(tmp_path / "raw")
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
    arguments = ["mmwhs", "--input", folder, "--out", tmp_path / "out", *SOURCES["mmwhs"].options]
    done = python("-c", limited + "from data_prep.__main__ import main; main()", *arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: --out {tmp_path / 'out'}: cannot be written (File too large); expected a folder with room"
    ]
    assert not (tmp_path / "out").exists()
