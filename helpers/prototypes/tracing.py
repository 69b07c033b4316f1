"""A network as a graph of its operations, and the part of it that leads to a stage.

A stage is a module by its dotted path (``layer3``, ``layer3.0.conv1``, ``features.4``); its value is what that module
returned when it was called last. The graph is that of evaluation: where a network looks at ``self.training``, the way
it takes then is the one that is recorded; modules such as BatchNorm and Dropout still follow ``train()``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from helpers.config import ConfigError, suggest

DROPS_PATHS = ("StochasticDepth", "DropPath")  # of torchvision and timm; kept whole, as their graphs depend on the mode
STAGES = "stages"  # key of a node's meta data: the modules that returned it
OPAQUE = "opaque"  # key of a node's meta data: why a module could not be traced


def trace(module: nn.Module) -> fx.GraphModule:
    """``module`` as a graph, with the same parameters under the same names; modules of ``torch.nn`` stay whole, and so
    does one that cannot be traced, because its way depends on its input: its node's meta data say why (`OPAQUE`).

    Shares all parameters with ``module``. Raises `ConfigError` if the network itself cannot be traced.
    """
    if isinstance(module, fx.GraphModule) and any(STAGES in node.meta for node in module.graph.nodes):
        return module
    with _evaluation(module):
        try:
            graph = _Tracer().trace(module)
        except Exception as error:  # whatever a network does with what is no tensor yet
            raise ConfigError(f"{type(module).__name__} cannot be traced: {_one_line(error)}") from error
    return _graph_module(module, graph, module)


def stages(traced: fx.GraphModule) -> dict[str, fx.Node]:
    """The node of every stage of a network from `trace`, in order of computation."""
    found: dict[str, fx.Node] = {}
    for node in traced.graph.nodes:
        for path in node.meta.get(STAGES, ()):
            found.pop(path, None)  # called again: its place is the later one
            found[path] = node
    return found


def cut(module: nn.Module, stage: str) -> fx.GraphModule:
    """The network up to and including ``stage``, its value as the output.

    Parameters are shared with ``module``; what lies behind the stage is not part of the result. Raises `ConfigError`
    for a stage that there is not, with the near misses.
    """
    traced = trace(module)
    known = stages(traced)
    if stage not in known:
        raise ConfigError(f"{type(module).__name__} has no stage {stage!r}: {suggest(stage, known)}")
    graph, copies = fx.Graph(), {}
    for node in _leading_to(known[stage], traced.graph):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[known[stage]])
    return _graph_module(traced, graph, module)


def owner(node: fx.Node) -> str:
    """The dotted path of the module in which ``node`` is computed; empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(stack.values())), "")


def input_channels(traced: fx.GraphModule) -> int:
    """Of the images that the network takes: those of its first convolution, or else 3."""
    modules = dict(traced.named_modules())
    called = (modules[node.target] for node in traced.graph.nodes if node.op == "call_module")
    found = (m.in_channels for m in called if isinstance(getattr(m, "in_channels", None), int))
    weights = (weight.shape[1] for weight in traced.parameters() if weight.dim() == 4)
    return next(found, None) or next(weights, 3)


def in_place(node: fx.Node) -> bool:
    """Whether the operation changes its first argument: ``x.add_(y)``, ``x += y``."""
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.endswith("__")
    return node.op == "call_function" and getattr(node.target, "__name__", "") in ("iadd", "isub", "imul", "itruediv")


class _Tracer(fx.Tracer):
    """Records which node each module returns."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or type(m).__name__ in DROPS_PATHS

    def call_module(self, m: nn.Module, forward: Any, args: tuple, kwargs: dict) -> Any:
        path, stack, before = self.path_of_module(m), self.module_stack.copy(), next(iter(reversed(self.graph.nodes)))
        try:
            returned = super().call_module(m, forward, args, kwargs)
        except Exception as error:
            for node in itertools.takewhile(lambda node: node is not before, reversed(self.graph.nodes)):
                self.graph.erase_node(node)
            self.module_stack = stack
            returned = self.create_proxy("call_module", path, args, kwargs)
            returned.node.meta[OPAQUE] = _one_line(error)
        if isinstance(returned, fx.Proxy):
            paths = returned.node.meta.setdefault(STAGES, [])
            paths[:] = [*(p for p in paths if p != path), path]
        return returned


def _graph_module(root: nn.Module, graph: fx.Graph, like: nn.Module) -> fx.GraphModule:
    """The network of ``graph``, with no more in its state than ``like`` has."""
    made = fx.GraphModule(root, graph, type(like).__name__)
    kept = like.state_dict().keys()
    for path, part in made.named_modules():
        part._non_persistent_buffers_set |= {n for n in part._buffers if f"{path}.{n}".lstrip(".") not in kept}
    return made


def _leading_to(last: fx.Node, graph: fx.Graph) -> list[fx.Node]:
    """The nodes that ``last`` depends on, and the inputs, in order. What changes its argument in place counts, although
    nobody may use its result."""
    before = list(graph.nodes)
    before = before[: before.index(last) + 1]
    needed = {last}
    for node in reversed(before):
        if node in needed or in_place(node) or node.op == "placeholder":
            needed |= {node, *node.all_input_nodes}
    return [node for node in before if node in needed]


@contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every module is in the mode it had."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
