"""Radiographs from bytes: every kind of PNG, JPEG and DICOM alike, and one line for what cannot be used."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file

from data_prep.radiographs import read_grey, squared
from fedlib.config import UserError
from tests.data_prep import radiographs_raw as made
from tests.data_prep import raw

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
SMOOTH = np.add.outer(np.arange(20), np.arange(20)).astype(np.uint8) * 5
OPAQUE = Image.fromarray(np.full((16, 16), 255, np.uint8))


def read_image(name, content, size):
    """A file to a square, as the loader does it."""
    grey, aspect, _ = read_grey(name, content)
    return squared(grey, size, aspect)


def with_palette(grey, **extra):
    image = Image.fromarray(255 - grey)  # indices that are not the grey values
    image.putpalette([value for index in range(256) for value in [255 - index] * 3])
    return made.encoded(image, **extra)


def with_alpha(mode):
    image = Image.fromarray(GREY).convert(mode)
    image.putalpha(OPAQUE)
    return made.encoded(image)


PNGS = {
    "grey": made.encoded(Image.fromarray(GREY)),
    "RGB": made.encoded(Image.fromarray(GREY).convert("RGB")),
    "RGBA": with_alpha("RGB"),
    "grey and alpha": with_alpha("L"),
    "palette": with_palette(GREY),
    "interlaced": made.encoded(Image.fromarray(GREY), optimize=True, interlace=1),
}


@pytest.mark.parametrize("kind", PNGS)
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.dcm", "x"])
def test_every_kind_of_png_is_read_alike_under_any_name(kind, name):
    image = read_image(name, PNGS[kind], 16)
    assert image.dtype == np.uint8
    assert (image == GREY).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_black(mode):
    image = Image.new(mode, (16, 16), (200,) * (len(mode) - 1) + (255,))
    image.paste((200,) * (len(mode) - 1) + (0,), (0, 0, 8, 16))
    done = read_image("x.png", made.encoded(image), 16)
    assert (done[:, :8] == 0).all()
    assert (done[:, 8:] == 200).all()


def test_a_transparent_colour_of_a_palette_is_black():
    done = read_image("x.png", with_palette(GREY, transparency=0), 16)  # index 0 is white
    assert done[15, 15] == 0
    assert (done.flat[:255] == GREY.flat[:255]).all()


def test_one_bit():
    bits = GREY % 3 > 0
    assert (read_image("x.png", made.encoded(Image.fromarray(bits)), 16) == 255 * bits).all()


@pytest.mark.parametrize("top", [255, 4095, 65535])
def test_16_bit_is_shown_from_percentile_to_percentile(top):
    """8 or 12 bits of content in 16 are as bright as 16."""
    ramp = np.linspace(0, top, 10_000).reshape(100, 100).astype(np.uint16)
    done = read_image("x.png", made.encoded(Image.fromarray(ramp)), 100).astype(int)
    assert (done.min(), done.max()) == (0, 255)
    assert np.abs(done - np.linspace(0, 255, 10_000).reshape(100, 100)).max() < 4
    assert (np.diff(done.ravel()) >= 0).all(), "order is kept"


def test_a_few_marks_in_16_bit_are_seen():
    marks = np.zeros((100, 100), np.uint16)
    marks[3, 4] = 900
    done = read_image("x.png", made.encoded(Image.fromarray(marks)), 100)
    assert done[3, 4] == 255
    assert done.sum() == 255


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_is_read(mode):
    content = made.encoded(Image.fromarray(SMOOTH).convert(mode), "JPEG", quality=95)
    assert np.abs(read_image("x.jpg", content, 20).astype(int) - SMOOTH).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_orientation_of_exif_is_followed(orientation, dtype):
    stored = {2: np.fliplr, 3: lambda a: a[::-1, ::-1], 4: np.flipud, 5: np.transpose, 6: np.rot90}
    stored |= {7: lambda a: a[::-1, ::-1].T, 8: lambda a: np.rot90(a, 3)}
    turned = stored.get(orientation, np.asarray)(GREY.astype(dtype))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = made.encoded(Image.fromarray(np.ascontiguousarray(turned)), exif=exif)
    upright = read_image("x.png", made.encoded(Image.fromarray(GREY.astype(dtype))), 16)
    assert (read_image("x.png", content, 16) == upright).all()


def test_an_image_that_is_not_square_is_padded_with_black():
    half = Image.new("L", (40, 20), 200)
    half.putpixel((0, 0), 199)
    done = read_image("x.png", made.encoded(half), 32)
    assert done.shape == (32, 32)
    assert (done[10:22, 4:] == 200).all()
    assert done[:7].max() == done[25:].max() == 0


def test_shrinking_does_not_alias():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    done = read_image("x.png", made.encoded(Image.fromarray(stripes)), 16)
    assert np.abs(done.astype(int) - 127).max() < 20, "grey, where nearest neighbour gives black or white"


WIDE = np.linspace(0, 4000, 256).reshape(16, 16)
WINDOW = {"WindowCenter": 2000, "WindowWidth": 1000}
SHOWN = 255 * np.clip((WIDE - 1500) / 1000, 0, 1)


@pytest.mark.parametrize(
    ("pixels", "header"),
    [
        (WIDE.astype(np.uint16), WINDOW),
        (WIDE.astype(np.uint16), WINDOW | {"BitsStored": 12, "HighBit": 11}),
        (WIDE.astype(np.uint16), {"WindowCenter": [2000, 40], "WindowWidth": [1000, 80]}),
        (WIDE.astype(np.uint16), WINDOW | {"VOILUTFunction": "LINEAR_EXACT"}),
        ((WIDE - 1000).astype(np.int16), WINDOW | {"RescaleSlope": 1, "RescaleIntercept": 1000}),
        ((WIDE / 2).astype(np.uint16), WINDOW | {"RescaleSlope": 2, "RescaleIntercept": 0}),
        ((4000 - WIDE).astype(np.uint16), WINDOW | {"RescaleSlope": -1, "RescaleIntercept": 4000}),
    ],
)
@pytest.mark.parametrize("inverted", [False, True])
def test_dicom_is_shown_through_rescale_and_window(pixels, header, inverted):
    if inverted:
        header = header | {"PhotometricInterpretation": "MONOCHROME1"}
    done = read_image("x.dcm", made.dicom(pixels, **header), 16).astype(float)
    assert np.abs((255 - done if inverted else done) - SHOWN).max() < 1.5


def test_a_window_wider_than_the_content_is_not_stretched_to_it():
    done = read_image("x.dcm", made.dicom(WIDE.astype(np.uint16), WindowCenter=2000, WindowWidth=8000), 16)
    assert np.abs(done - 255 * (WIDE + 2000) / 8000).max() < 1.5


def test_dicom_through_a_sigmoid_window():
    done = read_image("x.dcm", made.dicom(WIDE.astype(np.uint16), **WINDOW, VOILUTFunction="SIGMOID"), 16)
    assert np.abs(done - 255 / (1 + np.exp(-4 * (WIDE - 2000) / 1000))).max() < 1.5


@pytest.mark.parametrize("header", [{}, WINDOW, {"RescaleSlope": 1, "RescaleIntercept": 0}])
def test_dicom_through_a_lookup_table(header):
    """The table comes before the window: entries 0, 17, .. 255 from value 100 on."""
    table = made.lookup_table([17 * n for n in range(16)], 100, 8)
    pixels = np.tile(np.arange(95, 121, dtype=np.uint16), (26, 1))
    done = read_image("x.dcm", made.dicom(pixels, VOILUTSequence=table, **header), 26)
    assert (done[0] == 17 * np.clip(pixels[0].astype(int) - 100, 0, 15)).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32])
def test_dicom_without_a_window_is_shown_like_a_16_bit_png(dtype):
    ramp = np.linspace(0, 4095, 10_000).reshape(100, 100)
    done = read_image("x", made.dicom(ramp.astype(dtype), WindowCenter=""), 100)
    png = read_image("x", made.encoded(Image.fromarray(ramp.astype(np.uint16))), 100)
    assert (done == png).all()


@pytest.mark.parametrize("name", ["x.dcm", "x.DICOM", "IM000001", "1.2.840.15", "x.png"])
def test_dicom_is_known_by_its_bytes(name):
    pixels = np.stack([GREY] * 3, axis=-1)
    assert (read_image(name, made.dicom(pixels), 16) == GREY).all()


def test_dicom_with_a_palette():
    lut = (np.arange(256, dtype=np.uint16)[::-1] * 257).tobytes()
    header = {f"{colour}PaletteColorLookupTableData": lut for colour in ("Red", "Green", "Blue")}
    header |= {f"{colour}PaletteColorLookupTableDescriptor": [256, 0, 16] for colour in ("Red", "Green", "Blue")}
    done = read_image("x", made.dicom(255 - GREY, PhotometricInterpretation="PALETTE COLOR", **header), 16)
    assert np.abs(done.astype(int) - GREY).max() <= 3, "its 16 bits are shown from percentile to percentile"


@pytest.mark.parametrize("stored", ["bigendian", "implicit", "RLE", "jp2klossless"])
def test_dicom_is_read_alike_however_it_is_stored(stored):
    """Files that come with pydicom, of one real MR image."""
    plain, other = (Path(get_testdata_file(f"MR_small{kind}.dcm", download=False)) for kind in ("", f"_{stored}"))
    assert (read_image("x", other.read_bytes(), 64) == read_image("x", plain.read_bytes(), 64)).all()


def test_many_threads_read_as_one():
    contents = [*PNGS.values(), made.dicom(WIDE.astype(np.uint16), **WINDOW)] * 8
    alone = [read_image("x", content, 24) for content in contents]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda content: read_image("x", content, 24), contents))
    assert all((one == other).all() for one, other in zip(alone, together, strict=True))


NOISE = made.encoded(Image.fromarray(raw.picture(1, 64)))
JPEG = made.encoded(Image.fromarray(raw.picture(1, 64)), "JPEG")
DICOM = made.dicom(raw.picture(1, 64).astype(np.uint16))


@settings(max_examples=150, deadline=None)
@example(which=DICOM, cut=815, changes=[(356, 0)])  # pixels as the name of what the file is, line breaks among them
@given(
    which=st.sampled_from([NOISE, JPEG, DICOM]),
    cut=st.integers(0, 9000),
    changes=st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 255)), max_size=8),
)
def test_damage_gives_an_image_or_a_user_error(which, cut, changes):
    content = bytearray(which)
    for place, value in changes:
        content[place % len(content)] = value
    said = "x: nothing"
    try:
        read_image("x", bytes(content[: cut or None]), 8)
    except UserError as refusal:
        said = str(refusal)
    assert said.startswith("x: ")
    assert "\n" not in said


def columns_of(content):
    return read_grey("x", content)[2]


@pytest.mark.parametrize(("age", "years"), [("045Y", 45), ("018M", 1.5), ("026W", 0.5), ("003D", 0.01)])
def test_the_header_tells_age_sex_view_manufacturer_and_patient(age, years):
    tags = {"PatientSex": "F", "ViewPosition": "PA", "Manufacturer": "Maker ", "PatientID": "007", "PatientAge": age}
    assert columns_of(made.dicom(GREY, **tags)) == {
        "age": years,
        "sex": "F",
        "view": "PA",
        "manufacturer": "Maker",
        "patient": "007",
    }


@pytest.mark.parametrize("age", ["", "45", "ABCY", "Y", "045X"])
def test_an_age_that_is_none_and_empty_tags_are_left_out(age):
    assert columns_of(made.dicom(GREY, PatientAge=age, PatientSex="", PatientID=" ")) == {}


def test_names_and_birth_dates_are_not_told():
    assert columns_of(made.dicom(GREY)) == columns_of(NOISE) == {}
