"""The floods study: encoders that stay frozen, a head, losses and measures against the slow way, fits that resume."""

import copy
import io
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from flood_small import in_small, release, run_cells, serving
from torch import nn

from helpers import artifacts, downloads, runtime, training
from helpers.artifacts import ArtifactError
from helpers.config import ConfigError, data_config
from helpers.data import flood_chips, sen1floods11
from helpers.downloads import DownloadError, Patience
from helpers.ledger import Ledger
from helpers.pinets.floods import claims, encoders, evaluate, features, fits, losses, study, tables
from helpers.pinets.floods.encoders import Frozen
from helpers.pinets.floods.fits import Member
from helpers.pinets.floods.head import Head, UperNet, Upsampler, network
from helpers.pinets.floods.maps import Maps
from helpers.pinets.floods.presets import FloodsStudy, published

needs_galileo = pytest.mark.skipif(
    not (downloads.data_root() / "galileo_nano" / "encoder.pt").exists(),
    reason="the weights of Galileo-nano are not under SIGHTLINE_DATA: nothing to load",
)


def quick(out, **changes):
    return published("quick").override({"out": str(out), **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(study, records) of the quick preset, one fit of each kind."""
    own = quick(tmp_path_factory.mktemp("floods"), retrain=True, rules=("corrected", "released"))
    return own.override({"retrain": False}), study.collect(own)


# -------------------------------------------------------------------------------------------------- encoders


@pytest.fixture
def tiny(monkeypatch):
    """Prithvi with 48 channels and patches of 8; returns the weights that its file would hold."""
    facts = copy.deepcopy(data_config("flood_encoders"))
    facts["prithvi"] |= {"width": 48, "heads": 2, "patch": 8}
    monkeypatch.setattr(encoders, "data_config", lambda name: facts)
    monkeypatch.setitem(encoders.GEOMETRY, "prithvi", {"width": 48, "patch": 8})
    with runtime.seeded(1, "weights"):
        whole = encoders.Prithvi(np.zeros(6), np.ones(6), width=48, heads=2, patch=8, depth=12)
        nn.init.normal_(whole.cls_token)
    return {f"encoder.{key}": value for key, value in whole.state_dict().items()} | {
        "encoder.pos_embed": torch.zeros(1, 5, 48),
        "decoder.mask_token": torch.zeros(1, 1, 8),
    }


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def test_the_networks_have_the_published_numbers_of_parameters():
    """Spec property 6."""
    ledger = Ledger("floods")
    claims.check_parameters(ledger, "3")
    assert ledger.entries[0].verdict == "reproduced"
    with torch.device("meta"):
        assert tables.count(Head(768, 16, 3)) == 3_120_576 + 1_543
        assert tables.count(encoders.prithvi(np.zeros(6), np.ones(6)).blocks[0]) == 7_087_872


def test_every_parameter_of_the_truncated_encoder_is_loaded(tiny):
    """Spec property 19: of twelve blocks in the file, four."""
    encoder = encoders.prithvi(np.zeros(6), np.ones(6))
    encoders.load_prithvi(encoder, tiny)
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, tiny[f"encoder.{key}"]), key
    assert len(encoder.blocks) == 4


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("encoder.blocks.3.mlp.fc2.bias"),
        lambda state: state.update({"encoder.norm.weight": torch.ones(7)}),
        lambda state: [state.update({key.removeprefix("encoder."): state.pop(key)}) for key in list(state)],
    ],
    ids=["a key is missing", "another shape", "the old file without prefixes"],
)
def test_weights_with_missing_keys_are_refused(tiny, spoil):
    encoder = encoders.prithvi(np.zeros(6), np.ones(6))
    before = artifacts.fingerprint(encoder.state_dict())
    spoil(tiny)
    with pytest.raises(ArtifactError, match=r"lack \d+ of \d+ parameters of the encoder, among them encoder\."):
        encoders.load_prithvi(encoder, tiny)
    assert artifacts.fingerprint(encoder.state_dict()) == before, "nothing was loaded"


def test_prithvi_comes_from_the_hub_pinned_to_a_commit(tiny, tmp_path, monkeypatch):
    name = "ibm-nasa-geospatial/Prithvi-EO-1.0-100M/Prithvi_EO_V1_100M.pt"
    monkeypatch.setenv("SIGHTLINE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(downloads, "PATIENCE", Patience(retries=0))
    with serving(tmp_path, {name: saved(tiny)}) as (server, url):
        monkeypatch.setenv("HF_ENDPOINT", url)
        encoder = encoders.build("prithvi", (np.zeros(6), np.ones(6)))
        assert torch.equal(encoder.norm.weight, tiny["encoder.norm.weight"])
        asked = len(server.asked)
        encoders.build("prithvi", (np.zeros(6), np.ones(6)))
        assert len(server.asked) == asked, "what is there needs no network"
    pin = artifacts.load_json(tmp_path / "data" / "prithvi_eo_1_0_100m" / "source.json")
    assert "@c0ffee/" in pin["url"] and pin["sha256"]
    (tmp_path / "data" / "prithvi_eo_1_0_100m" / "Prithvi_EO_V1_100M.pt").write_bytes(b"another file")
    with pytest.raises(DownloadError, match="is not the file it should be"):
        encoders.build("prithvi", (np.zeros(6), np.ones(6)))


def test_without_the_hub_or_the_file_it_is_said_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGHTLINE_DATA", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match='could not be looked up(.|\n)*by hand(.|\n)*"untrained"'):
        encoders.prithvi_file()
    with pytest.raises(DownloadError, match='encoder.pt(.|\n)*"untrained"'):
        encoders.build("galileo_nano", None)
    path = tmp_path / "prithvi_eo_1_0_100m" / "Prithvi_EO_V1_100M.pt"
    path.parent.mkdir()
    path.write_bytes(b"half a file")
    with pytest.raises(DownloadError, match="cannot be read"):
        encoders.build("prithvi", (np.zeros(6), np.ones(6)))


def test_a_frozen_encoder_gets_no_gradient_and_stays_in_eval_mode():
    """Spec property 19."""
    encoder = encoders.build("untrained", (np.zeros(6), np.ones(6)))
    model = network(24, 8, 2, 8, encoder)
    model.train()
    assert model.decoder.training and not any(module.training for module in encoder.modules())
    x = torch.randn(2, 6, 32, 32)
    first = encoder(x)
    losses.area_error(model(x).scores, losses.one_hot(torch.zeros(2, 32, 32), (0, 1))).mean().backward()
    assert all(p.grad is None and not p.requires_grad for p in encoder.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.decoder.parameters())
    assert torch.equal(encoder(x), first)


def test_positions_are_sines_then_cosines_of_column_row_and_date():
    width, h, w = 32, 3, 4
    code = encoders.positions(width, h, w)
    part = 12
    for row in range(h):
        for column in range(w):
            expected = []
            for place, size in ((column, part), (row, part), (0, width - 2 * part)):
                rates = [10_000 ** (-i / (size / 2)) for i in range(size // 2)]
                expected += [math.sin(place * rate) for rate in rates] + [math.cos(place * rate) for rate in rates]
            np.testing.assert_allclose(code[row * w + column], expected, atol=1e-6)
    assert encoders.positions(768, 16, 16).shape == (256, 768)


def test_the_last_block_goes_through_the_final_norm_and_maps_keep_their_places(tiny):
    encoder = encoders.prithvi(np.full(6, 5.0), np.full(6, 2.0))
    encoders.load_prithvi(encoder, tiny)
    x = torch.randn(1, 6, 16, 24)
    maps = encoder.tokens(x)
    assert [tuple(m.shape) for m in maps] == [(1, 48, 2, 3)] * 4
    states = encoder.patch_embed.proj(((x - 5) / 2)[:, :, None]).flatten(2).mT + encoders.positions(48, 2, 3)
    states = torch.cat([encoder.cls_token, states], 1)
    for number, block in enumerate(encoder.blocks):
        states = block(states)
        last = encoder.norm(states) if number == 3 else states
        torch.testing.assert_close(maps[number][0, :, 1, 2], last[0, 1 + 5])
    assert {m.eps for m in encoder.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}, "spec section 6.2"


@needs_galileo
def test_galileo_is_loaded_whole_and_reads_its_own_bands():
    encoder = encoders.build("galileo_nano", None)
    assert isinstance(encoder, Frozen) and encoders.fingerprint(encoder) == "a8709a04021b"
    path = downloads.data_root() / "galileo_nano" / "encoder.pt"
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    block = encoder.blocks[2].attn
    assert torch.equal(block.qkv.weight[128:256], theirs["blocks.2.attn.k.weight"])
    mean, std = (torch.tensor(data_config("flood_encoders")["galileo_nano"][k]) for k in ("mean", "std"))
    x = (mean + std)[None, :, None, None].expand(1, 6, 16, 16)
    swir = encoder.embed[2](((x - encoder.low) / encoder.span)[:, 4:6])
    weight, bias = (theirs[f"space_time_embed.S2_SWIR.proj.{kind}"] for kind in ("weight", "bias"))
    torch.testing.assert_close(swir[0, :, 1, 1], 0.75 * weight.sum((1, 2, 3)) + bias)  # mean + sd lies at 3/4
    assert encoder(x).shape == (1, 512, 2, 2)


def test_galileos_tokens_are_bands_place_and_date_and_their_mean_over_the_groups():
    """Token by token, with random weights: channels, date and month in three quarters, column and row in the last."""
    facts = data_config("flood_encoders")["galileo_nano"]
    with runtime.seeded(2, "weights"):
        encoder = encoders.Galileo(facts).eval()
        nn.init.normal_(encoder.origin), nn.init.normal_(encoder.norm.bias)
        x = torch.randn(1, 6, 2 * encoder.patch, 3 * encoder.patch) * 1000
    patch, quarter = encoder.patch, encoder.width // 4
    scaled, tokens = (x - encoder.low) / encoder.span, []
    for row in range(2):
        for column in range(3):
            place = []
            for pixels in (column * patch, row * patch):
                angles = [pixels * 10_000 ** (-i / (quarter / 4)) for i in range(quarter // 4)]
                place += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            seen = scaled[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            for group, bands in enumerate([slice(0, 3), slice(3, 4), slice(4, 6)]):
                code = torch.cat([encoder.origin[group], torch.tensor(place)])
                tokens.append(encoder.embed[group](seen[:, bands])[0, :, 0, 0] + code)
    states = torch.stack(tokens)[None]
    for number, (block, found) in enumerate(zip(encoder.blocks, encoder.tokens(x), strict=True)):
        states = block(states)
        last = encoder.norm(states) if number == 3 else states
        expected = last[0].view(2, 3, 3, -1).mean(2).permute(2, 0, 1)
        torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------ head


@pytest.mark.parametrize(
    ("factor", "doublings", "size"), [(4, 2, 32), (2, 1, 16), (3, 2, 24), (1, 0, 8), (5, 3, 40)]
)
def test_the_upsampler_doubles_as_often_as_fits_and_resizes_where_it_falls_short(factor, doublings, size):
    upsampler = Upsampler(32, factor, 3)
    assert sum(isinstance(layer, nn.ConvTranspose2d) for layer in upsampler) == doublings
    assert upsampler(torch.zeros(2, 32, 8, 8)).shape == (2, 3, size, size)


def test_the_pyramid_has_the_published_scales():
    upernet = UperNet(16, 8).eval()
    features = torch.randn(1, 64, 16, 16)
    sizes = [tuple(s(p).shape[1:]) for s, p in zip(upernet.scales, features.split(16, 1), strict=True)]
    assert sizes == [(4, 64, 64), (8, 32, 32), (16, 16, 16), (16, 8, 8)]
    assert upernet(features).shape == (1, 8, 64, 64)


def test_the_pyramid_is_joined_as_published():
    """Spec section 6.3, step 2, restated with torch's own functions. Only the weights are the network's: pool sizes,
    blocks, order, and how is resized have no parameter that would tell of another choice."""
    upernet = UperNet(16, 8).eval()
    for norm in (module for module in upernet.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 2), nn.init.normal_(norm.running_mean)

    def resized(x, like):
        return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)

    def block(layers, x):
        return layers[1](F.conv2d(x, layers[0].weight, padding=layers[0].weight.shape[-1] // 2)).relu()

    def doubled(layer, x):
        return F.conv_transpose2d(x, layer.weight, layer.bias, stride=2)

    features = torch.randn(2, 64, 16, 12)
    first, second, third, fourth = features.split(16, 1)
    up, norm, _, again = upernet.scales[0]
    levels = [doubled(again, F.gelu(norm(doubled(up, first)))), doubled(upernet.scales[1][0], second), third]
    coarse = F.max_pool2d(fourth, 2)
    pools = zip((1, 2, 3, 6), upernet.pools, strict=True)
    pooled = [resized(block(conv, F.adaptive_avg_pool2d(coarse, size)), coarse) for size, conv in pools]
    joined = [block(upernet.bottleneck, torch.cat([coarse, *pooled], 1))]
    for level in (2, 1, 0):
        lateral = block(upernet.lateral[level], levels[level])
        joined.insert(0, lateral + resized(joined[0], lateral))
    maps = [*map(block, upernet.output, joined[:3]), joined[3]]
    expected = block(upernet.fusion, torch.cat([resized(each, maps[0]) for each in maps], 1))
    torch.testing.assert_close(upernet(features), expected, atol=1e-4, rtol=1e-4)


def test_the_upsampler_drops_a_tenth_and_resizes_corner_to_corner():
    upsampler = Upsampler(32, 3, 3).eval()
    assert {layer.p for layer in upsampler if isinstance(layer, nn.Dropout)} == {0.1}
    x = torch.randn(2, 32, 4, 5)
    doubled = nn.Sequential(*upsampler)(x)
    expected = F.interpolate(doubled, (12, 15), mode="bilinear", align_corners=True)
    torch.testing.assert_close(upsampler(x), expected)


def test_joining_two_linear_layers_changes_no_value_and_no_gradient():
    upernet = UperNet(16, 8).double()
    for level in (0, 1, 2):
        x = torch.randn(3, 16, 4, 4, dtype=torch.float64)
        own, plain = upernet._lateral(level, x), upernet.lateral[level](upernet.scales[level](x))
        torch.testing.assert_close(own, plain)
        weights = [p for part in (upernet.scales, upernet.lateral) for p in part[level].parameters()]
        weight = torch.randn_like(own)
        gradients = [torch.autograd.grad((y * weight).sum(), weights, retain_graph=True) for y in (own, plain)]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-6)


def test_a_head_refuses_what_would_teach_nothing():
    with pytest.raises(ValueError, match="two classes or more, not 1"):
        network(8, 16, 1)
    for channels in (24, 40):
        with pytest.raises(ValueError, match="4 blocks of 8 channels"):
            network(8, 16, 2, 8)(torch.randn(2, channels, 16, 16))


def test_scores_sum_to_one_and_areas_to_the_tile():
    """Spec property 17."""
    model = network(8, 16, 3, 8).eval()
    output = model(torch.randn(2, 32, 16, 16))
    assert output.scores.shape == (2, 3, 256, 256)
    torch.testing.assert_close(output.scores.sum(1), torch.ones(2, 256, 256))
    torch.testing.assert_close(output.logits.sum(1), torch.full((2,), 65_536.0))
    torch.testing.assert_close(output.logits, output.scores.sum((2, 3)))
    masks = torch.randint(-1, 2, (2, 256, 256), dtype=torch.int8)
    assert losses.one_hot(masks, (-1, 0, 1)).sum((1, 2, 3)).tolist() == [65_536.0] * 2
    single = model(torch.randn(1, 32, 16, 16))
    assert single.logits.shape == (1, 3), "one tile keeps its batch axis"


# ---------------------------------------------------------------------------------------------------- losses


def example(classes, n=3, side=5):
    draws = torch.Generator().manual_seed(len(classes))
    scores = torch.randn(n, len(classes), side, side, generator=draws).softmax(1)
    masks = torch.randint(-1, 2, (n, side, side), generator=draws, dtype=torch.int8)
    masks[1] = -1  # a tile of no data at all
    return scores, masks


@pytest.mark.parametrize("classes", [(-1, 0, 1), (0, 1)])
def test_losses_are_what_the_paper_says_pixel_by_pixel(classes):
    scores, masks = example(classes)
    truth = losses.one_hot(masks, classes)
    for b in range(len(masks)):
        known = [(i, j) for i in range(5) for j in range(5) if int(masks[b, i, j]) in classes]
        area, entropy, far = 0.0, 0.0, 0.0
        for k, value in enumerate(classes):
            own = sum(float(scores[b, k, i, j]) for i, j in known)
            true = [(i, j) for i, j in known if int(masks[b, i, j]) == value]
            area += abs(own - len(true)) / len(classes)
            far += (1 - sum(float(scores[b, k, i, j]) for i, j in true) / (len(true) + 1e-6)) / len(classes)
            for i, j in known:
                p = float(scores[b, k, i, j])
                entropy -= math.log(p if int(masks[b, i, j]) == value else 1 - p)
        assert float(losses.area_error(scores, truth)[b]) == pytest.approx(area, rel=1e-4, abs=1e-5)
        assert float(losses.false_absence(scores, truth)[b]) == pytest.approx(far, rel=1e-4)
        mean = entropy / (len(classes) * max(len(known), 1))
        assert float(losses.cross_entropy(scores, truth)[b]) == pytest.approx(mean, rel=1e-4, abs=1e-6)


def test_a_pinet_sees_the_masks_it_may_and_no_other():
    """With the labelled tile's mask changed the loss changes; with another's, of the same area, it does not."""
    scores, masks = example((0, 1), n=3)
    masks[1:] = torch.tensor([0, 1, 1, 0, 1], dtype=torch.int8)
    stub = lambda _: type("Output", (), {"scores": scores})  # noqa: E731
    labelled = torch.tensor([False, True, False])
    loss = losses.loss_of((0, 1), by_area=True, mask_loss="bce", expected=0.5)
    value = loss(stub, (masks, masks, labelled))
    truth = losses.one_hot(masks, (0, 1))
    by_hand = losses.area_error(scores, truth).mean() + 25 * losses.cross_entropy(scores, truth)[1] / 0.5
    torch.testing.assert_close(value, by_hand)
    for tile, same in ((2, True), (1, False)):
        moved = masks.clone()
        moved[tile] = masks[tile].flip(0, 1).roll(1, 0)
        assert (moved[tile] == 1).sum() == (masks[tile] == 1).sum() and (moved != masks).any()
        assert torch.isclose(loss(stub, (masks, moved, labelled)), value).item() is same
    alone = losses.loss_of((0, 1), by_area=True, mask_loss="bce", expected=0.0)
    torch.testing.assert_close(alone(stub, (masks, masks, labelled)), losses.area_error(scores, truth).mean())


@pytest.mark.parametrize("name", ["bce", "far"])
def test_a_segnets_loss_is_the_mean_over_its_tiles_of_the_loss_that_is_named(name):
    scores, masks = example((0, 1))
    stub = lambda _: SimpleNamespace(scores=scores)  # noqa: E731
    each = {"bce": losses.cross_entropy, "far": losses.false_absence}[name](scores, losses.one_hot(masks, (0, 1)))
    loss = losses.loss_of((0, 1), by_area=False, mask_loss=name, expected=0.0)
    assert float(loss(stub, (masks, masks, torch.ones(3, dtype=torch.bool)))) == pytest.approx(sum(each.tolist()) / 3)


# -------------------------------------------------------------------------------------------------- measures


@pytest.mark.parametrize("classes", [(-1, 0, 1), (0, 1)])
def test_the_report_is_what_counting_pixels_gives(classes):
    scores, masks = example(classes, n=4, side=6)
    masks[3] = 0  # no water
    found = evaluate.report([scores[:3], scores[3:]], masks, classes)
    decided = np.array(classes)[scores.argmax(1).numpy()]
    truth, water = masks.numpy(), scores[:, classes.index(1)].double().numpy()
    known = truth >= 0
    areas, true = (water * known).sum((1, 2)), (truth == 1).sum((1, 2))
    np.testing.assert_allclose(found["areas"]["predicted"], areas)
    assert found["mae"] == pytest.approx(np.abs(areas - true).mean())
    assert found["mae_percent"] == pytest.approx(100 * found["mae"] / 36)
    assert found["released_mae"] == pytest.approx(np.abs(water.sum((1, 2)) - true).mean())
    for value, name in ((0, "dry"), (1, "water")):
        own, there = decided == value, truth == value
        assert found[f"iou_{name}"] == pytest.approx((own & there).sum() / ((own & known) | there).sum())
        assert found[f"tdr_{name}"] == pytest.approx((own & there).sum() / there.sum())
        per_tile = [(o & t).sum() / ((o | t).sum() + 1e-6) for o, t in zip(own, there, strict=True)]
        assert found[f"released_iou_{name}"] == pytest.approx(np.mean(per_tile))


def test_validation_measures_the_tiles_that_it_is_given_and_no_others(monkeypatch):
    scores, masks = example((0, 1), n=5, side=6)
    rows = torch.tensor([4, 1, 3])
    monkeypatch.setattr(evaluate, "CHUNK", 2)
    monkeypatch.setattr(evaluate, "maps", lambda model, data, device, rows: (scores[part] for part in rows.split(2)))
    found = evaluate.Validation(SimpleNamespace(masks=masks), rows, (0, 1), torch.device("cpu"))(None)
    assert found["water_iou"] == pytest.approx(evaluate.report([scores[rows]], masks[rows], (0, 1))["iou_water"])
    errors, rates = [], []
    for own, mask in zip(scores[rows].double(), masks[rows], strict=True):
        known, truth = mask >= 0, [mask == 0, mask == 1]
        errors += [abs(float((own[k] * known).sum() - truth[k].sum())) for k in (0, 1)]
        rates += [float((own[k] * truth[k]).sum() / (truth[k].sum() + losses.EPSILON)) for k in (0, 1)]
    assert found["area_error"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert found["soft_tdr"] == pytest.approx(np.mean(rates), rel=1e-5)


def test_a_tile_without_data_or_water_leaves_every_measure_a_number_or_nan():
    scores = torch.full((2, 2, 4, 4), 0.5)
    found = evaluate.report([scores], torch.full((2, 4, 4), -1, dtype=torch.int8), (0, 1))
    assert found["mae"] == 0 and math.isnan(found["iou_water"]) and math.isnan(found["tdr_water"])
    assert study.rounded_report(found)["iou_water"] is None


def test_the_water_index_marks_green_above_short_wave_and_never_what_has_no_data():
    images = np.zeros((1, 6, 1, 3), np.int16)
    images[0, 1], images[0, 4] = [[30_000, 100, 0]], [[20_000, 200, 0]]
    assert evaluate.spectral_index(images).tolist() == [[[True, False, False]]]
    found = evaluate.baseline([(images, np.array([[[1, 0, -1]]], np.int8))])  # the mask that the index gets right
    assert (found["iou_water"], found["iou_dry"], found["mae"]) == (1, 1, 0)


# -------------------------------------------------------------------------------------------------- features


class Counting(nn.Module):
    """An encoder that fails after so many batches, and counts its tiles."""

    def __init__(self, allowed=99):
        super().__init__()
        self.seen, self.allowed = 0, allowed

    def forward(self, x):
        self.allowed -= 1
        if self.allowed < 0:
            raise KeyboardInterrupt
        self.seen += len(x)
        return x[:, :2, ::32, ::32] / 7


def test_features_are_written_once_and_a_pass_that_was_cut_off_goes_on(tmp_path):
    chips = flood_chips.load("water_scenes", test=5)
    tiles = flood_chips.tiles(chips, chips.splits["test"], 64)  # 20
    path, cpu = tmp_path / "some.f16", torch.device("cpu")
    first, then = Counting(allowed=1), Counting()
    with pytest.raises(KeyboardInterrupt):
        features.store(tiles, lambda: first, (2, 2, 2), path, cpu)
    with path.with_suffix(".part").open("ab") as file:
        file.write(b"half a tile")
    data = features.store(tiles, lambda: then, (2, 2, 2), path, cpu)
    assert (first.seen, then.seen) == (features.CHUNK, 20 - features.CHUNK)
    rows = torch.tensor([13, 2])
    expected = torch.stack([torch.from_numpy(tiles[r][0])[:2, ::32, ::32] / 7 for r in rows.tolist()]).half()
    assert torch.equal(data.features(rows), expected)
    assert torch.equal(data.masks[13], torch.from_numpy(tiles[13][1]))
    again = features.store(tiles, lambda: pytest.fail("known"), (2, 2, 2), path, cpu)
    assert torch.equal(again.features(rows), expected)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ArtifactError, match="delete it and run again"):
        features.store(tiles, Counting, (2, 2, 2), path, cpu)


# ------------------------------------------------------------------------------------------------------ fits


def test_the_rate_falls_at_a_plateau_and_ends_the_training(tmp_path):
    """5e-3 after five epochs without progress times 0.2, until it is 1e-5 or less: at the fourth reduction."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    plateau = training.Plateau(optimizer, factor=0.2, patience=5)

    def after_epoch(net, epoch):
        plateau.metric = float(min(epoch, 3))
        return {"score": plateau.metric}

    outcome = training.train(
        model, optimizer, lambda net, x: net(x).sum() * 0, lambda epoch: [torch.ones(1, 1)],
        fabric=training.fabric("cpu", "float32"), epochs=200, seed=0, after_epoch=after_epoch, scheduler=plateau,
        stop_rate=1e-5,
    )  # fmt: skip
    rates = [row["learning_rate"] for row in outcome.history]
    assert outcome.finished and outcome.epochs == 3 + 4 * 6 and outcome.epoch == 3
    assert sorted({float(f"{rate:.3g}") for rate in rates}) == [4e-5, 2e-4, 1e-3, 5e-3]


@pytest.mark.parametrize("rise", [0.0, 0.05], ids=["same", "a little worse"])
def test_an_error_that_does_not_fall_is_no_progress(rise):
    """Spec 6.4: torch's plateau of the error itself; of its negative, a little worse would count as better."""
    assert fits.criterion(Member(quick(None), "corrected", "pinet", 0, 0)) == ("area_error", "min")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    plateau = training.Plateau(optimizer, factor=0.1, patience=5, mode="min")
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, "min", factor=0.1, patience=5)
    for epoch in range(20):
        plateau.metric = 1000 + rise * epoch
        plateau.step()
        torchs.step(plateau.metric)
    assert optimizer.param_groups[0]["lr"] == theirs.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_a_training_repeats_to_the_bit_and_resumes_to_the_same_weights(tmp_path, monkeypatch):
    """Spec property 20."""
    changes = {"training.epochs": 3, "data.chips": 6, "kinds": ("pinet",), "budgets": ()}
    own = [quick(tmp_path / name, **changes) for name in ("one", "other")]
    members = [Member(s, "corrected", "pinet", 25, 0) for s in own]
    fits.train(members[0], tmp_path / "one")
    real, calls = fits.selection, []

    def cut_off(member, found):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(member, found)

    monkeypatch.setattr(fits, "selection", cut_off)
    save_always = training.train
    monkeypatch.setattr(training, "train", lambda *a, **k: save_always(*a, **k, checkpoint_seconds=0))
    with pytest.raises(KeyboardInterrupt):
        fits.train(members[1], tmp_path / "other")
    fits.train(members[1], tmp_path / "other")
    assert len(calls) == 4, "the first two epochs were not trained again"
    one, other = (artifacts.load_tensors(fits.weights_path(tmp_path / n, members[0])) for n in ("one", "other"))
    assert all(torch.equal(one[0][key], other[0][key]) for key in one[0])
    assert one[1]["history"] == other[1]["history"]


def test_masks_grow_with_the_budget_and_a_segnet_sees_only_its_own(trained):
    own = trained[0]
    few, more = (Member(own, "corrected", "segnet", share, 0) for share in (10, 40))
    one, other = fits.mask_carriers(few, 200), fits.mask_carriers(more, 200)
    assert (int(one.sum()), int(other.sum())) == (20, 80) and (other | ~one).all()
    assert not fits.mask_carriers(Member(own, "corrected", "pinet", 0, 0), 200).any()
    sets, data = fits.sets(own, "corrected"), fits.stored(own, "corrected")
    labelled = fits.mask_carriers(few, len(sets.train))
    batches = list(fits.batches(few, data, sets.train, labelled, 1, torch.device("cpu")))
    assert all(seen.all() for _, _, seen in batches)
    assert sum(len(seen) for _, _, seen in batches) in (len(sets.train), len(sets.train) - 1)


def test_the_released_rules_mix_tiles_of_a_chip_and_the_corrected_ones_do_not(trained):
    def shared(rules):
        own = fits.sets(trained[0], rules)
        train, held = ({own.tiles.places[r][0] for r in rows.tolist()} for rows in (own.train, own.validation))
        return train & held

    assert shared("released") and not shared("corrected")


def test_a_checkpoint_is_chosen_by_the_rule(trained):
    found = {"area_error": 7.0, "soft_tdr": 0.4, "water_iou": 0.9}
    chosen = {
        (rules, kind): fits.selection(Member(trained[0], rules, kind, 0, 0), found)
        for rules in ("released", "corrected")
        for kind in ("pinet", "segnet")
    }
    assert chosen.pop(("released", "segnet")) == 0.4
    assert set(chosen.values()) == {-7.0}


def test_a_checkpoint_holds_the_head_alone_and_reloads_to_identical_outputs(trained):
    """Spec property 19."""
    own, shelf = trained[0], study.choose_shelf(trained[0])
    member = Member(own, "corrected", "pinet", 0, 0)
    state, metadata = artifacts.load_tensors(shelf.weights_path(member))
    assert all(key.startswith("decoder.") for key in state) and metadata["encoder"] == "untrained (stand-in)"
    tiles = fits.test_tiles(own, "test")
    x = torch.from_numpy(np.stack([tiles[row][0] for row in (0, 1, 2)])).float()
    encoder = fits.encoder(own, "corrected")
    one, other = (fits.whole(shelf.model(member), encoder) for _ in range(2))
    with torch.inference_mode():
        assert torch.equal(one(x).scores, other(x).scores)
        on_disk = torch.cat(list(evaluate.maps(shelf.model(member), fits.stored(own, "corrected", "test"),
                                               torch.device("cpu"))))[:3]  # fmt: skip
    torch.testing.assert_close(one(x).scores, on_disk, atol=5e-3, rtol=0)  # features in half precision


def test_areas_teach_areas_and_masks_teach_where_the_water_is(tmp_path):
    own = quick(tmp_path, **{"training.epochs": 8, "data.chips": 10, "training.batch_size": 4})
    areas, masks = (
        fits.train(Member(own, "corrected", kind, share, 0), tmp_path)["history"]
        for kind, share in (("pinet", 0), ("segnet", 100))
    )
    assert min(areas["area_error"]) < 0.7 * areas["area_error"][0]
    assert masks["loss"][-1] < 0.8 * masks["loss"][0] and masks["soft_tdr"][-1] > masks["soft_tdr"][0]


# ----------------------------------------------------------------------------------------------------- study


def test_every_record_says_what_it_is_of_and_is_read_back(trained):
    own, records = trained
    assert [r["name"] for r in study.collect(own)] == [m.name for m in fits.members(own)]
    table = study.frame(records)
    assert set(table.encoder) == {"untrained (stand-in)"} and set(table.data) == {"water_scenes"}
    assert {(r.rules, r.kind, r.masks) for r in table.itertuples()} == {
        ("corrected", "pinet", 0), ("corrected", "pinet", 25), ("corrected", "pinet", 100),
        ("corrected", "segnet", 25), ("corrected", "segnet", 100),
        ("released", "pinet", 0), ("released", "segnet", 100),
    }  # fmt: skip


def test_stale_records_and_swapped_weights_are_refused(trained):
    own = trained[0]
    with pytest.raises(ArtifactError, match="other training settings"):
        study.collect(own.override({"training.learning_rate": 1e-4}))
    with pytest.raises(ArtifactError, match="measured in another way"):
        study.collect(own.override({"test_chips": 5}))
    one, other = (Member(own, "corrected", "pinet", share, 0) for share in (0, 25))
    with pytest.raises(ArtifactError, match="swapped"):
        fits.load(study.choose_shelf(own).weights_path(other), one)


def test_reevaluation_gives_the_same_records(trained):
    own, records = trained
    changes = {"reevaluate": True, "kinds": ("segnet",), "rules": ("released",), "budgets": ()}
    again = study.collect(own.override(changes))
    assert again == [r for r in records if r["name"] in {a["name"] for a in again}] and again


def test_an_edited_record_is_told_by_the_ledger(trained):
    """Honesty: an area that is not the map's sum."""
    own, records = trained
    changed = copy.deepcopy(records)
    changed[0]["test"]["test"]["areas"]["predicted"][0] += 500
    verdicts = []
    for some in (records, changed):
        ledger = Ledger("floods")
        claims.check_areas(ledger, Maps(own), some, "1")
        verdicts.append(ledger.entries[0].verdict)
    assert verdicts == ["reproduced", "differs"]


def test_unknown_settings_are_refused_by_name():
    with pytest.raises(ConfigError, match="did you mean water_multispectral"):
        FloodsStudy().override({"data.name": "water_multispectra"})
    with pytest.raises(ConfigError, match="0 and 100 %"):
        FloodsStudy().override({"budgets": (0, 10)})
    with pytest.raises(ConfigError, match="patches of 16 pixels do not fill tiles of 24"):
        fits.geometry(FloodsStudy().override({"data.tile": 24}))


SMALL = {"data.tile": 16, "channels": 4, "training.epochs": 1, "training.batch_size": 4}


@pytest.fixture
def at_a_distance(tiny, tmp_path, monkeypatch):
    """The published data and encoder in small, in a bucket and on a hub; nothing is at hand."""
    facts = copy.deepcopy(data_config("sen1floods11"))
    in_small(facts)
    monkeypatch.setattr(sen1floods11, "data_config", lambda name: facts)
    monkeypatch.setenv("SIGHTLINE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no gsutil
    release(tmp_path / "bucket")
    name = "ibm-nasa-geospatial/Prithvi-EO-1.0-100M/Prithvi_EO_V1_100M.pt"
    with serving(tmp_path / "bucket", {name: saved(tiny)}) as (_, url):
        monkeypatch.setenv("SIGHTLINE_BUCKET_ENDPOINT", url)
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield


def test_the_paper_preset_runs_end_to_end_from_a_bucket_and_a_hub(at_a_distance, tmp_path):
    """The published network in small, downloaded, trained under both rules, tested on test and Bolivia."""
    changes = {"out": str(tmp_path / "out"), "retrain": True, "seeds": 1, "budgets": (), "device": "cpu"}
    own = published("paper").override(changes | SMALL)
    records = study.collect(own)
    table = study.frame(records)
    assert set(table.test) == {"test", "bolivia"} and set(table.tiles) == {4}
    assert set(table.rules) == {"corrected", "released"} and len(records) == 4
    assert "Prithvi-EO-1.0-100M" in set(table.encoder)
    assert set(study.baselines(own)) == {"test", "bolivia"}
    ledger = Ledger("floods")
    claims.check_published(ledger, study.Measured(own, records), "5")
    assert [entry.verdict for entry in ledger.entries] == ["differs", "differs"], "measured, far off"


@pytest.mark.parametrize("preset", ["paper", "bundle"])
def test_the_notebook_shows_the_published_data_where_they_were_trained_on(preset, at_a_distance, tmp_path):
    """From the download to the explorer; "bundle" has no fits under the corrected rules."""
    parameters = {"PRESET": preset, "RETRAIN": True, "OUT": str(tmp_path / "out"), "DEVICE": "cpu", "SEEDS": 1}
    names = run_cells(parameters | {"BUDGETS": [], "OVERRIDES": SMALL})
    assert names["real"] is names["own"] and names["maps"].shown == ("USA_5",)
    assert set(names["real"].table.data) == {"sen1floods11"}
    shown = tables.measures(names["real"])
    assert list(shown.index.get_level_values("model")) == ["PiNet", "SegNet", "MNDWI > 0"] * 2
    rules = names["settings"].rules
    lines = names["figures"].training_curves(names["own"]).axes[0].lines
    assert len(lines) == 4, f"a line and a dot of both kinds under the {rules[0]} rules"
    verdicts = {entry.key: entry.verdict for entry in names["ledger"].entries}
    assert verdicts["areas"] == "reproduced"
    assert verdicts["published-pinet"] == "differs", "measured, far off"
    orders = [key for key in verdicts if "sen1floods11, Prithvi" in key]
    assert len(orders) == 5 and {verdicts[key] for key in orders} == {"not verified"}, "one seed decides nothing"


def test_the_notebook_shows_real_chips_as_they_are_shipped(capsys):
    """Their maps may not be given away: those of drawn scenes are shown."""
    names = run_cells({"PRESET": "water"})
    assert names["real"] is names["own"] and names["maps"].study == published("scenes")
    assert "the pictures are of water_scenes" in capsys.readouterr().out
    assert set(names["own"].table.rules) == {"corrected", "released"}


# ---------------------------------------------------------------------------------------------------- claims


def side(pinet, segnet, index=0.5, **changes):
    """The fits of two kinds, all measures of a seed alike."""
    rows = [
        {"rules": "corrected", "test": "test", "kind": kind, "masks": masks, "seed": seed, "label": kind}
        | dict.fromkeys(("mae_percent", "iou_water", "tdr_water", "tdr_dry"), value)
        for kind, masks, values in (("pinet", 0, pinet), ("segnet", 100, segnet))
        for seed, value in enumerate(values)
    ]
    own = published("scenes").override(changes)
    return SimpleNamespace(study=own, table=pd.DataFrame(rows), baselines={"test": {"iou_water": index}})


@pytest.mark.parametrize(
    ("pinet", "segnet", "verdict", "count"),
    [
        ([0.1, 0.5, 0.3], [0.2, 0.6, 0.4], "reproduced", "in 3 of 3 seeds"),  # though the groups overlap
        ([0.2, 0.6, 0.4], [0.1, 0.5, 0.3], "differs", "in 0 of 3 seeds"),
        ([0.1, 0.1, 0.31], [0.9, 0.9, 0.3], "not verified", "in 2 of 3 seeds"),  # though the means are far apart
        ([0.1, 0.1, 0.3], [0.9, 0.9, 0.3], "not verified", "in 2 of 3 seeds"),
        ([0.3, 0.3, 0.3], [0.3, 0.3, 0.3], "not verified", "in 0 of 3 seeds"),
        ([0.1, 0.2], [0.3, 0.4], "not verified", "in 2 of 2 seeds"),
        ([0.1, 0.2, 0.3, 0.9], [0.2, 0.3, 0.4], "reproduced", "in 3 of 3 seeds"),  # the fourth has no partner
    ],
)  # fmt: skip
def test_an_order_has_to_hold_in_every_seed_or_be_reversed_in_every_one(pinet, segnet, verdict, count):
    claims.check_orders(ledger := Ledger("floods"), side(pinet, segnet), "5")
    found = {entry.key.split("-water_scenes")[0]: entry for entry in ledger.entries}
    assert found["iou-order"].verdict == found["area-order"].verdict == verdict
    assert found["iou-order"].ours.endswith(count)
    other = {"reproduced": "differs", "differs": "reproduced"}.get(verdict, verdict)
    assert found["tdr-dry"].verdict == other, "asked the other way round"


def test_what_is_told_of_an_order_are_means_with_their_spread():
    claims.check_orders(ledger := Ledger("floods"), side([5.0, 6.0, 7.0], [8.0, 8.0, 8.0]), "5")
    assert ledger.entries[0].ours == "PiNet 6 ± 1, SegNet 8; in 3 of 3 seeds"
    claims.check_orders(ledger := Ledger("floods"), side([5.0], []), "5")
    assert {entry.ours for entry in ledger.entries} == {None}


@pytest.mark.parametrize(
    ("fits", "verdict"), [([0.6, 0.7, 0.51], "holds"), ([0.6, 0.7, 0.49], "not verified"), ([0.1] * 3, "fails")]
)
def test_every_fit_has_to_beat_the_index(fits, verdict):
    claims.check_baseline(ledger := Ledger("floods"), side(fits, []), "5")
    assert ledger.entries[0].verdict == verdict and "MNDWI > 0 0.5, PiNet" in ledger.entries[0].ours


def test_a_budget_is_asked_of_studies_that_have_one():
    claims.check_budget(ledger := Ledger("floods"), side([], []), "5")
    assert ledger.entries == []
    few = side([0.4, 0.5, 0.6], [0.3, 0.4, 0.5], budgets=(25, 5))
    few.table["masks"] = 5
    claims.check_budget(ledger, few, "5")
    assert ledger.entries[0].verdict == "holds" and "SegNet, 5 % 0.4 ± 0.1" in ledger.entries[0].ours


def test_the_published_numbers_change_as_published():
    """Spec section 6.5, the last row."""
    last = tables.rules().iloc[-1]
    assert last.name[-1] == "relative change, %"
    assert last.tolist() == ["", "-57.0", "-22.9", "+0.6", "-11.3", "+2.0"]


def test_a_run_stands_on_its_own_side_and_the_other_is_as_shipped(monkeypatch):
    monkeypatch.setattr(study, "collect", lambda own: [own.preset])
    for preset, place in (("scenes", 0), ("quick", 0), ("water", 1), ("paper", 1)):
        own = study.Measured(published(preset).override({"seed": 7}), [])
        sides = own.sides()
        assert sides[place] is own and sides[1 - place].study == published("scenes" if place else "water")
