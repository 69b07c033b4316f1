"""What a picture of toy birds shows, before it is drawn: parts, palette, pose, light and clutter of each bird.

Every number is drawn by counting: it is a hash of the seed, the name of the draw, and the bird's index, for a whole
batch at once. So a bird does not depend on which others are drawn, and one more draw changes no other.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from helpers.runtime import stream

PARTS = ("beak", "crest", "wing", "tail", "legs", "belly", "body", "eye")
SHAPES = {
    "beak": ("cone", "needle", "hooked"),
    "crest": ("none", "cone", "feathers"),
    "wing": ("plain", "barred", "spotted"),
    "tail": ("fan", "stick", "forked"),
    "legs": ("short", "long"),
    "belly": ("oval",),
    "body": ("round",),
    "eye": ("dot", "ringed"),
}
"""The shapes of each part; its code counts them."""

COLOURLESS = {"crest": ("none",), "wing": ("plain",), "eye": ("dot", "ringed")}
"""Shapes that have no colour of their own."""

COLOURS = {
    "red": (0.84, 0.27, 0.24), "yellow": (0.96, 0.73, 0.20), "teal": (0.13, 0.58, 0.53),
    "blue": (0.23, 0.42, 0.78), "plum": (0.55, 0.29, 0.58), "cream": (0.98, 0.93, 0.82),
}  # fmt: skip
"""The palette: red, green and blue in [0, 1]."""

SCALES = (0.75, 1.1)
UNIT = 1.1  # half sides that a bird of scale 1 takes for its unit
ROTATION = 20  # degrees, either way
SHIFT = 0.3  # half sides, either way: 15 % of the image
BRIGHTNESS = (0.84, 1.12)
HUE = 12  # degrees, either way
PIECES = (4, 8)  # of clutter behind the bird, at least and at most
BRANCHES, BEHIND = 2, PIECES[1]  # the first pieces are branches, and the one after BEHIND is in front
PETALS = 0.8  # of the leaves behind have a colour of the palette
HAZE = (0.0, 0.25)  # how much a piece behind takes of the sky's colour
OCCLUDED = 0.3  # of all birds have a leaf before them

SKIES = (  # at the top, at the bottom
    ((0.56, 0.74, 0.90), (0.90, 0.95, 0.97)), ((0.62, 0.80, 0.84), (0.93, 0.96, 0.90)),
    ((0.70, 0.74, 0.88), (0.95, 0.93, 0.96)),
)  # fmt: skip
DUSK = ((0.93, 0.55, 0.42), (0.99, 0.85, 0.62))  # the background that is planted as a cue
LEAVES = ((0.36, 0.53, 0.33), (0.52, 0.64, 0.36), (0.27, 0.44, 0.38))
BARKS = ((0.45, 0.35, 0.29), (0.56, 0.46, 0.38))

GOLDEN = 0x9E3779B97F4A7C15  # the step of SplitMix64
Cue = tuple[int, str, float] | None


@dataclass(frozen=True, eq=False)
class Scene:
    """What each image shows, before it is drawn; every tensor has a first dimension of B birds.

    ``label`` int64 [B]; ``code`` int64 [B, P, 2], the shape of each part of `PARTS` among `SHAPES` and its colour among
    `COLOURS`, -1 for none. ``scale`` [B]; ``heading`` [B, 2], cosine and sine of the rotation (clockwise); ``mirror``
    [B], 1 or -1; ``shift`` [B, 2] in half sides. ``palette`` [B, 6, 3]: `COLOURS` in this bird's light. ``sky``
    [B, 2, 3], at the top and at the bottom. ``piece`` [B, 9, 7]: centre (x, y), direction (x, y), half length, half
    width and softness of each piece of clutter, ``piece_colour`` [B, 9, 3], ``piece_shown`` bool [B, 9]. ``corner``
    bool [B]: a disc is planted in the corner. ``noise_at`` in [0, 1) [B]: where the noise of the image is taken from.

    One for all birds: ``size``, pixels a side; ``noise``, its standard deviation; ``without``, parts left out;
    ``clear``: no clutter behind the bird. ``backdrop`` [B, 3, H, W], if given, lies there in place of sky and clutter.
    """

    label: Tensor
    code: Tensor
    scale: Tensor
    heading: Tensor
    mirror: Tensor
    shift: Tensor
    palette: Tensor
    sky: Tensor
    piece: Tensor
    piece_colour: Tensor
    piece_shown: Tensor
    corner: Tensor
    noise_at: Tensor
    size: int = 128
    noise: float = 0.02
    without: frozenset[str] = frozenset()
    clear: bool = False
    backdrop: Tensor | None = None

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: int | slice | Tensor | list[int]) -> Scene:
        """Some birds; a single index keeps the first dimension."""
        rows = slice(rows, rows + 1 or None) if isinstance(rows, int) else rows
        return self._each(lambda value: value[rows])

    def to(self, device: torch.device | str) -> Scene:
        return self._each(lambda value: value.to(device))

    def _each(self, change) -> Scene:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(v) for name, v in tensors.items() if isinstance(v, Tensor)})

    def behind(self, other: Scene) -> Scene:
        """These birds before the sky and clutter of ``other``, of as many birds or one; what lies in front stays."""
        other = other if len(other) == len(self) else other[[0] * len(self)]
        taken = {
            name: torch.cat([getattr(other, name)[:, :BEHIND], getattr(self, name)[:, BEHIND:]], 1)
            for name in ("piece", "piece_colour", "piece_shown")
        }
        return replace(self, **taken, sky=other.sky, clear=other.clear, backdrop=other.backdrop)

    @cached_property
    def places(self) -> Tensor:
        """[size]: the centres of a row's pixels, in half sides from the middle."""
        return (torch.arange(self.size, device=self.scale.device) * 2 + (1 - self.size)) / self.size

    @cached_property
    def unit(self) -> Tensor:
        """The bird's unit in half sides [B]."""
        return self.scale * UNIT

    @property
    def largest(self) -> float:
        """The largest `unit` that there can be."""
        return SCALES[1] * UNIT

    @cached_property
    def to_bird(self) -> Tensor:
        """[B, 2, 3]: takes (x, y, 1) of the image to the bird's frame."""
        cos, sin = (self.heading / self.unit[:, None]).unbind(1)
        ahead, down = torch.stack([cos, sin], 1) * self.mirror[:, None], torch.stack([-sin, cos], 1)
        x, y = self.shift.unbind(1)
        return torch.stack([torch.stack([a, b, -(a * x + b * y)], 1) for a, b in (ahead.unbind(1), down.unbind(1))], 1)

    def in_image(self, x: float, y: float) -> Tensor:
        """[B, 2]: where a point of the bird's frame is in the image."""
        cos, sin = self.heading.unbind(1)
        x = x * self.mirror
        return self.shift + self.unit[:, None] * torch.stack([cos * x - sin * y, sin * x + cos * y], 1)

    @property
    def degrees(self) -> Tensor:
        """The rotation, clockwise [B]."""
        return torch.rad2deg(torch.atan2(self.heading[:, 1], self.heading[:, 0]))

    def shape(self, part: str) -> Tensor:
        return self.code[:, PARTS.index(part), 0]

    def colour(self, part: str) -> Tensor:
        """[B, 3]. A crest that the class does not have comes in the body's colour, a wing's pattern in the belly's."""
        chosen = self.code[:, PARTS.index(part), 1]
        if part in ("crest", "wing"):
            other = self.code[:, PARTS.index("body" if part == "crest" else "belly"), 1]
            chosen = torch.where(chosen < 0, other, chosen)
        return self.palette[torch.arange(len(self), device=chosen.device), chosen]


def sample(
    seed: int, indices: np.ndarray, label: np.ndarray, table: np.ndarray, size: int, noise: float, cue: Cue = None
) -> Scene:
    """The scenes of birds ``indices`` [B] with ``label`` [B] and their code in ``table`` [C, P, 2].

    ``cue`` is what is planted on the birds of one class: its label, "background" or "corner", the share of them.
    """
    draw = Counter(seed, indices)
    angle = np.deg2rad(draw("rotation", -ROTATION, ROTATION))
    light = draw("brightness", *BRIGHTNESS)[:, None, None] * _hue_rotation(draw("hue", -HUE, HUE))
    shift, sky = draw("shift", -SHIFT, SHIFT, 2), _sky(draw)
    planted = np.zeros(len(label), bool)
    if cue:
        planted = (label == cue[0]) & (draw("cue") < cue[2])
        if cue[1] == "background":
            sky = np.where(planted[:, None, None], DUSK, sky)
    piece, piece_colour = _pieces(draw), _piece_colours(draw)
    piece[:, BEHIND, :2] += shift  # the last is before the bird, all others fade with their distance
    far = draw("haze", *HAZE, BEHIND, 1)
    piece_colour[:, :BEHIND] += (sky[:, 1:] - piece_colour[:, :BEHIND]) * far
    behind = np.arange(BEHIND) < draw.integer("pieces", PIECES[0], PIECES[1] + 1)[:, None]
    values = {
        "code": table[label],
        "label": label,
        "scale": draw("scale", *SCALES),
        "heading": np.stack([np.cos(angle), np.sin(angle)], 1),
        "mirror": np.where(draw("mirror") < 0.5, 1.0, -1.0),
        "shift": shift,
        "palette": np.clip(np.array(list(COLOURS.values())) @ light, 0, 1),
        "sky": np.clip(sky @ light, 0, 1),
        "piece": piece,
        "piece_colour": np.clip(piece_colour @ light, 0, 1),
        "piece_shown": np.concatenate([behind, draw("occluder")[:, None] < OCCLUDED], 1),
        "corner": planted & (cue is not None and cue[1] == "corner"),
        "noise_at": draw("noise"),
    }
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in values.items()}
    floats = {name: v.float() if v.dtype == torch.float64 else v for name, v in tensors.items()}
    return Scene(**floats, size=size, noise=noise)


class Counter:
    """Random numbers by counting: ``Counter(seed, indices)(name)`` is one number in [0, 1) a bird, a hash of seed, name
    and index (SplitMix64; Steele, Lea and Flood, OOPSLA 2014)."""

    def __init__(self, seed: int, indices: np.ndarray) -> None:
        self.seed, self.indices = seed, indices.astype(np.uint64)

    def __call__(self, name: str, low: float = 0.0, high: float = 1.0, *shape: int) -> np.ndarray:
        """float64 [B, *shape] in [low, high)."""
        n = int(np.prod(shape, dtype=int))
        counts = self.indices[:, None] * np.uint64(n) + np.arange(n, dtype=np.uint64)
        bits = mixed(np.uint64(stream(self.seed, "toybirds", name)) + (counts + np.uint64(1)) * np.uint64(GOLDEN))
        unit = (bits >> np.uint64(11)).astype(np.float64) / (1 << 53)
        return (low + (high - low) * unit).reshape(len(self.indices), *shape)

    def integer(self, name: str, low: int, high: int, *shape: int) -> np.ndarray:
        """int64 [B, *shape] in [low, high)."""
        return np.floor(self(name, low, high, *shape)).astype(np.int64)


def mixed(z: np.ndarray) -> np.ndarray:
    """SplitMix64's output for a state: uint64 of the same shape."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _hue_rotation(degrees: np.ndarray) -> np.ndarray:
    """[B, 3, 3]: what turns colours (rows) about the axis of greys."""
    cos, sin = (f(np.deg2rad(degrees))[:, None, None] for f in (np.cos, np.sin))
    cross = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]) / np.sqrt(3)
    return cos * np.eye(3) + sin * cross + (1 - cos) / 3


def _sky(draw: Counter) -> np.ndarray:
    """[B, 2, 3]: between two of the skies."""
    skies, at = np.array(SKIES), draw("sky", 0, 1, 3)
    weight = at / at.sum(1, keepdims=True)
    return (weight[:, :, None, None] * skies).sum(1)


def _pieces(draw: Counter) -> np.ndarray:
    """[B, 9, 7]: see `Scene`."""
    n = BEHIND + 1
    place, angle = draw("place", -1, 1, n, 2), draw("direction", 0, 2 * np.pi, n)
    length, width, soft = draw("length", 0.15, 0.27, n), draw("width", 0.32, 0.48, n), draw("softness", 0.01, 0.05, n)
    width = width * length
    angle[:, :BRANCHES] = draw("lean", -0.35, 0.35, BRANCHES)
    length[:, :BRANCHES], width[:, :BRANCHES] = 1.4, draw("girth", 0.018, 0.045, BRANCHES)
    place[:, 0, 1] = draw("perch", 0.25, 0.75)
    place[:, -1] *= 0.4
    length[:, -1], width[:, -1], soft[:, -1] = draw("front", 0.22, 0.32), draw("front width", 0.075, 0.12), 0.0
    return np.concatenate([place, np.stack([np.cos(angle), np.sin(angle), length, width, soft], 2)], 2)


def _piece_colours(draw: Counter) -> np.ndarray:
    """[B, 9, 3]: barks, then leaves, green or of the bird's palette: a colour alone tells no part."""
    n = BEHIND + 1 - BRANCHES
    barks = np.array(BARKS)[draw.integer("bark", 0, len(BARKS), BRANCHES)]
    greens = np.array(LEAVES)[draw.integer("leaf", 0, len(LEAVES), n)]
    petals = np.array(list(COLOURS.values()))[draw.integer("petal", 0, len(COLOURS), n)]
    petals = np.where(draw("flowering", 0, 1, n, 1) < PETALS, petals, greens)
    petals[:, -1] = greens[:, -1]  # what is in front of the bird is a leaf
    return np.concatenate([barks, petals], 1)
