"""What the explorer of prototypes shows, without its widgets: birds, drawn again with one part changed, what nets make
of them, and which pixels that is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from helpers import runtime
from helpers.attribution.base import evaluating
from helpers.config import ConfigError, suggest
from helpers.data import toybirds
from helpers.data.bird_scenes import COLOURS, PARTS, SHAPES
from helpers.data.toybirds import Birds, ToyBirdsSettings
from helpers.prototypes.explanations import Box
from helpers.prototypes.mapping import boxes, in_box, pixel_map, upsample_box
from helpers.prototypes.models import ProtoNet
from helpers.prototypes.pipelines import pipelines
from helpers.prototypes.receptive_field import receptive_field

Spread = Literal["rf", "upsample", "boxes"]
"""From cells to pixels: by what they see, by up-sampling, or boxes alone."""

Order = Literal["contribution", "similarity"]
Explained = Literal["predicted", "true"] | int
"""A class, or the one that is true, or predicted for the bird as it is."""

AS_IT_IS, REMOVED = "as it is", "removed"  # what becomes of a part, beside its shapes and colours
SHOWN = 4  # prototypes of the class that is explained
REACTING = 5  # prototypes that an edit changes most
CACHED = 64  # birds, and what nets make of them
SEED = 0  # of the noise


class Edit(NamedTuple):
    """What becomes of one part: it is `REMOVED`, or gets another shape or colour."""

    part: str
    what: str


@dataclass(frozen=True, eq=False)
class Seen:
    """What a net makes of a bird: ``logits`` [C]; of all prototypes the similarity ``maps`` [P, Hz, Wz], the greatest
    ``similarities`` [P], and the ``cells`` int64 [P] (flat) where they are."""

    logits: Tensor
    maps: Tensor
    similarities: Tensor
    cells: Tensor

    @property
    def predicted(self) -> int:
        return int(self.logits.argmax())


@dataclass(frozen=True, eq=False)
class Evidence:
    """One prototype's share in a logit; boxes and ``heat`` are those in the bird that is shown."""

    prototype: int
    before: float  # what it adds to the logit of the bird as it is
    after: float  # and of the bird that is shown
    similarity: float  # to the bird that is shown
    before_box: Box  # as `box`, in the bird as it is
    box: Box  # all pixels that this similarity depends on
    upsampled_box: Box  # what ProtoPNet draws instead
    source: int  # the training bird whose patch it is, -1 before the first projection
    source_pixels: Tensor | None  # that bird, float32 [3, S, S] in [0, 1]
    source_box: Box | None  # and the patch
    heat: np.ndarray | None  # float32 [S, S]; None for boxes alone

    @property
    def hidden(self) -> float:
        """The share of the box that the up-sampled one leaves out."""
        return 1 - _area(_shared(self.box, self.upsampled_box)) / _area(self.box)


class Reaction(NamedTuple):
    """How an edit changes the similarity of a prototype, and which shares of the changed pixels lie in its boxes: those
    of the bird, before or after, that is the more similar. Where a similarity changes, ``inside`` is more than 0."""

    prototype: int
    before: float
    after: float
    inside: float
    inside_upsampled: float


@dataclass(frozen=True, eq=False)
class Noise:
    """The bird, ``pixels`` float32 [3, S, S] in [0, 1], with noise outside ``box``, and a prototype's similarity before
    and after that, at the cell where it was greatest."""

    box: Box
    pixels: Tensor
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Look:
    """What a net makes of a bird as it is and as it is shown; ``changed`` bool [S, S] are the pixels that differ."""

    before: Seen
    after: Seen
    explained: int
    evidence: tuple[Evidence, ...]
    changed: np.ndarray
    reactions: tuple[Reaction, ...]


class Lab:
    """The nets by name, and the test birds that they explain: those of the data set's ``seed``.

    Raises `ConfigError` without a net, and for one that has no prototypes, knows other classes or does not take such
    images.
    """

    def __init__(self, nets: Mapping[str, ProtoNet], settings: ToyBirdsSettings, seed: int = 0):
        if not nets:
            raise ConfigError("there is no net to explore")
        self.nets, self.settings = dict(nets), settings
        self.classes = toybirds.class_names(settings.classes)
        for name, net in self.nets.items():
            _check(name, net, len(self.classes))
        self.fields = {name: receptive_field(net.features, settings.size) for name, net in self.nets.items()}
        self.streams = {name: toybirds.split(name, seed) for name in ("train", "test")}
        stream, count = self.streams["test"]
        self.labels = toybirds.labels(stream, np.arange(count), settings.classes)
        self.rows = {k: tuple(np.flatnonzero(self.labels == k).tolist()) for k in range(settings.classes)}
        self.pipeline = pipelines()["ToyBirds"].at(settings.size)
        self.bird = lru_cache(CACHED)(self._bird)
        self.sources = lru_cache(CACHED)(self._sources)
        self.seen = lru_cache(CACHED)(self._seen)

    # ------------------------------------------------------------------------------------------------- birds

    def pixels(self, image: int, edit: Edit | None) -> Tensor:
        """float32 [3, S, S] in [0, 1]: a test bird, or what an edit makes of it."""
        return _stored(self.bird(image, edit).images[0])

    def _bird(self, image: int, edit: Edit | None) -> Birds:
        if edit is None:
            return toybirds.batch(self.streams["test"][0], [image], self.settings)
        as_it_is = self.bird(image, None).birds
        if edit.what == REMOVED:
            return toybirds.render(as_it_is, without={edit.part})
        return toybirds.render(as_it_is, change={edit.part: edit.what})

    def _sources(self, indices: tuple[int, ...]) -> Tensor:
        """Training birds, float32 [n, 3, S, S] in [0, 1]; together, as that takes much less time."""
        return _stored(toybirds.batch(self.streams["train"][0], indices, self.settings).images)

    def described(self, image: int, part: str) -> str:
        """The shape and the colour of a bird's part in words."""
        shape, colour = self.bird(image, None).birds.code[0, PARTS.index(part)].tolist()
        words = [SHAPES[part][shape]] if len(SHAPES[part]) > 1 else []
        return " ".join([*words, *([list(COLOURS)[colour]] if colour >= 0 else [])])

    # ----------------------------------------------------------------------------------------- what nets make of them

    def named(self, name: str, prototype: int) -> str:
        """A prototype of a net with its class, if it has one."""
        kind = int(self.nets[name].prototype_class[prototype])
        return f"prototype {prototype}" + (f" of {self.classes[kind]}" if kind >= 0 else "")

    def _seen(self, name: str, image: int, edit: Edit | None) -> Seen:
        return self._answer(name, self.inputs(self.pixels(image, edit)))

    def look(self, name: str, image: int, edit: Edit | None, explained: Explained, by: Order, spread: Spread) -> Look:
        """The net ``name`` on a bird; the prototypes come in the order that they have for the bird as it is, so that
        they keep their places when it is edited."""
        before, after = self.seen(name, image, None), self.seen(name, image, edit)
        named = {"predicted": before.predicted, "true": int(self.labels[image])}
        k = named.get(explained, explained)
        weights = self.nets[name].weights[k].detach().cpu()
        value = before.similarities * (weights if by == "contribution" else 1)
        order = value.argsort(descending=True, stable=True)
        chosen = order[weights[order] != 0][:SHOWN]
        changed = (self.pixels(image, None) != self.pixels(image, edit)).any(0)
        return Look(
            before, after, k, self._evidence(name, before, after, chosen, weights, spread), changed.numpy(),
            self._reactions(name, before, after, changed) if changed.any() else (),
        )  # fmt: skip

    def _evidence(
        self, name: str, before: Seen, after: Seen, chosen: Tensor, weights: Tensor, spread: Spread
    ) -> tuple[Evidence, ...]:
        net, field, maps = self.nets[name], self.fields[name], after.maps[None, chosen]
        heat = [None] * len(chosen) if spread == "boxes" else pixel_map(maps, field, spread)[0].numpy()
        before_boxes, after_boxes = (boxes(seen.cells[chosen], field).tolist() for seen in (before, after))
        drawn = upsample_box(maps, field.input_size)[0].tolist()
        sources = net.source_image[chosen].tolist()
        birds = iter(self.sources(tuple(source for source in sources if source >= 0)))
        found = []
        for place, (p, source) in enumerate(zip(chosen.tolist(), sources, strict=True)):
            weight = float(weights[p])
            found.append(
                Evidence(
                    prototype=p,
                    before=float(before.similarities[p]) * weight,
                    after=float(after.similarities[p]) * weight,
                    similarity=float(after.similarities[p]),
                    before_box=tuple(before_boxes[place]),
                    box=tuple(after_boxes[place]),
                    upsampled_box=tuple(drawn[place]),
                    source=source,
                    source_pixels=None if source < 0 else next(birds),
                    source_box=None if source < 0 else field.box(*net.source_cell[p].tolist()),
                    heat=heat[place],
                )
            )
        return tuple(found)

    def _reactions(self, name: str, before: Seen, after: Seen, changed: Tensor) -> tuple[Reaction, ...]:
        field = self.fields[name]
        difference = after.similarities - before.similarities
        chosen = difference.abs().argsort(descending=True, stable=True)[:REACTING]
        rose = difference[chosen] > 0
        cells = torch.where(rose, after.cells[chosen], before.cells[chosen])
        maps = torch.where(rose[:, None, None], after.maps[chosen], before.maps[chosen])
        drawn = upsample_box(maps[None], field.input_size)[0]
        rows = zip(
            chosen.tolist(), before.similarities[chosen].tolist(), after.similarities[chosen].tolist(),
            boxes(cells, field).tolist(), drawn.tolist(), strict=True,
        )  # fmt: skip
        return tuple(Reaction(*values, _inside(changed, box), _inside(changed, up)) for *values, box, up in rows)

    def noise(self, name: str, image: int, edit: Edit | None, evidence: Evidence, draw: int) -> tuple[Noise, Noise]:
        """Normal noise outside a prototype's box and outside its up-sampled box. The images are asked about one by one,
        as the last bits of an answer may depend on the size of a batch."""
        x, p = self.inputs(self.pixels(image, edit)), evidence.prototype
        cell, before = self.seen(name, image, edit).cells[p], evidence.similarity
        draws = torch.randn(x.shape, generator=runtime.generator(SEED, "explorer", "noise", draw))
        found = []
        for box in (evidence.box, evidence.upsampled_box):
            noisy = torch.where(in_box(box, x), x, draws)
            after = float(self._answer(name, noisy).maps[p].flatten()[cell])
            found.append(Noise(box, self.pipeline.restore(noisy)[0], before, after))
        return tuple(found)

    def inputs(self, pixels: Tensor) -> Tensor:
        """[1, 3, S, S]: what a net gets of ``pixels`` [3, S, S]."""
        return self.pipeline.normalisation.normalise(pixels[None])

    @torch.no_grad()
    def _answer(self, name: str, x: Tensor) -> Seen:
        net = self.nets[name]
        with evaluating(net):
            output = net(x.to(net.prototypes.device))
        maps = output.similarity_map.contiguous()  # not as the distances lie in memory
        return Seen(*(t[0].cpu() for t in (output.logits, maps, output.similarities, output.cells)))


def choices(part: str) -> tuple[str, ...]:
    """What can become of a part."""
    if part not in PARTS:
        raise ConfigError(f"a bird has no {part!r}: {suggest(part, PARTS)}")
    shapes = SHAPES[part] if len(SHAPES[part]) > 1 else ()
    return AS_IT_IS, REMOVED, *shapes, *(() if part == "eye" else COLOURS)


def _stored(images: Tensor) -> Tensor:
    """Images as a data set keeps them, in 256 steps, and in [0, 1] again."""
    return toybirds.stored(images) / 255


def _check(name: str, net: ProtoNet, n_classes: int) -> None:
    if not isinstance(net, ProtoNet):
        raise ConfigError(f"the net {name} is a {type(net).__name__}, which has no prototypes")
    if net.n_classes != n_classes:
        raise ConfigError(f"the net {name} knows {net.n_classes} classes, the birds have {n_classes}")


def _area(box: Box) -> int:
    return max(0, box[1] - box[0]) * max(0, box[3] - box[2])


def _shared(one: Box, other: Box) -> Box:
    (top, bottom, left, right), (y0, y1, x0, x1) = one, other
    return max(top, y0), min(bottom, y1), max(left, x0), min(right, x1)


def _inside(changed: Tensor, box: Box) -> float:
    y0, y1, x0, x1 = box
    return float(changed[y0:y1, x0:x1].sum() / changed.sum())
