"""What maps are worth: areas against the truth, and the published measures beside corrected ones (spec pinets, 6.5).

Published: the absolute error of the water's area over all pixels, and IoU as a mean over tiles, where one without water
counts 0 whatever is predicted. Corrected: both over the pixels that have data, IoU pooled over all tiles. TDR is pooled
in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from helpers.data.flood_chips import DRY, WATER
from helpers.pinets.floods import losses
from helpers.pinets.floods.features import Stored

NAMES = {DRY: "dry", WATER: "water"}
CHUNK = 16  # tiles that go through the head together


def maps(model: nn.Module, data: Stored, device: torch.device, rows: Tensor | None = None) -> Iterable[Tensor]:
    """Scores float32 [B, K, H, W] of batches of tiles, in order."""
    rows = torch.arange(len(data)) if rows is None else rows
    with torch.inference_mode():
        for some in rows.split(CHUNK):
            yield model(data.features(some).to(device).float()).scores.float()


class Validation:
    """Error of areas [pixels], the published soft TDR, and the micro-IoU of water on some tiles, each epoch."""

    def __init__(self, data: Stored, rows: Tensor, classes: Sequence[int], device: torch.device):
        self.data, self.rows, self.classes, self.device = data, rows, classes, device

    def __call__(self, model: nn.Module) -> dict[str, float]:
        error, found, hits = 0.0, 0.0, torch.zeros(2, dtype=torch.int64)
        batches = maps(model, self.data, self.device, self.rows)
        for scores, rows in zip(batches, self.rows.split(CHUNK), strict=True):
            masks = self.data.masks[rows].to(self.device)
            truth = losses.one_hot(masks, self.classes)
            error += float(losses.area_error(scores, truth).sum())
            found += float((1 - losses.false_absence(scores, truth)).sum())
            hits += _overlap(_argmax(scores, self.classes), masks, WATER, known_only=True)
        n = len(self.rows)
        return {"area_error": error / n, "soft_tdr": found / n, "water_iou": _share(*hits.tolist())}


def report(scores: Iterable[Tensor], masks: Tensor, classes: Sequence[int]) -> dict[str, Any]:
    """Every measure of maps given in batches, against ``masks`` int8 [N, H, W]; ``areas`` are [N] of each tile, water,
    predicted and true, in pixels. NaN is what there is nothing to measure on."""
    predicted, true, errors = [], [], []
    tiles = {name: [] for name in NAMES.values()}
    pooled, detected = ({name: torch.zeros(2, dtype=torch.int64) for name in NAMES.values()} for _ in range(2))
    start = 0
    for batch in scores:
        batch = batch.cpu()
        truth = masks[start : start + len(batch)]
        start += len(batch)
        water, known = batch[:, classes.index(WATER)], truth >= 0
        predicted += (water.double() * known).sum((1, 2)).tolist()
        true += (truth == WATER).sum((1, 2)).tolist()
        errors += (water.double().sum((1, 2)) - (truth == WATER).sum((1, 2))).abs().tolist()
        decided = _argmax(batch, classes)
        for value, name in NAMES.items():
            pairs = [_overlap(own, mask, value) for own, mask in zip(decided, truth, strict=True)]
            tiles[name] += [float(common / (union + losses.EPSILON)) for common, union in pairs]
            pooled[name] += _overlap(decided, truth, value, known_only=True)
            there = truth == value
            detected[name] += torch.stack([(there & (decided == value)).sum(), there.sum()])
    difference = np.abs(np.subtract(predicted, true))
    pixels = masks[0].numel()
    found: dict[str, Any] = {
        "tiles": len(masks),
        "mae": float(difference.mean()),
        "mae_percent": float(100 * difference.mean() / pixels),
        "released_mae": float(np.mean(errors)),
    }
    for name in NAMES.values():
        found |= {
            f"iou_{name}": _share(*pooled[name].tolist()),
            f"tdr_{name}": _share(*detected[name].tolist()),
            f"released_iou_{name}": float(np.mean(tiles[name])),
        }
    return found | {"areas": {"predicted": predicted, "true": [float(area) for area in true]}}


def spectral_index(images: np.ndarray) -> Tensor:
    """bool [B, H, W]: the baseline that needs no training, MNDWI (green against SWIR1) above 0, of int16 [B, 6, H, W]
    (Xu, 2006)."""
    green, swir = images[:, 1].astype(np.int32), images[:, 4].astype(np.int32)
    return torch.from_numpy((green > swir) & (images != 0).any(1))


def baseline(batches: Iterable[tuple[np.ndarray, np.ndarray]], index: Callable = spectral_index) -> dict[str, Any]:
    """The `report` of a rule that marks water, on (images, masks) of tiles."""
    found, masks = [], []
    for images, some in batches:
        water = index(images).float()
        found.append(torch.stack([1 - water, water], 1))
        masks.append(torch.from_numpy(some))
    return report(found, torch.cat(masks), (DRY, WATER))


def _argmax(scores: Tensor, classes: Sequence[int]) -> Tensor:
    """int8 [B, H, W]: the value of the class with the highest score."""
    return torch.tensor(classes, dtype=torch.int8, device=scores.device)[scores.argmax(1)]


def _overlap(decided: Tensor, masks: Tensor, value: int, *, known_only: bool = False) -> Tensor:
    """int64 [2]: pixels in both, and in either."""
    own, true = decided == value, masks == value
    if known_only:
        own = own & (masks >= 0)
    return torch.stack([(own & true).sum(), (own | true).sum()]).cpu()


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
