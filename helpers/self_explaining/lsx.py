"""Learning by self-explaining: explain, reflect, revise (arXiv 2309.08395; spec cnn_lsx, sections 4 and 10).

In a step the learner f (weights theta) explains the whole critic set, N batches; a fresh critic c (weights phi) learns
from these maps in one pass; and what the critic lost on the way is sent back through the maps into theta:

    g = weight / N * sum_j d l_j / d theta,    l_j = CE(c(E_j(theta); phi_j), y_j),    phi_j held constant

The critic needs no more than the values of the maps. So it learns from detached ones, which leaves G_j = d l_j / d E_j,
and g is one product of the Jacobian of all maps with all G_j (``vjp``). Nothing in the critic's pass is differentiated
twice, and the second derivatives are taken in whatever parts are fastest instead of once a critic batch (``batches``,
the plain way).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from helpers import runtime
from helpers.attribution.base import hooked
from helpers.self_explaining import models
from helpers.self_explaining.captured import captured
from helpers.self_explaining.critics import Reflection, fresh_critic, members, nll, order, reflect
from helpers.self_explaining.derivatives import fast
from helpers.self_explaining.explanations import explain
from helpers.self_explaining.feedback import Gradients, Way, feedback
from helpers.self_explaining.presets import Explanation, SelfExplainingStudy
from helpers.self_explaining.sets import Sets
from helpers.self_explaining.together import Together

BY_MODE = (_DropoutNd, _NormBase)  # layers that do something else in training than in eval mode

__all__ = [
    "Critique", "Losses", "Reflection", "critique", "feedback", "finetune_loss", "fresh_critic", "joint_step", "order",
    "reflect", "targets",
]  # fmt: skip


class Losses(NamedTuple):
    """Of a learner step. ``total`` is the weighted sum; ``explanation`` is None where the maps were not asked."""

    total: Tensor
    classification: Tensor
    explanation: Tensor | None


@dataclass(frozen=True)
class Critique:
    """What all steps of a joint phase have in common: the critic set ``x`` [S, N, b, C, H, W] and ``y`` int64 [S, N, b]
    of each of the ``seeds`` that are trained together (as a rule one), the labels ``shown`` to the critics, how they
    are built and trained, and how the learner explains itself.

    On CUDA a learner's first feedback is recorded as a graph of kernels, and replayed from then on.
    """

    x: Tensor
    y: Tensor
    shown: Tensor
    options: Explanation
    critic: str
    n_classes: int
    seeds: tuple[int, ...]
    learning_rate: float = 0.2
    class_weights: Tensor | None = None
    way: Way = "vjp"
    chunk: int = 1152
    _replays: dict = field(default_factory=dict, repr=False, compare=False)

    def feedback(self, learner: nn.Module, step: int, weight: float = 1.0) -> tuple[Gradients, Tensor]:
        """(gradients as `feedback` gives them, losses [N] or [N, S] along the pass) of the critics of ``step``. Of more
        than one seed the ``learner`` is a `Together`, too."""
        n, where = self.x.shape[1], self.x.device
        fresh = [fresh_critic(self.critic, self.x.shape[3], self.n_classes, seed, step, where) for seed in self.seeds]
        critic_net = Together(fresh) if len(fresh) > 1 else fresh[0]
        orders = torch.stack([order(seed, step, n) for seed in self.seeds]).to(where)
        inputs = [*critic_net.parameters(), orders]
        key = (weight, *(parameter.data_ptr() for parameter in learner.parameters()))
        with runtime.seeded(self.seeds[0], "critic", step, "dropout"):
            if key not in self._replays:
                run = partial(self._run, learner, critic_net, orders, weight)
                self._replays[key] = captured(run, inputs)
            *gradients, losses = self._replays[key](inputs)
        return tuple(gradients), losses.clone()

    def _run(self, learner: nn.Module, critic_net: nn.Module, orders: Tensor, weight: float) -> tuple[Tensor, ...]:
        """(*gradients, losses): tensors only, made of tensors that stay where they are."""
        x, y, shown = (
            torch.cat([one[at] for one, at in zip(values, orders, strict=True)], 1)
            for values in (self.x, self.y, self.shown)
        )
        gradients, reflection = feedback(
            learner, critic_net, x, y, self.options, learning_rate=self.learning_rate, shown=shown,
            class_weights=self.class_weights, weight=weight, way=self.way, chunk=self.chunk,
        )  # fmt: skip
        return *gradients, reflection.losses


def critique(study: SelfExplainingStudy, data: Sets | Sequence[Sets], seed: int | Sequence[int]) -> Critique:
    """The critique of a run of ``study``, or of runs with several seeds together. With ``rand_critic`` the critics are
    shown the labels of their images in a random order."""
    sets, seeds = ([data], [seed]) if isinstance(seed, int) else (data, seed)
    y = torch.stack([one.critic_y for one in sets])
    shown = y
    if study.rand_critic:
        mixed = [torch.randperm(y[0].numel(), generator=runtime.generator(s, "rand critic")) for s in seeds]
        shown = torch.stack([one.flatten()[at.to(y.device)].view_as(one) for one, at in zip(y, mixed, strict=True)])
    return Critique(
        x=torch.stack([one.critic_x for one in sets]),
        y=y,
        shown=shown,
        options=study.explanation,
        critic=models.pair(study.model)[1],
        n_classes=sets[0].n_classes,
        seeds=tuple(seeds),
        learning_rate=study.learning_rate_critic,
        class_weights=sets[0].class_weights,
        way=study.feedback,
        chunk=study.chunk,
    )


def joint_step(
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    critique: Critique | None,
    step: int,
    *,
    lambda_c: float = 1.0,
    lambda_e: float = 0.0,
    class_weights: Tensor | None = None,
) -> Losses:
    """One step of the learner on ``batch``, x [B, C, H, W] and y int64 [B] (spec 4.2): theta moves along lambda_c times
    the gradient of the cross-entropy and lambda_e times that of the mean loss of the critic of ``step``.

    ``lambda_e`` = 0 is the plain step, to the bit, whatever the maps would be: nothing is explained. Returns the losses
    before the step, detached, ``explanation`` [N] along the critic's pass. What is not finite is not looked for: that
    would be a wait for the device in every step. Of a `Together` the batch has [S * B] rows, and losses an axis [S].
    Raises ``ValueError`` for a ``lambda_e`` without a critique.
    """
    x, y = batch
    parameters = list(learner.parameters())
    classification = nll(learner(x), y, class_weights, members(learner))
    gradients = grad((lambda_c * classification).sum(), parameters)
    total, explanation = lambda_c * classification.detach(), None
    if lambda_e and critique is None:
        raise ValueError("lambda_e asks for a critique")
    if lambda_e:
        found, explanation = critique.feedback(learner, step, lambda_e)
        gradients = torch._foreach_add(gradients, found)
        total = total + lambda_e * explanation.mean(0)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    return Losses(total, classification.detach(), explanation)


# ---------------------------------------------------------------------------------------------------- consolidate


def targets(
    learner: nn.Module, x: Tensor, y: Tensor, options: Explanation, batch_size: int, order: Tensor | None = None
) -> Tensor:
    """The explanations [n, C, H, W] of all images ``x`` for the labels ``y``, detached: what finetuning wants of the
    fresh learner (spec 4.3, item 1). ``order`` int64 [n] (None: as they are) says who is in a batch of ``batch_size``
    with whom, on which the norm ``batch`` depends; the maps lie in the order of x. ``ValueError`` for another order."""
    order = torch.arange(len(x)) if order is None else order
    if not torch.equal(order.sort().values.cpu(), torch.arange(len(x))):
        raise ValueError(f"order must name each of {len(x)} images once")
    maps = torch.empty_like(x)
    for rows in order.to(x.device).split(batch_size):
        with fast():
            maps[rows] = explain(learner, x[rows], y[rows], options)
    return maps


def finetune_loss(
    learner: nn.Module,
    x: Tensor,
    y: Tensor,
    wanted: Tensor,
    options: Explanation,
    *,
    weight: float,
    class_weights: Tensor | None = None,
) -> Losses:
    """``CE(f(x), y) + weight * MSE(wanted, E(x))``, the mean over pixels and images (spec 4.3, item 3), with its graph.

    ``wanted`` [B, C, H, W] are the rows of `targets`. ``weight`` = 0 is the plain loss: nothing is explained. Where the
    explanation asks for the log-probabilities of x as they are, they serve both terms. Of a `Together` there are
    [S * B] rows, and losses have an axis [S]; it is not for integrated gradients, as `feedback` says.
    """
    nets = members(learner)
    outputs: list[Tensor] = []
    if weight:
        with fast(), hooked([learner], lambda module, args, output: outputs.append(output)):
            explanation = _mse(explain(learner, x, y, options, graph=True, batches=nets), wanted, nets)
    alike = not any(isinstance(module, BY_MODE) for module in learner.modules())  # explanations are of eval mode
    shared = outputs and options.mode in ("input_x_gradient", "gradcam") and alike
    classification = nll(outputs[0] if shared else learner(x), y, class_weights, nets)
    if not weight:
        return Losses(classification, classification, None)
    return Losses(classification + weight * explanation, classification, explanation)


def _mse(maps: Tensor, wanted: Tensor, members: int) -> Tensor:
    """The mean squared error, of several nets in one (`together`) that of each: [] or [members]."""
    if members == 1:
        return F.mse_loss(maps, wanted)
    return (maps - wanted).square().reshape(members, -1).mean(1)
