"""run(config) -> Run: the one door to centralized, local-only and federated training."""

from collections.abc import Callable

from tqdm import tqdm

from fedlib import tasks
from fedlib.config import RunConfig, precision_note
from fedlib.data.dataset import PreparedDataset
from fedlib.federated.in_process import train_federated
from fedlib.training.execution import execute, train_locally
from fedlib.training.run_store import Run, RunStore
from fedlib.views import progress


def run(config: RunConfig, data: PreparedDataset, store: RunStore) -> Run:
    """Train and score one configuration, or read it from the store if it is done there.

    Raises what the training raises; the run's status then says why.
    """
    return execute(config, data, store, train_federated if config.mode == "federated" else train_locally)


class Interrupted(KeyboardInterrupt):
    """Training was interrupted: one line instead of a traceback through torch."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def run_all(
    configs: list[RunConfig], data: PreparedDataset, store: RunStore, report: Callable[[str], None] = tqdm.write
) -> list[Run]:
    """Train runs in order, with a progress bar and a line for each; a failed one does not stop the others.

    Returns the runs that are done. Failures are passed to `report` and stay in the store.
    Raises Interrupted on Ctrl-C and on the square in the toolbar; the next call resumes after the last finished round.
    """
    for note in {precision_note(config.precision) for config in configs} - {""}:
        report(note)
    with progress.rounds_bar(configs, store):
        for number, config in enumerate(configs, 1):
            known = store.get(config.run_id)
            head = f"[{number}/{len(configs)}] {config.run_id}"
            try:
                if known and known.done:
                    report(f"{head}: read from the run store, {_headline(known)}")
                else:
                    done = run(config, data, store)
                    report(f"{head}: {done.result['seconds']:.0f} s, {_headline(done)}")
            except KeyboardInterrupt:
                raise Interrupted("Interrupted; run the cell again to resume.") from None
            except Exception as error:  # a failed run is part of the result; the study names it and continues
                report(f"{head}: FAILED: {error}")
            store.write_results()
    return store.done(configs)


def _headline(run: Run) -> str:
    return ", ".join(f"{name} {run.result[name]:.3f}" for name in tasks.get(run.config.task).PRIMARY)
