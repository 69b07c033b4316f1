"""The features of the frozen encoder, computed once and kept on disk in half precision: an epoch trains the head alone.

A file holds the features of some tiles, one after the other and nothing else, so that its length says how far it came:
a pass that was cut off goes on. Rows are read as they are asked for; of the whole of Sen1Floods11 (2.7 GB) no more than
a batch is ever in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn
from tqdm.auto import tqdm

from helpers import artifacts
from helpers.data.flood_chips import Tiles

CHUNK = 8  # tiles that go through the encoder together

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """Features float16 [N, C, h, w] in a file, and the masks int8 [N, side, side] of the same tiles."""

    path: Path
    shape: tuple[int, int, int]
    masks: Tensor

    def __len__(self) -> int:
        return len(self.masks)

    def features(self, rows: Tensor) -> Tensor:
        """float16 [n, C, h, w]."""
        found = np.empty((len(rows), *self.shape), np.float16)
        with self.path.open("rb", buffering=0) as file:
            for place, row in enumerate(rows.tolist()):
                file.seek(row * found[0].nbytes)
                if file.readinto(found[place].reshape(-1).view(np.uint8)) != found[0].nbytes:
                    raise artifacts.ArtifactError(f"{self.path} ends before tile {row}: delete it and run again")
        return torch.from_numpy(found)


def store(
    tiles: Tiles,
    encoder: Callable[[], nn.Module],
    shape: tuple[int, int, int],
    path: Path,
    device: torch.device,
    progress: bool = False,
) -> Stored:
    """The features of ``tiles``, of which those are computed that ``path`` does not hold yet; ``shape`` is that of one
    tile's, and ``encoder`` is asked for only where some are missing. Fits side by side wait for each other.

    Raises `ArtifactError` for a file of another length.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 2 * int(np.prod(shape))
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            _write(tiles, encoder().to(device), path, size, device, progress)
    if path.stat().st_size != size * len(tiles):
        raise artifacts.ArtifactError(
            f"{path} has {path.stat().st_size:,} bytes, not {size * len(tiles):,}: delete it and run again"
        )
    return Stored(path, shape, torch.from_numpy(tiles.masks()))


def _write(tiles: Tiles, encoder: nn.Module, path: Path, size: int, device: torch.device, progress: bool) -> None:
    part = path.with_suffix(".part")
    done = part.stat().st_size // size if part.exists() else 0
    log.info("features of %d tiles: %s", len(tiles) - done, path.name)
    rest = tiles.at(range(done, len(tiles)))
    bar = tqdm(total=len(tiles), initial=done, desc=path.name, unit="tile", leave=False, disable=not progress)
    with part.open("r+b" if part.exists() else "wb") as file, torch.inference_mode():
        file.truncate(done * size)  # a tile that was half written
        file.seek(done * size)
        for images, _ in rest.batches(CHUNK):
            found = encoder(torch.from_numpy(images).to(device).float()).half().cpu()
            file.write(found.numpy().tobytes())
            bar.update(len(found))
    bar.close()
    part.replace(path)
