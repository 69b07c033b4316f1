"""Values to compare with: the receptive fields of common backbones (spec pixpnet, section 3.4). 92 of 155 rows are the
original engine's own; ResNeXt and wide ResNets are interval arithmetic, concatenations the support of gradients."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from helpers.prototypes import backbones
from helpers.prototypes.receptive_field import receptive_fields

SIZE = 224  # pixels a side of the images
DIGITS = 0.00051  # percentage points: half of the last digit printed

# Backbones | stages | map | stride | un-clipped side | mean share of the image in per cent.
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


def compare() -> pd.DataFrame:
    """The table beside ours: a row for each backbone and stage, and whether all four numbers ``agree``."""
    found, fields = [], {}
    for row in rows():
        if row.backbone not in fields:
            fields = {row.backbone: receptive_fields(backbones.hollow(row.backbone), SIZE)}
        field = fields[row.backbone][backbones.aliases(row.backbone)[row.stage]]
        same = field.size == (row.size,) * 2 and field.stride == (row.stride,) * 2
        same &= not row.side or field.side == (row.side,) * 2
        found.append(
            row._asdict()
            | {"ours": field.mean_percent, "agrees": same and abs(field.mean_percent - row.percent) <= DIGITS}
        )
    return pd.DataFrame(found)
