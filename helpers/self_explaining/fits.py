"""Training: the phases of a mode, one after the other, each with a new optimizer (spec cnn_lsx, section 4).

A fit lives in one folder: its settings, a log, TensorBoard events, and the weights after each phase. Of a fit that was
cut off the same call takes up the rest, to the same bits; what is there is not trained again.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import time
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from helpers import artifacts, config, runtime
from helpers.config import ConfigError
from helpers.self_explaining import evaluate, lsx, models, phases, steps, weights
from helpers.self_explaining.models import Net
from helpers.self_explaining.phases import Phase, PhaseName, Standing, Watcher
from helpers.self_explaining.presets import NEEDS_MODEL, SelfExplainingStudy
from helpers.self_explaining.sets import Sets, sets

Role = Literal["learner", "baseline", "encoder"]

PHASES: dict[str, tuple[PhaseName, ...]] = {
    "only_classification": ("pretrain",),
    "joint": ("joint",),
    "pretrain_and_joint": ("pretrain", "joint"),
    "pretrain_and_joint_and_finetuning": ("pretrain", "joint", "finetune"),
    "pretrained": ("joint",),
    "finetuning": ("finetune",),
}
"""The phases of each training mode (spec section 4.4); the other modes train nothing."""

FILES: dict[PhaseName, str] = {"pretrain": "pretrained_model", "joint": "joint_model", "finetune": "finetuned_model"}

# What the weights after a phase depend on, beside the phases before it, the seed and `model_pt`.
OF_ALL = (
    "dataset", "model", "few_shot_train_percent", "batch_size", "batch_size_critic", "n_critic_batches",
    "sep_critic_set", "color_test", "color_channels", "class_weights", "optimizer", "lr_scheduling",
    "learning_rate_step",
)  # fmt: skip
OF_MAPS = ("explanation_mode", "explanation_norm", "explanation_target", "gradcam_weights", "integration_steps")
OF_PHASE: dict[PhaseName, tuple[str, ...]] = {
    "pretrain": ("pretrain_learning_rate", "n_pretraining_epochs"),
    "joint": (
        "learning_rate", "n_epochs", "classification_loss_weight", "explanation_loss_weight", "learning_rate_critic",
        "rand_critic", "feedback", *OF_MAPS,
    ),
    "finetune": (
        "learning_rate_finetune", "n_finetuning_epochs", "explanation_loss_weight_finetune", "finetune_init", *OF_MAPS,
    ),
}  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """One training run of a study. As ``baseline`` it only classifies, for as many epochs as all phases of the study
    together, so that it begins with the learner's own steps; the ``encoder`` of the explanation similarity (spec
    section 6.3) is pretrained from another seed. Raises `ConfigError` for a study that trains nothing, or of an unknown
    model."""

    study: SelfExplainingStudy
    seed: int
    role: Role = "learner"

    def __post_init__(self) -> None:
        mode = self.study.training_mode
        if mode not in PHASES:
            raise ConfigError(f"training_mode {mode!r} trains nothing; there are: {', '.join(PHASES)}")
        models.pair(self.study.model)  # better known before the data are loaded
        if self.role == "learner":
            check_model_pt(self.study)

    @cached_property
    def settings(self) -> SelfExplainingStudy:
        """The study's, as the role has them."""
        if self.role == "learner":
            return self.study
        epochs = {name: getattr(self.study, OF_PHASE[name][1]) for name in PHASES[self.study.training_mode]}
        total = sum(epochs.values()) if self.role == "baseline" else self.study.n_pretraining_epochs
        return self.study.override(
            {"training_mode": "only_classification", "n_pretraining_epochs": total, "model_pt": ""}
        )

    @property
    def phases(self) -> tuple[PhaseName, ...]:
        return PHASES[self.settings.training_mode]

    @property
    def stream(self) -> int:
        """The seed of initialisation, order, critics and dropout. The data are those of `seed`, whatever the role."""
        return runtime.stream(self.seed, "encoder") if self.role == "encoder" else self.seed

    @property
    def name(self) -> str:
        """The run's folder: what is told apart at a glance, and a digest of the rest. Without the time of day, which
        stands in ``config.json``, so that a run that was cut off finds itself again."""
        study, joint = self.settings, "joint" in self.phases
        explained = len(self.phases) > 1 or self.phases != ("pretrain",)
        values = {name: [getattr(study, field) for field in OF_PHASE[name][:2]] for name in self.phases}
        weights = (study.classification_loss_weight, study.explanation_loss_weight)
        parts = [
            study.model,
            f"{study.explanation_mode}-{study.explanation_norm}" if explained else "",
            study.dataset,
            f"p{study.few_shot_train_percent:g}",
            self.role if self.role != "learner" else study.training_mode,
            f"N{study.n_critic_batches}x{study.batch_size_critic}" if joint else "",
            "lr" + "-".join(f"{rate:g}" for rate, _ in values.values()),
            f"b{study.batch_size}",
            "e" + "-".join(str(epochs) for _, epochs in values.values()),
            "w" + "-".join(f"{weight:g}" for weight in weights) if joint else "",
            f"ft{study.explanation_loss_weight_finetune:g}" if "finetune" in self.phases else "",
            f"seed{self.seed}",
            self.digest(),
            re.sub(r"[^\w.-]+", "-", study.run_name),
        ]
        return "_".join(part for part in parts if part)

    def digest(self, phase: PhaseName | None = None) -> str:
        """Changes with every setting that the weights after ``phase`` (default: the last) depend on."""
        upto = self.phases[: self.phases.index(phase) + 1] if phase else self.phases
        names = {*OF_ALL, *(name for phase in upto for name in OF_PHASE[phase])}
        parts = {name: getattr(self.settings, name) for name in names} | {"phases": upto, "role": self.role}
        if self.settings.model_pt and self.settings.training_mode in NEEDS_MODEL:
            parts["model_pt"] = artifacts.sha256(Path(self.settings.model_pt))
        return config.digest(parts)


def check_model_pt(study: SelfExplainingStudy) -> None:
    """Raises `ConfigError` if the training mode starts from weights that are not named or not there."""
    mode, path = study.training_mode, study.model_pt
    if mode in NEEDS_MODEL and not path:
        raise ConfigError(f"training_mode {mode} needs --model_pt FILE (MODEL_PT): the weights that it starts from")
    if mode in NEEDS_MODEL and not Path(path).is_file():
        raise ConfigError(f"--model_pt {path}: there is no such file in {Path.cwd()}")


def working_folder(study: SelfExplainingStudy) -> Path:
    """The folder of new runs: ``OUT``, or ``runs/self_explaining``."""
    return study.out_folder(weights.STUDY)


def run_folder(out: Path, fit: Fit) -> Path:
    return out / fit.name


def weights_path(out: Path, fit: Fit, phase: PhaseName | None = None) -> Path:
    """The weights after ``phase`` (default: the last, those that are reported)."""
    return run_folder(out, fit) / f"{FILES[phase or fit.phases[-1]]}.safetensors"


# -------------------------------------------------------------------------------------------------- training


def train(fit: Fit, out: Path, *, progress: bool = False) -> dict[str, Any]:
    """Run the phases of ``fit`` that are not done yet; return the metadata of its last weights.

    Below ``out/<fit.name>``: ``config.json``; ``pretrained_model``, ``joint_model`` and ``finetuned_model.safetensors``
    as far as there are such phases; ``log.csv``, a row an epoch (`phases.read_log`); TensorBoard events unless
    ``logging_disabled``. Phases that have ended are read, one that was cut off goes on from its checkpoint.

    A fit's bits depend on the number of threads, and on no other setting of the machine. Raises `ArtifactError` for
    files of other settings, `ConfigError` and `DownloadError` as `sets` does, and ``FloatingPointError`` when a loss is
    not finite.
    """
    if weights_path(out, fit).exists():
        return load(weights_path(out, fit), fit)[1]
    folder, study = run_folder(out, fit), fit.settings
    artifacts.ensure_writable(folder)
    where = device(study)
    with runtime.deterministic():
        data = sets(study, fit.seed).to(where)
        describe(folder, fit)
        net = first_net(fit, data)
        for name in fit.phases:
            path = weights_path(out, fit, name)
            if path.exists():
                net, facts = load(path, fit, name)
                net.to(where)
            else:
                net, standing = _run(fit, name, net, data, folder, progress)
                facts = keep(path, fit, name, net, data, standing)
                log.info("%s: %.0f s, test accuracy %.2f %%", FILES[name], facts["seconds"], facts["accuracy"])
            phases.checkpoint_path(folder, name).unlink(missing_ok=True)
    return facts


def device(study: SelfExplainingStudy) -> torch.device:
    """Where the study computes. Raises `ConfigError` if there is no such device."""
    try:
        return runtime.device("cpu" if study.no_cuda else study.device)
    except RuntimeError as error:
        raise ConfigError(str(error)) from None


def initialise(fit: Fit, data: Sets, *names: str) -> Net:
    """The learner before its first step; with ``names``, the fresh one of that phase."""
    with runtime.seeded(fit.stream, "init", *names):
        return models.build(models.pair(fit.settings.model)[0], data.in_channels, data.n_classes).to(data.x.device)


def phase_of(fit: Fit, name: PhaseName, data: Sets) -> Phase:
    """What `phases.run` needs to know of a phase of ``fit``."""
    study = fit.settings
    rate, epochs = (getattr(study, field) for field in OF_PHASE[name][:2])
    decay = study.learning_rate_step if study.lr_scheduling else 1.0
    return Phase(name, epochs, len(data.y), study.batch_size, rate, fit.stream, decay)


def first_net(fit: Fit, data: Sets) -> Net:
    """The network that the first phase starts from: a fresh one, or that of `model_pt`."""
    study, net = fit.settings, initialise(fit, data)
    if study.training_mode not in NEEDS_MODEL:
        return net
    loaded = weights.read(study.model_pt, study, data, fit.seed)
    fresh = study.training_mode == "finetuning" and study.finetune_init == "scratch"
    if not fresh and type(loaded) is not type(net):
        held, wanted = type(loaded).__name__, type(net).__name__
        raise artifacts.ArtifactError(f"{study.model_pt} holds a {held}, not a {wanted}: name it with --model (MODEL)")
    return loaded


def _run(fit: Fit, name: PhaseName, net: Net, data: Sets, folder: Path, progress: bool) -> tuple[Net, Standing]:
    """(the network after the phase, how it went), starting from ``net``."""
    study, phase, teacher = fit.settings, phase_of(fit, name, data), net
    if name == "finetune" and study.finetune_init == "scratch":
        net = initialise(fit, data, "finetune")
    optimizer = steps.make_optimizer(study, net, phase.learning_rate)
    with closing(_watcher(fit, name, data, folder)) as watcher:
        if name == "pretrain":
            revise = steps.pretraining(net, optimizer, data)
        elif name == "joint":
            critique = lsx.critique(study, data, fit.stream)
            revise = steps.joint_training(study, critique, net, optimizer, data, watcher)
        else:
            wanted = steps.targets(study, fit.stream, data, teacher)
            revise = steps.finetuning(study, net, optimizer, data, wanted)
        return net, phases.run(
            phase,
            net,
            optimizer,
            revise,
            folder=folder,
            facts=identity(fit, name) | {"config": study.model_dump(mode="json")},
            watcher=watcher,
            progress=progress,
        )


def _watcher(fit: Fit, name: PhaseName, data: Sets, folder: Path) -> Watcher:
    if fit.settings.logging_disabled or fit.role == "encoder":
        return Watcher()
    if not importlib.util.find_spec("tensorboard"):
        log.warning("without the package tensorboard, nothing but log.csv tells of the training")
        return Watcher()
    from helpers.self_explaining.monitor import Monitor  # TensorBoard, and what draws

    return Monitor(folder, fit.settings, data, name, fit.stream, first=name == fit.phases[0])


# ------------------------------------------------------------------------------------------------- what is kept


def load(path: Path, fit: Fit, phase: PhaseName | None = None) -> tuple[Net, dict[str, Any]]:
    """(the network of ``fit`` after ``phase``, default: the last, in eval mode, the file's metadata). Raises
    `ArtifactError` for any other file, see `weights.load`."""
    return weights.load(path, identity(fit, phase or fit.phases[-1]))


def identity(fit: Fit, phase: PhaseName) -> dict[str, Any]:
    """What tells the weights of ``fit`` after ``phase`` from all others."""
    return {"phase": phase, "role": fit.role, "seed": fit.seed, "settings": fit.digest(phase)}


def describe(folder: Path, fit: Fit) -> None:
    """Write ``config.json``, once: the settings, and where and when the run was begun."""
    if not (folder / "config.json").exists():
        facts = identity(fit, fit.phases[-1]) | {"config": fit.settings.model_dump(mode="json")}
        started = {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "environment": runtime.environment()}
        artifacts.save_json(folder / "config.json", facts | started)


def keep(path: Path, fit: Fit, phase: PhaseName, net: Net, data: Sets, standing: Standing) -> dict[str, Any]:
    """Write the weights after ``phase`` and what is known of them; return that. ``accuracy`` is percent of all test
    images, ``losses`` are the means over the last epoch."""
    last = standing.history[-1] if standing.history else {}
    facts = {
        "fit": fit.name,
        "config": fit.settings.model_dump(mode="json"),
        "accuracy": evaluate.accuracy(net, data.test_x, data.test_y),
        "test_images": len(data.test_y),
        "clamped": data.clamped,
        "epoch": standing.epoch - 1,
        "losses": {name: value for name, value in last.items() if name.endswith("Loss")},
        "seconds": round(standing.seconds, 1),
        "threads": torch.get_num_threads(),
        "device": data.x.device.type,
    }
    return weights.keep(path, net, data, facts | identity(fit, phase))
