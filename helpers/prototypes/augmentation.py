"""The random changes of training images (spec pixpnet, section 7; the recipe is credited there to FGVC-PIM).

`draw` decides, `augment` does. What is drawn is a function of (seed, epoch, repeat, image) alone, so an image looks the
same in whatever batch, order or thread it comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import runtime
from helpers.prototypes.pipelines import Box, Pipeline, to_input_size, transforms

BLUR, SHARPEN, WARP, FLIP = 0.1, 0.1, 1 / 3, 0.5  # probabilities; WARP is that of each of the three
SIGMA, TAPS = (0.1, 5.0), 5  # of the blur [pixels]
SHARPNESS = 1.5
DEGREES, DISTORTION, SHEAR = 15.0, 0.2, 10.0
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of the crop: share of the area, width to height
ATTEMPTS = 10  # at a crop that fits
NUMBERS = 64  # random ones an image, more than are ever used

Between = Callable[[float, float], float]
"""A draw from a range."""
Corners = tuple[tuple[int, int], ...]
"""(x, y) of the top left one and on clockwise."""


@dataclass(frozen=True)
class Draws:
    """What is done to one image, in this order; None and False leave it out. ``sigma`` of the blur [pixels]; ``angle``
    anti-clockwise and ``shear`` along x [degrees]; ``corners``: where those of the image go; ``crop``: what is cut out,
    in pixels of the image, padded if it is."""

    sigma: float | None = None
    sharpen: bool = False
    angle: float | None = None
    corners: Corners | None = None
    shear: float | None = None
    flip: bool = False
    crop: Box | None = None


def draw(height: int, width: int, pipeline: Pipeline, seed: int, epoch: int, repeat: int, index: int) -> Draws:
    """What is done to image ``index``, of this size after its first resize, in this epoch and repeat."""
    stream = runtime.generator(seed, "augmentation", epoch, repeat, index)
    numbers = iter(torch.rand(NUMBERS, generator=stream, dtype=torch.float64).tolist())

    def between(low: float, high: float) -> float:
        return low + (high - low) * next(numbers)

    def happens(probability: float) -> bool:
        return next(numbers) < probability

    # everything is drawn, used or not: one choice does not move the numbers of the others
    sigma, angle, shear = between(*SIGMA), between(-DEGREES, DEGREES), between(-SHEAR, SHEAR)
    corners = _corners(height, width, between)
    return Draws(
        sigma=sigma if happens(BLUR) else None,
        sharpen=happens(SHARPEN),
        angle=angle if happens(WARP) else None,
        corners=corners if happens(WARP) else None,
        shear=shear if happens(WARP) else None,
        flip=happens(FLIP),
        crop=_crop(height, width, pipeline, between),
    )


def augment(pixels: Tensor, draws: Draws, pipeline: Pipeline) -> Tensor:
    """uint8 [3, H, W], after its first resize, to [3, S, S]; where a warp looks beyond the image it finds black.

    Each warp is a resampling (bilinear) of its own, as in the original; up to three in one would be a fifth cheaper,
    but would bring back what left the image in between.
    """
    ops = transforms()
    height, width = pixels.shape[1:]
    bilinear = ops.InterpolationMode.BILINEAR
    if draws.sigma is not None:
        pixels = _blur(pixels, draws.sigma)
    if draws.sharpen:
        pixels = ops.adjust_sharpness(pixels, SHARPNESS)
    if draws.angle is not None:
        pixels = ops.rotate(pixels, draws.angle, interpolation=bilinear)
    if draws.corners is not None:
        start = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
        pixels = ops.perspective(pixels, start, [list(corner) for corner in draws.corners], interpolation=bilinear)
    if draws.shear is not None:
        pixels = ops.affine(pixels, 0.0, [0, 0], 1.0, [draws.shear, 0.0], interpolation=bilinear)
    if draws.flip:
        pixels = ops.horizontal_flip(pixels)
    if draws.crop:
        left, top, right, bottom = draws.crop
        pixels = F.pad(pixels, [pipeline.padding] * 4)[:, top:bottom, left:right]
        pixels = ops.resize(pixels, [pipeline.crop, pipeline.crop], antialias=True)
    return to_input_size(pixels, pipeline)


def _corners(height: int, width: int, between: Between) -> Corners:
    """Each corner moves inwards by up to ``DISTORTION`` of half a side, in whole pixels."""

    def inwards(side: int) -> int:
        return int(between(0, int(DISTORTION * (side // 2)) + 1))

    right, bottom = width - 1, height - 1
    moves = [(inwards(width), inwards(height)) for _ in range(4)]
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = moves
    return (ax, ay), (right - bx, by), (right - cx, bottom - cy), (dx, bottom - dy)


def _crop(height: int, width: int, pipeline: Pipeline, between: Between) -> Box | None:
    """Left, top, right, bottom of a crop of its own size, in a padded image; or of any size and aspect, and where none
    of ten fits the middle at the nearest aspect that does."""
    if not pipeline.crop:
        return None
    if pipeline.padding:
        side, room = pipeline.crop, 2 * pipeline.padding
        return _placed(side, side, height + room, width + room, between)
    for _ in range(ATTEMPTS):
        area = height * width * between(*SCALE)
        ratio = math.exp(between(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return _placed(h, w, height, width, between)
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _placed(h: int, w: int, height: int, width: int, between: Between) -> Box:
    """A box of this size anywhere in the image, every place as likely."""
    left, top = int(between(0, width - w + 1)), int(between(0, height - h + 1))
    return left, top, left + w, top + h


def _blur(pixels: Tensor, sigma: float) -> Tensor:
    """Gaussian, 5 x 5, the image mirrored at its borders: torchvision's to a rounding, in a third of its time on a CPU,
    where it is the slowest step of all."""
    reach = TAPS // 2
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    weights = (weights / weights.sum()).tolist()
    x = F.pad(pixels.float()[None], [reach] * 4, mode="reflect")[0]
    for axis in (1, 2):
        shifted = [x.narrow(axis, i, x.shape[axis] - 2 * reach) for i in range(TAPS)]
        x = shifted[0] * weights[0]
        for part, weight in zip(shifted[1:], weights[1:], strict=True):
            x.add_(part, alpha=weight)
    return x.round_().to(torch.uint8)
