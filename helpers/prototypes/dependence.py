"""What a tensor's elements depend on: an interval of the input's rows times one of its columns (spec pixpnet, section
3.3). Layers of convolutional networks have solid windows that treat rows and columns apart, so that one interval for
each index along each axis says it all. Channels are not told apart: an interval is the union over all of them.

A `Value` stands for a tensor of known shape, without its numbers. Its rows (and likewise its columns) are those of one
dimension, or lie within one together with others, as in tokens [B, H * W, C], or are nowhere: then all elements depend
on the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from helpers.config import ConfigError

NOWHERE = np.iinfo(np.int64).max // 2  # an empty interval is (NOWHERE, -NOWHERE): neutral in every hull
FAR = np.array([NOWHERE])
NAMES = ("rows", "columns")


@dataclass(frozen=True)
class Axis:
    """Which rows (or columns) of the input each of n indices depends on."""

    low: np.ndarray  # int64 [n], the first of them
    high: np.ndarray  # int64 [n], behind the last of them
    start: float  # without borders index i would depend on start + i * stride ...
    end: float  # ... to end + i * stride, half-open as well
    stride: float
    dim: int | None = None  # of the tensor; None: everywhere the same, and n = 1
    inner: int = 1  # elements within that dimension from one index to the next


@dataclass(frozen=True)
class Value:
    """A tensor: its shape, and what its elements depend on, (rows, columns)."""

    shape: tuple[int, ...]
    axes: tuple[Axis, Axis]


@dataclass(frozen=True)
class Window:
    """Which indices each of m new indices is computed from."""

    children: np.ndarray  # int64 [m, k]; -1: padding
    first: float  # without borders those of i are first + i * step ...
    last: float  # ... to last + i * step, inclusive
    step: float


def image(channels: int, size: tuple[int, int]) -> Value:
    """The input [1, C, H, W] itself."""
    axes = (Axis(np.arange(n), np.arange(n) + 1, 0.0, 1.0, 1.0, dim) for dim, n in enumerate(size, start=2))
    return Value((1, channels, *size), tuple(map(_settled, axes)))


def constant(shape: Sequence[int]) -> Value:
    """What depends on no input: parameters."""
    nothing = Axis(FAR, -FAR, math.inf, -math.inf, 0.0)
    return Value(tuple(shape), (nothing, nothing))


def line(value: Value, which: int) -> Axis:
    """The rows (0) or columns (1) of a map [B, C, H, W], one entry for each index.

    Raises `ConfigError` if they are elsewhere than in dimension 2 (or 3).
    """
    dim = 2 + which
    if len(value.shape) != 4:
        raise ConfigError(f"needs a map [B, C, H, W], not a tensor {list(value.shape)}")
    n, axis = value.shape[dim], value.axes[which]
    if axis.dim is None:
        return axis if n == 1 else _spread(axis, n, dim)
    if axis.dim != dim or axis.inner != 1 or len(axis.low) != n:
        raise ConfigError(f"needs a map [B, C, H, W]; the {NAMES[which]} are in dimension {axis.dim}")
    return axis


def slide(value: Value, windows: Sequence[Window], channels: int | None = None) -> Value:
    """A map [B, C, H, W] through one window for each axis."""
    axes = tuple(_gather(line(value, which), window, 2 + which) for which, window in enumerate(windows))
    sizes = (len(window.children) for window in windows)
    return Value((value.shape[0], channels or value.shape[1], *sizes), axes)


def combine(values: Sequence[Value]) -> Value:
    """Elementwise: the hull of all, broadcast."""
    if len(values) == 1:
        return values[0]
    shape = np.broadcast_shapes(*(value.shape for value in values))
    moved = [_moved(value, len(shape) - len(value.shape)) for value in values]
    return Value(shape, tuple(_hull([value.axes[which] for value in moved], which) for which in (0, 1)))


def join(values: Sequence[Value], dim: int) -> Value:
    """Concatenated along ``dim``; tokens, beside a class token say, get the hull of all.

    Raises `ConfigError` along rows or columns of a map.
    """
    dim %= len(values[0].shape)
    if len(values[0].shape) == 4 and any(axis.dim == dim for value in values for axis in value.axes):
        raise ConfigError("joins maps side by side, not channels")
    shape = list(values[0].shape)
    shape[dim] = sum(value.shape[dim] for value in values)
    values = [mix(value, [dim]) for value in values]
    return Value(tuple(shape), tuple(_hull([value.axes[which] for value in values], which) for which in (0, 1)))


def mix(value: Value, dims: Sequence[int] | None = None) -> Value:
    """Every element gets what those along ``dims`` (default: all) depend on together."""
    dims = range(len(value.shape)) if dims is None else [dim % len(value.shape) for dim in dims]
    return replace(value, axes=tuple(_everything(axis) if axis.dim in dims else axis for axis in value.axes))


def reduce(value: Value, dims: Sequence[int] | None = None, keepdim: bool = False) -> Value:
    """Means, sums and maxima over ``dims`` (default: all)."""
    dims = range(len(value.shape)) if dims is None else [dim % len(value.shape) for dim in dims]
    shape = [1 if dim in dims else n for dim, n in enumerate(value.shape)]
    kept = replace(mix(value, dims), shape=tuple(shape))
    return kept if keepdim else reshape(kept, [n for dim, n in enumerate(shape) if dim not in dims])


def permute(value: Value, order: Sequence[int]) -> Value:
    order = [dim % len(value.shape) for dim in order]
    axes = tuple(axis if axis.dim is None else replace(axis, dim=order.index(axis.dim)) for axis in value.axes)
    return Value(tuple(value.shape[dim] for dim in order), axes)


def reshape(value: Value, shape: Sequence[int]) -> Value:
    """Raises `ConfigError` where that would take rows or columns apart (windows of attention, say)."""
    shape, size = list(shape), math.prod(value.shape)
    if -1 in shape:
        known = -math.prod(shape)
        shape[shape.index(-1)] = size // known
    if math.prod(shape) != size:
        raise ConfigError(f"cannot see {list(value.shape)} as {shape}")
    axes = (_reshaped(axis, value.shape, shape, name) for axis, name in zip(value.axes, NAMES, strict=True))
    return Value(tuple(shape), tuple(axes))


def pick(value: Value, dim: int, chosen: slice | int) -> Value:
    """A slice or one element along ``dim``; the dimension stays, even if of size 1."""
    indices = np.atleast_1d(np.arange(value.shape[dim])[chosen])
    shape = (*value.shape[:dim], len(indices), *value.shape[dim + 1 :])
    if not len(indices):
        raise ConfigError(f"picks nothing out of {list(value.shape)}")
    step = float(indices[1] - indices[0]) if len(indices) > 1 else 1.0
    window = Window(indices[:, None], float(indices[0]), float(indices[0]), step)

    def picked(axis: Axis) -> Axis:
        if axis.dim != dim or len(indices) == value.shape[dim]:
            return axis
        whole = axis.inner == 1 and len(axis.low) == value.shape[dim]
        return _gather(axis, window, dim) if whole else _everything(axis)  # tokens: the hull of all

    return Value(shape, tuple(picked(axis) for axis in value.axes))


def _gather(axis: Axis, window: Window, dim: int) -> Axis:
    low, high = np.concatenate((axis.low, FAR)), np.concatenate((axis.high, -FAR))  # -1 is what padding sees
    return _settled(
        Axis(
            low[window.children].min(axis=1),
            high[window.children].max(axis=1),
            axis.start + window.first * axis.stride,
            axis.end + window.last * axis.stride,
            axis.stride * window.step,
            dim,
        )
    )


def _settled(axis: Axis) -> Axis:
    """A single index is the same as none at all."""
    return replace(axis, dim=None, inner=1) if len(axis.low) == 1 else axis


def _everything(axis: Axis) -> Axis:
    """What all indices depend on together."""
    if axis.dim is None:
        return axis
    return Axis(axis.low.min(keepdims=True), axis.high.max(keepdims=True), -math.inf, math.inf, 0.0)


def _spread(axis: Axis, n: int, dim: int) -> Axis:
    """A single interval for each of n indices, for which there is no sliding geometry."""
    seen = axis.high[0] > axis.low[0]
    start, end = (-math.inf, math.inf) if seen else (axis.start, axis.end)
    return Axis(axis.low.repeat(n), axis.high.repeat(n), start, end, 0.0, dim)


def _hull(axes: Sequence[Axis], which: int) -> Axis:
    """The smallest intervals around those of all ``axes``, which lie in the same place."""
    placed = [axis for axis in axes if axis.dim is not None]
    if len({(axis.dim, axis.inner, len(axis.low)) for axis in placed}) > 1:
        raise ConfigError(f"combines tensors whose {NAMES[which]} lie differently")
    if placed:
        n, dim = len(placed[0].low), placed[0].dim
        axes = [replace(_spread(axis, n, dim), inner=placed[0].inner) if axis.dim is None else axis for axis in axes]
    strides = {axis.stride for axis in axes if math.isfinite(axis.start)}
    low, high = np.minimum.reduce([axis.low for axis in axes]), np.maximum.reduce([axis.high for axis in axes])
    start, end = min(axis.start for axis in axes), max(axis.end for axis in axes)
    if len(strides) > 1:  # no sliding window holds them all
        start, end = -math.inf, math.inf
    stride = max(strides) if math.isfinite(start) else 0.0
    return replace((placed or axes)[0], low=low, high=high, start=start, end=end, stride=stride)


def _moved(value: Value, by: int) -> Value:
    """With ``by`` dimensions of size 1 in front."""
    if not by:
        return value
    axes = tuple(axis if axis.dim is None else replace(axis, dim=axis.dim + by) for axis in value.axes)
    return Value((1,) * by + value.shape, axes)


def _reshaped(axis: Axis, old: Sequence[int], new: Sequence[int], name: str) -> Axis:
    """Elements keep their order, so that the index along ``axis`` goes on after as many of them as before."""
    if axis.dim is None:
        return axis
    every, n = axis.inner * math.prod(old[axis.dim + 1 :]), len(axis.low)
    for dim, size in enumerate(new):
        behind = math.prod(new[dim + 1 :])
        if size > 1 and every % behind == 0 and (size * behind) % (every * n) == 0:
            return replace(axis, dim=dim, inner=every // behind)
    raise ConfigError(f"takes the {name} of the map apart, from {list(old)} to {list(new)}")
