"""The largest batch that fits in the memory of the GPU (``train.hparam_tune``)."""

from __future__ import annotations

import logging

import torch

from helpers import runtime
from helpers.config import ConfigError
from helpers.prototypes import models, optimisation
from helpers.prototypes.presets import PrototypesStudy
from helpers.prototypes.sets import sets
from helpers.prototypes.steps import training_loss

LARGEST = 4096

log = logging.getLogger(__name__)


def tuned(study: PrototypesStudy, seed: int) -> PrototypesStudy:
    """``study`` with the largest power of two as its batch size of which a training step fits; where memory sets no
    such limit, on a CPU, as it is. Raises `ConfigError` if not one image fits."""
    where = runtime.device("cpu" if study.gpus == 0 else study.device)
    if where.type != "cuda":
        log.info("train.hparam_tune: a CPU sets no limit, the batch size stays %d", study.train.batch_size)
        return study.override({"train.hparam_tune": False})
    data = sets(study.dataset, seed).train
    size, fits, most = 1, 0, min(LARGEST, len(data.labels) * study.dataset.augment_factor)
    while size <= most and _step_fits(study, data, size, where):
        size, fits = 2 * size, size
    if not fits:
        raise ConfigError("train.hparam_tune: not even a batch of one image fits in the GPU's memory")
    log.info("train.hparam_tune: the batch size is %d", fits)
    return study.override({"train.batch_size": fits, "train.hparam_tune": False})


def _step_fits(study: PrototypesStudy, data, size: int, where: torch.device) -> bool:
    try:
        model = models.build(study.model, len(data.classes), data.input_size, 0).to(where).train()
        optimizer = optimisation.make(study.optimizer, optimisation.groups(model, study.optimizer))
        x = torch.rand(size, 3, data.input_size, data.input_size, device=where)
        labels = torch.arange(size, device=where) % len(data.classes)
        low = torch.autocast("cuda", torch.bfloat16, enabled=study.train.precision != "float32")
        loss = training_loss(study.loss, False, lambda: low)
        for _ in range(2):  # the moments take memory from the second step on
            optimizer.zero_grad()
            loss(model, (x, labels))["loss"].backward()
            optimizer.step()
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        model = optimizer = x = None  # noqa: F841
        torch.cuda.empty_cache()
    return True
