"""The runs of a sweep, from the first to the last: what is done is skipped, the rest is executed, all is told."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import AbstractContextManager
from typing import Any

from ..artifacts import ArtifactError
from ..notebooks import Stopped
from ..report import duration
from .engines import Engine
from .runs import Job

EVERY = 20.0  # seconds between two versions of the page, at least

log = logging.getLogger(__name__)

Publish = Callable[[bool], None]
"""Writes tables and pages; told whether the sweep is still running."""


def describe(job: Job) -> str:
    """``"SEED=3 train.epochs=5"``: what tells the run from the others."""
    return " ".join(f"{name}={value}" for name, value in job.chosen.items()) or "no parameters"


def state(job: Job) -> str:
    """``"ok"``, ``"failed"`` or ``"timeout"`` of a run that was executed, ``"new"`` of one that was not, ``"damaged"``
    of one whose record cannot be read."""
    try:
        record = job.record()
    except ArtifactError:
        return "damaged"
    return record["status"] if record else "new"


def listing(jobs: Sequence[Job]) -> str:
    """A line for every run: its state, its folder's name and its parameters."""
    states = [state(job) for job in jobs]
    rows = [f"{known:8} {job.identity}  {describe(job)}" for job, known in zip(jobs, states, strict=True)]
    return "\n".join([*rows, f"{len(jobs)} runs: {_counted(Counter(states))}"])


def execute(jobs: Sequence[Job], engine: AbstractContextManager[Engine], publish: Publish) -> Counter[str]:
    """Execute those of ``jobs`` that are not done; returns how many have which status. Ctrl-C ends what runs here, and
    the same call later goes on.

    A record that is damaged is set aside first, so that its run is executed anew.
    """
    states = [state(job) for job in jobs]
    ends = Counter(states)
    todo = [job for job, known in zip(jobs, states, strict=True) if known != "ok"]
    for job, known in zip(jobs, states, strict=True):
        if known == "damaged":
            (job.folder / "run.json").replace(job.folder / "run.damaged.json")
    log.info("%d runs: %s", len(jobs), _counted(ends))
    publish(bool(todo))
    ends = Counter(ok=ends["ok"])
    if todo:
        with engine as machines:
            try:
                ends += _all(todo, machines, publish)
            except KeyboardInterrupt:
                machines.stop()
                log.warning("stopped; the same command goes on with what is missing")
                raise
            finally:
                publish(False)
    return ends


def _all(jobs: Sequence[Job], engine: Engine, publish: Publish) -> Counter[str]:
    began = published = time.monotonic()
    ends: Counter[str] = Counter()
    log.info("%d to execute, %d at a time", len(jobs), engine.workers())
    going = {engine.submit(job): job for job in jobs}
    while going:
        done, _ = wait(going, timeout=EVERY, return_when=FIRST_COMPLETED)
        for future in done:
            job, record = going.pop(future), _outcome(future)
            if record["status"] == "busy":
                going[engine.submit(job)] = job
                continue
            ends[record["status"]] += 1
            seconds_each = (time.monotonic() - began) / ends.total()
            log.info("%s", _line(record, job, ends.total(), len(jobs), seconds_each))
        if done and going and time.monotonic() - published >= EVERY:
            publish(True)
            published = time.monotonic()
    return ends


def _outcome(future: Future[dict[str, Any]]) -> dict[str, Any]:
    """The record of a run, or what is to be said where it could not even be begun."""
    try:
        return future.result()
    except (Stopped, CancelledError):
        return {"status": "stopped", "error": "stopped", "seconds": 0.0}
    except Exception as error:  # a worker that is lost too often, a full disk: the other runs go on
        return {"status": "failed", "error": f"{type(error).__name__}: {error}", "seconds": 0.0}


def _line(record: dict[str, Any], job: Job, done: int, total: int, seconds_each: float) -> str:
    told = record["verdict"] if record["status"] == "ok" else record["error"]
    left = f"about {duration((total - done) * seconds_each)} left" if done < total else ""
    told = " · ".join(part for part in (describe(job), duration(record["seconds"]), told, left) if part)
    return f"[{done}/{total}] {record['status']:7} {told}"


def _counted(ends: Counter[str]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(ends.items())) or "none"
