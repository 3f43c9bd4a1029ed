"""What travels: arrays that turn into bytes only on the way, their size, and the same bits with and without."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedlib.federated import client_app as client
from fedlib.federated import server as federation
from fedlib.federated import strategies
from fedlib.federated.messages import LiveArray, cast, fault_of, live, packed, record_of, serialized_bytes
from fedlib.study import experiment
from fedlib.training.run_store import RunStore
from tests.helpers import run_config

FIELDS = ("dtype", "shape", "stype", "data")
KINDS = st.sampled_from(["float32", "float16", "int64"])


@given(arrays.arrays(KINDS, arrays.array_shapes(min_dims=0, max_dims=3, max_side=4)))
def test_a_live_array_is_flowers_on_the_wire(values):
    live, plain = LiveArray(values), Array(values)
    assert [getattr(live, name) for name in FIELDS] == [getattr(plain, name) for name in FIELDS]
    assert live.object_id == plain.object_id, "what a SuperLink stores it under"
    assert live.deflate() == plain.deflate()
    there = recorddict_from_proto(recorddict_to_proto(RecordDict({"arrays": record_of({"w": live})})))
    assert type(there["arrays"]["w"]) is Array
    np.testing.assert_array_equal(there["arrays"]["w"].numpy(), values)


def test_what_is_packed_is_a_copy_in_plain_order():
    weight = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    values = packed({"w": weight})["w"].numpy()
    weight += 1
    assert values.flags.c_contiguous
    assert values.ravel().tolist() == list(range(24))


def test_live_weights_are_the_models_own():
    weight = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    values = live({"w": weight})["w"].numpy()
    assert np.shares_memory(values, weight.numpy())
    there = recorddict_from_proto(recorddict_to_proto(RecordDict({"arrays": record_of({"w": LiveArray(values)})})))
    np.testing.assert_array_equal(there["arrays"]["w"].numpy(), weight.numpy())


def test_counters_stay_whole_numbers_in_half_precision():
    content = RecordDict({"arrays": ArrayRecord({"n": Array(np.array(70000)), "w": Array(np.ones(3, "f4"))}),
                          "config": ConfigRecord({"a": 1})})  # fmt: skip
    there = cast(content, np.float16)
    assert there["arrays"]["n"].numpy() == 70000
    assert there["arrays"]["w"].dtype == "float16"
    assert cast(there, np.float32)["arrays"]["w"].dtype == "float32"
    assert content["arrays"]["w"].dtype == "float32", "the sender's own stays"
    assert there["config"] == content["config"]


@pytest.mark.parametrize("n", [1, 200, 70000])
def test_bytes_are_those_of_the_protobuf_without_settings(n):
    content = RecordDict({"arrays": packed({"w": torch.zeros(5, 5)}), "metrics": MetricRecord({"n": n, "loss": 0.5})})
    expected = recorddict_to_proto(content).ByteSize()
    content["config"] = ConfigRecord({"folder": "x" * 1000})
    assert serialized_bytes(content) == expected
    assert serialized_bytes(cast(content, np.float16)) == expected - 25 * 2


def test_an_array_that_is_not_what_it_says_is_a_fault():
    initial = packed({"w": torch.zeros(2, 3)})
    lying = Array(dtype="float32", shape=(2, 3), stype="numpy.ndarray", data=Array(np.zeros((3, 2), "f4")).data)
    assert fault_of(record_of({"w": lying}), initial) == "w is float32 (3, 2), expected float32 (2, 3)"


SERIALIZED = {
    "fedavg": {},
    "fedavgm": {"strategy": "fedavgm"},
    "fedadam": {"strategy": "fedadam"},
    "fedmedian": {"strategy": "fedmedian"},
    "krum": {"strategy": "krum", "n_clients": 4},
    "scaffold": {"strategy": "scaffold"},
    "local noise": {"privacy": "local", "batch_norm": "group"},
    "central noise": {"privacy": "central", "batch_norm": "group"},
}


@pytest.mark.parametrize("changes", SERIALIZED.values(), ids=list(SERIALIZED))
def test_nobody_changes_what_another_one_reads(images, tmp_path, monkeypatch, changes):
    """Live arrays are shared between server and clients; with Flower's, each has a copy: the bits must be the same."""
    config = run_config(images, "federated", **({"n_clients": 2} | changes))
    live = experiment.run(config, images, RunStore(tmp_path / "live"))
    for module in (client, federation):
        monkeypatch.setattr(module, "packed", ArrayRecord.from_torch_state_dict)
    monkeypatch.setattr(strategies, "LiveArray", Array)
    monkeypatch.setattr(strategies, "record_of", ArrayRecord)
    copied = experiment.run(config, images, RunStore(tmp_path / "copied"))
    assert copied.result["weights_sha256"] == live.result["weights_sha256"]
    assert copied.result["bytes"] == live.result["bytes"]
