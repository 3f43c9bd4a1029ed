"""The engines: whatever runs the clients, the bits are the same, a failure is named, and nothing is left behind."""

import pytest

import fedlib.client
from fedlib import engines, experiment, statistics
from fedlib.config import UserError
from fedlib.federation import FederationError
from fedlib.runs import RunStore
from tests.helpers import outcome, ray_processes, run_config


def without(run, *names):
    return {name: value for name, value in outcome(run).items() if name not in ("run_id", "engine", *names)}


def both(data, out, **changes):
    """The same run in this process and in Ray."""
    runs = [run_config(data, "federated", engine=engine, **changes) for engine in ("inprocess", "ray")]
    return [experiment.run(config, data, RunStore(out)) for config in runs]


def test_ray_ends_with_the_same_bits(images, tmp_path):
    plain, ray = both(images, tmp_path)
    assert without(ray) == without(plain)
    assert ray.cases.equals(plain.cases)
    assert ray.clients.drop(columns="seconds").equals(plain.clients.drop(columns="seconds"))


HARD = {
    "segmentation": {},
    "unbalanced": {"partition": "unbalanced", "n_clients": 4, "participation": 0.5},
    "what clients keep": {"strategy": "scaffold", "batch_norm": "local", "transport": "fp16"},
    "noise": {"privacy": "local", "batch_norm": "group"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HARD)
def test_ray_ends_with_the_same_bits_in_harder_cases(prepared, tmp_path, kind):
    data = prepared["segmentation" if kind == "segmentation" else "classification"]
    plain, ray = both(data, tmp_path, **HARD[kind])
    assert without(ray) == without(plain)


def test_a_client_that_fails_under_ray_stops_the_run_by_name_and_leaves_nothing(images, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "client_app", breaking())
    config, store = run_config(images, "federated", engine="ray"), RunStore(tmp_path)
    with pytest.raises(FederationError, match="round 2: client 1 failed: OSError: disk full; expected"):
        experiment.run(config, images, store)
    assert store.get(config.run_id).status["state"] == "failed"
    assert ray_processes() == []
    monkeypatch.undo()
    whole = experiment.run(run_config(images, "federated"), images, store)
    assert without(experiment.run(config, images, store)) == without(whole), "it goes on from its checkpoint"


def breaking():
    """A ClientApp whose client 1 fails in round 2; self-contained, as it is sent to other processes."""
    from flwr.clientapp import ClientApp

    app = ClientApp()
    app.query(mods=[fedlib.client.named])(fedlib.client.present)

    @app.train(mods=[fedlib.client.named])
    def train(message, context):
        if context.node_config["partition-id"] == 1 and message.content["config"]["server-round"] == 2:
            raise OSError("disk full")
        return fedlib.client.train(message, context)

    return app


@pytest.mark.slow
def test_ray_runs_on_a_cluster_by_its_address(images, tmp_path, monkeypatch):
    """A cluster of two nodes, here both on this machine; it is there before the run and after it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        plain, ray = both(images, tmp_path)
        assert without(ray) == without(plain)
        assert len(cluster.list_all_nodes()) == 2
    finally:
        cluster.shutdown()
    assert ray_processes() == []


@pytest.mark.slow
def test_under_ray_a_quorum_lets_a_round_go_on(images, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "client_app", breaking())
    run = experiment.run(run_config(images, "federated", engine="ray", quorum=0.5), images, RunStore(tmp_path))
    assert statistics.absences([run])[["round", "client", "absent"]].to_numpy().tolist() == [
        [2, 1, "client 1 failed: OSError: disk full"]
    ]


def test_an_engine_without_its_package_is_one_line(images, tmp_path, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"engine = 'ray': Ray is not installed; expected: pip install -e '\.\[ray\]'"):
        experiment.run(run_config(images, "federated", engine="ray"), images, RunStore(tmp_path))
