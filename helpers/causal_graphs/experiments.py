"""Experiments on whole sets of graphs: how many images they need, how much classes share, and what can be pruned since
no class hangs on it (spec explainnn, section 7.5, E6, E8 and E10).

Tables have one row a measurement, so that a line of pandas summarises them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from helpers import runtime
from helpers.causal_graphs import surgery
from helpers.causal_graphs.discover import Discovery, explain
from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.network import Network
from helpers.causal_graphs.stability import pairwise_jaccard
from helpers.causal_graphs.statistics import Selection
from helpers.causal_graphs.surgery import EdgeSet
from helpers.config import ConfigError
from helpers.data.images import Images

SIZES = (25, 50, 100, 200, 400, 800)  # about those of the table in spec section 3.4
DELTAS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)

# -------------------------------------------------------------------------------------------- E6, sample size


def sample_sizes(
    model: nn.Module,
    images: Images,
    target: int,
    *,
    sizes: Sequence[int] = SIZES,
    draws: int = 6,
    options: Discovery | None = None,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Graphs from samples of several ``sizes``, drawn anew each time: one row a size, draw and layer: n_images (found;
    fewer than the size where the class has no more), tested, count, causes (node ids, a tuple), rule.

    A layer that a walk did not reach has no row. Samples of a small class overlap, which raises their agreement: take
    the training images for sizes near the class's own.
    """
    rows = []
    plan = [(size, draw) for size in sizes for draw in range(draws)]
    for size, draw in tqdm(plan, desc=f"samples of class {target}", disable=not progress, leave=False):
        own = runtime.stream(seed, "sample size", size, draw)
        graph = explain(model, images, target, n_samples=size, options=options, seed=own)
        for layer in graph.layers:
            if layer.statistics is not None:
                facts = {"size": size, "draw": draw, "seed": own, "n_images": len(graph.sample_indices)}
                facts |= {"layer": layer.layer, "tested": len(layer.tested), "count": len(layer.causes)}
                rows.append(facts | {"causes": layer.causes, "rule": layer.rule})
    return pd.DataFrame(rows)


def by_size(table: pd.DataFrame) -> pd.DataFrame:
    """One row a layer and size (the index) of `sample_sizes`: count, its mean, std and range (lowest, highest), and
    jaccard, mean over the pairs of draws; a layer that was not reached counts as one without causes."""
    draws, rows = table.groupby("size").draw.nunique(), {}
    for (layer, size), group in table.groupby(["layer", "size"], sort=False):
        missing = [()] * (draws[size] - len(group))
        sets = [*group.causes, *missing]
        counts = np.array([len(found) for found in sets])
        facts = {"count": counts.mean(), "std": counts.std(ddof=1) if len(counts) > 1 else np.nan}
        rows[layer, size] = facts | {"lowest": counts.min(), "highest": counts.max(), "jaccard": pairwise_jaccard(sets)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["layer", "size"])


# ------------------------------------------------------------------------------------------ E8, class overlap


def class_overlap(graphs: Sequence[CausalGraph]) -> pd.DataFrame:
    """One row a pair of classes and a layer (or ``whole``): one, other (targets), layer, shared, only_one, only_other
    (numbers of causes), jaccard, rank_correlation (of mean d). See `CausalGraph.compare`."""
    names = {"only_here": "only_one", "only_there": "only_other"}
    tables = []
    for one, other in combinations(graphs, 2):
        table = one.compare(other).reset_index().rename(columns=names)
        tables.append(table.assign(one=one.target, other=other.target))
    columns = ["one", "other", "layer", "shared", "only_one", "only_other", "jaccard", "rank_correlation"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


# ------------------------------------------------------------------------------------------------ E10, pruning


def pruning(
    network: Network,
    graphs: Sequence[CausalGraph],
    images: Images,
    *,
    deltas: Sequence[float] = DELTAS,
    inhibitors: bool = False,
    draws: int = 10,
    seed: int = 0,
    batch: int = 250,
) -> pd.DataFrame:
    """Accuracy on ``images`` when only edges that are in the graph of some class are kept, beside other ways of keeping
    as many: one row a delta and method: delta, method, draw, kept, share, accuracy.

    Methods: ``causal``, the union of the classes' graphs, each refiltered with delta (not with those below the delta of
    the walk: nothing was looked for there; graphs of the reference mode have none, and are taken as they are);
    ``magnitude``, the edges of the largest weights (root mean square), as many in each layer; ``global``, as many in
    all layers together; ``random``, any edges, as many in each layer, ``draws`` times. ``inhibitors``: also the edges
    out of inhibitors, below which nothing is explored, so that they pass on little but biases. Links out of the input
    are left whole. The first row, method ``whole``, is the network as it is.

    Raises `ConfigError` where every delta lies below that of the walk.
    """
    sets: list[tuple[float, str, int, EdgeSet]] = []
    for delta, filtered in _filtered(graphs, deltas).items():
        causal = surgery.union([surgery.graph_edges(network, g, inhibitors=inhibitors) for g in filtered])
        sets.append((delta, "causal", 0, causal))
        sets.append((delta, "magnitude", 0, _strongest(network, causal)))
        sets.append((delta, "global", 0, _strongest_of_all(network, surgery.count(causal))))
        for draw in range(draws):
            sets.append((delta, "random", draw, _any(network, causal, seed, delta, draw)))
    logits = surgery.variant_logits(network, images, [{}, *(surgery.keep(of) for *_, of in sets)], batch=batch)
    accuracy = (logits.argmax(2) == images.y).double().mean(1).tolist()
    whole = surgery.count(surgery.all_edges(network))
    rows = [{"delta": np.nan, "method": "whole", "draw": 0, "kept": whole, "share": 1.0, "accuracy": accuracy[0]}]
    for (delta, method, draw, edges), found in zip(sets, accuracy[1:], strict=True):
        facts = {"delta": delta, "method": method, "draw": draw, "kept": surgery.count(edges)}
        rows.append(facts | {"share": facts["kept"] / whole, "accuracy": found})
    return pd.DataFrame(rows)


def edge_norms(network: Network) -> dict[str, torch.Tensor]:
    """float64, the shapes of an `EdgeSet`: the root mean square of each edge's weights; 0 where there is none."""
    norms = {}
    for link in surgery.tested_links(network):
        weight = link.weight().double().cpu()
        norms[link.name] = weight.flatten(2).square().mean(2).sqrt() if weight.ndim > 2 else weight.abs()
    return norms


def _filtered(graphs: Sequence[CausalGraph], deltas: Sequence[float]) -> dict[float, list[CausalGraph]]:
    """The graphs refiltered with each delta that they allow; those of the reference mode as they are, delta NaN."""
    if any(graph.walked_with["mode"] != "recommended" for graph in graphs):
        return {np.nan: list(graphs)}
    walked = max(graph.walked_with["delta"] for graph in graphs)
    filtered = {}
    for delta in deltas:
        if delta >= walked:
            filtered[delta] = [g.refilter(Selection(**g.walked_with).override({"delta": delta})) for g in graphs]
    if not filtered:
        raise ConfigError(f"the graphs were walked with delta {walked}: nothing is known of deltas below it")
    return filtered


def _strongest(network: Network, like: EdgeSet) -> EdgeSet:
    """In each link, as many of its strongest edges as ``like`` has there."""
    return {name: _first(norms, int(like[name].sum())) for name, norms in edge_norms(network).items()}


def _strongest_of_all(network: Network, n: int) -> EdgeSet:
    norms = edge_norms(network)
    flat = _first(torch.cat([of.flatten() for of in norms.values()]), n)
    parts = flat.split([of.numel() for of in norms.values()])
    return {name: part.view(of.shape) for (name, of), part in zip(norms.items(), parts, strict=True)}


def _any(network: Network, like: EdgeSet, seed: int, *names: float | int) -> EdgeSet:
    drawn = {}
    for name, there in surgery.all_edges(network).items():
        chance = torch.rand(there.shape, generator=runtime.generator(seed, "pruning", *map(str, names), name))
        drawn[name] = _first(chance.masked_fill(~there, -1), int(like[name].sum()))
    return drawn


def _first(values: torch.Tensor, n: int) -> torch.Tensor:
    """bool, the shape of ``values``: the n highest."""
    chosen = torch.zeros(values.numel(), dtype=torch.bool)
    chosen[values.flatten().argsort(descending=True, stable=True)[:n]] = True
    return chosen.view(values.shape)
