"""The pictures: words and numbers with each, colours that survive, SVG that follows the reader's theme."""

import re
from types import SimpleNamespace

import pytest

from fedlib import analysis
from fedlib.study.pages import STYLE
from fedlib.training.run_store import RunStore
from fedlib.views import plots
from fedlib.views.plots.picture import SERIES, VARIABLES
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


def by_mode(runs, mode):
    return [run for run in runs if run.config.mode == mode]


@pytest.fixture(params=["curves", "traffic", "spread", "confusion", "reliability", "comparison"])
def draw(request, runs):
    federated = by_mode(runs, "federated")
    return {
        "curves": lambda: plots.learning_curves(federated),
        "traffic": lambda: plots.traffic(federated),
        "spread": lambda: plots.spread(runs, "accuracy"),
        "confusion": lambda: plots.confusion(federated[:2]),
        "reliability": lambda: plots.reliability(analysis.calibration(federated[:2])),
        "comparison": lambda: plots.comparison(analysis.compare(runs)),
    }[request.param]


def test_every_picture_of_results_has_words_and_numbers(draw):
    picture = draw()
    assert len(picture.alt) > 30
    assert len(picture.table)
    bundle, about = picture._repr_mimebundle_()
    assert about["image/png"]["alt"] == bundle["text/plain"] == picture.alt
    assert bundle["text/csv"] == picture.csv()


def test_an_svg_has_its_words_its_own_ids_and_no_colour_of_its_own(draw):
    text = draw().svg("one")
    assert text.startswith("<svg")
    assert 'role="img" aria-label="' in text
    assert "var(--ink)" in text
    assert not any(colour in text for colour in VARIABLES)
    ids = re.findall(r' id="([^"]+)"', text)
    assert all(name.startswith("one-") for name in ids)
    assert set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", text)) <= set(ids)
    assert text == draw().svg("one"), "the same page for the same runs"
    assert len(text) < 200_000


def test_a_legend_names_what_any_panel_shows(runs):
    table = analysis.compare(runs)
    first = table["metric"] == table["metric"].iloc[0]
    table["paper"] = table["paper"].mask(first)
    (legend,) = plots.comparison(table).figure.legends
    assert any("the paper" in text.get_text() for text in legend.get_texts())


def test_the_numbers_of_several_seeds_have_their_range(runs):
    table = plots.learning_curves(by_mode(runs, "federated"), ["accuracy"]).table
    assert list(table["round"]) == [1, 2]
    assert re.fullmatch(r"0\.\d{3} \(0\.\d{3}–0\.\d{3}\)", table.iloc[0, 1])


def test_traffic_grows_with_the_clients(runs):
    table = plots.traffic(by_mode(runs, "federated")).table
    assert list(table["MB per round"]) == [4.0, 8.0]
    assert list(table["MB in all"]) == [8.0, 16.0]


def test_every_client_alone_is_in_the_numbers(runs):
    table = plots.spread(runs, "accuracy").table
    assert [len(listed.split(", ")) for listed in table["each client alone"]] == list(table["number of clients"])
    assert table["their federation"].notna().all()
    alone = plots.spread(by_mode(runs, "local"), "accuracy").table
    assert alone["their federation"].isna().all()


def test_colours_stand_out_on_both_themes_and_in_grey_print():
    themes = dict(re.findall(r"--(\w+): light-dark\((#\w+, #\w+)\)", STYLE))
    for name, variable in VARIABLES.items():
        light, dark = themes[variable].split(", ")
        assert light == name
        if variable != "page":
            assert contrast(light, "#ffffff") >= 3, variable
            assert contrast(dark, themes["page"].split(", ")[1]) >= 3, variable
    assert contrast(*SERIES[:2]) > 1.9, "balanced and unbalanced are told apart without colour"


def test_an_arm_of_one_client_is_singular():
    arm = SimpleNamespace(mode="federated", n_clients=1, partition="label_skew")
    assert plots.arm_name(arm) == "federated, 1 client, label skew"
