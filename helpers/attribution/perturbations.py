"""Perturbations: the logit where parts of the image show a baseline instead."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.attribution.base import Baseline, Logit, like, method
from helpers.runtime import generator, seeded


@method
def occlusion(
    y: Logit, x: Tensor, *, window: int = 15, stride: int = 8, baseline: Baseline = 0.0, batch_size: int = 32
) -> Tensor:
    """``y(x) - y(x without a window)``, the mean of the windows over a pixel (arXiv 1311.2901), by Captum. Raises
    ``ValueError`` for a window that the images do not hold."""
    from captum.attr import Occlusion

    if not 1 <= window <= min(x.shape[2:]):
        raise ValueError(f"a window of {window} pixels is not in images of {x.shape[2]} x {x.shape[3]}: set window")

    differences = Occlusion(y).attribute(
        x,
        sliding_window_shapes=(x.shape[1], window, window),
        strides=(x.shape[1], stride, stride),
        baselines=like(x, baseline),
        perturbations_per_eval=max(1, batch_size // len(x)),
    )
    return differences[:, 0]  # a window takes all channels at once: each of them holds the whole difference


@method
def rise(
    y: Logit,
    x: Tensor,
    *,
    samples: int = 1000,
    grid: int = 7,
    keep: float = 0.5,
    probability: bool = True,
    baseline: Baseline = 0.0,
    seed: int = 0,
    batch_size: int = 32,
) -> Tensor:
    """RISE (arXiv 1806.07421): ``sum_m p(x * m) m / (samples * keep)``.

    A mask m is ``grid`` x ``grid`` coins (1 with chance ``keep``), upsampled bilinearly and shifted at random
    by less than a cell. p is the target's probability, as in the paper, or its logit without ``probability``.
    """
    draws = generator(seed, "rise")
    height, width = x.shape[2:]
    cell = -(-height // grid), -(-width // grid)
    coins = (torch.rand(samples, 1, grid, grid, generator=draws) < keep).to(x)
    shifts = torch.stack([torch.randint(side, (samples,), generator=draws) for side in cell], 1)

    def masks(part: slice) -> Tensor:
        smooth = F.interpolate(coins[part], [(grid + 1) * side for side in cell], mode="bilinear")
        crops = zip(smooth, shifts[part].tolist(), strict=True)
        return torch.stack([m[:, top : top + height, left : left + width] for m, (top, left) in crops])

    scores = functools.partial(y, probability=probability)
    results = _perturbed(scores, x, masks, samples, baseline, batch_size)
    return sum(torch.einsum("nb,nhw->bhw", p, mask[:, 0]) for p, mask in results) / (samples * keep)


@method
def lime(
    y: Logit,
    x: Tensor,
    *,
    samples: int = 512,
    grid: int = 8,
    segments: Tensor | None = None,
    baseline: Baseline = 0.0,
    seed: int = 0,
    batch_size: int = 32,
) -> Tensor:
    """LIME (arXiv 1602.04938), by Captum as it comes: a Lasso of the logit on which superpixels are shown, each of
    which is by chance 1/2, where samples that look more like x count more. Superpixels and b as in `kernel_shap`.

    The penalty is 0.01 whatever the size of the logit: superpixels that hardly move it have 0.
    """
    from captum.attr import Lime

    labels, reference, maps = _superpixels(x, grid, segments), like(x, baseline), []
    for one in torch.arange(len(x)).split(1):  # a linear model for each image
        settings = {"n_samples": samples, "perturbations_per_eval": batch_size, "feature_mask": labels[one, None]}
        with seeded(seed, "lime"):
            maps.append(Lime(y.of(one)).attribute(x[one], baselines=reference[one], **settings))
    return torch.cat(maps)[:, 0]  # all channels of a superpixel have its weight


@method
def kernel_shap(
    y: Logit,
    x: Tensor,
    *,
    samples: int = 512,
    grid: int = 8,
    segments: Tensor | None = None,
    baseline: Baseline = 0.0,
    seed: int = 0,
    batch_size: int = 32,
) -> Tensor:
    """Shapley values of superpixels by least squares (arXiv 1705.07874, theorem 2), of sum ``y(x) - y(b)``.

    Coalitions are drawn by the Shapley kernel, each with its complement, which makes the values exact where
    superpixels interact in pairs at most. The two make one equation: ``samples`` must be twice the number of
    superpixels, and had better be eight times. Superpixels are ``grid`` x ``grid`` blocks, or the labels
    ``segments`` [H, W] or [B, H, W]; a pixel shows its superpixel's value. b is the ``baseline``.
    """
    labels, reference, maps = _superpixels(x, grid, segments), like(x, baseline), torch.empty_like(x[:, 0])
    counts = labels.flatten(1).amax(1) + 1
    for count in counts.unique().tolist():  # images of as many superpixels share their coalitions
        if not 2 <= count <= samples // 2:
            raise ValueError(f"{samples} samples are for 2 to {samples // 2} superpixels, not {count}")
        rows = (counts == count).nonzero()[:, 0]
        coalitions = _coalitions(count, samples // 2, generator(seed, "kernel_shap"))
        maps[rows] = _shapley(y.of(rows), x[rows], labels[rows], coalitions, reference[rows], batch_size)
    return maps


def _coalitions(count: int, pairs: int, draws: torch.Generator) -> Tensor:
    """0 and 1, [2 + 2 * pairs, count]: all superpixels, none, and pairs of a coalition and its complement."""
    sizes = torch.arange(1.0, count)
    size = 1 + torch.multinomial(1 / (sizes * (count - sizes)), pairs, replacement=True, generator=draws)
    rank = torch.rand(pairs, count, generator=draws).argsort(1).argsort(1)
    half = (rank < size[:, None]).double()
    return torch.cat([torch.ones(1, count), torch.zeros(1, count), half, 1 - half])


def _shapley(y: Logit, x: Tensor, labels: Tensor, kept: Tensor, reference: Tensor, batch_size: int) -> Tensor:
    """`kernel_shap` of images that share their coalitions ``kept``."""
    samples, count = len(kept) - 2, kept.shape[1]
    results = _perturbed(y, x, lambda part: kept[part].to(x)[:, labels], len(kept), reference, batch_size)
    full, empty, *_ = scores = torch.cat([logits for logits, _ in results]).double().cpu()

    # The last value is full - empty minus the others, which leaves a free regression on the others.
    last = kept[2:, -1:]
    response = scores[2:] - empty - last * (full - empty)
    fit = torch.linalg.lstsq(kept[2:, :-1] - last, response, driver="gelsd")
    if fit.rank < count - 1:
        raise ValueError(f"{samples} samples do not determine {count} superpixels: take more samples")
    shapley = torch.cat([fit.solution, full - empty - fit.solution.sum(0, keepdim=True)]).T.to(x)
    return shapley.gather(1, labels.flatten(1)).view_as(labels)


def _superpixels(x: Tensor, grid: int, segments: Tensor | None) -> Tensor:
    """Labels [B, H, W], in each image from 0 without a gap: ``segments`` [H, W] or [B, H, W], else ``grid`` x ``grid``
    blocks."""
    if segments is None:
        rows, columns = (torch.arange(side) * grid // side for side in x.shape[2:])
        segments = rows[:, None] * grid + columns
    segments = segments.to(x.device).expand(len(x), *x.shape[2:])
    return torch.stack([labels.unique(return_inverse=True)[1] for labels in segments])


def _perturbed(
    y: Callable[[Tensor], Tensor],
    x: Tensor,
    masks: Callable[[slice], Tensor],
    samples: int,
    baseline: Baseline,
    batch_size: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """y of each image under n masks at a time, [n, B], and these [n, 1 or B, H, W]: 1 is x, 0 baseline."""
    reference, each = like(x, baseline), max(1, batch_size // len(x))
    for start in range(0, samples, each):
        mask = masks(slice(start, start + each))
        with torch.no_grad():
            scores = y(torch.lerp(reference, x, mask[:, :, None]).flatten(0, 1))
        yield scores.unflatten(0, (len(mask), len(x))), mask
