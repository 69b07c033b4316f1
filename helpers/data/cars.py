"""Stanford Cars: 16,185 photographs of 196 makes and models (``data_configs/cars.yaml``; spec pixpnet, section 7).

The authors' site has been gone since 2023 and torchvision downloads it no more. The files are put in their place by
hand, or come from a mirror that ``SIGHTLINE_CARS`` names, with the checksum of its archive.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import torch

from helpers.archives import open_member
from helpers.config import ConfigError, data_config, parse
from helpers.data import files
from helpers.data.image_folder import Photographs, open_file
from helpers.data.images import check_split, data_root
from helpers.downloads import DownloadError, Source

MIRROR = "SIGHTLINE_CARS"


def load(split: str = "test", data_dir: str | Path | None = None, subset: str = "") -> Photographs:
    """The images of an official split, in the order of its annotations: 8,144 to train and 8,041 to test on, from the
    folder ``stanford_cars`` as torchvision keeps it::

        stanford_cars/cars_train/*.jpg                     stanford_cars/devkit/cars_meta.mat
        stanford_cars/cars_test/*.jpg                      stanford_cars/devkit/cars_train_annos.mat
        stanford_cars/cars_test_annos_withlabels.mat       (or in devkit/)

    If it is not there, from the archive (tar or zip) that the environment variable ``SIGHTLINE_CARS`` names, as
    ``<url>#sha256=<64 digits>`` or ``#md5=``. Or a ``subset`` that lies at hand: "subset20", 575 and 248 images of
    classes 1 to 20, cut out along their boxes; *all* are from the official training set, its split is not official.

    Raises `DownloadError` if the files cannot be had or are not what they should be, `ConfigError` for another subset.
    """
    check_split(split)
    facts = files.facts_of(data_config("cars"), subset)
    folder = data_root(data_dir) / facts["folder"]
    found = _subset(split, folder, facts, subset) if subset else _official(split, folder, facts)
    if len(found) != (expected := facts["splits"][split]["images"]):
        raise DownloadError(f"{folder} lists {len(found)} images of {split!r}, not {expected}: it is not as released")
    return found


def _subset(split: str, folder: Path, facts: dict[str, Any], subset: str) -> Photographs:
    files.verify(folder, facts["files"], f"Cars' {subset}", f"nor is the whole (set {MIRROR})", files.DRAWN)
    packs = {range(*_bounds(path.stem)): path for path in folder.glob("images_*.zip")}
    with (folder / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["is_train"] == "1") == (split == "train")]
    classes = [int(row["class_id"]) for row in rows]
    packed = [next(path for numbers, path in packs.items() if number in numbers) for number in classes]
    names = tuple(line.split(maxsplit=1)[1] for line in (folder / "classes.txt").read_text().splitlines())
    items = tuple((path, row["file"]) for path, row in zip(packed, rows, strict=True))
    return Photographs(items, torch.tensor(classes) - 1, names, open_member, upright=False)


def _bounds(name: str) -> tuple[int, int]:
    """The classes, first and last + 1, of the images in ``images_01-05``."""
    first, last = name.removeprefix("images_").split("-")
    return int(first), int(last) + 1


def _official(split: str, folder: Path, config: dict[str, Any]) -> Photographs:
    if not folder.exists():
        _from_mirror(folder)
    facts = config["splits"][split]
    annotations, meta = _find(folder, facts["annotations"]), _find(folder, config["classes"])
    photographs = _find(folder, facts["photographs"])
    rows = _mat(annotations, "annotations")
    try:
        items = tuple(photographs / str(row["fname"]) for row in rows)
        labels = torch.tensor([int(row["class"]) for row in rows]) - 1
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise DownloadError(f"{annotations} has no labels ({error}): the list with labels is needed") from error
    there = set(os.listdir(photographs))
    if absent := [path.name for path in items if path.name not in there]:
        raise DownloadError(f"{photographs} lacks {len(absent)} of {len(items)} images, the first is {absent[0]}")
    names = tuple(str(name) for name in _mat(meta, "class_names"))
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise DownloadError(f"{annotations} has labels that are none of the {len(names)} classes of {meta.name}")
    return Photographs(items, labels, names, open_file, upright=False)


def _find(folder: Path, name: str) -> Path:
    """A file or folder of the official release, where torchvision keeps it or in ``devkit``."""
    for path in (folder / name, folder / "devkit" / name):
        if path.exists():
            return path
    raise _absent(folder, f"no {name}", "nothing, a folder that is there is not replaced")


def _mat(path: Path, key: str) -> Any:
    from scipy.io import loadmat  # takes half a second, and only this data set needs it

    try:
        return loadmat(path, squeeze_me=True)[key].reshape(-1)
    except Exception as error:  # scipy has several of its own for files that are broken
        raise DownloadError(f"{path} is not the file of the release ({error}): replace it") from error


def _from_mirror(folder: Path) -> None:
    mirror = os.environ.get(MIRROR, "")
    if not mirror:
        raise _absent(folder, "not there", "nothing: its authors' site is gone, and no mirror is set")
    url, _, checksum = mirror.partition("#")
    kind, _, digits = checksum.partition("=")
    if kind not in ("sha256", "md5"):
        raise ConfigError(f"{MIRROR} must be <url>#sha256=<digits> or <url>#md5=<digits>, not {mirror!r}")
    files.download(parse(Source, {"url": url, kind: digits}), folder, files.DRAWN)


def _absent(folder: Path, what: str, tried: str) -> DownloadError:
    return DownloadError(
        f"Stanford Cars: {what} in {folder}\n"
        f"  tried: {tried}\n"
        "  by hand: put cars_train/, cars_test/, cars_test_annos_withlabels.mat and devkit/ (cars_meta.mat,\n"
        "  cars_train_annos.mat) there, as torchvision keeps them\n"
        f"  from a mirror: set {MIRROR}=<url of an archive of that folder>#sha256=<its sha256>\n"
        f"  without a download: {files.DRAWN}"
    )
