"""Maps of single images for the example figures: of the first accepted fit of each group, not of the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from helpers.pinets import evaluate, fits
from helpers.pinets.fits import Fit, Tensors
from helpers.pinets.models import CNN, Ensemble, PiNet
from helpers.pinets.presets import GROUPS, ToyShapesStudy
from helpers.pinets.study import Shelf

KEY_IMAGE = 13  # of the test set: one triangle among other shapes, so that a glance tells
IMAGES = 50  # of the test set, for what is computed anew in each fit: a pass takes a sixth of a second


@dataclass(frozen=True)
class Example:
    """One model's maps of some images. ``heat`` float32 [n, H, W], divided by the model's maximum over the test set;
    ``threshold`` the oracle's; ``logits`` [n]; ``record`` what is known of the fit."""

    label: str
    heat: np.ndarray
    logits: np.ndarray
    threshold: float
    record: dict[str, Any]

    @property
    def naive_score(self) -> float:
        return self.record["test"]["naive"]["score"]

    @property
    def optimal_score(self) -> float:
        return self.record["test"]["optimal"]["score"]

    @property
    def recursive_accuracy(self) -> float:
        return self.record["test"]["recursive"]["accuracy"]


def load_model(record: dict[str, Any], study: ToyShapesStudy, shelf: Shelf) -> PiNet | CNN | Ensemble:
    """The network of a record: of an ensemble's record, the ensemble."""
    group, seed = record["fit"].split("/")
    if "members" in record["training"]:
        return shelf.ensemble((Fit(group, member, int(seed)) for member in record["training"]["members"]), study)
    return shelf.model(Fit(group, int(seed)), study)


def at_hand(records: list[dict[str, Any]], shelf: Shelf) -> list[dict[str, Any]]:
    """The records of the accepted fits whose weights are on the ``shelf``."""
    return [record for record in records if record["training"]["accepted"] and shelf.at_hand(record)]


def first_accepted(records: list[dict[str, Any]], shelf: Shelf, *groups: str) -> dict[str, Any] | None:
    """The first accepted fit whose weights are on the ``shelf``, of the first of ``groups`` with one; else None."""
    shown = at_hand(records, shelf)
    return next((record for group in groups for record in shown if record["group"] == group), None)


def identity_errors(
    records: list[dict[str, Any]], study: ToyShapesStudy, shelf: Shelf, n_images: int = IMAGES
) -> pd.DataFrame:
    """`evaluate.identity_error` of each accepted PiNet and ensemble whose weights are on the shelf, on the first
    ``n_images`` of the test set: one row (group, fit, identity_error) a fit."""
    x = fits.test_set(study).x[:n_images]
    rows = [
        (record["group"], record["fit"], evaluate.identity_error(load_model(record, study, shelf), x))
        for record in at_hand([record for record in records if record["group"] != "cnn"], shelf)
    ]
    return pd.DataFrame(rows, columns=["group", "fit", "identity_error"])


def positives(test: Tensors, *ranks: int) -> Tensors:
    """Of the images that show the target, those of these ranks: the first is 0. Ranks beyond the last are left out."""
    found = test.y.nonzero()[:, 0]
    return test[found[[rank for rank in ranks if rank < len(found)]]]


def maps(
    records: list[dict[str, Any]], study: ToyShapesStudy, shelf: Shelf, x: Tensor, groups: Sequence[str] = GROUPS
) -> dict[str, Example]:
    """Of each of the ``groups`` that the study has the first accepted fit with weights, on the images ``x``
    [n, 1, H, W]."""
    found = {}
    for group in filter(set(groups).__contains__, study.groups):
        if (record := first_accepted(records, shelf, group)) is None:
            continue
        model = load_model(record, study, shelf)
        logits, heat = evaluate.explain(model, evaluate.default_explainer(model), x)
        report = record["test"]
        found[group] = Example(
            label=getattr(study.group, group).label,
            heat=evaluate.normalise(heat, report["scale"]).clamp(0, 1).numpy(),
            logits=logits.numpy(),
            threshold=report["optimal"]["threshold"],
            record=record,
        )
    return found
