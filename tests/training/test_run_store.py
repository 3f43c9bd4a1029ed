"""The run store: readable at any moment, whole after any crash, and the same after a resume."""

import json
import os
import threading

import pytest
import torch
from filelock import Timeout

from fedlib import tasks
from fedlib.config import UserError
from fedlib.data.files import write_atomically
from fedlib.study import experiment
from fedlib.training.run_store import Run, RunStore, state_sha256
from tests.helpers import files_of_at_most, outcome, run_config


class Killed(BaseException):
    """A kill as the code sees it: nothing after it is carried out, and nobody may catch it."""


def dying_after(monkeypatch, n_writes):
    """Let this many files get their name; then every write dies between its content and its name."""
    count, replace = iter(range(10**6)), os.replace

    def replace_or_die(source, target):
        if next(count) >= n_writes:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_or_die)
    return lambda: next(count)


def check_readable(store, config):
    """What a reader relies on, whatever was interrupted."""
    for run in store.all():
        assert run.config == config
        assert run.status["state"] in ("running", "queued", "done")
    assert len(store.results()) == len(store.done([config])) == sum(run.done for run in store.all())
    for run in store.done([config]):
        assert run.result["weights_sha256"] == run.provenance["weights_sha256"]
        assert len(run.rounds) == config.rounds
        assert len(run.cases)
        assert run.weights()


CASES = [("segmentation", "federated", 2), ("classification", "local", 1)]


@pytest.mark.parametrize(("task", "mode", "rounds"), CASES)
def test_a_run_survives_a_kill_between_any_two_writes(prepared, tmp_path, monkeypatch, task, mode, rounds):
    data = prepared[task]
    config = run_config(data, mode, rounds=rounds)
    whole = RunStore(tmp_path / "whole")
    with monkeypatch.context() as patched:
        written = dying_after(patched, 10**6)
        experiment.run_all([config], data, whole, report=str)
        n_writes = written()
    expected, table = outcome(whole.all()[0]), whole.all()[0].folder / "cases.csv"
    assert n_writes > 8, "the loop below would prove nothing"
    for n in range(n_writes):
        store = RunStore(tmp_path / str(n))
        with monkeypatch.context() as patched:
            dying_after(patched, n)
            with pytest.raises(Killed):
                experiment.run_all([config], data, store, report=str)
        check_readable(store, config)
        (run,) = experiment.run_all([config], data, store, report=str)
        check_readable(store, config)
        assert outcome(run) == expected, f"killed at write {n}"
        assert (run.folder / "cases.csv").read_bytes() == table.read_bytes()
        results = store.out_dir / "results.csv"
        assert results.exists(), f"killed at write {n}"
        assert results.read_text() == store.results().to_csv(index=False), f"killed at write {n}"


def test_an_empty_store_is_empty(tmp_path):
    store = RunStore(tmp_path / "nothing")
    assert store.all() == []
    assert store.results().empty
    assert store.get("any") is None
    with pytest.raises(UserError, match="02 and 03"):
        store.require_centralized([])


def test_two_that_want_the_same_run_train_it_once(images, tmp_path, monkeypatch):
    config, begun, begin = run_config(images, "centralized", rounds=1), [], RunStore.begin

    def counted(store, config):
        begun.append(config.run_id)
        return begin(store, config)

    monkeypatch.setattr(RunStore, "begin", counted)
    hashes = []

    def work():
        hashes.append(experiment.run(config, images, RunStore(tmp_path)).result["weights_sha256"])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == 1
    assert len(hashes) == 3
    assert len(set(hashes)) == 1


def test_the_lock_is_one_per_run(tmp_path):
    store = RunStore(tmp_path)
    with store.lock("one"):
        with pytest.raises(Timeout):
            RunStore(tmp_path).lock("one").acquire(timeout=0)
        with RunStore(tmp_path).lock("two").acquire(timeout=0):
            assert store.all() == [], "a lock is not a run"


def test_a_write_that_dies_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")
    with monkeypatch.context() as patched:
        dying_after(patched, 0)
        with pytest.raises(Killed):
            write_atomically(path, "new")
    assert path.read_text() == "old"
    with files_of_at_most(10), pytest.raises(OSError, match="too large"):
        write_atomically(path, "new" * 9)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path], "nothing is left aside"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Else a power cut may leave the name before an empty file."""
    fsync, replace, steps = os.fsync, os.replace, []
    monkeypatch.setattr(os, "fsync", lambda file: steps.append(os.fstat(file).st_size) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *names: steps.append("named") or replace(*names))
    write_atomically(tmp_path / "file", "text")
    assert steps == [4, "named"]


def test_the_hash_of_weights_sees_every_bit_and_not_the_order():
    state = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3]])}
    known = state_sha256(state)
    assert state_sha256(dict(reversed(state.items()))) == known
    others = [
        {"a": torch.nextafter(state["a"], torch.tensor(9.0)), "b": state["b"]},
        {"a": state["a"].double(), "b": state["b"]},
        {"a": state["a"][None], "b": state["b"]},
        {"c": state["a"], "b": state["b"]},
        {"a": state["a"]},
    ]
    assert len({known, *map(state_sha256, others)}) == 1 + len(others)
    transposed = {"a": torch.arange(6.0).reshape(2, 3).T}
    assert state_sha256(transposed) == state_sha256({"a": transposed["a"].contiguous()}), (
        "how it lies in memory is not content"
    )


def test_files_and_columns_of_a_finished_run(images, tmp_path):
    store = RunStore(tmp_path)
    configs = [run_config(images, mode) for mode in ("centralized", "local", "federated")]
    for run in experiment.run_all(configs, images, store, report=str):
        names = {path.name for path in run.folder.iterdir()}
        assert names == {
            *("config.json", "status.json", "rounds.csv", "clients.csv"),
            *("cases.csv", "weights.safetensors", "provenance.json"),
            *["validation.csv"] * (run.config.mode == "federated"),
        }
        assert {"round", "accuracy", "seconds", "bytes_up", "bytes_down"} <= set(run.rounds)
        assert {"round", "client", "n", "loss", "seconds", "bytes_up", "bytes_down"} <= set(run.clients)
        assert len(run.clients) == run.config.rounds * run.config.n_clients
        recorded = {"weights_sha256", "data_fingerprint", "seed", "device", "threads", "versions", "commit", "code_sha256"}
        assert recorded <= set(run.provenance)
    row = {"task", "mode", "n_clients", "partition", "strategy", "seed", "n_train", "n_test"}
    assert row | {"accuracy", "sensitivity", "seconds", "bytes", "weights_sha256"} <= set(store.results())
    assert len(store.results()) == 3


def test_a_run_with_settings_of_another_version_is_refused_in_one_line(images, tmp_path):
    record = RunStore(tmp_path).begin(run_config(images, "federated"))
    path = record.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"engine": "ray", "transport": "fp16"}))
    (run,) = RunStore(tmp_path).all()
    with pytest.raises(UserError, match=r"config.json: damaged or of another version \(unknown .*\); remove the folder"):
        run.config.model_dump()


def finished(images, tmp_path, mode="federated"):
    """A finished run, read anew."""
    return experiment.run(run_config(images, mode, rounds=1), images, RunStore(tmp_path))


def test_margins_stay_as_they_were_stated_when_a_run_began(images, tmp_path):
    """A run that was interrupted has shown validation scores: another margin comes after them."""
    store, config = RunStore(tmp_path), run_config(images, "centralized")
    store.begin(config)
    assert store.begin(config.model_copy(update={"margin_accuracy": 0.2})).config.margin_accuracy == 0.05
    path = store.folder / config.run_id / "config.json"
    path.write_text('{"task": ')
    with pytest.raises(UserError, match=r"config.json: damaged or of another version \(.*\); remove the folder"):
        _ = store.get(config.run_id).config
    assert store.begin(config).config == config, "what is damaged is written anew"


def test_what_each_round_said_of_the_validation_cases_is_kept(data, tmp_path):
    run = experiment.run(run_config(data, "federated"), data, RunStore(tmp_path))
    said = run.validation
    assert list(said["round"].unique()) == [1, 2]
    for number, cases in said.groupby("round"):
        assert cases["case"].tolist() == data.cases["case"].iloc[data.split("val")].tolist()
        scores = tasks.get(data.task).summarize(cases)
        assert scores == pytest.approx(run.rounds.set_index("round").loc[number, list(scores)].to_dict())


def read_table(run, name):
    """Read a file of a run as its readers do."""
    readers = {"weights.safetensors": Run.weights, "provenance.json": lambda run: run.provenance}
    return readers[name](run) if name in readers else getattr(run, name.removesuffix(".csv"))


TABLES = ("rounds.csv", "clients.csv", "validation.csv", "cases.csv")


@pytest.mark.parametrize("name", [*TABLES, "weights.safetensors", "provenance.json"])
def test_a_file_that_was_changed_since_the_run_was_done_is_refused_in_one_line(images, tmp_path, name):
    run, fresh = finished(images, tmp_path), lambda: RunStore(tmp_path).all()[0]
    read_table(fresh(), name)
    content = (run.folder / name).read_bytes()
    for damage, word in ((lambda path: path.write_bytes(content[: len(content) // 2]), "cut short"),
                         (lambda path: path.write_bytes(content.replace(b"1", b"2", 1)), "edited"),
                         (lambda path: path.unlink(), "missing")):  # fmt: skip
        damage(run.folder / name)
        with pytest.raises(UserError, match=word) as caught:
            read_table(fresh(), name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ['{"state": "done", "resu', "[]", '{"state": "done"}', '{"state": "done", "result": {}}', ""]
)
def test_a_damaged_status_is_a_failed_run_that_is_trained_again(images, tmp_path, text):
    run = finished(images, tmp_path, "centralized")
    (run.folder / "status.json").write_text(text)
    store = RunStore(tmp_path)
    assert store.done([run.config]) == []
    assert store.get(run.config.run_id).status["state"] == "failed"
    assert "status.json" in store.get(run.config.run_id).status["error"]
    assert outcome(finished(images, tmp_path, "centralized")) == outcome(run)
