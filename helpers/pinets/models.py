"""PiNet and its baseline (arXiv 2601.04378, sections 2 and 3).

    h      = encoder(x)
    scores = activation(decoder(h))           the explanation (the paper's pi), the shape of z
    signal = scores * z(x)                    the second look: hard sums this, soft sums the scores alone
    logit  = weight**2 * sum(signal) + bias   the aggregator (the paper's b and a)

The prediction is linear in `z`, with coefficients the network writes for each instance: whatever the map shows is what
was summed, and nothing else was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SecondLook = Literal["hard", "soft"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": lambda scores: scores.softmax(1),
    "identity": lambda scores: scores,
}


class Output(NamedTuple):
    """What every model here returns.

    ``logits`` [B], or [B, K] of several classes; ``scores`` [B, K, H, W], a PiNet's explanation (of the CNN baseline:
    its last feature maps); ``signal`` [B, K, H, W], the scores times z (of the baseline: None).
    """

    logits: Tensor
    scores: Tensor
    signal: Tensor | None


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm; ``skip`` adds the input, through a 1x1 convolution where widths differ.

    Without ``skip`` there is no such convolution. The published networks create it all the same and never use it, so
    theirs count 2,688 parameters more a PiNet.
    """

    def __init__(self, channels_in: int, channels_out: int, *, skip: bool = False, dropout: float = 0.0):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
            nn.BatchNorm2d(channels_out),
            nn.Dropout(dropout),
        )
        same = channels_in == channels_out
        self.shortcut = (nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)) if skip else None
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.relu(h if self.shortcut is None else h + self.shortcut(x))


class Encoder(nn.Sequential):
    """``depth`` residual blocks of doubling width, 2x2 max pooling between them: [B, C, H, W] to
    [B, width * 2**(depth-1), H / 2**(depth-1), W / 2**(depth-1)]."""

    def __init__(self, channels: int = 1, width: int = 16, depth: int = 3, *, skip: bool = False, dropout: float = 0.0):
        widths = [channels, *(width * 2**level for level in range(depth))]
        layers: list[nn.Module] = []
        for level in range(depth):
            layers += [nn.MaxPool2d(2)] if level else []
            layers += [ResidualBlock(widths[level], widths[level + 1], skip=skip, dropout=dropout)]
        super().__init__(*layers)
        self.out_channels = widths[-1]


class UpConv(nn.ConvTranspose2d):
    """A 2x2 transposed convolution of stride 2 as the matrix product that it is: equal values, a third of the time on
    a CPU, where the library's own kernels for this case are slow."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__(channels_in, channels_out, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return up_convolved(x, self.weight, self.bias)


def up_convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[B, C, H, W] to [B, D, 2 H, 2 W] by the ``weight`` [C, D, 2, 2] and ``bias`` [D] of an `UpConv`."""
    b, _, h, w = x.shape
    c_in, c = weight.shape[:2]
    kernel = weight.permute(2, 3, 1, 0).reshape(4 * c, c_in)
    cells = F.linear(x.permute(0, 2, 3, 1), kernel, bias.repeat(4)).view(b, h, w, 2, 2, c)
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


class Decoder(nn.Sequential):
    """Back to the input's size: transposed convolutions that halve the width, a residual block after each, then 1x1."""

    def __init__(self, channels: int, depth: int = 3, maps: int = 1, *, skip: bool = False, dropout: float = 0.0):
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            layers += [
                UpConv(channels, channels // 2),
                ResidualBlock(channels // 2, channels // 2, skip=skip, dropout=dropout),
            ]
            channels //= 2
        super().__init__(*layers, nn.Conv2d(channels, maps, 1))


class DenseDecoder(nn.Module):
    """The naive decoder (ablation): average pooling, then one dense layer to all of Z; space is lost on the way."""

    def __init__(self, channels: int, size: tuple[int, int], maps: int = 1):
        super().__init__()
        self.shape = (maps, *size)
        self.dense = nn.Linear(channels, maps * size[0] * size[1])

    def forward(self, h: Tensor) -> Tensor:
        return self.dense(h.mean((2, 3))).unflatten(1, self.shape)


class ScaledSum(nn.Module):
    """``weight**2 * sum(evidence) + bias`` for each of ``classes`` logits: [B, K, H, W] to [B] (one class) or [B, K].

    The square keeps evidence from counting against its class; a negative bias is the amount of it to overcome. With one
    class all maps add to one logit, else map k makes logit k.
    """

    def __init__(self, classes: int = 1):
        super().__init__()
        self.classes = classes
        shape = (classes,) if classes > 1 else ()
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))

    def scale(self) -> Tensor:
        """What one unit of evidence adds to its logit: a scalar, or [K, 1, 1]."""
        squared = self.weight**2
        return squared[:, None, None] if squared.ndim else squared

    def forward(self, evidence: Tensor) -> Tensor:
        total = evidence.sum((2, 3)) if self.weight.ndim else evidence.sum((1, 2, 3))
        return self.weight**2 * total + self.bias


class Area(nn.Module):
    """The plain sum of each map, for regression: areas, counts. [B, K, H, W] to [B, K], or [B] of a single map."""

    def scale(self) -> Tensor:
        return torch.ones(())

    def forward(self, evidence: Tensor) -> Tensor:
        total = evidence.sum((2, 3))
        return total[:, 0] if total.shape[1] == 1 else total


class PiNet(nn.Module):
    """A network whose logits are a linear read-out of its own explanation.

    Any encoder and decoder that end in the shape of z will do; ``z`` maps x to the features the reader understands
    (default: x itself) and must broadcast with the scores: [B, 1 or K, H, W]. Raises ``ValueError`` for a second look
    or an activation of another name.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        second_look: SecondLook = "hard",
        activation: str | Callable[[Tensor], Tensor] = "sigmoid",
        aggregator: nn.Module | None = None,
        z: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        if second_look not in ("hard", "soft"):
            raise ValueError(f"second_look must be 'hard' or 'soft', not {second_look!r}")
        if isinstance(activation, str) and activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; there are: {', '.join(ACTIVATIONS)}")
        self.encoder, self.decoder = encoder, decoder
        self.second_look = second_look
        self.activation = ACTIVATIONS[activation] if isinstance(activation, str) else activation
        self.aggregator = ScaledSum() if aggregator is None else aggregator
        self.z = nn.Identity() if z is None else z

    def forward(self, x: Tensor) -> Output:
        """``x`` [B, C, H, W], or [B, H, W] of one channel."""
        x = as_batch(x)
        # Under autocast the sum over thousands of pixels stays in float32: bfloat16 would round the evidence away.
        scores = self.activation(self.decoder(self.encoder(x)).float())
        return self.read_out(scores, self.z(x))

    def read_out(self, scores: Tensor, z: Tensor) -> Output:
        """The aggregator on given scores and z: the part of the network that a person can do by hand. ``ValueError``
        where several classes do not have a map each."""
        classes = getattr(self.aggregator, "classes", 1)
        if classes > 1 and scores.shape[1] != classes:
            raise ValueError(f"the decoder makes {scores.shape[1]} maps for {classes} classes: it needs one a class")
        signal = scores * z
        return Output(self.aggregator(self.evidence(scores, signal)), scores, signal)

    def evidence(self, scores: Tensor, signal: Tensor) -> Tensor:
        """[B, K, H, W]: what is added up."""
        return signal if self.second_look == "hard" else scores

    def contributions(self, output: Output) -> Tensor:
        """[B, K, H, W]: what each location adds to its logit; with the bias they sum to it."""
        return self.aggregator.scale() * self.evidence(output.scores, output.signal)


class Ensemble(nn.Module):
    """The mean of PiNets' logits, which is again a linear read-out: of the mean of ``weight**2 * scores``.

    Raises ``ValueError`` if there is no member, or if their second looks differ.
    """

    def __init__(self, members: Sequence[PiNet]):
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one member")
        if len({member.second_look for member in members}) > 1:
            raise ValueError("the members of an ensemble must share their second look")
        self.members = nn.ModuleList(members)

    @property
    def second_look(self) -> SecondLook:
        return self.members[0].second_look

    def forward(self, x: Tensor) -> Output:
        """``x`` [B, C, H, W], or [B, H, W] of one channel; scores and signal come times ``weight**2``."""
        outputs = [member(x) for member in self.members]
        scales = [member.aggregator.scale() for member in self.members]

        def mean(values: Sequence[Tensor]) -> Tensor:
            return torch.stack(list(values)).mean(0)

        return Output(
            mean(output.logits for output in outputs),
            mean(scale * output.scores for scale, output in zip(scales, outputs, strict=True)),
            mean(scale * output.signal for scale, output in zip(scales, outputs, strict=True)),
        )

    def contributions(self, output: Output) -> Tensor:
        """[B, K, H, W], as `PiNet.contributions`."""
        return output.signal if self.second_look == "hard" else output.scores


class CNN(nn.Module):
    """The baseline that post-hoc methods explain: encoder, average pooling, one dense layer."""

    def __init__(self, encoder: Encoder, classes: int = 1):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.out_channels, classes)

    def forward(self, x: Tensor) -> Output:
        features = self.encoder(as_batch(x))
        logits = self.head(features.mean((2, 3))).float()
        return Output(logits[:, 0] if logits.shape[1] == 1 else logits, features, None)


def as_batch(x: Tensor) -> Tensor:
    """[B, H, W] or [B, C, H, W] to [B, C, H, W]; ``ValueError`` for any other shape."""
    if x.ndim not in (3, 4):
        raise ValueError(f"expected x of shape [B, H, W] or [B, C, H, W], not {tuple(x.shape)}")
    return x[:, None] if x.ndim == 3 else x
