"""A causal graph is layered, survives its file to the bit, and is thresholded anew without the model."""

import json
import math
import re
from dataclasses import replace

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from helpers import runtime
from helpers.artifacts import ArtifactError
from helpers.causal_graphs.graph import CausalGraph, graph_path
from helpers.causal_graphs.layers import Edges, Layer
from helpers.causal_graphs.statistics import Measured, Selection, describe, select
from helpers.config import ConfigError

REFERENCE = Selection(mode="reference", inhibitors=True)
STRICT = Selection(delta=0.15)
CHAIN = ("input", "conv1", "fc1", "fc2", "fc3")


def statistics(seed, name, k, n=12):
    """Of ``k`` candidates with mean effects between -3 and 2 on a mean outcome of 10; some do nothing."""
    draw = runtime.numpy_generator(seed, name)
    y, size = draw.normal(10, 2, n), draw.uniform(-3, 2, k)
    d = np.where(np.abs(size) < 0.5, 0, size)[:, None] * (1 + 0.2 * draw.normal(size=(k, n)))
    return describe(Measured(*map(torch.from_numpy, (d, d / y, np.abs(d) / 10, y))))


def cut_layer(layer, source, target, effects, *, k=8, seed=0, selection=None, kind="linear", ids=None, n=12, **more):
    """``source``'s nodes (``k`` of them, or ``ids``) tested on the nodes ``effects`` of ``target``."""
    ids = tuple(range(k) if ids is None else ids)
    table = statistics(seed, layer, len(ids), n)
    found = select(table, n, selection or Selection())
    causes, inhibitors = (tuple(ids[i] for i in positions) for positions in (found.causes, found.inhibitors))
    about = {"layer": layer, "source_layer": source, "target_layer": target, "kind": kind, "effects": effects}
    about |= {"tested": ids, "causes": causes, "inhibitors": inhibitors, "statistics": table, "rule": found.rule}
    columns = 1 if kind in ("identity", "depthwise") else len(effects)
    return Layer(**about, weight_norms=np.linspace(1, 2, len(ids) * columns).reshape(-1, columns), **more)


def opened(layer, target, effects):
    return Layer.untested("input", layer=layer, source_layer="input", target_layer=target, kind="conv", nodes=[0],
                          effects=effects)  # fmt: skip


def graph_of(layers, selection=None, **changes):
    selection = selection or Selection()
    about = {"model": "LeNet", "dataset": "mnist", "target": 3, "sample_indices": range(5, 17), "seed": 0}
    about |= {"mode": selection.mode, "intervention": {"kind": "value", "soft": (0.0, 0.01)}, "effect": "logit"}
    about |= {"selection": selection.model_dump(mode="json"), "version": "1", "weights_hash": "0123456789ab"}
    return CausalGraph(**about | changes, layers=tuple(layers))


def chain(seed=0, selection=None, n=12):
    """input - conv1 - fc1 - fc2 - fc3, the logits; of class 3."""
    effects, layers = (3,), []
    for source, target in zip(CHAIN[-2:0:-1], CHAIN[:1:-1], strict=True):
        layers.append(cut_layer(target, source, target, effects, seed=seed, selection=selection, n=n, passes=96))
        effects = layers[-1].causes
        if not effects:
            return graph_of(layers, selection)
    return graph_of([*layers, opened("conv1", "conv1", effects)], selection)


def residual(seed=0):
    """fc reads ``sum`` = stem + conv2(conv1(stem)): two links lead out of the stem, two into the sum."""
    fc = cut_layer("fc", "sum", "fc", (1,), seed=seed)
    conv2 = cut_layer("conv2", "conv1", "sum", fc.causes, seed=seed, kind="conv")
    skip = cut_layer("add", "stem", "sum", fc.causes, seed=seed, kind="identity", ids=fc.causes)
    conv1 = cut_layer("conv1", "stem", "conv1", conv2.causes, seed=seed, kind="conv")
    return graph_of([fc, conv2, skip, conv1, opened("stem", "stem", sorted({*skip.causes, *conv1.causes}))], target=1)


def refined(seed=0, selection=None):
    graph = chain(seed, selection)
    layer = graph.layer("fc2")
    ends = [(i, e) for i in layer.causes + layer.inhibitors for e in layer.effects]
    edges = Edges.judged(*zip(*ends, strict=True), statistics(seed, "edges", len(ends)), selection or Selection())
    return replace(graph, layers=tuple(replace(x, edges=edges) if x is layer else x for x in graph.layers))


GRAPHS = {
    "chain": chain(),
    "residual": residual(),
    "refined": refined(),
    "reference": chain(1, REFERENCE),
    "reference, refined": refined(2, REFERENCE),
    "one image": chain(0, REFERENCE, n=1),
    "strict": chain(0, STRICT),
}
every_graph = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)


def test_the_graphs_of_these_tests_hold_what_is_tested():
    assert len(GRAPHS["chain"].layers) == 4 and all(layer.causes for layer in GRAPHS["chain"].layers)
    assert any(layer.inhibitors for layer in GRAPHS["chain"].layers)
    both = [set(GRAPHS["residual"].layer(name).causes) for name in ("add", "conv1")]
    assert both[0] - both[1] and both[1] - both[0]
    assert set(GRAPHS["refined"].layer("fc2").edges.kept) == {True, False}


# ------------------------------------------------------------------------------------------------------- the file


@every_graph
def test_a_graph_survives_its_file_to_the_bit(graph, tmp_path):
    """Property 12."""
    path = tmp_path / "deep" / "graph.json"
    graph.save(path)
    read = CausalGraph.load(path)
    assert read == graph and read.refilter(REFERENCE) == graph.refilter(REFERENCE)
    read.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert "NaN" not in path.read_text() and json.loads(path.read_text()) == graph.to_dict()


def test_the_same_walk_gives_the_same_file_however_long_it_took(tmp_path):
    """Property 12: seconds are known, but not part of the graph."""
    graph = chain()
    slow = replace(graph, layers=tuple(replace(layer, seconds=9.5) for layer in graph.layers))
    assert slow == graph and slow.layers[0].seconds == 9.5
    for name, value in (("a", graph), ("b", slow)):
        value.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_difference_makes_graphs_unequal():
    graph, layer = chain(), chain().layers[1]
    changes = [{"u": 0.5}, {"passes": 1}, {"weight_norms": layer.weight_norms + 1e-9}, {"inhibitors": ()}]
    changes += [{"statistics": replace(layer.statistics, mean_d=layer.statistics.mean_d + 1e-9)}]
    for change in changes:
        layers = [replace(x, **change) if x is graph.layers[1] else x for x in graph.layers]
        assert replace(graph, layers=tuple(layers)) != graph
    assert chain(1) != graph and replace(graph, seed=1) != graph and replace(graph, sample_indices=(1,)) != graph


def test_files_that_are_no_graphs_are_refused_by_name(tmp_path):
    path = tmp_path / "graph.json"
    with pytest.raises(ArtifactError, match="graph.json is not there"):
        CausalGraph.load(path)
    graph = chain()
    graph.save(path)
    text = path.read_text()
    for damaged in (text[: len(text) // 2], text.replace('"tested": [0,', '"tested": ['), text.replace("causes", "x")):
        path.write_text(damaged)
        with pytest.raises(ArtifactError, match="graph.json is damaged"):
            CausalGraph.load(path)
    for other in ("[]", "{}", json.dumps(graph.to_dict() | {"schema": 2})):
        path.write_text(other)
        with pytest.raises(ArtifactError, match="not a causal graph of schema 1"):
            CausalGraph.load(path)


def test_settings_are_copied_as_json_has_them():
    intervention = {"kind": "value", "soft": (0.0, 0.01)}
    graph = graph_of(chain().layers, intervention=intervention)
    intervention["kind"] = "other"
    assert graph.intervention == {"kind": "value", "soft": [0.0, 0.01]}


def test_graphs_lie_where_the_release_put_them(tmp_path):
    path = graph_path(tmp_path, "mnist", "LeNet", 3)
    assert path == tmp_path / "mnist" / "class_3" / "LeNet_causal_graph.json"


# ------------------------------------------------------------------------------------------------------ structure


@every_graph
def test_a_graph_is_acyclic_and_layered(graph):
    """Property 12."""
    for selection in (Selection(**graph.selection), REFERENCE, REFERENCE.override({"critical": 6.0, "single": -0.2})):
        shown = graph.refilter(selection)
        network = shown.to_networkx()
        assert nx.is_directed_acyclic_graph(network)
        depth = nx.get_node_attributes(network, "depth")
        assert all(depth[source] > depth[target] for source, target in network.edges())
        for layer in shown.layers:
            assert set(layer.effects) <= set(shown.causes(layer.target_layer))
        assert {a["role"] for _, a in network.nodes(data=True)} <= {"target", "cause", "inhibitor", "input"}


def test_links_that_are_out_of_order_are_refused():
    fc, conv2, skip, conv1, stem = residual().layers
    with pytest.raises(ValueError, match="conv1 leads into .* of conv1: no causes"):
        graph_of([fc, skip, conv1])  # what conv1 leads into was never found
    with pytest.raises(ValueError, match="fc leads out of sum, which was explained above"):
        graph_of([conv2, fc])
    with pytest.raises(ValueError, match="add leads out of conv1, which was explained above"):
        graph_of([fc, conv2, conv1, replace(skip, source_layer="conv1")])
    with pytest.raises(ValueError, match="leads out of fc, which was explained above"):
        graph_of([replace(fc, source_layer="fc")])
    with pytest.raises(ValueError, match="at least the layer of the logits"):
        graph_of([])


def test_layers_that_contradict_themselves_are_refused():
    layer = chain().layer("fc2")
    for change, message in (
        ({"causes": (99,)}, r"causes \[99\] are not among those tested"),
        ({"inhibitors": (99,)}, "inhibitors"),
        ({"tested": layer.tested[:-1], "causes": (), "inhibitors": ()}, "statistics of 8 nodes"),
        ({"weight_norms": layer.weight_norms.T}, "weight_norms must be"),
        ({"rule": "input"}, "has no statistics"),
        ({"statistics": None}, "needs statistics"),
    ):
        with pytest.raises(ValueError, match=f"layer fc2: .*{message}"):
            replace(layer, **change)
    with pytest.raises(ValueError, match="a source, a target and statistics each"):
        Edges(sources=(1,), targets=(1, 2), statistics=statistics(0, "x", 1), kept=(True,))


def test_a_space_has_the_causes_of_all_links_out_of_it():
    graph = residual()
    skip, conv1 = graph.layer("add"), graph.layer("conv1")
    assert graph.spaces == ("fc", "sum", "conv1", "stem", "input") and graph.top == "fc"
    assert graph.causes("stem") == tuple(sorted({*skip.causes, *conv1.causes})) == graph.layer("stem").effects
    assert graph.inhibitors("stem") == tuple(sorted({*skip.inhibitors, *conv1.inhibitors}))
    assert graph.causes("fc") == (1,) and graph.inhibitors("fc") == () and graph.causes("input") == (0,)


def test_misspelt_names_are_refused_with_the_near_misses():
    graph = residual()
    with pytest.raises(ConfigError, match="did you mean conv[12] or conv[12]"):
        graph.layer("conv3")
    with pytest.raises(ConfigError, match="did you mean stem"):
        graph.causes("sten")


# --------------------------------------------------------------------------------------------------------- tables


def by_hand():
    """Two of four inputs of fc2 matter to class 1: node 7 lowers it when cut, node 9 raises it."""
    y = torch.tensor([10.0, 12.0, 8.0, 10.0], dtype=torch.float64)
    d = torch.tensor([[-3.0, -2, -3, -2], [0, 0, 0, 0], [1, 2, 1, 2], [-1, 1, -1, 1]], dtype=torch.float64)
    table = describe(Measured(d, d / y, d.abs() / 10, y))
    about = {"layer": "fc2", "source_layer": "fc1", "target_layer": "fc2", "kind": "linear", "tested": (7, 8, 9, 11)}
    layer = Layer(**about, effects=(1,), causes=(7,), inhibitors=(9,), rule="test", statistics=table,
                  weight_norms=[[0.5], [0.25], [1.5], [0.1]])  # fmt: skip
    return graph_of([layer, opened("fc1", "fc1", (7,))], target=1)


def test_the_table_of_nodes():
    graph = by_hand()
    table, t = graph.nodes(), graph.layer("fc2").statistics
    columns = ["layer", "source_layer", "node", "role", "mean_d", "std_d", "mean_r", "mean_kl", "t", "p", "q"]
    assert list(table) == columns
    assert table[["layer", "source_layer", "node", "role", "mean_d"]].fillna(0).values.tolist() == [
        ["", "fc2", 1, "target", 0],
        ["fc2", "fc1", 7, "cause", -2.5],
        ["fc2", "fc1", 9, "inhibitor", 1.5],
        ["fc1", "input", 0, "input", 0],
    ]
    assert table.p.tolist()[1:3] == [t.p[0], t.p_inhibitor[2]] and table.q.tolist()[1:3] == [t.q[0], t.q_inhibitor[2]]
    everything = graph.nodes(everything=True)
    assert everything.node.tolist() == [1, 7, 8, 9, 11, 0] and everything.role.tolist().count("tested") == 2


def test_the_table_of_edges():
    assert by_hand().edges().fillna(-1).values.tolist() == [
        ["fc2", "fc1", 7, "fc2", 1, "cause", -2.5, 0.5, False],
        ["fc2", "fc1", 9, "fc2", 1, "inhibitor", 1.5, 1.5, False],
        ["fc1", "input", 0, "fc1", 7, "input", -1, -1, False],
    ]


def test_edges_that_were_cut_alone_have_their_own_effect_and_are_there_if_kept():
    graph = refined()
    layer, table = graph.layer("fc2"), graph.edges().query("layer == 'fc2'")
    kept = {
        (i, e): d
        for i, e, d, k in zip(layer.edges.sources, layer.edges.targets, layer.edges.statistics.mean_d, layer.edges.kept,
                              strict=True)
        if k
    }  # fmt: skip
    assert table.refined.all() and len(kept) < len(layer.edges.kept)
    assert dict(zip(zip(table.source, table.target, strict=True), table.effect, strict=True)) == kept


def test_one_to_one_edges_lead_to_their_own_node_only():
    table = residual().edges().query("layer == 'add'")
    assert len(table) and (table.source == table.target).all() and (table.weight_norm > 0).all()
    shifted = Layer.untested("passed", layer="cat", source_layer="a", target_layer="b", kind="depthwise", nodes=(1, 2),
                             effects=(5, 6), offset=4)  # fmt: skip
    assert shifted.edge_table()[["source", "target"]].values.tolist() == [[1, 5], [2, 6]]


def test_an_edge_without_weight_is_none():
    """As between the groups of a convolution."""
    graph = residual()
    layer = graph.layer("conv2")
    norms = np.where(np.add.outer(np.arange(8), np.arange(len(layer.effects))) % 2, 0, 1.0)
    table = replace(layer, weight_norms=norms).edge_table()
    whole = layer.edge_table()
    assert 0 < len(table) < len(whole) == len(layer.effects) * (len(layer.causes) + len(layer.inhibitors))
    assert replace(layer, weight_norms=None).edge_table().weight_norm.isna().all()


def test_counts_are_a_row_a_layer():
    table = by_hand().counts()
    assert table.loc["fc2"].tolist() == ["fc1", 4, 1, 1, 1, "test"]
    assert table.loc["fc1"].tolist() == ["input", 0, 1, 0, 1, "input"]
    assert repr(by_hand()) == "<CausalGraph of LeNet on mnist, class 1, 12 images: fc2 1 of 4>"


# ------------------------------------------------------------------------------------------------------- refilter


@every_graph
def test_the_own_selection_gives_the_same_graph(graph):
    assert graph.refilter(Selection(**graph.selection)) == graph


@every_graph
def test_only_the_last_selection_counts(graph):
    """What is left out is kept, so nothing is lost on the way, also not in a file."""
    nothing = graph.refilter(Selection(delta=9)) if graph.mode == "recommended" else graph.refilter(
        Selection(mode="reference", critical=99, fallback=-9, single=-9))  # fmt: skip
    assert not nothing.counts().causes.any()
    assert nothing.walked_with == graph.walked_with != nothing.selection
    for path in (nothing, CausalGraph.from_dict(nothing.to_dict())):
        assert path.refilter(REFERENCE) == graph.refilter(REFERENCE)
        assert path.refilter(Selection(**graph.selection)) == graph


@pytest.mark.parametrize("selection", [STRICT, REFERENCE, Selection(delta=0), Selection(fdr=1e-9, delta=0)])
def test_refilter_is_the_plain_loop(selection):
    """From the logits down: what passes the test is a cause, and what is no cause above is no effect."""
    graph = residual(1)
    causes = {"fc": {1}}
    for layer, new in zip(graph.layers, graph.refilter(selection).layers, strict=True):
        effects = [e for e in layer.effects if e in causes.get(layer.target_layer, ())]
        if layer.statistics is None:
            expected = list(layer.causes)
        else:
            positions = select(layer.statistics, 12, selection).causes
            expected = [layer.tested[k] for k in positions]
        if layer.kind == "identity":
            expected = [i for i in expected if i in effects]
        expected = expected if effects else []
        assert (list(new.effects), list(new.causes)) == (effects, expected)
        assert new.statistics is layer.statistics and new.measured_effects == layer.effects
        causes.setdefault(layer.source_layer, set()).update(expected)


def test_a_higher_threshold_leaves_fewer_nodes_and_edges():
    graph, counts, edges = chain(), [], []
    for delta in (0, 0.02, 0.1, 0.2, 0.25, 0.4):
        shown = graph.refilter(Selection(delta=delta))
        counts.append(shown.counts().causes.tolist())
        edges.append(len(shown.edges()))
    assert (np.diff(counts, axis=0) <= 0).all() and sorted(edges, reverse=True) == edges
    assert counts[0] != counts[-1] == [0, 0, 0, 0] and edges[-1] == 0


def test_a_layer_without_effects_empties_everything_below():
    graph = chain()
    top = graph.layers[0]
    idle = replace(top, statistics=replace(top.statistics, mean_d=np.zeros(8)))
    shown = replace(graph, layers=(idle, *graph.layers[1:])).refilter(Selection())
    assert shown.counts().causes.tolist() == shown.counts().effects.tolist()[1:] + [0] == [0, 0, 0, 0]
    assert [layer.rule for layer in shown.layers] == ["none", "none", "none", "input"]
    assert shown.nodes().role.tolist() == ["target"] and not len(shown.edges())
    assert list(shown.nodes()) == list(graph.nodes()) and list(shown.edges()) == list(graph.edges())


def test_a_node_that_becomes_a_cause_has_no_edges_below():
    graph = chain(0, STRICT).refilter(Selection(delta=0))
    new = set(graph.causes("fc2")) - set(graph.layer("fc2").effects)
    assert new and not set(graph.edges().query("layer == 'fc2'").target) & new


def test_what_the_skip_connection_alone_found_stays_when_the_branch_is_gone():
    graph = residual()
    conv2 = graph.layer("conv2")
    idle = replace(conv2, statistics=replace(conv2.statistics, mean_d=np.zeros(8)))
    layers = tuple(idle if layer is conv2 else layer for layer in graph.layers)
    shown = replace(graph, layers=layers).refilter(Selection())
    assert shown.layer("conv1").causes == () and shown.causes("conv1") == ()
    assert shown.causes("stem") == graph.layer("add").causes == shown.layer("stem").effects


def test_single_edges_are_judged_anew():
    graph = refined()
    edges = graph.layer("fc2").edges
    for selection in (STRICT, REFERENCE, Selection(inhibitors=False)):
        shown = graph.refilter(selection).layer("fc2").edges
        passed = select(edges.statistics, 12, selection)
        assert [k for k, kept in enumerate(shown.kept) if kept] == sorted(passed.causes + passed.inhibitors)


# ------------------------------------------------------------------------------------------------------ comparing


def test_two_graphs_are_compared_layer_by_layer():
    one, other = chain(0), chain(1)
    table = one.compare(other)
    assert list(table.index) == ["fc3", "fc2", "fc1", "whole"]  # the input is in every graph
    pairs = []
    for name in ("fc3", "fc2", "fc1"):
        a, b = set(one.layer(name).causes), set(other.layer(name).causes)
        pairs.append((len(a & b), len(a | b)))
        assert table.jaccard[name] == len(a & b) / len(a | b)
        assert (table.only_here[name], table.only_there[name]) == (len(a - b), len(b - a))
        effects = [g.layer(name).statistics.mean_d for g in (one, other)]
        assert table.rank_correlation[name] == pytest.approx(stats.spearmanr(*effects).statistic)
    shared, union = map(sum, zip(*pairs, strict=True))
    assert table.jaccard["whole"] == shared / union and table.tested["whole"] == 24
    pd.testing.assert_series_equal(other.jaccard(one), table.jaccard)


def test_a_graph_agrees_with_itself():
    for graph in (chain(), residual(), refined()):
        table = graph.compare(graph)
        assert (table.jaccard == 1).all() and np.allclose(table.rank_correlation[:-1], 1)
        assert not table[["only_here", "only_there"]].any(axis=None)


def test_only_nodes_tested_for_both_are_ranked():
    one, other = chain(), chain(1)
    layers = [replace(x, tested=[i + 3 for i in x.tested], causes=[i + 3 for i in x.causes],
                      inhibitors=[i + 3 for i in x.inhibitors]) for x in other.layers[:1]]  # fmt: skip
    row = one.compare(graph_of(layers)).loc["fc3"]
    a, b = one.layer("fc3").statistics.mean_d, other.layer("fc3").statistics.mean_d
    assert row.tested == 5 and row.rank_correlation == pytest.approx(stats.spearmanr(a[3:], b[:5]).statistic)


def test_layers_without_causes_and_layers_of_one_graph_only():
    whole = chain()
    empty, short = whole.refilter(Selection(delta=9)), graph_of(whole.layers[:1])
    assert empty.jaccard(empty).tolist() == [0, 0, 0, 0] and empty.jaccard(empty, empty=1).tolist() == [1, 1, 1, 1]
    table = whole.compare(short)
    assert table.jaccard.tolist()[:3] == [1, 0, 0] and math.isnan(table.rank_correlation["fc1"])
    assert table.tested.tolist() == [8, 0, 0, 8]


# -------------------------------------------------------------------------------------------------------- exports


def same(read, network):
    assert set(read) == set(network) and read.number_of_edges() == network.number_of_edges()
    for name, about in network.nodes(data=True):
        assert about.items() <= read.nodes[name].items()
    key = ("layer", "role", "effect", "weight_norm", "refined")
    listed = [sorted((s, t, *(str(e.get(k)) for k in key)) for s, t, e in g.edges(data=True)) for g in (read, network)]
    assert listed[0] == listed[1]


@every_graph
def test_networkx_reads_the_exports_back(graph, tmp_path):
    for name, reader in (("g.graphml", nx.read_graphml), ("g.gexf", nx.read_gexf)):
        graph.export(tmp_path / name)
        same(reader(tmp_path / name), graph.to_networkx())
    read = nx.read_graphml(tmp_path / "g.graphml")
    assert read.graph["dataset"] == "mnist" and json.loads(read.graph["selection"]) == graph.selection


@every_graph
def test_attributes_are_plain_and_known(graph):
    network = graph.to_networkx()
    values = [v for _, a in network.nodes(data=True) for v in a.values()]
    values += [v for *_, a in network.edges(data=True) for v in a.values()] + list(network.graph.values())
    assert {type(v) for v in values} <= {str, int, float, bool}
    assert not any(isinstance(v, float) and math.isnan(v) for v in values)


def test_a_node_of_two_links_is_drawn_once_and_a_cause_if_either_says_so():
    graph = residual()
    table, network = graph.nodes(), graph.to_networkx()
    assert len(network) == len(table.drop_duplicates(["source_layer", "node"])) < len(table)
    for node in graph.causes("stem"):
        about = network.nodes[f"stem:{node}"]
        rows = table.query("source_layer == 'stem' and node == @node and role == 'cause'")
        assert about["role"] == "cause" and about["mean_d"] == rows.mean_d.min()


def test_parallel_links_keep_their_edges(tmp_path):
    """y = x + conv(x): the convolution and the skip join the same nodes."""
    fc = cut_layer("fc", "sum", "fc", (1,))
    layers = [cut_layer("conv", "x", "sum", fc.causes), cut_layer("add", "x", "sum", fc.causes, kind="identity")]
    graph = graph_of([fc, *(layer.refilter(Selection(delta=0), None) for layer in layers)])
    graph.export(tmp_path / "g.graphml")
    read = nx.read_graphml(tmp_path / "g.graphml")
    assert read.is_multigraph() and read.number_of_edges() == len(graph.edges()) == graph.to_networkx().size()
    same(read, graph.to_networkx())


@every_graph
def test_dot_has_every_node_and_edge_once(graph, tmp_path):
    graph = replace(graph, layers=tuple(renamed(layer) for layer in graph.layers))
    graph.export(tmp_path / "g.dot")
    text, network = (tmp_path / "g.dot").read_text(), graph.to_networkx()
    name = r'"((?:[^"\\]|\\.)*)"'
    nodes = re.findall(rf"^    {name} \[role=(\w+), color={name}\];$", text, re.MULTILINE)
    edges = re.findall(rf"^  {name} -> {name} \[layer=", text, re.MULTILINE)
    plain = str.maketrans({"\\": ""})
    assert sorted(n.translate(plain) for n, *_ in nodes) == sorted(network)
    assert sorted(tuple(n.translate(plain) for n in e) for e in edges) == sorted(network.edges())
    assert text.startswith("digraph {") and text.endswith("}\n") and text.count("{") == text.count("}")


def renamed(layer):
    """A name that has to be quoted."""
    return replace(layer, **{k: f'the "{getattr(layer, k)}"' for k in ("source_layer", "target_layer")})


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot export to 'g.gxf': did you mean .gexf"):
        chain().export(tmp_path / "g.gxf")
    assert not list(tmp_path.iterdir())
