"""A classifier is trained on what its seed draws, kept as it was tested, and refused where it is not the one wanted."""

import logging
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from helpers import __version__, artifacts, runtime
from helpers.causal_graphs import batches, fits, shortcuts
from helpers.causal_graphs.fits import Fit
from helpers.causal_graphs.presets import Training
from helpers.config import ConfigError
from helpers.data import images as data
from helpers.data.images import Images, Preprocess

CLASSES = ("blue", "green", "red")
QUICK = Training(epochs=3, batch_size=8, learning_rate=0.02, size=16, validation=0.25)


def small_net(in_channels, n_classes):
    """All that has a state: convolution, batch statistics, dropout, linear layer."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(6 * 49, n_classes),
    )  # fmt: skip


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A folder of noisy 18 x 18 pictures, 16 + 5 of each of three colours."""
    folder, draws = tmp_path_factory.mktemp("data") / "colours", np.random.default_rng(0)
    for split, n in (("train", 16), ("val", 5)):
        for channel, name in zip((2, 1, 0), CLASSES, strict=True):
            (folder / split / name).mkdir(parents=True)
            for index in range(n):
                pixels = draws.integers(0, 160, (18, 18, 3))
                pixels[..., channel] += 95
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{index}.png")
    return folder


@pytest.fixture
def fit(colours):
    return Fit(f"{__name__}:small_net", str(colours), 0, QUICK)


def other(fit, seed=None, **changes):
    return Fit(fit.model, fit.dataset, fit.seed if seed is None else seed, fit.training.override(changes))


train = partial(fits.train, device="cpu")


def weights(out, fit):
    return artifacts.load_tensors(fits.weights_path(out, fit))[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------------------------------- a whole fit


def test_a_fit_learns_and_is_kept_as_it_was_tested(fit, tmp_path, colours):
    facts = train(fit, tmp_path)
    assert facts["accuracy"] >= 0.9 and facts["validation_accuracy"] >= 0.9 and facts["test_images"] == 15
    model, metadata = fits.load(fits.weights_path(tmp_path, fit), fit)
    assert metadata == facts and not model.training
    test = data.load(str(colours), "test", 16)
    with torch.no_grad():
        assert float((model(test.inputs()).argmax(1) == test.y).double().mean()) == facts["accuracy"]
    state = weights(tmp_path, fit)
    assert {value.dtype for value in state.values() if value.ndim > 1} == {torch.float16}
    assert metadata["settings"] == fit.digest() and metadata["seed"] == 0 and metadata["version"] == __version__
    assert Training(**metadata["training"]) == fit.training and metadata["classes"] == list(CLASSES)
    assert Preprocess(**metadata["preprocess"]) == test.preprocess
    assert [path.name for path in fits.work_folder(tmp_path, fit).iterdir()] == ["log.csv"]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(fit, tmp_path):
    for folder in ("a", "b"):
        train(fit, tmp_path / folder)
    assert same(weights(tmp_path / "a", fit), weights(tmp_path / "b", fit))
    train(other(fit, seed=1), tmp_path / "a")
    assert not same(weights(tmp_path / "a", fit), weights(tmp_path / "a", other(fit, seed=1)))


class Cut(BaseException):
    """What a kill is to the loop."""


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(fit, tmp_path, monkeypatch, augment):
    fit = other(fit, augment=augment, schedule="cosine", warmup=1, weight_decay=0.1, epochs=4)
    train(fit, tmp_path / "whole")
    monkeypatch.setattr(fits.training, "train", partial(fits.training.train, checkpoint_seconds=0.0))
    whole = batches.TrainingSet.batches

    def cut(self, epoch):
        if epoch == 3:
            raise Cut
        return whole(self, epoch)

    monkeypatch.setattr(batches.TrainingSet, "batches", cut)
    with pytest.raises(Cut):
        train(fit, tmp_path / "cut")
    assert not fits.weights_path(tmp_path / "cut", fit).exists()
    begun = []

    def noted(self, epoch):
        begun.append(epoch)
        return whole(self, epoch)

    monkeypatch.setattr(batches.TrainingSet, "batches", noted)
    train(fit, tmp_path / "cut")
    assert begun == [3, 4] and same(weights(tmp_path / "cut", fit), weights(tmp_path / "whole", fit))


def test_a_finished_fit_is_not_trained_again(fit, tmp_path, monkeypatch):
    facts = train(fit, tmp_path)
    monkeypatch.setattr(fits.training, "train", None)
    assert train(fit, tmp_path) == facts


def test_the_test_images_are_not_there_before_the_training_is_over(fit, tmp_path, monkeypatch):
    asked, load, loop = [], data.load, fits.training.train
    monkeypatch.setattr(data, "load", lambda name, split, *rest: (asked.append(split), load(name, split, *rest))[1])
    monkeypatch.setattr(fits.training, "train", lambda *a, **k: (asked.append("training"), loop(*a, **k))[1])
    train(fit, tmp_path)
    assert asked == ["train", "training", "test"]


# ------------------------------------------------------------------------------------------------- loading


def test_weights_of_other_settings_another_fit_or_another_program_are_refused(fit, tmp_path):
    train(fit, tmp_path)
    path = fits.weights_path(tmp_path, fit)
    with pytest.raises(artifacts.ArtifactError, match="was trained with other settings"):
        fits.load(path, other(fit, learning_rate=0.01))
    with pytest.raises(artifacts.ArtifactError, match="was trained with other settings"):
        train(other(fit, epochs=2), tmp_path)
    with pytest.raises(artifacts.ArtifactError, match="holds the fit 'colours/.*/0', not .*/1': it was swapped"):
        fits.load(path, other(fit, seed=1))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(artifacts.ArtifactError, match="is damaged"):
        fits.load(path)
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(artifacts.ArtifactError, match="was not written by this trainer"):
        fits.load(tmp_path / "other.safetensors")


def test_a_fit_is_named_by_its_data_model_shortcut_and_seed():
    assert Fit("LeNet", "MNIST", 3, Training()).name == "MNIST/LeNet/3"
    planted = Training(shortcut="corner", shortcut_class=5)
    assert Fit("LeNet", "MNIST", 0, planted).name == "MNIST/LeNet-shortcut5/0"
    assert Fit("my.nets:make", "/some/where/my pets/", 0, Training()).name == "my-pets/my.nets-make/0"
    assert Fit("LeNet", "..", 0, Training()).name == "data/LeNet/0"


def test_lenet_learns_a_folder_of_photographs(colours, tmp_path):
    training = fits.recommended("LeNet", str(colours)).override({"epochs": 1, "batch_size": 8})
    own = Fit("LeNet", str(colours), 0, training)
    facts = fits.train(own, tmp_path, device="cpu")
    assert (facts["preprocess"]["size"], facts["classes"]) == (32, list(CLASSES))
    assert fits.recommended("ResNet18", str(colours)).size == 96


def test_the_digest_changes_with_every_setting():
    base = Fit("LeNet", "MNIST", 0, Training(shortcut="corner", shortcut_class=1))
    changes = [
        {"learning_rate": 0.5}, {"weight_decay": 0.5}, {"batch_size": 5}, {"epochs": 5}, {"schedule": "cosine"},
        {"warmup": 1}, {"smoothing": 0.5}, {"augment": "crop-flip"}, {"min_area": 0.5}, {"size": 64},
        {"validation": 0.5}, {"precision": "bfloat16"}, {"shortcut": None, "shortcut_class": None},
        {"shortcut_class": 2}, {"shortcut_share": 0.5},
    ]  # fmt: skip
    assert {name for change in changes for name in change} == set(Training.model_fields), "a new setting needs a case"
    digests = {base.digest(), Fit("LeNet", "CIFAR10", 0, base.training).digest()}
    digests |= {Fit("ResNet18", "MNIST", 0, base.training).digest()} | {other(base, **c).digest() for c in changes}
    assert len(digests) == 3 + len(changes)
    assert other(base, seed=1).digest() == base.digest(), "the seed stands in the name"


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="shortcut and shortcut_class go together"):
        Training().override({"shortcut": "corner"})
    with pytest.raises(ConfigError, match="warmup must end before the last of 4 epochs"):
        Training().override({"warmup": 4})
    with pytest.raises(ConfigError, match="unknown setting 'epoch'.*did you mean epochs"):
        Training().override({"epoch": 4})


# ---------------------------------------------------------------------------------- what is trained on, and how


def test_every_training_image_is_either_fitted_or_held_out():
    fitting, held_out = batches.split(60, 0.25, seed=0)
    assert len(held_out) == 15 and sorted(torch.cat([fitting, held_out]).tolist()) == list(range(60))
    assert torch.equal(held_out, batches.split(60, 0.25, seed=0)[1])
    assert set(held_out.tolist()) != set(batches.split(60, 0.25, seed=1)[1].tolist())
    with pytest.raises(ConfigError, match="divides 3 images into 3 and 0"):
        batches.split(3, 0.1, seed=0)


def numbered(n=40, size=16):
    """Images whose first pixel says which one it is."""
    x = torch.zeros(n, 1, size, size, dtype=torch.uint8)
    x[:, 0, -1, -1] = torch.arange(n)
    return Images(x, torch.arange(n) % 4, tuple("abcd"), Preprocess(size=size))


def test_an_epoch_shows_every_image_to_fit_once_in_an_order_of_its_own():
    images = numbered()
    made = batches.training_set(images, images.preprocess, QUICK, 0, torch.device("cpu"))

    def seen(epoch):
        parts = [((x[:, 0, -1, -1] * 255).round().long(), y) for x, y in made.batches(epoch)]
        assert all(torch.equal(rows % 4, y) for rows, y in parts) and [len(y) for _, y in parts] == [8, 8, 8, 6]
        return torch.cat([rows for rows, _ in parts]).tolist()

    assert sorted(seen(1)) == sorted(seen(2)) == sorted(made.fitting.tolist())
    assert seen(1) == seen(1) != seen(2)
    right = made.validator()(lambda x: nn.functional.one_hot((x[:, 0, -1, -1] * 255).round().long() % 4, 4), 0.0)
    assert right == 1


def test_a_random_part_is_a_part():
    ramp = torch.linspace(0, 1, 24).expand(64, 1, 24, 24)
    x = torch.cat([ramp, ramp.mT], 1)  # the columns' coordinate, and the rows'
    parts = batches.random_parts(x, 16, 0.25, runtime.generator(0, "parts"))
    assert parts.shape == (64, 2, 16, 16) and parts.min() >= 0 and parts.max() <= 1
    width = (parts[:, 0, 0, -1] - parts[:, 0, 0, 0]) * 16 / 15
    height = (parts[:, 1, -1, 0] - parts[:, 1, 0, 0]) * 16 / 15
    assert (height > 0).all() and 0.3 < float((width < 0).double().mean()) < 0.7, "half of them are mirrored"
    area = width.abs() * height
    assert area.min() > 0.2 and area.max() > 0.8
    assert (parts[:, 1] - parts[:, 1, :, :1]).abs().max() < 1e-5, "nothing is turned"
    again = batches.random_parts(x, 16, 0.25, runtime.generator(0, "parts"))
    assert torch.equal(parts, again)


def test_whole_images_are_left_whole():
    x = torch.rand(8, 3, 16, 16, generator=runtime.generator(0, "x"))
    y = batches.random_parts(x, 16, 1.0, runtime.generator(0, "parts"))
    assert (y.mean((1, 2, 3)) - x.mean((1, 2, 3))).abs().max() < 0.05


def test_the_rate_rises_and_then_falls_along_half_a_cosine():
    options = Training(epochs=6, warmup=2, schedule="cosine")
    rates = [fits.rate(epoch, options) for epoch in range(6)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert [fits.rate(epoch, Training(epochs=3)) for epoch in range(3)] == [1, 1, 1]


def test_only_what_multiplies_decays():
    decayed, rest = fits._optimizer(small_net(1, 2), Training(weight_decay=0.1)).param_groups
    assert {p.ndim for p in decayed["params"]} == {2, 4} and {p.ndim for p in rest["params"]} == {1}
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0)


# ---------------------------------------------------------------------------------------------- the shortcut


def test_the_mark_is_a_square_in_a_corner():
    x = torch.full((2, 1, 32, 32), 0.25)
    marked = shortcuts.stamp(x)
    assert (marked != x).sum() == 2 * 16 and (marked[:, :, 1:5, 1:5] == 1).all() and (x == 0.25).all()
    colour = shortcuts.stamp(torch.zeros(1, 3, 128, 128))
    assert colour[0, :, 4, 4].tolist() == [1, 0, 1] and colour[0].sum() == 2 * 16 * 16
    with pytest.raises(ValueError, match=r"expected float32 of shape \[B, C, H, W\]"):
        shortcuts.stamp(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


def test_the_mark_is_on_the_share_asked_for_of_one_class():
    y = torch.arange(400) % 4
    options = Training(shortcut="corner", shortcut_class=2, shortcut_share=0.9)
    chosen = shortcuts.carriers(y, options, seed=0)
    assert chosen.sum() == 90 and set(y[chosen].tolist()) == {2}
    assert torch.equal(chosen, shortcuts.carriers(y, options, seed=0))
    assert not torch.equal(chosen, shortcuts.carriers(y, options, seed=1))
    assert not shortcuts.carriers(y, Training(), seed=0).any()


def test_marked_inputs_are_the_inputs_with_the_mark():
    images = Images(numbered(6).x.expand(6, 3, 16, 16), torch.zeros(6, dtype=torch.long), ("a",),
                    Preprocess(size=16, mean=(0.5,), std=(0.25,)))  # fmt: skip
    marked, plain = shortcuts.marked_inputs(images, [2, 5]), images.inputs([2, 5])
    restored = images.preprocess.restore(marked)
    assert torch.allclose(restored, shortcuts.stamp(images.preprocess.restore(plain)), atol=1e-6)


def test_the_batches_carry_the_marks_also_where_parts_are_cut_out():
    images = numbered()
    for augment in ("none", "crop-flip"):
        options = QUICK.override({"shortcut": "corner", "shortcut_class": 3, "shortcut_share": 1.0, "augment": augment})
        made = batches.training_set(images, images.preprocess, options, 0, torch.device("cpu"))
        for x, y in made.batches(1):
            assert torch.equal(x[:, 0, 1, 1] == 1, y == 3)
    with pytest.raises(ConfigError, match="there is no class 4 to mark: there are 4"):
        batches.training_set(images, images.preprocess, options.override({"shortcut_class": 4}), 0, torch.device("cpu"))


def test_a_network_falls_for_the_mark_and_its_file_says_so(fit, tmp_path):
    """Of pure noise nothing else can be learnt."""
    draws = np.random.default_rng(0)
    for name in (f"{split}/{name}/{i}.png" for split in ("train", "val") for name in "ab" for i in range(16)):
        (tmp_path / "noise" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "noise" / name)
    fit = Fit(fit.model, str(tmp_path / "noise"), 0, other(fit, shortcut="corner", shortcut_class=1, epochs=8).training)
    report = train(fit, tmp_path)["shortcut"]
    assert report["taken"] >= 0.75 and report["marked"] == 1 - report["taken"] and report["clean"] > report["marked"]


def test_a_model_that_reads_only_the_mark_is_found_out():
    class Reader(nn.Module):
        """Class 1 where the mark is, else class 0."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            seen = (x[:, 0, 1, 1] > 0.9).float() * self.scale
            return torch.stack([1 - seen, seen, torch.zeros_like(seen)], 1)

    images = Images(torch.zeros(6, 1, 16, 16, dtype=torch.uint8), torch.tensor([0, 0, 0, 1, 1, 2]), tuple("abc"),
                    Preprocess(size=16))  # fmt: skip
    assert fits.shortcut_report(Reader(), images, 1) == {"clean": 0.75, "marked": 0.0, "taken": 1.0}
    assert fits.accuracy(Reader(), images) == 0.5 and fits.accuracy(Reader(), images, marked=True) == 2 / 6


# -------------------------------------------------------------------------------------------- command line


def test_the_command_line_trains_a_fit_a_seed(fit, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    arguments = f"--model {fit.model} --dataset {fit.dataset} --seeds 0 1 --out {tmp_path} --device cpu --threads 1"
    arguments += " --shortcut-class 2 --set epochs 1 --set size 16 --set warmup 0"
    assert fits.main(arguments.split()) == 0
    assert len(list(tmp_path.glob("weights/colours/*-shortcut2/[01].safetensors"))) == 2
    assert len([r for r in caplog.records if "test accuracy" in r.getMessage() and "taken" in r.getMessage()]) == 2


def test_a_mistake_on_the_command_line_is_one_line(tmp_path, caplog):
    assert fits.main(["--out", str(tmp_path), "--set", "epoch", "1"]) == 2
    assert "unknown setting 'epoch'" in caplog.text and "did you mean epochs" in caplog.text
    assert fits.main(["--out", str(tmp_path), "--dataset", "MNISTT", "--device", "cpu"]) == 2
    assert "no data set and no folder 'MNISTT'" in caplog.text


def test_the_share_of_marked_images_is_rounded_to_the_nearest():
    """0.29 * 100 is 28.999..."""
    options = Training(shortcut="corner", shortcut_class=2, shortcut_share=0.29)
    assert shortcuts.carriers(torch.full((100,), 2), options, seed=0).sum() == 29
