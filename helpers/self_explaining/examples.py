"""What the notebook shows before your eyes: the nets whose weights are at hand, on images that may be passed on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from helpers.artifacts import ArtifactError
from helpers.data.images import Images
from helpers.self_explaining import figures
from helpers.self_explaining.evaluate import explanations
from helpers.self_explaining.models import Net
from helpers.self_explaining.presets import CONDITIONS, KINDS, SelfExplainingStudy
from helpers.self_explaining.sets import Sets, parts, sets, source_images
from helpers.self_explaining.study import Member, Shelf, choose_shelf

SHOWN = 10  # images of the key figure
NAMES = {"clean": "clean digits", "decoy": "decoys"}
"""What the explorer calls what nets were trained on; other conditions go by their own names."""


def shown_images(study: SelfExplainingStudy) -> Images:
    """Test images that may be shown: the study's own, but for MNIST's scikit-learn's digits, which come with it: 8 x 8
    pixels, enlarged, of other writers."""
    source = parts(study.dataset)[1]
    return source_images("digits" if source == "mnist" else source, "test", study.data_dir)


def shown_sets(study: SelfExplainingStudy, confounder: str = "") -> Sets:
    """Those images as `sets.sets` has them, with a critic set; with a ``confounder`` ("decoy", "color") if asked."""
    source = parts(study.dataset)[1]
    dataset = confounder + ("digits" if source == "mnist" else source)
    return sets(study.override({"dataset": dataset, "few_shot_train_percent": 1.0}), study.first_seed)


def nets(study: SelfExplainingStudy, shelf: Shelf | None = None) -> dict[str, dict[str, Net]]:
    """By condition and kind, of the first seed, the nets whose weights are on the ``shelf`` (None: the study's). Raises
    `ArtifactError` where there are none."""
    shelf, found = shelf or choose_shelf(study), {}
    for condition in CONDITIONS:
        for kind in KINDS:
            member = Member(study, f"{condition}/{kind}", study.first_seed)
            if member.group in study.groups and shelf.weights_path(member).exists():
                found.setdefault(condition, {})[kind] = shelf.net(member)
    if not found:
        raise ArtifactError(f"no weights of these settings are in {shelf.weights}; RETRAIN=True makes them")
    return found


def first_of_each_class(y: Tensor, n: int = SHOWN) -> Tensor:
    """The rows of the first image of each class, and then of the second ones: int64 [n] or fewer."""
    order = torch.stack([(y[:row] == y[row]).sum() for row in range(len(y))]) * (int(y.max()) + 1) + y
    return order.argsort(stable=True)[:n]


def key_figure(study: SelfExplainingStudy, records: Iterable[dict[str, Any]], shelf: Shelf | None = None):
    """The study in one picture: explanations of CNN and CNN-LSX, and what they teach a critic."""
    images, found = shown_images(study), nets(study, shelf)
    rows = first_of_each_class(images.y)
    x, y, options = images.inputs(rows), images.y[rows], study.explanation.override({"norm": "sample"})
    shown = {kind: net for kind, net in next(iter(found.values())).items() if kind in ("cnn", "lsx")}
    maps = {kind: figures.as_picture(explanations(net, x, y, options, len(x))) for kind, net in shown.items()}
    return figures.key(images.preprocess.restore(x).mean(1), maps, records, len(images.classes))
