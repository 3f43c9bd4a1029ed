"""The report: rebuilt from notebooks and run store alone, wherever the folder lies; what went wrong is said plainly."""

import io
import json
import re
import shutil
from base64 import b64decode

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from fedlib import analysis, cli, tasks
from fedlib.config import StudyConfig, UserError
from fedlib.study import report
from fedlib.study.record import remember_study
from fedlib.training.run_store import RunStore
from tests.helpers import snapshot
from tests.made_up import CLASSES, FINGERPRINT, made_up, made_up_run

LARGEST_PAGE = 5_000_000


@pytest.fixture
def moved(smoke, tmp_path):
    """A copy of the smoke study at another place under another name, without its pages and data."""
    copy = shutil.copytree(smoke, tmp_path / "elsewhere" / "renamed")
    for page in copy.rglob("*.html"):
        page.unlink()
    shutil.rmtree(copy / "data")
    return copy


@pytest.fixture
def study(tmp_path):
    """A small made-up study of one seed, without pages."""
    return made_up(tmp_path / "study", profile="smoke", client_counts="2,4")


def planned(folder, task):
    known = json.loads((folder / "study.json").read_text())[task]
    return StudyConfig.make(**known["study"] | {"out_dir": folder}).runs(known["data"]["fingerprint"])


def parsed(index):
    """The index, parsed, and its words on one line."""
    soup = BeautifulSoup(index.read_text(), "html.parser")
    return soup, " ".join(soup.main.get_text(" ").split())


def page_of(folder):
    """The same of an index that is written now."""
    return parsed(report.write_index(folder))


@pytest.fixture(scope="module")
def index(smoke):
    """The index that the command wrote."""
    return parsed(smoke / "index.html")


def run_of(study, mode, **wanted):
    """A planned run's folder."""
    configs = study.runs(FINGERPRINT, (mode,))
    config = next(one for one in configs if all(getattr(one, name) == value for name, value in wanted.items()))
    return RunStore(study.out_dir).get(config.run_id)


def without_ids(html):
    """A page without the random ids that pandas gives to tables."""
    return re.sub(r"T_[0-9a-f]{5}", "T_", html)


def csv_of(link):
    """The numbers that a link of a page holds."""
    return pd.read_csv(io.BytesIO(b64decode(link["href"].partition("base64,")[2])))


def scores_of(soup, metric):
    """Rows, and the numbers behind them, of the table of one endpoint."""
    (heading,) = (heading for heading in soup.find_all("h3") if heading.string == f"Test {tasks.NAMES[metric]}")
    return heading.find_next("table").tbody.find_all("tr"), csv_of(heading.find_next("a", download=True))


def test_the_index_leads_to_the_matrix_of_sites_in_notebook_04(smoke):
    links = BeautifulSoup((smoke / "index.html").read_text(), "html.parser").select('a[href*="#Is-joining"]')
    for task, link in zip(("classification", "segmentation"), links, strict=True):
        page, _, section = link["href"].partition("#")
        assert page == f"{task}/04_compare_results.html"
        soup = BeautifulSoup((smoke / page).read_text(), "html.parser")
        words = soup.find(id=section).find_next("p").find_next("p")
        assert "2 clients, balanced: federated is better than the site's own model at" in " ".join(words.get_text().split())


def test_a_moved_and_renamed_study_is_rendered_again_and_nothing_is_trained(smoke, moved, monkeypatch, capsys):
    before = snapshot(moved / "runs")
    monkeypatch.setattr("sys.argv", ["fedlib", "report", str(moved)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    assert "index.html" in capsys.readouterr().out
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


def test_every_figure_has_words_numbers_and_a_file(index):
    soup, _ = index
    figures = soup.find_all("figure")
    assert len(figures) == 2 * (1 + 2 * 2 + 1), "scores; two learning curves for each of two metrics; communication"
    for figure in figures:
        assert len(figure.img["alt"]) > 30
        assert len(figure.figcaption.string) > 10
        rows = figure.details.tbody.find_all("tr")
        assert len(csv_of(figure.details.a)) == len(rows) > 0


def test_the_index_tells_where_every_run_comes_from(smoke, index):
    _, text = index
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
        assert table[table["task"] == task][list(tasks.get(task).METRICS)[:2]].notna().all().all()


def test_several_seeds_are_told_apart_from_patients(tmp_path):
    study = made_up(tmp_path, profile="smoke", seed=[1, 2, 3])
    soup, text = page_of(study.out_dir)
    rows, numbers = scores_of(soup, "accuracy")
    assert set(numbers["n_patients"]) == {30}
    assert set(numbers["seeds"]) == {3}
    (spread,) = (folded for folded in soup.find_all("details") if folded.summary.string == "Over seeds")
    assert "1, 2, 3" in spread.get_text()
    assert "One seed" not in text


def test_one_seed_says_what_it_cannot_tell(study):
    _, text = page_of(study.out_dir)
    assert "One seed" in text
    assert "nan" not in text.lower().split()


@pytest.mark.parametrize(
    ("modes", "words"),
    [
        (["centralized"], "no finished federated run"),
        (["federated"], "no finished centralized run"),
        (["local"], "no finished centralized run"),
        ([], "no finished run"),
    ],
)
def test_an_arm_alone_gives_no_verdict_and_says_why(tmp_path, modes, words):
    study = made_up(tmp_path, profile="smoke", modes=modes)
    soup, text = page_of(study.out_dir)
    assert words in text
    assert not modes or not any(row.select(".verdict") for row in scores_of(soup, "accuracy")[0])
    assert "nan" not in text.lower().split()


def test_a_failed_run_is_named_in_the_index_with_its_reason(moved):
    config = next(config for config in planned(moved, "classification") if config.mode == "federated")
    run = RunStore(moved).get(config.run_id)
    reason = "FederationError: client 1 failed in round 2: OSError: <b>disk full</b>"
    (run.folder / "status.json").write_text(json.dumps({"state": "failed", "error": reason}))
    text = report.write_index(moved).read_text()
    assert config.run_id in text
    assert "client 1 failed in round 2: OSError: &lt;b&gt;disk full" in text
    assert "1 of 5 runs missing" in text
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


SPOILT = [
    (edited, "accuracy"),
    (cut("status.json"), "status.json"),
    (cut("cases.csv"), "cases.csv"),
    (cut("config.json"), "config.json"),
    (cut("provenance.json"), "provenance.json"),
    (without_a_case, "cases.csv"),
    (lambda run: (run.folder / "rounds.csv").unlink(), "rounds.csv"),
]


def test_runs_that_were_edited_or_cut_short_are_left_out_and_named(study):
    """Seven of nine, each in its own way; the centralized run and one federated run are whole."""
    runs = [RunStore(study.out_dir).get(config.run_id) for config in study.runs(FINGERPRINT)]
    central, whole, *others = sorted(runs, key=lambda run: ("centralized", "federated", "local").index(run.config.mode))
    for run, (spoil, _) in zip(others, SPOILT, strict=True):
        spoil(run)
    soup, text = page_of(study.out_dir)
    reasons = {row.th.get_text(): row.td.get_text() for row in soup.find_all("tr") if row.th and row.td}
    results = (study.out_dir / "results.csv").read_text()
    for run, (_, words) in zip(others, SPOILT, strict=True):
        assert words in reasons[run.folder.name]
        assert run.folder.name not in results
    assert "Not complete: 7 of 9" in text
    rows, numbers = scores_of(soup, "accuracy")
    assert numbers["mode"].tolist() == ["centralized", "federated"]
    assert len(rows) == 2
    assert all(run.folder.name in results for run in (central, whole))
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
    assert soup.select("td.verdict") == []


def test_runs_that_the_study_did_not_plan_are_counted_and_left_out(study):
    made_up_run(RunStore(study.out_dir), study.runs(FINGERPRINT)[0].model_copy(update={"rounds": 7}))
    made_up_run(RunStore(study.out_dir), study.runs("e" * 64)[0])
    soup, text = page_of(study.out_dir)
    assert "2 other runs in this folder have no part in this study" in text
    assert "9 of 9 planned runs are done" in text
    assert len(scores_of(soup, "accuracy")[0]) == 9


def test_one_score_for_one_arm_in_table_figure_and_results_csv(tmp_path):
    """Ten of the made-up patients have two images: a mean over images would be another figure."""
    study = made_up(tmp_path, profile="smoke", client_counts="2,4", seed=[1, 2])
    soup, _ = page_of(study.out_dir)
    results = pd.read_csv(study.out_dir / "results.csv")
    arm = ["mode", "n_clients", "partition"]
    means = results.fillna({"partition": "none"}).groupby(arm)[["accuracy", "sensitivity"]].mean()
    figures = {figure.figcaption.string: csv_of(figure.details.a) for figure in soup.find_all("figure")}
    drawn = figures["Test scores of classification by number of clients, with intervals."].groupby("metric")["value"]
    for metric in means:
        rows, table = scores_of(soup, metric)
        expected = [means.loc[tuple(row), metric] for row in table.fillna({"partition": "none"})[arm].to_numpy()]
        assert table["value"].tolist() == pytest.approx(expected, abs=1e-5)
        shown = [row.find_all("td")[3].get_text().split(" ")[0] for row in rows]
        assert shown == [f"{value:.3f}" for value in expected]
        assert drawn.get_group(tasks.NAMES[metric]).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_index_answers_the_question_in_one_sentence(tmp_path):
    study = made_up(tmp_path, profile="smoke", task="segmentation", client_counts="2,4,8")
    told = []
    soup, _ = parsed(report.write_index(study.out_dir, tell=told.append))
    (first,) = (each for each in soup.find_all("p") if each.get_text().startswith("In short:"))
    changes = [each.get_text() for each in first.find_next_sibling("ul").find_all("li")]
    expected = ["Hearts: segmentation", first.get_text(), *(f"- {words}" for words in changes)]
    assert [text.splitlines()[:5] for text in told] == [expected], "the terminal says it, too"
    runs = RunStore(study.out_dir).all()
    trend, gain = analysis.client_trend(runs, study), analysis.federated_vs_local(runs, study)
    asked = {"every doubling of the number of clients": trend["slope"],
             "federated instead of local training": gain["difference"]}  # fmt: skip
    assert first.get_text() == "In short: DSC, left ventricle and DSC, myocardium change"
    for (words, values), change in zip(asked.items(), changes[::2], strict=True):
        assert change.startswith(f"by {values.min():+.3f} to {values.max():+.3f} with {words} (")
    assert changes[1] == "by +0.000 with unbalanced instead of balanced clients (no difference shown in 6 of 6)"
    assert changes[0].endswith(f"(lower in 4 of {len(trend)})"), "made-up scores fall with the number of clients"
    assert changes[2].endswith(f"(higher in 12 of {len(gain)})")


def test_whether_training_had_finished_is_told_unfolded_before_the_verdicts(index):
    soup, _ = index
    for task in tasks.TASKS:
        (heading,) = (each for each in soup.find_all("h3") if each.string == f"Budget and training, {task}")
        table = heading.find_next("table")
        assert table.find_parent("details") is None
        assert len(table.tbody.find_all("tr")) == 5
        assert "half the margin" in heading.find_next("p").get_text()
        assert heading.find_next("h3").string.startswith("Test ")


def test_a_class_without_a_test_case_is_named(tmp_path):
    study = made_up(tmp_path, classes=CLASSES[:3], profile="smoke")
    _, text = page_of(study.out_dir)
    assert "The test set has no case of Viral Pneumonia" in text
    assert "nan" not in text.lower().split()


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
