"""Train, val and test, stratified by class; a patient's cases stay together, as duplicates do, unless asked otherwise."""

import numpy as np
import pandas as pd

from data_prep.cases import choice
from data_prep.duplicates import linked
from fedlib.config import UserError
from fedlib.data.dataset import SPLITS, assign_groups

FRACTIONS = (0.6, 0.1, 0.3)
"""Train, val, test (*chosen*): a large test split, since the study's question is about differences."""
SPLIT_BY = {
    "patient": "a patient's cases and all duplicates are in one split: the test is of patients never seen",
    "image": "images of one patient, and duplicates, may be on both sides, as in the paper: scores are too high",
}
"""What is kept in one split, and what that means for a report."""


def shares(text: str) -> tuple[float, ...]:
    """Return the fractions of train, val and test for their percents, as in `80,10,10`. Raises UserError."""
    try:
        percents = [float(part) for part in text.split(",")]
    except ValueError:
        percents = []
    if len(percents) != len(SPLITS) or min(percents) < 1 or not np.isclose(sum(percents), 100):
        raise UserError(f"--fractions {text}: expected {len(SPLITS)} percentages with the sum 100, as in 80,10,10")
    return tuple(percent / 100 for percent in percents)


def choices(split_by: str, fractions: tuple[float, ...]) -> list[dict]:
    """Return the rows of the manifest's `choices` that concern the splits."""
    shares = "/".join(f"{100 * fraction:g}" for fraction in fractions)
    return [
        choice("split by", split_by, SPLIT_BY[split_by]),
        choice("fractions", shares, f"percent of the cases in {', '.join(SPLITS)}, stratified by class"),
    ]


def assign_splits(
    cases: pd.DataFrame,
    pairs: pd.DataFrame,
    seed: int,
    fractions: tuple[float, ...] = FRACTIONS,
    split_by: str = "patient",
) -> pd.Series:
    """Return the split of each case (columns case, patient, label, dup_group, split): the stated ones, or drawn by `seed`.

    Raises UserError when a class has too few groups to be in every split, or when stated splits leak between patients.
    """
    group = pd.Series(linked(cases, pairs) if split_by == "patient" else np.arange(len(cases)), cases.index)
    splits = cases["split"] if (cases["split"] != "").any() else _drawn(cases["label"], group, seed, fractions, split_by)
    if stray := sorted(set(splits) - set(SPLITS)):
        raise UserError(
            f"split {stray[0]!r} of case {cases['case'][splits == stray[0]].iloc[0]}: expected {', '.join(SPLITS)}"
        )
    if missing := [name for name in SPLITS if name not in set(splits)]:
        raise UserError(f"split {missing[0]}: no case is in it; expected some in each of {', '.join(SPLITS)}")
    _check_leaks(cases, splits, group)
    return splits


def _check_leaks(cases: pd.DataFrame, splits: pd.Series, group: pd.Series) -> None:
    """Raise UserError, with two cases as witnesses, when cases of one group stand in different splits."""
    for member in splits.groupby(group).nunique().loc[lambda count: count > 1].index[:1]:
        rows = cases[group == member]
        a, b = rows.index[0], splits[rows.index].ne(splits[rows.index[0]]).idxmax()
        same = cases["patient"][a] == cases["patient"][b]
        why = f"both of patient {cases['patient'][a]}" if same else "linked by duplicates"
        raise UserError(
            f"a leak between splits: {cases['case'][a]} ({splits[a]}) and {cases['case'][b]} ({splits[b]}) are {why}; "
            "expected all cases of a patient, and all duplicates, in one split (or --split-by image)"
        )


def _drawn(label: pd.Series, group: pd.Series, seed: int, fractions: tuple[float, ...], split_by: str) -> pd.Series:
    """Draw whole groups. Groups of the same classes form a stratum; a rare mixture counts as the rarest of its classes."""
    sizes = label.groupby(group).size()
    classes = label.groupby(group).agg(lambda labels: tuple(sorted(set(labels))))
    text = classes.map("\0".join)
    rare = text.map(text.value_counts()) < 3 * len(SPLITS)
    cases_of = label.value_counts()
    stratum = text.mask(rare, classes.map(lambda names: min(names, key=lambda name: (cases_of[name], name))))
    rng, receiver = np.random.default_rng(seed), {}
    for name, members in stratum.groupby(stratum):
        if len(members) < len(SPLITS):
            units = "patients (duplicates count as one)" if split_by == "patient" else "images"
            raise UserError(
                f"{f'class {name!r}' if name else 'the set'} has {len(members)} {units}, "
                f"expected at least {len(SPLITS)}: one per split"
            )
        receiver |= assign_groups(sizes[members.index], np.array(fractions), rng)
    return group.map(receiver).map(dict(enumerate(SPLITS)))
