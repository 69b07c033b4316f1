"""Where runs are executed: in a pool on this machine, or by the workers of a Dask cluster. Both get the same function,
`runs.run`, and no more than a `Job`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any

from ..config import ConfigError
from .runs import Job, run

CONNECT = 20.0  # seconds until a scheduler has to answer


@dataclass(frozen=True)
class Engine:
    """``submit(job)`` executes a job some time and gives its record; ``workers()`` of them at once. ``stop()`` ends
    those that can be ended and begins no other."""

    submit: Callable[[Job], Future[dict[str, Any]]]
    workers: Callable[[], int]
    stop: Callable[[], None]


@contextmanager
def local(workers: int) -> Iterator[Engine]:
    """So many runs at a time on this machine. A thread each is enough: every notebook has processes of its own."""
    stopped = Event()
    with ThreadPoolExecutor(workers, thread_name_prefix="sweep") as pool:

        def stop() -> None:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)

        yield Engine(lambda job: pool.submit(run, job, stopped.is_set), lambda: workers, stop)


def share_of_cores(workers: int) -> int:
    """Threads for each of so many runs at a time, so that all together have no more than there are cores."""
    return max(1, (os.cpu_count() or 1) // workers)


@contextmanager
def dask(address: str) -> Iterator[Engine]:
    """The workers of the scheduler at ``address``, a run for each of their threads. They need the same repository and
    the sweep's folder under the same paths. A run whose worker is lost is given to another one.

    Raises `ConfigError` where ``distributed`` is not installed, nothing answers, or a worker lacks the helpers.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError("--engine dask needs the package `distributed`: pip install distributed") from None
    try:
        client = Client(address, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Dask scheduler answers at {address} ({type(error).__name__}: {error})") from None
    with client:

        def has_helpers() -> bool:  # within this function, so that it is sent as it stands and not by its module's name
            import importlib.util

            return importlib.util.find_spec("helpers") is not None

        there = {"the scheduler": client.run_on_scheduler(has_helpers), **client.run(has_helpers)}
        if lacking := [name for name, found in there.items() if not found]:
            raise ConfigError(
                f"`helpers` cannot be imported by: {', '.join(lacking)}; start scheduler and workers "
                "with the repository's folder in PYTHONPATH"
            )
        pool = client.get_executor(pure=False)
        yield Engine(lambda job: pool.submit(run, job), lambda: sum(client.nthreads().values()), lambda: None)
