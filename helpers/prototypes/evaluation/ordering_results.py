"""What the relevance ordering test found (`helpers.prototypes.evaluation.ordering`): curves, what they come to, and how
far that is certain.

The images are a sample, and what is said of them is meant for others: intervals are percentiles of a bootstrap that
draws images, with all their prototypes. It draws the same ones for all methods, so a difference between two of them is
one between pairs, and its interval is what a claim rests on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import pandas as pd
import torch
from torch import Tensor

from helpers import runtime
from helpers.config import ConfigError, suggest

RESAMPLES = 1000
LEVEL = 0.95
REACHED = 1e-4  # of its rise: what a curve that is at its end may lack, for float32 is rounded
RISE = 1e-5  # of a similarity: what is less is none


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its confidence interval, which are NaN of one image."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Ordering:
    """The test of several methods on the same images and prototypes; all tensors are on the CPU.

    A method's curve is the mean over the images of each prototype, then over prototypes (spec section 8.5).
    """

    rows: Tensor  # int64 [B]: the images' places in their split
    prototypes: Tensor  # int64 [B, P]
    counts: Tensor  # int64 [T]: how many pixels are the original's
    pixels: int  # of an image
    values: Mapping[str, Tensor]  # float32 [B, P, T]: the greatest similarity then, by method
    final: Tensor  # float32 [B, P]: that of the original image
    seed: int = 0
    resamples: int = RESAMPLES
    level: float = LEVEL

    def __post_init__(self):
        if self.resamples < 1 or not 0 < self.level < 1:
            wrong = f"{self.resamples} and {self.level}"
            raise ConfigError(f"resamples must be at least 1 and level between 0 and 1, not {wrong}")

    @property
    def fraction(self) -> Tensor:
        """float64 [T]: the share of an image's pixels that are the original's."""
        return self.counts.double() / self.pixels

    @property
    def without_rise(self) -> int:
        """How many pairs of an image and a prototype are no more similar than the start is. They count in the mean
        curves as they are; their own area and percentage are 0."""
        first = next(iter(self.values.values()))[..., 0].double()
        return int((_rise(first, self.final.double()) == 0).sum())

    def curve(self, method: str) -> Tensor:
        """float64 [T]: the similarities, not normalised."""
        return self._curves(method)[0]

    def band(self, method: str) -> Tensor:
        """float64 [2, T]: the ends of the confidence interval of each point of the curve."""
        return self._ends(self._curves(method))

    def pairs(self, measure: str, method: str) -> Tensor:
        """float64 [B, P]: the ``area`` or the ``percent`` of each image and prototype by itself."""
        return _measure(measure)(self._of(method).double(), self.fraction, self.final.double())

    def estimate(self, measure: str, method: str) -> Estimate:
        """The ``area`` (`normalised_area`) or the ``percent`` (`percent_to_final`) of a method's curve.

        Raises `ConfigError` for names that there are not, as all here do."""
        return self._estimate(self._measured(measure, method))

    def difference(self, measure: str, method: str, other: str) -> Estimate:
        """By how much that is higher for ``method`` than for ``other``."""
        return self._estimate(self._measured(measure, method) - self._measured(measure, other))

    def as_frame(self) -> pd.DataFrame:
        """A row an estimate: measure, method, minus (of a difference, the other method), value, low, high."""
        rows = []
        for measure in MEASURES:
            rows += [(measure, method, "", self.estimate(measure, method)) for method in self.values]
            rows += [(measure, *pair, self.difference(measure, *pair)) for pair in combinations(self.values, 2)]
        table = [(*names, e.value, e.low, e.high) for *names, e in rows]
        return pd.DataFrame(table, columns=["measure", "method", "minus", "value", "low", "high"])

    def curves_frame(self) -> pd.DataFrame:
        """A row a method and point of its curve: method, percent (of the pixels), similarity, low, high."""
        tables = []
        for method in self.values:
            columns = torch.stack([100 * self.fraction, self.curve(method), *self.band(method)], 1)
            tables.append(pd.DataFrame(columns.numpy(), columns=["percent", "similarity", "low", "high"]))
        return pd.concat(tables, keys=self.values, names=["method"]).reset_index("method").reset_index(drop=True)

    @cached_property
    def _weights(self) -> Tensor:
        """float64 [1 + resamples, B * P]: what each pair counts in the sample, and in those drawn from it. A prototype
        none of whose images is drawn counts for nothing there."""
        n, each = self.prototypes.shape
        draws = torch.randint(n, (self.resamples, n), generator=runtime.generator(self.seed, "ordering", "bootstrap"))
        times = torch.ones(1 + self.resamples, n, dtype=torch.float64)
        times[1:] = torch.zeros_like(times[1:]).scatter_add_(1, draws, times[1:])
        times = times.repeat_interleave(each, 1)
        names, which = self.prototypes.flatten().unique(return_inverse=True)
        images = times.new_zeros(len(times), len(names)).index_add_(1, which, times)
        return times / images.clamp(min=1)[:, which] / (images > 0).sum(1, keepdim=True)

    def _of(self, method: str) -> Tensor:
        if method not in self.values:
            raise ConfigError(f"unknown method {method!r}: {suggest(method, self.values)}")
        return self.values[method]

    def _curves(self, method: str) -> Tensor:
        """float64 [1 + resamples, T]: the mean curves of the sample, and of those drawn from it."""
        return self._weights @ self._of(method).flatten(0, 1).double()

    def _measured(self, measure: str, method: str) -> Tensor:
        """float64 [1 + resamples]."""
        function, final = _measure(measure), self._weights @ self.final.flatten().double()
        return function(self._curves(method), self.fraction, final)

    def _estimate(self, found: Tensor) -> Estimate:
        return Estimate(float(found[0]), *self._ends(found).tolist())

    def _ends(self, found: Tensor) -> Tensor:
        """[2, ...] of [1 + resamples, ...]."""
        if len(self.rows) == 1:  # it is all that can be drawn, and says nothing about others
            return found.new_full((2, *found.shape[1:]), torch.nan)
        tail = (1 - self.level) / 2
        return found[1:].quantile(found.new_tensor([tail, 1 - tail]), dim=0)


def normalised_area(values: Tensor, fraction: Tensor, final: Tensor) -> Tensor:
    """[...]: the mean height of curves ``values`` [..., T] at the shares ``fraction`` [T] of pixels, by the trapezoidal
    rule, in units of their rise from the first point to ``final`` [...]; over all pixels, the area under the curve.

    0 for a curve that does not rise, whose units would be none or negative.
    """
    rise, first = _rise(values[..., 0], final), values[..., :1]
    height = torch.trapezoid(values - first, fraction) / (fraction[-1] - fraction[0])
    return torch.where(rise > 0, height / torch.where(rise > 0, rise, 1), 0)


def percent_to_final(values: Tensor, fraction: Tensor, final: Tensor) -> Tensor:
    """[...]: the smallest of the shares ``fraction`` [T] of pixels, in %, at which curves ``values`` [..., T] are as
    high as ``final`` [...], up to `REACHED`. 0 for a curve that does not rise, since it is there from the start; 100
    for one that ended before (a ``proportion`` below 1), since the whole image is there."""
    rise = _rise(values[..., 0], final)
    there = values >= (final - REACHED * rise)[..., None]
    first = 100 * fraction[there.byte().argmax(-1)]
    return torch.where(rise > 0, torch.where(there.any(-1), first, 100), 0)


MEASURES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"area": normalised_area, "percent": percent_to_final}


def _measure(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if name not in MEASURES:
        raise ConfigError(f"unknown measure {name!r}: {suggest(name, MEASURES)}")
    return MEASURES[name]


def _rise(first: Tensor, final: Tensor) -> Tensor:
    """How far ``final`` is above ``first``; 0 if that is not more than rounding."""
    rise = final - first
    return torch.where(rise > RISE * (1 + final.abs()), rise, 0)
