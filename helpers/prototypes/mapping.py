"""From the cells of a similarity map to pixels (spec section 4), for all images and prototypes at once.

    maps = pixel_map(similarity, field)                     # PixPNet's: what a cell saw is what is coloured
    maps = pixel_map(similarity, field, method="upsample")  # ProtoPNet's: as if cell (i, j) were about block (i, j)
    where = readout(similarity, field, "bbox")              # boxes and centres, for consistency and stability

Receptive fields and Gaussians are products of one row and one column factor, so a map takes Hz + Wz steps of whole
tensors rather than Hz * Wz. Similarities are given for those prototypes alone that are asked for: [B, P, Hz, Wz] with
any P, and nothing is computed for others.

Methods that take more than similarities, such as relevance that is propagated through the weights, have the same
result, [B, P, H, W], but no place here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import runtime
from helpers.config import ConfigError, suggest
from helpers.prototypes.receptive_field import ReceptiveField

REDUCTIONS = ("max", "sum", "mean")
DRAWN = 0.95  # ProtoPNet draws a box around the pixels from this quantile of the up-sampled map upwards
IN_CACHE = 2**18  # pixels of maps that a CPU works on together: they pass through a core's own cache again and again
AT_ONCE = 256  # maps that are held while their centroids are taken


@dataclass(frozen=True)
class Options:
    """What `pixel_map` hands to a method."""

    reduce: str
    sigma_factor: float
    seed: int


@dataclass(frozen=True)
class Readout:
    """Where prototypes look, one place an image and prototype."""

    box: Tensor  # int64 [B, P, 4]: y0, y1, x0, x1, half-open
    centre: Tensor  # float32 [B, P, 2]: y, x; the centre of pixel (0, 0) is 0, 0


def pixel_map(
    similarity: Tensor,
    field: ReceptiveField,
    method: str = "rf",
    *,
    reduce: str = "max",
    sigma_factor: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Similarity maps [B, P, Hz, Wz] in pixels: [B, P, H, W], of the same floating type.

    ``rf``: the value S of a cell is spread over its receptive field by a Gaussian around the field's un-clipped centre,
    of standard deviation ``sigma_factor`` times its un-clipped side and 1 at its peak (section 4.1). Where fields
    overlap, a pixel takes the ``max``, the ``sum`` or the ``mean`` of what reaches it. Negative similarities count as
    0; a pixel that no cell sees is 0, its mean NaN.
    ``legacy``: the same by the original's rule for the window, see `_assumed`.
    ``upsample``: bicubic interpolation, signed (section 4.3).
    ``random``: uniform in [0, 1) for each pixel and prototype, drawn from the stream (seed, "random map"): images that
    come in different calls want different seeds.

    Raises `ConfigError` for an unknown method or reduction, ``ValueError`` for maps that are not the field's.
    """
    _check(similarity, field)
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r} of a pixel map: {suggest(method, METHODS)}")
    if reduce not in REDUCTIONS:
        raise ConfigError(f"unknown reduction {reduce!r}: {suggest(reduce, REDUCTIONS)}")
    if not sigma_factor > 0:
        raise ConfigError(f"sigma_factor must be positive, not {sigma_factor!r}")
    return METHODS[method](similarity, field, Options(reduce, sigma_factor, seed))


def readout(similarity: Tensor, field: ReceptiveField, mode: str = "bbox") -> Readout:
    """Boxes and centres of similarity maps [B, P, Hz, Wz] (section 4.2).

    ``bbox``: the receptive field of the arg-max cell (of the first, if there are several).
    ``heatmap_max``, ``heatmap_mean``: the pixels that attain the maximum of the map ``rf`` under that reduction.
    ``upsample``: the block of the image that stands for the arg-max cell in up-sampling, around round((i + 1/2) H/Hz).
    ``center``: the whole image, whatever the similarities are.

    Raises `ConfigError` for an unknown mode, ``ValueError`` for maps that are not the field's.
    """
    _check(similarity, field)
    if mode not in READOUTS:
        raise ConfigError(f"unknown readout {mode!r}: {suggest(mode, READOUTS)}")
    return READOUTS[mode](similarity, field)


def upsample_box(similarity: Tensor, input_size: tuple[int, int], quantile: float = DRAWN) -> Tensor:
    """The boxes int64 [B, P, 4] that ProtoPNet draws: the tightest around the pixels that reach the ``quantile`` of the
    up-sampled map (section 4.3)."""
    flat = _interpolate(similarity, input_size).flatten(2)
    return bounding_box(highest(flat, quantile).unflatten(2, input_size))


def highest(flat: Tensor, quantile: float = DRAWN) -> Tensor:
    """bool, of the shape of ``flat`` [..., N]: what reaches the ``quantile`` of its N values."""
    rank = math.ceil(quantile * (flat.shape[-1] - 1))  # a pixel reaches an interpolated quantile where it reaches this
    return flat >= flat.kthvalue(rank + 1, dim=-1, keepdim=True).values


def bounding_box(mask: Tensor) -> Tensor:
    """The tightest boxes int64 [..., 4] (y0, y1, x0, x1, half-open) around what is true in ``mask`` [..., H, W]; zeros
    where nothing is."""
    sides = []
    for along in (-1, -2):
        line = mask.any(along).byte()
        first, last = line.argmax(-1), line.shape[-1] - line.flip(-1).argmax(-1)
        sides += [first, last * line.amax(-1)]
    return torch.stack(sides, -1)


def in_box(box: Sequence[int], like: Tensor) -> Tensor:
    """bool [H, W]: the pixels of ``like`` [..., H, W] in ``box`` (y0, y1, x0, x1, half-open)."""
    mask = torch.zeros(like.shape[-2:], dtype=torch.bool, device=like.device)
    mask[box[0] : box[1], box[2] : box[3]] = True
    return mask


def cells(flat: Tensor, field: ReceptiveField) -> Tensor:
    """Flat cell numbers [...] as rows and columns: int64 [..., 2]."""
    columns = field.size[1]
    return torch.stack((flat // columns, flat % columns), -1)


def boxes(flat: Tensor, field: ReceptiveField) -> Tensor:
    """The receptive fields int64 [..., 4] of flat cell numbers [...]."""
    return torch.as_tensor(field.lookup, device=flat.device).flatten(0, 1)[flat]


# ------------------------------------------------------------------------------------------------------- pixel maps


def _rf(similarity: Tensor, field: ReceptiveField, options: Options) -> Tensor:
    return _spread(similarity, _windows(_true, field, options.sigma_factor, similarity), options.reduce)


def _legacy(similarity: Tensor, field: ReceptiveField, options: Options) -> Tensor:
    return _spread(similarity, _windows(_assumed, field, options.sigma_factor, similarity), options.reduce)


def _upsample(similarity: Tensor, field: ReceptiveField, options: Options) -> Tensor:
    return _interpolate(similarity, field.input_size)


def _random(similarity: Tensor, field: ReceptiveField, options: Options) -> Tensor:
    stream = runtime.generator(options.seed, "random map")
    return torch.rand(*similarity.shape[:2], *field.input_size, generator=stream).to(similarity)


METHODS: dict[str, Callable[[Tensor, ReceptiveField, Options], Tensor]] = {
    "rf": _rf,
    "legacy": _legacy,
    "upsample": _upsample,
    "random": _random,
}


def _spread(similarity: Tensor, windows: Windows, reduce: str) -> Tensor:
    """The maps [B, P, H, W] of S_ij * rows[i, y] * columns[j, x] over cells."""
    s, rows, columns = similarity.clamp(min=0), windows.rows, windows.columns
    if reduce == "max":  # max_ij = max_i rows_i max_j, for nothing is negative
        bands = s.new_zeros(*s.shape[:3], columns.shape[1])
        for j, reach in enumerate(windows.reach[1]):
            here = bands[..., reach]
            torch.maximum(here, s[..., j, None] * columns[j, reach], out=here)
        heat = s.new_zeros(*s.shape[:2], *windows.seen.shape)
        some = max(1, IN_CACHE // windows.seen.numel() if s.device.type == "cpu" else s[..., 0, 0].numel())
        scratch = s.new_empty(some, *windows.seen.shape)
        for maps, own in zip(heat.flatten(0, 1).split(some), bands.flatten(0, 1).split(some), strict=True):
            for i, reach in enumerate(windows.reach[0]):
                here = maps[:, reach]
                there = scratch[: len(maps), : here.shape[1]]
                torch.maximum(here, torch.mul(own[:, i, None], rows[i, reach, None], out=there), out=here)
        return heat
    total = torch.einsum("iy,bpij,jx->bpyx", rows, s, columns)
    return total / windows.seen if reduce == "mean" else total


class Windows(NamedTuple):
    """Two factors that are positive where cells see something and zero elsewhere, and what follows from them."""

    rows: Tensor  # [Hz, H]
    columns: Tensor  # [Wz, W]
    seen: Tensor  # [H, W]: by how many cells
    reach: list[list[slice]]  # for both, the pixels where the window of a cell is not zero


Rule = Callable[[ReceptiveField, float], list[np.ndarray]]


def _windows(rule: Rule, field: ReceptiveField, sigma_factor: float, like: Tensor) -> Windows:
    return _made(rule, field, sigma_factor, like.dtype, like.device)


@lru_cache(maxsize=16)  # they are the same for all images and prototypes
def _made(rule: Rule, field: ReceptiveField, sigma_factor: float, dtype: torch.dtype, device: torch.device) -> Windows:
    windows = rule(field, sigma_factor)
    seen = np.outer(*((window > 0).sum(0) for window in windows))
    with torch.inference_mode(False):  # they outlive the call that made them, and the next one may want gradients
        tensors = [torch.from_numpy(array).to(device, dtype) for array in (*windows, seen)]
    return Windows(*tensors, [[_reach(window) for window in axis] for axis in windows])


def _true(field: ReceptiveField, sigma_factor: float) -> list[np.ndarray]:
    """[cells, pixels] of each axis: Gaussians around the middles of the un-clipped intervals, 1 at the pixels nearest
    to them; 1 all over for cells that see everything, wherever the image may end. One rule for all networks."""
    found = []
    for seen, unclipped, n in zip(field.edges, field.unclipped_edges, field.input_size, strict=True):
        endless = ~np.isfinite(unclipped).all(1, keepdims=True)
        start, end = np.where(endless, (0.0, 1.0), unclipped).T[:, :, None]
        window = _gaussian(np.arange(n) - (start + end - 1) / 2, sigma_factor * (end - start))
        found.append(np.where(endless, 1.0, window) * _inside(seen, n))
    return found


def _assumed(field: ReceptiveField, sigma_factor: float) -> list[np.ndarray]:
    """The original's windows: kappa, the largest clipped side of all cells, stands for the side. A window is cut at its
    start where the field begins at the border of the image, else at its end, to the size of the clipped field.

    Where more than one cell sees the whole image, that would say nothing about their centres, and those of all cells
    are taken to be m_i = round((i + 1/2) H/Hz), and kappa grows by twice the distance of the farthest of them.
    """
    sides = [np.diff(edges)[:, 0] for edges in field.edges]
    kappa = int(max(side.max() for side in sides))
    whole = [np.flatnonzero(side == n) for side, n in zip(sides, field.input_size, strict=True)]
    middles = [
        np.where(start == 0, end - 1 - (kappa - 1) / 2, start + (kappa - 1) / 2)
        for start, end in (edges.T for edges in field.edges)
    ]
    if len(whole[0]) * len(whole[1]) > 1:
        middles = [_middles(n, count) for n, count in zip(field.input_size, field.size, strict=True)]
        far = max(abs((n - 1) / 2 - m[w]).max() for n, m, w in zip(field.input_size, middles, whole, strict=True))
        kappa += round(2 * far)
    sigma = np.full((1, 1), sigma_factor * kappa)
    return [
        _gaussian(np.arange(n) - m[:, None], sigma) * _inside(seen, n)
        for seen, n, m in zip(field.edges, field.input_size, middles, strict=True)
    ]


def _gaussian(offset: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """exp(-offset^2 / (2 sigma^2)), divided by its largest value on the grid of pixels, inside the image or not."""
    nearest = np.abs(offset[:, :1] - np.round(offset[:, :1]))  # half a pixel for a side of even length
    return np.exp((nearest**2 - offset**2) / (2 * sigma**2))


def _inside(seen: np.ndarray, n: int) -> np.ndarray:
    pixels = np.arange(n)
    return (seen[:, :1] <= pixels) & (pixels < seen[:, 1:])


def _reach(window: np.ndarray) -> slice:
    """The pixels at which a window [n] is not zero."""
    found = np.flatnonzero(window)
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


def _interpolate(similarity: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(similarity, size, mode="bicubic", align_corners=False)


def _middles(n: int, count: int) -> np.ndarray:
    """Where the middles of ``count`` equal blocks of n pixels lie, rounded: round((i + 1/2) n/count)."""
    return np.round((np.arange(count) + 0.5) * n / count)


def _check(similarity: Tensor, field: ReceptiveField) -> None:
    if similarity.ndim != 4 or similarity.shape[2:] != field.size or not similarity.is_floating_point():
        raise ValueError(
            f"expected similarities [B, P, {', '.join(map(str, field.size))}] of floats, one for each cell "
            f"of the receptive fields, not {similarity.dtype} {tuple(similarity.shape)}"
        )


# --------------------------------------------------------------------------------------------------------- readouts


def _bbox(similarity: Tensor, field: ReceptiveField) -> Readout:
    box = boxes(similarity.flatten(2).argmax(2), field)
    return Readout(box, _middle(box))


def _heatmap(similarity: Tensor, field: ReceptiveField, reduce: str) -> Readout:
    found = []
    for some in similarity.flatten(0, 1)[:, None].split(AT_ONCE):
        heat = pixel_map(some, field, reduce=reduce).nan_to_num(nan=-1.0)  # no cell sees these pixels
        top = heat == heat.amax((2, 3), keepdim=True)
        count = top.sum((2, 3))
        means = [
            (top.sum(other) * torch.arange(n, device=heat.device)).sum(2) / count
            for other, n in zip((3, 2), field.input_size, strict=True)
        ]
        found.append((bounding_box(top), torch.stack(means, -1)))
    box, centre = (torch.cat(parts).view(*similarity.shape[:2], -1) for parts in zip(*found, strict=True))
    return Readout(box, centre)


def _block(similarity: Tensor, field: ReceptiveField) -> Readout:
    at = cells(similarity.flatten(2).argmax(2), field)
    sides, middles = [], []
    for axis, (n, count) in enumerate(zip(field.input_size, similarity.shape[2:], strict=True)):
        i = at[..., axis]
        sides += [i * n // count, -((i + 1) * -n // count)]  # rounded outwards
        middles.append(torch.from_numpy(_middles(n, count)).to(i.device)[i])
    return Readout(torch.stack(sides, -1), torch.stack(middles, -1).float())


def _center(similarity: Tensor, field: ReceptiveField) -> Readout:
    h, w = field.input_size
    box = torch.tensor([0, h, 0, w], device=similarity.device).expand(*similarity.shape[:2], 4)
    return Readout(box, _middle(box))


def _middle(box: Tensor) -> Tensor:
    """Centres [..., 2] of boxes [..., 4], in pixels."""
    return (box[..., [0, 2]] + box[..., [1, 3]] - 1) / 2


READOUTS: dict[str, Callable[[Tensor, ReceptiveField], Readout]] = {
    "bbox": _bbox,
    "heatmap_max": partial(_heatmap, reduce="max"),
    "heatmap_mean": partial(_heatmap, reduce="mean"),
    "upsample": _block,
    "center": _center,
}
