"""Statistics before training: what they are, and that no small number leaves a client, nor can be had by subtraction."""

import dataclasses
import functools
import itertools
import math

import numpy as np
import pandas as pd
import pytest

from fedlib.data.partition import clients_of
from fedlib.federated.in_process import InProcessGrid, site_statistics
from fedlib.federated.statistics import HIDDEN, MIN_CELL, describe_site, visible_counts
from tests.helpers import run_config

CLASSES = ["a", "b", "c", "d"]


@functools.cache
def hidden(*counts):
    """Which classes a client hides that has so many cases of each, all of different patients."""
    labels = [name for name, n in zip(CLASSES, counts, strict=False) for _ in range(n)]
    cases = pd.DataFrame({"label": labels, "patient": range(len(labels))})
    told = visible_counts(cases, CLASSES[: len(counts)])
    assert all(math.isnan(value) or value == n for value, n in zip(told.values(), counts, strict=True))
    return tuple(math.isnan(value) for value in told.values())


def possible(counts, at):
    """Numbers that class `at` may have for a server that knows the message, the total and this very rule; five do."""
    others = [n for n, is_hidden in enumerate(hidden(*counts)) if is_hidden and n != at]
    total, found, other = sum(counts[n] for n in (at, *others)), set(), list(counts)
    for values in itertools.product(range(total + 1), repeat=len(others)):
        last = total - sum(values)
        if len(found) == MIN_CELL:
            break
        for n, value in zip((*others, at), (*values, last), strict=True):
            other[n] = value
        if last >= 0 and last not in found and hidden(*other) == hidden(*counts):
            found.add(last)
    return found


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_no_small_number_can_be_had_by_subtraction(n_classes):
    """Even with the exact total and the rule itself, a small number is one of at least five."""
    for counts in itertools.product((0, 1, 4, 5, 8) if n_classes < 4 else (0, 5), repeat=n_classes):
        for at, n in enumerate(counts):
            if n < MIN_CELL <= sum(counts):
                assert hidden(*counts)[at]
                assert len(possible(counts, at)) >= MIN_CELL, (counts, at)


def test_none_is_hidden_without_need():
    assert hidden(5, 5, 60) == (False, False, False)
    assert hidden(4, 60, 60, 60) == (True, True, False, False)
    assert hidden(60, 60, 1, 60) == (True, False, True, False)
    assert hidden(0, 0, 9, 60) == (True, True, True, False)


def test_patients_count_and_not_their_images():
    """Nine images of two patients; and two classes of the same three patients, which together are no more than three."""
    cases = pd.DataFrame({"label": list("aaaaaaaaabbbbbbccccc"), "patient": [*"112222222", *"ABCDEF", *"GHIJK"]})
    assert [math.isnan(n) for n in visible_counts(cases, ["c", "b", "a"]).values()] == [True, False, True]
    cases = pd.DataFrame({"label": list("aaabbbcccccddddd"), "patient": [*"ABCABC", *"DEFGH", *"IJKLM"]})
    assert [math.isnan(n) for n in visible_counts(cases, CLASSES).values()] == [True, True, True, False]


@pytest.fixture
def sent(monkeypatch):
    """The replies to the query for statistics, as the grid delivers them."""
    replies, deliver = [], InProcessGrid.send_and_receive

    def watched(grid, messages, **options):
        for reply in deliver(grid, messages, **options):
            if reply.metadata.message_type == "query.statistics":
                replies.append(reply)
            yield reply

    monkeypatch.setattr(InProcessGrid, "send_and_receive", watched)
    return replies


def test_a_message_holds_a_client_s_own_numbers_and_none_that_is_small(images, sent):
    config = run_config(images, "federated", partition="unbalanced")
    table, n_small = site_statistics(config, images), 0
    for reply, rows in zip(sent, clients_of(config, images), strict=True):
        assert list(reply.content) == list(reply.content.metric_records), "numbers, no text and no arrays"
        own, told = images.cases.iloc[rows], reply.content["cases of a class"]
        assert dict(reply.content["all"]) == {"cases": len(rows), "patients": own["patient"].nunique()}
        for name in images.classes:
            patients = own.loc[own["label"] == name, "patient"].nunique()
            assert math.isnan(told[name]) or (patients >= MIN_CELL and told[name] == (own["label"] == name).sum())
            n_small += patients < MIN_CELL
    assert n_small, "else this tests nothing"
    assert list(table.index) == [1, 2]
    assert (table["cases of a class"] == HIDDEN).to_numpy().sum() >= n_small


def test_a_client_of_few_patients_sends_no_number(volumes, sent):
    """Three hearts each."""
    table = site_statistics(run_config(volumes, "federated"), volumes)
    values = [value for reply in sent for record in reply.content.values() for value in record.values()]
    assert len(values) > 20
    assert all(math.isnan(value) for value in values)
    assert (table == HIDDEN).all(axis=None)


def test_a_strategy_that_keeps_state_is_asked_like_any_other(images):
    before = sorted(images.folder.rglob("*"))
    site_statistics(run_config(images, "federated", strategy="scaffold", batch_norm="local"), images)
    assert sorted(images.folder.rglob("*")) == before


def test_grey_values_are_those_of_all_images_and_one_image_moves_a_share_by_a_step_at_most(images):
    rows = images.cases.loc[images.split("train")].drop_duplicates("patient").index.to_numpy()[:12]
    shares = describe_site(images, rows)["share of grey values"]
    exact, _ = np.histogram(images.images[rows], range(0, 257, 32))
    assert list(shares)[1] == "32 to 63"
    assert np.abs(np.array(list(shares.values())) - exact / exact.sum()).max() <= 0.5 / 12 + 0.001
    changed = np.array(images.images)
    changed[rows[0]] = 255
    other = describe_site(dataclasses.replace(images, images=changed), rows)["share of grey values"]
    assert max(abs(shares[name] - other[name]) for name in shares) <= 1 / 12 + 0.001


def test_sizes_are_means_and_only_where_each_case_has_one(volumes):
    rows = volumes.split("train")
    told = describe_site(volumes, rows)
    assert volumes.cases["spacing_mm"].nunique() > MIN_CELL
    across = volumes.cases["spacing_mm"].iloc[rows].str.split("x").str[2].astype(float)
    assert told["mean spacing as acquired (mm)"]["z"] == pytest.approx(across.mean(), abs=0.051)
    for missing in (np.nan, "unknown", "2x2"):
        cases = volumes.cases.copy()
        cases.loc[rows[0], "spacing_mm"] = missing
        assert describe_site(dataclasses.replace(volumes, cases=cases), rows)["mean spacing as acquired (mm)"] == {}
