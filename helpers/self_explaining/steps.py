"""The learner's step in each phase, as `phases.run` takes them.

Of learners together (`together`) ``data`` holds the images of the first, then those of the second, ...
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from helpers import runtime
from helpers.self_explaining import lsx
from helpers.self_explaining.critics import EPS, RHO
from helpers.self_explaining.models import Net
from helpers.self_explaining.phases import Revise, Watcher
from helpers.self_explaining.presets import SelfExplainingStudy
from helpers.self_explaining.sets import Sets


def make_optimizer(study: SelfExplainingStudy, net: nn.Module, rate: float) -> Optimizer:
    """Adadelta (rho 0.9, eps 1e-6) or Adam, of the learner."""
    if study.optimizer == "adam":
        return torch.optim.Adam(net.parameters(), rate, foreach=True)
    return torch.optim.Adadelta(net.parameters(), rate, rho=RHO, eps=EPS, foreach=True)


def pretraining(net: nn.Module, optimizer: Optimizer, data: Sets) -> Revise:
    """Steps of plain classification (spec section 4.1)."""

    def revise(rows: Tensor, step: int) -> Mapping[str, Tensor]:
        batch = data.x[rows], data.y[rows]
        losses = lsx.joint_step(net, optimizer, batch, None, step, class_weights=data.class_weights)
        return {"ClassificationLoss": losses.classification}

    return revise


def joint_training(
    study: SelfExplainingStudy, critique: lsx.Critique, net: nn.Module, optimizer: Optimizer, data: Sets,
    watcher: Watcher,
) -> Revise:  # fmt: skip
    """Steps with a critic each (spec section 4.2). Losses are logged without their weights, but in the total."""
    weights = {"lambda_c": study.classification_loss_weight, "lambda_e": study.explanation_loss_weight}

    def revise(rows: Tensor, step: int) -> Mapping[str, Tensor]:
        batch = data.x[rows], data.y[rows]
        losses = lsx.joint_step(net, optimizer, batch, critique, step, class_weights=data.class_weights, **weights)
        if losses.explanation is None:
            return _values(losses)
        watcher.reflected(losses.explanation)
        return _values(losses._replace(explanation=losses.explanation.mean(0)))

    return revise


def targets(study: SelfExplainingStudy, seed: int, data: Sets, teacher: Net) -> Tensor | None:
    """The explanations of ``teacher`` that `finetuning` asks for, to be made before it moves: of a shuffled epoch of
    its own, since maps are scaled together with their batch. None if they weigh nothing."""
    if not study.explanation_loss_weight_finetune:
        return None
    order = torch.randperm(len(data.y), generator=runtime.generator(seed, "order", "targets"))
    return lsx.targets(teacher, data.x, data.y, study.explanation, study.batch_size, order)


def finetuning(
    study: SelfExplainingStudy, net: nn.Module, optimizer: Optimizer, data: Sets, wanted: Tensor | None
) -> Revise:
    """Steps on labels and on the explanations ``wanted`` [n, C, H, W] of the images of ``data`` (spec section 4.3)."""
    options, weight = study.explanation, study.explanation_loss_weight_finetune

    def revise(rows: Tensor, step: int) -> Mapping[str, Tensor]:
        maps = None if wanted is None else wanted[rows]
        losses = lsx.finetune_loss(
            net, data.x[rows], data.y[rows], maps, options, weight=weight, class_weights=data.class_weights
        )
        optimizer.zero_grad()
        losses.total.sum().backward()
        optimizer.step()
        return _values(losses)

    return revise


def _values(losses: lsx.Losses) -> dict[str, Tensor]:
    """By the names of the log and of TensorBoard's tags."""
    named = zip(("TotalLoss", "ClassificationLoss", "ExplanationLoss"), losses, strict=True)
    return {name: loss.detach() for name, loss in named if loss is not None}
