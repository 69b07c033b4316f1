"""Gradients by other rules: what a layer passes back is changed, and with it what the map means."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from helpers.attribution.base import Baseline, Logit, collapse, hooked, like, method


@method
def guided_backprop(y: Logit, x: Tensor, *, signed: bool = False) -> Tensor:
    """The gradient, where each ReLU passes back only positive gradients of positive inputs (arXiv 1412.6806).

    The rule is set on the ReLUs of the autograd graph: modules, functions and reused modules alike.
    """
    return collapse(_gradient_by_relu_rule(y, x, lambda inner, outer: (inner[0].clamp(min=0),)), signed)


@method
def deconvolution(y: Logit, x: Tensor, *, signed: bool = False) -> Tensor:
    """The gradient, where each ReLU passes back positive gradients, whatever its input (arXiv 1311.2901)."""
    return collapse(_gradient_by_relu_rule(y, x, lambda inner, outer: (outer[0].clamp(min=0),)), signed)


def _gradient_by_relu_rule(y: Logit, x: Tensor, rule: Callable[..., tuple[Tensor]]) -> Tensor:
    """``dy/dx`` with ``rule(gradients of the inputs, of the outputs)`` in the place of each ReLU's own."""
    total = y(x.requires_grad_()).sum()
    nodes, waiting = set(), [total.grad_fn]
    while waiting:
        if (node := waiting.pop()) is not None and node not in nodes:
            nodes.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    if not (relus := [node for node in nodes if node.name() == "ReluBackward0"]):
        raise ValueError("the method changes how ReLUs pass gradients back, and this model has none")
    for relu in relus:
        relu.register_hook(rule)
    return torch.autograd.grad(total, x)[0]


@method
def deep_lift(y: Logit, x: Tensor, *, baseline: Baseline = 0.0) -> Tensor:
    """DeepLIFT's rescale rule (arXiv 1704.02685): ``x - b`` times the gradient, in which a non-linearity's
    slope is ``(out(x) - out(b)) / (in(x) - in(b))``. The map sums to ``y(x) - y(b)``; b is the ``baseline``.

    Raises ``ValueError`` where it does not, or where activations multiply each other: no rule covers that.
    """
    reference = like(x, baseline)
    with _Secants():
        slopes = _straight_gradient(lambda x: y(torch.cat([x, reference]))[: len(x)], x)
    values = (x - reference) * slopes
    with torch.no_grad():
        after, before = y(x), y(reference)
    gap, rounding = values.sum((1, 2, 3)) - (after - before), 1e-5 * (after.abs() + before.abs())
    if (gap.abs() > 1e-3 * values.abs().sum((1, 2, 3)) + rounding).any():
        raise ValueError(f"deep_lift misses a logit's change by {gap.abs().max():.2g}: a layer has no rule")
    return collapse(values)


class _Secants(TorchFunctionMode):
    """Non-linearities, module or function, on [x; b]: the same values, but the slope from b to x."""

    ELEMENTWISE = frozenset(
        "relu relu6 leaky_relu elu selu celu gelu silu mish hardtanh softplus sigmoid tanh clamp".split()
    )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), dict(kwargs or {})
        if name == "max_pool2d" and args[0].ndim == 4:
            out, places = F.max_pool2d_with_indices(*args, **kwargs)
            (out_x, out_b), (of_x, of_b) = out.chunk(2), places.chunk(2)
            place = torch.where(out_x >= out_b, of_x, of_b).repeat(2, 1, 1, 1)  # of the larger one
            z, slope = args[0].flatten(2).gather(2, place.flatten(2)).view_as(out), torch.ones_like(out)
        elif name in self.ELEMENTWISE and args[0].requires_grad and args[0].ndim and len(args[0]) % 2 == 0:
            kwargs |= {"inplace": False} if "inplace" in kwargs else {}
            z, point = args[0], args[0].detach().requires_grad_()
            out = func(point, *args[1:], **kwargs)
            (slope,) = torch.autograd.grad(out.sum(), point)
        else:
            return func(*args, **kwargs)
        (out_x, out_b), (z_x, z_b) = out.detach().chunk(2), z.detach().chunk(2)
        run, rise = (torch.cat([change, change]) for change in (z_x - z_b, out_x - out_b))
        return out.detach() + torch.where(run.abs() > 1e-6, rise / run, slope) * (z - z.detach())


@method
def lrp(y: Logit, x: Tensor, *, gamma: float = 0.25) -> Tensor:
    """Layer-wise relevance propagation (doi 10.1371/journal.pone.0130140), rule gamma at convolutions and
    rule 0 elsewhere (doi 10.1007/978-3-030-28954-6_10); biases take their share.

    Relevance is carried as ``x * g``: rule 0 is then the gradient, and rule gamma (`_gamma_rule`) changes
    that of convolutions; ``gamma=0`` is input x gradient. Raises ``ValueError`` unless the model is piecewise
    linear: ReLU, max pooling, batch norm, sums, means.
    """
    convolutions = [module for module in y.modules() if isinstance(module, nn.Conv2d)]
    with hooked(convolutions, _gamma_rule(gamma)):
        return collapse(x * _straight_gradient(y, x))


def _gamma_rule(gamma: float) -> Callable[..., Tensor]:
    """LRP's rule gamma for inputs a of any sign, as a forward hook that leaves the output z as it is.

    ``R_j = sum_k a_j w'_jk / z'_k R_k``, where w' and z' count ``1 + gamma`` times what has z_k's sign. With
    ``R = a g``, that is the gradient of ``z' * (z / z')``, the second factor held constant.
    """

    def boost(parameter: Tensor | None, sign: int) -> Tensor | None:
        return None if parameter is None else parameter + gamma * sign * (sign * parameter).clamp(min=0)

    def hook(conv: nn.Conv2d, args: tuple[Tensor], z: Tensor) -> Tensor:
        def boosted(sign: int) -> Tensor:
            same, opposite, bias = boost(conv.weight, sign), boost(conv.weight, -sign), boost(conv.bias, sign)
            return conv._conv_forward(positive, same, bias) + conv._conv_forward(negative, opposite, None)

        positive, negative = args[0].clamp(min=0), args[0].clamp(max=0)
        total = torch.where(z > 0, boosted(1), boosted(-1))  # of z's sign, and no smaller
        return total * torch.where(total == 0, 0, z / total).detach()

    return hook


def _straight_gradient(y: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``g = dy/dx``; raises ``ValueError`` if y curves, which is to say unless ``d|g|^2/dx`` is exactly 0."""
    x = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(y(x).sum(), x, create_graph=True)
    if g.requires_grad and torch.autograd.grad(g.square().sum(), x, materialize_grads=True)[0].any():
        raise ValueError("no rule covers a part of this model (a product of activations, softmax, ...)")
    return g.detach()
