"""One training in several processes, each with the whole model and its share of every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

LONGEST = timedelta(hours=6)  # that the others wait while the first process is busy alone


def strategy() -> DDPStrategy:
    """Fabric's strategy of processes that are begun by a script, ``torchrun`` or a notebook. `average` brings their
    gradients together, so nothing is wrapped around the model, and which weights learn may change between epochs."""
    from lightning_fabric.strategies import DDPStrategy
    from lightning_fabric.utilities.imports import _IS_INTERACTIVE

    class Replicas(DDPStrategy):
        def setup_module(self, module: nn.Module) -> nn.Module:
            return module

    return Replicas(start_method="fork" if _IS_INTERACTIVE else "popen", timeout=LONGEST)


def rank(fabric: Fabric) -> tuple[int, ...]:
    """The names that tell a process's random streams from the first one's."""
    return (fabric.global_rank,) if fabric.global_rank else ()


def average(tensors: Sequence[Tensor], fabric: Fabric) -> None:
    """Put the mean over the processes into ``tensors``, in one message."""
    if fabric.world_size == 1 or not tensors:
        return
    mean = fabric.all_reduce(torch.cat([tensor.float().flatten() for tensor in tensors]))
    for tensor, part in zip(tensors, mean.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def in_first(function: Callable[[nn.Module, Any], Any], model: nn.Module, fabric: Fabric, argument: Any) -> Any:
    """``function(model, argument)``, called in the first process; all get its value and the weights it leaves."""
    if fabric.world_size == 1:
        return function(model, argument)
    value = function(model, argument) if fabric.global_rank == 0 else None
    for tensor in model.state_dict().values():
        torch.distributed.broadcast(tensor, 0)
    return fabric.broadcast(value)
