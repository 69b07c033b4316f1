"""Heat maps of a causal graph are what the network does, cell by cell (spec explainnn, sections 4 and 13)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from causal_nets import Depthwise, Fire, Plain, Residual, images, make
from scipy.signal import convolve2d
from torch import nn

from helpers.artifacts import ArtifactError
from helpers.attribution.base import hooked
from helpers.causal_graphs.discover import Discovery, discover
from helpers.causal_graphs.engines import Samples
from helpers.causal_graphs.heatmaps import METHODS, HeatMaps, deepest_convolution, explainer, heat_maps
from helpers.causal_graphs.models import LeNet
from helpers.causal_graphs.network import Chain, Network
from helpers.causal_graphs.statistics import Selection
from helpers.config import ConfigError

KINDS = (Plain, Residual, Depthwise, Fire)


def walked(model, x, target=0, **options):
    """(network, graph) with every node of any significant effect."""
    network = Network(model, x[:1])
    return network, discover(Samples(network, x), target, Discovery(selection=Selection(delta=0.0), **options))


def case(kind, n=40):
    """With the graph that reaches furthest."""
    model, x = make(kind), images(n, 2 if kind is Plain else 3)
    graphs = [walked(model, x, target) for target in range(3)]
    return model, x, *max(graphs, key=lambda pair: sum(bool(layer.causes) for layer in pair[1].layers))


def drawn(network, graph, x, **options):
    """(layer, method, map) of every layer and method that make one together."""
    for layer in graph.layers:
        for method in METHODS:
            try:
                yield layer.layer, method, heat_maps(network, graph, x, layer.layer, method=method, **options)
            except ConfigError:
                continue


# --------------------------------------------------------------------------------- what the specification says, slowly


def zeroed(model, x, name, axis, sources, effects, cell):
    """Logits of one image with ``sources`` zero in the ``cell`` (two slices) of what the module ``name`` reads, for its
    outputs ``effects`` only."""

    def cut(module, args, output):
        lower, output = args[0].clone(), output.clone()
        lower.movedim(axis, 1)[:, sources, cell[0], cell[1]] = 0
        output.movedim(axis, 1)[:, effects] = module.forward(lower).movedim(axis, 1)[:, effects]
        return output

    with torch.no_grad(), hooked([model.get_submodule(name)], cut):
        return model(x)[0]


def slow_spatial_do(model, x, link, sources, effects, side, shape, target):
    rows = []
    for image in x:
        y = model(image[None])[0, target].item()
        values = [
            y - zeroed(model, image[None], link.name, link.axis, sources, [e - link.offset for e in effects],
                       (slice(a, a + side), slice(b, b + side)))[target].item()
            for a in range(0, shape[0], side) for b in range(0, shape[1], side)
        ]  # fmt: skip
        rows.append(torch.tensor(values, dtype=x.dtype).view(-(-shape[0] // side), -1))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [1, 3])
def test_spatial_do_is_the_literal_intervention(kind, side):
    model, x, network, graph = case(kind)
    x, t, checked = x[:2], graph.target, 0
    for layer in graph.layers:
        link = network.link(layer.layer)
        shape = [s for d, s in enumerate(network.shapes[link.reads], 1) if d != link.axis]
        if link.module is None or len(shape) != 2 or not layer.causes:
            continue
        maps = heat_maps(network, graph, x, layer.layer, cell=side)
        slow = slow_spatial_do(model, x, link, list(maps.sources), maps.effects, side, shape, t)
        torch.testing.assert_close(maps.joint, slow, rtol=1e-9, atol=1e-10)
        alone = slow_spatial_do(model, x, link, list(maps.sources), maps.effects[-1:], side, shape, t)
        torch.testing.assert_close(maps.each[:, -1], alone, rtol=1e-9, atol=1e-10)
        assert maps.sources == (layer.causes if layer.rule != "input" else tuple(range(link.inputs)))
        checked += 1
    assert checked >= 2


def test_spatial_do_cuts_cells_of_a_skip_connection():
    model, x, network, graph = case(Residual)
    maps, block, link = heat_maps(network, graph, x[:1], "block3.skip"), model.block3, network.link("block3.skip")
    shape = network.shapes[link.reads][1:]
    block.skip = torch.ones(1, 6, *shape, dtype=x.dtype)
    with torch.no_grad():
        y = model(x[:1])[0, graph.target].item()
        for a, b in [(0, 0), (1, 2), (3, 3)]:
            block.skip[:, [i for i in maps.sources if i in maps.effects], a, b] = 0
            assert maps.joint[0, a, b].item() == pytest.approx(y - model(x[:1])[0, graph.target].item())
            block.skip.fill_(1)


def raw_output(model, name, x):
    kept = []
    with hooked([model.get_submodule(name)], lambda module, args, output: kept.append(output.detach())):
        model(x)
    return kept[0]


@pytest.mark.parametrize("kind, below, layer", [(Plain, "conv1", "conv2"), (Residual, "block3.conv1", "block3.conv2")])
def test_reference_is_the_releases_recipe(kind, below, layer):
    """Kernel flipped, padding k - 1, stride ignored; softmax over pixels; mean over the causes; resized; summed."""
    model, x, network, graph = case(kind)
    x, row = x[:3], graph.layer(layer)
    raw, weight = raw_output(model, below, x), model.get_submodule(layer).weight.detach()
    expected = torch.empty(3, len(row.effects), 8, 8, dtype=x.dtype)
    for b in range(3):
        for k, j in enumerate(row.effects):
            parts = []
            for i in row.causes:
                m = convolve2d(raw[b, i].numpy(), weight[j, i].numpy(), mode="full")
                parts.append(np.exp(m) / np.exp(m).sum())
            mean = torch.from_numpy(np.mean(parts, 0))[None, None]
            expected[b, k] = F.interpolate(mean, (8, 8), mode="bilinear", align_corners=False)[0, 0]
    maps = heat_maps(network, graph, x, layer, method="reference")
    torch.testing.assert_close(maps.maps, expected)
    torch.testing.assert_close(maps.combined, expected.sum(1))


def test_reference_convolves_the_image_itself_at_the_first_layer_and_leaves_out_edges_that_are_not_there():
    model, x, network, graph = case(Plain)
    maps = heat_maps(network, graph, x[:1], "conv1", method="reference")
    assert maps.sources == (0, 1) and maps.joint.shape == (1, 10, 10)  # 8 + 3 - 1
    torch.testing.assert_close(maps.each.sum((2, 3)), torch.ones(1, len(maps.effects), dtype=x.dtype))
    model, x, network, graph = case(Fire)
    grouped = heat_maps(network, graph, x[:1], "three", method="reference")
    torch.testing.assert_close(grouped.each.sum((2, 3)), torch.ones(1, len(grouped.effects), dtype=x.dtype))


def test_contribution_weights_what_the_causes_add_to_an_effect():
    model, x, network, graph = case(Plain)
    row, above = graph.layer("conv2"), graph.layer("fc1")
    lower = model.pool1(model.relu1(raw_output(model, "conv1", x))).detach()
    maps = heat_maps(network, graph, x, method="contribution")
    for k, j in enumerate(row.effects):
        z = sum(F.conv2d(lower[:, [i]], model.conv2.weight[[j]][:, [i]], None, 2, 1)[:, 0] for i in row.causes)
        expected = -above.statistics.mean_d[above.tested.index(j)] * z.relu()
        torch.testing.assert_close(maps.each[:, k], expected.detach())
    torch.testing.assert_close(maps.combined, maps.maps.sum(1))


def test_an_effect_that_several_layers_read_counts_by_all_of_them():
    """block2 is read by the first convolution of block3 and by its skip connection."""
    _, x, network, graph = case(Residual)
    into = graph.layer("block2.downsample.0")
    weight, readers = {}, [layer for layer in graph.layers if layer.source_layer == "block2"]
    assert {layer.layer for layer in readers} == {"block3.conv1", "block3.skip"}
    for reader in readers:
        for node, d in zip(reader.tested, reader.statistics.mean_d, strict=True):
            weight[node] = weight.get(node, 0) - d
    maps = heat_maps(network, graph, x[:2], into.layer, method="contribution")
    carried = F.conv2d(network.record(x[:2])[network.link(into.layer).reads][:, list(into.causes)],
                       network.link(into.layer).weight()[:, list(into.causes)], stride=2).relu()  # fmt: skip
    for k, j in enumerate(into.effects):
        torch.testing.assert_close(maps.each[:, k], weight[j] * carried[:, j])


def test_channel_activation_weights_each_cause_by_its_effect():
    model, x, network, graph = case(Plain)
    row = graph.layer("conv2")
    lower = model.pool1(model.relu1(raw_output(model, "conv1", x))).detach()
    expected = sum(-row.statistics.mean_d[row.tested.index(i)] * lower[:, i].relu() for i in row.causes)
    maps = heat_maps(network, graph, x, method="channel_activation")
    torch.testing.assert_close(maps.joint, expected)
    assert maps.maps is None  # it tells no effects apart


def test_act_grad_through_an_effect_is_spatial_do_to_first_order():
    """Exactly so where everything after the layer is linear; then the effects add up, too."""
    _, x, network, graph = case(Fire)
    cut, gradient = (heat_maps(network, graph, x[:3], method=m) for m in ("spatial_do", "act_grad"))
    assert cut.layer == "classifier"
    torch.testing.assert_close(cut.each, gradient.each)
    torch.testing.assert_close(cut.each.sum(1), cut.joint)
    cut, gradient = (heat_maps(network, graph, x[:3], "three", method=m).each for m in ("spatial_do", "act_grad"))
    assert (cut.sign() == gradient.sign()).double().mean() > 0.6


@pytest.mark.parametrize("kind, layer", [(Plain, "conv2"), (Plain, "conv1"), (Fire, "three"), (Depthwise, "dw")])
def test_act_grad_is_the_causes_times_their_gradient(kind, layer):
    model, x, network, graph = case(kind)
    link, kept = network.link(layer), []

    def watch(module, args):
        kept.append(args[0].detach().requires_grad_())
        return kept[0]

    handle = model.get_submodule(layer).register_forward_pre_hook(watch)
    try:
        y = model(x[:3])[:, graph.target].sum()
    finally:
        handle.remove()
    product = torch.autograd.grad(y, kept[0])[0] * kept[0]
    maps = heat_maps(network, graph, x[:3], layer, method="act_grad")
    expected = product.movedim(link.axis, 1)[:, list(maps.sources)].sum(1)
    torch.testing.assert_close(maps.joint, expected.detach())


# ------------------------------------------------------------------------------------------------- planted evidence


class Patch(nn.Module):
    """Property 16: logit 1 reads one 4 x 4 patch of the second convolution's map, and so of the image."""

    def __init__(self, pool):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 3, 3, padding=1), nn.ReLU()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.conv2, self.relu2, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Linear(4, 2)
        mask = torch.zeros(16 // (1 + pool), 16 // (1 + pool))
        mask[2:6, 1:5] = 1
        self.register_buffer("mask", mask)

    def forward(self, x):
        x = self.relu2(self.conv2(self.pool(self.relu1(self.conv1(x)))))
        return self.fc((x * self.mask).mean((2, 3)))


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("side", [1, 2])
def test_the_mass_of_spatial_do_is_where_the_evidence_was_planted(pool, side):
    model, x = make(lambda: Patch(pool)), images(20, 1, 16)
    network, graph = walked(model, x, 1)
    maps = heat_maps(network, graph, x, cell=side)
    assert maps.layer == "conv2"
    reaches = torch.zeros_like(model.mask)
    reaches[1:7, 0:6] = 1  # the patch and its neighbours, which a 3 x 3 kernel sees
    reaches = F.max_pool2d(reaches[None], side)[0] > 0
    mass = maps.joint.abs()
    assert mass.sum() > 0 and (mass[:, reaches].sum() >= 0.95 * mass.sum()).all()
    assert (mass[:, ~reaches] == 0).all()  # no rounding either
    pixels = F.interpolate(reaches[None, None].double(), (16, 16), mode="bilinear")[0, 0] > 0
    assert maps.combined.abs()[:, pixels].sum() >= 0.95 * maps.combined.abs().sum()
    reference = heat_maps(network, graph, x, method="reference").combined
    assert reference[:, pixels].sum() < 1.1 * pixels.double().mean() * reference.sum()  # no more than a flat map's


# --------------------------------------------------------------------------------------- batches, sizes, every layer


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_and_method_gives_a_map_or_a_reason(kind):
    _, x, network, graph = case(kind)
    found = {}
    for name, method, maps in drawn(network, graph, x[:2]):
        assert maps.combined.shape == (2, 8, 8) and maps.combined.isfinite().all()
        assert (maps.maps is None) == (method == "channel_activation")
        if maps.maps is not None:
            assert maps.maps.shape == (2, len(maps.effects), 8, 8)
        found.setdefault(method, set()).add(name)
    assert (
        found["spatial_do"] == found["act_grad"] == found["contribution"]
        and deepest_convolution(graph) in (found["spatial_do"])
    )
    assert all(network.link(name).kind in ("conv", "depthwise") for name in found.get("reference", ()))


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_has_the_same_map_alone_and_in_any_chunks(kind):
    _, x, network, graph = case(kind)
    x = x[:5]
    for name, method, maps in drawn(network, graph, x, cell=2):
        one_by_one = [heat_maps(network, graph, image[None], name, method=method, cell=2) for image in x]
        torch.testing.assert_close(maps.combined, torch.cat([one.combined for one in one_by_one]))
        joint_only = heat_maps(network, graph, x, name, method=method, cell=2, per_effect=False)
        torch.testing.assert_close(joint_only.joint, maps.joint)
        assert joint_only.maps is None
    many = images(200, x.shape[1])
    assert len(list(Samples(network, many, 1).blocks())) > 1 == len(list(Samples(network, many, 64).blocks()))
    torch.testing.assert_close(*(heat_maps(network, graph, many, chunk_mb=mb).joint for mb in (1, 64)))


def test_cells_that_reach_over_the_edge_keep_their_places():
    """7 positions in cells of 3: the third one has a single row and column, and is as large on the image as that."""
    maps = HeatMaps(torch.zeros(1, 1, 14, 14), torch.eye(3)[None], None, (7, 7), 3, "spatial_do", "conv", 0, (0,), (0,))
    assert maps.combined.shape == (1, 14, 14)
    wide = F.interpolate(torch.eye(3)[None, None], (18, 18), mode="bilinear")[0, :, :14, :14]
    torch.testing.assert_close(maps.combined, wide)


def test_scaled_maps_reach_from_minus_one_to_one():
    _, x, network, graph = case(Plain)
    scaled = heat_maps(network, graph, x[:2], method="reference").scaled().flatten(2)
    assert (scaled.amin(2) == -1).all() and (scaled.amax(2) == 1).all()


def test_maps_come_back_from_their_file(tmp_path):
    _, x, network, graph = case(Plain)
    for method in ("spatial_do", "channel_activation"):
        maps, path = heat_maps(network, graph, x[:2], method=method, cell=2), tmp_path / f"{method}.safetensors"
        maps.save(path)
        again = HeatMaps.load(path)
        assert torch.equal(again.combined, maps.combined) and torch.equal(again.x, maps.x)
        assert (again.maps is None) == (maps.maps is None) and again.sources == maps.sources
        assert (again.extent, again.cell, again.effects, again.layer) == (maps.extent, maps.cell, maps.effects, "conv2")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ArtifactError, match="damaged"):
        HeatMaps.load(path)
    from helpers.artifacts import save_tensors

    save_tensors(path, {"weight": torch.ones(2)})
    with pytest.raises(ArtifactError, match="does not hold heat maps"):
        HeatMaps.load(path)


# -------------------------------------------------------------------------------------------------- as an explainer


@pytest.fixture(scope="module")
def plain():
    model, x = make(Plain), images(40, 2)
    graphs = {t: walked(model, x, t)[1] for t in (0, 1)}
    return model, x, graphs


def test_the_explainer_takes_the_graph_of_each_images_class(plain):
    model, x, graphs = plain
    target, network = torch.tensor([1, 0, 0, 1]), Network(model, x[:1])
    for method in METHODS:
        heat = explainer(graphs, method=method, cell=2)(model, x[:4], target)
        for b, t in enumerate(target.tolist()):
            expected = heat_maps(network, graphs[t], x[b : b + 1], method=method, cell=2).combined[0]
            torch.testing.assert_close(heat[b], expected)
    single = explainer(graphs[1])
    assert torch.equal(single(model, x[:2], None), single(model, x[:2], torch.ones(2, dtype=torch.long)))


def test_the_explainer_explains_the_model_it_is_given(plain):
    """MPRT: the same graph in a network of other weights."""
    model, x, graphs = plain
    other = make(Plain, seed=1)
    for method in METHODS:
        explain = explainer(graphs[0], method=method)
        mine, theirs = explain(model, x[:4], None), explain(other, x[:4], None)
        assert not torch.allclose(mine, theirs)
        network = Network(other, x[:1])
        torch.testing.assert_close(theirs, heat_maps(network, graphs[0], x[:4], method=method).combined)
        with torch.no_grad():  # changed in place, as MPRT does
            weight = other.conv2.weight.clone()
            other.conv2.weight.copy_(model.conv2.weight)
            assert torch.equal(explain(other, x[:4], None), theirs) == (method == "channel_activation")
            other.conv2.weight.copy_(weight)
        assert torch.equal(explain(other, x[:4], None), theirs)


def test_the_explainer_leaves_everything_as_found(plain):
    model, x, graphs = plain
    model.train()
    before, target = {name: value.clone() for name, value in model.state_dict().items()}, torch.zeros(3).long()
    for method in METHODS:
        with torch.inference_mode():
            heat = explainer(graphs, method=method)(model, x[:3], target)
        assert not heat.requires_grad and model.training and model.conv1.training
        torch.testing.assert_close(heat, explainer(graphs, method=method)(model, x[:3].requires_grad_(), target))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()


# ---------------------------------------------------------------------------------------------------------- bad input


def test_what_cannot_be_is_refused_with_the_reason(plain):
    model, x, graphs = plain
    network, graph = Network(model, x[:1]), graphs[0]
    with pytest.raises(ConfigError, match="did you mean spatial_do"):
        heat_maps(network, graph, x, method="spatialdo")
    with pytest.raises(ConfigError, match="no layer 'conv3' in the graph"):
        heat_maps(network, graph, x, "conv3")
    with pytest.raises(ConfigError, match="fc1 reads no image.*conv2"):
        heat_maps(network, graph, x, "fc1")
    with pytest.raises(ConfigError, match="at least 1 x 1"):
        heat_maps(network, graph, x, cell=0)
    with pytest.raises(ConfigError, match="nodes of input were not tested"):
        heat_maps(network, graph, x, "conv1", method="channel_activation")
    with pytest.raises(ValueError, match=r"expected images \[B, C, H, W\]"):
        heat_maps(network, graph, x[0])
    with pytest.raises(ConfigError, match="no graph of class 2, only of: 0, 1"):
        explainer(graphs)(model, x[:2], torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="one target for each of 2 images"):
        explainer(graphs)(model, x[:2], None)
    with pytest.raises(ValueError, match=r"expected images \[B, C, H, W\]"):
        explainer(graphs)(model, x[:0], torch.zeros(0).long())
    with pytest.raises(ConfigError, match="graph of class 0 was given for class 1"):
        explainer({1: graph})
    with pytest.raises(ConfigError, match="no graph to explain with"):
        explainer({})
    with pytest.raises(ConfigError, match="unknown method"):
        explainer(graphs, method="cam")
    with pytest.raises(ConfigError, match="graph is of another network"):
        small = LeNet(2).double()
        small.conv2 = nn.Conv2d(6, 1, 5).double()
        small.fc1 = nn.Linear(25, 120).double()
        heat_maps(Network(small.eval(), images(1, 2, 32)), graph, images(1, 2, 32))


def test_graphs_that_reach_no_convolution_have_no_map(plain):
    model, x, graphs = plain
    empty = graphs[0].refilter(Selection(delta=100.0))
    with pytest.raises(ConfigError, match="reaches no convolution"):
        heat_maps(Network(model, x[:1]), empty, x)
    with pytest.raises(ConfigError, match="reaches no convolution"):
        explainer(empty)
    with pytest.raises(ConfigError, match="has no causes"):
        heat_maps(Network(model, x[:1]), empty, x, "conv2")


def test_methods_that_make_no_sense_for_a_layer_say_so():
    _, x, network, graph = case(Residual)
    with pytest.raises(ConfigError, match="no kernels.*take 'spatial_do'"):
        heat_maps(network, graph, x, "block3.skip", method="reference")
    with pytest.raises(ConfigError, match="block2 is no single layer's output"):
        heat_maps(network, graph, x, "block3.conv1", method="reference")
    with pytest.raises(ConfigError, match="linear|no kernels"):
        _, x, network, graph = case(Depthwise)
        heat_maps(network, graph, x, "pw2", method="reference")


def test_a_network_that_was_not_traced_has_the_maps_that_need_no_second_run(plain):
    model, x, graphs = plain
    chain = Chain(model, x[:1], ["conv1", "conv2", "fc1", "fc2"])
    for method in ("reference", "contribution", "channel_activation"):
        expected = heat_maps(Network(model, x[:1]), graphs[0], x[:2], method=method).combined
        torch.testing.assert_close(heat_maps(chain, graphs[0], x[:2], method=method).combined, expected)
    for method in ("spatial_do", "act_grad"):
        with pytest.raises(ConfigError, match="only a traced one can"):
            heat_maps(chain, graphs[0], x[:2], method=method)
