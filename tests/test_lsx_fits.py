"""Every training mode runs its phases in order, is taken up where it was cut off, and is kept as it was tested."""

import logging
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lsx_small import STUDY, small, study
from safetensors.torch import save_file

from helpers import artifacts, runtime
from helpers.config import ConfigError
from helpers.self_explaining import evaluate, fits, lsx, models, phases, weights
from helpers.self_explaining.fits import OF_ALL, OF_PHASE, PHASES, Fit
from helpers.self_explaining.presets import SelfExplainingStudy
from helpers.self_explaining.sets import sets


@pytest.fixture(autouse=True, scope="module")
def one_core():
    with small():
        yield


def state(path):
    return artifacts.load_tensors(path)[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with all three phases of `STUDY`, and the last metadata."""
    out = tmp_path_factory.mktemp("whole")
    return out, fits.train(Fit(STUDY, 0), out)


# ---------------------------------------------------------------------------------------------------- a whole fit


def test_a_fit_is_kept_as_it_was_tested(whole):
    out, facts = whole
    fit = Fit(STUDY, 0)
    folder = fits.run_folder(out, fit)
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "log.csv", "pretrained_model.safetensors", "joint_model.safetensors",
        "finetuned_model.safetensors"}  # fmt: skip
    net, metadata = fits.load(fits.weights_path(out, fit), fit)
    data = sets(STUDY, 0)
    assert metadata == facts and evaluate.accuracy(net, data.test_x, data.test_y) == facts["accuracy"]
    assert not net.training and facts["test_images"] == len(data.test_y)
    assert {value.dtype for value in state(fits.weights_path(out, fit)).values()} == {torch.float32}
    assert SelfExplainingStudy(**facts["config"]) == STUDY and (facts["seed"], facts["epoch"]) == (0, 2)
    config = artifacts.load_json(folder / "config.json")
    assert SelfExplainingStudy(**config["config"]) == STUDY and config["started"][:2] == "20"
    rows = phases.read_log(folder / "log.csv")
    assert [(row["phase"], row["epoch"]) for row in rows] == [
        (name, epoch) for name in ("pretrain", "joint", "finetune") for epoch in (1, 2)]  # fmt: skip
    joint = [row for row in rows if row["phase"] == "joint"]
    assert all(r["TotalLoss"] == pytest.approx(r["ClassificationLoss"] + r["ExplanationLoss"], rel=1e-5) for r in joint)


def test_weights_give_the_same_outputs_after_a_round_trip(whole, tmp_path):
    out, fit = whole[0], Fit(STUDY, 0)
    net, metadata = fits.load(fits.weights_path(out, fit, "joint"), fit, "joint")
    data = sets(STUDY, 0)
    weights.keep(tmp_path / "copy.safetensors", net, data, metadata)
    again, _ = weights.load(tmp_path / "copy.safetensors")
    assert torch.equal(net(data.test_x[:8]), again(data.test_x[:8]))


def test_a_finished_fit_is_not_trained_again(whole, monkeypatch):
    monkeypatch.setattr(fits, "sets", None)
    assert fits.train(Fit(STUDY, 0), whole[0]) == whole[1]


@pytest.mark.parametrize("mode", ["only_classification", "joint", "pretrain_and_joint"])
def test_every_mode_runs_its_phases(mode, whole, tmp_path):
    fit = Fit(study(training_mode=mode), 0)
    fits.train(fit, tmp_path)
    kept = {path.stem for path in fits.run_folder(tmp_path, fit).glob("*.safetensors")}
    assert kept == {fits.FILES[name] for name in PHASES[mode]}
    if mode != "joint":  # what phases have in common is the same, whatever follows
        last = fits.weights_path(tmp_path, fit)
        assert same(state(last), state(fits.weights_path(whole[0], Fit(STUDY, 0), fit.phases[-1])))


@pytest.mark.parametrize(("mode", "start"), [("pretrained", "pretrain"), ("finetuning", "joint")])
def test_a_mode_that_starts_from_weights_goes_on_as_the_whole_training_did(mode, start, whole, tmp_path):
    path = fits.weights_path(whole[0], Fit(STUDY, 0), start)
    fit = Fit(study(training_mode=mode, model_pt=str(path)), 0)
    fits.train(fit, tmp_path)
    assert same(
        state(fits.weights_path(tmp_path, fit)), state(fits.weights_path(whole[0], Fit(STUDY, 0), fit.phases[-1]))
    )


@pytest.mark.parametrize("changes", [
    {"model": "MLP"}, {"optimizer": "adam", "lr_scheduling": True}, {"finetune_init": "continue"},
    {"explanation_mode": "gradcam"}, {"rand_critic": True, "class_weights": "frequency"}, {"sep_critic_set": True},
    {"dataset": "decoydigits-unconf"}, {"dataset": "colordigits-unconf"}, {"n_epochs": 0},
])  # fmt: skip
def test_other_settings_run_too_and_change_the_weights(changes, whole, tmp_path):
    fit = Fit(study(**changes), 0)
    facts = fits.train(fit, tmp_path)
    assert all(value == value for value in facts["losses"].values())
    assert not same(state(fits.weights_path(tmp_path, fit)), state(fits.weights_path(whole[0], Fit(STUDY, 0))))


def test_the_rate_falls_by_the_epoch_where_it_is_scheduled():
    data = sets(STUDY, 0)
    phase = fits.phase_of(Fit(study(lr_scheduling=True), 0), "joint", data)
    assert [phase.rate(epoch) for epoch in (1, 2, 3)] == pytest.approx([0.3, 0.21, 0.147])
    assert fits.phase_of(Fit(STUDY, 0), "joint", data).rate(3) == 0.3


# ------------------------------------------------------------------------------------------------------ to the bit


def train_plainly(net, data, phase):
    """Two epochs of classification alone, in the order of ``phase``, written by hand."""
    optimizer = torch.optim.Adadelta(net.parameters(), 0.3, rho=0.9, eps=1e-6)
    for epoch in (1, 2):
        order = torch.randperm(len(data.y), generator=runtime.generator(0, "order", phase, epoch))
        for rows in order.split(16):
            optimizer.zero_grad()
            F.nll_loss(net(data.x[rows]), data.y[rows]).backward()
            optimizer.step()


def test_without_feedback_the_joint_phase_is_plain_training_to_the_bit(tmp_path):
    """Property 10, from end to end: also where no explanation could be computed."""
    chosen = study(training_mode="joint", explanation_loss_weight=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lsx.Critique, "feedback", None)
        fits.train(Fit(chosen, 0), tmp_path)

    data = sets(chosen, 0)
    with runtime.seeded(0, "init"):
        net = models.build("Net1", 1, 10)
    train_plainly(net, data, "joint")
    assert same(net.state_dict(), state(fits.weights_path(tmp_path, Fit(chosen, 0))))


def test_without_explanation_loss_finetuning_is_plain_training_from_scratch(whole, tmp_path):
    path = str(fits.weights_path(whole[0], Fit(STUDY, 0), "joint"))
    chosen = study(training_mode="finetuning", model_pt=path, explanation_loss_weight_finetune=0.0)
    fits.train(Fit(chosen, 0), tmp_path)
    data = sets(chosen, 0)
    with runtime.seeded(0, "init", "finetune"):
        net = models.build("Net1", 1, 10)
    train_plainly(net, data, "finetune")
    assert same(net.state_dict(), state(fits.weights_path(tmp_path, Fit(chosen, 0))))


class Cut(BaseException):
    """What a kill is to the loop."""


@pytest.mark.parametrize(("phase", "name", "call"), [
    ("pretrain", "joint_step", 3), ("joint", "joint_step", 6), ("finetune", "finetune_loss", 2)
])  # fmt: skip
def test_a_run_that_was_cut_off_ends_with_the_same_bits(phase, name, call, whole, tmp_path, monkeypatch):
    """Each phase takes 4 steps: an epoch of 25 images has 2."""
    monkeypatch.setattr(phases, "run", partial(phases.run, checkpoint_seconds=0))
    step, calls = getattr(lsx, name), []

    def cut(*arguments, **options):
        calls.append(name)
        if len(calls) == call:
            raise Cut
        return step(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lsx, name, cut)
        with pytest.raises(Cut):
            fits.train(Fit(STUDY, 0), tmp_path)
    folder = fits.run_folder(tmp_path, Fit(STUDY, 0))
    assert (folder / f"{phase}_checkpoint.safetensors").exists()
    with pytest.MonkeyPatch.context() as patch:
        calls.clear()
        patch.setattr(lsx, name, lambda *a, **k: (calls.append(name), step(*a, **k))[1])
        fits.train(Fit(STUDY, 0), tmp_path)
    left = {"pretrain": 8, "joint": 8, "finetune": 4}[phase] - call + 1
    assert len(calls) == left, "no step is taken twice"
    for name in PHASES[STUDY.training_mode]:
        path, wanted = (fits.weights_path(out, Fit(STUDY, 0), name) for out in (tmp_path, whole[0]))
        assert same(state(path), state(wanted))
    log = fits.run_folder(whole[0], Fit(STUDY, 0)) / "log.csv"
    assert (folder / "log.csv").read_bytes() == log.read_bytes()
    assert not list(folder.glob("*checkpoint*"))


# ------------------------------------------------------------------------------------------------- roles and names


def test_the_baseline_classifies_for_as_many_epochs_and_begins_with_the_learners_steps(whole, tmp_path):
    baseline = Fit(STUDY, 0, "baseline")
    assert baseline.phases == ("pretrain",) and baseline.settings.n_pretraining_epochs == 6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "run", partial(phases.run, checkpoint_seconds=0))
        step = lsx.joint_step
        patch.setattr(lsx, "joint_step", lambda *a, **k: (_ for _ in ()).throw(Cut) if a[4] == 4 else step(*a, **k))
        with pytest.raises(Cut):
            fits.train(baseline, tmp_path)
    after_two, _ = artifacts.load_tensors(phases.checkpoint_path(fits.run_folder(tmp_path, baseline), "pretrain"))
    learner = state(fits.weights_path(whole[0], Fit(STUDY, 0), "pretrain"))
    assert all(torch.equal(after_two[f"model/{name}"], value) for name, value in learner.items())


def test_the_encoder_is_another_network_for_the_same_data(whole, tmp_path):
    fit = Fit(STUDY, 0, "encoder")
    fits.train(fit, tmp_path)
    assert fit.settings.n_pretraining_epochs == 2 and fit.settings.training_mode == "only_classification"
    other = state(fits.weights_path(whole[0], Fit(STUDY, 0), "pretrain"))
    assert not same(state(fits.weights_path(tmp_path, fit)), other)


CHANGED = {
    "dataset": "mnist", "model": "MLP", "few_shot_train_percent": 0.5, "batch_size": 5, "batch_size_critic": 5,
    "n_critic_batches": 5, "sep_critic_set": True, "color_test": "reversed", "color_channels": 3,
    "class_weights": "inverse", "optimizer": "adam", "lr_scheduling": True, "learning_rate_step": 0.5,
    "explanation_mode": "input", "explanation_norm": "none", "explanation_target": "logit",
    "gradcam_weights": "constant", "integration_steps": 5, "pretrain_learning_rate": 0.1, "n_pretraining_epochs": 5,
    "learning_rate": 0.1, "n_epochs": 5, "classification_loss_weight": 5.0, "explanation_loss_weight": 5.0,
    "learning_rate_critic": 0.1, "rand_critic": True, "feedback": "jvp", "learning_rate_finetune": 0.1,
    "n_finetuning_epochs": 5, "explanation_loss_weight_finetune": 5.0, "finetune_init": "continue",
}  # fmt: skip


def test_the_digest_changes_with_every_setting_and_only_where_it_matters():
    known = {*OF_ALL, *(name for names in OF_PHASE.values() for name in names)}
    measured = {"groups", "critics", "evaluated_labels", "evaluated_norms", "evaluated_images"}
    elsewhere = STUDY.of_this_run | {"training_mode", "seed", "random_seed"} | measured
    assert known == set(CHANGED) == set(SelfExplainingStudy.model_fields) - elsewhere, "a new setting needs a case"
    digests = {name: Fit(study(**{name: value}), 0).digest() for name, value in CHANGED.items()}
    assert len({*digests.values(), Fit(STUDY, 0).digest()}) == len(CHANGED) + 1
    before = Fit(STUDY, 0).digest("pretrain")
    for name, value in CHANGED.items():
        changed = Fit(study(**{name: value}), 0).digest("pretrain") != before
        assert changed == (name in {*OF_ALL, *OF_PHASE["pretrain"]}), name
    assert Fit(STUDY, 1).digest() == Fit(STUDY, 0).digest(), "the seed stands in the name"


def test_the_folder_is_named_by_what_was_run():
    name = Fit(study(run_name="first try: 1"), 3).name
    told = "Net1_input_x_gradient-batch_digits_p0.02_pretrain_and_joint_and_finetuning_N3x4_lr0.5-0.3-0.3_b16_e2-2-2"
    assert name.startswith(f"{told}_w1-1_ft50_seed3_") and name.endswith("_first-try-1")
    baseline = Fit(study(explanation_loss_weight=7.0), 3, "baseline").name
    assert baseline.startswith("Net1_digits_p0.02_baseline_lr0.5_b16_e6_seed3_")
    assert baseline == Fit(STUDY, 3, "baseline").name, "one baseline for whatever is compared with it"


# ------------------------------------------------------------------------------------------------- wrong weights


def test_other_weights_are_refused(whole, tmp_path):
    out, fit = whole[0], Fit(STUDY, 0)
    path = fits.weights_path(out, fit)
    with pytest.raises(artifacts.ArtifactError, match="holds the phase 'finetune', not 'joint': it was swapped"):
        fits.load(path, fit, "joint")
    with pytest.raises(artifacts.ArtifactError, match="holds the seed 0, not 1"):
        fits.load(path, Fit(STUDY, 1))
    with pytest.raises(artifacts.ArtifactError, match="was trained with other settings"):
        fits.load(path, Fit(study(learning_rate=0.2), 0))
    content = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-8])
    with pytest.raises(artifacts.ArtifactError, match="is damaged"):
        weights.load(tmp_path / "cut.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(artifacts.ArtifactError, match="was not written by this trainer"):
        weights.load(tmp_path / "other.safetensors")
    state, metadata = artifacts.load_tensors(path)
    artifacts.save_tensors(tmp_path / "new.safetensors", state, metadata | {"format": 99})
    with pytest.raises(artifacts.ArtifactError, match="is of format 99, not 1"):
        weights.load(tmp_path / "new.safetensors")


def test_weights_that_do_not_fit_the_data_or_the_model_are_refused(whole, tmp_path):
    path = str(fits.weights_path(whole[0], Fit(STUDY, 0)))
    colours = study(dataset="colordigits", color_channels=3, model="MedNet1")
    with pytest.raises(artifacts.ArtifactError, match=r"takes images of 1 channel\(s\) and 10 classes; these have 3"):
        weights.read(path, colours, sets(colours, 0), 0)
    with pytest.raises(artifacts.ArtifactError, match="holds a Net1, not a MLP: name it with --model"):
        fits.train(Fit(study(training_mode="pretrained", model_pt=path, model="MLP"), 0), tmp_path)


def test_weights_that_may_know_the_test_images_are_told_of(tmp_path, caplog):
    """Spec section 11: the clean images of a critic set are taken out of the test set, by the seed."""
    unconf, baseline = study(dataset="colordigits-unconf"), study(dataset="colordigits-unconf-baseline")
    decoys = study(dataset="decoydigits-unconf")  # whose clean images come from the training file
    for own in (study(), unconf, baseline, decoys):
        data = sets(own, 0)
        net = models.build("Net1", data.in_channels, 10)
        weights.keep(tmp_path / "net.safetensors", net, data, {"seed": 0, "config": own.model_dump(mode="json")})
        smaller = study(dataset=own.dataset, n_critic_batches=1)
        known = own in (unconf, baseline)
        for asked, seed, told in ((own, 0, False), (own, 1, known), (smaller, 0, known)):
            caplog.clear()
            weights.read(tmp_path / "net.safetensors", asked, sets(asked, seed), seed)
            assert ("may have learned from images of this test set" in caplog.text) == told


def test_a_pickle_is_read_as_tensors_alone(whole, tmp_path, caplog):
    net, _ = fits.load(fits.weights_path(whole[0], Fit(STUDY, 0)), Fit(STUDY, 0))
    data = sets(STUDY, 0)
    caplog.set_level(logging.INFO)
    renamed = {f"layers.{i}": value for i, value in enumerate(net.state_dict().values())}
    for content in (net.state_dict(), {"epoch": 3, "model_state_dict": net.state_dict()}, renamed):
        torch.save(content, tmp_path / "model.pt")
        read = weights.read(tmp_path / "model.pt", STUDY, data, 0)
        assert torch.equal(read(data.test_x[:4]), net(data.test_x[:4]))
    assert "taken in their order" in caplog.text
    torch.save({"epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(artifacts.ArtifactError, match="holds no state of a network"):
        weights.read(tmp_path / "model.pt", STUDY, data, 0)
    torch.save(models.build("MLP", 1, 10).state_dict(), tmp_path / "model.pt")
    with pytest.raises(artifacts.ArtifactError, match="holds no weights of a"):
        weights.read(tmp_path / "model.pt", STUDY, data, 0)
    torch.save(net, tmp_path / "model.pt")
    with pytest.raises(artifacts.ArtifactError, match="cannot be read as tensors alone"):
        weights.read(tmp_path / "model.pt", STUDY, data, 0)
    with pytest.raises(artifacts.ArtifactError, match="is not there"):
        weights.read(tmp_path / "none.pt", STUDY, data, 0)


def test_weights_must_be_named_where_a_mode_starts_from_them(tmp_path):
    with pytest.raises(ConfigError, match="training_mode finetuning needs --model_pt FILE"):
        Fit(study(training_mode="finetuning"), 0)
    with pytest.raises(ConfigError, match="there is no such file"):
        Fit(study(training_mode="pretrained", model_pt=str(tmp_path / "none.safetensors")), 0)
    with pytest.raises(ConfigError, match="training_mode 'test' trains nothing"):
        Fit(study(training_mode="test"), 0)
