"""Intervals, tests and verdicts, held to published examples, to independent implementations, and by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from fedlib.analysis import inference
from fedlib.analysis.inference import VERDICTS, interval, verdict

SLEEP = np.array(
    [[0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0], [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]]
)
"""Hours of sleep gained with two drugs, paired (Student, 1908, Biometrika 6:1; `sleep` in R)."""
DEPRESSION = np.array([[1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30],
                       [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]])  # fmt: skip
"""Depression scale at two visits (Hollander and Wolfe, 1973, p. 29; `?wilcox.test` in R: V = 40, one-sided p = 0.01953)."""


def paired(both, only_one, only_other, neither):
    """Right or wrong of two methods on the same patients, from the four counts of a table."""
    counts = [both, only_one, only_other, neither]
    return np.repeat([1.0, 1, 0, 0], counts), np.repeat([1.0, 0, 1, 0], counts)


# Published examples


def test_wilcoxon_of_hollander_and_wolfe():
    name, p = inference.difference_test(*DEPRESSION)
    assert (name, p) == ("Wilcoxon", pytest.approx(2 * 0.01953, abs=1e-5))


def test_mcnemar_of_fay():
    """Fay, 2010, The R Journal 2(1):53, exact2x2: the table 21, 9, 2, 12 has the exact p 0.06543."""
    assert inference.difference_test(*paired(21, 9, 2, 12)) == ("McNemar", pytest.approx(0.06543, abs=5e-6))


def test_holm_s_procedure_by_hand():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.005])
    assert inference.holm(p) == pytest.approx([0.03, np.nan, 0.06, 0.06, 0.02], nan_ok=True)
    assert np.isnan(inference.holm(np.array([np.nan]))).all()


def test_n_of_n_right_is_the_interval_of_clopper_and_pearson():
    for n in (10, 300):
        found, exact = interval([np.ones(n)], bounds=(0, 1)), stats.binomtest(n, n).proportion_ci(method="exact")
        assert (found.value, found.low, found.high, found.how) == (1, pytest.approx(exact.low), 1, "exact")


# Independent implementations


def bca_by_hand(values, level):
    """BCa interval of a mean from its definition (Efron and Tibshirani, 1993, section 14.3), with 40,000 resamples."""
    rng, n = np.random.default_rng(5), len(values)
    means = values[rng.integers(0, n, (40_000, n))].mean(axis=1)
    bias = stats.norm.ppf((means < values.mean()).mean())
    left_out = (values.sum() - values) / (n - 1)
    deviation = left_out.mean() - left_out
    acceleration = (deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5)
    shifted = bias + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    return np.quantile(means, stats.norm.cdf(bias + shifted / (1 - acceleration * shifted)))


def test_the_interval_is_efron_s_bca_at_hesterberg_s_level():
    values = np.random.default_rng(3).beta(9, 1, 12)
    found = interval([values])
    wide = stats.t.isf(0.025, 11) * np.sqrt(12 / 11)  # Hesterberg, 2015, section 5.3: the expanded percentile interval
    by_hand = bca_by_hand(values, 1 - 2 * stats.norm.sf(wide))
    error = values.std() / np.sqrt(12)  # 2,000 resamples leave about 0.08 of it as noise; the widening is 0.34 of it
    assert [found.low, found.high] == pytest.approx(by_hand, abs=0.2 * error)
    assert found.how == "BCa"
    assert values.mean() - found.low > found.high - values.mean(), "the longer tail of a skewed score is below"


@pytest.mark.parametrize("margin", [0.5, 1.5, 3.5, 4.5])
def test_equivalence_is_statsmodels_tost_at_half_the_significance_away_from_its_edge(margin):
    found, p = interval([SLEEP[0] - SLEEP[1]]), ttost_paired(*SLEEP, -margin, margin)[0]
    assert (verdict(found.low, found.high, margin) == "equivalent") == (p < 0.025)


# Simulation


@pytest.fixture
def _fewer_resamples(monkeypatch):
    monkeypatch.setattr(inference, "RESAMPLES", 500)


def normal(rng, n):
    return [rng.normal(0, 0.05, n)]


def skewed(rng, n):
    """Differences of Dice scores, as they look: mostly small, a few patients far off."""
    return [rng.beta(9, 1, n) ** 2 - rng.beta(9, 1, n) + 0.9 - 90 / 110]


def classes(rng, n):
    """Right or wrong in four classes, of which one is rare and often all right."""
    return [(rng.random(size) < share) - share for size, share in ((n, 0.95), (n, 0.9), (n // 2, 0.85), (8, 0.8))]


RUNS = 300


def binomial_error(share):
    """Three standard errors of a share found in RUNS simulations."""
    return 3 * np.sqrt(share * (1 - share) / RUNS)


@pytest.mark.usefixtures("_fewer_resamples")
@pytest.mark.parametrize(("draw", "n"), [(normal, 12), (normal, 60), (skewed, 20), (skewed, 60), (classes, 60)])
def test_without_a_difference_the_interval_covers_at_its_level(draw, n):
    rng = np.random.default_rng(1)
    found = [interval(draw(rng, n), bounds=(-1, 1)) for _ in range(RUNS)]
    assert np.mean([own.low <= 0 <= own.high for own in found]) >= 0.95 - binomial_error(0.95)
    if draw is not classes:  # there the exact part is cautious
        assert np.mean([own.low <= 0 <= own.high for own in found]) <= 0.95 + binomial_error(0.95)


@pytest.mark.usefixtures("_fewer_resamples")
@pytest.mark.parametrize("draw", [normal, skewed])
def test_at_the_margin_equivalence_and_non_inferiority_keep_their_levels(draw):
    rng = np.random.default_rng(2)
    found = [interval([draw(rng, 40)[0] - 0.05]) for _ in range(RUNS)]
    decided = [verdict(own.low, own.high, 0.05) for own in found]
    assert np.mean([own not in ("inferior", "inconclusive") for own in decided]) <= 0.025 + binomial_error(0.025)
    assert np.mean([own == "inferior" for own in decided]) <= 0.025 + binomial_error(0.025)


# Laws


VALUES = arrays.arrays(float, st.integers(6, 30), elements=st.floats(-1, 1).map(lambda x: round(x, 3)))


@settings(max_examples=30, deadline=None)
@given(VALUES)
def test_an_interval_holds_its_mean(values):
    found = interval([values], bounds=(-1, 1))
    assert found.value == pytest.approx(values.mean())
    if not found.how.startswith("none"):
        assert found.low <= found.value + 1e-12
        assert found.value <= found.high + 1e-12


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(15, 40), st.floats(-5, 5), st.floats(0.1, 10))
def test_an_interval_moves_and_stretches_with_its_values(seed, n, shift, scale):
    values = np.random.default_rng(seed).normal(size=n)  # of fewer some resamples are the sample itself: a tie
    one, other = interval([values]), interval([shift + scale * values])
    assert other[:3] == pytest.approx(shift + scale * np.array(one[:3]), abs=1e-6)


LIMITS = st.lists(st.floats(-0.3, 0.3) | st.sampled_from([-0.05, 0.0, 0.05]), min_size=2, max_size=2).map(sorted)
MARGIN = st.floats(0.001, 0.3) | st.just(0.05)


@given(LIMITS, MARGIN)
def test_verdicts_divide_all_intervals_among_them(limits, margin):
    """Each is what its definition says, and one level decides all: what is equivalent or superior is never worse."""
    low, high = limits
    found = verdict(low, high, margin)
    assert found in VERDICTS
    assert (found == "equivalent") == (-margin < low and high < margin)
    assert (found == "inferior") == (high < -margin)
    assert (found in ("equivalent", "superior", "non-inferior")) == (low > -margin)
    if found == "superior":
        assert inference.direction(low, high) == "higher"


@given(LIMITS, MARGIN, st.floats(1, 3))
def test_a_wider_margin_never_takes_a_verdict_back(limits, margin, times):
    rank = {"inferior": 0, "inconclusive": 1, "non-inferior": 2, "superior": 2, "equivalent": 3}
    before, after = verdict(*limits, margin), verdict(*limits, times * margin)
    assert rank[after] >= rank[before]
    assert (before, after) != ("non-inferior", "superior"), "whether a gain is shown does not depend on the margin"


@given(LIMITS, MARGIN, st.floats(0, 0.2))
def test_a_better_arm_never_has_a_worse_verdict(limits, margin, gain):
    low, high = limits
    no_worse = ("equivalent", "superior", "non-inferior")
    before, after = verdict(low, high, margin), verdict(low + gain, high + gain, margin)
    assert (after in no_worse) or (before not in no_worse)
    assert after != "inferior" or before == "inferior"


@settings(max_examples=20)  # statsmodels collects garbage in every call, 0.15 s
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_only_raises_and_keeps_the_order(p_values):
    p = np.array(p_values)
    corrected = inference.holm(p)
    assert (corrected >= p).all()
    assert (corrected <= np.minimum(1, p * len(p)) + 1e-12).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= -1e-12).all()


# Where there is nothing to say


@pytest.mark.parametrize(
    ("values", "bounds", "why"),
    [([], (0, 1), "no patient"), ([0.3], (0, 1), "1 patient,"), ([0.1, 0.4, 0.3], (0, 1), "3 patients"),
     ([2.5] * 30, None, "all patients are equal")],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_no_interval_says_why_and_gives_no_verdict(values, bounds, why):
    found = interval([np.array(values)], bounds=bounds)
    assert np.isnan([found.low, found.high]).all()
    assert found.how.startswith("none: ")
    assert why in found.how
    assert verdict(found.low, found.high, 0.05) == "inconclusive"
    assert inference.direction(found.low, found.high) == "no difference shown"


@pytest.mark.filterwarnings("error")
def test_two_arms_that_never_differ_are_equivalent_only_with_enough_patients():
    few, many = (interval([np.zeros(n)], bounds=(-1, 1)) for n in (20, 300))
    assert verdict(few.low, few.high, 0.05) == "inconclusive", "3 / 20 could still differ"
    assert verdict(many.low, many.high, 0.05) == "equivalent"
    assert inference.difference_test(np.ones(9), np.ones(9)) == ("McNemar", 1)
    assert inference.difference_test(np.full(9, 0.5), np.full(9, 0.5)) == ("Wilcoxon", 1)


def test_equal_differences_share_a_rank_whatever_the_rounding():
    one, other = np.array([[8, 6, 10, 4, 2, 6, 8, 3], [7, 5, 9, 3, 3, 7, 4, 8]])
    assert inference.difference_test(one / 10, other / 10) == inference.difference_test(one, other), "0.8 - 0.7, 0.3 - 0.2"


def test_patients_without_a_difference_leave_the_test_exact():
    """One patient of many differs: as likely one way as the other. SciPy approximates where it sees zeros: 0.32."""
    one, other = np.full(30, 0.5), np.full(30, 0.5)
    one[0] = 0.7
    assert inference.difference_test(one, other) == ("Wilcoxon", 1)


def test_a_rare_class_that_is_all_right_still_widens_the_interval():
    common = (np.arange(200) % 10 > 0).astype(float)
    few, many = (interval([common, np.ones(n)], bounds=(0, 1)) for n in (8, 200))
    assert few.value == many.value == pytest.approx(0.95)
    assert few.how == "BCa and exact"
    assert few.high == pytest.approx(many.high, abs=1e-3)
    assert few.low < 0.8 < many.low, "8 of 8 right may be 63%"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [((-0.03, 0.03), "equivalent"), ((-0.045, -0.01), "equivalent"), ((0.01, 0.04), "equivalent"),
     ((-0.053, 0.03), "inconclusive"), ((-0.04, 0.07), "non-inferior"), ((0, 0.07), "non-inferior"),
     ((0.01, 0.07), "superior"), ((0.179, 0.258), "superior"), ((-0.09, -0.055), "inferior"),
     ((-0.09, -0.01), "inconclusive"), ((-0.2, 0.2), "inconclusive")],
)  # fmt: skip
def test_verdicts_as_in_the_figure_of_consort(limits, expected):
    assert verdict(*limits, 0.05) == expected
