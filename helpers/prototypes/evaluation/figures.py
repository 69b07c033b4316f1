"""The figures of the evaluation notebook. Images are float arrays [H, W, 3] in [0, 1]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from helpers.figures import BLACK, BLUE, COLOURS, GREEN, GREY, LIGHT, PURPLE, RED, Picture, picture, show, style
from helpers.prototypes.evaluation.tables import values

MAPPINGS = {
    "rf": ("receptive fields", BLUE),
    "upsample": ("up-sampling", RED),
    "prp": ("PRP", GREEN),
    "legacy": ("receptive fields, as released", PURPLE),
    "random": ("random", GREY),
}
BESIDE = 0.16  # of a row's height: how far dots of one row are apart
LINE = 72  # characters of a legend that stand side by side


@style()
def curves(table: pd.DataFrame, seen: float) -> Picture:
    """The relevance ordering test of one network (`study.curves`): similarity against the pixels given back, with 95 %
    intervals; the line marks the mean receptive field, ``seen`` % of the image."""
    figure = picture(6.6, 3.6)
    ax = figure.subplots()
    for method, own in _of_mappings(table, "method"):
        name, colour = MAPPINGS[method]
        ax.plot(own.percent, own.similarity, color=colour, lw=2, label=name, gid=f"curve:{method}")
        ax.fill_between(own.percent, own.low.astype(float), own.high.astype(float), color=colour, alpha=0.15, lw=0)
    ax.axvline(seen, color=LIGHT, lw=1.2, zorder=0)
    ax.annotate("mean receptive field", (seen, 0.02), (4, 0), xycoords=("data", "axes fraction"),
                textcoords="offset points", fontsize=8, color=GREY)  # fmt: skip
    ax.set_xlabel("pixels of the image given back, %")
    ax.set_ylabel("similarity")
    ax.set_xlim(0, 100)
    ax.grid(axis="y")
    ax.legend(loc="lower right")
    return figure


@style()
def given_back(rows: Mapping[str, Sequence[tuple[np.ndarray, float]]], counts: Sequence[float]) -> Picture:
    """An image of noise in which more and more pixels are the original's, in the order of a mapping: a row a mapping,
    a picture for each of ``counts`` (% of the pixels), the similarity above it."""
    figure = picture(1.55 * len(counts) + 0.9, 1.85 * len(rows))
    axes = figure.subplots(len(rows), len(counts), squeeze=False)
    for line, (method, pictures) in zip(axes, rows.items(), strict=True):
        for ax, (image, similarity), count in zip(line, pictures, counts, strict=True):
            show(ax, image)
            ax.set_title(f"{similarity:.1f}", fontsize=9.5, fontweight="normal", loc="center")
            if line is axes[-1]:
                ax.set_xlabel(f"{count:g} %", fontsize=9.5)
        line[0].set_ylabel(MAPPINGS[method][0], fontsize=10, color=BLACK)
    return figure


@style()
def areas(frame: pd.DataFrame) -> Picture:
    """The area under the curve of every network by mapping, with 95 % intervals: a row a group."""
    own = values(frame, "ordering", "area")
    names = [method for method, _ in _of_mappings(own, "variant")]
    return _rows(own, "variant", {n: MAPPINGS[n] for n in names}, "area under the curve, % of the best possible")


@style()
def consistency(frame: pd.DataFrame) -> Picture:
    """Consistency and stability of every network, by where a prototype is taken to look."""
    looks = {
        "pixpnet-exact": ("receptive field", BLUE),
        "pixpnet-exact, upsample": ("up-sampling", RED),
        "pixpnet-exact, center": ("middle of the image", GREY),
    }
    groups = list(dict.fromkeys(frame.group))
    figure = picture(9.6, 1.1 + 0.55 * len(groups))
    left, right = figure.subplots(1, 2, sharey=True)
    for ax, metric, name in (
        (left, "soft_consistency", "consistency, %"),
        (right, "soft_stability", "stability, %"),
    ):
        own = values(frame, "consistency", metric)
        _dots(ax, own[own.variant.isin(looks)], "variant", looks, groups)
        ax.set_xlabel(name)
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8.5, borderaxespad=0.2)
    return figure


@style()
def causes(frame: pd.DataFrame) -> Picture:
    """How often the part in the middle of a prototype's box is the one that it depends on most, and how often that is
    so of the part in the middle of the image, and of boxes laid elsewhere."""
    kinds = {
        "box causal_centre": ("box", BLUE),
        "center causal_centre": ("middle of the image", BLACK),
        "box causal_centre_chance": ("box laid elsewhere", GREY),
    }
    own = frame[frame.aspect == "truth"].assign(kind=lambda truth: truth.variant + " " + truth.metric)
    return _rows(own[own.kind.isin(kinds)], "kind", kinds, "matches in which that is the part that matters most, %")


@style()
def part_effects(frame: pd.DataFrame, groups: Sequence[str]) -> Picture:
    """How much the logit of a bird's class falls when a part is taken away, beyond the same repaint elsewhere: means
    over birds with 95 % intervals, a dot a seed; of the ``groups``."""
    own = frame[(frame.aspect == "truth") & frame.metric.str.startswith("logit_") & frame.group.isin(groups)]
    own = own.assign(group=own.metric.str.removeprefix("logit_"), head=own.group)
    return _rows(own, "head", dict(zip(groups, zip(groups, COLOURS, strict=False), strict=True)), "logit lost")


# ----------------------------------------------------------------------------------------------------------- parts


def _of_mappings(table: pd.DataFrame, column: str) -> list[tuple[str, pd.DataFrame]]:
    """The mappings that ``table`` knows, and their rows."""
    return [(name, table[table[column] == name]) for name in MAPPINGS if (table[column] == name).any()]


def _rows(own: pd.DataFrame, column: str, names: Mapping[str, tuple[str, str]], label: str) -> Picture:
    groups = list(dict.fromkeys(own.group))
    figure = picture(7.2, 1.2 + 0.5 * len(groups))
    ax = figure.subplots()
    _dots(ax, own, column, names, groups)
    ax.set_xlabel(label)
    columns = len(names) if sum(len(name) + 4 for name, _ in names.values()) <= LINE else 2
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=8.5, borderaxespad=0.2)
    return figure


def _dots(
    ax: Axes, own: pd.DataFrame, column: str, names: Mapping[str, tuple[str, str]], groups: Sequence[str]
) -> None:
    """A row a group, a dot a network with its interval; those of one of ``names`` (in ``column``) at one height."""
    middle = (len(names) - 1) / 2
    for place, (name, (label, colour)) in enumerate(names.items()):
        found = own[own[column] == name]
        y = found.group.map(groups.index).to_numpy() + BESIDE * (place - middle)
        low, high = (found[end].astype(float).to_numpy() for end in ("low", "high"))
        ax.hlines(y, low, high, color=colour, lw=1, alpha=0.5)
        ax.plot(found.value, y, "o", ms=5, color=colour, alpha=0.85, label=label, gid=f"dots:{name}")
    ax.set_yticks(range(len(groups)), groups)
    ax.set_ylim(len(groups) - 0.45, -0.55)
    ax.grid(axis="x")
