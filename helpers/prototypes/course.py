"""What happens around the steps of a training: the first epochs without the backbone, validation, projections, the head
alone, the mean of the last weights (spec pixpnet, sections 5 and 6)."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from helpers import artifacts, runtime
from helpers.prototypes import features, optimisation, projection, steps
from helpers.prototypes.batches import Batches, Part
from helpers.prototypes.models import Network, ProtoNet
from helpers.prototypes.presets import PrototypesStudy


@dataclass
class Course:
    """The hooks of `helpers.training.train` for one fit. ``folder`` gets what is asked for of profiles, ``events``
    TensorBoard's histograms. `after_epoch` and `settle` are for one process alone."""

    study: PrototypesStudy
    seed: int
    feed: Batches
    training: Part
    validation: Part | None
    optimizer: torch.optim.Optimizer
    folder: Path
    events: Path | None = None

    @property
    def features(self) -> bool:
        """Whether batches hold a backbone's output."""
        return isinstance(self.training, features.Stored)

    @property
    def averaged_from(self) -> int | None:
        """The first of the epochs whose weights are averaged: the last quarter."""
        train = self.study.train
        return train.epochs - max(1, train.epochs // 4) + 1 if train.stochastic_weight_averaging else None

    def batches(self, epoch: int) -> Iterable[Any]:
        found = self.feed.epoch(self.training, epoch)
        if self.study.profile and epoch == 1 and self.feed.rank == 0:
            return profiled(found, self.study.profiler, self.folder)
        return found

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        """In the first epochs the backbone does not learn; its batch statistics follow the images all the same."""
        model.features.requires_grad_(epoch > optimisation.frozen_epochs(self.study.optimizer))

    def after_epoch(self, model: nn.Module, epoch: int) -> dict[str, float]:
        """Validation, then the projection, then the head alone. With ``keep`` best a projection is followed by another
        validation, which gives the score: no weights are chosen but those whose prototypes are patches. Where nothing
        is projected, every validation gives a score."""
        train = self.study.train
        row = {f"hp/lr_group_{k}": group["lr"] for k, group in enumerate(self.optimizer.param_groups)}
        ever = isinstance(model, ProtoNet) and bool(optimisation.push_epochs(train))
        now = ever and epoch in optimisation.push_epochs(train)
        if self.validation is not None and epoch in optimisation.validation_epochs(train):
            row |= {f"val_{name}": value for name, value in self.validate(model).items()}
        if now:
            row |= self.push(model, epoch)
        if train.keep == "best":
            if now:
                row["score"] = self.validate(model)["accuracy"]
            elif not ever and "val_accuracy" in row:
                row["score"] = row["val_accuracy"]
        if self.study.tb_logging and self.events:
            self.histograms(model, epoch)
        return row

    def validate(self, model: Network) -> dict[str, float]:
        return steps.evaluate(model, self.feed.plain(self.validation), self.study.loss, self.features)

    def push(self, model: ProtoNet, epoch: int) -> dict[str, float]:
        """Project, and train a head that has weights; returns how far prototypes were from their patches."""
        train = self.study.train
        pushed = projection.push(
            model,
            self.feed.plain(self.training),
            assignment=train.push_assignment,
            duplicate_filter=train.push_duplicate_filter,
            features=self.features,
        )
        if train.readout_push_epochs and any(True for _ in model.head.parameters()):
            augmented = replace(self.feed, rank=0, world=1).epoch(self.training, epoch)
            steps.tune_head(model, augmented, self.study, runtime.stream(self.seed, "head", epoch), self.features)
        names = ("min", "q1", "median", "q3", "max")
        return {
            **{f"push_{name}": value for name, value in zip(names, pushed.quartiles, strict=True)},
            "push_norm_before": pushed.norm_before,
            "push_norm_after": pushed.norm_after,
            "push_unassigned": len(pushed.unassigned),
        }

    def settle(self, model: Network) -> dict[str, float]:
        """Averaged weights made ready: batch statistics of their own, prototypes on patches again."""
        train = self.study.train
        if not self.features and not model.frozen_norm:
            epoch = replace(self.feed, rank=0, world=1).epoch(self.training, train.epochs)
            update_bn((x for x, _ in epoch), model)
        pushes = isinstance(model, ProtoNet) and train.push_prototypes
        return self.push(model, train.epochs) if pushes else {}

    def histograms(self, model: Network, epoch: int) -> None:
        """Outputs for a batch as it is tested, and the values and last gradients of add-on layers and prototypes."""
        from torch.utils.tensorboard import SummaryWriter

        x, *_ = next(self.feed.plain(self.training if self.validation is None else self.validation))
        with torch.no_grad(), SummaryWriter(self.events, filename_suffix=".histograms") as writer:
            output = model.eval().from_features(x) if self.features else model.eval()(x)
            for name in ("logits", "min_distances", "similarities"):
                if hasattr(output, name):
                    writer.add_histogram(f"outputs/{name}", getattr(output, name), epoch)
            for name, parameter in model.named_parameters():
                if name.split(".")[0] in ("add_on", "prototypes"):
                    writer.add_histogram(f"weights/{name}", parameter, epoch)
                    if parameter.grad is not None:
                        writer.add_histogram(f"gradients/{name}", parameter.grad, epoch)


def profiled(batches: Iterable[Any], kind: str, folder: Path) -> Iterator[Any]:
    """``batches``, and a profile of what is done with them: ``folder/profile.txt``, the functions that take longest;
    with ``kind`` "pytorch" the operations of torch, and ``profile.json`` for a trace viewer."""
    if kind == "simple":
        with cProfile.Profile() as profile:
            yield from batches
        with (folder / "profile.txt").open("w") as file:
            pstats.Stats(profile, stream=file).sort_stats("cumulative").print_stats(60)
        return
    with torch.profiler.profile() as profile:
        yield from batches
    artifacts.atomic_write(folder / "profile.txt", profile.key_averages().table(sort_by="cpu_time_total", row_limit=60))
    profile.export_chrome_trace(str(folder / "profile.json"))
