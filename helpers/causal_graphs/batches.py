"""What a classifier is trained on: the training images, in the order, in the parts and with the marks of its seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import runtime
from helpers.causal_graphs import shortcuts
from helpers.causal_graphs.presets import Training
from helpers.config import ConfigError
from helpers.data.images import Images, Preprocess

MARGIN = 8 / 7  # what photographs are stored at, in sizes of the input, for random parts to be cut out of them


@dataclass(frozen=True)
class TrainingSet:
    """All training images, ``x`` uint8 [N, C, H, W], ``y`` int64 [N], and which are ``marked``, bool [N]; ``fitting``
    and ``held_out`` are the rows to fit and those to choose the epoch by."""

    x: Tensor
    y: Tensor
    marked: Tensor
    fitting: Tensor
    held_out: Tensor
    preprocess: Preprocess
    training: Training
    seed: int

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(x float32 [B, C, size, size], y int64 [B]) of an epoch, a function of the epoch alone."""
        order = torch.randperm(len(self.fitting), generator=runtime.generator(self.seed, "order", epoch))
        draws = runtime.generator(self.seed, "augment", epoch)
        for rows in self.fitting[order.to(self.fitting.device)].split(self.training.batch_size):
            x = self.preprocess.unit(self.x[rows])
            if self.training.augment == "crop-flip":
                x = random_parts(x, self.preprocess.size, self.training.min_area, draws)
            yield self._input(x, rows), self.y[rows]

    def validator(self, chunk: int = 500) -> Callable[[nn.Module, float], float]:
        """Accuracy on the held-out rows, which carry the mark as often as the others do."""

        def evaluate(model: nn.Module, best: float) -> float:
            right = 0
            for rows in self.held_out.split(chunk):
                logits = model(self._input(self.preprocess.unit(self.x[rows]), rows))
                right += int((logits.argmax(1) == self.y[rows]).sum())
            return right / len(self.held_out)

        return evaluate

    def _input(self, x: Tensor, rows: Tensor) -> Tensor:
        """``x`` float32 in [0, 1] of ``rows`` at the input's size, marked where they are, then normalised."""
        x, marked = self.preprocess.fit(x), self.marked[rows]
        if marked.any():
            x = torch.where(marked[:, None, None, None], shortcuts.stamp(x), x)
        return self.preprocess.normalise(x).contiguous(memory_format=torch.channels_last)


def training_set(
    images: Images, preprocess: Preprocess, training: Training, seed: int, where: torch.device
) -> TrainingSet:
    """The `TrainingSet` of a fit on the device ``where``; every image is decoded once. Raises `ConfigError` if there is
    nothing to hold out, or no such class to mark."""
    if training.shortcut and training.shortcut_class >= len(images.classes):
        raise ConfigError(f"there is no class {training.shortcut_class} to mark: there are {len(images.classes)}")
    fitting, held_out = split(len(images), training.validation, seed)
    marked = shortcuts.carriers(images.y, training, seed)
    tensors = (images.x[slice(None)], images.y, marked, fitting, held_out)
    return TrainingSet(*(tensor.to(where) for tensor in tensors), preprocess, training, seed)


def stored_size(size: int, training: Training) -> int:
    """Pixels a side at which images are stored for inputs of ``size``: larger where parts are cut out of them."""
    return math.ceil(size * MARGIN) if training.augment != "none" else size


def split(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """(rows to fit, rows held out), int64, of ``n`` images; ``share`` of them is held out, drawn with ``seed``."""
    order, held_out = torch.randperm(n, generator=runtime.generator(seed, "held out")), round(share * n)
    if not 0 < held_out < n:
        raise ConfigError(f"a validation share of {share} divides {n} images into {n - held_out} and {held_out}")
    return order[held_out:], order[:held_out]


def random_parts(x: Tensor, size: int, min_area: float, generator: torch.Generator) -> Tensor:
    """A random part of each of ``x`` float32 [B, C, H, W], resized (bilinear) to [B, C, size, size] and mirrored half
    the time. Its area is uniform in [min_area, 1] of the image's, the ratio of its sides log-uniform in [3/4, 4/3], as
    far as that fits (after arXiv 1409.4842)."""
    n, draws = len(x), torch.rand(5, len(x), generator=generator)
    area, ratio = min_area + (1 - min_area) * draws[0], (4 / 3) ** (2 * draws[1] - 1)
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(n, 2, 3)  # from the output's coordinates to the image's, both in [-1, 1]
    theta[:, 0, 0] = torch.where(draws[4] < 0.5, -width, width)
    theta[:, 1, 1] = height
    theta[:, 0, 2], theta[:, 1, 2] = (2 * draws[2] - 1) * (1 - width), (2 * draws[3] - 1) * (1 - height)
    grid = F.affine_grid(theta.to(x.device), [n, x.shape[1], size, size], align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
