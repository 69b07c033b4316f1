"""Speed of the prototypes study against the plain way, as ratios measured in one run (`conftest.compare`): `make
bench`. The bounds are asserted."""

import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from receptive_reference import network, walked

from helpers import runtime, training
from helpers.prototypes import optimisation
from helpers.prototypes.backbones import aliases, hollow
from helpers.prototypes.mapping import pixel_map
from helpers.prototypes.models import build
from helpers.prototypes.presets import Model, PrototypesStudy
from helpers.prototypes.projection import push
from helpers.prototypes.receptive_field import receptive_field, receptive_fields
from helpers.prototypes.steps import training_loss
from helpers.prototypes.tracing import cut


def cell_by_cell(similarity, field):
    """H_max (spec section 4.1) as it is written: a window for every prototype and cell."""
    kappa = max(np.diff(edges).max() for edges in field.edges)
    u = np.arange(kappa) - (kappa - 1) / 2
    s, heat = similarity.numpy(), np.zeros((*similarity.shape[:2], *field.input_size), np.float32)
    for image, maps in zip(heat, s, strict=True):
        for one, cells in zip(image, maps, strict=True):
            for (i, j), value in np.ndenumerate(cells):
                y0, y1, x0, x1 = field.box(i, j)
                window = np.exp(-(u[:, None] ** 2 + u**2) / (2 * kappa**2))
                window = window[kappa - (y1 - y0) :] if y0 == 0 else window[: y1 - y0]
                window = window[:, kappa - (x1 - x0) :] if x0 == 0 else window[:, : x1 - x0]
                one[y0:y1, x0:x1] = np.maximum(one[y0:y1, x0:x1], value * window / window.max())
    return torch.from_numpy(heat)


@pytest.mark.parametrize(("backbone", "stage", "least"), [("resnet50", "layer2", 50), ("vgg16", "maxpool5", 25)])
def test_maps_of_ten_prototypes(compare, threads, backbone, stage, least):
    """The clock is that of the core. The larger the fields and the more of them, the more is gained; what is left is
    the writing of the maps."""
    threads(1)
    field, found = receptive_fields(hollow(backbone), 224)[aliases(backbone)[stage]], {}
    similarity = torch.rand(1, 10, *field.size, generator=runtime.generator(0, "similarity"))

    def plain():
        found["plain"] = cell_by_cell(similarity, field)

    def ours():
        found["ours"] = pixel_map(similarity, field)

    ratio = compare(f"10 pixel maps of {backbone}@{stage}", plain, ours, rounds=9, clock=time.process_time)
    assert torch.allclose(found["ours"], found["plain"], rtol=0, atol=1e-5)
    assert ratio >= least


def test_training(compare, threads):
    """Images a second of the loop that trains, logs and judges, against a plain loop in PyTorch's own memory format.
    The clock is that of the core."""
    threads(1)
    study, stream = PrototypesStudy(), runtime.generator(0, "images")
    x, y = torch.rand(128, 3, 128, 128, generator=stream), torch.arange(128) % 10
    batches = [(x[rows], y[rows]) for rows in torch.arange(128).split(32)]

    def fresh():
        model = build(study.model, 10, 128, 0)
        return model, optimisation.make(study.optimizer, optimisation.groups(model, study.optimizer))

    def plain():
        model, optimizer = fresh()
        loss = training_loss(study.loss, False, nullcontext)
        for batch in batches:
            optimizer.zero_grad()
            loss(model.train(), batch)["loss"].backward()
            optimizer.step()

    def ours():
        model, optimizer = fresh()
        fabric = training.fabric("cpu", study.train.precision)
        loss = training_loss(study.loss, False, fabric.autocast)
        model = model.to(memory_format=torch.channels_last)
        training.train(model, optimizer, loss, lambda _: batches, fabric=fabric, epochs=1, seed=0)

    assert compare("training on 128 images", plain, ours, rounds=5, clock=time.process_time) >= 1.1


def test_projection(compare, threads):
    """One pass at the speed of the pass alone."""
    threads(1)
    model = build(Model(), 10, 128, 0)
    x = torch.rand(128, 3, 128, 128, generator=runtime.generator(0, "images"))
    labels, indices = torch.arange(128) % 10, torch.arange(128)
    batches = [(x[rows], labels[rows], indices[rows]) for rows in indices.split(64)]

    def plain():
        model.eval()
        with torch.no_grad():
            for some, *_ in batches:
                model(some)

    def ours():
        push(model, batches)

    assert compare("projection of 128 images", plain, ours, clock=time.process_time) >= 1 / 1.15


@pytest.mark.parametrize("backbone, stage, size", [("vgg16", "features", 224), ("resnet18", "layer4", 384)])
def test_receptive_fields(compare, threads, backbone, stage, size):
    """In milliseconds, against a walk cell by cell. The clock is that of the core."""
    threads(1)
    part, found, spent = cut(network(backbone), stage), {}, []

    def plain():
        found["plain"] = walked(part, size, size)

    def ours():
        start = time.process_time()
        found["ours"] = receptive_field(part, size)
        spent.append(time.process_time() - start)

    ratio = compare(f"receptive fields of {backbone}, {size} px", plain, ours, rounds=3, clock=time.process_time)
    assert [[tuple(box) for box in line] for line in found["ours"].lookup.tolist()] == found["plain"]
    assert ratio >= 100 and min(spent) < 0.05
