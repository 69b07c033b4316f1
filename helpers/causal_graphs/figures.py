"""The figures about numbers of the causal graphs study: counts, stability, experiments E5 to E10
(`score_figures` has the one about scores of maps).

Each takes the table or the records that the module named in its docstring returns, shows every row that it finds there,
and returns a `Picture`. What the release stores stands beside ours as white diamonds, never mixed with it; random
controls are grey.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from helpers import figures as shared
from helpers.causal_graphs import released
from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.pictures import CAUSE, INHIBITOR
from helpers.figures import BLACK, COLOURS, GREY, LIGHT, Picture, offsets, picture, style, tint

_DIAMOND = {"marker": "D", "markersize": 6, "markerfacecolor": "white", "markeredgecolor": BLACK, "linestyle": "none"}
_DOT = {"marker": "o", "markersize": 4, "linestyle": "none", "markeredgewidth": 0}
_CONTROL = {"marker": "o", "markersize": 3.5, "linestyle": "none", "color": GREY, "alpha": 0.6, "markeredgewidth": 0}


# --------------------------------------------------------------------------------------------------- graphs


def counts(graphs: Iterable[CausalGraph]) -> pd.DataFrame:
    """One row a graph and layer that was tested: target, weights_hash, layer, source_layer, tested, causes, inhibitors,
    effects, rule."""
    tables = [g.counts().reset_index().assign(target=g.target, weights_hash=g.weights_hash) for g in graphs]
    table = pd.concat(tables, ignore_index=True)
    return table[table.tested > 0].reset_index(drop=True)


@style()
def node_counts(
    table: pd.DataFrame, reference: Mapping[str, tuple[int, int]] | None = None, reference_target: int = 3
) -> Picture:
    """How many nodes does a class hang on? A panel a layer, a dot a graph: causes filled, inhibitors open.

    ``table`` as `counts` gives it. ``reference``: by layer (causes, tested), of class ``reference_target``.
    """
    layers = list(dict.fromkeys(table.layer))
    columns = min(len(layers), 4)
    rows = -(-len(layers) // columns)
    figure = picture(0.9 + 2.75 * columns, 0.7 + 2.3 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    targets = sorted(table.target.unique())
    for ax, layer in zip(axes, layers, strict=False):
        own = table[table.layer == layer]
        for place, target in enumerate(targets):
            of = own[own.target == target]
            spread = 0.12 * offsets(len(of)) if len(of) > 1 else np.zeros(len(of))
            ax.plot(place + spread, of.inhibitors, **_DOT | {"markerfacecolor": "white", "markeredgewidth": 1},
                    color=INHIBITOR, gid=f"inhibitors:{layer}:{target}", clip_on=False)  # fmt: skip
            ax.plot(place + spread, of.causes, color=CAUSE, gid=f"causes:{layer}:{target}", clip_on=False, **_DOT)
        if reference and layer in reference and reference_target in targets:
            ax.plot(targets.index(reference_target), reference[layer][0], gid=f"released:{layer}", zorder=4, **_DIAMOND)
        first = own.iloc[0]
        ax.set_title(f"{first.source_layer}: {first.tested} nodes", fontsize=10)
        ax.set(ylim=(0, None), xlim=(-0.6, len(targets) - 0.4), xlabel="class")
        ax.set_xticks(range(len(targets)), targets)
        ax.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    for ax in axes[len(layers) :]:
        ax.set_axis_off()
    for row in range(rows):
        axes[row * columns].set_ylabel("nodes")
    handles = [Line2D([], [], color=CAUSE, label="causes", **_DOT),
               Line2D([], [], color=INHIBITOR, label="inhibitors",
                      **_DOT | {"markerfacecolor": "white", "markeredgewidth": 1})]  # fmt: skip
    if reference:
        handles.append(Line2D([], [], label="released: causes", **_DIAMOND))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@style()
def by_depth(walks: Mapping[str, pd.DataFrame]) -> Picture:
    """E7: from the logits down, the share of a layer's nodes that are causes, and how far classes share them. A column
    a network (`parts.walks`), a thin line a class, a thick one their mean; open circles are skip connections, whose
    lower nodes go straight on. Where a layer has no cause there is nothing to share."""
    figure = picture(0.9 + 4.8 * len(walks), 5.8)
    axes = figure.subplots(2, len(walks), squeeze=False, sharex="col", sharey="row")
    open_circle = {"marker": "o", "ms": 4.5, "ls": "none", "markerfacecolor": "white", "color": CAUSE}
    for column, (name, table) in zip(axes.T, walks.items(), strict=True):
        layers = list(dict.fromkeys(table.layer))
        table = table.assign(depth=table.layer.map(layers.index), share=100 * table.causes / table.lower)
        table["jaccard"] = table.jaccard.where(table.groupby("layer").causes.transform("max") > 0)
        skips = table.kind == "identity"
        for ax, value in zip(column, ("share", "jaccard"), strict=True):
            for target, own in table[~skips].groupby("target"):
                ax.plot(own.depth, own[value], color=LIGHT, lw=1, gid=f"{value}:{name}:{target}")
            mean, straight = (of.groupby("depth")[value].mean() for of in (table[~skips], table[skips]))
            ax.plot(mean.index, mean, color=CAUSE, lw=2, marker="o", ms=3.5, gid=f"{value}:{name}:mean")
            ax.plot(straight.index, straight, gid=f"{value}:{name}:skips", **open_circle)
            ax.set_ylim(0, None)
        column[0].set_title(name)
        every = -(-len(layers) // 10)
        column[1].set_xticks(range(0, len(layers), every), layers[::every], rotation=60, ha="right", fontsize=8)
        column[1].set_ylim(0, 1)
    axes[0, 0].set_ylabel("causes, % of the nodes")
    axes[1, 0].set_ylabel("shared with another class\n(Jaccard index)")
    handles = [Line2D([], [], color=LIGHT, lw=1, label="a class"),
               Line2D([], [], color=CAUSE, lw=2, marker="o", ms=3.5, label="mean over classes"),
               Line2D([], [], label="the same, skip connections", **open_circle)]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@style()
def class_overlap(table: pd.DataFrame, layers: Sequence[str] = ("whole",), metric: str = "jaccard") -> Picture:
    """E8: how much do the graphs of two classes share? A panel a layer, a cell a pair; ``table`` as
    `experiments.class_overlap` gives it (several checkpoints: the mean of their rows)."""
    targets = sorted({*table.one, *table.other})
    places = {target: k for k, target in enumerate(targets)}
    figure = picture(0.8 + 3.5 * len(layers), 3.7)
    axes = figure.subplots(1, len(layers), squeeze=False)[0]
    low = -1 if metric == "rank_correlation" else 0
    colours = "RdBu_r" if low else "Oranges"
    for ax, layer in zip(axes, layers, strict=True):
        matrix = np.full((len(targets), len(targets)), np.nan)
        for (one, other), rows in table[table.layer == layer].groupby(["one", "other"]):
            value = rows[metric].mean()
            matrix[places[one], places[other]] = matrix[places[other], places[one]] = value
        drawn = ax.imshow(matrix, vmin=low, vmax=1, cmap=colours, gid=f"overlap:{layer}")
        for row, column in zip(*np.nonzero(~np.isnan(matrix)), strict=True):
            value = matrix[row, column]
            ink = "white" if abs(value) > 0.65 else BLACK
            ax.text(column, row, f"{value:.2f}".lstrip("0").replace("-0", "−"), ha="center", va="center", fontsize=7.5,
                    color=ink)  # fmt: skip
        ax.set_xticks(range(len(targets)), targets)
        ax.set_yticks(range(len(targets)), targets)
        ax.set_title("all layers" if layer == "whole" else layer, fontsize=10)
        ax.set_xlabel("class")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.01)
    bar.outline.set_visible(False)
    bar.set_label({"jaccard": "Jaccard index of the causes"}.get(metric, "rank correlation of the effects"))
    return figure


@style()
def sample_sizes(tables: Mapping[str, pd.DataFrame]) -> Picture:
    """E6: how many images does a graph need? Above the number of causes (line: mean; band: range of the draws), below
    the agreement of the draws, a column a layer. ``tables``: by the name of a rule, `experiments.by_size`."""
    layers = list(dict.fromkeys(layer for table in tables.values() for layer in table.index.get_level_values("layer")))
    figure = picture(0.9 + 2.6 * len(layers), 4.6)
    axes = figure.subplots(2, len(layers), squeeze=False, sharex=True, sharey="row")
    for (name, table), colour in zip(tables.items(), COLOURS, strict=False):
        for column, layer in enumerate(layers):
            if layer not in table.index.get_level_values("layer"):
                continue
            own = table.loc[layer].sort_index()
            above, below = axes[:, column]
            above.fill_between(own.index, own.lowest, own.highest, color=tint(colour, 0.22), linewidth=0)
            look = {"color": colour, "marker": "o", "markersize": 4}
            above.plot(own.index, own["count"], gid=f"count:{name}:{layer}", **look)
            below.plot(own.index, own.jaccard, gid=f"jaccard:{name}:{layer}", **look)
    sizes = sorted({size for table in tables.values() for size in table.index.get_level_values("size")})
    for column, layer in enumerate(layers):
        axes[0, column].set_title(layer, fontsize=10)
        axes[1, column].set(xscale="log", ylim=(0, 1.03), xlabel="images")
        axes[1, column].set_xticks(sizes, [str(size) for size in sizes])
        axes[1, column].minorticks_off()
    axes[0, 0].set(ylabel="causes", ylim=(0, None))
    axes[1, 0].set_ylabel("mean Jaccard index\nof two draws")
    handles = [Line2D([], [], color=colour, marker="o", markersize=4, label=name)
               for name, colour in zip(tables, COLOURS, strict=False)]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


# ------------------------------------------------------------------------------------------------ stability


@style()
def stability_curves(
    tables: Mapping[str, pd.DataFrame],
    appearance: Mapping[float, float] | None = released.APPEARANCE,
    jaccard: Mapping[float, float] | None = released.JACCARD,
    xlabel: str = "largest soft value β",
) -> Picture:
    """E2 a: does a layer come out again under soft values? Mean appearance, agreement of two runs, and runs that found
    nothing, by β. Dotted: β = 0, the noise of drawing images alone.

    ``tables``: by name, `stability.by_beta`. ``appearance`` (in %) and ``jaccard``: what the release stores.
    """
    figure = picture(11, 3.6)
    panels = figure.subplots(1, 3, sharex=True)
    parts = [("appearance", "mean share of the runs\nthat a node appears in"),
             ("jaccard", "mean Jaccard index\nof two runs"),
             ("empty", "share of the runs\nwithout any node")]  # fmt: skip
    scaled = {beta: value / 100 for beta, value in (appearance or {}).items()}
    known = {"appearance": scaled, "jaccard": jaccard or {}, "empty": {}}
    for ax, (column, label) in zip(panels, parts, strict=True):
        for (name, table), colour in zip(tables.items(), COLOURS, strict=False):
            ax.plot(table.index, table[column], color=colour, label=name, gid=f"{column}:{name}", linewidth=1.6)
            if 0.0 in table.index and column != "empty":
                ax.axhline(table[column][0.0], color=colour, linestyle=":", linewidth=1, gid=f"floor:{column}:{name}")
        if known[column]:
            ax.plot(list(known[column]), list(known[column].values()), gid=f"released:{column}", **_DIAMOND)
        ax.set(ylim=(0, 1.03), xlabel=xlabel, ylabel=label)
    handles = [Line2D([], [], color=colour, label=name) for name, colour in zip(tables, COLOURS, strict=False)]
    handles.append(Line2D([], [], color=GREY, linestyle=":", label="β = 0: other images alone"))
    if appearance or jaccard:
        handles.append(Line2D([], [], label="released (class 3, fc3, other weights)", **_DIAMOND))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


@style()
def stability_windows(table: pd.DataFrame, title: str = "") -> Picture:
    """E2 b: in how many of the runs does a node appear? A panel a window of β; ``table``: `stability.by_window`."""
    shares = [column for column in table.columns if "/" in column]
    runs = int(shares[0].split("/")[1])
    figure = picture(0.9 + 2.1 * len(table), 2.9)
    axes = figure.subplots(1, len(table), squeeze=False, sharey=True)[0]
    percent = [100 * int(column.split("/")[0]) / runs for column in shares]
    for ax, row in zip(axes, table.to_dict("records"), strict=True):
        values = [row[column] for column in shares]
        ax.bar(percent, values, 0.8 * 100 / runs, color=CAUSE, gid=f"window:{row['low']:.2g}")
        ax.set_title(f"β {row['low']:.2g} to {row['high']:.2g}", fontsize=10)
        note = f"{row['nodes']:.1f} nodes a run\n{row['empty']:.0%} of runs empty"
        ax.text(0.97, 0.97, note, transform=ax.transAxes, ha="right", va="top", fontsize=8.5, color=GREY)
        ax.set_xticks([50, 100] if runs > 4 else percent)
        ax.set(xlim=(50 / runs, 100 + 50 / runs), ylim=(0, 1), xlabel="% of the runs")
    axes[0].set_ylabel("share of the nodes")
    if title:
        figure.suptitle(title, x=0.005, ha="left")
    return figure


# ---------------------------------------------------------------------------------------------- experiments


@style()
def randomised_effects(table: pd.DataFrame) -> Picture:
    """Do the effects come from the weights? Rank correlation of each layer's effects with those under random weights
    (a dot a draw, a line the mean): it should be near 0. ``table``: `evaluate.effect_mprt`."""
    layers = list(dict.fromkeys(table.layer))
    figure = picture(1.2 + 1.1 * len(layers), 3.2)
    ax = figure.subplots()
    for place, layer in enumerate(layers):
        values = table[table.layer == layer].rank_correlation.to_numpy(float)
        ax.plot(place + 0.15 * offsets(len(values)), values, gid=f"draws:{layer}", **_CONTROL)
        ax.plot([place - 0.25, place + 0.25], [np.nanmean(values)] * 2, color=BLACK, linewidth=2)
    ax.axhline(0, color=LIGHT, linewidth=1, zorder=0)
    ax.axhline(1, color=CAUSE, linestyle="--", linewidth=1.2)
    ax.text(len(layers) - 0.45, 1.02, "the trained weights", ha="right", va="bottom", fontsize=9, color=CAUSE)
    ax.set(ylim=(-1, 1.15), xlim=(-0.5, len(layers) - 0.5), ylabel="rank correlation\nof the effects")
    ax.set_xticks(range(len(layers)), layers)
    return figure


@style()
def necessity(records: Iterable[Mapping[str, Any]]) -> Picture:
    """E5: is the graph necessary, specific and sufficient? A bar a class, with random graphs of as many nodes (a dot
    each) and the whole network (a line); bars of AUROC start at chance. ``records``: `surgery.record`; of several of a
    class the bar is the mean."""
    records, by_target = list(records), {}
    for record in records:
        by_target.setdefault(record["target"], []).append(record)
    targets = sorted(by_target)
    figure = picture(11, 3.9)
    parts = [("cut_recall", "recall", "Necessary: recall of the class\nwithout the graph’s edges", CAUSE, 0.0),
             ("cut_others", "others", "Specific: accuracy on the others\nwithout them", shared.ORANGE, 0.0),
             ("kept_auroc", "auroc", "Sufficient: AUROC of the logit\nwith only them", shared.GREEN, 0.5)]  # fmt: skip
    for ax, (measured, whole, title, colour, chance) in zip(figure.subplots(1, 3), parts, strict=True):
        for place, target in enumerate(targets):
            own = by_target[target]
            value = np.mean([record[measured] for record in own])
            ax.bar(place, value - chance, 0.7, chance, color=tint(colour, 0.55), gid=f"{measured}:{target}")
            drawn = [value for record in own for value in record[f"random_{measured}"]]
            ax.plot(place + 0.28 * offsets(len(drawn)), drawn, gid=f"random:{measured}:{target}", clip_on=False,
                    **_CONTROL | {"markeredgecolor": "white", "markeredgewidth": 0.4, "alpha": 1})  # fmt: skip
            level = np.mean([record[whole] for record in own])
            for height, ink, width, gid in ((level, BLACK, 1.6, f"{whole}:{target}"), (value, colour, 4, None)):
                ax.plot([place - 0.35, place + 0.35], [height] * 2, color=ink, linewidth=width, gid=gid, clip_on=False)
        low = min(0.4, 0.98 * min(min(r[measured], *r[f"random_{measured}"]) for r in records)) if chance else 0.0
        if chance:
            ax.axhline(chance, color=GREY, linestyle="--", linewidth=1)
        ax.set_title(title, fontsize=10)
        ax.set(ylim=(low, 1.02), xlim=(-0.6, len(targets) - 0.4), xlabel="class")
        ax.set_xticks(range(len(targets)), targets)
    handles = [Patch(color=LIGHT, label="the graph"), Line2D([], [], label="random graphs, as many nodes", **_CONTROL),
               Line2D([], [], color=BLACK, linewidth=1.6, label="the whole network")]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@style()
def repair(records: Iterable[Mapping[str, Any]], names: Sequence[str] = ()) -> Picture:
    """E9: does cutting the edges that carry a planted mark undo it? Two bars a record of `repair.repair`, before and
    after, and a dot for each random cut of equal size. ``names`` stand below them (default: the rules)."""
    records = list(records)
    names = names or [str(record["rule"]) for record in records]
    figure = picture(11, 3.9)
    parts = [("marked", "Accuracy on marked images\nof the other classes"),
             ("taken", "Marked images\ntaken for the class"), ("clean", "Accuracy on clean images")]  # fmt: skip
    for ax, (column, title) in zip(figure.subplots(1, 3, sharey=True), parts, strict=True):
        for place, record in enumerate(records):
            before, after = record[column]
            ax.bar(place - 0.2, before, 0.36, color=LIGHT, gid=f"{column}:before:{place}")
            ax.bar(place + 0.2, after, 0.36, color=CAUSE, gid=f"{column}:after:{place}")
            drawn = record[f"random_{column}"]
            ax.plot(place + 0.2 + 0.14 * offsets(len(drawn)), drawn, gid=f"{column}:random:{place}", clip_on=False,
                    **_CONTROL | {"color": BLACK})  # fmt: skip
            for x, value in ((place - 0.2, before), (place + 0.2, after)):
                ax.text(x, min(value, 0.97) + 0.015, f"{value:.3f}", ha="center", va="bottom", fontsize=8.5)
        ax.set_title(title, fontsize=10)
        ax.set(ylim=(0, 1.1), xlim=(-0.6, len(records) - 0.4))
        ax.set_xticks(range(len(records)), names)
    handles = [Patch(color=LIGHT, label="before"), Patch(color=CAUSE, label="after the cut"),
               Line2D([], [], label="after random cuts of equal size", **_CONTROL | {"color": BLACK})]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@style()
def pruning(table: pd.DataFrame) -> Picture:
    """E10: can be pruned what no class hangs on? Accuracy over the share of edges kept; random edges: mean and range.
    ``table``: `experiments.pruning`; a dot a delta."""
    names = {"causal": "edges of some class’s graph", "magnitude": "largest weights, as many in each layer",
             "global": "largest weights of all", "random": "any edges, as many in each layer"}  # fmt: skip
    colours = {"causal": CAUSE, "magnitude": shared.BLUE, "global": shared.SKY, "random": GREY}
    figure = picture(7.5, 4.6)
    ax = figure.subplots()
    for method, name in names.items():
        own = table[table.method == method].groupby("share").accuracy.agg(["mean", "min", "max"])
        if not len(own):
            continue
        if method == "random":
            ax.fill_between(100 * own.index, own["min"], own["max"], color=tint(GREY, 0.25), linewidth=0)
        look = {"color": colours[method], "marker": "o", "markersize": 5, "linewidth": 1.6}
        ax.plot(100 * own.index, own["mean"], label=name, gid=f"pruning:{method}", **look)
    whole = table[table.method == "whole"].accuracy.mean()
    ax.axhline(whole, color=BLACK, linestyle="--", linewidth=1.2, label=f"the whole network: {whole:.3f}", gid="whole")
    ax.set(ylim=(0, 1.03), xlabel="edges kept (%)", ylabel="accuracy", xlim=(0, None))
    figure.legend(loc="outside lower center", ncols=2)
    return figure
