"""Where the nodes and edges of a causal graph stand in a drawing, the same for every way of drawing it.

A row a space, logits on top; a node's place in its row is that of its id, so that graphs of one network can be compared
by eye.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.layers import Layer

MOST = 160  # nodes that a row lists; of a wider space those that were found, and the strongest others
EDGES = 5000  # edges that are drawn: the strongest, as many in each layer
SPREAD = 1 / 14  # of the width: the most that neighbours stand apart
RANK = {"target": 0, "cause": 1, "input": 2, "inhibitor": 3, "tested": 4}


class Row(NamedTuple):
    """One space. ``layers``: the links that its nodes were tested for; ``hidden``: tested nodes that are not listed."""

    space: str
    layers: tuple[str, ...]
    tested: int
    causes: int
    inhibitors: int
    hidden: int
    fallback: bool


class Node(NamedTuple):
    """``effect`` is the mean d of the strongest link that agrees with the role, ``layer``; ``share`` that over the
    scale of the outcome (`scale_of`); NaN where nothing was tested. ``x`` in (0, 1), ``y`` the row."""

    space: str
    node: int
    role: str
    layer: str
    effect: float
    share: float
    x: float
    y: int


class Edge(NamedTuple):
    """From ``source`` at (x0, y0) to ``target`` at (x1, y1). An edge that was measured alone (``refined``) has its own
    ``share``; the others divide that of their source node among them by the norms of their weights."""

    layer: str
    source: tuple[str, int]
    target: tuple[str, int]
    role: str
    share: float
    x0: float
    y0: int
    x1: float
    y1: int
    refined: bool


@dataclass(frozen=True)
class Layout:
    """What is drawn, and where: rows from the logits down, nodes row by row, of each layer the strongest edges last."""

    rows: tuple[Row, ...]
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    @property
    def largest(self) -> float:
        """The size of the largest share of a node; 1 if there is none."""
        return max(map(size_of, (node.share for node in self.nodes))) or 1.0

    def at(self, space: str, node: int) -> Node | None:
        """None if it is not listed."""
        return next((n for n in self.nodes if (n.space, n.node) == (space, node)), None)


def place(graph: CausalGraph, most: int = MOST) -> Layout:
    """The layout of ``graph``, at most ``most`` nodes a row and `EDGES` edges in all. Of a node that is tested for
    several links, a cause wins over an inhibitor, and then the larger effect."""
    found: dict[str, dict[int, tuple]] = {space: {} for space in graph.spaces}
    found[graph.top] = {node: (RANK["target"], 0.0, "", math.nan, math.nan) for node in graph.causes(graph.top)}
    for layer in graph.layers:
        nodes = found[layer.source_layer]
        for node, entry in zip(layer.tested, _entries(layer), strict=True):
            nodes[node] = min(nodes.get(node, entry), entry, key=lambda e: e[:2])
    rows, nodes, places = [], [], {}
    names = list(RANK)
    for y, space in enumerate(graph.spaces):
        strongest = sorted(found[space], key=lambda node: found[space][node][:2])
        listed = sorted(strongest[:most])
        rows.append(_row(graph, space, len(strongest), len(listed)))
        step = min(SPREAD, 1 / max(1, len(listed)))
        for k, node in enumerate(listed):
            rank, _, layer, effect, share = found[space][node]
            x = 0.5 + step * (k - (len(listed) - 1) / 2)
            nodes.append(Node(space, node, names[rank], layer, effect, share, x, y))
            places[space, node] = x, y
    return Layout(tuple(rows), tuple(nodes), tuple(_edges(graph, places)))


def _entries(layer: Layer) -> list[tuple]:
    """(rank, -size, layer, effect, share) of each tested node: the smallest of several is the one that counts."""
    roles = dict.fromkeys(layer.inhibitors, "inhibitor") | dict.fromkeys(layer.causes, "cause")
    if layer.statistics is None:
        role = "input" if layer.rule == "input" else "cause"
        return [(RANK[role if node in roles else "tested"], 0.0, layer.layer, math.nan, math.nan)
                for node in layer.tested]  # fmt: skip
    effects = layer.statistics.mean_d.tolist()
    shares = [d / scale_of(layer) for d in effects]
    ranks = [RANK[roles.get(node, "tested")] for node in layer.tested]
    return [(rank, -abs(s), layer.layer, d, s) for rank, d, s in zip(ranks, effects, shares, strict=True)]


def _row(graph: CausalGraph, space: str, known: int, listed: int) -> Row:
    layers = [layer for layer in graph.layers if layer.source_layer == space]
    return Row(
        space=space,
        layers=tuple(layer.layer for layer in layers),
        tested=known if any(layer.statistics is not None for layer in layers) else 0,
        causes=len(graph.causes(space)),
        inhibitors=len(graph.inhibitors(space)),
        hidden=known - listed,
        fallback=any(layer.rule == "fallback" for layer in layers),
    )


def _edges(graph: CausalGraph, places: dict[tuple[str, int], tuple[float, int]]) -> list[Edge]:
    edges, listed = [], {}
    for space, node in places:
        listed.setdefault(space, []).append(node)
    for layer in graph.layers:
        table = layer.edge_table()
        sources, targets, alone = (table[name].to_numpy() for name in ("source", "target", "refined"))
        alone = alone.astype(bool)
        share = table.effect.to_numpy(float) / scale_of(layer)
        share[~alone] *= _parts(sources[~alone], table.weight_norm.to_numpy(float)[~alone])
        drawn = np.isin(sources, listed[layer.source_layer]) & np.isin(targets, listed[layer.target_layer])
        order = np.flatnonzero(drawn)
        order = order[np.argsort(np.nan_to_num(np.abs(share[order])), kind="stable")][-(EDGES // len(graph.layers)) :]
        roles = table.role.to_numpy()
        for k in order.tolist():
            ends = (layer.source_layer, int(sources[k])), (layer.target_layer, int(targets[k]))
            about = layer.layer, *ends, str(roles[k]), float(share[k])
            edges.append(Edge(*about, *places[ends[0]], *places[ends[1]], bool(alone[k])))
    return edges


def _parts(sources: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The part [n] that each edge has in the weights of all edges of its source; equal parts where there are none."""
    _, group, count = np.unique(sources, return_inverse=True, return_counts=True)
    whole = np.bincount(group, np.nan_to_num(weights))[group]
    return np.where(whole > 0, np.nan_to_num(weights) / np.where(whole > 0, whole, 1), 1 / count[group])


def scale_of(layer: Layer) -> float:
    """What effects are shares of (`Statistics.scale`); 1 where it is 0 or not known, or nothing was tested."""
    scale = 0.0 if layer.statistics is None else layer.statistics.scale
    return scale if scale > 0 else 1.0


def size_of(share: float) -> float:
    """Its absolute value; 0 for NaN."""
    return 0.0 if math.isnan(share) else abs(share)
