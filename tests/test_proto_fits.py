"""A training does what spec pixpnet, sections 5 and 6, say, and goes on after a cut as if there had been none."""

import logging
import math
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import proto_small
import pytest
import torch
from proto_small import study

from helpers import artifacts, training
from helpers.config import ConfigError
from helpers.prototypes import course, features, fits, models, projection, steps, tuning
from helpers.prototypes.batches import Batches
from helpers.prototypes.fits import Fit

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


class Cut(BaseException):
    """What a kill is to the loop: nothing runs after it."""


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    """The sets that were made."""
    made = []
    proto_small.use(monkeypatch, made)
    return made


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(fit, folder, record) of the small study as it stands."""
    with pytest.MonkeyPatch.context() as patch:
        proto_small.use(patch)
        out = tmp_path_factory.mktemp("done")
        fit = Fit(study(), 0)
        return fit, out, fits.train(fit, out)


def watched(monkeypatch, **changes):
    """A hook's view of a training: a copy of the weights before each epoch."""
    states, before = [], course.Course.before_epoch

    def watch(self, model, epoch):
        before(self, model, epoch)
        states.append({k: v.clone() for k, v in model.state_dict().items()})

    monkeypatch.setattr(course.Course, "before_epoch", watch)
    return states


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------------------------------ a record


def test_a_record_says_all_that_is_known(done):
    fit, out, record = done
    history = record["history"]
    assert history["epoch"] == [1, 2, 3] and history["train_xent"] == history["train_total_loss"] == history["loss"]
    assert all(0 <= value <= 1 for value in history["train_accuracy"] + history["val_accuracy"])
    assert record["test"].keys() == {"accuracy", "weighted_accuracy", "total_loss", "xent"}
    assert record["info"]["macs"] > 0 and record["info"]["train_seconds"] > 0
    assert 0 < record["receptive_field"]["min"] <= record["receptive_field"]["mean"] <= 100
    assert record["computed_from"]["weights"] == artifacts.sha256(fits.weights_path(out, fit))
    assert artifacts.load_json(fits.record_path(out, fit)) == record, "it is JSON, to the last digit"
    assert not (out / fit.name / "checkpoint.safetensors").exists()


def test_weights_and_provenance_read_back_exactly(done):
    """Property 23."""
    fit, out, record = done
    model, facts = fits.load(fits.weights_path(out, fit), fit)
    assert facts["classes"] == ["red", "blue"] and not model.training
    model.to(memory_format=torch.channels_last)  # as it was trained: the log similarity shows how a sum was rounded
    again = steps.evaluate(model, Batches(8, 0, CPU).plain(proto_small.Colours("test", 10)), fit.study.loss)
    assert again == pytest.approx(record["test"], rel=1e-5)
    z = model.embed(proto_small.sets(fit.study.dataset, 0).train.x[model.source_image])
    cells = z[torch.arange(4), :, model.source_cell[:, 0], model.source_cell[:, 1]]
    assert torch.allclose(cells, model.prototypes[:, :, 0, 0], atol=1e-5), "each prototype is its patch"


def test_what_is_done_is_not_done_again(done, monkeypatch):
    fit, out, record = done
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("it was trained again"))
    assert fits.train(fit, out) == record


def test_what_is_done_is_tested_again_on_other_test_images(done, tmp_path, monkeypatch):
    """No weight depends on how many there are, but the score does."""
    fit, out, record = done
    shutil.copytree(out, tmp_path / "out")
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("it was trained again"))
    more = Fit(study(dataset__n_test=6), 0)
    assert more.name == fit.name
    again = fits.train(more, tmp_path / "out")
    model = fits.load(fits.weights_path(out, fit))[0]
    wanted = steps.evaluate(model, Batches(8, 0, CPU).plain(proto_small.Colours("test", 6)), fit.study.loss)
    assert again["test"] == pytest.approx(wanted, rel=1e-5) and again["images"]["test"] == 6
    assert again["test"] != record["test"] and again["history"] == record["history"]
    assert fits.read(fits.record_path(tmp_path / "out", fit), fit) == again, "which is kept"


def test_files_of_other_settings_are_refused(done, tmp_path):
    fit, out, _ = done
    with pytest.raises(artifacts.ArtifactError, match=r"model\.safetensors is not of .*delete it"):
        fits.load(fits.weights_path(out, fit), Fit(study(optimizer__lr=0.5), 0))


def test_the_name_changes_with_what_the_weights_depend_on():
    name = Fit(study(), 0).name
    assert name == Fit(study(dataset__root="x", test__batch_size=3, out="y", train__checkpoint=False), 0).name
    changes = {"dataset__val_size": 0.1, "loss__cluster": 0.1, "optimizer__lr": 0.1, "debug": True}
    others = {Fit(study(**{key: value}), 0).name for key, value in changes.items()}
    assert len(others) == 4 and name not in others and name != Fit(study(), 1).name
    assert Fit(study(model__feature_extractor="timm:a/b"), 0).name.count("/") == 1


@pytest.mark.parametrize(("changes", "said"), [
    ({"train__keep": "best", "dataset__val_size": 0.0}, "needs validation images"),
    ({"train__keep": "best", "train__stochastic_weight_averaging": True}, "exclude each other"),
    ({"train__feature_variants": 2}, "never learns: set optimizer.freeze_epochs"),
    ({"optimizer__lr_scheduler": "step", "optimizer__lr_schedule": ()}, "needs optimizer.lr_schedule"),
])  # fmt: skip
def test_settings_that_exclude_each_other_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        Fit(study(**changes), 0)


# ------------------------------------------------------------------------------------------------- the course of it


def test_the_test_images_are_loaded_once_when_the_training_is_over(colours, monkeypatch, tmp_path):
    """Property 18."""
    train, order = training.train, []

    def watch(*arguments, **options):
        outcome = train(*arguments, **options)
        order.append(list(colours[0].loaded))
        return outcome

    monkeypatch.setattr(training, "train", watch)
    fits.train(Fit(study(train__epochs=1), 0), tmp_path)
    assert order == [[]] and "test" in colours[0].loaded


def test_the_backbone_waits_for_its_epochs_while_its_statistics_move(monkeypatch, tmp_path):
    """Property 15."""
    states = watched(monkeypatch)
    fits.train(Fit(study(train__epochs=3, optimizer__freeze_epochs=2), 0), tmp_path)
    kinds = {"features": [], "running": [], "add_on": []}
    for name in states[0]:
        moved = [not torch.equal(a[name], b[name]) for a, b in zip(states, states[1:], strict=False)]
        if "running" in name:
            kinds["running"].append(moved)
        elif name.split(".")[0] in kinds and "num_batches" not in name:
            kinds[name.split(".")[0]].append(moved)
    assert kinds["features"] and not np.array(kinds["features"]).any()
    assert np.array(kinds["running"]).all() and np.array(kinds["add_on"]).all()


def test_the_backbone_learns_after_that(monkeypatch, tmp_path):
    states = watched(monkeypatch)
    fits.train(Fit(study(train__epochs=3, optimizer__freeze_epochs=1), 0), tmp_path)
    names = [name for name in states[0] if name.startswith("features") and name.endswith("weight")]
    assert any(not torch.equal(states[1][name], states[2][name]) for name in names)


def test_prototypes_are_projected_after_the_epochs_of_the_spec_and_validation_comes_first(monkeypatch, tmp_path):
    """Property 16."""
    calls, push, validate = [], course.Course.push, course.Course.validate
    monkeypatch.setattr(course.Course, "push", lambda s, m, e: (calls.append(f"push {e}"), push(s, m, e))[1])
    monkeypatch.setattr(course.Course, "validate", lambda s, m: (calls.append("validate"), validate(s, m))[1])
    record = fits.train(Fit(study(train__epochs=5, train__push_every=3), 0), tmp_path)
    assert calls == ["validate", "push 1", "validate", "validate", "push 3", "validate", "validate", "push 5"]
    assert [value is not None for value in record["history"]["push_max"]] == [True, False, True, False, True]


def test_without_projection_prototypes_come_from_nowhere(tmp_path):
    fit = Fit(study(train__push_prototypes=False, train__epochs=1), 0)
    record = fits.train(fit, tmp_path)
    assert "push_max" not in record["history"]
    assert (fits.load(fits.weights_path(tmp_path, fit))[0].source_image == -1).all()


def test_the_best_weights_are_those_of_the_best_validation_after_a_projection(monkeypatch, tmp_path):
    scores = iter([0.9, 0.3, 0.9, 0.8, 0.9, 0.5])  # before and after the projection of each epoch
    monkeypatch.setattr(course.Course, "validate", lambda *_: {"accuracy": next(scores)})
    record = fits.train(Fit(study(train__keep="best", train__push_every=1), 0), tmp_path)
    assert record["kept_epoch"] == 2 and record["history"]["score"] == [0.3, 0.8, 0.5]


def test_a_plain_classifier_is_trained_by_the_same_code(tmp_path):
    fit = Fit(study(model__name="classifier", train__keep="best", train__epochs=2), 0)
    record = fits.train(fit, tmp_path)
    assert isinstance(fits.load(fits.weights_path(tmp_path, fit))[0], models.Classifier)
    assert record["history"]["score"] == record["history"]["val_accuracy"] and "push_max" not in record["history"]


@pytest.mark.parametrize(("head", "classes"), [("linear", True), ("sparse", True), ("linear", False)])
def test_a_head_with_weights_is_tuned_alone_after_each_projection(head, classes, monkeypatch, tmp_path):
    seen = []
    tune = steps.tune_head

    def watch(model, *rest):
        before = {k: v.clone() for k, v in model.state_dict().items()}
        tune(model, *rest)
        seen.append([k for k, v in model.state_dict().items() if not torch.equal(v, before[k])])

    monkeypatch.setattr(steps, "tune_head", watch)
    changes = {"model__readout_type": head, "model__class_specific": classes, "loss__l1": 1e-3}
    fits.train(Fit(study(**changes), 0), tmp_path)
    assert seen == [["head.weight"]] * 3


def test_tuning_the_head_lowers_its_loss_and_the_l1_term_shrinks_it():
    part = proto_small.Colours("train", 32)
    batches = list(Batches(8, 0, CPU).epoch(part, 1))
    found = {}
    for l1 in (0.0, 1.0):
        settings = study(model__readout_type="linear", loss__l1=l1, train__readout_push_epochs=20,
                         optimizer__readout_lr=0.02)  # fmt: skip
        model = models.build(settings.model, 2, 32, 0).eval()
        projection.push(model, Batches(8, 0, CPU).plain(part))
        before = steps.evaluate(model, batches, settings.loss.override({"l1": 0.0}))["xent"]
        steps.tune_head(model, batches, settings, 0)
        after = steps.evaluate(model, batches, settings.loss.override({"l1": 0.0}))["xent"]
        found[l1] = float(model.head.weight.detach()[~model.own].abs().sum())
        assert l1 or after < before
    assert found[1.0] < found[0.0]


def test_a_loss_that_is_not_finite_stops_with_its_place(monkeypatch, tmp_path):
    monkeypatch.setattr(steps.losses, "total", lambda terms, loss: terms["xent"] * math.nan)
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1, step 4: lower the learning rate"):
        fits.train(Fit(study(), 0), tmp_path)


def test_cells_that_see_whole_images_are_told_of_before_the_training(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(fits.info, "WHOLE", 1.0)  # percent, less than a cell of this small net sees
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(pytest.fail.Exception):
        fits.train(Fit(study(), 0), tmp_path)
    assert "prototypes will stand for whole images" in caplog.text
    caplog.clear()
    with pytest.raises(pytest.fail.Exception):
        fits.train(Fit(study(model__name="classifier"), 0), tmp_path)
    assert "prototypes" not in caplog.text


def test_averaged_weights_get_statistics_and_patches_of_their_own(tmp_path):
    fit = Fit(study(train__stochastic_weight_averaging=True, train__epochs=8), 0)
    record = fits.train(fit, tmp_path)
    model, _ = fits.load(fits.weights_path(tmp_path, fit))
    z = model.embed(proto_small.sets(fit.study.dataset, 0).train.x[model.source_image])
    cells = z[torch.arange(4), :, model.source_cell[:, 0], model.source_cell[:, 1]]
    assert torch.allclose(cells, model.prototypes[:, :, 0, 0], atol=1e-5)
    assert not same(model.state_dict(), fits.load(_plain(tmp_path / "plain"))[0].state_dict())
    assert record["history"]["push_unassigned"][-1] == 0


def _plain(out):
    fit = Fit(study(train__epochs=8), 0)
    fits.train(fit, out)
    return fits.weights_path(out, fit)


def test_accumulation_and_clipping_reach_the_loop(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(training, "train", lambda *_, **options: given.update(options) or (_ for _ in ()).throw(Cut))
    with pytest.raises(Cut):
        fits.train(Fit(study(train__accumulate_grad_batches=2, train__gradient_clip_norm=0.5), 0), tmp_path)
    assert (given["accumulate"], given["clip_norm"]) == (2, 0.5)


# --------------------------------------------------------------------------------------------------------- batches


def test_an_epoch_shows_every_image_so_often_each_time_augmented_anew():
    part = proto_small.Colours("train", 12)
    feed = Batches(8, 3, CPU, factor=3)
    batches = list(feed.epoch(part, 2))
    assert [len(y) for _, y in batches] == [8, 8, 8, 8], "of 36, the last 4 are left out"
    assert set(part.asked) == {(2, 0), (2, 1), (2, 2)}
    again = list(feed.epoch(part, 2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, again, strict=True))
    assert not torch.equal(batches[0][0], next(feed.epoch(part, 3))[0])


def test_processes_share_each_batch():
    part = proto_small.Colours("train", 16)
    whole = [y for _, y in Batches(8, 0, CPU).epoch(part, 1)]
    shares = [[y for _, y in Batches(8, 0, CPU, rank=rank, world=2).epoch(part, 1)] for rank in (0, 1)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert torch.equal(batch[0::2], first) and torch.equal(batch[1::2], second)


def test_fewer_images_than_a_batch_are_one_batch():
    part = proto_small.Colours("train", 5)
    assert [len(y) for _, y in Batches(8, 0, CPU).epoch(part, 1)] == [5]
    assert [len(y) for _, y in Batches(8, 0, CPU, world=2).epoch(part, 1)] == [2], "an equal share for each"


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    fabric = type("Fabric", (), {"world_size": 3})
    with pytest.raises(ConfigError, match="batch_size 8 cannot be shared by 3 processes"):
        fits._feed(Fit(study(), 0), fabric, 40)


def test_debug_takes_three_batches_of_each_split(tmp_path, colours):
    record = fits.train(Fit(study(debug=True, train__batch_size=2, train__epochs=1), 0), tmp_path)
    assert record["history"]["step"] == [3]
    assert not torch.is_anomaly_enabled()


# ------------------------------------------------------------------------------------------------- features kept


FROZEN = {"optimizer__freeze_epochs": 3, "train__feature_variants": 2, "dataset__augment_factor": 2}


def test_features_of_a_frozen_backbone_are_computed_once(tmp_path, colours, monkeypatch):
    fit = Fit(study(**FROZEN), 0)
    seen, build = [], models.build

    def watched(*arguments, **options):
        model = build(*arguments, **options)
        model.features.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
        return model

    monkeypatch.setattr(models, "build", watched)
    record = fits.train(fit, tmp_path)
    assert sum(seen[:6]) >= 32 * 3 + 8 and set(colours[0].train.asked) == {(0, 0), (1, 0)}
    assert record["history"]["val_accuracy"][-1] >= 0.5
    (folder,) = (tmp_path / "features").iterdir()
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.npy")}
    assert files == {"train/plain.npy", "train/variant_0.npy", "train/variant_1.npy", "validation_0/plain.npy"}
    assert np.load(folder / "train/variant_0.npy").dtype == np.float16
    other = Fit(study(**FROZEN, model__distance="l2"), 0)
    fits.train(other, tmp_path)
    assert colours[1].train.asked == [], "another head shares them"
    model, _ = fits.load(fits.weights_path(tmp_path, fit))
    z = model.embed(colours[0].train.x[model.source_image])
    cells = z[torch.arange(4), :, model.source_cell[:, 0], model.source_cell[:, 1]]
    assert torch.allclose(cells, model.prototypes[:, :, 0, 0], atol=1e-5), "patches of images, not of their copies"


def test_an_epoch_trains_on_the_variant_whose_turn_it_is(tmp_path):
    part = proto_small.Colours("train", 6)
    kept = features.store(part, torch.nn.Identity(), tmp_path, CPU, seed=5, variants=2)
    rows = torch.tensor([3, 1])
    for epoch, repeat, variant in ((1, 0, 1), (2, 0, 0), (2, 1, 1)):
        x = kept.augmented(rows, 0, epoch, repeat)
        assert torch.allclose(x, part.augmented(rows, 5, variant), atol=1e-3)
    assert torch.equal(kept.inputs(rows), part.inputs(rows))


def test_features_that_were_cut_off_are_computed_again(tmp_path):
    part = proto_small.Colours("train", 6)

    def cut(x):
        raise Cut

    with pytest.raises(Cut):
        broken = torch.nn.Identity()
        broken.forward = cut
        features.store(part, broken, tmp_path, CPU, seed=5, variants=1)
    assert not list(tmp_path.glob("*.npy"))
    assert len(features.store(part, torch.nn.Identity(), tmp_path, CPU, seed=5, variants=1).variants) == 1


def test_features_are_computed_once_by_fits_side_by_side(tmp_path):
    part, asked = proto_small.Colours("train", 6), []

    class Slow(torch.nn.Module):
        def forward(self, x):
            asked.append(len(x))
            time.sleep(0.2)  # the other one has begun by then
            return x

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(features.store, part, Slow(), tmp_path, CPU, seed=5, variants=1) for _ in range(2)]
        first, second = (one.result() for one in both)
    assert asked == [6, 6], "the variant and the images, once"
    assert np.array_equal(first.plain, second.plain)


# --------------------------------------------------------------------------------------------- resume, devices, memory


@pytest.mark.parametrize("changes", [
    {},
    {"model__readout_type": "linear", "train__keep": "best"},
    {"train__stochastic_weight_averaging": True, "train__epochs": 4, "optimizer__name": "sgd"},
    FROZEN,
], ids=["plain", "linear", "averaged", "features"])  # fmt: skip
def test_a_training_that_was_cut_off_ends_with_the_same_bits(changes, tmp_path, monkeypatch):
    fit = Fit(study(**changes), 0)
    whole = fits.train(fit, tmp_path / "whole")
    batches = course.Course.batches

    def cut(self, epoch):
        if epoch == 3:
            raise Cut
        return batches(self, epoch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        patch.setattr(course.Course, "batches", cut)
        fits.train(fit, tmp_path / "cut", checkpoint_seconds=0.0)
    resumed = fits.train(fit, tmp_path / "cut")
    states = [artifacts.load_tensors(fits.weights_path(tmp_path / name, fit))[0] for name in ("whole", "cut")]
    assert same(*states) and whole["history"] == resumed["history"] and whole["test"] == resumed["test"]


def test_without_checkpoints_none_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_save", lambda *_: pytest.fail("a checkpoint was written"))
    fits.train(Fit(study(train__checkpoint=False, train__epochs=2), 0), tmp_path, checkpoint_seconds=0.0)


def test_a_batch_size_is_not_searched_for_on_a_cpu(caplog):
    caplog.set_level(logging.INFO)
    tuned = tuning.tuned(study(train__hparam_tune=True), 0)
    assert tuned == study(train__hparam_tune=False) and "a CPU sets no limit" in caplog.text


def test_the_largest_power_of_two_that_fits_is_taken(monkeypatch):
    tried = []
    monkeypatch.setattr(tuning.runtime, "device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(tuning, "_step_fits", lambda study, data, size, where: (tried.append(size), size <= 8)[1])
    tuned = tuning.tuned(study(train__hparam_tune=True), 0)
    assert tuned.train.batch_size == 8 and tried == [1, 2, 4, 8, 16]


def test_more_gpus_than_there_are_are_refused(monkeypatch):
    monkeypatch.setattr(fits.runtime, "device", lambda name: torch.device("cuda"))
    with pytest.raises(ConfigError, match="gpus is 99, but there are"):
        fits.fabric(study(gpus=99))


SHARED = {"model__feature_extractor": "vgg11", "model__feature_layer": "maxpool2", "model__readout_type": "linear",
          "train__epochs": 2}  # fmt: skip
WORK = f"""
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import proto_small, pytest
from helpers.prototypes import fits
proto_small.use(pytest.MonkeyPatch())
fits.train(fits.Fit(proto_small.study(gpus=2, **{SHARED}), 0), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path):
    """Of a network without batch statistics, which each process has of its own images."""
    (tmp_path / "work.py").write_text(WORK)
    one = fits.train(Fit(study(**SHARED), 0), tmp_path / "1")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [str(tmp_path / "work.py"), str(ROOT / "tests"), str(tmp_path / "2")]
    subprocess.run([sys.executable, *words], env=env, cwd=tmp_path, check=True)
    (path,) = (tmp_path / "2").rglob("record.json")
    two = artifacts.load_json(path)
    assert (one["computed_from"]["processes"], two["computed_from"]["processes"]) == (1, 2)
    for name in ("loss", "val_xent", "push_median", "push_norm_after"):
        assert one["history"][name] == pytest.approx(two["history"][name], rel=1e-3), name
