"""What the explorer of causal graphs shows of a node, without its widgets: computed anew from network and images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import widgets
from helpers.artifacts import ArtifactError
from helpers.causal_graphs.drawing import View, spatial_do
from helpers.causal_graphs.engines import Cut, Samples, cut_logits
from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.interventions import Intervention
from helpers.causal_graphs.layers import Layer
from helpers.causal_graphs.links import Link
from helpers.causal_graphs.network import Network, weights_hash
from helpers.causal_graphs.page import Evidence
from helpers.causal_graphs.statistics import measure, outcome
from helpers.config import ConfigError
from helpers.data.images import Images

Key = tuple[str, int]
"""(checkpoint, target class)."""

OPEN = 6  # graphs whose images are kept with all that their network makes of them
PATCHES = 15  # a side: where an image is covered, one overlapping patch at a time
SIDE = 192  # screen pixels a side of a picture, about


@dataclass(frozen=True, eq=False)
class Look:
    """A node on one image. ``effects`` float64 [N]: d on every image of the graph. ``heat`` float32 [H, W]: where it
    acts, or where it looks, which ``caption`` says. ``y`` and ``y_cut``: the outcome of this image, and without the
    node. ``order`` [N]: the images, those first on which cutting it changes the outcome most."""

    effects: np.ndarray
    heat: np.ndarray
    caption: str
    y: float
    y_cut: float
    order: np.ndarray


class Opened:
    """A graph with its network and the images that it was found on. Raises `ArtifactError` for other images."""

    def __init__(self, graph: CausalGraph, network: Network, images: Images):
        if max(graph.sample_indices) >= len(images):
            raise ArtifactError(f"the graph was found on other images: {graph.split} of {graph.dataset}")
        parameter = next(network.model.parameters())
        self.graph, self.network, self.images = graph, network, images[list(graph.sample_indices)]
        self.samples = Samples(network, self.images.inputs().to(parameter))
        self.y = outcome(self.samples.logits, graph.target, graph.effect, graph.other)
        tested = next((layer for layer in graph.layers if layer.statistics is not None), None)
        if tested and abs(float(self.y.double().mean()) - tested.statistics.mean_y) > 1e-2 * tested.statistics.scale:
            raise ArtifactError(
                f"the images are not those that the graph of class {graph.target} was found on: "
                f"{graph.split} of {graph.dataset}, prepared as for training"
            )

    def picture(self, image: int) -> np.ndarray:
        """Float64 [H, W] or [H, W, 3] in [0, 1]: one of the images as the network sees it, without normalisation."""
        preprocess = self.images.preprocess
        x = preprocess.restore(self.samples.x[image : image + 1].cpu().float())[0].double()
        return (x.permute(1, 2, 0) if len(x) == 3 else x.mean(0)).numpy()

    def look(self, layer: Layer, node: int, image: int) -> Look:
        """``node`` of the layer's source space, cut from all effects that it was cut from in the walk."""
        link = self.network.link(layer.layer)
        cuts = [Cut((node,), layer.measured_effects)]
        kind = Intervention.noted(self.graph.intervention, layer.u)
        logits = cut_logits(self.samples, link, cuts, kind, seed=self.graph.seed)
        d = measure(self.samples.logits, logits, self.graph.target, self.graph.effect, self.graph.other).d[0].numpy()
        heat, caption = self.heat(layer, node, image)
        y = float(self.y[image])
        order = np.argsort(d if d.mean() < 0 else -d, kind="stable")
        return Look(d, heat, caption, y, y + float(d[image]), order)

    def heat(self, layer: Layer, node: int, image: int) -> tuple[np.ndarray, str]:
        """(float32 [H, W], what it shows). Of a channel: how far the outcome falls when it is set to 0 in one place, on
        its edges into the effects. Of a neuron, which has no place: how far it falls when a patch of the image is."""
        x, link = self.samples.x[image : image + 1], self.network.link(layer.layer)
        values = self.network.record(x)
        if len(self.network.shapes[link.reads]) == 3:
            cut = {"sources": (node,), "effects": layer.measured_effects}
            heat = spatial_do(View(self.network, self.graph, layer, link, **cut, per_effect=False), values)[0]
        elif sides := self._sides(link):
            heat = self._flattened(link, layer, node, values).view(1, *sides)
        else:
            return self._looks_at(link, node, x, values), "where the node looks: its fall when a patch is blanked"
        resized = F.interpolate(heat[None].float(), tuple(x.shape[2:]), mode="bilinear", align_corners=False)
        return resized[0, 0].cpu().numpy(), "where the node acts: fall of the outcome without it there"

    def _sides(self, link: Link) -> tuple[int, int] | None:
        """(h, w) of the channels that a flattening turned into the ``block`` inputs of each node of ``link``."""
        for shape in reversed(self.network.shapes.values()):
            if len(shape) == 3 and shape[0] == link.inputs and shape[1] * shape[2] == link.block > 1:
                return shape[1], shape[2]
        return None

    @torch.no_grad()
    def _flattened(self, link: Link, layer: Layer, node: int, values: dict[str, Tensor]) -> Tensor:
        """[block]: y - y' for each position of a flattened channel."""
        positions = link.positions(layer.measured_effects)
        weight = link.weight()[[e - link.offset for e in layer.measured_effects], node]
        lower = values[link.reads].view(1, link.inputs, link.block)[0, node]
        moved = values[link.at].repeat(link.block, 1)
        moved.index_add_(1, positions, -(weight * lower).T)
        logits = self.network.resume(values, {link.at: moved}, link.block)
        graph = self.graph
        y, cut = (outcome(z, graph.target, graph.effect, graph.other) for z in (values["logits"], logits))
        return y - cut

    @torch.no_grad()
    def _looks_at(self, link: Link, node: int, x: Tensor, values: dict[str, Tensor]) -> np.ndarray:
        """Float32 [H, W]: the fall of the node's value under patches that are 0, an eighth of the image wide."""
        height, width = x.shape[2:]
        tall, wide = max(1, height // 8), max(1, width // 8)
        covered = x.repeat(PATCHES**2, 1, 1, 1)
        tops = np.linspace(0, height - tall, PATCHES).round().astype(int)
        lefts = np.linspace(0, width - wide, PATCHES).round().astype(int)
        for k in range(PATCHES**2):
            top, left = tops[k // PATCHES], lefts[k % PATCHES]
            covered[k, :, top : top + tall, left : left + wide] = 0
        axis = link.axis if values[link.reads].ndim > 2 else 1
        fall = (values[link.reads] - self.network.record(covered)[link.reads]).select(axis, node)
        fall = fall.reshape(PATCHES**2, -1).sum(1)
        heat = fall.view(1, 1, PATCHES, PATCHES).float()
        return F.interpolate(heat, (height, width), mode="bilinear", align_corners=False)[0, 0].cpu().numpy()


class Lab:
    """The graphs by (checkpoint, target), and what it takes to look into them: the networks by checkpoint and the
    images that the graphs' indices count. Without these two, graphs are all there is."""

    def __init__(
        self,
        graphs: Mapping[Key, CausalGraph],
        networks: Mapping[str, nn.Module] | None = None,
        images: Images | None = None,
    ):
        if not graphs:
            raise ConfigError("there is no graph to explore")
        self.graphs, self.models, self.images = dict(graphs), dict(networks or {}), images
        self._networks: dict[str, Network] = {}
        self._open: OrderedDict[Key, Opened] = OrderedDict()

    @property
    def checkpoints(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(checkpoint for checkpoint, _ in self.graphs))

    def targets(self, checkpoint: str) -> tuple[int, ...]:
        return tuple(sorted(target for name, target in self.graphs if name == checkpoint))

    def class_name(self, target: int) -> str:
        """``class 3``, or ``class 3, church`` where classes have names of their own."""
        name = self.images.classes[target] if self.images else str(target)
        return f"class {target}" if name == str(target) else f"class {target}, {name}"

    def name(self, key: Key) -> str:
        """The class, and the checkpoint where there are several."""
        name = self.class_name(key[1])
        return name if len(self.checkpoints) == 1 else f"{name}, {key[0]}"

    def opened(self, key: Key) -> Opened | None:
        """None where network or images are not there. Raises `ArtifactError` if they are others than the graph's."""
        graph, (checkpoint, _) = self.graphs[key], key
        if self.images is None or checkpoint not in self.models:
            return None
        if key not in self._open:
            if checkpoint not in self._networks:
                model = self.models[checkpoint]
                self._networks[checkpoint] = Network(model, self.images.inputs([0]).to(next(model.parameters())))
            network = self._networks[checkpoint]
            if weights_hash(network.model) != graph.weights_hash:
                raise ArtifactError(f"the graph of class {graph.target} was found on other weights than {checkpoint}'s")
            self._open[key] = Opened(graph, network, self.images)
            if len(self._open) > OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]


def layers_tested(graph: CausalGraph) -> list[Layer]:
    """The layers whose nodes were tested. Raises `ConfigError` if there is none."""
    layers = [layer for layer in graph.layers if layer.statistics is not None and layer.tested]
    if not layers:
        raise ConfigError(f"no node was tested for the graph of class {graph.target}")
    return layers


def layer_of(graph: CausalGraph, layer_name: str, node: int) -> Layer | None:
    """The layer, if ``node`` was tested for it."""
    return next((layer for layer in layers_tested(graph) if layer.layer == layer_name and node in layer.tested), None)


def by_effect(layer: Layer) -> list[int]:
    """The nodes that were tested, those with the largest effects first."""
    effects = dict(zip(layer.tested, layer.statistics.mean_d.tolist(), strict=True))
    return sorted(layer.tested, key=lambda node: -abs(effects[node]))


def strongest(layer: Layer) -> int:
    """The cause with the largest effect; without a cause, any node with it."""
    order = by_effect(layer)
    return next((node for node in order if node in layer.causes), order[0])


def shown_map(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: the map in red (above 0) and blue, on a pale shadow of the image."""
    top = float(np.abs(heat).max())
    colours = widgets.colour(heat, "signed", -top, top).astype(float)
    grey = picture.mean(-1) if picture.ndim == 3 else picture
    return (colours * (1 - 0.25 * grey[..., None])).round().astype(np.uint8)


def coloured(picture: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] of `Opened.picture`."""
    return widgets.colour(picture) if picture.ndim == 2 else (picture * 255).round().astype(np.uint8)


def enlarged(picture: np.ndarray, side: int = SIDE) -> np.ndarray:
    """By whole factors, to about ``side`` pixels."""
    return widgets.enlarge(picture, max(1, side // max(picture.shape[:2])))


def evidence(opened: Opened, layer_name: str, node: int, image: int | None = None, top: int = 8) -> Evidence:
    """What a page shows of a node (`helpers.causal_graphs.page`): its map is that of ``image``, by default of the image
    on which cutting it changes the outcome most. Only where the images may be passed on."""
    layer = opened.graph.layer(layer_name)
    look = opened.look(layer, node, 0 if image is None else image)
    if image is None:
        image = int(look.order[0])
        look = opened.look(layer, node, image)
    picture = opened.picture(image)
    return Evidence(
        effects=look.effects.tolist(),
        map=widgets.png(shown_map(picture, look.heat)),
        image=widgets.png(coloured(picture)),
        caption=f"{look.caption[0].upper()}{look.caption[1:]}",
        images=[widgets.png(coloured(opened.picture(int(k)))) for k in look.order[:top]],
    )
