"""The tables of the evaluation, as data frames: means and standard deviations over seeds."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from helpers.prototypes import tables
from helpers.prototypes.tables import digits, mean_and_deviation

CONSISTENCY = {
    "soft_consistency": "consistency, %",
    "hard_consistency": "consistent prototypes, %",
    "soft_stability": "stability, %",
    "hard_stability": "unmoved, %",
}
ORDERING = {"area": "area, %", "percent": "pixels needed, %"}
TRUTH = {
    "purity_centre": "purity, %",
    "causal_centre": "causal purity, %",
    "causal_centre_chance": "by chance, %",
    "cause_mass": "on causes, %",
    "background": "on background, %",
    "correlation": "rank correlation",
    "peak_error": "peak error, px",
}
DISTINCT = {
    "cells": "cells of a class's prototypes",
    "overlap": "overlap of their boxes, %",
    "class_parts": "parts they depend on",
    "caused": "depend on a part, %",
    "effect": "largest part's effect, %",
    "control": "the same repaint elsewhere, %",
}
"""Metrics of each aspect in the order of its table, and what they are called there."""


def values(frame: pd.DataFrame, aspect: str, metric: str, variant: str | None = None) -> pd.DataFrame:
    """The rows of ``frame`` (`study.frame`) of one metric, of one variant or of all."""
    own = tables.values(frame[frame.aspect == aspect], metric)
    return own if variant is None else own[own.variant == variant]


def by_variant(
    frame: pd.DataFrame, aspect: str, names: Mapping[str, str], index: str = "variant", ends: bool = False
) -> pd.DataFrame:
    """A row a group and variant (``index`` names that level), in the order of ``frame``; a column for each of the
    metrics ``names``: mean ± standard deviation over seeds; or, for their ``ends``, from where to where the 95 %
    intervals of all seeds reach."""
    own = frame[(frame.aspect == aspect) & frame.metric.isin(names)]
    if own.empty:  # photographs have no truth, say
        return pd.DataFrame(columns=list(names.values()), index=pd.MultiIndex.from_tuples([], names=["group", index]))
    cells = own.groupby(["group", "variant", "metric"], sort=False)
    table = (cells[["low", "high"]].apply(_hull) if ends else cells.value.agg(mean_and_deviation)).unstack()
    table = table.reindex(columns=[name for name in names if name in table]).fillna("")
    return table.rename(columns=dict(names)).rename_axis(columns=None, index=["group", index])


def consistency(frame: pd.DataFrame) -> pd.DataFrame:
    return by_variant(frame, "consistency", CONSISTENCY, "protocol")


def ordering(frame: pd.DataFrame) -> pd.DataFrame:
    """After the column of each metric, one of its intervals."""
    own = frame[~frame.variant.str.contains(" - ", regex=False)]
    found, ends = (by_variant(own, "ordering", ORDERING, "mapping", of) for of in (False, True))
    for place, name in enumerate(ends):
        found.insert(2 * place + 1, f"{name}: 95 %", ends[name])
    return found


def truth(frame: pd.DataFrame, ends: bool = False) -> pd.DataFrame:
    """The means, or from where to where their intervals reach."""
    return by_variant(frame[frame.variant != ""], "truth", TRUTH, "mapping", ends)


def distinct(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a group."""
    return by_variant(frame[frame.variant == ""], "truth", DISTINCT).droplevel(1)


def _hull(found: pd.DataFrame) -> str:
    """From the lowest ``low`` to the highest ``high``; nothing where there are none."""
    ends = found.astype(float).dropna()
    if not len(ends):
        return ""
    places = digits(ends.stack())
    return f"{ends.low.min():.{places}f} to {ends.high.max():.{places}f}"
