"""A PiNet's logit is the sum of its own explanation, whatever it is built of."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import artifacts
from helpers.pinets import evaluate
from helpers.pinets.losses import area_loss
from helpers.pinets.models import (
    CNN,
    Area,
    Decoder,
    DenseDecoder,
    Encoder,
    Ensemble,
    PiNet,
    ResidualBlock,
    ScaledSum,
    UpConv,
)
from helpers.pinets.presets import Groups


def luminance(x):
    return x.mean(1, keepdim=True)


def block_means(x):
    return F.avg_pool2d(x, 4)


def conv(maps=1, channels=1):
    """A small encoder and decoder for images [B, channels, 16, 16]."""
    return Encoder(channels, width=4, depth=2), Decoder(8, depth=2, maps=maps)


def naive():
    return Encoder(1, width=4, depth=2), DenseDecoder(8, (16, 16))


def coarse():
    """Scores on a 4 x 4 grid, where z is the mean of a block of pixels."""
    return Encoder(1, width=4, depth=3), nn.Conv2d(16, 1, 1)


VARIANTS = {
    "default": lambda: PiNet(*conv()),
    "soft": lambda: PiNet(*conv(), second_look="soft"),
    "tanh": lambda: PiNet(*conv(), activation="tanh"),
    "identity": lambda: PiNet(*conv(), activation="identity"),
    "own activation": lambda: PiNet(*conv(), activation=F.softplus),
    "naive": lambda: PiNet(*naive()),
    "three classes": lambda: PiNet(*conv(maps=3), aggregator=ScaledSum(3)),
    "three classes, soft": lambda: PiNet(*conv(maps=3), "soft", "softmax", ScaledSum(3)),
    "three maps, one class": lambda: PiNet(*conv(maps=3)),
    "areas": lambda: PiNet(*conv(maps=3), "soft", "softmax", Area()),
    "one area": lambda: PiNet(*conv(), "soft", aggregator=Area()),
    "block means": lambda: PiNet(*coarse(), z=block_means),
    "luminance": lambda: PiNet(*conv(channels=3), z=luminance),
    "colours": lambda: PiNet(*conv(maps=3, channels=3)),
}
SEVERAL = ("three classes", "three classes, soft", "areas")  # of those every map has its own logit
every_variant = pytest.mark.parametrize("name", VARIANTS)


def trained(make, seed=0):
    """A model in eval mode as training might leave it: no parameter and no statistic at its initial value."""
    torch.manual_seed(seed)
    model = make()
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    for _ in range(3):
        model(torch.rand(8, channels, 16, 16))
    if isinstance(getattr(model, "aggregator", None), ScaledSum):
        nn.init.uniform_(model.aggregator.weight, 0.3, 1.2)
        nn.init.uniform_(model.aggregator.bias, -2, -1)
    return model.eval()


def images(model, n=5, seed=1):
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    return torch.rand(n, channels, 16, 16, generator=torch.Generator().manual_seed(seed))


def z_of(model, x):
    return model.z(x)


def by_hand(model, output, x):
    """``weight**2 * sum(evidence) + bias`` in float64, one number after the other."""
    evidence = output.scores * z_of(model, x) if model.second_look == "hard" else output.scores
    weight = getattr(model.aggregator, "weight", torch.ones(()))
    bias = getattr(model.aggregator, "bias", torch.zeros(()))
    if output.logits.ndim == 1:
        return torch.stack([weight.double() ** 2 * e.double().sum() + bias.double() for e in evidence])
    weight, bias = weight.expand(evidence.shape[1]).double(), bias.expand(evidence.shape[1]).double()
    return torch.stack(
        [torch.stack([weight[k] ** 2 * e[k].double().sum() + bias[k] for k in range(len(e))]) for e in evidence]
    )


# ------------------------------------------------------------------------------------------ 1: aligned


@every_variant
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_logit_is_the_explanation_added_up(name, mode):
    model = trained(VARIANTS[name]).train(mode == "train")
    x = images(model)
    output = model(x)
    assert torch.allclose(output.logits.double(), by_hand(model, output, x), rtol=1e-5, atol=1e-5)
    assert evaluate.identity_error(model, x) < 1e-5
    contributions = model.contributions(output).double()
    total = contributions.sum((2, 3) if name in SEVERAL else (1, 2, 3)) + getattr(model.aggregator, "bias", 0)
    assert torch.allclose(output.logits.double(), total, rtol=1e-5, atol=1e-5)


@every_variant
def test_the_identity_survives_a_round_trip_through_a_file(name, tmp_path):
    model, other = trained(VARIANTS[name]), VARIANTS[name]().eval()
    x = images(model)
    artifacts.save_tensors(tmp_path / "a.safetensors", model.state_dict())
    artifacts.load_state(other, artifacts.load_tensors(tmp_path / "a.safetensors")[0])
    assert all(torch.equal(a, b) for a, b in zip(model(x), other(x), strict=True))
    artifacts.save_tensors(tmp_path / "half.safetensors", artifacts.half_precision(model.state_dict()))
    artifacts.load_state(other, artifacts.load_tensors(tmp_path / "half.safetensors")[0])
    assert evaluate.identity_error(other, x) < 1e-5
    assert torch.allclose(other(x).scores, model(x).scores, atol=0.02)


def test_the_identity_error_sees_a_logit_that_is_not_the_sum():
    model = trained(VARIANTS["default"])
    honest = model.read_out
    model.read_out = lambda scores, z: honest(scores, z)._replace(logits=honest(scores, z).logits * 1.01)
    assert evaluate.identity_error(model, images(model)) > 0.005


def test_autocast_does_not_round_the_evidence_away():
    model, x = trained(VARIANTS["default"]), images(trained(VARIANTS["default"]))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    assert output.logits.dtype == output.scores.dtype == torch.float32
    assert torch.allclose(output.logits.double(), by_hand(model, output, x), rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert CNN(Encoder(1, 4, 2))(x).logits.dtype == torch.float32, "the loss is of float32, as a PiNet's is"


# ------------------------------------------------------------- 2 and 3: linear in z; the two second looks


@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name]().second_look == "hard"])
def test_a_hard_second_look_is_linear_in_z(name):
    model = trained(VARIANTS[name])
    x = images(model)
    scores, z = model(x).scores, z_of(model, x)
    bias, weight = model.aggregator.bias, model.aggregator.weight
    logits = model.read_out(scores, z).logits
    for factor in (0.0, 0.5, -3.0):
        scaled = model.read_out(scores, factor * z).logits
        assert torch.allclose(scaled - bias, factor * (logits - bias), rtol=1e-4, atol=1e-4)

    dark = z.clone()
    dark[:, 0, 2, 3] = 0
    of_map_0 = (slice(None), 0) if name in SEVERAL else slice(None)
    change = (model.read_out(scores, dark).logits - logits)[of_map_0]
    seen = scores[:, :, 2, 3].sum(1) if z.shape[1] < scores.shape[1] else scores[:, 0, 2, 3]  # z is shared by the maps
    seen = scores[:, 0, 2, 3] if name in SEVERAL else seen
    assert torch.allclose(change, -(weight.reshape(-1)[0] ** 2) * seen * z[:, 0, 2, 3], rtol=1e-3, atol=1e-4)
    assert (change != 0).all()
    blank = model.contributions(model.read_out(scores, dark))[:, :, 2, 3]
    assert (blank == 0).all() if z.shape[1] == 1 else (blank[:, 0] == 0).all(), "what is not there cannot count"


@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name]().second_look == "soft"])
def test_a_soft_second_look_ignores_the_values_of_z(name):
    model = trained(VARIANTS[name])
    scores, z = model(images(model)).scores, z_of(model, images(model))
    output, dark = model.read_out(scores, z), model.read_out(scores, torch.zeros_like(z))
    assert torch.equal(output.logits, dark.logits)
    assert torch.equal(model.contributions(output), model.contributions(dark))
    assert not torch.equal(output.signal, dark.signal), "the signal still says what was seen"
    brighter = model.read_out(scores * 2, z).logits
    bias = getattr(model.aggregator, "bias", 0)
    assert torch.allclose(brighter - bias, 2 * (output.logits - bias), rtol=1e-4)


@every_variant
def test_the_prediction_depends_on_the_input_through_scores_and_z_alone(name):
    model = trained(VARIANTS[name])
    x = images(model)
    output = model(x)
    assert torch.equal(model.read_out(output.scores, z_of(model, x)).logits, output.logits)
    assert torch.equal(output.signal, output.scores * z_of(model, x))


# ----------------------------------------------------------------------------- 4: evidence and its range


def test_sigmoid_scores_only_add_evidence():
    model = trained(VARIANTS["default"])
    output = model(images(model))
    assert (output.scores > 0).all() and (output.scores < 1).all()
    assert (output.logits >= model.aggregator.bias).all()
    model.aggregator.weight.data.neg_()
    assert torch.equal(model(images(model)).logits, output.logits), "the weight counts by its square"


@pytest.mark.parametrize("name", ["default", "tanh", "naive", "block means"])
def test_a_blank_image_has_the_bias_as_its_logit(name):
    model = trained(VARIANTS[name])
    assert torch.equal(model(torch.zeros(3, 1, 16, 16)).logits, model.aggregator.bias.expand(3))


def test_activations_have_their_ranges():
    raw = 3 * torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))

    def scores(activation):
        return PiNet(nn.Identity(), nn.Identity(), activation=activation)(raw).scores

    assert torch.equal(scores("sigmoid"), raw.sigmoid()) and torch.equal(scores("tanh"), raw.tanh())
    assert torch.equal(scores("identity"), raw)
    assert torch.allclose(scores("softmax").sum(1), torch.ones(4, 5, 5)), "classes share each pixel"


# ------------------------------------------------------------------------- several classes, regression, z


def test_each_class_reads_its_own_map():
    model = trained(VARIANTS["three classes"])
    x = images(model)
    scores = model(x).scores
    changed = scores.clone()
    changed[:, 1] = 0
    before, after = model.read_out(scores, x).logits, model.read_out(changed, x).logits
    assert before.shape == (5, 3)
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert torch.equal(after[:, 1], model.aggregator.bias[1].expand(5))


def test_softmax_areas_add_up_to_the_image():
    areas = trained(VARIANTS["areas"])(images(trained(VARIANTS["areas"]))).logits
    assert areas.shape == (5, 3) and (areas > 0).all()
    assert torch.allclose(areas.sum(1), torch.full((5,), 256.0))
    one = trained(VARIANTS["one area"])
    assert one(images(one)).logits.shape == (5,)


def test_a_pinet_learns_an_area():
    """Regression: from areas alone, the soft second look finds which pixels are bright."""
    torch.manual_seed(0)
    x = (torch.rand(16, 1, 8, 8) < torch.rand(16, 1, 1, 1)).float()
    model = PiNet(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1), "soft", aggregator=Area())
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        area_loss(model(x).logits, x.sum((1, 2, 3))).backward()
        optimizer.step()
    scores = model(x).scores
    assert scores[x > 0].mean() > 0.9 and scores[x == 0].mean() < 0.1


def test_z_may_be_a_summary_of_the_image():
    coarse_model, grey = trained(VARIANTS["block means"]), trained(VARIANTS["luminance"])
    assert coarse_model(images(coarse_model)).scores.shape == (5, 1, 4, 4)
    x = images(grey)
    assert grey(x).scores.shape == (5, 1, 16, 16)
    assert torch.equal(grey(x).signal, grey(x).scores * x.mean(1, keepdim=True))


def test_z_may_be_a_module_whose_parameters_are_trained():
    model = PiNet(*conv(), z=nn.Conv2d(1, 1, 1))
    assert "z.weight" in dict(model.named_parameters())
    model(torch.rand(2, 1, 16, 16)).logits.sum().backward()
    assert model.z.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"second_look": "sharp"}, "second_look must be 'hard' or 'soft', not 'sharp'"),
        ({"activation": "relu"}, "unknown activation 'relu'; there are: sigmoid, tanh, softmax, identity"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PiNet(*conv(), **options)


@pytest.mark.parametrize("maps", [1, 2, 4])
def test_classes_without_a_map_each_are_refused(maps):
    """The channels of a colour image would take the classes' place."""
    model = PiNet(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, maps, 1), aggregator=ScaledSum(classes=3))
    with pytest.raises(ValueError, match=f"makes {maps} maps for 3 classes"):
        model(torch.rand(1, 3, 8, 8))


# ------------------------------------------------------------------------------- 5 and 6: shapes and sizes


@pytest.fixture(scope="module")
def published():
    """The paper's networks, by group."""
    from helpers.pinets.fits import build

    return {name: build(getattr(Groups(), name).model, 80).eval() for name in Groups.model_fields}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("channel_axis", [False, True])
def test_published_networks_have_the_published_shapes(published, n, channel_axis):
    x = torch.rand(n, 1, 80, 80) if channel_axis else torch.rand(n, 80, 80)
    for name, model in published.items():
        with torch.inference_mode():
            output = model(x)
        assert output.logits.shape == (n,), name
        if name == "cnn":
            assert output.scores.shape == (n, 128, 20, 20) and output.signal is None
        else:
            assert output.scores.shape == output.signal.shape == (n, 1, 80, 80), name


@pytest.mark.parametrize("shape", [(80, 80), (1, 1, 1, 8, 8)])
def test_an_input_that_is_no_batch_of_images_is_refused(published, shape):
    for name in ("cnn", "pinet"):
        with pytest.raises(ValueError, match=r"expected x of shape \[B, H, W\] or \[B, C, H, W\]"):
            published[name](torch.zeros(shape))


def test_published_networks_have_the_published_sizes(published):
    """Spec section 3.2, without the 2,688 parameters of shortcuts that the bundle creates and never uses."""
    count = {name: sum(p.numel() for p in model.parameters()) for name, model in published.items()}
    unused = (1 * 16 + 16) + (16 * 32 + 32) + (32 * 64 + 64)  # 1x1 convolutions where the encoder's widths differ
    assert count["cnn"] == 297_953
    assert count["pinet"] == count["soft"] == count["feedback"] == count["strong"] == 105_875 == 108_563 - unused
    assert count["naive"] == 488_242 == 490_930 - unused
    assert sum(p.numel() for p in published["pinet"].decoder.parameters()) == 33_633
    assert published["cnn"].head.weight.numel() + 1 == 129
    assert sum(p.numel() for p in published["naive"].decoder.parameters()) == 416_000
    for model in published.values():
        if isinstance(model, PiNet):
            assert (model.aggregator.weight.item(), model.aggregator.bias.item()) == (1, 0)


def test_published_networks_are_the_groups_they_stand_for(published):
    assert isinstance(published["cnn"], CNN) and isinstance(published["naive"].decoder, DenseDecoder)
    assert {name for name, m in published.items() if getattr(m, "second_look", "") == "soft"} == {"soft"}
    for name, model in published.items():
        assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.1 if name == "cnn" else 0.0}, name
        assert any("shortcut" in module for module, _ in model.named_modules()) == (name == "cnn"), name


def test_a_score_sees_44_pixels_and_a_feature_32(published):
    """The receptive fields of spec section 3.1: nothing outside changes a score, something inside does."""
    torch.manual_seed(0)
    for name, at, reach in (("pinet", 40, 44), ("cnn", 10, 32)):
        x = torch.rand(1, 1, 80, 80, requires_grad=True)
        published[name](x).scores[0, :, at, at].sum().backward()
        columns = x.grad[0, 0].abs().sum(0).nonzero()
        assert reach - 6 <= int(columns.max() - columns.min()) + 1 <= reach, name


# ------------------------------------------------------------------------------------------------ blocks


@pytest.mark.parametrize(("channels_in", "channels_out"), [(6, 3), (1, 1), (4, 5)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_upconv_is_a_transposed_convolution(channels_in, channels_out, memory_format):
    torch.manual_seed(0)
    ours, theirs = UpConv(channels_in, channels_out), nn.ConvTranspose2d(channels_in, channels_out, 2, stride=2)
    theirs.load_state_dict(ours.state_dict())
    inputs = [torch.randn(3, channels_in, 5, 7).to(memory_format=memory_format).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    outputs = [layer(x) for layer, x in zip((ours, theirs), inputs, strict=True)]
    assert outputs[0].shape == (3, channels_out, 10, 14)
    assert torch.allclose(*outputs, atol=1e-6)
    weights = torch.randn(outputs[0].shape)
    for output in outputs:
        (output * weights).sum().backward()
    for a, b in zip((inputs[0], ours.weight, ours.bias), (inputs[1], theirs.weight, theirs.bias), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-4)


def test_a_residual_block_adds_its_input_if_told_to():
    """With the last batch norm at zero the body is silent: what is left is the shortcut."""
    x = torch.rand(2, 4, 6, 6)
    for width, skip in [(4, True), (4, False), (8, True)]:
        block = ResidualBlock(4, width, skip=skip).eval()
        nn.init.zeros_(block.body[4].weight), nn.init.zeros_(block.body[4].bias)
        left = block(x)
        if not skip:
            assert block.shortcut is None and (left == 0).all()
        else:
            assert torch.equal(left, (x if width == 4 else block.shortcut(x)).relu())


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_decoder_undoes_its_encoders_pooling(depth):
    encoder = Encoder(2, width=4, depth=depth)
    x = torch.rand(2, 2, 16, 16)
    h = encoder(x)
    assert h.shape == (2, encoder.out_channels, 16 >> (depth - 1), 16 >> (depth - 1))
    assert Decoder(encoder.out_channels, depth, maps=3)(h).shape == (2, 3, 16, 16)


def test_what_a_decoder_is_told_reaches_every_block_of_it():
    """No published PiNet has a skip or dropout: a decoder deaf to both would be told by no other test."""
    for skip, dropout in [(True, 0.2), (False, 0.0)]:
        blocks = [m for m in Decoder(8, 3, skip=skip, dropout=dropout) if isinstance(m, ResidualBlock)]
        assert [block.shortcut is not None for block in blocks] == [skip] * 2
        assert [block.body[-1].p for block in blocks] == [dropout] * 2


def test_the_naive_decoder_knows_no_place():
    """Pooling comes first: where in the image something is cannot change the map."""
    decoder = DenseDecoder(8, (5, 6), maps=2)
    h = torch.rand(3, 8, 4, 4)
    assert decoder(h).shape == (3, 2, 5, 6)
    assert torch.allclose(decoder(h), decoder(h.flip(3).roll(1, 2)), atol=1e-6)
    assert torch.allclose(decoder(h).flatten(1), decoder.dense(h.mean((2, 3)))), "the pooling is by the mean"


def test_the_cnn_reads_pooled_features():
    model = CNN(Encoder(1, 4, 2, skip=True), classes=3).eval()
    output = model(torch.rand(2, 1, 16, 16))
    assert output.logits.shape == (2, 3)
    assert torch.allclose(output.logits, model.head(output.scores.mean((2, 3))))


# --------------------------------------------------------------------------------------------- ensembles


@pytest.mark.parametrize("name", ["default", "soft", "three classes", "luminance"])
def test_an_ensemble_is_aligned_again(name):
    """``mean logit == sum(mean(weight**2 * scores) * z) + mean(bias)``: the mean of linear read-outs is one."""
    members = [trained(VARIANTS[name], seed) for seed in range(3)]
    ensemble = Ensemble(members).eval()
    x = images(members[0])
    output, alone = ensemble(x), [member(x) for member in members]
    assert torch.allclose(output.logits, torch.stack([o.logits for o in alone]).mean(0), atol=1e-5)

    squares = [member.aggregator.weight.reshape(-1, 1, 1) ** 2 for member in members]
    scores = sum(square * o.scores for square, o in zip(squares, alone, strict=True)) / 3
    assert torch.allclose(output.scores, scores, atol=1e-6)
    evidence = scores * z_of(members[0], x) if ensemble.second_look == "hard" else scores
    bias = sum(member.aggregator.bias for member in members) / 3
    dims = (2, 3) if name in SEVERAL else (1, 2, 3)
    assert torch.allclose(output.logits, evidence.sum(dims) + bias, rtol=1e-4, atol=1e-4)
    assert torch.allclose(ensemble.contributions(output), evidence, atol=1e-6)
    assert evaluate.identity_error(ensemble, x) < 1e-5


def test_an_ensemble_of_copies_is_the_model():
    model = trained(VARIANTS["default"])
    x = images(model)
    ensemble, alone = Ensemble([model, copy.deepcopy(model), copy.deepcopy(model)]).eval()(x), model(x)
    square = model.aggregator.weight**2
    assert torch.allclose(ensemble.logits, alone.logits, rtol=1e-6)
    assert torch.allclose(ensemble.scores, square * alone.scores, rtol=1e-6)
    assert torch.allclose(ensemble.signal, square * alone.signal, rtol=1e-6)


def test_ensembles_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="at least one member"):
        Ensemble([])
    with pytest.raises(ValueError, match="must share their second look"):
        Ensemble([VARIANTS["default"](), VARIANTS["soft"]()])
