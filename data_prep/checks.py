"""What looks odd about a set and cannot be decided here: warnings, for the user to look at the source."""

import re
from collections.abc import Iterable
from unicodedata import normalize

import pandas as pd

NOBODY = re.compile(
    r"(anonym\w*|anon|deidentified|unknown|unbekannt|none|null|nan|n/?a|missing|test|[-?.*x0_]+)", re.IGNORECASE
)
"""Ids that stand for no person in particular."""
MANY = 10
"""Cases of one patient, if they are a tenth of the set too, that ask whether it is one (*chosen*)."""
PERSON = re.compile(r"((?:person|patient|pat|subject|subj|sub|proband)[-_ ]?\d+|[^-_ ]*\d[^-_ ]*)[-_ ]", re.IGNORECASE)
"""The start of a file's name, if it may name a person: `person12_`, `patient001_`, `00000013_`."""


def warnings(cases: pd.DataFrame, notes: dict[str, str]) -> list[str]:
    """Return one line for each thing that looks odd in a table of cases (columns case, patient) and its loader's notes."""
    of_note: dict[str, list[str]] = {}
    for file, note in notes.items():
        of_note.setdefault(note, []).append(file)
    found = [f"{_some(files)}: {note}" for note, files in of_note.items()]
    known = cases["patient"][cases["patient"] != cases["case"]].value_counts()
    alike = pd.Series(known.index, [_reading(patient) for patient in known.index], dtype=object)
    twins = [sorted(group) for _, group in alike.groupby(level=0) if len(group) > 1]
    if twins:
        shown = _some([" and ".join(group) for group in sorted(twins)])
        found.append(f"patients {shown}: different ids that may be one person's; did a spreadsheet change them?")
    if rounded := sorted(patient for patient in known.index if re.fullmatch(r"[\d.,]+E\+?\d+", patient, re.IGNORECASE)):
        found.append(f"patients {_some(rounded)}: were they rounded by a spreadsheet? expected ids as they were")
    for patient, n in known.items():
        if n > 1 and (NOBODY.fullmatch(patient) or n >= MANY and n >= len(cases) / MANY):
            found.append(f"patient {patient}: {n} of {len(cases)} cases, all in one split; is this one person?")
    return found + _named_by_file(cases[cases["patient"] == cases["case"]]["case"])


def _named_by_file(cases: Iterable[str]) -> list[str]:
    """Return a hint where the names of files seem to tell persons, and nothing else does."""
    starts = pd.Series([match[1] for case in cases if (match := PERSON.match(case.rsplit("/", 1)[-1]))], dtype=object)
    counted = starts.value_counts()
    several = sorted(counted.index[counted > 1])
    if not several or len(counted) < 3:
        return []
    return [
        f"files of {_some(several)}: their names seem to tell the person, yet each file counts as a patient; expected a "
        "table or folders that state the patient, or one file of each"
    ]


def _reading(patient: str) -> str:
    """Return what ids have in common that a spreadsheet, or a person typing, may take for the same."""
    text = re.sub(r"[\s_-]", "", normalize("NFKC", patient)).casefold()
    try:
        return str(float(text.replace(",", ".")))  # 00007 and 7, 12 and 12.0, 1.2E+12
    except ValueError:
        return text


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
