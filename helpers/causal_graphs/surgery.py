"""Cutting a graph's edges, or all others: is the graph necessary, is it sufficient? (spec explainnn, section 6.3)

    network = Network(model, images.inputs([0]))
    record(network, graph, images)["specificity"]

The edges of a graph lead from its causes into their effects; where single edges were measured, from those that were
kept. Skip connections and depthwise layers have one-to-one edges. Links out of the input are left whole in every
operation, and out of every count: nothing is tested there (section 3.2), and to cut all of a graph's input edges would
blind the network for every class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from scipy.stats import rankdata
from torch import Tensor

from helpers import runtime
from helpers.causal_graphs import interventions
from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.layers import ONE_TO_ONE, Layer
from helpers.causal_graphs.links import Link
from helpers.causal_graphs.network import Network
from helpers.config import ConfigError
from helpers.data.images import Images

EdgeSet = dict[str, Tensor]
"""Some edges of a network: bool [outputs, inputs] of each link not out of the input, [inputs] of a skip connection."""

Masks = dict[str, Tensor]
"""What `Network.masked` takes: 1 leaves an edge, 0 cuts it. Links that are not named are left whole."""

MEMORY = 2**28  # bytes of recorded values at a time


# --------------------------------------------------------------------------------------------------- edges


def tested_links(network: Network) -> list[Link]:
    """All links but those out of the input."""
    return [link for link in network.links.values() if link.source != "input"]


def all_edges(network: Network) -> EdgeSet:
    """Every edge there is; between the groups of a grouped convolution there is none."""
    return {link.name: _there(link) for link in tested_links(network)}


def no_edges(network: Network) -> EdgeSet:
    return {link.name: torch.zeros(_shape(link), dtype=torch.bool) for link in tested_links(network)}


def graph_edges(network: Network, graph: CausalGraph, *, inhibitors: bool = False) -> EdgeSet:
    """The edges of ``graph``: those out of its causes, with ``inhibitors`` also those out of its inhibitors.

    Raises `ConfigError` for a graph of another network.
    """
    edges = no_edges(network)
    for layer in graph.layers:
        link = network.link(layer.layer)
        if (link.source, link.target) != (layer.source_layer, layer.target_layer):
            raise ConfigError(f"the graph is of another network: {link.name} leads from {link.source} to {link.target}")
        if link.name in edges:
            _mark(edges[link.name], link, layer, inhibitors)
    return edges


def union(several: Sequence[EdgeSet]) -> EdgeSet:
    """The edges that are in any of ``several``, all of one network."""
    return {name: torch.stack([edges[name] for edges in several]).any(0) for name in several[0]}


def count(edges: EdgeSet) -> int:
    return sum(int(chosen.sum()) for chosen in edges.values())


def sparsity(network: Network, edges: EdgeSet) -> float:
    """The share of the network's edges that are among ``edges``."""
    return count(edges) / count(all_edges(network))


def cut(edges: EdgeSet) -> Masks:
    """Masks without exactly these ``edges``."""
    return {name: (~chosen).float() for name, chosen in edges.items() if chosen.any()}


def keep(edges: EdgeSet) -> Masks:
    """Masks with only these ``edges``; biases stay."""
    return {name: chosen.float() for name, chosen in edges.items()}


def random_edges(network: Network, edges: EdgeSet, seed: int, *names: str | int) -> EdgeSet:
    """A control: ``edges`` with the nodes of every hidden space in random order, drawn from the stream ``names``.

    So it has as many nodes in each space and as many edges in each link, and every edge still leads into a node that
    the layer above starts from; the logits stay what they are. Nodes that a skip connection ties keep one order. An
    edge that comes to lie between the groups of a grouped convolution is lost, as none is there.
    """
    order = _orders(network, seed, *names)
    drawn = {}
    for link in tested_links(network):
        chosen, there = edges[link.name], _there(link)
        above = order[link.target][link.offset : link.offset + link.outputs] - link.offset
        if link.kind == "identity":
            moved = torch.zeros_like(chosen)
            moved[above] = chosen
        else:
            below = above if link.kind == "depthwise" else order[link.source]
            moved = torch.zeros_like(chosen)
            moved[above[:, None], below] = chosen
        drawn[link.name] = moved & there
    return drawn


def _mark(chosen: Tensor, link: Link, layer: Layer, inhibitors: bool) -> None:
    """Set the edges of ``layer`` in ``chosen``."""
    table = layer.edge_table()
    if not inhibitors:
        table = table[table.role == "cause"]
    if link.kind == "identity":
        chosen[table.source.tolist()] = True
    else:
        chosen[(table.target - link.offset).tolist(), table.source.tolist()] = True


def _shape(link: Link) -> tuple[int, ...]:
    return (link.inputs,) if link.kind == "identity" else (link.outputs, link.inputs)


def _there(link: Link) -> Tensor:
    there = interventions.edges(link)
    if isinstance(there, float):
        return torch.ones(_shape(link), dtype=torch.bool)
    return (there != 0).flatten(1).view(_shape(link)).cpu()


def _orders(network: Network, seed: int, *names: str | int) -> dict[str, Tensor]:
    """The new number of each node, by space; those of the input and the logits stay."""
    orders: dict[str, Tensor] = {}
    for space in network.spaces.values():
        orders[space.name] = order = torch.arange(space.size)
        if space.name in ("input", network.logits.name):
            continue
        into = [link for link in network.links.values() if link.target == space.name]
        into.sort(key=lambda link: link.kind not in ONE_TO_ONE)
        placed: set[int] = set()
        for link in into:
            part = slice(link.offset, link.offset + link.outputs)
            if placed & set(range(space.size)[part]):
                continue
            placed |= set(range(space.size)[part])
            if link.kind in ONE_TO_ONE:
                order[part] = link.offset + orders[link.source]
            else:
                draw = runtime.generator(seed, *names, space.name, link.offset)
                order[part] = link.offset + torch.randperm(link.outputs, generator=draw)
    return orders


# ------------------------------------------------------------------------------------------------- running


def variant_logits(
    network: Network,
    images: Images,
    variants: Sequence[Mapping[str, Tensor]],
    *,
    inputs: Callable[[Tensor], Tensor] | None = None,
    batch: int = 250,
) -> Tensor:
    """float32 [V, N, K]: the logits of all ``images`` under each of V masks; the part before the first cut is run once.

    ``inputs(rows)`` makes the network's input of images by their rows (default: ``images.inputs``). At most ``batch``
    images are worked on at a time, fewer where what is recorded of them would not fit in `MEMORY`.
    """
    parameter = next(network.model.parameters())
    batch = max(1, min(batch, MEMORY // (parameter.element_size() * sum(map(math.prod, network.shapes.values())))))
    logits = torch.empty(len(variants), len(images), network.logits.size)
    for rows in torch.arange(len(images)).split(batch):
        values = network.record((inputs or images.inputs)(rows).to(parameter))
        for row, masks in enumerate(variants):
            logits[row, rows] = network.masked_from(values, masks).float().cpu()
    return logits


# ------------------------------------------------------------------------------------------------- metrics


def necessity(network: Network, graph: CausalGraph, images: Images, *, batch: int = 250) -> dict[str, float]:
    """What is lost without the graph's edges: ``recall`` of the target's images, accuracy on the ``others``, before
    and after (``cut_recall``, ``cut_others``), and ``specificity``, the drop of the first minus that of the second."""
    logits = variant_logits(network, images, [{}, cut(graph_edges(network, graph))], batch=batch)
    return _necessity(logits[0], logits[1], images.y, graph.target)


def sufficiency(network: Network, graph: CausalGraph, images: Images, *, batch: int = 250) -> dict[str, float]:
    """How well the target's logit tells its images from the others, as the area under the ROC curve: of the whole
    network (``auroc``) and with only the graph's edges (``kept_auroc``; 0.5 where nothing reaches the logit)."""
    logits = variant_logits(network, images, [{}, keep(graph_edges(network, graph))], batch=batch)
    whole, kept = (auroc(z[:, graph.target], images.y == graph.target) for z in logits)
    return {"auroc": whole, "kept_auroc": kept}


def record(
    network: Network,
    graph: CausalGraph,
    images: Images,
    *,
    controls: int = 10,
    n_images: int | None = None,
    inhibitors: bool = False,
    seed: int = 0,
    batch: int = 250,
) -> dict[str, Any]:
    """Necessity, sufficiency, specificity and sparsity of a class's graph beside those of ``controls`` random graphs.

    Numbers as in `necessity` and `sufficiency`; the same with the prefix ``random_`` are lists, one a control.
    ``n_images`` takes a random part of the images. JSON values. Raises ``ValueError`` if the images do not hold both
    the target's class and others.
    """
    if n_images is not None and n_images < len(images):
        order = torch.randperm(len(images), generator=runtime.generator(seed, "surgery"))
        images = images[order[:n_images].sort().values]
    target = graph.target
    if not 0 < int((images.y == target).sum()) < len(images):
        raise ValueError(f"recall and AUROC need images of class {target} and of others")
    edges = graph_edges(network, graph, inhibitors=inhibitors)
    drawn = [random_edges(network, edges, seed, "control", target, k) for k in range(controls)]
    variants = [masks for chosen in (edges, *drawn) for masks in (cut(chosen), keep(chosen))]
    logits = variant_logits(network, images, [{}, *variants], batch=batch)
    mine = images.y == target
    rows = []
    for without, alone in zip(logits[1::2], logits[2::2], strict=True):
        rows.append(_necessity(logits[0], without, images.y, target) | {"kept_auroc": auroc(alone[:, target], mine)})
    measured = {name: rows[0][name] for name in ("cut_recall", "cut_others", "specificity", "kept_auroc")}
    return {
        "target": target,
        "mode": graph.mode,
        "images": len(images),
        "edges": count(edges),
        "all_edges": count(all_edges(network)),
        "sparsity": sparsity(network, edges),
        "recall": rows[0]["recall"],
        "others": rows[0]["others"],
        "auroc": auroc(logits[0][:, target], mine),
        **measured,
        **{f"random_{name}": [row[name] for row in rows[1:]] for name in measured},
    }


def _necessity(whole: Tensor, without: Tensor, y: Tensor, target: int) -> dict[str, float]:
    """Of logits [N, K] with and without the edges."""
    mine = y == target
    scores = {}
    for prefix, logits in {"": whole, "cut_": without}.items():
        right = (logits.argmax(1) == y).double()
        scores |= {f"{prefix}recall": float(right[mine].mean()), f"{prefix}others": float(right[~mine].mean())}
    drop = scores["recall"] - scores["cut_recall"]
    return scores | {"specificity": drop - (scores["others"] - scores["cut_others"])}


def auroc(scores: Tensor, positive: Tensor) -> float:
    """The chance that a positive has the higher one of two scores; equal ones count half. NaN without both kinds.

    ``scores`` [N], ``positive`` bool [N].
    """
    ranks, chosen = rankdata(scores.double().numpy()), positive.numpy()
    n, rest = int(chosen.sum()), int((~chosen).sum())
    return float((ranks[chosen].sum() - n * (n + 1) / 2) / (n * rest)) if n and rest else math.nan
