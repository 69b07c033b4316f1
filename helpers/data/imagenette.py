"""Imagenette, ten easy classes of ImageNet with a shorter side of 160 pixels (``data_configs/imagenette.yaml``).

`load` reads a subset of 2,800 images from zip files that are never unpacked; `load_full` downloads all 13,394.
"""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import torch

from helpers.archives import open_member
from helpers.config import data_config
from helpers.data import files, image_folder
from helpers.data.image_folder import Photographs
from helpers.data.images import Images, check_split, data_root, preprocess_of
from helpers.downloads import DownloadError, Source


def load(split: str = "test", size: int | None = None, data_dir: str | Path | None = None) -> Images:
    """The subset, 2,000 images to train and 800 to test on: uint8 [N, 3, size, size], decoded on demand.

    ``imagenette2_160_subset`` holds a stored zip a class. Raises `DownloadError` where a file is missing (there is no
    place to download the subset from; ``ImagenetteFull`` can be downloaded) or is not the one of the configuration.
    """
    return image_folder.lazily(photographs(split, data_dir), preprocess_of(data_config("imagenette"), size))


def photographs(split: str = "test", data_dir: str | Path | None = None) -> Photographs:
    """What `load` reads, at its own sizes."""
    check_split(split)
    config, folder = data_config("imagenette"), data_root(data_dir) / "imagenette2_160_subset"
    files.verify(folder, config["files"], "Imagenette's subset", "the data set 'ImagenetteFull' is downloaded")
    wanted = config["splits"][split]["name"]
    rows = [row for row in csv.DictReader(io.StringIO((folder / "labels.csv").read_text())) if row["split"] == wanted]
    items = tuple((folder / f"{row['file'].split('/')[1]}.zip", row["file"]) for row in rows)
    labels = torch.tensor([int(row["label"]) for row in rows])
    return Photographs(items, labels, tuple(name for name, _ in config["classes"].values()), open_member)


def load_full(split: str = "test", size: int | None = None, data_dir: str | Path | None = None) -> Images:
    """All of Imagenette, 9,469 and 3,925 images: from the folder ``imagenette2-160``, downloaded (99 MB) if need be."""
    return image_folder.lazily(photographs_full(split, data_dir), preprocess_of(data_config("imagenette"), size))


def photographs_full(split: str = "test", data_dir: str | Path | None = None) -> Photographs:
    """What `load_full` reads, at its own sizes."""
    check_split(split)
    config, folder = data_config("imagenette"), data_root(data_dir) / "imagenette2-160"
    if not folder.exists():
        files.download(Source(**config["archive"]), folder)
    found = image_folder.photographs(folder, split)
    if len(found) != (expected := config["splits"][split]["images_full"]):
        raise DownloadError(f"{folder} holds {len(found)} images of {split!r}, not {expected}: delete it, run again")
    names = {wnid: name for name, wnid in config["classes"].values()}
    return replace(found, classes=tuple(names[wnid] for wnid in found.classes))
