"""Settings of the study of prototypes' evaluation: those of the prototypes study, and what is asked of its networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from helpers.config import Settings, Several
from helpers.prototypes.evaluation.protocols import ProtocolName, Readout
from helpers.prototypes.presets import PrototypesStudy

Spread = Literal["rf", "legacy", "upsample", "random", "prp"]
"""From the cells of a similarity map, or from the network's weights, to pixels."""


class Evaluation(Settings):
    """What is asked of each network (spec pixpnet, sections 4 and 8)."""

    mappings: Several[Spread] = Field(
        ("rf", "upsample", "random", "prp"), description="from cells to pixels; compared on the same images"
    )
    protocols: Several[ProtocolName] = Field(
        ("pixpnet-exact", "pixpnet-legacy", "huang"), description="of consistency and stability"
    )
    readouts: Several[Readout] = Field(
        ("upsample", "center"), description="where prototypes look, beside the protocol's own: also measured"
    )
    images: int = Field(40, ge=1, description="test images of the relevance ordering test")
    per_class: int | None = Field(None, ge=1, description="prototypes asked of each of them; default: all of its class")
    points: int = Field(33, ge=2, description="numbers of pixels at which its curves are recorded")
    proportion: float = Field(1.0, gt=0, le=1, description="share of the pixels that are given back")
    start: Literal["random", "zeros"] = Field("random", description="the image that a curve begins with")
    birds: int | None = Field(
        100, ge=20, description="test birds that are drawn anew part by part, as many of each class; None: all"
    )
    resamples: int = Field(200, ge=2, description="draws of a bootstrap")


class EvaluationStudy(PrototypesStudy):
    """Everything about the evaluation of prototypes; its networks are those of the prototypes study with the same
    settings, read from there, or trained."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **{name: settings for name, settings in PrototypesStudy.presets.items() if name not in ("quick", "cub_subset")},
        "quick": {
            **PrototypesStudy.presets["quick"], "groups": ("birdnet@stage2",), "evaluation.images": 2,
            "evaluation.points": 9, "evaluation.birds": 20, "evaluation.resamples": 20,
        },
        "cub_subset": {
            **PrototypesStudy.presets["cub_subset"], "evaluation.images": 10, "evaluation.per_class": 2,
            "evaluation.points": 17,
        },
    }  # fmt: skip

    evaluation: Evaluation = Evaluation()
