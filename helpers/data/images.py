"""Labelled images of any source as one type, and `load`, which finds them by the name of their data set.

Pixels are kept as they are stored, uint8, and become a network's input (`Preprocess`) only when they are asked for.
Photographs are not even decoded before: a hundred images of a large folder cost a hundred images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from helpers import downloads
from helpers.config import ROOT, ConfigError, Settings, Several, data_config, suggest

SPLITS = ("train", "test")
HINT = "what is shipped needs no data: RETRAIN=False and REEVALUATE=False read it"

Rows = int | slice | Sequence[int] | Tensor
"""One image, or several by their indices or a bool mask."""


class Preprocess(Settings):
    """From stored pixels to a network's input (spec explainnn, section 7.1): the shorter side is resized to ``size``,
    the middle is cut out, and (x - mean) / std is taken of values in [0, 1]. ``mean`` and ``std`` have one value a
    channel, or one for all."""

    size: int = Field(32, ge=1, description="pixels a side of the input")
    mean: Several[float] = (0.0,)
    std: Several[float] = (1.0,)

    @model_validator(mode="after")
    def _usable(self) -> Preprocess:
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise ValueError(f"mean and std need as many values, std positive ones, not {self.mean} and {self.std}")
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` [B, C, H, W], uint8 or float32 in [0, 1], to float32 [B, C, size, size]. Raises ``ValueError`` for
        another type or shape, or other channels than ``mean`` is of."""
        return self.normalise(self.fit(self.unit(x)))

    def fit(self, x: Tensor) -> Tensor:
        """``x`` float32 [B, C, H, W] with its shorter side resized (bilinear) to ``size`` and the middle cut out."""
        height, width = x.shape[-2:]
        if min(height, width) != self.size:
            shape = resized(height, width, self.size)
            x = F.interpolate(x, shape, mode="bilinear", align_corners=False, antialias=min(height, width) > self.size)
        top, left = (x.shape[-2] - self.size) // 2, (x.shape[-1] - self.size) // 2
        return x[..., top : top + self.size, left : left + self.size]

    def normalise(self, x: Tensor) -> Tensor:
        """(x - mean) / std for ``x`` float32 [B, C, H, W] in [0, 1]."""
        if self.mean == (0.0,) and self.std == (1.0,):
            return x
        mean, std = self._scales(x)
        return (x - mean) / std

    def restore(self, x: Tensor) -> Tensor:
        """Inputs back to values in [0, 1], to be looked at: the inverse of `normalise`, clipped."""
        mean, std = self._scales(x)
        return (x * std + mean).clamp(0, 1)

    def _scales(self, x: Tensor) -> list[Tensor]:
        if len(self.mean) not in (1, x.shape[-3]):
            raise ValueError(f"mean and std are of {len(self.mean)} channels, the images have {x.shape[-3]}")
        return [torch.tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in (self.mean, self.std)]

    @staticmethod
    def unit(x: Tensor) -> Tensor:
        """uint8 as float32 in [0, 1]; float32 as it is. Raises ValueError for another type or shape."""
        if x.ndim != 4 or x.dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"expected uint8 or float32 of shape [B, C, H, W], not {x.dtype} {tuple(x.shape)}")
        return x.float() / 255 if x.dtype == torch.uint8 else x


def resized(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) once the shorter side is ``size`` and the other one in proportion, rounded."""
    scale = size / min(height, width)
    return max(size, round(height * scale)), max(size, round(width * scale))


@dataclass(frozen=True)
class Decoded:
    """Pixels that are decoded when they are indexed: ``decoded[rows]`` is uint8 [n, C, H, W] (or [C, H, W] of one).

    ``decode(item)`` gives uint8 ``shape`` (C, H, W) of one of ``items``.
    """

    items: tuple[Any, ...]
    decode: Callable[[Any], Tensor] = field(repr=False)
    image_shape: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.items), *self.image_shape

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: Rows) -> Tensor:
        indices = torch.arange(len(self))[_index(rows)]
        if indices.ndim == 0:
            return self.decode(self.items[indices])
        pixels = torch.empty((len(indices), *self.image_shape), dtype=torch.uint8)
        for row, index in enumerate(indices.tolist()):
            pixels[row] = self.decode(self.items[index])
        return pixels


@dataclass(frozen=True)
class Images:
    """Labelled images: ``x`` uint8 (or float32 in [0, 1]) [N, C, H, W], a tensor or `Decoded` on demand; ``y`` int64
    [N], indices into ``classes``; ``preprocess`` makes a network's input of them."""

    x: Tensor | Decoded
    y: Tensor
    classes: tuple[str, ...]
    preprocess: Preprocess = Preprocess()

    def __post_init__(self) -> None:
        object.__setattr__(self, "y", torch.as_tensor(self.y))
        if len(self.x) != len(self.y) or len(self.x.shape) != 4:
            raise ValueError(f"x must be [N, C, H, W] for {len(self.y)} labels, not {tuple(self.x.shape)}")
        if len(self.y) and not 0 <= int(self.y.min()) <= int(self.y.max()) < len(self.classes):
            raise ValueError(f"labels must be in 0 ... {len(self.classes) - 1}")

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Images:
        """The images of several ``rows`` (indices in their order, a slice, a bool mask), decoded."""
        rows = _index(rows)
        return replace(self, x=self.x[rows], y=self.y[rows])

    def inputs(self, rows: slice | Sequence[int] | Tensor | None = None) -> Tensor:
        """float32 [n, C, size, size]: ``rows`` (default: all) as a network takes them."""
        return self.preprocess(self.x[slice(None)] if rows is None else self[rows].x)

    @property
    def labels(self) -> Tensor:
        """`y` by the name that the prototypes' splits have for it."""
        return self.y

    @property
    def in_channels(self) -> int:
        return self.x.shape[1]


def _index(rows: Any) -> Any:
    """``rows`` as tensors take them: a list, an empty one too, and a NumPy array as a tensor."""
    if isinstance(rows, int | slice | Tensor):
        return rows
    return torch.as_tensor(rows) if len(rows) else torch.zeros(0, dtype=torch.long)


def load(dataset_name: str, split: str = "test", size: int | None = None, data_dir: str | Path | None = None) -> Images:
    """A split of a data set: ``"MNIST"``, ``"Digits"`` (never downloaded), ``"FashionMNIST"``, ``"ChestMNIST"``,
    ``"CIFAR10"``, ``"Imagenette"`` (the subset of 2,800), ``"ImagenetteFull"``, or the path of a folder with one
    sub-folder a class (`helpers.data.image_folder`).

    ``split`` is "train" or "test" (what the evaluation is made on, Imagenette's and a folder's "val"); a folder also
    has "all". ``size``: pixels a side of the inputs, if not the data set's own. Files are looked for in ``data_dir``
    (relative to the repository; default ``SIGHTLINE_DATA``, else ``data``), then downloaded and verified. Raises
    `ConfigError` for a name or split that does not exist and `downloads.DownloadError` for data that cannot be had.
    """
    # they build on this module
    from helpers.data import chestmnist, cifar10, digits, fashion_mnist, image_folder, imagenette, mnist

    loaders: dict[str, Callable[..., Images]] = {
        "MNIST": mnist.load,
        "Digits": digits.load,
        "FashionMNIST": fashion_mnist.load,
        "ChestMNIST": chestmnist.load,
        "CIFAR10": cifar10.load,
        "Imagenette": imagenette.load,
        "ImagenetteFull": imagenette.load_full,
    }
    if loader := loaders.get(dataset_name):
        return loader(split, size, data_dir)
    for folder in (Path(dataset_name).expanduser(), data_root(data_dir) / dataset_name):
        if folder.is_dir():
            return image_folder.load(folder, split, size)
    raise ConfigError(
        f"no data set and no folder {dataset_name!r} (in the working directory or {data_root(data_dir)}): "
        f"{suggest(dataset_name, loaders)}"
    )


def default_preprocess(dataset_name: str, size: int | None = None) -> Preprocess:
    """What `load` gives the images of this name as their ``preprocess``, known without the data."""
    named = {
        "MNIST": "mnist", "Digits": "digits", "FashionMNIST": "fashion_mnist", "ChestMNIST": "chestmnist",
        "CIFAR10": "cifar10",
    }  # fmt: skip
    return preprocess_of(data_config(named.get(dataset_name, "imagenette")), size)  # others are photographs


def preprocess_of(config: dict[str, Any], size: int | None = None) -> Preprocess:
    """The ``normalisation`` of a data set's YAML, with another ``size`` if given."""
    values = config["normalisation"]
    return Preprocess(size=size or values["size"], mean=values["mean"], std=values["std"])


def data_root(data_dir: str | Path | None = None) -> Path:
    """The folder that holds one folder a data set: ``data_dir`` (relative to the repository), or the usual one."""
    return (ROOT / Path(data_dir).expanduser()).resolve() if data_dir else downloads.data_root()


def check_split(split: str, splits: Sequence[str] = SPLITS) -> None:
    """Raises `ConfigError` if there is no such split."""
    if split not in splits:
        raise ConfigError(f"unknown split {split!r}: {suggest(split, splits)}")
