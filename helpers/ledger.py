"""The ledger of claims: what a paper says, what we measured, and a verdict by a rule fixed beforehand.

    ledger = Ledger("toyshapes")
    ledger.within("pinet-tdr", "TDR of the PiNet, median of 30 fits", ours=0.918, spread=0.04,
                  reference=0.92, kind="released", tolerance=0.03, where="4.2")
    ledger.ordered("tdr-order", "TDR grows with supervision", [("naive", 0.4), ("weak", 0.7), ("strong", 0.9)],
                   reference="naive < weak < strong", kind="paper", where="4.2")
    ledger.show()

Each claim prints one line that holds its verdict but no digit of our own value, so that nbval compares verdicts while
the tolerance stays ours. Our values stand in the table that `Ledger.show` displays.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, Self, get_args

MIME = "application/vnd.sightline.ledger+json"
"""The type under which a displayed ledger carries its entries, for tools that read executed notebooks."""

Kind = Literal["paper", "released", "ours", "not verified"]
"""Where a reference comes from: printed in the paper, read off its released results, an earlier result of ours, or
known by hearsay only (then no comparison with it can count as a reproduction)."""
OWN = (None, "ours")  # kinds of a claim that nobody else published

Verdict = Literal["reproduced", "differs", "holds", "fails", "not verified"]
"""A published claim is reproduced or differs; one of our own, which has nothing to reproduce, holds or fails."""
MARKS: dict[Verdict, str] = {"reproduced": "✓", "differs": "✗", "holds": "✓", "fails": "✗", "not verified": "·"}
COLOURS: dict[str, str] = {"✓": "#2f9e5b", "✗": "#d9480f", "·": "#868e96"}

Value = float | int | str | None


class LedgerError(ValueError):
    """A claim that cannot be entered: the message says which and why."""


@dataclass(frozen=True)
class Entry:
    """One claim. ``ours`` and ``spread`` are None where nothing was measured; ``rule`` is what decides the verdict."""

    key: str
    claim: str
    reference: Value
    kind: Kind | None
    ours: Value
    spread: float | None
    unit: str
    rule: str
    verdict: Verdict
    where: str

    @property
    def own(self) -> bool:
        return self.kind in OWN

    def line(self) -> str:
        """The one stable line of this claim."""
        against = f" | {self.reference_text()}" if self.kind else ""
        return f"{MARKS[self.verdict]} {self.verdict:<12} | {self.claim}{against} | rule: {self.rule}"

    def reference_text(self) -> str:
        return f"{_with_unit(self.reference, self.unit)} ({self.kind})" if self.kind else ""

    def ours_text(self) -> str:
        if self.ours is None:
            return "not measured"
        spread = "" if self.spread is None else f" ± {number(self.spread)}"
        return _with_unit(self.ours, self.unit, spread)


class Ledger:
    """The claims of one study, in the order in which they were checked. A notebook displays it as a table."""

    def __init__(self, study: str) -> None:
        self.study = study
        self.entries: list[Entry] = []

    def check(
        self,
        key: str,
        claim: str,
        *,
        ours: Value,
        rule: str,
        holds: bool | None,
        where: str,
        reference: Value = None,
        kind: Kind | None = None,
        spread: float | None = None,
        unit: str = "",
    ) -> Entry:
        """Enter a claim whose rule was evaluated by the caller, and print its line.

        Args:
            key: short name, unique in the ledger.
            claim: what is claimed, in words.
            ours: the value we measured, or a short text that states several. None and NaN mean: not measured.
            rule: the rule that decides, in words, fixed before looking.
            holds: whether the rule holds; None where it cannot be decided yet (too few fits, say).
            where: the section or cell that proves it.
            reference: the value that we compare with, and its ``kind``; a claim may have none.
            spread: of ours, in the same unit (standard deviation or half the interval; the rule or claim says which).

        Raises:
            LedgerError: duplicate or empty key, or a reference without its kind (or the reverse).
        """
        if not key or any(entry.key == key for entry in self.entries):
            raise LedgerError(f"{self.study}: the key {key!r} is {'already taken' if key else 'empty'}")
        if (reference is None) != (kind is None):
            raise LedgerError(f"{key}: a reference and its kind ({', '.join(get_args(Kind))}) come together")
        if kind is not None and kind not in get_args(Kind):
            raise LedgerError(f"{key}: unknown kind {kind!r}; there are: {', '.join(get_args(Kind))}")

        ours, spread = _measured(ours), _measured(spread)
        decided = holds is not None and ours is not None and kind != "not verified"
        verdict: Verdict = "not verified"
        if decided:
            yes, no = ("holds", "fails") if kind in OWN else ("reproduced", "differs")
            verdict = yes if holds else no
        entry = Entry(key, claim, _measured(reference), kind, ours, spread, unit, rule, verdict, where)
        self.entries.append(entry)
        print(entry.line())
        return entry

    def within(
        self,
        key: str,
        claim: str,
        *,
        ours: float | None,
        reference: float,
        kind: Kind,
        tolerance: float,
        where: str,
        spread: float | None = None,
        unit: str = "",
        enough: bool = True,
    ) -> Entry:
        """`check` by the rule |ours - reference| <= tolerance. Not ``enough`` fits or data yet: not verified."""
        if not tolerance >= 0:  # also catches NaN
            raise LedgerError(f"{key}: tolerance {tolerance} is no width")
        value = _measured(ours)
        holds = agree(value, reference, tolerance) if enough and value is not None else None
        rule = f"within {_with_unit(tolerance, 'points' if unit == '%' else unit)} of the reference"
        return self.check(
            key,
            claim,
            ours=ours,
            reference=reference,
            kind=kind,
            rule=rule,
            holds=holds,
            spread=spread,
            where=where,
            unit=unit,
        )

    def ordered(
        self,
        key: str,
        claim: str,
        values: Sequence[tuple[str, float | None]],
        *,
        where: str,
        reference: Value = None,
        kind: Kind | None = None,
        unit: str = "",
        enough: bool = True,
    ) -> Entry:
        """`check` that the named values increase strictly in the order given."""
        if len(values) < 2:
            raise LedgerError(f"{key}: an order needs two values or more, not {len(values)}")
        measured = [_measured(value) for _, value in values]
        all_there = None not in measured
        holds = all(a < b for a, b in pairwise(measured)) if enough and all_there else None
        ours = ", ".join(f"{name} {number(value)}" for (name, value) in values) if all_there else None
        rule = " < ".join(name for name, _ in values)
        return self.check(
            key, claim, ours=ours, reference=reference, kind=kind, rule=rule, holds=holds, where=where, unit=unit
        )

    def show(self) -> Self:
        """The ledger as the last expression of a cell, where it is displayed as a table."""
        return self

    def summary(self) -> str:
        return summary(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """What `MIME` carries: ``{"study": ..., "entries": [...]}``."""
        return {"study": self.study, "entries": [asdict(entry) for entry in self.entries]}

    def __repr__(self) -> str:
        return "\n".join([f"{self.study}: {self.summary()}", *(entry.line() for entry in self.entries)])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/plain": repr(self), "text/html": table(self.to_dict()), MIME: self.to_dict()}


def agree(value: float, reference: float, tolerance: float) -> bool:
    """``|value - reference| <= tolerance``, but for rounding: 0.4 - 0.3 is a hair more than 0.1 in binary."""
    return abs(value - reference) <= tolerance + 1e-9 * max(1.0, abs(reference))


def summary(ledger: dict[str, Any]) -> str:
    """``"9 of 11 reproduced (1 not verified)"`` of a ledger, and ``"2 of 3 of our own hold"`` where there are such."""
    entries = [Entry(**entry) for entry in ledger["entries"]]
    published, own = ([e.verdict for e in entries if e.own is ours] for ours in (False, True))
    parts = [_share(published, "reproduced", "reproduced")] if published or not own else []
    parts += [_share(own, "holds", "of our own hold")] if own else []
    return ", ".join(parts)


def _share(verdicts: Sequence[Verdict], good: Verdict, words: str) -> str:
    undecided = verdicts.count("not verified")
    return f"{verdicts.count(good)} of {len(verdicts)} {words}" + (f" ({undecided} not verified)" if undecided else "")


def table(ledger: dict[str, Any]) -> str:
    """The HTML table of a ledger's dictionary; inline styles only, since GitHub drops any other."""
    head = "".join(
        f'<th style="text-align:left">{name}</th>'
        for name in ("Claim", "Reference (kind)", "Ours ± spread", "Rule fixed beforehand", "Verdict", "Where")
    )
    rows = "\n".join(_row(Entry(**entry)) for entry in ledger["entries"])
    caption = html.escape(f"{ledger['study']}: {summary(ledger)}")
    return f"<table>\n<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


def number(value: Value) -> str:
    """Four significant digits; integers and texts as they are."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _row(entry: Entry) -> str:
    cells = [
        html.escape(text) for text in (entry.claim, entry.reference_text() or "none", entry.ours_text(), entry.rule)
    ]
    mark = f'<b style="color:{COLOURS[MARKS[entry.verdict]]}">{MARKS[entry.verdict]} {entry.verdict}</b>'
    cells += [mark, html.escape(entry.where)]
    return "<tr>" + "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells) + "</tr>"


def _with_unit(value: Value, unit: str, spread: str = "") -> str:
    return f"{number(value)}{spread}" + (f" {unit}" if unit and not isinstance(value, str) else "")


def _measured(value: Any) -> Any:
    """``value`` as a plain number or text; None if it is None, NaN, infinite or empty, that is: not measured."""
    if value is None or isinstance(value, str):
        return value or None
    value = value.item() if hasattr(value, "item") else value  # NumPy and torch scalars
    return value if math.isfinite(value) else None
