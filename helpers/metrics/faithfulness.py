"""Whether what a map calls relevant moves the model: parts of the image are hidden, and the output is measured.

Each image goes through the model by itself, with all its maskings in one batch: its score cannot depend on its batch
mates. A hidden pixel is hidden in all channels. ``f`` is the target's probability, or its logit where the docstring
says so. ROAD, which guesses what is hidden from the neighbouring pixels, stands in `helpers.metrics.imputation`.

Quantus 0.6 hides single channels of pixels, or (IROF) refuses images of several; its IROF takes the mean of the whole
batch, already masked, as baseline; its curves leave out the whole image (s = 0); its infidelity never puts a square
back before it removes the next, and repeats the same squares for ``n_perturb_samples``; its ``np.trapz`` is gone from
NumPy 2.4.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from helpers.attribution.base import aimed
from helpers.metrics.base import BATCH, Baseline, checked, correlation, filled, hidden, output, streams, targets


class Irof(NamedTuple):
    """``aoc`` [B]; ``curves`` [B, S + 1]: q_0..q_S, NaN past the last segment of an image that has fewer."""

    aoc: Tensor
    curves: Tensor


class Flipping(NamedTuple):
    """``auc`` [B]; ``curves`` [B, S + 1]: f with the s most relevant of S parts hidden, NaN past an image's last."""

    auc: Tensor
    curves: Tensor


def superpixels(x: Tensor, *, segments: int = 100) -> Tensor:
    """SLIC superpixels of each image, by scikit-image: labels int64 [B, H, W] from 0, about ``segments`` of them.

    A 32 x 32 image of one channel has 121 as a rule. Three channels are compared as colours (CIELAB): a photograph of
    160 x 160 has some 60, coloured noise hardly any.
    """
    from skimage.segmentation import slic

    images = x.detach().cpu().double().permute(0, 2, 3, 1).numpy()
    labels = [slic(image, n_segments=segments, start_label=0, channel_axis=-1) for image in images]
    return torch.from_numpy(np.stack(labels)).long()


def irof(
    model: nn.Module,
    x: Tensor,
    target: Tensor | None,
    heat: Tensor,
    *,
    segments: Tensor | None = None,
    baseline: Baseline = "mean",
    batch: int = BATCH,
) -> Irof:
    """Iterative removal of features (arXiv 2003.08747), as area over the curve: higher is more faithful.

    Superpixels ``segments`` [B, H, W] (those of `superpixels` if not given) are ranked by mean heat, equal ones by
    label, and hidden one after the other: ``q_s = p(x^(s)) / p(x)``, ``aoc = 1 - trapz(q_0..q_S) / S``, at most 1 and
    0 if nothing happens (spec 6.2). Raises ``ValueError`` where p(x) is 0.
    """
    segments = superpixels(x) if segments is None else segments
    curves = _hiding(model, x, target, _ranks(checked(x, heat), segments), baseline, batch)
    if not (curves[:, 0] > 0).all():
        raise ValueError(f"IROF is relative to p(x), which is 0 for image {int((curves[:, 0] <= 0).nonzero()[0])}")
    curves = curves / curves[:, :1]
    return Irof(1 - _area(curves), curves)


def pixel_flipping(
    model: nn.Module,
    x: Tensor,
    target: Tensor | None,
    heat: Tensor,
    *,
    steps: int = 64,
    baseline: Baseline = "mean",
    batch: int = BATCH,
) -> Flipping:
    """Pixels are hidden from the most to the least relevant, in ``steps`` of equal size (doi
    10.1371/journal.pone.0130140): the mean height of the curve f(x^(0))..f(x^(S)), lower is more faithful.
    Raises ``ValueError`` without a step."""
    if steps < 1:
        raise ValueError(f"expected at least one step, not {steps}")
    heat = checked(x, heat)
    order = heat.flatten(1).argsort(dim=1, descending=True, stable=True)
    steps = min(steps, order.shape[1])
    step = (order.argsort(1) * steps).div(order.shape[1], rounding_mode="floor").view(heat.shape)
    curves = _hiding(model, x, target, step, baseline, batch)
    return Flipping(_area(curves), curves)


def selectivity(
    model: nn.Module,
    x: Tensor,
    target: Tensor | None,
    heat: Tensor,
    *,
    patch: int = 4,
    baseline: Baseline = "mean",
    batch: int = BATCH,
) -> Flipping:
    """`pixel_flipping` of square patches of ``patch`` x ``patch`` pixels, ranked by mean heat (arXiv 1706.07979;
    those at the right and lower edge may be smaller). Lower is more faithful."""
    rows, columns = (torch.arange(side) // patch for side in x.shape[2:])
    blocks = rows[:, None] * (int(columns[-1]) + 1) + columns
    curves = _hiding(model, x, target, _ranks(checked(x, heat), blocks.expand(len(x), -1, -1)), baseline, batch)
    return Flipping(_area(curves), curves)


def faithfulness_correlation(
    model: nn.Module,
    x: Tensor,
    target: Tensor | None,
    heat: Tensor,
    *,
    draws: int = 100,
    share: float = 0.2,
    baseline: Baseline = "mean",
    probability: bool = False,
    seed: int = 0,
    batch: int = BATCH,
) -> Tensor:
    """Pearson's correlation of ``sum_S heat`` and ``f(x) - f(x without S)`` over ``draws`` random sets S of pixels, a
    ``share`` of the image each (arXiv 2005.00631): [B], higher is more faithful, NaN if either never changes.

    f is the logit, or the ``probability``. Raises ``ValueError`` for a share that is none.
    """
    if not 0 < share <= 1:
        raise ValueError(f"expected a share of the pixels above 0 and at most 1, not {share}")
    pixels = x[0, 0].numel()
    size = max(1, round(share * pixels))
    sets = (
        torch.zeros(draws, pixels, dtype=torch.bool)
        .scatter(1, torch.rand(draws, pixels, generator=stream).topk(size).indices, True)
        .unflatten(1, x.shape[2:])
        for stream in streams(x, seed, "faithfulness_correlation")
    )
    return correlation(*_sums_and_drops(model, x, target, checked(x, heat), sets, baseline, probability, batch))


def infidelity(
    model: nn.Module,
    x: Tensor,
    target: Tensor | None,
    heat: Tensor,
    *,
    draws: int = 100,
    side: int = 8,
    baseline: Baseline = "mean",
    local: bool = False,
    scaled: bool = True,
    probability: bool = False,
    seed: int = 0,
    batch: int = BATCH,
) -> Tensor:
    """``mean_S (sum_S heat - (f(x) - f(x without S)))^2`` over random squares S of ``side`` pixels (arXiv 1901.09392):
    [B], lower is more faithful.

    The heat of a pixel is what it contributes to f; of a ``local`` map, a gradient, it is multiplied by how much the
    pixel changed. ``scaled`` multiplies each map by the number that serves it best, without which methods of different
    units cannot be compared; a map of zeros then has the mean of ``(f(x) - f(x without S))^2``, and none has more. f is
    the logit, or the ``probability``.
    """
    heat, fill, (height, width) = checked(x, heat), filled(x, baseline), x.shape[2:]
    if not 1 <= side <= min(height, width):
        raise ValueError(f"squares of {side} pixels are not in images of {height} x {width}")
    sets = (_squares(draws, side, height, width, stream) for stream in streams(x, seed, "infidelity"))
    weights = heat * (x - fill).sum(1).cpu().double() if local else heat
    sums, drops = _sums_and_drops(model, x, target, weights, sets, baseline, probability, batch)
    if scaled:
        sums = sums * ((sums * drops).sum(1, keepdim=True) / sums.square().sum(1, keepdim=True)).nan_to_num(0)
    return (sums - drops).square().mean(1)


def _squares(draws: int, side: int, height: int, width: int, stream: torch.Generator) -> Tensor:
    """bool [draws, H, W]: a square in each, anywhere."""

    def spans(length: int) -> Tensor:
        start = torch.randint(length - side + 1, (draws, 1), generator=stream)
        return (torch.arange(length) >= start) & (torch.arange(length) < start + side)

    return spans(height)[:, :, None] & spans(width)[:, None]


def _ranks(heat: Tensor, segments: Tensor) -> Tensor:
    """int64 [B, H, W]: the place of each pixel's segment in the order of mean heat, highest first, then by label."""
    ranks = []
    for values, labels in zip(heat, segments.to(heat.device), strict=True):
        names, inside = labels.unique(return_inverse=True)
        sums = torch.bincount(inside.flatten(), values.flatten(), len(names))
        means = sums / torch.bincount(inside.flatten(), minlength=len(names))
        ranks.append(means.argsort(descending=True, stable=True).argsort()[inside])
    return torch.stack(ranks)


def _hiding(model: nn.Module, x: Tensor, target: Tensor | None, step: Tensor, baseline: Baseline, batch: int) -> Tensor:
    """p of each image with the pixels whose ``step`` [B, H, W] is below s hidden, s = 0..S: [B, S + 1].

    S is one more than the image's last step; NaN past it.
    """
    target = aimed(x, target)
    curves = torch.full((len(x), int(step.max()) + 2), torch.nan, dtype=torch.float64)
    for i, (image, fill) in enumerate(zip(x, filled(x, baseline), strict=True)):
        count = int(step[i].max()) + 2
        rows = hidden(image, fill, step[i] < torch.arange(count)[:, None, None])
        curves[i, :count] = output(model, rows, targets(target, i, count), batch=batch)
    return curves


def _sums_and_drops(
    model: nn.Module,
    x: Tensor,
    target: Tensor | None,
    weights: Tensor,
    sets: Iterable[Tensor],
    baseline: Baseline,
    probability: bool,
    batch: int,
) -> tuple[Tensor, Tensor]:
    """``sum_S weights`` and ``f(x) - f(x without S)`` for the sets S of each image, bool [n, H, W]: [B, n] each."""
    target, sums, drops = aimed(x, target), [], []
    for i, (image, fill, chosen) in enumerate(zip(x, filled(x, baseline), sets, strict=True)):
        rows = hidden(image, fill, torch.cat([torch.zeros_like(chosen[:1]), chosen]))
        values = output(model, rows, targets(target, i, len(rows)), probability=probability, batch=batch)
        sums.append(chosen.flatten(1).double() @ weights[i].flatten())
        drops.append(values[0] - values[1:])
    return torch.stack(sums), torch.stack(drops)


def _area(curves: Tensor) -> Tensor:
    """Mean height of each curve by the trapezoidal rule, up to where it ends."""
    return ((curves[:, 1:] + curves[:, :-1]) / 2).nanmean(1)
