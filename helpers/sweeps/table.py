"""The runs of a notebook as a table: what was asked of each, how it ended, and what its ledger measured."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..artifacts import ArtifactError, atomic_write
from ..config import ConfigError
from ..parameters import signature
from .identity import identities
from .runs import Job, read_record

FACTS = ("run", "status", "current", "minutes", "attempts", "verdict", "error")
"""The columns of every table; the parameters follow, then the results by the keys of the ledger."""


def records(folder: Path) -> list[dict[str, Any]]:
    """Those of all runs in ``folder``, the oldest first. One that is damaged is left out: it will be made anew."""
    found = []
    for path in folder.glob("*/run.json"):
        try:
            found.append(read_record(path.parent))
        except ArtifactError:
            continue
    return sorted(found, key=lambda record: record["ended"])


def frame(folder: Path, notebook: Path, jobs: Sequence[Job] = ()) -> pd.DataFrame:
    """A row for every run in ``folder``, and for those of ``jobs`` that are not done (``waiting``).

    Columns: `FACTS`, the parameters that some run was given (missing where another was not), the results. ``current``
    says whether the same run would be made today: not if the notebook's code, a helper that it reaches, or the data
    settings are others by now.
    """
    done, (today, defaults) = records(folder), _today(notebook)
    rows = [_row(record, today(record["parameters"]) == record["identity"]) for record in done]
    known = {record["identity"] for record in done}
    rows += [{"run": job.identity, "status": "waiting", "current": True, **_cells(job.chosen)}
             for job in jobs if job.identity not in known]  # fmt: skip
    asked = _names([record["chosen"] for record in done] + [job.chosen for job in jobs])
    for row in rows:  # what another grid varied has its default here
        row |= {name: defaults[name] for name in asked if name not in row and row["current"] and name in defaults}
    results = _names(record["results"] for record in done)
    table = pd.DataFrame(rows, columns=[*FACTS, *asked, *(name for name in results if name not in asked)])
    return table.sort_values([*asked, "run"], key=_sortable, ignore_index=True) if len(table) else table


def swept(table: pd.DataFrame, jobs_or_records: Iterable[dict[str, Any]]) -> list[str]:
    """The parameters that are not the same in all runs of ``table``."""
    names = [name for name in _names(jobs_or_records) if name in table]
    return [name for name in names if table[name].astype(str).nunique() > 1]


def write(table: pd.DataFrame, folder: Path) -> None:
    """``runs.csv``, and ``runs.parquet`` where pyarrow is installed: the same rows."""
    atomic_write(folder / "runs.csv", table.to_csv(index=False, lineterminator="\n"))
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return
    buffer = io.BytesIO()
    _of_one_kind(table).to_parquet(buffer, index=False, engine="pyarrow")
    atomic_write(folder / "runs.parquet", buffer.getvalue())


def _today(notebook: Path) -> tuple[Callable[[dict[str, Any]], str], dict[str, Any]]:
    """(the identity that a run with given parameters would have today, the defaults of the parameters); nothing where
    the notebook cannot be read."""
    try:
        takes = signature(notebook)
        return identities(notebook, takes), _cells({k: v for k, v in takes.defaults.items() if v is not None})
    except (ConfigError, OSError, ValueError):
        return lambda parameters: "", {}


def _row(record: dict[str, Any], current: bool) -> dict[str, Any]:
    return {
        "run": record["identity"],
        "status": record["status"],
        "current": current,
        "minutes": round(sum(attempt["seconds"] for attempt in record["attempts"]) / 60, 3),
        "attempts": len(record["attempts"]),
        "verdict": record["verdict"] or None,
        "error": record["error"] or None,
        **{name: _rounded(value) for name, value in record["results"].items() if name not in record["chosen"]},
        **_cells(record["chosen"]),
    }


def _cells(chosen: dict[str, Any]) -> dict[str, Any]:
    """Lists and dicts as JSON: a cell holds one thing."""
    return {name: json.dumps(value) if isinstance(value, list | tuple | dict) else value
            for name, value in chosen.items()}  # fmt: skip


def _rounded(value: Any) -> Any:
    """Six significant digits: the rest is no measurement."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _names(parts: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for part in parts for name in part))


def _sortable(column: pd.Series) -> pd.Series:
    """Numbers by their size; else, as among texts and numbers, by what is written."""
    numbers = pd.to_numeric(column, errors="coerce")
    return numbers if numbers.notna().any() and numbers.isna().sum() == column.isna().sum() else column.astype(str)


def _of_one_kind(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with columns of text where numbers and texts are mixed, which Parquet does not know."""
    mixed = [name for name in table if table[name].map(type).isin([str]).any()]
    texts = {name: table[name].map(lambda value: value if isinstance(value, str) or pd.isna(value) else str(value))
             for name in mixed}  # fmt: skip
    return table.assign(**texts)
