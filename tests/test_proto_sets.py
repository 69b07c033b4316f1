"""Splits, transforms and part coordinates: as the spec's tables have them, and a function of names alone."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2 as transforms

from helpers import config, downloads, runtime
from helpers.config import ConfigError
from helpers.data import cars, cifar10, cub, toybirds
from helpers.data.image_folder import Photographs
from helpers.data.images import Images
from helpers.downloads import DownloadError
from helpers.prototypes.batches import Batches
from helpers.prototypes.pipelines import locate, locate_legacy, pipelines, resize, view
from helpers.prototypes.presets import Dataset, PrototypesStudy
from helpers.prototypes.sets import ahead, balanced, part_locations, sets, split


def there(name):
    return (downloads.data_root() / name).exists()


def needs(name):
    reason = f"{name} is not under SIGHTLINE_DATA: it may not be redistributed"
    return pytest.mark.skipif(not there(name), reason=reason)


def picture(width, height, seed=0):
    """A smooth one, so that how it is resized matters little to a pixel."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def opener(image):
    content = io.BytesIO()
    image.save(content, "BMP")
    content.seek(0)
    return content


def photographs(n, classes=4, size=(50, 40)):
    items = tuple(picture(*size, seed) for seed in range(n))
    return Photographs(items, torch.arange(n) % classes, tuple(f"class {k}" for k in range(classes)), opener)


@pytest.fixture
def opened():
    """The names of the splits that were read."""
    return []


@pytest.fixture
def small_cars(monkeypatch, opened):
    """40 images to train on and 12 to test on, of 4 classes."""

    def load(split, data_dir, subset):
        opened.append(split)
        return photographs(40 if split == "train" else 12)

    monkeypatch.setattr(cars, "load", load)
    return Dataset(name="CARS224", size=32)


@pytest.fixture
def small_cub(monkeypatch):
    """Birds of a few sizes; images of even index are trained on."""

    def make(sizes=((500, 375), (333, 500), (640, 480), (400, 400))):
        n = len(sizes)
        generator = runtime.numpy_generator(0, "parts")
        wh = np.array(sizes)[:, None]
        items = tuple(picture(*size, i) for i, size in enumerate(sizes))
        birds = cub.Cub(
            photographs=Photographs(items, torch.arange(n) % 2, ("a", "b"), opener),
            ids=torch.arange(1, n + 1),
            is_train=torch.arange(n) % 2 == 0,
            boxes=torch.tensor([[0.2 * w, 0.1 * h, 0.5 * w, 0.7 * h] for w, h in sizes]),
            locations=torch.from_numpy(generator.uniform(0, 1, (n, 15, 2)) * wh),
            visible=torch.from_numpy(generator.random((n, 15)) < 0.8),
            part_of=torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 6, 7, 8, 10, 11]),
            part_names=tuple("abcdefghijkl"),
        )
        monkeypatch.setattr(cub, "load", lambda data_dir, subset: birds)
        return birds

    return make


# ------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("n, train, validation", [(5994, 5395, 599), (8144, 7330, 814)])
def test_a_tenth_is_held_out_as_in_the_paper(n, train, validation):
    rows, held_out = split(n, 0.1, 42)
    assert (len(rows), len(held_out)) == (train, validation)
    assert sorted(torch.cat([rows, held_out]).tolist()) == list(range(n)), "disjoint, and nothing is lost"
    assert torch.equal(rows, split(n, 0.1, 42)[0]) and not torch.equal(rows, split(n, 0.1, 43)[0])


def test_the_test_set_is_the_official_one_and_is_not_read_before_it_is_asked_for(small_cars, opened):
    data = sets(small_cars, 42)
    assert len(data.train) == 36 and len(data.validation) == 4
    data.train.augmented([0], 0, 0), data.validation.inputs([0])
    assert opened == ["train"] and not data.test_loaded
    assert len(data.test) == 12 and data.test.indices.tolist() == list(range(12))
    assert opened == ["train", "test"] and data.test_loaded and data.test is data.test


def test_indices_are_places_in_the_official_training_set(small_cars):
    data, everything = sets(small_cars, 42), sets(small_cars.override({"val_size": 0.0}), 42)
    assert everything.validation is None and everything.train.indices.tolist() == list(range(40))
    for part in (data.train, data.validation):
        assert torch.equal(part.labels, part.indices % 4)
        assert torch.equal(part.inputs([1, 2]), everything.train.inputs(part.indices[[1, 2]]))


def test_validation_images_are_never_augmented(small_cars):
    data = sets(small_cars, 42)
    assert data.train.augments and not data.validation.augments and not data.test.augments
    rows = [0, 1, 2, 3]
    assert torch.equal(data.validation.augmented(rows, 0, 1), data.validation.inputs(rows))
    assert not torch.equal(data.train.augmented(rows, 0, 1), data.train.inputs(rows))
    plain = sets(small_cars.override({"augment": False}), 42).train
    assert torch.equal(plain.augmented(rows, 0, 1), plain.inputs(rows))


def test_fewer_images_are_as_many_of_each_class_and_the_first_of_more(small_cars):
    few, more = (sets(small_cars.override({"n_train": n, "n_test": 6}), 42) for n in (8, 13))
    assert few.train.labels.bincount().tolist() == [2] * 4 and len(more.train) == 13 and len(few.test) == 6
    assert set(few.train.indices.tolist()) < set(more.train.indices.tolist())
    assert len(few.validation) == 4, "it is not part of what is limited"
    with pytest.raises(ConfigError, match="there are 36 images, not 37"):
        sets(small_cars.override({"n_train": 37}), 42)


def test_a_draw_is_in_proportion_with_one_of_each_class_at_least():
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([100, 50, 4]))
    for n in (3, 10, 77, 154):
        counts = labels[balanced(labels, n, runtime.generator(0, "x"))].bincount(minlength=3)
        assert counts.sum() == n and counts.min() >= 1
        assert (counts - n * torch.tensor([100, 50, 4]) / 154).abs().max() <= 1.5


# -------------------------------------------------------------------------------------------------- transforms


def test_what_is_tested_on_equals_torchvisions_transforms():
    """The table of section 7, row by row, on a photograph of unequal sides."""
    resized, cut = transforms.Resize, transforms.CenterCrop
    image = picture(500, 375)
    box = (50, 30, 350, 330)
    for name, steps in {
        "CUB200224": [resized(510), cut(384), resized((224, 224))],
        "CUB200": [resized(510), cut(384)],
        "CUB200BBOX": [lambda x: x.crop(box), resized((384, 384))],
        "CUB200224BBOX": [lambda x: x.crop(box), resized(224), cut(224)],
        "CARS224": [resized((224, 224))],
        "IMAGENETTE": [cut(224)],
        "IMAGENET": [cut(224)],
    }.items():
        pipeline = pipelines()[name]
        theirs = image
        for step in steps:
            theirs = step(theirs)
        found = view(resize(image, pipeline, box), pipeline)
        expected = transforms.functional.pil_to_tensor(theirs)
        assert found.shape == (3, pipeline.input_size, pipeline.input_size)
        assert (found.int() - expected.int()).abs().max() <= 1, name  # tensors and pictures are rounded differently


def test_small_photographs_are_enlarged_for_imagenette_and_large_ones_are_not():
    pipeline = pipelines()["IMAGENETTE"]
    assert resize(picture(200, 160), pipeline).shape == (3, 224, 280)
    assert resize(picture(500, 375), pipeline).shape == (3, 375, 500)


@pytest.mark.parametrize(
    "name, mean, std",
    [
        ("CUB200224", (0.4862, 0.5005, 0.4334), (0.2321, 0.2277, 0.2665)),
        ("CARS224", (0.4708, 0.4602, 0.4550), (0.2891, 0.2882, 0.2967)),
        ("CIFAR10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("IMAGENET", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_normalisation_is_the_tables(name, mean, std):
    x = torch.full((1, 3, 2, 2), 51, dtype=torch.uint8)
    expected = [(0.2 - m) / s for m, s in zip(mean, std, strict=True)]
    pipeline = pipelines()[name]
    assert pipeline.normalise(x)[0, :, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(pipeline.restore(pipeline.normalise(x)), x / 255)


@pytest.mark.parametrize("name", [name for name in pipelines() if name not in ("ToyBirds", "CIFAR10")])
def test_another_size_shows_the_same_smaller(name):
    pipeline, image = pipelines()[name], picture(500, 375)
    half = pipeline.at(pipeline.input_size // 2)
    large, small = view(resize(image, pipeline), pipeline), view(resize(image, half), half)
    shrunk = torch.nn.functional.avg_pool2d(large.float(), 2)
    assert small.shape == shrunk.shape and (small - shrunk).abs().mean() < 3


def test_pixels_are_the_inputs_to_be_looked_at(small_cars):
    part = sets(small_cars, 42).train
    assert torch.allclose(part.pipeline.restore(part.inputs([0, 1])), part.pixels([0, 1]), atol=1e-6)
    assert part.inputs([]).shape == (0, 3, 32, 32) and part.inputs(slice(0, 3)).shape == (3, 3, 32, 32)
    assert part.inputs(part.labels == 1).shape[0] == int((part.labels == 1).sum())


# ------------------------------------------------------------------------------------------- randomness and order


def test_augmentation_is_a_function_of_seed_epoch_repeat_and_image(small_cars):
    data = sets(small_cars, 42)
    rows = torch.tensor([3, 5, 9])
    first = data.train.augmented(rows, 0, 1)
    assert torch.equal(first, data.train.augmented(rows.flip(0), 0, 1).flip(0)), "whatever else is in the batch"
    assert torch.equal(first[1], sets(small_cars, 42).train.augmented([5], 0, 1)[0])
    others = [data.train.augmented(rows, *names) for names in ((1, 1), (0, 2), (0, 1, 1))]
    assert all(not torch.equal(first, other) for other in others)
    mixed = data.train.augmented(rows, 0, 1, torch.tensor([0, 1, 0]))
    assert torch.equal(mixed[0], first[0]) and torch.equal(mixed[1], others[2][1])
    # another split of the same images leaves an image's augmentation as it is
    again = sets(small_cars.override({"val_size": 0.0}), 7).train
    assert torch.equal(again.augmented(data.train.indices[rows], 0, 1), first)


def test_batches_of_photographs_are_an_order_of_their_own_each_time_augmented_anew(small_cars):
    part = sets(small_cars, 42).train
    batches = list(Batches(10, 5, torch.device("cpu"), factor=2).epoch(part, 2))
    order = torch.randperm(72, generator=runtime.generator(5, "order", 2))[:70]
    assert torch.cat([labels for _, labels in batches]).tolist() == part.labels[order % 36].tolist()
    some = order[30:40]
    assert torch.equal(batches[3][0], part.augmented(some % 36, 5, 2, some // 36))


def test_images_as_they_are_tested_come_in_their_order(small_cars):
    part = sets(small_cars, 42).train
    batches = list(Batches(10, 5, torch.device("cpu")).plain(part))
    assert [len(labels) for _, labels, _ in batches] == [10, 10, 10, 6]
    assert torch.equal(torch.cat([indices for *_, indices in batches]), part.indices)
    assert torch.equal(batches[3][0], part.inputs(slice(30, 36)))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_threads_do_the_work_in_order(workers):
    assert list(ahead(lambda k: k * k, range(9), workers)) == [k * k for k in range(9)]


def test_threads_are_a_little_ahead_and_pass_errors_on():
    begun = []

    def work(item):
        begun.append(item)
        if item == 5:
            raise ConfigError("no good")
        return item

    threads, results = torch.get_num_threads(), ahead(work, range(100), 2)
    assert next(results) == 0 and len(begun) <= 4
    with pytest.raises(ConfigError, match="no good"):
        list(results)
    assert len(begun) < 10 and torch.get_num_threads() == threads


def test_images_are_decoded_once_while_there_is_room(monkeypatch):
    decoded = []

    def load(split, data_dir, subset):
        found = photographs(8)
        return replace(found, opener=lambda image: decoded.append(1) or opener(image))

    monkeypatch.setattr(cars, "load", load)
    one = 3 * 32 * 32
    for room, expected in ((8 * one, 8), (5 * one, 5 + 2 * 3), (0, 16)):
        decoded.clear()
        data = sets(Dataset(name="CARS224", size=32, val_size=0.0), 0, memory=room)
        data.train.inputs(range(8)), data.train.augmented(range(8), 0, 0)
        assert len(decoded) == expected


# ---------------------------------------------------------------------------------------------- part coordinates


def spec_exact(x, y, w, h):
    """Section 8.4, as it stands there."""
    s = 510 / min(w, h)
    return (x * s - (w * s - 384) / 2) * 224 / 384, (y * s - (h * s - 384) / 2) * 224 / 384


def spec_legacy(x, y, w, h):
    return (x * 510 / w - 63) * 224 / 384, (y * 510 / h - 63) * 224 / 384


SHAPES = [(500, 375), (333, 500), *[tuple(s) for s in np.random.default_rng(3).integers(150, 640, (6, 2)).tolist()]]


@pytest.mark.parametrize("width, height", SHAPES)
def test_coordinates_are_those_of_the_formula(width, height):
    pipeline, (x, y) = pipelines()["CUB200224"], (0.3 * width, 0.6 * height)
    point = torch.tensor([x, y], dtype=torch.float64)
    exact, legacy = locate(point, (height, width), pipeline), locate_legacy(point, (height, width), pipeline)
    assert exact.tolist() == pytest.approx(spec_exact(x, y, width, height), abs=0.7), "sizes are whole pixels"
    assert legacy.tolist() == pytest.approx(spec_legacy(x, y, width, height), abs=1e-9)


def drawn(width, height, x, y, reach):
    """A white square on black, its middle at (x, y)."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y - reach : y + reach + 1, x - reach : x + reach + 1] = 255
    return Image.fromarray(pixels)


def seen(image, pipeline, box=None):
    """Where it is in the input."""
    light = view(resize(image, pipeline, box), pipeline)[0].double()
    places = torch.arange(len(light)).double()
    return torch.stack([(light.sum(0) * places).sum(), (light.sum(1) * places).sum()]) / light.sum()


@pytest.mark.parametrize("name", ["CUB200224", "CUB200", "CUB200BBOX", "CUB200224BBOX"])
def test_a_dot_in_the_photograph_is_seen_at_the_exact_coordinate(name):
    pipeline, generator = pipelines()[name], np.random.default_rng(0)
    for width, height in SHAPES:
        box = (width // 5, height // 6, width - 20, height - 10)
        left, top, right, bottom = box if pipeline.to_box else (0, 0, width, height)
        for _ in range(4):
            across, down = generator.uniform(0.4, 0.6, 2)
            x, y = int(left + across * (right - left)), int(top + down * (bottom - top))
            found = seen(drawn(width, height, x, y, 2), pipeline, box)
            pixel, middle = (
                locate(torch.tensor([x, y]).double() + half, (height, width), pipeline, box) for half in (0, 0.5)
            )
            assert (found + 0.5 - middle).abs().max() < 0.5, "pixel i is what lies between i and i + 1"
            if name == "CUB200224":
                assert (found - pixel).abs().max() < 1, "nor does it matter where in its pixel a part is"


@pytest.mark.parametrize("width, height, worst, mean", [(500, 375, 27.8, 14.4), (500, 333, 35.9, 18.6)])
def test_a_dot_is_not_where_the_legacy_formula_says(width, height, worst, mean):
    pipeline, size = pipelines()["CUB200224"], (height, width)
    points = torch.stack([torch.arange(width), torch.full((width,), height // 2)], 1).double()
    exact, legacy = locate(points, size, pipeline), locate_legacy(points, size, pipeline)
    errors = (exact - legacy).abs()[(exact[:, 0] >= 0) & (exact[:, 0] < 224), 0]
    assert worst < errors.max() < worst + 2, "as the spec measured it"
    assert float(errors.mean()) == pytest.approx(mean, abs=0.7)
    x = width // 3
    assert (seen(drawn(width, height, x, height // 2, 2), pipeline) - legacy[x]).abs().max() > 10


def test_parts_of_images_are_located_and_those_outside_the_input_are_not_visible(small_cub):
    birds = small_cub()
    data = sets(Dataset(name="CUB200224", val_size=0.0), 0)
    for part, rows in ((data.train, [0, 2]), (data.test, [1, 3])):
        found = part_locations(part, [1, 0])
        assert found.xy.shape == (2, 15, 2) and found.visible.dtype == torch.bool and len(found.names) == 12
        for i, row in enumerate(reversed(rows)):
            height, width = birds.size(row)
            expected = np.array([spec_exact(x, y, width, height) for x, y in birds.locations[row].tolist()])
            assert np.abs(found.xy[i].numpy() - expected).max() < 0.7
            inside = ((found.xy[i] >= 0) & (found.xy[i] < 224)).all(1)
            assert torch.equal(found.visible[i], inside & birds.visible[row])
    assert part_locations(data.train, []).xy.shape == (0, 15, 2)
    legacy = part_locations(data.test, [0], "legacy")
    assert not torch.allclose(legacy.xy, part_locations(data.test, [0]).xy, atol=2)


def test_birds_are_cut_out_along_their_boxes(small_cub):
    birds = small_cub(((60, 80),) * 4)
    by_option = sets(Dataset(name="CUB200", crop_to_bbox=True, size=48, val_size=0.0), 0)
    by_name = sets(Dataset(name="cub-200-bbox", size=48, val_size=0.0), 0)
    x = by_name.train.pixels([0])
    assert torch.equal(by_option.train.pixels([0]), x)
    box = (12, 8, 42, 64)  # 0.2 w, 0.1 h and 0.5 w, 0.7 h on
    expected = birds.photographs.items[0].crop(box).resize((48, 48), Image.Resampling.BILINEAR)
    assert np.abs(x[0].permute(1, 2, 0).numpy() * 255 - np.asarray(expected)).max() <= 1
    found = part_locations(by_name.train, [0]).xy[0]
    left, top, right, bottom = box
    scale = torch.tensor([48 / (right - left), 48 / (bottom - top)])
    assert torch.allclose(found, ((birds.locations[0] - torch.tensor([left, top])) * scale).float(), atol=1e-4)
    with pytest.raises(ConfigError, match="known of whole pictures alone"):
        part_locations(by_name.train, [0], "legacy")


def test_what_has_no_parts_says_so(small_cars, small_cub):
    with pytest.raises(ConfigError, match="parts are annotated in CUB and known in ToyBirds"):
        part_locations(sets(small_cars, 0).train, [0])
    small_cub()
    with pytest.raises(ConfigError, match="unknown geometry 'exakt': did you mean exact"):
        part_locations(sets(Dataset(name="CUB200", val_size=0.0), 0).train, [0], "exakt")


# ----------------------------------------------------------------------------------------------------- data sets


def test_toybirds_have_a_validation_set_of_their_own_and_as_many_to_train_on_as_are_asked_for():
    data = sets(Dataset(n_train=40, n_test=20, size=32), 0)
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 500, 20)
    assert data.train.labels.bincount().tolist() == [2] * 20 and len(data.classes) == 20
    x = data.train.inputs([0, 39])
    assert x.shape == (2, 3, 32, 32) and torch.equal(data.train.augmented([0, 39], 0, 1), x)
    assert sets(Dataset(n_train=40, size=32, val_size=0.0), 0).validation is None
    other = sets(Dataset(n_train=60, size=32), 1)
    assert torch.equal(other.train.pixels([39]), data.train.pixels([39])), "the same birds for every seed and number"
    found = part_locations(data.train, [3, 4])
    assert found.xy.shape == (2, 8, 2) and found.part.tolist() == list(range(8)) and found.names[0] == "beak"
    assert ((found.xy >= 0) & (found.xy <= 32))[found.visible].all()
    birds = toybirds.batch(toybirds.split("train")[0], [3, 4], toybirds.ToyBirdsSettings(size=32))
    mass, edges = birds.masks.double(), torch.arange(32) + 0.5  # the middle of the first pixel lies at 0.5
    x = (mass.sum(2) * edges).sum(2) / mass.sum((2, 3))
    assert torch.allclose(found.xy[..., 0].double()[found.visible], x[found.visible], atol=1e-4)


def test_cifar10_is_cropped_after_padding_alone(monkeypatch):
    x = torch.randint(0, 256, (12, 3, 32, 32), generator=runtime.generator(0, "x"), dtype=torch.uint8)
    images = Images(x, torch.arange(12) % 10, tuple("abcdefghij"))
    monkeypatch.setattr(cifar10, "load", lambda split, data_dir: images)
    data = sets(Dataset(name="cifar-10"), 0)
    assert torch.equal((data.train.pixels([4]) * 255).round().to(torch.uint8)[0], x[data.train.indices[4]])
    assert data.train.augmented([0, 1], 0, 0).shape == (2, 3, 32, 32)


def jpeg(path, size=(60, 50), colour=(90, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_a_folder_with_train_and_val_is_a_data_set(tmp_path):
    for split_name, n in (("train", 6), ("val", 2)):
        for label in ("cat", "dog"):
            for i in range(n):
                jpeg(tmp_path / "pets" / split_name / label / f"{i}.png")
    data = sets(Dataset(name=str(tmp_path / "pets"), size=32, val_size=0.25), 0)
    assert (len(data.train), len(data.validation), len(data.test)) == (9, 3, 4) and data.classes == ("cat", "dog")
    assert data.train.inputs([0]).shape == (1, 3, 32, 32)
    by_root = sets(Dataset(name="pets", root=str(tmp_path), val_size=0.0), 0)
    assert len(by_root.train) == 12 and by_root.train.input_size == 224
    broken = tmp_path / "pets" / "train" / "cat" / "0.png"
    broken.write_bytes(broken.read_bytes()[:20])
    with pytest.raises(ConfigError, match="0.png cannot be read as an image"):
        sets(Dataset(name="pets", root=str(tmp_path), val_size=0.0), 0).train.inputs([0])


def test_imagenette_is_ten_classes_of_the_users_imagenet(tmp_path):
    names, wnids = zip(*config.data_config("imagenette")["classes"].values(), strict=True)
    for split_name in ("train", "val"):
        for wnid in ("n00000001", *reversed(wnids)):
            for i in range(2):
                jpeg(tmp_path / "imagenet" / split_name / wnid / f"{i}.JPEG")
    data = sets(Dataset(name="Imagenette", root=str(tmp_path), val_size=0.0), 0)
    assert data.train.labels.tolist() == [k for k in range(10) for _ in range(2)] and data.classes == names
    assert len(sets(Dataset(name="IMAGENET", root=str(tmp_path), val_size=0.0), 0).classes) == 11
    for path in (tmp_path / "imagenet").glob(f"*/{wnids[3]}"):
        path.rename(path.with_name("n00000002"))
    with pytest.raises(ConfigError, match=f"has no folder of class {wnids[3]}"):
        sets(Dataset(name="Imagenette", root=str(tmp_path)), 0)


def test_without_imagenet_it_is_said_what_else_there_is(tmp_path):
    with pytest.raises(ConfigError, match=r'ImageNet cannot be downloaded: put it at .*subset="fastai" is downloaded'):
        sets(Dataset(name="IMAGENETTE", root=str(tmp_path)), 0)


@needs("cub200_subset20/images.txt")
def test_the_subset_of_birds_is_read_by_the_same_code():
    data = sets(Dataset(name="CUB200224", subset="subset20"), 42)
    assert (len(data.train), len(data.validation), len(data.test)) == (540, 60, 515) and len(data.classes) == 20
    assert data.train.inputs([0]).shape == (1, 3, 224, 224)
    found = part_locations(data.test, range(515))
    assert found.visible.float().mean() > 0.5 and found.xy[found.visible].max() < 224
    exact, legacy = found.xy, part_locations(data.test, range(515), "legacy").xy
    assert (exact - legacy).abs()[found.visible].max() > 20


@needs("stanford_cars_subset20/labels.csv")
def test_the_subset_of_cars_is_read_by_the_same_code():
    data = sets(Dataset(name="CARS224", subset="subset20", size=64), 42)
    assert (len(data.train), len(data.validation), len(data.test)) == (517, 58, 248)
    assert data.train.augmented([0], 0, 0).shape == (1, 3, 64, 64)


@needs("imagenette2_160_subset/labels.csv")
def test_the_subset_of_imagenette_is_read_by_the_same_code():
    data = sets(Dataset(name="IMAGENETTE", subset="subset"), 42)
    assert (len(data.train), len(data.validation), len(data.test)) == (1800, 200, 800) and data.classes[0] == "tench"
    assert data.train.inputs([0]).shape == (1, 3, 224, 224)


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "CUB202024"}, "no data set and no folder 'CUB202024' .*did you mean CUB200224"),
        ({"name": "cars"}, "did you mean CARS224|there are"),
        ({"name": "ToyBirds", "subset": "subset20"}, "ToyBirds has no subsets"),
        ({"name": "CIFAR10", "subset": "small"}, "CIFAR10 has no subsets"),
        ({"name": "CUB200", "subset": "subset21"}, "no subset 'subset21' .*did you mean subset20"),
        ({"name": "CARS224", "subset": "train"}, "Stanford Cars has no subset 'train'"),
        ({"name": "IMAGENETTE", "subset": "fast"}, "Imagenette has no subset 'fast'"),
        ({"name": "CARS224", "crop_to_bbox": True}, "crop_to_bbox is for CUB200 and CUB200224, not for CARS224"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        sets(Dataset(root=str(tmp_path), **settings), 0)


@pytest.mark.parametrize("name, message", [("CARS224", "Cars: not there"), ("CUB200", "could not be downloaded")])
def test_missing_data_are_one_clear_error(elsewhere, name, message):
    with pytest.raises(DownloadError, match=message) as caught:
        sets(Dataset(name=name), 0)
    assert "by hand: put" in str(caught.value) and "ToyBirds" in str(caught.value)


def test_shares_that_leave_nothing_are_refused(small_cars):
    for val_size in (1.0, -0.1):
        with pytest.raises(ConfigError, match="dataset.val_size"):
            PrototypesStudy().override({"dataset.val_size": val_size})
    for val_size, message in ((0.999, "leaves 40 to watch and 0 to train on"), (0.001, "leaves 0 to watch and 40")):
        with pytest.raises(ConfigError, match=message):
            sets(small_cars.override({"val_size": val_size}), 0)
