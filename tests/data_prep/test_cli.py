"""python -m data_prep: bad input is one line with file or option and what was expected, exit code 2, nothing written."""

import gzip
import re
import zipfile

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from data_prep import __main__ as door
from fedlib.data import open_prepared
from tests.data_prep import raw
from tests.helpers import python


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Call the command in this process; gives exit code and the lines on standard error."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["data_prep", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            door.main()
        return left.value.code or 0, capsys.readouterr().err.splitlines()

    return call


def prepare(command, source, folder, out, *more):
    options = raw.SETTINGS if source == "mmwhs" else ("--size", "16")
    return command(source, "--input", folder, "--out", out, *options, *more)


# Each spoils a good folder (or puts another input in its place) and says what to read in the error line.


def no_folder(folder):
    return folder / "elsewhere", ["--input", "elsewhere", "not exist"]


def empty_folder(folder):
    (folder.parent / "empty").mkdir()
    return folder.parent / "empty", ["--input", "empty", "expected"]


def text_as_zip(folder):
    (folder.parent / "x.zip").write_text("not a zip")
    return folder.parent / "x.zip", ["x.zip", "not a zip", "expected"]


def empty_zip(folder):
    zipfile.ZipFile(folder.parent / "x.zip", "w").close()
    return folder.parent / "x.zip", ["x.zip", "empty"]


def zip_cut_short(folder):
    archive = raw.zipped(folder, folder.parent / "x.zip")
    archive.write_bytes(archive.read_bytes()[:-50])
    return archive, ["x.zip", "zip"]


def zip_with_flipped_bits(folder):
    archive = folder.parent / "x.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*.*")):
            packed.write(path, path.relative_to(folder))
    content = bytearray(archive.read_bytes())
    content[100:140] = bytes(b ^ 0xFF for b in content[100:140])
    archive.write_bytes(content)
    return archive, ["x.zip", "damaged"]


def zip_with_password(folder):
    archive = raw.zipped(folder, folder.parent / "x.zip")
    content = bytearray(archive.read_bytes())
    for entry in re.finditer(rb"PK\x01\x02", bytes(content)):
        content[entry.start() + 8] |= 1  # the flag for an encrypted member
    archive.write_bytes(content)
    return archive, ["x.zip", "expected"]


COMMON = [no_folder, empty_folder, text_as_zip, empty_zip, zip_cut_short, zip_with_flipped_bits, zip_with_password]


def unreadable_image(folder):
    (folder / "ill" / "ill-3.png").write_bytes(b"\x89PNG broken")
    return folder, ["ill-3.png", "unreadable", "expected"]


def image_cut_short(folder):
    file = folder / "ill" / "ill-3.png"
    file.write_bytes(file.read_bytes()[:200])
    return folder, ["ill-3.png", "unreadable"]


def too_few_in_a_class(folder):
    for file in list((folder / "ill").iterdir())[2:]:
        file.unlink()
    return folder, ["'ill'", "2 patients", "at least 3"]


def one_class(folder):
    (folder / "ill").rename(folder.parent / "ill")
    (folder / "empty class").mkdir()
    return folder, ["--input", "1 class", "at least 2"]


def no_class(folder):
    return folder / "ill", ["--input", "0 class", "at least 2"]


def volume(folder, kind, change):
    path = folder / f"case_2_{kind}.nii.gz"
    loaded = nib.load(path)
    nib.save(change(np.asarray(loaded.dataobj).copy(), loaded.affine.copy()), path)


def image_without_label(folder):
    (folder / "case_2_label.nii.gz").unlink()
    return folder, ["case_2_image.nii.gz", "label", "expected case_2_label.nii.gz"]


def label_without_image(folder):
    (folder / "case_2_image.nii.gz").unlink()
    return folder, ["case_2_label.nii.gz", "image", "expected case_2_image.nii.gz"]


def other_shape(folder):
    volume(folder, "label", lambda array, affine: nib.Nifti1Image(array[:-1], affine))
    return folder, ["case_2_label.nii.gz", "(15, 16, 16)", "(16, 16, 16)"]


def four_axes(folder):
    volume(folder, "image", lambda array, affine: nib.Nifti1Image(array[..., None], affine))
    return folder, ["case_2", "expected a volume"]


def other_affine(folder):
    volume(folder, "label", lambda array, affine: nib.Nifti1Image(array, affine + np.eye(4)[:, [3, 0, 1, 2]]))
    return folder, ["case_2_label.nii.gz", "affine", "case_2_image.nii.gz"]


def no_myocardium(folder):
    volume(folder, "label", lambda array, affine: nib.Nifti1Image(np.where(array == 205, 0, array), affine))
    return folder, ["case_2_label.nii.gz", "Myo", "205", "0, 500, 600"]


def no_ventricle(folder):
    volume(folder, "label", lambda array, affine: nib.Nifti1Image(np.where(array == 500, 420, array), affine))
    return folder, ["case_2_label.nii.gz", "LV", "500", "420"]


def unreadable_volume(folder):
    (folder / "case_2_image.nii.gz").write_bytes(gzip.compress(b"no NIfTI"))
    return folder, ["case_2_image.nii.gz", "unreadable", "NIfTI"]


def volume_cut_short(folder):
    path = folder / "case_2_image.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])
    return folder, ["case_2_image.nii.gz", "unreadable"]


def other_names(folder):
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("_image", "_img").replace("_label", "_seg"))
    return folder, ["--input", "_image.nii.gz", "_label.nii.gz"]


def too_few_volumes(folder):
    for number in (3, 4, 5, 6):
        for kind in ("image", "label"):
            (folder / f"case_{number}_{kind}.nii.gz").unlink()
    return folder, ["2 patients", "at least 3"]


PICTURES = [unreadable_image, image_cut_short, too_few_in_a_class, one_class, no_class]
VOLUMES = [
    *(image_without_label, label_without_image, other_shape, four_axes, other_affine, no_myocardium),
    *(no_ventricle, unreadable_volume, volume_cut_short, other_names, too_few_volumes),
]
BAD = [("class-folders", spoil) for spoil in COMMON + PICTURES] + [("mmwhs", spoil) for spoil in COMMON + VOLUMES]


@pytest.mark.parametrize(("source", "spoil"), BAD, ids=lambda value: getattr(value, "__name__", value))
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, command, source, spoil):
    make = raw.class_folders if source == "class-folders" else raw.pairs
    folder, words = spoil(make(tmp_path / "raw"))
    (tmp_path / "results").mkdir()
    code, said = prepare(command, source, folder, tmp_path / "results" / "out")
    assert code == 2
    assert len(said) == 1, said
    assert said[0].startswith("error: ")
    assert [word for word in words if word not in said[0]] == [], said[0]
    assert list((tmp_path / "results").iterdir()) == []


BAD_OPTIONS = [
    (["mmwhs", "--size", "16,16"], ["--size", "16,16", "three"]),
    (["mmwhs", "--size", "16,16,20"], ["--size", "16,16,20", "8"]),
    (["mmwhs", "--spacing", "2,2,0"], ["--spacing", "2,2,0", "positive"]),
    (["mmwhs", "--spacing", "two"], ["--spacing", "two"]),
    (["class-folders", "--where", "mini=1"], ["--where", "mini=1", "manifest.csv"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_OPTIONS, ids=lambda value: " ".join(value[:3]))
def test_a_bad_option_is_one_line_and_nothing_is_written(tmp_path, command, arguments, words):
    make = raw.class_folders if arguments[0] == "class-folders" else raw.pairs
    folder = make(tmp_path / "raw")
    code, said = command(*arguments, "--input", folder, "--out", tmp_path / "out")
    assert code == 2
    assert len(said) == 1
    assert [word for word in words if word not in said[0]] == [], said[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["synthetic-cxr", "--cases", "3"], ["--cases", "3"]),
        (["synthetic-cardiac", "--size", "sixteen"], ["--size", "sixteen"]),
        (["class-folders", "--on-bad", "perhaps"], ["--on-bad", "perhaps"]),
        (["radiographs"], ["radiographs"]),
        (["class-folders"], ["--input"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_the_command_line_itself_refuses_names_option_and_value(tmp_path, command, arguments, words):
    code, said = command(*arguments, *([] if arguments == ["radiographs"] else ["--out", tmp_path / "out"]))
    assert code == 2
    assert all(word in said[-1] for word in words), said
    assert list(tmp_path.iterdir()) == []


def test_bad_cases_are_skipped_and_listed_when_asked(tmp_path, command):
    folder = raw.pairs(tmp_path / "raw", 8)
    no_myocardium(folder)
    (folder / "case_5_image.nii.gz").write_bytes(b"x")
    (folder / "case_6_label.nii.gz").unlink()
    code, said = prepare(command, "mmwhs", folder, tmp_path / "out", "--on-bad", "skip")
    assert (code, said) == (0, [])
    listed = pd.read_csv(tmp_path / "out" / "qc.csv")
    assert [f"case_{n}_" in file for n, file in zip((2, 5, 6), listed["file"], strict=True)] == [True] * 3
    assert listed["reason"].notna().all()
    assert len(open_prepared(tmp_path / "out", "segmentation").cases) == 5


def test_skipping_leaves_out_an_unreadable_image(tmp_path, command):
    folder, _ = unreadable_image(raw.class_folders(tmp_path / "raw"))
    assert prepare(command, "class-folders", folder, tmp_path / "out", "--on-bad", "skip")[0] == 0
    assert pd.read_csv(tmp_path / "out" / "qc.csv")["file"].str.endswith("ill-3.png").tolist() == [True]


def test_an_existing_output_is_kept(tmp_path, command):
    folder, out = raw.class_folders(tmp_path / "raw"), tmp_path / "out"
    assert prepare(command, "class-folders", folder, out)[0] == 0
    first = open_prepared(out).fingerprint
    code, said = prepare(command, "class-folders", folder, out, "--seed", "5")
    assert code == 2
    assert "--overwrite" in said[0]
    assert open_prepared(out).fingerprint == first
    assert prepare(command, "class-folders", folder, out, "--seed", "5", "--overwrite")[0] == 0
    assert open_prepared(out).fingerprint != first
    code, said = prepare(command, "class-folders", folder, folder, "--overwrite")
    assert code == 2, "the raw images are not a prepared set"
    assert "--out" in said[0]
    assert len(list((folder / "ill").iterdir())) == 12


def test_the_door_as_a_process(tmp_path):
    made = python("-m", "data_prep", "synthetic-cardiac", "--cases", 4, "--size", 16, "--out", tmp_path / "set")
    assert made.returncode == 0, made.stderr
    data = open_prepared(tmp_path / "set", "segmentation")
    assert data.fingerprint[:12] in made.stdout
    refused = python("-m", "data_prep", "class-folders", "--input", tmp_path / "none", "--out", tmp_path / "out")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_help_names_every_source(command, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["data_prep", "--help"])
    with pytest.raises(SystemExit):
        door.main()
    text = capsys.readouterr().out
    sources = ("synthetic-cxr", "synthetic-cardiac", "class-folders", "mmwhs")
    assert all(source in text for source in sources)
