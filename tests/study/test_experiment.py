"""The one door to training: same bits, equal budget, one test set, and finished runs are read."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import torch

from fedlib import tasks
from fedlib.data.dataset import PreparedDataset
from fedlib.study import experiment
from fedlib.training import execution
from fedlib.training.run_store import RunStore, state_sha256
from tests.helpers import outcome, run_config

MODES = ("centralized", "local", "federated")


@pytest.mark.parametrize("local_epochs", [1, 2])
def test_one_client_with_fedavg_is_the_centralized_run_to_the_bit(data, tmp_path, local_epochs):
    store = RunStore(tmp_path)
    central = experiment.run(run_config(data, "centralized", local_epochs=local_epochs), data, store)
    alone = experiment.run(run_config(data, "federated", n_clients=1, local_epochs=local_epochs), data, store)
    assert alone.result["weights_sha256"] == central.result["weights_sha256"]
    assert (alone.folder / "cases.csv").read_bytes() == (central.folder / "cases.csv").read_bytes()
    metrics = list(tasks.get(data.task).PRIMARY)
    assert alone.rounds[metrics].equals(central.rounds[metrics])


@pytest.mark.parametrize("mode", MODES)
def test_a_second_run_in_another_store_has_the_same_bits(data, tmp_path, mode):
    config = run_config(data, mode)
    one = experiment.run(config, data, RunStore(tmp_path / "one"))
    experiment.run(run_config(data, "federated", seed=5, n_clients=3), data, RunStore(tmp_path / "between"))
    two = experiment.run(config, data, RunStore(tmp_path / "two"))
    assert one.folder != two.folder
    assert outcome(one) == outcome(two)
    for name in ("cases.csv", "weights.safetensors"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()


@pytest.mark.parametrize("mode", MODES)
def test_every_arm_has_the_same_budget_and_learns_from_training_cases_only(data, tmp_path, monkeypatch, mode):
    config, steps, learnt = run_config(data, mode, local_epochs=2), [], []
    read, step = PreparedDataset.load_batch, torch.optim.AdamW.step

    def watched(own, rows, *where):
        if not torch.is_inference_mode_enabled():  # scoring reads other splits
            learnt.extend(rows.tolist())
        return read(own, rows, *where)

    monkeypatch.setattr(PreparedDataset, "load_batch", watched)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda own, *given: steps.append(1) or step(own, *given))
    experiment.run(config, data, RunStore(tmp_path))
    epochs = config.rounds * config.local_epochs
    assert sorted(learnt) == sorted(np.repeat(data.split("train"), epochs).tolist())
    per_epoch = [-(-len(rows) // config.batch_size) for rows in execution.clients_of(config, data)]
    assert len(steps) == epochs * sum(per_epoch)


@pytest.mark.parametrize("mode", MODES)
def test_the_test_split_is_touched_once_after_all_training(data, tmp_path, monkeypatch, mode):
    test, order = set(data.split("test").tolist()), []
    expected = data.cases.iloc[data.split("test")]["case"].tolist()
    read = PreparedDataset.load_batch

    def watched(own, rows, *where):
        order.append(bool(test & set(rows.tolist())))
        return read(own, rows, *where)

    monkeypatch.setattr(PreparedDataset, "load_batch", watched)
    run = experiment.run(run_config(data, mode), data, RunStore(tmp_path))
    first = order.index(True)
    assert all(order[first:])
    assert run.cases["case"].tolist() == expected * (2 if mode == "local" else 1), "every model is scored on the same cases"


def test_a_finished_run_is_read_and_not_trained(images, tmp_path, monkeypatch):
    config, store, said = run_config(images, "centralized"), RunStore(tmp_path), []
    first = experiment.run(config, images, store)

    def trained(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(experiment, "train_locally", trained)
    assert experiment.run(config, images, store) == first
    assert experiment.run_all([config], images, store, report=said.append) == [first]
    assert config.run_id in said[0]


def test_a_local_run_is_the_mean_over_its_clients(data, tmp_path):
    run = experiment.run(run_config(data, "local"), data, RunStore(tmp_path))
    for metric in tasks.get(data.task).PRIMARY:
        own = [tasks.get(data.task).summarize(cases)[metric] for _, cases in run.cases.groupby("client")]
        assert run.result[metric] == pytest.approx(np.mean(own))
    hashes = [state_sha256(execution.load_model(run, data, client).state_dict()) for client in range(2)]
    assert run.result["weights_sha256"] == hashlib.sha256("".join(hashes).encode()).hexdigest()
    assert len(set(hashes)) == 2


def test_clients_of_a_local_run_start_alike_and_are_those_of_the_federation(data):
    local, federated = (execution.clients_of(run_config(data, mode), data) for mode in ("local", "federated"))
    assert all(map(np.array_equal, local, federated))
    (everything,) = execution.clients_of(run_config(data, "centralized"), data)
    assert np.array_equal(everything, data.split("train"))


def test_predict_gives_what_the_run_was_scored_on(images, volumes, tmp_path):
    store = RunStore(tmp_path)
    run = experiment.run(run_config(images, "federated"), images, store)
    predicted = execution.predict(run, images, images.split("test"))
    assert [images.classes[label] for label in predicted] == run.cases["prediction"].tolist()
    heart = experiment.run(run_config(volumes, "centralized"), volumes, store)
    masks = execution.predict(heart, volumes, volumes.split("test"))
    truth = volumes.labels[volumes.split("test")]
    for number, structure in ((1, "LV"), (2, "Myo")):
        both, sizes = (
            ((masks == number) & (truth == number)),
            (masks == number).sum((1, 2, 3)) + (truth == number).sum((1, 2, 3)),
        )
        assert np.allclose(2 * both.sum((1, 2, 3)) / sizes, heart.cases[f"dice_{structure}"], atol=0.02)


def test_each_row_of_rounds_is_the_validation_score(images, tmp_path):
    run = experiment.run(run_config(images, "federated"), images, RunStore(tmp_path))
    model = execution.load_model(run, images)
    scores = tasks.get("classification").summarize(execution.evaluate(model, images, images.split("val"), run.config))
    last = run.rounds.iloc[-1]
    assert {name: last[name] for name in scores} == pytest.approx(scores)
    assert last["round"] == run.config.rounds
    assert isinstance(run.rounds, pd.DataFrame)
