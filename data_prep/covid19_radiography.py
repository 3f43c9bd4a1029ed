"""The COVID-19 Radiography Database as it lies on Kaggle (Chowdhury et al. 2020, Rahman et al. 2021).

<CLASS>/images/<CLASS>-1.png   <CLASS>/masks/...   <CLASS>.metadata.xlsx        four classes, 299 x 299 PNG

The database states no patients: one image is taken as one patient, which cannot keep two images of one person apart.
"""

from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import pandas as pd

from data_prep import class_folders
from data_prep.cases import Case
from data_prep.files import Files
from fedlib.config import UserError

COUNTS = {"COVID": 3616, "Lung_Opacity": 6012, "Normal": 10192, "Viral Pneumonia": 1345}
"""Images of each class as published (21,165 in all)."""
SHARED_HOSTS = {"github.com", "kaggle.com"}
"""Hosts of many collections: there the first part of the path belongs to the name."""


def find_cases(files: Files, subset: bool = False) -> list[Case]:
    """List the images of the four classes, every image a patient of its own, with the site it came from as `source`.

    `source` is taken from the URL in <CLASS>.metadata.xlsx and empty where that names none. Raises UserError when a class
    is missing, when the counts are not the published ones unless `subset`, and when a metadata table cannot be read.
    """
    cases = [case for case in class_folders.find_cases(files) if case.label in COUNTS]
    counts = Counter(case.label for case in cases)
    wrong = [name for name, published in COUNTS.items() if (not counts[name] if subset else counts[name] != published)]
    if wrong:
        listed = ", ".join(f"{name} {counts[name]} (published: {COUNTS[name]})" for name in wrong)
        hint = "expected at least one image of each class" if subset else "--subset accepts other counts, but not 0"
        raise UserError(f"--input {files.source}: images found in <class>/images: {listed}; {hint}")
    sources = {label: _sources(files, f"{label}.metadata.xlsx") for label in COUNTS}
    names = (PurePosixPath(case.image).stem.lower() for case in cases)
    return [
        replace(case, columns={"source": sources[case.label].get(name, "")}) for case, name in zip(cases, names, strict=True)
    ]


def _sources(files: Files, name: str) -> dict[str, str]:
    """Return the site of each image by its name in lower case: the tables spell `NORMAL-1` what is `Normal-1.png`."""
    if name not in files.stamps:
        return {}
    content = files.read(name)
    try:
        table = pd.read_excel(BytesIO(content), dtype=str, keep_default_na=False)
    except Exception as error:  # a zip of XML read by openpyxl: many kinds
        raise UserError(f"{files.where(name)}: unreadable ({' '.join(str(error).split())}); expected a whole xlsx") from None
    if missing := {"FILE NAME", "URL"} - set(table.columns):
        raise UserError(f"{files.where(name)}: no column {', '.join(sorted(missing))}; expected FILE NAME and URL")
    return {file.strip().lower(): _site(url) for file, url in zip(table["FILE NAME"], table["URL"], strict=True)}


def _site(url: str) -> str:
    """Return `kaggle.com/someone` for `https://www.kaggle.com/someone/set`, `sirm.org` for `https://sirm.org/covid-19/`."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:  # no URL
        return ""
    host = (parts.hostname or "").removeprefix("www.")
    owner = parts.path.strip("/").split("/")[0]
    return f"{host}/{owner}" if host in SHARED_HOSTS and owner else host
