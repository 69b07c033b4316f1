"""Finds the spaces and links of a traced model, so that residual sums, concatenations and depthwise layers keep their
node numbers straight (spec explainnn, section 8)."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import fx, nn

from helpers.causal_graphs.links import CONVOLUTIONS, Kind, Link, Space
from helpers.config import ConfigError

# What leaves every node on its channel: elementwise, normalising, pooling and regularising operations.
SAME_MODULES = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.modules.dropout._DropoutNd, nn.Identity, nn.Upsample,
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd, nn.modules.padding._ConstantPadNd, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU,
    nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh,
)  # fmt: skip
SAME_NAMES = {
    "relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "mish", "sigmoid", "tanh", "softplus", "hardswish",
    "clamp", "mul", "truediv", "div", "sub", "neg", "dropout", "dropout2d", "stochastic_depth", "batch_norm",
    "layer_norm", "max_pool2d", "boolean_dispatch", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d",
    "interpolate", "pad", "contiguous",
}  # fmt: skip
ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}


@dataclass(frozen=True)
class _Ids:
    """Which nodes a traced value carries: those of ``space``, on ``axis``, ``block`` consecutive entries each."""

    space: str
    size: int
    axis: int
    block: int = 1


class Parser:
    """Reads ``graph``, the trace of a model with ``modules`` whose values have ``shapes`` (without the batch axis)."""

    def __init__(self, graph: fx.Graph, modules: Mapping[str, nn.Module], shapes: Mapping[str, tuple[int, ...]]):
        self._graph, self._modules, self.shapes = graph, modules, shapes
        self._order = {node.name: index for index, node in enumerate(graph.nodes)}

    def parse(self) -> tuple[dict[str, Space], dict[str, Link]]:
        """Spaces and links: first every tensor that is produced has a space of its own, then sums and concatenations
        take in those spaces that feed nothing else."""
        ids: dict[str, _Ids] = {}
        joins: list[tuple[fx.Node, list[tuple[fx.Node, int]]]] = []  # (sum or concatenation, its operands and offsets)
        layers: list[fx.Node] = []
        consumers: dict[str, list[str]] = {}
        for node in self._graph.nodes:
            if node.op == "placeholder":
                if node.name in self.shapes and not ids:
                    ids[node.name] = _Ids("input", self.shapes[node.name][0], 1)
                continue
            carriers = [parent for parent in node.all_input_nodes if parent.name in ids]
            if node.op == "output":
                if len(carriers) != 1:
                    raise ValueError("the model must return logits [N, K] that come from its layers")
                consumers.setdefault(ids[carriers[0].name].space, []).append("output")
                last = ids[carriers[0].name].space
            elif not carriers or node.name not in self.shapes:
                continue
            elif self._is_layer(node):
                ids[node.name] = self._layer_ids(node, ids[carriers[0].name])
                layers.append(node)
                consumers.setdefault(ids[carriers[0].name].space, []).append(node.name)
            elif (operands := self._operands(node, carriers, ids)) is not None:
                first = ids[operands[0][0].name]
                size = sum(ids[o.name].size for o, _ in operands) if self._is_cat(node) else first.size
                ids[node.name] = _Ids(self._join_name(node), size, first.axis)
                joins.append((node, operands))
                for operand, _ in operands:
                    consumers.setdefault(ids[operand.name].space, []).append(node.name)
            else:
                ids[node.name] = self._same_ids(node, carriers, ids)
        return self._assemble(ids, joins, layers, consumers, last)

    def _assemble(self, ids, joins, layers, consumers, last) -> tuple[dict[str, Space], dict[str, Link]]:
        home: dict[str, tuple[str, int]] = {}  # a space that was taken in: by which, and where it begins there
        for node, operands in joins:
            for operand, offset in operands:
                space = ids[operand.name].space
                if consumers[space] == [node.name] and space != "input" and ids[operand.name].block == 1:
                    home[space] = ids[node.name].space, offset

        def resolve(space: str) -> tuple[str, int]:
            offset = 0
            while space in home:
                space, further = home[space]
                offset += further
            return space, offset

        sizes: dict[str, int] = {}
        for carried in ids.values():
            if resolve(carried.space) == (carried.space, 0):
                sizes.setdefault(carried.space, carried.size)
        found: list[tuple[int, Link]] = []
        for node in layers:
            module, lower, own = self._modules[node.target], node.all_input_nodes[0], ids[node.name]
            below = ids[lower.name]
            source, start = resolve(below.space)
            target, offset = resolve(own.space)
            if start or below.size != sizes[source]:
                raise ConfigError(f"{node.target} reads a part of {source}: slices cannot be followed")
            kind: Kind = "linear" if isinstance(module, nn.Linear) else "conv"
            if kind == "conv" and module.groups == module.in_channels == module.out_channels > 1:
                kind = "depthwise"
            link = Link(node.target, kind, source, target, below.size, own.size, offset, module, node.name, lower.name,
                        own.axis, block=below.block)  # fmt: skip
            found.append((self._order[node.name], link))
        for node, operands in joins:
            skips = [(operand, offset) for operand, offset in operands if ids[operand.name].space not in home]
            for index, (operand, offset) in enumerate(skips):
                own, below = ids[node.name], ids[operand.name]
                target, start = resolve(own.space)
                name = f"{own.space}.skip" + (f".{index}" if len(skips) > 1 else "")
                link = Link(name, "identity", resolve(below.space)[0], target, below.size, below.size, start + offset,
                            None, node.name, operand.name, own.axis, place=offset)  # fmt: skip
                found.append((self._order[node.name], link))
        links = {link.name: link for _, link in sorted(found, key=lambda pair: pair[0])}
        if len(links) != len(found):
            raise ConfigError("a layer is called more than once: give each use a module of its own")
        defined = {carried.space: index for index, carried in reversed(list(enumerate(ids.values())))}
        names = sorted((name for name in sizes if name != last), key=lambda name: defined[name]) + [resolve(last)[0]]
        return {name: Space(name, sizes[name]) for name in dict.fromkeys(names)}, links

    def _is_layer(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self._modules[node.target], (nn.Linear, *CONVOLUTIONS))

    @staticmethod
    def _is_cat(node: fx.Node) -> bool:
        return node.op == "call_function" and node.target in (torch.cat, torch.concat)

    def _layer_ids(self, node: fx.Node, lower: _Ids) -> _Ids:
        module, linear = self._modules[node.target], isinstance(self._modules[node.target], nn.Linear)
        if lower.axis != (len(self.shapes[node.name]) if linear else 1):
            self._refuse(node)
        if linear:
            return _Ids(node.target, module.out_features, lower.axis)
        return _Ids(node.target, module.out_channels, 1)

    def _join_name(self, node: fx.Node) -> str:
        """The block that a sum or concatenation stands in, if it is the only one there; else its own name."""
        stack = list((node.meta.get("nn_module_stack") or {}).keys())
        owner = stack[-1] if stack else ""
        inside = [n for n in self._graph.nodes if list((n.meta.get("nn_module_stack") or {}).keys())[-1:] == [owner]]
        joins = [n for n in inside if self._is_cat(n) or n.target in ADDITIONS]
        return owner if owner and len(joins) == 1 else f"{owner}.{node.name}".lstrip(".")

    def _operands(self, node, carriers, ids) -> list[tuple[fx.Node, int]] | None:
        """(operand, offset) of a sum or a concatenation of values that carry nodes; None for anything else."""
        if self._is_cat(node):
            axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            first, offset, operands = ids[carriers[0].name], 0, []
            if axis % (len(self.shapes[node.name]) + 1) != first.axis or first.block != 1:
                self._refuse(node)
            for operand in node.args[0]:
                if operand.name not in ids or (ids[operand.name].axis, ids[operand.name].block) != (first.axis, 1):
                    self._refuse(node)
                operands.append((operand, offset))
                offset += ids[operand.name].size
            return operands
        if node.target in ADDITIONS and len(carriers) == 2:
            if node.kwargs.get("alpha", 1) != 1:  # a skip of weight alpha: no link has one
                self._refuse(node)
            one, other = (ids[carrier.name] for carrier in carriers)
            shapes = {self.shapes[carrier.name] for carrier in carriers}
            if (one.size, one.axis, one.block) != (other.size, other.axis, 1) or len(shapes) > 1:
                self._refuse(node)
            return [(carrier, 0) for carrier in carriers]
        return None

    def _same_ids(self, node: fx.Node, carriers, ids) -> _Ids:
        """The nodes behind an operation that keeps them on their channels, or moves the channel axis."""
        own, shape = ids[carriers[0].name], (None, *self.shapes[node.name])
        before = (None, *self.shapes[carriers[0].name])
        module = self._modules[node.target] if node.op == "call_module" else None
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if len(carriers) != 1:  # a gate, say: one activation times another
            self._refuse(node)
        if isinstance(module, nn.Flatten) or name in ("flatten", "view", "reshape"):
            if len(shape) != 2 or own.axis != 1:
                self._refuse(node)
            return replace(own, block=own.block * math.prod(before[2:]))
        if name in ("permute", "transpose"):
            dims = list(node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:])
            if name == "transpose":
                one, other = (d % len(before) for d in dims)
                dims = [{one: other, other: one}.get(d, d) for d in range(len(before))]
            return replace(own, axis=[d % len(before) for d in dims].index(own.axis))
        if name == "mean" or name == "squeeze":
            if len(shape) == len(before):
                if shape[own.axis] != before[own.axis]:  # the mean of all nodes
                    self._refuse(node)
                return own
            dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            gone = {d % len(before) for d in (dims if isinstance(dims, tuple | list) else [dims])}
            if own.axis in gone or own.block != 1:
                self._refuse(node)
            return replace(own, axis=own.axis - sum(d < own.axis for d in gone))
        keeps = isinstance(module, SAME_MODULES) if module else name in SAME_NAMES or node.target in ADDITIONS
        if not keeps or len(shape) != len(before) or shape[own.axis] != before[own.axis]:
            self._refuse(node)
        return own

    def _refuse(self, node: fx.Node) -> NoReturn:
        what = type(self._modules[node.target]).__name__ if node.op == "call_module" else node.target
        what = getattr(what, "__name__", what)
        raise ConfigError(
            f"unknown kind of layer: {node.name} ({what}); paths are followed through convolutions, linear layers, "
            "sums, concatenations, normalisation, activations, pooling and flattening"
        )
