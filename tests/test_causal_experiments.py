"""Sample sizes, shared causes, pruning, and pairs that stand in for each other (spec explainnn, section 7.5)."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from causal_nets import Fire, Plain, Residual, images, make, naive_logits
from test_causal_discover import Planted, Redundant, data, frequent
from test_causal_surgery import pathways

from helpers.causal_graphs import surgery
from helpers.causal_graphs.discover import REFERENCE, Discovery, discover, explain
from helpers.causal_graphs.engines import Cut, Samples
from helpers.causal_graphs.experiments import (
    _any,
    _strongest,
    _strongest_of_all,
    by_size,
    class_overlap,
    edge_norms,
    pruning,
    sample_sizes,
)
from helpers.causal_graphs.network import Network
from helpers.causal_graphs.redundancy import redundancy
from helpers.causal_graphs.statistics import Selection
from helpers.config import ConfigError

ANY = Discovery(selection=Selection(delta=0.0))

# -------------------------------------------------------------------------------------------- E6, sample sizes


def test_each_draw_is_a_discovery_of_its_own():
    model = make(Plain, torch.float32)
    pictures = data(model)
    target = frequent(pictures)
    table = sample_sizes(model, pictures, target, sizes=(8, 20), draws=3, options=ANY)
    assert table.groupby(["size", "draw"]).ngroups == 6 and table.seed.nunique() == 6
    for _, rows in table.groupby(["size", "draw"]):
        graph = explain(model, pictures, target, n_samples=rows["size"].iloc[0], options=ANY, seed=rows.seed.iloc[0])
        assert dict(zip(rows.layer, rows.causes, strict=True)) == {
            layer.layer: layer.causes for layer in graph.layers if layer.statistics
        }
    alone = sample_sizes(model, pictures, target, sizes=(20,), draws=3, options=ANY)
    pd.testing.assert_frame_equal(table[table["size"] == 20].reset_index(drop=True), alone)
    assert json.loads(json.dumps(table.to_dict("records")))[0]["layer"] == "fc2"


def test_counts_and_agreement_by_hand():
    rows = [(10, 0, "a", (1, 2)), (10, 1, "a", (2,)), (10, 0, "b", (5,)), (20, 0, "a", ()), (20, 1, "a", ())]
    table = pd.DataFrame(rows, columns=["size", "draw", "layer", "causes"])
    facts = by_size(table)
    assert facts.loc[("a", 10)].tolist() == [1.5, np.sqrt(0.5), 1, 2, 0.5]
    assert facts.loc[("b", 10), ["count", "lowest", "jaccard"]].tolist() == [0.5, 0, 0]  # one draw did not reach it
    assert facts.loc[("a", 20), ["count", "jaccard"]].tolist() == [0, 0]


# --------------------------------------------------------------------------------------------- E8, class overlap


def test_classes_with_paths_of_their_own_share_nothing():
    _, network, pictures, _ = pathways()
    graphs = [discover(Samples(network, pictures.inputs(pictures.y == k)), k, Discovery()) for k in range(3)]
    table = class_overlap([*graphs, graphs[0]])
    assert len(table) == 6 * 3 and list(table.layer[:3]) == ["fc", "conv2", "whole"]
    apart = table.one != table.other
    assert (table.jaccard[apart] == 0).all() and (table.jaccard[~apart] == 1).all()
    assert len(class_overlap(graphs[:1])) == 0


# --------------------------------------------------------------------------------------------------- E10, pruning


def test_what_no_class_hangs_on_can_be_pruned():
    _, network, pictures, _ = pathways()
    graphs = [discover(Samples(network, pictures.inputs(pictures.y == k)), k, Discovery()) for k in range(3)]
    table = pruning(network, graphs, pictures, deltas=(0.01, 0.02, 0.5), draws=3)
    assert sorted(table.delta.dropna().unique()) == [0.02, 0.5]
    first = table[table.delta == 0.02].set_index("method")
    assert table.method[0] == "whole" and table.kept[0] == 88 and table.accuracy[0] == 1
    assert (first.kept == 6).all() and (first.share == 6 / 88).all()
    assert first.accuracy["causal"] == first.accuracy["magnitude"] == first.accuracy["global"] == 1
    assert first.accuracy["random"].max() < 0.7 and len(first.loc["random"]) == 3
    pd.testing.assert_frame_equal(table, pruning(network, graphs, pictures, deltas=(0.02, 0.5), draws=3))


def test_graphs_of_the_reference_mode_are_taken_as_they_are():
    _, network, pictures, _ = pathways()
    mine = pictures.inputs(pictures.y == 0)
    graph = discover(Samples(network, mine), 0, REFERENCE)
    table = pruning(network, [graph], pictures, draws=1)
    assert len(table) == 5 and table.kept[1] == surgery.count(surgery.graph_edges(network, graph))
    loose = discover(Samples(network, mine), 0, Discovery(selection=Selection(delta=0.3)))
    with pytest.raises(ConfigError, match="walked with delta 0.3"):
        pruning(network, [loose], pictures)


@pytest.mark.parametrize("kind", [Plain, Residual, Fire])
def test_equal_counts_are_kept_in_every_layer(kind):
    x = images(20, 2 if kind is Plain else 3)
    network = Network(make(kind), x[:1])
    like = surgery.graph_edges(network, discover(Samples(network, x), 1, ANY), inhibitors=True)
    there = surgery.all_edges(network)
    for other in (_strongest(network, like), _any(network, like, 0, 1)):
        assert all(other[name].sum() == like[name].sum() and not (other[name] & ~there[name]).any() for name in like)
    assert surgery.count(_strongest_of_all(network, surgery.count(like))) == surgery.count(like)
    norms = edge_norms(network)
    for name, kept in _strongest(network, like).items():
        if kept.any() and not kept.all():
            assert norms[name][kept].min() >= norms[name][~kept].max()


def test_norms_are_the_root_mean_square_of_an_edges_weights():
    model = make(Plain)
    norms = edge_norms(Network(model, images(1, 2)))
    block = model.fc1.weight[2].view(5, 4)[3]
    assert norms["fc1"][2, 3].item() == pytest.approx(block.square().mean().sqrt().item())
    assert norms["fc2"].equal(model.fc2.weight.detach().abs()) and "conv1" not in norms


# ----------------------------------------------------------------------------------------- property 8, redundancy


def test_the_pair_that_stands_in_for_each_other_is_found():
    x = torch.ones(4, 3, dtype=torch.float64)
    network = Network(Redundant().double().eval(), x)
    samples, link = Samples(network, x), network.link("fc2")
    table = redundancy(samples, link, (0,), 0)
    assert table.loc[0, ["i", "j", "joint", "interaction", "kind"]].tolist() == [0, 1, -1, -1, "redundant"]
    assert table.kind[1:].tolist() == ["none", "none"] and (table.interaction[1:] == 0).all()
    assert discover(samples, 0, ANY).counts().causes.sum() == 0  # a search of single nodes misses both


def test_effects_that_add_up_are_no_interaction():
    x = images(20, 4)
    network = Network(Planted().double().eval(), x[:1])
    table = redundancy(Samples(network, x), network.link("conv3"), (1,), 1, selection=Selection(delta=0.0))
    assert (table.interaction == 0).all() and (table.kind == "none").all() and len(table) == 6


def test_the_effects_are_those_of_joint_and_single_cuts():
    model, x = make(Plain), images(8, 2)
    network = Network(model, x[:1])
    link = network.link("fc1")
    table = redundancy(Samples(network, x), link, (0, 2), 1, selection=Selection(delta=0.0), candidates=[0, 3, 4])
    assert sorted(zip(table.i, table.j, strict=True)) == [(0, 3), (0, 4), (3, 4)]
    for row in table.itertuples():
        cuts = [Cut(nodes, (0, 2)) for nodes in ((row.i, row.j), (row.i,), (row.j,))]
        with torch.no_grad():
            joint, one, two = (naive_logits(model, link, cuts, 0.0, x) - model(x))[:, :, 1]
        expected = [joint.mean(), one.mean(), two.mean(), (joint - one - two).mean(), (joint - one - two).std()]
        np.testing.assert_allclose([row.joint, row.single_i, row.single_j, row.interaction, row.std], expected, 1e-6)
    assert table.interaction.is_monotonic_increasing
    one = redundancy(Samples(network, x), link, (0, 2), 1, selection=Selection(delta=0.0), pairs=[(4, 3)])
    assert one.loc[0, "interaction"] == pytest.approx(table[(table.i == 3) & (table.j == 4)].interaction.item())
    with pytest.raises(ConfigError, match="paired images"):
        redundancy(Samples(network, x), link, (0,), 1, selection=Selection(mode="reference"))
