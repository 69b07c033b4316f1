"""CIFAR-10: 50,000 and 10,000 photographs, 32 x 32, of ten classes (``data_configs/cifar10.yaml``).

Read from the binary version of the release, which, unlike the one for Python, holds no pickles.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from helpers.config import data_config
from helpers.data import files
from helpers.data.images import Images, check_split, data_root, preprocess_of
from helpers.downloads import DownloadError, Source

SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE  # bytes: the label, then the red, green and blue planes


def load(split: str = "test", size: int | None = None, data_dir: str | Path | None = None) -> Images:
    """``x`` uint8 [N, 3, 32, 32]; as input in [-1, 1] (spec explainnn, section 7.1).

    The files lie in ``CIFAR10/cifar-10-batches-bin``, or are downloaded as one archive and unpacked there. Raises
    `DownloadError` if they cannot be had or do not hold what the release does.
    """
    check_split(split)
    config, root = data_config("cifar10"), data_root(data_dir) / "CIFAR10"
    names = config["splits"][split]["files"]
    if not all((root / name).exists() for name in names):
        files.download(Source(**config["archive"]), root)
    parts = [read(root / name, len(config["classes"])) for name in names]
    x, y = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    if len(y) != (expected := config["splits"][split]["images"]):
        raise DownloadError(f"{root} holds {len(y)} images of {split!r}, not {expected}: delete it and run again")
    return Images(x, y, tuple(config["classes"]), preprocess_of(config, size))


def read(path: Path, n_classes: int = 10) -> tuple[Tensor, Tensor]:
    """(x uint8 [N, 3, 32, 32], y int64 [N]) of one file of the binary version. Raises `DownloadError` for a file that
    is none."""
    content = np.fromfile(path, np.uint8)
    records = content[: len(content) // RECORD * RECORD].reshape(-1, RECORD)
    if len(content) % RECORD or not len(content) or records[:, 0].max() >= n_classes:
        raise DownloadError(f"{path} is not a file of CIFAR-10's binary version: delete it and run again")
    y = torch.from_numpy(records[:, 0].astype(np.int64))
    return torch.from_numpy(records[:, 1:].reshape(-1, 3, SIDE, SIDE).copy()), y
