"""The fits of the floods study: a head trained on the features of a frozen encoder (spec pinets, section 6.4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from helpers import artifacts, config, runtime, training
from helpers.config import ConfigError
from helpers.data import flood_chips
from helpers.data.flood_chips import Tiles
from helpers.pinets.floods import encoders, evaluate, losses
from helpers.pinets.floods.features import Stored, store
from helpers.pinets.floods.head import network
from helpers.pinets.floods.presets import FloodsStudy, Kind, Rules, classes
from helpers.pinets.models import PiNet

STUDY = "floods"


@dataclass(frozen=True)
class Member:
    """One fit. ``masks`` is the percentage of training tiles whose mask it sees: a PiNet sees the areas of all beside
    them, a SegNet nothing else."""

    study: FloodsStudy
    rules: Rules
    kind: Kind
    masks: int
    seed: int

    @property
    def group(self) -> str:
        return f"{self.kind}-{self.masks:03d}"

    @property
    def name(self) -> str:
        """Its path in every folder."""
        data = self.study.data.name.replace("/", "-")
        return f"{data}/{self.study.encoder}/{self.rules}/{self.group}/{self.seed}"

    @property
    def classes(self) -> tuple[int, ...]:
        return classes(self.rules)

    def digest(self) -> str:
        """Changes with every setting that the weights depend on."""
        study = self.study
        data = study.data.model_dump(mode="json", exclude={"tests"})
        return config.digest([data, study.training.model_dump(mode="json"), study.channels, study.encoder])

    def wanted(self) -> dict[str, Any]:
        """What a record has to be computed from, but for the weights."""
        study = self.study
        return {"settings": self.digest(), "evaluation": config.digest([study.data.tests, study.test_chips])}


def members(study: FloodsStudy) -> list[Member]:
    """All fits, seed by seed; of the budgets between none and all of the masks only under the first of the rules."""
    found = []
    for seed in range(study.seed, study.seed + study.seeds):
        for rules in study.rules:
            budgets = study.budgets if rules == study.rules[0] else ()
            for kind in study.kinds:
                shares = (0, *budgets) if kind == "pinet" else (100, *budgets)
                found += [Member(study, rules, kind, share, seed) for share in shares]
            if "pinet" in study.kinds and budgets:
                found.append(Member(study, rules, "pinet", 100, seed))
    return found


def working_folder(study: FloodsStudy) -> Path:
    """Where new weights and results go: ``OUT``, or ``runs/floods``."""
    return study.out_folder(STUDY)


# ------------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Sets:
    """Tiles to learn from, of which ``train`` and ``validation`` are rows."""

    tiles: Tiles
    train: Tensor
    validation: Tensor


@lru_cache(maxsize=4)
def sets(study: FloodsStudy, rules: Rules) -> Sets:
    """The tiles of the official train and validation splits; the ``released`` rules draw the validation tiles from
    both, tile by tile. Raises what `flood_chips.load` raises."""
    data = study.data
    chips = flood_chips.load(data.name)
    parts = [chips.split(split) for split in ("train", "validation")]
    if data.chips is not None:
        held = max(1, round(data.chips * len(parts[1]) / (len(parts[0]) + len(parts[1]))))
        parts = [parts[0][: data.chips - held], parts[1][:held]]
    tiles = flood_chips.tiles(chips, [*parts[0], *parts[1]], data.tile)
    first = len(flood_chips.tiles(chips, parts[0], data.tile))
    if rules == "released":
        train, validation = flood_chips.released_split(len(tiles))
    else:
        train, validation = list(range(first)), list(range(first, len(tiles)))
    if not train or not validation:
        raise ConfigError(f"{len(tiles)} tiles leave none to {'train on' if not train else 'validate with'}")
    return Sets(tiles, torch.tensor(train), torch.tensor(validation))


@lru_cache(maxsize=4)
def statistics(study: FloodsStudy, rules: Rules) -> tuple[np.ndarray, np.ndarray] | None:
    """(mean, sd) [6] of the training tiles, by which images are normalised; None for Galileo, which has its own. The
    corrected rules leave out pixels without data."""
    if study.encoder == "galileo_nano":
        return None
    own = sets(study, rules)
    return flood_chips.statistics(own.tiles.at(own.train.tolist()), known_only=rules == "corrected")


def test_tiles(study: FloodsStudy, name: str) -> Tiles:
    """The tiles of one of ``data.tests``: a split of the study's data set, or ``data set:split``. Nothing of it is read
    before it is asked for."""
    other, _, split = name.rpartition(":")
    chips = flood_chips.load(other or study.data.name)
    return flood_chips.tiles(chips, chips.split(split)[: study.test_chips], study.data.tile)


@lru_cache(maxsize=2)
def encoder(study: FloodsStudy, rules: Rules) -> encoders.Frozen:
    return encoders.build(study.encoder, statistics(study, rules))


@lru_cache(maxsize=8)
def stored(study: FloodsStudy, rules: Rules, test: str = "") -> Stored:
    """The features of the tiles to learn from, or of a ``test``, from the working folder or made there."""
    tiles = test_tiles(study, test) if test else sets(study, rules).tiles
    facts = geometry(study)
    side = study.data.tile // facts["patch"]
    scale = statistics(study, rules)
    marks = [study.encoder, encoders.DEPTH, scale and [part.tolist() for part in scale], tiles.digest()]
    path = working_folder(study) / "features" / f"{study.encoder}-{config.digest(marks)}.f16"
    shape = (encoders.DEPTH * facts["width"], side, side)
    device = runtime.device(study.device)
    return store(tiles, lambda: encoder(study, rules), shape, path, device, progress=study.workers == 1)


def geometry(study: FloodsStudy) -> dict[str, int]:
    """``width`` and ``patch`` of the encoder. Raises `ConfigError` for tiles that its patches do not fill."""
    facts = encoders.GEOMETRY[study.encoder]
    if study.data.tile % facts["patch"] or study.data.tile // facts["patch"] < 2:
        raise ConfigError(f"patches of {facts['patch']} pixels do not fill tiles of {study.data.tile}")
    return facts


# -------------------------------------------------------------------------------------------------- training


def train(member: Member, out: Path, progress: bool = False) -> dict[str, Any]:
    """Train one head and keep its best weights (half precision) as ``out/weights/<name>.safetensors``; return the
    file's metadata. Continues from the checkpoint of a run that was cut off."""
    study, options = member.study, member.study.training
    fabric = training.fabric(study.device, options.precision)
    own, data = sets(study, member.rules), stored(study, member.rules)
    model = build(member).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), options.learning_rate, weight_decay=options.weight_decay)
    labelled = mask_carriers(member, len(own.train))
    validate = evaluate.Validation(data, own.validation, member.classes, fabric.device)
    chosen_by, mode = criterion(member)
    plateau = training.Plateau(optimizer, factor=options.factor, patience=options.patience, mode=mode)

    def after_epoch(net: nn.Module, epoch: int) -> dict[str, float]:
        net.eval()
        found = validate(net)
        net.train()
        plateau.metric = found[chosen_by]
        return found | {"score": selection(member, found)}

    by_area = member.kind == "pinet"
    expected = float(labelled.sum()) * options.batch_size / len(labelled) if by_area else 0.0
    with runtime.deterministic():
        outcome = training.train(
            model,
            optimizer,
            losses.loss_of(member.classes, by_area=by_area, mask_loss=options.mask_loss, expected=expected),
            lambda epoch: batches(member, data, own.train, labelled, epoch, fabric.device),
            fabric=fabric,
            epochs=options.epochs,
            seed=runtime.stream(member.seed, member.name),
            after_epoch=after_epoch,
            scheduler=plateau,
            stop_rate=options.stop_rate,
            folder=out / "work" / member.name / member.digest(),
            progress=member.name if progress else None,
        )
    metadata = {
        "fit": member.name,
        "settings": member.digest(),
        "encoder": encoders.LABELS[study.encoder],
        "classes": list(member.classes),
        "masks": int(labelled.sum()),
        "tiles": {"train": len(own.train), "validation": len(own.validation)},
        "epoch": outcome.epoch,
        "epochs": outcome.epochs,
        "seconds": round(outcome.seconds, 1),
        "history": history(outcome.history),
    }
    artifacts.save_tensors(weights_path(out, member), artifacts.half_precision(outcome.state), metadata)
    (out / "work" / member.name / member.digest() / "checkpoint.safetensors").unlink(missing_ok=True)
    return metadata


def criterion(member: Member) -> tuple[str, Literal["min", "max"]]:
    """What a checkpoint is chosen by and the rate falls with, and its better end: the error of areas, or for a SegNet
    under the released rules the soft TDR."""
    released = member.rules == "released" and member.kind == "segnet"
    return ("soft_tdr", "max") if released else ("area_error", "min")


def selection(member: Member, found: dict[str, float]) -> float:
    """The `criterion` as a score: higher is better."""
    name, mode = criterion(member)
    return found[name] if mode == "max" else -found[name]


def build(member: Member) -> PiNet:
    """The head before its first step; all kinds of a seed begin with the same weights."""
    facts = geometry(member.study)
    with runtime.seeded(member.seed, STUDY, "init"):
        return network(facts["width"], facts["patch"], len(member.classes), member.study.channels)


def mask_carriers(member: Member, n_tiles: int) -> Tensor:
    """bool [N]: the training tiles whose mask may be used. More of them are a superset of fewer."""
    order = torch.randperm(n_tiles, generator=runtime.generator(member.seed, STUDY, "masks"))
    labelled = torch.zeros(n_tiles, dtype=torch.bool)
    count = round(member.masks * n_tiles / 100)
    labelled[order[: max(count, 1) if member.masks else 0]] = True
    return labelled


def batches(
    member: Member, data: Stored, rows: Tensor, labelled: Tensor, epoch: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(features, masks, labelled) of an epoch. A SegNet sees its few labelled tiles again and again, so that all take
    as many steps. A last batch of one tile is left out: it has no batch statistics."""
    order = torch.randperm(len(rows), generator=runtime.generator(member.seed, STUDY, "order", epoch))
    if member.kind == "segnet":
        order = order[labelled[order]]
        order = order.repeat(-(-len(rows) // len(order)))[: len(rows)]
    for some in order.split(member.study.training.batch_size):
        if len(some) > 1:
            features = data.features(rows[some]).to(device)
            yield features, data.masks[rows[some]].to(device), labelled[some].to(device)


def history(rows: list[dict[str, Any]]) -> dict[str, list]:
    """The course of a training as one list a column, four digits."""
    names = ("epoch", "loss", "learning_rate", "area_error", "soft_tdr", "water_iou")
    return {name: [None if row[name] != row[name] else float(f"{row[name]:.4g}") for row in rows] for name in names}


def weights_path(out: Path, member: Member) -> Path:
    return out / "weights" / f"{member.name}.safetensors"


def load(path: Path, member: Member) -> PiNet:
    """The trained head on features, in eval mode; `ArtifactError` if the file is missing, damaged, or of another
    fit."""
    state, metadata = artifacts.load_tensors(path)
    if metadata.get("fit") != member.name or metadata.get("settings") != member.digest():
        raise artifacts.ArtifactError(
            f"{path} holds {metadata.get('fit')!r} of other settings or swapped; train with these (RETRAIN=True with "
            "another OUT), or take back the changes"
        )
    model = build(member)
    artifacts.load_state(model, state)
    return model.eval()


def whole(model: PiNet, encoder: nn.Module) -> PiNet:
    """``model`` on images: its head behind a frozen encoder. Only the head is a part of its checkpoints."""
    return PiNet(encoder, model.decoder, model.second_look, "softmax", model.aggregator, z=model.z)
