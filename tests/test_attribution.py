"""Heat maps are what their formulas say, do not depend on the batch, and leave the model alone."""

import inspect
from collections import namedtuple
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import attribution
from helpers.attribution import METHODS, explainer
from helpers.config import ConfigError

OPTIONS = {
    "integrated_gradients": {"steps": 8},
    "smooth_grad": {"samples": 4},
    "gradient_shap": {"samples": 4, "noise": 0.1},
    "grad_cam": {"layer": "features"},
    "occlusion": {"window": 3, "stride": 2},
    "rise": {"samples": 30, "grid": 3},
    "kernel_shap": {"samples": 60, "grid": 3},
    "lime": {"samples": 40, "grid": 3},
}
CONTROLS = {"random_map", "constant_map"}
every_method = pytest.mark.parametrize("name", METHODS)


class Net(nn.Module):
    """What the methods are made for: convolutions, batch norm, ReLU, pooling, a skip, a mean, a head."""

    def __init__(self, classes=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.features = nn.ReLU()
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        h = self.stem(x)
        return self.head(self.features(h + self.block(h)).mean((2, 3)))


class Linear(nn.Module):
    """``logits_k = sum(w_k * x) + bias_k`` of 2 x 6 x 6 images."""

    def __init__(self, classes=3):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, 2, 6, 6))
        self.bias = nn.Parameter(torch.randn(classes))

    def forward(self, x):
        return torch.einsum("bchw,kchw->bk", x, self.weight) + self.bias


class Function(nn.Module):
    """A model that is just a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def net():
    model = Net().eval()
    with torch.no_grad():
        for norm in (model.stem[1], model.block[1]):
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.5, 2)
            norm.bias.normal_(std=0.3)
    return model


@pytest.fixture
def linear():
    return Linear()


@pytest.fixture
def x():
    return torch.randn(3, 2, 6, 6)


@pytest.fixture
def target():
    return torch.tensor([2, 0, 1])


def explain(name, model, x, target=None, **options):
    return explainer(name, **OPTIONS.get(name, {}) | options)(model, x, target)


def logit(model, x, target):
    return model(x)[torch.arange(len(x)), target].detach()


def state(model):
    """All that a method could leave behind."""
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "modules": [(module.training, set(vars(module)), _hooks(module)) for module in model.modules()],
        "parameters": [(p.requires_grad, p.grad) for p in model.parameters()],
    }


def _hooks(module):
    return sum(len(hooks) for name, hooks in vars(module).items() if name.endswith("_hooks"))


def same(before, after):
    weights = all(torch.equal(before["weights"][name], value) for name, value in after["weights"].items())
    return weights and all(before[part] == after[part] for part in ("modules", "parameters"))


# The contract -----------------------------------------------------------------------------------------------


@every_method
def test_a_heat_map_has_the_size_of_the_image_and_no_graph(name, net, x, target):
    heat = explain(name, net, x, target)
    assert heat.shape == (3, 6, 6) and heat.dtype == x.dtype and not heat.requires_grad


@every_method
def test_an_image_has_the_same_map_alone_and_in_a_batch(name, net, x, target):
    together = explain(name, net, x, target)
    alone = torch.cat([explain(name, net, x[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@every_method
def test_maps_repeat_to_the_bit_and_global_generators_stand_still(name, net, x, target):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = explain(name, net, x, target)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    torch.manual_seed(99)
    assert torch.equal(explain(name, net, x, target), first)


@pytest.mark.parametrize("name", [n for n in METHODS if "seed" in inspect.signature(METHODS[n]).parameters])
def test_another_seed_gives_another_map(name, net, x, target):
    first, second = (explain(name, net, x, target, seed=seed) for seed in (0, 1))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("name", ["integrated_gradients", "occlusion", "rise", "kernel_shap", "lime"])
def test_the_internal_batch_size_does_not_show(name, net, x, target):
    one, many = (explain(name, net, x, target, batch_size=size) for size in (1, 1000))
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-5)


@every_method
def test_the_model_and_the_image_are_left_as_they_were(name, net, x, target):
    net.train()
    net.block.eval()  # a frozen part
    net.head.bias.requires_grad_(False)
    before, image = state(net), x.clone().requires_grad_()
    explain(name, net, image, target)
    assert same(before, state(net))
    assert torch.equal(image, x) and image.requires_grad and image.grad is None


@pytest.mark.parametrize("name", [n for n in METHODS if n not in CONTROLS])
@pytest.mark.parametrize("calls", [0, 1])
def test_the_model_is_left_as_it_was_after_an_error(name, calls, net, x, target):
    """The last layer fails, at once or in the second forward pass, when hooks are set."""
    net.train()
    forward, left = net.head.forward, [calls]

    def failing(h):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("out of memory")
        return forward(h)

    net.head.forward = failing
    before = state(net)
    try:
        explain(name, net, x, target, **{"batch_size": 1} if name == "kernel_shap" else {})
    except RuntimeError as error:
        assert "out of memory" in str(error)
    else:
        assert calls == 1  # some methods need one pass only
    assert same(before, state(net))


@every_method
def test_a_model_in_training_mode_is_explained_in_eval_mode(name, net, x, target):
    evaluated = explain(name, net, x, target)
    assert torch.equal(explain(name, net.train(), x, target), evaluated)


@every_method
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_maps_can_be_computed_where_gradients_are_off(name, context, net, x, target):
    expected = explain(name, net, x, target)
    with context():
        assert torch.equal(explain(name, net, x.clone(), target), expected)


@every_method
def test_what_surrounds_the_logits_does_not_matter(name, x):
    net = Net(classes=1).eval()
    outputs = {
        "[B, 1]": lambda logits: logits,
        "[B]": lambda logits: logits[:, 0],
        "tuple": lambda logits: (logits[:, 0], "features", None),
        "named tuple": lambda logits: namedtuple("Output", "scores logits")("scores", logits),
        "object": lambda logits: SimpleNamespace(loss=None, logits=logits),
    }
    options = {"layer": "0.features"} if name == "grad_cam" else {}
    maps = [explain(name, nn.Sequential(net, Function(output)), x, **options) for output in outputs.values()]
    assert all(torch.equal(maps[0], other) for other in maps[1:])


@pytest.mark.parametrize("target", [None, torch.zeros(3, dtype=torch.long), torch.ones(3)])
def test_a_single_logit_ignores_the_target(target, x):
    net = Net(classes=1).eval()
    assert torch.equal(explain("gradient", net, x, target), explain("gradient", net, x))


def test_the_target_chooses_the_logit(linear, x, target):
    heat = explain("input_x_gradient", linear, x, target)
    torch.testing.assert_close(heat, (linear.weight[target] * x).sum(1))


# What is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in METHODS if n not in CONTROLS])
@pytest.mark.parametrize("bad", [[0, 1, 3], [0, -1, 2], [0.0, 1.0, 2.0], None], ids=str)
def test_a_target_that_is_no_class_is_refused(name, bad, net, x):
    target = None if bad is None else torch.tensor(bad)
    with pytest.raises(ValueError, match=r"target of 0\.\.2"):
        explain(name, net, x, target)


@every_method
def test_batches_that_cannot_be_explained_are_refused(name, net, x, target):
    with pytest.raises(ValueError, match="B > 0"):
        explain(name, net, x[:0], target[:0])
    with pytest.raises(ValueError, match="B, C, H, W"):
        explain(name, net, x[0], target[:1])
    with pytest.raises(ValueError, match="floats"):
        explain(name, net, x.long(), target)
    with pytest.raises(ValueError, match="one target per image"):
        explain(name, net, x, target[:2])


@pytest.mark.parametrize("name", [n for n in METHODS if n not in CONTROLS])
def test_logits_that_are_not_finite_are_refused(name, net, x, target):
    with torch.no_grad():
        net.head.bias[1] = torch.nan
    with pytest.raises(ValueError, match="logits are not finite"):
        explain(name, net, x, target)


def test_a_heat_map_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="heat map of gradient is not finite"):
        explain("gradient", Function(lambda x: x.sqrt().sum((1, 2, 3))), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("squeezed", [lambda x: x.sum(), lambda x: x, lambda x: x.sum((2, 3)).repeat(2, 1)])
def test_outputs_that_are_no_logits_are_refused(squeezed):
    with pytest.raises(ValueError, match="expected logits"):
        explain("gradient", Function(squeezed), torch.ones(1, 1, 2, 2))


def test_misspelt_methods_and_options_are_refused_with_near_misses():
    with pytest.raises(ConfigError, match="unknown method 'gradcam': did you mean grad_cam"):
        explainer("gradcam")
    with pytest.raises(ConfigError, match="rise has no option 'sampels': did you mean samples"):
        explainer("rise", sampels=10)
    with pytest.raises(ConfigError, match="constant_map has no option 'seed': it takes none"):
        explainer("constant_map", seed=1)
    with pytest.raises(ConfigError, match="grad_cam needs the option 'layer'"):
        explainer("grad_cam")


@every_method
def test_a_method_shows_its_signature_and_its_source(name):
    parameters = list(inspect.signature(METHODS[name]).parameters.values())
    assert [p.name for p in parameters[:3]] == ["model", "x", "target"]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[3:])
    assert name in CONTROLS or any(source in METHODS[name].__doc__ for source in ("arXiv", "doi"))


# Gradients --------------------------------------------------------------------------------------------------


def test_contributions_are_summed_and_sensitivities_show_their_largest_channel():
    values = torch.tensor([[1.0, -3.0], [2.0, 2.0]])[None, :, None]
    assert attribution.collapse(values).tolist() == [[[3.0, -1.0]]]
    assert attribution.collapse(values, signed=False).tolist() == [[[2.0, 3.0]]]


def test_the_gradient_of_a_linear_model_is_its_weight(linear, x, target):
    weight = linear.weight[target].detach()
    torch.testing.assert_close(explain("gradient", linear, x, target), weight.abs().amax(1))
    torch.testing.assert_close(explain("gradient", linear, x, target, signed=True), weight.sum(1))


@pytest.mark.parametrize("name", ["integrated_gradients", "gradient_shap", "deep_lift"])
def test_path_methods_are_exact_for_a_linear_model(name, linear, x, target):
    baseline = torch.randn(1, 2, 6, 6)
    options = {"baselines": baseline, "noise": 0.0} if name == "gradient_shap" else {"baseline": baseline}
    expected = (linear.weight[target] * (x - baseline)).sum(1).detach()
    torch.testing.assert_close(explain(name, linear, x, target, **options), expected, rtol=1e-4, atol=1e-5)


def test_integrated_gradients_sum_to_the_change_of_the_logit(net, x, target):
    change = logit(net, x, target) - logit(net, torch.full_like(x, 0.2), target)
    maps = (explain("integrated_gradients", net, x, target, steps=n, baseline=0.2) for n in (4, 400))
    rough, fine = ((heat.sum((1, 2)) - change).abs().max() for heat in maps)
    assert fine < 1e-2 * change.abs().max() and fine < rough


def test_smooth_grad_without_noise_is_the_gradient(net, x, target):
    for signed in (False, True):
        smooth = explain("smooth_grad", net, x, target, noise=0.0, signed=signed)
        torch.testing.assert_close(smooth, explain("gradient", net, x, target, signed=signed))


def test_smooth_grad_smooths_by_a_fraction_of_the_images_range():
    """``y = sum x^3``: the mean of ``3 (x + e)^2`` is ``3 (x^2 + sigma^2)``."""
    x = torch.linspace(-1, 3, 16).view(1, 1, 4, 4)
    heat = explain("smooth_grad", Function(lambda x: (x**3).sum((1, 2, 3))), x, samples=1000, noise=0.25)
    torch.testing.assert_close(heat, 3 * (x[:, 0] ** 2 + 1), rtol=0.1, atol=0.2)


def test_gradient_shap_approaches_the_mean_of_integrated_gradients_over_the_baselines():
    """``y = sum x^2``: from baseline b, integrated gradients are ``x^2 - b^2``."""
    model, x = Function(lambda x: x.square().sum((1, 2, 3))), torch.rand(2, 1, 3, 3) + 1
    baselines = torch.stack([torch.zeros(1, 3, 3), torch.ones(1, 3, 3)])
    heat = explain("gradient_shap", model, x, samples=1000, baselines=baselines, noise=0.0)
    torch.testing.assert_close(heat, x[:, 0] ** 2 - 0.5, rtol=0.1, atol=0.05)


def test_gradient_shap_adds_noise_to_the_image():
    """``y = sum x^2`` from 0: with noise of deviation 1, the mean of ``(x + e)^2`` is ``x^2 + 1``."""
    model, x = Function(lambda x: x.square().sum((1, 2, 3))), torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    heat = explain("gradient_shap", model, x, samples=600, noise=1.0)
    torch.testing.assert_close(heat, x[:, 0] ** 2 + 1, rtol=0, atol=0.5)


# Gradients by other rules -----------------------------------------------------------------------------------


class TwoLayers(nn.Module):
    """``relu(relu(x U) V) w``, with ReLUs in the given dress."""

    def __init__(self, dress):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(16, 12), nn.Linear(12, 10), nn.Linear(10, 1)
        self.one, self.two, self.dress = nn.ReLU(), nn.ReLU(), dress

    def forward(self, x):
        return self.last(self.relu(self.second(self.relu(self.first(x.flatten(1)), self.one)), self.two))

    def relu(self, z, module):
        return {
            "modules": module,
            "one module": self.one,
            "function": F.relu,
            "method": torch.Tensor.relu,
            "in place": lambda z: F.relu(z, inplace=True),
        }[self.dress](z)


DRESSES = ["modules", "one module", "function", "method", "in place"]


@pytest.fixture
def digits():
    return torch.randn(5, 1, 4, 4)


@pytest.mark.parametrize("dress", DRESSES)
@pytest.mark.parametrize("name", ["guided_backprop", "deconvolution"])
def test_relu_rules_are_those_of_the_papers_however_the_relu_is_called(name, dress, digits):
    model = TwoLayers(dress)
    z = [model.first(digits.flatten(1))]
    z.append(model.second(z[0].relu()))
    g = model.last.weight.expand(5, -1)
    for layer, before in ((model.second, z[1]), (model.first, z[0])):
        g = g.clamp(min=0) * ((before > 0) if name == "guided_backprop" else 1)
        g = g @ layer.weight
    expected = g.view(5, 4, 4).detach()
    torch.testing.assert_close(explain(name, model, digits, signed=True), expected)
    assert not torch.allclose(expected, explain("gradient", model, digits, signed=True))


@pytest.mark.parametrize("name", ["GuidedBackprop", "Deconvolution"])
@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_relu_rules_agree_with_captum_where_that_is_right(name, net, x, target):
    import captum.attr

    theirs = getattr(captum.attr, name)(net).attribute(x.clone().requires_grad_(), target=target)
    ours = explain({"GuidedBackprop": "guided_backprop"}.get(name, "deconvolution"), net, x, target)
    torch.testing.assert_close(ours, theirs.abs().amax(1))


@pytest.mark.parametrize("name", ["guided_backprop", "deconvolution"])
def test_relu_rules_refuse_a_model_without_relu(name, linear, x, target):
    with pytest.raises(ValueError, match="this model has none"):
        explain(name, linear, x, target)


@pytest.mark.parametrize("dress", DRESSES)
def test_deep_lift_is_the_rescale_rule_however_the_relu_is_called(dress, digits):
    model, baseline = TwoLayers(dress), torch.randn(1, 1, 4, 4)
    pairs = [[model.first(v.flatten(1)) for v in (digits, baseline)]]
    pairs.append([model.second(v.relu()) for v in pairs[0]])
    slopes = [(a.relu() - b.relu()) / (a - b) for a, b in pairs]
    multipliers = ((model.last.weight * slopes[1]) @ model.second.weight * slopes[0]) @ model.first.weight
    expected = multipliers.view(5, 4, 4) * (digits - baseline)[:, 0]
    torch.testing.assert_close(explain("deep_lift", model, digits, baseline=baseline), expected.detach())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ELU])
@pytest.mark.filterwarnings("ignore:.*hooks")
def test_deep_lift_agrees_with_captum_where_that_is_right(activation, digits):
    import captum.attr

    model = nn.Sequential(nn.Conv2d(1, 6, 3), activation(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 1))
    baseline = torch.full_like(digits, 0.3)
    theirs = captum.attr.DeepLift(model).attribute(digits.clone().requires_grad_(), baseline)
    ours = explain("deep_lift", model, digits, baseline=0.3)
    torch.testing.assert_close(ours, theirs[:, 0].detach(), rtol=1e-4, atol=1e-6)


def test_deep_lift_sums_to_the_change_of_the_logit_through_pooling_and_skips(net, x, target):
    heat = explain("deep_lift", net, x, target, baseline=0.2)
    change = logit(net, x, target) - logit(net, torch.full_like(x, 0.2), target)
    torch.testing.assert_close(heat.sum((1, 2)), change, rtol=1e-4, atol=1e-5)


def test_deep_lift_gives_a_change_of_maximum_to_the_place_of_the_larger_maximum():
    model = Function(lambda x: F.max_pool2d(x, 2).flatten())
    rising, falling = torch.tensor([[1.0, 5.0], [4.0, 0.0]]), torch.zeros(2, 2)
    assert explain("deep_lift", model, rising[None, None]).tolist() == [[[0, 5], [0, 0]]]
    baseline = torch.tensor([[0.0, 1.0], [9.0, 0.0]])
    assert explain("deep_lift", model, falling[None, None], baseline=baseline).tolist() == [[[0, 0], [-9, 0]]]


@pytest.mark.parametrize("name", ["deep_lift", "lrp"])
@pytest.mark.parametrize("curve", [torch.square, lambda x: x * x.flip(3), F.normalize, nn.Softmax(3)])
def test_rules_refuse_what_they_have_no_rule_for(name, curve, net, x, target):
    with pytest.raises(ValueError, match="no rule"):
        explain(name, nn.Sequential(Function(curve), net), x, target)


def test_deep_lift_refuses_a_kink_that_it_does_not_know(net, x, target):
    with pytest.raises(ValueError, match="a layer has no rule"):
        explain("deep_lift", nn.Sequential(Function(torch.abs), net), x, target, baseline=-0.5)


def test_deep_lift_forgives_the_rounding_of_a_large_logit(net, x, target):
    expected = explain("deep_lift", net, x, target)
    with torch.no_grad():
        net.head.bias += 1e5  # float32 is 0.008 apart there
    torch.testing.assert_close(explain("deep_lift", net, x, target), expected, rtol=1e-4, atol=1e-5)


def test_lrp_with_gamma_zero_is_input_x_gradient(net, x, target):
    expected = explain("input_x_gradient", net, x, target)
    torch.testing.assert_close(explain("lrp", net, x, target, gamma=0.0), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 10.0])
def test_lrp_keeps_the_logit_where_nothing_has_a_bias(gamma, net, x, target):
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            if name.endswith(("bias", "running_mean")):
                value.zero_()
    heat = explain("lrp", net, x, target, gamma=gamma)
    torch.testing.assert_close(heat.sum((1, 2)), logit(net, x, target), rtol=1e-4, atol=1e-5)


def test_lrp_gamma_is_the_rule_written_out(x):
    """A convolution of 1 x 1 mixes channels only: the rule can be restated pixel by pixel."""
    conv, gamma, tops = nn.Conv2d(2, 3, 1), 0.5, torch.tensor([1.0, -2.0, 3.0])
    model = nn.Sequential(conv, Function(lambda z: z.sum((2, 3)) @ tops))
    expected = torch.zeros(3, 6, 6)
    for b, row, column in np.ndindex(3, 6, 6):
        a = x[b, :, row, column]
        for k, top in enumerate(tops.tolist()):
            parts = [*(a * conv.weight[k, :, 0, 0]).tolist(), conv.bias[k].item()]
            z = sum(parts)
            favoured = [part * (1 + gamma if part * z > 0 else 1) for part in parts]
            expected[b, row, column] += top * z * sum(favoured[:-1]) / sum(favoured)
    torch.testing.assert_close(explain("lrp", model, x, gamma=gamma), expected, rtol=1e-4, atol=1e-5)


def test_lrp_sees_functional_relus(net, x, target):
    expected = explain("lrp", net, x, target)
    net.features = Function(F.relu)
    assert torch.equal(explain("lrp", net, x, target), expected)


# Grad-CAM ---------------------------------------------------------------------------------------------------


def test_grad_cam_is_the_formula_written_out(net, x, target):
    expected = torch.zeros(3, 1, 3, 3)
    for b in range(3):
        h = net.stem(x[b : b + 1])
        features = net.features(h + net.block(h)).detach().requires_grad_()
        net.head(features.mean((2, 3)))[0, target[b]].backward()
        for channel in range(4):
            weight = sum(features.grad[0, channel, i, j] for i in range(3) for j in range(3)) / 9
            expected[b, 0] += weight * features[0, channel].detach()
    upsample = {"size": (6, 6), "mode": "bilinear", "align_corners": False}
    signed = F.interpolate(expected, **upsample)[:, 0]
    positive = F.interpolate(expected.clamp(min=0), **upsample)[:, 0]
    torch.testing.assert_close(explain("grad_cam", net, x, target, relu=False), signed)
    torch.testing.assert_close(explain("grad_cam", net, x, target), positive)
    assert not torch.allclose(signed, positive)


def test_grad_cam_takes_a_layer_by_name_or_itself(net, x, target):
    by_name = explain("grad_cam", net, x, target, layer="block.0")
    assert torch.equal(explain("grad_cam", net, x, target, layer=net.block[0]), by_name)


def test_grad_cam_sees_a_layer_before_the_next_one_works_in_place(net, x, target):
    expected = explain("grad_cam", net, x, target, layer="stem.1")
    net.stem[2].inplace = True
    assert torch.equal(explain("grad_cam", net, x, target, layer="stem.1"), expected)


def test_grad_cam_refuses_layers_that_it_cannot_explain(net, x, target):
    with pytest.raises(ConfigError, match="unknown layer 'feature': did you mean features"):
        explain("grad_cam", net, x, target, layer="feature")
    with pytest.raises(ConfigError, match="not a part of the model"):
        explain("grad_cam", net, x, target, layer=nn.ReLU())
    with pytest.raises(ValueError, match=r"returns \[B, c, h, w\]"):
        explain("grad_cam", net, x, target, layer="head")
    net.block[2] = net.features
    with pytest.raises(ValueError, match="ran 2 times"):
        explain("grad_cam", net, x, target)


# Perturbations ----------------------------------------------------------------------------------------------


def test_occlusion_of_single_pixels_is_exact_for_a_linear_model(linear, x, target):
    expected = (linear.weight[target] * (x - 0.5)).sum(1).detach()
    heat = explain("occlusion", linear, x, target, window=1, stride=1, baseline=0.5)
    torch.testing.assert_close(heat, expected, rtol=1e-4, atol=1e-4)


def test_occlusion_refuses_a_window_that_does_not_fit(net, x, target):
    with pytest.raises(ValueError, match="a window of 100 pixels is not in images of .* set window"):
        explain("occlusion", net, x, target, window=100)


def test_occlusion_is_the_formula_written_out(net, x, target):
    """Windows of 4 at 0 and, cut by the border, at 3."""
    total, count = torch.zeros(3, 6, 6), torch.zeros(6, 6)
    for top in (0, 3):
        for left in (0, 3):
            window = slice(top, top + 4), slice(left, left + 4)
            hidden = x.clone()
            hidden[:, :, *window] = 0
            total[:, *window] += (logit(net, x, target) - logit(net, hidden, target))[:, None, None]
            count[window] += 1
    heat = explain("occlusion", net, x, target, window=4, stride=3)
    torch.testing.assert_close(heat, total / count, rtol=1e-4, atol=1e-6)


def test_rise_weighs_its_masks_with_the_probability_or_the_logit():
    """An image of ones shows the model the masks themselves."""
    masks = []

    def score(x):
        masks.append(x[:, 0])
        return x[:, 0, 1, 2] * 3 - 1

    ones, options = torch.ones(1, 1, 8, 10), {"samples": 50, "grid": 4, "keep": 0.3}
    for probability in (True, False):
        masks.clear()
        heat = explain("rise", Function(score), ones, probability=probability, **options)
        seen = torch.cat(masks)
        logits = seen[:, 1, 2] * 3 - 1
        weights = logits.sigmoid() if probability else logits
        assert len(seen) == 50 and seen.min() >= 0 and seen.max() <= 1
        expected = sum(w * m for w, m in zip(weights, seen, strict=True)) / (50 * 0.3)
        torch.testing.assert_close(heat[0], expected)


def test_rise_masks_keep_each_pixel_with_the_given_chance_and_are_smooth_and_shifted():
    seen = []
    model = Function(lambda x: (seen.append(x[:, 0]), x.sum((1, 2, 3)))[1])
    explain("rise", model, torch.ones(1, 1, 14, 14), samples=4000, grid=7, keep=0.3)
    masks = torch.cat(seen)
    torch.testing.assert_close(masks.mean(0), torch.full((14, 14), 0.3), rtol=0, atol=0.03)
    assert masks.diff(dim=2).abs().max() <= 0.5  # a cell is two pixels wide
    assert ((masks[:, 0, 0] > 0) & (masks[:, 0, 0] < 1)).any()  # unshifted, the corner would be a coin


def test_rise_finds_what_the_model_looks_at(x):
    model = Function(lambda x: 2 * x[:, :, 4:, :2].sum((1, 2, 3)))
    heat = explain("rise", model, x.abs(), samples=2000)
    assert (heat[:, 4:, :2].mean((1, 2)) > heat.mean((1, 2)) + heat.std((1, 2))).all()


@pytest.fixture
def quarters():
    """Labels of four superpixels, any numbers."""
    return torch.tensor([[7, 3], [5, 40]]).repeat_interleave(3, 0).repeat_interleave(3, 1)


def test_kernel_shap_recovers_the_superpixels_of_a_linear_model(linear, x, target, quarters):
    contributions = (linear.weight[target] * (x - 0.5)).sum(1).detach()
    blocks = F.avg_pool2d(contributions[:, None], 3, divisor_override=1)[:, 0]
    expected = blocks.repeat_interleave(3, 1).repeat_interleave(3, 2)
    for options in ({"grid": 2}, {"segments": quarters}, {"segments": quarters.expand(3, 6, 6)}):
        heat = explain("kernel_shap", linear, x, target, samples=20, baseline=0.5, **options)
        torch.testing.assert_close(heat, expected, rtol=1e-4, atol=1e-4)


def test_kernel_shap_gives_each_image_its_own_superpixels(linear, x, target, quarters):
    segments = torch.stack([quarters, quarters.T, quarters.flip(0)])
    heat = explain("kernel_shap", linear, x, target, samples=20, segments=segments)
    for i in range(3):
        one = slice(i, i + 1)
        alone = explain("kernel_shap", linear, x[one], target[one], samples=20, segments=segments[i])
        torch.testing.assert_close(heat[one], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["kernel_shap", "lime"])
def test_the_superpixels_of_an_image_are_its_own_whatever_those_of_the_others(method, linear, x, target, quarters):
    """Four, nine and four superpixels, of labels that no two images share."""
    ninths = torch.arange(9).view(3, 3).repeat_interleave(2, 0).repeat_interleave(2, 1)
    segments = torch.stack([quarters, 100 + ninths, 200 + quarters.T])
    heat = explain(method, linear, x, target, samples=80, segments=segments)
    for i in range(3):
        alone = explain(method, linear, x[i : i + 1], target[i : i + 1], samples=80, segments=segments[i])
        torch.testing.assert_close(heat[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    if method == "kernel_shap":
        with pytest.raises(ValueError, match="16 samples are for 2 to 8 superpixels, not 9"):
            explain(method, linear, x, target, samples=16, segments=segments)


def test_kernel_shap_is_the_mean_over_all_orders_for_interactions_in_pairs():
    weights = torch.randn(4, 4)
    model = Function(lambda x: torch.einsum("bi,ij,bj->b", x.flatten(1), weights, x.flatten(1)))
    x, expected = torch.randn(1, 1, 2, 2), torch.zeros(4)
    for order in permutations(range(4)):
        shown = torch.zeros(1, 1, 2, 2)
        for pixel in order:
            before = model(shown)
            shown.view(-1)[pixel] = x.view(-1)[pixel]
            expected[pixel] += (model(shown) - before).item() / 24
    heat = explain("kernel_shap", model, x, grid=2, samples=30)
    torch.testing.assert_close(heat.flatten(), expected, rtol=1e-4, atol=1e-4)


def test_kernel_shap_approaches_the_shapley_values_of_larger_interactions():
    """``y = x_0 x_1 x_2`` shares equally among the three, and gives nothing to the other five."""
    model = Function(lambda x: x.flatten(1)[:, :3].prod(1))
    heat = explain("kernel_shap", model, torch.ones(1, 1, 2, 4), grid=8, samples=20000, batch_size=1000)
    expected = torch.tensor([1 / 3] * 3 + [0.0] * 5)
    torch.testing.assert_close(heat.flatten(), expected, rtol=0, atol=0.01)


def test_kernel_shap_sums_over_superpixels_to_the_change_of_the_logit(net, x, target):
    heat = explain("kernel_shap", net, x, target, grid=6, samples=200)
    change = logit(net, x, target) - logit(net, torch.zeros_like(x), target)
    torch.testing.assert_close(heat.sum((1, 2)), change, rtol=1e-4, atol=1e-5)


def test_kernel_shap_refuses_too_few_samples(net, x, target):
    with pytest.raises(ValueError, match="not 36"):
        explain("kernel_shap", net, x, target, grid=6, samples=70)
    with pytest.raises(ValueError, match="not 1"):
        explain("kernel_shap", net, x, target, grid=1)
    with pytest.raises(ValueError, match="take more samples"):
        explain("kernel_shap", net, x, target, grid=3, samples=18)


def test_lime_recovers_the_superpixels_of_a_linear_model_up_to_its_penalty(linear, x, target, quarters):
    contributions = (linear.weight[target] * (x - 0.5)).sum(1).detach()
    for labels in (quarters, torch.stack([quarters, quarters.T, quarters.flip(0)])):
        inside = labels.expand(3, 6, 6)[:, None] == torch.tensor([7, 3, 5, 40])[:, None, None]
        sums = (contributions[:, None] * inside).sum((2, 3))
        heat = explain("lime", linear, x, target, samples=200, baseline=0.5, segments=labels)
        torch.testing.assert_close(heat, (sums[:, :, None, None] * inside).sum(1), rtol=0.05, atol=0.1)


# Controls ---------------------------------------------------------------------------------------------------


def test_a_random_map_belongs_to_its_image(net, x):
    heat = explain("random_map", net, x)
    assert torch.equal(explain("random_map", net, x.flip(0)), heat.flip(0))
    assert not torch.isclose(explain("random_map", net, x + 1e-3), heat).any(dim=0).all()
    assert len(heat.unique()) == heat.numel() and heat.min() >= 0 and heat.max() < 1


def test_the_constant_map_is_constant(net, x):
    assert (explain("constant_map", net, x) == 1).all()
