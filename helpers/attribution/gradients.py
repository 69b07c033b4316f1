"""Maps from the gradient of the logit: at the image, along a path, in a neighbourhood, at a layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.attribution.base import Baseline, Logit, collapse, hooked, like, method
from helpers.config import ConfigError, suggest
from helpers.runtime import generator


def input_gradient(y: Logit, x: Tensor) -> Tensor:
    """``dy/dx`` of each image: [B, C, H, W]."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(y(x).sum(), x)[0]


@method
def gradient(y: Logit, x: Tensor, *, signed: bool = False) -> Tensor:
    """Vanilla gradient ``dy/dx`` (arXiv 1312.6034), a sensitivity; ``signed`` sums it over channels."""
    return collapse(input_gradient(y, x), signed)


@method
def input_x_gradient(y: Logit, x: Tensor) -> Tensor:
    """``x * dy/dx`` (arXiv 1605.01713): contributions, exact for a linear model."""
    return collapse(x * input_gradient(y, x))


@method
def integrated_gradients(
    y: Logit, x: Tensor, *, steps: int = 50, baseline: Baseline = 0.0, batch_size: int = 32
) -> Tensor:
    """``(x - b) * integral_0^1 dy/dx(b + a (x - b)) da`` (arXiv 1703.01365), by Captum.

    The map sums to ``y(x) - y(b)``, up to the error of ``steps`` Gauss-Legendre nodes; b is the ``baseline``.
    """
    from captum.attr import IntegratedGradients

    path, size = (x.requires_grad_(), like(x, baseline)), max(batch_size, len(x))
    return collapse(IntegratedGradients(y).attribute(*path, n_steps=steps, internal_batch_size=size))


@method
def smooth_grad(
    y: Logit, x: Tensor, *, samples: int = 50, noise: float = 0.15, signed: bool = False, seed: int = 0
) -> Tensor:
    """Mean of ``dy/dx(x + e)``, ``e ~ N(0, sigma^2)`` (arXiv 1706.03825), collapsed like `gradient`.

    ``noise`` is sigma as a fraction of the image's own range, as in the paper.
    """
    draws = generator(seed, "smooth_grad")
    sigma = noise * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))
    total = sum(input_gradient(y, x + sigma * _normal(x, draws)) for _ in range(samples))
    return collapse(total / samples, signed)


@method
def gradient_shap(
    y: Logit, x: Tensor, *, samples: int = 50, baselines: Baseline = 0.0, noise: float = 0.0, seed: int = 0
) -> Tensor:
    """Mean of ``(x' - b) * dy/dx(b + a (x' - b))`` (arXiv 1705.07874): integrated gradients at random.

    ``a ~ U(0, 1)``; b is drawn from ``baselines``, a number or [M, C, H, W]; ``x' = x + noise * N(0, 1)``.
    """
    draws = generator(seed, "gradient_shap")
    references = baselines.to(x) if isinstance(baselines, Tensor) else torch.full_like(x[:1], baselines)
    total = torch.zeros_like(x)
    for _ in range(samples):
        reference = references[torch.randint(len(references), (), generator=draws)]
        along = torch.rand((), generator=draws).item()
        path = x + noise * _normal(x, draws) - reference
        total += path * input_gradient(y, reference + along * path)
    return collapse(total / samples)


@method
def grad_cam(y: Logit, x: Tensor, *, layer: str | nn.Module, relu: bool = True) -> Tensor:
    """Grad-CAM (arXiv 1610.02391): ``ReLU(sum_c w_c A_c)``, ``w_c`` the spatial mean of ``dy/dA_c``.

    A [B, c, h, w] is the output of ``layer``, a module of the model or its dotted name: as a rule the last
    that has space. Upsampled bilinearly to x's size (``align_corners=False``).
    """
    outputs: list[Tensor] = []

    def cut(module: nn.Module, args: object, output: Tensor) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise ValueError(f"grad_cam needs a layer that returns [B, c, h, w]; {layer!r} does not")
        outputs.append(output.detach().requires_grad_())  # nothing before the layer needs a gradient
        return outputs[-1].clone()  # should the next layer work in place, A stays what it is

    with hooked([_layer(y.model, layer)], cut):
        total = y(x).sum()
    if len(outputs) != 1:
        raise ValueError(f"grad_cam needs a layer that runs once; {layer!r} ran {len(outputs)} times")
    weights = torch.autograd.grad(total, outputs[0])[0].mean((2, 3), keepdim=True)
    cam = collapse(weights * outputs[0])[:, None]
    return F.interpolate(cam.relu() if relu else cam, x.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def _layer(model: nn.Module, layer: str | nn.Module) -> nn.Module:
    layers = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    if isinstance(layer, str):
        if layer not in layers:
            raise ConfigError(f"unknown layer {layer!r}: {suggest(layer, layers)}")
        return layers[layer]
    if all(layer is not module for module in layers.values()):
        raise ConfigError(f"the {type(layer).__name__} given as layer is not a part of the model")
    return layer


def _normal(x: Tensor, draws: torch.Generator) -> Tensor:
    """Standard normal noise for one image, drawn on the CPU: the same for every image and on every device."""
    return torch.randn(x.shape[1:], generator=draws).to(x)
