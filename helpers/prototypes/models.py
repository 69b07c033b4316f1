"""Prototype networks, and the classifier that they are compared with (spec section 2).

A network reads an image x float32 [B, 3, S, S] through ``features``, a backbone cut at a stage. Its parameters stand
in groups of their own: ``features``, ``add_on``, ``prototypes`` and ``head``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from helpers import artifacts, runtime
from helpers.config import ConfigError
from helpers.prototypes import backbones, presets
from helpers.prototypes.similarity import distances, full_precision, similarity


@dataclass
class Logits:
    """What a `Classifier` returns: ``logits`` [B, C]."""

    logits: Tensor


@dataclass
class Output(Logits):
    """What a `ProtoNet` returns beside its ``logits`` [B, C]: of each of the P prototypes the distances to all cells,
    float32 [B, P, Hz, Wz], the least of them [B, P], its cell (int64 [B, P], row * Wz + column) and the similarity
    there, the greatest [B, P]."""

    min_distances: Tensor
    cells: Tensor
    distances: Tensor
    similarities: Tensor
    measure: Callable[[Tensor], Tensor] = field(repr=False)

    @property
    def similarity_map(self) -> Tensor:
        """[B, P, Hz, Wz]: the similarities to all cells."""
        return self.measure(self.distances)


# ------------------------------------------------------------------------------------------------------- heads
# None has a bias. A head gives the weights [C, P] with which similarities add up to logits; ``own`` [C, P] says which
# prototype belongs to which class.


class ProtoHead(nn.Module):
    """A logit is the sum of the similarities of the class's own prototypes: no parameters."""

    def forward(self, own: Tensor) -> Tensor:
        return own.float()


class SparseHead(nn.Module):
    """A weight, at first 1, for each prototype, which counts for its own class alone."""

    def __init__(self, n_prototypes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_prototypes))

    def forward(self, own: Tensor) -> Tensor:
        return own * self.weight


class LinearHead(nn.Module):
    """A weight for each class and prototype: ``correct`` at first for the own class, ``incorrect`` for others; drawn
    as `nn.Linear` does where no prototype belongs to a class."""

    def __init__(self, own: Tensor, correct: float, incorrect: float, class_specific: bool = True):
        super().__init__()
        bound = own.shape[1] ** -0.5
        drawn = torch.empty(own.shape).uniform_(-bound, bound)
        self.weight = nn.Parameter(torch.where(own, correct, incorrect) if class_specific else drawn)

    def forward(self, own: Tensor) -> Tensor:
        return self.weight


# ---------------------------------------------------------------------------------------------------- networks


class Network(nn.Module):
    """What both have: ``features``, and with ``frozen_norm`` a batch normalisation there that keeps the statistics of
    its pretrained weights."""

    def __init__(self, features: nn.Module, frozen_norm: bool = False):
        super().__init__()
        self.features, self.frozen_norm = features, frozen_norm

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen_norm:
            for module in self.features.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def from_features(self, z0: Tensor) -> Logits:
        """The output from that of ``features``, [B, channels, Hz, Wz], for a backbone whose features are kept."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Logits:
        return self.from_features(self.features(x))

    def logits(self, x: Tensor) -> Tensor:
        """[B, C]: `forward` for those who want nothing else."""
        return self(x).logits


class Classifier(Network):
    """Features, their means over all cells, a linear layer (spec section 10)."""

    def __init__(self, features: nn.Module, channels: int, n_classes: int, frozen_norm: bool = False):
        super().__init__(features, frozen_norm)
        self.head = nn.Linear(channels, n_classes)

    def from_features(self, z0: Tensor) -> Logits:
        with full_precision(z0):
            return Logits(self.head(z0.float().mean((2, 3))))


class ProtoNet(Network):
    """Cells of a feature map [B, channels, Hz, Wz] are compared with P prototypes, and the greatest similarity of each
    counts for its class. Prototype j belongs to class j // (P / C) of ``n_classes``, or none has a class (-1).

    ``source_image`` int64 [P] and ``source_cell`` int64 [P, 2] say which cell (row, column) of which training image a
    prototype was projected onto; -1 before that. All but the backbone computes in float32.
    """

    def __init__(
        self, features: nn.Module, channels: int, n_classes: int, model: presets.Model, frozen_norm: bool = False
    ):
        super().__init__(features, frozen_norm)
        count, self.n_classes, self.class_specific = model.num_prototypes, n_classes, model.class_specific
        self.distance, self.activation, self.epsilon = model.distance, model.prototype_activation, model.epsilon
        self.add_on = add_on_layers(channels, model.prototype_dim, model.add_on_layers_type, model.init_weights)
        self.prototypes = nn.Parameter(torch.rand(count, model.prototype_dim, 1, 1), model.learn_prototypes)
        belongs = classes_of(count, n_classes) if model.class_specific else torch.full((count,), -1)
        self.register_buffer("prototype_class", belongs)
        self.register_buffer("source_image", torch.full((count,), -1))
        self.register_buffer("source_cell", torch.full((count, 2), -1))
        strengths = model.correct_strength, model.incorrect_strength
        heads = {
            "proto": ProtoHead,
            "sparse": partial(SparseHead, count),
            "linear": partial(LinearHead, self.own, *strengths, model.class_specific),
        }
        self.head = heads[model.readout_type]()

    @property
    def own(self) -> Tensor:
        """bool [C, P]: which prototypes belong to which class."""
        return self.prototype_class == torch.arange(self.n_classes, device=self.prototype_class.device)[:, None]

    @property
    def weights(self) -> Tensor:
        """[C, P]: what each similarity is multiplied with on its way to each logit."""
        return self.head(self.own)

    def embed(self, x: Tensor) -> Tensor:
        """float32 [B, D, Hz, Wz]: the cells that prototypes are compared with."""
        return self.embed_features(self.features(x))

    def embed_features(self, z0: Tensor) -> Tensor:
        """`embed` from the output of ``features``."""
        with full_precision(z0):
            return self.add_on(z0.float())

    def distances(self, z: Tensor) -> Tensor:
        """float32 [B, P, Hz, Wz] of z [B, D, Hz, Wz]."""
        return distances(z, self.prototypes.flatten(1), self.distance)

    def similarity(self, distance: Tensor) -> Tensor:
        """float32, of the shape of ``distance``."""
        return similarity(distance, self.activation, self.distance, self.epsilon)

    def from_features(self, z0: Tensor) -> Output:
        found = self.distances(self.embed_features(z0))
        least, cells = found.flatten(2).min(2)
        greatest = self.similarity(least)
        with full_precision(greatest):
            logits = greatest @ self.weights.T
        return Output(logits, least, cells, found, greatest, self.similarity)

    def contributions(self, similarities: Tensor, classes: Tensor) -> Tensor:
        """[B, P]: what each prototype adds to the logit of ``classes`` [B] (int64), given ``similarities`` [B, P] of an
        `Output`. They sum up to the logit: a prediction's whole explanation."""
        return similarities * self.weights[classes]


# ------------------------------------------------------------------------------------------------------- parts


def add_on_layers(channels: int, dim: int, kind: str, init_weights: bool = True) -> nn.Sequential:
    """1 x 1 convolutions from ``channels`` to ``dim``, a sigmoid at the end (spec section 2.2).

    ``regular``: two of them. ``bottleneck``: pairs that halve the channels down to ``dim``. ``init_weights``: Kaiming's
    initialisation, Xavier's for the last one, no biases; else PyTorch's.
    """
    widths = [channels]
    while kind == "bottleneck" and widths[-1] // 2 > dim:
        widths.append(widths[-1] // 2)
    widths.append(dim)
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(before, after, 1), nn.ReLU(), nn.Conv2d(after, after, 1), nn.ReLU()]
    layers[-1] = nn.Sigmoid()
    convolutions = layers[::2]
    for convolution in convolutions if init_weights else ():
        if convolution is convolutions[-1]:
            nn.init.xavier_normal_(convolution.weight)
        else:
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(convolution.bias)
    return nn.Sequential(*layers)


def classes_of(n_prototypes: int, n_classes: int) -> Tensor:
    """int64 [P]: the class of each prototype, in blocks of equal length. Raises `ConfigError` if that is impossible."""
    each, rest = divmod(n_prototypes, n_classes)
    if rest:
        near = " or ".join(str(k * n_classes) for k in (each, each + 1) if k)
        raise ConfigError(
            f"model.num_prototypes must be a multiple of the {n_classes} classes, not {n_prototypes}: take {near}"
        )
    return torch.arange(n_classes).repeat_interleave(each)


def build(
    model: presets.Model,
    n_classes: int,
    input_size: int,
    seed: int,
    in_channels: int = 3,
    load_weights: bool = True,
) -> ProtoNet | Classifier:
    """The network of the settings, for x [B, in_channels, input_size, input_size], initialised from streams of
    (seed, "initialisation"). ``load_weights=False``: without reading pretrained weights, for a state that is loaded
    next.

    Raises `ConfigError` for a backbone, stage or number of prototypes that there cannot be.
    """
    if n_classes < 1:
        raise ConfigError(f"there must be at least one class, not {n_classes}")
    if model.name == "protonet" and model.class_specific:
        classes_of(model.num_prototypes, n_classes)  # says no before a backbone is loaded
    with runtime.seeded(seed, "initialisation", "backbone"):
        backbone = backbones.backbone(model, input_size, in_channels, load_weights)
    with runtime.seeded(seed, "initialisation", "head"):  # the same behind every backbone with as many channels
        if model.name == "classifier":
            return Classifier(backbone.module, backbone.channels, n_classes, backbone.frozen_norm)
        return ProtoNet(backbone.module, backbone.channels, n_classes, model, backbone.frozen_norm)


def prune(model: ProtoNet, drop: Sequence[int] | Tensor) -> None:
    """Take the prototypes ``drop`` (indices) out of ``model``, with what it knows and weighs of them.

    Raises `ConfigError` for an index that there is not, for what are no indices (a mask), and if a class would be left
    without a prototype.
    """
    count, drop = len(model.prototypes), torch.as_tensor(drop, device=model.prototypes.device)
    if len(drop) and (drop.dtype == torch.bool or drop.is_floating_point()):
        raise ConfigError(f"expected numbers of prototypes, not {drop.dtype}: a mask's are mask.nonzero().flatten()")
    drop = drop.long()
    if len(drop) and not 0 <= int(drop.min()) <= int(drop.max()) < count:
        raise ConfigError(f"prototypes have the numbers 0 to {count - 1}: cannot drop {drop.tolist()}")
    keep = torch.ones(count, dtype=torch.bool, device=drop.device)
    keep[drop] = False
    bare = (~model.own[:, keep].any(1)).nonzero().flatten().tolist() if model.class_specific else []
    if bare or not keep.any():
        whom = f"class {bare[0]}" if bare else "the network"
        raise ConfigError(f"{whom} would be left without a prototype")
    _keep(model, keep)


def load(model: Network, state: Mapping[str, Tensor]) -> None:
    """`artifacts.load_state`, also into a new network of weights whose prototypes were pruned."""
    if isinstance(model, ProtoNet) and "prototypes" in state and len(state["prototypes"]) < len(model.prototypes):
        _keep(model, slice(len(state["prototypes"])))
    artifacts.load_state(model, state)


def _keep(model: ProtoNet, rows: Tensor | slice) -> None:
    for name in ("prototype_class", "source_image", "source_cell"):
        setattr(model, name, getattr(model, name)[rows])
    owners = [(model, "prototypes", (rows,))]
    if not isinstance(model.head, ProtoHead):
        owners.append((model.head, "weight", (..., rows)))  # the prototypes come last
    for owner, name, index in owners:
        values = getattr(owner, name)
        setattr(owner, name, nn.Parameter(values.detach()[index], values.requires_grad))
