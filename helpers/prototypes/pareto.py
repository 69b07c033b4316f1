"""Pareto fronts: high accuracy against small receptive fields (spec pixpnet, section 10)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


def ranks(accuracy: ArrayLike, area: ArrayLike) -> np.ndarray:
    """Non-dominated sorting: int64 [n], 1 on the front, 2 on the front of what is left, ...; 0 where a value is NaN.

    A point dominates another one if it has at least its ``accuracy`` [n] and at most its ``area`` [n], and is not equal
    in both: equal points share a rank. One with a NaN dominates none and has no rank. Raises ValueError for unequal
    shapes.
    """
    accuracy, area = np.asarray(accuracy, float), np.asarray(area, float)
    if accuracy.ndim != 1 or accuracy.shape != area.shape:
        raise ValueError(f"accuracy and area must be [n] both, not {accuracy.shape} and {area.shape}")
    as_good = (accuracy[:, None] >= accuracy) & (area[:, None] <= area)
    dominates = as_good & ~as_good.T
    found = np.zeros(len(accuracy), dtype=np.int64)
    left = ~(np.isnan(accuracy) | np.isnan(area))
    rank = 0
    while left.any():
        rank += 1
        front = left & ~dominates[left].any(0)
        found[front] = rank
        left &= ~front
    return found


def front(frame: pd.DataFrame, accuracy: str = "accuracy", area: str = "mean_rf") -> pd.DataFrame:
    """The rows of ``frame`` with rank 1, from the smallest field to the largest."""
    return frame[ranks(frame[accuracy], frame[area]) == 1].sort_values([area, accuracy], kind="stable")
