"""The epoch loop keeps the best weights, says when it fails, and goes on after a cut as if there had been none."""

import csv
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import artifacts, runtime, training

ROOT = Path(__file__).parents[1]
N, BATCH = 24, 8


class Cut(BaseException):
    """What a kill is to the loop: nothing runs after it."""


def make(memory_format=torch.contiguous_format):
    """A network with all that has a state: convolutions, batch statistics, dropout."""
    with runtime.seeded(0, "init"):
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(6, 4, 3), nn.ReLU(),
            nn.Flatten(), nn.Linear(4 * 36, 1))  # fmt: skip
    return model.to(memory_format=memory_format)


def data():
    x = torch.rand(N, 1, 8, 8, generator=runtime.generator(0, "x"))
    return x, (x[:, 0, 2:6, 2:6].mean((1, 2)) > 0.5).float()


def loss(model, batch):
    return F.binary_cross_entropy_with_logits(model(batch[0])[:, 0], batch[1])


def batches(epoch, cut_at=math.inf):
    if epoch >= cut_at:
        raise Cut
    x, y = data()
    order = torch.randperm(N, generator=runtime.generator(0, "order", epoch))
    for rows in order.split(BATCH):
        yield x[rows], y[rows]


def accuracy(model, best):
    x, y = data()
    return ((model(x)[:, 0] > 0) == (y > 0)).double().mean().item()


@pytest.fixture(scope="module")
def fabric():
    return training.fabric("cpu", "float32")


def fit(fabric, optimizer=torch.optim.Adam, memory_format=torch.contiguous_format, cut_at=math.inf, **options):
    model = make(memory_format)
    fused = {"fused": True} if optimizer is torch.optim.Adam else {}
    optimizer = optimizer(model.parameters(), 0.02, **fused)
    schedule = options.pop("schedule", None)
    options = {"epochs": 6, "seed": 3, "evaluate": accuracy} | options
    return training.train(
        model, optimizer, options.pop("loss", loss), options.pop("batches", lambda epoch: batches(epoch, cut_at)),
        fabric=fabric, scheduler=schedule(optimizer) if schedule else None, **options)  # fmt: skip


def same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------------------------ the loop


def test_it_takes_the_steps_of_the_plain_loop(fabric):
    """The paper's training, written out: same weights to the bit."""
    outcome = fit(fabric, evaluate=None, epochs=3)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 0.02, fused=True)
    losses = []
    for epoch in (1, 2, 3):
        with runtime.seeded(3, "training", epoch):
            for batch in batches(epoch):
                optimizer.zero_grad()
                value = loss(model, batch)
                value.backward()
                optimizer.step()
                losses.append(value.item())
    assert same_state(outcome.state, model.state_dict())
    assert [row["loss"] for row in outcome.history] == pytest.approx([sum(losses[i : i + 3]) / 3 for i in (0, 3, 6)])
    assert (outcome.epoch, outcome.epochs, outcome.finished) == (3, 3, False)


def test_the_same_call_twice_gives_the_same_bits(fabric):
    first, again = fit(fabric), fit(fabric)
    assert same_state(first.state, again.state)
    assert first.history == again.history
    other = fit(fabric, seed=4)
    assert not same_state(first.state, other.state), "dropout hangs on the seed"


def test_the_best_weights_are_kept_and_only_a_strictly_better_score_replaces_them(fabric):
    scores, states = iter([0.5, 0.7, 0.7, 0.6, 0.7, 0.1]), []

    def evaluate(model, best):
        assert not model.training
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        return next(scores)

    outcome = fit(fabric, evaluate=evaluate)
    assert (outcome.score, outcome.epoch, outcome.step) == (0.7, 2, 3)
    kept = {name.removeprefix("_forward_module.").removeprefix("_original_module."): v for name, v in states[1].items()}
    assert same_state(outcome.state, kept)
    assert not same_state(outcome.state, {k: v for k, v in zip(kept, states[2].values(), strict=True)})
    assert [row["score"] for row in outcome.history] == [0.5, 0.7, 0.7, 0.6, 0.7, 0.1]


def test_an_evaluation_may_give_up_as_soon_as_it_cannot_win(fabric):
    seen, scores = [], iter([0.5, None, 0.6, None, None, None])
    outcome = fit(fabric, evaluate=lambda model, best: (seen.append(best), next(scores))[1])
    assert seen == [-math.inf, 0.5, 0.5, 0.6, 0.6, 0.6]
    assert (outcome.score, outcome.epoch) == (0.6, 3)
    assert [row["score"] for row in outcome.history] == [0.5, None, 0.6, None, None, None]


def test_evaluations_come_after_the_steps_asked_for(fabric):
    outcome = fit(fabric, epochs=2, evaluate_at=(1, 2))
    assert [(row["epoch"], row["step"], row["score"] is None) for row in outcome.history] == [
        (1, 1, False), (1, 2, False), (1, 3, True), (2, 1, False), (2, 2, False), (2, 3, True)]  # fmt: skip


def test_a_rows_loss_is_the_mean_since_the_row_before(fabric):
    each = [row["loss"] for row in fit(fabric, epochs=2, evaluate_at=(1, 2, 3)).history]
    rows = fit(fabric, epochs=2, evaluate_at=(2,)).history
    with pytest.raises(ValueError, match=r"3 batches, none of those that evaluate_at names: \(4, 9\)"):
        fit(fabric, evaluate=lambda *_: 0.5, evaluate_at=(4, 9))
    expected = [(each[0] + each[1]) / 2, each[2], (each[3] + each[4]) / 2, each[5]]
    assert [row["loss"] for row in rows] == pytest.approx(expected, rel=1e-5)


def test_training_stops_the_moment_the_score_is_reached(fabric):
    scores, steps = iter([0.3, 0.9, 1.0, 0.4]), []
    outcome = fit(
        fabric, evaluate=lambda *_: next(scores), evaluate_at=(1, 2), stop_at=1.0,
        loss=lambda m, b: (steps.append(1), loss(m, b))[1],
    )  # fmt: skip
    assert outcome.finished and (outcome.score, outcome.epoch, outcome.step, outcome.epochs) == (1.0, 2, 1, 2)
    assert len(steps) == 4, "three of the first epoch, one of the second"


def test_the_model_is_in_training_mode_again_after_an_evaluation(fabric):
    modes = []
    fit(fabric, epochs=1, evaluate_at=(1, 2, 3), loss=lambda m, b: (modes.append(m.training), loss(m, b))[1])
    assert modes == [True] * 3


def test_an_evaluation_changes_nothing(fabric):
    """However often it runs, the weights take the same way: it draws nothing and moves no batch statistic."""
    rising = iter(range(100))
    often = fit(fabric, epochs=2, evaluate_at=(1, 2, 3), evaluate=lambda m, _: (accuracy(m, 0), next(rising))[1])
    assert often.score == 5 and same_state(often.state, fit(fabric, epochs=2, evaluate=None).state)


def test_a_score_that_beats_nothing_keeps_nothing(fabric):
    outcome = fit(fabric, epochs=2, evaluate=lambda *_: -math.inf)
    assert outcome.state == {} and outcome.epoch == 0


def test_a_schedule_moves_the_rate_once_an_epoch(fabric):
    outcome = fit(fabric, epochs=3, schedule=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5))
    assert [row["learning_rate"] for row in outcome.history] == pytest.approx([0.02, 0.01, 0.005])


def test_training_ends_after_the_epoch_that_leaves_the_rate_at_the_least_one_or_below(fabric):
    halved = {"schedule": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5)}
    for stop_rate, epochs in ((0.01, 1), (0.0099, 2), (0.005, 2), (0.0, 6)):  # of 0.02
        outcome = fit(fabric, stop_rate=stop_rate, **halved)
        assert (outcome.epochs, outcome.finished) == (epochs, epochs < 6), stop_rate


# ------------------------------------------------------------------------------------------------ failures


def test_a_loss_that_is_not_finite_is_reported_with_its_place(fabric):
    def diverging(model, batch):
        value = loss(model, batch)
        calls.append(1)
        return value * math.nan if len(calls) == 5 else value

    calls = []
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 2, step 3: lower the learning rate"):
        fit(fabric, loss=diverging)
    calls = []
    with pytest.raises(FloatingPointError, match="epoch 2, step 2"):
        fit(fabric, loss=diverging, evaluate_at=(2,))


def test_an_epoch_without_batches_is_an_error(fabric):
    with pytest.raises(ValueError, match="epoch 1 has no batches"):
        fit(fabric, batches=lambda epoch: [])
    with pytest.raises(ValueError, match="epochs must be at least 1, not 0"):
        fit(fabric, epochs=0)


# -------------------------------------------------------------------------------------- checkpoint and resume


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("cut_at", [2, 5])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(fabric, tmp_path, optimizer, memory_format, cut_at):
    """Weights, batch statistics, the optimizer's moments, the best weights, the schedule and the history go on."""
    options = {"optimizer": optimizer, "memory_format": memory_format, "checkpoint_seconds": 0.0, "evaluate_at": (2, 3)}
    options["schedule"] = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 6)
    whole = fit(fabric, folder=tmp_path / "whole", **options)
    with pytest.raises(Cut):
        fit(fabric, folder=tmp_path / "cut", cut_at=cut_at, **options)
    assert (tmp_path / "cut" / "checkpoint.safetensors").exists() and not (tmp_path / "cut" / "log.csv").exists()
    resumed = fit(fabric, folder=tmp_path / "cut", **options)
    assert same_state(whole.state, resumed.state)
    assert whole.history == resumed.history
    assert (whole.score, whole.epoch, whole.step, whole.epochs) == (
        resumed.score, resumed.epoch, resumed.step, resumed.epochs)  # fmt: skip
    assert (tmp_path / "whole" / "log.csv").read_bytes() == (tmp_path / "cut" / "log.csv").read_bytes()


def test_the_last_weights_go_on_too_when_nothing_is_evaluated(fabric, tmp_path):
    whole = fit(fabric, evaluate=None)
    with pytest.raises(Cut):
        fit(fabric, evaluate=None, folder=tmp_path, checkpoint_seconds=0.0, cut_at=4)
    resumed = fit(fabric, evaluate=None, folder=tmp_path)
    assert same_state(whole.state, resumed.state) and resumed.epoch == 6


def test_a_resumed_run_takes_no_step_twice(fabric, tmp_path):
    with pytest.raises(Cut):
        fit(fabric, folder=tmp_path, checkpoint_seconds=0.0, cut_at=4)
    begun = []
    fit(fabric, folder=tmp_path, batches=lambda epoch: (begun.append(epoch), batches(epoch))[1])
    assert begun == [4, 5, 6]


def test_the_optimizer_continues_with_its_own_moments(fabric, tmp_path):
    """What is restored are the moments of each weight, in the order in which the weight lies in memory."""
    model, restored = make(torch.channels_last), make(torch.channels_last)
    optimizers = [torch.optim.Adam(m.parameters(), 0.02, fused=True) for m in (model, restored)]
    for batch in batches(1):
        optimizers[0].zero_grad()
        loss(model, batch).backward()
        optimizers[0].step()
    training._save(tmp_path / "c", training.Outcome(), model, optimizers[0], None)
    training._restore(tmp_path / "c", restored, optimizers[1], None)
    for a, b in zip(model.parameters(), restored.parameters(), strict=True):
        assert torch.equal(a, b)
        for name, value in optimizers[0].state[a].items():
            other = optimizers[1].state[b][name]
            assert torch.equal(value, other) and value.dtype == other.dtype and value.stride() == other.stride(), name


def test_seconds_add_up_over_the_parts_of_a_run(fabric, tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(clock)))
    with pytest.raises(Cut):
        fit(fabric, folder=tmp_path, checkpoint_seconds=0.0, cut_at=4)
    before = artifacts.load_tensors(tmp_path / "checkpoint.safetensors")[1]["outcome"]["seconds"]
    assert before > 0 and fit(fabric, folder=tmp_path).seconds > before


def test_checkpoints_are_written_at_most_so_often_and_never_after_the_end(fabric, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(training, "_save", lambda path, outcome, *_: written.append(outcome.epochs))
    fit(fabric, folder=tmp_path, checkpoint_seconds=3600.0)
    assert written == []
    fit(fabric, folder=tmp_path, checkpoint_seconds=0.0)
    assert written == [1, 2, 3, 4, 5], "the weights of the last epoch are the outcome itself"
    written.clear()
    fit(fabric, folder=tmp_path, checkpoint_seconds=0.0, stop_at=-1.0)
    assert written == []


def test_a_damaged_checkpoint_is_refused_by_name_with_the_remedy(fabric, tmp_path):
    with pytest.raises(Cut):
        fit(fabric, folder=tmp_path, checkpoint_seconds=0.0, cut_at=4)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(artifacts.ArtifactError, match="checkpoint.safetensors is damaged .* delete it and run again"):
        fit(fabric, folder=tmp_path)


def test_without_a_folder_nothing_is_written(fabric, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(fabric, epochs=1, tensorboard=True, checkpoint_seconds=0.0)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------- logs, progress, precision


def test_the_log_is_the_history_as_csv(fabric, tmp_path):
    outcome = fit(fabric, folder=tmp_path, epochs=2, evaluate_at=(2,))
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [(int(row["epoch"]), int(row["step"])) for row in rows] == [(1, 2), (1, 3), (2, 2), (2, 3)]
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in outcome.history]
    assert [row["score"] == "" for row in rows] == [False, True, False, True]
    assert {row["learning_rate"] for row in rows} == {"0.02"}


def test_tensorboard_shows_the_same_numbers(fabric, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    outcome = fit(fabric, folder=tmp_path, epochs=2, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "score", "learning_rate"):
        shown = [event.value for event in events.Scalars(name)]
        assert shown == pytest.approx([row[name] for row in outcome.history], rel=1e-6)
    assert fit(fabric, folder=tmp_path / "none", epochs=1).history and not (tmp_path / "none" / "tensorboard").exists()


def test_the_progress_bar_is_named_or_not_shown(fabric, capsys):
    fit(fabric, epochs=2, progress="pinet/0")
    assert "pinet/0" in capsys.readouterr().err
    fit(fabric, epochs=2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("fast", "expected"), [(torch.bfloat16, "bf16-mixed"), (torch.float32, "32-true")])
def test_auto_precision_is_what_the_hardware_is_fast_at(monkeypatch, fast, expected):
    monkeypatch.setattr(runtime, "fast_dtype", lambda where: fast)
    assert training.fabric("cpu")._precision.precision == expected
    assert training.fabric("cpu", "float32")._precision.precision == "32-true"
    assert training.fabric("cpu", "bfloat16")._precision.precision == "bf16-mixed"


def test_bfloat16_is_for_the_arithmetic_alone(fabric):
    """Weights, statistics and the loss stay in float32; the losses are nearly the same, the bits are not."""
    kinds = set()

    def watched(model, batch):
        value = loss(model, batch)
        kinds.add(value.dtype)
        return value

    rounded = fit(training.fabric("cpu", "bfloat16"), loss=watched, epochs=2, evaluate=None)
    exact = fit(fabric, epochs=2, evaluate=None)
    assert kinds == {torch.float32}
    assert all(rounded.state[k].dtype == v.dtype for k, v in exact.state.items())
    assert not same_state(rounded.state, exact.state)
    for row, other in zip(rounded.history, exact.history, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=0.05)


def test_a_run_leaves_the_global_generator_alone(fabric):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    fit(fabric, epochs=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_is_no_pickle(fabric, tmp_path):
    with pytest.raises(Cut):
        fit(fabric, folder=tmp_path, checkpoint_seconds=0.0, cut_at=3)
    assert [path.suffix for path in Path(tmp_path).iterdir()] == [".safetensors"]
    tensors, facts = artifacts.load_tensors(tmp_path / "checkpoint.safetensors")
    assert {name.split("/")[0] for name in tensors} == {"model", "best", "optimizer"}
    assert facts["outcome"]["epochs"] == 2 and facts["param_groups"][0]["lr"] == 0.02


def test_a_log_reads_back_as_the_history_it_was_written_from(tmp_path):
    history = [{"epoch": 1, "step": 8, "loss": 419.5297546386719, "score": 0.65, "learning_rate": 0.005},
               {"epoch": 1, "step": 16, "loss": 1e-09 / 3, "score": None, "learning_rate": 0.005}]  # fmt: skip
    (tmp_path / "log.csv").write_text(training.log_csv(history))
    assert training.read_log(tmp_path / "log.csv") == history
    assert training.columns(history) == {
        "epoch": [1, 1], "step": [8, 16], "loss": [419.5, 3.333e-10], "score": [0.65, None]}  # fmt: skip


def broken_torchvision(folder):
    """An environment whose torchvision fails at import, as beside the CPU-only torch 2.13.0, and that has the
    torchmetrics which Fabric then imports with it."""
    for package, source in {
        "torchvision": "raise RuntimeError('operator torchvision::nms does not exist')",
        "torchmetrics": "import torchvision",
    }.items():
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(source)
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_training_beside_a_torchvision_that_does_not_fit_says_what_to_install(tmp_path):
    code = "from helpers import training; training.fabric('cpu')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=broken_torchvision(tmp_path),
                          capture_output=True, text=True)  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "TorchvisionError: torchvision cannot be imported beside torch" in last
    assert "operator torchvision::nms does not exist" in last and "pip install torch==" in last


def test_reading_what_is_shipped_never_meets_torchvision(tmp_path):
    code = "import captum.attr; from helpers.pinets import baselines, claims, explore, pictures, recursion, study"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=broken_torchvision(tmp_path), check=True)


@pytest.mark.parametrize("missing", ["torchmetrics", "torchvision"])
def test_without_torchvision_training_goes_on(monkeypatch, missing):
    """Fabric does not need it, and only torchmetrics leads there."""
    import lightning_fabric  # noqa: F401  (before `find_spec` tells stories)

    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None if name == missing else object())
    monkeypatch.setattr(runtime, "import_torchvision", lambda: pytest.fail("it was imported"))
    assert training.fabric("cpu")


# --------------------------------------------------------------------------- hooks, several batches, several processes


def test_hooks_surround_an_epoch_and_add_columns_to_its_row(fabric, tmp_path):
    calls = []

    def after(model, epoch):
        calls.append(("after", epoch, model.training))
        return {"distance": epoch / 2} if epoch != 2 else {"other": 7.0}

    outcome = fit(
        fabric, epochs=3, folder=tmp_path, evaluate=lambda *_: (calls.append("evaluate"), 0.1)[1],
        before_epoch=lambda model, epoch: calls.append(("before", epoch)), after_epoch=after,
    )  # fmt: skip
    assert calls[:3] == [("before", 1), "evaluate", ("after", 1, True)]
    assert [row.get("distance") for row in outcome.history] == [0.5, None, 1.5]
    rows = training.read_log(tmp_path / "log.csv")
    assert [row["other"] for row in rows] == [None, 7.0, None] and list(rows[0])[:5] == list(training.COLUMNS)


def test_what_a_hook_changes_is_kept_and_its_score_counts(fabric):
    def after(model, epoch):
        with torch.no_grad():
            model[-1].bias.fill_(epoch)
        return {"score": (0.2, 0.9, 0.4)[epoch - 1]}

    outcome = fit(fabric, epochs=3, evaluate=None, after_epoch=after)
    assert (outcome.score, outcome.epoch) == (0.9, 2) and outcome.state["7.bias"] == 2.0
    assert fit(fabric, epochs=3, evaluate=None, after_epoch=lambda m, e: after(m, e) and {}).state["7.bias"] == 3.0


def test_a_hooks_score_stops_the_training_too_and_no_hook_follows_a_stop(fabric):
    outcome = fit(fabric, evaluate=None, after_epoch=lambda m, epoch: {"score": epoch / 2}, stop_at=1.0)
    assert (outcome.finished, outcome.epochs, outcome.score) == (True, 2, 1.0)
    called = []
    outcome = fit(fabric, evaluate=lambda *_: 1.0, stop_at=1.0, after_epoch=lambda m, epoch: called.append(epoch) or {})
    assert outcome.finished and called == []


def test_an_epoch_trains_in_training_mode_whatever_the_hook_before_it_left(fabric):
    modes = []
    fit(
        fabric, epochs=2, evaluate=None, after_epoch=lambda m, epoch: m.eval() and {},
        loss=lambda m, b: (modes.append(all(part.training for part in m.modules())), loss(m, b))[1],
    )  # fmt: skip
    assert modes == [True] * 6


def test_a_hook_that_freezes_a_layer_keeps_it_as_it_is(fabric):
    outcome = fit(fabric, epochs=1, evaluate=None, before_epoch=lambda m, e: m[0].requires_grad_(e > 1))
    assert torch.equal(outcome.state["0.weight"], make()[0].weight)
    assert not torch.equal(outcome.state["7.weight"], make()[7].weight)


def test_named_values_of_a_loss_are_logged_as_means(fabric):
    def several(model, batch):
        value = loss(model, batch)
        return {"loss": value, "twice": 2 * value}

    for row in fit(fabric, loss=several, epochs=2, evaluate_at=(2,)).history:
        assert row["twice"] == pytest.approx(2 * row["loss"])


def test_accumulated_batches_make_the_step_of_one_large_batch(fabric):
    """Without batch statistics and dropout, and with a plain optimizer, which knows no scale."""
    def run(size, accumulate):
        with runtime.seeded(0, "init"):
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
        x, y = data()
        return training.train(
            model, torch.optim.SGD(model.parameters(), 0.1), loss,
            lambda epoch: zip(x.split(size), y.split(size), strict=True),
            fabric=fabric, epochs=2, seed=0, accumulate=accumulate,
        )  # fmt: skip

    large, small = run(12, 1), run(4, 3)
    assert all(torch.allclose(large.state[k], small.state[k], atol=1e-6) for k in large.state)

    with runtime.seeded(0, "init"):
        plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    optimizer, (x, y) = torch.optim.SGD(plain.parameters(), 0.1), data()
    for rows in [slice(0, 16), slice(16, 24)] * 2:  # two batches of 8, then the one that is left over, at half weight
        optimizer.zero_grad()
        (loss(plain, (x[rows], y[rows])) * len(x[rows]) / 16).backward()
        optimizer.step()
    uneven = run(8, 2)
    assert all(torch.allclose(uneven.state[k], v, atol=1e-6) for k, v in plain.state_dict().items())


def test_gradients_are_clipped_to_the_norm(fabric):
    moved = []
    for clip_norm in (None, 1e-3):
        outcome = fit(fabric, optimizer=torch.optim.SGD, epochs=1, evaluate=None, clip_norm=clip_norm)
        before = dict(make().named_parameters())
        moved.append(sum(float((outcome.state[k] - p.detach()).norm() ** 2) for k, p in before.items()) ** 0.5)
    assert moved[1] <= 3 * 0.02 * 1e-3 * 1.001 < moved[0]


def test_the_mean_of_the_last_weights_is_the_mean_of_the_last_weights(fabric, tmp_path):
    states = []

    def after(model, epoch):
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        return {}

    options = {"evaluate": None, "after_epoch": after, "average_from": 4}
    outcome = fit(fabric, **options)
    for name, value in outcome.state.items():
        if value.is_floating_point():
            assert torch.allclose(value, torch.stack([s[name] for s in states[3:]]).mean(0), atol=1e-6)
    with pytest.raises(Cut):
        fit(fabric, folder=tmp_path, checkpoint_seconds=0.0, cut_at=6, **options)
    assert same_state(fit(fabric, folder=tmp_path, **options).state, outcome.state)


PROCESSES = """
import sys
from pathlib import Path
import torch, torch.nn.functional as F
from torch import nn
from helpers import artifacts, runtime, training
def work(fabric, out):
    with runtime.seeded(0, "init"):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 1), nn.Linear(1, 1))
    x = torch.rand(24, 1, 8, 8, generator=runtime.generator(0, "x"))
    y = (x[:, 0, 2:6, 2:6].mean((1, 2)) > 0.5).float()
    def batches(epoch):
        order = torch.randperm(24, generator=runtime.generator(0, "order", epoch))
        for rows in order.split(8):
            own = rows[fabric.global_rank :: fabric.world_size]
            yield x[own], y[own]
    def freeze(model, epoch):
        model[0].requires_grad_(epoch > 2)
    def push(model, epoch):
        with torch.no_grad():
            model[4].bias.fill_(0.1 * epoch)
        return {"rank": float(fabric.global_rank)}
    outcome = training.train(
        model, torch.optim.Adam(model.parameters(), 0.02),
        lambda model, b: F.binary_cross_entropy_with_logits(model(b[0])[:, 0], b[1]), batches,
        fabric=fabric, epochs=4, seed=0, before_epoch=freeze, after_epoch=push, clip_norm=1.0,
    )
    artifacts.save_json(Path(out) / f"{fabric.world_size}_{fabric.global_rank}.json",
                        {"history": outcome.history, "sum": {k: float(v.sum()) for k, v in outcome.state.items()}})
if __name__ == "__main__":
    training.fabric("cpu", "float32", 2).launch(work, sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    (tmp_path / "work.py").write_text(PROCESSES)
    training.fabric("cpu", "float32").launch(runpy.run_path(str(tmp_path / "work.py"))["work"], str(tmp_path))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, str(tmp_path / "work.py"), str(tmp_path)], env=env, check=True)
    one, first, second = (artifacts.load_json(tmp_path / f"{name}.json") for name in ("1_0", "2_0", "2_1"))
    assert first["sum"] == second["sum"], "all hold the same weights"
    assert first["sum"] == pytest.approx(one["sum"], rel=1e-3, abs=1e-4)
    for a, b in zip(one["history"], first["history"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert {row["rank"] for row in second["history"]} == {0.0}, "hooks run in the first process alone"
