"""One run of a sweep: the function that every engine is given, and the record that it leaves.

    <store>/<notebook>/<identity>.lock      held by whoever executes the run
    <store>/<notebook>/<identity>/          run.json, the executed notebook and its page, out/ (weights, results)

``run.json`` is written last and whole: a run without it is not done, whatever else lies there. What a notebook has
finished in ``out/`` it finds again, so a run that was cut off goes on where it was.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import artifacts, config, ledger, lifeline, notebooks, report
from ..parameters import Signature, signature
from .identity import identities, identity

RETRIES = 2
"""At most so many more attempts at a run that fails."""

PATIENCE = 10.0  # seconds that a run waits for another sweep that executes it, before others have their turn

log = logging.getLogger(__name__)

FINAL = ("ConfigError", "ArtifactError", "TorchvisionError")  # errors that say what to do, and would come again

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
           "VECLIB_MAXIMUM_THREADS")  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A run that is wanted: plain data, so that it can be sent to another machine with the same files."""

    notebook: str
    parameters: Mapping[str, Any]
    identity: str
    store: str
    chosen: Mapping[str, Any] = field(default_factory=dict)  # what the command line says of it, as it says it
    takes_out: bool = True
    timeout: float | None = None  # seconds an attempt; None: what its parameters are allowed (`time_limit`)
    retries: int = RETRIES
    threads: int | None = None  # of its numerical libraries; None: as the environment says
    since: float = 0.0  # a failure that is recorded later than this is not tried again

    @property
    def folder(self) -> Path:
        return Path(self.store, Path(self.notebook).stem, self.identity)

    def record(self) -> dict[str, Any] | None:
        return read_record(self.folder)


def plan(notebook: Path, grid: list[dict[str, Any]], store: Path, **options: Any) -> list[Job]:
    """The runs of ``notebook`` over ``grid``, checked. Raises `ConfigError` for what its parameters do not allow.

    Says so where ``SEED`` is swept and nothing is trained: most seeds are not shipped.
    """
    takes, jobs = signature(notebook), {}
    identify = identities(notebook, takes)
    for chosen in grid:
        accepted = takes.accept(chosen)
        if "OUT" in accepted:
            raise config.ConfigError("every run of a sweep has an OUT of its own; --out names the folder of all")
        job = Job(str(notebook.resolve()), accepted, identify(accepted), str(store.resolve()),
                  _named(chosen, takes), "OUT" in takes.defaults, since=time.time(), **options)  # fmt: skip
        jobs.setdefault(job.identity, job)
    for line in takes.cut_short(grid[0]):
        log.info(line)
    planned = list(jobs.values())
    seeds = {job.parameters.get("SEED") for job in planned if not job.parameters.get("RETRAIN")}
    if "RETRAIN" in takes.defaults and len(seeds) > 1:
        log.warning("%s: SEED is swept and RETRAIN is not given; seeds that are not shipped need -p RETRAIN True",
                    notebook.stem)  # fmt: skip
    return planned


def run(job: Job, stopped: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Execute ``job`` unless that is done, and return its record. ``{"status": "busy"}`` if another sweep is at it.

    A process that is lost, or that takes too long, is tried again, as often as `Job.retries` says; an error of the
    notebook's own once more, and one that names its remedy not at all. Raises `Stopped` as soon as ``stopped``.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(job.folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=PATIENCE, cancel_check=stopped)
    except Timeout:
        if stopped():
            raise notebooks.Stopped from None
        return {"status": "busy"}
    try:
        known = job.record()
        if known and (known["status"] == "ok" or known["ended"] > job.since):
            return known
        record = _execute(job, stopped)
        artifacts.save_json(job.folder / "run.json", record)
        return record
    finally:
        lock.release()


def read_record(folder: Path) -> dict[str, Any] | None:
    """What is known of the run in ``folder``; None if it is not done. Raises `ArtifactError` if it is damaged, or of
    another run."""
    path = folder / "run.json"
    if not path.exists():
        return None
    record = artifacts.load_json(path)
    whole = isinstance(record, dict) and {"identity", "status", "ended", "parameters"} <= set(record)
    if not whole or record["identity"] != folder.name:
        raise artifacts.ArtifactError(f"{path} is not the record of this run: delete it, and the run is made anew")
    return record


def _execute(job: Job, stopped: Callable[[], bool]) -> dict[str, Any]:
    notebook, mark = Path(job.notebook), config.digest(str(job.folder))
    lifeline.end_marked(mark)  # what an earlier attempt left, whose sweep was killed
    attempts: list[notebooks.Run] = []
    while True:
        if _changed(job):
            attempts.append(_refused(job))
        else:
            parameters = dict(job.parameters) | ({"OUT": str(job.folder / "out")} if job.takes_out else {})
            out, env = job.folder / notebook.name, _environment(job.threads)
            attempts.append(notebooks.execute(notebook, out, parameters, job.timeout, env, stopped, mark))
        if attempts[-1].status == "ok" or len(attempts) > job.retries or _would_fail_again(attempts):
            break
    if attempts[-1].path.exists():
        report.write_page(attempts[-1])
    return _record(job, attempts)


def _changed(job: Job) -> bool:
    """Would the run be another one by now? Its notebook was edited since it was planned, or this machine has others."""
    try:
        notebook = Path(job.notebook)
        return identity(notebook, signature(notebook), job.parameters) != job.identity
    except (config.ConfigError, OSError, ValueError):
        return True


def _refused(job: Job) -> notebooks.Run:
    error = "ConfigError: the notebook, the helpers or the data settings are not those that the sweep began with"
    return notebooks.Run(job.folder / Path(job.notebook).name, Path(job.notebook).stem, "failed", 0.0, error=error)


def _would_fail_again(attempts: list[notebooks.Run]) -> bool:
    """Has the last attempt failed in a way that another would, too?"""
    last = attempts[-1]
    if last.error.split(":")[0] in FINAL:
        return True
    twice = len(attempts) > 1 and attempts[-2].error == last.error
    return twice and last.status == "failed" and last.cell_failed


def _environment(threads: int | None) -> dict[str, str]:
    return {**os.environ, **(dict.fromkeys(THREADS, str(threads)) if threads else {})}


def _record(job: Job, attempts: list[notebooks.Run]) -> dict[str, Any]:
    last = attempts[-1]
    entries = last.ledger["entries"] if last.ledger and last.status == "ok" else []
    return {
        "identity": job.identity,
        "notebook": Path(job.notebook).stem,
        "parameters": dict(job.parameters),
        "chosen": dict(job.chosen),
        "status": last.status,
        "seconds": round(last.seconds or 0.0, 2),
        "error": last.error,
        "attempts": [{"status": run.status, "seconds": round(run.seconds or 0, 2), "error": run.error}
                     for run in attempts],
        "memory": last.memory,
        "verdict": ledger.summary(last.ledger) if entries else "",
        "results": {entry["key"]: entry["ours"] for entry in entries},
        "claims": {entry["key"]: entry["claim"] for entry in entries},
        "host": platform.node(),
        "ended": time.time(),
        "written": datetime.now().astimezone().isoformat(timespec="seconds"),
    }  # fmt: skip


def _named(chosen: Mapping[str, Any], takes: Signature) -> dict[str, Any]:
    """``chosen`` under the names that the notebook and its study have for it."""
    return {dotted or name: value for spelt, value in chosen.items() for name, dotted in [takes.place(spelt)]}
