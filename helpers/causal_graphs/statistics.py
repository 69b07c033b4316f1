"""Outcomes, effects, tests, and which nodes they make causes (spec explainnn, sections 2 and 3.4).

    statistics = describe(measure(clean, cut, target))
    selected = select(statistics, statistics.n_images, Selection(delta=0.05))

Pure functions of tensors: ``measure`` sees the logits, ``describe`` keeps a few numbers of every candidate, and
``select`` needs nothing but these, so a graph can be thresholded anew long after its model is gone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from scipy.special import stdtr, stdtrit
from torch import Tensor

from helpers.config import ConfigError, Settings

Effect = Literal["logit", "margin", "logprob", "contrast"]
DIGITS = 9  # significant ones, of stored statistics: files that diff well
BLOCK = 2**22  # logits in double precision at a time


class Selection(Settings):
    """Which candidates become causes.

    ``reference`` is the release's one-sided two-sample z test of the outcomes with and without the cut. It ignores that
    the images are the same, so its threshold is an effect size that shrinks with the number of images. ``recommended``
    pairs the images, controls the false discoveries among a layer's candidates, and asks for an effect of some size.
    """

    mode: Literal["reference", "recommended"] = "recommended"
    alpha: float = Field(0.05, gt=0, lt=1, description="recommended: level of the one-sided paired t test")
    fdr: float = Field(0.05, gt=0, le=1, description="recommended: Benjamini-Hochberg's q over a layer; 1: no control")
    delta: float = Field(0.02, ge=0, description="recommended: least mean effect, as a share of the mean outcome")
    critical: float = Field(1.65, ge=0, description="reference: least z score")
    fallback: float = Field(-0.001, le=0, description="reference: mean r below it is a cause where no node passes")
    single: float = Field(-0.05, le=0, description="reference: r below it is a cause where there is one image")
    inhibitors: bool | None = Field(None, description="keep inhibitors too; null: recommended does, reference does not")

    @property
    def keeps_inhibitors(self) -> bool:
        return self.mode == "recommended" if self.inhibitors is None else self.inhibitors


class Comparable:
    """Base of frozen dataclasses that hold arrays: equal if all their fields are, NaN to NaN."""

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.compare)

    __hash__ = None


@dataclass(frozen=True, eq=False)
class Measured:
    """What K cuts did to N images, on the CPU. The cuts are the candidates of a layer, or single edges.

    ``d`` float64 [K, N] is the total effect, outcome with the cut minus outcome without; ``r`` [K, N] the relative one,
    their ratio - 1 (NaN where the outcome is 0); ``kl`` [K, N] the shift of the prediction, KL(softmax with the cut ||
    softmax without) in nats; ``y`` [N] the outcome without.
    """

    d: Tensor
    r: Tensor
    kl: Tensor
    y: Tensor


@dataclass(frozen=True, eq=False)
class Statistics(Comparable):
    """What is kept of K candidates measured on ``n_images`` images. Arrays are float64 [K] and read-only.

    ``mean_y``, ``std_y`` and ``min_y`` are of the outcome without a cut, ``std_cut`` of that with it, ``mean_d``,
    ``std_d``, ``mean_r`` and ``mean_kl`` of `Measured`; standard deviations are unbiased (NaN of one image). ``t`` is
    the paired t statistic (NaN where all effects are equal: their sign decides), ``p`` its one-sided level as a cause,
    ``p_inhibitor`` as an inhibitor, ``q`` and ``q_inhibitor`` these after Benjamini and Hochberg.
    """

    n_images: int
    mean_y: float
    std_y: float
    min_y: float
    mean_d: np.ndarray
    std_d: np.ndarray
    std_cut: np.ndarray
    mean_r: np.ndarray
    mean_kl: np.ndarray
    t: np.ndarray
    p: np.ndarray
    p_inhibitor: np.ndarray
    q: np.ndarray
    q_inhibitor: np.ndarray

    def __post_init__(self):
        for field in fields(self):
            value = np.array(getattr(self, field.name), dtype=np.float64)  # None, the NaN of JSON, becomes one
            if value.ndim != (field.type == "np.ndarray") or (value.ndim and len(value) != len(self)):
                raise ValueError(f"{field.name} must be {'[K]' if field.type == 'np.ndarray' else 'a number'}")
            value.setflags(write=False)
            convert = {"int": int, "float": float}.get(field.type, lambda array: array)
            object.__setattr__(self, field.name, convert(value))

    def __len__(self) -> int:
        return np.size(self.mean_d)

    @property
    def ratios(self) -> bool:
        """Do ratios of outcomes mean something? Logits are free up to a shared shift: not if one is <= 0, or their mean
        below 1."""
        return self.mean_y >= 1 and self.min_y > 0

    @property
    def scale(self) -> float:
        """What ``delta`` is a share of: the size of the mean outcome, or its standard deviation without `ratios`."""
        return abs(self.mean_y) if self.ratios else self.std_y

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) ends, [K] each, of the two-sided confidence interval of ``mean_d``. NaN of one image."""
        half = stdtrit(self.n_images - 1, (1 + level) / 2) * self.std_d / math.sqrt(self.n_images)
        return self.mean_d - half, self.mean_d + half


@dataclass(frozen=True, eq=False)
class Selected(Comparable):
    """Positions, ascending, of the ``causes`` and ``inhibitors`` among K candidates.

    ``rule`` says how the causes were found: by the ``test``, by the ``fallback``, or ``none`` was. ``q_cause`` and
    ``q_inhibitor`` [K] are the paired tests' levels after Benjamini and Hochberg (NaN of one image).
    """

    causes: tuple[int, ...]
    inhibitors: tuple[int, ...]
    rule: Literal["test", "fallback", "none"]
    q_cause: np.ndarray
    q_inhibitor: np.ndarray


def outcome(logits: Tensor, target: int, effect: Effect = "logit", other: int | None = None) -> Tensor:
    """What is explained, [...] of ``logits`` [..., classes].

    ``logit`` of the target; ``margin``: that minus the highest of the others; ``logprob``: its log-softmax;
    ``contrast``: that minus the logit of the class ``other``. Raises `ConfigError` for a class that is not there.
    """
    classes = logits.shape[-1]
    wanted = {"target": target, "other": other} if effect == "contrast" else {"target": target}
    for name, index in wanted.items():
        if index is None or not 0 <= index < classes:
            raise ConfigError(f"{name} must be a class of 0 to {classes - 1}, not {index}")
    if effect == "contrast" and target == other:
        raise ConfigError(f"class {target} cannot be contrasted with itself")
    if effect == "margin" and classes == 1:
        raise ConfigError("a model of one logit has no margin; take effect='logit'")
    if effect == "logprob":
        return logits.log_softmax(-1)[..., target]
    y = logits[..., target]
    if effect == "margin":
        return y - torch.cat([logits[..., :target], logits[..., target + 1 :]], -1).amax(-1)
    return y - logits[..., other] if effect == "contrast" else y


def measure(clean: Tensor, cut: Tensor, target: int, effect: Effect = "logit", other: int | None = None) -> Measured:
    """The effects of K cuts on N images, from the logits ``clean`` [N, classes] and ``cut`` [K, N, classes].

    In double precision and a block of cuts at a time. Raises ``ValueError`` for other shapes and for logits that are
    not finite; `ConfigError` as `outcome`.
    """
    if clean.ndim != 2 or cut.ndim != 3 or cut.shape[1:] != clean.shape or not len(clean):
        shapes = f"{list(clean.shape)} and {list(cut.shape)}"
        raise ValueError(f"expected logits [N, classes] and [K, N, classes], not {shapes}")
    for name, logits in {"clean": clean, "cut": cut}.items():
        if not logits.isfinite().all():
            raise ValueError(f"the {name} logits are not finite")
    clean = _double(clean)
    y, reference = outcome(clean, target, effect, other), clean.log_softmax(-1)
    d, r, kl = [], [], []
    for rows in cut.split(max(1, BLOCK // clean.numel())):
        rows = _double(rows)
        y_cut, logprobs = outcome(rows, target, effect, other), rows.log_softmax(-1)
        d.append(y_cut - y)
        ratio = y_cut / y - 1
        r.append(ratio.where(ratio.isfinite(), torch.nan))
        kl.append((logprobs.exp() * (logprobs - reference)).sum(-1).clamp(min=0))
    return Measured(torch.cat(d).cpu(), torch.cat(r).cpu(), torch.cat(kl).cpu(), y.cpu())


def concatenate(parts: Sequence[Measured]) -> Measured:
    """The cuts of all ``parts``, measured on the same images. Raises ``ValueError`` if they were not."""
    if any(not torch.equal(part.y, parts[0].y) for part in parts):
        raise ValueError("the parts were not measured on the same images")
    d, r, kl = (torch.cat([getattr(part, name) for part in parts]) for name in ("d", "r", "kl"))
    return Measured(d, r, kl, parts[0].y)


def describe(measured: Measured) -> Statistics:
    """What is kept of ``measured``, to 9 significant digits. Tests are of the rounded numbers, so a file repeats them.

    t = mean(d) / (std(d) / sqrt(N)); where std(d) is 0, p is 0 or 1 by the sign of the mean.
    """
    d, r, kl, y = (getattr(measured, name).numpy() for name in ("d", "r", "kl", "y"))
    n = len(y)
    moments = {"mean_d": d.mean(1), "std_d": _std(d), "std_cut": _std(d + y)}
    moments |= {"mean_r": r.mean(1), "mean_kl": kl.mean(1), "mean_y": y.mean(), "std_y": _std(y), "min_y": y.min()}
    moments = {name: rounded(value) for name, value in moments.items()}
    tests = _paired(moments["mean_d"], moments["std_d"], n)
    return Statistics(n_images=n, **moments, **tests)


def select(statistics: Statistics, n_images: int, selection: Selection) -> Selected:
    """The causes and inhibitors among K candidates, by their positions.

    ``n_images`` is ``statistics.n_images``; any other number asks what would be selected if as many images had given
    the same means and standard deviations. The fallback of ``reference`` goes by ratios also where `Statistics.ratios`
    says that they mean nothing, as in the release. Raises `ConfigError` for the paired test of one image.
    """
    tests = {name: getattr(statistics, name) for name in ("p", "p_inhibitor", "q", "q_inhibitor")}
    if n_images != statistics.n_images:
        tests = _paired(statistics.mean_d, statistics.std_d, n_images)
    if selection.mode == "reference":
        causes, inhibitors, rule = _reference(statistics, n_images, selection)
    elif n_images < 2:
        raise ConfigError("a paired test needs two images at least; take more images, or mode='reference'")
    else:
        least, d = selection.delta * statistics.scale, statistics.mean_d
        causes = (tests["p"] < selection.alpha) & (tests["q"] <= selection.fdr) & (d < -least)
        inhibitors = (tests["p_inhibitor"] < selection.alpha) & (tests["q_inhibitor"] <= selection.fdr) & (d > least)
        rule = "test"
    kept = inhibitors & ~causes if selection.keeps_inhibitors else np.zeros(len(statistics), bool)
    positions = (tuple(np.flatnonzero(mask).tolist()) for mask in (causes, kept))
    return Selected(*positions, rule if causes.any() else "none", tests["q"], tests["q_inhibitor"])


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """The least false discovery rate [K] at which each of the hypotheses with levels ``p`` [K] is rejected.

    Benjamini and Hochberg, J. R. Stat. Soc. B 57 (1995). All NaN if a level is.
    """
    if not len(p) or np.isnan(p).any():
        return np.full(len(p), np.nan)
    order = np.argsort(p)[::-1]
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(p[order] * len(p) / np.arange(len(p), 0, -1)).clip(max=1)
    return q


def rounded(values: np.ndarray | Tensor | float, digits: int = DIGITS) -> np.ndarray:
    """float64, the shape of ``values``: the nearest numbers of so many significant digits."""
    values = np.asarray(values, np.float64)
    return np.array([float(f"{v:.{digits}g}") for v in values.ravel().tolist()]).reshape(values.shape)


def _reference(statistics: Statistics, n: int, selection: Selection) -> tuple[np.ndarray, np.ndarray, str]:
    r = statistics.mean_r
    if n == 1:
        return r < selection.single, r > -selection.single, "test"
    least = selection.critical * np.sqrt((statistics.std_cut**2 + statistics.std_y**2) / n)
    causes, inhibitors = statistics.mean_d < -least, statistics.mean_d > least
    return (causes, inhibitors, "test") if causes.any() else (r < selection.fallback, inhibitors, "fallback")


def _paired(mean_d: np.ndarray, std_d: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """t, p and q, as a cause and as an inhibitor, rounded; NaN of one image."""
    t, p, p_inhibitor = np.full((3, len(mean_d)), np.nan)
    if n > 1 and not np.isnan(std_d).any():
        moves = std_d > 0
        np.divide(mean_d, std_d / math.sqrt(n), out=t, where=moves)
        p = np.where(moves, stdtr(n - 1, t), mean_d >= 0)
        p_inhibitor = np.where(moves, stdtr(n - 1, -t), mean_d <= 0)
    tests = {"t": t, "p": p, "p_inhibitor": p_inhibitor}
    tests |= {"q": benjamini_hochberg(p), "q_inhibitor": benjamini_hochberg(p_inhibitor)}
    return {name: rounded(value) for name, value in tests.items()}


def _std(values: np.ndarray) -> np.ndarray:
    """Unbiased, over the last axis; NaN of one value."""
    return values.std(-1, ddof=1) if values.shape[-1] > 1 else np.full(values.shape[:-1], np.nan)


def _double(logits: Tensor) -> Tensor:
    return (logits.cpu() if logits.device.type == "mps" else logits).double()  # Apple's GPU has no double precision


def _same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray | float) and isinstance(b, np.ndarray | float):
        return np.array_equal(a, b, equal_nan=True)
    return a == b
