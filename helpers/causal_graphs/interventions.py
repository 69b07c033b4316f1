"""What an intervention puts in the place of the edges it cuts (spec explainnn, sections 2 and 2.1).

Every kind comes to the same sum: the value z of the layer moves by ``kernel * a``, the layer's own operation with other
weights, ``kernel``, on lower nodes that hold ``a``. Engines need nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from helpers import runtime
from helpers.causal_graphs.links import Link
from helpers.config import Settings


class Intervention(Settings):
    """do(i, E, u).

    ``value`` overwrites each weight with ``amount`` (0: the edge is cut); ``scale`` multiplies it by 1 - ``amount``;
    ``additive`` adds noise of ``amount`` standard deviations of the layer's weights; ``mean`` feeds the edge the node's
    mean over the sample set, ``resample`` the node's values on another image of it.
    """

    kind: Literal["value", "scale", "additive", "mean", "resample"] = "value"
    amount: float = Field(0.0, description="u, lambda or sigma; mean and resample have none")

    @classmethod
    def noted(cls, facts: Mapping[str, Any], u: float | None) -> Intervention:
        """What a graph notes (`discover.intervention_facts`), in a layer for which the soft value ``u`` was drawn."""
        return cls(amount=u) if "soft" in facts else cls(**facts)

    @property
    def edits_weights(self) -> bool:
        return self.kind in ("value", "scale", "additive")

    def kernel(self, link: Link, seed: int = 0) -> Tensor:
        """[outputs, inputs, ...] as `Link.weight`: the change of each edge's weight; for `mean` and `resample`, which
        leave the weights alone, the weights themselves."""
        weight = link.weight()
        if self.kind == "value":
            change = self.amount - weight
        elif self.kind == "scale":
            change = -self.amount * weight
        elif self.kind == "additive":
            noise = torch.randn(weight.shape, generator=runtime.generator(seed, "additive", link.name))
            change = self.amount * link.spread() * noise.to(weight)
        else:
            change = weight
        return change * edges(link)

    def lower(self, link: Link, values: Tensor, seed: int = 0) -> Tensor:
        """What the ``kernel`` is applied to: the lower nodes' ``values`` [N, ...] on the whole sample set, or by how
        much they are moved."""
        if self.edits_weights:
            return values
        if self.kind == "resample":
            return values[derangement(len(values), seed, link.name).to(values.device)] - values
        if link.block > 1:
            nodes = values.view(len(values), link.inputs, link.block)
            return (nodes.mean((0, 2), keepdim=True) - nodes).flatten(1)
        return values.mean([d for d in range(values.ndim) if d != link.axis], keepdim=True) - values


def edges(link: Link) -> Tensor | float:
    """1 where a grouped convolution has an edge, else 0, [outputs, inputs, 1, ...]; 1.0 for a dense one."""
    groups = getattr(link.module, "groups", 1)
    if groups == 1:
        return 1.0
    there = torch.block_diag(*[torch.ones(link.outputs // groups, link.inputs // groups)] * groups)
    return there.view(*there.shape, *[1] * (link.module.weight.ndim - 2)).to(link.module.weight)


def derangement(n: int, seed: int, *names: str) -> Tensor:
    """int64 [n]: for every image another one (a random cycle)."""
    order = torch.randperm(n, generator=runtime.generator(seed, "resample", *names))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner
