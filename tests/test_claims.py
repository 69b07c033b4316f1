"""The claims about ToyShapes: each verdict follows from the medians by the rule, and nothing is decided on few fits."""

import numpy as np
import pandas as pd
import pytest

from helpers.ledger import Ledger
from helpers.pinets import claims, released, tables
from helpers.pinets.presets import GROUPS, ToyShapesStudy

METRICS = ("accuracy", "naive_score", "optimal_score", "recursive", "shift", "legacy_recursive", "legacy_shift")


def fits_like_the_released(n=5, **changes):
    """A table of ``n`` accepted fits a group whose medians are the released ones, but for ``changes`` by column."""
    rows = []
    for group in GROUPS:
        values = {metric: released.TABLE[group].get(metric, (0.9,))[0] for metric in METRICS}
        values |= {"alignment_residual": 1e-14, "validated_score": values["optimal_score"] - 0.01}
        values |= {"majority_recursive": values["recursive"], "optimal_tdr": 0.97, "optimal_tar": 0.95}
        values |= {f"range_{level}": 1.0 for level in (0.5, 0.75, 0.9)}
        values |= {"range_0.9": 2.0 if group == "feedback" else 1.0}
        for seed, nudge in enumerate(np.linspace(-1e-4, 1e-4, n)):
            row = {name: value + nudge for name, value in values.items() if name != "alignment_residual"}
            rows.append({**row, **changes, "alignment_residual": 1e-14, "group": group, "seed": seed, "accepted": True})
    return pd.DataFrame(rows).assign(paper_settings=True)


def identities(error=1e-7):
    return pd.DataFrame({"group": ["pinet"], "fit": ["pinet/0"], "identity_error": [error]})


def verdicts(table, identity=None):
    ledger = Ledger("toyshapes")
    claims.check_alignment(ledger, table, identities() if identity is None else identity, where="")
    claims.check_all_medians(ledger, table, "accuracy", "accuracy", where="")
    claims.check_all_medians(ledger, table, "recursive", "on the marked part alone", where="")
    for metric in ("naive_score", "optimal_score", "shift"):
        claims.check_medians(ledger, table, metric, metric, where="")
    claims.check_orders(ledger, table, where="")
    return {entry.key: entry.verdict for entry in ledger.entries}


def test_fits_like_the_released_ones_reproduce_every_claim(capsys):
    assert set(verdicts(fits_like_the_released()).values()) == {"reproduced"}


def test_fits_of_other_settings_decide_nothing_about_a_median(capsys):
    table = fits_like_the_released()
    table.loc[table.group == "soft", "paper_settings"] = False
    found = verdicts(table)
    assert found["alignment"] == "reproduced", "an identity holds whatever was trained"
    undecided = {key for key, verdict in found.items() if verdict == "not verified"}
    assert undecided == {"accuracy", "recursive", "bound-soft"} | {
        f"{metric}-soft" for metric in ("naive_score", "optimal_score", "shift")
    }


def test_a_median_at_the_edge_of_the_tolerance_agrees_in_the_single_claim_as_in_the_joint_one(capsys):
    table = fits_like_the_released()
    released_median, width = released.TABLE["pinet"]["accuracy"][0], released.tolerance("pinet", "accuracy")
    table.loc[table.group == "pinet", "accuracy"] = released_median - width
    ledger = Ledger("toyshapes")
    claims.check_medians(ledger, table, "accuracy", "accuracy", where="")
    claims.check_all_medians(ledger, table, "accuracy", "accuracy", where="")
    assert {entry.verdict for entry in ledger.entries} == {"reproduced"}


def test_four_fits_decide_nothing_about_a_median(capsys):
    found = verdicts(fits_like_the_released(4))
    assert found.pop("alignment") == "reproduced", "an identity needs no sample"
    assert set(found.values()) == {"not verified"}


@pytest.mark.parametrize("group", GROUPS)
def test_a_median_just_outside_the_tolerance_differs_and_just_inside_does_not(capsys, group):
    table = fits_like_the_released()
    width = released.tolerance(group, "optimal_score")
    for share, verdict in ((0.99, "reproduced"), (1.01, "differs")):
        moved = table.copy()
        moved.loc[moved.group == group, "optimal_score"] -= share * width
        assert verdicts(moved)[f"optimal_score-{group}"] == verdict


def test_ensembles_are_compared_under_the_rule_of_the_released_table(capsys):
    keys = verdicts(fits_like_the_released())
    assert "legacy_shift-ensemble" in keys and "shift-ensemble" not in keys


def test_rejected_fits_do_not_count(capsys):
    table = fits_like_the_released(6)
    table.loc[table.seed == 0, ["accepted", "shift"]] = False, 5.0
    assert verdicts(table) == verdicts(fits_like_the_released(5))


def test_one_fit_that_is_not_aligned_is_enough_to_differ(capsys):
    table = fits_like_the_released()
    table.loc[table.index[-1], "alignment_residual"] = 1e-3
    assert verdicts(table)["alignment"] == "differs"


def test_a_logit_that_is_another_sum_is_not_aligned_however_linear_it_is_in_it(capsys):
    table = fits_like_the_released()
    assert verdicts(table, identities(0.5))["alignment"] == "differs"
    assert verdicts(table, identities()[:0])["alignment"] == "reproduced", "without weights there are the residuals"


def test_the_or_vote_claim_is_of_the_ensembles_two_rules(capsys):
    def verdict(table):
        claims.check_or_vote(ledger := Ledger("toyshapes"), table, where="")
        return ledger.entries[0].verdict

    table = fits_like_the_released(recursive=0.95)
    assert verdict(table) == "reproduced"
    assert verdict(fits_like_the_released(recursive=0.999)) == "differs", "the mean logit is the more accurate"
    assert verdict(table[table.group != "ensemble"]) == "not verified"


@pytest.mark.parametrize(("positives", "verdict"), [([0] * 5, "holds"), ([0, 0, 0, 0, 1], "fails"),
                                                    ([0] * 4, "not verified"), ([], "not verified")])  # fmt: skip
def test_feedback_fits_have_all_to_be_silent_on_their_unstretched_maps(capsys, positives, verdict):
    fits = pd.DataFrame([(group, n, 0.1, 0.02, 1.0, 0.9, 0.4) for group in ("pinet", "feedback") for n in positives],
                        columns=["group", "positives", "peak", "left", "accuracy", "stretched", "unstretched"])
    fits.loc[fits.group == "pinet", "positives"] = 7
    claims.check_unstretched(ledger := Ledger("toyshapes"), fits, where="")
    (entry,) = ledger.entries
    assert entry.verdict == verdict
    assert entry.reference is None and "found afterwards" in entry.claim, "our own fits are no reference for them"
    if positives:
        assert tables.unstretched(fits)['always "no"'].to_dict() == {"pinet": 0, "feedback": positives.count(0)}
    else:
        assert "No unstretched maps" in str(tables.unstretched(fits))


def without(table, *groups):
    return table[~table.group.isin(groups)]


@pytest.mark.parametrize("group", GROUPS)
def test_a_claim_about_a_group_that_is_not_there_is_not_verified(capsys, group):
    whole = fits_like_the_released()
    for table in (without(whole, group), whole[whole.group == group]):  # all but one, and one alone
        found = verdicts(table)
        there = set(table.group)
        single = {key: verdict for key, verdict in found.items() if key.rsplit("-", 1)[-1] in GROUPS}
        assert single == {k: "reproduced" if k.rsplit("-", 1)[-1] in there else "not verified" for k in single}
        assert found["accuracy"] == found["recursive"] == "not verified"
    assert verdicts(whole[whole.group == "cnn"])["alignment"] == "not verified"


def test_the_tables_show_ours_beside_the_released():
    table = fits_like_the_released()
    medians = tables.medians(table)
    assert list(medians.index) == list(GROUPS), "in the order of the groups"
    assert medians.loc["pinet", "optimal_score"] == "0.914 (0.914)"
    assert medians.loc["pinet", "optimal_tdr"] == "0.970 (0.979)"
    assert medians.loc["naive", "optimal_tar"] == "0.950 (0.550)"
    assert "(" not in medians.loc["ensemble", "recursive"], "the released one is of another rule of voting"
    table.loc[table.group == "soft", "naive_score"] = [0.0, 0.2, 0.4, 0.6, 0.8]
    spreads = tables.spreads(table)
    assert spreads.loc["soft", "naive_score"] == "0.316 (0.197)"
    assert spreads.loc["ensemble", "recursive"] == "0.000 (0.007)"
    assert tables.price_of_validation(table).lost.tolist() == pytest.approx([0.01] * len(GROUPS))
    assert tables.detection_ranges(table).loc["naive", "reach 0.5"] == "0% (0%)"
    assert tables.ensemble_rules(table).loc["median", "OR (released rule)"] == pytest.approx(0.996)
    assert "no ensemble" in str(tables.ensemble_rules(table[table.group != "ensemble"]))


def test_precisions_are_compared_where_there_are_fits_of_both():
    every = fits_like_the_released(n=8).assign(precision="32-true")
    low, table = every[every.seed % 2 == 0].copy(), every[every.seed % 2 == 1]
    low.loc[low.group == "soft", "accuracy"] = 0.5
    compared = tables.precisions(low, table)
    assert list(compared.index) == [group for group in GROUPS if group != "ensemble"]
    assert set(compared.fits) == {"4 | 4"}
    assert compared.loc["pinet", "accuracy"].endswith("(p = 0.686)")
    assert compared.loc["soft", "accuracy"].startswith("0.500 | ") and "(p = 0.02" in compared.loc["soft", "accuracy"]
    ensembles = table[table.group == "ensemble"].drop(columns="precision")
    for control, ours in ((low, ensembles), (low[:0], table), (low, table.assign(precision="bf16-mixed"))):
        assert "No precisions" in str(tables.precisions(control, ours))


def test_the_medians_that_differ_are_shown_with_their_fits(capsys):
    table = fits_like_the_released(n=6)
    assert "No median" in str(tables.differences(table))
    table.loc[table.group == "soft", "naive_score"] = [0.2, 0.6, 0.8, 0.85, 0.891, 0.95]
    ((name, row),) = tables.differences(table).iterrows()
    assert name == "PiNet Soft: naive_score"
    assert row.tolist() == ["0.825 (0.200 to 0.950)", "0.565 (0.272 to 0.891)", "± 0.197", "5 of 6", "2 of 6"]
    differing = [key for key, verdict in verdicts(table).items() if verdict == "differs"]
    assert differing == ["naive_score-soft"], "as the ledger says"
    assert "No median" in str(tables.differences(table[table.seed < 4])), "too few fits"
    inside = {(g, m): low <= released.TABLE[g][m][0] <= high
              for g, some in released.RANGES.items() for m, (low, high) in some.items()}  # fmt: skip
    assert all(inside.values()) and len(inside) == 3 * len(GROUPS)


def test_architectures_have_the_published_sizes():
    parameters = tables.architectures(ToyShapesStudy()).parameters
    assert (parameters["Grad-CAM"], parameters["PiNet"], parameters["PiNet Naive"]) == (297953, 105875, 488242)
