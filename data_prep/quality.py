"""What to know of a prepared set before trusting a number: counts, volumes, rejections, shortcuts, and what looks odd."""

import re
from unicodedata import normalize

import numpy as np
import pandas as pd

from fedlib.data.dataset import SPLITS, PreparedDataset

OWN_COLUMNS = {"case", "patient", "split", "label", "dup_group", "file"}
"""Columns of cases.csv that name a case; every other one could give its class away."""
BINS = 10
"""A numeric column with more values than this is cut at the deciles of the training cases."""
NOBODY = re.compile(
    r"(anonym\w*|anon|deidentified|unknown|unbekannt|none|null|nan|n/?a|missing|test|[-?.*x0_]+)", re.IGNORECASE
)
"""Ids that stand for no person in particular."""
MANY = 10
"""Cases of one patient, if they are a tenth of the set too, that ask whether it is one (*chosen*)."""
PERSON = re.compile(r"^((?:person|patient|pat|subject|subj|sub|proband)[-_ ]?\d+|[^-_ ]*\d[^-_ ]*)[-_ ]", re.IGNORECASE)
"""The start of a file's name, if it may name a person: `person12_`, `patient001_`, `00000013_`."""


def counts(data: PreparedDataset) -> pd.DataFrame:
    """Cases of each class (rows) in each split (columns), with totals and the number of patients."""
    label = data.cases["label"].replace("", "volumes").rename("class")
    table = pd.crosstab(label, data.cases["split"]).reindex(columns=list(SPLITS), fill_value=0)
    return table.assign(total=table.sum(axis=1), patients=data.cases.groupby(label)["patient"].nunique())


def listed(data: PreparedDataset, table: str) -> pd.DataFrame:
    """The table `qc` (rejected files with reasons) or `duplicates` (suspected pairs) of a prepared set."""
    return pd.read_csv(data.folder / f"{table}.csv", keep_default_na=False)


def volumes_kept(data: PreparedDataset) -> pd.DataFrame:
    """Per structure: median volume in ml as labelled and as prepared, and the share kept, with the worst case by name."""
    rows = {}
    for structure in data.classes[1:]:
        before, after = data.cases[f"{structure}_ml"], data.cases[f"{structure}_ml_prepared"]
        kept = after / before
        rows[structure] = {
            "ml as labelled": before.median(),
            "ml as prepared": after.median(),
            "kept (median)": kept.median(),
            "kept (worst)": kept.min(),
            "worst case": data.cases["case"][kept.idxmin()],
        }
    return pd.DataFrame(rows).T


def acquisition(data: PreparedDataset, most: int = 5) -> pd.DataFrame:
    """The commonest sizes of the raw images, in pixels or voxels, and (volumes) the sizes of their voxels in mm."""
    known = [column for column in ("shape", "spacing_mm") if column in data.cases]
    counted = {column: data.cases[column].value_counts().head(most) for column in known}
    return pd.concat(counted, names=["raw", "value"]).rename("cases").to_frame()


def shortcuts(data: PreparedDataset) -> pd.DataFrame:
    """How far one gets without looking for a disease: the class guessed from a single column of cases.csv, best first.

    For each value of the column the commonest class among the training cases is said; the table gives the share of test
    cases that this gets right, next to that of always saying the commonest class. `mean grey` is the image's brightness.
    A score far above that means that a model can cheat by what the column stands for: another hospital, another age.
    """
    cases = data.cases.assign(**{"mean grey": [float(image.mean()) for image in data.images]})
    train, test = (cases[cases["split"] == split] for split in ("train", "test"))
    commonest = train["label"].mode()[0]
    always = (test["label"] == commonest).mean()
    rows = []
    for column in cases.columns.difference(OWN_COLUMNS, sort=False):
        known, asked = _values(train[column], test[column])
        if 1 < known.nunique() <= len(known) / 2:  # else it says nothing, or is a name
            says = train["label"].groupby(known).agg(lambda labels: labels.mode()[0])
            right = (asked.map(says).fillna(commonest) == test["label"]).mean()
            rows.append({"column": column, "values": known.nunique(), "right": right, "always the commonest": always})
    table = pd.DataFrame(rows, columns=["column", "values", "right", "always the commonest"])
    return table.sort_values("right", ascending=False, ignore_index=True)


def _values(known: pd.Series, asked: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Both as text; numbers with many values as the decile of `known` they fall into."""
    numbers = [pd.to_numeric(column.replace("", None), errors="coerce").astype(float) for column in (known, asked)]
    if known.nunique() > BINS and numbers[0].notna().sum() == known.replace("", None).notna().sum():
        edges = np.unique(numbers[0].quantile(np.linspace(0, 1, BINS + 1)[1:-1]))
        known, asked = (pd.Series(np.searchsorted(edges, column), column.index) for column in numbers)
    return known.astype(str), asked.astype(str)


def warnings(cases: pd.DataFrame, notes: dict[str, str]) -> list[str]:
    """Return one line for each thing that looks odd in a table of cases (columns case, patient) and its loader's notes."""
    noted = pd.Series(list(notes), list(notes.values()), dtype=object).groupby(level=0, sort=False)
    found = [f"{_some(list(files))}: {note}" for note, files in noted]
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
    names = cases["case"][cases["patient"] == cases["case"]].str.rsplit("/", n=1).str[-1]
    starts = names.str.extract(PERSON)[0].value_counts()
    several = sorted(starts.index[starts > 1])
    if several and len(starts) >= 3:
        found.append(
            f"files of {_some(several)}: their names seem to tell the person, yet each file counts as a patient; expected a "
            "table or folders that state the patient, or one file of each"
        )
    return found


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
