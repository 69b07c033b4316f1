"""What a network is fed with: the batches of an epoch, and the images of a split as they are tested.

All are pure functions of the epoch, so that a run that was cut off meets the same ones again. What a batch holds are
images, or a frozen backbone's output where that is kept (`helpers.prototypes.features`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from helpers import runtime
from helpers.prototypes.sets import ahead

DEBUG_BATCHES = 3  # of each split


class Part(Protocol):
    """A split: of images (`helpers.prototypes.sets.Part`) or of features (`helpers.prototypes.features.Stored`)."""

    labels: Tensor
    indices: Tensor

    def inputs(self, rows: Tensor) -> Tensor: ...

    def augmented(self, rows: Tensor, seed: int, epoch: int, repeat: int | Tensor = 0) -> Tensor: ...


@dataclass(frozen=True)
class Batches:
    """Batches of ``size`` images on ``device``. Of several processes, ``rank`` of ``world`` gets its share of each
    batch of an epoch. ``limit``: batches of a pass, if not all. While a GPU computes, threads make what comes next.
    """

    size: int
    seed: int
    device: torch.device
    factor: int = 1
    limit: int | None = None
    rank: int = 0
    world: int = 1

    def epoch(self, part: Part, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, labels) of ``epoch`` (from 1): every image ``factor`` times, each time augmented anew, in random
        order; the last batch is left out if it is smaller than the others."""
        draws = torch.randperm(len(part.labels) * self.factor, generator=runtime.generator(self.seed, "order", epoch))
        full = len(draws) // self.size * self.size or len(draws) // self.world * self.world

        def batch(chunk: Tensor) -> tuple[Tensor, Tensor]:
            own = chunk[self.rank :: self.world]
            rows = own % len(part.labels)
            return part.augmented(rows, self.seed, epoch, own // len(part.labels)), part.labels[rows]

        for x, labels in self._ahead(batch, draws[:full].split(self.size)):
            yield self._moved(x), self._moved(labels)

    def plain(self, part: Part, size: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(inputs, labels, indices in the official set) of all images in their order, not augmented."""

        def batch(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return part.inputs(rows), part.labels[rows], part.indices[rows]

        for x, labels, indices in self._ahead(batch, torch.arange(len(part.labels)).split(size or self.size)):
            yield self._moved(x), self._moved(labels), indices

    def _ahead(self, batch: Callable[[Tensor], tuple[Tensor, ...]], chunks: Sequence[Tensor]) -> Iterator[Any]:
        return ahead(batch, chunks[: self.limit], torch.get_num_threads() if self.device.type == "cuda" else 0)

    def _moved(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda" and not tensor.is_cuda:
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
