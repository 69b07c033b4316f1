"""What each operation of PyTorch does to the dependence of its values on the input (spec pixpnet, section 3.3).

Operations are found by function, method or module, and an operation without a rule is never guessed. Everything is as
in evaluation: normalisation by running statistics changes nothing, normalisation over a map mixes it.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.config import ConfigError
from helpers.prototypes import window_rules as windows
from helpers.prototypes.dependence import Value, combine, constant, join, mix, permute, pick, reduce, reshape

Rule = Callable[..., Any]


def pointwise(*args: Any, **kwargs: Any) -> Value:
    """Whatever is elementwise; parameters and numbers beside it add nothing but their shape."""
    return combine([_value(x) for x in (*args, *kwargs.values()) if isinstance(x, (Value, Tensor))])


# what mixes


def linear(input: Value, weight: Any, bias: Any = None) -> Value:
    return Value((*input.shape[:-1], weight.shape[0]), mix(input, [-1]).axes)


def conv1d(input: Value, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
           groups: int = 1) -> Value:  # fmt: skip
    """Along channels, as in efficient channel attention."""
    if any(axis.dim is not None for axis in input.axes):
        raise ConfigError("of a map is not supported")
    made = F.conv1d(_meta(input), torch.empty(weight.shape, device="meta"), None, stride, padding, dilation, groups)
    return Value(tuple(made.shape), input.axes)


def layer_norm(input: Value, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None,
               eps: float | None = None) -> Value:  # fmt: skip
    return mix(input, range(-len(normalized_shape), 0))


def group_norm(input: Value, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Value:
    return mix(input, range(1, len(input.shape)))


def batch_norm(input: Value, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
               training: bool = False, momentum: Any = 0.1, eps: float = 1e-5) -> Value:  # fmt: skip
    return input if running_mean is not None and not training else mix(input, range(2, len(input.shape)))


def instance_norm(input: Value, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
                  use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5) -> Value:  # fmt: skip
    return batch_norm(input, running_mean, running_var, training=use_input_stats)


def along(input: Value, dim: Any, *args: Any, **kwargs: Any) -> Value:
    """softmax and the like."""
    return mix(input, _dims(dim))


def normalize(input: Value, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None) -> Value:
    return mix(input, _dims(dim))


def reduced(input: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None, unbiased: Any = None,
            correction: Any = None) -> Value:  # fmt: skip
    return reduce(input, _dims(dim), keepdim)


def norm(input: Value, p: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    return reduce(input, _dims(dim), keepdim)


def extremum(input: Value, dim: Any = None, keepdim: bool = False) -> Value | tuple[Value, Value]:
    if isinstance(dim, (Value, Tensor)):  # of two tensors
        return pointwise(input, dim)
    found = reduce(input, _dims(dim), keepdim)
    return found if dim is None else (found, found)


def matmul(input: Any, other: Any) -> Value:
    """With parameters: sums over a dimension. Of two values, as in attention: everything."""
    shape = tuple((_meta(input) @ _meta(other)).shape)
    both = isinstance(input, Value) and isinstance(other, Value)
    parts = [mix(x, None if both else [dim]) for x, dim in ((input, -1), (other, -2)) if isinstance(x, Value)]
    return Value(shape, combine([_leading(part, len(shape), keep=not both) for part in parts]).axes)


def attention(query: Value, key: Value, value: Value, attn_mask: Any = None, dropout_p: float = 0.0,
              is_causal: bool = False, scale: Any = None, enable_gqa: bool = False) -> Value:  # fmt: skip
    """Of every token to every other."""
    parts = [_leading(mix(x), 0, keep=False) for x in (query, key, value)]
    return Value((*query.shape[:-1], value.shape[-1]), combine(parts).axes)


# what moves


def cat(tensors: Sequence[Any], dim: int = 0) -> Value:
    return join([_value(tensor) for tensor in tensors], dim)


def stack(tensors: Sequence[Any], dim: int = 0) -> Value:
    return join([unsqueeze(_value(tensor), dim) for tensor in tensors], dim)


def view(input: Value, *shape: Any) -> Value:
    return reshape(input, _listed(shape))


def flatten(input: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    start, end = start_dim % len(input.shape), end_dim % len(input.shape)
    return reshape(input, [*input.shape[:start], math.prod(input.shape[start : end + 1]), *input.shape[end + 1 :]])


def unflatten(input: Value, dim: int, sizes: Sequence[int]) -> Value:
    dim %= len(input.shape)
    return reshape(input, [*input.shape[:dim], *sizes, *input.shape[dim + 1 :]])


def permuted(input: Value, *dims: Any) -> Value:
    return permute(input, _listed(dims))


def transpose(input: Value, dim0: int, dim1: int) -> Value:
    order = list(range(len(input.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute(input, order)


def unsqueeze(input: Value, dim: int) -> Value:
    dim %= len(input.shape) + 1
    return reshape(input, [*input.shape[:dim], 1, *input.shape[dim:]])


def squeeze(input: Value, dim: Any = None) -> Value:
    dims = [d % len(input.shape) for d in _dims(dim) or range(len(input.shape))]
    return reshape(input, [n for d, n in enumerate(input.shape) if n != 1 or d not in dims])


def expand(input: Value, *sizes: Any) -> Value:
    sizes = _listed(sizes)
    old = (1,) * (len(sizes) - len(input.shape)) + tuple(input.shape)
    return combine([input, constant([n if m == -1 else m for n, m in zip(old, sizes, strict=True)])])


def expand_as(input: Value, other: Any) -> Value:
    return expand(input, *other.shape)


def split(input: Value, sizes: Any, dim: int = 0) -> tuple[Value, ...]:
    dim %= len(input.shape)
    n, parts, first = input.shape[dim], [], 0
    for size in [sizes] * -(n // -sizes) if isinstance(sizes, int) else sizes:
        parts.append(pick(input, dim, slice(first, first + size)))
        first += size
    return tuple(parts)


def chunk(input: Value, chunks: int, dim: int = 0) -> tuple[Value, ...]:
    return split(input, math.ceil(input.shape[dim] / chunks), dim)


def unbind(input: Value, dim: int = 0) -> tuple[Value, ...]:
    return tuple(squeeze(part, dim) for part in split(input, 1, dim))


def getitem(input: Any, items: Any) -> Any:
    if not isinstance(input, Value):
        return input[items]
    items = list(items) if isinstance(items, tuple) else [items]
    if not all(item is None or item is Ellipsis or isinstance(item, (int, slice)) for item in items):
        raise ConfigError("supports only numbers, slices, None and ... as indices")
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (len(input.shape) - sum(i not in (None, Ellipsis) for i in items))
    dim = 0
    for item in items:
        input = unsqueeze(input, dim) if item is None else pick(input, dim, item)
        input = squeeze(input, dim) if isinstance(item, int) else input
        dim += not isinstance(item, int)
    return input


def size(input: Value, dim: int | None = None) -> Any:
    return torch.Size(input.shape) if dim is None else input.shape[dim]


def attribute(input: Any, name: str) -> Any:
    if not isinstance(input, Value):
        return getattr(input, name)
    if name not in ("shape", "ndim", "device", "dtype", "is_cuda", "requires_grad"):
        raise ConfigError(f"of {name!r} is not supported")
    return getattr(_meta(input), name)


# modules whose options do not have the names of their function's


def _running_norm(module: nn.Module, input: Value) -> Value:
    return batch_norm(input, module.running_mean, module.running_var)


def _padded(mode: str) -> Rule:
    return lambda module, input: windows.pad(input, module.padding, mode)


def _multihead(module: nn.MultiheadAttention, query: Value, key: Value, value: Value, *args: Any, **kwargs: Any):
    attended = attention(query, key, value)
    return Value(query.shape, attended.axes), attended


def _by_options(rule: Rule) -> Rule:
    """The rule of a function for the module that keeps its options under the same names."""
    names = list(inspect.signature(rule).parameters)[1:]
    return lambda module, input: rule(input, **{name: getattr(module, name) for name in names if hasattr(module, name)})


POINTWISE = """
    relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish sigmoid logsigmoid tanh softplus softsign tanhshrink
    softshrink hardshrink threshold hardswish hardsigmoid hardtanh add iadd sub isub rsub mul imul div truediv itruediv
    true_divide floordiv pow neg pos abs exp log log1p sqrt rsqrt square reciprocal erf clamp clamp_min clamp_max clip
    maximum minimum where addcmul lerp dropout dropout2d alpha_dropout local_response_norm contiguous clone detach to
    type type_as float half double bfloat16 masked_fill"""
NAMED: dict[str, Rule] = dict.fromkeys(POINTWISE.split(), pointwise) | {
    "conv2d": windows.conv2d, "conv_transpose2d": windows.conv_transpose2d, "conv1d": conv1d,
    "max_pool2d": windows.max_pool2d, "avg_pool2d": windows.avg_pool2d, "interpolate": windows.interpolate,
    "adaptive_avg_pool2d": windows.adaptive_pool2d, "adaptive_max_pool2d": windows.adaptive_pool2d, "pad": windows.pad,
    "linear": linear, "matmul": matmul, "bmm": matmul, "scaled_dot_product_attention": attention,
    "layer_norm": layer_norm, "rms_norm": layer_norm, "group_norm": group_norm, "batch_norm": batch_norm,
    "instance_norm": instance_norm, "softmax": along, "log_softmax": along, "normalize": normalize,
    "mean": reduced, "sum": reduced, "amax": reduced, "amin": reduced, "std": reduced, "var": reduced, "norm": norm,
    "max": extremum, "min": extremum,
    "cat": cat, "concat": cat, "concatenate": cat, "stack": stack, "view": view, "reshape": view, "flatten": flatten,
    "unflatten": unflatten, "permute": permuted, "transpose": transpose, "swapaxes": transpose, "squeeze": squeeze,
    "unsqueeze": unsqueeze, "expand": expand, "expand_as": expand_as, "split": split, "chunk": chunk, "unbind": unbind,
    "getitem": getitem, "size": size, "dim": lambda input: len(input.shape), "_assert": lambda *args: None,
}  # fmt: skip
FUNCTIONS: dict[Any, Rule] = {getattr: attribute} | {
    getattr(space, made): rule
    for name, rule in NAMED.items()
    for made in (name, f"{name}_")  # in place
    for space in (torch, F, operator)
    if hasattr(space, made)
}
POINTWISE_MODULES = """
    ReLU ReLU6 LeakyReLU PReLU RReLU ELU SELU CELU GELU SiLU Mish Sigmoid LogSigmoid Tanh Softplus Softsign Tanhshrink
    Softshrink Hardshrink Threshold Hardswish Hardsigmoid Hardtanh Identity Dropout Dropout1d Dropout2d AlphaDropout
    FeatureAlphaDropout LocalResponseNorm StochasticDepth DropPath"""
MODULES: dict[str, Rule] = {
    **dict.fromkeys(POINTWISE_MODULES.split(), lambda module, input: input),
    "Conv2d": _by_options(windows.conv2d), "ConvTranspose2d": _by_options(windows.conv_transpose2d),
    "Conv1d": _by_options(conv1d), "MaxPool2d": _by_options(windows.max_pool2d),
    "AvgPool2d": _by_options(windows.avg_pool2d), "AdaptiveAvgPool2d": _by_options(windows.adaptive_pool2d),
    "AdaptiveMaxPool2d": _by_options(windows.adaptive_pool2d), "Upsample": _by_options(windows.interpolate),
    "UpsamplingNearest2d": _by_options(windows.interpolate), "UpsamplingBilinear2d": _by_options(windows.interpolate),
    "ZeroPad2d": _padded("constant"), "ConstantPad2d": _padded("constant"), "ReflectionPad2d": _padded("reflect"),
    "ReplicationPad2d": _padded("replicate"), "Linear": _by_options(linear), "MultiheadAttention": _multihead,
    "BatchNorm1d": _running_norm, "BatchNorm2d": _running_norm, "SyncBatchNorm": _running_norm,
    "InstanceNorm2d": _running_norm, "GroupNorm": _by_options(group_norm), "LayerNorm": _by_options(layer_norm),
    "RMSNorm": _by_options(layer_norm), "Softmax": _by_options(along), "LogSoftmax": _by_options(along),
    "Softmax2d": lambda module, input: mix(input, [1]), "Flatten": _by_options(flatten),
    "Unflatten": lambda module, input: unflatten(input, module.dim, module.unflattened_size),
    **dict.fromkeys(("Conv2dSame", "StdConv2dSame", "ScaledStdConv2dSame"), _by_options(windows.same_conv2d)),
    **dict.fromkeys(("MaxPool2dSame", "AvgPool2dSame"), _by_options(windows.same_pool2d)),
}  # fmt: skip


def rule_of(operation: Any) -> Rule | None:
    """The rule of a function, of a method's name or of a module (whose rule takes the module first)."""
    if isinstance(operation, str):
        return NAMED.get(operation) or NAMED.get(operation.removesuffix("_"))
    if isinstance(operation, nn.Module):
        known = type(operation).__module__.split(".")[0] in ("torch", "torchvision", "timm")
        return MODULES.get(type(operation).__name__) if known else None
    return FUNCTIONS.get(operation)


def _value(tensor: Any) -> Value:
    return tensor if isinstance(tensor, Value) else constant(tensor.shape)


def _meta(tensor: Any) -> Tensor:
    return torch.empty(tuple(tensor.shape), device="meta")


def _dims(dim: Any) -> list[int] | None:
    return [dim] if isinstance(dim, int) else dim


def _listed(arguments: tuple) -> list[int]:
    """``f(2, 3)`` and ``f((2, 3))`` are the same."""
    return list(arguments[0] if len(arguments) == 1 and not isinstance(arguments[0], int) else arguments)


def _leading(value: Value, ndim: int, keep: bool) -> Value:
    """With dimensions of size 1 in front until there are ``ndim``; without ``keep`` nothing but what it depends on."""
    return reshape(value, [1] * (ndim - len(value.shape)) + list(value.shape)) if keep else Value((), value.axes)
