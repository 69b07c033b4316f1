"""The controls of the explorer of self-explaining nets: built once, bound to its methods, made to follow its state."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import ipywidgets as w
import numpy as np
from matplotlib.ticker import MaxNLocator

from helpers import widgets
from helpers.data import decoys
from helpers.figures import BLUE, GREEN, PURPLE, RED
from helpers.self_explaining import views
from helpers.self_explaining.views import CORNERS, Decoy, Look

if TYPE_CHECKING:
    from helpers.self_explaining.explore import Explorer

WIDTH = 1140  # screen pixels
ZOOM = 8  # screen pixels a pixel, before the browser fits the picture into its column
THUMBNAILS = 12  # images of the digit to choose from, around the one that is chosen
COLOURS = (BLUE, RED, GREEN, PURPLE)  # of curves; names stand beside them
OUTLINED = 'fill="currentColor" fill-opacity=".12" stroke="currentColor" stroke-width="1.2"'
WRAP = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "2px 14px"}
STYLE = """<style>
.sightline .sightline-thumbnail { height: 66px; line-height: 18px; padding: 44px 0 0; display: block; font-size: 11px;
  background-repeat: no-repeat; background-position: 50% 3px; background-size: 40px; image-rendering: pixelated }
</style>"""


class NetPanel:
    """All that is shown of one net. ``widget`` is what is laid out."""

    def __init__(self, place: int):
        self.head, self.bars = w.HTML(), w.HTML()
        self.panels = {part: widgets.Panel(f"{part}-{place}") for part in ("image", "map", "left")}
        pictures = w.GridBox([panel.widget for panel in self.panels.values()])
        pictures.layout = {"grid_template_columns": "repeat(3, minmax(0, 1fr))", "grid_gap": "0 12px"}
        layout = {"flex": "1 1 420px", "min_width": "0", "max_width": "640px"}
        self.widget = w.VBox([self.head, pictures, self.bars], layout=layout)

    def show(self, explorer: Explorer, name: str, look: Look) -> None:
        state, lab = explorer.state, explorer.lab
        classes, true = lab.images.classes, state.digit
        right = "right" if look.predicted == true else "wrong"
        self.head.value = f"<b>{html.escape(name)}</b>, trained on {html.escape(state.trained)}: {right}"
        x, square = lab.pixels([state.image], state.square)[0], state.square
        region = None if square is None else square.mask(*x.shape[1:]).numpy()

        def picture(pixels: np.ndarray) -> np.ndarray:
            large = widgets.enlarge(pixels, ZOOM)
            return large if region is None else widgets.outlined(large, region)

        says = f"says {classes[look.predicted]}, {percent(look.before.max())}"
        self.panels["image"].show(f"Image {state.image}: a {classes[true]}", picture(views.shown(x)), says)
        share = "" if look.mass is None else f"{percent(look.mass)} on the decoy; "
        self.panels["map"].show(
            f"Map for {classes[look.explained]} ({state.label})", picture(views.shown_map(look.heat)),
            f"{share}maximum {look.heat.max():.2g}",
        )  # fmt: skip
        what = f"{state.percent:g} % removed" if state.keep == "without" else f"{state.percent:g} % alone"
        said = int(look.after.argmax())
        fall = f"p({classes[look.predicted]}) {'falls' if look.fall >= 0 else 'rises'} by {abs(look.fall):.3f}"
        self.panels["left"].show(
            f"Highest {what}", picture(views.shown(x, look.removed)),
            f"says {classes[said]}, {percent(look.after[said])}; {fall}",
        )  # fmt: skip
        self.bars.value = bars(look, classes, true)


class Controls:
    """``widget`` is all of it."""

    def __init__(self, explorer: Explorer):
        lab = explorer.lab
        self.nets = [NetPanel(place) for place in range(max(len(lab.names(kind)) for kind in lab.trained))]
        self.note, self.curves = w.HTML(), w.HTML()
        self.thumbnail_style = w.HTML(layout={"display": "none"})
        columns = w.HBox([net.widget for net in self.nets], layout={"flex_flow": "row wrap", "grid_gap": "16px 24px"})
        rows = [w.HTML(widgets.STYLE + STYLE), self.thumbnail_style, *self._choices(explorer), explorer.message,
                self.note, columns, *self._critic(explorer)]  # fmt: skip
        self.widget = w.VBox(rows, layout={"max_width": f"{WIDTH + 20}px", "padding": "4px", "grid_gap": "5px"})
        self.scope = f"sightline-lsx-{self.widget.model_id}"  # two explorers on a page have thumbnails of their own
        for name in ("sightline", self.scope):
            self.widget.add_class(name)

    # ---------------------------------------------------------------------------------------------- choices

    def _choices(self, explorer: Explorer) -> list[w.Widget]:
        bind, click, select, lab = explorer.bind, explorer.bind_click, explorer.select, explorer.lab
        digits = [(lab.images.classes[k], k) for k in lab.rows]
        squares = [("none", None), *((f"{d} (grey {Decoy(d, CORNERS[0]).grey})", d) for d in range(decoys.VALUES))]
        norms = [("own maximum", "sample"), ("batch maximum", "batch")]
        self.trained = widgets.dropdown("Trained on", lab.trained, "250px")
        self.digit = widgets.dropdown("Digit", digits, "130px")
        self.decoy = widgets.dropdown("Decoy of digit", squares, "210px")
        self.corner = widgets.dropdown("in the corner", CORNERS, "200px")
        self.norm = widgets.dropdown("Map divided by", norms, "260px")
        self.label = widgets.dropdown("Class explained", ["true", "predicted"], "210px")
        self.image = w.IntText(description="Image", layout={"width": "120px"}, style=widgets.LABELLED)
        self.keep = w.ToggleButtons(options=[("removed", "without"), ("alone", "alone")])
        self.keep.style = {"button_width": "84px"}
        self.keep.tooltips = ["the image without the highest pixels of the map", "these pixels and nothing else"]
        self.percent = w.FloatSlider(
            min=0, max=100, step=0.5, description="Highest pixels, %", readout_format=".1f", continuous_update=False,
            layout={"width": "420px"}, style=widgets.LABELLED,
        )  # fmt: skip
        for name in ("trained", "digit", "decoy", "corner", "norm", "label", "image", "keep", "percent"):
            control = bind(getattr(self, name), lambda value, name=name: select(**{name: value}))
            control.add_class(f"sightline-{name}")
        before = click(widgets.button("◀", "the image before", "36px"), lambda: explorer.step(-1))
        after = click(widgets.button("▶", "the next image", "36px"), lambda: explorer.step(1))
        self.place, self._offered = w.HTML(), ()
        self.thumbnails = [w.Button(layout={"width": "52px"}) for _ in range(THUMBNAILS)]
        for place, button in enumerate(self.thumbnails):
            click(button, lambda place=place: select(image=self._offered[place]))
            for name in ("sightline-thumbnail", f"sightline-thumbnail-{place}"):
                button.add_class(name)
        return [
            w.HBox([self.trained, self.digit, before, self.image, after, self.place], layout=WRAP),
            w.HBox(self.thumbnails, layout=WRAP | {"grid_gap": "2px 4px"}),
            w.HBox([self.decoy, self.corner, self.label, self.norm], layout=WRAP),
            w.HBox([self.percent, self.keep], layout=WRAP),
        ]

    def _critic(self, explorer: Explorer) -> list[w.Widget]:
        self.ask = widgets.button("Learn", "a fresh critic learns from the maps of each net, in seconds", "96px")
        explorer.bind_click(self.ask, lambda: self._learn(explorer))
        self.ask.add_class("sightline-ask")
        text = "How well can a fresh net learn the digits from these maps alone?"
        head = w.HTML(f"<b>The critic</b> <small>{text}</small>")
        return [w.HBox([head, self.ask], layout=WRAP), self.curves]

    def _learn(self, explorer: Explorer) -> None:
        """It is said before it is done, as it takes a while."""
        self.ask.description, self.ask.disabled = "learning …", True
        explorer.learn()

    # ------------------------------------------------------------------------------------------------- shown

    def show(self, explorer: Explorer) -> None:
        """Follow the explorer's state."""
        state, looks = explorer.state, explorer.looks
        for name in ("trained", "digit", "decoy", "corner", "norm", "label", "image", "keep", "percent"):
            getattr(self, name).value = getattr(state, name)
        self.corner.disabled = state.decoy is None
        self._show_thumbnails(explorer)
        self.norm.disabled = not explorer.lab.divided
        self.note.value = f"<small>{note(explorer)}</small>"
        for place, net in enumerate(self.nets):
            net.widget.layout.display = "" if place < len(looks) else "none"
        for net, (name, look) in zip(self.nets, looks.items(), strict=False):
            net.show(explorer, name, look)
        found, n_classes = explorer.curves, len(explorer.lab.images.classes)
        self.ask.description, self.ask.disabled = "Learn", len(found) == len(looks)
        self.curves.value = curves(found, n_classes) if found else "<small>Not yet asked for what is chosen.</small>"

    def _show_thumbnails(self, explorer: Explorer) -> None:
        """A page of the images of the digit, the one with the chosen image."""
        state, lab = explorer.state, explorer.lab
        rows = lab.rows[state.digit]
        at = rows.index(state.image)
        self.place.value = f"<small>{at + 1} of {len(rows)} with this digit, {len(lab.images)} in all</small>"
        self._offered = rows[at - at % THUMBNAILS :][:THUMBNAILS]
        pictures = [views.shown(x) for x in lab.pixels(list(self._offered), state.square)]
        rules = []
        for place, button in enumerate(self.thumbnails):
            button.layout.display = "" if place < len(self._offered) else "none"
            if place < len(self._offered):
                image, data = self._offered[place], base64.b64encode(widgets.png(pictures[place])).decode()
                chosen = image == state.image
                button.description, button.tooltip = str(image), f"image {image}{', chosen' if chosen else ''}"
                button.style.font_weight = "bold" if chosen else "normal"
                button.layout.border = f"2px solid {'#3d9bff' if chosen else 'transparent'}"
                where = f".{self.scope} .sightline-thumbnail-{place}"
                rules.append(f"{where} {{ background-image: url(data:image/png;base64,{data}) }}")
        self.thumbnail_style.value = f"<style>{''.join(rules)}</style>"


def note(explorer: Explorer) -> str:
    """How the pictures are to be read."""
    state, lab, text = explorer.state, explorer.lab, []
    if lab.divided and state.norm == "sample":
        text.append("Each map is divided by its own maximum: its shape is seen, whatever its size.")
    elif lab.divided:
        alike = "" if state.decoy is None else ", all with this decoy"
        others = min(views.BATCH, len(lab.images)) - 1
        text.append(f"Each map is divided by its batch's maximum: this image's and the first {others} others'{alike}.")
        if lab.options.target == "logprob":
            text.append("A sure prediction's map is dark: the gradient of log p shrinks with 1 − p.")
    text.append("Pixels that are removed are dark blue; the nets get the background there.")
    text += [] if state.decoy is None else ["The decoy is outlined."]
    return " ".join(text)


def percent(share: float) -> str:
    """``97.2 %``."""
    return f"{100 * share:.1f} %"


# ---------------------------------------------------------------------------------------------------- as SVG text


def bars(look: Look, classes: Sequence[str], true: int, width: int = 560, height: int = 132) -> str:
    """The probabilities of the ``classes`` before the removal, outlined, and after it, filled; the ``true`` class is
    marked. Text has the colour of its surroundings, so light and dark pages both do."""
    base, top, step = height - 34, 34, (width - 8) / len(classes)
    thick = min(22.0, 0.42 * step)
    before, after = (values.max() for values in (look.before, look.after))
    said = f"before: {classes[look.predicted]} {percent(before)}, after: {classes[int(look.after.argmax())]} "
    parts = [_svg(width, height, f"Probabilities {said}{percent(after)}"),
             f'<rect x="5" y="2" width="11" height="11" {OUTLINED}/><text x="21" y="12">probability, %</text>',
             f'<rect x="115" y="2" width="11" height="11" fill="{RED}"/><text x="131" y="12">after the removal</text>',
             f'<path d="M4 {base}H{width - 4}" stroke="currentColor" stroke-opacity=".6"/>']  # fmt: skip
    for k, name in enumerate(classes):
        middle = 4 + (k + 0.5) * step
        parts.append(f"<g><title>{html.escape(name)}: {percent(look.before[k])} before, {percent(look.after[k])} after"
                     "</title>")  # fmt: skip
        for value, x, fill in ((look.before[k], middle - thick, OUTLINED), (look.after[k], middle, f'fill="{RED}"')):
            tall, wide = (base - top) * value, thick - 1
            parts.append(f'<rect x="{x:.1f}" y="{base - tall:.1f}" width="{wide:.1f}" height="{tall:.1f}" {fill}/>')
            if value >= 0.05:
                parts.append(f'<text x="{x + thick / 2:.1f}" y="{base - tall - 4:.1f}" text-anchor="middle" '
                             f'font-size="11">{100 * value:.0f}</text>')  # fmt: skip
        text = html.escape(name if len(name) <= 6 else f"{name[:5]}…")
        bold = ' font-weight="700"' if k == true else ""
        parts.append(f'<text x="{middle:.1f}" y="{base + 15}" text-anchor="middle"{bold}>{text}</text></g>')
        if k == true:
            parts.append(f'<text x="{middle:.1f}" y="{base + 29}" text-anchor="middle" font-size="11">true</text>')
    return "".join(parts) + "</svg>"


def curves(losses: Mapping[str, np.ndarray], n_classes: int, width: int = 760, height: int = 250) -> str:
    """The loss of each net's critic along its one pass, named at its end; dashed what guessing costs, ln K."""
    left, right, top, base = 44, width - 190, 24, height - 36
    chance, n = math.log(n_classes), max(map(len, losses.values()))
    values = np.concatenate([[chance], *losses.values()])
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(float(values.min()), float(values.max()))
    low, high = float(ticks[0]), float(ticks[-1])
    digits = max(0, -math.floor(math.log10(ticks[1] - low)))

    def at(batch: float, loss: float) -> tuple[float, float]:
        return left + (right - left) * (batch - 1) / max(1, n - 1), base - (base - top) * (loss - low) / (high - low)

    ends = {f"chance, ln {n_classes} = {chance:.3f}": (chance, "currentColor")}
    parts = [_svg(width, height, "Loss of a critic along its pass: " + ", ".join(
        f"{name} from {curve[0]:.2f} to {curve[-1]:.2f}" for name, curve in losses.items()))]  # fmt: skip
    for tick in ticks:
        y = at(1, tick)[1]
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="currentColor" stroke-opacity=".15"/>'
                     f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.{digits}f}</text>')  # fmt: skip
    parts.append(f'<path d="M{left} {at(1, chance)[1]:.1f}H{right}" stroke="currentColor" stroke-dasharray="6 4"/>')
    for place, (name, curve) in enumerate(losses.items()):
        colour = COLOURS[place % len(COLOURS)]
        points = " ".join("{:.1f},{:.1f}".format(*at(batch, loss)) for batch, loss in enumerate(curve, 1))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        ends[f"{name}: mean {curve.mean():.3f}, last {curve[-1]:.3f}"] = float(curve[-1]), colour
    lowest = top - 16.0
    for text, (loss, colour) in sorted(ends.items(), key=lambda end: -end[1][0]):
        lowest = max(lowest + 16, at(n, loss)[1])
        parts.append(f'<path d="M{right + 3} {at(n, loss)[1]:.1f}L{right + 14} {lowest:.1f}" stroke="{colour}"/>'
                     f'<text x="{right + 18}" y="{lowest + 4:.1f}">{html.escape(text)}</text>')  # fmt: skip
    for batch in sorted({1, (n + 1) // 2, n}):
        parts.append(f'<text x="{at(batch, low)[0]:.1f}" y="{base + 16}" text-anchor="middle">{batch}</text>')
    parts.append(f'<text x="{left - 38}" y="12">critic\'s loss</text>')
    about = "batches of explanations of clean images, one pass"
    parts.append(f'<text x="{(left + right) / 2}" y="{height - 4}" text-anchor="middle">{about}</text>')
    return "".join(parts) + "</svg>"


def _svg(width: int, height: int, said: str) -> str:
    return (f'<svg class="sightline-svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
            f'aria-label="{html.escape(said)}">')  # fmt: skip
