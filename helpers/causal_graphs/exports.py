"""Causal graphs for other programs: networkx, GraphML, GEXF and Graphviz's DOT (spec section 3.7)."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx

from helpers import artifacts
from helpers.causal_graphs.layers import MEASURES
from helpers.config import ConfigError, suggest

if TYPE_CHECKING:
    from helpers.causal_graphs.graph import CausalGraph

COLOURS = {"target": "black", "cause": "#b2182b", "inhibitor": "#2166ac", "input": "gray40"}


def to_networkx(graph: CausalGraph) -> nx.MultiDiGraph:
    """The graph with nodes ``"space:id"`` and an edge for each of `CausalGraph.edges`; every attribute is a plain
    ``str``, ``int``, ``float`` or ``bool``, and left out where it is not known.

    A node has its space, id (``node``), role, ``depth`` (the most edges to the target: each edge leads to a lower one,
    and ``nx.multipartite_layout(g, "depth")`` draws the layers), and statistics. If several links lead out of it, it is
    a cause if any says so, and has the statistics of the strongest that agrees, ``layer``. Two links may join the same
    two nodes: hence the multigraph.
    """
    depth: dict[str, int] = defaultdict(int)
    for layer in graph.layers:
        depth[layer.source_layer] = max(depth[layer.source_layer], depth[layer.target_layer] + 1)
    about = graph.to_dict()
    about = {name: about[name] for name in about if name not in ("layers", "sample_indices")}
    result = nx.MultiDiGraph(**_known({k: json.dumps(v) if isinstance(v, dict) else v for k, v in about.items()}))
    table = graph.nodes()
    strongest = table.assign(size=-table.mean_d.abs(), inhibits=table.role == "inhibitor")
    for row in strongest.sort_values(["inhibits", "size"], kind="stable").to_dict("records"):
        name = f"{row['source_layer']}:{row['node']}"
        if name not in result:
            about = {"space": row["source_layer"], "node": row["node"], "depth": depth[row["source_layer"]]}
            result.add_node(name, **_known(about | {k: row[k] for k in ("role", "layer", *MEASURES)}))
    for row in graph.edges().to_dict("records"):
        ends = f"{row['source_layer']}:{row['source']}", f"{row['target_layer']}:{row['target']}"
        about = _known({k: row[k] for k in ("layer", "role", "effect", "weight_norm", "refined")})
        result.add_edge(*ends, key=f"{row['layer']}:{row['source']}>{row['target']}", **about)
    return result


def write(graph: CausalGraph, path: Path) -> None:
    """To ``path``, by its suffix. Raises `ConfigError` for one that is not known."""
    writers = {".graphml": nx.generate_graphml, ".gexf": nx.generate_gexf, ".dot": _dot}
    if path.suffix not in writers:
        raise ConfigError(f"cannot export to {path.name!r}: {suggest(path.suffix, writers)}")
    artifacts.atomic_write(path, "\n".join(writers[path.suffix](to_networkx(graph))) + "\n")


def _dot(network: nx.MultiDiGraph) -> list[str]:
    """A rank for each space; colours by role, line widths by effect."""
    ranks = defaultdict(list)
    for name, about in network.nodes(data=True):
        ranks[about["depth"], about["space"]].append((name, about))
    strongest = max((abs(e.get("effect", 0)) for *_, e in network.edges(data=True)), default=0) or 1
    lines = ["digraph {", "  rankdir=BT; node [shape=circle];"]
    for rank in sorted(ranks, reverse=True):
        lines.append("  { rank=same;")
        for name, about in ranks[rank]:
            lines.append(f"    {_quoted(name)} [role={about['role']}, color={_quoted(COLOURS[about['role']])}];")
        lines.append("  }")
    for source, target, about in network.edges(data=True):
        style = {"layer": about["layer"], "color": COLOURS[about["role"]]}
        if "effect" in about:
            style |= {"effect": about["effect"], "penwidth": round(0.5 + 4 * abs(about["effect"]) / strongest, 2)}
        style = ", ".join(f"{k}={_quoted(v)}" for k, v in style.items())
        lines.append(f"  {_quoted(source)} -> {_quoted(target)} [{style}];")
    return [*lines, "}"]


def _quoted(text: object) -> str:
    return '"' + str(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """Without None, NaN and empty texts, which GraphML and GEXF cannot hold or read back."""
    return {k: v for k, v in values.items() if v not in (None, "") and not (isinstance(v, float) and math.isnan(v))}
