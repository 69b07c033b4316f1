"""Saliency maps that a loss can be sent back through, to the weights of the net that they explain (spec section 3).

    maps = explain(net, x, y, Explanation())                            # detached: to look at, to measure
    maps = explain(net, x, y, Explanation(), graph=True, batches=18)    # 18 critic batches in one go, to learn from

A map is made in two steps: `raw`, which asks the net, and `post`, which clips and scales and does not. The net is asked
in eval mode, so that a map is a function of weights, images and labels alone, also of a net with dropout.

Captum is not used: its input gradient does not keep the graph, and then no weight learns anything, without an error.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.attribution.base import evaluating, hooked
from helpers.config import ConfigError
from helpers.self_explaining.presets import Explanation

FLOOR = 1e-12  # of what maps are divided by: nothing positive in a batch gives zeros, not NaN
MARGIN = 1e-6  # what the original adds to the range of a GradCAM map
AT_ONCE = 512  # images that integrated gradients send through the net at a time, unless one node has more


def explain(
    net: nn.Module, x: Tensor, y: Tensor, options: Explanation, *, graph: bool = False, batches: int | None = None
) -> Tensor:
    """The explanations E [B, C, H, W] of images ``x`` [B, C, H, W] for the classes ``y`` [B].

    x is a stack of ``batches`` consecutive batches of equal size (None: one), each of which is scaled by a maximum of
    its own under the norm ``batch``. ``graph`` keeps the way to the net's weights, for a loss of E; without it E is
    detached. ``net`` returns log-probabilities (of logits, those would be explained), and for the target ``logit`` has
    a method ``logits`` too. Raises ``ValueError`` for shapes that do not fit, `ConfigError` for GradCAM of a net
    without a ``target_layer`` and for a target that the net does not have.
    """
    return post(raw(net, x, y, options, graph=graph), options, x, batches=batches)


def raw(net: nn.Module, x: Tensor, y: Tensor, options: Explanation, *, graph: bool = False) -> Tensor:
    """The attribution A as the method gives it, signed: [B, C, H, W], of GradCAM [B, 1, h, w] as its layer is.

    It is that of f_y(x), the log-probability (or logit) of the class ``y``, to ``x`` in normalised pixels (spec 3.1).
    """
    if x.ndim != 4 or len(x) == 0 or not x.is_floating_point() or y.shape != x.shape[:1]:
        raise ValueError(
            f"expected x [B, C, H, W] of floats and a class for each image, not {tuple(x.shape)} and {tuple(y.shape)}"
        )
    with torch.inference_mode(False), torch.enable_grad(), evaluating(net):
        a = METHODS[options.mode](net, x.detach().clone(), y, options, graph)
    return a if graph else a.detach()


def post(
    a: Tensor, options: Explanation, x: Tensor, maxima: Tensor | None = None, *, batches: int | None = None
) -> Tensor:
    """The attribution ``a`` of the images ``x`` [B, C, H, W], clipped and scaled: E [B, C, H, W] (spec 3.2).

    Negative values become zero, and what is left is divided by its maximum: that of each of the ``batches`` in x, of
    each ``sample``, or by nothing (``none``). The maximum is differentiated too, unless ``maxima`` (as `peaks` gives
    them) stand in for it. ``input_x_integrated_gradient`` is multiplied by x in the end: it alone can be negative.

    GradCAM becomes ``(a - min) / (range + 1e-6)`` of each sample, whether the norm is ``batch`` or ``sample``, is not
    divided under ``none``, and is enlarged by repeating pixels. ``input`` stays as it is.
    """
    if options.mode == "input":
        return a
    if options.mode == "gradcam":
        shifted = a - a.amin((1, 2, 3), keepdim=True)
        e = shifted if options.norm == "none" else shifted / (shifted.amax((1, 2, 3), keepdim=True) + MARGIN)
        return F.interpolate(e, x.shape[2:], mode="nearest").expand_as(x)
    e = F.relu(a)  # unlike clamp, it passes nothing back where a is 0
    if options.norm != "none":
        maxima = peaks(a, options, batches) if maxima is None else maxima
        e = (e.reshape(len(maxima), -1) / maxima.clamp(min=FLOOR)[:, None]).view_as(a)
    return e * x if options.mode == "input_x_integrated_gradient" else e


def peaks(a: Tensor, options: Explanation, batches: int | None = None) -> Tensor:
    """The largest positive value (or 0) of ``a`` [B, ...] in each of ``batches`` consecutive batches (None: one), or in
    each sample, whichever `Explanation.norm` divides by: [batches] or [B]. Keeps the graph of a."""
    count = len(a) if options.norm == "sample" else 1 if batches is None else batches
    if count < 1 or len(a) % count:
        raise ValueError(f"{len(a)} maps are no {count} batches of equal size")
    return F.relu(a).reshape(count, -1).amax(1)


def as_explainer(options: Explanation) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """The house signature, for `helpers.metrics`: ``explain(model, x[B, C, H, W], target[B]) -> heat[B, H, W]``, summed
    over channels. Under the norm ``batch`` the maps depend on the images that are explained together."""

    def explained(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return explain(model, x, target, options).sum(1)

    return explained


# ------------------------------------------------------------------------------------------------ the attributions


def _input_x_gradient(net: nn.Module, x: Tensor, y: Tensor, options: Explanation, graph: bool) -> Tensor:
    """``x * df_y/dx``."""
    return x * _gradient(net, x, y, options, graph)


def _integrated_gradient(net: nn.Module, x: Tensor, y: Tensor, options: Explanation, graph: bool) -> Tensor:
    """``x * sum_s w_s df_y/dx(alpha_s x)``: along the line from the baseline 0, a uniform grey of MNIST's mean."""
    nodes, weights = (values.to(x) for values in quadrature(options.steps))
    total, each = torch.zeros_like(x), max(1, AT_ONCE // len(x))
    for alpha, weight in zip(nodes.split(each), weights.split(each), strict=True):
        points = torch.einsum("s,b...->sb...", alpha, x).flatten(0, 1)
        gradient = _gradient(net, points, y.repeat(len(alpha)), options, graph)
        total = total + torch.einsum("s,sb...->b...", weight, gradient.unflatten(0, (len(alpha), len(x))))
    return x * total


def _gradcam(net: nn.Module, x: Tensor, y: Tensor, options: Explanation, graph: bool) -> Tensor:
    """``sum_c w_c a_c`` of the activations a of the last convolution, w the spatial mean of ``df_y/da``: without a ReLU
    in the end. The original takes the ``constant`` w, with which only what is below the layer learns."""
    layer = getattr(net, "target_layer", None)
    if layer is None:
        raise ConfigError(
            f"{type(net).__name__} does not say which convolution gradcam is to look at: give it a property "
            "target_layer that returns one, or take another EXPLANATION_MODE"
        )
    outputs: list[Tensor] = []

    def cut(module: nn.Module, args: object, output: Tensor) -> Tensor:
        outputs.append(output if graph else output.detach().requires_grad_())
        return outputs[-1].clone()  # should the next layer work in place, a stays what it is

    with hooked([layer], cut):
        total = explained_score(net, x, y, options)
    a, differentiated = outputs[-1], graph and options.gradcam_weights == "differentiated"
    slope = torch.autograd.grad(total, a, retain_graph=graph, create_graph=differentiated)[0]  # total may serve a loss
    weights = slope.mean((2, 3), keepdim=True)
    return (weights * a).sum(1, keepdim=True)


def _input(net: nn.Module, x: Tensor, y: Tensor, options: Explanation, graph: bool) -> Tensor:
    """The image: the upper bound of what a critic can learn, and no way to the weights."""
    return x


METHODS: dict[str, Callable[[nn.Module, Tensor, Tensor, Explanation, bool], Tensor]] = {
    "input_x_gradient": _input_x_gradient,
    "integrated_gradient": _integrated_gradient,
    "input_x_integrated_gradient": _integrated_gradient,  # what sets it apart is in `post`
    "gradcam": _gradcam,
    "input": _input,
}


def _gradient(net: nn.Module, x: Tensor, y: Tensor, options: Explanation, graph: bool) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(explained_score(net, x, y, options), x, create_graph=graph)[0]


def explained_score(net: nn.Module, x: Tensor, y: Tensor, options: Explanation) -> Tensor:
    """``sum_b f_y(x_b)``, of which the gradient is that of each image, as the net mixes none."""
    if options.target == "logit" and not hasattr(net, "logits"):
        raise ConfigError("explanation_target 'logit' needs a network with a method logits(x); 'logprob' does not")
    output = net(x) if options.target == "logprob" else net.logits(x)
    return output.gather(1, y[:, None]).sum()


@lru_cache
def quadrature(steps: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1], float64 [steps] each."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return torch.from_numpy((1 + nodes) / 2), torch.from_numpy(weights / 2)
