"""Fits of a group trained at once on one device: K small networks as one large one, for a GPU that one leaves idle.

The weights of the K networks are stacked along a first axis, and `torch.func.vmap` takes loss and gradient over it (K
convolutions become one grouped convolution); Adam is elementwise, so one of it over the stack is K of them. Every fit
has the data, order, initialisation, validations, best weights and end of `fits.train`: it is the same fit up to float
rounding, except that its dropout masks are other draws (which depend on the fits beside it). With no checkpoint, a run
that is cut off begins its unfinished fits again; finished ones are kept at once.

A step takes about half a GB of memory a fit, twice that with feedback.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from tqdm.auto import tqdm

from helpers import artifacts, runtime, training
from helpers.config import ConfigError
from helpers.pinets import fits, losses
from helpers.pinets.fits import Fit
from helpers.pinets.models import Output
from helpers.pinets.presets import ToyShapesStudy, Training

VALIDATED_AT_ONCE = 50  # images of each fit, to bound memory

log = logging.getLogger(__name__)


def train_together(batch: Sequence[Fit], study: ToyShapesStudy, out: Path, progress: bool = False) -> dict[Fit, Any]:
    """Train the fits of ``batch``, all of one group, and keep each as `fits.train` does the moment it ends; return the
    metadata of each. A fit's ``seconds`` are its share of the time, so that they add up to the time taken.

    Raises ``ValueError`` for fits of several groups, `ConfigError` where their data sets differ in length, and
    ``FloatingPointError`` when a loss is not finite.
    """
    if not batch:
        return {}
    if len({fit.group for fit in batch}) > 1:
        raise ValueError("fits that are trained together must be of one group")
    options = batch[0].settings(study).training
    fabric = training.fabric(study.device, options.precision)
    data = _load(batch, study, fabric.device)
    stack = _stack(batch, study, fabric.device)
    gradients, predict = _functions(batch[0], study, fabric)
    outcomes = _Outcomes(batch, study, out, options.learning_rate, fabric._precision.precision)

    bar = tqdm(total=options.epochs, desc=f"{batch[0].group} x {len(batch)}", unit="epoch", disable=not progress)
    with runtime.deterministic():
        for epoch in range(1, options.epochs + 1):
            if not outcomes.running:
                break
            with runtime.seeded(batch[0].seed, *(fit.name for fit in batch), epoch):  # dropout
                stack = _epoch(epoch, stack, data, options, outcomes, gradients, predict)
            bar.update()
            bar.set_postfix(running=len(outcomes.running))
        for k in list(outcomes.running):
            outcomes.finish(k)
    bar.close()
    return outcomes.metadata


def _epoch(epoch, stack: Stack, data: Data, options: Training, outcomes: _Outcomes, gradients, predict) -> Stack:
    """One pass of every fit over its own data. Returns the stack, without the fits that ended if those were many."""
    n = data.y.shape[1]
    evaluated, running, count = fits.evaluation_steps(options, n), 0.0, 0
    order = torch.stack([fits.image_order(fit, options, n, epoch) for fit in outcomes.batch]).to(data.y.device)
    outcomes.begin(epoch)
    for step, start in enumerate(range(0, n, options.batch_size), 1):
        rows = order[stack.members, start : start + options.batch_size]
        slopes, values = gradients(stack.weights, stack.buffers, data.batch(stack.members, rows))
        for name, weight in stack.weights.items():
            weight.grad = slopes[name].contiguous()  # fused Adam walks both in the order in which they lie in memory
        stack.optimizer.step()
        running, count = running + values, count + 1
        if step in evaluated:
            errors = _errors(stack, data, predict)
            outcomes.record(epoch, step, stack, running / count, errors, data.validation_y.shape[1])
            if not outcomes.running:
                return stack
            running, count = running * 0, 0
            alive = [row for row, k in enumerate(stack.members.tolist()) if k in outcomes.running]
            if 2 * len(alive) <= len(stack.members):
                stack, running = stack.select(alive), running[alive]
    if count:
        outcomes.record(epoch, step, stack, running / count)
    return stack


def run_missing(
    study: ToyShapesStudy,
    known: Callable[[Fit], bool | None],
    run: Callable[[Fit, ToyShapesStudy], bool],
    out: Path,
    size: int,
) -> None:
    """`fits.run_missing`, but with up to ``size`` fits of a group trained at once before ``run`` is called for each of
    them, which then has its weights in ``out``. The same fits are run as one by one: never more than can be needed.
    """
    accepted: dict[Fit, bool] = {}
    lookup = fits.remembering(accepted, known)
    while batch := next_batch(study, lookup, size):
        train_together([fit for fit in batch if not fits.weights_path(out, fit).exists()], study, out, progress=True)
        for fit in batch:
            accepted[fit] = run(fit, study)
            log.info("%s: %s", fit.name, "accepted" if accepted[fit] else "rejected")


def next_batch(study: ToyShapesStudy, known: Callable[[Fit], bool | None], size: int) -> list[Fit]:
    """Up to ``size`` fits of one group that are certain to count: those begun next if all before them are accepted."""
    batch: list[Fit] = []
    while len(batch) < size and (fit := fits.next_fit(study, known, set(batch))):
        batch.append(fit)
        study = study.model_copy(update={"groups": (fit.group,)})
    return batch


# --------------------------------------------------------------------------------------------- K of everything


@dataclass(frozen=True)
class Data:
    """The data of K fits on their device: images and masks as bytes, [K, N, 1, H, W]; ``y`` and ``labelled`` [K, N];
    ``expected`` [K], see `fits.mask_carriers`."""

    images: Tensor
    y: Tensor
    masks: Tensor | None
    labelled: Tensor
    expected: Tensor
    validation_images: Tensor
    validation_y: Tensor

    def batch(self, members: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        """Images ``rows`` [M, B] of the fits ``members`` [M]: (x, y, masks, labelled, expected), all [M, ...]."""
        k = members[:, None]
        x = self.images[k, rows].float() / 255
        masks = torch.zeros_like(x[:, :, :, :1, :1]) if self.masks is None else self.masks[k, rows].float()
        return x, self.y[k, rows], masks, self.labelled[k, rows], self.expected[members]


def _load(batch: Sequence[Fit], study: ToyShapesStudy, device: torch.device) -> Data:
    options = batch[0].settings(study).training
    columns: list[list[Tensor]] = [[] for _ in range(7)]
    for fit in batch:
        train, validation = fits.replication(study, fit.data_seed)
        labelled, expected = fits.mask_carriers(fit, options, train.y)
        masks = _bytes(train.masks) if options.strong else torch.zeros(len(train))  # nothing else looks at them
        row = (_bytes(train.x * 255), train.y, masks, labelled, torch.tensor(expected))
        for column, value in zip(columns, (*row, _bytes(validation.x * 255), validation.y), strict=True):
            column.append(value)
    if len({len(y) for y in columns[1]}) > 1:
        raise ConfigError("fits whose data sets differ in length cannot be trained together: set TOGETHER = 0")
    images, y, masks, *rest = (torch.stack(column).to(device) for column in columns)
    return Data(images, y, masks if options.strong else None, *rest)


def _bytes(values: Tensor) -> Tensor:
    return values.round().to(torch.uint8)


@dataclass
class Stack:
    """The fits ``members`` [M] of a batch in training: ``weights`` and ``buffers`` by name, each [M, ...]."""

    members: Tensor
    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    optimizer: torch.optim.Adam

    def select(self, rows: list[int]) -> Stack:
        """The stack of some of its rows, moments of Adam included."""
        weights = {name: weight[rows] for name, weight in self.weights.items()}
        optimizer = torch.optim.Adam(weights.values(), **self.optimizer.defaults)
        for old, new in zip(self.weights.values(), weights.values(), strict=True):
            slots = self.optimizer.state[old]
            optimizer.state[new] = {k: v[rows] if v.shape == old.shape else v for k, v in slots.items()}
        buffers = {name: buffer[rows] for name, buffer in self.buffers.items()}
        return Stack(self.members[rows], weights, buffers, optimizer)


def _stack(batch: Sequence[Fit], study: ToyShapesStudy, device: torch.device) -> Stack:
    options = batch[0].settings(study).training
    weights, buffers = stack_module_state([fits.initialise(fit, study) for fit in batch])
    weights = {name: weight.detach().to(device) for name, weight in weights.items()}
    optimizer = torch.optim.Adam(weights.values(), options.learning_rate, options.betas, fused=True)
    buffers = {name: buffer.to(device) for name, buffer in buffers.items()}
    return Stack(torch.arange(len(batch), device=device), weights, buffers, optimizer)


class _BatchNorm(nn.BatchNorm2d):
    """In float32 also under autocast: vmap's rule for batch norm refuses statistics of another type than the input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def _functions(fit: Fit, study: ToyShapesStudy, fabric) -> tuple[Callable, Callable]:
    """(``gradients(weights, buffers, batch) -> (gradients by name, losses [M])``, which moves the running statistics in
    ``buffers``; ``predict(weights, buffers, x [M, B, 1, H, W]) -> logits [M, B]``)."""
    options = fit.settings(study).training
    terms = {"feedback": options.feedback, "strong": options.strong, "sparsity": options.sparsity}
    with torch.device("meta"):  # the structure; the values come from the stack
        networks = [fits.build(fit.settings(study).model, study.data.image_size).train(mode) for mode in (True, False)]
    for module in (module for network in networks for module in network.modules()):
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _BatchNorm
    training_network, evaluation_network = networks

    def loss(weights, buffers, batch) -> Tensor:
        def model(x: Tensor) -> Output:
            with fabric.autocast():
                output = functional_call(training_network, (weights, buffers), (x,))
            return Output(*(None if part is None else part.float() for part in output))

        *tensors, expected = batch
        return losses.total_loss(**terms, expected=expected)(model, tuple(tensors))

    def predict(weights, buffers, x: Tensor) -> Tensor:
        with fabric.autocast(), torch.no_grad():
            return functional_call(evaluation_network, (weights, buffers), (x,)).logits

    return vmap(grad_and_value(loss), randomness="different"), vmap(predict)


def _errors(stack: Stack, data: Data, predict: Callable) -> list[int]:
    """Validation images that each fit of the stack has on the wrong side of 0."""
    wrong: Any = 0
    for start in range(0, data.validation_y.shape[1], VALIDATED_AT_ONCE):
        part = slice(start, start + VALIDATED_AT_ONCE)
        x = data.validation_images[stack.members, part].float() / 255
        y = data.validation_y[stack.members, part] > 0
        wrong = wrong + ((predict(stack.weights, stack.buffers, x) > 0) != y).sum(1)
    return wrong.tolist()


# ------------------------------------------------------------------------------------------------- K outcomes


class _Outcomes:
    """How each fit of a batch stands: which are ``running``, what they came to, what was kept."""

    def __init__(self, batch: Sequence[Fit], study: ToyShapesStudy, out: Path, rate: float, precision: str):
        self.batch, self.study, self.out, self.rate, self.precision = batch, study, out, rate, precision
        self.outcomes = [training.Outcome() for _ in batch]
        self.running = dict.fromkeys(range(len(batch)))  # a set that keeps its order
        self.metadata: dict[Fit, dict[str, Any]] = {}
        self.clock = time.monotonic()

    def begin(self, epoch: int) -> None:
        for k in self.running:
            self.outcomes[k].epochs = epoch

    def record(self, epoch, step, stack: Stack, mean_loss: Tensor, errors: list[int] | None = None, n=0) -> None:
        """A row of each running fit's history; after a validation also its best weights, and its end at accuracy 1."""
        now = time.monotonic()
        share, self.clock = (now - self.clock) / len(self.running), now
        state: dict[str, Tensor] = {}
        for row, (k, loss) in enumerate(zip(stack.members.tolist(), mean_loss.tolist(), strict=True)):
            if k not in self.running:
                continue
            outcome = self.outcomes[k]
            outcome.seconds += share
            if not math.isfinite(loss):
                raise FloatingPointError(f"{self.batch[k].name}: the loss is {loss} in epoch {epoch}, step {step}")
            score = None if errors is None else (n - errors[row]) / n
            if score is not None and score <= outcome.score:
                score = None
            outcome.history.append(
                {"epoch": epoch, "step": step, "loss": loss, "score": score, "learning_rate": self.rate}
            )
            if score is not None:
                state = state or {name: t.cpu() for name, t in (stack.weights | stack.buffers).items()}
                outcome.score, outcome.epoch, outcome.step = score, epoch, step
                outcome.state = {name: tensor[row].clone() for name, tensor in state.items()}
                if score >= 1:
                    outcome.finished = True
                    self.finish(k)

    def finish(self, k: int) -> None:
        fit, outcome = self.batch[k], self.outcomes[k]
        del self.running[k]
        log_file = fits.work_folder(self.out, fit, self.study) / "log.csv"
        artifacts.atomic_write(log_file, training.log_csv(outcome.history))
        self.metadata[fit] = fits.keep(fit, self.study, self.out, outcome, self.precision)
