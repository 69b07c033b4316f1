"""Training: one network of a study, with its projections, into one folder (spec pixpnet, sections 5 and 6).

A fit that was cut off is taken up by the same call, to the same bits; one that is finished is read. The test images are
loaded when the training is over, once.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from helpers import artifacts, config, runtime, training
from helpers.config import ConfigError
from helpers.prototypes import info, models, optimisation, presets, steps
from helpers.prototypes.batches import DEBUG_BATCHES, Batches, Part
from helpers.prototypes.course import Course
from helpers.prototypes.features import store
from helpers.prototypes.models import Network, ProtoNet
from helpers.prototypes.presets import PrototypesStudy
from helpers.prototypes.receptive_field import ReceptiveField, receptive_field
from helpers.prototypes.sets import Sets, sets
from helpers.records import columns, rounded

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STUDY = "prototypes"

SECTIONS = ("dataset", "model", "train", "test", "optimizer", "loss")
# What the weights do not depend on:
INDIFFERENT = {"dataset": {"root", "n_test"}, "train": {"checkpoint", "hparam_tune"}, "test": {"batch_size"}}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """One training of a study. Raises `ConfigError` for settings that exclude each other."""

    study: PrototypesStudy
    seed: int

    def __post_init__(self) -> None:
        study, train = self.study, self.study.train
        if train.keep == "best" and not study.dataset.val_size:
            raise ConfigError("train.keep best needs validation images: dataset.val_size is 0")
        if train.keep == "best" and train.stochastic_weight_averaging:
            raise ConfigError("train.keep best and train.stochastic_weight_averaging exclude each other")
        if train.feature_variants and optimisation.frozen_epochs(study.optimizer) < train.epochs:
            raise ConfigError(
                f"train.feature_variants keeps the features of a backbone that never learns: set "
                f"optimizer.freeze_epochs to train.epochs ({train.epochs}) or more"
            )
        if study.optimizer.lr_scheduler != "cosine" and not study.optimizer.lr_schedule:
            raise ConfigError(f"optimizer.lr_scheduler {study.optimizer.lr_scheduler} needs optimizer.lr_schedule")

    @property
    def name(self) -> str:
        """The fit's folder: data, network, a digest of all settings, and the seed."""
        model, data = self.study.model, self.study.dataset
        data_name = "-".join(filter(None, [data.name, data.subset]))
        kind = "" if model.name == "protonet" else f"_{model.name}"
        network = f"{model.feature_extractor}@{model.feature_layer}{kind}".replace(":", "-").replace("/", "-")
        return f"{data_name}_{network}_{self.digest()}/{self.seed}"

    def digest(self) -> str:
        """Changes with every setting that the weights depend on."""
        parts = {name: getattr(self.study, name) for name in SECTIONS}
        return config.digest(
            {name: part.model_dump(mode="json", exclude=INDIFFERENT.get(name)) for name, part in parts.items()}
            | {"debug": self.study.debug}
        )


def working_folder(study: PrototypesStudy) -> Path:
    """The folder of new fits: ``OUT``, or ``runs/prototypes``."""
    return study.out_folder(STUDY)


def weights_path(out: Path, fit: Fit) -> Path:
    return out / fit.name / "model.safetensors"


def record_path(out: Path, fit: Fit) -> Path:
    return out / fit.name / "record.json"


def fabric(study: PrototypesStudy) -> Fabric:
    """The processes that a fit is computed in: ``gpus`` of them, those of ``torchrun``, or this one. Raises
    `ConfigError` for a device that there is not."""
    count = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if study.gpus is None else max(1, study.gpus)
    try:
        where = runtime.device("cpu" if study.gpus == 0 else study.device)
    except RuntimeError as error:
        raise ConfigError(str(error)) from None
    if where.type == "cuda" and count > torch.cuda.device_count():
        raise ConfigError(f"gpus is {count}, but there are {torch.cuda.device_count()}")
    return training.fabric(where.type, study.train.precision, count)


# -------------------------------------------------------------------------------------------------- training


def train(
    fit: Fit,
    out: Path,
    *,
    progress: bool = False,
    launched: Fabric | None = None,
    features: Path | None = None,
    events: Path | None = None,
    checkpoint_seconds: float = 30.0,
) -> dict[str, Any]:
    """Train what is missing of ``fit``; return its record.

    ``out/<fit.name>`` holds ``model.safetensors``, ``record.json`` and ``log.csv``, and a checkpoint until the end;
    ``features`` (default: ``out/features``) what is kept of a frozen backbone, for all fits that share it; ``events``
    TensorBoard's files. ``launched``: processes that run already (`fabric`); else they are begun here. In a record
    ``history`` is one list a column, an entry an epoch; accuracies are shares. A finished fit is read; if it was tested
    on another number of images (``dataset.n_test``, which no weight depends on), it is tested again.

    A fit's bits depend on the number of threads, and on no other setting of the machine. Raises `ArtifactError` for
    files of other settings, `ConfigError` and `DownloadError` as `sets` does, and ``FloatingPointError`` when the loss
    is not finite.
    """
    if record_path(out, fit).exists():
        record = read(record_path(out, fit), fit)
        same = record["dataset"]["n_test"] == fit.study.dataset.n_test
        return record if same else _tested_again(fit, out, record)
    artifacts.ensure_writable(out / fit.name)
    rest = (fit, out, features or out / "features", events, checkpoint_seconds, progress)
    return _train(launched, *rest) if launched else fabric(fit.study).launch(_train, *rest)


def _train(
    fabric: Fabric, fit: Fit, out: Path, kept: Path, events: Path | None, checkpoint_seconds: float, progress: bool
) -> dict[str, Any]:
    study, folder = fit.study, out / fit.name
    data = sets(study.dataset, fit.seed)
    model = models.build(study.model, len(data.train.classes), data.train.input_size, fit.seed)
    field = _seen(model, data.train.input_size)
    if fabric.global_rank == 0 and field and isinstance(model, ProtoNet) and (warning := info.too_much_seen(field)):
        log.warning("%s", warning)
    model = model.to(memory_format=torch.channels_last)  # half as long on a CPU
    optimizer = optimisation.make(study.optimizer, optimisation.groups(model, study.optimizer))
    feed = _feed(fit, fabric, len(data.train.labels))
    course = Course(study, fit.seed, feed, *_parts(fit, data, model, kept, fabric), optimizer, folder, events)
    with runtime.deterministic(), torch.autograd.set_detect_anomaly(study.debug):
        outcome = training.train(
            model,
            optimizer,
            steps.training_loss(study.loss, course.features, fabric.autocast),
            course.batches,
            fabric=fabric,
            epochs=study.train.epochs,
            seed=runtime.stream(fit.seed, "fit"),
            scheduler=torch.optim.lr_scheduler.LambdaLR(
                optimizer, partial(optimisation.rate, settings=study.optimizer, epochs=study.train.epochs)
            ),
            before_epoch=course.before_epoch,
            after_epoch=course.after_epoch,
            accumulate=study.train.accumulate_grad_batches,
            clip_norm=study.train.gradient_clip_norm,
            average_from=course.averaged_from,
            folder=folder,
            checkpoint_seconds=checkpoint_seconds if study.train.checkpoint else math.inf,
            tensorboard=events or False,
            progress=fit.name if progress else None,
        )
        record = None
        if fabric.global_rank == 0:
            model.load_state_dict(outcome.state)
            if course.averaged_from is not None:
                outcome.history[-1] |= course.settle(model)
            record = _keep(fit, out, model, data, outcome, feed, field)
        return fabric.broadcast(record)


def _feed(fit: Fit, fabric: Fabric, n: int) -> Batches:
    """The batches of ``n`` training images. Raises `ConfigError` if they cannot be shared out."""
    train, data = fit.study.train, fit.study.dataset
    if train.batch_size % fabric.world_size:
        raise ConfigError(f"train.batch_size {train.batch_size} cannot be shared by {fabric.world_size} processes")
    if train.batch_size > n * data.augment_factor:
        log.warning("%d images an epoch are fewer than train.batch_size", n * data.augment_factor)
    return Batches(
        size=train.batch_size,
        seed=fit.seed,
        device=fabric.device,
        factor=data.augment_factor,
        limit=DEBUG_BATCHES if fit.study.debug else None,
        rank=fabric.global_rank,
        world=fabric.world_size,
    )


def _parts(fit: Fit, data: Sets, model: Network, kept: Path, fabric: Fabric) -> tuple[Part, Part | None]:
    """Training and validation images, or where the backbone never learns and ``feature_variants`` asks for it, their
    features: computed in the first process, read in all."""
    study = fit.study
    if not study.train.feature_variants:
        return data.train, data.validation
    variants = study.train.feature_variants if study.dataset.augment else 0
    # seeds, which split the images, share their features where all are wanted, of a backbone that is the same for all
    shared = study.dataset.n_train is None and study.model.pretrained
    whole = sets(study.dataset.override({"val_size": 0.0}), 0).train if shared else data.train
    seed = 0 if shared else fit.seed
    names = ("feature_extractor", "feature_layer", "pretrained", "weights")
    elsewhere = {"root", "n_test", "augment_factor"} | ({"val_size"} if shared else set())
    made_of = [study.dataset.model_dump(mode="json", exclude=elsewhere), seed]
    folder = kept / config.digest(made_of + [variants, *(getattr(study.model, name) for name in names)])
    known = partial(store, backbone=model.features, device=fabric.device, seed=seed)
    with fabric.rank_zero_first():
        train = known(whole, folder=folder / "train", variants=variants)
        apart = data.validation is not None and not (shared and data.validation.stored is data.train.stored)
        validation = known(data.validation, folder=folder / f"validation_{fit.seed}", variants=0) if apart else None
    if data.validation is not None and not apart:
        validation = train.select(data.validation.indices)
    return train.select(data.train.indices), validation


# ------------------------------------------------------------------------------------------------- what is kept


def load(path: Path, fit: Fit | None = None) -> tuple[Network, dict[str, Any]]:
    """(the network, in eval mode, the metadata of the file): settings, seed, classes. Raises `ArtifactError` for a file
    that is missing, damaged, or, if that is named, of another ``fit``."""
    state, facts = artifacts.load_tensors(path)
    if fit:
        _check(path, facts, fit)
    settings = config.parse(presets.Model, facts["model"])
    model = models.build(settings, len(facts["classes"]), facts["input_size"], facts["seed"], load_weights=False)
    models.load(model, state)
    return model.eval(), facts


def read(path: Path, fit: Fit) -> dict[str, Any]:
    """The record of ``fit``. Raises `ArtifactError` for one that is damaged or of other settings."""
    record = artifacts.load_json(path)
    _check(path, record, fit)
    return record


def identity(fit: Fit) -> dict[str, Any]:
    """What tells a fit from all others."""
    return {"name": fit.name, "seed": fit.seed, "settings": fit.digest()}


def _check(path: Path, facts: Mapping[str, Any], fit: Fit) -> None:
    if {name: facts.get(name) for name in identity(fit)} != identity(fit):
        raise artifacts.ArtifactError(f"{path} is not of {fit.name}: delete it and run again")


def _keep(
    fit: Fit,
    out: Path,
    model: Network,
    data: Sets,
    outcome: training.Outcome,
    feed: Batches,
    field: ReceptiveField | None,
) -> dict[str, Any]:
    """Test the final weights, write them and all that is known of them; return that."""
    study, model = fit.study, model.eval().to(feed.device)
    size = data.train.input_size
    test = steps.evaluate(model, feed.plain(data.test, study.test.batch_size), study.loss)
    seconds = {"train_seconds": outcome.seconds, "epoch_seconds": outcome.seconds / study.train.epochs}
    x, *_ = next(feed.plain(data.test, study.test.batch_size))
    settings = {name: getattr(study, name).model_dump(mode="json", exclude={"root"}) for name in SECTIONS}
    facts = identity(fit) | settings | {"classes": list(data.train.classes), "input_size": size}
    artifacts.save_tensors(weights_path(out, fit), model.state_dict(), facts)
    record = facts | {
        "history": columns(outcome.history),
        "kept_epoch": outcome.epoch,
        "images": {"train": len(data.train.labels), "test": len(data.test.labels)},
        "test": _rounded(test),
        "info": _rounded(info.model_info(model, size, x, field) | seconds),
        "receptive_field": field and _rounded(
            {"mean": field.mean_percent, "min": field.min_percent, "max": field.max_percent}
        ),
        "computed_from": {
            "weights": artifacts.sha256(weights_path(out, fit)),
            "environment": runtime.environment(),
            "device": feed.device.type,
            "processes": feed.world,
            "threads": torch.get_num_threads(),
        },
    }
    artifacts.save_json(record_path(out, fit), record)
    (out / fit.name / "checkpoint.safetensors").unlink(missing_ok=True)
    log.info("%s: test accuracy %.2f %%", fit.name, 100 * test["accuracy"])
    return record


def _tested_again(fit: Fit, out: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """``record`` with the scores on the test images that ``fit`` asks for, which are written."""
    study, data = fit.study, sets(fit.study.dataset, fit.seed)
    model = load(weights_path(out, fit), fit)[0].to(runtime.device("cpu" if study.gpus == 0 else study.device))
    where, limit = next(model.parameters()).device, DEBUG_BATCHES if study.debug else None
    batches = Batches(size=study.train.batch_size, seed=fit.seed, device=where, limit=limit)
    test = steps.evaluate(model, batches.plain(data.test, study.test.batch_size), study.loss)
    again = dict(record) | {
        "dataset": study.dataset.model_dump(mode="json", exclude={"root"}),
        "images": record["images"] | {"test": len(data.test.labels)},
        "test": _rounded(test),
    }
    artifacts.save_json(record_path(out, fit), again)
    return again


def _seen(model: Network, size: int) -> ReceptiveField | None:
    """What a cell of the features sees, if they have cells."""
    try:
        return receptive_field(model.features, size)
    except ConfigError as error:
        log.warning("no receptive field: %s", error)
        return None


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: rounded(value) for name, value in values.items()}
