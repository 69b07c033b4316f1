"""Drawing toy birds: sky, clutter, the bird's parts, what lies before it, and the sensor's noise; and the parts' masks.

A layer is painted inside the window that it can reach, for all birds of a batch at once. Only exactly rounded
arithmetic touches the pixels, so that an image's bytes do not depend on the birds drawn beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from helpers import runtime
from helpers.data import bird_parts
from helpers.data.bird_layers import Layer, chosen, project, window
from helpers.data.bird_scenes import BEHIND, BRANCHES, PARTS, Scene

LEAF_REACH, FRONT_REACH = 0.30, 0.35  # half the longest length of a leaf, in half sides
MIDRIB = 0.14  # how much darker the middle of a leaf is
CUE, SUN = (-0.82, -0.82, 0.11), (1.0, 0.55, 0.1)  # the disc in the corner: centre in the image, radius; its colour
NOISE_BANK = 1 << 21  # standard normal numbers; an image's noise is one stretch of them
CHUNK = 32  # images drawn together: what they need stays in the processor's cache


def draw(scene: Scene) -> Tensor:
    """The images, float32 [B, 3, H, W] in [0, 1]."""
    images = torch.empty(len(scene), 3, scene.size, scene.size, device=scene.scale.device)
    for start in range(0, len(scene), CHUNK):
        _draw(scene[start : start + CHUNK], images[start : start + CHUNK])
    return images


def masks(scene: Scene) -> Tensor:
    """float32 [B, P, H, W]: the share of each pixel that shows each part of `PARTS`, after what lies before it."""
    found = torch.zeros(len(scene), len(PARTS), scene.size, scene.size, device=scene.scale.device)
    for start in range(0, len(scene), CHUNK):
        _uncover(scene[start : start + CHUNK], found[start : start + CHUNK])
    return found


def _draw(scene: Scene, canvas: Tensor) -> None:
    if scene.backdrop is not None:
        canvas.copy_(scene.backdrop)
    else:
        down = scene.places.add(1).div(2)[None, None, :, None]
        top, bottom = scene.sky[:, 0, :, None, None], scene.sky[:, 1, :, None, None]
        canvas.copy_(top + (bottom - top) * down)
    if scene.backdrop is None and not scene.clear:
        for index in range(BRANCHES):
            _branch(scene, index, canvas)
        for index in range(BRANCHES, BEHIND):
            _paint(canvas, _leaf(scene, index, LEAF_REACH))
    for layer in foreground(scene):
        _paint(canvas, layer)
    if scene.noise:
        canvas += _noise(scene)
    canvas.clamp_(0, 1)


def _paint(canvas: Tensor, layer: Layer) -> None:
    if len(layer.colour):
        paint = layer.colour[:, :, None, None] * layer.shade[:, None]
        layer.window.write(canvas, layer.window.read(canvas).lerp_(paint, layer.cover[:, None]))


def _uncover(scene: Scene, found: Tensor) -> None:
    """From front to back: what a layer covers is gone for those behind it."""
    left = torch.ones_like(found[:, :1])
    for layer in reversed(list(foreground(scene))):
        patch = layer.window.read(left)
        shown = patch * layer.cover[:, None]
        layer.window.write(left, patch - shown)
        if layer.part:
            mask = found[:, PARTS.index(layer.part), None]
            layer.window.write(mask, layer.window.read(mask) + shown)
    found.clamp_(max=1)


def foreground(scene: Scene) -> Iterator[Layer]:
    """The birds and what lies before them, back to front."""
    yield from bird_parts.layers(scene)
    yield _leaf(scene, BEHIND, FRONT_REACH)
    yield _disc(scene)


def _branch(scene: Scene, index: int, canvas: Tensor) -> None:
    """A branch from border to border."""
    x, y, cos, sin, _, width, soft = scene.piece[:, index].unbind(1)
    soft = _softness(scene, soft)
    across = torch.stack([-sin, cos, sin * x - cos * y], 1)[..., None, None] / soft[:, None]
    distance = across[:, 0] * scene.places + (across[:, 1] * scene.places[:, None] + across[:, 2])
    cover = distance.abs_().sub_(width[:, None, None] / soft).neg_().add_(0.5).clamp_(0, 1)
    canvas.lerp_(scene.piece_colour[:, index, :, None, None], cover[:, None])


def _leaf(scene: Scene, index: int, reach: float) -> Layer:
    """A leaf, if shown, is what two equal discs share."""
    birds = scene.piece_shown[:, index].nonzero()[:, 0]
    x, y, cos, sin, length, width, soft = chosen(scene.piece[:, index], birds).unbind(1)
    at = window(scene, birds, torch.stack([x, y], 1), reach)
    u = project(at, torch.stack([cos, sin, -(cos * x + sin * y)], 1))
    v = project(at, torch.stack([-sin, cos, sin * x - cos * y], 1)).abs_()
    radius, soft = ((length * length + width * width) / (2 * width))[:, None, None], _softness(scene, soft)
    distance = (v + (radius - width[:, None, None])).square_().add_(u.square_()).sqrt_().sub_(radius)
    cover = distance.div_(soft).neg_().add_(0.5).clamp_(0, 1)
    shade = v.div_(soft).clamp_(max=1).mul_(MIDRIB).add_(1 - MIDRIB)
    return Layer(None, at, cover, shade, chosen(scene.piece_colour[:, index], birds))


def _softness(scene: Scene, soft: Tensor) -> Tensor:
    """The width of an edge [n, 1, 1]: a pixel at least."""
    return soft.clamp(min=2 / scene.size)[:, None, None]


def _disc(scene: Scene) -> Layer:
    """The cue in the corner."""
    birds = scene.corner.nonzero()[:, 0]
    x, y, radius = CUE
    at = window(scene, birds, torch.tensor([[x, y]], device=birds.device).expand(len(birds), 2), radius)
    far = ((at.x - x).square() + (at.y - y).square()).sqrt_()
    cover = ((radius - far) * (scene.size / 2) + 0.5).clamp_(0, 1)
    colour = torch.tensor(SUN, device=birds.device).expand(len(birds), 3)
    return Layer(None, at, cover, torch.ones_like(at.light), colour)


def _noise(scene: Scene) -> Tensor:
    """Each image's own stretch of the bank: drawing new numbers would take as long as drawing the bird."""
    n = 3 * scene.size**2
    start = (scene.noise_at * (NOISE_BANK - n)).long()
    stretches = _noise_bank(scene.noise, scene.scale.device).unfold(0, n, 1)
    return stretches.index_select(0, start).view(-1, 3, scene.size, scene.size)


@lru_cache(maxsize=2)
def _noise_bank(deviation: float, device: torch.device) -> Tensor:
    return torch.randn(NOISE_BANK, generator=runtime.generator(0, "toybirds", "noise")).mul_(deviation).to(device)
