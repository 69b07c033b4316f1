"""The figures of the floods study (spec pinets, section 6.5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.patches import Patch

from helpers.data.flood_chips import BANDS, DRY, NO_DATA, WATER
from helpers.figures import BLACK, BLUE, GREY, LIGHT, ORANGE, Picture, picture, show, style
from helpers.pinets.floods import tables
from helpers.pinets.floods.maps import Maps
from helpers.pinets.floods.presets import LABELS
from helpers.pinets.floods.study import Measured

TEAL = "#008080"
COLOURS = {"pinet": BLUE, "segnet": ORANGE}
CLASS_COLOURS = {NO_DATA: BLACK, DRY: LIGHT, WATER: TEAL}
BRIGHT = 3000.0  # reflectance x 10,000 that is drawn white
CUT = 0.5  # of two classes, the share of water from which it is the one with more

COMPOSITES = {  # bands drawn red, green, blue, and what is drawn white in each
    "true colour": ((2, 1, 0), BRIGHT),
    "false colour (NIR, red, green)": ((3, 2, 1), 4500.0),
    "short-wave (SWIR2, NIR, red)": ((5, 3, 2), 4500.0),
}


def composite(image: np.ndarray, name: str = "true colour") -> np.ndarray:
    """float64 [H, W, 3] in [0, 1] of reflectances [6, H, W]."""
    bands, white = COMPOSITES[name]
    return np.clip(image[list(bands)] / white, 0, 1).transpose(1, 2, 0)


def paint(values: np.ndarray) -> np.ndarray:
    """float64 [H, W, 3] of a mask [H, W]: no data black, dry grey, water teal."""
    colours = np.array([[int(CLASS_COLOURS[v][i : i + 2], 16) for i in (1, 3, 5)] for v in sorted(CLASS_COLOURS)])
    return colours[values.astype(int) - NO_DATA] / 255


def shade(water: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """float64 [H, W, 3] of a map of water [H, W]: from dry grey to water teal; black where ``mask`` has no data."""
    dry, wet = (paint(np.full(mask.shape, value)) for value in (DRY, WATER))
    mixed = dry + (wet - dry) * water[..., None]
    return np.where((mask == NO_DATA)[..., None], paint(mask), mixed)


def decided(water: np.ndarray, mask: np.ndarray | None = None, threshold: float = CUT) -> np.ndarray:
    """int8 [H, W]: 1 where the map of water exceeds ``threshold``, else 0; -1 where ``mask`` has no data."""
    found = (water > threshold).astype(np.int8)
    return found if mask is None else np.where(mask == NO_DATA, NO_DATA, found)


@style()
def chip(image: np.ndarray, mask: np.ndarray) -> Picture:
    """One chip in true colour, in narrow NIR, where water is dark, and its mask."""
    figure = picture(9, 3.5)
    panels = figure.subplots(1, 3)
    show(panels[0], composite(image), title="red, green, blue")
    show(panels[1], image[3] / 4500, title=BANDS[3])
    show(panels[2], paint(mask), title="mask")
    _legend(figure)
    return figure


@style()
def comparison(maps: Maps, chips: Sequence[str], models: Sequence[str]) -> Picture:
    """Chips side by side: the image, the truth, and the map of each model as it is. Below each map the area that it
    adds up to, as a share of the pixels that have data."""
    rows = 2 + len(models)
    figure = picture(1.75 * len(chips) + 0.9, 1.95 * rows + 0.4)
    axes = figure.subplots(rows, len(chips), squeeze=False)
    for column, name in enumerate(chips):
        image, mask = maps.scene(name)
        known = mask != NO_DATA
        show(axes[0, column], composite(image), title=name)
        show(axes[1, column], paint(mask))
        axes[1, column].set_xlabel(f"{(mask == WATER).sum() / max(known.sum(), 1):.1%}", fontsize=9)
        for row, model in enumerate(models, 2):
            water = maps.water(model, name)
            show(axes[row, column], shade(water, mask))
            axes[row, column].set_xlabel(f"{water[known].sum() / max(known.sum(), 1):.1%}", fontsize=9)
    for row, text in enumerate(["image", "truth", *(model.replace(", ", ",\n") for model in models)]):
        axes[row, 0].set_ylabel(text, fontsize=9)
    _legend(figure)
    return figure


def _legend(figure: Picture) -> None:
    names = {WATER: "water", DRY: "dry", NO_DATA: "no data"}
    figure.legend(
        handles=[Patch(color=CLASS_COLOURS[value], label=name) for value, name in names.items()],
        loc="outside lower center", ncols=3,
    )  # fmt: skip


@style()
def training_curves(side: Measured) -> Picture:
    """The course of the fits without budgets under the first of the rules: error of areas and micro-IoU of water on
    validation tiles, by epoch; a dot where the checkpoint was chosen."""
    figure = picture(9, 3.4)
    panels = figure.subplots(1, 2)
    for record in side.records:
        _, _, rules, group, _ = record["name"].split("/")
        if rules != side.study.rules[0] or group not in ("pinet-000", "segnet-100"):
            continue
        kind, course = group.split("-")[0], record["training"]["history"]
        chosen = record["training"]["epoch"] - 1
        for ax, key in zip(panels, ("area_error", "water_iou"), strict=True):
            values = [np.nan if value is None else value for value in course[key]]
            ax.plot(course["epoch"], values, color=COLOURS[kind], linewidth=1.2, alpha=0.8)
            ax.plot(course["epoch"][chosen], values[chosen], "o", color=COLOURS[kind], markersize=5)
    panels[0].set(xlabel="epoch", ylabel="pixels", yscale="log", title="Error of areas, validation")
    panels[1].set(xlabel="epoch", ylim=(0, 1), title="IoU of water, validation")
    _kinds(figure, "a line a fit; the dot: the epoch that is kept")
    return figure


@style()
def areas(side: Measured) -> Picture:
    """Predicted against true area of water on the first test, a dot a tile, in percent of the tile: PiNet from areas
    alone and SegNet from all masks, their first fit under the first of the rules."""
    test, pixels = side.study.data.tests[0], side.study.data.tile**2
    figure = picture(8.2, 4.1)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    drawn: set[str] = set()
    for record in side.records:
        _, _, rules, group, _ = record["name"].split("/")
        kind = {"pinet-000": "pinet", "segnet-100": "segnet"}.get(group)
        if kind is None or kind in drawn or rules != side.study.rules[0]:
            continue
        drawn.add(kind)
        report = record["test"][test]
        values = {name: np.array(areas) / pixels * 100 for name, areas in report["areas"].items()}
        ax = panels[list(COLOURS).index(kind)]
        ax.plot([0, 100], [0, 100], color=LIGHT, linewidth=1, zorder=0)
        ax.plot(values["true"], values["predicted"], "o", color=COLOURS[kind], markersize=4, alpha=0.6)
        ax.set(title=LABELS[kind], xlabel="true area, % of the tile", box_aspect=1)
        ax.text(3, 93, f"mean error {report['mae_percent']:.1f} %", fontsize=9)
    panels[0].set_ylabel("predicted area, % of the tile")
    return figure


@style()
def label_budget(side: Measured) -> Picture:
    """Quality by the percentage of masks, under the first of the rules and on the first test: a dot a fit, a line
    through the means. At 0 % a SegNet has nothing to learn from."""
    own = tables.first(side)
    baseline = side.baselines[side.study.data.tests[0]]["iou_water"]
    figure = picture(9, 3.6)
    panels = figure.subplots(1, 2)
    for kind, fits in own.groupby("kind"):
        for ax, key in zip(panels, ("iou_water", "mae_percent"), strict=True):
            means = fits.groupby("masks")[key].mean()
            ax.plot(means.index, means.to_numpy(), color=COLOURS[kind], linewidth=1.5)
            ax.plot(fits.masks, fits[key], "o", color=COLOURS[kind], markersize=4.5, alpha=0.7)
    if baseline is not None:  # there is water to find
        panels[0].axhline(baseline, color=GREY, linestyle="--", linewidth=1)
        panels[0].text(1, baseline - 0.02, tables.INDEX, va="top", fontsize=8.5, color=GREY)
    for ax, title in zip(panels, ("IoU of water", "Error of areas, % of a tile"), strict=True):
        ax.set(xlabel="tiles with a mask, %", title=title)
        ax.set_xscale("symlog", linthresh=5)
        ax.set_xticks(sorted(own.masks.unique()), [str(masks) for masks in sorted(own.masks.unique())])
        ax.minorticks_off()
        ax.set_xlim(-0.5, 115)
    panels[0].set_ylim(0, 1)
    panels[1].set_ylim(bottom=0)
    _kinds(figure, "a dot a fit")
    return figure


def _kinds(figure: Picture, note: str) -> None:
    handles = [Patch(color=COLOURS[kind], label=name) for kind, name in LABELS.items()]
    figure.legend(handles=[*handles, Patch(alpha=0, label=note)], loc="outside lower center", ncols=3)
