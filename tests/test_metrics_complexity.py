"""Sparseness and complexity of maps whose values are known, and of Quantus."""

import math

import pytest
import torch
from metric_nets import ask_quantus, images, net, noise_maps

from helpers.metrics import entropy, sparseness

flat, spot = torch.full((1, 4, 4), 0.1), torch.zeros(1, 4, 4).index_put((torch.tensor([0]),) * 3, torch.tensor(-3.0))


def test_a_flat_map_is_the_least_sparse_and_the_most_complex():
    for even in (flat, -flat, 0 * flat):
        assert sparseness(even).item() == pytest.approx(0, abs=1e-12)
        assert entropy(even).item() == pytest.approx(math.log(16))


def test_a_single_pixel_is_the_sparsest_and_the_simplest_map():
    assert sparseness(spot).item() == pytest.approx(1 - 1 / 16)
    assert entropy(spot).item() == 0


def test_half_of_the_pixels_alike_are_half_as_sparse():
    heat = (torch.arange(16) < 8).double().view(1, 4, 4)
    assert sparseness(heat).item() == pytest.approx(0.5) and entropy(heat).item() == pytest.approx(math.log(8))


@pytest.mark.parametrize("metric", [sparseness, entropy])
def test_scale_sign_and_order_of_the_pixels_do_not_matter(metric):
    heat = torch.randn(5, 6, 7)
    shuffled = heat.flatten(1)[:, torch.randperm(42)].view(5, 6, 7)
    for other in (-3 * heat, heat.abs(), shuffled):
        torch.testing.assert_close(metric(other), metric(heat))
    assert metric(heat).shape == (5,) and metric(heat).dtype == torch.float64


def test_quantus_says_the_same():
    import quantus

    x, target = images(), torch.tensor([2, 0, 1])
    heat = noise_maps(x)
    for kind, ours in ((quantus.Sparseness, sparseness), (quantus.Complexity, entropy)):
        score = ask_quantus(kind(disable_warnings=True), net(), x, target, heat)
        assert score == pytest.approx(ours(heat).numpy(), rel=1e-5)


@pytest.mark.parametrize("metric", [sparseness, entropy])
def test_maps_that_are_not_finite_are_refused(metric):
    with pytest.raises(ValueError, match="NaN or infinite"):
        metric(flat / 0)
