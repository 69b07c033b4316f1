"""The claims about floods, each with its rule, entered into a ledger.

The published numbers are of Sen1Floods11 with Prithvi. Orders between PiNet and SegNet are also asked of other data and
another encoder, and say so; the numbers themselves are compared on the published data alone. An order is asked of pairs
of fits with the same seed, which begin with the same weights.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from helpers.data.flood_chips import NO_DATA
from helpers.ledger import Entry, Kind, Ledger, Value, number
from helpers.pinets.floods import encoders, released, tables
from helpers.pinets.floods.head import Head
from helpers.pinets.floods.maps import Maps
from helpers.pinets.floods.presets import LABELS, FloodsStudy
from helpers.pinets.floods.study import Measured

MIN_SEEDS = 3  # that two groups share, fewer decide nothing
WITHIN = 0.25  # of the published error of areas; one seed was published, whose spread is not known
ROUNDED = 0.5 / 255  # of a share of water, in a shipped map


def values(side: Measured, kind: str, masks: int, key: str) -> pd.Series:
    """A measure by seed, of the fits of one group under the first of the study's rules, on the first of its tests."""
    own = tables.first(side)
    own = own[(own.kind == kind) & (own.masks == masks)]
    return own.set_index("seed")[key].dropna().astype(float).rename(LABELS[kind])


def ordered(
    ledger: Ledger,
    key: str,
    claim: str,
    small: pd.Series,
    large: pd.Series,
    *,
    where: str,
    reference: Value = None,
    kind: Kind | None = None,
) -> Entry:
    """Enter that ``small`` lies below ``large``, two named series of `values`, in every seed that they share. Reversed
    in every seed it differs; where seeds disagree, or are fewer than `MIN_SEEDS`, it is not verified."""
    gaps = (large - small).dropna()
    below, above = (gaps > 0).all(), (gaps < 0).all()
    told = ", ".join(_told(series[gaps.index]) for series in (small, large))
    return ledger.check(
        key,
        claim,
        ours=f"{told}; in {(gaps > 0).sum()} of {len(gaps)} seeds" if len(gaps) else None,
        reference=reference,
        kind=kind,
        rule=f"{small.name} < {large.name} in every seed, of {MIN_SEEDS} or more; reversed in every seed: differs",
        holds=bool(below) if len(gaps) >= MIN_SEEDS and (below or above) else None,
        where=where,
    )


def _told(series: pd.Series) -> str:
    """``PiNet 5.62 ± 0.41``: name, mean and sd over the seeds; the value alone of what does not depend on a seed."""
    spread = f" ± {number(float(series.std()))}" if series.nunique() > 1 else ""
    return f"{series.name} {number(float(series.mean()))}{spread}"


def check_parameters(ledger: Ledger, where: str) -> None:
    """The published network, built here without its weights."""
    facts = encoders.GEOMETRY["prithvi"]
    with torch.device("meta"):
        upernet, upsampler = Head(facts["width"], facts["patch"], classes=3)
        encoder = encoders.prithvi(np.zeros(6), np.ones(6))
    sizes = {
        "encoder, 4 blocks": tables.count(encoder),
        "UperNet": tables.count(upernet),
        "upsampler": tables.count(upsampler),
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
    """The data and the encoder of a study, in words, and its rules where they are not the corrected ones."""
    rules = "" if study.rules[0] == "corrected" else f", {study.rules[0]} rules"
    return f"{study.data.name}, {encoders.LABELS[study.encoder]}{rules}"


ORDERS = (
    ("area-order", "PiNet, taught by areas alone, is the better at areas (error; published: px, ours: % of a tile)",
     "mae_percent", ("pinet", "segnet")),
    ("iou-order", "SegNet, taught by masks, is the better at where the water is (IoU; published: mean of tiles)",
     "iou_water", ("pinet", "segnet")),
    ("tdr-water", "SegNet finds more of the water", "tdr_water", ("pinet", "segnet")),
    ("tdr-dry", "PiNet leaves more of the dry land alone", "tdr_dry", ("segnet", "pinet")),
)  # fmt: skip
"""Key, claim, measure, and the kind with less of it before the one with more."""


def check_orders(ledger: Ledger, side: Measured, where: str) -> None:
    """What the published numbers say of the two models beside each other, on the data of ``side``."""
    masks, name = {"pinet": 0, "segnet": 100}, title(side.study)
    for key, claim, measure, kinds in ORDERS:
        published = {"mae_percent": "released_mae", "iou_water": "released_iou_water"}.get(measure, measure)
        ordered(
            ledger,
            f"{key}-{name}",
            f"{name}: {claim}",
            *(values(side, kind, masks[kind], measure) for kind in kinds),
            reference=" < ".join(f"{LABELS[kind]} {released.TABLE[kind][published]:g}" for kind in kinds),
            kind=released.KIND,
            where=where,
        )


def check_budget(ledger: Ledger, side: Measured, where: str) -> None:
    """Ours: what areas add to a few masks, the smallest budget of the study; nothing where it has none."""
    name = title(side.study)
    for share in sorted(side.study.budgets)[:1]:
        groups = (values(side, kind, share, "iou_water") for kind in ("segnet", "pinet"))
        ordered(
            ledger,
            f"budget-{name}",
            f"{name}: with {share} % of the masks, areas of all tiles make better maps (IoU of water)",
            *(group.rename(f"{group.name}, {share} %") for group in groups),
            where=where,
        )


def check_baseline(ledger: Ledger, side: Measured, where: str) -> None:
    """Ours: is a map learned from areas better, in every fit, than a rule that needs no learning?"""
    pinet, name = values(side, "pinet", 0, "iou_water"), title(side.study)
    index = side.baselines[side.study.data.tests[0]]["iou_water"]
    ordered(
        ledger,
        f"baseline-{name}",
        f"{name}: the map learned from areas alone beats the water index (IoU of water)",
        pd.Series(index, pinet.index, name=tables.INDEX, dtype=float),
        pinet,
        where=where,
    )


def check_published(ledger: Ledger, side: Measured, where: str) -> None:
    """The published numbers, on the published data with the published encoder, under the released rules: not measured
    unless those were at hand."""
    table = side.table
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
