"""The networks of the self-explaining study are the original's, and each gives log-probabilities and an encoding."""

import pytest
import torch
import torch.nn.functional as F

from helpers import runtime
from helpers.config import ConfigError
from helpers.self_explaining.models import MLP, MODELS, MedNet1, Net1, SimpleConvNet, build, pair


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def inputs(n=4, channels=1):
    return torch.randn(n, channels, 28, 28, generator=runtime.generator(0, "x"))


def size(net):
    return sum(parameter.numel() for parameter in net.parameters())


def seen(net, module, x):
    """What ``module`` gives while ``net`` reads ``x``."""
    outputs = []
    with module.register_forward_hook(lambda _, __, output: outputs.append(output)):
        net(x)
    return outputs[0]


@pytest.mark.parametrize(
    ("net", "parameters", "encoding"),
    [
        (Net1(), 1_199_882, 9216),  # property 1
        (Net1(n_classes=2), 1_198_850, 9216),
        (SimpleConvNet(), 520 + 25_050 + 205_056 + 2_570, 800),
        (MedNet1(), 1_199_882 + 2 * 32 * 9, 9216),
        (MLP(), 401_920 + 131_328 + 2_570, 256),
    ],
)
def test_nets_have_the_published_size(net, parameters, encoding):
    channels = 3 if isinstance(net, MedNet1) else 1
    assert size(net) == parameters and net.encode(inputs(2, channels)).shape == (2, encoding)


def test_the_maps_of_net1_have_26_then_24_then_12_pixels_a_side():
    net, x = Net1(), inputs()
    assert seen(net, net.conv1, x).shape[1:] == (32, 26, 26)
    assert seen(net, net.conv2, x).shape[1:] == (64, 24, 24)
    assert net.encode(x).numel() == len(x) * 64 * 12 * 12


def test_net1_is_two_rectified_convolutions_a_mean_of_2_x_2_pixels_and_two_linear_layers():
    net, x = Net1(widths=(3, 5), hidden=8), inputs()
    maps = F.conv2d(F.conv2d(x, net.conv1.weight, net.conv1.bias).relu(), net.conv2.weight, net.conv2.bias).relu()
    encoding = maps.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)).reshape(4, 5 * 12 * 12)
    hidden = (encoding @ net.fc1.weight.T + net.fc1.bias).relu()
    assert torch.allclose(net.encode(x), encoding, atol=1e-6)
    assert torch.allclose(net.logits(x), hidden @ net.fc2.weight.T + net.fc2.bias, atol=1e-5)


def test_net1_has_no_dropout():
    net, x = Net1(widths=(3, 5), hidden=8), inputs()
    assert torch.equal(net.train()(x), net.eval()(x))


def test_the_mlp_has_some_in_training_alone():
    net, x = MLP(), inputs()
    assert not torch.equal(net.train()(x), net(x)) and torch.equal(net.eval()(x), net(x))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("n_classes", [2, 10])
def test_every_net_gives_log_probabilities(name, n_classes):
    channels = 3 if name == "MedNet1" else 1
    net, x = build(name, channels, n_classes).eval(), inputs(4, channels)
    out = net(x)
    assert out.shape == net.logits(x).shape == (4, n_classes)
    assert torch.allclose(out.exp().sum(1), torch.ones(4), atol=1e-6)
    assert torch.equal(out, F.log_softmax(net.logits(x), 1))
    assert torch.equal(net.logits(x), net.head(net.encode(x)))


@pytest.mark.parametrize("net", [Net1(widths=(3, 5), hidden=8), SimpleConvNet()])
def test_gradcam_looks_at_the_last_convolution_before_it_is_rectified(net):
    convolutions = [module for module in net.modules() if isinstance(module, torch.nn.Conv2d)]
    assert net.target_layer is convolutions[-1] and seen(net, net.target_layer, inputs()).min() < 0
    assert MLP().target_layer is None


def test_the_initialisation_is_drawn_from_torchs_global_generator():
    def weights(seed):
        with runtime.seeded(seed, "init"):
            return torch.nn.utils.parameters_to_vector(build("SimpleConvNet", 1, 10).parameters())

    assert torch.equal(weights(0), weights(0)) and not torch.equal(weights(0), weights(1))


def test_a_pair_is_a_learner_and_a_critic():
    assert (
        pair("Net1") == ("Net1", "Net1") and pair("Net1-MLP") == ("Net1", "MLP") and pair("MLP-Net1") == ("MLP", "Net1")
    )


def test_unknown_names_are_refused_with_near_misses():
    for name in ("Net-1", "Net1-", "Net1-MPL", "Net1-MLP-Net1", ""):
        with pytest.raises(ConfigError, match="unknown model"):
            pair(name)
    with pytest.raises(ConfigError, match="unknown model 'Net1-MPL': did you mean Net1-MLP"):
        pair("Net1-MPL")
    with pytest.raises(ConfigError, match="unknown model 'Net2': did you mean Net1"):
        build("Net2", 1, 10)
    with pytest.raises(ConfigError, match="MedNet1 takes images of 3 channels, not of 1"):
        build("MedNet1", 1, 10)
