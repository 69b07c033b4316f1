"""Stability metrics: what is known of them for maps that are known, and Quantus on the same draws."""

import numpy as np
import pytest
import torch
from metric_nets import ask_quantus, identity, images, net, ones

from helpers.attribution import gradient, random_map
from helpers.config import ConfigError
from helpers.metrics import lipschitz, local_lipschitz, relative_stability, sensitivity
from helpers.metrics.base import streams
from helpers.metrics.stability import Lipschitz, scaled

SCALES = Lipschitz._fields
METRICS = [lipschitz, sensitivity, relative_stability]
every_metric = pytest.mark.parametrize("metric", METRICS)
every_scale = pytest.mark.parametrize("scale", SCALES)


@pytest.fixture
def model():
    return net()


@pytest.fixture
def x():
    return images(3)


@pytest.fixture
def target():
    return torch.tensor([2, 0, 1])


def times(factor):
    return lambda model, x, target: factor * gradient(model, x, target)


# ------------------------------------------------------------------------------------------ local Lipschitz


@every_scale
def test_a_constant_map_is_perfectly_stable(scale, model, x, target):
    """Property 14."""
    assert local_lipschitz(ones, model, x, target, scale=scale).tolist() == [0, 0, 0]


def test_the_identity_map_has_the_constant_1(model, x, target):
    """Property 14."""
    assert local_lipschitz(identity, model, x, target).tolist() == pytest.approx([1, 1, 1], rel=1e-6)


@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_a_factor_multiplies_the_unscaled_score_and_leaves_the_scaled_ones(factor, model, x, target):
    """Property 14."""
    one, other = (lipschitz(explain, model, x, target) for explain in (gradient, times(factor)))
    torch.testing.assert_close(other.none, factor * one.none, rtol=1e-5, atol=0)
    for scale in ("max", "minmax", "zscore"):
        torch.testing.assert_close(getattr(other, scale), getattr(one, scale), rtol=1e-5, atol=0)


@pytest.mark.parametrize("side", [16, 5])
def test_more_draws_hold_those_of_fewer(side, model, target):
    few, some, many = (
        local_lipschitz(gradient, model, images(3)[..., :side, :side], target, draws=n) for n in (1, 5, 40)
    )
    assert (few <= some * (1 + 1e-5)).all() and (some <= many * (1 + 1e-5)).all() and (few < many).any()


@every_scale
def test_the_score_of_a_scale_is_that_of_all_scales_at_once(scale, model, x, target):
    together = getattr(lipschitz(gradient, model, x, target), scale)
    assert torch.equal(local_lipschitz(gradient, model, x, target, scale=scale), together)


@pytest.mark.parametrize("mean", [0.0, 0.1])
def test_quantus_says_the_same_of_the_same_draws(mean, model, x, target):
    """One image at a time: its scaling is by the maximum of the batch."""
    import quantus

    ours = lipschitz(gradient, model, x, target, mean=mean, draws=6)
    for normalise, expected in ((False, ours.none), (True, ours.max)):
        for i in range(len(x)):
            one = x[i : i + 1]
            (stream,) = streams(one, 0, "lipschitz")
            draws = (one + mean + 0.1 * torch.randn(one.shape[1:], generator=stream) for _ in range(6))
            metric = quantus.LocalLipschitzEstimate(
                nr_samples=6,
                normalise=normalise,
                perturb_func=lambda arr, draws=draws, **_: next(draws).numpy().reshape(arr.shape),
                disable_warnings=True,
            )
            score = ask_quantus(metric, model, one, target[i : i + 1], explain=gradient)
            assert score == pytest.approx(expected[i].item(), rel=1e-4)


def test_quantus_scales_by_the_batch_and_we_by_the_image():
    """An image's scaled map does not know how bright the others' are."""
    from quantus.functions.normalise_func import normalise_by_max

    heat = torch.stack([torch.eye(4), 9 * torch.eye(4)])
    assert normalise_by_max(heat.numpy()).max((1, 2)).tolist() == pytest.approx([1 / 9, 1])
    assert scaled(heat, "max").amax((1, 2)).tolist() == [1, 1]


def test_scaled_maps_are_what_their_names_say():
    heat = torch.randn(2, 3, 5, 5).double()
    assert torch.equal(scaled(heat, "none"), heat)
    torch.testing.assert_close(scaled(heat, "max").abs().amax((2, 3)), torch.ones(2, 3).double())
    zero_to_one = scaled(heat, "minmax")
    assert zero_to_one.amin() == 0 and zero_to_one.amax() == 1
    standard = scaled(heat, "zscore")
    torch.testing.assert_close(standard.mean((2, 3)), torch.zeros(2, 3).double())
    torch.testing.assert_close(standard.std((2, 3), correction=0), torch.ones(2, 3).double())


@every_scale
def test_flat_maps_can_be_scaled(scale):
    for value in (0.0, 0.1, -3.0):
        heat = scaled(torch.full((1, 2, 7, 7), value).double(), scale)
        assert heat.isfinite().all() and heat.amin() == heat.amax()


# ------------------------------------------------------------------------------------------- what all share


@every_metric
def test_the_score_of_an_image_does_not_depend_on_its_batch_mates(metric, model, x, target):
    """Property 14, for all of them."""
    together = metric(gradient, model, x, target)
    for i in (2, 0, 1):
        alone = metric(gradient, model, x[i : i + 1], target[i : i + 1])
        for one, all_of_them in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], all_of_them[i], rtol=1e-4, atol=1e-9)


@every_metric
def test_the_rows_that_go_through_the_model_at_a_time_do_not_show(metric, model, x, target):
    few, many = (metric(gradient, model, x, target, batch=batch) for batch in (4, 1000))
    for one, other in zip(few, many, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-9)


@every_metric
def test_scores_repeat_with_the_seed_and_the_global_generators_stand_still(metric, model, x, target):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = metric(gradient, model, x, target)
    torch.manual_seed(1)
    again, other = (metric(gradient, model, x, target, seed=seed) for seed in (0, 1))
    torch.set_rng_state(before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert np.array_equal(np.random.get_state()[1], numpy_before)


@every_metric
def test_equal_images_have_equal_scores_and_values_are_float64(metric, model, x, target):
    for values in metric(gradient, model, x[[0, 1, 0]], target[[0, 1, 0]]):
        assert values.shape == (3,) and values.dtype == torch.float64
        assert values[0] == pytest.approx(values[2].item(), rel=1e-5) and values[0] != values[1]


@every_metric
def test_the_model_is_left_in_its_mode_and_evaluated_in_eval_mode(metric, model, x, target):
    expected = metric(gradient, model, x, target)
    model.train()
    found = metric(gradient, model, x, target)
    assert model.training and model.norm.training
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@every_metric
def test_colour_images_will_do_and_a_random_map_is_the_least_stable(metric, target):
    model, x = net(channels=3), images(3, channels=3)
    smooth = metric(lambda model, x, target: x.mean(1), model, x, target)
    noisy = metric(random_map, model, x, target)
    assert all((a < b).all() for a, b in zip(smooth, noisy, strict=True))


def test_what_is_no_heat_map_is_refused(model, x, target):
    with pytest.raises(ValueError, match=r"heat \[N, H, W\]"):
        local_lipschitz(lambda model, x, target: x, model, x, target)
    with pytest.raises(ValueError, match="NaN"):
        local_lipschitz(lambda model, x, target: x[:, 0] / 0, model, x, target)
    with pytest.raises(ValueError, match="move the image"):
        local_lipschitz(gradient, model, x, target, mean=0.0, std=0.0)
    with pytest.raises(ConfigError, match="did you mean minmax"):
        local_lipschitz(gradient, model, x, target, scale="min_max")


# ------------------------------------------------------------------------ sensitivity and relative stability


def neighbours(name, x, seed=0, draws=5, radius=0.2):
    """Our draws around the images x: [draws, B, C, H, W]."""
    shape = x.shape[1:]
    near = [
        torch.stack([x[i] + radius * (2 * torch.rand(shape, generator=stream) - 1) for _ in range(draws)])
        for i, stream in enumerate(streams(x, seed, name))
    ]
    return torch.stack(near, 1)


def replaying(name, x, **settings):
    """A perturbation for Quantus that hands out our draws, one of each image at a time."""
    steps = iter(neighbours(name, x, **settings))
    return lambda arr, **_: next(steps).numpy().reshape(arr.shape)


def test_quantus_measures_the_same_sensitivity(model, x, target):
    import quantus

    ours = sensitivity(gradient, model, x, target, draws=5)
    for kind, expected in ((quantus.MaxSensitivity, ours.maximum), (quantus.AvgSensitivity, ours.average)):
        metric = kind(nr_samples=5, perturb_func=replaying("sensitivity", x), disable_warnings=True)
        assert ask_quantus(metric, model, x, target, explain=gradient) == pytest.approx(expected.numpy(), rel=1e-4)
    assert (ours.average < ours.maximum).all()


def test_a_map_of_zeros_has_no_sensitivity(model, x, target):
    assert sensitivity(lambda model, x, target: 0 * x[:, 0], model, x, target).maximum.isnan().all()


def test_nor_has_one_of_zeros_whose_neighbours_are_not(model, x, target):
    bright = torch.full_like(x, 0.45)
    values = sensitivity(lambda model, x, target: (x[:, 0] - 0.5).clamp(min=0), model, bright, target)
    assert values.maximum.isnan().all() and values.average.isnan().all()


def test_quantus_measures_the_same_relative_stability(model, x, target):
    """With every neighbour in the class of its image, which a small radius makes sure of."""
    import quantus

    small = {"draws": 5, "radius": 0.01}
    ours = relative_stability(gradient, model, x, target, **small, layer="head")
    for kind, expected, options in (
        (quantus.RelativeInputStability, ours.input, {}),
        (quantus.RelativeOutputStability, ours.output, {}),
        (quantus.RelativeRepresentationStability, ours.representation, {"layer_names": ["head"]}),
    ):
        metric = kind(
            nr_samples=5,
            perturb_func=replaying("relative_stability", x, **small),
            normalise=False,
            disable_warnings=True,
            **options,
        )
        scores = ask_quantus(metric, model, x, target, explain=gradient, softmax=False)
        assert scores == pytest.approx(expected.numpy(), rel=1e-3)


def test_neighbours_of_another_class_do_not_count(model, x, target):
    """The formula the slow way. Quantus gives NaN to an image that has a single one of them."""
    import quantus

    wide = {"draws": 6, "radius": 1.5}
    near, classes = neighbours("relative_stability", x, **wide), model(x).argmax(1)
    heat, slow = gradient(model, x, target), [[], [], []]
    for step in near:
        same, change = model(step).argmax(1) == classes, (heat - gradient(model, step, target)) / heat
        for i in range(3):
            by = ((x[i] - step[i]) / x[i]).norm()
            slow[i] += [(change[i].norm() / by).item()] if same[i] else []
    assert 0 < sum(map(len, slow)) < 18 and all(slow), "some of the neighbours are of another class"
    expected = [max(values) for values in slow]
    assert relative_stability(gradient, model, x, target, **wide).input.tolist() == pytest.approx(expected, rel=1e-3)

    metric = quantus.RelativeInputStability(
        nr_samples=6, perturb_func=replaying("relative_stability", x, **wide), normalise=False, disable_warnings=True
    )
    scores = ask_quantus(metric, model, x, target, explain=gradient)
    assert np.isnan(scores).tolist() == [len(values) < 6 for values in slow]


def test_no_divisor_is_below_the_smallest(model, x, target):
    """Half of each image is black, and the logits are the same for all images: every value is finite all the same."""
    torch.nn.init.zeros_(model.head.weight)
    x = x * (torch.arange(16) < 8)
    settings = {"draws": 4, "radius": 0.2}
    change = (neighbours("relative_stability", x, **settings) - x) / x.abs().clamp(min=1e-3)
    values = relative_stability(identity, model, x, target, smallest=1e-3, **settings)
    assert values.input.tolist() == pytest.approx([1, 1, 1]), "the map is the image"
    assert values.output.tolist() == pytest.approx((change.flatten(2).norm(dim=2).amax(0) / 1e-3).tolist(), rel=1e-4)


def test_an_image_without_neighbours_in_its_class_has_no_relative_stability(target):
    class Spike(torch.nn.Module):
        """Class 1 for images of ones only."""

        def forward(self, x):
            away = (x - 1).abs().flatten(1).sum(1)
            return torch.stack([away, torch.full_like(away, 1e-6), 0 * away], 1)

    x = torch.ones(3, 1, 4, 4)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1, bias=False), Spike())
    model[0].weight.data.fill_(1)
    assert all(values.isnan().all() for values in relative_stability(identity, model, x, target))


def test_the_last_layer_is_the_one_that_runs_last_not_the_one_registered_last(model, x, target):
    class HeadFirst(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.head, self.rest = inner.head, torch.nn.Sequential(inner.conv, inner.norm, torch.nn.ReLU(), inner.pool)

        def forward(self, x):
            return self.head(self.rest(x).flatten(1))

    values = relative_stability(gradient, HeadFirst(model).eval(), x, target)
    by_name = relative_stability(gradient, model, x, target, layer="pool")
    assert torch.equal(values.representation, by_name.representation)


def test_the_representation_is_what_the_last_weighted_layer_reads(model, x, target):
    flat = torch.nn.Sequential(net().conv, net().norm, torch.nn.ReLU(), net().pool, torch.nn.Flatten(), net().head)
    by_name = relative_stability(gradient, flat.eval(), x, target, layer="4")
    by_default = relative_stability(gradient, flat, x, target)
    assert torch.equal(by_name.representation, by_default.representation)
    with pytest.raises(ConfigError, match="did you mean pool"):
        relative_stability(gradient, model, x, target, layer="poool")
    with pytest.raises(ConfigError, match="no linear one"):
        relative_stability(identity, torch.nn.Flatten(), x, target)


@pytest.mark.parametrize("metric", [sensitivity, relative_stability])
def test_neighbours_have_to_be_elsewhere(metric, model, x, target):
    with pytest.raises(ValueError, match="a radius above 0, not 0"):
        metric(gradient, model, x, target, radius=0)


@pytest.mark.parametrize("metric", [sensitivity, relative_stability, local_lipschitz])
def test_targets_are_one_an_image(metric, model, x, target):
    with pytest.raises(ValueError, match="one target per image"):
        metric(gradient, model, x, torch.cat([target, target]))
