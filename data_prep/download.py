"""Fetch the raw images of a source from where its owners publish them: python -m data_prep download SOURCE --to DIR."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from fedlib.config import UserError

TIMEOUT = 60
"""Seconds without a byte before a connection counts as broken."""
CHUNK = 2**16
"""Bytes written at a time: so many at most are lost when a connection breaks."""


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
        "download Totalsegmentator_dataset.zip; do not unpack it; then: python -m data_prep totalsegmentator "
        "--input Totalsegmentator_dataset.zip --out DIR",
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
    """Fetch a source into the folder `to`, resuming what an earlier call left; return the folder or zip to prepare.

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
        headers = pooch.downloaders.REQUESTS_HEADERS
        repository = pooch.downloaders.doi_to_repository(about.doi, headers=headers, timeout=TIMEOUT)
        record = pooch.create(to, base_url=f"doi:{about.doi}")
        repository.populate_registry(record)
        url, checksum = repository.download_url(about.file), record.registry[about.file]
    except (requests.RequestException, ValueError, LookupError, TypeError) as error:
        raise UserError(f"doi {about.doi}: no record of the file ({_reason(error)}); by hand: {about.by_hand}") from None
    whole, part = to / about.file, to / f"{about.file}.part"
    # Not Pooch.fetch: it deletes what it has when it is interrupted.
    if not (whole.exists() and pooch.hashes.hash_matches(str(whole), checksum)):
        try:
            fetch(url, part)
        except requests.RequestException as error:
            raise UserError(f"{url}: {_reason(error)}; the same command resumes; by hand: {about.by_hand}") from None
        print(f"checking {part}", flush=True)
        if not pooch.hashes.hash_matches(str(part), checksum):
            part.unlink()
            raise UserError(f"{part}: expected the record's checksum {checksum}; removed, the same command starts anew")
        part.replace(whole)
    return whole


def fetch(url: str, part: Path) -> None:
    """Bring the file `part` to the whole of `url`, from the bytes that it has; whatever stops this leaves them.

    Raises what requests raises, and UserError when the disk has less room than the server announces.
    """
    import requests

    have = part.stat().st_size if part.exists() else 0
    # Zenodo says Accept-Ranges: none and serves ranges all the same, so that header is not asked.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if have and response.status_code == 416:  # whole already, or longer than that: the check tells
            return
        response.raise_for_status()
        more = int(response.headers.get("Content-Length", 0))
        have = have if response.status_code == 206 else 0  # else the whole file is sent, asked for or not
        if more > (free := shutil.disk_usage(part.parent).free):
            raise UserError(f"--to {part.parent}: {more / 1e9:.1f} GB are still to come, {free / 1e9:.1f} GB are free")
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(total=have + more, initial=have, desc=part.stem, unit="B", unit_scale=True, file=sys.stdout) as bar,
        ):
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
