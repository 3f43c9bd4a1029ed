"""Progress of runs: rounds read from the run store, few lines where nobody reads along, one line for an interrupt."""

import re
import time

import pytest

from fedlib.study import experiment
from fedlib.training.run_store import RunStore
from fedlib.views import progress
from tests.helpers import run_config


def last_of(line):
    """What a terminal or a page shows of a line that was written over."""
    return [part for part in line.split("\r") if part.strip()][-1]


@pytest.mark.parametrize(("mode", "rows", "rounds"), [("centralized", 2, 2), ("local", 3, 1), ("federated", 4, 2)])
def test_rounds_are_counted_from_the_table_of_clients(images, tmp_path, mode, rows, rounds):
    store, config = RunStore(tmp_path), run_config(images, mode, rounds=4)
    assert progress.rounds_done(config, store) == 0
    record = store.begin(config)
    record.write_table(
        "clients.csv", [{"round": 1 + n // config.n_clients, "client": n % config.n_clients} for n in range(rows)]
    )
    assert progress.rounds_done(config, store) == rounds


def test_the_bar_follows_what_another_thread_or_process_trains(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "TICK", 0.01)
    store, config = RunStore(tmp_path), run_config(images, "centralized", rounds=4)
    record, seen = store.begin(config), ""
    with progress.rounds_bar([config], store):
        record.write_table("clients.csv", [{"round": n, "client": 0} for n in (1, 2, 3)])
        while "3 of 4 rounds" not in seen:  # the pytest timeout of the suite ends it
            seen += capsys.readouterr().out
    assert "0 of 4 rounds" in seen


def test_training_is_told_in_rounds_and_a_finished_run_is_read(images, tmp_path, capsys):
    store, config = RunStore(tmp_path), run_config(images, "centralized")
    experiment.run_all([config], images, store)
    line, end = map(last_of, capsys.readouterr().out.strip().split("\n"))
    assert re.match(r"\[1/1\] \S+: \d+ s, accuracy", line)
    assert end.startswith("training: 2 of 2 rounds")
    experiment.run_all([config], images, store)
    assert re.fullmatch(r"\[1/1\] \S+: read from the run store, .*\n", capsys.readouterr().out)


def test_lines_are_few(images, tmp_path, capsys):
    store, config, begun = RunStore(tmp_path), run_config(images, "centralized", rounds=12), time.monotonic()
    experiment.run_all([config], images, store)
    ticks = (time.monotonic() - begun) / progress.TICK
    assert capsys.readouterr().out.count("rounds") <= 4 + ticks, "the first and the last, and around the run's line, beside"


@pytest.mark.parametrize("mode", ["centralized", "local", "federated"])
def test_an_interrupt_is_one_line_and_the_same_call_resumes(images, tmp_path, monkeypatch, mode):
    store, config = RunStore(tmp_path), run_config(images, mode)
    expected = experiment.run(config, images, RunStore(tmp_path / "whole")).result["weights_sha256"]

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(experiment, "train_federated" if mode == "federated" else "train_locally", interrupt)
        with pytest.raises(KeyboardInterrupt) as caught:
            experiment.run_all([config], images, store, report=str)
    assert caught.value._render_traceback_() == ["Interrupted; run the cell again to resume."]
    assert store.get(config.run_id).status["state"] == "queued"
    (run,) = experiment.run_all([config], images, store, report=str)
    assert run.result["weights_sha256"] == expected
