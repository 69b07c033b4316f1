"""What the metrics share: the output that is measured, the look of absence, and random streams that belong to an image.

All values are float64 on the CPU, wherever model and images are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from helpers.attribution.base import Logit, aimed, evaluating, logits_of
from helpers.runtime import generator

Explain = Callable[[nn.Module, Tensor, Tensor | None], Tensor]
Baseline = Literal["mean"] | float | Tensor
"""How a hidden pixel looks: its image's own mean colour, a number, or a tensor broadcastable to x."""

BATCH = 128  # rows that go through a model at a time


@torch.no_grad()
def output(
    model: nn.Module, x: Tensor, target: Tensor | None, *, probability: bool = True, batch: int = BATCH
) -> Tensor:
    """The target's ``probability``, or else its logit, for each of the images x [N, C, H, W]: [N]."""
    with evaluating(model):
        parts = [Logit(model, targets)(images, probability) for images, targets in _parts(x, target, batch)]
    return torch.cat(parts).cpu().double()


@torch.no_grad()
def logits(model: nn.Module, x: Tensor, *, batch: int = BATCH) -> Tensor:
    """All logits of the images x [N, C, H, W]: [N, K]."""
    with evaluating(model):
        return torch.cat([logits_of(model, images) for images in x.split(batch)]).cpu().double()


def predicted(logits: Tensor) -> Tensor:
    """The class of the highest logit, [N]; of a single logit, whether it is positive."""
    return logits.argmax(-1) if logits.shape[-1] > 1 else (logits[..., 0] > 0).long()


def explained(explain: Explain, model: nn.Module, x: Tensor, target: Tensor | None, *, batch: int = BATCH) -> Tensor:
    """The heat maps of the images x [N, C, H, W], whatever their explainer, of the model in eval mode: [N, H, W].
    Raises ``ValueError`` if they are none."""
    with evaluating(model):
        return checked(x, torch.cat([explain(model, *part).detach() for part in _parts(x, target, batch)]))


def checked(x: Tensor, heat: Tensor) -> Tensor:
    """``heat`` as float64 on the CPU; ``ValueError`` unless it is finite and [N, H, W] for x [N, C, H, W]."""
    if x.ndim != 4 or heat.shape != (len(x), *x.shape[2:]):
        raise ValueError(f"expected x [N, C, H, W] and heat [N, H, W], not {tuple(x.shape)} and {tuple(heat.shape)}")
    return finite(heat)


def finite(heat: Tensor) -> Tensor:
    """``heat`` as float64 on the CPU; ``ValueError`` for NaN and infinite values."""
    if not heat.isfinite().all():
        raise ValueError("heat holds NaN or infinite values")
    return heat.detach().cpu().double()


def filled(x: Tensor, baseline: Baseline) -> Tensor:
    """Images of the size of x that show nothing but the ``baseline``."""
    if isinstance(baseline, str):
        if baseline != "mean":
            raise ValueError(f"expected a number, a tensor or 'mean' as baseline, not {baseline!r}")
        return x.mean((2, 3), keepdim=True).expand_as(x)
    return torch.as_tensor(baseline, dtype=x.dtype, device=x.device).expand_as(x)


def hidden(image: Tensor, fill: Tensor, where: Tensor) -> Tensor:
    """The ``image`` [C, H, W] with ``fill`` [C, H, W] in the places ``where`` [n, H, W] is true: [n, C, H, W]."""
    return torch.where(where[:, None].to(image.device), fill, image)


def streams(x: Tensor, seed: int, name: str) -> list[torch.Generator]:
    """A stream for each image, told by its content: equal images have equal draws, in whatever batch they stand."""
    digests = [hashlib.sha256(image.detach().float().cpu().numpy().tobytes()).hexdigest() for image in x]
    return [generator(seed, name, digest) for digest in digests]


def targets(target: Tensor | None, index: int, count: int) -> Tensor | None:
    """The target of image ``index``, ``count`` times."""
    return None if target is None else target[index].expand(count)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, along the last axis; NaN where a or b is constant (up to the rounding of sums)."""
    centred = [values - values.mean(-1, keepdim=True) for values in (a, b)]
    norms = [values.norm(dim=-1) for values in centred]
    flat = [norm <= 1e-12 * values.norm(dim=-1) for norm, values in zip(norms, (a, b), strict=True)]
    result = (centred[0] * centred[1]).sum(-1) / (norms[0] * norms[1])
    return result.clamp(-1, 1).masked_fill(flat[0] | flat[1], torch.nan)


def _parts(x: Tensor, target: Tensor | None, batch: int) -> list[tuple[Tensor, Tensor | None]]:
    target = aimed(x, target)
    labels = [None] * -(-len(x) // batch) if target is None else target.split(batch)
    return list(zip(x.split(batch), labels, strict=True))
