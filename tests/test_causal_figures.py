"""Layouts and figures of causal graphs show the numbers that they are given, and nothing else."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from causal_nets import Depthwise, Fire, Plain, Residual
from causal_shelf import found, network, pictures, shelf
from matplotlib import pyplot

from helpers import figures as shared
from helpers.causal_graphs import experiments, figures, heatmaps, layout, released, score_figures, stability, svg
from helpers.causal_graphs import pictures as drawn
from helpers.causal_graphs.evaluate import CAUSAL, summarise
from helpers.causal_graphs.network import Network

KINDS = [(Plain, 0, {}), (Plain, 1, {"refine": True}), (Residual, 2, {}), (Depthwise, 0, {}), (Fire, 1, {})]
every_kind = pytest.mark.parametrize("kind, target, options", KINDS, ids=lambda v: getattr(v, "__name__", str(v)))


def graph_of(kind=Plain, target=0, **options):
    return found(network(kind), pictures(channels=2 if kind is Plain else 3), target, **options)


@pytest.fixture(scope="module")
def graphs():
    return shelf()[0]


@pytest.fixture(scope="module")
def graph(graphs):
    return graphs["seed 0", 0]


def artists(figure, name):
    return figure.findobj(lambda artist: artist.get_gid() == name)


def one(figure, name):
    (artist,) = artists(figure, name)
    return artist


def values(figure, name):
    return [float(v) for v in one(figure, name).get_ydata()]


def height(figure, name):
    return one(figure, name).get_height()


# --------------------------------------------------------------------------------------------------- layout


@every_kind
def test_a_layout_lists_every_node_once_in_the_order_of_its_id_with_the_role_of_the_graph(kind, target, options):
    graph = graph_of(kind, target, **options)
    placed = layout.place(graph)
    assert [row.space for row in placed.rows] == list(graph.spaces)
    for y, row in enumerate(placed.rows):
        nodes = [node for node in placed.nodes if node.y == y]
        assert [n.node for n in nodes] == sorted({n.node for n in nodes}) and {n.space for n in nodes} == {row.space}
        assert all(0 < a.x < b.x < 1 for a, b in zip(nodes, nodes[1:], strict=False))
        causes = {n.node for n in nodes if n.role in ("target", "cause", "input")}
        assert causes == set(graph.causes(row.space)) and row.causes == len(causes)
        inhibitors = {n.node for n in nodes if n.role == "inhibitor"}
        assert inhibitors == set(graph.inhibitors(row.space)) - causes
        listed = {node for layer in graph.layers if layer.source_layer == row.space for node in layer.tested}
        assert row.space == graph.top or {n.node for n in nodes} == listed


@every_kind
def test_the_shares_of_a_nodes_edges_add_up_to_its_own_unless_they_were_measured(kind, target, options):
    graph = graph_of(kind, target, **options)
    placed = layout.place(graph)
    table = graph.edges()
    assert len(placed.edges) == len(table)
    for layer in graph.layers:
        if layer.statistics is None:
            continue
        mean = dict(zip(layer.tested, layer.statistics.mean_d, strict=True))
        for node in layer.causes + layer.inhibitors:
            own = [e for e in placed.edges if e.layer == layer.layer and e.source == (layer.source_layer, node)]
            if own and not any(e.refined for e in own):
                assert sum(e.share for e in own) == pytest.approx(mean[node] / layer.statistics.scale)
    for row in table[table.refined].itertuples():
        ends = row.layer, row.source, row.target
        (edge,) = [e for e in placed.edges if (e.layer, e.source[1], e.target[1]) == ends]
        assert edge.share == pytest.approx(row.effect / graph.layer(row.layer).statistics.scale)


def test_wide_spaces_show_what_was_found_and_the_strongest_others(graph):
    placed = layout.place(graph, most=3)
    for y, row in enumerate(placed.rows):
        nodes = [node for node in placed.nodes if node.y == y]
        assert len(nodes) <= 3 and row.hidden == max(0, row.tested - 3)
        hidden_causes = set(graph.causes(row.space)) - {n.node for n in nodes}
        assert not hidden_causes or all(n.role == "cause" for n in nodes)


def test_of_too_many_edges_the_strongest_of_each_layer_are_shown(graph, monkeypatch):
    whole = layout.place(graph).edges
    monkeypatch.setattr(layout, "EDGES", len(graph.layers))  # one each
    few = layout.place(graph).edges
    assert len(few) == len({edge.layer for edge in whole})
    for edge in few:
        assert layout.size_of(edge.share) == max(layout.size_of(e.share) for e in whole if e.layer == edge.layer)


def test_of_several_links_a_cause_wins_and_then_the_larger_effect():
    graph = graph_of(Depthwise)
    both = set(graph.layer("dw").tested) & set(graph.layer("add.skip").tested)
    assert both
    for node in both:
        at = layout.place(graph).at("stem", node)
        assert at.role == "cause" and (at.layer == "add.skip" or node not in graph.layer("add.skip").causes)


# ------------------------------------------------------------------------------------------------- pictures


def test_circles_are_the_nodes_and_their_areas_grow_with_the_effects(graph):
    figure = drawn.causal_graph(graph)
    nodes = {n.x: n for n in layout.place(graph).nodes if n.role == "cause"}
    circles = one(figure, "nodes:cause")
    places, areas = circles.get_offsets(), circles.get_sizes()
    assert len(places) == sum(len(layer.causes) for layer in graph.layers if layer.rule != "input")
    found = {(round(x, 6), y): area for (x, y), area in zip(places, areas, strict=True)}
    for node in nodes.values():
        largest = layout.place(graph).largest
        assert found[round(node.x, 6), node.y] == pytest.approx(drawn._area(node.share, largest))
    assert len(one(figure, "edges").get_paths()) == len(graph.edges())


def test_lines_are_coloured_by_sign(graph):
    figure = drawn.causal_graph(graph)
    for colour, edge in zip(one(figure, "edges").get_edgecolors(), layout.place(graph).edges, strict=True):
        red, _, blue, _ = colour
        if not math.isnan(edge.share):
            assert red >= blue if edge.share < 0 else blue >= red


def test_pictures_are_the_same_bytes_again_and_leave_nothing_open(graph, graphs):
    assert shared.png(drawn.causal_graph(graph)) == shared.png(drawn.causal_graph(graph))
    pair = drawn.compared_graphs({"one": graph, "other": graphs["seed 0", 1]})
    assert len(artists(pair, "nodes:cause")) == 2
    assert pyplot.get_fignums() == []


@every_kind
def test_every_kind_of_network_can_be_drawn(kind, target, options):
    graph = graph_of(kind, target, **options)
    assert shared.png(drawn.causal_graph(graph)).startswith(b"\x89PNG")
    text = svg.graph(layout.place(graph), None, 600)
    assert text.count("<path") == len(graph.edges()) and "nan" not in text


@pytest.fixture(scope="module")
def maps(graph):
    data = pictures()
    net = Network(network(), data.inputs([0]))
    return heatmaps.heat_maps(net, graph, data.inputs([1, 2]), "conv2")


def test_map_panels_show_each_effect_on_one_scale(graph, maps):
    figure = drawn.effect_maps(maps, 1, graph)
    _, *panels = artists(figure, "map")  # all effects together first
    assert len(panels) == len(maps.effects)
    shown = sorted(float(image.get_array().sum()) for image in panels)
    assert shown == pytest.approx(sorted(maps.maps[1].sum((1, 2)).tolist()), abs=1e-5)
    for low, high in (panel.get_clim() for panel in panels):
        assert -low == high == pytest.approx(float(maps.maps[1].abs().max()))


def test_maps_without_one_for_each_effect_are_refused(graph, maps):
    data = pictures()
    net = Network(network(), data.inputs([0]))
    joint = heatmaps.heat_maps(net, graph, data.inputs([1]), "conv2", per_effect=False)
    with pytest.raises(ValueError, match="without per_effect"):
        drawn.effect_maps(joint)


def test_the_key_figure_and_the_grid_hold_every_map(graph, maps):
    image = drawn.image_of(maps.x[0])
    named = {name: maps.combined[0] for name in ("spatial do", "Saliency", "noise")}
    figure = drawn.key_figure(image, graph, named, "title", own=1)
    titles = [ax.get_title(loc="center") for panel in figure.subfigs for ax in panel.axes]
    assert [name for name in named if name in titles] == list(named)
    grid = drawn.map_grid([image, image], {"spatial do": maps.combined, "Saliency": maps.combined})
    assert len(grid.axes) == 6


def test_images_are_shown_as_they_are_or_from_their_least_to_their_largest_value():
    x = torch.rand(1, 4, 4)
    assert np.allclose(drawn.image_of(x), x[0])
    assert drawn.image_of(torch.randn(3, 4, 4)).shape == (4, 4, 3)
    spread = drawn.image_of(torch.linspace(-2, 2, 16).view(1, 4, 4))
    assert spread.min() == 0 and spread.max() == 1


# --------------------------------------------------------------------------------------------------- numbers


def test_node_counts_are_those_of_the_graphs_with_the_released_ones_beside(graphs):
    own = [g for (checkpoint, _), g in graphs.items() if checkpoint == "seed 0"]
    table = figures.counts(own)
    figure = figures.node_counts(table, {"fc2": (13, 84)}, reference_target=1)
    for graph in own:
        for layer in ("fc2", "fc1", "conv2"):
            assert values(figure, f"causes:{layer}:{graph.target}") == [len(graph.layer(layer).causes)]
            assert values(figure, f"inhibitors:{layer}:{graph.target}") == [len(graph.layer(layer).inhibitors)]
    assert values(figure, "released:fc2") == [13]
    assert not artists(figures.node_counts(table), "released:fc2")


def test_the_overlap_matrix_is_symmetric_and_holds_the_table(graphs):
    table = experiments.class_overlap([graphs["seed 0", 0], graphs["seed 0", 1]])
    matrix = one(figures.class_overlap(table, ("whole", "fc1")), "overlap:fc1").get_array()
    (expected,) = table[table.layer == "fc1"].jaccard
    assert matrix[0, 1] == matrix[1, 0] == pytest.approx(expected) and np.ma.is_masked(matrix[0, 0])


def runs_of(betas=(0.0, 0.1, 0.2), runs=4):
    rng = np.random.default_rng(0)
    rows = []
    for beta in betas:
        for run in range(runs):
            causes = tuple(node for node in range(6) if rng.random() > 3 * beta)
            rows.append({"beta": beta, "run": run, "u": beta / 2, "causes": causes, "rule": "test"})
    return pd.DataFrame(rows)


def test_stability_curves_are_the_summary_with_its_noise_floor_and_the_released_values():
    table = stability.by_beta(runs_of())
    figure = figures.stability_curves({"fc3": table})
    for column in ("appearance", "jaccard", "empty"):
        assert values(figure, f"{column}:fc3") == pytest.approx(table[column].tolist(), nan_ok=True)
    assert values(figure, "floor:appearance:fc3") == [table.appearance[0.0]] * 2
    assert values(figure, "released:appearance") == [v / 100 for v in released.APPEARANCE.values()]
    assert not artists(figures.stability_curves({"fc3": table}, None, None), "released:appearance")


def test_the_windows_of_the_stability_histograms_are_the_table():
    table = stability.by_window(runs_of())
    figure = figures.stability_windows(table, "fc3")
    for row in table.to_dict("records"):
        heights = [bar.get_height() for bar in artists(figure, f"window:{row['low']:.2g}")]
        assert heights == pytest.approx([row[f"{k}/4"] for k in range(1, 5)], nan_ok=True)


def test_sample_sizes_show_counts_and_agreement():
    index = pd.MultiIndex.from_product([["fc3", "fc2"], [25, 50]], names=["layer", "size"])
    table = pd.DataFrame({"count": [1.0, 2, 3, 4], "lowest": [0, 1, 2, 3], "highest": [2, 3, 4, 5],
                          "jaccard": [0.1, 0.2, 0.3, 0.4]}, index=index)  # fmt: skip
    figure = figures.sample_sizes({"reference": table, "paired": table})
    assert values(figure, "count:paired:fc2") == [3, 4] and values(figure, "jaccard:reference:fc3") == [0.1, 0.2]


def scores_of():
    rng = np.random.default_rng(0)
    rows = []
    for place, method in enumerate([*CAUSAL, "gradient", "input_x_gradient", "constant_map", "random_map"]):
        means = {"irof": 0.5 + place / 50, "lipschitz_minmax": 3.0 if method == "random_map" else place / 9}
        for metric, mean in means.items():
            rows += [(method, metric, image, mean + 0.01 * rng.standard_normal()) for image in range(5)]
    return pd.DataFrame(rows, columns=["method", "metric", "image", "value"])


def test_the_metric_plane_puts_every_method_where_both_metrics_say_and_the_far_away_at_the_edge():
    table = summarise(scores_of())
    figure = score_figures.metric_plane({"class 3": table})
    mean = table.set_index(["method", "metric"])["mean"]
    for method in table.method.unique():
        (x,), (y,) = one(figure, f"method:class 3:{method}").get_data()
        assert y == pytest.approx(mean[method, "irof"])
        assert x == pytest.approx(mean[method, "lipschitz_minmax"]) or (method == "random_map" and x < 2)
    assert any("3 →" in text.get_text() for text in figure.axes[0].texts)


def test_randomised_effects_are_the_draws():
    table = pd.DataFrame({"draw": [0, 1, 0, 1], "layer": ["fc3", "fc3", "fc2", "fc2"],
                          "rank_correlation": [0.1, -0.2, 0.3, np.nan], "nodes": 4, "jaccard": 0.0})  # fmt: skip
    figure = figures.randomised_effects(table)
    assert values(figure, "draws:fc3") == [0.1, -0.2]


def walks_of(names=("fc", "conv2", "skip", "conv1")):
    rows = []
    for target in (0, 1):
        for place, layer in enumerate(names):
            kind = "identity" if layer == "skip" else "conv"
            rows.append({"target": target, "layer": layer, "kind": kind, "lower": 10, "causes": place + target,
                         "inhibitors": 1, "jaccard": place / 4, "dropped": 5, "retested": 2, "missed": target,
                         "images": 30 - target, "seconds": 1.5, "clean": 0.5})  # fmt: skip
    return pd.DataFrame(rows)


def test_causes_by_depth_are_shares_of_the_nodes_with_skip_connections_apart():
    figure = figures.by_depth({"net": walks_of()})
    assert values(figure, "share:net:1") == [10, 20, 40] and values(figure, "share:net:skips") == [25]
    assert values(figure, "share:net:mean") == [5, 15, 35] and values(figure, "jaccard:net:mean") == [0, 0.25, 0.75]


def surgery_record(target, recall=0.2):
    measured = {"cut_recall": recall, "cut_others": 0.7, "kept_auroc": 0.9}
    drawn = {f"random_{name}": [value / 2, value / 3] for name, value in measured.items()}
    return {"target": target, "recall": 0.99, "others": 0.98, "auroc": 1.0} | measured | drawn


def test_necessity_bars_are_the_means_of_the_records_with_their_random_controls():
    figure = figures.necessity(iter([surgery_record(3, 0.1), surgery_record(3, 0.3), surgery_record(8)]))
    assert height(figure, "cut_recall:3") == pytest.approx(0.2) and height(figure, "cut_recall:8") == pytest.approx(0.2)
    assert 0.5 + height(figure, "kept_auroc:8") == pytest.approx(0.9), "bars of AUROC start at chance"
    assert values(figure, "random:cut_others:3") == pytest.approx([0.35, 0.7 / 3] * 2)
    assert values(figure, "others:3") == [0.98, 0.98]


def test_repair_bars_are_before_and_after():
    record = {"rule": "gain", "marked": [0.4, 0.9], "taken": [0.5, 0.0], "clean": [0.98, 0.97]}
    record |= {f"random_{name}": [0.3, 0.4] for name in ("marked", "taken", "clean")}
    figure = figures.repair([record, record], ["seed 0", "seed 1"])
    assert height(figure, "marked:before:0") == 0.4 and height(figure, "marked:after:1") == 0.9
    assert values(figure, "clean:random:0") == [0.3, 0.4]


def test_pruning_lines_are_the_means_of_the_table():
    rows = [(np.nan, "whole", 0, 1.0, 0.99), (0.02, "causal", 0, 0.3, 0.9), (0.1, "causal", 0, 0.1, 0.5)]
    rows += [(0.02, "random", 0, 0.3, 0.4), (0.02, "random", 1, 0.3, 0.6)]
    figure = figures.pruning(pd.DataFrame(rows, columns=["delta", "method", "draw", "share", "accuracy"]))
    assert values(figure, "pruning:causal") == [0.5, 0.9] and values(figure, "pruning:random") == [0.5]
    assert values(figure, "whole") == [0.99, 0.99]


def test_every_method_and_metric_has_a_name_for_readers():
    assert set(CAUSAL) <= set(score_figures.CAUSAL) <= set(score_figures.METHODS)
