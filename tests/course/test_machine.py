"""What a notebook tells of the machine: plain rows, and minutes that follow the size of the study."""

import pytest

from fedlib.config import StudyConfig
from fedlib.course import machine


def test_every_part_is_told_with_what_it_means(tmp_path):
    table = machine.describe(tmp_path / "not" / "there").set_index("part")
    assert {"processor cores", "memory", "disk for results", "GPU", "Python", "torch", "flwr"} <= set(table.index)
    assert (table["here"].str.len() > 0).all()
    assert (table["what to expect"].str.len() > 0).all()
    assert table.loc["torch", "what to expect"] == "as locked"


def test_another_version_than_the_locked_one_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_locked", lambda: {"torch": "0.4.1"})
    assert "0.4.1" in machine.describe(tmp_path).set_index("part").loc["torch", "what to expect"]


def test_steps_are_those_of_the_centralized_run(images):
    study = StudyConfig.make(profile="smoke", data_dir=images.folder, rounds=3, local_epochs=2)
    n = len(images.split("train"))
    assert machine.steps_a_run(study) == 6 * -(-n // study.batch_size)


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_minutes_grow_with_the_grid(task, monkeypatch, tmp_path):
    study = StudyConfig.make(task=task, profile="smoke", out_dir=tmp_path)
    assert machine.seconds_a_step(study, 1) > 0
    monkeypatch.setattr(machine, "seconds_a_step", lambda study: 10.0)
    short, long = (
        machine.minutes(study.but(client_counts=counts)).set_index("notebook")["minutes, about"] for counts in ("2", "2,3,4")
    )
    assert long["03_federated_simulation"] > 2 * short["03_federated_simulation"]
    assert long["02_centralized_training"] == short["02_centralized_training"]
    assert list(tmp_path.iterdir()) == []
