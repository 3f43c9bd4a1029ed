"""Estimate means over patients, compare pairs, and decide verdicts. Knows neither runs nor files.

A sample is a list of strata: arrays with one value per patient. The estimate is the mean over the strata of their means:
with one stratum the mean over patients, with one stratum per class the macro average.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, bootstrap, norm, t, wilcoxon
from statsmodels.stats.multitest import multipletests

Sample = list[np.ndarray]
RESAMPLES = 2000
"""Of every bootstrap. Efron (1987) asks for at least 1000 for BCa. Seeded, so that a report can be reproduced."""
FEWEST = 6
"""Patients in a stratum for an interval: with fewer, more than 5% of samples lie on one side of the median."""
EQUAL = 1e-12
"""Values that differ by no more are equal: 0.8 - 0.7 and 0.3 - 0.2 differ by rounding."""
VERDICTS = ("inferior", "inconclusive", "non-inferior", "superior", "equivalent")


class Interval(NamedTuple):
    """An estimate with its two-sided interval at level 1 - significance."""

    value: float
    low: float
    high: float
    how: str
    """`BCa`, `exact`, both, or `none: ` and the reason; then the limits are NaN."""


def interval(strata: Sample, significance: float = 0.05, bounds: tuple[float, float] | None = None) -> Interval:
    """Return the mean over strata of means, with its interval over patients.

    Each stratum has its own limits: by the BCa bootstrap or, where all values are equal and `bounds` are known, exact ones.
    MOVER combines them (Zou and Donner, 2008, Statistics in Medicine 27:1693). With fewer than FEWEST patients in a stratum,
    or with equal values and no bounds, there is no interval, and `how` gives the reason.
    """
    strata = [np.asarray(values, float) for values in strata]
    fewest = min(map(len, strata), default=0)
    if fewest == 0:
        return Interval(np.nan, np.nan, np.nan, "none: no patient has a score")
    value, constant = float(np.mean([values.mean() for values in strata])), [np.ptp(values) <= EQUAL for values in strata]
    if fewest < FEWEST:
        where = f"patient{'s' * (fewest > 1)}{' in a class' * (len(strata) > 1)}"
        return Interval(value, np.nan, np.nan, f"none: {fewest} {where}, at least {FEWEST} needed")
    if any(constant) and bounds is None:
        return Interval(value, np.nan, np.nan, "none: all patients are equal")
    reach = [_exact(values, significance, bounds) if same else _bca(values, significance)
             for values, same in zip(strata, constant, strict=True)]  # fmt: skip
    below, above = np.sqrt(np.square(reach).sum(axis=0)) / len(strata)
    how = " and ".join(["BCa"] * (not all(constant)) + ["exact"] * any(constant))
    return Interval(value, value - below, value + above, how)


def _bca(values: np.ndarray, significance: float) -> tuple[float, float]:
    """Return how far the limits lie below and above the mean (Efron, 1987).

    The level is widened as Hesterberg advises (2015, The American Statistician 69:371, "expanded"): a bootstrap takes its
    spread from n instead of n - 1 and knows no Student's t.
    """
    n = len(values)
    level = 1 - 2 * norm.sf(t.isf(significance / 2, n - 1) * np.sqrt(n / (n - 1)))
    drawn = bootstrap([values], np.mean, n_resamples=RESAMPLES, confidence_level=level, rng=np.random.default_rng(0))
    low, high = drawn.confidence_interval
    return values.mean() - low, high - values.mean()


def _exact(values: np.ndarray, significance: float, bounds: tuple[float, float]) -> tuple[float, float]:
    """Return the same for equal values: at worst, a share of patients (Clopper and Pearson, 1934) could still differ."""
    share = binomtest(0, len(values)).proportion_ci(1 - significance, "exact").high
    return share * (values[0] - bounds[0]), share * (bounds[1] - values[0])


def verdict(low: float, high: float, margin: float) -> str:
    """Return the verdict on an interval of differences (arm minus reference, more is better), at a margin stated before.

    equivalent: the interval lies within -margin and +margin. superior: not so, and it lies above 0. non-inferior: neither,
    and it lies above -margin. inferior: it lies below -margin. inconclusive: all else, no interval included. So what is
    equivalent or superior is never worse by the margin. One two-sided interval decides: at 95%, every one-sided test has
    2.5%, as in the CONSORT extension (Piaggio et al., 2012, JAMA 308:2594); equivalence is TOST (Schuirmann, 1987) at that
    level. CONSORT calls any interval above 0 superior; here a gain within the margin is equivalent.
    """
    if -margin < low and high < margin:
        return "equivalent"
    if low > -margin:
        return "superior" if low > 0 else "non-inferior"
    return "inferior" if high < -margin else "inconclusive"


def direction(low: float, high: float) -> str:
    """Return on which side of 0 the interval lies; `no difference shown` when it holds 0, which does not show equality."""
    if high < 0:
        return "lower"
    return "higher" if low > 0 else "no difference shown"


def difference_test(one: np.ndarray, other: np.ndarray) -> tuple[str, float]:
    """Test whether chance explains the paired differences; return the test's name and its two-sided p.

    Right or wrong (0 and 1): McNemar's exact test. Else Wilcoxon's signed ranks; a patient without a difference has no rank.
    Without any difference p is 1.
    """
    differences = np.round(one - other, 12)  # as EQUAL says, or ties of ranks would hang on rounding
    binary = np.isin(np.concatenate([one, other]), (0, 1)).all()
    name = "McNemar" if binary else "Wilcoxon"
    if not differences.any():
        return name, 1.0
    if binary:
        return name, float(binomtest(np.sum(differences > 0), np.count_nonzero(differences)).pvalue)
    return name, float(wilcoxon(differences[differences != 0]).pvalue)  # zeros would make SciPy approximate


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values corrected for their number (Holm, 1979); NaN stays and does not count."""
    corrected = np.asarray(p_values, float).copy()
    known = ~np.isnan(corrected)
    if known.any():
        corrected[known] = multipletests(corrected[known], method="holm")[1]
    return corrected
