"""Causal graphs as one HTML page that needs neither a kernel nor a network: to explore, to send to somebody, to keep.

    to_html({"class 3": graph, "class 8": other}, "graphs.html")

The page holds the graphs' own JSON. Its sliders choose anew from the stored statistics, as `CausalGraph.refilter` does;
`page_graph.js` repeats that function and `layout.place`, and a test compares them. Two graphs can stand side by side.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from scipy.special import stdtrit

from helpers import artifacts
from helpers.causal_graphs import layout
from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.statistics import rounded
from helpers.config import ConfigError, suggest

SCRIPTS = ("page_graph.js", "page.js")
DIGITS = 4  # of what is drawn and never compared: weight norms (but for 0), effects on single images


@dataclass(frozen=True)
class Evidence:
    """What is known of a node beyond its statistics. ``effects``: d on each image; ``map``, a PNG of where it acts, in
    ``image``, with a ``caption``; ``images``: PNGs of those on which it matters most."""

    effects: Sequence[float] | None = None
    map: bytes | None = None
    image: bytes | None = None
    caption: str = ""
    images: Sequence[bytes] = ()


Pictures = Mapping[str, Mapping[tuple[str, int], Evidence]]
"""By the name of a graph, and (layer, node)."""


def to_html(
    graphs: Mapping[str, CausalGraph], path: str | Path, pictures: Pictures | None = None, title: str = "Causal graphs"
) -> Path:
    """Write the page of ``graphs``, by name; return its path. Wide spaces show `layout.MOST` nodes, and a graph
    shows `layout.EDGES` edges.

    Images of data that may not be redistributed do not belong into ``pictures``. Raises `ConfigError` without a graph
    or for pictures of a graph that is not there.
    """
    if not graphs:
        raise ConfigError("a page needs at least one graph")
    for name in pictures or {}:
        if name not in graphs:
            raise ConfigError(f"pictures of an unknown graph {name!r}: {suggest(name, graphs)}")
    data = {
        "graphs": {name: _graph(graph) for name, graph in graphs.items()},
        "pictures": {
            name: {f"{layer}/{node}": _evidence(found) for (layer, node), found in nodes.items()}
            for name, nodes in (pictures or {}).items()
        },
        "interval": _intervals(graphs),
        "most": layout.MOST,
        "most_edges": layout.EDGES,
        "spread": layout.SPREAD,
    }
    here = Path(__file__).parent
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / "page.html.j2").read_text("utf-8"))
    script = "\n".join((here / name).read_text("utf-8") for name in SCRIPTS)
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    artifacts.atomic_write(Path(path), template.render(title=title, data=text, script=script))
    return Path(path)


def _graph(graph: CausalGraph) -> dict[str, Any]:
    """The graph's JSON, weight norms shortened."""
    value = graph.to_dict()
    for layer, entry in zip(graph.layers, value["layers"], strict=True):
        if layer.weight_norms is not None:
            entry["weight_norms"] = _short(layer.weight_norms)
    return value


def _short(values: np.ndarray | Sequence[float]) -> Any:
    """As lists; NaN as null."""
    array = rounded(values, DIGITS)
    return np.where(np.isnan(array), None, array).tolist()


def _evidence(found: Evidence) -> dict[str, Any]:
    entry: dict[str, Any] = {"caption": found.caption, "images": [_data_uri(image) for image in found.images]}
    entry |= {name: _data_uri(png) for name in ("map", "image") if (png := getattr(found, name)) is not None}
    return entry | ({} if found.effects is None else {"effects": _short(found.effects)})


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _intervals(graphs: Mapping[str, CausalGraph]) -> dict[int, float]:
    """By the number of images: half a 95 % interval of a mean, in standard errors (as `Statistics.interval`)."""
    numbers = {layer.statistics.n_images for graph in graphs.values() for layer in graph.layers if layer.statistics}
    return {n: float(stdtrit(n - 1, 0.975)) for n in numbers if n > 1}
