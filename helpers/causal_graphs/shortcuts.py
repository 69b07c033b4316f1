"""A shortcut that is planted on purpose, so that a repair can be proved: a mark in a corner of most images of one class
(spec explainnn, section 7.5, experiment E9)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from helpers import runtime
from helpers.causal_graphs.presets import Training
from helpers.data.images import Images

SHARE = 8  # the mark's side is the image's divided by this, and its distance from both edges a quarter of that


def stamp(x: Tensor) -> Tensor:
    """A copy of ``x`` float32 [B, C, H, W] in [0, 1] with the mark in the upper left corner: a square, white on grey
    images (4 x 4 of 32 x 32 pixels) and magenta on coloured ones."""
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"expected float32 of shape [B, C, H, W], not {x.dtype} {tuple(x.shape)}")
    side = max(2, min(x.shape[2:]) // SHARE)
    inset = max(1, side // 4)
    colour = torch.ones(x.shape[1], 1, 1, dtype=x.dtype, device=x.device)
    if len(colour) == 3:
        colour[1] = 0
    marked = x.clone()
    marked[:, :, inset : inset + side, inset : inset + side] = colour
    return marked


def marked_inputs(images: Images, rows: slice | Sequence[int] | Tensor | None = None) -> Tensor:
    """`Images.inputs` with the mark on every image: float32 [n, C, size, size]."""
    chosen, preprocess = images if rows is None else images[rows], images.preprocess
    return preprocess.normalise(stamp(preprocess.fit(preprocess.unit(chosen.x[slice(None)]))))


def carriers(y: Tensor, training: Training, seed: int) -> Tensor:
    """bool [N]: the training images with labels ``y`` [N] that carry the mark, drawn once for a fit: ``shortcut_share``
    of class ``shortcut_class``; none without a shortcut."""
    chosen = torch.zeros(len(y), dtype=torch.bool)
    if training.shortcut:
        rows = (y == training.shortcut_class).nonzero()[:, 0]
        order = torch.randperm(len(rows), generator=runtime.generator(seed, "shortcut"))
        chosen[rows[order[: round(training.shortcut_share * len(rows))]]] = True
    return chosen
