"""Pictures of causal graphs and of the heat maps that come from them: the graph in layers, the key figure, map panels.

Causes, whose cut lowers the outcome, are vermilion; inhibitors, whose cut raises it, blue.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike
from torch import Tensor

from helpers import figures as shared
from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.heatmaps import HeatMaps
from helpers.causal_graphs.layout import Layout, Node, Row, place, size_of
from helpers.figures import BLACK, GREY, LIGHT, Picture, picture, style, tint

CAUSE, INHIBITOR = shared.RED, shared.BLUE
COLOURS = {"target": BLACK, "cause": CAUSE, "inhibitor": INHIBITOR, "input": GREY, "tested": LIGHT}
SIGNED = "RdBu_r"
LEGENDS = (0.05, 0.2)  # shares whose circles are explained
HALO = (withStroke(linewidth=2, foreground="white"),)  # so that a number can be read across lines


def _area(share: float, largest: float) -> float:
    """Points² of a node's circle."""
    return 16 + 300 * abs(share) / max(largest, 0.1)


@style()
def causal_graph(graph: CausalGraph, title: str | None = None, width: float = 10.5, row: float = 1.05) -> Picture:
    """``graph`` in layers, the logit on top. A circle a cause or inhibitor, its area the effect; a dot a node that was
    tested and is neither. A line an edge, its width the edge's effect (shared among a node's edges by weight where they
    were cut together)."""
    layout = place(graph)
    figure = picture(width, 0.9 + row * len(layout.rows))
    ax = figure.subplots()
    draw_graph(ax, layout, width - 2)
    ax.set_title(title or f"What class {graph.target} hangs on: {graph.model}, {len(graph.sample_indices)} images")
    figure.legend(handles=_handles(layout), loc="outside lower center", ncols=6, handletextpad=0.5)
    return figure


@style()
def compared_graphs(graphs: Mapping[str, CausalGraph], width: float = 12, row: float = 1.0) -> Picture:
    """Several graphs beside each other, named, circles and lines on one scale."""
    layouts = {name: place(graph) for name, graph in graphs.items()}
    rows = max(len(layout.rows) for layout in layouts.values())
    figure = picture(width, 0.9 + row * rows)
    largest = max(layout.largest for layout in layouts.values())
    axes = figure.subplots(1, len(graphs), squeeze=False)[0]
    for ax, (name, layout) in zip(axes, layouts.items(), strict=True):
        draw_graph(ax, layout, width / len(graphs) - 1.6, largest)
        ax.set_title(name)
    widest = max(layouts.values(), key=lambda layout: layout.largest)
    figure.legend(handles=_handles(widest), loc="outside lower center", ncols=6, handletextpad=0.5)
    return figure


def draw_graph(ax: Axes, layout: Layout, inches: float = 9.0, largest: float | None = None) -> None:
    """The graph of ``layout`` into ``ax``, which is about ``inches`` wide: so many numbers of nodes fit. ``largest`` is
    the share that has the largest circle (default: the layout's own)."""
    largest = largest or layout.largest
    _draw_edges(ax, layout)
    for role in ("tested", "input", "inhibitor", "cause", "target"):
        # the small ones of a row last, on top
        nodes = sorted((node for node in layout.nodes if node.role == role), key=lambda node: -size_of(node.share))
        if role == "tested":
            look = {"s": min(9, 100 * inches**2 / max(len(nodes), 1)), "linewidth": 0}
        elif role in ("target", "input"):
            look = {"s": 110, "edgecolor": "white", "linewidth": 0.8, "marker": "s"}
        else:
            look = {"s": [_area(node.share, largest) for node in nodes], "edgecolor": "white", "linewidth": 0.6}
        look |= {"facecolor": COLOURS[role], "zorder": 3, "clip_on": False, "gid": f"nodes:{role}"}
        ax.scatter([node.x for node in nodes], [node.y for node in nodes], **look)
    for y, row in enumerate(layout.rows):
        _name_row(ax, y, row)
    for node in _labelled(layout, 0.23 / inches):
        text = {"fontsize": 7.5, "zorder": 4, "ha": "center", "path_effects": HALO}
        if node.role == "target":
            text |= {"fontsize": 8.5, "color": "white", "path_effects": ()}
        up = 0 if node.role == "target" else 2 + _area(node.share, largest) ** 0.5 / 2
        text["va"] = "bottom" if up else "center_baseline"
        ax.annotate(str(node.node), (node.x, node.y), xytext=(0, up), textcoords="offset points", **text)
    ax.set(xlim=(0, 1), ylim=(len(layout.rows) - 0.7, -0.3))
    ax.set_axis_off()


def _name_row(ax: Axes, y: int, row: Row) -> None:
    found = f"{row.causes} of {row.tested}" if row.tested else ""
    if row.inhibitors:
        found += f"\n+ {row.inhibitors} inhibitor{'s' * (row.inhibitors > 1)}"
    if row.fallback:
        found += "\n(by the fallback)"
    where = {"transform": ax.get_yaxis_transform(), "va": "center", "clip_on": False}
    ax.text(-0.015, y, row.space, ha="right", fontsize=10, fontweight="bold", **where)
    ax.text(1.015, y, found, ha="left", fontsize=9, color=BLACK, linespacing=1.3, **where)


def _draw_edges(ax: Axes, layout: Layout) -> None:
    """Widths are to scale within a layer: a node's effect is divided among one edge near the logit, many below."""
    strongest: dict[str, float] = {}
    for edge in layout.edges:
        strongest[edge.layer] = max(strongest.get(edge.layer, 0), size_of(edge.share))
    paths, colours, widths = [], [], []
    for edge in layout.edges:
        size = size_of(edge.share) / (strongest[edge.layer] or 1)
        colour = LIGHT if math.isnan(edge.share) else CAUSE if edge.share < 0 else INHIBITOR
        middle = (edge.y0 + edge.y1) / 2
        corners = [(edge.x0, edge.y0), (edge.x0, middle), (edge.x1, middle), (edge.x1, edge.y1)]
        paths.append(Path(corners, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]))
        colours.append(tint(colour, 0.8 if math.isnan(edge.share) else 0.08 + 0.84 * size**1.5))
        widths.append(0.4 + 3.2 * size**1.2)
    look = {"facecolors": "none", "edgecolors": colours, "linewidths": widths}
    lines = PathCollection(paths, zorder=1, gid="edges", **look)
    ax.add_collection(lines, autolim=False)


def _labelled(layout: Layout, gap: float) -> list[Node]:
    """The strongest nodes of each row that stand ``gap`` apart, so that their numbers do not run into each other."""
    chosen: list[Node] = []
    found = [node for node in layout.nodes if node.role in ("target", "cause", "inhibitor")]
    for node in sorted(found, key=lambda node: -size_of(node.share)):
        if all(node.y != other.y or abs(node.x - other.x) >= gap for other in chosen):
            chosen.append(node)
    return chosen


def _handles(layout: Layout) -> list[Line2D]:
    dot = {"marker": "o", "linestyle": "none"}
    handles = [Line2D([], [], color=CAUSE, label="cause: cut, the outcome falls", markersize=7, **dot),
               Line2D([], [], color=INHIBITOR, label="inhibitor: it rises", markersize=7, **dot),
               Line2D([], [], color=LIGHT, label="tested, neither", markersize=3.5, **dot)]  # fmt: skip
    for share in LEGENDS:
        size = _area(share, layout.largest) ** 0.5
        handles.append(Line2D([], [], color=GREY, label=f"effect {share:.0%}", markersize=size, **dot))
    return handles


# ------------------------------------------------------------------------------------------------------ heat maps


@style()
def key_figure(
    image: ArrayLike, graph: CausalGraph, maps: Mapping[str, ArrayLike], title: str = "", own: int = 1
) -> Picture:
    """The study at a glance: an image, the graph of its class, and heat maps [H, W] by name, the first ``own`` from the
    graph, the others beside them for comparison. ``image`` is [H, W] or [H, W, 3] in [0, 1]."""
    layout = place(graph)
    rows = 2
    columns = -(-len(maps) // rows)
    figure = picture(6.6 + 1.9 + 1.55 * columns, 4.4)
    left, middle, right = figure.subfigures(1, 3, width_ratios=[1.9, 6.6, 1.55 * columns])
    ax = left.subplots()
    shared.show(ax, image, title=f"an image of class {graph.target}")
    ax = middle.subplots()
    draw_graph(ax, layout, 4.6)
    middle.legend(handles=_handles(layout)[:3], loc="outside lower center", ncols=3, handletextpad=0.3)
    axes = right.subplots(rows, columns, squeeze=False).ravel()
    for k, (ax, (name, heat)) in enumerate(zip(axes, maps.items(), strict=False)):
        show_map(ax, heat, name, image)
        if k < own:
            ax.title.set(fontweight="bold", color=CAUSE)
    for ax in axes[len(maps) :]:
        ax.set_axis_off()
    if title:
        figure.suptitle(title, x=0.005, ha="left")
    return figure


@style()
def effect_maps(maps: HeatMaps, image: int = 0, graph: CausalGraph | None = None, columns: int = 8) -> Picture:
    """One panel for each effect node of a layer: where in one of the images its causes act. The image and the map of
    all effects together come first; all maps are on one scale. With ``graph``, the effects are in the order of their
    own effect on the outcome, which is said."""
    if maps.maps is None:
        raise ValueError(f"the maps were made without per_effect, or {maps.method!r} has one map for all effects")
    x = image_of(maps.x[image])
    shares = effect_shares(graph, maps.layer) if graph else {}
    order = sorted(range(len(maps.effects)), key=lambda k: -size_of(shares.get(maps.effects[k], math.nan)))
    columns = min(columns, len(order) + 2)
    rows = -(-(len(order) + 2) // columns)
    figure = picture(1.35 * columns + 0.9, 1.62 * rows + 0.35)
    axes = figure.subplots(rows, columns, squeeze=False)
    shown = [ax for row in axes for ax in row]
    shared.show(shown[0], x, title=f"class {maps.target}")
    each = maps.maps[image].numpy()
    top = float(np.abs(each).max()) or 1.0
    show_map(shown[1], maps.combined[image], "all effects", x)
    for ax, k in zip(shown[2:], order, strict=False):
        node = maps.effects[k]
        name = f"node {node}" + (f" ({shares[node]:+.0%})".replace("-", "−") if node in shares else "")
        drawn = show_map(ax, each[k], name, x, top)
    for ax in shown[len(order) + 2 :]:
        ax.set_axis_off()
    bar = figure.colorbar(drawn, ax=axes, aspect=30, shrink=0.8, pad=0.01)
    bar.outline.set_visible(False)
    unit = "fall of the outcome" if maps.method == "spatial_do" else "as they come"
    bar.set_label(f"{maps.method.replace('_', ' ')}: {unit}", fontsize=9)
    figure.suptitle(f"Where the causes act, by the node of {maps.layer} that they lead into", x=0.005, ha="left")
    return figure


@style()
def map_grid(
    images: ArrayLike, maps: Mapping[str, ArrayLike], titles: Sequence[str] = (), size: float = 1.3
) -> Picture:
    """Images [N, H, W] or [N, H, W, 3], ``titles`` at their left; a column a method: maps [N, H, W], each on its own
    scale."""
    images = np.asarray(images)
    figure = picture(size * (len(maps) + 1), (size + 0.05) * len(images) + 0.3)
    axes = figure.subplots(len(images), len(maps) + 1, squeeze=False)
    for k, row in enumerate(axes):
        shared.show(row[0], images[k], title="image" if k == 0 else "")
        if k < len(titles):
            row[0].set_ylabel(titles[k], fontsize=9)
        for ax, (name, heat) in zip(row[1:], maps.items(), strict=True):
            show_map(ax, np.asarray(heat)[k], name if k == 0 else "", images[k])
    return figure


def show_map(ax: Axes, heat: ArrayLike, title: str = "", image: ArrayLike | None = None, top: float | None = None):
    """A map [H, W], red for what raises the outcome and blue for what lowers it, white at 0 and full at ``top``
    (default: its own largest size); the ``image`` shines through."""
    heat = np.asarray(heat, float)
    top = top or float(np.abs(heat).max()) or 1.0
    drawn = ax.imshow(heat, cmap=SIGNED, vmin=-top, vmax=top, interpolation="nearest", gid="map")
    if image is not None:
        grey = np.asarray(image, float)
        grey = grey.mean(-1) if grey.ndim == 3 else grey
        ax.imshow(grey, cmap="gray_r", vmin=0, vmax=1, alpha=0.22, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color=LIGHT, linewidth=0.6)
    if title:
        ax.set_title(title, fontsize=9, fontweight="normal", loc="center", pad=3)
    return drawn


def image_of(x: Tensor) -> np.ndarray:
    """``x`` [C, H, W] as it can be shown: [H, W] of one channel, [H, W, 3] of three, from its least value to its
    largest if it is not in [0, 1]."""
    x = x.detach().cpu().double()
    if x.min() < 0 or x.max() > 1:
        x = (x - x.min()) / (x.max() - x.min()).clamp(min=1e-12)
    return (x.permute(1, 2, 0) if len(x) == 3 else x.mean(0)).numpy()


def effect_shares(graph: CausalGraph, layer_name: str) -> dict[int, float]:
    """By the nodes that ``layer_name`` leads into: their own effect over the outcome's scale, where it is known."""
    target = graph.layer(layer_name).target_layer
    return {node.node: node.share for node in place(graph).nodes if node.space == target and not math.isnan(node.share)}
