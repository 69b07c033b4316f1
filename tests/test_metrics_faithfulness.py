"""Faithfulness metrics: what has to hold of any map, what is known of additive models, and Quantus and Captum."""

import math

import numpy as np
import pytest
import torch
from metric_nets import Additive, Net, ask_quantus, images, net, noise_maps

from helpers.metrics import faithfulness_correlation, infidelity, irof, pixel_flipping, road, selectivity, superpixels
from helpers.metrics.base import streams
from helpers.metrics.faithfulness import _squares
from helpers.metrics.imputation import imputed

METRICS = [irof, pixel_flipping, selectivity, faithfulness_correlation, infidelity, road]
every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)
every_curve = pytest.mark.parametrize("metric", [irof, pixel_flipping, selectivity], ids=lambda metric: metric.__name__)


@pytest.fixture
def model():
    return net()


@pytest.fixture
def x():
    return images(3)


@pytest.fixture
def target(model, x):
    return model(x).argmax(1)


@pytest.fixture
def heat(x):
    return noise_maps(x)


@pytest.fixture
def additive():
    """Model, images and the contributions of the pixels against a baseline of 0."""
    weight = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(3)) / 16
    x = images(3)
    return Additive(weight), x, weight[1, 0] * x[:, 0]


def first(result):
    return result if isinstance(result, torch.Tensor) else result[0]


# --------------------------------------------------------------------------------------------------- all


@every_metric
@pytest.mark.parametrize("channels", [1, 3])
def test_one_value_an_image_with_any_number_of_channels(metric, channels):
    x, model = images(3, channels), net(channels)
    values = first(metric(model, x, model(x).argmax(1), noise_maps(x)))
    assert values.shape == (3,) and values.dtype == torch.float64 and values.isfinite().all()


@every_metric
def test_the_score_of_an_image_does_not_depend_on_its_batch_mates(metric, model, x, target, heat):
    together = first(metric(model, x, target, heat))
    for i in (2, 0, 1):
        one = slice(i, i + 1)
        assert first(metric(model, x[one], target[one], heat[one])).item() == pytest.approx(together[i].item())


@every_metric
def test_the_rows_that_go_through_the_model_at_a_time_do_not_show(metric, model, x, target, heat):
    few, many = (first(metric(model, x, target, heat, batch=batch)) for batch in (7, 1000))
    torch.testing.assert_close(few, many, rtol=1e-4, atol=1e-6)


@every_metric
def test_scale_and_offset_of_the_map_do_not_matter_but_to_infidelity(metric, model, x, target, heat):
    other = 3 * heat if metric is infidelity else 3 * heat + 1
    values = [first(metric(model, x, target, each)) for each in (heat, other)]
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-6)


@every_metric
def test_a_model_in_training_mode_is_run_in_eval_mode_and_left_as_it_was(metric, model, x, target, heat):
    expected, weights = first(metric(model, x, target, heat)), [value.clone() for value in model.state_dict().values()]
    assert torch.equal(first(metric(model.train(), x, target, heat)), expected)
    assert model.training and model.norm.training
    assert all(torch.equal(a, b) for a, b in zip(weights, model.state_dict().values(), strict=True))


@pytest.mark.parametrize("metric", [faithfulness_correlation, infidelity, road], ids=lambda metric: metric.__name__)
def test_draws_repeat_with_the_seed_and_the_global_generators_stand_still(metric, model, x, target, heat):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    noise = {"noise": 3.0} if metric is road else {}
    results = [first(metric(model, x, target, heat, seed=seed, **noise)) for seed in (0, 0, 1)]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert torch.equal(torch.get_rng_state(), before) and np.array_equal(np.random.get_state()[1], numpy_before)


@every_metric
def test_maps_that_cannot_be_rated_are_refused(metric, model, x, target, heat):
    for bad in (heat[:2], heat[:, None], heat / 0):
        with pytest.raises(ValueError, match="heat"):
            metric(model, x, target, bad)


@every_metric
def test_targets_are_one_an_image_and_may_be_a_list(metric, model, x, target, heat):
    assert torch.equal(first(metric(model, x, target.tolist(), heat)), first(metric(model, x, target, heat)))
    for bad in (torch.cat([target, target]), target[:2], target[:, None]):
        with pytest.raises(ValueError, match=r"one target per image, \[3\]"):
            metric(model, x, bad, heat)
    for bad in (target + 99, target - 99, None):
        with pytest.raises(ValueError, match="for each image a target of 0"):
            metric(model, x, bad, heat)


# ------------------------------------------------------------------------------------------------ curves


def test_irof_is_quantus_irof_in_other_units(model, x, target, heat):
    """Property 15: ``AOC_norm = (AOC_quantus - (1 + q_1) / 2) / S``, with a constant as baseline."""
    import quantus

    metric = quantus.IROF(perturb_baseline=0.5, return_aggregate=False, disable_warnings=True)
    segments = superpixels(x)
    aoc, curves = irof(model, x, target, heat, segments=segments, baseline=0.5)
    for i in range(3):
        one, count = slice(i, i + 1), int(segments[i].max()) + 1
        (theirs,) = ask_quantus(metric, model, x[one], target[one], heat[one])
        assert aoc[i].item() == pytest.approx((theirs - (1 + curves[i, 1].item()) / 2) / count, abs=1e-5)


def test_irof_of_a_model_that_never_changes_its_mind_is_0(x, heat):
    """Property 15: q = 1."""
    model = Net()
    torch.nn.init.zeros_(model.head.weight)
    aoc, curves = irof(model, x, torch.zeros(3, dtype=torch.long), heat)
    assert aoc.abs().max() < 1e-6 and (curves[~curves.isnan()] - 1).abs().max() < 1e-6


@every_curve
def test_without_anything_left_all_maps_are_equal(metric, model, x, target, heat):
    """Property 15: the last of the curve does not depend on the order, nor does the first."""
    ends = []
    for each in (heat, -heat, noise_maps(x, 5), torch.zeros_like(heat)):
        curves = metric(model, x, target, each).curves
        last = [curve[~curve.isnan()][-1].item() for curve in curves]
        ends.append([*curves[:, 0].tolist(), *last])
    assert all(end == pytest.approx(ends[0], rel=1e-5) for end in ends)
    assert not torch.allclose(metric(model, x, target, heat)[0], metric(model, x, target, -heat)[0])


def test_the_first_and_the_last_image_of_the_curve_are_the_image_and_its_own_mean_colour():
    seen = []

    class Spy(Net):
        def forward(self, x):
            seen.append(x.clone())
            return super().forward(x)

    x = images(2, channels=3)
    irof(Spy(channels=3), x, torch.tensor([0, 1]), noise_maps(x))
    assert len(seen) == 2, "all maskings of an image in one batch"
    for image, rows in zip(x, seen, strict=True):
        assert torch.equal(rows[0], image)
        torch.testing.assert_close(rows[-1], image.mean((1, 2))[:, None, None].expand_as(image))


def test_irof_by_hand():
    """Four segments; the logit is read off three of them; the map ranks them 2, 0, 3, 1."""
    segments = torch.tensor([[[0, 0, 1, 1], [2, 2, 3, 3]]])
    x = torch.tensor([[[[1.0, 1.0, 2.0, 2.0], [3.0, 3.0, 0.0, 0.0]]]])
    weight = torch.zeros(2, 1, 2, 4)
    weight[1, 0] = torch.tensor([[0.1, 0.1, 0.2, 0.2], [0.3, 0.3, 0.0, 0.0]])
    heat = torch.tensor([[[3.0, 2.0, 0.0, 0.5], [4.0, 4.0, 1.0, 1.0]]])
    logits = [0.2 + 0.8 + 1.8, 0.2 + 0.8, 0.8, 0.8, 0.0]  # baseline 0
    q = [(1 / (1 + math.exp(-logit))) / (1 / (1 + math.exp(-logits[0]))) for logit in logits]
    aoc, curves = irof(Additive(weight), x, torch.tensor([1]), heat, segments=segments, baseline=0.0)
    assert curves[0].tolist() == pytest.approx(q)
    assert aoc.item() == pytest.approx(1 - (q[0] / 2 + q[1] + q[2] + q[3] + q[4] / 2) / 4)


def test_segments_are_ranked_by_their_mean_heat_whatever_their_size():
    """A large segment of some heat each comes after a small one of more, though its sum is higher."""
    segments = torch.tensor([[[0, 0, 0, 0], [0, 0, 1, 1]]])
    heat = 1.0 + segments
    x, weight = torch.ones(1, 1, 2, 4), torch.zeros(2, 1, 2, 4)
    weight[1] = 1
    curve = irof(Additive(weight), x, torch.tensor([1]), heat, segments=segments, baseline=0.0).curves[0]
    p = [1 / (1 + math.exp(-shown)) for shown in (8, 6, 0)]  # the two of segment 1 go first
    assert curve.tolist() == pytest.approx([each / p[0] for each in p])


def test_images_may_have_different_numbers_of_segments(model, x, target, heat):
    segments = superpixels(x)
    segments[1] = 7 * (segments[1] % 5)  # labels need not be consecutive
    aoc, curves = irof(model, x, target, heat, segments=segments)
    assert (~curves.isnan()).sum(1).tolist() == [int(segments[i].unique().numel()) + 1 for i in range(3)]
    alone = irof(model, x[1:2], target[1:2], heat[1:2], segments=segments[1:2])
    assert alone.curves.shape == (1, 6) and alone.aoc.item() == pytest.approx(aoc[1].item())


def test_equal_segments_go_by_their_label(model, x, target, heat):
    segments = superpixels(x)
    by_label = irof(model, x, target, -segments.float(), segments=segments)
    assert torch.equal(irof(model, x, target, torch.ones_like(heat), segments=segments).curves, by_label.curves)


def test_irof_refuses_a_class_that_was_never_possible(x, heat):
    model = Net().eval()
    model.head.weight.data.zero_()
    model.head.bias.data.copy_(torch.tensor([0.0, 0.0, -1e4]))
    with pytest.raises(ValueError, match="is 0 for image 0"):
        irof(model, x, torch.tensor([2, 2, 2]), heat)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_superpixels_cover_the_image_with_consecutive_labels(channels):
    labels = superpixels(images(2, channels, side=32))
    assert labels.shape == (2, 32, 32) and labels.dtype == torch.int64
    for each in labels:
        assert each.unique().tolist() == list(range(int(each.max()) + 1)) and 80 <= each.max() <= 130
    assert superpixels(images(2, channels, side=32), segments=16).max() < 30


def test_superpixels_of_an_image_do_not_depend_on_its_mates_and_flat_images_have_some():
    x = torch.cat([images(2, side=32), torch.full((1, 1, 32, 32), 0.3)])
    together = superpixels(x)
    assert all(torch.equal(superpixels(x[i : i + 1])[0], together[i]) for i in range(3))
    assert together[2].max() > 50


def test_pixel_flipping_is_quantus_with_the_whole_image_first(model, x, target, heat):
    import quantus

    metric = quantus.PixelFlipping(
        features_in_step=4, perturb_baseline=0.5, return_auc_per_sample=True, disable_warnings=True
    )
    auc, curves = pixel_flipping(model, x, target, heat, steps=64, baseline=0.5)
    theirs = ask_quantus(metric, model, x, target, heat)
    assert auc.numpy() == pytest.approx((theirs + (curves[:, 0] + curves[:, 1]).numpy() / 2) / 64, rel=1e-4)


def test_selectivity_is_quantus_with_the_whole_image_first(model, x, target, heat):
    import quantus

    metric = quantus.Selectivity(patch_size=4, perturb_baseline=0.5, disable_warnings=True)
    curves = selectivity(model, x, target, heat, patch=4, baseline=0.5).curves
    assert curves[:, 1:].numpy() == pytest.approx(np.stack(ask_quantus(metric, model, x, target, heat)), rel=1e-4)


@every_curve
def test_hiding_what_helps_first_is_the_most_faithful_order_for_an_additive_model(metric, additive):
    model, x, contributions = additive
    better = 1 if metric is irof else -1
    target = torch.ones(3, dtype=torch.long)
    scores = [
        better * metric(model, x, target, each, baseline=0.0)[0]
        for each in (contributions, noise_maps(x), -contributions)
    ]
    assert (scores[0] > scores[1]).all() and (scores[1] > scores[2]).all()


def test_steps_are_of_equal_size_and_never_more_than_pixels(model, x, target, heat):
    assert pixel_flipping(model, x, target, heat, steps=10**6).curves.shape == (3, 257)
    assert pixel_flipping(model, x, target, heat, steps=10).curves.shape == (3, 11)
    assert selectivity(model, x, target, heat, patch=5).curves.shape == (3, 17)


# ---------------------------------------------------------------------------- correlation and infidelity


def test_the_contributions_of_an_additive_model_correlate_perfectly_and_have_no_infidelity(additive):
    model, x, contributions = additive
    target, settings = torch.ones(3, dtype=torch.long), {"baseline": 0.0}
    for factor in (1.0, 20.0):
        heat = factor * contributions
        assert faithfulness_correlation(model, x, target, heat, **settings).tolist() == pytest.approx([1, 1, 1])
        assert infidelity(model, x, target, heat, **settings).max() < 1e-10
    assert faithfulness_correlation(model, x, target, -contributions, **settings).tolist() == pytest.approx([-1] * 3)
    assert (infidelity(model, x, target, 20 * contributions, scaled=False, **settings) > 1e-4).all()


def test_the_gradient_of_an_additive_model_has_no_infidelity_as_a_local_map(additive):
    model, x, _ = additive
    target, gradient = torch.ones(3, dtype=torch.long), model.weight[1].detach().expand(3, 16, 16)
    for scaled in (True, False):
        for baseline in (0.0, "mean"):
            settings = {"baseline": baseline, "scaled": scaled, "local": True}
            assert infidelity(model, x, target, gradient, **settings).max() < 1e-10


def test_a_local_map_of_a_colour_image_is_multiplied_by_the_change_of_all_channels():
    """A grey model reads the sum over channels, and the gradient is the same in each."""
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(3)) / 16
    model, x = Additive(weight.expand(2, 3, 16, 16).clone()), images(2, channels=3)
    settings = {"baseline": 0.0, "scaled": False, "local": True}
    assert infidelity(model, x, torch.tensor([1, 1]), weight.expand(2, 16, 16), **settings).max() < 1e-8


@pytest.mark.parametrize("value", [0.1, 0.0, 1e6])
def test_a_constant_map_has_no_correlation(value, model, x, target):
    """Up to rounding, it is: not a number that rounding made."""
    assert faithfulness_correlation(model, x, target, torch.full((3, 16, 16), value)).isnan().all()


def test_no_map_is_worse_than_a_map_of_zeros(model, x, target, heat):
    zero = infidelity(model, x, target, torch.zeros_like(heat))
    assert (infidelity(model, x, target, heat) <= zero).all() and (zero > 0).all()
    assert (infidelity(model, x, target, 1e3 * heat, scaled=False) > zero).all()


def test_faithfulness_correlation_is_quantus_on_the_same_sets(model, x, target, heat):
    import quantus

    draws, size = 30, round(0.2 * 256)
    chosen = [
        torch.rand(draws, 256, generator=stream).topk(size).indices.numpy()
        for stream in streams(x, 0, "faithfulness_correlation")
    ]
    order = iter([chosen[i][k] for k in range(draws) for i in range(3)])
    ours = faithfulness_correlation(model, x, target, heat, draws=draws, baseline=0.5)
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=draws, subset_size=size, perturb_baseline=0.5, return_aggregate=False, disable_warnings=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "choice", lambda *args, **settings: next(order))
        theirs = ask_quantus(metric, model, x, target, heat, softmax=False)
    assert ours.numpy() == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("scaled", [False, True])
def test_infidelity_is_captums_on_the_same_squares(scaled, model, x, target, heat):
    """Contributions: Captum has the map multiplied by the share of ``x - baseline`` that goes, which is 0 or 1."""
    from captum.metrics import infidelity as captums

    ours = infidelity(model, x, target, heat, draws=20, side=6, baseline=0.0, scaled=scaled)
    for i, stream in enumerate(streams(x, 0, "infidelity")):
        squares = _squares(20, 6, 16, 16, stream)[:, None]

        def perturb(inputs, squares=squares):
            return squares.to(inputs), inputs * ~squares

        one = slice(i, i + 1)
        theirs = captums(
            model, perturb, x[one], heat[one, None], target=target[one], n_perturb_samples=20, normalize=scaled
        )
        assert ours[i].item() == pytest.approx(theirs.item(), rel=1e-4)


def test_squares_are_squares_anywhere():
    squares = _squares(500, 3, 7, 9, torch.Generator().manual_seed(0))
    assert (squares.sum((1, 2)) == 9).all() and squares.any(0).all()
    assert len({square.flatten().nonzero()[0].item() for square in squares}) == 5 * 7
    with pytest.raises(ValueError, match="squares of 17 pixels"):
        infidelity(net(), images(1), torch.tensor([0]), torch.zeros(1, 16, 16), side=17)


# -------------------------------------------------------------------------------------------------- ROAD


def test_a_hidden_pixel_is_the_weighted_mean_of_its_neighbours():
    image = torch.rand(2, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    where = torch.zeros(7, 9, dtype=torch.bool)
    where[2:5, 3:8] = where[0, 0] = where[6, 1:] = True
    filled = imputed(image, where)
    assert torch.equal(filled[:, ~where], image[:, ~where])
    kernel = torch.tensor([[1.0, 2, 1], [2, 0, 2], [1, 2, 1]], dtype=torch.float64)[None, None] / 12
    shares = torch.nn.functional.conv2d(torch.ones(1, 1, 7, 9, dtype=torch.float64), kernel, padding=1)[0]
    means = torch.nn.functional.conv2d(filled[:, None], kernel, padding=1)[:, 0] / shares
    torch.testing.assert_close(means[:, where], filled[:, where])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_imputation_is_quantus(channels):
    from quantus.functions.perturb_func import noisy_linear_imputation

    image = images(1, channels)[0]
    for share in (0.1, 0.5, 0.9):
        where = torch.rand(16, 16, generator=torch.Generator().manual_seed(4)) < share
        theirs = noisy_linear_imputation(image.double().numpy(), where.flatten().nonzero()[:, 0].numpy(), noise=0.0)
        assert imputed(image, where).numpy() == pytest.approx(theirs)


def test_flat_and_whole_images_are_imputed_and_empty_ones_refused():
    image, none = torch.full((3, 8, 8), 0.4), torch.zeros(8, 8, dtype=torch.bool)
    assert torch.equal(imputed(image, none), image.double())
    half = torch.arange(64).view(8, 8) % 2 == 0
    torch.testing.assert_close(imputed(image, half), image.double())
    with pytest.raises(ValueError, match="nothing left"):
        imputed(image, ~none)


def test_road_is_quantus_without_the_noise(model, x, target, heat):
    import quantus

    ours = road(model, x, target, heat, noise=0.0, percentages=(10, 30, 50, 70, 90))
    metric = quantus.ROAD(noise=0.0, percentages=[10, 30, 50, 70, 90], disable_warnings=True)
    theirs = ask_quantus(metric, model, x, target, heat)
    assert list(theirs.values()) == pytest.approx(ours.correct.double().mean(0).tolist())
    assert ours.score.tolist() == pytest.approx(ours.correct.double().mean(1).tolist())


def test_road_changes_the_pixels_that_it_hides_and_no_other(x, target, heat):
    """With so much noise that no guess is right by chance."""
    seen = []

    class Spy(Net):
        def forward(self, x):
            seen.append(x.clone())
            return super().forward(x)

    road(Spy(), x, target, heat, percentages=(30,), noise=3.0)
    for image, values, (whole, rest) in zip(x[:, 0], heat, [rows[:, 0] for rows in seen], strict=True):
        highest = values >= values.flatten().sort(descending=True).values[75]  # 30 % of 256 pixels are 76
        assert torch.equal(whole, image) and torch.equal(rest != image, highest)


def test_the_least_relevant_pixels_first_is_the_other_way_round(model, x, target, heat):
    """No ties: the least of a map are the most of its negative."""
    least, most = road(model, x, target, heat, least_first=True), road(model, x, target, -heat)
    assert torch.equal(least.correct, most.correct)


def test_steps_and_shares_that_hide_nothing_are_refused(model, x, target, heat):
    for steps in (0, -3):
        with pytest.raises(ValueError, match="at least one step"):
            pixel_flipping(model, x, target, heat, steps=steps)
    for share in (0, -1, 1.5):
        with pytest.raises(ValueError, match="a share of the pixels above 0"):
            faithfulness_correlation(model, x, target, heat, share=share)


@pytest.mark.parametrize("percentages", [(0, 50), (50, 100), (-3,)])
def test_road_needs_something_to_hide_and_something_to_show(percentages, model, x, target, heat):
    with pytest.raises(ValueError, match="between 0 and 100"):
        road(model, x, target, heat, percentages=percentages)


def test_a_single_logit_needs_no_target(x, heat):
    torch.manual_seed(0)
    model = Net(classes=1).eval()
    for metric in METRICS:
        values = first(metric(model, x, None, heat))
        assert torch.equal(values, first(metric(model, x, torch.zeros(3, dtype=torch.long), heat)))
