"""One phase of a training: epochs of learner steps that can be cut off after any of them.

A step is a function of the weights, the moments and its number alone, so that a checkpoint between two steps holds all
there is: a run that was killed and resumed takes the same steps as one that was not.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer
from tqdm.auto import tqdm

from helpers import artifacts, runtime
from helpers.self_explaining.weights import FORMAT

PhaseName = Literal["pretrain", "joint", "finetune"]
Revise = Callable[[Tensor, int], Mapping[str, Tensor]]
"""``revise(rows, step)``: one learner step on the images ``rows`` (int64 [B]), the ``step``-th (from 0) of the phase.
Returns scalars by name, of S nets together [S], detached and left on their device."""

CHECKPOINT_SECONDS = 30.0  # between two checkpoints, at least
COLUMNS = ("phase", "epoch", "step", "ClassificationLoss", "ExplanationLoss", "TotalLoss", "LearningRate")


@dataclass(frozen=True)
class Phase:
    """``epochs`` over ``n`` images in batches of ``batch_size`` (the last one may be smaller), at ``learning_rate``
    times ``decay`` for every epoch that is over. ``seed`` and ``name`` are the streams of the order and of dropout."""

    name: PhaseName
    epochs: int
    n: int
    batch_size: int
    learning_rate: float
    seed: int
    decay: float = 1.0

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.n // self.batch_size)

    def rate(self, epoch: int) -> float:
        """The learning rate of ``epoch`` (from 1; spec section 4.5)."""
        return self.learning_rate * self.decay ** (epoch - 1)

    def batches(self, epoch: int, where: torch.device) -> tuple[Tensor, ...]:
        """The rows of each batch of ``epoch``, int64, on the device ``where``."""
        order = torch.randperm(self.n, generator=runtime.generator(self.seed, "order", self.name, epoch))
        return order.to(where).split(self.batch_size)


@dataclass
class Standing:
    """How far a phase has come: ``batch`` (from 0) of ``epoch`` (from 1) is next; ``sums`` of the values over the
    epoch's batches so far; ``history``, a row of their means an epoch, of S nets together lists [S]; ``seconds`` add up
    over resumed runs."""

    epoch: int = 1
    batch: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def of(self, member: int, members: int) -> Standing:
        """That of one of ``members`` nets that were trained together, with its share of the seconds."""
        return Standing(self.epoch, self.batch, {}, _rows_of(self.history, member), self.seconds / members)


class Watcher:
    """What `run` tells of a phase, and here to nobody; `helpers.self_explaining.monitor` listens."""

    def begin(self, step: int, net: nn.Module) -> None:
        """The phase begins, or goes on, with ``step`` (from 0)."""

    def reflected(self, losses: Tensor) -> None:
        """A critic lost ``losses`` [N] along its pass, in the step that is under way."""

    def step(self, step: int, net: nn.Module, rate: float, values: Mapping[str, Tensor]) -> None:
        """``step`` is over; ``values`` are what it came to, on their device."""

    def epoch(self, step: int, net: nn.Module, row: Mapping[str, Any]) -> None:
        """An epoch is over, with ``step`` its last; ``row`` is what is written of it."""

    def end(self, step: int, net: nn.Module) -> None:
        """The phase is over after ``step`` steps."""

    def close(self) -> None:
        """Nothing more will be said: the phase is over or was cut off."""


def run(
    phase: Phase,
    net: nn.Module,
    optimizer: Optimizer,
    revise: Revise,
    *,
    folder: Path | None = None,
    logs: Sequence[Path] | None = None,
    facts: Mapping[str, Any] | None = None,
    watcher: Watcher | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: bool = False,
) -> Standing:
    """Take every step of ``phase`` that has not been taken yet; ``net`` holds the last weights afterwards.

    ``folder`` gets ``<phase>_checkpoint.safetensors`` (epoch, weights, moments, losses, and ``facts``: settings, seed)
    at most every ``checkpoint_seconds`` between steps and at every epoch's end that comes so late; it stays there until
    the caller has kept the weights. ``log.csv`` is written with it, of nets together one into each of the folders
    ``logs``. Raises ``FloatingPointError`` when a loss is not finite, and `ArtifactError` for a checkpoint that is
    damaged or of other settings.
    """
    path, facts, watcher = folder and checkpoint_path(folder, phase.name), facts or {}, watcher or Watcher()
    where = next(net.parameters()).device
    standing = restore(path, phase, net, optimizer, facts) if path and path.exists() else Standing()
    logs = [Log(one, phase.name) for one in logs or [folder]]
    started, saved = time.monotonic() - standing.seconds, time.monotonic()
    total, first = phase.epochs * phase.steps_per_epoch, _step(phase, standing)
    dropout = any(isinstance(module, _DropoutNd) for module in net.modules())

    net.train()
    watcher.begin(first, net)
    with tqdm(total=total, initial=first, desc=phase.name, unit="step", disable=not progress, leave=False) as bar:
        while standing.epoch <= phase.epochs:
            rate = phase.rate(standing.epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            for rows in phase.batches(standing.epoch, where)[standing.batch :]:
                step = _step(phase, standing)
                with _draws(phase, step) if dropout else nullcontext():
                    values = revise(rows, step)
                for name, value in values.items():
                    standing.sums[name] = standing.sums[name] + value if name in standing.sums else value.clone()
                standing.batch += 1
                watcher.step(step, net, rate, values)
                bar.update()
                if path and time.monotonic() - saved >= checkpoint_seconds:
                    _means(standing, phase)  # raises, rather than keep what is lost
                    standing.seconds = time.monotonic() - started
                    save(path, phase, standing, net, optimizer, facts)
                    _write(logs, standing)
                    saved = time.monotonic()
            standing.history.append(_row(phase, standing, rate))
            watcher.epoch(_step(phase, standing) - 1, net, standing.history[-1])
            bar.set_postfix({name: f"{np.mean(value):.4g}" for name, value in _means(standing, phase).items()})
            standing.epoch, standing.batch, standing.sums = standing.epoch + 1, 0, {}
    standing.seconds = time.monotonic() - started
    watcher.end(total, net)
    _write(logs, standing)
    return standing


def _step(phase: Phase, standing: Standing) -> int:
    """How many steps have been taken."""
    return (standing.epoch - 1) * phase.steps_per_epoch + standing.batch


def _draws(phase: Phase, step: int) -> AbstractContextManager[None]:
    """Dropout masks of a step, whatever was drawn before it."""
    return runtime.seeded(phase.seed, "dropout", phase.name, step)


def _means(standing: Standing, phase: Phase) -> dict[str, float | list[float]]:
    """Of the values over the epoch's batches so far."""
    means = {name: (np.array(total.tolist()) / standing.batch).tolist() for name, total in standing.sums.items()}
    for name, value in means.items():
        if not np.isfinite(value).all():
            at = f"epoch {standing.epoch}, by step {standing.batch} of {phase.steps_per_epoch}"
            raise FloatingPointError(f"{name} is {value} in {phase.name}, {at}: lower the learning rate")
    return means


def _row(phase: Phase, standing: Standing, rate: float) -> dict[str, Any]:
    taken = {"phase": phase.name, "epoch": standing.epoch, "step": _step(phase, standing)}
    return taken | _means(standing, phase) | {"LearningRate": rate}


# ------------------------------------------------------------------------------------------------ checkpoints
# Weights, moments and sums as one safetensors file; what is not a tensor travels as JSON in its metadata.


def checkpoint_path(folder: Path, phase: str) -> Path:
    return folder / f"{phase}_checkpoint.safetensors"


def save(
    path: Path, phase: Phase, standing: Standing, net: nn.Module, optimizer: Optimizer, facts: Mapping[str, Any]
) -> None:
    """Write the checkpoint between two steps."""
    slots = optimizer.state_dict()
    tensors = {f"model/{name}": value for name, value in net.state_dict().items()}
    tensors |= {f"sums/{name}": value for name, value in standing.sums.items()}
    for index, slot in slots["state"].items():
        tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in slot.items()}
    at = {name: value for name, value in vars(standing).items() if name != "sums"}
    facts = {**facts, "format": FORMAT, "phase": phase.name, "standing": at, "param_groups": slots["param_groups"]}
    artifacts.save_tensors(path, tensors, facts)


def restore(path: Path, phase: Phase, net: nn.Module, optimizer: Optimizer, facts: Mapping[str, Any]) -> Standing:
    """Put the checkpoint's weights and moments into ``net`` and ``optimizer``. Raises `ArtifactError` if it is damaged,
    or of another format, phase or settings than the ``facts`` say."""
    tensors, found = artifacts.load_tensors(path)
    wanted = {"format": FORMAT, "phase": phase.name} | {
        name: facts[name] for name in ("settings", "seed") if name in facts
    }
    if wrong := sorted(name for name, value in wanted.items() if found.get(name) != value):
        raise artifacts.ArtifactError(f"{path} is of another {' and '.join(wrong)}: delete it and run again")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "sums": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        kind, rest = name.split("/", 1)
        parts[kind][rest] = tensor
    artifacts.load_state(net, parts["model"])
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        index, slot = name.split("/", 1)
        slots.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({"state": slots, "param_groups": found["param_groups"]})
    where = next(net.parameters()).device
    return Standing(**found["standing"], sums={name: value.to(where) for name, value in parts["sums"].items()})


# -------------------------------------------------------------------------------------------------------- log


def _write(logs: Sequence[Log], standing: Standing) -> None:
    """To the log of each net its own."""
    for member, log in enumerate(logs):
        log.write(_rows_of(standing.history, member))


def _rows_of(history: Sequence[Mapping[str, Any]], member: int) -> list[dict[str, Any]]:
    """The rows of one of several nets."""
    return [{n: value[member] if isinstance(value, list) else value for n, value in row.items()} for row in history]


class Log:
    """``folder/log.csv``: a row an epoch of every phase, in the order they were run; none without a ``folder``."""

    def __init__(self, folder: Path | None, phase: PhaseName):
        self.path = folder and folder / "log.csv"
        rows = read_log(self.path) if self.path and self.path.exists() else []
        phases = [row["phase"] for row in rows]
        self.before = rows[: phases.index(phase)] if phase in phases else rows

    def write(self, history: Sequence[Mapping[str, Any]]) -> None:
        if not self.path:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in (*self.before, *history):
            writer.writerow({n: f"{value:.6g}" if isinstance(value, float) else value for n, value in row.items()})
        artifacts.atomic_write(self.path, text.getvalue())


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``log.csv``: the columns `COLUMNS`, losses as means over the epoch's batches; None: there is no
    such loss in that phase."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = [{n: float(text) if text else None for n, text in row.items() if n != "phase"} for row in rows]
    return [
        row | values | {"epoch": int(row["epoch"]), "step": int(row["step"])}
        for row, values in zip(rows, numbers, strict=True)
    ]
