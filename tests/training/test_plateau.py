"""The plateau rule, on made-up curves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlib.training.plateau import CLIMBING, PLATEAU, TOO_FEW, recent_gain, training_state

ROUNDS = np.arange(1, 31)
CURVES = {
    "saturated early": (0.9 - 0.6 * np.exp(-ROUNDS / 2), PLATEAU),
    "saturated late": (0.9 - 0.6 * np.exp(-ROUNDS / 6), PLATEAU),
    "on the slope": (0.9 - 0.6 * np.exp(-ROUNDS / 15), CLIMBING),
    "a straight line": (0.3 + 0.02 * ROUNDS, CLIMBING),
    "a late jump": (np.where(ROUNDS < 22, 0.5, 0.8), CLIMBING),
    "falling, overfitted": (0.9 - 0.005 * ROUNDS, PLATEAU),
    "flat at chance": (np.full(30, 0.25), PLATEAU),
}


@pytest.mark.parametrize(("curve", "expected"), CURVES.values(), ids=CURVES)
def test_made_up_curves_are_judged_as_a_person_would(curve, expected):
    assert training_state(curve, 0.05) == expected


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("curve", "expected"), [CURVES["saturated early"], CURVES["a straight line"]])
def test_noise_of_a_validation_split_of_two_hundred_does_not_change_it(curve, expected, seed):
    noise = np.random.default_rng(seed).normal(0, 0.015, len(curve))
    assert training_state(curve + noise, 0.05) == expected


@given(st.lists(st.floats(0, 1), max_size=5), st.floats(0.001, 0.5))
def test_fewer_than_six_rounds_say_nothing(scores, margin):
    assert training_state(scores, margin) == TOO_FEW


@given(st.lists(st.floats(0, 1), min_size=6, max_size=60), st.floats(0.001, 0.5), st.floats(-0.5, 0.5))
def test_it_depends_on_gains_alone_and_a_wider_margin_never_turns_a_plateau_into_a_climb(scores, margin, shift):
    state = training_state(scores, margin)
    if abs(recent_gain(scores) - margin / 2) > 1e-9:
        assert training_state([score + shift for score in scores], margin) == state
    if state == PLATEAU:
        assert training_state(scores, 2 * margin) == PLATEAU
