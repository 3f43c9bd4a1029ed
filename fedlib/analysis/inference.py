"""Numbers in, numbers out: the interval of a mean, paired tests, the verdict at a margin. Knows neither runs nor files.

A sample is a list of strata: arrays with one value a patient. The estimate is the mean over the strata of their means: with
one stratum the mean over the patients; with a stratum per class the macro average, in which every class weighs the same.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import bootstrap, norm, rankdata, t, wilcoxon
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.weightstats import ttost_paired

Sample = list[np.ndarray]
RESAMPLES = 2000
"""Of every bootstrap; Efron (1987) asks for at least 1000 for BCa. Seeded, so that a report can be made again."""
FEWEST = 6
"""Patients in a stratum for an interval: no resampling reaches beyond the smallest and the largest value, and those of fewer
than 6 hold a median less often than 95 in 100 times (1 - 2^(1 - n))."""
EQUAL = 1e-12
"""Values that differ by no more are equal: 0.8 - 0.7 and 0.3 - 0.2 differ by rounding."""
POWER = 0.8
"""With which a margin is called detectable (*chosen*, the custom)."""


class Interval(NamedTuple):
    """An estimate with the interval at level 1 - significance and, for the equivalence test, at 1 - 2 significance."""

    value: float
    low: float
    high: float
    tost_low: float
    tost_high: float
    how: str
    """`BCa`, `exact`, both, or `none: ` and the reason; then the limits are NaN."""


def interval(strata: Sample, significance: float = 0.05, bounds: tuple[float, float] | None = None) -> Interval:
    """The mean over strata of means, and its interval over patients by the BCa bootstrap (Efron, 1987) within each stratum.

    The level is widened for small samples as Hesterberg advises (2015, The American Statistician 69:371, "expanded"): a
    bootstrap takes its spread from n instead of n - 1 and knows no Student's t; from 100 patients on it hardly shows.
    Where all values are equal there is nothing to resample: if they are bounded, the exact interval of what the patients
    not seen could still be (for 0 and 1: Clopper and Pearson, 1934; n of n right is no proof of 1). Where some strata are
    so, both kinds of limits are put together (MOVER; Zou and Donner, 2008, Statistics in Medicine 27:1693).
    Fewer than FEWEST patients in a stratum, or equal values without bounds: no interval, and `how` says why.
    """
    strata = [np.asarray(values, float) for values in strata]
    if not strata or min(map(len, strata)) == 0:
        return Interval(*[np.nan] * 5, "none: no patient has a score")
    value, fewest = mean(*strata), min(map(len, strata))
    if fewest < FEWEST:
        where = "" if len(strata) == 1 else " in a class"
        return Interval(value, *[np.nan] * 4, f"none: {fewest} patient{'s' * (fewest > 1)}{where}, at least {FEWEST} needed")
    constant = [values for values in strata if np.ptp(values) <= EQUAL]
    varying = [values for values in strata if np.ptp(values) > EQUAL]
    if constant and bounds is None:
        return Interval(value, *[np.nan] * 4, "none: all patients are equal")
    parts = [(len(varying), _bca(varying, significance))] if varying else []
    parts += [(len(constant), _exact(constant, significance, bounds))] if constant else []
    if not np.isfinite([limit for _, limits in parts for limit in limits]).all():
        return Interval(value, *[np.nan] * 4, "none: the bootstrap is degenerate")
    reach = np.sqrt(sum((n / len(strata) * limits) ** 2 for n, limits in parts))
    how = " and ".join(["BCa"] * bool(varying) + ["exact"] * bool(constant))
    return Interval(value, *map(float, value + reach * (-1, 1, -1, 1)), how)


def _bca(strata: Sample, significance: float) -> np.ndarray:
    """How far low, high, tost_low and tost_high lie from the estimate."""
    drawn = bootstrap(strata, mean, n_resamples=RESAMPLES, rng=np.random.default_rng(0), vectorized=True,
                      confidence_level=_expanded(strata, significance))  # fmt: skip
    inner = bootstrap(strata, mean, n_resamples=0, bootstrap_result=drawn, vectorized=True,
                      confidence_level=_expanded(strata, 2 * significance))  # fmt: skip
    return np.abs(np.array([*drawn.confidence_interval, *inner.confidence_interval]) - mean(*strata))


def mean(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over the strata of the means along `axis`."""
    return sum(np.mean(values, axis=axis) for values in strata) / len(strata)


def standard_error(strata: Sample) -> tuple[float, float]:
    """Standard error of the estimate, and its degrees of freedom (Satterthwaite, 1946; n - 1 with one stratum)."""
    parts = np.array([np.var(values, ddof=1) / len(values) for values in strata])  # of each stratum's mean
    if not parts.any():
        return 0.0, np.nan
    freedom = parts.sum() ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, strata, strict=True))
    return float(np.sqrt(parts.sum()) / len(strata)), float(freedom)


def _expanded(strata: Sample, significance: float) -> float:
    """The level to ask of a percentile bootstrap so that it has 1 - significance at this size."""
    parts = np.array([np.var(values) / len(values) for values in strata])
    shrunk = parts.sum() / sum(part * len(values) / (len(values) - 1) for part, values in zip(parts, strata, strict=True))
    quantile = t.isf(significance / 2, standard_error(strata)[1]) / np.sqrt(shrunk)
    return float(1 - 2 * norm.sf(quantile))


def _exact(strata: Sample, significance: float, bounds: tuple[float, float]) -> np.ndarray:
    """The same where every stratum is constant, for any law of values between `bounds`."""
    constants, sizes = np.array([values[0] for values in strata]), np.array([len(values) for values in strata])
    gains = [np.abs(constants - bound) / len(strata) for bound in bounds]
    return np.array([_largest(gain, sizes, level) for level in (significance / 2, significance) for gain in gains])


def _largest(gains: np.ndarray, sizes: np.ndarray, level: float) -> float:
    """Largest sum of gains x share, where `share` of each stratum differs from what was seen and yet, with probability
    `level` or more, nobody of the `sizes` drawn did: the product of (1 - share)^sizes is at least `level`."""
    gains, sizes = gains[gains > 0], sizes[gains > 0]
    if not len(gains):
        return 0.0

    def kept(scale: float) -> np.ndarray:  # Lagrange: 1 - share is proportional to sizes / gains
        return np.minimum(1, scale * sizes / gains)

    ratio = sizes / gains
    scale = brentq(lambda s: (sizes * np.log(kept(s))).sum() - np.log(level), level / ratio.max(), 1 / ratio.min())
    return float((gains * (1 - kept(scale))).sum())


def verdict(found: Interval, margin: float) -> str:
    """What an interval of differences (arm minus reference, more is better) says at a margin stated before.

    equivalent: the 1 - 2 significance interval (90%) lies within -margin and +margin, the decision of two one-sided tests
    (TOST; Schuirmann, 1987). non-inferior: else, the lower limit of the two-sided 1 - significance interval (95%) is above
    -margin. inferior: the whole of that interval is below -margin. inconclusive: all else, no interval included. As in the
    CONSORT extension (Piaggio et al., 2012, JAMA 308:2594), an arm can be significantly lower and yet non-inferior.
    """
    if -margin < found.tost_low and found.tost_high < margin:
        return "equivalent"
    if found.low > -margin:
        return "non-inferior"
    return "inferior" if found.high < -margin else "inconclusive"


def reading(low: float, high: float) -> str:
    """On which side of 0 the interval lies. One that holds 0 does not show that two arms are equal."""
    if high < 0:
        return "lower"
    return "higher" if low > 0 else "inconclusive"


def difference_test(one: np.ndarray, other: np.ndarray) -> tuple[str, float]:
    """Whether chance alone explains the paired differences: the test's name and its two-sided p; 1 when nobody differs.

    Right or wrong (0 and 1): McNemar's exact test. Else Wilcoxon's signed ranks; without a difference a patient has no rank.
    """
    differences = one - other
    binary = np.isin(np.concatenate([one, other]), (0, 1)).all()
    name = "McNemar" if binary else "Wilcoxon"
    if not differences.any():
        return name, 1.0
    if binary:
        pairs = np.array([[((one == a) & (other == b)).sum() for b in (1, 0)] for a in (1, 0)])
        return name, float(mcnemar(pairs, exact=True).pvalue)
    return name, float(wilcoxon(differences).pvalue)


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values corrected for their number (Holm, 1979); NaN stays and does not count.

    Not by statsmodels: its multipletests collects garbage, half a second each time in a process that holds torch.
    """
    order = np.argsort(p_values)[: np.count_nonzero(~np.isnan(p_values))]  # NaN is sorted last
    corrected = np.full(len(p_values), np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1)))
    return corrected


def tost_p(one: np.ndarray, other: np.ndarray, margin: float) -> float:
    """p of the two one-sided paired t-tests by statsmodels: the cross-check of `verdict`. NaN when no patient differs."""
    return float(ttost_paired(one, other, -margin, margin)[0]) if np.ptp(one - other) > EQUAL else np.nan


def effect_sizes(differences: np.ndarray) -> dict[str, float]:
    """dz: mean over standard deviation of the paired differences (Cohen, 1988); NaN when they are all equal.

    rank_biserial: ranks in favour minus ranks against, over all ranks, -1 to 1 (Kerby, 2014); 0 when nobody differs.
    """
    differing = differences[differences != 0]
    ranks = rankdata(np.abs(differing))
    spread = np.std(differences, ddof=1) if np.ptp(differences) > EQUAL else np.nan
    balance = float((ranks * np.sign(differing)).sum() / ranks.sum()) if len(differing) else 0.0
    return {"dz": float(differences.mean() / spread), "rank_biserial": balance}


def margins(strata: Sample, found: Interval, significance: float) -> dict[str, float]:
    """What margins these differences could have shown; NaN without an interval.

    smallest_margin: the smallest at which they do show non-inferiority. detectable_margin: the one that so many patients
    with such a spread show with 80% power if there is truly no difference; only more patients do better.
    """
    if np.isnan(found.low):
        return {"smallest_margin": np.nan, "detectable_margin": np.nan}
    error, freedom = standard_error(strata)
    quantiles = t.isf(significance / 2, freedom) + t.isf(1 - POWER, freedom)
    return {"smallest_margin": max(0.0, -found.low), "detectable_margin": float(quantiles * error) if error else np.nan}
