"""Accuracy against receptive field as data frames: every training, with the columns of the original, and every cut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from helpers.prototypes import pareto


def frame(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a cut, mode and seed, with the columns of the original (accuracies as shares), then ours: receptive fields
    in % of the image; ``Seconds`` of training, of a probe with its share of the forward pass."""
    tables = []
    for record in records:
        facts, rows = record["facts"], pd.DataFrame(record["rows"])
        own = {
            "Test Accuracy Epoch": rows.accuracy, "Test Accuracy Top5 Epoch": rows.top5, "Dataset": facts["dataset"],
            "Height": facts["input_size"], "Width": facts["input_size"], "Stage #": rows.number,
            "Stage Name": rows.stage, "Model": facts["model"], "Mode": facts["mode"], "Seed": facts["seed"],
            "Mean RF %": rows.mean_rf, "Channels": rows.channels, "Classes": facts["classes"],
            "Training Images": facts["images"]["train"], "Test Images": facts["images"]["test"],
            "Seconds": rows.seconds,
        }  # fmt: skip
        only = {"strength": "Strength", "validation_accuracy": "Validation Accuracy"}  # of probes
        own |= {column: rows[name] for name, column in only.items() if name in rows}
        tables.append(pd.DataFrame(own))
    return pd.concat(tables, ignore_index=True)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row a cut and mode, accuracies in %: mean and standard deviation (``sd``; NaN of one) over ``seeds``, the
    binomial standard error of the test images, ``error``, both as one standard error of the mean, and the Pareto
    ``rank`` in its mode."""
    keys = {"Mode": "mode", "Model": "model", "Stage #": "number", "Stage Name": "stage"}
    rows = []
    for names, own in table.groupby(list(keys), sort=False):
        share, top5 = own["Test Accuracy Epoch"], own["Test Accuracy Top5 Epoch"]
        binomial = 100 * math.sqrt(share.mean() * (1 - share.mean()) / own["Test Images"].iloc[0])
        sd = 100 * share.std()  # of one seed nothing is known
        rows.append(
            dict(zip(keys.values(), names, strict=True))
            | {"mean_rf": own["Mean RF %"].iloc[0], "accuracy": 100 * share.mean(), "sd": sd, "top5": 100 * top5.mean(),
               "standard_error": binomial, "error": math.hypot(binomial, np.nan_to_num(sd) / math.sqrt(len(own))),
               "seeds": len(own), "minutes": own["Seconds"].sum() / 60}
        )  # fmt: skip
    found = pd.DataFrame(rows)
    found["rank"] = 0
    for _, own in found.groupby("mode"):
        found.loc[own.index, "rank"] = pareto.ranks(own.accuracy, own.mean_rf)
    return found
