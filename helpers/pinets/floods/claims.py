"""The claims about floods, each with its rule, entered into a ledger. The rules were fixed before our fits.

The published numbers are of Sen1Floods11 with Prithvi. Orders between PiNet and SegNet are also asked of other data and
another encoder, and say so; the numbers themselves are compared on the published data alone.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from helpers.data.flood_chips import NO_DATA
from helpers.ledger import Ledger
from helpers.pinets.floods import encoders, released
from helpers.pinets.floods.head import Head
from helpers.pinets.floods.maps import Maps
from helpers.pinets.floods.presets import LABELS, FloodsStudy
from helpers.pinets.floods.tables import count

MIN_FITS = 3  # of a kind, fewer decide nothing
WITHIN = 0.25  # of the published error of areas; one seed was published, whose spread is not known
ROUNDED = 0.5 / 255  # of a share of water, in a shipped map


class Means:
    """Means over the seeds of the fits under the corrected rules on one test; None where there are none."""

    def __init__(self, table: pd.DataFrame, test: str):
        self.fits = table[(table.rules == "corrected") & (table.test == test)]

    def of(self, kind: str, masks: int, key: str) -> float | None:
        values = self._values(kind, masks, key)
        return float(values.mean()) if len(values) else None

    def enough(self, *groups: tuple[str, int]) -> bool:
        return all(len(self._values(*group, "mae")) >= MIN_FITS for group in groups)

    def _values(self, kind: str, masks: int, key: str) -> pd.Series:
        return self.fits[(self.fits.kind == kind) & (self.fits.masks == masks)][key].dropna()


def check_parameters(ledger: Ledger, where: str) -> None:
    """The published network, built here without its weights."""
    facts = encoders.GEOMETRY["prithvi"]
    with torch.device("meta"):
        upernet, upsampler = Head(facts["width"], facts["patch"], classes=3)
        encoder = encoders.prithvi(np.zeros(6), np.ones(6))
    sizes = {
        "encoder, 4 blocks": count(encoder),
        "UperNet": count(upernet),
        "upsampler": count(upsampler),
    }
    ledger.check(
        "parameters",
        "the network has the published number of parameters",
        ours=", ".join(f"{name} {n:,}" for name, n in sizes.items()),
        reference=", ".join(f"{name} {n:,}" for name, n in released.PARAMETERS.items()),
        kind=released.KIND,
        rule="equal numbers",
        holds=sizes == released.PARAMETERS,
        where=where,
    )


def check_areas(ledger: Ledger, maps: Maps, records: list[dict], where: str) -> None:
    """A map adds up to the area in the record: no more than its rounding is left over."""
    by_name, worst = {record["name"]: record for record in records}, 0.0
    test = maps.study.data.tests[0]
    tiles = maps.tiles()
    for model, member in maps.models.items():
        told = by_name[member.name]["test"][test]["areas"]["predicted"]
        for chip in maps.chips:
            _, mask = maps.scene(chip)
            known = mask != NO_DATA
            area = sum(told[row] for row, (name, _) in enumerate(tiles.places) if name == chip)
            worst = max(worst, abs(maps.water(model, chip)[known].sum(dtype=float) - area) / max(known.sum(), 1))
    ledger.check(
        "areas",
        "the predicted area is the map added up, pixel by pixel",
        ours=worst,
        reference="by construction",
        kind="paper",
        rule="difference per pixel within the rounding of a map to 256 steps",
        holds=worst <= ROUNDED + 1e-4,
        where=where,
    )


def title(study: FloodsStudy) -> str:
    """The data and the encoder of a study, in words."""
    return f"{study.data.name}, {encoders.LABELS[study.encoder]}"


def check_orders(ledger: Ledger, table: pd.DataFrame, study: FloodsStudy, where: str) -> None:
    """What the published numbers say of the two models beside each other, on the data of ``study``."""
    means, name = Means(table, study.data.tests[0]), title(study)
    enough = means.enough(("pinet", 0), ("segnet", 100))
    groups = {"pinet": ("pinet", 0), "segnet": ("segnet", 100)}

    def ordered(key: str, claim: str, measure: str, small: str, large: str, percent: bool = False) -> None:
        values = [(LABELS[kind], means.of(*groups[kind], measure)) for kind in (small, large)]
        published = {"mae_percent": "released_mae", "iou_water": "released_iou_water"}.get(measure, measure)
        reference = " < ".join(f"{LABELS[kind]} {released.TABLE[kind][published]:g}" for kind in (small, large))
        ledger.ordered(f"{key}-{name}", f"{name}: {claim}", values, reference=reference, kind=released.KIND,
                       where=where, enough=enough)  # fmt: skip

    ordered("area-order", "PiNet, taught by areas alone, is the better at areas", "mae_percent", "pinet", "segnet")
    ordered("iou-order", "SegNet, taught by masks, is the better at where the water is", "iou_water", "pinet", "segnet")
    ordered("tdr-water", "SegNet finds more of the water", "tdr_water", "pinet", "segnet")
    ordered("tdr-dry", "PiNet leaves more of the dry land alone", "tdr_dry", "segnet", "pinet")


def check_budget(ledger: Ledger, table: pd.DataFrame, study: FloodsStudy, where: str) -> None:
    """Ours: what areas add to a few masks, the smallest budget of the study; nothing where it has none."""
    means, name = Means(table, study.data.tests[0]), title(study)
    for share in sorted(study.budgets)[:1]:
        values = [(f"{LABELS[kind]}, {share} %", means.of(kind, share, "iou_water")) for kind in ("segnet", "pinet")]
        ledger.ordered(
            f"budget-{name}",
            f"{name}: with {share} % of the masks, areas of all tiles make better maps (IoU of water)",
            values,
            where=where,
            enough=means.enough(("pinet", share), ("segnet", share)),
        )


def check_baseline(ledger: Ledger, table: pd.DataFrame, study: FloodsStudy, index: float, where: str) -> None:
    """Ours: is a map learned from areas better than a rule that needs no learning, whose IoU of water is ``index``?"""
    means, name = Means(table, study.data.tests[0]), title(study)
    ledger.ordered(
        f"baseline-{name}",
        f"{name}: the map learned from areas alone beats the water index (IoU of water)",
        [("MNDWI > 0", index), ("PiNet", means.of("pinet", 0, "iou_water"))],
        where=where,
        enough=means.enough(("pinet", 0)),
    )


def check_published(ledger: Ledger, table: pd.DataFrame, where: str) -> None:
    """The published numbers, on the published data with the published encoder, under the released rules: not measured
    unless those were at hand."""
    own = table[(table.data == "sen1floods11") & (table.encoder == encoders.LABELS["prithvi"])]
    own = own[(own.rules == "released") & (own.test == "test")]
    for kind, masks in (("segnet", 100), ("pinet", 0)):
        values = own[(own.kind == kind) & (own.masks == masks)].released_mae
        reference = released.TABLE[kind]["released_mae"]
        ledger.within(
            f"published-{kind}",
            f"{LABELS[kind]} on {released.DATA} with {released.ENCODER}: error of the water's area",
            ours=float(values.mean()) if len(values) else None,
            spread=float(values.std()) if len(values) > 1 else None,
            reference=reference,
            kind=released.KIND,
            tolerance=round(WITHIN * reference),
            unit="px",
            where=where,
        )
