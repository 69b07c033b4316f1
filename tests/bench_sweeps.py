"""What a sweep gains and costs, as ratios and differences measured in one run: `make bench`. The bounds are asserted.

Needs two cores that nothing else uses. The notebooks compute on one core, without a library that has threads.
"""

import os
import statistics
import subprocess
import sys
import time

import pytest
import sweeping

from helpers.sweeps import engines, page, sweep

BUSY = """import time
start = time.process_time()
while time.process_time() - start < SECONDS:
    sum(range(10_000))"""
PARAMETERS = "SEED: int = 0  # which\nSECONDS: float = 0.0  # of one core"


@pytest.fixture
def notebook(tmp_path):
    return sweeping.write(tmp_path / "notebooks", BUSY, parameters=PARAMETERS)


def swept(notebook, store, n, seconds, workers) -> float:
    """Seconds that a sweep of so many runs takes, its tables and its page included."""
    start = time.perf_counter()
    jobs = sweeping.plan(notebook, store, [{"SEED": seed, "SECONDS": seconds} for seed in range(n)], threads=1)

    def publish(running):
        page.publish(store / notebook.stem, notebook, jobs, running)

    assert sweep.execute(jobs, engines.local(workers), publish)["ok"] == n
    return time.perf_counter() - start


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two cores")
@pytest.mark.timeout(900)
def test_two_workers(notebook, tmp_path, benchmark):
    """A sweep of 8, each of 5 seconds and a kernel's start: nearly twice as fast as one after the other."""
    serial = swept(notebook, tmp_path / "one", 8, 5.0, workers=1)
    two = benchmark.pedantic(swept, (notebook, tmp_path / "two", 8, 5.0, 2), rounds=1)
    print(f"\n8 runs: {serial:.1f} s one by one, {two:.1f} s with 2 workers: {serial / two:.2f}x")
    benchmark.extra_info["ratio"] = serial / two
    assert serial / two >= 1.8


@pytest.mark.timeout(900)
def test_overhead_of_a_run(notebook, tmp_path, benchmark):
    """What a run of a sweep takes beside papermill: its identity, its record, its page and its share of the tables."""
    n = 5

    def bare():
        command = [sys.executable, "-m", "papermill", str(notebook), str(tmp_path / "bare.ipynb"), "-k", "python3"]
        start = time.perf_counter()
        subprocess.run([*command, "--no-progress-bar"], check=True, capture_output=True)
        return time.perf_counter() - start

    swept(notebook, tmp_path / "warm", 1, 0.0, workers=1)
    alone = statistics.median(bare() for _ in range(n))
    ours = benchmark.pedantic(swept, (notebook, tmp_path / "s", n, 0.0, 1), rounds=1) / n
    print(f"\npapermill alone {alone:.2f} s, a run of a sweep {ours:.2f} s: {ours - alone:+.2f} s")
    benchmark.extra_info["overhead"] = ours - alone
    assert ours - alone <= 1.0
