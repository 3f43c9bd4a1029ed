"""The report: rebuilt from notebooks and run store alone, wherever the folder lies; a failed run is named in it."""

import json
import re
import shutil

import pandas as pd
import pytest

from fedlib import report, tasks
from fedlib.config import StudyConfig, UserError
from fedlib.runs import RunStore
from tests.helpers import snapshot

LARGEST_PAGE = 5_000_000


@pytest.fixture
def moved(smoke, tmp_path):
    """A copy of the smoke study at another place, without its pages."""
    copy = shutil.copytree(smoke, tmp_path / "elsewhere" / smoke.name)
    for page in copy.rglob("*.html"):
        page.unlink()
    return copy


def planned(folder, task):
    known = json.loads((folder / "study.json").read_text())[task]
    return StudyConfig.make(**known["study"] | {"out_dir": folder}).runs(known["data"]["fingerprint"])


def without_ids(html):
    """A page without the random ids that pandas gives to tables."""
    return re.sub(r"T_[0-9a-f]{5}", "T_", html)


def test_a_moved_study_is_rendered_again_and_nothing_is_trained(smoke, moved):
    before = snapshot(moved / "runs")
    page = report.write_report(moved)
    assert page == moved / "index.html"
    assert snapshot(moved / "runs") == before
    pages = sorted(path.relative_to(smoke) for path in smoke.rglob("*.html"))
    assert pages == sorted(path.relative_to(moved) for path in moved.rglob("*.html"))
    assert len(pages) == 1 + 4 * 2
    for name in pages:
        assert without_ids((moved / name).read_text()) == without_ids((smoke / name).read_text())


def test_no_page_is_large_or_asks_for_anything_outside(smoke):
    for page in smoke.rglob("*.html"):
        text = page.read_text()
        assert page.stat().st_size < LARGEST_PAGE, page
        assert re.findall(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=[\"']?(?!data:|#)[^\s\"'>]+", text) == [], page
        assert str(smoke) not in text.replace(f'"{smoke}', ""), "a page that is passed on does not tell where it was made"


def test_the_index_has_a_row_for_every_arm_and_metric(smoke):
    tables = re.findall(r"<table.*?</table>", (smoke / "index.html").read_text(), re.DOTALL)
    assert len(tables) == 2
    for task, table in zip(tasks.TASKS, tables, strict=True):
        rows = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)[1:]
        assert len(rows) == 5 * len(tasks.get(task).PRIMARY)


def test_results_csv_has_a_row_for_every_run_with_its_hash(smoke):
    table = pd.read_csv(smoke / "results.csv")
    configs = [config for task in tasks.TASKS for config in planned(smoke, task)]
    assert sorted(table["run_id"]) == sorted(config.run_id for config in configs)
    assert table["weights_sha256"].str.fullmatch("[0-9a-f]{64}").all()
    arms = table.groupby("task")[["n_test", "n_train", "rounds", "local_epochs"]].nunique()
    assert (arms == 1).all().all(), "every arm has the same test set and the same budget"
    for task in tasks.TASKS:
        assert table[table["task"] == task][list(tasks.get(task).METRICS[:2])].notna().all().all()


def test_a_failed_run_is_named_in_the_index_with_its_reason(moved):
    config = next(config for config in planned(moved, "classification") if config.mode == "federated")
    run = RunStore(moved).get(config.run_id)
    reason = "FederationError: client 1 failed in round 2: OSError: <b>disk full</b>"
    (run.folder / "status.json").write_text(json.dumps({"state": "failed", "error": reason}))
    text = report.write_index(moved).read_text()
    assert config.run_id in text
    assert "client 1 failed in round 2: OSError: &lt;b&gt;disk full" in text
    assert re.search(r"1 of 5\s+runs", text)
    report.write_report(moved)
    assert config.run_id not in (moved / "results.csv").read_text()


def test_an_index_without_the_reference_is_written_and_says_so(moved):
    (central,) = (config for config in planned(moved, "segmentation") if config.mode == "centralized")
    shutil.rmtree(moved / "runs" / central.run_id)
    text = report.write_index(moved).read_text()
    assert central.run_id in text
    assert "not begun" in text


def test_missing_runs_of_an_empty_store_are_all(tmp_path):
    study = StudyConfig.make(profile="smoke", out_dir=tmp_path)
    missing = report.missing_runs(tmp_path, study, "ff")
    assert [run["run_id"] for run in missing] == [config.run_id for config in study.runs("ff")]
    assert {run["why"] for run in missing} == {"not begun"}


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_folder_that_is_no_study_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name):
        report.write_report(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
