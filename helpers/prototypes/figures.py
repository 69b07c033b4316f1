"""The figures of the prototypes notebooks. Images are float arrays [H, W, 3] in [0, 1]; boxes (y0, y1, x0, x1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from helpers import figures
from helpers.figures import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, RED, SKY, Picture, overlay, picture, show, style
from helpers.prototypes.explanations import Box
from helpers.prototypes.sets import Sets
from helpers.prototypes.tables import values

MARKS = (RED, SKY, ORANGE)  # of the prototypes shown, on images
EXACT, DRAWN = figures.OUTLINE, "white"
METHODS = {"rf": "receptive fields", "upsample": "up-sampling", "random": "random"}
HEADS = {"pixpnet": BLUE, "protopnet": RED, "classifier": GREEN}


def frame_box(ax: Axes, box: Box, colour: str, dashed: bool = False, width: float = 1.6) -> None:
    """A box drawn along the edges of its pixels, over a thin dark line so that it is seen on any ground."""
    y0, y1, x0, x1 = box
    for line, ink in ((width + 1.4, BLACK), (width, colour)):
        ax.add_patch(
            Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=ink, linewidth=line,
                      linestyle=(0, (4, 2)) if dashed else "-", clip_on=False, gid="box")
        )  # fmt: skip


@style()
def looks_like(
    image: np.ndarray, rows: Sequence[Mapping[str, Any]], title: str, names: tuple[str, str] = ("this", "that")
) -> Picture:
    """A test image with the boxes of some prototypes, and of each the pixels in its box above those of the training
    patch that it is. ``rows``: ``box``, ``patch``, ``source`` (both [h, w, 3]) and ``note``, of each."""
    figure = picture(3.1 + 1.75 * len(rows), 3.7)
    grid = figure.add_gridspec(2, 1 + len(rows), width_ratios=[1.9] + [1] * len(rows))
    main = figure.add_subplot(grid[:, 0])
    show(main, image)
    main.set_title(title, fontsize=10, loc="left")
    for column, (row, colour) in enumerate(zip(rows, MARKS, strict=False), 1):
        frame_box(main, row["box"], colour)
        for place, (name, key) in enumerate(zip(names, ("patch", "source"), strict=True)):
            ax = figure.add_subplot(grid[place, column])
            show(ax, row[key])
            ax.set_title(row["note"] if place == 0 else "", fontsize=9, fontweight="normal", loc="center")
            for spine in ax.spines.values():
                spine.set(visible=True, color=colour, linewidth=2)
            if column == 1:
                ax.set_ylabel(name, fontsize=10, color=BLACK)
    return figure


def sheet(data: Sets) -> Picture:
    """The first test image of each class."""
    labels = data.test.labels
    rows = torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()])
    pictures = data.test.pixels(rows).permute(0, 2, 3, 1).numpy()
    return figures.image_grid(pictures, titles=[data.classes[k] for k in labels[rows].tolist()], columns=7, size=1.3)


@style()
def mappings(image: np.ndarray, maps: Mapping[str, np.ndarray], box: Box, drawn: Box) -> Picture:
    """One similarity map of one prototype in pixels, by several methods [H, W], each divided by its maximum, over the
    image. Solid: the box of the receptive field; dashed: the one that ProtoPNet draws."""
    figure = picture(2.6 * (1 + len(maps)), 2.9)
    axes = figure.subplots(1, 1 + len(maps))
    show(axes[0], image)
    axes[0].set_title("image", fontsize=10)
    for ax, (method, heat) in zip(axes[1:], maps.items(), strict=True):
        show(ax, overlay(image, np.clip(heat, 0, None) / max(heat.max(), 1e-9), opacity=0.6))
        ax.set_title(METHODS.get(method, method), fontsize=10)
    for ax in axes:
        frame_box(ax, box, EXACT)
        frame_box(ax, drawn, DRAWN, dashed=True)
    return figure


@style()
def noise(pictures: Sequence[tuple[str, np.ndarray, Sequence[tuple[Box, str, bool]]]]) -> Picture:
    """Images with a title and boxes (box, colour, dashed) each, side by side."""
    figure = picture(2.9 * len(pictures), 3.3)
    for ax, (title, image, boxes) in zip(figure.subplots(1, len(pictures), squeeze=False)[0], pictures, strict=True):
        show(ax, image)
        ax.set_title(title, fontsize=9.5, fontweight="normal", loc="center")
        for box, colour, dashed in boxes:
            frame_box(ax, box, colour, dashed)
    return figure


@style()
def accuracies(frame: pd.DataFrame) -> Picture:
    """Test accuracy of every fit over the mean share of the image that a cell sees; a colour a kind of head."""
    figure = picture(6.4, 3.4)
    ax = figure.subplots()
    table = frame.pivot_table(index=["kind", "group", "cut", "seed"], columns="metric", values="value").reset_index()
    for kind, colour in HEADS.items():
        own = table[table.kind == kind]
        if len(own):
            ax.plot(own.mean_rf, own.accuracy, "o", ms=6, color=colour, alpha=0.7, label=kind, gid=f"fits:{kind}")
            mean = own.groupby("group").mean(numeric_only=True).sort_values("mean_rf")
            ax.plot(mean.mean_rf, mean.accuracy, color=colour, lw=1, alpha=0.6)
    for cut, row in table.groupby("cut")[["mean_rf", "accuracy"]].min().iterrows():
        ax.annotate(cut.split("@")[1], (row.mean_rf, row.accuracy), (0, -16), textcoords="offset points", ha="center",
                    fontsize=9, color=GREY)  # fmt: skip
    ax.set_xlabel("mean receptive field, % of the image")
    ax.set_ylabel("test accuracy, %")
    ax.margins(0.08, 0.15)
    ax.grid(axis="y")
    ax.legend(loc="lower right")
    return figure


@style()
def courses(records: Iterable[Mapping[str, Any]]) -> Picture:
    """Validation accuracy after every epoch of every fit (before the projection of that epoch, if it has one), and the
    median distance of prototypes to the patches that they are moved onto. Thin: seeds; thick: their mean."""
    figure = picture(9.4, 3.2)
    left, right = figure.subplots(1, 2)
    groups: dict[str, list[Mapping[str, list]]] = {}
    for record in records:
        groups.setdefault("/".join(record["name"].split("/")[1:3]), []).append(record["training"]["history"])
    for (group, histories), colour in zip(groups.items(), figures.COLOURS, strict=False):
        for ax, column, scale in ((left, "val_accuracy", 100), (right, "push_median", 1)):
            lines = [np.array([np.nan if v is None else v for v in h.get(column, [])], float) for h in histories]
            if not all(map(len, lines)):
                continue
            epochs = histories[0]["epoch"]
            known = ~np.isnan(lines[0])
            for line in lines:
                ax.plot(np.array(epochs)[known], scale * line[known], color=colour, lw=0.8, alpha=0.4)
            mean = scale * np.mean(lines, 0)[known]
            ax.plot(np.array(epochs)[known], mean, color=colour, lw=2, marker="." if ax is right else None, label=group)
    left.set_ylabel("validation accuracy, %")
    right.set_ylabel("distance moved by the projection")
    right.set_yscale("log")
    for ax in (left, right):
        ax.set_xlabel("epoch")
        ax.grid(axis="y")
    left.legend(fontsize=8)
    return figure


@style()
def hidden(frame: pd.DataFrame) -> Picture:
    """Of what decides a similarity, how much up-sampling leaves out: a dot a fit."""
    figure = picture(6.4, 2.6)
    ax = figure.subplots()
    own = values(frame, "hidden_share")
    groups = list(dict.fromkeys(own.group))
    for place, group in enumerate(groups):
        found = own[own.group == group].value.to_numpy()
        ax.plot(found, place + 0.12 * figures.offsets(len(found)), "o", color=BLUE, alpha=0.8, gid=f"hidden:{group}")
    ax.set_yticks(range(len(groups)), groups)
    ax.set_xlim(0, 102)
    ax.set_ylim(-0.6, len(groups) - 0.4)
    ax.axvline(50, color=LIGHT, lw=1)
    ax.annotate("half: the claim's rule", (50, 1), (3, 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", fontsize=8, color=GREY)  # fmt: skip
    ax.set_xlabel("prototypes with a say outside the up-sampled box, %")
    ax.invert_yaxis()
    return figure
