"""Spoiled input: one line with the file or option and what was expected, or a row of qc.csv; never half a set.

What is wrong with one case stops the command, or with --on-bad skip leaves that case out. What is wrong with the whole
input stops it in any case.
"""

import gzip
import json
import os
import stat
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.uid import JPEGLSLossless

from data_prep import files
from fedlib.data.dataset import open_prepared
from tests.data_prep import raw
from tests.data_prep.cardiac_raw import packed
from tests.data_prep.radiographs_raw import dicom, encapsulated, encoded, huge_png
from tests.data_prep.spoiled import SOURCES, shifted, with_bytes, with_member, zipped
from tests.helpers import python, snapshot

BAD_CASES, BAD_INPUTS = [], []


def bad_case(source):
    """Register a function that spoils one case of `source`; it gives the input, the file in qc.csv, and words to read."""
    return lambda spoil: BAD_CASES.append(pytest.param(source, spoil, id=f"{source}-{spoil.__name__}")) or spoil


def bad_input(*sources):
    """Register a function that spoils the whole input of the sources; it gives the input and the words to read."""

    def register(spoil):
        BAD_INPUTS.extend(pytest.param(source, spoil, id=f"{source}-{spoil.__name__}") for source in sources)
        return spoil

    return register


# One image. The file at fault is ill/ill-3.png; a good one is given as bytes.

ILL = "ill/ill-3.png"
WHOLE = "expected a whole PNG, JPEG or DICOM"
NEITHER = "neither PNG, JPEG nor DICOM"
GREY = Image.fromarray(raw.picture(77))
PICTURES = {
    "zero_bytes": (lambda good: b"", ["is empty", "expected a PNG, JPEG or DICOM"]),
    "png_cut_in_its_header": (lambda good: good[:20], ["unreadable", WHOLE]),
    "png_cut_in_its_pixels": (lambda good: good[:200], ["unreadable", WHOLE]),
    "png_with_flipped_bits": (lambda good: good[:100] + bytes(b ^ 255 for b in good[100:140]) + good[140:], [WHOLE]),
    "png_of_nothing": (lambda good: b"\x89PNG broken", [NEITHER]),
    "jpeg_cut_short": (lambda good: encoded(GREY, "JPEG")[:400], ["unreadable", WHOLE]),
    "jpeg_cut_in_its_header": (lambda good: encoded(GREY, "JPEG")[:30], ["expected"]),
    "text": (lambda good: b"see the archive", [NEITHER]),
    "html_instead_of_a_download": (lambda good: b"<!DOCTYPE html><html>log in</html>", [NEITHER]),
    "volume_with_the_suffix_of_an_image": (lambda good: packed(raw.heart(1)[0]), [NEITHER]),
    "gif_with_another_suffix": (lambda good: encoded(GREY, "GIF"), [NEITHER]),
    "tiff_with_another_suffix": (lambda good: encoded(GREY, "TIFF"), [NEITHER]),
    "animation": (
        lambda good: encoded(GREY, "PNG", save_all=True, append_images=[Image.fromarray(raw.picture(5))]),
        ["2 frames", "expected one image"],
    ),
    "one_grey_value": (lambda good: encoded(Image.new("L", (20, 20), 7)), ["no contrast", "7", "expected an image"]),
    "all_transparent": (lambda good: encoded(Image.new("RGBA", (20, 20), (9, 9, 9, 0))), ["no contrast"]),
    "bomb_of_pixels": (lambda good: huge_png(), ["2500000000 pixels", "bomb", "expected"]),
    "dicom_without_pixels": (lambda good: dicom(None), ["DICOM without an image", "expected a radiograph"]),
    "dicom_cut_in_its_header": (lambda good: dicom(raw.picture(1))[:150], ["expected"]),
    "dicom_cut_in_its_pixels": (lambda good: dicom(raw.picture(1))[:-100], ["unreadable", WHOLE]),
    "dicom_of_several_frames": (lambda good: dicom(raw.picture(1), NumberOfFrames=3), ["3 frames", "expected one"]),
    "dicom_of_a_compression_that_cannot_be_undone": (
        lambda good: dicom(raw.picture(1), JPEGLSLossless, PixelData=encapsulated(b"none")),
        ["JPEG-LS Lossless", "expected", "pylibjpeg"],
    ),
    "dicom_with_a_slope_of_nan": (
        lambda good: dicom(raw.picture(1), RescaleSlope="1.5", RescaleIntercept="0").replace(b"1.5 ", b"nan "),
        ["not finite", "rescaling", "expected numbers"],
    ),
    "dicom_that_claims_a_bomb": (
        lambda good: dicom(raw.picture(1), Rows=60_000, Columns=60_000),
        ["60000 x 60000", "expected at most"],
    ),
}


def picture_spoil(name, change, words):
    def spoil(folder):
        (folder / ILL).write_bytes(change((folder / ILL).read_bytes()))
        return folder, ILL, words

    spoil.__name__ = name
    return spoil


for name, (change, words) in PICTURES.items():
    bad_case("class-folders")(picture_spoil(name, change, words))


@bad_case("covid19-radiography")
def image_cut_short(folder):
    name = "Viral Pneumonia/images/Viral Pneumonia-2.png"
    (folder / name).write_bytes((folder / name).read_bytes()[:150])
    return folder, name, ["unreadable", WHOLE]


@bad_case("class-folders")
def notes_without_a_suffix(folder):
    (folder / "ill" / "notes").write_text("two were retaken")
    return folder, "ill/notes", [NEITHER]


@bad_case("class-folders")
def the_same_pixels_in_two_classes(folder):
    (folder / "ill" / "copy.png").write_bytes((folder / "healthy" / "healthy-2.png").read_bytes())
    return folder, "ill/copy.png", ["ill/copy (ill)", "healthy/healthy-2 (healthy)", "expected one class"]


# One file that is not read at all.


@bad_case("class-folders")
def link_out_of_the_folder(folder):
    (folder.parent / "secret.png").write_bytes((folder / ILL).read_bytes())
    (folder / "ill" / "a.png").symlink_to(folder.parent / "secret.png")
    return folder, "ill/a.png", ["a link out of the folder", "secret.png", "expected a file in it"]


@bad_case("class-folders")
def link_to_a_folder_outside(folder):
    (folder / "ill" / "more").symlink_to("/usr")
    return folder, "ill/more", ["a link out of the folder", "/usr"]


@bad_case("class-folders")
def link_to_nowhere(folder):
    (folder / "ill" / "a.png").symlink_to("gone.png")
    return folder, "ill/a.png", ["a link that leads nowhere"]


@bad_case("class-folders")
def link_to_itself(folder):
    (folder / "ill" / "a.png").symlink_to("a.png")
    return folder, "ill/a.png", ["a link that leads nowhere"]


@bad_case("class-folders")
def pipe(folder):
    os.mkfifo(folder / "ill" / "a.png")
    return folder, "ill/a.png", ["neither a file nor a folder"]


@bad_case("class-folders")
def name_that_is_no_text(folder):
    with open(os.fsencode(folder / "ill") + b"/\xff.png", "wb") as file:
        file.write((folder / ILL).read_bytes())
    return folder, "ill/?.png", ["its name is not UTF-8", "rename"]


@bad_case("class-folders")
def name_with_a_line_break(folder):
    (folder / "ill" / "a\nb.png").write_bytes((folder / ILL).read_bytes())
    return folder, "ill/a b.png", ["a line break in its name", "rename"]


@bad_case("class-folders")
def folder_with_a_line_break(folder):
    (folder / "ill" / "a\nb").mkdir()
    (folder / "ill" / "a\nb" / "c.png").write_bytes((folder / ILL).read_bytes())
    return folder, "ill/a b/c.png", ["a line break in its name", "rename"]


# One member of a zip.


@bad_case("class-folders")
def zip_that_leads_out(folder):
    return with_member(folder, "../evil.png", ILL), "../evil.png", ["leads out of the zip", "expected"]


@bad_case("class-folders")
def zip_with_an_absolute_path(folder):
    return with_member(folder, "/etc/evil.png", ILL), "/etc/evil.png", ["leads out of the zip", "expected"]


@bad_case("class-folders")
def zip_with_a_drive(folder):
    return with_member(folder, "C:/evil.png", ILL), "C:/evil.png", ["leads out of the zip", "expected"]


@bad_case("class-folders")
def zip_with_a_backslash(folder):
    archive = with_member(folder, "ill/evil/a.png", ILL)
    archive.write_bytes(archive.read_bytes().replace(b"ill/evil/a.png", b"ill\\evil\\a.png"))
    return archive, "ill\\evil\\a.png", ["a backslash", "expected / between folders"]


@bad_case("class-folders")
def zip_with_a_link(folder):
    return with_member(folder, "ill/a.png", ILL, mode=stat.S_IFLNK | 0o777), "ill/a.png", ["a link inside a zip"]


@bad_case("class-folders")
@pytest.mark.filterwarnings("ignore:Duplicate name")
def zip_with_a_name_twice(folder):
    archive = with_member(folder, "ill/ill-x.png", ILL)
    archive.write_bytes(archive.read_bytes().replace(b"ill/ill-x.png", ILL.encode()))
    return archive, ILL, ["twice in the zip", "expected it once"]


@bad_case("class-folders")
def zip_of_a_packing_that_may_burst(folder):
    return with_member(folder, "ill/a.png", ILL, zipfile.ZIP_LZMA), "ill/a.png", ["packed in a way", "deflate"]


@bad_case("class-folders")
def zip_with_flipped_bits(folder):
    archive = zipped(folder)
    with zipfile.ZipFile(archive) as packed_files:
        start = packed_files.getinfo(ILL).header_offset
    return with_bytes(archive, start + 30 + len(ILL) + 60, b"\0" * 40), ILL, ["damaged", "expected a whole file"]


@bad_case("class-folders")
def zip_bomb(folder, size=files.MAX_BYTES // 1024):
    """A member that is larger than any image; the limit is lowered by the test, for its sake."""
    (folder / "ill" / "bomb.png").write_bytes(bytes(size + 1))
    return zipped(folder), "ill/bomb.png", [f"{size + 1} bytes", f"expected at most {size}"]


# One cardiac case, number 2 of mmwhs: image or label replaced. The good arrays are given.

IMAGE, LABEL = "case_2_image.nii.gz", "case_2_label.nii.gz"
DAMAGED = "expected a whole .nii.gz file"
SHEARED = raw.AFFINE + np.array([[0, 0, 1.5, 0], [0] * 4, [0] * 4, [0] * 4])
FLAT = np.array([[2.0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
IMAGES = {
    "zero_bytes": (lambda image: b"", ["is empty", "expected NIfTI"]),
    "cut_short": (lambda image: packed(image)[:2000], [DAMAGED]),
    "text_in_gzip": (lambda image: gzip.compress(b"no NIfTI"), ["no NIfTI header", "expected NIfTI-1 or NIfTI-2"]),
    "empty_gzip": (lambda image: gzip.compress(b""), ["no NIfTI header"]),
    "png_with_the_suffix_of_a_volume": (lambda image: encoded(GREY), ["no NIfTI header"]),
    "flipped_bits": (lambda image: flipped(packed(image)), ["expected"]),
    "wrong_checksum": (lambda image: packed(image)[:-8] + bytes(8), [DAMAGED]),
    "four_axes": (lambda image: packed(np.stack([image, image], -1)), ["(16, 16, 16, 2)", "expected a volume"]),
    "two_axes": (lambda image: packed(image[..., 0]), ["(16, 16)", "expected a volume"]),
    "nan": (lambda image: packed(with_value(image, np.nan)), ["not finite", "NaN", "expected numbers"]),
    "infinite": (lambda image: packed(with_value(image, np.inf)), ["not finite", "expected numbers"]),
    "infinite_by_its_slope": (lambda image: packed(image, scl_slope=1e38), ["not finite", "expected numbers"]),
    "complex_numbers": (lambda image: packed(image.astype(np.complex64)), ["complex", "expected real numbers"]),
    "colours": (lambda image: packed(coloured(image)), ["RGB", "expected real numbers"]),
    "no_spacing": (lambda image: packed(image, pixdim=[1, 0, 2, 2, 0, 0, 0, 0]), ["0x2x2 mm", "expected positive"]),
    "negative_spacing": (lambda image: packed(image, pixdim=[1, -2, 2, 2, 0, 0, 0, 0]), ["-2x2x2 mm", "expected positive"]),
    "spacing_of_nan": (lambda image: packed(image, pixdim=[1, np.nan, 2, 2, 0, 0, 0, 0]), ["nan", "expected positive"]),
    "spacing_in_metres": (lambda image: packed(image, np.diag([0.002, 0.002, 0.002, 1])), ["mm; expected 0.05 to 50"]),
    "spacing_of_two_minds": (lambda image: packed(image, pixdim=[1, 3, 3, 3, 0, 0, 0, 0]), ["2x2x2", "3x3x3", "expected"]),
    "flat_affine": (lambda image: packed(image, FLAT, pixdim=[1, 2, 2, 2, 0, 0, 0, 0]), ["expected"]),
    "sheared_axes": (lambda image: packed(image, SHEARED), ["sheared", "expected right angles"]),
    "other_shape": (lambda image: packed(image[:-1]), ["(16, 16, 16)", "expected (15, 16, 16)"]),
    "claims_a_bomb": (lambda image: packed(image, dim=[3, 9999, 9999, 9999, 1, 1, 1, 1]), ["claims", "expected at most"]),
    "claims_a_little_more": (lambda image: packed(image, dim=[3, 16, 16, 17, 1, 1, 1, 1]), ["cut short", "by its header"]),
    "longer_than_it_claims": (lambda image: packed(image, dim=[3, 16, 16, 15, 1, 1, 1, 1]), ["longer than its header"]),
    "one_grey_value": (lambda image: packed(0 * image), ["one grey value", "expected an image"]),
    "all_below_the_window": (lambda image: packed(image - 2000), ["one grey value", "-160 and 440", "expected"]),
}
LABELS = {
    "label_of_zero_bytes": (lambda label: b"", ["is empty", "expected NIfTI"]),
    "label_of_another_case": (lambda label: packed(label[:-1]), ["(15, 16, 16)", "expected (16, 16, 16)"]),
    "label_at_another_place": (lambda label: packed(label, shifted(3)), ["3 voxels off", "affine", "expected at most"]),
    "label_at_half_a_voxel": (lambda label: packed(label, shifted(0.5)), ["0.5 voxels off", "affine"]),
    "all_background": (lambda label: packed(0 * label), ["no voxel of LV (500)", "it has the values 0"]),
    "no_ventricle": (lambda label: packed(np.where(label == 500, 420, label)), ["no voxel of LV (500)", "205, 420, 600"]),
    "no_myocardium": (lambda label: packed(np.where(label == 205, 0, label)), ["no voxel of Myo (205)", "0, 500, 600"]),
    "label_of_fractions": (lambda label: packed(label + np.float32(0.5)), ["no whole numbers", "expected a label"]),
    "label_with_nan": (lambda label: packed(with_value(label, np.nan)), ["no whole numbers", "expected a label"]),
}


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes(b ^ 255 for b in content[middle : middle + 50]) + content[middle + 50 :]


def with_value(array, value):
    changed = array.astype(np.float32)
    changed[3, 3, 3] = value
    return changed


def coloured(image):
    colours = np.zeros(image.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["R"] = image % 200
    return colours


def volume_spoil(name, change, words, file, number):
    def spoil(folder):
        (folder / file).write_bytes(change(raw.heart(2)[number]))
        return folder, IMAGE, words

    spoil.__name__ = name
    return spoil


for file, number, table in ((IMAGE, 0, IMAGES), (LABEL, 1, LABELS)):
    for name, (change, words) in table.items():
        bad_case("mmwhs")(volume_spoil(name, change, words, file, number))


@bad_case("mmwhs")
def image_without_label(folder):
    (folder / LABEL).unlink()
    return folder, IMAGE, ["an image without its label", "expected"]


@bad_case("mmwhs")
def heart_outside_the_crop(folder):
    for path, array in zip((IMAGE, LABEL), raw.heart(2), strict=True):
        (folder / path).write_bytes(packed(np.pad(array, [(0, 40)] * 3)))
    return folder, IMAGE, ["keeps 0 ml after crop", "expected a loss of at most 20 %"]


@bad_case("mmwhs")
def voxels_that_would_fill_the_memory(folder):
    """Half a centimetre taken for five: resampled to 2 mm, a small file would be 4,000,000,000 voxels."""
    for path, array in zip((IMAGE, LABEL), raw.heart(2), strict=True):
        (folder / path).write_bytes(packed(np.pad(array, [(0, 48)] * 3), np.diag([49.0, 49, 49, 1])))
    return folder, IMAGE, ["3.9e+09 voxels of 2x2x2 mm", "expected at most 6.7e+07", "--crop heart"]


@bad_case("totalsegmentator")
def heart_that_does_not_fit(folder):
    masks = {"heart_ventricle_left": slice(2, 10), "heart_myocardium": slice(10, 22)}
    (folder / "s0002" / "ct.nii.gz").write_bytes(packed(np.random.default_rng(1).integers(0, 99, (24,) * 3, np.int16)))
    for mask, rows in masks.items():
        array = np.zeros((24,) * 3, np.uint8)
        array[rows, 2:9, 2:9] = 1
        (folder / "s0002" / "segmentations" / f"{mask}.nii.gz").write_bytes(packed(array))
    return folder, "s0002/ct.nii.gz", ["the heart with a margin of 0 mm is 40x14x14 mm", "window 32x32x32 mm", "expected"]


@bad_case("totalsegmentator")
def missing_mask(folder):
    (folder / "s0002" / "segmentations" / "heart_myocardium.nii.gz").unlink()
    return folder, "s0002/ct.nii.gz", ["expected heart_myocardium beside it"]


@bad_case("totalsegmentator")
def empty_mask(folder):
    (folder / "s0002" / "segmentations" / "heart_myocardium.nii.gz").write_bytes(packed(np.zeros((16,) * 3, np.uint8)))
    return folder, "s0002/ct.nii.gz", ["heart_myocardium.nii.gz", "no voxel of Myo"]


@bad_case("totalsegmentator")
def masks_that_overlap(folder):
    masks = folder / "s0002" / "segmentations"
    (masks / "heart_myocardium.nii.gz").write_bytes((masks / "heart_ventricle_left.nii.gz").read_bytes())
    return folder, "s0002/ct.nii.gz", ["LV and Myo share 36 voxels", "expected structures apart"]


@bad_case("totalsegmentator")
def mask_of_another_scan(folder):
    (folder / "s0002" / "segmentations" / "heart_myocardium.nii.gz").write_bytes(packed(np.ones((9,) * 3, np.uint8)))
    return folder, "s0002/ct.nii.gz", ["heart_myocardium.nii.gz", "(9, 9, 9)", "expected (16, 16, 16)"]


@bad_case("msd")
def task_without_a_label(folder):
    (folder / "labelsTr" / "heart_2.nii.gz").unlink()
    return folder, "imagesTr/heart_2.nii.gz", ["an image without its label"]


@bad_case("msd")
def label_cut_short(folder):
    path = folder / "labelsTr" / "heart_2.nii.gz"
    path.write_bytes(path.read_bytes()[:100])
    return folder, "imagesTr/heart_2.nii.gz", ["labelsTr/heart_2.nii.gz", DAMAGED]


@pytest.mark.parametrize(("source", "spoil"), BAD_CASES)
def test_a_bad_case_stops_or_is_left_out(tmp_path, prepare, monkeypatch, recwarn, source, spoil):
    monkeypatch.setattr(files, "MAX_BYTES", files.MAX_BYTES // 1024)
    folder, file, words = spoil(SOURCES[source].make(tmp_path / "raw"))
    before, results = snapshot(tmp_path), tmp_path / "results"
    code, said, _ = prepare(source, folder, results / "out")
    assert (code, len(said)) == (2, 1), said
    assert said[0].startswith("error: ")
    assert [word for word in [*words, "--on-bad skip"] if word not in said[0]] == [], said[0]
    assert said[0].count(str(folder)) == 1, said[0]
    assert not (results / "out").exists()
    assert {path.name for path in results.glob("*")} <= {".out.partial"}

    code, said, _ = prepare(source, folder, results / "out", "--on-bad", "skip")
    assert (code, said) == (0, [])
    assert [path.name for path in results.iterdir()] == ["out"]
    data, listed = open_prepared(results / "out"), pd.read_csv(results / "out" / "qc.csv")
    assert file in list(listed["file"])
    reason = listed.set_index("file")["reason"][file]
    assert [word for word in words if word not in reason] == [], reason
    assert len(data.cases) == len(data.images) == len(data.labels) == data.manifest["counts"]["prepared"]
    assert len(data.cases) + len(listed) == SOURCES[source].cases + (file not in files_of_good(source, tmp_path))
    assert not set(listed["file"]) & set(data.cases["file"])
    assert prepare(source, folder, tmp_path / "anew", "--on-bad", "skip")[0] == 0
    assert open_prepared(tmp_path / "anew").fingerprint == data.fingerprint, "going on is the same as all in one go"
    assert {name: time for name, time in snapshot(tmp_path).items() if name in before} == before, "raw files untouched"
    assert [str(warning.message) for warning in recwarn if "ultiprocess" not in str(warning.message)] == []


def files_of_good(source, folder):
    """Names of the files of a source before one was spoiled."""
    made = SOURCES[source].make(folder / "good")
    return {path.relative_to(made).as_posix() for path in made.rglob("*")}


# The whole input.

EVERY = tuple(SOURCES)


@bad_input(*EVERY)
def no_folder(folder):
    return folder / "elsewhere", ["--input", "elsewhere", "does not exist", "expected a folder or a zip"]


@bad_input(*EVERY)
def empty_folder(folder):
    (folder.parent / "empty" / "deeper").mkdir(parents=True)
    return folder.parent / "empty", ["--input", "empty", "expected images"]


@bad_input(*EVERY)
def folder_of_other_things(folder):
    (folder.parent / "letters").mkdir()
    for name in ("a.txt", "b.txt"):
        (folder.parent / "letters" / name).write_text("Dear colleague")
    return folder.parent / "letters", ["--input", "letters", "expected"]


@bad_input(*EVERY)
def text_as_zip(folder):
    (folder.parent / "x.zip").write_text("not a zip")
    return folder.parent / "x.zip", ["--input", "x.zip", "is not a zip", "expected a folder or a whole zip"]


@bad_input("mmwhs")
def zip_of_zero_bytes(folder):
    (folder.parent / "x.zip").touch()
    return folder.parent / "x.zip", ["--input", "x.zip", "is not a zip"]


@bad_input("class-folders")
def gzip_as_zip(folder):
    (folder.parent / "x.tar.gz").write_bytes(gzip.compress(b"tar"))
    return folder.parent / "x.tar.gz", ["--input", "x.tar.gz", "is not a zip"]


@bad_input("class-folders")
def single_image(folder):
    return folder / ILL, ["--input", "ill-3.png", "is not a zip", "expected a folder"]


@bad_input("class-folders")
def empty_zip(folder):
    zipfile.ZipFile(folder.parent / "x.zip", "w").close()
    return folder.parent / "x.zip", ["--input", "x.zip", "is empty"]


@bad_input("class-folders", "mmwhs")
def zip_cut_short(folder):
    archive = zipped(folder)
    archive.write_bytes(archive.read_bytes()[:-50])
    return archive, ["--input", "x.zip", "cut short", "expected"]


@bad_input("class-folders")
def zip_with_a_damaged_list(folder):
    archive = zipped(folder)
    return with_bytes(archive, archive.read_bytes().rfind(b"PK\1\2"), b"XXXX"), ["--input", "x.zip", "damaged", "expected"]


@bad_input("class-folders", "mmwhs")
def zip_with_a_password(folder):
    archive = zipped(folder)
    content = archive.read_bytes()
    return with_bytes(archive, content.find(b"PK\1\2") + 8, b"\1"), ["x.zip", "protected by a password", "expected"]


@bad_input("class-folders")
def pipe_as_input(folder):
    os.mkfifo(folder.parent / "pipe")
    return folder.parent / "pipe", ["--input", "pipe", "expected a folder"]


@bad_input("class-folders")
def device_as_input(folder):
    return "/dev/null", ["--input /dev/null", "expected a folder"]


@bad_input("class-folders")
def endless_name(folder):
    return folder / ("x" * 300), ["--input", "xxx", "expected a folder or a zip"]


@bad_input("class-folders")
def too_few_in_a_class(folder):
    for file in list((folder / "ill").iterdir())[2:]:
        file.unlink()
    return folder, ["class 'ill'", "2 patients", "expected at least 3"]


@bad_input("class-folders")
def one_class(folder):
    for file in (folder / "ill").iterdir():
        file.unlink()
    return folder, ["--input", "healthy", "expected at least 2"]


@bad_input("class-folders")
def no_class(folder):
    return folder / "ill", ["--input", "ill", "0 class", "expected at least 2"]


@bad_input("class-folders")
def zip_in_a_zip(folder):
    with zipfile.ZipFile(folder.parent / "outer.zip", "w") as outer:
        outer.write(zipped(folder), "x.zip")
    return folder.parent / "outer.zip", ["outer.zip: 0 class folders with images", "expected at least 2"]


@bad_input("class-folders")
def splits_for_classes(folder):
    (folder / "ill").rename(folder / "train")
    return folder, ["train/", "a split where a class is expected", "expected one folder a class"]


@bad_input("class-folders")
def two_images_of_one_name(folder):
    Image.open(folder / ILL).save(folder / "ill" / "ill-3.jpg")
    return folder, ["ill-3", "'ill/ill-3'", "expected it once"]


@bad_input("class-folders")
def class_of_damaged_images(folder):
    """With --on-bad skip the class would be one that no model ever sees."""
    (folder / "unclear").mkdir()
    (folder / "unclear" / "1.png").write_bytes(b"x")
    return folder, ["unclear/1.png", NEITHER]


@bad_input("class-folders")
def nothing_but_copies(folder):
    for file in folder.rglob("*.png"):
        file.write_bytes(encoded(GREY))
    return folder, ["the same pixels in more than one class", "expected"]


# A manifest.csv: its text, with %s for rows of the good files.

COLUMNS = "expected columns file, class"
MANIFESTS = {
    "no_columns": ("", ["not a table", COLUMNS]),
    "no_class_column": ("file,kind\nill/ill-1.png,ill\n", ["no column class", COLUMNS]),
    "no_rows": ("file,class\n", ["lists no files", "expected"]),
    "ragged_rows": ("file,class\nill/ill-1.png,ill\nill/ill-2.png,ill,x,y\n", ["not a table", COLUMNS]),
    "more_fields_than_columns": ("file,class\nill/ill-1.png,ill,x,y\n", ["more fields than", COLUMNS]),
    "other_code_page": ("file,class\nill/krank-ü.png,ill\n".encode("latin-1"), ["not a table", "UTF-8"]),
    "spreadsheet": (b"PK\3\4\0\xff\xfe", ["not a table", COLUMNS]),
    "zero_bytes_of_text": ("\0\0\0\0", ["no column class, file", COLUMNS]),
    "column_twice": ("file,class, class\nill/ill-1.png,ill,ill\n", ["column class twice", COLUMNS]),
    "own_column": ("file,class,case\nill/ill-1.png,ill,1\n", ["column case", "rename"]),
    "missing_file": ("file,class\n%sill/gone.png,ill\n", ["lists ill/gone.png", "does not exist"]),
    "path_out_of_the_folder": ("file,class\n%s../secret.png,ill\n", ["lists ../secret.png", "does not exist"]),
    "absolute_path": ("file,class\n%s/etc/passwd,ill\n", ["lists /etc/passwd", "does not exist"]),
    "backslashes": ("file,class\n%sill\\ill-1.png,ill\n", ["ill\\ill-1.png", "expected / between folders"]),
    "file_listed_twice": ("file,class\n%sill/ill-1.png,ill\n", ["lists ill/ill-1.png twice", "expected"]),
    "no_class_stated": ("file,class\n%sill/../healthy/extra.png,\n", ["extra.png"]),
    "unknown_split": ("file,class,split\nill/ill-1.png,ill,testing\n", ["split 'testing'", "expected train, val, test"]),
    "split_stated_for_some": ("split:%s", ["split '' of case", "expected train, val, test"]),
    "no_validation": ("val to test:%s", ["split val", "no case is in it", "expected some in each"]),
    "patient_in_two_splits": ("patient:%s", ["a leak between splits", "both of patient p1", "expected"]),
    "group_in_two_splits": ("group:%s", ["a leak between splits", "linked by duplicates", "expected"]),
    "copy_in_two_splits": ("copy:%s", ["a leak between splits", "linked by duplicates", "expected"]),
}


def good_rows(folder, fault=""):
    """Rows file, class, or with a fault of splits a whole table in which they are stated."""
    rows = [
        {"file": f"{name}/{name}-{n}.png", "class": name, "split": ("train", "val", "test")[n % 3]}
        for name in ("healthy", "ill")
        for n in range(1, 7)
    ]
    if not fault:
        return "".join(f"{row['file']},{row['class']}\n" for row in rows)
    for number, row in enumerate(rows):
        row["patient"] = "p1" if fault == "patient" and number < 2 else ""
        row["dup_group"] = "g1" if fault == "group" and number < 2 else ""
    if fault == "split":
        rows[0]["split"] = ""
    if fault == "val to test":
        rows = [row | {"split": row["split"].replace("val", "test")} for row in rows]
    if fault == "copy":
        (folder / rows[1]["file"]).write_bytes((folder / rows[0]["file"]).read_bytes())
    return pd.DataFrame(rows).to_csv(index=False)


def manifest_spoil(name, text, words):
    def spoil(folder):
        content = text
        if isinstance(text, str):
            fault, _, stated = text.partition(":%s") if ":%s" in text else ("", "", text)
            content = (good_rows(folder, fault) if fault else stated.replace("%s", good_rows(folder))).encode()
        (folder / "manifest.csv").write_bytes(content)
        return folder, words if ":%s" in str(text) else ["manifest.csv", *words]

    spoil.__name__ = f"manifest_{name}"
    return spoil


for name, (text, words) in MANIFESTS.items():
    bad_input("class-folders")(manifest_spoil(name, text, words))


@bad_input("class-folders")
def manifest_that_is_a_link_out(folder):
    (folder.parent / "table.csv").write_text("file,class\n" + good_rows(folder))
    (folder / "manifest.csv").symlink_to(folder.parent / "table.csv")
    return folder, ["manifest.csv", "a link out of the folder"]


@bad_input("covid19-radiography")
def class_without_images(folder):
    for file in (folder / "COVID" / "images").iterdir():
        file.unlink()
    return folder, ["--input", "COVID 0", "expected at least one image of each class"]


@bad_input("covid19-radiography")
def table_of_sites_that_is_none(folder):
    (folder / "COVID.metadata.xlsx").write_text("no spreadsheet")
    return folder, ["COVID.metadata.xlsx", "unreadable", "expected a whole xlsx"]


@bad_input("covid19-radiography")
def table_of_sites_without_urls(folder):
    pd.DataFrame({"FILE NAME": ["COVID-1"]}).to_excel(folder / "COVID.metadata.xlsx", index=False)
    return folder, ["COVID.metadata.xlsx", "no column URL", "expected"]


@bad_input("mmwhs")
def label_without_image(folder):
    (folder / IMAGE).unlink()
    return folder, [LABEL, "without its image", "expected case_2_image.nii.gz"]


@bad_input("mmwhs")
def other_names(folder):
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("_image", "_img").replace("_label", "_seg"))
    return folder, ["--input", "_image.nii.gz", "_label.nii.gz", "expected"]


@bad_input("mmwhs")
def too_few_volumes(folder):
    for number in (3, 4, 5):
        for kind in ("image", "label"):
            (folder / f"case_{number}_{kind}.nii.gz").unlink()
    return folder, ["2 patients", "expected at least 3"]


@bad_input("mmwhs")
def two_files_of_one_case(folder):
    (folder / "center_B").mkdir()
    (folder / "center_B" / IMAGE).write_bytes((folder / IMAGE).read_bytes())
    return folder, [IMAGE, "the same case as", "expected each name once"]


@bad_input("mmwhs")
def every_volume_damaged(folder):
    for path in folder.glob("*_image.nii.gz"):
        path.write_bytes(b"x")
    return folder, ["case_1_image.nii.gz", "no NIfTI header"]


@bad_input("totalsegmentator")
def scans_of_one_name(folder):
    (folder / "more").mkdir()
    (folder / "s0005").rename(folder / "more" / "s0001")
    return folder, ["s0001/ct.nii.gz", "the same case as", "expected each name once"]


@bad_input("totalsegmentator")
def table_without_ids(folder):
    (folder / "meta.csv").write_text("name;age\ns0001;60\n")
    return folder, ["meta.csv", "expected a column image_id"]


@bad_input("totalsegmentator")
def table_with_ids_twice(folder):
    (folder / "meta.csv").write_text("image_id;age\ns0001;60\ns0001;61\n")
    return folder, ["meta.csv", "expected", "each case once"]


@bad_input("totalsegmentator")
def table_of_another_code_page(folder):
    (folder / "meta.csv").write_bytes("image_id;institute\ns0001;Zürich\n".encode("latin-1"))
    return folder, ["meta.csv", "unreadable", "expected"]


@bad_input("totalsegmentator")
def no_scan_with_the_mask(folder):
    for mask in folder.glob("*/segmentations/heart_ventricle_left.nii.gz"):
        mask.unlink()
    return folder, ["heart_ventricle_left", "expected"]


TABLES = {
    "no_json": ("{'labels'", ["no JSON", "expected"]),
    "zero_bytes": ("", ["no JSON", "expected"]),
    "nothing_but_brackets": ("[" * 100_000, ["no JSON", "expected"]),
    "list": ("[]", ["no table labels", "expected it"]),
    "no_labels": ("{}", ["no table labels", "expected it"]),
    "labels_as_a_list": ('{"labels": ["LV", "Myo"]}', ["no table labels", "expected it"]),
    "values_that_are_no_numbers": ('{"labels": {"LV": "one"}}', ["label 'LV': 'one'", "expected"]),
    "name_twice": ('{"labels": {"LV": 1, "lv": 2}}', ["label 'lv': 2", "expected each name once"]),
    "values_of_null": ('{"labels": {"LV": null}}', ["label 'LV': None", "expected"]),
    "other_count": ({"numTraining": 99}, ["numTraining is 99", "expected 5"]),
    "other_labels": ({"labels": {"0": "background", "1": "atrium"}}, ["--lv LV", "no label", "atrium (1)", "expected"]),
    "values_that_are_nowhere": ({"labels": {"LV": 1, "Myo": 2}}, ["heart_1", "no voxel of LV (1)", "0, 205, 500, 600"]),
}


def table_spoil(name, content, words):
    def spoil(folder):
        path = folder / "dataset.json"
        path.write_text(content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content))
        return folder, words if "heart_1" in words else ["dataset.json", *words]

    spoil.__name__ = f"dataset_json_{name}"
    return spoil


for name, (content, words) in TABLES.items():
    bad_input("msd")(table_spoil(name, content, words))


@bad_input("msd")
def no_dataset_json(folder):
    (folder / "dataset.json").unlink()
    return folder, ["--input", "0 files dataset.json", "expected one"]


@bad_input("msd")
def two_dataset_jsons(folder):
    (folder / "labelsTr" / "dataset.json").write_text("{}")
    return folder, ["--input", "2 files dataset.json", "expected one"]


@bad_input("msd")
def task_label_without_image(folder):
    (folder / "imagesTr" / "heart_2.nii.gz").unlink()
    return folder, ["labelsTr/heart_2.nii.gz", "without its image", "expected heart_2.nii.gz"]


@bad_input("msd")
def task_without_volumes(folder):
    for path in folder.glob("*Tr/*"):
        path.unlink()
    return folder, ["--input", "imagesTr", "expected"]


@bad_input("msd")
def case_in_two_packings(folder):
    path = folder / "imagesTr" / "heart_2.nii.gz"
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    return folder, ["heart_2.nii", "the same case as", "expected each name once"]


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
@pytest.mark.parametrize(("source", "spoil"), BAD_INPUTS)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, prepare, recwarn, source, spoil, on_bad):
    folder, words = spoil(SOURCES[source].make(tmp_path / "raw"))
    results = tmp_path / "results"
    code, said, _ = prepare(source, folder, results / "out", "--on-bad", on_bad)
    assert (code, len(said)) == (2, 1), said
    assert said[0].startswith("error: ")
    assert [word for word in words if word not in said[0]] == [], said[0]
    assert {path.name for path in results.glob("*")} <= {".out.partial"}
    assert [str(warning.message) for warning in recwarn] == []


def test_there_are_many_ways_to_spoil_an_input():
    assert len({param.id for param in BAD_CASES}) > 60
    assert len({param.id for param in BAD_INPUTS}) > 60


# Real processes: what libraries log is seen only there.


def all_pictures(folder):
    """Every spoiled image at once, beside the good ones; the EXIF of one of those is damaged, its picture is not."""
    good = (folder / ILL).read_bytes()
    (folder / "ill" / "ill-1.png").write_bytes(encoded(GREY, "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 44))
    for name, (change, _) in PICTURES.items():
        (folder / "ill" / f"{name}.png").write_bytes(change(good))
    return [f"ill/{name}.png" for name in PICTURES]


def all_volumes(folder):
    """Every spoiled image and every spoiled label at once, each beside its good other half."""
    for number, (name, (change, _)) in enumerate((IMAGES | LABELS).items()):
        content = [change(array) if (name in LABELS) == half else packed(array) for half, array in enumerate(raw.heart(2))]
        for kind, half in zip(("image", "label"), content, strict=True):
            (folder / f"x{number}_{kind}.nii.gz").write_bytes(half)
    return [f"x{number}_image.nii.gz" for number in range(len(IMAGES | LABELS))]


@pytest.mark.parametrize(("source", "spoil"), [("class-folders", all_pictures), ("mmwhs", all_volumes)])
def test_all_bad_files_at_once_make_no_noise(tmp_path, source, spoil):
    folder = SOURCES[source].make(tmp_path / "raw")
    bad = spoil(folder)
    arguments = ["--input", folder, "--out", tmp_path / "out", *SOURCES[source].options, "--on-bad", "skip"]
    done = python("-m", "data_prep", source, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(pd.read_csv(tmp_path / "out" / "qc.csv")["file"]) == sorted(bad)
    assert len(open_prepared(tmp_path / "out").cases) == SOURCES[source].cases
