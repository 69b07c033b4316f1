"""The controls of the explorer of prototypes: built once, bound to its methods, made to follow its state."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import ipywidgets as w
import numpy as np

from helpers import widgets
from helpers.data.bird_scenes import COLOURS, PARTS, SHAPES
from helpers.prototypes import drawings, views
from helpers.prototypes.drawings import TINTS, UPSAMPLED, number
from helpers.prototypes.views import AS_IT_IS, SHOWN, Evidence, Noise, Reaction

if TYPE_CHECKING:
    from helpers.prototypes.explore import Explorer

WIDTH = 1140  # screen pixels
FOLLOWING = ("net", "bird", "image", "part", "explained", "by", "spread")  # controls whose value is the state's
MAPS = {"rf": "What its cells see", "upsample": "Its map, up-sampled", "boxes": "Both boxes"}
UNCHANGED = 5e-5  # of a similarity: less cannot be seen in four decimals
WRAP = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "2px 14px"}
STYLE = """<style>
.sightline .sightline-reactions td { width: auto; white-space: nowrap }
.sightline .sightline-reactions .inside { background: rgba(0, 158, 115, .22); padding: 1px 5px }
.sightline .sightline-reactions .outside { background: rgba(213, 94, 0, .22); padding: 1px 5px }
</style>"""
NOTE = (
    "Solid: the receptive field of a prototype's best cell, all pixels that its similarity depends on. Dashed: the box "
    "that ProtoPNet draws after up-sampling. Prototypes keep the order that they have for the bird as it is."
)
UNEDITED = "Remove or change a part of the bird, and here stand the prototypes that react most."
SAME = "No pixel changes: the part is so already, or hidden, or has no colour of its own."
NO_NOISE = (
    "Choose a prototype: noise outside its box leaves its similarity as it is; noise outside the box that up-sampling "
    "draws shows what that hides."
)


class Panel(widgets.Panel):
    """Draws what it does not show already: most pictures stay what they are when one thing changes."""

    shown: Hashable = None

    def draw(self, depends: Hashable, title: str, picture: Callable[[], np.ndarray], note: str) -> None:
        """``depends``: all that the picture depends on."""
        if self.shown != (shown := (depends, title, note)):
            self.show(title, picture(), note)
            self.shown = shown


class PrototypePanel:
    """All that is shown of one prototype. ``widget`` is what is laid out."""

    def __init__(self, place: int):
        self.place, self.tint = place, TINTS[place]
        self.head = w.HTML()
        self.panels = {part: Panel(f"{part}-{place}") for part in ("this", "that", "map")}
        pictures = w.GridBox([panel.widget for panel in self.panels.values()])
        pictures.layout = {"grid_template_columns": "repeat(3, minmax(0, 1fr))", "grid_gap": "0 10px"}
        layout = {"flex": "1 1 420px", "min_width": "0", "max_width": "640px"}
        self.widget = w.VBox([self.head, pictures], layout=layout)

    def show(self, explorer: Explorer, seen: Evidence, most: float) -> None:
        """``most``: the largest contribution on the screen."""
        state, lab = explorer.state, explorer.lab
        moved = "unchanged" if seen.after == seen.before else number(seen.after - seen.before, True)
        change = f", {moved} by the edit" if state.edit else ""
        name = f"<b>{self.place + 1}: {lab.named(state.net, seen.prototype)}</b>"
        bar = drawings.bar(seen.before, seen.after, most, self.tint)
        self.head.value = f"{name} adds {number(seen.after)}{change}{bar}"
        height, width = seen.box[1] - seen.box[0], seen.box[3] - seen.box[2]
        size = f"{height} × {width} px ({height * width / lab.settings.size**2:.0%})"
        source = "not projected yet" if seen.source < 0 else f"training bird {seen.source}"
        pixels, bird = lab.pixels(state.image, state.edit), (state.image, state.edit, seen.box)
        self.panels["this"].draw(bird, "This", lambda: drawings.patch(pixels, seen.box, self.tint), size)
        origin = (state.net, seen.prototype)
        self.panels["that"].draw(origin, "looks like that", lambda: drawings.origin(seen, pixels, self.tint), source)
        how, hidden = (*bird, *origin, state.spread), f"dashed leaves out {seen.hidden:.0%}"
        self.panels["map"].draw(how, MAPS[state.spread], lambda: drawings.mapped(pixels, seen, self.tint), hidden)


class Controls:
    """``widget`` is all of it."""

    def __init__(self, explorer: Explorer):
        self.birds = {name: Panel(name) for name in ("bird", "before")}
        self.noises = {name: Panel(name) for name in ("noise-rf", "noise-upsample")}
        self.prototypes = [PrototypePanel(place) for place in range(SHOWN)]
        self.logits, self.reactions, self.noise_note = w.HTML(), w.HTML(), w.HTML()
        self.place, self.own = w.HTML(), w.HTML()
        for panel in self.birds.values():
            panel.widget.layout.width = "258px"
        self.logits.layout = {"flex": "1 1 440px", "min_width": "0"}
        birds = w.HBox([*(panel.widget for panel in self.birds.values()), self.logits])
        prototypes = w.HBox([panel.widget for panel in self.prototypes])
        for row in (birds, prototypes):
            row.layout = {"flex_flow": "row wrap", "grid_gap": "14px 28px"}
        rows = [w.HTML(widgets.STYLE + STYLE), *self._choices(explorer), explorer.message, birds,
                w.HTML(f"<small>{NOTE}</small>"), prototypes, self._below(explorer)]  # fmt: skip
        self.widget = w.VBox(rows, layout={"max_width": f"{WIDTH + 20}px", "padding": "4px", "grid_gap": "6px"})
        self.widget.add_class("sightline")

    # ---------------------------------------------------------------------------------------------- choices

    def _choices(self, explorer: Explorer) -> list[w.Widget]:
        classes = [(name, k) for k, name in enumerate(explorer.lab.classes)]
        said = [("predicted", "predicted"), ("true", "true")]
        maps = [("receptive fields", "rf"), ("up-sampling", "upsample"), ("boxes alone", "boxes")]
        self.net = widgets.dropdown("Net", tuple(explorer.lab.nets), "240px")
        self.bird = widgets.dropdown("Birds of class", [("any", None), *classes], "210px")
        self.image = w.IntText(description="Bird", layout={"width": "120px"}, style=widgets.LABELLED)
        self.part = widgets.dropdown("Its", PARTS, "110px")
        self.what = widgets.dropdown("is", [AS_IT_IS], "140px")
        self.explained = widgets.dropdown("Class explained", [*said, *classes], "230px")
        self.by = widgets.dropdown("sorted by", ["contribution", "similarity"], "190px")
        self.noise = widgets.dropdown("Noise outside the boxes of", [("none", None)], "330px")
        self.spread = w.ToggleButtons(options=maps, style={"button_width": "124px"})
        self.spread.tooltips = [
            "similarities spread over what their cells see", "as if a cell were about its block of the image", "no map",
        ]  # fmt: skip
        for name in (*FOLLOWING, "what", "noise"):
            control = explorer.bind(getattr(self, name), lambda value, name=name: explorer.select(**{name: value}))
            control.add_class(f"sightline-{name}")
        self.again = widgets.button("Other noise", "draw the noise anew", "110px")
        before, after = widgets.button("◀", "the bird before", "36px"), widgets.button("▶", "the next bird", "36px")
        explorer.bind_click(self.again, lambda: explorer.select(draw=explorer.state.draw + 1))
        explorer.bind_click(before, lambda: explorer.step(-1))
        explorer.bind_click(after, lambda: explorer.step(1))
        return [
            w.HBox([self.net, self.bird, before, self.image, after, self.place], layout=WRAP),
            w.HBox([self.part, self.what, self.own], layout=WRAP),
            w.HBox([self.explained, self.by, w.HTML("Map by"), self.spread], layout=WRAP),
        ]

    def _below(self, explorer: Explorer) -> w.Widget:
        pictures = w.GridBox([panel.widget for panel in self.noises.values()])
        pictures.layout = {"grid_template_columns": "repeat(2, minmax(0, 258px))", "grid_gap": "0 12px"}
        noise = w.VBox([w.HBox([self.noise, self.again], layout=WRAP), self.noise_note, pictures])
        self.reactions.add_class("sightline-reactions")
        for column in (self.reactions, noise):
            column.layout = {"flex": "1 1 420px", "min_width": "0"}
        return w.HBox([self.reactions, noise], layout={"flex_flow": "row wrap", "grid_gap": "14px 28px"})

    # ------------------------------------------------------------------------------------------------- shown

    def show(self, explorer: Explorer) -> None:
        """Follow the explorer's state."""
        state, evidence = explorer.state, explorer.look.evidence
        for name in FOLLOWING:
            getattr(self, name).value = getattr(state, name)
        widgets.set_options(self.what, what_options(state.part), state.what)
        places = [(f"{place + 1}, prototype {seen.prototype}", place) for place, seen in enumerate(evidence)]
        widgets.set_options(self.noise, [("none", None), *places], state.noise if explorer.noised else None)
        self._show_birds(explorer)
        most = max((abs(value) for seen in evidence for value in (seen.before, seen.after)), default=1.0)
        for place, panel in enumerate(self.prototypes):
            panel.widget.layout.display = "" if place < len(evidence) else "none"
            if place < len(evidence):
                panel.show(explorer, evidence[place], most)
        self.reactions.value = reactions(explorer)
        self._show_noise(explorer)

    def _show_birds(self, explorer: Explorer) -> None:
        state, lab, look = explorer.state, explorer.lab, explorer.look
        true, edit = int(lab.labels[state.image]), state.edit
        rows = explorer.rows
        self.place.value = f"<small>{rows.index(state.image) + 1} of {len(rows)}, class {lab.classes[true]}</small>"
        self.own.value = f"<small>{own(explorer)}</small>"
        title = f"Bird {state.image}" + (f", {state.part} {edit.what}" if edit else "")
        pixels, as_it_is = lab.pixels(state.image, edit), lab.pixels(state.image, None)
        boxes = tuple(seen.before_box for seen in look.evidence)
        says, said = (verdict(lab.classes, seen.predicted, true) for seen in (look.after, look.before))
        self.birds["bird"].draw((state.image, edit), title, lambda: drawings.shown(pixels), says)
        self.birds["before"].draw(
            (state.image, boxes), "As it is, with all boxes", lambda: drawings.numbered(as_it_is, boxes), said
        )
        self.logits.value = drawings.logits(look, lab.classes, true)

    def _show_noise(self, explorer: Explorer) -> None:
        noises = explorer.noises
        self.again.disabled = not noises
        self.noise_note.value = "" if noises else f"<small>{NO_NOISE}</small>"
        titles = ("Noise outside its box", "outside the up-sampled box")
        lines = ((TINTS[explorer.state.noise or 0], False), (UPSAMPLED, True))
        for panel in self.noises.values():
            panel.widget.layout.display = "" if noises else "none"
        for panel, title, line, noise in zip(self.noises.values(), titles, lines, noises, strict=False):
            picture = drawings.outlined(drawings.shown(noise.pixels), noise.box, *line)
            panel.show(title, picture, moved(noise, explorer.lab.settings.size))


# ------------------------------------------------------------------------------------------------------- as text


def what_options(part: str) -> list[tuple[str, str]]:
    """What can become of a part, as it is offered."""
    kinds = {word: "shape: " for word in SHAPES[part]} | {word: "colour: " for word in COLOURS}
    return [(kinds.get(word, "") + word, word) for word in views.choices(part)]


def own(explorer: Explorer) -> str:
    """What the part of this bird is, and how much of the picture an edit changes."""
    state, pixels = explorer.state, int(explorer.look.changed.sum())
    change = f"; {pixels} of {explorer.look.changed.size} pixels change" if state.edit else ""
    return f"this bird's: {explorer.lab.described(state.image, state.part)}{change}"


def verdict(classes: tuple[str, ...], predicted: int, true: int) -> str:
    return f"says {classes[predicted]}: {'right' if predicted == true else f'wrong, it is {classes[true]}'}"


def moved(noise: Noise, size: int) -> str:
    """What the noise does to the similarity."""
    if noise.box == (0, size, 0, size):
        return "the box is the whole image"
    change = noise.after - noise.before
    how = "unchanged" if abs(change) < UNCHANGED else number(change, True)
    return f"similarity {noise.before:.4f} → {noise.after:.4f}: {how}"


def reactions(explorer: Explorer) -> str:
    """The prototypes that react most to the edit."""
    state, look = explorer.state, explorer.look
    if not look.reactions:
        return f"<small>{SAME if state.edit else UNEDITED}</small>"
    head = ("What reacts most", "similarity", "change", "of the edit<br>in its box", "in the<br>dashed box")
    return widgets.table(head, [_reaction(explorer, reaction) for reaction in look.reactions])


def _reaction(explorer: Explorer, reaction: Reaction) -> list[str]:
    lab, shown = explorer.lab, [seen.prototype for seen in explorer.look.evidence]
    name = lab.named(explorer.state.net, reaction.prototype)
    if reaction.prototype in shown:
        place = shown.index(reaction.prototype)
        name = f'<span style="color: {TINTS[place]}">●</span> {place + 1}: {name}'
    change = number(reaction.after - reaction.before, True)
    return [name, f"{number(reaction.before)} → {number(reaction.after)}", f"<b>{change}</b>",
            _share(reaction.inside), _share(reaction.inside_upsampled)]  # fmt: skip


def _share(inside: float) -> str:
    return f'<span class="{"inside" if inside >= 0.5 else "outside"}">{inside:.0%}</span>'
