"""The server's half of the Flower app: replies over the network, and the run that a run-config describes."""

import re
import tomllib

import pytest
from flwr.app import Context, Error, Message, RecordDict

from fedlib.config import ROOT, StudyConfig, UserError
from fedlib.federated.in_process import InProcessGrid
from fedlib.federated.server_app import Answers, asked_for, main
from fedlib.training.run_store import RunStore
from tests.helpers import PATIENCE


def asked(node):
    InProcessGrid(None, 0)  # sets who the server is, which a message needs
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


def test_a_run_that_is_under_way_is_refused_at_once_and_the_way_to_it_is_named(images, tmp_path):
    given = APP["config"] | {"data-dir": str(images.folder), "out-dir": str(tmp_path)}
    config, _, store = asked_for(given)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=given)
    with store.lock(config.run_id), pytest.raises(UserError, match=r"already running.*`flwr log .*`flwr stop "):
        main(None, context)
    assert RunStore(tmp_path).all() == []
