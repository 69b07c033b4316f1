"""Chips of satellite images with masks of water, whatever their source, and the tiles that they are cut in.

Reflectances are int16, times 10,000, in six bands: blue, green, red, narrow NIR, SWIR1, SWIR2. A mask is int8: -1 no
data, 0 dry, 1 water. Chips stay on disk and are read when they are asked for (spec pinets, section 6.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from helpers import config
from helpers.config import ConfigError, suggest
from helpers.downloads import DownloadError

BANDS = ("blue", "green", "red", "narrow NIR", "SWIR1", "SWIR2")
CLASSES = (-1, 0, 1)
NO_DATA, DRY, WATER = CLASSES
DRAWN = "water_scenes"  # by the program: may be given away, as may what was learned from them
SETS = ("sen1floods11", "sen1floods11/hand18", "water_multispectral", DRAWN)

Read = Callable[[str], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Chips:
    """A data set. ``read(chip)`` gives (int16 [6, side, side], int8 [side, side]) of a chip in ``splits``;
    ``identity`` is digested into the names of what is computed from it."""

    name: str
    side: int
    splits: Mapping[str, tuple[str, ...]]
    read: Read
    identity: str

    def split(self, name: str) -> tuple[str, ...]:
        """The chips of a split. Raises `ConfigError` for one that there is not."""
        if name not in self.splits:
            raise ConfigError(f"{self.name} has no split {name!r}: {suggest(name, self.splits)}")
        return self.splits[name]

    def pair(self, chip: str) -> tuple[np.ndarray, np.ndarray]:
        """What `read` gives, checked. Raises `DownloadError` for a chip that is not what it should be."""
        image, mask = self.read(chip)
        if image.shape != (len(BANDS), self.side, self.side):
            expected = f"{len(BANDS)} bands of {self.side} x {self.side}"
            raise DownloadError(f"{self.name}: the image of {chip} is {image.shape}, not {expected}")
        if mask.shape != image.shape[1:]:
            raise DownloadError(f"{self.name}: the mask of {chip} is {mask.shape}, its image {image.shape[1:]}")
        if not np.isin(mask, CLASSES).all():
            raise DownloadError(f"{self.name}: the mask of {chip} holds {np.unique(mask)[:5]}, not -1, 0 and 1 alone")
        return image.astype(np.int16, copy=False), mask.astype(np.int8, copy=False)


def load(name: str, **options: Any) -> Chips:
    """A data set by its name, one of `SETS`; ``options`` are those of its loader. Raises `ConfigError` for another
    name, `DownloadError` if it cannot be had."""
    if name not in SETS:
        raise ConfigError(f"unknown data set {name!r}: {suggest(name, SETS)}")
    from helpers.data import sen1floods11, water_multispectral, water_scenes

    module, _, subset = name.partition("/")
    loaders = {"water_multispectral": water_multispectral.load, "water_scenes": water_scenes.load}
    if module in loaders:
        return loaders[module](**options)
    return sen1floods11.load(subset=subset, **options)


# ----------------------------------------------------------------------------------------------------- tiles


def cut(chip: np.ndarray, side: int) -> np.ndarray:
    """[..., H, W] in tiles [n, ..., side, side], row by row: of a chip of two tiles a side top left, top right, bottom
    left, bottom right. Nothing is resampled. Raises ``ValueError`` if they do not fit."""
    *leading, height, width = chip.shape
    if height % side or width % side:
        raise ValueError(f"{height} x {width} pixels cannot be cut in tiles of {side}")
    blocks = chip.reshape(*leading, height // side, side, width // side, side)
    blocks = np.moveaxis(blocks, (-4, -2), (0, 1))
    return blocks.reshape(-1, *leading, side, side)


def merge(tiles: np.ndarray) -> np.ndarray:
    """The square chip [..., H, W] of its tiles [n, ..., side, side], as `cut` orders them."""
    n, *leading, side, _ = tiles.shape
    across = round(n**0.5)
    if across**2 != n:
        raise ValueError(f"{n} tiles make no square")
    blocks = np.moveaxis(tiles.reshape(across, across, *leading, side, side), (0, 1), (-4, -2))
    return blocks.reshape(*leading, across * side, across * side)


@dataclass(frozen=True)
class Tiles:
    """Tiles of chips, read as they are asked for: ``places`` are (chip, number of its tile)."""

    chips: Chips
    side: int
    places: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(int16 [6, side, side], int8 [side, side])."""
        chip, number = self.places[row]
        images, masks = _tiles_of(self.chips, self.side, chip)
        return images[number], masks[number]

    def masks(self) -> np.ndarray:
        """int8 [N, side, side] of all: a quarter of a megabyte for four tiles of 256 pixels."""
        found = np.empty((len(self), self.side, self.side), np.int8)
        for row in range(len(self)):
            found[row] = self[row][1]
        return found

    def at(self, rows: Sequence[int]) -> Tiles:
        return Tiles(self.chips, self.side, tuple(self.places[row] for row in rows))

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(int16 [B, 6, side, side], int8 [B, side, side]) of all, in order."""
        for start in range(0, len(self), size):
            pairs = [self[row] for row in range(start, min(start + size, len(self)))]
            yield np.stack([image for image, _ in pairs]), np.stack([mask for _, mask in pairs])

    def digest(self) -> str:
        return config.digest([self.chips.identity, self.side, self.places])


@lru_cache(maxsize=4)  # neighbouring tiles are asked for one after the other
def _tiles_of(chips: Chips, side: int, chip: str) -> tuple[np.ndarray, np.ndarray]:
    image, mask = chips.pair(chip)
    return cut(image, side), cut(mask, side)


def tiles(chips: Chips, names: Sequence[str], side: int) -> Tiles:
    """The tiles of some chips. Raises `ConfigError` if ``side`` does not divide theirs."""
    if side < 1 or chips.side % side:
        raise ConfigError(f"tiles of {side} pixels do not fill chips of {chips.side}")
    each = (chips.side // side) ** 2
    return Tiles(chips, side, tuple((name, number) for name in names for number in range(each)))


def released_split(n_tiles: int, seed: int = 2025, share: float = 0.2) -> tuple[list[int], list[int]]:
    """(training, validation) rows as the bundle draws them, tile by tile: of one chip some tiles fall on either side
    (spec pinets, section 6.1). Kept to be compared with; whole chips are split by the official lists."""
    chosen = set(np.random.RandomState(seed).choice(n_tiles, int(share * n_tiles), replace=False).tolist())
    return [row for row in range(n_tiles) if row not in chosen], sorted(chosen)


def statistics(of: Tiles, *, known_only: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(mean, unbiased standard deviation) of each band, float64 [6], over the pixels of ``of``, tile by tile.

    ``known_only`` leaves out pixels that are 0 in all bands, where there is no data. Raises ``ValueError`` without two
    pixels to go by.
    """
    count, mean, squares = 0, np.zeros(len(BANDS)), np.zeros(len(BANDS))
    for row in range(len(of)):
        values = of[row][0].reshape(len(BANDS), -1).astype(np.float64)
        if known_only:
            values = values[:, values.any(0)]
        if n := values.shape[1]:  # Chan's way of joining two variances
            own = values.mean(1)
            delta = own - mean
            squares += ((values - own[:, None]) ** 2).sum(1) + delta**2 * count * n / (count + n)
            mean += delta * n / (count + n)
            count += n
    if count < 2:
        raise ValueError("there are no pixels with data to take statistics of")
    return mean, np.sqrt(squares / (count - 1))
