"""The ledger never says "reproduced" of what was not measured, and its printed lines are stable."""

import json

import numpy as np
import pytest

from helpers.ledger import MIME, Ledger, LedgerError


@pytest.fixture
def ledger():
    return Ledger("toyshapes")


def within(ledger, ours, **changes):
    arguments = dict(reference=0.9, kind="released", tolerance=0.05, where="4.2") | changes
    return ledger.within("tdr", "TDR of the PiNet", ours=ours, **arguments)


@pytest.mark.parametrize(
    ("ours", "verdict"), [(0.9, "reproduced"), (0.95, "reproduced"), (0.85, "reproduced"), (0.951, "differs")]
)
def test_within_compares_the_distance_to_the_reference(ledger, ours, verdict):
    assert within(ledger, ours).verdict == verdict


def test_the_edge_of_the_tolerance_counts_whatever_the_binary_rounding(ledger):
    assert 0.4 - 0.3 > 0.1
    assert within(ledger, 0.4, reference=0.3, tolerance=0.1).verdict == "reproduced"


@pytest.mark.parametrize("ours", [None, float("nan"), float("inf"), np.float32("nan"), ""])
@pytest.mark.parametrize("holds", [True, False, None])
def test_what_was_not_measured_is_never_reproduced_nor_refuted(ledger, ours, holds):
    entry = ledger.check("a", "a claim", ours=ours, rule="as it must be", holds=holds, where="1")
    assert entry.verdict == "not verified"
    assert "not measured" in ledger._repr_mimebundle_()["text/html"]


def test_too_few_fits_are_not_verified_though_the_value_fits(ledger):
    assert within(ledger, 0.9, enough=False).verdict == "not verified"
    for key, values in (("rising", (0.1, 0.2)), ("falling", (0.2, 0.1))):
        entry = ledger.ordered(key, "it grows", list(zip("ab", values, strict=True)), where="1", enough=False)
        assert entry.verdict == "not verified"


def test_agreement_with_hearsay_is_no_reproduction(ledger):
    assert within(ledger, 0.9, kind="not verified").verdict == "not verified"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.1, 0.2, 0.3), "holds"),
        ((0.1, 0.3, 0.2), "fails"),
        ((0.1, 0.1, 0.2), "fails"),
        ((0.1, None, 0.3), "not verified"),
    ],
)
def test_ordered_wants_strictly_increasing_values(ledger, values, verdict):
    entry = ledger.ordered("order", "it grows", list(zip("abc", values, strict=True)), where="1")
    assert (entry.verdict, entry.rule) == (verdict, "a < b < c")


@pytest.mark.parametrize(
    ("kind", "verdicts"),
    [("paper", ("reproduced", "differs")), ("released", ("reproduced", "differs")), ("ours", ("holds", "fails"))],
)
def test_what_nobody_else_published_is_not_reproduced_but_holds(ledger, kind, verdicts):
    for holds, verdict in zip((True, False), verdicts, strict=True):
        entry = ledger.check(verdict, "c", ours=1, rule="r", holds=holds, where="1", reference=1, kind=kind)
        assert entry.verdict == verdict


def test_published_and_own_claims_are_counted_apart(ledger):
    assert ledger.summary() == "0 of 0 reproduced"
    ledger.check("own", "a claim", ours=1, rule="r", holds=True, where="1")
    assert ledger.summary() == "1 of 1 of our own hold"
    within(ledger, 0.7)
    assert ledger.summary() == "0 of 1 reproduced, 1 of 1 of our own hold"
    ledger.check("hearsay", "a claim", ours=1, rule="r", holds=True, where="1", reference=1, kind="not verified")
    ledger.check("early", "a claim", ours=1, rule="r", holds=None, where="1")
    assert ledger.summary() == "0 of 2 reproduced (1 not verified), 1 of 2 of our own hold (1 not verified)"


def test_percentages_differ_by_points(ledger):
    assert within(ledger, 40.0, reference=30.0, tolerance=15, unit="%").rule == "within 15 points of the reference"


def test_one_line_a_claim_without_a_digit_of_ours(ledger, capsys):
    within(ledger, 0.91234, spread=0.0567)
    line = capsys.readouterr().out
    assert line == "✓ reproduced   | TDR of the PiNet | 0.9 (released) | rule: within 0.05 of the reference\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reference": 1.0}, "come together"),
        ({"kind": "paper"}, "come together"),
        ({"reference": 1.0, "kind": "rumour"}, "unknown kind 'rumour'"),
    ],
)
def test_a_reference_needs_a_known_kind(ledger, arguments, message):
    with pytest.raises(LedgerError, match=message):
        ledger.check("a", "a claim", ours=1.0, rule="equal", holds=True, where="1", **arguments)
    assert ledger.entries == []


def test_duplicate_keys_and_senseless_tolerances_are_refused(ledger):
    within(ledger, 0.9)
    with pytest.raises(LedgerError, match="'tdr' is already taken"):
        within(ledger, 0.9)
    with pytest.raises(LedgerError, match="tolerance nan"):
        Ledger("other").within("a", "b", ours=1, reference=1, kind="paper", tolerance=float("nan"), where="1")


def test_the_display_carries_every_entry_for_tools(ledger):
    within(ledger, np.float32(0.9), spread=np.float64(0.01), unit="%")
    ledger.check("b", "less than <b>half</b>", ours=3, rule="x < 4", holds=np.bool_(False), where="5")
    bundle = ledger.show()._repr_mimebundle_()
    carried = json.loads(json.dumps(bundle[MIME]))
    assert [entry["verdict"] for entry in carried["entries"]] == ["reproduced", "fails"]
    assert "0.9 ± 0.01 %" in bundle["text/html"]
    assert "&lt;b&gt;half" in bundle["text/html"]
    assert bundle["text/plain"].startswith("toyshapes: 1 of 1 reproduced, 0 of 1 of our own hold\n✓")
