"""What a learner and its critics are trained and tested on, by the names of the original (spec cnn_lsx, section 5)."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import runtime
from helpers.config import ConfigError
from helpers.data import colours, decoys
from helpers.data.images import Images, Preprocess, load
from helpers.self_explaining.models import SIDE
from helpers.self_explaining.presets import SelfExplainingStudy

SOURCES = {"mnist": "MNIST", "digits": "Digits", "fashionmnist": "FashionMNIST", "chestmnist": "ChestMNIST"}
DIGITS = Preprocess(size=SIDE, mean=(0.1307,), std=(0.3081,))  # MNIST's mean and deviation
MARGIN = 4  # pixels
NORMALISATION = {"mnist": DIGITS, "digits": DIGITS}  # other data sets have their own

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sets:
    """Everything in memory as float32 inputs. The learner's ``x`` [N, C, 28, 28] and ``y`` int64 [N]; ``test_x`` and
    ``test_y`` alike; the critic's batches ``critic_x`` [n_batches, b, C, 28, 28] and ``critic_y`` [n_batches, b].

    ``critic_rows`` int64 [n_batches, b] are the places of the critic's images in the training file, or in the test file
    where they were taken from it. ``test_decoy`` bool [M, 28, 28] are the pixels of the decoys of the test images,
    ``class_weights`` float32 [K] those of the cross-entropy; ``clamped`` says that the critic set is smaller than asked
    for. ``preprocess.restore`` makes pixels of inputs.
    """

    x: Tensor
    y: Tensor
    critic_x: Tensor
    critic_y: Tensor
    critic_rows: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    preprocess: Preprocess
    test_decoy: Tensor | None = None
    class_weights: Tensor | None = None
    clamped: bool = False

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        return self.x.shape[1]

    def to(self, where: torch.device | str) -> Sets:
        """The same on another device."""
        tensors = {name: value.to(where) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


@dataclass(frozen=True)
class Pictures:
    """A whole data set, and ``clean``: the training images without the confounder, or, if ``from_test``, test images
    whose confounder says nothing. ``test_decoy`` bool [M, 28, 28] are the pixels of the test images' decoys."""

    train: Images
    test: Images
    clean: Images
    from_test: bool = False
    test_decoy: Tensor | None = None


def sets(study: SelfExplainingStudy, seed: int) -> Sets:
    """The sets of one run: what ``study.dataset`` names, cut to ``few_shot_train_percent``, with the critic set drawn.

    The training set is the first ``floor(p n)`` images of the file; the test set is always complete. The critic reads
    images drawn from that training set, without replacement and once for the run; with ``sep_critic_set`` the learner
    does not read them. Of the confounded sets, ``-unconf`` gives the critic the clean version of such images (of
    coloured ones: test images, which are tested on no more), and ``-unconf-baseline`` adds those to what the learner
    reads instead; it knows no ``sep_critic_set``.

    A critic set that is larger than the images there are is clamped, with a warning. Raises `ConfigError` where even
    that leaves nothing, and for data as `helpers.data.images.load` does.
    """
    pictures, (_, _, variant) = _pictures(study, seed), parts(study.dataset)
    n = math.floor(study.few_shot_train_percent * len(pictures.train) + 1e-9)  # 23 / 1297 * 1297 is 22.999...
    if n < 1:
        raise ConfigError(
            f"few_shot_train_percent={study.few_shot_train_percent} of {len(pictures.train)} images leaves none: "
            "it is a fraction"
        )
    unconfounded, baseline = variant.startswith("unconf"), variant.endswith("baseline")
    from_test = unconfounded and pictures.from_test
    apart = from_test or (study.sep_critic_set and not baseline)
    available = len(pictures.test) if from_test else n
    n_batches, size = critic_shape(study.n_critic_batches, study.batch_size_critic, available, apart)
    rows = torch.randperm(available, generator=runtime.generator(seed, "critic set"))[: n_batches * size]
    critic = (pictures.clean if unconfounded else pictures.train)[rows]

    taken = torch.zeros(available, dtype=torch.bool)
    taken[rows] = True
    learner = pictures.train[:n] if from_test or not apart else pictures.train[:n][~taken]
    test = pictures.test[~taken] if from_test else pictures.test
    if baseline:
        learner = replace(learner, x=torch.cat([learner.x, critic.x]), y=torch.cat([learner.y, critic.y]))
    return Sets(
        x=learner.inputs(),
        y=learner.y,
        critic_x=critic.inputs().unflatten(0, (n_batches, size)),
        critic_y=critic.y.view(n_batches, size),
        critic_rows=rows.view(n_batches, size),
        test_x=test.inputs(),
        test_y=test.y,
        classes=test.classes,
        preprocess=test.preprocess,
        test_decoy=pictures.test_decoy,
        class_weights=class_weights(pictures.train.y, len(test.classes), study.class_weights),
        clamped=(n_batches, size) != (study.n_critic_batches, study.batch_size_critic),
    )


def parts(dataset: str) -> tuple[str, str, str]:
    """(confounder, source, variant) of a data set's name: ``"decoymnist-unconf"`` is ``("decoy", "mnist", "unconf")``,
    ``"mnist"`` is ``("", "mnist", "")``."""
    name, _, variant = dataset.partition("-")
    confounder = next((kind for kind in ("decoy", "color") if name.startswith(kind)), "")
    return confounder, name.removeprefix(confounder), variant


def critic_shape(n_batches: int, size: int, available: int, apart: bool) -> tuple[int, int]:
    """(batches, images a batch) of the critic set: what is asked for where it fits into the ``available`` images, else
    the most whole batches that do, and one smaller batch if none does.

    If the images are then missing elsewhere (``apart``), fitting means to leave some, and half of them if clamped.
    Raises `ConfigError` if nothing can be left.
    """
    if n_batches * size <= available - apart:  # at least one is left to the others
        return n_batches, size
    room = available // 2 if apart else available
    if room < 1:
        raise ConfigError(f"{available} image(s) cannot be shared between the critic and the others")
    smaller = min(size, room)
    fewer = min(n_batches, room // smaller)
    asked, taken = f"{n_batches} x {size}", f"{fewer} x {smaller}"
    log.warning("the critic set of %s images is clamped to %s: there are %d", asked, taken, available)
    return fewer, smaller


def class_weights(y: Tensor, n_classes: int, kind: str) -> Tensor | None:
    """float32 [K] for labels ``y`` [N]: "frequency" n_c / n, as the original has it, "inverse" n / (K n_c), which gives
    every class the same say, or "none". Classes that do not occur weigh nothing."""
    if kind == "none":
        return None
    share = y.bincount(minlength=n_classes) / len(y)
    return share if kind == "frequency" else torch.where(share > 0, 1 / (n_classes * share), 0)


def _pictures(study: SelfExplainingStudy, seed: int) -> Pictures:
    """What ``study.dataset`` names, whole, 28 x 28, with its confounder."""
    confounder, source, _ = parts(study.dataset)
    train, test = (source_images(source, split, study.data_dir) for split in ("train", "test"))
    if confounder == "decoy":
        tested = decoys.paint(test, seed, test=True)
        painted = decoys.paint(train, seed, test=False).images
        return Pictures(painted, tested.images, clean=train, test_decoy=tested.mask)
    if confounder == "color":
        channels = study.color_channels
        coloured = colours.colour(train, seed, test=False, channels=channels).images
        clean = colours.colour(test, seed, test=True, channels=channels).images  # "reversed" still tells the label
        tested = colours.colour(test, seed, test=True, channels=channels, test_colours=study.color_test).images
        return Pictures(coloured, tested, clean, from_test=True)
    return Pictures(train, test, clean=train)


def source_images(name: str, split: str, data_dir: str) -> Images:
    """A split of one of `SOURCES`, its pixels as stored, or where they are fewer than 28 x 28, enlarged (bilinear) to
    20 x 20 with a margin around: so are MNIST's digits."""
    images = load(SOURCES[name], split, SIDE, data_dir or None)
    preprocess, x = NORMALISATION.get(name, images.preprocess), images.x
    if x.shape[2:] != (SIDE, SIDE):
        inner = preprocess.override({"size": SIDE - 2 * MARGIN})
        x = F.pad(inner.fit(inner.unit(x)), [MARGIN] * 4)
    return replace(images, x=x, preprocess=preprocess)
