"""Train, val and test: stratified by class; a patient's cases stay together, and so do duplicates."""

import numpy as np
import pandas as pd

from data_prep.duplicates import linked
from fedlib.config import UserError
from fedlib.data.dataset import SPLITS, deal_groups

FRACTIONS = (0.6, 0.1, 0.3)
"""Train, val, test (*chosen*): a large test split, since the study's question is about differences."""


def assign_splits(cases: pd.DataFrame, pairs: pd.DataFrame, seed: int) -> pd.Series:
    """The split of each case (columns case, patient, label, dup_group, split): the stated ones, or dealt by `seed`.

    Raises UserError when a class has too few groups to be in every split, or when stated splits leak.
    """
    group = pd.Series(linked(cases, pairs), cases.index)
    splits = cases["split"] if (cases["split"] != "").any() else _dealt(cases["label"], group, seed)
    if stray := sorted(set(splits) - set(SPLITS)):
        raise UserError(
            f"split {stray[0]!r} of case {cases['case'][splits == stray[0]].iloc[0]}: expected {', '.join(SPLITS)}"
        )
    if missing := [name for name in SPLITS if name not in set(splits)]:
        raise UserError(f"split {missing[0]}: no case is in it; expected some in each of {', '.join(SPLITS)}")
    check_leaks(cases, splits, group)
    return splits


def check_leaks(cases: pd.DataFrame, splits: pd.Series, group: pd.Series) -> None:
    """Raise UserError, with two cases as witnesses, when cases of one group stand in different splits."""
    for member in splits.groupby(group).nunique().loc[lambda count: count > 1].index[:1]:
        rows = cases[group == member]
        a, b = rows.index[0], splits[rows.index].ne(splits[rows.index[0]]).idxmax()
        why = (
            f"both of patient {cases['patient'][a]}"
            if cases["patient"][a] == cases["patient"][b]
            else "linked by duplicates"
        )
        raise UserError(
            f"a leak between splits: {cases['case'][a]} ({splits[a]}) and {cases['case'][b]} ({splits[b]}) are {why}; "
            "expected all cases of a patient, and all duplicates, in one split"
        )


def _dealt(label: pd.Series, group: pd.Series, seed: int) -> pd.Series:
    """Deal whole groups. Groups of the same classes form a stratum; a rare mixture counts as the rarest of its classes."""
    sizes = label.groupby(group).size()
    classes = label.groupby(group).agg(lambda labels: tuple(sorted(set(labels))))
    text = classes.map("\0".join)
    rare = text.map(text.value_counts()) < 3 * len(SPLITS)
    cases_of = label.value_counts()
    stratum = text.mask(rare, classes.map(lambda names: min(names, key=lambda name: (cases_of[name], name))))
    rng, receiver = np.random.default_rng(seed), {}
    for name, members in stratum.groupby(stratum):
        if len(members) < len(SPLITS):
            raise UserError(
                f"{f'class {name!r}' if name else 'the set'} has {len(members)} patients (duplicates count as one), "
                f"expected at least {len(SPLITS)}: one per split"
            )
        receiver |= deal_groups(sizes[members.index], np.array(FRACTIONS), rng)
    return group.map(receiver).map(dict(enumerate(SPLITS)))
