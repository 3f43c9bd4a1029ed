"""run(config) -> Run: the one door to centralized, local-only and federated training."""

from collections.abc import Callable

from fedlib import tasks
from fedlib.config import RunConfig
from fedlib.data.dataset import PreparedSet
from fedlib.federated.in_process import train_federated
from fedlib.training.execution import execute, train_locally
from fedlib.training.run_store import Run, RunStore
from fedlib.views import progress


def run(config: RunConfig, data: PreparedSet, store: RunStore) -> Run:
    """Train and score one configuration, or read it from the store if it is done there.

    Raises what the training raises; the run's status then says why.
    """
    return execute(config, data, store, train_federated if config.mode == "federated" else train_locally)


def run_all(
    configs: list[RunConfig], data: PreparedSet, store: RunStore, report: Callable[[str], None] = print
) -> list[Run]:
    """Carry out runs in order, with their progress and a line for each; a failed one does not stop the others.

    Returns the runs that are done. Failures are told through `report` and stay in the store.
    """
    with progress.shown(configs, store):
        for number, config in enumerate(configs, 1):
            known = store.get(config.run_id)
            head = f"[{number}/{len(configs)}] {config.run_id}"
            try:
                if known and known.done:
                    report(f"{head}: read from the run store, {_headline(known)}")
                else:
                    done = run(config, data, store)
                    report(f"{head}: {done.result['seconds']:.0f} s, {_headline(done)}")
            except Exception as error:  # a failed run is part of the result; the study names it and goes on
                report(f"{head}: FAILED: {error}")
            store.write_results()
    return store.done(configs)


def _headline(run: Run) -> str:
    return ", ".join(f"{name} {run.result[name]:.3f}" for name in tasks.get(run.config.task).PRIMARY)
