"""ToyShapes draws the published images to the bit, whatever the settings, and refuses what cannot be drawn."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from helpers.config import data_config
from helpers.data import toyshapes
from helpers.data.toyshapes import ToyShapesSettings, generate, render, sample_scenes, split

# Spec section 2.5: what the published generator draws with these seeds.
GOLDEN = {
    0: ([327, 389, 201, 64, 15, 3, 1], 64_874, 0.490543, 0.214820, "e72413260c3e", "9801f9a902b5"),
    2025: ([377, 368, 185, 54, 12, 3, 1], 58_239, 0.483581, 0.211696, "d0cdee825cb3", "bd8143e0b08c"),
    508052: ([353, 404, 175, 59, 9], 58_424, 0.488195, 0.215037, "582473cd6c2f", "f562d4be4724"),
}
ODD_SETTINGS = {
    "published": {"n_images": 6},
    "outlines": {"n_images": 9, "n_blocks": 9, "block_size": 13, "shapes": ("circle", "triangle", "void"),
                 "target": "circle", "hollow": 1.0, "relative_frequency": 2.0},
    "one solid block": {"n_images": 12, "n_blocks": 1, "block_size": 8, "shapes": ("square", "void"),
                        "target": "square", "hollow": 0.0},
    "target most likely": {"n_images": 7, "n_blocks": 4, "block_size": 31, "shapes": ("square", "triangle", "circle"),
                           "target": "triangle", "hollow": 0.5, "relative_frequency": 0.5},
    "no triangles": {"n_images": 8, "n_blocks": 25, "block_size": 10, "shapes": ("void", "circle", "square"),
                     "target": "circle"},
    "black": {"n_images": 40, "n_blocks": 1, "block_size": 9, "backgrounds": False, "hollow": 0.25},
    "black, solid": {"n_images": 120, "n_blocks": 1, "block_size": 8, "backgrounds": False, "hollow": 0.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def published():
    return {seed: generate(seed) for seed in GOLDEN}


# --------------------------------------------------------------------------------------------- golden values


@pytest.mark.parametrize("seed", GOLDEN)
def test_the_published_data_are_drawn_to_the_bit(published, seed):
    data = published[seed]
    histogram, mask_pixels, mean, sd, images, masks = GOLDEN[seed]
    assert data.images.shape == data.masks.shape == (1000, 80, 80)
    assert data.images.dtype == data.masks.dtype == np.uint8
    assert np.bincount(data.counts).tolist() == histogram
    assert data.masks.sum() == mask_pixels
    assert data.images.mean() / 255 == pytest.approx(mean, abs=5e-7)
    assert data.images.std() / 255 == pytest.approx(sd, abs=5e-7)
    assert toyshapes.checksums(data) == {"positives": 1000 - histogram[0], "images": images, "masks": masks}


def test_the_shared_test_set_is_the_published_one(published):
    data = toyshapes.test_set()
    assert data.images.tobytes() == published[508052].images.tobytes()
    first = "void circle circle circle void square circle void circle square void void triangle square void triangle"
    assert [data.settings.shapes[index] for index in data.shapes[0]] == first.split()
    assert data.labels.mean() == 0.647  # the majority baseline
    assert (data.images[data.masks > 0] == 0).mean() == pytest.approx(0.062, abs=5e-4)
    assert data.masks.mean() == pytest.approx(0.0091, abs=5e-5)


def test_the_yaml_says_what_the_code_does():
    config = data_config("toyshapes")
    assert ToyShapesSettings(**config["settings"]) == ToyShapesSettings()
    assert config["settings"].keys() == ToyShapesSettings.model_fields.keys()
    assert config["splits"] == {"validation": 0.2, "test_seed": 314 * 1618, "test_images": 1000}
    golden = {s: {"positives": 1000 - h[0], "images": i, "masks": m} for s, (h, _, _, _, i, m) in GOLDEN.items()}
    assert config["golden"] == golden


# ------------------------------------------------------------------ the same, as slowly as the paper's code does


def oracle(seed, settings):
    """Spec sections 2.2 and 2.3, word by word: a legacy generator an image, a loop over its pixels."""
    weights = np.array([1.0 if name == settings.target else settings.relative_frequency for name in settings.shapes])
    table = np.random.RandomState(seed).choice(
        list(settings.shapes), size=(settings.n_images, settings.n_blocks), p=weights / weights.sum()
    )
    drawn = [oracle_image(np.random.RandomState(seed + j), row, settings) for j, row in enumerate(table)]
    if not settings.backgrounds and settings.hollow == 0:
        seen, kept = set(), []
        for j, (image, _) in enumerate(drawn):
            if image.tobytes() not in seen:
                kept.append(j)
            seen.add(image.tobytes())
        drawn, table = [drawn[j] for j in kept], table[kept]
    images, masks = (np.stack(column) for column in zip(*drawn, strict=True))
    return images, masks, (table == settings.target).sum(1)


def oracle_image(draws, row, settings):
    grid, size = math.isqrt(settings.n_blocks), settings.block_size
    background = draws.randint(50, 200) if settings.backgrounds else 0
    scales = draws.uniform(0.5, 0.8, settings.n_blocks)
    image = np.full((grid * size, grid * size), background, np.uint8)
    mask = np.zeros_like(image)
    for i, shape in enumerate(row):
        hollow = draws.rand() < settings.hollow
        candidates = [shade for shade in np.linspace(0, 256) if abs(shade - background) > 50]
        shade = int(draws.choice(candidates, size=1, replace=False)[0]) % 256
        speed = draws.uniform(1 - scales[i], 1 - scales[i] + 0.2) if shape == "triangle" else None
        top, left = grid * size - (i // grid + 1) * size, (i % grid) * size
        for r in range(size):
            for c in range(size):
                if oracle_covers(shape, r, c, size, int(size * scales[i]), hollow, speed):
                    image[top + r, left + c] = shade
                    mask[top + r, left + c] = shape == settings.target
    return image, mask


def oracle_covers(shape, r, c, size, s, hollow, speed):
    off, t = (size - s) // 2, max(1, s // 5)
    if shape == "square":
        inside = off <= r < off + s and off <= c < off + s
        hole = off + t <= r < off + s - t and off + t <= c < off + s - t
        return inside and not (hollow and hole)
    if shape == "circle":
        distance = math.sqrt((r - size // 2) ** 2 + (c - size // 2) ** 2)
        return s // 2 - t < distance < s // 2 if hollow else distance < s // 2
    if shape == "triangle":
        row, axis = r - off, off + s // 2
        half = int(row * speed)
        inside = 0 <= row < s and axis - half <= c <= axis + half
        hole = t <= row <= s - t - 1 and axis - half + t <= c <= axis + half - t
        return inside and not (hollow and hole)
    return False


@pytest.mark.parametrize("name", ODD_SETTINGS)
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 200])
def test_any_settings_draw_what_the_slow_generator_draws(name, seed):
    settings = ToyShapesSettings(**ODD_SETTINGS[name])
    data = generate(seed, **ODD_SETTINGS[name])
    images, masks, counts = oracle(seed, settings)
    assert np.array_equal(data.images, images)
    assert np.array_equal(data.masks, masks)
    assert np.array_equal(data.counts, counts)
    assert np.array_equal(data.labels, counts > 0)


def test_repeated_images_are_dropped_only_when_all_are_black_and_solid():
    plain = {"n_images": 120, "n_blocks": 1, "block_size": 8}
    dropped = generate(3, backgrounds=False, hollow=0.0, **plain)
    assert len(np.unique(dropped.images, axis=0)) == len(dropped) < 120
    assert len(dropped.masks) == len(dropped.counts) == len(dropped.shapes) == len(dropped)
    kept = generate(3, backgrounds=False, hollow=0.01, **plain)
    assert len(np.unique(kept.images, axis=0)) < len(kept) == 120


def test_images_that_need_more_random_words_than_usual_get_them(monkeypatch):
    expected, real, sizes = generate(5, n_images=4), toyshapes._Replay, []

    def short_at_first(seeds, n_words):
        sizes.append(n_words)
        return real(seeds, 60 if len(sizes) == 1 else n_words)

    monkeypatch.setattr(toyshapes, "_Replay", short_at_first)
    assert np.array_equal(generate(5, n_images=4).images, expected.images)
    assert len(sizes) == 2


# ------------------------------------------------------------------------------------------------ properties


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, again, other = generate(11, n_images=30), generate(11, n_images=30), generate(12, n_images=30)
    assert first.images.tobytes() == again.images.tobytes() and first.masks.tobytes() == again.masks.tobytes()
    assert first.images.tobytes() != other.images.tobytes()


def test_more_images_keep_the_first_ones():
    few, many = generate(11, n_images=30), generate(11, n_images=77)
    for name in ("images", "masks", "counts", "shapes"):
        assert np.array_equal(getattr(few, name), getattr(many, name)[:30]), name


def test_an_image_depends_on_its_own_seed_and_row_alone(published):
    """Image 3 of seed 0 is what a generator of seed 3 makes of the third row, whatever the rows before it."""
    data = published[0]
    row = [data.settings.shapes[index] for index in data.shapes[3]]
    image, mask = oracle_image(np.random.RandomState(3), row, data.settings)
    assert np.array_equal(data.images[3], image) and np.array_equal(data.masks[3], mask)


def test_shapes_come_as_often_as_the_settings_say(published):
    n_blocks = 3 * 16_000
    triangles = sum(data.counts.sum() for data in published.values()) / n_blocks
    assert abs(triangles - 1 / 16) < 3 * math.sqrt(1 / 16 * 15 / 16 / n_blocks)
    positives, expected = np.mean([data.labels for data in published.values()]), 1 - (15 / 16) ** 16
    assert abs(positives - expected) < 3 * math.sqrt(expected * (1 - expected) / 3000)
    data = generate(0, shapes=("triangle", "circle"), relative_frequency=1)
    assert abs(data.counts.mean() / 16 - 0.5) < 3 * math.sqrt(0.25 / 16_000)


@pytest.mark.parametrize("seed", GOLDEN)
def test_backgrounds_contrast_and_masks_are_as_described(published, seed):
    data = published[seed]
    scene = sample_scenes(seed, data.settings)
    assert 50 <= scene.background.min() <= 51 and 198 <= scene.background.max() <= 199
    assert np.array_equal(data.images[:, 0, 0], scene.background), "a block's corner is never drawn on"
    assert data.images.max() == 250

    contrast = np.abs(data.images.astype(int) - scene.background[:, None, None])
    assert contrast[contrast > 0].min() >= 50

    cells = data.masks.reshape(-1, 4, 20, 4, 20).any((2, 4))[:, ::-1].reshape(-1, 16)  # rows fill from the bottom
    assert np.array_equal(cells, data.shapes == data.settings.shapes.index("triangle"))
    assert np.array_equal(data.masks.any((1, 2)), data.labels > 0)
    assert (contrast[data.masks > 0] > 0).all() and set(np.unique(data.masks)) == {0, 1}


@pytest.mark.parametrize("target", ["square", "circle", "triangle"])
def test_a_hollow_target_has_a_hole_and_a_solid_one_has_none(target):
    one = {"n_blocks": 1, "shapes": (target, "void"), "target": target, "relative_frequency": 0.01, "n_images": 60}
    solid, hollow = generate(1, hollow=0.0, **one), generate(1, hollow=1.0, **one)
    drawn = solid.counts > 0
    for mask in solid.masks[drawn]:
        for line in [*mask, *mask.T]:
            filled = np.flatnonzero(line)
            assert len(filled) == 0 or np.ptp(filled) + 1 == len(filled), "no gap in a row or column"
    holes = (solid.masks > hollow.masks).any((1, 2))[drawn]
    assert holes.all() if target != "triangle" else holes.mean() > 0.9  # the slimmest triangles are all edge
    assert not (hollow.masks > solid.masks).any()
    background = hollow.images[:, :1, :1]
    assert ((hollow.images == background) == (hollow.masks == 0)).all(), "in the hole the background shows"
    if target != "triangle":
        assert not hollow.masks[drawn][:, 10, 10].any()


def test_scenes_can_be_changed_and_drawn_again():
    """What "draw your own" builds on: a scene with one block's shape replaced changes that block alone."""
    settings = ToyShapesSettings(n_images=1)
    scene = sample_scenes(0, settings)
    before, _ = render(scene, settings)
    scene.shape[0, 5] = (scene.shape[0, 5] + 1) % 3
    after, masks = render(scene, settings)
    rows, columns = np.nonzero(before[0] != after[0])
    assert {(r // 20, c // 20) for r, c in zip(rows, columns, strict=True)} == {(2, 1)}
    assert masks.any() == (scene.shape == settings.shapes.index("triangle")).any()


def test_a_replication_is_split_as_published(published):
    train, validation = split(1000, 0)
    assert len(train) == 800 and len(validation) == 200
    assert sorted([*train, *validation]) == list(range(1000)), "disjoint and exhaustive"
    assert (np.diff(train) > 0).all()
    labels = published[0].labels
    assert (labels[train].sum(), labels[validation].sum()) == (549, 124)
    np.random.seed(0)
    assert np.array_equal(validation, np.random.choice(1000, 200, replace=False))
    assert np.array_equal(validation, split(1000, 0)[1]) and not np.array_equal(validation, split(1000, 1)[1])
    assert len(split(99, 4, validation=0.5)[1]) == 49


def test_drawing_leaves_the_global_generator_alone():
    np.random.seed(8)
    before = np.random.get_state()[1].copy()
    generate(0, n_images=3)
    split(10, 0)
    assert np.array_equal(np.random.get_state()[1], before)


# ----------------------------------------------------------------------------------------------- bad settings


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"n_blocks": 15}, "square number"),
        ({"n_blocks": 0}, "greater than or equal to 1"),
        ({"n_images": 0}, "greater than or equal to 1"),
        ({"n_images": "many"}, "valid integer"),
        ({"block_size": 7}, "greater than or equal to 8"),
        ({"shapes": ("square", "void")}, "'triangle' is not among shapes"),
        ({"shapes": ("triangle", "void", "void")}, "names one twice"),
        ({"shapes": ("triangle",)}, "one more beside the target"),
        ({"shapes": ("triangle", "star")}, "'triangle', 'square', 'circle' or 'void'"),
        ({"target": "void"}, "'triangle', 'square' or 'circle'"),
        ({"relative_frequency": 0}, "greater than 0"),
        ({"hollow": 1.1}, "less than or equal to 1"),
        ({"backgrounds": "yes"}, "valid boolean"),
        ({"n_image": 5}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_reason(settings, reason):
    with pytest.raises(ValidationError, match=reason):
        generate(0, **settings)


@pytest.mark.parametrize("seed", [-1, 2**32 - 9])
def test_a_seed_that_numpy_could_not_take_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be in"):
        generate(seed, n_images=10)


def test_the_last_possible_seed_is_taken():
    assert len(generate(2**32 - 10, n_images=10)) == 10
