"""What a network costs: parameters, multiplications, seconds (spec section 8.6), and a word on what its cells see."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from helpers.attribution.base import evaluating

if TYPE_CHECKING:
    from helpers.prototypes.receptive_field import ReceptiveField

WHOLE = 95.0  # percent of an image, from which on a region is no part of it


def macs(model: nn.Module, input_size: int, in_channels: int = 3, batch_size: int = 1) -> int:
    """Multiply-accumulate operations for one image [in_channels, input_size, input_size], in evaluation mode: those of
    convolutions and matrix products. The batch size makes no difference; a model on the meta device is only counted."""
    x = torch.zeros(batch_size, in_channels, input_size, input_size, device=next(model.parameters()).device)
    with torch.no_grad(), evaluating(model), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // (2 * batch_size)


def seconds(model: nn.Module, x: Tensor, repeats: int = 10, warm_up: int = 3) -> float:
    """Median seconds of a forward pass of the batch ``x`` in evaluation mode, where the device has finished each before
    the clock is read."""
    found = []
    with torch.inference_mode(), evaluating(model):
        for _ in range(warm_up + repeats):
            _synchronise(x.device)
            start = time.perf_counter()
            model(x)
            _synchronise(x.device)
            found.append(time.perf_counter() - start)
    return statistics.median(found[warm_up:])


def model_info(
    model: nn.Module, input_size: int, batch: Tensor | None = None, field: ReceptiveField | None = None
) -> dict[str, float | int]:
    """The facts of ``results/model_info.yaml``: ``model_size`` in MB (10^6 bytes) of 32-bit parameters,
    ``trainable_params`` and ``total_params``, ``macs`` of an image; with a ``batch`` the seconds of its forward pass,
    ``inference_time_batch``, and of one of its images, ``inference_time_sample``; with the receptive ``field`` the mean
    share of the image that a cell sees, ``receptive_field_percent``."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    total = sum(size for size, _ in sizes)
    facts: dict[str, float | int] = {
        "model_size": 4 * total / 1e6,
        "trainable_params": sum(size for size, trainable in sizes if trainable),
        "total_params": total,
        "macs": macs(model, input_size, in_channels=batch.shape[1] if batch is not None else 3),
    }
    if batch is not None:
        taken = seconds(model, batch)
        facts |= {"inference_time_batch": taken, "inference_time_sample": taken / len(batch)}
    if field is not None:
        facts["receptive_field_percent"] = field.mean_percent
    return facts


def too_much_seen(field: ReceptiveField) -> str | None:
    """A warning, if most cells of a map see nearly the whole image, so that prototypes are no parts of it (spec section
    1.2); None if they are."""
    if field.mean_percent < WHOLE:
        return None
    return (
        f"a cell of this stage sees {field.mean_percent:.1f} % of the image on average: prototypes will stand for "
        "whole images, not for parts; choose an earlier feature_layer"
    )


def _synchronise(device: torch.device) -> None:
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()
