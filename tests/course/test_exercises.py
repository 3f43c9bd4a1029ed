"""The checks of the exercises: right answers, wrong ones, nearly right ones, none, and answers of any kind."""

import inspect
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedlib.config import StudyConfig
from fedlib.course import exercises
from fedlib.course.feedback import Feedback, Solution, compare
from fedlib.data.dataset import PreparedDataset

STUDY = StudyConfig.make(profile="quick", client_counts="2,4,8", seed="1,2", rounds=3, local_epochs=2)  # batches of 8
TRUTH, PREDICTED = exercises.two_masks()
CONFUSION = exercises.rare_disease()
SENT, CASES = [np.array([[1.0, 2.0]]), np.array([[3.0, 8.0]])], [10, 30]
WEIGHTS, START = np.array([1.0, 2.0]), np.array([0.0, 4.0])
UPDATES = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]])
MASKED = UPDATES + [[7.0, 1.0], [-4.0, 5.0], [-3.0, -6.0]]
MEASURED = {"even": 0.7, "uneven": -0.1, "same": 0.705}
LAYER = {"weight": np.array([[0.1, 0.2], [0.3, -0.1]]), "bias": np.array([0.05, 0.1])}
STEPPED = {"weight": LAYER["weight"] + [[0.02, 0.06], [0.01, 0.03]], "bias": LAYER["bias"] + [0.2, 0.1]}  # image: 0.1, 0.3
TRAVELS = {"weights", "number of cases", "training loss"}
COLLEAGUE = SimpleNamespace(cases=exercises.split_by_image())

RIGHT = [
    (exercises.check_travels, TRAVELS, ()),
    (exercises.check_travels, sorted(TRAVELS), ()),
    (exercises.check_runs, 26, (STUDY,)),
    (exercises.check_runs, np.int64(26), (STUDY,)),
    (exercises.check_leak, 3, ()),
    (exercises.check_seen, 0.5, (COLLEAGUE,)),
    (exercises.check_rounds, 72, (360, 50, 10)),
    (exercises.check_rounds, 72, (359, 50, 10)),
    (exercises.check_dice, 0.643, (TRUTH, PREDICTED)),
    (exercises.check_sensitivity, (6 / 20 + 175 / 180) / 2, (CONFUSION,)),
    (exercises.check_average, [[2.5, 6.5]], (SENT, CASES)),
    (exercises.check_megabytes, 48, (1e6, 3, 2)),
    (exercises.check_pull, 0.1 * (WEIGHTS - START), (WEIGHTS, START, 0.1)),
    (exercises.check_break_even, 1 / 9, (exercises.two_models(),)),
    (exercises.check_break_even, 0.11, (exercises.two_models(),)),
    (exercises.check_leftover, [3.0, 6.0], (MASKED, UPDATES)),
    (exercises.check_clients_needed, 200, (2.0, 1.0, 0.01)),
    (exercises.check_recovered, [0.1, 0.3], (LAYER, STEPPED)),
    (exercises.check_recovered, torch.tensor([0.105, 0.295]), (LAYER, STEPPED)),
    (exercises.check_order, ["even", "same", "uneven"], (MEASURED,)),
    (exercises.check_order, ["same", "even", "uneven"], (MEASURED,)),
    (exercises.check_order, ["a", "b"], ({"a": 0.25, "b": 0.25},)),
    (exercises.check_dice, 0.64, (TRUTH, PREDICTED)),
    (exercises.check_dice, Fraction(9, 14), (TRUTH, PREDICTED)),
    (exercises.check_dice, torch.tensor(0.6429), (TRUTH, PREDICTED)),
    (exercises.check_dice, torch.tensor(9 / 14, requires_grad=True), (TRUTH, PREDICTED)),
    (exercises.check_dice, torch.tensor(0.6429, dtype=torch.bfloat16), (TRUTH, PREDICTED)),
    (exercises.check_dice, np.float32(0.6429), (TRUTH, PREDICTED)),
    (exercises.check_dice, pd.Series([0.6429]), (TRUTH, PREDICTED)),
    (exercises.check_dice, [0.6429], (TRUTH, PREDICTED)),
    (exercises.check_dice, pd.Series([0.6429], dtype=object), (TRUTH, PREDICTED)),
    (exercises.check_dice, np.array(0.6429, object), (TRUTH, PREDICTED)),
    (exercises.check_dice, Decimal("0.64"), (TRUTH, PREDICTED)),
    (exercises.check_dice, [torch.tensor([0.6429])], (TRUTH, PREDICTED)),
    (exercises.check_leftover, (3, 6), (MASKED, UPDATES)),
    (exercises.check_sensitivity, 0.64, (CONFUSION,)),
    (exercises.check_standard_error, 0.0027, (exercises.eight_patients(),)),
    (exercises.check_average, torch.tensor([[2.5, 6.5]], requires_grad=True), (SENT, CASES)),
    (exercises.check_average, [[torch.tensor(2.5, requires_grad=True), 6.5]], (SENT, CASES)),
    (exercises.check_average, pd.DataFrame([[2.5, 6.5]]), (SENT, CASES)),
    (exercises.check_leftover, pd.Series([3.0, 6.0]), (MASKED, UPDATES)),
    (exercises.check_travels, pd.Series(sorted(TRAVELS)), ()),
    (exercises.check_order, np.array(["even", "same", "uneven"]), (MEASURED,)),
    (exercises.check_travels, ", ".join(sorted(TRAVELS)), ()),
    (exercises.check_order, "even, same, uneven", (MEASURED,)),
    (exercises.check_order, ["Even", " same", "UNEVEN"], (MEASURED,)),
]
# answer, what it is checked against, and a word of what the check must say
NOT_YET = [
    (exercises.check_travels, TRAVELS | {"images"}, (), "never leave"),
    (exercises.check_travels, TRAVELS | {"labels"}, (), "stay there"),
    (exercises.check_travels, {"weights"}, (), "2 more"),
    (exercises.check_travels, [["weights"]], (), "set of words"),
    (exercises.check_travels, {"wieghts"}, (), "wieghts"),
    (exercises.check_travels, 3, (), "set of words"),
    (exercises.check_runs, 24, (STUDY,), "centralized run is missing"),
    (exercises.check_runs, 14, (STUDY,), "local models"),
    (exercises.check_runs, 13, (STUDY,), "seed"),
    (exercises.check_runs, 36, (STUDY,), "no clients"),
    (exercises.check_runs, 27, (STUDY,), "too large"),
    (exercises.check_runs, 26.1, (STUDY,), "too large"),
    (exercises.check_runs, True, (STUDY,), "one finite number"),
    (exercises.check_runs, 26 + 0j, (STUDY,), "one finite number"),
    (exercises.check_runs, float("nan"), (STUDY,), "finite"),
    (exercises.check_runs, "26", (STUDY,), "one finite number"),
    (exercises.check_runs, [26, 1], (STUDY,), "one finite number"),
    (exercises.check_study, {"task": "segmentation"}, (), "StudyConfig.make"),
    (exercises.check_study, STUDY, (), "task"),
    (exercises.check_leak, 7, (), "how many images"),
    (exercises.check_leak, 4, (), "all of them are in one split"),
    (exercises.check_leak, 8, (), "how many patients there are"),
    (exercises.check_leak, 2, (), "validation"),
    (exercises.check_seen, 2 / 7, (COLLEAGUE,), "training images"),
    (exercises.check_seen, 50, (COLLEAGUE,), "percentage"),
    (exercises.check_rounds, 7.2, (360, 50, 10), "as many rounds"),
    (exercises.check_rounds, 71, (359, 50, 10), "round up"),
    (exercises.check_rounds, 360, (360, 50, 10), "several"),
    (exercises.check_dice, 9 / 19, (TRUTH, PREDICTED), "Jaccard"),
    (exercises.check_dice, 9 / 28, (TRUTH, PREDICTED), "factor 2"),
    (exercises.check_dice, (TRUTH == PREDICTED).mean(), (TRUTH, PREDICTED), "background"),
    (exercises.check_dice, 9 / 16, (TRUTH, PREDICTED), "beside"),
    (exercises.check_dice, 9 / 12, (TRUTH, PREDICTED), "missed"),
    (exercises.check_dice, 0.6, (TRUTH, PREDICTED), "too small"),
    (exercises.check_dice, 0.63, (TRUTH, PREDICTED), "too small"),
    (exercises.check_dice, 64.3, (TRUTH, PREDICTED), "percentage"),
    (exercises.check_sensitivity, 63.6, (CONFUSION,), "percentage"),
    (exercises.check_sensitivity, 181 / 200, (CONFUSION,), "accuracy"),
    (exercises.check_sensitivity, 0.3, (CONFUSION,), "only"),
    (exercises.check_sensitivity, (6 / 11 + 175 / 189) / 2, (CONFUSION,), "predictive"),
    (exercises.check_average, [[2.0, 5.0]], (SENT, CASES), "plain mean"),
    (exercises.check_average, [[100.0, 260.0]], (SENT, CASES), "Divide"),
    (exercises.check_average, [[4.0, 10.0]], (SENT, CASES), "plain sum"),
    (exercises.check_average, [[1.5, 3.5]], (SENT, CASES), "order"),
    (exercises.check_average, [2.5, 6.5], (SENT, CASES), "shape"),
    (exercises.check_average, [[2.5, 6.6]], (SENT, CASES), "off by up to 0.1"),
    (exercises.check_average, "mean", (SENT, CASES), "array of finite numbers"),
    (exercises.check_megabytes, 24, (1e6, 3, 2), "up again"),
    (exercises.check_megabytes, 16, (1e6, 3, 2), "every client"),
    (exercises.check_megabytes, 384, (1e6, 3, 2), "4 bytes"),
    (exercises.check_megabytes, 48e6, (1e6, 3, 2), "not bytes"),
    (exercises.check_megabytes, 48e6 / 2**20, (1e6, 3, 2), "2^20"),
    (exercises.check_pull, 0.1 * (START - WEIGHTS), (WEIGHTS, START, 0.1), "against the gradient"),
    (exercises.check_pull, WEIGHTS - START, (WEIGHTS, START, 0.1), "μ is missing"),
    (exercises.check_pull, 0.2 * (WEIGHTS - START), (WEIGHTS, START, 0.1), "twice"),
    (exercises.check_pull, 0.1, (WEIGHTS, START, 0.1), "shape"),
    (exercises.check_break_even, 8 / 9, (exercises.two_models(),), "common disease"),
    (exercises.check_break_even, 1 / 8, (exercises.two_models(),), "both together"),
    (exercises.check_break_even, 11.1, (exercises.two_models(),), "percentage"),
    (exercises.check_break_even, 0.5, (exercises.two_models(),), "not equally large"),
    (exercises.check_leftover, [0, 0], (MASKED, UPDATES), "nothing remains"),
    (exercises.check_leftover, [-3.0, -6.0], (MASKED, UPDATES), "opposite"),
    (exercises.check_leftover, MASKED[:2].sum(axis=0), (MASKED, UPDATES), "server's sum"),
    (exercises.check_clients_needed, 200**2, (2.0, 1.0, 0.01), "square root"),
    (exercises.check_clients_needed, 100, (2.0, 1.0, 0.01), "multiplier is missing"),
    (exercises.check_recovered, [0.02, 0.06], (LAYER, STEPPED), "divide"),
    (exercises.check_recovered, STEPPED["weight"][0] / STEPPED["bias"][0], (LAYER, STEPPED), "what the step changed"),
    (exercises.check_recovered, [-0.1, -0.3], (LAYER, STEPPED), "sign"),
    (exercises.check_recovered, [0.5, 0.5], (LAYER, STEPPED), "off by"),
    (exercises.check_recovered, [[0.1, 0.3]], (LAYER, STEPPED), "shape"),
    (exercises.check_order, ["uneven", "even", "same"], (MEASURED,), "even is above uneven"),
    (exercises.check_order, ["even", "uneven"], (MEASURED,), "each once"),
    (exercises.check_order, 3, (MEASURED,), "list of names"),
    (exercises.check_order, set(MEASURED), (MEASURED,), "no order"),
    (exercises.check_order, [["even"], "same"], (MEASURED,), "each once"),
]
CHECKS = {
    check for name, check in vars(exercises).items() if name.startswith("check_") and check is not exercises.check_value
}


@pytest.mark.parametrize(("check", "answer", "given"), RIGHT)
def test_a_right_answer_is_right(check, answer, given):
    feedback = check(answer, *given)
    assert feedback.right is True, feedback
    assert repr(feedback).startswith("Right: ")


@pytest.mark.parametrize(("check", "answer", "given", "word"), NOT_YET)
def test_a_wrong_answer_is_told_by_its_mistake(check, answer, given, word):
    feedback = check(answer, *given)
    assert feedback.right is False
    assert word in feedback.text
    assert repr(feedback).startswith("Not yet: ")
    assert "\n" not in repr(feedback)


@pytest.mark.parametrize("nothing", [None, ...])
def test_no_answer_is_one_calm_line(nothing):
    for check in CHECKS:
        feedback = check(nothing, *([None] * 3))
        assert feedback.right is None
        assert repr(feedback) == "Not answered yet: put your answer in place of None and run this cell again."


def test_a_study_is_told_by_its_first_difference():
    asked = {"task": "segmentation", "client_counts": "2,4", "rounds": 5, "seed": "1,2,3"}
    for same in ({}, {"client_counts": "4,2", "seed": "3,1,2"}):
        assert exercises.check_study(StudyConfig.make(**asked | same)).right
    for changed in ({"seed": 3}, {"rounds": 6}, {"client_counts": "2,8"}):
        feedback = exercises.check_study(StudyConfig.make(**asked | changed))
        assert not feedback.right
        assert next(iter(changed)) in feedback.text


def test_the_baseline_is_that_of_the_test_split(data):
    train, test = (np.asarray(data.labels[data.split(split)]) for split in ("train", "test"))
    commonest = np.bincount(train.ravel()).argmax()
    right = (test == commonest).mean()
    assert exercises.check_baseline(right, data).right
    assert "percentage" in exercises.check_baseline(100 * right, data).text
    assert not exercises.check_baseline(right + 0.1, data).right
    if data.task == "segmentation":
        assert "background" in exercises.check_baseline(right, data).text
        assert "equally frequent" in exercises.check_baseline(1 / 3, data).text


def test_the_smallest_client_may_be_off_by_a_little_but_not_by_a_mistake(images):
    study, n = StudyConfig.make(client_counts=4, unbalance_ratio=4), len(images.split("train"))
    check = exercises.check_smallest_client
    sizes = 4 ** -np.linspace(0, 1, 4)
    own = n * sizes / sizes.sum()
    assert check(own[-1], images, study).right
    assert check(own[-1] + 0.5, images, study).right
    assert "equal share" in check(n / 4, images, study).text
    assert "largest" in check(own[0], images, study).text
    assert "ratio" in check(n / 16, images, study).text


def test_steps_are_counted_by_batches_rounded_up(images):
    n = len(images.split("train"))
    study = STUDY.model_copy(update={"batch_size": n // 2 - 1})  # 2 full batches and a rest: 3 steps
    check = exercises.check_steps
    assert check(3 * 6, study, images).right
    assert "round" in check(2 * 6, study, images).text
    assert "one epoch" in check(3, study, images).text
    assert "local epochs" in check(9, study, images).text
    assert "batch" in check(6 * n, study, images).text


class Hostile:
    """Raises in every method that a check could call."""

    def _raise(self, *_):
        raise RuntimeError("no\nway")

    __array__ = __iter__ = __len__ = __float__ = __str__ = __repr__ = __eq__ = __hash__ = __getattr__ = _raise


def deep():
    """A list that holds itself."""
    answer = []
    answer.append(answer)
    return answer


SCALARS = [st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.fractions(), st.decimals()]
SCALARS += [st.text(), st.binary(), st.dates(), st.builds(Hostile), st.just(dict), st.just(print), st.builds(deep)]
SHAPES = arrays.array_shapes(min_dims=0, min_side=0)
ARRAYS = arrays.arrays(arrays.scalar_dtypes(), SHAPES)
TENSORS = arrays.arrays(np.float32, SHAPES).map(lambda array: torch.from_numpy(array).requires_grad_())
SERIES = ARRAYS.filter(lambda array: array.ndim == 1 and array.dtype.kind not in "Mm").map(pd.Series)  # pandas limits dates
KEYS = st.text() | st.integers()
NESTED = st.recursive(st.one_of(*SCALARS), lambda some: st.lists(some) | st.tuples(some) | st.dictionaries(KEYS, some))
LABELS = np.arange(10, dtype=np.uint8) % 3
DATA = PreparedDataset(
    Path(), {"classes": ["a", "b", "c"]}, pd.DataFrame({"split": ["train"] * 6 + ["test"] * 4}), np.zeros((10, 1)), LABELS
)
EVERY = {check: against for check, _, against in RIGHT} | {
    exercises.check_study: (),
    exercises.check_verdicts: (exercises.five_arms(), 0.05),
    exercises.check_margin: (pd.DataFrame({"mode": ["federated"], "smallest_margin": [0.02]}),),
    exercises.check_baseline: (DATA,),
    exercises.check_smallest_client: (DATA, STUDY),
    exercises.check_steps: (STUDY, DATA),
}


@pytest.mark.filterwarnings("ignore")
@hypothesis.settings(deadline=None)
@hypothesis.given(answer=st.one_of(NESTED, ARRAYS, TENSORS, SERIES, st.sets(KEYS)))
def test_no_answer_makes_a_check_raise(answer):
    assert set(EVERY) == CHECKS, "every check is thrown at"
    for check, against in EVERY.items():
        feedback = check(answer, *against)
        assert isinstance(feedback, Feedback)
        assert feedback.text
        assert "\n" not in repr(feedback)


@hypothesis.given(digits=st.integers(2, 6), right=st.floats(1e-3, 1e6))
def test_correct_rounding_is_right_and_the_next_rounding_is_not(digits, right):
    rounded = float(f"{right:.{digits}g}")
    assert compare(rounded, Solution(right, "yes.")).right
    assert compare(torch.tensor([rounded]), Solution(right, "yes.")).right
    assert compare([rounded, 1], Solution(np.array([right, 1]), "yes.")).right
    assert not compare(right * 1.06, Solution(right, "yes.")).right


@pytest.mark.parametrize("name", ["check_dice", "check_order"])
def test_a_check_shows_that_the_answer_comes_first(name):
    check = getattr(exercises, name)
    assert (check.__name__, next(iter(inspect.signature(check).parameters))) == (name, "answer")
    assert check.__doc__


ARMS, PATIENTS = exercises.five_arms(), exercises.eight_patients()
VERDICTS = {"A": "equivalent", "B": "non-inferior", "C": "inferior", "D": "inconclusive", "E": "superior"}


def test_verdicts_follow_from_the_intervals():
    assert exercises.check_verdicts(VERDICTS, ARMS, 0.05).right
    assert exercises.check_verdicts(VERDICTS | {"B": "non inferior"}, ARMS, 0.05).right
    assert exercises.check_verdicts({arm: verdict.title() for arm, verdict in VERDICTS.items()}, ARMS, 0.05).right
    assert exercises.check_verdicts(None, ARMS, 0.05).right is None


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"D": "equivalent"}, "does not show that two are equal"),
        ({"A": "inferior"}, "being below zero is not enough"),
        ({"A": "non-inferior"}, "hold zero"),
        ({"B": "superior"}, "above zero"),
        ({"E": "non-inferior"}, "hold zero"),
        ({"D": ["equivalent"]}, "none of"),
        ({"B": "equivalent"}, "on both sides"),
        ({"C": "inconclusive"}, "on both sides of minus the margin"),
        ({"C": "worse"}, "worse"),
    ],
)
def test_a_wrong_verdict_is_told_by_its_mistake(changed, word):
    feedback = exercises.check_verdicts(VERDICTS | changed, ARMS, 0.05)
    assert feedback.right is False
    assert feedback.text.startswith(next(iter(changed)))
    assert word in feedback.text


def test_a_verdict_that_is_missing_is_named():
    assert "D" in exercises.check_verdicts({"A": "equivalent", "B": "non-inferior", "C": "inferior"}, ARMS, 0.05).text
    assert "dictionary" in exercises.check_verdicts("equivalent", ARMS, 0.05).text


def test_the_standard_error_is_paired():
    one, other = PATIENTS["centralized"].to_numpy(), PATIENTS["federated"].to_numpy()
    check, paired = exercises.check_standard_error, (other - one).std(ddof=1)
    assert check(paired / 8**0.5, PATIENTS).right
    assert "different patients" in check(((one.var(ddof=1) + other.var(ddof=1)) / 8) ** 0.5, PATIENTS).text
    assert "standard deviation" in check(paired, PATIENTS).text
    assert "ddof=1" in check((other - one).std() / 8**0.5, PATIENTS).text
    assert "mean difference" in check((other - one).mean(), PATIENTS).text
    assert "square root" in check(paired / 8, PATIENTS).text


def test_the_margin_is_that_of_the_worst_federated_arm():
    table = pd.DataFrame(
        {"mode": ["centralized", "local", "federated", "federated"], "smallest_margin": [np.nan, 0.4, 0.02, 0.1]}
    )
    check = exercises.check_margin
    assert check(0.1, table).right
    assert "one arm" in check(0.02, table).text
    assert "mean" in check(0.06, table).text
    assert "too large" in check(0.4, table).text
    nothing = table.assign(smallest_margin=np.nan)
    assert check(float("nan"), nothing).right
    assert "any answer" in check(0.1, nothing).text
