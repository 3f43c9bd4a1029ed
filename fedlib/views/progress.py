"""Progress of runs in rounds, read from the run store: one bar for a kernel, papermill and a terminal."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from fedlib.config import RunConfig
from fedlib.training.run_store import RunStore

TICK = 2.0
"""Seconds between two looks at the run folders."""
WORDS = "training: {n_fmt} of {total_fmt} rounds |{bar:20}| {elapsed} passed, {remaining} left"


def rounds_done(config: RunConfig, store: RunStore) -> int:
    """Return the number of finished rounds of a run; clients.csv has a row for each client of each round."""
    table = store.folder / config.run_id / "clients.csv"
    rows = len(table.read_text().splitlines()) - 1 if table.exists() else 0
    return min(config.rounds, max(0, rows) // config.clients_per_round(config.n_clients))


@contextmanager
def rounds_bar(configs: list[RunConfig], store: RunStore) -> Iterator[None]:
    """Show the rounds of these runs while the block trains them; nothing when all runs are done.

    The bar is text on standard output. Each line replaces the one before it, also in an exported page.
    """
    finished, done = threading.Event(), len(store.done(configs)) == len(configs)

    def count() -> int:
        return sum(rounds_done(config, store) for config in configs)

    def watch() -> None:
        while not finished.wait(TICK):
            bar.update(count() - bar.n)

    rounds = sum(config.rounds for config in configs)
    with tqdm(total=rounds, initial=count(), bar_format=WORDS, file=sys.stdout, miniters=0, mininterval=0, smoothing=0,
              disable=done) as bar:  # fmt: skip
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
            bar.update(count() - bar.n)
