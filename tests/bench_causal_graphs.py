"""Speed of the causal graphs study against the literal loop, as ratios measured in one run (`conftest.compare`): `make
bench`. The bounds are asserted."""

import resource
import time

import pytest
import torch
from causal_nets import naive_logits

from helpers.causal_graphs.discover import Discovery, discover
from helpers.causal_graphs.engines import Samples, cut_logits, single_cuts
from helpers.causal_graphs.interventions import Intervention
from helpers.causal_graphs.models import build
from helpers.causal_graphs.network import Network
from helpers.causal_graphs.presets import CausalGraphsStudy
from helpers.causal_graphs.statistics import Selection, describe, measure, select

N = 100
THREADS = 2  # the machine


@pytest.fixture
def lenet(threads):
    """A LeNet as it is initialised, and random images: what they show does not change the time."""
    threads(THREADS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build("LeNet", 1, 10).eval()
        return model, torch.rand(N, 1, 32, 32)


def naive_graph(model, x, target, selection):
    """The walk with one image and one weight copy a pass: {layer: causes}."""
    network = Network(model, x[:1])
    with torch.no_grad():
        clean = torch.cat([model(image[None]) for image in x])
    effects, found = [target], {}
    for link in list(network.links.values())[:0:-1]:
        cut = naive_logits(model, link, single_cuts(range(link.inputs), effects), 0.0, x)
        effects = list(select(describe(measure(clean, cut, target)), len(x), selection).causes)
        found[link.name] = tuple(effects)
        if not effects:
            break
    return found


def test_graph_of_one_class(compare, lenet):
    """LeNet, 100 images, all 226 candidates: 22,600 passes one way, a few batches the other."""
    model, x = lenet
    found, selection = {}, Selection(delta=0.0)
    with torch.no_grad():
        target = int(model(x).mean(0).argmax())

    def naive():
        found["naive"] = naive_graph(model, x, target, selection)

    def ours():
        graph = discover(Samples(Network(model, x[:1]), x), target, Discovery(selection=selection))
        found["ours"] = {layer.layer: layer.causes for layer in graph.layers if layer.statistics}

    assert compare("LeNet's graph of a class, 100 images", naive, ours, rounds=1) >= 100
    assert found["naive"] == found["ours"] and all(found["ours"].values())


def test_stability_sweep_in_closed_form(compare, lenet):
    """A layer's 84 candidates at 51 values of u, against the literal loop at one of them."""
    model, x = lenet
    network = Network(model, x[:1])
    samples, link = Samples(network, x), network.link("fc3")
    cuts, betas = single_cuts(range(84), [3]), [i / 100 for i in range(51)]

    def naive():
        return naive_logits(model, link, cuts, betas[1], x)

    def ours():
        return [cut_logits(samples, link, cuts, Intervention(amount=u)) for u in betas]

    assert compare("stability sweep of fc3, a value of u", naive, ours, work=len(betas), rounds=1) >= 1000
    torch.testing.assert_close(ours()[1], naive(), rtol=1e-4, atol=1e-5)


@pytest.mark.timeout(1200)
def test_resnet18_within_minutes_and_memory(threads):
    """ResNet18, N = 100, 96 x 96 pixels, every layer, as the study finds its graphs, on two cores: 10 minutes and 6 GB.

    A network as it is initialised has no node that matters much more than others, so the walk meets every layer."""
    threads(THREADS)
    study = CausalGraphsStudy().override(CausalGraphsStudy.presets["resnet18"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = build("ResNet18", 3, 10).eval(), torch.rand(N, 3, 96, 96)
    start, options = time.monotonic(), study.discovery()
    graph = discover(Samples(Network(model, x[:1]), x, options.chunk_mb), 0, options)
    seconds, peak = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    tested = sum(len(layer.tested) for layer in graph.layers if layer.statistics)
    print(f"\nResNet18: {len(graph.layers)} links, {tested} candidates tested, {seconds:.0f} s, peak {peak:.1f} GB")
    assert graph.layers[-1].source_layer == "input" and tested > 1000
    assert seconds <= 600 and peak <= 6
