"""Projection ("push"): every prototype becomes the feature vector of a real training patch (spec section 6).

    pushed = push(net, batches)     # batches of (x, labels, indices): un-augmented training images, each one once

One pass over the images finds for every prototype its nearest patches; an assignment then gives each prototype one of
them, so that no two come from the same image (or patch). Of K prototypes that compete, the others take K - 1 images at
most: one of its own K best is always left, and no optimal assignment needs another. So K candidates a prototype are all
that is kept on the way, [P, K] distances with their feature vectors, however many images there are.

The result does not depend on the order, the batches or the workers that images come in: distances are compared in
steps of `STEP`, about what float32 rounds differently from batch to batch, and of equal ones the lower index of the
image goes first, then of the cell, then of the prototype. A prototype that still is the patch that it names (`SAME`)
keeps it, so that a second projection without training in between changes nothing. The original's assignment,
``legacy``, goes batch by batch and depends on them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Protocol, get_args

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from helpers.attribution.base import evaluating
from helpers.config import LISTED, ConfigError, suggest
from helpers.prototypes.models import ProtoNet
from helpers.prototypes.presets import Assignment

STEP = 1e-6  # distances that round to the same multiple of it are equal
SAME = 1e-5  # the distance up to which a prototype and the patch that it came from are one
NEVER = 2**62  # the rank of what is no candidate

Batch = tuple[Tensor, Tensor, Tensor]


class Part(Protocol):
    """A split of images (`helpers.prototypes.sets.Part`)."""

    indices: Tensor

    def inputs(self, rows: Tensor) -> Tensor: ...


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Push:
    """What a projection did. All tensors are on the CPU."""

    distance: Tensor  # float32 [P]: to the patch that a prototype took, before it did; NaN where it took none
    image: Tensor  # int64 [P]: official training index of its source image from now on; -1 if there never was one
    cell: Tensor  # int64 [P, 2]: row and column of its patch in that image's feature map
    unassigned: tuple[int, ...]  # prototypes that found no patch and stay what they were
    norm_before: float  # Frobenius norm of all prototypes
    norm_after: float
    moved: float  # and of the difference

    @property
    def quartiles(self) -> tuple[float, ...]:
        """Least, lower quartile, median, upper quartile and largest distance; NaN if nothing was assigned."""
        return tuple(torch.nanquantile(self.distance, torch.linspace(0, 1, 5)).tolist())


@dataclass
class _Patches:
    """Some patches for each prototype, best first; those of rank `NEVER` are none."""

    rank: Tensor  # int64 [P, K]: 1 + the distance in steps, or 0 for the patch that the prototype is already
    distance: Tensor  # float32 [P, K]
    image: Tensor  # int64 [P, K]
    cell: Tensor  # int64 [P, K]: row << 16 | column
    vector: Tensor  # float32 [P, K, D]

    def pick(self, *index: Tensor) -> _Patches:
        return _Patches(*(getattr(self, f.name)[index] for f in fields(self)))


def push(
    model: ProtoNet,
    batches: Iterable[Batch],
    *,
    assignment: str = "greedy",
    duplicate_filter: str = "sample",
    features: bool = False,
) -> Push:
    """Replaces each prototype by a patch of ``batches``, in place, with its provenance, and says what changed.

    batches: (x [B, C, H, W], labels int64 [B], official training indices int64 [B]); with ``features`` x is what the
    backbone gives for the images, [B, C, Hz, Wz]. Class-specific prototypes take patches of their own class alone.
    assignment: ``greedy`` (the globally smallest distance first), ``hungarian`` (the smallest sum of distances) or
    ``legacy`` (greedy within a batch; in a later batch a prototype moves on to what is nearer, and what it held stays
    lost to the others).
    duplicate_filter: two prototypes never share a ``sample``, a ``patch``, or may share everything (``none``).

    The net is in eval mode meanwhile. Use the precision of the evaluation, so that a prototype and its patch agree.
    A prototype that finds no patch keeps its vector and provenance; a warning is logged (the original makes it zero).

    Raises `ConfigError` for unknown options, ``ValueError`` for no images or one that comes twice, for labels that are
    no class, and for batches of other things.
    """
    if assignment not in get_args(Assignment):
        raise ConfigError(f"unknown assignment {assignment!r}: {suggest(assignment, get_args(Assignment))}")
    if duplicate_filter not in SOURCES:
        raise ConfigError(f"unknown duplicate_filter {duplicate_filter!r}: {suggest(duplicate_filter, SOURCES)}")
    groups, source = _groups(model), SOURCES[duplicate_filter]
    keep = 1 if duplicate_filter == "none" else max(map(len, groups))
    with torch.no_grad(), evaluating(model):
        checked = _checked(batches, model.n_classes)
        found = _offers(model, checked, groups, keep, keep if duplicate_filter == "patch" else 1, features)
        if assignment == "legacy":
            nearest = _in_turn(found, source)
        elif assignment == "greedy":
            nearest = _in_turn([_merged(found, keep)], source)
        else:
            nearest = _least_sum(_merged(found, keep), groups, source)
        return _write(model, nearest)


@torch.no_grad()
def source_patches(model: ProtoNet, part: Part, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """(int64 [n]: the prototypes that were projected; float32 [n, D]: the training patches that they come from, as
    ``model`` sees them now). ``part``: the training images."""
    images, cells = model.source_image.cpu(), model.source_cell.cpu()
    known = (images >= 0).nonzero().flatten()
    row_of = {index: row for row, index in enumerate(part.indices.tolist())}
    found = [model.prototypes.new_empty(0, model.prototypes.shape[1])]
    with evaluating(model):
        for some in known.split(batch_size):
            rows = torch.tensor([row_of[index] for index in images[some].tolist()])
            z = model.embed(part.inputs(rows).to(model.prototypes.device))
            found.append(z[torch.arange(len(some)), :, cells[some, 0], cells[some, 1]])
    return known.to(model.prototypes.device), torch.cat(found)


@torch.no_grad()
def renew(model: ProtoNet, part: Part) -> None:
    """Make prototypes what ``model`` sees now in the patches that they come from, where its weights were rounded."""
    known, patches = source_patches(model, part)
    model.prototypes[known] = patches[..., None, None]


def _groups(model: ProtoNet) -> list[Tensor]:
    """The prototypes, int64, that compete for the same patches: those of each class, or all if they have none."""
    if not model.class_specific:
        return [torch.arange(len(model.prototypes))]
    return [own.nonzero().flatten() for own in model.own.cpu()]


def _checked(batches: Iterable[Batch], n_classes: int) -> Iterator[Batch]:
    """The batches, as long as they are what `push` wants."""
    seen = []
    for x, labels, indices in batches:
        if x.ndim != 4 or labels.shape != x.shape[:1] or indices.shape != x.shape[:1]:
            shapes = ", ".join(str(tuple(t.shape)) for t in (x, labels, indices))
            raise ValueError(f"expected batches of x [B, C, H, W], labels [B] and indices [B], not {shapes}")
        if not labels.is_cuda and not ((labels >= 0) & (labels < n_classes)).all():  # a GPU would have to wait
            raise ValueError(f"expected labels of 0..{n_classes - 1}, not {labels.unique().tolist()}")
        seen.append(indices)
        yield x, labels, indices
    if not seen:
        raise ValueError("there are no images to project prototypes onto")
    indices, times = torch.cat(seen).unique(return_counts=True)
    if (times > 1).any():
        raise ValueError(f"an image may come once only, but image {int(indices[times.argmax()])} came again")


# -------------------------------------------------------------------------------------------------------- candidates


def _offers(
    model: ProtoNet, batches: Iterable[Batch], groups: list[Tensor], keep: int, per_image: int, features: bool
) -> Iterator[_Patches]:
    """Of each batch the ``keep`` best patches of each prototype, ``per_image`` of an image."""
    where, most = model.prototypes.device, max(map(len, groups))
    rivals = torch.stack([g[torch.arange(most) % len(g)] for g in groups]).to(where)  # small groups repeat themselves
    for batch in batches:
        x, labels, indices = (t.to(where, non_blocking=True) for t in batch)
        z = model.embed_features(x) if features else model.embed(x)
        own = rivals[labels if model.class_specific else torch.zeros_like(labels)]  # [B, K]
        yield _offer(model, z, own, indices, keep, per_image)


def _offer(model: ProtoNet, z: Tensor, own: Tensor, indices: Tensor, keep: int, per_image: int) -> _Patches:
    """The ``keep`` best patches in z [B, D, Hz, Wz], ``per_image`` of an image, of all prototypes; ``own`` [B, K] may
    take some of image b."""
    columns = z.shape[3]
    distance = model.distances(z).permute(0, 2, 3, 1).flatten(1, 2)  # [B, cells, P]: as it lies in memory
    distance = distance.gather(2, own[:, None].expand(-1, distance.shape[1], -1))  # [B, cells, K]
    rank = torch.where(distance.isfinite(), 1 + (distance / STEP).round().long(), NEVER)
    at, k = (torch.arange(n, device=z.device) for n in own.shape)
    row, column = model.source_cell[own].unbind(2)
    source = at[:, None], (row * columns + column).clamp(0, rank.shape[1] - 1), k
    stays = (model.source_image[own] == indices[:, None]) & (distance[source] <= SAME)
    rank[source] = torch.where(stays, 0, rank[source])
    flat = rank.argmin(1, keepdim=True) if per_image == 1 else rank.argsort(dim=1, stable=True)[:, :per_image]

    # Every prototype gets a line of its own [B * per_image], on which most images are other classes' and never its.
    def lines(values: Tensor, otherwise: float) -> Tensor:
        line = values.new_full((len(model.prototypes), len(z), flat.shape[1]), otherwise)
        line[own, at[:, None]] = values.transpose(1, 2)
        return line.flatten(1)

    rank, distance = lines(rank.gather(1, flat), NEVER), lines(distance.gather(1, flat), torch.inf)
    flat, at = lines(flat, 0), at.repeat_interleave(flat.shape[1]).expand_as(rank)
    cell = (flat // columns << 16) + flat % columns
    best = _order(rank, indices[at], cell)[:, :keep]
    rank, distance, cell, flat, at = (line.gather(1, best) for line in (rank, distance, cell, flat, at))
    return _Patches(rank, distance, indices[at], cell, z.flatten(2).transpose(1, 2)[at, flat])


def _order(rank: Tensor, image: Tensor, cell: Tensor) -> Tensor:
    """What sorts lines [P, n] of patches by rank, then by image, then by cell."""
    order = _patch(image, cell).argsort(1)
    return order.gather(1, rank.gather(1, order).argsort(dim=1, stable=True))


def _merged(found: Iterable[_Patches], keep: int) -> _Patches:
    """The ``keep`` best patches of each prototype in all that was ``found``."""
    best = None
    for new in found:
        if best is not None:
            new = _Patches(*(torch.cat((getattr(best, f.name), getattr(new, f.name)), 1) for f in fields(new)))
            order = _order(new.rank, new.image, new.cell)[:, :keep]
            new = new.pick(torch.arange(len(order), device=order.device)[:, None], order)
        best = new
    return best


# -------------------------------------------------------------------------------------------------------- assignment
# What two prototypes may not share, as a number:


def _patch(image: Tensor | np.ndarray, cell: Tensor | np.ndarray) -> Tensor | np.ndarray:
    return (image << 32) + cell


SOURCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "sample": lambda image, cell: image,
    "patch": _patch,
    "none": lambda image, cell: np.broadcast_to(np.arange(len(image))[:, None], image.shape),  # each has its own
}


def _in_turn(found: Iterable[_Patches], source: Callable) -> _Patches:
    """The nearest prototype and patch of a table take each other, then those of what is left, and so on; table by
    table. A prototype whose turn comes takes a patch only if that is nearer than what it has from tables before."""
    nearest = None
    for patches in found:
        nearest = _nothing(patches) if nearest is None else nearest
        rank, image, cell = (t.cpu().numpy() for t in (patches.rank, patches.image, patches.cell))
        distance, have, what = patches.distance.tolist(), nearest.distance.tolist(), source(image, cell)
        there = np.argwhere(rank < NEVER)
        at = tuple(there.T)
        order = np.lexsort((at[0], cell[at], image[at], rank[at]))
        pairs, done, taken = [], set(), set()
        for p, k in there[order].tolist():
            if p in done or what[p, k] in taken:
                continue
            done.add(p)
            if distance[p][k] < have[p]:
                taken.add(what[p, k])
                pairs.append((p, k))
        _take(nearest, patches, pairs)
    return nearest


def _least_sum(patches: _Patches, groups: list[Tensor], source: Callable) -> _Patches:
    """The smallest sum of ranks, where as many prototypes get a patch as can: the Hungarian method, group by group."""
    rank, image, cell = (t.cpu().numpy() for t in (patches.rank, patches.image, patches.cell))
    what, pairs = source(image, cell), []
    for group in (g.numpy() for g in groups):
        p, k = np.nonzero(rank[group] < NEVER)
        if not len(p):
            continue
        columns, column = np.unique(what[group][p, k], return_inverse=True)
        cost = rank[group][p, k]
        never = float((cost.max() + 1) * (len(group) + 1))
        table, at = np.full((len(group), len(columns)), never), np.zeros((len(group), len(columns)), int)
        table[p, column], at[p, column] = cost, k
        for i, j in zip(*linear_sum_assignment(table), strict=True):
            if table[i, j] < never:
                pairs.append((group[i], at[i, j]))
    nearest = _nothing(patches)
    _take(nearest, patches, pairs)
    return nearest


def _nothing(patches: _Patches) -> _Patches:
    """Of each prototype one patch [P], of which none is there yet."""
    nothing = _Patches(*(getattr(patches, f.name)[:, 0].clone() for f in fields(patches)))
    nothing.distance.fill_(torch.inf)
    return nothing


def _take(nearest: _Patches, patches: _Patches, pairs: list[tuple[int, int]]) -> None:
    """Patch k of prototype p is its nearest, for all ``pairs`` (p, k)."""
    p, k = torch.tensor(pairs, dtype=torch.long, device=nearest.rank.device).view(-1, 2).T
    for f in fields(patches):
        getattr(nearest, f.name)[p] = getattr(patches, f.name)[p, k]


def _write(model: ProtoNet, nearest: _Patches) -> Push:
    """Copy what was found into ``model``."""
    before, found = model.prototypes.clone(), nearest.distance.isfinite()
    model.prototypes[found] = nearest.vector[found][..., None, None]
    model.source_image[found] = nearest.image[found]
    model.source_cell[found] = torch.stack((nearest.cell >> 16, nearest.cell & 0xFFFF), 1)[found]
    pushed = Push(
        distance=torch.where(found, nearest.distance, torch.nan).cpu(),
        image=model.source_image.cpu().clone(),
        cell=model.source_cell.cpu().clone(),
        unassigned=tuple((~found).nonzero().flatten().tolist()),
        norm_before=before.norm().item(),
        norm_after=model.prototypes.norm().item(),
        moved=(model.prototypes - before).norm().item(),
    )
    if pushed.unassigned:
        some = ", ".join(map(str, pushed.unassigned[:LISTED])) + (", ..." if len(pushed.unassigned) > LISTED else "")
        log.warning("%d prototypes found no patch and stay what they were: %s", len(pushed.unassigned), some)
    least, _, median, _, largest = pushed.quartiles
    log.info("projected: distances %.4g to %.4g, median %.4g; moved by %.4g", least, largest, median, pushed.moved)
    return pushed
