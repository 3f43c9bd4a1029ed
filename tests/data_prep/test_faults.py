"""Situations of public bug reports, through the command line: nothing is guessed, nothing is passed over in silence."""

import json
import shutil
import struct
import unicodedata
import zlib
from io import BytesIO

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image

from data_prep.radiographs import read_grey, squared
from fedlib.data.dataset import open_prepared
from fedlib.data.partition import clients_of
from tests.data_prep import cardiac_raw, raw
from tests.data_prep.cardiac_raw import nifti, packed
from tests.data_prep.radiographs_raw import dicom, encoded
from tests.data_prep.spoiled import zipped
from tests.helpers import run_config


def png(seed, **how):
    return encoded(Image.fromarray(raw.picture(seed)), **how)


def write(folder, contents):
    """Write files by their names; the folder."""
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def images(folder, *columns, of=lambda n: ()):
    """24 images in ill/ and well/, and a manifest.csv if more columns than file and class are named."""
    write(folder, {f"{('ill', 'well')[n // 12]}/{n}.png": png(n) for n in range(24)})
    if columns:
        rows = [(f"{kind}/{n}.png", kind, *of(n)) for n in range(24) for kind in [("ill", "well")[n // 12]]]
        pd.DataFrame(rows, columns=["file", "class", *columns]).to_csv(folder / "manifest.csv", index=False)
    return folder


@pytest.fixture
def prepared(command, tmp_path):
    """Prepare raw/ into out/; the set, and the lines on standard error."""

    def call(source="class-folders", *more, folder=tmp_path / "raw"):
        options = raw.SETTINGS if source != "class-folders" else ("--size", "16")
        code, said, _ = command(source, "--input", folder, "--out", tmp_path / "out", *options, *more)
        assert code == 0, said
        return open_prepared(tmp_path / "out"), said

    return call


@pytest.fixture
def refused(command, tmp_path):
    """The one line with which raw/ is refused."""

    def call(source="class-folders", *more):
        options = raw.SETTINGS if source != "class-folders" else ("--size", "16")
        code, said, _ = command(source, "--input", tmp_path / "raw", "--out", tmp_path / "out", *options, *more)
        assert (code, len(said)) == (2, 1), said
        assert not (tmp_path / "out").exists()
        return said[0]

    return call


def splits_of_patients(data):
    return data.cases.groupby("patient")["split"].nunique()


# Files are told by their content.


@pytest.mark.parametrize("name", ["1.2.840.113619.2.5.17.{}", "IM{:06}", "{}.dcm", "{}.dat", "{}.img", "{}.ima", "{}.txt"])
def test_dicom_is_taken_whatever_its_name(tmp_path, prepared, name):
    write(tmp_path / "raw", {f"{('ill', 'well')[n % 2]}/{name.format(n)}": dicom(raw.picture(n)) for n in range(12)})
    for source in (tmp_path / "raw", zipped(tmp_path / "raw")):
        assert len(prepared("class-folders", "--overwrite", folder=source)[0].cases) == 12


def test_jpegs_are_taken_and_other_kinds_are_named(tmp_path, prepared, refused):
    write(images(tmp_path / "raw"), {f"ill/j{n}.jfif": png(50 + n, kind="JPEG") for n in range(3)})
    write(tmp_path / "raw", {"ill/a.txt": png(60, kind="JPEG"), "ill/notes.txt": b"retaken", "ill/DICOMDIR": b"x"})
    write(tmp_path / "raw", {"well/b.bmp": png(70, kind="BMP"), "well/t.tif": png(71, kind="TIFF"), "well/h.xyz": b"??"})
    assert "well/b.bmp: a BMP, and so neither PNG, JPEG nor DICOM" in refused()
    data, _ = prepared("class-folders", "--on-bad", "skip")
    assert len(data.cases) == 28
    listed = pd.read_csv(tmp_path / "out" / "qc.csv")["file"]
    assert listed.tolist() == ["well/b.bmp", "well/h.xyz", "well/t.tif"]
    assert data.manifest["passed_over"] == {".txt": 1, "DICOMDIR": 1}


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF", "WEBP"])
@pytest.mark.parametrize("suffix", ["tif", "bin", "png"])
@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_a_class_that_would_vanish_stops(tmp_path, refused, kind, suffix, on_bad):
    write(images(tmp_path / "raw"), {f"tb/{n}.{suffix}": png(50 + n, kind=kind) for n in range(6)})
    assert "tb/0" in refused("class-folders", "--on-bad", on_bad)


def test_an_image_in_no_class_is_listed(tmp_path, prepared, refused):
    write(images(tmp_path / "raw"), {"overview.png": png(50), "README.txt": b"read me"})
    assert "overview.png: an image in no class folder" in refused()
    data, _ = prepared("class-folders", "--on-bad", "skip")
    assert pd.read_csv(tmp_path / "out" / "qc.csv")["file"].tolist() == ["overview.png"]
    assert data.classes == ["ill", "well"]


def test_a_volume_is_packed_or_not_whatever_its_name(tmp_path, prepared):
    folder = raw.pairs(tmp_path / "raw", 4)
    image, label = raw.heart(2)
    write(folder, {"case_2_image.nii.gz": nifti(image), "case_2_label.nii.gz": nifti(label)})
    (folder / "case_3_image.nii.gz").rename(folder / "case_3_image.NII.GZ")
    assert len(prepared("mmwhs")[0].cases) == 4


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".hdr", ".mgz"])
def test_volumes_of_other_kinds_are_named(tmp_path, refused, suffix):
    folder = raw.pairs(tmp_path / "raw", 4)
    (folder / "case_2_image.nii.gz").rename(folder / f"case_2_image{suffix}")
    assert f"case_2_image{suffix}: a volume of another kind; expected NIfTI" in refused("mmwhs")
    for path in folder.glob("*.gz"):
        path.rename(folder / path.name.replace(".nii.gz", suffix).replace("_label", "_seg").replace("_image", "_ct"))
    (folder / f"case_2_image{suffix}").unlink()
    assert f"such as case_1_ct{suffix}; convert them" in refused("mmwhs")


# A folder may be a class, a split, a hospital or a patient.


@pytest.mark.parametrize(
    "levels",
    [
        (["Training", "Testing"], ["covid", "normal", "viral"]),
        (["train_images", "test_images"], ["covid", "normal"]),
        (["TrainingSet", "ValidationSet", "TestSet"], ["covid", "normal"]),
        (["fold1", "fold2", "fold3"], ["covid", "normal"]),
        (["images_001", "images_002"], ["p1", "p2"]),
        (["part 1", "part 2"], ["covid", "normal"]),
        (["Leeds", "Basel"], ["covid", "normal"]),
        (["covid", "normal"], ["train", "test"]),
        (["covid", "normal"], ["frontal", "lateral"]),
        (["covid", "normal"], ["PNG"]),
        (["covid", "normal"], ["Basel", "Leeds"], ["train", "valid"]),
        (["covid_train", "covid_test", "normal_train", "normal_test"],),
    ],
)
def test_a_folder_that_may_be_something_else_is_refused(tmp_path, refused, levels):
    shape = [len(names) for names in levels]
    contents = {}
    for n in range(36):
        place = np.unravel_index(n % np.prod(shape), shape)
        contents["/".join([*(names[i] for names, i in zip(levels, place, strict=True)), f"{n}.png"])] = png(n)
    write(tmp_path / "raw", contents)
    assert "expected one folder a class, or a manifest.csv" in refused()


@pytest.mark.parametrize("names", [("test positive", "test negative"), ("0", "1"), ("+", "-"), ("stage 1", "stage 2")])
def test_names_that_only_sound_like_splits_are_classes(tmp_path, prepared, names):
    write(tmp_path / "raw", {f"{names[n % 2]}/p{n % 2}{n // 6}/{n}.png": png(n) for n in range(24)})
    data, _ = prepared()
    assert data.classes == sorted(names)
    assert data.cases["patient"].nunique() == 8


# Columns and names as people write them.


@pytest.mark.parametrize(
    "column", ["Patient", "PATIENT", " patient ", "patient_id", "PatientID", "Subject", "pid", "pateint"]
)
def test_a_column_of_patients_is_used_or_asked_about(tmp_path, command, column):
    images(tmp_path / "raw", column, of=lambda n: (f"P{n // 2}",))
    code, said, _ = command("class-folders", "--input", tmp_path / "raw", "--out", tmp_path / "out", "--size", "16")
    if column.strip().lower() == "patient":
        assert code == 0
        assert open_prepared(tmp_path / "out").cases["patient"].nunique() == 12
    else:
        assert (code, len(said)) == (2, 1)
        assert f"column {column}: did you mean patient?" in said[0]


@pytest.mark.parametrize(
    ("column", "meant"), [("duplicate_group", "dup_group"), ("fold", "split"), ("Dataset_Split", "split")]
)
def test_other_columns_of_ours_are_asked_about(tmp_path, refused, column, meant):
    images(tmp_path / "raw", column, of=lambda n: (n,))
    assert f"column {column}: did you mean {meant}?" in refused()


def test_columns_about_a_patient_are_no_patients(tmp_path, prepared):
    images(
        tmp_path / "raw", "patient_age", "PatientSex", "patient", "patient_id", of=lambda n: (40 + n, "F", f"P{n // 2}", n)
    )
    data, _ = prepared()
    assert data.cases["patient"].nunique() == 12
    assert {"patient_age", "PatientSex", "patient_id"} <= set(data.cases)


FORMS = {
    "NFD": lambda text: unicodedata.normalize("NFD", text),
    "zero width": lambda text: text[0] + "\u200b" + text[1:],
    "no-break space": lambda text: f"\u00a0{text}\u00a0",
}


@pytest.mark.parametrize("form", FORMS)
def test_one_person_and_one_class_however_they_are_written(tmp_path, prepared, form):
    write(tmp_path / "raw", {f"x/{n}.png": png(n) for n in range(40)})
    rows = [(f"x/{n}.png", ["Häufig", "Selten"][n // 20], f"Zoë{n // 2}") for n in range(40)]
    rows = [(file, *(FORMS[form](text) if n % 2 else text for text in texts)) for n, (file, *texts) in enumerate(rows)]
    pd.DataFrame(rows, columns=["file", "class", "patient"]).to_csv(tmp_path / "raw" / "manifest.csv", index=False)
    data, _ = prepared()
    assert data.classes == ["Häufig", "Selten"]
    assert data.cases["patient"].nunique() == 20
    assert splits_of_patients(data).max() == 1


def test_one_class_and_one_person_in_folders_and_headers_of_two_forms(tmp_path, prepared):
    names = [unicodedata.normalize(form, "Häufig") for form in ("NFC", "NFD")]
    people = [unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD")]
    headers = [{"SpecificCharacterSet": "ISO_IR 192", "PatientID": f"{people[n % 2]}{n // 2}"} for n in range(12)]
    write(tmp_path / "raw", {f"{names[n % 2]}/{n}.dcm": dicom(raw.picture(n), **headers[n]) for n in range(12)})
    data, _ = prepared(folder=write(tmp_path / "raw", {f"Selten/{n}.png": png(50 + n) for n in range(6)}))
    assert data.classes == ["Häufig", "Selten"]
    assert data.cases["patient"].nunique() == 6 + 6


def test_one_heart_and_one_label_whatever_the_form_of_their_names(tmp_path, prepared):
    nfc, nfd = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))
    for path in raw.pairs(tmp_path / "raw", 4).iterdir():
        path.rename(path.with_name(path.name.replace("case", nfd if "label" in path.name else nfc)))
    assert prepared("mmwhs")[0].cases["case"].tolist() == [f"{nfc}_{n}" for n in range(1, 5)]
    folder = listed(tmp_path / "task", [row(n) for n in range(1, 6)])
    table = folder / "dataset.json"
    table.write_text(table.read_text().replace("LV", unicodedata.normalize("NFD", "Höhle")))
    data, _ = prepared("msd", "--lv", "höhle", "--overwrite", folder=folder)
    assert set(np.unique(data.labels)) == {0, 1, 2}


@pytest.mark.parametrize("pair", [("COVID", "Covid"), ("Viral Pneumonia", "viral_pneumonia")])
def test_classes_that_look_alike_are_refused(tmp_path, refused, pair):
    write(tmp_path / "raw", {f"{name}/{n}.png": png(n) for n in range(24) for name in [[*pair, "well"][n % 3]]})
    assert "look alike; expected one spelling" in refused()


CODES = [
    ("1E3", "1000", "0E8", ""),
    ("1000", "2000", ""),
    ("007", "7", "7.0"),
    ("1.10", "1.1", ""),
    ("True", "true", "1"),
    ("nan", "NA", "None", ""),
    ("12345678901234567890", "12345678901234567891"),
    ("1_000", "1000", "+1000", "inf"),
]


@pytest.mark.parametrize("codes", CODES, ids=" ".join)
def test_codes_of_hospitals_stay_as_they_were_written(tmp_path, prepared, codes):
    images(tmp_path / "raw", "patient", "hospital", of=lambda n: (f"P{n}", codes[n % len(codes)]))
    data, _ = prepared()
    by_hospital = {"n_clients": len(codes), "partition": "by_group", "group_column": "hospital"}
    clients = clients_of(run_config(data, "local", **by_hospital), data)
    held = [set(data.cases["hospital"].iloc[rows].fillna("").astype(str)) for rows in clients]
    assert sorted(map(sorted, held)) == sorted([code] for code in codes)


def test_a_table_of_body_scans_is_read_whatever_its_case(tmp_path, prepared):
    folder = cardiac_raw.scans(tmp_path / "raw", 5)
    (folder / "meta.csv").write_text((folder / "meta.csv").read_text().replace("image_id;age", "Image_ID;Age"))
    assert prepared("totalsegmentator", "--margin", "0")[0].cases["age"].tolist() == [61, 62, 63, 64, 65]


# Grey values.


def png16(array, interlace=0):
    """A PNG of 16 bits: (H, W) grey, (H, W, 2) with transparency, (H, W, 3) colours, (H, W, 4) both."""
    (height, width), channels = array.shape[:2], 1 if array.ndim == 2 else array.shape[2]

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    passes = [array]
    if interlace:
        starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
        passes = [array[y::dy, x::dx] for y, x, dy, dx in starts]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in passes for row in part if row.size)
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def layered(grey, channels):
    """Grey values of 16 bits as grey with transparency, colours, or both."""
    opaque = np.full_like(grey, 65535)
    return np.stack([grey] * (1 if channels == 2 else 3) + [opaque] * (channels % 2 == 0), axis=-1)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_twelve_bits_in_sixteen_are_seen_in_colour_too(tmp_path, prepared, channels):
    grey = [raw.picture(n).astype(np.uint16) << 4 for n in range(24)]
    contents = {
        f"{('grey', 'other')[n % 2]}/{n}.png": png16(layered(grey[n], channels) if n % 2 else grey[n]) for n in range(24)
    }
    write(tmp_path / "raw", contents)
    assert all(image.mean() > 60 for image in prepared()[0].images)


def shown(content, size=40):
    grey, aspect, _ = read_grey("x", content)
    return squared(grey, size, aspect)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bits_give_the_very_pixels_of_grey(channels):
    grey = np.arange(1600, dtype=np.uint16).reshape(40, 40) * 37
    layers = layered(grey, channels)
    assert (shown(png16(layers)) == shown(png16(grey))).all()
    assert (shown(png16(layers, 1)) == shown(png16(grey))).all()


FRAMED = np.full((40, 40), 9, np.int32)
FRAMED[10:30, 10:30] = np.arange(400).reshape(20, 20) * 2 + 1000
PADDED = {
    "a value": (np.uint16, 65535, {}),
    "zero": (np.uint16, 0, {}),
    "negative": (np.int16, -2000, {}),
    "a range": (np.uint16, 65535, {"PixelPaddingRangeLimit": 65000}),
    "a range downwards": (np.uint16, 0, {"PixelPaddingRangeLimit": 20}),
    "inverted": (np.uint16, 65535, {"PhotometricInterpretation": "MONOCHROME1"}),
    "with a window": (np.uint16, 65535, {"WindowCenter": 1400, "WindowWidth": 800}),
    "rescaled": (np.uint16, 65535, {"RescaleSlope": 2, "RescaleIntercept": -1000}),
}


@pytest.mark.parametrize("case", PADDED)
def test_padding_is_black_and_takes_no_part_in_the_percentiles(case):
    dtype, value, header = PADDED[case]
    pixels = np.where(FRAMED == 9, value, FRAMED).astype(dtype)
    inner = shown(dicom(FRAMED[10:30, 10:30].astype(dtype), **header), 20)
    found = shown(dicom(pixels, PixelPaddingValue=value, **header))
    assert (found[10:30, 10:30] == inner).all()
    assert (np.where(FRAMED == 9, found, 0) == 0).all()


DISC = (np.hypot(*np.mgrid[-39.5:40, -39.5:40]) < 30).astype(np.uint8) * 200 + 20
LOW = np.ascontiguousarray(DISC[::2])  # each pixel is twice as high as wide
FLAT = {
    "PixelSpacing": dicom(LOW, PixelSpacing=[0.4, 0.2]),
    "ImagerPixelSpacing": dicom(LOW, ImagerPixelSpacing=[0.4, 0.2]),
    "PixelAspectRatio": dicom(LOW, PixelAspectRatio=[2, 1]),
    "turned": dicom(np.ascontiguousarray(LOW.T), PixelSpacing=[0.2, 0.4]),
    "PNG": encoded(Image.fromarray(LOW), dpi=(200, 100)),
    "JPEG": encoded(Image.fromarray(LOW), "JPEG", dpi=(200, 100), quality=95),
}


@pytest.mark.parametrize("case", FLAT)
def test_a_disc_of_pixels_that_are_not_square_stays_a_disc(case):
    image = shown(FLAT[case], 80) > 100
    height, width = (np.flatnonzero(image.any(axis=axis)).size for axis in (1, 0))
    assert abs(height - width) <= 2
    assert 56 <= width <= 62


def test_a_photograph_of_several_pictures_gives_its_first():
    frames = [Image.fromarray(raw.picture(n)) for n in range(3)]
    several = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert (shown(several) == shown(encoded(frames[0], "JPEG"))).all()


def test_a_dicom_without_a_transfer_syntax_is_said_to_be_one(tmp_path, refused):
    dataset = pydicom.dcmread(BytesIO(dicom(raw.picture(1))))
    del dataset.file_meta.TransferSyntaxUID
    bare = BytesIO()
    pydicom.dcmwrite(bare, dataset, implicit_vr=False, little_endian=True, enforce_file_format=False)
    for content in (bare.getvalue(), bare.getvalue()[132:]):
        write(images(tmp_path / "raw"), {"ill/x.dcm": content})
        assert "ill/x.dcm: a DICOM without a transfer syntax" in refused()


# Volumes.


def pairs_with(folder, change=lambda image, label: (image, label), n=5, **header):
    """Pairs of hearts whose files have these fields in their headers."""
    affine = header.pop("affine", raw.AFFINE)
    for number in range(1, n + 1):
        arrays = change(*raw.heart(number))
        contents = [nifti(array, affine, **header) for array in arrays]
        write(folder, {f"c{number}_{kind}.nii": content for kind, content in zip(("image", "label"), contents, strict=True)})
    return folder


QUARTER = {"quatern_b": 0, "quatern_c": 0, "quatern_d": np.float32(1.0000001)}  # the two first axes turned round
QFORM = {"sform_code": 0, "qform_code": 1, "qoffset_x": 0, "qoffset_y": 0, "qoffset_z": 0, **QUARTER}
LEGAL = {
    "qfac 0": {**QFORM, "pixdim": [0, 2, 2, 2, 0, 0, 0, 0]},
    "qfac of another number": {**QFORM, "pixdim": [3, 2, 2, 2, 0, 0, 0, 0]},
    "a quaternion of more than 1": {**QFORM, "quatern_d": 1.00002, "pixdim": [1, 2, 2, 2, 0, 0, 0, 0]},
    "micrometres": {"xyzt_units": 3, "affine": np.diag([-2000.0, -2000, 2000, 1])},
    "metres": {"xyzt_units": 1, "affine": np.diag([-0.002, -0.002, 0.002, 1])},
    "a slope of 0": {"scl_slope": 0, "scl_inter": 7},
}


@pytest.mark.parametrize("case", LEGAL)
def test_what_the_standard_allows_is_read(tmp_path, prepared, case):
    pairs_with(tmp_path / "raw", **LEGAL[case])
    found, said = prepared("mmwhs")
    assert said == []
    pairs_with(tmp_path / "plain")
    expected, _ = prepared("mmwhs", "--overwrite", folder=tmp_path / "plain")
    assert (found.labels == expected.labels).all()
    assert (found.images == expected.images).all()


def test_an_extension_of_the_header_is_passed_over(tmp_path, prepared):
    raw.pairs(tmp_path / "raw", 4)
    volume = nib.Nifti1Image(raw.heart(2)[0], raw.AFFINE)
    volume.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
    (tmp_path / "raw" / "case_2_image.nii.gz").unlink()
    nib.save(volume, tmp_path / "raw" / "case_2_image.nii")
    assert len(prepared("mmwhs")[0].cases) == 4


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"qform_code": 1, "qoffset_x": 30, **QUARTER, "sform_code": 2}, "sform and qform disagree; the sform is taken"),
        ({"qform_code": 0, "sform_code": 0}, "states no orientation"),
    ],
)
def test_a_header_of_two_minds_or_none_is_told(tmp_path, prepared, header, words):
    pairs_with(tmp_path / "raw", **header)
    data, said = prepared("mmwhs")
    assert [line for line in said if words in line and line.startswith("warning: c1_image.nii, c2_image.nii, c3")] == said
    assert "note" not in data.cases
    assert prepared("mmwhs")[1] == said, "a set that is there is opened with its warnings"


def bright(image, label):
    """The heart of a CT with 1024 added; around it the values still fit into the window."""
    return np.where(label > 0, image + 1024, np.abs(image)).astype(np.int16), label


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
@pytest.mark.parametrize("change", [bright, lambda image, label: (np.where(label > 0, -900, image).astype(np.int16), label)])
def test_a_window_in_which_the_heart_has_one_grey_is_refused(tmp_path, refused, change, on_bad):
    pairs_with(tmp_path / "raw", change)
    line = refused("mmwhs", "--on-bad", on_bad)
    assert "LV and Myo are both" in line
    assert all(word in line for word in ("1024", "--modality mr", "--window"))


def test_a_volume_without_values_below_0_is_asked_about(tmp_path, prepared, command):
    pairs_with(tmp_path / "raw", lambda image, label: (np.abs(image), label))
    assert "no value below 0" in prepared("mmwhs")[1][0]
    assert prepared("mmwhs", "--modality", "mr", "--overwrite")[1] == []


def test_a_volume_scaled_to_one_is_refused(tmp_path, refused):
    pairs_with(tmp_path / "raw", lambda image, label: ((image / 1000).astype(np.float32), label))
    assert "one grey value" in refused("mmwhs")


def test_labels_that_are_nearly_whole_are_rounded_and_others_shown(tmp_path, prepared, refused):
    pairs_with(tmp_path / "raw", lambda image, label: (image, (label * 0.999999).astype(np.float32)))
    found, _ = prepared("mmwhs")
    assert set(np.unique(found.labels)) == {0, 1, 2}
    pairs_with(tmp_path / "raw", lambda image, label: (image, np.where(label == 205, 204.9, label).astype(np.float32)))
    shutil.rmtree(tmp_path / "out")
    assert "no whole numbers (204.9)" in refused("mmwhs")


def listed(folder, rows, **table):
    """The Decathlon's layout with labels in labelsTr2/ and another labelling in labelsTr/; dataset.json lists `rows`."""
    cardiac_raw.tasks(folder, 5)
    for number in range(1, 6):
        image, label = raw.heart(number)
        write(folder, {f"labelsTr2/heart_{number}.nii.gz": packed(label)})
        write(folder, {f"labelsTr/heart_{number}.nii.gz": packed(label[::-1, ::-1].copy())})
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"training": rows} | table))
    return folder


def row(number, labels="labelsTr2", image="./imagesTr/heart_{}.nii.gz"):
    return {"image": image.format(number), "label": f"./{labels}/heart_{number}.nii.gz"}


def test_the_files_that_dataset_json_lists_are_taken(tmp_path, prepared):
    listed(tmp_path / "raw", [row(n) for n in range(1, 6)])
    found, _ = prepared("msd")
    cardiac_raw.tasks(tmp_path / "plain", 5)
    expected, _ = prepared("msd", "--overwrite", folder=tmp_path / "plain")
    assert (found.labels == expected.labels).all()


def test_listed_images_may_lack_their_channel_and_listed_cases_may_be_fewer(tmp_path, prepared):
    folder = listed(tmp_path / "raw", [row(n) for n in (5, 2, 3, 4)], numTraining=4)
    for path in (folder / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    data, _ = prepared("msd")
    assert data.cases["case"].tolist() == ["heart_5", "heart_2", "heart_3", "heart_4"]
    assert data.manifest["passed_over"] == {".nii.gz": 7}


def test_the_list_of_nnunet_2_is_read(tmp_path, prepared):
    rows = {f"h{n}": {"images": [f"imagesTr/heart_{n}.nii.gz"], "label": f"labelsTr2/heart_{n}.nii.gz"} for n in range(1, 6)}
    listed(tmp_path / "raw", None, dataset=rows)
    assert prepared("msd")[0].cases["file"].tolist() == [f"imagesTr/heart_{n}.nii.gz" for n in range(1, 6)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(1), row(9)], "lists ./imagesTr/heart_9.nii.gz, which does not exist"),
        ([row(1, "labelsTr3")], "lists ./labelsTr3/heart_1.nii.gz, which does not exist"),
        ([row(1), row(1)], "lists heart_1 twice"),
        (["./imagesTr/heart_1.nii.gz"], "not readable"),
        ([{"image": "./imagesTr/heart_1.nii.gz"}], "not readable"),
        ([row(1, image="../../{}.nii")], "does not exist"),
        ([row(n) for n in range(1, 5)], "numTraining is 5; expected 4"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path, refused, rows, words):
    listed(tmp_path / "raw", rows)
    line = refused("msd")
    assert "dataset.json" in line
    assert words in line


def test_version_2_of_totalsegmentator_is_named(tmp_path, refused):
    for case in cardiac_raw.scans(tmp_path / "raw", 4).glob("s*/segmentations"):
        (case / "heart_ventricle_left.nii.gz").rename(case / "heart.nii.gz")
        (case / "heart_myocardium.nii.gz").unlink()
    assert "this is version 2 or later" in refused("totalsegmentator")


# Persons.

IDS = {
    "zeros": (lambda n: ["00007", "7", f"P{n}"][min(n, 2)], "patients 00007 and 7:"),
    "decimals": (lambda n: ["12", "12.0", f"P{n}"][min(n, 2)], "patients 12 and 12.0:"),
    "case": (lambda n: ["ab-1", "AB 1", f"P{n}"][min(n, 2)], "patients AB 1 and ab-1:"),
    "rounded": (lambda n: "1.2E+12" if n < 2 else f"P{n}", "patients 1.2E+12: were they rounded"),
    "nobody": (lambda n: "ANONYMOUS" if n < 9 else f"P{n}", "patient ANONYMOUS: 9 of 24 cases"),
    "one of many": (lambda n: "Basel" if n % 12 < 6 else f"P{n}", "patient Basel: 12 of 24 cases"),
}


@pytest.mark.parametrize("kind", IDS)
def test_odd_ids_are_told_with_the_ids(tmp_path, prepared, kind):
    of, words = IDS[kind]
    images(tmp_path / "raw", "patient", of=lambda n: (of(n),))
    _, said = prepared()
    assert len(said) == 1
    assert said[0].startswith("warning: ")
    assert words in said[0]


@pytest.mark.parametrize("name", ["person{}_bacteria_{}", "patient{:03}_frame{}", "{:08}_{:03}", "sub-{}_ses-{}"])
def test_names_of_files_that_tell_the_person_are_hinted_at(tmp_path, prepared, name):
    write(tmp_path / "raw", {f"{('ill', 'well')[n % 2]}/{name.format(n // 4, n)}.png": png(n) for n in range(24)})
    _, said = prepared()
    assert len(said) == 1
    assert "seem to tell the person" in said[0]


def test_ordinary_names_and_ids_are_no_warning(tmp_path, prepared):
    images(tmp_path / "raw", "patient", of=lambda n: (f"P{n // 2}",))
    assert prepared()[1] == []


# Splits.


def leaky(folder):
    """Two images of each patient, and copies of one image."""
    images(folder, "patient", of=lambda n: (f"P{n // 2}",))
    for n in (3, 6, 9):
        (folder / "ill" / f"{n}.png").write_bytes((folder / "ill" / "0.png").read_bytes())
    return folder


def test_splits_by_patient_and_by_image(tmp_path, command, prepared):
    leaky(tmp_path / "raw")
    apart, _ = prepared()
    assert apart.manifest["splits"]["split_by"] == "patient"
    assert splits_of_patients(apart).max() == 1
    mixed, _ = prepared("class-folders", "--split-by", "image", "--overwrite")
    assert mixed.manifest["splits"]["split_by"] == "image"
    assert splits_of_patients(mixed).max() > 1
    assert mixed.manifest["counts"]["patients_in_several_splits"] == (splits_of_patients(mixed) > 1).sum()
    choice = {row["setting"]: row for row in mixed.manifest["choices"]}["split by"]
    assert choice["value"] == "image"
    assert "both sides" in choice["reason"]
    counts = pd.crosstab(mixed.cases["label"], mixed.cases["split"])
    assert counts.loc["ill"].tolist() == counts.loc["well"].tolist(), "stratified by class"
    assert (apart.images == mixed.images).all()


@pytest.mark.parametrize("by", ["patient", "image"])
def test_fractions_are_those_asked_for(tmp_path, prepared, by):
    images(tmp_path / "raw", "patient", of=lambda n: (f"P{n // 2}",))
    data, _ = prepared("class-folders", "--fractions", "50,33.3,16.7", "--split-by", by)
    assert data.cases["split"].value_counts().to_dict() == {"train": 12, "val": 8, "test": 4}
    assert data.manifest["splits"]["fractions"] == pytest.approx([0.5, 0.333, 0.167])
    assert {row["setting"]: row["value"] for row in data.manifest["choices"]}["fractions"] == "50/33.3/16.7"


@pytest.mark.parametrize("text", ["80,10", "80,10,20", "0.8,0.1,0.1", "90,10,0", "a,b,c", "110,-5,-5", ""])
def test_fractions_that_are_none_are_refused(tmp_path, refused, text):
    images(tmp_path / "raw")
    assert f"--fractions {text}" in refused("class-folders", "--fractions", text)


def test_stated_splits_and_fractions_do_not_go_together(tmp_path, refused, prepared):
    split = ["train", "train", "val", "test"]
    images(tmp_path / "raw", "patient", "split", of=lambda n: (f"P{n // 2}", split[n % 4]))
    assert "states its own splits" in refused("class-folders", "--fractions", "80,10,10")
    assert "a leak between splits" in refused()
    data, _ = prepared("class-folders", "--split-by", "image")
    assert data.cases["split"].tolist() == split * 6


@pytest.mark.parametrize("source", ["synthetic-cxr", "synthetic-cardiac"])
def test_phantoms_are_split_as_asked(tmp_path, command, source):
    def call(*more):
        code, said, _ = command(
            source, "--cases", 40 if "cxr" in source else 10, "--size", 16, "--out", tmp_path / "out", *more
        )
        return code

    asked = ("--fractions", "40,30,30", "--split-by", "image")
    assert call(*asked) == call(*asked[2:], *asked[:2]) == 0, "the order of the options does not matter"
    data = open_prepared(tmp_path / "out")
    assert data.cases["split"].value_counts(normalize=True)["train"] == 0.4
    assert call() == 2, "another recipe"
