"""ToyBirds: drawn birds of up to 200 classes, whose parts, their pixels and their effect are known exactly.

A class is a code of shapes and colours of eight parts (``data_configs/toybirds.yaml``). A bird can be drawn again with
one part removed or changed and everything else equal, which tells what a model's answer rests on without an explainer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from helpers import runtime
from helpers.config import ConfigError, Settings, data_config, parse, suggest
from helpers.data import bird_drawing, bird_scenes
from helpers.data.bird_scenes import COLOURLESS, COLOURS, PARTS, SHAPES, Counter, Scene

N_CLASSES = len(data_config("toybirds")["classes"])
VISIBLE = 20  # pixels that a part has to cover to count as visible
FULL = 1e-3  # pixels under which a mask has no centre


class Spurious(Settings):
    """A shortcut: birds of one class come with a cue that has nothing to do with the bird."""

    model_config = ConfigDict(populate_by_name=True)

    label: int = Field(alias="class", ge=0, description="the class whose birds come with the cue")
    cue: Literal["background", "corner"] = Field("corner", description="an evening sky, or a sun in the corner")
    rate: float = Field(0.95, ge=0, le=1, description="share of the class's birds that have it; others never do")


class ToyBirdsSettings(Settings):
    """What is drawn. The defaults are those of ``data_configs/toybirds.yaml``, which a test compares."""

    size: int = Field(128, ge=32, le=512, description="pixels a side")
    classes: int = Field(20, ge=2, le=N_CLASSES, description="the first so many of the code table")
    noise: float = Field(0.02, ge=0, le=1, description="standard deviation of the sensor's noise")
    spurious: Spurious | None = Field(None, description="a shortcut to plant: class, cue, rate")

    @field_validator("spurious", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        return parse(Spurious, value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _possible(self) -> ToyBirdsSettings:
        if self.spurious and self.spurious.label >= self.classes:
            raise ValueError(f"spurious names class {self.spurious.label}, there are 0 to {self.classes - 1}")
        return self


@dataclass(frozen=True, eq=False)
class Birds:
    """Drawn birds. ``images`` float32 [B, 3, H, W] in [0, 1]; ``birds``, all that they are drawn from. What follows is
    computed when it is first asked for."""

    images: Tensor
    birds: Scene

    @property
    def labels(self) -> Tensor:
        """int64 [B]. A bird of which a part was changed keeps its label."""
        return self.birds.label

    @cached_property
    def masks(self) -> Tensor:
        """float32 [B, P, H, W] in [0, 1]: the share of each pixel that shows each part of `PARTS`."""
        return bird_drawing.masks(self.birds)

    @cached_property
    def centres(self) -> Tensor:
        """float32 [B, P, 2]: the centroid (x, y) of each mask in pixels, 0 the first pixel's; NaN if it is empty."""
        masks, places = self.masks.double(), torch.arange(self.birds.size, device=self.masks.device).double()
        x, y = (masks.sum(2) * places).sum(2), (masks.sum(3) * places).sum(2)
        total = masks.sum((2, 3))
        return torch.where(total > FULL, torch.stack([x, y]) / total, torch.nan).movedim(0, 2).float()

    @cached_property
    def visible(self) -> Tensor:
        """bool [B, P]: the parts of which 20 pixels or more can be seen."""
        return self.masks.double().sum((2, 3)) >= VISIBLE

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        one = Birds(self.images[index][None], self.birds[index])
        return Sample(one.images[0], int(one.labels[0]), one.centres[0], one.visible[0], one.masks[0], one.birds)


@dataclass(frozen=True, eq=False)
class Sample:
    """One of `Birds`: ``image`` [3, H, W], ``label``, ``centres`` [P, 2], ``visible`` [P], ``masks`` [P, H, W]; and
    ``bird``, which `render` takes."""

    image: Tensor
    label: int
    centres: Tensor
    visible: Tensor
    masks: Tensor
    bird: Scene


# ------------------------------------------------------------------------------------------------------ samples


def sample(seed: int, index: int, settings: ToyBirdsSettings | None = None) -> Sample:
    """Bird ``index`` of the stream ``seed``: it depends on these two alone."""
    return batch(seed, [index], settings)[0]


def batch(
    seed: int,
    indices: Iterable[int] | Tensor,
    settings: ToyBirdsSettings | None = None,
    device: torch.device | str = "cpu",
) -> Birds:
    """Birds ``indices`` of the stream ``seed``, each as `sample` draws it. Raises ConfigError for a negative index."""
    scene = birds(seed, indices, settings).to(device)
    return Birds(bird_drawing.draw(scene), scene)


def stored(images: Tensor) -> Tensor:
    """uint8: images float32 in [0, 1] as data sets keep them. Rounding moves a pixel by a twentieth of the noise that
    they are drawn with."""
    return (images * 255).round().to(torch.uint8)


def birds(seed: int, indices: Iterable[int] | Tensor, settings: ToyBirdsSettings | None = None) -> Scene:
    """What the birds are drawn from, undrawn. Raises ConfigError for a negative index."""
    settings = settings or ToyBirdsSettings()
    indices = np.asarray(indices if isinstance(indices, Tensor) else list(indices), np.int64).reshape(-1)
    if len(indices) and indices.min() < 0:
        raise ConfigError(f"birds are counted from 0, there is none of index {indices.min()}")
    cue = settings.spurious and (settings.spurious.label, settings.spurious.cue, settings.spurious.rate)
    label = labels(seed, indices, settings.classes)
    return bird_scenes.sample(seed, indices, label, codes(settings.classes), settings.size, settings.noise, cue)


def labels(seed: int, indices: np.ndarray, classes: int) -> np.ndarray:
    """int64 [B]: each block of ``classes`` birds has one of each class, in an order of its own."""
    blocks, block = np.unique(indices // classes, return_inverse=True)
    orders = Counter(seed, blocks)("classes", 0, 1, classes).argsort(1, kind="stable")
    return orders[block, indices % classes]


def split(name: str, seed: int = 0) -> tuple[int, int]:
    """The seed of a split's own stream, and how many birds it has: ``seed, n = split("test")``, then
    ``batch(seed, range(n))``. Raises ConfigError for an unknown split."""
    splits = data_config("toybirds")["splits"]
    if name not in splits:
        raise ConfigError(f"unknown split {name!r} of ToyBirds: {suggest(name, splits)}")
    return runtime.stream(seed, "toybirds", name), splits[name]["images"]


# --------------------------------------------------------------------------------------------- one change at a time


def render(
    birds: Scene,
    *,
    without: Collection[str] = (),
    change: Mapping[str, str] | None = None,
    background: Literal["clear"] | Scene | Tensor | None = None,
    size: int | None = None,
) -> Birds:
    """The same birds with one thing changed; all else is drawn as before, to the bit.

    ``without={"tail"}`` leaves parts out. ``change={"beak": "hooked"}`` gives them another shape, colour or both
    ("hooked red"). ``background`` is "clear" (the sky without clutter), that of other birds (as many, or one), or
    pixels: [3], [3, H, W] or [B, 3, H, W]. ``size`` is in pixels a side.

    Raises ConfigError for unknown parts, shapes or colours, with the choices, and for a background that does not fit.
    """
    without = {without} if isinstance(without, str) else set(without)
    for part in without:
        _check_part(part)
    size = birds.size if size is None else parse(ToyBirdsSettings, {"size": size}).size
    edited = replace(birds, without=birds.without | without, code=_changed(birds.code, change or {}), size=size)
    edited = _before(edited, background)
    return Birds(bird_drawing.draw(edited), edited)


def _changed(code: Tensor, change: Mapping[str, str]) -> Tensor:
    code = code.clone()
    for part, words in change.items():
        shape, colour = read_code(part, words)
        at = code[:, PARTS.index(part)]  # a view
        if shape is not None:
            at[:, 0] = shape
        if colour is not None:
            at[:, 1] = colour
        for bare in COLOURLESS.get(part, ()):
            at[at[:, 0] == SHAPES[part].index(bare), 1] = -1
    return code


def _before(birds: Scene, background: str | Scene | Tensor | None) -> Scene:
    if background is None:
        return birds
    if isinstance(background, Scene):
        if len(background) not in (1, len(birds)):
            raise ConfigError(f"{len(birds)} birds cannot take the background of {len(background)}")
        return birds.behind(background)
    if isinstance(background, Tensor):
        pixels = background[:, None, None] if background.ndim == 1 else background
        shape = (len(birds), 3, birds.size, birds.size)
        try:
            return replace(birds, backdrop=pixels.to(birds.scale).expand(shape))
        except RuntimeError:
            raise ConfigError(f"a background of shape {tuple(background.shape)} does not fit images {shape}") from None
    if background != "clear":
        raise ConfigError(f"unknown background {background!r}: 'clear', other birds, or pixels as a tensor")
    return replace(birds, clear=True)


# ------------------------------------------------------------------------------------------------------- classes


def class_names(classes: int = 20) -> tuple[str, ...]:
    return tuple(data_config("toybirds")["classes"])[:classes]


@lru_cache
def codes(classes: int = 20) -> np.ndarray:
    """int64 [C, P, 2], read-only: shape and colour of each class's parts, as in `Scene`."""
    config = data_config("toybirds")
    rows = [[read_code(part, words) for part, words in zip(config["parts"], row, strict=True)]
            for row in list(config["classes"].values())[:classes]]  # fmt: skip
    order = [config["parts"].index(part) for part in PARTS]
    table = np.array([[(shape or 0, -1 if colour is None else colour) for shape, colour in row] for row in rows])
    table = table[:, order]
    table.setflags(write=False)
    return table


def read_code(part: str, words: str) -> tuple[int | None, int | None]:
    """``"hooked red"`` of a beak as indices into `SHAPES` and `COLOURS`; None for what is not said. Raises
    `ConfigError` for what a part cannot be, and unless it is said once."""
    _check_part(part)
    shape = colour = None
    if not words.split():
        raise ConfigError(f"nothing is said of the {part}")
    known = [*SHAPES[part], *([] if part == "eye" else COLOURS)]
    for word in words.split():
        if word not in known:
            raise ConfigError(f"the {part} cannot be {word!r}: {suggest(word, known)}")
        if word in SHAPES[part]:
            again, shape = shape, SHAPES[part].index(word)
        else:
            again, colour = colour, list(COLOURS).index(word)
        if again is not None:
            raise ConfigError(f"the {part} cannot be {words!r}: that is two of a kind")
    return shape, colour


def possible_classes(birds: Scene | Tensor, hidden: Collection[str] = (), classes: int = 20) -> Tensor:
    """bool [B, C]: which classes a bird may be of when the ``hidden`` parts are not seen.

    ``birds`` may also be a ``code`` [B, P, 2] alone. None is possible for a bird changed into what no class is.
    """
    code = birds.code if isinstance(birds, Scene) else birds
    for part in hidden:
        _check_part(part)
    table = torch.tensor(codes(classes), device=code.device)
    unseen = torch.tensor([part in hidden for part in PARTS], device=code.device)
    return ((code[:, None] == table).all(3) | unseen).all(2)


def _check_part(part: str) -> None:
    if part not in PARTS:
        raise ConfigError(f"a bird has no {part!r}: {suggest(part, PARTS)}")
