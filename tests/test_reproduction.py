"""The shipped results reproduce the paper in kind (spec section 10, property 21), as far as few fits can show it.

Whether the released medians and the finer orders are met is the ledger's to judge, which may say "differs".
"""

import pandas as pd
import pytest

from helpers.config import ROOT
from helpers.pinets import examples
from helpers.pinets.presets import GROUPS, ToyShapesStudy
from helpers.pinets.study import Shelf, collect, frame

FITS = 5  # fewer say little: the default group's shift alone runs from 0 to .6


@pytest.fixture(scope="module")
def study():
    return ToyShapesStudy()


@pytest.fixture(scope="module")
def table(study):
    """Every shipped record, its checksum verified, as rows. Without records this fails, as it should."""
    return frame(collect(study))


@pytest.fixture(scope="module")
def median(table):
    def of(group, column):
        fits = table[(table.group == group) & table.accepted]
        assert len(fits) >= FITS, f"only {len(fits)} accepted fits of {group!r} are shipped: train and publish more"
        return fits[column].median()

    return of


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_is_accurate(median, group):
    assert median(group, "accuracy") >= 0.98


def test_without_a_spatial_decoder_the_map_is_useless(median):
    naive, soft, default = (median(group, "optimal_score") for group in ("naive", "soft", "pinet"))
    assert naive < 0.5 < min(soft, default)


@pytest.mark.parametrize(("group", "floor"), [("feedback", 0.90), ("ensemble", 0.90), ("strong", 0.95)])
def test_what_steadies_a_pinet_gives_good_maps(median, group, floor):
    assert median(group, "optimal_score") >= floor


def test_without_a_threshold_a_pinets_map_beats_grad_cam(median):
    assert median("pinet", "naive_score") > median("cnn", "naive_score")


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "naive"])
def test_the_naive_decoders_maps_suffice_least(median, group):
    """The order among the others needs more fits: within a group the shift runs from 0 to .65."""
    assert median(group, "shift") < median("naive", "shift")


def test_every_shipped_pinet_is_the_sum_that_it_shows(study):
    errors = examples.identity_errors(collect(study), study, Shelf(), n_images=20)
    assert set(errors.group) == set(GROUPS) - {"cnn"} and len(errors) >= 4 * FITS + 2
    assert errors.identity_error.max() < 1e-5


def test_every_pinet_is_aligned_and_grad_cam_is_not(table):
    assert table[table.group != "cnn"].alignment_residual.max() < 1e-6
    assert table[table.group == "cnn"].alignment_residual.min() > 1e-5


def test_accepted_is_what_reached_the_least_validation_accuracy(table):
    singles = table[table.group != "ensemble"]
    assert (singles.accepted == (singles.validation_accuracy >= 0.98)).all()


def test_no_seed_was_left_out(table):
    """Seeds count from 0, rejected ones included."""
    for group, rows in table[table.group != "ensemble"].groupby("group"):
        assert sorted(rows.seed) == list(range(len(rows))), f"a seed of {group} was left out"


def test_the_published_table_is_what_the_records_say(table):
    shipped = pd.read_csv(ROOT / "results" / "toyshapes" / "fits.csv")
    pd.testing.assert_frame_equal(shipped, table.round(5)[shipped.columns], check_dtype=False, atol=1e-9)
    assert list(shipped.columns) == list(table.columns)
