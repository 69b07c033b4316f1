"""What the notebook shows before your eyes: the nets whose weights are at hand, on images that may be passed on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from helpers.artifacts import ArtifactError
from helpers.data.images import Images
from helpers.self_explaining import figures, models
from helpers.self_explaining.evaluate import explanations
from helpers.self_explaining.models import Net
from helpers.self_explaining.presets import SelfExplainingStudy
from helpers.self_explaining.sets import Sets, parts, sets, source_images
from helpers.self_explaining.study import Member, Shelf, choose_shelf, collect, known_groups, members

SHOWN = 10  # images of the key figure
SHOWN_GROUPS = ("clean/cnn", "clean/lsx", "decoy/cnn", "decoy/lsx")
NAMES = {"clean": "clean digits", "decoy": "decoys"}
"""What the explorer calls what nets were trained on; other conditions go by their own names."""


def demonstration(study: SelfExplainingStudy) -> SelfExplainingStudy:
    """The study of what is shown: for one of MNIST, whose images may not be passed on, the same with clean digits and
    decoys of scikit-learn, one seed; another one itself."""
    if parts(study.dataset)[1] != "mnist":
        return study
    return study.override({"dataset": "digits", "few_shot_train_percent": 1.0, "groups": SHOWN_GROUPS, "seeds": 1})


def explaining(study: SelfExplainingStudy) -> dict[str, Any]:
    """How the study's networks explain, and which critic reads it: keyword arguments of the explorer."""
    rate = study.learning_rate_critic
    return {"options": study.explanation, "critic": models.pair(study.model)[1], "learning_rate_critic": rate}


def shown_images(study: SelfExplainingStudy) -> Images:
    """Its test images: scikit-learn's are 8 x 8 pixels, enlarged."""
    return source_images(parts(demonstration(study).dataset)[1], "test", study.data_dir)


def shown_sets(study: SelfExplainingStudy) -> Sets:
    """The sets of its first seed."""
    return sets(demonstration(study), study.first_seed)


def nets(study: SelfExplainingStudy, shelf: Shelf | None = None) -> dict[str, dict[str, Net]]:
    """Its networks of the first seed, by condition and kind: those whose weights are on the ``shelf`` (None: the one
    that the study asks for, where missing ones are made if it does). Raises `ArtifactError` where there are none."""
    shown, found = demonstration(study), {}
    if shelf is None:
        shelf = choose_shelf(shown)
        if shown.retrain and not all(shelf.weights_path(member).exists() for member in members(shown)):
            collect(shown.override({"reevaluate": False}))  # weights are asked for here, no numbers
    for group in sorted(shown.groups, key=known_groups().index):
        member = Member(shown, group, shown.first_seed)
        if shelf.weights_path(member).exists():
            condition, kind = group.split("/")
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
