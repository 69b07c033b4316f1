"""Explanations against finite differences, completeness and a loop by hand, their scaling, and what reaches weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import attribution, runtime
from helpers.config import ConfigError
from helpers.metrics.base import explained
from helpers.self_explaining import explanations
from helpers.self_explaining.explanations import as_explainer, explain, peaks, post, raw
from helpers.self_explaining.models import MLP, Net1
from helpers.self_explaining.presets import Explanation

METHODS = ("input_x_gradient", "integrated_gradient", "input_x_integrated_gradient", "gradcam", "input")
SCALED = ("input_x_gradient", "integrated_gradient")  # by a maximum, and by nothing else


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def small(channels=1, dtype=torch.float64):
    with runtime.seeded(0, "init"):
        return Net1(channels, widths=(4, 6), hidden=16).to(dtype)


def images(count=6, channels=1, dtype=torch.float64):
    """Normalised, as MNIST's: two thirds background."""
    noise = torch.rand(count, channels, 28, 28, generator=runtime.generator(0, "images"), dtype=dtype)
    return ((noise - 2 / 3).clamp(min=0) * 3 - 0.1307) / 0.3081, torch.arange(count) % 10


def options(mode="input_x_gradient", **changes):
    return Explanation(mode=mode, **{"steps": 4, **changes})


class Linear(nn.Module):
    """Whose output is linear in x, whatever log-probabilities are."""

    def __init__(self, pixels=784, classes=10):
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(classes, pixels, generator=runtime.generator(0, "w"), dtype=torch.float64)
        )

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


class Toy(nn.Module):
    """One convolution and the sum of what is positive."""

    def __init__(self):
        super().__init__()
        self.target_layer = nn.Conv2d(1, 3, 2).double()
        self.weight = nn.Parameter(torch.arange(6.0, dtype=torch.float64).view(2, 3) - 2)

    def forward(self, x):
        return F.log_softmax(F.relu(self.target_layer(x), inplace=True).mean((2, 3)) @ self.weight.T, 1)


# ------------------------------------------------------------------------------------------------ raw attributions


@pytest.mark.parametrize("target", ["logprob", "logit"])
def test_input_x_gradient_is_x_times_a_finite_difference(target):
    """Property 2."""
    net, (x, y), h = small(), images(2), 1e-5
    score = net if target == "logprob" else net.logits
    a = raw(net, x, y, options(target=target))
    for pixel in [(0, 0), (5, 17), (14, 14), (27, 3)]:
        step = torch.zeros_like(x)
        step[:, 0, *pixel] = h
        with torch.no_grad():
            slope = ((score(x + step) - score(x - step)) / (2 * h)).gather(1, y[:, None])[:, 0]
        assert (a[:, 0, *pixel] - x[:, 0, *pixel] * slope).abs().max() < 1e-9


def gap(net, x, y, steps):
    """Mean of |sum A - (f(x) - f(0))|, and of |f(x) - f(0)|."""
    a = raw(net, x, y, options("integrated_gradient", steps=steps))
    with torch.no_grad():
        delta = (net(x) - net(torch.zeros_like(x))).gather(1, y[:, None])[:, 0]
    return float((a.flatten(1).sum(1) - delta).abs().mean()), float(delta.abs().mean())


def test_integrated_gradients_are_complete():
    """Property 3, of a net that has kinks on the way from 0 to x."""
    net, (x, y) = small(), images()
    with torch.no_grad():
        for weight in net.parameters():
            weight *= 3
    coarse, fine = gap(net, x, y, 2), gap(net, x, y, 50)
    assert fine[0] < 0.05 * fine[1] and fine[0] < coarse[0] / 2


def test_integrated_gradients_of_a_linear_model_are_exact():
    net, (x, y) = Linear(), images()
    a = raw(net, x, y, options("integrated_gradient", steps=1))
    assert torch.allclose(a, x * net.weight[y].view_as(x)) and gap(net, x, y, 1)[0] < 1e-10


@pytest.mark.parametrize("channels", [1, 3])
def test_values_are_those_of_the_houses_own_methods(channels):
    """Of Captum's integrated gradients, with the original's number of nodes."""
    net, (x, y) = small(channels), images(3, channels)
    theirs = attribution.input_x_gradient(net, x, y), attribution.integrated_gradients(net, x, y, steps=50)
    ours = raw(net, x, y, options()), raw(net, x, y, options("integrated_gradient", steps=50))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one.sum(1), other, rtol=1e-4, atol=1e-9)


def test_nodes_are_summed_the_same_however_many_go_through_at_once(monkeypatch):
    net, (x, y) = small(), images()
    together = raw(net, x, y, options("integrated_gradient", steps=7))
    monkeypatch.setattr(explanations, "AT_ONCE", 2 * len(x))
    assert torch.allclose(raw(net, x, y, options("integrated_gradient", steps=7)), together, rtol=1e-12)


def test_gradcam_is_the_loop_of_its_definition():
    """Property 5, on a net with a ReLU that works in place."""
    net, x, y = Toy(), images(3)[0][..., :5, :5], torch.tensor([0, 1, 1])
    a = raw(net, x, y, options("gradcam"))
    assert a.shape == (3, 1, 4, 4)
    for image, label, found in zip(x, y, a, strict=True):
        activations = net.target_layer(image[None]).detach()[0].requires_grad_()
        score = F.log_softmax(activations.relu().mean((1, 2)) @ net.weight.T, 0)[label]
        slopes = torch.autograd.grad(score, activations)[0]
        by_hand = sum(slopes[c].mean() * activations[c] for c in range(3))
        assert torch.allclose(found[0], by_hand.detach(), atol=1e-12)


def test_gradcam_has_its_layers_size_and_is_enlarged_by_repeating():
    """Property 5."""
    net, (x, y) = small(), images()
    a, e = raw(net, x, y, options("gradcam")), explain(net, x, y, options("gradcam"))
    assert a.shape == (6, 1, 24, 24) and e.shape == x.shape
    assert e.min() == 0 and 0.9 < e.amax((1, 2, 3)).min() and e.max() < 1
    shifted = a - a.amin((2, 3), keepdim=True)
    small_map = shifted / (shifted.amax((2, 3), keepdim=True) + 1e-6)
    rows = torch.arange(28) * 24 // 28
    assert torch.allclose(e, small_map[:, :, rows][..., rows], atol=1e-12)
    assert torch.equal(explain(net, x, y, options("gradcam", norm="sample")), e)


def test_gradcam_needs_a_convolution():
    with pytest.raises(ConfigError, match="MLP does not say which convolution .* target_layer"):
        raw(MLP(), *images(2, dtype=torch.float32), options("gradcam"))


# -------------------------------------------------------------------------------------------------------- scaling


@pytest.mark.parametrize("mode", SCALED)
@pytest.mark.parametrize("norm", ["batch", "sample"])
def test_maps_are_between_zero_and_one_and_zero_where_nothing_speaks_for_the_class(mode, norm):
    """Property 4."""
    net, (x, y) = small(), images()
    a, e = raw(net, x, y, options(mode)), explain(net, x, y, options(mode, norm=norm))
    assert e.min() == 0 and torch.equal(e == 0, a <= 0)
    assert (e.amax((1, 2, 3)) == 1).sum() == (1 if norm == "batch" else len(x)) and e.max() == 1


def test_without_a_norm_only_what_is_negative_is_dropped():
    net, (x, y) = small(), images()
    assert torch.equal(explain(net, x, y, options(norm="none")), raw(net, x, y, options()).relu())


@pytest.mark.parametrize("mode", METHODS)
def test_a_stack_of_batches_is_each_batch_by_itself(mode):
    net, (x, y) = small(), images(6)
    together = explain(net, x, y, options(mode), batches=3)
    alone = [explain(net, *batch, options(mode)) for batch in zip(x.split(2), y.split(2), strict=True)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-12)
    if mode in SCALED:
        assert not torch.allclose(together, explain(net, x, y, options(mode)))


def test_maxima_can_be_given_so_that_a_batch_is_scaled_in_parts():
    net, (x, y) = small(), images(6)
    a, whole = raw(net, x, y, options()), explain(net, x, y, options(), batches=2)
    maxima = peaks(a, options(), batches=2)
    parts = [post(a[i : i + 1], options(), x[i : i + 1], maxima[i // 3, None]) for i in range(6)]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-15)


def test_integrated_gradients_times_x_is_the_finished_map_times_x():
    net, (x, y) = small(), images()
    e = explain(net, x, y, options("integrated_gradient"))
    assert torch.equal(explain(net, x, y, options("input_x_integrated_gradient")), e * x)
    assert (e * x).min() < 0


@pytest.mark.parametrize("mode", METHODS)
@pytest.mark.parametrize("norm", ["batch", "sample", "none"])
@pytest.mark.parametrize("sure", [False, True])
def test_a_net_that_has_nothing_to_say_gives_finite_maps_and_gradients(mode, norm, sure):
    """Property 4: weights of zero, or so sure of the class that its probability is 1 and no pixel matters."""
    net, (x, _) = small(dtype=torch.float32), images(4, dtype=torch.float32)
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(sure)
        net.fc2.bias[5] = 1e4 * sure
    e = explain(net, x, torch.full((4,), 5), options(mode, norm=norm), graph=True)
    assert e.isfinite().all() and (mode == "input" or not e.any())
    if mode != "input":
        gradients = torch.autograd.grad(e.square().sum(), list(net.parameters()), allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients)


def test_a_batch_of_negative_attributions_is_zero():
    a, x = -torch.rand(3, 1, 28, 28), images(3, dtype=torch.float32)[0]
    for norm in ("batch", "sample", "none"):
        assert not post(a, options(norm=norm), x).any()


# ------------------------------------------------------------------------------------------------- what may be asked


@pytest.mark.parametrize("mode", METHODS)
def test_colour_images_have_maps_of_their_shape(mode):
    net, (x, y) = small(3), images(4, 3)
    e = explain(net, x, y, options(mode))
    assert e.shape == x.shape and e.isfinite().all()
    if mode == "gradcam":
        assert torch.equal(e[:, 0], e[:, 1]) and torch.equal(e[:, 0], e[:, 2])


@pytest.mark.parametrize("mode", METHODS)
def test_without_a_graph_a_map_is_detached_and_the_net_is_left_as_found(mode):
    net, (x, y) = small(), images()
    before = x.clone()
    net.train()
    with torch.no_grad():
        e = explain(net, x, y, options(mode))
    with torch.inference_mode():
        again = explain(net, x.clone(), y, options(mode))
    assert not e.requires_grad and torch.equal(e, again) and torch.equal(x, before) and not x.requires_grad
    assert net.training and not net.conv2._forward_hooks and all(w.grad is None for w in net.parameters())
    with_graph = explain(net, x, y, options(mode), graph=True)
    assert torch.equal(e, with_graph) and with_graph.requires_grad == (mode != "input")


def test_dropout_has_no_part_in_a_map():
    net, (x, y) = MLP().train(), images(3, dtype=torch.float32)
    state = torch.get_rng_state()
    assert torch.equal(explain(net, x, y, options()), explain(net, x, y, options()))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_does_not_fit_is_refused():
    net, (x, y) = small(), images()
    for wrong in [(x[0], y), (x, y[:2]), (x[:0], y[:0]), (x.long(), y)]:
        with pytest.raises(ValueError, match="a class for each image"):
            explain(net, *wrong, options())
    with pytest.raises(ValueError, match="6 maps are no 4 batches"):
        explain(net, x, y, options(), batches=4)
    with pytest.raises(ValueError, match="6 maps are no 0 batches"):
        explain(net, x, y, options(), batches=0)


def test_the_metrics_of_the_house_take_these_maps():
    net, (x, y) = small(dtype=torch.float32), images(4, 1, torch.float32)
    heat = explained(as_explainer(options(norm="sample")), net, x, y, batch=3)
    assert torch.allclose(heat.float(), explain(net, x, y, options(norm="sample"))[:, 0], atol=1e-5)


# --------------------------------------------------------------------------------------- what reaches the weights


def weight_gradients(mode, norm="batch", **changes):
    """Of a critic's loss with respect to each of the learner's eight tensors; None where there is no way."""
    net, (x, y) = small(), images()
    with runtime.seeded(0, "critic"):
        critic = Net1(widths=(4, 6), hidden=16).double()
    e = explain(net, x, y, options(mode, norm=norm, **changes), graph=True, batches=2)
    loss = F.nll_loss(critic(e), y)
    return torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)


@pytest.mark.parametrize("norm", ["batch", "sample", "none"])
@pytest.mark.parametrize("mode", ["input_x_gradient", "integrated_gradient", "input_x_integrated_gradient", "gradcam"])
def test_the_critics_loss_reaches_every_weight_of_the_learner(mode, norm):
    """Property 6."""
    gradients = weight_gradients(mode, norm)
    assert len(gradients) == 8 and all(g is not None and g.isfinite().all() and g.any() for g in gradients)


def test_the_logit_leaves_biases_alone():
    conv1, conv1_bias, _, conv2_bias, _, fc1_bias, fc2, fc2_bias = weight_gradients("input_x_gradient", target="logit")
    assert conv1.any() and fc2.any() and fc2_bias is None
    assert not any(bias is not None and bias.any() for bias in (conv1_bias, conv2_bias, fc1_bias))


def test_constant_gradcam_weights_teach_the_convolutions_alone():
    differentiated = weight_gradients("gradcam")
    constant = weight_gradients("gradcam", gradcam_weights="constant")
    assert all(g.any() for g in constant[:4]) and constant[4:] == (None,) * 4
    assert not torch.allclose(constant[0], differentiated[0])


def test_the_image_itself_teaches_nothing():
    """Property 6."""
    net, (x, y) = small(), images()
    e = explain(net, x, y, options("input"), graph=True)
    assert torch.equal(e, x) and not e.requires_grad


@pytest.mark.parametrize("changes", [
    {"mode": "input_x_gradient"}, {"mode": "input_x_gradient", "norm": "sample"},
    {"mode": "input_x_gradient", "target": "logit"}, {"mode": "input_x_integrated_gradient", "steps": 3},
    {"mode": "gradcam"},
])  # fmt: skip
def test_maps_have_the_gradient_of_a_finite_difference(changes):
    """The maximum that divides is differentiated too."""
    net, (x, y) = small(), images(4)
    projection = torch.randn(x.shape, generator=runtime.generator(0, "projection"), dtype=x.dtype)
    chosen = options(**changes)
    weights = [net.conv1.weight, net.conv2.weight, net.fc1.weight, net.fc2.weight]

    def value(graph=False):
        return (explain(net, x, y, chosen, graph=graph, batches=2) * projection).sum()

    analytic = torch.autograd.grad(value(graph=True), weights)
    for weight, gradient in zip(weights, analytic, strict=True):
        place, ends = int(gradient.abs().argmax()), []
        with torch.no_grad():
            for step in (1e-6, -2e-6, 1e-6):
                weight.view(-1)[place] += step
                ends.append(float(value()))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(gradient.flatten()[place]), rel=1e-4)
