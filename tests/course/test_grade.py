"""Handing out and grading, as a teacher types it: three made-up students, all right, mixed and broken."""

import re

import nbformat
import pandas as pd
import pytest

from fedlib.config import UserError
from fedlib.course.feedback import MIME_TYPE, Feedback
from fedlib.course.grade import RESULTS, asked, grade, results
from fedlib.course.handout import hand_out
from tests.helpers import python, snapshot
from tests.made_up import made_up
from tests.notebooks.test_lessons import solutions
from tests.notebooks.test_notebooks import BOOKS

START, CENTRAL, PREPARED = "00_start_here", "02_centralized_training", "01_data_preparation"


def fedlib(*arguments):
    return python("-m", "fedlib", "course", *arguments)


def answered(name, answers, path):
    """Write a notebook of the course, in profile smoke, with answers in place of None: code by the name that it answers."""
    book = nbformat.from_dict(BOOKS[name])
    for variable, code in (answers | {"profile": 'profile = "smoke"'}).items():
        given = re.compile(rf'^{variable} = (None|"quick").*$', re.MULTILINE)
        for cell in book.cells:
            cell.source = given.sub(lambda _, code=code: code.strip(), cell.source)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)


def notebook(path, *sources):
    """Write a notebook that takes a second: parameters, an exercise of 00 with a check of its own, then these cells."""
    code, tagged = nbformat.v4.new_code_cell, {"tags": ["exercise-travels"]}
    check = "exercises.check_travels(travels)"
    stub = f"class exercises:\n    check_travels = lambda travels: print('Right: I say so')\ntravels = 1\n{check}"
    cells = [code("out_dir = None", metadata={"tags": ["parameters"]}), code(stub, metadata=tagged), *map(code, sources)]
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"kernelspec": {"name": "theirs", "display_name": "a kernel of another machine"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)


@pytest.fixture
def store(tmp_path):
    """A study with finished runs that nobody trained."""
    made_up(tmp_path / "reports", task="segmentation", profile="smoke")
    (tmp_path / "reports" / "segmentation").mkdir()
    for page in ("index.html", "segmentation/02.html", "segmentation/02.ipynb"):
        (tmp_path / "reports" / page).write_text("Solution")
    return tmp_path / "reports"


def test_a_handout_has_the_runs_and_no_solutions(tmp_path, store):
    done = fedlib("handout", "--to", tmp_path / "out", "--out-dir", store)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"out: notebooks without solutions and \d+ finished runs, \d+ MB in all\n$", done.stdout)
    for name, original in BOOKS.items():
        book = nbformat.read(tmp_path / "out" / "notebooks" / f"{name}.ipynb", as_version=4)
        nbformat.validate(book)
        assert asked(book).keys() == asked(original).keys()
        assert "<summary>Solution" not in str(book)
        assert str(book).count("<summary>Hint") == str(original).count("<summary>Hint")
    copied = set(snapshot(tmp_path / "out" / "reports" / "reports"))
    assert copied == {name for name in snapshot(store) if not name.endswith((".html", ".ipynb", ".lock"))}


@pytest.mark.parametrize(
    ("to", "out_dir", "words"),
    [
        ("new", "nothing", "no finished runs; expected a folder written by"),
        (".", "reports", "expected a new folder"),
        ("reports/handout", "reports", "outside of"),
    ],
)
def test_a_handout_is_refused_before_anything_is_written(tmp_path, store, to, out_dir, words):
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=words):
        hand_out(tmp_path / to, tmp_path / out_dir)
    assert snapshot(tmp_path) == before


def test_grading_nobody_is_refused(tmp_path, store):
    with pytest.raises(UserError, match="for each student"):
        next(grade(tmp_path / "nobody", store, 60, tmp_path / "grades.csv"))
    with pytest.raises(UserError, match="no finished runs"):
        next(grade(tmp_path, tmp_path / "nothing", 60, tmp_path / "grades.csv"))


def graded(folder, store, to, *options):
    """Grade a folder of students; gives the table and checks that the reference is as before."""
    before = snapshot(store)
    done = fedlib("grade", folder, "--out-dir", store, "--to", to, *options)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-2000:]
    assert snapshot(store) == before
    return pd.read_csv(to, keep_default_na=False)


def whole(table, student, name=""):
    """What the row of a whole notebook says."""
    rows = table[(table["student"] == student) & (table["exercise"] == "whole notebook")]
    [row] = rows[rows["notebook"].str.contains(name)].to_dict("records")
    return row["result"], row["text"]


def test_what_fails_or_deletes_ends_in_a_row_that_says_so(tmp_path, store):
    students = tmp_path / "students"
    notebook(students / "ada" / "1.ipynb", "travels")
    notebook(students / "ben.ipynb", "import shutil, os\nshutil.rmtree(out_dir)\nos.remove('ben.ipynb')", "1 / 0", "travels")
    (students / "cem").mkdir()
    (students / "cem" / "1.ipynb").write_text("my answer is 3")
    notebook(students / "cem" / "2.ipynb", "import os\nos._exit(1)", "travels")
    (students / "cem" / "3.ipynb").mkdir()
    table = graded(students, store, tmp_path / "grades.csv")
    assert whole(table, "ada") == ("ran", "")
    result, text = whole(table, "ben")
    assert result == "failed"
    assert "ZeroDivisionError: division by zero (in: 1 / 0)" in text
    assert re.search(r"deleted or changed \d+ files", text)
    assert whole(table, "cem", "1")[0] == whole(table, "cem", "2")[0] == "failed"
    assert "could not be graded" in whole(table, "cem", "1")[1]
    assert "did not run to their end" in whole(table, "cem", "2")[1]
    travels = table[table["exercise"] == "exercise-travels"]
    assert set(travels["result"]) == {"not run"}, "what a cell prints is no feedback"


@pytest.mark.slow
def test_what_hangs_ends_in_a_row_that_says_so(tmp_path, store):
    notebook(tmp_path / "students" / "ada.ipynb", "import subprocess\nsubprocess.run(['sleep', '1000'])  # busy", "travels")
    table = graded(tmp_path / "students", store, tmp_path / "grades.csv", "--time-limit", 15)
    result, text = whole(table, "ada")
    assert result == "failed"
    assert text.startswith("stopped after 15 s")


def with_feedback(name, tag, feedback, source=None):
    """A notebook of the course, executed up to one exercise."""
    book = nbformat.from_dict(BOOKS[name])
    cell = asked(book)[tag]
    cell.source = source or cell.source
    data = feedback._repr_mimebundle_()
    cell.outputs = [nbformat.v4.new_output("execute_result", data)]
    nbformat.validate(book)
    assert data.keys() == {"text/plain", MIME_TYPE}
    return {exercise: (result, text) for exercise, result, text in results(book)}


@pytest.mark.parametrize("right", RESULTS)
def test_feedback_is_read_from_what_the_check_says(right):
    found = with_feedback(CENTRAL, "exercise-dice", Feedback(right, "because."))
    assert found["exercise-dice"] == (RESULTS[right], "because.")
    assert found["exercise-steps"] == ("not run", "")
    assert {result for name, (result, _) in found.items() if name.startswith("prediction-")} == {"not answered"}


def test_a_check_that_was_changed_is_no_answer():
    found = with_feedback(CENTRAL, "exercise-dice", Feedback(True, "easy."), "exercises.Feedback(True, 'easy.')")
    assert found["exercise-dice"] == ("not answered", "changed or removed: exercises.check_dice(dsc, truth, predicted)")


@pytest.mark.slow
def test_three_students(smoke, tmp_path):
    """Ada answers all, Ben some, and of Cem's notebooks one fails, one deletes the runs, and one hangs."""
    everybody, again = tmp_path / "everybody", tmp_path / "again"
    predictions = {"slower": 'slower = "rounds, as clients share one machine"', "side": "side = 'below'"}
    for name in (START, CENTRAL):
        answered(name, solutions(name) | predictions, everybody / "ada" / f"{name}.ipynb")
    some = {"travels": "travels = {'images'}", "n_runs": "n_runs = None"}
    answered(START, solutions(START) | some, everybody / "ben.ipynb")
    deletes = {"leaking": "leaking = 3\n__import__('shutil').rmtree(study.out_dir)"}
    answered(PREPARED, solutions(PREPARED) | deletes, everybody / "cem" / "deletes.ipynb")
    answered(START, solutions(START) | {"travels": "travels = weights"}, everybody / "cem" / "fails.ipynb")
    answered(START, solutions(START) | {"n_runs": "while True: pass"}, again / "cem" / "hangs.ipynb")
    table = graded(everybody, smoke, tmp_path / "grades.csv")
    hanging = graded(again, smoke, tmp_path / "again.csv", "--time-limit", 60)

    ada, ben, cem = (table[table["student"] == name].set_index(["notebook", "exercise"]) for name in ("ada", "ben", "cem"))
    by_kind = ada.groupby(lambda row: row[1].partition("-")[0])["result"]
    assert set(by_kind.get_group("exercise")) == {"right"}
    assert set(by_kind.get_group("whole notebook")) == {"ran"}
    assert by_kind.get_group("prediction").value_counts().to_dict() == {"to read": 2, "not answered": 2}
    assert "as clients share one machine" in ada.loc[(f"{START}.ipynb", "prediction-slower"), "text"]
    assert ada["data_fingerprint"].str.fullmatch("[0-9a-f]{64}").all()
    assert ada["weights_sha256"].nunique() == 1

    said = ben.loc["ben.ipynb"]["result"].to_dict()
    assert said["exercise-travels"] == "wrong"
    assert said["exercise-runs"] == said["prediction-slower"] == "not answered"
    assert said["exercise-study"] == "right"
    assert "never leave a hospital" in ben.loc[("ben.ipynb", "exercise-travels"), "text"]

    because = "NameError: name 'weights' is not defined (in: travels = weights)"
    assert whole(table, "cem", "fails") == ("failed", because)
    assert cem.loc[("fails.ipynb", "exercise-study"), "result"] == "right"
    assert "deleted or changed" in whole(table, "cem", "deletes")[1]
    assert cem.loc[("deletes.ipynb", "exercise-leak"), "result"] == "right", "it was answered before"
    assert whole(hanging, "cem")[0] == "failed"
    assert whole(hanging, "cem")[1].startswith("stopped after 60 s")
