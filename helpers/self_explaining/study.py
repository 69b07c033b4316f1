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
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from helpers import artifacts, config, workers
from helpers.config import ConfigError, suggest
from helpers.self_explaining import evaluate, fits, phases
from helpers.self_explaining.fits import Fit
from helpers.self_explaining.models import Net
from helpers.self_explaining.presets import CONDITIONS, KINDS, SelfExplainingStudy
from helpers.self_explaining.seeds import train_together
from helpers.self_explaining.sets import parts, sets
from helpers.self_explaining.weights import STUDY

ENTRIES = {"name", "training", "measured", "curves", "computed_from"}  # of a record

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
        on it are the question, which depends on no norm: it is measured of true labels under one norm."""
        asked = evaluate.settings(self.study)
        if self.group.startswith("clean/"):
            return asked
        return asked | {"norms": asked["norms"][-1:], "labels": asked["labels"][:1]}

    def wanted(self) -> dict[str, Any]:
        """What a record of this study is computed from, but for the weights."""
        asked = {name: list(value) if isinstance(value, tuple) else value for name, value in self.asked.items()}
        return {
            "settings": self.fit.digest(),
            "encoder": self.encoder.digest(),
            "evaluation": config.digest([evaluate.VERSION, asked]),
        }


class Shelf:
    """Where weights and records lie: the shipped folders (checksums enforced), or a working folder."""

    def __init__(self, out: Path | None = None):
        self.shipped = out is None
        self.weights = config.ROOT / "weights" / STUDY if out is None else out / "weights"
        self.results = config.ROOT / "results" / STUDY if out is None else out / "results"

    def weights_path(self, member: Member) -> Path:
        return self._checked(self.weights / f"{member.name}.safetensors")

    def record_path(self, member: Member) -> Path:
        return self._checked(self.results / f"{member.name}.json")

    def record(self, member: Member) -> dict[str, Any] | None:
        """What is known of ``member``, or None. Raises `ArtifactError` for what is damaged, of other settings, or of
        other weights than those beside it."""
        path = self.record_path(member)
        if not path.exists():
            return None
        record = artifacts.load_json(path)
        if not isinstance(record, dict) or set(record) != ENTRIES or record["name"] != member.name:
            raise artifacts.ArtifactError(
                f"{path} is not the record of {member.name}: it was edited or swapped; restore it, or delete it and "
                "run again"
            )
        made, wanted = record["computed_from"], member.wanted()
        if made["settings"] != wanted["settings"]:
            raise artifacts.ArtifactError(
                f"the results of {member.name} are of other training settings; RETRAIN=True with another OUT trains "
                "with these, or take back the changes"
            )
        kept = self.weights_path(member)
        same = not kept.exists() or artifacts.sha256(kept) == made["weights"]
        if not same or {name: made[name] for name in wanted} != wanted:
            raise artifacts.ArtifactError(
                f"the results of {member.name} were measured in another way or of other weights; REEVALUATE=True "
                "measures anew, or take back the changes"
            )
        return record

    def net(self, member: Member) -> Net:
        """The network, in eval mode. Raises `ArtifactError` if its weights are not here."""
        return fits.load(self.weights_path(member), member.fit)[0]

    def _checked(self, path: Path) -> Path:
        return artifacts.check_file(path) if self.shipped and path.exists() else path


def choose_shelf(study: SelfExplainingStudy) -> Shelf:
    """The working folder when training, or when ``OUT`` names one that holds this study; else what is shipped."""
    if study.retrain or (study.out and (Path(study.out) / "results").is_dir()):
        return Shelf(fits.working_folder(study))
    return Shelf()


def members(study: SelfExplainingStudy) -> list[Member]:
    """All that a study compares, seed by seed, so that it can be cut off between two seeds."""
    seeds = range(study.first_seed, study.first_seed + study.seeds)
    return [Member(study, group, seed) for seed in seeds for group in study.groups]


def collect(study: SelfExplainingStudy) -> list[dict[str, Any]]:
    """The records of all `members`. ``RETRAIN`` trains and measures what ``OUT`` does not hold yet; ``REEVALUATE``
    measures anew what there are weights of, and keeps the records of the others. Else all are read. Raises
    `ArtifactError` for a record that is missing, damaged or stale, and `ConfigError` for WORKERS beside TOGETHER."""
    shelf, wanted = choose_shelf(study), members(study)
    if study.reevaluate:
        shelf = _reevaluate(study, shelf, wanted)
    if study.retrain:
        if study.together > 1 and study.workers > 1:
            raise ConfigError(
                f"TOGETHER = {study.together} is for one process, WORKERS = {study.workers} for several: set one to 1"
            )
        artifacts.ensure_writable(fits.working_folder(study))
        missing = [member for member in wanted if shelf.record(member) is None]
        if study.together > 1:
            _train_stacks(study, missing)
        with workers.executor(study.workers) as executor:
            encoders = dict.fromkeys(member.encoder for member in missing)  # several members share one
            for done in [executor.submit(_train_encoder, encoder) for encoder in encoders]:
                done.result()
            for member, done in [(member, executor.submit(run, member)) for member in missing]:
                done.result()
                log.info("%s is done", member.name)
    records = {member.name: shelf.record(member) for member in wanted}
    if missing := [name for name, record in records.items() if record is None]:
        raise artifacts.ArtifactError(
            f"no results of {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''} are in {shelf.results}; "
            "RETRAIN=True makes them"
        )
    return list(records.values())


def run(member: Member) -> None:
    """Train, measure and keep what is missing of one fit, in the working folder."""
    out = fits.working_folder(member.study)
    shelf, progress = Shelf(out), member.study.verbose and member.study.workers == 1
    if not shelf.weights_path(member).exists():
        facts = fits.train(member.fit, out / "fits", progress=progress)
        state = fits.load(fits.weights_path(out / "fits", member.fit), member.fit)[0].state_dict()
        facts = facts | {"config": member.fit.settings.provenance()}  # it may be shipped: no folder of this machine
        artifacts.save_tensors(shelf.weights_path(member), artifacts.half_precision(state), facts)
    _keep(out, measure(member, shelf))


def _train_stacks(study: SelfExplainingStudy, missing: Sequence[Member]) -> None:
    """Train what `run` will read of ``missing``: encoders, then fits, so many seeds of each together."""
    alike: dict[Fit, list[Fit]] = {}
    for fit in dict.fromkeys([member.encoder for member in missing] + [member.fit for member in missing]):
        alike.setdefault(replace(fit, seed=0), []).append(fit)
    for seeds in alike.values():
        for first in range(0, len(seeds), study.together):
            stack = seeds[first : first + study.together]
            train_together(stack, fits.working_folder(study) / "fits", progress=study.verbose)


def measure(member: Member, shelf: Shelf) -> dict[str, Any]:
    """The record of a fit, from its weights on ``shelf``; its encoder is trained where it is not in the working folder,
    and what is known of its training is taken from there, or else from the record on the shelf."""
    study, out = member.study, fits.working_folder(member.study) / "fits"
    net, encoder = shelf.net(member), _train_encoder(member.encoder)
    data = sets(member.fit.settings, member.seed)
    where = fits.device(study)
    net, encoder, asked = net.to(where), encoder.to(where), member.asked
    records = evaluate.evaluate(net, encoder, data, study.explanation, seed=member.seed, **asked)
    curves = {
        norm: evaluate.critic_curve(
            net, data.to(where), study.explanation.override({"norm": norm}), critic=asked["critic"],
            learning_rate=study.learning_rate_critic, critics=study.critics, seed=member.seed,
        ).tolist()
        for norm in asked["norms"]
    }  # fmt: skip
    log.info("%s: test accuracy %.2f %%", member.name, records[0]["value"])
    return {
        "name": member.name,
        "training": _course(member, out) or artifacts.load_json(shelf.record_path(member))["training"],
        "measured": _columns(records),
        "curves": {norm: [_rounded(loss) for loss in losses] for norm, losses in curves.items()},
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
        "history": _columns(phases.read_log(folder / "log.csv")),
    }


def _reevaluate(study: SelfExplainingStudy, shelf: Shelf, wanted: Sequence[Member]) -> Shelf:
    """A shelf with the records of all weights of ``shelf`` made anew: the same one, or where that is the shipped one,
    ``reevaluated`` in the working folder."""
    out = fits.working_folder(study)
    artifacts.ensure_writable(out)
    out = out / "reevaluated" if shelf.shipped else out
    kept = 0
    for member in wanted:
        if shelf.weights_path(member).exists():
            _keep(out, measure(member, shelf))
        elif shelf.record_path(member).exists():
            kept += 1
            _keep(out, _as_it_is(member, shelf))
    if kept:
        log.warning("%d records were kept as they are: their weights are not there", kept)
    return Shelf(out)


def _as_it_is(member: Member, shelf: Shelf) -> dict[str, Any]:
    """The record of a fit whose weights are not on ``shelf``. Raises `ArtifactError` if it would have to be another."""
    try:
        return shelf.record(member)
    except artifacts.ArtifactError as error:
        raise artifacts.ArtifactError(
            f"{error}. But the weights of {member.name} are not in {shelf.weights}: RETRAIN=True trains them, or take "
            "GROUPS and SEEDS of which there are weights"
        ) from None


def _keep(out: Path, record: dict[str, Any]) -> None:
    artifacts.save_json(out / "results" / f"{record['name']}.json", record)


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [_rounded(row[name]) for row in rows] for name in rows[0]}


def _rounded(value: Any) -> Any:
    """Six significant digits, as the tables of the other studies have them; null where there is no number."""
    return None if value != value else float(f"{value:.6g}") if isinstance(value, float) else value


# ---------------------------------------------------------------------------------------------------- as tables


def frame(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Everything measured, a row a number: source, condition, kind, seed, metric, percent, norm, label, value."""
    tables = []
    for record in records:
        source, condition, kind, seed = record["name"].split("/")
        names = {"source": source, "condition": condition, "kind": kind, "seed": int(seed)}
        tables.append(pd.DataFrame(record["measured"]).assign(**names))
    return pd.concat(tables, ignore_index=True)
