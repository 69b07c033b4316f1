"""From a photograph to a network's input, and where its points come to lie (spec pixpnet, sections 7 and 8.4).

In three steps, so that the costly first can be kept: `resize` (decoded picture to uint8 pixels), then in training
`helpers.prototypes.augmentation`, else `view` (the middle, at the input's size), then `Pipeline.normalise`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from helpers import runtime
from helpers.config import ConfigError, data_config
from helpers.data.images import Preprocess, preprocess_of

Box = tuple[int, int, int, int]
"""Left, top, right, bottom; half-open."""


@dataclass(frozen=True)
class Pipeline:
    """How one data set's images are taken.

    ``first`` the picture is resized: "short" brings its shorter side to ``resize`` pixels, "squeeze" both sides,
    whatever the aspect; "enlarge" keeps it as it is where its shorter side has ``resize`` pixels, all times ``zoom``.
    Then the middle ``crop`` x ``crop`` is cut out, if given, and resized to the ``input_size``. In training the crop is
    a random one: of any size and aspect, or, with ``padding`` (of zeros), of its own size. Resizing is bilinear, with
    antialiasing. ``augment``: there is a random version for training (`helpers.prototypes.augmentation`).
    """

    first: Literal["short", "squeeze", "enlarge"]
    resize: int
    crop: int | None
    input_size: int
    normalisation: Preprocess
    to_box: bool = False
    padding: int = 0
    augment: bool = True
    zoom: float = 1.0

    def at(self, size: int) -> Pipeline:
        """The same for another input size: all its numbers in proportion."""
        factor = size / self.input_size

        def scaled(pixels: int) -> int:
            return round(pixels * factor)

        return replace(
            self,
            resize=scaled(self.resize),
            crop=scaled(self.crop) if self.crop else None,
            input_size=size,
            padding=scaled(self.padding),
            zoom=self.zoom * factor,
        )

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after the first step, of a picture or of what is left of it within its box."""
        if self.first == "squeeze":
            return self.resize, self.resize
        short, long = min(height, width), max(height, width)
        new = max(self.resize, round(short * self.zoom)) if self.first == "enlarge" else self.resize
        other = int(new * long / short)  # torchvision rounds down
        return (new, other) if height <= width else (other, new)

    def normalise(self, x: Tensor) -> Tensor:
        """uint8 [n, 3, S, S] to a network's input, float32."""
        return self.normalisation.normalise(self.normalisation.unit(x))

    def restore(self, x: Tensor) -> Tensor:
        """Inputs back to values in [0, 1]."""
        return self.normalisation.restore(x)


@lru_cache
def pipelines() -> dict[str, Pipeline]:
    """The table of spec pixpnet, section 7, by data set."""
    names = ("cub", "cars", "imagenette", "toybirds")
    birds, cars, imagenet, drawn = (preprocess_of(data_config(name)) for name in names)
    cifar = Preprocess(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))  # the YAML has another paper's
    photographs = Pipeline("enlarge", 224, 224, 224, imagenet)
    return {
        "CUB200224": Pipeline("short", 510, 384, 224, birds),
        "CUB200": Pipeline("short", 510, 384, 384, birds),
        "CUB200BBOX": Pipeline("squeeze", 384, None, 384, birds, to_box=True),
        "CUB200224BBOX": Pipeline("short", 224, 224, 224, birds, to_box=True),
        "CARS224": Pipeline("squeeze", 224, None, 224, cars),
        "CIFAR10": Pipeline("short", 32, 32, 32, cifar, padding=4),
        "IMAGENETTE": photographs,
        "IMAGENET": photographs,
        "ToyBirds": Pipeline("squeeze", 128, None, 128, drawn, augment=False),
        "folder": Pipeline("short", 256, 224, 224, imagenet),
    }


@lru_cache
def transforms() -> ModuleType:
    """The functions of torchvision's second generation of transforms, if torchvision can be had."""
    runtime.import_torchvision()
    from torchvision.transforms.v2 import functional

    return functional


def resize(picture: Image.Image, pipeline: Pipeline, box: Box | None = None) -> Tensor:
    """The first step: uint8 [3, H, W] of an RGB picture, or of what lies in its box."""
    if pipeline.to_box and box:
        picture = picture.crop(box)
    size = pipeline.resized(picture.height, picture.width)
    if size != (picture.height, picture.width):
        picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)  # Pillow's bilinear filter antialiases
    return transforms().pil_to_tensor(picture)


def view(pixels: Tensor, pipeline: Pipeline) -> Tensor:
    """The test-time rest, uint8 [3, H, W] to [3, S, S]: the middle, at the input's size."""
    if pipeline.crop and pixels.shape[1:] != (pipeline.crop, pipeline.crop):
        pixels = transforms().center_crop(pixels, [pipeline.crop, pipeline.crop])
    return to_input_size(pixels, pipeline)


def to_input_size(pixels: Tensor, pipeline: Pipeline) -> Tensor:
    """The last resize: uint8 [3, H, W] to [3, S, S]."""
    size = (pipeline.input_size, pipeline.input_size)
    return pixels if pixels.shape[1:] == size else transforms().resize(pixels, list(size), antialias=True)


def locate(points: Tensor, size: tuple[int, int], pipeline: Pipeline, box: Box | None = None) -> Tensor:
    """Where points of a picture lie in its test-time input: float64 [..., 2] (x, y) in pixels, ``size`` (height, width)
    being the picture's. Pixel i is what lies between i and i + 1; points outside the input lie outside of 0 to S.

    For CUB200224, spec pixpnet, section 8.4: s = 510 / min(w, h), x' = (x s - (w s - 384) / 2) 224 / 384.
    """
    left, top, right, bottom = box if pipeline.to_box and box else (0, 0, size[1], size[0])
    height, width = pipeline.resized(bottom - top, right - left)
    scale = torch.tensor([width / (right - left), height / (bottom - top)], dtype=torch.float64)
    points = (points - torch.tensor([left, top])) * scale
    if not (crop := pipeline.crop):
        return points * (pipeline.input_size / pipeline.resize)
    middle = torch.tensor([int(round((side - crop) / 2)) for side in (width, height)])  # as torchvision rounds it
    return (points - middle) * (pipeline.input_size / crop)


def locate_legacy(points: Tensor, size: tuple[int, int], pipeline: Pipeline) -> Tensor:
    """Where the original code believes them to lie, as if the picture had been squeezed to 510 x 510: x' = (x 510 / w -
    63) 224 / 384. Off by up to 36 pixels of 224 in photographs of 3 : 2, more in longer ones; for comparison only
    (spec pixpnet, section 8.4).

    Raises `ConfigError` for what is cut out along boxes, of which no such formula is known.
    """
    if pipeline.to_box:
        raise ConfigError('geometry="legacy" is known of whole pictures alone, not of what is cut out along boxes')
    height, width = size
    points = points * (pipeline.resize / torch.tensor([width, height], dtype=torch.float64))
    crop = pipeline.crop or pipeline.resize
    return (points - (pipeline.resize - crop) / 2) * (pipeline.input_size / crop)
