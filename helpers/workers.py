"""Fits side by side: processes that share the cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager

import torch

# glibc hands large blocks back at each free and faults them in again: a tenth of a training step.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "2147483648"}


@contextmanager
def executor(workers: int) -> Iterator[Executor]:
    """Runs what is submitted in so many new processes, each with its share of this one's threads of torch, which are
    the cores unless OMP_NUM_THREADS says less; of one worker at once, in this process and with its threads."""
    if workers == 1:
        yield _Here()
        return
    threads = max(1, torch.get_num_threads() // workers)
    os.environ.update(KEEP_MEMORY)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        yield pool


class _Here(Executor):
    def submit(self, function, /, *args, **kwargs) -> Future:
        future: Future = Future()
        future.set_result(function(*args, **kwargs))
        return future
