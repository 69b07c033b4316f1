"""Images of any source are one type: pixels as stored, decoded only when asked for, made inputs by the one rule."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from helpers import downloads, runtime
from helpers.config import ConfigError, data_config
from helpers.data import image_folder, images
from helpers.data.images import Decoded, Images, Preprocess, default_preprocess, load, resized


def noise(*shape, name="x"):
    return torch.randint(0, 256, shape, generator=runtime.generator(0, name), dtype=torch.uint8)


def labelled(n=6, channels=3, size=8):
    return Images(noise(n, channels, size, size), torch.arange(n) % 2, ("cat", "dog"), Preprocess(size=size))


# -------------------------------------------------------------------------------------------- preprocessing


def test_bytes_become_numbers_between_0_and_1():
    x = noise(2, 1, 32, 32)
    assert torch.equal(Preprocess()(x), x.float() / 255)
    assert torch.equal(Preprocess()(x.float() / 255), x.float() / 255)


def test_small_images_are_enlarged_bilinearly():
    x = noise(2, 1, 28, 28)
    expected = F.interpolate(x.float() / 255, (32, 32), mode="bilinear", align_corners=False)
    assert torch.equal(Preprocess(size=32)(x), expected)


def test_large_images_are_reduced_without_aliasing():
    """A pattern of single pixels becomes an even grey, not other stripes."""
    stripes = torch.zeros(1, 1, 64, 64)
    stripes[..., ::2] = 1
    grey = Preprocess(size=24)(stripes)
    assert (grey[..., 2:-2] - 0.5).abs().max() < 0.1


@pytest.mark.parametrize(("height", "width"), [(20, 31), (31, 20), (20, 20), (10, 47)])
def test_the_middle_is_cut_out_of_what_is_not_square(height, width):
    x = torch.zeros(1, 1, height, width)
    x[..., height // 2 - 2 : height - height // 2 + 2, width // 2 - 2 : width - width // 2 + 2] = 1
    y = Preprocess(size=10)(x)
    assert y.shape == (1, 1, 10, 10)
    rows, columns = torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")
    assert (y * rows).sum() / y.sum() == pytest.approx(4.5, abs=0.6)  # half a pixel, where sides are odd
    assert (y * columns).sum() / y.sum() == pytest.approx(4.5, abs=0.6)


def test_sides_keep_their_proportion():
    assert resized(160, 213, 128) == (128, 170)
    assert resized(500, 100, 10) == (50, 10)
    assert resized(32, 32, 32) == (32, 32)


def test_each_channel_is_normalised_and_can_be_restored():
    preprocess = Preprocess(size=8, mean=(0.2, 0.5, 0.8), std=(0.1, 0.2, 0.4))
    x = noise(2, 3, 8, 8)
    y = preprocess(x)
    for channel, (mean, std) in enumerate(zip(preprocess.mean, preprocess.std, strict=True)):
        assert torch.allclose(y[:, channel], (x[:, channel] / 255 - mean) / std, atol=1e-6)
    assert torch.allclose(preprocess.restore(y), x / 255, atol=1e-6)


def test_means_of_other_channels_are_refused():
    preprocess = Preprocess(size=8, mean=(0.2, 0.5, 0.8), std=(0.1, 0.2, 0.4))
    for call in (preprocess, preprocess.restore):
        with pytest.raises(ValueError, match="of 3 channels, the images have 1"):
            call(torch.zeros(2, 1, 8, 8))


def test_one_mean_does_for_all_channels():
    x = noise(2, 3, 8, 8)
    assert torch.allclose(Preprocess(size=8, mean=(0.5,), std=(0.5,))(x), x / 127.5 - 1, atol=1e-6)


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match=r"uint8 or float32 of shape \[B, C, H, W\], not torch.int64 \(1, 1, 4, 4\)"):
        Preprocess()(torch.zeros(1, 1, 4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"not torch.float32 \(4, 4\)"):
        Preprocess()(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="mean and std need as many values"):
        Preprocess(mean=(0.5, 0.5), std=(0.5,))


def test_the_preprocessing_of_a_data_set_is_known_without_its_data():
    assert default_preprocess("MNIST") == Preprocess(size=32)
    assert default_preprocess("CIFAR10") == Preprocess(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    assert default_preprocess("Imagenette", 128) == Preprocess(size=128, **imagenet)
    assert default_preprocess("/any/folder") == Preprocess(size=160, **imagenet)


# -------------------------------------------------------------------------------------------------- images


def test_rows_may_be_indices_a_mask_or_a_slice():
    data = labelled()
    for rows in ([4, 1, 1], (4, 1, 1), np.array([4, 1, 1]), torch.tensor([4, 1, 1])):
        chosen = data[rows]
        assert torch.equal(chosen.x, data.x[[4, 1, 1]]) and chosen.y.tolist() == [0, 1, 1] and len(chosen) == 3
    assert torch.equal(data[data.y == 1].x, data.x[1::2]) and torch.equal(data[2:].x, data.x[2:])
    assert len(data[[]]) == 0 and data[[]].inputs().shape == (0, 3, 8, 8)
    assert torch.equal(data.inputs([3, 0]), data.preprocess(data.x[[3, 0]]))
    assert torch.equal(data.inputs(), data.preprocess(data.x))
    assert data.in_channels == 3


def test_images_that_do_not_fit_their_labels_are_refused():
    with pytest.raises(ValueError, match=r"x must be \[N, C, H, W\] for 2 labels, not \(3, 1, 4, 4\)"):
        Images(noise(3, 1, 4, 4), torch.zeros(2, dtype=torch.long), ("a",))
    with pytest.raises(ValueError, match="labels must be in 0 ... 0"):
        Images(noise(2, 1, 4, 4), torch.tensor([0, 1]), ("a",))


def test_only_what_is_asked_for_is_decoded():
    decoded = []

    def decode(item):
        decoded.append(item)
        return torch.full((1, 4, 4), item, dtype=torch.uint8)

    data = Images(Decoded(tuple(range(100)), decode, (1, 4, 4)), torch.zeros(100, dtype=torch.long), ("a",))
    assert len(data) == 100 and data.x.shape == (100, 1, 4, 4) and data.in_channels == 1 and decoded == []
    assert data[[7, 90, 7]].x[:, 0, 0, 0].tolist() == [7, 90, 7] and decoded == [7, 90, 7]
    data.inputs(slice(2, 4))
    assert decoded[3:] == [2, 3]
    mask = torch.zeros(100, dtype=torch.bool)
    mask[-1] = True
    assert data[mask].x[0, 0, 0, 0] == 99 and data.x[5].shape == (1, 4, 4)
    with pytest.raises(IndexError):
        data[[100]]


# -------------------------------------------------------------------------------------------------- folders


def put(folder, name, pixels, **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return path


@pytest.fixture
def pets(tmp_path):
    """train: 2 cats, 1 dog; val: 1 cat, 1 owl."""
    for index, name in enumerate(["train/cat/b.png", "train/cat/a.png", "train/dog/1.png", "val/cat/x.png",
                                  "val/owl/y.png"]):  # fmt: skip
        put(tmp_path / "pets", name, np.full((16, 16, 3), 10 * index))
    return tmp_path / "pets"


def test_a_folder_with_train_and_val(pets):
    train, test, everything = (image_folder.load(pets, split, 16) for split in ("train", "test", "all"))
    assert train.classes == test.classes == ("cat", "dog", "owl"), "the numbers of classes are those of both splits"
    assert train.y.tolist() == [0, 0, 1] and test.y.tolist() == [0, 2] and everything.y.tolist() == [0, 0, 1, 0, 2]
    assert train.x[:][:, 0, 0, 0].tolist() == [10, 0, 20], "in the order of the file names"
    assert torch.equal(train.inputs(), train.preprocess(train.x[:]))


def test_test_is_the_folder_of_that_name_where_there_is_one_beside_val(pets):
    put(pets, "test/owl/z.png", np.full((16, 16, 3), 99))
    test = image_folder.load(pets, "test", 16)
    assert test.y.tolist() == [2] and test.x[0].unique().tolist() == [99]


def test_a_folder_of_classes_alone_is_all_for_testing(pets):
    data = load(str(pets / "train"), "test", 16)
    assert data.classes == ("cat", "dog") and len(data) == 3
    assert len(load(str(pets / "train"), "all", 16)) == 3
    with pytest.raises(ConfigError, match='has no train or training folder: split="all" takes all'):
        load(str(pets / "train"), "train", 16)


def test_a_folder_in_the_data_folder_is_found_by_name(pets, monkeypatch):
    assert len(load("pets", "train", 16, data_dir=pets.parent)) == 3
    monkeypatch.setenv("SIGHTLINE_DATA", str(pets.parent))
    assert len(load("pets", "train", 16)) == 3


def test_grey_transparent_and_rotated_photographs_are_upright_and_coloured(tmp_path):
    ramp = np.tile(np.arange(0, 160, 10, dtype=np.uint8)[:, None], (1, 16))
    put(tmp_path, "a/1.png", ramp)
    put(tmp_path, "a/2.png", np.stack([ramp] * 3 + [np.full_like(ramp, 255)], -1))
    exif = Image.Exif()
    exif[0x0112] = 8  # taken with the camera turned: to be shown turned back by a quarter
    put(tmp_path, "a/3.png", np.stack([np.rot90(ramp, -1)] * 3, -1), exif=exif)
    x = image_folder.load(tmp_path, size=16).x[:]
    for image in x:
        assert torch.equal(image, torch.from_numpy(ramp).expand(3, 16, 16))


def test_grey_of_16_bits_is_the_same_grey_and_what_has_no_range_is_refused(tmp_path):
    ramp = np.tile(np.arange(0, 256, 16, dtype=np.uint8)[:, None], (1, 16))
    (tmp_path / "a").mkdir()
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "a" / "1.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "a" / "2.tif")
    for image in image_folder.load(tmp_path, size=16).x[:]:
        assert torch.equal(image, torch.from_numpy(ramp).expand(3, 16, 16))
    Image.fromarray(ramp.astype(np.float32) / 255).save(tmp_path / "a" / "3.tif")
    with pytest.raises(ConfigError, match=r"3\.tif has pixels of 32 bits, whose range is not known"):
        image_folder.load(tmp_path, size=16).inputs()


def test_photographs_are_fitted_as_tensors_are(tmp_path):
    smooth = F.interpolate(torch.rand(1, 3, 6, 8, generator=runtime.generator(0, "x")), (60, 80), mode="bicubic")
    pixels = (smooth[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    put(tmp_path, "a/1.png", pixels)
    x = image_folder.load(tmp_path, size=24).x[0].float() / 255
    expected = Preprocess(size=24).fit(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)[0]
    assert (x - expected).abs().max() < 2 / 255


def test_classes_count_as_people_do_and_other_files_do_not(tmp_path):
    for name in ("10/a.png", "2/a.png", "1/deep/er/a.png", "2/.hidden.png"):
        put(tmp_path, name, np.zeros((8, 8, 3)))
    (tmp_path / "2" / "notes.txt").write_text("no image")
    data = image_folder.load(tmp_path, size=8)
    assert data.classes == ("1", "2", "10") and data.y.tolist() == [0, 1, 2]


def test_a_damaged_photograph_is_named(tmp_path):
    path = put(tmp_path, "a/1.png", noise(64, 64, 3).numpy())
    path.write_bytes(path.read_bytes()[:2000])
    data = image_folder.load(tmp_path, size=8)
    with pytest.raises(ValueError, match=r"a.1\.png cannot be read as an image .*: repair or remove it"):
        data.inputs()


def test_a_folder_without_images_says_what_is_expected(tmp_path):
    with pytest.raises(ConfigError, match="one sub-folder a class is expected"):
        image_folder.load(tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        image_folder.load(tmp_path / "nowhere")


# -------------------------------------------------------------------------------------------------- by name


def test_a_misspelt_data_set_or_split_is_refused_with_near_misses(pets):
    with pytest.raises(ConfigError, match="no data set and no folder 'MNISTT' .* did you mean MNIST"):
        load("MNISTT")
    for name in ("MNIST", "CIFAR10", "Imagenette", "ImagenetteFull", str(pets)):
        with pytest.raises(ConfigError, match="unknown split 'tset': did you mean test"):
            load(name, "tset")


def test_the_data_folder_is_relative_to_the_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert images.data_root("some") == images.ROOT / "some" and images.data_root() == downloads.data_root()
    assert images.data_root(tmp_path) == tmp_path


@pytest.mark.parametrize("name", ["mnist", "cifar10", "imagenette"])
def test_a_configuration_says_everything_about_its_data(name):
    config = data_config(name)
    assert {"source", "licence", "classes", "splits", "normalisation"} <= set(config) and config["name"] == name
    assert len(config["classes"]) == 10 and set(config["splits"]) == {"train", "test"}
    sources = [config["archive"]] if "archive" in config else [f["packed"] for f in config["files"].values()]
    for source in sources:
        assert downloads.Source(**source).sha256 and source["bytes"]


def test_nothing_is_logged_or_printed_when_all_is_well(pets, capsys, caplog):
    with caplog.at_level(logging.DEBUG):
        image_folder.load(pets, size=16).inputs()
    assert [r for r in caplog.records if r.name.startswith("helpers")] == [] and capsys.readouterr() == ("", "")
