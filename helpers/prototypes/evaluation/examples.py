"""What the evaluation notebook shows before your eyes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from helpers.prototypes.evaluation import ordering
from helpers.prototypes.evaluation.measures import methods
from helpers.prototypes.evaluation.presets import Spread
from helpers.prototypes.examples import Shown

SEED = 0  # of the noise, and of the random map


def given_back(
    shown: Shown, image: int, prototype: int, names: Sequence[Spread], percents: Sequence[float]
) -> dict[str, list[tuple[np.ndarray, float]]]:
    """For `figures.given_back`: by mapping, a test image of which so many pixels are given back (in %, in ascending
    order), in the order of the map of a prototype, and the similarity that this prototype finds in it."""
    x, wanted = shown.x(image)[None], torch.tensor([[prototype]])
    similarity = ordering.similarity_maps(shown.net, x, wanted)
    noise = ordering.start_image("random", x.shape[1:], SEED)
    size = x.shape[2] * x.shape[3]
    counts = torch.tensor([round(size * percent / 100) for percent in percents])
    grid = torch.cat([torch.zeros(1, dtype=torch.long), counts[counts > 0]])
    found = {}
    for name, maps_of in methods(shown.net, shown.field, names, SEED).items():
        maps = maps_of(x, similarity, wanted)
        rank = ordering.ranks(maps, SEED)[0, 0].view(x.shape[2:])
        values = ordering.curves(shown.net, x, wanted, maps, grid=grid, seed=SEED).values[0, 0, -len(counts) :].tolist()
        pictures = [shown.restore(torch.where(rank < count, x[0], noise)) for count in counts]
        found[name] = list(zip(pictures, values, strict=True))
    return found
