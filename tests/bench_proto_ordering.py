"""Speed of the relevance ordering test against the loop over pixels, as ratios measured in one run
(`conftest.compare`): `make bench`. The bounds are asserted.

The loop is run in full, for one image and prototype: at 64 x 64 pixels, 4097 passes. Ours does four of these.
"""

import time

import pytest
import torch
from proto_patches import net

from helpers import runtime
from helpers.attribution.base import evaluating
from helpers.prototypes.evaluation.ordering import curves
from helpers.prototypes.evaluation.ordering_results import normalised_area

TIMES = 4


@torch.no_grad()
def pixel_by_pixel(model, x, prototype, heat):
    """A curve [H * W + 1] (spec section 8.5) as it is written, from an image of zeros."""
    order, current = heat.flatten().argsort(descending=True).tolist(), torch.zeros_like(x)
    with evaluating(model):
        curve = [float(model(current[None]).similarities[0, prototype])]
        for pixel in order:
            row, column = divmod(pixel, x.shape[2])
            current[:, row, column] = x[:, row, column]
            curve.append(float(model(current[None]).similarities[0, prototype]))
    return torch.tensor(curve)


@pytest.mark.parametrize("side, grid, least", [(64, 257, 50), (32, "exact", 4)])
def test_ordering(compare, threads, side, grid, least):
    """Ours are the loop's values, at the points of the grid. The clock is that of the core."""
    threads(1)
    model, found = net(prototype_activation="linear"), {}
    x = torch.randn(1, 3, side, side, generator=runtime.generator(0, "images"))
    maps = torch.rand(1, TIMES, side, side, generator=runtime.generator(0, "maps"))
    prototypes = torch.arange(TIMES)[None]

    def plain():
        found["plain"] = pixel_by_pixel(model, x[0], 0, maps[0, 0])

    def ours():
        found["ours"] = curves(model, x, prototypes, maps, grid=grid, start="zeros")

    name = f"relevance ordering, {side} px, {grid}"
    ratio = compare(name, plain, ours, work=TIMES, rounds=3, clock=time.process_time)
    counts, values, every = found["ours"].counts, found["ours"].values[0, 0], torch.arange(side * side + 1)
    assert torch.allclose(values, found["plain"][counts], rtol=0, atol=1e-5)
    areas = [
        normalised_area(curve.double(), at / side**2, curve[-1].double())
        for curve, at in ((values, counts), (found["plain"], every))
    ]
    assert abs(areas[0] - areas[1]) < 0.01
    assert ratio >= least
