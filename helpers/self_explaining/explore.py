"""The explorer of self-explaining nets: any digit, with a decoy or without, its explanations, and what removing the
pixels that they call relevant does to each net.

    explorer = Explorer({"clean digits": {"CNN": net, "LSX": net}, "decoys": {"CNN": net, "LSX": net}}, images)
    explorer                                          # as a cell's last line, shows it
    explorer.select(image=3, decoy=7, percent=20)
    explorer.select(trained="decoys", digit=5, norm="batch", keep="alone")
    explorer.learn()                                  # a fresh critic for each net: a second each
    explorer.state, explorer.looks, explorer.curves   # plain values: what is chosen, what is shown

What the controls do, these calls do, and the other way round. ``images`` are clean: the explorer paints the decoys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field
from torch import nn

from helpers import widgets
from helpers.config import ConfigError, Settings, suggest
from helpers.data import decoys
from helpers.data.images import Images
from helpers.self_explaining import views
from helpers.self_explaining.controls import Controls
from helpers.self_explaining.presets import Explanation, Label
from helpers.self_explaining.views import Corner, Decoy, Keep, Key, Lab, Look, Norm

SIDE = 150  # pixels of a picture of the static sheet


class State(Settings):
    """What is chosen. ``image`` counts all images, ``digit`` is its class. ``decoy``: the digit that the square in the
    ``corner`` tells (None: no square). ``percent`` of the pixels are those that the map calls relevant; the image is
    shown ``without`` them, or they are kept ``alone``."""

    trained: str
    digit: int
    image: int
    decoy: int | None = Field(None, ge=0, lt=decoys.VALUES)
    corner: Corner = "upper left"
    norm: Norm = "sample"
    label: Label = "true"
    percent: float = Field(20.0, ge=0, le=100)
    keep: Keep = "without"

    @property
    def square(self) -> Decoy | None:
        return None if self.decoy is None else Decoy(self.decoy, self.corner)


class Explorer(widgets.Explorer[State]):
    """See the module. ``nets`` by what they were trained on, then by how they learned; ``options``: how they explain,
    but for the norm, which is the state's; ``critic``: the network that learns from that, at ``learning_rate_critic``.
    Raises `ConfigError` as `views.Lab` does."""

    def __init__(
        self,
        nets: Mapping[str, Mapping[str, nn.Module]],
        images: Images,
        options: Explanation | None = None,
        critic: str = "Net1",
        learning_rate_critic: float = 0.2,
    ):
        self.lab = Lab(nets, images, options or Explanation(), critic, learning_rate_critic)
        self.looks: dict[str, Look] = {}
        digit, rows = next(iter(self.lab.rows.items()))
        super().__init__(State(trained=self.lab.trained[0], digit=digit, image=rows[0]))
        self.controls = Controls(self)
        self.widget = self.controls.widget
        self.refresh()

    # ---------------------------------------------------------------------------------------------- choices

    def changed(self, changes: Mapping[str, Any]) -> State:
        """The state after ``changes``, made whole: an image brings its digit, another digit its first image."""
        state, lab = self.state.override(changes), self.lab
        if state.trained not in lab.trained:
            raise ConfigError(f"no net was trained on {state.trained!r}: {suggest(state.trained, lab.trained)}")
        if state.digit not in lab.rows:
            there = ", ".join(map(str, lab.rows))
            raise ConfigError(f"no image shows digit {state.digit}: there are: {there}")
        last = len(lab.images) - 1
        if not 0 <= state.image <= last:
            raise ConfigError(f"there is no image {state.image}: they are 0 to {last}")
        own = int(lab.images.y[state.image])
        if own == state.digit:
            return state
        if {"image", "digit"} <= set(changes):
            raise ConfigError(f"image {state.image} shows digit {own}, not {state.digit}")
        derived = {"digit": own} if "image" in changes else {"image": lab.rows[state.digit][0]}
        return state.override(derived)

    def step(self, by: int = 1) -> None:
        """To the next image of the digit (-1: the one before)."""
        rows = self.lab.rows[self.state.digit]
        self.select(image=rows[(rows.index(self.state.image) + by) % len(rows)])

    def learn(self) -> None:
        """Have a fresh critic learn from the explanations of each net that is shown, under the norm and for the label
        that are chosen; `curves` then holds its losses. They are remembered."""
        for key in self.keys:
            self.lab.learn(key, self.state.norm, self.state.label)
        self.refresh()

    # ------------------------------------------------------------------------------------------------ values

    @property
    def keys(self) -> tuple[Key, ...]:
        """The nets that are shown."""
        return tuple((self.state.trained, name) for name in self.lab.names(self.state.trained))

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """The losses [N] of the critics by how the nets learned, as far as `learn` was called for what is chosen."""
        known, chosen = self.lab.critic_losses, (self.state.norm, self.state.label)
        return {key[1]: known[key, *chosen] for key in self.keys if (key, *chosen) in known}

    def render(self) -> None:
        state = self.state
        how = (state.square, state.label, state.norm, state.percent, state.keep)
        self.looks = {key[1]: self.lab.look(key, state.image, *how) for key in self.keys}
        self.controls.show(self)

    def static(self) -> bytes:
        """The image with each net's prediction, its map, and what the removal leaves of the image. A page that shows it
        shows the image: only of data that may be passed on."""
        state, square, classes = self.state, self.state.square, self.lab.images.classes
        x, pictures = self.lab.pixels([state.image], square)[0], []
        for name, look in self.looks.items():
            outcome = f"{classes[look.after.argmax()]}, {look.after.max():.0%}"
            mass = "" if look.mass is None else f"{look.mass:.0%} on the decoy"
            pictures += [
                (f"{name} says\n{classes[look.predicted]}, {look.before.max():.0%}", views.shown(x)),
                (f"its map for {classes[look.explained]}\n{mass}", views.shown_map(look.heat)),
                (f"{state.percent:g} % {'removed' if state.keep == 'without' else 'alone'}\n{outcome}",
                 views.shown(x, look.removed)),
            ]  # fmt: skip
        digit = "no decoy" if square is None else f"a decoy of digit {square.digit}, {square.corner}"
        norm = "its own maximum" if state.norm == "sample" else "its batch's maximum"
        scale = f"; each map over {norm}" if self.lab.divided else ""
        caption = f"Trained on {state.trained}; image {state.image}, {digit}{scale}."
        return widgets.sheet(pictures, 3 * min(len(self.looks), 2), caption, side=SIDE, text=15)
