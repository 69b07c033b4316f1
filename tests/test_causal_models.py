"""The classifiers are torchvision's to the bit, can be traced, and call every module once."""

import sys
import types

import pytest
import torch
from torch import fx, nn

from helpers import runtime
from helpers.causal_graphs.models import ConvNeXt, ConvNeXtBlock, LeNet, ResNet, StochasticDepth, build
from helpers.config import ConfigError

THEIRS = {"ResNet18": "resnet18", "ResNet50": "resnet50", "ConvNeXt": "convnext_tiny"}


def unlike_a_new_one(model, seed=0):
    """``model`` with statistics, scales and biases that no initialisation has, so that none can be forgotten."""
    draws = runtime.generator(seed, "unlike")
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var") or value.ndim == 1 and name.endswith("weight"):
                value.copy_(0.5 + torch.rand(value.shape, generator=draws))
            elif value.ndim == 1 or name.endswith("layer_scale"):
                value.copy_(0.2 * torch.randn(value.shape, generator=draws))
    return model.eval()


def made(name, in_channels=3, n_classes=7):
    with runtime.seeded(0, "init"):
        return unlike_a_new_one(build(name, in_channels, n_classes))


def images(n=2, size=48, channels=3):
    return torch.rand(n, channels, size, size, generator=runtime.generator(0, "x"))


SIZES = {"LeNet": 32, "ResNet18": 48, "ResNet50": 48, "ConvNeXt": 48}
every_model = pytest.mark.parametrize("name", SIZES)


@pytest.mark.parametrize("name", THEIRS)
def test_the_same_weights_give_torchvisions_outputs(name):
    theirs = getattr(runtime.import_torchvision().models, THEIRS[name])(num_classes=7).eval()
    ours = made(name)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        logits, expected = ours(images()), theirs(images())
    assert logits.std() > 1e-3 and torch.equal(logits, expected)


@pytest.mark.parametrize("name", THEIRS)
def test_torchvisions_weights_load(name):
    theirs = getattr(runtime.import_torchvision().models, THEIRS[name])(num_classes=7)
    build(name, 3, 7).load_state_dict(theirs.state_dict())


def test_lenet_is_the_one_of_the_study():
    model = LeNet()
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "conv1.weight": (6, 1, 5, 5), "conv2.weight": (16, 6, 5, 5),
        "fc1.weight": (120, 400), "fc2.weight": (84, 120), "fc3.weight": (10, 84),
    }  # fmt: skip
    names = "conv1 relu1 pool1 conv2 relu2 pool2 fc1 relu3 fc2 relu4 fc3"
    assert {name for name, _ in model.named_children()} == set(names.split())
    x = images(2, 32, 1)
    h = x
    for name in names.split():  # a chain, but for the flattening: conv2's channel c feeds fc1's inputs 25c ... 25c + 24
        h = getattr(model, name)(h.flatten(1) if name == "fc1" else h)
    assert torch.equal(model(x), h)


@every_model
def test_every_use_has_a_module_of_its_own(name):
    """Rules of relevance hook modules: one that runs twice gives them the wrong input."""
    model, calls = made(name), {}
    for key, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, key=key: calls.update({key: calls.get(key, 0) + 1}))
    model(images(1, SIZES[name]))
    leaves = {key for key, module in model.named_modules() if not list(module.children())}
    assert calls == dict.fromkeys(leaves, 1)
    assert not any(getattr(module, "inplace", False) for module in model.modules()), "hooks would see what comes after"


@every_model
def test_fx_can_trace_it(name):
    model = made(name)
    traced = fx.symbolic_trace(model)
    functions = {getattr(n.target, "__name__", n.target) for n in traced.graph.nodes if n.op.startswith("call_f")}
    methods = {n.target for n in traced.graph.nodes if n.op == "call_method"}
    assert functions | methods <= {"add", "flatten", "mul", "permute", "layer_norm"}
    x = images(1, SIZES[name])
    with torch.no_grad():
        assert torch.equal(traced(x), model(x))


@every_model
def test_channels_and_classes_are_as_asked_for(name):
    assert build(name, 2, 5)(images(2, SIZES[name], 2)).shape == (2, 5)


def test_guided_backpropagation_is_not_the_gradient():
    """With functional ReLUs Captum's would be, without a word (spec section 5)."""
    from captum.attr import GuidedBackprop, Saliency

    model, x = made("LeNet", 1, 10), images(3, 32, 1).requires_grad_()
    target = torch.tensor([1, 3, 8])
    with pytest.warns(UserWarning, match="Setting backward hooks"):
        guided = GuidedBackprop(model).attribute(x, target=target)
    gradient = Saliency(model).attribute(x, target=target, abs=False)
    assert (guided - gradient).norm() > 0.1 * gradient.norm()


def test_a_block_of_a_residual_network_adds_its_input():
    model = made("ResNet18")
    block = model.layer1[0]
    x = images(2, 8, 64)
    inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    assert torch.equal(block(x), torch.relu(inner + x))
    for convolution in (block.conv1, block.conv2):
        nn.init.zeros_(convolution.weight)
    for norm in (block.bn1, block.bn2):
        nn.init.zeros_(norm.running_mean), nn.init.zeros_(norm.bias)
    assert torch.equal(block(x), x), "positive inputs pass the skip unchanged"


# ------------------------------------------------------------------------------------------- stochastic depth


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    drop = StochasticDepth(0.25).train()
    x = torch.ones(4000, 2, 3, 3)
    with runtime.seeded(0, "drop"):
        y = drop(x)
    per_sample = y.flatten(1)
    assert per_sample.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (per_sample.amin(1) == per_sample.amax(1)).all()
    assert y.mean() == pytest.approx(1, abs=0.04)
    assert drop.eval()(x) is x and StochasticDepth(0.0).train()(x) is x


def test_deeper_blocks_are_dropped_more_often():
    model = ConvNeXt((1, 2, 1), (8, 12, 16), drop=0.3)
    rates = [module.stochastic_depth.p for module in model.modules() if isinstance(module, ConvNeXtBlock)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    assert model.train()(images(2, 32)).shape == (2, 1000)


# -------------------------------------------------------------------------------------------------- by name


def module_of(**contents):
    module = types.ModuleType("my_networks")
    vars(module).update(contents)
    return module


def test_ones_own_factory_is_called_with_channels_and_classes(monkeypatch):
    def make(in_channels, n_classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 16, n_classes))

    monkeypatch.setitem(sys.modules, "my_networks", module_of(make=make))
    assert build("my_networks:make", 3, 4)(torch.rand(2, 3, 4, 4)).shape == (2, 4)
    assert isinstance(build("helpers.causal_graphs.models:resnet18", 3, 4), ResNet)


def test_a_name_that_does_not_exist_is_refused_with_near_misses(monkeypatch):
    with pytest.raises(ConfigError, match="unknown model 'ResNet81': did you mean ResNet18 or ResNet50"):
        build("ResNet81", 3, 10)
    with pytest.raises(ConfigError, match="'no_such_module' cannot be imported"):
        build("no_such_module:make", 3, 10)
    monkeypatch.setitem(sys.modules, "my_networks", module_of(make_net=lambda *_: None, size=3))
    with pytest.raises(ConfigError, match="my_networks has no 'make_nett' to call; did you mean make_net"):
        build("my_networks:make_nett", 3, 10)
    with pytest.raises(ConfigError, match="has no 'size' to call"):
        build("my_networks:size", 3, 10)
    with pytest.raises(ConfigError, match="my_networks:make_net returned NoneType, not a torch.nn.Module"):
        build("my_networks:make_net", 3, 10)
