"""The classifiers of the causal graphs study: how one is trained, kept and loaded (spec explainnn, section 7.1).

A part of the training images is held out and chooses the epoch whose weights are kept; the test images are met once, by
the weights as they are kept. On the command line:

    python -m helpers.causal_graphs.fits --model LeNet --dataset MNIST --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import logging
import math
import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import __version__, artifacts, config, runtime, training
from helpers.causal_graphs import batches, models, shortcuts
from helpers.causal_graphs.presets import Training
from helpers.data import images as data
from helpers.data.images import Images, Preprocess

STUDY = "causal_graphs"
DIGITS = Training(epochs=8, schedule="cosine", learning_rate=3e-3)
PHOTOGRAPHS = Training(  # half an hour of one core for ResNet18 on 2,000 images
    size=96, batch_size=32, epochs=40, schedule="cosine", warmup=2, weight_decay=0.05, smoothing=0.1,
    augment="crop-flip", validation=0.1,
)  # fmt: skip
SMALLER = {"size": 64, "epochs": 30}  # for ConvNeXt, which takes three times as long

log = logging.getLogger(__name__)


def recommended(model_name: str, dataset_name: str) -> Training:
    """The settings to train a network with on a data set: those of the nearest kind that were tried."""
    if dataset_name in ("MNIST", "Digits", "CIFAR10"):
        return DIGITS
    if model_name == "LeNet":  # takes 32 pixels a side, of photographs too
        return DIGITS.override({"size": 32})
    return PHOTOGRAPHS.override(SMALLER) if model_name == "ConvNeXt" else PHOTOGRAPHS


@dataclass(frozen=True)
class Fit:
    """One training run: ``name`` is its path in every folder."""

    model: str
    dataset: str
    seed: int
    training: Training

    @property
    def name(self) -> str:
        """``MNIST/LeNet/0``, or ``MNIST/LeNet-shortcut3/0`` with a shortcut planted on class 3."""
        planted = f"-shortcut{self.training.shortcut_class}" if self.training.shortcut else ""
        return f"{_slug(self.dataset)}/{_slug(self.model)}{planted}/{self.seed}"

    @property
    def preprocess(self) -> Preprocess:
        return data.default_preprocess(self.dataset, self.training.size)

    def digest(self) -> str:
        """Changes with every setting that the fit's weights depend on."""
        parts = {"training": self.training.model_dump(mode="json"), "preprocess": self.preprocess.model_dump()}
        return config.digest(parts | {"model": self.model, "dataset": self.dataset})


def weights_path(out: Path, fit: Fit) -> Path:
    return out / "weights" / f"{fit.name}.safetensors"


def work_folder(out: Path, fit: Fit) -> Path:
    """Checkpoint and log of a fit; a checkpoint of other settings is never taken up."""
    return out / "work" / fit.name / fit.digest()


# -------------------------------------------------------------------------------------------------- training


def train(
    fit: Fit,
    out: Path,
    *,
    device: runtime.Device = "auto",
    data_dir: str | Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Train one fit and keep its best weights (half precision) as ``out/weights/<name>.safetensors``; return the file's
    metadata. Continues from the checkpoint of a run that was cut off, and returns at once where the file is there.

    A fit's bits depend on the number of threads, and on no other setting of the machine. Raises `ArtifactError` if the
    file there is of other settings, and `ConfigError` and `DownloadError` as `helpers.data.images.load` does.
    """
    path, options = weights_path(out, fit), fit.training
    if path.exists():
        return load(path, fit)[1]
    artifacts.ensure_writable(path.parent)
    fabric = training.fabric(device, options.precision)
    images = data.load(fit.dataset, "train", batches.stored_size(fit.preprocess.size, options), data_dir)
    dataset = batches.training_set(images, fit.preprocess, options, fit.seed, fabric.device)
    model = initialise(fit, images).to(memory_format=torch.channels_last)
    optimizer = _optimizer(model, options)
    with runtime.deterministic():
        outcome = training.train(
            model,
            optimizer,
            partial(_loss, smoothing=options.smoothing),
            dataset.batches,
            fabric=fabric,
            epochs=options.epochs,
            seed=runtime.stream(fit.seed, "fit"),
            evaluate=dataset.validator(),
            scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate, training=options)),
            folder=work_folder(out, fit),
            progress=fit.name if progress else None,
        )
    metadata = _facts(fit, images) | {
        "validation_accuracy": outcome.score,
        "epoch": outcome.epoch,
        "seconds": round(outcome.seconds, 1),
        "precision": fabric._precision.precision,
        "threads": torch.get_num_threads(),
    }
    test = data.load(fit.dataset, "test", options.size, data_dir)
    return _keep(fit, out, outcome.state, metadata, test, fabric.device)


def initialise(fit: Fit, images: Images) -> nn.Module:
    """The fit's network before its first step, for images of this kind."""
    with runtime.seeded(fit.seed, "init"):
        return models.build(fit.model, images.in_channels, len(images.classes))


def rate(epoch: int, training: Training) -> float:
    """What the learning rate is multiplied with in ``epoch`` (from 0): a rise in equal steps over the warm-up, then
    half a cosine that would reach 0 after the last epoch, or 1."""
    if epoch < training.warmup:
        return (epoch + 1) / (training.warmup + 1)
    if training.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (epoch - training.warmup) / (training.epochs - training.warmup)))


def _optimizer(model: nn.Module, options: Training) -> torch.optim.Optimizer:
    """Adam; the decay is decoupled, and only of matrices and kernels: biases, norms and scales are left alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.numel() > max(p.shape, default=1)]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if not any(p is d for d in decayed)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], options.learning_rate, fused=True)


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor], smoothing: float) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=smoothing)


# ------------------------------------------------------------------------------------------- kept and loaded


def _facts(fit: Fit, images: Images) -> dict[str, Any]:
    return {
        "fit": fit.name,
        "settings": fit.digest(),
        "model": fit.model,
        "dataset": fit.dataset,
        "seed": fit.seed,
        "training": fit.training.model_dump(mode="json"),
        "preprocess": fit.preprocess.model_dump(mode="json"),
        "in_channels": images.in_channels,
        "classes": list(images.classes),
        "version": __version__,
        "torch": torch.__version__,
    }


def _keep(
    fit: Fit, out: Path, state: dict[str, Tensor], metadata: dict[str, Any], test: Images, where: torch.device
) -> dict[str, Any]:
    """Test the weights as they are kept, in half precision, and write them; return the whole metadata."""
    state = artifacts.half_precision(state)
    model = models.build(fit.model, test.in_channels, len(test.classes))
    artifacts.load_state(model, state)
    model = model.eval().to(where, memory_format=torch.channels_last)
    metadata |= {"accuracy": accuracy(model, test), "test_images": len(test)}
    if fit.training.shortcut:
        metadata["shortcut"] = shortcut_report(model, test, fit.training.shortcut_class)
    artifacts.save_tensors(weights_path(out, fit), state, metadata)
    (work_folder(out, fit) / "checkpoint.safetensors").unlink(missing_ok=True)
    return metadata


def load(path: Path, fit: Fit | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """(the trained network in eval mode, the file's metadata). With ``fit`` only that one, with its settings, will do.

    Raises `ArtifactError` if the file is missing, damaged, or of another fit or other settings.
    """
    state, metadata = artifacts.load_tensors(path)
    if not {"fit", "settings", "model", "in_channels", "classes"} <= set(metadata):
        raise artifacts.ArtifactError(f"{path} was not written by this trainer: its metadata name no fit")
    if fit and metadata["fit"] != fit.name:
        held = metadata["fit"]
        raise artifacts.ArtifactError(
            f"{path} holds the fit {held!r}, not {fit.name!r}: it was swapped; restore it, or delete it and run again"
        )
    if fit and metadata["settings"] != fit.digest():
        raise artifacts.ArtifactError(
            f"{path} was trained with other settings; train with these ones into another folder, or delete it"
        )
    model = models.build(metadata["model"], metadata["in_channels"], len(metadata["classes"]))
    artifacts.load_state(model, state)
    return model.eval(), metadata


def predict(model: nn.Module, images: Images, marked: bool = False, chunk: int = 250) -> Tensor:
    """int64 [N]: the class of the highest logit of each image, with the shortcut's mark on it if ``marked``."""
    where = next(model.parameters()).device
    inputs = partial(shortcuts.marked_inputs, images) if marked else images.inputs
    with torch.inference_mode():
        parts = [model(inputs(rows).to(where)).argmax(1).cpu() for rows in torch.arange(len(images)).split(chunk)]
    return torch.cat(parts)


def accuracy(model: nn.Module, images: Images, marked: bool = False) -> float:
    """Share of ``images`` that ``model`` (in eval mode) puts into their class."""
    return float((predict(model, images, marked) == images.y).double().mean())


def shortcut_report(model: nn.Module, test: Images, target: int) -> dict[str, float]:
    """How far a network has fallen for the mark, on the test images of all classes but ``target``: ``clean``, its
    accuracy without the mark, ``marked``, with it, and ``taken``, the share that it then takes for ``target``."""
    others = test[test.y != target]
    predicted = predict(model, others, marked=True)
    return {
        "clean": accuracy(model, others),
        "marked": float((predicted == others.y).double().mean()),
        "taken": float((predicted == target).double().mean()),
    }


def _slug(name: str) -> str:
    """A name for a file: the last part of a path, and of that what every file system takes."""
    return re.sub(r"[^\w.-]+", "-", name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]).strip("-.") or "data"


# ------------------------------------------------------------------------------------------------ command line


def main(arguments: list[str] | None = None) -> int:
    """Train what the arguments ask for, one seed after the other; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    given = _parser().parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    try:
        changes = {name: config.literal(value) for name, value in given.set}
        if given.shortcut_class is not None:
            changes |= {"shortcut": "corner", "shortcut_class": given.shortcut_class}
        options = recommended(given.model, given.dataset).override(changes)
        for seed in given.seeds:
            fit = Fit(given.model, given.dataset, seed, options)
            facts = train(fit, given.out, device=given.device, data_dir=given.data_dir, progress=sys.stderr.isatty())
            log.info(
                "%s: test accuracy %.4f, validation accuracy %.4f (epoch %d), %.0f s%s",
                fit.name, facts["accuracy"], facts["validation_accuracy"], facts["epoch"], facts["seconds"],
                f", {facts['shortcut']}" if "shortcut" in facts else "",
            )  # fmt: skip
    except config.PlainError as error:
        log.error("%s", error)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m helpers.causal_graphs.fits", description="train classifiers")
    add = parser.add_argument
    add("--model", default="LeNet", help=f"{', '.join(models.MODELS)} or module:factory (%(default)s)")
    add("--dataset", default="MNIST", help="MNIST, Digits, CIFAR10, Imagenette(Full) or a folder (%(default)s)")
    add("--seeds", type=int, nargs="+", default=[0], help="one fit a seed (0)")
    add("--shortcut-class", type=int, help="mark most training images of this class")
    add("--set", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a training setting: epochs 3")
    add("--out", type=Path, default=config.ROOT / "runs" / STUDY, help="folder of weights and checkpoints")
    add("--data-dir", help="folder of the data sets, if not SIGHTLINE_DATA")
    add("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    add("--threads", type=int, help="of the CPU; a fit's bits depend on it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
