"""Speed of the ToyShapes study against plain implementations, as ratios measured in one run (`conftest.compare`): `make
bench`. The bounds are asserted."""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROUNDS
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

THREADS = 2  # the machine


# -------------------------------------------------------------------------------------------------- training


def study_of(epochs: int, n_images: int, device: str = "cpu") -> ToyShapesStudy:
    """The paper's PiNet, and its batches of 32 and three validations an epoch; in bfloat16 where that is faster."""
    training = {"epochs": epochs, "precision": "auto"}
    changes = {"data.n_images": n_images} | {f"group.pinet.training.{name}": value for name, value in training.items()}
    return ToyShapesStudy(device=device).override(changes)


def our_training(seed: int = 0, threads: int = THREADS) -> None:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as out:
        fits.train(Fit("pinet", seed), study_of(epochs=2, n_images=400), Path(out))


def plain_training() -> float:
    """The same as one would write it down, as deterministic: float32, PyTorch's own layers and memory format."""
    study = study_of(epochs=2, n_images=400)
    train, validation = fits.replication(study, 0)
    model = fits.build(study.group.pinet.model, study.data.image_size)
    for index, layer in enumerate(model.decoder):
        if isinstance(layer, UpConv):
            model.decoder[index] = nn.ConvTranspose2d(layer.in_channels, layer.out_channels, 2, stride=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.9, 0.95))
    best = 0.0
    for _ in range(2):
        for step, rows in enumerate(torch.randperm(len(train)).split(32), 1):
            batch = train[rows]
            loss = F.binary_cross_entropy_with_logits(model(batch.x).logits, batch.y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step in (3, 6, 9):
                model.eval()
                with torch.no_grad():
                    logits = torch.cat([model(x).logits for x in validation.x.split(40)])
                best = max(best, float(((logits > 0) == (validation.y > 0)).float().mean()))
                model.train()
    return best


def test_training(compare, threads):
    """Three times the plain loop asks for a CPU with AMX, which trains in bfloat16; others gain by the layout alone."""
    threads(THREADS)
    least = 3 if runtime.fast_dtype(torch.device("cpu")) == torch.bfloat16 else 1.3
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert compare("2 epochs of a PiNet, 2 threads", plain_training, our_training, rounds=3) >= least
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: fits are trained together on one")
def test_training_together_on_a_gpu(compare):
    """30 PiNets in minutes: 50 epochs of them stay below ten."""
    batch = [Fit("pinet", seed) for seed in range(30)]
    study = study_of(epochs=1, n_images=1000, device="cuda")
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
