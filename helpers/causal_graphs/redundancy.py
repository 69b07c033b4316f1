"""Nodes that matter only together: cuts of pairs (spec explainnn, sections 12 and 13, property 8).

Where either of two nodes suffices, to cut one changes nothing, and a search of single nodes misses both. The joint
effect of a pair less the sum of the single ones, its *interaction*, shows them: below zero one stands in for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pandas as pd
import torch

from helpers.causal_graphs.engines import Cut, Engine, Samples, cut_logits, single_cuts
from helpers.causal_graphs.interventions import Intervention
from helpers.causal_graphs.links import Link
from helpers.causal_graphs.statistics import Effect, Measured, Selection, describe, measure, select
from helpers.config import ConfigError

DEFAULT = Selection()


def redundancy(
    samples: Samples,
    link: Link,
    effects: Sequence[int],
    target: int,
    *,
    candidates: Sequence[int] | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
    effect: Effect = "logit",
    other: int | None = None,
    intervention: Intervention | None = None,
    selection: Selection = DEFAULT,
    seed: int = 0,
    engine: Engine = "delta",
) -> pd.DataFrame:
    """One row a pair of lower nodes of ``link``, cut from ``effects``, most redundant first.

    i, j; joint, single_i, single_j: mean effects on the outcome; interaction: mean of d_ij - d_i - d_j, image by image,
    with its std, t, p (one-sided: below zero) and q (Benjamini and Hochberg, over the pairs); kind: ``redundant`` or
    ``synergy`` (above zero) where the interaction passes the paired test of ``selection``, else ``none``.

    ``pairs``: all of ``candidates`` (default: all lower nodes). Raises `ConfigError` for the unpaired selection of the
    reference mode, ``ValueError`` for nodes that are not there.
    """
    if selection.mode != "recommended":
        raise ConfigError("interactions are tested on paired images: take a selection of mode 'recommended'")
    intervention = intervention or Intervention()
    pairs = list(combinations(range(link.inputs) if candidates is None else candidates, 2)) if pairs is None else pairs
    nodes = sorted({node for pair in pairs for node in pair})
    place = {node: k for k, node in enumerate(nodes)}
    single = _effects(samples, link, single_cuts(nodes, effects), intervention, target, effect, other, seed, engine)
    cuts = [Cut(tuple(pair), tuple(effects)) for pair in pairs]
    joint = _effects(samples, link, cuts, intervention, target, effect, other, seed, engine)
    one, two = (single.d[[place[pair[k]] for pair in pairs]] for k in (0, 1))
    interaction = joint.d - one - two
    rounding = 64 * torch.finfo(samples.logits.dtype).eps * (joint.y.abs() + joint.d.abs() + one.abs() + two.abs())
    interaction = interaction.where(interaction.abs() > rounding, torch.zeros_like(interaction))
    statistics = describe(Measured(interaction, joint.r, joint.kl, joint.y))
    found = select(statistics, len(samples), selection.override({"inhibitors": True}))
    kinds = dict.fromkeys(found.causes, "redundant") | dict.fromkeys(found.inhibitors, "synergy")
    table = pd.DataFrame(
        {
            "i": [i for i, _ in pairs],
            "j": [j for _, j in pairs],
            "joint": joint.d.mean(1).numpy(),
            "single_i": one.mean(1).numpy(),
            "single_j": two.mean(1).numpy(),
            "interaction": statistics.mean_d,
            "std": statistics.std_d,
            "t": statistics.t,
            "p": statistics.p,
            "q": statistics.q,
            "kind": [kinds.get(k, "none") for k in range(len(pairs))],
        }
    )
    return table.sort_values("interaction", kind="stable").reset_index(drop=True)


def _effects(samples, link, cuts, intervention, target, effect, other, seed, engine) -> Measured:
    logits = cut_logits(samples, link, cuts, intervention, seed=seed, engine=engine)
    return measure(samples.logits, logits, target, effect, other)
