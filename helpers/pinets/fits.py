"""The fits of the ToyShapes study: which there are, how one is trained, and how many side by side (spec 3.3 - 3.5).

A fit is a training run with a seed. A group tries seeds upwards until it has enough *accepted* fits, those whose best
validation accuracy reaches `Training.min_accuracy`. Every finished fit is kept at once, accepted or not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helpers import artifacts, runtime, training, workers
from helpers.config import ConfigError, digest
from helpers.data import toyshapes
from helpers.pinets import losses
from helpers.pinets.models import CNN, Decoder, DenseDecoder, Encoder, PiNet
from helpers.pinets.presets import Group, Model, ToyShapesStudy, Training

ENSEMBLE_DATA_SEED = 2025  # ensemble e is trained on the data of seed 2025 + e


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """One training run: ``name`` is its path in every folder."""

    group: str
    seed: int
    ensemble: int | None = None

    @property
    def name(self) -> str:
        return f"{self.group}/{self.seed}" if self.ensemble is None else f"{self.group}/{self.ensemble}/{self.seed}"

    @property
    def data_seed(self) -> int:
        """A single fit's seed drives its data too; the members of an ensemble share theirs."""
        return self.seed if self.ensemble is None else ENSEMBLE_DATA_SEED + self.ensemble

    def settings(self, study: ToyShapesStudy) -> Group:
        return getattr(study.group, self.group)

    def digest(self, study: ToyShapesStudy) -> str:
        """Changes with every setting that the fit's weights depend on."""
        group = self.settings(study)
        parts = {"data": study.data, "model": group.model, "training": group.training}
        return digest({name: part.model_dump(mode="json") for name, part in parts.items()})


def build(model: Model, image_size: int) -> PiNet | CNN:
    """The network of ``model``, initialised from torch's global generator."""
    shape = {"skip": model.skip, "dropout": model.dropout}
    encoder = Encoder(1, model.width, model.depth, **shape)
    if model.kind == "cnn":
        return CNN(encoder)
    if model.spatial_decoder:
        decoder: nn.Module = Decoder(encoder.out_channels, model.depth, **shape)
    else:
        decoder = DenseDecoder(encoder.out_channels, (image_size, image_size))
    return PiNet(encoder, decoder, model.second_look, model.activation)


def load(path: Path, study: ToyShapesStudy, fit: Fit) -> PiNet | CNN:
    """The trained network in eval mode; `ArtifactError` if the file is missing, damaged, or of other settings."""
    state, metadata = artifacts.load_tensors(path)
    if metadata.get("fit") != fit.name:
        held = metadata.get("fit")
        raise artifacts.ArtifactError(
            f"{path} holds the fit {held!r}, not {fit.name!r}: it was swapped; restore it, or delete it and run again"
        )
    if metadata.get("settings") != fit.digest(study):
        raise artifacts.ArtifactError(
            f"{path} was trained with other settings; train with these ones (RETRAIN=True), or take its PRESET"
        )
    model = build(fit.settings(study).model, study.data.image_size)
    artifacts.load_state(model, state)
    return model.eval().to(memory_format=torch.channels_last)


# ------------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Tensors:
    """Images ``x`` float32 [N, 1, H, W] in [0, 1], labels ``y`` float32 [N], ``masks`` float32 [N, 1, H, W]."""

    x: Tensor
    y: Tensor
    masks: Tensor

    def __getitem__(self, rows: Any) -> Tensors:
        return Tensors(self.x[rows], self.y[rows], self.masks[rows])

    def __len__(self) -> int:
        return len(self.y)


def tensors(data: toyshapes.ToyShapes) -> Tensors:
    """``data`` as a network takes it; see `Tensors`."""
    return Tensors(
        torch.from_numpy(data.images)[:, None].float() / 255,
        torch.from_numpy(data.labels).float(),
        torch.from_numpy(data.masks)[:, None].float(),
    )


@lru_cache(maxsize=2)
def replication(study: ToyShapesStudy, seed: int) -> tuple[Tensors, Tensors]:
    """(train, validation) of the data drawn with ``seed``. Raises `ConfigError` if the latter has no image."""
    data = tensors(toyshapes.generate(seed, **study.data.model_dump()))
    train, validation = toyshapes.split(len(data), seed)
    if not len(validation):
        raise ConfigError(f"{len(data)} images leave none for validation: raise data.n_images")
    return data[train], data[validation]


@lru_cache(maxsize=1)
def test_set(study: ToyShapesStudy) -> Tensors:
    """The images that every model is tested on, drawn with the study's data settings and the shared seed."""
    return tensors(toyshapes.test_set(**{**study.data.model_dump(), "n_images": study.test_images}))


# -------------------------------------------------------------------------------------------------- training


def train(fit: Fit, study: ToyShapesStudy, out: Path, progress: bool = False) -> dict[str, Any]:
    """Train one fit and keep its best weights (half precision) as ``out/weights/<name>.safetensors``; return the
    file's metadata. Continues from the checkpoint of a run that was cut off."""
    options = fit.settings(study).training
    fabric = training.fabric(study.device, options.precision)
    train_set, validation = replication(study, fit.data_seed)

    model = initialise(fit, study).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), options.learning_rate, options.betas, fused=True)
    batches, expected = _batches(fit, options, train_set, fabric.device)
    with runtime.deterministic():
        outcome = training.train(
            model,
            optimizer,
            losses.total_loss(
                feedback=options.feedback, strong=options.strong, sparsity=options.sparsity, expected=expected
            ),
            batches,
            fabric=fabric,
            epochs=options.epochs,
            seed=runtime.stream(fit.seed, fit.group),
            evaluate=_validator(validation, fabric.device),
            evaluate_at=evaluation_steps(options, len(train_set)),
            stop_at=1.0,
            folder=work_folder(out, fit, study),
            progress=fit.name if progress else None,
        )
    return keep(fit, study, out, outcome, fabric._precision.precision)


def keep(fit: Fit, study: ToyShapesStudy, out: Path, outcome: training.Outcome, precision: str) -> dict[str, Any]:
    """Write the best weights of a fit that has ended; return the file's metadata."""
    group = fit.settings(study)
    metadata = {
        "fit": fit.name,
        "settings": fit.digest(study),
        "group": group.model_dump(mode="json"),
        "accepted": outcome.score >= group.training.min_accuracy,
        "validation_accuracy": outcome.score,
        "epoch": outcome.epoch,
        "step": outcome.step,
        "epochs": outcome.epochs,
        "seconds": round(outcome.seconds, 1),
        "precision": precision,
        "history": training.columns(outcome.history),
    }
    artifacts.save_tensors(weights_path(out, fit), artifacts.half_precision(outcome.state), metadata)
    (work_folder(out, fit, study) / "checkpoint.safetensors").unlink(missing_ok=True)
    return metadata


def weights_path(out: Path, fit: Fit) -> Path:
    return out / "weights" / f"{fit.name}.safetensors"


def work_folder(out: Path, fit: Fit, study: ToyShapesStudy) -> Path:
    """Checkpoint and log of a fit; a checkpoint of other settings is never taken up."""
    return out / "work" / fit.name / fit.digest(study)


def initialise(fit: Fit, study: ToyShapesStudy) -> PiNet | CNN:
    """The fit's network before its first step."""
    with runtime.seeded(fit.seed, fit.group, "init"):
        return build(fit.settings(study).model, study.data.image_size)


def evaluation_steps(options: Training, n_images: int) -> range:
    """The steps of an epoch after which a fit is validated."""
    n_batches = -(-n_images // options.batch_size)
    every = max(1, n_batches // options.evaluations)
    return range(every, n_batches + 1, every)


def image_order(fit: Fit, options: Training, n_images: int, epoch: int) -> Tensor:
    """int64 [N]: the order in which an epoch shows the training images."""
    if _masks_by_batch(options):  # who carries a mask holds for this order alone
        return torch.arange(n_images)
    return torch.randperm(n_images, generator=runtime.generator(fit.seed, fit.group, "order", epoch))


def mask_carriers(fit: Fit, options: Training, y: Tensor) -> tuple[Tensor, float]:
    """(bool [N], the training images whose mask may be used; how many of them a mean batch holds)."""
    labelled = torch.zeros(len(y), dtype=torch.bool)
    if _masks_by_batch(options):
        return losses.first_positives(y, options.batch_size), 1.0
    if options.strong > 0:
        positives = y.nonzero()[:, 0]
        chosen = torch.randperm(len(positives), generator=runtime.generator(fit.seed, fit.group, "masks"))
        labelled[positives[chosen[: options.mask_budget]]] = True
        return labelled, max(int(labelled.sum()), 1) * options.batch_size / len(y)
    return labelled, 1.0


def _masks_by_batch(options: Training) -> bool:
    return options.strong > 0 and options.mask_rule == "first_positives"


def _batches(
    fit: Fit, options: Training, data: Tensors, device: torch.device
) -> tuple[Callable[[int], Iterator[tuple[Tensor, ...]]], float]:
    """(batches of an epoch, labelled images in a mean batch)."""
    labelled, expected = mask_carriers(fit, options, data.y)
    columns = [column.to(device) for column in (data.x, data.y, data.masks, labelled)]

    def batches(epoch: int) -> Iterator[tuple[Tensor, ...]]:
        for rows in image_order(fit, options, len(data), epoch).to(device).split(options.batch_size):
            yield tuple(column[rows] for column in columns)

    return batches, expected


def _validator(data: Tensors, device: torch.device, chunk: int = 40) -> Callable[[nn.Module, float], float | None]:
    """Validation accuracy; None as soon as the errors so far rule out beating the best one."""
    x, y = data.x.to(device), data.y.to(device) > 0

    def evaluate(model: nn.Module, best: float) -> float | None:
        allowed = (1 - best) * len(y) - 0.5  # half an error below the best's, against rounding
        errors = 0
        for start in range(0, len(y), chunk):
            logits = model(x[start : start + chunk]).logits
            errors += int(((logits > 0) != y[start : start + chunk]).sum())
            if errors > allowed:
                return None
        return (len(y) - errors) / len(y)  # exact, as min_accuracy is

    return evaluate


# ------------------------------------------------------------------------------------------------- many fits


def run_missing(
    study: ToyShapesStudy,
    known: Callable[[Fit], bool | None],
    run: Callable[[Fit, ToyShapesStudy], bool],
) -> None:
    """Call ``run(fit, study)`` until every group of ``study.groups`` has its accepted fits; it returns whether the fit
    was accepted and has to keep what it made, so that nothing is lost when this is cut off.

    ``known(fit)``: was it accepted, or None if it has yet to run. With ``study.workers`` > 1 that many processes share
    the cores; a fit's bits depend on the number of threads that it has, and on nothing else of this. Raises
    ``RuntimeError`` when a group runs out of attempts.
    """
    accepted: dict[Fit, bool] = {}
    lookup = remembering(accepted, known)
    running: dict[Future, Fit] = {}
    with workers.executor(study.workers) as executor:
        while True:
            while len(running) < study.workers and (fit := next_fit(study, lookup, set(running.values()))):
                running[executor.submit(run, fit, study)] = fit
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                fit = running.pop(future)
                accepted[fit] = future.result()
                log.info("%s: %s", fit.name, "accepted" if accepted[fit] else "rejected")


def remembering(accepted: dict[Fit, bool], known: Callable[[Fit], bool | None]) -> Callable[[Fit], bool | None]:
    """``known``, asked about a fit until it answers; ``accepted`` keeps the answers."""

    def lookup(fit: Fit) -> bool | None:
        if fit not in accepted and (value := known(fit)) is not None:
            accepted[fit] = value
        return accepted.get(fit)

    return lookup


def next_fit(study: ToyShapesStudy, known: Callable[[Fit], bool | None], running: set[Fit]) -> Fit | None:
    """The fit to begin next: the lowest seed of the group least complete, so that all grow together. None: all are."""
    candidates = []
    for order, group in enumerate(study.groups):
        of_ensembles = getattr(study.group, group).ensemble
        for index, ensemble in enumerate(range(study.ensembles) if of_ensembles else [None]):
            target = study.fits if ensemble is None else study.members
            fit, begun = _next_seed(study, group, ensemble, target, known, running)
            if fit:
                share = (index + begun / target) / (study.ensembles if of_ensembles else 1)
                candidates.append((share, order, fit))
                break
    return min(candidates, key=lambda c: c[:2])[2] if candidates else None


def _next_seed(study, group, ensemble, target, known, running) -> tuple[Fit | None, int]:
    """(the lowest seed not begun or None when enough are, how many are accepted or running)."""
    begun = 0
    for seed in range(study.seed, study.seed + study.attempts):
        fit = Fit(group, seed, ensemble)
        value = known(fit)
        if value is None and fit not in running:
            return fit, begun
        begun += value is not False
        if begun >= target:
            return None, begun
    if running:  # some may yet be accepted
        return None, begun
    raise RuntimeError(f"{group}: {begun} of {target} fits were accepted in {study.attempts} attempts; see ATTEMPTS")


def accepted_seeds(study: ToyShapesStudy, group: str, known: Callable[[Fit], bool | None], ensemble: int | None = None):
    """(accepted, rejected) seeds among those that count: upwards from the first until enough are accepted."""
    accepted: list[int] = []
    rejected: list[int] = []
    for seed in range(study.seed, study.seed + study.attempts):
        if len(accepted) >= (study.fits if ensemble is None else study.members):
            break
        value = known(Fit(group, seed, ensemble))
        if value is not None:
            (accepted if value else rejected).append(seed)
    return accepted, rejected
