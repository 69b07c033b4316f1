"""The figures of the self-explaining study. Each takes the records or the frame of `study`, or images and maps, shows
everything that it finds there, and returns a `Picture`. A kind of learning has one colour throughout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from helpers import figures as shared
from helpers.figures import BLACK, BLUE, GREEN, GREY, HEAT, LIGHT, ORANGE, PURPLE, Picture, picture, style
from helpers.self_explaining.evaluate import METRICS
from helpers.self_explaining.tables import KIND_NAMES, values

TINTS = {"cnn": BLUE, "lsx": ORANGE, "lsx-batch": PURPLE, "no-feedback": GREEN, "permuted": GREY}
NORM_NAMES = {"sample": "each map divided by its maximum", "batch": "divided by the maximum of the batch (original)"}
CONDITION_NAMES = {
    "clean": "clean", "decoy": "decoys", "decoy-unconf": "decoys +\nclean images", "color": "colours",
    "color-unconf": "colours +\nfree images",
}  # fmt: skip


@style()
def key(images: Tensor, maps: Mapping[str, Tensor], records: Iterable[dict[str, Any]], n_classes: int = 10) -> Picture:
    """``images`` [n, H, W] in [0, 1] above their explanations ``maps`` [n, H, W] by kind, each with its own maximum;
    and what a critic makes of such maps: its learning curve in the clean condition, a thin line a seed."""
    records = list(records)
    figure = picture(11, 0.78 * (1 + len(maps)) + 0.5)
    left, right = figure.subfigures(1, 2, width_ratios=(2.1, 1))
    axes = left.subplots(1 + len(maps), len(images), squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
    for ax, image in zip(axes[0], images, strict=True):
        shared.show(ax, image)
    for row, heat in zip(axes[1:], maps.values(), strict=True):
        for ax, one in zip(row, heat, strict=True):
            shared.show(ax, one / one.max().clamp(min=1e-12), colours=HEAT)
    for ax, name in zip(axes[:, 0], ("image", *(KIND_NAMES[kind] for kind in maps)), strict=True):
        ax.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6)
    ax = right.subplots()
    _curves(ax, records, "sample", [kind for kind in ("cnn", "no-feedback", "lsx") if _has(records, kind)], n_classes)
    ax.set_title("A fresh critic reads the explanations", fontsize=10)
    return figure


@style()
def critic_curves(records: Iterable[dict[str, Any]], n_classes: int = 10) -> Picture:
    """The critics' learning curves in the clean condition, a panel a norm: thin a seed, thick their mean. Dashed: what
    guessing costs."""
    records = list(records)
    norms = [norm for norm in NORM_NAMES if any(norm in record["curves"] for record in records)]
    figure = picture(4.8 * len(norms) + 1.6, 3.4)
    axes = figure.subplots(1, len(norms), squeeze=False, sharey=True)[0]
    kinds = [kind for kind in TINTS if _has(records, kind)]
    for ax, norm in zip(axes, norms, strict=True):
        _curves(ax, records, norm, kinds, n_classes)
        ax.set_title(NORM_NAMES[norm], fontsize=10)
    for ax in axes[:-1]:
        ax.get_legend().remove()
    return figure


@style()
def conditions(frame: pd.DataFrame, metric: str, norm: str = "sample", *, percent: bool = False) -> Picture:
    """A metric in every condition: CNN and CNN-LSX of the same seed joined by a line. ``percent``: it is a share."""
    own = values(frame, metric, norm=norm)
    own = own[own.kind.isin(("cnn", "lsx"))]
    there = [name for name in CONDITION_NAMES if name in set(own.condition)]
    figure = picture(max(5.0, 1.2 + 1.5 * len(there)), 3.2)
    ax = figure.subplots()
    for place, condition in enumerate(there):
        of = own[own.condition == condition].pivot_table(index="seed", columns="kind", values="value")
        of = of.reindex(columns=["cnn", "lsx"]) * (100 if percent else 1)
        for seed, pair in of.iterrows():
            ax.plot([place - 0.16, place + 0.16], pair, color=LIGHT, lw=1, zorder=1, gid=f"{condition}:{seed}")
        for kind, at in (("cnn", -0.16), ("lsx", 0.16)):
            ax.plot([place + at] * len(of), of[kind], "o", ms=5, color=TINTS[kind], gid=f"{condition}:{kind}")
            ax.plot([place + at - 0.09, place + at + 0.09], [of[kind].mean()] * 2, color=BLACK, lw=1.5)
    ax.set_xticks(range(len(there)), [CONDITION_NAMES[name] for name in there])
    ax.set_xlim(-0.6, len(there) - 0.4)
    ax.set_ylabel(fill(f"{METRICS[metric].text}{', %' if percent else ''}", 24))
    ax.grid(axis="y")
    _legend(ax, [kind for kind in ("cnn", "lsx") if kind in set(own.kind)])
    return figure


@style()
def removal(frame: pd.DataFrame, norm: str = "sample", label: str = "true") -> Picture:
    """How many points of accuracy are lost, more than where a random map says what goes, when the highest k % are
    removed (above) or all else is (below): by value as published, and by area. Mean over seeds, bars: deviation."""
    figure = picture(10, 5.6)
    axes = figure.subplots(2, 2, sharex=True)
    own = frame[(frame.condition == "clean") & (frame.norm == norm) & (frame.label == label) & frame.percent.notna()]
    kinds = [kind for kind in TINTS if kind in set(own.kind)]
    titles = {"value": "k: share of the map's range (as published)", "area": "k: share of the pixels"}
    for row, metric in zip(axes, ("comprehensiveness", "sufficiency"), strict=True):
        for ax, how in zip(row, ("value", "area"), strict=True):
            _lines(ax, own[own.metric == f"{metric}_{how}"], kinds)
            ax.axhline(0, color=GREY, lw=0.8)
            ax.set_title(f"{metric}, {'higher' if metric[0] == 'c' else 'lower'} is better", fontsize=10)
            if metric == "sufficiency":
                ax.set_xlabel(titles[how])
    for ax in axes[:, 0]:
        ax.set_ylabel("points lost")
    _legend(axes[0, 1], kinds)
    return figure


@style()
def consolidation(frame: pd.DataFrame) -> Picture:
    """Are explanations of a class alike? Ridge classification (above) and IIES (below) under both norms, a dot a seed:
    filled, explanations of the true label; open, of the predicted one."""
    figure = picture(9, 5.4)
    axes = figure.subplots(2, 2, sharex=True)
    own = frame[frame.condition == "clean"]
    kinds = [kind for kind in TINTS if kind in set(own.kind)]
    for row, metric in zip(axes, ("ridge_accuracy", "iies"), strict=True):
        for ax, norm in zip(row, NORM_NAMES, strict=True):
            for place, kind in enumerate(kinds):
                for label, at, face in (("true", -0.13, TINTS[kind]), ("predicted", 0.13, "white")):
                    found = values(own[own.kind == kind], metric, norm=norm, label=label).value
                    spread = 0.06 * shared.offsets(len(found))
                    ax.plot(place + at + spread, found, "o", ms=5, color=TINTS[kind], markerfacecolor=face,
                            gid=f"{metric}:{norm}:{kind}:{label}")  # fmt: skip
            ax.set_title(NORM_NAMES[norm], fontsize=10)
            ax.set_xticks(range(len(kinds)), [KIND_NAMES[kind].replace(", ", ",\n") for kind in kinds])
            ax.grid(axis="y")
        arrow = "↑" if METRICS[metric].better == "higher" else "↓"
        row[0].set_ylabel(f"{'ridge accuracy, %' if metric[0] == 'r' else 'IIES'} {arrow}")
    dot = {"marker": "o", "linestyle": "none", "color": GREY, "markersize": 5}
    handles = [Line2D([], [], label="true label explained", **dot),
               Line2D([], [], label="predicted label explained", markerfacecolor="white", **dot)]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


@style()
def magnitudes(maxima: Mapping[str, Tensor], doubt: Mapping[str, Tensor], wrong: Mapping[str, Tensor]) -> Picture:
    """Who owns the maximum of a batch? By kind: the ``maxima`` [M] of each image's map against ``doubt`` [M], 1 - p of
    the label that is explained; ``wrong`` [M] predictions are crosses."""
    figure = picture(0.8 + 4.2 * len(maxima), 3.3)
    axes = figure.subplots(1, len(maxima), squeeze=False, sharex=True, sharey=True)[0]
    for ax, kind in zip(axes, maxima, strict=True):
        for mask, mark, colour, name in (
            (~wrong[kind], "o", TINTS[kind], "right"), (wrong[kind], "x", BLACK, "wrong"),
        ):  # fmt: skip
            x, y = doubt[kind][mask].clamp(min=1e-8), maxima[kind][mask].clamp(min=1e-8)
            ax.loglog(x, y, mark, ms=3.5, alpha=0.7, color=colour, label=name, linestyle="none", gid=f"{kind}:{name}")
        ax.set(title=KIND_NAMES[kind], xlabel="1 − p of the explained label")
    axes[0].set_ylabel("maximum of its map")
    axes[-1].legend(title="prediction", loc="lower right")
    return figure


@style()
def maps_in_a_batch(images: Tensor, norms: Mapping[str, Tensor]) -> Picture:
    """``images`` [n, H, W] in [0, 1] above their maps [n, H, W] under each norm, all on the scale from 0 to 1."""
    figure = picture(1.0 * len(images) + 1.4, 1.1 * (1 + len(norms)))
    axes = figure.subplots(1 + len(norms), len(images), squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
    for ax, image in zip(axes[0], images, strict=True):
        shared.show(ax, image)
    for row, (norm, maps) in zip(axes[1:], norms.items(), strict=True):
        for ax, heat in zip(row, maps, strict=True):
            shared.show(ax, heat, colours=HEAT)
        row[0].set_ylabel(norm, rotation=0, ha="right", va="center", labelpad=6)
    axes[0, 0].set_ylabel("image", rotation=0, ha="right", va="center", labelpad=6)
    return figure


# ------------------------------------------------------------------------------------------------------- parts


def _curves(ax: Axes, records: Sequence[dict[str, Any]], norm: str, kinds: Sequence[str], n_classes: int) -> None:
    for kind in kinds:
        found = [
            record["curves"][norm]
            for record in records
            if record["name"].split("/")[1:3] == ["clean", kind] and norm in record["curves"]
        ]
        steps = np.arange(1, len(found[0]) + 1)
        for curve in found:
            ax.plot(steps, curve, color=TINTS[kind], lw=0.7, alpha=0.4)
        ax.plot(steps, np.mean(found, 0), color=TINTS[kind], lw=2.2, gid=f"curve:{norm}:{kind}")
    ax.axhline(math.log(n_classes), color=GREY, lw=1, ls="--")
    ax.set(xlabel="critic batch", ylabel="critic's loss", ylim=(0, None))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(ax, kinds)


def _lines(ax: Axes, rows: pd.DataFrame, kinds: Sequence[str]) -> None:
    for place, kind in enumerate(kinds):
        own = rows[rows.kind == kind].groupby("percent").value.agg(["mean", "std"])
        ax.errorbar(range(len(own)), own["mean"], own["std"], color=TINTS[kind], marker="o", ms=4, lw=1.5, capsize=2,
                    zorder=2 + place / 10)  # fmt: skip
        ax.set_xticks(range(len(own)), [f"{percent:g} %" for percent in own.index])


def _legend(ax: Axes, kinds: Sequence[str]) -> None:
    ax.legend(handles=[Line2D([], [], color=TINTS[kind], lw=2.2, label=KIND_NAMES[kind]) for kind in kinds])


def _has(records: Iterable[dict[str, Any]], kind: str) -> bool:
    return any(record["name"].split("/")[1:3] == ["clean", kind] for record in records)


def as_picture(maps: Tensor) -> Tensor:
    """Maps [n, C, H, W] summed over channels, on the CPU: [n, H, W]."""
    return maps.detach().sum(1).to(torch.float32).cpu()
