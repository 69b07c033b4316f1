"""What the evaluation notebook and its explorer show before your eyes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from helpers.prototypes.evaluation import ordering
from helpers.prototypes.evaluation.measures import methods
from helpers.prototypes.evaluation.presets import Spread
from helpers.prototypes.examples import Shown
from helpers.prototypes.models import ProtoNet

SEED = 0  # of the noise, and of the random map


@dataclass(frozen=True, eq=False)
class Trial:
    """A prototype on an image: by mapping its ``heat`` [H, W], the places of the pixels in its order, ``ranks`` [H, W],
    and the ``similarities`` [T] with some numbers of pixels; the ``cell`` (flat) that it matches best."""

    prototype: int
    cell: Tensor
    heat: dict[str, np.ndarray]
    ranks: dict[str, Tensor]
    similarities: dict[str, list[float]]


def tried(net: ProtoNet, x: Tensor, prototype: int, maps_by: Mapping[str, ordering.Maps], counts: Tensor) -> Trial:
    """A prototype on x [1, 3, H, W], of which ``counts`` int64 [T] pixels, ascending, are given back in the order of
    the maps of each mapping (`measures.methods`)."""
    wanted = torch.tensor([[prototype]])
    similarity = ordering.similarity_maps(net, x, wanted)
    grid = torch.cat([torch.zeros(1, dtype=torch.long), counts[counts > 0]])
    heat, ranks, similarities = {}, {}, {}
    for name, maps_of in maps_by.items():
        maps = maps_of(x, similarity, wanted)
        found = ordering.curves(net, x, wanted, maps, grid=grid, seed=SEED).values[0, 0]
        heat[name], similarities[name] = maps[0, 0].cpu().numpy(), found[-len(counts) :].tolist()
        ranks[name] = ordering.ranks(maps, SEED)[0, 0].view(maps.shape[2:])
    return Trial(prototype, similarity.flatten().argmax(), heat, ranks, similarities)


def noise(size: Sequence[int]) -> Tensor:
    """float32 [3, H, W]: what stands in place of the pixels that are not given back."""
    return ordering.start_image("random", (3, *size), SEED)


def given_back(
    shown: Shown, image: int, prototype: int, names: Sequence[Spread], percents: Sequence[float]
) -> dict[str, list[tuple[np.ndarray, float]]]:
    """For `figures.given_back`: by mapping, a test image of which so many pixels are given back (in %, in ascending
    order), in the order of the map of a prototype, and the similarity that this prototype finds in it."""
    x = shown.x(image)
    counts = torch.tensor([round(x[0].numel() * percent / 100) for percent in percents])
    trial = tried(shown.net, x[None], prototype, methods(shown.net, shown.field, names, SEED), counts)
    empty, found = noise(x.shape[1:]), {}
    for name, rank in trial.ranks.items():
        pictures = [shown.restore(torch.where(rank < count, x, empty)) for count in counts]
        found[name] = list(zip(pictures, trial.similarities[name], strict=True))
    return found
