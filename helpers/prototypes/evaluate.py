"""What is measured of a network of the prototypes study, on test images: one number a metric.

Accuracies are in % of the images, receptive fields and boxes in % of an image's pixels. What is shown by noise is
asked of the first images of each class in turn, and of the prototypes that add most to the predicted class.
"""

from __future__ import annotations

import torch

from helpers.prototypes import info, projection, steps
from helpers.prototypes.batches import Batches
from helpers.prototypes.explanations import explain, hidden_by_upsampling, proof
from helpers.prototypes.models import Network, ProtoNet
from helpers.prototypes.presets import Loss
from helpers.prototypes.receptive_field import ReceptiveField, receptive_field
from helpers.prototypes.sets import Part, Sets

VERSION = 2  # raise it when what is computed changes
SHOWN = 10  # images whose evidence is put to the proof
TOP = 3  # prototypes of each
CHANGED = 0.01  # of a similarity, the least change that counts


def measure(model: Network, data: Sets, loss: Loss, seed: int) -> dict[str, float]:
    """By metric: accuracy, receptive fields, costs; of a `ProtoNet` also what its prototypes come from and what decides
    about their similarities. The test images are loaded here."""
    size, where = data.train.input_size, next(model.parameters()).device
    field = receptive_field(model.features, size)
    batches = Batches(size=64, seed=seed, device=where)
    found = steps.evaluate(model, batches.plain(data.test), loss)
    facts = info.model_info(model, size)
    measured = {
        "accuracy": 100 * found["accuracy"],
        "macro_accuracy": 100 * found["weighted_accuracy"],
        "mean_rf": field.mean_percent,
        "max_rf": field.max_percent,
        "million_macs": facts["macs"] / 1e6,
        "million_parameters": facts["total_params"] / 1e6,
    }
    if isinstance(model, ProtoNet):
        measured |= provenance(model, data.train) | grounding(model, data.test, field, seed)
    return measured


def provenance(model: ProtoNet, train: Part) -> dict[str, float]:
    """``patch_difference``: the largest of any component of a prototype from that of the training patch that it is;
    ``repeated_images``: how many prototypes come from the image of another one; ``unassigned``: how many from none."""
    known, patches = projection.source_patches(model, train)
    difference = (patches - model.prototypes.detach()[known].flatten(1)).abs()
    return {
        "patch_difference": float(difference.max()) if len(known) else 0.0,
        "repeated_images": float(len(known) - len(model.source_image[known].unique())),
        "unassigned": float(len(model.prototypes) - len(known)),
    }


def grounding(model: ProtoNet, test: Part, field: ReceptiveField, seed: int) -> dict[str, float]:
    """``proof_outside``: the largest change of a similarity at its cell when all pixels outside its box are noise;
    ``proof_inside``: the median one when those inside are, in % of it; ``hidden_share``: the share, in %, of prototypes
    that change by more than 1 % when the pixels are noise that lie in the box and outside of what up-sampling draws;
    ``hidden_change``: the median of these changes, in %; ``box`` and ``drawn_box``: mean sizes, in %."""
    height, width = field.input_size
    outside, inside, hidden, sizes = [], [], [], []
    for row in _by_turns(test.labels)[:SHOWN].tolist():
        x = test.inputs(torch.tensor([row]))[0]
        for evidence in explain(model, x, field, top=TOP).evidence:
            proved = proof(model, x, evidence.prototype, field, seed=seed)
            dark = hidden_by_upsampling(model, x, evidence.prototype, field, seed=seed)
            scale = max(abs(proved.similarity), 1e-6)
            outside.append(proved.outside)
            inside.append(proved.inside / scale)
            hidden.append(dark.change / scale)
            sizes.append([_area(box) / (height * width) for box in (evidence.box, evidence.upsampled_box)])
    box, drawn = torch.tensor(sizes).mean(0).tolist()
    changes = torch.tensor(hidden)
    return {
        "proof_outside": max(outside),
        "proof_inside": 100 * float(torch.tensor(inside).median()),
        "hidden_share": 100 * float((changes > CHANGED).float().mean()),
        "hidden_change": 100 * float(changes.median()),
        "box": 100 * box,
        "drawn_box": 100 * drawn,
    }


def _by_turns(labels: torch.Tensor) -> torch.Tensor:
    """Rows so that the classes take turns: the first image of each, then the second of each."""
    turn = torch.zeros_like(labels)
    for label in labels.unique():
        own = (labels == label).nonzero().flatten()
        turn[own] = torch.arange(len(own))
    return (turn * (int(labels.max()) + 1) + labels).argsort(stable=True)


def _area(box: tuple[int, int, int, int]) -> int:
    y0, y1, x0, x1 = box
    return (y1 - y0) * (x1 - x0)
