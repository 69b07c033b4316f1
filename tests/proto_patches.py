"""A prototype network of a few hundred weights, images for it, and receptive fields by hand."""

import numpy as np
import torch
from torch import nn

from helpers import runtime
from helpers.prototypes.models import ProtoNet
from helpers.prototypes.presets import Model
from helpers.prototypes.receptive_field import ReceptiveField, receptive_field

SIZE = 32  # pixels a side, 8 cells


def features(seed=0, kernel=3):
    """Whose cells see 7 x 7 pixels, or 4 more than ``kernel``, in steps of 4."""
    with runtime.seeded(seed, "features"):
        first = nn.Conv2d(3, 6, kernel, 2, kernel // 2)
        return nn.Sequential(first, nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1), nn.BatchNorm2d(6))


def net(n_classes=3, each=4, seed=0, kernel=3, **settings):
    """A `ProtoNet` in training mode, whose prototypes lie amid the cells of `images`."""
    model = Model(num_prototypes=n_classes * each, prototype_dim=5, **settings)
    body = features(seed, kernel)
    with runtime.seeded(seed, "head"):
        built = ProtoNet(body, 6, n_classes, model)
    with torch.no_grad():
        built.add_on[2].weight.mul_(20)  # cells that differ
        z = built.eval().embed(images(4)[0]).mean((0, 2, 3))
        built.prototypes.add_(z[:, None, None] - 0.5)
    return built.train()


def images(count=24, n_classes=3, seed=0):
    """(x [count, 3, 32, 32], labels, official indices, which are neither sorted nor without gaps)."""
    generator = runtime.generator(seed, "images")
    x = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return x, torch.arange(count) % n_classes, 3 * torch.randperm(count, generator=generator) + 1


def batches(data, size=8, order=None):
    """Parts of ``data`` [N, ...] in batches, in the ``order`` of the rows."""
    order = torch.arange(len(data[0])) if order is None else order
    return [tuple(part[rows] for part in data) for rows in order.split(size)]


def field_of(model, size=SIZE):
    return receptive_field(model.features, size)


def field(size, side, stride, start, count):
    """The field of cells that see ``side`` pixels in steps of ``stride`` from ``start``, along both axes."""
    low = start + stride * np.arange(count)
    edges = np.stack((low, low + side), 1)
    seen, unclipped = edges.clip(0, size), edges.astype(float)
    return ReceptiveField((size, size), (seen, seen), (unclipped, unclipped), (side, side), (stride, stride))


def vgg16(stage):
    """That of VGG16 at 224 pixels (spec section 3.4)."""
    return {"maxpool5": field(224, 212, 32, -90, 7), "maxpool4": field(224, 100, 16, -42, 14)}[stage]
