"""Runs as tasks of a Ray cluster: the same results, a failure named, an interruption resumed, nothing left behind."""

import signal
import sys

import pandas as pd
import pytest
import torch

from fedlib.config import StudyConfig, UserError
from fedlib.data.dataset import open_prepared
from fedlib.study import ray_cluster, runner
from fedlib.training.run_store import RunStore
from tests.helpers import commands, no_ray_is_left, python, until
from tests.study.test_runner import COMMAND, results, stop_in_the_middle

pytestmark = pytest.mark.xdist_group("ray")  # with all modules that look whether Ray is left


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two nodes, here both on this machine, which ignores Ctrl-C as one started with `&`."""
    from ray.cluster_utils import Cluster

    listens = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what it starts inherits this
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": torch.get_num_threads()})
    try:
        nodes.add_node(num_cpus=torch.get_num_threads())
        signal.signal(signal.SIGINT, listens)
        yield nodes.address
    finally:
        nodes.shutdown()
    no_ray_is_left()


@pytest.fixture
def small(tmp_path, prepared):
    """A study of three runs."""
    parameters = {"client_counts": 2, "partitions": "balanced", "rounds": 1, "data_dir": prepared["segmentation"].folder}
    return StudyConfig.make(profile="smoke", task="segmentation", out_dir=tmp_path, **parameters)


@pytest.mark.slow
def test_a_cluster_gives_the_results_of_a_plain_study_and_resumes_after_a_stop(cluster, smoke, tmp_path):
    out, options = tmp_path / "study", ("--executor", "ray", "--address", cluster)
    code, _ = stop_in_the_middle(out, signal.SIGINT, *options)
    assert code == 130
    until(lambda: not [command for command in commands() if command.startswith("ray::_train")], "tasks are left", 60)
    finished = {run.folder: (run.folder / "status.json").stat().st_mtime_ns for run in RunStore(out).all() if run.done}
    assert 0 < len(finished) < 5, "it was stopped in the middle"
    again = python(*COMMAND, out, *options)
    assert again.returncode == 0, again.stderr[-2000:]
    pd.testing.assert_frame_equal(results(out), results(smoke), check_exact=True)
    assert {folder: (folder / "status.json").stat().st_mtime_ns for folder in finished} == finished, "not trained again"
    for page in out.glob("segmentation/0[23]*.ipynb"):
        assert "read from the run store" in page.read_text(), "the cluster trained, not the notebook"


@pytest.mark.slow
def test_a_failed_run_is_named_and_does_not_stop_the_others(cluster, small):
    failing, *others = small.runs(open_prepared(small.prepared_dir).fingerprint)
    store = RunStore(small.out_dir)
    (store.folder / failing.run_id / "weights.safetensors").mkdir(parents=True)  # a folder where the weights belong
    ray_cluster.connect(cluster)
    ray_cluster.train_on_cluster([small], 1, lambda: None)
    assert len(store.done(others)) == len(others) == 2
    assert "weights.safetensors" in store.get(failing.run_id).status["error"]


@pytest.mark.slow
def test_a_cluster_that_cannot_train_is_refused_or_named(cluster, small, monkeypatch, tmp_path):
    ray_cluster.connect(cluster)
    with pytest.raises(UserError, match="a run gets 64 cores .* the largest node has .; expected a larger --jobs"):
        ray_cluster.train_on_cluster([small], 64, lambda: None)
    monkeypatch.setattr(ray_cluster.RunStore, "done", lambda *_: [])
    with pytest.raises(UserError, match="a node wrote its run elsewhere; expected a folder that all nodes share"):
        ray_cluster.train_on_cluster([small], 1, lambda: None)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", None])
def test_an_address_that_nobody_replies_at_is_one_line(small, monkeypatch, address):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=f"--address {address or ''}: no Ray cluster replies there .*; expected HOST:PORT"):
        runner.run_study([small], executor="ray", address=address)


def test_ray_that_is_missing_is_one_line(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--executor ray: Ray is not installed; expected: pip install -e '\.\[ray\]'"):
        runner.run_study([small], executor="ray", address="127.0.0.1:6379")


def test_an_address_without_ray_is_refused():
    done = python(*COMMAND, "nowhere", "--address", "127.0.0.1:6379")
    assert (done.returncode, done.stderr) == (2, "error: --address 127.0.0.1:6379: expected with --executor ray only\n")
