"""The networks of the self-explaining study: learners and critics for 28 x 28 pixels (spec cnn_lsx, section 2).

A net returns log-probabilities; `Net.encode` is what the explanation similarity compares, and ``target_layer`` what
gradcam looks at.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from helpers.config import ConfigError, suggest

SIDE = 28  # pixels of the images that all of them take


class Net(nn.Module):
    """A classifier in two parts, `encode` and `head`: x float32 [B, C, 28, 28] to log-probabilities [B, K]."""

    @property
    def target_layer(self) -> nn.Module | None:
        """The last convolution, whose output is not yet rectified; None if there is none."""
        return None

    def encode(self, x: Tensor) -> Tensor:
        """The encoding [B, D] of ``x``."""
        raise NotImplementedError

    def head(self, encoding: Tensor) -> Tensor:
        """The logits [B, K] of an ``encoding`` [B, D]."""
        raise NotImplementedError

    def logits(self, x: Tensor) -> Tensor:
        """[B, K] of ``x``, before the log-softmax."""
        return self.head(self.encode(x))

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.logits(x), dim=1)


class ConvNet(Net):
    """What `Net1` and `SimpleConvNet` share: two convolutions ``conv1`` and ``conv2``, which the encoding is the pooled
    output of, and two linear layers ``fc1`` and ``fc2``."""

    @property
    def target_layer(self) -> nn.Module:
        return self.conv2

    def head(self, encoding: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(encoding)))


class Net1(ConvNet):
    """3 x 3 convolutions, then means of 2 x 2 pixels: an encoding of 9,216 values; 1,199,882 parameters if K is 10.

    The original declares two dropouts and never applies them: there are none. ``widths`` of the convolutions and
    ``hidden`` units are the original's; tests take fewer.
    """

    def __init__(
        self, in_channels: int = 1, n_classes: int = 10, widths: tuple[int, int] = (32, 64), hidden: int = 128
    ):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(in_channels, widths[0], 3), nn.Conv2d(widths[0], widths[1], 3)
        self.fc1 = nn.Linear(widths[1] * ((SIDE - 4) // 2) ** 2, hidden)
        self.fc2 = nn.Linear(hidden, n_classes)

    def encode(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return F.avg_pool2d(x, 2).flatten(1)


class MedNet1(Net1):
    """`Net1` for colour images. Raises `ConfigError` for others."""

    def __init__(self, in_channels: int = 3, n_classes: int = 10):
        if in_channels != 3:
            raise ConfigError(f"MedNet1 takes images of 3 channels, not of {in_channels}: Net1 takes those")
        super().__init__(in_channels, n_classes)


class SimpleConvNet(ConvNet):
    """5 x 5 convolutions, each followed by the maxima of 2 x 2 pixels; an encoding of 800 values."""

    def __init__(self, in_channels: int = 1, n_classes: int = 10):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(in_channels, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(50 * 4 * 4, 256), nn.Linear(256, n_classes)

    def encode(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)


class MLP(Net):
    """Linear layers of 512, 256 and K units, two of them rectified and with ``dropout``: an encoding of 256 values."""

    def __init__(self, in_channels: int = 1, n_classes: int = 10, dropout: float = 0.2):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(in_channels * SIDE * SIDE, 512), nn.Linear(512, 256)
        self.fc3 = nn.Linear(256, n_classes)
        self.dropout = nn.Dropout(dropout)

    def encode(self, x: Tensor) -> Tensor:
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))
        return self.dropout(F.relu(self.fc2(x)))

    def head(self, encoding: Tensor) -> Tensor:
        return self.fc3(encoding)


# ----------------------------------------------------------------------------------------------------- by name

MODELS: dict[str, Callable[[int, int], Net]] = {
    "Net1": Net1,
    "SimpleConvNet": SimpleConvNet,
    "MedNet1": MedNet1,
    "MLP": MLP,
}


def pair(name: str) -> tuple[str, str]:
    """(learner, critic) of the setting ``model``: ``"Net1"`` names both, ``"Net1-MLP"`` a learner and another critic.

    Raises `ConfigError` for a name that does not exist, near misses listed.
    """
    learner, dash, critic = name.partition("-")
    names = (learner, critic if dash else learner)
    if not set(names) <= set(MODELS):
        raise ConfigError(f"unknown model {name!r}: {suggest(name, [*MODELS, 'Net1-MLP', 'MLP-Net1'])}")
    return names


def build(name: str, in_channels: int, n_classes: int) -> Net:
    """The net ``name``, one of `MODELS`, for x [B, in_channels, 28, 28] and K = ``n_classes``, with torch's default
    initialisation, drawn from its global generator.

    Raises `ConfigError` for a name that does not exist, near misses listed, or a number of channels it cannot take.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}: {suggest(name, MODELS)}")
    return MODELS[name](in_channels, n_classes)
