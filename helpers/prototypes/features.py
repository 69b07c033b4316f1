"""The features of a backbone that never learns, computed once and kept on disk: of every training image a few augmented
copies and itself. An epoch then costs seconds; which copies it sees turns with the epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from helpers.prototypes.batches import Part

CHUNK = 64  # images that go through the backbone together

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """A split of features, with the methods of a split of images. ``plain`` float32 [M, C, Hz, Wz] are those of the
    images as they are tested, exact, so that what is projected onto them lies on them; ``variants`` float16, of
    augmented copies."""

    labels: Tensor
    indices: Tensor
    plain: np.ndarray
    variants: tuple[np.ndarray, ...] = ()
    rows: Tensor | None = None  # places of the N images in the arrays; None: their own order

    def select(self, indices: Tensor) -> Stored:
        """The images with these official ``indices``."""
        places = {index: place for place, index in enumerate(self.indices.tolist())}
        rows = torch.tensor([places[index] for index in indices.tolist()])
        return Stored(self.labels[rows], indices, self.plain, self.variants, rows)

    def inputs(self, rows: Tensor) -> Tensor:
        """float32 [n, C, Hz, Wz]."""
        return torch.from_numpy(self.plain[self._places(rows).numpy()])

    def augmented(self, rows: Tensor, seed: int, epoch: int, repeat: int | Tensor = 0) -> Tensor:
        """Those of variant (epoch + repeat) mod V, ``repeat`` one for all ``rows`` or int64 [n]; without variants, of
        the images as they are. ``seed`` is that of the variants, whatever it is here."""
        if not self.variants:
            return self.inputs(rows)
        turns = (epoch + torch.as_tensor(repeat).expand(len(rows))) % len(self.variants)
        places = self._places(rows).tolist()
        found = [self.variants[turn][place] for turn, place in zip(turns.tolist(), places, strict=True)]
        return torch.from_numpy(np.stack(found)).float()

    def _places(self, rows: Tensor) -> Tensor:
        return rows if self.rows is None else self.rows[rows]


def store(part: Part, backbone: nn.Module, folder: Path, device: torch.device, *, seed: int, variants: int) -> Stored:
    """Compute the features of ``part`` that are not in ``folder`` yet, one file a variant, and open them all. Fits side
    by side wait for each other's."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone = backbone.to(device).eval()
    rows = torch.arange(len(part.labels)).split(CHUNK)

    def features(inputs: Callable[[Tensor], Tensor]) -> Iterable[Tensor]:
        with torch.inference_mode():
            for some in rows:
                yield backbone(inputs(some).to(device)).float()

    def kept(name: str, dtype: type, inputs: Callable[[Tensor], Tensor]) -> np.ndarray:
        path = folder / f"{name}.npy"
        with FileLock(folder / ".lock"):
            if not path.exists():
                log.info("features of %d images: %s", len(part.labels), path.name)
                _write(path, features(inputs), len(part.labels), dtype)
        return np.load(path, mmap_mode="r")

    copies = [
        kept(f"variant_{v}", np.float16, lambda some, v=v: part.augmented(some, seed, v)) for v in range(variants)
    ]
    return Stored(part.labels, part.indices, kept("plain", np.float32, part.inputs), tuple(copies))


def _write(path: Path, parts: Iterable[Tensor], n: int, dtype: type) -> None:
    """An array [n, ...] of ``parts`` one after the other; the file has its name only when it is whole."""
    partial, array, at = path.with_suffix(".partial"), None, 0
    for part in parts:
        values = part.cpu().numpy()
        if array is None:
            array = np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=(n, *values.shape[1:]))
        array[at : at + len(values)] = values
        at += len(values)
    array.flush()
    partial.replace(path)
