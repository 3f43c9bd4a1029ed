"""How far training is and how long it will take, told from the run folders, so that it works whatever engine trains.

In JupyterLab a bar; under papermill and in a terminal plain lines, not more often than EVERY seconds. Training is stopped as
any cell is, by the square in the toolbar or Ctrl-C: what is finished stays, and the same call goes on from there. A button
of our own would be heard too late: a kernel hands clicks to the thread that trains.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

from fedlib.config import RunConfig
from fedlib.training.run_store import RunStore

EVERY = 10.0
"""Seconds between two plain lines (*chosen*): a log stays readable."""
TICK = 0.5
"""Seconds between two looks at the run folders."""


def is_live() -> bool:
    """Whether somebody watches: a front end that can ask for input, as papermill and nbconvert say they cannot."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if not hasattr(shell, "kernel"):
        return False
    return bool(shell.get_parent().get("content", {}).get("allow_stdin"))


@dataclass(frozen=True)
class Look:
    """The state of some runs at one moment. A turn is one client's training in one round."""

    done: int
    runs: int
    running: str
    """run_id of the first run that has begun and is not done; empty when there is none."""
    turn: int
    turns: int
    share: float
    """Of all the work, from 0 to 1."""
    seconds_left: float | None
    """None before anything tells."""

    @property
    def over(self) -> bool:
        return self.share >= 1

    def __str__(self) -> str:
        parts = [f"{self.done} of {self.runs} runs done"]
        if self.running:
            parts.append(f"{self.running}: {'testing' if self.turn == self.turns else f'turn {self.turn} of {self.turns}'}")
        if not self.over:
            left = "time left not known yet" if self.seconds_left is None else f"about {duration(self.seconds_left)} left"
            parts.append(left)
        return "; ".join(parts)


class Watch:
    """Reads how far runs are. What was done before the watch began takes no time and says nothing about the pace."""

    def __init__(self, configs: list[RunConfig], store: RunStore, clock: Callable[[], float] = time.monotonic):
        self.configs, self.store, self.clock = configs, store, clock
        self.old_failures = {config.run_id: self._changed(config) for config in configs if self._state(config) == "failed"}
        self.before, self.began = self._work(), clock()
        self.usual = self._usual_seconds()

    def look(self) -> Look:
        """How far the runs are by now, as the run store tells."""
        work, whole = self._work(), sum(map(_effort, self.configs))
        begun = [config for config in self.configs if self._state(config) == "running"]
        running = begun[0] if begun else None
        return Look(
            done=sum(self._state(config) == "done" for config in self.configs),
            runs=len(self.configs),
            running=running.run_id if running else "",
            turn=self._turns_done(running) if running else 0,
            turns=_turns(running) if running else 0,
            share=work / whole if whole else 1.0,
            seconds_left=self._seconds_left(work, whole),
        )

    def _seconds_left(self, work: float, whole: float) -> float | None:
        """From the pace since the watch began; before the first turn from what such runs took before."""
        if work > self.before:
            return (self.clock() - self.began) / (work - self.before) * (whole - work)
        return None if self.usual is None else self.usual * (whole - work)

    def _work(self) -> float:
        return sum(_effort(config) * self._share(config) for config in self.configs)

    def _share(self, config: RunConfig) -> float:
        state = self._state(config)
        if state == "done" or (state == "failed" and self.old_failures.get(config.run_id) != self._changed(config)):
            return 1.0
        return 0.99 * min(1.0, self._turns_done(config) / _turns(config))  # the test comes after the last turn

    def _state(self, config: RunConfig) -> str:
        run = self.store.get(config.run_id)
        return run.status["state"] if run else "queued"

    def _changed(self, config: RunConfig) -> int:
        return (self.store.folder / config.run_id / "status.json").stat().st_mtime_ns

    def _turns_done(self, config: RunConfig) -> int:
        table = self.store.folder / config.run_id / "clients.csv"
        return max(0, len(table.read_text().splitlines()) - 1) if table.exists() else 0

    def _usual_seconds(self) -> float | None:
        """Seconds a unit of work took in finished runs on the same data with a model of the same size."""
        size = {(config.data_fingerprint, config.width, config.precision) for config in self.configs}
        alike = [run for run in self.store.all() if run.done
                 and (run.config.data_fingerprint, run.config.width, run.config.precision) in size]  # fmt: skip
        work = sum(_effort(run.config) for run in alike)
        return sum(run.result["seconds"] for run in alike) / work if work else None


@contextmanager
def shown(configs: list[RunConfig], store: RunStore) -> Iterator[None]:
    """Show how far the runs are while the block trains them; nothing when they are all done already."""
    watch = Watch(configs, store)
    if watch.look().over:
        yield
        return
    finished = threading.Event()
    show, close = _live(watch) if is_live() else _plain(watch)
    watcher = threading.Thread(target=_repeat, args=(watch, show, finished), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
        close()


def _repeat(watch: Watch, show: Callable[[Look], None], finished: threading.Event) -> None:
    while not finished.wait(TICK):
        show(look := watch.look())
        if look.over:
            return


def _plain(watch: Watch) -> tuple[Callable[[Look], None], Callable[[], None]]:
    said_at = watch.clock()
    print(watch.look(), flush=True)

    def say(look: Look) -> None:
        nonlocal said_at
        if watch.clock() - said_at >= EVERY and not look.over:
            said_at = watch.clock()
            print(look, flush=True)

    return say, lambda: None


def _live(watch: Watch) -> tuple[Callable[[Look], None], Callable[[], None]]:
    import ipywidgets
    from IPython.display import display

    progress, show = bar(watch.look())
    hint = ipywidgets.HTML("<small>\u25a0 in the toolbar stops it; run the cell again to go on from there.</small>")
    box = ipywidgets.VBox([progress, hint])
    handle = display(box, display_id=True)

    def close() -> None:
        handle.update({"text/plain": str(watch.look())}, raw=True)
        box.close()

    return show, close


def bar(look: Look) -> tuple[Any, Callable[[Look], None]]:
    """A widget (a bar and the words of a look) and the function that brings it up to date."""
    import ipywidgets  # here: half a second that only a live notebook needs

    progress, words = ipywidgets.FloatProgress(max=1.0), ipywidgets.HTML()

    def show(look: Look) -> None:
        progress.value, words.value = look.share, f'<span role="status">{escape(str(look))}</span>'

    show(look)
    return ipywidgets.VBox([progress, words]), show


class Monitor:
    """Runs that train somewhere else, such as `python -m fedlib study` in a terminal. Leave it as a cell's value."""

    def __init__(self, configs: list[RunConfig], store: RunStore):
        self.watch, self.finished = Watch(configs, store), threading.Event()

    def live(self) -> Any:
        """The widget; a thread brings it up to date until all runs are done or it is told to stop watching."""
        import ipywidgets

        box, show = bar(self.watch.look())
        button = ipywidgets.Button(description="Stop watching", tooltip="the runs go on", disabled=self.watch.look().over)

        def stop(_: object) -> None:
            self.finished.set()
            button.disabled = True

        button.on_click(stop)
        threading.Thread(target=_repeat, args=(self.watch, show, self.finished), daemon=True).start()
        return ipywidgets.VBox([box, button])

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        still = {"text/html": f"<p>{escape(str(self))}</p>", "text/plain": str(self)}
        return self.live()._repr_mimebundle_() | still if is_live() else still

    def __repr__(self) -> str:
        return str(self.watch.look())


def duration(seconds: float) -> str:
    """Words for a time that is not known exactly: 5 s, 40 s, 3 min."""
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    return f"{5 * round(seconds / 5)} s" if seconds < 100 else f"{round(seconds / 60)} min"


def _turns(config: RunConfig) -> int:
    return config.rounds * config.sampled(config.n_clients)


def _effort(config: RunConfig) -> float:
    """Work of a run: passes over all training cases (equal for all arms with full participation: the budget)."""
    return config.rounds * config.local_epochs * config.sampled(config.n_clients) / config.n_clients
