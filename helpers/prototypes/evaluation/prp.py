"""Prototypical relevance propagation (PRP, arXiv 2108.12204): a prototype's similarity at its best cell, handed back
through the network to the pixels (spec section 4.5).

    heat = relevance(model, x, prototypes)               # [B, P, H, W]; what is at the pixels sums up to 1
    of = Propagator(model)                               # the same for several calls
    heat = of.relevance(x, prototypes)

Relevance 1 stands at the best cell. It is shared among the channels by how well each matches the prototype, and from
there on, operation by operation, among what each was computed from:

- convolutions share in proportion to positive contributions, weight times input (alpha 1, beta 0), the bias left out;
  those that read the image may follow z^B instead (``zbox``), which knows how dark and bright pixels can be;
- activations pass all on to their input, and so does batch normalisation where there is no convolution before it that
  it can be folded into (DenseNet);
- sums of branches and average pooling share in proportion to the summands (``epsilon``), or among those alone that have
  the sum's sign (``same_sign``);
- max pooling gives all to the greatest; concatenation and whatever moves values, to where they come from.

A unit that is active by its bias alone has no positive contribution: its relevance is lost, and 1 minus the sum of a
map is what was lost on the way. That is nothing in VGG, SqueezeNet and ResNet with weights of ImageNet, and about half
or more in EfficientNet-Lite, whose depthwise units have but one channel to look at.

``epsilon`` is the published rule. Where it adds branches of different signs, relevance becomes negative here and
greater there, and where they cancel it has no bounds; with ``same_sign`` none is negative. In networks that add no
branches up the two are one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.attribution.base import evaluating
from helpers.config import ConfigError, suggest
from helpers.data.images import Preprocess
from helpers.prototypes.evaluation.canonise import canonise
from helpers.prototypes.evaluation.relevance_rules import SUM_RULES, TINY, Bounds, Propagation
from helpers.prototypes.models import ProtoNet
from helpers.prototypes.similarity import full_precision

INPUT_RULES = ("alpha1beta0", "zbox")
LOW, HIGH = -2.118, 2.640  # of pixels normalised as ImageNet's are
AT_ONCE = 16  # maps
SAME = 1e-3  # how far cells of the copy may be from the model's, which lie in [0, 1]


def relevance(
    model: ProtoNet,
    x: Tensor,
    prototypes: Tensor,
    *,
    input_rule: str = "alpha1beta0",
    sum_rule: str = "epsilon",
    low: float | Tensor = LOW,
    high: float | Tensor = HIGH,
    chunk: int = AT_ONCE,
) -> Tensor:
    """float32 [B, P, H, W]: what of the similarities of ``prototypes`` (int64 [P], or [B, P]: others in each image) at
    their best cells each pixel of x [B, C, H, W] accounts for. Options and errors are those of `Propagator`."""
    made = Propagator(model, input_rule=input_rule, sum_rule=sum_rule, low=low, high=high)
    return made.relevance(x, prototypes, chunk=chunk)


def pixel_bounds(normalisation: Preprocess) -> tuple[Tensor, Tensor]:
    """The least and the greatest value [C] of normalised pixels: ``low`` and ``high`` of the rule ``zbox``."""
    mean, std = torch.tensor(normalisation.mean), torch.tensor(normalisation.std)
    return -mean / std, (1 - mean) / std


class Propagator:
    """``model`` as it is now, made ready for `relevance` in a copy; the model itself is never changed.

    ``input_rule``: "alpha1beta0", or "zbox" with the bounds ``low`` and ``high`` of normalised pixels, numbers or [C]
    (default: ImageNet's). ``sum_rule``: "epsilon" or "same_sign".

    Raises `ConfigError` for an unknown rule, and for a network with an operation that has none, which it names.
    """

    def __init__(
        self,
        model: ProtoNet,
        *,
        input_rule: str = "alpha1beta0",
        sum_rule: str = "epsilon",
        low: float | Tensor = LOW,
        high: float | Tensor = HIGH,
    ):
        for rule, known in ((input_rule, INPUT_RULES), (sum_rule, SUM_RULES)):
            if rule not in known:
                raise ConfigError(f"unknown rule {rule!r}: {suggest(rule, known)}")
        self.model, self.sum_rule = model, sum_rule
        self.bounds = (low, high) if input_rule == "zbox" else None
        self.features, self.add_on = canonise(model.features), canonise(model.add_on)

    def relevance(self, x: Tensor, prototypes: Tensor, *, chunk: int = AT_ONCE, channels: bool = False) -> Tensor:
        """float32 [B, P, H, W], the sum over channels; with ``channels`` each of them, [B, P, C, H, W].

        ``chunk``: how many maps are computed at once, which memory grows with; what they are does not depend on it.
        Raises `ConfigError` for prototypes that there are not, pixels out of bounds, and if the model has changed since
        it was copied; ``ValueError`` for tensors of other shapes and types.
        """
        if chunk < 1:
            raise ConfigError(f"chunk must be at least 1, not {chunk}")
        x, prototypes = self._checked(x, prototypes)
        images = max(1, chunk // prototypes.shape[1])
        found = []
        with _exact(x), evaluating(self.model):
            for some, asked in zip(x.split(images), prototypes.split(images), strict=True):
                copied, back = self._forward(some)
                z = self.model.embed(some)
                if not (off := (copied - z).abs().max()) <= SAME:
                    raise ConfigError(f"the model's cells are off by {off:.2g}: it has changed since it was copied")
                cells = self.model.distances(z).flatten(2).min(2).indices
                maps = [back(self._start(z, cells, p)) for p in asked.split(max(1, chunk // len(some)), dim=1)]
                found.append(torch.cat(maps).transpose(0, 1))
        maps = torch.cat(found)
        return maps if channels else maps.sum(2)

    def embed(self, x: Tensor) -> Tensor:
        """float32 [B, D, Hz, Wz]: `ProtoNet.embed`, by the copy."""
        with _exact(x):
            return self._forward(x)[0]

    def _forward(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The cells [B, D, Hz, Wz], and what takes their relevance [P, B, D, Hz, Wz] back to the pixels."""
        x = x.float().clone()  # an inference tensor has no gradients
        features = Propagation(self.features, self.sum_rule, self.bounds and self._bounds(x))
        add_on = Propagation(self.add_on, self.sum_rule)
        z = add_on.run(features.run(x))
        if self.bounds and not features.boxed:
            raise ConfigError("no convolution of this network reads the image: the rule 'zbox' has no place in it")
        return z, lambda r: features.back(add_on.back(r))

    def _start(self, z: Tensor, cells: Tensor, prototypes: Tensor) -> Tensor:
        """[P, B, D, Hz, Wz]: relevance 1 for each of ``prototypes`` [B, P] at its best cell, among channels in inverse
        proportion to how far they are from a match. ``cells`` [B, all prototypes], flat."""
        cells = cells.gather(1, prototypes)
        at = z.flatten(2).gather(2, cells[:, None].expand(-1, z.shape[1], -1)).transpose(1, 2)  # [B, P, D]
        vectors = self.model.prototypes.float().flatten(1)[prototypes]
        if self.model.distance == "cosine":
            apart = (1 - F.normalize(vectors, dim=2) * F.normalize(at, dim=2)).square()
        else:
            apart = (at - vectors).pow(4)
        share = F.normalize(1 / (apart + TINY), p=1, dim=2)
        start = z.new_zeros(*share.shape, z.shape[2:].numel())
        start.scatter_(3, cells[:, :, None, None].expand(*share.shape, 1), share[..., None])
        return start.unflatten(3, z.shape[2:]).transpose(0, 1)

    def _bounds(self, x: Tensor) -> Bounds:
        """The darkest and the brightest image [B, C, H, W] that there can be."""
        low, high = (torch.as_tensor(b, dtype=x.dtype, device=x.device).view(-1, 1, 1) for b in self.bounds)
        if (x < low - SAME).any() or (x > high + SAME).any():
            raise ConfigError(
                f"pixels from {float(x.min()):.4g} to {float(x.max()):.4g} leave the bounds of 'zbox', which are "
                f"{float(low.min()):.4g} and {float(high.max()):.4g}: set low and high (pixel_bounds)"
            )
        return low.expand_as(x), high.expand_as(x)

    def _checked(self, x: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Both on the model's device, ``prototypes`` [B, P]."""
        if x.ndim != 4 or not len(x) or not x.is_floating_point():
            raise ValueError(f"expected x [B, C, H, W] of floats with B > 0, not {x.dtype} {tuple(x.shape)}")
        each = prototypes.expand(len(x), -1) if prototypes.ndim == 1 else prototypes
        if each.ndim != 2 or len(each) != len(x) or not each.numel() or each.dtype != torch.int64:
            raise ValueError(
                f"expected prototypes int64 [P] or [{len(x)}, P] with P > 0, not {prototypes.dtype} "
                f"{tuple(prototypes.shape)}"
            )
        count, where = len(self.model.prototypes), self.model.prototypes.device
        if not 0 <= int(each.min()) <= int(each.max()) < count:
            raise ConfigError(f"prototypes have the numbers 0 to {count - 1}, not {each.unique().tolist()}")
        return x.to(where), each.to(where)


@contextmanager
def _exact(x: Tensor) -> Iterator[None]:
    """float32 throughout: convolutions in TF32 would lose a thousandth a layer. No gradients but those of moves."""
    cudnn, before = torch.backends.cudnn, torch.backends.cudnn.allow_tf32
    cudnn.allow_tf32 = False
    try:
        with torch.inference_mode(False), torch.no_grad(), full_precision(x):
            yield
    finally:
        cudnn.allow_tf32 = before
