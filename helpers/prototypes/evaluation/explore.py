"""The explorer of the evaluation: give an image of noise its pixels back, in the order of a map, and watch a prototype
find again what it looked at; beside it, what is known of that prototype.

    explorer = Explorer({"birdnet@stage3": net, "birdnet@stage4/protopnet": other}, cards=cards)
    explorer                                            # as a cell's last line, shows it
    explorer.select(image=3, place=1, mapping="upsample", percent=20.0)
    explorer.state, explorer.trial                      # plain values: what is chosen, what is shown

What the controls do, these calls do, and the other way round.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import ipywidgets as w
import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from helpers import widgets
from helpers.config import ConfigError, Settings, suggest
from helpers.data.toybirds import ToyBirdsSettings
from helpers.prototypes import drawings
from helpers.prototypes.drawings import number
from helpers.prototypes.evaluation import examples, ordering
from helpers.prototypes.evaluation.examples import SEED, Trial
from helpers.prototypes.evaluation.figures import MAPPINGS
from helpers.prototypes.evaluation.measures import methods
from helpers.prototypes.evaluation.presets import Spread
from helpers.prototypes.mapping import boxes
from helpers.prototypes.models import ProtoNet
from helpers.prototypes.views import Lab

NAMES: tuple[Spread, ...] = ("rf", "upsample", "prp", "random")
TIPS = {
    "rf": "each cell's similarity, over the pixels that it sees",
    "upsample": "the map of similarities, enlarged",
    "prp": "relevance handed back from the best cell",
    "random": "any order",
}
PERCENTS = (0.0, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0)
CACHED = 64  # trials
WRAP = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "2px 14px"}
SIDE = 190  # pixels of a picture of the static sheet
NOTE = (
    "The similarity is the greatest of all cells. A good map makes it rise with few pixels. Outlined: the receptive "
    "field of the prototype's best cell in the whole image; no pixel outside of it changes the similarity there."
)
CARD = {
    "part": "lies on",
    "purity": "purity, %",
    "effect_part": "depends most on",
    "effect_share": "of all effects, %",
    "causal_purity": "lies on what it depends on, %",
    "consistency": "consistency, %",
    "stability": "stability, %",
}
"""Columns of the report card (`study.cards`), and what they are called there."""


class State(Settings):
    """What is chosen. ``image`` counts the test birds, ``place`` the prototypes of its true class."""

    net: str
    image: int = 0
    place: int = 0
    mapping: Spread = "rf"
    percent: float = Field(10.0, ge=0, le=100)


class Explorer(widgets.Explorer[State]):
    """See the module. ``nets`` by name, trained on the birds of ``settings``; ``cards``: a report card of each net,
    with a row a prototype. Raises `ConfigError` as `views.Lab` does."""

    def __init__(
        self,
        nets: Mapping[str, ProtoNet],
        settings: ToyBirdsSettings | None = None,
        cards: Mapping[str, pd.DataFrame] | None = None,
        seed: int = 0,
    ):
        self.lab, self.cards = Lab(nets, settings or ToyBirdsSettings(), seed), dict(cards or {})
        self.methods = {name: methods(net, self.lab.fields[name], NAMES, SEED) for name, net in self.lab.nets.items()}
        self.owned = {name: ordering.own_prototypes(net).tolist() for name, net in self.lab.nets.items()}
        self.noise = examples.noise([self.lab.settings.size] * 2)
        self.counts = torch.tensor([round(p / 100 * self.lab.settings.size**2) for p in PERCENTS])
        self.tried = lru_cache(CACHED)(self._tried)
        self.trial: Trial | None = None
        super().__init__(State(net=next(iter(self.lab.nets))))
        self._build()
        self.refresh()

    # ------------------------------------------------------------------------------------------------ values

    def changed(self, changes: Mapping[str, Any]) -> State:
        """The state after ``changes``; ``percent`` becomes the nearest of `PERCENTS`."""
        state = self.state.override(changes)
        if state.net not in self.lab.nets:
            raise ConfigError(f"there is no net {state.net!r}: {suggest(state.net, self.lab.nets)}")
        for name, count in (("image", len(self.lab.labels)), ("place", len(self.owned[state.net][0]))):
            if not 0 <= getattr(state, name) < count:
                raise ConfigError(f"there is no {name} {getattr(state, name)}: they are 0 to {count - 1}")
        if state.mapping not in NAMES:
            raise ConfigError(f"the explorer has no mapping {state.mapping!r}: {suggest(state.mapping, NAMES)}")
        return state.override({"percent": min(PERCENTS, key=lambda known: abs(known - state.percent))})

    @property
    def prototypes(self) -> list[int]:
        """Those of the bird's class."""
        return self.owned[self.state.net][int(self.lab.labels[self.state.image])]

    def _tried(self, name: str, image: int, prototype: int) -> Trial:
        x = self.lab.inputs(self.lab.pixels(image, None))
        return examples.tried(self.lab.nets[name], x, prototype, self.methods[name], self.counts)

    def given_back(self, mapping: str, percent: float) -> Tensor:
        """float32 [3, S, S] in [0, 1]: the noise with so many of the bird's pixels."""
        x = self.lab.inputs(self.lab.pixels(self.state.image, None))[0]
        known = self.trial.ranks[mapping] < self.counts[PERCENTS.index(percent)]
        return self.lab.pipeline.restore(torch.where(known, x, self.noise))

    # --------------------------------------------------------------------------------------------------- shown

    def _build(self) -> None:
        self.net = widgets.dropdown("Net", list(self.lab.nets), "300px")
        self.image = w.BoundedIntText(description="bird", min=0, max=len(self.lab.labels) - 1, style=widgets.LABELLED,
                                      layout={"width": "110px"})  # fmt: skip
        self.place = widgets.dropdown("prototype", [0], "200px")
        names = [(MAPPINGS[name][0], name) for name in NAMES]
        tips = [TIPS[name] for name in NAMES]
        self.mapping = w.ToggleButtons(options=names, tooltips=tips, style={"button_width": "132px"})
        self.percent = w.SelectionSlider(
            description="pixels given back", options=[(f"{p:g} %", p) for p in PERCENTS], style=widgets.LABELLED,
            layout={"width": "420px"}, continuous_update=False,
        )  # fmt: skip
        for name in ("net", "image", "place", "mapping", "percent"):
            control = self.bind(getattr(self, name), lambda value, name=name: self.select(**{name: value}))
            control.add_class(f"sightline-{name}")
        self.panels = {name: widgets.Panel(name) for name in ("given", "bird", "heat", "source")}
        grid = w.GridBox([panel.widget for panel in self.panels.values()])
        grid.layout = {"grid_template_columns": "repeat(4, minmax(0, 258px))", "grid_gap": "0 12px"}
        self.curve, self.card = w.HTML(), w.HTML()
        self.card.add_class("sightline-card")
        self.curve.add_class("sightline-curve")
        rows = [
            w.HTML(widgets.STYLE),
            w.HBox([self.net, self.image, self.place], layout=WRAP),
            w.HBox([w.HTML("Order by"), self.mapping, self.percent], layout=WRAP),
            self.message, grid, self.curve, w.HTML(f"<small>{NOTE}</small>"), self.card,
        ]  # fmt: skip
        self.widget = w.VBox(rows, layout={"max_width": "1100px"})
        self.widget.add_class("sightline")

    def render(self) -> None:
        state, lab = self.state, self.lab
        self.trial = trial = self.tried(state.net, state.image, self.prototypes[state.place])
        for name in ("net", "image", "mapping", "percent"):
            getattr(self, name).value = getattr(state, name)
        options = [(f"{place + 1}: number {prototype}", place) for place, prototype in enumerate(self.prototypes)]
        widgets.set_options(self.place, options, state.place)
        pixels, true = lab.pixels(state.image, None), int(lab.labels[state.image])
        box = boxes(trial.cell, lab.fields[state.net]).tolist()
        reached = trial.similarities[state.mapping][PERCENTS.index(state.percent)]
        self.panels["given"].show(
            f"{state.percent:g} % of the pixels", drawings.shown(self.given_back(state.mapping, state.percent)),
            f"similarity {reached:.2f}, {trial.similarities[state.mapping][-1]:.2f} with all",
        )  # fmt: skip
        self.panels["bird"].show(
            f"Bird {state.image}", drawings.outlined(drawings.shown(pixels), box, drawings.TINTS[0]),
            f"class {lab.classes[true]}",
        )  # fmt: skip
        self.panels["heat"].show(
            "The map", drawings.heated(pixels, trial.heat[state.mapping]), MAPPINGS[state.mapping][0]
        )
        self._show_source()
        self.curve.value = curve(trial, state)
        self.card.value = self._card()

    def _show_source(self) -> None:
        net, lab, prototype = self.lab.nets[self.state.net], self.lab, self.trial.prototype
        source = int(net.source_image[prototype])
        if source < 0:
            blank = np.full((lab.settings.size, lab.settings.size, 3), drawings.BLANK, np.uint8)
            self.panels["source"].show("The prototype", blank, "not projected yet")
            return
        box = lab.fields[self.state.net].box(*net.source_cell[prototype].tolist())
        picture = drawings.patch(lab.sources((source,))[0], box, drawings.TINTS[0])
        self.panels["source"].show("The prototype", picture, f"a patch of training bird {source}")

    def _card(self) -> str:
        """The report cards of the class's prototypes, the one that is shown in bold."""
        if (card := self.cards.get(self.state.net)) is None:
            return ""
        card = card.set_index("prototype")
        known = {column: name for column, name in CARD.items() if column in card}
        rows = []
        for prototype in self.prototypes:
            cells = [_cell(card.at[prototype, column]) for column in known]
            bold = prototype == self.trial.prototype
            rows.append([f"<b>{text}</b>" if bold else text for text in (f"prototype {prototype}", *cells)])
        return widgets.table(["Report card", *known.values()], rows)

    def static(self) -> bytes:
        """A row a mapping, with more and more pixels."""
        steps, found = (2.0, 5.0, 10.0, 20.0, 40.0), []
        for name in NAMES[:3]:
            for percent in steps:
                reached = self.trial.similarities[name][PERCENTS.index(percent)]
                title = f"{MAPPINGS[name][0]}\n{percent:g} %: similarity {reached:.2f}"
                found.append((title, drawings.shown(self.given_back(name, percent))))
        caption = (
            f"{self.state.net}, prototype {self.trial.prototype} on bird {self.state.image}: similarity "
            f"{self.trial.similarities['rf'][-1]:.2f} with all pixels."
        )
        return widgets.sheet(found, len(steps), caption, side=SIDE, text=14)


def curve(trial: Trial, state: State, width: int = 760, height: int = 210) -> str:
    """The curves of all mappings as SVG, the chosen one thick, and a mark where the slider is."""
    values = [value for of in trial.similarities.values() for value in of]
    low, high = min(values), max(values)
    left, right, top, bottom = 52, width - 190, 12, height - 38

    def at(percent: float, value: float) -> tuple[float, float]:
        share = (value - low) / (high - low or 1.0)
        return left + (right - left) * percent / 100, bottom - (bottom - top) * share

    said = ", ".join(f"{MAPPINGS[name][0]} {of[PERCENTS.index(state.percent)]:.2f}"
                     for name, of in trial.similarities.items())  # fmt: skip
    parts = [
        f'<svg class="sightline-svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="Similarity with {state.percent:g} % of the pixels: {html.escape(said)}">',
        *_axes(low, high, at, (left, right, top, bottom)),
    ]
    x, _ = at(state.percent, low)
    parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="currentColor" opacity=".4"/>')
    for place, (name, of) in enumerate(trial.similarities.items()):
        label, colour = MAPPINGS[name]
        chosen = name == state.mapping
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in map(at, PERCENTS, of))
        line = f'fill="none" stroke="{colour}" stroke-width="{3 if chosen else 1.4}"'
        parts.append(f'<polyline points="{points}" {line}/>')
        px, py = at(state.percent, of[PERCENTS.index(state.percent)])
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{5 if chosen else 3}" fill="{colour}"/>')
        y, bold = top + 14 + 20 * place, ' font-weight="700"' if chosen else ""
        parts.append(f'<rect x="{right + 14}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{right + 30}" y="{y}"{bold}>{html.escape(label)}</text>')
    return "".join(parts) + "</svg>"


def _axes(low: float, high: float, at: Any, edges: Sequence[float]) -> list[str]:
    left, right, top, bottom = edges
    lines = [f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="currentColor" opacity=".5"/>']
    for value in (low, high):
        lines.append(f'<text x="{left - 6}" y="{at(0, value)[1] + 3:.1f}" text-anchor="end">{number(value)}</text>')
    for percent in (0, 25, 50, 75, 100):
        lines.append(f'<text x="{at(percent, low)[0]:.1f}" y="{bottom + 18}" text-anchor="middle">{percent} %</text>')
    middle = (left + right) / 2
    return [*lines, f'<text x="{middle}" y="{bottom + 35}" text-anchor="middle">pixels of the bird given back</text>']


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return html.escape(value)
    return "–" if value is None or value != value else f"{value:.0f}"
