"""Prototypes against the truth about birds: nets whose reasons are known, and loops that do the same one by one."""

from dataclasses import replace

import numpy as np
import proto_patches
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from helpers import runtime
from helpers.config import ConfigError
from helpers.data import toybirds
from helpers.data.bird_scenes import COLOURS, PARTS, SHAPES, Counter
from helpers.data.toybirds import ToyBirdsSettings, class_names
from helpers.metrics.base import streams
from helpers.prototypes.evaluation import birds as truth_of
from helpers.prototypes.evaluation import part_effects as pe
from helpers.prototypes.evaluation import part_maps as pm
from helpers.prototypes.evaluation import part_truth as pt
from helpers.prototypes.evaluation.birds import examine, intervals, measure, report_card, summary
from helpers.prototypes.mapping import pixel_map
from helpers.prototypes.models import Classifier, ProtoNet
from helpers.prototypes.pipelines import pipelines
from helpers.prototypes.presets import Model
from helpers.prototypes.receptive_field import receptive_field

SIZE, CELL = 64, 2
RED, BLUE = 0, 1  # of the palette: that of the beak and that of the tail, or of the sky; all else is green
BEAK, TAIL = PARTS.index("beak"), PARTS.index("tail")
GREY = 0.6


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def flock(count=8, blue="tail", seed=7, classes=2):
    """Birds in the light of a studio: large, hooked red beaks, before nothing, with a blue tail or a blue sky."""
    scene = toybirds.birds(seed, range(count), ToyBirdsSettings(size=SIZE, classes=classes, noise=0))
    code = scene.code.clone()
    code[:, BEAK, 0] = SHAPES["beak"].index("hooked")
    code[..., 1] = torch.where(code[..., 1] >= 0, code[..., 1].clamp(min=2), -1)
    code[:, BEAK, 1], code[:, TAIL, 1] = RED, BLUE if blue == "tail" else 2
    greens = [(0.0, g, 0.0) for g in (0.4, 0.5, 0.7, 0.9)]
    palette = torch.tensor([(1.0, 0, 0), (0, 0, 1), *greens]).expand(count, -1, -1)
    sky = torch.tensor([0.0, 0, 1] if blue == "sky" else [GREY] * 3).expand(count, 2, 3)
    scale, nothing = torch.full((count,), 1.1), torch.zeros_like(scene.piece_shown)
    return replace(scene, code=code, palette=palette, sky=sky, piece_shown=nothing, scale=scale,
                   shift=scene.shift / 2)  # fmt: skip


def watching(*colours, classes=2, head="proto"):
    """A net whose prototypes, class by class, each look for one colour: how red or blue a cell of 2 x 2 pixels is. Of
    a prototype that looks for None, nothing changes its similarity."""
    colour = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        colour.weight.copy_(torch.tensor([[1.0, -1, -1], [-1, -1, 1], [0, 0, 0]])[..., None, None] / 4)
        colour.bias.copy_(torch.tensor([-0.5, -0.5, 0]))  # of pixels that are normalised: 4 v - 2
    features = nn.Sequential(colour, nn.ReLU(), nn.AvgPool2d(CELL))
    settings = Model(num_prototypes=len(colours), prototype_dim=3, distance="l2", readout_type=head)
    net = ProtoNet(features, 3, classes, settings)
    net.add_on = nn.Identity()
    vectors = {RED: (1.0, 0, 0), BLUE: (0, 1.0, 0), None: (0, 0, 9.0)}
    with torch.no_grad():
        net.prototypes.copy_(torch.tensor([vectors[c] for c in colours])[..., None, None])
    return net.eval()


def constant():
    """Similarities that nothing changes."""
    net = watching(None, None, None, None)
    with torch.no_grad():
        net.features[0].weight.zero_()
    return net


def field_of(net):
    return receptive_field(net.features, SIZE)


@pytest.fixture(scope="module")
def beaks():
    """Four prototypes that look at the beak, whatever the bird, and what is found about them."""
    return examine(watching(RED, RED, RED, RED), flock(blue=""))


@pytest.fixture(scope="module")
def mixed():
    """One prototype of each class looks at the beak, one at the tail."""
    return examine(watching(RED, BLUE, BLUE, RED), flock())


def images(scene):
    """uint8, as data sets keep birds, by hand."""
    return (toybirds.render(scene).images * 255).round().to(torch.uint8)


def similarities(net, pixels):
    with torch.no_grad():
        return net(pipelines()["ToyBirds"].normalise(pixels))


# ------------------------------------------------------------------------------------------------- nets of known truth


def test_who_looks_at_the_beak_is_found_to(beaks):
    effects, visible = beaks.effects, beaks.effects.visible[:, BEAK]
    assert visible.float().mean() > 0.8
    assert (effects.best == torch.where(visible, BEAK, -1)[:, None]).all(), "no other part has a true effect"
    others = torch.arange(len(PARTS)) != BEAK
    assert effects.similarity.raw[:, others].nan_to_num().max() == 0 < effects.similarity.raw[visible, BEAK].min()
    found = summary(beaks)
    for method in ("box", "rf", "upsample"):
        for rule in ("peak", "share") if method == "upsample" else pt.RULES:  # a flat map's region is large
            assert found[f"{method}_purity_{rule}"] == found[f"{method}_causal_{rule}"] == 100
            assert found[f"{method}_purity_{rule}_chance"] < 65 and found[f"{method}_causal_{rule}_chance"] < 20
        assert found[f"{method}_peak_error"] < 3 and found[f"{method}_peak_error_chance"] > 20
        assert found[f"{method}_pointing"] > 95 > 20 > found[f"{method}_pointing_chance"]
        assert found[f"{method}_correlation"] > found[f"{method}_correlation_chance"] + 0.5
    assert found["rf_cause_mass"] > 80 and found["rf_background"] < 10 and found["rf_centre_error"] < 1
    assert found["box_correlation"] > 0.99 and found["rf_correlation"] > 0.6
    assert found["caused"] == 100 * float(visible.float().mean()) and found["class_parts"] == 1
    assert found["logit_beak"] > 1 and max(found[f"logit_{part}"] for part in PARTS if part != "beak") < 0.1


def test_who_looks_at_the_sky_is_caused_by_no_part():
    found = summary(examine(watching(BLUE, BLUE), flock(blue="sky")))
    assert found["caused"] == found["effect"] == found["class_parts"] == 0
    assert found["box_purity_centre"] == found["box_causal_centre"] == found["rf_cause_mass"] == 0
    assert found["box_background"] == 100 and found["rf_background"] > 85
    assert abs(found["logit_body"]) < 0.01


def test_what_depends_on_nothing_has_no_effect_and_nothing_is_nan():
    truth = examine(constant(), flock(6))
    known = truth.effects.similarity.raw[truth.effects.visible]
    assert not known.any() and not truth.effects.at_cell[truth.effects.visible].any()
    assert not truth.effects.similarity.draws.nan_to_num().any() and (truth.effects.best == -1).all()
    found = summary(truth)
    assert np.isfinite(list(found.values())).all() and found["caused"] == found["reacted"] == found["taken_over"] == 0
    assert found["upsample_purity_share"] == found["upsample_purity_majority"] == 0, "a constant map has no region"
    assert np.isfinite(intervals(truth, 5).to_numpy()).all()
    card = report_card(truth)
    assert set(card.effect_part) == {"none"} and (card.effect == 0).all() and card.effect_share.isna().all()


def test_maps_whose_pixels_are_shuffled_are_as_good_as_chance(beaks):
    net, scene = watching(RED, RED, RED, RED), flock(blue="")

    def shuffled(x, similarity, prototypes):
        heat = pixel_map(similarity, field_of(net))
        orders = [torch.randperm(SIZE**2, generator=stream) for stream in streams(x, 0, "shuffle")]
        return torch.stack([h.flatten(1)[:, order].view_as(h) for h, order in zip(heat, orders, strict=True)])

    truth = examine(net, scene, methods={"shuffled": shuffled})
    found, clear = summary(truth), summary(beaks)
    area = 100 * float(toybirds.render(scene).masks[:, BEAK].mean())
    assert abs(found["shuffled_cause_mass"] - area) < 2 < 80 < clear["rf_cause_mass"]
    assert found["shuffled_pointing"] < 15 and found["shuffled_correlation"] < 0.3 < clear["rf_correlation"] - 0.3
    assert found["shuffled_followed"] < 15 < 90 < clear["rf_followed"]
    for rule in ("centre", "majority", "peak"):
        assert found[f"shuffled_causal_{rule}"] < 15


def test_prototypes_of_a_class_may_look_at_one_place_or_at_several(beaks, mixed):
    one, two = summary(beaks), summary(mixed)
    assert (one["cells"], one["overlap"], one["class_parts"]) == (1, 100, 1)
    assert (two["cells"], two["overlap"], two["class_parts"]) == (2, 0, 2)
    card = report_card(mixed, ("first", "second"))
    assert card.effect_part.tolist() == ["beak", "tail", "tail", "beak"] == card.part.tolist()
    assert card["class"].tolist() == ["first"] * 2 + ["second"] * 2 and (card.purity == 100).all()
    assert (card.causal_purity == 100).all() and (card.effect_share > 90).all() and (card.source == -1).all()


def test_another_cell_may_make_up_for_what_the_best_one_loses():
    """A paler red square in the background: without its beak a bird is as similar as the square makes it."""
    net, scene = watching(RED, RED), flock(6)
    backdrop = torch.full((6, 3, SIZE, SIZE), GREY)
    backdrop[:, :, :8, :8] = torch.tensor([0.5, 0, 0])[:, None, None]
    effects = pe.part_effects(net, replace(scene, backdrop=backdrop), parts=["beak"])
    alone = pe.part_effects(net, scene, parts=["beak"])
    seen = effects.visible[:, 0]
    square, nothing = (torch.log1p(1 / torch.tensor(d + 1e-6)) for d in ((1 - 128 / 255) ** 2, 1.0))
    assert torch.equal(effects.similarities, alone.similarities), "the beak is redder"
    assert torch.allclose(effects.similarity.raw[seen, 0], effects.similarities[seen] - square, atol=1e-4)
    assert torch.allclose(effects.at_cell[seen, 0], effects.similarities[seen] - nothing, atol=1e-4)
    assert (effects.at_cell[seen] > effects.similarity.raw[seen] + 0.3).all()
    everywhere = pe.part_effects(proto_patches.net(2, 2), flock(4))
    known = everywhere.visible
    assert (everywhere.at_cell[known] >= everywhere.similarity.raw[known] - 1e-6).all()


# ------------------------------------------------------------------------------------------------ effects, one by one


@pytest.fixture(scope="module")
def ordinary():
    """A net of random weights, and birds that are drawn as usual."""
    settings = ToyBirdsSettings(size=48, classes=3)
    net = proto_patches.net(3, 2, prototype_activation="linear")
    return net, toybirds.birds(3, range(4), settings)


def test_effects_are_those_of_redrawing_one_bird_at_a_time(ordinary):
    net, scene = ordinary
    effects = pe.part_effects(net, scene, draws=1)
    net.eval()
    for i in range(4):
        one = scene[i]
        before = similarities(net, images(one))
        for q, part in enumerate(PARTS):
            visible = bool(toybirds.render(one).visible[0, q])
            assert visible == effects.visible[i, q] == (not effects.logit.raw[i, q].isnan())
            assert visible or effects.similarity.raw[i, q].isnan().all() and effects.at_cell[i, q].isnan().all()
            if visible:
                after = similarities(net, images(replace(one, without=frozenset({part}))))
                drop = before.similarities - after.similarities
                assert torch.allclose(effects.similarity.raw[i, q], drop[0], atol=1e-5)
                label = int(one.label)
                assert float(effects.logit.raw[i, q]) == pytest.approx(
                    float(before.logits[0, label] - after.logits[0, label]), abs=1e-5
                )
                there = after.similarity_map[0].flatten(1).gather(1, before.cells[0, :, None])[:, 0]
                assert torch.allclose(effects.at_cell[i, q], before.similarities[0] - there, atol=1e-5)


def slow_places(patch, part, bird):
    """Every shift of a patch [H, W], one at a time."""
    height, width = patch.shape
    shifts = [(dy, dx) for dy in range(height) for dx in range(width)]
    rolled = [np.roll(patch, shift, (0, 1)) for shift in shifts]
    off = np.array([not (r & part).any() for r in rolled])
    covered = np.array([(r & bird & ~part).sum() for r in rolled])
    most = covered[off].max(initial=0)
    beside = np.array([not (r & bird).any() for r in rolled])
    return off & (covered * 2 >= most) & (most > 0), off & beside


def test_places_for_a_repaint_are_those_that_a_search_finds():
    generator = runtime.generator(0, "places")
    patch, part = torch.zeros(2, 3, 11, 14, dtype=torch.bool)
    bird = torch.rand(3, 11, 14, generator=generator) < 0.1
    patch[:, 2:4, 5:7] = patch[1:, 6:9, 10:14] = True
    part |= patch
    part[:, 2, 4] = True
    bird |= part
    part[2] = bird[2] = True  # no room at all
    patch[2] = False
    patch[2, 0, 0] = True
    found = pe.places(patch, part, bird)
    for b in range(3):
        for kind, wanted in enumerate(slow_places(patch[b].numpy(), part[b].numpy(), bird[b].numpy())):
            assert found[kind, b].tolist() == wanted.tolist()
    assert found[:, :2].any(2).all() and not found[:, 2].any()
    assert pe.drawn(found[0, [1, 2]], torch.tensor([0.999999, 0.5])).tolist() == [int(found[0, 1].nonzero()[-1]), -1]


def test_what_is_drawn_is_any_place_that_is_allowed():
    allowed = torch.tensor([False, True, False, True, True]).expand(3000, -1)
    found = pe.drawn(allowed, torch.rand(3000, generator=runtime.generator(0, "drawn")).double())
    counts = found.bincount(minlength=5)
    assert not counts[[0, 2]].any() and counts[[1, 3, 4]].min() > 900
    edges = pe.drawn(allowed[:4], torch.tensor([0.0, 1 / 3 - 1e-9, 1 / 3 + 1e-9, 1 - 1e-12], dtype=torch.float64))
    assert edges.tolist() == [1, 1, 3, 4]


def test_a_control_is_the_same_repaint_elsewhere(ordinary):
    """Pixel by pixel: what the removal painted, where the patch is moved to, of equal area, off the part."""
    net, scene = ordinary
    effects = pe.part_effects(net, scene, draws=2, seed=5)
    net.eval()
    for i, part in ((0, "tail"), (3, "body"), (1, "wing")):
        q, one = PARTS.index(part), scene[i]
        drawn = toybirds.render(one)
        image, less = images(one)[0], images(replace(one, without=frozenset({part})))[0]
        patch = (image != less).any(0).numpy()
        own, bird = patch | (drawn.masks[0, q] > 0).numpy(), (drawn.masks[0].sum(0) >= 0.5).numpy()
        before = similarities(net, image[None]).similarities
        for kind, allowed in enumerate(slow_places(patch, own, bird)):
            choices = np.flatnonzero(allowed)
            for draw in range(2):
                name = f"{('on bird', 'beside')[kind]} {draw}"
                uniform = Counter(5, np.array([i]))(name, 0, 1, len(PARTS))[0, q]
                shift = divmod(int(choices[int(uniform * len(choices))]), 48)
                there = torch.from_numpy(np.roll(patch, shift, (0, 1)))
                painted = torch.where(there, less.roll(shift, (1, 2)), image)
                assert there.sum() == patch.sum() and not (there.numpy() & own).any()
                drop = before - similarities(net, painted[None]).similarities
                assert torch.allclose(effects.similarity.draws[kind, draw, i, q], drop[0], atol=1e-5)
    draws, known = effects.similarity.draws, effects.visible
    assert not draws[:, :, known].isnan().any()
    assert torch.allclose(effects.similarity.control[known], draws.mean((0, 1))[known])
    deviation = draws.flatten(0, 1).std(0, correction=0)
    assert torch.allclose(effects.similarity.spread[known], deviation[known], atol=1e-6)
    assert torch.allclose(effects.similarity.excess[known], (effects.similarity.raw - draws.mean((0, 1)))[known])


def test_a_true_effect_is_more_than_the_controls():
    """Of similarities of 2: 1 % is 0.02."""
    raw = torch.tensor([[[0.5], [0.5], [0.01], [0.3], [torch.nan]]])
    draws = torch.tensor([0.1, 0.49, 0.0, -9, torch.nan]).view(1, 1, 1, 5, 1).expand(2, 1, -1, -1, -1)
    none = torch.zeros(1, 5)
    effects = pe.PartEffects(PARTS[:5], none[:, 0].long(), none > -1, none[:, 0], torch.full((1, 1), -2.0),
                             none[:, :1].long(), pe.Effect(none, none), pe.Effect(raw, draws), raw)  # fmt: skip
    assert effects.causes.flatten().tolist() == [True, False, False, True, False]
    assert effects.true.flatten().tolist() == pytest.approx([0.4, 0, 0, 9.3, 0])
    assert effects.best.tolist() == [[3]]


def test_moving_is_rolling():
    values = torch.rand(3, 2, 5, 7)
    shift = torch.tensor([[0, 0], [2, 6], [4, 1]])
    for one, by, found in zip(values, shift.tolist(), pe.moved(values, shift), strict=True):
        assert torch.equal(found, one.roll(by, (1, 2)))
    assert torch.equal(pe.moved(values[:, 0], shift), pe.moved(values, shift)[:, 0])


# ---------------------------------------------------------------------------------------------------- maps, one by one


def test_where_maps_point_is_what_loops_over_pixels_find():
    generator = runtime.generator(0, "maps")
    masks = torch.rand(2, 8, 10, 12, generator=generator)
    masks /= masks.sum(1, keepdim=True) * (1 + torch.rand(2, 1, 10, 12, generator=generator))
    heat = torch.rand(2, 3, 10, 12, generator=generator) - 0.3
    heat[0, 0] = 0.7  # constant
    heat[0, 1] = 0
    heat[0, 1, 2:4, 3:9] = 2  # a box
    heat[0, 1, 7, 7] = -5
    parts = [1, 4, 6]
    found = pm.pointed(heat, masks, parts)
    for n, (b, m) in enumerate((b, m) for b in range(2) for m in range(3)):
        h = heat[b, m].clamp(min=0).double().numpy()
        above, bird = h - h.min(), masks[b].sum(0).double().numpy()
        inside = (h >= np.quantile(h, 0.95)) & (h > h.min())
        highest = np.argwhere(h == h.max())
        total = above.sum() or 1
        for q, part in enumerate(parts):
            mask = masks[b, part].double().numpy()
            assert float(found.mass[n, q]) == pytest.approx((above * mask).sum() / total, abs=1e-5)
            assert float(found.held[n, q]) == pytest.approx(mask[inside].sum(), abs=1e-4)
            assert float(found.peak[n, q]) == pytest.approx(np.mean([mask[y, x] for y, x in highest]), abs=1e-5)
            if inside.any():
                y, x = np.argwhere(inside).mean(0)
                assert float(found.middle[n, q]) == pytest.approx(mask[round(y), round(x)], abs=1e-5)
                assert found.middle_at[n].tolist() == pytest.approx([x, y], abs=1e-4)
        assert float(found.background[n]) == pytest.approx((above * (1 - bird)).sum() / total, abs=1e-5)
        assert float(found.bird_held[n]) == pytest.approx(bird[inside].sum(), abs=1e-4)
        assert found.peak_at[n].tolist() == pytest.approx(highest.mean(0)[::-1].tolist(), abs=1e-4)
    nearly = 0.7 + 1e-7 * torch.rand(1, 1, 10, 12, generator=generator)
    assert not pm.shown(nearly).any() and not pm.region(nearly).any(), "a constant, but for rounding"
    assert not found.mass[0].any() and not found.middle[0].any() and found.middle_at[0].isnan().all()
    assert pm.region(heat)[0, 1].nonzero().amin(0).tolist() == [2, 3] and pm.region(heat)[0, 1].sum() == 12


def test_a_box_is_the_field_of_the_best_cell_and_the_centre_is_the_centre():
    net = watching(RED, BLUE)
    field, s = field_of(net), torch.rand(2, 2, 32, 32, generator=runtime.generator(0, "s")) - 9
    x, prototypes = torch.zeros(2, 3, SIZE, SIZE), torch.tensor([[0, 1]] * 2)
    methods = pm.mappings(field)
    box = methods["box"](x, s, prototypes)
    for b in range(2):
        for p in range(2):
            y0, y1, x0, x1 = field.box(*divmod(int(s[b, p].argmax()), 32))
            expected = torch.zeros(SIZE, SIZE, dtype=torch.bool)
            expected[y0:y1, x0:x1] = True
            assert torch.equal(box[b, p] > 0, expected) and torch.equal(pm.region(box)[b, p], expected)
            assert float(box[b, p].max()) == pytest.approx(float(torch.log1p(s[b, p].max().exp())), rel=1e-5)
    middle = pm.pointed(methods["center"](x, s, prototypes), torch.zeros(2, 8, SIZE, SIZE), [0])
    assert (middle.peak_at == (SIZE - 1) / 2).all()
    assert set(methods) == {"box", "rf", "upsample", "random", "center"}


def pairs_of(prototype, similarity, best, n_parts=3):
    """Pairs in their order, with effects of 1."""
    n = len(best)
    true = np.zeros((n, n_parts))
    true[np.arange(n)[np.array(best) >= 0], np.array(best)[np.array(best) >= 0]] = 1
    none = np.zeros(n)
    return pt.Pairs(np.arange(n), np.array(prototype), np.array(similarity), true, np.array(best), *[none] * 4)


def test_which_part_a_map_lies_on_by_each_rule():
    """Parts of 10, 40 and 2 pixels, the last of them not visible."""
    tensors = {
        "mass": torch.zeros(3, 3), "background": torch.zeros(3),
        "peak": torch.tensor([[0.5, 0.2, 0], [0.4, 0.4, 0], [0, 0, 1.0]]),
        "middle": torch.tensor([[0.0, 0.49, 0], [0.3, 0.6, 0], [0, 0, 0.5]]),
        "held": torch.tensor([[5.0, 12, 2], [10, 39.99, 0], [0, 0, 0]]), "bird_held": torch.tensor([25.0, 70, 0]),
        "peak_at": torch.zeros(3, 2), "middle_at": torch.zeros(3, 2),
    }  # fmt: skip
    visible, areas = np.array([[True, True, False]] * 3), np.array([[10.0, 40, 2]] * 3)
    labels = pt._labels(pm.Pointed(**tensors), visible, areas)
    assert labels["centre"].tolist() == [-1, 1, 2]
    assert labels["majority"].tolist() == [-1, 1, -1]
    assert labels["share"].tolist() == [0, 1, -1], "both wholly inside: the larger one"
    assert labels["peak"].tolist() == [0, -1, 2]


def test_purity_is_the_share_of_the_best_matches_on_the_commonest_part(beaks):
    """Two prototypes of five and three matches, the first four of which count; by hand."""
    of = pairs_of([0, 0, 0, 0, 0, 1, 1, 1], [9, 8, 7, 6, 5, 3, 2, 1], [1, 0, 1, -1, 2, 2, -1, 0])
    label = np.array([1, 1, -1, 0, 2, -1, -1, -1])
    top = pt._best_matches(of, 4)
    assert top.tolist() == [True] * 4 + [False] + [True] * 3
    effects = replace(beaks.effects, parts=PARTS[:3], similarities=torch.zeros(8, 3))
    assert pt._commonest(of.prototype[top], label[top], effects).tolist() == [1, -1, -1]
    hand = pm.Pointed(torch.zeros(8, 3), torch.zeros(8), torch.eye(3)[label] * torch.from_numpy(label >= 0)[:, None],
                      *[torch.zeros(8, 3)] * 2, torch.zeros(8), torch.zeros(8, 2), torch.zeros(8, 2))  # fmt: skip
    nobody = torch.zeros(8, 3)
    effects = replace(effects, visible=nobody > -1)
    pointing = pm.Pointing(*[torch.arange(8)] * 2, {"a": hand}, {}, nobody, torch.zeros(8, 3, 2), nobody.long(), 9)
    values = pt.judged(effects, of, np.arange(8), pointing, "a", 4).values
    assert values["purity_peak"].tolist() == pytest.approx([1, 1, 0, 0, np.nan, 0, 0, 0], nan_ok=True)
    assert values["causal_peak"].tolist() == pytest.approx([1, 0, 0, 0, np.nan, 0, 0, 0], nan_ok=True)
    assert values["pointing"].tolist() == pytest.approx([1, 0, 0, np.nan, 1, 0, np.nan, 0], nan_ok=True)


def test_matches_are_the_most_similar_birds(mixed):
    of, net = mixed.pairs, watching(RED, BLUE, BLUE, RED)
    greatest = similarities(net, images(flock())).similarities.numpy()
    for p in range(4):
        own = np.flatnonzero(flock().label.numpy() == p // 2)
        rows = of.bird[of.prototype == p]
        assert sorted(rows) == own.tolist() and (np.diff(greatest[rows, p]) <= 1e-6).all()
    assert np.allclose(of.similarity, greatest[of.bird, of.prototype], atol=1e-5)


def test_the_correlation_is_spearmans():
    random = runtime.numpy_generator(0, "ranks")
    mass, true = random.random((40, 8)).round(1), np.maximum(random.normal(size=(40, 8)), 0)
    visible = random.random((40, 8)) < 0.8
    mass[0], visible[1], visible[1, :2] = 0.3, False, True
    found = pt._correlation(mass, true, visible)
    for row in range(2, 40):
        if not true[row, visible[row]].any():
            continue
        expected = spearmanr(mass[row, visible[row]], true[row, visible[row]]).statistic
        assert found[row] == pytest.approx(expected, abs=1e-12)
    assert found[0] == 0 and np.isnan(found[1])


def test_values_are_those_of_a_loop_over_pairs(mixed):
    """Of the rf maps: masses, pointing and distances, by hand from masks and effects."""
    net, scene, of = watching(RED, BLUE, BLUE, RED), flock(), mixed.pairs
    drawn, maps = toybirds.render(scene), similarities(net, images(scene)).similarity_map
    heat, effects, found = pixel_map(maps, field_of(net)).numpy(), mixed.effects, mixed.judged["rf"].values
    for n in range(len(of.bird)):
        b, p = of.bird[n], of.prototype[n]
        h, masks = heat[b, p] - heat[b, p].min(), drawn.masks[b].numpy()
        excess = (effects.similarity.raw - effects.similarity.draws.mean((0, 1)))[b, :, p]
        causes = [q for q in range(8) if min(excess[q], effects.similarity.raw[b, q, p]) > 0.01 * of.similarity[n]]
        assert found["background"][n] == pytest.approx((h * (1 - masks.sum(0))).sum() / h.sum(), abs=1e-4)
        assert (of.best[n] >= 0) == bool(causes)
        if causes:
            best = max(causes, key=lambda q: excess[q])
            assert of.best[n] == best and best in (BEAK, TAIL)
            shown = masks[causes].sum(0)
            assert found["cause_mass"][n] == pytest.approx((h * shown).sum() / h.sum(), abs=1e-4)
            highest = np.argwhere(h == h.max())
            assert found["pointing"][n] == pytest.approx(shown[tuple(highest.T)].mean(), abs=1e-4)
            x, y = drawn.centres[b, best].tolist()
            distance = np.hypot(*(highest.mean(0) - (y, x)))
            assert found["peak_error"][n] == pytest.approx(distance, abs=1e-3)
        else:
            assert np.isnan([found[name][n] for name in ("cause_mass", "pointing", "peak_error", "correlation")]).all()


def test_chance_is_the_same_map_and_the_bird_elsewhere(mixed):
    net, scene = watching(RED, BLUE, BLUE, RED), flock()
    methods = {"rf": pm.mappings(field_of(net))["rf"]}
    pointing = pm.point(net, scene, methods, seed=0)
    masks, seen = toybirds.render(scene).masks, similarities(net, images(scene))
    heat = pixel_map(seen.similarity_map, field_of(net))
    n = 7
    b, p = int(pointing.bird[n]), int(pointing.prototype[n])
    moved = masks[b].roll(pointing.shift[b].tolist(), (1, 2))
    expected = pm.pointed(heat[b, p][None, None], moved[None], list(range(8)))
    assert torch.allclose(pointing.chance["rf"].mass[n], expected.mass[0], atol=1e-5)
    x, y = (toybirds.render(scene).centres[b, BEAK] + pointing.shift[b].flip(0)).tolist()
    assert pointing.moved_centres[b, BEAK].tolist() == pytest.approx([x % SIZE, y % SIZE], abs=1e-4)
    assert len(pointing.shift.unique(dim=0)) > 5 and pointing.shift.min() >= 0 and pointing.shift.max() < SIZE


# ------------------------------------------------------------------------------------------------------------ changes


def test_one_visible_part_gets_another_look_that_there_is():
    scene, visible = toybirds.birds(1, range(200)), torch.ones(200, 8, dtype=torch.bool)
    visible[:, PARTS.index("crest")] = False
    visible[5] = False
    changed, part = pm.another(scene, visible, list(range(8)), torch.arange(200), seed=3)
    differs = (changed.code != scene.code).any(2)
    assert part[5] == -1 and not differs[5].any()
    rows = torch.arange(200) != 5
    assert torch.equal(differs[rows].nonzero()[:, 1], part[rows]), "the part drawn, and no other"
    assert set(part[rows].tolist()) == set(range(8)) - {PARTS.index("crest")}
    for q, name in enumerate(PARTS):
        shape, colour = changed.code[part == q, q].T if (part == q).any() else (torch.zeros(0), torch.zeros(0))
        assert all(0 <= s < len(SHAPES[name]) for s in shape) and all(-1 <= c < len(COLOURS) for c in colour)
        bare = [SHAPES[name].index(s) for s in pm.COLOURLESS.get(name, ())]
        assert all((int(c) == -1) == (int(s) in bare) for s, c in zip(shape, colour, strict=True))
    few, _ = pm.another(scene[:9], visible[:9], list(range(8)), torch.arange(9), seed=3)
    assert torch.equal(few.code, changed.code[:9]), "whatever comes after"


def test_explanations_follow_what_changed():
    """Only changes of beak and tail are seen. An oracle shows how red and blue pixels are."""
    net, scene = watching(RED, BLUE, BLUE, RED), flock(16)

    def oracle(x, similarity, prototypes):
        colours = net.features[1](net.features[0](x))[:, :2]
        wanted = net.prototypes[prototypes, :2, 0, 0].argmax(-1)
        return torch.stack([c[w] for c, w in zip(colours, wanted, strict=True)])

    found = pm.reactions(net, scene, pm.mappings(field_of(net)) | {"oracle": oracle}, parts=("beak", "tail", "wing"))
    seen = found.reacted
    assert 3 < seen.sum() < 16 and (found.part[seen] < 2).all() and found.part.max() == 2
    looks = torch.tensor([RED, BLUE, BLUE, RED])[found.prototype]
    assert torch.equal(looks[seen], torch.tensor([RED, BLUE])[found.part[seen]]), "who looks at that part reacts"
    assert torch.allclose(found.followed["oracle"][seen], torch.ones(int(seen.sum())), atol=1e-5)
    assert (found.inside["box"][seen] > 0).all(), "receptive fields hold what a similarity depends on"
    assert found.followed["random"][seen].mean() < 0.1 and not found.followed["center"].any()
    changed, _ = pm.another(scene, toybirds.render(scene).visible[:, [BEAK, TAIL, PARTS.index("wing")]],
                            [BEAK, TAIL, PARTS.index("wing")], torch.arange(16), 0)  # fmt: skip
    area = (images(scene) != images(changed)).any(1).float().mean((1, 2))
    assert torch.allclose(found.area, area)


def test_reactions_are_those_of_a_loop_over_birds():
    net, scene = watching(RED, BLUE, BLUE, RED), flock(8)
    field, parts = field_of(net), ("beak", "tail")
    found = pm.reactions(net, scene, pm.mappings(field), parts=parts, seed=2)
    visible = toybirds.render(scene).visible[:, [BEAK, TAIL]]
    changed, _ = pm.another(scene, visible, [BEAK, TAIL], torch.arange(8), 2)
    for b in range(8):
        before, after = images(scene[b]), images(changed[b])
        where = (before != after).any(1)[0]
        old, new = similarities(net, before), similarities(net, after)
        own = net.own[scene.label[b]].nonzero()[:, 0]
        difference = (new.similarities - old.similarities)[0, own]
        p = int(own[difference.abs().argmax()])
        change = float(difference.abs().max())
        assert bool(found.reacted[b]) == (change > 0.01 * float(old.similarities[0, p]))
        if not found.reacted[b]:
            continue
        assert int(found.prototype[b]) == p
        maps = [pixel_map(out.similarity_map[:, [p]], field)[0, 0] for out in (old, new)]
        moved = (maps[1] - maps[0]).abs()
        assert float(found.followed["rf"][b]) == pytest.approx(float(moved[where].sum() / moved.sum()), abs=1e-4)
        more = new if new.similarities[0, p] > old.similarities[0, p] else old
        y0, y1, x0, x1 = field.box(*divmod(int(more.cells[0, p]), SIZE // CELL))
        inside = where[y0:y1, x0:x1].sum() / where.sum()
        assert float(found.inside["box"][b]) == pytest.approx(float(inside), abs=1e-5)


# ------------------------------------------------------------------------------------------- repetition, intervals


def same(one, other, tolerance=1e-4):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == pytest.approx(other[name], abs=tolerance, rel=1e-3), name


def test_results_repeat_and_do_not_depend_on_the_size_of_a_batch(mixed, monkeypatch):
    net, scene = watching(RED, BLUE, BLUE, RED), flock()
    again = examine(net, scene)
    assert summary(again) == summary(mixed) and torch.equal(again.effects.true, mixed.effects.true)
    monkeypatch.setattr(pm.point, "__kwdefaults__", pm.point.__kwdefaults__ | {"at_once": 3})
    monkeypatch.setattr(pm.reactions, "__kwdefaults__", pm.reactions.__kwdefaults__ | {"at_once": 5})
    small = examine(net, scene, batch=5)
    same(summary(small), summary(mixed))
    assert torch.allclose(small.effects.similarity.draws, mixed.effects.similarity.draws, atol=1e-5, equal_nan=True)
    other = examine(net, scene, seed=1)
    assert not torch.equal(other.effects.similarity.draws.nan_to_num(), mixed.effects.similarity.draws.nan_to_num())
    assert torch.equal(other.effects.similarity.raw.nan_to_num(), mixed.effects.similarity.raw.nan_to_num())


def test_more_birds_and_fewer_parts_keep_what_is_known(mixed):
    net = watching(RED, BLUE, BLUE, RED)
    few = pe.part_effects(net, flock()[torch.arange(5)], parts=("tail", "beak"))
    assert torch.allclose(few.similarity.draws, mixed.effects.similarity.draws[:, :, :5, [TAIL, BEAK]], equal_nan=True)
    assert torch.allclose(few.logit.raw, mixed.effects.logit.raw[:5, [TAIL, BEAK]], equal_nan=True)
    assert few.parts == ("tail", "beak")


def test_the_net_stays_as_it_is():
    net = proto_patches.net(2, 2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    examine(net, flock(2))
    assert net.training and all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_intervals_come_from_drawing_birds_of_each_class_anew(mixed):
    table = intervals(mixed, 60, seed=4)
    assert dict(table.value) == summary(mixed) and table.equals(intervals(mixed, 60, seed=4))
    assert not table.equals(intervals(mixed, 60, seed=5))
    assert (table.low <= table.high).all() and table.loc["effect", "low"] < table.loc["effect", "high"]
    inside = (table.low <= table.value + 1e-9) & (table.value <= table.high + 1e-9)
    assert inside.mean() > 0.95
    wide, narrow = (intervals(mixed, 60, level=level) for level in (0.95, 0.3))
    assert (wide.high - wide.low).sum() > (narrow.high - narrow.low).sum()
    labels = mixed.effects.labels.numpy()
    alone = np.array([np.flatnonzero(labels == k)[0] for k in (0, 1)])
    counts = np.bincount(alone, minlength=8) * 3
    once = summary(mixed, counts // 3)
    same(once, summary(mixed, counts))
    mean = np.nanmean([mixed.effects.logit.excess[i, BEAK] for i in alone])
    assert once["logit_beak"] == pytest.approx(mean, rel=1e-5)


def test_a_summary_is_the_mean_over_what_counts(mixed):
    """Birds that count differently; by hand."""
    counts = np.array([0, 3, 1, 2, 0, 1, 1, 5])
    found, of, on = summary(mixed, counts), mixed.pairs, mixed.reactions
    repeated = [n for n, bird in enumerate(of.bird) for _ in range(counts[bird])]
    assert found["caused"] == pytest.approx(100 * np.mean(of.best[repeated] >= 0))
    lost = of.lost[repeated].sum() / of.lost_at_cell[repeated].sum()
    assert found["taken_over"] == pytest.approx(100 * (1 - lost), rel=1e-4)
    raw = mixed.effects.similarity.raw[of.bird, :, of.prototype]
    assert np.allclose(of.lost, raw.nansum(1)) and np.allclose(of.effect, 100 * of.true.max(1) / of.similarity)
    for method, value in (("rf", "cause_mass"), ("upsample", "peak_error"), ("box", "purity_centre")):
        expected = np.nanmean(mixed.judged[method].values[value][repeated])
        assert found[f"{method}_{value}"] == pytest.approx(expected * (1 if "error" in value else 100), rel=1e-5)
    birds = [b for b in range(8) for _ in range(counts[b])]
    assert found["logit_tail"] == pytest.approx(float(mixed.effects.logit.excess[birds, TAIL].nanmean()), rel=1e-5)
    hidden = replace(mixed, reactions=replace(on, part=torch.where(torch.arange(8) == 1, -1, 0),
                                              reacted=torch.arange(8) > 5))  # fmt: skip
    assert summary(hidden, counts)["reacted"] == pytest.approx(100 * 6 / 10), "of the birds with a part to change"
    assert summary(hidden, counts)["changed"] == pytest.approx(100 * float(on.area[6] + 5 * on.area[7]) / 6)
    effects = pt.main_effects(of, counts, 5)
    for p in range(4):
        assert np.allclose(effects[p], of.true[[n for n in repeated if of.prototype[n] == p]].mean(0))
    assert not effects[4].any()


def test_matches_may_come_from_all_classes():
    """Class 1 has no beaks to show: what its prototypes look for is found in birds of class 0."""
    scene = flock()
    scene.code[scene.label == 1, BEAK, 1] = 3
    net = watching(RED, RED, RED, RED)
    methods = {"box": pm.mappings(field_of(net))["box"]}
    own, everyone = (examine(net, scene, methods=methods, whose=whose, top=4) for whose in ("own", "all"))
    assert len(own.pairs.bird) == 2 * 8 and len(everyone.pairs.bird) == 4 * 8
    assert report_card(own).part.tolist() != ["beak"] * 4 == report_card(everyone).part.tolist()
    assert (report_card(everyone).causal_purity == 100).all() and (report_card(everyone).purity == 100).all()
    assert report_card(own).causal_purity.tolist()[2:] == [0, 0]


# ---------------------------------------------------------------------------------------------------- the whole thing


def test_measure_is_the_summary_of_the_first_test_birds():
    settings = ToyBirdsSettings(size=32, classes=3)
    net = proto_patches.net(3, 2)
    found = measure(net, settings, n=9, draws=1, resamples=5)
    truth = examine(net, pe.test_birds(settings, 9), draws=1)
    assert {name: value for name, value in found.items() if not name.endswith(("_low", "_high"))} == summary(truth)
    assert len(found) == 3 * len(summary(truth)) and np.isfinite(list(found.values())).all()
    stream, count = toybirds.split("test")
    assert torch.equal(pe.test_birds(settings, 9).shift, toybirds.birds(stream, range(9), settings).shift)
    assert len(pe.test_birds(settings)) == count


def test_inputs_are_those_that_nets_are_tested_on():
    from helpers.prototypes.presets import Dataset
    from helpers.prototypes.sets import sets

    data, net = sets(Dataset(size=32, n_test=40), 0), proto_patches.net(20, 1)
    rows = data.test.indices[:5]
    scene = pe.test_birds(ToyBirdsSettings(size=32))[rows]
    assert torch.equal(pe.inputs(toybirds.stored(toybirds.render(scene).images), net), data.test.inputs(slice(0, 5)))


def test_the_table_of_effects_is_that_of_the_logits(mixed):
    table, logit = truth_of.effect_table(mixed.effects), mixed.effects.logit
    assert table.index.tolist() == list(PARTS) and table.effect.idxmax() in ("beak", "tail")
    for q, part in enumerate(PARTS):
        row, seen = table.loc[part], mixed.effects.visible[:, q]
        assert row.birds == seen.sum()
        assert not seen.any() or row.removed == pytest.approx(float(logit.raw[seen, q].mean()))
        if seen.sum() > 1:
            assert row.on_bird == pytest.approx(float(logit.draws[0][:, seen, q].nanmean()), abs=1e-6)
            assert row.beside == pytest.approx(float(logit.draws[1][:, seen, q].nanmean()), abs=1e-6)
            assert row.spread == pytest.approx(float(logit.excess[seen, q].std()), abs=1e-6)


def test_what_cannot_be_is_refused():
    net, scene = watching(RED, BLUE), flock(4)
    free = ProtoNet(net.features, 3, 2, Model(num_prototypes=4, prototype_dim=3, class_specific=False,
                                              readout_type="linear"))  # fmt: skip
    for call, says in [
        (lambda: examine(net, scene, parts=()), "one or more"),
        (lambda: examine(net, scene, parts="beak"), "one or more"),
        (lambda: examine(net, scene, parts=("beak", "beak")), "different parts"),
        (lambda: examine(net, scene, parts=("beek",)), "no 'beek': did you mean beak"),
        (lambda: examine(net, scene, draws=0), "draws must be at least 1, not 0"),
        (lambda: examine(net, scene, top=0), "top must be at least 1, not 0"),
        (lambda: examine(net, scene, whose="mine"), "unknown prototypes 'mine': there are: all, own"),
        (lambda: examine(net, scene[:0]), "no birds"),
        (lambda: examine(net, flock(8, classes=4)), "knows 2 classes, there is a bird of class 3"),
        (lambda: measure(net, ToyBirdsSettings(size=32)), "knows 2 classes, the birds have 20"),
        (lambda: measure(net, ToyBirdsSettings(size=32, classes=2), n=0), "1 to 1000 test birds to take, not 0"),
        (lambda: examine(Classifier(net.features, 3, 2), scene), "Classifier has no prototypes"),
        (lambda: examine(free, scene), "belong to no class"),
    ]:
        with pytest.raises(ConfigError, match=says):
            call()


def test_maps_that_are_none_are_refused(mixed):
    net, scene = watching(RED, BLUE), flock(2)
    for wrong in (lambda x, s, p: s, lambda x, s, p: torch.full((*p.shape, SIZE, SIZE), torch.nan)):
        with pytest.raises(ValueError, match="expected finite maps .* of the method 'wrong'"):
            pm.point(net, scene, {"wrong": wrong})
    for call, says in [
        (lambda: report_card(mixed, method="boxes"), "did you mean box"),
        (lambda: report_card(mixed, rule="center"), "did you mean centre"),
        (lambda: intervals(mixed, 1), "2 resamples or more"),
        (lambda: intervals(mixed, 9, level=1.0), "within 0 and 1"),
    ]:
        with pytest.raises(ConfigError, match=says):
            call()


def test_the_card_says_what_the_classes_are_called(mixed):
    card = report_card(mixed, class_names(2), method="upsample", rule="peak")
    assert card["class"].tolist() == ["aster", "aster", "bramble", "bramble"] and len(card) == 4
    own = mixed.pairs.prototype == 2
    values = mixed.judged["upsample"].values
    assert card.loc[2, "peak_error"] == pytest.approx(np.nanmean(values["peak_error"][own]))
    assert card.loc[2, "purity"] == pytest.approx(100 * np.nanmean(values["purity_peak"][own]))
    assert card.loc[2, "effect"] == pytest.approx(mixed.pairs.true[own][:, TAIL].mean())


def test_the_control_of_a_pair_is_the_mean_over_its_visible_parts(mixed):
    of = mixed.pairs
    control = mixed.effects.similarity.draws.flatten(0, 1).nanmean(0)[of.bird, :, of.prototype]
    assert control.isnan().any() and not control.isnan().all(1).any() and control.nansum(1).abs().max() > 0
    assert np.allclose(of.control, 100 * control.nanmean(1).numpy() / of.similarity, rtol=1e-5)
    assert summary(mixed)["control"] == pytest.approx(np.mean(of.control), rel=1e-5)


def test_every_drawn_flock_has_as_many_birds_of_each_class(mixed, monkeypatch):
    drawn = []
    monkeypatch.setattr(truth_of, "summary", lambda truth, counts=None: drawn.append(counts) or {"nothing": 0.0})
    intervals(mixed, 20)
    labels, flocks = mixed.effects.labels.numpy(), [counts for counts in drawn if counts is not None]
    assert len(flocks) == 20 and len({tuple(counts) for counts in flocks}) > 10
    for counts in flocks:
        assert np.bincount(labels, counts).tolist() == np.bincount(labels).tolist()


def test_the_parts_of_a_class_are_those_of_the_birds_that_count(mixed):
    """Without the first bird of each class, all prototypes rest on the second part."""
    of, labels = mixed.pairs, mixed.effects.labels.numpy()
    first = [np.flatnonzero(labels == k)[0] for k in (0, 1)]
    true = np.zeros_like(of.true)
    true[:, 1] = 1
    true[np.isin(of.bird, first) & (of.prototype % 2 == 0), 0] = 9
    made = replace(mixed, pairs=replace(of, true=true))
    assert summary(made)["class_parts"] == 2
    assert summary(made, np.where(np.isin(np.arange(8), first), 0, 1))["class_parts"] == 1
