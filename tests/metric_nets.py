"""Tiny models, images and explainers for the tests of the metrics, and how Quantus is asked."""

import numpy as np
import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Three classes; ReLU, pooling and batch norm, so that nothing is linear."""

    def __init__(self, channels: int = 1, classes: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.relu(self.norm(self.conv(x)))).flatten(1))


class Additive(nn.Module):
    """``logits_k = sum(w_k * x)``: what a pixel contributes is known."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", x, self.weight)


def net(channels: int = 1) -> Net:
    torch.manual_seed(0)
    model = Net(channels).eval()
    with torch.no_grad():
        model.head.weight *= 5
        model.norm.running_var.uniform_(0.5, 2)
    return model


def images(count: int = 3, channels: int = 1, side: int = 16) -> Tensor:
    """Smooth blobs in [0, 1]."""
    noise = torch.rand(count, channels, side // 4, side // 4, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(noise, side, mode="bilinear")


def noise_maps(x: Tensor, seed: int = 2) -> Tensor:
    return torch.randn(len(x), *x.shape[2:], generator=torch.Generator().manual_seed(seed))


def identity(model: nn.Module, x: Tensor, target: Tensor | None = None) -> Tensor:
    """The image itself, of one channel, as a map."""
    return x[:, 0]


def ones(model: nn.Module, x: Tensor, target: Tensor | None = None) -> Tensor:
    return torch.ones_like(x[:, 0])


def ask_quantus(metric, model, x: Tensor, target: Tensor, heat: Tensor | None = None, explain=None, **call):
    """``metric`` of Quantus on our tensors; ``explain`` has our signature."""

    def explain_func(model, inputs, targets, **_):
        maps = explain(model, torch.as_tensor(inputs, dtype=x.dtype), torch.as_tensor(targets))
        return maps.detach().numpy()[:, None]

    call = {"softmax": True, "device": "cpu", **call}
    heat = None if heat is None else heat.numpy()[:, None]
    scores = metric(
        model=model, x_batch=x.numpy(), y_batch=target.numpy(), a_batch=heat, explain_func=explain_func, **call
    )
    return np.array(scores) if isinstance(scores, list) else scores
