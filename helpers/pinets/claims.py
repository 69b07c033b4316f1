"""The claims about ToyShapes, each with its rule, entered into a ledger. The rules were fixed before our fits."""

from __future__ import annotations

import pandas as pd

from helpers.config import data_config
from helpers.data import toyshapes
from helpers.ledger import Ledger
from helpers.pinets import released
from helpers.pinets.presets import GROUPS, LABELS

IDENTITY = 1e-6  # relative rounding of a sum of 6400 float32 numbers


class Medians:
    """Medians over the accepted fits of a group, None where there are fewer than `released.MIN_FITS`."""

    def __init__(self, table: pd.DataFrame):
        self.groups = {name: rows for name, rows in table[table.accepted].groupby("group")}

    def fits(self, group: str) -> int:
        return len(self.groups.get(group, ()))

    def __call__(self, group: str, metric: str) -> float | None:
        return float(self.groups[group][metric].median()) if self.fits(group) >= released.MIN_FITS else None

    def spread(self, group: str, metric: str) -> float | None:
        return float(self.groups[group][metric].std()) if self.fits(group) >= 2 else None

    def of(self, metric: str, *groups: str) -> list[tuple[str, float | None]]:
        return [(LABELS[group], self(group, metric)) for group in groups]


def check_data(ledger: Ledger, where: str) -> None:
    """The generator returns the published images, for each seed whose checksum is known."""
    golden = data_config("toyshapes")["golden"]
    wrong = [seed for seed, checksums in golden.items() if toyshapes.checksums(toyshapes.generate(seed)) != checksums]
    ledger.check(
        "data",
        "the generator draws the published images and masks, to the bit",
        ours=f"{len(golden) - len(wrong)} of {len(golden)} seeds",
        reference=f"SHA-1 of {len(golden)} seeds",
        kind=released.KIND,
        rule="equal checksums and numbers of positives",
        holds=not wrong,
        where=where,
    )


def check_medians(ledger: Ledger, table: pd.DataFrame, metric: str, claim: str, where: str) -> None:
    """One claim a group: our median of ``metric`` agrees with the released one (`released.tolerance`)."""
    ours = Medians(table)
    for group in GROUPS:
        column = f"legacy_{metric}" if f"legacy_{metric}" in released.TABLE[group] else metric
        ledger.within(
            f"{column}-{group}",
            f"{LABELS[group]}: {claim}" + (" (legacy OR rule)" if column != metric else ""),
            ours=ours(group, column),
            spread=ours.spread(group, column),
            reference=released.TABLE[group][column][0],
            kind=released.KIND,
            tolerance=released.tolerance(group, column),
            where=where,
        )


def check_all_medians(ledger: Ledger, table: pd.DataFrame, metric: str, claim: str, where: str) -> None:
    """The same as one claim: the medians of every group agree."""
    ours = Medians(table)
    values = {group: ours(group, metric) for group in GROUPS}
    measured = None not in values.values()
    close = [
        abs(v - released.TABLE[g][metric][0]) <= released.tolerance(g, metric)
        for g, v in values.items()
        if v is not None
    ]
    ledger.check(
        metric,
        claim,
        ours=_listed(values) if measured else None,
        reference=_listed({group: released.TABLE[group][metric][0] for group in GROUPS}),
        kind=released.KIND,
        rule=f"every group: {released.RULE}",
        holds=all(close) if measured else None,
        where=where,
    )


def check_alignment(ledger: Ledger, table: pd.DataFrame, where: str) -> None:
    """A PiNet's logit is the sum of its explanation; Grad-CAM's map is not what the CNN summed."""
    residual = table[table.group != "cnn"].alignment_residual
    ledger.check(
        "alignment",
        "the prediction is the explanation added up, in every PiNet",
        ours=float(residual.max()) if len(residual) else None,
        reference="by construction",
        kind="paper",
        rule=f"no more than {IDENTITY:g} of the logits' variance is left over in any fit",
        holds=bool((residual <= IDENTITY).all()) if len(residual) else None,
        where=where,
    )


def check_orders(ledger: Ledger, table: pd.DataFrame, where: str) -> None:
    """What the released numbers say of the groups beside each other (spec section 5.4, "Reading")."""
    ours = Medians(table)
    known = {"kind": released.KIND, "where": where}
    for other in ("soft", "pinet"):
        claim = f"without a spatial decoder the map is useless: PiNet Naive < .5 < {LABELS[other]}"
        low, high = ours("naive", "optimal_score"), ours(other, "optimal_score")
        measured = low is not None and high is not None
        ledger.check(f"decoder-{other}", claim, ours=f"{low:.3f} and {high:.3f}" if measured else None,
                     rule="medians on either side of .5", holds=low < 0.5 < high if measured else None,
                     reference="holds", **known)  # fmt: skip
    for group, floor in (("feedback", 0.90), ("ensemble", 0.90), ("strong", 0.95)):
        value = ours(group, "optimal_score")
        ledger.check(f"floor-{group}", f"{LABELS[group]}: optimal score of at least {floor:.2f}", ours=value,
                     rule=f"median >= {floor:.2f}", holds=None if value is None else value >= floor,
                     reference=released.TABLE[group]["optimal_score"][0], **known)  # fmt: skip
    ledger.ordered("naive-order", "without a threshold PiNet's map beats Grad-CAM's",
                   ours.of("naive_score", "cnn", "pinet"), reference="Grad-CAM < PiNet", **known)  # fmt: skip
    ledger.ordered("optimal-order", "with the oracle's threshold Grad-CAM's map beats PiNet's",
                   ours.of("optimal_score", "pinet", "cnn"), reference="PiNet < Grad-CAM", **known)  # fmt: skip
    order = ("feedback", "pinet", "cnn", "naive")
    ledger.ordered("shift-order", "sufficiency: the shift of accuracy grows from Feedback to Naive",
                   ours.of("shift", *order), reference=" < ".join(LABELS[g] for g in order), **known)  # fmt: skip
    ledger.ordered("range-order", "feedback widens the range of thresholds that score above .9",
                   ours.of("range_0.9", "pinet", "feedback"), reference="PiNet < PiNet Feedback", **known)  # fmt: skip


def check_or_vote(ledger: Ledger, table: pd.DataFrame, where: str) -> None:
    """Our finding on the published ensembles: the OR vote flatters their sufficiency."""
    ours = Medians(table)
    legacy, mean = (ours("ensemble", metric) for metric in ("legacy_recursive", "recursive"))
    ledger.ordered(
        "or-vote",
        "ensembles: the bundle's OR vote gives a higher recursive accuracy than the mean logit",
        [("mean logit", mean), ("OR vote", legacy)],
        reference=".977 < .997 and .913 < .970 in the two ensembles re-run",
        kind=released.KIND,
        where=where,
    )


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{LABELS[group]} {value:.3f}" for group, value in values.items())
