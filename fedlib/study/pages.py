"""Pages that open anywhere: one file each, no network, one look; a notebook made into such a page."""

import functools
import io
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import latex2mathml.converter
import nbformat
import pandas as pd
from bs4 import BeautifulSoup, Tag
from jinja2 import Environment, FileSystemLoader, pass_context
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from fedlib.data.files import write_atomically

TEMPLATES = Path(__file__).resolve().parent / "templates"
STYLE = (TEMPLATES / "style.css").read_text()


def shown(value: Any) -> Any:
    """A table's cell as a person reads it: nothing instead of NaN, three decimals."""
    if isinstance(value, Markup):
        return value
    if value is None or value is pd.NA or value != value:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else value


def slug(words: str) -> str:
    """A file name of words."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:60]


@functools.cache
def environment() -> Environment:
    """The templates, everything escaped but what is Markup."""
    found = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    found.filters |= {"shown": shown, "slug": slug}
    return found


def parts() -> Any:
    """The macros of parts.html.j2: table, numbers."""
    return environment().get_template("parts.html.j2").module


def render_notebook(notebook: Path) -> Path:
    """Write an executed notebook as one self-contained HTML file beside it; returns its path."""
    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("widgets", None)  # saved by JupyterLab: without a kernel their twins are shown instead
    name = re.search(r"^# (.+)$", "".join(cell.source + "\n" for cell in content.cells), re.MULTILINE)
    resources = {"metadata": {"name": name[1] if name else notebook.stem.replace("_", " ")}, "style": STYLE}
    exporter = _Exporter(template_name="offline", extra_template_basedirs=[str(TEMPLATES)])
    exporter.register_preprocessor("nbconvert.preprocessors.CoalesceStreamsPreprocessor", enabled=True)
    html, _ = exporter.from_notebook_node(content, resources=resources)
    page = notebook.with_suffix(".html")
    write_atomically(page, html)
    return page


class _Exporter(HTMLExporter):
    """nbconvert's exporter with MathML, tidy tables and figures that carry their words and numbers."""

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = _MathML(escape=False, attachments=attachments, exclude_anchor_links=True)
        return MarkdownWithMath(renderer=renderer).render(source)

    def default_filters(self) -> Any:
        yield from super().default_filters()
        yield from {"markdown2html": self.markdown2html, "tidy": tidy, "figure": figure}.items()


class _MathML(IPythonRenderer):
    """LaTeX to MathML, which browsers show and screen readers read by themselves."""

    def inline_math(self, body: str) -> str:
        return latex2mathml.converter.convert(body)

    def block_math(self, body: str) -> str:
        return f'<div class="formula" tabindex="0">{latex2mathml.converter.convert(body, display="block")}</div>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")


def tidy(html: str) -> str:
    """A fragment of HTML without looks of its own, whose tables a keyboard can scroll and an ear can follow."""
    soup = BeautifulSoup(html, "html.parser")
    for element in soup.find_all("style"):
        element.decompose()
    for element in soup.find_all(["span", "table", "tr", "th", "td"]):
        for name in ("style", "border", "align"):  # papermill's red, pandas's borders
            element.attrs.pop(name, None)
    for cell in soup.find_all("th"):
        if cell.get_text(strip=True):
            spans = "group" if cell.get("rowspan" if cell.find_parent("tbody") else "colspan", "1") != "1" else ""
            cell["scope"] = ("row" if cell.find_parent("tbody") else "col") + spans
        else:
            cell.name = "td"
    for table in soup.find_all("table"):
        _align(table)
        table.wrap(soup.new_tag("div", attrs={"class": "table", "tabindex": "0", "role": "group", "aria-label": "table"}))
    return str(soup)


def _align(table: Tag) -> None:
    """Set columns of words from the left; numbers stay on the right. Tables with joined cells are left as they are."""
    rows = [row.find_all(["th", "td"], recursive=False) for row in table.find_all("tr")]
    if table.find(["th", "td"], rowspan=True) or len({len(cells) for cells in rows}) != 1:
        return
    for column in zip(*rows, strict=True):
        if any(_is_words(cell) for cell in column if not cell.find_parent("thead")):
            for cell in column:
                cell["class"] = "text"


def _is_words(cell: Tag) -> bool:
    return re.fullmatch(r"[-+]?[\d.,e+-]*%?|nan|inf|True|False", cell.get_text(strip=True)) is None


def figure(output: NotebookNode) -> str:
    """An image output with its alternative text and, where the figure has numbers, their table and CSV."""
    kind = "image/png" if "image/png" in output.data else "image/svg+xml"
    content = output.data[kind]
    content = content.replace("\n", "") if kind == "image/png" else b64encode(content.encode()).decode()
    alt = output.metadata.get(kind, {}).get("alt") or output.data.get("text/plain", "")
    width = output.metadata.get(kind, {}).get("width")
    size = Markup('width="{}" ').format(width) if width else ""
    image = Markup('<img class="plot" {}src="data:{};base64,{}" alt="{}">').format(size, kind, content, alt)
    if "text/csv" not in output.data:
        return Markup("<figure>{}</figure>").format(image)
    csv = output.data["text/csv"]
    link = f"data:text/csv;charset=utf-8;base64,{b64encode(csv.encode()).decode()}"
    numbers = parts().numbers(pd.read_csv(io.StringIO(csv)), link, alt.partition(".")[0])
    return Markup("<figure>{}{}</figure>").format(image, numbers)
