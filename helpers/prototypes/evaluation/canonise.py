"""A network as few kinds of operations, for methods that need a rule for each kind.

    copy = canonise(model.features)      # an fx.GraphModule that computes what the network does in evaluation mode
    copy(x)

However a network is written (modules, functions, methods, in place or not), what computes is a module in the copy:
`Convolution`, `Elementwise`, `Sum`, `Average`, `Maximum` or `Concatenation`. All else merely moves values (views,
slices, padding) or is about sizes. Batch normalisation is folded into the convolution before it if nobody else takes
that one's output; elsewhere, as in DenseNet after concatenations, it is `Elementwise`.
"""

from __future__ import annotations

import copy
from collections import ChainMap
from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from operator import attrgetter, methodcaller
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.utils import _pair

from helpers.config import ConfigError
from helpers.prototypes.layer_rules import rule_of
from helpers.prototypes.tracing import OPAQUE, in_place, owner, trace

# By name, in small letters and without underscores: nn.LeakyReLU, F.leaky_relu and Tensor.leaky_relu_ are one.
ACTIVATIONS = """relu relu6 leakyrelu prelu elu selu celu gelu silu mish hardswish hardtanh sigmoid tanh softplus clamp
    clampmin clampmax""".split()
ARITHMETIC = "add iadd sub isub mul imul div truediv itruediv".split()
NOTHING = "identity dropout dropout1d dropout2d alphadropout stochasticdepth droppath clone detach".split()
NORMS = "batchnorm batchnorm2d syncbatchnorm".split()
MOVES = """view reshape flatten unflatten permute transpose swapaxes squeeze unsqueeze getitem contiguous pad
    zeropad2d reflectionpad2d replicationpad2d""".split()
SEVERAL = "chunk split unbind".split()
SIZES = "size dim getattr".split()
POOLS = {
    "maxpool2d": (F.max_pool2d, "kernel_size stride padding dilation ceil_mode"),
    "avgpool2d": (F.avg_pool2d, "kernel_size stride padding ceil_mode count_include_pad divisor_override"),
    "adaptivemaxpool2d": (F.adaptive_max_pool2d, "output_size"),
    "adaptiveavgpool2d": (F.adaptive_avg_pool2d, "output_size"),
}
CONVOLUTION = dict(weight=None, bias=None, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros")


class Convolution(nn.Module):
    """As `F.conv2d`; ``padding``: zeros, as many before as behind."""

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int):
        super().__init__()
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        self.register_buffer("weight", weight.detach().float().clone())
        self.register_buffer("bias", bias.detach().float().clone())
        self.options = stride, padding, dilation, groups

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, *self.options)

    def fold(self, factor: Tensor, shift: Tensor) -> None:
        """Multiply the output by ``factor`` [C] and add ``shift`` [C] from now on."""
        self.weight, self.bias = self.weight * factor.view(-1, 1, 1, 1), self.bias * factor + shift


class Function(nn.Module):
    """``function`` of the input. One that is of no kind below is a move."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Elementwise(Function):
    """Of each value alone: activations, constant factors and summands, normalisation by constants."""

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x.clone())  # it may work in place


class Average(Function):
    """Average pooling."""


class Maximum(Function):
    """Max pooling. Its function takes ``return_indices``."""


class Sum(nn.Module):
    def forward(self, *x: Tensor) -> Tensor:
        return reduce(torch.add, x)


class Concatenation(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, *x: Tensor) -> Tensor:
        return torch.cat(x, self.dim)


def canonise(module: nn.Module) -> fx.GraphModule:
    """The copy, in float32, with weights of its own: those of ``module`` as they are now.

    Raises `ConfigError` for what cannot be traced, and names the first operation that is of no such kind: products of
    two values as in squeeze-and-excitation, attention, normalisation by statistics of the image.
    """
    with torch.no_grad():
        return _Copy(trace(module)).made


class _Copy:
    """Takes the nodes of a traced network one after the other."""

    def __init__(self, traced: fx.GraphModule):
        self.modules = dict(traced.named_modules())
        self.graph, self.parts = fx.Graph(), {}
        self.copies: dict[fx.Node, fx.Node] = {}  # of what depends on the image
        self.sizes: dict[fx.Node, fx.Node] = {}  # of what depends on its size alone
        self.known: dict[fx.Node, Any] = {}  # the values of all else: parameters and what is made of them
        for node in traced.graph.nodes:
            if node.op == "placeholder" and node.args:
                self.known[node] = node.args[0]  # what it is if it is not given
            elif node.op not in ("placeholder", "output") and all(n in self.known for n in node.all_input_nodes):
                self.known[node] = self._function(node)()
        for node in traced.graph.nodes:
            if node not in self.known and node not in self.copies:  # else it is folded into the one before
                self._take(node)
            if node in self.copies and self._overwrites(node):
                self.copies[node.args[0]] = self.copies[node]
        self.made = fx.GraphModule(self.parts, self.graph, type(traced).__name__).eval()

    def _take(self, node: fx.Node) -> None:
        name, inputs = self._name(node), node.all_input_nodes
        if node.op == "placeholder":
            if self.copies:
                raise ConfigError("the network takes more than one input")
            self.copies[node] = self.graph.placeholder("x")
        elif node.op == "output":
            self.graph.output(fx.node.map_arg(node.args[0], self.copies.__getitem__))
        elif name in SIZES or not any(n in self.copies for n in inputs):
            if name != "assert":
                self.sizes[node] = self._moved(node)
        elif rule_of(self._operation(node)) is None:
            self._refuse(node, node.meta.get(OPAQUE, ""))
        elif name in NOTHING or name in SEVERAL:  # of the latter the parts are taken, below
            self.copies[node] = self.copies[node.args[0]]
        elif name == "getitem" and self._name(several := node.args[0]) in SEVERAL:
            args, kwargs = self._arguments(several)
            self.copies[node] = self.graph.call_function(_part, (node.args[1], self._name(several), *args), kwargs)
        elif name in MOVES and node.op == "call_module":
            self._add(node, Function(self._function(node)))
        elif name in MOVES:
            self.copies[node] = self._moved(node)
        else:
            self._compute(node, name, [n for n in inputs if n in self.copies])

    def _compute(self, node: fx.Node, name: str, values: list[fx.Node]) -> None:
        if name in ("cat", "concat", "concatenate"):
            dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
            self._add(node, Concatenation(dim), [self.copies[n] for n in node.args[0]])
        elif name in ("add", "iadd") and len(values) == len(node.args) == 2 and not node.kwargs:
            self._add(node, Sum())
        elif len(values) > 1:
            self._refuse(node, "of two values that both depend on the image")
        elif name in ACTIVATIONS or name in ARITHMETIC:
            self._add(node, Elementwise(self._function(node)))
        elif name in NORMS:
            self._add(node, Elementwise(partial(_affine, *self._scale(node))))
        elif name in POOLS:
            self._add(node, self._pool(node, *POOLS[name]))
        elif name in ("conv2d", "conv2dsame"):
            self._convolution(node, name)
        else:
            self._refuse(node)

    def _pool(self, node: fx.Node, function: Callable[..., Tensor], names: str) -> nn.Module:
        options = self._options(node, f"{names} return_indices")
        if options.pop("return_indices", False):
            self._refuse(node, "with indices")
        kind = Maximum if function in (F.max_pool2d, F.adaptive_max_pool2d) else Average
        return kind(partial(function, **options))

    def _convolution(self, node: fx.Node, name: str) -> None:
        """With the norm behind it. Padding of anything but as many zeros before as behind becomes a step of its own."""
        c = SimpleNamespace(**CONVOLUTION | self._options(node, " ".join(CONVOLUTION)))
        x, kernel = self.copies[node.args[0]], tuple(c.weight.shape[2:])
        if name == "conv2dsame":
            x, c.padding = self.graph.call_function(_pad_same, (x, kernel, c.stride, c.dilation)), 0
        around = _around(c.padding, kernel, c.dilation)
        if c.padding_mode != "zeros" or around[::2] != around[1::2]:
            mode = "constant" if c.padding_mode == "zeros" else c.padding_mode
            x, around = self.graph.call_function(F.pad, (x, around, mode)), [0, 0, 0, 0]
        made = Convolution(c.weight, c.bias, c.stride, (around[2], around[0]), c.dilation, c.groups)
        self._add(node, made, [x])
        takers = [taker for taker in node.users if self._name(taker) not in SIZES]
        if len(takers) == 1 and self._name(takers[0]) in NORMS:
            made.fold(*self._scale(takers[0]))
            self.copies[takers[0]] = self.copies[node]

    def _scale(self, node: fx.Node) -> tuple[Tensor, Tensor]:
        """The factor and the summand [C] of a norm."""
        found = {"weight": None, "bias": None, "training": False, "eps": 1e-5}
        found |= self._options(node, "running_mean running_var weight bias training momentum eps")
        if found["running_mean"] is None or (node.op == "call_function" and found["training"]):
            self._refuse(node, "by statistics of the image")
        weight, bias = 1 if found["weight"] is None else found["weight"], 0 if found["bias"] is None else found["bias"]
        factor = weight * (found["running_var"] + found["eps"]).rsqrt()
        return factor, bias - found["running_mean"] * factor

    def _operation(self, node: fx.Node) -> Any:
        return self.modules[node.target] if node.op == "call_module" else node.target

    def _name(self, node: fx.Node) -> str:
        operation = self._operation(node)
        named = type(operation) if isinstance(operation, nn.Module) else operation
        return getattr(named, "__name__", named).lower().replace("_", "")

    def _overwrites(self, node: fx.Node) -> bool:
        flagged = node.kwargs.get("inplace") or getattr(self._operation(node), "inplace", False)
        return bool(flagged) or in_place(node) or getattr(node.target, "__name__", "").endswith("_")

    def _function(self, node: fx.Node) -> Callable[..., Any]:
        """What ``node`` computes, of the value that depends on the image, if it takes one."""
        if node.op == "call_module":
            return copy.deepcopy(self._operation(node)).forward  # without hooks
        if node.op == "get_attr":
            found = attrgetter(node.target)(self.modules[""])
            return lambda: found.detach().clone() if isinstance(found, Tensor) else found
        if any(n in self.sizes for n in node.all_input_nodes):
            self._refuse(node, "with numbers that depend on the size of the image")
        known = {n: self.known[n] for n in node.all_input_nodes if n in self.known}

        def function(*x: Tensor) -> Any:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: known[n] if n in known else x[0])
            called = methodcaller(node.target, *args[1:], **kwargs) if node.op == "call_method" else None
            return called(args[0]) if called else node.target(*args, **kwargs)

        return function

    def _options(self, node: fx.Node, names: str) -> dict[str, Any]:
        """Of a module its attributes, of a function the arguments behind the first, by their names."""
        if node.op == "call_module":
            module = self._operation(node)
            return {name: getattr(module, name) for name in names.split() if hasattr(module, name)}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.known.get)
        return dict(zip(names.split(), args[1:], strict=False)) | kwargs

    def _arguments(self, node: fx.Node) -> tuple[tuple, dict]:
        """Those of ``node`` in the copy."""
        return fx.node.map_arg((node.args, node.kwargs), ChainMap(self.copies, self.sizes, self.known).__getitem__)

    def _moved(self, node: fx.Node) -> fx.Node:
        return self.graph.create_node(node.op, node.target, *self._arguments(node))

    def _add(self, node: fx.Node, part: nn.Module, inputs: Iterable[fx.Node] | None = None) -> None:
        """``part`` in the place of ``node``; ``inputs`` are nodes of the copy (None: those of what ``node`` takes)."""
        if inputs is None:
            inputs = [self.copies[n] for n in node.all_input_nodes if n in self.copies]
        self.parts[node.name] = part
        self.copies[node] = self.graph.call_module(node.name, tuple(inputs))

    def _refuse(self, node: fx.Node, why: str = "") -> NoReturn:
        part, where = self._operation(node), node.target if node.op == "call_module" else owner(node)
        what = type(part).__name__ if isinstance(part, nn.Module) else node._pretty_print_target(part)
        reason = f": {why}" if why else ""
        raise ConfigError(f"no rule for {what} in {where or 'the network'!r}{reason} (those there are: {__name__})")


def _affine(factor: Tensor, shift: Tensor, x: Tensor) -> Tensor:
    return x * factor.view(-1, 1, 1) + shift.view(-1, 1, 1)


def _part(index: int, several: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return getattr(torch, several)(x, *args, **kwargs)[index]


def _around(padding: Any, kernel: Sequence[int], dilation: Any) -> list[int]:
    """Left, right, top, bottom, as `F.pad` takes them."""
    if isinstance(padding, str):
        both = [d * (k - 1) * (padding == "same") for k, d in zip(kernel, _pair(dilation), strict=True)]
    else:
        both = [2 * p for p in _pair(padding)]
    return [side for n in reversed(both) for side in (n // 2, n - n // 2)]


def _pad_same(x: Tensor, kernel: Sequence[int], stride: Any, dilation: Any) -> Tensor:
    """As TensorFlow pads: as much as the size of this input needs."""
    around: list[int] = []
    for n, k, s, d in zip(x.shape[2:], kernel, _pair(stride), _pair(dilation), strict=True):
        missing = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        around = [missing // 2, missing - missing // 2, *around]  # of the last dimension first
    return F.pad(x, around)
