"""Widgets in exported pages, in a real browser without kernel and network: a key shows another frame."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from fedlib.study.pages import render_notebook
from tests.helpers import python

WIDGETS = 4
CELLS = [
    """
from fedlib.views import widgets
from fedlib.config import StudyConfig
from fedlib.data.dataset import open_prepared
from fedlib.study.experiment import run_all
from fedlib.training.execution import predict
from fedlib.training.run_store import RunStore

study = StudyConfig.make(profile="smoke", data_dir=data_dir, out_dir=out_dir, rounds=3, width=4)
data, store = open_prepared(data_dir, "classification"), RunStore(out_dir)
runs = run_all(study.runs(data.fingerprint), data, store)
""",
    "rows = data.split('test')\nwidgets.viewer(data, rows, {'centralized': predict(runs[0], data, rows)})",
    "widgets.partition_explorer(data, study)",
    "widgets.round_player(runs)",
    "widgets.viewer(open_prepared(data_dir, 'segmentation'))",
]
VISIBLE = "all => all.filter(one => !one.hidden).map(one => one.innerHTML)"


@pytest.fixture(scope="module")
def executed(prepared, tmp_path_factory):
    """A notebook with every widget, executed by papermill."""
    folder = tmp_path_factory.mktemp("players")
    source, output = folder / "source.ipynb", folder / "output.ipynb"
    settings = f"data_dir, out_dir = {str(prepared['classification'].folder.parent)!r}, {str(folder / 'study')!r}"
    book = new_notebook(cells=[new_code_cell(source) for source in (settings, *CELLS)])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, source)
    done = python("-m", "papermill", source, output, "--no-progress-bar")
    assert done.returncode == 0, done.stderr[-2000:]
    return output


@pytest.fixture(scope="module", params=["ours", "plain"])
def page(request, executed, browser):
    """The notebook as a page in a browser: exported by the project, or by nbconvert itself."""
    if request.param == "ours":
        path = render_notebook(executed)
    else:
        done = python("-m", "nbconvert", "--to", "html", "--output", "plain.html", executed)
        assert done.returncode == 0, done.stderr[-2000:]
        path = executed.with_name("plain.html")
    context = browser.new_context(viewport={"width": 375, "height": 800})
    context.route(
        "**/*", lambda route: route.continue_() if route.request.url.startswith(("file:", "data:")) else route.abort()
    )
    page = context.new_page()
    page.goto(path.as_uri(), wait_until="load")
    yield page
    context.close()


def test_papermill_gets_html_and_few_lines_of_progress(executed):
    outputs = [output for cell in nbformat.read(executed, 4).cells for output in cell.outputs]
    assert {kind for output in outputs for kind in output.get("data", {})} == {"text/html", "text/plain"}
    assert not any(output.get("name") == "stderr" for output in outputs), "nothing is painted red"
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert printed.count("rounds |") < 60, "not a line for each look at the run store"


def test_a_page_keeps_the_last_line_of_progress_only(executed):
    text = render_notebook(executed).read_text()
    assert re.findall(r"training: (\d+) of (\d+) rounds", text) == [("15", "15")]
    assert text.count("[5/5]") == 1


def test_every_control_moves_its_picture_by_key(page):
    figures = page.locator("figure.explorer")
    assert figures.count() == WIDGETS
    for n in range(WIDGETS):
        figure = figures.nth(n)
        for control in figure.locator("select, input").all():
            (before,) = figure.locator(".frame").evaluate_all(VISIBLE)
            options = int(control.get_attribute("data-options"))
            control.focus()
            at = int(control.input_value())
            page.keyboard.press("ArrowRight" if at < options - 1 else "ArrowLeft")
            (after,) = figure.locator(".frame").evaluate_all(VISIBLE)
            assert (after != before) == (options > 1)
            if control.get_attribute("type") == "range":
                assert control.get_attribute("aria-label")
                assert control.get_attribute("aria-valuetext") == figure.locator("output").inner_text()
        assert len(figure.locator("output").inner_text()) > 10
        image = figure.locator(".frame:visible img")
        assert image.bounding_box()["width"] > 300, "legible on a phone"
        assert image.evaluate("one => one.naturalWidth") > 10


def test_the_truth_unfolds_by_key(page):
    answer = page.locator("figure.explorer").first.locator(".frame:visible details")
    assert answer.get_attribute("open") is None
    answer.locator("summary").press("Enter")
    assert answer.get_attribute("open") is not None
    assert "truth: " in answer.inner_text()
