"""What every method is made of: the logit that is explained, the signature, and how channels collapse."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from helpers.config import ConfigError, suggest

Baseline = float | Tensor  # the look of absence: a number, or a tensor broadcastable to x
METHODS: dict[str, Callable[..., Tensor]] = {}


def explainer(name: str, **options: object) -> Callable[[nn.Module, Tensor, Tensor | None], Tensor]:
    """The method ``name``, its options set. Raises `ConfigError`, with near misses, for unknown ones."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}: {suggest(name, METHODS)}")
    parameters = inspect.signature(METHODS[name]).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for option in options:
        if option not in known:
            near = suggest(option, known) if known else "it takes none"
            raise ConfigError(f"{name} has no option {option!r}: {near}")
    for option, default in known.items():
        if default is inspect.Parameter.empty and option not in options:
            raise ConfigError(f"{name} needs the option {option!r}")
    return functools.partial(METHODS[name], **options)


def collapse(values: Tensor, signed: bool = True) -> Tensor:
    """How channels become one map, in every method: [B, C, H, W] to [B, H, W].

    Contributions are ``signed``: summed over channels, they still add up to what they explain. Of
    sensitivities the largest magnitude counts (arXiv 1312.6034, section 3.1): how far y can move.
    """
    return values.sum(1) if signed else values.abs().amax(1)


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """[B, K], whatever surrounds them in the model's output; ``ValueError`` for what are no logits, or not finite."""
    output = model(x)
    logits = getattr(output, "logits", output[0] if isinstance(output, tuple | list) else output)
    logits = logits[:, None] if logits.ndim == 1 else logits
    if logits.ndim != 2 or len(logits) != len(x):
        raise ValueError(f"expected logits [B], [B, 1] or [B, K] of {len(x)} images, not {tuple(logits.shape)}")
    if not logits.isfinite().all():
        raise ValueError("the model's logits are not finite")
    return logits


class Logit(nn.Module):
    """What is explained: ``y(x)`` [n * B], the logit of the target of each image of n batches in a row."""

    def __init__(self, model: nn.Module, target: Tensor | None):
        super().__init__()
        self.model, self.target = model, target

    def of(self, rows: Tensor) -> Logit:
        """The same of the images ``rows`` alone."""
        return Logit(self.model, None if self.target is None else self.target[rows])

    def forward(self, x: Tensor, probability: bool = False) -> Tensor:
        logits = logits_of(self.model, x)
        classes, target = logits.shape[1], self.target
        if classes == 1:
            return (logits.sigmoid() if probability else logits)[:, 0]
        if target is None or target.is_floating_point() or not ((target >= 0) & (target < classes)).all():
            raise ValueError(f"expected for each image a target of 0..{classes - 1}, not {target}")
        target = target.long().to(logits.device).repeat(len(x) // len(target))[:, None]
        return (logits.softmax(1) if probability else logits).gather(1, target)[:, 0]


def aimed(x: Tensor, target: Tensor | None) -> Tensor | None:
    """``target`` (a list will do) as a tensor; ``ValueError`` unless it is one for each image of x, or None."""
    if target is not None and (target := torch.as_tensor(target)).shape != x.shape[:1]:
        raise ValueError(f"expected one target per image, [{len(x)}], not {list(target.shape)}")
    return target


def method(body: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Registers ``body(y, x, *, options)`` as the method ``explain(model, x, target, *, options)``."""

    @functools.wraps(body)
    def explain(model: nn.Module, x: Tensor, target: Tensor | None = None, **options: object) -> Tensor:
        if x.ndim != 4 or len(x) == 0 or not x.is_floating_point():
            raise ValueError(f"expected x [B, C, H, W] of floats with B > 0, not {x.dtype} {tuple(x.shape)}")
        if (target := aimed(x, target)) is not None:
            target = target.to(x.device)
        with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
            heat = body(Logit(model, target), x.clone().detach(), **options).detach()
        if not heat.isfinite().all():
            raise ValueError(f"the heat map of {body.__name__} is not finite")
        return heat

    shared = list(inspect.signature(explain, follow_wrapped=False).parameters.values())[:3]
    options = list(inspect.signature(body).parameters.values())[2:]
    explain.__signature__ = inspect.Signature([*shared, *options], return_annotation="Tensor")
    METHODS[body.__name__] = explain
    return explain


def refuse_training(model: nn.Module) -> None:
    """``ValueError`` if a module of ``model`` is in training mode."""
    if any(module.training for module in model.modules()):
        raise ValueError("the model is in training mode: call model.eval() first")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, and in its own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[..., Tensor]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def like(x: Tensor, value: Baseline) -> Tensor:
    return torch.as_tensor(value, dtype=x.dtype, device=x.device).expand_as(x)
