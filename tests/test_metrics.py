"""Detection metrics against the plain loop of spec section 4, and what has to hold of them for any map."""

import math

import numpy as np
import pytest
import torch

from helpers.metrics import (
    THRESHOLDS,
    DetectionCurve,
    detection_curve,
    detection_range,
    detection_rates,
    mean_detection,
    range_length,
)


@pytest.fixture
def masks():
    """Eight images; the last two have no target."""
    masks = torch.rand(8, 6, 7, generator=torch.Generator().manual_seed(0)) < 0.3
    masks[6:] = False
    return masks.to(torch.uint8)


@pytest.fixture
def heat(masks):
    noise = torch.rand(masks.shape, generator=torch.Generator().manual_seed(1))
    return 0.5 * noise**3 + 0.4 * masks * noise


def plain(heat, masks):
    """TDR over the images with a target, TAR over all images, their product; a loop over every pixel."""
    tdr, tar = [], []
    for pi, star in zip(heat.tolist(), masks.tolist(), strict=True):
        rows = zip(pi, star, strict=True)
        pixels = [pair for row in rows for pair in zip(*row, strict=True)]
        inside, outside = sum(t for _, t in pixels), sum(1 - t for _, t in pixels)
        if inside:
            tdr.append(sum(p * t for p, t in pixels) / inside)
        if outside:
            tar.append(sum((1 - p) * (1 - t) for p, t in pixels) / outside)
    tdr, tar = sum(tdr) / len(tdr), sum(tar) / len(tar)
    return {"tdr": tdr, "tar": tar, "score": tdr * tar}


def plain_curve(heat, masks, thresholds):
    return [plain((heat.double() > float(t)).float(), masks) for t in thresholds]


# ------------------------------------------------------------------------------------------- soft and at once


def test_mean_detection_is_the_plain_loop(heat, masks):
    assert mean_detection(heat, masks) == pytest.approx(plain(heat, masks), rel=1e-6)
    covered = masks.clone()
    covered[0] = 1  # an image without background has no abstraction rate
    assert mean_detection(heat, covered) == pytest.approx(plain(heat, covered), rel=1e-6)


def test_rates_are_one_value_an_image_and_undefined_without_pixels_to_rate(heat, masks):
    masks[0] = 1
    tdr, tar = detection_rates(heat, masks)
    assert tdr.shape == tar.shape == (8,)
    assert tdr.isnan().tolist() == [False] * 6 + [True] * 2
    assert tar.isnan().tolist() == [True] + [False] * 7


def test_the_ideal_the_full_and_the_empty_map(masks):
    """Property 11."""
    ideal, full, empty = masks.float(), torch.ones(masks.shape), torch.zeros(masks.shape)
    assert mean_detection(ideal, masks) == {"tdr": 1, "tar": 1, "score": 1}
    assert mean_detection(full, masks) == {"tdr": 1, "tar": 0, "score": 0}
    assert mean_detection(empty, masks) == {"tdr": 0, "tar": 1, "score": 0}


def test_the_score_is_symmetric_in_what_is_shown_and_what_is_left_out(masks):
    """Turning map and mask inside out swaps the two rates and keeps their product."""
    both = masks[:6]
    pi = torch.rand(both.shape, generator=torch.Generator().manual_seed(3))
    there, back = mean_detection(pi, both), mean_detection(1 - pi, 1 - both)
    assert there["tdr"] == pytest.approx(back["tar"]) and there["tar"] == pytest.approx(back["tdr"])
    assert there["score"] == pytest.approx(back["score"]) and 0 <= there["score"] <= 1


# -------------------------------------------------------------------------------------------- all thresholds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_curve_is_the_plain_loop_at_every_threshold(heat, masks, dtype):
    heat = heat.to(dtype)
    curve = detection_curve(heat, masks)
    expected = plain_curve(heat, masks, THRESHOLDS)
    assert len(curve.tdr) == len(curve.tar) == len(curve.score) == 100
    assert np.allclose(curve.tdr, [e["tdr"] for e in expected], atol=1e-12)
    assert np.allclose(curve.tar, [e["tar"] for e in expected], atol=1e-12)
    assert np.allclose(curve.score, [e["score"] for e in expected], atol=1e-12)


def test_a_pixel_on_a_threshold_does_not_survive_it():
    """``heat > t`` is strict."""
    thresholds = np.array([0.25, 0.5, 0.75])
    heat, masks = torch.tensor([[[0.5, 0.25, 0.75, 0.0]]]), torch.tensor([[[1, 1, 0, 0]]])
    curve = detection_curve(heat, masks, thresholds)
    assert curve.tdr.tolist() == [0.5, 0.0, 0.0]
    assert curve.tar.tolist() == [0.5, 0.5, 1.0]


def test_thresholds_of_any_number_and_repeated_ones_will_do(heat, masks):
    for thresholds in (np.array([0.3]), np.array([0.1, 0.1, 0.2]), np.array([-1.0, 0.0, 5.0])):
        curve, expected = detection_curve(heat, masks, thresholds), plain_curve(heat, masks, thresholds)
        assert np.allclose(curve.score, [e["score"] for e in expected], atol=1e-12)
        assert curve.tdr.shape == thresholds.shape


def test_raising_the_threshold_detects_less_and_abstracts_more(heat, masks):
    """Property 11."""
    curve = detection_curve(heat / heat.max(), masks)
    assert (np.diff(curve.tdr) <= 0).all() and (np.diff(curve.tar) >= 0).all()
    assert curve.tdr[-1] == 0 and curve.tar[-1] == 1, "nothing is above the maximum"
    assert ((curve.score >= 0) & (curve.score <= 1)).all()


def test_the_optimal_score_is_the_highest_on_the_grid(heat, masks):
    """Property 12."""
    curve = detection_curve(heat, masks)
    assert curve.score[curve.best] == curve.score.max() == max(e["score"] for e in plain_curve(heat, masks, THRESHOLDS))
    assert DetectionCurve(THRESHOLDS[:3], np.array([0.2, 0.8, 0.8]), np.array([1.0, 0.5, 0.5])).best == 1


def test_a_maps_scale_moves_its_curve_along_the_threshold_axis(heat, masks):
    """Property 12: thresholds scaled along with the map give the same scores."""
    for scale in (0.01, 7.0):
        a, b = detection_curve(heat.double(), masks), detection_curve(heat.double() * scale, masks, THRESHOLDS * scale)
        assert np.allclose(a.score, b.score, atol=1e-12)


def test_the_grid_is_the_published_one():
    assert np.array_equal(THRESHOLDS, np.logspace(-4, 0, 100))
    assert len(THRESHOLDS) == 100 and THRESHOLDS[-1] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda heat, masks: (heat[:, None], masks), "must both be"),
        (lambda heat, masks: (heat[:4], masks), "must both be"),
        (lambda heat, masks: (heat / 0, masks), "NaN or infinite"),
        (lambda heat, masks: (heat.fill_(math.nan), masks), "NaN or infinite"),
        (lambda heat, masks: (heat, masks * 255), "masks must lie in \\[0, 1\\], not between 0.* and 255"),
    ],
)
@pytest.mark.parametrize("metric", [detection_rates, mean_detection, detection_curve])
def test_maps_that_cannot_be_rated_are_refused(heat, masks, change, message, metric):
    with pytest.raises(ValueError, match=message):
        metric(*change(heat, masks))


@pytest.mark.parametrize(("scale", "shift"), [(30, 0), (1, -0.1)])
def test_rates_are_of_normalised_maps(heat, masks, scale, shift):
    for metric in (detection_rates, mean_detection):
        with pytest.raises(ValueError, match=r"maps must lie in \[0, 1\].*normalise"):
            metric(heat * scale + shift, masks)
    detection_curve(heat * scale + shift, masks)


def test_a_curve_counts_pixels_of_the_target_or_not_of_it(heat, masks):
    soft = masks * 0.5
    assert detection_rates(heat, soft)[0].isfinite().any(), "shares are rated"
    with pytest.raises(ValueError, match="0 and 1 alone"):
        detection_curve(heat, soft)


def test_thresholds_must_ascend(heat, masks):
    with pytest.raises(ValueError, match="ascend"):
        detection_curve(heat, masks, THRESHOLDS[::-1].copy())


# ---------------------------------------------------------------------------------------------------- ranges


def test_the_detection_range_spans_the_thresholds_that_satisfy():
    thresholds = np.array([0.001, 0.01, 0.1, 1.0])
    score = np.array([0.4, 0.8, 0.95, 0.75])
    assert detection_range(score, 0.75, thresholds) == (0.01, 0.1), "exceeds is strict"
    assert range_length(score, 0.75, thresholds) == pytest.approx(1)
    assert range_length(score, 0.5, thresholds) == pytest.approx(2)
    for ask in (detection_range, range_length):
        with pytest.raises(ValueError, match="4 scores are not at 100 thresholds"):
            ask(score, 0.75)
    assert detection_range(score, 0.9, thresholds) == (0.1, 0.1) and range_length(score, 0.9, thresholds) == 0
    assert detection_range(score, 0.96, thresholds) is None and range_length(score, 0.96, thresholds) == 0


def test_there_is_no_range_exactly_when_no_threshold_satisfies(heat, masks):
    """Property 14."""
    score = detection_curve(heat, masks).score
    for level in np.linspace(0, 1, 41):
        assert (detection_range(score, level) is None) == (not (score > level).any())


def test_a_higher_level_never_has_a_longer_range(heat, masks):
    """Property 14."""
    score = detection_curve(heat, masks).score
    lengths = [range_length(score, level) for level in np.linspace(0, 1, 41)]
    assert (np.diff(lengths) <= 0).all() and lengths[0] > 0 and lengths[-1] == 0
