"""The graph in layers and the effects of one node as SVG text, for explorers: drawn in milliseconds, sharp at any size.

Text takes the colour of its surroundings, so light and dark pages both do.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

from helpers.causal_graphs.layout import Layout, Node, Row, size_of

CAUSE, INHIBITOR, GREY = "#d55e00", "#0072b2", "#9aa3ae"
COLOURS = {"target": "currentColor", "cause": CAUSE, "inhibitor": INHIBITOR, "input": "currentColor", "tested": GREY}
LEFT, RIGHT, TOP = 62, 96, 30  # pixels beside and above the nodes, the left for short names
LETTER = 7.4  # pixels of a letter of a name
BINS = 24


def graph(layout: Layout, chosen: tuple[str, int] | None, width: int, row: int = 92, largest: float = 0.0) -> str:
    """The graph, ``width`` pixels wide and ``row`` pixels a space. The edges of the ``chosen`` (space, node) stand out.
    ``largest``: the share that has the largest circle (default: the layout's own). A node's tooltip says its effect.
    """
    largest = largest or layout.largest
    left = max(LEFT, round(LETTER * max(len(row.space) for row in layout.rows) + 12))
    inside = width - left - RIGHT
    height = TOP + row * (len(layout.rows) - 1) + 24

    def at(x: float, y: float) -> tuple[str, str]:
        return f"{left + x * inside:.1f}", f"{TOP + y * row:.1f}"

    strongest: dict[str, float] = {}
    for edge in layout.edges:
        strongest[edge.layer] = max(strongest.get(edge.layer, 0.0), size_of(edge.share))
    parts = [f'<svg class="sightline-svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
             '<g fill="none">']  # fmt: skip
    for edge in layout.edges:
        part = size_of(edge.share) / (strongest[edge.layer] or 1)
        known = not math.isnan(edge.share)
        colour = (CAUSE if edge.share < 0 else INHIBITOR) if known else GREY
        opacity = 0.06 + 0.84 * part**2 if known else 0.4
        if chosen is not None:
            own = chosen in (edge.source, edge.target)
            colour, opacity = (colour, 0.45 + 0.55 * part) if own else (GREY, 0.12)
        (x0, y0), (x1, y1) = at(edge.x0, edge.y0), at(edge.x1, edge.y1)
        middle = f"{TOP + (edge.y0 + edge.y1) / 2 * row:.1f}"
        parts.append(f'<path d="M{x0} {y0}C{x0} {middle} {x1} {middle} {x1} {y1}" stroke="{colour}" '
                     f'stroke-width="{0.5 + 3.6 * part**1.2:.2f}" stroke-opacity="{opacity:.2f}"/>')  # fmt: skip
    parts.append("</g>")
    for y, about in enumerate(layout.rows):
        parts.append(_row(about, at(0, y)[1], width))
    for node in _numbered(layout, 24 / inside):
        x, y = at(node.x, node.y)
        parts.append(f'<text x="{x}" y="{float(y) - 14:.1f}" text-anchor="middle" class="number">{node.node}</text>')
    for node in sorted(layout.nodes, key=lambda node: (node.role != "tested", -size_of(node.share))):
        parts.append(_node(node, at(node.x, node.y), largest, chosen == (node.space, node.node)))
    return "".join(parts) + "</svg>"


def _row(row: Row, y: str, width: int) -> str:
    lines = [f"{row.causes} of {row.tested}"] if row.tested else []
    lines += [f"+ {row.inhibitors} inhib."] if row.inhibitors else []
    lines += ["(fallback)"] if row.fallback else []
    lines += [f"({row.hidden} hidden)"] if row.hidden else []
    found = "".join(
        f'<text x="{width - RIGHT + 14}" y="{y}" dy="{11 + 14 * k - 7 * len(lines)}" opacity=".75">{line}</text>'
        for k, line in enumerate(lines)
    )
    return f'<text x="0" y="{y}" dy="4" font-weight="600">{html.escape(row.space)}</text>{found}'


def _node(node: Node, at: tuple[str, str], largest: float, chosen: bool) -> str:
    x, y = at
    ring = ' stroke="currentColor" stroke-width="2.5"' if chosen else ""
    title = f"<title>{html.escape(described(node))}</title>"
    if node.role in ("target", "input"):
        return (f'<rect x="{float(x) - 6:.1f}" y="{float(y) - 6:.1f}" width="12" height="12" rx="2" '
                f'fill="{COLOURS[node.role]}">{title}</rect>')  # fmt: skip
    radius = 3 + 9 * math.sqrt(size_of(node.share) / max(largest, 0.1)) if node.role != "tested" else 2 + 2 * chosen
    return f'<circle cx="{x}" cy="{y}" r="{radius:.1f}" fill="{COLOURS[node.role]}"{ring}>{title}</circle>'


def described(node: Node) -> str:
    """``node 7 of fc2: cause, effect −15.1 %``."""
    role = "no cause" if node.role == "tested" else node.role
    return f"node {node.node} of {node.space}: {role}" + (
        "" if math.isnan(node.share) else f", effect {percent(node.share)}"
    )


def percent(share: float) -> str:
    """``+1.5 %``, ``−15.1 %``."""
    return f"{100 * share:+.1f} %".replace("-", "−")


def _numbered(layout: Layout, gap: float) -> list[Node]:
    chosen: list[Node] = []
    found = [node for node in layout.nodes if node.role in ("target", "cause", "inhibitor")]
    for node in sorted(found, key=lambda node: -size_of(node.share)):
        if all(node.y != other.y or abs(node.x - other.x) >= gap for other in chosen):
            chosen.append(node)
    return chosen


def effects(
    values: Sequence[float] | None, mean: float, interval: tuple[float, float], least: float, width: int = 400
) -> str:
    """The effects d of a node on each image as a histogram (None: not known), the mean with its ``interval`` above, the
    threshold ``least`` on both sides of 0."""
    values = [] if values is None else [float(v) for v in values]
    height = 150 if values else 76
    base = height - 36
    known = [v for v in (0.0, mean, *interval, -1.3 * least, 1.3 * least, *values) if math.isfinite(v)]
    low, high = min(known), max(known)
    margin = 0.04 * (high - low or 1)
    low, high = low - margin, high + margin

    def at(value: float) -> float:
        return round(10 + (value - low) / (high - low) * (width - 20), 1)

    parts = [f'<svg class="sightline-svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">']
    counts, edges = np.histogram(values, BINS, (low, high))
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            tall = (base - 26) * count / counts.max()
            colour, wide = (CAUSE if left + right < 0 else INHIBITOR), at(right) - at(left) - 1
            parts.append(f'<rect x="{at(left) + 0.5:.1f}" y="{base - tall:.1f}" width="{wide:.1f}" '
                         f'height="{tall:.1f}" fill="{colour}" opacity=".8"/>')  # fmt: skip
    line = '<line x1="{}" x2="{}" y1="{}" y2="{}" stroke="currentColor" stroke-opacity="{}" stroke-width="{}" {}/>'
    parts.append(line.format(10, width - 10, base, base, 0.6, 1, ""))
    parts.append(line.format(at(0), at(0), 8, base, 0.6, 1, ""))
    for end in (-least, least) if least else ():
        parts.append(line.format(at(end), at(end), 8, base, 0.6, 1, 'stroke-dasharray="4 3"'))
    y = 14 if values else 22
    if all(map(math.isfinite, interval)):
        parts.append(line.format(at(interval[0]), at(interval[1]), y, y, 1, 2.5, ""))
    parts.append(f'<circle cx="{at(mean)}" cy="{y}" r="4" fill="currentColor"/>')
    written: list[float] = []
    ticks = [(0.0, "0"), (mean, number(mean)), *([(-least, "−δ"), (least, "δ")] if least else [])]
    for value, text in ticks:
        if all(abs(at(value) - x) > 34 for x in written):
            written.append(at(value))
            parts.append(f'<text x="{at(value)}" y="{base + 14}" text-anchor="middle">{text}</text>')
    what = f"effect d on {len(values)} images; dot and bar: mean" if values else "mean effect d"
    place = f'x="{width / 2}" y="{height - 5}" text-anchor="middle" opacity=".75"'
    return "".join(parts) + f"<text {place}>{what}, 95 % interval</text></svg>"


def number(value: float) -> str:
    """Three significant digits; a dash for NaN."""
    if math.isnan(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e5:
        text = f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    else:
        text = f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"
    return text.replace("-", "−")
