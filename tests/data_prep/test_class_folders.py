"""Images in one folder a class: every kind of PNG alike, folder and zip alike, patients and duplicates together."""

import csv

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_prep import class_folders
from data_prep.sources import prepare_class_folders
from fedlib.config import UserError
from tests.data_prep import raw


def save_16_bit(grey, path):
    Image.fromarray(grey.astype(np.uint16) * 257).save(path)


def save_palette(grey, path):
    image = Image.fromarray(255 - grey)  # indices that are not the grey values
    image.putpalette([value for index in range(256) for value in [255 - index] * 3])
    image.save(path)


KINDS = {
    "grey": lambda grey, path: Image.fromarray(grey).save(path),
    "16 bit": save_16_bit,
    "RGB": lambda grey, path: Image.fromarray(grey).convert("RGB").save(path),
    "RGBA": lambda grey, path: Image.fromarray(grey).convert("RGBA").save(path),
    "grey and alpha": lambda grey, path: Image.fromarray(grey).convert("LA").save(path),
    "palette": save_palette,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_png_is_read_alike(tmp_path, kind):
    grey = raw.picture(1)
    KINDS[kind](grey, tmp_path / "x.png")
    assert (class_folders.read_image(tmp_path / "x.png", 20) == grey).all()


def test_jpeg_is_read(tmp_path):
    smooth = np.add.outer(np.arange(20), np.arange(20)).astype(np.uint8) * 5
    Image.fromarray(smooth).save(tmp_path / "x.jpg", quality=95)
    assert np.abs(class_folders.read_image(tmp_path / "x.jpg", 20).astype(int) - smooth).max() < 12


def test_an_image_that_is_not_square_is_padded_with_black(tmp_path):
    Image.new("L", (40, 20), 200).save(tmp_path / "x.png")
    done = class_folders.read_image(tmp_path / "x.png", 32)
    assert done.shape == (32, 32)
    assert (done[10:22] == 200).all()
    assert done[:7].max() == done[25:].max() == 0


def test_shrinking_does_not_alias(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    Image.fromarray(stripes).save(tmp_path / "x.png")
    done = class_folders.read_image(tmp_path / "x.png", 16)
    assert np.abs(done.astype(int) - 127).max() < 20, "grey, where nearest neighbour gives black or white"


@pytest.fixture
def folder(tmp_path):
    return raw.class_folders(tmp_path / "raw")


def test_folder_zip_and_top_folders_give_the_same_set(tmp_path, folder):
    nested = raw.class_folders(tmp_path / "outer" / "inner" / "images of today")
    (tmp_path / "outer" / ".DS_Store").write_text("")
    sources = [
        folder,
        tmp_path / "outer",
        raw.zipped(folder, tmp_path / "a.zip"),
        raw.zipped(nested, tmp_path / "b.zip", "top"),
    ]
    prepared = [prepare_class_folders(source, tmp_path / f"out{n}", 16) for n, source in enumerate(sources)]
    assert len({data.fingerprint for data in prepared}) == 1
    assert prepared[0].classes == ["healthy", "ill"]
    assert len(prepared[0].cases) == 24


def test_images_folders_are_entered_and_masks_left_alone(tmp_path, folder):
    plain = prepare_class_folders(folder, tmp_path / "plain", 16)
    for name in ("healthy", "ill"):
        (folder / name).rename(folder / "kept")
        (folder / name).mkdir()
        (folder / "kept").rename(folder / name / "images")
        raw.class_folders(tmp_path / f"masks-{name}", {"masks": 5})
        (tmp_path / f"masks-{name}" / "masks").rename(folder / name / "masks")
    assert prepare_class_folders(folder, tmp_path / "deep", 16).fingerprint == plain.fingerprint


def test_an_image_s_label_is_its_folder(tmp_path, folder):
    data = prepare_class_folders(folder, tmp_path / "out", 20)
    for row, case in data.cases.iterrows():
        name, number = case["case"].split("/")[1].rsplit("-", 1)
        assert data.classes[data.labels[row]] == case["label"] == name
        expected = raw.picture(1000 * (name == "ill") + int(number) - 1)
        assert (data.images[row, 0] == expected).all()


def write_manifest(folder, **columns):
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    with (folder / "manifest.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "class", *columns])
        for number, file in enumerate(files):
            writer.writerow([file, file.split("/")[0], *(column(number) for column in columns.values())])


@pytest.mark.parametrize("seed", range(5))
def test_patients_and_duplicates_keep_together(tmp_path, folder, seed):
    write_manifest(folder, patient=lambda n: f"00{n // 2}", dup_group=lambda n: "same" if n in (1, 5) else "")
    data = prepare_class_folders(folder, tmp_path / "out", 16, seed=seed)
    assert data.cases["patient"].nunique() == 12
    assert data.cases["patient"].str.startswith("00").all(), "ids stay text"
    assert (data.cases.groupby("patient")["split"].nunique() == 1).all()
    linked = data.cases[data.cases["patient"].isin(["000", "002"])]
    assert len(linked) == 4
    assert linked["split"].nunique() == 1, "patients 000 and 002 share a duplicate"


def test_the_manifest_chooses_rows_and_keeps_its_columns(tmp_path, folder):
    write_manifest(folder, mini=lambda n: n % 2, scanner=lambda n: f"scanner {n % 3}")
    data = prepare_class_folders(folder, tmp_path / "out", 16, where="mini=1")
    assert len(data.cases) == 12
    assert set(data.cases["scanner"]) == {"scanner 0", "scanner 1", "scanner 2"}
    with pytest.raises(UserError, match=r"--where maxi=1.*mini"):
        prepare_class_folders(folder, tmp_path / "other", 16, where="maxi=1")


def test_a_manifest_that_cannot_be_used_is_named(tmp_path, folder):
    with pytest.raises(UserError, match="--where mini=1.*manifest.csv"):
        class_folders.find_cases(folder, "mini=1")
    (folder / "manifest.csv").write_text("file,class\nhealthy/none.png,healthy\n")
    with pytest.raises(UserError, match=r"manifest.csv.*healthy/none.png"):
        class_folders.find_cases(folder)
    (folder / "manifest.csv").write_text("name,class\nx,y\n")
    with pytest.raises(UserError, match=r"manifest.csv.*no column file"):
        class_folders.find_cases(folder)
    (folder / "manifest.csv").write_text("")
    with pytest.raises(UserError, match=r"manifest.csv"):
        class_folders.find_cases(folder)


def test_names_that_pandas_takes_for_nothing_stay_names(tmp_path):
    """A class "None" (no finding) and a patient "NA" are names."""
    folder = raw.class_folders(tmp_path / "raw", {"None": 12, "ill": 12})
    write_manifest(folder, patient=lambda n: "NA" if n == 0 else f"p{n}")
    data = prepare_class_folders(folder, tmp_path / "out", 16)
    assert sorted(data.cases["label"].unique()) == ["None", "ill"]
    assert isinstance(data.cases, pd.DataFrame)
    assert data.cases["patient"].notna().all()
