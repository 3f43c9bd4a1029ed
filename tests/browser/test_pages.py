"""The pages of a study in a real browser, from the disk, with no network: nothing missing, nothing wider than a phone."""

from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from fedlib import tasks

CHROMIUM = "/usr/bin/chromium"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]
PAGES = ["index.html", *(f"{task}/{notebook}" for task in tasks.TASKS for notebook in (
    "01_data_preparation.html", "02_centralized_training.html", "03_federated_simulation.html", "04_compare_results.html"
))]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


class Watched:
    """A page opened from the disk, with everything that it asked for and complained of."""

    def __init__(self, browser, path: Path, width: int):
        self.context = browser.new_context(viewport={"width": width, "height": 800})
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


@pytest.fixture
def opened(browser):
    contexts = []

    def open_page(path, width=1280):
        watched = Watched(browser, path, width)
        contexts.append(watched.context)
        return watched

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_works_offline(smoke, opened, name):
    watched = opened(smoke / name)
    assert watched.complaints == []
    assert watched.asked == [(smoke / name).as_uri()], "one file, and nothing else"
    pictures = watched.page.eval_on_selector_all("img", "all => all.map(one => [one.naturalWidth, one.alt.trim()])")
    assert pictures
    assert all(width > 0 and len(alt) > 10 for width, alt in pictures)
    text = watched.page.inner_text("body")
    assert "Traceback" not in text
    assert not any(tag in text for tag in ("<table", "<td", "<tr", "<div", "&lt;", "<Figure"))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone(smoke, opened, name):
    page = opened(smoke / name, width=375).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_every_link_of_the_index_and_back_resolves(smoke, opened):
    page = opened(smoke / "index.html").page
    hrefs = page.eval_on_selector_all("a", "all => all.map(one => one.getAttribute('href'))")
    inside = [href for href in hrefs if not href.startswith(("http", "#"))]
    assert {f"{name}" for name in PAGES[1:]} | {"results.csv"} <= set(inside)
    assert [href for href in inside if not (smoke / href).is_file()] == []
    page.click(f"a[href='{PAGES[1]}']")
    page.click("text=Back to the study")
    assert page.url == (smoke / "index.html").as_uri()


def test_the_index_shows_every_arm_of_both_tasks(smoke, opened):
    page = opened(smoke / "index.html").page
    for task in tasks.TASKS:
        rows = page.locator(f"section[aria-labelledby='{task}'] table tbody tr")
        assert rows.count() == 5 * len(tasks.get(task).PRIMARY)
        text = "\n".join(rows.all_inner_texts()).lower()
        for words in ("centralized", "federated", "balanced", "unbalanced", "2"):
            assert words in text
        assert "inconclusive" in text or "lower" in text or "higher" in text
    body = page.inner_text("body")
    assert "no patient" in body, "synthetic images are called that"
    assert "Not complete" not in body


def test_the_index_is_structured_for_those_who_do_not_see_it(smoke, opened):
    page = opened(smoke / "index.html").page
    assert page.get_attribute("html", "lang") == "en"
    assert page.locator("h1").count() == 1
    assert page.locator("main").count() == 1
    assert page.title()
    assert page.locator("table thead th").count() > 0
