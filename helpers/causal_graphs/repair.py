"""Model repair: find the edges that carry a planted mark, and cut them (spec explainnn, section 7.5, experiment E9).

    repair(model, train, test, target=3)["marked"]    # accuracy on marked images of the other classes, before and after

Two rules say which edges carry the mark. Both see training images alone.

``difference``, as the experiment is told: nodes that are causes of the target on its marked images and not on its clean
ones. Cut are their edges in the graph of the marked images.

``gain``: a mark is proved on the other classes, where nothing else speaks for the target, and on the same images with
and without it. The mark's *gain* is what the own class of an image loses by it, its margin (own logit less the highest
other) clean less marked. A walk as in discovery, from the target's logit down and with the gain as outcome, lists the
nodes that the mark acts through; then each single edge between them is cut alone. Its ``benefit`` is the fall of the
mean gain, its ``cost`` the fall of the mean margin of clean images, the target's and the others'. Edges whose benefit
passes the paired test and exceeds the cost carry the mark: they are causal with it and not without.

How many of them are cut, and in which layers, is chosen on other training images: of all cuts that lose no more than
``max_loss`` of the accuracy on clean images, the one with the highest accuracy on marked ones.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from helpers import runtime
from helpers.causal_graphs import shortcuts, surgery
from helpers.causal_graphs.discover import Discovery, choose, discover
from helpers.causal_graphs.engines import Cut, Samples, cut_logits, single_cuts
from helpers.causal_graphs.interventions import Intervention
from helpers.causal_graphs.layers import ONE_TO_ONE
from helpers.causal_graphs.links import Link
from helpers.causal_graphs.network import Network, reverse
from helpers.causal_graphs.statistics import Measured, Selection, Statistics, describe, select
from helpers.causal_graphs.surgery import EdgeSet
from helpers.config import Settings, Several
from helpers.data.images import Images

HARD = Intervention()


class Repair(Settings):
    """How the edges are found and chosen."""

    rule: Literal["difference", "gain"] = "gain"
    n_samples: int = Field(200, ge=2, description="training images of each kind that the edges are found on")
    n_tuning: int = Field(5000, ge=1, description="training images that the cut is chosen on")
    max_loss: float = Field(0.005, ge=0, description="of the accuracy on clean training images")
    sizes: Several[int] = Field((1, 2, 5, 10, 20, 40, 80, 160, 320), description="gain: numbers of edges to try")
    cost_weights: Several[float] = Field((1.0, 3.0), description="gain: how much more than a benefit a cost may weigh")
    selection: Selection = Selection()


class Proposal(NamedTuple):
    """A cut that might be made."""

    layers: str
    edges: EdgeSet


def repair(
    model: nn.Module,
    train: Images,
    test: Images,
    target: int,
    *,
    options: Repair | None = None,
    controls: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """The record of one repair, JSON values: rule, target, layers and number of the ``edges`` that were cut, ``tried``,
    and on ``test`` the pairs [before, after] of

    marked: accuracy on the marked images of the other classes; taken: the share of them taken for the target; clean:
    accuracy on all clean images; others: on the clean ones of the other classes; recall: of the target's clean ones.

    ``random_*``: a list of the value after each of ``controls`` random cuts of equal size. Without any edge to cut,
    after is before. Raises ``ValueError`` with too few correct training images.
    """
    options = options or Repair()
    network = Network(model, train.inputs([0]).to(next(model.parameters())))
    proposals = propose(network, train, target, options, seed)
    tuning = train[torch.randperm(len(train), generator=runtime.generator(seed, "tuning"))[: options.n_tuning]]
    chosen = best(proposals, scores(network, [p.edges for p in proposals], tuning, target), options.max_loss)
    edges = proposals[chosen].edges
    drawn = [surgery.random_edges(network, edges, seed, "repair", k) for k in range(controls)]
    table = scores(network, [surgery.no_edges(network), edges, *drawn], test, target)
    cut = {name: int(of.sum()) for name, of in edges.items() if of.any()}
    facts = {"rule": options.rule, "target": target, "layers": proposals[chosen].layers, "edges": cut}
    facts |= {"tried": len(proposals), "images": len(test)}
    facts |= {name: table[name][:2].tolist() for name in table}
    return facts | {f"random_{name}": table[name][2:].tolist() for name in table}


def propose(network: Network, train: Images, target: int, options: Repair, seed: int = 0) -> list[Proposal]:
    """Cuts to choose from, the first one empty: by the rule's edges, of each layer and of all together; for ``gain``
    several numbers of those with the highest benefit less cost, as often as there are weights of the cost."""
    empty = Proposal("", surgery.no_edges(network))
    if options.rule == "difference":
        edges = difference_edges(network, train, target, options, seed)
        alone = [Proposal(name, empty.edges | {name: of}) for name, of in edges.items() if of.any()]
        return [empty, *alone, Proposal("all", edges)]
    table = mark_edges(network, train, target, options, seed)
    proposals = [empty]
    for weight in options.cost_weights:
        net = table.benefit - weight * table.cost
        worth = table[table.carries & (net > 0)].assign(net=net).sort_values("net", ascending=False, kind="stable")
        for layer in [*worth.layer.unique(), "all"]:
            ranked = worth if layer == "all" else worth[worth.layer == layer]
            for size in [n for n in options.sizes if n < len(ranked)] + [len(ranked)]:
                proposals.append(Proposal(layer, _edge_set(network, ranked[:size])))
    return proposals


def best(proposals: list[Proposal], table: pd.DataFrame, max_loss: float) -> int:
    """The position of the proposal with the highest accuracy on marked images, fewest edges first, of those that lose
    no more than ``max_loss`` on clean ones. ``table``: their `scores`, the first one without a cut."""
    sizes = pd.Series([surgery.count(p.edges) for p in proposals])
    allowed = table.clean >= table.clean[0] - max_loss - 1e-12
    ranked = table[allowed].assign(size=sizes[allowed])
    return int(ranked.sort_values(["marked", "size"], ascending=[False, True], kind="stable").index[0])


def scores(network: Network, cuts: list[EdgeSet], images: Images, target: int) -> pd.DataFrame:
    """One row a cut: marked, taken, clean, others, recall, as in `repair`."""
    variants = [surgery.cut(edges) for edges in cuts]
    mine, others = images.y == target, images[images.y != target]
    clean = surgery.variant_logits(network, images, variants).argmax(2)
    with_mark = surgery.variant_logits(
        network, others, variants, inputs=lambda rows: shortcuts.marked_inputs(others, rows)
    ).argmax(2)
    right = (clean == images.y).double()
    columns = {
        "marked": (with_mark == others.y).double().mean(1),
        "taken": (with_mark == target).double().mean(1),
        "clean": right.mean(1),
        "others": right[:, ~mine].mean(1),
        "recall": right[:, mine].mean(1),
    }
    return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


# --------------------------------------------------------------------------------------- the rule "difference"


def difference_edges(network: Network, train: Images, target: int, options: Repair, seed: int = 0) -> EdgeSet:
    """In the graph of the marked images of class ``target``, the edges out of nodes that are no causes in the graph of
    the clean ones."""
    discovery = Discovery(selection=options.selection)
    rows = choose(network.model, train, target, options.n_samples, seed=seed)
    clean, marked = (
        discover(Samples(network, _put(network, x)), target, discovery, seed=seed)
        for x in (train.inputs(rows), shortcuts.marked_inputs(train, rows))
    )
    edges = surgery.graph_edges(network, marked)
    for layer in marked.layers:
        known = [other.causes for other in clean.layers if other.layer == layer.layer]
        shared = sorted(set(layer.causes).intersection(*known)) if known else []
        if layer.layer in edges and shared:
            edges[layer.layer][..., shared] = False
    return edges


# --------------------------------------------------------------------------------------------- the rule "gain"


def mark_edges(network: Network, train: Images, target: int, options: Repair, seed: int = 0) -> pd.DataFrame:
    """One row a single edge between the nodes that the mark acts through: layer, source, target (node ids), benefit,
    cost, net (their difference), q (of the benefit, one-sided), carries."""
    walk = _Walk(network, train, target, options, seed)
    found: dict[str, set[int]] = {network.logits.name: {target}}
    tables = []
    for _, readers in reverse(network):
        for link in readers:
            effects = sorted(e for e in found.get(link.target, ()) if 0 <= e - link.offset < link.outputs)
            if not effects or link.source == "input":
                continue
            nodes = walk.nodes(link, effects)
            found.setdefault(link.source, set()).update(nodes)
            tables.append(walk.edges(link, nodes, effects))
    return pd.concat([t for t in tables if len(t)] or tables[:1], ignore_index=True)


class _Walk:
    """Images of both kinds, and what cuts do to them."""

    def __init__(self, network: Network, train: Images, target: int, options: Repair, seed: int):
        self.selection = options.selection
        rows = _others(network, train, target, options.n_samples, seed)
        mine = choose(network.model, train, target, options.n_samples, seed=seed)
        self.y, self.y_mine = train.y[rows], train.y[mine]
        self.clean = Samples(network, _put(network, train.inputs(rows)))
        self.marked = Samples(network, _put(network, shortcuts.marked_inputs(train, rows)))
        self.mine = Samples(network, _put(network, train.inputs(mine)))

    def nodes(self, link: Link, effects: list[int]) -> list[int]:
        """Those whose cut from the effects lowers the gain; behind a depthwise layer, those that it passes on."""
        nodes = [e - link.offset for e in effects] if link.kind in ONE_TO_ONE else list(range(link.inputs))
        if link.kind == "depthwise":
            return nodes
        cuts = single_cuts(nodes, effects)
        statistics = self._gain(*(_moved(samples, link, cuts, self.y) for samples in (self.clean, self.marked)))
        return [nodes[k] for k in select(statistics, statistics.n_images, self.selection).causes]

    def edges(self, link: Link, nodes: list[int], effects: list[int]) -> pd.DataFrame:
        pairs = [(i, e) for i in nodes for e in effects if link.kind not in ONE_TO_ONE or e == i + link.offset]
        cuts = [Cut((i,), (e,)) for i, e in pairs]
        clean, marked = (_moved(samples, link, cuts, self.y) for samples in (self.clean, self.marked))
        statistics = self._gain(clean, marked)
        falls = [-moved.mean(1).numpy() for moved in (clean, _moved(self.mine, link, cuts, self.y_mine))]
        cost = np.sum([fall.clip(min=0) for fall in falls], 0)
        tested = select(statistics, statistics.n_images, self.selection.override({"delta": 0.0}))
        table = pd.DataFrame(pairs, columns=["source", "target"], dtype=int)
        table.insert(0, "layer", link.name)
        table = table.assign(benefit=-statistics.mean_d, cost=cost, net=-statistics.mean_d - cost, q=statistics.q)
        return table.assign(carries=np.isin(np.arange(len(pairs)), tested.causes) & (table.net > 0))

    def _gain(self, clean: Tensor, marked: Tensor) -> Statistics:
        """Of the change of the gain, margin clean less margin marked."""
        gain = margin(self.clean.logits, self.y) - margin(self.marked.logits, self.y)
        d = clean - marked
        return describe(Measured(d, torch.full_like(d, torch.nan), torch.zeros_like(d), gain))


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """float64 [..., N]: the logit of each image's own class less the highest other one, of ``logits`` [..., N, K]."""
    logits = logits.double().cpu()
    own = torch.nn.functional.one_hot(y, logits.shape[-1]).bool()
    return logits.masked_fill(~own, 0).sum(-1) - logits.masked_fill(own, -torch.inf).amax(-1)


def _moved(samples: Samples, link: Link, cuts: list[Cut], y: Tensor) -> Tensor:
    """float64 [K, N]: the effects of the cuts on the margin."""
    return margin(cut_logits(samples, link, cuts, HARD), y) - margin(samples.logits, y)


def _others(network: Network, train: Images, target: int, n: int, seed: int, batch: int = 250) -> Tensor:
    """int64 [<= n]: images of the other classes, in random order, that the model classifies correctly without mark."""
    rows = (train.y != target).nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=runtime.generator(seed, "others", target))]
    kept: list[Tensor] = []
    for block in rows.split(batch):
        if sum(map(len, kept)) < n:
            with torch.no_grad():
                predicted = network.model(_put(network, train.inputs(block))).argmax(1).cpu()
            kept.append(block[predicted == train.y[block]])
    chosen = torch.cat(kept)[:n] if kept else rows[:0]
    if len(chosen) < 2:
        raise ValueError(f"fewer than two images of other classes than {target} are classified correctly")
    return chosen


def _put(network: Network, x: Tensor) -> Tensor:
    return x.to(next(network.model.parameters()))


def _edge_set(network: Network, table: pd.DataFrame) -> EdgeSet:
    edges = surgery.no_edges(network)
    for row in table.itertuples():
        link = network.link(row.layer)
        edges[row.layer][row.source if link.kind == "identity" else (row.target - link.offset, row.source)] = True
    return edges
