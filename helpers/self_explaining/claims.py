"""The claims about self-explaining networks, each with its rule, entered into a ledger. The rules were fixed before any
result of the study was seen, but for that of the gradients, a check of the code, for which single precision had turned
out too coarse.

What is compared shares its seed: data, first weights, order and critics. A difference counts if its mean is at least
what was asked for and no more than one seed in five goes the other way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from helpers.ledger import Ledger
from helpers.self_explaining import released
from helpers.self_explaining.evaluate import METRICS
from helpers.self_explaining.presets import SelfExplainingStudy
from helpers.self_explaining.sets import parts
from helpers.self_explaining.tables import differences, values

MIN_SEEDS = 5
EQUAL = 1e-6  # relative, of two ways to the same gradient in float64, of a net that is sure of most images
LEARNED = 0.03  # of a critic's mean loss, the least that counts (section 12.21)
CHANCE = 0.05  # how far from ln K a critic's mean loss is that has learned nothing
GAIN = 0.5  # points of accuracy with 1,200 images (targets of section 7)
SHORTCUT = 5.0  # points of accuracy on decoys that say nothing


def check_gradients(ledger: Ledger, difference: float, where: str) -> None:
    """``difference`` of the two ways' gradients, relative to their size."""
    ledger.check(
        "gradients",
        "one product of all maps' Jacobian is the gradient of a backward pass per critic batch",
        ours=difference,
        rule=f"in double precision they differ by at most {EQUAL:g}, relative",
        holds=difference <= EQUAL,
        where=where,
    )


def check_critics(ledger: Ledger, frame: pd.DataFrame, where: str, n_classes: int = 10) -> None:
    """Does the learner's explanation teach a critic more than before?"""
    for key, other, text in (
        ("critic", "cnn", "a fresh critic learns more from the explanations of CNN-LSX than from a CNN's"),
        ("critic-control", "no-feedback", "and more than from those of all phases without the critic's feedback"),
    ):
        found = differences(frame, "critic_loss", "lsx", other, norm="sample")
        _paired(ledger, key, f"{text} (mean loss, sample norm)", found, "critic_loss", where, least=LEARNED)
    of_batch = values(frame, "critic_loss", norm="batch")
    of_batch = of_batch[of_batch.condition == "clean"]
    distance = float((of_batch.value - math.log(n_classes)).abs().max()) if len(of_batch) else None
    ledger.check(
        "critic-batch",
        "divided by the maximum of a batch, as the original has them, the maps teach a critic nothing in one pass",
        ours=distance,
        rule=f"the mean loss of every kind and seed is within {CHANCE:g} of ln {n_classes}",
        holds=distance <= CHANCE if _enough(of_batch) else None,
        where=where,
    )


def check_accuracy(ledger: Ledger, frame: pd.DataFrame, where: str, few: str = released.FEW) -> None:
    """``few``: what was trained on (`trained_on`); the recalled values are of the release's own."""
    for group, recalled in released.ACCURACY.items():
        condition, kind = group.split("/")
        own = values(frame, "accuracy")
        own = own[(own.condition == condition) & (own.kind == kind)].value
        name = f"test accuracy of {'CNN-LSX' if kind == 'lsx' else 'CNN'}, {NAMES.get(condition, few)}"
        found = {"ours": _mean(own), "spread": _deviation(own), "unit": "%", "where": where}
        if few == released.FEW:
            reference = {"reference": recalled, "kind": released.RECALLED, "tolerance": 1.0}
            ledger.within(f"accuracy-{group}", name, **reference, **found)
        else:
            rule = f"none: the release's is of {released.FEW}"
            ledger.check(f"accuracy-{group}", name, rule=rule, holds=None, **found)
    gain = differences(frame, "accuracy", "lsx", "cnn")
    _paired(ledger, "gain", f"with {few} CNN-LSX is more accurate than a CNN", gain, "accuracy", where,
            least=GAIN, reference="more accurate", unit="points")  # fmt: skip
    control = differences(frame, "accuracy", "lsx", "no-feedback")
    _paired(ledger, "gain-control", "and more accurate than all its phases without the critic's feedback", control,
            "accuracy", where, unit="points")  # fmt: skip


def check_shortcuts(ledger: Ledger, frame: pd.DataFrame, where: str) -> None:
    reference = "less influenced"
    for condition in ("decoy", "color", "decoy-unconf", "color-unconf"):
        gain = differences(frame, "accuracy", "lsx", "cnn", condition=condition)
        clean = condition.endswith("unconf")
        _paired(ledger, f"shortcut-{condition}", f"{NAMES[condition]}: CNN-LSX is more accurate than a CNN", gain,
                "accuracy", where, least=0.0 if clean else SHORTCUT, reference=reference, unit="points")  # fmt: skip
    for condition in ("decoy", "decoy-unconf"):
        mass = differences(frame, "decoy_mass", "lsx", "cnn", condition=condition, norm="sample")
        _paired(ledger, f"mass-{condition}", f"{NAMES[condition]}: less of its explanation lies on the decoy", mass,
                "decoy_mass", where, reference=reference)  # fmt: skip


def check_consolidation(ledger: Ledger, frame: pd.DataFrame, where: str) -> None:
    for metric, name in (("ridge_accuracy", "ridge classification"), ("iies", "inter- and intra-class similarity")):
        for norm in ("batch", "sample"):
            for label in ("true", "predicted"):
                found = differences(frame, metric, "lsx", "cnn", norm=norm, label=label)
                _paired(ledger, f"{metric}-{norm}-{label}",
                        f"explanations of CNN-LSX are more alike within a class: {name}, {norm} norm, {label} label",
                        found, metric, where, reference="more class-consistent")  # fmt: skip


def check_faithfulness(ledger: Ledger, frame: pd.DataFrame, where: str) -> None:
    for how, name, unit in (
        ("value", "as published, by value", "points"),
        ("area", "equal numbers of pixels", "points"),
        ("rank", "the original's second version, by rank (found afterwards)", ""),
    ):
        for metric in ("comprehensiveness", "sufficiency"):
            found = differences(frame, f"{metric}_{how}", "lsx", "cnn", norm="sample")
            _paired(ledger, f"{metric}-{how}", f"explanations of CNN-LSX are more faithful: {metric}, {name}", found,
                    f"{metric}_{how}", where, reference="more faithful", unit=unit)  # fmt: skip


def trained_on(study: SelfExplainingStudy) -> str:
    """The training images in words."""
    source, share = parts(study.dataset)[1], study.few_shot_train_percent
    return released.FEW if (source, share) == ("mnist", 0.02) else f"{100 * share:g} % of {source}"


NAMES = {
    "decoy": "decoys",
    "color": "colours",
    "decoy-unconf": "decoys, and some clean images",
    "color-unconf": "colours, and some images of any colour",
}
"""Conditions in words, but for the clean one, which has none."""


def _paired(
    ledger: Ledger,
    key: str,
    claim: str,
    found: pd.Series,
    metric: str,
    where: str,
    *,
    least: float = 0.0,
    reference: str | None = None,
    unit: str = "",
) -> None:
    """Enter that the differences ``found``, one a seed, go the way that is better in ``metric``."""
    higher = METRICS[metric].better == "higher"
    gains = found if higher else -found
    needed = math.ceil(0.8 * len(found))
    by = f" by {least:g}" if least else ""
    ledger.check(
        key,
        claim,
        ours=_mean(found),
        spread=_deviation(found),
        reference=reference,
        kind=released.PAPER if reference else None,
        rule=f"mean difference {'above' if higher else 'below'} 0{by} at least, and four seeds in five agree"
        if least
        else f"mean difference {'above' if higher else 'below'} 0, and four seeds in five agree",
        holds=bool(gains.mean() >= least and gains.mean() > 0 and (gains > 0).sum() >= needed)
        if len(found) >= MIN_SEEDS
        else None,
        unit=unit,
        where=where,
    )


def _enough(rows: pd.DataFrame) -> bool:
    return rows.seed.nunique() >= MIN_SEEDS


def _mean(found: Sequence[float] | pd.Series) -> float | None:
    return float(pd.Series(found).mean()) if len(found) else None


def _deviation(found: Sequence[float] | pd.Series) -> float | None:
    return float(pd.Series(found).std()) if len(found) > 1 else None
