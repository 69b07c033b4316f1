"""The way back from what critics lose, through the learner's maps, into its weights (spec cnn_lsx, section 10)."""

from __future__ import annotations

import copy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.func import jvp

from helpers.attribution.base import evaluating
from helpers.config import ConfigError
from helpers.self_explaining import explanations
from helpers.self_explaining.critics import EPS, RHO, Reflection, members, nll, reflect
from helpers.self_explaining.derivatives import at_once, fast
from helpers.self_explaining.explanations import explain, post, raw
from helpers.self_explaining.presets import Explanation

Way = Literal["vjp", "jvp", "batches"]
Gradients = tuple[Tensor, ...]


def feedback(
    learner: nn.Module,
    critic_net: nn.Module,
    x: Tensor,
    y: Tensor,
    options: Explanation,
    *,
    learning_rate: float,
    order: Tensor | None = None,
    shown: Tensor | None = None,
    class_weights: Tensor | None = None,
    weight: float = 1.0,
    way: Way = "vjp",
    chunk: int = 1152,
) -> tuple[Gradients, Reflection]:
    """(``weight`` times the gradient of the critic's mean loss to each of ``learner.parameters()``, the critic's pass).

    ``x`` [N, b, C, H, W] are explained for ``y`` [N, b]; the critic is shown the labels ``shown`` (None: y). Weights
    that the maps do not depend on get zeros. ``way``:

    - ``vjp``: one product with the Jacobian of the maps. Their graphs, a MB an image, are kept if there are no more
      than ``chunk`` images, else maps are made a second time.
    - ``jvp``: without second-order graphs (spec 10, item 2). With V = d <E, G> / dA, the gradient of <A, V> =
      <x * df_y/dx, V> to theta is that of the derivative of f_y at x in the direction x * V, which is carried forward
      beside f_y. Of gradcam there is no such form: it takes ``vjp``.
    - ``batches``: as the original does it, all graphs alive, a second-order pass a batch: the reference.

    Mode ``input`` gives zeros. Changes neither learner nor critic, and draws nothing but the critic's dropout. Raises
    `ConfigError` for integrated gradients of several nets in one (`together`).
    """
    if members(learner) > 1 and "integrated" in options.mode:  # its rows are points, not nets, one after the other
        raise ConfigError(f"{options.mode} is for one net at a time: train the seeds one after the other")
    n, shown = len(x), y if shown is None else shown
    one_pass = {"learning_rate": learning_rate, "order": order, "class_weights": class_weights}
    if way == "batches":
        return _batches(learner, critic_net, x, y, options, shown, weight, **one_pass)
    back = _jvp if way == "jvp" and options.mode != "gradcam" else _vjp
    kept = back is _vjp and x.shape[:2].numel() <= chunk

    size = max(1, chunk // x.shape[1])
    parts = [_Part.of(x[i : i + size], y[i : i + size], members(learner)) for i in range(0, n, size)]
    made = [part.explain(learner, options, graph=kept) for part in parts]
    maps = torch.cat([part.batches(e.detach()) for part, (_, e) in zip(parts, made, strict=True)])
    reflection = reflect(critic_net, maps, shown, **one_pass)

    total = [torch.zeros_like(parameter) for parameter in learner.parameters()]
    if options.mode != "input":
        for part, slopes in zip(parts, (reflection.gradients * (weight / n)).split(size), strict=True):
            torch._foreach_add_(total, back(learner, part, options, part.rows(slopes), *made.pop(0)))
    return tuple(total), reflection


class _Part(NamedTuple):
    """Some whole batches as rows of one: those of the first member, then those of the next. x [R, C, H, W], y [R]."""

    x: Tensor
    y: Tensor
    members: int
    count: int  # of batches of all members

    @classmethod
    def of(cls, x: Tensor, y: Tensor, members: int) -> _Part:
        """Of x [k, members * b, C, H, W] and y [k, members * b]."""
        part = cls(x, y, members, members * len(x))
        return part._replace(x=part.rows(x), y=part.rows(y))

    def rows(self, values: Tensor) -> Tensor:
        return values.unflatten(1, (self.members, -1)).transpose(0, 1).flatten(0, 2)

    def batches(self, values: Tensor) -> Tensor:
        k = self.count // self.members
        return values.unflatten(0, (self.members, k, -1)).transpose(0, 1).flatten(1, 2)

    def explain(self, learner: nn.Module, options: Explanation, graph: bool) -> tuple[Tensor, Tensor]:
        """(A, E), as `explanations.explain` makes them."""
        size = at_once(self.x.device) if self.members == 1 else len(self.x)
        pieces = zip(self.x.split(size), self.y.split(size), strict=True)
        with fast():
            a = torch.cat([raw(learner, x, y, options, graph=graph) for x, y in pieces])
            return a, post(a, options, self.x, batches=self.count)


def _vjp(learner: nn.Module, part: _Part, options: Explanation, slopes: Tensor, a: Tensor, e: Tensor) -> Gradients:
    """The gradient of <E, slopes> to the weights."""
    e = e if e.requires_grad else part.explain(learner, options, graph=True)[1]
    return _gradients(e, learner, slopes)


def _jvp(learner: nn.Module, part: _Part, options: Explanation, slopes: Tensor, a: Tensor, e: Tensor) -> Gradients:
    """The same from derivatives of f_y in a direction, at x or at the nodes of the integral."""
    a = a.requires_grad_()
    v = grad(post(a, options, part.x, batches=part.count), a, slopes)[0]
    nodes, weights = ([1.0], [1.0])
    if options.mode != "input_x_gradient":
        nodes, weights = (values.tolist() for values in explanations.quadrature(options.steps))

    def score(x: Tensor) -> Tensor:
        return explanations.explained_score(learner, x, part.y, options)

    total = [torch.zeros_like(parameter) for parameter in learner.parameters()]
    with evaluating(learner):
        for node, weight in zip(nodes, weights, strict=True):
            _, along = jvp(score, (node * part.x,), (weight * part.x * v,))
            torch._foreach_add_(total, _gradients(along, learner))
    return tuple(total)


def _gradients(value: Tensor, learner: nn.Module, slopes: Tensor | None = None) -> Gradients:
    """To all weights, zeros where there is no way."""
    return grad(value, list(learner.parameters()), slopes, allow_unused=True, materialize_grads=True)


def _batches(
    learner: nn.Module, critic_net: nn.Module, x: Tensor, y: Tensor, options: Explanation, shown: Tensor, weight: float,
    *, learning_rate: float, order: Tensor | None, class_weights: Tensor | None,
) -> tuple[Gradients, Reflection]:  # fmt: skip
    """Spec 4.2 to the letter, in PyTorch's own layers and optimizer."""
    critic = copy.deepcopy(critic_net)
    optimizer = torch.optim.Adadelta(critic.parameters(), learning_rate, rho=RHO, eps=EPS)
    order = torch.arange(len(x)) if order is None else order
    theta, phi = list(learner.parameters()), list(critic.parameters())
    total, losses = [torch.zeros_like(parameter) for parameter in theta], []
    parts = [_Part.of(x[j : j + 1], y[j : j + 1], members(learner)) for j in range(len(x))]
    maps = [explain(learner, part.x, part.y, options, graph=True, batches=part.count) for part in parts]
    for j in order.tolist():
        losses.append(nll(critic(maps[j]), shown[j], class_weights, members(critic)))
        found = grad(losses[-1].sum(), [*phi, *theta], allow_unused=True, materialize_grads=True)
        for parameter, slope in zip(phi, found, strict=False):
            parameter.grad = slope
        optimizer.step()
        torch._foreach_add_(total, found[len(phi) :], alpha=weight / len(x))
        maps[j] = None
    state = {name: value.detach() for name, value in critic.named_parameters()}
    return tuple(total), Reflection(torch.stack(losses).detach(), None, state, order)
