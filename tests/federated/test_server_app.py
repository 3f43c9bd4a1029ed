"""The server's half of the Flower app: the run that a run config describes, and where its folders are named."""

import re
import tomllib

import pytest
from flwr.app import Context, RecordDict

from fedlib.config import ROOT, StudyConfig, UserError
from fedlib.federated.client_app import client_app
from fedlib.federated.in_process import InProcessGrid, site_statistics
from fedlib.federated.server_app import main, parse_run_config
from fedlib.study import experiment
from fedlib.training.run_store import RunStore
from tests.helpers import outcome

APP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
SINGLE = {"client_counts": "n_clients", "partitions": "partition", "seeds": "seed"}
NOT_OF_A_RUN = {"synthetic_cases", "size", "findings"}


def test_the_app_takes_every_parameter_of_a_run():
    fields = {SINGLE.get(name, name).replace("_", "-") for name in set(StudyConfig.model_fields) - NOT_OF_A_RUN}
    assert set(APP["config"]) == fields | {"statistics"}


@pytest.fixture
def given(images, tmp_path):
    """The app's run config, with the folders in it."""
    return APP["config"] | {"data-dir": str(images.folder), "out-dir": str(tmp_path), "profile": "smoke"}


def test_the_app_makes_the_run_that_a_study_would_make(images, tmp_path, given):
    config, data, store = parse_run_config(given | {"seed": 3, "rounds": 2})
    study = StudyConfig.make(profile="smoke", client_counts=2, partitions="balanced", seed=3, rounds=2, out_dir=tmp_path)
    assert [config] == study.runs(images.fingerprint, ("federated",))
    assert (data.folder, store.out_dir) == (images.folder, tmp_path)


def test_the_server_s_folders_may_be_in_its_environment_only(images, tmp_path, given, monkeypatch):
    """The run config reaches every node; the environment stays."""
    monkeypatch.setenv("FEDLIB_DATA_DIR", str(images.folder))
    monkeypatch.setenv("FEDLIB_OUT_DIR", str(tmp_path))
    found = parse_run_config(given | {"data-dir": "", "out-dir": ""})
    assert found[0] == parse_run_config(given)[0]
    assert (found[1].folder, found[2].out_dir) == (images.folder, tmp_path)


BAD = {
    "data-dir = '': expected an absolute path": {"data-dir": ""},
    "out-dir = 'here': expected an absolute path": {"out-dir": "here"},
    "strategy = 'fedmagic': ": {"strategy": "fedmagic"},
    "2 runs: expected one n-clients": {"n-clients": "2,4"},
    "alpha = 0: ": {"partition": "label_skew", "alpha": 0},
}


@pytest.mark.parametrize("words", BAD)
def test_the_app_refuses_bad_values_by_name(given, words):
    with pytest.raises(UserError, match=f"^{re.escape(words)}"):
        parse_run_config(given | BAD[words])


def context(given):
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=given)


def test_a_run_that_is_under_way_is_refused_at_once_and_the_way_to_it_is_named(tmp_path, given):
    config, _, store = parse_run_config(given)
    with store.lock(config.run_id), pytest.raises(UserError, match=r"already running.*`flwr log .*`flwr stop "):
        main(None, context(given))
    assert RunStore(tmp_path).all() == []


def test_asked_for_statistics_the_app_writes_them_and_trains_nothing(images, tmp_path, given, capsys):
    node = {"data-dir": str(images.folder)}
    with InProcessGrid(client_app, 2, node) as grid:
        main(grid, context(given | {"statistics": True}))
    expected = site_statistics(parse_run_config(given)[0], images).T.to_csv()
    assert (tmp_path / "statistics.csv").read_text() == expected
    assert re.search(r"cases +\d+ +\d+\n", capsys.readouterr().out)
    assert RunStore(tmp_path).all() == []


def test_statistics_is_true_or_false(given):
    """As text it would be true, whatever it says."""
    with pytest.raises(UserError, match="statistics = 'false': expected true or false"):
        main(None, context(given | {"statistics": "false"}))


def test_the_app_ends_with_the_bits_of_a_study(images, tmp_path, given):
    node = {"data-dir": str(images.folder), "state-dir": str(tmp_path / "state")}
    with InProcessGrid(client_app, 2, node) as grid:
        main(grid, context(given))
    (run,) = RunStore(tmp_path).all()
    assert outcome(run) == outcome(experiment.run(run.config, images, RunStore(tmp_path / "study")))
    assert run.config.run_id in (tmp_path / "results.csv").read_text()
