"""A federation over the network, set up by the commands of docs/federate.md: TLS, node keys, a process a party."""

import json
import re
import signal

import pytest

from fedlib.config import StudyConfig
from fedlib.federated.in_process import site_statistics
from fedlib.training.run_store import RunStore
from tests.deployment.recipe import Federation, check_same_bits, sizes, the_run
from tests.helpers import outcome, until

pytestmark = pytest.mark.slow

REFUSED = "[code: 2004] Failed to activate SuperNode"


@pytest.fixture(scope="module")
def federation(prepared, tmp_path_factory):
    """A SuperLink and two SuperNodes, connected."""
    federation = Federation(tmp_path_factory.mktemp("federation"), prepared["segmentation"].folder.parent)
    try:
        federation.set_up()
        yield federation
    finally:
        federation.close()


def test_the_recipe_ends_with_the_weights_of_the_run_in_process(federation, volumes, tmp_path):
    assert "done: dice_" in federation.server.run("Server: run", sizes(2))
    run = the_run(federation.out)
    assert re.match(rf"done +{run.config.run_id} ", federation.server.run("Server: results"))
    check_same_bits(run, volumes, tmp_path / "in-process")


def test_statistics_are_those_in_process_and_nothing_is_trained(federation, images, tmp_path):
    more = {'task="segmentation"': f'task="classification" profile="smoke" partition="unbalanced" out-dir="{tmp_path}"'}
    printed = federation.server.run("Server: statistics", more)
    study = StudyConfig.make(profile="smoke", client_counts=2, partitions="unbalanced", out_dir=tmp_path)
    expected = site_statistics(study.runs(images.fingerprint, ("federated",))[0], images)
    assert (tmp_path / "statistics.csv").read_text() == expected.T.to_csv()
    assert re.search(r"COVID +hidden", printed)
    assert RunStore(tmp_path).all() == []


def test_a_refused_run_exits_with_0_and_is_listed_as_failed(federation):
    refused = federation.server.run("Server: run", sizes(2, strategy="fedmagic"))
    assert "strategy = 'fedmagic'" in refused
    assert "Traceback" not in refused
    listed = federation.server.run("Server: outcome of the last run")
    (last,) = json.loads(listed[listed.index("{") :])["runs"]
    assert last["status"] == "finished:failed"


def test_a_run_is_refused_while_it_runs_and_resumes_after_a_stop_and_a_killed_superlink(federation, volumes, tmp_path):
    words = sizes(3, **{"out-dir": tmp_path / "runs"})
    first = federation.server.start("Server: run", words)
    until(lambda: list(tmp_path.glob("runs/runs/*/rounds.csv")), "no round")
    first.signal(signal.SIGINT)  # ends the display, not the run
    refused = federation.server.run("Server: run", words)
    assert re.search("already running.*`flwr log .*`flwr stop ", refused), refused

    number = {"RUN_ID": re.search(r"started run (\d+)", first.words())[1]}
    assert number["RUN_ID"] in federation.server.run("Server: list")
    assert "SuperLink: study" in federation.server.run("Server: list", {"list study": "list"}), "it is the default"
    federation.server.run("Server: stop", number)
    assert "flwr-serverapp" in federation.server.run("Server: follow (until the run ends)", number)
    assert 1 <= len(the_run(tmp_path / "runs").rounds) < 3

    federation.superlink.signal(signal.SIGKILL)
    federation.start_superlink()
    until(lambda: federation.listed().count('"online"') == 2, "the nodes are not back", every=5)
    assert "done: dice_" in federation.server.run("Server: run", words)
    check_same_bits(the_run(tmp_path / "runs"), volumes, tmp_path / "in-process")


def test_a_lost_node_stops_the_run_by_name_and_back_again_it_resumes(federation, volumes, tmp_path):
    words = sizes(2, **{"out-dir": tmp_path / "runs"})
    begun = federation.server.start("Server: run", words)
    until(lambda: list(tmp_path.glob("runs/runs/*/rounds.csv")), "no round")
    federation.nodes[1].signal(signal.SIGKILL)
    begun.process.wait()
    status = the_run(tmp_path / "runs").status
    assert status["state"] == "failed"
    assert re.search("round 2: client 1: .*Node Unavailable", status["error"]), status
    federation.nodes[1] = federation.start_node(federation.hospitals[1])
    assert "done: dice_" in federation.server.run("Server: run", words)
    check_same_bits(the_run(tmp_path / "runs"), volumes, tmp_path / "in-process")


def test_what_clients_kept_of_a_run_does_not_change_the_same_run_in_another_folder(federation, volumes, tmp_path):
    """SCAFFOLD, three rounds: the second run finds the first one's files in the nodes' state-dir."""
    for out in ("one", "two"):
        federation.server.run("Server: run", sizes(3, strategy="scaffold", **{"out-dir": tmp_path / out}))
    one, two = the_run(tmp_path / "one"), the_run(tmp_path / "two")
    assert outcome(one) == outcome(two)
    check_same_bits(one, volumes, tmp_path / "in-process")


def test_a_node_that_is_back_within_seconds_is_refused_as_one_with_an_unknown_key_is(federation):
    hospital, node = federation.hospitals[1], "Hospital: node (stays in the foreground)"
    federation.nodes[1].signal(signal.SIGKILL)
    hospital.start(node).wait_for(REFUSED)
    stranger = {"hospital_b": "stranger"}
    hospital.run("Hospital: key", stranger)
    hospital.start(node, stranger).wait_for(REFUSED)
    until(lambda: '"offline"' in federation.listed(), "the SuperLink still counts on the node", every=5)
    federation.nodes[1] = federation.start_node(hospital)
