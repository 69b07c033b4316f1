"""The epoch loop that every study shares, on Lightning Fabric: precision, progress, logs, checkpoint and resume.

Batches and random draws are pure functions of the epoch, so a checkpoint at an epoch's end holds all there is: a run
that was killed and resumed takes the same steps as one that was not. Of several processes each takes its share of every
batch; their gradients are averaged before each step, so that all hold the same weights.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from helpers import artifacts, processes, runtime

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Precision = Literal["auto", "float32", "bfloat16"]

COLUMNS = ("epoch", "step", "loss", "score", "learning_rate")  # of every history; others may follow


@dataclass
class Outcome:
    """What a training came to. ``score`` is the best evaluation (higher is better), ``state`` the weights that had it,
    ``epoch`` and ``step`` (1-based, within the epoch) when; ``epochs`` is how many were begun, ``finished`` says that
    ``stop_at`` or ``stop_rate`` was reached before they ran out; ``seconds`` adds up over resumed runs."""

    score: float = -math.inf
    epoch: int = 0
    step: int = 0
    epochs: int = 0
    finished: bool = False
    seconds: float = 0.0
    history: list[dict[str, float | None]] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)


class Plateau:
    """torch's ``ReduceLROnPlateau`` as a scheduler of `train`: the rate is multiplied by ``factor`` once ``metric``, to
    be set after each epoch, has not fallen (``mode`` "min") or risen ("max") for more than ``patience`` epochs. It is
    no negative number: progress is counted relative to it."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, factor: float, patience: int, mode: Literal["min", "max"] = "max"
    ):
        self.inner = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode, factor=factor, patience=patience)
        self.metric = math.nan

    def step(self) -> None:
        self.inner.step(self.metric)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


def fabric(device: runtime.Device = "auto", precision: Precision = "auto", devices: int = 1) -> Fabric:
    """A Fabric on ``device``. ``auto`` precision is bfloat16 autocast where it is faster (`runtime.fast_dtype`), else
    float32.

    Several ``devices`` are one process each: what trains is a function of the Fabric, ``fabric.launch(function, ...)``,
    in a script as in a notebook and under ``torchrun``.
    """
    if all(map(importlib.util.find_spec, ("torchmetrics", "torchvision"))):
        runtime.import_torchvision()  # Fabric imports the one, this the other, and fails in other words if it is broken
    from lightning_fabric import Fabric  # takes seconds to import, and only training needs it

    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)  # a line for every Fabric made
    where = runtime.device(device)
    if precision == "auto":
        precision = "bfloat16" if runtime.fast_dtype(where) == torch.bfloat16 else "float32"
    return Fabric(
        accelerator=where.type,
        devices=devices,
        strategy="auto" if devices == 1 else processes.strategy(),
        precision={"float32": "32-true", "bfloat16": "bf16-mixed"}[precision],
    )


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[nn.Module, Any], Tensor | Mapping[str, Tensor]],
    batches: Callable[[int], Iterable[Any]],
    *,
    fabric: Fabric,
    epochs: int,
    seed: int,
    evaluate: Callable[[nn.Module, float], float | None] | None = None,
    evaluate_at: Sequence[int] = (),
    stop_at: float = math.inf,
    scheduler: torch.optim.lr_scheduler.LRScheduler | Plateau | None = None,
    stop_rate: float = 0.0,
    before_epoch: Callable[[nn.Module, int], None] | None = None,
    after_epoch: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    average_from: int | None = None,
    folder: Path | None = None,
    checkpoint_seconds: float = 30.0,
    tensorboard: bool | Path = False,
    progress: str | None = None,
) -> Outcome:
    """Train, and keep the weights with the best evaluation.

    ``batches(epoch)`` gives the epoch's batches, a function of the epoch alone; ``loss(model, batch)`` a scalar, or
    several by name, of which ``"loss"`` is minimised and the means of all stand in the history.
    ``evaluate(model, best)`` returns a score, or None as soon as it knows that ``best`` cannot be beaten; it runs in
    eval mode after the batches ``evaluate_at`` of each epoch (at its end if none are given). Training stops the moment
    a score reaches ``stop_at``, and after an epoch that leaves the learning rate at ``stop_rate`` or below. Without
    ``evaluate`` the last weights are kept.

    ``before_epoch(model, epoch)`` comes before an epoch's first batch, and ``after_epoch(model, epoch)`` after its last
    step and evaluation: it may change the weights, and what it returns are further columns of the epoch's row; a
    ``score`` among them counts as an evaluation does. ``accumulate`` batches make a step, gradients are clipped to the
    norm ``clip_norm``. With ``average_from``, and nothing that gives a score, the mean of the weights after this epoch
    and all later ones is kept.

    In several processes (`fabric`) ``batches`` gives each its equal share; ``evaluate`` and ``after_epoch`` run in the
    first one alone, and the others take over its weights.

    ``folder`` holds ``checkpoint.safetensors`` (written at most every ``checkpoint_seconds``, at an epoch's end) and
    ``log.csv``, and TensorBoard events if wanted (or a folder of their own does); a second call with the same arguments
    continues from there.
    ``progress`` names the progress bar, which the first process shows; None shows none. Raises ``FloatingPointError``
    when the loss is not finite.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, not {epochs}")
    outcome, first = Outcome(), 1
    checkpoint = folder / "checkpoint.safetensors" if folder else None
    model, optimizer = fabric.setup(model, optimizer)
    step = _Step(model, optimizer, loss, fabric, accumulate, clip_norm)
    if checkpoint and checkpoint.exists():  # only now do the weights lie on the device where the moments have to be
        outcome = _restore(checkpoint, model.module, optimizer.optimizer, scheduler)
        first = outcome.epochs + 1
    fabric.barrier()  # nobody writes what another has yet to read
    first_process = fabric.global_rank == 0
    writer = _tensorboard(tensorboard, folder) if first_process else None
    started, saved = time.monotonic() - outcome.seconds, time.monotonic()

    hidden = progress is None or not first_process
    bar = tqdm(total=epochs, initial=first - 1, desc=progress, unit="epoch", disable=hidden, leave=False)
    for epoch in range(first, epochs + 1):
        if outcome.finished:
            break
        outcome.epochs = epoch
        if before_epoch:
            before_epoch(model.module, epoch)
        with runtime.seeded(seed, "training", epoch, *processes.rank(fabric)):  # dropout
            _epoch(step, batches(epoch), epoch, evaluate, evaluate_at, stop_at, outcome)
        if after_epoch and not outcome.finished:
            extra = processes.in_first(after_epoch, model.module, fabric, epoch)
            outcome.history[-1] |= extra
            _judge(extra.get("score"), model, outcome, epoch, outcome.history[-1]["step"], stop_at)
        if scheduler:
            scheduler.step()
        if stop_rate and optimizer.param_groups[0]["lr"] <= stop_rate:
            outcome.finished = True
        outcome.seconds = time.monotonic() - started
        if evaluate is None and outcome.score == -math.inf:
            outcome.state = _kept(outcome.state, _copy(model.module), epoch, average_from)
            outcome.epoch = epoch
        bar.update()
        best = {"best": f"{outcome.score:.4g}"} if math.isfinite(outcome.score) else {}  # some are never evaluated
        bar.set_postfix(loss=f"{outcome.history[-1]['loss']:.3g}", **best)
        if writer:
            _write_scalars(writer, [row for row in outcome.history if row["epoch"] == epoch])
        due = checkpoint and first_process and epoch < epochs and not outcome.finished
        if due and time.monotonic() - saved >= checkpoint_seconds:
            _save(checkpoint, outcome, model.module, optimizer.optimizer, scheduler)
            saved = time.monotonic()
    bar.close()
    if writer:
        writer.close()
    if folder and first_process:
        artifacts.atomic_write(folder / "log.csv", log_csv(outcome.history))
    return outcome


@dataclass
class _Step:
    """A step of the optimizer on every ``accumulate`` batches."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[nn.Module, Any], Tensor | Mapping[str, Tensor]]
    fabric: Fabric
    accumulate: int
    clip_norm: float | None

    def gradients(self, batch: Any, number: int) -> dict[str, Tensor]:
        """Add those of the epoch's batch ``number`` (from 1); returns the loss, and what else ``loss`` told."""
        values = self.loss(self.model, batch)
        values = dict(values) if isinstance(values, Mapping) else {"loss": values}
        if (number - 1) % self.accumulate == 0:
            self.optimizer.zero_grad()
        self.fabric.backward(values["loss"] / self.accumulate if self.accumulate > 1 else values["loss"])
        return {name: value.detach() for name, value in values.items()}

    def take(self) -> None:
        processes.average([p.grad for p in self.model.parameters() if p.grad is not None], self.fabric)
        if self.clip_norm:  # what is not finite is reported with its place, in `_record`
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.clip_norm, error_if_nonfinite=False)
        self.optimizer.step()


def _epoch(step: _Step, batches, epoch, evaluate, evaluate_at, stop_at, outcome) -> None:
    """One pass over ``batches``; adds a row to the history at each evaluation and at the end."""
    step.model.train()
    running, count, number = {}, 0, 0
    evaluated = False
    for number, batch in enumerate(batches, 1):
        values = step.gradients(batch, number)
        if number % step.accumulate == 0:
            step.take()
        running, count = {name: running.get(name, 0.0) + value for name, value in values.items()}, count + 1
        evaluated = number in evaluate_at
        if evaluated:
            _record(step, epoch, number, running, count, evaluate, stop_at, outcome)
            running, count = {}, 0
            if outcome.finished:
                return
    if not number:
        raise ValueError(f"epoch {epoch} has no batches")
    if evaluate and evaluate_at and number < min(evaluate_at):
        raise ValueError(f"epoch {epoch} has {number} batches, none of those that evaluate_at names: {evaluate_at}")
    if number % step.accumulate:
        step.take()
    processes.average([b for b in step.model.buffers() if b.is_floating_point()], step.fabric)  # batch statistics
    if not evaluated:
        late = evaluate if not evaluate_at else None
        _record(step, epoch, number, running, count, late, stop_at, outcome)


def _record(step: _Step, epoch, number, running, count, evaluate, stop_at, outcome) -> None:
    means = {name: float(step.fabric.all_reduce(total / count)) for name, total in running.items()}
    mean_loss = means.pop("loss")
    if not math.isfinite(mean_loss):
        raise FloatingPointError(f"the loss is {mean_loss} in epoch {epoch}, step {number}: lower the learning rate")
    score = None
    if evaluate:
        model = step.model.eval()
        with torch.inference_mode():
            score = processes.in_first(evaluate, model, step.fabric, outcome.score)
        model.train()
        _judge(score, model, outcome, epoch, number, stop_at)
    rate = step.optimizer.param_groups[0]["lr"]
    row = {"epoch": epoch, "step": number, "loss": mean_loss, "score": score, "learning_rate": rate}
    outcome.history.append(row | means)


def _judge(score: float | None, model: nn.Module, outcome: Outcome, epoch: int, number: int, stop_at: float) -> None:
    """Keep the weights if they have the best ``score`` so far."""
    if score is not None and score > outcome.score:
        outcome.score, outcome.epoch, outcome.step = score, epoch, number
        outcome.state = _copy(model.module)
        outcome.finished = score >= stop_at


def _kept(before: dict[str, Tensor], state: dict[str, Tensor], epoch: int, average_from: int | None):
    """``state``, the weights after ``epoch``, or from the epoch after ``average_from`` on their running mean."""
    if average_from is None or epoch <= average_from:
        return state
    share = 1 / (epoch - average_from + 1)
    return {k: before[k].lerp(v, share) if v.is_floating_point() else v for k, v in state.items()}


def log_csv(history: Sequence[dict[str, float | None]]) -> str:
    """The history as CSV: epoch, step, loss (mean since the row before), score (empty: none better), learning rate, and
    what else there is in some row."""
    return as_csv(history, COLUMNS)


def as_csv(rows: Sequence[dict[str, Any]], first: Sequence[str] = ()) -> str:
    """``rows`` with their keys as columns, those of ``first`` first; empty where a row lacks one."""
    text = io.StringIO()
    names = dict.fromkeys((*first, *(name for row in rows for name in row)))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_log(path: Path) -> list[dict[str, float | None]]:
    """The history that `log_csv` wrote."""
    with path.open(newline="") as file:
        rows = [{name: float(text) if text else None for name, text in row.items()} for row in csv.DictReader(file)]
    return [row | {"epoch": int(row["epoch"]), "step": int(row["step"])} for row in rows]


def columns(history: Sequence[dict[str, float | None]]) -> dict[str, list]:
    """The history as one list a column, for a record: epoch, step, loss (4 digits) and score (None: none better)."""
    names = ("epoch", "step", "loss", "score")
    table = {name: [row[name] for row in history] for name in names}
    return table | {"loss": [float(f"{loss:.4g}") for loss in table["loss"]]}


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


# ------------------------------------------------------------------------------------------------ checkpoints
# Model, best weights and optimizer as one safetensors file; what is not a tensor travels as JSON in its metadata.


def _save(path: Path, outcome: Outcome, model: nn.Module, optimizer: Any, scheduler: Any) -> None:
    slots = optimizer.state_dict()
    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"best/{k}": v for k, v in outcome.state.items()}
    scalars: dict[str, Any] = {}
    for index, slot in slots["state"].items():
        for name, value in slot.items():
            (tensors if isinstance(value, Tensor) else scalars)[f"optimizer/{index}/{name}"] = value
    facts = {k: v for k, v in vars(outcome).items() if k != "state"}
    facts["score"] = None if outcome.score == -math.inf else outcome.score
    artifacts.save_tensors(
        path,
        tensors,
        {
            "outcome": facts,
            "param_groups": slots["param_groups"],
            "scalars": scalars,
            "scheduler": scheduler.state_dict() if scheduler else None,
        },
    )


def _restore(path: Path, model: nn.Module, optimizer: Any, scheduler: Any) -> Outcome:
    tensors, facts = artifacts.load_tensors(path)
    parts: dict[str, dict[str, Any]] = {"model": {}, "best": {}, "optimizer": dict(facts["scalars"])}
    for name, tensor in tensors.items():
        kind, rest = name.split("/", 1)
        parts[kind][rest if kind != "optimizer" else name] = tensor
    model.load_state_dict(parts["model"])
    slots: dict[int, dict[str, Any]] = {}
    for name, value in parts["optimizer"].items():
        _, index, slot = name.split("/", 2)
        slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": slots, "param_groups": facts["param_groups"]})
    for parameter, slot in optimizer.state.items():
        for key, value in slot.items():  # fused optimizers walk weights and moments side by side in memory
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                slot[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    if scheduler:
        scheduler.load_state_dict(facts["scheduler"])
    outcome = Outcome(**{**facts["outcome"], "state": parts["best"]})
    outcome.score = -math.inf if outcome.score is None else outcome.score
    return outcome


def _tensorboard(where: bool | Path, folder: Path | None):
    where = where if isinstance(where, Path) else where and folder and folder / "tensorboard"
    if not where:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(where)


def _write_scalars(writer: Any, rows: Sequence[dict[str, float | None]]) -> None:
    for row in rows:
        at = int(row["epoch"] * 10_000 + row["step"])
        for name in row.keys() - {"epoch", "step"}:
            if row[name] is not None:
                writer.add_scalar(name, row[name], at)
    writer.flush()
