"""What a prototypical network is trained, watched and tested on (spec pixpnet, section 7).

    data = sets(Dataset(name="CUB200224"), seed=42)
    data.train.augmented(rows, seed=42, epoch=1)     # fresh at every epoch and repeat
    data.validation.inputs(rows)                     # as tested: never augmented
    data.test                                        # loaded here, not before

Every `Part` knows its images by their indices in the official training or test set.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar, get_args

import torch
from torch import Tensor

from helpers import runtime
from helpers.config import ConfigError, suggest
from helpers.prototypes.augmentation import augment, draw
from helpers.prototypes.pipelines import Pipeline, view
from helpers.prototypes.presets import Dataset
from helpers.prototypes.sources import Geometry, Memory, PartLocations, Source, Stored, source

MEMORY = 4 * 2**30  # bytes of decoded pixels that are kept
Rows = slice | Sequence[int] | Tensor
Item, Result = TypeVar("Item"), TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """One split: ``labels`` int64 [N] are indices into ``classes``, ``indices`` int64 [N] its images' places in the
    official training set, or test set. ``augments``: `augmented` differs from `inputs`; it is computed on ``device``.
    """

    labels: Tensor
    indices: Tensor
    stored: Stored = field(repr=False)
    pipeline: Pipeline
    augments: bool = False
    device: torch.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.stored.classes

    @property
    def input_size(self) -> int:
        return self.pipeline.input_size

    def inputs(self, rows: Rows) -> Tensor:
        """float32 [n, 3, S, S], normalised: images as they are tested."""
        return self.pipeline.normalise(self._views(rows))

    def pixels(self, rows: Rows) -> Tensor:
        """float32 [n, 3, S, S] in [0, 1]: the same, to be looked at."""
        return self.pipeline.normalisation.unit(self._views(rows))

    def augmented(self, rows: Rows, seed: int, epoch: int, repeat: int | Tensor = 0) -> Tensor:
        """float32 [n, 3, S, S], normalised, as images are trained on: a function of the seed, the epoch, the repeat
        (one for all ``rows``, or int64 [n]) and the image."""
        if not self.augments:
            return self.inputs(rows)
        indices = self._indices(rows)
        repeats = torch.as_tensor(repeat).expand(len(indices)).tolist()
        images = [self._augmented(i, seed, epoch, r) for i, r in zip(indices.tolist(), repeats, strict=True)]
        return self.pipeline.normalise(self._stacked(images))

    def _indices(self, rows: Rows) -> Tensor:
        return self.indices[rows if isinstance(rows, slice | Tensor) else torch.as_tensor(rows, dtype=torch.long)]

    def _views(self, rows: Rows) -> Tensor:
        return self._stacked([view(self.stored.pixels(i), self.pipeline) for i in self._indices(rows).tolist()])

    def _augmented(self, index: int, seed: int, epoch: int, repeat: int) -> Tensor:
        pixels = self.stored.pixels(index)
        draws = draw(*pixels.shape[1:], self.pipeline, seed, epoch, repeat, index)
        return augment(pixels.to(self.device), draws, self.pipeline)

    def _stacked(self, images: list[Tensor]) -> Tensor:
        size = self.input_size
        return torch.stack(images) if images else torch.empty(0, 3, size, size, dtype=torch.uint8)


@dataclass(frozen=True)
class Sets:
    """What one run is trained on, watched on (if anything), and, once it is asked for, tested on."""

    train: Part
    validation: Part | None
    load_test: Callable[[], Part] = field(repr=False)

    @cached_property
    def test(self) -> Part:
        return self.load_test()

    @property
    def test_loaded(self) -> bool:
        """Whether `test` has been asked for."""
        return "test" in vars(self)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes


def sets(dataset: Dataset, seed: int, device: torch.device | str = "cpu", memory: int = MEMORY) -> Sets:
    """The splits of a data set: a seeded share ``val_size`` of the official training set is watched and not trained on
    (ToyBirds has a validation set of its own, which 0 leaves out); then ``n_train`` and ``n_test`` images are taken of
    what is left, as many of each class in proportion.

    Images are decoded when they are asked for, and kept up to ``memory`` bytes. Augmentation is computed on ``device``.
    Raises `ConfigError` for settings that cannot be and `DownloadError` for data that cannot be had.
    """
    found = source(dataset, Memory(memory))
    train = torch.arange(len(found.train.labels))
    validation = None
    if dataset.val_size and found.validation:
        own = found.validation()
        validation = Part(own.labels, torch.arange(len(own.labels)), own, found.pipeline)
    elif dataset.val_size:
        train, held_out = split(len(train), dataset.val_size, seed)
        validation = _part(found, found.train, held_out)
    train = train[balanced(found.train.labels[train], dataset.n_train, runtime.generator(seed, "fewer", "train"))]
    augments = dataset.augment and found.pipeline.augment

    def test() -> Part:
        stored = found.test()
        return _part(found, stored, balanced(stored.labels, dataset.n_test, runtime.generator(seed, "fewer", "test")))

    part = Part(found.train.labels[train], train, found.train, found.pipeline, augments, torch.device(device))
    return Sets(part, validation, test)


def _part(found: Source, stored: Stored, indices: Tensor) -> Part:
    return Part(stored.labels[indices], indices, stored, found.pipeline)


def split(n: int, val_size: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to train on and to watch, int64, disjoint, in random order; of 5,994 and 0.1: 5,395 and 599.

    Raises `ConfigError` if one of the two would be empty.
    """
    n_validation = round(n * val_size)
    if not 0 < n_validation < n:
        left = n - n_validation
        raise ConfigError(f"val_size={val_size} of {n} images leaves {n_validation} to watch and {left} to train on")
    order = torch.randperm(n, generator=runtime.generator(seed, "validation"))
    return order[n_validation:], order[:n_validation]


def balanced(labels: Tensor, n: int | None, generator: torch.Generator) -> Tensor:
    """``n`` rows (all if None) drawn at random, as many of each class in proportion, one of each where ``n`` allows it;
    int64, ascending. Of a larger ``n`` they are the same ones and more. Raises `ConfigError` if there are fewer."""
    if n is None:
        return torch.arange(len(labels))
    if n > len(labels):
        raise ConfigError(f"there are {len(labels)} images, not {n}")
    order = torch.randperm(len(labels), generator=generator)
    place = torch.empty(len(labels), dtype=torch.float64)  # in its class, as a share of it
    for label in labels.unique():
        own = order[labels[order] == label]
        place[own] = torch.arange(len(own), dtype=torch.float64) / len(own)
    return order[place[order].argsort(stable=True)][:n].sort().values


def part_locations(part: Part, rows: Rows, geometry: Geometry = "exact") -> PartLocations:
    """Where the annotated parts of images lie in `Part.inputs`. ``geometry="legacy"`` is where the original code took
    them to be (spec pixpnet, section 8.4). Raises `ConfigError` for a data set without annotations."""
    if geometry not in get_args(Geometry):
        raise ConfigError(f"unknown geometry {geometry!r}: {suggest(geometry, get_args(Geometry))}")
    if part.stored.parts is None:
        raise ConfigError("parts are annotated in CUB and known in ToyBirds, not in this data set")
    return part.stored.parts(part._indices(rows), geometry)


def ahead(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """``work(item)`` in order, done by ``workers`` threads, which are as many items ahead of the caller; 0: none."""
    if not workers:
        yield from map(work, items)
        return
    threads, waiting = torch.get_num_threads(), deque()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))  # else each takes all cores
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what new threads of others get
