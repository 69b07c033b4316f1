"""Multinomial logistic regression of many splits and strengths at once, on features that stay as they are.

One design matrix serves all problems: its eigenvectors turn the features so that Böhning's bound on the Hessian is
diagonal, and every problem takes Newton-like steps that cannot overshoot, with Nesterov's momentum. All steps of all
problems are one matrix product.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import runtime

log = logging.getLogger(__name__)

STEPS = 1000  # at most
TOLERANCE = 1e-4  # largest slope of the mean loss, by the deviation along a direction, that counts as none


@dataclass(frozen=True)
class Probe:
    """Linear classifiers of P problems: weight [P, D, C] and bias [P, C] for features as they were given."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [P, N, C] of features ``x`` [N, D]."""
        return torch.einsum("nd,pdc->pnc", x, self.weight) + self.bias[:, None]


def fit(x: Tensor, y: Tensor, rows: Tensor, strengths: Sequence[float], n_classes: int) -> Probe:
    """Of each problem p the minimiser of the mean cross-entropy over its ``rows`` [P, N] (bool) of features ``x``
    [N, D] with labels ``y`` [N], plus ``strengths[p] / 2`` times the squared norm of its weights; biases are free.

    Features are standardised over all of ``x`` first (a constant one counts for nothing), so that a strength means the
    same at every stage of a network. Raises ValueError for a problem without rows or a strength that is not positive.
    """
    if len(strengths) != len(rows) or min(strengths) <= 0 or not bool(rows.any(1).all()):
        raise ValueError("each problem needs rows to learn from and a positive strength")
    mean, deviation = x.mean(0), x.std(0, correction=0)
    scale = torch.where(deviation > 1e-6 * deviation.max(), 1 / deviation, 0)
    x = (x - mean) * scale
    axes = torch.linalg.eigh((x.T @ x).cpu().double())[1].to(x)
    penalty = torch.tensor(strengths, dtype=x.dtype, device=x.device)
    weight, bias = _descend(x @ axes, F.one_hot(y, n_classes).to(x.dtype), rows.to(x.dtype), penalty)
    weight = scale[:, None] * (axes @ weight)
    return Probe(weight, bias - mean @ weight)


def _descend(z: Tensor, targets: Tensor, rows: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """(weight [P, D, C], bias [P, C]) for orthogonal columns ``z`` [N, D]. The Hessian of a problem is at most
    ``curvature`` (Böhning 1992): half the second moment of its rows, which is at most that of all rows."""
    z = F.pad(z, (0, 1), value=1.0)  # the last coefficient is the bias
    penalty = F.pad(penalty.expand(z.shape[1] - 1, -1), (0, 0, 0, 1))[:, :, None]  # [D + 1, P, 1]
    share = (rows / rows.sum(1, keepdim=True)).T[:, :, None]  # [N, P, 1]
    curvature = 0.5 * z.square().sum(0)[:, None, None] / rows.sum(1)[:, None] + penalty
    unit = (1 + z.square().mean(0)).sqrt()[:, None, None]
    found = z.new_zeros(z.shape[1], len(rows), targets.shape[1])
    place, ahead, momentum = found, found, z.new_ones(1, len(rows), 1)
    left = torch.arange(len(rows), device=z.device)  # problems that are not solved yet
    for _ in range(STEPS):
        residual = ((z @ ahead.flatten(1)).view(len(z), *ahead.shape[1:]).softmax(2) - targets[:, None]) * share
        slope = (z.T @ residual.flatten(1)).view_as(ahead) + penalty * ahead
        new = ahead - slope / curvature
        # momentum is dropped where it points uphill (O'Donoghue and Candès 2015)
        uphill = (slope * (new - place)).sum((0, 2), keepdim=True) > 0
        momentum = torch.where(uphill, 1.0, momentum)
        following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        ahead, place, momentum = new + (momentum - 1) / following * (new - place), new, following
        found[:, left] = place
        open_ = (slope / unit).abs().amax((0, 2)) > TOLERANCE
        if not open_.all():
            left, share, curvature, penalty = left[open_], share[:, open_], curvature[:, open_], penalty[:, open_]
            ahead, place, momentum = ahead[:, open_], place[:, open_], momentum[:, open_]
        if not len(left):
            break
    else:
        log.info("%d of %d probes are not quite at their minimum after %d steps", len(left), len(rows), STEPS)
    return found[:-1].transpose(0, 1), found[-1]


def folds(y: Tensor, share: float, seed: int) -> Tensor:
    """bool [N]: images to learn from; the others, ``share`` of each class and at least one, choose the strength."""
    chosen = torch.ones(len(y), dtype=torch.bool)
    draw = runtime.generator(seed, "probe", "validation")
    for label in y.unique().tolist():
        members = torch.nonzero(y == label).flatten()
        order = members[torch.randperm(len(members), generator=draw)]
        chosen[order[: max(1, round(share * len(members)))]] = False
    return chosen
