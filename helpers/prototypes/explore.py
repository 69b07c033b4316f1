"""The explorer of prototypes: any test bird, the training patches that its parts are found to look like, which pixels
that is about, and what becomes of it all when one part of the bird is removed or changed.

    explorer = Explorer({"birdnet@stage3": net, "birdnet@stage4": other}, ToyBirdsSettings())
    explorer                                                # as a cell's last line, shows it
    explorer.select(image=3, part="beak", what="removed")
    explorer.select(net="birdnet@stage4", spread="upsample", noise=0)
    explorer.state, explorer.look, explorer.noises          # plain values: what is chosen, what is shown

What the controls do, these calls do, and the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from helpers import widgets
from helpers.config import ConfigError, Settings, suggest
from helpers.data.bird_scenes import PARTS
from helpers.data.toybirds import ToyBirdsSettings
from helpers.prototypes import drawings, views
from helpers.prototypes.controls import Controls
from helpers.prototypes.drawings import TINTS
from helpers.prototypes.models import ProtoNet
from helpers.prototypes.views import AS_IT_IS, SHOWN, Edit, Evidence, Explained, Lab, Look, Noise, Order, Spread

SIDE = 170  # pixels of a picture of the static sheet
STATIC = {"rf": "its map by receptive fields", "upsample": "its map, up-sampled", "boxes": "its boxes"}


class State(Settings):
    """What is chosen. ``image`` counts the test birds, ``bird`` is the class whose birds one steps through (None: all).
    ``what`` becomes of the ``part``; ``explained`` is a class, the true one, or that predicted for the bird as it is.
    ``noise``: the place of the prototype outside whose boxes there is noise (None: nowhere), ``draw`` counts it."""

    net: str
    image: int = 0
    bird: int | None = None
    part: str = PARTS[0]
    what: str = AS_IT_IS
    explained: Explained = "predicted"
    by: Order = "contribution"
    spread: Spread = "rf"
    noise: int | None = Field(None, ge=0, lt=SHOWN)
    draw: int = Field(0, ge=0)

    @property
    def edit(self) -> Edit | None:
        return None if self.what == AS_IT_IS else Edit(self.part, self.what)


class Explorer(widgets.Explorer[State]):
    """See the module. ``nets`` by name; ``settings`` and ``seed`` are those of the birds that they were trained on.
    Raises `ConfigError` as `views.Lab` does."""

    def __init__(self, nets: Mapping[str, ProtoNet], settings: ToyBirdsSettings | None = None, seed: int = 0):
        self.lab = Lab(nets, settings or ToyBirdsSettings(), seed)
        self.look: Look | None = None
        self.noises: tuple[Noise, ...] = ()
        super().__init__(State(net=next(iter(self.lab.nets))))
        self.controls = Controls(self)
        self.widget = self.controls.widget
        self.refresh()

    # ---------------------------------------------------------------------------------------------- choices

    def changed(self, changes: Mapping[str, Any]) -> State:
        """The state after ``changes``, made whole: an image of another class brings its class, another class its first
        image, another part comes as it is."""
        state, lab = self.state.override(changes), self.lab
        if state.net not in lab.nets:
            raise ConfigError(f"there is no net {state.net!r}: {suggest(state.net, lab.nets)}")
        last, classes = len(lab.labels) - 1, len(lab.classes)
        if not 0 <= state.image <= last:
            raise ConfigError(f"there is no bird {state.image}: they are 0 to {last}")
        for k in (state.bird, state.explained):
            if isinstance(k, int) and not 0 <= k < classes:
                raise ConfigError(f"there is no class {k}: they are 0 to {classes - 1}")
        if state.part != self.state.part and "what" not in changes:
            state = state.override({"what": AS_IT_IS})
        if state.what not in (known := views.choices(state.part)):
            raise ConfigError(f"the {state.part} cannot be {state.what!r}: {suggest(state.what, known)}")
        own = int(lab.labels[state.image])
        if state.bird in (None, own):
            return state
        if {"image", "bird"} <= set(changes):
            raise ConfigError(f"bird {state.image} is of class {lab.classes[own]}, not {lab.classes[state.bird]}")
        return state.override({"bird": own} if "image" in changes else {"image": lab.rows[state.bird][0]})

    def step(self, by: int = 1) -> None:
        """To the next bird, of the class if one is chosen (-1: the one before)."""
        self.select(image=self.rows[(self.rows.index(self.state.image) + by) % len(self.rows)])

    # ------------------------------------------------------------------------------------------------ values

    @property
    def rows(self) -> Sequence[int]:
        """The birds that one steps through."""
        return range(len(self.lab.labels)) if self.state.bird is None else self.lab.rows[self.state.bird]

    @property
    def noised(self) -> Evidence | None:
        """The prototype outside whose boxes there is noise, if it is shown."""
        place, evidence = self.state.noise, self.look.evidence
        return None if place is None or place >= len(evidence) else evidence[place]

    def render(self) -> None:
        state, lab = self.state, self.lab
        self.look = lab.look(state.net, state.image, state.edit, state.explained, state.by, state.spread)
        seen = self.noised
        self.noises = lab.noise(state.net, state.image, state.edit, seen, state.draw) if seen else ()
        self.controls.show(self)

    def static(self) -> bytes:
        """This, that and the map of each prototype, one a column."""
        state, lab, look = self.state, self.lab, self.look
        pixels, these, those, maps = lab.pixels(state.image, state.edit), [], [], []
        for seen, tint in zip(look.evidence, TINTS, strict=False):
            source = "not projected yet" if seen.source < 0 else f"like training bird {seen.source}"
            these.append((f"prototype {seen.prototype} adds {seen.after:.2f}", drawings.patch(pixels, seen.box, tint)))
            those.append((source, drawings.origin(seen, pixels, tint)))
            maps.append((STATIC[state.spread], drawings.mapped(pixels, seen, tint)))
        kind, edit = lab.classes[look.explained], f", its {state.part} {state.what}" if state.edit else ""
        caption = f"{state.net} on bird {state.image}{edit}: why {kind}, logit {look.after.logits[look.explained]:.2f}."
        return widgets.sheet([*these, *those, *maps], len(these), caption, side=SIDE, text=14)
