"""What the ToyShapes explorer shows, without its widgets: images that can be edited, and what a fit makes of them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from helpers import artifacts, metrics
from helpers.config import ConfigError, Settings, Several, data_config, suggest
from helpers.data import toyshapes
from helpers.data.toyshapes import MIN_CONTRAST, SCALES, Scene, ToyShapesSettings
from helpers.pinets import evaluate, examples
from helpers.pinets.models import Ensemble, PiNet
from helpers.pinets.presets import ToyShapesStudy
from helpers.pinets.study import Shelf, checked, scores

CACHED = 256  # looks kept, some 50 kB each
FITS_OPEN = 64  # networks kept
RULES = {"oracle": "optimal", "validation": "validated"}  # as the records call them

# -------------------------------------------------------------------------------------------------- drawings


class Cell(Settings):
    """One cell of a drawing. ``side`` in pixels; ``spread``: a triangle's half-width gained per row."""

    shape: str
    side: int = Field(ge=1)
    shade: int = Field(ge=0, le=255)
    hollow: bool
    spread: float = Field(ge=0)


class Drawing(Settings):
    """An image as what it shows. Cells fill rows from the bottom, left to right, as in the data set."""

    background: int = Field(ge=0, le=255)
    cells: Several[Cell]


class Board:
    """The test images of a study as drawings, and edited ones as images."""

    def __init__(self, study: ToyShapesStudy):
        self.settings: ToyShapesSettings = study.data.override({"n_images": study.test_images})
        scenes = toyshapes.sample_scenes(data_config("toyshapes")["splits"]["test_seed"], self.settings)
        self.scenes = toyshapes.without_repeats(scenes, self.settings)
        target = self.settings.shapes.index(self.settings.target)
        self.counts = (self.scenes.shape == target).sum(1)

    def drawing(self, image: int) -> Drawing:
        """Test image ``image``."""
        scene = self.scenes
        cells = []
        for block in range(self.settings.n_blocks):
            shape = self.settings.shapes[scene.shape[image, block]]
            side, spread = int(scene.side[image, block]), float(scene.spread[image, block])
            cells.append(
                Cell(
                    shape=shape,
                    side=side,
                    shade=int(scene.shade[image, block]),
                    hollow=bool(scene.hollow[image, block]),
                    spread=spread if shape == "triangle" else self._usual_spread(side),
                )
            )
        return Drawing(background=int(scene.background[image]), cells=tuple(cells))

    def render(self, drawing: Drawing) -> tuple[np.ndarray, np.ndarray]:
        """(image, mask), both uint8 [H, W]."""
        cells = drawing.cells
        scene = Scene(
            shape=np.array([[self.settings.shapes.index(cell.shape) for cell in cells]]),
            background=np.array([drawing.background]),
            side=np.array([[cell.side for cell in cells]]),
            hollow=np.array([[cell.hollow for cell in cells]]),
            shade=np.array([[cell.shade for cell in cells]], np.uint8),
            spread=np.array([[cell.spread for cell in cells]]),
        )
        images, masks = toyshapes.render(scene, self.settings)
        return images[0], masks[0]

    def place(self, drawing: Drawing, index: int, **changes: Any) -> Drawing:
        """With values of one cell replaced; a triangle of a new side takes the proportions usual for that side.

        Raises `ConfigError` for a cell, shape or value that cannot be.
        """
        cell = drawing.cells[self.check(index)].override(changes)
        if cell.shape not in self.settings.shapes:
            raise ConfigError(f"unknown shape {cell.shape!r}: {suggest(cell.shape, self.settings.shapes)}")
        if cell.side > self.settings.block_size:
            raise ConfigError(f"side {cell.side} does not fit a cell of {self.settings.block_size} pixels")
        if "side" in changes and "spread" not in changes:
            cell = cell.override({"spread": self._usual_spread(cell.side)})
        return drawing.override({"cells": _replaced(drawing.cells, {index: cell})})

    def move(self, drawing: Drawing, index: int, to: int) -> Drawing:
        """With the contents of two cells exchanged."""
        cells = drawing.cells
        return drawing.override(
            {"cells": _replaced(cells, {self.check(index): cells[self.check(to)], to: cells[index]})}
        )

    def count(self, drawing: Drawing) -> int:
        """Target shapes."""
        return sum(cell.shape == self.settings.target for cell in drawing.cells)

    def unusual(self, drawing: Drawing) -> list[str]:
        """What no training image shows: the networks were never asked about it."""
        size = self.settings.block_size
        low, high = int(SCALES[0] * size), int(np.ceil(SCALES[1] * size)) - 1
        drawn = [cell for cell in drawing.cells if cell.shape != "void"]
        found = []
        if any(abs(cell.shade - drawing.background) < MIN_CONTRAST for cell in drawn):
            found.append(f"a contrast below {MIN_CONTRAST} grey levels")
        if any(not low <= cell.side <= high for cell in drawn):
            found.append(f"a side outside {low}–{high} px")
        background = toyshapes.BACKGROUND if self.settings.backgrounds else (0, 1)
        if not background[0] <= drawing.background < background[1]:
            found.append(f"a background outside {background[0]}–{background[1] - 1}")
        return found

    def check(self, index: int) -> int:
        if not 0 <= index < self.settings.n_blocks:
            last = self.settings.n_blocks - 1
            raise ConfigError(f"there is no cell {index}: they are 0 to {last}, from the bottom left")
        return index

    def _usual_spread(self, side: int) -> float:
        return 1 - side / self.settings.block_size + 0.1  # the middle of what the data set draws


def _replaced(cells: tuple[Cell, ...], changes: dict[int, Cell]) -> list[dict[str, Any]]:
    return [changes.get(i, cell).model_dump() for i, cell in enumerate(cells)]


# -------------------------------------------------------------------------------------------------- fits


class Look(NamedTuple):
    """What a network makes of one image. ``heat`` float32 [H, W], as it comes; of a PiNet also ``contributions``
    float32 [H, W], what each pixel adds to the logit; of an ensemble the ``votes``, its members' logits."""

    logit: float
    heat: np.ndarray
    contributions: np.ndarray | None
    votes: tuple[float, ...]


@dataclass(frozen=True)
class Open:
    """A fit with its weights loaded. ``read_out``: (weight, bias) of the sum, the paper's b² and a, of a PiNet; an
    ensemble's maps hold their weights, so its weight is 1; None of the baseline."""

    name: str
    label: str
    model: nn.Module
    record: dict[str, Any]
    read_out: tuple[float, float] | None
    evidence: str  # what is summed, as a formula

    @cached_property
    def curve(self) -> np.ndarray:
        """The record's detection score at each of `metrics.THRESHOLDS`."""
        return scores(self.record)

    @property
    def scale(self) -> float:
        """What the maps are divided by: their maximum over the whole test set, as in the record."""
        return self.record["test"]["scale"]

    def threshold(self, rule: str) -> float:
        """The fit's best threshold by ``rule``: the ``oracle`` saw the test masks, ``validation`` did not.

        The latter holds for maps divided by their maximum over the validation images; here they are by the test set's.
        """
        entry, low, high = self.record["test"][RULES[rule]], *metrics.THRESHOLDS[[0, -1]].tolist()
        own_scale = entry["scale"] if rule == "validation" else self.scale
        return min(max(entry["threshold"] * own_scale / (self.scale or 1), low), high)


class Fits:
    """The fits of a shelf that have their weights and their record, opened when first asked for."""

    def __init__(self, study: ToyShapesStudy, shelf: Shelf):
        self.study, self.shelf = study, shelf
        self.names = {group: names for group in study.groups if (names := self._with_weights(group))}
        if not self.names:
            raise artifacts.ArtifactError(
                f"no fit in {shelf.weights} has its weights and a record in {shelf.results}: RETRAIN=True makes them"
            )
        self.open = lru_cache(maxsize=FITS_OPEN)(self._open)
        self._looks: OrderedDict[tuple[str, bytes], Look] = OrderedDict()

    def label(self, group: str) -> str:
        return getattr(self.study.group, group).label

    def look(self, name: str, x: np.ndarray) -> Look:
        """What the fit ``name`` makes of the image ``x`` float32 [H, W] in [0, 1]; remembered."""
        key = _key(name, x)
        if key not in self._looks:
            self._looks[key] = _look(self.open(name).model, torch.from_numpy(x)[None, None])
            if len(self._looks) > CACHED:
                self._looks.popitem(last=False)
        self._looks.move_to_end(key)
        return self._looks[key]

    def logit(self, name: str, x: np.ndarray) -> float:
        """The prediction alone."""
        if (key := _key(name, x)) in self._looks:
            return self._looks[key].logit
        return evaluate.predict(self.open(name).model, torch.from_numpy(x)[None, None]).item()

    def _with_weights(self, group: str) -> list[str]:
        return [name for name in self.shelf.names(group) if self.shelf.at_hand(self.shelf.record(name))]

    def _open(self, name: str) -> Open:
        record = checked(self.shelf.record(name), self.study)
        model = examples.load_model(record, self.study, self.shelf)  # names a file that is gone, and the remedy
        for weights, digest in record["computed_from"]["weights"].items():
            path = self.shelf.weights / f"{weights}.safetensors"
            if artifacts.sha256(path) != digest:
                raise artifacts.ArtifactError(
                    f"{path} is not what the record of {name} was computed from; run with REEVALUATE=True"
                )
        read_out, evidence = None, ""
        if isinstance(model, Ensemble):
            read_out = 1.0, float(np.mean([member.aggregator.bias.item() for member in model.members]))
            evidence = "mean(b²π)"
        elif isinstance(model, PiNet):
            read_out, evidence = (model.aggregator.scale().item(), model.aggregator.bias.item()), "π"
        if read_out and model.second_look == "hard":
            evidence += "⊙x"
        return Open(name, self.label(record["group"]), model, record, read_out, evidence)


def _key(name: str, x: np.ndarray) -> tuple[str, bytes]:
    return name, hashlib.blake2b(np.ascontiguousarray(x), digest_size=16).digest()


def _look(model: nn.Module, x: Tensor) -> Look:
    """The logits are caught on their way: one pass, also through Grad-CAM and through the members of an ensemble."""
    members = list(model.members) if isinstance(model, Ensemble) else []
    caught: dict[nn.Module, float] = {}
    hooks = [
        module.register_forward_hook(lambda module, _, output: caught.update({module: output.logits.item()}))
        for module in [model, *members]
    ]
    try:
        explainer = evaluate.default_explainer(model)
        if explainer is evaluate.own_scores:
            with torch.inference_mode():
                output = model(x)
                contributions, heat = model.contributions(output)[0].sum(0).numpy(), output.scores[0].sum(0).numpy()
        else:
            contributions, heat = None, explainer(model, x, None)[0].numpy()
    finally:
        for hook in hooks:
            hook.remove()
    return Look(caught[model], heat, contributions, tuple(caught[member] for member in members))


# -------------------------------------------------------------------------------------------------- views


@dataclass(frozen=True)
class View:
    """All that is shown of one image under one fit. Arrays are [H, W]; ``x`` and ``unit`` float32 in [0, 1].

    ``unit`` is the magnitude of the map over its record-wide maximum; ``kept`` the weights of the explained part,
    `unit` itself or the pixels where it is above the threshold; ``explained = kept * x``; ``again`` the logit of the
    explained part alone. ``tdr`` and ``tar`` are of the signed map, as in the records: evidence against the class finds
    nothing. ``tdr`` is NaN without a target.
    """

    x: np.ndarray
    mask: np.ndarray
    look: Look
    unit: np.ndarray
    kept: np.ndarray
    explained: np.ndarray
    again: float
    tdr: float
    tar: float


def view(fits: Fits, name: str, x: np.ndarray, mask: np.ndarray, threshold: float | None, recursive: bool) -> View:
    """``threshold`` None: the naive map. ``recursive``: of the explained part of ``x`` in its place."""
    scale = fits.open(name).scale

    def marked(unit: np.ndarray) -> np.ndarray:
        return unit if threshold is None else (unit > np.float64(threshold)).astype(np.float32)

    def explain(x: np.ndarray) -> tuple[Look, np.ndarray, np.ndarray]:
        look = fits.look(name, x)
        signed = look.heat / scale if scale > 0 else np.zeros_like(look.heat)
        return look, signed, np.abs(signed).clip(0, 1)  # a drawing may exceed what the test set shows

    look, signed, unit = explain(x)
    if recursive:
        x = marked(unit) * x
        look, signed, unit = explain(x)
    kept, found = marked(unit), marked(signed.clip(0, 1))
    tdr, tar = metrics.detection_rates(torch.from_numpy(found)[None], torch.from_numpy(mask)[None])
    again = fits.logit(name, kept * x)
    return View(x, mask, look, unit, kept, kept * x, again, tdr.item(), tar.item())
