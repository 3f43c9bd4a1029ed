"""The pages of a study in a real browser, from the disk, with no network: nothing missing, for every eye, hand and paper."""

import json
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup

from fedlib import analysis, tasks
from fedlib.study import report
from fedlib.study.pages import LOOKS
from fedlib.training.run_store import RunStore
from tests.made_up import made_up

PAGES = ["index.html", *(f"{task}/{notebook}" for task in tasks.TASKS for notebook in (
    "01_data_preparation.html", "02_centralized_training.html", "03_federated_simulation.html", "04_compare_results.html"
))]  # fmt: skip
PHONE, DESK, WIDE = 375, 1280, 1920
DARK = [PAGES[0], PAGES[1], PAGES[-1]]
"""Pages that axe sees on a phone in the dark, too: the index, an X-ray's with pictures, a heart's with tables."""


class Watched:
    """A page opened from the disk, with everything that it asked for and complained of."""

    def __init__(self, browser, path: Path, width: int, scheme: str):
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.asked, self.complaints = [], []
        self.context.route("**/*", self._only_the_disk)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri(), wait_until="load")

    def _only_the_disk(self, route):
        url = route.request.url
        if not url.startswith("data:"):
            self.asked.append(url)
        route.continue_() if url.startswith(("file:", "data:")) else route.abort()

    def violations(self, *rules: str) -> list[str]:
        """What axe-core finds, of any impact and by all its rules unless some are named, with everything unfolded."""
        self.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
        found = Axe().run(self.page, options=options).response["violations"]
        return [f"{one['id']} ({one['impact']}): {one['nodes'][0]['html'][:200]}" for one in found]


@pytest.fixture
def opened(browser):
    contexts = []

    def open_page(path, width=DESK, scheme="light"):
        watched = Watched(browser, path, width, scheme)
        contexts.append(watched.context)
        return watched

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """The index of a made-up study of two seeds in which a run failed, another was edited, and the reference is gone."""
    study = made_up(tmp_path_factory.mktemp("troubled") / "study", profile="smoke", client_counts="2,4", seed=[1, 2])
    runs = RunStore(study.out_dir).all()
    federated, local = (next(run for run in runs if run.config.mode == mode) for mode in ("federated", "local"))
    (federated.folder / "status.json").write_text(json.dumps({"state": "failed", "error": "client 1 answered <NaN>"}))
    (local.folder / "cases.csv").write_text("case,patient\n")
    for run in runs:
        if run.config.mode == "centralized":
            (run.folder / "status.json").unlink()
    return report.write_report(study.out_dir)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_works_offline_and_axe_finds_nothing(smoke, opened, name):
    watched = opened(smoke / name, WIDE)
    assert watched.complaints == []
    assert watched.asked == [(smoke / name).as_uri()], "one file, and nothing else"
    pictures = watched.page.eval_on_selector_all("img", "all => all.map(one => [one.naturalWidth, one.alt.trim()])")
    assert pictures
    assert all(width > 0 and len(alt) > 10 for width, alt in pictures)
    text = watched.page.inner_text("body")
    assert "Traceback" not in text
    assert not any(tag in text for tag in ("<table", "<td", "<tr", "<div", "&lt;", "<Figure", "$$", "\\frac"))
    assert watched.violations() == []


@pytest.mark.parametrize("name", DARK)
def test_axe_finds_nothing_on_a_phone_in_the_dark(smoke, opened, name):
    looks = ("color-contrast", "scrollable-region-focusable", "target-size", "link-in-text-block")
    assert opened(smoke / name, PHONE, "dark").violations(*looks) == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone_and_paper(smoke, opened, name):
    page = opened(smoke / name, width=PHONE).page
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE
    page.set_viewport_size({"width": 720, "height": 1000})  # A4 within its margins
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    assert page.locator("figure > details:visible").count() == 0, "paper has a figure, and not its numbers again"
    folded = page.locator("main details:not([open], .solution, .answer, figure > *) table")
    assert all(folded.nth(n).bounding_box()["height"] > 10 for n in range(folded.count())), "paper cannot unfold"
    titles = page.locator("main details:not(.solution, .answer, figure > *, .frame[hidden] *) > summary").all()
    assert all(title.is_visible() for title in titles), "what is unfolded keeps its name"
    assert page.locator(".solution:visible, .answer:visible").count() == 0, "paper is handed out"
    clipped = page.eval_on_selector_all(".table", "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).length")
    assert clipped == 0
    assert page.locator("input[type=range]:visible, nav:visible").count() == 0


def test_mathematics_is_drawn(smoke, opened):
    page = opened(smoke / "classification/03_federated_simulation.html").page
    formula = page.locator("math[display=block]").first
    assert formula.bounding_box()["height"] > 30
    assert formula.locator("mfrac").count() > 0


def test_tables_are_reached_and_scrolled_by_keyboard(smoke, opened):
    page = opened(smoke / "index.html", width=PHONE).page
    table = page.locator(".table:visible").first
    table.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("table => table.scrollLeft > 0", arg=table.element_handle())


def test_the_first_key_leads_past_the_navigation(smoke, opened):
    page = opened(smoke / "index.html").page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"


def test_numbers_of_a_figure_unfold_and_come_as_csv(smoke, opened):
    page = opened(smoke / "index.html").page
    folded = page.locator("figure details").first
    folded.locator("summary").press("Enter")
    assert folded.locator("tbody tr").first.is_visible()
    with page.expect_download() as download:
        folded.locator("a").click()
    assert Path(download.value.path()).read_text().startswith("arm,value,low,high")
    notebook = opened(smoke / "segmentation/03_federated_simulation.html").page
    notebook.locator("figure summary").first.click()
    with notebook.expect_download() as download:
        notebook.locator("figure a[download]").first.click()
    assert Path(download.value.path()).read_text().startswith("partition,client,volumes")


def test_charts_follow_the_theme(smoke, opened):
    look = "getComputedStyle(document.querySelector('.chart img')).filter"
    light, dark = (opened(smoke / "index.html", scheme=scheme).page.evaluate(look) for scheme in ("light", "dark"))
    assert light == "none"
    assert "invert" in dark


def test_every_link_of_the_index_and_back_resolves(smoke, opened):
    page = opened(smoke / "index.html").page
    hrefs = page.eval_on_selector_all("a", "all => all.map(one => one.getAttribute('href'))")
    inside = [href for href in hrefs if not href.startswith(("http", "#", "data:"))]
    assert {f"{name}" for name in PAGES[1:]} | {"results.csv"} <= set(inside)
    assert [href for href in inside if not (smoke / href.partition("#")[0]).is_file()] == []
    for href in (href for href in hrefs if "#" in href and not href.startswith(("http", "data:"))):
        name, _, section = href.partition("#")
        assert f'id="{section}"' in (smoke / (name or "index.html")).read_text(), href
    page.click(f"a[href='{PAGES[1]}']")
    for arrow, expected in (("→", PAGES[2]), ("→", PAGES[3]), ("→", PAGES[4]), ("←", PAGES[3])):
        page.click(f"header a:has-text('{arrow}')")
        assert page.url == (smoke / expected).as_uri()
    page.click("footer a:text('Back to the study')")
    assert page.url == (smoke / "index.html").as_uri()


@pytest.mark.parametrize("name", PAGES)
def test_contents_list_every_heading_of_a_page_once(smoke, name):
    soup = BeautifulSoup((smoke / name).read_text(), "html.parser")
    headings = [heading.get_text().replace("\u00b6", "").split() for heading in soup.select("main h2, main h3")]
    assert [link.get_text().split() for link in soup.select(".contents a")] == headings
    ids = [element["id"] for element in soup.select("[id]")]
    assert len(ids) == len(set(ids)), "each link leads to its own heading"
    assert (soup.html["lang"], len(soup.find_all("main")), len(soup.find_all("h1"))) == ("en", 1, 1)


@pytest.mark.parametrize("name", PAGES[:2])
def test_contents_are_beside_a_wide_page_and_folded_on_a_phone(smoke, opened, name):
    page = opened(smoke / name).page
    page.mouse.wheel(0, 3000)
    page.wait_for_function("scrollY > 1000")
    assert page.locator(".contents").bounding_box()["y"] < 100, "it stays in sight"
    phone = opened(smoke / name, PHONE).page
    assert phone.locator(".contents a:visible").count() == 0
    phone.locator(".contents summary").press("Enter")
    assert phone.locator(".contents a:visible").count() == phone.locator("main h2, main h3").count()


@pytest.mark.parametrize("task", [pytest.param("classification", marks=pytest.mark.slow), "segmentation"])
def test_a_margin_moved_by_key_gives_the_verdicts_of_the_same_rule(tmp_path, opened, task):
    assert (LOOKS["superior"], LOOKS["inferior"]) == ("good", "bad")
    study = made_up(tmp_path, profile="smoke", task=task, client_counts="2,4,8,16")
    page, runs = opened(report.write_index(tmp_path)).page, RunStore(tmp_path).all()
    for metric, rows in analysis.compare(runs, study).dropna(subset="verdict").groupby("metric", sort=False):
        slider = page.get_by_role("slider", name=f"Margin, {tasks.NAMES[metric]}")
        cells = page.locator(f".table[aria-label='{tasks.NAMES[metric]}'] td.verdict")
        box, planned = page.locator(".margin", has=slider), study.margin(metric)
        assert cells.all_inner_texts() == rows["verdict"].tolist()
        assert "chosen before the runs" in box.inner_text()
        seen = set()
        slider.press("Home")
        for _ in range(11):
            margin = float(slider.input_value())
            expected = [analysis.verdict(row.difference_low, row.difference_high, margin) for row in rows.itertuples()]
            assert cells.all_inner_texts() == expected
            seen.add(tuple(expected))
            assert slider.get_attribute("aria-valuetext") == f"{margin:.3g}"
            slider.press("PageUp")  # a tenth of the range
        assert len(seen) > 1 or task == "classification", "forty X-rays are too few for a verdict"
        federated = [verdict for verdict, mode in zip(expected, rows["mode"], strict=True) if mode == "federated"]
        assert f"{federated[-1]} in {federated.count(federated[-1])}" in box.locator("output").inner_text()
        coloured = cells.evaluate_all("all => all.map(one => one.classList.value)")
        assert [set(look.split()) - {"text"} for look in coloured] == [{"verdict", LOOKS[one]} - {""} for one in expected]
        box.get_by_role("button", name=f"Back to {planned:g}").press("Enter")
        assert float(slider.input_value()) == planned
        assert cells.all_inner_texts() == rows["verdict"].tolist()


def test_the_index_shows_every_arm_of_both_tasks(smoke, opened):
    page = opened(smoke / "index.html").page
    for task in tasks.TASKS:
        for metric in tasks.get(task).PRIMARY:
            rows = page.locator(f".table[aria-label='{tasks.NAMES[metric]}'] tbody tr")
            assert rows.count() == 5
            text = "\n".join(rows.all_inner_texts()).lower()
            assert all(words in text for words in ("centralized", "federated", "local", "balanced", "unbalanced", "2"))
    body = page.inner_text("body")
    assert "no patient" in body, "synthetic images are called that"
    assert "its figures mean nothing" in body
    assert "Not complete" not in body


def test_the_verdict_comes_first(smoke, opened):
    page = opened(smoke / "index.html").page
    assert page.locator("h2").first.inner_text() == "What this study found"
    assert page.locator("p .verdict").first.bounding_box()["y"] < 800, "seen without scrolling"
    for title in (tasks.get(task).TITLE for task in tasks.TASKS):
        assert page.locator(f"h3:text-is('{title}') + p").inner_text().startswith("In short: ")
        assert page.locator(f"h3:text-is('{title}') + p + ul + p .verdict").count() > 0


def test_a_troubled_study_reads_well_too(troubled, opened):
    watched = opened(troubled, PHONE, "dark")
    assert watched.complaints == []
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= PHONE
    text = watched.page.inner_text("main")
    assert "no finished centralized run" in text
    assert "Not complete: 4 of 18 runs missing" in text.replace("\n", " ")
    assert "client 1 answered <NaN>" in text
    assert "cases.csv" in text
    assert "nan" not in text.lower().replace("<nan>", "").split()
    assert watched.violations() == []
