"""Notebook 04: margins, verdicts, pairs."""

import numpy as np
import pandas as pd

from fedlib.analysis import verdict
from fedlib.course.exercises.feedback import CLOSE, Feedback, check, listed, number, read

BECAUSE = {
    "equivalent": "its interval lies within the margin on both sides, which says more than no worse",
    "superior": "its whole interval lies above zero, and the gain may be as large as the margin",
    "non-inferior": "a loss of the margin is ruled out; a gain of as much is not, and no gain is shown",
    "inferior": "its whole interval lies below minus the margin",
    "inconclusive": "its interval lies on both sides of minus the margin",
}
"""Verdicts, and what of an interval makes them."""


def five_arms() -> pd.DataFrame:
    """Return five arms against the centralized one, at a margin of 0.05: mean difference and its 95% interval."""
    columns = ["difference", "95% low", "95% high"]
    rows = {
        "A": [-0.015, -0.024, -0.006],
        "B": [0.012, -0.041, 0.066],
        "C": [-0.080, -0.102, -0.058],
        "D": [-0.010, -0.068, 0.047],
        "E": [0.081, 0.052, 0.110],
    }
    return pd.DataFrame(rows, columns).T.rename_axis("arm")


@check
def check_verdicts(answer: dict[str, str], arms: pd.DataFrame, margin: float) -> Feedback:
    """Check the verdict on each arm of `five_arms`."""
    given = read(dict, answer, "a dictionary, such as {'A': 'equivalent', ...}")
    if missing := sorted(set(arms.index) - set(given)):
        return Feedback(False, f"a verdict is missing for {listed(missing)}.")
    for arm, row in arms.iterrows():
        said = str(given[arm]).strip().lower()
        if said not in BECAUSE:
            return Feedback(False, f"{arm}: {given[arm]!r} is none of {listed(BECAUSE)}.")
        right = verdict(row["95% low"], row["95% high"], margin)
        if said == right:
            continue
        why = BECAUSE[right]
        if said == "equivalent" and right == "inconclusive":
            why = "an interval that holds zero does not show that two are equal; here it also reaches below the margin"
        if said == "inferior" and row["95% high"] > -margin:
            why = "being below zero is not enough: the whole interval must lie below minus the margin"
        return Feedback(False, f"{arm} is not {said}: {why}.")
    return Feedback(True, "the verdict comes from where the interval lies, not from whether it holds zero.")


def eight_patients() -> pd.DataFrame:
    """Return the DSC of eight patients under two models: hearts differ far more than the models do."""
    centralized = [0.95, 0.71, 0.88, 0.93, 0.64, 0.90, 0.79, 0.84]
    federated = [0.94, 0.69, 0.87, 0.91, 0.63, 0.89, 0.76, 0.83]
    names = pd.RangeIndex(1, 1 + len(centralized), name="patient")
    return pd.DataFrame({"centralized": centralized, "federated": federated}, names)


@check
def check_standard_error(answer: float, patients: pd.DataFrame) -> Feedback:
    """Check the standard error of the mean difference, paired by patient."""
    one, other = patients["centralized"], patients["federated"]
    difference, n = other - one, len(patients)
    right = difference.std() / np.sqrt(n)
    mistakes = {
        "that is as if the models had been tested on different patients; take the difference of each patient first.": (
            np.sqrt((one.var() + other.var()) / n)
        ),
        "that is the standard deviation of the differences; the standard error is that of their mean.": difference.std(),
        "divide by the square root of the number of patients, not by the number.": difference.std() / n,
        "that is the mean difference itself.": difference.mean(),
        "NumPy's std divides by n; for a sample it is n - 1 (ddof=1).": difference.std(ddof=0) / np.sqrt(n),
    }
    times = np.sqrt((one.var() + other.var()) / n) / right
    return number(answer, right, mistakes, f"unpaired it would be {times:.0f} times as large, from the same 16 numbers.")


@check
def check_margin(answer: float, table: pd.DataFrame) -> Feedback:
    """Check the margin at which no federated arm of `analysis.compare` would be worse."""
    own = table.loc[table["mode"] == "federated", "smallest_margin"].dropna()
    if own.empty:
        if isinstance(answer, float) and np.isnan(answer):
            return Feedback(True, "with so few patients there is no interval, and no margin can be named.")
        return Feedback(False, "no arm has an interval here, so no margin can be named: the answer is float('nan').")
    mistakes = {
        "that margin does for one arm; every arm is asked for.": own.min(),
        "the mean does not do for the arms above it.": own.mean(),
    }
    rounded = max(CLOSE, 0.0006 / max(own.max(), 0.0006))  # the table has three digits
    return number(answer, own.max(), mistakes, "chosen like this, after the result, it proves nothing.", rounded)
