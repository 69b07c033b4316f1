"""What figures of all studies share: style, colours, image grids, heat maps on images, masks as outlines, PNG bytes.

A figure is a `Picture`: matplotlib without pyplot. Nothing stays open behind it, and a notebook shows it once, whatever
the backend, when it is the value of a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from helpers import artifacts

DPI = 100
BLACK, GREY, LIGHT = "#222222", "#6b6b6b", "#c9c9c9"
# Okabe and Ito's colours but yellow, too light on white: told apart with any kind of colour vision.
ORANGE, SKY, GREEN, BLUE, RED, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY)
HEAT = "inferno"  # lightness grows with the value, so it survives grey print and colour blindness
OUTLINE = "#00E5FF"  # the true mask, on images and on heat maps: a hue that neither of them has

STYLE = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "axes.labelsize": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": BLACK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "grid.color": "#e6e6e6",
    "text.color": BLACK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "image.interpolation": "nearest",  # a pixel of the data is a square: nothing is smoothed into being
    "image.cmap": HEAT,
    "mathtext.fontset": "dejavusans",
}


def style() -> AbstractContextManager[None]:
    """The settings of all figures inside ``with style():``, or in a function under ``@style()``."""
    return matplotlib.rc_context(STYLE)


class Picture(Figure):
    """A figure that keeps its style until it is drawn (matplotlib makes ticks as late as that), and shows itself."""

    def draw(self, renderer) -> None:
        with style():
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        return png(self)


@dataclass(frozen=True)
class Note:
    """Stands where a figure or a table has nothing to show: the one line that a notebook prints in its place."""

    text: str

    def __repr__(self) -> str:
        return self.text


def picture(width: float, height: float, layout: str | None = "constrained") -> Picture:
    """An empty figure of ``width`` x ``height`` inches."""
    with style():
        return Picture(figsize=(width, height), layout=layout)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file in 128 colours: of equal figures, equal bytes (no date, no version).

    A third of the size of one in all colours: a notebook that holds a dozen figures has to stay below 1 MB.
    """
    drawn, file = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", dpi=figure.dpi, metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def save(figure: Figure, path: str | Path) -> Path:
    """Write ``figure`` as PNG, all or nothing. Raises ``ValueError`` unless ``path`` ends in .png."""
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"figures are saved as .png, not {path.name!r}")
    artifacts.atomic_write(path, png(figure))
    return path


def overlay(image: ArrayLike, heat: ArrayLike, opacity: float = 0.9, colours: str = HEAT) -> np.ndarray:
    """A heat map laid over an image, opaque from half of its range on: float64 [..., H, W, 3] in [0, 1].

    ``image`` [..., H, W] grey or [..., H, W, 3], ``heat`` [..., H, W], both in [0, 1] (clipped). Where the heat is 0
    the image is seen as it is, only half as bright, so that its bright places are not taken for heat.
    """
    image, heat = np.clip(np.asarray(image, float), 0, 1), np.clip(np.asarray(heat, float), 0, 1)
    if image.ndim == heat.ndim:
        image = np.repeat(image[..., None], 3, axis=-1)
    if image.shape != (*heat.shape, 3):
        raise ValueError(f"expected image {heat.shape} or {(*heat.shape, 3)} for this heat, not {image.shape}")
    weight = opacity * np.minimum(2 * heat, 1)[..., None]
    return (1 - weight) * 0.5 * image + weight * matplotlib.colormaps[colours](heat)[..., :3]


def show(ax: Axes, image: ArrayLike, mask: ArrayLike | None = None, title: str = "", colours: str = "gray") -> None:
    """An image [H, W] in [0, 1] or [H, W, 3] without ticks, the ``mask`` [H, W] outlined."""
    ax.imshow(np.clip(np.asarray(image, float), 0, 1), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if mask is not None:
        outline(ax, mask)
    if title:
        ax.set_title(title, fontsize=9, fontweight="normal", loc="center", pad=3)


def outline(ax: Axes, mask: ArrayLike, colour: str = OUTLINE, width: float = 1.0) -> LineCollection:
    """The border of ``mask`` [H, W] (true above 0), along the edges of its pixels."""
    mask = np.pad(np.asarray(mask) > 0, 1)
    rows, columns = np.nonzero(mask[1:-1, 1:] != mask[1:-1, :-1])
    upright = [((c - 0.5, r - 0.5), (c - 0.5, r + 0.5)) for r, c in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(mask[1:, 1:-1] != mask[:-1, 1:-1])
    level = [((c - 0.5, r - 0.5), (c + 0.5, r - 0.5)) for r, c in zip(rows, columns, strict=True)]
    lines = LineCollection(upright + level, colors=colour, linewidths=width, capstyle="projecting", gid="outline")
    ax.add_collection(lines, autolim=False)
    return lines


def image_grid(
    images: ArrayLike,
    masks: ArrayLike | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 5,
    size: float = 1.8,
) -> Picture:
    """Images [N, H, W] or [N, H, W, 3] in [0, 1], ``columns`` a row, each ``size`` inches wide.

    ``masks`` [N, H, W] are outlined, and ``titles`` stand above.
    """
    images = np.asarray(images)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = picture(columns * size, rows * (size + (0.25 if titles else 0.05)))
    with style():
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for i, ax in enumerate(axes):
            if i < len(images):
                show(ax, images[i], None if masks is None else np.asarray(masks)[i], titles[i] if titles else "")
            else:
                ax.set_axis_off()
    return figure


def tint(colour: str, strength: float) -> tuple[float, float, float]:
    """``colour`` mixed with white: 1 leaves it, 0 is white. Unlike transparency it does not add up under overlaps."""
    return tuple(1 - strength * (1 - channel) for channel in to_rgb(colour))


def offsets(n: int) -> np.ndarray:
    """``n`` numbers in (-1, 1) that set points apart on a strip: evenly spread at every n, the same in every run."""
    return 2 * (np.arange(1, n + 1) * 0.6180339887 % 1) - 1
