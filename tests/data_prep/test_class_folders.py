"""Images in one folder a class: which are taken, whose they are, and what a manifest may say of them."""

from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest

from data_prep.class_folders import choices, class_names, find_cases, load
from data_prep.files import opened
from fedlib.config import UserError
from tests.data_prep import radiographs_raw as made
from tests.data_prep import raw


def found(source, where=None):
    with opened(source) as files:
        return find_cases(files, where)


def touched(folder, *names):
    """Empty files: finding cases reads names only."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


@pytest.fixture
def folder(tmp_path):
    return raw.class_folders(tmp_path / "raw")


def test_cases_are_named_by_their_folders_in_natural_order(folder):
    cases = found(folder)
    assert len(cases) == 24
    assert class_names(cases) == ["healthy", "ill"]
    assert [case.case for case in cases[:3]] == ["healthy/healthy-1", "healthy/healthy-2", "healthy/healthy-3"]
    assert all(case.patient == case.case for case in cases)


def test_images_folders_are_entered_and_masks_left_alone(tmp_path):
    names = [f"{label}/images/x-{n}.png" for label in ("a", "b") for n in range(3)]
    masks = [name.replace("images", masks) for name in names for masks in ("masks", "mask", "Masks")]
    plain = touched(tmp_path / "plain", *(name.replace("/images", "") for name in names))
    cases = found(touched(tmp_path / "deep", *names, *masks))
    assert [case.case for case in cases] == [case.case for case in found(plain)]
    assert [case.image for case in cases] == names


def test_only_images_inside_class_folders_are_taken(tmp_path):
    images = ["a/1.PNG", "a/2.Jpeg", "a/3.DCM", "a/4.dicom", "a/IM000005", "b/1.2.840.1.dcm", "b/6.jpg"]
    others = [
        "top.png",
        "a/notes.txt",
        "a/t.xlsx",
        "a/DICOMDIR",
        "b/README",
        "b/masks/6.jpg",
        "b/p1/mask/1.png",
        "c/only.csv",
    ]
    cases = found(touched(tmp_path, *images, *others))
    assert sorted(case.image for case in cases) == sorted(images)
    assert class_names(cases) == ["a", "b"]
    assert "b/1.2.840.1" in {case.case for case in cases}


def test_folders_inside_a_class_are_patients(tmp_path):
    names = ["ill/p1/1.dcm", "ill/p1/study/series/2.dcm", "ill/images/p2/1.dcm", "well/p1/1.dcm", "well/9.png"]
    patients = {case.case: case.patient for case in found(touched(tmp_path, *names))}
    assert patients == {
        "ill/p1/1": "p1",
        "ill/p1/study/series/2": "p1",
        "ill/p2/1": "p2",
        "well/p1/1": "p1",
        "well/9": "well/9",
    }


def write_manifest(folder, **columns):
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    rows = [[file, file.split("/")[0], *(str(of(n)) for of in columns.values())] for n, file in enumerate(files)]
    lines = [",".join(row) for row in [["file", "class", *columns], *rows]]
    (folder / "manifest.csv").write_text("\n".join(lines))


def test_the_manifest_tells_patients_duplicates_and_splits(folder):
    write_manifest(
        folder,
        patient=lambda n: f"00{n // 2}",
        dup_group=lambda n: "same" if n in (1, 5) else "",
        split=lambda n: ["train", "val", "test", ""][n % 4],
    )
    cases = found(folder)
    assert [case.patient for case in cases] == [f"00{n // 2}" for n in range(24)], "ids stay text"
    assert [n for n, case in enumerate(cases) if case.dup_group == "same"] == [1, 5]
    assert [case.split for case in cases[:4]] == ["train", "val", "test", ""]
    assert all(case.columns == {} for case in cases)


def test_an_empty_patient_is_a_patient_of_its_own(folder):
    write_manifest(folder, patient=lambda n: "p" if n < 2 else "")
    cases = found(folder)
    assert [case.patient for case in cases[:2]] == ["p", "p"]
    assert all(case.patient == case.case for case in cases[2:])


def test_the_manifest_chooses_rows_and_keeps_its_columns(folder):
    write_manifest(folder, mini=lambda n: n % 2, scanner=lambda n: f"scanner {n % 3}")
    cases = found(folder, "mini=1")
    assert len(cases) == 12
    assert {case.columns["scanner"] for case in cases} == {"scanner 0", "scanner 1", "scanner 2"}
    assert {case.columns["mini"] for case in cases} == {"1"}
    with pytest.raises(UserError, match=r"--where maxi=1.*mini"):
        found(folder, "maxi=1")
    with pytest.raises(UserError, match=r"--where mini=7.*no such row"):
        found(folder, "mini=7")


def test_only_listed_files_are_taken_with_the_class_that_is_stated(tmp_path):
    touched(tmp_path, "x/1.png", "x/2.png", "x/3.png", "x/odd.name")
    (tmp_path / "manifest.csv").write_text("file,class\nx/1.png,ill\n./x/odd.name,well\n")
    assert [(case.case, case.image, case.label) for case in found(tmp_path)] == [
        ("x/1", "x/1.png", "ill"),
        ("x/odd.name", "x/odd.name", "well"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["manifest.csv", "Manifest.CSV"])
def test_a_manifest_from_excel_is_read(tmp_path, encoding, separator, newline, name):
    touched(tmp_path, "ü/1.png", "well/1.png")
    lines = ["file,class,note", "ü/1.png,ü,größer", "well/1.png,well,", ""]
    (tmp_path / name).write_bytes(newline.join(lines).replace(",", separator).encode(encoding))
    assert [(case.label, case.columns["note"]) for case in found(tmp_path)] == [("ü", "größer"), ("well", "")]


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_manifest", ["NFC", "NFD"])
def test_umlauts_are_matched_however_they_are_spelt(tmp_path, on_disk, in_manifest):
    name = "Lunge/Röntgen-Übersicht.png"
    touched(tmp_path / "raw", normalize(on_disk, name), "well/1.png")
    (tmp_path / "raw" / "manifest.csv").write_text(f"file,class\n{normalize(in_manifest, name)},ill\nwell/1.png,well\n")
    for source in (tmp_path / "raw", raw.zipped(tmp_path / "raw", tmp_path / "raw.zip", "Ordner")):
        assert found(source)[0].image == normalize(on_disk, name)


def test_blanks_around_a_value_make_no_class_of_its_own(tmp_path):
    touched(tmp_path, "ill/ a.png", "ill/2.png", "well/1.png")
    (tmp_path / "manifest.csv").write_text(
        "file, class,patient \nill/ a.png,ill ,p1\nill/2.png, ill,\t\nwell/1.png,well, p1\n"
    )
    cases = found(tmp_path)
    assert [(case.image, case.label, case.patient) for case in cases] == [
        ("ill/ a.png", "ill", "p1"),
        ("ill/2.png", "ill", "ill/2"),
        ("well/1.png", "well", "p1"),
    ]


def test_names_that_pandas_takes_for_nothing_stay_names(tmp_path):
    """A class "None" (no finding) and a patient "NA" are names."""
    folder = raw.class_folders(tmp_path / "raw", {"None": 2, "ill": 2})
    write_manifest(folder, patient=lambda n: "NA" if n == 0 else f"p{n}")
    cases = found(folder)
    assert class_names(cases) == ["None", "ill"]
    assert cases[0].patient == "NA"


def test_a_listed_link_is_refused(folder):
    (folder / "ill" / "link.png").symlink_to("ill-1.png")
    (folder / "manifest.csv").write_text("file,class\nill/link.png,ill\nhealthy/healthy-1.png,healthy\n")
    with pytest.raises(UserError, match=r"lists ill/link.png: a link; expected the file itself"):
        found(folder)


def loaded(folder: Path, size: int = 20):
    """Every case by name, with what the loader makes of it."""
    with opened(folder) as files:
        cases = find_cases(files)
        classes = class_names(cases)
        return {case.case: load(case, [files.read(case.image)], classes, size) for case in cases}


def test_the_loader_gives_the_image_and_the_index_of_its_folder(folder):
    for name, (image, label, columns) in loaded(folder).items():
        kind, number = name.split("/")[1].rsplit("-", 1)
        assert image.shape == (1, 20, 20)
        assert (image[0] == raw.picture(1000 * (kind == "ill") + int(number) - 1)).all()
        assert label == ["healthy", "ill"].index(kind)
        assert columns == {"shape": "20x20"}


def test_the_loader_tells_what_a_dicom_header_states(tmp_path):
    """The patient too, which pipeline.py takes where the case has none."""
    content = made.dicom(np.arange(64, dtype=np.uint8).reshape(8, 8), PatientID="from the header", ViewPosition="AP")
    touched(tmp_path, "ill/1.dcm", "well/1")
    for name in ("ill/1.dcm", "well/1"):
        (tmp_path / name).write_bytes(content)
    told = {name: columns for name, (_, _, columns) in loaded(tmp_path).items()}
    assert told == dict.fromkeys(["ill/1", "well/1"], {"view": "AP", "patient": "from the header", "shape": "8x8"})


def test_choices_are_rows_with_a_reason():
    assert {row["setting"]: row["value"] for row in choices(64)}["size"] == 64
    assert all(set(row) == {"setting", "value", "reason", "label"} and row["reason"] for row in choices(64))
