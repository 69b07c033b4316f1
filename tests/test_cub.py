"""CUB-200-2011 is read as released, whole or as the subset at hand; where it cannot be had it is said what to do."""

import copy
import hashlib
import io
import shutil
import tarfile
import zipfile

import pytest
import torch
from PIL import Image

from helpers import downloads
from helpers.config import ConfigError, data_config
from helpers.data import cub
from helpers.downloads import DownloadError

SIZES = [(50, 40), (40, 50), (60, 30), (33, 47)]  # (width, height)

needs_subset = pytest.mark.skipif(
    not (downloads.data_root() / "cub200_subset20" / "images.txt").exists(),
    reason="cub200_subset20 is not under SIGHTLINE_DATA: it may not be redistributed",
)


def photograph(size, colour):
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "JPEG")
    return content.getvalue()


def release(first=""):
    """The files of a release of four images of two classes, by name; part p of image i lies at (i + p, 2 p)."""
    names = [f"{c:03}.Some_{bird}/{bird}_{k}.jpg" for c, bird in ((1, "Tit"), (2, "Jay")) for k in range(2)]
    parts = [f"{i} {p} {i + p}.50 {2 * p}.25 {int((i + p) % 2 == 0)}" for i in range(1, 5) for p in range(1, 16)]
    lists = {
        "images.txt": [f"{i} {name}" for i, name in enumerate(names, 1)],
        "classes.txt": ["1 001.Some_Tit", "2 002.Some_Jay"],
        "image_class_labels.txt": [f"{i} {(i + 1) // 2}" for i in range(1, 5)],
        "train_test_split.txt": ["1 1", "2 0", "3 1", "4 1"],
        "bounding_boxes.txt": [f"{i} {i}.0 2.5 20.0 10.0" for i in range(1, 5)],
        "parts/part_locs.txt": parts,
    }
    files = {name: "\n".join(lines).encode() + b"\n" for name, lines in lists.items()}
    colours = [(0, 0, 0), (0, 90, 0), (90, 0, 0), (90, 90, 0)]
    images = zip(names, SIZES, colours, strict=True)
    return files | {f"images/{name}": photograph(size, colour) for name, size, colour in images}


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def tgz(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture
def settings(monkeypatch):
    """The configuration, of a set of four images."""
    changed = copy.deepcopy(data_config("cub"))
    changed["splits"] = {"train": {"images": 3}, "test": {"images": 1}}
    monkeypatch.setattr(cub, "data_config", lambda name: changed)
    return changed


@pytest.fixture
def official(settings, elsewhere, tmp_path):
    write(tmp_path / "CUB_200_2011", release())
    return tmp_path / "CUB_200_2011"


@pytest.fixture
def subset(settings, elsewhere, tmp_path):
    """The same as the subset at hand: a stored zip a class, and the sizes before and after."""
    folder, files = tmp_path / "cub200_subset20", release()
    write(folder, {name: content for name, content in files.items() if not name.startswith("images/")})
    lines = [f"{i} {w} {h} {2 * w} {2 * h}" for i, (w, h) in enumerate(SIZES, 1)]
    write(folder, {"sizes.txt": "\n".join(lines).encode(), "images/.keep": b""})
    for name in (name for name in files if name.startswith("images/")):
        sub = name.split("/")[1]
        with zipfile.ZipFile(folder / "images" / f"{sub}.zip", "a") as archive:
            archive.writestr(name.removeprefix("images/"), files[name])
    (folder / "images" / ".keep").unlink()
    settings["subsets"]["subset20"] |= {
        "splits": settings["splits"],
        "files": {
            str(path.relative_to(folder)): {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in folder.rglob("*") if path.is_file()
        },
    }  # fmt: skip
    return folder


def check(birds):
    assert birds.ids.tolist() == [1, 2, 3, 4] and birds.is_train.tolist() == [True, False, True, True]
    assert birds.photographs.labels.tolist() == [0, 0, 1, 1], "a label is the class's number less one"
    assert birds.photographs.classes == ("Some Tit", "Some Jay")
    assert birds.boxes[1].tolist() == [2.0, 2.5, 20.0, 10.0]
    assert birds.locations.shape == (4, 15, 2) and birds.locations[2, 6].tolist() == [10.5, 14.25]
    assert birds.visible[0].tolist() == [p % 2 == 1 for p in range(1, 16)]
    for row, (width, height) in enumerate(SIZES):
        assert birds.size(row) == (height, width) and birds.photographs.open(row).size == (width, height)
    red, green, _ = birds.photographs.open(3).getpixel((5, 5))
    assert abs(red - 90) < 4 and abs(green - 90) < 4


def test_the_official_layout_is_read(official):
    birds = cub.load()
    check(birds)
    assert birds.sizes is None and birds.original_sizes is None


def test_the_subset_is_read_from_its_zips_which_stay_packed(subset):
    before = sorted(subset.rglob("*"))
    birds = cub.load(subset="subset20")
    check(birds)
    assert birds.original_sizes.tolist() == [[2 * h, 2 * w] for w, h in SIZES]
    assert sorted(subset.rglob("*")) == before


def test_fifteen_annotations_are_of_twelve_parts(official):
    birds = cub.load()
    names = [birds.part_names[part] for part in birds.part_of.tolist()]
    assert names == [
        "back", "beak", "belly", "breast", "crown", "forehead", "eye", "leg", "wing", "nape", "eye", "leg", "wing",
        "tail", "throat",
    ]  # fmt: skip
    assert len(birds.part_names) == 12


def test_the_archive_is_downloaded_verified_and_unpacked_once(settings, elsewhere, tmp_path):
    packed = tgz({f"CUB_200_2011/{name}": content for name, content in release().items()} | {"attributes.txt": b"1"})
    settings["archive"]["md5"] = hashlib.md5(packed).hexdigest()
    elsewhere[settings["archive"]["url"]] = packed
    check(cub.load())
    assert [path.name for path in tmp_path.iterdir()] == ["CUB_200_2011"], "the archive is not kept"
    elsewhere.clear()
    check(cub.load(tmp_path))


def test_an_archive_with_other_bytes_is_refused(settings, elsewhere, tmp_path):
    elsewhere[settings["archive"]["url"]] = tgz({f"CUB_200_2011/{n}": c for n, c in release().items()})
    with pytest.raises(DownloadError, match="its md5 is .*, not 97eceeb196236b17998738112f37df78"):
        cub.load()
    assert not (tmp_path / "CUB_200_2011").exists()


def test_without_a_network_it_says_what_to_do(elsewhere, tmp_path):
    with pytest.raises(DownloadError) as caught:
        cub.load()
    text = str(caught.value)
    assert "tried: https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz: no route to host" in text
    assert "by hand: put the file with md5 97eceeb" in text and str(tmp_path) in text and "ToyBirds" in text


def test_a_subset_that_is_not_there_is_named(elsewhere, tmp_path):
    with pytest.raises(DownloadError, match=r"CUB's subset20: no bounding_boxes.txt(.|\n)*by hand(.|\n)*ToyBirds"):
        cub.load(subset="subset20")
    with pytest.raises(ConfigError, match="no subset 'subset2' .*did you mean subset20"):
        cub.load(subset="subset2")


def test_a_changed_file_of_the_subset_is_refused(subset):
    with (subset / "parts" / "part_locs.txt").open("ab") as file:
        file.write(b"\n")
    with pytest.raises(DownloadError, match="part_locs.txt is not the file it should be"):
        cub.load(subset="subset20")


@pytest.mark.parametrize(
    "name, content",
    [
        ("images.txt", b"one two\n"),
        ("bounding_boxes.txt", b"1 2 3 4 5\n"),  # three are missing
        ("train_test_split.txt", b"1 1\n3 0\n2 1\n4 1\n"),  # other ids
        ("train_test_split.txt", b"1 1\n2 1\n3 1\n4 1\n"),  # another split
        ("image_class_labels.txt", b"1 1\n2 1\n3 2\n4 3\n"),  # a class too many
        ("parts/part_locs.txt", b"1 1 here there 1\n"),
        ("classes.txt", None),
    ],
)
def test_a_broken_list_is_one_clear_error(official, name, content):
    (official / name).write_bytes(content) if content else (official / name).unlink()
    with pytest.raises(DownloadError, match="not as released .*delete the folder of the data set and run again"):
        cub.load()


def test_a_photograph_that_is_none_is_named_when_it_is_opened(official):
    birds = cub.load()
    path = birds.photographs.items[0]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ConfigError, match=f"{path.name} cannot be read as an image"):
        birds.photographs.open(0)
    shutil.rmtree(official / "images")
    with pytest.raises(ConfigError, match="cannot be read as an image"):
        birds.size(0)


@needs_subset
def test_the_subset_is_the_described_one():
    birds = cub.load(subset="subset20")
    assert len(birds) == 1115 and int(birds.is_train.sum()) == 600
    assert birds.photographs.labels.bincount(minlength=20).min() > 40
    assert birds.photographs.classes[16] == "Cardinal" and len(birds.photographs.classes) == 20
    assert int(birds.visible.sum()) == 13229
    left, top, width, height = birds.boxes.T
    x, y = birds.locations.unbind(-1)
    inside = (x >= left[:, None] - 1) & (x <= (left + width)[:, None] + 1)
    inside &= (y >= top[:, None] - 1) & (y <= (top + height)[:, None] + 1)
    assert bool(inside[birds.visible].all()), "parts lie in their boxes"
    some = torch.arange(0, 1115, 100).tolist()
    assert all(birds.photographs.size(row) == birds.size(row) for row in some), "the list of sizes is right"
