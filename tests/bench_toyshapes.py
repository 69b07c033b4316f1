"""Speed against plain implementations, as ratios measured in one run: `make bench`.

Each round times the plain way and then ours, so that whatever else the machine does weighs on both; the ratio is that
of the medians, and the first round is left out. The bounds are asserted.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_metrics_curve import plain_curve
from test_toyshapes import oracle
from torch import nn

from helpers import metrics, runtime
from helpers.data import toyshapes
from helpers.pinets import fits
from helpers.pinets.fits import Fit
from helpers.pinets.models import UpConv
from helpers.pinets.presets import ToyShapesStudy
from helpers.pinets.together import train_together

ROUNDS = 5
THREADS = 2  # the machine


@pytest.fixture(scope="module")
def table():
    rows: list[tuple[str, float, float, float]] = []
    yield rows
    print(f"\n\n{'':44}{'plain, s':>10}{'ours, s':>10}{'ratio':>9}")
    for name, plain, ours, ratio in rows:
        print(f"{name:44}{plain:10.3f}{ours:10.3f}{ratio:8.1f}x")


@pytest.fixture
def compare(benchmark, table):
    """``compare(name, plain, ours, work=1)``: the ratio of their speeds, where ``ours`` does ``work`` times as much."""

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


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# -------------------------------------------------------------------------------------------------- training


def one_epoch(precision: str = "auto", device: str = "cpu", n_images: int = 240) -> ToyShapesStudy:
    """Of the paper's PiNet: 6 steps of 32 images and one validation."""
    changes = {"training.epochs": 1, "training.evaluations": 1, "training.precision": precision}
    changes = {f"group.*.{name}": value for name, value in changes.items()}
    return ToyShapesStudy(device=device).override({"data.n_images": n_images} | changes)


def our_epoch(seed: int = 0, threads: int = THREADS) -> None:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as out:
        fits.train(Fit("pinet", seed), one_epoch(), Path(out))


def plain_epoch() -> float:
    """The same as one would write it down: float32, PyTorch's own layers, memory format and optimizer."""
    study = one_epoch()
    train, validation = fits.replication(study, 0)
    model = fits.build(study.group.pinet.model, study.data.image_size)
    for index, layer in enumerate(model.decoder):
        if isinstance(layer, UpConv):
            model.decoder[index] = nn.ConvTranspose2d(layer.in_channels, layer.out_channels, 2, stride=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.9, 0.95))
    for rows in torch.randperm(len(train)).split(32):
        batch = train[rows]
        loss = F.binary_cross_entropy_with_logits(model(batch.x).logits, batch.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = (model(validation.x).logits > 0) == (validation.y > 0)
    return float(right.float().mean())


needs_bfloat16 = pytest.mark.skipif(
    runtime.fast_dtype(torch.device("cpu")) != torch.bfloat16, reason="this CPU does not multiply bfloat16 natively"
)


@needs_bfloat16
def test_training_one_fit(compare, threads):
    threads(THREADS)
    assert compare("an epoch, 2 threads", plain_epoch, our_epoch) >= 2


@needs_bfloat16
def test_training_fits_side_by_side(compare, threads):
    """As the study trains with WORKERS = 2: a fit a core. Twice the images for the same plain loop on both cores."""
    threads(THREADS)
    with fits._executor(2) as pool:

        def ours():
            for future in [pool.submit(our_epoch, seed, 1) for seed in range(2)]:
                future.result()

        assert compare("an epoch, 2 fits of 1 thread each", plain_epoch, ours, work=2) >= 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: fits are trained together on one")
def test_training_together_on_a_gpu(compare):
    """30 PiNets in minutes: 50 epochs of them stay below ten."""
    batch = [Fit("pinet", seed) for seed in range(30)]
    study = one_epoch(device="cuda", n_images=1000)
    rounds = 3
    losses = {}

    def alone():
        with tempfile.TemporaryDirectory() as out:
            fits.train(batch[0], study, Path(out))
            losses["alone"] = first_loss(Path(out), batch[0], study)

    def together():
        with tempfile.TemporaryDirectory() as out:
            train_together(batch, study, Path(out))
            losses["together"] = first_loss(Path(out), batch[0], study)

    start = time.perf_counter()
    ratio = compare("an epoch on the GPU, 30 fits together", alone, together, work=len(batch), rounds=rounds)
    assert ratio > 1
    assert (time.perf_counter() - start) / (rounds + 1) * 50 < 600
    assert losses["together"] == pytest.approx(losses["alone"], rel=0.1)


def first_loss(out: Path, fit: Fit, study: ToyShapesStudy) -> float:
    return float((fits.work_folder(out, fit, study) / "log.csv").read_text().splitlines()[1].split(",")[2])


# ------------------------------------------------------------------------------------------ evaluation and data


def test_threshold_sweep(compare, threads):
    """100 thresholds over 1000 maps of 80 x 80."""
    threads(1)
    masks = torch.from_numpy(toyshapes.test_set().masks).float()
    heat = torch.rand(masks.shape, generator=torch.Generator().manual_seed(0)) ** 4

    def plain():
        for t in metrics.THRESHOLDS:
            binary = (heat > t).float()
            ((binary * masks).sum((1, 2)) / masks.sum((1, 2))).nanmean()
            (((1 - binary) * (1 - masks)).sum((1, 2)) / (1 - masks).sum((1, 2))).mean()

    def ours():
        return metrics.detection_curve(heat, masks)

    assert compare("100 thresholds, one core", plain, ours, rounds=3, clock=time.process_time) >= 20
    curve, some = ours(), slice(0, 1000, 50)
    exact = plain_curve(heat, masks, curve.thresholds[some])
    np.testing.assert_allclose((curve.tdr[some], curve.tar[some]), exact, rtol=0, atol=1e-12)


def test_generator(compare):
    """1000 images within a quarter of a second of one core. The plain loop draws a twentieth of them."""
    share = 20
    few = toyshapes.ToyShapesSettings(n_images=1000 // share)
    ratio = compare(
        f"{few.n_images} images drawn, one core",
        lambda: oracle(0, few),
        lambda: toyshapes.generate(0),
        work=share,
        clock=time.process_time,
    )
    seconds = statistics.median(timed(lambda: toyshapes.generate(1)) for _ in range(ROUNDS))
    assert seconds <= 0.25
    assert ratio >= 5


def timed(function) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start
