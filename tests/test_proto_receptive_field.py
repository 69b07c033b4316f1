"""Receptive fields are exact: those of the spec's table, of gradients, of perturbed pixels and of a plain walk."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from receptive_reference import network, stage_path, walked
from torch import nn

from helpers import runtime
from helpers.config import ConfigError
from helpers.prototypes.receptive_field import receptive_field, receptive_fields, table
from helpers.prototypes.released import rows
from helpers.prototypes.tracing import cut, stages, trace
from helpers.prototypes.verifier import landmarks, support, verify

TABLE = {name: list(group) for name, group in itertools.groupby(sorted(rows()), key=lambda row: row.backbone)}
FAMILIES = ("vgg11_bn", "resnet18", "densenet121", "inception_v3", "squeezenet1_0")
LENET = nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.AvgPool2d(2))


def everything(field):
    """Whether every cell sees the whole image."""
    return (field.lookup == [0, field.input_size[0], 0, field.input_size[1]]).all()


class Net(nn.Module):
    """``run(self, x)`` with some layers."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.run(self, x)


# the spec's table


@pytest.mark.parametrize("backbone", TABLE)
def test_table(backbone):
    """Spec section 3.4: every value, to the digits printed."""
    fields = receptive_fields(network(backbone), 224)
    for row in TABLE[backbone]:
        field = fields[stage_path(backbone, row.stage)]
        assert field.size == (row.size, row.size), row
        assert field.stride == (row.stride, row.stride), row
        assert not row.side or field.side == (row.side, row.side), row
        assert field.mean_percent == pytest.approx(row.percent, abs=0.00051), row


@pytest.mark.parametrize(
    "backbone, stage, first, middle",
    [
        ("vgg16", "maxpool4", (0, 58), (70, 170)),
        ("vgg16", "maxpool5", (0, 122), (6, 218)),
        ("resnet18", "layer3", (0, 106), (7, 218)),
        ("resnet50", "layer2", (0, 46), (67, 158)),
    ],
)
def test_intervals_of_the_table(backbone, stage, first, middle):
    field = receptive_fields(network(backbone), 224)[stage_path(backbone, stage)]
    centre = field.size[0] // 2
    assert field.box(0, 0) == (*first, *first)
    assert field.box(centre, centre) == (*middle, *middle)
    assert tuple(field.lookup[centre, 0]) == (*middle, *first)


# gradients


@pytest.mark.parametrize("backbone", [pytest.param(b, marks=() if b in FAMILIES else pytest.mark.slow) for b in TABLE])
def test_gradients_reach_the_receptive_field(backbone):
    """At corners, edges and the centre, all of it and nothing else, for every stage of the table."""
    for row in TABLE[backbone]:
        assert verify(network(backbone), 224, stage_path(backbone, row.stage), thin=True) == [], row


@pytest.mark.parametrize(
    "backbone, stage",
    [
        ("resnet18", "layer2"),
        ("mobilenet_v3_small", "features.3"),
        ("mobilenet_v2", "features.6"),
        ("shufflenet_v2_x0_5", "stage2"),
        ("convnext_tiny", "features.1"),
        ("efficientnet_b0", "features.2"),
        ("googlenet", "inception3a"),
        ("mnasnet0_5", "layers.8"),
    ],
)
def test_gradients_of_all_channels(backbone, stage):
    """Networks that take channels apart and shuffle them, excite them, and normalise over them."""
    assert verify(network(backbone), (64, 48), stage) == []


def test_gradients_of_regnet():
    assert verify(network("regnet_x_400mf", "cpu"), (48, 64), "trunk_output.block2") == []


@pytest.mark.parametrize("name, stage", [("tf_efficientnet_b0", "blocks.1"), ("res2net50_26w_4s", "layer1.0")])
def test_gradients_of_timm(name, stage):
    """Padding that depends on the size of the input, and channels that see each other in turn."""
    timm = pytest.importorskip("timm", reason="needs timm: pip install timm")
    net = trace(timm.create_model(name, pretrained=False))
    assert verify(net, (64, 49), stage) == []


def test_verifier_finds_a_wrong_field():
    """What is not seen for what the intervals say is told: here gaps that a wide stride leaves."""
    gappy = nn.Sequential(nn.Conv2d(1, 1, 1, stride=2), nn.Conv2d(1, 1, 3))
    (found,) = verify(gappy, 16, cells=[(2, 2)])
    assert found.cell == (2, 2) and found.expected == found.found and found.holes == 25 - 9
    assert verify(gappy, 16, holes=True) == []


# perturbations


@pytest.mark.parametrize(
    "backbone, stage, size",
    [
        ("resnet18", "layer2", (96, 80)),
        ("vgg11_bn", "features.14", (48, 40)),
        ("squeezenet1_1", "features.7", (64, 80)),
    ],
)
def test_pixels_outside_change_nothing(backbone, stage, size):
    """Spec section 15, invariant 3: bit by bit, in the real network with its ReLUs, maxima and norms."""
    net = cut(network(backbone, "cpu"), stage)
    field = receptive_field(net, size)
    random = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, *size, generator=random)
    with torch.no_grad():
        before = net(image)
        for i, j in landmarks(*field.size):
            y0, y1, x0, x1 = field.box(i, j)
            noise = torch.rand(image.shape, generator=random)
            inside = torch.zeros(size, dtype=torch.bool)
            inside[y0:y1, x0:x1] = True
            assert torch.equal(net(torch.where(inside, image, noise))[..., i, j], before[..., i, j])
            assert not torch.equal(net(torch.where(inside, noise, image))[..., i, j], before[..., i, j])


# a plain walk


@pytest.mark.parametrize(
    "net",
    [
        LENET,
        nn.Sequential(nn.Conv2d(1, 1, 3, dilation=2, padding=1), nn.Conv2d(1, 1, 3, stride=2), nn.MaxPool2d(3, 2, 1)),
        nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, 2, ceil_mode=True), nn.Conv2d(1, 1, (1, 2))),
        nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), nn.Conv2d(1, 1, 2)),
        nn.Sequential(nn.MaxPool2d(2, 3, dilation=2), nn.Conv2d(1, 1, 2, stride=2, padding=1)),
        Net(lambda m, x: m.a(x) + m.b(x), a=nn.Conv2d(1, 1, 5, padding=2), b=nn.Conv2d(1, 1, (1, 7), padding=(0, 3))),
        Net(lambda m, x: torch.cat([x, m.a(x)], 1), a=nn.Conv2d(1, 2, 3, padding=1)),
    ],
    ids=["lenet", "dilation", "ceil", "average", "gaps", "sum", "concatenation"],
)
@pytest.mark.parametrize("size", [(17, 17), (20, 13), (24, 31)])
def test_intervals_are_those_of_a_plain_walk(net, size):
    expected = walked(net, *size)
    field = receptive_field(net, size)
    assert field.size == (len(expected), len(expected[0]))
    assert [[tuple(box) for box in line] for line in field.lookup.tolist()] == expected
    assert verify(net, size, holes=True) == []


# geometry


@pytest.mark.parametrize("size", [224, 256, 384])
@pytest.mark.parametrize("backbone, stage", [("resnet18", "layer2"), ("vgg16", "features.23")])
def test_interior_cells_are_one_stride_apart(backbone, stage, size):
    """Spec section 15, invariants 2 and 4: boxes inside the image are un-clipped ones, as large for every input."""
    field = receptive_fields(network(backbone), size)[stage]
    inside = ((field.unclipped[..., ::2] >= 0) & (field.unclipped[..., 1::2] <= size)).all(axis=-1)
    assert inside.any() and np.array_equal(field.lookup[inside], field.unclipped[inside])
    (side, _), (stride, _) = field.side, field.stride
    edges = field.unclipped_edges[0]
    assert set(edges[:, 1] - edges[:, 0]) == {side} and set(np.diff(edges[:, 0])) == {stride}
    assert (field.lookup[..., ::2] >= 0).all() and (field.lookup[..., 1::2] <= size).all()
    assert (field.lookup[..., ::2] >= field.unclipped[..., ::2]).all()
    assert (field.lookup[..., 1::2] <= field.unclipped[..., 1::2]).all()


def test_rows_and_columns_are_apart():
    """Of an image that is not square the rows are those of a square one of its height."""
    tall, wide, both = (receptive_fields(network("resnet50"), s)["layer2"] for s in (320, 192, (320, 192)))
    assert np.array_equal(both.edges[0], tall.edges[0]) and np.array_equal(both.edges[1], wide.edges[1])
    assert both.input_size == (320, 192) and both.size == (40, 24)


@pytest.mark.parametrize("backbone", ["resnet18", "vgg13", "densenet121", "inception_v3", "squeezenet1_0"])
def test_sizes_are_those_of_the_network(backbone):
    """Every stage that has a map has the size that PyTorch gives it."""
    net, sizes = network(backbone), {}
    paths = {module: path for path, module in net.named_modules()}
    hooks = [m.register_forward_hook(lambda m, _, out: sizes.__setitem__(paths[m], out.shape)) for m in net.modules()]
    with torch.device("meta"):
        net(torch.empty(1, 3, 170, 135))
    for hook in hooks:
        hook.remove()
    fields = receptive_fields(net, (170, 135))
    measured = {path: shape[2:] for path, shape in sizes.items() if path in stages(net) and len(shape) == 4}
    assert len(measured) > 15 and {path: fields[path].size for path in measured} == measured


def test_shares_of_the_image():
    field = receptive_field(nn.Conv2d(1, 1, 3, padding=1), (4, 5))
    heights, widths = np.array([2, 3, 3, 2]), np.array([2, 3, 3, 3, 2])
    assert np.allclose(field.percent, np.outer(heights, widths) / 20 * 100)
    assert field.mean_percent == pytest.approx(field.percent.mean())
    assert (field.min_percent, field.max_percent) == pytest.approx((20, 45))


def test_a_table_has_a_row_a_stage():
    frame = table(receptive_fields(network("vgg16"), 224))
    row = frame.set_index("stage").loc["features.30"]
    assert (row["map"], row["stride"], row["side"]) == ("7 x 7", "32 x 32", "212 x 212")
    assert row["mean %"] == pytest.approx(52.489, abs=0.0005)


# layers


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout2d(),
        nn.Hardswish(),
        nn.LocalResponseNorm(2),
        nn.Softmax(dim=1),
        Net(lambda m, x: F.gelu(x) * torch.sigmoid(x) / 2 + 1),
        Net(lambda m, x: F.softmax(x, dim=1).clamp(min=0.1)),
        Net(lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(4)),
        Net(lambda m, x: torch.cat(x.chunk(2, dim=1)[::-1], dim=1)),
        Net(lambda m, x: x.view(x.shape[0], 2, 2, x.size(2), x.size(3)).transpose(1, 2).flatten(1, 2)),
        Net(lambda m, x: x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(x.shape)),
        Net(lambda m, x: x[:, 1:3] + x[:, :1]),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_what_is_pointwise_changes_nothing(layer):
    """Spec section 15, invariant 5, and what moves channels about."""
    before = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2))
    assert np.array_equal(receptive_field(nn.Sequential(*before, layer), 16).lookup, receptive_field(before, 16).lookup)


@pytest.mark.parametrize(
    "layer",
    [
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveMaxPool2d(1),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.LayerNorm([4, 8, 8]),
        Net(lambda m, x: x.mean((2, 3), keepdim=True)),
        Net(lambda m, x: x * torch.sigmoid(m.fc(F.adaptive_avg_pool2d(x, 1))), fc=nn.Conv2d(4, 4, 1)),
        Net(lambda m, x: x * m.fc(x.mean((2, 3)))[..., None, None], fc=nn.Linear(4, 4)),
        Net(lambda m, x: m.fc(x.flatten(1)).view(-1, 4, 8, 8), fc=nn.Linear(256, 256)),
        Net(lambda m, x: x + m.attend(*[x.flatten(2).transpose(1, 2)] * 3)[0].transpose(1, 2).reshape(x.shape),
            attend=nn.MultiheadAttention(4, 2, batch_first=True)),
        Net(lambda m, x: F.scaled_dot_product_attention(*[x.flatten(2)] * 3).reshape(x.shape)),
        Net(lambda m, x: (x.flatten(2) @ (x.flatten(2).transpose(1, 2) @ x.flatten(2)).softmax(-1)).view(x.shape)),
    ],
)  # fmt: skip
def test_what_looks_around_sees_everything(layer):
    """Global pooling, norms over maps, squeeze and excitation, linear layers, attention (spec section 15, 4)."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), layer)
    field = receptive_field(net, 16)
    assert everything(field) and np.isinf(field.side).all() and np.isinf(field.stride).all()
    assert np.isinf(field.unclipped).all()
    assert verify(net, 16) == []


@pytest.mark.parametrize(
    "layer, sizes",
    [
        (nn.AdaptiveAvgPool2d(3), (16, 11)),
        (nn.AdaptiveMaxPool2d((5, None)), (16, 11)),
        (nn.Upsample(scale_factor=2), (6, 5)),
        (nn.Upsample(size=(9, 11), mode="bilinear"), (6, 5)),
        (nn.Upsample(scale_factor=1.5, mode="bilinear", align_corners=True), (6, 5)),
        (nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), (6, 5)),
        (nn.ConvTranspose2d(2, 2, 4, dilation=2), (6, 5)),
        (nn.Conv2d(2, 2, 4, padding="same", groups=2), (6, 5)),
        (nn.Conv2d(2, 2, 3, padding=2, padding_mode="reflect"), (6, 5)),
        (nn.ReplicationPad2d((1, 0, 2, 1)), (6, 5)),
        (nn.ZeroPad2d(1), (6, 5)),
        (Net(lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 1))), (6, 5)),
        (Net(lambda m, x: F.pad(x[:, :, ::2, 1::2], (0, 1))), (6, 5)),
        (Net(lambda m, x: F.max_pool2d(F.interpolate(x, scale_factor=2), 3, ceil_mode=True)), (6, 5)),
        (Net(lambda m, x: torch.stack([x, F.avg_pool2d(x, 3, 1, 1)], dim=2).amax(2)), (6, 5)),
        (Net(lambda m, x: F.adaptive_avg_pool2d(x, (1, 4))), (16, 11)),
    ],
)
def test_gradients_of_other_windows(layer, sizes):
    net = nn.Sequential(nn.Conv2d(1, 2, 1), layer)
    field = receptive_field(net, sizes)
    assert field.size == tuple(net(torch.zeros(1, 1, *sizes)).shape[2:])
    cells = list(itertools.product(*map(range, field.size)))
    assert verify(net, sizes, cells=cells, holes=True) == []


def test_padding_alone_sees_nothing():
    net = nn.Conv2d(1, 1, 1, padding=1)
    field = receptive_field(net, 4)
    assert field.box(0, 2) == (0, 0, 1, 2) and field.percent[0, 2] == 0
    assert field.min_percent == 0 and field.max_percent == pytest.approx(100 / 16)
    assert not support(net, (4, 4), [(0, 2)]).any()


def test_a_sum_in_place_counts():
    """Although nobody uses what ``add_`` returns; the stage itself is what it was before."""

    def run(m, x):
        kept = m.a(x)
        kept.add_(m.b(x))
        return kept

    net = Net(run, a=nn.Conv2d(1, 1, 1), b=nn.Conv2d(1, 1, 3, padding=1))
    fields = receptive_fields(net, 8)
    assert fields["a"].side == (1, 1) and fields["output"].side == (3, 3)
    assert verify(net, 8) == []


def test_ways_of_evaluation_count():
    """A branch that is taken in training alone has no part in it, whatever mode the network is in."""
    net = Net(lambda m, x: F.avg_pool2d(x, 5, 1, 2) if m.training else m.a(x), a=nn.Conv2d(1, 1, 1))
    assert receptive_field(net.train(), 8).side == (1, 1)
    assert net.training and net.a.training


# errors


def test_operations_without_a_rule_are_named():
    net = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Sequential(Net(lambda m, x: torch.roll(x, 1, 2))))
    with pytest.raises(ConfigError, match=r"torch.roll \(node 'roll' in '1.0'\): it has no rule"):
        receptive_field(net, 8)
    assert receptive_field(cut(net, "0"), 8).side == (3, 3)
    with pytest.raises(ConfigError, match="PixelShuffle '1': it has no rule"):
        receptive_field(nn.Sequential(nn.Conv2d(1, 4, 3), nn.PixelShuffle(2)), 8)
    with pytest.raises(ConfigError, match="mode 'circular' is not supported"):
        receptive_field(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), 8)
    with pytest.raises(ConfigError, match="joins maps side by side, not channels"):
        receptive_field(Net(lambda m, x: torch.cat([x, x], dim=2)), 8)
    with pytest.raises(ConfigError, match="takes the rows of the map apart"):
        receptive_field(Net(lambda m, x: x.reshape(1, 3, 2, 4, 8).sum(2)), 8)


def test_a_way_that_depends_on_the_input_is_named():
    """A module like that stays whole, so that the stages before it have their fields."""
    odd = Net(lambda m, x: x if x.sum() > 0 else -x)
    with pytest.raises(ConfigError, match="Net cannot be traced: symbolically traced variables"):
        trace(odd)
    net = nn.Sequential(nn.Conv2d(1, 1, 3), odd)
    assert torch.equal(trace(net)(x := torch.rand(1, 1, 8, 8)), net(x))
    with pytest.raises(ConfigError, match="behind Net '1': it has no rule; symbolically traced"):
        receptive_field(net, 8)


def test_inputs_too_small_are_told():
    with pytest.raises(ConfigError, match="behind MaxPool2d 'features.28': the input is too small: a window of 2"):
        receptive_fields(network("vgg11_bn"), 16)
    for size in (0, (8,), "8", 8.0):
        with pytest.raises(ConfigError, match="input_size must be"):
            receptive_fields(LENET, size)


def test_a_stage_without_a_map_says_why():
    fields = receptive_fields(network("resnet18"), 64)
    assert "fc" not in fields and "output" not in fields
    with pytest.raises(ConfigError, match=r"stage 'fc' has no receptive field: .*\[1, 1000\]"):
        fields["fc"]
    with pytest.raises(ConfigError, match="no stage 'layer22': did you mean layer2"):
        fields["layer22"]
    with pytest.raises(ConfigError, match="'output' has no receptive field"):
        receptive_field(network("resnet18"), 64)


class Two(nn.Module):
    def forward(self, x, y):
        return x + y


def test_networks_have_one_input():
    with pytest.raises(ConfigError, match="more than one input"):
        receptive_field(Two(), 8)


# stages


def test_a_cut_network_ends_in_its_stage():
    net, found = runtime.import_torchvision().models.resnet18(weights=None).eval(), {}
    short = cut(net, "layer2")
    net.layer2.register_forward_hook(lambda m, _, out: found.setdefault("layer2", out))
    x = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        net(x)
        assert torch.equal(short(x), found["layer2"])
    state, kept = net.state_dict(), ("conv1.", "bn1.", "layer1.", "layer2.")
    assert list(short.state_dict()) == [name for name in state if name.startswith(kept)]
    assert short.conv1.weight is net.conv1.weight


def test_stages_come_in_order_of_computation():
    names = list(stages(network("resnet18")))
    assert names[:4] == ["conv1", "bn1", "relu", "maxpool"] and names[-1] == "fc"
    assert names.index("layer1.1.relu") < names.index("layer1.1") < names.index("layer1") < names.index("layer2.0")


def test_a_module_called_twice_is_the_last_call():
    net = Net(lambda m, x: m.b(m.a(m.b(x))), a=nn.Conv2d(1, 1, 3), b=nn.Conv2d(1, 1, 5))
    assert list(stages(trace(net))) == ["a", "b"]
    fields = receptive_fields(net, 32)
    assert fields["a"].side == (7, 7) and fields["b"].side == (11, 11)


def test_a_stage_that_is_not_there_has_near_misses():
    with pytest.raises(ConfigError, match="ResNet has no stage 'layer5': did you mean layer4"):
        cut(network("resnet18"), "layer5")
