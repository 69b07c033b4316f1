"""The explorer of causal graphs: any class of any checkpoint, thresholds that filter anew, and every node looked into.

    explorer = Explorer({("seed 0", 3): graph, ("seed 0", 8): other}, {"seed 0": model}, images)
    explorer                                          # as a cell's last line, shows it
    explorer.select(layer="fc3", node=7)
    explorer.select(target=8, delta=0.05)             # or rule="stored", "recommended", "reference"
    explorer.select(beside=("seed 0", 8))             # two classes, or two checkpoints, side by side
    explorer.state, explorer.graph, explorer.looks    # plain values: what is chosen, what is shown

What the controls do, these calls do, and the other way round. Without networks or images, which may not be at hand,
the graphs and their statistics are shown alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import nn

from helpers import figures, widgets
from helpers.causal_graphs import pictures
from helpers.causal_graphs.controls import Controls
from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.layers import Layer
from helpers.causal_graphs.layout import Layout, place
from helpers.causal_graphs.statistics import Selection
from helpers.causal_graphs.views import Key, Lab, Look, by_effect, layer_of, layers_tested, strongest
from helpers.config import ConfigError, Settings, Several, suggest
from helpers.data.images import Images

REMEMBERED = 32  # filtered graphs and looks


class State(Settings):
    """What is chosen. ``delta`` and ``fdr`` are the graph's own under the rule ``stored``. ``beside``: the (checkpoint,
    target) that stands on the right. ``image`` counts the images that the graph was found on."""

    checkpoint: str
    target: int
    beside: Several[str | int] | None = None
    layer: str
    node: int
    rule: Literal["stored", "recommended", "reference"] = "stored"
    delta: float = Field(0.02, ge=0, le=1)
    fdr: float = Field(0.05, gt=0, le=1)
    image: int = Field(0, ge=0)

    @property
    def keys(self) -> tuple[Key, ...]:
        """(checkpoint, target) of each graph that is shown."""
        return ((self.checkpoint, self.target), *([tuple(self.beside)] if self.beside else []))


class Explorer(widgets.Explorer[State]):
    """See the module. ``graphs`` by (checkpoint, target), ``networks`` by checkpoint, ``images`` the split that the
    graphs' sample indices count.

    Raises `ConfigError` without a graph, and `ArtifactError` if network or images are not those of the first graph.
    """

    def __init__(
        self,
        graphs: Mapping[Key, CausalGraph],
        networks: Mapping[str, nn.Module] | None = None,
        images: Images | None = None,
    ):
        self.lab = Lab(graphs, networks, images)
        self._filtered: OrderedDict[tuple, tuple[CausalGraph, Layout]] = OrderedDict()
        self._looks: OrderedDict[tuple, Look] = OrderedDict()
        self.looks: list[Look | None] = []
        checkpoint = self.lab.checkpoints[0]
        target = self.lab.targets(checkpoint)[0]
        graph = self.lab.graphs[checkpoint, target]
        layer = layers_tested(graph)[0]
        super().__init__(
            State(checkpoint=checkpoint, target=target, layer=layer.layer, node=strongest(layer), **_thresholds(graph))
        )
        self.controls = Controls(self)
        self.widget = self.controls.widget
        self.refresh()

    # ---------------------------------------------------------------------------------------------- choices

    def changed(self, changes: Mapping[str, Any]) -> State:
        """The state after ``changes``, made whole: thresholds set the rule, a layer brings its strongest node, another
        graph keeps layer and node where it has them."""
        changes = dict(changes)
        if {"delta", "fdr"} & set(changes):
            changes.setdefault("rule", "recommended")
        state = self.state.override(changes)
        self._check(state)
        graph = self.lab.graphs[state.keys[0]]
        derived: dict[str, Any] = {}
        layers = {layer.layer: layer for layer in layers_tested(graph)}
        if state.layer not in layers:
            if "layer" in changes:
                raise ConfigError(f"no node was tested in a layer {state.layer!r}: {suggest(state.layer, layers)}")
            derived["layer"] = next(iter(layers))
        layer = layers[derived.get("layer", state.layer)]
        if state.node not in layer.tested or ("layer" in changes and "node" not in changes):
            if "node" in changes:
                raise ConfigError(f"node {state.node} of {layer.source_layer} was not tested for {layer.layer}")
            derived["node"] = strongest(layer)
        if state.rule == "stored":
            derived |= _thresholds(graph)
        last = len(graph.sample_indices) - 1
        if state.image > last:
            if "image" in changes:
                raise ConfigError(f"there is no image {state.image}: they are 0 to {last}")
            derived["image"] = last
        return state.override(derived)

    def step(self, by: int = 1) -> None:
        """To the next weaker node of the layer (-1: the next stronger), by the size of its effect."""
        order = by_effect(self.layer)
        self.select(node=order[(order.index(self.state.node) + by) % len(order)])

    def _check(self, state: State) -> None:
        graphs = self.lab.graphs
        for checkpoint, target in state.keys:
            if checkpoint not in self.lab.checkpoints:
                raise ConfigError(f"no checkpoint {checkpoint!r}: {suggest(str(checkpoint), self.lab.checkpoints)}")
            if (checkpoint, target) not in graphs:
                there = ", ".join(map(str, self.lab.targets(checkpoint)))
                raise ConfigError(f"no graph of class {target} of {checkpoint}: there are: {there}")
        if state.beside and state.keys[0] == state.keys[1]:
            raise ConfigError("a graph does not stand beside itself: choose another one")

    # ------------------------------------------------------------------------------------------------ values

    @property
    def graph(self) -> CausalGraph:
        """The graph that is shown, by the rule and thresholds that are set."""
        return self.filtered(self.state.keys[0])[0]

    @property
    def layer(self) -> Layer:
        """The layer whose node is looked into."""
        return self.graph.layer(self.state.layer)

    def filtered(self, key: Key) -> tuple[CausalGraph, Layout]:
        """A graph by the state's rule and thresholds, and where its nodes stand; remembered."""
        state = self.state
        mark = (key, state.rule) if state.rule != "recommended" else (key, state.rule, state.delta, state.fdr)
        if mark not in self._filtered:
            graph = self.lab.graphs[key]
            if state.rule != "stored":
                graph = graph.refilter(_selection(graph, state))
            _remember(self._filtered, mark, (graph, place(graph)))
        return self._filtered[mark]

    def look(self, key: Key) -> Look | None:
        """The chosen node of a graph on the chosen image; remembered. None without network or images, or if the graph
        has no such node."""
        opened, state = self.lab.opened(key), self.state
        layer = layer_of(self.lab.graphs[key], state.layer, state.node)
        if opened is None or layer is None:
            return None
        image = min(state.image, len(opened.samples) - 1)
        mark = key, state.layer, state.node, image
        if mark not in self._looks:
            _remember(self._looks, mark, opened.look(layer, state.node, image))
        return self._looks[mark]

    def render(self) -> None:
        self.looks = [self.look(key) for key in self.state.keys]
        self.controls.show(self)

    def static(self) -> bytes:
        """The graph that is chosen, or the two, as a picture."""
        graphs = {self.lab.name(key): self.filtered(key)[0] for key in self.state.keys}
        if len(graphs) > 1:
            return figures.png(pictures.compared_graphs(graphs, row=0.75))
        ((name, graph),) = graphs.items()
        title = f"{graph.model} on {graph.dataset}: what {name} hangs on"
        return figures.png(pictures.causal_graph(graph, title, row=0.75))


def _thresholds(graph: CausalGraph) -> dict[str, float]:
    selection = Selection(**graph.selection)
    return {"delta": selection.delta, "fdr": selection.fdr}


def _selection(graph: CausalGraph, state: State) -> Selection:
    """The graph's own selection with the state's rule and thresholds; inhibitors as that rule keeps them."""
    changes: dict[str, Any] = {"mode": state.rule}
    if state.rule == "recommended":
        changes |= {"delta": state.delta, "fdr": state.fdr}
    return Selection(**graph.selection).override(changes)


def _remember(known: OrderedDict, mark: tuple, value: Any) -> None:
    known[mark] = value
    if len(known) > REMEMBERED:
        known.popitem(last=False)
