"""The head of PiNet and SegNet, which differ in their loss alone: UperNet on four maps of tokens, an upsampler, a
softmax over the classes, and the areas that it adds up to (spec pinets, section 6.3).

    pi = softmax(head(encoder(x)))      [B, K, H, W]
    y  = sum over pixels of pi          [B, K], areas in pixels: a soft second look
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.pinets.models import Area, PiNet, UpConv, up_convolved

POOLS = (1, 2, 3, 6)


def network(width: int, patch: int, classes: int, channels: int = 32, encoder: nn.Module | None = None) -> PiNet:
    """The model on the features of an encoder of ``width`` channels a block and tokens of ``patch`` pixels; with
    ``encoder``, on images. ``ValueError`` for one class: its share of the softmax would be all of every image."""
    if classes < 2:
        raise ValueError(f"a softmax needs two classes or more, not {classes}: the rest of the image is one")
    return PiNet(
        encoder or nn.Identity(),
        Head(width, patch, classes, channels),
        second_look="soft",
        activation="softmax",
        aggregator=Area(),
        z=_anywhere,
    )


def _anywhere(x: Tensor) -> Tensor:
    """z of a soft second look: every pixel counts alike."""
    return x.new_ones(len(x), 1, 1, 1, dtype=torch.float32)


class Head(nn.Sequential):
    """[B, 4 * width, h, w] features to [B, classes, h * patch, w * patch] scores before the softmax."""

    def __init__(self, width: int, patch: int, classes: int, channels: int = 32):
        super().__init__(UperNet(width, channels), Upsampler(channels, patch / 4, classes))


class UperNet(nn.Module):
    """Four maps of tokens as a pyramid of scales 4, 2, 1, 1/2, joined from coarse to fine: [B, channels, 4 h, 4 w].
    ``ValueError`` for features of other than ``4 * width`` channels."""

    def __init__(self, width: int, channels: int = 32):
        super().__init__()
        self.width = width
        self.scales = nn.ModuleList(
            [
                nn.Sequential(
                    UpConv(width, width // 2), nn.BatchNorm2d(width // 2), nn.GELU(), UpConv(width // 2, width // 4)
                ),
                nn.Sequential(UpConv(width, width // 2)),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )
        self.pools = nn.ModuleList(_conv(width, channels, 1) for _ in POOLS)
        self.bottleneck = _conv(width + len(POOLS) * channels, channels, 3)
        self.lateral = nn.ModuleList(_conv(size, channels, 1) for size in (width // 4, width // 2, width))
        self.output = nn.ModuleList(_conv(channels, channels, 3) for _ in range(3))
        self.fusion = _conv(4 * channels, channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[1] != 4 * self.width:
            raise ValueError(f"expected features of 4 blocks of {self.width} channels, not {list(features.shape)}")
        parts = features.float().split(self.width, 1)
        coarse = self.scales[3](parts[3])
        pooled = [
            _resize(conv(F.adaptive_avg_pool2d(coarse, size)), coarse)
            for size, conv in zip(POOLS, self.pools, strict=True)
        ]
        maps = [self.bottleneck(torch.cat([coarse, *pooled], 1))]
        for level in (2, 1, 0):
            own = self._lateral(level, parts[level])
            maps.insert(0, own + _resize(maps[0], own))
        maps[:3] = [conv(level) for conv, level in zip(self.output, maps[:3], strict=True)]
        return self.fusion(torch.cat([_resize(level, maps[0]) for level in maps], 1))

    def _lateral(self, level: int, x: Tensor) -> Tensor:
        """``self.lateral[level](self.scales[level](x))``. The scale's last layer and the 1x1 convolution after it are
        one linear map: multiplied with each other first, they take a tenth of the work."""
        scale, lateral = self.scales[level], self.lateral[level]
        if isinstance(scale, nn.Identity):
            return lateral(x)
        *before, up = scale
        for layer in before:
            x = layer(x)
        narrow = lateral[0].weight[:, :, 0, 0]
        joined = up_convolved(x, torch.einsum("cmhw,dm->cdhw", up.weight, narrow), narrow @ up.bias)
        return lateral[1:](joined)


class Upsampler(nn.Sequential):
    """[B, channels, H, W] to [B, classes, factor * H, factor * W]: as many doublings as fit, and a last one with a
    bilinear resize where they fall short; the width shrinks to a third, then by halves."""

    def __init__(self, channels: int, factor: float, classes: int, dropout: float = 0.1):
        steps = math.floor(math.log2(factor)) if factor >= 1 else 0
        exact = 2**steps == factor
        layers: list[nn.Module] = []
        for step in range(steps if exact else steps + 1):
            narrow = max(channels // (2 if step else 3), 1)
            layers += [UpConv(channels, narrow), nn.BatchNorm2d(narrow), nn.ReLU(), nn.Dropout(dropout)]
            channels = narrow
        super().__init__(*layers, nn.Conv2d(channels, classes, 1))
        self.factor = None if exact else factor

    def forward(self, x: Tensor) -> Tensor:
        if self.factor is None:
            return super().forward(x)
        size = [round(self.factor * side) for side in x.shape[-2:]]
        return F.interpolate(super().forward(x), size, mode="bilinear", align_corners=True)


def _conv(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return x if x.shape[-2:] == like.shape[-2:] else F.interpolate(
        x, like.shape[-2:], mode="bilinear", align_corners=True
    )
