"""Consistency and stability against loops over images and prototypes, of nets whose answer is known, at the edges."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from proto_patches import field_of, net
from torch import nn

from helpers import runtime
from helpers.config import ConfigError
from helpers.data.images import Preprocess
from helpers.prototypes.evaluation.consistency import METRICS, measure
from helpers.prototypes.evaluation.protocols import PROTOCOLS, Protocol, annotated, protocol, touched
from helpers.prototypes.mapping import pixel_map
from helpers.prototypes.models import Classifier, ProtoNet, prune
from helpers.prototypes.pipelines import Pipeline
from helpers.prototypes.presets import Dataset, Model
from helpers.prototypes.receptive_field import receptive_field
from helpers.prototypes.sets import Part, sets
from helpers.prototypes.sources import PartLocations, Stored

SIZE = 32
NAMES = ("beak", "eye", "tail", "leg", "wing")
PART = torch.arange(5).repeat_interleave(torch.tensor([1, 8, 4, 1, 9]))  # eight eyes
READOUTS = ("bbox", "heatmap_max", "heatmap_mean", "upsample", "center", "bicubic")


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def split(pixels, labels, xy, visible, of=PART, legacy=(0.0, 0.0)):
    """A `Part` of images uint8 [N, 3, 32, 32], with official indices of its own; the legacy geometry is off by
    ``legacy``."""
    pipeline = Pipeline("squeeze", SIZE, None, SIZE, Preprocess(mean=(0.5,) * 3, std=(0.25,) * 3))
    indices = 5 + 2 * torch.arange(len(labels)).flip(0)
    row = {index: i for i, index in enumerate(indices.tolist())}

    def parts(some, geometry):
        rows = [row[index] for index in some.tolist()]
        moved = xy[rows] + (torch.tensor(legacy) if geometry == "legacy" else 0)
        inside = ((moved >= 0) & (moved < SIZE)).all(-1)
        return PartLocations(moved, visible[rows] & inside, of, NAMES[: int(of.max()) + 1])

    classes = tuple(map(str, range(int(labels.max()) + 1)))
    return Part(labels, indices, Stored(labels, classes, lambda index: pixels[row[index]], parts), pipeline)


def noise_images(count=24, n_classes=3, seed=0, **changes):
    """Noise, and parts anywhere; all but a few annotations can be seen, and in the first image none."""
    generator = runtime.generator(seed, "parts")
    pixels = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    xy = torch.rand(count, len(PART), 2, generator=generator) * SIZE  # often a square touches no part, not always
    visible = torch.rand(count, len(PART), generator=generator) < 0.9
    visible[0] = False
    labels = torch.arange(count) * 7 % n_classes
    return split(pixels, labels, xy, visible, legacy=(3.0, -2.0), **changes)


def seeing(part, change):
    """``part``, of whose annotations ``change(visible, indices)`` says which are visible."""

    def parts(some, geometry):
        found = part.stored.parts(some, geometry)
        return PartLocations(found.xy, change(found.visible, some), found.part, found.names)

    stored = Stored(part.stored.labels, part.classes, part.stored.pixels, parts)
    return Part(part.labels, part.indices, stored, part.pipeline)


def seen(net, part, protocols, **options):
    return measure(net, part, field_of(net, part.input_size), protocols, **options)


# ------------------------------------------------------------------------------------------ the plain way, by loops


def place(s, field, mode):
    """Where a map s [Hz, Wz] says that a prototype looks: y, x."""
    (hz, wz), (h, w) = s.shape, field.input_size
    i, j = divmod(int(s.argmax()), wz)
    if mode == "bbox":
        y0, y1, x0, x1 = field.box(i, j)
        return (y0 + y1 - 1) / 2, (x0 + x1 - 1) / 2
    if mode == "upsample":
        return round((i + 0.5) * h / hz), round((j + 0.5) * w / wz)
    if mode == "center":
        return (h - 1) / 2, (w - 1) / 2
    if mode == "bicubic":
        return divmod(int(F.interpolate(s[None, None], (h, w), mode="bicubic").argmax()), w)
    heat = pixel_map(s[None, None], field, reduce=mode.removeprefix("heatmap_"))[0, 0].numpy()
    ys, xs = np.nonzero(heat == np.nanmax(heat))
    return ys.mean(), xs.mean()


def touches(s, field, places, one):
    """The set of parts that a prototype touches whose similarities are s [Hz, Wz]."""
    cy, cx = place(s, field, one.readout)
    half, size = 36 / 224 * SIZE, SIZE
    end = size if one.clip == "all" else math.inf
    rows = max(0, cy + 0.5 - half), min(end, cy + 0.5 + half)
    columns = max(0, cx + 0.5 - half), min(end, cx + 0.5 + half)
    found = set()
    for a, (px, py) in enumerate(places.xy[0].tolist()):
        over = rows[0] < int(py) + 1 and int(py) < rows[1] and columns[0] < int(px) + 1 and int(px) < columns[1]
        if places.visible[0, a] and over:
            found.add(int(places.part[a]) if one.merged else a)
    return found


@torch.no_grad()
def slow(net, part, one, seed):
    """Sections 8.2 and 8.3 image by image and prototype by prototype."""
    net.eval()
    field, parts = field_of(net), len(NAMES) if one.merged else len(PART)
    shares, soft, hard = [], [], []
    views, places = [], [part.stored.parts(index[None], one.geometry) for index in part.indices]
    for row, index in enumerate(part.indices.tolist()):
        x = part.inputs([row])
        noise = one.noise * torch.randn(x.shape[1:], generator=runtime.generator(seed, "noise", index))
        noisy = x + (noise if one.noise_clip is None else noise.clamp(-one.noise_clip, one.noise_clip))
        views.append((net(x).similarity_map[0], net(noisy).similarity_map[0]))
    for p in range(len(net.prototypes)):
        rows = [row for row in range(len(part)) if part.labels[row] == net.prototype_class[p]]
        hits, seen_in, ious, same = np.zeros(parts), np.zeros(parts), [], []
        for row in rows:
            clean, noisy = (touches(view[p], field, places[row], one) for view in views[row])
            hits[list(clean)] += 1
            can_be_seen = places[row].visible[0].nonzero().flatten().tolist()
            seen_in[list({int(PART[a]) if one.merged else a for a in can_be_seen})] += 1
            same.append(clean == noisy)
            empty = 1.0 if one.empty_iou == "one" else math.nan
            ious.append(len(clean & noisy) / len(clean | noisy) if clean | noisy else empty)
        with np.errstate(invalid="ignore"):
            shares.append(np.where(seen_in > 0, hits / (len(rows) if one.invisible_count else seen_in), np.nan))
        soft.append(np.mean(ious))
        hard.append(np.mean(same))
    scores = np.array([np.nanmax(share) for share in shares])
    values = {"soft_consistency": np.nanmean(scores), "hard_consistency": np.mean(scores >= 0.8),
              "soft_stability": np.nanmean(soft), "hard_stability": np.mean(hard)}  # fmt: skip
    return np.array(shares), scores, soft, hard, values


SETTINGS = {**PROTOCOLS, **{mode: protocol("pixpnet-exact", readout=mode) for mode in READOUTS}}


@pytest.fixture(scope="module")
def by_settings():
    """All protocols and readouts in one call. Prototypes of the classes are 4, 3 and 2."""
    torch.set_num_threads(1)
    one, part = net(kernel=7), noise_images()
    prune(one, [5, 8, 11])
    return one, part, seen(one, part, SETTINGS, seed=3, batch_size=5)


@pytest.mark.parametrize("name", SETTINGS)
def test_metrics_are_the_loop_over_images_and_prototypes(by_settings, name):
    """Exactly, whatever else the same call measures."""
    one, part, found = by_settings
    shares, scores, soft, hard, values = slow(one, part, SETTINGS[name], 3)
    ours = found[name]
    assert np.array_equal(ours.part_scores.numpy(), shares, equal_nan=True)
    assert np.array_equal(ours.score.numpy(), scores)
    assert ours.best_part.tolist() == [int(np.nanargmax(share)) for share in shares]
    assert np.allclose(ours.soft_stable, soft, rtol=0, atol=1e-12, equal_nan=True)
    assert np.allclose(ours.hard_stable, hard, rtol=0, atol=1e-12)
    for metric in METRICS:
        assert getattr(ours, metric) == pytest.approx(values[metric], abs=1e-12)
    assert ours.n_images == 24 and ours.protocol == SETTINGS[name]


def test_the_settings_that_are_compared_differ(by_settings):
    """So that the comparison with the loop means something."""
    _, _, found = by_settings
    assert 0 < found["bbox"].hard_stability < 1
    shares = {str(result.part_scores.tolist()) for result in found.values()}
    assert len(shares) == len(SETTINGS) - 1, "bbox is pixpnet-exact"
    legacy, exact = found["pixpnet-legacy"], found["pixpnet-exact"]
    assert legacy.soft_stable.isnan().any() and not exact.soft_stable.isnan().any(), "an empty union discards"


def test_protocols_are_those_of_the_spec():
    exact, legacy, huang = (PROTOCOLS[name] for name in ("pixpnet-exact", "pixpnet-legacy", "huang"))
    assert exact == Protocol() and exact.half_side * 224 == 36 and exact.half_side * 448 == 72
    assert (exact.noise, exact.noise_clip, exact.merged, exact.geometry) == (0.2, None, True, "exact")
    assert legacy == exact.override({"geometry": "legacy", "empty_iou": "discard"})
    assert (huang.noise, huang.noise_clip, huang.merged, huang.readout) == (0.2, 0.25, False, "bicubic")
    assert huang.clip == "all" and huang.invisible_count and exact.threshold == 0.8


# --------------------------------------------------------------------------------------- nets whose answer is known


def coloured(n_classes=2, of=3):
    """A net whose prototype p looks for the colour p % 3, and says so to the pixel."""
    model = ProtoNet(nn.AvgPool2d(2), 3, n_classes, Model(num_prototypes=n_classes * of, prototype_dim=3))
    model.add_on = nn.Identity()
    with torch.no_grad():
        model.prototypes.copy_(4 * torch.eye(3)[torch.arange(n_classes * of) % 3][..., None, None] - 2)
    return model


def dots(count=20, seed=0):
    """Black images, and in each a pixel of red, green and blue where its parts are, 12 pixels apart or more."""
    generator = np.random.default_rng(seed)
    pixels, xy = torch.zeros(count, 3, SIZE, SIZE, dtype=torch.uint8), torch.zeros(count, 3, 2)
    for image in range(count):
        while True:
            at = generator.integers(0, SIZE // 2, (3, 2)) * 2
            gaps = [abs(at[i] - at[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))]
            if min(gaps) >= 12:
                break
        for k, (x, y) in enumerate(at):
            pixels[image, k, y : y + 2, x : x + 2] = 255
            xy[image, k] = torch.tensor([x, y]) + torch.tensor(generator.random(2) * 2)
    labels, visible = torch.arange(count) % 2, torch.ones(count, 3, dtype=torch.bool)
    return split(pixels, labels, xy, visible, of=torch.arange(3))


@pytest.mark.parametrize("mode", ["bbox", "heatmap_max", "upsample", "bicubic"])
def test_who_always_points_at_a_part_is_consistent(mode):
    """Property 20."""
    found = seen(coloured(), dots(), {"it": protocol("pixpnet-exact", readout=mode, noise=0.05)})["it"]
    assert found.soft_consistency == found.hard_consistency == 1
    assert found.best_names == NAMES[:3] * 2 and found.hard_stability == found.soft_stability == 1
    others = found.part_scores[~torch.eye(3).repeat(2, 1).bool()]
    assert (others == 0).all(), "parts are too far from each other to be touched together"


def test_who_points_anywhere_touches_a_part_as_often_as_area_says():
    """Property 20, of parts that lie too far inside for the border to cut squares around them."""
    count, generator = 400, runtime.generator(1, "anywhere")
    pixels = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    xy = 8 + 16 * torch.rand(count, 3, 2, generator=generator)
    anywhere = split(pixels, torch.arange(count) % 2, xy, torch.ones(count, 3).bool(), of=torch.arange(3))
    sides = {half: protocol("pixpnet-exact", half_side=half) for half in (1 / 8, 1 / 4)}
    for half, found in seen(coloured(), anywhere, sides).items():
        assert float(found.part_scores.mean()) == pytest.approx((2 * half) ** 2, rel=0.1)
        assert found.hard_consistency == 0 and found.hard_stability < 0.9


def test_the_centre_does_not_depend_on_weights():
    """Property 20."""
    part, centre = noise_images(), {"center": protocol("pixpnet-exact", readout="center")}
    one, other = (seen(net(seed=seed), part, centre)["center"] for seed in (0, 1))
    assert torch.equal(one.part_scores, other.part_scores) and one.soft_consistency == other.soft_consistency
    assert one.hard_stability == one.soft_stability == 1
    boxes = [seen(net(seed=seed), part, ["pixpnet-exact"])["pixpnet-exact"].part_scores for seed in (0, 1)]
    assert not torch.equal(*boxes)


def test_without_noise_all_is_stable():
    """Property 20."""
    quiet = {name: one.override({"noise": 0.0}) for name, one in PROTOCOLS.items()}
    for found in seen(net(), noise_images(), quiet).values():
        assert found.hard_stability == found.soft_stability == 1
        assert (found.hard_stable == 1).all()


def same(one, other):
    arrays = ("part_scores", "part_images", "score", "best_part", "soft_stable", "hard_stable")
    return one.floats() == other.floats() and all(
        torch.equal(getattr(one, name).nan_to_num(-9), getattr(other, name).nan_to_num(-9)) for name in arrays
    )


def test_a_seed_decides_everything_and_the_size_of_batches_nothing():
    """Property 20, and W8 of section 14."""
    one, part = net(), noise_images()
    found = [seen(one, part, list(PROTOCOLS), seed=3, batch_size=size) for size in (1, 7, 64)]
    for name in PROTOCOLS:
        assert same(found[0][name], found[1][name]) and same(found[1][name], found[2][name])
    other = seen(one, part, ["pixpnet-exact"], seed=4)["pixpnet-exact"]
    first = found[0]["pixpnet-exact"]
    assert not torch.equal(other.hard_stable, first.hard_stable)
    assert torch.equal(other.part_scores, first.part_scores), "consistency knows no noise"


def test_protocols_do_not_see_each_other_and_the_net_stays_as_it_was():
    one, part = net(), noise_images()
    before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    together = seen(one, part, list(PROTOCOLS))
    for name in PROTOCOLS:
        assert same(together[name], seen(one, part, [name])[name])
    assert one.training and all(torch.equal(before[name], tensor) for name, tensor in one.state_dict().items())


def test_the_order_of_images_does_not_matter():
    one, part = net(), noise_images()
    order = torch.randperm(24, generator=runtime.generator(0, "order"))
    turned = Part(part.labels[order], part.indices[order], part.stored, part.pipeline)
    assert same(*(seen(one, some, ["huang"])["huang"] for some in (part, turned)))


def test_images_pass_the_net_once_a_kind_of_noise(monkeypatch):
    one, part, passed = net(), noise_images(), []
    embed = one.embed
    monkeypatch.setattr(one, "embed", lambda x: passed.append(len(x)) or embed(x))
    seen(one, part, SETTINGS)
    assert sum(passed) == 24 * 3, "as they are, with noise, with clipped noise"


# -------------------------------------------------------------------------------------------------------- squares


def around(y, x, pixels, size=224, **changes):
    """Which of ``pixels`` (x, y) a prototype touches that looks at (y, x)."""
    xy = torch.tensor([pixels], dtype=torch.float32)
    places = PartLocations(xy, torch.ones(xy.shape[:2], dtype=torch.bool), torch.arange(len(pixels)), ())
    centre = torch.tensor([[[y, x]]], dtype=torch.float64)
    return touched(centre, places, Protocol(**changes), size)[0, 0].tolist()


def test_a_square_has_72_pixels_a_side_of_224():
    edges = [(75.9, 100), (76.0, 100), (147.9, 100), (148.0, 100), (100, 75.9), (100, 76.0), (100, 147.9), (100, 148.0)]
    assert around(111.5, 111.5, edges) == [False, True, True, False] * 2
    half = [(x / 2, y / 2) for x, y in edges]
    assert around(55.5, 55.5, half, size=112) == [False, True, True, False] * 2, "in proportion to the input"
    assert around(111.5, 111.5, [(110, 100), (114, 100)], half_side=1 / 224) == [False, False]


def test_rows_and_columns_are_not_confused():
    assert around(50, 150, [(150, 50), (50, 150)]) == [True, False]


@pytest.mark.parametrize("clip, expected", [("zero", [False, True]), ("all", [False, False])])
def test_borders_cut_the_square(clip, expected):
    """It matters to what lies outside the input alone."""
    assert around(10, 220, [(220, -2), (226, 10)], clip=clip) == expected


def test_an_annotation_by_itself_has_a_number_where_its_part_has_several():
    places = noise_images().stored.parts(torch.tensor([5]), "exact")
    assert annotated(places, PROTOCOLS["huang"]).names[:4] == ("beak", "eye 1", "eye 2", "eye 3")
    assert annotated(places, PROTOCOLS["huang"]).names[13:15] == ("leg", "wing 1")
    assert annotated(places, PROTOCOLS["pixpnet-exact"]).names == NAMES


# ---------------------------------------------------------------------------------------------------------- edges


def test_images_without_a_visible_part_count_for_stability_alone():
    one, part = net(n_classes=1, each=3), noise_images(8, 1)
    found = seen(one, seeing(part, lambda visible, some: visible & False), list(PROTOCOLS))
    for result in found.values():
        assert result.part_scores.isnan().all() and result.best_part.tolist() == [-1] * 3
        assert result.best_names == (None,) * 3 and not result.part_images.any()
        assert math.isnan(result.soft_consistency) and math.isnan(result.hard_consistency)
        assert result.hard_stability == 1
    assert found["pixpnet-exact"].soft_stability == 1 and math.isnan(found["pixpnet-legacy"].soft_stability)


def test_classes_without_images_or_prototypes_are_left_out():
    one, part = net(), noise_images()
    rows = (part.labels != 1).nonzero().flatten()
    some = Part(part.labels[rows], part.indices[rows], part.stored, part.pipeline)
    whole, found = (seen(one, x, ["pixpnet-exact"])["pixpnet-exact"] for x in (part, some))
    assert found.n_images == len(rows) and found.part_scores.shape == (12, 5)
    others = one.prototype_class != 1
    assert torch.equal(found.part_scores[others], whole.part_scores[others])
    for values in (found.score, found.soft_stable, found.hard_stable):
        assert torch.equal(values.isnan(), ~others)
    assert found.soft_consistency == pytest.approx(float(whole.score[others].mean()))

    one.prototype_class[4:8] = 2
    bare = seen(one, part, ["pixpnet-exact"])["pixpnet-exact"]
    assert bare.n_images == len(rows) and torch.equal(bare.part_scores[others], whole.part_scores[others])
    assert not bare.score[4:8].isnan().any()


def test_a_part_that_is_never_visible_has_no_share():
    part = noise_images(6, 1)

    def but_beaks(visible, some):
        visible[:, 0] = False
        visible[:, 13] = some == part.indices[2]  # one leg
        return visible

    found = seen(net(n_classes=1, each=2), seeing(part, but_beaks), list(PROTOCOLS))
    for name, leg in (("pixpnet-exact", 3), ("huang", 13)):
        result = found[name]
        assert result.part_scores[:, 0].isnan().all() and not result.part_scores[:, 1:].isnan().any()
        assert not result.score.isnan().any() and result.part_images[:, leg].tolist() == [1, 1]
        assert 0 not in result.best_part


def test_on_birds_whose_parts_are_known():
    data = sets(Dataset(name="ToyBirds", size=SIZE, n_train=20, n_test=20), 0)
    one = net(n_classes=20, each=2)
    found = seen(one, data.test, list(PROTOCOLS))
    for result in found.values():
        assert result.n_images == 20 and len(result.parts) == 8 and "beak" in result.parts
        assert 0 < result.soft_consistency <= 1 and 0 < result.soft_stability <= 1
    exact, legacy = found["pixpnet-exact"], found["pixpnet-legacy"]
    assert torch.equal(exact.part_scores.nan_to_num(-1), legacy.part_scores.nan_to_num(-1)), "one geometry"


# ------------------------------------------------------------------------------------------------------ intervals


@pytest.mark.filterwarnings("ignore:Mean of empty slice")  # of classes whose prototypes are all discarded
def test_whole_classes_are_drawn_for_an_interval():
    one, part = net(), noise_images()
    prune(one, [5])
    found = seen(one, part, ["pixpnet-legacy"], seed=2, resamples=200, confidence=0.9)["pixpnet-legacy"]
    drawn = runtime.numpy_generator(2, "consistency", "classes").multinomial(3, [1 / 3] * 3, size=200)
    classes = one.prototype_class.numpy()
    columns = {"soft_consistency": found.score, "hard_consistency": (found.score >= 0.8).double(),
               "soft_stability": found.soft_stable, "hard_stability": found.hard_stable}  # fmt: skip
    for metric, values in columns.items():
        expected = []
        for times in drawn:
            drawn_values = [values.numpy()[classes == c] for c, n in enumerate(times) for _ in range(n)]
            expected.append(np.nanmean(np.concatenate(drawn_values)))
        assert np.allclose(found.replicates[metric], expected, rtol=0, atol=1e-12, equal_nan=True)
        assert found.intervals[metric] == pytest.approx(tuple(np.nanquantile(expected, [0.05, 0.95])))
        floats = found.floats()
        assert (floats[f"{metric}_low"], floats[f"{metric}_high"]) == found.intervals[metric]
        assert floats[f"{metric}_low"] <= floats[metric] <= floats[f"{metric}_high"]


def test_protocols_and_nets_are_compared_on_the_same_draws():
    part = noise_images()
    one, other = (seen(net(seed=seed), part, ["huang", "pixpnet-exact"]) for seed in (0, 1))
    by_class = [r["huang"].hard_stable.view(3, 4).mean(1) for r in (one, other)]
    difference = one["huang"].replicates["hard_stability"] - other["huang"].replicates["hard_stability"]
    drawn = runtime.numpy_generator(0, "consistency", "classes").multinomial(3, [1 / 3] * 3, size=2000)
    assert np.allclose(difference, drawn @ (by_class[0] - by_class[1]).numpy() / 3, rtol=0, atol=1e-12)


def test_one_class_has_no_interval():
    found = seen(net(n_classes=1), noise_images(6, 1), ["pixpnet-exact"])["pixpnet-exact"]
    assert all(math.isnan(end) for metric in METRICS for end in found.intervals[metric])
    assert not len(found.replicates["soft_consistency"])
    none = seen(net(), noise_images(), ["pixpnet-exact"], resamples=0)["pixpnet-exact"]
    assert math.isnan(none.floats()["hard_stability_low"]) and 0 <= none.hard_stability <= 1


# ------------------------------------------------------------------------------------------------------ bad input


def test_what_cannot_be_is_refused():
    one, part = net(), noise_images()
    field, loose = field_of(one), net(class_specific=False, readout_type="linear")
    plain = Part(part.labels, part.indices, Stored(part.labels, part.classes, part.stored.pixels), part.pipeline)
    none = Part(part.labels[:0], part.indices[:0], part.stored, part.pipeline)
    for call, says in [
        (lambda: measure(one, part, field, ["pixpnet-exakt"]), "did you mean pixpnet-exact"),
        (lambda: measure(one, part, field, []), "no protocol is asked for; there are: huang, pixpnet-exact"),
        (lambda: protocol("huangs"), "unknown protocol 'huangs': did you mean huang?"),
        (lambda: protocol("huang", read_out="bbox"), "did you mean readout?"),
        (lambda: protocol("huang", readout="centre"), "'center'"),
        (lambda: protocol("huang", noise=-0.1), "noise: .*greater than or equal to 0"),
        (lambda: protocol("huang", half_side=0.0), "half_side: .*greater than 0"),
        (lambda: measure(loose, part, field), "this net has none that belong to one"),
        (lambda: measure(Classifier(nn.Identity(), 3, 3), part, field), "this net has none that belong to one"),
        (lambda: measure(one, plain, field), "parts are annotated in CUB and known in ToyBirds"),
        (lambda: measure(net(n_classes=2), part, field), "images of class 2, the net knows 0 to 1"),
        (lambda: measure(one, none, field), "none of the 0 images is of a class that has prototypes"),
        (lambda: measure(one, part, field, batch_size=0), "batch_size must be at least 1"),
        (lambda: measure(one, part, field, confidence=95), "confidence between 0 and 1"),
        (lambda: measure(one, part, field, resamples=-1), "resamples at least 0"),
    ]:
        with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
            call()


def test_receptive_fields_of_another_net_or_size_are_refused():
    one, part = net(), noise_images()
    with pytest.raises(ValueError, match="32 pixels a side, the receptive fields are those of"):
        measure(one, part, field_of(one, 40))
    with pytest.raises(ValueError, match=r"expected similarities \[B, P, 16, 16\]"):
        measure(one, part, receptive_field(nn.Conv2d(3, 6, 3, 2, 1), SIZE))


def test_a_score_equal_to_the_threshold_reaches_it():
    """8 images of 10 are 0.8, "at least 0.8": here all of all, at a threshold of 1."""
    one = protocol("pixpnet-exact", noise=0.05, threshold=1.0)
    assert seen(coloured(), dots(), {"it": one})["it"].hard_consistency == 1
