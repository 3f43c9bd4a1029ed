"""The slider without a kernel: every frame is there, one is shown."""

import io
from base64 import b64decode

import numpy as np
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from fedlib import plots
from fedlib.stills import Stills


def test_every_frame_is_in_the_page_and_one_is_shown():
    frames = [np.full((4, 6), 40 * n, np.uint8) for n in range(3)]
    soup = BeautifulSoup(Stills('slice "z"', frames, ["a", "b < c", "d"], start=1)._repr_html_(), "html.parser")
    images = soup.find_all("img")
    assert [image["alt"] for image in images] == ["a", "b < c", "d"]
    assert [image.has_attr("hidden") for image in images] == [True, False, True]
    stored = [Image.open(io.BytesIO(b64decode(image["src"].partition(",")[2]))) for image in images]
    assert all(np.array_equal(np.asarray(image), frame) for image, frame in zip(stored, frames, strict=True))
    slider = soup.input
    assert (slider["min"], slider["max"], slider["value"], slider["aria-label"]) == ("0", "2", "1", 'slice "z"')
    assert soup.output.string == "b < c"


@pytest.mark.parametrize(("captions", "start"), [(["a"], 0), (["a", "b"], 2), ([], 0)])
def test_frames_without_captions_are_refused(captions, start):
    with pytest.raises(ValueError, match="frames"):
        Stills("x", [np.zeros((2, 2), np.uint8)] * 2, captions, start)


def test_a_set_of_each_task_can_be_browsed(data):
    stills = plots.browse(data)
    assert 1 < len(stills.frames) <= 32
    assert min(stills.frames[0].shape[:2]) >= 128
    if data.task == "segmentation":
        outlined = stills.frames[stills.start].reshape(-1, 3)
        assert len(np.unique(outlined, axis=0)) > len(np.unique(outlined[:, 0])), "the outlines are in colour"
    assert len(stills._repr_html_()) < 1_000_000
