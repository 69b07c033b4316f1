"""Prototypes judged against the truth, which is known of ToyBirds alone (spec toybirds, "What it measures").

    measure(net, ToyBirdsSettings(), n=200)             # one number a metric

    truth = examine(net, test_birds(ToyBirdsSettings(), 200), methods=mappings(field) | {"prp": prp})
    summary(truth)                                      # the same
    intervals(truth)                                    # with bootstrap intervals over birds
    report_card(truth)                                  # a row a prototype

What parts do to a similarity is found by redrawing birds (`part_effects`), where maps point by the parts' masks
(`part_maps`); by which rule a map lies on a part, and what purity is, is said in `part_truth`. *Chance* is what the
same maps come to with the bird moved elsewhere (`part_maps.Pointing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from helpers import runtime
from helpers.config import ConfigError, suggest
from helpers.data.bird_scenes import PARTS, Scene
from helpers.data.toybirds import ToyBirdsSettings
from helpers.prototypes.evaluation.ordering import Maps
from helpers.prototypes.evaluation.part_effects import BATCH, PartEffects, check, part_effects, test_birds
from helpers.prototypes.evaluation.part_maps import Reactions, Whose, mappings, point, reactions
from helpers.prototypes.evaluation.part_truth import (
    OF_MATCHES,
    RULES,
    SHARES,
    VALUES,
    Judged,
    Pairs,
    distinct,
    judged,
    main_effects,
    pairs,
)
from helpers.prototypes.models import ProtoNet
from helpers.prototypes.receptive_field import receptive_field

TOP = 10  # matches of a prototype, if it has so many
RESAMPLES, LEVEL = 500, 0.95


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of a net on B birds: the ``effects`` of parts; ``pairs`` of birds and prototypes; by method, how
    its maps were ``judged``, and by ``chance``; how they followed changes, ``reactions``. Of the prototypes of each
    bird's class, how many ``cells`` [B] they choose, and the mean ``overlap`` [B] of two of their boxes (intersection
    over union). ``prototype_class`` and ``source_image`` int64 [P] are the net's."""

    effects: PartEffects
    pairs: Pairs
    judged: dict[str, Judged]
    chance: dict[str, Judged]
    reactions: Reactions
    cells: np.ndarray
    overlap: np.ndarray
    prototype_class: np.ndarray
    source_image: np.ndarray


def measure(
    net: ProtoNet,
    settings: ToyBirdsSettings,
    *,
    n: int | None = None,
    methods: Mapping[str, Maps] | None = None,
    resamples: int = 0,
    seed: int = 0,
    draws: int = 2,
    batch: int = BATCH,
) -> dict[str, float]:
    """`summary` of the first ``n`` test birds (None: all); with ``resamples`` also the ends of its `intervals`, with
    ``_low`` and ``_high`` after the metric's name. The other settings are those of `examine`.

    Raises `ConfigError` for a net that knows another number of classes, and what `examine` raises.
    """
    if isinstance(net, ProtoNet) and net.n_classes != settings.classes:
        raise ConfigError(f"the net knows {net.n_classes} classes, the birds have {settings.classes}")
    birds = test_birds(settings, n)
    truth = examine(net, birds, methods=methods, seed=seed, draws=draws, batch=batch)
    if not resamples:
        return summary(truth)
    table = intervals(truth, resamples, seed=seed)
    return dict(table.value) | {f"{name}_{end}": table.at[name, end] for name in table.index for end in ("low", "high")}


def examine(
    net: ProtoNet,
    birds: Scene,
    *,
    methods: Mapping[str, Maps] | None = None,
    parts: Sequence[str] = PARTS,
    draws: int = 2,
    top: int = TOP,
    whose: Whose = "own",
    seed: int = 0,
    batch: int = BATCH,
) -> Truth:
    """All that is known of ``net`` on ``birds``. ``methods`` (default: `mappings`) are given images, similarity maps
    and prototypes. ``top``: the best matches of a prototype that purity looks at; of a prototype that has no more, all
    (of 100 birds, five are of a class). ``whose``: a bird is paired with the prototypes of its class ("own"), or with
    "all", so that a prototype's matches may be birds of any class. The other settings are those of `part_effects`.

    Raises `ConfigError` for settings that cannot be, ``ValueError`` for maps of another shape or not finite.
    """
    for name, number in (("top", top), ("draws", draws)):
        if number < 1:
            raise ConfigError(f"{name} must be at least 1, not {number}")
    check(net, birds)
    field = receptive_field(net.features, birds.size)
    methods = mappings(field, seed) if methods is None else methods
    pointing = point(net, birds, methods, parts=parts, whose=whose, seed=seed)
    effects = part_effects(net, birds, parts=parts, draws=draws, seed=seed, batch=batch)
    of, order = pairs(effects, pointing.bird, pointing.prototype)
    found, chance = (
        {name: judged(effects, of, order, pointing, name, top, by_chance) for name in methods}
        for by_chance in (False, True)
    )
    followed = reactions(net, birds, methods, parts=parts, seed=seed)
    facts = net.prototype_class.cpu().numpy(), net.source_image.cpu().numpy()
    return Truth(effects, of, found, chance, followed, *distinct(net, effects, field), *facts)


def summary(truth: Truth, counts: np.ndarray | None = None) -> dict[str, float]:
    """One number a metric; ``counts`` int64 [B]: how often each bird counts (default: once). Shares are in %, errors in
    pixels, effects in units of logits. The mean of nothing is 0: so are all values of a net that nothing affects.

    ``caused``: pairs in which a part has a true effect; ``effect``, ``control``: the largest true effect and that of
    the control, in % of the similarity; ``taken_over``: of what is lost at the best cells, what other cells make up
    for; ``logit_<part>``: the effect of the part on the logit of the bird's class, beyond the control.
    ``cells``, ``overlap``, ``class_parts``: of the prototypes of a class, how many cells they choose in a bird, how
    far two of their boxes coincide, and how many parts have the largest mean effect on one of them, on average over
    classes. ``reacted``: of the birds with one part changed, those in which a prototype reacted; ``changed``: the share
    of the pixels that changed in them.

    For each method, with ``<method>_`` before and for chance ``_chance`` after them, the `VALUES` of `Judged`. Where a
    prototype reacted to a change: the share of that ``inside``
    the region, whether any is (``reached``), and the share of the map's change that ``followed`` it there; by chance,
    they would be about ``changed``, but for ``reached``.
    """
    effects, of, on = truth.effects, truth.pairs, truth.reactions
    counts = np.ones(len(effects.labels), int) if counts is None else counts
    weights = counts[of.bird]
    lost = float(of.lost_at_cell @ weights)
    found = {
        "caused": 100 * _mean(of.best >= 0, weights),
        "effect": _mean(of.effect, weights),
        "control": _mean(of.control, weights),
        "taken_over": 100 * (1 - float(of.lost @ weights) / lost) if lost > 0 else 0.0,
    }
    logit = effects.logit.excess.numpy()
    found |= {f"logit_{part}": _mean(logit[:, q], counts) for q, part in enumerate(effects.parts)}
    found |= {"cells": _mean(truth.cells, counts), "overlap": 100 * _mean(truth.overlap, counts)}
    found["class_parts"] = _class_parts(truth, counts)
    reacted = counts * on.reacted.numpy()
    found["reacted"] = 100 * _mean(on.reacted.numpy(), counts * (on.part.numpy() >= 0))
    found["changed"] = 100 * _mean(on.area.numpy(), reacted)
    for name in truth.judged:
        for end, maps in (("", truth.judged[name]), ("_chance", truth.chance[name])):
            for value in VALUES:
                found[f"{name}_{value}{end}"] = _mean(maps.values[value], weights) * (100 if value in SHARES else 1)
        inside, followed = on.inside[name].numpy(), on.followed[name].numpy()
        found[f"{name}_inside"] = 100 * _mean(inside, reacted)
        found[f"{name}_reached"] = 100 * _mean(inside > 0, reacted)
        found[f"{name}_followed"] = 100 * _mean(followed, reacted)
    return found


def intervals(truth: Truth, resamples: int = RESAMPLES, *, level: float = LEVEL, seed: int = 0) -> pd.DataFrame:
    """`summary` as a column ``value``, and percentile bootstrap intervals of that ``level`` around it, ``low`` and
    ``high``: birds are drawn anew with replacement, of each class as many as there are, from a stream of ``seed``. The
    best matches, and the parts that most of them lie on, stay those of all birds, each counted as often as it is drawn.

    Raises `ConfigError` for fewer than 2 ``resamples`` and a ``level`` that is not between 0 and 1.
    """
    if resamples < 2 or not 0 < level < 1:
        raise ConfigError(f"intervals need 2 resamples or more and a level within 0 and 1, not {resamples}, {level}")
    random = runtime.numpy_generator(seed, "bootstrap", "birds")
    labels = truth.effects.labels.numpy()
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    found = []
    for _ in range(resamples):
        taken = np.concatenate([random.choice(birds, len(birds)) for birds in classes])
        found.append(summary(truth, np.bincount(taken, minlength=len(labels))))
    ends = pd.DataFrame(found).quantile([(1 - level) / 2, (1 + level) / 2]).to_numpy()
    value = pd.Series(summary(truth), name="value")
    return pd.DataFrame({"value": value, "low": ends[0], "high": ends[1]}).rename_axis("metric")


def report_card(
    truth: Truth, classes: Sequence[str] | None = None, method: str = "box", rule: str = "centre"
) -> pd.DataFrame:
    """A row a prototype. ``prototype``, ``class`` (its name, if ``classes`` are given), ``source`` (training bird, -1
    before the first projection), ``similarity`` (mean, of its birds). ``part``: that on which most of its best matches
    lie by the maps of a ``method`` and a ``rule``, and which shares of them do, ``purity``, and lie on the part with
    the largest effect, ``causal_purity``. ``effect_part``: the part with the largest mean true effect, and the mean,
    ``effect``; ``effect_share``: of the sum of all parts'. ``caused``: the share of birds in which a part has a true
    effect. Means of the method's other `VALUES`. Shares in %; NaN: not known, without birds or true effects.

    Raises `ConfigError` for unknown methods and rules.
    """
    for name, known in ((method, truth.judged), (rule, RULES)):
        if name not in known:
            raise ConfigError(f"unknown {name!r}: {suggest(name, known)}")
    of, maps, count = truth.pairs, truth.judged[method], len(truth.prototype_class)
    effects = main_effects(of, np.ones(len(truth.effects.labels), int), count)
    largest, whole = effects.max(1), effects.sum(1)
    names = np.array([*truth.effects.parts, "none"])  # -1 is the last
    table = {
        "prototype": np.arange(count),
        "class": truth.prototype_class if classes is None else np.array(classes)[truth.prototype_class],
        "source": truth.source_image,
        "similarity": _by_prototype(of, of.similarity, count),
        "part": names[maps.commonest[rule]],
        "purity": 100 * _by_prototype(of, maps.values[f"purity_{rule}"], count),
        "causal_purity": 100 * _by_prototype(of, maps.values[f"causal_{rule}"], count),
        "effect_part": names[np.where(largest > 0, effects.argmax(1), -1)],
        "effect": largest,
        "effect_share": 100 * np.divide(largest, whole, out=np.full(count, np.nan), where=whole > 0),
        "caused": 100 * _by_prototype(of, of.best >= 0, count),
    }
    means = {
        name: _by_prototype(of, maps.values[name], count) * (100 if name in SHARES else 1)
        for name in VALUES
        if name not in OF_MATCHES
    }
    return pd.DataFrame(table | means)


def effect_table(effects: PartEffects) -> pd.DataFrame:
    """The parts' effects on the logit of a bird's class, a row a part: in how many ``birds`` it is visible, by how much
    the logit falls when it is ``removed``, under the same repaint ``on_bird`` and ``beside``, and the ``effect`` beyond
    the mean of the two, with its standard deviation over birds, ``spread``."""
    on_bird, beside = effects.logit.draws.nanmean(1).nanmean(1)
    excess = effects.logit.excess.numpy()
    columns = {
        "birds": effects.visible.sum(0),
        "removed": effects.logit.raw.nanmean(0),
        "on_bird": on_bird,
        "beside": beside,
        "effect": torch.from_numpy(excess).nanmean(0),
    }
    spread = pd.DataFrame(excess).std().to_numpy()
    table = pd.DataFrame({name: values.numpy() for name, values in columns.items()} | {"spread": spread})
    return table.set_index(pd.Index(effects.parts, name="part"))


def _class_parts(truth: Truth, counts: np.ndarray) -> float:
    """How many parts have the largest mean effect on a prototype of a class; the mean over classes with birds."""
    effects = main_effects(truth.pairs, counts, len(truth.prototype_class))
    best = np.where(effects.max(1) > 0, effects.argmax(1), -1)
    own = [best[truth.prototype_class == label] for label in truth.effects.labels.unique().tolist()]
    return float(np.mean([len(set(some[some >= 0])) for some in own]))


def _mean(values: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Of what is not NaN; 0 of nothing."""
    known = ~np.isnan(values)
    weights = known if weights is None else weights * known
    total = weights.sum()
    return float(np.where(known, values, 0) @ weights / total) if total else 0.0


def _by_prototype(of: Pairs, values: np.ndarray, count: int) -> np.ndarray:
    """[P]: the means of ``values`` [N] that are not NaN, of each prototype; NaN of none."""
    return pd.Series(values, dtype=float).groupby(of.prototype).mean().reindex(range(count)).to_numpy()
