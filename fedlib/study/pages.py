"""Make a notebook into a page that opens anywhere: one file, no network, one look, readable by eye, ear and keyboard."""

import io
import re
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path

import latex2mathml.converter
import nbformat
import pandas as pd
from bs4 import BeautifulSoup, Tag
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from fedlib.data.files import write_atomically

TEMPLATES = Path(__file__).resolve().parent / "templates"
STYLE = (TEMPLATES / "style.css").read_text()
BACK = ("../index.html", "Back to the study")
LINKS = re.compile(r'<ul class="pages">.*?</ul>')
LOOKS = {"equivalent": "good", "superior": "good", "non-inferior": "good", "inconclusive": "", "inferior": "bad"}
"""Verdicts, and their classes in style.css."""
NUMBERS = re.compile(r"[-+\d.,;%()\[\]–e\s]*|nan|inf|True|False")
"""A cell of numbers, with an interval or without; all else is words, hashes included."""


def render_notebook(notebook: Path) -> Path:
    """Write an executed notebook as one self-contained HTML file beside it; return its path."""
    page = notebook.with_suffix(".html")
    write_atomically(page, render(nbformat.read(notebook, as_version=4), BACK))
    return page


def render(notebook: NotebookNode, *links: tuple[str, str]) -> str:
    """Return a notebook as HTML. `links` (href, text) lead to other pages; the contents list its sections."""
    notebook.metadata.pop("widgets", None)  # saved by JupyterLab: without a kernel the output's HTML is shown instead
    exporter = HTMLExporter(template_name="offline", extra_template_basedirs=[str(TEMPLATES)])
    exporter.register_preprocessor("nbconvert.preprocessors.CoalesceStreamsPreprocessor", enabled=True)
    for each in (markdown, table, download, tidy):
        exporter.register_filter(each.__name__, each)
    title = re.search(r"^# (.+)$", "\n".join(cell.source for cell in notebook.cells), re.MULTILINE)
    resources = {"metadata": {"name": title[1] if title else "Notebook"}, "style": STYLE, "links": _listed(links)}
    html, _ = exporter.from_notebook_node(notebook, resources=resources)
    sections = re.findall(r'<h([23]) id="([^"]+)">(.*?)</h\1>', html)
    contents = "".join(f'<li class="h{level}"><a href="#{key}">{text}</a></li>' for level, key, text in sections)
    return html.replace("<!-- contents -->", contents, 1)


def link_pages(folder: Path) -> None:
    """Give each page of a task's notebooks the way to the page before it and to the one after it, where there are such."""
    pages = sorted(folder.glob("[0-9]*.html"))
    for before, page, after in zip([None, *pages], pages, [*pages[1:], None], strict=False):
        links = [(before.name, f"← {heading(before)}")] if before else []
        links += [BACK, *([(after.name, f"{heading(after)} →")] if after else [])]
        html = page.read_text()
        linked = f'<ul class="pages">{_listed(links)}</ul>'.join(LINKS.split(html))
        if linked != html:
            write_atomically(page, linked)


def heading(notebook: Path) -> str:
    """Return how a link names a notebook: `04 compare results`."""
    return notebook.stem.replace("_", " ")


def _listed(links: Iterable[tuple[str, str]]) -> str:
    return "".join(f'<li><a href="{href}">{text}</a></li>' for href, text in links)


class MathMLRenderer(IPythonRenderer):
    """nbconvert's Markdown, with LaTeX as MathML, which browsers show and screen readers read by themselves."""

    def inline_math(self, body: str, display: str = "inline") -> str:
        """Return a formula within a line."""
        formula = latex2mathml.converter.convert(body, "", display)
        return formula.replace(' xmlns=""', "")  # headings must stay without one

    def block_math(self, body: str) -> str:
        """Return a formula on lines of its own."""
        return f'<span class="formula" tabindex="0">{self.inline_math(body, "block")}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        """Return what stands between `\\begin` and `\\end`."""
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")


def markdown(source: str) -> str:
    """Return Markdown as HTML."""
    return tidy(MarkdownWithMath(renderer=MathMLRenderer(escape=False)).render(source))


def table(numbers: str | pd.DataFrame, label: str = "table") -> str:
    """Return a data frame, or CSV, as HTML: three decimals, nothing for NaN; the first column names the rows."""
    frame = pd.read_csv(io.StringIO(numbers)) if isinstance(numbers, str) else numbers
    return tidy(frame.to_html(index=False, border=0, na_rep="", float_format="{:z.3f}".format), label)


def download(csv: str, label: str) -> str:
    """Return a link that holds a table as CSV."""
    name = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:60]
    href = f"data:text/csv;charset=utf-8;base64,{b64encode(csv.encode()).decode()}"
    return f'<p class="small csv"><a href="{href}" download="{name}.csv">These numbers as CSV</a></p>'


def tidy(html: str, label: str = "table") -> str:
    """Return HTML without looks of its own, whose tables a keyboard can scroll and a screen reader can follow."""
    soup = BeautifulSoup(html, "html.parser")
    for element in soup.select("style, a.anchor-link"):
        element.decompose()
    for element in soup.find_all(["span", "table", "tr", "th", "td"]):
        for name in ("style", "border", "align"):  # papermill's red, the borders of pandas
            element.attrs.pop(name, None)
    for each in soup.find_all("details"):  # paper leaves out solutions and answers
        each["class"] = each.summary.get_text(strip=True).lower().replace(" ", "-")
    for each in soup.find_all("table"):
        _name_headers(each)
        _align(each)
        each.wrap(soup.new_tag("div", attrs={"class": "table", "tabindex": "0", "role": "group", "aria-label": label}))
    for element in soup.find_all(["td", "em"], string=list(LOOKS)):
        element["class"] = [*element.get("class", []), "verdict", LOOKS[element.string]]
    return str(soup)


def _name_headers(table: Tag) -> None:
    """Mark what names a column or a row: the header cells, and the first cell of a row that has none."""
    for row in table.select("tbody tr"):
        if not row.th and row.td:
            row.td.name = "th"
    levels = max((len(row.find_all("th")) for row in table.select("tbody tr")), default=0)
    for row in table.select("thead tr"):
        for cell in row.find_all(["th", "td"])[:levels]:
            cell["class"] = ["name"]
    for cell in table.find_all("th"):
        if cell.get_text(strip=True):
            side = "row" if cell.find_parent("tbody") else "col"
            cell["scope"] = side if cell.get(f"{side}span", "1") == "1" else f"{side}group"
        else:
            cell.name = "td"


def _align(table: Tag) -> None:
    """Set columns of words from the left; numbers stay on the right. Tables with joined cells are left as they are."""
    rows = [row.find_all(["th", "td"], recursive=False) for row in table.find_all("tr")]
    if table.find(["th", "td"], rowspan=True) or len({len(cells) for cells in rows}) != 1:
        return
    for column in zip(*rows, strict=True):
        if not all(NUMBERS.fullmatch(cell.get_text(strip=True)) for cell in column if not cell.find_parent("thead")):
            for cell in column:
                cell["class"] = ["text"]
