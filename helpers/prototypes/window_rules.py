"""What convolutions, poolings, resizing and padding of maps do to the dependence on the input (spec pixpnet, section
3.3). Options have the names and the meaning that PyTorch gives them; those that no dependence follows from (biases,
groups, divisors) are taken and ignored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from helpers.config import ConfigError
from helpers.prototypes.dependence import NAMES, Value, Window, reduce, slide

Pair = int | Sequence[int]


def conv2d(
    input: Value, weight: Any, bias: Any = None, stride: Pair = 1, padding: Pair | str = 0, dilation: Pair = 1,
    groups: int = 1, padding_mode: str = "zeros",
) -> Value:  # fmt: skip
    channels, kernel = weight.shape[0], weight.shape[2:]
    if isinstance(padding, str):
        reach = [d * (k - 1) for k, d in zip(kernel, _pair(dilation), strict=True)]
        around = [_halves(r if padding == "same" else 0) for r in reach]
    else:
        around = [(p, p) for p in _pair(padding)]
    if padding_mode != "zeros":
        (top, bottom), (left, right) = around
        input, around = pad(input, (left, right, top, bottom), padding_mode), [(0, 0), (0, 0)]
    return _slid(input, kernel, stride, around, dilation, channels=channels)


def conv_transpose2d(
    input: Value, weight: Any, bias: Any = None, stride: Pair = 1, padding: Pair = 0, output_padding: Pair = 0,
    groups: int = 1, dilation: Pair = 1,
) -> Value:  # fmt: skip
    windows = []
    options = map(_pair, (stride, padding, output_padding, dilation))
    for n, k, s, p, extra, d in zip(input.shape[2:], weight.shape[2:], *options, strict=True):
        reached = np.arange((n - 1) * s - 2 * p + d * (k - 1) + extra + 1)[:, None] + p - d * np.arange(k)
        children = np.where(reached % s == 0, reached // s, -1)
        windows.append(Window(_inside(children, n), (p - d * (k - 1)) / s, p / s, 1 / s))
    return slide(input, windows, weight.shape[1] * groups)


def max_pool2d(
    input: Value, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, dilation: Pair = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Value:  # fmt: skip
    _without_indices(return_indices)
    around = [(p, p) for p in _pair(padding)]
    return _slid(input, _pair(kernel_size), stride or kernel_size, around, dilation, ceil_mode)


def avg_pool2d(
    input: Value, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Value:  # fmt: skip
    return max_pool2d(input, kernel_size, stride, padding, ceil_mode=ceil_mode)


def adaptive_pool2d(input: Value, output_size: Any, return_indices: bool = False) -> Value:
    _without_indices(return_indices)
    sizes = [n if m is None else m for n, m in zip(input.shape[2:], _pair(output_size), strict=True)]
    input = reduce(input, [2 + which for which, m in enumerate(sizes) if m == 1], keepdim=True)
    windows = []
    for n, m in zip(input.shape[2:], sizes, strict=True):
        i = np.arange(m)
        windows.append(_between(i * n // m, -((i + 1) * n // -m) - 1, n / m))
    return slide(input, windows)


def interpolate(
    input: Value, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None, antialias: bool = False,
) -> Value:  # fmt: skip
    if mode not in ("nearest", "nearest-exact", "bilinear") or antialias:
        raise ConfigError(f"mode {mode!r}{' with antialias' if antialias else ''} is not supported")
    windows = []
    for n, m, scale in zip(input.shape[2:], _pair(size), _pair(scale_factor), strict=True):
        m = m or math.floor(n * scale)
        step = 1 / scale if scale and not recompute_scale_factor else n / m
        i = np.arange(m)
        if mode == "nearest":
            first = last = i * step
        elif mode == "nearest-exact":
            first = last = (i + 0.5) * step
        else:
            step = (n - 1) / max(m - 1, 1) if align_corners else step
            source = i * step if align_corners else (i + 0.5) * step - 0.5
            first, last = source, np.ceil(source)
        first, last = (np.floor(index).clip(0, n - 1).astype(np.int64) for index in (first, last))
        windows.append(_between(first, last, step))
    return slide(input, windows)


def pad(input: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Value:
    if mode == "circular":
        raise ConfigError("mode 'circular' is not supported: what a cell sees is no interval")
    around = [(0, 0)] * len(input.shape)
    for dim, pair in enumerate(zip(pad[::2], pad[1::2], strict=True), start=1):
        around[-dim] = pair
    rest = [dim for dim, pair in enumerate(around) if any(pair) and dim not in (2, 3)]
    if any(axis.dim in rest for axis in input.axes):
        raise ConfigError(f"pads {' or '.join(NAMES)} that are not in dimensions 2 and 3 of [B, C, H, W]")
    shape = tuple(n + sum(around[dim]) if dim in rest else n for dim, n in enumerate(input.shape))
    padded = Value(shape, input.axes)
    if not any(map(any, around[2:])):
        return padded
    windows = []
    for n, (before, after) in zip(input.shape[2:], around[2:], strict=True):
        source = np.arange(-before, n + after)
        if mode == "reflect":
            source = n - 1 - abs(n - 1 - abs(source))
        elif mode == "replicate":
            source = source.clip(0, n - 1)
        windows.append(Window(_inside(source, n)[:, None], -before, -before, 1))
    return slide(padded, windows)


def same_conv2d(input: Value, weight: Any, stride: Pair = 1, dilation: Pair = 1) -> Value:
    """As TensorFlow pads: as much as the size of this input needs."""
    kernel = weight.shape[2:]
    return _slid(input, kernel, stride, _same(input, kernel, stride, dilation), dilation, channels=weight.shape[0])


def same_pool2d(input: Value, kernel_size: Pair, stride: Pair, dilation: Pair = 1, ceil_mode: bool = False) -> Value:
    kernel = _pair(kernel_size)
    return _slid(input, kernel, stride, _same(input, kernel, stride, dilation), dilation, ceil_mode)


def _slid(
    input: Value, kernel: Sequence[int], stride: Pair, around: Sequence[tuple[int, int]], dilation: Pair,
    ceil_mode: bool = False, channels: int | None = None,
) -> Value:  # fmt: skip
    """Through windows of ``kernel`` taps, ``around``: padding (before, after) of each axis."""
    options = zip(input.shape[2:], kernel, _pair(stride), around, _pair(dilation), strict=True)
    return slide(input, [_window(n, k, s, *pair, d, ceil_mode) for n, k, s, pair, d in options], channels)


@lru_cache(maxsize=256)  # the layers of a network have few different ones
def _window(n: int, k: int, s: int, before: int, after: int, d: int, ceil_mode: bool) -> Window:
    over = n + before + after - d * (k - 1) - 1
    if over < 0:
        raise ConfigError(
            f"the input is too small: a window of {d * (k - 1) + 1} does not fit into the {n} cells that are left"
        )
    m = (-(over // -s) if ceil_mode else over // s) + 1
    if ceil_mode and (m - 1) * s >= n + before:  # the last window starts within the map or the padding before it
        m -= 1
    children = np.arange(m)[:, None] * s - before + d * np.arange(k)
    return Window(_inside(children, n), -before, d * (k - 1) - before, s)


def _inside(children: np.ndarray, n: int) -> np.ndarray:
    return np.where((0 <= children) & (children < n), children, -1)


def _between(first: np.ndarray, last: np.ndarray, step: float) -> Window:
    """All children from ``first`` [m] to ``last`` [m], inclusive."""
    children = first[:, None] + np.arange((last - first).max() + 1)
    even = step * np.arange(len(first))
    children = np.where(children <= last[:, None], children, -1)
    return Window(children, float((first - even).min()), float((last - even).max()), step)


def _same(input: Value, kernel: Sequence[int], stride: Pair, dilation: Pair) -> list[tuple[int, int]]:
    options = zip(input.shape[2:], kernel, _pair(stride), _pair(dilation), strict=True)
    return [_halves(max((-(n // -s) - 1) * s + d * (k - 1) + 1 - n, 0)) for n, k, s, d in options]


def _halves(total: int) -> tuple[int, int]:
    return total // 2, total - total // 2


def _pair(option: Any) -> tuple[Any, Any]:
    if isinstance(option, (int, float)) or option is None:
        return option, option
    return tuple(option) if len(option) == 2 else tuple(option) * 2


def _without_indices(return_indices: bool) -> None:
    if return_indices:
        raise ConfigError("return_indices is not supported")
