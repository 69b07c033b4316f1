"""The tables of the prototypes notebooks, as data frames: means and standard deviations over seeds."""

from __future__ import annotations

import pandas as pd

NAMES = {
    "mean_rf": "mean RF, %",
    "accuracy": "accuracy, %",
    "macro_accuracy": "mean of classes, %",
    "repeated_images": "images used twice",
    "hidden_share": "hidden by up-sampling, %",
    "million_macs": "MMAC",
    "million_parameters": "M parameters",
    "minutes": "minutes (median)",
}
"""Metrics in the order of the table, and what they are called there."""
TIMES = {"minutes"}  # of which one is long where its machine was busy
ROUNDING = 1e-6  # of a mean: a deviation that is less is none


def values(frame: pd.DataFrame, metric: str, group: str | None = None) -> pd.DataFrame:
    """The rows of ``frame`` (`study.frame`) of one metric, of one group or of all."""
    own = frame[(frame.metric == metric) & frame.value.notna()]
    return own if group is None else own[own.group == group]


def differences(frame: pd.DataFrame, metric: str, group: str, other: str) -> pd.Series:
    """How far the metric of ``group`` is above that of ``other`` with the same seed: by seed, of those both have."""
    table = values(frame, metric).pivot_table(index="seed", columns="group", values="value")
    if not {group, other} <= set(table):
        return pd.Series(dtype=float)
    return (table[group] - table[other]).dropna()


def by_group(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a group, in the order of ``frame``, a column a metric: mean ± standard deviation over seeds; of times, the
    median alone."""
    own = frame[frame.metric.isin(NAMES)]
    table = own.groupby(["group", "metric"], sort=False).value.agg(mean_and_deviation).unstack()
    for name in TIMES & set(table):
        table[name] = own[own.metric == name].groupby("group").value.agg(median)
    table = table.reindex(columns=[name for name in NAMES if name in table]).fillna("")
    return table.rename(columns=NAMES).rename_axis(columns=None)


def mean_and_deviation(found: pd.Series) -> str:
    """Mean ± standard deviation; nothing where nothing was measured, one number where all seeds have the same."""
    found = found.dropna()
    if not len(found):
        return ""
    places, varies = digits(found), found.std() > ROUNDING * abs(found.mean())  # of one number: NaN, which is not
    spread = f" ± {found.std():.{places}f}" if varies else ""
    return f"{found.mean():.{places}f}{spread}"


def median(found: pd.Series) -> str:
    """Nothing where nothing was measured."""
    found = found.dropna()
    return f"{found.median():.{digits(found)}f}" if len(found) else ""


def digits(found: pd.Series) -> int:
    """After the point, of numbers that stand in one cell."""
    return 2 if found.abs().max() < 10 else 1
