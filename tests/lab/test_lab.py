"""The notebooks as a new user has them: in JupyterLab, run from top to bottom, their widgets moved by key."""

import json
import re
import statistics

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from data_prep.sources import ensure
from fedlib import tasks
from fedlib.config import StudyConfig
from fedlib.study.experiment import run_all
from fedlib.study.runner import NOTEBOOKS
from fedlib.training.run_store import RunStore

pytestmark = pytest.mark.slow

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
WIDGETS = {"01": 2, "02": 1, "03": 1, "04": 1}
"""Of each notebook: how many pictures can be moved at least."""
PICTURES = ".jp-OutputArea-output figure.explorer"
MOVES = 30
"""Moves of each slider. Their median is printed (`pytest -rP`) and judged with much room."""


def copied(lab, name, task, out_dir):
    """A copy of a notebook where JupyterLab finds it, with the parameters of a smoke run; its file name."""
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
    (cell,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source += f"\ntask, profile, out_dir = {task!r}, 'smoke', {str(out_dir)!r}"
    nbformat.write(book, lab.folder / f"{name}-{task}.ipynb")
    return f"{name}-{task}.ipynb"


def move(page, n):
    """Press a key in the last control of the n-th widget; milliseconds until another picture is shown."""
    figure = page.locator(PICTURES).nth(n)
    figure.scroll_into_view_if_needed()
    control = figure.locator("select, input").last
    control.focus()
    page.evaluate(
        """([selector, n]) => {
            const figure = document.querySelectorAll(selector)[n];
            window.changed = new Promise(done => new MutationObserver((_, own) => {
                own.disconnect(); requestAnimationFrame(() => done(performance.now() - window.pressed));
            }).observe(figure, {subtree: true, attributeFilter: ['hidden']}));
            document.addEventListener('keydown', () => window.pressed = performance.now(), {once: true, capture: true});
        }""",
        [PICTURES, n],
    )
    at, options = int(control.input_value()), int(control.get_attribute("data-options"))
    page.keyboard.press("ArrowRight" if at < options - 1 else "ArrowLeft")
    return page.evaluate("window.changed")


@pytest.mark.parametrize("task", tasks.TASKS)
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_its_widgets_move(lab, opened, tmp_path, name, task):
    out_dir = tmp_path / "study"
    if name.startswith("04"):
        study = StudyConfig.make(task=task, profile="smoke", out_dir=out_dir)  # it compares what others trained
        data = ensure(study)
        run_all(study.runs(data.fingerprint), data, RunStore(out_dir))
    tab = opened(copied(lab, name, task, out_dir))
    tab.run_all()
    tab.wait()
    assert tab.errors() == []
    count = tab.page.locator(PICTURES).count()
    assert count >= WIDGETS.get(name[:2], 0)
    for n in range(count):
        move(tab.page, n)
        assert tab.page.locator(PICTURES).nth(n).locator(".frame:visible").count() == 1
        tab.page.locator(PICTURES).nth(n).screenshot(path=tmp_path / f"{name}-{task}-{n}.png")
    tab.picture(tmp_path / f"{name}-{task}.png")
    assert tab.asked == [], "nothing from the network"


def test_a_slider_moves_the_picture_at_once(lab, opened, tmp_path):
    tab = opened(copied(lab, "01_data_preparation", "classification", tmp_path / "study"))
    tab.run_all()
    tab.wait()
    for n in range(tab.page.locator(PICTURES).count()):
        took = statistics.median(move(tab.page, n) for _ in range(MOVES))
        print(f"widget {n}: {took:.0f} ms from key to picture, median of {MOVES}")
        assert took < 200


TRAINING = """
from data_prep.sources import ensure
from fedlib.config import StudyConfig
from fedlib.study.experiment import run_all
from fedlib.training.run_store import RunStore

study = StudyConfig.make(profile="smoke", out_dir=OUT, rounds=400)
data, store = ensure(study), RunStore(study.out_dir)
configs = study.runs(data.fingerprint, ("centralized",))
"""


def test_training_counts_rounds_and_an_interrupt_is_one_line(lab, opened, tmp_path):
    cells = [TRAINING.replace("OUT", repr(str(tmp_path / "study"))), "runs = run_all(configs, data, store)"]
    book = new_notebook(cells=[new_code_cell(source) for source in cells])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, lab.folder / "stop.ipynb")
    tab = opened("stop.ipynb")
    tab.run_all()
    words = tab.page.locator(".jp-OutputArea-output", has_text=re.compile(r"training: [1-9]\d* of 400 rounds"))
    words.wait_for(timeout=120_000)
    assert "left" in words.inner_text()
    tab.page.screenshot(path=tmp_path / "training.png")
    tab.page.locator('[data-command="notebook:interrupt-kernel"]').first.click()
    tab.wait()
    assert [error.strip() for error in tab.errors()] == ["Interrupted; run the cell again to resume."]
    (status,) = (tmp_path / "study" / "runs").glob("*/status.json")
    assert json.loads(status.read_text())["state"] == "queued"
    tab.run_all()
    tab.page.locator(".jp-OutputArea-output", has_text="[1/1]").wait_for()
    tab.page.screenshot(path=tmp_path / "resumed.png")
    assert tab.errors() == []
    assert json.loads(status.read_text())["state"] == "done"
