"""The tables of the floods notebook, as data frames. Every row says which data and which encoder it is of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from helpers.config import data_config
from helpers.data.flood_chips import DRAWN, SETS
from helpers.pinets.floods import encoders, released
from helpers.pinets.floods.head import Head
from helpers.pinets.floods.presets import LABELS, FloodsStudy, classes
from helpers.pinets.floods.study import Measured

MEASURES = {
    "mae_percent": "area error, % of a tile",
    "iou_water": "IoU water",
    "iou_dry": "IoU dry",
    "tdr_water": "TDR water",
    "tdr_dry": "TDR dry",
}
RELEASED = {
    "released_mae": "area error, px",
    "released_iou_water": "IoU water, mean of tiles",
    "released_iou_dry": "IoU dry, mean of tiles",
    "tdr_water": "TDR water",
    "tdr_dry": "TDR dry",
}
DIGITS = {"released_mae": 0}  # after the point; three of the others
CHANGE = "relative change, %"
INDEX = "MNDWI > 0"  # the rule that learns nothing


def data_sets() -> pd.DataFrame:
    """The data sets that there are, with their chips by split and where they come from."""
    rows = {}
    for name in SETS:
        whole, _, subset = name.partition("/")
        facts = data_config(whole)
        of = facts["subsets"][subset] if subset else facts
        splits = [f"{split} {value['chips']}" if "chips" in value else split for split, value in of["splits"].items()]
        rows[name] = {
            "what": of["title"],
            "side, px": facts["side"],
            "chips": ", ".join(splits),
            "how": "drawn" if name == DRAWN else "at hand only" if "bucket" not in of else "downloaded",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def parameters(study: FloodsStudy) -> pd.DataFrame:
    """Parameters of the published network and of the one here."""
    rows = {}
    for name, encoder, channels in (("published", "prithvi", 32), ("here", study.encoder, study.channels)):
        facts = encoders.GEOMETRY[encoder]
        n_classes = len(classes("released" if name == "published" else study.rules[0]))
        with torch.device("meta"):
            upernet, upsampler = Head(facts["width"], facts["patch"], n_classes, channels)
        rows[name] = {
            "encoder": encoders.LABELS[encoder],
            "UperNet": count(upernet),
            "upsampler": count(upsampler),
            "learned": count(upernet) + count(upsampler),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def measures(*sides: Measured) -> pd.DataFrame:
    """PiNet from areas alone and SegNet from all masks, under the first of the rules of each side and the corrected
    measures, mean ± sd over the seeds, on every test; beside them the index that learns nothing."""
    rows = {}
    for side in sides:
        rows |= _measures(side)
    return _indexed(rows, "data", "test", "encoder", "model")


def _measures(side: Measured) -> dict[tuple, dict]:
    study, table = side.study, side.table
    own = table[_extremes(table) & (table.rules == study.rules[0])]
    rows = {}
    for test in study.data.tests:
        for kind, label in LABELS.items():
            if len(fits := own[(own.test == test) & (own.kind == kind)]):
                row = {name: _spread(fits[key]) for key, name in MEASURES.items()}
                rows[study.data.name, test, encoders.LABELS[study.encoder], label] = {"fits": len(fits)} | row
        report = side.baselines[test]
        row = {name: _spread(pd.Series([report[key]], dtype=float)) for key, name in MEASURES.items()}
        rows[study.data.name, test, "none", INDEX] = {"fits": ""} | row
    return rows


def rules(*sides: Measured) -> pd.DataFrame:
    """The published measures under all rules of training on the first test of each side, with the published numbers
    last; beside SegNet and PiNet what changes from the one to the other, in percent of the means."""
    rows = {}
    for side in sides:
        own = side.table[_extremes(side.table) & (side.table.test == side.study.data.tests[0])]
        for (data, encoder, rule), some in own.groupby(["data", "encoder", "rules"], sort=False):
            groups = {kind: fits for kind in reversed(LABELS) if len(fits := some[some.kind == kind])}
            for kind, fits in groups.items():
                values = {name: _spread(fits[key], DIGITS.get(key, 3)) for key, name in RELEASED.items()}
                rows[data, encoder, rule, LABELS[kind]] = {"fits": len(fits)} | values
            means = {kind: fits[list(RELEASED)].astype(float).mean() for kind, fits in groups.items()}
            if len(means) == 2:
                rows[data, encoder, rule, CHANGE] = {"fits": ""} | _change(means)
    published = (released.DATA, released.ENCODER, "as published")
    for kind, values in released.TABLE.items():
        row = {name: f"{values[key]:.{DIGITS.get(key, 3)}f}" for key, name in RELEASED.items()}
        rows[*published, LABELS[kind]] = {"fits": 1} | row
    rows[*published, CHANGE] = {"fits": ""} | _change(released.TABLE)
    return _indexed(rows, "data", "encoder", "rules", "model")


def _change(means: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """From SegNet to PiNet in percent, of the measures by their titles; empty where there is nothing to divide by."""
    shares = {name: means["pinet"][key] / (means["segnet"][key] or np.nan) for key, name in RELEASED.items()}
    return {name: "" if share != share else f"{100 * (share - 1):+.1f}" for name, share in shares.items()}


def budgets(side: Measured) -> pd.DataFrame:
    """Area error and IoU of water by the percentage of masks, mean ± sd over the seeds, of the `first`."""
    rows = {}
    for masks, some in first(side).groupby("masks"):
        rows[masks] = {
            f"{LABELS[kind]}: {name}": _spread(fits[key])
            for kind, fits in some.groupby("kind")
            for key, name in (("mae_percent", "area error, %"), ("iou_water", "IoU water"))
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("% of masks").fillna("")


def first(side: Measured) -> pd.DataFrame:
    """The rows of the fits under the first of the study's rules, on the first of its tests."""
    table, study = side.table, side.study
    return table[(table.rules == study.rules[0]) & (table.test == study.data.tests[0])]


def _extremes(table: pd.DataFrame) -> pd.Series:
    return table.masks == table.kind.map({"pinet": 0, "segnet": 100})


def _spread(values: pd.Series, digits: int = 3) -> str:
    """``mean ± sd``; of one fit its value."""
    if values.isna().all():
        return ""
    spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _indexed(rows: dict[tuple, dict], *names: str) -> pd.DataFrame:
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(rows, names=names)
    return table
