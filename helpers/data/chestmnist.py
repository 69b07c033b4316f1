"""ChestMNIST: chest X-rays, 28 x 28, grey, with a finding or without one (``data_configs/chestmnist.yaml``)."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from helpers.config import data_config
from helpers.data.images import HINT, Images, check_split, data_root, preprocess_of
from helpers.downloads import DownloadError, Source, fetch


def load(split: str = "test", size: int | None = None, data_dir: str | Path | None = None) -> Images:
    """``x`` uint8 [N, 1, 28, 28]; as input in [-1, 1]. ``y`` is 1 where any of the 14 findings is labelled (spec
    cnn_lsx, section 5). ``split``: "train", "test" or the release's own "val".

    The release's file lies in ``ChestMNIST/chestmnist.npz``, or is downloaded. Raises `DownloadError` if it cannot be
    had, has not its published md5 or does not hold what the release does.
    """
    config = data_config("chestmnist")
    check_split(split, tuple(config["splits"]))
    path = data_root(data_dir) / "ChestMNIST" / "chestmnist.npz"
    fetch(Source(**config["file"]), path, hint=HINT, progress=not path.exists())
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pixels, findings = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DownloadError(f"{path} cannot be read ({error}): delete it and run again") from error
    expected = config["splits"][split]["images"]
    if pixels.dtype != np.uint8 or pixels.shape != (expected, 28, 28) or len(findings) != expected:
        raise DownloadError(
            f"{path} holds {pixels.dtype} {pixels.shape} of {split!r}, not uint8 {(expected, 28, 28)} and as many "
            "labels: delete it and run again"
        )
    y = torch.from_numpy(findings.any(1)).long()
    return Images(torch.from_numpy(pixels)[:, None], y, tuple(config["classes"]), preprocess_of(config, size))
