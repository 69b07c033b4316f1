"""Speed of the metrics against Quantus 0.6 on the same images, as ratios measured in one run: `make bench`.

A small LeNet and 16 images of 32 x 32; both sides hide the same number of parts and take the same number of draws.
"""

import time

import pytest
import quantus
import torch
from metric_nets import ask_quantus, images, noise_maps
from torch import nn

from helpers import metrics
from helpers.attribution import gradient

ROUNDS = 3
QUIET = {"disable_warnings": True, "return_aggregate": False}
CASES = {  # ours, theirs
    "local Lipschitz, 10 draws": (
        lambda model, x, target, heat: metrics.local_lipschitz(gradient, model, x, target, draws=10),
        quantus.LocalLipschitzEstimate(nr_samples=10, **QUIET),
    ),
    "max-sensitivity, 10 draws": (
        lambda model, x, target, heat: metrics.sensitivity(gradient, model, x, target, draws=10),
        quantus.MaxSensitivity(nr_samples=10, **QUIET),
    ),
    "IROF": (
        lambda model, x, target, heat: metrics.irof(model, x, target, heat),
        quantus.IROF(perturb_baseline=0.5, **QUIET),
    ),
    "pixel flipping, 64 steps": (
        lambda model, x, target, heat: metrics.pixel_flipping(model, x, target, heat, steps=64),
        quantus.PixelFlipping(features_in_step=16, **QUIET),
    ),
    "faithfulness correlation, 100 sets": (
        lambda model, x, target, heat: metrics.faithfulness_correlation(model, x, target, heat),
        quantus.FaithfulnessCorrelation(nr_runs=100, subset_size=205, **QUIET),
    ),
    "ROAD, 9 percentages": (
        lambda model, x, target, heat: metrics.road(model, x, target, heat),
        quantus.ROAD(percentages=list(range(10, 100, 10)), disable_warnings=True),
    ),
    "MPRT": (
        lambda model, x, target, heat: metrics.mprt(gradient, model, x, target),
        quantus.MPRT(disable_warnings=True),
    ),
}


@pytest.fixture(scope="module")
def table():
    rows: list[tuple[str, float, float]] = []
    yield rows
    print(f"\n\n{'':36}{'Quantus, s':>12}{'ours, s':>10}{'ratio':>9}")
    for name, theirs, ours in rows:
        print(f"{name:36}{theirs:12.3f}{ours:10.3f}{theirs / ours:8.1f}x")


@pytest.mark.parametrize("name", CASES)
def test_ours_against_quantus(name, benchmark, table):
    ours, theirs = CASES[name]
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    ).eval()
    x = images(16, side=32)
    target, heat = model(x).argmax(1), noise_maps(x)
    seconds: list[list[float]] = [[], []]

    def timed(place, call):
        start = time.perf_counter()
        call()
        seconds[place].append(time.perf_counter() - start)

    benchmark.pedantic(
        lambda: timed(1, lambda: ours(model, x, target, heat)),
        setup=lambda: timed(0, lambda: ask_quantus(theirs, model, x, target, heat, explain=gradient)),
        rounds=ROUNDS,
        warmup_rounds=1,
    )
    quantus_seconds, our_seconds = (min(times[1:]) for times in seconds)
    table.append((name, quantus_seconds, our_seconds))
    assert quantus_seconds / our_seconds > 1
