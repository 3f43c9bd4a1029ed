"""The training loop: its bits come from seed, client and round alone, its cases are seen equally often, it fails loud."""

import json

import numpy as np
import pytest
import torch

from fedlib import tasks
from fedlib.config import UserError
from fedlib.data.dataset import batches, describe
from fedlib.training.loop import derive_seed, evaluate, initial_model, learning_rate, make_optimizer, train_round
from fedlib.training.run_store import state_sha256
from tests.helpers import python, run_config


def trained(data, config, client=0, round_number=1):
    model = initial_model(config, data)
    train_round(model, data, data.split("train"), config, client, round_number)
    return state_sha256(model.state_dict())


def test_seed_client_and_round_each_change_the_bits(images):
    config, reseeded = run_config(images, "centralized"), run_config(images, "centralized", seed=2)
    hashes = [trained(images, config), trained(images, config, client=1), trained(images, config, round_number=2)]
    assert len({*hashes, trained(images, reseeded)}) == 4


def test_the_initial_model_comes_from_the_seed_and_leaves_the_global_generator_alone(data):
    config = run_config(data, "centralized")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one = initial_model(config, data)
    assert torch.equal(torch.rand(1), expected)
    two, other = initial_model(config, data), initial_model(run_config(data, "federated", seed=9), data)
    assert state_sha256(one.state_dict()) == state_sha256(two.state_dict()) != state_sha256(other.state_dict())


def test_the_optimizer_is_torch_s_adamw_with_the_config_s_values(images):
    config = run_config(images, "centralized")
    optimizer = make_optimizer(initial_model(config, images), config)
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.defaults["weight_decay"], optimizer.defaults["lr"]) == (0.01, 0.001)


def test_a_short_last_batch_is_dropped_where_the_config_says_so(images):
    config, rows = run_config(images, "centralized", drop_last=True, batch_size=8), images.split("train")[:19]
    assert train_round(initial_model(config, images), images, rows, config, 0, 1)["n"] == 19
    assert [len(batch) for batch in batches(rows, 8, None, drop_last=True)] == [8, 8]
    assert [len(batch) for batch in batches(rows[:5], 8, None, drop_last=True)] == [5], "less than a batch is one"


def test_every_step_lowers_the_loss_of_its_batch(data):
    """A round of one small step, again and again with the same batch and augmentation: a law, on any processor."""
    config = run_config(data, "centralized", rounds=1, learning_rate=1e-4)
    model, rows = initial_model(config, data), data.split("train")[: config.batch_size]
    losses = [train_round(model, data, rows, config, 0, 1)["loss"] for _ in range(6)]
    assert (np.diff(losses) < 0).all()


def test_a_loss_that_is_not_finite_names_client_and_round(data):
    config = run_config(data, "centralized")
    model = initial_model(config, data)
    torch.nn.init.constant_(next(model.parameters()), float("nan"))
    with pytest.raises(UserError, match=r"loss = nan.*client 3.*round 2"):
        train_round(model, data, data.split("train"), config, 3, 2)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(images):
    config = run_config(images, "centralized", rounds=10, learning_rate=0.5)
    rates = [learning_rate(config, done / 10) for done in range(101)]
    peak = int(np.argmax(rates))
    assert rates[peak] == pytest.approx(0.5)
    assert peak == 10, "a tenth of the run"
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()


def test_streams_of_neighbours_differ():
    numbers = [(seed, client, number) for seed in range(3) for client in range(8) for number in range(8)]
    assert len({derive_seed(*each) for each in numbers}) == len(numbers)


def test_evaluation_scores_each_case_once_and_changes_nothing(data):
    config, task = run_config(data, "centralized"), tasks.get(data.task)
    model = initial_model(config, data)
    train_round(model, data, data.split("train"), config, 0, 1)
    before, rows = state_sha256(model.state_dict()), data.split("train")
    scores = evaluate(model, data, rows, config)
    assert state_sha256(model.state_dict()) == before
    assert scores["case"].tolist() == data.cases.iloc[rows]["case"].tolist()
    one_by_one = evaluate(model, data, rows, config.model_copy(update={"batch_size": 1}))
    for metric, value in task.summarize(scores).items():
        assert task.summarize(one_by_one)[metric] == pytest.approx(value, abs=0.05), "a case's score is its own"


def test_half_precision_trains_too(data):
    config = run_config(data, "centralized", precision="bf16")
    model = initial_model(config, data)
    done = train_round(model, data, data.split("train"), config, 0, 1)
    assert np.isfinite(done["loss"])
    assert {p.dtype for p in model.parameters()} == {torch.float32}, "weights stay fp32"


@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_are_deterministic_unless_a_run_does_without(data, deterministic):
    config, found = run_config(data, "centralized", deterministic=deterministic), set()
    model, rows = initial_model(config, data), data.split("train")
    model.register_forward_hook(lambda *_: found.add(torch.are_deterministic_algorithms_enabled()))
    train_round(model, data, rows, config, 0, 1, lambda: found.add(torch.are_deterministic_algorithms_enabled()))
    evaluate(model, data, rows, config)
    assert found == {deterministic}


MEMORY = 1 << 30
"""Bytes that a process may hold for itself: what it imports takes a third."""
BOUNDED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[3]),) * 2)
import json

import numpy as np
from fedlib.config import RunConfig
from fedlib.data.dataset import batches, open_prepared
from fedlib.training.loop import evaluate, initial_model, train_round

config, data = RunConfig.model_validate_json(sys.argv[1]), open_prepared(sys.argv[2])
rows = data.split("train")
try:
    np.array(data.images)
except MemoryError:
    print("too large")
seen = sum(len(data.load_batch(batch)[0]) for batch in batches(rows, 64))
model = initial_model(config, data)
trained = train_round(model, data, rows[::256], config, 0, 1)
print(seen, trained["n"], len(evaluate(model, data, rows[::512], config)))
"""


@pytest.mark.slow
def test_a_prepared_set_larger_than_memory_trains(images, tmp_path):
    """Every image is read, a round is trained on a client's share, in a process that could not hold the images."""
    n, side = 20480, 256
    shape = (n, 1, side, side)
    pixels = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, shape)  # black ones take no disk space
    pixels[::256] = np.random.default_rng(1).integers(0, 256, (n // 256, *shape[1:]))
    pixels.flush()
    assert pixels.nbytes > MEMORY
    np.save(tmp_path / "labels.npy", np.arange(n) % len(images.classes))
    table = images.cases.iloc[np.arange(n) % len(images.cases)]
    table.assign(case=[f"case{row}" for row in range(n)], split="train").to_csv(tmp_path / "cases.csv", index=False)
    paths = {name: tmp_path / name for name in ("images.npy", "labels.npy", "cases.csv")}
    (tmp_path / "manifest.json").write_text(json.dumps(describe(paths, images.manifest)))
    config = run_config(images, "centralized")
    done = python("-c", BOUNDED, config.model_dump_json(), tmp_path, MEMORY)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[:2] == ["too large", f"{n} {n // 256} {n // 512}"]
