"""The causal graph: what a logit hangs on, layer by layer, with everything that it was made from (spec section 3.7).

    graph = CausalGraph.load("runs/causal_graphs/mnist/class_3/LeNet_causal_graph.json")
    graph.counts()                                   # how many causes and inhibitors in each layer
    graph.nodes().sort_values("mean_d")              # the strongest causes first
    graph.refilter(Selection(delta=0.05)).counts()   # with another threshold, without the model
    graph.compare(other)                             # Jaccard and rank correlation, layer by layer
    graph.export("lenet_3.graphml")

A layer is a link: ``fc3`` lists those outputs of ``fc2`` that the logit hangs on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from helpers import artifacts
from helpers.artifacts import ArtifactError
from helpers.causal_graphs.layers import MEASURES, Edges, Layer
from helpers.causal_graphs.statistics import Selection, Statistics
from helpers.config import ConfigError, suggest

SCHEMA = 1


@dataclass(frozen=True, kw_only=True, repr=False)
class CausalGraph:
    """What makes class ``target`` of ``model``: ``layers`` from the logits down, a link each.

    ``other`` is the class it is contrasted with, if it is; ``sample_indices`` are those of the images in the ``split``
    of ``dataset``. ``intervention`` and ``selection`` are settings as JSON, and ``search`` are those of the walk (how
    many images were asked for, which nodes were cut, in which precision); ``walked_with`` is the selection that the
    effects were found with, which `refilter` leaves as it is. A space with several links out of it (residual networks)
    has the causes of all of them.

    Raises ``ValueError`` for layers out of order: a link into nodes that are no causes, or out of a space whose nodes
    were effects already. So a graph is acyclic, and every effect is the target or a cause.
    """

    model: str
    dataset: str
    target: int
    other: int | None = None
    split: str = "test"
    sample_indices: tuple[int, ...]
    seed: int
    mode: str
    intervention: dict[str, Any]
    effect: str
    selection: dict[str, Any]
    search: dict[str, Any] = field(default_factory=dict)
    walked_with: dict[str, Any] | None = None
    version: str
    weights_hash: str
    layers: tuple[Layer, ...]

    def __post_init__(self):
        convert: dict[str, Callable] = {"sample_indices": lambda ids: tuple(map(int, ids)), "layers": tuple}
        convert |= {"intervention": _json, "selection": _json, "search": _json, "walked_with": _json}
        if self.walked_with is None:
            object.__setattr__(self, "walked_with", self.selection)
        for name, function in convert.items():
            object.__setattr__(self, name, function(getattr(self, name)))
        if not self.layers:
            raise ValueError("a graph needs at least the layer of the logits")
        known, finished = {self.top: set(self.layers[0].effects)}, set()
        for layer in self.layers:
            finished.add(layer.target_layer)
            if layer.source_layer in finished:
                raise ValueError(f"layer {layer.layer} leads out of {layer.source_layer}, which was explained above")
            if extra := set(layer.effects) - known.get(layer.target_layer, set()):
                raise ValueError(f"layer {layer.layer} leads into {sorted(extra)} of {layer.target_layer}: no causes")
            known.setdefault(layer.source_layer, set()).update(layer.causes)

    def __repr__(self) -> str:
        found = ", ".join(f"{layer.layer} {len(layer.causes)} of {len(layer.tested)}" for layer in self._tested())
        images = f"{len(self.sample_indices)} images"
        return f"<CausalGraph of {self.model} on {self.dataset}, class {self.target}, {images}: {found}>"

    # ------------------------------------------------------------------------------------------------- reading

    @property
    def top(self) -> str:
        """The space of the logits."""
        return self.layers[0].target_layer

    @property
    def spaces(self) -> tuple[str, ...]:
        """From the logits down."""
        return tuple(dict.fromkeys([self.top, *(layer.source_layer for layer in self.layers)]))

    def layer(self, name: str) -> Layer:
        """Raises `ConfigError`, near misses listed, for a layer that the graph does not have."""
        layers = {layer.layer: layer for layer in self.layers}
        if name not in layers:
            raise ConfigError(f"no layer {name!r} in the graph: {suggest(name, layers)}")
        return layers[name]

    def causes(self, space: str) -> tuple[int, ...]:
        """The nodes of ``space`` that are causes through any of the links out of it; of the logits, the target."""
        return self.layers[0].effects if space == self.top else self._listed(space, "causes")

    def inhibitors(self, space: str) -> tuple[int, ...]:
        """As `causes`. A node may be a cause through one link and an inhibitor through another."""
        return () if space == self.top else self._listed(space, "inhibitors")

    def nodes(self, everything: bool = False) -> pd.DataFrame:
        """One row a node and link: layer, source_layer, node, role (target, cause, inhibitor, input), mean_d, std_d,
        mean_r, mean_kl, t, p, q.

        p and q are of the test in the direction of the role. ``everything`` adds the nodes that were tested in vain,
        role ``tested``, with p and q in the direction of their effect.
        """
        target = {"layer": "", "source_layer": self.top, "node": list(self.causes(self.top)), "role": "target"}
        target = pd.DataFrame(target | dict.fromkeys(MEASURES, np.nan))
        return _stack([target, *(layer.node_table(everything) for layer in self.layers)])

    def edges(self) -> pd.DataFrame:
        """One row an edge: layer, source_layer, source, target_layer, target, role (of the source node), effect,
        weight_norm, refined.

        ``effect`` is the mean d of the edge alone where that was measured (``refined``), else that of all the source's
        edges of the layer together; NaN where nothing was tested.
        """
        return _stack([layer.edge_table() for layer in self.layers])

    def counts(self) -> pd.DataFrame:
        """One row a layer (the index): source_layer, tested, causes, inhibitors, effects, rule."""
        rows = [
            {
                "layer": layer.layer,
                "source_layer": layer.source_layer,
                "tested": 0 if layer.statistics is None else len(layer.tested),
                "causes": len(layer.causes),
                "inhibitors": len(layer.inhibitors),
                "effects": len(layer.effects),
                "rule": layer.rule,
            }
            for layer in self.layers
        ]
        return pd.DataFrame(rows).set_index("layer")

    # -------------------------------------------------------------------------------- thresholds, and comparison

    def refilter(self, selection: Selection) -> CausalGraph:
        """The graph that ``selection`` makes of the stored statistics, from the logits down; no model is needed.

        Where a node is no cause any more, it is no effect below, and a layer without effects is empty. A node that
        becomes a cause has no edges below: nothing was measured there. Statistics stay those measured with the effects
        of the walk, so below the first layer that changes a new walk may find other nodes. What is left out is kept: to
        refilter twice is to refilter with the last selection, and with `walked_with` gives the graph as it was.
        """
        known: dict[str, set[int]] = {}
        layers = []
        for layer in self.layers:
            layers.append(layer.refilter(selection, known.get(layer.target_layer) if layers else None))
            known.setdefault(layer.source_layer, set()).update(layers[-1].causes)
        return replace(self, layers=tuple(layers), mode=selection.mode, selection=selection.model_dump(mode="json"))

    def compare(self, other: CausalGraph, empty: float = 0.0) -> pd.DataFrame:
        """One row a layer, and ``whole``: shared, only_here, only_there (numbers of causes), jaccard, tested (nodes
        tested for both graphs), rank_correlation (Spearman's, of mean d over these).

        ``empty`` is the Jaccard index of two graphs that both have no cause there; spec section 7.2 counts it 0. Nodes
        listed without a test are left out. The correlation is NaN of fewer than two nodes, or of equal effects.
        """
        mine, theirs = ({layer.layer: layer for layer in g._tested()} for g in (self, other))
        rows = {}
        for name in dict.fromkeys([*mine, *theirs]):
            pair = [layers[name] for layers in (mine, theirs) if name in layers]
            effects = [pd.Series(layer.statistics.mean_d, layer.tested) for layer in pair]
            both = pd.concat(effects, axis=1, join="inner") if len(pair) == 2 else pd.DataFrame()
            rank = both.rank().corr().iloc[0, 1] if len(both) > 1 else np.nan
            here, there = (set(layers[name].causes if name in layers else ()) for layers in (mine, theirs))
            rows[name] = _overlap(here, there, empty) | {"tested": len(both), "rank_correlation": rank}
        here, there = ({(layer.source_layer, n) for layer in g.values() for n in layer.causes} for g in (mine, theirs))
        tested = sum(row["tested"] for row in rows.values())
        rows["whole"] = _overlap(here, there, empty) | {"tested": tested, "rank_correlation": np.nan}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer")

    def jaccard(self, other: CausalGraph, empty: float = 0.0) -> pd.Series:
        """Of the causes, by layer and ``whole``; see `compare`."""
        return self.compare(other, empty).jaccard

    # --------------------------------------------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """As JSON that diffs well; NaN as null."""
        artifacts.save_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> CausalGraph:
        """Raises `ArtifactError` for a file that is missing, damaged, or of another schema."""
        value = artifacts.load_json(Path(path))
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise ArtifactError(f"{path} is not a causal graph of schema {SCHEMA}; update the helpers, or walk again")
        try:
            return cls.from_dict(value)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ArtifactError(f"{path} is damaged ({error}); restore it, or delete it and walk again") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` makes an equal graph of them."""
        return {"schema": SCHEMA} | _plain(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> CausalGraph:
        """Raises ``ValueError``, ``TypeError`` or ``KeyError`` for anything else than what `to_dict` gives."""
        return cls(**{k: v for k, v in value.items() if k not in ("schema", "layers")} | {"layers": _layers(value)})

    def to_networkx(self):
        """A ``networkx.MultiDiGraph``; see `exports.to_networkx`."""
        from helpers.causal_graphs import exports  # networkx takes a second to import

        return exports.to_networkx(self)

    def export(self, path: str | Path) -> None:
        """For Gephi, yEd, Cytoscape or Graphviz: .graphml, .gexf or .dot. Raises `ConfigError` for other suffixes."""
        from helpers.causal_graphs import exports

        exports.write(self, Path(path))

    def _tested(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.statistics is not None]

    def _listed(self, space: str, role: str) -> tuple[int, ...]:
        if space not in self.spaces:
            raise ConfigError(f"no space {space!r} in the graph: {suggest(space, self.spaces)}")
        found = (getattr(layer, role) for layer in self.layers if layer.source_layer == space)
        return tuple(sorted(set().union(*found)))


def graph_path(out: Path, dataset: str, model: str, target: int) -> Path:
    """Where a graph lies (the release's layout): ``out/<dataset>/class_<target>/<model>_causal_graph.json``."""
    return out / dataset / f"class_{target}" / f"{model}_causal_graph.json"


def _overlap(here: set, there: set, empty: float) -> dict[str, Any]:
    shared, whole = len(here & there), len(here | there)
    counts = {"shared": shared, "only_here": len(here - there), "only_there": len(there - here)}
    return counts | {"jaccard": shared / whole if whole else empty}


def _stack(tables: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([t for t in tables if len(t)] or tables[:1], ignore_index=True)


def _json(value: Any) -> Any:
    """A copy as JSON gives it back: tuples as lists."""
    return json.loads(json.dumps(value))


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.compare}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist()) if np.isnan(value).any() else value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and value != value else value


def _layers(value: Mapping[str, Any]) -> tuple[Layer, ...]:
    layers = []
    for layer in value["layers"]:
        layer = dict(layer)
        if layer["statistics"] is not None:
            layer["statistics"] = Statistics(**layer["statistics"])
        if layer["edges"] is not None:
            layer["edges"] = Edges(**layer["edges"] | {"statistics": Statistics(**layer["edges"]["statistics"])})
        layers.append(Layer(**layer))
    return tuple(layers)
