"""How far every cell of a feature map is from every prototype, and how similar that makes them (spec section 2.3).

float32 throughout, whatever surrounds it: near a distance of 0 the logarithm turns the last digits of a distance into
the second digit of a similarity.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from helpers.prototypes.presets import Activation, Distance

TINY = 1e-12  # the length of a vector that counts as none


def distances(z: Tensor, prototypes: Tensor, kind: Distance) -> Tensor:
    """float32 [B, P, H, W]: the distance of each cell of z [B, D, H, W] to each of ``prototypes`` [P, D].

    ``cosine``: one minus the cosine, in [0, 2]; a vector of zeros is 1 from everything. ``l2``: the squared Euclidean
    distance. The map lies in memory with the prototypes innermost (``channels_last``).
    """
    with full_precision(z):
        cells = z.float().permute(0, 2, 3, 1).flatten(0, 2)
        found = {"cosine": _cosine, "l2": _squared}[kind](cells, prototypes.float())
        with torch.no_grad():  # what leaves the range is rounding: the gradient stays that of the formula
            found.clamp_(0, 2 if kind == "cosine" else None)
    return found.view(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)


def similarity(distance: Tensor, activation: Activation, kind: Distance, epsilon: float) -> Tensor:
    """float32, of the shape of ``distance``, and falling with it: ``log`` is ln(1 / (d + epsilon) + 1), ``linear`` is
    1 - d for cosine distances and -d for squared ones."""
    with full_precision(distance):
        distance = distance.float()
        if activation == "log":
            return torch.log1p((distance + epsilon).reciprocal())
        return 1 - distance if kind == "cosine" else -distance


def full_precision(x: Tensor) -> AbstractContextManager:
    """No autocast inside, on the device of ``x``."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


# One matrix product each: a 1 x 1 convolution would be rounded to TF32, three digits, on GPUs.


def _cosine(cells: Tensor, prototypes: Tensor) -> Tensor:
    return torch.addmm(cells.new_ones(()), _unit(cells), _unit(prototypes).T, alpha=-1)


def _squared(cells: Tensor, prototypes: Tensor) -> Tensor:
    # |z|^2 - 2 z.p + |p|^2, without what all have in common: smaller numbers cancel with less error
    common = prototypes.detach().mean(0)
    cells, prototypes = cells - common, prototypes - common
    ones, more = (torch.ones_like(vectors[:, :1]) for vectors in (cells, prototypes))
    left = torch.cat([cells, cells.square().sum(1, keepdim=True), ones], dim=1)
    right = torch.cat([-2 * prototypes, more, prototypes.square().sum(1, keepdim=True)], dim=1)
    return left @ right.T


def _unit(vectors: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays one, and has no gradient."""
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors * torch.where(length > TINY, length.clamp_min(TINY).reciprocal(), 0)
