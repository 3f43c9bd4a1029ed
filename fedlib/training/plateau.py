"""Whether a training had reached its plateau: a rule on the validation scores of its rounds alone (*chosen*).

The mean score over the last quarter of the rounds is compared with that over the quarter before. A run that still gained
more than half the margin there has *not finished training*: a longer one could overturn the verdict. Fewer than six rounds
tell nothing.
"""

from collections.abc import Sequence

import numpy as np

PLATEAU, CLIMBING, TOO_FEW = "plateau", "not finished training", "too few rounds to tell"


def recent_gain(scores: Sequence[float]) -> float:
    """Return the mean of the last quarter of the scores minus that of the quarter before; NaN with fewer than six scores."""
    if len(scores) < 6:
        return float("nan")
    quarter = max(2, len(scores) // 4)
    return float(np.mean(scores[-quarter:]) - np.mean(scores[-2 * quarter : -quarter]))


def training_state(scores: Sequence[float], margin: float) -> str:
    """Say how far a training was, from one score per round and the margin of the comparison."""
    gain = recent_gain(scores)
    if np.isnan(gain):
        return TOO_FEW
    return CLIMBING if gain > margin / 2 else PLATEAU
