"""python -m fedlib: study, report, runs, predict, export, verify, course."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import click
import typer

from fedlib.config import ROOT, TASKS, ProfileName, StudyConfig, Task, UserError

HELP = """Compare federated with centralized training on medical images: run a study, read the result.

\b
A first study: python -m fedlib study
Your images:   python -m data_prep --help, then
               python -m fedlib study --task classification --data DIR
"""
RUNTIME, GRID, TRAINING, ANALYSIS = "Where and what", "Grid of runs", "Training", "Analysis, stated before the runs"

PROFILE = "smoke: a test, its scores mean nothing; quick: for two CPU cores; paper: the paper's protocol, for a GPU."
DATA = "A prepared set, or a folder with one per task (default: synthetic images)."
JOBS = "Notebooks at a time; they share the cores, and each has a GPU where there are several."
COURSE = "Also the notebooks of the course that have no part in the answer, 00 and 05, so that each has a page."
EXECUTOR = (
    "local: the notebooks train the runs. ray: a Ray cluster trains them first, one task per run. Its nodes need this "
    "project at the same commit, and see --data and --out under the same paths."
)
ADDRESS = "HOST:PORT of the Ray cluster; this machine is one of its nodes (default: RAY_ADDRESS)."
SET = (
    "Any other setting, repeatable: batch_norm=local (FedBN), privacy=central, precision=bf16, width=32, ... "
    "fedlib/config.py lists and explains them all."
)
RUN_FOLDER = "Folder of a run, as in STUDY/runs/RUN_ID."

OutDir = Annotated[Path, typer.Option(help="Folder of the finished runs.", show_default="reports/quick")]

app = typer.Typer(help=HELP, add_completion=False, pretty_exceptions_enable=False)
course_app = typer.Typer(help="Hand out the notebooks without solutions; grade what students hand in.")
app.add_typer(course_app, name="course")


def _option(help: str, panel: str = RUNTIME, **more: int) -> typer.models.OptionInfo:
    return typer.Option(help=help, rich_help_panel=panel, **more)


def _config_option(name: str, panel: str) -> Any:
    """Return the type of an option that passes a setting on as text: config.py checks and explains it."""
    field = StudyConfig.model_fields[name]
    names = f" One of {', '.join(get_args(field.annotation))}." if get_origin(field.annotation) is Literal else ""
    default = "the profile's" if field.is_required() else field.default or "none"
    return Annotated[str | None, _option(f"{field.description}{names} (default: {default})", panel)]


@app.command()
def study(
    context: typer.Context,
    profile: Annotated[ProfileName, _option(PROFILE)] = "quick",
    task: Annotated[Literal[Task, "all"], _option("One of the tasks, or all of them.")] = "all",
    data: Annotated[Path | None, _option(DATA)] = None,
    out: Annotated[Path | None, _option("Folder of the results (default: reports/PROFILE).")] = None,
    jobs: Annotated[int, _option(JOBS, min=1)] = 1,
    course: Annotated[bool, _option(COURSE)] = False,
    executor: Annotated[Literal["local", "ray"], _option(EXECUTOR)] = "local",
    address: Annotated[str | None, _option(ADDRESS)] = None,
    seeds: Annotated[int, _option("Repeat every run with seeds 1 to N.", GRID, min=1)] = 1,
    client_counts: _config_option("client_counts", GRID) = None,
    partitions: _config_option("partitions", GRID) = None,
    alpha: _config_option("alpha", GRID) = None,
    group_column: _config_option("group_column", GRID) = None,
    rounds: _config_option("rounds", TRAINING) = None,
    local_epochs: _config_option("local_epochs", TRAINING) = None,
    batch_size: _config_option("batch_size", TRAINING) = None,
    learning_rate: _config_option("learning_rate", TRAINING) = None,
    strategy: _config_option("strategy", TRAINING) = None,
    quorum: _config_option("quorum", TRAINING) = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=SET, rich_help_panel=TRAINING)
    ] = None,
    margin_accuracy: _config_option("margin_accuracy", ANALYSIS) = None,
    margin_sensitivity: _config_option("margin_sensitivity", ANALYSIS) = None,
    margin_dice: _config_option("margin_dice", ANALYSIS) = None,
    significance: _config_option("significance", ANALYSIS) = None,
) -> None:
    """Run the notebooks of a study and write index.html. Interrupted, the same command resumes it.

    The profile sets what is not given. Exit code 0: every run is done; 1: some failed, and are named; 2: bad input.
    """
    if address and executor != "ray":
        raise UserError(f"--address {address}: expected with --executor ray only")
    given = {name: value for name, value in context.params.items() if name in StudyConfig.model_fields}
    given |= dict(map(_setting, settings or []))
    given |= {"data_dir": data, "out_dir": out, "seeds": list(range(1, seeds + 1))}
    studies = [StudyConfig.make(**given | {"task": name}) for name in (TASKS if task == "all" else [task])]
    from fedlib.study.runner import run_study  # here: --help and a refusal must not wait for torch

    try:
        problems = run_study(studies, jobs, executor, address, course)
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command resumes the study.", err=True)
        raise
    for problem in problems:
        typer.echo(f"FAILED: {problem}", err=True)
    typer.echo(f"Open {_relative(studies[0].out_dir / 'index.html')}")
    if problems:
        raise typer.Exit(1)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of a study.")]) -> None:
    """Rebuild all pages of a study from its notebooks and its run store, in seconds; nothing is trained."""
    from fedlib.study.report import write_report

    typer.echo(f"Open {_relative(write_report(folder))}")


@app.command()
def runs(folder: Annotated[Path, typer.Argument(help="Folder of a study.")]) -> None:
    """List the runs of a study: state, score, or why one failed."""
    from fedlib import tasks
    from fedlib.training.run_store import RunStore

    found = RunStore(folder).all()
    if not found:
        raise UserError(f"{folder}: no runs; expected a folder written by `python -m fedlib study`")
    for run in found:
        status = run.status
        try:
            scores = [f"{name} {status['result'][name]:.3f}" for name in tasks.get(run.config.task).PRIMARY if run.done]
        except UserError as error:
            scores = [str(error)]
        typer.echo(f"{status['state']:8} {run.folder.name}  {', '.join(scores) or status.get('error', '')}")


@app.command()
def predict(
    run_folder: Annotated[Path, typer.Argument(help=RUN_FOLDER)],
    images: Annotated[Path, typer.Option("--input", help="An image (DICOM, PNG, JPEG, NIfTI), a folder or a zip of them.")],
    out: Annotated[Path, typer.Option(help="New folder of the predictions.")],
) -> None:
    """Predict new images, prepared as the run's own: probabilities, or labels on each volume's own grid. Research only.

    Exit code 1: not one of the files could be used.
    """
    from data_prep.single import singles  # the roof alone may import both packages
    from fedlib.study.prediction import RESEARCH_ONLY, write_predictions
    from fedlib.study.record import open_run

    run, _, data = open_run(run_folder)
    table = write_predictions(run, data["choices"], singles(images, run.config.task, data["choices"]), out)
    problems = table["problem"].dropna() if "problem" in table else []
    typer.echo(f"{len(table) - len(problems)} of {len(table)} images predicted: {out / 'predictions.csv'}; {RESEARCH_ONLY}")
    for problem in problems:
        typer.echo(f"not used: {problem}", err=True)
    if len(problems) == len(table):
        raise typer.Exit(1)


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(help=RUN_FOLDER)],
    to: Annotated[Path, typer.Option(help="New folder of the bundle.")],
) -> None:
    """Write a run's model as a MONAI bundle: weights, ONNX, inference config, and a model card of the run's own record."""
    from fedlib.study.export import N_CHECKED
    from fedlib.study.export import export as write_bundle

    difference = write_bundle(run_folder, to)
    typer.echo(f"{to}: ONNX differs from torch by at most {difference:.1e} in a probability, over {N_CHECKED} test cases")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of a study.")],
    run: Annotated[str | None, typer.Option(help="The run to train again (default: the shortest).")] = None,
) -> None:
    """Check every hash of a study, then train one run again and compare its weights. Exit code 1: something is wrong."""
    from fedlib.study import archive

    wrong, agreed = archive.verify(folder.absolute(), run)
    for problem in wrong:
        typer.echo(f"WRONG: {problem}", err=True)
    typer.echo(agreed)
    if wrong:
        raise typer.Exit(1)


@course_app.command()
def handout(
    to: Annotated[Path, typer.Option(help="A new folder.")],
    out_dir: OutDir = ROOT / "reports" / "quick",
) -> None:
    """Write the notebooks without solutions, and a copy of the finished runs that they read."""
    from fedlib.course.handout import hand_out

    typer.echo(hand_out(to, out_dir))


@course_app.command()
def grade(
    folder: Annotated[Path, typer.Argument(help="Holds a folder of notebooks, or a notebook, for each student.")],
    out_dir: OutDir = ROOT / "reports" / "quick",
    time_limit: Annotated[float, typer.Option(help="Seconds for a notebook.", min=1)] = 600,
    to: Annotated[Path, typer.Option(help="The table, a CSV file.")] = Path("grades.csv"),
) -> None:
    """Execute each student's notebooks beside a copy of the finished runs; write a row for each exercise and prediction."""
    from fedlib.course.grade import grade as grade_all

    for line in grade_all(folder, out_dir, time_limit, to):
        typer.echo(line)
    typer.echo(f"Open {to}")


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UserError(f"--set {text}: expected NAME=VALUE, as in --set batch_norm=local")
    return name, value


def _relative(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def main() -> None:
    """Run the command line: bad input is one line on standard error and exit code 2, Ctrl-C is 130."""
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="python -m fedlib", standalone_mode=False)
    except (UserError, OSError, click.ClickException) as error:  # OSError: a folder that cannot be written, a full disk
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        typer.echo(f"error: {' '.join(message.splitlines())}", err=True)  # a path may hold a line break
        raise SystemExit(2) from None
    raise SystemExit(code)
