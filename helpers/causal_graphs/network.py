"""A trained network taken apart, and run from any layer on (spec explainnn, sections 8 and 9).

torch.fx traces the model; `tracing.Parser` finds its spaces and links. Running from one link on, with what comes before
recorded once, is what makes thousands of interventions cheap.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from helpers.attribution.base import refuse_training
from helpers.causal_graphs.links import CONVOLUTIONS, Link, Space, embed, link_output
from helpers.causal_graphs.tracing import Parser
from helpers.config import ConfigError, suggest

Values = dict[str, Tensor]  # what each operation returned, by the name of its fx node


class Network:
    """``model`` taken apart. ``example`` is one input [1, ...] of the shape that it will see.

    ``spaces`` and ``links`` are in the order of the forward pass; the first space is ``"input"``, the last the logits.
    The model is never changed. Raises `ConfigError` for what cannot be traced or followed (by name), ``ValueError`` for
    a model in training mode or without logits [N, K].
    """

    def __init__(self, model: nn.Module, example: Tensor):
        self.model = model
        refuse_training(self.model)
        self._modules = dict(model.named_modules())
        try:
            self._graph = fx.Tracer().trace(model)
        except Exception as error:  # whatever the model's own code raises when it meets a proxy
            raise ConfigError(
                f"torch.fx cannot trace {type(model).__name__} ({type(error).__name__}: {error}); "
                "name its layers: Chain(model, example, layers)"
            ) from None
        self._nodes = {node.name: node for node in self._graph.nodes}
        self._varying = self._depends_on_input()
        with torch.no_grad():
            self._values = self._evaluate({}, example, keep=True)
        self.shapes = {name: tuple(v.shape[1:]) for name, v in self._values.items() if isinstance(v, Tensor)}
        self.spaces, self.links = Parser(self._graph, self._modules, self.shapes).parse()
        del self._values
        self._downstream: dict[str, set[str]] = {}

    def link(self, name: str) -> Link:
        """Raises `ConfigError`, near misses listed, for a layer that is not there."""
        if name not in self.links:
            raise ConfigError(f"no layer {name!r} in {type(self.model).__name__}: {suggest(name, self.links)}")
        return self.links[name]

    @property
    def logits(self) -> Space:
        return list(self.spaces.values())[-1]

    # ------------------------------------------------------------------------------------------------- running

    @torch.no_grad()
    def record(self, x: Tensor) -> Values:
        """Every intermediate value of the batch ``x`` [N, ...], and ``"logits"`` [N, K]."""
        values = self._evaluate({}, x, keep=True)
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @torch.no_grad()
    def resume(self, values: Values, changed: Mapping[str, Tensor], copies: int) -> Tensor:
        """Logits [copies * N, K] of ``copies`` batches in a row that differ from the recorded one, ``values`` [N, ...],
        in what they hold at the fx nodes ``changed`` (each [copies * N, ...])."""
        return self._evaluate(values, None, dict(changed), copies)["logits"]

    def gradient(self, values: Values, link: Link, outcome: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient of each image's ``outcome(logits)`` [N] with respect to the value that the link moves."""
        with torch.enable_grad():
            at = values[link.at].detach().clone().requires_grad_()
            y = outcome(self._evaluate(values, None, {link.at: at * 1})["logits"])
            return torch.autograd.grad(y.sum(), at)[0]

    @torch.no_grad()
    def masked(self, x: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        """Logits [N, K] with the edges of some links scaled: ``masks[link]`` is [outputs, inputs] in [0, 1], 0 cuts;
        [inputs] for a skip connection. Biases stay."""
        return self._evaluate({}, x, edits=self._edits(masks, x))["logits"]

    @torch.no_grad()
    def masked_from(self, values: Values, masks: Mapping[str, Tensor]) -> Tensor:
        """`masked` for a batch that was recorded already, ``values`` [N, ...]: only what comes after the first masked
        link is run."""
        edits = self._edits(masks, values["logits"])
        if not edits:
            return values["logits"]
        later = set().union(*(self._below(at) for at in edits))
        changed = {}
        for at in edits.keys() - later:
            moves = [self._masking(link, mask, values[link.reads]) for link, mask in edits[at]]
            changed[at] = sum(moves, values[at])
        rest = {at: edit for at, edit in edits.items() if at in later}
        return self._evaluate(values, None, changed, edits=rest)["logits"]

    def row_bytes(self, link: Link) -> int:
        """Bytes that one image needs, about, to be run from ``link`` on: a few of the largest values at a time."""
        return 16 * max(math.prod(self.shapes[n]) for n in (link.at, *self._below(link.at)) if n in self.shapes)

    def _below(self, name: str) -> set[str]:
        """The fx nodes that depend on ``name``."""
        if name not in self._downstream:
            found: set[str] = set()
            stack = [self._nodes[name]]
            while stack:
                for user in stack.pop().users:
                    if user.name not in found:
                        found.add(user.name)
                        stack.append(user)
            self._downstream[name] = found
        return self._downstream[name]

    def _depends_on_input(self) -> set[str]:
        varying: set[str] = set()
        for node in self._graph.nodes:
            if node.op == "placeholder" or any(parent.name in varying for parent in node.all_input_nodes):
                varying.add(node.name)
        return varying

    def _evaluate(self, recorded, x, changed=None, copies=1, *, keep=False, edits=None) -> dict[str, Any]:
        """Run the graph: all of it on ``x``, or what depends on ``changed`` with ``recorded`` for the rest."""
        if x is not None:
            refuse_training(self.model)
        changed, edits = changed or {}, edits or {}
        new: dict[str, Any] = dict(changed)
        todo = set().union(*(self._below(name) for name in changed)) - set(changed) if changed else None
        uses = {} if keep else {n.name: sum(todo is None or u.name in todo for u in n.users) for n in self._graph.nodes}

        def value_of(node: fx.Node) -> Any:
            if node.name in new:
                return new[node.name]
            if node.name in recorded and node.name in self._varying:  # the same for every copy
                return recorded[node.name].repeat(copies, *[1] * (recorded[node.name].ndim - 1))
            return self._constant(node)

        inputs = iter([x])
        for node in self._graph.nodes:
            if todo is not None and node.name not in todo:
                continue
            if node.op == "placeholder":
                new[node.name] = next(inputs, None)
                if new[node.name] is None and node.name in self._varying and node.users:
                    raise ConfigError(f"{type(self.model).__name__} takes more than one input ({node.name})")
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), value_of)
            result = args[0] if node.op == "output" else self._call(node, args, kwargs)
            for link, mask in edits.get(node.name, ()):
                result = result + self._masking(link, mask, value_of(self._nodes[link.reads]))
            new["logits" if node.op == "output" else node.name] = result
            for parent in () if keep else node.all_input_nodes:
                uses[parent.name] -= 1
                if uses[parent.name] == 0:
                    new.pop(parent.name, None)
        if not isinstance(new["logits"], Tensor) or new["logits"].ndim != 2:
            raise ValueError("the model must return logits [N, K]")
        return new

    def _constant(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            value: Any = self.model
            for part in node.target.split("."):
                value = getattr(value, part)
            return value
        if node.op == "placeholder":
            raise ConfigError(
                f"{type(self.model).__name__} reads the shape of its input, which a cut repeats: in place of "
                "x.view(x.size(0), -1) write x.flatten(1)"
            )
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._constant)
        return self._call(node, args, kwargs)

    def _call(self, node: fx.Node, args: tuple, kwargs: dict) -> Any:
        """One operation, never in place: recorded values have to stay what they were."""
        if node.op == "get_attr":
            return self._constant(node)
        module = self._modules[node.target] if node.op == "call_module" else None
        if _in_place(node, module, kwargs) and isinstance(args[0], Tensor):
            args = (args[0].clone(), *args[1:])
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return (node.target if module is None else module)(*args, **kwargs)

    def _edits(self, masks: Mapping[str, Tensor], like: Tensor) -> dict[str, list[tuple[Link, Tensor]]]:
        """By the fx node that it moves: each masked link and its mask, checked, on the device and of the type of
        ``like``."""
        edits: dict[str, list[tuple[Link, Tensor]]] = {}
        for name, mask in masks.items():
            link = self.link(name)
            wanted = (link.inputs,) if link.kind == "identity" else (link.outputs, link.inputs)
            if tuple(mask.shape) != wanted:
                raise ValueError(f"{name}: expected a mask {list(wanted)}, not {list(mask.shape)}")
            edits.setdefault(link.at, []).append((link, mask.to(like)))
        return edits

    def _masking(self, link: Link, mask: Tensor, lower: Tensor) -> Tensor:
        """What the value at ``link.at`` gains when the link's edges are scaled by ``mask``."""
        if link.kind == "identity":
            shape = [1] * lower.ndim
            shape[link.axis] = -1
            return embed(link, lower * (mask - 1).view(shape), self.shapes[link.at])
        if link.kind == "depthwise":  # as a dense layer it would take as many times longer as there are channels
            weight = link.module.weight.detach()
            kept = mask.diagonal().view(-1, *[1] * (weight.ndim - 1))
            return link_output(link, weight * (kept - 1), lower, groups=link.outputs)
        weight = link.weight()
        return link_output(link, weight * (mask - 1).view(*mask.shape, *[1] * (weight.ndim - 2)), lower)


class Chain(Network):
    """A model that torch.fx cannot trace, its layers named from the input on: ``Chain(model, x, ["conv1", "fc1"])``.

    Each layer is taken to read what the one before it returns. Such a network is only run whole: engine ``"vmap"``.
    """

    def __init__(self, model: nn.Module, example: Tensor, layers: Sequence[str]):
        self.model, self._modules, self._layers = model, dict(model.named_modules()), tuple(layers)
        for name in layers:
            if not isinstance(self._modules.get(name), (nn.Linear, *CONVOLUTIONS)):
                kinds = {n: m for n, m in self._modules.items() if isinstance(m, (nn.Linear, *CONVOLUTIONS))}
                raise ConfigError(f"{name!r} is no convolution or linear layer: {suggest(name, kinds)}")
        values = self.record(example)
        self.shapes = {name: tuple(value.shape[1:]) for name, value in values.items()}
        self.spaces = {"input": Space("input", example.shape[1])}
        self.links = {}
        for name in layers:
            module, (source, below) = self._modules[name], list(self.spaces.items())[-1]
            linear = isinstance(module, nn.Linear)
            inputs, outputs = module.weight.shape[1], module.weight.shape[0]
            inputs *= 1 if linear else module.groups
            if inputs % below.size or (not linear and inputs != below.size):
                raise ConfigError(f"{name} has {inputs} inputs, which {source} with {below.size} nodes cannot feed")
            axis = len(self.shapes[name]) if linear else 1
            self.links[name] = Link(name, "linear" if linear else "conv", source, name, below.size, outputs, 0, module,
                                    name, f"{name}.input", axis, block=inputs // below.size)  # fmt: skip
            self.spaces[name] = Space(name, outputs)

    @torch.no_grad()
    def record(self, x: Tensor) -> Values:
        refuse_training(self.model)
        values: Values = {}

        def keep(name):
            def hook(module, args, output):
                values[f"{name}.input"], values[name] = args[0], output

            return hook

        handles = [self._modules[name].register_forward_hook(keep(name)) for name in self._layers]
        try:
            values["logits"] = self.model(x)
        finally:
            for handle in handles:
                handle.remove()
        return values

    def resume(self, values, changed, copies):
        raise ConfigError("a network that was not traced cannot be run from a layer on: take the engine 'vmap'")

    def gradient(self, values, link, outcome):
        raise ConfigError("a network that was not traced has no gradient at a layer: take candidates='all'")

    def masked(self, x: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        raise ConfigError("a network that was not traced cannot be masked")

    def masked_from(self, values: Values, masks: Mapping[str, Tensor]) -> Tensor:
        return self.masked(values["logits"], masks)  # refuses

    def row_bytes(self, link: Link) -> int:
        return 16 * max(math.prod(shape) for shape in self.shapes.values())


def reverse(network: Network) -> Iterator[tuple[Space, list[Link]]]:
    """(space, the links that read it), from the last hidden space down to the input: the order of discovery."""
    for space in reversed(list(network.spaces.values())):
        if readers := [link for link in network.links.values() if link.source == space.name]:
            yield space, readers


def _in_place(node: fx.Node, module: nn.Module | None, kwargs: Mapping[str, Any]) -> bool:
    """Does the operation write over its first argument?"""
    if module is not None:
        return getattr(module, "inplace", False)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    named = name.endswith("_") and not name.endswith("__")  # torch.relu_, say
    return named or kwargs.get("inplace", False) or node.target in (operator.iadd, operator.imul)


def weights_hash(model: nn.Module) -> str:
    """12 hexadecimal digits that change with any weight or buffer."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else
                      str(value.item()).encode())  # fmt: skip
    return digest.hexdigest()[:12]
