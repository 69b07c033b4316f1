"""Faithfulness by removal: what the net makes of images without the pixels that a map calls relevant, and of those
pixels alone (spec section 6.5); and how much of a map lies on a decoy (section 6.6).

    heat, control = maps.sum(1), random_heat(x, seed=0)
    score(by_area(net, x, y, heat), by_area(net, x, y, control))  # {"comprehensiveness": 12.3, "sufficiency": -4.5}

``heat`` is [M, H, W], explanations summed over channels; a pixel is replaced in all channels. The nets return
log-probabilities. Images go through them in batches that no result depends on. Everything raises ``ValueError`` for
maps that do not fit the images or are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from helpers import metrics, runtime
from helpers.attribution.base import evaluating
from helpers.config import ConfigError, suggest
from helpers.metrics.base import checked, correlation, filled
from helpers.self_explaining.derivatives import at_once, fast

if TYPE_CHECKING:
    from pandas import DataFrame

PERCENTS = (1, 5, 10, 20, 50)
METRICS = ("comprehensiveness", "sufficiency")  # without the relevant pixels; with them alone
MARGIN = 1e-6  # what the original adds to the range of a map

Fill = Literal["median", "mean", "min", "zero"]
FILLS: dict[str, Callable[[Tensor], Tensor]] = {
    "median": torch.median,
    "mean": torch.mean,
    "min": torch.min,
    "zero": lambda x: x.new_zeros(()),
}
"""What a pixel is replaced by: one number, of all pixels of all the images."""

Masks = Callable[[slice], list[Tensor]]
"""Which pixels are replaced in the images of these rows, in each of several ways: bool [b, H, W]."""


def by_value(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    heat: Tensor,
    *,
    percents: Iterable[float] = PERCENTS,
    fill: Fill = "median",
) -> DataFrame:
    """The accuracy after the original's removal, of images ``x`` [M, C, H, W] with labels ``y`` [M].

    Each map becomes ``s = (heat - min) / (range + 1e-6)``. Comprehensiveness replaces pixels with ``s >= 1 - k`` by the
    ``fill``, sufficiency those with ``s <= 1 - k``. A row for each of `METRICS` and each k: metric, percent (100 k),
    replaced (percent of the pixels) and accuracy (percent of the images). Raises `ConfigError` for an unknown fill,
    ``ValueError`` for shapes that do not fit.

    Of a peaked map much less than k is above ``1 - k``: `by_area` compares equal numbers of pixels.
    """
    heat, percents = checked(x, heat), _shares(percents)
    shifted = heat - heat.amin((1, 2), keepdim=True)
    s = shifted / (shifted.amax((1, 2), keepdim=True) + MARGIN)

    def masks(rows: slice) -> list[Tensor]:
        thresholds = [1 - percent / 100 for percent in percents]
        return [s[rows] >= threshold for threshold in thresholds] + [s[rows] <= threshold for threshold in thresholds]

    return _accuracies(net, x, y, masks, percents, fill)


def by_area(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    heat: Tensor,
    *,
    percents: Iterable[float] = PERCENTS,
    fill: Fill = "median",
    seed: int = 0,
) -> DataFrame:
    """As `by_value`, but the ``floor(k * H * W)`` highest pixels of each map are the relevant ones, whatever its shape.

    Equal pixels, as the zeros of a clipped map, are in an order drawn from the stream ``removal/ties`` of ``seed``.
    """
    percents = _shares(percents)
    return _accuracies(net, x, y, _highest(ranks(x, heat, seed), percents), percents, fill)


def random_heat(x: Tensor, seed: int) -> Tensor:
    """The control: uniform noise [M, H, W] for images ``x`` [M, C, H, W], of the stream ``removal/control``."""
    return torch.rand(len(x), *x.shape[2:], generator=runtime.generator(seed, "removal", "control"))


def score(table: DataFrame, control: DataFrame) -> dict[str, float]:
    """``mean_k(accuracy of the control - accuracy)`` in points, by metric, from two tables of `by_value` or of
    `by_area`. Comprehensiveness is better higher, sufficiency lower."""
    lost = control.accuracy - table.accuracy
    return {metric: float(lost[table.metric == metric].mean()) for metric in METRICS}


def by_rank(
    net: nn.Module,
    x: Tensor,
    heat: Tensor,
    *,
    percents: Iterable[float] = PERCENTS,
    seed: int = 0,
) -> DataFrame:
    """How far the probability of the predicted class falls, on average over images ``x`` [M, C, H, W], without the
    ``floor(k * H * W)`` highest pixels and with them alone, others being 0: the original's second version, its mode
    ``faithfulness``.

    A row for each of `METRICS` and each k: metric, percent (100 k), replaced (percent of the pixels) and fall. Equal
    pixels are ordered as in `by_area`. Comprehensiveness is better higher, sufficiency lower.
    """
    percents = _shares(percents)
    masks = _highest(ranks(x, heat, seed), percents)
    probability, replaced = _probabilities(net, x, filled(x, 0.0), masks)
    return _table(percents, replaced, "fall", (probability[0] - probability[1:]).mean(1))


def falls(table: DataFrame) -> dict[str, float]:
    """The mean over k of a table of `by_rank`, by metric, rounded to four decimals as the original does."""
    return {metric: round(float(table.fall[table.metric == metric].mean()), 4) for metric in METRICS}


def faithfulness_correlation(net: nn.Module, x: Tensor, heat: Tensor, *, pixels: int = 10, seed: int = 0) -> Tensor:
    """Pearson's correlation of the values of the highest ``pixels`` of a map and of how far the probability of the
    predicted class falls when each by itself is replaced by its image's mean: [M], NaN where either is constant.
    Higher is better."""
    rank = ranks(x, heat, seed)
    probability, _ = _probabilities(
        net, x, filled(x, "mean"), lambda rows: [rank[rows] == place for place in range(pixels)]
    )
    values = checked(x, heat).flatten(1).gather(1, rank.flatten(1).argsort(1)[:, :pixels])
    return correlation(values, (probability[0] - probability[1:]).T)


def decoy_mass(heat: Tensor, mask: Tensor) -> float:
    """The mean share of maps ``heat`` [M, H, W] that is in ``mask`` [M, H, W], bool, the decoys (spec 6.6); 0 of a map
    without a positive part. Images without a decoy do not count. Lower is better."""
    return float(metrics.relevance_mass(heat, mask).nanmean())


def ranks(x: Tensor, heat: Tensor, seed: int) -> Tensor:
    """The place of each pixel in the order of its map, highest first: int64 [M, H, W] from 0.

    Equal pixels are in random order (stream ``removal/ties``): by position, the many zeros of a clipped map would be
    taken from the upper edge, where there is nothing to lose.
    """
    flat = checked(x, heat).flatten(1)
    shuffled = torch.rand(flat.shape, generator=runtime.generator(seed, "removal", "ties")).argsort(1)
    order = shuffled.gather(1, flat.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    return order.argsort(1).view(heat.shape)


def _shares(percents: Iterable[float]) -> tuple[float, ...]:
    percents = tuple(percents)
    if not all(0 <= percent <= 100 for percent in percents):
        raise ConfigError(f"percents must be between 0 and 100, not {percents}")
    return percents


def _highest(rank: Tensor, percents: tuple[float, ...]) -> Masks:
    """The ``floor(k * H * W)`` highest pixels for each k, then all the others for each k."""
    counts = [int(percent * rank[0].numel() // 100) for percent in percents]
    return lambda rows: [rank[rows] < count for count in counts] + [rank[rows] >= count for count in counts]


def _accuracies(
    net: nn.Module, x: Tensor, y: Tensor, masks: Masks, percents: tuple[float, ...], fill: Fill
) -> DataFrame:
    if fill not in FILLS:
        raise ConfigError(f"unknown fill {fill!r}: {suggest(fill, FILLS)}")
    if y.shape != (len(x),):
        raise ValueError(f"expected a label for each of {len(x)} images, not {tuple(y.shape)}")
    hits, replaced = _measured(
        net, x, y, filled(x, FILLS[fill](x)), masks, lambda output, labels: output.argmax(1) == labels
    )
    return _table(percents, replaced, "accuracy", 100 * hits.mean(1))


def _probabilities(net: nn.Module, x: Tensor, fill: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
    """p of the class that is predicted for the whole image: of that [M], then in each of n ways, [1 + n, M] in all; and
    the shares of the pixels replaced."""
    with torch.no_grad(), fast(), evaluating(net):
        whole = torch.cat([net(images) for images in x.split(at_once(x.device))])
    before, classes = whole.max(1)
    after, replaced = _measured(
        net, x, classes, fill, masks, lambda output, labels: output.gather(1, labels[:, None])[:, 0].exp()
    )
    return torch.cat([before.exp().double().cpu()[None], after]), replaced


def _measured(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    fill: Tensor,
    masks: Masks,
    measure: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """``measure(output, labels)`` [n, M] for the images with ``fill`` in the place of pixels, in each of n ways; and
    the share of the pixels that were replaced [n]."""
    values, replaced, size = [], [], at_once(x.device)
    with torch.no_grad(), fast(), evaluating(net):
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            wheres = masks(rows)
            replaced.append(torch.stack([where.sum() for where in wheres]))
            outputs = [net(torch.where(where[:, None].to(x.device), fill[rows], x[rows])) for where in wheres]
            values.append(torch.stack([measure(output, y[rows]) for output in outputs]))
    share = torch.stack(replaced).sum(0).double() / (len(x) * x[0, 0].numel())
    return torch.cat(values, 1).cpu().double(), share


def _table(percents: tuple[float, ...], replaced: Tensor, name: str, values: Tensor) -> DataFrame:
    from pandas import DataFrame  # takes half a second

    table = DataFrame([(metric, percent) for metric in METRICS for percent in percents], columns=["metric", "percent"])
    return table.assign(**{"replaced": (100 * replaced).tolist(), name: values.tolist()})
