"""How much a map moves when its image hardly does: Lipschitz estimates, sensitivity, relative stability.

Lower is more stable; a constant map scores 0, whatever it is worth, and so has to stand beside. All draws around an
image come from a stream that its content names: its score does not depend on its batch mates, and more draws hold those
of fewer.

Quantus 0.6 draws from NumPy's global generator, divides maps by the largest value in the whole batch, and gives NaN to
an image as soon as one of its neighbours is classified otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from helpers.attribution.base import aimed, hooked
from helpers.config import ConfigError, suggest
from helpers.metrics.base import BATCH, Explain, explained, logits, predicted, streams
from helpers.metrics.randomisation import weighted_layers

Scale = Literal["none", "max", "minmax", "zscore"]
Noise = Callable[[torch.Size, torch.Generator], Tensor]


class Lipschitz(NamedTuple):
    """The local Lipschitz estimate [B] of maps as they are, and scaled each by itself (see `scaled`)."""

    none: Tensor
    max: Tensor
    minmax: Tensor
    zscore: Tensor


class Sensitivity(NamedTuple):
    """The largest and the mean relative change of a map around an image: [B] each."""

    maximum: Tensor
    average: Tensor


class RelativeStability(NamedTuple):
    """The largest relative change of a map per change of the input, the logits and a representation: [B] each."""

    input: Tensor
    output: Tensor
    representation: Tensor


def local_lipschitz(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Tensor | None,
    *,
    scale: Scale = "none",
    draws: int = 10,
    mean: float = 0.1,
    std: float = 0.1,
    seed: int = 0,
    batch: int = BATCH,
) -> Tensor:
    """``max_k |A(x) - A(x_k)| / |x - x_k|``, ``x_k = x + e``, ``e ~ N(mean, std^2)`` (arXiv 1806.08049): [B].

    A are the maps, scaled (see `scaled`); the target stays. Defaults as in the eXplainNN release (spec 6.1), which
    scaled its own maps but not those that it compared with: compare only values of one scale.
    """
    if scale not in Lipschitz._fields:
        raise ConfigError(f"unknown scale {scale!r}: {suggest(scale, Lipschitz._fields)}")
    settings = {"draws": draws, "mean": mean, "std": std, "seed": seed, "batch": batch}
    return getattr(lipschitz(explain, model, x, target, **settings), scale)


def lipschitz(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Tensor | None,
    *,
    draws: int = 10,
    mean: float = 0.1,
    std: float = 0.1,
    seed: int = 0,
    batch: int = BATCH,
) -> Lipschitz:
    """`local_lipschitz` (arXiv 1806.08049) at every scale, for the price of one.

    Raises ``ValueError`` if nothing would be drawn.
    """
    if draws < 1 or not (std > 0 or mean):
        raise ValueError(f"expected draws that move the image, not {draws} with mean {mean} and std {std}")

    def noise(shape: torch.Size, stream: torch.Generator) -> Tensor:
        return mean + std * torch.randn(shape, generator=stream)

    parts = []
    for rows, heat in _neighbours(explain, model, x, target, noise, "lipschitz", draws, seed, batch):
        moved = _norm(rows[:, 1:] - rows[:, :1])
        parts.append([(_change(scaled(heat, scale)) / moved).amax(1) for scale in Lipschitz._fields])
    return Lipschitz(*map(torch.cat, zip(*parts, strict=True)))


def scaled(heat: Tensor, scale: Scale) -> Tensor:
    """Each map [..., H, W] divided by its largest magnitude (``max``), between 0 and 1 (``minmax``), or with mean 0 and
    standard deviation 1 (``zscore``); 0 where that cannot be done. ``none`` leaves it as it is."""
    flat = heat.flatten(-2)
    lowest, centre = flat.amin(-1)[..., None, None], flat.mean(-1)[..., None, None]
    highest = flat.amax(-1)[..., None, None]
    spread = flat.std(-1, correction=0)[..., None, None].masked_fill(highest == lowest, 0)
    largest = torch.maximum(highest.abs(), lowest.abs())
    shift, size = {
        "none": (0, torch.ones_like(largest)),
        "max": (0, largest),
        "minmax": (lowest, highest - lowest),
        "zscore": (centre, spread),
    }[scale]
    return torch.where(size > 0, (heat - shift) / size, 0)


def sensitivity(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Tensor | None,
    *,
    draws: int = 10,
    radius: float = 0.2,
    seed: int = 0,
    batch: int = BATCH,
) -> Sensitivity:
    """``|A(x) - A(x_k)| / |A(x)|``, ``x_k = x + e``, ``e ~ U(-radius, radius)``; NaN for a map of zeros.

    The maximum of it and the mean (arXiv 1901.09392; the paper's own definition does not divide).
    """

    parts = []
    for _, heat in _neighbours(explain, model, x, target, _uniform(radius), "sensitivity", draws, seed, batch):
        size = heat[:, :1].flatten(2).norm(dim=2)
        change = _change(heat) / size.masked_fill(size == 0, torch.nan)
        parts.append([change.amax(1), change.mean(1)])
    return Sensitivity(*map(torch.cat, zip(*parts, strict=True)))


def relative_stability(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Tensor | None,
    *,
    layer: str | None = None,
    draws: int = 10,
    radius: float = 0.2,
    smallest: float = 1e-6,
    seed: int = 0,
    batch: int = BATCH,
) -> RelativeStability:
    """``max_k |(A(x) - A(x_k)) / A(x)| / |(x - x_k) / x|``, and so with the logits h, ``/ |h(x) - h(x_k)|``, and a
    representation L, ``/ |(L(x) - L(x_k)) / L(x)|`` (arXiv 2203.06877).

    ``x_k = x + U(-radius, radius)``, and only those in the same class count: NaN if there are none. No divisor is below
    ``smallest``, in single pixels too: images and maps with many zeros have values of 1 / ``smallest`` and its like.
    L is the output of ``layer``, or what the linear or convolutional layer reads that runs last.
    """

    def relative(values: Tensor) -> Tensor:
        return _norm((values[:, 1:] - values[:, :1]) / values[:, :1].abs().clamp(min=smallest))

    parts, noise = [], _uniform(radius)
    for rows, heat in _neighbours(explain, model, x, target, noise, "relative_stability", draws, seed, batch):
        outputs, inner = _represented(model, rows.flatten(0, 1), layer, batch)
        outputs, inner = (values.unflatten(0, rows.shape[:2]) for values in (outputs, inner))
        classes = predicted(outputs)
        same = classes[:, 1:] == classes[:, :1]
        change = relative(heat)
        below = relative(rows.cpu().double()), _norm(outputs[:, 1:] - outputs[:, :1]), relative(inner)
        ratios = [(change / by.clamp(min=smallest)).masked_fill(~same, -torch.inf).amax(1) for by in below]
        parts.append([ratio.masked_fill(~same.any(1), torch.nan) for ratio in ratios])
    return RelativeStability(*map(torch.cat, zip(*parts, strict=True)))


def _uniform(radius: float) -> Noise:
    if not radius > 0:
        raise ValueError(f"expected a radius above 0, not {radius}")
    return lambda shape, stream: radius * (2 * torch.rand(shape, generator=stream) - 1)


def _neighbours(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Tensor | None,
    noise: Noise,
    name: str,
    draws: int,
    seed: int,
    batch: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """A few images at a time, each before its neighbours, [b, 1 + draws, C, H, W], and the maps of them all."""
    target, each = aimed(x, target), max(1, batch // (1 + draws))
    for start in range(0, len(x), each):
        images = x[start : start + each, None]
        moves = [[noise(x.shape[1:], stream) for _ in range(draws)] for stream in streams(images, seed, name)]
        moves = torch.stack([torch.stack(each) for each in moves])
        rows = torch.cat([images, images + moves.to(images)], 1)
        classes = None if target is None else target[start : start + each].repeat_interleave(1 + draws)
        heat = explained(explain, model, rows.flatten(0, 1), classes, batch=batch)
        yield rows, heat.unflatten(0, rows.shape[:2])


def _represented(model: nn.Module, x: Tensor, layer: str | None, batch: int) -> tuple[Tensor, Tensor]:
    """The logits [N, K], and the representation [N, n] that `relative_stability` means."""
    modules = dict(model.named_modules())
    if layer is None:
        ran = [modules[name] for name in weighted_layers(model, x[:1])]
        weighted = [module for module in ran if isinstance(module, nn.Linear | nn.Conv2d)]
        if not weighted:
            raise ConfigError("relative_stability needs the name of a layer: the model has no linear one")
        module = weighted[-1]
    elif layer not in modules:
        raise ConfigError(f"unknown layer {layer!r}: {suggest(layer, modules)}")
    else:
        module = modules[layer]
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((args[0] if layer is None else output).detach().flatten(1).cpu().double())

    with hooked([module], keep):
        outputs = logits(model, x, batch=batch)
    return outputs, torch.cat(seen)


def _change(heat: Tensor) -> Tensor:
    return _norm(heat[:, 1:] - heat[:, :1])


def _norm(values: Tensor) -> Tensor:
    """Euclidean, of all but the first two axes: [b, draws]."""
    return values.detach().cpu().double().flatten(2).norm(dim=2)
