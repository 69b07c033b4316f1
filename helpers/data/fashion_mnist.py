"""Fashion-MNIST: 60,000 and 10,000 photographs of clothes, 28 x 28, grey (``data_configs/fashion_mnist.yaml``)."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from helpers.config import data_config
from helpers.data.images import HINT, Images, check_split, data_root, preprocess_of
from helpers.downloads import DownloadError, Source, fetch

UNSIGNED_BYTES = b"\0\0\x08"  # what an idx file of uint8 begins with


def load(split: str = "test", size: int | None = None, data_dir: str | Path | None = None) -> Images:
    """``x`` uint8 [N, 1, 28, 28]; as input in [-1, 1] (spec cnn_lsx, section 13).

    The four idx files lie packed in ``FashionMNIST/raw``, where torchvision keeps them too; what is missing is
    downloaded. Every file has to have its published md5. Raises `DownloadError` if one cannot be had or is another.
    """
    check_split(split)
    config, root = data_config("fashion_mnist"), data_root(data_dir) / "FashionMNIST" / "raw"
    arrays = []
    for name in config["splits"][split]["files"]:
        path = root / name
        arrays.append(read(fetch(Source(**config["files"][name]), path, hint=HINT, progress=not path.exists())))
    x, y = arrays
    if len(y) != (expected := config["splits"][split]["images"]):
        raise DownloadError(f"{root} holds {len(y)} images of {split!r}, not {expected}: delete it and run again")
    return Images(x[:, None], y.long(), tuple(config["classes"]), preprocess_of(config, size))


def read(path: Path) -> Tensor:
    """uint8 [...]: the content of a packed idx file. Raises `DownloadError` for a file that is none."""
    try:
        with gzip.open(path) as file:
            content = file.read()
        if not content.startswith(UNSIGNED_BYTES):
            raise ValueError("it is no idx file of uint8")
        start = 4 + 4 * content[3]
        shape = struct.unpack(f">{content[3]}I", content[4:start])
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())
    except (OSError, EOFError, zlib.error, struct.error, ValueError, IndexError) as error:
        raise DownloadError(f"{path} cannot be read ({error}): delete it and run again") from error
