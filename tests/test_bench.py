"""The benchmarks: what moved beyond the noise is said, the rest is not; contenders get the same work."""

import json

import pytest
import torch

from tests.bench import plain
from tests.bench.guard import moved
from tests.bench.harness import ratio, ratios_of, side_by_side

MOVES = [(1.04, 0.0, False), (1.06, 0.0, True), (1.2, 0.1, False), (0.8, 0.05, True)]


@pytest.mark.parametrize(("now", "noise", "said"), MOVES)
def test_a_ratio_moves_by_more_than_the_noise_or_not_at_all(now, noise, said):
    accepted = {"a": {"ratio": 1.0, "noise": 0.01}, "gone": {"ratio": 1, "noise": 0}}
    assert [row["ratio"] for row in moved(accepted, {"a": {"ratio": now, "noise": noise}})] == ["a"] * said


def test_ratios_are_found_wherever_they_stand_in_a_report(tmp_path):
    report = {"device": "CPU", "task": {"over": {"2 clients": {"ratio": 1.1, "noise": 0.02, "seconds": 3}}}}
    (tmp_path / "federation.json").write_text(json.dumps(report))
    assert ratios_of(tmp_path) == {"federation / task / over / 2 clients": {"ratio": 1.1, "noise": 0.02}}


def test_contenders_take_turns_in_alternating_order():
    seen = []
    taken = side_by_side({name: lambda name=name: seen.append(name) for name in "ab"}, 2)
    assert "".join(seen) == "baabba"
    assert {name: len(times) for name, times in taken.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_the_median_of_neighbours():
    found = ratio({"a": [2.0, 4.0, 9.0], "b": [1.0, 2.0, 3.0]}, "a", "b")
    assert found["ratio"] == 2
    assert found["noise"] == pytest.approx(0.25)


def test_the_tutorial_s_batches_are_of_our_size_with_black_outside():
    images, labels = torch.full((9, 1, 16, 16), -1.0), torch.arange(9)
    found = list(plain.loader_of(images, labels, 4))
    assert [len(batch["image"]) for batch in found] == [4, 4, 1]
    assert sorted(torch.cat([batch["label"] for batch in found]).tolist()) == list(range(9))
    assert all((batch["image"] == -1).all() for batch in found)
