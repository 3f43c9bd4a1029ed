"""Figures: alternative text and numbers with each, nothing clipped, colours that survive a dark theme and grey print."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fedlib import analysis
from fedlib.federated.in_process import site_statistics
from fedlib.training.run_store import RunStore
from fedlib.views import plots
from fedlib.views.plots.figure import INK, PAGE, SERIES, SOFT, encoded
from tests.helpers import run_config
from tests.made_up import FINGERPRINT, made_up


def luminance(colour):
    """Relative luminance of WCAG 2."""
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("plots")
    study = made_up(out, profile="smoke", client_counts="2,4", seed=[1, 2])
    return RunStore(out).done(study.runs(FINGERPRINT))


@pytest.fixture(scope="module")
def compared(runs):
    return analysis.compare(runs)


def by_mode(runs, mode):
    return [run for run in runs if run.config.mode == mode]


@pytest.fixture(params=["curves", "steps", "traffic", "confusion", "reliability", "comparison", "differences", "sites"])
def draw(request, runs, compared, images):
    federated, table = by_mode(runs, "federated"), compared
    return {
        "curves": lambda: plots.learning_curves(federated),
        "steps": lambda: plots.learning_curves(runs, x="steps"),
        "traffic": lambda: plots.communication(federated),
        "confusion": lambda: plots.confusion(federated[:2]),
        "reliability": lambda: plots.reliability(analysis.calibration(federated[:2])),
        "comparison": lambda: plots.comparison(table),
        "differences": lambda: plots.differences(table[table["metric"] == "accuracy"]),
        "sites": lambda: plots.sites(site_statistics(run_config(images, "federated"), images)),
    }[request.param]


def test_every_picture_of_results_has_words_and_numbers(draw):
    picture = draw()
    assert len(picture.alt) > 30
    assert len(picture.table)
    bundle, about = picture._repr_mimebundle_()
    assert about["image/png"]["alt"] == bundle["text/plain"] == picture.alt
    assert len(bundle["text/csv"].splitlines()) == 1 + len(picture.table)


def test_a_figure_is_an_image_with_a_white_ground_and_its_width(draw):
    picture = draw()
    bundle, about = picture._repr_mimebundle_()
    image = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert image.width == pytest.approx(2 * picture.width, abs=2)
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255), "legible in a dark theme, too"
    assert about["image/png"]["width"] == picture.width <= 640, "a phone shows it at half its size or more"


def test_the_same_runs_give_the_same_figure_and_no_random_number_is_drawn(draw):
    """The fault of jitter: pages that were rendered again differed, and a student's random numbers moved."""
    state = np.random.get_state()[1].tolist()
    assert encoded(draw().figure, "png") == encoded(draw().figure, "png")
    assert np.random.get_state()[1].tolist() == state


def test_no_words_are_clipped(draw):
    figure = draw().figure
    figure.draw_without_rendering()
    texts = [text for axis in figure.axes for text in (axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts)]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = {text.get_text(): text.get_window_extent() for text in texts if text.get_text()}
    inside = figure.bbox.padded(1)
    assert [words for words, box in boxes.items() if not (inside.contains(*box.min) and inside.contains(*box.max))] == []


def test_alternative_text_names_every_panel(runs):
    federated = by_mode(runs, "federated")
    for picture in (plots.comparison(analysis.compare(runs)), plots.learning_curves(federated)):
        assert "accuracy: " in picture.alt
        assert "sensitivity (macro): " in picture.alt
    assert plots.confusion(federated[:2]).alt.count("COVID") == 2


def test_megabytes_are_plain_numbers(runs):
    run = by_mode(runs, "federated")[0]
    large = SimpleNamespace(config=run.config, result={"bytes": 1_790_000_000})
    assert "1,790.0 MB in all" in plots.communication([large]).alt


def test_a_legend_names_what_any_panel_shows(runs):
    table = analysis.compare(runs)
    first = table["metric"] == table["metric"].iloc[0]
    table["paper"] = table["paper"].mask(first)
    (legend,) = plots.comparison(table).figure.legends
    assert any("the paper" in text.get_text() for text in legend.get_texts())


def test_the_numbers_of_a_curve_are_the_mean_over_seeds(runs):
    federated = [
        run for run in by_mode(runs, "federated") if (run.config.n_clients, run.config.partition) == (2, "balanced")
    ]
    assert len(federated) == 2
    table = plots.learning_curves(federated, ["accuracy"]).table
    assert list(table["round"]) == [1, 2]
    mean = sum(run.rounds["accuracy"] for run in federated) / 2
    assert table["accuracy"].tolist() == pytest.approx(mean.tolist())


def test_over_steps_a_client_of_many_stops_earlier(runs):
    """10 cases a client: one batch in an epoch, so a step in a round, however many clients there are."""
    numbers = plots.learning_curves(by_mode(runs, "federated"), ["accuracy"], x="steps").table
    assert set(numbers.columns) == {"arm", "round", "accuracy", "optimizer steps of a client"}
    assert (numbers["optimizer steps of a client"] == numbers["round"]).all()


def test_a_curve_ends_with_its_verdict(tmp_path):
    study = made_up(tmp_path, profile="smoke", rounds=8)
    federated = by_mode(RunStore(tmp_path).done(study.runs(FINGERPRINT)), "federated")
    picture = plots.learning_curves(federated, ["accuracy"])
    (legend,) = picture.figure.legends
    states = {"plateau", "not finished training"} & {text.get_text() for text in legend.get_texts()}
    assert states
    assert all(f"({state})" in picture.alt for state in states)


def test_traffic_grows_with_the_clients(runs):
    table = plots.communication(by_mode(runs, "federated")).table
    assert list(table["MB per round"]) == [4.0, 8.0]
    assert list(table["MB in all"]) == [8.0, 16.0]


def test_a_study_of_one_partition_has_every_figure(runs):
    """seaborn's pointplot divides by the number of partitions but one."""
    alike = [run for run in runs if run.config.partition in ("none", "balanced")]
    assert len(plots.learning_curves(by_mode(alike, "federated"), ["accuracy"]).table)
    assert len(plots.comparison(analysis.compare(alike)).table)
    assert len(plots.communication(by_mode(alike, "federated")).table)


def test_differences_lie_between_margins_and_name_every_arm(runs):
    table = analysis.compare(runs)
    accuracy = table[table["metric"] == "accuracy"]
    picture = plots.differences(accuracy)
    (axis,) = picture.figure.axes
    horizontal = {
        line.get_ydata()[0] for line in axis.lines if len(line.get_ydata()) == 2 and len(set(line.get_ydata())) == 1
    }
    margin = accuracy["margin"].max()
    assert {-margin, 0, margin} <= horizontal
    arms = accuracy[accuracy["difference"].notna()]
    assert list(picture.table["arm"]) == [plots.arm_name(arm) for arm in arms.itertuples()]
    assert list(picture.table["verdict"]) == list(arms["verdict"])
    drawn = [y for bars in axis.containers for y in bars.lines[0].get_ydata()]
    assert sorted(drawn) == sorted(arms["difference"])


def test_outlines_have_a_colour_key_titles_and_dsc(volumes):
    rows = volumes.split("test")[:3]
    truth = volumes.labels[rows]
    picture = plots.contours(volumes, {"perfect": truth, "nothing": 0 * truth}, rows, ("worst", "middle", "best"))
    (legend,) = picture.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == volumes.classes[1:]
    assert [axis.get_title().split("\n")[0] for axis in picture.figure.axes[:3]] == ["worst", "middle", "best"]
    below = [axis.get_xlabel().split("\n") for axis in picture.figure.axes[3:]]
    assert below == [["DSC LV 1.00", "DSC Myo 1.00"]] * 3 + [["DSC LV 0.00", "DSC Myo 0.00"]] * 3
    assert list(picture.table["DSC LV"]) == [1] * 3 + [0] * 3


def test_pixels_of_masks_can_be_counted():
    mask = np.zeros((8, 8), bool)
    mask[2:4, 1:6] = True
    (cells,) = plots.masks({"truth": mask}).figure.axes[0].collections
    assert cells.get_array().sum() == 10
    assert cells.get_linewidth()[0] > 0, "a grid"


def test_colours_stand_out_on_the_white_ground_and_in_grey_print():
    assert [colour for colour in (*SERIES, INK, SOFT) if contrast(colour, PAGE) < 3] == []
    assert contrast(*SERIES[:2]) > 1.9, "balanced and unbalanced are told apart without colour"
    assert len(set(SERIES)) == 8, "as many clients have a colour of their own"


def test_an_arm_of_one_client_is_singular():
    arm = SimpleNamespace(mode="federated", n_clients=1, partition="label_skew")
    assert plots.arm_name(arm) == "federated, 1 client, label skew"
