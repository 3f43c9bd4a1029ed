"""The report: rebuilt from notebooks and run store alone, wherever the folder lies; what went wrong is said plainly."""

import json
import re
import shutil

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from fedlib import tasks
from fedlib.config import StudyConfig, UserError
from fedlib.study import report
from fedlib.training.run_store import RunStore, remember_study
from tests.helpers import python, snapshot
from tests.made_up import CLASSES, FINGERPRINT, made_up, made_up_run

LARGEST_PAGE = 5_000_000


@pytest.fixture
def moved(smoke, tmp_path):
    """A copy of the smoke study at another place under another name, without its pages, tables and data."""
    copy = shutil.copytree(smoke, tmp_path / "elsewhere" / "renamed")
    for page in copy.rglob("*.html"):
        page.unlink()
    shutil.rmtree(copy / "data")
    shutil.rmtree(copy / "tables")
    return copy


@pytest.fixture
def study(tmp_path):
    """A small made-up study of one seed, without pages."""
    return made_up(tmp_path / "study", profile="smoke", client_counts="2,4")


def planned(folder, task):
    known = json.loads((folder / "study.json").read_text())[task]
    return StudyConfig.make(**known["study"] | {"out_dir": folder}).runs(known["data"]["fingerprint"])


def page_of(folder):
    """The index, parsed, and its words on one line."""
    soup = BeautifulSoup(report.write_index(folder).read_text(), "html.parser")
    return soup, " ".join(soup.main.get_text(" ").split())


def run_of(study, mode, **wanted):
    """A planned run's folder."""
    configs = study.runs(FINGERPRINT, (mode,))
    config = next(one for one in configs if all(getattr(one, name) == value for name, value in wanted.items()))
    return RunStore(study.out_dir).get(config.run_id)


def without_ids(html):
    """A page without the random ids that pandas gives to tables, and without the study's name."""
    return re.sub(r"T_[0-9a-f]{5}", "T_", html).replace("learning: renamed<", "learning: smoke<")


def test_a_moved_and_renamed_study_is_rendered_again_and_nothing_is_trained(smoke, moved):
    before = snapshot(moved / "runs")
    done = python("-m", "fedlib", "report", moved)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "index.html" in done.stdout
    assert snapshot(moved / "runs") == before
    pages = sorted(path.relative_to(smoke) for path in smoke.rglob("*.html"))
    assert pages == sorted(path.relative_to(moved) for path in moved.rglob("*.html"))
    assert len(pages) == 1 + 4 * 2
    for name in pages:
        assert without_ids((moved / name).read_text()) == without_ids((smoke / name).read_text())
    for table in smoke.rglob("tables/*.csv"):
        assert (moved / table.relative_to(smoke)).read_text() == table.read_text()


def test_no_page_is_large_or_asks_for_anything_outside(smoke):
    for page in smoke.rglob("*.html"):
        text = page.read_text()
        assert page.stat().st_size < LARGEST_PAGE, page
        assert re.findall(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=[\"']?(?!data:|#)[^\s\"'>]+", text) == [], page
        assert str(smoke) not in text.replace(f'"{smoke}', ""), "a page that is passed on does not tell where it was made"


def test_the_index_has_a_row_for_every_arm_and_metric(smoke):
    soup, _ = page_of(smoke)
    for task in tasks.TASKS:
        for metric in tasks.get(task).PRIMARY:
            (link,) = soup.select(f"a[href='tables/{task}-scores-{metric}.csv']")
            assert len(link.find_previous("table").tbody.find_all("tr")) == 5
            assert len(pd.read_csv(smoke / link["href"])) == 5


def test_every_figure_has_words_numbers_and_a_file(smoke):
    soup, _ = page_of(smoke)
    figures = soup.find_all("figure")
    assert len(figures) == 2 * (3 * 2 + 1), "comparison, learning, clients for each of two metrics; communication"
    for figure in figures:
        assert len(figure.img["alt"]) > 30
        rows = figure.details.tbody.find_all("tr")
        assert len(pd.read_csv(smoke / figure.details.a["href"])) == len(rows) > 0


def test_the_index_tells_where_every_run_comes_from(smoke):
    _, text = page_of(smoke)
    for run in RunStore(smoke).all():
        assert run.result["weights_sha256"] in text
        assert run.provenance["commit"] in text
        assert run.provenance["data_fingerprint"] in text
        assert f"torch {run.provenance['versions']['torch']}" in text


def test_results_csv_has_a_row_for_every_run_with_its_hash(smoke):
    table = pd.read_csv(smoke / "results.csv")
    configs = [config for task in tasks.TASKS for config in planned(smoke, task)]
    assert sorted(table["run_id"]) == sorted(config.run_id for config in configs)
    assert table["weights_sha256"].str.fullmatch("[0-9a-f]{64}").all()
    arms = table.groupby("task")[["n_test", "n_train", "rounds", "local_epochs"]].nunique()
    assert (arms == 1).all().all(), "every arm has the same test set and the same budget"
    for task in tasks.TASKS:
        assert table[table["task"] == task][list(tasks.get(task).METRICS[:2])].notna().all().all()


def test_the_checklist_names_what_a_person_must_fill_in(smoke):
    _, text = page_of(smoke)
    filled = {int(number) for number in re.findall(r"(\d+) (?:data sources|preprocessing|uncertainty|availability)", text)}
    assert filled == {7, 9, 29, 43}
    numbers = {int(number) for words in report.checklist.PERSON.values() for number in re.findall(r"\d+", words)}
    known = {"title": "x", "synthetic": False, "train": 1, "val": 1, "test": 1}
    ours = report.checklist.filled(StudyConfig.make(profile="smoke", out_dir=smoke), known, "torch 2")
    assert sorted([*numbers, *ours["item"]]) == list(range(1, 45)), "each of the 44 items once"
    assert not ours["what this study says"].str.fullmatch(r"\s*").any()


def test_several_seeds_are_told_apart_from_patients(tmp_path):
    study = made_up(tmp_path, profile="smoke", seed=[1, 2, 3])
    _, text = page_of(study.out_dir)
    assert "20 patients, 3 seeds" in text
    assert "over seeds: mean (SD)" in text
    assert "lowest to highest" in text
    assert "One seed" not in text


def test_one_seed_says_what_it_cannot_tell(study):
    _, text = page_of(study.out_dir)
    assert "One seed" in text
    assert "over seeds" not in text
    assert "nan" not in text.lower().split()


@pytest.mark.parametrize(
    ("modes", "words"),
    [
        (["centralized"], "no federated run is done"),
        (["federated"], "the centralized run is missing"),
        (["local"], "the centralized run is missing"),
        ([], "no run is done"),
    ],
)
def test_an_arm_alone_gives_no_verdict_and_says_why(tmp_path, modes, words):
    study = made_up(tmp_path, profile="smoke", modes=modes)
    soup, text = page_of(study.out_dir)
    assert "No verdict: " in text
    assert words in text
    assert soup.select(".card .verdict") == []
    assert "nan" not in text.lower().split()


def test_a_failed_run_is_named_in_the_index_with_its_reason(moved):
    config = next(config for config in planned(moved, "classification") if config.mode == "federated")
    run = RunStore(moved).get(config.run_id)
    reason = "FederationError: client 1 failed in round 2: OSError: <b>disk full</b>"
    (run.folder / "status.json").write_text(json.dumps({"state": "failed", "error": reason}))
    text = report.write_index(moved).read_text()
    assert config.run_id in text
    assert "client 1 failed in round 2: OSError: &lt;b&gt;disk full" in text
    assert re.search(r"1 of 5\s+runs", text)
    assert config.run_id not in (moved / "results.csv").read_text()


def edited(run):
    """A better score than the run had."""
    status = json.loads((run.folder / "status.json").read_text())
    status["result"]["accuracy"] = 0.999
    (run.folder / "status.json").write_text(json.dumps(status))


def cut(name):
    def cut_short(run):
        path = run.folder / name
        path.write_text(path.read_text()[: path.stat().st_size // 2])

    return cut_short


def without_a_case(run):
    path = run.folder / "cases.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (edited, "accuracy"),
        (cut("status.json"), "status.json"),
        (cut("cases.csv"), "cases.csv"),
        (cut("config.json"), "config.json"),
        (cut("provenance.json"), "provenance.json"),
        (without_a_case, "cases.csv"),
        (lambda run: (run.folder / "rounds.csv").unlink(), "rounds.csv"),
    ],
)
def test_a_run_that_was_edited_or_cut_short_is_left_out_and_named(study, spoil, words):
    run = run_of(study, "federated", n_clients=2, partition="balanced")
    spoil(run)
    soup, text = page_of(study.out_dir)
    name = run.folder.name
    (told,) = [item.get_text() for item in soup.select(".failed li") if item.code.get_text() == name]
    assert words in told
    assert "Not complete: 1 of 9" in text
    assert not [row for row in soup.select("tbody th") if row.get_text() == "federated, 2 clients, balanced"]
    assert name not in (study.out_dir / "results.csv").read_text()
    assert "Traceback" not in text


def test_a_run_of_another_test_set_is_not_compared(study):
    run = run_of(study, "federated", n_clients=2, partition="balanced")
    config = run.config
    shutil.rmtree(run.folder)
    other = made_up_run(RunStore(study.out_dir), config, CLASSES, prefix="other")
    assert other.config.run_id == config.run_id
    soup, text = page_of(study.out_dir)
    assert "Not compared." in text
    assert "test" in soup.select_one(".failed").get_text()
    assert soup.select(".verdict") == []


def test_runs_that_the_study_did_not_plan_are_told_and_left_out(study):
    longer = made_up_run(RunStore(study.out_dir), study.runs(FINGERPRINT)[0].model_copy(update={"rounds": 7}))
    elsewhere = made_up_run(RunStore(study.out_dir), study.runs("e" * 64)[0])
    soup, text = page_of(study.out_dir)
    told = {item.code.get_text(): item.get_text() for item in soup.select(".note:not(.failed) li")}
    assert "rounds 7, planned 2" in told[longer.config.run_id]
    assert "data_fingerprint eeeeeeeeeeee, planned ffffffffffff" in told[elsewhere.config.run_id]
    assert "9 of 9 planned runs are done" in text


def test_a_class_without_a_test_case_is_named(tmp_path):
    study = made_up(tmp_path, classes=CLASSES[:3], profile="smoke")
    _, text = page_of(study.out_dir)
    assert "The test set has no case of Viral Pneumonia" in text
    assert "nan" not in text.lower().split()


def test_an_index_without_the_reference_is_written_and_says_so(moved):
    (central,) = (config for config in planned(moved, "segmentation") if config.mode == "centralized")
    shutil.rmtree(moved / "runs" / central.run_id)
    text = report.write_index(moved).read_text()
    assert central.run_id in text
    assert "not begun" in text


def test_tables_of_an_earlier_study_do_not_stay(study):
    report.write_index(study.out_dir)
    made = {path.name for path in (study.out_dir / "tables").iterdir()}
    (study.out_dir / "tables" / "old.csv").write_text("a\n1\n")
    report.write_index(study.out_dir)
    assert {path.name for path in (study.out_dir / "tables").iterdir()} == made


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


BAD_STUDIES = ["{", "[]x", '{"classification": {}}', '{"classification": {"study": {"rounds": 0}, "data": {}}}']


@pytest.mark.parametrize("text", BAD_STUDIES)
def test_a_damaged_study_json_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(UserError, match=r"study\.json: damaged") as caught:
        report.write_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_study_is_remembered_with_the_precision_it_was_made_in(tmp_path, images, monkeypatch):
    study = StudyConfig.make(profile="smoke", precision="auto", out_dir=tmp_path)
    monkeypatch.setattr("fedlib.config.native_precision", lambda: "bf16")
    remember_study(study, images)
    made = study.runs(images.fingerprint)
    monkeypatch.setattr("fedlib.config.native_precision", lambda: "fp32")  # the report is made again on an older machine
    assert planned(tmp_path, "classification") == made
    assert {run.precision for run in made} == {"bf16"}
