"""Where maps of pixels point among the parts of toy birds, and whether they follow a part that changes (spec toybirds,
"What it measures"). Maps are those of any method, as functions of images, similarities and prototypes (`Maps`).

What a map *shows* is counted from its least value upwards, as in pictures of it, for similarities are nowhere 0;
negative values count as 0. Its *region* are the pixels from the 95 % quantile upwards, like the box that ProtoPNet
draws, without those at which it shows nothing: of a receptive field's box, the box; of a constant map, nothing. Its
*peak* are its highest pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.attribution.base import evaluating
from helpers.config import ConfigError, suggest
from helpers.data import toybirds
from helpers.data.bird_scenes import COLOURLESS, COLOURS, PARTS, SHAPES, Counter, Scene
from helpers.prototypes.evaluation.ordering import Maps, pixel_maps
from helpers.prototypes.evaluation.part_effects import CHANGED, ask, drawn, inputs, moved, part_indices
from helpers.prototypes.mapping import boxes, highest
from helpers.prototypes.models import ProtoNet
from helpers.prototypes.receptive_field import ReceptiveField

AT_ONCE = 160  # maps in pixels that are held at a time
ROUNDING = 1e-5  # of a map's largest value
WIDTH = 1 / 6  # of the image, the standard deviation of the map "center"

Whose = Literal["own", "all"]
"""The prototypes that a bird is asked about: those of its class, or all."""


@dataclass(frozen=True, eq=False)
class Pointed:
    """Where N maps, each of a bird and a prototype, point among Q parts. Of what they show the shares on each part,
    ``mass`` [N, Q], and off the bird, ``background`` [N]; how far, 0 to 1, each part covers the ``peak`` [N, Q] and the
    ``middle`` [N, Q], the pixel nearest to the region's centroid; the pixels of each part in the region, ``held``
    [N, Q], and of the whole bird, ``bird_held`` [N]. ``peak_at`` [N, 2] and ``middle_at`` [N, 2] are the centroids
    (x, y) of peak and region, NaN for none."""

    mass: Tensor
    background: Tensor
    peak: Tensor
    middle: Tensor
    held: Tensor
    bird_held: Tensor
    peak_at: Tensor
    middle_at: Tensor


@dataclass(frozen=True, eq=False)
class Pointing:
    """Where the maps of each method point: N pairs of a ``bird`` int64 [N] and a ``prototype`` int64 [N]. ``found`` are
    compared with the parts as they are, ``chance`` with those of the bird moved elsewhere: by whole rows and columns
    drawn for each bird, ``shift`` int64 [B, 2], over the border and in again at the other side. ``areas`` [B, Q] of the
    parts in pixels, ``centres`` [B, Q, 2] (x, y); ``size``: pixels a side."""

    bird: Tensor
    prototype: Tensor
    found: dict[str, Pointed]
    chance: dict[str, Pointed]
    areas: Tensor
    centres: Tensor
    shift: Tensor
    size: int

    @property
    def moved_centres(self) -> Tensor:
        """The ``centres`` of the birds moved elsewhere."""
        return (self.centres + self.shift[:, None].flip(2)) % self.size


@dataclass(frozen=True, eq=False)
class Reactions:
    """What becomes of maps when one part of each bird is changed. Of B birds the ``part`` int64 [B], among those asked
    about, -1 where none is visible; the ``prototype`` int64 [B] of the bird's class whose similarity changes most, and
    whether by more than 1 %, ``reacted`` bool [B]; the ``area`` [B] that changed, as a share of the image. By method
    [B]: the share of these pixels that lie ``inside`` the prototype's region, in the bird, before or after, that is the
    more similar; and the share of the map's own change that lies on them, ``followed``."""

    part: Tensor
    prototype: Tensor
    reacted: Tensor
    area: Tensor
    inside: dict[str, Tensor]
    followed: dict[str, Tensor]


def mappings(field: ReceptiveField, seed: int = 0) -> dict[str, Maps]:
    """``box``: the receptive field of the best cell, all pixels alike; ``rf``, ``upsample`` and ``random`` of
    `pixel_map`; ``center``: the middle of the image, whatever the network does."""

    def box(x: Tensor, similarity: Tensor, prototypes: Tensor) -> Tensor:
        greatest, cell = similarity.flatten(2).max(2)
        y0, y1, x0, x1 = boxes(cell, field)[..., None].unbind(2)
        y, x_ = (torch.arange(n, device=cell.device) for n in field.input_size)
        inside = ((y0 <= y) & (y < y1))[..., None] & ((x0 <= x_) & (x_ < x1))[:, :, None]
        return inside * F.softplus(greatest)[..., None, None]  # which is positive

    def center(x: Tensor, similarity: Tensor, prototypes: Tensor) -> Tensor:
        y, x_ = ((torch.arange(n, device=x.device) - (n - 1) / 2) / (WIDTH * n) for n in field.input_size)
        return torch.exp(-(y[:, None] ** 2 + x_**2) / 2).expand(*prototypes.shape, -1, -1)

    return {"box": box, **pixel_maps(field, seed=seed), "center": center}


def point(
    net: ProtoNet,
    birds: Scene,
    methods: Mapping[str, Maps],
    *,
    parts: Sequence[str] = PARTS,
    whose: Whose = "own",
    seed: int = 0,
    at_once: int = AT_ONCE,
) -> Pointing:
    """Where ``methods`` point for each bird and the prototypes of its class, or all. About ``at_once`` maps are held.

    Raises `ConfigError` for unknown parts and prototypes, ``ValueError`` for maps of another shape or not finite.
    """
    indices, facts, pairs = part_indices(parts), [], []
    found: dict[str, list[Pointed]] = {name: [] for name in methods}
    chance: dict[str, list[Pointed]] = {name: [] for name in methods}
    for rows, prototypes in _groups(net, birds.label.cpu(), whose, at_once):
        as_it_is = toybirds.render(birds[rows].to("cpu"))
        masks, image = as_it_is.masks, toybirds.stored(as_it_is.images)
        uniform = torch.from_numpy(Counter(seed, rows.numpy())("elsewhere", 0, 1, 2))
        shift = (uniform * birds.size).long()
        facts.append((rows, masks[:, indices].sum((2, 3)), as_it_is.centres[:, indices], shift))
        pairs.append(torch.stack([rows.repeat_interleave(prototypes.shape[1]), prototypes.flatten()]))
        against = masks, moved(masks, shift)
        for name, heat in _heats(net, image, ask(net, image).maps, prototypes, methods):
            for kept, there in zip((found, chance), against, strict=True):
                kept[name].append(pointed(heat, there, indices))
    rows, *of_birds = (torch.cat(values) for values in zip(*facts, strict=True))
    areas, centres, shift = (values[rows.argsort()] for values in of_birds)
    return Pointing(*torch.cat(pairs, 1), _joined(found), _joined(chance), areas, centres, shift, birds.size)


def pointed(heat: Tensor, masks: Tensor, parts: list[int]) -> Pointed:
    """Where maps [B, M, H, W] point among ``parts`` (indices) of ``masks`` [B, 8, H, W]: N = B * M, on the CPU."""
    width, masks = heat.shape[3], masks.to(heat.device).flatten(2)
    bird = masks.sum(1, keepdim=True).clamp(max=1)
    truth, seen, above = torch.cat([masks[:, parts], bird], 1), region(heat).flatten(2), shown(heat).flatten(2)
    total = above.sum(2)
    mass = (above @ truth.mT) / torch.where(total > 0, total, 1)[..., None]
    top = (above == above.amax(2, keepdim=True)).to(above)
    peak = (top @ truth.mT) / top.sum(2, keepdim=True)
    held, middle_at = seen.to(above) @ truth.mT, _centroid(seen, width)
    x, y = middle_at.nan_to_num().round().long().unbind(2)
    index = (y * width + x)[:, None].expand(-1, len(parts), -1)
    middle = truth[:, :-1].gather(2, index).mT * seen.any(2, keepdim=True)
    values = (
        mass[..., :-1], (1 - mass[..., -1]) * (total > 0), peak[..., :-1], middle, held[..., :-1], held[..., -1],
        _centroid(top > 0, width), middle_at,
    )  # fmt: skip
    return Pointed(*(value.flatten(0, 1).cpu() for value in values))


def shown(heat: Tensor) -> Tensor:
    """The positive part of ``heat`` [..., H, W] above its least value; 0 for what may be the rounding of a constant."""
    flat = heat.flatten(-2).clamp(min=0)
    above = flat - flat.amin(-1, keepdim=True)
    return torch.where(above > ROUNDING * flat.amax(-1, keepdim=True), above, 0).view_as(heat)


def region(heat: Tensor) -> Tensor:
    """bool, of the shape of ``heat`` [..., H, W]: pixels from the 95 % quantile upwards, if they show something."""
    flat = shown(heat).flatten(-2)
    return (highest(flat) & (flat > 0)).view_as(heat)


def reactions(
    net: ProtoNet,
    birds: Scene,
    methods: Mapping[str, Maps],
    *,
    parts: Sequence[str] = PARTS,
    seed: int = 0,
    at_once: int = AT_ONCE,
) -> Reactions:
    """Each bird with one of ``parts``, drawn among those that are visible, in another shape or colour that there is.
    The draws are those of ``seed`` and the bird's place among ``birds``. Raises what `point` raises."""
    indices, found = part_indices(parts), []
    inside: dict[str, list[Tensor]] = {name: [] for name in methods}
    followed: dict[str, list[Tensor]] = {name: [] for name in methods}
    for rows, prototypes in _groups(net, birds.label.cpu(), "own", at_once):
        scene = birds[rows].to("cpu")
        as_it_is = toybirds.render(scene)
        changed, part = another(scene, as_it_is.visible[:, indices], indices, rows, seed)
        images = [toybirds.stored(as_it_is.images), toybirds.stored(toybirds.render(changed).images)]
        where = (images[0] != images[1]).any(1)
        answers = [ask(net, image) for image in images]
        before, after = (of.similarities.gather(1, prototypes) for of in answers)
        place = (after - before).abs().argmax(1, keepdim=True)
        before, after = before.gather(1, place)[:, 0], after.gather(1, place)[:, 0]
        reacted = (after - before).abs() > CHANGED * before.abs()
        found.append((rows, part, prototypes.gather(1, place)[:, 0], reacted, where.float().mean((1, 2))))
        seen = zip(images, answers, strict=True)
        heats = [dict(_heats(net, image, of.maps, prototypes, methods)) for image, of in seen]
        for name in methods:
            old, new = (heat[name].cpu()[torch.arange(len(rows)), place[:, 0]] for heat in heats)
            more = torch.where((after > before)[:, None, None], new, old)
            inside[name].append(_share(where.float(), region(more)))
            followed[name].append(_share((new - old).abs(), where))
    rows, *values = (torch.cat(v) for v in zip(*found, strict=True))
    order = rows.argsort()
    by_method = ({name: torch.cat(v)[order] for name, v in of.items()} for of in (inside, followed))
    return Reactions(*(v[order] for v in values), *by_method)


def another(birds: Scene, visible: Tensor, parts: list[int], rows: Tensor, seed: int) -> tuple[Scene, Tensor]:
    """The birds with one of the ``visible`` [B, Q] ``parts`` in another shape or colour, any that there is; and which
    of them, int64 [B], -1 for birds that stay as they are."""
    which, what = torch.from_numpy(Counter(seed, rows.numpy())("another", 0, 1, 2)).unbind(1)
    part, code = drawn(visible, which), birds.code.clone()
    for q, index in enumerate(parts):
        some = (part == q).nonzero()[:, 0]
        choices = torch.tensor(_looks(PARTS[index]))
        other = (choices != code[some, index][:, None]).any(2)
        code[some, index] = choices[drawn(other, what[some])]
    return replace(birds, code=code), part


# --------------------------------------------------------------------------------------------------------- helpers


def _looks(part: str) -> list[tuple[int, int]]:
    """(shape, colour) of every look that a part can have, as in `Scene.code`."""
    bare = COLOURLESS.get(part, ())
    return [
        (shape, colour)
        for shape, name in enumerate(SHAPES[part])
        for colour in ([-1] if name in bare else range(len(COLOURS)))
    ]


def _groups(net: ProtoNet, labels: Tensor, whose: str, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of birds int64 [b] that are asked about as many prototypes int64 [b, M], about ``at_once`` maps."""
    if whose not in get_args(Whose):
        raise ConfigError(f"unknown prototypes {whose!r}: {suggest(whose, get_args(Whose))}")
    own = net.own.cpu()
    groups = [(labels == label, own[label]) for label in labels.unique()]
    if whose == "all":
        groups = [(labels >= 0, torch.ones_like(own[0]))]
    for birds, prototypes in groups:
        asked = prototypes.nonzero()[:, 0]
        for rows in birds.nonzero()[:, 0].split(max(1, at_once // len(asked))):
            yield rows, asked.expand(len(rows), -1)


def _heats(
    net: ProtoNet, image: Tensor, maps: Tensor, prototypes: Tensor, methods: Mapping[str, Maps]
) -> Iterator[tuple[str, Tensor]]:
    """The maps [b, M, H, W] of each method for images uint8 [b, 3, H, W], in which all prototypes have the similarity
    ``maps`` [b, P, Hz, Wz], and ``prototypes`` [b, M]."""
    x = inputs(image, net)
    similarity = maps.gather(1, prototypes[..., None, None].expand(-1, -1, *maps.shape[2:])).to(x.device)
    prototypes = prototypes.to(x.device)
    for name, method in methods.items():
        with evaluating(net):
            heat = method(x, similarity, prototypes).detach().float()
        if heat.shape != (*prototypes.shape, *x.shape[2:]) or not heat.isfinite().all():
            wanted = (*prototypes.shape, *x.shape[2:])
            raise ValueError(f"expected finite maps {wanted} of the method {name!r}, not {tuple(heat.shape)}")
        yield name, heat


def _centroid(mask: Tensor, width: int) -> Tensor:
    """[B, M, 2]: the mean (x, y) of what is true in ``mask`` [B, M, H * W], NaN for nothing."""
    at = torch.arange(mask.shape[2], device=mask.device)
    places = torch.stack([at % width, at // width], 1).double()
    return (mask.double() @ places / mask.sum(2, keepdim=True)).float()


def _share(of: Tensor, where: Tensor) -> Tensor:
    """[B]: of what there is in ``of`` [B, H, W], the share that lies in ``where`` bool [B, H, W]; 0 of nothing."""
    total = of.sum((1, 2))
    return torch.where(total > 0, (of * where).sum((1, 2)) / total, 0)


def _joined(parts: Mapping[str, list[Pointed]]) -> dict[str, Pointed]:
    names = [field.name for field in fields(Pointed)]
    return {
        name: Pointed(*(torch.cat([getattr(one, field) for one in of]) for field in names))
        for name, of in parts.items()
    }
