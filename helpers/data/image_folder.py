"""Any folder of photographs with one sub-folder a class, with or without ``train`` and ``val`` above them.

So: ``pets/cat/1.jpg`` and ``pets/dog/7.png``, or ``pets/train/cat/1.jpg`` and ``pets/val/cat/2.jpg``.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from helpers.config import ConfigError, data_config
from helpers.data.images import SPLITS, Decoded, Images, Preprocess, check_split, preprocess_of, resized

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
FOLDERS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}


@dataclass(frozen=True)
class Photographs:
    """Labelled photographs of any sizes, not opened yet.

    ``labels`` int64 [N] are indices into ``classes``; ``opener(item)`` opens the file of one of ``items``. ``upright``:
    pictures are turned as their EXIF data say (not where annotations are in pixels of what is stored).
    """

    items: tuple[Any, ...]
    labels: Tensor
    classes: tuple[str, ...]
    opener: Callable[[Any], IO[bytes]] = field(repr=False)
    upright: bool = True

    def __len__(self) -> int:
        return len(self.items)

    def open(self, row: int) -> Image.Image:
        """One of them, decoded, RGB. Raises `ConfigError` with the file's name if it is no image."""
        return picture(self.items[row], self.opener, self.upright)

    def size(self, row: int) -> tuple[int, int]:
        """(height, width) as stored, without decoding."""
        with _opened(self.items[row], self.opener) as image:
            return image.height, image.width


def load(folder: str | Path, split: str = "test", size: int | None = None) -> Images:
    """The images under ``folder``, decoded on demand: uint8 [N, 3, size, size], the shorter side resized and the middle
    cut out; as input normalised as ImageNet's are.

    ``split`` "train" and "test" (without one, a folder "val" will do) are the folders of these names, "all" is both. A
    folder without them has no "train", and all its images are "test". Classes are the sub-folders of both splits in
    natural order, "2" before "10": torchvision's ``ImageFolder`` has them as strings, "10" before "2". Raises
    `ConfigError` if there is nothing of the kind.
    """
    return lazily(photographs(folder, split), preprocess_of(data_config("imagenette"), size))


def photographs(folder: str | Path, split: str = "test", only: Sequence[str] = ()) -> Photographs:
    """What `load` reads, at its own sizes. ``only``: these classes and no others, in this order."""
    folder = Path(folder).expanduser()
    check_split(split, (*SPLITS, "all"))
    parts = _parts(folder)
    wanted = [root for name, root in parts.items() if split in (name, "all")]
    if not wanted:
        where = f"{folder} has no {' or '.join(FOLDERS[split])} folder"
        raise ConfigError(f'{where}: split="all" takes all that is there, or sort the images into train/ and val/')
    found = sorted({path.name for root in parts.values() for path in _classes(root)}, key=_natural)
    if absent := sorted(set(only) - set(found)):
        raise ConfigError(f"{folder} has no folder of class {', '.join(absent)}")
    classes = list(only) or found
    files = [
        (path, label)
        for root in wanted
        for label, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not files:
        raise ConfigError(f"{folder} has no images of split {split!r}: one sub-folder a class is expected, in it files "
                          f"{', '.join(sorted(SUFFIXES))}")  # fmt: skip
    labels = torch.tensor([label for _, label in files], dtype=torch.long)
    return Photographs(tuple(path for path, _ in files), labels, tuple(classes), open_file)


def lazily(photographs: Photographs, preprocess: Preprocess) -> Images:
    """Images that are decoded on demand."""
    decode = partial(_decode, opener=photographs.opener, upright=photographs.upright, size=preprocess.size)
    x = Decoded(photographs.items, decode, (3, preprocess.size, preprocess.size))
    return Images(x, photographs.labels, photographs.classes, preprocess)


def open_file(path: Path) -> IO[bytes]:
    return path.open("rb")


def picture(item: Any, opener: Callable[[Any], IO[bytes]], upright: bool = True) -> Image.Image:
    """The image in the file that ``opener(item)`` opens, RGB: grey (of 8 or 16 bits) and palettes become colours.
    Raises `ConfigError` for what cannot be read, and for pixels of 32 bits or floats, whose range is not known."""
    with _opened(item, opener) as image:
        if image.mode in ("I", "F"):
            raise ConfigError(f"{_name(item)} has pixels of 32 bits, whose range is not known: save them with 8 or 16")
        if image.mode.startswith("I;16"):  # Pillow would cut off what is above 255
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        return (ImageOps.exif_transpose(image) if upright else image).convert("RGB")


@contextmanager
def _opened(item: Any, opener: Callable[[Any], IO[bytes]]) -> Iterator[Image.Image]:
    try:
        with opener(item) as file, Image.open(file) as image:
            yield image
    except (OSError, KeyError, zipfile.BadZipFile, Image.DecompressionBombError) as error:
        raise ConfigError(f"{_name(item)} cannot be read as an image ({error}): repair or remove it") from error


def _name(item: Any) -> str:
    return "/".join(map(str, item)) if isinstance(item, tuple) else str(item)


def _decode(item: Any, *, opener: Callable[[Any], IO[bytes]], upright: bool, size: int) -> Tensor:
    """uint8 [3, size, size]: as `Preprocess.fit`, but by Pillow, on bytes."""
    image = picture(item, opener, upright)
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
