"""Zip and tar files unpacked safely: nothing lands outside the folder, and nothing half-unpacked keeps its name.

Or not unpacked at all: `open_member` reads one file of a zip where it lies.
"""

from __future__ import annotations

import io
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import IO


class ArchiveError(Exception):
    """An archive that cannot be unpacked, or not safely. The message names it and the reason."""


def unpack(archive: Path, folder: Path, *, max_bytes: int = 16 * 2**30) -> Path:
    """Unpacks a zip or tar file into the new ``folder``, wholly or not at all.

    Raises `ArchiveError` if ``folder`` is there, if the archive is broken or has more than ``max_bytes`` in
    it, and if a member is a link or a device or would lie outside ``folder``.
    """
    if folder.exists():
        raise ArchiveError(f"{folder} is there already: delete or move it to unpack {archive.name} anew")
    stage, left = folder.with_name(folder.name + ".d"), max_bytes
    shutil.rmtree(stage, ignore_errors=True)
    try:
        stage.mkdir(parents=True)
        for name, size, content in _members(archive):
            path = inside(stage, name)
            if (left := left - size) < 0:
                raise ArchiveError(f"it has more than {max_bytes:,} bytes in it")
            (path.parent if content else path).mkdir(parents=True, exist_ok=True)
            if content:
                with content, path.open("wb") as file:
                    shutil.copyfileobj(content, file)
        stage.replace(folder)
    except Exception as error:  # zipfile, tarfile, the decompressors and the disk: each has its own
        raise ArchiveError(f"{archive} cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return folder


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """Name, size [bytes] and content of each member; a folder has no content."""
    if tarfile.is_tarfile(archive):  # asked first: a tar file that ends with a zip file passes for a zip file
        with tarfile.open(archive) as tar:
            for member in tar:
                if not (member.isfile() or member.isdir()):
                    raise ArchiveError(f"{member.name!r} is a link or a device")
                yield member.name, member.size, tar.extractfile(member)
    else:
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if stat.S_ISLNK(info.external_attr >> 16):
                    raise ArchiveError(f"{info.filename!r} is a link or a device")
                yield info.filename, info.file_size, None if info.is_dir() else zipped.open(info)


def inside(folder: Path, name: str) -> Path:
    """``folder / name``, which has to be inside. Either slash and drives are understood on every system."""
    path = PureWindowsPath(name)
    if path.drive or path.root or ".." in path.parts:
        raise ArchiveError(f"{name!r} would lie outside its folder")
    return folder.joinpath(*path.parts)


def open_member(item: tuple[Path, str]) -> IO[bytes]:
    """One file of a zip, by (the zip, its name there). Raises as `zipfile` does, KeyError if there is no such name."""
    path, name = item
    return io.BytesIO(_zipped(path, path.stat().st_mtime_ns).read(name))


@lru_cache(maxsize=64)
def _zipped(path: Path, version: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)
