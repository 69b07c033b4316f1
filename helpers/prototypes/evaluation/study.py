"""The evaluation of prototypes: are they what they claim? Measured for every network with prototypes of a study, or
read from what is shipped (RETRAIN, REEVALUATE).

Networks are those of the prototypes study (`helpers.prototypes.study`), from the same folders; there is a record of
each beside theirs:

    results/evaluation/<data>/<cut>/<kind>/<seed>.json

Everything measured is a row: *aspect* (consistency, ordering, truth), *variant* (a protocol, a mapping, or one mapping
minus another), metric, value, and the ends of its interval where it has one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from helpers import artifacts, config, records, runtime
from helpers.prototypes import fits
from helpers.prototypes import study as networks
from helpers.prototypes.evaluation import measures
from helpers.prototypes.evaluation.presets import EvaluationStudy
from helpers.prototypes.fits import working_folder
from helpers.prototypes.models import ProtoNet
from helpers.prototypes.sets import sets
from helpers.records import RecordShelf, columns

FOLDER = "evaluation"
WITHOUT = "classifier"  # the kind of network that has no prototypes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One network of the study: ``of`` the prototypes study."""

    study: EvaluationStudy
    of: networks.Member

    @property
    def name(self) -> str:
        """Its path in every folder."""
        return f"{FOLDER}/{self.of.name}"

    def wanted(self) -> dict[str, Any]:
        """What a record of this study is computed from, but for the weights."""
        asked = [measures.VERSION, self.study.evaluation.model_dump(mode="json"), self.study.dataset.n_test]
        return {"settings": self.of.fit.digest(), "evaluation": config.digest(asked)}


class Shelf(RecordShelf):
    study = fits.STUDY
    entries = frozenset({"name", "measured", "curves", "card", "computed_from"})

    def weights_path(self, member: Member) -> Path:
        """Those of the prototypes study."""
        return super().weights_path(member.of)

    def net(self, member: Member) -> ProtoNet:
        """The network, in eval mode. Raises `ArtifactError` if its weights are not here."""
        return fits.load(self.weights_path(member), member.of.fit)[0]


def choose_shelf(settings: EvaluationStudy) -> Shelf:
    """The working folder when training, or when ``OUT`` names one that holds this study; else what is shipped."""
    return records.choose_shelf(Shelf, settings, working_folder(settings))


def members(settings: EvaluationStudy) -> list[Member]:
    """All networks with prototypes, seed by seed."""
    return [Member(settings, member) for member in networks.members(settings) if member.kind != WITHOUT]


def collect(settings: EvaluationStudy) -> list[dict[str, Any]]:
    """The records of all `members`. ``RETRAIN`` trains and measures what ``OUT`` does not hold yet, networks included;
    ``REEVALUATE`` measures anew what there are weights of, and keeps the records of the others. Else all are read.
    Raises `ArtifactError` for a record that is missing, damaged or stale."""
    return records.collect(settings, choose_shelf(settings), members(settings), run, measure, working_folder(settings))


def run(member: Member) -> None:
    """Train the network if it is missing, measure it and keep the record, in the working folder."""
    shelf = Shelf(working_folder(member.study))
    if not shelf.weights_path(member).exists():
        networks.run(member.of)
    shelf.keep(measure(member, shelf))


def measure(member: Member, shelf: Shelf) -> dict[str, Any]:
    """The record of a network, from its weights on ``shelf``."""
    settings, net = member.of.fit.study, shelf.net(member).to(runtime.device(member.study.device))
    found = measures.measure(net, sets(settings.dataset, member.of.seed), member.study, member.of.seed)
    log.info("%s: measured", member.name)
    return {
        "name": member.name,
        "measured": columns(found.rows),
        "curves": columns(found.curves),
        "card": columns(found.card),
        "computed_from": member.wanted() | {"weights": artifacts.sha256(shelf.weights_path(member))},
    }


# ---------------------------------------------------------------------------------------------------- as tables


def _named(record: dict[str, Any]) -> dict[str, Any]:
    data, cut, kind, seed = record["name"].split("/")[1:]
    return {"data": data, "cut": cut, "kind": kind, "group": f"{cut}/{kind}", "seed": int(seed)}


def _joined(collected: Iterable[dict[str, Any]], table: str) -> pd.DataFrame:
    return pd.concat([pd.DataFrame(record[table]).assign(**_named(record)) for record in collected], ignore_index=True)


def frame(collected: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Everything measured, a row a number: aspect, variant, metric, value, low, high; data, cut, kind, group (cut/kind)
    and seed."""
    return _joined(collected, "measured")


def curves(collected: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The curves of the relevance ordering test, a row a point: method, percent (of the pixels), similarity, low and
    high, and which network."""
    return _joined(collected, "curves")


def cards(collected: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """What is known of each prototype, a row each."""
    return _joined(collected, "card")
