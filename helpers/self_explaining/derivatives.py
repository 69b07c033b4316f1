"""Layers whose second derivatives are as fast as their first.

A loss of an input gradient is sent back through the backward pass of every layer. PyTorch takes the weight gradient in
there as a convolution with a kernel as large as the image, for which neither oneDNN nor cuDNN has a fast way. But a
convolution, the gradient to its input and the gradient to its weight are three bilinear maps, and each derivative of
one is another of the three:

    y = conv(x, w)      dx = to_input(g, w)      dw = to_weight(g, x)

Inside `fast`, nets are made of these, and of ReLUs and means that are their own derivatives. On the CPU all of them
keep channels last in memory, which oneDNN is made for. Values and derivatives are those of PyTorch's own layers, up to
float rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

_backward = torch.ops.aten.convolution_backward
_pool_backward = torch.ops.aten.avg_pool2d_backward

Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]  # stride, padding, dilation, groups


class fast(TorchFunctionMode):
    """Convolutions, ReLUs and average pooling that are called inside, also by modules, are those of this module; so are
    the derivatives of what was computed inside, whenever they are taken."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _REPLACED.get(func, func)(*args, **(kwargs or {}))


def at_once(where: torch.device) -> int:
    """How many images go through a net at a time where no result depends on it: on a CPU few, so that their layers stay
    in its cache."""
    return 64 if where.type == "cpu" else 4096


def conv2d(
    x: Tensor, w: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups=1
) -> Tensor:
    """`torch.nn.functional.conv2d`, of batches."""
    if isinstance(padding, str) or x.ndim != 4:
        return F.conv2d(x, w, bias, stride, padding, dilation, groups)
    geometry = (_pair(stride), _pair(padding), _pair(dilation), groups)
    return _Convolution.apply(_laid_out(x), _laid_out(w), bias, geometry)


def avg_pool2d(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode=False, count_include_pad=True,
    divisor_override=None,
) -> Tensor:  # fmt: skip
    """`torch.nn.functional.avg_pool2d`."""
    kernel = _pair(kernel_size)
    options = (kernel, _pair(stride) if stride else kernel, _pair(padding), ceil_mode, count_include_pad)
    return _Mean.apply(_laid_out(x), (*options, divisor_override))


def relu(x: Tensor, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.relu`, never in place."""
    return _Rectified.apply(x)


class _Convolution(Function):
    """conv(x, w), and a bias."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        return torch.conv2d(x, w, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, w, _, geometry = inputs
        _remember(ctx, x, w, geometry)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w, geometry, g = *ctx.saved_tensors, ctx.geometry, _laid_out(g)
        dx = _ToInput.apply(g, w, x.detach(), geometry) if _wanted(ctx, 0) else None
        dw = _ToWeight.apply(g, x, w.detach(), geometry) if _wanted(ctx, 1) else None
        return dx, dw, g.sum((0, 2, 3)) if _wanted(ctx, 2) else None, None


class _ToInput(Function):
    """to_input(g, w), of the shape of ``x``, which is detached: an edge to it would carry zeros back, all the way."""

    @staticmethod
    def forward(g: Tensor, w: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        return _gradient(g, x, w, geometry, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        g, w, x, geometry = inputs
        _remember(ctx, g, w, geometry)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        g, w, geometry, d = *ctx.saved_tensors, ctx.geometry, _laid_out(d)
        dg = _Convolution.apply(d, w, None, geometry) if _wanted(ctx, 0) else None
        return dg, _ToWeight.apply(g, d, w.detach(), geometry) if _wanted(ctx, 1) else None, None, None


class _ToWeight(Function):
    """to_weight(g, x), of the shape of ``w``, which is detached."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        return _gradient(g, x, w, geometry, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        g, x, w, geometry = inputs
        _remember(ctx, g, x, geometry)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        g, x, geometry, d = *ctx.saved_tensors, ctx.geometry, _laid_out(d)
        dg = _Convolution.apply(x, d, None, geometry) if _wanted(ctx, 0) else None
        return dg, _ToInput.apply(g, d, x.detach(), geometry) if _wanted(ctx, 1) else None, None, None


class _Mean(Function):
    """Average pooling: linear, and so is `_Spread`, its transpose."""

    @staticmethod
    def forward(x: Tensor, options: tuple) -> Tensor:
        return torch._C._nn.avg_pool2d(x, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.shape, ctx.options = inputs[0].shape, inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _Spread.apply(_laid_out(g), ctx.shape, ctx.options), None


class _Spread(Function):
    """The gradient of average pooling to its input of ``shape``."""

    @staticmethod
    def forward(g: Tensor, shape: torch.Size, options: tuple) -> Tensor:
        kernel, stride, padding, *_ = options
        if kernel == stride and padding == (0, 0) and shape[2:] == (g.shape[2] * kernel[0], g.shape[3] * kernel[1]):
            size = options[-1] or kernel[0] * kernel[1]
            return F.interpolate(g / size, scale_factor=kernel)  # unlike the other, it writes no zeros first
        like = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=_memory_format(g))
        return _pool_backward(g, like, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.options = inputs[2]

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None, None]:
        return _Mean.apply(_laid_out(d), ctx.options), None, None


class _Rectified(Function):
    """x where it is positive."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.clamp_min(x, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _Passed.apply(g, ctx.saved_tensors[0].detach())


class _Passed(Function):
    """g where ``y``, which is detached, is positive. PyTorch's own sends zeros back to it."""

    @staticmethod
    def forward(g: Tensor, y: Tensor) -> Tensor:
        return torch.ops.aten.threshold_backward(g, y, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:
        return _Passed.apply(d, *ctx.saved_tensors), None


_REPLACED = {F.conv2d: conv2d, F.avg_pool2d: avg_pool2d, F.relu: relu, torch.relu: relu}


def _wanted(ctx: Any, index: int) -> bool:
    """Will the derivative to input ``index`` be used? Torch asks a Function for all that could be, its own layers only
    for what was: an input gradient without the weights' costs two thirds."""
    if not ctx.needs_input_grad[index]:
        return False
    try:
        return torch._C._will_engine_execute_node(ctx.next_functions[index][0])
    except RuntimeError:  # it is a leaf, and asked for
        return True


def _gradient(g: Tensor, x: Tensor, w: Tensor, geometry: Geometry, which: int) -> Tensor:
    """To the input (0) or to the weight (1) of a convolution."""
    stride, padding, dilation, groups = geometry
    mask = [which == 0, which == 1, False]
    return _backward(g, x, w, None, stride, padding, dilation, False, (0, 0), groups, mask)[which]


def _remember(ctx: Any, one: Tensor, other: Tensor, geometry: Geometry) -> None:
    ctx.save_for_backward(one, other)
    ctx.geometry = geometry


def _laid_out(t: Tensor) -> Tensor:
    """``t`` in the order in memory that convolutions are fastest in."""
    if t.device.type != "cpu":
        return t.contiguous()
    t = t.contiguous(memory_format=torch.channels_last)
    if t.shape[1] == 1 and t.stride(1) != 1:  # one channel lies both ways; oneDNN goes by the strides
        t = t.reshape(len(t), *t.shape[2:], 1).permute(0, 3, 1, 2)
    return t


def _memory_format(t: Tensor) -> torch.memory_format:
    return torch.channels_last if t.device.type == "cpu" else torch.contiguous_format


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return tuple(value) if len(value) > 1 else (value[0], value[0])
