"""``python lifeline.py MODULE ...`` runs a module as ``python -m MODULE`` does, for as long as its parent lives.

The parent holds the other end of the standard input. When that ends, however the parent came to its end, this process
and all that it started are killed: nothing goes on computing what nobody waits for.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress

import psutil

MARK = "SIGHTLINE_FAMILY"
"""The environment variable that a family of processes carries, also those whose parent is gone."""


def end_family(pid: int) -> None:
    """Kill the process ``pid`` with its descendants: a kernel is in a process group of its own and would live on."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        _kill((*first.children(recursive=True), first))


def end_marked(mark: str) -> None:
    """Kill every other process of this user that carries ``mark``: those too whose parents are gone."""
    _kill(process for process in psutil.process_iter() if process.pid != os.getpid() and _carries(process, mark))


def _carries(process: psutil.Process, mark: str) -> bool:
    with suppress(psutil.Error, OSError):
        return process.environ().get(MARK) == mark
    return False


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it ended by itself meanwhile, or is not ours
            process.kill()


def _watch() -> None:
    while os.read(0, 4096):
        pass
    if mark := os.environ.get(MARK):
        end_marked(mark)
    end_family(os.getpid())


if __name__ == "__main__":
    threading.Thread(target=_watch, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
