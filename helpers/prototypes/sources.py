"""Where images come from: each data set by its name, as one type (spec pixpnet, section 7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from helpers.config import ConfigError, data_config, suggest
from helpers.data import cars, cifar10, cub, image_folder, imagenette, toybirds
from helpers.data.image_folder import Photographs
from helpers.data.images import Images, data_root
from helpers.prototypes.pipelines import Box, Pipeline, locate, locate_legacy, pipelines, resize
from helpers.prototypes.presets import Dataset

Geometry = Literal["exact", "legacy"]
PARTS = toybirds.PARTS
DRAWN = 64  # birds at a time


@dataclass(frozen=True)
class PartLocations:
    """Where parts of objects are in the inputs of a network: ``xy`` float32 [n, A, 2] (x, y) in pixels, the first of
    which reaches from 0 to 1; ``visible`` bool [n, A]: annotated, and within the input; ``part`` int64 [A]: which of
    ``names`` an annotation shows (of a bird's eyes there are two)."""

    xy: Tensor
    visible: Tensor
    part: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class Stored:
    """A split as its source has it. ``labels`` int64 [N] are indices into ``classes``; ``pixels(index)`` is uint8
    [3, H, W] after the first resize; ``parts(indices, geometry)`` tells where parts are, if that is known."""

    labels: Tensor
    classes: tuple[str, ...]
    pixels: Callable[[int], Tensor]
    parts: Callable[[Tensor, Geometry], PartLocations] | None = None


@dataclass(frozen=True)
class Source:
    """A data set: the official training set, the test set once it is asked for, and its own validation set if it has
    one."""

    pipeline: Pipeline
    train: Stored
    test: Callable[[], Stored]
    validation: Callable[[], Stored] | None = None


class Memory:
    """Room for ``limit`` bytes of decoded pixels, which are kept as long as there is room.

    Nothing is thrown out for anything new: every image is met as often as any other.
    """

    def __init__(self, limit: int) -> None:
        self.left = limit
        self._lock = Lock()

    def of(self, pixels: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
        """``pixels``, computed once where there is room."""
        kept: dict[int, Tensor] = {}

        def remembered(index: int) -> Tensor:
            if (image := kept.get(index)) is None:
                image = pixels(index)
                with self._lock:
                    if index not in kept and image.nbytes <= self.left:
                        kept[index] = image
                        self.left -= image.nbytes
            return image

        return remembered


def source(dataset: Dataset, memory: Memory) -> Source:
    """The data set that ``dataset`` names, case and hyphens ignored, or the path of a folder with ``train`` and ``val``
    in it, and in these a folder a class.

    Raises `ConfigError` for a name, subset or option that does not exist, `DownloadError` for data that cannot be had.
    """
    name = _name(dataset)
    if dataset.subset and name not in SUBSETS:
        raise ConfigError(f"{dataset.name} has no subsets, dataset.subset must be empty, not {dataset.subset!r}")
    pipeline = pipelines()[name]
    return LOADERS[name](dataset, pipeline.at(dataset.size or pipeline.input_size), memory)


def _name(dataset: Dataset) -> str:
    """The name in the table of `pipelines`, or "folder"."""
    known = {name.lower(): name for name in pipelines() if name != "folder"}
    name = known.get(dataset.name.lower().replace("-", ""))
    if name is None and _folder(dataset).is_dir():
        name = "folder"
    if name is None:
        raise ConfigError(
            f"no data set and no folder {dataset.name!r} (in the working directory or {data_root(dataset.root)}): "
            f"{suggest(dataset.name.upper(), known.values())}"
        )
    if dataset.crop_to_bbox and name in ("CUB200", "CUB200224"):
        return f"{name}BBOX"
    if dataset.crop_to_bbox and not pipelines()[name].to_box:
        raise ConfigError(f"dataset.crop_to_bbox is for CUB200 and CUB200224, not for {dataset.name}")
    return name


def _folder(dataset: Dataset) -> Path:
    here = Path(dataset.name).expanduser()
    return here if here.is_dir() else data_root(dataset.root) / dataset.name


def _stored(photographs: Photographs, pipeline: Pipeline, memory: Memory) -> Stored:
    pixels = memory.of(lambda index: resize(photographs.open(index), pipeline))
    return Stored(photographs.labels, photographs.classes, pixels)


def _of_photographs(load: Callable[[str], Photographs], pipeline: Pipeline, memory: Memory) -> Source:
    return Source(pipeline, _stored(load("train"), pipeline, memory), lambda: _stored(load("test"), pipeline, memory))


def _cars(dataset: Dataset, pipeline: Pipeline, memory: Memory) -> Source:
    return _of_photographs(lambda split: cars.load(split, dataset.root, dataset.subset), pipeline, memory)


def _own_folder(dataset: Dataset, pipeline: Pipeline, memory: Memory) -> Source:
    return _of_photographs(lambda split: image_folder.photographs(_folder(dataset), split), pipeline, memory)


def _imagenet(dataset: Dataset, pipeline: Pipeline, memory: Memory) -> Source:
    folder = _imagenet_folder(dataset, "")
    return _of_photographs(lambda split: image_folder.photographs(folder, split), pipeline, memory)


def _imagenette(dataset: Dataset, pipeline: Pipeline, memory: Memory) -> Source:
    """The ten classes out of the user's ImageNet; or "fastai", its own release, which is split in another way and is
    downloaded; or "subset", 2,800 images of that one."""
    if dataset.subset == "subset":
        return _of_photographs(lambda split: imagenette.photographs(split, dataset.root), pipeline, memory)
    if dataset.subset == "fastai":
        return _of_photographs(lambda split: imagenette.photographs_full(split, dataset.root), pipeline, memory)
    if dataset.subset:
        raise ConfigError(
            f"Imagenette has no subset {dataset.subset!r} (empty: out of ImageNet); "
            f"{suggest(dataset.subset, ('subset', 'fastai'))}"
        )
    folder = _imagenet_folder(dataset, 'subset="fastai" is downloaded (99 MB), subset="subset" lies at hand; ')
    names, wnids = zip(*data_config("imagenette")["classes"].values(), strict=True)

    def load(split: str) -> Photographs:
        return replace(image_folder.photographs(folder, split, only=wnids), classes=names)

    return _of_photographs(load, pipeline, memory)


def _imagenet_folder(dataset: Dataset, instead: str) -> Path:
    if not (folder := data_root(dataset.root) / "imagenet").is_dir():
        raise ConfigError(
            f"ImageNet cannot be downloaded: put it at {folder}, as train/<wnid>/*.JPEG and val/<wnid>/*.JPEG; "
            f'{instead}"ToyBirds" needs no files'
        )
    return folder


def _cifar10(dataset: Dataset, pipeline: Pipeline, memory: Memory) -> Source:
    def stored(images: Images) -> Stored:
        def pixels(index: int) -> Tensor:
            return resize(Image.fromarray(images.x[index].permute(1, 2, 0).numpy()), pipeline)

        return Stored(images.y, images.classes, pixels)

    def load(split: str) -> Stored:
        return stored(cifar10.load(split, data_dir=dataset.root))

    return Source(pipeline, load("train"), lambda: load("test"))


def _cub(dataset: Dataset, pipeline: Pipeline, memory: Memory) -> Source:
    birds = cub.load(dataset.root, dataset.subset)

    def box(row: int) -> Box | None:
        """Its box in whole pixels, none of the bird left out."""
        if not pipeline.to_box:
            return None
        height, width = birds.size(row)
        x, y, w, h = birds.boxes[row].tolist()
        return max(0, math.floor(x)), max(0, math.floor(y)), min(width, math.ceil(x + w)), min(height, math.ceil(y + h))

    def split(wanted: Tensor) -> Stored:
        rows = wanted.nonzero().flatten().tolist()

        def pixels(index: int) -> Tensor:
            return resize(birds.photographs.open(rows[index]), pipeline, box(rows[index]))

        def parts(indices: Tensor, geometry: Geometry) -> PartLocations:
            some = [rows[index] for index in indices.tolist()]
            xy = torch.empty(len(some), *birds.locations.shape[1:])
            for i, row in enumerate(some):
                points, size = birds.locations[row], birds.size(row)
                exact = geometry == "exact"
                xy[i] = locate(points, size, pipeline, box(row)) if exact else locate_legacy(points, size, pipeline)
            inside = ((xy >= 0) & (xy < pipeline.input_size)).all(-1)
            return PartLocations(xy, birds.visible[some] & inside, birds.part_of, birds.part_names)

        return Stored(birds.photographs.labels[wanted], birds.photographs.classes, memory.of(pixels), parts)

    return Source(pipeline, split(birds.is_train), lambda: split(~birds.is_train))


def _toybirds(dataset: Dataset, pipeline: Pipeline, memory: Memory) -> Source:
    """Birds are drawn a block at a time when one is asked for, and kept as bytes."""
    settings = toybirds.ToyBirdsSettings(size=pipeline.input_size)

    def stored(name: str, n: int | None = None) -> Stored:
        seed, usual = toybirds.split(name)
        blocks, kept, lock = torch.arange(n or usual).split(DRAWN), {}, Lock()

        def pixels(index: int) -> Tensor:
            block, row = divmod(index, DRAWN)
            with lock:  # several threads may ask
                if block not in kept:
                    kept[block] = toybirds.stored(toybirds.batch(seed, blocks[block], settings).images)
            return kept[block][row]

        def parts(indices: Tensor, geometry: Geometry) -> PartLocations:
            shape = len(indices), len(PARTS)
            xy, visible = torch.empty(*shape, 2), torch.empty(shape, dtype=torch.bool)
            for rows in torch.arange(len(indices)).split(DRAWN):  # masks take memory
                birds = toybirds.batch(seed, indices[rows], settings)
                xy[rows], visible[rows] = birds.centres + 0.5, birds.visible
            return PartLocations(xy, visible, torch.arange(len(PARTS)), PARTS)

        labels = torch.from_numpy(toybirds.labels(seed, torch.cat(blocks).numpy(), settings.classes))
        return Stored(labels, toybirds.class_names(settings.classes), pixels, parts)

    train = stored("train", dataset.n_train)
    return Source(pipeline, train, lambda: stored("test", dataset.n_test), lambda: stored("validation"))


LOADERS: dict[str, Callable[[Dataset, Pipeline, Memory], Source]] = {
    "CUB200224": _cub, "CUB200": _cub, "CUB200BBOX": _cub, "CUB200224BBOX": _cub, "CARS224": _cars,
    "CIFAR10": _cifar10, "IMAGENETTE": _imagenette, "IMAGENET": _imagenet, "folder": _own_folder,
    "ToyBirds": _toybirds,
}  # fmt: skip
SUBSETS = {name for name in LOADERS if name.startswith(("CUB", "CARS")) or name == "IMAGENETTE"}
