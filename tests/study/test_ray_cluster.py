"""Runs as tasks of a Ray cluster: the same results, a failure named, an interruption mended, nothing left behind."""

import os
import signal
from contextlib import suppress

import pandas as pd
import pytest

from fedlib.config import StudyConfig, UserError
from fedlib.study import ray_cluster as executors
from fedlib.study import runner as study
from fedlib.training.run_store import RunStore, remember_study
from tests.helpers import commands, no_ray_is_left, python, until
from tests.study.test_runner import COMMAND, results, stop_in_the_middle

ONE_CORE = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two nodes, here both on this machine, with a core each, deaf to Ctrl-C.

    So is one that a shell began with `&`.
    """
    from ray.cluster_utils import Cluster

    listens = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what it starts inherits this
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        nodes.add_node(num_cpus=1)
        signal.signal(signal.SIGINT, listens)
        yield nodes.address
    finally:
        nodes.shutdown()
    no_ray_is_left()


@pytest.fixture(scope="module")
def given(prepared):
    """A study of seven runs, so that one that was stopped after the first has some left."""
    data = prepared["segmentation"].folder.parent
    return "--partitions", "balanced", "--client-counts", "2,3,4", "--rounds", 4, "--data", data


@pytest.fixture(scope="module")
def plain(tmp_path_factory, given):
    """Results of the study as it is without Ray."""
    out = tmp_path_factory.mktemp("plain") / "study"
    done = python(*COMMAND, out, *given, env=ONE_CORE)
    assert done.returncode == 0, done.stderr[-2000:]
    return results(out)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
def test_a_cluster_gives_the_results_of_a_plain_study_and_goes_on_after_a_stop(cluster, plain, given, tmp_path, how):
    out, options = tmp_path / "study", (*given, "--executor", "ray", "--address", cluster)
    code = stop_in_the_middle(out, how, *options, env=ONE_CORE)
    stopped = RunStore(out).all()
    if how is signal.SIGINT:
        assert code == 130
        assert [command for command in commands() if command.startswith("ray::_carry_out")] == []
        assert {run.status["state"] for run in stopped} == {"done", "queued"}, "some were under way"
    finished = {run.folder: (run.folder / "status.json").stat().st_mtime_ns for run in stopped if run.done}
    assert 0 < len(finished) < 7, "it was stopped in the middle"
    again = python(*COMMAND, out, *options, env=ONE_CORE)
    assert again.returncode == 0, again.stderr[-2000:]
    pd.testing.assert_frame_equal(results(out), plain, check_exact=True)
    assert {folder: (folder / "status.json").stat().st_mtime_ns for folder in finished} == finished, "not trained again"
    for page in out.glob("segmentation/0[23]*.ipynb"):
        assert "read from the run store" in page.read_text(), "the cluster trained, not the notebook"


@pytest.fixture
def small(tmp_path, prepared):
    """A study whose data and folder are there, as they are when its runs begin."""
    data = prepared["segmentation"]
    parameters = {"client_counts": 2, "partitions": "balanced", "rounds": 1, "data_dir": data.folder}
    made = StudyConfig.make(profile="smoke", task="segmentation", out_dir=tmp_path, **parameters)
    remember_study(made, data)
    return made


@pytest.mark.slow
def test_a_failed_run_does_not_stop_the_others(cluster, small):
    failing, *others = small.runs(executors.open_prepared(small.prepared_dir).fingerprint)
    store = RunStore(small.out_dir)
    (store.folder / failing.run_id / "weights.safetensors").mkdir(parents=True)  # a folder where the weights belong
    executors.run_on_ray([small], 1, cluster, lambda: None)
    assert len(store.done(others)) == len(others) == 2
    assert "weights.safetensors" in store.get(failing.run_id).status["error"]


@pytest.mark.slow
def test_a_run_that_is_called_off_before_its_process_listens_does_not_begin(cluster, small, tmp_path):
    """What Ray starts on this cluster is deaf until `_carry_out` begins, seconds of imports later."""
    import ray

    carry_out, began = executors._carry_out, tmp_path / "began"

    def after_imports(*given):
        began.touch()
        until(ray.get_runtime_context().is_canceled, "not called off")
        return carry_out(*given)

    with executors._connected(cluster):
        ((config, _), *_) = executors._to_do([small])
        task = ray.remote(after_imports).remote(*executors._given(config, small, 1))
        until(began.exists, "not begun")
        ray.cancel(task)
        with suppress(ray.exceptions.TaskCancelledError):  # when the interrupt came later still, to open ears
            assert ray.get(task, timeout=60) is None
    assert RunStore(small.out_dir).all() == []


@pytest.mark.slow
def test_a_node_that_does_not_share_the_folder_or_has_too_few_cores_is_refused(cluster, small, monkeypatch):
    with pytest.raises(UserError, match="a run gets 2 cores .* the largest node has 1; expected a larger --jobs"):
        executors.run_on_ray([small], 2, cluster, lambda: None)
    monkeypatch.setattr(executors, "_seal", lambda folder: "another")  # in this process, as on another machine
    with pytest.raises(UserError, match="node .*: .* is another folder there; expected .* that all nodes share"):
        executors.run_on_ray([small], 1, cluster, lambda: None)
    assert RunStore(small.out_dir).all() == []


def test_an_address_that_nobody_answers_is_one_line(small):
    with pytest.raises(UserError, match="--address 127.0.0.1:1: no Ray cluster answers there .*; expected HOST:PORT"):
        study.run_study([small], executor="ray", address="127.0.0.1:1")
    with pytest.raises(UserError, match="--address nonsense: no Ray cluster answers there"):
        study.run_study([small], executor="ray", address="nonsense")


def test_ray_that_is_missing_or_asked_for_twice_is_one_line(small, monkeypatch):
    with pytest.raises(UserError, match="--engine ray: with --executor ray a run is one process on one node"):
        executors.check_ray([small.but(engine="ray")], None)
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--executor ray: Ray is not installed; expected: pip install -e '\.\[ray\]'"):
        executors.check_ray([small], None)


def test_an_address_without_ray_is_refused():
    done = python(*COMMAND, "nowhere", "--address", "127.0.0.1:6379")
    assert (done.returncode, done.stderr) == (2, "error: --address 127.0.0.1:6379: expected with --executor ray only\n")
