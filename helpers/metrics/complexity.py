"""How few pixels a map takes to say what it says. Both see magnitudes only, and no scale; NaN and infinite values are a
``ValueError``."""

from __future__ import annotations

import torch
from torch import Tensor

from helpers.metrics.base import finite


def sparseness(heat: Tensor) -> Tensor:
    """Gini index of ``|heat|`` [N, H, W]: 0 for a flat map, ``1 - 1/n`` if one of n pixels has it all (arXiv
    1810.06583): [N]. Higher is sparser. Zeros are flat."""
    mass = finite(heat).abs().flatten(1).sort(1).values
    n = mass.shape[1]
    weights = 2 * torch.arange(1, n + 1) - n - 1
    return ((mass * weights).sum(1) / (n * mass.sum(1))).nan_to_num(0)


def entropy(heat: Tensor) -> Tensor:
    """Entropy, in nats, of ``|heat|`` [N, H, W] as shares of its sum, the metric complexity (arXiv 2005.00631): [N].

    Lower is simpler: ``log n`` for a flat map of n pixels (zeros are flat), 0 if one pixel has it all.
    """
    mass = finite(heat).abs().flatten(1)
    mass = torch.where(mass.sum(1, keepdim=True) > 0, mass, 1)
    return torch.special.entr(mass / mass.sum(1, keepdim=True)).sum(1)
