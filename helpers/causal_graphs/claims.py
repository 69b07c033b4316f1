"""The claims about causal graphs, each with its rule, entered into a ledger. The rules were fixed before any result.

The papers' bodies are not at hand: of them only what the abstracts claim in words is used. The release's numbers are of
other weights, so that a tolerance is the widest spread one would accept between two training seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from helpers.causal_graphs import released
from helpers.causal_graphs.evaluate import SCORED
from helpers.causal_graphs.graph import CausalGraph
from helpers.ledger import Ledger

ACCURACY = 0.988
EQUAL = 1e-4  # relative to the largest logit, of two ways to the same one in float32 (spec section 9.6)
MAPS = ("reference", "spatial_do_1x1")
MIN_CHECKPOINTS = 3
MIN_GRAPHS = 10  # of a network of which one seed was trained
MIN_RETESTED = 200
MISSED = 0.02  # the largest share of causes among the nodes that a gradient drops


def check_engine(ledger: Ledger, difference: float, where: str) -> None:
    ledger.check(
        "engine",
        "cuts made by adding their change give the logits of a network whose weights were edited",
        ours=difference,
        rule=f"largest difference, relative to the largest logit, at most {EQUAL:g}",
        holds=difference <= EQUAL,
        where=where,
    )


def check_accuracy(
    ledger: Ledger, accuracies: Sequence[float], where: str, model: str = "LeNet", data: str = "MNIST"
) -> None:
    asked = (model, data) == ("LeNet", "MNIST")
    ledger.check(
        "accuracy",
        f"{model} classifies {data}, {len(accuracies)} training seeds",
        ours=min(accuracies),
        rule=f"every seed at least {ACCURACY:.1%} on the test images" if asked else "none: it is of LeNet on MNIST",
        holds=min(accuracies) >= ACCURACY if asked and len(accuracies) >= MIN_CHECKPOINTS else None,
        where=where,
    )


def check_counts(ledger: Ledger, graphs: Sequence[CausalGraph], where: str) -> None:
    """Of the reference graphs of class 3, one a checkpoint, and the release's: are they of one shape? Of other networks
    and data there are none."""
    names = list(released.COUNTS)
    found = {name: [len(g.layer(name).causes) if name in g.counts().index else 0 for g in graphs] for name in names}
    lower = {name: total for name, (_, total) in released.COUNTS.items()}
    close = [any(abs(n - released.COUNTS[name][0]) <= 0.15 * lower[name] for n in found[name]) for name in names]
    ledger.check(
        "counts",
        "class 3, reference rule: causes in fc3, fc2, fc1, conv2",
        ours=", ".join(f"{min(found[n])}-{max(found[n])}" for n in names) if graphs else None,
        reference=", ".join(str(released.COUNTS[n][0]) for n in names),
        kind=released.KIND,
        rule="in each layer one of our seeds lies within 15 % of the layer's nodes",
        holds=all(close) if len(graphs) >= MIN_CHECKPOINTS else None,
        where=where,
    )


def check_sweep(ledger: Ledger, appearance: pd.DataFrame, where: str) -> None:
    """``appearance`` [%]: a row a beta, a column a checkpoint, of the reference rule; empty if something else than
    class 3 and fc3 of LeNet on MNIST was swept."""
    enough = appearance.shape[1] >= MIN_CHECKPOINTS
    for beta in (0.0, 0.1, 0.3):
        ours = appearance.loc[beta] if beta in appearance.index else pd.Series(dtype=float)
        ledger.within(
            f"appearance-{beta:g}",
            f"class 3, fc3: a node that is found at all is found in so many runs with soft values up to {beta:g}",
            ours=float(ours.mean()) if len(ours) else None,
            spread=float(ours.std()) if len(ours) > 1 else None,
            reference=released.APPEARANCE[beta],
            kind=released.KIND,
            tolerance=15.0,
            unit="%",
            enough=enough,
            where=where,
        )


def check_maps(ledger: Ledger, means: pd.DataFrame, where: str) -> None:
    """``means``: columns seed, target, method, metric, value (means over images)."""
    table = means.pivot_table(index=["seed", "target"], columns=["metric", "method"], values="value")
    enough = means.seed.nunique() >= MIN_CHECKPOINTS

    def every(metric: str, ours: str, others: Sequence[str], lower: bool) -> tuple[str, bool]:
        mine, best = table[metric][ours], getattr(table[metric][list(others)], "min" if lower else "max")(axis=1)
        wins = mine < best if lower else mine > best
        return f"{int(wins.sum())} of {len(wins)}", bool(wins.all())

    for method in MAPS:
        name = {"reference": "the release's maps", "spatial_do_1x1": "spatial_do maps"}[method]
        stable, holds = every("lipschitz_minmax", method, SCORED, lower=True)
        ledger.check(
            f"stable-{method}",
            f"{name} are more stable than standard attributions (local Lipschitz, one scaling for all)",
            ours=f"{stable} cases",
            reference="more stable",
            kind=released.PAPER,
            rule="a lower mean than each of the 4 scored baselines, in every seed and class",
            holds=holds if enough else None,
            where=where,
        )
        faithful, holds = every("irof", method, SCORED, lower=False)
        ledger.check(
            f"faithful-{method}",
            f"{name} are more faithful than standard attributions (IROF)",
            ours=f"{faithful} cases",
            reference="more faithful",
            kind=released.PAPER,
            rule="a higher mean than each of the 4 scored baselines, in every seed and class",
            holds=holds if enough else None,
            where=where,
        )
    others = table["lipschitz_minmax"].columns.drop("constant_map")
    flat, holds = every("lipschitz_minmax", "constant_map", others, lower=True)
    ledger.check(
        "control-constant",
        "the Lipschitz estimate rewards saying nothing: a constant map beats all",
        ours=f"{flat} cases",
        rule="a lower mean than every other map, in every seed and class",
        holds=holds if enough else None,
        where=where,
    )
    better, holds = every("irof", "spatial_do_1x1", ["reference"], lower=False)
    ledger.check(
        "spatial-do",
        "intervening in space makes maps that are more faithful than the release's",
        ours=f"{better} cases",
        rule="a higher mean IROF in every seed and class",
        holds=holds if enough else None,
        where=where,
    )


def check_screen(ledger: Ledger, walks: Mapping[str, pd.DataFrame], where: str) -> None:
    """``walks``: `parts.walks` by network."""
    missed = {name: table.missed.sum() / max(1, table.retested.sum()) for name, table in walks.items()}
    enough = bool(walks) and min(table.retested.sum() for table in walks.values()) >= MIN_RETESTED
    ledger.check(
        "screen",
        "a gradient tells which nodes need no cut: next to none of those it drops is a cause",
        ours=", ".join(f"{name} {share:.2%}" for name, share in missed.items()) or None,
        rule=f"of the dropped nodes that are cut all the same, at most {MISSED:.0%} are causes, in every network",
        holds=max(missed.values()) <= MISSED if enough else None,
        where=where,
    )


def check_larger(ledger: Ledger, records: Mapping[str, Sequence[Mapping[str, Any]]], where: str) -> None:
    """`parts.surgery` by network, one training seed each: are graphs of larger networks necessary too?"""
    for name, graphs in records.items():
        lost = [_necessary(record) for record in graphs]
        ledger.check(
            f"necessary-{name}",
            f"{name}, photographs: a class is lost without its graph, and not without random graphs of the same shape",
            ours=f"{sum(lost)} of {len(lost)} graphs",
            rule="recall at most 5 %, and below that of every random graph, in 90% of the graphs",
            holds=sum(lost) >= 0.9 * len(lost) if len(lost) >= MIN_GRAPHS else None,
            where=where,
        )


def _necessary(record: Mapping[str, Any]) -> bool:
    """Is the class lost without its graph, and less without each random one?"""
    return record["cut_recall"] <= 0.05 and record["cut_recall"] < min(record["random_cut_recall"])


def check_surgery(ledger: Ledger, records: Sequence[Mapping[str, Any]], where: str) -> None:
    """The recommended graphs, one record a seed and class."""
    enough = len({record["seed"] for record in records}) >= MIN_CHECKPOINTS
    n = len(records)

    def share(key: str, claim: str, rule: str, holds: Sequence[bool], least: float) -> None:
        ledger.check(key, claim, ours=f"{sum(holds)} of {n} graphs", rule=f"{rule}, in {least:.0%} of the graphs",
                     holds=sum(holds) >= least * n if enough else None, where=where)  # fmt: skip

    share(
        "necessary", "a class is lost without its graph, and not without random graphs of the same shape",
        "recall at most 5 %, and below that of every random graph",
        [_necessary(record) for record in records], 0.9,
    )  # fmt: skip
    share(
        "sufficient", "the graph's edges alone still tell the class from the others",
        "a higher AUROC than every random graph of the same shape",
        [r["kept_auroc"] > max(r["random_kept_auroc"]) for r in records], 0.9,
    )  # fmt: skip
    share(
        "specific", "cutting a class's graph hurts it more than the other classes",
        "recall drops by at least 50 points more than the accuracy of the others",
        [r["specificity"] >= 0.5 for r in records], 0.9,
    )  # fmt: skip


def check_sizes(ledger: Ledger, table: pd.DataFrame, where: str) -> None:
    """``table``: `parts.sizes` of all checkpoints with a column seed."""
    at = table[table["size"] == 100]
    means = at.groupby(["seed", "mode"]).jaccard.mean().unstack()
    enough = len(means) >= MIN_CHECKPOINTS and {"recommended", "reference"} <= set(means)
    ledger.check(
        "sample-noise",
        "paired tests find the same nodes in other draws of 100 images; the release's rule does less",
        ours=", ".join(f"{mode} {means[mode].mean():.2f}" for mode in means) or None,
        rule="a higher mean Jaccard index over layers and classes, in every seed",
        holds=bool((means.recommended > means.reference).all()) if enough else None,
        where=where,
    )


def check_randomised(ledger: Ledger, table: pd.DataFrame, where: str) -> None:
    """``table``: `parts.randomised` of all checkpoints with a column seed."""
    mean = float(table.rank_correlation.mean()) if len(table) else None
    enough = table.seed.nunique() >= MIN_CHECKPOINTS
    ledger.check(
        "randomised",
        "effects come from the weights: on random weights they have nothing to do with what they were",
        ours=mean,
        spread=float(table.groupby("seed").rank_correlation.mean().std()) if enough else None,
        rule="mean rank correlation over draws and layers within 0.1 of 0",
        holds=abs(mean) <= 0.1 if enough else None,
        where=where,
    )


def check_pruning(ledger: Ledger, table: pd.DataFrame, share: float, where: str) -> None:
    """``table``: seed, method (``causal``, ``magnitude``), accuracy at the published delta; ``share`` of edges kept."""
    means = table.groupby(["seed", "method"]).accuracy.mean().unstack()
    ours, magnitude = means["causal"], means["magnitude"]
    ledger.check(
        "pruning",
        f"edges in the graph of no class can go: with {share:.0%} of the edges the accuracy stays",
        ours=float(ours.mean()),
        spread=float(ours.std()) if len(ours) > 1 else None,
        rule="in every seed at most 1 point below magnitude pruning to as many edges",
        holds=bool((ours >= magnitude - 0.01).all()) if len(ours) >= MIN_CHECKPOINTS else None,
        where=where,
    )


def check_repair(ledger: Ledger, records: Sequence[Mapping[str, Any]], where: str) -> None:
    """`parts.repaired` of all checkpoints."""
    for rule, claim in {
        "difference": "a planted shortcut is cut out by the nodes that are causal on marked images only",
        "gain": "a planted shortcut is cut out by the edges that the mark acts through",
    }.items():
        chosen = [r for r in records if r["rule"] == rule]
        restored = []
        for r in chosen:
            lost = r["others"][0] - r["marked"][0]
            half = r["marked"][1] - r["marked"][0] >= 0.5 * lost
            random = max(r["random_marked"]) - r["marked"][0] < 0.5 * lost
            restored.append(half and random and r["clean"][0] - r["clean"][1] <= 0.01)
        ledger.check(
            f"repair-{rule}",
            claim,
            ours=f"{sum(restored)} of {len(chosen)} seeds",
            rule="half of the accuracy that the mark costs is back, at most 1 point of the clean accuracy is lost, and "
            "no random cut of equal size does it, in every seed",
            holds=all(restored) if len(chosen) >= MIN_CHECKPOINTS else None,
            where=where,
        )
