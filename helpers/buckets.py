"""Google buckets: which objects there are, with their checksums, and many of them at once.

With gsutil installed one call of it fetches them side by side; what it leaves, and everything where there is no gsutil
or ``SIGHTLINE_BUCKET_ENDPOINT`` names a mirror, comes over plain HTTPS. Both ways end in the same verification.
"""

from __future__ import annotations

import base64
import logging
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import requests
from tqdm import tqdm

from helpers import downloads
from helpers.downloads import DownloadError, Source

PUBLIC = "https://storage.googleapis.com"

log = logging.getLogger(__name__)


def listing(bucket: str, prefix: str, *, hint: str = "", timeout_s: float = 30.0) -> dict[str, Source]:
    """The objects of ``bucket`` whose names begin with ``prefix``, with the size and md5 that the bucket itself states:
    ``{name: source}``. Raises `DownloadError` if it cannot be had, or states no md5."""
    endpoint = (os.environ.get("SIGHTLINE_BUCKET_ENDPOINT") or PUBLIC).rstrip("/")
    url, found, page = f"{endpoint}/storage/v1/b/{bucket}/o", {}, None
    while True:
        asked = {"prefix": prefix, "fields": "nextPageToken,items(name,size,md5Hash)"}
        try:
            answer = requests.get(url, asked | ({"pageToken": page} if page else {}), timeout=timeout_s)
            answer.raise_for_status()
            told = answer.json()
            for item in told.get("items", []):
                md5 = base64.b64decode(item["md5Hash"]).hex()
                source = Source(url=f"gs://{bucket}/{item['name']}", md5=md5, bytes=int(item["size"]) or None)
                found[item["name"]] = source
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise DownloadError(
                f"gs://{bucket}/{prefix} could not be listed\n  tried: {url}: {downloads.origin(error)}"
                + (f"\n  without a download: {hint}" if hint else "")
            ) from error
        page = told.get("nextPageToken")
        if not page:
            return found


def fetch(sources: Mapping[str, Source], folder: Path, *, hint: str = "", progress: bool = True) -> dict[str, Path]:
    """`downloads.fetch_all` for objects of buckets: ``{path in folder: source}`` to ``{path in folder: file}``."""
    missing = {name: source for name, source in sources.items() if not (folder / name).exists()}
    pays = sum(source.bytes or 0 for source in missing.values()) >= downloads.GSUTIL_PAYS
    if pays and shutil.which("gsutil") and not os.environ.get("SIGHTLINE_BUCKET_ENDPOINT"):
        _by_gsutil(missing, folder, progress)
    return downloads.fetch_all(sources, folder, hint=hint, progress=progress)


def _by_gsutil(sources: Mapping[str, Source], folder: Path, progress: bool) -> None:
    """Copies what it can to ``<target>.part``, where `downloads.fetch_all` takes it up and verifies it. Objects of one
    file name go one after the other."""
    stage = folder / ".gsutil"
    stage.mkdir(parents=True, exist_ok=True)
    named = {PurePosixPath(source.url).name: (name, source) for name, source in sources.items()}
    command = [shutil.which("gsutil"), "-q", "-m", "-o", "Boto:num_retries=3", "cp", "-n", "-I", str(stage)]
    total = sum(source.bytes or 0 for _, source in named.values())
    with (
        tqdm(desc=f"{folder.name}, gsutil", total=total, unit="B", unit_scale=True, disable=not progress) as bar,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process,
    ):
        urls, said = "".join(f"{source.url}\n" for _, source in named.values()).encode(), None
        while said is None:
            try:
                _, said = process.communicate(urls, timeout=0.5)
            except subprocess.TimeoutExpired:
                urls = None  # `communicate` goes on where it was
            bar.update(sum(file.stat().st_size for file in stage.iterdir() if file.exists()) - bar.n)
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines() or [f"exit status {process.returncode}"]
        log.warning("gsutil: %s; the rest is fetched over HTTPS", lines[-1])
    for file in stage.iterdir():
        if file.name in named and file.stat().st_size == named[file.name][1].bytes:
            target = folder / named[file.name][0]
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target.with_name(target.name + ".part"))
    shutil.rmtree(stage, ignore_errors=True)
