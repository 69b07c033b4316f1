"""The relevance ordering test against a loop that puts back one pixel after the other, and what its numbers promise
(property 21)."""

import pandas as pd
import pytest
import torch
from proto_patches import field_of, images, net
from torch import nn

from helpers import runtime
from helpers.attribution.base import evaluating
from helpers.config import ConfigError
from helpers.data import images as labelled
from helpers.prototypes.evaluation import ordering
from helpers.prototypes.evaluation.ordering import (
    compare,
    curves,
    own_prototypes,
    pixel_counts,
    pixel_maps,
    ranks,
    sample,
    similarity_maps,
)
from helpers.prototypes.evaluation.ordering_results import (
    Estimate,
    Ordering,
    normalised_area,
    percent_to_final,
)
from helpers.prototypes.mapping import pixel_map
from helpers.prototypes.models import ProtoNet, prune
from helpers.prototypes.presets import Model

SIDE = 16  # pixels, 4 x 4 cells
N = SIDE * SIDE
LINEAR = {"prototype_activation": "linear"}  # the logarithm of the default magnifies rounding


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def few(count=3, seed=1, side=SIDE):
    """Images and their labels."""
    x, labels, _ = images(count, seed=seed)
    return x[..., :side, :side].contiguous(), labels


def own(model, labels, each=2):
    return own_prototypes(model)[labels][:, :each]


def noise_maps(prototypes, side=SIDE, seed=0):
    return torch.rand(*prototypes.shape, side, side, generator=runtime.generator(seed, "maps"))


def similarities(model, x):
    """[B, P], of all prototypes, as the network gives them."""
    with torch.no_grad(), evaluating(model):
        return model(x).similarities


class Images:
    """A split of small images that says how often it was read."""

    def __init__(self, count=12, side=SIDE):
        self.x, self.labels = few(count, side=side)

    def inputs(self, rows):
        return self.x[rows]


def linear(seed=0, side=8):
    """A network whose one similarity is -(100 - w.x)^2: the more w.x, the better."""
    model = ProtoNet(
        nn.Conv2d(3, 1, side, bias=False),
        1,
        1,
        Model(num_prototypes=1, prototype_dim=1, distance="l2", prototype_activation="linear"),
    )
    model.add_on = nn.Identity()
    with torch.no_grad():
        model.features.weight.copy_(torch.randn(1, 3, side, side, generator=runtime.generator(seed, "weights")))
        model.prototypes.fill_(100.0)
    return model


# --------------------------------------------------------------------------------------------------------- curves


def seen_by(model, call):
    """What ``call`` returns, and the first image that the model is shown."""
    shown = []
    handle = model.features.register_forward_pre_hook(lambda module, args: shown.append(args[0][0].clone()))
    found = call()
    handle.remove()
    return found, shown[0]


@pytest.mark.parametrize("start", ["random", "zeros"])
@pytest.mark.parametrize("settings", [LINEAR, {"distance": "l2", **LINEAR}])
def test_exact_curves_are_the_loop_over_pixels(start, settings):
    model, (x, labels) = net(**settings), few(2)
    prototypes = own(model, labels)
    maps = noise_maps(prototypes)
    found, current = seen_by(model, lambda: curves(model, x, prototypes, maps, grid="exact", start=start, seed=3))
    assert found.counts.tolist() == list(range(N + 1)) and found.values.shape == (2, 2, N + 1)
    assert bool(current.any()) == (start == "random")
    for b, p in ((0, 0), (1, 1)):
        steps, heat = [current.clone()], maps[b, p].flatten().tolist()
        for pixel in sorted(range(N), key=lambda i: -heat[i]):
            steps.append(steps[-1].clone())
            y, x0 = divmod(pixel, SIDE)
            steps[-1][:, y, x0] = x[b, :, y, x0]
        expected = similarities(model, torch.stack(steps))[:, prototypes[b, p]]
        assert expected.std() > 1e-3
        assert torch.allclose(found.values[b, p], expected, rtol=0, atol=1e-5)


def test_logarithms_too():
    """Compared as distances, which they magnify."""
    model, (x, labels) = net(), few(2)
    prototypes = own(model, labels)
    maps = noise_maps(prototypes)
    log, line = (curves(m, x, prototypes, maps, grid=20).values for m in (model, net(**LINEAR)))
    assert torch.allclose(log.expm1().reciprocal(), 1 - line, rtol=0, atol=1e-5)


def test_the_start_is_one_image_of_normal_noise():
    model, (x, labels) = net(), few(1, side=32)
    prototypes = own(model, labels)
    maps = noise_maps(prototypes, 32)
    starts = [seen_by(model, lambda s=s: curves(model, x, prototypes, maps, grid=2, seed=s))[1] for s in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    for channel in starts[0]:
        assert abs(channel.mean()) < 0.12 and abs(channel.std() - 1) < 0.1
    assert len(starts[0].unique()) > 3000  # each channel is drawn by itself


def test_the_first_point_knows_neither_map_nor_image():
    model, (x, labels) = net(), few(6)
    prototypes = own(model, torch.zeros_like(labels))
    first = [curves(model, x, prototypes, noise_maps(prototypes, seed=s), grid=3).values[..., 0] for s in (0, 1)]
    assert torch.equal(*first)
    assert (first[0] == first[0][:1]).all() and len(first[0][0].unique()) == 2


@pytest.mark.parametrize("grid", ["exact", 20])
def test_the_last_point_is_the_original(grid):
    model, (x, labels) = net(**LINEAR), few(3)
    prototypes = own(model, labels)
    found = curves(model, x, prototypes, noise_maps(prototypes), grid=grid)
    expected = similarities(model, x).gather(1, prototypes)
    assert torch.allclose(found.values[..., -1], expected, rtol=0, atol=1e-6)
    assert torch.equal(found.final, found.values[..., -1])
    part = curves(model, x, prototypes, noise_maps(prototypes), grid=grid, proportion=0.5)
    assert torch.equal(part.final, found.final) and part.counts[-1] == N // 2
    assert (part.values[..., -1] != part.final).all()
    if grid == "exact":
        assert torch.allclose(part.values, found.values[..., : N // 2 + 1], rtol=0, atol=1e-5)


def test_the_true_order_is_above_all_others():
    """Of a linear network it is known what each pixel adds: in that order a curve is nowhere below another one."""
    model, x = linear(), torch.randn(2, 3, 8, 8, generator=runtime.generator(0, "images"))
    prototypes = torch.zeros(2, 1, dtype=torch.long)
    flat = torch.zeros(2, 1, 8, 8)
    _, start = seen_by(model, lambda: curves(model, x, prototypes, flat, grid=2))
    truth = ((x - start) * model.features.weight.detach()).sum(1, keepdim=True)

    def exact(maps):
        return curves(model, x, prototypes, maps, grid="exact").values.double()

    best, worst, t = exact(truth), exact(-truth), torch.linspace(0, 1, 65, dtype=torch.float64)
    rises = best[..., -1] - best[..., 0]
    for seed in range(5):
        chance = exact(noise_maps(prototypes, 8, seed))
        assert (best >= chance - 0.05).all() and (worst <= chance + 0.05).all()  # of thousands
        areas = [torch.trapezoid(c - c[..., :1], t) for c in (best, chance, worst)]
        assert (areas[0] > areas[1] + 10).all() and (areas[1] > areas[2] + 10).all()
    assert (rises.abs() > 1).all()
    found = best[..., 1:-1].amax(-1)
    assert (found > best[..., -1]).all()  # what speaks against the prototype is still missing


def test_a_complete_receptive_field_is_enough():
    """The greatest similarity of the original stands as soon as the pixels of its cell do."""
    model, (x, labels) = net(**LINEAR), few(6, side=32)
    field, prototypes = field_of(model), own(model, labels)
    s = similarity_maps(model, x, prototypes)
    maps = pixel_map(torch.where(s == s.amax((2, 3), keepdim=True), s, 0), field)
    inside = (maps > 0).flatten(2).sum(2)
    found = curves(model, x, prototypes, maps, grid=torch.arange(51))
    at = found.values.gather(2, inside[..., None])[..., 0]
    assert (inside <= 49).all() and (at >= found.final - 1e-5).all()
    assert (found.values[..., :20].amax(2) < found.final - 1e-3).any()


def test_batches_and_company_do_not_matter():
    model, (x, labels) = net(**LINEAR), few(5)
    prototypes = own(model, labels)
    maps = noise_maps(prototypes)
    whole = curves(model, x, prototypes, maps, grid=30)
    for batch, chunk in ((1, 1), (7, 2), (1000, 5)):
        found = curves(model, x, prototypes, maps, grid=30, batch=batch, chunk=chunk)
        assert torch.allclose(found.values, whole.values, rtol=0, atol=1e-5)
    alone = curves(model, x[3:4], prototypes[3:4, 1:], maps[3:4, 1:], grid=30)
    assert torch.allclose(alone.values[0, 0], whole.values[3, 1], rtol=0, atol=1e-5)


def test_only_the_prototypes_that_are_asked_for_are_computed(monkeypatch):
    model, (x, labels) = net(n_classes=3, each=50), few(3)
    asked, computed = own(model, labels), []
    distances = ordering.distances

    def noted(z, prototypes, kind):
        computed.append(len(prototypes))
        return distances(z, prototypes, kind)

    monkeypatch.setattr(ordering, "distances", noted)
    curves(model, x, asked, noise_maps(asked), grid=20, batch=8)
    assert max(computed) <= 6


def test_the_model_is_left_as_it_was():
    model, (x, labels) = net().train(), few(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prototypes = own(model, labels)
    found = curves(model, x, prototypes, noise_maps(prototypes), grid=9)
    assert model.training and not found.values.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ----------------------------------------------------------------------------------------------------------- grids


@pytest.mark.parametrize("n, points", [(256, 20), (1024, 257), (50176, 257), (50176, 2), (100, 100)])
def test_a_grid_has_as_many_points_as_asked_for(n, points):
    counts = pixel_counts(n, points)
    assert len(counts) == points and counts[0] == 0 and counts[-1] == n and (counts.diff() > 0).all()


def test_grids_that_are_fine_enough_are_exact():
    assert torch.equal(pixel_counts(100, "exact"), torch.arange(101))
    assert torch.equal(pixel_counts(100, 101), torch.arange(101))
    assert torch.equal(pixel_counts(100, 5000), torch.arange(101))
    assert torch.equal(pixel_counts(1000, "exact", 0.1), torch.arange(101))
    assert pixel_counts(1000, 20, 0.1)[[0, -1]].tolist() == [0, 100]
    assert pixel_counts(100, torch.tensor([0, 3, 50], dtype=torch.int32)).tolist() == [0, 3, 50]


def test_the_default_saves_nearly_all_passes():
    """Spec section 13: about 195 times fewer at 224 pixels."""
    assert (224 * 224 + 1) / len(pixel_counts(224 * 224)) > 195


def test_a_grid_is_the_exact_curve_at_its_points():
    model, (x, labels) = net(**LINEAR), few(4)
    prototypes = own(model, labels)
    maps = noise_maps(prototypes)
    exact = curves(model, x, prototypes, maps, grid="exact")
    some = curves(model, x, prototypes, maps, grid=17)
    assert torch.allclose(some.values, exact.values[..., some.counts], rtol=0, atol=1e-5)


def test_a_grid_is_near_to_the_exact_curve():
    """Property 21: a quarter and a sixteenth of the points, and the mean height is off by a half and two per cent of
    what the curve spans."""
    model, part = net(**LINEAR), Images(6, 32)
    settings = {"n_images": 3, "prototypes": own_prototypes(model)[:, :1]}
    exact = compare(model, part, field_of(model), grid="exact", **settings)
    for points, bound in ((257, 0.005), (65, 0.02)):
        at = pixel_counts(1024, points)
        for values in exact.values.values():
            span = values.amax(2) - values.amin(2)
            heights = [torch.trapezoid(values[..., k], k / 1024) for k in (exact.counts, at)]
            errors = (heights[1] - heights[0]) / span
            assert errors.square().mean().sqrt() < bound and span.min() > 1e-3


# ------------------------------------------------------------------------------------------------------------ order


def test_ranks_follow_the_map():
    maps = torch.randn(2, 3, 5, 7, generator=runtime.generator(0, "maps")).round(decimals=1)
    found = ranks(maps, 0)
    assert torch.equal(found.sort(-1).values, torch.arange(35, dtype=torch.int32).expand(2, 3, 35))
    sorted_by_rank = maps.flatten(2).gather(2, found.argsort(-1))
    assert (sorted_by_rank.diff(dim=-1) <= 0).all()


def test_equal_pixels_come_in_random_order():
    """And not by rows; in the same order whatever the map is elsewhere, another one for another seed."""
    flat = ranks(torch.zeros(1, 32, 32), 0)[0].double()
    rows, columns = (torch.arange(1024) // 32).double(), (torch.arange(1024) % 32).double()
    for place in (rows, columns):
        assert abs(torch.corrcoef(torch.stack([flat, place]))[0, 1]) < 0.15
    high = torch.zeros(1, 32, 32)
    high[0, 4:9, 20:30] = torch.rand(5, 10, generator=runtime.generator(0, "box")) + 0.1
    found, low = ranks(high, 0)[0], (high == 0).flatten()
    assert (found[~low] < 50).all()
    assert torch.equal(found[low].argsort(), flat[low].argsort())
    assert torch.equal(ranks(torch.full((1, 32, 32), -3.0), 0)[0].double(), flat)
    assert not torch.equal(ranks(torch.zeros(1, 32, 32), 1)[0].double(), flat)


# --------------------------------------------------------------------------------------------------------- measures


def test_areas_of_curves_that_are_known():
    t = torch.tensor([0, 0.01, 0.05, 0.2, 0.6, 1], dtype=torch.float64)
    line, step = 3 + 2 * t, torch.tensor([3, 5, 5, 5, 5, 5], dtype=torch.float64)
    values, final = torch.stack([line, step]), torch.tensor([5.0, 5.0], dtype=torch.float64)
    assert normalised_area(values, t, final).tolist() == pytest.approx([0.5, 1 - 0.005])
    assert normalised_area(10 * values + 1, t, 10 * final + 1).tolist() == pytest.approx([0.5, 0.995])
    half = normalised_area(line[:4], t[:4], final[0])
    assert float(half) == pytest.approx(0.1)  # the mean height of what there is, in units of the whole rise
    assert percent_to_final(values, t, final).tolist() == pytest.approx([100, 1])
    assert float(percent_to_final(line[:4], t[:4], final[0])) == 100
    beyond = torch.tensor([3, 4, 6, 4.9, 5, 5], dtype=torch.float64)
    assert float(percent_to_final(beyond, t, final[0])) == pytest.approx(5)
    rounded = torch.tensor([3, 4, 5 - 1e-6, 4.9, 5 + 1e-6, 5], dtype=torch.float64)
    assert float(percent_to_final(rounded, t, final[0])) == pytest.approx(5)


@pytest.mark.parametrize("final", [3.0, 3.0 + 1e-7, 2.0])
def test_without_a_rise_there_is_no_area(final):
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    values = torch.tensor([3, 3.5, 2, 3, final], dtype=torch.float64)
    end = torch.tensor(final, dtype=torch.float64)
    assert float(normalised_area(values, t, end)) == 0 and float(percent_to_final(values, t, end)) == 0


def made(values, prototypes, final=None, counts=None, **settings):
    """An `Ordering` of given curves, by method, of 100 pixels."""
    values = {name: torch.as_tensor(v, dtype=torch.float32) for name, v in values.items()}
    one = next(iter(values.values()))
    counts = torch.linspace(0, 100, one.shape[2]).round().long() if counts is None else counts
    final = one[..., -1] if final is None else final
    return Ordering(torch.arange(len(one)), torch.as_tensor(prototypes), counts, 100, values, final, **settings)


def test_a_curve_is_a_mean_of_prototypes():
    """Each of the mean of its images, however many (spec section 8.5, W7)."""
    values = torch.rand(4, 2, 6, generator=runtime.generator(0, "values"))
    found = made({"a": values}, [[0, 1], [0, 1], [0, 1], [2, 3]])
    expected = torch.stack([values[:3, 0].mean(0), values[:3, 1].mean(0), values[3, 0], values[3, 1]]).mean(0)
    assert torch.allclose(found.curve("a"), expected.double(), rtol=0, atol=1e-6)
    assert not torch.allclose(found.curve("a"), values.mean((0, 1)).double(), rtol=0, atol=1e-3)
    area = normalised_area(expected.double(), found.fraction, expected[-1].double())
    assert found.estimate("area", "a").value == pytest.approx(float(area), abs=1e-5)


def test_drawn_samples_are_of_images():
    """Curves of samples from the weights are those of a loop over the images that are drawn."""
    values = torch.rand(5, 2, 4, generator=runtime.generator(1, "values"))
    prototypes = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3], [2, 3]])
    found = made({"a": values}, prototypes, resamples=20, seed=7)
    draws = torch.randint(5, (20, 5), generator=runtime.generator(7, "ordering", "bootstrap"))
    for drawn, curve in zip(draws, found._curves("a")[1:], strict=True):
        of: dict[int, list] = {}
        for image in drawn.tolist():
            for p in range(2):
                of.setdefault(int(prototypes[image, p]), []).append(values[image, p])
        expected = torch.stack([torch.stack(some).mean(0) for some in of.values()]).mean(0)
        assert torch.allclose(curve.float(), expected, rtol=0, atol=1e-6)


def test_an_interval_is_as_wide_as_theory_says():
    generator = runtime.generator(0, "values")
    heights = 0.3 + 0.1 * torch.randn(400, 1, generator=generator)
    values = torch.stack([torch.zeros(400, 1), heights, torch.ones(400, 1)], 2)  # of area (height + 1/2) / 2
    found = made({"a": values}, torch.zeros(400, 1, dtype=torch.long), resamples=2000)
    one = found.estimate("area", "a")
    half = 1.96 * 0.5 * float(heights.std()) / 20
    assert one.value == pytest.approx(0.5 * float(heights.mean()) + 0.25, abs=1e-6)
    assert one.high - one.value == pytest.approx(half, rel=0.15)
    assert one.value - one.low == pytest.approx(half, rel=0.15)
    low, high = found.band("a")[:, 1].tolist()
    assert (low, high) == pytest.approx((2 * one.low - 0.5, 2 * one.high - 0.5), abs=1e-5)
    wider = made({"a": values}, torch.zeros(400, 1, dtype=torch.long), resamples=2000, level=0.99).estimate("area", "a")
    assert wider.low < one.low and wider.high > one.high


def test_differences_are_of_pairs():
    """What two methods have in common does not widen the interval of their difference."""
    heights = torch.rand(30, 1, generator=runtime.generator(0, "values"))
    zeros, ones = torch.zeros(30, 1), torch.ones(30, 1)
    values = {name: torch.stack([zeros, heights + up, ones], 2) for name, up in {"a": 0.2, "b": 0.0}.items()}
    found = made(values, torch.zeros(30, 1, dtype=torch.long))
    both = found.difference("area", "a", "b")
    assert (both.low, both.value, both.high) == pytest.approx((0.1, 0.1, 0.1), abs=1e-6)
    assert found.estimate("area", "a").high - found.estimate("area", "a").low > 0.05
    assert found.difference("area", "b", "a").value == pytest.approx(-0.1)
    assert found.difference("area", "a", "a") == Estimate(0, 0, 0)


def test_one_image_says_nothing_about_others():
    found = made({"a": [[[0, 0.5, 1]]], "b": [[[0, 0.2, 1]]]}, [[0]])
    for one in (found.estimate("area", "a"), found.difference("percent", "a", "b")):
        assert one.value == one.value and one.low != one.low and one.high != one.high
    assert found.band("a").isnan().all()


def test_frames():
    values = torch.rand(6, 2, 5, generator=runtime.generator(0, "values")).cumsum(2)
    found = made({"a": values, "b": values.sqrt(), "c": values**2}, torch.arange(2).expand(6, 2), values[..., -1])
    table = found.as_frame()
    assert list(table) == ["measure", "method", "minus", "value", "low", "high"] and len(table) == 2 * (3 + 3)
    row = table[(table.measure == "percent") & (table.method == "a") & (table.minus == "c")].iloc[0]
    assert row.value == found.difference("percent", "a", "c").value
    assert ((table.low <= table.high) & table.notna().all(axis=1)).all()
    points = found.curves_frame()
    assert list(points) == ["method", "percent", "similarity", "low", "high"] and len(points) == 15
    own = points[points.method == "b"]
    assert own.similarity.to_list() == pytest.approx(found.curve("b").tolist())
    assert own.percent.to_list() == pytest.approx([0, 25, 50, 75, 100]) and (own.low <= own.high).all()


def test_pairs_have_measures_of_their_own():
    values = torch.rand(3, 2, 5, generator=runtime.generator(0, "values")).cumsum(2)
    found = made({"a": values}, torch.arange(2).expand(3, 2))
    areas = found.pairs("area", "a")
    one = values[2, 1].double()
    assert areas.shape == (3, 2) and areas[2, 1] == pytest.approx(
        float(torch.trapezoid((one - one[0]) / (one[-1] - one[0]), found.fraction))
    )
    assert (found.pairs("percent", "a") == 100).all()


# --------------------------------------------------------------------------------------------------------- samples


def test_samples_are_of_all_classes():
    labels = torch.tensor([7] * 50 + [3] * 5 + [0] * 2 + [9] * 20)
    rows = sample(labels, 10, 0)
    assert len(rows.unique()) == 10
    for first in range(0, 8, 4):  # two turns
        assert sorted(labels[rows[first : first + 4]].tolist()) == [0, 3, 7, 9]
    assert 0 not in labels[rows[8:]]  # it has no third image
    assert torch.equal(sample(labels, 4, 0), rows[:4]) and torch.equal(sample(labels, 10, 0), rows)
    assert torch.equal(sample(labels, 77, 0).sort().values, torch.arange(77))


def test_samples_are_drawn():
    labels = torch.arange(200) % 20
    drawn = [sample(labels, 5, seed) for seed in range(40)]
    assert len(torch.cat(drawn).unique()) > 100
    counts = torch.bincount(labels[torch.cat(drawn)], minlength=20)
    assert (counts > 0).all() and counts.max() <= 25  # no class is favoured


@pytest.mark.parametrize("n", [0, 201])
def test_samples_that_cannot_be(n):
    with pytest.raises(ConfigError, match="between 1 and 200"):
        sample(torch.arange(200), n, 0)


def test_classes_own_prototypes():
    model = net()
    assert own_prototypes(model).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    prune(model, [5])
    with pytest.raises(ConfigError, match="3 to 4"):
        own_prototypes(model)
    with pytest.raises(ConfigError, match="0 to 0"):
        own_prototypes(net(class_specific=False, readout_type="linear"))


# ---------------------------------------------------------------------------------------------------------- compare


def field16(model):
    return field_of(model, SIDE)


def test_methods_are_compared_on_the_same():
    """Property 21, mixed classes: all that a method is given, and what comes of it."""
    model, part, asked = net(**LINEAR), Images(), []
    field = field16(model)

    def center(x, similarity, prototypes):
        asked.append((x, similarity, prototypes))
        return torch.ones(*prototypes.shape, SIDE, SIDE).cumsum(2)

    methods = pixel_maps(field) | {"center": center}
    found = compare(model, part, field, methods, n_images=7, grid=20, chunk=3)
    assert list(found.values) == ["rf", "upsample", "random", "center"]
    assert [len(x) for x, *_ in asked] == [3, 3, 1]
    labels = part.labels[found.rows]
    assert len(labels[:3].unique()) == 3  # a batch of several classes
    assert torch.equal(found.prototypes, own_prototypes(model)[labels])
    x, s, prototypes = (torch.cat(parts) for parts in zip(*asked, strict=True))
    assert torch.equal(x, part.x[found.rows]) and torch.equal(prototypes, found.prototypes)
    with torch.no_grad(), evaluating(model):
        output = model(x)
    expected = output.similarity_map[torch.arange(7)[:, None], prototypes]
    assert torch.allclose(s, expected, rtol=0, atol=1e-5)
    assert torch.allclose(found.final, output.similarities.gather(1, prototypes), rtol=0, atol=1e-5)
    direct = curves(model, x, prototypes, pixel_map(s, field), grid=20)
    assert torch.allclose(found.values["rf"], direct.values, rtol=0, atol=1e-5)
    first = [values[..., 0] for values in found.values.values()]
    assert all(torch.equal(one, first[0]) for one in first)
    assert len({found.estimate("area", name).value for name in found.values}) == 4
    table = found.as_frame()
    assert isinstance(table, pd.DataFrame) and torch.tensor(table[["value", "low", "high"]].to_numpy()).isfinite().all()


def test_nothing_depends_on_chunks_or_runs():
    model, part = net(**LINEAR), Images()
    field = field16(model)
    found = [
        compare(model, part, field, n_images=6, grid=10, seed=4, batch=batch, chunk=chunk)
        for batch, chunk in ((16, 4), (16, 4), (5, 1))
    ]
    assert list(found[0].values) == ["rf", "upsample", "random"]
    for name in found[0].values:
        assert torch.equal(found[0].values[name], found[1].values[name])
        assert torch.allclose(found[0].values[name], found[2].values[name], rtol=0, atol=1e-5)
    assert found[0].as_frame().equals(found[1].as_frame())
    other = compare(model, part, field, n_images=6, grid=10, seed=5)
    assert not torch.equal(other.values["rf"][..., 0], found[0].values["rf"][..., 0])


def test_random_maps_belong_to_their_images():
    model, (x, labels) = net(), few(3)
    field, prototypes = field16(model), own(net(), labels)
    s = similarity_maps(model, x, prototypes)
    maps = pixel_maps(field, ["random"], seed=1)["random"]
    whole = maps(x, s, prototypes)
    assert whole.shape == (3, 2, SIDE, SIDE) and len(whole.unique()) > 0.99 * whole.numel()
    assert torch.equal(maps(x[1:2], s[1:2], prototypes[1:2]), whole[1:2])
    assert not torch.equal(pixel_maps(field, ["random"], seed=2)["random"](x, s, prototypes), whole)


def test_prototypes_may_be_given():
    model, part = net(), Images()
    table = torch.tensor([[1], [5], [0]])
    found = compare(model, part, field16(model), n_images=5, prototypes=table, grid=5)
    assert torch.equal(found.prototypes, table[part.labels[found.rows]]) and found.final.shape == (5, 1)


def test_labelled_images_of_any_source_will_do():
    model, part = net(), Images()
    given = labelled.Images(part.x, part.labels, ("a", "b", "c"), labelled.Preprocess(size=SIDE))
    one, other = (compare(model, some, field16(model), n_images=5, grid=5) for some in (part, given))
    assert one.as_frame().equals(other.as_frame())


def test_similarities_that_never_change():
    """Property 21: no inf, no NaN. The pairs are counted."""
    model, part = net(), Images()
    with torch.no_grad():
        model.add_on[2].weight.zero_()
    field = field16(model)
    methods = {"flat": lambda x, s, p: torch.zeros(*p.shape, SIDE, SIDE)} | pixel_maps(field)
    found = compare(model, part, field, methods, n_images=6, grid=10)
    assert found.without_rise == 24
    assert (found.as_frame()[["value", "low", "high"]] == 0).all(axis=None)
    assert all(not found.pairs("area", name).any() for name in methods)


def test_falling_pairs_are_counted():
    up, down = [0, 0.5, 1.0], [1.0, 0.5, 0]
    found = made({"a": [[up], [down], [up], [up]]}, [[0], [0], [1], [2]])
    assert found.without_rise == 1
    assert found.curve("a").tolist() == pytest.approx([1 / 6, 0.5, 5 / 6])
    assert found.pairs("area", "a").flatten().tolist() == pytest.approx([0.5, 0, 0.5, 0.5])
    table = found.as_frame()[["value", "low", "high"]]
    assert torch.tensor(table.to_numpy()).isfinite().all()


def test_progress_is_shown_if_asked_for(capsys):
    model, part = net(), Images()
    for progress, shown in ((None, False), ("ordering", True)):
        compare(model, part, field16(model), n_images=2, grid=3, progress=progress)
        assert ("ordering" in capsys.readouterr().err) == shown


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"grid": "exakt"}, "at least 2 points"),
        ({"grid": 1}, "at least 2"),
        ({"proportion": 0.0}, "proportion"),
        ({"proportion": 1.5}, "proportion"),
        ({"proportion": 1e-6}, "proportion"),
        ({"start": "zero"}, "did you mean zeros"),
        ({"batch": 0}, "batch"),
        ({"chunk": 0}, "chunk"),
        ({"methods": {}}, "no method"),
        ({"prototypes": torch.tensor([[0], [12], [1]])}, "0 to 11"),
        ({"prototypes": torch.tensor([[0], [1]])}, "3 classes"),
        ({"prototypes": torch.tensor([0, 1, 2])}, "3 classes"),
        ({"n_images": 13}, "between 1 and 12"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    model, part = net(), Images()
    with pytest.raises(ConfigError, match=words):
        compare(model, part, field16(model), **{"n_images": 3, "grid": 4} | settings)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_of_no_class(label):
    model, part = net(), Images()
    part.labels = torch.cat([part.labels[1:], torch.tensor([label])])
    with pytest.raises(ConfigError, match="labels must be of the network's classes, 0 to 2"):
        compare(model, part, field16(model), n_images=3, grid=4)


@pytest.mark.parametrize("grid", [[0], [1, 2], [0, 2, 2], [0, 300], [0.0, 1.0], [[0, 1]], [False, True]])
def test_grids_that_cannot_be(grid):
    with pytest.raises(ValueError, match="ascending integers"):
        pixel_counts(N, torch.tensor(grid))


def test_tensors_that_cannot_be():
    model, (x, labels) = net(), few(2)
    prototypes = own(model, labels)
    maps = noise_maps(prototypes)
    wrong = [(x[0], prototypes, maps), (x, prototypes[0], maps), (x, prototypes, maps[:, :1])]
    wrong += [(x, prototypes[:1], maps), (x.long(), prototypes, maps), (x[:0], prototypes[:0], maps[:0])]
    for given in wrong:
        with pytest.raises(ValueError, match="expected"):
            curves(model, *given)
    for bad in (torch.nan, torch.inf):
        broken = maps.clone()
        broken[0, 0, 0, 0] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            curves(model, x, prototypes, broken)
    for bad in (prototypes - 12, prototypes + 12):
        with pytest.raises(ConfigError, match=rf"no prototype {int(bad[0, 0])}: there are 0 to 11"):
            curves(model, x, bad, maps)
    with pytest.raises(ValueError, match="int64"):
        curves(model, x, prototypes.float(), maps)


@pytest.mark.parametrize("settings", [{"resamples": 0}, {"level": 1.0}, {"level": 0.0}])
def test_intervals_that_cannot_be(settings):
    with pytest.raises(ConfigError, match="resamples must be at least 1"):
        made({"rf": [[[0, 0.5, 1.0]]]}, [[0]], **settings)


def test_names_that_there_are_not():
    found = made({"rf": [[[0, 0.5, 1.0]]]}, [[0]])
    for call in (lambda: found.curve("rv"), lambda: found.estimate("area", "rv"), lambda: found.pairs("area", "rv")):
        with pytest.raises(ConfigError, match="did you mean rf|there are: rf"):
            call()
    with pytest.raises(ConfigError, match="did you mean area"):
        found.estimate("areas", "rf")
    with pytest.raises(ConfigError, match="did you mean upsample"):
        pixel_maps(field16(net()), ["upsampled"])
