"""Speed of consistency and stability against loops over images and prototypes (`conftest.compare`): `make bench`. The
bound is asserted."""

import time

import numpy as np
import torch
from torch import nn

from helpers import runtime
from helpers.prototypes.evaluation.consistency import measure
from helpers.prototypes.models import ProtoNet
from helpers.prototypes.pipelines import pipelines
from helpers.prototypes.presets import Model
from helpers.prototypes.receptive_field import receptive_field
from helpers.prototypes.sets import Part
from helpers.prototypes.sources import PartLocations, Stored

CLASSES, EACH, DIM = 200, 10, 64  # prototypes as for CUB
IMAGES, MET, PARTS = 232, 8, 12  # its test images of eight classes


class Rows(Part):
    """Images of two values: 100 times their number, and 0."""

    def inputs(self, rows):
        return torch.stack((100.0 * rows, torch.zeros(len(rows))), 1)[..., None, None]


class AtHand(ProtoNet):
    """Its cells are looked up: in ``cells`` [2, n, D, 14, 14] of images as they are and with noise."""

    def embed(self, x):
        number, noise = x[:, :, 0, 0].unbind(1)
        return self.cells[(noise != 0).long(), (number / 100).round().long()]


def birds():
    generator = runtime.generator(0, "birds")
    xy, visible = torch.rand(IMAGES, PARTS, 2, generator=generator) * 224, torch.ones(IMAGES, PARTS, dtype=torch.bool)
    names, labels = tuple(map(str, range(PARTS))), torch.arange(IMAGES) % MET

    def parts(indices, geometry):
        return PartLocations(xy[indices], visible[indices], torch.arange(PARTS), names)

    return Rows(labels, torch.arange(IMAGES), Stored(labels, names, None, parts), pipelines()["CUB200224"])


@torch.no_grad()
def by_loops(model, part, lookup):
    """Scores [P, K] and stabilities [P], image by image and prototype by prototype."""
    places, classes = part.stored.parts(part.indices, "exact"), model.prototype_class.numpy()
    xy, visible = np.floor(places.xy.numpy()), places.visible.numpy()
    hits, seen = np.zeros((len(classes), PARTS)), np.zeros((len(classes), PARTS))
    same, count = np.zeros(len(classes)), np.zeros(len(classes))
    for row, label in enumerate(part.labels.tolist()):
        x = part.inputs(torch.tensor([row]))
        noise = torch.randn(x.shape[1:], generator=runtime.generator(0, "noise", row))
        maps = [model.similarity(model.distances(model.embed(view)))[0].numpy() for view in (x, x + 0.2 * noise)]
        for p in np.flatnonzero(classes == label):
            vectors = np.zeros((2, PARTS), bool)
            for vector, view in zip(vectors, maps, strict=True):
                y0, y1, x0, x1 = lookup[np.unravel_index(view[p].argmax(), view[p].shape)]
                top, left, end, right = (y0 + y1) / 2 - 36, (x0 + x1) / 2 - 36, (y0 + y1) / 2 + 36, (x0 + x1) / 2 + 36
                top, left = max(0, top), max(0, left)
                for k in range(PARTS):
                    x, y = xy[row, k]
                    vector[k] = visible[row, k] and top < y + 1 and y < end and left < x + 1 and x < right
            hits[p] += vectors[0]
            seen[p] += visible[row]
            same[p] += (vectors[0] == vectors[1]).all()
            count[p] += 1
    with np.errstate(invalid="ignore"):  # classes without images
        return hits / seen, same / count


def test_consistency_and_stability(compare, threads):
    """From the cells of a net on: what images and the net take is left out on both sides. The plain way asks for all
    similarities of an image and reads off those of its class; it has no intervals. The clock is that of the core."""
    threads(1)
    model = AtHand(nn.Conv2d(3, 8, 32, 16, 8), 8, CLASSES, Model(num_prototypes=CLASSES * EACH, prototype_dim=DIM))
    generator, field, part, found = runtime.generator(0, "cells"), receptive_field(model.features, 224), birds(), {}
    cells = torch.rand(IMAGES, DIM, *field.size, generator=generator)
    model.cells = torch.stack((cells, cells + 0.2 * torch.randn(cells.shape, generator=generator)))
    with torch.no_grad():
        model.prototypes.copy_(torch.rand(model.prototypes.shape, generator=generator))

    def plain():
        found["plain"] = by_loops(model, part, field.lookup)

    def ours():
        found["ours"] = measure(model, part, field)["pixpnet-exact"]

    ratio = compare("consistency, 232 images, 2,000 prototypes", plain, ours, clock=time.process_time)
    scores, stable = found["plain"]
    assert np.array_equal(found["ours"].part_scores, scores, equal_nan=True)
    assert np.array_equal(found["ours"].hard_stable, stable, equal_nan=True) and 0.1 < np.nanmean(stable) < 0.9
    assert ratio >= 15
