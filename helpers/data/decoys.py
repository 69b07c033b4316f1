"""Decoy squares: in training, a corner of the image gives its label away; in a test it says nothing (spec cnn_lsx,
section 5)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from helpers import runtime
from helpers.data.images import Images

SIDE = 4  # pixels of the square
VALUES = 10  # d is one of 0 ... 9
BRIGHTEST, STEP = 255, 25  # of 255: the square's grey is BRIGHTEST - STEP * d


@dataclass(frozen=True)
class Decoyed:
    """``images`` with a square in a corner of each. ``mask`` bool [N, H, W] are the square's pixels, ``strokes`` bool
    [N, H, W] the others that are brighter than 1 of 255; ``values`` int64 [N] is the d of each square."""

    images: Images
    mask: Tensor
    strokes: Tensor
    values: Tensor


def paint(images: Images, seed: int, *, test: bool) -> Decoyed:
    """``images``, uint8 or float32 in [0, 1] [N, C, H, W], with 4 x 4 pixels in a corner set to ``255 - 25 d`` of 255.

    Each image's corner is drawn on its own; its d is the label in training and drawn too in a ``test``. Raises
    ValueError for more than ten classes: there are no more greys.
    """
    if len(images.classes) > VALUES:
        raise ValueError(f"a decoy can tell {VALUES} classes apart, not {len(images.classes)}")
    draws = runtime.generator(seed, "decoy", "test" if test else "train")
    far = torch.randint(2, (len(images), 2), generator=draws)
    values = torch.randint(VALUES, (len(images),), generator=draws) if test else images.y

    height, width = images.x.shape[2:]
    mask = _span(far[:, 0], height)[:, :, None] & _span(far[:, 1], width)[:, None, :]
    pixels, grey = images.x[slice(None)], BRIGHTEST - STEP * values
    byte = pixels.dtype == torch.uint8
    grey = grey.to(torch.uint8) if byte else grey.float() / 255
    strokes = (pixels > (1 if byte else 1 / 255)).any(1) & ~mask
    painted = torch.where(mask[:, None], grey[:, None, None, None], pixels)
    return Decoyed(replace(images, x=painted), mask, strokes, values)


def _span(far: Tensor, size: int) -> Tensor:
    """bool [N, size]: the first pixels of a side, or its last ones where ``far`` [N] is 1."""
    distance = torch.arange(size) - far[:, None] * (size - SIDE)
    return (distance >= 0) & (distance < SIDE)
