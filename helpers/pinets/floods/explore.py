"""The explorer of the floods study: a chip, the bands it is drawn in, a model, a threshold, and a swipe.

    explorer = Explorer(study)                      # `explorer`, as a cell's last line, shows it
    explorer.select(chip="test-005", model="PiNet, areas alone", threshold=0.3, swipe=60)
    explorer.state, explorer.readout                # plain values: what is chosen, what is shown

What the controls do, these calls do, and the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ipywidgets as w
import numpy as np
from pydantic import Field

from helpers import widgets
from helpers.config import ConfigError, Settings, suggest
from helpers.data.flood_chips import NO_DATA, WATER
from helpers.pinets.floods import figures
from helpers.pinets.floods.maps import Maps
from helpers.pinets.floods.presets import FloodsStudy
from helpers.pinets.floods.study import Shelf

SIDE = 256  # screen pixels of a picture, at least
LINE = "#ff3b30"  # of the swipe


class State(Settings):
    """What is chosen. ``swipe``: percent of the width, from the left, that show the truth."""

    chip: str
    model: str
    bands: str = next(iter(figures.COMPOSITES))
    threshold: float = Field(figures.CUT, ge=0, le=1)
    swipe: int = Field(50, ge=0, le=100)


@dataclass(frozen=True)
class Readout:
    """Areas of water in pixels that have data: the map added up (the prediction), the pixels above the threshold, and
    the truth; ``known`` is how many have data, ``iou`` that of the pixels above the threshold (NaN: no water)."""

    predicted: float
    cut: int
    true: int
    known: int
    iou: float


def readout(water: np.ndarray, mask: np.ndarray, threshold: float) -> Readout:
    """The areas of a map [H, W] of water against its mask."""
    known, true = mask != NO_DATA, mask == WATER
    above = (water > threshold) & known
    union = int((above | true).sum())
    return Readout(
        predicted=float(water[known].sum(dtype=float)),
        cut=int(above.sum()),
        true=int(true.sum()),
        known=int(known.sum()),
        iou=int((above & true).sum()) / union if union else float("nan"),
    )


class Explorer(widgets.Explorer[State]):
    """See the module. Raises `ArtifactError` if there are no maps."""

    def __init__(self, study: FloodsStudy, shelf: Shelf | None = None):
        self.maps = Maps(study, shelf)
        self.readout: Readout
        super().__init__(State(chip=self.maps.chips[0], model=next(iter(self.maps.models))))
        self.panels = {name: widgets.Panel(name) for name in ("image", "map", "swipe")}
        self.table = w.HTML()
        self.widget = self._widget()
        self.refresh()

    def changed(self, changes: Any) -> State:
        state = self.state.override(changes)
        for name, value, known in (
            ("chip", state.chip, self.maps.chips),
            ("model", state.model, self.maps.models),
            ("bands", state.bands, figures.COMPOSITES),
        ):
            if value not in known:
                raise ConfigError(f"unknown {name} {value!r}: {suggest(value, known)}")
        return state

    def step(self, by: int = 1) -> None:
        """To the next chip (-1: the one before)."""
        chips = self.maps.chips
        self.select(chip=chips[(chips.index(self.state.chip) + by) % len(chips)])

    # ---------------------------------------------------------------------------------------------- pictures

    def render(self) -> None:
        state = self.state
        image, mask = self.maps.scene(state.chip)
        water = self.maps.water(state.model, state.chip)
        self.readout = readout(water, mask, state.threshold)
        self.panels["image"].show(state.chip, self._large(figures.composite(image, state.bands)), state.bands)
        note = f"outlined: above {state.threshold:.2f}"
        drawn = widgets.enlarge(widgets.colour(water, "heat"), self._zoom(mask))
        self.panels["map"].show("Share of water", widgets.outlined(drawn, water > state.threshold, width=1), note)
        self.panels["swipe"].show("Truth | prediction", self._swipe(water, mask), "water teal, dry grey, no data black")
        self.table.value = table(self.readout)
        self._follow()

    def _swipe(self, water: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3]: the mask on the left of the line, what the model decides on its right."""
        edge = round(self.state.swipe / 100 * mask.shape[1])
        decided = figures.decided(water, mask, self.state.threshold)
        joined = np.concatenate([mask[:, :edge], decided[:, edge:]], 1)
        picture, zoom = self._large(figures.paint(joined)), self._zoom(mask)
        picture[:, max(edge * zoom - 1, 0) : edge * zoom + 1] = [int(LINE[i : i + 2], 16) for i in (1, 3, 5)]
        return picture

    def _large(self, picture: np.ndarray) -> np.ndarray:
        return widgets.enlarge((picture * 255).round().astype(np.uint8), self._zoom(picture))

    def _zoom(self, picture: np.ndarray) -> int:
        return max(1, SIDE // len(picture))

    def static(self) -> bytes:
        """The chip, its mask, and every model's map."""
        image, mask = self.maps.scene(self.state.chip)
        pictures = [
            (self.state.chip, self._large(figures.composite(image))),
            (f"truth\n{(mask == WATER).sum():,} px of water", self._large(figures.paint(mask))),
        ]
        for model in self.maps.models:
            water = self.maps.water(model, self.state.chip)
            area = readout(water, mask, figures.CUT).predicted
            name = model.replace(", ", "\n")
            pictures.append((f"{name}: {area:,.0f} px", self._large(figures.shade(water, mask))))
        caption = f"{self.maps.study.data.name}: areas are maps added up. Controls follow where a kernel runs."
        return widgets.sheet(pictures, min(len(pictures), 6), caption)

    # ---------------------------------------------------------------------------------------------- controls

    def _widget(self) -> w.Widget:
        bind, click, select = self.bind, self.bind_click, self.select
        self.chip = bind(widgets.dropdown("Chip", self.maps.chips, "190px"), lambda chip: select(chip=chip))
        before = click(widgets.button("◀", "the chip before", "36px"), lambda: self.step(-1))
        after = click(widgets.button("▶", "the next chip", "36px"), lambda: self.step(1))
        self.model = bind(widgets.dropdown("Model", list(self.maps.models), "280px"), lambda model: select(model=model))
        self.model.add_class("sightline-model")
        self.bands = bind(
            widgets.dropdown("Bands", list(figures.COMPOSITES), "290px"), lambda bands: select(bands=bands)
        )
        self.threshold = w.FloatSlider(
            min=0, max=1, step=0.01, description="Threshold", continuous_update=False, layout={"width": "360px"}
        )
        self.swipe = w.IntSlider(
            min=0, max=100, description="Swipe, %", continuous_update=False, layout={"width": "360px"}
        )
        bind(self.threshold, lambda value: select(threshold=round(value, 2)))
        bind(self.swipe, lambda value: select(swipe=value))
        row = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "0 10px"}
        pictures = w.GridBox([panel.widget for panel in self.panels.values()])
        pictures.layout = {"grid_template_columns": "repeat(3, minmax(0, 1fr))", "grid_gap": "0 12px"}
        rows = [
            w.HTML(widgets.STYLE),
            w.HBox([before, self.chip, after, self.bands, self.model], layout=row),
            w.HBox([self.threshold, self.swipe], layout=row),
            self.message,
            pictures,
            self.table,
        ]
        box = w.VBox(rows, layout={"max_width": "1000px", "padding": "4px", "grid_gap": "4px"})
        box.add_class("sightline")
        return box

    def _follow(self) -> None:
        """The controls show the state."""
        for name in ("chip", "model", "bands", "threshold", "swipe"):
            getattr(self, name).value = getattr(self.state, name)


def table(found: Readout) -> str:
    """The areas as an HTML table, with their errors."""

    def row(name: str, area: float, note: str) -> list[str]:
        error = area - found.true
        share = f"{area / found.known:.2%}" if found.known else "no pixel has data"
        signed = f"{'+' if error >= 0 else '−'}{abs(error):,.0f}"
        return [name, f"<b>{area:,.0f}</b> px ({share})", f"{signed} px; {note}"]

    iou = "no water to find" if found.iou != found.iou else f"IoU {found.iou:.3f}"
    rows = [
        row("Σ of the map", found.predicted, "the prediction, which no threshold changes"),
        row("above the threshold", found.cut, iou),
        ["truth", f"<b>{found.true:,}</b> px", f"of {found.known:,} px that have data"],
    ]
    return widgets.table(["area of water", "", "error"], rows)
