"""The explorer of the ToyShapes study: any test image or one's own drawing, under any fit whose weights are there.

    explorer = Explorer(study)                        # `explorer`, as a cell's last line, shows it
    explorer.select(group="feedback", image=3, threshold=0.01)  # or threshold="oracle", "validation"
    explorer.place(cell=5, shape="triangle")          # the drawing starts as the test image
    explorer.state, explorer.view                     # plain values: what is chosen, what is shown

What the controls do, these calls do, and the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from helpers import widgets
from helpers.config import ConfigError, Settings, suggest
from helpers.metrics import THRESHOLDS
from helpers.pinets.controls import Controls
from helpers.pinets.presets import ToyShapesStudy
from helpers.pinets.study import Shelf, choose_shelf
from helpers.pinets.views import Board, Drawing, Fits, View, view

ZOOM = 3  # screen pixels a pixel, before the browser fits the picture into its column
TINT = (38, 50, 72)  # of pixels that the threshold takes out: black would pass for a black shape


class State(Settings):
    """What is chosen. ``rule``: where the threshold comes from, the fit's record or one's own hand. ``drawing`` None:
    the test image as it is."""

    group: str
    fit: str
    image: int = Field(ge=0)
    images: Literal["all", "positive", "negative"] = "all"
    mode: Literal["naive", "thresholded"] = "naive"
    rule: Literal["oracle", "validation", "own"] = "validation"
    threshold: float = Field(0.01, ge=THRESHOLDS[0], le=THRESHOLDS[-1])
    recursive: bool = False
    cell: int = 0
    drawing: Drawing | None = None


class Explorer(widgets.Explorer[State]):
    """See the module. Raises `ArtifactError` if no fit has its weights, or if they do not fit ``study``."""

    def __init__(self, study: ToyShapesStudy, shelf: Shelf | None = None):
        self.study = study
        self.board = Board(study)
        self.fits = Fits(study, shelf or choose_shelf(study))
        self.view: View
        group = "pinet" if "pinet" in self.fits.names else next(iter(self.fits.names))
        fit = self.fits.names[group][0]
        threshold = self.fits.open(fit).threshold("validation")
        image = int(np.argmax(self.board.counts > 0))
        cell = int(np.argmax(self.board.scenes.shape[image] == study.data.shapes.index(study.data.target)))
        super().__init__(State(group=group, fit=fit, image=image, threshold=threshold, cell=cell))
        self.controls = Controls(self)
        self.widget = self.controls.widget
        self.refresh()

    # ---------------------------------------------------------------------------------------------- choices

    def changed(self, changes: Mapping[str, Any]) -> State:
        """The state after ``changes``, made whole: a fit belongs to its group, a rule sets the threshold."""
        changes = dict(changes)
        if "threshold" in changes:
            changes.setdefault("mode", "thresholded")
            rule = changes["threshold"] if isinstance(changes["threshold"], str) else "own"
            changes["rule"] = rule
            if rule != "own":
                del changes["threshold"]
        if "image" in changes:
            changes.setdefault("drawing", None)
        state = self.state.override(changes)
        derived: dict[str, Any] = {}
        if "fit" in changes and "group" not in changes:
            derived["group"] = state.fit.split("/")[0]
        elif "group" in changes and "fit" not in changes:
            derived["fit"] = self._fit_like(state.fit, state.group)
        if "images" in changes and "image" not in changes and not self._passes(state.image, state.images):
            derived |= {"image": self._neighbour(state.image, 1, state.images), "drawing": None}
        state = state.override(derived)
        self._check(state)
        if state.rule != "own":
            state = state.override({"threshold": self.fits.open(state.fit).threshold(state.rule)})
        return state

    def step(self, by: int = 1) -> None:
        """To the next image (-1: the one before) of those that the filter passes."""
        self.select(image=self._neighbour(self.state.image, by, self.state.images))

    @property
    def drawing(self) -> Drawing:
        """What is shown, as a drawing."""
        return self.state.drawing or self.board.drawing(self.state.image)

    def place(self, cell: int, **changes: Any) -> None:
        """Change a cell: ``shape``, ``side`` (pixels), ``shade`` (0 to 255), ``hollow``, ``spread``."""
        self.select(drawing=self.board.place(self.drawing, cell, **changes), cell=cell)

    def move(self, cell: int, to: int) -> None:
        """Exchange the contents of two cells."""
        self.select(drawing=self.board.move(self.drawing, cell, to), cell=to)

    def fill(self, background: int) -> None:
        """Give the drawing another background, 0 to 255."""
        self.select(drawing=self.drawing.override({"background": background}))

    def reset(self) -> None:
        """Back from the drawing to the test image."""
        self.select(drawing=None)

    def _check(self, state: State) -> None:
        if state.group not in self.fits.names:
            raise ConfigError(f"no weights of a group {state.group!r}: {suggest(state.group, self.fits.names)}")
        if state.fit not in self.fits.names[state.group]:
            raise ConfigError(f"no weights of a fit {state.fit!r}: {suggest(state.fit, self.fits.names[state.group])}")
        if state.image >= len(self.board.counts):
            raise ConfigError(f"there is no test image {state.image}: they are 0 to {len(self.board.counts) - 1}")
        self.board.check(state.cell)

    def _fit_like(self, fit: str, group: str) -> str:
        """The fit of ``group`` with the same seed, else its first."""
        names = self.fits.names.get(group, [f"{group}/0"])  # an unknown group is refused by `_check`
        same = f"{group}/{fit.split('/')[1]}"
        return same if same in names else names[0]

    def _passes(self, image: int, images: str) -> bool:
        return images == "all" or (self.board.counts[image] > 0) == (images == "positive")

    def _neighbour(self, image: int, by: int, images: str) -> int:
        n = len(self.board.counts)
        around = ((image + by * i) % n for i in range(1, n + 1))
        return next((i for i in around if self._passes(i, images)), image)

    # ---------------------------------------------------------------------------------------------- pictures

    def render(self) -> None:
        image, mask = self.board.render(self.drawing)
        x = image.astype(np.float32) / 255
        self.view = view(self.fits, self.state.fit, x, mask, self._threshold, self.state.recursive)
        self._show_pictures()
        self.controls.show(self)

    @property
    def _threshold(self) -> float | None:
        return self.state.threshold if self.state.mode == "thresholded" else None

    def _show_pictures(self) -> None:
        shown, state = self.view, self.state
        mask = shown.mask > 0
        what = "Drawing" if state.drawing else f"Test image {state.image}"
        picture = widgets.enlarge(widgets.colour(shown.x), ZOOM)
        self.controls.panels["image"].show(
            "Its explained part" if state.recursive else what,
            widgets.outlined(picture, self._cell_region(), "#3d9bff", 3) if state.drawing else picture,
            "fed back to the network" if state.recursive else "what the network is given",
        )
        faded = widgets.colour(shown.x * 0.6 + 0.2)
        target = self.study.data.target
        self.controls.panels["mask"].show(
            f"Mask: the {target}s", widgets.outlined(widgets.enlarge(faded, ZOOM), mask), "what a map should pick out"
        )
        self.controls.panels["map"].show("Map", self._map(shown.unit, mask), self._map_note())
        explained = widgets.colour(shown.explained)
        if self._threshold is not None:
            explained[shown.kept == 0] = TINT
        note = "image × map" if self._threshold is None else f"the {shown.kept.mean():.1%} above the threshold"
        self.controls.panels["explained"].show("Explained part", widgets.enlarge(explained, ZOOM), note)
        self._show_contributions()

    def _map(self, unit: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Linear as the naive map is used; by decades when a threshold is to be found on it."""
        if self._threshold is None:
            colours = widgets.colour(unit, "heat")
        else:
            low = np.log10(THRESHOLDS[0])
            colours = widgets.colour(np.log10(unit.clip(THRESHOLDS[0], 1)), "heat", low, 0)
        return widgets.outlined(widgets.enlarge(colours, ZOOM), mask, width=1)

    def _map_note(self) -> str:
        scale = f"÷ test-set maximum {self.fits.open(self.state.fit).scale:.3g}"
        return scale if self._threshold is None else f"{scale}, log"

    def _show_contributions(self) -> None:
        parts = self.view.look.contributions
        if parts is None:
            picture, note = np.full((*self.view.x.shape, 3), 128, np.uint8), "none: the map is made afterwards"
        else:
            top = float(np.abs(parts).max())
            picture, note = widgets.colour(parts, "signed", -top, top), f"to the logit: up to {top:.2g} a pixel"
        self.controls.panels["contributions"].show("Contributions", widgets.enlarge(picture, ZOOM), note)

    def _cell_region(self) -> np.ndarray:
        """bool [H, W]: the pixels of the chosen cell."""
        data = self.study.data
        cells = np.zeros((data.grid, data.grid), bool)
        cells[data.grid - 1 - self.state.cell // data.grid, self.state.cell % data.grid] = True
        return widgets.enlarge(cells, data.block_size)

    def static(self) -> bytes:
        """The image with its mask, and the map of the first fit of each group above its validation-tuned threshold."""
        image, mask = self.board.render(self.drawing)
        x = image.astype(np.float32) / 255

        def marked(picture: np.ndarray) -> np.ndarray:
            return widgets.outlined(widgets.enlarge(picture, ZOOM), mask > 0, width=1)

        pictures = [(f"Test image {self.state.image}\nand its mask", marked(widgets.colour(x)))]
        for names in self.fits.names.values():
            fit = self.fits.open(names[0])
            threshold = fit.threshold("validation")
            shown = view(self.fits, fit.name, x, mask, threshold, False)
            picture = widgets.colour(shown.explained)
            picture[shown.kept == 0] = TINT
            pictures.append((f"{fit.label}\nTDR {shown.tdr:.2f} TAR {shown.tar:.2f}", marked(picture)))
        caption = "What is left above each fit's validation-tuned threshold. Controls follow where a kernel runs."
        return widgets.sheet(pictures, min(len(pictures), 8), caption, side=2 * self.study.data.image_size)
