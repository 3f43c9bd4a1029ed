"""Exercises of the notebooks, with checks that name the mistake behind a wrong answer.

Every check takes the answer first and returns a `Feedback`: right, not yet (with the reason) or not answered yet. None and
`...` count as no answer, so "run all" works before anything is solved. Right answers are computed from the study at hand.
"""

from fedlib.course.exercises.central import (
    check_baseline,
    check_dice,
    check_leak,
    check_runs,
    check_seen,
    check_sensitivity,
    check_smallest_client,
    check_steps,
    check_study,
    check_travels,
    rare_disease,
    split_by_image,
    two_masks,
)
from fedlib.course.exercises.evidence import (
    check_margin,
    check_standard_error,
    check_verdicts,
    eight_patients,
    five_arms,
)
from fedlib.course.exercises.federated import (
    check_average,
    check_clients_needed,
    check_leftover,
    check_megabytes,
    check_pull,
    check_rounds,
)
from fedlib.course.exercises.feedback import Feedback, check_order
