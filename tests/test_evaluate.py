"""The MARS report is what the paper's formulas say, and each of its numbers looks at nothing that it must not see."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from helpers import attribution, metrics
from helpers.pinets import evaluate
from helpers.pinets.evaluate import (
    alignment_residual,
    default_explainer,
    explain,
    mars,
    normalise,
    own_scores,
    predict,
    recursive_accuracy,
)
from helpers.pinets.models import CNN, Decoder, Encoder, Ensemble, Output, PiNet, ScaledSum


@torch.no_grad()
def pinet(seed=0, **options):
    """A PiNet of 8 x 8 images in eval mode: scores all over their range, logits on both sides of 0."""
    torch.manual_seed(seed)
    maps = options.pop("maps", 1)
    model = PiNet(Encoder(1, 4, 2), Decoder(8, 2, maps), **options)
    for _ in range(3):
        model(torch.rand(8, 1, 8, 8))
    model.eval()
    model.decoder[-1].weight.mul_(2 / model.decoder(model.encoder(images(20)[0])).std())
    model.decoder[-1].bias -= model.decoder(model.encoder(images(20)[0])).mean()
    if model.aggregator.weight.ndim == 0:
        model.aggregator.weight.fill_(0.7)
        model.aggregator.bias -= model(images(20)[0]).logits.median()
    return model


def cnn(seed=0):
    torch.manual_seed(seed)
    model = CNN(Encoder(1, 4, 2, skip=True)).eval()
    with torch.no_grad():
        model.head.bias -= model(images(20)[0]).logits.median()
    return model


def images(n=20, seed=5):
    """(x, y, masks): a bright patch in most images is what is looked for."""
    draws = torch.Generator().manual_seed(seed)
    masks = torch.zeros(n, 1, 8, 8)
    for i in range(n):
        if i % 3:
            row, column = torch.randint(0, 5, (2,), generator=draws).tolist()
            masks[i, 0, row : row + 3, column : column + 3] = 1
    x = (0.5 * torch.rand(n, 1, 8, 8, generator=draws) + 0.5 * masks).clamp(0, 1)
    return x, masks.flatten(1).amax(1), masks


class Votes(nn.Module):
    """A member whose logit for image i is row i of what it was given; the image's one pixel says which."""

    second_look = "hard"

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x):
        return Output(self.logits[x.flatten().long()], x, x)


def plain(classes, seed=0):
    """A network that returns a tensor, as most do."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, classes)).eval()


def three_classes():
    """(x, y, masks) with no patch, one in the left half, or one in the right half."""
    x, _, masks = images(30)
    half = masks[..., :4].sum((1, 2, 3)) >= masks[..., 4:].sum((1, 2, 3))
    return x, torch.where(masks.flatten(1).any(1), 2 - half.long(), 0), masks


def ones(model, x, target=None):
    return torch.ones(x[:, 0].shape)


def zeros(model, x, target=None):
    return torch.zeros(x[:, 0].shape)


# ------------------------------------------------------------------------------------- explanations and maps


def test_a_pinet_explains_itself_by_its_scores():
    model, (x, _, _) = pinet(), images()
    explained = explain(model, own_scores, x, batch_size=7)
    output = model(x)
    assert explained.heat.shape == (20, 8, 8)
    assert torch.allclose(explained.heat, output.scores[:, 0], atol=1e-6)
    assert torch.allclose(explained.logits, output.logits, atol=1e-4)
    assert not explained.heat.requires_grad and not explained.logits.requires_grad


def test_the_short_cut_for_own_scores_changes_nothing():
    model, (x, _, _) = pinet(), images()
    direct, roundabout = explain(model, own_scores, x), explain(model, lambda m, c, t: own_scores(m, c, t).detach(), x)
    assert torch.equal(direct.heat, roundabout.heat) and torch.equal(direct.logits, roundabout.logits)


def test_of_several_maps_the_targets_is_taken_or_all_are_added():
    model, (x, _, _) = pinet(maps=3, aggregator=ScaledSum(3)), images(4)
    scores = model(x).scores
    target = torch.tensor([2, 0, 1, 2])
    chosen = own_scores(model, x, target)
    assert all(torch.equal(chosen[i], scores[i, target[i]]) for i in range(4))
    assert torch.equal(own_scores(model, x), scores.sum(1))
    assert torch.equal(own_scores(pinet(), x, target), pinet()(x).scores[:, 0]), "a single map explains the only logit"


def test_an_ensembles_map_is_the_mean_of_its_members_weighted_ones():
    members, (x, _, _) = [pinet(0), pinet(1)], images()
    members[1].aggregator.weight.data.fill_(1.3)
    expected = (0.49 * members[0](x).scores + 1.69 * members[1](x).scores)[:, 0] / 2
    assert torch.allclose(explain(Ensemble(members).eval(), own_scores, x).heat, expected, atol=1e-6)


def test_each_model_has_its_own_explainer():
    assert default_explainer(pinet()) is own_scores and default_explainer(Ensemble([pinet()])) is own_scores
    model, (x, _, _) = cnn(), images(3)
    heat = default_explainer(model)(model, x, None)
    expected = attribution.explainer("grad_cam", layer="encoder")(model, x, None)
    assert torch.equal(heat, expected) and heat.shape == (3, 8, 8)


def test_maps_are_divided_by_one_number_for_all():
    """Property 12: the maximum over the whole set, not image by image."""
    heat = torch.tensor([[[0.0, 2.0]], [[8.0, -4.0]]])
    assert normalise(heat).tolist() == [[[0.0, 0.25]], [[1.0, -0.5]]]
    assert normalise(heat, scale=2.0).tolist() == [[[0.0, 1.0]], [[4.0, -2.0]]]
    assert normalise(torch.zeros(2, 1, 2)).tolist() == [[[0.0, 0.0]]] * 2
    assert normalise(-heat.abs() - 1).abs().sum() == 0, "a map without evidence shows nothing"


# ------------------------------------------------------------------------------------------------ the report


@pytest.fixture(scope="module")
def report():
    model, (x, y, masks), validation = pinet(), images(), images(12, seed=6)
    return model, x, y, masks, mars(model, own_scores, x, y, masks, (validation[0], validation[2])), validation


def test_accuracy_is_the_share_of_images_on_the_right_side(report):
    model, x, y, _, values, _ = report
    logits = model(x).logits.tolist()
    right = [(1 / (1 + math.exp(-logit)) > 0.5) == (label > 0) for logit, label in zip(logits, y, strict=True)]
    assert 0 < values["accuracy"] < 1, "the case is not a trivial one"
    assert values["accuracy"] == sum(map(bool, right)) / len(y)


def test_a_report_has_every_entry_that_a_record_is_told_by(report):
    model, x, y, masks, values, _ = report
    assert values.keys() == evaluate.ENTRIES | {"validated", "identity_error"}
    assert values["identity_error"] == evaluate.identity_error(model, x, batch_size=7) < 1e-5
    posthoc = mars(model, lambda model, x, target: x[:, 0], x, y, masks)
    assert posthoc.keys() == evaluate.ENTRIES, "the identity is of the network's own map, and of no other"


def test_detection_is_measured_on_maps_divided_by_their_maximum(report):
    model, x, _, masks, values, _ = report
    unit = (model(x).scores[:, 0] / model(x).scores.max()).detach()
    assert values["scale"] == pytest.approx(model(x).scores.max().item())
    assert values["naive"] == pytest.approx(metrics.mean_detection(unit, masks[:, 0]), rel=1e-5)
    tried = [metrics.mean_detection((unit.double() > t).float(), masks[:, 0]) for t in metrics.THRESHOLDS]
    best = max(tried, key=lambda rates: rates["score"])
    assert values["optimal"]["score"] == pytest.approx(best["score"])
    assert values["optimal"]["tdr"] * values["optimal"]["tar"] == pytest.approx(values["optimal"]["score"])
    assert metrics.THRESHOLDS[tried.index(best)] == pytest.approx(values["optimal"]["threshold"])
    assert values["curve"]["tdr"] == pytest.approx([t["tdr"] for t in tried], abs=1e-5)
    assert values["curve"]["tar"] == pytest.approx([t["tar"] for t in tried], abs=1e-5)


def test_negative_evidence_shows_nothing_under_the_naive_strategy():
    def signed(model, x, target=None):
        return x[:, 0] - 0.5

    model, (x, y, masks) = pinet(), images()
    values = mars(model, signed, x, y, masks)
    unit = (x[:, 0] - 0.5).clamp_min(0) / (x.max() - 0.5)
    assert values["naive"] == pytest.approx(metrics.mean_detection(unit, masks[:, 0]), rel=1e-5)


def test_the_shift_is_the_accuracy_lost_on_the_explained_part(report):
    model, x, y, _, values, _ = report
    unit = model(x).scores / model(x).scores.max()
    again = predict(model, unit * x)
    assert values["recursive"]["accuracy"] == ((again > 0) == (y > 0)).double().mean()
    assert values["shift"] == values["accuracy"] - values["recursive"]["accuracy"]


def test_the_explained_part_is_what_the_map_marks_of_either_sign():
    """Spec section 4.4: the absolute value of the normalised map times the image."""
    model, (x, y, masks) = pinet(), images()
    minus = mars(model, lambda m, c, t: torch.where(c[:, 0] > 0.99, 1.0, -1.0), x, y, masks)
    assert minus["recursive"]["accuracy"] == minus["accuracy"], "|-1| times the image is the image"


def test_without_validation_images_nothing_is_said_of_them():
    model, (x, y, masks) = pinet(), images()
    assert "validated" not in mars(model, own_scores, x, y, masks)


def test_a_report_does_not_depend_on_batches_and_leaves_the_model_as_it_was(report):
    model, x, y, masks, values, validation = report
    before = copy.deepcopy(model.state_dict())
    again = mars(model, lambda m, c, t: own_scores(m, c, t).detach(), x, y, masks, (validation[0], validation[2]))
    assert again["optimal"] == values["optimal"] and again["recursive"] == values["recursive"]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()) and not model.training


def test_what_cannot_be_measured_is_refused():
    model, (x, y, masks) = pinet(), images()
    with pytest.raises(ValueError, match="call model.eval\\(\\) first"):
        mars(model.train(), own_scores, x, y, masks)
    model.eval().encoder.train()
    with pytest.raises(ValueError, match="training mode"):
        mars(model, own_scores, x, y, masks)
    model.eval()
    for labels in (y[:, None], y[:1], torch.stack([y, 1 - y], 1)):
        with pytest.raises(ValueError, match="one label per image"):
            mars(model, own_scores, x, labels, masks)
    with pytest.raises(ValueError, match="NaN or infinite"):
        mars(model, lambda m, c, t: torch.where(torch.arange(8) > 0, c[:, 0], torch.nan), x, y, masks)
    with pytest.raises(ValueError, match="no test image has a target"):
        mars(model, own_scores, x, y, torch.zeros_like(masks))
    with pytest.raises(ValueError, match="no validation image has a target"):
        mars(model, own_scores, x, y, masks, (x, torch.zeros_like(masks)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        mars(model, lambda m, c, t: c[:, 0] / 0, x, y, masks)


# --------------------------------------------------------------------------------- validated, without oracle


def test_scale_and_threshold_come_from_the_validation_images(report):
    model, x, _, masks, values, (own_x, _, own_masks) = report
    own = model(own_x).scores[:, 0].detach()
    tried = [
        metrics.mean_detection((own.double() / own.max() > t).float(), own_masks[:, 0])["score"]
        for t in metrics.THRESHOLDS
    ]
    threshold = metrics.THRESHOLDS[int(np.argmax(tried))]
    assert values["validated"]["threshold"] == threshold
    marked = (model(x).scores[:, 0].detach() / own.max()).double() > threshold
    expected = metrics.mean_detection(marked.float(), masks[:, 0])
    assert values["validated"] == pytest.approx(expected | {"threshold": threshold, "scale": float(own.max())})
    assert values["validated"]["score"] <= values["optimal"]["score"] + 1e-9 or own.max() != values["scale"]


def test_maps_of_darker_test_images_are_not_stretched_to_the_validation_maximum():
    """With scales that are far apart: dividing by the test set's own would be a look at it."""
    model, (x, y, masks), (own_x, _, own_masks) = pinet(), images(), images(12, seed=6)
    values = mars(model, lambda m, c, t: c[:, 0], x / 4, y, masks, (own_x, own_masks))
    validated = values["validated"]
    assert validated["scale"] == pytest.approx(float(own_x.max())) and values["scale"] == pytest.approx(
        float(x.max()) / 4)  # fmt: skip
    marked = (x[:, 0].double() / 4 / own_x.max()) > validated["threshold"]
    expected = metrics.mean_detection(marked.float(), masks[:, 0])
    assert {name: validated[name] for name in expected} == pytest.approx(expected)


def test_no_test_mask_is_looked_at_in_choosing_the_threshold(report):
    model, x, y, masks, values, validation = report
    other = mars(model, own_scores, x, y, masks.roll(3, 2).flip(0), (validation[0], validation[2]))
    assert other["optimal"] != values["optimal"], "the oracle does look"
    assert other["validated"]["threshold"] == values["validated"]["threshold"]
    third = mars(model, own_scores, x, y, masks, (validation[0], 1 - validation[2]))
    assert third["validated"]["threshold"] != values["validated"]["threshold"], "but the validation masks are"


# ------------------------------------------------------------------------------------------------ sufficient


@pytest.mark.parametrize("make", [pinet, cnn])
def test_a_map_of_ones_keeps_every_prediction(make):
    """Property 13."""
    model, (x, y, masks) = make(), images()
    values = mars(model, ones, x, y, masks)
    assert values["recursive"]["accuracy"] == values["accuracy"] and values["shift"] == 0


@pytest.mark.parametrize("make", [pinet, cnn])
def test_a_map_of_zeros_makes_every_prediction_the_same(make):
    """Property 13."""
    model, (x, y, masks) = make(), images()
    share = float(y.mean())
    assert mars(model, zeros, x, y, masks)["recursive"]["accuracy"] in (pytest.approx(share), pytest.approx(1 - share))


def legacy_rule(logits):
    """Spec section 4.4: the members' hard votes are averaged, and the average goes through sigmoid > 0.5."""
    votes = [1.0 if logit > 0 else 0.0 for logit in logits]
    return 1 / (1 + math.exp(-sum(votes) / len(votes))) > 0.5


MAJORITIES = [([1, 1, 1, 0], 0.75), ([0, 0, 0, 1], 0.75), ([0, 0], 1.0), ([0, 1, 2, 2], 0.5)]


@pytest.mark.parametrize(("y", "share"), MAJORITIES)
def test_the_majority_may_be_of_any_answer(y, share):
    assert evaluate.majority(torch.tensor(y).float()) == share


@pytest.mark.parametrize(
    ("logits", "by_mean", "by_majority", "by_or"),
    [
        ((1.0, -5.0, -5.0), False, False, True),
        ((5.0, -1.0, -1.0), True, False, True),
        ((1.0, 1.0, -5.0), False, True, True),
        ((1.0, 1.0, 1.0), True, True, True),
        ((-1.0, -1.0, -1.0), False, False, False),
    ],
)
def test_three_rules_of_voting_differ_where_they_should(logits, by_mean, by_majority, by_or):
    """Property 16. The legacy rule is an OR: positive as soon as one member says so."""
    ensemble = Ensemble([Votes([logit]) for logit in logits])
    positive = recursive_accuracy(ensemble, torch.zeros(1, 1, 1, 1), torch.ones(1))
    assert positive == {"accuracy": by_mean, "majority": by_majority, "legacy": by_or}
    negative = recursive_accuracy(ensemble, torch.zeros(1, 1, 1, 1), torch.zeros(1))
    assert negative == {name: 1 - value for name, value in positive.items()}
    # bundle: sigmoid(0) > 0.5 is false, so no vote at all is the only way to a negative
    assert legacy_rule(logits) == by_or


def test_voting_is_counted_over_images():
    ensemble = Ensemble([Votes([1.0, -1.0, 1.0, -1.0]), Votes([-3.0, -1.0, 1.0, 3.0])])
    index = torch.arange(4.0).reshape(4, 1, 1, 1)
    values = recursive_accuracy(ensemble, index, torch.tensor([1.0, 0.0, 1.0, 1.0]))
    assert values == {"accuracy": 0.75, "majority": 0.5, "legacy": 1.0}, "a tie is no majority"


def test_an_ensemble_of_copies_is_as_sufficient_as_the_model():
    """Property 16: the common factor weight**2 cancels in the normalised map."""
    model, (x, y, masks) = pinet(), images()
    ensemble = Ensemble([model, copy.deepcopy(model), copy.deepcopy(model)]).eval()
    alone, together = mars(model, own_scores, x, y, masks), mars(ensemble, own_scores, x, y, masks)
    assert set(together["recursive"].values()) == {alone["recursive"]["accuracy"]}
    for strategy in ("naive", "optimal"):
        assert together[strategy] == pytest.approx(alone[strategy], rel=1e-5), strategy


# ----------------------------------------------------------------------------------- any network, any classes


def test_a_network_that_returns_a_tensor_is_reported_like_one_that_returns_more():
    x, y, masks = images()
    bare, explainer = plain(1), attribution.explainer("input_x_gradient")
    logits = bare(x).detach()[:, 0]
    wrapped = nn.Sequential(bare, nn.Flatten(0)).eval()  # [N], as PiNets have it
    assert torch.equal(predict(bare, x), logits) and torch.equal(predict(wrapped, x), logits)
    report = mars(bare, explainer, x, y, masks, (x, masks))
    assert report == mars(wrapped, explainer, x, y, masks, (x, masks))
    assert report["accuracy"] == ((logits > 0) == (y > 0)).double().mean().item()


def test_several_classes_are_counted_and_explained_by_the_highest_logit():
    x, y, masks = three_classes()
    model, explainer = plain(3), attribution.explainer("input_x_gradient")
    logits = model(x).detach()
    report, predicted = mars(model, explainer, x, y, masks), logits.argmax(1)
    assert report["accuracy"] == sum(row.index(max(row)) == k for row, k in zip(logits.tolist(), y, strict=True)) / 30
    heat = explainer(model, x, predicted)
    assert torch.allclose(explain(model, explainer, x, batch_size=7).heat, heat, atol=1e-6)
    again = model((heat / heat.max()).abs()[:, None] * x).argmax(1)
    assert report["recursive"] == {"accuracy": (again == y).double().mean().item()}
    assert report["shift"] == report["accuracy"] - report["recursive"]["accuracy"]


@pytest.mark.parametrize("look", ["hard", "soft"])
def test_a_pinet_of_three_classes_is_aligned_class_by_class(look):
    x, y, masks = three_classes()
    model = pinet(maps=3, aggregator=ScaledSum(3), second_look=look)
    with torch.no_grad():
        model.aggregator.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        model.aggregator.bias -= model(x).logits.mean(0)  # so that no class is predicted for all images
    output, report = model(x), mars(model, own_scores, x, y, masks)
    predicted = output.logits.argmax(1)
    assert len(predicted.unique()) > 1, "one read-out would do"
    assert report["alignment_residual"] < 1e-5, "but for rounding"
    logits, heat = explain(model, own_scores, x)
    assert torch.equal(heat, output.scores[torch.arange(30), predicted])
    assert alignment_residual(model, logits, heat[torch.randperm(30)], x) > 1e-3, "the maps of other images"


def test_members_vote_for_classes():
    members = [Votes([[2.0, 0.0, 1.0]]), Votes([[2.0, 0.0, 1.0]]), Votes([[0.0, 0.0, 9.0]])]
    values = recursive_accuracy(Ensemble(members), torch.zeros(1, 1, 1, 1), torch.tensor([0]))
    assert values == {"accuracy": 0, "majority": 1}, "the mean logit is for 2, most members for 0"


# --------------------------------------------------------------------------------------------------- aligned


@pytest.mark.parametrize("options", [{}, {"second_look": "soft"}, {"activation": "tanh"}])
def test_a_pinet_leaves_no_variance_unexplained(options):
    model, (x, y, masks) = pinet(**options), images()
    assert mars(model, own_scores, x, y, masks)["alignment_residual"] < 1e-6


def test_neither_does_an_ensemble():
    x, y, masks = images()
    assert mars(Ensemble([pinet(0), pinet(1)]).eval(), own_scores, x, y, masks)["alignment_residual"] < 1e-6


def test_neither_does_a_pinet_that_reads_other_features_or_several_maps():
    (x, y, masks), colours = images(), torch.rand(20, 3, 8, 8)
    torch.manual_seed(0)
    several = PiNet(Encoder(3, 4, 2), Decoder(8, 2, maps=3)).eval()
    for model, looked_at in ((pinet(z=torch.square), x), (several, colours)):
        report = mars(model, own_scores, looked_at, y, masks)
        assert report["alignment_residual"] < 1e-6 and report["identity_error"] < 1e-5
        logits, heat = explain(model, own_scores, looked_at)
        assert alignment_residual(model, logits, heat, looked_at) > 1e-3, "the map times x is not what it adds up"
        wrong = evaluate.added_up(model, looked_at)[1].roll(1)
        assert alignment_residual(model, logits, heat, looked_at, wrong) > 1e-3, "the sums of other images"


@pytest.mark.parametrize("make", [pinet, cnn])
def test_maps_and_predictions_are_those_of_eval_mode(make):
    model, (x, _, _) = make(), images()
    expected = explain(model, default_explainer(model), x)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = explain(model.train(), default_explainer(model), x)
    assert model.training and torch.equal(evaluate.predict(model, x), expected.logits)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.heat, expected.heat)
    if make is pinet:
        assert evaluate.identity_error(model, x) < 1e-5
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items()), "no statistics move"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: reports are compared with those of the CPU")
@pytest.mark.parametrize("make", [pinet, cnn, lambda: Ensemble([pinet(0), pinet(1)]).eval()])
def test_a_report_on_a_gpu_is_that_on_the_cpu(make):
    model, (x, y, masks) = make(), images()
    explainer = default_explainer(model)
    expected = mars(model, explainer, x, y, masks, (x, masks))
    for others in ("cpu", "cuda"):
        given = [tensor.to(others) for tensor in (y, masks)]
        report = mars(model.cuda(), explainer, x.cuda(), *given, (x.cuda(), masks.to(others)))
        for entry in ("accuracy", "scale", "naive", "optimal", "validated", "recursive"):
            assert report[entry] == pytest.approx(expected[entry], abs=1e-3), entry


@pytest.mark.parametrize("part", ["test", "validation"])
def test_masks_are_one_an_image(part):
    model, (x, y, masks) = pinet(), images()
    several = masks.expand(-1, 3, -1, -1)
    given = (several, (x, masks)) if part == "test" else (masks, (x, several))
    with pytest.raises(ValueError, match=rf"expected {part} masks \[N, 1, H, W\], one an image, not \[20, 3, 8, 8\]"):
        mars(model, own_scores, x, y, *given)


@pytest.mark.parametrize("shift", [0.5, -0.5])
def test_the_identity_error_tells_a_logit_that_is_too_high_and_one_that_is_too_low(shift):
    class Shifted(PiNet):
        def forward(self, x):
            output = super().forward(x)
            return output._replace(logits=output.logits + shift)

    model, (x, _, _) = pinet(), images()
    assert evaluate.identity_error(model, x) < 1e-5
    model.__class__ = Shifted
    with torch.no_grad():
        expected = max(0.5 / max(1.0, abs(logit)) for logit in model(x).logits.tolist())
    assert evaluate.identity_error(model, x, batch_size=7) == pytest.approx(expected, rel=1e-4)


def test_grad_cam_leaves_some():
    model, (x, y, masks) = cnn(), images()
    assert mars(model, default_explainer(model), x, y, masks)["alignment_residual"] > 0.01


def test_neither_is_another_map_an_aligned_explanation_of_a_pinet():
    """Only the map that was added up is: the residual sees through a map that merely looks alike."""
    model, (x, _, _) = pinet(), images()
    logits, heat = explain(model, own_scores, x)
    assert alignment_residual(model, logits, heat**2, x) > 1e-3
    assert alignment_residual(model, logits, heat[torch.randperm(20)], x) > 1e-3


def test_the_residual_is_what_a_least_squares_line_leaves():
    model, (x, _, _) = cnn(), images()
    logits, heat = explain(model, default_explainer(model), x)
    left = []
    for total in (heat.sum((1, 2)), (heat * x[:, 0]).sum((1, 2))):
        total, wanted = total.double().numpy(), logits.double().numpy()
        line = np.polyval(np.polyfit(total, wanted, 1), total)
        left.append(((wanted - line) ** 2).sum() / ((wanted - wanted.mean()) ** 2).sum())
    assert alignment_residual(model, logits, heat, x) == pytest.approx(min(left), rel=1e-6)
    soft = pinet(second_look="soft")
    assert alignment_residual(soft, logits, heat, x) == pytest.approx(left[0], rel=1e-6), "read as the model reads it"
    assert alignment_residual(pinet(), logits, heat, x) == pytest.approx(left[1], rel=1e-6)


def test_equal_logits_need_no_explanation():
    model, (x, _, _) = pinet(), images()
    heat = explain(model, own_scores, x).heat
    assert alignment_residual(model, torch.full((20,), 3.0), heat, x) == 0
    assert alignment_residual(model, torch.arange(20.0), torch.zeros(20, 8, 8), x) == 1, "an empty map explains nothing"


def test_a_line_through_two_images_says_nothing():
    x, logits = torch.rand(3, 1, 4, 4), torch.tensor([1.0, -2.0, 0.5])
    assert math.isnan(alignment_residual(pinet(), logits[:2], x[:2, 0], x[:2]))
    assert 0 < alignment_residual(pinet(), logits, x[:, 0], x) <= 1
    assert math.isnan(alignment_residual(pinet(), torch.eye(3), x[:, 0], x)), "an image a class"


def test_levels_of_satisfaction_are_the_published_ones():
    assert evaluate.LEVELS == (0.5, 0.75, 0.9)
