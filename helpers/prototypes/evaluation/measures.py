"""All that the study measures of one network, as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
from torch import Tensor

from helpers.data.toybirds import ToyBirdsSettings
from helpers.prototypes.evaluation import birds, consistency, ordering
from helpers.prototypes.evaluation.part_effects import test_birds
from helpers.prototypes.evaluation.part_maps import mappings
from helpers.prototypes.evaluation.presets import EvaluationStudy
from helpers.prototypes.evaluation.protocols import Protocol, protocol
from helpers.prototypes.evaluation.prp import Propagator
from helpers.prototypes.mapping import METHODS
from helpers.prototypes.models import ProtoNet
from helpers.prototypes.receptive_field import ReceptiveField, receptive_field
from helpers.prototypes.sets import Sets

VERSION = 1  # raise it when what is computed changes
MAIN = "pixpnet-exact"  # the protocol of the other readouts, and of the report card
RULES = "box", "centre"  # the mapping and the rule by which the report card says where a prototype lies


@dataclass
class Found:
    """``rows``: aspect, variant, metric, value, low, high; ``curves``: of the relevance ordering test; ``card``: a
    row for each prototype."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    card: list[dict[str, Any]] = field(default_factory=list)

    def add(self, aspect: str, variant: str, metric: str, value: float, low: float | None, high: float | None) -> None:
        names = {"aspect": aspect, "variant": variant, "metric": metric}
        self.rows.append(names | {"value": float(value), "low": low, "high": high})


def measure(net: ProtoNet, data: Sets, settings: EvaluationStudy, seed: int) -> Found:
    """Of ``net``, on the test images of ``data``: consistency and stability where parts are annotated, the relevance
    ordering test, and on ToyBirds the truth."""
    found, card = Found(), pd.DataFrame({"prototype": range(len(net.prototypes))})
    seen = receptive_field(net.features, data.train.input_size)
    if data.test.stored.parts is not None:
        card = card.join(_consistency(found, net, data, seen, settings, seed))
    _ordering(found, net, data, seen, settings, seed)
    if settings.dataset.name.lower() == "toybirds":
        card = card.merge(_truth(found, net, data, seen, settings, seed), on="prototype")
    found.card = card.to_dict("records")
    return found


def protocols(settings: EvaluationStudy) -> dict[str, Protocol]:
    """Those of the settings, by name, and the main one with other readouts, as ``pixpnet-exact, upsample``."""
    asked = settings.evaluation
    return {name: protocol(name) for name in asked.protocols} | {
        f"{MAIN}, {mode}": protocol(MAIN, readout=mode) for mode in asked.readouts
    }


def methods(net: ProtoNet, seen: ReceptiveField, names: Sequence[str], seed: int) -> dict[str, ordering.Maps]:
    """Mappings by name, each from images, similarity maps and prototypes to maps of pixels."""
    made = ordering.pixel_maps(seen, [name for name in names if name in METHODS], seed)
    if "prp" in names:
        made["prp"] = _propagated(net)
    return {name: made[name] for name in names}


def _propagated(net: ProtoNet) -> ordering.Maps:
    made = Propagator(net)

    def maps(x: Tensor, similarity: Tensor, prototypes: Tensor) -> Tensor:
        return made.relevance(x, prototypes)

    return maps


def _consistency(
    found: Found, net: ProtoNet, data: Sets, seen: ReceptiveField, settings: EvaluationStudy, seed: int
) -> pd.DataFrame:
    results = consistency.measure(
        net, data.test, seen, protocols(settings), seed=seed, resamples=settings.evaluation.resamples
    )
    for name, result in results.items():
        for metric in consistency.METRICS:
            value, ends = getattr(result, metric), result.intervals[metric]
            found.add("consistency", name, metric, 100 * value, *(100 * end for end in ends))
    main = next(iter(results.values()))
    shares = {"consistency": main.score, "stability": main.soft_stable}
    return pd.DataFrame({"touched": main.best_names} | {name: 100 * share.numpy() for name, share in shares.items()})


def _ordering(
    found: Found, net: ProtoNet, data: Sets, seen: ReceptiveField, settings: EvaluationStudy, seed: int
) -> None:
    asked = settings.evaluation
    result = ordering.compare(
        net, data.test, seen, methods(net, seen, settings.evaluation.mappings, seed),
        n_images=min(asked.images, len(data.test)), prototypes=ordering.own_prototypes(net)[:, : asked.per_class],
        grid=asked.points, proportion=asked.proportion, start=asked.start, seed=seed,
    )  # fmt: skip
    result = replace(result, resamples=asked.resamples)
    for row in result.as_frame().itertuples():
        variant = f"{row.method} - {row.minus}" if row.minus else row.method
        scale = 100 if row.measure == "area" else 1
        found.add("ordering", variant, row.measure, scale * row.value, scale * row.low, scale * row.high)
    found.add("ordering", "all", "without_rise", result.without_rise, None, None)
    found.curves = result.curves_frame().to_dict("records")


def _truth(
    found: Found, net: ProtoNet, data: Sets, seen: ReceptiveField, settings: EvaluationStudy, seed: int
) -> pd.DataFrame:
    asked, drawn = settings.evaluation, ToyBirdsSettings(size=data.train.input_size, classes=net.n_classes)
    maps = mappings(seen, seed) | methods(net, seen, settings.evaluation.mappings, seed)
    truth = birds.examine(net, test_birds(drawn, asked.birds), methods=maps, seed=seed)
    for metric, value, low, high in birds.intervals(truth, asked.resamples, seed=seed).itertuples():
        variant, name = _split(metric, maps)
        found.add("truth", variant, name, value, low, high)
    return birds.report_card(truth, data.classes, *RULES)


def _split(metric: str, maps: Mapping[str, Any]) -> tuple[str, str]:
    """``rf_purity_centre`` as the mapping and what is said of it; "" for what is said of no mapping."""
    first, _, rest = metric.partition("_")
    return (first, rest) if first in maps else ("", metric)
