"""Settings of the floods study (spec pinets, sections 6.3 to 6.5 and 9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from helpers.config import ConfigError, Settings, Several, Study, suggest
from helpers.data.flood_chips import CLASSES, DRY, SETS, WATER
from helpers.pinets.floods.encoders import Name

Kind = Literal["pinet", "segnet"]
Rules = Literal["corrected", "released"]
LABELS = {"pinet": "PiNet", "segnet": "SegNet"}


class Data(Settings):
    """What is learned from and tested on."""

    name: str = Field("sen1floods11", description=f"one of {', '.join(SETS)}")
    tile: int = Field(256, ge=8, description="pixels a side of the tiles that chips are cut in")
    tests: Several[str] = Field(("test", "bolivia"), description="splits to test on; of another data set name:split")
    chips: int | None = Field(None, ge=2, description="chips to learn from, at most")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in SETS:
            raise ValueError(f"unknown data set {name!r}: {suggest(name, SETS)}")
        return name


class Training(Settings):
    """One fit, as published (spec section 6.4)."""

    batch_size: int = Field(32, ge=2)
    epochs: int = Field(200, ge=1, description="at most: a rate of stop_rate ends it")
    learning_rate: float = Field(5e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    factor: float = Field(0.2, gt=0, lt=1, description="of the learning rate after patience epochs without progress")
    patience: int = Field(5, ge=0)
    stop_rate: float = Field(1e-5, ge=0, description="the learning rate at which training ends")
    mask_loss: Literal["bce", "far"] = Field("bce", description="of masks: cross-entropy, or the false absence rate")
    precision: Literal["float32", "bfloat16"] = "float32"


class FloodsStudy(Study):
    """Everything about the floods study; `helpers.config.read_parameters` makes it from a notebook's parameters."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "bundle": {"rules": ("released",), "budgets": (), "seeds": 1},
        "water": {
            "encoder": "galileo_nano", "channels": 16, "data.name": "water_multispectral", "data.tile": 128,
            "data.tests": ("test", "sen1floods11/hand18:bolivia"),
            "training.batch_size": 8, "budgets": (5, 25),
        },
        "scenes": {
            "encoder": "galileo_nano", "channels": 16, "data.name": "water_scenes", "data.tile": 128,
            "data.tests": ("test",), "training.batch_size": 8, "budgets": (),
        },
        "quick": {
            "encoder": "untrained", "channels": 8, "data.name": "water_scenes", "data.tile": 64, "data.chips": 12,
            "data.tests": ("test",), "training.epochs": 2, "training.batch_size": 16, "budgets": (25,), "seeds": 1,
            "rules": ("corrected", "released"), "test_chips": 6,
        },
    }  # fmt: skip
    of_this_run: ClassVar[frozenset[str]] = Study.of_this_run | {"workers"}

    encoder: Name = Field("prithvi", description="the frozen encoder")
    channels: int = Field(32, ge=4, description="of the head")
    rules: Several[Rules] = Field(
        ("corrected", "released"),
        description="released: tiles of a chip in training and validation, no data as a third class, SegNet chosen by "
        "soft TDR; corrected: whole chips, pixels without data left out, both chosen by the error of areas",
    )
    kinds: Several[Kind] = ("pinet", "segnet")
    budgets: Several[int] = Field((1, 5, 10, 25, 50), description="percentages of masks, beside 0 and 100")
    seeds: int = Field(3, ge=1, description="fits of each kind, from seed upwards")
    test_chips: int | None = Field(None, ge=1, description="chips of each test split, at most")
    workers: int = Field(1, ge=1, description="fits trained side by side, each with its share of the cores")
    data: Data = Data()
    training: Training = Training()

    @field_validator("budgets")
    @classmethod
    def _shares(cls, budgets: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 0 < share < 100 for share in budgets):
            raise ValueError("0 and 100 % of the masks are always there; name what lies between")
        return budgets


def classes(rules: Rules) -> tuple[int, ...]:
    """The values of a mask that have a map of their own."""
    return CLASSES if rules == "released" else (DRY, WATER)


def published(preset: str) -> FloodsStudy:
    """The study of a preset, as it is published. Raises `ConfigError` for another name."""
    if preset not in FloodsStudy.presets:
        raise ConfigError(f"unknown preset {preset!r}: {suggest(preset, FloodsStudy.presets)}")
    return FloodsStudy(preset=preset).override(FloodsStudy.presets[preset])
