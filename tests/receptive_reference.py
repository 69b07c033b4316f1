"""What the tests of receptive fields compare with, beside the table of `helpers.prototypes.released`: the stages that
it means, and a plain walk of boxes from layer to layer, cell by cell."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import fx, nn

from helpers import runtime
from helpers.prototypes.tracing import trace


@lru_cache(maxsize=4)
def network(name: str, device: str = "meta") -> fx.GraphModule:
    """A traced backbone of torchvision; on "meta" without weights, which nothing but tracing needs."""
    models = runtime.import_torchvision().models
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device(device):
        return trace(getattr(models, name)(weights=None, **options).eval())


def stage_path(backbone: str, stage: str) -> str:
    """The module path of a stage that the table calls by another name."""
    modules = dict(network(backbone).named_modules())
    if backbone.startswith("densenet"):
        return f"features.{stage}"
    if backbone.startswith("resne") or backbone.startswith("wide"):
        return "relu" if stage == "conv1" else stage
    if backbone.startswith(("vgg", "squeezenet")):
        if stage == "conv1":
            return "features.2" if backbone.endswith("_bn") else "features.1"
        pools = [path for path, module in modules.items() if isinstance(module, nn.MaxPool2d)]
        return pools[int(stage.removeprefix("maxpool")) - 1] if stage.startswith("maxpool") else stage
    return stage


Box = tuple[int, int, int, int]
Boxes = list[list[Box | None]]  # of a map; None: nothing is seen


def walked(module: nn.Module, height: int, width: int) -> Boxes:
    """The box of every output cell, layer by layer and cell by cell: convolutions, pools, sums, concatenations."""
    traced = trace(module)
    modules = dict(traced.named_modules())
    found: dict[fx.Node, Boxes] = {}
    for node in traced.graph.nodes:
        inputs = [found[n] for n in node.all_input_nodes]
        if node.op == "placeholder":
            found[node] = [[(i, i + 1, j, j + 1) for j in range(width)] for i in range(height)]
        elif node.op == "call_module" and hasattr(modules[node.target], "kernel_size"):
            found[node] = _through(modules[node.target], inputs[0])
        elif len(inputs) > 1:
            found[node] = [[_union(cells) for cells in zip(*line, strict=True)] for line in zip(*inputs, strict=True)]
        else:  # elementwise
            found[node] = inputs[0]
    return inputs[0]


def _through(layer: nn.Module, boxes: Boxes) -> Boxes:
    height, width = len(boxes), len(boxes[0])
    rows, columns = (list(_windows(layer, axis, n)) for axis, n in enumerate((height, width)))
    return [[_union([boxes[i][j] for i in ii for j in jj]) for jj in columns] for ii in rows]


def _windows(layer: nn.Module, axis: int, n: int) -> Iterator[list[int]]:
    """The indices that each window takes in. In ceil mode one more window may leave the padding, if something is left
    for it and it starts within the map."""
    options = (layer.kernel_size, layer.stride, layer.padding, getattr(layer, "dilation", 1))
    kernel, stride, padding, dilation = (o if isinstance(o, int) else o[axis] for o in options)
    start, last = -padding, -padding - 1
    while True:
        left, last = last < n + padding - 1, start + dilation * (kernel - 1)
        if last >= n + padding and not (getattr(layer, "ceil_mode", False) and left and start < n):
            return
        yield [i for i in range(start, last + 1, dilation) if 0 <= i < n]
        if last >= n + padding:
            return
        start += stride


def _union(boxes: list[Box | None]) -> Box | None:
    seen = [box for box in boxes if box is not None]
    if not seen:
        return None
    return (
        min(box[0] for box in seen),
        max(box[1] for box in seen),
        min(box[2] for box in seen),
        max(box[3] for box in seen),
    )
