"""Whether a map looks at the model: with random weights it has to become another (and so has a causal graph).

Quantus 0.6 seeds torch's global generator anew before each layer, which gives layers of equal shape equal weights,
leaves parameters outside the standard layers (ConvNeXt's layer scale) as they were, and takes the order of registration
for that of computation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from helpers.attribution.base import evaluating, hooked, logits_of
from helpers.config import ConfigError, suggest
from helpers.metrics.base import BATCH, Explain, explained
from helpers.runtime import generator, seeded


class Mprt(NamedTuple):
    """``layers`` from the output down, ``correlation`` [L, B] of the maps once each was randomised."""

    layers: tuple[str, ...]
    correlation: Tensor

    @property
    def last(self) -> Tensor:
        """[B], with the whole model random if it was a cascade."""
        return self.correlation[-1]

    @property
    def average(self) -> Tensor:
        """[B], over the layers."""
        return self.correlation.mean(0)


def mprt(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Tensor | None,
    *,
    layers: tuple[str, ...] | None = None,
    order: Literal["cascade", "independent"] = "cascade",
    magnitudes: bool = True,
    seed: int = 0,
    batch: int = BATCH,
) -> Mprt:
    """Model parameter randomisation test (arXiv 1810.03292): rank correlation of the maps before and after, of their
    ``magnitudes`` or with their signs. Lower is better: the map depends on the weights.

    ``layers`` are randomised from the output down (`weighted_layers`, in reverse, if not given), one more each time
    (``cascade``) or one at a time (``independent``), in the model itself, which gets its weights back to the bit.
    """
    known = weighted_layers(model, x[:1])
    layers = tuple(reversed(known)) if layers is None else layers
    if unknown := [layer for layer in layers if layer not in known]:
        raise ConfigError(f"unknown layer {unknown[0]!r}: {suggest(unknown[0], known)}")
    if order not in ("cascade", "independent"):
        raise ConfigError(f"unknown order {order!r}: {suggest(order, ['cascade', 'independent'])}")

    def maps() -> Tensor:
        heat = explained(explain, model, x, target, batch=batch).flatten(1)
        return heat.abs() if magnitudes else heat

    before, after = maps(), []
    with restored(model):
        for layer in layers:
            with restored(model, order == "independent"):
                randomise(model, layer, seed)
                after.append(rank_correlation(before, maps()))
    return Mprt(layers, torch.stack(after))


def efficient_mprt(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Tensor | None,
    *,
    bins: int = 100,
    seed: int = 0,
    batch: int = BATCH,
) -> Tensor:
    """``(C' - C) / C``, the rise of a map's complexity when the whole model becomes random (arXiv 2401.06465): [B].

    Higher is better. C is the entropy of the histogram of the map, of ``bins`` between its ends; 0 if C' equals C. NaN
    of a constant map that becomes another: from a complexity of 0 there is no relative rise.
    """
    before = _histogram_entropy(explained(explain, model, x, target, batch=batch), bins)
    with restored(model):
        for layer in weighted_layers(model, x[:1]):
            randomise(model, layer, seed)
        after = _histogram_entropy(explained(explain, model, x, target, batch=batch), bins)
    rise = torch.where(before == 0, torch.nan, (after - before) / before)
    return torch.where(after == before, 0, rise)


def weighted_layers(model: nn.Module, x: Tensor) -> tuple[str, ...]:
    """Names of the modules with parameters of their own, in the order in which they run for x [1, C, H, W].

    "" is the model itself.
    """
    names = {module: name for name, module in model.named_modules() if any(True for _ in module.parameters(False))}
    ran: dict[str, None] = {}

    def note(module: nn.Module, args: object, output: object) -> None:
        ran[names[module]] = None

    with torch.no_grad(), evaluating(model), hooked(names, note):
        logits_of(model, x)
    return tuple(ran)


def randomise(model: nn.Module, layer: str, seed: int) -> None:
    """New random values for the parameters that ``layer`` itself has, in place: those of its own ``reset_parameters``
    (batch norm forgets its statistics too), else normal ones of the same mean and standard deviation."""
    module = model.get_submodule(layer)
    if hasattr(module, "reset_parameters"):
        with seeded(seed, "randomise", layer):
            module.reset_parameters()
        return
    for name, parameter in module.named_parameters(recurse=False):
        noise = torch.randn(parameter.shape, generator=generator(seed, "randomise", layer, name)).to(parameter)
        with torch.no_grad():
            parameter.copy_(parameter.mean() + parameter.std(correction=0) * noise)


@contextmanager
def restored(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """All parameters and buffers are afterwards what they were, to the bit, also after an error."""
    tensors = [*model.parameters(), *model.buffers()] if enabled else []
    copies = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's, of each row of a and b [..., n], equal values sharing their mean rank: [...].

    A constant row has no order: it counts as 1 with another constant row, and as 0 with any other.
    """
    from scipy.stats import rankdata

    ranks = [torch.from_numpy(rankdata(values.cpu().double().numpy(), axis=-1)) for values in (a, b)]
    centred = [rank - rank.mean(-1, keepdim=True) for rank in ranks]
    norms = [rank.norm(dim=-1) for rank in centred]
    flat = norms[0] == 0, norms[1] == 0
    value = ((centred[0] * centred[1]).sum(-1) / (norms[0] * norms[1])).clamp(-1, 1)
    return torch.where(flat[0] | flat[1], (flat[0] & flat[1]).double(), value)


def _histogram_entropy(heat: Tensor, bins: int) -> Tensor:
    """In nats, of the values of each map [B, H, W] in ``bins`` equal parts of its range: [B]."""
    heat = heat.flatten(1)
    lowest, highest = heat.amin(1, keepdim=True), heat.amax(1, keepdim=True)
    place = ((heat - lowest) / (highest - lowest) * bins).nan_to_num(0).long().clamp(max=bins - 1)
    counts = torch.zeros(len(heat), bins, dtype=torch.float64).scatter_add(1, place, torch.ones_like(heat))
    return torch.special.entr(counts / heat.shape[1]).sum(1)
