"""What the notebooks ask, and checks that say what is wrong with an answer.

Every check takes the answer first and gives a `Feedback`: right, not yet (with the reason), or not answered yet. None and
`...` are calmly passed over, so that "run all" works before anything is solved. A wrong answer that stems from a known
mistake is told by that mistake; the right ones are computed from the study at hand.
"""

from fedlib.course.exercises.central import (
    check_baseline,
    check_dice,
    check_leak,
    check_runs,
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
)
from fedlib.course.exercises.feedback import Feedback, check_order

__all__ = [
    "Feedback",
    "check_average",
    "check_baseline",
    "check_clients_needed",
    "check_dice",
    "check_leak",
    "check_leftover",
    "check_margin",
    "check_megabytes",
    "check_order",
    "check_pull",
    "check_runs",
    "check_sensitivity",
    "check_smallest_client",
    "check_standard_error",
    "check_steps",
    "check_study",
    "check_travels",
    "check_verdicts",
    "eight_patients",
    "five_arms",
    "rare_disease",
    "split_by_image",
    "two_masks",
]
