"""This looks like that: one prediction, the prototypes that it is the sum of, and what of it the pixels prove.

    seen = explain(net, x, field)                          # of the predicted class, greatest contribution first
    proved = proof(net, x, seen.evidence[0].prototype, field)
    proved.outside                                         # 0: nothing outside the box has a say
    hidden_by_upsampling(net, x, seen.evidence[0].prototype, field).change

Boxes are those of receptive fields: exact, and the same for an image that is explained and for the training images that
prototypes come from, as both have the same size. All nets are asked in eval mode, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import pandas as pd
import torch
from torch import Tensor

from helpers import runtime
from helpers.attribution.base import evaluating
from helpers.config import ConfigError, suggest
from helpers.prototypes.mapping import boxes, cells, in_box, upsample_box
from helpers.prototypes.models import Output, ProtoNet
from helpers.prototypes.receptive_field import ReceptiveField

ORDERS = ("contribution", "similarity")

Box = tuple[int, int, int, int]  # y0, y1, x0, x1, half-open


@dataclass(frozen=True)
class Evidence:
    """One prototype's share in a logit."""

    prototype: int
    contribution: float  # what it adds to the logit
    similarity: float  # at its best cell
    cell: tuple[int, int]  # row and column of that cell
    box: Box  # all pixels of the image that the similarity depends on
    upsampled_box: Box  # what ProtoPNet draws instead
    source_image: int  # official training index; -1 before the first projection
    source_cell: tuple[int, int]
    source_box: Box | None  # the patch of that training image that the prototype is; None before the first projection


@dataclass(frozen=True)
class Explanation:
    """The logit of a class as a sum."""

    predicted: int  # the class of the highest logit
    explained: int  # the class whose logit this is about
    logit: float
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class Proof:
    """How far a prototype's similarity moves, at most, over draws of noise for pixels outside or inside its box."""

    cell: tuple[int, int]  # the best cell of the image as it is
    box: Box
    similarity: float  # there
    outside: float  # change at that cell, if all pixels outside the box are noise: 0
    inside: float  # the same for the pixels inside
    elsewhere: float  # rise of the greatest similarity of all cells, if pixels outside are noise: others may match now


@dataclass(frozen=True)
class Hidden:
    """What ProtoPNet's box leaves out: pixels that a similarity depends on, outside of what is drawn."""

    box: Box  # of the receptive field
    upsampled_box: Box
    share: float  # of the pixels of the receptive field that lie outside the up-sampled box
    similarity: float  # at the best cell
    change: float  # of that, at most, if those pixels are noise
    mean_change: float  # on average over the draws


class Part(Protocol):
    """A split that can be looked at (`helpers.prototypes.sets.Part`)."""

    indices: Tensor

    def pixels(self, rows: Tensor) -> Tensor: ...


def explain(
    model: ProtoNet,
    x: Tensor,
    field: ReceptiveField,
    *,
    class_index: int | None = None,
    top: int | None = None,
    by: Literal["contribution", "similarity"] = "contribution",
) -> Explanation:
    """The logit of ``class_index`` (None: of the predicted class) for an image x [3, H, W], as its prototypes.

    All prototypes with a weight in that logit, those with the highest ``by`` first, or the first ``top`` of them;
    without ``top`` their contributions sum up to the logit. Raises `ConfigError` for a class that there is not, an
    unknown order or a ``top`` below 1, ``ValueError`` for an image that is not the field's.
    """
    if by not in ORDERS:
        raise ConfigError(f"unknown order {by!r}: {suggest(by, ORDERS)}")
    if top is not None and top < 1:
        raise ConfigError(f"top must be at least 1, not {top}")
    if class_index is not None and not 0 <= class_index < model.n_classes:
        raise ConfigError(f"no class {class_index}: there are 0 to {model.n_classes - 1}")
    with torch.no_grad():
        output = _output(model, x, field)
        predicted = int(output.logits[0].argmax())
        explained = predicted if class_index is None else class_index
        weights, similarity = model.weights[explained], output.similarities[0]
        contribution = similarity * weights
        order = (contribution if by == "contribution" else similarity).argsort(descending=True, stable=True)
        chosen = order[weights[order] != 0][:top]
        at = output.cells[0, chosen]
        drawn = upsample_box(model.similarity(output.distances[:, chosen]), field.input_size)[0]
        images, found = model.source_image[chosen].tolist(), model.source_cell[chosen].tolist()
    columns = (chosen, contribution[chosen], similarity[chosen], cells(at, field), boxes(at, field), drawn)
    evidence = tuple(
        Evidence(*row[:3], *map(tuple, row[3:]), image, tuple(cell), field.box(*cell) if image >= 0 else None)
        for *row, image, cell in zip(*(c.tolist() for c in columns), images, found, strict=True)
    )
    return Explanation(predicted, explained, float(output.logits[0, explained]), evidence)


def proof(model: ProtoNet, x: Tensor, prototype: int, field: ReceptiveField, *, seed: int = 0, draws: int = 4) -> Proof:
    """That a prototype's similarity at its best cell is about the pixels in the box of x [3, H, W], and no others: they
    are replaced by normal noise (mean 0, deviation 1 in normalised pixels), outside and inside, ``draws`` times.

    Raises `ConfigError` for a prototype that there is not or no draws, ``ValueError`` for an image of another size.
    """
    similarity, flat = _similarity(model, x, prototype, field)
    box, before = _tuple(boxes(flat, field)), float(similarity.max())
    inside = in_box(box, x)
    outer = _under_noise(model, x, prototype, field, ~inside, seed, draws)
    inner = _under_noise(model, x, prototype, field, inside, seed, draws)
    return Proof(
        cell=_tuple(cells(flat, field)),
        box=box,
        similarity=before,
        outside=float((outer[:, flat] - before).abs().max()),
        inside=float((inner[:, flat] - before).abs().max()),
        elsewhere=float((outer.max() - before).clamp(min=0)),
    )


def hidden_by_upsampling(
    model: ProtoNet, x: Tensor, prototype: int, field: ReceptiveField, *, seed: int = 0, draws: int = 4
) -> Hidden:
    """How much a prototype's similarity at its best cell depends on pixels of its receptive field that the up-sampled
    box does not show: those are replaced by noise, as in `proof`, which lists the errors."""
    similarity, flat = _similarity(model, x, prototype, field)
    box, before = _tuple(boxes(flat, field)), float(similarity.max())
    drawn = _tuple(upsample_box(similarity[None, None], field.input_size)[0, 0])
    inside = in_box(box, x)
    hidden = inside & ~in_box(drawn, x)
    change = (_under_noise(model, x, prototype, field, hidden, seed, draws)[:, flat] - before).abs()
    share = float(hidden.sum() / inside.sum())
    return Hidden(box, drawn, share, before, float(change.max()), float(change.mean()))


def training_patch(part: Part, index: int, box: Box) -> Tensor:
    """The pixels of ``box`` in the training image of official ``index``: float32 [3, h, w] in [0, 1].

    Raises `ConfigError` if the image is not in ``part``."""
    rows = (part.indices == index).nonzero().flatten()
    if not len(rows):
        raise ConfigError(f"training image {index} is not among the {len(part.indices)} of this split")
    y0, y1, x0, x1 = box
    return part.pixels(rows[:1])[0, :, y0:y1, x0:x1]


def provenance_table(model: ProtoNet, field: ReceptiveField) -> pd.DataFrame:
    """Where each prototype comes from, one row each: prototype, class (-1: none), image (official training index),
    cell (row, column) and box (y0, y1, x0, x1); all -1 before the first projection. Raises ``ValueError`` if the map of
    the net is not the field's."""
    _output(model, torch.zeros(3, *field.input_size), field)
    cell = model.source_cell.cpu()
    box = torch.as_tensor(field.lookup)[cell[:, 0], cell[:, 1]].where(cell[:, :1] >= 0, -1)
    columns = torch.column_stack((model.prototype_class.cpu(), model.source_image.cpu(), cell, box))
    table = pd.DataFrame(columns.numpy(), columns=["class", "image", "row", "column", "y0", "y1", "x0", "x1"])
    return table.rename_axis("prototype").reset_index()


@torch.no_grad()
def _output(model: ProtoNet, x: Tensor, field: ReceptiveField) -> Output:
    if x.ndim != 3 or x.shape[1:] != tuple(field.input_size):
        raise ValueError(f"expected one image [3, {', '.join(map(str, field.input_size))}], not {tuple(x.shape)}")
    with evaluating(model):
        output = model(x[None].to(model.prototypes.device))
    if output.distances.shape[2:] != field.size:
        raise ValueError(
            f"the net's map has {tuple(output.distances.shape[2:])} cells, the receptive fields "
            f"{field.size}: they are another net's"
        )
    return output


def _similarity(model: ProtoNet, x: Tensor, prototype: int, field: ReceptiveField) -> tuple[Tensor, Tensor]:
    """The similarities [Hz, Wz] of one prototype in one image, and the (flat) cell of the greatest."""
    if not 0 <= prototype < len(model.prototypes):
        raise ConfigError(f"no prototype {prototype}: there are 0 to {len(model.prototypes) - 1}")
    output = _output(model, x, field)
    return model.similarity(output.distances[0, prototype]), output.cells[0, prototype]


def _under_noise(
    model: ProtoNet, x: Tensor, prototype: int, field: ReceptiveField, mask: Tensor, seed: int, draws: int
) -> Tensor:
    """[draws, Hz * Wz]: a prototype's similarities where the pixels in ``mask`` [H, W] are noise. One image at a time,
    as the bits of a result may depend on the size of a batch."""
    if draws < 1:
        raise ConfigError(f"draws must be at least 1, not {draws}")
    noise = torch.randn(draws, *x.shape, generator=runtime.generator(seed, "noise")).to(x)
    changed = [_similarity(model, torch.where(mask, n, x), prototype, field)[0] for n in noise]
    return torch.stack(changed).flatten(1)


def _tuple(values: Tensor) -> tuple[int, ...]:
    return tuple(values.tolist())
