"""Several nets at once: the seeds of a study as one net, for a device that one of them leaves idle.

The weights are stacked, and a batch holds the images of the first member, then those of the second, ...; only what
multiplies by weights has to know of it. Maps, losses and gradients of a member are those that it has alone, up to float
rounding, and as Adadelta and Adam are elementwise, so are its steps; only dropout draws other masks. A pass of critics
is a sequence of small steps, launch after launch, where more members keep a GPU busy; on a CPU they are slower than
one after the other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Together(nn.Module):
    """``nets`` of one architecture as one, of [members * B, ...] to [members * B, ...]; its weights are theirs, copied,
    along a first axis. Raises ``ValueError`` for nets that differ in shape."""

    def __init__(self, nets: Sequence[nn.Module]):
        super().__init__()
        shapes = [[(name, p.shape) for name, p in net.named_parameters()] for net in nets]
        if not nets or any(shape != shapes[0] for shape in shapes):
            raise ValueError("nets that go together are of one architecture")
        self.members, self.net = len(nets), copy.deepcopy(nets[0])
        for name, _ in shapes[0]:
            module, _, leaf = name.rpartition(".")
            stacked = torch.stack([net.get_parameter(name).detach() for net in nets])
            setattr(self.net.get_submodule(module), leaf, nn.Parameter(stacked))

    def forward(self, x: Tensor) -> Tensor:
        with _Stacked(self.members):
            return self.net(x)

    def logits(self, x: Tensor) -> Tensor:
        with _Stacked(self.members):
            return self.net.logits(x)

    def encode(self, x: Tensor) -> Tensor:
        with _Stacked(self.members):
            return self.net.encode(x)

    @property
    def target_layer(self) -> nn.Module | None:
        return self.net.target_layer

    def state(self, member: int) -> dict[str, Tensor]:
        """The weights of one member, under the names that they have alone."""
        return {name: value[member].detach().clone() for name, value in self.net.named_parameters()}


class _Stacked(TorchFunctionMode):
    """Linear layers and convolutions that are called inside multiply the rows of each member by its own weights."""

    def __init__(self, members: int):
        super().__init__()
        self.members = members

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return linear(self.members, *args, **kwargs)
        if func is F.conv2d:
            return conv2d(self.members, *args, **kwargs)
        return func(*args, **kwargs)


def linear(members: int, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [members * B, I], weight [members, O, I], bias [members, O]: [members * B, O]."""
    rows, turned = x.unflatten(0, (members, -1)), weight.transpose(1, 2)
    return (rows @ turned if bias is None else torch.baddbmm(bias[:, None], rows, turned)).flatten(0, 1)


def conv2d(
    members: int, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """x [members * B, C, H, W], weight [members, O, C, h, w], bias [members, O]: one grouped convolution."""
    side_by_side = x.unflatten(0, (members, -1)).transpose(0, 1).flatten(1, 2)
    bias = None if bias is None else bias.flatten()
    y = F.conv2d(side_by_side, weight.flatten(0, 1), bias, stride, padding, dilation, groups * members)
    return y.unflatten(1, (members, -1)).transpose(0, 1).flatten(0, 1)
