"""Whether a map points at the target, where masks say where that is. Maps of NaN or infinite values are a
``ValueError``.

Quantus 0.6 gives an image without a target to the map (NaN becomes True in its array of hits), gives it a tie if any of
the highest pixels hits (so a constant map always wins), and divides by sums in which negative relevance cancels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from helpers.metrics.base import finite


def pointing_game(heat: Tensor, masks: Tensor) -> Tensor:
    """1 if the highest pixel of ``heat`` [N, H, W] is in ``masks`` [N, H, W], else 0; among equals, the share of those
    that are: [N], NaN without a target. Higher is better (arXiv 1608.00507)."""
    heat, masks = _flat(heat, masks)
    highest = (heat == heat.amax(1, keepdim=True)).double()
    return _defined((highest * masks).sum(1) / highest.sum(1), masks)


def relevance_mass(heat: Tensor, masks: Tensor) -> Tensor:
    """Share of the positive part of ``heat`` [N, H, W] that is in ``masks`` [N, H, W]: [N], NaN without a target, 0
    without a positive part. Higher is better (arXiv 2003.07258)."""
    heat, masks = _flat(heat, masks)
    positive = heat.clamp(min=0)
    return _defined(((positive * masks).sum(1) / positive.sum(1)).nan_to_num(0), masks)


def _flat(heat: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    if heat.shape != masks.shape or heat.ndim != 3:
        raise ValueError(f"heat and masks must both be [N, H, W], not {tuple(heat.shape)} and {tuple(masks.shape)}")
    return finite(heat).flatten(1), (masks.cpu() > 0).double().flatten(1)


def _defined(values: Tensor, masks: Tensor) -> Tensor:
    return torch.where(masks.any(1), values, torch.nan)
