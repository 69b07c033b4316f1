"""Explanation-quality metrics. Each takes heat maps [N, H, W] and returns one value a sample, or curves of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

THRESHOLDS = np.logspace(-4, 0, 100)
"""The grid on which a normalised map is thresholded (spec section 4.2)."""


@dataclass(frozen=True)
class DetectionCurve:
    """Detection at each threshold t, of maps binarised by ``heat > t``: all float64 [T].

    ``tdr``, the true detection rate, is averaged over the images that have a target; ``tar``, the true abstraction
    rate, over all images; ``score`` is their product.
    """

    thresholds: np.ndarray
    tdr: np.ndarray
    tar: np.ndarray

    @property
    def score(self) -> np.ndarray:
        return self.tdr * self.tar

    @property
    def best(self) -> int:
        """Index of the highest score (the first of equals)."""
        return int(np.argmax(self.score))


def detection_rates(heat: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """(TDR, TAR) of each image, for soft maps in [0, 1] or binary ones: float64 [N] each.

    ``TDR = sum(heat * mask) / sum(mask)`` (NaN without a target), ``TAR = sum((1 - heat) * (1 - mask)) / sum(1 -
    mask)`` (NaN without background). ``heat`` and ``masks`` [N, H, W]; arXiv 2601.04378, equation 12 and above.
    Raises ``ValueError`` for other or unequal shapes, for NaN or infinite values, and for maps or masks outside [0, 1].
    """
    heat, masks = _checked(heat, masks)
    if heat.numel() and not 0 <= heat.min() <= heat.max() <= 1:
        raise ValueError(f"maps must lie in [0, 1], not between {heat.min():g} and {heat.max():g}: normalise them")
    heat, masks = heat.double().flatten(1), masks.double().flatten(1)
    tdr = (heat * masks).sum(1) / masks.sum(1)
    tar = ((1 - heat) * (1 - masks)).sum(1) / (1 - masks).sum(1)
    return tdr, tar


def mean_detection(heat: Tensor, masks: Tensor) -> dict[str, float]:
    """``{"tdr", "tar", "score"}``: the means over the images where each is defined, and their product."""
    tdr, tar = (float(rate.nanmean()) for rate in detection_rates(heat, masks))
    return {"tdr": tdr, "tar": tar, "score": tdr * tar}


def detection_curve(heat: Tensor, masks: Tensor, thresholds: np.ndarray = THRESHOLDS) -> DetectionCurve:
    """TDR and TAR at every threshold, from one pass: each pixel is put between two thresholds once, and counted.

    ``heat`` [N, H, W] of any scale, ``masks`` [N, H, W] of 0 and 1, ``thresholds`` [T] ascending.
    Raises ``ValueError`` for thresholds that do not ascend, for masks of other values, and as `detection_rates` for
    shapes and values that are not finite.
    """
    heat, masks = _checked(heat, masks)
    if ((masks != 0) & (masks != 1)).any():
        raise ValueError("masks must hold 0 and 1 alone: what counts as target where a mask is between them?")
    if (np.diff(thresholds) < 0).any():
        raise ValueError("thresholds must ascend")
    n, bins = len(heat), len(thresholds) + 1
    bucket = _exceeded(heat.flatten(1), thresholds)  # the pixel survives the thresholds with a lower index
    bucket += torch.arange(n, device=heat.device, dtype=torch.int32)[:, None] * bins
    inside = masks.flatten(1) > 0
    total = torch.bincount(bucket.flatten(), minlength=n * bins).view(n, bins).double()
    target = torch.bincount(bucket[inside], minlength=n * bins).view(n, bins).double()
    background = total - target
    detected = 1 - target.cumsum(1)[:, :-1] / target.sum(1, keepdim=True)
    abstained = background.cumsum(1)[:, :-1] / background.sum(1, keepdim=True)
    return DetectionCurve(thresholds, detected.nanmean(0).cpu().numpy(), abstained.nanmean(0).cpu().numpy())


def detection_range(score: np.ndarray, level: float, thresholds: np.ndarray = THRESHOLDS) -> tuple[float, float] | None:
    """(lowest, highest) threshold whose score exceeds ``level``; None if there is none (spec section 4.3). Raises
    ``ValueError`` unless ``score`` [T] is at the ``thresholds`` [T]."""
    if len(score) != len(thresholds):
        raise ValueError(f"{len(score)} scores are not at {len(thresholds)} thresholds: give the curve's own")
    above = np.flatnonzero(np.asarray(score) > level)
    return (float(thresholds[above[0]]), float(thresholds[above[-1]])) if len(above) else None


def range_length(score: np.ndarray, level: float, thresholds: np.ndarray = THRESHOLDS) -> float:
    """Decades between the ends of `detection_range`; 0 if there is none."""
    ends = detection_range(score, level, thresholds)
    return float(np.log10(ends[1]) - np.log10(ends[0])) if ends else 0.0


def _exceeded(values: Tensor, thresholds: np.ndarray) -> Tensor:
    """int32, the shape of ``values``: how many of the ascending ``thresholds`` (float64) each value is greater than.

    A float32 is greater than a float64 exactly if it is greater than the next float32 below that. The upper half of
    its bits puts a float32 into one of 2**16 cells, in the order of the values; a table says how many thresholds lie in
    lower cells, and only those in the same cell remain to compare with: several times as fast as a binary search.
    """
    exact = torch.from_numpy(np.asarray(thresholds, np.float64))
    edges = exact.float()
    edges = torch.where(edges > exact, edges.nextafter(torch.tensor(-torch.inf)), edges) + 0.0  # + 0.0 makes -0.0 0.0
    cells = _cells(edges)
    comparisons = int(cells.unique(return_counts=True)[1].max())
    if values.dtype == torch.float64 or comparisons > 8:
        return torch.bucketize(values.double(), exact.to(values.device), out_int32=True)
    lower = torch.searchsorted(cells, torch.arange(2**16, dtype=torch.int32), out_int32=True).to(values.device)
    edges = torch.cat([edges, torch.tensor([torch.inf])]).to(values.device)
    values = values.float()
    count = lower.index_select(0, _cells(values).flatten()).view(values.shape)
    for _ in range(comparisons):
        count += values > edges.index_select(0, count.flatten()).view(values.shape)
    return count


def _cells(values: Tensor) -> Tensor:
    """int32 in [0, 2**16): the upper half of float32 bits, put in the order of the values."""
    bits = values.contiguous().view(torch.int32)
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> 16) + 2**15


def _checked(heat: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    if heat.shape != masks.shape or heat.ndim != 3:
        raise ValueError(f"heat and masks must both be [N, H, W], not {tuple(heat.shape)} and {tuple(masks.shape)}")
    if heat.numel() and not all(torch.isfinite(extreme) for extreme in heat.aminmax()):
        raise ValueError("heat holds NaN or infinite values")
    if masks.numel() and not 0 <= masks.min() <= masks.max() <= 1:
        raise ValueError(f"masks must lie in [0, 1], not between {masks.min()} and {masks.max()}")
    return heat, masks
