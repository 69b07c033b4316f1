"""How relevance goes back through a canonised network: the rules of layer-wise relevance propagation that PRP uses
(spec section 4.5), one for each kind of operation of `helpers.prototypes.evaluation.canonise`.

Written as what they are, linear maps of relevance: one pass forwards is enough for any number of passes back, and each
of these takes many maps at once, one convolution a layer. With hooks on modules (zennit, the reference of our tests),
each map takes a pass forwards of its own and twice the convolutions.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.grad import conv2d_input

from helpers.prototypes.evaluation.canonise import Average, Concatenation, Convolution, Elementwise, Maximum, Sum

SUM_RULES = ("epsilon", "same_sign")
TINY = 1e-12  # no denominator is smaller
EPSILON = 1e-6  # by how much the rule of that name makes it larger

Bounds = tuple[Tensor, Tensor]  # the least and the greatest that a value can be
Pull = Callable[[Tensor], Sequence[Tensor]]
"""From the relevance [P, B, ...] of a value [B, ...] to that of each input it was computed from."""


class Propagation(fx.Interpreter):
    """Runs a canonised network once, and takes relevance back through it as often as asked.

    ``bounds``, those of the input: convolutions that read nothing but it follow the rule z^B, and ``boxed`` says after
    the run whether there were any.
    """

    def __init__(self, network: fx.GraphModule, sum_rule: str, bounds: Bounds | None = None):
        super().__init__(network)
        self.sum_rule, self.bounds, self.boxed = sum_rule, bounds, False
        self.between: dict[fx.Node, Bounds] = {}  # of what is made of the input without a convolution
        self.steps: list[tuple[fx.Node, Sequence[fx.Node], Pull]] = []

    def back(self, r: Tensor) -> Tensor:
        """The relevance [P, B, ...] of the input, from that of the output."""
        first, *_, last = self.module.graph.nodes
        found = {last.args[0]: r}
        for node, inputs, pull in reversed(self.steps):
            if node in found:  # else nobody takes its value
                for before, part in zip(inputs, pull(found.pop(node)), strict=True):
                    found[before] = found[before] + part if before in found else part
        return found[first]

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "placeholder" and self.bounds:
            self.between[n] = self.bounds
        taken = n.args if n.op == "call_module" else n.all_input_nodes  # these name each only once
        inputs = [m for m in taken if isinstance(m, fx.Node) and isinstance(self.env[m], Tensor)]
        if n.op == "output" or not inputs:  # sizes
            return super().run_node(n)
        value, pull = self._step(n, inputs, [self.env[m] for m in inputs])
        self.steps.append((n, inputs, pull))
        return value

    def _step(self, n: fx.Node, inputs: Sequence[fx.Node], x: Sequence[Tensor]) -> tuple[Any, Pull]:
        part = self.fetch_attr(n.target) if n.op == "call_module" else None
        if isinstance(part, Convolution):
            bounds = self.between.get(inputs[0])
            self.boxed |= bounds is not None
            return convolution(part, *x, bounds)
        if isinstance(part, Sum | Average):
            return (epsilon if self.sum_rule == "epsilon" else same_sign)(part, x)
        if isinstance(part, Maximum):
            return maximum(part, *x)
        if all(m in self.between for m in inputs):
            ends = [self._value(n, inputs, end) for end in zip(*(self.between[m] for m in inputs), strict=True)]
            self.between[n] = torch.minimum(*ends), torch.maximum(*ends)
        if isinstance(part, Elementwise):
            return part(*x), lambda r: [r]
        if isinstance(part, Concatenation):
            dim = part.dim % x[0].ndim
            return part(*x), lambda r: r.split([one.shape[dim] for one in x], dim + 1)
        return move(lambda *x: self._value(n, inputs, x), x)

    def _value(self, n: fx.Node, inputs: Sequence[fx.Node], x: Sequence[Tensor]) -> Any:
        """What ``n`` would be if its inputs were ``x``."""
        values = ChainMap(dict(zip(inputs, x, strict=True)), self.env)
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), values.__getitem__)
        return getattr(self, n.op)(n.target, args, kwargs)


def convolution(part: Convolution, x: Tensor, bounds: Bounds | None = None) -> tuple[Tensor, Pull]:
    """R_i = sum_j c_ij / (sum_k c_kj) R_j of contributions c_ij = max(w_ij x_i, 0): alpha 1, beta 0. With ``bounds``,
    z^B: c_ij is what w_ij x_i exceeds its least value by, w_ij low_i or w_ij high_i. Biases take no share."""
    low, high = bounds or (0.0, 0.0)
    above, below = (x - low).clamp(min=0), (x - high).clamp(max=0)
    pairs = [(above, part.weight.clamp(min=0))]
    if below.any():  # behind a ReLU there is nothing, and half the work
        pairs.append((below, part.weight.clamp(max=0)))
    total = _add(F.conv2d(some, weight, None, *part.options) for some, weight in pairs).clamp(min=TINY)

    def pull(r: Tensor) -> list[Tensor]:
        q = (r / total).flatten(0, 1)
        size = (len(q), *x.shape[1:])
        shares = (conv2d_input(size, weight, q, *part.options).view(len(r), *x.shape).mul_(a) for a, weight in pairs)
        return [_add(shares)]

    return part(x), pull


def epsilon(part: nn.Module, x: Sequence[Tensor]) -> tuple[Tensor, Pull]:
    """Of a sum z of x_i with positive weights: R_i = w_i x_i / (z + epsilon sign(z)) R."""
    z = part(*x)
    total = z + torch.where(z < 0, -EPSILON, EPSILON)

    def pull(r: Tensor) -> list[Tensor]:
        return [one * q for one, q in zip(x, _transposed(part, x, r / total), strict=True)]

    return z, pull


def same_sign(part: nn.Module, x: Sequence[Tensor]) -> tuple[Tensor, Pull]:
    """The same, among those summands alone that have the sign of the sum."""
    z, sides = part(*x), []
    for of_sign, some in ((z >= 0, [one.clamp(min=0) for one in x]), (z < 0, [-one.clamp(max=0) for one in x])):
        if of_sign.any():
            sides.append((some, of_sign / part(*some).clamp(min=TINY)))

    def pull(r: Tensor) -> list[Tensor]:
        shares = [
            [one * q for one, q in zip(some, _transposed(part, x, r * factor), strict=True)] for some, factor in sides
        ]
        return [_add(both) for both in zip(*shares, strict=True)]

    return z, pull


def maximum(part: Maximum, x: Tensor) -> tuple[Tensor, Pull]:
    """The greatest takes all; of several, the first."""
    value, places = part.function(x, return_indices=True)

    def pull(r: Tensor) -> list[Tensor]:
        where = places.flatten(2).expand(len(r), -1, -1, -1)
        return [r.new_zeros(len(r), *x.flatten(2).shape).scatter_add_(3, where, r.flatten(3)).view(len(r), *x.shape)]

    return value, pull


def move(function: Callable[..., Any], x: Sequence[Tensor]) -> tuple[Any, Pull]:
    """Back to where the values come from, which the gradient tells."""
    x = [one.detach().requires_grad_() for one in x]
    with torch.enable_grad():
        value = function(*x)

    def pull(r: Tensor) -> list[Tensor]:
        parts = [torch.autograd.grad(value, x, one, retain_graph=True) for one in r]
        return [torch.stack(some) for some in zip(*parts, strict=True)]

    return value.detach() if isinstance(value, Tensor) else value, pull  # or it is a size, which nothing flows through


def _transposed(part: nn.Module, x: Sequence[Tensor], q: Tensor) -> list[Tensor]:
    """[P, B, ...] for each of ``x``: the gradients ``q`` [P, B, ...] taken back through the linear ``part``."""
    zeros = [q.new_zeros(()).expand(q.shape[:2].numel(), *one.shape[1:]).requires_grad_() for one in x]
    with torch.enable_grad():
        value = part(*zeros)
    return [back.unflatten(0, q.shape[:2]) for back in torch.autograd.grad(value, zeros, q.flatten(0, 1))]


def _add(tensors: Any) -> Tensor:
    return reduce(torch.add, tensors)
