"""Learner, critic and test see what the spec says, and nothing of what it keeps from them (spec cnn_lsx, section 5)."""

import logging
from functools import lru_cache
from typing import get_args

import pytest
import torch

from helpers import downloads
from helpers.config import ConfigError
from helpers.data import decoys
from helpers.data.images import Images, default_preprocess, load
from helpers.self_explaining import sets as module
from helpers.self_explaining.presets import Dataset, SelfExplainingStudy
from helpers.self_explaining.sets import class_weights, critic_shape, parts, sets

there = (downloads.data_root() / "MNIST" / "raw" / "train-images-idx3-ubyte").exists()
needs_mnist = pytest.mark.skipif(not there, reason="MNIST is not under SIGHTLINE_DATA (in CI it is)")
OURS = [name for name in get_args(Dataset) if "digits" in name]


@pytest.fixture(autouse=True)
def one_thread(threads, monkeypatch):
    threads(1)
    monkeypatch.setattr(module, "load", load_once)


load_once = lru_cache(load)


@lru_cache
def drawn(dataset="digits", seed=0, **settings):
    """Small sets: a fifth of the digits to train on, a critic set of 4 x 16."""
    settings = {"few_shot_train_percent": 0.2, "n_critic_batches": 4, "batch_size_critic": 16} | settings
    return sets(SelfExplainingStudy(dataset=dataset, **settings), seed)


def restored(data, x):
    """Inputs as whole numbers of 255, to tell images by."""
    return (data.preprocess.restore(x) * 255).round().to(torch.uint8)


def keys(x):
    """One value an image, the same for the same pixels."""
    return [image.numpy().tobytes() for image in x.flatten(0, -4)]


# ------------------------------------------------------------------------------------------------- every data set


@pytest.mark.parametrize("dataset", OURS)
def test_sets_are_inputs_in_memory(dataset):
    data = drawn(dataset)
    assert data.x.dtype == data.critic_x.dtype == data.test_x.dtype == torch.float32
    assert data.x.shape[1:] == data.test_x.shape[1:] == (1, 28, 28) and data.critic_x.shape == (4, 16, 1, 28, 28)
    assert data.critic_y.shape == data.critic_rows.shape == (4, 16) and len(data.x) == len(data.y)
    assert data.y.dtype == data.critic_y.dtype == data.test_y.dtype == torch.int64 and data.n_classes == 10
    assert data.in_channels == 1 and not data.clamped and data.class_weights is None
    assert (data.test_decoy is not None) == dataset.startswith("decoy")
    assert len(data.test_x) == len(data.test_y) == (500 - 64 if dataset.startswith("colordigits-") else 500)


@pytest.mark.parametrize("dataset", ["decoydigits", "colordigits-unconf"])
def test_a_seed_gives_the_same_sets_and_touches_no_other_draws(dataset):
    before = torch.get_rng_state()
    one, same, other = (sets(SelfExplainingStudy(dataset=dataset), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("x", "critic_x", "critic_rows", "test_x"):
        assert torch.equal(getattr(one, name), getattr(same, name))
    assert not torch.equal(one.critic_rows, other.critic_rows)


def test_names_are_a_confounder_a_source_and_a_variant():
    assert parts("mnist") == ("", "mnist", "") and parts("colormnist") == ("color", "mnist", "")
    assert parts("decoydigits-unconf-baseline") == ("decoy", "digits", "unconf-baseline")
    assert all(parts(name)[1] in module.SOURCES for name in get_args(Dataset))


@pytest.mark.parametrize(("dataset", "name"), [("fashionmnist", "FashionMNIST"), ("chestmnist", "ChestMNIST")])
def test_further_data_sets_keep_their_own_classes_and_normalisation(monkeypatch, dataset, name):
    preprocess, asked = default_preprocess(name, 28), []

    def stored(*arguments):
        asked.append(arguments)
        return Images(torch.full((40, 1, 28, 28), 255, dtype=torch.uint8), torch.arange(40) % 2, ("a", "b"), preprocess)

    monkeypatch.setattr(module, "load", stored)
    data = sets(SelfExplainingStudy(dataset=dataset, n_critic_batches=2, batch_size_critic=8, data_dir="here"), 0)
    assert asked == [(name, "train", 28, "here"), (name, "test", 28, "here")]
    assert data.classes == ("a", "b") and data.n_classes == 2 and data.preprocess == preprocess
    assert data.x.unique().tolist() == [1.0] and data.critic_x.shape == (2, 8, 1, 28, 28)


def test_sets_move_as_a_whole():
    moved = drawn("decoydigits", class_weights="inverse").to("meta")
    assert {t.device.type for t in vars(moved).values() if isinstance(t, torch.Tensor)} == {"meta"}
    assert moved.classes == tuple("0123456789")


# ----------------------------------------------------------------- few-shot subset and critic set (properties 14, 22)


@pytest.mark.parametrize(("percent", "n"), [(1.0, 1297), (0.2, 259), (0.29, 376), (23 / 1297, 23), (0.001, 1)])
def test_a_few_shots_are_the_first_images_of_the_file(percent, n):
    file = load("Digits", "train", 20)
    for seed in (0, 1):
        data = drawn(seed=seed, few_shot_train_percent=percent)
        assert len(data.y) == n and torch.equal(data.y, file.y[:n])
        pixels = data.preprocess.restore(data.x)
        assert torch.allclose(pixels[..., 4:24, 4:24], file.inputs()[:n], atol=1e-6)
        pixels[..., 4:24, 4:24] = 0
        assert pixels.max() < 1e-6, "a margin as MNIST has it"
        assert torch.equal(drawn(few_shot_train_percent=percent).test_y, load("Digits", "test").y)


def test_the_critic_reads_images_of_the_subset_each_once():
    data = drawn()
    rows = data.critic_rows.flatten()
    assert rows.unique().numel() == 64 and rows.max() < len(data.x) and not torch.equal(rows, rows.sort().values)
    assert torch.equal(data.critic_x.flatten(0, 1), data.x[rows]) and torch.equal(data.critic_y.flatten(), data.y[rows])


@pytest.mark.parametrize("dataset", ["digits", "decoydigits", "decoydigits-unconf", "colordigits"])
def test_a_separate_critic_set_is_kept_from_the_learner(dataset):
    together, apart = drawn(dataset), drawn(dataset, sep_critic_set=True)
    assert torch.equal(apart.critic_x, together.critic_x), "the same images are drawn"
    left = torch.ones(len(together.x), dtype=torch.bool)
    left[apart.critic_rows] = False
    assert torch.equal(apart.x, together.x[left]) and torch.equal(apart.y, together.y[left])


def test_a_critic_set_that_is_too_large_is_clamped_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        data = sets(SelfExplainingStudy(dataset="digits", few_shot_train_percent=0.2), 0)
    assert data.clamped and data.critic_x.shape[:2] == (2, 128)
    assert [r.message for r in caplog.records] == [
        "the critic set of 68 x 128 images is clamped to 2 x 128: there are 259"
    ]


@pytest.mark.parametrize(
    ("asked", "available", "apart", "taken"),
    [
        ((68, 128), 8704, False, (68, 128)),
        ((68, 128), 8703, False, (67, 128)),
        ((68, 128), 1200, False, (9, 128)),
        ((68, 128), 128, False, (1, 128)),
        ((68, 128), 127, False, (1, 127)),
        ((18, 32), 577, True, (18, 32)),
        ((18, 32), 576, True, (9, 32)),  # half is left
        ((68, 128), 1200, True, (4, 128)),
        ((68, 128), 3, True, (1, 1)),
        ((1, 1), 1, False, (1, 1)),
    ],
)
def test_a_clamped_critic_set_is_the_most_whole_batches_there_are(asked, available, apart, taken):
    assert critic_shape(*asked, available, apart) == taken


def test_what_leaves_no_image_is_refused():
    with pytest.raises(ConfigError, match="few_shot_train_percent=0.0001 of 1297 images leaves none: it is a fraction"):
        drawn(few_shot_train_percent=0.0001)
    with pytest.raises(ConfigError, match="1 image.* cannot be shared"):
        drawn(few_shot_train_percent=0.001, sep_critic_set=True)


# --------------------------------------------------------------------------------------------- confounded variants


def test_the_deconfounded_critic_reads_clean_versions_of_the_learners_images():
    clean, decoyed, unconf = (drawn(name) for name in ("digits", "decoydigits", "decoydigits-unconf"))
    assert torch.equal(unconf.x, decoyed.x) and not torch.equal(decoyed.x, clean.x)
    assert torch.equal(unconf.critic_x, clean.critic_x) and torch.equal(unconf.test_x, decoyed.test_x)
    assert torch.equal(decoyed.critic_x.flatten(0, 1), decoyed.x[decoyed.critic_rows.flatten()])


@pytest.mark.parametrize("confounder", ["decoy", "color"])
def test_the_deconfounded_baseline_reads_the_same_clean_images_itself(confounder):
    unconf, baseline = (drawn(f"{confounder}digits-unconf{end}") for end in ("", "-baseline"))
    assert torch.equal(baseline.x, torch.cat([unconf.x, unconf.critic_x.flatten(0, 1)]))
    assert torch.equal(baseline.y, torch.cat([unconf.y, unconf.critic_y.flatten()]))
    assert torch.equal(baseline.test_x, unconf.test_x) and torch.equal(baseline.critic_x, unconf.critic_x)
    separate = drawn(f"{confounder}digits-unconf-baseline", sep_critic_set=True)
    assert torch.equal(separate.x, baseline.x), "there is nothing to keep apart"


def test_clean_coloured_images_are_taken_from_the_test_and_tested_on_no_more():
    confounded, unconf = drawn("colordigits"), drawn("colordigits-unconf")
    rows = unconf.critic_rows.flatten()
    assert torch.equal(unconf.x, confounded.x) and torch.equal(unconf.critic_x.flatten(0, 1), confounded.test_x[rows])
    left = torch.ones(500, dtype=torch.bool)
    left[rows] = False
    assert torch.equal(unconf.test_x, confounded.test_x[left]) and torch.equal(unconf.test_y, confounded.test_y[left])


def test_clean_colours_are_random_though_the_tests_are_reversed():
    """A reversed palette still tells the label."""
    usual, reverse = (drawn("colordigits-unconf", color_test=kind) for kind in ("random", "reversed"))
    assert torch.equal(usual.critic_x, reverse.critic_x) and not torch.equal(usual.test_x, reverse.test_x)


def test_a_colour_tells_the_label_in_training_alone():
    def colours(x):
        """[N, 3] of the brightest pixel, as shares of the brightest channel."""
        brightest = x.flatten(2).amax(2)
        return (brightest / brightest.amax(1, keepdim=True)).mul(20).round().long().tolist()

    data = drawn("colordigits", color_channels=3, model="MedNet1")
    assert data.in_channels == 3 and data.x.min() >= 0 and data.x.max() <= 1
    for label in range(10):
        assert len({tuple(c) for c in colours(data.x[data.y == label])}) == 1
        assert len({tuple(c) for c in colours(data.test_x[data.test_y == label])}) > 5


@pytest.mark.parametrize("dataset", ["decoydigits", "decoydigits-unconf"])
def test_the_mask_is_where_the_decoys_of_the_test_are(dataset):
    data, clean = drawn(dataset), drawn("digits")
    assert data.test_decoy.shape == (500, 28, 28) and (data.test_decoy.sum((1, 2)) == 16).all()
    assert torch.equal(data.test_x[:, 0][~data.test_decoy], clean.test_x[:, 0][~data.test_decoy])
    squares = restored(data, data.test_x)[:, 0][data.test_decoy].view(500, 16)
    assert (squares == squares[:, :1]).all() and set(squares[:, 0].tolist()) == set(range(255, 29, -25))


# ------------------------------------------------------------------------------------------------- class weights


def test_class_weights_are_frequencies_or_their_inverse():
    y = torch.tensor([0] * 6 + [1] * 3 + [2])
    assert class_weights(y, 3, "none") is None
    assert class_weights(y, 3, "frequency").tolist() == pytest.approx([0.6, 0.3, 0.1])
    inverse = class_weights(y, 3, "inverse")
    assert (inverse[y].view(-1) * torch.ones(10)).sum() == pytest.approx(10), "one on average over the images"
    assert [float((inverse[y] * (y == label)).sum()) for label in range(3)] == pytest.approx([10 / 3] * 3)
    assert class_weights(y, 4, "inverse")[3] == 0


def test_class_weights_are_those_of_the_whole_training_set():
    y = load("Digits", "train").y
    for kind in ("frequency", "inverse"):
        weights = drawn(class_weights=kind, few_shot_train_percent=0.05, sep_critic_set=True, n_critic_batches=1)
        assert torch.equal(weights.class_weights, class_weights(y, 10, kind))


# ------------------------------------------------------------------------------------------------------- MNIST


@needs_mnist
def test_the_quick_start_reads_the_published_few_shots_and_a_clamped_critic_set():
    study = SelfExplainingStudy(few_shot_train_percent=0.02)
    data = sets(study, study.first_seed)
    assert data.clamped and data.critic_x.shape == (9, 128, 1, 28, 28) and len(data.test_x) == 10_000
    assert data.y.bincount().tolist() == [117, 143, 119, 111, 129, 104, 110, 142, 104, 121]
    assert float(data.x.min()) == pytest.approx(-0.42421, abs=1e-5)
    assert float(data.x.max()) == pytest.approx(2.82149, abs=1e-5)
    more = load("MNIST", "train").y[: int(0.05 * 60_000)]
    assert more.bincount().tolist() == [285, 339, 299, 295, 325, 274, 306, 329, 261, 287]


@needs_mnist
def test_decoys_of_mnist_are_as_described():
    clean = load("MNIST", "train")
    decoyed = decoys.paint(clean, 0, test=False)
    changed = decoyed.images.x[:, 0] != clean.x[:, 0]
    assert not (changed & ~decoyed.mask).any() and (decoyed.mask.sum((1, 2)) == 16).all()
    squares = decoyed.images.x[:, 0][decoyed.mask].view(60_000, 16)
    assert torch.equal(squares, (255 - 25 * clean.y).to(torch.uint8)[:, None].expand(-1, 16))
    corners = decoyed.mask[:, ::27, ::27].float().mean(0)
    assert ((corners - 0.25).abs() < 0.01).all()
    assert decoyed.strokes.sum((1, 2)).float().mean() == pytest.approx(149, abs=5)
