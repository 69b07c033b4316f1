"""Pixel maps against loops over cells, what the formula promises, and where prototypes are said to look."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from proto_patches import field, field_of, net, vgg16
from torch import nn

from helpers import runtime
from helpers.config import ConfigError
from helpers.prototypes.mapping import bounding_box, pixel_map, readout, upsample_box
from helpers.prototypes.receptive_field import ReceptiveField, receptive_field

SMALL = field(40, 13, 5, -4, 8)
EVEN = field(40, 14, 5, -4, 8)
GAPS = field(40, 7, 10, 2, 3)  # pixels that no cell sees
DEEP = field(40, 71, 8, -32, 5)  # every cell sees the whole image, around other centres


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def similarity(shape, seed=0, low=-0.3):
    return torch.rand(shape, generator=runtime.generator(seed, "similarity")) * (1 - low) + low


def slow(s, one, reduce, sigma_factor=1.0):
    """Section 4.1 for a map s [Hz, Wz], cell by cell and pixel by pixel."""
    h, w = one.input_size
    values = [[[] for _ in range(w)] for _ in range(h)]
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            a, b, c, d = one.unclipped[i, j]
            ys, xs = np.arange(a, b) - (a + b - 1) / 2, np.arange(c, d) - (c + d - 1) / 2
            g = np.exp(
                -(ys[:, None] ** 2) / (2 * (sigma_factor * (b - a)) ** 2)
                - xs[None] ** 2 / (2 * (sigma_factor * (d - c)) ** 2)
            )
            g /= g.max()
            y0, y1, x0, x1 = one.box(i, j)
            for y in range(y0, y1):
                for x in range(x0, x1):
                    values[y][x].append(max(float(s[i, j]), 0) * g[y - int(a), x - int(c)])
    how = {"max": lambda v: max(v, default=0), "sum": sum, "mean": lambda v: sum(v) / len(v) if v else np.nan}[reduce]
    return torch.tensor([[how(v) for v in row] for row in values], dtype=torch.float32)


@pytest.mark.parametrize("reduce", ["max", "sum", "mean"])
@pytest.mark.parametrize("one", [SMALL, EVEN, GAPS, DEEP], ids=["odd", "even", "gaps", "deep"])
def test_a_map_is_the_loop_over_cells(one, reduce):
    """Property 7."""
    s = similarity((2, 2, *one.lookup.shape[:2]))
    for (b, p), sigma_factor in {(0, 0): 1.0, (1, 1): 0.3}.items():
        heat = pixel_map(s, one, reduce=reduce, sigma_factor=sigma_factor)
        expected = slow(s[b, p], one, reduce, sigma_factor)
        assert heat.shape == (2, 2, 40, 40)
        assert torch.allclose(heat[b, p], expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_of_a_traced_network_too():
    model = net()
    one, s = field_of(model), similarity((1, 1, 8, 8))
    assert torch.allclose(pixel_map(s, one)[0, 0], slow(s[0, 0], one, "max"), rtol=0, atol=1e-5)


def test_rows_and_columns_may_differ():
    one = field(40, 13, 5, -4, 8)
    seen, unclipped = one.edges[0], one.unclipped_edges[0]
    wide = ReceptiveField((40, 20), (seen, seen[:4].clip(0, 20)), (unclipped, unclipped[:4]), one.side, one.stride)
    s = similarity((1, 1, 8, 4))
    for reduce in ("max", "sum"):
        assert torch.allclose(pixel_map(s, wide, reduce=reduce)[0, 0], slow(s[0, 0], wide, reduce), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["rf", "legacy"])
def test_one_cell_colours_its_receptive_field_and_nothing_else(method):
    """Property 6: of VGG16 up to maxpool5, cell (3, 0) sees rows 6 to 218, columns 0 to 122."""
    one, s = vgg16("maxpool5"), torch.zeros(1, 1, 7, 7)
    s[0, 0, 3, 0] = 1.7
    heat = pixel_map(s, one, method)[0, 0]
    assert bounding_box(heat > 0).tolist() == [6, 218, 0, 122] == list(one.box(3, 0))
    inside = heat[6:218, :122]
    assert inside.max() == pytest.approx(1.7, rel=1e-6)
    assert (inside > 0).all() and inside.min() / inside.max() >= 0.7788 - 1e-6


@pytest.mark.parametrize("one", [SMALL, EVEN, vgg16("maxpool4")], ids=["odd", "even", "vgg16"])
def test_what_bounds_a_map(one):
    """Property 7."""
    s = similarity((2, 3, *one.lookup.shape[:2]), low=0)
    heats = {reduce: pixel_map(s, one, reduce=reduce) for reduce in ("mean", "max", "sum")}
    greatest = s.flatten(2).max(2)
    assert (heats["max"] <= greatest.values[..., None, None] + 1e-6).all()
    assert (heats["mean"] <= heats["max"] + 1e-6).all() and (heats["max"] <= heats["sum"] + 1e-6).all()
    for b in range(2):
        for p in range(3):
            y0, y1, x0, x1 = readout(s, one).box[b, p].tolist()
            assert (heats["max"][b, p, y0:y1, x0:x1] >= 0.7788 * greatest.values[b, p] - 1e-6).all()


def test_each_map_is_its_own():
    """Prototypes and images that are asked for together do not see each other."""
    s = similarity((3, 4, 8, 8))
    for method in ("rf", "legacy", "upsample"):
        together = pixel_map(s, SMALL, method)
        assert torch.allclose(together[1:2, 2:3], pixel_map(s[1:2, 2:3], SMALL, method), rtol=0, atol=1e-6)


def test_windows_that_were_made_without_gradients_serve_those_that_want_some():
    s, field = similarity((1, 1, 8, 8)), receptive_field(nn.Sequential(nn.Conv2d(1, 1, 5, stride=4)), 33)
    with torch.inference_mode():
        expected = pixel_map(s, field, reduce="sum")
    s = s.clone().requires_grad_()
    found = pixel_map(s, field, reduce="sum")
    found.sum().backward()
    assert torch.equal(found, expected) and s.grad.any()


def test_negative_similarities_vanish():
    s = similarity((1, 2, 8, 8))
    assert torch.equal(pixel_map(s, SMALL), pixel_map(s.clamp(min=0), SMALL))
    assert not pixel_map(-s.abs(), SMALL, reduce="sum").any()


def test_who_sees_everything_says_nothing_about_where():
    endless = receptive_field(nn.Sequential(nn.AdaptiveAvgPool2d(1)), 40)
    assert endless.side == (np.inf, np.inf)
    assert torch.equal(pixel_map(torch.full((1, 1, 1, 1), 2.0), endless), torch.full((1, 1, 40, 40), 2.0))


@pytest.mark.parametrize("stage", ["maxpool4", "maxpool5"])
def test_legacy_is_the_same_where_a_cell_sees_its_whole_field(stage):
    one = vgg16(stage)
    s = similarity((1, 2, *one.lookup.shape[:2]))
    assert torch.allclose(pixel_map(s, one, "legacy"), pixel_map(s, one), rtol=0, atol=1e-6)


def test_legacy_spreads_the_centres_of_cells_that_see_everything():
    s, size, count = similarity((1, 1, 5, 5), low=0), 40, 5
    middles = np.array([4, 12, 20, 28, 36])  # round((i + 1/2) 40 / 5)
    kappa = size + round(2 * np.abs(19.5 - middles).max())
    assert kappa == 40 + 33
    y, x = np.mgrid[:size, :size]
    expected = np.zeros((size, size))
    for i in range(count):
        for j in range(count):
            g = np.exp(-((y - middles[i]) ** 2 + (x - middles[j]) ** 2) / (2 * kappa**2))
            expected = np.maximum(expected, float(s[0, 0, i, j]) * g)
    assert np.allclose(pixel_map(s, DEEP, "legacy")[0, 0], expected, atol=1e-5)


def test_upsampling_is_bicubic_and_signed():
    s = similarity((2, 3, 8, 8))
    heat = pixel_map(s, SMALL, "upsample")
    assert torch.equal(heat, F.interpolate(s, (40, 40), mode="bicubic", align_corners=False)) and (heat < 0).any()


def test_random_maps_are_those_of_a_seed():
    s = similarity((2, 3, 8, 8))
    one, same, other = (pixel_map(s, SMALL, "random", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other) and not torch.equal(one[0, 0], one[1, 0])
    assert one.shape == (2, 3, 40, 40) and one.min() >= 0 and one.max() < 1 and abs(one.mean() - 0.5) < 0.02


def test_the_box_of_an_upsampled_map_holds_its_highest_twentieth():
    s = similarity((3, 2, 8, 8))
    drawn = upsample_box(s, (40, 40))
    heat = F.interpolate(s, (40, 40), mode="bicubic", align_corners=False).double().numpy()
    for b in range(3):
        for p in range(2):
            ys, xs = np.nonzero(heat[b, p] >= np.percentile(heat[b, p], 95))
            assert drawn[b, p].tolist() == [ys.min(), ys.max() + 1, xs.min(), xs.max() + 1]


def test_a_box_around_nothing_is_empty():
    mask = torch.zeros(2, 5, 6, dtype=torch.bool)
    mask[0, 1:3, 4] = True
    assert bounding_box(mask).tolist() == [[1, 3, 4, 5], [0, 0, 0, 0]]


# --------------------------------------------------------------------------------------------------------- readouts


def test_bbox_is_the_field_of_the_highest_cell():
    s = similarity((3, 4, 8, 8))
    found = readout(s, SMALL, "bbox")
    for b in range(3):
        for p in range(4):
            i, j = divmod(int(s[b, p].argmax()), 8)
            y0, y1, x0, x1 = SMALL.box(i, j)
            assert found.box[b, p].tolist() == [y0, y1, x0, x1]
            assert found.centre[b, p].tolist() == [(y0 + y1 - 1) / 2, (x0 + x1 - 1) / 2]


@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize("one", [EVEN, GAPS], ids=["even", "gaps"])
def test_a_heat_map_is_read_at_the_centroid_of_its_maximum(one, reduce):
    s = similarity((2, 3, *one.lookup.shape[:2]))
    found, heat = readout(s, one, f"heatmap_{reduce}"), pixel_map(s, one, reduce=reduce).numpy()
    for b in range(2):
        for p in range(3):
            ys, xs = np.nonzero(heat[b, p] == np.nanmax(heat[b, p]))
            assert found.centre[b, p].tolist() == pytest.approx([ys.mean(), xs.mean()], abs=1e-4)
            assert found.box[b, p].tolist() == [ys.min(), ys.max() + 1, xs.min(), xs.max() + 1]


def test_upsampling_looks_at_a_block():
    s = torch.zeros(1, 2, 8, 8)
    s[0, 0, 0, 7] = s[0, 1, 3, 4] = 1
    found = readout(s, SMALL, "upsample")
    assert found.box[0].tolist() == [[0, 5, 35, 40], [15, 20, 20, 25]]
    assert found.centre[0].tolist() == [[2, 38], [18, 22]]  # round(2.5), round(37.5), round(17.5), round(22.5)


def test_the_centre_depends_on_nothing():
    for seed in (0, 1):
        found = readout(similarity((2, 3, 8, 8), seed), SMALL, "center")
        assert found.box.tolist() == [[[0, 40, 0, 40]] * 3] * 2 and found.centre.tolist() == [[[19.5, 19.5]] * 3] * 2


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8), (1, 2, 7, 8), (1, 2, 8, 8, 1)])
def test_maps_of_another_shape_are_refused(shape):
    for call in (pixel_map, readout):
        with pytest.raises(ValueError, match=r"expected similarities \[B, P, 8, 8\]"):
            call(torch.zeros(shape), SMALL)


def test_unknown_names_are_answered_by_near_ones():
    s = similarity((1, 1, 8, 8))
    for call, says in [
        (lambda: pixel_map(s, SMALL, "upsampled"), "did you mean upsample?"),
        (lambda: pixel_map(s, SMALL, "prp"), "there are: legacy, random, rf, upsample"),
        (lambda: pixel_map(s, SMALL, reduce="maximum"), "unknown reduction 'maximum'"),
        (lambda: pixel_map(s, SMALL, sigma_factor=0), "sigma_factor must be positive"),
        (lambda: readout(s, SMALL, "heatmap"), "did you mean heatmap_max or heatmap_mean?"),
    ]:
        with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
            call()
