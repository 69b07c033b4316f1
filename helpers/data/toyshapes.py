"""ToyShapes: grey images of a grid of shapes whose label is "at least one target shape".

The images are those of the PiNets study (arXiv 2601.04378) to the last bit: every draw of NumPy's legacy generator is
replayed from its raw 32-bit words for all images at once, some twenty times faster than drawing them one by one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from helpers.config import Settings, Several, data_config

SHAPES = ("triangle", "square", "circle", "void")
SCALES = (0.5, 0.8)  # a shape's side as a share of its block's
SHADES = np.linspace(0, 256, 50)  # candidates before those too close to the background are left out
MIN_CONTRAST = 50  # grey levels that a candidate must exceed (truncation can then leave exactly 50)
BACKGROUND = (50, 200)  # half-open


class ToyShapesSettings(Settings):
    """What is drawn. The defaults are the study's (``data_configs/toyshapes.yaml``, which a test compares)."""

    n_images: int = Field(1000, ge=1, description="images")
    n_blocks: int = Field(16, ge=1, description="cells of the square grid")
    block_size: int = Field(20, ge=8, description="pixels a side of a cell")
    shapes: Several[Literal["triangle", "square", "circle", "void"]] = SHAPES
    target: Literal["triangle", "square", "circle"] = "triangle"
    relative_frequency: float = Field(5, gt=0, description="how many times as likely any other shape is as the target")
    backgrounds: bool = Field(
        True, description="a random grey background an image, else black, where a shape that drew shade 256 is unseen"
    )
    hollow: float = Field(0.25, ge=0, le=1, description="share of shapes drawn as an outline")

    @model_validator(mode="after")
    def _possible(self) -> ToyShapesSettings:
        if isqrt(self.n_blocks) ** 2 != self.n_blocks:
            raise ValueError(f"n_blocks must be a square number (the grid is square), not {self.n_blocks}")
        if self.target not in self.shapes:
            raise ValueError(f"target {self.target!r} is not among shapes {self.shapes}")
        if len(set(self.shapes)) < len(self.shapes):
            raise ValueError(f"shapes names one twice: {self.shapes}")
        if len(self.shapes) < 2:
            raise ValueError("shapes needs one more beside the target, or every image would be positive")
        return self

    @property
    def grid(self) -> int:
        return isqrt(self.n_blocks)

    @property
    def image_size(self) -> int:
        return self.grid * self.block_size


@dataclass(frozen=True)
class ToyShapes:
    """A data set. ``images`` uint8 [N, H, W]; ``masks`` uint8 [N, H, W], 1 on the target's pixels; ``counts`` int64
    [N], target shapes in each image; ``shapes`` int64 [N, n_blocks], indices into ``settings.shapes``."""

    images: np.ndarray
    masks: np.ndarray
    counts: np.ndarray
    shapes: np.ndarray
    settings: ToyShapesSettings
    seed: int

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]: 1 where at least one target shape is in the image."""
        return (self.counts > 0).astype(np.int64)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Scene:
    """What each image shows, before it is drawn: all [N, n_blocks] but ``background`` [N].

    ``side`` is a shape's side in pixels, ``spread`` a triangle's half-width gained per row.
    """

    shape: np.ndarray
    background: np.ndarray
    side: np.ndarray
    hollow: np.ndarray
    shade: np.ndarray
    spread: np.ndarray


def generate(seed: int, **settings) -> ToyShapes:
    """Draw a data set; equal arguments give equal bytes on every platform.

    Image ``j`` depends on ``seed + j`` and its row of shapes alone, so a larger ``n_images`` keeps the first ones.
    ``settings`` are the fields of `ToyShapesSettings`. Raises ``pydantic.ValidationError`` for settings that cannot be
    drawn, with the reason, and ``ValueError`` for a seed outside [0, 2**32 - n_images].
    """
    settings = ToyShapesSettings(**settings)
    if not 0 <= seed <= 2**32 - settings.n_images:
        raise ValueError(f"seed must be in [0, 2**32 - n_images], not {seed}")
    scene = without_repeats(sample_scenes(seed, settings), settings)
    images, masks = render(scene, settings)
    counts = (scene.shape == settings.shapes.index(settings.target)).sum(1)
    return ToyShapes(images, masks, counts, scene.shape, settings, seed)


def test_set(**settings) -> ToyShapes:
    """The test set that every model shares (seed 508052, 1000 images, unless ``settings`` say otherwise)."""
    splits = data_config("toyshapes")["splits"]
    return generate(splits["test_seed"], **{"n_images": splits["test_images"], **settings})


def split(n_images: int, seed: int, validation: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, validation) of a replication: ``int(validation * n_images)`` drawn without replacement."""
    held_out = np.random.RandomState(seed).choice(n_images, int(validation * n_images), replace=False)
    return np.setdiff1d(np.arange(n_images), held_out), held_out


def checksums(data: ToyShapes) -> dict[str, int | str]:
    """What ``data_configs/toyshapes.yaml`` lists as golden: positives, and SHA-1 of images and masks (12 digits)."""
    arrays = {"images": data.images, "masks": data.masks}
    sums = {name: hashlib.sha1(array.tobytes()).hexdigest()[:12] for name, array in arrays.items()}
    return {"positives": int(data.labels.sum())} | sums


# ---------------------------------------------------------------------------------------------- random draws


class _Replay:
    """NumPy's legacy ``RandomState`` draws, replayed for many seeds at once from their raw 32-bit words.

    ``position`` [N] is where each image's stream stands: rejection makes the streams advance unevenly.
    """

    def __init__(self, seeds: np.ndarray, n_words: int):
        bits = np.random.MT19937()
        state = np.random.RandomState(bits)
        self.words = np.empty((len(seeds), n_words), np.uint32)
        for row, seed in zip(self.words, seeds, strict=True):
            state.seed(int(seed))
            row[:] = bits.random_raw(n_words)
        self.position = np.zeros(len(seeds), np.int64)

    def _next(self, rows: np.ndarray) -> np.ndarray:
        words = self.words[rows, self.position[rows]]
        self.position[rows] += 1
        return words

    def uniform(self, rows: np.ndarray) -> np.ndarray:
        """float64 in [0, 1) of 53 bits from two words."""
        high, low = self._next(rows) >> np.uint32(5), self._next(rows) >> np.uint32(6)
        return (high * 67108864.0 + low) / 9007199254740992.0

    def at_most(self, limits: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Integers in [0, limits]: masked words, drawn again until they fit."""
        mask = (1 << np.ceil(np.log2(limits + 1)).astype(np.int64)) - 1
        values = np.zeros(len(rows), np.int64)
        pending = np.arange(len(rows))
        while len(pending):
            values[pending] = self._next(rows[pending]) & mask[pending]
            pending = pending[values[pending] > limits[pending]]
        return values

    def first_of_shuffle(self, sizes: np.ndarray) -> np.ndarray:
        """Element 0 of a Fisher-Yates shuffle of ``arange(size)``: what ``choice(size, 1, replace=False)`` takes."""
        rows, swaps = np.arange(len(sizes)), {}
        for i in range(int(sizes.max()) - 1, 0, -1):
            active = rows[sizes > i]
            swaps[i] = active, self.at_most(np.full(len(active), i), active)
        source = np.zeros(len(sizes), np.int64)  # where the element that ends at 0 stood before each swap
        for i in range(1, int(sizes.max())):
            active, partner = swaps[i]
            source[active[source[active] == partner]] = i
        return source


def sample_scenes(seed: int, settings: ToyShapesSettings) -> Scene:
    """Draw what every image shows, in the study's order of draws (one table, then image by image)."""
    n, blocks = settings.n_images, settings.n_blocks
    weights = np.where(np.array(settings.shapes) == settings.target, 1.0, settings.relative_frequency)
    shape = np.random.RandomState(seed).choice(len(settings.shapes), size=(n, blocks), p=weights / weights.sum())
    # A block takes about 4 + 1.4 * candidates words; twice as many are at hand, and more are fetched if ever needed.
    for n_words in (256 + 160 * blocks, 1024 + 640 * blocks, 4096 + 2560 * blocks):
        try:
            return _replay_scenes(_Replay(seed + np.arange(n), n_words), shape, settings)
        except IndexError:
            continue
    raise RuntimeError("the generator's words ran out; this cannot happen by chance")


def _replay_scenes(draws: _Replay, shape: np.ndarray, settings: ToyShapesSettings) -> Scene:
    n, blocks = shape.shape
    rows = np.arange(n)
    background = np.zeros(n, np.int64)
    if settings.backgrounds:
        low, high = BACKGROUND
        background = low + draws.at_most(np.full(n, high - low - 1), rows)
    scale = np.stack([SCALES[0] + (SCALES[1] - SCALES[0]) * draws.uniform(rows) for _ in range(blocks)], 1)
    side = (settings.block_size * scale).astype(np.int64)

    visible = np.abs(SHADES[None] - background[:, None]) > MIN_CONTRAST
    order = np.argsort(~visible, axis=1, kind="stable")  # the candidates of each image first, in ascending order
    n_visible = visible.sum(1)

    hollow, shade, spread = np.zeros((n, blocks), bool), np.zeros((n, blocks), np.uint8), np.zeros((n, blocks))
    is_triangle = shape == (settings.shapes.index("triangle") if "triangle" in settings.shapes else -1)
    for block in range(blocks):
        hollow[:, block] = draws.uniform(rows) < settings.hollow
        value = SHADES[order[rows, draws.first_of_shuffle(n_visible)]].astype(np.int64)
        shade[:, block] = value % 256  # 256 becomes 0 on every platform
        triangles = rows[is_triangle[:, block]]
        # rand() * (high - low) + low, as NumPy computes uniform(low, high)
        low = 1 - scale[triangles, block]
        spread[triangles, block] = low + ((low + 0.2) - low) * draws.uniform(triangles)
    return Scene(shape, background, side, hollow, shade, spread)


def without_repeats(scene: Scene, settings: ToyShapesSettings) -> Scene:
    """The scenes that become images: all of them, but without backgrounds and hollow shapes the study drops those that
    look like an earlier one."""
    if settings.backgrounds or settings.hollow > 0:
        return scene
    images, _ = render(scene, settings)
    _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
    keep = np.sort(first)
    return Scene(**{name: values[keep] for name, values in vars(scene).items()})


# ---------------------------------------------------------------------------------------------------- drawing


def render(scene: Scene, settings: ToyShapesSettings) -> tuple[np.ndarray, np.ndarray]:
    """Draw scenes: (images, masks), both uint8 [N, H, W]. Blocks fill rows from the bottom, left to right."""
    n, size, grid = len(scene.shape), settings.block_size, settings.grid
    drawn = np.zeros((n, settings.n_blocks, size, size), bool)
    for index, name in enumerate(settings.shapes):
        if name != "void":
            at = scene.shape == index
            drawn[at] = _stencils(name, size, scene.side[at], scene.hollow[at], scene.spread[at])
    target = (scene.shape == settings.shapes.index(settings.target))[:, :, None, None]
    blocks = np.where(drawn, scene.shade[:, :, None, None], scene.background[:, None, None, None].astype(np.uint8))

    def assemble(cells: np.ndarray) -> np.ndarray:
        cells = cells.reshape(n, grid, grid, size, size)[:, ::-1]
        return np.ascontiguousarray(cells.transpose(0, 1, 3, 2, 4)).reshape(n, grid * size, grid * size)

    return assemble(blocks), assemble((drawn & target).astype(np.uint8))


def _stencils(name: str, size: int, side: np.ndarray, hollow: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """bool [K, size, size]: the pixels that K shapes of one kind cover in their block."""
    if name == "triangle":
        return _triangles(size, side, hollow, spread)
    keys, inverse = np.unique(np.stack([side, hollow], 1), axis=0, return_inverse=True)
    stencils = [_square_or_circle(name, size, int(s), bool(h)) for s, h in keys]
    return np.stack(stencils)[inverse.reshape(-1)] if len(stencils) else np.zeros((0, size, size), bool)


@lru_cache(maxsize=1024)
def _square_or_circle(name: str, size: int, side: int, hollow: bool) -> np.ndarray:
    offset, thickness = (size - side) // 2, max(1, side // 5)
    row, column = np.mgrid[:size, :size]
    if name == "circle":
        distance, radius = np.hypot(row - size // 2, column - size // 2), side // 2
        return (distance < radius) & ((distance > radius - thickness) | (not hollow))

    def within(inset: int) -> np.ndarray:
        low, high = offset + inset, offset + side - inset
        return (low <= row) & (row < high) & (low <= column) & (column < high)

    return within(0) & ~(within(thickness) & hollow)


def _triangles(size: int, side: np.ndarray, hollow: np.ndarray, spread: np.ndarray) -> np.ndarray:
    side, hollow, spread = (v[:, None, None] for v in (side, hollow, spread))
    offset, thickness = (size - side) // 2, np.maximum(1, side // 5)
    row = np.arange(size)[None, :, None] - offset  # rows of the triangle, 0 at its apex
    column = np.abs(np.arange(size)[None, None, :] - offset - side // 2)  # distance from its axis
    half_width = (row * spread).astype(np.int64)
    solid = (row >= 0) & (row < side) & (column <= half_width)
    hole = (row >= thickness) & (row < side - thickness) & (column <= half_width - thickness)
    return solid & ~(hole & hollow)
