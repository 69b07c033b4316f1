"""Discovery finds what was planted, and nothing else (spec explainnn, sections 3 and 13)."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from causal_nets import Depthwise, Fire, Plain, Residual, images, make
from torch import nn

from helpers.causal_graphs.discover import REFERENCE, Discovery, choose, discover, explain, recheck
from helpers.causal_graphs.engines import Cut, Samples, cut_logits, first_order, single_cuts
from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.interventions import Intervention
from helpers.causal_graphs.network import Network, weights_hash
from helpers.causal_graphs.statistics import Measured, Selection, measure
from helpers.config import ConfigError
from helpers.data.images import Images, Preprocess

NO_DELTA = Selection(delta=0.0)


class Planted(nn.Module):
    """Property 6: h0 = ReLU(2 c0 + c1), h1 = ReLU(c2), h2 = ReLU(c3); logit 1 = 1.5 h0 + 0.5 h1 - 0.7 h2. Channel 4 is
    a copy of c0 that leads nowhere."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(4, 5, 1, bias=False), nn.Conv2d(5, 4, 1, bias=False), nn.Conv2d(4, 2, 1, bias=False)
        )  # fmt: skip
        for conv in (self.conv1, self.conv2, self.conv3):
            nn.init.zeros_(conv.weight)
        with torch.no_grad():
            for j, i in ((0, 0), (1, 1), (2, 2), (3, 3), (4, 0)):
                self.conv1.weight[j, i] = 1
            for j, i, value in ((0, 0, 2), (0, 1, 1), (1, 2, 1), (2, 3, 1)):
                self.conv2.weight[j, i] = value
            for j, value in enumerate((1.5, 0.5, -0.7)):
                self.conv3.weight[1, j] = value

    def forward(self, x):
        return self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x))))).mean((2, 3))


def walk(model, x, target, seed=0, **options):
    return discover(Samples(Network(model, x[:1]), x), target, Discovery(**options), seed=seed)


def test_planted_causes_inhibitors_and_effects_are_found_exactly():
    model, x = Planted().double().eval(), images(20, 4)
    graph = walk(model, x, 1, selection=NO_DELTA)
    assert graph.layer("conv3").causes == (0, 1) and graph.layer("conv3").inhibitors == (2,)
    assert graph.layer("conv2").effects == (0, 1) and graph.layer("conv2").causes == (0, 1, 2)
    network = Network(model, x[:1])
    link, samples = network.link("conv2"), Samples(network, x)
    d = measure(samples.logits, cut_logits(samples, link, single_cuts(range(5), (0, 1)), Intervention()), 1).d
    c = x.mean((2, 3)).T
    expected = torch.stack([-3 * c[0], -1.5 * c[1], -0.5 * c[2], 0 * c[3], 0 * c[0]])
    torch.testing.assert_close(d, expected, rtol=1e-12, atol=1e-12)


def test_a_copy_that_leads_nowhere_is_no_cause_unless_soft_values_switch_its_edges_on():
    """Property 7. A correlation would select it: channel 4 is channel 0."""
    model, x = Planted().double().eval(), images(20, 4)
    assert 4 not in walk(model, x, 1, selection=NO_DELTA).layer("conv2").causes
    soft = walk(model, x, 1, selection=NO_DELTA, intervention=Intervention(amount=0.3)).layer("conv2")
    assert 4 in soft.inhibitors and soft.statistics.mean_d[4] > 0  # cutting is replaced by adding an edge: it raises y


class Redundant(nn.Module):
    """Property 8: y = 1 - ReLU(1 - a - b): either of a = b = 1 suffices."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(3, 3, bias=False), nn.Linear(3, 1), nn.Linear(1, 2)
        with torch.no_grad():
            self.fc1.weight.copy_(torch.eye(3))
            self.fc2.weight.copy_(torch.tensor([[-1.0, -1.0, 0.0]]))
            self.fc2.bias.fill_(1.0)
            self.fc3.weight.copy_(torch.tensor([[-1.0], [0.0]]))
            self.fc3.bias.copy_(torch.tensor([1.0, 0.0]))

    def forward(self, x):
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


def test_redundant_nodes_are_found_only_together():
    network = Network(Redundant().double().eval(), x := torch.ones(4, 3, dtype=torch.float64))
    samples, link = Samples(network, x), network.link("fc2")
    cuts = [Cut((0,), (0,)), Cut((1,), (0,)), Cut((2,), (0,)), Cut((0, 1), (0,)), Cut((0, 2), (0,))]
    d = measure(samples.logits, cut_logits(samples, link, cuts, Intervention()), 0).d.mean(1)
    assert d.tolist() == [0, 0, 0, -1, 0]


# --------------------------------------------------------------------------------------------- invariances


def permuted(model, order):
    """`Plain` with the channels of conv2 in another order."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.conv2.weight.copy_(model.conv2.weight[order])
        other.conv2.bias.copy_(model.conv2.bias[order])
        other.fc1.weight.copy_(model.fc1.weight.view(6, 5, 4)[:, order].flatten(1))
    return other


def rescaled(model, factor):
    """`Plain` with the channels of conv2 scaled and what reads them divided: the same function."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.conv2.weight.mul_(factor[:, None, None, None])
        other.conv2.bias.mul_(factor)
        other.fc1.weight.copy_((model.fc1.weight.view(6, 5, 4) / factor[:, None]).flatten(1))
    return other


def causes(graph):
    return {layer.layer: set(layer.causes) for layer in graph.layers}


def test_graphs_follow_a_permutation_and_ignore_a_rescaling_under_hard_cuts():
    """Property 9."""
    model, x, order = make(Plain), images(40, 2), torch.tensor([3, 0, 4, 1, 2])
    graph, other = walk(model, x, 1, selection=NO_DELTA), walk(permuted(model, order), x, 1, selection=NO_DELTA)
    assert {order[i].item() for i in other.layer("fc1").causes} == set(graph.layer("fc1").causes)
    assert causes(other)["fc2"] == causes(graph)["fc2"] and causes(other)["conv2"] == causes(graph)["conv2"]
    factor = torch.tensor([0.01, 1, 100, 10, 0.1], dtype=torch.float64)
    assert causes(walk(rescaled(model, factor), x, 1, selection=NO_DELTA)) == causes(graph)


def test_soft_values_depend_on_the_scale_of_a_channel():
    """Property 9, the other half: the same function, another graph."""
    model, x = make(Plain), images(40, 2)
    soft, factor = Intervention(amount=0.1), torch.full((5,), 100.0, dtype=torch.float64)
    one, other = (walk(m, x, 1, intervention=soft).layer("fc1") for m in (model, rescaled(model, factor)))
    assert one.effects == other.effects and list(one.statistics.mean_d) != list(other.statistics.mean_d)
    released = {"soft": True, "selection": Selection(mode="reference")}
    one, other = (causes(walk(m, x, 1, **released)) for m in (model, rescaled(model, factor)))
    assert one != other, "by the release's own rule even the nodes differ"


def test_a_bias_of_the_target_changes_no_effect():
    """Property 10."""
    model, x = make(Plain), images(40, 2)
    graph = walk(model, x, 1, selection=NO_DELTA)
    with torch.no_grad():
        model.fc2.bias[1] += 5
    raised = walk(model, x, 1, selection=NO_DELTA)
    for one, other in zip(graph.layers, raised.layers, strict=True):
        if one.statistics:
            torch.testing.assert_close(torch.tensor(one.statistics.mean_d), torch.tensor(other.statistics.mean_d))
            assert list(one.statistics.mean_r) != list(other.statistics.mean_r)


# ---------------------------------------------------------------------------------- residual nets, other layers


def test_an_effect_that_passes_only_through_the_skip_is_found():
    """Property 18: block3's convolutions are dead, so that its input counts through the skip alone."""
    model, x = make(Residual), images(40)
    with torch.no_grad():
        model.block3.bn2.weight.zero_()
        model.fc.weight.fill_(1.0)
    graph = walk(model, x, 0, selection=NO_DELTA)
    assert set(graph.layer("block3.skip").causes) & set(graph.causes("block2"))
    conv = graph.layer("block3.conv2")
    assert conv.causes == () and (conv.statistics.mean_d == 0).all()
    assert {layer.layer for layer in graph.layers} >= {"block2.conv2", "block2.downsample.0"}


def test_channel_ids_are_those_of_the_sum_also_behind_a_downsampling():
    network = Network(make(Residual), images(1))
    facts = {name: (link.source, link.target) for name, link in network.links.items()}
    assert facts["block2.conv2"] == ("block2.conv1", "block2") and facts["block2.downsample.0"] == ("block1", "block2")
    assert facts["block3.skip"] == ("block2", "block3") and facts["fc"] == ("block3", "fc")
    assert "block2.skip" not in facts
    assert {s.name: s.size for s in network.spaces.values()} == {
        "input": 3, "stem": 4, "block1.conv1": 4, "block1": 4, "block2.conv1": 6, "block2": 6, "block3.conv1": 6,
        "block3": 6, "fc": 3,
    }  # fmt: skip


def test_depthwise_layers_pass_their_nodes_on():
    graph = walk(make(Depthwise), images(40), 0, selection=NO_DELTA)
    layer = graph.layer("dw")
    assert layer.rule == "passed" and layer.causes == layer.effects == graph.causes("dw")


def test_concatenated_nodes_are_numbered_one_behind_the_other():
    graph = walk(make(Fire), images(40), 0, selection=NO_DELTA)
    into = {layer.layer: layer.effects for layer in graph.layers if layer.target_layer == "cat"}
    assert all(e < 3 for e in into.get("one", ())) and all(e >= 7 for e in into.get("three", ()))
    skip = graph.layer("cat.skip")
    assert skip.tested == tuple(e - 3 for e in skip.effects)


@pytest.mark.parametrize("kind", [Plain, Residual, Depthwise, Fire])
def test_keeping_every_edge_is_the_network_and_cutting_all_leaves_the_bias(kind):
    """Property 13."""
    model, x = make(kind), images(4, 2 if kind is Plain else 3)
    network = Network(model, x[:1])
    shapes = {n: (k.inputs,) if k.kind == "identity" else (k.outputs, k.inputs) for n, k in network.links.items()}
    every = {name: torch.ones(shape) for name, shape in shapes.items()}
    with torch.no_grad():
        torch.testing.assert_close(network.masked(x, every), model(x))
    last = list(network.links.values())[-1]
    cut = network.masked(x, {last.name: torch.zeros(shapes[last.name])})
    torch.testing.assert_close(cut, last.module.bias.detach().expand_as(cut))
    with pytest.raises(ValueError, match="expected a mask"):
        network.masked(x, {last.name: torch.zeros(1, 2, 3)})


def test_masked_edges_equal_the_same_cut():
    for kind in (Plain, Residual, Depthwise, Fire):
        model, x = make(kind), images(4, 2 if kind is Plain else 3)
        samples = Samples(network := Network(model, x[:1]), x)
        for link in network.links.values():
            skip = link.kind == "identity"
            mask = torch.ones(link.inputs) if skip else torch.ones(link.outputs, link.inputs)
            mask[0 if skip else (1, 0)] = 0
            cut = Cut((0,), (link.offset + (0 if skip else 1),))
            torch.testing.assert_close(network.masked(x, {link.name: mask}),
                                       cut_logits(samples, link, [cut], Intervention())[0])  # fmt: skip


# ------------------------------------------------------------------------------------------------ the whole walk


def data(model, n=200, channels=2, classes=3):
    x = torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::7] = (y[::7] + 1) % classes  # some labels are not what the model says
    return Images(x, y, tuple("abc"[:classes]), Preprocess(size=8))


def frequent(images):
    return int(images.y.bincount().argmax())


def test_the_same_seed_gives_the_same_file_and_another_seed_other_images(tmp_path):
    """Property 12."""
    model = make(Plain, torch.float32)
    images, options = data(model), Discovery(selection=NO_DELTA, refine=True)
    target = frequent(images)
    paths = [tmp_path / f"{i}.json" for i in range(2)]
    graphs = [explain(model, images, target, n_samples=20, options=options, path=path) for path in paths]
    assert paths[0].read_bytes() == paths[1].read_bytes() and CausalGraph.load(paths[0]) == graphs[0]
    other = explain(model, images, target, n_samples=20, options=options, seed=1)
    assert other.sample_indices != graphs[0].sample_indices
    assert graphs[0].layer("fc2").edges is not None and not list(tmp_path.glob(".*"))


def test_a_walk_that_was_cut_off_goes_on_where_it_stopped(tmp_path, monkeypatch):
    from helpers.causal_graphs import discover as module

    model = make(Plain, torch.float32)
    images, options, path = data(model), Discovery(selection=NO_DELTA), tmp_path / "graph.json"
    target = frequent(images)
    whole = explain(model, images, target, n_samples=20, options=options)
    calls, real = [], module.cut_logits

    def failing(samples, link, *rest, **options):
        calls.append(link.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(samples, link, *rest, **options)

    monkeypatch.setattr(module, "cut_logits", failing)
    with pytest.raises(KeyboardInterrupt):
        explain(model, images, target, n_samples=20, options=options, path=path)
    assert explain(model, images, target, n_samples=20, options=options, path=path) == whole == CausalGraph.load(path)
    assert calls == ["fc2", "fc1", "fc1", "conv2"]


def test_images_are_chosen_by_the_models_own_answers():
    model = make(Plain, torch.float32)
    images = data(model)
    target = frequent(images)
    chosen = choose(model, images, target, 1000)
    with torch.no_grad():
        assert (model(images.inputs(chosen)).argmax(1) == target).all() and (images.y[chosen] == target).all()
    assert len(choose(model, images, target, 5)) == 5
    everything = choose(model, images, target, 1000, include_misclassified=True)
    assert len(everything) == int((images.y == target).sum()) > len(chosen)


def test_bad_input_is_refused_with_the_reason():
    model = make(Plain, torch.float32)
    images = data(model)
    wrong = Images(images.x, (images.y + 1) % 3, images.classes, images.preprocess)
    rare = Images(images.x[:3], torch.tensor([0, 0, 0]), images.classes, images.preprocess)
    with pytest.raises(ValueError, match="too few to judge by"):
        choose(make(Planted2, torch.float32), rare, 0, 10)
    with pytest.raises(ConfigError, match="class of 0 to 2"):
        explain(model, wrong, 3)
    with pytest.raises(ValueError, match="training mode"):
        explain(copy.deepcopy(model).train(), images, frequent(images))
    with pytest.raises(ConfigError, match="a network of one logit has none for each class"):
        explain(nn.Sequential(copy.deepcopy(model), nn.Linear(3, 1)).eval(), images, 0, include_misclassified=True)
    with pytest.raises(ValueError, match="at least 1"):
        explain(model, images, 0, n_samples=0)
    with pytest.raises(ConfigError, match="no layer 'fc3' in the graph"):
        explain(model, images, frequent(images), n_samples=20).layer("fc3")


def test_a_network_that_went_back_to_training_is_refused():
    model, x = make(Plain), images(4, 2)
    network = Network(model, x[:1])
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        Samples(network, x)


def test_choosing_images_moves_no_statistics():
    images = data(plain := make(Plain, torch.float32))
    model = nn.Sequential(nn.BatchNorm2d(2), plain).train()
    before = model[0].running_mean.clone()
    choose(model, images, frequent(images), 2, include_misclassified=False)
    assert torch.equal(model[0].running_mean, before) and model.training


def test_a_class_and_a_path_may_be_of_any_kind_and_a_model_of_any_precision(tmp_path):
    model = make(Plain, torch.float32)
    images = data(model)
    target = frequent(images)
    graph = explain(model, images, target, n_samples=20, path=str(tmp_path / "graph.json"))
    assert (tmp_path / "graph.json").exists()
    for other in (np.int64(target), torch.tensor(target)):
        assert explain(model, images, other, n_samples=20) == graph
    double = explain(copy.deepcopy(model).double(), images, target, n_samples=20)
    assert double.nodes().equals(graph.nodes())
    with pytest.raises(TypeError):
        explain(model, images, 1.5)


class Planted2(Plain):
    """Never answers 0."""

    def forward(self, x):
        return super().forward(x) * 0 + torch.tensor([0.0, 1.0, 0.0])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.gate, self.fc = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1), nn.Linear(3, 2)

    def forward(self, x):
        return self.fc((self.conv(x) * self.gate(x).sigmoid()).mean((2, 3)))


class Halved(nn.Module):
    """A skip connection of weight one half, which would be cut as a whole."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 2, 1), nn.Linear(2, 3)

    def forward(self, x):
        return self.fc(torch.add(self.conv(x), x, alpha=0.5).mean((2, 3)))


class Mean(nn.Module):
    """Of all nodes, on an axis that stays."""

    def forward(self, x):
        return x.mean(1, keepdim=True)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(self.fc(x))


def test_layers_whose_paths_cannot_be_followed_are_named():
    with pytest.raises(ConfigError, match=r"unknown kind of layer: mul \(mul\)"):
        Network(Attention().eval(), torch.rand(1, 2, 4, 4))
    with pytest.raises(ConfigError, match=r"unknown kind of layer: add \(add\)"):
        Network(Halved().eval(), torch.rand(1, 2, 4, 4))
    with pytest.raises(ConfigError, match="called more than once"):
        Network(Recurrent().eval(), torch.rand(1, 4))
    with pytest.raises(ConfigError, match="did you mean conv2 or conv1"):
        Network(make(Plain), images(1, 2)).link("conv3")
    mean = nn.Sequential(nn.Conv2d(2, 3, 1), Mean(), nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(32, 2))
    with pytest.raises(ConfigError, match=r"unknown kind of layer: mean \(mean\)"):
        Network(mean.eval(), torch.rand(1, 2, 4, 4))
    with pytest.raises(ValueError, match=r"logits \[N, K\]"):
        Network(nn.Conv2d(2, 3, 1).eval(), torch.rand(1, 2, 4, 4))


# ------------------------------------------------------------------------------------------------- cheaper ways


def test_the_gradient_screen_predicts_small_cuts_and_keeps_what_matters():
    model, x = make(Plain), images(60, 2)
    network = Network(model, x[:1])
    samples = Samples(network, x)
    for link in list(network.links.values())[1:]:
        small, cuts = Intervention(kind="scale", amount=1e-6), single_cuts(range(link.inputs), range(link.outputs))
        exact = measure(samples.logits, cut_logits(samples, link, cuts, small), 1).d
        predicted = first_order(samples, link, cuts, small, lambda logits: logits[:, 1])
        torch.testing.assert_close(predicted, exact, rtol=1e-3, atol=1e-13)
    whole, screened = (walk(model, x, 1, candidates=c, retested=0.0) for c in ("all", "screen"))
    assert causes(whole) == causes(screened)
    assert sum(layer.dropped for layer in screened.layers) > 0, "it saved cuts"


def test_a_screen_that_drops_everything_leaves_a_graph_without_causes():
    model, x = make(Plain), images(20, 2)
    graph = walk(model, x, 1, candidates="screen", retested=0.0, selection=Selection(delta=50.0))
    assert not any(found for found in causes(graph).values())


def test_a_screen_needs_the_threshold_that_it_drops_by():
    with pytest.raises(ValueError, match="a screen drops what is far from delta"):
        Discovery(candidates="screen", selection=Selection(mode="reference"))


def test_low_precision_is_measured_again_near_the_threshold():
    model, x = make(Plain, torch.float32), images(60, 2, dtype=torch.float32)
    with torch.no_grad():
        model.fc2.bias[1] += 3
    whole, low = (walk(model, x, 1, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert causes(whole) == causes(low)
    exact, rough = whole.layers[0].statistics, low.layers[0].statistics
    assert list(exact.mean_d) != list(rough.mean_d)
    shares = np.abs(np.asarray(exact.mean_d)) / exact.scale
    for delta in shares[shares > 0]:  # the threshold on one node after the other: it is measured exactly
        near = walk(model, x, 1, dtype="bfloat16", selection=Selection(delta=float(delta))).layers[0].statistics
        node = int(np.abs(shares - delta).argmin())
        assert near.mean_d[node] == pytest.approx(exact.mean_d[node], rel=1e-6)
    assert any(abs(rough.mean_d[k] / exact.mean_d[k] - 1) > 1e-5 for k in range(len(shares)) if shares[k] > 0)


def test_the_reference_mode_draws_one_soft_value_a_layer():
    model = make(Plain, torch.float32)
    graph = explain(model, images := data(model), frequent(images), n_samples=20, options=REFERENCE, seed=4)
    values = [layer.u for layer in graph.layers if layer.statistics]
    assert all(0 <= u < 0.01 for u in values) and len(set(values)) == len(values)
    assert graph.mode == "reference" and graph.intervention["soft"] == [0.0, 0.01]


def test_wide_layers_are_pruned_by_the_releases_rule():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 1000), nn.Linear(1000, 2)

        def forward(self, x):
            return self.fc2(torch.relu(self.fc1(x)))

    model = Wide().eval()
    graph = walk(model, torch.rand(8, 4), 0, candidates="reference")
    order = model.fc2.weight[0].argsort(descending=True).tolist()
    assert set(graph.layer("fc2").tested) == {*order[:100], *order[950:], *order[475:525]}


def test_the_hash_changes_with_any_weight_or_buffer():
    model = make(Residual)
    before = weights_hash(model)
    model.block1.bn1.num_batches_tracked += 1
    changed = weights_hash(model)
    with torch.no_grad():
        model.fc.weight[0, 0] += 1e-12
    assert len({before, changed, weights_hash(model)}) == 3


class Saturated(nn.Module):
    """Logit 1 = ReLU6 of the only neuron that any image lights: where that is above 6, no gradient tells of it."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (nn.Linear(*sizes, bias=False) for sizes in ((8, 8), (8, 1), (1, 2)))
        with torch.no_grad():
            self.fc1.weight.copy_(torch.eye(8))
            self.fc2.weight.copy_(torch.eye(8)[:1])
            self.fc3.weight.copy_(torch.tensor([[0.0], [1.0]]))

    def forward(self, x):
        return self.fc3(nn.functional.relu6(self.fc2(torch.relu(self.fc1(x)))))


@pytest.mark.parametrize(("share", "retested"), [(0.0, 0), (0.05, 1), (0.3, 3), (1.0, 8)])
def test_some_of_what_a_screen_drops_is_tested_and_the_causes_that_it_missed_are_counted(share, retested):
    """Eight nodes seem to do nothing, to first order; one of them is what the logit hangs on. Shares of a node
    are rounded up, so that one is tested even of a few."""
    model, x = Saturated().double().eval(), torch.zeros(4, 8, dtype=torch.float64)
    x[:, 0] = torch.tensor([8.0, 9.0, 10.0, 11.0])
    layer = walk(model, x, 1, candidates="screen", retested=share).layer("fc2")
    assert (layer.dropped, layer.retested, len(layer.tested)) == (8, retested, retested)
    assert layer.missed == len(layer.causes) and set(layer.causes) <= {0}
    assert layer.missed == 1 or share < 1


@pytest.mark.parametrize("mode", ["recommended", "reference"])
def test_what_lies_within_three_errors_of_its_modes_threshold_is_measured_again(mode):
    y = torch.tensor([9.0, 11.0, 9.0, 11.0], dtype=torch.float64)
    selection = Selection(mode=mode, delta=0.1)
    least = 1.0 if mode == "recommended" else 1.65 * (2 * 4 / 3 / 4) ** 0.5  # both variances are 4 / 3
    low, exact = (SimpleNamespace(logits=torch.full((4, 2), value)) for value in (0.01, 0.0))
    d = torch.tensor([0.02, -0.02, 0.04, -0.04, -least])[:, None].sub(least).expand(-1, 4).double()
    rough = Measured(d, d / y, 0 * d, y)
    asked = []

    def run(samples, cuts):
        assert samples is exact
        asked.extend(cuts)
        return Measured(*torch.full((3, len(cuts), 4), 7.0, dtype=torch.float64), y)

    cuts = single_cuts(range(5), (0,))
    fine = recheck(rough, cuts, low, exact, selection, run)
    assert asked == cuts[:2]
    for name in ("d", "r", "kl"):
        assert (getattr(fine, name)[:2] == 7).all() and torch.equal(getattr(fine, name)[2:], getattr(rough, name)[2:])


def test_a_soft_value_lies_just_above_beta():
    graph = walk(make(Plain), images(8, 2), 1, soft=True, beta=0.3)
    values = [layer.u for layer in graph.layers if layer.statistics]
    assert values and all(0.3 <= u < 0.31 for u in values)
    assert graph.intervention["soft"] == pytest.approx([0.3, 0.31]), "and the graph says so"


def test_a_contrast_is_walked_from_both_logits():
    """Class 1 over class 2: a node is cut from both, as its edge into either moves the difference."""
    graph = walk(make(Plain), images(8, 2), 1, effect="contrast", other=2)
    assert graph.layers[0].effects == (1, 2)
    for half in ({"effect": "contrast"}, {"effect": "margin", "other": 2}):
        with pytest.raises(ValueError, match="'contrast' needs the other class"):
            Discovery(**half)


def test_one_image_is_enough_only_where_one_is_asked_for():
    """Nothing can be paired with a single image: two are the least that a class can be judged by."""
    model = make(Plain, torch.float32)
    x = images(30, 2, dtype=torch.float32)
    k = int(model(x).argmax(1)[0])
    others = (model(x).argmax(1) != k).nonzero()[:2, 0].tolist()
    found = Images(x[[0, *others]], torch.full((3,), k), ("0", "1", "2"), Preprocess(size=8))
    assert choose(model, found, k, 1).tolist() == [0]
    with pytest.raises(ValueError, match="only 1 of 3 images of class"):
        choose(model, found, k, 3)


def test_double_precision_is_that_of_the_whole_walk():
    model = make(Plain, torch.float32)
    k = frequent(pictures := data(model))
    found = explain(model, pictures, k, n_samples=20, options=Discovery(dtype="float64"))
    x = pictures.inputs(list(found.sample_indices)).double()
    double, single = (walk(copy.deepcopy(model).to(t), x.to(t), k) for t in (torch.float64, torch.float32))
    assert found.layers[0].statistics == double.layers[0].statistics != single.layers[0].statistics
    assert model.fc1.weight.dtype == torch.float32
    assert found.weights_hash == weights_hash(model), "the model's own, not that of its copy"


def test_what_another_walk_left_behind_is_not_taken_over(tmp_path):
    model, x, options = make(Plain), images(8, 2), Discovery(soft=True)
    samples = Samples(Network(model, x[:1]), x)
    other = discover(samples, 1, options, seed=1)
    other.save(tmp_path / ".graph.partial.json")
    found = discover(samples, 1, options, seed=0, path=tmp_path / "graph.json")
    assert found == discover(samples, 1, options, seed=0) and found.layers[0].u != other.layers[0].u


def test_the_norms_of_edges_are_those_of_their_kernels():
    """Lower nodes by effects, one number for the block of weights between the two."""
    model = make(Plain)
    graph = walk(model, images(20, 2), 1, selection=Selection(delta=0.0, alpha=0.9, fdr=1.0))
    for layer, weight in (("conv2", model.conv2.weight.flatten(2)), ("fc1", model.fc1.weight.view(6, 5, 4))):
        found = graph.layer(layer)
        expected = weight.detach().norm(dim=2)[list(found.effects)][:, list(found.tested)].T
        np.testing.assert_allclose(found.weight_norms, expected, rtol=1e-4)
