"""MNIST, CIFAR-10 and Imagenette are read as released, verified, and where they cannot be had it is said what to do."""

import copy
import gzip
import hashlib
import io
import struct
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import config, downloads
from helpers.config import data_config
from helpers.data import cifar10, files, imagenette, mnist
from helpers.data.images import load
from helpers.downloads import DownloadError


def there(*names):
    return all((downloads.data_root() / name).exists() for name in names)


needs_mnist = pytest.mark.skipif(
    not there("MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/t10k-labels-idx1-ubyte"),
    reason="MNIST is not under SIGHTLINE_DATA (in CI it is): nothing to compare with",
)
needs_imagenette = pytest.mark.skipif(
    not there("imagenette2_160_subset/labels.csv"),
    reason="imagenette2_160_subset is not under SIGHTLINE_DATA: it may not be redistributed",
)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def configured(monkeypatch, module, name, change):
    """``module`` with its configuration changed by ``change(copy of it)``."""
    changed = copy.deepcopy(data_config(name))
    change(changed)
    monkeypatch.setattr(module, "data_config", lambda asked: changed if asked == name else data_config(asked))
    return changed


# --------------------------------------------------------------------------------------------------- MNIST


def idx(array):
    """The bytes of an idx file of uint8."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def small_mnist(monkeypatch, elsewhere):
    """(served, arrays): 8 digits to train and 4 to test on, in the mirror's packed files."""
    draws, arrays = np.random.default_rng(0), {}
    for name, n in (("train", 8), ("t10k", 4)):
        arrays[f"{name}-images-idx3-ubyte"] = draws.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{name}-labels-idx1-ubyte"] = draws.integers(0, 10, n, dtype=np.uint8)

    def change(settings):
        for name, array in arrays.items():
            packed = gzip.compress(idx(array))
            url = settings["files"][name]["packed"]["url"]
            elsewhere[url] = packed
            settings["files"][name] = {
                "bytes": len(idx(array)), "sha256": sha256(idx(array)),
                "packed": {"url": url, "sha256": sha256(packed), "bytes": len(packed)},
            }  # fmt: skip

    configured(monkeypatch, mnist, "mnist", change)
    return elsewhere, arrays


def test_mnist_is_downloaded_verified_unpacked_and_read(small_mnist, tmp_path):
    served, arrays = small_mnist
    for split, name in (("train", "train"), ("test", "t10k")):
        data = load("MNIST", split)
        assert torch.equal(data.x[:, 0], torch.from_numpy(arrays[f"{name}-images-idx3-ubyte"]))
        assert data.y.tolist() == arrays[f"{name}-labels-idx1-ubyte"].tolist() and data.y.dtype == torch.int64
        assert data.inputs().shape == (len(data), 1, 32, 32) and load("MNIST", split, 28).inputs().shape[2:] == (28, 28)
    assert {path.name for path in (tmp_path / "MNIST" / "raw").iterdir()} == set(arrays), "nothing is left over"
    served.clear()
    load("MNIST", data_dir=tmp_path)  # from what is there


def test_a_changed_file_of_mnist_is_refused(small_mnist, tmp_path):
    load("MNIST")
    path = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(DownloadError, match=r"t10k-labels-idx1-ubyte is not the file it should be(.|\n)*delete it"):
        load("MNIST")


def test_an_unreachable_mirror_is_one_clear_error(elsewhere, tmp_path):
    with pytest.raises(DownloadError) as caught:
        load("MNIST")
    text = str(caught.value)
    assert "tried: https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz: no route to host" in text
    assert "by hand: put the file with sha256 440fcabf" in text and str(tmp_path / "MNIST" / "raw") in text
    assert "without a download: what is shipped needs no data" in text


def test_a_broken_torchvision_is_said_to_be_broken(small_mnist, monkeypatch):
    import builtins

    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ImportError, match="torchvision cannot be imported beside torch"):
        load("MNIST")


@needs_mnist
def test_mnist_is_the_published_one():
    test, train = load("MNIST", "test"), load("MNIST", "train")
    assert test.x.shape == (10000, 1, 28, 28) and train.x.shape == (60000, 1, 28, 28)
    assert train.y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test.y[:5].tolist() == [7, 2, 1, 0, 4] and test.classes == tuple("0123456789")
    assert train.x.float().mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    x = test.inputs([0, 1])
    assert x.shape == (2, 1, 32, 32) and x.dtype == torch.float32 and x.min() == 0 and 0.9 < x.max() <= 1


# ------------------------------------------------------------------------------------------------- CIFAR-10


def records(n, seed=0):
    draws = np.random.default_rng(seed)
    pixels, labels = draws.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), draws.integers(0, 10, n, dtype=np.uint8)
    return pixels, labels, b"".join(bytes([y]) + x.tobytes() for x, y in zip(pixels, labels, strict=True))


def tar_of(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture
def small_cifar10(monkeypatch, elsewhere):
    """A release of 3 images a file."""
    names = [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)] + ["cifar-10-batches-bin/test_batch.bin"]
    parts = {name: records(3, seed) for seed, name in enumerate(names)}
    packed = tar_of({name: part[2] for name, part in parts.items()})

    def change(settings):
        settings["archive"] |= {"sha256": sha256(packed), "bytes": len(packed)}
        settings["splits"]["train"]["images"], settings["splits"]["test"]["images"] = 15, 3
        elsewhere[settings["archive"]["url"]] = packed

    configured(monkeypatch, cifar10, "cifar10", change)
    return parts


def test_cifar10_is_downloaded_unpacked_and_read(small_cifar10, tmp_path):
    test, train = load("CIFAR10", "test"), load("CIFAR10", "train")
    *batches, last = small_cifar10.values()
    assert torch.equal(test.x, torch.from_numpy(last[0])) and test.y.tolist() == last[1].tolist()
    assert torch.equal(train.x, torch.from_numpy(np.concatenate([batch[0] for batch in batches])))
    assert train.y.tolist() == [label for batch in batches for label in batch[1].tolist()]
    assert torch.allclose(test.inputs(), test.x / 127.5 - 1, atol=1e-6), "mean and deviation of one half"
    assert test.classes[3] == "cat" and [path.name for path in tmp_path.iterdir()] == ["CIFAR10"]


def test_what_is_not_cifar10s_binary_version_is_refused(tmp_path, small_cifar10):
    load("CIFAR10")
    path = tmp_path / "CIFAR10" / "cifar-10-batches-bin" / "test_batch.bin"
    whole = path.read_bytes()
    for content in (whole[:-1], b"", bytes([10]) + whole[1:]):
        path.write_bytes(content)
        with pytest.raises(DownloadError, match="test_batch.bin is not a file of CIFAR-10's binary version"):
            load("CIFAR10")
    path.write_bytes(whole[: cifar10.RECORD])
    with pytest.raises(DownloadError, match="holds 1 images of 'test', not 3: delete it and run again"):
        load("CIFAR10")


def test_a_folder_that_is_there_is_never_replaced(small_cifar10, tmp_path):
    (tmp_path / "CIFAR10").mkdir()
    with pytest.raises(DownloadError, match="CIFAR10 is there, but is not what it should be: delete or move it"):
        load("CIFAR10")


def test_two_processes_that_want_one_folder_unpack_it_once(tmp_path, monkeypatch):
    unpacked, folder = [], tmp_path / "data" / "one"

    def unpack(source, folder, hint):
        unpacked.append(folder)
        time.sleep(0.2)
        folder.mkdir()

    monkeypatch.setattr(files, "_unpack", unpack)
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda _: files.download(None, folder), range(2)))
    assert unpacked == [folder]


def test_without_a_network_cifar10_says_what_to_do(elsewhere):
    with pytest.raises(DownloadError, match=r"binary.tar.gz: no route(.|\n)*by hand: (.|\n)*without a download"):
        load("CIFAR10")


# ----------------------------------------------------------------------------------------------- Imagenette


def jpeg(colour):
    content = io.BytesIO()
    Image.new("RGB", (200, 160), colour).save(content, "JPEG", quality=95)
    return content.getvalue()


@pytest.fixture
def small_imagenette(monkeypatch, elsewhere, tmp_path):
    """Two classes, two images to train on and one to test on each."""
    folder, rows = tmp_path / "imagenette2_160_subset", ["file,split,label"]
    folder.mkdir()
    wnids = ["n1", "n2"]
    for label, wnid in enumerate(wnids):
        with zipfile.ZipFile(folder / f"{wnid}.zip", "w") as archive:
            for index, split in enumerate(["train", "train", "val"]):
                name = f"{split}/{wnid}/{index}.JPEG"
                archive.writestr(name, jpeg((100 * label, 50 * index, 0)))
                rows.append(f"{name},{split},{label}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")

    def change(settings):
        settings["classes"] = {0: ["tench", "n1"], 1: ["springer", "n2"]}
        settings["files"] = {
            path.name: {"sha256": sha256(path.read_bytes()), "bytes": path.stat().st_size} for path in folder.iterdir()
        }

    configured(monkeypatch, imagenette, "imagenette", change)
    return folder


def test_imagenette_is_read_from_its_zips_which_stay_packed(small_imagenette):
    before = sorted(small_imagenette.parent.rglob("*"))
    train, test = load("Imagenette", "train", 64), load("Imagenette", "test", 64)
    assert train.y.tolist() == [0, 0, 1, 1] and test.y.tolist() == [0, 1] and train.classes == ("tench", "springer")
    colours = train.x[:].float().mean((2, 3)).round().tolist()
    expected = [[0, 0, 0], [0, 50, 0], [100, 0, 0], [100, 50, 0]]
    assert np.abs(np.array(colours) - expected).max() <= 2
    assert test.inputs([1]).shape == (1, 3, 64, 64)
    assert sorted(small_imagenette.parent.rglob("*")) == before


def test_a_missing_or_changed_file_of_imagenette_is_named(small_imagenette):
    path = small_imagenette / "n2.zip"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!")
    with pytest.raises(DownloadError, match=r"n2.zip is not the file it should be(.|\n)*by hand"):
        load("Imagenette")
    path.unlink()
    with pytest.raises(DownloadError, match=r"no n2.zip in (.|\n)*'ImagenetteFull' is downloaded(.|\n)*without"):
        load("Imagenette")


def test_the_whole_of_imagenette_is_downloaded_and_unpacked(monkeypatch, elsewhere, tmp_path):
    files = {f"imagenette2-160/{s}/{w}/{i}.JPEG": jpeg((90, 0, 0)) for s in ("train", "val") for w in ("n2", "n1")
             for i in range(2)}  # fmt: skip
    packed = tar_of(files)

    def change(settings):
        settings["archive"] = {"url": settings["archive"]["url"], "sha256": sha256(packed)}
        settings["classes"] = {0: ["tench", "n1"], 1: ["springer", "n2"]}
        settings["splits"]["train"]["images_full"] = settings["splits"]["test"]["images_full"] = 4
        elsewhere[settings["archive"]["url"]] = packed

    configured(monkeypatch, imagenette, "imagenette", change)
    data = load("ImagenetteFull", "test", 32)
    assert data.y.tolist() == [0, 0, 1, 1] and data.classes == ("tench", "springer") and data.inputs().shape[0] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["imagenette2-160"]
    (tmp_path / "imagenette2-160" / "val" / "n1" / "0.JPEG").unlink()
    with pytest.raises(DownloadError, match="holds 3 images of 'test', not 4"):
        load("ImagenetteFull", "test")


@needs_imagenette
def test_imagenette_is_the_described_subset():
    for split, n in (("train", 2000), ("test", 800)):
        data = load("Imagenette", split, 128)
        assert data.y.bincount().tolist() == [n // 10] * 10
    assert data.classes[0] == "tench" and data.classes[9] == "parachute"
    x = data.inputs(torch.arange(0, 800, 100))
    assert x.shape == (8, 3, 128, 128) and -2.2 < x.min() < x.max() < 2.7


def test_the_data_that_tests_use_are_ignored_by_git():
    assert "/data/" in (config.ROOT / ".gitignore").read_text().splitlines()
