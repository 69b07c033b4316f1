"""The tables of the floods notebook, as data frames. Every row says which data and which encoder it is of."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from helpers.config import data_config
from helpers.data.flood_chips import SETS
from helpers.pinets.floods import encoders, released
from helpers.pinets.floods.head import Head
from helpers.pinets.floods.presets import LABELS, FloodsStudy, classes

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
            "how": "drawn" if name == "water_scenes" else "at hand only" if "bucket" not in of else "downloaded",
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


def measures(table: pd.DataFrame, baselines: dict[str, dict] | None = None) -> pd.DataFrame:
    """PiNet from areas alone and SegNet from all masks, under the corrected measures, mean ± sd over the seeds, on
    every test; with ``baselines``, `study.baselines`, the rule that learns nothing beside them."""
    own = table[_extremes(table) & (table.rules == "corrected")]
    rows = {}
    for (data, encoder, test, kind), fits in own.groupby(["data", "encoder", "test", "kind"], sort=False):
        row = {name: _spread(fits[key]) for key, name in MEASURES.items()}
        rows[data, encoder, test, LABELS[kind]] = {"fits": len(fits)} | row
    for test, report in (baselines or {}).items():
        row = {name: f"{report[key]:.3f}" for key, name in MEASURES.items()}
        rows[own.data.iloc[0], "none", test, "MNDWI > 0"] = {"fits": 1} | row
    return _indexed(rows, "data", "encoder", "test", "model")


def rules(table: pd.DataFrame, test: str) -> pd.DataFrame:
    """The published measures under both rules of training, with the published numbers last."""
    own = table[_extremes(table) & (table.test == test)]
    rows = {}
    for (data, encoder, rule, kind), fits in own.groupby(["data", "encoder", "rules", "kind"], sort=False):
        values = {name: _spread(fits[key], 0 if key == "released_mae" else 3) for key, name in RELEASED.items()}
        rows[data, encoder, rule, LABELS[kind]] = {"fits": len(fits)} | values
    for kind, values in released.TABLE.items():
        row = {name: f"{values[key]:.{0 if key == 'released_mae' else 3}f}" for key, name in RELEASED.items()}
        rows[released.DATA, released.ENCODER, "as published", LABELS[kind]] = {"fits": 1} | row
    return _indexed(rows, "data", "encoder", "rules", "model")


def budgets(table: pd.DataFrame, test: str) -> pd.DataFrame:
    """Area error and IoU of water by the percentage of masks, mean ± sd over the seeds."""
    own = table[(table.rules == "corrected") & (table.test == test)]
    rows = {}
    for masks, some in own.groupby("masks"):
        rows[masks] = {
            f"{LABELS[kind]}: {name}": _spread(fits[key])
            for kind, fits in some.groupby("kind")
            for key, name in (("mae_percent", "area error, %"), ("iou_water", "IoU water"))
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("% of masks").fillna("")


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
