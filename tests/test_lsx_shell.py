"""The commands of the original run unchanged, from a shell as from a notebook, and a mistake is one line."""

import logging
import shlex
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from lsx_small import STUDY, small

from helpers import artifacts, options
from helpers.config import ConfigError, read_parameters
from helpers.self_explaining import evaluate, fits, modes
from helpers.self_explaining.__main__ import NOTEBOOKS, OWN, main, resolve
from helpers.self_explaining.fits import Fit
from helpers.self_explaining.presets import SelfExplainingStudy
from helpers.self_explaining.sets import sets

SMALL = {name: value for name, value in STUDY.model_dump().items() if value != getattr(SelfExplainingStudy(), name)}


@pytest.fixture(autouse=True, scope="module")
def one_core():
    with small():
        yield


@pytest.fixture
def told(caplog):
    """What is said, a line each."""
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``config.yaml`` with the small study's settings, and what `train` made of them."""
    out = tmp_path_factory.mktemp("shell")
    (out / "config.yaml").write_text(yaml.safe_dump(SMALL | {"out": str(out)}))
    assert main(["--config", str(out / "config.yaml"), "--random_seed", "0"]) == 0
    return out


def read(words):
    return resolve(options.options(words, SelfExplainingStudy, OWN))


def run(folder, *words):
    return main([*words, "--config", str(folder / "config.yaml"), "--random_seed", "0"])


def trained(folder, phase="finetune"):
    return str(fits.weights_path(folder, Fit(STUDY, 0), phase))


# -------------------------------------------------------------------------------------------------- the settings


COMMANDS = {
    "": {},
    "--few_shot_train_percent 0.02": {"few_shot_train_percent": 0.02},
    "--dataset mnist --few_shot_train_percent 0.02 --training_mode pretrain_and_joint_and_finetuning": {
        "few_shot_train_percent": 0.02, "training_mode": "pretrain_and_joint_and_finetuning"},
    "--training_mode only_classification": {"training_mode": "only_classification"},
    "--training_mode test --model_pt runs/a/finetuned_model.safetensors": {
        "training_mode": "test", "model_pt": "runs/a/finetuned_model.safetensors"},
    "--training_mode finetuning --model_pt=model.pt --no_cuda": {
        "training_mode": "finetuning", "model_pt": "model.pt", "no_cuda": True},
    "--classification_loss_weight 1 --explanation_loss_weight 100 --explanation_loss_weight_finetune 100": {
        "classification_loss_weight": 1, "explanation_loss_weight": 100, "explanation_loss_weight_finetune": 100},
    "--lr_scheduling --learning_rate_step 0.5 --sep_critic_set --rand_critic --logging_disabled": {
        "lr_scheduling": True, "learning_rate_step": 0.5, "sep_critic_set": True, "rand_critic": True,
        "logging_disabled": True},
    "--random_seed 7 --run_name 1": {"random_seed": 7, "run_name": "1"},
    "--verbose false --batch-size 32": {"verbose": False, "batch_size": 32},
    "--preset paper_fewshot --seeds 5": {**SelfExplainingStudy.presets["paper_fewshot"], "preset": "paper_fewshot",
                                          "seeds": 5},
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_original_are_read_unchanged(command):
    study = read(shlex.split(command))
    assert study == SelfExplainingStudy().override({"seeds": 1, **COMMANDS[command]})


def test_a_notebooks_parameters_and_the_shells_options_are_the_same_settings():
    parameters = {"PRESET": "quick", "DATASET": "decoydigits", "SEED": 4, "N_EPOCHS": 3, "LR_SCHEDULING": True,
                  "EXPLANATION_LOSS_WEIGHT": 7.0, "OVERRIDES": {"explanation_norm": "sample"}}  # fmt: skip
    words = "--preset quick --dataset decoydigits --seed 4 --n_epochs 3 --lr_scheduling --explanation_loss_weight 7"
    shell = read([*words.split(), "--explanation_norm", "sample"])
    notebook = read_parameters(parameters, SelfExplainingStudy)
    assert shell == notebook and Fit(shell, 4).name == Fit(notebook, 4).name


def test_preset_file_and_options_win_in_this_order(tmp_path):
    (tmp_path / "a.json").write_text('{"preset": "quick", "batch_size": 7, "n_epochs": 9}')
    study = read(f"--config {tmp_path}/a.json --n_epochs 4".split())
    assert (study.dataset, study.batch_size, study.n_epochs) == ("digits", 7, 4)
    assert resolve({}).seeds == 1 and SelfExplainingStudy().seeds > 1, "the original runs one seed a command"


@pytest.mark.parametrize(("command", "said"), [
    ("--training_mode pretrain_and_join", "unknown training_mode 'pretrain_and_join': did you mean pretrain_and_joint"),
    ("--dataset minst", "unknown dataset 'minst': did you mean mnist"),
    ("--learningrate 1", "unknown option --learningrate: did you mean learning_rate"),
    ("--preset quik", "unknown preset 'quik': did you mean quick"),
    ("--model Net7", "unknown model 'Net7': did you mean Net1"),
    ("--batch_size", "--batch_size needs a value"),
    ("--workers 2", "--workers is of the notebook's runs"),
    ("evaluate --retrain", "--retrain is of the notebook's runs"),
    ("--batch_size three", "batch_size: Input should be a valid integer"),
    ("--few_shot_train_percent 2", "few_shot_train_percent: Input should be less than or equal to 1"),
    ("--rand_critic maybe", "--rand_critic is on or off"),
    ("-x 3", "belongs to no option"),
    ("evalute", "unknown command 'evalute': did you mean evaluate"),
    ("evaluate", "evaluate needs --model_pt"),
    ("--config none.yaml", "none.yaml cannot be read"),
    ("--training_mode test", "training_mode test needs --model_pt FILE"),
    ("--training_mode finetuning", "training_mode finetuning needs --model_pt FILE"),
    ("--training_mode save_expls --model_pt none.pt", "--model_pt none.pt: there is no such file in"),
])  # fmt: skip
def test_a_mistake_is_one_line(command, said, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    (line,) = told()
    assert said in line and "\n" not in line
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is such a device here")
def test_a_device_that_is_not_there_is_one_line_too(folder, told, tmp_path):
    assert run(folder, "--device", "mps", "--out", str(tmp_path)) == 2
    assert "DEVICE='mps' is not available here" in told()[-1]


def test_a_file_that_holds_no_settings_is_refused(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="must hold names and values"):
        resolve({"config": str(tmp_path / "list.yaml")})


def test_help_names_every_setting(told):
    assert main(["--help"]) == 0
    assert all((f"--{name} (" in told()[0]) == (name not in NOTEBOOKS) for name in SelfExplainingStudy.model_fields)
    assert "only_classification" in told()[0]


# ------------------------------------------------------------------------------------------------------ the modes


def test_the_shell_and_the_notebook_train_the_same_bits(folder, tmp_path):
    parameters = {name.upper(): value for name, value in (SMALL | {"seed": 0, "out": str(tmp_path)}).items()}
    (record,) = modes.run(read_parameters(parameters, SelfExplainingStudy))
    ours, theirs = (artifacts.load_tensors(fits.weights_path(out, Fit(STUDY, 0)))[0] for out in (tmp_path, folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert record["path"] == str(fits.weights_path(tmp_path, Fit(STUDY, 0)))


def test_mode_test_reports_the_accuracy_that_was_kept(folder, told):
    path = trained(folder)
    assert run(folder, "--training_mode", "test", "--model_pt", path) == 0
    kept = artifacts.load_tensors(fits.weights_path(folder, Fit(STUDY, 0)))[1]["accuracy"]
    assert f"{path}: test accuracy {kept:.2f} %" in told()


def test_weights_are_looked_for_from_the_working_directory(folder, monkeypatch):
    monkeypatch.chdir(fits.run_folder(folder, Fit(STUDY, 0)))
    assert run(folder, "--training_mode", "test", "--model_pt", "joint_model.safetensors") == 0


def test_other_data_than_those_of_the_training_are_said(folder, told):
    assert run(folder, "--training_mode", "test", "--model_pt", trained(folder), "--dataset", "decoydigits") == 0
    assert "was trained on digits, not on decoydigits" in told()[0]


def test_mode_save_expls_writes_inputs_maps_labels_and_a_picture(folder):
    assert run(folder, "--training_mode", "save_expls", "--model_pt", trained(folder)) == 0
    (path,) = folder.glob("save_expls*/explanations.safetensors")
    tensors, facts = artifacts.load_tensors(path)
    assert tensors["inputs"].shape == tensors["maps"].shape and len(tensors["labels"]) == len(tensors["maps"])
    assert tensors["maps"].min() >= 0 and tensors["maps"].max() == 1 and facts["seed"] == 0
    assert (path.parent / "explanations.png").read_bytes().startswith(b"\x89PNG")


def test_mode_faithfulness_writes_a_value_for_each_k(folder, told):
    assert run(folder, "--training_mode", "faithfulness", "--model_pt", trained(folder)) == 0
    (path,) = folder.glob("faithfulness*/faithfulness.csv")
    table = pd.read_csv(path)
    assert len(table) == 10 and "comprehensiveness: " in told()[-1]


def test_evaluate_measures_both_nets_under_both_norms_and_labels(folder, monkeypatch):
    data = sets(STUDY, 0)
    few = replace(data, test_x=data.test_x[:40], test_y=data.test_y[:40])
    monkeypatch.setattr(modes, "sets", lambda study, seed: few)
    monkeypatch.setattr(evaluate.evaluate, "__kwdefaults__", evaluate.evaluate.__kwdefaults__ | {"critics": 1})
    words = ["evaluate", "--model_pt", trained(folder), "--vanilla_model_pt", trained(folder, "pretrain")]
    assert run(folder, *words, "--misc_model_pt", trained(folder, "joint")) == 0
    (path,) = folder.glob("evaluate*/evaluation.csv")
    table = pd.read_csv(path)
    groups = table.groupby(["role", "norm", "label"])
    assert len(groups) == 8 and len({len(group) for _, group in groups}) == 1
    for role, phase in (("learner", "finetune"), ("baseline", "pretrain")):
        net, _ = fits.load(Path(trained(folder, phase)), Fit(STUDY, 0), phase)
        found = table[(table.metric == "accuracy") & (table.role == role)]
        assert found.value.tolist() == [evaluate.accuracy(net, few.test_x, few.test_y)] * 4
    assert "iies" in set(table.metric)
    with pytest.raises(ConfigError, match="one seed, --random_seed, not of 2"):
        modes.evaluate(STUDY.override({"model_pt": trained(folder, "finetune"), "seeds": 2}))


def test_what_does_not_repeat_is_an_error_where_that_is_asked_for(folder, tmp_path, monkeypatch):
    seen = []
    train = fits.phases.run
    monkeypatch.setattr(
        fits.phases, "run",
        lambda *a, **k: (seen.append(torch.is_deterministic_algorithms_warn_only_enabled()), train(*a, **k))[1],
    )  # fmt: skip
    assert run(folder, "--out", str(tmp_path), "--training_mode", "joint", "--deterministic") == 0
    assert run(folder, "--out", str(tmp_path), "--training_mode", "only_classification") == 0
    assert seen == [False, True] and not torch.are_deterministic_algorithms_enabled()


def test_a_critic_set_larger_than_the_data_is_clamped_not_refused(folder, tmp_path, told):
    """Property 22: the quick-start command, whose critic set is 68 x 128 = 8,704 images, here of 25."""
    words = ["--n_critic_batches", "68", "--batch_size_critic", "128", "--training_mode", "joint", "--n_epochs", "1"]
    assert run(folder, "--out", str(tmp_path), *words) == 0
    assert any("68 x 128 images is clamped to 1 x 25" in line for line in told())
    (path,) = tmp_path.rglob("joint_model.safetensors")
    assert artifacts.load_tensors(path)[1]["clamped"] is True


def test_several_seeds_are_several_runs(folder, tmp_path):
    assert run(folder, "--out", str(tmp_path), "--training_mode", "only_classification", "--seeds", "2") == 0
    found = {artifacts.load_tensors(path)[1]["seed"] for path in tmp_path.rglob("pretrained_model.safetensors")}
    assert found == {0, 1}
