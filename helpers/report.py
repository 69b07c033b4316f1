"""Executed notebooks as documents: HTML pages, the page that lists them all, and the README's table of results."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import nbconvert
from markupsafe import Markup

from . import ledger
from .config import ROOT, ConfigError
from .notebooks import FOLDER, Run, execute, list_notebooks
from .parameters import signature

BEGIN, END = "<!-- ledger:begin -->", "<!-- ledger:end -->"
"""What encloses the results table in README.md; everything between is written by `with_results`."""

logger = logging.getLogger(__name__)


def run_all(
    out: Path = ROOT / "runs",
    wanted: Iterable[str] = (),
    parameters: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    folder: Path = FOLDER,
) -> list[Run]:
    """Execute the notebooks (all, or those ``wanted``) into ``out``, with a page each and an ``index.html``.

    One that fails does not stop the others. The index is rewritten after each, so that it can be watched. Raises
    `ConfigError`, before any is executed, for parameters that one of them does not have or that are wrong.
    """
    runs: list[Run] = []
    chosen = list_notebooks(wanted, folder)
    taken = {path: signature(path) for path in chosen} if parameters else {}
    accepted = {path: takes.accept(parameters) for path, takes in taken.items()}
    for line in (line for takes in taken.values() for line in takes.cut_short(parameters)):
        logger.info(line)
    for notebook in chosen:
        logger.info("%s ...", notebook.stem)
        run = execute(notebook, out / notebook.name, accepted.get(notebook), timeout)
        logger.info("%s: %s, %s, %s %s", run.name, run.status, verdict(run), duration(run.seconds), run.error)
        write_page(run)
        runs.append(run)
        (out / "index.html").write_text(index(runs), encoding="utf-8")
    return runs


def to_html(notebook: Path) -> str:
    """The notebook as one HTML page with its figures and its widgets' state.

    The page itself needs no network. Two refinements do: MathJax sets the formulas (else their LaTeX is read) and
    Jupyter's widget manager redraws the widgets (else the static picture above each explorer stands for it).
    """
    exporter = nbconvert.HTMLExporter(embed_images=True)
    exporter.log.setLevel(logging.ERROR)  # it warns of every figure without alternative text
    page, _ = exporter.from_filename(str(notebook))
    return page


def index(runs: Sequence[Run]) -> str:
    """The self-contained page that lists ``runs``."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = duration
    environment.filters["table"] = lambda entries: Markup(ledger.table(entries))
    environment.filters["data_url"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode()
    return environment.get_template("index.html.j2").render(
        runs=runs,
        verdict=verdict,
        total=_total(runs),
        seconds=sum(run.seconds or 0 for run in runs),
        failed=sum(run.status != "ok" for run in runs),
        environment=_environment(),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def verdict(run: Run) -> str:
    """``"9 of 11 reproduced"``, or that there is no ledger."""
    return ledger.summary(run.ledger) if run.ledger else "no ledger"


def duration(seconds: float | None) -> str:
    """``"41 s"`` or ``"2 min 05 s"``."""
    if seconds is None:
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def with_results(readme: str, runs: Sequence[Run]) -> str:
    """``readme`` with the results table of ``runs`` between its markers. Raises `ConfigError` if they are missing."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ConfigError(f"README.md needs the lines {BEGIN} and {END} once each; the results table goes between them")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{results_table(runs)}\n{END}{rest.split(END)[1]}"


def results_table(runs: Sequence[Run]) -> str:
    """Markdown: a row for each notebook, then the claims of each, folded up."""
    head = ("notebook", "what it is about", "verdict", "minutes", "Colab", "Kaggle")
    overview = _table(head, [_overview(run) for run in runs] + [("**all**", "", f"**{_total(runs)}**", "", "", "")])
    return "\n\n".join([overview, *(_folded(run) for run in runs if run.ledger)])


def _overview(run: Run) -> tuple[str, ...]:
    minutes = "" if run.seconds is None else f"{run.seconds / 60:.1f}"
    link = f"[{run.name}](notebooks/{run.path.name})"
    return (f"**{link}**", _cell(run.title), verdict(run), minutes, *badges(run.path))


def _folded(run: Run) -> str:
    """The claims of ``run``; what has blank lines around it inside HTML is still Markdown to GitHub."""
    rows = [
        (entry.claim, entry.reference_text(), entry.ours_text(), f"{ledger.MARKS[entry.verdict]} {entry.verdict}")
        for entry in (ledger.Entry(**entry) for entry in run.ledger["entries"])
    ]
    claims = _table(("claim", "reference", "ours", "verdict"), [tuple(map(_cell, row)) for row in rows])
    return f"<details>\n<summary>{run.name}: {verdict(run)}</summary>\n\n{claims}\n\n</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))


def badges(notebook: Path) -> tuple[str, str]:
    """Markdown of the Colab and the Kaggle badge of a notebook, as they stand in the notebook and in the README."""
    url = repository()
    path = f"{url.removeprefix('https://github.com/')}/blob/main/notebooks/{notebook.name}"
    colab = f"https://colab.research.google.com/github/{path}"
    kaggle = f"https://kaggle.com/kernels/welcome?src=https://github.com/{path}"
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})",
        f"[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]({kaggle})",
    )


def repository() -> str:
    """The public URL. It is stated once, in the bootstrap cell."""
    return re.search(r'url="(https://[^"]+)"', (ROOT / "helpers" / "bootstrap.py").read_text()).group(1)


def write_page(run: Run) -> None:
    """The page of ``run`` beside its notebook, as far as one can be made."""
    run.page.unlink(missing_ok=True)  # of an earlier run
    try:
        run.page.write_text(to_html(run.path), encoding="utf-8")
    except Exception as error:  # a half-written notebook, say; it must not stop those that follow
        logger.warning("%s: no page could be made of it: %s", run.name, error)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _total(runs: Sequence[Run]) -> str:
    return ledger.summary({"entries": [entry for run in runs if run.ledger for entry in run.ledger["entries"]]})


def _environment() -> str:
    try:
        from .runtime import environment  # imports torch, and where that fails there is most need of the page
    except Exception as error:
        return f"torch cannot be imported: {error}"
    return " · ".join(f"{name} {value}" for name, value in environment().items())
