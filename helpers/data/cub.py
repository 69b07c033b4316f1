"""CUB-200-2011: 11,788 photographs of 200 species of birds, with 15 part locations and a box each
(``data_configs/cub.yaml``; spec pixpnet, section 7)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from helpers.archives import open_member
from helpers.config import data_config
from helpers.data import files
from helpers.data.image_folder import Photographs, open_file
from helpers.data.images import data_root
from helpers.downloads import DownloadError, Source


@dataclass(frozen=True)
class Cub:
    """All images in the order of ``images.txt``, those to train on and those to test on.

    ``photographs`` are the N images, not opened yet; ``ids`` int64 [N] the official ones; ``is_train`` bool [N] is the
    official split; ``boxes`` float64 [N, 4] are x, y, width, height. ``locations`` float64 [N, 15, 2] (x, y) and
    ``visible`` bool [N, 15] are the annotations; ``part_of`` int64 [15] says which of the 12 ``part_names`` each of
    them shows (there are two of eye, leg and wing). All in pixels of the images as they are stored; ``sizes`` int64
    [N, 2] (height, width) are these, ``original_sizes`` those before a subset was scaled down. Both are None of the
    official whole, which has no such list: ask `size`.
    """

    photographs: Photographs
    ids: Tensor
    is_train: Tensor
    boxes: Tensor
    locations: Tensor
    visible: Tensor
    part_of: Tensor
    part_names: tuple[str, ...]
    sizes: Tensor | None = None
    original_sizes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def size(self, row: int) -> tuple[int, int]:
        """(height, width) of an image as stored; from the head of its file if no list tells it."""
        return self.photographs.size(row) if self.sizes is None else tuple(self.sizes[row].tolist())


def load(data_dir: str | Path | None = None, subset: str = "") -> Cub:
    """The official whole, from ``CUB_200_2011`` or else downloaded (1.1 GB), or a ``subset`` that lies at hand:
    "subset20", the 1,115 images of classes 1 to 20, scaled down to a shorter side of 256 pixels.

    Raises `DownloadError` if the files cannot be had or are not what they should be, `ConfigError` for another subset.
    """
    config = data_config("cub")
    facts = files.facts_of(config, subset)
    folder = data_root(data_dir) / facts["folder"]
    if subset:
        files.verify(folder, facts["files"], f"CUB's {subset}", "the whole is downloaded", files.DRAWN)
    elif not folder.exists():
        files.download(Source(**config["archive"]), folder, files.DRAWN)
    cub = _read(folder, config["parts"])
    n_train = int(cub.is_train.sum())
    found, splits = (n_train, len(cub) - n_train), facts["splits"]
    if found != (expected := (splits["train"]["images"], splits["test"]["images"])):
        raise _broken(folder, f"it lists {found[0]} images to train and {found[1]} to test on, not {expected}")
    return cub


def _read(folder: Path, parts: dict[str, list[int]]) -> Cub:
    """The lists of ``folder``, in the official format. Images may lie in stored zips, one a class."""
    names, classes = _names(folder / "images.txt"), _names(folder / "classes.txt")
    ids = torch.tensor(list(names))

    def table(name: str, columns: int, times: int = 1) -> Tensor:
        return _table(folder / name, ids, columns, times)

    annotations = table("parts/part_locs.txt", 4, times=sum(map(len, parts.values())))
    part_of = {number: part for part, numbers in enumerate(parts.values()) for number in numbers}
    sizes = table("sizes.txt", 4)[:, 0].long() if (folder / "sizes.txt").exists() else None
    labels = table("image_class_labels.txt", 1).flatten().long() - 1
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise _broken(folder / "image_class_labels.txt", f"there are {len(classes)} classes")
    return Cub(
        photographs=Photographs(
            items=tuple(_item(folder / "images", name) for name in names.values()),
            labels=labels,
            classes=tuple(name.split(".", 1)[-1].replace("_", " ") for name in classes.values()),
            opener=_open,
            upright=False,
        ),
        ids=ids,
        is_train=table("train_test_split.txt", 1).flatten().bool(),
        boxes=table("bounding_boxes.txt", 4)[:, 0],
        locations=annotations[..., 1:3],
        visible=annotations[..., 3].bool(),
        part_of=torch.tensor([part_of[number] for number in sorted(part_of)]),
        part_names=tuple(parts),
        sizes=sizes[:, [1, 0]] if sizes is not None else None,
        original_sizes=sizes[:, [3, 2]] if sizes is not None else None,
    )


def _item(folder: Path, name: str) -> Any:
    """Where an image lies: a file, or (zip, name there)."""
    packed = folder / f"{name.split('/')[0]}.zip"
    return (packed, name) if packed.exists() else folder / name


def _open(item: Any) -> IO[bytes]:
    return open_member(item) if isinstance(item, tuple) else open_file(item)


def _names(path: Path) -> dict[int, str]:
    """``<number> <name>`` a line."""
    try:
        pairs = [line.split(maxsplit=1) for line in path.read_text().splitlines()]
        return {int(number): name.strip() for number, name in pairs}
    except (OSError, ValueError) as error:
        raise _broken(path, error) from error


def _table(path: Path, ids: Tensor, columns: int, times: int) -> Tensor:
    """float64 [N, times, columns]: ``<id>`` and so many numbers a line, ``times`` lines for each of ``ids``."""
    try:
        rows = torch.from_numpy(np.loadtxt(path, ndmin=2)).unflatten(0, (len(ids), times))
    except (OSError, ValueError, RuntimeError) as error:
        raise _broken(path, error) from error
    if rows.shape[2] != columns + 1 or not (rows[..., 0] == ids[:, None]).all():
        raise _broken(path, "its lines are not those of images.txt")
    return rows[..., 1:]


def _broken(path: Path, why: object) -> DownloadError:
    return DownloadError(f"{path} is not as released ({why}): delete the folder of the data set and run again")
