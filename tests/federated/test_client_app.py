"""A client: what it keeps and when, what travels, what its errors tell, and which node is refused."""

import json
import logging
import re

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from safetensors.torch import load_file

from fedlib import tasks
from fedlib.federated import client_app, server_app
from fedlib.federated.checked_strategy import FederationError
from fedlib.federated.client_app import ClientState, NodeError, local_state, shared_state
from fedlib.federated.in_process import InProcessGrid
from fedlib.federated.strategies import get_server_state
from fedlib.study import experiment
from fedlib.training import execution
from fedlib.training.run_store import RunStore, software
from tests.federated.spoil import spoil_round
from tests.helpers import outcome, run_config


def federated(images, out, **changes):
    return experiment.run(run_config(images, "federated", **changes), images, RunStore(out))


# State


def test_a_client_keeps_what_the_server_accepted_and_nothing_else(tmp_path):
    path = tmp_path / "run" / "client1.safetensors"
    with pytest.raises(NodeError, match="its state of round 1 is missing"):
        ClientState(path, 1)
    for accepted, number in ((0, 1), (1, 2), (1, 3), (3, 11)):
        ClientState(path, accepted).save(number, {"w": torch.tensor([float(number)])})
    assert [ClientState(path, number).kept["w"].item() for number in (3, 11)] == [3, 11]
    assert ClientState(path, 0).kept == {}
    for forgotten in (1, 2):
        with pytest.raises(NodeError, match=f"its state of round {forgotten} is missing"):
            ClientState(path, forgotten)


@pytest.fixture
def hospital(monkeypatch, tmp_path):
    """Give every node a permanent state-dir, as a hospital has."""
    change_nodes(monkeypatch, {"state-dir": str(tmp_path / "hospital")})
    return tmp_path / "hospital"


def kept(hospital, run, client):
    """The file in which a hospital's client keeps its state of a run."""
    return RunStore(hospital).folder / run.config.run_id / "checkpoints" / f"client{client}.safetensors"


def rounds_kept(hospital, run, client):
    """The rounds whose states are in that file."""
    return {name.partition(".")[0] for name in load_file(kept(hospital, run, client))}


def change_nodes(monkeypatch, node):
    init = InProcessGrid.__init__

    def changed(grid, *arguments):
        init(grid, *arguments)
        for context in grid.contexts.values():
            context.node_config = {key: value for key, value in (context.node_config | node).items() if value is not None}

    monkeypatch.setattr(InProcessGrid, "__init__", changed)


@pytest.mark.parametrize("changes", [{"strategy": "scaffold"}, {"batch_norm": "local"}], ids=["SCAFFOLD", "FedBN"])
def test_a_run_that_begins_again_forgets_the_state_of_an_earlier_one(images, tmp_path, hospital, changes):
    runs = [federated(images, tmp_path / out, rounds=3, **changes) for out in ("one", "two")]
    assert outcome(runs[0]) == outcome(runs[1])
    for client in (0, 1):
        assert rounds_kept(hospital, runs[0], client) == {"2", "3"}


@pytest.mark.parametrize("removed", ["global.safetensors", "client*"], ids=["at the server", "at the clients"])
def test_a_checkpoint_removed_on_one_side_begins_anew_or_is_refused(images, tmp_path, monkeypatch, removed):
    config = run_config(images, "federated", strategy="scaffold", batch_norm="local", rounds=3)
    whole, store = experiment.run(config, images, RunStore(tmp_path / "whole")), RunStore(tmp_path / "parts")
    with monkeypatch.context() as patched:
        spoil_round(patched, 1, 3, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config, images, store)
    for path in (store.folder / config.run_id / "checkpoints").rglob(removed):
        path.unlink()
    if removed == "global.safetensors":
        assert outcome(experiment.run(config, images, store)) == outcome(whole)
    else:
        with pytest.raises(FederationError, match="client 0 failed: NodeError: its state of round 2 is missing"):
            experiment.run(config, images, store)


def test_with_a_quorum_the_server_s_control_variate_stays_the_mean_of_the_clients(images, tmp_path, monkeypatch, hospital):
    """Client 1's reply of round 2 is refused: its c_i stays that of round 1, and c = sum n_i / n c_i."""
    states, original = [], get_server_state
    monkeypatch.setattr(server_app, "get_server_state", lambda base: states.append(original(base)) or states[-1])
    spoil_round(monkeypatch, 1, 2, float("nan"))
    run = federated(images, tmp_path / "out", strategy="scaffold", quorum=0.5, rounds=3)
    assert rounds_kept(hospital, run, 1) == {"1", "3"}, "round 3 began without the refused state"
    cases = [len(rows) for rows in execution.clients_of(run.config, images)]
    clients = [ClientState(kept(hospital, run, client), 3).kept for client in (0, 1)]
    for name, c in states[-1].items():
        local = [state[name.removeprefix("strategy.")] for state in clients]
        assert torch.allclose(
            c, sum(n / sum(cases) * c_i for n, c_i in zip(cases, local, strict=True)), rtol=1e-4, atol=1e-5
        )


# FedBN


def test_batch_norm_that_stays_at_its_client_is_no_part_of_what_travels(images):
    config = run_config(images, "federated", batch_norm="local")
    model = execution.initial_model(config, images)
    kept, travels = local_state(config, model), shared_state(config, model)
    assert set(kept) | set(travels) == set(model.state_dict())
    assert set(kept) & set(travels) == set()
    assert {"bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.num_batches_tracked", "layer1.0.bn2.running_var"} <= set(kept)
    assert not any("conv" in name or name.startswith("fc") for name in kept)
    assert local_state(config.model_copy(update={"batch_norm": "average"}), model) == {}


def test_fedbn_by_hand_for_one_round(images, tmp_path):
    """Li et al., 2021, algorithm 1: the mean of the rest; each client's BatchNorm as its own training left it."""
    run = federated(images, tmp_path, batch_norm="local", rounds=1)
    config, trained = run.config, []
    for client, rows in enumerate(execution.clients_of(config, images)):
        model = execution.initial_model(config, images)
        execution.train_round(model, images, rows, config, client, 1)
        trained.append((len(rows), model.state_dict()))
    total = sum(n for n, _ in trained)
    kept = local_state(config, model)
    for client, (_, state) in enumerate(trained):
        final = execution.load_model(run, images, client).state_dict()
        assert all(torch.equal(final[name], state[name]) for name in kept)
        for name in set(final) - set(kept):
            mean = sum(n / total * other[name] for n, other in trained)
            assert torch.allclose(final[name], mean, atol=1e-6), name


def test_fedbn_scores_the_clients_models_and_counts_what_that_takes(images, tmp_path, monkeypatch):
    run, plain = federated(images, tmp_path, batch_norm="local"), federated(images, tmp_path)
    own = [tasks.get("classification").summarize(cases)["accuracy"] for _, cases in run.cases.groupby("client")]
    assert np.mean(own) == pytest.approx(run.result["accuracy"])
    assert len(run.cases) == 2 * len(images.split("test"))
    assert run.rounds["accuracy"].between(0, 1).all()
    shared, whole = run.clients["bytes_up"].max(), plain.clients["bytes_up"].max()
    assert shared < whole, "no BatchNorm travels up"
    assert (run.clients["bytes_down"] > 1.9 * shared).all(), "weights go down twice, to train and to validate"
    totals = run.clients.groupby("round")[["bytes_up", "bytes_down"]].sum()
    assert (run.rounds.set_index("round")[["bytes_up", "bytes_down"]] == totals).all().all()
    evaluate = client_app.evaluate
    monkeypatch.setattr(client_app.time, "perf_counter", clock := iter(range(10**6)).__next__)
    monkeypatch.setattr(client_app, "evaluate", lambda *given: [clock() for _ in range(1000)] and evaluate(*given))
    assert (federated(images, tmp_path / "slow", batch_norm="local").clients["seconds"] > 1000).all()


def test_group_norm_is_another_model_in_every_arm(images, tmp_path):
    for mode in ("centralized", "local", "federated"):
        run = experiment.run(run_config(images, mode, batch_norm="group"), images, RunStore(tmp_path))
        assert not any("running_mean" in name for name in run.weights())


# Nodes


def query(node, run_config=None, **changes):
    """The reply of a node with this configuration to the server's first question."""
    InProcessGrid(client_app.client_app, 0)  # sets who the server is, which a message needs
    content = RecordDict({"config": ConfigRecord({"run": changes.pop("config").model_dump_json()}),
                          "software": ConfigRecord(software() | changes)})  # fmt: skip
    message = Message(content, dst_node_id=77, message_type="query")
    return client_app.client_app(message, Context(1, 77, node, RecordDict(), run_config or {}))


def test_a_node_is_refused_by_name_of_node_and_key(images, volumes, tmp_path):
    config = run_config(images, "federated", strategy="scaffold")
    own = {"partition-id": 1, "data-dir": str(images.folder), "state-dir": str(tmp_path)}
    assert query(own, config=config).content["metrics"]["client"] == 1
    cases = [
        ({"partition-id": None}, {}, "node 77 failed: NodeError: no partition-id in its --node-config"),
        ({"data-dir": None}, {}, "client 1 failed: NodeError: no data-dir in its --node-config"),
        ({"state-dir": None}, {}, "client 1 failed: NodeError: no state-dir in its --node-config"),
        ({}, {"torch": "1.0"}, "client 1 failed: NodeError: torch .*, expected 1.0, the server's"),
        ({}, {"fedlib": "other"}, "client 1 failed: NodeError: fedlib .*, expected other, the server's"),
    ]
    for node, changes, words in cases:
        given = {key: value for key, value in (own | node).items() if value is not None}
        reason = query(given, config=config, **changes).error.reason
        assert re.match(words, reason), reason
    other = config.model_copy(update={"data_fingerprint": "0" * 64})
    assert "expected 000000000000, the run's" in query(own, config=other).error.reason


def test_in_a_simulation_the_folders_are_in_the_run_config(images, tmp_path):
    config = run_config(images, "federated", strategy="scaffold")
    places = {"data-dir": str(images.folder), "out-dir": str(tmp_path)}
    assert query({"partition-id": 0}, places, config=config).has_content()


def test_no_text_of_an_error_leaves_a_hospital(images, volumes, tmp_path, caplog):
    folder = tmp_path / "Jane Doe"
    node = {"partition-id": 1, "data-dir": str(folder)}
    with caplog.at_level(logging.ERROR, "flwr"):
        reply = query(node, config=run_config(images, "federated"))
    assert reply.error.reason == "client 1 failed: UserError (the node's log says more)"
    assert "Jane Doe" in caplog.text, "the node's own log has it"
    reason = query(node | {"full-errors": True}, config=run_config(images, "federated")).error.reason
    assert "Jane Doe" in reason, "in process there is nobody to hide it from"


def test_no_path_is_in_a_message(images, tmp_path, monkeypatch):
    seen, send = [], InProcessGrid.send_and_receive

    def watched(grid, messages, **options):
        messages = list(messages)
        seen.extend(json.dumps({key: str(dict(record)) for key, record in message.content.config_records.items()})
                    for message in messages)  # fmt: skip
        return send(grid, messages, **options)

    monkeypatch.setattr(InProcessGrid, "send_and_receive", watched)
    federated(images, tmp_path, strategy="scaffold", batch_norm="local")
    assert len(seen) == 12, "two clients: a query, two rounds of training and validation, and a query"
    assert not any(str(place) in text for text in seen for place in (tmp_path, images.folder))


@pytest.mark.parametrize(("node", "words"), [
    ({"partition-id": 0}, r"the connected nodes are clients \[0, 0\], expected each of 0 to 1 once"),
    ({"data-dir": "volumes"}, "client 0 failed: UserError: .*prepared for segmentation"),
])  # fmt: skip
def test_odd_nodes_are_found_before_anything_is_trained(images, volumes, tmp_path, monkeypatch, node, words):
    change_nodes(monkeypatch, node if "partition-id" in node else {"data-dir": str(volumes.folder)})
    with pytest.raises(FederationError, match=words):
        federated(images, tmp_path)
    assert not list(tmp_path.glob("runs/*/rounds.csv"))


def test_clients_train_on_their_own_cases_only(data, tmp_path, monkeypatch):
    config, asked = run_config(data, "federated", partition="unbalanced"), []
    original = client_app.train_round

    def watched(model, data, rows, config, client, number, *more):
        asked.append((number, client, rows.tolist()))
        return original(model, data, rows, config, client, number, *more)

    monkeypatch.setattr(client_app, "train_round", watched)
    experiment.run(config, data, RunStore(tmp_path))
    partition = execution.clients_of(config, data)
    assert sorted(np.concatenate(partition)) == data.split("train").tolist()
    assert asked == [(number, client, partition[client].tolist()) for number in (1, 2) for client in (0, 1)]
