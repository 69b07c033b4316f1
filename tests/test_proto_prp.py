"""Relevance of pixels against dense matrices, against zennit, and what it promises for every family of networks."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from proto_patches import images, net
from torch import nn
from zennit.composites import SpecialFirstLayerMapComposite
from zennit.core import RemovableHandleList
from zennit.rules import AlphaBeta, Norm, Pass, ZBox
from zennit.types import Activation, Convolution

from helpers import runtime
from helpers.config import ConfigError
from helpers.data.images import Preprocess
from helpers.prototypes import models, presets
from helpers.prototypes.evaluation import canonise as kinds
from helpers.prototypes.evaluation import relevance_rules as rules
from helpers.prototypes.evaluation.canonise import canonise
from helpers.prototypes.evaluation.prp import Propagator, pixel_bounds, relevance
from helpers.prototypes.receptive_field import receptive_field

ASKED = torch.tensor([0, 5, 7])


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=runtime.generator(seed, "noise"))


def unsettle(network, seed=0):
    """Batch normalisation that is far from none, some of its factors negative."""
    generator = runtime.generator(seed, "norm")
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            draw = torch.rand(4, len(module.weight), generator=generator)
            module.weight.data, module.bias.data = 0.5 + draw[0], 0.4 * draw[1] - 0.2
            module.weight.data[::5] *= -1
            module.running_mean, module.running_var = draw[2] - 0.5, 0.5 + draw[3]
    return network.eval()


def built(name, layer, size=64, dim=32, **settings):
    settings = {"num_prototypes": 12, "prototype_dim": dim, "pretrained": False} | settings
    model = models.build(presets.Model(feature_extractor=name, feature_layer=layer, **settings), 3, size, 0)
    return unsettle(model), noise(2, 3, size, size, seed=1)


def small(body, channels, **settings):
    """A network of 6 prototypes on ``body``, in as many dimensions as leave none of its units dead."""
    settings = {"num_prototypes": 6, "prototype_dim": 24} | settings
    with runtime.seeded(0, "small"):
        return models.ProtoNet(body(), channels, 3, presets.Model(**settings)).eval()


class Written(nn.Module):
    """One network in many hands: functions, methods, in place, views, parts, odd padding, norms here and there."""

    def __init__(self):
        super().__init__()
        self.norm, self.inner = nn.BatchNorm2d(3), nn.BatchNorm2d(8)
        self.first = nn.Conv2d(3, 8, 4, stride=2, padding="valid")
        self.same = nn.Conv2d(8, 8, 4, padding="same", bias=False)
        self.mirrored = nn.Conv2d(4, 4, 3, padding=(1, 2), padding_mode="reflect", groups=2)
        self.weight = nn.Parameter(torch.randn(6, 8, 3, 3))
        self.factor = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(inplace=True)

    def forward(self, x):
        x = self.first(F.pad(self.norm(x) * 2 - 0.1, (1, 0, 0, 1)))
        y = self.inner(self.same(x))
        y += x
        self.act(y)  # what comes next is rectified
        y = F.dropout(y * self.factor, 0.5, self.training)
        a, b = y.chunk(2, dim=1)
        batch, channels, height, width = a.size()
        b = self.mirrored(b).relu_()[:, :, :, 1:-1]
        a = a.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        y = torch.cat([b, a], 1)
        y = torch.cat((F.avg_pool2d(y, 3, 1, padding=1), F.max_pool2d(y, kernel_size=3, stride=1, padding=1)), dim=1)
        y = F.relu6(F.conv2d(self.drop(y)[:, 4:12], self.weight, stride=2, padding=1))
        return F.leaky_relu(y.permute(0, 1, 3, 2).contiguous(), 0.1)


# ---------------------------------------------------------------------------------------------- against slow references


def dense(conv, shape):
    """The matrix [outputs, inputs] of a convolution of one image [C, H, W], without its bias."""
    basis = torch.eye(int(np.prod(shape)), dtype=torch.float64).view(-1, *shape)
    weight = conv.weight.detach().double()
    out = F.conv2d(basis, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    return out.flatten(1).T.numpy()


def back(matrix, x, r):
    """Alpha 1, beta 0: unit j hands r_j to the inputs i with matrix_ji x_i > 0, in proportion."""
    contribution = np.maximum(matrix * x, 0)
    total = contribution.sum(1, keepdims=True)
    return (np.divide(contribution, total, out=np.zeros_like(contribution), where=total > 0) * r[:, None]).sum(0)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_of_two_convolutions_it_is_the_product_of_dense_matrices(distance):
    """Section 4.5, in numpy and in float64, unit by unit."""

    def body():
        return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU())

    model, x = small(body, 6, distance=distance), noise(1, 3, 12, 12)
    layers = [*model.features, *model.add_on]
    values = [x]
    with torch.no_grad():
        for layer in layers:
            values.append(layer(values[-1]))
    z = values[-1][0].double().numpy()
    found = relevance(model, x, torch.arange(6))[0]
    for p, vector in enumerate(model.prototypes.detach().flatten(1).double().numpy()):
        if distance == "cosine":
            cosine = np.einsum("dij,d->ij", z, vector) / np.linalg.norm(z, axis=0) / np.linalg.norm(vector)
            i, j = np.unravel_index(cosine.argmax(), cosine.shape)
            cell = z[:, i, j]
            share = 1 / ((1 - vector / np.linalg.norm(vector) * cell / np.linalg.norm(cell)) ** 2 + 1e-12)
        else:
            apart = ((z - vector[:, None, None]) ** 2).sum(0)
            i, j = np.unravel_index(apart.argmin(), apart.shape)
            share = 1 / ((z[:, i, j] - vector) ** 4 + 1e-12)
        r = np.zeros_like(z)
        r[:, i, j] = share / share.sum()
        r = r.flatten()
        for layer, value in zip(reversed(layers), reversed(values[:-1]), strict=True):
            if isinstance(layer, nn.Conv2d):
                r = back(dense(layer, value.shape[1:]), value.flatten().double().numpy(), r)
        assert np.allclose(found[p], r.reshape(3, 12, 12).sum(0), rtol=0, atol=1e-6)
        assert found[p].sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("input_rule", ["alpha1beta0", "zbox"])
def test_of_a_plain_network_it_is_zennits(input_rule):
    def body():
        return nn.Sequential(
            nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2), nn.Conv2d(8, 12, 1), nn.ReLU6(),
        )  # fmt: skip

    model, x = small(body, 12), noise(2, 3, 24, 24).clamp(-2, 2)
    low, high = torch.tensor([-2.0, -2.1, -2.2]), torch.tensor([2.0, 2.5, 3.0])
    of = Propagator(model, input_rule=input_rule, low=low, high=high)
    found = of.relevance(x, torch.arange(6), channels=True)
    first = {
        "alpha1beta0": AlphaBeta(1.0, 0.0, stabilizer=1e-12, zero_params="bias"),
        "zbox": ZBox(low.view(1, 3, 1, 1), high.view(1, 3, 1, 1), stabilizer=1e-12),
    }
    composite = SpecialFirstLayerMapComposite(
        [(Activation, Pass()), (Convolution, AlphaBeta(1.0, 0.0, stabilizer=1e-12, zero_params="bias"))],
        [(Convolution, first[input_rule])],
    )
    whole = copy.deepcopy(nn.Sequential(*model.features, *model.add_on))
    z = model.embed(x).detach()
    for p in range(6):
        start = of._start(z, model(x).cells, torch.full((2, 1), p))[0]
        with composite.context(whole) as hooked:
            leaf = x.clone().requires_grad_()
            (expected,) = torch.autograd.grad(hooked(leaf), leaf, start)
        assert torch.allclose(found[:, p], expected, rtol=0, atol=1e-6)
    assert torch.allclose(found.sum((2, 3, 4)), torch.ones(2, 6), rtol=0, atol=1e-4)


def of_inputs(part, x, rule, r):
    """What a rule gives each input, one map at a time."""
    value, pull = rule(part, x)
    return value, [pull(r[None])[i][0] for i in range(len(x))]


def test_average_pooling_is_zennits():
    pool, x = nn.AvgPool2d(3, 2, 1, count_include_pad=False), noise(2, 4, 9, 9)
    value, (found,) = of_inputs(kinds.Average(pool), [x], rules.epsilon, r := torch.rand(2, 4, 5, 5))
    handles = RemovableHandleList([Norm(stabilizer=1e-6).register(pool)])
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(pool(leaf), leaf, r)
    handles.remove()
    assert torch.equal(value, pool(x)) and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_sums_share_by_their_summands():
    """By hand, and what the two rules do when branches disagree."""
    x = torch.tensor([[3.0, 1.0, -2.0, 2.0, 0.0]]), torch.tensor([[1.0, -3.0, 1.0, 2.0, 0.0]])
    r = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0]])
    _, found = of_inputs(kinds.Sum(), x, rules.epsilon, r)
    assert torch.allclose(found[0], torch.tensor([[0.75, -0.5, 2.0, 0.5, 0.0]]), atol=1e-5)
    assert torch.allclose(found[1], torch.tensor([[0.25, 1.5, -1.0, 0.5, 0.0]]), atol=1e-5)
    _, found = of_inputs(kinds.Sum(), x, rules.same_sign, r)
    assert torch.allclose(found[0], torch.tensor([[0.75, 0.0, 1.0, 0.5, 0.0]]))
    assert torch.allclose(found[1], torch.tensor([[0.25, 1.0, 0.0, 0.5, 0.0]]))


def test_average_pooling_among_those_of_one_sign():
    x, r = noise(1, 2, 6, 6), torch.rand(1, 2, 2, 2)
    pool = kinds.Average(nn.AvgPool2d(3))
    value, (found,) = of_inputs(pool, [x], rules.same_sign, r)
    for c in range(2):
        for i in range(2):
            for j in range(2):
                part = x[0, c, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3]
                same = part.clamp(min=0) if value[0, c, i, j] > 0 else part.clamp(max=0)
                expected = same / same.sum() * r[0, c, i, j]
                assert torch.allclose(found[0, c, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3], expected, atol=1e-6)
    assert found.min() >= 0 and torch.allclose(found.sum(), r.sum())


def test_the_greatest_of_a_window_takes_all():
    """Windows overlap; of equals the first."""
    x = torch.tensor([[1.0, 5, 2, 0], [0, 1, 3, 3], [7, 2, 0, 3], [0, 0, 3, 1]])[None, None]
    part = kinds.Maximum(lambda x, **options: F.max_pool2d(x, 2, 1, **options))
    r = torch.arange(1.0, 10).view(1, 1, 3, 3)
    expected = torch.tensor([[0.0, 3, 0, 0], [0, 0, 3 + 5 + 6, 0], [4 + 7, 0, 0, 9], [0, 0, 8, 0]])
    assert torch.equal(rules.maximum(part, x)[1](r[None])[0][0, 0, 0], expected)


# ------------------------------------------------------------------------------------------------- what it promises

FAMILIES = {
    "vgg11": dict(layer="maxpool3", size=32),
    "vgg11_bn": dict(layer="maxpool3", size=32, add_on_layers_type="bottleneck"),
    "resnet18": dict(layer="layer2", distance="l2"),
    "densenet121": dict(layer="transition1"),
    "squeezenet1_1": dict(layer="maxpool3"),
    "efficientnet_lite0": dict(layer="stage3"),
    "mobilenet_v2": dict(layer="features.4"),
    "inception_v3": dict(layer="Mixed_5b", size=75),
    "googlenet": dict(layer="inception3a"),
    "shufflenet_v2_x1_0": dict(layer="stage2"),
    "birdnet": dict(layer="stage2"),
    "timm:tf_efficientnet_lite0": dict(layer="blocks.2"),  # padded as TensorFlow does, norms as functions
}


@pytest.fixture
def lost(monkeypatch):
    """The relevance [P, B] that arrived at units of convolutions without any positive contribution."""
    found, convolution = [], rules.convolution

    def spy(part, x, bounds=None):
        value, pull = convolution(part, x, bounds)
        signed = [F.conv2d(x.clamp(**s), part.weight.clamp(**s), None, *part.options) for s in ({"min": 0}, {"max": 0})]

        def counted(r):
            found.append((r * (sum(signed) == 0)).sum((2, 3, 4)))
            return pull(r)

        return value, counted

    monkeypatch.setattr(rules, "convolution", spy)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name, lost):
    """Property 22: the copy computes the same; what is not lost at dead units reaches the pixels, none of it negative,
    all in the receptive field of the best cell."""
    model, x = built(name, **FAMILIES[name])
    before = copy.deepcopy(model.state_dict())
    of = Propagator(model, sum_rule="same_sign")
    with torch.no_grad():
        output, z = model(x), model.embed(x)
    assert torch.allclose(of.embed(x), z, rtol=0, atol=1e-4)
    found = of.relevance(x, ASKED)
    assert found.min() >= 0 and found.shape == (2, 3, *x.shape[2:])
    total = found.sum((2, 3))
    assert torch.allclose(total + sum(lost).T, torch.ones(2, 3), rtol=0, atol=1e-4)
    if name.startswith(("vgg", "resnet", "squeezenet", "birdnet", "googlenet")):
        assert torch.allclose(total, torch.ones(2, 3), rtol=0, atol=1e-4)
    field = receptive_field(model.features, x.shape[-1])
    for b in range(2):
        for heat, cell in zip(found[b], output.cells[b, ASKED].tolist(), strict=True):
            y0, y1, x0, x1 = field.box(*divmod(cell, field.size[1]))
            outside = torch.ones_like(heat, dtype=torch.bool)
            outside[y0:y1, x0:x1] = False
            assert not heat[outside].any()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_residual_networks_by_the_published_rule():
    """Branches that disagree make relevance negative, but its sum stays 1; by the other rule none is negative."""
    model, x = built("resnet18", "layer2")
    found = Propagator(model).relevance(x, ASKED, channels=True)
    assert torch.allclose(found.sum((2, 3, 4)), torch.ones(2, 3), rtol=0, atol=1e-3)

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)

        def forward(self, x):
            return torch.relu(self.a(x) + self.b(x))

    model, x = small(Residual, 6), noise(2, 3, 8, 8)
    assert relevance(model, x, torch.arange(6)).min() < -1e-3
    assert relevance(model, x, torch.arange(6), sum_rule="same_sign").min() >= 0


def test_the_source_is_left_as_it_is():
    model, x = net(), images(4)[0]
    model.add_on[1].eval()
    modes = [module.training for module in model.modules()]
    model.features[0].register_forward_hook(lambda *args: None)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        outputs = model(x).distances
    model.load_state_dict(before)  # what the pass in training mode did to the norm
    relevance(model, x, ASKED)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [len(module._forward_hooks) for module in model.modules()].count(1) == 1
    assert not any(len(module._backward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(x).distances, outputs)


def test_together_as_one_by_one():
    model, x = net().eval(), images(5)[0]
    of = Propagator(model)
    each = torch.stack([torch.cat([of.relevance(one[None], p[None], chunk=1) for p in ASKED], 1)[0] for one in x])
    for chunk in (1, 4, 6, 100):
        assert torch.allclose(of.relevance(x, ASKED, chunk=chunk), each, rtol=0, atol=1e-6)
    others = torch.stack([ASKED.roll(b) for b in range(5)])
    found = of.relevance(x, others, chunk=4)
    assert torch.allclose(found[1, 1], each[1, 0], rtol=0, atol=1e-6)
    assert torch.allclose(found[4, 0], each[4, 2], rtol=0, atol=1e-6)
    by_channel = of.relevance(x, ASKED, channels=True)
    assert by_channel.shape == (5, 3, 3, 32, 32) and torch.allclose(by_channel.sum(2), each, rtol=0, atol=1e-6)


def test_modes_of_torch_change_nothing():
    model = small(lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 6, 3), nn.AvgPool2d(2)), 6)
    x, asked = noise(2, 3, 8, 8), torch.arange(6)
    expected = relevance(model, x, asked)
    with torch.inference_mode():
        assert torch.equal(relevance(model, x + 0, asked), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(relevance(model, x, asked), expected)
    assert not expected.requires_grad


def test_of_equal_cells_the_first_is_the_best():
    """As in `ProtoNet`: on one colour all cells are the same."""
    model = small(lambda: nn.Sequential(nn.Conv2d(3, 6, 1)), 6)
    x = noise(1, 3, 1, 1).expand(1, 3, 8, 8).clone()
    found = relevance(model, x, torch.arange(6))[0]
    assert model(x).cells.eq(0).all() and (found[:, 0, 0] > 0.5).all() and not found.flatten(1)[:, 1:].any()


def test_a_perfect_match_has_shares_too():
    """In float32, where a distance is 0 or all but 0."""
    model, x = small(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), 6, distance="l2"), noise(1, 3, 8, 8)
    with torch.no_grad():
        model.prototypes[:2] = model.embed(x)[0, :, 3, :2].T[..., None, None]
    found = relevance(model, x, torch.arange(2))
    assert found.isfinite().all() and torch.allclose(found.sum((2, 3)), torch.ones(1, 2), atol=1e-4)


def test_relevance_of_dead_units_is_lost():
    """Units that nothing but their bias makes active have no input to hand relevance to."""
    model = small(lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()), 6)
    with torch.no_grad():
        model.features[0].weight.copy_(-model.features[0].weight.abs())
        model.features[0].bias.fill_(9.0)
    assert not relevance(model, torch.rand(1, 3, 8, 8), torch.arange(6)).any()


def test_a_model_that_changed_is_noticed():
    model, x = net().eval(), images(2)[0]
    of = Propagator(model)
    expected = of.relevance(x, ASKED)
    with torch.no_grad():
        model.features[0].weight.add_(0.5)
    with pytest.raises(ConfigError, match="has changed since"):
        of.relevance(x, ASKED)
    with torch.no_grad():
        model.features[0].weight.sub_(0.5)
    assert torch.allclose(of.relevance(x, ASKED), expected, rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------------------- canonisation


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_however_a_network_is_written():
    with runtime.seeded(0, "written"):
        network = unsettle(Written())
    x = noise(3, 3, 17, 17)
    copied = canonise(network.train())
    assert network.training
    with torch.no_grad():
        expected = network.eval()(x)
        assert torch.allclose(copied(x), expected, rtol=1e-5, atol=1e-5)
        network.weight.zero_(), network.factor.zero_(), network.inner.bias.zero_()
        assert torch.allclose(copied(x), expected, rtol=1e-5, atol=1e-5)  # its weights are its own
    parts = [type(part).__name__ for part in copied.children()]
    assert parts.count("Convolution") == 4 and parts.count("Sum") == 1 and parts.count("Concatenation") == 2
    norms = [module for module in copied.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert not norms and not any(isinstance(module, nn.Conv2d) for module in copied.modules())
    model = small(lambda: Written().eval(), 6)
    found = relevance(model, noise(2, 3, 17, 17), torch.arange(6), sum_rule="same_sign")
    assert found.min() >= 0 and torch.allclose(found.sum((2, 3)), torch.ones(2, 6), rtol=0, atol=1e-4)


def test_a_norm_is_folded_only_where_nobody_else_looks():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv(x)
            return torch.cat([x, self.norm(x)], 1)

    for network, kept in ((Shared(), 1), (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 0)):
        copied, x = canonise(unsettle(network)), noise(2, 3, 6, 6)
        assert [type(part).__name__ for part in copied.children()].count("Elementwise") == kept
        assert torch.allclose(copied(x), network(x), atol=1e-5)


# ------------------------------------------------------------------------------------------------------- pixels


def test_bounds_of_pixels():
    low, high = pixel_bounds(Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))
    assert float(low.min()) == pytest.approx(-2.118, abs=1e-3) and float(high.max()) == pytest.approx(2.640, abs=1e-3)
    model, x = small(lambda: nn.Sequential(nn.Conv2d(3, 6, 3)), 6), noise(2, 3, 8, 8).clamp(-1.7, 1.7)
    found = relevance(model, x, torch.arange(6), input_rule="zbox", low=low, high=high)
    assert torch.allclose(found.sum((2, 3)), torch.ones(2, 6), rtol=0, atol=1e-4) and found.min() >= 0
    with pytest.raises(ConfigError, match="pixel_bounds"):
        relevance(model, 2 * x, torch.arange(6), input_rule="zbox", low=low, high=high)


def test_bounds_reach_the_first_convolution():
    """Through padding and transformations of pixels: the relevance is that of the network that needs none."""

    class Transformed(nn.Module):
        def __init__(self):
            super().__init__()
            self.pad, self.conv = nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(3, 6, 3)

        def forward(self, x):
            parts = [torch.unsqueeze(x[:, c], 1) * (c - 3) + 0.5 for c in range(3)]
            return self.conv(self.pad(torch.cat(parts, 1)))

    def plain():
        return nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(3, 6, 3))

    x, factor = torch.rand(2, 3, 9, 9), torch.tensor([-3.0, -2.0, -1.0]).view(3, 1, 1)
    one, other = small(Transformed, 6), small(plain, 6)
    state = one.state_dict()
    other.load_state_dict({key.replace("features.conv", "features.1"): value for key, value in state.items()})
    found = relevance(one, x, torch.arange(6), input_rule="zbox", low=0.0, high=1.0)
    low, high = (factor + 0.5).flatten(), torch.full((3,), 0.5)
    expected = relevance(other, x * factor + 0.5, torch.arange(6), input_rule="zbox", low=low, high=high)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)


def test_a_rule_without_a_place_is_an_error():
    """It must not be inert in silence."""
    model = small(lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 6, 3)), 6)
    with pytest.raises(ConfigError, match="no convolution of this network reads the image"):
        relevance(model, torch.rand(1, 3, 8, 8), torch.arange(6), input_rule="zbox")


# ------------------------------------------------------------------------------------------------------- bad input


def test_products_of_values_are_named():
    with torch.device("meta"):
        settings = presets.Model(feature_extractor="efficientnet_b0", feature_layer="features.2", pretrained=False)
        model = models.build(settings, 10, 64, 0)
    with pytest.raises(ConfigError, match="no rule for operator.mul in 'features.1.0.block.1': of two values"):
        Propagator(model)


@pytest.mark.parametrize(
    "body, message",
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6)), "no rule for GroupNorm in '1'"),
        (lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), "by statistics of the image"),
        (lambda: nn.Sequential(nn.MultiheadAttention(6, 1)), "cannot be traced|no rule for MultiheadAttention"),
    ],
)
def test_modules_without_a_rule_are_named(body, message):
    with pytest.raises(ConfigError, match=message):
        canonise(body())


def test_bad_settings():
    model, x = net().eval(), images(2)[0]
    for options, message in [
        ({"input_rule": "z_box"}, "did you mean zbox"),
        ({"sum_rule": "epsilom"}, "did you mean epsilon"),
        ({"chunk": 0}, "chunk must be at least 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            relevance(model, x, ASKED, **options)
    for prototypes in (torch.tensor([12]), torch.tensor([-1])):
        with pytest.raises(ConfigError, match="the numbers 0 to 11"):
            relevance(model, x, prototypes)
    for prototypes in (torch.tensor([0.5]), torch.tensor(3), torch.zeros(3, 2, dtype=torch.int64), ASKED[:0]):
        with pytest.raises(ValueError, match="expected prototypes int64"):
            relevance(model, x, prototypes)
    for bad in (x[0], x[:0], x.int()):
        with pytest.raises(ValueError, match="expected x"):
            relevance(model, bad, ASKED)


@pytest.mark.parametrize("beyond", [-0.1, 0.1])
def test_pixels_darker_or_brighter_than_they_can_be_are_refused(beyond):
    model, x = small(lambda: nn.Sequential(nn.Conv2d(3, 6, 3)), 6), noise(1, 3, 8, 8).clamp(-1, 1)
    x[0, 1, 2, 2] = 1.0 if beyond > 0 else -1.0
    settings = {"input_rule": "zbox", "low": -1.0, "high": 1.0}
    relevance(model, x, torch.arange(6), **settings)
    x[0, 1, 2, 2] += beyond
    with pytest.raises(ConfigError, match="leave the bounds of 'zbox'"):
        relevance(model, x, torch.arange(6), **settings)
