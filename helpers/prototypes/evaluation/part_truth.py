"""Maps and matches of prototypes held against the parts that are known to matter (spec toybirds, "What it measures").

Which part does a map lie on? By one of four rules (`RULES`), each of which may say that it is none:
``centre``, the part that covers half or more of the pixel in the middle of the map's region;
``majority``, the one with more than half of the bird's pixels in the region, which may be sky for the most part;
``share``, of the visible ones that of which the largest share lies in the region, of equal ones the largest;
``peak``, the one that covers half or more of the map's highest pixels (the pointing game).

*Purity*: among a prototype's best matches, the share that lie on the part that most of them lie on. *Causal purity*:
the share that lie on the very part that has the largest effect on that prototype in that bird.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from torch import Tensor

from helpers.prototypes.evaluation.part_effects import COVERED, PartEffects
from helpers.prototypes.evaluation.part_maps import Pointed, Pointing
from helpers.prototypes.mapping import boxes
from helpers.prototypes.models import ProtoNet
from helpers.prototypes.receptive_field import ReceptiveField

RULES = ("centre", "majority", "share", "peak")
RANKED = 3  # visible parts, the fewest that are ranked
WHOLE = 1e-3  # of a part: shares that differ by less are equal

OF_MATCHES = tuple(f"{kind}_{rule}" for rule in RULES for kind in ("purity", "causal"))
SHARES = (*OF_MATCHES, "cause_mass", "background", "pointing")
VALUES = (*SHARES, "correlation", "peak_error", "centre_error")


@dataclass(frozen=True, eq=False)
class Judged:
    """Maps of N pairs against the truth. By rule the part that a map lies on, ``labels`` int64 [N], and that on which
    most of the best matches of each of P prototypes lie, ``commonest`` int64 [P]; -1: none.

    ``values`` [N] are named by `VALUES`. Of a best match (NaN: of no other), whether it lies on the commonest part,
    ``purity_<rule>``, and on the part with the largest effect, ``causal_<rule>``. Of what the map shows, the shares on
    parts with a true effect, ``cause_mass``, and off the bird, ``background``; Spearman's ``correlation`` of the share
    on a part and its true effect, over visible parts; how far the highest pixels lie on parts with a true effect,
    ``pointing``; the distances in pixels from the peak, ``peak_error``, and from the centroid of the region,
    ``centre_error``, to the centroid of the part with the largest effect. NaN where no part has a true effect (but of
    ``background``), or there is no such place.
    """

    labels: dict[str, np.ndarray]
    commonest: dict[str, np.ndarray]
    values: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Pairs:
    """N pairs of a ``bird`` int64 [N] and a ``prototype`` int64 [N], by prototype, greatest ``similarity`` [N] first.
    Of each the parts' true effects ``true`` [N, Q] and which is the largest, ``best`` int64 [N], -1 where none has one.
    In % of the similarity, the largest true ``effect`` [N] and the mean of the ``control`` [N]; and how much of the
    similarity is ``lost`` [N], and ``lost_at_cell`` [N], over all parts."""

    bird: np.ndarray
    prototype: np.ndarray
    similarity: np.ndarray
    true: np.ndarray
    best: np.ndarray
    effect: np.ndarray
    control: np.ndarray
    lost: np.ndarray
    lost_at_cell: np.ndarray


def pairs(effects: PartEffects, bird: Tensor, prototype: Tensor) -> tuple[Pairs, np.ndarray]:
    """The pairs in their order, and that order, int64 [N]: of equal similarities, by bird."""
    similarity = effects.similarities[bird, prototype]
    order = np.lexsort((bird.numpy(), -similarity.numpy(), prototype.numpy()))
    bird, prototype, similarity = (values[order] for values in (bird, prototype, similarity))
    true = effects.true[bird, :, prototype]
    scale = similarity.abs().clamp(min=1e-6) / 100
    values = (
        bird, prototype, similarity, true, effects.best[bird, prototype], true.amax(1) / scale,
        effects.similarity.control[bird, :, prototype].nanmean(1) / scale,
        effects.similarity.raw[bird, :, prototype].nansum(1), effects.at_cell[bird, :, prototype].nansum(1),
    )  # fmt: skip
    return Pairs(*(value.numpy() for value in values)), order


def judged(
    effects: PartEffects, of: Pairs, order: np.ndarray, pointing: Pointing, method: str, top: int, chance: bool = False
) -> Judged:
    """How the maps of a ``method`` do against the truth of the pairs; or, for ``chance``, against that of birds moved
    elsewhere. ``top``: the best matches of a prototype."""
    maps = pointing.chance[method] if chance else pointing.found[method]
    maps = Pointed(*(values[order] for values in vars(maps).values()))
    visible, centres = effects.visible[of.bird].numpy(), pointing.moved_centres if chance else pointing.centres
    labels = _labels(maps, visible, pointing.areas[of.bird].numpy())
    commonest, values, matches = {}, {}, _best_matches(of, top)
    for rule, label in labels.items():
        commonest[rule] = _commonest(of.prototype[matches], label[matches], effects)
        for kind, part in (("purity", commonest[rule][of.prototype]), ("causal", of.best)):
            values[f"{kind}_{rule}"] = np.where(matches, (label == part) & (label >= 0), np.nan)
    goal, causes = centres[of.bird, of.best].numpy(), of.true > 0
    values |= {
        "cause_mass": (maps.mass.numpy() * causes).sum(1),
        "pointing": (maps.peak.numpy() * causes).sum(1),
        "correlation": _correlation(maps.mass.numpy(), of.true, visible),
        "peak_error": np.linalg.norm(maps.peak_at.numpy() - goal, axis=1),
        "centre_error": np.linalg.norm(maps.middle_at.numpy() - goal, axis=1),
    }
    for name in ("cause_mass", "pointing", "correlation", "peak_error", "centre_error"):
        values[name] = np.where(causes.any(1), values[name], np.nan)
    return Judged(labels, commonest, values | {"background": maps.background.numpy()})


def main_effects(of: Pairs, counts: np.ndarray, count: int) -> np.ndarray:
    """[P, Q]: the mean true effects of the parts on each of ``count`` prototypes; 0 without pairs."""
    weights = counts[of.bird]
    sums = np.stack([np.bincount(of.prototype, weights * effect, minlength=count) for effect in of.true.T], 1)
    return sums / np.bincount(of.prototype, weights, minlength=count).clip(min=1)[:, None]


def distinct(net: ProtoNet, effects: PartEffects, field: ReceptiveField) -> tuple[np.ndarray, np.ndarray]:
    """Of each bird, of the prototypes of its class: how many cells they choose [B], and the mean intersection over
    union of two of their boxes [B], 0 for a single prototype."""
    chosen, overlap = np.zeros(len(effects.labels)), np.zeros(len(effects.labels))
    for label in effects.labels.unique():
        rows, own = effects.labels == label, net.own[label].cpu()
        cells = effects.cells[rows][:, own]
        ordered = cells.sort(1).values
        chosen[rows] = (1 + (ordered.diff(dim=1) != 0).sum(1)).numpy()
        box = boxes(cells, field).double()
        low = box[:, :, None, 0::2].maximum(box[:, None, :, 0::2])
        high = box[:, :, None, 1::2].minimum(box[:, None, :, 1::2])
        shared = (high - low).clamp(min=0).prod(3)
        area = shared.diagonal(dim1=1, dim2=2)
        union = area[:, :, None] + area[:, None] - shared
        one, other = np.triu_indices(int(own.sum()), 1)
        if len(one):
            overlap[rows] = (shared / union)[:, one, other].nan_to_num().mean(1).numpy()
    return chosen, overlap


# --------------------------------------------------------------------------------------------------------- helpers


def _best_matches(of: Pairs, top: int) -> np.ndarray:
    """bool [N]: whether a pair is among the first ``top`` of its prototype."""
    return np.arange(len(of.prototype)) - np.searchsorted(of.prototype, of.prototype) < top


def _commonest(prototype: np.ndarray, label: np.ndarray, effects: PartEffects) -> np.ndarray:
    """int64 [P]: the part that most matches of a prototype lie on, -1 where none lies on any."""
    counts = np.zeros((effects.similarities.shape[1], len(effects.parts)), int)
    np.add.at(counts, (prototype[label >= 0], label[label >= 0]), 1)
    return np.where(counts.any(1), counts.argmax(1), -1)


def _labels(maps: Pointed, visible: np.ndarray, areas: np.ndarray) -> dict[str, np.ndarray]:
    """By rule, int64 [N]."""
    held = maps.held.numpy().astype(float)
    share = np.where(visible, held / np.maximum(areas, 1e-6), 0)
    most = share.max(1, keepdims=True)
    largest = np.where((share > most - WHOLE) & (share > 0), held, 0)
    return {
        "centre": _where(maps.middle.numpy(), maps.middle.numpy() >= COVERED),
        "majority": _where(held, held > maps.bird_held.numpy()[:, None] / 2),
        "share": _where(largest, largest > 0),
        "peak": _where(maps.peak.numpy(), maps.peak.numpy() >= COVERED),
    }


def _where(values: np.ndarray, enough: np.ndarray) -> np.ndarray:
    """int64 [N]: the part of the largest of ``values`` [N, Q], if that is ``enough``, else -1."""
    return np.where(enough.any(1), np.where(enough, values, -1).argmax(1), -1)


def _correlation(mass: np.ndarray, true: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Spearman's, of each row over what is visible: 0 where all are equal, NaN of fewer than three parts."""
    ranks = []
    for values in (mass, true):
        rank = np.where(visible, rankdata(np.where(visible, values, np.inf), axis=1), 0)  # what is not visible: last
        mean = rank.sum(1, keepdims=True) / np.maximum(visible.sum(1, keepdims=True), 1)
        ranks.append(np.where(visible, rank - mean, 0))
    norm = np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
    found = (ranks[0] * ranks[1]).sum(1) / np.where(norm > 0, norm, 1)
    return np.where(visible.sum(1) >= RANKED, found, np.nan)
