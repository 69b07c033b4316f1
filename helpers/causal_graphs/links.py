"""The nodes and edges of a network: spaces, and the links between them (spec explainnn, sections 2 and 8).

A *space* is a tensor whose channels (or neurons) are nodes; a *link* holds the edges from one space into another: a
convolution, a linear layer, or a skip connection, whose edges are one-to-one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["linear", "conv", "depthwise", "identity"]
CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


@dataclass(frozen=True)
class Space:
    """``size`` nodes: the channels of an activation [N, size, ...], the neurons of [N, size], or the logits."""

    name: str
    size: int


@dataclass(frozen=True)
class Link:
    """The edges from the nodes of ``source`` into nodes ``offset`` ... ``offset + outputs - 1`` of ``target``.

    ``module`` is None for a skip connection (``kind`` "identity"), whose edges lead from node i to node ``offset + i``
    with weight 1. A linear layer behind a flattening gives ``block`` weights to each lower node, one a position.
    """

    name: str
    kind: Kind
    source: str
    target: str
    inputs: int
    outputs: int
    offset: int
    module: nn.Module | None
    at: str  # the fx node whose value an intervention moves
    reads: str  # the fx node whose value holds the lower nodes
    axis: int  # of the nodes in the value of `at`
    place: int = 0  # where output 0 stands on that axis: behind other operands in a concatenation
    block: int = 1

    def weight(self) -> Tensor:
        """[outputs, inputs, ...]: the block of weights of every edge, kernels or positions last; zeros where grouped
        layers have no edge. A skip connection's are [inputs]."""
        if self.module is None:
            return torch.ones(self.inputs, dtype=torch.float64)
        weight = self.module.weight.detach()
        if self.kind == "linear":
            return weight.view(self.outputs, self.inputs, self.block) if self.block > 1 else weight
        if self.module.groups > 1:
            return _dense(weight, self.module.groups)
        return weight

    def spread(self) -> Tensor:
        """[]: the standard deviation of the weights of its edges; 1 for a skip connection, whose weights are all 1."""
        return torch.ones((), dtype=torch.float64) if self.module is None else self.module.weight.detach().std()

    def positions(self, effects: Sequence[int]) -> Tensor:
        """The channels, in the value of ``at``, of those nodes of the target space that this link leads into."""
        local = (e - self.offset for e in effects)
        return torch.tensor([self.place + j for j in local if 0 <= j < self.outputs], dtype=torch.long)


def link_output(link: Link, weight: Tensor, lower: Tensor, groups: int = 1) -> Tensor:
    """The layer's own operation without bias: ``weight`` [J, I, ...] (as `Link.weight`) on ``lower``, the value that
    holds I lower nodes. Convolutions may run in ``groups`` of their own."""
    if link.kind == "linear":
        return F.linear(lower, weight.flatten(1))
    module = link.module
    if module.padding_mode != "zeros":
        lower = F.pad(lower, module._reversed_padding_repeated_twice, mode=module.padding_mode)
    padding = module.padding if module.padding_mode == "zeros" else 0
    convolution = next(function for kind, function in CONVOLUTIONS.items() if isinstance(module, kind))
    return convolution(lower, weight, None, module.stride, padding, module.dilation, groups)


def embed(link: Link, delta: Tensor, shape: Sequence[int]) -> Tensor:
    """``delta`` of a skip connection's operand at its place in the sum or concatenation, a value [N, *shape]."""
    if tuple(delta.shape[1:]) == tuple(shape):
        return delta
    whole = delta.new_zeros(len(delta), *shape)
    whole.narrow(link.axis, link.place, link.inputs).copy_(delta)
    return whole


def _dense(weight: Tensor, groups: int) -> Tensor:
    """[J, I / groups, ...] of a grouped convolution as [J, I, ...]."""
    outputs, per_group = weight.shape[0] // groups, weight.shape[1]
    dense = weight.new_zeros(weight.shape[0], per_group * groups, *weight.shape[2:])
    for g in range(groups):
        rows = slice(g * outputs, (g + 1) * outputs)
        dense[rows, g * per_group : (g + 1) * per_group] = weight[rows]
    return dense
