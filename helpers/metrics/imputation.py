"""ROAD: hidden pixels show what their neighbours let one guess, so that the hiding itself says nothing.

Quantus 0.6 has the same imputation, but averages over the first batch only, and cannot hide pixels of several channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from helpers.attribution.base import aimed
from helpers.metrics.base import BATCH, checked, logits, predicted, streams

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class Road(NamedTuple):
    """``score`` [B]; ``correct`` [B, P] bool: is the target predicted with so many per cent of the pixels hidden?"""

    score: Tensor
    correct: Tensor


def road(
    model: nn.Module,
    x: Tensor,
    target: Tensor | None,
    heat: Tensor,
    *,
    percentages: Sequence[float] = (10, 20, 30, 40, 50, 60, 70, 80, 90),
    least_first: bool = False,
    noise: float = 0.01,
    seed: int = 0,
    batch: int = BATCH,
) -> Road:
    """Remove and debias (arXiv 2202.00449): the share of the ``percentages`` at which the target is still predicted.

    The most relevant pixels go first: lower is more faithful; with ``least_first``, the least relevant, and higher is.
    They show `imputed` values and ``noise`` * N(0, 1). A single logit ignores the target: the prediction has to stay.
    Raises ``ValueError`` for a target that there is not.
    """
    heat, target = checked(x, heat).flatten(1), aimed(x, target)
    if not all(0 < percentage < 100 for percentage in percentages):
        raise ValueError(f"percentages must be between 0 and 100, not {tuple(percentages)}")
    ranks = heat.argsort(dim=1, descending=not least_first, stable=True).argsort(1)
    counts = torch.tensor([int(heat.shape[1] * percentage / 100) for percentage in percentages])
    step = ranks[:, None] < counts[:, None]  # [B, P, H * W]
    weights, correct = _weights(*x.shape[2:]), []
    for i, stream in enumerate(streams(x, seed, "road")):
        masks = step[i].unflatten(1, x.shape[2:])
        rows = torch.stack([imputed(x[i], mask, weights) for mask in masks])
        rows += noise * masks[:, None] * torch.randn(rows.shape, generator=stream)
        classes = predicted(outputs := logits(model, torch.cat([x[i : i + 1], rows.to(x)]), batch=batch))
        if (count := outputs.shape[1]) > 1 and (target is None or not 0 <= target[i] < count):
            raise ValueError(f"expected for each image a target of 0..{count - 1}, not {target}")
        correct.append(classes[1:] == (classes[0] if count == 1 else target[i].cpu()))
    correct = torch.stack(correct)
    return Road(correct.double().mean(1), correct)


def imputed(image: Tensor, where: Tensor, weights: csr_array | None = None) -> Tensor:
    """The ``image`` [C, H, W] where each pixel ``where`` [H, W] is the weighted mean of its eight neighbours, hidden
    ones included: float64 on the CPU. The four next to it weigh twice as much as those at its corners; ``weights`` are
    those of the size of the image, if at hand. ``where`` must not cover everything."""
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import splu

    weights = _weights(*where.shape) if weights is None else weights
    gone = where.cpu().numpy().ravel()
    values = image.detach().cpu().double().numpy().reshape(len(image), -1).T.copy()  # [H * W, C]
    if gone.all():
        raise ValueError("there is nothing left to guess the hidden pixels from")
    if gone.any():
        rows = weights[gone]
        system = diags_array(rows.sum(1)) - rows[:, gone]  # symmetric and positive definite
        options = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}
        values[gone] = splu(system.tocsc(), **options).solve(rows[:, ~gone] @ values[~gone])
    return torch.from_numpy(values.T.reshape(image.shape).copy())


def _weights(height: int, width: int) -> csr_array:
    """[H * W, H * W]: 1/6 between pixels that share a side, 1/12 between those that share a corner."""
    from scipy.sparse import diags_array, eye_array, kron

    def line(side: int, centre: float) -> csr_array:
        return diags_array([np.ones(side - 1)] * 2, offsets=[-1, 1]) + centre * eye_array(side)

    # (e + 2) x (e + 2), e the neighbours on a line, is 1 at corners, 2 at sides, and 4 at the pixel itself.
    both = kron(line(height, 2.0), line(width, 2.0)) - 4 * eye_array(height * width)
    both = both.tocsr() / 12
    both.eliminate_zeros()
    return both
