"""The claims about the evaluation of prototypes, each with its rule, entered into a ledger. The rules were fixed before
any result of this study was seen; those of ``beyond-center`` and ``causal`` were made stricter afterwards: that the
control of the image's middle has to be beaten by more than an interval.

The paper's tables were not at hand: its claims are compared in words. What is compared shares its seed, and in the
relevance ordering test its images too.
"""

from __future__ import annotations

import pandas as pd

from helpers.ledger import Ledger
from helpers.prototypes.claims import MIN_SEEDS, deviation
from helpers.prototypes.evaluation.tables import values
from helpers.prototypes.tables import differences

DISTINCT = 0.6  # of the prototypes of a class, the least share that has a part of its own
MOSTLY = 50.0  # %: more often than not
PIXEL = 1.0  # px


def check_ordering(ledger: Ledger, frame: pd.DataFrame, where: str, images: str = "ToyBirds") -> None:
    """Do PixPNet's maps find the pixels that a similarity rests on sooner than other maps do? On what ``images``, in
    words."""
    for other, name in (("upsample", "up-sampling"), ("random", "chance"), ("prp", "PRP")):
        own = values(frame, "ordering", "area", f"rf - {other}")
        ledger.check(
            f"rot-{other}-{images}",
            f"the map of receptive fields orders pixels better than {name} (area under the curve; {images})",
            ours=_mean(own.value),
            spread=deviation(own.value),
            unit="points",
            reference="better",
            kind="paper",
            rule="in every network the difference is above 0, its 95 % interval too",
            holds=bool((own.low > 0).all()) if own.seed.nunique() >= MIN_SEEDS else None,
            where=where,
        )


def check_constrained(
    ledger: Ledger, frame: pd.DataFrame, ours: str, others: dict[str, str], where: str, images: str = "ToyBirds"
) -> None:
    """Are prototypes of a cut that sees parts, those of the group ``ours``, more consistent and more stable than those
    of cuts that see most of the image? ``others``: a name in words and the group. On what ``images``, in words."""
    for metric, name in (("soft_consistency", "consistent"), ("soft_stability", "stable")):
        for other, group in others.items():
            gain = differences(values(frame, "consistency", metric, "pixpnet-exact"), metric, ours, group)
            ledger.check(
                f"{name}-{group.replace('/', '-')}",
                f"prototypes that see parts are more {name} than those of {other} ({images})",
                ours=_mean(gain),
                spread=deviation(gain),
                unit="points",
                reference=f"more {name}",
                kind="paper",
                rule="the difference is above 0 with every seed",
                holds=bool((gain > 0).all()) if len(gain) >= MIN_SEEDS else None,
                where=where,
            )


def check_beyond_center(ledger: Ledger, frame: pd.DataFrame, group: str, where: str) -> None:
    """Whatever looks at the middle of every image is a control that knows nothing."""
    found = values(frame, "consistency", "soft_consistency")
    found = found[found.group == group].set_index("seed")
    own, center = (found[found.variant == name] for name in ("pixpnet-exact", "pixpnet-exact, center"))
    gain = (own.value - center.value).dropna()
    ledger.check(
        "beyond-center",
        f"where prototypes look is more consistent than the middle of the image ({group})",
        ours=_mean(gain),
        spread=deviation(gain),
        unit="points",
        rule="with every seed, the 95 % interval lies above that of the middle",
        holds=_above(own, center) if len(gain) >= MIN_SEEDS else None,
        where=where,
    )


def check_causes(ledger: Ledger, frame: pd.DataFrame, group: str, where: str) -> None:
    """Is the part under the box the part that the similarity depends on?"""
    caused, middle, chance = (
        own[own.group == group].set_index("seed")
        for own in (
            values(frame, "truth", "causal_centre", "box"),
            values(frame, "truth", "causal_centre", "center"),
            values(frame, "truth", "causal_centre_chance", "box"),
        )
    )
    enough = min(map(len, (caused, middle, chance))) >= MIN_SEEDS
    ledger.check(
        "causal",
        f"the part in the middle of a prototype's box is the one whose removal lowers it most, beyond the controls "
        f"({group})",
        ours=_mean(caused.value),
        spread=deviation(caused.value),
        unit="%",
        rule="with every seed, the 95 % interval lies above those of boxes laid elsewhere and of the image's middle",
        holds=_above(caused, chance) and _above(caused, middle) if enough else None,
        where=where,
    )
    ledger.check(
        "causal-mostly",
        f"the part in the middle of a prototype's box is the one whose removal lowers it most, more often than not "
        f"({group})",
        ours=_mean(caused.value),
        spread=deviation(caused.value),
        unit="%",
        rule=f"at least {MOSTLY:g} % of the matches, with every seed",
        holds=bool((caused.value >= MOSTLY).all()) if len(caused) >= MIN_SEEDS else None,
        where=where,
    )


def check_mapping_error(ledger: Ledger, frame: pd.DataFrame, where: str) -> None:
    """Which map peaks nearer to the part that matters?"""
    wide = values(frame, "truth", "peak_error").pivot_table(index=["group", "seed"], columns="variant", values="value")
    known = {"rf", "upsample"} <= set(wide)
    gain = (wide["upsample"] - wide["rf"]).dropna() if known else pd.Series(dtype=float)
    seeds = gain.index.get_level_values("seed").nunique() if known else 0
    ledger.check(
        "peak-error",
        "the map of receptive fields peaks nearer to the part that matters than up-sampling",
        ours=_mean(gain),
        spread=deviation(gain),
        unit="px nearer",
        reference="nearer",
        kind="paper",
        rule=f"by {PIXEL:g} px or more, on average over networks",
        holds=bool(gain.mean() >= PIXEL) if seeds >= MIN_SEEDS else None,
        where=where,
    )


def check_distinct(ledger: Ledger, frame: pd.DataFrame, each: int, group: str, where: str) -> None:
    """``each``: prototypes of a class."""
    own = values(frame, "truth", "class_parts", "")
    own = own[own.group == group].value
    ledger.check(
        "distinct",
        f"the prototypes of a class stand for different parts ({group})",
        ours=_mean(own),
        spread=deviation(own),
        unit=f"parts of {each} prototypes",
        reference="different parts",
        kind="paper",
        rule=f"at least {DISTINCT * each:g} parts for {each} prototypes, with every seed",
        holds=bool((own >= DISTINCT * each).all()) if len(own) >= MIN_SEEDS else None,
        where=where,
    )


def _mean(found: pd.Series) -> float | None:
    return float(found.mean()) if len(found) else None


def _above(own: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether, seed by seed (their index), the interval of ``own`` lies above that of ``other``."""
    return bool((own.low > other.high.reindex(own.index)).all())
