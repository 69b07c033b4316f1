"""What one training of the study comes to: the probes of a backbone's stages, or a fine-tuned cut.

The test images are loaded when all that is learned and chosen is learned and chosen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from helpers import artifacts, config, runtime
from helpers.prototypes import backbones, fits, probes
from helpers.prototypes.receptive_field import receptive_fields
from helpers.prototypes.sets import Sets, sets
from helpers.prototypes.stage_features import Features, stage_features
from helpers.records import columns

if TYPE_CHECKING:
    from helpers.prototypes.goldilocks import Goldilocks, Member

TOP = 5
EVALUATED = 64  # images that go through a network together

log = logging.getLogger(__name__)


def measure(member: Member) -> dict[str, Any]:
    """The record of ``member``, but for what it is computed from. Raises what `fits.train` raises."""
    data = sets(member.study.data, member.seed)
    with runtime.deterministic():
        rows, facts = (probe if member.mode == "probe" else finetune)(member, data)
    rows = [
        {"number": number, "stage": stage, **row}
        for (stage, number), row in zip(member.stages.items(), rows, strict=True)
    ]
    for row in rows:
        log.info("%s/%s, %s: test accuracy %.1f %%", member.backbone, row["stage"], member.mode, 100 * row["accuracy"])
    facts |= {
        "model": member.backbone,
        "mode": member.mode,
        "seed": member.seed,
        "dataset": member.data_name,
        "images": {"train": len(data.train), "test": len(data.test)},
        "classes": len(data.classes),
        "input_size": data.train.input_size,
        "environment": runtime.environment(),
    }
    return {"name": member.name, "rows": columns(rows), "facts": facts}


def file_name(name: str) -> str:
    """``name`` as a folder may be called."""
    return name.replace("/", "-").replace(":", "-")


# -------------------------------------------------------------------------------------------------------- probes


def probe(member: Member, data: Sets) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row a stage: a logistic regression on the means over its cells, whose L2 penalty is the one of ``strengths``
    with the best accuracy on held-out training images, the strongest of equally good ones."""
    study, size = member.study, data.train.input_size
    with runtime.seeded(member.seed, "initialisation", "backbone"):
        module = backbones.backbone(member.model, size).module.eval()
    weights, named = artifacts.fingerprint(module.state_dict()), backbones.aliases(member.backbone)
    paths = {stage: named.get(stage, stage) for stage in member.stages}
    folder = fits.working_folder(study) / "features" / f"{file_name(member.backbone)}_{weights}"
    source = study.data.model_dump(mode="json", exclude={"root", "augment"})
    where, seconds = runtime.device(study.device), 0.0

    def known(split: str, flipped: bool = False) -> Features:
        nonlocal seconds
        part = getattr(data, split)
        place = folder / f"{split}_{config.digest([source, part.indices.tolist(), paths])}"
        found, took = stage_features(module, paths, part, place, where, flipped=flipped, progress=study.verbose)
        seconds += took
        return {stage: values.to(where) for stage, values in found.items()}

    views = [known("train"), known("train", flipped=True)] if study.augment else [known("train")]
    labels = data.train.labels.to(where)
    learn = probes.folds(data.train.labels, study.val_size, member.seed).to(where)
    chosen = {
        stage: _best([view[stage] for view in views], labels, learn, study.strengths, len(data.classes))
        for stage in member.stages
    }
    tests, fields = known("test"), receptive_fields(module, size)
    rows = [
        {
            "mean_rf": fields[paths[stage]].mean_percent,
            "channels": tests[stage].shape[1],
            **_accuracies([(best(tests[stage])[0], data.test.labels)]),
            **facts,
            "seconds": facts["seconds"] + seconds / len(member.stages),
        }
        for stage, (best, facts) in chosen.items()
    ]
    return rows, {"weights": weights, "forward_seconds": round(seconds, 2)}


def _best(
    views: Sequence[Tensor], y: Tensor, learn: Tensor, strengths: Sequence[float], n_classes: int
) -> tuple[probes.Probe, dict[str, float]]:
    """The chosen probe (of one problem) and how it was chosen, from the ``views`` [N, D] of images with labels ``y``
    [N], the first as they will be tested; those of ``learn`` (bool [N]) are learned from."""
    began, copies = time.monotonic(), len(views)
    rows = learn.repeat(copies).expand(len(strengths), -1)
    found = probes.fit(torch.cat(list(views)), y.repeat(copies), rows, strengths, n_classes)
    right = (found(views[0][~learn]).argmax(2) == y[~learn]).double().mean(1).tolist()
    best = max(range(len(strengths)), key=lambda k: (right[k], strengths[k]))
    facts = {"validation_accuracy": right[best], "strength": strengths[best], "seconds": time.monotonic() - began}
    return probes.Probe(found.weight[best, None], found.bias[best, None]), facts


# --------------------------------------------------------------------------------------------------- fine-tuning


def finetune(member: Member, data: Sets) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row: the cut, trained as a whole, in a folder that keeps what a run that is cut off needs."""
    study, fit, folder = member.study, member.fit, fits_folder(member.study)
    trained = fits.train(fit, folder, progress=study.verbose and study.workers == 1)
    where = runtime.device(study.device)
    network = fits.load(fits.weights_path(folder, fit), fit)[0].to(where)
    batches = torch.arange(len(data.test.labels)).split(EVALUATED)
    with torch.inference_mode():
        scores = _accuracies((network.logits(data.test.inputs(b).to(where)), data.test.labels[b]) for b in batches)
    row = {
        "mean_rf": trained["receptive_field"]["mean"],
        "channels": network.head.in_features,
        **scores,
        "seconds": trained["info"]["train_seconds"],
    }
    return [row], {"epochs": study.epochs, "history": trained["history"], "test": trained["test"]}


def fits_folder(study: Goldilocks) -> Path:
    """Where fine-tunings lie until their records are kept."""
    return fits.working_folder(study) / "fits"


def _accuracies(batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Shares of images whose label is the first, or among the first five, of the ``logits`` [B, C]."""
    hits = []
    for logits, labels in batches:
        order = logits.topk(min(TOP, logits.shape[1]), dim=1).indices.cpu()
        hits.append(order == labels[:, None])
    hits = torch.cat(hits).double()
    return {"accuracy": float(hits[:, 0].mean()), "top5": float(hits.sum(1).mean())}
