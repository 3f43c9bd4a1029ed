"""Sentences of the notebooks that tell what a run in profile `quick` showed: they still hold, on any processor roughly."""

import re

import nbformat
import pytest

from data_prep.sources import ensure
from fedlib.config import StudyConfig
from fedlib.course import lessons
from fedlib.data import partition
from fedlib.study.experiment import run_all
from fedlib.study.runner import NOTEBOOKS
from fedlib.training.run_store import RunStore

pytestmark = pytest.mark.slow
TASKS = ("classification", "segmentation")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The study of each task, and its phantoms."""
    out = tmp_path_factory.mktemp("quick")
    studies = {task: StudyConfig.make(task=task, out_dir=out) for task in TASKS}
    return {task: (study, ensure(study)) for task, study in studies.items()}


def told(name, words):
    """The numbers in the first sentence of a notebook that matches."""
    text = " ".join(cell.source for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).cells).replace("\n", " ")
    [sentence] = re.findall(words, text)
    return [float(number) for number in re.findall(r"\d\.\d+", sentence)]


def cosine(study, data, name):
    """Of the updates of two clients after their first round, as notebook 03 shows it."""
    [config] = study.replace(client_counts=2, partitions=name).runs(data.fingerprint, ("federated",))
    return lessons.divergence(lessons.one_round(config, data))["cosine with the others"].iloc[0]


def test_03_updates_of_x_rays_have_little_in_common_and_those_of_hearts_more(quick):
    found = [cosine(*quick[task], name) for task in TASKS for name in ("balanced", "unbalanced")]
    assert found == pytest.approx(told("03_federated_simulation", r"ResNet18's near 0 .*?Three things"), abs=0.1)
    assert max(found[:2]) < min(found[2:])


def test_01_a_client_lacks_a_class_at_the_default_alpha_and_none_at_2(quick):
    study, data = quick["classification"]
    lacking = {}
    for alpha in (0.5, 2):
        skewed = study.replace(partitions="label_skew", alpha=alpha)
        *_, most = skewed.runs(data.fingerprint, ("local",))
        lacking[alpha] = (partition.table(data.cases, partition.clients_of(most, data)) == 0).to_numpy().sum()
    assert lacking == {0.5: 1, 2: 0}


def test_03_a_federation_lags_until_its_clients_have_taken_as_many_steps(quick):
    study, scores = quick["classification"][0], []
    for findings in ("clear", "mild"):
        lesson = lessons.lag_study(study, findings)
        data, store = ensure(lesson), RunStore(lesson.out_dir)
        runs = run_all(lesson.runs(data.fingerprint, ("centralized", "federated")), data, store)
        scores += [run.result["accuracy"] for run in reversed(runs)]
    longer = lesson.replace(rounds=44)  # exercise 4: as many steps as the centralized run took
    [run] = run_all(longer.runs(data.fingerprint, ("federated",)), data, store)
    found = [*scores, run.result["accuracy"]]
    assert found == pytest.approx(told("03_federated_simulation", r"we saw 0\.93 against.*?still rising"), abs=0.06)
