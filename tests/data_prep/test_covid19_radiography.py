"""The layout of the COVID-19 Radiography Database: all of it or said to be less, and where each image comes from."""

import numpy as np
import pandas as pd
import pytest

from data_prep.class_folders import class_names, load
from data_prep.covid19_radiography import COUNTS, find_cases
from data_prep.files import Files, opened
from fedlib.config import UserError
from tests.data_prep import radiographs_raw as made
from tests.data_prep import raw

FEW = dict.fromkeys(COUNTS, 3)


def found(source, subset=True):
    with opened(source) as files:
        return find_cases(files, subset)


def listed(counts):
    """The database as names alone."""
    names = [
        f"{name}/{kind}/{name}-{n + 1}.png" for name in counts for kind in ("images", "masks") for n in range(counts[name])
    ]
    return Files("database", "", dict.fromkeys(names, (0, 0)))


@pytest.fixture
def folder(tmp_path):
    return made.radiography_database(tmp_path / "raw" / "COVID-19_Radiography_Dataset", FEW)


def test_the_whole_database_is_found():
    cases = find_cases(listed(COUNTS))
    assert pd.Series([case.label for case in cases]).value_counts().to_dict() == COUNTS
    assert class_names(cases) == list(COUNTS)
    assert len({case.case for case in cases}) == len({case.patient for case in cases}) == 21_165
    assert all("/images/" in case.image and case.label_files == () for case in cases), "no masks"


def test_cases_are_named_by_class_and_file(folder):
    cases = found(folder.parent)
    assert [case.case for case in cases[:2]] == ["COVID/COVID-1", "COVID/COVID-2"]
    assert [case.image for case in cases[-1:]] == ["Viral Pneumonia/images/Viral Pneumonia-3.png"]


def test_other_counts_than_the_published_are_one_line_unless_said():
    counts = COUNTS | {"COVID": 3615, "Normal": 10}
    with pytest.raises(UserError) as refusal:
        find_cases(listed(counts))
    assert "COVID 3615 (published: 3616), Normal 10 (published: 10192); --subset accepts" in str(refusal.value)
    assert "Viral" not in str(refusal.value)
    assert len(find_cases(listed(counts), subset=True)) == sum(counts.values())


@pytest.mark.parametrize("subset", [False, True])
@pytest.mark.parametrize("lacking", COUNTS)
def test_all_four_classes_must_be_there(subset, lacking):
    with pytest.raises(UserError, match=f"{lacking} 0 \\(published: {COUNTS[lacking]}\\)"):
        find_cases(listed(COUNTS | {lacking: 0}), subset)


def test_the_source_is_the_site_of_the_metadata(folder):
    made.metadata(folder / "COVID.metadata.xlsx", {"COVID-1": "https://sirm.org/category/covid-19/", "COVID-2": ""})
    urls = {
        "NORMAL-1": "https://www.kaggle.com/someone/chest-xray",
        "NORMAL-2 ": "https://github.com/ieee8023/covid-chestxray-dataset",
        "NORMAL-9": "https://github.com/not-here",
    }
    made.metadata(folder / "Normal.metadata.xlsx", urls)
    sources = {case.case: case.columns["source"] for case in found(folder)}
    assert {name: source for name, source in sources.items() if source} == {
        "COVID/COVID-1": "sirm.org",
        "Normal/Normal-1": "kaggle.com/someone",
        "Normal/Normal-2": "github.com/ieee8023",
    }
    assert len(sources) == 12


@pytest.mark.parametrize("url", ["nonsense", "http://[", "-", "1.5", "https://", "https://www.kaggle.com"])
def test_an_odd_url_is_no_reason_to_stop(folder, url):
    made.metadata(folder / "COVID.metadata.xlsx", {"COVID-1": url})
    assert found(folder)[0].columns["source"] in {"", "kaggle.com"}


def test_the_loader_gives_the_image_and_the_index_of_its_class(folder):
    cases = found(folder)
    grey = raw.picture(1)
    content = made.encoded(made.Image.fromarray(grey).convert("RGB"))
    image, label, columns = load(cases[-1], [content], class_names(cases), 20)
    assert (image == grey[np.newaxis]).all()
    assert (label, columns) == (3, {"shape": "20x20"})
