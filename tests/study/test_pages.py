"""A notebook as a page: mathematics without a network, tables and figures for everyone, a failure in one line."""

import nbformat
import pandas as pd
from bs4 import BeautifulSoup
from nbformat import v4

from fedlib.study import pages

MATH = r"""# Mean of $w_k$

The server takes

$$w \leftarrow \sum_{k=1}^{K} \frac{n_k}{n} w_k$$

\begin{align} a &= b < c \end{align}

It costs 5 \$ and 6 \$."""


def rendered(tmp_path, *cells):
    """The page of a notebook of these cells, parsed."""
    nbformat.write(v4.new_notebook(cells=list(cells)), tmp_path / "book.ipynb")
    page = pages.render_notebook(tmp_path / "book.ipynb")
    return BeautifulSoup(page.read_text(), "html.parser")


def executed(*outputs):
    return v4.new_code_cell("1 + 1", outputs=list(outputs), execution_count=1)


def test_mathematics_becomes_mathml(tmp_path):
    soup = rendered(tmp_path, v4.new_markdown_cell(MATH))
    found = soup.find_all("math")
    assert [math["display"] for math in found] == ["inline", "block", "block"]
    assert found[0].find("msub")
    assert found[1].find("mfrac")
    text = soup.main.get_text()
    assert "$$" not in text
    assert "\\begin" not in text
    assert "5 $ and 6 $" in text
    assert soup.title.string == "Mean of $w_k$"


def test_mathematics_in_outputs_too(tmp_path):
    outputs = [
        v4.new_output("display_data", data={"text/markdown": "$x^2$", "text/plain": "x"}),
        v4.new_output("display_data", data={"text/markdown": "$$y^2$$ costs 5 \\$", "text/plain": "y"}),
    ]
    assert len(rendered(tmp_path, executed(*outputs)).find_all("math")) == 2


def test_a_failure_is_one_line(tmp_path):
    trace = ["Traceback (most recent call last)", "File cells.py, line 3"]
    error = v4.new_output("error", ename="UserError", evalue="rounds = <b>0</b>: expected 1 or more", traceback=trace)
    soup = rendered(tmp_path, executed(error))
    assert soup.select_one(".failed").get_text(strip=True) == "Stopped here.rounds = <b>0</b>: expected 1 or more"
    assert "Traceback" not in soup.get_text()


def test_a_table_can_be_scrolled_by_keyboard_and_read_by_ear(tmp_path):
    frame = '<style>th {color: red}</style><table border="1"><thead><tr><th></th><th>name</th><th>n</th></tr></thead>'
    frame += "<tbody><tr><th>0</th><td>Paul</td><td>3</td></tr></tbody></table>"
    soup = rendered(tmp_path, executed(v4.new_output("display_data", data={"text/html": frame})))
    assert soup.main.find("style") is None
    assert soup.table.parent["tabindex"] == "0"
    assert [cell.get("scope") for cell in soup.find_all("th")] == ["col", "col", "row"]
    assert [cell.get("class") for cell in soup.tbody.find_all("td")] == [["text"], None]


def test_a_figure_has_its_words_and_its_numbers(tmp_path):
    data = {"image/png": "iVBORw0KGgo=", "text/plain": "x", "text/csv": "arm,score\nfederated,0.51239\n"}
    output = v4.new_output("display_data", data=data, metadata={"image/png": {"alt": 'One "arm". More.'}})
    soup = rendered(tmp_path, executed(output))
    assert soup.figure.img["alt"] == 'One "arm". More.'
    assert [cell.get_text() for cell in soup.figure.tbody.find_all(["th", "td"])] == ["federated", "0.512"]
    assert soup.figure.tbody.th["scope"] == "row"
    link = soup.figure.find("a")
    assert link["href"].startswith("data:text/csv")
    assert link["download"] == "one-arm.csv"


def test_a_cell_never_says_nan():
    text = BeautifulSoup(pages.table(pd.DataFrame({"a": ["x"], "b": [float("nan")], "c": [0.12345]})), "html.parser")
    assert [cell.get_text() for cell in text.tbody.find_all(["th", "td"])] == ["x", "", "0.123"]


def test_numbers_are_on_the_right_and_words_and_hashes_can_break():
    frame = pd.DataFrame(
        {"arm": ["a"], "score": ["0.8 [0.7, 0.9]"], "change": ["-1e-3"], "sha": ["0a1b" * 16], "why": ["no"]}
    )
    cells = BeautifulSoup(pages.table(frame), "html.parser").select("td")
    assert ["text" in cell.get("class", []) for cell in cells] == [False, False, True, True]


def test_names_of_rows_and_their_headers_are_on_the_left():
    frame = pd.DataFrame({"n": [1, 2]}, pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")], names=["split", "class"]))
    soup = BeautifulSoup(pages.tidy(frame.to_html()), "html.parser")
    assert [cell.get_text() for cell in soup.select("thead .name")] == ["", "", "split", "class"]
    assert "tbody th, .text, .name { text-align: left; }" in pages.STYLE


def test_nothing_small_is_minus_zero():
    assert "-0.000" not in pages.table(pd.DataFrame({"change": [-0.0001]}))


def test_code_is_no_mathematics(tmp_path):
    soup = rendered(tmp_path, v4.new_markdown_cell("# Costs\n\n`$HOME` and $x$\n\n```sh\necho $A $B\n```\n\n## Then"))
    assert [code.get_text().strip() for code in soup.find_all(["code", "pre"])] == ["$HOME", "echo $A $B"]
    assert len(soup.find_all("math")) == 1


def test_a_page_lists_its_sections_and_the_way_back(tmp_path):
    soup = rendered(tmp_path, v4.new_markdown_cell("# Costs\n\n## Of $x$\n\n### More\n\n## Then"))
    assert [(link.get_text(), link["href"]) for link in soup.header.find_all("a")] == [
        ("Back to the study", "../index.html")
    ]
    sections = soup.select(".contents a")
    assert [soup.find(id=link["href"][1:]).name for link in sections] == ["h2", "h3", "h2"]
    assert sections[0].math
    assert sections[2].get_text() == "Then"


def test_pages_lead_to_the_one_before_and_the_one_after_that_are_there(tmp_path):
    names = ["00_start", "01_data", "04_compare"]
    for name in names:
        nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell(f"# {name}")]), tmp_path / f"{name}.ipynb")
        pages.render_notebook(tmp_path / f"{name}.ipynb")
    for _ in range(2):  # a study that is resumed links its pages again
        pages.link_pages(tmp_path)
    ways = {"00_start": ["", "01_data"], "01_data": ["00_start", "", "04_compare"], "04_compare": ["01_data", ""]}
    for name, expected in ways.items():
        soup = BeautifulSoup((tmp_path / f"{name}.html").read_text(), "html.parser")
        for nav in (soup.header, soup.footer):
            assert [link["href"] for link in nav.find_all("a")] == [
                f"{to}.html" if to else "../index.html" for to in expected
            ]
    assert "← 01 data" in soup.header.get_text()


def test_solutions_are_marked_for_paper_and_verdicts_by_colour(tmp_path):
    folded = "<details><summary>Solution</summary>\n\nno\n\n</details>"
    frame = pd.DataFrame({"arm": ["a", "b"], "verdict": ["superior", "inferior"]}).to_html(index=False)
    soup = rendered(
        tmp_path, v4.new_markdown_cell(folded), executed(v4.new_output("display_data", data={"text/html": frame}))
    )
    assert soup.main.details["class"] == ["solution"]
    assert [cell["class"][-2:] for cell in soup.select("td")] == [["verdict", "good"], ["verdict", "bad"]]
