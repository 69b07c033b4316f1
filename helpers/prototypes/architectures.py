"""The backbones that are our own: a small one for birds, and two whose weights torchvision has no network for."""

from __future__ import annotations

import math

from torch import Tensor, nn

from helpers import runtime


class BirdNet(nn.Sequential):
    """For x [B, C, 128, 128] on two cores: five stages, each the sequel of the one before, [B, channels, map, map].

    | stage  | channels | map | side of a receptive field | stride | million MACs up to here |
    | stem   |  24      | 64  |   5                       |  2     |   7                     |
    | stage1 |  32      | 64  |   9                       |  2     |  36                     |
    | stage2 |  64      | 32  |  27                       |  4     |  92                     |
    | stage3 | 128      | 16  |  63                       |  8     | 149                     |
    | stage4 | 256      |  8  | 135                       | 16     | 205                     |

    The last one sees most of the image, as ProtoPNet's do.
    """

    def __init__(self, in_channels: int = 3):
        super().__init__()
        self.stem = _layers(in_channels, 24, kernel=5, stride=2)
        self.stage1 = _layers(24, 32)
        for stage, width in enumerate((64, 128, 256), 2):
            pair = nn.Sequential(nn.MaxPool2d(2), *_layers(width // 2, width), *_layers(width, width))
            self.add_module(f"stage{stage}", pair)


def _layers(before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


def resnet50_v1() -> nn.Module:
    """torchvision's `resnet50` with the strides of the paper (arXiv 1512.03385), as Caffe and Keras have it: in the
    first 1 x 1 convolution of a stage, not in the 3 x 3 one. Its cells see more: at layer3 291 pixels, not 267."""
    network = runtime.import_torchvision().models.resnet50()
    for layer in (network.layer2, network.layer3, network.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    return network


# -------------------------------------------------------------------------------------------- EfficientNet-Lite
# EfficientNet (arXiv 1905.11946) without squeeze-and-excitation and with ReLU6 (blog.tensorflow.org, March 2020).

LITE = {  # how much wider and deeper than the first
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
    "efficientnet_lite3": (1.2, 1.4),
    "efficientnet_lite4": (1.4, 1.8),
}
LITE_STAGES = (  # kernel, stride, expansion, channels, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class EfficientNetLite(nn.Sequential):
    """``stem``, ``stage1`` to ``stage7`` and ``top`` of one of `LITE`, padded as TensorFlow pads images of
    ``input_size``: where the stride leaves an odd pixel over, it is added at the bottom and right."""

    def __init__(self, name: str, input_size: int, in_channels: int = 3):
        super().__init__()
        width, depth = LITE[name]
        self.stem = nn.Sequential(*_lite(in_channels, 32, 3, 2, input_size))
        size, before = -(-input_size // 2), 32
        for number, (kernel, stride, expansion, channels, blocks) in enumerate(LITE_STAGES, 1):
            after = _eights(channels * width)
            fixed = number in (1, len(LITE_STAGES))
            stage = nn.Sequential()
            for _ in range(blocks if fixed else math.ceil(blocks * depth)):
                stage.append(_Inverted(before, after, kernel, stride, expansion, size))
                size, stride, before = -(-size // stride), 1, after
            self.add_module(f"stage{number}", stage)
        self.top = nn.Sequential(*_lite(before, 1280, 1, 1, size))


class _Inverted(nn.Module):
    """Wider by 1 x 1, depthwise, narrower by 1 x 1; added to what came in where the shapes agree."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int, size: int):
        super().__init__()
        inner = before * expansion
        wider = _lite(before, inner, 1, 1, size) if expansion > 1 else []
        narrower = _lite(inner, after, 1, 1, size)[:-1]  # not rectified
        self.layers = nn.Sequential(*wider, *_lite(inner, inner, kernel, stride, size, groups=inner), *narrower)
        self.adds = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


def _lite(before: int, after: int, kernel: int, stride: int, size: int, groups: int = 1) -> list[nn.Module]:
    missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    first, last = missing // 2, missing - missing // 2
    uneven = [nn.ZeroPad2d((first, last, first, last))] if first != last else []
    padding = 0 if uneven else first
    convolution = nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
    return [*uneven, convolution, nn.BatchNorm2d(after, eps=1e-3, momentum=0.01), nn.ReLU6(inplace=True)]


def _eights(channels: float) -> int:
    """The nearest multiple of 8, not more than a tenth below ``channels``."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
