"""Fixtures shared by all modules. fedlib comes first: it sets what torch reads once, when it is imported."""

import gc
from pathlib import Path

import hypothesis
import pytest
from playwright.sync_api import sync_playwright

from data_prep.sources import prepare_synthetic
from fedlib.data.dataset import PreparedDataset
from tests.helpers import python

hypothesis.settings.register_profile("no deadline", deadline=None)  # a machine may be busy: no timed tests
hypothesis.settings.load_profile("no deadline")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Tests that share what is costly to make, a study or a module's fixtures, run in one process (pytest -n 2)."""
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("smoke" if "smoke" in item.fixturenames else item.module.__name__))


def pytest_collection_finish():
    """Collect no more what was imported: statsmodels' multipletests ends with gc.collect(), 0.45 s on a heap with torch."""
    gc.collect()
    gc.freeze()


CHROMIUM = "/usr/bin/chromium"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]
TASKS = ("classification", "segmentation")
CASES = {"classification": 48, "segmentation": 10}


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium, headless, asking nobody for anything by itself."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> dict[str, PreparedDataset]:
    """A tiny synthetic prepared set per task; nobody writes to it."""
    folder = tmp_path_factory.mktemp("prepared")
    return {task: prepare_synthetic(task, folder / task, CASES[task], size=16) for task in TASKS}


@pytest.fixture(params=TASKS)
def data(request, prepared) -> PreparedDataset:
    """The prepared set of each task in turn."""
    return prepared[request.param]


@pytest.fixture
def images(prepared) -> PreparedDataset:
    """The prepared set of the classification task."""
    return prepared["classification"]


@pytest.fixture
def volumes(prepared) -> PreparedDataset:
    """The prepared set of the segmentation task."""
    return prepared["segmentation"]


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Path:
    """The folder of a whole smoke study of both tasks, made by the command a user types; nobody writes to it."""
    out = tmp_path_factory.mktemp("study") / "smoke"
    done = python("-m", "fedlib", "study", "--profile", "smoke", "--out", out)
    assert done.returncode == 0, done.stderr[-2000:]
    return out
