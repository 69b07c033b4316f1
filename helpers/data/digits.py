"""Digits: 1,797 handwritten digits, 8 x 8, grey, that scikit-learn carries (``data_configs/digits.yaml``): real images
for where none were downloaded."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from helpers import runtime
from helpers.config import data_config
from helpers.data.images import Images, check_split, preprocess_of


def load(split: str = "test", size: int | None = None, data_dir: str | Path | None = None) -> Images:
    """``x`` uint8 [N, 1, 8, 8]; as input 32 x 32 in [0, 1], as MNIST's. ``data_dir`` is not needed.

    The set has no split of its own by which its writers were kept apart; ours is drawn with a fixed seed.
    """
    check_split(split)
    config = data_config("digits")
    bunch = _bunch()
    x = (torch.from_numpy(bunch.images) * 255 / 16).round().to(torch.uint8)[:, None]
    order = torch.randperm(len(x), generator=runtime.generator(config["splits"]["seed"], "digits"))
    n_train = config["splits"]["train"]["images"]
    rows = order[:n_train] if split == "train" else order[n_train:]
    y = torch.from_numpy(bunch.target).long()
    return Images(x[rows], y[rows], tuple(config["classes"]), preprocess_of(config, size))


@cache
def _bunch():
    """All of them, read once: they are parsed from text."""
    from sklearn.datasets import load_digits  # takes a second

    return load_digits()
