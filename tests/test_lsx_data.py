"""Decoys and colours tell the label in training and nothing in a test; Fashion-MNIST and ChestMNIST are read as
released, from small files that are written here."""

import copy
import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency

from helpers import downloads, runtime
from helpers.config import ConfigError, data_config
from helpers.data import chestmnist, colours, fashion_mnist
from helpers.data.colours import colour, grey_factors, palette
from helpers.data.decoys import paint
from helpers.data.images import Images, Preprocess, default_preprocess, load
from helpers.downloads import DownloadError

DIGITS = tuple("0123456789")


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def images(n=200, byte=True, classes=DIGITS, size=28):
    draws = runtime.generator(0, "images")
    x = torch.randint(0, 256, (n, 1, size, size), generator=draws, dtype=torch.uint8)
    y = torch.randint(len(classes), (n,), generator=draws)
    return Images(x if byte else x.float() / 255, y, classes, Preprocess(size=size, mean=(0.1307,), std=(0.3081,)))


def dependence(one, other):
    """p of the hypothesis that two labels, 0 ... 9 each, have nothing to do with each other."""
    counts = torch.bincount(one * 10 + other, minlength=100).view(10, 10)
    return chi2_contingency(counts[:, counts.any(0)]).pvalue


# ---------------------------------------------------------------------------------------------- decoys (property 15)


@pytest.mark.parametrize("test", [False, True])
def test_a_decoy_overwrites_16_pixels_of_one_corner_and_nothing_else(test):
    clean = images()
    decoyed = paint(clean, 0, test=test)
    assert torch.equal(decoyed.images.x[:, 0][~decoyed.mask], clean.x[:, 0][~decoyed.mask])
    for mask in decoyed.mask:
        (row, column), (last_row, last_column) = mask.nonzero().aminmax(dim=0)
        assert mask.sum() == 16 and {int(row), int(column)} <= {0, 24}
        assert (last_row, last_column) == (row + 3, column + 3)
    assert torch.equal(decoyed.images.y, clean.y) and decoyed.images.preprocess == clean.preprocess


def test_the_grey_of_a_decoy_is_255_less_25_for_each_label():
    clean = images()
    decoyed = paint(clean, 0, test=False)
    squares = decoyed.images.x[:, 0][decoyed.mask].view(len(clean), 16)
    assert torch.equal(squares, (255 - 25 * clean.y).to(torch.uint8)[:, None].expand(-1, 16))
    normalised = decoyed.images.inputs()[:, 0][decoyed.mask].view(len(clean), 16)[:, 0]
    expected = torch.tensor([2.8215, 2.5033, 2.1850, 1.8668, 1.5486, 1.2304, 0.9122, 0.5940, 0.2758, -0.0424])
    assert torch.allclose(normalised, expected[clean.y], atol=1e-4)


def test_decoys_of_a_test_have_nothing_to_do_with_labels_and_fall_on_all_corners():
    clean = Images(torch.zeros(20_000, 1, 8, 8, dtype=torch.uint8), torch.arange(20_000) % 10, DIGITS)
    decoyed = paint(clean, 0, test=True)
    squares = decoyed.images.x[:, 0][decoyed.mask].view(len(clean), 16)
    assert torch.equal((255 - squares[:, 0].long()) // 25, decoyed.values) and (squares == squares[:, :1]).all()
    assert dependence(clean.y, decoyed.values) > 0.01
    for split in (decoyed, paint(clean, 0, test=False)):
        corners = torch.stack([split.mask[:, row, column] for row in (0, 7) for column in (0, 7)], 1)
        assert ((corners.float().mean(0) - 0.25).abs() < 0.01).all() and (corners.sum(1) == 1).all()
        assert dependence(split.images.y, corners.long().argmax(1)) > 0.01


def test_bytes_and_numbers_are_painted_alike():
    one, other = (paint(images(byte=byte), 3, test=True) for byte in (True, False))
    assert torch.equal(one.images.inputs(), other.images.inputs()) and torch.equal(one.strokes, other.strokes)


def test_strokes_are_what_is_bright_beside_the_decoy():
    clean = images()
    clean.x[:] = torch.randint(0, 4, clean.x.shape, generator=runtime.generator(0, "dark"))
    for test in (False, True):
        decoyed = paint(clean, 0, test=test)
        assert torch.equal(decoyed.strokes, (clean.x[:, 0] > 1) & ~decoyed.mask)


def test_a_seed_draws_the_same_decoys_and_leaves_the_images_as_they_are():
    clean = images()
    before = clean.x.clone()
    one, same, other = (paint(clean, seed, test=True) for seed in (0, 0, 1))
    assert torch.equal(one.images.x, same.images.x) and not torch.equal(one.mask, other.mask)
    assert not torch.equal(one.values, other.values) and torch.equal(clean.x, before)
    assert not torch.equal(one.mask, paint(clean, 0, test=False).mask)


def test_an_eleventh_class_has_no_decoy():
    with pytest.raises(ValueError, match="10 classes apart, not 11"):
        paint(images(classes=tuple("0123456789A")), 0, test=False)


# --------------------------------------------------------------------------------------------- colours (property 16)


def test_the_palette_and_its_greys_are_the_originals():
    assert (palette()[2] * 255).tolist() == [201, 226, 0] and (palette()[9] * 255).tolist() == [128, 0, 127]
    expected = [0.2989, 0.5875, 0.7558, 0.5701, 0.4755, 0.4875, 0.3361, 0.1089, 0.1373, 0.2068]
    assert torch.allclose(grey_factors(), torch.tensor(expected), atol=5e-5)


def test_training_colours_are_the_label():
    data = images()
    coloured = colour(data, 0, test=False, channels=3)
    assert torch.equal(coloured.colours, data.y)
    expected = data.x.float() / 255 * palette()[data.y][:, :, None, None]
    assert torch.equal(coloured.images.inputs(), expected) and 0 <= expected.min() <= expected.max() <= 1


@pytest.mark.parametrize("test", [False, True])
def test_a_grey_image_is_the_luminance_of_the_coloured_one(test):
    grey, rgb = (colour(images(), 0, test=test, channels=channels) for channels in (1, 3))
    assert grey.images.inputs().shape == (200, 1, 28, 28) and torch.equal(grey.colours, rgb.colours)
    luminance = torch.einsum("bchw,c->bhw", rgb.images.inputs(), torch.tensor(colours.LUMINANCE))
    assert torch.allclose(grey.images.inputs()[:, 0], luminance, atol=1e-6)


def test_test_colours_are_drawn_or_reversed():
    data = images(20_000, size=4)
    drawn = colour(data, 0, test=True)
    assert dependence(data.y, drawn.colours) > 0.01 and drawn.colours.unique().numel() == 10
    assert torch.equal(colour(data, 0, test=True, test_colours="reversed").colours, 9 - data.y)
    assert torch.equal(colour(data, 0, test=True).images.x, drawn.images.x)
    assert not torch.equal(colour(data, 1, test=True).colours, drawn.colours)


def test_what_cannot_be_coloured_is_refused():
    with pytest.raises(ValueError, match="expected grey images of at most 10 classes, not 1 channels and 11"):
        colour(images(classes=tuple("0123456789A")), 0, test=False)
    with pytest.raises(ValueError, match="not 3 channels"):
        colour(colour(images(), 0, test=False, channels=3).images, 0, test=False)


# ------------------------------------------------------------------------------------------------------- on disk


def md5(content):
    return hashlib.md5(content).hexdigest()


def idx(array):
    """The bytes of a packed idx file of uint8."""
    return gzip.compress(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.fixture
def small_fashion(monkeypatch, elsewhere):
    """8 images to train on and 4 to test on, in the release's files."""
    config, arrays = copy.deepcopy(data_config("fashion_mnist")), {}
    draws = np.random.default_rng(0)
    for split, n in (("train", 8), ("test", 4)):
        config["splits"][split]["images"] = n
        pixels, labels = config["splits"][split]["files"]
        arrays[split] = draws.integers(0, 256, (n, 28, 28), dtype=np.uint8), draws.integers(0, 10, n, dtype=np.uint8)
        for name, array in zip((pixels, labels), arrays[split], strict=True):
            facts = config["files"][name]
            elsewhere[facts["url"]] = idx(array)
            facts |= {"md5": md5(idx(array)), "bytes": len(idx(array))}
    monkeypatch.setattr(fashion_mnist, "data_config", lambda name: config)
    return arrays


def test_fashion_mnist_is_downloaded_verified_and_read(small_fashion, elsewhere, tmp_path):
    for split, (pixels, labels) in small_fashion.items():
        data = load("FashionMNIST", split)
        assert torch.equal(data.x[:, 0], torch.from_numpy(pixels)) and data.y.tolist() == labels.tolist()
        assert data.y.dtype == torch.int64 and data.classes[9] == "Ankle boot"
        assert torch.allclose(data.inputs(), data.x / 127.5 - 1, atol=1e-6)
    elsewhere.clear()
    load("FashionMNIST", data_dir=tmp_path)  # from what is there
    path = tmp_path / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(DownloadError, match=r"t10k-labels-idx1-ubyte.gz is not the file it should be"):
        load("FashionMNIST")


def test_a_file_that_is_no_idx_file_is_refused(tmp_path):
    good = gzip.decompress(idx(np.zeros((2, 28, 28), np.uint8)))
    for content in (b"", b"\0\0\x08", good[:-1], b"\0\0\x0d" + good[3:]):
        (tmp_path / "file.gz").write_bytes(gzip.compress(content))
        with pytest.raises(DownloadError, match="file.gz cannot be read"):
            fashion_mnist.read(tmp_path / "file.gz")
    (tmp_path / "file.gz").write_bytes(idx(np.zeros(9, np.uint8))[:-9])
    with pytest.raises(DownloadError, match="file.gz cannot be read"):
        fashion_mnist.read(tmp_path / "file.gz")


@pytest.fixture
def small_chest(monkeypatch, elsewhere, tmp_path):
    """A release of 6, 3 and 4 images, and the function that puts another in its place."""
    config = copy.deepcopy(data_config("chestmnist"))
    draws, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 6), ("val", 3), ("test", 4)):
        config["splits"][split]["images"] = n
        arrays[f"{split}_images"] = draws.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (draws.random((n, 14)) < 0.05).astype(np.uint8)
    arrays["train_labels"][:3] = 0
    arrays["train_labels"][3:, 11] = 1

    def release(arrays):
        np.savez(tmp_path / "release.npz", **arrays)
        content = (tmp_path / "release.npz").read_bytes()
        elsewhere[config["file"]["url"]] = content
        config["file"]["md5"] = md5(content)
        (tmp_path / "ChestMNIST" / "chestmnist.npz").unlink(missing_ok=True)

    release(arrays)
    monkeypatch.setattr(chestmnist, "data_config", lambda name: config)
    return arrays, release


def test_chestmnist_has_a_finding_or_none(small_chest):
    arrays, _ = small_chest
    for split in ("train", "val", "test"):
        data = load("ChestMNIST", split)
        assert torch.equal(data.x[:, 0], torch.from_numpy(arrays[f"{split}_images"]))
        assert data.y.tolist() == [int(row.max()) for row in arrays[f"{split}_labels"]]
        assert torch.allclose(data.inputs(), data.x / 127.5 - 1, atol=1e-6)
    assert load("ChestMNIST", "train").y.tolist() == [0, 0, 0, 1, 1, 1] and data.classes == ("no finding", "finding")
    with pytest.raises(ConfigError, match="unknown split 'tset': did you mean test"):
        load("ChestMNIST", "tset")


def test_what_does_not_hold_the_release_of_chestmnist_is_refused(small_chest, elsewhere):
    arrays, release = small_chest
    release({**arrays, "test_images": arrays["test_images"][:3]})
    with pytest.raises(DownloadError, match=r"holds uint8 \(3, 28, 28\) of 'test', not uint8 \(4, 28, 28\)"):
        load("ChestMNIST")
    release({"train_images": arrays["train_images"]})
    with pytest.raises(DownloadError, match="cannot be read .*test_images"):
        load("ChestMNIST")
    release({**arrays, "test_images": np.array([{"a": "pickle"}], object)})
    with pytest.raises(DownloadError, match="cannot be read .*allow_pickle=False"):
        load("ChestMNIST")
    release(arrays)
    elsewhere.clear()
    with pytest.raises(DownloadError, match=r"no route(.|\n)*by hand: (.|\n)*without a download"):
        load("ChestMNIST")


def test_the_new_data_sets_are_known_by_name():
    for name, config in (("FashionMNIST", "fashion_mnist"), ("ChestMNIST", "chestmnist")):
        facts = data_config(config)
        assert default_preprocess(name) == Preprocess(size=28, mean=(0.5,), std=(0.5,))
        for source in facts.get("files", {"": facts.get("file")}).values():
            assert downloads.Source(**source).md5
        with pytest.raises(ConfigError, match="unknown split"):
            load(name, "tset")
