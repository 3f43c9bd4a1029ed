"""Widgets: every state has its frame and caption, a page stays light, and the numbers are those of the tables."""

import base64
import io
import itertools
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from fedlib.config import StudyConfig
from fedlib.data import partition
from fedlib.study import experiment
from fedlib.training import execution
from fedlib.training.run_store import RunStore
from fedlib.views import plots, widgets
from fedlib.views.player import Frame, Player
from tests.conftest import TASKS
from tests.helpers import run_config

NAMES = ("viewer", "partition_explorer", "round_player")


@pytest.fixture(scope="module")
def runs(prepared, tmp_path_factory):
    """A finished run of each mode, of both tasks."""
    store = RunStore(tmp_path_factory.mktemp("runs"))
    return {task: [experiment.run(run_config(data, mode), data, store) for mode in ("centralized", "local", "federated")]
            for task, data in prepared.items()}  # fmt: skip


def study(data, **changes):
    return StudyConfig.make(task=data.task, profile="smoke", out_dir="nowhere", **changes)


@pytest.fixture(scope="module", params=itertools.product(NAMES, TASKS), ids="-".join)
def player(request, prepared, runs):
    """Every widget of every task."""
    name, task = request.param
    data = prepared[task]
    return {
        "viewer": lambda: widgets.viewer(data),
        "partition_explorer": lambda: widgets.partition_explorer(data, study(data)),
        "round_player": lambda: widgets.round_player(runs[task]),
    }[name]()


@pytest.fixture
def figures(monkeypatch):
    """The figures of the frames instead of their images, which take most of the time."""
    collected = []
    monkeypatch.setattr(widgets, "figure_url", lambda figure: collected.append(figure) or plt.close(figure) or "data:,")
    return collected


def frame_of(player, *options):
    """The frame that a player shows for these options, in the order of its controls."""
    return player.frames[list(itertools.product(*player.controls.values())).index(options)]


def pixels(frame):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(frame.image.partition(",")[2]))))


def test_every_combination_has_its_own_caption_and_one_is_shown(player):
    page = BeautifulSoup(player._repr_html_(), "html.parser")
    frames = page.select(".frame")
    assert len(frames) == np.prod([len(options) for options in player.controls.values()])
    (shown,) = [frame for frame in frames if not frame.has_attr("hidden")]
    assert shown["data-caption"] == page.output.text
    captions = [frame["data-caption"] for frame in frames]
    assert len(set(captions)) == len(captions)
    assert min(map(len, captions)) > 10
    assert [image["alt"] for image in page.select("img")] == [frame["data-caption"] for frame in frames if frame.img]


def test_every_control_has_a_name_and_an_order(player):
    page = BeautifulSoup(player._repr_html_(), "html.parser")
    assert [label.find(string=True).strip() for label in page.select("label")] == list(player.controls)
    for control, options in zip(page.select("select, input"), player.controls.values(), strict=True):
        assert int(control["data-options"]) == len(options)


def test_a_page_stays_light_and_needs_nothing_from_outside(player):
    html = player._repr_html_()
    assert len(html) < 1_000_000
    assert re.findall(r'(?:src|href)="(?!data:)', html) == []
    assert plt.get_fignums() == [], "every figure is closed"


def test_words_cannot_break_the_page():
    player = Player(lambda name: Frame("data:,", f'<b>{name}</b> & "quoted"'), {"a <i>": ["x'", 'y"']})
    page = BeautifulSoup(player._repr_html_(), "html.parser")
    assert not page.select("b, i")
    assert page.output.text == '<b>x\'</b> & "quoted"'
    assert [option.text for option in page.select("option")] == ["x'", 'y"']


def test_images_are_those_of_the_set(images):
    player = widgets.viewer(images)
    window, number = next(iter(player.controls["grey values"])), player.controls["image"][1]
    row = images.split("train")[number - 1]
    frame = frame_of(player, window, number)
    assert np.array_equal(pixels(frame), images.images[row, 0])
    assert frame.caption.endswith(images.classes[images.labels[row]].replace("_", " "))


def test_a_narrow_window_shows_more_contrast_and_a_high_level_is_dark(images):
    player = widgets.viewer(images)
    whole, dark, middle, bright = (
        pixels(frame_of(player, window, 1)).astype(float) for window in player.controls["grey values"]
    )
    assert middle.std() > whole.std()
    assert dark.mean() > middle.mean() > bright.mean()


def test_the_window_of_a_ct_is_in_hounsfield_units(volumes):
    low, high = next(one["value"] for one in volumes.manifest["choices"] if one["setting"] == "window")
    assert widgets.viewer(volumes).controls["show"][0] == f"window {high - low:.0f}, level {(high + low) / 2:.0f} (HU)"


def test_the_truth_is_hidden_until_the_reader_asks(images):
    rows = images.split("test")[:3]
    player = widgets.viewer(images, rows, {"all normal": np.full(3, images.classes.index("Normal"))})
    for frame, row in zip(player.frames, rows, strict=False):
        assert not any(name.replace("_", " ") in frame.caption for name in images.classes)
        answer = BeautifulSoup(frame.below, "html.parser").details
        assert not answer.has_attr("open")
        assert f"truth: {images.classes[images.labels[row]].replace('_', ' ')}; all normal: Normal" in answer.text


def test_outlines_of_volumes_are_shown_when_asked_for(volumes):
    rows = volumes.split("test")[:2]
    player = widgets.viewer(volumes, rows, {"moved": np.roll(volumes.labels[rows], 2, axis=3)})
    names, shows, slices = player.controls.values()
    assert player.first[1] == 0
    coloured = {}
    for show in shows:
        frames = [pixels(frame_of(player, names[1], show, position)).astype(int) for position in slices]
        coloured[show] = sum((frame.max(axis=2) - frame.min(axis=2) > 60).sum() for frame in frames)
    whole, truth, both = (coloured[show] for show in shows)
    assert (shows[1:], whole) == (["truth", "truth and moved"], 0)
    assert 0 < truth < both
    assert "LV outlined in orange" in frame_of(player, names[0], "truth", slices[0]).caption


def test_predictions_of_other_cases_are_refused(volumes):
    with pytest.raises(ValueError, match=r"predictions\['one'\]: 1 cases, expected 2"):
        widgets.viewer(volumes, volumes.split("test")[:2], {"one": volumes.labels[:1]})


@pytest.mark.parametrize(
    ("setting", "changes"),
    [
        ("balanced", {"partition": "balanced"}),
        ("unbalanced, seed 2", {"partition": "unbalanced"}),
        ("quantity skew, ratio 3", {"partition": "quantity_skew", "unbalance_ratio": 3}),
        ("missing classes, 1", {"partition": "missing_classes", "n_missing": 1}),
        ("label skew, alpha 0.5", {"partition": "label_skew", "alpha": 0.5}),
    ],
)
def test_bars_are_the_partition_of_the_runs(images, setting, changes, figures):
    player = widgets.partition_explorer(images, study(images, client_counts="2,3", seed=2, unbalance_ratio=3, alpha=0.5))
    config = run_config(images, "federated", n_clients=3, seed=2, **changes)
    sizes = ", ".join(str(len(rows)) for rows in partition.clients_of(config, images))
    assert f"3 clients, {setting}: {sizes}" in frame_of(player, 3, setting).caption


def test_a_client_without_a_class_is_named(images, figures):
    player = widgets.partition_explorer(images, study(images, client_counts=4, seed=1))
    config = run_config(images, "federated", n_clients=4, seed=1, partition="label_skew", alpha=0.1)
    table = partition.table(images.cases, partition.clients_of(config, images)).drop(columns=["total", "share"])
    missing = [
        f"Client {client} has no {name.replace('_', ' ')}." for name in table for client in table.index[table[name] == 0]
    ]
    assert missing
    assert [words for words in missing if words not in frame_of(player, 4, "label skew, alpha 0.1").caption] == []


def test_an_impossible_partition_is_a_sentence(images, figures):
    player = widgets.partition_explorer(images, study(images, client_counts="2,16"))
    frame = frame_of(player, 16, "balanced")
    assert "n_clients = 16" in frame.caption
    assert frame.image == ""


def test_hearts_have_no_label_skew(volumes, figures):
    settings = widgets.partition_explorer(volumes, study(volumes)).controls["partition"]
    assert settings[0] == "balanced"
    assert not any("label skew" in setting for setting in settings)


def test_a_round_shows_what_the_tables_say(runs, data, figures):
    federated = runs[data.task][2]
    player = widgets.round_player(federated)
    first = federated.rounds.iloc[0]
    assert "round 1 of 2" in player.frames[0].caption
    assert all(f"{first[metric]:.3f}" in player.frames[0].caption for metric in execution.tasks.get(data.task).PRIMARY)
    losses, predictions = figures[1].axes
    (key,) = figures[1].legends
    for line, (_, part) in zip(losses.lines, federated.clients.groupby("client"), strict=True):
        assert line.get_ydata().tolist() == part["loss"].tolist()
    clients = federated.clients[federated.clients["round"] == 2]
    weights = [f"client {row.client + 1}: {row.n / clients['n'].sum():.2f}" for row in clients.itertuples()]
    assert [text.get_text() for text in key.get_texts()] == weights
    cases = federated.validation.query("round == 2")
    if data.task == "classification":
        heights = [bar.get_height() for bar in predictions.containers[0]]
        assert heights == [(part["prediction"] == name).mean() for name, part in cases.groupby("truth")]
    else:
        assert predictions.lines[1].get_ydata().tolist() == cases["dice_Myo"].tolist()


def test_clients_differ_without_colour_too_and_nothing_is_clipped(tmp_path, figures):
    """Sixteen clients: the fault of lines that were all blue, and of labels that ran off the top."""
    config = StudyConfig.make(profile="smoke", out_dir=tmp_path, client_counts=16).runs("f" * 64, ("federated",))[0]
    record = RunStore(tmp_path).begin(config)
    record.write_table("rounds.csv", [{"round": n, "accuracy": 0.5, "sensitivity": 0.5} for n in (1, 2)])
    record.write_table(
        "clients.csv", [{"round": n, "client": c, "n": 10, "loss": (1 + c) / n} for n in (1, 2) for c in range(16)]
    )
    widgets.round_player(record.finish({}, {"weights_sha256": "w"}))
    for figure in figures:
        figure.draw_without_rendering()
        styles = {(line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines}
        assert len(styles) == 16
        texts = [text for axis in figure.axes for text in (axis.title, axis.xaxis.label)]
        texts += figure.legends[0].get_texts()
        inside = figure.bbox.padded(1)
        boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
        assert all(inside.contains(*box.min) and inside.contains(*box.max) for box in boxes)


def test_a_client_that_was_absent_is_called_that(images, tmp_path, figures):
    record = RunStore(tmp_path).begin(run_config(images, "federated"))
    rows = [{"round": n, "client": c, "n": 10, "loss": 1.0} for n in (1, 2) for c in (0, 1)]
    rows[3] |= {"n": 0, "loss": np.nan, "absent": "client 1: late"}
    record.write_table("clients.csv", rows)
    record.write_table("rounds.csv", [{"round": n, "accuracy": 0.5, "sensitivity": 0.5} for n in (1, 2)])
    widgets.round_player(record.finish({}, {"weights_sha256": "w"}))
    assert [[text.get_text() for text in figure.legends[0].get_texts()] for figure in figures] == [
        ["client 1: 0.50", "client 2: 0.50"],
        ["client 1: 1.00", "client 2: absent"],
    ]


def test_clients_that_were_not_drawn_or_tell_no_loss_are_shown_without(images, tmp_path, figures):
    for name, changes in (("sampled", {"fraction_train": 0.5}), ("private", {"privacy": "local", "batch_norm": "group"})):
        record = RunStore(tmp_path / name).begin(run_config(images, "federated", **changes))
        rows = [{"round": 1, "client": 0, "n": 10, "loss": 1.0}, {"round": 2, "client": 1, "n": 10, "loss": 1.0}]
        if name == "private":
            rows = [{"round": n, "client": c, "n": 10} for n in (1, 2) for c in (0, 1)]
            said = pd.DataFrame({"case": ["a"], "patient": ["a"], "truth": ["x"], "prediction": ["x"], "source": [""]})
            for n in (1, 2):
                record.log_validation(n, said)
        record.write_table("clients.csv", rows)
        record.write_table("rounds.csv", [{"round": n, "accuracy": 0.5, "sensitivity": 0.5} for n in (1, 2)])
        widgets.round_player(record.finish({}, {"weights_sha256": "w"}))
    labels = [[text.get_text() for legend in figure.legends for text in legend.get_texts()] for figure in figures]
    assert labels == [["client 1: 1.00", "client 2: not drawn"], ["client 1: not drawn", "client 2: 1.00"], [], []]


def test_the_worst_cases_come_first(runs, data):
    run = runs[data.task][0]
    rows = plots.rank_by_error(run, data)
    assert sorted(rows) == sorted(data.split("test"))
    cases = run.cases.set_index("case").loc[data.cases["case"].iloc[rows]]
    if data.task == "classification":
        scores = [case[f"p_{case['truth']}"] for _, case in cases.iterrows()]
    else:
        scores = list(cases[["dice_LV", "dice_Myo"]].mean(axis=1))
    assert scores == sorted(scores)


def test_nothing_to_show_is_an_error_in_words():
    with pytest.raises(ValueError, match="at least one finished run"):
        widgets.round_player([])
