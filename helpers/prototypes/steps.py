"""What is done with batches: the loss of a training step, what a split comes to, and the head alone.

A batch's inputs are images, or with ``features`` the output of the backbone, which then is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from helpers import runtime
from helpers.attribution.base import evaluating
from helpers.prototypes import losses, optimisation
from helpers.prototypes.models import Logits, ProtoNet
from helpers.prototypes.presets import Loss, PrototypesStudy


def training_loss(settings: Loss, features: bool, autocast: Callable[[], Any]) -> Callable[..., dict[str, Tensor]]:
    """``loss(model, (inputs, labels))`` for `helpers.training.train`: the total loss, and its terms and the accuracy to
    be logged as ``train_...``."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        inputs, labels = batch
        with autocast():
            output = _output(model, inputs, features)
        terms = losses.terms(getattr(model, "module", model), output, labels, settings)
        hit = (output.logits.argmax(1) == labels).float().mean()
        total = losses.total(terms, settings)
        told = {"accuracy": hit, "total_loss": total, **terms}
        return {"loss": total, **{f"train_{name}": value for name, value in told.items()}}

    return loss


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, ...]], settings: Loss, features: bool = False):
    """What the images of ``batches`` (inputs, labels, ...) come to: ``accuracy`` (share of all images),
    ``weighted_accuracy`` (mean over the classes that occur), ``total_loss`` and its terms, means over the images."""
    sums: dict[str, Tensor] = {}
    right, labels = [], []
    with torch.inference_mode(), evaluating(model):
        for inputs, y, *_ in batches:
            output = _output(model, inputs, features)
            terms = losses.terms(model, output, y, settings)
            for name, value in {"total_loss": losses.total(terms, settings), **terms}.items():
                sums[name] = sums.get(name, 0.0) + value.double() * len(y)
            right.append((output.logits.argmax(1) == y).cpu())
            labels.append(y.cpu())
    right, labels = torch.cat(right).double(), torch.cat(labels)
    found = {name: float(value) / len(labels) for name, value in sums.items()}
    by_class = [right[labels == label].mean() for label in labels.unique()]
    return {"accuracy": float(right.mean()), "weighted_accuracy": float(torch.stack(by_class).mean()), **found}


def tune_head(
    model: ProtoNet, batches: Iterable[tuple[Tensor, Tensor]], study: PrototypesStudy, seed: int, features: bool = False
) -> None:
    """``readout_push_epochs`` epochs of the head alone, with an optimizer of its own (``readout_lr``, no weight decay,
    no schedule).

    All else is fixed, so that the similarities [M, P] of ``batches`` (inputs, labels), an augmented epoch, are computed
    once and every epoch here goes through the same ones in another order; the original augments anew.
    """
    settings = study.loss.override({"cluster": 0.0, "separation": 0.0})  # which the head does not change
    rates = study.optimizer.override({"lr": study.optimizer.readout_lr, "weight_decay": 0.0})
    optimizer = optimisation.make(rates, model.head.parameters())
    with evaluating(model):
        with torch.no_grad():
            known = [(_output(model, x, features).similarities, y) for x, y in batches]
        similarities, labels = (torch.cat(column) for column in zip(*known, strict=True))
        for epoch in range(study.train.readout_push_epochs):
            order = torch.randperm(len(labels), generator=runtime.generator(seed, "readout", epoch))
            for rows in order.to(labels.device).split(study.train.batch_size):
                output = Logits(similarities[rows] @ model.weights.T)
                optimizer.zero_grad()
                losses.total(losses.terms(model, output, labels[rows], settings), settings).backward()
                optimizer.step()


def _output(model: nn.Module, inputs: Tensor, features: bool) -> Logits:
    return model.from_features(inputs) if features else model(inputs)
