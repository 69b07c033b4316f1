"""The method does what the paper says: the critic's loss, and nothing else, reaches the learner through its maps (spec
cnn_lsx, sections 4.2, 4.3, 10 and properties 7 to 13, 21 of section 12)."""

import copy
import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import runtime
from helpers.config import ConfigError
from helpers.self_explaining import derivatives, explanations, lsx, models
from helpers.self_explaining.critics import adadelta
from helpers.self_explaining.explanations import explain
from helpers.self_explaining.feedback import feedback
from helpers.self_explaining.models import Net1, build
from helpers.self_explaining.presets import Explanation, SelfExplainingStudy
from helpers.self_explaining.sets import sets
from helpers.self_explaining.together import Together

pytestmark = pytest.mark.usefixtures("one_thread")
MODES = ("input_x_gradient", "integrated_gradient", "input_x_integrated_gradient", "gradcam", "input")
N, B = 3, 6  # critic batches, and images in each


@pytest.fixture(autouse=True)
def tiny_networks(monkeypatch):
    monkeypatch.setitem(models.MODELS, "Tiny", lambda channels, classes: Net1(channels, classes, (4, 6), 8))
    monkeypatch.setitem(
        models.MODELS, "Tiny64", lambda channels, classes: models.build("Tiny", channels, classes).double()
    )


def tiny(*names, dtype=torch.float64):
    """A small Net1, another one for other names."""
    with runtime.seeded(0, *names):
        return build("Tiny", 1, 10).to(dtype)


def images(*shape, dtype=torch.float64):
    """(x [*shape, 1, 28, 28], y [*shape]): noise around MNIST's range, and random classes."""
    draws = runtime.generator(0, "images", *shape)
    x = 3 * torch.rand(*shape, 1, 28, 28, generator=draws) - 0.4
    return x.to(dtype), torch.randint(10, shape, generator=draws)


def critique(dtype=torch.float32, **options):
    x, y = images(N, B, dtype=dtype)
    settings = {"options": Explanation(steps=3), "critic": "Tiny", "n_classes": 10, "seeds": (0,)}
    return lsx.Critique(x=x[None], y=y[None], shown=y[None], **settings | options)


@dataclass
class Data:
    """What a critique needs of `Sets`."""

    critic_x: torch.Tensor
    critic_y: torch.Tensor
    n_classes: int = 10
    class_weights: torch.Tensor | None = None


def train_on(net, held, x, y):
    """The losses of learner steps on x [steps, B, ...]."""
    optimizer = torch.optim.Adadelta(net.parameters(), 0.3)
    return [
        lsx.joint_step(net, optimizer, batch, held, step, lambda_e=10.0)
        for step, batch in enumerate(zip(x, y, strict=True))
    ]


def distance(ours, reference):
    """Of two lists of tensors, relative to the second; 0 if both are zero."""
    one, other = (torch.cat([g.flatten() for g in gradients]) for gradients in (ours, reference))
    return ((one - other).norm() / other.norm().clamp(min=1e-300)).item()


def same(net, state):
    return all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


# ------------------------------------------------------------------------------------------------------- feedback


@pytest.mark.parametrize("mode", ["input_x_gradient", "integrated_gradient", "gradcam"])
@pytest.mark.parametrize("norm", ["batch", "sample"])
def test_the_gradient_is_that_of_the_critics_mean_loss_with_its_weights_held_fast(mode, norm):
    """Against central differences of single weights of every tensor (property 7)."""
    learner, critic, (x, y) = tiny("learner"), tiny("critic"), images(N, B)
    options, order = Explanation(mode=mode, norm=norm, steps=3), torch.tensor([2, 0, 1])
    found, reflection = feedback(learner, critic, x, y, options, learning_rate=0.5, order=order)

    trajectory, optimizer = {}, torch.optim.Adadelta(critic.parameters(), 0.5)
    for j in order.tolist():
        trajectory[j] = copy.deepcopy(critic)
        optimizer.zero_grad()
        F.cross_entropy(critic(explain(learner, x[j], y[j], options)), y[j]).backward()
        optimizer.step()

    def mean_loss():
        losses = [F.cross_entropy(net(explain(learner, x[j], y[j], options)), y[j]) for j, net in trajectory.items()]
        return float(sum(loss.detach() for loss in losses) / N)

    assert mean_loss() == pytest.approx(float(reflection.losses.mean()), rel=1e-12)
    for parameter, gradient in zip(learner.parameters(), found, strict=True):
        largest = int(gradient.abs().argmax())
        values, h = [], 1e-7  # small, for not to cross one of the kinks
        for sign in (1, -1):
            parameter.data.view(-1)[largest] += sign * h
            values.append(mean_loss())
            parameter.data.view(-1)[largest] -= sign * h
        measured, expected = (values[0] - values[1]) / (2 * h), float(gradient.flatten()[largest])
        assert abs(expected) > 1e-8 and measured == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("mode, norm", [*((mode, "batch") for mode in MODES), *((MODES[i], "sample") for i in (0, 1)),
                                        (MODES[0], "none")])  # fmt: skip
def test_all_ways_back_give_the_same_gradient(mode, norm):
    """The plain one, a second-order pass a batch; one product, of graphs that were kept or made again; and derivatives
    in a direction (property 8)."""
    learner, critic, (x, y) = tiny("learner"), tiny("critic"), images(N, B)
    options, order = Explanation(mode=mode, norm=norm, steps=3), torch.tensor([1, 2, 0])
    given = {"learning_rate": 0.5, "order": order, "weight": 7.0, "class_weights": torch.linspace(0.5, 2, 10).double()}
    expected, plain = feedback(learner, critic, x, y, options, way="batches", **given)
    assert (distance(expected, [torch.zeros_like(g) for g in expected]) > 0) == (mode != "input")
    for way, chunk in (("vjp", 100), ("vjp", B), ("jvp", 100), ("jvp", B)):
        ours, reflection = feedback(learner, critic, x, y, options, way=way, chunk=chunk, **given)
        assert distance(ours, expected) <= 1e-9
        torch.testing.assert_close(reflection.losses, plain.losses, rtol=1e-12, atol=1e-12)
        for name, value in plain.critic.items():
            torch.testing.assert_close(reflection.critic[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("way", ["vjp", "jvp"])
def test_in_single_precision_too(way):
    learner, critic = (tiny(name, dtype=torch.float32) for name in ("learner", "critic"))
    x, y = images(N, B, dtype=torch.float32)
    expected, _ = feedback(learner, critic, x, y, Explanation(), learning_rate=0.5, way="batches")
    assert distance(feedback(learner, critic, x, y, Explanation(), learning_rate=0.5, way=way)[0], expected) <= 1e-4


@pytest.mark.parametrize("name", ["SimpleConvNet", "MLP", "MedNet1"])
def test_every_net_learns_from_every_other(name):
    """Pooling by maxima, dropout (which explanations do without) and colours."""
    channels = 3 if name == "MedNet1" else 1
    with runtime.seeded(0, name):
        learner, critic = build(name, channels, 4).double(), build("MLP", channels, 4).double().eval()
    x, y = (t[:2, :3] for t in images(N, B))
    x, y = x.repeat(1, 1, channels, 1, 1) * torch.linspace(0.5, 1, channels).double()[:, None, None], y % 4
    learned = [
        feedback(learner, critic, x, y, Explanation(), learning_rate=0.5, way=way)[0] for way in ("vjp", "batches")
    ]
    assert distance(*learned) <= 1e-9 and all(g.isfinite().all() and g.any() for g in learned[0])


def test_it_is_linear_in_its_weight():
    """Property 11."""
    learner, critic, (x, y) = tiny("learner"), tiny("critic"), images(N, B)
    once, twice = (feedback(learner, critic, x, y, Explanation(), learning_rate=0.5, weight=w)[0] for w in (1.0, 2.0))
    assert distance([2 * g for g in once], twice) <= 1e-12


def test_equal_batches_count_as_one_for_a_critic_that_does_not_learn():
    """Property 11: the loss is a mean over batches."""
    learner, critic, (x, y) = tiny("learner"), tiny("critic"), images(1, B)
    one, many = (
        feedback(learner, critic, x.expand(n, -1, -1, -1, -1), y.expand(n, -1), Explanation(), learning_rate=0.0)[0]
        for n in (1, 4)
    )
    assert distance(many, one) <= 1e-12
    moving = feedback(learner, critic, x.expand(4, -1, -1, -1, -1), y.expand(4, -1), Explanation(), learning_rate=0.5)[
        0
    ]
    assert distance(moving, one) > 1e-3


# -------------------------------------------------------------------------------------------------------- critics


def test_the_critic_takes_the_steps_of_torchs_adadelta():
    weights, reference = (torch.randn(70_001, generator=runtime.generator(0, "w")) for _ in range(2))
    optimizer, moments = torch.optim.Adadelta([reference], 0.2), (torch.zeros(70_001), torch.zeros(70_001))
    for step in range(4):
        reference.grad = torch.randn(70_001, generator=runtime.generator(0, "g", step)) * 10.0 ** (-step)
        optimizer.step()
        adadelta(weights, reference.grad, moments, 0.2)
        torch.testing.assert_close(weights, reference, rtol=1e-6, atol=1e-9)


def test_reflecting_touches_nothing_but_its_own_critic():
    """Weights, moments and random draws of the learner, and the critic that it started from (property 9)."""
    learner = tiny("learner", dtype=torch.float32)
    optimizer = torch.optim.Adadelta(learner.parameters(), 0.1)
    learner(images(4, dtype=torch.float32)[0]).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    moments = [copy.deepcopy(own) for own in optimizer.state.values()]
    before, drawn, held = copy.deepcopy(learner.state_dict()), torch.get_rng_state(), critique()
    gradients, losses = held.feedback(learner, 0)
    assert same(learner, before) and torch.equal(torch.get_rng_state(), drawn)
    after = optimizer.state.values()
    assert moments and all(torch.equal(a[n], b[n]) for a, b in zip(moments, after, strict=True) for n in a)
    assert all(parameter.grad is None for parameter in learner.parameters())
    assert abs(float(losses[0]) - math.log(10)) < 0.1

    critic = lsx.fresh_critic("Tiny", 1, 10, 0, 0)
    state = copy.deepcopy(critic.state_dict())
    reflection = lsx.reflect(critic, held.x[0], held.y[0], learning_rate=1.0, gradients=False)
    assert same(critic, state) and reflection.gradients is None
    assert not any(torch.equal(value, state[name]) for name, value in reflection.critic.items())


def test_every_step_has_a_critic_of_its_own_and_every_run_the_same_ones():
    """Property 9; it meets the same batches in another order."""
    states = [
        lsx.fresh_critic("Tiny", 1, 10, seed, step).state_dict() for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    equal = [all(torch.equal(states[0][name], state[name]) for name in state) for state in states]
    assert equal == [True, True, False, False]
    orders = [lsx.order(seed, step, 9).tolist() for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert orders[0] == orders[1] and orders[2] != orders[0] != orders[3]
    assert all(sorted(order) == list(range(9)) for order in orders)


def test_losses_follow_the_order_and_gradients_the_batches():
    (x, y), critic, order = images(N, B), tiny("critic"), torch.tensor([2, 0, 1])
    reflection = lsx.reflect(critic, x, y, learning_rate=0.5, order=order)
    first = x[2].clone().requires_grad_()
    loss = F.cross_entropy(critic(first), y[2])
    assert float(reflection.losses[0]) == pytest.approx(float(loss.detach()), rel=1e-12)
    torch.testing.assert_close(reflection.gradients[2], torch.autograd.grad(loss, first)[0], rtol=1e-9, atol=1e-15)
    straight = lsx.reflect(critic, x[order], y[order], learning_rate=0.5)
    assert torch.equal(straight.gradients, reflection.gradients[order])


def test_a_critic_can_be_shown_wrong_labels():
    """``rand_critic``: the same labels, elsewhere; what is explained stays the truth."""
    data = sets(SelfExplainingStudy(dataset="digits", n_critic_batches=4, batch_size_critic=8), 0)
    plain, mixed = (
        lsx.critique(SelfExplainingStudy(dataset="digits", model="MLP", rand_critic=flag), data, 0)
        for flag in (False, True)
    )
    assert torch.equal(plain.shown, plain.y) and torch.equal(mixed.y, plain.y)
    assert not torch.equal(mixed.shown, mixed.y) and mixed.shown.shape == mixed.y.shape
    assert torch.equal(mixed.shown.flatten().sort().values, mixed.y.flatten().sort().values)
    with runtime.seeded(0, "learner"):
        learner = build("MLP", 1, 10)
    losses = [held.feedback(learner, 0)[1] for held in (plain, mixed)]
    assert not torch.equal(*losses)


def test_wrong_shapes_are_refused():
    (x, y), critic = images(N, B), tiny("critic")
    for maps, labels in ((x[0], y[0]), (x, y[:, :-1]), (x[:0], y[:0])):
        with pytest.raises(ValueError, match=r"expected maps \[N, b, C, H, W\]"):
            lsx.reflect(critic, maps, labels, learning_rate=0.5)
    for order in (torch.tensor([1, 0]), torch.arange(N)[None]):
        with pytest.raises(ValueError, match=f"an order of the {N} batches"):
            lsx.reflect(critic, x, y, learning_rate=0.5, order=order)


# -------------------------------------------------------------------------------------------------- learner steps


def train(lambda_e, held, steps=3, lambda_c=2.0):
    learner = tiny("learner", dtype=torch.float32)
    optimizer = torch.optim.Adadelta(learner.parameters(), 0.3)
    x, y = images(4 * steps, dtype=torch.float32)
    for step in range(steps):
        rows = slice(4 * step, 4 * step + 4)
        losses = lsx.joint_step(
            learner, optimizer, (x[rows], y[rows]), held, step, lambda_c=lambda_c, lambda_e=lambda_e
        )
    return learner, losses


def plainly(steps=3, lambda_c=2.0):
    learner = tiny("learner", dtype=torch.float32)
    optimizer = torch.optim.Adadelta(learner.parameters(), 0.3)
    x, y = images(4 * steps, dtype=torch.float32)
    for step in range(steps):
        rows = slice(4 * step, 4 * step + 4)
        optimizer.zero_grad()
        (lambda_c * F.nll_loss(learner(x[rows]), y[rows])).backward()
        optimizer.step()
    return learner


def test_feedback_depends_on_its_own_step_and_learner_alone():
    """Not on what was asked of the critique before: what is recorded reads its inputs anew."""
    one, other, held = tiny("learner", dtype=torch.float32), tiny("other", dtype=torch.float32), critique()
    asked = [(one, 0, 1.0), (one, 1, 1.0), (other, 1, 1.0), (one, 1, 2.0), (one, 0, 1.0)]
    for learner, step, weight in asked:
        gradients, losses = held.feedback(learner, step, weight)
        expected, alone = critique().feedback(learner, step, weight)
        assert torch.equal(losses, alone) and all(map(torch.equal, gradients, expected))
    with torch.no_grad():
        one.fc2.bias[0] += 1.0  # in place, as optimizers do
    assert all(map(torch.equal, held.feedback(one, 0)[0], critique().feedback(one, 0)[0]))
    assert not torch.equal(held.feedback(one, 0)[1], losses)


def test_without_feedback_it_is_plain_training_to_the_bit():
    """Also where the maps would be NaN, and without a critique (property 10)."""
    broken = critique()
    broken.x[:] = math.nan
    for held in (critique(), broken, None):
        learner, losses = train(0.0, held)
        assert same(learner, plainly().state_dict()) and losses.explanation is None
        assert float(losses.total) == pytest.approx(2 * float(losses.classification))


def test_with_feedback_it_goes_elsewhere():
    learner, losses = train(50.0, critique())
    assert not same(learner, plainly().state_dict())
    assert losses.explanation.shape == (N,) and losses.explanation.isfinite().all()
    assert float(losses.total) == pytest.approx(float(2 * losses.classification + 50 * losses.explanation.mean()))


def test_the_step_is_the_sum_of_both_gradients():
    learner, held, (x, y) = tiny("learner", dtype=torch.float32), critique(), images(4, dtype=torch.float32)
    before = [parameter.detach().clone() for parameter in learner.parameters()]
    loss = 2 * F.cross_entropy(learner(x), y)
    expected = torch.autograd.grad(loss, list(learner.parameters()))
    expected = [g + e for g, e in zip(expected, held.feedback(learner, 5, 10.0)[0], strict=True)]
    lsx.joint_step(learner, torch.optim.SGD(learner.parameters(), 1.0), (x, y), held, 5, lambda_c=2.0, lambda_e=10.0)
    moved = [b - parameter.detach() for b, parameter in zip(before, learner.parameters(), strict=True)]
    assert distance(moved, expected) < 1e-5


def test_feedback_needs_somebody_to_give_it():
    with pytest.raises(ValueError, match="asks for a critique"):
        train(1.0, None)


def test_a_critic_set_that_is_not_finite_is_seen_in_the_loss():
    broken = critique()
    broken.x[0, 1, 0] = math.nan
    _, losses = train(1.0, broken, steps=1)
    assert not losses.total.isfinite() and losses.classification.isfinite()


def test_maps_without_anything_positive_teach_nothing_and_break_nothing():
    """No 0 / 0 of a learner whose maps are all zero."""
    learner = tiny("learner", dtype=torch.float32)
    nn.init.zeros_(learner.conv1.weight)
    for norm in ("batch", "sample", "none"):
        gradients, losses = critique(options=Explanation(norm=norm)).feedback(learner, 0, 50.0)
        assert losses.isfinite().all() and all(g.isfinite().all() for g in gradients)


def test_batches_of_a_single_class_are_no_special_case():
    held = critique()
    ones = torch.ones_like(held.y)
    learner, losses = train(10.0, replace(held, y=ones, shown=ones, learning_rate=1.0))
    assert losses.explanation.isfinite().all() and losses.explanation[-1] < losses.explanation[0]
    assert all(value.isfinite().all() for value in learner.state_dict().values())


# --------------------------------------------------------------------------------------------------- consolidation


def test_finetuning_without_weight_is_the_plain_loss():
    """Property 12."""
    learner, (x, y) = tiny("learner"), images(B)
    losses = lsx.finetune_loss(learner, x, y, torch.full_like(x, math.nan), Explanation(), weight=0.0)
    assert losses.explanation is None and torch.equal(losses.total, F.nll_loss(learner(x), y))


MODES_AND_OPTIONS = [{"mode": mode} for mode in MODES] + [
    {"target": "logit"}, {"steps": 1}, {"mode": "gradcam", "gradcam_weights": "constant"},
]  # fmt: skip


@pytest.mark.parametrize("options", MODES_AND_OPTIONS)
@pytest.mark.parametrize("name", ["Tiny64", "MLP"])
def test_finetuning_is_the_sum_of_its_two_losses(name, options):
    """Whether or not they share a pass of the net (spec 10, item 7), with dropout in one of them alone."""
    if name == "MLP" and options.get("mode") == "gradcam":
        return
    with runtime.seeded(0, "learner"):
        learner, (x, y), options = build(name, 1, 10).double(), images(B), Explanation(**{"steps": 3} | options)
    wanted, parameters = torch.rand_like(x), list(learner.parameters())

    with runtime.seeded(0, "dropout"):
        losses = lsx.finetune_loss(learner, x, y, wanted, options, weight=3.0)
        found = torch.autograd.grad(losses.total, parameters)
    with runtime.seeded(0, "dropout"):
        classification = F.nll_loss(learner(x), y)
    explanation = F.mse_loss(explain(learner, x, y, options, graph=True), wanted)
    assert distance(found, torch.autograd.grad(classification + 3 * explanation, parameters)) <= 1e-9
    assert distance(losses, (classification + 3 * explanation, classification, explanation)) <= 1e-9


@pytest.mark.parametrize("mode", MODES)
def test_targets_are_met_by_the_weights_that_made_them(mode):
    """In the same batches (property 12), in the order of the images whatever the order of the batches."""
    learner, (x, y), options = tiny("learner"), images(10), Explanation(mode=mode, steps=3)
    order = torch.randperm(10, generator=runtime.generator(0, "order"))
    wanted = lsx.targets(learner, x, y, options, 4, order)
    assert not wanted.requires_grad and wanted.shape == x.shape
    for rows in order.split(4):
        losses = lsx.finetune_loss(learner, x[rows], y[rows], wanted[rows], options, weight=3.0)
        assert losses.explanation.item() < 1e-20
    for wrong in (torch.arange(5), torch.zeros(10, dtype=torch.long)):
        with pytest.raises(ValueError, match="order must name each of 10 images once"):
            lsx.targets(learner, x, y, options, 4, wrong)
    if mode == "input_x_gradient":
        other = lsx.finetune_loss(tiny("other"), x, y, wanted, options, weight=3.0)
        assert other.explanation.item() > 1e-6
        assert torch.equal(other.total, other.classification + 3 * other.explanation)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(784), nn.Dropout1d(0.5), nn.AlphaDropout(0.5)])
def test_the_classification_is_of_a_net_in_training_mode_whatever_its_layers(layer):
    (x, y), options = images(12, dtype=torch.float32), Explanation()
    with runtime.seeded(0, "head"):
        learner = nn.Sequential(nn.Flatten(), copy.deepcopy(layer), nn.Linear(784, 10), nn.LogSoftmax(1)).train()
    with runtime.seeded(0, "masks"):
        plain = lsx.finetune_loss(learner, x, y, torch.zeros_like(x), options, weight=0.0).classification
    with runtime.seeded(0, "masks"):
        other = lsx.finetune_loss(learner, x, y, torch.zeros_like(x), options, weight=1e-9).classification
    torch.testing.assert_close(other, plain)


def test_finetuning_comes_closer_to_the_targets_and_leaves_them_alone():
    """Property 13."""
    teacher, learner = (tiny(name, dtype=torch.float32) for name in ("learner", "fresh"))
    (x, y), options = images(16, dtype=torch.float32), Explanation(norm="sample")
    wanted = lsx.targets(teacher, x, y, options, 16)
    kept, course = wanted.clone(), []
    optimizer = torch.optim.Adam(learner.parameters(), 3e-3)
    for _ in range(12):
        losses = lsx.finetune_loss(learner, x, y, wanted, options, weight=100.0)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        course.append(losses.explanation.item())
    assert course[-1] < 0.9 * course[0] and torch.equal(wanted, kept)


# ----------------------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "groups": 2}, {"padding": "same"}]
)
def test_convolutions_have_torchs_derivatives_of_three_orders(options):
    draws = runtime.generator(0, "convolution")
    x, w, bias = (
        torch.randn(*s, generator=draws).double().requires_grad_() for s in ((2, 4, 7, 6), (6, 4, 3, 3), (6,))
    )
    if options.get("groups"):
        w = w[:, :2].detach().requires_grad_()

    def orders():
        found, value = [], F.avg_pool2d(F.conv2d(x, w, bias, **options).tanh(), 2, stride=1)
        for _ in range(3):
            value = torch.autograd.grad(value.square().sum(), [x, w, bias], create_graph=True)
            found += value
            value = torch.cat([v.flatten() for v in value])
        return found

    expected = orders()
    with derivatives.fast():
        ours = orders()
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_only_what_is_asked_for_is_computed(monkeypatch):
    """An input gradient takes no weight gradient, and the way back to the weights none to the input."""
    taken, gradient = [], derivatives._gradient

    def spy(g, x, w, geometry, which):
        taken.append(("input", "weight")[which] + str(w.shape[1]))
        return gradient(g, x, w, geometry, which)

    monkeypatch.setattr(derivatives, "_gradient", spy)
    learner, (x, y) = tiny("learner"), images(B)
    for target, expected in (("logprob", 2), ("logit", 1)):  # of weights: beside a map, and on the way of p_y
        with derivatives.fast():
            e = explain(learner, x, y, Explanation(target=target), graph=True)
        assert taken == ["input4", "input1"]
        torch.autograd.grad(e.sum(), list(learner.parameters()), allow_unused=True)
        assert sorted(taken[2:]) == ["input4"] * (expected - 1) + ["weight1"] * expected + ["weight4"] * expected
        taken.clear()


def test_what_was_computed_inside_is_differentiated_outside():
    learner, (x, y) = tiny("learner"), images(B)
    with derivatives.fast():
        e = explanations.explain(learner, x, y, Explanation(), graph=True)
    kinds, todo = set(), [e.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in kinds:
            kinds.add(node)
            todo += [parent for parent, _ in node.next_functions]
    names = {type(node).__name__ for node in kinds}
    assert "_ToInputBackward" in names and not any(name.startswith("ConvolutionBackward") for name in names)


# -------------------------------------------------------------------------------------------------------- together


def seeds(dtype=torch.float64):
    return [tiny("learner", seed, dtype=dtype) for seed in range(3)]


@pytest.mark.parametrize("mode", ["input_x_gradient", "gradcam", "input"])
def test_nets_together_get_the_gradients_that_each_gets_alone(mode):
    nets, critics = seeds(), [tiny("critic", seed) for seed in range(3)]
    x, y = images(3, N, B)
    options, given = Explanation(mode=mode, steps=3), {"learning_rate": 0.5, "weight": 2.0}
    alone = [feedback(f, c, *one, options, **given) for f, c, *one in zip(nets, critics, x, y, strict=True)]
    rows = (t.transpose(0, 1).flatten(1, 2) for t in (x, y))
    gradients, reflection = feedback(Together(nets), Together(critics), *rows, options, **given, chunk=20)
    for member, (expected, passed) in enumerate(alone):
        assert distance([g[member] for g in gradients], expected) <= 1e-9
        torch.testing.assert_close(reflection.losses[:, member], passed.losses, rtol=1e-10, atol=1e-12)


def test_nets_together_are_trained_as_each_is_alone():
    """With their own critics, orders and images (spec 10, item 5)."""
    study, steps = SelfExplainingStudy(rand_critic=True, learning_rate_critic=0.5, model="MLP"), 2
    (x, y), (batch, labels) = images(3, N, B), images(3, steps, 4)
    data = [Data(x[seed], y[seed]) for seed in range(3)]
    nets = seeds()
    together, held = Together(nets), replace(lsx.critique(study, data, range(3)), critic="Tiny64")
    course = train_on(together, held, batch.transpose(0, 1).flatten(1, 2), labels.transpose(0, 1).flatten(1, 2))
    for member, net in enumerate(nets):
        held = replace(lsx.critique(study, data[member : member + 1], [member]), critic="Tiny64")
        alone = train_on(net, held, batch[member], labels[member])
        for one, other in zip(course, alone, strict=True):
            assert float(one.total[member]) == pytest.approx(float(other.total), rel=1e-9)
        for name, value in net.state_dict().items():
            torch.testing.assert_close(together.state(member)[name], value, rtol=1e-6, atol=1e-9)


def test_integrated_gradients_are_refused_to_nets_together():
    (x, y), together = images(N, B), Together(seeds()[:2])
    with pytest.raises(ConfigError, match="one net at a time"):
        feedback(together, together, x, y, Explanation(mode="integrated_gradient"), learning_rate=0.5)


def test_only_nets_of_one_architecture_go_together():
    for nets in ([], [tiny("one"), Net1(1, 10, (4, 6), 9)]):
        with pytest.raises(ValueError, match="of one architecture"):
            Together(nets)


# --------------------------------------------------------------------------------------------------------- it works


def test_maps_become_easier_to_learn_from(monkeypatch):
    """Property 21, the recipe of the spec on fewer images and steps: from the same pretrained weights, fresh critics
    lose less on the maps of a learner that was trained with their feedback than of one that was trained without."""
    monkeypatch.setitem(models.MODELS, "Small", lambda channels, classes: Net1(channels, classes, (8, 16), 32))
    study = SelfExplainingStudy(
        dataset="digits", few_shot_train_percent=0.5, n_critic_batches=16, batch_size_critic=32,
        explanation_norm="sample", learning_rate_critic=1.0,
    )  # fmt: skip
    data = sets(study, 0)
    held = replace(lsx.critique(study, data, 0), critic="Small")

    def learn(net, epochs, rate, lambda_e, steps=1000):
        optimizer = torch.optim.Adadelta(net.parameters(), rate)
        orders = [
            torch.randperm(len(data.y), generator=runtime.generator(0, "order", epoch)) for epoch in range(epochs)
        ]
        for step, rows in enumerate([rows for order in orders for rows in order.split(64)][:steps]):
            lsx.joint_step(net, optimizer, (data.x[rows], data.y[rows]), held, step, lambda_e=lambda_e)
        return net

    def critics_loss(net):
        x, y = data.critic_x, data.critic_y
        maps = explain(net, x.flatten(0, 1), y.flatten(), study.explanation, batches=len(x)).view_as(x)
        critics = [lsx.fresh_critic("Small", 1, 10, 99, k) for k in range(5)]
        return (
            sum(lsx.reflect(c, maps, y, learning_rate=1.0, gradients=False).losses.mean().item() for c in critics) / 5
        )

    with runtime.seeded(0, "init"):
        pretrained = learn(build("Small", 1, 10), epochs=8, rate=0.3, lambda_e=0)
    without, with_feedback = (critics_loss(learn(copy.deepcopy(pretrained), 1, 1.0, e, steps=10)) for e in (0, 30))
    assert with_feedback < without - 0.05


def test_every_critic_has_the_dropout_of_its_step():
    learner, made = tiny("learner", dtype=torch.float32), critique(critic="MLP")
    x, y = images(N, B, dtype=torch.float32)
    for step in (0, 4):
        at, critic = lsx.order(0, step, N), lsx.fresh_critic("MLP", 1, 10, 0, step)
        with runtime.seeded(0, "critic", step, "dropout"):
            _, reflection = feedback(learner, critic, x[at], y[at], made.options, learning_rate=made.learning_rate)
        torch.testing.assert_close(made.feedback(learner, step)[1], reflection.losses)
