"""The page of a notebook's runs: what was swept, how each run ended, and its results against the swept parameters."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.axes import Axes

from ..artifacts import atomic_write
from ..figures import COLOURS, GREY, Picture, picture, png, style
from ..report import duration
from . import table as tables
from .runs import Job

REPLICATE = "SEED"  # a parameter whose values are draws of the same thing: it makes the spread, where others are swept
COLUMNS, PANEL = 4, (2.7, 2.1)  # panels of a figure in a row, and inches of one
REFRESH = 20  # seconds after which the page is read again while the sweep is running


def publish(folder: Path, notebook: Path, jobs: Sequence[Job], running: bool = False) -> pd.DataFrame:
    """Write ``runs.csv``, ``runs.parquet`` and ``index.html`` of the runs in ``folder``; returns their table."""
    table, records = tables.frame(folder, notebook, jobs), tables.records(folder)
    tables.write(table, folder)
    asked = [*(record["chosen"] for record in records), *(job.chosen for job in jobs)]
    names, claims = tables.swept(table, asked), {}
    for record in records:
        claims |= record["claims"]
    page = _page(table, folder, notebook.stem, names, claims, running)
    atomic_write(folder / "index.html", page)
    return table


def results(table: pd.DataFrame, claims: dict[str, str]) -> list[str]:
    """The results that can be drawn: numbers, of the finished runs of today's code."""
    return [key for key in claims if key in table and len(_points(table, key))]


@style()
def against(table: pd.DataFrame, name: str, names: Sequence[str], claims: dict[str, str]) -> Picture | None:
    """Every numeric result against the swept parameter ``name``: a point a run, a line through the means, a colour for
    each value of the one other parameter in ``names`` that is no seed, if there is just one. None without results.

    Only finished runs of today's code are drawn.
    """
    if not (keys := results(table, claims)):
        return None
    others = [other for other in names if other not in (name, REPLICATE)]
    colour = others[0] if len(others) == 1 and table[others[0]].nunique() <= len(COLOURS) else None
    rows = -(-len(keys) // COLUMNS)
    figure = picture(PANEL[0] * min(COLUMNS, len(keys)), PANEL[1] * rows + (0.3 if colour else 0))
    axes = figure.subplots(rows, min(COLUMNS, len(keys)), squeeze=False).ravel()
    for ax in axes[len(keys) :]:
        ax.remove()
    for ax, key in zip(axes, keys, strict=False):
        _panel(ax, _points(table, key), key, name, colour)
    if colour:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, title=colour, loc="outside lower left", ncols=len(labels))
    return figure


def _points(table: pd.DataFrame, key: str) -> pd.DataFrame:
    """The rows that have a number for ``key``."""
    rows = table[(table.status == "ok") & table.current.astype(bool)]
    numbers = rows[key].map(lambda value: isinstance(value, int | float) and not isinstance(value, bool))
    return rows[numbers & rows[key].notna()]


def _panel(ax: Axes, rows: pd.DataFrame, key: str, name: str, colour: str | None) -> None:
    given = rows[name]
    numeric = given.map(lambda value: isinstance(value, int | float) and not isinstance(value, bool)).all()
    texts = sorted(given.astype(str).unique())
    x = given.astype(float) if numeric else given.astype(str).map(texts.index)
    groups = rows.groupby(rows[colour].astype(str)) if colour else [("", rows)]
    for (label, group), tone in zip(groups, COLOURS, strict=False):
        at, y = x[group.index], group[key].astype(float)
        ax.plot(at, y, "o", markersize=4, alpha=0.6, color=tone, markeredgewidth=0, gid=f"runs:{key}:{label}")
        means = y.groupby(at).mean()
        if len(means) > 1 and name != REPLICATE:
            ax.plot(means.index, means, "-", linewidth=1.5, color=tone, label=label, gid=f"means:{key}:{label}")
        elif label:
            ax.plot([], [], "o", color=tone, label=label)
    if not numeric:
        ax.set_xticks(range(len(texts)), texts, rotation=20 if max(map(len, texts)) > 8 else 0)
        ax.margins(x=0.2)
    elif (given.map(lambda value: float(value).is_integer())).all():
        ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_title(key, fontsize=8.5)
    ax.set_xlabel(name.rsplit(".", 1)[-1], fontsize=8.5)
    ax.tick_params(labelsize=8, colors=GREY)


def _page(table: pd.DataFrame, folder: Path, name: str, names: list[str], claims: dict[str, str], running: bool) -> str:
    figures = []
    for parameter in [n for n in names if n != REPLICATE] or names[:1]:
        drawn = against(table, parameter, names, claims)
        if drawn:
            figures.append((parameter, "data:image/png;base64," + base64.b64encode(png(drawn)).decode()))
    constant = {n: table[n].iloc[0] for n in table.columns if n not in tables.FACTS and n not in names
                and n not in claims and table[n].notna().all()} if len(table) else {}  # fmt: skip
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = duration
    return environment.get_template("sweep.html.j2").render(
        name=name,
        rows=[_linked(row, folder, name) for row in table.astype(object).to_dict("records")],
        names=names,
        constant=constant,
        figures=figures,
        claims={key: claims[key] for key in results(table, claims)},
        counts=table.status.value_counts().to_dict(),
        seconds=float(table.minutes.fillna(0).sum() * 60),
        refresh=REFRESH if running else None,
        parquet=(folder / "runs.parquet").exists(),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
    )


def _linked(row: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """A row of the page, with links to what there is of the run."""
    row = {key: None if pd.isna(value) else value for key, value in row.items()}
    links = {}
    for text, suffix in (("read", ".html"), ("notebook", ".ipynb")):
        if (folder / row["run"] / f"{name}{suffix}").exists():
            links[text] = f"{row['run']}/{name}{suffix}"
    if (folder / row["run"] / "out").is_dir():
        links["files"] = f"{row['run']}/out/"
    return row | {"links": links}
