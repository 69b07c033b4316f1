"""Coloured digits: in training, the colour gives the label away; in a test it does not (spec cnn_lsx, section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from helpers import runtime
from helpers.data.images import Images, Preprocess

# From red to purple, of 255: what the generator that the authors point to gives ten classes.
PALETTE = (
    (255, 0, 0), (240, 133, 0), (201, 226, 0), (70, 212, 0), (0, 198, 44),
    (0, 184, 143), (0, 113, 170), (0, 17, 156), (63, 0, 142), (128, 0, 127),
)  # fmt: skip
LUMINANCE = (0.2989, 0.587, 0.114)  # of red, green and blue in a grey


@dataclass(frozen=True)
class Coloured:
    """``images`` float32 in [0, 1], their input as it is; ``colours`` int64 [N] are indices into `PALETTE`."""

    images: Images
    colours: Tensor


def palette() -> Tensor:
    """float32 [10, 3] in [0, 1]: red, green and blue of each colour."""
    return torch.tensor(PALETTE) / 255


def grey_factors() -> Tensor:
    """float32 [10]: the brightness of each colour, which is what is left of it in a grey image."""
    return palette() @ torch.tensor(LUMINANCE)


def colour(
    images: Images,
    seed: int,
    *,
    test: bool,
    channels: Literal[1, 3] = 1,
    test_colours: Literal["random", "reversed"] = "random",
) -> Coloured:
    """Grey ``images`` [N, 1, H, W] as light of one colour on black, and that turned to grey if ``channels`` is 1.

    The colour is the label in training. In a ``test`` it is drawn for each image, or 9 - label if ``test_colours`` is
    "reversed". Raises ValueError for images that are not grey, or more than ten classes.
    """
    if images.in_channels != 1 or len(images.classes) > len(PALETTE):
        raise ValueError(
            f"expected grey images of at most {len(PALETTE)} classes, "
            f"not {images.in_channels} channels and {len(images.classes)} classes"
        )
    colours = images.y
    if test and test_colours == "reversed":
        colours = len(PALETTE) - 1 - images.y
    elif test:
        draws = runtime.generator(seed, "colours")
        colours = torch.randint(len(PALETTE), (len(images),), generator=draws)
    shades = palette() if channels == 3 else grey_factors()[:, None]
    x = images.preprocess.unit(images.x[slice(None)]) * shades[colours][:, :, None, None]
    return Coloured(Images(x, images.y, images.classes, Preprocess(size=min(x.shape[2:]))), colours)
