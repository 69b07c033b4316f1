"""The prototypes study: train and measure what is missing, or read what is shipped (RETRAIN, REEVALUATE).

A *group* is a backbone, a cut and a kind of head, ``"birdnet@stage3/pixpnet"``; of each there are fits of several
seeds, with a record each (`helpers.records`). Weights are rounded to half precision before anything is measured, so
that what is shipped is what was measured; prototypes are then the patches that they come from as the rounded network
sees them.

    weights/<data>/<group>/<seed>.safetensors
    results/<data>/<group>/<seed>.json

Of a study's fits everything else (checkpoints, logs, features of frozen backbones) lies in ``fits``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from helpers import artifacts, config, records, runtime
from helpers.config import ConfigError, suggest
from helpers.prototypes import evaluate, fits, models, projection
from helpers.prototypes.fits import STUDY, Fit, working_folder
from helpers.prototypes.models import Network, ProtoNet
from helpers.prototypes.presets import KINDS, PrototypesStudy
from helpers.prototypes.sets import Sets, sets
from helpers.records import RecordShelf, rounded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A seed of a group of a study. Raises `ConfigError` for a group that cannot be."""

    study: PrototypesStudy
    group: str
    seed: int

    def __post_init__(self) -> None:
        if "@" not in self.group:
            raise ConfigError(f"a group is backbone@cut or backbone@cut/kind, not {self.group!r}")
        if self.kind not in KINDS:
            raise ConfigError(f"unknown kind of head {self.kind!r} in {self.group!r}: {suggest(self.kind, KINDS)}")

    @property
    def kind(self) -> str:
        return self.group.partition("/")[2] or next(iter(KINDS))

    @property
    def cut(self) -> str:
        """``backbone@cut``."""
        return self.group.partition("/")[0]

    @property
    def label(self) -> str:
        """``backbone@cut/kind``, as tables call its group."""
        return f"{self.cut.replace(':', '-')}/{self.kind}"

    @property
    def name(self) -> str:
        """Its path in every folder."""
        data = self.study.dataset
        dataset = "-".join(part.lower() for part in (data.name, data.subset) if part)
        return f"{dataset}/{self.label}/{self.seed}"

    @cached_property
    def fit(self) -> Fit:
        extractor, _, layer = self.cut.partition("@")
        changes = {"model.feature_extractor": extractor, "model.feature_layer": layer, **KINDS[self.kind]}
        return Fit(self.study.override(changes), self.seed)

    def wanted(self) -> dict[str, Any]:
        """What a record of this study is computed from, but for the weights."""
        asked = [evaluate.VERSION, self.study.dataset.n_test]
        return {"settings": self.fit.digest(), "evaluation": config.digest(asked)}


class Shelf(RecordShelf):
    study = STUDY
    entries = frozenset({"name", "training", "measured", "computed_from"})

    def net(self, member: Member) -> Network:
        """The network, in eval mode. Raises `ArtifactError` if its weights are not here."""
        return fits.load(self.weights_path(member), member.fit)[0]


def choose_shelf(study: PrototypesStudy) -> Shelf:
    """The working folder when training, or when ``OUT`` names one that holds this study; else what is shipped."""
    return records.choose_shelf(Shelf, study, working_folder(study))


def members(study: PrototypesStudy) -> list[Member]:
    """All that a study compares, seed by seed, so that it can be cut off between two seeds."""
    seeds = range(study.seed, study.seed + study.seeds)
    return [Member(study, group, seed) for seed in seeds for group in study.groups]


def collect(study: PrototypesStudy) -> list[dict[str, Any]]:
    """The records of all `members`. ``RETRAIN`` trains and measures what ``OUT`` does not hold yet; ``REEVALUATE``
    measures anew what there are weights of, and keeps the records of the others. Else all are read. Raises
    `ArtifactError` for a record that is missing, damaged or stale."""
    return records.collect(study, choose_shelf(study), members(study), run, measure, working_folder(study))


def run(member: Member) -> None:
    """Train, measure and keep what is missing of one fit, in the working folder."""
    out = working_folder(member.study)
    shelf = Shelf(out)
    fits.train(member.fit, out / "fits", progress=member.study.workers == 1)
    data = sets(member.study.dataset, member.seed)
    artifacts.save_tensors(shelf.weights_path(member), *_rounded_off(member, data, out / "fits"))
    shelf.keep(measure(member, shelf, data))


def _rounded_off(member: Member, data: Sets, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(the state that is kept of a fit, the metadata of its file)."""
    net, facts = fits.load(fits.weights_path(folder, member.fit), member.fit)
    state = net.state_dict()
    rounded_off = artifacts.half_precision(state)
    if isinstance(net, ProtoNet):
        models.load(net, rounded_off | {"prototypes": state["prototypes"]})
        projection.renew(net, data.train)
        rounded_off["prototypes"] = net.prototypes.detach()
    return rounded_off, facts


def measure(member: Member, shelf: Shelf, data: Sets | None = None) -> dict[str, Any]:
    """The record of a fit, from its weights on ``shelf``. What is known of the training is taken from the working
    folder, or else from the record on the shelf. ``data``: the images, if they are at hand."""
    study, model = member.fit.study, shelf.net(member)
    data = data or sets(study.dataset, member.seed)
    measured = evaluate.measure(model.to(runtime.device(study.device)), data, study.loss, member.seed)
    log.info("%s: test accuracy %.2f %%", member.name, measured["accuracy"])
    return {
        "name": member.name,
        "training": _course(member) or artifacts.load_json(shelf.record_path(member))["training"],
        "measured": {name: rounded(value) for name, value in measured.items()},
        "computed_from": member.wanted() | {"weights": artifacts.sha256(shelf.weights_path(member))},
    }


def _course(member: Member) -> dict[str, Any] | None:
    """How the training went, or None if it was not in the working folder."""
    path = fits.record_path(working_folder(member.study) / "fits", member.fit)
    if not path.exists():
        return None
    record = fits.read(path, member.fit)
    made = {name: record["computed_from"][name] for name in ("device", "processes", "threads")}
    return {"history": record["history"], "seconds": record["info"]["train_seconds"], **made}


# ---------------------------------------------------------------------------------------------------- as tables


def frame(collected: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Everything measured, a row a number: data, cut, kind, group (cut/kind), seed, metric, value."""
    rows = []
    for record in collected:
        data, cut, kind, seed = record["name"].split("/")
        names = {"data": data, "cut": cut, "kind": kind, "group": f"{cut}/{kind}", "seed": int(seed)}
        found = record["measured"] | {"minutes": record["training"]["seconds"] / 60}
        rows += [names | {"metric": metric, "value": value} for metric, value in found.items()]
    return pd.DataFrame(rows)
