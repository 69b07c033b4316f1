"""Who learns how fast, and when: parameter groups, optimizers by name, the learning rate of an epoch, the epochs of the
projections (spec pixpnet, section 5).

    optimizer = make(study.optimizer, groups(model, study.optimizer))
    torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate, settings=study.optimizer, epochs=study.train.epochs))
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from helpers.config import ConfigError, suggest
from helpers.prototypes.presets import Optimizer, Train

UNUSABLE = ("Optimizer", "LBFGS", "SparseAdam", "Muon")  # one group alone, sparse gradients, or matrices alone

log = logging.getLogger(__name__)


def groups(model: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """The parameter groups of a network, those that learn nothing left out; ``name`` says which one is which.

    ``features`` (the backbone) learn at ``fine_tune_lr``, ``add_on`` and ``prototypes`` at ``lr``, the ``head`` of a
    network with prototypes at ``readout_lr``, that of a plain classifier, all that is new there, at ``lr``. Prototypes
    and heads have no weight decay, but for the classifier's.
    """
    plain = not hasattr(model, "prototypes")
    rules = {
        "features": (settings.fine_tune_lr, settings.weight_decay),
        "add_on": (settings.lr, settings.weight_decay),
        "prototypes": (settings.lr, 0.0),
        "head": (settings.lr, settings.weight_decay) if plain else (settings.readout_lr, 0.0),
    }
    parts: dict[str, list[nn.Parameter]] = {name: [] for name in rules}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        if part not in parts:
            raise ValueError(f"the parameter {name} belongs to no group: {suggest(part, parts)}")
        if parameter.requires_grad:
            parts[part].append(parameter)
    return [
        {"name": name, "params": parts[name], "lr": lr, "weight_decay": decay}
        for name, (lr, decay) in rules.items()
        if parts[name]
    ]


def optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    """The optimizers of torch that training can use, by the name as it is compared: ``adamw``."""
    kinds = {name: kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    return {
        _plain(name): kind
        for name, kind in kinds.items()
        if issubclass(kind, torch.optim.Optimizer) and name not in UNUSABLE
    }


def make(settings: Optimizer, parameters: Iterable[dict[str, Any]] | Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer ``settings.name`` ("adam", "Adam-W", "sgd", ...) of parameters, or of `groups`.

    What it does not take of momentum and weight decay is left out, with a warning where it was asked for (is not the
    default). Raises `ConfigError` for a name that torch does not have.
    """
    known = optimizers()
    kind = known.get(_plain(settings.name))
    if kind is None:
        raise ConfigError(f"unknown optimizer {settings.name!r}: {suggest(_plain(settings.name), known)}")
    takes = inspect.signature(kind).parameters
    wanted = {"lr": settings.lr, "momentum": settings.momentum, "weight_decay": settings.weight_decay}
    usual = Optimizer()
    for name in wanted.keys() - takes.keys():
        if wanted[name] != getattr(usual, name):
            log.warning("%s takes no %s: it is left out", kind.__name__, name)
    options = {name: value for name, value in wanted.items() if name in takes}
    if "fused" in takes:
        options["fused"] = True
    parameters = [
        {name: value for name, value in group.items() if name in ("params", "name") or name in takes}
        if isinstance(group, dict)
        else group
        for group in parameters
    ]
    return kind(parameters, **options)


def rate(epoch: int, settings: Optimizer, epochs: int) -> float:
    """What the learning rates are multiplied with in ``epoch`` (from 0) of ``epochs``: the schedule's factor times
    1 - exp(-(epoch + 2) / warmup_period), the rise of the original, which begins a step late."""
    rise = 1 - math.exp(-(epoch + 2) / settings.warmup_period) if settings.warmup_period else 1.0
    if settings.lr_scheduler == "cosine":
        return rise * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    if not settings.lr_schedule:
        raise ConfigError(f"lr_scheduler {settings.lr_scheduler!r} needs the epochs lr_schedule")
    if settings.lr_scheduler == "step":
        return rise * settings.lr_factor ** (epoch // settings.lr_schedule[0])
    return rise * settings.lr_factor ** sum(epoch >= at for at in settings.lr_schedule)


def frozen_epochs(settings: Optimizer) -> int:
    """For how many epochs the backbone does not learn."""
    return settings.warmup_period if settings.freeze_epochs is None else settings.freeze_epochs


def push_epochs(settings: Train) -> Sequence[int]:
    """The epochs (from 1) after which prototypes are projected: the first, every ``push_every``-th, and the last."""
    if not settings.push_prototypes:
        return ()
    every = range(settings.push_every, settings.epochs + 1, settings.push_every)
    return tuple(sorted({1, *every, settings.epochs}))


def validation_epochs(settings: Train) -> Sequence[int]:
    """The epochs (from 1) after which, before a projection, the validation set is looked at."""
    every = settings.val_every_n_epoch or max(1, round(settings.epochs / 50))
    return range(every, settings.epochs + 1, every)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
