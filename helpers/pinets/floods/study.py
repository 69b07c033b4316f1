"""The floods study: train and evaluate what is missing, or read what is shipped (the RETRAIN and REEVALUATE gates).

    records = collect(study)
    table = frame(records)

A record is what is known of one fit: how its training went, and its `evaluate.report` on every set of tiles that the
study tests on. The weights are those of heads; the frozen encoders are never kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from helpers import artifacts, records, runtime
from helpers.data.flood_chips import DRAWN
from helpers.pinets.floods import encoders, evaluate, fits
from helpers.pinets.floods.fits import STUDY, Member, members, working_folder
from helpers.pinets.floods.presets import LABELS, FloodsStudy, published
from helpers.pinets.models import PiNet
from helpers.records import RecordShelf, rounded

BASELINE = "baseline"

log = logging.getLogger(__name__)


class Shelf(RecordShelf):
    study = STUDY
    entries = frozenset({"name", "training", "test", "computed_from"})

    def model(self, member: Member) -> PiNet:
        """The trained head on features. Raises `ArtifactError` if its weights are not here."""
        return fits.load(self.weights_path(member), member)


def choose_shelf(study: FloodsStudy) -> Shelf:
    """The working folder when training, or when ``OUT`` names one that holds this study; else what is shipped."""
    return records.choose_shelf(Shelf, study, working_folder(study))


def collect(study: FloodsStudy) -> list[dict[str, Any]]:
    """The records of all `members`. ``RETRAIN`` trains and evaluates what ``OUT`` does not hold yet; ``REEVALUATE``
    evaluates anew what there are weights of. Else all are read. Raises `ArtifactError` for a record that is missing,
    damaged or stale."""
    return records.collect(study, choose_shelf(study), members(study), run, measure, working_folder(study))


def run(member: Member) -> None:
    """Train a fit if it is missing, evaluate it and keep the record, in the working folder."""
    out = working_folder(member.study)
    shelf = Shelf(out)
    if not shelf.weights_path(member).exists():
        fits.train(member, out, progress=member.study.workers == 1)
    shelf.keep(measure(member, shelf))


def measure(member: Member, shelf: Shelf) -> dict[str, Any]:
    """The record of a fit, from its weights on ``shelf``."""
    study = member.study
    device = runtime.device(study.device)
    model, training = shelf.model(member).to(device), artifacts.load_tensors(shelf.weights_path(member))[1]
    found = {}
    with runtime.deterministic():
        for test in study.data.tests:
            data = fits.stored(study, member.rules, test)
            scores = evaluate.maps(model, data, device)
            found[test] = rounded_report(evaluate.report(scores, data.masks, member.classes))
    log.info("%s: water IoU %s", member.name, found[study.data.tests[0]]["iou_water"])
    return {
        "name": member.name,
        "training": {key: value for key, value in training.items() if key not in ("fit", "settings")},
        "test": found,
        "computed_from": member.wanted() | {"weights": artifacts.sha256(shelf.weights_path(member))},
    }


def rounded_report(report: dict[str, Any]) -> dict[str, Any]:
    """Six significant digits, areas to a tenth of a pixel."""
    areas = {name: [round(area, 1) for area in values] for name, values in report["areas"].items()}
    return {name: rounded(value) for name, value in report.items() if name != "areas"} | {"areas": areas}


# ------------------------------------------------------------------------------------------------- baseline


def baselines(study: FloodsStudy) -> dict[str, dict[str, Any]]:
    """The report of MNDWI above 0 on each test, by its name. In a working folder it is computed if it is not there, or
    with ``RETRAIN`` or ``REEVALUATE``; what is shipped is read. Raises `ArtifactError` where that is missing or of
    other tests."""
    shelf = choose_shelf(study)
    path = shelf.checked(shelf.results / f"{baseline_name(study)}.json")
    wanted = Member(study, study.rules[0], "pinet", 0, study.seed).wanted()["evaluation"]
    if not shelf.shipped and (study.retrain or study.reevaluate or not path.exists()):
        tests = {test: fits.test_tiles(study, test) for test in study.data.tests}
        found = {test: rounded_report(evaluate.baseline(tiles.batches(16))) for test, tiles in tests.items()}
        artifacts.save_json(path, {"evaluation": wanted, "test": found})
    told = artifacts.load_json(path)
    if told["evaluation"] != wanted:
        raise artifacts.ArtifactError(f"{path} is of other tests; RETRAIN=True makes it anew")
    return told["test"]


def baseline_name(study: FloodsStudy) -> str:
    """Where the baseline of a study lies among its records."""
    return f"{study.data.name.replace('/', '-')}/{BASELINE}"


# ------------------------------------------------------------------------------------------------ both sides


@dataclass(frozen=True)
class Measured:
    """A study and the records of its fits, as `collect` gives them."""

    study: FloodsStudy
    records: list[dict[str, Any]]

    @cached_property
    def table(self) -> pd.DataFrame:
        """The `frame` of the records."""
        return frame(self.records)

    @cached_property
    def baselines(self) -> dict[str, dict[str, Any]]:
        """The `baselines` of the study."""
        return baselines(self.study)

    def sides(self) -> tuple[Measured, Measured]:
        """(of drawn scenes, of real chips): this one, and what is shipped in the place of the other. Raises what
        `collect` raises."""
        drawn = self.study.data.name == DRAWN
        shipped = published("water" if drawn else "scenes")
        other = Measured(shipped, collect(shipped))
        return (self, other) if drawn else (other, self)


# --------------------------------------------------------------------------------------------------- tables


def frame(collected: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row a fit and test: data, encoder, rules, kind, label, masks [%], seed, test, and every measure."""
    rows = []
    for record in collected:
        data, encoder, rules, group, seed = record["name"].split("/")
        kind, masks = group.split("-")
        row = {"data": data, "encoder": encoders.LABELS[encoder], "rules": rules, "kind": kind, "label": LABELS[kind]}
        row |= {"masks": int(masks), "seed": int(seed), "epoch": record["training"]["epoch"]}
        for test, report in record["test"].items():
            rows.append(row | {"test": test} | {name: value for name, value in report.items() if name != "areas"})
    return pd.DataFrame(rows)
