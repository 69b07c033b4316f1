"""The relevance ordering test: how soon does a prototype find again what it looked at (spec section 8.5)?

    found = compare(net, data.test, field)              # PixPNet's maps, up-sampling and chance on the same images
    found.as_frame()                                    # areas, pixels needed and differences, with intervals
    curves(net, x, prototypes, maps)                    # of any maps [B, P, H, W], wherever they come from

A curve starts at an image of noise. The original's pixels take its place one after the other, in the descending order
of a map, and the prototype's greatest similarity is recorded, in whatever cell it is. The sooner it rises, the better
the map says which pixels the similarity rests on.

Equal pixels come in a random order, drawn once for all images and maps. Most of a map can be equal, all that no
relevance reaches; taken row by row, it would be judged by where in the image that is. So it gets the order of chance.

Nearly all forward passes are saved by recording a curve at some numbers of pixels (`pixel_counts`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm

from helpers import runtime
from helpers.attribution.base import evaluating
from helpers.config import ConfigError, suggest
from helpers.metrics.base import streams
from helpers.prototypes.evaluation.ordering_results import Ordering
from helpers.prototypes.mapping import METHODS, pixel_map
from helpers.prototypes.models import ProtoNet
from helpers.prototypes.receptive_field import ReceptiveField
from helpers.prototypes.similarity import distances

POINTS = 257  # of a curve
SPACING = 1.5  # the power that they are spaced by
BATCH = 128  # images in a forward pass
CHUNK = 4  # images whose maps are held at a time

Grid = Literal["exact"] | int | Tensor
Start = Literal["random", "zeros"]
Maps = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x [B, 3, H, W], similarity maps [B, P, Hz, Wz], prototypes int64 [B, P]) to maps [B, P, H, W]."""


class Part(Protocol):
    """A split (`helpers.prototypes.sets.Part`)."""

    labels: Tensor

    def inputs(self, rows: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Curves:
    """All on the CPU."""

    counts: Tensor  # int64 [T]: how many pixels are the original's, from 0 upwards
    values: Tensor  # float32 [B, P, T]: the greatest similarity then
    final: Tensor  # float32 [B, P]: that of the original image


def compare(
    model: ProtoNet,
    part: Part,
    field: ReceptiveField,
    methods: Mapping[str, Maps] | None = None,
    *,
    n_images: int = 50,
    prototypes: Tensor | None = None,
    grid: Grid = POINTS,
    proportion: float = 1.0,
    start: Start = "random",
    seed: int = 0,
    batch: int = BATCH,
    chunk: int = CHUNK,
    progress: str | None = None,
) -> Ordering:
    """The test of ``methods`` (default: `pixel_maps`) on the images of ``part`` that `sample` takes.

    ``prototypes`` int64 [C, K]: whom to ask about the images of each class (default: `own_prototypes`). Similarity maps
    are computed once, for a ``chunk`` of images at a time, and every method is given them. ``progress`` names a bar.
    The other settings are those of `curves`.

    Raises `ConfigError` for settings that cannot be, and what `sample`, `own_prototypes` and `curves` do.
    """
    methods = pixel_maps(field, seed=seed) if methods is None else methods
    if not methods:
        raise ConfigError("there is no method to compare")
    table = own_prototypes(model) if prototypes is None else prototypes.cpu()
    if table.ndim != 2 or len(table) != model.n_classes:
        raise ConfigError(f"prototypes must be those of {model.n_classes} classes, [C, K], not {list(table.shape)}")
    _known(model, table)
    rows = sample(part.labels, n_images, seed)
    if not 0 <= part.labels.min() <= part.labels.max() < len(table):
        raise ConfigError(f"labels must be of the network's classes, 0 to {len(table) - 1}")
    chosen = table[part.labels[rows].cpu()]
    pixels = math.prod(field.input_size)
    counts = pixel_counts(pixels, grid, proportion)
    settings = {"grid": counts, "start": start, "seed": seed, "batch": batch, "chunk": chunk}
    found: dict[str, list[Curves]] = {name: [] for name in methods}
    chunks = torch.arange(len(rows)).split(_positive(chunk, "chunk"))
    with tqdm(total=len(chunks) * len(methods), desc=progress, disable=progress is None, leave=False) as bar:
        for some in chunks:
            x, wanted = (t.to(model.prototypes.device) for t in (part.inputs(rows[some]), chosen[some]))
            similarity = similarity_maps(model, x, wanted)
            for name, maps_of in methods.items():
                bar.set_postfix_str(name)
                found[name].append(curves(model, x, wanted, maps_of(x, similarity, wanted), **settings))
                bar.update()
    values = {name: torch.cat([c.values for c in own]) for name, own in found.items()}
    final = torch.cat([c.final for c in next(iter(found.values()))])
    return Ordering(rows, chosen, counts, pixels, values, final, seed)


@torch.no_grad()
def curves(
    model: ProtoNet,
    x: Tensor,
    prototypes: Tensor,
    maps: Tensor,
    *,
    grid: Grid = POINTS,
    proportion: float = 1.0,
    start: Start = "random",
    seed: int = 0,
    batch: int = BATCH,
    chunk: int = CHUNK,
) -> Curves:
    """The greatest similarities of ``prototypes`` int64 [B, P], while the pixels of x [B, 3, H, W] are put back in the
    descending order of ``maps`` [B, P, H, W].

    ``grid`` and ``proportion``: at how many pixels, see `pixel_counts`. ``start``: what stands in place of the others,
    one image of normal noise (mean 0, deviation 1 in normalised pixels) or of ``zeros``. The noise and the order of
    equal pixels come from streams of ``seed``. ``batch`` images go through the model at a time, ``chunk`` of x are
    ranked: the result depends on neither, but for the rounding of distances (float32), which a logarithm magnifies.

    Raises `ConfigError` for settings that cannot be and prototypes that there are not, ``ValueError`` for tensors of
    other shapes and maps that are not finite.
    """
    _check(model, x, prototypes, maps)
    where, shape = model.prototypes.device, x.shape[1:]
    n = shape[1] * shape[2]
    counts = pixel_counts(n, grid, proportion)
    inner = counts[(counts > 0) & (counts < n)].to(where)
    first = start_image(start, shape, seed).to(where)
    batch, parts = _positive(batch, "batch"), []
    with evaluating(model):
        begin = _greatest(model, first[None], prototypes.flatten()[None].to(where)).view(*prototypes.shape, 1)
        for some in torch.arange(len(x)).split(_positive(chunk, "chunk")):
            images, wanted = x[some].to(where), prototypes[some].to(where)
            end = _greatest(model, images, wanted)[..., None]
            between = _between(model, images, wanted, ranks(maps[some].to(where), seed), inner, first, batch)
            parts.append(torch.cat([begin[some.to(where)], between, end], 2).cpu())
    values = torch.cat(parts)
    return Curves(counts, values[..., : len(counts)], values[..., -1])


def pixel_counts(n: int, grid: Grid = POINTS, proportion: float = 1.0) -> Tensor:
    """int64 [T], ascending: at how many of n pixels a curve is recorded, from 0 to ``proportion`` of them.

    ``exact``: at every number, as the spec has it. An int: at so many points, fewer where there are not as many. A
    tensor of integers, from 0 upwards: at these.

    The i-th point lies at (i / last) ** 1.5 of the pixels. Of seven spacings that were compared with exact curves,
    whatever the maps, this one and equal steps were the nearest in area, and this one is finer at the start: 257 points
    are off by 0.24 % of a curve's span (root mean square; 0.66 % with steps of equal ratio).
    """
    if isinstance(grid, Tensor):
        whole = not (grid.is_floating_point() or grid.is_complex() or grid.dtype == torch.bool)
        if grid.ndim != 1 or len(grid) < 2 or not whole or grid[0] != 0 or grid[-1] > n or (grid.diff() <= 0).any():
            raise ValueError(f"a grid of pixels must be ascending integers [T] from 0 up to at most {n}")
        return grid.long().cpu()
    if grid != "exact" and (not isinstance(grid, int) or grid < 2):
        raise ConfigError(f"grid must be 'exact', at least 2 points or a tensor of pixels, not {grid!r}")
    if not 0 < proportion <= 1 or (last := round(n * proportion)) < 1:
        raise ConfigError(f"proportion must be above 0, at most 1 and at least one pixel of {n}, not {proportion}")
    if grid == "exact" or grid > last:
        return torch.arange(last + 1)
    place = torch.arange(grid)
    spaced = (last * (place / (grid - 1)).double() ** SPACING).round().long()
    return place + (spaced - place).cummax(0).values  # every number once


def similarity_maps(model: ProtoNet, x: Tensor, prototypes: Tensor) -> Tensor:
    """float32 [B, P, Hz, Wz]: the similarities of ``prototypes`` int64 [B, P] to all cells of x [B, 3, H, W]. One image
    at a time: bits may depend on the size of a batch, and the order of nearly equal pixels on bits."""
    vectors = model.prototypes.flatten(1)
    with torch.no_grad(), evaluating(model):
        pairs = zip(map(model.embed, x.split(1)), prototypes, strict=True)
        return model.similarity(torch.cat([distances(z, vectors[own], model.distance) for z, own in pairs]))


def pixel_maps(
    field: ReceptiveField, names: Sequence[str] = ("rf", "upsample", "random"), seed: int = 0
) -> dict[str, Maps]:
    """Methods of `helpers.prototypes.mapping.pixel_map` by name, as `compare` takes them. A random map comes from
    a stream of ``seed`` and the image, told by its content. Raises `ConfigError` for an unknown method."""
    for name in names:
        if name not in METHODS:
            raise ConfigError(f"unknown method {name!r} of a pixel map: {suggest(name, METHODS)}")

    def maps(name: str, x: Tensor, similarity: Tensor, prototypes: Tensor) -> Tensor:
        if name != "random":
            return pixel_map(similarity, field, name)
        seeds = [stream.initial_seed() for stream in streams(x, seed, "random map")]
        return torch.cat([pixel_map(s[None], field, name, seed=i) for s, i in zip(similarity, seeds, strict=True)])

    return {name: partial(maps, name) for name in names}


def sample(labels: Tensor, n: int, seed: int) -> Tensor:
    """int64 [n]: rows of ``labels`` [N] drawn so that the classes take turns, in random order, each time with an image
    drawn from the class. Of a larger n they are the same ones and more. Raises `ConfigError` if there are fewer."""
    if not 1 <= n <= len(labels):
        raise ConfigError(f"n_images must be between 1 and {len(labels)}, not {n}")
    generator = runtime.generator(seed, "ordering", "sample")
    names, label = labels.cpu().unique(return_inverse=True)
    place = torch.randperm(len(names), generator=generator)
    order = torch.randperm(len(label), generator=generator)
    turn = torch.empty_like(order)
    for one in range(len(names)):
        own = order[label[order] == one]
        turn[own] = torch.arange(len(own))
    return (turn * len(names) + place[label]).argsort()[:n]


def own_prototypes(model: ProtoNet) -> Tensor:
    """int64 [C, K]: the prototypes of each class. Raises `ConfigError` where classes have not as many each."""
    own = model.own.cpu()
    each = own.sum(1)
    if each.min() != each.max() or not each.max():
        count = f"{int(each.min())} to {int(each.max())}"
        raise ConfigError(f"classes have {count} prototypes of their own: say which to ask")
    return own.nonzero()[:, 1].view(len(own), -1)


def start_image(kind: Start, shape: Sequence[int], seed: int) -> Tensor:
    """float32 [C, H, W], on the CPU: what a curve starts with. Raises `ConfigError` for an unknown kind."""
    if kind not in get_args(Start):
        raise ConfigError(f"unknown start {kind!r}: {suggest(kind, get_args(Start))}")
    return torch.zeros(shape) if kind == "zeros" else torch.randn(shape, generator=runtime.generator(seed, "ordering"))


def ranks(maps: Tensor, seed: int) -> Tensor:
    """int32 [..., H * W]: the place of each pixel of ``maps`` [..., H, W] in the descending order."""
    values = maps.flatten(-2)
    mixed = torch.randperm(values.shape[-1], generator=runtime.generator(seed, "ordering", "ties")).to(values.device)
    order = mixed[values[..., mixed].argsort(dim=-1, descending=True, stable=True)]
    places = torch.arange(order.shape[-1], dtype=torch.int32, device=order.device)
    return torch.empty_like(order, dtype=torch.int32).scatter_(-1, order, places.expand_as(order))


def _between(
    model: ProtoNet, x: Tensor, prototypes: Tensor, rank: Tensor, counts: Tensor, first: Tensor, batch: int
) -> Tensor:
    """[B, P, T]: the greatest similarities with the pixels of ``rank`` [B, P, H * W] below each of ``counts`` [T]."""
    n, each, steps = *prototypes.shape, len(counts)
    rank, asked = rank.flatten(0, 1), prototypes.flatten()
    found = x.new_empty(n * each * steps, dtype=torch.float32)
    for begin in range(0, len(found), batch):
        rows = torch.arange(begin, min(begin + batch, len(found)), device=x.device)
        pair = rows // steps
        original = rank[pair] < counts[rows % steps, None]
        mixed = torch.where(original.view(-1, 1, *x.shape[2:]), x[pair // each], first)
        found[rows] = _greatest(model, mixed, asked[pair, None])[:, 0]
    return found.view(n, each, steps)


def _greatest(model: ProtoNet, x: Tensor, prototypes: Tensor) -> Tensor:
    """[B, P]: the similarities of ``prototypes`` [B, P] in x, none of others computed."""
    needed, which = prototypes.unique(return_inverse=True)
    found = distances(model.embed(x), model.prototypes.flatten(1)[needed], model.distance)
    return model.similarity(found.flatten(2).amin(2).gather(1, which))


def _check(model: ProtoNet, x: Tensor, prototypes: Tensor, maps: Tensor) -> None:
    if x.ndim != 4 or not x.is_floating_point() or prototypes.ndim != 2 or len(prototypes) != len(x) or not len(x):
        shapes = f"{x.dtype} {tuple(x.shape)} and {tuple(prototypes.shape)}"
        raise ValueError(f"expected x [B, 3, H, W] of floats and prototypes [B, P], not {shapes}")
    if maps.shape != (*prototypes.shape, *x.shape[2:]):
        raise ValueError(f"expected maps {[*prototypes.shape, *x.shape[2:]]}, not {list(maps.shape)}")
    if not maps.isfinite().all():
        raise ValueError("maps hold NaN or infinite values")
    _known(model, prototypes)


def _known(model: ProtoNet, prototypes: Tensor) -> None:
    count = len(model.prototypes)
    if prototypes.dtype != torch.long:
        raise ValueError(f"expected prototypes of int64, not {prototypes.dtype}")
    if len(others := prototypes[(prototypes < 0) | (prototypes >= count)]):
        raise ConfigError(f"no prototype {int(others[0])}: there are 0 to {count - 1}")


def _positive(number: int, name: str) -> int:
    if number < 1:
        raise ConfigError(f"{name} must be at least 1, not {number}")
    return number
