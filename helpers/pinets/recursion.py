"""Sufficiency, looked at closer: the same recursion with the maps as they come, not stretched to 1 (spec section 4.4).

The measure divides a model's maps by their maximum before it shows the marked part to the network. The feedback loss
acts on ``scores * x`` undivided. What the networks make of that says whether the one can be laid to the other.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from helpers.pinets import evaluate, fits
from helpers.pinets.examples import IMAGES, at_hand, load_model
from helpers.pinets.presets import ToyShapesStudy
from helpers.pinets.study import Shelf

GROUPS = ("pinet", "feedback")
COLUMNS = ["group", "fit", "peak", "accuracy", "stretched", "unstretched", "positives", "left"]


def unstretched(
    records: list[dict[str, Any]],
    study: ToyShapesStudy,
    shelf: Shelf,
    groups: tuple[str, ...] = GROUPS,
    n_images: int = IMAGES,
) -> pd.DataFrame:
    """One row for each accepted fit of the single PiNets ``groups`` whose weights are on the shelf, on the first
    ``n_images`` of the test set.

    ``peak`` is its highest score on the whole test set, which maps are divided by when stretched; ``accuracy`` on the
    images, ``stretched`` and ``unstretched`` on the marked part alone; ``positives`` the images that get a "yes" for
    the unstretched part, ``left`` the share of its scores, added up, that the network gives that part again.
    """
    test = fits.test_set(study)[:n_images]
    rows = []
    for record in at_hand([record for record in records if record["group"] in groups], shelf):
        model, peak = load_model(record, study, shelf), record["test"]["scale"]
        logits, heat = evaluate.explain(model, evaluate.own_scores, test.x)
        part = heat[:, None] * test.x
        again, seen = evaluate.explain(model, evaluate.own_scores, part)
        stretched = evaluate.predict(model, part / peak if peak > 0 else part)
        rows.append({
            "group": record["group"],
            "fit": record["fit"],
            "peak": peak,
            "accuracy": evaluate.accuracy(logits, test.y),
            "stretched": evaluate.accuracy(stretched, test.y),
            "unstretched": evaluate.accuracy(again, test.y),
            "positives": int(torch.count_nonzero(again > 0)),
            "left": float(seen.double().sum() / heat.double().sum().clamp_min(1e-300)),
        })  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)
