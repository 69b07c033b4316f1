"""The classifiers whose graphs are drawn, by name, and anyone's own as ``"module:factory"`` (spec explainnn 7.1, 8).

Every use of an activation or a pooling has a module of its own: rule-based explainers hook modules, and one that is
called twice gives them the wrong input (spec section 5). All can be traced by ``torch.fx.symbolic_trace``. State
dicts of ResNets and ConvNeXt have torchvision's names and shapes, so that its weights load.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.config import ConfigError, suggest


class LeNet(nn.Module):
    """Two convolutions and three linear layers, for 32 x 32 pixels (spec section 7.1): [B, C, 32, 32] to [B, K]."""

    def __init__(self, in_channels: int = 1, n_classes: int = 10):
        super().__init__()
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(in_channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2, self.pool2 = nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)
        self.fc1, self.relu3 = nn.Linear(16 * 5 * 5, 120), nn.ReLU()
        self.fc2, self.relu4 = nn.Linear(120, 84), nn.ReLU()
        self.fc3 = nn.Linear(84, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = torch.flatten(x, 1)
        return self.fc3(self.relu4(self.fc2(self.relu3(self.fc1(x)))))


# ----------------------------------------------------------------------------------------------------- ResNet


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)


def _downsample(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    """What brings the skip to the block's shape; None where it has that already."""
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(_conv(channels_in, channels_out, 1, stride), nn.BatchNorm2d(channels_out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the skip (arXiv 1512.03385, figure 5 left)."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = _conv(channels_in, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = _conv(width, width, 3), nn.BatchNorm2d(width), nn.ReLU()
        self.downsample = _downsample(channels_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(h + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and the skip (arXiv 1512.03385, figure 5 right), the stride in the 3x3 one."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int = 1):
        super().__init__()
        out = width * self.expansion
        self.conv1, self.bn1, self.relu1 = _conv(channels_in, width, 1), nn.BatchNorm2d(width), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU()
        self.conv3, self.bn3, self.relu3 = _conv(width, out, 1), nn.BatchNorm2d(out), nn.ReLU()
        self.downsample = _downsample(channels_in, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu1(self.bn1(self.conv1(x)))
        h = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(h)))))
        return self.relu3(h + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Four stages of residual blocks (arXiv 1512.03385): [B, C, H, W] to [B, K], at any size above 32 pixels."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        in_channels: int = 3,
        n_classes: int = 1000,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
        self.bn1, self.relu1, self.maxpool = nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)
        channels, stages = 64, []
        for level, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                blocks.append(block(channels, 64 * 2**level, stride=2 if level and not index else 1))
                channels = 64 * 2**level * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu1(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18(in_channels: int = 3, n_classes: int = 1000) -> ResNet:
    return ResNet(BasicBlock, (2, 2, 2, 2), in_channels, n_classes)


def resnet50(in_channels: int = 3, n_classes: int = 1000) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3), in_channels, n_classes)


# --------------------------------------------------------------------------------------------------- ConvNeXt


class Permute(nn.Module):
    """The axes of [B, ...] in another order."""

    def __init__(self, *dims: int):
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(*self.dims)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [B, C, H, W], at each position on its own."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class StochasticDepth(nn.Module):
    """In training, zero instead of a sample's branch with probability ``p``, and 1 / (1 - p) times it otherwise
    (arXiv 1603.09382); in eval mode nothing."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        kept = torch.empty((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device).bernoulli_(1 - self.p)
        return x * (kept / (1 - self.p))


class ConvNeXtBlock(nn.Module):
    """A depthwise 7x7 convolution, two linear layers on the channels, a scale of each channel, and the skip."""

    def __init__(self, width: int, drop: float):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))
        self.stochastic_depth = StochasticDepth(drop)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.stochastic_depth(self.layer_scale * self.block(x))


class ConvNeXt(nn.Module):
    """A patch stem, four stages of blocks with halvings between them, the mean over space (arXiv 2201.03545): [B, C, H,
    W] to [B, K], H and W at least 32. ``drop``: of stochastic depth at the last block, from 0 at the first."""

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 9, 3),
        widths: Sequence[int] = (96, 192, 384, 768),
        in_channels: int = 3,
        n_classes: int = 1000,
        drop: float = 0.1,
    ):
        super().__init__()
        layers: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(in_channels, widths[0], 4, 4), ChannelNorm(widths[0], eps=1e-6))
        ]
        count, total = 0, sum(depths)
        for level, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            if level:
                below = widths[level - 1]
                layers.append(nn.Sequential(ChannelNorm(below, eps=1e-6), nn.Conv2d(below, width, 2, 2)))
            blocks = [ConvNeXtBlock(width, drop * (count + i) / max(total - 1, 1)) for i in range(depth)]
            layers.append(nn.Sequential(*blocks))
            count += depth
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        head = nn.Linear(widths[-1], n_classes)
        self.classifier = nn.Sequential(ChannelNorm(widths[-1], eps=1e-6), nn.Flatten(1), head)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)))


def convnext_tiny(in_channels: int = 3, n_classes: int = 1000) -> ConvNeXt:
    return ConvNeXt(in_channels=in_channels, n_classes=n_classes)


# ----------------------------------------------------------------------------------------------------- by name

MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "LeNet": LeNet,
    "ResNet18": resnet18,
    "ResNet50": resnet50,
    "ConvNeXt": convnext_tiny,
}


def build(model_name: str, in_channels: int, n_classes: int) -> nn.Module:
    """The network ``model_name``, initialised from torch's global generator: one of `MODELS`, or the module that
    ``"module:factory"``, an importable ``factory(in_channels, n_classes)``, returns.

    Raises `ConfigError` for a name that does not exist (near misses listed) or a factory that makes no ``nn.Module``.
    """
    if model_name in MODELS:
        return MODELS[model_name](in_channels, n_classes)
    if ":" not in model_name:
        raise ConfigError(
            f"unknown model {model_name!r}: {suggest(model_name, MODELS)}; one of your own is named 'module:factory'"
        )
    model = _factory(model_name)(in_channels, n_classes)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{model_name} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _factory(name: str) -> Callable[[int, int], nn.Module]:
    module_name, _, factory_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"model {name!r}: {module_name!r} cannot be imported ({error})") from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = suggest(factory_name, there)
        raise ConfigError(f"model {name!r}: {module_name} has no {factory_name!r} to call; {near}")
    return factory
