"""The second look with maps as they come: each number restated the slow way, and what it says of the shipped fits."""

import pytest
import torch
from shelves import TINY, untrained

from helpers.pinets import evaluate, fits, recursion
from helpers.pinets.fits import Fit
from helpers.pinets.presets import ToyShapesStudy
from helpers.pinets.released import MIN_FITS
from helpers.pinets.study import Shelf, collect


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    study, shelf = untrained(tmp_path_factory.mktemp("shelf"), TINY | {"groups": ["pinet", "feedback", "soft"]})
    return [shelf.record(name) for group in study.groups for name in shelf.names(group)], study, shelf


def right(logits, y):
    return sum((logit > 0) == (label > 0) for logit, label in zip(logits, y, strict=True)) / len(y)


def test_every_number_is_what_the_network_makes_of_its_own_map(made):
    _, study, shelf = made
    table = recursion.unstretched(*made, n_images=8).set_index("fit")
    assert list(table.index) == ["pinet/0", "pinet/1", "feedback/0", "feedback/1"], "of the groups asked for"
    x, y = fits.test_set(study).x[:8], fits.test_set(study).y[:8]
    for seed in (0, 1):
        model, row = shelf.model(Fit("pinet", seed), study), table.loc[f"pinet/{seed}"]
        with torch.inference_mode():
            peak = model(fits.test_set(study).x).scores.max()
            logits, scores, signal = model(x)
            again, stretched = model(signal), model(scores / peak * x)
        assert row.peak == pytest.approx(peak.item())
        assert (row.accuracy, row.stretched, row.unstretched) == (
            right(logits, y), right(stretched.logits, y), right(again.logits, y))  # fmt: skip
        assert row.positives == sum(logit > 0 for logit in again.logits)
        assert row.left == pytest.approx((again.scores.sum() / scores.sum()).item())


def test_the_stretched_part_is_the_map_over_its_peak_times_the_image(made, monkeypatch):
    """Untrained networks answer the same to much: what they are shown is looked at itself."""
    records, study, shelf = made
    seen, real, x = [], evaluate.predict, fits.test_set(study).x
    monkeypatch.setattr(evaluate, "predict", lambda model, part: seen.append(part) or real(model, part))
    recursion.unstretched(records, study, shelf, groups=("pinet",), n_images=8)
    for seed, part in enumerate(seen):
        with torch.inference_mode():
            scores = shelf.model(Fit("pinet", seed), study)(x).scores
        torch.testing.assert_close(part, scores[:8] / scores.max() * x[:8], rtol=1e-3, atol=1e-5)
    assert len(seen) == 2


def test_rejected_fits_and_those_without_weights_are_left_out(made, tmp_path):
    records, study, _ = made
    _, shelf = untrained(tmp_path, TINY | {"groups": ["pinet"]})
    shelf.weights_path(Fit("pinet", 1)).unlink()
    assert recursion.unstretched(records, study, shelf, n_images=4).fit.tolist() == ["pinet/0"]
    rejected = [record | {"training": {"accepted": False}} for record in records]
    none = recursion.unstretched(rejected, study, shelf)
    assert none.empty and list(none.columns) == recursion.COLUMNS


def test_feedback_was_met_by_fading():
    """No shipped feedback network recognises a triangle in what its map leaves of the image, unless stretched."""
    study = ToyShapesStudy(groups=("feedback",))
    table = recursion.unstretched(collect(study), study, Shelf(), n_images=30)
    assert len(table) >= MIN_FITS
    assert (table.positives == 0).all() and (table.accuracy > 0.95).all()
    assert (table.left < 0.1).all() and (table.peak < 0.5).all()
