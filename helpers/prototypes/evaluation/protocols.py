"""How consistency and stability are measured: the protocols, and what it is to touch a part (spec pixpnet, sections 8.2
to 8.4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from helpers.config import ConfigError, Settings, suggest
from helpers.prototypes.sources import Geometry, PartLocations

Readout = Literal["bbox", "heatmap_max", "heatmap_mean", "upsample", "center", "bicubic"]
ProtocolName = Literal["pixpnet-exact", "pixpnet-legacy", "huang"]


class Protocol(Settings):
    """All that the metrics depend on, beside the images and the seed. Asked are the prototypes of an image's class."""

    readout: Readout = Field(
        "bbox", description="where a prototype looks: `mapping.readout`'s, or the highest pixel of the up-sampled map"
    )
    half_side: float = Field(36 / 224, gt=0, description="of the square, as a share of the input's side: 36 px at 224")
    clip: Literal["zero", "all"] = Field("zero", description="borders that cut the square: left and top, or all four")
    geometry: Geometry = Field("exact", description="of the annotations; legacy: as the original took them to lie")
    merged: bool = Field(True, description="both eyes are one part; off: every annotation is a part by itself")
    noise: float = Field(0.2, ge=0, description="standard deviation in normalised pixels")
    noise_clip: float | None = Field(None, gt=0, description="what bounds the noise of a pixel, if anything")
    invisible_count: bool = Field(False, description="shares of all images, not of those where the part is visible")
    empty_iou: Literal["one", "discard"] = Field(
        "one", description="no part touched, with noise or without: the same; or the prototype has no soft stability"
    )
    threshold: float = Field(0.8, gt=0, le=1, description="the score from which a prototype is consistent")


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "pixpnet-exact": Protocol(),
    "pixpnet-legacy": Protocol(geometry="legacy", empty_iou="discard"),
    "huang": Protocol(readout="bicubic", clip="all", merged=False, noise_clip=0.25, invisible_count=True),
}
"""``pixpnet-exact``: PixPNet's measure, its errors mended. ``pixpnet-legacy``: as released, but for the seed of the
noise. ``huang``: Huang et al.'s evaluator, which is defined on images cut out along the birds' boxes
(``dataset.crop_to_bbox``); "counts every test image" is read as ``invisible_count``."""


def protocol(name: str, **changes: Any) -> Protocol:
    """The protocol ``name`` of `PROTOCOLS`, with other settings where ``changes`` say so. Raises `ConfigError`, with
    near misses, for a name or a setting that there is not, and for a value that it cannot have."""
    if name not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {name!r}: {suggest(name, PROTOCOLS)}")
    return PROTOCOLS[name].override(changes)


def annotated(places: PartLocations, protocol: Protocol) -> PartLocations:
    """The annotations as the protocol counts them: by part, or each by itself, numbered where a part has several."""
    if protocol.merged:
        return places
    of, names = places.part.tolist(), []
    for place, number in enumerate(of):
        several = f" {of[: place + 1].count(number)}" if of.count(number) > 1 else ""
        names.append(places.names[number] + several)
    return replace(places, part=torch.arange(len(of)), names=tuple(names))


def touched(centre: Tensor, places: PartLocations, protocol: Protocol, size: int) -> Tensor:
    """bool [n, m, A]: which annotations lie in the squares around ``centre`` float64 [n, m, 2] (y, x; 0 is the middle
    of the first pixel) of inputs of ``size`` pixels a side.

    An annotation is the pixel that it falls into, and touched if any of it lies in the square, borders aside; if it is
    not visible, never. As visible ones lie within the input, `Protocol.clip` makes no difference to them.
    """
    half, middle = protocol.half_side * size, centre.flip(-1)[:, :, None] + 0.5
    low, high = (middle - half).clamp(min=0), middle + half
    high = high.clamp(max=size) if protocol.clip == "all" else high
    pixel = places.xy.double().floor()[:, None]
    return ((pixel < high) & (pixel + 1 > low)).all(-1) & places.visible[:, None]


def any_of_part(annotations: Tensor, places: PartLocations) -> Tensor:
    """bool [..., A] to [..., K]: whether it is true of any annotation of a part."""
    belongs = places.part[:, None] == torch.arange(len(places.names))
    return annotations.float() @ belongs.float() > 0
