"""Heat maps from a causal graph: where in an image its causes act (spec explainnn, section 4).

    maps = heat_maps(network, graph, x)                # of the deepest convolution
    maps.combined, maps.maps                           # [B, H, W], and for each effect [B, |E|, H, W]
    explain = explainer(graphs, method="act_grad")     # explain(model, x, target) -> heat, as any other method

A layer of the graph has causes C, lower nodes, and effects E, which its edges lead into. A is what the layer reads:

    spatial_do          an intervention: A of the causes is zeroed in one cell, on the edges into E only; by how much
                        does the outcome fall?
    act_grad            A of the causes times its gradient; through E alone, that is spatial_do to first order
    contribution        ReLU of what C adds to an effect, times how far the outcome falls without that effect
    channel_activation  ReLU of A of a cause, times how far the outcome falls without that cause
    reference           the 2022 release's recipe: the full convolution (kernel flipped, stride and padding ignored) of
                        the raw output of the layer before with each kernel, a softmax over its pixels, the mean over C

The last is not what the network computes, and its softmax leaves maps almost flat; it is here to be compared with. The
weights of `contribution` and `channel_activation` are the mean effects that the graph was found with; all else comes
from the network at hand, also where that is not the graph's own (randomised weights, say).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import artifacts
from helpers.attribution.base import evaluating
from helpers.causal_graphs import drawing
from helpers.causal_graphs.drawing import CONVOLUTIONS, View
from helpers.causal_graphs.engines import Samples
from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.network import Chain, Network
from helpers.config import ConfigError, suggest

Method = Literal["spatial_do", "act_grad", "contribution", "channel_activation", "reference"]
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True, eq=False)
class HeatMaps:
    """The maps of the images ``x`` [B, C, H, W], as they come out of ``method`` at ``layer``.

    ``joint`` [B, h, w] is the map of all effects together and ``each`` [B, |E|, h, w] that of every one of ``effects``
    (node ids), both over the cells that the method works in, which lie on ``extent`` (h', w') positions, ``cell`` x
    ``cell`` each. ``sources`` are the ids of the causes. ``each`` is None where it was not asked for, and of
    ``channel_activation``, which tells no effects apart.
    """

    x: Tensor
    joint: Tensor
    each: Tensor | None
    extent: tuple[int, int]
    cell: int
    method: str
    layer: str
    target: int
    sources: tuple[int, ...]
    effects: tuple[int, ...]

    @property
    def combined(self) -> Tensor:
        """[B, H, W]: ``joint``, bilinearly at the size of the image."""
        return self._upsampled(self.joint[:, None])[:, 0]

    @property
    def maps(self) -> Tensor | None:
        """[B, |E|, H, W]: ``each``, bilinearly at the size of the image."""
        return None if self.each is None else self._upsampled(self.each)

    def scaled(self) -> Tensor | None:
        """``maps``, each from -1 to 1 by its own ends, as the release plots them (a flat one is 0)."""
        if (maps := self.maps) is None:
            return None
        lowest, highest = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
        return torch.where(highest > lowest, 2 * (maps - lowest) / (highest - lowest) - 1, 0)

    def save(self, path: Path) -> None:
        """As safetensors."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        artifacts.save_tensors(path, tensors, {f.name: getattr(self, f.name) for f in fields(self)
                                               if f.name not in (*tensors, "each")})  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> HeatMaps:
        """Raises `ArtifactError` if the file is missing, damaged or of something else."""
        tensors, facts = artifacts.load_tensors(path)
        if set(tensors) | set(facts) | {"each"} != {field.name for field in fields(cls)}:
            raise artifacts.ArtifactError(f"{path} does not hold heat maps of a causal graph; make them anew")
        facts = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
        return cls(**{"each": None} | tensors | facts)

    def _upsampled(self, values: Tensor) -> Tensor:
        """[B, n, h, w] at the size of x. The last cells may reach over the edge, and that part is cut off."""
        whole = zip(self.x.shape[2:], values.shape[2:], self.extent, strict=True)
        size = [-(-side * cells * self.cell // positions) for side, cells, positions in whole]
        resized = F.interpolate(values, size, mode="bilinear", align_corners=False)
        return resized[..., : self.x.shape[2], : self.x.shape[3]]


def heat_maps(
    network: Network,
    graph: CausalGraph,
    x: Tensor,
    layer_name: str | None = None,
    *,
    method: Method = "spatial_do",
    cell: int = 1,
    per_effect: bool = True,
    chunk_mb: int = 16,
) -> HeatMaps:
    """The maps of images ``x`` [B, C, H, W] by the causes and effects of a layer of ``graph``, by default its deepest
    convolution.

    ``cell``: positions a side that `spatial_do` zeroes at a time. Without ``per_effect`` there is only the joint map,
    which is |E| times faster there. ``chunk_mb``: memory that is worked in. An image's map does not depend on the
    others. Raises `ConfigError` for a layer, method or network that cannot be, ``ValueError`` for other tensors.
    """
    _check_images(x)
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}: {suggest(method, METHODS)}")
    if cell < 1:
        raise ConfigError(f"a cell has at least 1 x 1 positions, not {cell}")
    if isinstance(network, Chain) and method in ("spatial_do", "act_grad"):
        raise ConfigError(f"{method} runs a network from a layer on, which only a traced one can: try 'contribution'")
    layer, samples = graph.layer(layer_name or deepest_convolution(graph)), Samples(network, x, chunk_mb)
    wanted = {"cell": cell if method == "spatial_do" else 1, "per_effect": per_effect}
    view = replace(View.of(network, graph, layer), **wanted, chunk_bytes=samples.chunk_bytes)
    drawn = []
    for _, values in samples.blocks():
        drawn.append(getattr(drawing, method)(view, values))
    joint, each = (None if part[0] is None else torch.cat(part) for part in zip(*drawn, strict=True))
    if not joint.isfinite().all():
        raise ValueError(f"the heat map of {method} is not finite")
    extent = tuple(view.lower(values).shape[2:] if method == "spatial_do" else joint.shape[1:])
    about = {"method": method, "layer": layer.layer, "target": graph.target}
    return HeatMaps(x, joint, each, extent, view.cell, **about, sources=view.sources, effects=view.effects)


def explain(
    model: nn.Module,
    x: Tensor,
    target: Tensor | None = None,
    *,
    graphs: Mapping[int, CausalGraph],
    layer_name: str | None = None,
    method: Method = "spatial_do",
    cell: int = 1,
    chunk_mb: int = 16,
) -> Tensor:
    """Heat [B, H, W] of each image of x [B, C, H, W] by the graph of its ``target`` [B] in ``graphs``, one a class.

    The signature of `helpers.attribution`: the maps come from the ``model`` given, in eval mode, whatever weights the
    graphs were found with. A single graph needs no target. Raises `ConfigError` for a class without a graph.
    """
    _check_images(x)
    if target is None and len(graphs) == 1:
        target = torch.full((len(x),), next(iter(graphs)))
    if target is None or torch.as_tensor(target).shape != x.shape[:1]:
        raise ValueError(f"expected one target for each of {len(x)} images, not {target}")
    target = torch.as_tensor(target, device=x.device)
    with torch.inference_mode(False), evaluating(model):
        x = x.detach().clone()
        heat, network = torch.zeros_like(x[:, 0]), Network(model, x[:1])
        for t in target.unique().tolist():
            if t not in graphs:
                raise ConfigError(f"there is no graph of class {t}, only of: {', '.join(map(str, sorted(graphs)))}")
            rows = target == t
            settings = {"method": method, "cell": cell, "per_effect": False, "chunk_mb": chunk_mb}
            heat[rows] = heat_maps(network, graphs[t], x[rows], layer_name, **settings).combined
    return heat


def explainer(
    graphs: CausalGraph | Mapping[int, CausalGraph],
    layer_name: str | None = None,
    *,
    method: Method = "spatial_do",
    cell: int = 1,
    chunk_mb: int = 16,
) -> Callable[[nn.Module, Tensor, Tensor | None], Tensor]:
    """`explain` with its settings: what metrics and figures take. Raises `ConfigError` for a method or layer that is
    not there, and for a graph that is not of the class it stands for."""
    graphs = {graphs.target: graphs} if isinstance(graphs, CausalGraph) else dict(graphs)
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}: {suggest(method, METHODS)}")
    if not graphs:
        raise ConfigError("there is no graph to explain with")
    for target, graph in graphs.items():
        if graph.target != target:
            raise ConfigError(f"the graph of class {graph.target} was given for class {target}")
        graph.layer(layer_name or deepest_convolution(graph))
    return functools.partial(explain, graphs=graphs, layer_name=layer_name, method=method, cell=cell, chunk_mb=chunk_mb)


def deepest_convolution(graph: CausalGraph) -> str:
    """The layer nearest to the logits that is a convolution with causes. Raises `ConfigError` if there is none."""
    for layer in graph.layers:
        if layer.kind in CONVOLUTIONS and layer.causes:
            return layer.layer
    raise ConfigError(f"the graph of class {graph.target} reaches no convolution: there is no map of it")


def _check_images(x: Tensor) -> None:
    if x.ndim != 4 or not len(x) or not x.is_floating_point():
        raise ValueError(f"expected images [B, C, H, W] of floats with B > 0, not {x.dtype} {tuple(x.shape)}")
