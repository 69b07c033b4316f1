"""The losses of a PiNet: prediction, recursive feedback, strong supervision, sparsity (spec section 3.4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.pinets.models import Output, as_batch


def prediction_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Batch mean of the binary cross-entropy of ``logits`` [B] and labels ``y`` [B] of 0 and 1, or of the cross-entropy
    of ``logits`` [B, K] and classes ``y`` [B]."""
    if logits.ndim == 1:
        return F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype))
    return F.cross_entropy(logits, y.long())


def area_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean absolute error of areas or counts, [B] or [B, K]: a PiNet as a regression. ``ValueError`` for unequal
    shapes."""
    if predicted.shape != true.shape:
        shapes = f"{list(predicted.shape)}, not {list(true.shape)}"
        raise ValueError(f"expected as many true areas as predicted ones, {shapes}")
    return (predicted - true).abs().mean()


def feedback_loss(model: nn.Module, output: Output) -> Tensor:
    """How much the scores change when the net sees its own detected signal: mean over batch and pixels of
    ``(scores(x) - scores(relu(scores(x) * z)))**2``. Gradients flow through both passes.

    Needs z to be something the net can be fed (z(x) = x, or the same shape).
    """
    again = model(F.relu(output.signal))
    return ((output.scores - again.scores) ** 2).mean()


def mask_loss(scores: Tensor, masks: Tensor, labelled: Tensor, expected: float = 1.0) -> Tensor:
    """Strong supervision: ``sum over labelled images of mean_pixels (mask - scores)**2 / expected``.

    ``masks`` [B, H, W] or [B, K, H, W]; ``labelled`` bool [B], the images whose mask may be used; ``expected``, the
    labelled images in a mean batch: the sum is that of one image on average, whatever the budget. 0 without any.
    ``ValueError`` for masks or labels of other shapes.
    """
    if as_batch(masks).shape != scores.shape or labelled.shape != scores.shape[:1]:
        shapes = f"{list(masks.shape)} and {list(labelled.shape)}"
        raise ValueError(f"expected masks {list(scores.shape)} and labelled [{len(scores)}], not {shapes}")
    error = ((scores - as_batch(masks).to(scores.dtype)) ** 2).mean((1, 2, 3))
    return (error * labelled.to(error.dtype)).sum() / expected


def first_positives(y: Tensor, batch_size: int) -> Tensor:
    """bool [N]: the first positive of each consecutive batch, the published bundle's rule for who carries a mask.

    It holds for the order in which training sees the images, so that order must not be shuffled. A batch without
    positives has none (the published code fails there).
    """
    labelled = torch.zeros(len(y), dtype=torch.bool)
    for start in range(0, len(y), batch_size):
        positives = (y[start : start + batch_size] > 0).nonzero()
        if len(positives):
            labelled[start + int(positives[0])] = True
    return labelled


def sparsity_loss(scores: Tensor) -> Tensor:
    """``mean_batch sum_pixels scores**2`` of ``scores`` [B, K, H, W], meant for tanh ones; no published run uses it."""
    return (scores**2).sum((1, 2, 3)).mean()


def total_loss(
    *, feedback: float = 0.0, strong: float = 0.0, sparsity: float = 0.0, expected: float = 1.0
) -> Callable[[nn.Module, tuple[Tensor, ...]], Tensor]:
    """The weighted sum as ``loss(model, (x, y, masks, labelled))``; terms of weight 0 cost nothing."""

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        x, y, masks, labelled = batch
        output = model(x)
        total = prediction_loss(output.logits, y)
        if feedback:
            total = total + feedback * feedback_loss(model, output)
        if strong:
            total = total + strong * mask_loss(output.scores, masks, labelled, expected)
        if sparsity:
            total = total + sparsity * sparsity_loss(output.scores)
        return total

    return loss
