"""MNIST: 60,000 and 10,000 handwritten digits, 28 x 28, grey (``data_configs/mnist.yaml``)."""

from __future__ import annotations

import gzip
import zlib
from functools import lru_cache
from pathlib import Path

from helpers import artifacts, runtime
from helpers.config import data_config
from helpers.data.images import HINT, Images, check_split, data_root, preprocess_of
from helpers.downloads import DownloadError, Source, fetch


def load(split: str = "test", size: int | None = None, data_dir: str | Path | None = None) -> Images:
    """``x`` uint8 [N, 1, 28, 28]; as input 32 x 32 in [0, 1] (spec explainnn, section 7.1).

    The four idx files lie unpacked in ``MNIST/raw``, as torchvision keeps them; what is missing is downloaded. Every
    file has to have its published bytes. Raises `DownloadError` if one cannot be had or is another.
    """
    check_split(split)
    config, root = data_config("mnist"), data_root(data_dir)
    for name, facts in config["files"].items():
        path = root / "MNIST" / "raw" / name
        if not path.exists():
            _download(path, facts)
        _verify(path, facts["sha256"], path.stat().st_mtime_ns)
    digits = runtime.import_torchvision().datasets.MNIST(str(root), train=split == "train", download=False)
    return Images(digits.data[:, None], digits.targets.long(), tuple(config["classes"]), preprocess_of(config, size))


def _download(path: Path, facts: dict) -> None:
    """The unpacked file from the mirror's packed one, which is not kept."""
    packed = fetch(Source(**facts["packed"]), path.with_name(path.name + ".gz"), hint=HINT)
    try:
        with gzip.open(packed) as file:
            content = file.read(facts["bytes"] + 1)  # never more, whatever the archive says
    except (OSError, EOFError, zlib.error) as error:
        raise DownloadError(f"{packed} cannot be unpacked ({error}): delete it and run again") from error
    artifacts.atomic_write(path, content)
    packed.unlink()


@lru_cache
def _verify(path: Path, sha256: str, *version: int) -> None:
    if (found := artifacts.sha256(path)) != sha256:
        raise DownloadError(
            f"{path} is not the file it should be: its sha256 is {found}, not {sha256}\n"
            f"  delete it and run again, which downloads it\n  without a download: {HINT}"
        )
