"""Controls: maps that do not look at the model. What does not beat them has found nothing."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from helpers.attribution.base import Logit, method
from helpers.runtime import generator


@method
def random_map(y: Logit, x: Tensor, *, seed: int = 0) -> Tensor:
    """Uniform noise that belongs to the image: equal images have equal maps, others unrelated ones."""
    names = [hashlib.sha256(image.float().cpu().numpy().tobytes()).hexdigest() for image in x]
    draws = [generator(seed, "random_map", name) for name in names]
    return torch.stack([torch.rand(x.shape[2:], generator=draw) for draw in draws]).to(x)


@method
def constant_map(y: Logit, x: Tensor) -> Tensor:
    """Ones."""
    return torch.ones_like(x[:, 0])
