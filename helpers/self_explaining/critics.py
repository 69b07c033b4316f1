"""Critics: each learns from the learner's maps in one pass, and is thrown away (spec cnn_lsx, section 4.2, item 3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import grad
from torch.func import functional_call

from helpers import runtime
from helpers.self_explaining import models
from helpers.self_explaining.derivatives import fast

RHO, EPS = 0.9, 1e-6  # Adadelta's
IN_CACHE = 2**16  # weights that Adadelta takes at a time on the CPU


@dataclass(frozen=True)
class Reflection:
    """One pass of a critic. ``losses`` [N] in the ``order`` in which it met the batches, of several critics together
    [N, S]; ``gradients`` [N, b, C, H, W] of each loss to its batch of maps, in the batches' own order (None: not asked
    for); the last weights of the ``critic``, by name."""

    losses: Tensor
    gradients: Tensor | None
    critic: dict[str, Tensor]
    order: Tensor


def fresh_critic(
    name: str, in_channels: int, n_classes: int, seed: int, step: int, device: torch.device | str = "cpu"
) -> nn.Module:
    """The critic of learner step ``step``, untrained: another one each step, the same for the same seed and kind of
    ``device`` (it is drawn there: copying it would take longer than the pass of a small critic set)."""
    with runtime.seeded(seed, "critic", step), torch.device(device):
        return models.build(name, in_channels, n_classes)


def order(seed: int, step: int, n: int) -> Tensor:
    """The order int64 [n] in which the critic of ``step`` meets the batches; what is in a batch stays together."""
    return torch.randperm(n, generator=runtime.generator(seed, "critic order", step))


def reflect(
    critic_net: nn.Module,
    maps: Tensor,
    labels: Tensor,
    *,
    learning_rate: float,
    order: Tensor | None = None,
    class_weights: Tensor | None = None,
    gradients: bool = True,
) -> Reflection:
    """Train a critic for one pass over ``maps`` [N, b, C, H, W] with ``labels`` int64 [N, b], one Adadelta step a batch
    (spec 4.2, item 3). ``critic_net`` gives its structure and first weights, and is left as it is.

    ``order`` int64 [N] is that of the batches (None: as they are). Raises ``ValueError`` for shapes that do not fit.
    """
    if maps.ndim != 5 or labels.shape != maps.shape[:2] or not len(maps):
        raise ValueError(
            f"expected maps [N, b, C, H, W] with labels [N, b], not {tuple(maps.shape)} with {tuple(labels.shape)}"
        )
    order = torch.arange(len(maps), device=maps.device) if order is None else order.to(maps.device)
    if order.shape != (len(maps),):
        raise ValueError(f"expected an order of the {len(maps)} batches, not {tuple(order.shape)}")
    ordered, shown = maps.detach()[order], labels[order]
    flat = _flat(critic_net.parameters())
    weights, moments = _views(flat, critic_net), (torch.zeros_like(flat), torch.zeros_like(flat))
    losses, slopes = [], []
    for x, y in zip(ordered, shown, strict=True):
        x = x.requires_grad_(gradients)
        with torch.enable_grad(), fast():
            loss = nll(functional_call(critic_net, weights, (x,)), y, class_weights, members(critic_net))
        found = grad(loss.sum(), [*weights.values(), *([x] if gradients else [])])
        losses.append(loss.detach())
        slopes += found[len(weights) :]
        adadelta(flat, _flat(found[: len(weights)]), moments, learning_rate)
    aligned = torch.stack(slopes)[order.argsort()] if gradients else None
    return Reflection(torch.stack(losses), aligned, {name: value.detach() for name, value in weights.items()}, order)


def adadelta(weights: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], rate: float) -> None:
    """One step of ``torch.optim.Adadelta`` on ``weights`` [P], in place; ``moments`` [P] are the running means of the
    squares of gradients and of steps, zeros in the beginning."""
    size = IN_CACHE if weights.device.type == "cpu" else len(weights)
    parts = zip(*(t.split(size) for t in (weights, gradient, *moments)), strict=True)
    for w, g, square, moved in parts:
        square.mul_(RHO).addcmul_(g, g, value=1 - RHO)
        step = moved.add(EPS).sqrt_().div_(square.add(EPS).sqrt_()).mul_(g)
        moved.mul_(RHO).addcmul_(step, step, value=1 - RHO)
        w.add_(step, alpha=-rate)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    """All values [P], in a tensor of their own."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def _views(flat: Tensor, net: nn.Module) -> dict[str, Tensor]:
    """The weights of ``net`` by name as parts of ``flat`` [P]: leaves that follow what is written there."""
    parts = flat.split([parameter.numel() for parameter in net.parameters()])
    named = zip(net.named_parameters(), parts, strict=True)
    return {name: part.view_as(parameter).requires_grad_() for (name, parameter), part in named}


def nll(log_probabilities: Tensor, y: Tensor, weights: Tensor | None, members: int) -> Tensor:
    """The cross-entropy, of several nets in one (`together`) that of each: [] or [members]."""
    if members == 1:
        return F.nll_loss(log_probabilities, y, weights)
    pairs = zip(log_probabilities.chunk(members), y.chunk(members), strict=True)
    return torch.stack([F.nll_loss(one, target, weights) for one, target in pairs])


def members(net: nn.Module) -> int:
    """How many nets ``net`` is (`together`)."""
    return getattr(net, "members", 1)
