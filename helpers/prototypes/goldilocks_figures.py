"""The figure of accuracy against receptive field. A backbone has one colour and one mark in all panels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from helpers.figures import BLACK, COLOURS, GREY, Picture, picture, style
from helpers.prototypes.pareto import front

MARKS = "osD^vPXh<>*p"
TITLES = {"probe": "Frozen: a linear probe of each stage", "finetune": "Fine-tuned, each cut for itself"}
# above the front there are no marks: names go there first
DISTANCES = (5, 10, 16, 24, 34, 46)  # points from a mark to its name
DIRECTIONS = ((-1, 0), (-1, 1), (0, 1), (1, -1), (1, 0), (0, -1), (1, 1), (-1, -1))
NAME_SIZE = 8.5
AT = ["mean_rf", "accuracy"]


@style()
def accuracy_against_field(table: pd.DataFrame, n_classes: int = 10) -> Picture:
    """Test accuracy over the share of the image that a cell sees on average, of every cut (`goldilocks.summary`), a
    panel a mode. Filled and named: no other cut is as accurate and sees less (the Pareto front, as steps). Bars: one
    standard error, of the test images and of the seeds. Dashed: guessing."""
    modes = [mode for mode in TITLES if mode in set(table["mode"])]
    models = sorted(set(table.model))
    looks = {m: (COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]) for i, m in enumerate(models)}
    figure = picture(0.6 + 5.2 * len(modes), 4.6)
    axes = figure.subplots(1, len(modes), squeeze=False, sharex=True, sharey=True)[0]
    for ax, mode in zip(axes, modes, strict=True):
        own = table[table["mode"] == mode]
        _points(ax, own, looks)
        _steps(ax, front(own))
        ax.axhline(100 / n_classes, color=GREY, lw=1, ls="--", gid="chance")
        ax.set_title(TITLES[mode])
        ax.set_xlabel("mean receptive field, % of the image")
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.grid(axis="y")
    axes[0].set_ylabel("test accuracy, %")
    axes[0].set_xlim(table[table.accuracy.notna()].mean_rf.min() / 3, 180)
    axes[0].set_ylim(0, 108)
    axes[0].annotate("guessing", (1, 100 / n_classes), (-2, 3), ("axes fraction", "data"), "offset points",
                     ha="right", color=GREY, fontsize=NAME_SIZE)  # fmt: skip
    handles = [
        Line2D([], [], color=colour, marker=mark, linestyle="none", markersize=6, label=model)
        for model, (colour, mark) in looks.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    FigureCanvasAgg(figure)  # measures text
    figure.draw_without_rendering()  # now the axes have their final place, and points theirs on the screen
    for ax, mode in zip(axes, modes, strict=True):
        own = table[table["mode"] == mode]
        best = front(own)
        name_points(ax, best[AT].to_numpy(), list(best.stage), own[AT].dropna().to_numpy())
    return figure


def name_points(ax: Axes, points: np.ndarray, names: Sequence[str], marks: np.ndarray) -> list[Text]:
    """Write ``names`` beside ``points`` [n, 2] (data coordinates, from left to right), as near as there is room: clear
    of each other, of all ``marks`` [m, 2] and of the steps from point to point. The same places in every run."""
    renderer, point = ax.figure.canvas.get_renderer(), ax.figure.dpi / 72
    room, on_screen = ax.get_window_extent(renderer), ax.transData.transform
    taken = [_around(at, 4 * point) for at in on_screen(marks)]
    for (x, y), (further, higher) in zip(on_screen(points), on_screen(points[1:]), strict=False):
        taken += [Bbox([(x, y - point), (further, y + point)]), Bbox([(further - point, y), (further + point, higher)])]
    line, texts = {"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 1, "shrinkB": 4}, []
    for at, name in zip(points, names, strict=True):
        text = ax.annotate(name, at, (0, 0), textcoords="offset points", fontsize=NAME_SIZE, ha="center", va="center",
                           gid=f"name:{name}", annotation_clip=False, arrowprops=line)  # fmt: skip
        text.set_in_layout(False)
        size = Text(text=name, fontsize=NAME_SIZE, figure=ax.figure).get_window_extent(renderer)
        centre, half = on_screen(at), np.array([size.width, size.height]) / 2
        places = [centre + np.array(d) * (far * point + half) for far, d in product(DISTANCES, DIRECTIONS)]
        box = min((_around(place, half) for place in places), key=lambda box: _crowded(box, taken, room))
        text.set_position(tuple((box.get_points().mean(0) - centre) / point))
        taken.append(box)
        texts.append(text)
    return texts


def _crowded(box: Bbox, taken: Sequence[Bbox], room: Bbox) -> int:
    """How many of ``taken`` a name would cover; one that leaves the ``room`` covers all."""
    inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
    return box.count_overlaps(taken) if inside else len(taken) + 1


def _points(ax: Axes, table: pd.DataFrame, looks: dict[str, tuple[str, str]]) -> None:
    for row in table[table.accuracy.notna()].itertuples():
        colour, mark = looks[row.model]
        ax.errorbar(row.mean_rf, row.accuracy, row.error, fmt="none", ecolor=colour, elinewidth=1, zorder=2)
        ax.plot(row.mean_rf, row.accuracy, mark, ms=6, color=colour, markerfacecolor=colour if row.rank == 1 else
                "white", zorder=3, gid=f"{row.mode}:{row.model}:{row.stage}")  # fmt: skip


def _steps(ax: Axes, best: pd.DataFrame) -> None:
    if len(best):
        x, y = [*best.mean_rf, 100.0], [*best.accuracy, best.accuracy.iloc[-1]]
        ax.step(x, y, where="post", color=BLACK, lw=1, alpha=0.5, zorder=1, gid="front")


def _around(centre: np.ndarray, reach: np.ndarray | float) -> Bbox:
    return Bbox([centre - reach, centre + reach])
