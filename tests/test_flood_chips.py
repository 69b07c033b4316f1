"""Chips of floods are read as released, cut in tiles without a change, and refused in words that help."""

import copy
import os
import shutil
import stat

import numpy as np
import pytest
from flood_small import CHIPS, IMAGES, LABELS, SIDE, chip, in_small, release, serving, tif

from helpers import artifacts, buckets, downloads
from helpers.config import ConfigError, data_config
from helpers.data import flood_chips, sen1floods11, water_multispectral, water_scenes
from helpers.data.flood_chips import NO_DATA, WATER, Chips
from helpers.downloads import DownloadError, Patience


def there(*names):
    return all((downloads.data_root() / name).exists() for name in names)


needs_chips = pytest.mark.skipif(
    not there("sen1floods11_subset/chips.csv", "water_multispectral/README.md"),
    reason="the subsets of chips are not under SIGHTLINE_DATA: they may not be redistributed",
)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The data folder, empty, and a release in small elsewhere: (folder of the data set, folder of the release)."""
    facts = copy.deepcopy(data_config("sen1floods11"))
    in_small(facts)
    monkeypatch.setattr(sen1floods11, "data_config", lambda name: facts)
    monkeypatch.setattr(downloads, "PATIENCE", Patience(retries=0))
    monkeypatch.setenv("SIGHTLINE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # no gsutil
    release(tmp_path / "bucket")
    return tmp_path / "data" / "sen1floods11", tmp_path / "bucket"


def at_hand(small):
    folder, bucket = small
    shutil.copytree(bucket, folder)
    return folder


# ----------------------------------------------------------------------------------------------------- tiles


def test_cutting_and_merging_is_the_identity_and_the_order_is_tl_tr_bl_br():
    """Spec property 17."""
    image = np.arange(2 * 6 * 6).reshape(2, 6, 6)
    tiles = flood_chips.cut(image, 3)
    for tile, (rows, columns) in zip(tiles, [(0, 0), (0, 3), (3, 0), (3, 3)], strict=True):
        assert (tile == image[:, rows : rows + 3, columns : columns + 3]).all()
    assert (flood_chips.merge(tiles) == image).all()
    assert (flood_chips.merge(flood_chips.cut(image[0], 2)) == image[0]).all()
    with pytest.raises(ValueError, match="cannot be cut"):
        flood_chips.cut(image, 4)


def test_the_numbers_of_tiles_are_the_published_ones():
    """Spec property 18: 341 + 90 chips, 1,092 / 272 / 360 tiles; nothing is read for that."""
    facts = data_config("sen1floods11")
    sizes = {split: of["chips"] for split, of in facts["splits"].items()}
    assert list(sizes.values()) == [252, 89, 90, 15] and facts["bands"] == [1, 2, 3, 8, 11, 12]
    chips = Chips("none", facts["side"], {}, read=None, identity="")
    tiles = flood_chips.tiles(chips, [str(n) for n in range(sizes["train"] + sizes["validation"])], 256)
    train, validation = flood_chips.released_split(len(tiles))
    assert (len(tiles), len(train), len(validation)) == (1364, 1092, 272)
    assert sorted(train + validation) == list(range(1364)) and flood_chips.released_split(1364)[1] == validation
    assert len({row // 4 for row in train} & {row // 4 for row in validation}) > 100, "chips on both sides: the leak"
    assert len(flood_chips.tiles(chips, [str(n) for n in range(90)], 256)) == 360


def test_statistics_are_those_of_all_pixels_at_once():
    chips = water_scenes.load(seed=3, train=4)
    tiles = flood_chips.tiles(chips, chips.splits["train"], 64)
    whole = np.stack([chips.pair(name)[0] for name in chips.splits["train"]], 1).reshape(6, -1).astype(float)
    mean, std = flood_chips.statistics(tiles)
    np.testing.assert_allclose(mean, whole.mean(1))
    np.testing.assert_allclose(std, whole.std(1, ddof=1))


def test_statistics_can_leave_out_what_has_no_data():
    image = np.zeros((6, 4, 4), np.int16)
    image[:, 0, 0], image[:, 0, 1] = 10, 20
    empty = np.zeros_like(image)
    read = {"some": (image, np.zeros((4, 4), np.int8)), "none": (empty, np.full((4, 4), -1, np.int8))}
    tiles = flood_chips.tiles(Chips("two", 4, {}, read.__getitem__, "two"), ["none", "some"], 4)
    mean, std = flood_chips.statistics(tiles, known_only=True)
    assert mean.tolist() == [15.0] * 6 and std == pytest.approx([50**0.5] * 6)
    with pytest.raises(ValueError, match="no pixels with data"):
        flood_chips.statistics(tiles.at([0]), known_only=True)


def test_tiles_that_do_not_fill_a_chip_and_splits_that_do_not_exist_are_refused():
    chips = water_scenes.load()
    with pytest.raises(ConfigError, match="tiles of 100 pixels do not fill chips of 128"):
        flood_chips.tiles(chips, chips.splits["test"], 100)
    with pytest.raises(ConfigError, match="did you mean validation"):
        chips.split("valid")
    with pytest.raises(ConfigError, match="did you mean water_scenes"):
        flood_chips.load("water_scene")


# ------------------------------------------------------------------------------------------------ the release


def test_the_release_is_read_in_six_bands_and_its_lists_have_no_header(small):
    at_hand(small)
    chips = flood_chips.load("sen1floods11")
    assert {split: list(names) for split, names in chips.splits.items()} == CHIPS
    for name in ("Ghana_1", "Bolivia_6"):  # the first row of a list is a chip
        image, mask = chips.pair(name)
        own, true = chip(name)
        assert (image == own[[1, 2, 3, 8, 11, 12]]).all() and (mask == true).all()
        assert image.dtype == np.int16 and mask.dtype == np.int8
    assert sen1floods11.chip_of("Ghana_1_S1Hand.tif", "Ghana_1_LabelHand.tif") == "Ghana_1"


def test_it_is_downloaded_over_https_verified_and_gone_on_with(small, monkeypatch):
    folder, bucket = small
    with serving(bucket) as (server, url):
        monkeypatch.setenv("SIGHTLINE_BUCKET_ENDPOINT", url)
        sen1floods11.load()
        files = sorted(path for path in bucket.rglob("*") if path.is_file())
        assert all((folder / path.relative_to(bucket)).read_bytes() == path.read_bytes() for path in files)
        server.asked.clear()
        (folder / IMAGES / "USA_5_S2Hand.tif").unlink()
        sen1floods11.load()
        fetched = [path for path in server.asked if not path.startswith("/storage")]
        assert fetched == [f"/sen1floods11/{IMAGES}/USA_5_S2Hand.tif"]
        server.asked.clear()
        sen1floods11.load()
        assert server.asked == [], "what is there needs no network"


def test_bytes_other_than_the_buckets_are_refused(small, monkeypatch):
    folder, bucket = small
    with serving(bucket) as (_, url):
        monkeypatch.setenv("SIGHTLINE_BUCKET_ENDPOINT", url)
        broken = folder / LABELS / "Ghana_2_LabelHand.tif"
        broken.parent.mkdir(parents=True)
        broken.write_bytes(b"half")
        with pytest.raises(DownloadError, match=r"Ghana_2_LabelHand.tif is not the file it should be"):
            sen1floods11.load()


def test_a_checksum_known_from_elsewhere_counts_too(small, monkeypatch):
    _, bucket = small
    sen1floods11.data_config("sen1floods11")["sha256"]["USA_5"] = "0" * 64
    with serving(bucket) as (_, url):
        monkeypatch.setenv("SIGHTLINE_BUCKET_ENDPOINT", url)
        with pytest.raises(DownloadError, match="its sha256 is"):
            sen1floods11.load()


def test_gsutil_fetches_many_at_once_and_https_the_rest(small, monkeypatch, tmp_path):
    """A gsutil that copies all it is told to but one, and leaves that half done."""
    folder, bucket = small
    program = tmp_path / "bin" / "gsutil"
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/sh
for target; do :; done
while read url; do
  case $url in *USA_5_S2*) printf half > "$target/USA_5_S2Hand.tif_.gstmp"; continue;; esac
  /bin/cp "{bucket}/${{url#gs://sen1floods11/}}" "$target"
done
echo CommandException: 1 file could not be transferred. >&2; exit 1
"""
    )
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(downloads, "GSUTIL_PAYS", 1)
    monkeypatch.setattr(buckets.downloads, "_by_gsutil", lambda *_: pytest.fail("one by one"))
    monkeypatch.delenv("SIGHTLINE_BUCKET_ENDPOINT", raising=False)
    with serving(bucket) as (server, url):
        monkeypatch.setattr(buckets, "PUBLIC", url)
        fetched = []

        def by_https(source, part, timeout_s, report):
            if not (part.exists() and part.stat().st_size == source.bytes):
                fetched.append(source.url)
                part.write_bytes((bucket / source.url.removeprefix("gs://sen1floods11/")).read_bytes())

        monkeypatch.setattr(downloads, "_by_https", by_https)
        monkeypatch.setattr(downloads, "_routes", lambda source: [by_https])
        sen1floods11.load()
    assert fetched == [f"gs://sen1floods11/{IMAGES}/USA_5_S2Hand.tif"]
    for path in (bucket / IMAGES).iterdir():
        assert (folder / IMAGES / path.name).read_bytes() == path.read_bytes()


def test_without_a_network_it_is_said_what_to_do(small, monkeypatch):
    monkeypatch.setenv("SIGHTLINE_BUCKET_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="could not be listed(.|\n)*without a download: .*water_scenes"):
        sen1floods11.load()


def test_a_bucket_that_lacks_a_file_is_refused(small, monkeypatch):
    _, bucket = small
    (bucket / LABELS / "USA_5_LabelHand.tif").unlink()
    with serving(bucket) as (_, url):
        monkeypatch.setenv("SIGHTLINE_BUCKET_ENDPOINT", url)
        with pytest.raises(DownloadError, match="the bucket lacks .*USA_5_LabelHand.tif"):
            sen1floods11.load()


IMAGE, MASK = chip("USA_5")
BAD = {
    "half downloaded": lambda f: truncate(f / IMAGES / "USA_5_S2Hand.tif"),
    "not a picture": lambda f: (f / IMAGES / "USA_5_S2Hand.tif").write_bytes(b"<html>no such object</html>"),
    "has 12 bands, not 13": lambda f: tif(f / IMAGES / "USA_5_S2Hand.tif", IMAGE[:12]),
    "has 32 x 16 pixels": lambda f: tif(f / IMAGES / "USA_5_S2Hand.tif", IMAGE[:, :, :16]),
    "in EPSG:32630": lambda f: tif(f / IMAGES / "USA_5_S2Hand.tif", IMAGE, crs="EPSG:32630"),
    "in no system": lambda f: tif(f / LABELS / "USA_5_LabelHand.tif", MASK[None], crs=None),
    "another place": lambda f: tif(f / LABELS / "USA_5_LabelHand.tif", MASK[None], origin=(10.0, 20.01)),
    "not -1, 0 and 1 alone": lambda f: tif(f / LABELS / "USA_5_LabelHand.tif", (MASK + 2)[None]),
    "has 2 bands, not 1": lambda f: tif(f / LABELS / "USA_5_LabelHand.tif", np.stack([MASK, MASK])),
}
SAYS = {"not a picture": "not recognized"}


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("kind", BAD)
def test_a_chip_that_is_not_as_released_is_refused_by_name(small, kind):
    folder = at_hand(small)
    chips = sen1floods11.load()
    BAD[kind](folder)
    with pytest.raises(DownloadError, match=SAYS.get(kind, kind)) as caught:
        chips.pair("USA_5")
    assert "USA_5" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a_S1Hand.tif,a_LabelHand.tif\n", "names 1 chips, not 3"),
        ("image,label\na_S1Hand.tif,a_LabelHand.tif\n", "are not the names of a chip"),
        ("a_S1Hand.tif,b_LabelHand.tif\n", "are not the names of a chip"),
    ],
    ids=["short", "with a header", "mixed up"],
)
def test_a_list_that_is_not_as_released_is_refused(small, text, why):
    folder = at_hand(small)
    (folder / "v1.1/splits/flood_handlabeled/flood_train_data.csv").write_text(text)
    with pytest.raises(DownloadError, match=f"flood_train_data.csv is not as released: .*{why}"):
        sen1floods11.load()


# ------------------------------------------------------------------------------------------ subsets at hand


@needs_chips
def test_the_subsets_at_hand_load_through_the_same_code():
    """Spec property 18, as far as the lists at hand go."""
    hand = flood_chips.load("sen1floods11/hand18")
    assert {split: len(names) for split, names in hand.splits.items()} == {"test": 3, "bolivia": 15}
    image, mask = hand.pair("Bolivia_103757")
    assert image.shape == (6, 512, 512) and (mask >= 0).mean() == pytest.approx(0.336, abs=1e-3)
    folder = downloads.data_root() / "sen1floods11_subset" / "splits"
    lists = {path.stem: path.read_text().split() for path in folder.iterdir()}
    assert {name: len(rows) for name, rows in lists.items()} == {"train": 252, "val": 89, "test": 90, "bolivia": 15}
    assert lists["train"][0] == "Ghana_103272" and lists["test"][33] == "Nigeria_812045"
    water = flood_chips.load("water_multispectral")
    assert {split: len(names) for split, names in water.splits.items()} == {"train": 204, "validation": 51, "test": 51}
    image, mask = water.pair("255")
    with np.load(downloads.data_root() / "water_multispectral" / "chips_255-305.npz") as file:
        assert (image == file["image"][0]).all() and (mask == file["label"][0]).all()


def test_subsets_that_are_not_at_hand_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGHTLINE_DATA", str(tmp_path))
    for name in ("sen1floods11/hand18", "water_multispectral"):
        with pytest.raises(DownloadError, match="by hand: put the files there(.|\n)*water_scenes"):
            flood_chips.load(name)
    with pytest.raises(ConfigError, match="unknown data set"):
        flood_chips.load("sen1floods11/hand19")


WATER_FILES = ("chips_0-1.npz", "chips_2-3.npz")
HAND_FILES = ("chips/a.npz", "chips/b.npz", "test.txt")


def write_subset(folder, name, bands=6):
    """The files of a subset in small; returns their checksums as its YAML has them."""
    image, mask = np.zeros((bands, SIDE, SIDE), np.int16), np.ones((SIDE, SIDE), np.int8)
    (folder / "chips").mkdir(parents=True, exist_ok=True)
    (folder / "test.txt").write_text("a b")
    for file in HAND_FILES[:2]:
        np.savez(folder / file, s2=image, label=mask)
    for file in WATER_FILES:
        np.savez(folder / file, image=np.stack([image] * 2), label=np.stack([mask] * 2))
    files = WATER_FILES if name == "water_multispectral" else HAND_FILES
    return {file: {"sha256": artifacts.sha256(folder / file)} for file in files}


@pytest.fixture(params=["water_multispectral", "sen1floods11/hand18"])
def subset(request, monkeypatch, tmp_path):
    """(name, folder, facts) of a subset of a few chips, the last of which is in the last ``npz`` file."""
    monkeypatch.setenv("SIGHTLINE_DATA", str(tmp_path))
    name, facts = request.param, copy.deepcopy(data_config(request.param.split("/")[0]))
    of = facts.get("subsets", {}).get("hand18", facts)
    of |= {"folder": "here", "files": write_subset(tmp_path / "here", name)}
    facts["side"] = SIDE
    test = {"first": 0, "chips": 4} if name == "water_multispectral" else {"file": "test.txt", "chips": 2}
    of["splits"] = {"test": test}
    module = water_multispectral if name == "water_multispectral" else sen1floods11
    monkeypatch.setattr(module, "data_config", lambda _: facts)
    return name, tmp_path / "here", of


def test_a_file_of_a_subset_that_is_cut_off_or_another_is_refused_by_name(subset):
    name, folder, of = subset
    chips = flood_chips.load(name)
    assert (chips.pair(chips.split("test")[-1])[1] == WATER).all()
    path = [folder / file for file in of["files"] if file.endswith(".npz")][-1]
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole.replace(b"label", b"lapel"), b"<html>no such file</html>"):
        path.write_bytes(content)
        with pytest.raises(DownloadError, match=f"{path.name} is not the file it should be(.|\n)*by hand"):
            flood_chips.load(name)


def test_a_chip_of_a_subset_that_lacks_a_band_is_refused_by_name(subset):
    name, folder, of = subset
    of["files"] = write_subset(folder, name, bands=5)
    chips = flood_chips.load(name)
    last = chips.split("test")[-1]
    with pytest.raises(DownloadError, match=rf"the image of {last} is \(5, 32, 32\), not 6 bands"):
        chips.pair(last)


# ------------------------------------------------------------------------------------------------ drawn scenes


def test_a_drawn_chip_depends_on_seed_and_name_alone():
    few, many = water_scenes.load(test=2), water_scenes.load(test=9, train=1)
    for one, other in zip(few.pair("test-001"), many.pair("test-001"), strict=True):
        assert (one == other).all()
    assert (few.pair("test-001")[0] != water_scenes.load(seed=1).pair("test-001")[0]).any()
    assert few.identity != water_scenes.load(seed=1).identity


def test_drawn_scenes_are_what_the_yaml_says():
    chips = water_scenes.load()
    pairs = [chips.pair(name) for name in chips.splits["train"][:60]]
    images, masks = (np.stack(part) for part in zip(*pairs, strict=True))
    assert images.dtype == np.int16 and images.min() == 0 and images.max() <= 12_000
    empty = ~images.any(1)
    assert (masks[empty] == NO_DATA).all() and 0 < empty.any((1, 2)).mean() < 0.35
    dry = (~(masks == WATER).any((1, 2))).mean()
    assert 0.02 < dry < 0.4, "some chips have no water"
    near_infrared = images[:, 3]
    assert near_infrared[masks == WATER].mean() < 0.6 * near_infrared[masks == 0].mean()


def test_a_side_of_sixteen_tiles_is_read_chip_by_chip(monkeypatch):
    chips = water_scenes.load(test=2)
    tiles = flood_chips.tiles(chips, chips.splits["test"], 32)
    assert len(tiles) == 32 and SIDE == 32
    image, mask = tiles[17]
    whole, truth = chips.pair("test-001")
    assert (image == whole[:, :32, 32:64]).all() and (mask == truth[:32, 32:64]).all()
    assert (tiles.masks()[17] == mask).all()
    batches = list(tiles.at([3, 17]).batches(1))
    assert len(batches) == 2 and (batches[1][0][0] == image).all()
