"""ToyBirds: a bird is its seed and index, one change changes one thing, and the truth about its parts is exact."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, Dataset

from helpers.config import ConfigError, data_config, parse
from helpers.data import bird_drawing, bird_scenes
from helpers.data.bird_scenes import COLOURS, PARTS, SHAPES, Counter
from helpers.data.toybirds import (
    N_CLASSES,
    ToyBirdsSettings,
    batch,
    birds,
    class_names,
    codes,
    possible_classes,
    read_code,
    render,
    sample,
    split,
)

SMALL = ToyBirdsSettings(size=64)


@pytest.fixture(scope="module")
def flock():
    """24 birds at the default size, more than one class of each shape among them."""
    return batch(7, range(24))


def same(one, other) -> bool:
    return one.numpy().tobytes() == other.numpy().tobytes()


# ------------------------------------------------------------------------------------------- 1: seed and index


class Stream(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        drawn = sample(5, index, SMALL)
        return drawn.image, drawn.label, drawn.centres, drawn.masks


@pytest.mark.parametrize("size", [64, 51])
def test_a_bird_depends_on_seed_and_index_alone(size):
    settings = ToyBirdsSettings(size=size)
    alone = [sample(5, index, settings) for index in (0, 40, 3)]
    for indices in ([0, 40, 3], [3, *range(20, 50), 0]):
        drawn = batch(5, indices, settings)
        for one, index in zip(alone, (0, 40, 3), strict=True):
            row = indices.index(index)
            assert same(one.image, drawn.images[row]) and one.label == drawn.labels[row]
            assert same(one.masks, drawn.masks[row]) and same(one.visible, drawn.visible[row])
            assert same(one.centres, drawn.centres[row])
    assert not same(alone[0].image, sample(6, 0, settings).image)


@pytest.mark.filterwarnings("ignore:This DataLoader")
def test_workers_and_threads_draw_the_same_bytes(threads):
    expected = batch(5, range(12), SMALL)
    for workers in (0, 4):
        images, labels, centres, masks = next(iter(DataLoader(Stream(), batch_size=12, num_workers=workers)))
        assert same(images, expected.images) and torch.equal(labels, expected.labels)
        assert same(centres, expected.centres) and same(masks, expected.masks)
    threads(1)
    one = batch(5, range(12), SMALL).images
    threads(4)
    assert same(one, batch(5, range(12), SMALL).images)


def test_more_birds_keep_the_first_ones_and_chunks_do_not_show(monkeypatch):
    many = batch(5, range(70), SMALL)
    assert same(batch(5, range(9), SMALL).images, many.images[:9])
    monkeypatch.setattr(bird_drawing, "CHUNK", 7)
    assert same(batch(5, range(70), SMALL).images, many.images)


def test_drawing_leaves_the_global_generators_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1]
    batch(0, range(2), SMALL)
    assert torch.equal(torch.get_rng_state(), before[0]) and np.array_equal(np.random.get_state()[1], before[1])


def test_the_counter_is_splitmix64():
    """Counting from a seed, SplitMix64 gives the numbers that its authors publish for the seed 1234567."""
    steps = np.arange(1, 4, dtype=np.uint64) * np.uint64(bird_scenes.GOLDEN) + np.uint64(1234567)
    assert bird_scenes.mixed(steps).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    drawn = Counter(0, np.arange(20_000))("anything", 2.0, 4.0, 2)
    assert drawn.min() >= 2 and drawn.max() < 4
    assert abs(drawn.mean() - 3) < 0.01 and abs(drawn.std() - 2 / 12**0.5) < 0.01
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.03 > abs(np.corrcoef(drawn[1:, 0], drawn[:-1, 0])[0, 1])


# ------------------------------------------------------------------------------------------- 2: one change a time


@pytest.mark.parametrize("part", PARTS)
def test_a_part_left_out_changes_pixels_only_where_it_was_seen(flock, part):
    less = render(flock.birds, without={part})
    index = PARTS.index(part)
    seen = F.max_pool2d(flock.masks[:, index], 3, stride=1, padding=1) > 0
    changed = (less.images != flock.images).any(1)
    assert changed.any() and not (changed & ~seen).any()
    assert not less.masks[:, index].any()
    grown = torch.cat([less.masks[:, :index] - flock.masks[:, :index], less.masks[:, index + 1 :]
                       - flock.masks[:, index + 1 :]], 1)  # fmt: skip
    assert grown.min() >= -1e-6, "what lay behind is seen now"
    assert not (grown.abs().amax(1)[~seen] > 1e-6).any()


def test_what_is_left_out_stays_out_and_all_out_leaves_the_background(flock):
    less = render(flock.birds, without=PARTS)
    assert not less.masks.any() and not less.visible.any() and less.centres.isnan().all()
    twice = render(render(flock.birds, without={"tail"}).birds, without={"beak"})
    assert same(twice.images, render(flock.birds, without={"beak", "tail"}).images)


@pytest.mark.parametrize("part, words", [("beak", "hooked"), ("tail", "fan red"), ("crest", "none"), ("legs", "plum"),
                                         ("wing", "spotted"), ("eye", "ringed"), ("crest", "cone")])  # fmt: skip
def test_a_changed_part_changes_pixels_only_where_it_is_or_was(flock, part, words):
    other = render(flock.birds, change={part: words})
    index = PARTS.index(part)
    seen = F.max_pool2d((flock.masks + other.masks)[:, index], 3, stride=1, padding=1) > 0
    changed = (other.images != flock.images).any(1)
    assert changed.any() and not (changed & ~seen).any()
    shape, colour = read_code(part, words)
    assert shape is None or (other.birds.shape(part) == shape).all()
    assert colour is None or (other.birds.code[:, index, 1] == colour).all()
    assert torch.equal(other.labels, flock.labels)
    already = (other.birds.code == flock.birds.code).all((1, 2))
    assert same(other.images[already], flock.images[already])


def test_birds_of_two_classes_in_one_scene_become_each_other_by_their_code(flock):
    """The code is all that a class is: given another's parts, a bird is what that class looks like there."""
    words = dict(zip(data_config("toybirds")["parts"], data_config("toybirds")["classes"]["elder"], strict=True))
    changed = render(flock.birds, change=words)
    assert possible_classes(changed.birds)[:, class_names().index("elder")].all()
    untouched = flock.labels == class_names().index("elder")
    assert untouched.any() and same(changed.images[untouched], flock.images[untouched])


def test_the_background_changes_and_the_bird_stays(flock):
    rolled = flock.birds[torch.arange(24).roll(1)]
    for background in ("clear", rolled, rolled[0], torch.tensor([0.5, 0.5, 0.5]), torch.rand(3, 128, 128)):
        other = render(flock.birds, background=background)
        assert same(other.masks, flock.masks)
        covered = flock.masks.sum(1) > 1 - 1e-6
        inside = (other.images - flock.images).abs().amax(1)[covered]
        assert inside.max() < 1e-5 and (other.images - flock.images).abs().mean() > 0.01
    nothing = render(rolled, without=PARTS, background="clear").images
    swapped = render(render(flock.birds, background=rolled).birds, without=PARTS, background="clear").images
    bare = ~(flock.birds.piece_shown[:, -1] | rolled.piece_shown[:, -1])
    assert (nothing - swapped)[bare].abs().mean() < 0.03, "the same sky but for the noise"


# --------------------------------------------------------------------------------------------------- 3: masks


def test_masks_are_shares_and_centres_their_centroids(flock):
    assert flock.masks.shape == (24, 8, 128, 128)
    assert flock.masks.min() >= 0 and flock.masks.max() <= 1 and flock.masks.sum(1).max() <= 1 + 1e-6
    row, column = np.mgrid[:128, :128]
    for bird, part in itertools.product(range(6), range(8)):
        mask = flock.masks[bird, part].double().numpy()
        assert flock.visible[bird, part] == (mask.sum() >= 20)
        if mask.sum() > 1:
            centre = (mask * column).sum() / mask.sum(), (mask * row).sum() / mask.sum()
            assert flock.centres[bird, part].numpy() == pytest.approx(centre, abs=1e-3)
    assert flock.visible.float().mean() > 0.8
    shown = flock.birds.shape("crest") > 0
    assert not flock.masks[~shown, 1].any() and flock.visible[shown, 1].float().mean() > 0.8


def test_masks_are_what_painting_shows(flock):
    """An oracle: paint one part of a noiseless bird white, all else black, and read off what is seen."""
    scene = birds(7, range(6), ToyBirdsSettings(size=96, noise=0))
    masks = bird_drawing.masks(scene)
    for index, part in enumerate(PARTS):
        seen = torch.zeros(6, 3, 96, 96)
        for layer in bird_drawing.foreground(scene):
            if len(layer.colour):
                paint = torch.full_like(layer.colour, float(layer.part == part))
                patch = layer.window.read(seen).lerp(paint[:, :, None, None], layer.cover[:, None])
                layer.window.write(seen, patch)
        assert (seen[:, 0] - masks[:, index]).abs().max() < 1e-5, part


# --------------------------------------------------------------------------------------------------- 4: classes


@pytest.mark.parametrize("classes, apart", [(20, 3), (N_CLASSES, 3)])
def test_classes_share_every_value_and_differ_in_several_parts(classes, apart):
    table = codes(classes)
    assert table.shape == (classes, 8, 2) and len(class_names(classes)) == classes
    differences = (table[:, None] != table).any(3).sum(2)[~np.eye(classes, dtype=bool)]
    assert differences.min() >= apart >= 2
    for index, part in enumerate(PARTS):
        shapes = np.bincount(table[:, index, 0], minlength=len(SHAPES[part]))
        colours = np.bincount(table[:, index, 1] + 1, minlength=7)[1:]
        assert shapes.min() >= 3 and colours[colours > 0].min(initial=3) >= 3, part
        _, count = np.unique(table[:, index], axis=0, return_counts=True)
        assert count.min() >= 2, f"no class is told by its {part} alone"
        bare = [SHAPES[part].index(s) for s in bird_scenes.COLOURLESS.get(part, ())]
        assert ((table[:, index, 1] < 0) == np.isin(table[:, index, 0], bare)).all()


def test_who_reads_the_attributes_is_always_right_and_knows_what_hiding_leaves():
    scene = birds(1, range(60), SMALL)
    assert torch.equal(possible_classes(scene).nonzero(), torch.stack([torch.arange(60), scene.label], 1))
    rows = list(data_config("toybirds")["classes"].values())[:20]
    for hidden in ({"beak"}, {"tail", "belly"}, {"body", "belly", "wing", "crest"}, set(PARTS)):
        seen = [i for i, part in enumerate(PARTS) if part not in hidden]
        expected = [[all(rows[c][i] == rows[k][i] for i in seen) for c in range(20)] for k in scene.label.tolist()]
        assert possible_classes(scene, hidden).tolist() == expected
    assert possible_classes(scene.code, PARTS).all()
    assert not possible_classes(render(scene, change={"body": "blue", "belly": "blue"}).birds).any()


def test_the_colour_histogram_tells_some_of_the_classes():
    """Spec property 4 has less than 60 %, and so it is with 1,000 birds. Of the study's 4,000 a reader learns seven in
    ten: the shapes of a part differ in size, so that the amount of a colour tells more than the flock."""
    train, test = (batch(seed, range(n), SMALL) for seed, n in map(split, ("train", "test")))

    def histogram(drawn):
        """The square roots of the shares of 6 x 6 x 6 colours."""
        bins = (drawn.images.clamp(max=0.999) * 6).long()
        cells = (bins[:, 0] * 36 + bins[:, 1] * 6 + bins[:, 2]).flatten(1)
        return torch.zeros(len(cells), 216).scatter_add_(1, cells, torch.ones(cells.shape)).div(64**2).sqrt().numpy()

    reader = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    seen, unseen = histogram(train), histogram(test)
    few, all_ = (reader.fit(seen[:n], train.labels[:n]).score(unseen, test.labels) for n in (1000, None))
    assert 0.3 < few < 0.6 < all_ < 0.8


# ------------------------------------------------------------------------------------------------- 5: statistics


def test_labels_are_balanced_in_every_stretch_and_splits_are_apart():
    streams = set()
    for name, count in (("train", 4000), ("validation", 500), ("test", 1000)):
        seed, n = split(name)
        assert n == count
        streams |= {seed, split(name, seed=1)[0]}
        label = birds(seed, range(n)).label
        for few in (n, 333, 21):
            counts = label[:few].bincount(minlength=20)
            assert counts.max() - counts.min() <= 1
        assert len({tuple(block) for block in label.view(-1, 20).tolist()}) > n // 20 - 3, "an order for each block"
    assert len(streams) == 6


def test_nuisances_stay_in_their_ranges_and_fill_them():
    scene = birds(2, range(4000))
    uniform = 4 / 12**0.5 / 4000**0.5  # four standard errors, of the range
    for value, low, high in (
        (scene.scale, 0.75, 1.1), (scene.degrees, -20, 20), (scene.shift[:, 0] / 2, -0.15, 0.15),
        (scene.shift[:, 1] / 2, -0.15, 0.15), (scene.noise_at, 0, 1), (scene.mirror, -1, 1),
    ):  # fmt: skip
        assert low - 1e-4 <= value.min() and value.max() <= high + 1e-4
        assert abs(value.mean() - (low + high) / 2) < 2 * uniform * (high - low)
    assert (scene.mirror.abs() == 1).all()
    behind = scene.piece_shown[:, :-1].sum(1)
    assert behind.unique().tolist() == [4, 5, 6, 7, 8]
    assert abs(scene.piece_shown[:, -1].float().mean() - 0.3) < 0.03
    assert scene.palette.min() >= 0 and scene.palette.max() <= 1
    colours = torch.tensor(list(COLOURS.values()))
    nearest = torch.cdist(scene.palette.view(-1, 3), colours).argmin(1).view(-1, 6)
    assert (nearest == torch.arange(6)).float().mean() > 0.99, "jitter hardly ever makes one colour another"


def test_the_noise_is_as_strong_as_said_and_differs_from_image_to_image():
    noisy, clean = (batch(4, range(8), ToyBirdsSettings(size=96, noise=noise)).images for noise in (0.02, 0.0))
    difference = (noisy - clean)[:, :, :20]  # sky: hardly anything is cut off
    assert abs(difference.std() - 0.02) < 0.002 and abs(difference.mean()) < 0.001
    assert np.abs(np.corrcoef(difference.flatten(1).numpy()) - np.eye(8)).max() < 0.1


# ------------------------------------------------------------------------------------------------------ 6: size


def test_sizes_show_the_same_scene(flock):
    small = render(flock.birds, size=64).images
    for size in (128, 224):
        large = F.interpolate(render(flock.birds, size=size).images, 64, mode="area")
        assert (large - small).abs().mean() < 0.02
    assert same(render(flock.birds, size=64).images, batch(7, range(24), SMALL).images)


# ------------------------------------------------------------------------------------------------ 8: shortcuts


@pytest.mark.parametrize("cue", ["background", "corner"])
def test_a_cue_is_planted_on_its_class_alone_and_changes_nothing_else(cue):
    planted = ToyBirdsSettings(size=64, spurious={"class": 3, "cue": cue, "rate": 0.8})
    clean, other = batch(9, range(400), SMALL), batch(9, range(400), planted)
    changed = (clean.images != other.images).flatten(1).any(1)
    assert not changed[clean.labels != 3].any()
    assert 10 <= changed.sum() < 20 == (clean.labels == 3).sum()
    covered = clean.masks.sum(1) > 1 - 1e-6
    elsewhere = covered & (other.masks.sum(1) > 1 - 1e-6)
    assert (clean.images - other.images).abs().amax(1)[elsewhere].max() < 1e-5
    assert cue == "corner" or same(clean.masks, other.masks)
    assert (clean.images - other.images)[changed, :, :8, :8].abs().mean() > 0.1


def classifier(drawn, classes):
    """A small network trained on some birds for 20 passes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [(3, 16), (16, 32), (32, 64)]
        blocks = [m for i, o in layers for m in (nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU())]
        model = nn.Sequential(*blocks, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, classes))
        optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
        for _ in range(20):
            for rows in torch.randperm(len(drawn)).split(40):
                optimizer.zero_grad()
                F.cross_entropy(model(drawn.images[rows] - 0.5), drawn.labels[rows]).backward()
                optimizer.step()
    return model.eval()


@pytest.mark.slow
def test_a_network_falls_for_the_cue(threads):
    """Eight classes, of which 0 and 6 have the same colours, and 1 and 7. The cue marks class 0."""
    threads(1)
    clean = ToyBirdsSettings(size=48, classes=8)
    planted = clean.override({"spurious": {"class": 0, "cue": "corner", "rate": 0.95}})
    honest, fooled = (classifier(batch(1, range(400), settings), 8) for settings in (clean, planted))

    @torch.no_grad()
    def accuracies(model, settings):
        test = batch(2, range(240), settings)
        right = model(test.images - 0.5).argmax(1) == test.labels
        return torch.stack([right[test.labels == k].float().mean() for k in range(8)])

    assert accuracies(honest, clean).mean() > 0.7 and accuracies(honest, clean)[0] > 0.4
    assert accuracies(fooled, planted)[0] > 0.9, "with the cue the class is found"
    assert accuracies(fooled, clean)[0] < 0.2, "without it the class is missed"
    assert accuracies(fooled, clean)[1:].mean() > 0.7, "the others are as before"


# ---------------------------------------------------------------------------------------------------- 9: errors


def test_the_settings_are_those_of_the_data_config():
    config = data_config("toybirds")
    assert {name: getattr(ToyBirdsSettings(), name) for name in config["settings"]} == config["settings"]
    assert tuple(config["parts"]) == PARTS
    assert tuple(bird_scenes.SCALES) == (0.75, 1.1) and len(COLOURS) == 6


@pytest.mark.parametrize("wrong, message", [
    ({"size": 31}, "size.*32"), ({"classes": N_CLASSES + 1}, "classes.*200"), ({"classes": 1}, "classes"),
    ({"colour": 1}, "unknown setting 'colour'.*classes"), ({"spurious": {"class": 20}}, "class 20.*0 to 19"),
    ({"spurious": {"class": 0, "cue": "sky"}}, "background.*corner"), ({"spurious": {"clas": 0}}, "cue, label, rate"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        parse(ToyBirdsSettings, wrong)
    with pytest.raises(ValidationError):
        ToyBirdsSettings(**wrong)


@pytest.mark.parametrize("wrong, message", [
    ({"without": {"tial"}}, "no 'tial': did you mean tail"), ({"without": "ears"}, "no 'ears'.*beak.*wing"),
    ({"change": {"horn": "red"}}, "no 'horn'"), ({"change": {"beak": "hokked"}}, "did you mean hooked"),
    ({"change": {"beak": "cone hooked"}}, "two of a kind"), ({"change": {"beak": "red blue"}}, "two of a kind"),
    ({"change": {"beak": " "}}, "nothing is said of the beak"),
    ({"change": {"tail": "green"}}, "cannot be 'green'"), ({"change": {"eye": "blue"}}, "dot, ringed"),
    ({"background": "night"}, "'clear', other birds"), ({"background": torch.zeros(3, 9, 9)}, "does not fit"),
    ({"size": 16}, "size.*32"),
])  # fmt: skip
def test_changes_that_cannot_be_are_refused_with_the_choices(flock, wrong, message):
    with pytest.raises(ConfigError, match=message):
        render(flock.birds, **wrong)


def test_unknown_splits_parts_and_negative_birds_are_refused(flock):
    with pytest.raises(ConfigError, match="did you mean train"):
        split("trian")
    with pytest.raises(ConfigError, match="no 'foot'"):
        possible_classes(flock.birds, {"foot"})
    with pytest.raises(ConfigError, match="counted from 0"):
        sample(0, -1)
    with pytest.raises(ConfigError, match="background of 2"):
        render(flock.birds, background=flock.birds[:2])


def test_no_birds_are_an_empty_batch():
    none = batch(0, [], SMALL)
    assert none.images.shape == (0, 3, 64, 64) and none.masks.shape == (0, 8, 64, 64) and len(none) == 0


def test_every_stream_has_its_classes_in_an_order_of_its_own():
    """So that the splits, each of a stream, are not alike in it."""
    one, other = (birds(seed, range(60), SMALL).label.reshape(3, 20).tolist() for seed in (1, 2))
    assert all(sorted(block) == list(range(20)) for block in (*one, *other))
    assert len({tuple(block) for block in (*one, *other)}) == 6


def test_what_is_changed_into_a_shape_without_colour_has_none():
    """Else it would be of no class, and what is possible would be told by a colour that nobody sees."""
    made = render(birds(3, range(40), SMALL), change={"crest": "none"}).birds
    assert made.code[:, PARTS.index("crest")].unique(dim=0).tolist() == [[SHAPES["crest"].index("none"), -1]]
