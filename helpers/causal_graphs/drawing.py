"""How each kind of heat map is drawn from a layer of a causal graph, in the cells that it works in (spec section 4).

What the methods are is said in `helpers.causal_graphs.heatmaps`, which calls them. Each takes the `View` of a layer and
the network's recorded values of n images.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.interventions import edges
from helpers.causal_graphs.layers import Layer
from helpers.causal_graphs.links import Link, link_output
from helpers.causal_graphs.network import Network, Values
from helpers.causal_graphs.statistics import outcome
from helpers.config import ConfigError, suggest

CONVOLUTIONS = ("conv", "depthwise")
Drawn = tuple[Tensor, Tensor | None]
"""The map of all effects together [n, h, w], and of each [n, |E|, h, w]."""


@dataclass(frozen=True, eq=False)
class View:
    """A ``layer`` of the graph as ``link`` of the network: ``sources`` C, ``effects`` E, values with nodes on axis 1.

    And what is asked for: ``cell``, positions a side of a cell that `spatial_do` cuts, many at a time in
    ``chunk_bytes`` of memory; ``per_effect``, whether each effect's own map is wanted.
    """

    network: Network
    graph: CausalGraph
    layer: Layer
    link: Link
    sources: tuple[int, ...]
    effects: tuple[int, ...]
    cell: int = 1
    per_effect: bool = True
    chunk_bytes: int = 2**24

    @classmethod
    def of(cls, network: Network, graph: CausalGraph, layer: Layer) -> View:
        """Raises `ConfigError` for a layer without causes, or that reads no image, and a graph of another network."""
        link = network.link(layer.layer)
        sources = tuple(range(link.inputs)) if layer.rule == "input" else layer.causes
        if not sources:
            raise ConfigError(f"the layer {layer.layer} of the graph has no causes: there is no map of it")
        if max(sources) >= link.inputs or not all(0 <= e - link.offset < link.outputs for e in layer.effects):
            raise ConfigError(f"the graph is of another network: its nodes of {layer.layer} are not in this one")
        if len(network.shapes[link.reads]) != 3:
            known = [other.layer for other in graph.layers if other.kind in CONVOLUTIONS]
            raise ConfigError(f"{layer.layer} reads no image, and has no map; take a convolution: {suggest('', known)}")
        return cls(network, graph, layer, link, sources, layer.effects)

    @property
    def local(self) -> list[int]:
        """The effects among the link's outputs."""
        return [e - self.link.offset for e in self.effects]

    @property
    def positions(self) -> Tensor:
        """The effects among the channels of the value that the link moves."""
        return self.link.positions(self.effects)

    def lower(self, values: Values) -> Tensor:
        """[n, |C|, h, w]: what the layer reads of its causes."""
        return values[self.link.reads].movedim(self.link.axis, 1)[:, list(self.sources)]

    @functools.cached_property
    def kernel(self) -> Tensor:
        """[|E|, |C|, ...]: the weights of the edges."""
        return self.link.weight()[self.local][:, list(self.sources)]

    def through(self, lower: Tensor) -> Tensor:
        """[n, |E|, h', w']: what the edges from C into E make of ``lower`` [n, |C|, h, w], without a bias."""
        link = self.link
        if link.kind == "conv":
            return link_output(link, self.kernel, lower)
        if link.kind == "linear":
            return link_output(link, self.kernel, lower.movedim(1, -1)).movedim(-1, 1)
        if link.kind == "depthwise":
            weight = link.module.weight.detach()[list(self.sources)]
            lower = link_output(link, weight, lower, groups=len(self.sources))
        pairs = [(k, self.sources.index(i)) for k, i in enumerate(self.local) if i in self.sources]
        into, out_of = torch.tensor(pairs, dtype=torch.long, device=lower.device).view(-1, 2).T
        whole = lower.new_zeros(len(lower), len(self.local), *lower.shape[2:])
        return whole.index_copy(1, into, lower[:, out_of])

    def outcome(self, logits: Tensor) -> Tensor:
        """What the graph explains, [n] of logits [n, K]."""
        return outcome(logits, self.graph.target, self.graph.effect, self.graph.other)

    def falls(self, layer: Layer, nodes: Sequence[int]) -> list[float]:
        """How far the outcome falls, in the mean, without each of the source ``nodes`` of a ``layer``: -mean d.

        Raises `ConfigError` for the input, whose channels were not tested.
        """
        if layer.rule == "passed":
            return self.falls_above(layer.target_layer, [node + layer.offset for node in nodes])
        if layer.statistics is None:
            raise ConfigError(f"the nodes of {layer.source_layer} were not tested: no effect of theirs is known")
        known = dict(zip(layer.tested, layer.statistics.mean_d.tolist(), strict=True))
        return [-known.get(node, 0.0) for node in nodes]

    def falls_above(self, space: str, nodes: Sequence[int]) -> list[float]:
        """`falls` of nodes of ``space`` through all the links out of it together; 1 for the target, whose logit it is,
        and -1 for the class that it is contrasted with."""
        if space == self.graph.top:
            return [1.0 if node == self.graph.target else -1.0 for node in nodes]
        above = [layer for layer in self.graph.layers if layer.source_layer == space]
        return [sum(column) for column in zip(*(self.falls(layer, nodes) for layer in above), strict=True)]


@torch.no_grad()
def spatial_do(view: View, values: Values) -> Drawn:
    """y - y' with the causes zeroed in one cell, on the edges into all effects (joint) or into one (each)."""
    link, lower, base = view.link, view.lower(values), values[view.link.at]
    rows, columns = (torch.arange(side, device=lower.device) // view.cell for side in lower.shape[2:])
    shape = int(rows[-1]) + 1, int(columns[-1]) + 1
    cell_of = rows[:, None] * shape[1] + columns
    y, n, positions = view.outcome(values["logits"]), len(base), view.positions.to(base.device)
    groups = [slice(None)] + [slice(k, k + 1) for k in range(len(positions) if view.per_effect else 0)]
    falls = base.new_zeros(len(groups), shape[0] * shape[1], n)
    at_once = max(1, view.chunk_bytes // (max(view.network.row_bytes(link), 4 * lower[0].nbytes) * n))
    for cells in torch.arange(falls.shape[1], device=lower.device).split(at_once):
        there = (cell_of == cells[:, None, None])[:, None, None]
        carried = view.through((lower * there).flatten(0, 1))
        for group, fall in zip(groups, falls, strict=True):
            moved = base.repeat(len(cells), 1, 1, 1)
            moved.movedim(link.axis, 1).index_add_(1, positions[group], carried[:, group], alpha=-1)
            logits = view.network.resume(values, {link.at: moved}, len(cells))
            touched = carried[:, group].flatten(1).any(1)  # elsewhere y is what it was, up to rounding
            fall[cells] = torch.where(touched.view(-1, n), y - view.outcome(logits).view(-1, n), 0)
    joint, *each = falls.movedim(2, 1).unflatten(2, shape)
    return joint, torch.stack(each, 1) if each else None


def act_grad(view: View, values: Values) -> Drawn:
    """What C holds times the gradient of y with respect to it, through the whole layer (joint) or one effect (each)."""
    link = view.link
    whole = replace(view, effects=tuple(range(link.offset, link.offset + link.outputs)))
    gradient = view.network.gradient(values, link, view.outcome).movedim(link.axis, 1)[:, whole.positions]
    with torch.enable_grad():
        lower = view.lower(values).detach().requires_grad_()
        carried = whole.through(lower)

    def drawn(part: Tensor) -> Tensor:
        return (torch.autograd.grad(carried, lower, part, retain_graph=True)[0] * lower).sum(1).detach()

    each = []
    for j in view.local if view.per_effect else ():
        part = torch.zeros_like(gradient)
        part[:, j] = gradient[:, j]
        each.append(drawn(part))
    return drawn(gradient), torch.stack(each, 1) if each else None


@torch.no_grad()
def contribution(view: View, values: Values) -> Drawn:
    """ReLU of what C adds to each effect, times how far y falls without the effect."""
    carried = view.through(view.lower(values)).relu()
    each = carried * carried.new_tensor(view.falls_above(view.layer.target_layer, view.effects))[:, None, None]
    return each.sum(1), each if view.per_effect else None


@torch.no_grad()
def channel_activation(view: View, values: Values) -> Drawn:
    """ReLU of what each cause holds, times how far y falls without it."""
    active = view.lower(values).relu()
    return torch.einsum("nchw,c->nhw", active, active.new_tensor(view.falls(view.layer, view.sources))), None


@torch.no_grad()
def reference(view: View, values: Values) -> Drawn:
    """The release's recipe: for each effect the mean, over the causes that have an edge into it, of the softmax over
    pixels of the full convolution of the cause's raw output with the edge's kernel."""
    link = view.link
    if link.kind not in CONVOLUTIONS:
        raise ConfigError(f"{link.name} has no kernels, which the method 'reference' needs: take 'spatial_do'")
    raw, kernels, dilation = _raw(view, values), view.kernel.flip(2, 3), link.module.dilation
    there = torch.as_tensor(edges(link)).to(raw).expand(link.outputs, link.inputs, 1, 1)
    padding = [d * (k - 1) for d, k in zip(dilation, kernels.shape[2:], strict=True)]
    each = []
    for j, kernel in zip(view.local, kernels, strict=True):
        maps = F.conv2d(raw, kernel[:, None], None, 1, padding, dilation, groups=len(view.sources))
        edge = there[j, list(view.sources)]
        each.append((maps.flatten(2).softmax(2).view_as(maps) * edge).sum(1) / edge.sum().clamp(min=1))
    each = torch.stack(each, 1)
    return each.sum(1), each if view.per_effect else None


def _raw(view: View, values: Values) -> Tensor:
    """[n, |C|, h, w]: the outputs of the weighted layers that make the causes, before anything is done to them; the
    image itself for the first layer."""
    link, found = view.link, []
    if link.source == "input":
        return view.lower(values)
    into = [other for other in view.network.links.values() if other.target == link.source]
    for i in view.sources:
        makers = [other for other in into if 0 <= i - other.offset < other.outputs]
        if len(makers) != 1 or makers[0].kind == "identity" or values[makers[0].at].ndim != 4:
            raise ConfigError(
                f"node {i} of {link.source} is no single layer's output, and 'reference' convolves the output of the "
                "layer before: take 'spatial_do'"
            )
        found.append(values[makers[0].at].movedim(makers[0].axis, 1)[:, makers[0].place + i - makers[0].offset])
    if len({value.shape for value in found}) > 1:
        raise ConfigError(f"the layers that make {link.source} have outputs of several sizes: take 'spatial_do'")
    return torch.stack(found, 1)
