"""Stanford Cars is read where it was put by hand, from a mirror, or as the subset at hand; nobody hosts it any more."""

import copy
import hashlib
import io
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from helpers import downloads
from helpers.config import ConfigError, data_config
from helpers.data import cars
from helpers.downloads import DownloadError, Patience

CLASSES = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012"]
TRAIN, TEST = [2, 1, 3], [3, 1]  # classes, from 1

needs_subset = pytest.mark.skipif(
    not (downloads.data_root() / "stanford_cars_subset20" / "labels.csv").exists(),
    reason="stanford_cars_subset20 is not under SIGHTLINE_DATA: it may not be redistributed",
)


def write_annotations(path, labels):
    """As the devkit has them: MATLAB's structs."""
    fields = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    rows = np.empty((1, len(labels)), dtype=[f for f in fields if labels[0] or f[0] != "class"])
    for i, label in enumerate(labels):
        values = (3, 4, 30, 20, label, f"{i + 1:05}.jpg")
        rows[0, i] = values if label else values[:4] + values[5:]
    savemat(path, {"annotations": rows})


def write_release(folder):
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array([CLASSES], dtype=object)})
    write_annotations(folder / "devkit" / "cars_train_annos.mat", TRAIN)
    write_annotations(folder / "cars_test_annos_withlabels.mat", TEST)
    for name, labels in (("cars_train", TRAIN), ("cars_test", TEST)):
        (folder / name).mkdir()
        for i, label in enumerate(labels):
            mode, colour = ("L", 60) if i == 0 else ("RGB", (60, 60 * label, 0))  # some are grey
            Image.new(mode, (40 + i, 30), colour).save(folder / name / f"{i + 1:05}.jpg")


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """The configuration, of 3 images to train and 2 to test on, and an empty folder for data."""
    changed = copy.deepcopy(data_config("cars"))
    changed["splits"]["train"]["images"], changed["splits"]["test"]["images"] = len(TRAIN), len(TEST)
    monkeypatch.setattr(cars, "data_config", lambda name: changed)
    monkeypatch.setenv("SIGHTLINE_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("SIGHTLINE_CARS", raising=False)
    monkeypatch.setattr(downloads, "PATIENCE", Patience(retries=0))
    return changed


@pytest.fixture
def official(settings, tmp_path):
    write_release(tmp_path / "data" / "stanford_cars")
    return tmp_path / "data" / "stanford_cars"


@pytest.fixture
def mirror(tmp_path):
    """(folder, url) of a server on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path / "mirror"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def check():
    for split, labels in (("train", TRAIN), ("test", TEST)):
        found = cars.load(split)
        assert found.labels.tolist() == [label - 1 for label in labels] and found.classes == tuple(CLASSES)
        assert [found.open(i).size for i in range(len(labels))] == [(40 + i, 30) for i in range(len(labels))]
        assert found.open(0).mode == "RGB"


def test_torchvisions_layout_is_read(official):
    check()
    path = official / "cars_test_annos_withlabels.mat"
    path.rename(official / "devkit" / path.name)
    check()


def test_torchvision_reads_the_same(official):
    torchvision = pytest.importorskip("torchvision")
    for split in ("train", "test"):
        theirs, ours = torchvision.datasets.StanfordCars(str(official.parent), split), cars.load(split)
        assert [label for _, label in theirs] == ours.labels.tolist() and theirs.classes == list(ours.classes)


@pytest.mark.parametrize("inner", ["stanford_cars/", ""])
def test_a_mirror_is_downloaded_verified_and_unpacked(settings, mirror, tmp_path, monkeypatch, inner):
    folder, url = mirror
    write_release(tmp_path / "release")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path in sorted((tmp_path / "release").rglob("*.*")):
            archive.add(path, f"{inner}{path.relative_to(tmp_path / 'release')}")
    (folder / "cars.tgz").write_bytes(packed.getvalue())
    right = hashlib.sha256(packed.getvalue()).hexdigest()

    monkeypatch.setenv("SIGHTLINE_CARS", f"{url}/cars.tgz#sha256={'0' * 64}")
    with pytest.raises(DownloadError, match=f"its sha256 is {right}, not 0000"):
        cars.load()
    monkeypatch.setenv("SIGHTLINE_CARS", f"{url}/cars.tgz#sha256={right}")
    check()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["stanford_cars"]
    monkeypatch.delenv("SIGHTLINE_CARS")
    check()


def test_a_mirror_without_a_checksum_is_refused(settings, monkeypatch):
    monkeypatch.setenv("SIGHTLINE_CARS", "http://127.0.0.1:9/cars.tgz")
    with pytest.raises(ConfigError, match="SIGHTLINE_CARS must be <url>#sha256=<digits>"):
        cars.load()
    monkeypatch.setenv("SIGHTLINE_CARS", "http://127.0.0.1:9/cars.tgz#md5=12")
    with pytest.raises(ConfigError, match="md5"):
        cars.load()


def test_what_is_missing_is_named_with_where_to_put_it(settings, official, tmp_path):
    (official / "devkit" / "cars_meta.mat").unlink()
    with pytest.raises(DownloadError, match=r"no .*cars_meta.mat in (.|\n)*by hand: put cars_train/, cars_test/"):
        cars.load()
    with pytest.raises(DownloadError) as caught:
        cars.load(data_dir=tmp_path / "elsewhere")
    text = str(caught.value)
    assert str(tmp_path / "elsewhere" / "stanford_cars") in text and "its authors' site is gone" in text
    assert "SIGHTLINE_CARS=" in text and "ToyBirds" in text


def test_a_release_with_something_wrong_is_refused(official, settings):
    (official / "cars_train" / "00002.jpg").unlink()
    with pytest.raises(DownloadError, match="cars_train lacks 1 of 3 images, the first is 00002.jpg"):
        cars.load("train")
    write_annotations(official / "cars_test_annos_withlabels.mat", [None, None])  # the public list has no labels
    with pytest.raises(DownloadError, match="has no labels .*the list with labels is needed"):
        cars.load("test")
    write_annotations(official / "cars_test_annos_withlabels.mat", [1, 4])
    with pytest.raises(DownloadError, match="none of the 3 classes"):
        cars.load("test")
    write_annotations(official / "cars_test_annos_withlabels.mat", [1])
    with pytest.raises(DownloadError, match="lists 1 images of 'test', not 2"):
        cars.load("test")
    (official / "cars_test_annos_withlabels.mat").write_bytes(b"no MATLAB file")
    with pytest.raises(DownloadError, match="cars_test_annos_withlabels.mat is not the file of the release"):
        cars.load("test")


def test_unknown_splits_and_subsets_are_refused(official):
    with pytest.raises(ConfigError, match="unknown split 'val'"):
        cars.load("val")
    with pytest.raises(ConfigError, match="no subset 'subset10' .*did you mean subset20"):
        cars.load(subset="subset10")
    with pytest.raises(DownloadError, match=r"Cars' subset20: no classes.txt(.|\n)*nor is the whole"):
        cars.load(subset="subset20")


@needs_subset
def test_the_subset_is_the_described_one():
    train, test = cars.load("train", subset="subset20"), cars.load("test", subset="subset20")
    assert (len(train), len(test)) == (575, 248) and train.classes == test.classes and len(train.classes) == 20
    assert train.classes[0] == "AM General Hummer SUV 2000" and train.labels.bincount().min() > 20
    assert not {name for _, name in train.items} & {name for _, name in test.items}
    assert train.open(0).size == (400, 224) and test.open(0).size == (78, 50)
