"""How fast ToyBirds are drawn, and in how much memory: `make bench`. The bounds are asserted."""

import resource
import statistics

import pytest
from conftest import ROUNDS

from helpers.data.toybirds import ToyBirdsSettings, batch, birds

N = 256


@pytest.mark.parametrize("what", ["images", "masks", "parameters"])
def test_birds_a_second(core_seconds, benchmark, what):
    """At 128 pixels on one core: 500 images a second, and their masks as fast."""
    settings = ToyBirdsSettings()
    scene = batch(0, range(N), settings)
    calls = {
        "images": lambda: batch(0, range(N), settings),
        "masks": lambda: type(scene)(scene.images, scene.birds).masks,
        "parameters": lambda: birds(0, range(N), settings),
    }
    calls[what]()  # the noise is drawn once
    seconds = [core_seconds(calls[what]) for _ in range(ROUNDS)]
    benchmark.pedantic(calls[what], rounds=1)
    benchmark.extra_info["per second"] = N / statistics.median(seconds)
    assert N / min(seconds) >= (50_000 if what == "parameters" else 500)


def test_memory_is_bounded_by_the_batch():
    """Beside its images, a batch of a thousand needs little more than one of a hundred."""
    batch(0, range(100), ToyBirdsSettings())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    images = batch(0, range(1000), ToyBirdsSettings()).images
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < images.numel() * images.element_size() + 100 * 2**20
