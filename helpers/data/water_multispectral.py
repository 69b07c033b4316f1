"""306 chips of 128 x 128 pixels in the six bands of Sen1Floods11, with masks of water; at hand only
(``data_configs/water_multispectral.yaml``)."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from helpers import downloads
from helpers.config import data_config
from helpers.data import files
from helpers.data.flood_chips import Chips
from helpers.data.sen1floods11 import HINT


def load() -> Chips:
    """All chips, named by their number. Raises `DownloadError` if the files are not at hand or not what they should
    be."""
    facts = data_config("water_multispectral")
    folder = downloads.data_root() / facts["folder"]
    files.verify(folder, facts["files"], facts["title"], "Sen1Floods11 is downloaded", HINT)
    splits = {
        split: tuple(f"{row:03d}" for row in range(of["first"], of["first"] + of["chips"]))
        for split, of in facts["splits"].items()
    }
    return Chips(facts["name"], facts["side"], splits, partial(_read, folder), facts["name"])


def _read(folder: Path, chip: str) -> tuple[np.ndarray, np.ndarray]:
    for name in data_config("water_multispectral")["files"]:
        first, last = map(int, Path(name).stem.removeprefix("chips_").split("-"))
        if first <= int(chip) <= last:
            images, masks = _open(folder / name)
            return images[int(chip) - first], masks[int(chip) - first].astype(np.int8)
    raise IndexError(chip)


@lru_cache(maxsize=2)  # 13 MB each; chips are read in their order
def _open(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as file:
        return file["image"], file["label"]
