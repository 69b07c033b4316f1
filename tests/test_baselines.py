"""The comparison of post-hoc methods: the same report for each, resumed, and stale ones refused."""

from pathlib import Path

import pytest
import torch
from shelves import TINY, untrained

from helpers.artifacts import ArtifactError
from helpers.pinets import baselines
from helpers.pinets.fits import Tensors

FEW = {"gradient": {}, "constant_map": {}}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "METHODS", FEW)
    study, _ = untrained(tmp_path, TINY | {"groups": ["cnn"], "baseline_images": 8, "baseline_fits": 2})
    return study.override({"out": str(tmp_path)})


@pytest.mark.parametrize(("n", "taken"), [(1, 4), (3, 4), (4, 4), (5, 5)])
def test_the_first_images_are_taken_up_to_one_with_a_target(n, taken):
    y = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 1.0])
    images = Tensors(torch.zeros(6, 1, 2, 2), y, torch.zeros(6, 1, 2, 2))
    assert len(baselines.first(images, n).y) == taken
    assert len(baselines.first(images[:3], n).y) == min(n, 3), "where there is none"


def test_every_method_is_measured_on_every_cnn_and_read_back(trained):
    computed = baselines.collect(trained.override({"reevaluate": True}))
    assert set(zip(computed.method, computed.fit, strict=True)) == {(m, f"cnn/{s}") for m in FEW for s in (0, 1)}
    assert baselines.collect(trained).equals(computed)


def test_a_constant_map_leaves_the_image_and_so_the_prediction_as_they_are(trained):
    constant = baselines.collect(trained.override({"reevaluate": True})).query("method == 'constant_map'")
    assert (constant["shift"] == 0).all()


def test_a_run_that_was_cut_off_goes_on(trained, monkeypatch):
    retraining = trained.override({"retrain": True})
    baselines.collect(retraining.override({"baseline_fits": 1}))
    done, evaluate_fit = [], baselines.evaluate_fit
    monkeypatch.setattr(baselines, "evaluate_fit", lambda fit, *rest: done.append(fit.seed) or evaluate_fit(fit, *rest))
    baselines.collect(retraining)
    assert done == [1]


def test_those_of_other_settings_are_refused_with_the_remedy(trained):
    baselines.collect(trained.override({"reevaluate": True}))
    with pytest.raises(ArtifactError, match="REEVALUATE=True"):
        baselines.collect(trained.override({"baseline_images": 9}))


def test_those_of_other_networks_are_refused_and_only_as_many_read_as_are_asked_for(trained):
    baselines.collect(trained.override({"reevaluate": True}))
    assert set(baselines.collect(trained.override({"baseline_fits": 1})).fit) == {"cnn/0"}
    with pytest.raises(ArtifactError, match="other data, model or training settings"):
        baselines.collect(trained.override({"group.cnn.training.learning_rate": 0.5}))
    weights = Path(trained.out) / "weights" / "cnn"
    (weights / "1.safetensors").write_bytes((weights / "0.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match=r"cnn/1 were computed from other weights.*REEVALUATE=True"):
        baselines.collect(trained)


def test_where_the_cnns_are_not_asked_for_there_is_nothing_to_compare(trained):
    for gates in ({}, {"retrain": True}, {"reevaluate": True}):
        assert baselines.collect(trained.override({"groups": ["pinet"], **gates})).empty


def test_retraining_compares_the_cnns_that_count(trained):
    """As `study.collect` does: those before ``SEED``, or beyond ``FITS``, are of another run."""
    for changes, fits in (({"fits": 1}, ["cnn/0"]), ({"seed": 1, "fits": 1}, ["cnn/1"])):
        compared = baselines.collect(trained.override({"retrain": True, **changes}))
        assert compared.fit.unique().tolist() == fits


def test_without_any_the_remedy_is_named(trained):
    with pytest.raises(ArtifactError, match="there are no baselines .* REEVALUATE=True"):
        baselines.collect(trained)
