"""Imagenette, ten easy classes of ImageNet with a shorter side of 160 pixels (``data_configs/imagenette.yaml``).

`load` reads a subset of 2,800 images from zip files that are never unpacked; `load_full` downloads all 13,394.
"""

from __future__ import annotations

import csv
import io
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import IO

from helpers import artifacts
from helpers.archives import ArchiveError, unpack
from helpers.config import data_config
from helpers.data import image_folder
from helpers.data.images import HINT, Images, check_split, data_root, preprocess_of
from helpers.downloads import DownloadError, Source, fetch


def load(split: str = "test", size: int | None = None, data_dir: str | Path | None = None) -> Images:
    """The subset, 2,000 images to train and 800 to test on: uint8 [N, 3, size, size], decoded on demand.

    ``imagenette2_160_subset`` holds a stored zip a class. Raises `DownloadError` where a file is missing (there is no
    place to download the subset from; ``ImagenetteFull`` can be downloaded) or is not the one of the configuration.
    """
    check_split(split)
    config, folder = data_config("imagenette"), data_root(data_dir) / "imagenette2_160_subset"
    if missing := [name for name in config["files"] if not (folder / name).exists()]:
        raise DownloadError(
            f"Imagenette's subset: no {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''} in {folder}\n"
            "  tried: nothing, the subset is not on the net; the data set 'ImagenetteFull' is downloaded\n"
            f"  by hand: put the files there, or set SIGHTLINE_DATA to the folder that has {folder.name}\n"
            f"  without a download: {HINT}"
        )
    for name, facts in config["files"].items():
        _verify(folder / name, facts["sha256"], (folder / name).stat().st_mtime_ns)
    wanted = config["splits"][split]["name"]
    rows = [row for row in csv.DictReader(io.StringIO((folder / "labels.csv").read_text())) if row["split"] == wanted]
    items = [(folder / f"{row['file'].split('/')[1]}.zip", row["file"]) for row in rows]
    labels = [int(row["label"]) for row in rows]
    names = [name for name, _ in config["classes"].values()]
    return image_folder.lazily(items, labels, names, preprocess_of(config, size), _member)


def load_full(split: str = "test", size: int | None = None, data_dir: str | Path | None = None) -> Images:
    """All of Imagenette, 9,469 and 3,925 images: from the folder ``imagenette2-160``, downloaded (99 MB) if need be."""
    check_split(split)
    config, folder = data_config("imagenette"), data_root(data_dir) / "imagenette2-160"
    if not folder.exists():
        _download(Source(**config["archive"]), folder)
    images = image_folder.load(folder, split, size)
    if len(images) != (expected := config["splits"][split]["images_full"]):
        raise DownloadError(f"{folder} holds {len(images)} images of {split!r}, not {expected}: delete it, run again")
    wnids = {wnid: name for name, wnid in config["classes"].values()}
    return Images(images.x, images.y, tuple(wnids[wnid] for wnid in images.classes), images.preprocess)


def _download(source: Source, folder: Path) -> None:
    archive = fetch(source, folder.with_name(f"{folder.name}.tgz"), hint=HINT)
    stage = folder.with_name(f".{folder.name}.unpacked")
    try:
        unpack(archive, stage)
    except ArchiveError as error:
        raise DownloadError(str(error)) from error
    (stage / folder.name).replace(folder)
    stage.rmdir()
    archive.unlink()


def _member(item: tuple[Path, str]) -> IO[bytes]:
    path, name = item
    archive = _archive(path, path.stat().st_mtime_ns)
    return io.BytesIO(archive.read(name))


@lru_cache(maxsize=16)
def _archive(path: Path, *version: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@lru_cache(maxsize=64)
def _verify(path: Path, sha256: str, *version: int) -> None:
    if (found := artifacts.sha256(path)) != sha256:
        raise DownloadError(
            f"{path} is not the file it should be: its sha256 is {found}, not {sha256}\n"
            f"  by hand: put the right one there\n  without a download: {HINT}"
        )
