"""Causal graphs of small networks that were never trained, with the networks and images that they were found on."""

import torch
from causal_nets import Plain, images, make

from helpers.causal_graphs.discover import Discovery, discover
from helpers.causal_graphs.engines import Samples
from helpers.causal_graphs.network import Network
from helpers.data.images import Images, Preprocess

FACTS = {"dataset": "Noise", "split": "test"}


def pictures(n=16, channels=2, classes=("0", "1", "2"), seed=0):
    x = images(n, channels, dtype=torch.float32, seed=seed)
    return Images(x, torch.arange(n) % len(classes), classes, Preprocess(size=8))


def network(kind=Plain, seed=0):
    return make(kind, torch.float32, seed)


def found(model, data, target=0, *, seed=0, rows=None, **options):
    """The graph of ``target`` on ``rows`` of ``data`` (default: all but the first)."""
    rows = range(1, len(data)) if rows is None else rows
    samples = Samples(Network(model, data.inputs([0])), data.inputs(list(rows)))
    return discover(samples, target, Discovery(**options), seed=seed, indices=rows, facts=FACTS)


def shelf(targets=(0, 1), seeds=(0, 1), **options):
    """(graphs by checkpoint and target, networks by checkpoint, images)."""
    data = pictures()
    models = {f"seed {seed}": network(seed=seed) for seed in seeds}
    graphs = {(name, t): found(model, data, t, **options) for name, model in models.items() for t in targets}
    return graphs, models, data
