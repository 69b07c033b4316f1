"""Maps of single chips, for pictures and the explorer: of weights at hand, or those that are shipped as pictures.

No frozen encoder is shipped, so that a static notebook has no way to compute a map. It shows drawn scenes, whose maps
are shipped in 256 steps; where weights and encoder are at hand, any test chip has its map.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from helpers import artifacts, runtime
from helpers.config import ConfigError, suggest
from helpers.data import flood_chips
from helpers.data.flood_chips import WATER, Tiles
from helpers.pinets.floods import evaluate, fits, released
from helpers.pinets.floods.fits import Member, members
from helpers.pinets.floods.presets import LABELS, FloodsStudy
from helpers.pinets.floods.study import Shelf, choose_shelf

FOLDER = "maps"
SHOWN = ("test-001", "test-002", "test-003", "test-004", "test-009", "test-011", "test-012", "test-013")
"""Chips whose maps are shipped: with and without water, clouds, shadows, the edge of a swath."""
SHIPPED = ("pinet-000", "segnet-100")  # groups whose heads and maps are shipped, of the first seed


class NoMaps(artifacts.ArtifactError):
    """There are no maps of a study."""


class Maps:
    """The maps of a study on a shelf. ``chips`` and ``models`` (by their label) are those that there are maps of.
    Raises `NoMaps` where there are none."""

    def __init__(self, study: FloodsStudy, shelf: Shelf | None = None):
        self.study, self.shelf = study, shelf or choose_shelf(study)
        self._known: dict[tuple[str, str], np.ndarray] = {}
        first = [m for m in members(study) if m.seed == study.seed and m.rules == study.rules[0]]
        if self.shelf.shipped:
            there = artifacts.listed(self.shelf.results)
            self.models = {label(m): m for m in first if any(map_name(m, chip) in there for chip in SHOWN)}
            found = [c for c in SHOWN if all(map_name(m, c) in there for m in self.models.values())]
        else:
            self.models = {label(m): m for m in first if self.shelf.weights_path(m).exists()}
            found = self.tiles().chips.split(study.data.tests[0])[: study.test_chips] if self.models else []
        self.chips = tuple(found) if self.models else ()
        if not self.chips:
            raise NoMaps(
                f"no maps of {study.data.name} are in {self.shelf.results}, and no weights to make them: take "
                'PRESET="scenes", or RETRAIN=True'
            )

    @property
    def shown(self) -> tuple[str, ...]:
        """The chips of the published figure, where the data are its own; else the first six."""
        study, found = self.study, ()
        if (study.data.name, study.data.tests[0]) == ("sen1floods11", "test"):
            listed = self.tiles().chips.split("test")
            found = tuple(listed[row] for row in released.CHIPS if row < len(listed) and listed[row] in self.chips)
        return found or self.chips[:6]

    def scene(self, chip: str) -> tuple[np.ndarray, np.ndarray]:
        """(int16 [6, side, side], int8 [side, side]). Raises `ConfigError` for a chip that has no maps."""
        if chip not in self.chips:
            raise ConfigError(f"no map of a chip {chip!r}: {suggest(chip, self.chips)}")
        return self.tiles().chips.pair(chip)

    def water(self, model: str, chip: str) -> np.ndarray:
        """float32 [side, side]: the share of water that a model gives each pixel of a chip, in [0, 1]."""
        if model not in self.models:
            raise ConfigError(f"no maps of a model {model!r}: {suggest(model, self.models)}")
        if (model, chip) not in self._known:
            self._known[model, chip] = self._read(self.models[model], chip)
        return self._known[model, chip]

    def tiles(self) -> Tiles:
        """The tiles that the chips are among."""
        return fits.test_tiles(self.study, self.study.data.tests[0])

    def _read(self, member: Member, chip: str) -> np.ndarray:
        if not self.shelf.shipped:
            return computed(member, self.shelf, chip)
        with Image.open(self.shelf.checked(self.shelf.results / map_name(member, chip))) as picture:
            return np.asarray(picture, np.float32) / 255


def pictured(study: FloodsStudy, otherwise: FloodsStudy) -> Maps:
    """The maps of ``study``; where there are none, as of real chips none may be shipped, those of ``otherwise``, and a
    line that says so. Raises `NoMaps` if there are none of both."""
    try:
        return Maps(study)
    except NoMaps:
        if otherwise == study:
            raise
        found = Maps(otherwise)
        print(f"There are no maps of {study.data.name}: the pictures are of {otherwise.data.name}.")
        return found


def computed(member: Member, shelf: Shelf, chip: str) -> np.ndarray:
    """float32 [side, side]: the map of water of a test chip, from the weights and the features on disk."""
    study, test = member.study, member.study.data.tests[0]
    places = [place for place, _ in fits.test_tiles(study, test).places]
    rows = torch.tensor([row for row, name in enumerate(places) if name == chip])
    device = runtime.device(study.device)
    data = fits.stored(study, member.rules, test)
    scores = torch.cat(list(evaluate.maps(shelf.model(member).to(device), data, device, rows)))
    return flood_chips.merge(scores[:, member.classes.index(WATER)].cpu().numpy())


def label(member: Member) -> str:
    """"PiNet, areas alone", "SegNet, 10 % of the masks"."""
    if member.kind == "pinet" and not member.masks:
        return "PiNet, areas alone"
    return f"{LABELS[member.kind]}, {'all' if member.masks == 100 else f'{member.masks} % of the'} masks"


def map_name(member: Member, chip: str) -> str:
    """Where the shipped map of a chip lies among the results."""
    return f"{FOLDER}/{member.name}/{chip}.png"


def keep(member: Member, shelf: Shelf, chip: str, folder: Path) -> None:
    """Write the map of a chip as a grey picture of 256 steps."""
    values = (computed(member, shelf, chip) * 255).round().astype(np.uint8)
    file = BytesIO()
    Image.fromarray(values).save(file, "PNG", optimize=True)
    artifacts.atomic_write(folder / map_name(member, chip), file.getvalue())
