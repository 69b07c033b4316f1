"""One layer of a causal graph: what was cut, what was found, and how a new threshold changes it (spec section 3)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd

from helpers.causal_graphs.statistics import Comparable, Selection, Statistics, select

ONE_TO_ONE = ("identity", "depthwise")
MEASURES = ("mean_d", "std_d", "mean_r", "mean_kl", "t", "p", "q")  # of a node, in tables


@dataclass(frozen=True, eq=False, kw_only=True)
class Edges(Comparable):
    """Single edges of a layer, cut one at a time (spec section 3.6): from ``sources[k]`` to ``targets[k]``, node ids.

    ``statistics`` are over these edges; ``kept`` says which of them passed, as a cause or as an inhibitor.
    """

    sources: tuple[int, ...]
    targets: tuple[int, ...]
    statistics: Statistics = field(repr=False)
    kept: tuple[bool, ...]

    def __post_init__(self):
        for name in ("sources", "targets"):
            object.__setattr__(self, name, _ids(getattr(self, name)))
        object.__setattr__(self, "kept", tuple(map(bool, self.kept)))
        if not len(self.sources) == len(self.targets) == len(self.kept) == len(self.statistics):
            raise ValueError("edges need a source, a target and statistics each")

    @classmethod
    def judged(
        cls, sources: Sequence[int], targets: Sequence[int], statistics: Statistics, selection: Selection
    ) -> Edges:
        """Those that pass the same test as nodes do are kept."""
        selected = select(statistics, statistics.n_images, selection)
        kept = np.isin(np.arange(len(statistics)), selected.causes + selected.inhibitors)
        return cls(sources=sources, targets=targets, statistics=statistics, kept=kept)


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer(Comparable):
    """The link ``layer`` from the space ``source_layer``, whose nodes are tested, into ``target_layer``.

    So the layer ``fc3`` lists outputs of ``fc2``. All nodes are ids in their spaces, ascending.

    tested: the candidates, in the order of ``statistics``; without statistics, the nodes that could be listed.
    effects: those nodes of the target space that the link leads into and that count as causes there.
    measured_effects: the effects that the cut edges led into; more than ``effects`` after `refilter`.
    rule: how the causes were found: ``test``, ``fallback``, ``none`` were; ``input`` and ``passed`` (the nodes on the
        other end of one-to-one edges) say that no test was made.
    statistics: of the candidates. They stay those of ``measured_effects``, whatever `refilter` shows.
    u: the value that was put in the place of the weights, if it was one value.
    edges: single edges, where they were measured.
    weight_norms: float64 [tested, measured effects], [tested, 1] of one-to-one edges. Where it is 0 there is no edge.
    offset: a one-to-one edge leads from node i to effect ``offset + i`` (behind another operand of a concatenation).
    passes: images that were run through the network's rest, for this layer; not
        those that retested what a screen dropped.
    dropped, retested, missed: candidates that a gradient's screen left out; how many of these were tested all the same;
        and how many of them turned out to be causes.
    seconds: that took. Neither compared nor saved: the same seed gives the same file.

    Raises ``ValueError`` if these contradict each other.
    """

    layer: str
    source_layer: str
    target_layer: str
    kind: str
    tested: tuple[int, ...] = field(repr=False)
    effects: tuple[int, ...]
    causes: tuple[int, ...]
    inhibitors: tuple[int, ...] = ()
    rule: Literal["test", "fallback", "none", "input", "passed"]
    statistics: Statistics | None = field(default=None, repr=False)
    u: float | None = None
    edges: Edges | None = field(default=None, repr=False)
    weight_norms: np.ndarray | None = field(default=None, repr=False)
    measured_effects: tuple[int, ...] | None = field(default=None, repr=False)
    offset: int = 0
    passes: int = 0
    dropped: int = 0
    retested: int = 0
    missed: int = 0
    seconds: float = field(default=0.0, compare=False)

    def __post_init__(self):
        if self.measured_effects is None:
            object.__setattr__(self, "measured_effects", self.effects)
        for name in ("tested", "effects", "causes", "inhibitors", "measured_effects"):
            object.__setattr__(self, name, _ids(getattr(self, name)))
        if self.weight_norms is not None:
            norms = np.array(self.weight_norms, dtype=np.float64)
            norms = norms if norms.size else norms.reshape(len(self.tested), self._columns)  # JSON has no [0, 3]
            norms.setflags(write=False)
            object.__setattr__(self, "weight_norms", norms)
        if problem := self._problem():
            raise ValueError(f"layer {self.layer}: {problem}")

    @classmethod
    def untested(
        cls,
        rule: Literal["input", "passed"],
        *,
        layer: str,
        source_layer: str,
        target_layer: str,
        kind: str,
        nodes: Sequence[int],
        effects: Sequence[int],
        weight_norms: np.ndarray | None = None,
        offset: int = 0,
    ) -> Layer:
        """A layer whose ``nodes`` are listed without a test: the network's ``input`` (the release: one node, 0), or
        nodes ``passed`` on along one-to-one edges."""
        shared = {"layer": layer, "source_layer": source_layer, "target_layer": target_layer, "kind": kind}
        listed = {"tested": nodes, "causes": nodes, "effects": effects}
        return cls(**shared, **listed, rule=rule, weight_norms=weight_norms, offset=offset)

    def refilter(self, selection: Selection, above: Collection[int] | None) -> Layer:
        """The layer with the effects that are ``above`` (None: all) and what ``selection`` makes of the statistics.

        A node goes when no edge of its leads into a remaining effect; all go with the last effect.
        """
        effects = tuple(e for e in self.measured_effects if above is None or e in above)
        causes, inhibitors, rule, edges = self.tested, (), self.rule, self.edges
        if self.statistics is not None:
            selected = select(self.statistics, self.statistics.n_images, selection)
            causes, inhibitors = ([self.tested[k] for k in found] for found in (selected.causes, selected.inhibitors))
            rule = selected.rule
        causes, inhibitors = self._leading(causes, effects), self._leading(inhibitors, effects)
        if self.statistics is not None and not causes:
            rule = "none"
        if edges is not None:
            edges = Edges.judged(edges.sources, edges.targets, edges.statistics, selection)
        return replace(self, effects=effects, causes=causes, inhibitors=inhibitors, rule=rule, edges=edges)

    def norms(self, nodes: Sequence[int], effects: Sequence[int]) -> np.ndarray:
        """float64 [nodes, effects]: the norms of the weights of these edges; 0 without an edge, NaN if not stored."""
        rows = _positions(self.tested, nodes)
        if self.kind in ONE_TO_ONE:
            own = np.nan if self.weight_norms is None else self.weight_norms[rows]
            there = np.array(nodes, int)[:, None] + self.offset == np.array(effects, int)
            return np.where(there, own, 0.0)
        if self.weight_norms is None:
            return np.full((len(nodes), len(effects)), np.nan)
        return self.weight_norms[np.ix_(rows, _positions(self.measured_effects, effects))]

    def node_table(self, everything: bool = False) -> pd.DataFrame:
        """One row a cause, inhibitor or input; with ``everything`` also those that are none, role ``tested``."""
        roles = dict.fromkeys(self.tested, "tested") if everything else {}
        roles |= dict.fromkeys(self.causes, "input" if self.rule == "input" else "cause")
        roles |= dict.fromkeys(self.inhibitors, "inhibitor")
        nodes = sorted(roles)
        about = {"layer": self.layer, "source_layer": self.source_layer}
        table = pd.DataFrame(about | {"node": np.array(nodes, int), "role": [roles[node] for node in nodes]})
        table[list(MEASURES)] = np.nan
        if (s := self.statistics) is not None:
            rows = _positions(self.tested, nodes)
            for name in MEASURES:
                table[name] = getattr(s, name)[rows]
            raising = (table.role == "inhibitor") | (table.role == "tested") & (table.mean_d > 0)
            for name in ("p", "q"):
                table[name] = table[name].where(~raising, getattr(s, f"{name}_inhibitor")[rows])
        return table

    def edge_table(self) -> pd.DataFrame:
        """One row an edge from a node of `node_table` into an effect. An edge that was cut alone (``refined``) has its
        own effect and is there if it is kept; else the effect is that of all the node's edges together."""
        nodes = self.node_table()
        weights = self.norms(nodes.node.tolist(), self.effects)
        effect = np.repeat(nodes.mean_d.to_numpy()[:, None], len(self.effects), 1)
        there, refined = weights != 0, np.zeros(weights.shape, bool)
        if self.edges is not None:
            row, column = ({n: k for k, n in enumerate(ids)} for ids in (nodes.node, self.effects))
            ends = zip(self.edges.sources, self.edges.targets, strict=True)
            for k, (source, target) in enumerate(ends):
                if source in row and target in column:
                    at = row[source], column[target]
                    effect[at], refined[at], there[at] = self.edges.statistics.mean_d[k], True, self.edges.kept[k]
        i, j = np.nonzero(there)
        return pd.DataFrame(
            {
                "layer": self.layer,
                "source_layer": self.source_layer,
                "source": nodes.node.to_numpy()[i],
                "target_layer": self.target_layer,
                "target": np.array(self.effects, int)[j],
                "role": nodes.role.to_numpy()[i],
                "effect": effect[i, j],
                "weight_norm": weights[i, j],
                "refined": refined[i, j],
            }
        )

    @property
    def _columns(self) -> int:
        """Of ``weight_norms``."""
        return 1 if self.kind in ONE_TO_ONE else len(self.measured_effects)

    def _leading(self, nodes: Sequence[int], effects: Sequence[int]) -> tuple[int, ...]:
        """Those of ``nodes`` that have an edge into one of ``effects``, or had none into any measured effect."""
        if not effects:
            return ()
        now, before = ((self.norms(nodes, e) != 0).any(1) for e in (effects, self.measured_effects))
        return tuple(node for node, kept in zip(nodes, now | ~before, strict=True) if kept)

    def _problem(self) -> str | None:
        for name, whole in (("causes", "tested"), ("inhibitors", "tested"), ("effects", "measured_effects")):
            if extra := set(getattr(self, name)) - set(getattr(self, whole)):
                return f"the {name} {sorted(extra)} are not among those {whole.replace('_', ' ')}"
        if (self.statistics is None) != (self.rule in ("input", "passed")):
            return f"rule {self.rule!r} {'needs' if self.statistics is None else 'has no'} statistics"
        if self.statistics is not None and len(self.statistics) != len(self.tested):
            return f"there are statistics of {len(self.statistics)} nodes, and {len(self.tested)} were tested"
        wanted = (len(self.tested), self._columns)
        if self.weight_norms is not None and self.weight_norms.shape != wanted:
            return f"weight_norms must be {list(wanted)}, not {list(self.weight_norms.shape)}"
        return None


def _ids(nodes: Iterable[int]) -> tuple[int, ...]:
    return tuple(map(int, nodes))


def _positions(ids: Sequence[int], nodes: Iterable[int]) -> np.ndarray:
    """int64: where each of ``nodes`` stands among ``ids``."""
    place = {node: k for k, node in enumerate(ids)}
    return np.array([place[node] for node in nodes], dtype=np.int64)
