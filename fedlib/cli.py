"""python -m fedlib: study, report, runs, federation."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedlib.config import ROOT, Strategy, StudyConfig, UserError, run_command_line

HELP = """Federated against centralized learning on medical images: run the study, read the result.

\b
First study   python -m fedlib study
Your images   python -m data_prep --help, then
              python -m fedlib study --task classification --data DIR
"""

PARTITIONS = (
    "How cases are dealt to clients, several with commas. balanced: equal shares; unbalanced: the first client holds "
    "several times the last; label_skew: classes in different proportions; by_group: real groups such as hospitals."
)
ALPHA = (
    "label_skew: how evenly a class is spread over the clients. 100: nearly evenly; 1: any split is as likely; 0.1: most of "
    "it is at one client.  [default: 0.5]"
)
GROUP_COLUMN = "by_group: the column of cases.csv, such as hospital, whose values are dealt whole."

STRATEGY = f"How the server aggregates: {', '.join(Strategy.__args__)} (papers and values: fedlib/federated/strategies.py)."
QUORUM = "Share of the clients that must give a sound answer in each round; without it one failure stops a run."
MARGIN = "Largest loss in {} against centralized that still counts as no worse; stated before the runs.  [default: {}]"
SIGNIFICANCE = "Level of the equivalence test and of the 95% intervals.  [default: 0.05]"

ENGINE = (
    "Where clients run: inprocess, in threads of this process; ray, in processes, on this machine or on the Ray cluster at "
    "RAY_ADDRESS; deployment, over the network of Flower's SuperLink and SuperNodes on this machine."
)
EXECUTOR = (
    "Where runs are trained: local, by the notebooks, on this machine; ray, as tasks of a Ray cluster, each with this "
    "machine's cores over --jobs, and a GPU if there are any, before the notebooks run here. All nodes need this project at "
    "the same commit, and --out and --data on a file system that they share, at the same paths."
)
ADDRESS = (
    "Of the Ray cluster, HOST:PORT; this machine must be one of its nodes.  [default: RAY_ADDRESS, else a Ray on this "
    "machine alone, for this study]"
)
SET = (
    "Any other setting of a study, as often as needed: participation (share of the clients in each round), batch_norm "
    "(average, local: FedBN, group), transport (fp32, fp16), privacy (none, central, local) with noise_multiplier and "
    "clipping_norm, reply_timeout (seconds), width, precision (fp32, bf16, or auto: bf16 where this machine "
    "computes it natively), deterministic (false: a GPU may take kernels whose last bits differ from run to run), "
    "unbalance_ratio."
)

app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


class TaskChoice(StrEnum):
    """One of the study's tasks, or both."""

    classification = "classification"
    segmentation = "segmentation"
    all = "all"


class ProfileChoice(StrEnum):
    """The sizes that go together."""

    smoke = "smoke"
    quick = "quick"
    full = "full"


class ExecutorChoice(StrEnum):
    """Where runs are trained."""

    local = "local"
    ray = "ray"


@app.command()
def study(
    profile: Annotated[
        ProfileChoice, typer.Option(help="smoke: a test, its figures mean nothing; quick: two CPU cores; full: a GPU.")
    ] = ProfileChoice.quick,
    task: Annotated[TaskChoice, typer.Option(help="Which of the two tasks.")] = TaskChoice.all,
    data: Annotated[
        Path | None, typer.Option(help="A prepared set, or a folder with one per task. Default: synthetic images.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results.  [default: reports/PROFILE]")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat every run with seeds 1 to N.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Notebooks at a time; they share the cores, and take a GPU each.")] = 1,
    executor: Annotated[ExecutorChoice, typer.Option(help=EXECUTOR)] = ExecutorChoice.local,
    address: Annotated[str | None, typer.Option(help=ADDRESS)] = None,
    client_counts: Annotated[str | None, typer.Option(help="Numbers of clients, as in 2,4.")] = None,
    partitions: Annotated[str | None, typer.Option(help=PARTITIONS)] = None,
    alpha: Annotated[float | None, typer.Option(help=ALPHA)] = None,
    group_column: Annotated[str | None, typer.Option(help=GROUP_COLUMN)] = None,
    rounds: Annotated[int | None, typer.Option(help="Federated rounds.")] = None,
    local_epochs: Annotated[int | None, typer.Option(help="Epochs at each client in each round.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Cases per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    strategy: Annotated[str | None, typer.Option(help=STRATEGY)] = None,
    quorum: Annotated[float | None, typer.Option(help=QUORUM)] = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE)] = None,
    margin_accuracy: Annotated[float | None, typer.Option(help=MARGIN.format("accuracy", 0.05))] = None,
    margin_sensitivity: Annotated[float | None, typer.Option(help=MARGIN.format("macro sensitivity", 0.05))] = None,
    margin_dice: Annotated[float | None, typer.Option(help=MARGIN.format("DSC", 0.02))] = None,
    significance: Annotated[float | None, typer.Option(help=SIGNIFICANCE)] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=SET)] = None,
) -> None:
    """Run all notebooks of a study and write index.html. Interrupted, the same command goes on where it stopped.

    What is not given comes from the profile. Exit code 0: every run is done; 1: some failed, and are named; 2: bad input.
    """
    from fedlib.study.runner import run_study  # here: --help must not wait for torch

    if address and executor is not ExecutorChoice.ray:
        raise UserError(f"--address {address}: expected with --executor ray only")
    tasks = ["classification", "segmentation"] if task is TaskChoice.all else [task.value]
    given = {"client_counts": client_counts, "partitions": partitions, "alpha": alpha,
             "group_column": group_column, "rounds": rounds, "local_epochs": local_epochs,
             "batch_size": batch_size, "learning_rate": learning_rate, "strategy": strategy, "quorum": quorum,
             "engine": engine, "margin_accuracy": margin_accuracy, "margin_sensitivity": margin_sensitivity,
             "margin_dice": margin_dice, "significance": significance}  # fmt: skip
    given |= dict(map(_setting, settings or []))
    common = given | {"profile": profile.value, "data_dir": data, "out_dir": out, "seed": list(range(1, seeds + 1))}
    studies = [StudyConfig.make(task=name, **common) for name in tasks]
    problems = run_study(studies, jobs, executor.value, address)
    for problem in problems:
        typer.echo(f"FAILED: {problem}", err=True)
    typer.echo(f"Open {_relative(studies[0].out_dir / 'index.html')}")
    if problems:
        raise SystemExit(1)


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
        scores = [f"{name} {status['result'][name]:.3f}" for name in tasks.get(run.config.task).PRIMARY if run.done]
        typer.echo(f"{status['state']:8} {run.config.run_id}  {', '.join(scores) or status.get('error', '')}")


@app.command()
def federation(
    nodes: Annotated[int, typer.Option(min=1, help="SuperNodes, one a client.")] = 2,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the SuperLink; 0: a free one.")] = 0,
    certificates: Annotated[
        Path | None, typer.Option(help="Folder with ca.crt, server.crt and server.key for 127.0.0.1. Default: new ones.")
    ] = None,
) -> None:
    """Start Flower's SuperLink and SuperNodes on this machine, with TLS and node keys, for `flwr run`; until Ctrl-C."""
    import time

    from fedlib.federated.deployment import CONNECTION, local_federation

    with local_federation(nodes, port, certificates) as running:
        typer.echo(f"{nodes} SuperNodes at 127.0.0.1:{running.port}. In another terminal, from the repository's root:")
        run_config = f'n-clients={nodes} data-dir="..." out-dir="..."'
        typer.echo(f"FLWR_HOME={running.flwr_home} flwr run . {CONNECTION} --stream --run-config '{run_config}'")
        while not (lost := running.lost()):
            time.sleep(0.5)
    raise UserError("; ".join(lost))


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UserError(f"--set {text}: expected NAME=VALUE, as in --set batch_norm=local")
    return name, value


def _relative(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def main() -> None:
    """Run the command line."""
    run_command_line(app, "python -m fedlib")
