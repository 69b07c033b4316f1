"""What TensorBoard shows of a training (spec cnn_lsx, section 9): ``tensorboard --logdir runs``.

Looking changes nothing: it takes no draw of the training and writes to no tensor of it, and with ``logging_disabled``
the weights are the same bits. Every phase has events of its own in ``tensorboard/<phase>``, whose steps are its learner
batches from 0 on, so that a run that goes on from a checkpoint replaces what it repeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from helpers import figures
from helpers.data.images import Preprocess
from helpers.self_explaining import evaluate, models, removal
from helpers.self_explaining.explanations import explain
from helpers.self_explaining.models import Net
from helpers.self_explaining.phases import PhaseName, Watcher
from helpers.self_explaining.presets import Explanation, SelfExplainingStudy
from helpers.self_explaining.sets import Sets

PREFIX: dict[PhaseName, str] = {"pretrain": "Pretraining", "joint": "JointTraining", "finetune": "Finetuning"}
CRITIC = {
    "critic_accuracy_explanations": "TrainingAccuracy",
    "critic_accuracy_test_explanations": "TestAccuracy",
    "critic_accuracy_images": "InputTrainingAccuracy",
    "critic_accuracy_test_images": "InputTestAccuracy",
}
"""Tags under ``Critic/`` of what `evaluate.critic_accuracy` measures."""

SHOWN = 4  # test images of each class, the first ones
OVERLAID = 8  # of them, with the map laid over
MEASURED = 500  # training and test images that is measured on the way; the accuracy of what is kept is of all
PENDING = 256  # steps whose values stay on the device: a wait for each would be one too many
ENLARGED = 3  # times, for the eye


class Monitor(Watcher):
    """Writes the events of one phase of a fit below ``folder``. ``seed`` is that of the fit's streams; ``first``: no
    phase came before."""

    def __init__(
        self, folder: Path, study: SelfExplainingStudy, data: Sets, phase: PhaseName, seed: int, *, first: bool = False
    ):
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.study, self.phase, self.prefix, self.seed, self.first = study, phase, PREFIX[phase], seed, first
        self.every = study.log_interval_pretraining if phase == "pretrain" else study.log_interval
        self.shown, self.data = shown(data), _few(data)
        self.pending: list[tuple[int, float, Mapping[str, Tensor]]] = []
        self.curve: Tensor | None = None
        self.maps: Tensor | None = None  # of the test images, since the last step
        self.open = lambda step: SummaryWriter(str(folder / "tensorboard" / phase), purge_step=step or None)
        self.writer: Any = None

    def begin(self, step: int, net: Net) -> None:
        self.writer = self.open(step)
        if step == 0 and self.first:
            self._show("BeforeTraining", net, 0)

    def reflected(self, losses: Tensor) -> None:
        self.curve = losses.clone()  # a graph of kernels would write its next ones over them

    def step(self, step: int, net: Net, rate: float, values: Mapping[str, Tensor]) -> None:
        self.maps = None  # the network is another one
        if step % self.every == 0:
            curve = self.curve
            ends = {} if curve is None else {"Critic/CriticLoss": curve.mean(), "Critic/LastLoss": curve[-1]}
            self.pending.append((step, rate, {**values, **ends}))
        if len(self.pending) >= PENDING:
            self._flush()
        if (step + 1) % self.study.log_interval_accuracy == 0:
            self._measure(net, step)

    def epoch(self, step: int, net: Net, row: Mapping[str, Any]) -> None:
        for name in ("ClassificationLoss", "ExplanationLoss", "TotalLoss"):
            if name in row:
                self.writer.add_scalar(f"{self.prefix}/Epoch{name}", row[name], step)
        if row["epoch"].bit_count() == 1:  # after 1, 2, 4, 8 ... epochs: a dozen times, however many there are
            self._show(f"During{self.prefix}", net, step)

    def end(self, step: int, net: Net) -> None:
        self._measure(net, step)
        self._show(f"After{self.prefix}", net, step)

    def close(self) -> None:
        if self.writer is not None:
            self._flush()
            self.writer.close()

    def _flush(self) -> None:
        """Write what has been waiting."""
        waiting, self.pending = self.pending, []
        rows = torch.stack([torch.stack(list(values.values())) for _, _, values in waiting]).tolist() if waiting else []
        for (step, rate, values), row in zip(waiting, rows, strict=True):
            for name, value in {**dict(zip(values, row, strict=True)), "LearningRate": rate}.items():
                self.writer.add_scalar(name if "/" in name else f"{self.prefix}/{name}", value, step)

    def _explained(self, net: Net) -> Tensor:
        """Maps of the test images; at the end of an epoch they are asked for up to three times."""
        if self.maps is None:
            x, y, study = self.data.test_x, self.data.test_y, self.study
            self.maps = evaluate.explanations(net, x, y, study.explanation, study.test_batch_size)
        return self.maps

    def _measure(self, net: Net, step: int) -> None:
        """Accuracies of the learner, and of a critic in the joint phase; how much of a map lies on the decoy."""
        study, data = self.study, self.data
        found = {
            f"{self.prefix}/TrainAccuracy": evaluate.accuracy(net, data.x, data.y),
            f"{self.prefix}/TestAccuracy": evaluate.accuracy(net, data.test_x, data.test_y),
        }
        if self.phase == "joint" or data.test_decoy is not None:
            maps = self._explained(net)
        if self.phase == "joint":
            measured = evaluate.critic_accuracy(
                net, data, study.explanation, maps, critic=models.pair(study.model)[1],
                learning_rate=study.learning_rate_critic, critics=1, seed=self.seed,
            )  # fmt: skip
            found |= {f"Critic/{tag}": measured[name] for name, tag in CRITIC.items()}
        if data.test_decoy is not None:
            found[f"{self.prefix}/DecoyMass"] = removal.decoy_mass(maps.sum(1), data.test_decoy)
        for tag, value in found.items():
            self.writer.add_scalar(tag, value, step)

    def _show(self, stage: str, net: Net, step: int) -> None:
        study, data = self.study, self.data
        made = pictures(net, *self.shown, study.explanation, data.preprocess)
        made["ClassMeans"] = visible(class_means(self._explained(net), data.test_y, data.n_classes))
        for name, images in made.items():
            large = images.repeat_interleave(ENLARGED, -1).repeat_interleave(ENLARGED, -2)
            self.writer.add_images(f"{stage}/{name}", large, step)
        if self.curve is not None:
            curve = learning_curve(self.curve, study.log_interval_critic)
            self.writer.add_image(f"{stage}/CriticLearningCurve", curve, step, dataformats="HWC")


# ------------------------------------------------------------------------------------------------ what is looked at


def shown(data: Sets) -> tuple[Tensor, Tensor]:
    """(x [n, C, 28, 28], y [n]): the first `SHOWN` test images of each class, class after class."""
    rows = torch.cat([(data.test_y == k).nonzero()[:SHOWN, 0] for k in range(data.n_classes)])
    return data.test_x[rows], data.test_y[rows]


def pictures(net: Net, x: Tensor, y: Tensor, options: Explanation, preprocess: Preprocess) -> dict[str, Tensor]:
    """Inputs ``x`` [n, C, H, W], their explanations for the classes ``y`` [n], and the first of those laid over them,
    as pictures float32 [n, 1 or 3, H, W] in [0, 1]; of maps that were multiplied by the input, also map / input."""
    maps = explain(net, x, y, options)
    images, heat = preprocess.restore(x), maps.sum(1, keepdim=True)
    made = {"Inputs": images, "Explanations": visible(heat)}
    if options.mode in ("input_x_gradient", "integrated_gradient", "input_x_integrated_gradient"):
        divided = torch.where(x == 0, 0, maps / torch.where(x == 0, 1, x))
        made["Gradients"] = visible(divided.sum(1, keepdim=True))
    few = images[:OVERLAID].movedim(1, -1).squeeze(-1).cpu().numpy()
    laid = figures.overlay(few, made["Explanations"][:OVERLAID, 0].cpu().numpy(), opacity=0.7, colours="jet")
    return made | {"Overlays": torch.from_numpy(laid).movedim(-1, 1).float()}


def visible(maps: Tensor) -> Tensor:
    """Maps [n, 1, H, W] as grey in [0, 1], by one factor: 0 is black, or mid-grey where some are negative."""
    scale = maps.abs().amax().clamp(min=torch.finfo(maps.dtype).tiny)
    return 0.5 + 0.5 * maps / scale if (maps < 0).any() else maps / scale


def class_means(maps: Tensor, y: Tensor, n_classes: int) -> Tensor:
    """The mean of the ``maps`` [M, C, H, W] of each class, summed over channels: [K, 1, H, W]; 0 of a class without."""
    heat = maps.sum(1, keepdim=True)
    return torch.stack([heat[y == k].sum(0) / max(1, int((y == k).sum())) for k in range(n_classes)])


def learning_curve(losses: Tensor, every: int) -> np.ndarray:
    """The ``losses`` [N] of a critic along its pass, a point each ``every`` batches and the last: uint8 [H, W, 3]."""
    figure, batches = figures.picture(4, 3), sorted({*range(0, len(losses), every), len(losses) - 1})
    with figures.style():
        axes = figure.subplots()
        axes.plot([batch + 1 for batch in batches], losses[batches].cpu(), marker=".")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="critic batch", ylabel="loss", title="Critic's learning curve")
    return np.asarray(Image.open(BytesIO(figures.png(figure))).convert("RGB"))


def _few(data: Sets) -> Sets:
    """The first images of ``data``, but the whole critic set."""
    rows = slice(MEASURED)
    decoy = None if data.test_decoy is None else data.test_decoy[rows]
    return replace(
        data, x=data.x[rows], y=data.y[rows], test_x=data.test_x[rows], test_y=data.test_y[rows], test_decoy=decoy
    )
