"""Seeds of a fit trained at once, as one stack of nets (`together`), for a GPU that one small net leaves idle.

Each has the data, critic sets, initialisation, orders, critics, targets and batches of `fits.train`: it is the same fit
up to float rounding, except that dropout draws other masks, which depend on the seeds beside it. The setting ``chunk``
counts the images of all of them.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers import artifacts, config, runtime
from helpers.config import ConfigError
from helpers.self_explaining import fits, lsx, phases, steps
from helpers.self_explaining.fits import Fit
from helpers.self_explaining.models import Net
from helpers.self_explaining.phases import Phase, PhaseName, Revise, Watcher
from helpers.self_explaining.sets import Sets, sets
from helpers.self_explaining.together import Together

log = logging.getLogger(__name__)


def train_together(batch: Sequence[Fit], out: Path, *, progress: bool = False) -> list[dict[str, Any]]:
    """`fits.train` for each of ``batch``, which differ in nothing but their seeds; return their metadata.

    Files are those of `fits.train`, but for TensorBoard events, of which there are none; a fit's ``seconds`` are its
    share. Phases that have ended are read, for each fit by itself. One that was cut off goes on from the checkpoint of
    the stack, which only the same fits find: with others beside them they begin the phase again. A fit that is left
    alone is trained alone.

    Raises ``ValueError`` for fits that differ in more than their seeds, or a seed given twice; `ConfigError` for
    integrated gradients, and for data sets of different lengths; ``FloatingPointError`` when a loss of any of them is
    not finite, with the losses of all in their order; else what `fits.train` raises.
    """
    if len({replace(fit, seed=0) for fit in batch}) > 1 or len(set(batch)) < len(batch):
        raise ValueError("fits that are trained together are of one study and role, each of another seed")
    missing = [fit for fit in batch if not fits.weights_path(out, fit).exists()]
    if len(missing) > 1:
        _train(missing, out, progress)
    return [fits.train(fit, out, progress=progress) for fit in batch]


def _train(batch: Sequence[Fit], out: Path, progress: bool) -> None:
    """Every phase of fits of which none is finished."""
    study = batch[0].settings
    if "integrated" in study.explanation_mode:  # as `feedback` says; better known before the first phase
        raise ConfigError(f"{study.explanation_mode} is for one net at a time: set TOGETHER = 1")
    where = fits.device(study)
    with runtime.deterministic():
        data = {fit: sets(study, fit.seed).to(where) for fit in batch}
        if len({(one.x.shape, one.critic_x.shape) for one in data.values()}) > 1:
            raise ConfigError("seeds whose data sets differ in length cannot be trained together: set TOGETHER = 1")
        for fit in batch:
            artifacts.ensure_writable(fits.run_folder(out, fit))
            fits.describe(fits.run_folder(out, fit), fit)
        nets = {fit: fits.first_net(fit, one) for fit, one in data.items()}
        for name in batch[0].phases:
            missing = [fit for fit in batch if not fits.weights_path(out, fit, name).exists()]
            if missing:
                _run(missing, name, nets, data, out, progress)
            for fit in batch:
                nets[fit] = fits.load(fits.weights_path(out, fit, name), fit, name)[0].to(where)


def _run(
    stack: Sequence[Fit], name: PhaseName, nets: dict[Fit, Net], data: dict[Fit, Sets], out: Path, progress: bool
) -> None:
    """One phase of all fits of ``stack``, starting from ``nets``, to the weights that are kept of each."""
    study, alone = stack[0].settings, [fits.phase_of(fit, name, data[fit]) for fit in stack]
    if name == "finetune" and study.finetune_init == "scratch":
        net = Together([fits.initialise(fit, data[fit], "finetune") for fit in stack])
    else:
        net = Together([nets[fit] for fit in stack])
    optimizer = steps.make_optimizer(study, net, alone[0].learning_rate)
    checkpoints = out / f"together_{config.digest([fit.name for fit in stack])}"
    standing = phases.run(
        _PhaseOfAll(**vars(alone[0]), alone=tuple(alone)),
        net,
        optimizer,
        _revise(stack, name, net, optimizer, nets, data),
        folder=checkpoints,
        logs=[fits.run_folder(out, fit) for fit in stack],
        facts=fits.identity(stack[0], name) | {"seed": [fit.seed for fit in stack]},
        progress=progress,
    )
    for member, fit in enumerate(stack):
        trained = fits.initialise(fit, data[fit])
        artifacts.load_state(trained, net.state(member))
        path = fits.weights_path(out, fit, name)
        facts = fits.keep(path, fit, name, trained, data[fit], standing.of(member, len(stack)))
        log.info("seed %d, %s: %.0f s, test accuracy %.2f %%", fit.seed, path.stem, facts["seconds"], facts["accuracy"])
        phases.checkpoint_path(fits.run_folder(out, fit), name).unlink(missing_ok=True)  # of a run alone
    shutil.rmtree(checkpoints, ignore_errors=True)


def _revise(
    stack: Sequence[Fit], name: PhaseName, net: Together, optimizer: torch.optim.Optimizer, nets: dict[Fit, Net],
    data: dict[Fit, Sets],
) -> Revise:  # fmt: skip
    """The steps of a phase, on the images of all. Targets are each teacher's own."""
    study, each = stack[0].settings, [data[fit] for fit in stack]
    shared = replace(each[0], x=torch.cat([one.x for one in each]), y=torch.cat([one.y for one in each]))
    if name == "pretrain":
        return steps.pretraining(net, optimizer, shared)
    if name == "joint":
        critique = lsx.critique(study, each, [fit.stream for fit in stack])
        return steps.joint_training(study, critique, net, optimizer, shared, Watcher())
    wanted = [steps.targets(study, fit.stream, data[fit], nets[fit]) for fit in stack]
    together = None if wanted[0] is None else torch.cat(wanted)
    return steps.finetuning(study, net, optimizer, shared, together)


@dataclass(frozen=True)
class _PhaseOfAll(Phase):
    """A phase of several fits, each with the batches that it has ``alone``; the data of each lie behind those of the
    one before."""

    alone: tuple[Phase, ...] = ()

    def batches(self, epoch: int, where: torch.device) -> tuple[Tensor, ...]:
        each = zip(*(phase.batches(epoch, where) for phase in self.alone), strict=True)
        return tuple(torch.cat([rows + member * self.n for member, rows in enumerate(one)]) for one in each)
