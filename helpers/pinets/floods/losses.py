"""The losses of the floods study: areas alone, masks, or both (spec pinets, section 6.4).

``scores`` [B, K, H, W] are the softmax of a head, ``truth`` [B, K, H, W] the mask as one map a class; a pixel that is
of none of the classes has no data, and counts nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6  # as published


def one_hot(masks: Tensor, classes: Sequence[int]) -> Tensor:
    """int8 [B, H, W] to float32 [B, K, H, W]."""
    return torch.stack([masks == value for value in classes], 1).float()


def areas(scores: Tensor, truth: Tensor) -> Tensor:
    """[B, K]: predicted areas in pixels, of the pixels that have data."""
    return (scores * truth.sum(1, keepdim=True)).sum((2, 3))


def area_error(scores: Tensor, truth: Tensor) -> Tensor:
    """[B]: mean over the classes of |predicted - true area|, in pixels."""
    return (areas(scores, truth) - truth.sum((2, 3))).abs().mean(1)


def cross_entropy(scores: Tensor, truth: Tensor) -> Tensor:
    """[B]: binary cross-entropy of each class's map against its mask, mean over classes and pixels with data."""
    known = truth.sum(1, keepdim=True)
    with torch.autocast(scores.device.type, enabled=False):
        error = F.binary_cross_entropy(scores.float().clamp(0, 1), truth, reduction="none") * known
    return error.sum((1, 2, 3)) / (known.sum((1, 2, 3)) * truth.shape[1]).clamp_min(1)


def false_absence(scores: Tensor, truth: Tensor) -> Tensor:
    """[B]: the published FAR, mean over the classes of 1 - sum(scores * truth) / sum(truth). A class that is absent
    counts as missed."""
    found = (scores * truth).sum((2, 3)) / (truth.sum((2, 3)) + EPSILON)
    return (1 - found).mean(1)


MASK_LOSSES = {"bce": cross_entropy, "far": false_absence}


def loss_of(
    classes: Sequence[int], *, by_area: bool, mask_loss: str, expected: float
) -> Callable[[nn.Module, tuple[Tensor, Tensor, Tensor]], Tensor]:
    """``loss(model, (features, masks, labelled))`` of a PiNet (``by_area``) or of a SegNet.

    A PiNet's is the mean error of areas, plus the loss of the masks that it may see (``labelled`` bool [B]), times the
    pixels of a tile so that both count pixels, and divided by ``expected``, the labelled tiles in a mean batch: the
    same weight however many there are. A SegNet's is the mean loss of the masks.
    """

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        features, masks, labelled = batch
        scores, truth = model(features.float()).scores, one_hot(masks, classes)
        if not by_area:
            return MASK_LOSSES[mask_loss](scores, truth).mean()
        total = area_error(scores, truth).mean()
        if expected:
            supervised = (MASK_LOSSES[mask_loss](scores, truth) * labelled).sum() / expected
            total = total + supervised * masks[0].numel()
        return total

    return loss
