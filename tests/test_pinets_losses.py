"""Each loss is the formula of spec section 3.4, touches what it says it touches, and lets gradients through."""

import math

import pytest
import torch
from torch import nn

from helpers.pinets import fits
from helpers.pinets.losses import (
    area_loss,
    feedback_loss,
    first_positives,
    mask_loss,
    prediction_loss,
    sparsity_loss,
    total_loss,
)
from helpers.pinets.models import Decoder, Encoder, Output, PiNet
from helpers.pinets.presets import Training


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PiNet(Encoder(1, 4, 2), Decoder(8, 2))


@pytest.fixture
def batch():
    """(x, y, masks, labelled) of six images, the second and fifth labelled."""
    draws = torch.Generator().manual_seed(1)
    x = torch.rand(6, 1, 8, 8, generator=draws)
    masks = (torch.rand(6, 1, 8, 8, generator=draws) < 0.2).float()
    return x, torch.tensor([0.0, 1, 1, 0, 1, 1]), masks, torch.tensor([False, True, False, False, True, False])


class Stub(nn.Module):
    """Scores by a rule, to know the answer."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, x):
        scores = self.rule(x)
        return Output(scores.sum((1, 2, 3)), scores, scores * x)


def gradient(loss, parameter):
    return torch.autograd.grad(loss, parameter, retain_graph=True)[0]


# -------------------------------------------------------------------------------------------- prediction


def test_prediction_loss_is_the_mean_cross_entropy():
    logits, y = torch.tensor([0.3, -2.0, 1.5]), torch.tensor([1.0, 0.0, 0.0])
    probabilities = [1 / (1 + math.exp(-v)) for v in logits.tolist()]
    expected = [-math.log(p if t else 1 - p) for p, t in zip(probabilities, y.tolist(), strict=True)]
    assert prediction_loss(logits, y).item() == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert prediction_loss(logits, y.long()) == prediction_loss(logits, y)

    several, classes = torch.tensor([[0.1, 2.0, -1.0], [0.0, 0.0, 0.0]]), torch.tensor([1, 2])
    expected = -math.log(math.exp(2) / (math.exp(0.1) + math.exp(2) + math.exp(-1))) - math.log(1 / 3)
    assert prediction_loss(several, classes).item() == pytest.approx(expected / 2, rel=1e-5)


def test_prediction_loss_is_finite_at_the_logits_that_training_starts_from():
    """Half a score on 6,400 pixels: the first logits are in the thousands (spec section 3.2)."""
    assert prediction_loss(torch.tensor([1800.0, 1800.0]), torch.tensor([0.0, 1.0])).item() == pytest.approx(900)


def test_shapes_that_would_be_stretched_to_fit_are_refused():
    with pytest.raises(ValueError, match=r"as predicted ones, \[3\], not \[3, 1\]"):
        area_loss(torch.ones(3), torch.ones(3, 1))
    scores, masks, labelled = torch.ones(3, 1, 4, 4), torch.ones(3, 4, 4), torch.tensor([True, False, True])
    assert mask_loss(scores, masks, labelled) == 0
    for bad in ((masks, labelled[:, None]), (masks[:1], labelled), (masks, labelled[:1])):
        with pytest.raises(ValueError, match=r"expected masks \[3, 1, 4, 4\] and labelled \[3\]"):
            mask_loss(scores, *bad)


def test_area_loss_is_the_mean_absolute_error():
    assert area_loss(torch.tensor([[1.0, 5.0], [0.0, 2.0]]), torch.tensor([[3.0, 5.0], [1.0, 0.0]])).item() == 5 / 4


# ----------------------------------------------------------------------------------------------- feedback


def test_feedback_is_the_mean_squared_change_of_the_scores_on_their_own_signal(model, batch):
    model.eval()
    output = model(batch[0])
    again = model((output.scores * batch[0]).clamp_min(0))
    expected = sum(((a - b) ** 2).item() for a, b in zip(output.scores.flatten(), again.scores.flatten(), strict=True))
    assert feedback_loss(model, output).item() == pytest.approx(expected / output.scores.numel(), rel=1e-4)


def test_feedback_is_zero_for_scores_that_their_own_signal_reproduces(batch):
    for rule in (torch.ones_like, lambda x: (x > 0.5).float(), lambda x: torch.full_like(x, 0.3)):
        stub = Stub(rule)
        assert feedback_loss(stub, stub(batch[0])) == 0
    stub = Stub(lambda x: x)
    assert feedback_loss(stub, stub(batch[0])) > 0


def test_feedback_shows_the_net_no_negative_pixels():
    seen = []
    stub = Stub(lambda x: seen.append(x) or x)
    x = torch.tensor([[[[-1.0, 2.0]]]])
    negative = Output(torch.zeros(1), torch.tensor([[[[1.0, -0.5]]]]), torch.tensor([[[[1.0, -0.5]]]]) * x)
    feedback_loss(stub, negative)
    assert (seen[0] == 0).all()


def test_feedback_has_gradients_through_both_passes(model, batch):
    """Through the first scores, through the second, and through the signal that the second were made of."""
    weight = model.encoder[0].body[0].weight
    output = model(batch[0])
    whole = gradient(feedback_loss(model, output), weight)
    still = gradient(feedback_loss(model, Output(*(v.detach() for v in output))), weight)

    def second_pass_held(m, out):
        with torch.no_grad():
            again = m(out.signal.clamp_min(0)).scores
        return ((out.scores - again) ** 2).mean()

    first = gradient(second_pass_held(model, output), weight)
    assert still.abs().sum() > 0 and first.abs().sum() > 0
    for part in (still, first, still + first):
        assert not torch.allclose(whole, part, rtol=1e-2)


def test_feedback_needs_no_masks(model, batch):
    x, y, masks, labelled = batch
    loss = total_loss(feedback=1000.0)
    model.eval()
    assert loss(model, (x, y, masks, labelled)) == loss(model, (x, y, 1 - masks, ~labelled))


# ------------------------------------------------------------------------------------- strong supervision


def test_mask_loss_is_the_squared_error_of_the_labelled_images(batch):
    _, _, masks, labelled = batch
    scores = torch.rand(masks.shape, generator=torch.Generator().manual_seed(2))
    expected = sum(((masks[i, 0, r, c] - scores[i, 0, r, c]) ** 2).item() for i in (1, 4)
                   for r in range(8) for c in range(8)) / 64  # fmt: skip
    assert mask_loss(scores, masks, labelled).item() == pytest.approx(expected, rel=1e-5)
    assert mask_loss(scores, masks[:, 0], labelled).item() == pytest.approx(expected, rel=1e-5), "[B, H, W] will do"
    assert mask_loss(scores, masks, labelled, expected=4.0).item() == pytest.approx(expected / 4, rel=1e-5)
    assert mask_loss(masks, masks, labelled) == 0


def test_mask_loss_touches_the_labelled_images_and_no_others(batch):
    _, _, masks, labelled = batch
    scores = torch.full(masks.shape, 0.5, requires_grad=True)
    mask_loss(scores, masks, labelled).backward()
    assert torch.equal(scores.grad.abs().sum((1, 2, 3)) > 0, labelled)
    assert (scores.grad[labelled].sign() == (0.5 - masks[labelled]).sign()).all(), "scores go towards the mask"

    other = masks.clone()
    other[~labelled] = 1 - other[~labelled]
    assert mask_loss(scores, other, labelled) == mask_loss(scores, masks, labelled)


def test_without_labelled_images_the_mask_loss_is_zero_and_trains_on(batch):
    scores = torch.rand(6, 1, 8, 8, requires_grad=True)
    loss = mask_loss(scores, batch[2], torch.zeros(6, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and (scores.grad == 0).all()


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ([0, 1, 1, 0, 0, 1, 1, 0], [1, 5]),
        ([0, 0, 0, 0, 1, 1, 1, 1], [4]),  # the published code fails on a batch without positives
        ([0, 0, 0, 0, 0, 0, 0, 0], []),
        ([1, 1, 1, 1, 0, 0, 0, 0, 0, 1], [0, 9]),  # the last batch is short
    ],
)
def test_the_bundles_rule_labels_the_first_positive_of_each_batch(y, expected):
    assert first_positives(torch.tensor(y, dtype=torch.float32), 4).nonzero()[:, 0].tolist() == expected


def batches_of(data, **options):
    """(the batches of two epochs, labelled images in a mean batch)."""
    training = Training(batch_size=8, **options)
    batches, expected = fits._batches(fits.Fit("strong", 3), training, data, torch.device("cpu"))
    return [list(batches(epoch)) for epoch in (1, 2)], expected


@pytest.fixture
def data():
    """52 images whose only pixel is their index, so that a batch says who is in it."""
    y = (torch.arange(52) % 3 == 1).float()
    index = torch.arange(52.0).reshape(-1, 1, 1, 1)
    return fits.Tensors(index, y, index)


def who(batch):
    return batch[0].flatten().long().tolist()


def test_under_the_bundles_rule_the_same_masks_are_seen_each_epoch_in_the_same_order(data):
    epochs, expected = batches_of(data, strong=1000.0, mask_rule="first_positives")
    assert expected == 1
    for epoch in epochs:
        assert [image for batch in epoch for image in who(batch)] == list(range(52))
        labelled = [batch[0].flatten()[batch[3]].tolist() for batch in epoch]
        assert labelled == [[1.0], [10.0], [16.0], [25.0], [34.0], [40.0], [49.0]]


@pytest.mark.parametrize("budget", [0, 1, 5, 1000])
def test_a_mask_budget_means_what_it_says(data, budget):
    """So many positives carry a mask, the same ones in every epoch, and their weight is that of one image a batch."""
    epochs, expected = batches_of(data, strong=1000.0, mask_rule="budget", mask_budget=budget)
    labelled = [sorted(int(i) for batch in epoch for i in batch[0].flatten()[batch[3]]) for epoch in epochs]
    positives = data.y.nonzero()[:, 0].tolist()
    assert len(labelled[0]) == min(budget, len(positives)) and set(labelled[0]) <= set(positives)
    assert labelled[0] == labelled[1]
    orders = [[i for batch in epoch for i in who(batch)] for epoch in epochs]
    assert sorted(orders[0]) == list(range(52)) and orders[0] != orders[1], "every image once, in a new order"
    assert budget != 5 or labelled[0] != positives[:5], "drawn at random"
    if labelled[0]:
        scores = torch.zeros(8, 1, 1, 1)
        weight = sum(mask_loss(scores[: len(b[0])], torch.ones_like(b[0]), b[3], expected).item() for b in epochs[0])
        assert weight == pytest.approx(52 / 8, rel=1e-5), "per epoch: one image's loss for each batch of 8"


def test_without_strong_supervision_no_image_is_labelled(data):
    epochs, _ = batches_of(data, strong=0.0)
    assert not any(batch[3].any() for epoch in epochs for batch in epoch)


def test_batches_keep_images_labels_and_masks_together(data):
    epochs, _ = batches_of(data)
    for x, y, masks, _ in epochs[0]:
        assert torch.equal(x, masks) and torch.equal(y, data.y[x.flatten().long()])
    assert [len(batch[0]) for batch in epochs[0]] == [8] * 6 + [4], "the last batch is short, not dropped"


# ---------------------------------------------------------------------------------------------------- sums


def test_sparsity_is_the_mean_over_images_of_the_summed_squares():
    scores = torch.tensor([[[[1.0, -2.0]]], [[[0.0, 3.0]]]])
    assert sparsity_loss(scores).item() == (5 + 9) / 2


def test_the_total_is_the_weighted_sum(model, batch):
    x, y, masks, labelled = batch
    model.eval()
    output = model(x)
    parts = {
        "feedback": feedback_loss(model, output),
        "strong": mask_loss(output.scores, masks, labelled, 2.0),
        "sparsity": sparsity_loss(output.scores),
    }
    plain = prediction_loss(output.logits, y)
    assert total_loss()(model, batch) == plain
    several = {"feedback": 3.0, "strong": 2.0, "sparsity": 1.0}
    for weights in ({"feedback": 1000.0}, {"strong": 10.0}, {"sparsity": 0.1}, several):
        expected = plain + sum(weight * parts[name] for name, weight in weights.items())
        assert torch.allclose(total_loss(expected=2.0, **weights)(model, batch), expected), weights


def test_a_term_of_weight_zero_costs_no_forward_pass(model, batch):
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    total_loss()(model, batch)
    assert len(calls) == 1
    total_loss(feedback=1.0)(model, batch)
    assert len(calls) == 3


def test_every_parameter_of_a_pinet_has_a_gradient(model, batch):
    total_loss(feedback=1.0, strong=1.0, sparsity=1.0)(model, batch).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    silent = [name for name, p in model.named_parameters() if p.grad.abs().sum() == 0]
    assert silent == []
