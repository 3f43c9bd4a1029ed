"""Downloads, held by a server on this machine: the real pooch, kagglehub and requests, with other addresses."""

import hashlib
import inspect
import io
import json
import random
import re
import sys
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import kagglehub
import pooch
import pytest
import requests
from filelock import FileLock

from data_prep import download as door
from data_prep.download import SOURCES, download
from data_prep.files import opened
from fedlib.config import UserError

BODY = random.Random(0).randbytes(300_000)
ARCHIVE = "Totalsegmentator_dataset.zip"
RECORD = "/api/records/6802614"


class Handler(BaseHTTPRequestHandler):
    """Serves `server.body` at every path but the record's, as `server.behave` says, and keeps what was asked."""

    def do_GET(self):  # noqa: N802
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        status = self.server.status
        if self.path == RECORD:
            return self.answer(200, json.dumps(self.server.record).encode(), {})
        if status:
            return self.answer(status, b"<html>no</html>", {})
        body = self.server.body
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.ranges else 0
        if start >= len(body):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        span = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        self.answer(206 if start else 200, body[start:], span)

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts and self.path != RECORD else None
        self.wfile.write(body[:cut])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server whose record says what it serves; pooch resolves the DOI to it."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_port}/file"
    server.body, server.asked, server.cuts, server.status, server.ranges = BODY, [], [], None, True
    described = {"key": ARCHIVE, "checksum": f"md5:{hashlib.md5(BODY).hexdigest()}", "links": {"self": server.url}}
    server.record = {"id": 6802614, "files": [described]}
    repository = pooch.downloaders.ZenodoRepository
    monkeypatch.setattr(repository, "base_api_url", server.url.replace("/file", "/api/records"))
    monkeypatch.setattr(pooch.downloaders, "doi_to_url", lambda doi, **_: f"https://zenodo.org/records/{doi.split('.')[-1]}")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ranges_asked(server):
    return [asked for path, asked in server.asked if path != RECORD]


def interrupted(*_):
    raise KeyboardInterrupt


def one_line(refusal):
    message = str(refusal.value)
    assert "\n" not in message
    return message


# Zenodo


def test_the_whole_file_arrives_and_is_the_one_of_the_record(server, tmp_path, capsys):
    zipped = download("totalsegmentator", tmp_path / "new" / "folder")
    assert zipped == tmp_path / "new" / "folder" / ARCHIVE
    assert zipped.read_bytes() == BODY
    assert not list(zipped.parent.glob("*.part"))
    said = capsys.readouterr().out
    assert "CC BY 4.0" in said
    assert "Wasserthal" in said


def test_a_finished_file_is_checked_and_not_fetched_again(server, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(BODY)
    assert download("totalsegmentator", tmp_path).read_bytes() == BODY
    assert not ranges_asked(server)


def test_a_damaged_finished_file_is_fetched_again(server, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(BODY[:-1])
    assert download("totalsegmentator", tmp_path).read_bytes() == BODY


def test_another_checksum_is_refused_and_nothing_left(server, tmp_path):
    server.body = BODY[::-1]
    with pytest.raises(UserError, match=r"hash .* does not match .* by hand: ") as refusal:
        download("totalsegmentator", tmp_path)
    one_line(refusal)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize("status", [403, 404, 429, 503])
def test_a_refusal_of_the_server_is_one_line(server, tmp_path, status):
    server.status = status
    with pytest.raises(UserError, match=f"{status} .*by hand: ") as refusal:
        download("totalsegmentator", tmp_path)
    one_line(refusal)
    assert not (tmp_path / ARCHIVE).exists()


def test_a_broken_connection_is_one_line_and_leaves_nothing(server, tmp_path):
    server.cuts = [100_000]
    with pytest.raises(UserError, match="by hand: ") as refusal:
        download("totalsegmentator", tmp_path)
    one_line(refusal)
    assert not (tmp_path / ARCHIVE).exists()


@pytest.mark.parametrize("record", [{}, {"status": 404, "message": "no"}, {"id": 1, "files": []}, [], None, {"files": [{}]}])
def test_a_record_without_the_file_names_the_steps_by_hand(server, tmp_path, record):
    server.record = record
    with pytest.raises(UserError, match=r"by hand: open https://zenodo.org") as refusal:
        download("totalsegmentator", tmp_path)
    one_line(refusal)


def test_no_network_names_the_steps_by_hand(server, tmp_path, monkeypatch):
    def offline(doi, **_):
        raise requests.ConnectionError("Failed to resolve 'doi.org'\n(no network)")

    monkeypatch.setattr(pooch.downloaders, "doi_to_url", offline)
    with pytest.raises(UserError, match="Failed to resolve .* by hand: ") as refusal:
        download("totalsegmentator", tmp_path)
    one_line(refusal)


def test_two_at_once_into_one_folder_are_refused(server, tmp_path):
    with FileLock(tmp_path / ".download.lock"), pytest.raises(UserError, match="another download"):
        download("totalsegmentator", tmp_path)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--to .*file: File exists; expected a folder"):
        download("totalsegmentator", tmp_path / "file")


# Kaggle: the real kagglehub, to which a stand-in hands the server's answers in place of Kaggle's API.


def zipped_images():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for kind in ("COVID", "Normal"):
            archive.writestr(f"COVID-19_Radiography_Dataset/{kind}/images/{kind}-1.png", random.Random(1).randbytes(50_000))
    return buffer.getvalue()


@pytest.fixture
def kaggle(server, monkeypatch):
    """The server as Kaggle's."""

    def answer(_):
        response = requests.get(server.url, stream=True, timeout=5)
        response.raise_for_status()
        return response

    calls = SimpleNamespace(get_dataset=lambda _: SimpleNamespace(current_version_number=5), download_dataset=answer)

    @contextmanager
    def client():
        yield SimpleNamespace(datasets=SimpleNamespace(dataset_api_client=calls))

    monkeypatch.setattr("kagglehub.http_resolver.build_kaggle_client", client)
    monkeypatch.delenv("KAGGLEHUB_CACHE", raising=False)
    monkeypatch.setattr("kagglehub.clients.CHUNK_SIZE", 10_000)
    server.body = zipped_images()
    return server


def test_what_kagglehub_unpacks_is_what_data_prep_reads(kaggle, tmp_path, capsys):
    with opened(download("covid19-radiography", tmp_path)) as files:
        assert list(files.stamps) == ["COVID/images/COVID-1.png", "Normal/images/Normal-1.png"]
    said = capsys.readouterr().out
    assert "licence:" in said
    assert "Chowdhury" in said
    assert door.os.environ.get("KAGGLEHUB_CACHE") is None


def test_kagglehub_resumes_from_its_part(kaggle, tmp_path):
    kaggle.cuts = [60_000]
    with pytest.raises(UserError, match="the same command resumes") as refusal:
        download("covid19-radiography", tmp_path)
    assert "by hand: open https://www.kaggle.com/datasets/" in one_line(refusal)
    with opened(download("covid19-radiography", tmp_path)) as files:
        assert len(files.read("COVID/images/COVID-1.png")) == 50_000
    assert ranges_asked(kaggle)[-1] == "bytes=60000-"


def test_a_finished_kaggle_download_asks_for_no_file(kaggle, tmp_path):
    first = download("covid19-radiography", tmp_path)
    asked = len(kaggle.asked)
    assert download("covid19-radiography", tmp_path) == first
    assert len(kaggle.asked) == asked


@pytest.mark.parametrize("status", [401, 403, 404])
def test_kaggles_refusal_is_one_line_with_the_steps_by_hand(kaggle, tmp_path, status):
    kaggle.status = status
    with pytest.raises(UserError) as refusal:
        download("covid19-radiography", tmp_path)
    message = one_line(refusal)
    assert str(status) in message
    assert "accept the terms" in message
    assert "python -m data_prep covid19-radiography --input" in message


def test_what_is_no_archive_is_one_line(kaggle, tmp_path):
    kaggle.body = b"<html>log in</html>"
    with pytest.raises(UserError, match="Unsupported archive type") as refusal:
        download("covid19-radiography", tmp_path)
    assert f"to start anew, delete {tmp_path / 'datasets'}" in one_line(refusal)


def test_kagglehub_is_called_as_it_is_declared():
    call = inspect.signature(kagglehub.dataset_download).bind(SOURCES["covid19-radiography"].kaggle)
    assert call.arguments["handle"] == "tawsifurrahman/covid19-radiography-database"


# Neither


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("mmwhs", "https://zmiclab.github.io/zxh/0/mmwhs/"),
        ("msd", "left atrium in MRI"),
        ("other", "expected one of covid19"),
    ],
)
def test_what_no_program_can_fetch_is_told_with_the_steps(tmp_path, capsys, source, expected):
    with pytest.raises(UserError, match=re.escape(expected)) as refusal:
        download(source, tmp_path / "out")
    one_line(refusal)
    assert not (tmp_path / "out").exists()
    assert ("licence:" in capsys.readouterr().out) == (source in SOURCES)


@pytest.mark.parametrize(("source", "library"), [("covid19-radiography", "kagglehub"), ("totalsegmentator", "pooch")])
def test_a_missing_extra_says_how_to_install_it(tmp_path, monkeypatch, source, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"{library} is not installed; .*pip install .* -e '\.\[download\]'") as refusal:
        download(source, tmp_path)
    one_line(refusal)
