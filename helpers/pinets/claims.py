"""The claims about ToyShapes, each with its rule, entered into a ledger. The rules were fixed before our fits, but for
the one of `check_unstretched`, which they led to."""

from __future__ import annotations

import pandas as pd

from helpers.config import data_config
from helpers.data import toyshapes
from helpers.ledger import Ledger, agree
from helpers.pinets import released
from helpers.pinets.presets import GROUPS, LABELS

RESIDUAL = 1e-6  # relative rounding of a sum of 6400 float32 numbers
IDENTITY = 1e-5  # the same for a logit, whose bias and sum cancel each other in part


class Medians:
    """Medians over the accepted fits of a group; None where there is none."""

    def __init__(self, table: pd.DataFrame):
        self.groups = {name: rows for name, rows in table[table.accepted].groupby("group")}

    def fits(self, group: str) -> int:
        return len(self.groups.get(group, ()))

    def enough(self, *groups: str) -> bool:
        """Are there fits enough in each to compare medians with the released ones, and are they of its settings?"""
        return all(
            self.fits(group) >= released.MIN_FITS and self.groups[group].paper_settings.all() for group in groups
        )

    def __call__(self, group: str, metric: str) -> float | None:
        return float(self.groups[group][metric].median()) if self.fits(group) else None

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
        column = released.column(group, metric)
        ledger.within(
            f"{column}-{group}",
            f"{LABELS[group]}: {claim}, median of {ours.fits(group)} fits"
            + (" (legacy OR rule)" if column != metric else ""),
            ours=ours(group, column),
            spread=ours.spread(group, column),
            reference=released.TABLE[group][column][0],
            kind=released.KIND,
            tolerance=released.tolerance(group, column),
            enough=ours.enough(group),
            where=where,
        )


def check_all_medians(ledger: Ledger, table: pd.DataFrame, metric: str, claim: str, where: str) -> None:
    """The same as one claim: the medians of every group agree."""
    ours, columns = Medians(table), {group: released.column(group, metric) for group in GROUPS}
    values = {group: value for group, column in columns.items() if (value := ours(group, column)) is not None}
    reference = {group: released.TABLE[group][column][0] for group, column in columns.items()}
    close = [agree(v, reference[group], released.tolerance(group, columns[group])) for group, v in values.items()]
    ledger.check(
        metric,
        claim,
        ours=_listed(values),
        reference=_listed(reference),
        kind=released.KIND,
        rule=f"every group: {released.RULE}",
        holds=all(close) if ours.enough(*GROUPS) else None,
        where=where,
    )


def check_alignment(ledger: Ledger, table: pd.DataFrame, identity: pd.DataFrame, where: str) -> None:
    """A PiNet's logit is the sum of its explanation; Grad-CAM's map is not what the CNN summed. ``identity``: see
    `examples.identity_errors`."""
    residual = table[table.group != "cnn"].alignment_residual
    holds = (residual <= RESIDUAL).all() and (identity.identity_error <= IDENTITY).all()
    ledger.check(
        "alignment",
        "the prediction is the explanation added up, in every PiNet",
        ours=float(residual.max()) if len(residual) else None,
        reference="by construction",
        kind="paper",
        rule=f"no more than {RESIDUAL:g} of the logits' variance is left over in any fit, and where the weights are at "
        f"hand, logit and sum differ by no more than {IDENTITY:g}",
        holds=bool(holds) if len(residual) else None,
        where=where,
    )


def check_orders(ledger: Ledger, table: pd.DataFrame, where: str) -> None:
    """What the released numbers say of the groups beside each other (spec section 5.4, "Reading")."""
    ours = Medians(table)

    def ordered(key: str, claim: str, metric: str, *groups: str) -> None:
        reference = " < ".join(LABELS[group] for group in groups)
        values, enough = ours.of(metric, *groups), ours.enough(*groups)
        ledger.ordered(key, claim, values, reference=reference, kind=released.KIND, where=where, enough=enough)

    def bounded(key: str, claim: str, group: str, low: float, high: float) -> None:
        value, rule = ours(group, "optimal_score"), f"{low:.2f} <= median <= {high:.2f}"
        holds = low <= value <= high if ours.enough(group) else None
        reference = released.TABLE[group]["optimal_score"][0]
        ledger.check(key, f"{LABELS[group]}: {claim}", ours=value, spread=ours.spread(group, "optimal_score"),
                     rule=rule, holds=holds, reference=reference, kind=released.KIND, where=where)  # fmt: skip

    bounded("bound-naive", "without a spatial decoder the map is useless", "naive", 0, 0.5)
    for group in ("soft", "pinet"):
        bounded(f"bound-{group}", "with one it is not", group, 0.5, 1)
    for group, floor in (("feedback", 0.9), ("ensemble", 0.9), ("strong", 0.95)):
        bounded(f"bound-{group}", f"optimal score of at least {floor}", group, floor, 1)
    ordered("naive-order", "without a threshold PiNet's map beats Grad-CAM's", "naive_score", "cnn", "pinet")
    ordered("optimal-order", "with the oracle's threshold Grad-CAM's beats PiNet's", "optimal_score", "pinet", "cnn")
    ordered("shift-order", "the lost accuracy grows in this order", "shift", "feedback", "pinet", "cnn", "naive")
    ordered("range-order", "feedback widens the range of thresholds above .9", "range_0.9", "pinet", "feedback")


def check_unstretched(ledger: Ledger, fits: pd.DataFrame, where: str) -> None:
    """Our finding on feedback, from `recursion.unstretched`: it was met by faint maps, not by maps that repeat.

    Found on these fits, so there is nothing to compare it with, and the claim says so.
    """
    feedback = fits[fits.group == "feedback"]
    silent = int((feedback.positives == 0).sum())
    ledger.check(
        "unstretched-feedback",
        "PiNet Feedback: of its map as it is, not stretched to 1, a network recognises nothing (found afterwards)",
        ours=f"{silent} of {len(feedback)} fits" if len(feedback) else None,
        rule='every fit answers "no" to every image',
        holds=silent == len(feedback) if len(feedback) >= released.MIN_FITS else None,
        where=where,
    )


def check_or_vote(ledger: Ledger, table: pd.DataFrame, where: str) -> None:
    """Our finding on the published ensembles: the OR vote flatters their sufficiency."""
    ours = Medians(table)
    ledger.ordered(
        "or-vote",
        "ensembles: the bundle's OR vote gives a higher recursive accuracy than the mean logit",
        [("mean logit", ours("ensemble", "recursive")), ("OR vote", ours("ensemble", "legacy_recursive"))],
        reference=".977 < .997 and .913 < .970 in the two ensembles re-run",
        kind=released.KIND,
        where=where,
        enough=ours.enough("ensemble"),
    )


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{LABELS[group]} {value:.3f}" for group, value in values.items())
