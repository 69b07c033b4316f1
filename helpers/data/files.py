"""Files of data sets: downloaded as one archive, or lying at hand and verified."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from helpers import artifacts
from helpers.archives import ArchiveError, unpack
from helpers.config import ConfigError, suggest
from helpers.data.images import HINT
from helpers.downloads import DownloadError, Source, fetch

DRAWN = 'the data set "ToyBirds" is drawn by the program and needs no files'


def download(source: Source, folder: Path, hint: str = HINT) -> None:
    """Puts what the archive of ``source`` holds into the new ``folder``: what lies in its folder of that name, if there
    is one. The archive is not kept. Of two processes that want it the second waits for the first. Raises
    `DownloadError`, also where ``folder`` is there: it is never replaced."""
    if folder.exists():
        raise DownloadError(f"{folder} is there, but is not what it should be: delete or move it and run again")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock := folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            try:
                _unpack(source, folder, hint)
            finally:
                lock.unlink(missing_ok=True)


def _unpack(source: Source, folder: Path, hint: str) -> None:
    archive = fetch(source, folder.with_name(PurePosixPath(urlsplit(source.url).path).name), hint=hint)
    stage = folder.with_name(f".{folder.name}.unpacked")
    shutil.rmtree(stage, ignore_errors=True)
    try:
        unpack(archive, stage)
    except ArchiveError as error:
        raise DownloadError(str(error)) from error
    inner = stage / folder.name
    (inner if inner.is_dir() else stage).replace(folder)
    shutil.rmtree(stage, ignore_errors=True)  # what lay beside the folder
    archive.unlink()


def facts_of(config: Mapping[str, Any], subset: str) -> Mapping[str, Any]:
    """What a data set's YAML says of its whole, or of one of its ``subsets``. Raises `ConfigError` for another name."""
    if not subset:
        return config
    if subset not in (known := config.get("subsets", {})):
        raise ConfigError(f"{config['title']} has no subset {subset!r} (empty: the whole); {suggest(subset, known)}")
    return known[subset]


def verify(folder: Path, files: Mapping[str, Mapping[str, Any]], title: str, otherwise: str, hint: str = HINT) -> None:
    """Raises `DownloadError` unless ``folder`` holds ``files``, ``{name: {"sha256": ...}}``.

    ``title`` names the subset, ``otherwise`` what can be had in its place, ``hint`` what needs no data at all.
    """
    if missing := [name for name in files if not (folder / name).exists()]:
        raise DownloadError(
            f"{title}: no {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''} in {folder}\n"
            f"  tried: nothing, the subset is not on the net; {otherwise}\n"
            f"  by hand: put the files there, or set SIGHTLINE_DATA to the folder that has {folder.name}\n"
            f"  without a download: {hint}"
        )
    for name, facts in files.items():
        check(folder / name, facts["sha256"], hint)


def check(path: Path, sha256: str, hint: str = HINT) -> None:
    """Raises `DownloadError` unless the sha256 of ``path`` begins with ``sha256``."""
    if not (found := _sha256(path, path.stat().st_mtime_ns)).startswith(sha256):
        raise DownloadError(
            f"{path} is not the file it should be: its sha256 is {found}, not {sha256}\n"
            f"  by hand: put the right one there\n  without a download: {hint}"
        )


@lru_cache(maxsize=256)
def _sha256(path: Path, changed: int) -> str:
    """Of ``path``, for as long as it was not ``changed`` [ns]."""
    return artifacts.sha256(path)
