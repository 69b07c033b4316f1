"""The explorer of causal graphs, driven as plain Python, and what it shows of a node."""

from dataclasses import replace

import ipywidgets
import numpy as np
import pytest
import torch
from causal_nets import Depthwise, Plain, Residual
from causal_shelf import found, network, pictures, shelf
from torch import nn

from helpers import widgets
from helpers.artifacts import ArtifactError
from helpers.causal_graphs import layout, svg
from helpers.causal_graphs.explore import Explorer
from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.interventions import Intervention
from helpers.causal_graphs.statistics import Selection
from helpers.causal_graphs.views import Lab, by_effect, layers_tested, strongest
from helpers.config import ConfigError


@pytest.fixture(scope="module")
def made():
    return shelf()


@pytest.fixture
def explorer(made):
    return Explorer(*made)


def lab_of(model, data, target=0, **options):
    graph = found(model, data, target, **options)
    return Lab({("net", target): graph}, {"net": model}, data), graph


# ----------------------------------------------------------------------------------------- what a node shows


@pytest.mark.parametrize(
    ("kind", "channels", "target", "options"),
    [
        (Plain, 2, 0, {}),
        (Plain, 2, 1, {"effect": "margin"}),
        (Plain, 2, 1, {"effect": "contrast", "other": 2}),
        (Plain, 2, 1, {"soft": True, "beta": 0.1}),
        (Plain, 2, 1, {"intervention": Intervention(kind="scale", amount=0.5)}),
        (Plain, 2, 1, {"intervention": Intervention(kind="resample")}),
        (Residual, 3, 2, {}),
        (Depthwise, 3, 0, {}),
    ],
)
def test_effects_on_single_images_are_those_that_the_statistics_summarise(kind, channels, target, options):
    lab, graph = lab_of(network(kind), pictures(channels=channels), target, **options)
    opened = lab.opened(("net", target))
    for layer in layers_tested(graph):
        for k, node in enumerate(layer.tested):
            look = opened.look(layer, node, 2)
            assert look.effects.mean() == pytest.approx(layer.statistics.mean_d[k], rel=1e-4, abs=1e-5)
            assert look.effects.std(ddof=1) == pytest.approx(layer.statistics.std_d[k], rel=1e-3, abs=1e-5)
            assert look.y_cut - look.y == pytest.approx(look.effects[2])
            assert look.heat.shape == (8, 8) and np.isfinite(look.heat).all()


class Sum(nn.Module):
    """Two channels that copy the left and the right half of the image, flattened, and logits that add what they hold:
    where a node acts and looks is known."""

    def __init__(self, flat=True):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False)
        self.fc1, self.fc2 = nn.Linear(2 * 64, 2, bias=False), nn.Linear(2, 3, bias=False)
        half = torch.zeros(2, 2, 8, 8)
        half[0, 0, :, :4], half[1, 1, :, 4:] = 1, 2
        with torch.no_grad():
            for conv in (self.conv1, self.conv2):
                conv.weight.copy_(torch.eye(2)[..., None, None])
            self.fc1.weight.copy_(half.flatten(1))
            self.fc2.weight.copy_(torch.tensor([[1.0, 1.0], [0.5, 0.0], [0.0, 0.5]]))

    def forward(self, x):
        return self.fc2(self.fc1(torch.flatten(self.conv2(self.conv1(x)), 1)))


def test_the_map_of_a_channel_adds_up_to_its_effect_and_lies_where_it_acts():
    """Without a ReLU effects add up: the map sums to the fall of the outcome on that image, at any layer."""
    lab, graph = lab_of(Sum().eval(), pictures(), 0)
    opened = lab.opened(("net", 0))
    for name in ("fc1", "conv2"):
        layer = graph.layer(name)
        for node in layer.tested:
            look = opened.look(layer, node, 3)
            assert look.heat.sum() == pytest.approx(-look.effects[3], rel=1e-4)
            other = look.heat[:, 4:] if node == 0 else look.heat[:, :4]
            assert np.abs(other).max() < 1e-5 < np.abs(look.heat).max()
            assert "acts" in look.caption


def test_the_map_of_a_neuron_lies_where_it_looks():
    lab, graph = lab_of(Sum().eval(), pictures(), 0)
    look = lab.opened(("net", 0)).look(graph.layer("fc2"), 0, 0)
    assert "looks" in look.caption
    assert look.heat[:, :3].min() > 0 and np.abs(look.heat[:, 6:]).max() < 1e-5


def test_the_first_images_are_those_on_which_the_cut_matters_most(explorer):
    (look,) = explorer.looks
    first = look.effects[look.order[0]]
    assert first == (look.effects.min() if look.effects.mean() < 0 else look.effects.max())


# ---------------------------------------------------------------------------------------------- what is shown


def test_it_opens_on_the_first_graph_and_the_strongest_cause_of_its_top_layer(made, explorer):
    graph = made[0]["seed 0", 0]
    assert explorer.graph is graph and explorer.state.layer == "fc2"
    node = explorer.state.node
    assert node in graph.layer("fc2").causes and node == strongest(graph.layer("fc2"))
    assert (explorer.state.delta, explorer.state.fdr) == (0.02, 0.05)


def test_thresholds_filter_the_stored_statistics_as_refilter_does(made, explorer):
    graph = made[0]["seed 0", 0]
    own = Selection(**graph.selection)
    for delta, fdr in ((0.2, 0.05), (0.0, 1.0), (0.05, 0.001)):
        explorer.select(delta=delta, fdr=fdr)
        assert explorer.state.rule == "recommended"
        assert explorer.graph == graph.refilter(own.override({"delta": delta, "fdr": fdr}))
    explorer.select(rule="reference")
    assert explorer.graph == graph.refilter(own.override({"mode": "reference"}))
    explorer.select(rule="stored")
    assert explorer.graph is graph and explorer.state.delta == 0.02


def test_the_picture_of_the_graph_is_its_layout(explorer):
    explorer.select(node=0)
    picture = explorer.controls.graphs[0].value
    placed = layout.place(explorer.graph)
    assert picture.count("<path") == len(placed.edges)
    assert picture.count("<title>") == len(placed.nodes)
    for node in placed.nodes:
        assert f"<title>{svg.described(node)}</title>" in picture


def test_the_panel_says_what_the_statistics_say(explorer):
    explorer.select(layer="fc1")
    layer, node = explorer.layer, explorer.state.node
    k = layer.tested.index(node)
    panel = explorer.controls.nodes[0]
    assert f"Node {node} of conv2: cause" in panel.head.value
    low, high = (float(end[k]) for end in layer.statistics.interval())
    for value in (float(layer.statistics.mean_d[k]), low, high, float(layer.statistics.q[k])):
        assert svg.number(value) in panel.facts.value
    assert "effect d on 15 images" in panel.effects.value


def test_the_image_and_its_outcome_follow_the_slider(made, explorer):
    opened = explorer.lab.opened(("seed 0", 0))
    explorer.select(image=4)
    panel = explorer.controls.nodes[0].panels["image"]
    assert panel.title.value == "<b>test image 5</b>", "the fifth of the images 1 to 15"
    assert explorer.looks[0].y == pytest.approx(float(opened.y[4]))
    before = panel.image.value
    explorer.select(image=5)
    assert panel.image.value != before


def test_two_classes_or_checkpoints_side_by_side(made, explorer):
    explorer.select(beside=("seed 0", 1), layer="fc1", node=2)
    assert len(explorer.looks) == 2 and explorer.controls.columns[1].layout.display == ""
    left, right = made[0]["seed 0", 0], made[0]["seed 0", 1]
    assert explorer.filtered(("seed 0", 1))[0] is right
    assert f"{left.compare(right).loc['fc1'].jaccard:.2f}" in explorer.controls.shared.value
    assert "Two networks" not in explorer.controls.shared.value
    explorer.select(delta=0.2)
    assert explorer.filtered(("seed 0", 1))[0] == right.refilter(Selection(delta=0.2))
    explorer.select(beside=("seed 1", 0))
    assert "Two networks" in explorer.controls.shared.value
    explorer.select(beside=None)
    assert explorer.controls.columns[1].layout.display == "none" and explorer.controls.shared.value == ""


# -------------------------------------------------------------------------------------------------- choices


def test_another_graph_keeps_layer_and_node_where_it_has_them(explorer):
    explorer.select(layer="conv2", node=3)
    explorer.select(target=1)
    assert (explorer.state.layer, explorer.state.node) == ("conv2", 3)
    explorer.select(checkpoint="seed 1")
    assert (explorer.state.layer, explorer.state.node) == ("conv2", 3)


def test_a_layer_brings_its_strongest_node_and_steps_go_from_strong_to_weak(explorer):
    explorer.select(layer="conv2")
    order = by_effect(explorer.layer)
    assert explorer.state.node == strongest(explorer.layer)
    seen = []
    for _ in order:
        seen.append(explorer.state.node)
        explorer.step()
    assert sorted(seen) == sorted(order) and explorer.state.node == seen[0], "round and back to the first"
    explorer.step(-1)
    assert explorer.state.node == seen[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "sed 1"}, "did you mean seed 0 or seed 1|did you mean seed 1"),
        ({"target": 2}, "no graph of class 2 of seed 0: there are: 0, 1"),
        ({"layer": "fc3"}, "did you mean fc2|did you mean fc1"),
        ({"layer": "conv1"}, "no node was tested"),
        ({"node": 6}, "node 6 of fc1 was not tested for fc2"),
        ({"layer": "conv2", "node": 4}, "was not tested for conv2"),
        ({"image": 15}, "they are 0 to 14"),
        ({"image": -1}, "image"),
        ({"delta": -0.1}, "delta"),
        ({"rule": "best"}, "rule"),
        ({"beside": ("seed 0", 0)}, "does not stand beside itself"),
        ({"beside": ("seed 9", 0)}, "no checkpoint 'seed 9'"),
        ({"dleta": 0.1}, "did you mean delta"),
    ],
)
def test_what_cannot_be_chosen_is_refused_and_nothing_changes(explorer, changes, message):
    before = explorer.state
    with pytest.raises(ConfigError, match=message):
        explorer.select(**changes)
    assert explorer.state == before


def test_controls_do_what_calls_do(explorer):
    controls = explorer.controls
    controls.checkpoint.value = "seed 1"
    controls.target.value = 1
    controls.delta.value = 0.1
    controls.fdr.value = 0.01
    controls.layer.value = "fc1"
    controls.node.value = 4
    controls.image.value = 7
    state = explorer.state
    assert state.keys == (("seed 1", 1),) and (state.rule, state.delta, state.fdr) == ("recommended", 0.1, 0.01)
    assert (state.layer, state.node, state.image) == ("fc1", 4, 7)
    controls.buttons[0].click()
    assert explorer.state.node == by_effect(explorer.layer)[0]
    controls.rule.value, controls.beside.value = "reference", ("seed 0", 1)
    assert explorer.state.rule == "reference" and explorer.state.keys[1] == ("seed 0", 1)
    assert controls.delta.disabled


def test_controls_follow_calls_without_answering_back(explorer, monkeypatch):
    explorer.select(checkpoint="seed 1", target=1, delta=0.1, layer="fc1", image=9)
    calls = []
    monkeypatch.setattr(explorer, "become", calls.append)
    explorer.refresh()
    assert calls == []
    controls = explorer.controls
    assert (controls.checkpoint.value, controls.target.value, controls.delta.value) == ("seed 1", 1, 0.1)
    assert (controls.layer.value, controls.image.value) == ("fc1", 9)


def test_what_a_control_asks_for_in_vain_is_said_to_the_person(explorer):
    explorer.controls.beside.value = ("seed 0", 1)
    explorer.controls.target.value = 1
    assert "does not stand beside itself" in explorer.message.value and explorer.state.target == 0
    assert explorer.controls.target.value == 0


def test_only_core_widgets_that_papermill_survives(explorer):
    def inside(widget):
        yield widget
        for child in getattr(widget, "children", ()):
            yield from inside(child)

    kinds = {type(widget) for widget in inside(explorer.widget)}
    assert all(kind.__module__.startswith("ipywidgets.") for kind in kinds)
    assert ipywidgets.Output not in kinds and ipywidgets.Image in kinds
    sliders = [widget for widget in inside(explorer.widget) if hasattr(widget, "continuous_update")]
    assert len(sliders) == 3 and not any(slider.continuous_update for slider in sliders)


def test_it_displays_a_picture_of_what_is_chosen_and_then_its_controls(explorer, monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "display", shown.append)
    explorer._ipython_display_()
    assert shown[0].data.startswith(b"\x89PNG") and shown[1] is explorer.widget
    assert explorer.static() == explorer.static() and len(explorer.static()) < 200_000
    one = explorer.static()
    explorer.select(beside=("seed 1", 1))
    assert explorer.static() != one


# --------------------------------------------------------------------------------------- what is not at hand


@pytest.mark.parametrize("missing", ["images", "networks", "both"])
def test_without_images_or_networks_graphs_are_shown_alone(made, missing):
    graphs, networks, images = made
    explorer = Explorer(graphs, None if missing != "images" else networks, None if missing != "networks" else images)
    assert explorer.looks == [None]
    explorer.select(layer="fc1", delta=0.1, target=1, beside=("seed 1", 1))
    assert explorer.graph == graphs["seed 0", 1].refilter(Selection(delta=0.1))
    panel = explorer.controls.nodes[0]
    assert panel.pictures.layout.display == "none" and "mean effect d" in panel.effects.value
    assert "not at hand" in explorer.controls.absent.value and explorer.controls.image.layout.display == "none"
    assert explorer.static().startswith(b"\x89PNG")


def test_other_weights_and_other_images_are_refused_in_words(made):
    graphs, networks, images = made
    with pytest.raises(ArtifactError, match="found on other weights than seed 0's"):
        Explorer(graphs, {"seed 0": networks["seed 1"]}, images)
    with pytest.raises(ArtifactError, match="not those that the graph of class 0 was found on"):
        Explorer(graphs, networks, pictures(seed=5))
    with pytest.raises(ArtifactError, match="found on other images: test of Noise"):
        Explorer(graphs, networks, images[list(range(4))])
    with pytest.raises(ConfigError, match="no graph"):
        Explorer({})


def test_a_graph_in_which_nothing_was_tested_is_refused(made):
    graph = made[0]["seed 0", 0]
    top = replace(graph.layers[0], rule="input", statistics=None, inhibitors=())
    bare = CausalGraph(**{f: getattr(graph, f) for f in graph.__dataclass_fields__} | {"layers": (top,)})
    with pytest.raises(ConfigError, match="no node was tested"):
        Explorer({("net", 0): bare})


def test_a_node_that_the_graph_beside_does_not_have_is_said(made):
    graphs, networks, images = made
    data = pictures(channels=3)
    other = found(network(Residual), data, 2)
    explorer = Explorer({("seed 0", 0): graphs["seed 0", 0], ("other", 2): other})
    explorer.select(beside=("other", 2))
    assert "was not tested for fc2 in this graph" in explorer.controls.nodes[1].head.value


# ------------------------------------------------------------------------------------------------------ speed


class Wide(nn.Module):
    """As many nodes as LeNet's."""

    def __init__(self):
        super().__init__()
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2 = nn.Conv2d(6, 16, 3, padding=1), nn.ReLU()
        self.fc1, self.relu3 = nn.Linear(16 * 16, 120), nn.ReLU()
        self.fc2, self.relu4, self.fc3 = nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 3)

    def forward(self, x):
        x = self.relu2(self.conv2(self.pool1(self.relu1(self.conv1(x)))))
        return self.fc3(self.relu4(self.fc2(self.relu3(self.fc1(torch.flatten(x, 1))))))


def test_no_event_takes_above_100_ms_of_a_core(slowest_event):
    data, model = pictures(n=101), network(Wide)
    graphs = {("net", target): found(model, data, target, selection=Selection(delta=0.005)) for target in (0, 1)}

    def explorer():
        made = Explorer(graphs, {"net": model}, data)
        made.select(target=1)  # opens the other graph
        return made

    events = [{"node": 7}, {"layer": "fc2"}, {"layer": "fc1"}, {"layer": "conv2"}, {"image": 50}, {"delta": 0.05},
              {"delta": 0.0}, {"fdr": 0.01}, {"rule": "reference"}, {"rule": "stored"}, {"target": 0}]  # fmt: skip
    seconds, event = slowest_event(explorer, events)
    assert seconds < 0.1, event


def test_what_was_looked_at_is_remembered(explorer, monkeypatch):
    first = explorer.state.node
    explorer.step()
    monkeypatch.setattr("helpers.causal_graphs.views.cut_logits", lambda *_, **__: pytest.fail("looked again"))
    explorer.select(node=first)
    explorer.select(delta=0.1)
