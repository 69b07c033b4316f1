"""Any folder of photographs with one sub-folder a class, with or without ``train`` and ``val`` above them.

So: ``pets/cat/1.jpg`` and ``pets/dog/7.png``, or ``pets/train/cat/1.jpg`` and ``pets/val/cat/2.jpg``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from helpers.config import ConfigError, data_config
from helpers.data.images import SPLITS, Decoded, Images, Preprocess, check_split, preprocess_of, resized

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
FOLDERS = {"train": ("train", "training"), "test": ("val", "valid", "validation", "test")}


def load(folder: str | Path, split: str = "test", size: int | None = None) -> Images:
    """The images under ``folder``, decoded on demand: uint8 [N, 3, size, size], the shorter side resized and the middle
    cut out; as input normalised as ImageNet's are.

    ``split`` "train" and "test" (a folder "val" will do) are the folders of these names, "all" is both. A folder
    without them has no "train", and all its images are "test". Classes are the sub-folders in alphabetical order,
    those of both splits together. Raises `ConfigError` if there is nothing of the kind.
    """
    folder = Path(folder).expanduser()
    check_split(split, (*SPLITS, "all"))
    parts = _parts(folder)
    wanted = [root for name, root in parts.items() if split in (name, "all")]
    if not wanted:
        where = f"{folder} has no {' or '.join(FOLDERS[split])} folder"
        raise ConfigError(f'{where}: split="all" takes all that is there, or sort the images into train/ and val/')
    classes = sorted({path.name for root in parts.values() for path in _classes(root)}, key=_natural)
    files = [
        (path, classes.index(sub.name))
        for root in wanted
        for sub in sorted(_classes(root), key=lambda path: _natural(path.name))
        for path in sorted(sub.rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not files:
        raise ConfigError(f"{folder} has no images of split {split!r}: one sub-folder a class is expected, in it files "
                          f"{', '.join(sorted(SUFFIXES))}")  # fmt: skip
    preprocess = preprocess_of(data_config("imagenette"), size)
    return lazily([path for path, _ in files], [label for _, label in files], classes, preprocess, _open)


def lazily(
    items: Sequence[Any],
    labels: Sequence[int],
    classes: Sequence[str],
    preprocess: Preprocess,
    opener: Callable[[Any], IO[bytes]],
) -> Images:
    """Images that are decoded on demand from the files that ``opener(item)`` opens."""
    decode = partial(_decode, opener=opener, size=preprocess.size)
    x = Decoded(tuple(items), decode, (3, preprocess.size, preprocess.size))
    return Images(x, torch.tensor(labels, dtype=torch.long), tuple(classes), preprocess)


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _decode(item: Any, *, opener: Callable[[Any], IO[bytes]], size: int) -> Tensor:
    """uint8 [3, size, size]: as `Preprocess.fit`, but by Pillow, on bytes. Raises ValueError with the file's name."""
    try:
        with opener(item) as file, Image.open(file) as image:
            image = ImageOps.exif_transpose(image).convert("RGB")  # upright; grey and palettes become colours
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{item} cannot be read as an image ({error}): repair or remove it") from error
    if min(image.size) != size:
        height, width = resized(image.height, image.width, size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _parts(folder: Path) -> dict[str, Path]:
    """The folder of each split that there is."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    found = {split: [folder / name for name in names if _classes(folder / name)] for split, names in FOLDERS.items()}
    return {split: roots[0] for split, roots in found.items() if roots} or {"test": folder}


def _classes(folder: Path) -> list[Path]:
    return [path for path in folder.glob("[!.]*") if path.is_dir()]


def _natural(name: str) -> list[Any]:
    """A key by which "2" comes before "10"."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]
