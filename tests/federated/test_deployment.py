"""The deployment runtime: the same bits over the network, every failure in one line, and nothing left behind."""

import contextlib
import datetime
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest
from fedlib.federated.server import FederationError
from flwr.app import Error, Message, RecordDict

from fedlib.config import ROOT, StudyConfig, UserError
from fedlib.federated import in_process as engines
from fedlib.federated.certificates import write_certificates, write_node_key
from fedlib.federated.deployment import last_words, local_federation, run_deployment
from fedlib.federated.guard import Processes
from fedlib.federated.server_app import Answers, asked_for
from fedlib.study import experiment
from fedlib.training.run_store import RunStore
from tests.helpers import PATIENCE, outcome, python, run_config, started, until


def processes_of(folder):
    """Process id -> command line of what runs for a temporary folder."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            command, environment = ((path / name).read_bytes() for name in ("cmdline", "environ"))
            if f"{folder}".encode() in command + environment:
                found[int(path.name)] = command.replace(b"\0", b" ").decode()
    return found


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Where temporary files go, those of every process of the test; what is there and runs at its end was left behind."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield folder
    until(lambda: not processes_of(folder), "processes are left")
    assert list(folder.glob("fedlib-*")) == [], "files are left"


# The guard


FAMILY = ["sh", "-c", "setsid sleep 1000 & sleep 1000"]
"""A process, and one that it leaves in a session of its own."""


def family_is_there(folder):
    return sum(command.startswith("sleep 1000") for command in processes_of(folder).values()) == 2


def test_processes_end_with_their_owner(here):
    def fails():
        with Processes() as processes:
            processes.start("family", FAMILY, dict(os.environ))
            until(lambda: family_is_there(here), "nothing started")
            raise KeyError

    pytest.raises(KeyError, fails)


OWNER = f"""
import os, time
from fedlib.federated.guard import Processes
with Processes() as processes:
    processes.start("family", {FAMILY}, dict(os.environ))
    time.sleep(1000)
"""


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_when_their_owner_is_killed(here, blow):
    owner = started([sys.executable, "-c", OWNER], stderr=subprocess.DEVNULL)
    until(lambda: family_is_there(here), "nothing started")
    owner.send_signal(blow)
    owner.wait(PATIENCE)


def test_a_process_tells_how_it_ended(here):
    with Processes() as processes:
        processes.start("fails", ["sh", "-c", "echo why; exit 3"], dict(os.environ))
        assert processes.wait("fails", PATIENCE) == 3
        assert processes.log("fails") == "why\n"
        processes.start("stays", ["sleep", "1000"], dict(os.environ))
        assert processes.wait("stays", 0) is None
        assert processes.exit_code("stays") is None


LOGS = {
    "ERROR :     Exit Code: 305\nNo way.\n[code: 2004] No node.\n\nFor more\nINFO: end": "No way. [code: 2004] No node.",
    "INFO : begins\n\x1b[91mERROR\x1b[0m: [Errno 98] address in use\nINFO : ends\n": "ERROR: [Errno 98] address in use",
    "Path argument does not point\nto a file\n\n": "to a file",
    "": "it said nothing",
}


@pytest.mark.parametrize("log", LOGS)
def test_the_last_words_of_a_command_say_why_it_ended(log):
    assert last_words(log) == LOGS[log]


# What cannot start


def test_missing_commands_are_named(here, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(here / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="flwr, flower-superlink, .*: not found beside .*python or on PATH; expected"):
        local_federation(2).__enter__()


def test_a_port_in_use_is_named(here):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"^port = {port}: Address already in use; expected a free port$"):
            local_federation(2, port=port).__enter__()


def test_an_expired_certificate_is_named(here, tmp_path):
    write_certificates(tmp_path, datetime.timedelta(days=-1))
    with pytest.raises(UserError, match=r"server.crt: certificate has expired; expected .* for 127.0.0.1, .* valid today$"):
        local_federation(1, certificates=tmp_path).__enter__()


def test_more_clients_than_the_partition_has_fail_before_anything_starts(images, here, tmp_path, monkeypatch):
    monkeypatch.setattr("fedlib.federated.deployment.local_federation", None)
    config, store = run_config(images, "federated", engine="deployment", n_clients=40), RunStore(tmp_path)
    with pytest.raises(UserError, match="n_clients = 40: .* training patients, expected at least 40"):
        experiment.run(config, images, store)
    assert store.get(config.run_id).status["state"] == "failed"


@pytest.mark.slow
def test_a_node_with_an_unknown_key_is_refused(here):
    with local_federation(1) as federation:
        stranger = federation.processes.folder / "stranger"
        write_node_key(stranger)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        federation.start_node(1, stranger, port)
        refused = "^client 1: its SuperNode ended: the SuperLink refused it; expected a key that is registered there"
        with pytest.raises(UserError, match=refused):
            federation.wait_for_node(1)
        assert [line[:30] for line in federation.lost()] == ["client 1: its SuperNode ended:"]


# The Flower app


def asked(node):
    engines.InProcessGrid(None, 0)  # sets who the server is, which a message needs
    message = Message(RecordDict(), dst_node_id=node, message_type="train")
    message.metadata.__dict__["_message_id"] = f"message to {node}"
    return message


class Network:
    """A grid that gives the answers of one look after the other."""

    def __init__(self, *looks):
        self.looks = iter(looks)

    def push_messages(self, messages):
        return [None if message.metadata.dst_node_id == 9 else message.metadata.message_id for message in messages]

    def pull_messages(self, _):
        return next(self.looks)


def test_answers_come_one_by_one_and_in_the_name_of_their_node(monkeypatch):
    monkeypatch.setattr("fedlib.federated.server_app.POLL_SECONDS", 0)
    one, two, three = asked(7), asked(8), asked(9)
    gone = Message(Error(5, "Node Unavailable"), reply_to=two)
    gone.metadata.__dict__["_src_node_id"] = 1  # Flower answers in the SuperLink's name
    network = Network([], [Message(RecordDict(), reply_to=one)], [gone])
    answers = Answers(network).send_and_receive(iter([one, two, three]), timeout=PATIENCE)
    first, second, third = next(answers), next(answers), next(answers)
    assert (first.metadata.src_node_id, first.error.reason) == (9, "the SuperLink did not take its message")
    assert (second.metadata.src_node_id, second.has_error()) == (7, False)
    assert (third.metadata.src_node_id, third.error.reason) == (8, "Node Unavailable")
    assert list(answers) == []


def test_answers_are_not_waited_for_longer_than_asked(monkeypatch):
    monkeypatch.setattr("fedlib.federated.server_app.POLL_SECONDS", 0)
    assert list(Answers(Network(*[[]] * 10**6)).send_and_receive([asked(7)], timeout=0.01)) == []


APP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
SINGLE = {"client_counts": "n_clients", "partitions": "partition", "seeds": "seed"}
NOT_OF_A_RUN = {"engine", "synthetic_cases", "size"}


def test_the_app_takes_every_parameter_of_a_run():
    fields = {SINGLE.get(name, name).replace("_", "-") for name in set(StudyConfig.model_fields) - NOT_OF_A_RUN}
    assert set(APP["config"]) == fields


def test_the_app_makes_the_run_that_a_study_would_make(images, tmp_path):
    given = APP["config"] | {"data-dir": str(images.folder), "out-dir": str(tmp_path), "seed": 3, "rounds": 2}
    config, data, store = asked_for(given)
    study = StudyConfig.make(client_counts=2, partitions="balanced", seed=3, rounds=2, engine="deployment", out_dir=tmp_path)
    assert [config] == study.runs(images.fingerprint, ("federated",))
    assert (data.folder, store.out_dir) == (images.folder, tmp_path)


BAD = {
    "data-dir = '': expected an absolute path": {"data-dir": ""},
    "out-dir = 'here': expected an absolute path": {"out-dir": "here"},
    "strategy = 'fedmagic': ": {"strategy": "fedmagic"},
    "2 runs: expected one n-clients": {"n-clients": "2,4"},
    "alpha = 0: ": {"partition": "label_skew", "alpha": 0},
}


@pytest.mark.parametrize("words", BAD)
def test_the_app_refuses_bad_values_by_name(images, tmp_path, words):
    given = APP["config"] | {"data-dir": str(images.folder), "out-dir": str(tmp_path)} | BAD[words]
    with pytest.raises(UserError, match=f"^{re.escape(words)}"):
        asked_for(given)


# Whole runs


def in_process(config, data, folder):
    """The same run in this process, for comparison."""
    return experiment.run(config.model_copy(update={"engine": "inprocess"}), data, RunStore(folder))


def kill_node_after_round(run_dir, client, here):
    """Kill a client's SuperNode as soon as the first round is in the table."""

    def strike():
        until(lambda: (run_dir / "rounds.csv").exists(), "no round")
        (node,) = [pid for pid, line in processes_of(here).items() if f"partition-id={client} " in line]
        os.kill(node, signal.SIGKILL)

    thread = threading.Thread(target=strike)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_supernode_that_dies_stops_the_run_by_name_and_resumed_it_ends_with_the_same_bits(images, here, tmp_path):
    config, store = run_config(images, "federated", engine="deployment"), RunStore(tmp_path / "store")
    run_dir = store.folder / config.run_id
    killer = kill_node_after_round(run_dir, 1, here)
    with pytest.raises(FederationError, match=r"^round 2: client 1: its SuperNode was killed by SIGKILL$"):
        experiment.run(config, images, store)
    killer.join()
    assert store.get(config.run_id).status["state"] == "failed"
    assert len(store.get(config.run_id).rounds) == 1
    resumed = experiment.run(config, images, store)
    expected = in_process(config, images, tmp_path / "here-too")
    assert resumed.result["weights_sha256"] == expected.result["weights_sha256"]
    assert outcome(resumed) | {"engine": "", "run_id": ""} == outcome(expected) | {"engine": "", "run_id": ""}


@pytest.mark.slow
def test_what_clients_keep_stays_at_their_nodes_with_the_same_bits(images, here, tmp_path):
    kept = {"strategy": "scaffold", "batch_norm": "local", "transport": "fp16"}
    config = run_config(images, "federated", engine="deployment", **kept)
    run = experiment.run(config, images, RunStore(tmp_path / "store"))
    expected = in_process(config, images, tmp_path / "here-too")
    assert run.result["weights_sha256"] == expected.result["weights_sha256"]


@pytest.mark.slow
def test_with_a_quorum_a_supernode_that_dies_is_absent_from_then_on(images, here, tmp_path):
    config, store = run_config(images, "federated", engine="deployment", quorum=0.5), RunStore(tmp_path / "store")
    killer = kill_node_after_round(store.folder / config.run_id, 1, here)
    run = experiment.run(config, images, store)
    killer.join()
    missing = run.clients[run.clients["absent"].notna()]
    assert missing[["round", "client"]].to_numpy().tolist() == [[2, 1]]
    assert missing["absent"].item().startswith("client 1: Error: Node Unavailable")


@pytest.mark.slow
def test_a_server_that_fails_gives_its_reason(images, here, tmp_path):
    store = RunStore(tmp_path)
    config = run_config(images, "federated", engine="deployment", data_fingerprint="0" * 64)
    record = store.begin(config)
    with pytest.raises(UserError, match="data fingerprint .*, expected 000000000000"):
        run_deployment(config, images.folder, record.folder)


@contextlib.contextmanager
def federation_command(n_nodes):
    """`python -m fedlib federation`, and the FLWR_HOME that it names."""
    command = [sys.executable, "-m", "fedlib", "federation", "--nodes", str(n_nodes)]
    with started(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith(f"{n_nodes} SuperNodes at 127.0.0.1:")
        yield process, re.match(r"FLWR_HOME=(\S+) flwr run . local", process.stdout.readline())[1]


@pytest.mark.slow
def test_flwr_run_on_a_federation_of_ones_own_gives_the_same_bits(volumes, here, tmp_path):
    with federation_command(2) as (federation, home):
        environment = os.environ | {"FLWR_HOME": home, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}

        def flwr_run(**given):
            places = {"data-dir": str(volumes.folder), "out-dir": str(tmp_path)}
            told = {"task": "segmentation", "profile": "smoke", **places, **given}
            text = " ".join(f"{name}={value!r}" for name, value in told.items())
            command = [Path(sys.executable).with_name("flwr"), "run", ".", "local", "--stream", "--run-config", text]
            return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600).stdout

        refused = flwr_run(strategy="fedmagic")
        assert "strategy = 'fedmagic'" in refused
        assert "Traceback" not in refused
        assert "done: dice_" in (said := flwr_run(rounds=2)), said
        federation.send_signal(signal.SIGINT)
        assert federation.wait(PATIENCE) == 130
    (run,) = RunStore(tmp_path).all()
    expected = in_process(run.config, volumes, tmp_path / "here-too")
    assert run.result["weights_sha256"] == expected.result["weights_sha256"]
    assert run.config.run_id in (tmp_path / "results.csv").read_text()


@pytest.mark.slow
def test_nothing_is_left_of_a_federation_whose_owner_is_killed(here):
    with federation_command(1) as (federation, _):
        assert sum("flower-super" in line for line in processes_of(here).values()) >= 4
        federation.kill()


def test_the_federation_command_refuses_in_one_line(here, tmp_path):
    done = python("-m", "fedlib", "federation", "--certificates", tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: the SuperLink ended: Path argument `--ssl-ca-certfile` does not point to a file.\n"
