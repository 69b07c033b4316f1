"""Layers of paint, and the windows that they reach: a batch of birds is drawn without painting whole images."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from helpers.data.bird_scenes import Scene

LIGHT = 0.22  # the brightness lost from the bird's middle to one unit below it


@dataclass(frozen=True)
class Window:
    """Where a layer may paint: squares of ``side`` pixels in the images of ``birds`` [n], their upper left pixels at
    ``top`` and ``left`` [n]; ``x`` [n, 1, side] and ``y`` [n, side, 1] are its pixels' places in the image.

    Of the birds: ``to_bird`` [n, 2, 3] takes (x, y, 1) to the bird's frame, ``per_unit`` [n] is the bird's unit in
    pixels, and ``light`` [n, side, 1] is how brightly it is lit at each height.
    """

    birds: Tensor
    top: Tensor
    left: Tensor
    side: int
    x: Tensor
    y: Tensor
    to_bird: Tensor
    per_unit: Tensor
    light: Tensor

    def some(self, rows: Tensor) -> Window:
        values = (self.birds, self.top, self.left, self.x, self.y, self.to_bird, self.per_unit, self.light)
        birds, top, left, *rest = (value[rows] for value in values)
        return Window(birds, top, left, self.side, *rest)

    def read(self, canvas: Tensor) -> Tensor:
        """[n, C, side, side] of a canvas [B, C, H, W]."""
        return self._all_of(canvas)[self.birds, :, self.top, self.left]

    def write(self, canvas: Tensor, patch: Tensor) -> None:
        self._all_of(canvas)[self.birds, :, self.top, self.left] = patch

    def _all_of(self, canvas: Tensor) -> Tensor:
        """Every window of this side, as a view [B, C, tops, lefts, side, side]."""
        return canvas.unfold(2, self.side, 1).unfold(3, self.side, 1)


@dataclass(frozen=True)
class Layer:
    """Paint of one ``colour`` [n, 3] times ``shade`` [n, side, side or 1], and how much of each pixel it covers,
    ``cover`` [n, side, side]. ``part`` is the part of the bird that it shows, if one."""

    part: str | None
    window: Window
    cover: Tensor
    shade: Tensor
    colour: Tensor


def window(scene: Scene, birds: Tensor, centre: Tensor, reach: float) -> Window:
    """The windows of ``birds`` [n] around ``centre`` [n, 2] that hold whatever lies within ``reach`` of it, in half
    sides both."""
    side = min(scene.size, math.ceil(reach * scene.size) + 3)
    corner = ((centre + 1) * (scene.size / 2) - side / 2).floor_().long().clamp_(0, scene.size - side)
    x, y = scene.places.unfold(0, side, 1)[corner].unbind(1)
    y = y[:, :, None]
    unit, height, to_bird = (chosen(v, birds) for v in (scene.unit, scene.shift[:, 1], scene.to_bird))
    light = (y - height[:, None, None]) * (-LIGHT / unit[:, None, None]) + 1
    return Window(birds, corner[:, 1], corner[:, 0], side, x[:, None], y, to_bird, unit * (scene.size / 2), light)


def chosen(value: Tensor, birds: Tensor) -> Tensor:
    """``value[birds]`` for ascending ``birds``: looking up all of them would only cost time."""
    return value if len(birds) == len(value) else value[birds]


def project(at: Window, axis: Tensor) -> Tensor:
    """a x + b y + c at each pixel [n, side, side] for ``axis`` (a, b, c) [n, 3]; there may be F axes, [n, F, 3]."""
    a, b, c = axis[..., None, None].unbind(-3)
    x, y = (at.x, at.y) if axis.ndim == 2 else (at.x[:, None], at.y[:, None])
    return x * a + (y * b + c)
