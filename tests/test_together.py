"""Fits trained together are the fits trained alone."""

import csv
import functools

import pytest
import torch

from helpers import artifacts
from helpers.config import ConfigError
from helpers.pinets import fits, together
from helpers.pinets.fits import Fit
from helpers.pinets.presets import ToyShapesStudy
from helpers.pinets.together import train_together

pytestmark = pytest.mark.usefixtures("one_thread")
GROUPS = ("cnn", "naive", "soft", "pinet", "feedback", "ensemble", "strong")


@pytest.fixture
def float64(monkeypatch):
    """Everything in double precision. In single precision two equal courses of training part within a few steps: Adam
    divides a gradient by its size, so that one which is zero but for rounding (of a bias before batch norm, say) moves
    a weight by the full rate in a direction that rounding decides."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(artifacts, "half_precision", dict)
    torch.set_default_dtype(torch.float64)
    fits.replication.cache_clear()
    yield
    torch.set_default_dtype(torch.float32)
    fits.replication.cache_clear()


def tiny(**overrides) -> ToyShapesStudy:
    """Images of one cell with or without a triangle, which a small net learns in a few epochs."""
    settings = {
        "data.n_images": 60,
        "data.n_blocks": 1,
        "data.block_size": 16,
        "data.relative_frequency": 1.0,
        "data.shapes": ("triangle", "void"),
        "group.*.model.width": 4,
        "group.*.model.depth": 2,
        "group.*.model.dropout": 0.0,
        "group.*.training.batch_size": 8,
        "group.*.training.learning_rate": 0.01,
        "group.*.training.epochs": 2,
        "group.*.training.precision": "float32",
    }
    changes = {name.replace("__", "."): value for name, value in overrides.items()}
    return ToyShapesStudy(device="cpu").override(settings | changes)


def some(group: str, n: int = 3) -> list[Fit]:
    return [Fit(group, seed, 0 if group == "ensemble" else None) for seed in range(n)]


def history(out, fit, study) -> list[dict[str, float]]:
    text = (fits.work_folder(out, fit, study) / "log.csv").read_text().splitlines()
    return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(text)]


def assert_equal_fits(batch, study, tmp_path, tolerance):
    """Weights and running statistics, what was selected when, and the course of the loss. Returns the metadata."""
    found = train_together(batch, study, tmp_path / "together")
    assert set(found) == set(batch)
    for fit in batch:
        alone = fits.train(fit, study, tmp_path / "alone")
        assert {**found[fit], "seconds": 0} == {**alone, "seconds": 0}
        rows, expected_rows = (history(tmp_path / way, fit, study) for way in ("together", "alone"))
        for row, expected in zip(rows, expected_rows, strict=True):
            assert row == pytest.approx(expected, rel=tolerance, nan_ok=True)
        states = [artifacts.load_tensors(fits.weights_path(tmp_path / way, fit)) for way in ("together", "alone")]
        (state, metadata), (expected_state, _) = states
        assert metadata == found[fit]
        assert set(state) == set(expected_state)
        for name, tensor in expected_state.items():
            assert state[name].dtype == tensor.dtype, name
            torch.testing.assert_close(state[name], tensor, rtol=tolerance, atol=tolerance, msg=name)
    return found


@pytest.mark.parametrize("group", GROUPS)
def test_each_fit_is_the_one_trained_alone(group, tmp_path, float64):
    assert_equal_fits(some(group), tiny(), tmp_path, tolerance=1e-4)


@pytest.mark.parametrize("group", ["cnn", "pinet"])
def test_in_single_precision_to_what_half_precision_keeps(group, tmp_path, monkeypatch):
    """After a few steps, and with an Adam that keeps weights in place whose gradient is nothing but rounding."""
    monkeypatch.setattr(torch.optim, "Adam", functools.partial(torch.optim.Adam, eps=0.1))
    study = tiny(**{"group__*__training__epochs": 1, "group__*__training__evaluations": 1})
    assert_equal_fits(some(group), study, tmp_path, tolerance=5e-3)


def test_masks_given_by_a_budget_go_to_the_same_images(tmp_path, float64):
    study = tiny(group__strong__training__mask_rule="budget", group__strong__training__mask_budget=5)
    assert_equal_fits(some("strong", 2), study, tmp_path, tolerance=1e-4)


def test_fits_that_end_early_leave_the_stack_and_the_others_go_on(tmp_path, float64, monkeypatch):
    sizes = []
    select = together.Stack.select

    def recorded(stack, rows):
        sizes.append((len(stack.members), len(rows)))
        return select(stack, rows)

    monkeypatch.setattr(together.Stack, "select", recorded)
    found = assert_equal_fits(some("cnn", 5), tiny(group__cnn__training__epochs=12), tmp_path, 1e-3)
    ends = {metadata["epochs"] for metadata in found.values()}
    assert len(ends) > 1 and min(ends) < 12, "the setting should let fits end at different times"
    assert sizes and all(2 * after <= before for before, after in sizes)


def test_a_fit_is_kept_the_moment_it_ends(tmp_path, monkeypatch):
    """The run is cut off in the epoch after the first fit ended; a second run trains the others alone."""
    study, batch = tiny(group__cnn__training__epochs=12), some("cnn")
    order = fits.image_order

    def cut_off(fit, options, n, epoch):
        if any(fits.weights_path(tmp_path, fit).exists() for fit in batch):
            raise KeyboardInterrupt
        return order(fit, options, n, epoch)

    monkeypatch.setattr(fits, "image_order", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train_together(batch, study, tmp_path)
    monkeypatch.undo()
    kept = [fit for fit in batch if fits.weights_path(tmp_path, fit).exists()]
    assert 0 < len(kept) < 3
    assert not fits.load(fits.weights_path(tmp_path, kept[0]), study, kept[0]).training

    asked = []
    monkeypatch.setattr(together, "train_together", lambda fits_, *_, **__: asked.extend(fits_))
    study = study.override({"groups": ("cnn",), "fits": 3})
    together.run_missing(study, lambda fit: None, lambda fit, study: True, tmp_path, size=3)
    assert asked == [fit for fit in batch if fit not in kept]


def test_the_seconds_of_the_fits_add_up_to_those_taken(tmp_path, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(together.time, "monotonic", lambda: float(next(clock)))
    found = train_together(some("naive"), tiny(group__naive__training__epochs=1), tmp_path)
    validations = 3
    assert sum(metadata["seconds"] for metadata in found.values()) == pytest.approx(validations, abs=0.2)


# ------------------------------------------------------------------------------------------ chance and precision


def test_dropout_repeats_to_the_bit_and_differs_between_fits(tmp_path):
    study = tiny(group__cnn__model__dropout=0.3, group__cnn__training__epochs=2)
    batch = some("cnn")
    for way in ("first", "second"):
        torch.manual_seed(len(way))  # the global stream must not matter
        train_together(batch, study, tmp_path / way)
    for fit in batch:
        states = [artifacts.load_tensors(fits.weights_path(tmp_path / way, fit))[0] for way in ("first", "second")]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_equal_fits_draw_masks_of_their_own(dropout):
    study = tiny(group__cnn__model__dropout=dropout)
    twins = [Fit("cnn", 0), Fit("cnn", 0)]
    fabric = together.training.fabric("cpu", "float32")
    data, stack = together._load(twins, study, fabric.device), together._stack(twins, study, fabric.device)
    gradients, _ = together._functions(twins[0], study, fabric)
    _, losses = gradients(stack.weights, stack.buffers, data.batch(stack.members, torch.arange(8).expand(2, 8)))
    assert torch.equal(losses[0], losses[1]) == (dropout == 0)


@pytest.mark.parametrize("group", ["pinet", "feedback", "cnn"])
def test_bfloat16_follows_float32(group, tmp_path):
    batch = some(group)
    courses = {}
    for precision in ("float32", "bfloat16"):
        study = tiny(**{"group__*__training__precision": precision, "group__*__training__epochs": 1})
        found = train_together(batch, study, tmp_path / precision)
        assert {m["precision"] for m in found.values()} == {"32-true" if precision == "float32" else "bf16-mixed"}
        courses[precision] = [history(tmp_path / precision, fit, study)[0]["loss"] for fit in batch]
    assert courses["bfloat16"] != courses["float32"]
    assert courses["bfloat16"] == pytest.approx(courses["float32"], rel=0.1)


# ---------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_the_fits_run_are_those_of_one_by_one(size, tmp_path, monkeypatch):
    """Whatever is accepted or rejected, and however many run at once: the same seeds, none too many."""
    study = ToyShapesStudy().override(
        {"groups": ("cnn", "ensemble"), "fits": 5, "ensembles": 2, "members": 3, "attempts": 40, "seed": 2}
    )
    batches, run = [], []
    monkeypatch.setattr(together, "train_together", lambda batch, *_, **__: batches.append(batch))

    def verdict(fit, study):
        run.append(fit)
        return (7 * fit.seed + 3 * (fit.ensemble or 0)) % 5 > 1

    fits.run_missing(study, lambda fit: None, verdict)
    one_by_one = run.copy()
    run.clear()
    together.run_missing(study, lambda fit: None, verdict, tmp_path, size)
    assert sorted(map(str, run)) == sorted(map(str, one_by_one))
    assert all(0 < len(batch) <= size and len({fit.group for fit in batch}) == 1 for batch in batches)
    assert max(map(len, batches)) == min(size, 6)  # members of both ensembles run at once

    run.clear()
    known = {fit: verdict(fit, study) for fit in one_by_one}
    run.clear()
    together.run_missing(study, known.get, verdict, tmp_path, size)
    assert not run, "what is known is not run again"


def test_what_cannot_be_stacked_is_refused(tmp_path):
    with pytest.raises(ValueError, match="one group"):
        train_together([Fit("pinet", 0), Fit("soft", 0)], tiny(), tmp_path)
    repeated = tiny(data__backgrounds=False, data__hollow=0.0, data__block_size=10)  # repeated images are dropped
    with pytest.raises(ConfigError, match="TOGETHER"):
        train_together(some("pinet"), repeated, tmp_path)
    assert train_together([], tiny(), tmp_path) == {}


def test_a_loss_that_is_not_finite_names_the_fit(tmp_path):
    study = tiny(group__pinet__training__learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="pinet/0: the loss is"):
        train_together(some("pinet"), study, tmp_path)
