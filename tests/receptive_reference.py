"""What the tests of receptive fields compare with: the table of the spec, the stages that it means, and a plain walk
of boxes from layer to layer, cell by cell."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import fx, nn

from helpers import runtime
from helpers.prototypes.tracing import trace

# Spec pixpnet, section 3.4: backbones | stages | map | stride | un-clipped side | mean share of the image in per cent.
# A side of 0 is not compared: the spec gives it as a bound.
TABLE = """
vgg11 vgg11_bn | maxpool1 maxpool2 maxpool3 | 112 56 28 | 2 4 8 | 4 10 30 | 0.032 0.195 1.676
vgg11 vgg11_bn | maxpool4 maxpool5 | 14 7 | 16 32 | 70 150 | 8.310 31.354
vgg13 vgg13_bn | maxpool1 maxpool2 maxpool3 | 112 56 28 | 2 4 8 | 6 16 36 | 0.071 0.492 2.382
vgg13 vgg13_bn | maxpool4 maxpool5 | 14 7 | 16 32 | 76 156 | 9.686 33.534
vgg16 vgg16_bn | maxpool1 maxpool2 maxpool3 | 112 56 28 | 2 4 8 | 6 16 44 | 0.071 0.492 3.492
vgg16 vgg16_bn | maxpool4 maxpool5 | 14 7 | 16 32 | 100 212 | 15.736 52.489
vgg19 vgg19_bn | maxpool1 maxpool2 maxpool3 | 112 56 28 | 2 4 8 | 6 16 52 | 0.071 0.492 4.785
vgg19 vgg19_bn | maxpool4 maxpool5 | 14 7 | 16 32 | 124 268 | 22.757 70.440
vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn | conv1 | 224 | 1 | 3 | 0.018
resnet18 resnet34 resnet50 resnet101 resnet152 | conv1 maxpool | 112 56 | 2 4 | 7 11 | 0.096 0.235
resnext50_32x4d resnext101_32x8d resnext101_64x4d | conv1 maxpool | 112 56 | 2 4 | 7 11 | 0.096 0.235
wide_resnet50_2 wide_resnet101_2 | conv1 maxpool | 112 56 | 2 4 | 7 11 | 0.096 0.235
resnet18 | layer1 layer2 layer3 layer4 | 56 28 14 7 | 4 8 16 32 | 43 99 211 435 | 3.339 15.446 51.706 99.236
resnet34 | layer1 layer2 layer3 layer4 | 56 28 14 7 | 4 8 16 32 | 59 179 547 899 | 6.052 40.877 100 100
resnet50 resnext50_32x4d wide_resnet50_2 | layer1 layer2 | 56 28 | 4 8 | 35 91 | 2.253 13.308
resnet50 resnext50_32x4d wide_resnet50_2 | layer3 layer4 | 14 7 | 16 32 | 267 427 | 69.852 98.729
resnet101 resnext101_32x8d resnext101_64x4d wide_resnet101_2 | layer1 layer2 | 56 28 | 4 8 | 35 91 | 2.253 13.308
resnet101 resnext101_32x8d resnext101_64x4d wide_resnet101_2 | layer3 layer4 | 14 7 | 16 32 | 811 971 | 100 100
resnet152 | layer1 layer2 layer3 layer4 | 56 28 14 7 | 4 8 16 32 | 35 155 1291 1451 | 2.253 32.726 100 100
densenet121 densenet161 densenet169 densenet201 | pool0 denseblock1 transition1 | 56 56 28 | 4 4 8 | 11 59 63 | 0.235 6.052 6.837
densenet121 densenet161 densenet169 densenet201 | denseblock2 transition2 | 28 14 | 8 16 | 255 263 | 66.327 68.843
densenet121 | denseblock3 transition3 denseblock4 | 14 7 7 | 16 32 32 | 1031 1047 2071 | 100 100 100
squeezenet1_0 | conv1 maxpool1 maxpool2 | 109 54 27 | 2 4 8 | 7 11 43 | 0.098 0.241 3.435
squeezenet1_0 | maxpool3 features | 13 13 | 16 16 | 123 155 | 23.746 34.524
squeezenet1_1 | conv1 maxpool1 maxpool2 | 111 55 27 | 2 4 8 | 3 7 31 | 0.018 0.098 1.843
squeezenet1_1 | maxpool3 features | 13 13 | 16 16 | 79 207 | 10.936 52.752
inception_v3 | Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 | 111 109 109 | 2 2 2 | 3 7 11 | .018 .098 .240
inception_v3 | maxpool1 Conv2d_4a_3x3 maxpool2 | 54 52 25 | 4 4 8 | 15 23 31 | .444 1.047 1.905
inception_v3 | Mixed_5b Mixed_5c Mixed_5d Mixed_6a | 25 25 25 12 | 8 8 8 16 | 63 95 127 159 | 7.377 15.504 25.448 37.406
inception_v3 | Mixed_6b Mixed_6c | 12 12 | 16 16 | 351 543 | 92.985 97.339
inception_v3 | Mixed_6d Mixed_6e | 12 12 | 16 16 | 0 0 | 97.339 97.339
"""  # noqa: E501


class Row(NamedTuple):
    backbone: str
    stage: str
    size: int
    stride: int
    side: int
    percent: float


def rows() -> list[Row]:
    """Every value of the table, a row for each backbone and stage."""
    found = []
    for line in TABLE.strip().splitlines():
        backbones, *columns = (part.split() for part in line.split("|"))
        for backbone in backbones:
            for stage, size, stride, side, percent in zip(*columns, strict=True):
                found.append(Row(backbone, stage, int(size), int(stride), int(side), float(percent)))
    return found


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
