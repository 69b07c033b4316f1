"""Outcomes, effects and tests against their definitions, and the selection of causes against cases worked by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from helpers import runtime
from helpers.causal_graphs import statistics
from helpers.causal_graphs.statistics import (
    Measured,
    Selection,
    Statistics,
    benjamini_hochberg,
    concatenate,
    describe,
    measure,
    outcome,
    rounded,
    select,
)
from helpers.config import ConfigError

REFERENCE = Selection(mode="reference")
PAIRED = Selection(fdr=1, delta=0)  # the bare t test
TEN = [10.0, 12.0, 8.0, 10.0]  # mean 10, unbiased variance 8/3: the reference threshold is 1.65 * sqrt(4/3) = 1.905


def shifted(y, shifts):
    """Statistics of outcomes ``y`` [N] and candidates that move them by each of ``shifts`` [K] (or [K, N])."""
    y, shifts = torch.tensor(y, dtype=torch.float64), torch.tensor(shifts, dtype=torch.float64)
    d = shifts if shifts.ndim == 2 else shifts[:, None].expand(-1, len(y))
    return describe(Measured(d, (y + d) / y - 1, torch.zeros_like(d), y))


def chosen(table, selection):
    found = select(table, table.n_images, selection)
    return found.causes, found.inhibitors, found.rule


@pytest.fixture
def logits():
    """Of 6 images and 3 classes, without and with each of 5 cuts."""
    draw = runtime.generator(0, "logits")
    clean = 4 * torch.randn(6, 3, generator=draw) + torch.tensor([12.0, 0.0, 0.0])
    return clean, clean + torch.randn(5, 6, 3, generator=draw)


# ------------------------------------------------------------------------------------------ outcomes and effects


def test_the_four_outcomes():
    z = torch.tensor([[3.0, 1.0, 2.0], [0.0, -1.0, 4.0]])
    assert outcome(z, 0).tolist() == [3, 0]
    assert outcome(z, 0, "margin").tolist() == [1, -4] and outcome(z, 2, "margin").tolist() == [-1, 4]
    assert outcome(z, 0, "contrast", 1).tolist() == [2, 1]
    by_hand = [3 - math.log(math.exp(3) + math.exp(1) + math.exp(2)), -math.log(1 + math.exp(-1) + math.exp(4))]
    assert outcome(z, 0, "logprob").tolist() == pytest.approx(by_hand)


def test_outcomes_keep_the_leading_axes(logits):
    _, cut = logits
    for effect, other in (("logit", None), ("margin", None), ("logprob", None), ("contrast", 2)):
        y = outcome(cut, 1, effect, other)
        assert y.shape == (5, 6) and y[3].equal(outcome(cut[3], 1, effect, other))


@pytest.mark.parametrize(
    ("target", "effect", "other", "message"),
    [
        (3, "logit", None, "target must be a class of 0 to 2, not 3"),
        (-1, "margin", None, "target must be a class"),
        (0, "contrast", None, "other must be a class of 0 to 2, not None"),
        (0, "contrast", 7, "other must be a class"),
        (1, "contrast", 1, "cannot be contrasted with itself"),
    ],
)
def test_a_class_that_is_not_there_is_refused(logits, target, effect, other, message):
    with pytest.raises(ConfigError, match=message):
        outcome(logits[0], target, effect, other)


def test_one_logit_has_no_margin():
    with pytest.raises(ConfigError, match="no margin"):
        outcome(torch.zeros(4, 1), 0, "margin")


def test_effects_are_their_definitions(logits):
    clean, cut = logits
    found = measure(clean, cut, 0)
    for k in range(5):
        for n in range(6):
            before, after = clean[n].double(), cut[k, n].double()
            p, q = after.softmax(0), before.softmax(0)
            assert found.d[k, n].item() == pytest.approx((after[0] - before[0]).item())
            assert found.r[k, n].item() == pytest.approx((after[0] / before[0] - 1).item())
            assert found.kl[k, n].item() == pytest.approx(sum(p * (p / q).log()).item())
    assert found.y.equal(clean[:, 0].double()) and found.d.dtype == found.kl.dtype == torch.float64


def test_a_cut_that_changes_nothing_has_no_effect_at_all(logits):
    clean, _ = logits
    found = measure(clean, clean[None].repeat(2, 1, 1), 0, "logprob")
    assert not found.d.any() and not found.kl.any()


def test_a_ratio_to_nothing_is_undefined():
    found = measure(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.ones(1, 2, 2), 0)
    assert found.r.isnan().tolist() == [[True, False]] and found.d.tolist() == [[1, -1]]


def test_a_bias_of_the_target_moves_relative_effects_only(logits):
    """Property 10."""
    clean, cut = (z.double() for z in logits)
    bias = torch.tensor([5.0, 0.0, 0.0], dtype=torch.float64)
    before, after = measure(clean, cut, 0), measure(clean + bias, cut + bias, 0)
    assert torch.allclose(after.d, before.d, rtol=0, atol=1e-12)
    assert torch.allclose(after.r, before.d / (before.y + 5), rtol=1e-9, atol=1e-12)


def test_many_cuts_are_measured_a_block_at_a_time(logits, monkeypatch):
    clean, cut = logits
    whole = measure(clean, cut, 1, "margin")
    monkeypatch.setattr(statistics, "BLOCK", 2 * clean.numel())
    in_blocks, parts = measure(clean, cut, 1, "margin"), [measure(clean, c, 1, "margin") for c in cut.split(3)]
    for other in (in_blocks, concatenate(parts)):
        assert all(getattr(whole, name).equal(getattr(other, name)) for name in ("d", "r", "kl", "y"))


def test_wrong_tensors_are_refused(logits):
    clean, cut = logits
    for other in (cut[0], cut[:, :5], cut[..., :2]):
        with pytest.raises(ValueError, match="expected logits"):
            measure(clean, other, 0)
    with pytest.raises(ValueError, match="expected logits"):
        measure(clean[:0], cut[:, :0], 0)
    for poison in (math.nan, math.inf):
        broken = cut.clone()
        broken[2, 3, 1] = poison
        with pytest.raises(ValueError, match="cut logits are not finite"):
            measure(clean, broken, 0)
        with pytest.raises(ValueError, match="clean logits are not finite"):
            measure(broken[2], cut, 0)
    with pytest.raises(ValueError, match="same images"):
        concatenate([measure(clean, cut, 0), measure(clean + 1, cut, 0)])


# ---------------------------------------------------------------------------------------------------- statistics


def test_statistics_are_the_moments_of_the_effects(logits):
    measured = measure(*logits, 0)
    table = describe(measured)
    y = measured.y.numpy()
    assert table.n_images == 6 and len(table) == 5
    close = {"rtol": 1e-8}
    np.testing.assert_allclose([table.mean_y, table.std_y, table.min_y], [y.mean(), y.std(ddof=1), y.min()], **close)
    for k, d in enumerate(measured.d.numpy()):
        np.testing.assert_allclose(table.mean_d[k], d.mean(), **close)
        np.testing.assert_allclose(table.std_d[k], d.std(ddof=1), **close)
        np.testing.assert_allclose(table.std_cut[k], (y + d).std(ddof=1), **close)
        np.testing.assert_allclose(table.mean_r[k], measured.r[k].mean(), **close)
        np.testing.assert_allclose(table.mean_kl[k], measured.kl[k].mean(), **close)


def test_the_test_is_the_paired_t_test(logits):
    clean, cut = logits
    table = describe(measure(clean, cut, 0))
    before = clean[:, 0].double().numpy()
    for k, after in enumerate(cut[..., 0].double().numpy()):
        for side, p in (("less", table.p), ("greater", table.p_inhibitor)):
            oracle = stats.ttest_rel(after, before, alternative=side)
            assert (table.t[k], p[k]) == pytest.approx((oracle.statistic, oracle.pvalue), rel=1e-6)
        interval = stats.ttest_rel(after, before).confidence_interval(0.9)
        assert [ends[k] for ends in table.interval(0.9)] == pytest.approx(list(interval), rel=1e-6)


def test_stored_numbers_have_nine_digits_and_cannot_be_changed(logits):
    table = describe(measure(*logits, 0))
    for name in ("mean_d", "std_cut", "mean_kl", "p", "q"):
        values = getattr(table, name)
        assert values.tolist() == [float(f"{v:.9g}") for v in values]
        with pytest.raises(ValueError):
            values[0] = 0
    assert rounded(torch.tensor([[1 / 3, 2e-30 / 3]]), 3).tolist() == [[0.333, 6.67e-31]]


def test_statistics_are_equal_if_all_numbers_are(logits):
    one, other = describe(measure(*logits, 0)), describe(measure(*logits, 0))
    alone = [describe(measure(logits[0][:1], logits[1][:, :1], 0)) for _ in range(2)]  # with NaNs
    assert one == other and alone[0] == alone[1] and one != alone[0] and one != describe(measure(*logits, 1))


def test_statistics_that_do_not_fit_together_are_refused(logits):
    table = describe(measure(*logits, 0))
    values = {name: getattr(table, name) for name in Statistics.__dataclass_fields__}
    for wrong in ({"t": table.t[:3]}, {"mean_d": 1.0}, {"mean_y": table.t}):
        with pytest.raises(ValueError, match="must be"):
            Statistics(**values | wrong)


# ----------------------------------------------------------------------------------------- Benjamini and Hochberg


def textbook(p, level):
    """Which hypotheses are rejected: the k smallest, k the largest with p_(k) <= k / m * level."""
    ascending = sorted(p)
    k = max((k for k, value in enumerate(ascending, 1) if value <= k / len(p) * level), default=0)
    return [k > 0 and value <= ascending[k - 1] for value in p]


@pytest.mark.parametrize("seed", range(5))
def test_benjamini_hochberg_is_the_textbook_procedure(seed):
    draw = runtime.numpy_generator(seed, "p")
    p = np.concatenate([draw.uniform(size=20), draw.uniform(size=10) ** 6, [0.03] * 4, [0.0, 1.0]])
    q = benjamini_hochberg(p)
    np.testing.assert_allclose(q, stats.false_discovery_control(p), rtol=1e-12)
    for level in (0.01, 0.05, 0.2, 0.5):
        assert (q <= level).tolist() == textbook(p.tolist(), level)


def test_benjamini_hochberg_of_none_one_and_undefined_levels():
    assert benjamini_hochberg(np.array([])).tolist() == []
    assert benjamini_hochberg(np.array([0.04])).tolist() == [0.04]
    assert np.isnan(benjamini_hochberg(np.array([0.04, np.nan]))).all()


# ------------------------------------------------------------------------------------------- the reference's rule


def test_the_reference_threshold_by_hand():
    assert chosen(shifted(TEN, [-1.9, -1.91, 0, 1.9, 1.91]), REFERENCE) == ((1,), (), "test")
    both = REFERENCE.override({"inhibitors": True})
    assert chosen(shifted(TEN, [-1.9, -1.91, 0, 1.9, 1.91]), both) == ((1,), (4,), "test")
    assert chosen(shifted(TEN, [-1.9, -1.91]), REFERENCE.override({"critical": 1.0})) == ((0, 1), (), "test")


def test_the_spread_with_the_cut_counts_too():
    """Means of -2; the second node adds a variance of 8 to the outcomes' 8/3: the threshold is 1.65 * sqrt(10/3)."""
    spread = [[-2, -2, -2, -2], [-2, -2 + math.sqrt(8), -2 - math.sqrt(8), -2]]
    table = shifted(TEN, spread)
    threshold = 1.65 * np.sqrt((table.std_cut**2 + 8 / 3) / 4)
    assert threshold[0] == pytest.approx(1.905, abs=1e-3) and threshold[1] > 2
    assert chosen(table, REFERENCE) == ((0,), (), "test")


def test_the_reference_falls_back_on_relative_effects():
    """1/y is 0.102 in the mean: moving by -0.0097 is r = -0.00099, by -0.0099 r = -0.00101."""
    assert chosen(shifted(TEN, [-0.0097, -0.0099, -1.9, 1.0]), REFERENCE) == ((1, 2), (), "fallback")


def test_the_reference_stops_where_nothing_survives():
    assert chosen(shifted(TEN, [-0.0097, 0, 1.0]), REFERENCE) == ((), (), "none")
    assert chosen(shifted(TEN, np.zeros((0, 4))), REFERENCE) == ((), (), "none")


def test_one_image_is_judged_by_its_relative_effect():
    table = shifted([10.0], [-0.49, -0.51, 0.49, 0.51])
    assert chosen(table, REFERENCE) == ((1,), (), "test")
    assert chosen(table, REFERENCE.override({"inhibitors": True})) == ((1,), (3,), "test")
    assert np.isnan(table.t).all() and np.isnan(table.p).all() and math.isnan(table.std_y)


def test_the_reference_threshold_shrinks_with_the_images():
    """What as many images with the same means and standard deviations would select."""
    table = shifted(TEN, [-1.0, -0.5, -2.0])
    assert [len(select(table, n, REFERENCE).causes) for n in (4, 16, 64)] == [1, 2, 3]


# --------------------------------------------------------------------------------------------- the recommended rule


def test_pairing_finds_what_the_spread_of_images_hides():
    table = shifted(TEN, [[-0.5, -0.6, -0.4, -0.5], [0.5, 0.6, 0.4, 0.5], [-1, 1, -1, 1.1]])
    assert chosen(table, Selection()) == ((0,), (1,), "test")
    assert chosen(table, Selection(inhibitors=False)) == ((0,), (), "test")
    assert chosen(table, REFERENCE)[2] == "fallback"


def test_an_effect_has_to_have_a_size():
    table = shifted(TEN, [[-0.19, -0.19, -0.2, -0.18], [-0.21, -0.21, -0.22, -0.2]])  # 2 % of 10 is 0.2
    assert chosen(table, Selection()) == ((1,), (), "test")
    assert chosen(table, Selection(delta=0)) == ((0, 1), (), "test")
    assert chosen(table, Selection(delta=0.03)) == ((), (), "none")


@pytest.mark.parametrize("y", [[-10.0, 30.0, 8.0, 12.0], [0.1, 0.3, 0.2, 0.2], [-3.0, -2.0, -4.0, -3.0]])
def test_without_ratios_the_size_is_in_standard_deviations(y):
    """A logit <= 0, or a mean below 1: a share of the mean says nothing."""
    table = shifted(y, [-0.019 * np.std(y, ddof=1), -0.021 * np.std(y, ddof=1)])
    assert not table.ratios and table.scale == pytest.approx(np.std(y, ddof=1))
    assert chosen(table, Selection()) == ((1,), (), "test")


def test_equal_effects_go_by_their_sign():
    table = shifted(TEN, [-1.0, 0.0, 1.0])
    assert table.std_d.tolist() == [0, 0, 0] and np.isnan(table.t).all()
    assert table.p.tolist() == [0, 1, 1] and table.p_inhibitor.tolist() == [1, 1, 0]
    assert chosen(table, Selection()) == ((0,), (2,), "test")


def test_a_paired_test_needs_two_images():
    with pytest.raises(ConfigError, match="two images"):
        chosen(shifted([10.0], [-1.0]), Selection())


def test_false_discoveries_are_controlled_over_the_layer():
    """A candidate of t = -1.2 / (0.783 / 2) = -3.06, p = 0.027, is a cause alone, and none among nine idle ones."""
    candidate, idle = [-1.0, -2.0, -0.2, -1.6], [0.1, -0.1, 0.1, -0.1]
    alone, among = shifted(TEN, [candidate]), shifted(TEN, [candidate] + 9 * [idle])
    assert alone.t[0] == pytest.approx(-3.064, abs=1e-3) and alone.p[0] == pytest.approx(0.0274, abs=1e-4)
    assert alone.q[0] == alone.p[0] and among.q[0] == pytest.approx(10 * alone.p[0])
    assert chosen(alone, Selection())[0] == (0,)
    assert chosen(among, Selection())[0] == () and chosen(among, Selection(fdr=1))[0] == (0,)


def test_pure_noise_is_selected_no_more_often_than_alpha():
    """Property 11: 1000 nodes without an effect; the bound is passed once in a thousand times."""
    draw = runtime.numpy_generator(0, "noise")
    table = shifted(draw.normal(10, 3, 40).tolist(), draw.normal(0, 1, (1000, 40)))
    for alpha in (0.01, 0.05, 0.2):
        causes, inhibitors, _ = chosen(table, PAIRED.override({"alpha": alpha}))
        bound = stats.binom.ppf(0.999, 1000, alpha)
        assert 0 < len(causes) <= bound and 0 < len(inhibitors) <= bound


def test_a_layer_of_noise_has_a_cause_no_more_often_than_the_false_discovery_rate():
    """300 layers of 40 nodes without an effect."""
    draw = runtime.numpy_generator(0, "layers of noise")
    y = draw.normal(10, 3, 30).tolist()
    layers = [shifted(y, draw.normal(0, 1, (40, 30))) for _ in range(300)]
    found = sum(chosen(table, Selection(delta=0))[2] == "test" for table in layers)
    assert 0 < found <= stats.binom.ppf(0.999, 300, 0.05)


def test_selection_needs_the_stored_numbers_only(logits):
    """Statistics read back from text select the same."""
    table = describe(measure(*logits, 0))
    values = {name: getattr(table, name) for name in Statistics.__dataclass_fields__}
    read = Statistics(**{k: [float(repr(x)) for x in v.tolist()] if np.ndim(v) else v for k, v in values.items()})
    for selection in (REFERENCE, Selection(), Selection(delta=0.3), PAIRED):
        assert select(read, 6, selection) == select(table, 6, selection)


def test_a_shift_of_the_prediction_is_never_negative():
    """Of logits that are nearly the same it is less than the rounding of its terms."""
    draws = torch.Generator().manual_seed(0)
    clean = torch.randn(200, 10, generator=draws, dtype=torch.float64)
    cut = clean + 1e-9 * torch.randn(3, 200, 10, generator=draws, dtype=torch.float64)
    assert (measure(clean, cut, 0).kl >= 0).all()
