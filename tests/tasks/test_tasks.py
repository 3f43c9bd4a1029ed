"""The two tasks: models as the paper names them, metrics by hand, and a stated rule for empty masks."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from fedlib import tasks
from fedlib.config import AnalysisConfig, StudyConfig
from fedlib.tasks import classification, segmentation
from tests.helpers import run_config


@pytest.mark.parametrize("task", map(tasks.get, tasks.TASKS))
def test_a_task_states_what_the_others_rely_on(task):
    stated = tasks.TaskSpec.__annotations__
    assert [name for name in stated if not hasattr(task, name)] == []
    assert [name for name in stated if name.islower() and not callable(getattr(task, name))] == []
    assert set(task.PRIMARY) <= set(task.METRICS)
    for metric in task.PRIMARY:
        assert 0 < AnalysisConfig().margin(metric) < 1


def test_metrics_of_two_tasks_have_different_names():
    assert len(tasks.NAMES) == sum(len(tasks.get(task).METRICS) for task in tasks.TASKS)


def test_the_classifier_is_the_resnet18_of_the_literature():
    model = classification.build_model(StudyConfig.make(profile="paper"), 4)
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_173_188
    sizes = []
    model.layer4.register_forward_hook(lambda module, given, out: sizes.append(out.shape[-1]))
    assert model(torch.zeros(2, 1, 224, 224)).shape == (2, 4)
    assert sizes == [7], "stride 2 in the stem: 224 / 32"


@pytest.mark.parametrize("size", [16, 40])
def test_the_segmenter_labels_every_voxel(size):
    model = segmentation.build_model(StudyConfig.make(profile="smoke", task="segmentation"), 3)
    assert model(torch.zeros(1, 1, size, size, size)).shape == (1, 3, size, size, size)


def test_accuracy_and_sensitivity_by_hand():
    truth = ["a"] * 6 + ["b"] * 3 + ["c"]
    prediction = ["a"] * 6 + ["b", "a", "a"] + ["b"]
    cases = pd.DataFrame({"case": range(10), "patient": range(10), "truth": truth, "prediction": prediction})
    cases[["p_a", "p_b", "p_c"]] = 1 / 3
    scores = classification.summarize(cases)
    assert scores["accuracy"] == pytest.approx(7 / 10)
    assert scores["sensitivity"] == pytest.approx((1 + 1 / 3 + 0) / 3), "a rare class weighs as much as a common one"


def test_a_patient_counts_once_however_many_images_it_has():
    """Ten images of one patient, all wrong, and two patients with one image each, both right."""
    cases = pd.DataFrame({"case": range(12), "patient": ["many"] * 10 + ["one", "other"], "truth": list("a" * 11 + "b")})
    cases["prediction"] = list("b" * 10 + "ab")
    cases[["p_a", "p_b"]] = 0.5
    assert classification.summarize(cases) == pytest.approx({"accuracy": 2 / 3, "sensitivity": (1 / 2 + 1) / 2})
    volumes = pd.DataFrame({"patient": ["a", "a", "b"], "dice_LV": [0.4, 0.6, 0.8], "dice_Myo": [0.1, 0.3, 0.4]})
    assert segmentation.summarize(volumes) == pytest.approx({"dice_LV": 0.65, "dice_Myo": 0.3})


def test_sensitivity_leaves_out_a_class_without_a_case():
    cases = pd.DataFrame({"case": range(4), "patient": range(4), "truth": list("aabb"), "prediction": list("abbc")})
    cases[["p_a", "p_b", "p_c"]] = 1 / 3
    assert classification.summarize(cases)["sensitivity"] == pytest.approx((1 / 2 + 1 / 2) / 2), "no case of c to find"


def test_the_classifier_s_rows_hold_truth_prediction_and_probabilities(images):
    rows = images.split("test")[:3]
    logits = torch.tensor([[0.0, 1, 2, 3], [9, 0, 0, 0], [0, 0, 5, 0]])
    table = classification.score_cases(images, rows, logits, final=True)
    assert table["prediction"].tolist() == [images.classes[n] for n in (3, 0, 2)]
    assert table["truth"].tolist() == images.cases.iloc[rows]["label"].tolist()
    columns = [f"p_{name}" for name in images.classes]
    assert np.allclose(table[columns], logits.softmax(1))
    shares = table[columns].sum(axis=1)
    assert np.allclose(shares, 1)


def scored(volumes, truth, predicted, spacing=(1.0, 1.0, 1.0)):
    """Score one volume of 8 voxels a side against a made-up truth, both given as structure indices."""
    data = dataclasses.replace(
        volumes, labels=truth.astype(np.uint8)[None], manifest=volumes.manifest | {"spacing_mm": spacing}
    )
    logits = torch.nn.functional.one_hot(torch.from_numpy(predicted).long(), 3).movedim(-1, 0)[None].float()
    return segmentation.score_cases(data, [0], logits, final=True).iloc[0]


def cube(start, stop, value=1):
    volume = np.zeros((8, 8, 8), int)
    volume[start:stop, 2:6, 2:6] = value
    return volume


def test_dice_and_hd95_by_hand(volumes):
    truth, predicted = cube(1, 5) + cube(6, 8, 2), cube(2, 6) + cube(6, 8, 2)
    row = scored(volumes, truth, predicted, spacing=(2.0, 1.0, 1.0))
    assert row["dice_LV"] == pytest.approx(2 * 48 / (64 + 64))
    assert row["dice_Myo"] == 1
    assert row["hd95_LV"] == pytest.approx(2.0), "one voxel of 2 mm, in mm"
    assert row["hd95_Myo"] == 0


def test_a_missed_structure_has_dice_0_and_no_distance(volumes):
    row = scored(volumes, cube(1, 5) + cube(6, 8, 2), cube(1, 5))
    assert (row["dice_LV"], row["dice_Myo"]) == (1, 0)
    assert np.isnan(row[["hd95_Myo", "assd_Myo"]].astype(float)).all()


def test_a_structure_the_reference_lacks_has_no_score(volumes):
    row = scored(volumes, cube(1, 5), cube(1, 5) + cube(6, 8, 2))
    assert row["dice_LV"] == 1
    assert np.isnan(row[["dice_Myo", "hd95_Myo", "assd_Myo"]].astype(float)).all()


def surface(volume, spacing):
    """Centres, in mm, of the voxels of a structure that have a neighbour outside (6 neighbours)."""
    inner = ndimage.binary_erosion(volume)
    return np.argwhere(volume & ~inner) * spacing


def test_assd_is_the_mean_distance_between_the_surfaces_in_mm(volumes):
    spacing = (2.0, 1.0, 1.5)
    truth, predicted = cube(1, 5), np.roll(cube(1, 6), 1, axis=2)
    one, other = (surface(volume == 1, spacing) for volume in (predicted, truth))
    apart = np.linalg.norm(one[:, None] - other[None], axis=2)
    both_ways = np.concatenate([apart.min(axis=0), apart.min(axis=1)])
    assert scored(volumes, truth, predicted, spacing)["assd_LV"] == pytest.approx(both_ways.mean(), rel=1e-5)
    assert scored(volumes, truth, truth, spacing)["assd_LV"] == 0


def test_means_leave_out_what_has_no_score():
    cases = pd.DataFrame({"patient": ["a", "b"], "dice_LV": [0.5, np.nan], "dice_Myo": [0.2, 0.4], "hd95_LV": [3, np.nan]})
    assert segmentation.summarize(cases) == pytest.approx({"dice_LV": 0.5, "dice_Myo": 0.3, "hd95_LV": 3})


def test_a_better_segmentation_has_a_lower_loss():
    labels = torch.randint(0, 3, (1, 1, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    right = 9 * torch.nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1).float()
    loss = segmentation.loss_function()
    assert loss(right, labels) < 0.05 < loss(right.flip(1), labels)
    assert segmentation.training_metric(right, labels) == 1


@pytest.mark.parametrize("task", tasks.TASKS)
def test_augmentation_keeps_shapes_and_labels(prepared, task):
    data = prepared[task]
    pictures, labels = data.load_batch(data.split("train")[:4])
    moved, moved_labels = tasks.get(task).augment(
        pictures, labels, torch.Generator().manual_seed(0), data, run_config(data, "centralized")
    )
    assert moved.shape == pictures.shape
    assert not torch.equal(moved, pictures)
    assert moved_labels.shape == labels.shape
    assert moved_labels.dtype == labels.dtype
    if task == "classification":
        assert torch.equal(moved_labels, labels)
    else:
        assert set(moved_labels.unique().tolist()) == {0, 1, 2}
