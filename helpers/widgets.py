"""Shared parts of the explorers: pictures of arrays, labelled panels, and the pattern that every explorer follows.

An explorer is a plain-Python object with a frozen ``state``. Every change, from code or from a control, is a new state:

    control --observe--> select(**changes) --> state --> render() --> controls, Image and HTML widgets

so a test, or a reader in another cell, drives an explorer exactly as a hand on its controls does. Only core widgets set
through ``observe`` are used: what captures a cell's output (``interact`` and its like) can hang a papermill run.
"""

from __future__ import annotations

import html
import io
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import ipywidgets
import numpy as np
from IPython.display import Image as Picture
from IPython.display import display
from PIL import Image, ImageDraw, ImageFont

from helpers.config import PlainError, Settings

# Anchors of the colour maps, evenly spaced. `heat` rises evenly in lightness; `signed` is white at its middle.
ANCHORS = {
    "grey": ["#000000", "#ffffff"],
    "heat": ["#000004", "#1d1147", "#51127c", "#832681", "#b73779", "#e75263", "#fc8961", "#fec488", "#fcfdbf"],
    "signed": ["#08306b", "#2f79b5", "#a3cce3", "#ffffff", "#f9b395", "#cf4a3c", "#67000d"],
}
STATIC_WIDTH = 1000  # screen pixels of the static picture, at most
STYLE = """<style>
.sightline { font-family: system-ui, sans-serif; font-size: 13px; line-height: 1.35 }
.sightline .widget-html-content, .sightline .jupyter-widget-html-content { line-height: 1.35; white-space: normal }
.sightline-panel img { width: 100%; box-sizing: border-box; border: 1px solid rgba(128, 128, 128, .4); margin: 3px 0 }
.sightline small { opacity: .72; font-size: 12px }
.sightline table { border-collapse: collapse; width: 100% }
.sightline td, .sightline th { text-align: left; vertical-align: top; padding: 4px 10px 4px 0; font-weight: normal;
  border-top: 1px solid rgba(128, 128, 128, .35) }
.sightline th { opacity: .72; white-space: nowrap }
.sightline thead th { border-top: none }
.sightline td { width: 46% }
.sightline-svg { max-width: 100%; height: auto; display: block; font: 12px system-ui, sans-serif }
.sightline-svg text { fill: currentColor }
</style>"""
LABELLED = {"description_width": "initial"}

S = TypeVar("S", bound=Settings)


# ------------------------------------------------------------------------------------------------- pictures


def _table(anchors: Sequence[str]) -> np.ndarray:
    """uint8 [256, 3]: the colours between ``anchors``."""
    colours = np.array([_rgb(anchor) for anchor in anchors], float)
    at = np.linspace(0, len(anchors) - 1, 256)
    return np.stack([np.interp(at, np.arange(len(anchors)), c) for c in colours.T], 1).round().astype(np.uint8)


def _rgb(colour: str) -> list[int]:
    """``"#rrggbb"`` as three numbers."""
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


COLOURS = {name: _table(anchors) for name, anchors in ANCHORS.items()}


def colour(values: np.ndarray, name: str = "grey", low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Numbers [H, W] as colours uint8 [H, W, 3]: ``low`` and below is the map's first colour, ``high`` and above its
    last. Raises ``ValueError`` for NaN, which has no colour."""
    if name not in COLOURS:
        raise ValueError(f"unknown colour map {name!r}; there are: {', '.join(COLOURS)}")
    if np.isnan(values).any():
        raise ValueError("the values hold NaN")
    share = (np.asarray(values, float) - low) / (high - low if high > low else 1.0)
    return COLOURS[name][(share.clip(0, 1) * 255).round().astype(np.uint8)]


def enlarge(picture: np.ndarray, factor: int) -> np.ndarray:
    """Every pixel of [H, W, ...] as a square of ``factor`` pixels: nothing is smoothed."""
    return picture.repeat(factor, 0).repeat(factor, 1)


def outlined(picture: np.ndarray, region: np.ndarray, tint: str = "#00d0b0", width: int = 2) -> np.ndarray:
    """``picture`` uint8 [H * f, W * f, 3], enlarged by f, with a line of ``width`` pixels along the inner edge of
    ``region`` bool [H, W]."""
    h, w = region.shape
    cells = picture.copy().reshape(h, picture.shape[0] // h, w, picture.shape[1] // w, 3).swapaxes(1, 2)
    around = np.pad(region, 1)
    near, far = slice(0, width), slice(-width, None)
    for rows, columns, neighbour in (
        (near, slice(None), around[:-2, 1:-1]),
        (far, slice(None), around[2:, 1:-1]),
        (slice(None), near, around[1:-1, :-2]),
        (slice(None), far, around[1:-1, 2:]),
    ):
        y, x = np.nonzero(region & ~neighbour)
        for row, column in zip(y, x, strict=True):
            cells[row, column, rows, columns] = _rgb(tint)
    return cells.swapaxes(1, 2).reshape(picture.shape)


def png(picture: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG file, packed lightly: it is on its way to a screen, not to a disk."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1, compress_type=zlib.Z_RLE)  # the quickest, and small
    return file.getvalue()


def sheet(
    pictures: Sequence[tuple[str, np.ndarray]], columns: int, caption: str = "", side: int = 160, text: int = 17
) -> bytes:
    """A PNG of titled pictures in rows above a caption, for where no kernel runs. All text must be ASCII."""
    font, gap = ImageFont.load_default(size=text), 12
    head = max(title.count("\n") + 1 for title, _ in pictures) * (text + 5) + 4
    rows = math.ceil(len(pictures) / columns)
    foot = text + gap if caption else 0
    width = max(columns * (side + gap) + gap, math.ceil(font.getlength(caption)) + 2 * gap)
    page = Image.new("RGB", (width, rows * (side + head + gap) + gap + foot), "white")
    draw = ImageDraw.Draw(page)
    for index, (title, picture) in enumerate(pictures):
        left, top = gap + index % columns * (side + gap), gap + index // columns * (side + head + gap)
        draw.multiline_text((left, top), title, font=font, fill="#222222", spacing=5)
        page.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.BOX), (left, top + head))
    draw.text((gap, page.height - foot - 2), caption, font=font, fill="#666666")
    file = io.BytesIO()
    page.quantize(256).save(file, "PNG", optimize=True)
    return file.getvalue()


# ------------------------------------------------------------------------------------------------- widgets


class Panel:
    """A titled picture with a line below it. ``widget`` is what is laid out; `show` changes what it shows."""

    def __init__(self, name: str):
        self.title, self.note = ipywidgets.HTML(), ipywidgets.HTML()
        self.image = ipywidgets.Image(format="png", layout={"width": "100%"})
        self.image.add_class(f"sightline-{name}")
        self.widget = ipywidgets.VBox([self.title, self.image, self.note], layout={"overflow": "hidden"})
        self.widget.add_class("sightline-panel")

    def show(self, title: str, picture: np.ndarray, note: str = "") -> None:
        self.title.value = f"<b>{html.escape(title)}</b>"
        self.image.value = png(picture)
        self.note.value = f"<small>{html.escape(note)}</small>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; the first cell of each row is its name. The cells are HTML: escape what comes from outside."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr><th>{name}</th>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>" for name, *cells in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def dropdown(name: str, options: Sequence[Any], width: str) -> ipywidgets.Dropdown:
    """A list to choose from, its ``name`` on its left; options may be (text, value) pairs."""
    return ipywidgets.Dropdown(description=name, options=options, layout={"width": width}, style=LABELLED)


def button(text: str, tooltip: str, width: str) -> ipywidgets.Button:
    return ipywidgets.Button(description=text, tooltip=tooltip, layout={"width": width, "padding": "0"})


def set_options(control: Any, options: Sequence[Any], value: Any) -> None:
    """Give a dropdown its options and value; equal options are left alone, since setting them selects the first."""
    if tuple(control.options) != tuple(options):
        control.options = options
    control.value = value


class Explorer(Generic[S]):
    """Base of the explorers. A subclass builds its controls, `bind`s them and lays them out in ``self.widget``, then
    calls `refresh`; it writes `changed`, `render` and `static`."""

    widget: ipywidgets.Widget

    def __init__(self, state: S):
        self.state = state
        self.message = ipywidgets.HTML()
        self._rendering = False

    def changed(self, changes: Mapping[str, Any]) -> S:
        """The state after ``changes``. Raises `ConfigError` for a name or a value that cannot be."""
        return self.state.override(changes)

    def render(self) -> None:
        """Write the state into the controls and pictures."""
        raise NotImplementedError

    def static(self) -> bytes:
        """The PNG shown first, all that a page without a kernel has."""
        raise NotImplementedError

    def select(self, **changes: Any) -> None:
        """Change the state by name and show it. After an error everything is as it was before."""
        self.become(self.changed(changes))

    def become(self, state: S) -> None:
        """Take a whole state and show it."""
        before, self.state = self.state, state
        try:
            self.refresh()
        except Exception:
            self.state = before
            raise

    def refresh(self) -> None:
        with self._writing():
            self.render()

    def bind(self, control: ipywidgets.Widget, action: Callable[[Any], None], trait: str = "value") -> Any:
        """Call ``action(new value)`` when a person changes ``control``; returns the control."""
        control.observe(lambda change: self._act(lambda: action(change["new"])), trait)
        return control

    def bind_click(self, button: ipywidgets.Button, action: Callable[[], None]) -> ipywidgets.Button:
        button.on_click(lambda _: self._act(action))
        return button

    def _act(self, action: Callable[[], None]) -> None:
        """What a control asks for. An error that is meant for the person is shown to them: nobody reads kernel logs."""
        if self._rendering:  # the control follows the state, not the state the control
            return
        self.message.value = ""
        try:
            action()
        except (PlainError, ValueError) as error:
            self.refresh()  # the controls go back to what is shown
            self.message.value = f'<span role="alert">Not possible: {html.escape(str(error))}</span>'

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._rendering = True
        try:
            yield
        finally:
            self._rendering = False

    def _ipython_display_(self) -> None:
        """The static picture as an output of its own, then the live controls: GitHub shows the one, Jupyter both."""
        data = self.static()
        with Image.open(io.BytesIO(data)) as picture:
            display(Picture(data, width=min(picture.width, STATIC_WIDTH)))
        display(self.widget)
