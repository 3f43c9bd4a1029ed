"""Grade what students hand in: execute each notebook beside a copy of the reference runs, and tabulate what came out.

A student's code runs with the rights of whoever grades it. It gets a folder of its own, a copy of the runs and a time limit.
"""

import ast
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import nbformat
import pandas as pd
import psutil
from nbformat import NotebookNode

from fedlib.config import StudyConfig, UserError
from fedlib.course.feedback import MIME_TYPE
from fedlib.course.handout import NOTEBOOKS, require_finished
from fedlib.data.dataset import open_prepared
from fedlib.data.files import write_atomically
from fedlib.training.run_store import RunStore, joint_sha256

COLUMNS = ["student", "notebook", "exercise", "result", "text", "data_fingerprint", "weights_sha256"]
RESULTS = {True: "right", False: "wrong", None: "not answered"}


def grade(folder: Path, out_dir: Path, time_limit: float, table: Path) -> Iterator[str]:
    """Grade a folder that holds a folder of notebooks, or one notebook, for each student. Yield a line per student.

    The CSV `table` gets a row for each exercise, each prediction and each notebook as a whole; it is written anew after
    every student. `time_limit`: seconds for a notebook.
    Raises UserError when there are no students or no finished runs, or when a notebook has changed the reference itself.
    """
    require_finished(out_dir)
    students = [path for path in sorted(folder.glob("[!.]*")) if path.is_dir() or path.suffix == ".ipynb"]
    if not students:
        raise UserError(f"{folder}: expected a folder of notebooks, or a notebook, for each student")
    rows, reference = [], stamps(out_dir)
    write_atomically(table, pd.DataFrame(columns=COLUMNS).to_csv(index=False))  # fails now, or after hours of grading
    for student in students:
        name = student.name.removesuffix(".ipynb")
        own = [(name, *row) for row in grade_student(student, out_dir, time_limit)]
        rows += own
        write_atomically(table, pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False))
        if stamps(out_dir) != reference:
            raise UserError(f"{out_dir}: changed by a notebook of {name}; restore it, then grade the others")
        yield f"{name}: {', '.join(f'{n} {result}' for result, n in Counter(row[3] for row in own).items())}"


def grade_student(student: Path, out_dir: Path, time_limit: float) -> Iterator[tuple[str, ...]]:
    """Execute a student's notebooks in order, in a copy in a temporary folder; yield rows of all COLUMNS but the first."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        own, runs = Path(place) / "own", Path(place) / "runs"
        own.mkdir()
        shutil.copytree(student, own, True, dirs_exist_ok=True) if student.is_dir() else shutil.copy(student, own)
        found = [path for path in sorted(own.rglob("*.ipynb")) if path.is_file() and ".ipynb_checkpoints" not in path.parts]
        for path, content in [(path, path.read_text("utf8", "replace")) for path in found]:  # at once: one may delete others
            try:
                shutil.copytree(out_dir, runs, dirs_exist_ok=True)
                book, problems = execute(content, path.parent, runs, time_limit)
                rows = [*results(book)]
            except Exception as error:  # whatever is handed in ends in a row
                book, rows, problems = nbformat.v4.new_notebook(), [], [f"could not be graded: {error}"]
            if lost := stamps(out_dir).items() - stamps(runs).items():
                problems.append(f"deleted or changed {len(lost)} files of its copy of the runs")
            whole = ("whole notebook", "failed" if problems else "ran", "; ".join(problems))
            for row in (*rows, whole):
                yield path.relative_to(own).as_posix(), *row, *identity(book, runs)


def stamps(out_dir: Path) -> dict[Path, tuple[int, int]]:
    """Return size and time of change of each file of the runs and their data, without locks."""
    files = [path for part in ("runs", "data") for path in (out_dir / part).rglob("[!.]*")]
    return {path.relative_to(out_dir): (path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()}


def execute(content: str, cwd: Path, out_dir: Path, time_limit: float) -> tuple[NotebookNode, list[str]]:
    """Execute a notebook in a process of its own. Return it with its outputs, and what went wrong.

    A cell that fails does not stop the next. Papermill saves after each, so what ran before a hanging cell is kept.
    Raises what nbformat raises, before and after.
    """
    book = nbformat.reads(content, as_version=4)
    for cell in book.cells:
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), "raises-exception"]
    given, executed = out_dir.with_name("given.ipynb"), out_dir.with_name("executed.ipynb")
    nbformat.write(book, given)
    executed.unlink(missing_ok=True)
    cwd.mkdir(parents=True, exist_ok=True)  # an earlier notebook may have deleted it
    options = ["--kernel", "python3", "--language", "python", "--no-progress-bar", "--cwd", cwd, "-r", "out_dir", out_dir]
    command = [str(part) for part in (sys.executable, "-m", "papermill", given, executed, *options)]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    problems = []
    try:
        process.wait(time_limit)
    except psutil.TimeoutExpired:
        problems.append(f"stopped after {time_limit:g} s")
        for each in [*process.children(recursive=True), process]:  # its kernel, and what that has started
            each.kill()
        process.wait()
    book = nbformat.read(executed, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code" and cell.source.strip()]
    for cell in code:
        errors = [output for output in cell.outputs if output.output_type == "error"]
        problems += [f"{error.ename}: {error.evalue} (in: {cell.source.splitlines()[0]})" for error in errors]
    if left := [cell for cell in code if not cell.execution_count or cell.metadata["papermill"]["status"] != "completed"]:
        problems.append(f"{len(left)} cells did not run to their end, from: {left[0].source.splitlines()[0]}")
    return book, problems


def asked(book: NotebookNode) -> dict[str, NotebookNode]:
    """Return the cells of exercises and predictions by their tag; of two with one tag the last, which has the check."""
    tags = ((tag, cell) for cell in book.cells for tag in cell.metadata.get("tags", []))
    return {tag: cell for tag, cell in tags if tag.startswith(("exercise-", "prediction-"))}


def results(book: NotebookNode) -> Iterator[tuple[str, str, str]]:
    """Yield exercise, result and text for all that is asked in the course's notebook with most of this one's tags."""
    cells = asked(book)
    course = [asked(nbformat.read(path, as_version=4)) for path in NOTEBOOKS.glob("*.ipynb")]
    expected = max(course, key=lambda known: len(known.keys() & cells.keys()))
    for tag, original in expected.items() if expected.keys() & cells.keys() else ():
        cell = cells.get(tag, nbformat.v4.new_code_cell())
        check = original.source.splitlines()[-1]
        found = [output.data[MIME_TYPE] for output in cell.get("outputs", []) if MIME_TYPE in output.get("data", {})]
        if tag.startswith("prediction-"):
            written = cell.source.strip() not in ("", original.source.strip())
            yield tag, *(("to read", cell.source) if written else ("not answered", ""))
        elif check not in cell.source:
            yield tag, "not answered", f"changed or removed: {check}"
        elif found:
            yield tag, RESULTS[found[-1]["right"]], found[-1]["text"]
        else:
            yield tag, "not run", ""


def identity(book: NotebookNode, out_dir: Path) -> tuple[str, str]:
    """Return the fingerprint of the data and one hash over the weights of all finished runs of a notebook's study."""
    with suppress(Exception):  # a student may have typed anything
        [source] = [cell.source for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
        given = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body}
        study = StudyConfig.make(**given | {"out_dir": out_dir})
        fingerprint = open_prepared(study.prepared_dir, study.task).fingerprint
        hashes = [run.result["weights_sha256"] for run in RunStore(out_dir).done(study.runs(fingerprint))]
        return fingerprint, joint_sha256(hashes) if hashes else ""
    return "", ""
