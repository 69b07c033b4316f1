"""A graph's edges, cut or kept alone, say whether it is necessary and sufficient (spec explainnn, section 6.3)."""

import copy
import json

import pytest
import torch
from causal_nets import Depthwise, Fire, Plain, Residual, edit, images, make
from torch import nn

from helpers.causal_graphs import surgery
from helpers.causal_graphs.discover import Discovery, discover
from helpers.causal_graphs.engines import Samples
from helpers.causal_graphs.network import Network
from helpers.causal_graphs.statistics import Selection
from helpers.config import ConfigError
from helpers.data.images import Images, Preprocess

ANY = Discovery(selection=Selection(delta=0.0))
KINDS = pytest.mark.parametrize("kind", [Plain, Residual, Depthwise, Fire])


class Pathways(nn.Module):
    """Each of three classes has an input channel, a channel in each layer and a logit of its own."""

    def __init__(self, width=8):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, width, 1, bias=False), nn.Conv2d(width, width, 1, bias=False)
        self.fc = nn.Linear(width, 3)
        for layer in (self.conv1, self.conv2, self.fc):
            nn.init.zeros_(layer.weight)
            for k in range(3):
                layer.weight.data[k, k] = 1
        nn.init.zeros_(self.fc.bias)

    def forward(self, x):
        return self.fc(torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3)))


def pathways():
    """(model, network, 90 images of which class k is bright in channel k, graph of class 0)."""
    model, y = Pathways().eval(), torch.arange(90) % 3
    x = 0.2 * torch.rand(90, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x[torch.arange(90), y] += 0.5
    data, network = Images(x, y, tuple("abc"), Preprocess(size=4)), Network(model, x[:1])
    return model, network, data, discover(Samples(network, x[y == 0]), 0, Discovery())


def walked(kind, options=ANY, target=1):
    """(network, graph, images) of a small random network."""
    x = images(30, 2 if kind is Plain else 3)
    network = Network(make(kind), x[:1])
    return network, discover(Samples(network, x), target, options), x


def random_set(network, seed=0, share=0.7):
    draw = torch.Generator().manual_seed(seed)
    return {n: there & (torch.rand(there.shape, generator=draw) < share)
            for n, there in surgery.all_edges(network).items()}  # fmt: skip


# --------------------------------------------------------------------------------------------------- edges


@KINDS
def test_the_edges_are_those_of_the_graphs_table(kind):
    network, graph, _ = walked(kind)
    edges, table = surgery.graph_edges(network, graph), graph.edges()
    table = table[(table.role == "cause") & (table.source_layer != "input")]
    assert surgery.count(edges) == len(table) > 1
    for row in table.itertuples():
        link = network.link(row.layer)
        at = row.source if link.kind == "identity" else (row.target - link.offset, row.source)
        assert edges[row.layer][at]
    with_inhibitors = surgery.graph_edges(network, graph, inhibitors=True)
    assert surgery.count(with_inhibitors) == (graph.edges().source_layer != "input").sum()


def test_where_single_edges_were_measured_only_those_kept_count():
    network, graph, _ = walked(Plain, ANY.override({"refine": True}))
    edges, layer = surgery.graph_edges(network, graph), graph.layer("fc1")
    kept = {(t, s) for s, t, k in zip(layer.edges.sources, layer.edges.targets, layer.edges.kept, strict=True) if k}
    of_causes = {(t, s) for t, s in kept if s in layer.causes}
    assert set(map(tuple, edges["fc1"].nonzero().tolist())) == of_causes
    assert len(of_causes) < len(layer.causes) * len(layer.effects)


def test_the_input_is_left_whole_and_uncounted():
    network, graph, _ = walked(Plain)
    assert graph.layers[-1].layer == "conv1" and "conv1" not in surgery.graph_edges(network, graph)
    assert surgery.count(surgery.all_edges(network)) == 4 * 5 + 5 * 6 + 6 * 3
    model = nn.Sequential(nn.Linear(4, 2)).eval()
    linear, x = Network(model, torch.rand(1, 4)), torch.rand(5, 4)
    graph = discover(Samples(linear, x), 0, ANY)
    assert surgery.cut(surgery.graph_edges(linear, graph)) == {} and surgery.count(surgery.all_edges(linear)) == 0


def test_there_are_no_edges_between_the_groups_of_a_convolution():
    network = Network(make(Fire), images(1))
    assert surgery.all_edges(network)["three"].sum() == 8 and surgery.all_edges(network)["one"].sum() == 12
    assert surgery.all_edges(Network(make(Depthwise), images(1)))["dw"].equal(torch.eye(4, dtype=torch.bool))


def test_a_graph_of_another_network_is_refused():
    _, graph, _ = walked(Plain)
    with pytest.raises(ConfigError, match="no layer 'fc2'"):
        surgery.graph_edges(Network(make(Residual), images(1)), graph)


# ------------------------------------------------------------------------------------------------- running


@pytest.mark.parametrize("kind", [Plain, Residual, Depthwise])
def test_masks_equal_a_model_whose_weights_are_overwritten_one_by_one(kind):
    network, _, x = walked(kind)
    edges = random_set(network)
    for masks, gone in ((surgery.cut(edges), edges), (surgery.keep(edges), {n: ~e for n, e in edges.items()})):
        slow = copy.deepcopy(network.model)
        with torch.no_grad():
            for name, chosen in gone.items():
                link = network.link(name)
                pairs = zip(*[range(link.inputs)] * 2, strict=True) if link.kind == "identity" else chosen.nonzero()
                for pair in pairs:
                    j, i = map(int, pair)
                    there = chosen[i] if link.kind == "identity" else surgery.all_edges(network)[name][j, i]
                    if there:
                        edit(slow, link, i, j, 0.0)
            torch.testing.assert_close(network.masked_from(network.record(x), masks), slow(x))


@KINDS
def test_what_was_recorded_need_not_be_run_again(kind):
    network, _, x = walked(kind)
    values = network.record(x)
    for seed in range(3):
        masks = surgery.keep(random_set(network, seed))
        whole = network.masked(x, masks)
        torch.testing.assert_close(network.masked_from(values, masks), whole)
        last = dict([list(masks.items())[-1]])
        torch.testing.assert_close(network.masked_from(values, last), network.masked(x, last))
    assert network.masked_from(values, {}) is values["logits"]


@pytest.mark.parametrize("memory", [2**28, 1])
def test_variants_are_run_in_batches(memory, monkeypatch):
    monkeypatch.setattr(surgery, "MEMORY", memory)
    _, network, data, graph = pathways()
    edges = surgery.graph_edges(network, graph)
    variants = [{}, surgery.cut(edges), surgery.keep(edges)]
    logits = surgery.variant_logits(network, data, variants, batch=7)
    for row, masks in zip(logits, variants, strict=True):
        torch.testing.assert_close(row, network.masked(data.inputs(), masks))


# ------------------------------------------------------------------------------------------------ controls


@KINDS
def test_a_random_graph_has_as_many_nodes_and_edges_everywhere_and_hangs_together(kind):
    network, graph, _ = walked(kind)
    edges = surgery.graph_edges(network, graph)
    drawn = [surgery.random_edges(network, edges, 0, "control", k) for k in range(4)]
    for other in drawn:
        for name, chosen in edges.items():
            link = network.link(name)
            if getattr(link.module, "groups", 1) in (1, link.inputs):
                assert other[name].sum() == chosen.sum()
        assert ends(network, other) <= starts(network, other) | {(network.logits.name, 1)}
    assert any(not same(drawn[0], other) for other in drawn[1:])
    assert same(drawn[0], surgery.random_edges(network, edges, 0, "control", 0))


def test_nodes_that_a_skip_ties_keep_one_order():
    network, graph, _ = walked(Residual)
    orders = surgery._orders(network, 3, "x")
    assert orders["stem"].equal(orders["block1"]) and orders["block2"].equal(orders["block3"])
    assert not orders["stem"].equal(orders["block1.conv1"]) and orders["fc"].equal(torch.arange(3))
    orders = surgery._orders(Network(make(Fire), images(1)), 3, "x")
    assert orders["cat"][3:7].equal(3 + orders["squeeze"]) and set(orders["cat"][:3].tolist()) == {0, 1, 2}


def starts(network, edges):
    return {(network.link(name).source, at[-1]) for name, chosen in edges.items() for at in chosen.nonzero().tolist()}


def ends(network, edges):
    links = {name: network.link(name) for name in edges}
    return {(links[n].target, links[n].offset + at[0]) for n, c in edges.items() for at in c.nonzero().tolist()}


def same(one, other):
    return all(one[name].equal(other[name]) for name in one)


# ------------------------------------------------------------------------------------------------- metrics


def test_a_class_that_hangs_on_its_own_path_loses_it_alone():
    _, network, data, graph = pathways()
    facts = surgery.record(network, graph, data)
    assert (facts["recall"], facts["others"], facts["auroc"]) == (1, 1, 1)
    assert (facts["cut_recall"], facts["cut_others"], facts["specificity"], facts["kept_auroc"]) == (0, 1, 1, 1)
    assert facts["edges"] == 2 and facts["all_edges"] == 8 * 8 + 8 * 3 and facts["sparsity"] == 2 / 88
    assert len(facts["random_kept_auroc"]) == 10 and min(facts["random_cut_recall"]) == 1
    assert sum(facts["random_kept_auroc"]) / 10 < 0.7 and json.loads(json.dumps(facts)) == facts
    assert surgery.necessity(network, graph, data).items() <= facts.items()
    assert surgery.sufficiency(network, graph, data).items() <= facts.items()


def test_a_part_of_the_images_is_drawn_by_the_seed():
    _, network, data, graph = pathways()
    few = surgery.record(network, graph, data, n_images=30, controls=2)
    assert few["images"] == 30 and few == surgery.record(network, graph, data, n_images=30, controls=2)
    with pytest.raises(ValueError, match="images of class 0 and of others"):
        surgery.record(network, graph, data[data.y == 0])


def test_specificity_counts_what_the_others_lose():
    logits = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    without = torch.tensor([[0.0, 1], [1, 0], [0, 1], [1, 0]])
    facts = surgery._necessity(logits, without, torch.tensor([0, 0, 1, 1]), 0)
    assert facts == {"recall": 1, "others": 1, "cut_recall": 0.5, "cut_others": 0.5, "specificity": 0}


def test_the_auroc_is_the_share_of_pairs_in_the_right_order():
    draw = torch.Generator().manual_seed(0)
    scores, positive = torch.randint(5, (40,), generator=draw).float(), torch.rand(40, generator=draw) < 0.3
    pairs = scores[positive][:, None] - scores[~positive]
    assert surgery.auroc(scores, positive) == pytest.approx(float(((pairs > 0) + 0.5 * (pairs == 0)).mean()))
    assert surgery.auroc(torch.ones(40), positive) == 0.5
    assert surgery.auroc(scores, torch.zeros(40, dtype=torch.bool)) != surgery.auroc(scores, positive)


def test_every_control_is_drawn_anew(monkeypatch):
    """Ten times one random graph would be a mean of one."""
    _, network, data, graph = pathways()
    draw, drawn = surgery.random_edges, []
    monkeypatch.setattr(surgery, "random_edges", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    surgery.record(network, graph, data)
    assert len({str([edges.tolist() for edges in chosen.values()]) for chosen in drawn}) > 5
