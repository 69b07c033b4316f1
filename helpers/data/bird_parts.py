"""The anatomy of a toy bird: each part as feathers and ovals, and how a batch of them becomes layers of paint.

Coordinates are of the bird's own frame: it faces right, y points down, and 1 is half an image's side at scale 1.
Every shape is a signed distance field; its coverage of a pixel is clamp(0.5 - distance / pixel).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from helpers.data.bird_layers import Layer, Window, chosen, project, window
from helpers.data.bird_scenes import COLOURS, SHAPES, Scene

INK, WHITE = (0.13, 0.12, 0.16), (1.0, 1.0, 1.0)

# Feathers: a stroke from its root (x, y), turned clockwise from +x by an angle in degrees, of a length, with a radius
# at its root and one at its tip; bend is the curvature, towards clockwise. A shape of fewer repeats its last one.
FEATHERS = {
    "tail": {
        "fan": ((-0.24, 0.17, 130, 0.28, 0.03, 0.065, 0.0), (-0.24, 0.17, 150, 0.33, 0.03, 0.068, 0.0),
                (-0.24, 0.15, 170, 0.28, 0.03, 0.065, 0.0)),
        "stick": ((-0.22, 0.15, 150, 0.56, 0.075, 0.068, 0.0),) * 3,
        "forked": ((-0.22, 0.16, 136, 0.58, 0.085, 0.010, -0.35), (-0.22, 0.15, 164, 0.58, 0.085, 0.010, 0.35),
                   (-0.22, 0.15, 164, 0.58, 0.085, 0.010, 0.35)),
    },
    "crest": {
        "cone": ((0.24, -0.36, -112, 0.31, 0.115, 0.002, 0.0),) * 3,
        "feathers": ((0.29, -0.38, -72, 0.21, 0.010, 0.030, 0.5), (0.24, -0.38, -103, 0.24, 0.010, 0.030, -0.5),
                     (0.19, -0.36, -134, 0.21, 0.010, 0.030, -0.9)),
    },
    "beak": {
        "cone": ((0.41, -0.245, 6, 0.23, 0.100, 0.004, 0.0),),
        "needle": ((0.40, -0.245, 3, 0.44, 0.044, 0.010, 0.12),),
        "hooked": ((0.39, -0.265, -20, 0.25, 0.110, 0.014, 3.8),),
    },
    "legs": {
        "short": ((-0.02, 0.24, 90, 0.20, 0.029, 0.027, 0.0), (0.10, 0.22, 90, 0.22, 0.029, 0.027, 0.0),
                  (-0.05, 0.45, 0, 0.10, 0.027, 0.018, 0.0), (0.07, 0.45, 0, 0.10, 0.027, 0.018, 0.0)),
        "long": ((-0.02, 0.24, 90, 0.37, 0.019, 0.018, 0.0), (0.10, 0.22, 90, 0.39, 0.019, 0.018, 0.0),
                 (-0.045, 0.615, 0, 0.09, 0.020, 0.016, 0.0), (0.075, 0.615, 0, 0.09, 0.020, 0.016, 0.0)),
    },
}  # fmt: skip

# Ovals: centre (x, y), angle in degrees, radius along and across.
BODY = (-0.02, 0.06, -30, 0.37, 0.255)
HEAD = (0.27, -0.25, 0, 0.19, 0.19)
BELLY = (0.10, 0.135, -38, 0.23, 0.155)
WING = (-0.09, 0.03, -24, 0.29, 0.145)
EYE = (0.325, -0.285, 0, 0.058, 0.058)
RING = (0.325, -0.285, 0, 0.088, 0.088)
GLINT = (0.345, -0.305, 0, 0.018, 0.018)

SILHOUETTE = (0.06, -0.04, 0.50)  # the middle of body and head, and how far they reach
NO_SHAPE = {"crest": SHAPES["crest"].index("none")}

NECK = 0.13  # over which body and head melt into one
WING_TAPER = 0.75  # how much broader the wing is at the shoulder
OUTLINE, OUTLINE_SHADE = 0.017, 0.62  # width, and brightness against that of the part
WING_SHADE = 0.80  # the wing's own colour against the body's
BARS = (0.115, 0.026, 0.9)  # period along the wing, half width, bend
SPOTS = (0.105, 0.036)  # period both ways, radius
PATTERN_INSET = 0.022  # of a pattern within its wing


Number = float | Tensor


def layers(scene: Scene) -> Iterator[Layer]:
    """The birds alone, back to front, without what ``scene.without`` names."""
    for part, painter in PAINTERS:
        if part not in scene.without:
            yield from painter(scene, part)


# ---------------------------------------------------------------------------------------------- distance fields


def feather(u: Tensor, v: Tensor, length: Tensor, root: Tensor, tip: Tensor, bend: Tensor) -> Tensor:
    """A stroke from radius ``root`` to radius ``tip``."""
    if bend.any():
        v = v - u * u * bend
    on = torch.minimum(u.clamp(min=0), length)
    far = (u - on).square_().add_(v.square()).sqrt_()
    return far.sub_(root).sub_(on.mul_((tip - root) / length))


def oval(u: Tensor, v: Tensor, along: float, across: float, taper: float = 0.0) -> Tensor:
    """An ellipse, to first order; ``taper`` makes it broader where u > 0."""
    if taper:
        v = v / (1 + u.clamp(-along, along).mul_(taper))
    u2, v2 = u * u, v * v
    slope = (u2 / along**4).add_(v2 / across**4).add_(1e-9).sqrt_().mul_(2)
    return u2.div_(along**2).add_(v2.div_(across**2)).sub_(1).div_(slope)


def melt(one: Tensor, other: Tensor, over: float) -> Tensor:
    """The union of two shapes, its crease filled over a width."""
    share = (other - one).div_(2 * over).add_(0.5).clamp_(0, 1)
    filled = (1 - share).mul_(share).mul_(over)
    return (one - other).mul_(share).add_(other).sub_(filled)


def bars(u: Tensor, v: Tensor) -> Tensor:
    """Stripes across, every ``BARS[0]``."""
    period, half, bend = BARS
    phase = (v * v).mul_(bend).add_(u).div_(period)
    return phase.sub_(phase.floor()).sub_(0.5).abs_().mul_(period).sub_(half)


def spots(u: Tensor, v: Tensor) -> Tensor:
    """A lattice of discs; every other row is set off by half a period."""
    period, radius = SPOTS
    v = v / period
    row = v.floor()
    u = (u / period).add_(row, alpha=0.5)
    u, v = u.sub_(u.floor()).sub_(0.5), v.sub_(row).sub_(0.5)
    return u.square_().add_(v.square_()).sqrt_().mul_(period).sub_(radius)


# ---------------------------------------------------------------------------------------------- painters of parts


def _feathers(scene: Scene, part: str) -> list[Layer]:
    table, centre, reach = feather_table(part)
    birds = _those(scene.shape(part) != NO_SHAPE.get(part, -1))
    at = _around(scene, birds, *centre, reach)
    x, y, cos, sin, *form = table.to(birds.device)[chosen(scene.shape(part), birds)].unbind(-1)  # [n, feathers] each
    distance = feather(*_local(at, x, y, cos, sin), *(value[..., None, None] for value in form)).amin(1)
    return _layer(part, at, distance, chosen(scene.colour(part), birds))


def _body(scene: Scene, part: str) -> list[Layer]:
    at = _around(scene, _everyone(scene), *SILHOUETTE)
    return _layer(part, at, melt(_oval(at, BODY), _oval(at, HEAD), NECK), scene.colour(part))


def _belly(scene: Scene, part: str) -> list[Layer]:
    at = _around(scene, _everyone(scene), *BELLY[:2], BELLY[3])
    distance = torch.maximum(_oval(at, BELLY), _oval(at, BODY).add_(OUTLINE))
    return _layer(part, at, distance, scene.colour(part), outlined=False)


def _head(scene: Scene, part: str) -> list[Layer]:
    """Again, over the roots of crest and beak."""
    at = _around(scene, _everyone(scene), *HEAD[:2], HEAD[3])
    return _layer(part, at, _oval(at, HEAD).add_(OUTLINE), scene.colour(part), outlined=False)


def _eye(scene: Scene, part: str) -> Iterator[Layer]:
    everyone, ringed = _everyone(scene), _those(scene.shape(part) == SHAPES[part].index("ringed"))
    cream = scene.palette[ringed, list(COLOURS).index("cream")]
    ink, white = (torch.tensor(colour, device=cream.device).expand(len(scene), 3) for colour in (INK, WHITE))
    for shape, birds, colour in ((RING, ringed, cream), (EYE, everyone, ink), (GLINT, everyone, white)):
        at = _around(scene, birds, *shape[:2], shape[3])
        yield from _layer(part, at, _oval(at, shape), colour, outlined=shape is RING)


def _wing(scene: Scene, part: str) -> Iterator[Layer]:
    at = _around(scene, _everyone(scene), *WING[:2], WING[3])
    u, v = _local(at, *_placed(WING))
    distance = oval(u, v, *WING[3:], WING_TAPER)
    yield from _layer(part, at, distance, scene.colour("body") * WING_SHADE)
    for name, pattern in (("barred", bars), ("spotted", spots)):
        some = _those(scene.shape(part) == SHAPES[part].index(name))
        inside = torch.maximum(pattern(u[some], v[some]), distance[some].add_(PATTERN_INSET))
        yield from _layer(part, at.some(some), inside, scene.colour(part)[some], outlined=False)


PAINTERS: tuple[tuple[str, Callable[[Scene, str], Iterator[Layer] | list[Layer]]], ...] = (
    ("tail", _feathers), ("legs", _feathers), ("body", _body), ("belly", _belly), ("crest", _feathers),
    ("beak", _feathers), ("body", _head), ("eye", _eye), ("wing", _wing),
)  # fmt: skip
"""What paints each part, back to front."""


# ------------------------------------------------------------------------------------------------------ helpers


def _layer(part: str, at: Window, distance: Tensor, colour: Tensor, outlined: bool = True) -> list[Layer]:
    if not len(at.birds):
        return []
    per_unit = at.per_unit[:, None, None]
    cover = (distance * per_unit).neg_().add_(0.5).clamp_(0, 1)
    shade = at.light
    if outlined:
        rim = (distance + OUTLINE).mul_(per_unit).add_(0.5).clamp_(0, 1)
        shade = rim.mul_(OUTLINE_SHADE - 1).add_(1).mul_(at.light)
    return [Layer(part, at, cover, shade, colour)]


def _around(scene: Scene, birds: Tensor, x: float, y: float, reach: float) -> Window:
    return window(scene, birds, chosen(scene.in_image(x, y), birds), reach * scene.largest)


def _local(at: Window, x: Number, y: Number, cos: Number, sin: Number) -> tuple[Tensor, Tensor]:
    """The window's pixels along a shape and across it, in the bird's unit: [n, side, side], or [n, F, side, side] where
    the shapes' places x, y and directions cos, sin are [n, F]."""
    ahead, down = at.to_bird.unbind(1)
    if isinstance(cos, Tensor):
        ahead, down = ahead[:, None], down[:, None]
        x, y, cos, sin = (value[..., None] for value in (x, y, cos, sin))
    along, across = ahead * cos + down * sin, down * cos - ahead * sin
    along[..., 2:] -= cos * x + sin * y
    across[..., 2:] -= cos * y - sin * x
    return project(at, along), project(at, across)


def _placed(shape: tuple[float, ...]) -> tuple[float, float, float, float]:
    x, y, degrees = shape[:3]
    return x, y, math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


def _oval(at: Window, shape: tuple[float, ...]) -> Tensor:
    return oval(*_local(at, *_placed(shape)), *shape[3:])


def _everyone(scene: Scene) -> Tensor:
    return torch.arange(len(scene), device=scene.scale.device)


def _those(chosen: Tensor) -> Tensor:
    return chosen.nonzero()[:, 0]


@lru_cache
def feather_table(part: str) -> tuple[Tensor, tuple[float, float], float]:
    """A part's feathers [shapes, feathers, 8], their angles as cosine and sine; a point, and how far from it any of
    them reaches."""
    drawn = FEATHERS[part]
    shapes = [drawn.get(name, next(iter(drawn.values()))) for name in SHAPES[part]]
    table = torch.tensor([[(*_placed(row), *row[3:]) for row in shape] for shape in shapes])
    x, y, cos, sin, length, root, tip, bend = table.view(-1, 8).T
    u = length * torch.tensor([[0.0], [0.5], [1.0]])
    v = bend * u * u
    points = torch.stack([x + cos * u - sin * v, y + sin * u + cos * v], -1).view(-1, 2)
    centre = (points.amin(0) + points.amax(0)) / 2
    reach = (points - centre).norm(dim=1).max() + torch.maximum(root, tip).max()
    return table, tuple(centre.tolist()), float(reach)
