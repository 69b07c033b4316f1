"""The threshold sweep counts what the slow loop counts, to the last pixel."""

import numpy as np
import pytest
import torch

from helpers import metrics

GRIDS = {
    "the paper's": metrics.THRESHOLDS,
    "one": np.array([0.25]),
    "linear, many in a cell": np.linspace(0.2, 0.9, 1000),
    "close together": 0.3 + np.arange(5) * 1e-9,
    "repeated": np.array([0.1, 0.1, 0.5, 0.5, 0.5, 1.0]),
    "negative, zero and tiny": np.array([-1e30, -0.5, -1e-45, -1e-310, 0.0, 1e-310, 1e-45, 1e-38, 0.5, 1e30]),
    "beyond float32": np.array([-1e300, 0.0, 1e300]),
}


def delicate(thresholds: np.ndarray) -> torch.Tensor:
    """Each threshold as float32 and its neighbours on both sides, zeros of both signs, extremes and random values."""
    with np.errstate(over="ignore"):
        at = thresholds.astype(np.float32)
    at = at[np.isfinite(at)]
    limits = np.finfo(np.float32)
    special = np.array([0.0, -0.0, 1.0, limits.tiny, limits.smallest_subnormal, limits.max, limits.min], np.float32)
    near = [np.nextafter(at, np.float32(side)) for side in (-np.inf, np.inf)]
    random = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    values = np.concatenate([at, *near, special, -special, random, 10 ** (2 * random - 2)]).astype(np.float32)
    return torch.from_numpy(values[np.isfinite(values)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("grid", GRIDS)
def test_every_value_exceeds_the_thresholds_that_it_exceeds_in_float64(grid, dtype):
    thresholds = GRIDS[grid]
    values = delicate(thresholds).to(dtype)
    values = values[torch.isfinite(values)]
    slow = (values.double()[:, None] > torch.from_numpy(thresholds)).sum(1)
    assert torch.equal(metrics._exceeded(values, thresholds).long(), slow)


def plain_curve(heat: torch.Tensor, masks: torch.Tensor, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spec section 4.2, word for word: for each threshold binarise all images and take the two means."""
    heat, masks = heat.double(), masks.double()
    tdr, tar = [], []
    for t in thresholds:
        binary = (heat > t).double()
        tdr.append(((binary * masks).sum((1, 2)) / masks.sum((1, 2))).nanmean())
        tar.append((((1 - binary) * (1 - masks)).sum((1, 2)) / (1 - masks).sum((1, 2))).nanmean())
    return np.array(tdr), np.array(tar)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("strided", [False, True])
def test_curve_is_that_of_the_plain_loop(grid, strided):
    random = np.random.default_rng(1)
    heat = torch.from_numpy(random.random((12, 16, 16), np.float32) ** 4)
    heat[0, :8] = torch.from_numpy(random.choice(metrics.THRESHOLDS, (8, 16)).astype(np.float32))  # on the grid
    heat = heat.transpose(1, 2) if strided else heat
    masks = torch.from_numpy((random.random((12, 16, 16)) < 0.1).astype(np.float32))
    masks[3], masks[4] = 0, 1  # an image without a target, one without background
    curve = metrics.detection_curve(heat, masks, GRIDS[grid])
    tdr, tar = plain_curve(heat, masks, GRIDS[grid])
    np.testing.assert_allclose(curve.tdr, tdr, rtol=0, atol=1e-14)
    np.testing.assert_allclose(curve.tar, tar, rtol=0, atol=1e-14)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_maps_that_are_not_finite_are_refused(bad):
    heat = torch.zeros(2, 4, 4)
    heat[1, 2, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        metrics.detection_curve(heat, torch.zeros(2, 4, 4))
