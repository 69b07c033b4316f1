"""Speed of relevance propagation against one map at a time, as ratios measured in one run (`conftest.compare`): `make
bench`. The bounds are asserted."""

import copy
import time

import torch
from torch import nn
from zennit.composites import LayerMapComposite
from zennit.rules import AlphaBeta, Pass
from zennit.types import Activation, Convolution

from helpers import runtime
from helpers.prototypes.evaluation.prp import Propagator
from helpers.prototypes.models import build
from helpers.prototypes.presets import Model

COUNT = 16  # prototypes


def prepared(size=64):
    model = build(Model(feature_extractor="vgg11", feature_layer="maxpool4", pretrained=False), 10, size, 0).eval()
    return model, torch.rand(1, 3, size, size, generator=runtime.generator(0, "images"))


def test_prototypes_at_once(compare, threads):
    """Against a pass forwards and a pass back for each. The clock is that of the core."""
    threads(1)
    (model, x), found = prepared(), {}
    of = Propagator(model)

    def plain():
        found["plain"] = torch.cat([of.relevance(x, torch.tensor([p])) for p in range(COUNT)], 1)

    def ours():
        found["ours"] = of.relevance(x, torch.arange(COUNT), chunk=COUNT)

    ratio = compare(f"relevance of {COUNT} prototypes at once", plain, ours, clock=time.process_time)
    assert torch.allclose(found["ours"], found["plain"], rtol=0, atol=1e-6)
    assert ratio >= 3


def test_prototypes_by_hooks(compare, threads):
    """Against zennit's hooks, which run a pass forwards and one back for each, on the same network and rules."""
    threads(1)
    (model, x), found = prepared(), {}
    of, whole = Propagator(model), copy.deepcopy(nn.Sequential(model.features, model.add_on))
    with torch.no_grad():
        z, cells = model.embed(x), model(x).cells
    rule = AlphaBeta(1.0, 0.0, stabilizer=1e-12, zero_params="bias")
    composite = LayerMapComposite([(Activation, Pass()), (Convolution, rule)])

    def plain():
        maps = []
        with composite.context(whole) as hooked:
            for p in range(COUNT):
                leaf = x.clone().requires_grad_()
                start = of._start(z, cells, torch.tensor([[p]]))[0]
                maps.append(torch.autograd.grad(hooked(leaf), leaf, start)[0].sum(1))
        found["plain"] = torch.stack(maps, 1)

    def ours():
        found["ours"] = of.relevance(x, torch.arange(COUNT), chunk=COUNT)

    ratio = compare(f"relevance of {COUNT} prototypes by zennit", plain, ours, clock=time.process_time)
    assert torch.allclose(found["ours"], found["plain"], rtol=0, atol=1e-6)
    assert ratio >= 6
