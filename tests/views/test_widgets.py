"""Widgets: each state has its picture, a move is drawn at once, and the numbers in it are those of the tables."""

import base64
import io
import re
import statistics as numbers
import time
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fedlib import analysis
from fedlib.config import StudyConfig
from fedlib.data import partition
from fedlib.study import experiment
from fedlib.training import execution
from fedlib.training.run_store import RunStore
from fedlib.views import plots, widgets
from tests.helpers import python, run_config

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def runs(prepared, tmp_path_factory):
    """A finished run of each mode, of both tasks."""
    store = RunStore(tmp_path_factory.mktemp("runs"))
    return {task: [experiment.run(run_config(data, mode), data, store) for mode in ("centralized", "local", "federated")]
            for task, data in prepared.items()}  # fmt: skip


def study(data, **changes):
    return StudyConfig.make(task=data.task, profile="smoke", out_dir="nowhere", **changes)


@pytest.fixture(params=["viewer", "partition_explorer", "round_player", "result_explorer"])
def explorer(request, data, runs):
    """Every widget of every task."""
    return {
        "viewer": lambda: widgets.viewer(data),
        "partition_explorer": lambda: widgets.partition_explorer(data, study(data)),
        "round_player": lambda: widgets.round_player(runs[data.task]),
        "result_explorer": lambda: widgets.result_explorer(analysis.compare(runs[data.task])),
    }[request.param]()


def drawn(shown):
    """The picture as a tree: it is well-formed, and says in words what it shows."""
    tree = ElementTree.fromstring(shown.picture)
    assert tree.get("role") == "img"
    assert len(tree.get("aria-label")) > 10
    return tree


def titles(shown):
    """What the marks say when pointed at."""
    return [title.text for title in drawn(shown).iter(f"{SVG}title")]


def pixels(shown):
    link = "{http://www.w3.org/1999/xlink}href"
    image = next(drawn(shown).iter(f"{SVG}image"))
    content = image.get("href") or image.get(link)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content.partition(",")[2]))))


def values(explorer):
    return dict(explorer.start)


def controls_of(box):
    return {one.description: one for one in box.children[0].children}


def test_every_control_moves_the_picture(explorer):
    box = explorer.live()
    picture = box.children[1]
    assert picture.value == explorer.draw(**explorer.start).picture
    slider = controls_of(box)[list(explorer.axes)[-1]]
    before = picture.value
    if hasattr(slider, "index"):
        slider.index = len(slider.options) - 1
    else:
        slider.value = slider.min if slider.value != slider.min else slider.value + 1
    assert picture.value != before
    assert "aria-live" in box.children[2].value


def test_every_control_has_a_name(explorer):
    assert all(name and len(name) > 2 for name in controls_of(explorer.live()))


def test_every_still_of_the_twin_is_another(explorer):
    frames = re.findall(r'<div class="frame" data-caption="([^"]*)"( hidden)?>', explorer.twin())
    assert len(frames) == np.prod([len(options) for options in explorer.axes.values()])
    assert sum(not hidden for _, hidden in frames) == 1
    assert len({caption for caption, _ in frames}) == len(frames)


def test_a_twin_is_light(explorer):
    assert len(explorer.twin()) < 500_000


def test_without_a_front_end_the_twin_is_all(explorer):
    assert set(explorer._repr_mimebundle_()) == {"text/html", "text/plain"}


def test_with_a_front_end_the_twin_comes_along(explorer, monkeypatch):
    monkeypatch.setattr("fedlib.views.widgets.explorer.is_live", lambda: True)
    bundle = explorer._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain", "application/vnd.jupyter.widget-view+json"}
    assert bundle["text/plain"] == repr(explorer)


def test_a_move_is_drawn_within_a_tenth_of_a_second(explorer):
    """Of the processor's time: a test must not fail because others compute."""
    states = [explorer.start | change for change in list(explorer.axes.values())[-1].values()]
    took = []
    for n in range(30):
        began = time.thread_time()
        explorer.draw(**states[n % len(states)])
        took.append(time.thread_time() - began)
    assert numbers.median(took) < 0.1


def test_batch_runs_do_not_wait_for_ipywidgets():
    done = python("-c", "import sys, fedlib.views.widgets; print('ipywidgets' in sys.modules)")
    assert done.stdout.strip() == "False"


def test_images_are_stepped_through_and_named(images):
    rows = images.split("test")[:3]
    viewer = widgets.viewer(images, rows, {"all normal": np.full(3, images.classes.index("Normal"))})
    shown = viewer.draw(**values(viewer) | {"number": 2})
    assert np.array_equal(pixels(shown), images.images[rows[1], 0])
    assert shown.caption == f"image 2 of 3: {images.classes[images.labels[rows[1]]]}; all normal: Normal"


def test_a_narrow_window_is_black_and_white(images):
    viewer = widgets.viewer(images)
    narrow = pixels(viewer.draw(**values(viewer) | {"window": 1, "level": 100}))
    assert set(np.unique(narrow)) <= {0, 255, *range(110, 145)}, "one grey value lies within"
    high = pixels(viewer.draw(**values(viewer) | {"window": 100, "level": 200})).mean()
    assert high < pixels(viewer.draw(**values(viewer) | {"window": 100, "level": 60})).mean()


def test_window_and_level_of_a_ct_are_hounsfield_units(volumes):
    viewer = widgets.viewer(volumes)
    low, high = next(one["value"] for one in volumes.manifest["choices"] if one["setting"] == "window")
    assert viewer.start["window"] == high - low
    assert viewer.start["level"] == (high + low) / 2
    assert "window, HU" in controls_of(viewer.live())


@pytest.mark.parametrize(("cut", "axis"), [("slices", 2), ("across, from the front", 1), ("across, from the side", 0)])
def test_a_cut_shows_its_plane_with_true_and_predicted_outlines(volumes, cut, axis):
    rows = volumes.split("test")[:2]
    moved = np.roll(volumes.labels[rows], 2, axis=3)
    viewer = widgets.viewer(volumes, rows, {"moved": moved})
    index = int((volumes.labels[rows[1]] > 0).sum(axis=tuple({0, 1, 2} - {axis})).argmax())
    state = values(viewer) | {"case": 1, "cut": cut, "position": index + 1, "outline": "true and moved"}
    shown = viewer.draw(**state)
    plane = np.take(volumes.images[rows[1], 0], index, axis=axis)
    assert np.array_equal(pixels(shown), plane[::-1, ::-1].T)
    paths = list(drawn(shown).iter(f"{SVG}path"))
    assert [bool(path.get("stroke-dasharray")) for path in paths] == [False, False, True, True]
    assert f"{index + 1} of {volumes.images.shape[2 + axis]}" in shown.caption


def test_an_outline_lies_on_the_border_of_its_structure(volumes):
    viewer = widgets.viewer(volumes)
    row = volumes.split("train")[0]
    index = int((volumes.labels[row] == 1).sum(axis=(0, 1)).argmax())
    shown = viewer.draw(**values(viewer) | {"position": index + 1, "outline": "true"})
    path = list(drawn(shown).iter(f"{SVG}path"))[-1]  # the left ventricle is drawn last, on top
    corners = np.array([[float(n) for n in pair.split()] for pair in re.split("[MLZ]+", path.get("d")) if pair])
    mask = (volumes.labels[row][..., index] == 1)[::-1, ::-1].T
    rows, columns = np.nonzero(mask)
    pixel = 320 / max(mask.shape)
    assert corners.min(axis=0) == pytest.approx(np.array([columns.min(), rows.min()]) * pixel, abs=0.51 * pixel)
    assert corners.max(axis=0) == pytest.approx(np.array([columns.max() + 1, rows.max() + 1]) * pixel, abs=0.51 * pixel)


def test_predictions_of_other_cases_are_refused(volumes):
    with pytest.raises(ValueError, match=r"predictions\['one'\]: 1 cases, expected 2"):
        widgets.viewer(volumes, volumes.split("test")[:2], {"one": volumes.labels[:1]})


@pytest.mark.parametrize(("kind", "need"), [("balanced", {}), ("unbalanced", {"ratio": 3}), ("label_skew", {"alpha": 0.5})])
def test_bars_are_the_partition_of_the_runs(images, kind, need):
    explorer = widgets.partition_explorer(images, study(images))
    shown = explorer.draw(**values(explorer) | {"clients": 3, "kind": kind, "seed": 2, **need})
    told = {"partition": kind, "unbalance_ratio": need.get("ratio", 1), "alpha": need.get("alpha", 0.5)}
    config = run_config(images, "federated", n_clients=3, seed=2, **told)
    table = partition.table(images.cases, partition.clients_of(config, images)).drop(columns=["total", "share"])
    counts = {f"client {client}, {name.replace('_', ' ')}: {count}" for client, row in table.iterrows()
              for name, count in row.items()}  # fmt: skip
    assert set(titles(shown)) == counts


def test_what_cannot_be_dealt_is_a_sentence(images):
    explorer = widgets.partition_explorer(images, study(images))
    shown = explorer.draw(**values(explorer) | {"clients": 16, "kind": "balanced"})
    assert "n_clients = 16" in shown.caption
    assert 'role="alert"' in shown.picture


def test_only_the_controls_that_a_partition_needs_are_on(images, volumes):
    controls = controls_of(widgets.partition_explorer(images, study(images)).live())
    for kind, on in {"balanced": set(), "unbalanced": {"ratio"}, "label_skew": {"alpha"}}.items():
        controls["partition"].value = kind
        assert {name for name in ("ratio", "alpha", "group by") if not controls[name].disabled} == on
    assert "label_skew" not in controls_of(widgets.partition_explorer(volumes, study(volumes)).live())["partition"].options


def test_a_round_shows_what_the_tables_say(runs, data):
    federated = runs[data.task][2]
    player = widgets.round_player(federated)
    shown = player.draw(run=0, round=1)
    clients = federated.clients[federated.clients["round"] == 1]
    losses = {f"client {row.client + 1}: {row.loss:.3f}" for row in clients.itertuples()}
    weights = {f"client {row.client + 1}: {row.n / clients['n'].sum():.3f}" for row in clients.itertuples()}
    assert losses | weights <= set(titles(shown))
    first = federated.rounds.iloc[0]
    assert all(f"{first[metric]:.3f}" in shown.caption for metric in execution.tasks.get(data.task).PRIMARY)
    assert "round 1 of 2" in shown.caption
    assert len(titles(player.draw(run=0, round=2))) == len(titles(shown))


def test_predictions_are_played_where_there_is_one_model(runs, data):
    player, federated = widgets.round_player(runs[data.task]), runs[data.task][2]
    shown = player.draw(run=2, round=1)
    cases = federated.validation.query("round == 1")
    if data.task == "classification":
        right = {f"{name}: {(own['prediction'] == name).sum()} of {len(own)} right" for name, own in cases.groupby("truth")}
        assert right <= set(titles(shown))
        wrong = [title for title in titles(shown) if "taken for" in title or "none wrong" in title]
        assert len(wrong) == cases["truth"].nunique()
    else:
        assert {f"volume 1, DSC, myocardium: {cases['dice_Myo'].iloc[0]:.3f}"} <= set(titles(shown))
    assert len(titles(player.draw(run=0, round=1))) < len(titles(shown)), "centralized: no average"


def test_a_client_that_was_absent_is_called_that(images, tmp_path):
    record = RunStore(tmp_path).begin(run_config(images, "federated"))
    row = {"round": 1, "client": 0, "n": 10, "loss": 1.0}
    record.log_clients([row, {"round": 1, "client": 1, "n": 0, "absent": "client 1: late"}])
    record.log_rounds([{"round": 1, "accuracy": 0.5, "sensitivity": 0.5}])
    run = record.finish({}, {"weights_sha256": "w"})
    shown = widgets.round_player(run).draw(run=0, round=1)
    assert "absent" in [text.text for text in drawn(shown).iter(f"{SVG}text")]
    assert "client 1: 1.000" in titles(shown)


def test_play_moves_the_rounds(runs):
    box = widgets.round_player(runs["classification"]).live()
    controls = controls_of(box)
    before = box.children[1].value
    controls["play the rounds"].value = 1
    assert controls["round"].value == 1
    assert box.children[1].value != before


def test_results_are_those_of_the_table(runs, data):
    table = analysis.compare(runs[data.task])
    explorer = widgets.result_explorer(table)
    metric = table["metric"].iloc[-1]
    shown = explorer.draw(metric=metric, show="score", mode="all", partition="all")
    assert {title.partition(" [")[0].rpartition(": ")[2] for title in titles(shown)} == {
        f"{value:.3f}" for value in table.loc[table["metric"] == metric, "value"]
    }
    local = explorer.draw(metric=metric, show="difference from centralized", mode="local", partition="all")
    (title,) = titles(local)
    assert title.startswith("local, 2 clients, balanced")
    assert "verdict" in local.below
    dashes = [line.get("stroke-dasharray") for line in drawn(local).iter(f"{SVG}polyline")]
    assert [dashes.count(kind) for kind in ("4 4", "1 4")] == [1, 2], "no difference, and the margin on both sides"


def test_the_worst_cases_come_first(runs, data):
    run = runs[data.task][0]
    rows = plots.worst_first(run, data)
    assert sorted(rows) == sorted(data.split("test"))
    cases = run.cases.set_index("case").loc[data.cases["case"].iloc[rows]]
    if data.task == "classification":
        scores = [case[f"p_{case['truth']}"] for _, case in cases.iterrows()]
    else:
        scores = list(cases[["dice_LV", "dice_Myo"]].mean(axis=1))
    assert scores == sorted(scores)


def test_nothing_to_show_is_an_error_in_words(runs):
    with pytest.raises(ValueError, match="at least one finished run"):
        widgets.round_player([])
    with pytest.raises(ValueError, match="no arm"):
        widgets.result_explorer(analysis.compare(runs["classification"]).iloc[:0])
