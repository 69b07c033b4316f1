"""The self-explaining study: train and measure what is missing, or read what is shipped (RETRAIN, REEVALUATE).

A *group* is a condition (what is learned from) and a kind (how), ``"decoy/lsx"``; of each there are fits of several
seeds. A *record* is all that is known of one of them: JSON, written the moment it is known, with what it was computed
from. Weights are rounded to half precision before anything is measured, so that what is shipped is what was measured.

    weights/<source>/<condition>/<kind>/<seed>.safetensors
    results/<source>/<condition>/<kind>/<seed>.json

Of a study's fits everything else (the weights after each phase, logs, TensorBoard events) lies in ``fits``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from helpers import artifacts, config, records
from helpers.config import ConfigError, suggest
from helpers.records import RecordShelf, columns, rounded
from helpers.self_explaining import evaluate, fits, phases
from helpers.self_explaining.fits import Fit
from helpers.self_explaining.models import Net
from helpers.self_explaining.presets import CONDITIONS, KINDS, SelfExplainingStudy
from helpers.self_explaining.seeds import train_together
from helpers.self_explaining.sets import parts, sets
from helpers.self_explaining.weights import STUDY

log = logging.getLogger(__name__)


def known_groups() -> list[str]:
    return [f"{condition}/{kind}" for condition in CONDITIONS for kind in KINDS]


@dataclass(frozen=True)
class Member:
    """A seed of a group of a study. Raises `ConfigError` for a group that there is not."""

    study: SelfExplainingStudy
    group: str
    seed: int

    def __post_init__(self) -> None:
        if self.group not in known_groups():
            raise ConfigError(f"unknown group {self.group!r}: {suggest(self.group, known_groups())}")

    @property
    def source(self) -> str:
        """The data set before anything is done to it."""
        return parts(self.study.dataset)[1]

    @property
    def name(self) -> str:
        """Its path in every folder."""
        return f"{self.source}/{self.group}/{self.seed}"

    @cached_property
    def fit(self) -> Fit:
        condition, kind = self.group.split("/")
        dataset = CONDITIONS[condition].format(self.source)
        if kind == "cnn":
            dataset += "-baseline" if dataset.endswith("-unconf") else ""
        return Fit(
            self.study.override({"dataset": dataset, **KINDS[kind]}),
            self.seed,
            "baseline" if kind == "cnn" else "learner",
        )

    @cached_property
    def encoder(self) -> Fit:
        """Of the explanation similarity: the same for all kinds of a condition, and without the clean images."""
        dataset = CONDITIONS[self.group.split("/")[0]].format(self.source).removesuffix("-unconf")
        return Fit(self.study.override({"dataset": dataset}), self.seed, "encoder")

    @property
    def asked(self) -> dict[str, Any]:
        """How `evaluate.evaluate` measures it. Where there is a confounder, accuracy and the share of the explanation
        on it are the question, which depends on no norm: true labels under the norm ``sample``, or where these are not
        asked for, the first labels under the last norm."""
        asked = evaluate.settings(self.study)
        if self.group.startswith("clean/"):
            return asked
        norms, labels = asked["norms"], asked["labels"]
        return asked | {
            "norms": ("sample",) if "sample" in norms else norms[-1:],
            "labels": ("true",) if "true" in labels else labels[:1],
        }

    def wanted(self) -> dict[str, Any]:
        """What a record of this study is computed from, but for the weights."""
        asked = {name: list(value) if isinstance(value, tuple) else value for name, value in self.asked.items()}
        maps = self.study.explanation.model_dump(mode="json", exclude={"norm"})  # no setting of a CNN's training
        return {
            "settings": self.fit.digest(),
            "encoder": self.encoder.digest(),
            "evaluation": config.digest([evaluate.VERSION, asked, maps]),
        }


class Shelf(RecordShelf):
    study = STUDY
    entries = frozenset({"name", "training", "measured", "curves", "computed_from"})

    def net(self, member: Member) -> Net:
        """The network, in eval mode. Raises `ArtifactError` if its weights are not here."""
        return fits.load(self.weights_path(member), member.fit)[0]


def choose_shelf(study: SelfExplainingStudy) -> Shelf:
    """The working folder when training, or when ``OUT`` names one that holds this study; else what is shipped."""
    return records.choose_shelf(Shelf, study, fits.working_folder(study))


def members(study: SelfExplainingStudy) -> list[Member]:
    """All that a study compares, seed by seed, so that it can be cut off between two seeds."""
    seeds = range(study.first_seed, study.first_seed + study.seeds)
    return [Member(study, group, seed) for seed in seeds for group in study.groups]


def collect(study: SelfExplainingStudy) -> list[dict[str, Any]]:
    """The records of all `members`. ``RETRAIN`` trains and measures what ``OUT`` does not hold yet; ``REEVALUATE``
    measures anew what there are weights of, and keeps the records of the others. Else all are read. Raises
    `ArtifactError` for a record that is missing, damaged or stale, and `ConfigError` for WORKERS beside TOGETHER."""
    if study.retrain and study.together > 1 and study.workers > 1:
        raise ConfigError(
            f"TOGETHER = {study.together} is for one process, WORKERS = {study.workers} for several: set one to 1"
        )
    return records.collect(
        study, choose_shelf(study), members(study), run, measure, fits.working_folder(study), prepare=_train_shared
    )


def run(member: Member) -> None:
    """Train, measure and keep what is missing of one fit, in the working folder."""
    out = fits.working_folder(member.study)
    shelf, progress = Shelf(out), member.study.verbose and member.study.workers == 1
    if not shelf.weights_path(member).exists():
        facts = fits.train(member.fit, out / "fits", progress=progress)
        state = fits.load(fits.weights_path(out / "fits", member.fit), member.fit)[0].state_dict()
        facts = facts | {"config": member.fit.settings.provenance()}  # it may be shipped: no folder of this machine
        artifacts.save_tensors(shelf.weights_path(member), artifacts.half_precision(state), facts)
    shelf.keep(measure(member, shelf))


def _train_shared(missing: Sequence[Member], executor: Executor) -> None:
    """The encoders that several of ``missing`` share; with TOGETHER their fits as well, for `run` to read."""
    encoders = list(dict.fromkeys(member.encoder for member in missing))
    if missing and missing[0].study.together > 1:
        _train_stacks(missing[0].study, encoders + [member.fit for member in missing])
    for done in [executor.submit(_train_encoder, encoder) for encoder in encoders]:
        done.result()


def _train_stacks(study: SelfExplainingStudy, wanted: Sequence[Fit]) -> None:
    """Train ``wanted``, so many seeds of the same settings together."""
    alike: dict[Fit, list[Fit]] = {}
    for fit in dict.fromkeys(wanted):
        alike.setdefault(replace(fit, seed=0), []).append(fit)
    for seeds in alike.values():
        for first in range(0, len(seeds), study.together):
            stack = seeds[first : first + study.together]
            train_together(stack, fits.working_folder(study) / "fits", progress=study.verbose)


def measure(member: Member, shelf: Shelf) -> dict[str, Any]:
    """The record of a fit, from its weights on ``shelf``; its encoder is trained where it is not in the working folder,
    and what is known of its training is taken from there, or of shipped weights from the record beside them."""
    study, out = member.study, fits.working_folder(member.study) / "fits"
    net, encoder = shelf.net(member), _train_encoder(member.encoder)
    data = sets(member.fit.settings, member.seed)
    where = fits.device(study)
    net, encoder, asked = net.to(where), encoder.to(where), member.asked
    found = evaluate.evaluate(net, encoder, data, study.explanation, seed=member.seed, **asked)
    curves = {
        norm: evaluate.critic_curve(
            net, data.to(where), study.explanation.override({"norm": norm}), critic=asked["critic"],
            learning_rate=study.learning_rate_critic, critics=study.critics, seed=member.seed,
        ).tolist()
        for norm in asked["norms"]
    }  # fmt: skip
    log.info("%s: test accuracy %.2f %%", member.name, found[0]["value"])
    course = None if shelf.shipped else _course(member, out)
    return {
        "name": member.name,
        "training": course or artifacts.load_json(shelf.record_path(member))["training"],
        "measured": columns(found),
        "curves": {norm: [rounded(loss) for loss in losses] for norm, losses in curves.items()},
        "computed_from": member.wanted() | {"weights": artifacts.sha256(shelf.weights_path(member))},
    }


def _train_encoder(fit: Fit) -> Net:
    """The encoder ``fit``, from the working folder, or trained into it: that takes seconds."""
    out = fits.working_folder(fit.study) / "fits"
    fits.train(fit, out)
    return fits.load(fits.weights_path(out, fit), fit)[0]


def _course(member: Member, out: Path) -> dict[str, Any] | None:
    """How the training went: what is known of the weights after each phase, and a row an epoch. None if it was not in
    the folder ``out``."""
    folder = fits.run_folder(out, member.fit)
    if not (folder / "log.csv").exists():
        return None
    after = {
        name: fits.load(fits.weights_path(out, member.fit, name), member.fit, name)[1] for name in member.fit.phases
    }
    told = ("accuracy", "losses", "seconds", "threads", "device", "clamped")
    return {
        "phases": {name: {fact: facts[fact] for fact in told} for name, facts in after.items()},
        "history": columns(phases.read_log(folder / "log.csv")),
    }


# ---------------------------------------------------------------------------------------------------- as tables


def frame(collected: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Everything measured, a row a number: source, condition, kind, seed, metric, percent, norm, label, value."""
    tables = []
    for record in collected:
        source, condition, kind, seed = record["name"].split("/")
        names = {"source": source, "condition": condition, "kind": kind, "seed": int(seed)}
        tables.append(pd.DataFrame(record["measured"]).assign(**names))
    return pd.concat(tables, ignore_index=True)
