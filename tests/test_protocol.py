"""Profile paper is what the protocol in a task's YAML says, and builds exactly that."""

import pytest
import torch

from fedlib.config import TASKS, StudyConfig, task_values
from fedlib.data.dataset import batches
from fedlib.training.loop import initial_model, learning_rate, make_optimizer

ROWS = [(task, row) for task in TASKS for row in task_values(task)["protocol"]]


@pytest.mark.parametrize(("task", "row"), ROWS, ids=lambda value: value["what"] if isinstance(value, dict) else value)
def test_a_row_of_the_protocol_has_an_origin_and_its_field_its_value(task, row):
    assert row["origin"] in ("paper", "scripts", "inferred", "chosen")
    if "field" in row:
        value = getattr(StudyConfig.make(profile="paper", task=task), row["field"])
        assert (list(value) if isinstance(value, tuple) else value) == row["value"]


def test_profile_paper_builds_the_authors_training(images):
    (config,) = StudyConfig.make(profile="paper", precision="fp32").runs(images.fingerprint, ("centralized",))
    model = initial_model(config, images)
    optimizer = make_optimizer(model, config)
    assert type(optimizer) is torch.optim.SGD
    wanted = {"lr": 0.001, "momentum": 0.9, "weight_decay": 0, "nesterov": False}
    assert {name: optimizer.defaults[name] for name in wanted} == wanted
    assert {learning_rate(config, done) for done in (0, 35, 69.9)} == {0.001}
    assert sum(weight.numel() for weight in model.parameters()) == 11_173_188, "ResNet18, one channel, four classes"
    cut = batches(images.split("train").repeat(2), config.batch_size, None, config.drop_last)
    assert {len(batch) for batch in cut} == {16}
    pictures, _ = images.load_batch(images.split("train"), low=config.input_low)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert (config.augmentation, config.rounds, config.local_epochs) == ("authors", 70, 1)


def test_the_authors_augmentation_sharpens_blurs_and_translates(images):
    from fedlib.data.augment import random_appearance

    flat = torch.full((64, 1, 32, 32), 0.5)
    flat[:, :, 16, 16] = 1.0
    moved = random_appearance(flat, torch.Generator().manual_seed(1), low=0)
    assert moved.shape == flat.shape
    assert ((moved >= 0) & (moved <= 1)).all()
    where = torch.stack([(image[0] * (image[0] > 0.52)).argmax() for image in moved])
    rows, columns = where // 32 - 16, where % 32 - 16
    assert max(rows.abs().max(), columns.abs().max()) <= 4, "up to a tenth of 32 pixels"
    assert len(set(rows.tolist())) > 4, "every image is moved on its own"
    assert moved.amax((1, 2, 3)).std() > 0.05, "some are blurred more than others"
