"""Widgets in exported pages, in a real browser without kernel and network: a slider moved by key shows another picture."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from fedlib.study.pages import render_notebook
from tests.helpers import python

WIDGETS = 5
CELLS = [
    """
from fedlib import analysis
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
    "widgets.result_explorer(analysis.compare(runs, study))",
    "widgets.viewer(open_prepared(data_dir, 'segmentation'))",
    "widgets.training_monitor(study.runs(data.fingerprint), store)",
]
VISIBLE = "all => all.filter(one => !one.hidden).map(one => one.innerHTML)"


@pytest.fixture(scope="module")
def executed(prepared, tmp_path_factory):
    """A notebook with every widget, run by papermill: nobody is there to move one."""
    folder = tmp_path_factory.mktemp("twins")
    source, output = folder / "source.ipynb", folder / "output.ipynb"
    settings = f"data_dir, out_dir = {str(prepared['classification'].folder.parent)!r}, {str(folder / 'study')!r}"
    book = new_notebook(cells=[new_code_cell(source) for source in (settings, *CELLS)])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, source)
    done = python("-m", "papermill", source, output, "--no-progress-bar")
    assert done.returncode == 0, done.stderr[-2000:]
    return output


def saved_in_jupyterlab(executed):
    """The same notebook as JupyterLab leaves it with the state of its widgets: each output has a live view too."""
    book = nbformat.read(executed, 4)
    view, state = "application/vnd.jupyter.widget-view+json", {}
    for cell in book.cells:
        for output in cell.outputs:
            if "explorer" in output.get("data", {}).get("text/html", ""):
                state[f"m{len(state)}"] = {
                    "model_name": "VBoxModel",
                    "model_module": "x",
                    "model_module_version": "1",
                    "state": {},
                }
                output.data[view] = {"model_id": f"m{len(state) - 1}", "version_major": 2, "version_minor": 0}
    assert len(state) == WIDGETS
    book.metadata.widgets = {
        "application/vnd.jupyter.widget-state+json": {"state": state, "version_major": 2, "version_minor": 0}
    }
    path = executed.with_name("saved.ipynb")
    nbformat.write(book, path)
    return path


def page_of(executed, kind):
    """The notebook exported by the project, saved by JupyterLab and then exported, or exported by nbconvert itself."""
    if kind == "ours":
        return render_notebook(executed)
    if kind == "saved":
        return render_notebook(saved_in_jupyterlab(executed))
    done = python("-m", "nbconvert", "--to", "html", "--output", "plain.html", executed)
    assert done.returncode == 0, done.stderr[-2000:]
    return executed.with_name("plain.html")


def test_papermill_gets_twins_and_plain_lines_only(executed):
    outputs = [output for cell in nbformat.read(executed, 4).cells for output in cell.outputs]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert kinds == {"text/html", "text/plain"}
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert printed.startswith("0 of 5 runs done; time left not known yet\n")
    assert "\r" not in printed
    assert "5 of 5 runs done" in outputs[-1].data["text/html"]
    assert not any(output.get("name") == "stderr" for output in outputs)


@pytest.mark.parametrize("kind", ["ours", "saved", "plain"])
def test_every_control_of_a_page_moves_its_picture(executed, browser, kind):
    context = browser.new_context()
    context.route(
        "**/*", lambda route: route.continue_() if route.request.url.startswith(("file:", "data:")) else route.abort()
    )
    page = context.new_page()
    page.goto(page_of(executed, kind).as_uri(), wait_until="load")
    figures = page.locator("figure.explorer")
    assert figures.count() == WIDGETS
    for n in range(WIDGETS):
        figure = figures.nth(n)
        for control in figure.locator("select, input").all():
            (before,) = figure.locator(".frame").evaluate_all(VISIBLE)
            options = int(control.get_attribute("data-states"))
            control.focus()
            at = int(control.input_value())
            page.keyboard.press("ArrowRight" if at < options - 1 else "ArrowLeft")
            (after,) = figure.locator(".frame").evaluate_all(VISIBLE)
            assert (after != before) == (options > 1)
        caption = figure.locator("output").inner_text()
        assert caption == figure.locator("input").get_attribute("aria-valuetext")
        assert len(caption) > 10
        assert figure.locator(".frame:visible svg").bounding_box()["width"] > 300
    context.close()
