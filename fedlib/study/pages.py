"""Make a notebook into a page that opens anywhere: one file, no network, one look, readable by eye, ear and keyboard."""

import io
import re
from base64 import b64encode
from html import escape
from pathlib import Path

import latex2mathml.converter
import nbformat
import pandas as pd
from bs4 import BeautifulSoup, Tag
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from fedlib.data.files import write_atomically

TEMPLATES = Path(__file__).resolve().parent / "templates"
STYLE = (TEMPLATES / "style.css").read_text()
BACK = ("../index.html", "Back to the study")
LOOKS = {"equivalent": "good", "superior": "good", "non-inferior": "good", "inconclusive": "", "inferior": "bad"}
"""Verdicts, and their classes in style.css."""
NUMBERS = re.compile(r"[-+\d.,;%()\[\]–e\s]*|nan|inf|True|False")
"""A cell of numbers, with an interval or without; all else is words, hashes included."""
MATH = re.compile(
    r"(?P<code>```.*?```|`[^`\n]*`)|(?<!\\)\$\$(?P<block>.+?)(?<!\\)\$\$|(?P<environment>\\begin\{(\w+\*?)\}.*?\\end\{\4\})"
    r"|(?<![\\$])\$(?P<inline>[^$]+?)(?<!\\)\$",
    re.DOTALL,
)
"""LaTeX in Markdown; code is matched first, and stays."""


def render_notebook(notebook: Path) -> Path:
    """Write an executed notebook as one self-contained HTML file beside it; return its path."""
    page = notebook.with_suffix(".html")
    write_atomically(page, render(nbformat.read(notebook, as_version=4), BACK))
    return page


def render(notebook: NotebookNode, *links: tuple[str, str]) -> str:
    """Return a notebook as HTML. `links` (href, text) come first in the page's navigation, its sections follow."""
    notebook.metadata.pop("widgets", None)  # saved by JupyterLab: without a kernel the output's HTML is shown instead
    exporter = HTMLExporter(template_name="offline", extra_template_basedirs=[str(TEMPLATES)])
    exporter.register_preprocessor("nbconvert.preprocessors.CoalesceStreamsPreprocessor", enabled=True)
    for each in (mathml, tidy, display):
        exporter.register_filter(each.__name__, each)
    title = re.search(r"^# (.+)$", "\n".join(cell.source for cell in notebook.cells), re.MULTILINE)
    resources = {"metadata": {"name": title[1] if title else "Notebook"}, "style": STYLE}
    html, _ = exporter.from_notebook_node(notebook, resources=resources)
    links += tuple((f"#{key}", text) for key, text in re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', html))
    return html.replace("<!-- links -->", "".join(f'<li><a href="{href}">{text}</a></li>' for href, text in links), 1)


def mathml(markdown: str) -> str:
    """Turn LaTeX into MathML, which browsers show and screen readers read by themselves."""

    def convert(found: re.Match) -> str:
        if found["code"]:
            return found["code"]
        latex, kind = found["inline"] or found["block"] or found["environment"], "inline" if found["inline"] else "block"
        formula = latex2mathml.converter.convert(latex, "", kind).replace(' xmlns=""', "")  # headings must stay without one
        return formula if kind == "inline" else f'<div class="formula" tabindex="0">{formula}</div>'

    return MATH.sub(convert, markdown)


def display(output: NotebookNode) -> str:
    """Return an output of HTML or of an image, with its alternative text and, where it has numbers, their table and CSV."""
    csv, label = output.data.get("text/csv"), output.metadata.get("title", "table")
    if "text/html" in output.data:
        html = tidy(output.data["text/html"], label)
        return html + (_link(csv, label) if csv else "")
    image = output.data["image/png"].replace("\n", "")
    about = output.metadata.get("image/png", {})
    alt, width = about.get("alt") or output.data.get("text/plain", ""), f' width="{about.get("width")}"' * ("width" in about)
    caption = f"<figcaption>{escape(output.metadata['title'])}</figcaption>" if "title" in output.metadata else ""
    html = f'<img class="plot"{width} src="data:image/png;base64,{image}" alt="{escape(alt)}">{caption}'
    if csv:
        what = alt.partition(".")[0]
        html += f"<details><summary>Numbers in this figure</summary>{table(pd.read_csv(io.StringIO(csv)), what)}"
        html += f"{_link(csv, what)}</details>"
    return f"<figure{' class=chart' * bool(caption)}>{html}</figure>"


def table(frame: pd.DataFrame, label: str = "table") -> str:
    """Return a data frame as HTML, three decimals, nothing for NaN; the first column names the rows."""
    return tidy(frame.to_html(index=False, border=0, na_rep="", float_format="{:.3f}".format), label)


def _link(csv: str, what: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", what.lower()).strip("-")[:60]
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
        _head(each)
        _align(each)
        each.wrap(soup.new_tag("div", attrs={"class": "table", "tabindex": "0", "role": "group", "aria-label": label}))
    for element in soup.find_all(["td", "em"], string=list(LOOKS)):
        element["class"] = [*element.get("class", []), "verdict", LOOKS[element.string]]
    return str(soup)


def _head(frame: Tag) -> None:
    """Mark what names a column or a row: the header cells, and the first cell of a row that has none."""
    for row in frame.select("tbody tr"):
        if not row.find("th") and row.td:
            row.td.name = "th"
    for cell in frame.find_all("th"):
        if cell.get_text(strip=True):
            spans = "group" if cell.get("rowspan" if cell.find_parent("tbody") else "colspan", "1") != "1" else ""
            cell["scope"] = ("row" if cell.find_parent("tbody") else "col") + spans
        else:
            cell.name = "td"


def _align(frame: Tag) -> None:
    """Set columns of words from the left; numbers stay on the right. Tables with joined cells are left as they are."""
    rows = [row.find_all(["th", "td"], recursive=False) for row in frame.find_all("tr")]
    if frame.find(["th", "td"], rowspan=True) or len({len(cells) for cells in rows}) != 1:
        return
    for column in zip(*rows, strict=True):
        if not all(NUMBERS.fullmatch(cell.get_text(strip=True)) for cell in column if not cell.find_parent("thead")):
            for cell in column:
                cell["class"] = ["text"]
