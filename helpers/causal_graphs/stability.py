"""Does a layer of a graph come out again with other images and with soft values? (spec explainnn, section 7.2)

    runs = repeat(model, images, graph, "fc3")
    by_beta(runs)          # appearance, Jaccard index, empty runs; beta 0 is the noise of sampling alone
    by_window(runs)        # how many nodes appear in 10 % ... 100 % of the runs

Every run draws its images anew and one soft value, u ~ U(0, beta), that all its candidates and images share; the layers
above are taken from the graph. So the layer can be any that was tested, not only the last.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from tqdm.auto import tqdm

from helpers import runtime
from helpers.causal_graphs.engines import Engine, Samples, cut_logits, single_cuts
from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.interventions import Intervention
from helpers.causal_graphs.links import Link
from helpers.causal_graphs.network import Network
from helpers.causal_graphs.statistics import Selection, describe, measure, select
from helpers.config import ConfigError, Settings, Several
from helpers.data.images import Images


class Sweep(Settings):
    """The grid of soft values, and what they do to a weight.

    ``value`` overwrites it with u (the release); ``relative`` with u standard deviations of the layer's weights;
    ``scale`` multiplies it by u. At u = 0 all three cut the edge.
    """

    betas: Several[float] = Field(tuple(i / 100 for i in range(51)), description="upper ends of u's interval")
    runs: int = Field(10, ge=1, description="for each beta")
    n_samples: int = Field(100, ge=2, description="images of a run")
    kind: Literal["value", "relative", "scale"] = "value"
    selection: Selection | None = Field(None, description="how nodes are chosen; null: as in the graph")
    engine: Engine = "delta"

    def intervention(self, link: Link, u: float) -> Intervention:
        if self.kind == "scale":
            return Intervention(kind="scale", amount=1 - u)
        return Intervention(amount=u * (float(link.spread()) if self.kind == "relative" else 1.0))


def repeat(
    model: nn.Module,
    images: Images,
    graph: CausalGraph,
    layer: str = "fc3",
    *,
    sweep: Sweep | None = None,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """One row a run: beta, run, seed, u, n_images, causes (node ids, a tuple), rule.

    A run's images are those that `discover.choose` draws with its seed, so that at u = 0 it finds what a hard discovery
    with this seed finds from the same effects. ``images`` are of the graph's split. Raises `ConfigError` for a layer
    that is not in the graph or was not tested, ``ValueError`` with fewer than two correct images.
    """
    sweep = sweep or Sweep()
    tested = graph.layer(layer)
    if tested.statistics is None:
        raise ConfigError(f"{layer} cannot be tested again: its nodes were listed without a test ({tested.rule})")
    selection = sweep.selection or Selection(**graph.selection)
    target, pool = graph.target, Pool(model, images, graph.target)
    network = Network(model, pool.inputs(pool.draw(1, seed)))
    link, cuts = network.link(layer), single_cuts(tested.tested, tested.measured_effects)
    rows = []
    plan = [(beta, run) for beta in sweep.betas for run in range(sweep.runs)]
    for beta, run in tqdm(plan, desc=f"stability of {layer}", disable=not progress, leave=False):
        run_seed = runtime.stream(seed, "stability", beta, run)
        u = beta * torch.rand((), generator=runtime.generator(run_seed, "u")).item()
        samples = Samples(network, pool.inputs(pool.draw(sweep.n_samples, run_seed)))
        logits = cut_logits(samples, link, cuts, sweep.intervention(link, u), seed=run_seed, engine=sweep.engine)
        statistics = describe(measure(samples.logits, logits, target, graph.effect, graph.other))
        found = select(statistics, len(samples), selection)
        causes = tuple(tested.tested[k] for k in found.causes)
        facts = {"beta": beta, "run": run, "seed": run_seed, "u": u, "n_images": len(samples)}
        rows.append(facts | {"causes": causes, "rule": found.rule})
    return pd.DataFrame(rows)


class Pool:
    """The images of class ``target`` that ``model`` takes for it, found once; samples of them as `discover.choose`
    draws them. Raises ``ValueError`` with fewer than two."""

    def __init__(self, model: nn.Module, images: Images, target: int, batch: int = 250):
        self._images, self._target, self._like = images, target, next(model.parameters())
        self._rows = (images.y == target).nonzero()[:, 0]
        with torch.no_grad():
            right = [model(self.inputs(rows)).argmax(1).cpu() == target for rows in self._rows.split(batch)]
        self._right = torch.cat(right) if right else torch.zeros(0, dtype=torch.bool)
        if self._right.sum() < 2:
            raise ValueError(f"fewer than two images of class {target} are classified as it")

    def __len__(self) -> int:
        return int(self._right.sum())

    def draw(self, n: int, seed: int) -> Tensor:
        """int64 [<= n]: indices of images, in random order."""
        order = torch.randperm(len(self._rows), generator=runtime.generator(seed, "samples", self._target))
        return self._rows[order[self._right[order]]][:n]

    def inputs(self, rows: Tensor) -> Tensor:
        return self._images.inputs(rows).to(self._like)


def closed_form(lower: Tensor, weight: Tensor, u: float) -> Tensor:
    """float64 [K, N]: the effects on a logit of overwriting, one at a time, the ``weight`` [K] that it gives to its K
    inputs ``lower`` [N, K] with ``u``: (u - w_i) a_i. It needs no pass through the network (spec section 9.1)."""
    return ((u - weight.double()) * lower.double()).T


# ------------------------------------------------------------------------------------------------ summaries


def by_beta(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a beta (the index), over its runs:

    appearance: the share of the runs that a node appears in, mean over the nodes that appear at all;
    jaccard: mean over the pairs of runs, a pair of empty ones counting 0; jaccard_found: without these pairs;
    empty: the share of runs that found no node; nodes: mean number of nodes in a run; u: mean.
    NaN where there is no such node, or no such pair.
    """
    rows = {}
    for beta, group in runs.groupby("beta"):
        sets = [frozenset(causes) for causes in group.causes]
        rows[beta] = {
            "appearance": float(np.mean(list(frequencies(sets).values()) or [np.nan])),
            "jaccard": pairwise_jaccard(sets),
            "jaccard_found": pairwise_jaccard(sets, empty=None),
            "empty": float(np.mean([not found for found in sets])),
            "nodes": float(np.mean([len(found) for found in sets])),
            "u": float(group.u.mean()),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("beta")


def by_window(runs: pd.DataFrame, width: float = 0.1) -> pd.DataFrame:
    """One row a window [low, low + width) of beta, the last one closed: low, high, nodes (mean number in a run), empty
    (share of runs), and for each ``k/runs`` the share, among all nodes that appear at a beta of the window, of those
    that appear in k of its runs."""
    betas, runs_each = runs.beta.unique(), int(runs.groupby("beta").size().max())
    windows = max(1, math.ceil(float(betas.max()) / width - 1e-9))
    place = np.minimum(np.floor(runs.beta / width + 1e-9).astype(int), windows - 1)
    rows = []
    for window, group in runs.groupby(place):
        seen = [share for _, of in group.groupby("beta") for share in frequencies(of.causes).values()]
        counts = np.round(np.array(seen) * runs_each).astype(int)
        shares = {f"{k}/{runs_each}": float(np.mean(counts == k)) if seen else np.nan for k in range(1, runs_each + 1)}
        facts = {"low": window * width, "high": (window + 1) * width, "nodes": group.causes.map(len).mean()}
        rows.append(facts | {"empty": (group.causes.map(len) == 0).mean()} | shares)
    return pd.DataFrame(rows)


def frequencies(sets: Sequence[Collection[int]]) -> dict[int, float]:
    """The share of the ``sets`` that each node is in, for the nodes that are in any."""
    nodes, counts = np.unique([node for found in sets for node in found], return_counts=True)
    return {int(node): float(n) / len(sets) for node, n in zip(nodes, counts, strict=True)}


def pairwise_jaccard(sets: Sequence[Collection[int]], empty: float | None = 0.0) -> float:
    """Mean Jaccard index of all pairs. Two empty sets count ``empty``; None leaves such pairs out. NaN of no pair."""
    found = []
    for one, other in combinations(map(set, sets), 2):
        if one or other:
            found.append(len(one & other) / len(one | other))
        elif empty is not None:
            found.append(empty)
    return float(np.mean(found)) if found else float("nan")
