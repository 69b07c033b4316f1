"""What the parts of toy birds do to a prototype network (spec toybirds, "What it measures"). A bird is drawn again
without one of its parts, all else equal: what falls then rests on that part. No explainer is asked.

    birds = test_birds(ToyBirdsSettings(), 200)
    effects = part_effects(net, birds)
    effects.similarity.excess                           # [B, Q, P]: beyond what the same paint does elsewhere

A logit is made of each prototype's greatest similarity over all cells, and that is what is measured. Without the part
another cell may match best; what the cell itself loses (``at_cell``) is never less.

The control is the very same repaint elsewhere: of the pixels that the removal changed, the colours that it gave them,
moved by whole rows and columns (over the border and in again at the other side) to where none of them meets the part.
Half of the draws lie on the bird, as taking a bite out of a bird may do something wherever it is: they cover at least
half as much of its other parts as they can anywhere. Half lie beside the bird. Area and colours are the removal's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from helpers.attribution.base import evaluating
from helpers.config import ConfigError, suggest
from helpers.data import toybirds
from helpers.data.bird_scenes import PARTS, Counter, Scene
from helpers.data.toybirds import ToyBirdsSettings
from helpers.prototypes.evaluate import CHANGED
from helpers.prototypes.models import ProtoNet
from helpers.prototypes.pipelines import pipelines

BATCH = 64  # images drawn, and seen by a net, at a time
COVERED = 0.5  # of a pixel, from which on it shows a part


class Answers(NamedTuple):
    """What a net makes of images, on the CPU: ``logits`` [B, C]; of all prototypes the greatest ``similarities``
    [B, P], the ``cells`` int64 [B, P] (flat) where they are, and the similarity ``maps`` [B, P, Hz, Wz]."""

    logits: Tensor
    similarities: Tensor
    cells: Tensor
    maps: Tensor


@dataclass(frozen=True, eq=False)
class Effect:
    """How far values [B, ...] fall when a part is removed: ``raw`` [B, Q, ...]; and under the repaints of the control,
    ``draws`` [2, n, B, Q, ...], on the bird and beside it. NaN: of a part that is not visible; where no place is."""

    raw: Tensor
    draws: Tensor

    @property
    def control(self) -> Tensor:
        """[B, Q, ...]: the mean over the draws."""
        return self.draws.flatten(0, 1).nanmean(0)

    @property
    def spread(self) -> Tensor:
        """[B, Q, ...]: their standard deviation."""
        return (self.draws - self.control).flatten(0, 1).square().nanmean(0).sqrt()

    @property
    def excess(self) -> Tensor:
        """[B, Q, ...]: the part's own effect, what its removal does beyond the control."""
        return self.raw - self.control


@dataclass(frozen=True, eq=False)
class PartEffects:
    """Of B birds and Q ``parts``, on the CPU. ``labels`` int64 [B]; ``visible`` bool [B, Q]; of the birds as they are
    the ``logits`` [B] of their class, ``similarities`` [B, P] and ``cells`` int64 [B, P]. The effects on ``logit``
    [B, Q] and ``similarity`` [B, Q, P], and ``at_cell`` [B, Q, P], what a similarity loses at the cell where it was
    greatest."""

    parts: tuple[str, ...]
    labels: Tensor
    visible: Tensor
    logits: Tensor
    similarities: Tensor
    cells: Tensor
    logit: Effect
    similarity: Effect
    at_cell: Tensor

    @cached_property
    def causes(self) -> Tensor:
        """bool [B, Q, P]: the parts with a true effect on a similarity: without them it falls by more than 1 % of it,
        and also by so much more than under the control."""
        effect = torch.minimum(self.similarity.raw, self.similarity.excess)
        return effect > CHANGED * self.similarities.abs()[:, None]

    @cached_property
    def true(self) -> Tensor:
        """[B, Q, P]: the effect beyond the control, 0 for parts that have no true one."""
        return torch.where(self.causes, self.similarity.excess, 0)

    @cached_property
    def best(self) -> Tensor:
        """int64 [B, P]: the part with the largest true effect, -1 for a similarity that has none."""
        return torch.where(self.causes.any(1), self.true.argmax(1), -1)


def test_birds(settings: ToyBirdsSettings, n: int | None = None, seed: int = 0) -> Scene:
    """The first ``n`` test birds, undrawn (None: all), of the data set's ``seed``. Raises `ConfigError` for an ``n``
    that there cannot be."""
    stream, count = toybirds.split("test", seed)
    if n is not None and not 1 <= n <= count:
        raise ConfigError(f"there are 1 to {count} test birds to take, not {n}")
    return toybirds.birds(stream, range(n or count), settings)


test_birds.__test__ = False  # no test, whoever imports it


def part_effects(
    net: ProtoNet,
    birds: Scene,
    *,
    parts: Sequence[str] = PARTS,
    draws: int = 2,
    seed: int = 0,
    batch: int = BATCH,
) -> PartEffects:
    """The effects of ``parts`` where they are visible, and of a control of ``draws`` repaints on the bird and as many
    beside it, from a stream of ``seed`` and the bird's place among ``birds``. It takes a ``batch`` of images at a time.

    Raises `ConfigError` for unknown or no parts, no draws, and birds of classes that the net does not know.
    """
    check(net, birds)
    indices = part_indices(parts)
    if draws < 1:
        raise ConfigError(f"draws must be at least 1, not {draws}")
    found = [_effects(net, birds, rows, indices, draws, seed) for rows in torch.arange(len(birds)).split(batch)]
    before, visible, raw, at_cell, control = zip(*found, strict=True)
    raw, control = torch.cat(raw), torch.cat(control, 2)
    logits, similarities, cells = (torch.cat(values) for values in zip(*before, strict=True))
    return PartEffects(
        parts=tuple(parts),
        labels=birds.label.cpu(),
        visible=torch.cat(visible),
        logits=logits,
        similarities=similarities,
        cells=cells,
        logit=Effect(raw[..., -1], control[..., -1]),
        similarity=Effect(raw[..., :-1], control[..., :-1]),
        at_cell=torch.cat(at_cell),
    )


def inputs(images: Tensor, net: ProtoNet) -> Tensor:
    """What ``net`` gets of images uint8 [B, 3, S, S], on its device."""
    return pipelines()["ToyBirds"].normalise(images).to(net.prototypes.device)


@torch.no_grad()
def ask(net: ProtoNet, images: Tensor) -> Answers:
    """What ``net`` makes of images uint8 [B, 3, S, S]."""
    with evaluating(net):
        output = net(inputs(images, net))
    found = output.logits, output.similarities, output.cells, output.similarity_map
    return Answers(*(t.cpu().contiguous() for t in found))


def part_indices(parts: Sequence[str]) -> list[int]:
    """Where ``parts`` stand in `PARTS`. Raises `ConfigError` for unknown ones, none, or the same one twice."""
    if isinstance(parts, str) or not parts or len(set(parts)) < len(parts):
        raise ConfigError(f"parts must name different parts of a bird, one or more, not {parts!r}")
    for part in parts:
        if part not in PARTS:
            raise ConfigError(f"a bird has no {part!r}: {suggest(part, PARTS)}")
    return [PARTS.index(part) for part in parts]


def check(net: ProtoNet, birds: Scene) -> None:
    """Raises `ConfigError` for a net without prototypes or with prototypes of no class, no birds, and birds of classes
    that the net does not know."""
    if not isinstance(net, ProtoNet):
        raise ConfigError(f"a {type(net).__name__} has no prototypes")
    if not net.class_specific:
        raise ConfigError("the prototypes belong to no class: there are none of a bird's own")
    if not len(birds):
        raise ConfigError("there are no birds to ask about")
    if int(birds.label.max()) >= net.n_classes:
        raise ConfigError(f"the net knows {net.n_classes} classes, there is a bird of class {int(birds.label.max())}")


def moved(values: Tensor, shift: Tensor) -> Tensor:
    """Each of ``values`` [B, ..., H, W] moved down and to the right by its ``shift`` int64 [B, 2], and in again at the
    other side."""
    height, width = values.shape[-2:]
    y, x = (
        (torch.arange(n, device=values.device) - by[:, None]) % n
        for n, by in ((height, shift[:, 0]), (width, shift[:, 1]))
    )
    at, flat = (y[:, :, None] * width + x[:, None]).flatten(1), values.flatten(-2)
    at = at[(slice(None), *[None] * (flat.ndim - 2))]
    return flat.gather(-1, at.expand_as(flat)).view_as(values)


def places(patch: Tensor, part: Tensor, bird: Tensor) -> Tensor:
    """bool [2, B, H * W]: by which shifts (dy * W + dx) a ``patch`` bool [B, H, W] comes to lie off the ``part``
    [B, H, W]: at least half as much on the ``bird`` [B, H, W] as it can be, or else not at all."""
    spectrum = torch.fft.rfft2(patch.double()).conj()

    def shared(with_: Tensor) -> Tensor:
        """[B, H * W]: how many pixels are in both, for each shift (circular cross-correlation)."""
        return torch.fft.irfft2(spectrum * torch.fft.rfft2(with_.double()), s=patch.shape[1:]).round().flatten(1)

    off = shared(part) == 0
    on_bird = torch.where(off, shared(bird), 0)
    most = on_bird.amax(1, keepdim=True)
    return torch.stack([(on_bird >= most / 2) & (most > 0), on_bird == 0]) & off


def drawn(allowed: Tensor, uniform: Tensor) -> Tensor:
    """int64 [...]: one of what is ``allowed`` bool [..., N], chosen by ``uniform`` [...] in [0, 1); -1: none."""
    order = allowed.cumsum(-1)
    wanted = (uniform * order[..., -1]).floor().long() + 1
    found = torch.searchsorted(order, wanted[..., None])[..., 0]
    return torch.where(order[..., -1] > 0, found, -1)


# ------------------------------------------------------------------------------------------------------- one batch


def _effects(net: ProtoNet, birds: Scene, rows: Tensor, parts: list[int], draws: int, seed: int) -> tuple:
    """Of birds ``rows``: (logits of their class, similarities, cells), the visible parts [b, Q], how far similarities
    and logit fall without them [b, Q, P + 1], at their cells [b, Q, P], and under the control [2, n, b, Q, P + 1]."""
    scene = birds[rows].to("cpu")  # all is drawn there, so that masks are the same to the bit wherever the net is
    as_it_is = toybirds.render(scene)
    image, masks, visible = toybirds.stored(as_it_is.images), as_it_is.masks, as_it_is.visible[:, parts]
    answers = ask(net, image)
    before = _values(answers, scene.label)
    raw = torch.full((len(rows), len(parts), before.shape[1]), torch.nan)
    at_cell, control = raw[..., :-1].clone(), raw.repeat(2, draws, 1, 1, 1)
    uniform = _uniform(seed, rows, draws)
    for q, index in enumerate(parts):
        some = visible[:, q].nonzero()[:, 0]
        if not len(some):
            continue
        less = toybirds.stored(toybirds.render(scene[some], without={PARTS[index]}).images)
        without = ask(net, less)
        raw[some, q] = before[some] - _values(without, scene.label[some])
        at_cell[some, q] = answers.similarities[some] - _at(without.maps, answers.cells[some])
        patch, part = (less != image[some]).any(1), masks[some, index] > 0
        bird = masks[some].sum(1)
        free = places(patch, patch | part, bird >= COVERED)
        for kind in range(2):
            for draw in range(draws):
                to = drawn(free[kind], uniform[kind, draw, some, index])
                there = to >= 0
                if not there.any():
                    continue
                painted = _painted(image[some[there]], less[there], patch[there], to[there])
                after = _values(ask(net, painted), scene.label[some[there]])
                control[kind, draw, some[there], q] = before[some[there]] - after
    return (before[:, -1], before[:, :-1], answers.cells), visible, raw, at_cell, control


def _painted(image: Tensor, less: Tensor, patch: Tensor, to: Tensor) -> Tensor:
    """Images [b, 3, H, W] with the ``patch`` [b, H, W] of ``less`` moved by ``to`` [b]."""
    width = patch.shape[2]
    shift = torch.stack([to // width, to % width], 1)
    return torch.where(moved(patch, shift)[:, None], moved(less, shift), image)


def _uniform(seed: int, rows: Tensor, draws: int) -> Tensor:
    """[2, n, b, 8]: numbers in [0, 1) by kind, draw, bird and part of `PARTS`."""
    count = Counter(seed, rows.numpy())
    numbers = [[count(f"{kind} {draw}", 0, 1, len(PARTS)) for draw in range(draws)] for kind in ("on bird", "beside")]
    return torch.from_numpy(np.array(numbers))


def _values(answers: Answers, label: Tensor) -> Tensor:
    """[b, P + 1]: all similarities, and the logit of the bird's class."""
    return torch.cat([answers.similarities, answers.logits.gather(1, label[:, None])], 1)


def _at(maps: Tensor, cells: Tensor) -> Tensor:
    """[B, P] of maps [B, P, Hz, Wz]."""
    return maps.flatten(2).gather(2, cells[..., None])[..., 0]
