"""The claims about pixel-grounded prototypes, each with its rule, entered into a ledger. The rules were fixed before
any result of the study was seen.

The paper's tables were not at hand: its claims are compared in words. What is compared shares its seed: data, split and
order.
"""

from __future__ import annotations

import pandas as pd

from helpers.ledger import Ledger
from helpers.prototypes.tables import differences, values

MIN_SEEDS = 3
TABLE = 0.001  # percentage points, of a mean receptive field: the digits of the table
UNMOVED = 1e-6  # of a similarity: rounding
SAME_PATCH = 1e-5  # of features in [0, 1], single precision (spec, section 15.12)
SUMS = 1e-4  # of contributions against their logit
HIDDEN = 1.0  # % of the similarity, the least change that counts
TARGET = 95.0  # % of the birds (issue: the study's own goal)
COMPETITIVE = 2.0  # points of accuracy
SMALL = 60.0  # % of the image, the most that a cut may see on average to be called constrained


def check_receptive_fields(ledger: Ledger, agreeing: int, rows: int, where: str) -> None:
    """``agreeing`` of the ``rows`` of the reference table."""
    ledger.check(
        "receptive-fields",
        "the interval engine finds every map size, stride, side and mean receptive field of the reference table",
        ours=f"{agreeing} of {rows} rows",
        reference=f"{rows} rows",
        kind="released",
        rule=f"all rows agree, mean receptive fields within {TABLE:g} points",
        holds=agreeing == rows,
        where=where,
    )


def check_verifier(ledger: Ledger, disagreements: int, cells: int, where: str) -> None:
    """``disagreements`` with the support of gradients, of so many ``cells``."""
    ledger.check(
        "gradient-support",
        "the pixels that a gradient reaches are those of the box, and no others",
        ours=disagreements,
        unit=f"of {cells} cells",
        rule="no cell differs",
        holds=disagreements == 0 if cells else None,
        where=where,
    )


def check_grounding(ledger: Ledger, frame: pd.DataFrame, where: str) -> None:
    """Does the box hold all that decided the similarity, and what does an up-sampled one leave out?"""
    outside = values(frame, "proof_outside").value
    ledger.check(
        "grounded",
        "noise on all pixels outside its box does not change the similarity of a prototype at its cell",
        ours=_largest(outside),
        rule=f"the largest change of all nets, images and prototypes is at most {UNMOVED:g}",
        holds=_largest(outside) <= UNMOVED if len(outside) else None,
        where=where,
    )
    own = values(frame, "hidden_share")
    own = own[own.kind == "protopnet"]
    hidden = own.value
    ledger.check(
        "up-sampling",
        "the box that ProtoPNet draws by up-sampling leaves out pixels that decide",
        ours=float(hidden.mean()) if len(hidden) else None,
        spread=deviation(hidden),
        unit="%",
        reference="it does",
        kind="paper",
        rule=f"noise outside it changes the similarity by more than {HIDDEN:g} % for half the prototypes or more, in "
        "every ProtoPNet",
        holds=bool((hidden >= 50).all()) if own.seed.nunique() >= MIN_SEEDS else None,
        where=where,
    )


def check_contributions(ledger: Ledger, difference: float, where: str) -> None:
    ledger.check(
        "contributions",
        "the contributions of a class's own prototypes sum to its logit",
        ours=difference,
        rule=f"they differ by at most {SUMS:g}",
        holds=difference <= SUMS,
        where=where,
    )


def check_projection(ledger: Ledger, frame: pd.DataFrame, where: str) -> None:
    difference, repeated = values(frame, "patch_difference").value, values(frame, "repeated_images").value
    ledger.check(
        "projection",
        "every prototype is a patch of a training image of its class, and no two come from one image",
        ours=_largest(difference),
        rule=f"no component of a prototype differs by more than {SAME_PATCH:g} from its patch's, and no image stands "
        "twice",
        holds=_largest(difference) <= SAME_PATCH and not repeated.any() if len(difference) else None,
        where=where,
    )


def check_target(ledger: Ledger, frame: pd.DataFrame, group: str, where: str) -> None:
    """``group``: the one that the study is about."""
    own = values(frame, "accuracy", group).value
    ledger.check(
        "accuracy",
        f"PixPNet recognises ToyBirds ({group})",
        ours=float(own.mean()) if len(own) else None,
        spread=deviation(own),
        unit="%",
        rule=f"test accuracy is at least {TARGET:g} % for every seed",
        holds=bool((own >= TARGET).all()) if len(own) >= MIN_SEEDS else None,
        where=where,
    )


def check_competitive(ledger: Ledger, frame: pd.DataFrame, where: str) -> None:
    """On ToyBirds, against the same backbone without prototypes, and against ProtoPNet on a deeper cut of it."""
    ours = "birdnet@stage3/pixpnet"
    for key, other, name in (
        ("classifier", "birdnet@stage3/classifier", "a classifier on the same backbone"),
        ("protopnet", "birdnet@stage4/protopnet", "ProtoPNet, whose cells see 60 % of the image"),
    ):
        text = f"PixPNet is as accurate as {name} (ToyBirds)"
        _competitive(ledger, key, text, differences(frame, "accuracy", ours, other), where)


def check_photographs(ledger: Ledger, frame: pd.DataFrame, where: str) -> None:
    """On 20 species of CUB, frozen backbone, against a classifier and ProtoPNet on the same cut."""
    cut = "resnet50_v1@layer3"
    for kind, name in (("classifier", "a classifier"), ("protopnet", "ProtoPNet's head")):
        gain = differences(frame, "accuracy", f"{cut}/pixpnet", f"{cut}/{kind}")
        text = f"PixPNet is as accurate as {name} on the same frozen features (20 species of CUB)"
        _competitive(ledger, f"cub-{kind}", text, gain, where)


def check_cut(ledger: Ledger, front: pd.DataFrame, of: str, where: str) -> None:
    """``front``: accuracy and mean receptive field (both in %) of the cuts on the Pareto front, of all backbones, and
    ``of`` what networks and images these are, in words."""
    best = front.accuracy.max()
    constrained = front[front.mean_rf <= SMALL].accuracy.max()
    ledger.check(
        "goldilocks",
        f"a cut that sees part of the image is as accurate as the best one ({of})",
        ours=float(constrained - best) if len(front) else None,
        unit="points",
        reference="there is one",
        kind="paper",
        rule=f"with a mean receptive field of at most {SMALL:g} %, at most {COMPETITIVE:g} points below the best cut",
        holds=bool(best - constrained <= COMPETITIVE) if len(front) else None,
        where=where,
    )


def _competitive(ledger: Ledger, key: str, text: str, gain: pd.Series, where: str) -> None:
    ledger.check(
        key,
        text,
        ours=float(gain.mean()) if len(gain) else None,
        spread=deviation(gain),
        unit="points",
        reference="competitive",
        kind="paper",
        rule=f"the mean difference is at least -{COMPETITIVE:g} points",
        holds=bool(gain.mean() >= -COMPETITIVE) if len(gain) >= MIN_SEEDS else None,
        where=where,
    )


def _largest(found: pd.Series) -> float | None:
    return float(found.max()) if len(found) else None


def deviation(found: pd.Series) -> float | None:
    return float(found.std()) if len(found) > 1 else None
