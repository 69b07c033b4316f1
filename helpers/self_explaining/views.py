"""What the explorer of self-explaining nets shows, without its widgets: computed anew from nets and images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from helpers import runtime, widgets
from helpers.attribution.base import evaluating
from helpers.config import ConfigError
from helpers.data import decoys
from helpers.data.images import Images
from helpers.self_explaining import evaluate, removal
from helpers.self_explaining.derivatives import fast
from helpers.self_explaining.explanations import peaks, post, raw
from helpers.self_explaining.presets import Explanation, Label
from helpers.self_explaining.sets import Sets

Key = tuple[str, str]
"""Of a net: (what it was trained on, how it learned)."""

Norm = Literal["sample", "batch"]
Keep = Literal["without", "alone"]
"""The image without the pixels that a map calls relevant, or these pixels alone."""

Corner = Literal["upper left", "upper right", "lower left", "lower right"]
CORNERS: tuple[Corner, ...] = ("upper left", "upper right", "lower left", "lower right")

BATCH = 128  # images whose maximum divides a map under the norm `batch`, as in the tests of the study
AT_ONCE = 64  # of them: what stays in a core's cache
N_CRITIC, CRITIC_BATCH = 18, 32  # batches of a critic and images in each: a pass takes seconds
SEED = 0  # of the critic and its set, and of the order of equal pixels
CACHED = 512  # attributions and predictions of single images; as many attributions as all decoys of a dozen images
TINT = (38, 50, 72)  # of removed pixels: the background would pass for what the image shows there


class Decoy(NamedTuple):
    """A square as `helpers.data.decoys` paints it for ``digit``, in a corner that is chosen instead of drawn."""

    digit: int
    corner: Corner

    def mask(self, height: int, width: int) -> Tensor:
        """bool [height, width]: its pixels."""
        vertical, horizontal = self.corner.split()
        rows, columns = torch.arange(height), torch.arange(width)
        rows = rows < decoys.SIDE if vertical == "upper" else rows >= height - decoys.SIDE
        columns = columns < decoys.SIDE if horizontal == "left" else columns >= width - decoys.SIDE
        return rows[:, None] & columns

    @property
    def grey(self) -> int:
        """Of 255."""
        return decoys.BRIGHTEST - decoys.STEP * self.digit

    def paint(self, x: Tensor) -> Tensor:
        """``x`` [n, C, H, W] in [0, 1] with the square in every image."""
        return torch.where(self.mask(*x.shape[2:]), self.grey / 255, x)


@dataclass(frozen=True, eq=False)
class Look:
    """What a net makes of an image. ``before`` and ``after`` float64 [K]: the probabilities of the classes for the
    whole image and for what the removal leaves. ``heat`` float64 [H, W]: the explanation for the class ``explained``,
    of which the share ``mass`` is on the decoy (None: there is none). ``removed`` bool [H, W]: the pixels replaced."""

    before: np.ndarray
    after: np.ndarray
    explained: int
    heat: np.ndarray
    removed: np.ndarray
    mass: float | None

    @property
    def predicted(self) -> int:
        return int(self.before.argmax())

    @property
    def fall(self) -> float:
        """Of the probability of the class that is predicted for the whole image, as in `removal.by_rank`."""
        return float(self.before[self.predicted] - self.after[self.predicted])


class Lab:
    """The nets, by what they were trained on and by how they learned, and the images that they explain.

    Raises `ConfigError` without a net or an image, and for nets that do not take these images or know other classes.
    """

    def __init__(
        self,
        nets: Mapping[str, Mapping[str, nn.Module]],
        images: Images,
        options: Explanation,
        critic: str = "Net1",
        learning_rate_critic: float = 0.2,
    ):
        if not nets or not all(nets.values()):
            raise ConfigError("there is no net to explore")
        if not len(images):
            raise ConfigError("there is no image to explain")
        self.nets = {(trained, name): net for trained, named in nets.items() for name, net in named.items()}
        self.images, self.options, self.critic = images, options, (critic, learning_rate_critic)
        labels = images.y.tolist()
        self.rows = {k: tuple(i for i, y in enumerate(labels) if y == k) for k in sorted(set(labels))}
        self.critic_losses: dict[tuple[Key, Norm, Label], np.ndarray] = {}
        self.probabilities = lru_cache(CACHED)(self._probabilities)
        self.attribution = lru_cache(CACHED)(self._attribution)
        self.batch_peaks = lru_cache(CACHED)(self._batch_peaks)
        self._check()

    def names(self, trained: str) -> tuple[str, ...]:
        """How the nets learned that were trained on this."""
        return tuple(name for kind, name in self.nets if kind == trained)

    @cached_property
    def trained(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(kind for kind, _ in self.nets))

    @property
    def divided(self) -> bool:
        """Whether the norm says what a map is divided by: GradCAM is scaled by itself, an input is left as it is."""
        return self.options.mode not in ("gradcam", "input")

    def pixels(self, rows: slice | list[int], decoy: Decoy | None) -> Tensor:
        """float32 [n, C, H, W] in [0, 1]: the images as the nets get them, not yet normalised, with the decoy."""
        preprocess = self.images.preprocess
        x = preprocess.fit(preprocess.unit(self.images[rows].x))
        return x if decoy is None else decoy.paint(x)

    def inputs(self, rows: slice | list[int], decoy: Decoy | None) -> Tensor:
        """`pixels`, normalised."""
        return self.images.preprocess.normalise(self.pixels(rows, decoy))

    # ------------------------------------------------------------------------------------------ a single image

    def look(
        self, key: Key, image: int, decoy: Decoy | None, label: Label, norm: Norm, percent: float, keep: Keep
    ) -> Look:
        """The net ``key`` on an image of which the ``floor(percent / 100 * H * W)`` highest pixels of the map go, or
        all the others. What goes becomes background, the normalised value of a pixel 0. Raises ``ValueError`` for a map
        that is not finite."""
        x, before = self.inputs([image], decoy), self.probabilities(key, image, decoy)
        explained = self.explained(key, image, decoy, label)
        heat = self.heat(key, image, decoy, label, norm)
        rank = removal.ranks(x, heat[None], SEED)[0]
        count = int(percent * rank.numel() // 100)
        removed = rank < count if keep == "without" else rank >= count
        background = self.images.preprocess.normalise(torch.zeros(1, x.shape[1], 1, 1))
        after = _probabilities(self.nets[key], torch.where(removed, background, x))[0]
        mass = None if decoy is None else removal.decoy_mass(heat[None], decoy.mask(*heat.shape)[None])
        return Look(before.numpy(), after.numpy(), explained, heat.numpy(), removed.numpy(), mass)

    def explained(self, key: Key, image: int, decoy: Decoy | None, label: Label) -> int:
        """The class that is explained."""
        return int(self.images.y[image] if label == "true" else self.probabilities(key, image, decoy).argmax())

    def heat(self, key: Key, image: int, decoy: Decoy | None, label: Label, norm: Norm) -> Tensor:
        """The map, float64 [H, W]. Under the norm ``batch`` it is divided by the maximum over `BATCH` images with the
        same decoy, this one and the first of the others, each explained for the label of its own."""
        attribution = self.attribution(key, image, decoy, self.explained(key, image, decoy, label))
        maxima, options = None, self.options.override({"norm": norm})
        if norm == "batch" and self.divided:
            first = self.batch_peaks(key, decoy, label)
            own = peaks(attribution, options)
            maxima = (first if image < len(first) else torch.cat([first[: BATCH - 1], own])).amax(0, keepdim=True)
        return post(attribution, options, self.inputs([image], decoy), maxima).sum(1)[0].double()

    def _probabilities(self, key: Key, image: int, decoy: Decoy | None) -> Tensor:
        return _probabilities(self.nets[key], self.inputs([image], decoy))[0]

    def _attribution(self, key: Key, image: int, decoy: Decoy | None, target: int) -> Tensor:
        """float32 [1, C, h, w], signed, for the class ``target``."""
        net = self.nets[key]
        return raw(net, *_on(net, self.inputs([image], decoy), torch.tensor([target])), self.options).cpu()

    def _batch_peaks(self, key: Key, decoy: Decoy | None, label: Label) -> Tensor:
        """The maxima [n] of the attributions of the first `BATCH` images with the decoy: a tenth of a second, once."""
        net, options = self.nets[key], self.options.override({"norm": "sample"})
        x, y = _on(net, self.inputs(slice(BATCH), decoy), self.images.y[:BATCH])
        with fast():
            y = y if label == "true" else evaluate.predictions(net, x)
            parts = zip(x.split(AT_ONCE), y.split(AT_ONCE), strict=True)
            return torch.cat([peaks(raw(net, *part, options), options) for part in parts]).cpu()

    # ---------------------------------------------------------------------------------------------- the critic

    @cached_property
    def critic_set(self) -> Sets:
        """Up to `N_CRITIC` batches of `CRITIC_BATCH` of the images, drawn from the stream ``explorer/critic set``."""
        size = min(CRITIC_BATCH, len(self.images))
        count = size * min(N_CRITIC, len(self.images) // size)
        rows = torch.randperm(len(self.images), generator=runtime.generator(SEED, "explorer", "critic set"))[:count]
        data = self.images[rows]
        x, y = data.inputs(), data.y
        return Sets(
            x=x, y=y, test_x=x, test_y=y, classes=data.classes, preprocess=data.preprocess,
            critic_x=x.unflatten(0, (-1, size)), critic_y=y.view(-1, size), critic_rows=rows.view(-1, size),
        )  # fmt: skip

    def learn(self, key: Key, norm: Norm, label: Label) -> np.ndarray:
        """The losses [N] of one fresh critic along its pass over the net's explanations of the `critic_set`; computed
        once. Its images are explained without a decoy. Raises ``ValueError`` for a loss that is not finite."""
        mark, net = (key, norm, label), self.nets[key]
        if mark not in self.critic_losses:
            data, options = self.critic_set.to(evaluate.device_of(net)), self.options.override({"norm": norm})
            losses = evaluate.critic_curve(net, data, options, label, *self.critic, critics=1, seed=SEED).numpy()
            if not np.isfinite(losses).all():
                raise ValueError(f"the loss of the critic of {key[1]} is not finite")
            self.critic_losses[mark] = losses
        return self.critic_losses[mark]

    def _check(self) -> None:
        for key in self.nets:
            name, shape = f"the net {key[1]} of {key[0]}", tuple(self.pixels([0], None).shape[1:])
            try:
                known = len(self.probabilities(key, 0, None))
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise ConfigError(f"{name} does not take images of shape {shape}: {reason}") from None
            if known != len(self.images.classes):
                raise ConfigError(f"{name} knows {known} classes, the images have {len(self.images.classes)}")


def _probabilities(net: nn.Module, x: Tensor) -> Tensor:
    """float64 [n, K] for ``x`` [n, C, H, W]."""
    with torch.no_grad(), evaluating(net):
        return net(*_on(net, x)).double().exp().cpu()


def _on(net: nn.Module, *tensors: Tensor) -> list[Tensor]:
    """The tensors where the net is."""
    return [tensor.to(evaluate.device_of(net)) for tensor in tensors]


# ------------------------------------------------------------------------------------------------------- pictures


def shown(x: Tensor, removed: np.ndarray | None = None) -> np.ndarray:
    """uint8 [H, W, 3] of pixels ``x`` [C, H, W] in [0, 1]; those that are ``removed`` bool [H, W] in `TINT`."""
    picture = (x if len(x) == 3 else x.mean(0, keepdim=True).expand(3, -1, -1)).movedim(0, -1)
    picture = (picture * 255).round().to(torch.uint8).numpy()
    return picture if removed is None else np.where(removed[..., None], np.array(TINT, np.uint8), picture)


def shown_map(heat: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: heat from 0 to 1; a map with negative values in blue and red, by its largest."""
    if heat.min() < 0:
        top = float(np.abs(heat).max())
        return widgets.colour(heat, "signed", -top, top)
    return widgets.colour(heat, "heat")
