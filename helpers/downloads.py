"""Bytes from elsewhere: HTTP(S), Google Drive, the Hugging Face Hub and Google buckets.

The only module that knows how bytes are fetched and where data lie. A transfer goes to ``<target>.part``, is
resumed from there, and gets its own name once it is verified: a file under its own name is whole.

Environment: ``SIGHTLINE_DATA`` is the folder of the data (default ``data``; relative to the repository root).
``SIGHTLINE_BUCKET_ENDPOINT`` is a mirror of ``https://storage.googleapis.com``; set, gsutil is not used.
The Hub's ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` and the usual proxy variables are respected.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Self
from urllib.parse import quote

import requests
from filelock import FileLock
from pydantic import Field, model_validator
from tqdm import tqdm

from .archives import ArchiveError, inside
from .config import ROOT, PlainError, Settings

log = logging.getLogger(__name__)

GSUTIL_PAYS = 32 * 2**20  # bytes; while gsutil starts, plain HTTPS has fetched a smaller file

HTTP = r"https?://[^/\s]+/\S+"
DRIVE = r"gdrive:(?P<id>[\w-]+)"
HUB = r"hf://((?P<kind>dataset|space)s/)?(?P<repo>[^/@\s]+/[^/@\s]+)@(?P<revision>[^/@\s]+)/(?P<file>.+)"
BUCKET = r"gs://(?P<object>[^/\s]+/.+)"
FORMS = "http(s)://host/path, gdrive:file-id, hf://[datasets/]owner/name@revision/path, gs://bucket/path"


class DownloadError(PlainError):
    """Data that could not be had. The message is for the person: what was tried, what to do by hand."""


class _Interrupted(Exception):
    """The transfer broke or never began; another attempt may complete it."""


class _Refused(Exception):
    """Asking again would change nothing: not found, forbidden, switched off."""


class Source(Settings):
    """Where a file comes from, and how it is known to be the right one."""

    url: str = Field(description=FORMS)
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    md5: str | None = Field(None, pattern=r"^[0-9a-f]{32}$", description="where no sha256 is published")
    bytes: int | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if not re.fullmatch("|".join((HTTP, DRIVE, HUB, BUCKET)), self.url):
            raise ValueError(f"the url has none of the forms {FORMS}")
        if not (self.sha256 or self.md5):
            raise ValueError("sha256 or md5 is needed: nothing is fetched that cannot be verified")
        return self


class Patience(Settings):
    """How long to go on with a source that does not answer well."""

    retries: int = Field(3, ge=0)
    backoff_s: float = Field(1.0, ge=0, description="seconds before the first retry, then doubled")
    timeout_s: float = Field(30.0, gt=0, description="seconds to wait for a connection or for more bytes")


PATIENCE = Patience()
Report = Callable[[int], None]
"""Is told how many bytes of a file are there."""
Route = Callable[[Source, Path, float, Report], None]
"""Completes the ``.part`` file of a source, with a timeout [s]. Raises `_Interrupted` or `_Refused`."""


def data_root() -> Path:
    """The folder that holds one folder a data set."""
    # Not relative to the working directory: a notebook, a test and `make` each have another one.
    return (ROOT / Path(os.environ.get("SIGHTLINE_DATA") or "data").expanduser()).resolve()


def locate(name: str, files: Iterable[str] = (), *, hint: str = "") -> Path:
    """The folder of data set ``name``. Raises `DownloadError` if one of ``files`` is not in it."""
    folder = data_root() / name
    if missing := [file for file in files if not (folder / file).exists()]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        by_hand = f"put them there, or set SIGHTLINE_DATA to the folder that has {name}"
        raise _error(f"{name}: no {', '.join(missing[:3])}{more} in {folder}", [], by_hand, hint)
    return folder


def fetch(
    source: Source, target: Path, *, hint: str = "", patience: Patience = PATIENCE, progress: bool = True
) -> Path:
    """The verified file ``target``, downloaded unless it is there.

    ``hint`` names the preset that needs no download. Raises `DownloadError` if the source cannot be had or
    has other bytes, and if ``target`` is there with other bytes: it is never replaced.
    """
    with _bar(target.name, source.bytes, progress) as bar:
        return _fetch(source, target, hint, patience, _meter(bar, Event()))


def fetch_all(
    sources: Mapping[str, Source],
    folder: Path,
    *,
    hint: str = "",
    patience: Patience = PATIENCE,
    progress: bool = True,
    workers: int = 8,
) -> dict[str, Path]:
    """`fetch` for many, ``workers`` at a time: ``{path in folder: source}`` to ``{path in folder: file}``.

    The first failure ends it. What is there by then stays, and the next call goes on from it.
    """
    try:
        targets = {name: inside(folder, name) for name in sources}
    except ArchiveError as error:
        raise DownloadError(str(error)) from None
    total, stop = sum(source.bytes or 0 for source in sources.values()), Event()
    with _bar(folder.name, total or None, progress) as bar, ThreadPoolExecutor(workers) as pool:
        jobs = [
            pool.submit(_fetch, source, targets[name], hint, patience, _meter(bar, stop))
            for name, source in sources.items()
        ]
        try:
            for job in wait(jobs, return_when=FIRST_EXCEPTION).done:
                job.result()
        except BaseException:  # the reader's interrupt, too, is not to wait for gigabytes
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return targets


def _bar(name: str, total: int | None, progress: bool) -> tqdm:
    return tqdm(desc=name, total=total, unit="B", unit_scale=True, disable=not progress)


def _meter(bar: tqdm, stop: Event) -> Report:
    """Moves ``bar``, which files may share, by what one file has grown. Raises once ``stop`` is set."""
    seen = 0

    def report(position: int) -> None:
        nonlocal seen
        if stop.is_set():
            raise CancelledError
        bar.update(position - seen)
        seen = position

    return report


def _fetch(source: Source, target: Path, hint: str, patience: Patience, report: Report) -> Path:
    checksum = f"sha256 {source.sha256}" if source.sha256 else f"md5 {source.md5}"
    by_hand = f"put the file with {checksum} from {source.url} at {target.absolute()}"
    part, notes = target.with_name(target.name + ".part"), []
    try:
        if target.exists():
            if fault := _fault(target, source):
                remedy = f"delete or move it and run again; or {by_hand}"
                raise _error(f"{target} is not the file it should be: {fault}", [], remedy, hint)
            report(target.stat().st_size)
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock := target.with_name(f".{target.name}.lock")), ExitStack() as after:  # others share the part
            after.callback(lock.unlink, missing_ok=True)
            if target.exists():  # one of them has fetched it
                return _fetch(source, target, hint, patience, report)
            for route in _routes(source):
                if not (failure := _pursue(route, source, part, patience, report)):
                    part.replace(target)
                    shutil.rmtree(_stage(part), ignore_errors=True)
                    return target
                notes.append(f"tried: {failure}")
    except OSError as error:  # the disk's; those of the network do not come up to here
        raise _error(f"{target} cannot be read or written: {error}", notes, by_hand, hint) from error
    for kept in filter(Path.exists, (part, _stage(part))):
        notes.append(f"kept: {kept.name}; running again goes on from it, deleting it begins anew")
    raise _error(f"{target.name} could not be downloaded", notes, by_hand, hint)


def _pursue(route: Route, source: Source, part: Path, patience: Patience, report: Report) -> str:
    """Follows ``route`` until ``part`` holds the right bytes. What went wrong in the end, or nothing."""
    failure = ""
    for attempt in range(patience.retries + 1):
        if attempt:
            log.warning("%s; attempt %d of %d", redacted(failure), attempt + 1, patience.retries + 1)
            time.sleep(patience.backoff_s * 2 ** (attempt - 1))
        resumed = part.exists() or _stage(part).exists()
        try:
            route(source, part, patience.timeout_s, report)
        except _Refused as error:
            return str(error)
        except _Interrupted as error:
            failure = str(error)
            continue
        if not (fault := _fault(part, source)):
            return ""
        failure = f"{source.url}: {fault}"
        part.unlink()  # resumed, it would give another wrong file
        if not resumed:  # else its beginning may be an older version's, and the whole is worth an attempt
            break
    return failure


def _fault(path: Path, source: Source) -> str:
    """What tells ``path`` from the file of ``source``, or nothing."""
    size = path.stat().st_size
    if source.bytes not in (None, size):
        return f"it has {size:,} bytes, not {source.bytes:,}"
    for algorithm, expected in (("sha256", source.sha256), ("md5", source.md5)):
        if expected:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, algorithm).hexdigest()
            if found != expected:
                return f"its {algorithm} is {found}, not {expected}"
    return ""


def _error(what: str, notes: list[str], by_hand: str, hint: str) -> DownloadError:
    lines = [what, *notes, f"by hand: {by_hand}", *([f"without a download: {hint}"] if hint else [])]
    return DownloadError(redacted("\n  ".join(lines)))


def redacted(text: str) -> str:
    """``text`` without what may be secret: user names and queries (signatures, keys) of URLs, tokens."""
    text = re.sub(r"(?<=://)[^/@\s]+@", "", text)
    text = re.sub(r"\?[^\s'\")]+", "?...", text)
    return re.sub(r"\b(hf_|Bearer )[\w.-]{16,}", r"\1...", text)


def _routes(source: Source) -> list[Route]:
    """The ways to the bytes, in the order to try."""
    if source.url.startswith("gdrive:"):
        return [_by_gdown]
    mirrored = os.environ.get("SIGHTLINE_BUCKET_ENDPOINT")
    pays = source.url.startswith("gs://") and (source.bytes is None or source.bytes >= GSUTIL_PAYS)
    return [_by_gsutil, _by_https] if pays and not mirrored and shutil.which("gsutil") else [_by_https]


def _by_https(source: Source, part: Path, timeout_s: float, report: Report) -> None:
    """Goes on where ``part`` ends, if the server can. The checksum proves that the halves belong together."""
    url, headers = _address(source)
    have = part.stat().st_size if part.exists() else 0
    report(have)
    if source.bytes and have >= source.bytes:
        return
    headers["Accept-Encoding"] = "identity"  # so that ranges and lengths count the file's own bytes
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout_s) as response:
            if have and response.status_code == requests.codes.requested_range_not_satisfiable:
                return  # there is nothing beyond what is here
            response.raise_for_status()
            if response.status_code != requests.codes.partial_content:
                have = 0  # the server knows no ranges and sends the whole
            length = response.headers.get("Content-Length")
            total = have + int(length) if length and "Content-Encoding" not in response.headers else None
            if source.bytes and total and total != source.bytes:
                raise _Refused(f"{url}: it announces {total:,} bytes, not {source.bytes:,}")
            with part.open("ab" if have else "wb") as file:
                for chunk in response.iter_content(2**16):
                    file.write(chunk)
                    have += len(chunk)
                    report(have)
    except requests.RequestException as error:
        raise _failure(url, error) from error
    if have < (total or source.bytes or 0):  # not every server and urllib3 make an error of it
        raise _Interrupted(f"{url}: the connection ended after {have:,} bytes")


def _address(source: Source) -> tuple[str, dict[str, str]]:
    """The URL of a source's bytes, and the headers to ask for them with."""
    if bucket := re.fullmatch(BUCKET, source.url):
        endpoint = os.environ.get("SIGHTLINE_BUCKET_ENDPOINT") or "https://storage.googleapis.com"
        return f"{endpoint.rstrip('/')}/{quote(bucket['object'])}", {}
    if hub := re.fullmatch(HUB, source.url):
        # Of the Hub's client only this: its download's arguments and errors change with versions, and since
        # version 2 it throws an interrupted transfer away.
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        if constants.HF_HUB_OFFLINE:
            raise _Refused(f"{source.url}: HF_HUB_OFFLINE is set")
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None  # the client reads it only on import
        where = {"repo_type": hub["kind"], "revision": hub["revision"], "endpoint": endpoint}
        return hf_hub_url(hub["repo"], hub["file"], **where), build_hf_headers(library_name="sightline")
    return source.url, {}


def _by_gdown(source: Source, part: Path, timeout_s: float, report: Report) -> None:
    """A file on Google Drive that anyone may read; gdown knows the way past its confirmation pages."""
    import gdown

    has_timeout = "timeout" in inspect.signature(gdown.download).parameters  # since version 6
    options = {"quiet": True, "resume": True, **({"timeout": timeout_s} if has_timeout else {})}
    with _staged(part, report) as staged:
        try:
            done = gdown.download(id=re.fullmatch(DRIVE, source.url)["id"], output=str(staged), **options)
        except gdown.exceptions.FileURLRetrievalError as error:
            raise _Refused(f"{source.url}: {origin(error)}") from error
        except Exception as error:  # which ones depends on the version
            raise _failure(source.url, error) from error
        if done is None:  # some failures of version 5
            raise _Interrupted(f"{source.url}: gdown gave up")


def _by_gsutil(source: Source, part: Path, timeout_s: float, report: Report) -> None:
    """A bucket, with gsutil's credentials and its own retries (not its 23, which take minutes)."""
    options = ["-q", "-o", "Boto:num_retries=3", "-o", f"Boto:http_socket_timeout={timeout_s:.0f}"]
    with _staged(part, report) as staged:
        command = [shutil.which("gsutil"), *options, "cp", source.url, str(staged)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise _Refused(f"gsutil cp {source.url}: {said[-1]}")


def _failure(url: str, error: Exception) -> _Interrupted | _Refused:
    """A library's error as ours: the HTTP status, if there is one, says which."""
    response = getattr(error, "response", None)
    if response is None:
        return _Interrupted(f"{url}: {origin(error)}")
    passing = response.status_code >= 500 or response.status_code in (408, 425, 429)
    return (_Interrupted if passing else _Refused)(f"{url}: HTTP {response.status_code} {response.reason}")


def hub_source(repository: str, revision: str, file: str, *, hint: str = "") -> Source:
    """A file of a model repository, pinned: the commit that ``revision`` now is, and the size and sha256 that the Hub
    states for it. Raises `DownloadError` if the Hub does not answer or has no such file."""
    from huggingface_hub import HfApi, constants

    what = f"hf://{repository}@{revision}/{file}"
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None)
        info = api.model_info(repository, revision=revision, files_metadata=True, timeout=PATIENCE.timeout_s)
        stored = {entry.rfilename: entry.lfs for entry in info.siblings}[file]
        return Source(url=f"hf://{repository}@{info.sha}/{file}", sha256=stored.sha256, bytes=stored.size)
    except Exception as error:  # which ones depends on the client's version, and on its network library's
        by_hand = f"put {file} of https://huggingface.co/{repository} into the data folder"
        raise _error(f"{what} could not be looked up", [f"tried: {origin(error)!r}"], by_hand, hint) from error


def origin(error: BaseException) -> BaseException:
    """The innermost of nested errors: "Connection refused" without three libraries' wrappings."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error


def _stage(path: Path) -> Path:
    return path.with_name(path.name + ".d")


@contextmanager
def _staged(part: Path, report: Report) -> Iterator[Path]:
    """A place for a tool that keeps a partial file of its own; what it completes there becomes ``part``.

    Tools report progress each in its own way, if at all. How the folder grows is the same for all.
    """
    stage, done = _stage(part), Event()
    stage.mkdir(exist_ok=True)

    def watch() -> None:
        while not done.wait(0.5):
            with suppress(OSError, CancelledError):  # a file renamed meanwhile; nobody waits any more
                report(sum(file.stat().st_size for file in stage.iterdir()))

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield stage / "file"
        (stage / "file").replace(part)
    finally:
        done.set()
        watcher.join()
        with suppress(OSError):
            stage.rmdir()  # unless a partial file is in it
    report(part.stat().st_size)
