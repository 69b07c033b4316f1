"""Downloads, against a server in this process: nothing here needs the outside network."""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
import requests
from pydantic import ValidationError

from helpers import downloads
from helpers.config import ROOT
from helpers.downloads import DownloadError, Patience, Source, data_root, fetch, fetch_all, locate

BYTES = bytes(range(256)) * 4096  # 1 MiB
HALF = len(BYTES) // 2
ONCE = Patience(retries=0, timeout_s=5.0)
EAGER = Patience(retries=3, backoff_s=0.0, timeout_s=5.0)


class Site(ThreadingHTTPServer):
    """A server of `files` by path. The `faults` of a path befall its next requests: a status to answer
    with, ``"stall"``, ``"drip"``, or, negative, the number of bytes after which the connection ends."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.files: dict[str, bytes] = {}
        self.types: dict[str, str] = {}
        self.faults: dict[str, list[int | str]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.sent = 0
        self.knows_ranges = self.tells_lengths = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up is what some tests are about

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Page(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        site, path = self.server, unquote(self.path)
        site.asked.append((self.requestline.split()[1], dict(self.headers)))
        fault = site.faults[path].pop(0) if site.faults.get(path) else 0
        if fault == "stall":
            time.sleep(1.5)
            return
        cut = fault if isinstance(fault, int) else 0
        if path not in site.files or cut > 0:
            return self.send_error(cut or 404)
        body, start = site.files[path], 0
        if site.knows_ranges and "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if site.tells_lengths:
            self.send_header("Content-Length", str(len(body) - start))
        self.send_header("Content-Type", site.types.get(path, "application/octet-stream"))
        if path not in site.types:
            self.send_header("Content-Disposition", 'attachment; filename="theirs.bin"')
        self.end_headers()
        body = body[start : start - cut] if cut else body[start:]
        site.sent += len(body)
        step = 2**16 if fault == "drip" else 2**20
        for i in range(0, len(body), step):
            self.wfile.write(body[i : i + step])
            if fault == "drip":
                time.sleep(0.25)

    def log_message(self, format: str, *args: object) -> None:
        pass  # the tests look at `asked`


@pytest.fixture
def site():
    with Site() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        server.files["/file.bin"] = BYTES
        yield server
        server.shutdown()


@pytest.fixture
def google(site, monkeypatch):
    """`site` answers for Google's hosts."""
    send = requests.adapters.HTTPAdapter.send

    def send_here(self, request, **options):
        if "google" in request.url.split("/")[2]:
            request.url = site.url + "/" + request.url.split("/", 3)[3]
        return send(self, request, **options)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send_here)
    monkeypatch.delenv("SIGHTLINE_BUCKET_ENDPOINT", raising=False)
    return site


@pytest.fixture
def naps(monkeypatch) -> list[float]:
    """The seconds that would have been slept between attempts."""
    slept: list[float] = []
    monkeypatch.setattr(downloads, "time", types.SimpleNamespace(sleep=slept.append))
    return slept


def pinned(url: str, body: bytes = BYTES, *, size: bool = True) -> Source:
    return Source(url=url, sha256=hashlib.sha256(body).hexdigest(), bytes=len(body) if size else None)


def get(source: Source, target: Path, patience: Patience = ONCE) -> Path:
    return fetch(source, target, patience=patience, progress=False, hint="PRESET='quick' needs none")


def fake_gdown(monkeypatch, download) -> list[dict]:
    """Puts ``download`` in gdown's place. Returns the list of the options that it will be called with."""
    asked = []

    @functools.wraps(download)  # also its signature
    def recorded(**options):
        asked.append(options.copy())
        return download(**options)

    errors = types.SimpleNamespace(FileURLRetrievalError=ZeroDivisionError)
    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=recorded, exceptions=errors))
    return asked


def ranges(site: Site) -> list[str | None]:
    return [headers.get("Range") for _, headers in site.asked]


# -------------------------------------------------------------------------- the file in its place


def test_a_file_gets_its_name_and_nothing_else_stays(site, tmp_path):
    target = get(pinned(site.url + "/file.bin"), tmp_path / "new" / "folder" / "mine.bin")
    assert target.read_bytes() == BYTES
    assert [path.name for path in target.parent.iterdir()] == ["mine.bin"]


def test_a_verified_file_is_not_fetched_again(site, tmp_path):
    (tmp_path / "mine.bin").write_bytes(BYTES)
    get(pinned(site.url + "/file.bin"), tmp_path / "mine.bin")
    assert site.asked == []


def test_of_two_at_once_one_fetches_and_the_other_waits(site, tmp_path):
    site.faults["/file.bin"] = ["drip"]  # takes four seconds
    source, target = pinned(site.url + "/file.bin"), tmp_path / "mine.bin"
    with ThreadPoolExecutor(2) as pool:  # a lock each, as of two processes
        assert list(pool.map(lambda _: get(source, target), range(2))) == [target, target]
    assert len(site.asked) == 1 and target.read_bytes() == BYTES
    assert [path.name for path in tmp_path.iterdir()] == ["mine.bin"]


@pytest.mark.parametrize("wrong", [b"x" * len(BYTES), BYTES[:-1], b""])
def test_a_wrong_file_is_refused_by_name_and_left_alone(site, tmp_path, wrong):
    (tmp_path / "mine.bin").write_bytes(wrong)
    with pytest.raises(DownloadError, match=r"mine.bin is not the file it should be(.|\n)*delete or move it"):
        get(pinned(site.url + "/file.bin"), tmp_path / "mine.bin")
    assert (tmp_path / "mine.bin").read_bytes() == wrong
    assert site.asked == []


def test_md5_serves_where_no_sha256_is_published(site, tmp_path):
    right = Source(url=site.url + "/file.bin", md5=hashlib.md5(BYTES).hexdigest())
    assert get(right, tmp_path / "mine.bin").read_bytes() == BYTES
    with pytest.raises(DownloadError, match="its md5 is"):
        get(Source(url=site.url + "/file.bin", md5="0" * 32), tmp_path / "other.bin")


@pytest.mark.parametrize("fields", [
    {"url": "ftp://host/file", "md5": "0" * 32},
    {"url": "https://host", "md5": "0" * 32},
    {"url": "hf://owner/name/file", "md5": "0" * 32},  # no revision
    {"url": "gs://bucket", "md5": "0" * 32},
    {"url": "gdrive:", "md5": "0" * 32},
    {"url": "https://host/file"},  # no checksum
    {"url": "https://host/file", "sha256": "0" * 63},
    {"url": "https://host/file", "md5": "0" * 32, "bytes": 0},
    {"url": "https://host/file", "md5": "0" * 32, "sha": "misspelt"},
])  # fmt: skip
def test_a_source_that_cannot_be_fetched_or_verified_is_refused(fields):
    with pytest.raises(ValidationError):
        Source(**fields)


# ------------------------------------------------------------------ transfers that do not go well


def test_a_partial_file_is_resumed_where_it_ends(site, tmp_path):
    (tmp_path / "mine.bin.part").write_bytes(BYTES[:HALF])
    assert get(pinned(site.url + "/file.bin"), tmp_path / "mine.bin").read_bytes() == BYTES
    [(_, headers)] = site.asked
    assert headers["Range"] == f"bytes={HALF}-"
    assert headers["Accept-Encoding"] == "identity"  # a range of compressed bytes would be of no use
    assert site.sent == HALF


def test_a_server_without_ranges_sends_the_whole_and_the_file_is_right(site, tmp_path):
    site.knows_ranges = False
    (tmp_path / "mine.bin.part").write_bytes(BYTES[:HALF])
    assert get(pinned(site.url + "/file.bin"), tmp_path / "mine.bin").read_bytes() == BYTES
    assert len(site.asked) == 1


@pytest.mark.parametrize("size", [True, False])
def test_a_complete_partial_file_is_not_transferred_again(site, tmp_path, size):
    (tmp_path / "mine.bin.part").write_bytes(BYTES)
    assert get(pinned(site.url + "/file.bin", size=size), tmp_path / "mine.bin").read_bytes() == BYTES
    assert site.sent == 0
    assert len(site.asked) == (0 if size else 1)


@pytest.mark.parametrize("stale", [b"x" * HALF, b"x" * len(BYTES), b"x" * 2 * len(BYTES)])
def test_a_partial_file_of_other_bytes_is_begun_anew(site, tmp_path, stale):
    (tmp_path / "mine.bin.part").write_bytes(stale)
    assert get(pinned(site.url + "/file.bin"), tmp_path / "mine.bin", EAGER).read_bytes() == BYTES


@pytest.mark.parametrize("tells_lengths", [True, False])
def test_an_interrupted_transfer_is_kept_and_the_next_call_finishes_it(site, tmp_path, tells_lengths):
    site.tells_lengths = tells_lengths
    site.faults["/file.bin"] = [-HALF]
    with pytest.raises(DownloadError, match=r"kept: mine\.bin\.part; running again goes on from it"):
        get(pinned(site.url + "/file.bin"), tmp_path / "mine.bin")
    assert (tmp_path / "mine.bin.part").read_bytes() == BYTES[:HALF]
    assert not (tmp_path / "mine.bin").exists()

    assert get(pinned(site.url + "/file.bin"), tmp_path / "mine.bin").read_bytes() == BYTES
    assert ranges(site) == [None, f"bytes={HALF}-"]


def test_transient_failures_are_retried_with_growing_pauses(site, tmp_path, naps):
    site.faults["/file.bin"] = [503, -HALF, 429]
    patience = Patience(retries=3, backoff_s=0.5)
    assert get(pinned(site.url + "/file.bin"), tmp_path / "mine.bin", patience).read_bytes() == BYTES
    assert naps == [0.5, 1.0, 2.0]
    assert ranges(site) == [None, None, f"bytes={HALF}-", f"bytes={HALF}-"]


def test_retries_end(site, tmp_path):
    site.faults["/file.bin"] = [503] * 9
    with pytest.raises(DownloadError, match="HTTP 503"):
        get(pinned(site.url + "/file.bin"), tmp_path / "mine.bin", EAGER)
    assert len(site.asked) == 1 + EAGER.retries


def test_a_silent_server_is_given_up_after_the_timeout(site, tmp_path):
    site.faults["/file.bin"] = ["stall"]
    began = time.monotonic()
    with pytest.raises(DownloadError, match="timed out"):
        get(pinned(site.url + "/file.bin"), tmp_path / "mine.bin", Patience(retries=0, timeout_s=0.2))
    assert time.monotonic() - began < 1.3


def test_a_missing_file_is_not_asked_for_twice_and_the_error_says_what_to_do(site, tmp_path):
    source = pinned(site.url + "/gone.bin")
    with pytest.raises(DownloadError) as caught:
        get(source, tmp_path / "mine.bin", EAGER)
    assert len(site.asked) == 1
    place = tmp_path / "mine.bin"
    for part in (f"tried: {source.url}: HTTP 404", f"by hand: put the file with sha256 {source.sha256}",
                 f"at {place}", "without a download: PRESET='quick' needs none"):  # fmt: skip
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_named_plainly(tmp_path, naps):
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as closed:
        url = f"http://127.0.0.1:{closed.server_port}/file.bin"
    with pytest.raises(DownloadError, match=f"tried: {url}: .*Connection refused"):
        get(pinned(url), tmp_path / "mine.bin", EAGER)
    assert len(naps) == EAGER.retries


@pytest.mark.parametrize(("body", "tells_lengths", "fault"), [
    (b"x" * len(BYTES), True, "its sha256 is"),
    (BYTES + b"x", True, "it announces 1,048,577 bytes, not 1,048,576"),
    (BYTES + b"x", False, "it has 1,048,577 bytes, not 1,048,576"),
    (BYTES[:-1], True, "it announces 1,048,575 bytes, not 1,048,576"),
])  # fmt: skip
def test_other_bytes_than_the_pinned_are_refused_and_not_kept(site, tmp_path, body, tells_lengths, fault):
    site.files["/file.bin"], site.tells_lengths = body, tells_lengths
    with pytest.raises(DownloadError, match=fault):
        get(pinned(site.url + "/file.bin"), tmp_path / "mine.bin", EAGER)
    assert len(site.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_clear_error(site, tmp_path):
    (tmp_path / "taken").write_bytes(b"a file, where the folder should be")
    with pytest.raises(DownloadError, match="mine.bin cannot be read or written"):
        get(pinned(site.url + "/file.bin"), tmp_path / "taken" / "mine.bin")


def test_no_secret_is_shown(site, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretverysecret")
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    sources = [
        pinned(site.url.replace("//", "//reader:verysecret@") + "/file?signature=verysecret"),
        pinned("hf://owner/name@main/hf_verysecretverysecret?x"),
        pinned("http://127.0.0.1:1/file?signature=verysecret"),
    ]
    site.faults["/file?signature=verysecret"] = [503]
    with caplog.at_level(logging.DEBUG, logger="helpers"):
        for source in sources:
            with pytest.raises(DownloadError) as caught:
                get(source, tmp_path / "mine.bin", Patience(retries=1, backoff_s=0.0))
            assert "verysecret" not in str(caught.value)
    assert "attempt 2 of 2" in caplog.text
    assert "verysecret" not in caplog.text


@pytest.fixture
def bars(monkeypatch) -> list[downloads.tqdm]:
    """The progress bars that are drawn."""
    drawn = []

    class Bar(downloads.tqdm):
        def __init__(self, **options):
            super().__init__(**options, file=io.StringIO())
            drawn.append(self)

    monkeypatch.setattr(downloads, "tqdm", Bar)
    return drawn


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_the_progress_bar_ends_at_the_size_after_any_detour(site, tmp_path, bars, knows_ranges):
    site.knows_ranges = knows_ranges
    site.faults["/file.bin"] = [-HALF, -HALF // 2]
    fetch(pinned(site.url + "/file.bin"), tmp_path / "mine.bin", patience=EAGER)
    assert [(bar.n, bar.total, bar.unit) for bar in bars] == [(len(BYTES), len(BYTES), "B")]


def test_one_progress_bar_counts_what_was_there_before_and_what_came(site, tmp_path, bars):
    (tmp_path / "there.bin").write_bytes(BYTES)
    (tmp_path / "nearly.bin.part").write_bytes(BYTES)
    names = ("there.bin", "nearly.bin", "missing.bin")
    fetch_all(dict.fromkeys(names, pinned(site.url + "/file.bin")), tmp_path)
    assert [(bar.n, bar.total) for bar in bars] == [(3 * len(BYTES), 3 * len(BYTES))]


# ------------------------------------------------------------------------------------- many files


def many(site: Site, count: int = 12) -> dict[str, Source]:
    bodies = {f"part {i % 2}/{i}.bin": bytes([i]) * 1000 for i in range(count)}
    site.files.update({f"/{name}": body for name, body in bodies.items()})
    return {name: pinned(f"{site.url}/{name}".replace(" ", "%20"), body) for name, body in bodies.items()}


def test_many_files_lie_where_their_names_say(site, tmp_path):
    sources = many(site)
    assert fetch_all(sources, tmp_path, progress=False) == {name: tmp_path / name for name in sources}
    assert all((tmp_path / name).read_bytes() == site.files[f"/{name}"] for name in sources)


def test_after_a_failure_among_many_the_next_call_fetches_only_what_is_missing(site, tmp_path):
    sources = many(site)
    site.faults["/part 1/11.bin"] = [404]
    with pytest.raises(DownloadError, match="11.bin could not be downloaded"):
        fetch_all(sources, tmp_path, patience=ONCE, progress=False, workers=1)
    asked = len(site.asked)
    assert asked == len(sources)
    fetch_all(sources, tmp_path, patience=ONCE, progress=False)
    assert len(site.asked) == asked + 1


def test_after_the_first_failure_nothing_else_is_begun(site, tmp_path, monkeypatch):
    def download(id, output, quiet, resume):
        time.sleep(0.5)

    begun = fake_gdown(monkeypatch, download)
    sources = {"gone.bin": pinned(site.url + "/gone.bin"), "a": pinned("gdrive:a"), "b": pinned("gdrive:b")}
    with pytest.raises(DownloadError, match="gone.bin could not be downloaded"):
        fetch_all(sources, tmp_path, patience=ONCE, progress=False, workers=1)
    assert len(begun) < 2  # the one worker may begin the next before the failure is seen


def test_a_failure_does_not_wait_for_the_transfers_under_way_and_keeps_them(site, tmp_path):
    site.faults |= {"/file.bin": ["drip"], "/gone.bin": ["stall"]}  # 4 and 1.5 seconds
    sources = {"slow.bin": pinned(site.url + "/file.bin"), "gone.bin": pinned(site.url + "/gone.bin")}
    began = time.monotonic()
    with pytest.raises(DownloadError, match="gone.bin could not be downloaded"):
        fetch_all(sources, tmp_path, patience=ONCE, progress=False)
    assert time.monotonic() - began < 3.5
    assert [path.name for path in tmp_path.iterdir()] == ["slow.bin.part"]


@pytest.mark.parametrize("name", ["../out.bin", "/out.bin", "a/../../out.bin", "..\\out.bin", "C:out.bin"])
def test_a_name_outside_the_folder_is_refused(site, tmp_path, name):
    with pytest.raises(DownloadError, match="would lie outside"):
        fetch_all({name: pinned(site.url + "/file.bin")}, tmp_path / "folder", progress=False)
    assert site.asked == []


# ----------------------------------------------------------------------------------- Google Drive

CONFIRMATION = (  # gdown reads it line by line
    b'<form id="download-form" action="https://drive.usercontent.google.com/download">'
    b'<input type="hidden" name="id" value="abc_123"><input type="hidden" name="confirm" value="t"></form>'
)


@pytest.fixture
def drive(google, tmp_path, monkeypatch):
    """Google Drive's file ``abc_123`` behind a confirmation page, asked by the gdown that is installed."""
    import gdown

    code, cookies = sys.modules[gdown.download.__module__], tmp_path / ".cache" / "gdown" / "cookies.txt"
    cookies.parent.mkdir(parents=True)
    monkeypatch.setattr(code, "home", str(tmp_path))  # version 5
    monkeypatch.setattr(code, "DEFAULT_COOKIES_FILE", str(cookies), raising=False)  # version 6
    google.files |= {"/uc?id=abc_123": CONFIRMATION, "/download?id=abc_123&confirm=t": BYTES}
    google.types["/uc?id=abc_123"] = "text/html"
    return google


def test_drive_gives_the_file_behind_its_confirmation_page(drive, tmp_path):
    target = get(pinned("gdrive:abc_123"), tmp_path / "data" / "mine.bin")
    assert target.read_bytes() == BYTES
    assert [path.name for path in target.parent.iterdir()] == ["mine.bin"]


def test_an_interrupted_file_from_drive_is_finished_by_the_next_call(drive, tmp_path):
    drive.faults["/download?id=abc_123&confirm=t"] = [-HALF]
    with pytest.raises(DownloadError, match=r"kept: mine\.bin\.part\.d"):
        get(pinned("gdrive:abc_123"), tmp_path / "data" / "mine.bin")
    assert get(pinned("gdrive:abc_123"), tmp_path / "data" / "mine.bin").read_bytes() == BYTES
    assert f"bytes={HALF}-" in ranges(drive)


def test_a_file_that_drive_does_not_share_is_not_asked_for_twice(drive, tmp_path, naps):
    drive.files["/uc?id=abc_123"] = b"<html>Sign in</html>"
    with pytest.raises(DownloadError, match=r"tried: gdrive:abc_123: .*Cannot retrieve the public link"):
        get(pinned("gdrive:abc_123"), tmp_path / "data" / "mine.bin", EAGER)
    assert naps == []
    assert list((tmp_path / "data").iterdir()) == []


def test_a_login_page_in_place_of_the_file_is_refused(drive, tmp_path):
    drive.files["/download?id=abc_123&confirm=t"] = b"<html>quota exceeded</html>"
    with pytest.raises(DownloadError, match="it has 27 bytes"):
        get(pinned("gdrive:abc_123"), tmp_path / "data" / "mine.bin")
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("version", [5, 6])
def test_gdown_is_asked_in_the_words_of_its_version(tmp_path, monkeypatch, version):
    def download5(url=None, output=None, quiet=False, id=None, fuzzy=False, resume=False):
        Path(output).write_bytes(BYTES)
        return output

    def download6(url=None, output=None, quiet=False, id=None, resume=False, timeout=None, retries=0):
        return download5(output=output)

    asked = fake_gdown(monkeypatch, {5: download5, 6: download6}[version])
    assert get(pinned("gdrive:abc_123"), tmp_path / "mine.bin").read_bytes() == BYTES
    both = {"id": "abc_123", "quiet": True, "resume": True}
    [options] = asked
    assert options.pop("output").startswith(str(tmp_path))
    assert options == {5: both, 6: both | {"timeout": 5.0}}[version]


def test_gdown_giving_up_without_an_error_is_an_error(tmp_path, monkeypatch):
    fake_gdown(monkeypatch, lambda id, output, quiet, resume: None)
    with pytest.raises(DownloadError, match="tried: gdrive:abc_123: gdown gave up"):
        get(pinned("gdrive:abc_123"), tmp_path / "mine.bin")


# ---------------------------------------------------------------------------------------- the Hub


@pytest.fixture
def hub(site, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", site.url + "/")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    site.files["/owner/name/resolve/abc123/deep/model 1.bin"] = BYTES
    site.files["/datasets/owner/name/resolve/v1.0/train.bin"] = BYTES
    return site


@pytest.mark.parametrize(("url", "path"), [
    ("hf://owner/name@abc123/deep/model 1.bin", "/owner/name/resolve/abc123/deep/model%201.bin"),
    ("hf://datasets/owner/name@v1.0/train.bin", "/datasets/owner/name/resolve/v1.0/train.bin"),
])  # fmt: skip
def test_the_hub_gives_one_file_of_a_pinned_revision_to_the_reader_it_knows(hub, tmp_path, url, path):
    assert get(pinned(url), tmp_path / "mine.bin").read_bytes() == BYTES
    [(asked, headers)] = hub.asked
    assert asked == path
    assert {name.lower(): value for name, value in headers.items()}["authorization"] == "Bearer hf_mine"


def test_an_interrupted_file_from_the_hub_is_finished_by_the_next_call(hub, tmp_path):
    hub.faults["/datasets/owner/name/resolve/v1.0/train.bin"] = [-HALF]
    source = pinned("hf://datasets/owner/name@v1.0/train.bin")
    with pytest.raises(DownloadError, match=r"kept: mine\.bin\.part"):
        get(source, tmp_path / "mine.bin")
    assert get(source, tmp_path / "mine.bin").read_bytes() == BYTES
    assert ranges(hub) == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_gated_or_missing_file_of_the_hub_is_not_asked_for_twice(hub, tmp_path, status):
    hub.faults["/datasets/owner/name/resolve/v1.0/train.bin"] = [status]
    with pytest.raises(DownloadError, match=f"resolve/v1.0/train.bin: HTTP {status}"):
        get(pinned("hf://datasets/owner/name@v1.0/train.bin"), tmp_path / "mine.bin", EAGER)
    assert len(hub.asked) == 1


def test_the_hub_is_not_asked_when_it_is_said_to_be_offline(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        get(pinned("hf://datasets/owner/name@v1.0/train.bin"), tmp_path / "mine.bin", EAGER)
    assert hub.asked == []


# ---------------------------------------------------------------------------------------- buckets


@pytest.fixture
def gsutil(tmp_path, monkeypatch):
    """Installs a shell script as gsutil. What it is to copy is in ``$source`` and ``$target``."""

    def install(script: str) -> Path:
        """Returns the file in which it notes what it was asked for."""
        program, asked = tmp_path / "bin" / "gsutil", tmp_path / "bin" / "asked"
        program.parent.mkdir()
        arguments = 'while [ "$1" != cp ]; do shift; done; source=$2; target=$3'
        program.write_text(f'#!/bin/sh\n{arguments}\necho "$source" >> "{asked}"\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        return asked

    return install


def test_a_bucket_is_read_over_https_where_there_is_no_gsutil(google, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    google.files["/bucket/a folder/file+1.bin"] = BYTES
    assert get(pinned("gs://bucket/a folder/file+1.bin"), tmp_path / "mine.bin").read_bytes() == BYTES
    assert [path for path, _ in google.asked] == ["/bucket/a%20folder/file%2B1.bin"]


def test_gsutil_is_used_where_it_is_installed(google, tmp_path, gsutil):
    (tmp_path / "theirs").write_bytes(BYTES)
    asked = gsutil(f'cp "{tmp_path}/theirs" "$target"')
    source = pinned("gs://bucket/file.bin", size=False)
    assert get(source, tmp_path / "data" / "mine.bin").read_bytes() == BYTES
    assert (asked.read_text(), google.asked) == ("gs://bucket/file.bin\n", [])
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine.bin"]


def test_a_failing_gsutil_leaves_it_to_https(google, tmp_path, gsutil):
    gsutil('echo half > "$target"_.gstmp; exit 1')
    google.files["/bucket/file.bin"] = BYTES
    source = pinned("gs://bucket/file.bin", size=False)
    assert get(source, tmp_path / "data" / "mine.bin").read_bytes() == BYTES
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine.bin"]


def test_when_gsutil_and_https_fail_both_are_named(google, tmp_path, gsutil):
    gsutil("echo no credentials >&2; exit 1")
    with pytest.raises(DownloadError) as caught:
        get(pinned("gs://bucket/file.bin", size=False), tmp_path / "data" / "mine.bin")
    assert "tried: gsutil cp gs://bucket/file.bin: no credentials" in str(caught.value)
    assert "tried: https://storage.googleapis.com/bucket/file.bin: HTTP 404" in str(caught.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_wrong_bytes_from_gsutil_are_refused(google, tmp_path, gsutil):
    gsutil('echo wrong > "$target"')
    with pytest.raises(DownloadError, match="its sha256 is"):
        get(pinned("gs://bucket/file.bin", size=False), tmp_path / "data" / "mine.bin")
    assert list((tmp_path / "data").iterdir()) == []


def test_small_files_of_a_bucket_do_not_wait_for_gsutil_to_start(google, tmp_path, gsutil):
    asked = gsutil("exit 1")
    google.files["/bucket/file.bin"] = BYTES
    assert len(BYTES) < downloads.GSUTIL_PAYS
    assert get(pinned("gs://bucket/file.bin"), tmp_path / "mine.bin").read_bytes() == BYTES
    assert not asked.exists()


def test_a_mirror_of_the_buckets_is_used_instead_of_gsutil(site, tmp_path, gsutil, monkeypatch):
    asked = gsutil("exit 1")
    monkeypatch.setenv("SIGHTLINE_BUCKET_ENDPOINT", site.url + "/mirror/")
    site.files["/mirror/bucket/file.bin"] = BYTES
    assert get(pinned("gs://bucket/file.bin", size=False), tmp_path / "mine.bin").read_bytes() == BYTES
    assert not asked.exists()


def test_progress_of_other_tools_is_seen_while_they_run(google, tmp_path, gsutil):
    gsutil('echo 12345 > "$target"_.gstmp; sleep 1.1; rm "$target"_.gstmp; echo 1234567 > "$target"')
    seen = []
    downloads._by_gsutil(pinned("gs://bucket/file.bin"), tmp_path / "mine.bin.part", 5.0, seen.append)
    assert 6 in seen
    assert seen[-1] == 8


# --------------------------------------------------------------------------------- where data lie


@pytest.mark.parametrize(("value", "folder"), [
    (None, ROOT / "data"),
    ("", ROOT / "data"),
    ("../shared/data", ROOT.parent / "shared" / "data"),
    ("/mnt/data", Path("/mnt/data")),
    ("~/data", Path.home() / "data"),
])  # fmt: skip
def test_data_lie_where_the_environment_says_wherever_one_works(monkeypatch, tmp_path, value, folder):
    monkeypatch.delenv("SIGHTLINE_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("SIGHTLINE_DATA", value)
    monkeypatch.chdir(tmp_path)
    assert data_root().resolve() == folder.resolve()


def test_a_data_set_is_located_or_its_missing_files_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("SIGHTLINE_DATA", str(tmp_path))
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "here.txt").touch()
    assert locate("birds", ["here.txt"]) == tmp_path / "birds"
    with pytest.raises(DownloadError) as caught:
        locate("birds", ["here.txt", "images", *"abc"], hint="PRESET='toybirds'")
    where = tmp_path / "birds"
    for part in (f"birds: no images, a, b and 1 more in {where}", "set SIGHTLINE_DATA", "PRESET='toybirds'"):
        assert part in str(caught.value)
