"""Seeds that are trained together are those that are trained alone, up to rounding, in every phase; what is cut off
goes on, what is there is left alone (spec cnn_lsx, section 10, item 5)."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from lsx_small import STUDY, small, study

from helpers import artifacts
from helpers.config import ConfigError
from helpers.self_explaining import fits, lsx, models, phases, seeds
from helpers.self_explaining.fits import Fit
from helpers.self_explaining.models import Net1
from helpers.self_explaining.seeds import train_together
from helpers.self_explaining.study import Member, Shelf, collect, members

SEEDS = (0, 1, 2)


@pytest.fixture(autouse=True, scope="module")
def one_core():
    with small():
        yield


def double_sets(settings, seed, made=fits.sets):
    """`sets` in float64."""
    data = made(settings, seed)
    floats = {n: t.double() for n, t in vars(data).items() if isinstance(t, torch.Tensor) and t.is_floating_point()}
    return replace(data, **floats)


@pytest.fixture
def double(monkeypatch):
    """Nets and images are float64: what is left between two ways to the same numbers is far below any mistake."""
    monkeypatch.setitem(models.MODELS, "Net1", lambda channels, classes: Net1(channels, classes, (4, 8), 16).double())
    monkeypatch.setattr(fits, "sets", double_sets)
    monkeypatch.setattr(seeds, "sets", double_sets)


def batch(role="learner", numbers=SEEDS, **changes):
    return [Fit(study(**changes), seed, role) for seed in numbers]


def state(out, fit, phase=None):
    return artifacts.load_tensors(fits.weights_path(out, fit, phase))[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def check_alike(out, alone, fit, rtol, atol):
    """Everything that is kept of ``fit`` in the folders ``out`` and ``alone``."""
    for phase in fit.phases:
        one, other = (fits.load(fits.weights_path(folder, fit, phase), fit, phase)[1] for folder in (out, alone))
        assert {**one, "seconds": 0, "losses": 0} == {**other, "seconds": 0, "losses": 0}
        assert one["losses"] == pytest.approx(other["losses"], rel=max(rtol, 1e-9))
        trained = state(out, fit, phase)
        for name, value in state(alone, fit, phase).items():
            torch.testing.assert_close(trained[name], value, rtol=rtol, atol=atol)
    rows, wanted = (phases.read_log(fits.run_folder(folder, fit) / "log.csv") for folder in (out, alone))
    for row, other in zip(rows, wanted, strict=True):
        exact, near = ({n: v for n, v in row.items() if isinstance(v, float) == near} for near in (False, True))
        assert exact == {n: other[n] for n in exact} and exact.keys() | near.keys() == other.keys()
        assert near == pytest.approx({n: other[n] for n in near}, rel=max(rtol, 2e-6)), "six digits are written"
    kept, wanted = ({path.name for path in fits.run_folder(folder, fit).iterdir()} for folder in (out, alone))
    assert kept == wanted


# ------------------------------------------------------------------------------------------------ as each is alone


@pytest.mark.parametrize("changes", [
    {"explanation_norm": "batch"}, {"explanation_norm": "sample"},
    {"explanation_mode": "gradcam", "finetune_init": "continue"}, {"explanation_target": "logit", "chunk": 20},
    {"optimizer": "adam", "lr_scheduling": True, "learning_rate": 0.01, "learning_rate_finetune": 0.01},
    {"rand_critic": True, "class_weights": "inverse", "sep_critic_set": True},
    {"explanation_loss_weight": 0.0, "explanation_loss_weight_finetune": 0.0},
    {"dataset": "decoydigits-unconf"}, {"dataset": "colordigits-unconf", "color_channels": 3, "feedback": "jvp"},
], ids=lambda changes: "-".join(map(str, changes.values())))  # fmt: skip
def test_a_seed_is_trained_as_it_is_alone(changes, double, tmp_path):
    three = batch(**changes)
    facts = train_together(three, tmp_path / "together")
    for fit, its in zip(three, facts, strict=True):
        fits.train(fit, tmp_path / "alone")
        check_alike(tmp_path / "together", tmp_path / "alone", fit, rtol=1e-6, atol=1e-9)
        assert its == fits.load(fits.weights_path(tmp_path / "together", fit), fit)[1]
    assert {path.name for path in (tmp_path / "together").iterdir()} == {fit.name for fit in three}


@pytest.mark.parametrize("role", ["baseline", "encoder"])
def test_so_are_baselines_and_encoders(role, double, tmp_path):
    three = batch(role)
    train_together(three, tmp_path / "together")
    for fit in three:
        fits.train(fit, tmp_path / "alone")
        check_alike(tmp_path / "together", tmp_path / "alone", fit, rtol=1e-6, atol=1e-9)


@pytest.fixture(scope="module")
def made(tmp_path_factory, one_core):
    """(folder, metadata) of `STUDY`'s seeds, trained together in float32."""
    out = tmp_path_factory.mktemp("together")
    return out, train_together(batch(), out)


def test_so_are_nets_of_single_precision_but_for_its_rounding(made, tmp_path):
    fit = batch()[1]
    fits.train(fit, tmp_path)
    check_alike(made[0], tmp_path, fit, rtol=1e-3, atol=1e-4)


def test_what_was_trained_together_is_not_trained_again(made, monkeypatch):
    monkeypatch.setattr(fits, "sets", None)
    monkeypatch.setattr(seeds, "sets", None)
    assert [fits.train(fit, made[0]) for fit in batch()] == made[1] == train_together(batch(), made[0])
    assert train_together([], made[0]) == []


def test_the_seconds_of_a_seed_are_its_share(monkeypatch, tmp_path):
    run = phases.run
    monkeypatch.setattr(phases, "run", lambda *a, **k: replace(run(*a, **k), seconds=30.0))
    assert [facts["seconds"] for facts in train_together(batch("encoder"), tmp_path)] == [10.0] * 3


def test_dropout_draws_other_masks_than_alone_but_the_same_ones_again(tmp_path):
    two = batch("encoder", (0, 1), model="MLP")
    for folder in ("one", "other"):
        train_together(two, tmp_path / folder)
    for fit in two:
        fits.train(fit, tmp_path / "alone")
        assert same(state(tmp_path / "one", fit), state(tmp_path / "other", fit))
        weights, others = (state(tmp_path / folder, fit)["fc3.weight"] for folder in ("one", "alone"))
        assert not torch.allclose(weights, others, atol=1e-4)


# --------------------------------------------------------------------------------------------- cut off, and finished


def take(made, out, fit, phase):
    """Put the weights after ``phase`` from the folder ``made`` into ``out``."""
    path = fits.weights_path(out, fit, phase)
    path.parent.mkdir()
    path.write_bytes(fits.weights_path(made, fit, phase).read_bytes())


class Cut(BaseException):
    """What a kill is to the loop."""


def cut_in(name, call, calls):
    """A step function of `lsx` that notes how many images each ``call`` gets, and does not survive that one."""
    step = getattr(lsx, name)

    def cut(*arguments, **options):
        calls.append(len(arguments[2][1] if name == "joint_step" else arguments[2]))
        if len(calls) == call:
            raise Cut
        return step(*arguments, **options)

    return cut


@pytest.mark.parametrize(("phase", "name", "call"), [
    ("pretrain", "joint_step", 3), ("joint", "joint_step", 6), ("finetune", "finetune_loss", 2)
])  # fmt: skip
def test_a_stack_that_was_cut_off_ends_with_the_same_bits(phase, name, call, made, tmp_path, monkeypatch):
    """Each phase takes 4 steps: an epoch of 25 images a seed has 2."""
    monkeypatch.setattr(phases, "run", partial(phases.run, checkpoint_seconds=0))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        patch.setattr(lsx, name, cut_in(name, call, []))
        train_together(batch(), tmp_path)
    left = [path.relative_to(tmp_path) for path in tmp_path.rglob(f"{phase}_checkpoint.safetensors")]
    assert len(left) == 1 and left[0].parts[0].startswith("together_")
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lsx, name, cut_in(name, 0, calls))
        train_together(batch(), tmp_path)
    assert len(calls) == {"pretrain": 8, "joint": 8, "finetune": 4}[phase] - call + 1, "no step is taken twice"
    for fit in batch():
        assert all(same(state(tmp_path, fit, one), state(made[0], fit, one)) for one in fit.phases)
        logs = [(fits.run_folder(out, fit) / "log.csv").read_bytes() for out in (tmp_path, made[0])]
        assert logs[0] == logs[1]
    assert not list(tmp_path.rglob("*checkpoint*")) and not list(tmp_path.glob("together_*"))


def test_a_checkpoint_of_other_seeds_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(phases, "run", partial(phases.run, checkpoint_seconds=0))
    for numbers in ((0, 1), (0, 2)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
            patch.setattr(lsx, "joint_step", cut_in("joint_step", 2, []))
            train_together(batch(numbers=numbers), tmp_path)
    one, other = tmp_path.glob("together_*/*.safetensors")
    one.replace(other)
    with pytest.raises(artifacts.ArtifactError, match="is of another seed: delete it"):
        for numbers in ((0, 1), (0, 2)):
            train_together(batch(numbers=numbers), tmp_path)


def test_finished_seeds_and_phases_are_left_out(made, tmp_path):
    """Seed 0 is there, and of seed 1 the first phase."""
    zero, one, two = batch()
    fits.train(zero, tmp_path)
    take(made[0], tmp_path, one, "pretrain")
    phases.checkpoint_path(fits.run_folder(tmp_path, one), "joint").write_bytes(b"of a run alone")
    before, calls = fits.weights_path(tmp_path, zero).stat().st_mtime_ns, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lsx, "joint_step", cut_in("joint_step", 0, calls))
        facts = train_together([zero, one, two], tmp_path)
    assert calls == [16, 9, 16, 9] + [32, 18, 32, 18], "one seed is pretrained, and both are explained"
    assert fits.weights_path(tmp_path, zero).stat().st_mtime_ns == before
    assert [its["seed"] for its in facts] == [0, 1, 2] and not list(tmp_path.rglob("*checkpoint*"))
    for fit in (one, two):
        for name, value in state(made[0], fit).items():
            torch.testing.assert_close(state(tmp_path, fit)[name], value, rtol=1e-3, atol=1e-4)


def test_a_seed_that_is_left_alone_is_trained_alone(made, tmp_path, monkeypatch):
    zero, one = batch(numbers=(0, 1))
    fits.train(one, tmp_path / "alone")
    take(made[0], tmp_path, zero, "finetune")
    monkeypatch.setattr(seeds, "Together", None)
    train_together([zero, one], tmp_path)
    assert same(state(tmp_path, one), state(tmp_path / "alone", one))


# --------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("others", [
    [Fit(STUDY, 1, "encoder")], [Fit(study(learning_rate=0.1), 1)], [Fit(STUDY, 0)]
], ids=["role", "settings", "the same seed"])  # fmt: skip
def test_only_seeds_of_one_fit_go_together(others, tmp_path):
    with pytest.raises(ValueError, match="of one study and role, each of another seed"):
        train_together([Fit(STUDY, 0), *others], tmp_path)


@pytest.mark.parametrize("role", ["learner", "baseline"])
def test_integrated_gradients_are_refused_before_anything_is_trained(role, tmp_path):
    with pytest.raises(ConfigError, match="integrated_gradient is for one net at a time: set TOGETHER = 1"):
        train_together(batch(role, explanation_mode="integrated_gradient"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_data_sets_of_different_lengths_are_refused(tmp_path, monkeypatch):
    def shorter(settings, seed):
        data = fits.sets(settings, seed)
        return replace(data, x=data.x[seed:], y=data.y[seed:])

    monkeypatch.setattr(seeds, "sets", shorter)
    with pytest.raises(ConfigError, match="differ in length cannot be trained together: set TOGETHER = 1"):
        train_together(batch(), tmp_path)


def test_a_loss_that_is_not_finite_stops_all_and_says_whose_it_was(tmp_path, monkeypatch):
    step = lsx.joint_step

    def lost(*arguments, **options):
        return step(*arguments, **options)._replace(classification=torch.tensor([0.5, float("nan"), 0.25]))

    monkeypatch.setattr(lsx, "joint_step", lost)
    with pytest.raises(FloatingPointError, match=r"ClassificationLoss is \[0.5, nan, 0.25\] in pretrain, epoch 1"):
        train_together(batch(), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


# ------------------------------------------------------------------------------------------------------- the study

GROUPS = ("clean/cnn", "clean/lsx")
SMALL = {"groups": GROUPS, "critics": 1, "evaluated_images": 20, "seeds": 3, "n_epochs": 1, "n_finetuning_epochs": 1}


def test_a_study_trains_its_seeds_together(tmp_path, monkeypatch):
    settings, sizes, run = study(**SMALL, out=str(tmp_path), together=2, retrain=True), [], phases.run
    monkeypatch.setattr(
        phases, "run", lambda p, net, *a, **k: (sizes.append(lsx.members(net)), run(p, net, *a, **k))[1]
    )
    records = collect(settings)
    assert [record["name"] for record in records] == [member.name for member in members(settings)]
    assert sorted(sizes) == [1] * 5 + [2] * 5, "an encoder, a baseline and three phases, of two seeds and of the third"
    assert collect(settings.override({"retrain": False, "together": 1})) == records, "it is no setting of the results"
    member = Member(settings, "clean/lsx", settings.first_seed)
    record = Shelf(tmp_path).record(member)
    assert [record["training"]["history"][name] for name in ("phase", "epoch")] == [
        ["pretrain", "pretrain", "joint", "finetune"], [1, 2, 1, 1]]  # fmt: skip

    fits.train(member.fit, tmp_path / "alone")
    for name, value in state(tmp_path / "alone", member.fit).items():
        torch.testing.assert_close(state(tmp_path / "fits", member.fit)[name], value, rtol=1e-3, atol=1e-4)


def test_workers_beside_seeds_together_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="TOGETHER = 2 is for one process, WORKERS = 3 for several"):
        collect(study(**SMALL, out=str(tmp_path), together=2, workers=3, retrain=True))
