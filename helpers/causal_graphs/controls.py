"""The controls of the explorer of causal graphs: built once, bound to its methods, and made to follow its state."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

import ipywidgets as w
import numpy as np

from helpers import widgets
from helpers.causal_graphs import svg, views
from helpers.causal_graphs.layers import Layer
from helpers.causal_graphs.layout import Layout, scale_of
from helpers.causal_graphs.views import Key, Look, by_effect, layer_of, layers_tested

if TYPE_CHECKING:
    from helpers.causal_graphs.explore import Explorer

WIDTH = 1120  # screen pixels
BUTTONS = 12  # of the strongest nodes of a layer
TOP = 8  # images on which a node matters most
FDR = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 1.0)
RULES = {"as stored": "stored", "paired test and δ": "recommended", "z test (reference)": "reference"}
WRAP = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "0 14px"}
STYLE = """<style>
.sightline-svg .number { font-size: 11px; paint-order: stroke; stroke-width: 3px;
  stroke: var(--jp-layout-color0, #fff) }
.sightline .facts td { width: auto; white-space: nowrap }
.sightline-shared { max-width: 680px }
.sightline .sightline-shared td { width: auto }
</style>"""
NOTE = (
    "<small>Circles: the effect of cutting all edges of a node, as a share of the mean outcome; "
    f'<span style="color: {svg.CAUSE}">●</span> a cause, the outcome falls; '
    f'<span style="color: {svg.INHIBITOR}">●</span> an inhibitor, it rises; small dots were tested and are neither. '
    "Lines: an edge's part of its node's effect, to scale within a layer. Thresholds filter the stored statistics: "
    "below the first layer that changes, a new walk may find other nodes.</small>"
)


class NodePanel:
    """All that is shown of one node in one graph. ``widget`` is what is laid out."""

    def __init__(self, name: str):
        self.head, self.effects, self.facts = w.HTML(), w.HTML(), w.HTML()
        self.panels = {part: widgets.Panel(f"{part}-{name}") for part in ("image", "map")}
        self.top = widgets.Panel(f"top-{name}")
        pictures = w.HBox([panel.widget for panel in self.panels.values()], layout={"grid_gap": "10px"})
        for panel in self.panels.values():
            panel.widget.layout.width = "150px"
        self.pictures = w.VBox([pictures, self.top.widget], layout={"width": "310px"})
        numbers = w.VBox([self.effects, self.facts], layout={"flex": "1 1 330px", "min_width": "0"})
        row = w.HBox([self.pictures, numbers], layout={"flex_flow": "row wrap", "grid_gap": "8px 20px"})
        self.widget = w.VBox([self.head, row], layout={"flex": "1 1 480px", "min_width": "0"})

    def show(self, explorer: Explorer, key: Key, layer: Layer | None, look: Look | None) -> None:
        graph, layout = explorer.filtered(key)
        title = html.escape(explorer.lab.name(key))
        node = explorer.state.node
        if layer is None:
            where = html.escape(explorer.state.layer)
            self.head.value = f"<b>{title}</b>: node {node} was not tested for {where} in this graph."
            self.effects.value = self.facts.value = ""
            self.pictures.layout.display = "none"
            return
        drawn = layout.at(layer.source_layer, node)
        what = html.escape(svg.described(drawn)) if drawn else f"node {node} of {html.escape(layer.source_layer)}"
        self.head.value = f"<b>{what[0].upper()}{what[1:]}</b> <small>{title}</small>"
        statistics, k = layer.statistics, layer.tested.index(node)
        mean, interval = float(statistics.mean_d[k]), tuple(float(end[k]) for end in statistics.interval())
        least = graph.selection["delta"] * statistics.scale if graph.mode == "recommended" else 0.0
        self.effects.value = svg.effects(None if look is None else look.effects, mean, interval, least)
        self.facts.value = facts(layer, k)
        self.pictures.layout.display = "none" if look is None else ""
        if look is not None:
            self._show_pictures(explorer, key, look)

    def _show_pictures(self, explorer: Explorer, key: Key, look: Look) -> None:
        opened = explorer.lab.opened(key)
        image = min(explorer.state.image, len(opened.samples) - 1)
        picture = opened.picture(image)
        index = opened.graph.sample_indices[image]
        change = f"outcome {svg.number(look.y)}, without the node {svg.number(look.y_cut)}"
        shown = views.enlarged(views.coloured(picture))
        self.panels["image"].show(f"{opened.graph.split} image {index}", shown, change)
        self.panels["map"].show("Its map", views.enlarged(views.shown_map(picture, look.heat)), look.caption)
        first = [views.coloured(opened.picture(int(k))) for k in look.order[:TOP]]
        most = look.effects[look.order[: len(first)]]
        strip = np.concatenate([views.enlarged(each, 64) for each in first], 1)
        spread = f"d from {svg.number(float(most[0]))} to {svg.number(float(most[-1]))}"
        self.top.show("Where cutting it matters most", strip, spread)


class Controls:
    """``widget`` is all of it."""

    def __init__(self, explorer: Explorer):
        self.graphs = [w.HTML(), w.HTML()]
        self.names = [w.HTML(), w.HTML()]
        pairs = zip(self.names, self.graphs, strict=True)
        self.columns = [w.VBox(pair, layout={"min_width": "0", "flex": "1 1 0"}) for pair in pairs]
        self.nodes = [NodePanel("left"), NodePanel("right")]
        self.shared = w.HTML()
        self.shared.add_class("sightline-shared")
        self.absent = w.HTML()
        below = w.HBox([panel.widget for panel in self.nodes], layout={"flex_flow": "row wrap", "grid_gap": "16px"})
        above = w.HBox(self.columns, layout={"grid_gap": "16px"})
        rows = [w.HTML(widgets.STYLE + STYLE), *self._choices(explorer), explorer.message, above, w.HTML(NOTE),
                *self._node_choices(explorer), self.absent, below, self.shared]  # fmt: skip
        self.widget = w.VBox(rows, layout={"max_width": f"{WIDTH + 20}px", "padding": "4px", "grid_gap": "5px"})
        self.widget.add_class("sightline")

    # ---------------------------------------------------------------------------------------------- choices

    def _choices(self, explorer: Explorer) -> list[w.Widget]:
        bind, select, lab = explorer.bind, explorer.select, explorer.lab
        self.checkpoint = bind(
            widgets.dropdown("Checkpoint", lab.checkpoints, "230px"), lambda name: select(checkpoint=name)
        )
        self.checkpoint.layout.display = "" if len(lab.checkpoints) > 1 else "none"
        self.target = bind(widgets.dropdown("Class", [], "200px"), lambda target: select(target=target))
        self.beside = bind(widgets.dropdown("beside", [("nothing", None)], "260px"), lambda key: select(beside=key))
        for name in ("checkpoint", "target", "beside"):
            getattr(self, name).add_class(f"sightline-{name}")
        self.rule = bind(widgets.dropdown("Rule", list(RULES.items()), "220px"), lambda rule: select(rule=rule))
        self.delta = w.FloatSlider(
            min=0, max=0.5, step=0.005, readout_format=".1%", description="least effect δ", continuous_update=False
        )
        self.delta.layout, self.delta.style = {"width": "330px"}, {"description_width": "initial"}
        self.delta.add_class("sightline-delta")
        bind(self.delta, lambda delta: select(delta=delta))
        self.fdr = w.SelectionSlider(options=FDR, value=0.05, description="q", continuous_update=False)
        self.fdr.layout = {"width": "230px"}
        self.fdr.style = {"description_width": "initial"}
        bind(self.fdr, lambda fdr: select(fdr=fdr))
        return [
            w.HBox([self.checkpoint, self.target, self.beside], layout=WRAP),
            w.HBox([self.rule, self.delta, self.fdr], layout=WRAP),
        ]

    def _node_choices(self, explorer: Explorer) -> list[w.Widget]:
        bind, click, select = explorer.bind, explorer.bind_click, explorer.select
        self.layer = bind(widgets.dropdown("Nodes of", [], "230px"), lambda layer: select(layer=layer))
        self.layer.add_class("sightline-layer")
        self.node = bind(widgets.dropdown("node", [], "230px"), lambda node: select(node=node))
        stronger = click(widgets.button("◀", "the next stronger node", "36px"), lambda: explorer.step(-1))
        weaker = click(widgets.button("▶", "the next weaker node", "36px"), lambda: explorer.step(1))
        self.image = w.IntSlider(min=0, max=1, description="image", continuous_update=False)
        self.image.layout = {"width": "330px"}
        self.image.style = {"description_width": "initial"}
        self.image.add_class("sightline-image")
        bind(self.image, lambda image: select(image=image))
        self.buttons = [widgets.button("", "", "72px") for _ in range(BUTTONS)]
        for place, button in enumerate(self.buttons):
            click(button, lambda place=place: select(node=self._offered[place]))
        self._offered: list[int] = []
        return [
            w.HBox([self.layer, self.node, stronger, weaker, self.image], layout=WRAP),
            w.HBox([w.HTML("<small>strongest&nbsp;</small>"), *self.buttons], layout=WRAP | {"grid_gap": "0 4px"}),
        ]

    # ------------------------------------------------------------------------------------------------- shown

    def show(self, explorer: Explorer) -> None:
        """Follow the explorer's state."""
        state, lab = explorer.state, explorer.lab
        self.checkpoint.value = state.checkpoint
        targets = [(lab.class_name(t), t) for t in lab.targets(state.checkpoint)]
        widgets.set_options(self.target, targets, state.target)
        others = [("nothing", None), *((lab.name(key), key) for key in lab.graphs if key != state.keys[0])]
        widgets.set_options(self.beside, others, state.keys[1] if state.beside else None)
        graph, layout = explorer.filtered(state.keys[0])
        self.rule.value, self.delta.value = state.rule, state.delta
        self.fdr.value = min(FDR, key=lambda q: abs(math.log(q / state.fdr)))
        self.delta.disabled = self.fdr.disabled = graph.mode == "reference"
        layers = [(f"{layer.source_layer}, cut in {layer.layer}", layer.layer) for layer in layers_tested(graph)]
        widgets.set_options(self.layer, layers, state.layer)
        layer = graph.layer(state.layer)
        self._show_nodes(state.node, layer, by_effect(layer))
        self.image.max = len(graph.sample_indices) - 1
        self.image.value = state.image
        self._show_graphs(explorer)
        for place, panel in enumerate(self.nodes):
            panel.widget.layout.display = "" if place < len(state.keys) else "none"
        for panel, key, look in zip(self.nodes, state.keys, explorer.looks, strict=False):
            panel.show(explorer, key, layer_of(explorer.filtered(key)[0], state.layer, state.node), look)
        there = any(look is not None for look in explorer.looks)
        self.image.layout.display = "" if there else "none"
        self.absent.value = "" if there else (
            "<small>Networks or images are not at hand: statistics only, no maps and no single images.</small>"
        )  # fmt: skip
        self.shared.value = shared(explorer) if state.beside else ""

    def _show_nodes(self, chosen: int, layer: Layer, order: list[int]) -> None:
        """The nodes of the layer in the dropdown, the strongest as buttons."""
        roles = dict.fromkeys(layer.inhibitors, "inhibitor") | dict.fromkeys(layer.causes, "cause")
        sizes = layer.statistics.mean_d / scale_of(layer)
        shares = dict(zip(layer.tested, sizes.tolist(), strict=True))
        names = [(f"{node}: {svg.percent(shares[node])} {roles.get(node, '')}", node) for node in order]
        widgets.set_options(self.node, names, chosen)
        self._offered = order[:BUTTONS]
        for place, button in enumerate(self.buttons):
            button.layout.display = "" if place < len(order) else "none"
            if place < len(order):
                node = order[place]
                button.description = str(node)
                button.tooltip = f"node {node}, {roles.get(node, 'no cause')}, {svg.percent(shares[node])}"
                strength = 0.25 + 0.75 * abs(shares[node]) / (abs(shares[order[0]]) or 1)
                colour = {"cause": "213, 94, 0", "inhibitor": "0, 114, 178"}.get(roles.get(node, ""), "128, 128, 128")
                button.style.button_color = f"rgba({colour}, {strength:.2f})"
                button.style.font_weight = "bold" if node == chosen else "normal"
                button.layout.border = f"2px solid {'#3d9bff' if node == chosen else 'transparent'}"

    def _show_graphs(self, explorer: Explorer) -> None:
        state = explorer.state
        shown = [explorer.filtered(key) for key in state.keys]
        largest = max(layout.largest for _, layout in shown)
        chosen = explorer.layer.source_layer, state.node
        width = WIDTH if len(shown) == 1 else (WIDTH - 20) // 2
        for place, column in enumerate(self.columns):
            column.layout.display = "" if place < len(shown) else "none"
        for key, (graph, layout), name, picture in zip(state.keys, shown, self.names, self.graphs, strict=False):
            name.value = f"<b>{html.escape(explorer.lab.name(key))}</b> <small>{summary(graph)}</small>"
            picture.value = svg.graph(layout, chosen, width, row_height(layout), largest)


def row_height(layout: Layout) -> int:
    """Pixels: many rows stand closer together."""
    return max(48, min(88, 560 // len(layout.rows)))


def summary(graph) -> str:
    rule = "z test" if graph.mode == "reference" else f"paired test, δ = {100 * graph.selection['delta']:.3g} %"
    what = graph.effect if graph.other is None else f"{graph.effect} with class {graph.other}"
    return f"{html.escape(graph.model)}, {what}, {len(graph.sample_indices)} images, {rule}"


def facts(layer: Layer, k: int) -> str:
    """The statistics of the node at place ``k``, as a table."""
    s = layer.statistics
    low, high = (float(end[k]) for end in s.interval())
    raises = s.mean_d[k] > 0
    n, values = svg.number, {name: float(getattr(s, name)[k]) for name in ("mean_d", "mean_r", "mean_kl", "t")}
    p, q = (float((s.p_inhibitor if raises else s.p)[k]), float((s.q_inhibitor if raises else s.q)[k]))
    where = f"in {html.escape(layer.layer)}, into {len(layer.measured_effects)} of {html.escape(layer.target_layer)}"
    rows = [
        ("effect, mean d", f"<b>{n(values['mean_d'])}</b>, 95 % interval {n(low)} to {n(high)}"),
        ("relative effect, KL", f"{n(values['mean_r'])}, {n(values['mean_kl'])} nats"),
        ("paired t; p, q", f"{n(values['t'])}; {n(p)}, {n(q)} as {'an inhibitor' if raises else 'a cause'}"),
        ("edges cut", where),
    ]
    body = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
    return f'<table class="facts">{body}</table>'


def shared(explorer: Explorer) -> str:
    """What the two graphs have in common, layer by layer, as a table."""
    (here, _), (there, _) = (explorer.filtered(key) for key in explorer.state.keys)
    left, right = (html.escape(explorer.lab.name(key)) for key in explorer.state.keys)
    table = here.compare(there)
    rows = [(str(name), *(str(int(row[c])) for c in ("shared", "only_here", "only_there")), f"{row.jaccard:.2f}")
            for name, row in table.iterrows()]  # fmt: skip
    text = widgets.table(["layer", "causes of both", f"only {left}", f"only {right}", "Jaccard index"], rows)
    if here.weights_hash != there.weights_hash:
        text += "<small>Two networks: the number of a node in one says nothing about the other.</small>"
    return text
