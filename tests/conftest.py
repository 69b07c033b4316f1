"""The order of the tests, and how the benchmarks compare."""

import gc
import statistics
import time
from functools import partial
from operator import methodcaller

import pytest
import torch

from helpers import downloads
from helpers.downloads import Patience

ROUNDS = 5  # of a benchmark


def pytest_collection_modifyitems(config, items):
    """Cheap first, so that a simple mistake is seen in seconds; where two share the work, the slow ones first, so that
    none of them is left to one alone."""
    shared = hasattr(config, "workerinput")
    items.sort(key=lambda item: bool(item.get_closest_marker("slow")) != shared)  # stable: files stay in their order


@pytest.fixture(scope="module")
def table():
    rows: list[tuple[str, float, float, float]] = []
    yield rows
    print(f"\n\n{'':44}{'plain, s':>10}{'ours, s':>10}{'ratio':>9}")
    for name, plain, ours, ratio in rows:
        print(f"{name:44}{plain:10.3f}{ours:10.3f}{ratio:8.1f}x")


@pytest.fixture
def compare(benchmark, table):
    """``compare(name, plain, ours, work=1)``: the ratio of their speeds, where ``ours`` does ``work`` times as much.

    Each round times the plain way and then ours, so that whatever else the machine does weighs on both; the ratio is
    that of the medians, and the first round is left out.
    """

    def measure(name, plain, ours, work: float = 1.0, rounds: int = ROUNDS, clock=time.perf_counter) -> float:
        plain_seconds, our_seconds = [], []

        def timed_plain():
            start = clock()
            plain()
            plain_seconds.append(clock() - start)

        def timed():
            start = clock()
            ours()
            our_seconds.append(clock() - start)

        benchmark.pedantic(timed, setup=timed_plain, rounds=rounds, warmup_rounds=1)
        one, other = statistics.median(plain_seconds[1:]), statistics.median(our_seconds[1:]) / work
        table.append((name, one, other, one / other))
        benchmark.extra_info["ratio"] = one / other
        return one / other

    return measure


@pytest.fixture(scope="module")
def one_thread():
    """For a module that compares runs to the bit: what is made for several tests has the threads of each of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def core_seconds(threads):
    """``core_seconds(call)``: what a call takes of one core. Neither what else the machine does counts nor a collection
    of the garbage that the tests before have left, which takes half a second late in the suite."""
    threads(1)
    gc.collect()
    gc.freeze()

    def measure(call) -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    yield measure
    gc.unfreeze()


@pytest.fixture
def slowest_event(core_seconds):
    """``slowest_event(make, events)``: (seconds of one core, event) of the one that takes longest, each done after the
    others. An event is a call, or the settings that are selected. Two explorers do the same and the quicker one counts,
    for a core's speed comes and goes."""

    def measure(make, events) -> tuple[float, str]:
        explorers, took = (make(), make()), []
        for event in events:
            call = event if callable(event) else methodcaller("select", **event)
            took.append((min(core_seconds(partial(call, one)) for one in explorers), str(event)))
        return max(took)

    return measure


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty data folder, and no network: a URL gives the bytes put into the dict, or cannot be reached."""
    monkeypatch.setenv("SIGHTLINE_DATA", str(tmp_path))
    served = {}

    def get(source, part, timeout_s, report):
        if source.url not in served:
            raise downloads._Refused(f"{source.url}: no route to host")
        part.write_bytes(served[source.url])

    monkeypatch.setattr(downloads, "_by_https", get)
    monkeypatch.setattr(downloads, "PATIENCE", Patience(retries=0))
    return served
