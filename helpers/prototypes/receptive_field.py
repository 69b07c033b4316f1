"""Which pixels each cell of a feature map depends on: the exact receptive fields of a traced network (spec pixpnet,
section 3). Nothing is run: intervals of rows and of columns go through the graph layer by layer, clipped at each.

    fields = receptive_fields(torchvision.models.resnet18(), 224)
    fields["layer3"].box(0, 0)           # (0, 106, 0, 106): rows 0 to 105, columns 0 to 105
    fields["layer3"].mean_percent        # 51.706

A field is the union over channels, and of those pixels the smallest box; it is solid wherever windows leave no gaps
between them (dilated convolutions and strides wider than the window before them can).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, fx, nn

from helpers.config import ConfigError, suggest
from helpers.prototypes.dependence import Axis, Value, image, line
from helpers.prototypes.layer_rules import rule_of
from helpers.prototypes.tracing import OPAQUE, in_place, input_channels, owner, stages, trace

OUTPUT = "output"  # the name of what a network returns


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """The receptive fields of all cells of one map [B, C, Hz, Wz]. Boxes are (y0, y1, x0, x1), half-open, in pixels."""

    input_size: tuple[int, int]  # H, W
    edges: tuple[np.ndarray, np.ndarray]  # int64 [Hz, 2] and [Wz, 2]: rows and columns seen; 0, 0: none
    unclipped_edges: tuple[np.ndarray, np.ndarray]  # float64, likewise, as if the image had no borders
    side: tuple[float, float]  # (rows, columns) of the un-clipped field; inf where all cells see everything
    stride: tuple[float, float]  # pixels from one cell's to the next; inf likewise

    @property
    def size(self) -> tuple[int, int]:
        """Hz, Wz."""
        return len(self.edges[0]), len(self.edges[1])

    @cached_property
    def lookup(self) -> np.ndarray:
        """int64 [Hz, Wz, 4]: the box of each cell, clipped layer by layer."""
        return _boxes(*self.edges)

    @cached_property
    def unclipped(self) -> np.ndarray:
        """float64 [Hz, Wz, 4]: the boxes without borders, which may leave the image."""
        return _boxes(*self.unclipped_edges)

    @property
    def percent(self) -> np.ndarray:
        """float64 [Hz, Wz]: how much of the image a cell sees."""
        height, width = (np.diff(edges)[:, 0] for edges in self.edges)
        return 100 * np.outer(height, width) / math.prod(self.input_size)

    @property
    def mean_percent(self) -> float:
        return float(self.percent.mean())

    @property
    def min_percent(self) -> float:
        return float(self.percent.min())

    @property
    def max_percent(self) -> float:
        return float(self.percent.max())

    def box(self, i: int, j: int) -> tuple[int, int, int, int]:
        """The pixels of cell (i, j): rows y0 to y1, columns x0 to x1, half-open."""
        return *self.edges[0][i].tolist(), *self.edges[1][j].tolist()


class Fields(dict[str, ReceptiveField]):
    """Receptive fields by stage; a stage that has none is a `ConfigError` that says why."""

    def __init__(self, fields: Mapping[str, ReceptiveField], without: Mapping[str, str]):
        super().__init__(fields)
        self.without = without  # stage -> why there is no field

    def __missing__(self, stage: str) -> ReceptiveField:
        if stage in self.without:
            raise ConfigError(f"stage {stage!r} has no receptive field: {self.without[stage]}")
        raise ConfigError(f"no stage {stage!r}: {suggest(stage, self)}")


def receptive_fields(module: nn.Module, input_size: int | tuple[int, int]) -> Fields:
    """Of every stage (`tracing.stages`) whose value is a map [B, C, Hz, Wz], and of the ``output``.

    ``input_size``: pixels a side, or (H, W). Raises `ConfigError` if the network cannot be traced, does what there is
    no rule for, or needs a larger input; early stages of such a network: ``receptive_fields(cut(module, stage), ...)``.
    """
    traced, size = trace(module), _size(input_size)
    return _fields(traced, {**stages(traced), OUTPUT: _last(traced)}, size)


def receptive_field(module: nn.Module, input_size: int | tuple[int, int]) -> ReceptiveField:
    """Of the network's output. Raises `ConfigError` as `receptive_fields`, and if the output is no map."""
    traced = trace(module)
    return _fields(traced, {OUTPUT: _last(traced)}, _size(input_size))[OUTPUT]


def table(fields: Mapping[str, ReceptiveField]) -> pd.DataFrame:
    """A row a stage: size of its map, stride and un-clipped side in pixels, and the share of the image that its cells
    see in per cent."""
    rows = [
        {
            "stage": stage,
            "map": _times(field.size),
            "stride": _times(field.stride),
            "side": _times(field.side),
            "mean %": field.mean_percent,
            "min %": field.min_percent,
            "max %": field.max_percent,
        }
        for stage, field in fields.items()
    ]
    return pd.DataFrame(rows, columns=["stage", "map", "stride", "side", "mean %", "min %", "max %"])


def _fields(traced: fx.GraphModule, nodes: Mapping[str, fx.Node], size: tuple[int, int]) -> Fields:
    """Of ``nodes``, by name."""
    values = _propagate(traced, size)
    fields, without, known = {}, {}, {}
    for stage, node in nodes.items():
        value = values[node]
        if id(value) not in known:  # activations and the like return what they are given
            known[id(value)] = _field(value, size)
        found = known[id(value)]
        (fields if isinstance(found, ReceptiveField) else without)[stage] = found
    return Fields(fields, without)


def _last(traced: fx.GraphModule) -> fx.Node:
    return next(iter(reversed(traced.graph.nodes)))


def _propagate(traced: fx.GraphModule, size: tuple[int, int]) -> dict[fx.Node, Any]:
    """The value of every node. Parameters are tensors without numbers, of which only the shapes count."""
    modules = dict(traced.named_modules())
    current: dict[fx.Node, Any] = {}  # as changed in place since
    values: dict[fx.Node, Any] = {}  # as returned
    for node in traced.graph.nodes:
        try:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), current.__getitem__)
            result = _result(node, modules, args, kwargs, size)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"no receptive field behind {_described(node, modules)}: {reason}") from error
        values[node] = current[node] = result
        if in_place(node) and isinstance(result, Value):
            current[node.args[0]] = result
    return values


def _result(node: fx.Node, modules: Mapping[str, nn.Module], args: Any, kwargs: Any, size: tuple[int, int]) -> Any:
    if node.op == "placeholder":
        return _input(node, modules[""], size)
    if node.op == "output":
        return args[0]
    if node.op == "get_attr":
        found = _attribute(modules[""], node.target)
        return torch.empty_like(found, device="meta") if isinstance(found, Tensor) else found
    operation = modules[node.target] if node.op == "call_module" else node.target
    if not _depends((args, kwargs)) and node.op == "call_function":  # sizes, parameters
        return _unreal(operation(*args, **kwargs))
    if not _depends((args, kwargs)) and node.op == "call_method":
        return _unreal(getattr(args[0], operation)(*args[1:], **kwargs))
    rule = rule_of(operation)
    if rule is None:
        reason = f"; {node.meta[OPAQUE]}" if OPAQUE in node.meta else ""
        raise ConfigError(f"it has no rule{reason} (those there are: helpers.prototypes.layer_rules)")
    return rule(operation, *args, **kwargs) if node.op == "call_module" else rule(*args, **kwargs)


def _input(node: fx.Node, traced: fx.GraphModule, size: tuple[int, int]) -> Any:
    """The image for the first input, and for others what they are if not given."""
    if node.prev.op == "placeholder":
        if not node.args:
            raise ConfigError("the network takes more than one input")
        return node.args[0]
    return image(input_channels(traced), size)


def _field(value: Any, size: tuple[int, int]) -> ReceptiveField | str:
    """The receptive field of a value, or why it has none."""
    if not isinstance(value, Value):
        return f"its value is no map [B, C, H, W] but of type {type(value).__name__}"
    try:
        axes = line(value, 0), line(value, 1)
    except ConfigError as error:
        return str(error).replace("needs", "its value is not")
    sides = tuple(max(axis.end - axis.start, 0.0) for axis in axes)
    strides = tuple(axis.stride if math.isfinite(side) else math.inf for axis, side in zip(axes, sides, strict=True))
    return ReceptiveField(size, tuple(map(_clipped, axes)), tuple(map(_unclipped, axes)), sides, strides)


def _clipped(axis: Axis) -> np.ndarray:
    seen = axis.high > axis.low
    return np.stack([axis.low, axis.high], 1) * seen[:, None]


def _unclipped(axis: Axis) -> np.ndarray:
    return np.add.outer(np.arange(len(axis.low)) * axis.stride, [axis.start, axis.end])


def _boxes(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """[Hz, Wz, 4] of [Hz, 2] and [Wz, 2]."""
    shape = (len(rows), len(columns), 2)
    return np.concatenate([np.broadcast_to(rows[:, None], shape), np.broadcast_to(columns, shape)], axis=2)


def _size(input_size: int | tuple[int, int]) -> tuple[int, int]:
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise ConfigError(f"input_size must be pixels a side or (H, W), not {input_size!r}")
    return tuple(size)


def _described(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    if node.op == "call_module":
        return f"{type(modules[node.target]).__name__} {node.target!r}"
    where = f" in {owner(node)!r}" if owner(node) else ""
    return f"{node._pretty_print_target(node.target)} (node {node.name!r}{where})"


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _depends(arguments: Any) -> bool:
    found: list[Value] = []
    fx.node.map_aggregate(arguments, lambda x: found.append(x) if isinstance(x, Value) else None)
    return bool(found)


def _unreal(result: Any) -> Any:
    """Tensors without their numbers."""
    return fx.node.map_aggregate(result, lambda x: x.to("meta") if isinstance(x, Tensor) else x)


def _times(pair: tuple[float, float]) -> str:
    """``14 x 14``, or ``all x all`` of what has no bounds."""
    return " x ".join("all" if math.isinf(number) else f"{number:g}" for number in pair)
