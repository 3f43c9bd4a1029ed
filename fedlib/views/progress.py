"""Progress of runs in rounds, read from the run store: one bar for a kernel, papermill and a terminal."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from fedlib.config import RunConfig
from fedlib.training.run_store import RunStore

TICK = 0.5
"""Seconds between two looks at the run folders."""
EVERY = 10.0
"""Seconds between two lines where nobody watches, such as in a log."""
WORDS = "training: {n_fmt} of {total_fmt} rounds |{bar:20}| {elapsed} passed, {remaining} left"


def rounds_done(config: RunConfig, store: RunStore) -> int:
    """Return the number of finished rounds of a run; clients.csv has a row for each client of each round."""
    table = store.folder / config.run_id / "clients.csv"
    rows = len(table.read_text().splitlines()) - 1 if table.exists() else 0
    return min(config.rounds, max(0, rows) // config.clients_per_round(config.n_clients))


def is_watched() -> bool:
    """Return whether somebody reads along: in a terminal, or in a notebook's front end that could ask for input."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if hasattr(shell, "kernel"):
        return bool(shell.get_parent().get("content", {}).get("allow_stdin"))
    return sys.stderr.isatty()


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

    with tqdm(total=sum(config.rounds for config in configs), initial=count(), bar_format=WORDS, file=sys.stdout,
              mininterval=TICK if is_watched() else EVERY, miniters=0, smoothing=0, disable=done) as bar:  # fmt: skip
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
            bar.update(count() - bar.n)
