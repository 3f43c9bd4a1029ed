"""Fetch the raw images of a source from where its owners publish them: python -m data_prep download SOURCE --to DIR."""

import os
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fedlib.config import UserError


@dataclass(frozen=True)
class Source:
    """Where the images are, and what to know before a download starts."""

    licence: str
    size: str
    cite: str
    by_hand: str
    """The steps in a browser, which every refusal names."""
    kaggle: str = ""
    """Handle of the data set, if Kaggle has it."""
    doi: str = ""
    """DOI of the Zenodo record (of one version, so that its files never change), and the file in it."""
    file: str = ""


SOURCES = {
    "covid19-radiography": Source(
        licence="its owners state it on the Kaggle page; read it there first",
        size="21,165 images, with as many lung masks; twice the zip is needed, as Kaggle's client unpacks it",
        cite="Chowdhury et al., IEEE Access 8:132665 (2020); Rahman et al., Comput. Biol. Med. 132:104319 (2021)",
        by_hand="open https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database, log in, accept the "
        "terms, press Download; do not unpack it; then: "
        "python -m data_prep covid19-radiography --input archive.zip --out DIR",
        kaggle="tawsifurrahman/covid19-radiography-database",
    ),
    "totalsegmentator": Source(
        licence="CC BY 4.0",
        size="1,204 CT examinations, about 30 GB in one zip that is read as it is",
        cite="Wasserthal et al., Radiology: Artificial Intelligence 5(5) (2023), doi 10.1148/ryai.230024",
        by_hand="open https://zenodo.org/records/6802614 (version 1: later ones have no masks of LV and myocardium), "
        "download Totalsegmentator_dataset.zip (curl -C - URL resumes); do not unpack it; then: python -m data_prep "
        "totalsegmentator --input Totalsegmentator_dataset.zip --out DIR",
        doi="10.5281/zenodo.6802614",
        file="Totalsegmentator_dataset.zip",
    ),
    "mmwhs": Source(
        licence="by agreement with the organisers; not to be passed on",
        size="MM-WHS 2017: 20 labelled CT and 20 labelled MRI volumes; CARE 2024 WHS++: more, from six centres",
        cite="Zhuang et al., Medical Image Analysis 58:101537 (2019)",
        by_hand="open https://zmiclab.github.io/zxh/0/mmwhs/ (MM-WHS) or https://www.zmic.org.cn/care_2024/track5/ "
        "(WHS++), register, sign the agreement and send it in; put the pairs *_image.nii.gz and *_label.nii.gz into one "
        "folder; then: python -m data_prep mmwhs --input FOLDER --out DIR",
    ),
    "msd": Source(
        licence="that of your own data (the Decathlon's is CC BY-SA 4.0)",
        size="nothing to download",
        cite="Antonelli et al., Nature Communications 13:4128 (2022), for the layout",
        by_hand="the heart task of the Medical Segmentation Decathlon is the left atrium in MRI, without LV or myocardium; "
        "the layout (imagesTr, labelsTr, dataset.json, as nnU-Net reads it) is for your own data: "
        "python -m data_prep msd --input FOLDER --out DIR",
    ),
}


def download(source: str, to: Path) -> Path:
    """Fetch a source into the folder `to`; return the folder or zip to prepare. What is there whole is not fetched again.

    Licence, size and what to cite are printed first. Raises UserError, in one line with the steps by hand, when the source
    cannot be fetched by program, when the library for it is missing, and when network, server, disk or checksum fail.
    """
    if source not in SOURCES:
        raise UserError(f"download {source}: expected one of {', '.join(SOURCES)}")
    about = SOURCES[source]
    print(f"{source}\n  licence: {about.licence}\n  size: {about.size}\n  cite: {about.cite}", flush=True)
    if not (about.kaggle or about.doi):
        raise UserError(f"download {source}: cannot be done by program: {about.by_hand}")
    try:
        to.mkdir(parents=True, exist_ok=True)
        with FileLock(to / ".download.lock", timeout=0):
            return _from_kaggle(about, to) if about.kaggle else _from_zenodo(about, to)
    except Timeout:
        raise UserError(f"--to {to}: another download into it is running; expected one at a time") from None
    except ImportError as error:
        install = "pip install -c constraints.txt -e '.[download]'"
        raise UserError(f"{error.name} is not installed; expected: {install}") from None
    except OSError as error:
        raise UserError(f"--to {to}: {error.strerror or error}; expected a folder with room") from None


def _from_kaggle(about: Source, to: Path) -> Path:
    import kagglehub

    # Not output_dir: kagglehub refuses a folder that holds its own broken download. Below its cache folder it resumes.
    before = os.environ.get("KAGGLEHUB_CACHE")
    os.environ["KAGGLEHUB_CACHE"] = str(to.absolute())
    try:
        return Path(kagglehub.dataset_download(about.kaggle))
    except Exception as error:  # its errors, those of requests, of zipfile and of the system have no base in common
        anew = f"the same command resumes (to start anew, delete {to / 'datasets'})"
        raise UserError(f"{about.kaggle}: {_reason(error)}; {anew}; or by hand: {about.by_hand}") from None
    finally:
        os.environ.pop("KAGGLEHUB_CACHE")
        if before is not None:
            os.environ["KAGGLEHUB_CACHE"] = before


def _from_zenodo(about: Source, to: Path) -> Path:
    import pooch
    import requests

    try:
        record = pooch.create(to, base_url=f"doi:{about.doi}")
        record.load_registry_from_doi()
        return Path(record.fetch(about.file, progressbar=True))
    except (requests.RequestException, ValueError, LookupError, TypeError) as error:
        raise UserError(f"doi {about.doi}: {_reason(error)}; by hand: {about.by_hand}") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
