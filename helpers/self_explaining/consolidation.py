"""Whether explanations of one class are alike and those of others are not (spec sections 6.3 and 6.4).

Both numbers are ruled by the scale of the maps: the spec's vanilla net has a ridge accuracy of 48 % with maps divided
by the batch's maximum, of 99 % with maps divided each by its own. Nothing is to be concluded from one norm alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TRAINED_ON = 0.8  # of the maps, in their order; the ridge classifier is tested on the others
ROWS = 1024  # encodings that are compared with the means at a time


class Similarity(NamedTuple):
    """Means over classes of how far a class's encodings are from their mean, relative to how far others are: lower is
    better. NaN where there is nothing to compare with: one class only, or means that coincide."""

    iies: float
    """mean distance to the own mean / mean distance of that to the other means"""
    max_intra_min_inter_mean: float
    """largest distance to the own mean / distance of that to the nearest other mean"""
    max_intra_mean_inter_mean: float
    """largest distance to the own mean / mean distance of that to the other means"""
    max_intra_closest_foreign: float
    """largest distance to the own mean / distance of that to the nearest encoding of another class"""


def similarity(encodings: Tensor, labels: Tensor) -> Similarity:
    """Inter- and intra-class explanation similarity of ``encodings`` [M, D] with ``labels`` [M] (spec 6.3).

    ``iies = mean_k(a_k / b_k)``: a_k is the mean distance of class k's encodings to their mean mu_k, b_k the mean
    distance of mu_k to the other means. The other three the spec names only; `Similarity` says how they are read here.
    Raises ``ValueError`` for shapes that do not fit and encodings that are not finite.
    """
    encodings, labels = _checked(encodings, labels)
    classes, own = labels.unique(return_inverse=True)
    if len(classes) == 1:
        return Similarity(*[float("nan")] * len(Similarity._fields))
    chunks, sizes = encodings.split(ROWS), own.bincount()
    means = torch.zeros(len(classes), encodings.shape[1], dtype=torch.float64)
    for rows, places in zip(chunks, own.split(ROWS), strict=True):
        means.index_add_(0, places, rows.double())
    means /= sizes[:, None]

    distances, member = torch.cat([_distances(rows.double(), means) for rows in chunks]), F.one_hot(own).bool()
    to_own, between = distances.masked_fill(~member, 0), _distances(means, means)
    mean_intra, max_intra = to_own.sum(0) / sizes, to_own.amax(0)
    mean_inter = between.sum(1) / (len(classes) - 1)
    min_inter = between.fill_diagonal_(torch.inf).amin(1)
    closest_foreign = distances.masked_fill(member, torch.inf).amin(0)
    ratios = (mean_intra, mean_inter), (max_intra, min_inter), (max_intra, mean_inter), (max_intra, closest_foreign)
    return Similarity(*(float(torch.where(b > 0, a / b, torch.nan).mean()) for a, b in ratios))


def ridge_accuracy(maps: Tensor, labels: Tensor) -> float:
    """Percent of the last fifth of ``maps`` [M, ...] whose ``labels`` [M] are found by a linear ridge classifier that
    was fitted to the first four fifths (spec 6.4): regularisation 1, an intercept, targets 1 for the class and else -1.

    The same as scikit-learn's ``RidgeClassifier(alpha=1)``, in closed form. Raises ``ValueError`` for shapes that do
    not fit and maps that are not finite.
    """
    maps, labels = _checked(maps.flatten(1), labels)
    cut = int(TRAINED_ON * len(maps))
    x, targets = maps[:cut].double(), 2 * F.one_hot(labels, int(labels.max()) + 1)[:cut].double() - 1
    centre, level = x.mean(0), targets.mean(0)
    x = x - centre
    gram = x.T @ x + torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.cholesky_solve(x.T @ (targets - level), torch.linalg.cholesky(gram))
    found = ((maps[cut:].double() - centre) @ weights + level).argmax(1)
    return 100 * float((found == labels[cut:]).double().mean())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean, [len(a), len(b)]; 0 to the bit between equal rows."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _checked(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the CPU, detached."""
    if values.ndim != 2 or labels.shape != values.shape[:1] or len(values) < 2:
        raise ValueError(
            f"expected two explanations or more, each with a label, not {tuple(values.shape)} and {tuple(labels.shape)}"
        )
    if not values.isfinite().all():
        raise ValueError("the explanations hold NaN or infinite values")
    return values.detach().cpu(), labels.detach().cpu()
