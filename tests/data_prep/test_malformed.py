"""Spoiled input: one line with the file or option and what was expected, or a row of qc.csv; never half a set.

One table for each kind of fault. What is wrong with one case stops the command, or with --on-bad skip leaves that case out.
What is wrong with the whole input stops it in any case.
"""

import gzip
import json
import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.uid import MPEG2MPML, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from data_prep import files
from fedlib.data.dataset import open_prepared
from tests.data_prep import raw
from tests.data_prep.cardiac_raw import nifti, packed
from tests.data_prep.radiographs_raw import dicom, encapsulated, encoded, huge_png
from tests.data_prep.spoiled import SOURCES, flipped, put, removed, shifted, with_bytes, with_member, with_value, zipped
from tests.helpers import python, snapshot

# One image: its content, and words of the reason.

ILL = "ill/ill-3.png"
WHOLE = "expected a whole PNG, JPEG or DICOM"
NEITHER = "neither PNG, JPEG nor DICOM"
GREY = Image.fromarray(raw.picture(77))
PNG, JPEG, DICOM = encoded(GREY), encoded(GREY, "JPEG"), dicom(raw.picture(1))
SQUARE = np.arange(256, dtype=np.uint8).reshape(16, 16)
FRAMES = [Image.fromarray(raw.picture(n)) for n in range(2)]
PICTURES = {
    "zero bytes": (b"", "is empty; expected a PNG, JPEG or DICOM"),
    "png cut in its header": (PNG[:20], WHOLE),
    "png cut in its pixels": (PNG[:200], WHOLE),
    "png with flipped bits": (PNG[:100] + flipped(PNG[100:140]) + PNG[140:], WHOLE),
    "png of nothing": (b"\x89PNG broken", NEITHER),
    "jpeg cut short": (JPEG[:400], WHOLE),
    "jpeg cut in its header": (JPEG[:30], "expected"),
    "text": (b"see the archive", NEITHER),
    "html instead of a download": (b"<!DOCTYPE html><html>log in</html>", NEITHER),
    "volume with the suffix of an image": (packed(raw.heart(1)[0]), NEITHER),
    "gif": (encoded(GREY, "GIF"), f"a GIF, and so {NEITHER}"),
    "tiff": (encoded(GREY, "TIFF"), f"a TIFF, and so {NEITHER}"),
    "animation": (encoded(GREY, save_all=True, append_images=FRAMES), "3 frames; expected one image"),
    "one grey value": (encoded(Image.new("L", (20, 20), 7)), "no contrast, all pixels are 7; expected an image"),
    "one grey value of 16 bits": (encoded(Image.fromarray(np.full((9, 9), 999, np.uint16))), "no contrast"),
    "all transparent": (encoded(Image.new("RGBA", (20, 20), (9, 9, 9, 0))), "no contrast"),
    "bomb of pixels": (huge_png(), "2500000000 pixels"),
    "smaller bomb": (huge_png(12_000), "12000 x 12000 pixels; expected at most"),
    "dicom without pixels": (dicom(None), "DICOM without an image (Digital X-Ray"),
    "dicom of nothing but its mark": (bytes(128) + b"DICM", "expected"),
    "dicom cut in its header": (DICOM[:150], "expected"),
    "dicom cut in its pixels": (DICOM[:-100], WHOLE),
    "dicom without size": (dicom(SQUARE, Rows=None), WHOLE),
    "dicom of one grey value": (dicom(np.ones((9, 9), np.uint16)), "no contrast"),
    "dicom outside its window": (dicom(SQUARE.astype(np.uint16), WindowCenter=9000, WindowWidth=10), "no contrast"),
    "dicom with a window of no width": (dicom(SQUARE, WindowCenter=9, WindowWidth=0), "Window Width"),
    "dicom of several frames": (dicom(raw.picture(1), NumberOfFrames=3), "3 frames; expected one"),
    "dicom with a slope of nan": (
        dicom(raw.picture(1), RescaleSlope="1.5", RescaleIntercept="0").replace(b"1.5 ", b"nan "),
        "not finite, by the rescaling or window in its header; expected numbers",
    ),
    "dicom that claims a bomb": (
        dicom(raw.picture(1), Rows=60_000, Columns=60_000),
        "60000 x 60000 pixels; expected at most",
    ),
    "jpeg-ls": (dicom(SQUARE, JPEGLSLossless, PixelData=encapsulated(b"none")), "JPEG-LS Lossless"),
    "lossless jpeg": (dicom(SQUARE, JPEGLosslessSV1, PixelData=encapsulated(JPEG)), "pip install pylibjpeg"),
    "video": (dicom(SQUARE, MPEG2MPML, PixelData=encapsulated(b"0" * 40)), "cannot be decoded"),
    "damaged rle": (dicom(SQUARE, RLELossless, PixelData=encapsulated(b"0" * 100)), "expected a whole"),
    "damaged jpeg 2000": (dicom(SQUARE, JPEG2000Lossless, PixelData=encapsulated(b"0" * 90)), "cannot be decoded"),
}

# One volume: its content, and words of the reason. The first table holds for images and labels.

IMAGE, LABEL = "case_2_image.nii.gz", "case_2_label.nii.gz"
DAMAGED = "expected a whole .nii.gz file"
NO_HEADER = "no NIfTI header; expected NIfTI-1 or NIfTI-2 in one file"
H, L = raw.heart(2)
SHEARED = raw.AFFINE + np.array([[0, 0, 1.5, 0], [0] * 4, [0] * 4, [0] * 4])
SINGULAR = {"srow_x": [2, 0, 0, 0], "srow_y": [2, 0, 0, 0], "srow_z": [0, 2, 2, 0]}
COLOURS = np.zeros(H.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])


def shaped(*sides):
    return packed(H, dim=[3, *sides, 1, 1, 1, 1])


def sized(*sides):
    return packed(H, pixdim=[1, *sides, 0, 0, 0, 0])


VOLUMES = {
    "zero bytes": (b"", "is empty (0 bytes); expected NIfTI"),
    "text": (b"not a volume", NO_HEADER),
    "text in gzip": (gzip.compress(b"no NIfTI"), NO_HEADER),
    "empty gzip": (gzip.compress(b""), NO_HEADER),
    "png": (PNG, NO_HEADER),
    "header of a pair of files": (gzip.compress(nifti(H).replace(b"n+1", b"ni1", 1)), NO_HEADER),
    "cut in its header": (gzip.compress(nifti(H)[:200]), NO_HEADER),
    "cut gzip": (packed(H)[:2000], DAMAGED),
    "cut before the checksum": (packed(H)[:-8], DAMAGED),
    "wrong checksum": (packed(H)[:-8] + bytes(8), DAMAGED),
    "flipped bits": (packed(H)[:900] + flipped(packed(H)[900:950]) + packed(H)[950:], "expected"),
    "cut volume": (gzip.compress(nifti(H)[:-100]), "cut short, 8444 bytes; expected 8544 bytes by its header"),
    "claims a little more": (shaped(16, 16, 17), "cut short"),
    "longer than it claims": (shaped(16, 16, 15), "longer than its header says"),
    "claims a bomb": (shaped(9999, 9999, 9999), "expected at most"),
    "negative shape": (shaped(-16, 16, 16), "expected a volume with three axes"),
    "four axes": (packed(np.stack([H, H], -1)), "(16, 16, 16, 2); expected a volume with three axes"),
    "two axes": (packed(H[..., 0]), "(16, 16); expected a volume with three axes"),
    "one slice": (packed(H[..., :1]), "expected a volume with three axes"),
    "unknown type": (packed(H, datatype=77), DAMAGED),
    "complex numbers": (packed(H.astype(np.complex64)), "complex64; expected real numbers"),
    "colours": (packed(COLOURS), "RGB; expected real numbers"),
    "data before the header's end": (packed(H, vox_offset=8), "at byte 8"),
    "no spacing": (sized(0, 2, 2), "0x2x2 mm in its header; expected positive numbers"),
    "negative spacing": (sized(-2, 2, 2), "-2x2x2 mm in its header; expected positive numbers"),
    "spacing of nan": (sized(np.nan, 2, 2), "expected positive numbers"),
    "spacing of two minds": (sized(3, 3, 3), "2x2x2 mm in its affine, 3x3x3 mm in its header; expected one"),
    "metres": (packed(H, np.diag([0.002, 0.002, 0.002, 1])), "mm; expected 0.05 to 50.0 mm"),
    "micrometres": (packed(H, np.diag([2000.0, 2000, 2000, 1])), "mm; expected 0.05 to 50.0 mm"),
    "singular affine": (packed(H, **SINGULAR), "expected"),
    "affine of nan": (packed(H, srow_x=[np.nan] * 4), "affine"),
    "sheared axes": (packed(H, SHEARED), "sheared (a tilted gantry) or parallel; expected right angles"),
}
IMAGES = VOLUMES | {
    "other shape than its label": (packed(H[:-1]), "(16, 16, 16); expected (15, 16, 16)"),
    "nan": (packed(with_value(H, np.nan)), "not finite (NaN or infinite); expected numbers"),
    "infinite": (packed(with_value(H, np.inf)), "not finite"),
    "infinite by its slope": (packed(H, scl_slope=1e38), "not finite"),
    "too large for float32": (packed(H * 1e300), "not finite"),
    "one grey value": (packed(0 * H), "one grey value between -160 and 440; expected an image"),
    "all below the window": (packed(H - 2000), "one grey value"),
}
LABELS = VOLUMES | {
    "other shape than its image": (packed(L[:-1]), "(15, 16, 16); expected (16, 16, 16)"),
    "at another place": (packed(L, shifted(3)), "lies 3 voxels off case_2_image.nii.gz by its affine; expected at most"),
    "at half a voxel": (packed(L, shifted(0.5)), "0.5 voxels off"),
    "at a twentieth of a voxel": (packed(L, shifted(0.05)), "0.05 voxels off"),
    "in another direction": (packed(L, np.diag([2.0, -2, 2, 1])), "voxels off"),
    "all background": (packed(0 * L), "no voxel of LV (500); it has the values 0"),
    "no ventricle": (packed(np.where(L == 500, 420, L)), "no voxel of LV (500); it has the values 0, 205, 420, 600"),
    "no myocardium": (packed(np.where(L == 205, 0, L)), "no voxel of Myo (205); it has the values 0, 500, 600"),
    "fractions": (packed(L + np.float32(0.5)), "no whole numbers (0.5, 205.5, 500.5); expected a label"),
    "label with nan": (packed(with_value(L, np.nan)), "no whole numbers (nan); expected a label"),
}


def assert_listed(folder: Path, source: str, reasons: dict[str, str]) -> None:
    """Prepare what can be in a process of its own, where what libraries log is seen too; the rest stands in qc.csv."""
    arguments = ["--input", folder, "--out", folder.parent / "out", *SOURCES[source].options, "--on-bad", "skip"]
    done = python("-m", "data_prep", source, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    listed = pd.read_csv(folder.parent / "out" / "qc.csv").set_index("file")["reason"]
    assert {name: reasons[name] for name in reasons if reasons[name] not in listed.get(name, "")} == {}
    assert set(listed.index) == set(reasons)
    assert len(open_prepared(folder.parent / "out").cases) == SOURCES[source].cases


def test_all_bad_images_at_once_are_listed_and_make_no_noise(tmp_path):
    """The EXIF of one of the good ones is damaged, its picture is not."""
    folder = SOURCES["class-folders"].make(tmp_path / "raw")
    put(folder, "ill/ill-1.png", encoded(GREY, "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 44))
    for name, (content, _) in PICTURES.items():
        put(folder, f"ill/{name}.png", content)
    assert_listed(folder, "class-folders", {f"ill/{name}.png": words for name, (_, words) in PICTURES.items()})


def test_all_bad_volumes_at_once_are_listed_and_make_no_noise(tmp_path):
    folder, reasons = SOURCES["mmwhs"].make(tmp_path / "raw"), {}
    for half, table in (("image", IMAGES), ("label", LABELS)):
        for name, (content, words) in table.items():
            case = f"{half} of {name}"
            for kind, good in (("image", H), ("label", L)):
                put(folder, f"{case}_{kind}.nii.gz", content if kind == half else packed(good))
            reasons[f"{case}_image.nii.gz"] = words.replace("case_2", case)
    assert_listed(folder, "mmwhs", reasons)


# One case. Each entry: what spoils it (a path, if the input is not the folder), its file in qc.csv, words of the reason.


def hearts(folder, change):
    """Replace case 2 of mmwhs."""
    for file, array in zip((IMAGE, LABEL), raw.heart(2), strict=True):
        put(folder, file, change(array))


def masks(folder, **arrays):
    for mask, array in arrays.items():
        put(folder, f"s0002/segmentations/heart_{mask}.nii.gz", packed(array.astype(np.uint8)))


def too_large_a_heart(folder):
    ventricle, myocardium = np.zeros((2, 24, 24, 24))
    ventricle[2:10, 2:9, 2:9], myocardium[10:22, 2:9, 2:9] = 1, 1
    put(folder, "s0002/ct.nii.gz", packed(np.random.default_rng(1).integers(0, 99, (24,) * 3, np.int16)))
    masks(folder, ventricle_left=ventricle, myocardium=myocardium)


def damaged_zip(folder):
    archive = zipped(folder)
    with zipfile.ZipFile(archive) as packed_files:
        start = packed_files.getinfo(ILL).header_offset
    return with_bytes(archive, start + 30 + len(ILL) + 60, b"\0" * 40)


def renamed_member(folder, name, to):
    archive = with_member(folder, name, ILL)
    archive.write_bytes(archive.read_bytes().replace(name.encode(), to.encode()))
    return archive


MOST = files.MAX_BYTES // 1024  # the limit, as the test lowers it
OUT_OF_ZIP = "its path leads out of the zip, or is not plain; expected one like folder/name"
CASES = {
    "class-folders": {
        "notes without a suffix": (lambda f: put(f, "ill/notes", b"two were retaken"), "ill/notes", NEITHER),
        "the same pixels in two classes": (
            lambda f: put(f, "ill/copy.png", (f / "healthy/healthy-2.png").read_bytes()),
            "ill/copy.png",
            "the same pixels in more than one class: healthy/healthy-2 (healthy), ill/copy (ill); expected one class",
        ),
        "link": (lambda f: (f / "ill/a.png").symlink_to("/etc/passwd"), "ill/a.png", "a link; expected the file itself"),
        "link inside": (lambda f: (f / "ill/a.png").symlink_to("ill-3.png"), "ill/a.png", "a link"),
        "link to a folder": (lambda f: (f / "ill/more").symlink_to("/usr"), "ill/more", "a link"),
        "link to nowhere": (lambda f: (f / "ill/a.png").symlink_to("gone.png"), "ill/a.png", "a link"),
        "link to itself": (lambda f: (f / "ill/a.png").symlink_to("a.png"), "ill/a.png", "a link"),
        "pipe": (lambda f: os.mkfifo(f / "ill/a.png"), "ill/a.png", "neither a file nor a folder"),
        "name that is no text": (lambda f: put(f, os.fsdecode(b"ill/\xff.png"), PNG), "ill/?.png", "rename it"),
        "name with a line break": (lambda f: put(f, "ill/a\nb.png", PNG), "ill/a b.png", "a line break"),
        "folder with a line break": (lambda f: put(f, "ill/a\nb/c.png", PNG), "ill/a b/c.png", "a line break"),
        "zip that leads out": (lambda f: with_member(f, "../evil.png", ILL), "../evil.png", OUT_OF_ZIP),
        "zip that leads out later": (lambda f: with_member(f, "a/../../evil.png", ILL), "a/../../evil.png", OUT_OF_ZIP),
        "zip with an absolute path": (lambda f: with_member(f, "/etc/evil.png", ILL), "/etc/evil.png", OUT_OF_ZIP),
        "zip with a drive": (lambda f: with_member(f, "C:/evil.png", ILL), "C:/evil.png", OUT_OF_ZIP),
        "zip with a path that is not plain": (lambda f: with_member(f, "ill//a.png", ILL), "ill//a.png", OUT_OF_ZIP),
        "zip with a backslash": (
            lambda f: renamed_member(f, "ill/evil/a.png", "ill\\evil\\a.png"),
            "ill\\evil\\a.png",
            "a backslash or a line break in its name; expected / between folders",
        ),
        "zip with a line break": (lambda f: with_member(f, "ill/a\nb.png", ILL), "ill/a b.png", "a line break"),
        "zip with a link": (lambda f: with_member(f, "ill/a.png", ILL, mode=stat.S_IFLNK | 0o777), "ill/a.png", "a link"),
        "zip with a name twice": (
            lambda f: renamed_member(f, "ill/ill-x.png", ILL),
            ILL,
            "twice in the zip; expected it once",
        ),
        "zip packed by lzma": (lambda f: with_member(f, "ill/a.png", ILL, zipfile.ZIP_LZMA), "ill/a.png", "deflate"),
        "zip packed by bzip2": (lambda f: with_member(f, "ill/a.png", ILL, zipfile.ZIP_BZIP2), "ill/a.png", "deflate"),
        "zip with flipped bits": (damaged_zip, ILL, "damaged or not readable"),
        "zip bomb": (
            lambda f: put(f, "ill/bomb.png", bytes(MOST + 1)) or zipped(f),
            "ill/bomb.png",
            f"{MOST + 1} bytes, expected at most {MOST}",
        ),
    },
    "covid19-radiography": {
        "image cut short": (
            lambda f: put(f, "Viral Pneumonia/images/Viral Pneumonia-2.png", PNG[:150]),
            "Viral Pneumonia/images/Viral Pneumonia-2.png",
            WHOLE,
        ),
    },
    "mmwhs": {
        "image without label": (lambda f: removed(f, LABEL), IMAGE, "an image without its label; expected a label volume"),
        "heart outside the crop": (
            lambda f: hearts(f, lambda array: packed(np.pad(array, [(0, 40)] * 3))),
            IMAGE,
            "keeps 0 ml after crop and resampling; expected a loss of at most 20 %",
        ),
        "half a centimetre taken for five": (
            lambda f: hearts(f, lambda array: packed(np.pad(array, [(0, 48)] * 3), np.diag([49.0, 49, 49, 1]))),
            IMAGE,
            "3.9e+09 voxels of 2x2x2 mm; expected at most 6.7e+07 (a larger --spacing, or --crop heart)",
        ),
    },
    "totalsegmentator": {
        "heart that does not fit": (
            too_large_a_heart,
            "s0002/ct.nii.gz",
            "the heart with a margin of 0 mm is 40x14x14 mm, the window 32x32x32 mm; expected less",
        ),
        "missing mask": (
            lambda f: removed(f, "s0002/segmentations/heart_myocardium.nii.gz"),
            "s0002/ct.nii.gz",
            "an image without its label; expected heart_myocardium beside it",
        ),
        "empty mask": (
            lambda f: masks(f, myocardium=np.zeros((16,) * 3)),
            "s0002/ct.nii.gz",
            "heart_myocardium.nii.gz: no voxel of Myo",
        ),
        "masks that overlap": (
            lambda f: masks(f, myocardium=H * 0 + 1),
            "s0002/ct.nii.gz",
            "LV and Myo share 36 voxels with s0002/segmentations/heart_myocardium.nii.gz; expected structures apart",
        ),
        "mask of another scan": (
            lambda f: masks(f, myocardium=np.ones((9,) * 3)),
            "s0002/ct.nii.gz",
            "heart_myocardium.nii.gz: shape (9, 9, 9); expected (16, 16, 16)",
        ),
    },
    "msd": {
        "no label": (lambda f: removed(f, "labelsTr/heart_2.nii.gz"), "imagesTr/heart_2.nii.gz", "without its label"),
        "label cut short": (
            lambda f: put(f, "labelsTr/heart_2.nii.gz", packed(L)[:100]),
            "imagesTr/heart_2.nii.gz",
            "labelsTr/heart_2.nii.gz: damaged",
        ),
    },
}


def params(table: dict[str, dict[str, tuple]]) -> list:
    return [
        pytest.param(source, *entry, id=f"{source}: {name}") for source in table for name, entry in table[source].items()
    ]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("source", "spoil", "file", "words"), params(CASES))
def test_a_bad_case_stops_or_is_left_out(tmp_path, prepare, monkeypatch, recwarn, source, spoil, file, words):
    monkeypatch.setattr(files, "MAX_BYTES", MOST)
    folder = SOURCES[source].make(tmp_path / "raw")
    good = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    given = spoil(folder)
    given = given if isinstance(given, Path) else folder
    before, results = snapshot(tmp_path), tmp_path / "results"
    code, said, _ = prepare(source, given, results / "out")
    assert (code, len(said)) == (2, 1), said
    assert said[0].startswith("error: ")
    assert [word for word in (words, "--on-bad skip") if word not in said[0]] == [], said[0]
    assert said[0].count(str(given)) == 1, said[0]
    assert {path.name for path in results.glob("*")} <= {".out.partial"}

    code, said, _ = prepare(source, given, results / "out", "--on-bad", "skip")
    assert (code, said) == (0, [])
    assert [path.name for path in results.iterdir()] == ["out"]
    data, listed = open_prepared(results / "out"), pd.read_csv(results / "out" / "qc.csv")
    assert words in listed.set_index("file")["reason"][file]
    assert len(data.cases) == len(data.images) == len(data.labels) == data.manifest["counts"]["prepared"]
    assert len(data.cases) + len(listed) == SOURCES[source].cases + (file not in good)
    assert not set(listed["file"]) & set(data.cases["file"])
    assert prepare(source, given, tmp_path / "anew", "--on-bad", "skip")[0] == 0
    assert open_prepared(tmp_path / "anew").fingerprint == data.fingerprint, "resumed is the same as all in one go"
    assert {name: time for name, time in snapshot(tmp_path).items() if name in before} == before, "raw files untouched"
    assert [str(warning.message) for warning in recwarn if "ultiprocess" not in str(warning.message)] == []


# The whole input. Each entry: what spoils it (a path, if the input is not the folder), and words.


def written(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def letters(folder):
    for name in ("a.txt", "b.txt"):
        written(folder.parent / "letters" / name, b"Dear colleague")
    return folder.parent / "letters"


def cut_zip(folder):
    archive = zipped(folder)
    return written(archive, archive.read_bytes()[:-50])


def zip_in_a_zip(folder):
    with zipfile.ZipFile(folder.parent / "outer.zip", "w") as outer:
        outer.write(zipped(folder), "x.zip")
    return folder.parent / "outer.zip"


def in_directory(folder, offset, content):
    archive = zipped(folder)
    return with_bytes(archive, archive.read_bytes().find(b"PK\1\2") + offset, content)


def all_renamed(folder):
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("_image", "_img").replace("_label", "_seg"))


def packed_twice(folder):
    path = folder / "imagesTr" / "heart_2.nii.gz"
    put(folder, "imagesTr/heart_2.nii", gzip.decompress(path.read_bytes()))


def moved(folder, name, to):
    (folder / to).parent.mkdir(exist_ok=True)
    (folder / name).rename(folder / to)


NO_ZIP = "is not a zip, cut short or damaged"
ANY = {
    "no folder": (lambda f: f / "elsewhere", "elsewhere: does not exist; expected a folder or a zip"),
    "empty folder": (lambda f: written(f.parent / "empty/.hidden").parent, "empty: is empty; expected images"),
    "folder of other things": (letters, "letters"),
    "text as zip": (lambda f: written(f.parent / "x.zip", b"not a zip"), NO_ZIP),
}
INPUTS = {
    "class-folders": ANY | {
        "zip of zero bytes": (lambda f: written(f.parent / "x.zip"), NO_ZIP),
        "gzip as zip": (lambda f: written(f.parent / "x.tar.gz", gzip.compress(b"tar")), NO_ZIP),
        "single image": (lambda f: f / ILL, "ill-3.png: is not a zip"),
        "empty zip": (lambda f: zipped(written(f.parent / "e/.x").parent), "x.zip: is empty"),
        "zip of nothing but a way out": (
            lambda f: with_member(written(f.parent / "e/.x").parent, "../evil.png", ".x"), "except ../evil.png (its path"
        ),
        "zip cut short": (cut_zip, NO_ZIP),
        "zip with a damaged list": (lambda f: in_directory(f, 0, b"XXXX"), NO_ZIP),
        "zip with a password": (lambda f: in_directory(f, 8, b"\1"), "x.zip: protected by a password; expected"),
        "pipe": (lambda f: os.mkfifo(f.parent / "pipe") or f.parent / "pipe", NO_ZIP),
        "device": (lambda f: Path("/dev/null"), "--input /dev/null: is not a zip"),
        "endless name": (lambda f: f / ("x" * 300), "does not exist; expected a folder or a zip"),
        "zip in a zip": (zip_in_a_zip, "outer.zip: 0 class folders with images, expected at least 2"),
        "too few in a class": (
            lambda f: removed(f, *(f"ill/ill-{n}.png" for n in range(3, 7))), "class 'ill' has 2 patients"
        ),
        "one class": (lambda f: removed(f, *(f"ill/ill-{n}.png" for n in range(1, 7))), "expected at least 2"),
        "no class": (lambda f: f / "ill", "0 class folders with images, expected at least 2"),
        "splits for classes": (lambda f: moved(f, "ill", "train"), "train/: looks like a part or a split where a class is"),
        "two images of one name": (
            lambda f: put(f, "ill/ill-3.jpg", JPEG), "is case 'ill/ill-3', as is ill/ill-3.jpg; expected it once"
        ),
        "class of damaged images": (lambda f: put(f, "unclear/1.png", b"x"), "unclear/1.png"),
        "nothing but copies": (
            lambda f: [path.write_bytes(PNG) for path in f.rglob("*.png")], "the same pixels in more than one class"
        ),
        "manifest that is a link": (lambda f: (f / "manifest.csv").symlink_to("/etc/passwd"), "manifest.csv: a link"),
    },
    "covid19-radiography": ANY | {
        "class without images": (
            lambda f: removed(f, *(f"COVID/images/COVID-{n}.png" for n in range(1, 5))),
            "COVID 0 (published: 3616); expected at least one image of each class",
        ),
        "table of sites that is none": (
            lambda f: put(f, "COVID.metadata.xlsx", b"no spreadsheet"), "COVID.metadata.xlsx: unreadable (Excel file"
        ),
        "table of sites without urls": (
            lambda f: pd.DataFrame({"FILE NAME": ["COVID-1"]}).to_excel(f / "COVID.metadata.xlsx"),
            "COVID.metadata.xlsx: no column URL; expected FILE NAME and URL",
        ),
    },
    "mmwhs": ANY | {
        "zip cut short": (cut_zip, NO_ZIP),
        "label without image": (lambda f: removed(f, IMAGE), f"{LABEL}: a label without its image; expected {IMAGE}"),
        "other names": (all_renamed, "no *_image.nii.gz with *_label.nii.gz; expected MM-WHS naming"),
        "too few volumes": (
            lambda f: removed(f, *(f"case_{n}_{kind}.nii.gz" for n in (3, 4, 5) for kind in ("image", "label"))),
            "2 patients (duplicates count as one), expected at least 3",
        ),
        "two files of one case": (lambda f: put(f, f"b/{IMAGE}", packed(H)), "the same case as"),
        "every volume damaged": (
            lambda f: [path.write_bytes(b"x") for path in f.glob("*_image.nii.gz")], "case_1_image.nii.gz: no NIfTI header"
        ),
    },
    "totalsegmentator": ANY | {
        "scans of one name": (lambda f: moved(f, "s0005", "more/s0001"), "s0001/ct.nii.gz: the same case as"),
        "no scan with the mask": (
            lambda f: [path.unlink() for path in f.glob("*/segmentations/heart_ventricle_left.nii.gz")],
            "--lv heart_ventricle_left: no segmentations/heart_ventricle_left.nii.gz",
        ),
    } | {
        f"meta.csv {name}": (lambda f, content=content: put(f, "meta.csv", content), "meta.csv: " + words)
        for name, content, words in [
            ("without ids", b"name;age\ns0001;60\n", "expected a column image_id"),
            ("with ids twice", b"image_id;age\ns0001;60\ns0001;61\n", "expected a column image_id with each case once"),
            ("of another code page", "image_id;i\ns0001;Zürich\n".encode("latin-1"), "unreadable (not a table, or not in"),
            ("of commas", b"image_id,age\ns0001,1", "expected a column image_id"),
            ("of nothing", b"", "unreadable"),
            ("with a quote left open", b'image_id;a\n"x', "unreadable"),
            ("of rows too long", b"image_id;age\ns0001;1;2", "unreadable (its rows have more fields than it has columns)"),
        ]
    },
    "msd": ANY | {
        "no dataset.json": (lambda f: removed(f, "dataset.json"), "0 files dataset.json; expected one"),
        "two of them": (lambda f: put(f, "labelsTr/dataset.json", b"{}"), "2 files dataset.json; expected one"),
        "label without image": (
            lambda f: removed(f, "imagesTr/heart_2.nii.gz"),
            "labelsTr/heart_2.nii.gz: a label without its image; expected heart_2.nii.gz in imagesTr/",
        ),
        "no volumes": (lambda f: [path.unlink() for path in f.glob("*Tr/*")], "no volume in imagesTr/; expected"),
        "case in two packings": (packed_twice, "heart_2.nii.gz: the same case as imagesTr/heart_2.nii; expected"),
    },
}  # fmt: skip

# A manifest.csv of class-folders, with ROWS in place of a row for each good file.

COLUMNS = "expected columns file, class[, patient, dup_group, split]"
NOT_THERE = "which does not exist"
MANIFESTS = {
    "empty": ("", f"not a table, or not in UTF-8: No columns to parse from file; {COLUMNS}"),
    "blank": ("\n\n", "not a table"),
    "no class column": ("file,kind\nill/ill-1.png,ill\n", f"no column class; {COLUMNS}"),
    "no columns": ("nothing\n", f"no column class, file; {COLUMNS}"),
    "no rows": ("file,class\n", "lists no files; expected a row an image"),
    "ragged rows": ("file,class\nill/ill-1.png,ill\nill/ill-2.png,ill,x,y\n", "not a table"),
    "more fields than columns": ("file,class\nill/ill-1.png,ill,x,y\n", f"more fields than it has columns; {COLUMNS}"),
    "a comma in a name": ("file,class\nill/ill,1.png,ill\n", "more fields than it has columns"),
    "a quote left open": ('file,class\n"ill/ill-1.png,ill\n', "manifest.csv"),
    "other code page": ("file,class\nill/krank-ü.png,ill\n".encode("latin-1"), "not a table, or not in UTF-8"),
    "UTF-16": ("file,class\nill/ill-1.png,ill\n".encode("utf-16"), "not a table, or not in UTF-8"),
    "spreadsheet": (b"PK\3\4\0\xff\xfe", "not a table"),
    "picture": (PNG, "not a table"),
    "zero bytes of text": ("\0\0\0\0", "no column class, file"),
    "column twice": ("file,class, class\nill/ill-1.png,ill,ill\n", f"column class twice; {COLUMNS}"),
    "own column": ("file,class,case\nill/ill-1.png,ill,1\n", "column case is one that cases.csv fills itself; rename it"),
    "missing file": ("file,class\nROWSill/gone.png,ill\n", f"lists ill/gone.png, {NOT_THERE}"),
    "missing files": ("file,class\nn1.png,a\nROWSn2.png,b\n", f"lists n1.png, {NOT_THERE} (2 such rows)"),
    "no file": ("file,class\nROWS,ill\n", NOT_THERE),
    "path out of the folder": ("file,class\nROWS../secret.png,ill\n", f"lists ../secret.png, {NOT_THERE}"),
    "absolute path": ("file,class\nROWS/etc/passwd,ill\n", f"lists /etc/passwd, {NOT_THERE}"),
    "backslashes": ("file,class\nROWSill\\ill-1.png,ill\n", "lists ill\\ill-1.png; expected / between folders"),
    "file listed twice": ("file,class\nROWS./ill/ill-1.png,ill\n", "lists ./ill/ill-1.png twice; expected a row an image"),
    "no class stated": ("file,class\nill/ill-1.png,\n", "no class for ill/ill-1.png; expected a name"),
    "a row cut short": ("file,class\nill/ill-1.png\n", "no class for ill/ill-1.png; expected a name"),
    "one class": ("file,class\nill/ill-1.png,ill\nill/ill-2.png,ill\n", "1 class folders with images (ill), expected"),
    "unknown split": ("file,class,split\nill/ill-1.png,ill,Train\n", "split 'Train' for ill/ill-1.png; expected train, val"),
}
ROWS = "".join(f"{name}/{name}-{n}.png,{name}\n" for name in ("healthy", "ill") for n in range(1, 7))
for name, (text, words) in MANIFESTS.items():
    content = text if isinstance(text, bytes) else text.replace("ROWS", ROWS).encode()
    spoil = lambda f, content=content: put(f, "manifest.csv", content)  # noqa: E731
    INPUTS["class-folders"][f"manifest, {name}"] = (spoil, words)

# The same, with splits: each spoils rows in which they are stated.

SPLITS = {
    "stated for some": (
        lambda rows: rows[0].update(split=""),
        "split '' of case healthy/healthy-1: expected train, val, test",
    ),
    "no validation": (
        lambda rows: [row.update(split=row["split"].replace("val", "test")) for row in rows],
        "split val: no case is in it; expected some in each",
    ),
    "patient in two": (lambda rows: [row.update(patient="p1") for row in rows[:2]], "are both of patient p1; expected"),
    "group in two": (lambda rows: [row.update(dup_group="g1") for row in rows[:2]], "are linked by duplicates; expected"),
    "copy in two": (lambda rows: None, "are linked by duplicates; expected"),
}


def with_splits(folder, change):
    names = [f"{name}/{name}-{n}.png" for name in ("healthy", "ill") for n in range(1, 7)]
    rows = [
        {"file": name, "class": name.split("/")[0], "split": ("train", "val", "test")[n % 3]} for n, name in enumerate(names)
    ]
    if change(rows) is None and all(len(row) == 3 and row["split"] for row in rows):  # not the rows are at fault
        put(folder, names[1], (folder / names[0]).read_bytes())
    pd.DataFrame(rows).fillna("").to_csv(folder / "manifest.csv", index=False)


for name, (change, words) in SPLITS.items():
    INPUTS["class-folders"][f"split, {name}"] = (lambda f, change=change: with_splits(f, change), words)

# The table dataset.json of msd: its text, or keys that it gets.

ATOM = {"0": "background", "1": "atrium"}
TABLES = {
    "no json": ("{'labels'", "dataset.json: no JSON"),
    "empty": ("", "dataset.json: no JSON"),
    "no text": (b"\xff\xfe\x00", "dataset.json: no JSON"),
    "nothing but brackets": ("[" * 100_000, "dataset.json: no JSON"),
    "list": ("[]", "dataset.json: has no table labels; expected it, as in"),
    "no labels": ("{}", "has no table labels"),
    "labels as a list": ('{"labels": ["LV", "Myo"]}', "has no table labels"),
    "values that are no numbers": (
        {"labels": {"LV": "one"}},
        "label 'LV': 'one'; expected each name once, with whole numbers",
    ),
    "name twice": ({"labels": {"LV": 1, "lv": 2}}, "label 'lv': 2; expected each name once"),
    "values of null": ({"labels": {"LV": None}}, "label 'LV': None; expected"),
    "other count": ({"numTraining": 99}, "dataset.json: numTraining is 99; expected 5, the cases found"),
    "other labels": ({"labels": ATOM}, "--lv LV: no label of"),
    "values that are nowhere": ({"labels": {"LV": 1, "Myo": 2}}, "no voxel of LV (1); it has the values 0, 205, 500, 600"),
}


def with_table(folder, content):
    path = folder / "dataset.json"
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


for name, (content, words) in TABLES.items():
    INPUTS["msd"][f"dataset.json, {name}"] = (lambda f, content=content: with_table(f, content), words)


@pytest.mark.parametrize(("source", "spoil", "words"), params(INPUTS))
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, prepare, recwarn, source, spoil, words):
    folder = SOURCES[source].make(tmp_path / "raw")
    given = spoil(folder)
    results = tmp_path / "results"
    for on_bad in ("stop", "skip"):
        code, said, _ = prepare(source, given if isinstance(given, Path) else folder, results / "out", "--on-bad", on_bad)
        assert (code, len(said)) == (2, 1), said
        assert said[0].startswith("error: ")
        assert words in said[0]
        assert {path.name for path in results.glob("*")} <= {".out.partial"}
    assert [str(warning.message) for warning in recwarn] == []
