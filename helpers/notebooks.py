"""Notebook files: find them, execute them within a time limit, and read back what they showed.

A notebook is executed with its own folder as working directory, as JupyterLab does it. Only `execute` and `refresh`
need a kernel; they start papermill in a process of its own, so that an execution that hangs can be ended, and that ends
when this process does (`lifeline`).
"""

from __future__ import annotations

import base64
import html
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import nbformat
import psutil
import yaml
from nbformat import NotebookNode

from . import lifeline
from .config import ROOT, ConfigError, suggest
from .ledger import MIME

FOLDER = ROOT / "notebooks"

TIMEOUT, LONG_TIMEOUT = 1800.0, 86_400.0
"""Seconds that a notebook may take, unless told otherwise: one that reads what is shipped, for about a minute; and one
that trains or evaluates anew (`LONG`), for hours."""

LONG = ("RETRAIN", "REEVALUATE")

FAILURE = "failure"
"""The tag of the cell that tells at the top of an executed notebook why it is not whole."""

PAPERMILLS = "papermill-error-cell-tag"  # of the cells that it puts in for the same end, without the traceback

Status = Literal["ok", "failed", "timeout"]


class Stopped(Exception):
    """An execution was ended because it was not wanted any more."""


@dataclass(frozen=True)
class Run:
    """An executed notebook and what it showed."""

    path: Path
    title: str
    status: Status
    seconds: float | None = None
    memory: int | None = None  # bytes at the most, of the kernel and what it started; what they share counts for each
    ledger: Mapping[str, Any] | None = None  # see `Ledger.to_dict`
    figure: bytes | None = field(default=None, repr=False)  # PNG of the cell tagged key-figure
    error: str = ""  # one line
    traceback: str = ""
    cell_failed: bool = False  # the error is one of the notebook's cells', not of what executed them

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def page(self) -> Path:
        """Where its HTML page lies, if there is one."""
        return self.path.with_suffix(".html")


def list_notebooks(wanted: Iterable[str] = (), folder: Path = FOLDER) -> list[Path]:
    """The notebooks in the order of their numbers, or those ``wanted`` by number (``"01"``, ``"1"``) or name.

    Raises `ConfigError` for one that is not there, listing those that are.
    """
    found = sorted(folder.glob("*.ipynb"))
    chosen = set()
    for name in wanted:
        paths = [path for path in found if name in (path.stem, path.name) or path.stem.startswith(f"{name:0>2}_")]
        if not paths:
            raise ConfigError(f"no notebook {name!r}: {suggest(name, [path.stem for path in found])}")
        chosen.update(paths)
    return [path for path in found if path in chosen or not chosen]


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def tagged(notebook: NotebookNode, tag: str) -> list[NotebookNode]:
    """The cells that carry ``tag``."""
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def time_limit(parameters: Mapping[str, Any] | None = None) -> float:
    """Seconds that a notebook may take with these parameters where nobody says how many."""
    return LONG_TIMEOUT if any((parameters or {}).get(name) for name in LONG) else TIMEOUT


def execute(
    notebook: Path,
    out: Path,
    parameters: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    mark: str = "",
) -> Run:
    """Execute ``notebook`` into the file ``out``, which also holds what there is after a failure or a timeout, with the
    reason and the traceback on top.

    ``timeout`` is in seconds; None: what `time_limit` allows the parameters. ``stopped`` is asked twice a second
    whether to give up; then `Stopped` is raised. ``mark`` is what the processes carry in their environment
    (`lifeline.MARK`), so that they can be found when they have lost their parents. Raises `ConfigError` if ``out`` is
    the notebook itself.
    """
    if out.resolve() == notebook.resolve():
        raise ConfigError(f"{notebook} would be overwritten by its outputs: take another folder")
    timeout = time_limit(parameters) if timeout is None else timeout
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    mark = mark or uuid.uuid4().hex
    env = {**(os.environ if env is None else env), lifeline.MARK: mark}
    command = [sys.executable, "-P", lifeline.__file__, "papermill", str(notebook.resolve()), str(out.resolve())]
    command += ["--cwd", str(notebook.resolve().parent), "--kernel", "python3", "--language", "python"]
    command += ["--no-progress-bar", "--log-level", "ERROR"]
    if parameters:
        command += ["--parameters_yaml", yaml.safe_dump(dict(parameters))]
    start = time.monotonic()
    # A file, not a pipe: a pipe stays open as long as any process that inherited it lives.
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdin=pipe, stdout=log, stderr=log, env=env, start_new_session=True) as process,
    ):
        try:
            memory = _wait(process, timeout, stopped)
            status: Status = {None: "timeout", 0: "ok"}.get(process.returncode, "failed")
        finally:
            if process.poll() is None:
                lifeline.end_family(process.pid)
                process.wait()
            if process.returncode != 0:  # a papermill that was killed leaves a kernel behind
                lifeline.end_marked(mark)
        log.seek(0)
        printed = log.read().strip()
    run = replace(_read_back(out), status=status, seconds=time.monotonic() - start, memory=memory or None)
    if status == "timeout":
        run = replace(run, error=f"still running after {timeout:g} s, so it was ended")
    elif status == "failed" and not run.error:
        run = replace(run, error=_last_words(process.returncode, printed), traceback=printed)
    if status != "ok":
        _tell(run, notebook)
    return run


def collect(path: Path) -> Run:
    """What an executed notebook shows, read from its file."""
    notebook = read(path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    errors = [output for output in outputs if output.output_type == "error"]
    ledgers = [output.data[MIME] for output in outputs if MIME in output.get("data", {})]
    stored = notebook.metadata.get("sightline", {})
    return Run(
        path=path,
        title=_title(notebook) or path.stem,
        status="failed" if errors else "ok",
        seconds=stored.get("seconds"),
        memory=stored["megabytes"] * 10**6 if "megabytes" in stored else None,
        ledger=ledgers[-1] if ledgers else None,
        figure=_key_figure(notebook),
        error=_first_line(f"{errors[0].ename}: {errors[0].evalue}") if errors else "",
        traceback=_without_colours("\n".join(errors[0].traceback)) if errors else "",
        cell_failed=bool(errors),
    )


def refresh(notebook: Path, timeout: float | None = None) -> Run:
    """Execute ``notebook`` with its default parameters and, if that succeeds, store the outputs in the file itself.

    Paths, times of day and the widgets' state are left out: they would differ at every execution.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = execute(notebook, Path(folder, notebook.name), timeout=timeout)
        if run.status != "ok":
            return replace(run, path=notebook)
        executed = read(run.path)
    for name in ("papermill", "widgets"):
        executed.metadata.pop(name, None)
    executed.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    executed.metadata["sightline"] = {"seconds": round(run.seconds), "megabytes": round((run.memory or 0) / 10**6)}
    for cell in executed.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
    nbformat.write(executed, notebook)
    return replace(run, path=notebook)


def _read_back(out: Path) -> Run:
    """What ``out`` shows: nothing if papermill ended before it wrote the file or while it did."""
    try:
        return collect(out)
    except (OSError, ValueError):
        return Run(out, title=out.stem, status="failed")


def _last_words(code: int, printed: str) -> str:
    """Why papermill ended, where no cell of the notebook says it."""
    if code < 0:
        return f"the process of the notebook was killed ({signal.Signals(-code).name})"
    return (printed.splitlines() or ["papermill failed without a word"])[-1]


def _tell(run: Run, source: Path) -> None:
    """Put what went wrong on top of the notebook that is kept of ``run``, or of ``source`` where there is none."""
    try:
        notebook = read(run.path)
    except (OSError, ValueError):
        notebook = read(source)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
    notebook.cells = [cell for cell in notebook.cells if PAPERMILLS not in cell.metadata.get("tags", [])]
    traceback = f"\n<pre>{html.escape(run.traceback)}</pre>" if run.traceback else ""
    text = f"**{run.status}** · {html.escape(run.error)}\n{traceback}"
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(text, metadata={"tags": [FAILURE]}))
    nbformat.write(notebook, run.path)


def _wait(process: subprocess.Popen, timeout: float, stopped: Callable[[], bool], every: float = 0.5) -> int:
    """Wait for ``process``, no longer than ``timeout`` seconds; the most bytes that it and its descendants held. Raises
    `Stopped` when that is so."""
    deadline, peak = time.monotonic() + timeout, 0
    while (left := deadline - time.monotonic()) > 0:
        if stopped():
            raise Stopped
        with suppress(subprocess.TimeoutExpired):
            process.wait(min(every, left))
            break
        peak = max(peak, _resident(process.pid))
    return peak


def _resident(pid: int) -> int:
    """Bytes in memory of a process and its descendants: of those that end meanwhile nothing."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for member in (parent, *parent.children(recursive=True)):
            with suppress(psutil.Error):
                total += member.memory_info().rss
    except psutil.Error:
        pass
    return total


def _title(notebook: NotebookNode) -> str:
    told = tagged(notebook, FAILURE)
    texts = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown" and cell not in told)
    heading = re.search(r"^# +(.+)$", texts, re.MULTILINE)
    return heading.group(1).strip() if heading else ""


def _key_figure(notebook: NotebookNode) -> bytes | None:
    outputs = [output for cell in tagged(notebook, "key-figure") for output in cell.get("outputs", [])]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return base64.b64decode(pictures[0]) if pictures else None


def _first_line(text: str) -> str:
    return _without_colours(text).strip().splitlines()[0]


def _without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
