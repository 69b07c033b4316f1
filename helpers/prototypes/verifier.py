"""A numeric check of `receptive_field`: what a cell's gradient reaches in a copy of the network in which nothing can
cancel (spec pixpnet, section 3.3).

In that copy convolutions are means over their windows and pools too, products and sums are means of their operands,
activations and running norms are left out, and norms that look around add the mean of what they look at. All of it is
linear with weights that are not negative, so that the gradient of a cell, summed over channels, is positive at the
pixels that can reach it and zero elsewhere. It shares no code with the intervals.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from helpers.config import ConfigError
from helpers.prototypes.layer_rules import POINTWISE_MODULES
from helpers.prototypes.receptive_field import OUTPUT, receptive_fields
from helpers.prototypes.tracing import cut, in_place, input_channels, trace

SAME = """relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid logsigmoid tanh softplus softsign hardswish
    hardsigmoid hardtanh clamp dropout dropout2d batch_norm neg pow exp log sqrt rsqrt abs square"""
OPERANDS = "add iadd sub isub mul imul div truediv itruediv maximum minimum"

Cell = tuple[int, int]


@dataclass(frozen=True)
class Disagreement:
    """A cell whose gradient reaches other pixels than its receptive field holds."""

    cell: Cell
    expected: tuple[int, int, int, int]  # the receptive field: y0, y1, x0, x1
    found: tuple[int, int, int, int]  # the smallest box around the pixels reached
    holes: int  # pixels within it that are not reached


def verify(
    module: nn.Module,
    input_size: int | tuple[int, int],
    stage: str = OUTPUT,
    cells: Sequence[Cell] | None = None,
    thin: bool = False,
    holes: bool = False,
) -> list[Disagreement]:
    """The ``cells`` (default: corners, middles of the edges, centre) of a stage's map in which gradient and receptive
    field differ; empty: they agree.

    ``thin``: one channel a convolution, a hundred times faster; only for networks that never take channels apart.
    ``holes``: pixels that are not reached within the box are no disagreement (dilation and wide strides leave them).
    Raises `ConfigError` as `receptive_fields` does, and for a stage without a map.
    """
    field = receptive_fields(module, input_size)[stage]
    network = trace(module) if stage == OUTPUT else cut(module, stage)
    cells = landmarks(*field.size) if cells is None else list(cells)
    found = []
    for cell, mask in zip(cells, support(network, field.input_size, cells, thin), strict=True):
        box, expected = bounding_box(mask), field.box(*cell)
        missing = _area(box) - int(mask.sum())
        same = box == expected or _area(box) == _area(expected) == 0
        if not same or (missing and not holes):
            found.append(Disagreement(cell, expected, box, missing))
    return found


def support(network: nn.Module, size: tuple[int, int], cells: Sequence[Cell], thin: bool = False) -> Tensor:
    """bool [cells, H, W]: the pixels that the gradient of each cell of the network's output map reaches."""
    traced = trace(network)
    shape = (len(cells), input_channels(traced), *size)
    image = torch.ones(shape, dtype=torch.float64, requires_grad=True)  # deep networks: 1e-100 counts
    output = _Positive(traced, thin).run(image)
    if not isinstance(output, Tensor) or output.dim() != 4:
        raise ConfigError("the network's output is no map [B, C, H, W]")
    rows, columns = torch.tensor(cells).T
    total = output[torch.arange(len(cells)), :, rows, columns].sum()
    (gradient,) = torch.autograd.grad(total, image) if total.requires_grad else (torch.zeros_like(image),)
    return (gradient != 0).any(dim=1)


def landmarks(height: int, width: int) -> list[Cell]:
    """Corners, middles of the edges and the centre of a map."""
    return sorted({(i, j) for i in (0, height // 2, height - 1) for j in (0, width // 2, width - 1)})


def bounding_box(mask: Tensor) -> tuple[int, int, int, int]:
    """y0, y1, x0, x1 of the true elements of [H, W], half-open; zeros if there are none."""
    edges = []
    for dim in (1, 0):
        hit = mask.any(dim=dim).nonzero().flatten().tolist()
        edges += [hit[0], hit[-1] + 1] if hit else [0, 0]
    return tuple(edges)


def _area(box: tuple[int, int, int, int]) -> int:
    return (box[1] - box[0]) * (box[3] - box[2])


class _Positive(fx.Interpreter):
    """Runs that copy. What it has no rule for is run as it is: views, concatenations, padding, resizing."""

    def __init__(self, traced: fx.GraphModule, thin: bool) -> None:
        super().__init__(traced)
        self.thin = thin

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if in_place(n):
            self.env[n.args[0]] = result
        return result

    def get_attr(self, target: str, args: tuple, kwargs: dict) -> Any:
        found = super().get_attr(target, args, kwargs)
        return torch.ones(found.shape, dtype=torch.float64) if isinstance(found, Tensor) else found

    def call_module(self, target: str, args: tuple, kwargs: dict) -> Any:
        module, x = self.fetch_attr(target), args[0]
        kind = type(module).__name__
        if kind in POINTWISE_MODULES.split() or kind in ("BatchNorm1d", "BatchNorm2d", "SyncBatchNorm"):
            return x
        if kind in MODULES:
            return MODULES[kind](module, *args)
        if self.thin and isinstance(module, nn.Conv2d):
            x, m = x.mean(1, keepdim=True), module
            options = m.kernel_size, m.stride, m.padding, m.dilation, 1, False, m.padding_mode
            return _positive(nn.Conv2d(1, 1, *options))(x)
        if self.thin and isinstance(module, nn.Linear):
            return x.mean(-1, keepdim=True)
        return _positive(module)(*args, **kwargs)

    def call_function(self, target: Any, args: tuple, kwargs: dict) -> Any:
        found = FUNCTIONS.get(getattr(target, "__name__", ""))
        if found is None or not any(isinstance(x, Tensor) for x in (*args, *kwargs.values())):
            return super().call_function(target, args, kwargs)
        return found(*args, **kwargs)

    def call_method(self, target: str, args: tuple, kwargs: dict) -> Any:
        found = FUNCTIONS.get(target.removesuffix("_"))
        return found(*args, **kwargs) if found else super().call_method(target, args, kwargs)


def _positive(module: nn.Module) -> nn.Module:
    """A copy whose weights take means and that adds nothing."""
    made = copy.deepcopy(module).to_empty(device="cpu").double()
    with torch.no_grad():
        for weight in made.parameters():
            weight.fill_(1 / math.prod(weight.shape[1:]) if weight.dim() > 1 else 0.0)
    return made


def _same(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x


def _average(*args: Any, **kwargs: Any) -> Tensor:
    """Of all operands, broadcast."""
    operands = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    return sum(operands) / len(operands)


def _with_mean(x: Tensor, dims: Sequence[int] | int) -> Tensor:
    return x + x.mean(dims if isinstance(dims, int) else tuple(dims), keepdim=True)


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
    return x.mean(dim, keepdim=keepdim)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """[..., n, m]: element (i, j) from row i of ``a`` and column j of ``b``."""
    return (a.mean(-1, keepdim=True) + b.mean(-2, keepdim=True)) / 2


def _attended(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """How much of which value a query takes depends on all of that query and on all keys."""
    return query.mean(-1, keepdim=True) + key.mean((-2, -1), keepdim=True) + value.mean(-2, keepdim=True)


def _multihead(module: nn.MultiheadAttention, *tokens: Tensor) -> tuple[Tensor, None]:
    query, key, value = tokens[:3]
    dims = (-2, -1) if module.batch_first else (0, -1)
    seen = query.mean(-1, keepdim=True) + (key + value).mean(dims, keepdim=True)
    return seen.expand(query.shape), None


def _convolved(x: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    return F.conv2d(x, torch.ones_like(weight) / math.prod(weight.shape[1:]), None, *args, **kwargs)


def _max_pooled(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:  # fmt: skip
    """Means over exactly the windows of `F.max_pool2d`, which says how many there are."""
    stride = stride or kernel_size
    sizes = F.max_pool2d(x.detach(), kernel_size, stride, padding, dilation, ceil_mode).shape[2:]
    kernel, stride, padding, dilation = map(nn.modules.utils._pair, (kernel_size, stride, padding, dilation))
    around: list[int] = []
    for n, m, k, s, p, d in zip(x.shape[2:], sizes, kernel, stride, padding, dilation, strict=True):
        around = [p, (m - 1) * s + d * (k - 1) + 1 - n - p, *around]  # of the last dimension first
    weight = torch.ones(x.shape[1], 1, *kernel, dtype=x.dtype) / math.prod(kernel)
    return F.conv2d(F.pad(x, around), weight, None, stride, 0, dilation, groups=x.shape[1])


def _average_pooled(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, *rest: Any,
    **options: Any,
) -> Tensor:  # fmt: skip
    return _max_pooled(x, kernel_size, stride, padding, 1, ceil_mode)


MODULES = {
    "MaxPool2d": lambda m, x: _max_pooled(x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode),
    "AvgPool2d": lambda m, x: _average_pooled(x, m.kernel_size, m.stride, m.padding, m.ceil_mode),
    "AdaptiveMaxPool2d": lambda m, x: F.adaptive_avg_pool2d(x, m.output_size),
    "LayerNorm": lambda m, x: _with_mean(x, range(-len(m.normalized_shape), 0)),
    "GroupNorm": lambda m, x: _with_mean(x, range(1, x.dim())),
    "InstanceNorm2d": lambda m, x: x if m.track_running_stats else _with_mean(x, (2, 3)),
    "Softmax": lambda m, x: _with_mean(x, m.dim),
    "MultiheadAttention": _multihead,
}
FUNCTIONS = (
    dict.fromkeys(SAME.split(), _same)
    | dict.fromkeys(OPERANDS.split(), _average)
    | dict.fromkeys("amax amin max min std var".split(), _mean)
    | {
        "conv2d": _convolved,
        "max_pool2d": _max_pooled,
        "avg_pool2d": _average_pooled,
        "adaptive_max_pool2d": F.adaptive_avg_pool2d,
        "matmul": _product,
        "bmm": _product,
        "scaled_dot_product_attention": _attended,
        "layer_norm": lambda x, shape, *args, **kwargs: _with_mean(x, range(-len(shape), 0)),
        "group_norm": lambda x, *args, **kwargs: _with_mean(x, range(1, x.dim())),
        "softmax": lambda x, dim, *args, **kwargs: _with_mean(x, dim),
        "normalize": lambda x, p=2.0, dim=1, *args, **kwargs: _with_mean(x, dim),
        "norm": lambda x, p=2.0, dim=None, keepdim=False: x.mean(dim, keepdim=keepdim),
    }
)
