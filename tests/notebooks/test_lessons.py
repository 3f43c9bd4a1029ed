"""The notebooks as lessons: one frame, exercises with folded hint and solution, and solutions that are right."""

import ast
import re
import shutil

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from IPython.display import Markdown
from papermill.translators import PythonTranslator

from fedlib import analysis
from fedlib.config import ROOT
from fedlib.course.exercises import Feedback
from fedlib.views import plots
from tests.notebooks.test_notebooks import BOOKS, NAMES, code_cells, tagged

SOLUTION = re.compile(r"<details><summary>Solution</summary>(.*?)</details>", re.DOTALL)
HINT = "<details><summary>Hint</summary>"
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
UNANSWERED = re.compile(r"^(\w+) = None\b", re.MULTILINE)
CHECK = re.compile(r"^exercises\.check_\w+\((\w+)", re.MULTILINE)


def text(name):
    return "\n\n".join(cell.source for cell in BOOKS[name].cells if cell.cell_type == "markdown")


def solutions(name):
    """The folded solutions that are code, by the name they give an answer to."""
    blocks = [block for folded in SOLUTION.findall(text(name)) for block in PYTHON.findall(folded)]
    return {ast.parse(block).body[-1].targets[0].id: block for block in blocks}


def exercises_of(name):
    """The names of the answers that the notebook checks, in order."""
    return [answer for cell in code_cells(name) for answer in CHECK.findall(cell.source)]


@pytest.mark.parametrize("name", NAMES)
def test_every_lesson_has_the_frame(name):
    first, last = BOOKS[name].cells[0].source, BOOKS[name].cells[-1].source
    assert first.startswith(f"# {int(name[:2])}. ")
    for part in ("**Question.** ", "After this notebook you can", "**Time**: ", "two CPU cores", "GPU", "**Needs**: "):
        assert part in first, part
    for part in ("## Key points", "**Sources**: ", "**Next**: ", "](https://"):
        assert part in last, part


@pytest.mark.parametrize("name", NAMES)
def test_every_lesson_has_three_exercises_with_hint_and_solution(name):
    answers, words = exercises_of(name), text(name)
    assert len(answers) >= 3
    assert len(set(answers)) == len(answers)
    assert set(solutions(name)) == set(answers)
    assert words.count(HINT) == len(SOLUTION.findall(words)) == len(answers)
    assert "redict, then run" in words or "**Predict**" in words
    assert words.count("<details>") == words.count("</details>")


LONG = re.compile(r"\b(run_all|lessons\.one_round|machine\.minutes|lessons\.occlusion)\(")


@pytest.mark.parametrize("name", NAMES)
def test_what_takes_long_says_so_before(name):
    """The text above a cell that trains says about how long it takes."""
    cells = BOOKS[name].cells
    long = [n for n, cell in enumerate(cells) if cell.cell_type == "code" and LONG.search(cell.source)]
    above = {n: next(cell.source for cell in cells[n - 1 :: -1] if cell.cell_type == "markdown") for n in long}
    assert [cells[n].source for n in long if not re.search(r"\b(seconds?|minutes?)\b", above[n])] == []
    assert re.search(r"half a minute|minutes?", cells[0].source)


@pytest.mark.parametrize("name", NAMES)
def test_hints_and_solutions_are_tagged_cells_of_their_own(name):
    for cell in BOOKS[name].cells:
        folded = re.findall(r"<details><summary>(\w+)", cell.source)
        kinds = [{"Hint": "hint", "Solution": "solution", "Answer": "solution"}[kind] for kind in folded]
        assert kinds == [tag for tag in cell.metadata.get("tags", []) if tag in ("hint", "solution")]
        if kinds:
            assert cell.source.startswith("<details>")
            assert cell.source.endswith("</details>")


@pytest.mark.parametrize("name", NAMES)
def test_exercises_and_predictions_are_tagged_and_carry_what_nbgrader_needs(name):
    graded = []
    for cell in code_cells(name):
        tags = [tag for tag in cell.metadata.get("tags", []) if tag.startswith(("exercise-", "prediction-"))]
        assert (
            len(tags) == bool(CHECK.search(cell.source) or UNANSWERED.search(cell.source))
            or "parameters" in cell.metadata.tags
        )
        if tags and UNANSWERED.search(cell.source):
            about = {"schema_version": 3, "grade": True, "solution": True, "locked": False, "task": False, "points": 1}
            assert cell.metadata["nbgrader"] == about | {"grade_id": tags[0]}
            graded += tags
    assert len(graded) == len(set(graded)) >= len(exercises_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_prediction_is_shown_beside_a_result(name):
    for n, cell in enumerate(BOOKS[name].cells):
        if any(tag.startswith("prediction-") for tag in cell.metadata.get("tags", [])):
            [variable] = UNANSWERED.findall(cell.source)
            assert any(f"lessons.beside({variable}, " in after.source for after in BOOKS[name].cells[n:]), variable


@pytest.mark.parametrize("name", NAMES)
def test_minutes_of_reading_are_told_by_one_rule(name):
    tags = [tag for cell in BOOKS[name].cells for tag in cell.metadata.get("tags", [])]
    exercises, predictions = len(exercises_of(name)), sum(tag.startswith("prediction-") for tag in tags)
    others = len(code_cells(name)) - exercises - predictions - 1
    minutes = len(text(name).split()) / 150 + 5 * exercises + 2 * predictions + others
    [told] = re.findall(r"bout (\d+) minutes to read", BOOKS[name].cells[0].source.replace("\n", " "))
    assert minutes <= int(told) <= minutes + 6, minutes
    assert re.search(rf"^\| {name[:2]} .*\| {told} min \|", (ROOT / "docs" / "teaching.md").read_text(), re.MULTILINE)


def evaluated(source, namespace):
    """Run a cell; gives the value of its last line, as a notebook would show it."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), namespace) if last else None


def test_04_without_local_runs_says_that_no_site_can_compare():
    cells = code_cells("04_compare_results")
    [n] = [n for n, cell in enumerate(cells) if "alone_and_together" in cell.source]
    namespace = {"runs": [], "analysis": analysis, "plots": plots, "pd": pd, "Markdown": Markdown}
    words, picture, matrix = [evaluated(cell.source, namespace) for cell in cells[n : n + 3]]
    assert "nothing to compare" in words.data
    assert picture is matrix is None


@pytest.fixture(scope="module")
def solved(smoke, tmp_path_factory):
    """A copy of the finished study: the notebooks find its runs, and may add to them."""
    return shutil.copytree(smoke, tmp_path_factory.mktemp("solved") / "smoke")


LESSONS = [(name, task) for name in NAMES for task in ("classification", "segmentation")]
LONGEST = [("05_going_further", "segmentation")]


@pytest.mark.parametrize(
    ("name", "task"), [pytest.param(*both, marks=[pytest.mark.slow] * (both in LONGEST)) for both in LESSONS]
)
def test_unanswered_is_calm_and_every_folded_solution_is_right(solved, name, task, capsys):
    parameters = PythonTranslator.codify({"task": task, "profile": "smoke", "out_dir": str(solved)})
    namespace = {"In": ["", tagged(name)[0], parameters], "display": lambda value: None}
    told, known = [], solutions(name)
    for cell in code_cells(name):
        shown = evaluated(cell.source, namespace)
        if "parameters" in cell.metadata.get("tags", []):
            exec(parameters, namespace)
        for answer in CHECK.findall(cell.source):
            assert isinstance(shown, Feedback)
            assert shown.right is None, f"{answer}: {shown}"
            exec(known[answer], namespace)
            told.append((answer, evaluated(cell.source.rpartition("\n")[2], namespace)))
    plt.close("all")
    assert [(answer, feedback) for answer, feedback in told if feedback.right is not True] == []
    assert len(told) == len(known)
