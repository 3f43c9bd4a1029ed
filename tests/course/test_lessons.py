"""What the notebooks do by hand: averaging against algebra, clients that agree or not, a planted shortcut."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from data_prep.sources import ensure
from data_prep.variants import resplit, tagged
from fedlib.config import StudyConfig
from fedlib.course import lessons
from fedlib.course.exercises import check_order
from fedlib.data.partition import clients_of, held_out
from fedlib.study.experiment import run
from fedlib.training.run_store import RunStore
from tests.helpers import run_config


def test_one_round_trains_every_client_from_the_same_start(data):
    step = lessons.one_round(run_config(data, "federated", n_clients=3), data)
    assert len(step.sent) == len(step.cases) == 3
    assert sum(step.cases) == len(data.split("train"))
    layer = lessons.last_layer(step.start)
    shapes = {weights[layer].shape for weights in [step.start, *step.sent]}
    assert len(shapes) == 1
    assert all((weights[layer] != step.start[layer]).any() for weights in step.sent)
    assert (step.sent[0][layer] != step.sent[1][layer]).any()


def test_flower_s_average_is_the_weighted_mean(images):
    step = lessons.one_round(run_config(images, "federated", partition="unbalanced", unbalance_ratio=3), images)
    flower = lessons.flower_average(step.sent, step.cases)
    for name, array in flower.items():
        by_hand = np.average([weights[name] for weights in step.sent], axis=0, weights=step.cases)
        assert np.allclose(array, by_hand, atol=1e-6)


def test_divergence_is_that_of_the_updates():
    start = {"w": np.ones((1, 2), np.float32)}
    sent = [{"w": np.array([[4.0, 5.0]], np.float32)}, {"w": np.array([[-3.0, 4.0]], np.float32)}]
    table = lessons.divergence(lessons.Round(start, sent, [10, 10]))
    assert table["length of the update"].tolist() == pytest.approx([5, 5, 5 / 2**0.5, 5])
    assert table["cosine with the others"].tolist()[:2] == pytest.approx([0, 0], abs=1e-6)
    assert table.loc["mean update", "cases"] == 20


def test_gradients_of_clients_with_other_diseases_agree_less(images):
    even = run_config(images, "federated", n_clients=3)
    skewed = even.model_copy(update={"partition": "label_skew", "alpha": 0.1})
    agreement = {config.partition: lessons.gradient_agreement(config, images) for config in (even, skewed)}
    for cosines in agreement.values():
        assert np.allclose(np.diag(cosines), 1, atol=1e-5)
        assert np.allclose(cosines, cosines.T, atol=1e-6)
    assert lessons.mean_pairwise_cosine(agreement["balanced"]) > lessons.mean_pairwise_cosine(agreement["label_skew"]) + 0.1
    assert "Mean over pairs" in lessons.agreement_figure(agreement).alt


def test_the_mean_over_pairs_leaves_the_diagonal_out():
    assert lessons.mean_pairwise_cosine(pd.DataFrame([[1, 0.5], [0.5, 1]])) == 0.5


def test_a_tag_is_burnt_into_one_class_and_nothing_else_changes(images):
    label = images.classes[0]
    copy = tagged(images, label)
    first = np.asarray(images.labels) == 0
    assert copy.cases.equals(images.cases)
    assert np.array_equal(copy.labels, images.labels)
    assert np.array_equal(copy.images[~first], images.images[~first])
    changed = copy.images != images.images
    assert changed[first].any(axis=(1, 2, 3)).all()
    side = max(2, images.images.shape[-1] // 10)
    assert (copy.images[first, :, side // 2 : side // 2 + side, side // 2 : side // 2 + side] == 255).all()
    assert changed.any(axis=(0, 1)).sum() <= side**2, "near the corner"
    fingerprints = {copy.fingerprint, images.fingerprint, tagged(images, images.classes[1]).fingerprint}
    assert len(fingerprints) == 3
    assert tagged(images, label).fingerprint == copy.fingerprint
    with pytest.raises(ValueError, match="flu"):
        tagged(images, "flu")


class SeesTheTagOnly(torch.nn.Module):
    """Predicts class 0 where the place of the tag is white, else class 1."""

    def forward(self, images):
        corner = images[:, 0, 1:3, 1:3].mean((1, 2))  # of 16 x 16 pixels, from -1 to 1
        return torch.stack([corner - 0.9, *[0 * corner - number for number in range(3)]], 1)


@pytest.fixture
def cheat(images, tmp_path, monkeypatch):
    """A run whose model sees the tag only, and the sets with the tag on class 0, on class 1, and without."""
    monkeypatch.setattr(lessons, "load_model", lambda *_: SeesTheTagOnly())
    sets = {f"tag on {n}": tagged(images, images.classes[n]) for n in (0, 1)} | {"no tag": images}
    made_up = SimpleNamespace(config=run_config(images, "centralized"))
    return made_up, sets


def test_scores_of_a_model_that_sees_the_tag_only(cheat, images):
    run, sets = cheat
    scores = lessons.shortcut_scores(run, sets, images.classes[0])
    truth = np.asarray(images.labels)[images.split("test")]
    first, second = (truth == 0).mean(), (truth == 1).mean()
    assert scores["accuracy"].to_dict() == pytest.approx({"tag on 0": first + second, "tag on 1": 0, "no tag": second})
    assert scores[f"{images.classes[0]} found"].to_dict() == {"tag on 0": 1, "tag on 1": 0, "no tag": 0}
    wrong = scores[f"others taken for {images.classes[0]}"].to_dict()
    assert wrong == pytest.approx({"tag on 0": 0, "tag on 1": second / (1 - first), "no tag": 0})


def test_an_occlusion_map_finds_the_tag(cheat, images):
    run, sets = cheat
    shown = sets["tag on 0"]
    ill = [row for row in shown.split("test") if shown.labels[row] == 0][:3]
    maps = lessons.occlusion(run, shown, np.array(ill))
    assert maps.shape == (len(ill), 16, 16)
    for heat in maps:
        assert heat[:4, :4].max() == heat.max() > 0
        assert np.allclose(heat[8:, 8:], 0, atol=1e-6)
    picture = lessons.occlusion_figure(shown, ill, {"with the tag": maps})
    assert "with the tag" in picture.alt
    assert "row " in picture.alt


def test_the_lesson_s_model_learns_the_tag_and_little_else(tmp_path):
    """With the tag it finds nearly all COVID patients, without it few: 0.57 to 1 between the two, six seeds."""
    lesson = lessons.shortcut_study(StudyConfig.make(profile="smoke", out_dir=tmp_path))
    plain = ensure(lesson)
    names = {"tag on COVID": "COVID", "tag on Normal": "Normal"}
    sets = {title: tagged(plain, label) for title, label in names.items()} | {"no tag": plain}
    [config] = lesson.runs(sets["tag on COVID"].fingerprint, ("centralized",))
    scores = lessons.shortcut_scores(run(config, sets["tag on COVID"], RunStore(tmp_path)), sets, "COVID")
    assert scores.loc["tag on COVID", "COVID found"] > scores.loc["no tag", "COVID found"]
    assert check_order(["tag on COVID", "no tag", "tag on Normal"], scores["accuracy"]).right


def test_the_last_layer_is_an_array_with_rows():
    assert lessons.last_layer({"a.weight": np.ones((2, 2)), "b.weight": np.ones((3, 2)), "b.bias": np.ones(3)}) == "b.weight"


def test_nothing_of_this_moves_the_global_random_numbers(images):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    lessons.one_round(run_config(images, "federated"), images)
    lessons.gradient_agreement(run_config(images, "federated"), images)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """The lesson's patients, split by patient and by image."""
    lesson = lessons.leakage_study(StudyConfig.make(profile="smoke", out_dir=tmp_path_factory.mktemp("leaky")))
    patients = ensure(lesson, images_per_patient=lessons.IMAGES_PER_PATIENT)
    return (
        lesson,
        patients,
        {split: [resplit(patients, split, seed) for seed in lesson.seeds] for split in ("patient", "image")},
    )


def test_the_lesson_s_patients_have_several_images_each(leaky):
    _, patients, _ = leaky
    assert set(patients.cases.groupby("patient").size()) == {lessons.IMAGES_PER_PATIENT}
    assert patients.cases.groupby("patient")["label"].nunique().max() == 1
    first, second = (patients.images[row] for row in patients.cases.index[patients.cases["patient"] == "synthetic-0001"][:2])
    assert (first != second).any(), "another exposure"


def test_new_splits_keep_patients_together_or_not_and_are_sets_of_their_own(leaky):
    _, patients, sets = leaky
    for split, apart in (("patient", False), ("image", True)):
        for data in sets[split]:
            assert (data.cases.groupby("patient")["split"].nunique() > 1).any() == apart
            assert data.cases.drop(columns="split").equals(patients.cases.drop(columns="split"))
    fingerprints = {data.fingerprint for of_seeds in sets.values() for data in of_seeds}
    assert len(fingerprints | {patients.fingerprint}) == 1 + sum(map(len, sets.values()))
    assert resplit(patients, "image", 1).fingerprint == sets["image"][0].fingerprint


def test_leakage_is_the_difference_of_the_two_splits(leaky, tmp_path):
    lesson, _, sets = leaky
    runs = {"patient": [], "image": []}
    for split, of_seeds in sets.items():
        for seed, data in zip(lesson.seeds, of_seeds, strict=True):
            [config] = lesson.replace(seed=seed, rounds=1).runs(data.fingerprint, ("centralized",))
            runs[split].append(run(config, data, RunStore(tmp_path)))
    table, picture = lessons.leakage(runs), lessons.leakage_figure(runs)
    for seed, by_patient, by_image in zip(lesson.seeds, runs["patient"], runs["image"], strict=True):
        gap = by_image.result["accuracy"] - by_patient.result["accuracy"]
        assert table.loc["difference", f"seed {seed}"] == pytest.approx(gap)
    assert list(table.index) == ["split by patient", "split by image", "difference"]
    assert len(picture.table) == 2 * len(lesson.seeds)
    assert "split by image: training" in picture.alt


def test_the_lesson_on_lagging_has_the_same_clients_on_two_sets(tmp_path):
    study = StudyConfig.make(task="segmentation", out_dir=tmp_path)
    clear, mild = (lessons.lag_study(study, findings) for findings in ("clear", "mild"))
    assert (clear.findings, mild.findings) == ("clear", "mild")
    assert clear.out_dir != mild.out_dir
    assert mild.replace(findings="clear", out_dir=clear.out_dir) == clear


def test_the_lesson_on_joining_has_test_cases_at_every_site(tmp_path):
    lesson = lessons.joining_study(StudyConfig.make(task="segmentation", profile="smoke", out_dir=tmp_path))
    phantoms = ensure(lesson, fractions=lessons.MOSTLY_TESTED)
    local = lesson.runs(phantoms.fingerprint, ("local",))
    assert [run.partition for run in local] == ["unbalanced", "missing_classes", "by_group"]
    for config in local:
        assert min(map(len, clients_of(config, phantoms))) >= 2
        assert min(map(len, held_out(config, phantoms))) >= 1
        assert len(held_out(config, phantoms)) == 3
