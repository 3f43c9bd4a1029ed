"""The table of the machine, and minutes that follow the size of the study and what is left to train."""

import pytest

from fedlib.config import StudyConfig
from fedlib.course import machine
from fedlib.study.experiment import run
from fedlib.training.run_store import RunStore


def test_every_part_is_shown_with_what_it_means(tmp_path):
    table = machine.describe(tmp_path / "not" / "there").set_index("part")
    assert {"processor cores", "memory", "disk for results", "GPU", "Python", "torch", "flwr"} <= set(table.index)
    assert (table["here"].str.len() > 0).all()
    assert (table["what to expect"].str.len() > 0).all()
    assert table.loc["torch", "here"].partition("+")[0] == table.loc["torch", "what to expect"].split()[-1]


def minutes(study):
    return machine.minutes(study).set_index("notebook")["minutes, about"]


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_minutes_grow_with_the_grid(task, monkeypatch, tmp_path):
    study = StudyConfig.make(task=task, profile="smoke", out_dir=tmp_path)
    assert machine.seconds_a_step(study, steps=1) > 0
    monkeypatch.setattr(machine, "seconds_a_step", lambda *_: 10.0)
    short, long = (minutes(study.replace(client_counts=counts)) for counts in ("2", "2,3,4"))
    assert long["03_federated_simulation"] > 2 * short["03_federated_simulation"]
    assert long["02_centralized_training"] == short["02_centralized_training"]
    assert list(tmp_path.iterdir()) == []


def test_finished_runs_take_no_time(data, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "seconds_a_step", lambda *_: 100.0)
    sizes = {"rounds": 1, "local_epochs": 1, "batch_size": 8}
    study = StudyConfig.make(task=data.task, profile="smoke", data_dir=data.folder, out_dir=tmp_path, **sizes)
    before = minutes(study)
    for config in study.runs(data.fingerprint, ("centralized",)):
        run(config, data, RunStore(study.out_dir))
    after = machine.minutes(study).set_index("notebook")
    assert after["runs to train"].tolist()[:2] == [0, 0]
    assert after.loc["02_centralized_training", "minutes, about"] == 1 < before["02_centralized_training"]
    assert after.loc["03_federated_simulation", "minutes, about"] == before["03_federated_simulation"]
    assert (after["steps a run"] == -(-len(data.split("train")) // 8)).all()
