"""Pointing game and relevance mass of maps whose values are known, and of Quantus where it is right."""

import pytest
import torch
from metric_nets import ask_quantus, images, net, noise_maps

from helpers.metrics import pointing_game, relevance_mass


@pytest.fixture
def masks():
    masks = torch.zeros(3, 16, 16)
    masks[0, :4], masks[1, 5:9, 5:9] = 1, 1
    return masks


@pytest.fixture
def heat(masks):
    return noise_maps(torch.empty(3, 1, 16, 16))


def test_the_ideal_map_wins_and_its_inverse_loses(masks):
    for metric in (pointing_game, relevance_mass):
        assert metric(masks, masks)[:2].tolist() == [1, 1]
        assert metric(1 - masks, masks)[:2].tolist() == [0, 0]


def test_a_constant_map_scores_the_share_of_the_target(masks):
    """By chance, that is; Quantus lets it win the pointing game."""
    share = masks.mean((1, 2)).tolist()[:2]
    for metric in (pointing_game, relevance_mass):
        assert metric(torch.ones_like(masks), masks)[:2].tolist() == pytest.approx(share)


@pytest.mark.parametrize("metric", [pointing_game, relevance_mass])
def test_without_a_target_there_is_no_score(metric, heat, masks):
    assert metric(heat, masks).isnan().tolist() == [False, False, True]


def test_negative_relevance_is_no_mass(masks):
    assert relevance_mass(masks - 1, masks)[:2].tolist() == [0, 0]
    assert relevance_mass(masks - 0.5, masks)[:2].tolist() == [1, 1]


def test_a_growing_map_moves_no_hit_and_no_mass(heat, masks):
    for metric in (pointing_game, relevance_mass):
        assert torch.equal(metric(heat, masks)[:2], metric(4 * heat, masks)[:2])


def test_what_is_no_pair_of_maps_is_refused(heat, masks):
    for metric in (pointing_game, relevance_mass):
        with pytest.raises(ValueError, match="must both be"):
            metric(heat, masks[:2])


def test_quantus_says_the_same_where_there_are_targets_and_no_negative_relevance(heat, masks):
    import quantus

    x, target = images(), torch.tensor([2, 0, 1])
    heat = heat.abs()
    for kind, ours in ((quantus.PointingGame, pointing_game), (quantus.RelevanceMassAccuracy, relevance_mass)):
        metric, call = kind(disable_warnings=True), {"s_batch": masks[:2, None].numpy()}
        score = ask_quantus(metric, net(), x[:2], target[:2], heat[:2], **call)
        assert score == pytest.approx(ours(heat, masks)[:2].numpy(), rel=1e-5)


def test_quantus_gives_images_without_a_target_to_the_map(heat, masks):
    """Why the pointing game is ours: NaN in an array of bool is True."""
    import quantus

    call = {"s_batch": masks[:, None].numpy()}
    score = ask_quantus(
        quantus.PointingGame(disable_warnings=True), net(), images(), torch.tensor([2, 0, 1]), heat, **call
    )
    assert bool(score[2]) is True


@pytest.mark.parametrize("metric", [pointing_game, relevance_mass])
def test_maps_that_are_not_finite_are_refused(metric, heat, masks):
    with pytest.raises(ValueError, match="NaN or infinite"):
        metric(heat * torch.nan, masks)
