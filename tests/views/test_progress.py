"""How far training is: told from the run folders, in plain lines where nobody watches."""

import re

import pytest

from fedlib.study import experiment
from fedlib.training.run_store import RunStore
from fedlib.views import progress
from tests.helpers import run_config


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def turns(store, config, count):
    """A run that trains, after this many turns."""
    record = store.begin(config)
    record.log_clients([{"round": 1 + turn // config.n_clients, "client": turn % config.n_clients} for turn in range(count)])
    return record


@pytest.fixture
def plan(images):
    return [run_config(images, mode, rounds=4) for mode in ("centralized", "local", "federated")]


def test_before_anything_is_known_no_time_is_told(plan, tmp_path):
    look = progress.Watch(plan, RunStore(tmp_path)).look()
    assert (look.done, look.runs, look.running, look.share, look.seconds_left) == (0, 3, "", 0, None)
    assert str(look) == "0 of 3 runs done; time left not known yet"


def test_time_left_follows_the_pace(plan, tmp_path):
    store, clock = RunStore(tmp_path), Clock()
    watch = progress.Watch(plan, store, clock)
    turns(store, plan[0], 2)
    clock.now = 20
    look = watch.look()
    assert (look.turn, look.turns, look.running) == (2, 4, plan[0].run_id)
    assert look.share == pytest.approx(1 / 6, rel=0.02)
    assert look.seconds_left == pytest.approx(100, rel=0.02)
    assert str(look).endswith("turn 2 of 4; about 2 min left")


def test_what_an_earlier_try_did_takes_no_time(plan, tmp_path):
    store, clock = RunStore(tmp_path), Clock()
    turns(store, plan[0], 2)
    watch = progress.Watch(plan[:1], store, clock)
    turns(store, plan[0], 3)
    clock.now = 10
    assert watch.look().seconds_left == pytest.approx(10, rel=0.05)


def test_a_failed_run_is_over_and_one_that_failed_before_is_not(plan, tmp_path):
    store = RunStore(tmp_path)
    store.begin(plan[0]).set_status("failed", error="before")
    watch = progress.Watch(plan[:2], store)
    assert watch.look().share == 0
    record = store.begin(plan[1])
    record.set_status("failed", error="now")
    assert watch.look().share == pytest.approx(0.5)


def test_runs_of_the_same_size_tell_the_time_beforehand(images, tmp_path):
    store = RunStore(tmp_path)
    done = experiment.run(run_config(images, "centralized"), images, store)
    watch = progress.Watch([run_config(images, "federated", seed=2)], store)
    assert watch.look().seconds_left == pytest.approx(done.result["seconds"], rel=0.01)
    other = progress.Watch([run_config(images, "federated", width=4)], store)
    assert other.look().seconds_left is None


def test_without_a_front_end_lines_are_plain_and_few(plan, tmp_path, capsys):
    store, clock = RunStore(tmp_path), Clock()
    watch = progress.Watch(plan, store, clock)
    say, _ = progress._plain(watch)
    for second in range(25):
        clock.now = second
        say(watch.look())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2, "at the start, after 10 s, after 20 s"


def test_training_says_how_long_and_reading_says_nothing(images, tmp_path, capsys):
    store, config = RunStore(tmp_path), run_config(images, "centralized")
    experiment.run_all([config], images, store)
    first = capsys.readouterr().out
    assert first.startswith("0 of 1 runs done; time left not known yet\n[1/1]")
    assert "\r" not in first
    experiment.run_all([config], images, store)
    assert re.fullmatch(r"\[1/1\] \S+: read from the run store, .*\n", capsys.readouterr().out)


def test_the_bar_follows(plan, tmp_path):
    watch = progress.Watch(plan, RunStore(tmp_path))
    box, show = progress.bar(watch.look())
    shown, words = box.children
    turns(watch.store, plan[0], 4)
    show(watch.look())
    assert shown.value == pytest.approx(0.33)
    assert "testing" in words.value


def test_a_monitor_stops_watching_when_told(plan, tmp_path):
    monitor = progress.Monitor(plan, RunStore(tmp_path))
    button = monitor.live().children[-1]
    button.click()
    assert monitor.finished.is_set()
    assert button.disabled


def test_a_monitor_of_runs_elsewhere_is_a_sentence_without_a_front_end(plan, tmp_path):
    bundle = progress.Monitor(plan, RunStore(tmp_path))._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    assert "0 of 3 runs done" in bundle["text/html"]


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (7, "7 s"), (42, "40 s"), (99, "100 s"), (200, "3 min")])
def test_durations_are_as_exact_as_they_can_be(seconds, words):
    assert progress.duration(seconds) == words
