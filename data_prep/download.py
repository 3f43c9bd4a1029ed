"""Fetch the raw images of a source from where its owners publish them: python -m data_prep download SOURCE --to DIR."""

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

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
    """Fetch a source into the folder `to`, going on where an earlier call stopped; return the folder or zip to prepare.

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
        raise UserError(f"--to {to}: another download into it is under way; expected one at a time") from None
    except OSError as error:
        raise UserError(f"--to {to}: {error.strerror or error}; expected a folder that can be written, with room") from None


def _library(name: str) -> ModuleType:
    """A library of the extra `download`, which nothing else needs."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{name} is not installed; expected: pip install -c constraints.txt -e '.[download]'") from None


def _from_kaggle(about: Source, to: Path) -> Path:
    kagglehub = _library("kagglehub")
    try:
        # Not output_dir: kagglehub refuses a folder that holds its own broken download, and with force_download it throws
        # the part away. Below its cache folder it goes on from the part.
        with _environment("KAGGLEHUB_CACHE", str(to.absolute())):
            return Path(kagglehub.dataset_download(about.kaggle))
    except Exception as error:  # its errors, those of requests, of zipfile and of the system have no base in common
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{about.kaggle}: {reason}; the same command goes on from here (to start anew, delete {to / 'datasets'}); "
            f"or by hand: {about.by_hand}"
        ) from None


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _from_zenodo(about: Source, to: Path) -> Path:
    pooch, requests = _library("pooch"), _library("requests")
    try:
        repository = pooch.downloaders.doi_to_repository(
            about.doi, headers=pooch.downloaders.REQUESTS_HEADERS, timeout=TIMEOUT
        )
        record = pooch.create(to, base_url=f"doi:{about.doi}")
        repository.populate_registry(record)
        url, checksum = repository.download_url(about.file), record.registry[about.file]
    except (requests.RequestException, ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"doi {about.doi}: no record of the file ({reason}); by hand: {about.by_hand}") from None
    whole, part = to / about.file, to / f"{about.file}.part"
    # Not Pooch.fetch: it deletes what it has when it is interrupted, in the download as in the check.
    if not (whole.exists() and _matches(whole, checksum)):
        fetch(url, part)
        if not _matches(part, checksum):
            part.unlink()
            raise UserError(f"{part}: expected the record's checksum {checksum}; removed, the same command starts anew")
        part.replace(whole)
    return whole


def _matches(path: Path, checksum: str) -> bool:
    print(f"checking {path}", flush=True)
    return _library("pooch").hashes.hash_matches(str(path), checksum)


def fetch(url: str, part: Path) -> None:
    """Bring the file `part` to the whole of `url`, going on from the bytes that it has; whatever stops this leaves them.

    A broken connection is taken up again as long as each try brings more. Raises UserError when it does not, when the
    server refuses, and when the disk has less room than the server announces.
    """
    requests = _library("requests")
    while True:
        before = _size(part)
        try:
            return _attempt(requests, url, part)
        except requests.HTTPError as error:
            raise UserError(f"{url}: the server answers {error.response.status_code}; the same command goes on") from None
        except requests.RequestException as error:
            if _size(part) <= before:
                reason = f"{type(error).__name__} after {_size(part)} bytes"
                raise UserError(f"{url}: {reason}; the same command goes on from there") from None


def _attempt(requests: ModuleType, url: str, part: Path) -> None:
    have = _size(part)
    # Zenodo says Accept-Ranges: none and serves ranges all the same, so that header is not asked.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        span = response.headers.get("Content-Range", "")
        if have and response.status_code == 416 and span == f"bytes */{have}":
            return  # whole already: only the check was missing
        if have and (response.status_code == 416 or (response.status_code == 206 and not span.startswith(f"bytes {have}-"))):
            part.unlink()
            return _attempt(requests, url, part)
        response.raise_for_status()
        if response.status_code != 206:  # the whole file, asked for or not
            have = 0
            part.unlink(missing_ok=True)
        more = int(response.headers.get("Content-Length", 0))
        _check_room(part.parent, more)
        total = have + more or None
        with (
            part.open("ab") as file,
            tqdm(total=total, initial=have, desc=part.stem, unit="B", unit_scale=True, file=sys.stdout) as bar,
        ):
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"--to {folder}: {needed / 1e9:.1f} GB are still to come, {free / 1e9:.1f} GB are free on this disk")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
