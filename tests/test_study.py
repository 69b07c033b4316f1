"""The study trains what is missing, keeps each fit as it ends, goes on after any cut, and never mixes what does not
belong together."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import artifacts, config, runtime, training, workers
from helpers.artifacts import ArtifactError
from helpers.data import toyshapes
from helpers.pinets import examples, fits, publish, study, tables
from helpers.pinets.fits import Fit
from helpers.pinets.presets import ToyShapesStudy
from helpers.pinets.study import Shelf, collect, frame
from tests.shelves import TINY, untrained

SMALL = {  # 2 x 2 cells of 8 pixels and networks of a few hundred weights: a fit takes a tenth of a second
    "groups": ["pinet", "ensemble"],
    "fits": 2,
    "ensembles": 1,
    "members": 2,
    "test_images": 16,
    "data.n_images": 40,
    "data.n_blocks": 4,
    "data.block_size": 8,
    "data.relative_frequency": 2.0,
    "group.*.model.width": 4,
    "group.*.model.depth": 2,
    "group.*.training.batch_size": 8,
    "group.*.training.epochs": 3,
    "group.*.training.min_accuracy": 0.0,
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The tree that ships weights and results is a new one in every test, and arithmetic is on one thread."""
    root = tmp_path / "root"
    (root / "results").mkdir(parents=True)
    (root / "data_configs").symlink_to(config.ROOT / "data_configs")
    monkeypatch.setattr(config, "ROOT", root)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield root
    torch.set_num_threads(threads)


@pytest.fixture
def trained_fits(monkeypatch):
    """The fits that were trained, in order."""
    trained, real = [], fits.train

    def train(fit, *arguments, **options):
        trained.append(fit.name)
        return real(fit, *arguments, **options)

    monkeypatch.setattr(fits, "train", train)
    return trained


@pytest.fixture
def no_training(monkeypatch):
    def train(fit, *_, **__):
        raise AssertionError(f"{fit.name} was trained")

    monkeypatch.setattr(fits, "train", train)


def small(out="", **changes):
    return ToyShapesStudy().override({**SMALL, "out": str(out), **changes})


def retrain(out, **changes):
    return collect(small(out, retrain=True, **changes))


def refusal(call, *arguments, error=ArtifactError, **options):
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def comparable(record):
    """A record without the wall clock, and without the checksums of weights whose metadata hold it."""
    record = json.loads(json.dumps(record))
    record["training"].pop("seconds")
    record["computed_from"]["weights"] = sorted(record["computed_from"]["weights"])
    return record


def tensors(folder):
    paths = sorted(Path(folder).rglob("*.safetensors"))
    return {path.relative_to(folder).as_posix(): artifacts.load_tensors(path)[0] for path in paths}


def assert_same_run(a, b):
    """Two working folders hold the same records and the same weights, to the bit."""
    records, others = ({path.relative_to(out): comparable(artifacts.load_json(path))
                        for path in out.glob("results/**/*.json")} for out in (a, b))  # fmt: skip
    assert records == others and records
    weights, others = tensors(a / "weights"), tensors(b / "weights")
    assert weights.keys() == others.keys()
    for name, state in weights.items():
        assert all(torch.equal(state[k], others[name][k]) for k in state), name


# ------------------------------------------------------------------------------------------------- one fit


def test_the_same_fit_twice_has_the_same_weights(tmp_path):
    """Property 20."""
    for name in ("a", "b"):
        fits.train(Fit("pinet", 0), small(), tmp_path / name)
    first, again = (artifacts.load_tensors(tmp_path / name / "weights" / "pinet" / "0.safetensors") for name in "ab")
    assert all(torch.equal(first[0][k], again[0][k]) for k in first[0])
    assert {**first[1], "seconds": 0} == {**again[1], "seconds": 0}
    fits.train(Fit("pinet", 1), small(), tmp_path / "a")
    other = tensors(tmp_path / "a" / "weights" / "pinet")["1.safetensors"]
    assert not torch.equal(first[0]["encoder.0.body.0.weight"], other["encoder.0.body.0.weight"])


def test_the_seed_drives_data_initialisation_and_order_each_by_a_stream_of_its_own():
    s = small()
    assert Fit("pinet", 3).data_seed == 3 and Fit("ensemble", 3, 1).data_seed == 2026
    assert Fit("ensemble", 4, 1).data_seed == 2026, "the members of an ensemble share their data"
    nets = [fits.initialise(Fit("pinet", seed), s).encoder[0].body[0].weight for seed in (0, 0, 1)]
    assert torch.equal(nets[0], nets[1]) and not torch.equal(nets[0], nets[2])
    options = s.group.pinet.training
    orders = [fits.image_order(Fit("pinet", seed), options, 40, epoch) for seed, epoch in ((0, 1), (0, 2), (1, 1))]
    assert all(sorted(order.tolist()) == list(range(40)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 3


def test_no_two_draws_share_a_stream(monkeypatch):
    """Of two seeds and of two groups, whose networks are equal: a shared name would draw the same twice."""
    asked, real = [], runtime.stream
    monkeypatch.setattr(runtime, "stream", lambda *names: asked.append(real(*names)) or asked[-1])
    options = small().group.strong.training.model_copy(update={"mask_rule": "budget", "mask_budget": 3})
    for fit in (Fit("pinet", 0), Fit("pinet", 1), Fit("soft", 0)):
        fits.initialise(fit, small())
        fits.mask_carriers(fit, options, torch.ones(40))
        for epoch in (1, 2):
            fits.image_order(fit, options, 40, epoch)
    assert len(set(asked)) == len(asked) == 3 * 4


def test_the_test_set_has_its_own_number_of_images_between_0_and_1():
    own, data = fits.test_set(small()), toyshapes.generate(508052, **small().data.model_dump() | {"n_images": 16})
    assert len(own) == 16 and torch.equal(own.x[:, 0] * 255, torch.from_numpy(data.images).float())
    assert torch.equal(own.y > 0, own.masks.flatten(1).any(1))


def test_a_fit_is_validated_three_times_an_epoch_as_published():
    options = ToyShapesStudy().group.pinet.training
    assert list(fits.evaluation_steps(options, 800)) == [8, 16, 24]
    assert list(fits.evaluation_steps(options, 32)) == [1]
    assert list(fits.evaluation_steps(options, 64)) == [1, 2]
    assert list(fits.evaluation_steps(options, 65)) == [1, 2, 3], "a last batch that is short is a step too"


def validations(monkeypatch, scores):
    remaining = iter(scores)
    monkeypatch.setattr(fits, "_validator", lambda *_: lambda model, best: next(remaining))


def test_a_fit_stops_the_moment_every_validation_image_is_right(tmp_path, monkeypatch):
    """Property 20."""
    validations(monkeypatch, [0.5, 0.75, 0.75, 0.5, 1.0])
    metadata = fits.train(Fit("pinet", 0), small(), tmp_path)
    assert (metadata["epoch"], metadata["step"], metadata["epochs"]) == (2, 1, 2)
    assert metadata["accepted"] and metadata["validation_accuracy"] == 1


@pytest.mark.parametrize(("score", "accepted"), [(0.98, True), (0.975, False)])
def test_a_fit_is_accepted_from_the_least_accuracy_on(tmp_path, monkeypatch, score, accepted):
    validations(monkeypatch, [0.1, score, score] + [None] * 9)
    metadata = fits.train(Fit("pinet", 0), small(**{"group.pinet.training.min_accuracy": 0.98}), tmp_path)
    assert metadata["accepted"] is accepted and metadata["validation_accuracy"] == score
    assert (metadata["epoch"], metadata["step"], metadata["epochs"]) == (1, 2, 3), "the first of equals is kept"
    assert (tmp_path / "weights" / "pinet" / "0.safetensors").exists(), "a rejected fit is kept too"


def test_validation_counts_errors_and_gives_up_when_the_best_is_out_of_reach():
    y = (torch.arange(100) % 2).float()
    data = fits.Tensors(torch.where(y > 0, 1.0, -1.0), y, y)
    data.x[[3, 50, 97]] *= -1  # three errors
    seen = []

    class Model:
        def __call__(self, x):
            seen.append(len(x))
            return type("Output", (), {"logits": x})

    evaluate = fits._validator(data, torch.device("cpu"), chunk=10)
    assert evaluate(Model(), -float("inf")) == pytest.approx(0.97)
    assert evaluate(Model(), 0.96) == pytest.approx(0.97)
    assert evaluate(Model(), 0.97) is None, "an equal score is no improvement"
    assert evaluate(Model(), 1.0) is None
    seen.clear()
    assert evaluate(Model(), 0.98) is None and sum(seen) == 60, "the second error decides"


def test_weights_are_kept_in_half_precision_with_all_that_was_set(tmp_path):
    metadata = fits.train(Fit("pinet", 0), small(), tmp_path)
    state, told = artifacts.load_tensors(tmp_path / "weights" / "pinet" / "0.safetensors")
    assert told == metadata and told["fit"] == "pinet/0" and told["group"]["training"]["epochs"] == 3
    assert {v.dtype for v in state.values() if v.ndim >= 2} == {torch.float16}
    model = Shelf(tmp_path).model(Fit("pinet", 0), small())
    assert not model.training and all(p.dtype == torch.float32 for p in model.parameters())


def test_a_checkpoint_of_other_settings_is_never_taken_up(tmp_path):
    fit = Fit("pinet", 0)
    slower = small(**{"group.pinet.training.learning_rate": 1e-4})
    assert fits.work_folder(tmp_path, fit, small()) != fits.work_folder(tmp_path, fit, slower)
    assert fits.work_folder(tmp_path, fit, small()) == fits.work_folder(tmp_path, fit, small(seed=3, fits=9, workers=2))


def test_too_few_images_to_validate_are_refused(tmp_path):
    message = refusal(retrain, tmp_path, **{"data.n_images": 4}, error=config.ConfigError)
    assert message == "4 images leave none for validation: raise data.n_images"


# ----------------------------------------------------------------------------------- which fits there are


def simulate(s, accept, known=None):
    """The fits that `run_missing` runs, in order, where ``accept(fit)`` says how each ends."""
    known, begun = dict(known or {}), []

    def run(fit, _):
        begun.append(fit.name)
        known[fit] = accept(fit)
        return known[fit]

    fits.run_missing(s, known.get, run)
    return begun, known


def test_seeds_go_upwards_until_enough_fits_are_accepted():
    """The published rule: seeds 9, 12, 19 and 28 of the default group were rejected, so its 30 fits took 34."""
    rejected = (9, 12, 19, 28)
    begun, known = simulate(small(groups=["pinet"], fits=30), lambda fit: fit.seed not in rejected)
    assert begun == [f"pinet/{seed}" for seed in range(34)]
    accepted = fits.accepted_seeds(small(groups=["pinet"], fits=30), "pinet", known.get)
    assert accepted == ([s for s in range(34) if s not in rejected], list(rejected))


def test_the_first_seed_is_the_studys():
    begun, _ = simulate(small(groups=["pinet"], fits=2, seed=40), lambda fit: True)
    assert begun == ["pinet/40", "pinet/41"]


def test_every_ensemble_has_its_own_members():
    s = small(groups=["ensemble"], ensembles=2, members=3)
    begun, known = simulate(s, lambda fit: (fit.ensemble, fit.seed) != (1, 0))
    assert begun == ["ensemble/0/0", "ensemble/0/1", "ensemble/0/2"] + [f"ensemble/1/{seed}" for seed in range(4)]
    assert fits.accepted_seeds(s, "ensemble", known.get, 1) == ([1, 2, 3], [0])


def test_groups_grow_side_by_side():
    begun, _ = simulate(small(groups=["cnn", "pinet", "ensemble"], fits=3, members=3), lambda fit: True)
    groups = [name.split("/")[0] for name in begun]
    assert [sorted(groups[i : i + 3]) for i in (0, 3, 6)] == [["cnn", "ensemble", "pinet"]] * 3


def test_what_is_known_is_not_run_again():
    known = {Fit("pinet", 0): True, Fit("pinet", 1): False, Fit("pinet", 3): True}
    begun, _ = simulate(small(groups=["pinet"], fits=3), lambda fit: True, known)
    assert begun == ["pinet/2"]


def test_a_group_that_runs_out_of_attempts_says_so():
    with pytest.raises(RuntimeError, match="pinet: 1 of 2 fits were accepted in 4 attempts; see ATTEMPTS"):
        simulate(small(groups=["pinet"], fits=2, attempts=4), lambda fit: fit.seed == 2)


def test_no_fit_is_begun_that_cannot_be_needed():
    """With several workers as with one: running fits count as accepted until they are known not to be."""
    s = small(groups=["pinet"], fits=2)
    first, second = Fit("pinet", 0), Fit("pinet", 1)
    assert fits.next_fit(s, {}.get, {first}) == second
    assert fits.next_fit(s, {}.get, {first, second}) is None
    assert fits.next_fit(s, {first: False}.get, {second}) == Fit("pinet", 2)
    assert fits.next_fit(s, {first: True, second: True}.get, set()) is None


def test_a_digest_is_of_the_settings_that_the_weights_depend_on():
    fit, base = Fit("pinet", 0), small()
    elsewhere = {"group.cnn.model.width": 7}
    for same in ({"seed": 5, "fits": 9, "workers": 2}, {"test_images": 99}, {"device": "cpu"}, elsewhere):
        assert fit.digest(small(**same)) == fit.digest(base), same
    for other in ({"data.hollow": 0.5}, {"group.pinet.model.width": 5}, {"group.pinet.training.epochs": 4}):
        assert fit.digest(small(**other)) != fit.digest(base), other
    assert Fit("pinet", 0).digest(ToyShapesStudy()) == "3450ed36b618", "records that are shipped depend on it"


# -------------------------------------------------------------------------------------------------- the gates


def test_retrain_trains_what_is_missing_and_keeps_each_fit(tmp_path, trained_fits):
    records = retrain(tmp_path / "out")
    assert sorted(trained_fits) == ["ensemble/0/0", "ensemble/0/1", "pinet/0", "pinet/1"]
    assert [record["fit"] for record in records] == ["pinet/0", "pinet/1", "ensemble/0"]
    single, ensemble = records[0], records[2]
    assert ensemble["training"]["members"] == [0, 1] and ensemble["training"]["rejected"] == []
    assert {"accepted", "validation_accuracy", "epochs", "seconds", "evidence_weight"} <= set(single["training"])
    assert {"accuracy", "naive", "optimal", "validated", "curve", "recursive", "shift"} <= set(single["test"])
    assert set(ensemble["test"]["recursive"]) == {"accuracy", "majority", "legacy"}
    assert single["test"]["alignment_residual"] < 1e-4
    weights = tmp_path / "out" / "weights" / "pinet" / "0.safetensors"
    assert single["computed_from"]["weights"] == {"pinet/0": artifacts.sha256(weights)}
    (log,) = (tmp_path / "out").glob("work/pinet/0/*/log.csv")
    assert log.read_text().startswith("epoch,step,loss,score,learning_rate\n1,1,")
    assert not list((tmp_path / "out").rglob("checkpoint*")), "a fit that has ended leaves no checkpoint"

    trained_fits.clear()
    assert retrain(tmp_path / "out") == records and trained_fits == [], "a second run finds it all done"
    more = retrain(tmp_path / "out", fits=3)
    assert trained_fits == ["pinet/2"] and more[:2] == records[:2]


def test_retrain_returns_the_fits_that_count_for_its_settings(tmp_path, trained_fits, monkeypatch):
    """As many as ``FITS`` asks for, from ``SEED`` on, with the rejected among them; whatever else ``OUT`` holds."""

    def names(**changes):
        return [record["fit"] for record in retrain(tmp_path, groups=["pinet"], **changes)]

    real = fits.keep  # seed 1 is rejected
    monkeypatch.setattr(fits, "keep", lambda fit, s, out, outcome, precision: real(
        fit, s, out, training.Outcome(**{**vars(outcome), "score": -1.0 if fit.seed == 1 else 1.0}), precision))
    assert names(fits=3) == ["pinet/0", "pinet/1", "pinet/2", "pinet/3"]
    trained_fits.clear()
    assert names(fits=1) == ["pinet/0"]
    assert names(fits=2) == ["pinet/0", "pinet/1", "pinet/2"], "the rejected one among them"
    assert names(fits=1, seed=1) == ["pinet/1", "pinet/2"] and trained_fits == []
    assert names(fits=2, seed=3) == ["pinet/3", "pinet/4"] and trained_fits == ["pinet/4"]
    everything = collect(small(tmp_path, groups=["pinet"], fits=1))
    assert len(everything) == 5, "without RETRAIN, FITS chooses nothing"


def test_retrain_returns_ensembles_of_the_members_that_count(tmp_path, trained_fits):
    def members(**changes):
        records = retrain(tmp_path, groups=["ensemble"], **changes)
        return {record["fit"]: record["training"]["members"] for record in records}

    assert members(ensembles=2) == {"ensemble/0": [0, 1], "ensemble/1": [0, 1]}
    first = Shelf(tmp_path).record("ensemble/0")
    assert members(seed=1) == {"ensemble/0": [1, 2]}
    trained_fits.clear()
    assert members() == {"ensemble/0": [0, 1]} and trained_fits == []
    assert Shelf(tmp_path).record("ensemble/0") == first, "made anew from the members' weights"
    assert members(members=1) == {"ensemble/0": [0]}
    for path in (tmp_path / "weights" / "ensemble" / "1").iterdir():
        path.unlink()  # as of shipped records, whose members are not all shipped
    for changes in ({"members": 1}, {"members": 3}, {"seed": 1}):
        message = refusal(retrain, tmp_path, groups=["ensemble"], ensembles=2, **changes)
        assert "ensemble/1.json is of other members than SEED and members ask for" in message and "OUT" in message
    assert trained_fits == []


def test_ensembles_of_another_size_than_asked_for_are_not_shown(tmp_path):
    study, _ = untrained(tmp_path, TINY | {"groups": ["ensemble"]})
    study = study.override({"out": str(tmp_path)})
    assert len(collect(study)) == 1
    for change in ({"members": 1}, {"members": 3}, {"members": 3, "reevaluate": True}):
        message = refusal(collect, study.override(change))
        assert f"ensemble/0 has 2 members, not members = {change['members']}" in message and "RETRAIN=True" in message


def test_the_course_of_training_is_kept_in_the_record(tmp_path):
    record = retrain(tmp_path, groups=["pinet"], fits=1)[0]
    (log,) = tmp_path.glob("work/pinet/0/*/log.csv")
    assert record["training"]["history"] == training.columns(training.read_log(log))
    assert "history" not in frame([record]).columns


def test_without_the_gates_records_are_read_and_nothing_is_trained(tmp_path, no_training):
    options, _ = untrained(tmp_path / "out", TINY | {"groups": ["pinet", "ensemble"], "out": str(tmp_path / "out")})
    records = collect(options)
    assert [record["fit"] for record in records] == ["pinet/0", "pinet/1", "ensemble/0"]
    only = collect(options.override({"groups": ["ensemble"]}))
    assert only == records[2:]


def test_rejected_fits_are_reported_and_left_out_of_the_medians(tmp_path, monkeypatch):
    ends = iter([0.5, 1.0, 0.75, 1.0])

    def validator(*_):
        score = next(ends)
        return lambda model, best: score

    monkeypatch.setattr(fits, "_validator", validator)
    records = retrain(tmp_path, groups=["pinet"], **{"group.*.training.min_accuracy": 0.9})
    table = frame(records)
    assert table.accepted.tolist() == [False, True, False, True] and table.seed.tolist() == [0, 1, 2, 3]
    medians = tables.medians(table).loc["pinet"]
    assert medians.fits == "2" and medians.accuracy.startswith(f"{table[table.accepted].accuracy.median():.3f}")


def test_a_table_has_every_number_of_every_record(tmp_path):
    options, _ = untrained(tmp_path, TINY | {"groups": ["cnn", "pinet", "ensemble"], "out": str(tmp_path)})
    records = collect(options)
    table = frame(records)
    assert len(table) == len(records) == 5
    for record in records:
        row = table[table.fit == record["fit"]].iloc[0]
        test = record["test"]
        assert row.accuracy == test["accuracy"] and row["shift"] == test["shift"]
        assert row.optimal_score == test["optimal"]["score"] and row.naive_tdr == test["naive"]["tdr"]
        assert row.validated_threshold == test["validated"]["threshold"]
        assert row.recursive == test["recursive"]["accuracy"]
        curve = [t * a for t, a in zip(test["curve"]["tdr"], test["curve"]["tar"], strict=True)]
        assert study.scores(record).tolist() == curve
    ensemble = table[table.group == "ensemble"].iloc[0]
    assert ensemble.legacy_shift == ensemble.accuracy - ensemble.legacy_recursive


def test_reevaluate_computes_the_reports_anew_from_the_weights(tmp_path, no_training):
    options, shelf = untrained(tmp_path, TINY | {"groups": ["pinet", "ensemble"], "out": str(tmp_path)})
    truth = collect(options)
    for record in truth:
        artifacts.save_json(shelf.record_path(record["fit"]), record | {"test": {**record["test"], "accuracy": 0.123}})
    assert {record["test"]["accuracy"] for record in collect(options)} == {0.123}
    assert collect(options.override({"reevaluate": True})) == truth
    assert collect(options) == truth, "and keeps them"


def test_reevaluating_what_is_shipped_touches_neither_it_nor_the_working_folder(tmp_path, elsewhere, no_training):
    options, _ = untrained(elsewhere / "runs" / "toyshapes", TINY | {"groups": ["pinet"]})
    ship(elsewhere, options)
    before = contents(elsewhere)
    records = collect(options.override({"reevaluate": True}))
    assert records == collect(options)
    after = contents(elsewhere)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {
        f"runs/toyshapes/reevaluated/results/fits/pinet/{seed}.json" for seed in (0, 1)}  # fmt: skip


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ship(root, options, source=None):
    """Make the working folder's study the shipped one, without pictures."""
    for kind in ("weights", "results"):
        shutil.copytree((source or study.working_folder(options)) / kind, root / kind / "toyshapes", dirs_exist_ok=True)
        artifacts.write_manifest(root / kind / "toyshapes", {})


def test_out_names_the_shelf_if_it_holds_the_study(tmp_path, elsewhere):
    assert study.choose_shelf(small()).shipped
    assert study.choose_shelf(small(tmp_path / "empty")).shipped
    (tmp_path / "full" / "weights").mkdir(parents=True)
    assert study.choose_shelf(small(tmp_path / "full")).results == tmp_path / "full" / "results"
    assert study.choose_shelf(small(tmp_path / "new", retrain=True)).weights == tmp_path / "new" / "weights"
    assert study.choose_shelf(small(retrain=True)).weights == elsewhere / "runs" / "toyshapes" / "weights"


def test_without_any_results_the_remedy_is_named(elsewhere):
    message = refusal(collect, small())
    assert "no results of 'pinet'" in message and "RETRAIN=True" in message


# -------------------------------------------------------------------------------------------- cuts and workers

RUN = """
import json, os, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from helpers import runtime, training
from helpers.pinets import study
from helpers.pinets.presets import ToyShapesStudy

training.train.__kwdefaults__["checkpoint_seconds"] = 0.0  # at the end of every epoch
settings, folder = json.loads(sys.argv[1]), sys.argv[2]
training.fabric("cpu")  # imported once, for all that is forked below
with runtime.deterministic():
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    torch.optim.Adam([weight], fused=True).step()

def run(name, killed_at=0):
    pid = os.fork()
    if pid:
        return pid
    real, writes = os.replace, []
    def replace(*paths):
        writes.append(paths)
        if len(writes) == killed_at and killed_at % 2:
            os.kill(os.getpid(), signal.SIGKILL)  # the file is written, and not yet in its place
        real(*paths)
        if len(writes) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)  # it is in its place, and nobody knows yet
    os.replace = replace
    try:
        study.collect(ToyShapesStudy().override({**settings, "out": f"{folder}/{name}", "retrain": True}))
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

ends = {"whole": [ended(run("whole"))], "any moment": [], "a write": []}
for seconds in (0.05, 0.1, 0.2, 0.4):  # killed from outside
    pid = run("any moment")
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    ends["any moment"].append(ended(pid))
ends["any moment"].append(ended(run("any moment")))
for killed_at in [1, 2, 3, 4, 3, 4] * 8:  # killed from inside
    ends["a write"].append(ended(run("a write", killed_at)))
    if ends["a write"][-1] == 0:
        break
print(json.dumps(ends))
"""


def test_a_run_killed_again_and_again_ends_as_one_that_was_not(tmp_path):
    """``kill -9`` at any moment, and before and after many a write; each time a second run goes on."""
    arguments = [json.dumps(SMALL), str(tmp_path)]
    source = Path(study.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout.splitlines()[-1])
    assert ends["whole"] == [0] and ends["any moment"][0] == -signal.SIGKILL, (ends, done.stderr)
    *killed, last = ends["a write"]
    assert set(killed) == {-signal.SIGKILL} and len(killed) >= 5 and last == 0, (ends, done.stderr)
    assert_same_run(tmp_path / "whole", tmp_path / "any moment")
    assert_same_run(tmp_path / "whole", tmp_path / "a write")


def test_two_workers_make_the_records_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(workers.torch, "get_num_threads", lambda: 2)  # one each, as here: bits depend on their number
    retrain(tmp_path / "one")
    retrain(tmp_path / "two", workers=2)
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_an_ensemble_cut_off_before_its_record_is_evaluated_without_training(tmp_path, no_training):
    options, shelf = untrained(tmp_path, TINY | {"groups": ["ensemble"], "out": str(tmp_path), "retrain": True})
    truth = shelf.record("ensemble/0")
    shelf.record_path("ensemble/0").unlink()
    assert collect(options) == [truth]


def test_a_fit_cut_off_before_its_record_is_evaluated_without_training(tmp_path, no_training):
    options, shelf = untrained(tmp_path, TINY | {"groups": ["pinet"], "out": str(tmp_path), "retrain": True})
    truth = shelf.record("pinet/1")
    shelf.record_path("pinet/1").unlink()
    assert collect(options)[1] == truth


# ---------------------------------------------------------------------------- publishing, and going on from there


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A working folder with every group, and its settings."""
    folder = tmp_path_factory.mktemp("made")
    options, _ = untrained(folder, TINY | {"out": str(folder)})
    return options


def test_what_is_published_is_verified_and_read_without_out(made, elsewhere, no_training):
    counts = publish.publish(made)
    assert counts == dict.fromkeys(made.groups, 2) | {"ensemble": 1}
    problems, n_files = artifacts.verify_tree(elsewhere)
    assert problems == [] and n_files > 20
    shipped = collect(made.override({"out": ""}))
    assert shipped == collect(made) and len(shipped) == 13
    table = (elsewhere / "results" / "toyshapes" / "fits.csv").read_text()
    assert len(table.splitlines()) == 14
    for fit in (Fit("pinet", 0), Fit("ensemble", 1, 0)):
        model, original = Shelf().model(fit, made), Shelf(Path(made.out)).model(fit, made)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), original.parameters(), strict=True))


def test_weights_of_the_first_fits_only_are_shipped_and_records_of_all(made, elsewhere, monkeypatch):
    monkeypatch.setattr(publish, "SHIPPED", {"pinet": 1, "ensemble": 1})
    publish.publish(made)
    assert sorted(path.name for path in (elsewhere / "weights" / "toyshapes" / "pinet").iterdir()) == ["0.safetensors"]
    assert len(list((elsewhere / "weights" / "toyshapes" / "ensemble" / "0").iterdir())) == 2, "an ensemble is whole"
    assert len(collect(made.override({"out": "", "groups": ["pinet"]}))) == 2
    assert artifacts.verify_tree(elsewhere)[0] == []


def test_the_first_fits_that_have_their_weights_are_shipped_with_them(made, elsewhere, tmp_path, monkeypatch):
    """Of a training over many sessions the weights of the first may be gone."""
    monkeypatch.setattr(publish, "SHIPPED", dict.fromkeys(made.groups, 1))
    some = Path(shutil.copytree(made.out, tmp_path / "some"))
    (some / "weights" / "pinet" / "0.safetensors").unlink()
    publish.publish(made.override({"out": str(some)}))
    assert sorted(path.name for path in (elsewhere / "weights" / "toyshapes" / "pinet").iterdir()) == ["1.safetensors"]
    read = made.override({"out": ""})
    shown = examples.maps(collect(read), read, Shelf(), fits.test_set(read).x[:1], ["pinet", "cnn"])
    assert {example.record["fit"] for example in shown.values()} == {"pinet/1", "cnn/0"}
    (elsewhere / "weights" / "toyshapes" / "pinet" / "1.safetensors").unlink()
    message = refusal(examples.maps, collect(read), read, Shelf(), fits.test_set(read).x[:1], ["pinet"])
    assert "pinet/1.safetensors" in message, "what was shipped and is gone is an error"


def test_fits_in_bfloat16_are_shipped_as_a_table(made, elsewhere, tmp_path):
    publish.publish(made)
    assert study.shipped_control(made).empty
    both = made.override({"out": str(shutil.copytree(made.out, tmp_path / "both"))})
    low = study.control(both)
    assert low.out == str(tmp_path / "both" / "bfloat16") and low.group.cnn.training.precision == "bfloat16"
    untrained(Path(low.out), TINY | {"groups": ["cnn", "pinet"], "group.*.training.precision": "bfloat16"})
    publish.publish(both)
    table = study.shipped_control(made.override({"out": ""}))
    assert table.fit.tolist() == ["cnn/0", "cnn/1", "pinet/0", "pinet/1"] and table.accepted.all()
    ours = study.frame(collect(made)).set_index("fit").loc[table.fit]
    assert table.naive_score.tolist() == pytest.approx(ours.naive_score.tolist(), abs=1e-5), "the same first weights"
    publish.publish(made)  # from a folder without them
    assert study.shipped_control(made).equals(table) and artifacts.verify_tree(elsewhere)[0] == []
    assert study.shipped_control(made.override({"group.cnn.training.epochs": 7})).group.unique().tolist() == ["pinet"]
    assert study.shipped_control(made.override({"test_images": 15})).empty
    assert study.shipped_control(made.override({"groups": ["cnn"]})).group.unique().tolist() == ["cnn"]


def test_publishing_again_replaces_the_whole_set(made, elsewhere):
    stray = elsewhere / "results" / "toyshapes" / "stray.json"
    for _ in range(2):
        publish.publish(made)
        assert not stray.exists() and artifacts.verify_tree(elsewhere)[0] == []
        stray.touch()
    assert sorted(path.name for path in (elsewhere / "results").iterdir()) == ["toyshapes"]


def test_what_cannot_be_published_leaves_what_is_shipped_alone(made, elsewhere, tmp_path):
    ship(elsewhere, small(), Path(untrained(tmp_path / "other", TINY | {"groups": ["cnn"]})[1].results).parent)
    before = contents(elsewhere)
    broken = shutil.copytree(made.out, tmp_path / "broken")
    (broken / "weights" / "strong" / "1.safetensors").unlink()
    message = refusal(publish.publish, made.override({"out": str(broken)}))
    assert "2 fits of strong are shipped with their weights, but of the accepted only 1 have" in message
    message = refusal(publish.publish, made.override({"group.pinet.training.epochs": 7}))
    assert "computed with other data, model or training settings" in message
    assert contents(elsewhere) == before


def test_what_is_shipped_is_never_lost_to_a_study_of_fewer_groups(made, elsewhere, tmp_path):
    publish.publish(made)
    before = contents(elsewhere)
    some = shutil.copytree(made.out, tmp_path / "some")
    shutil.rmtree(some / "results" / "fits" / "cnn")
    shutil.rmtree(some / "results" / "fits" / "strong")
    fewer = {"out": str(some), "groups": ["pinet", "naive", "soft", "feedback", "ensemble"]}
    for options in (made.override({"out": str(some)}), made.override(fewer)):
        message = refusal(publish.publish, options)
        assert "has no results of cnn, strong, which are shipped" in message and "CONTINUE_SHIPPED=True" in message
    message = refusal(publish.publish, made.override({"groups": ["pinet"]}))
    assert "no results of cnn, naive, soft, feedback, ensemble, strong" in message
    assert contents(elsewhere) == before


def test_baselines_that_are_shipped_are_not_lost_either(made, elsewhere):
    artifacts.save_json(elsewhere / "results" / "toyshapes" / "baselines" / "0.json", {})
    assert "has no results of baselines" in refusal(publish.publish, made)


def test_a_first_set_may_be_of_some_groups(made, elsewhere):
    assert publish.publish(made.override({"groups": ["pinet"]})) == {"pinet": 2}


def test_the_manifest_says_what_was_set_and_not_where_it_was_computed(made, elsewhere):
    publish.publish(made)
    for kind in ("weights", "results"):
        told = artifacts.read_manifest(elsewhere / kind / "toyshapes")["provenance"]
        assert told["settings"] == made.provenance() and made.out not in json.dumps(told)


def test_the_course_of_training_is_published_from_the_log_where_the_record_lacks_it(tmp_path, elsewhere):
    """As of fits from before records held it."""
    records = retrain(tmp_path, groups=["pinet"])
    old = json.loads(json.dumps(records[1]))
    del old["training"]["history"]
    artifacts.save_json(Shelf(tmp_path).record_path("pinet/1"), old)
    publish.publish(small(tmp_path, groups=["pinet"]))
    assert collect(small(groups=["pinet"])) == records


def test_training_goes_on_from_shipped_records_without_their_weights(tmp_path, elsewhere, trained_fits):
    first = retrain(tmp_path / "first")
    ship(elsewhere, small(tmp_path / "first"))
    for path in (elsewhere / "weights" / "toyshapes").rglob("*.safetensors"):
        path.unlink()
    artifacts.write_manifest(elsewhere / "weights" / "toyshapes", {})
    trained_fits.clear()
    records = retrain(tmp_path / "second", continue_shipped=True, fits=3, ensembles=2)
    assert sorted(trained_fits) == ["ensemble/1/0", "ensemble/1/1", "pinet/2"]
    assert [r for r in records if r["fit"] in ("pinet/0", "pinet/1", "ensemble/0")] == first
    assert len(records) == 5


def test_training_goes_on_beside_the_weights_that_are_shipped(tmp_path, elsewhere, trained_fits):
    """So that what the notebook shows after training, maps of the first fits, can be shown."""
    records = retrain(tmp_path / "first")
    ship(elsewhere, small(tmp_path / "first"))
    (elsewhere / "weights" / "toyshapes" / "pinet" / "1.safetensors").unlink()
    artifacts.write_manifest(elsewhere / "weights" / "toyshapes", {})
    trained_fits.clear()
    for _ in range(2):  # a second time nothing is lacking
        assert retrain(tmp_path / "second", continue_shipped=True) == records and trained_fits == []
    there = {"pinet/0.safetensors", "ensemble/0/0.safetensors", "ensemble/0/1.safetensors"}
    assert tensors(tmp_path / "second" / "weights").keys() == there
    again = small(tmp_path / "second", retrain=True)
    shown = examples.maps(records, again, study.choose_shelf(again), fits.test_set(again).x[:2])
    assert shown.keys() == {"pinet", "ensemble"}
    one = examples.maps(records, again, study.choose_shelf(again), fits.test_set(again).x[:2], ["ensemble", "cnn"])
    assert one.keys() == {"ensemble"}, "those of the groups asked for that the study has"


def test_positives_are_counted_among_the_images_that_show_the_target():
    test = fits.test_set(ToyShapesStudy(test_images=20))
    rows = test.y.nonzero()[:, 0]
    chosen = examples.positives(test, 2, 0, 999)
    assert torch.equal(chosen.x, test.x[rows[[2, 0]]]) and bool(chosen.y.all())
    assert len(examples.positives(test, 999)) == 0


def test_without_continue_shipped_what_is_shipped_does_not_count(tmp_path, elsewhere, trained_fits):
    retrain(tmp_path / "first", groups=["pinet"], fits=1)
    ship(elsewhere, small(tmp_path / "first"))
    trained_fits.clear()
    retrain(tmp_path / "second", groups=["pinet"], fits=1)
    assert trained_fits == ["pinet/0"]


def test_going_on_from_shipped_records_of_other_settings_is_refused(tmp_path, elsewhere, no_training):
    options, _ = untrained(tmp_path / "first", TINY | {"groups": ["pinet"], "out": str(tmp_path / "first")})
    ship(elsewhere, options)
    going_on = {"out": str(tmp_path / "new"), "retrain": True, "continue_shipped": True}
    other = options.override({**going_on, "data.hollow": 0.5})
    assert "were computed with other data, model or training settings" in refusal(collect, other)


# ------------------------------------------------------------------------------------ stale, damaged, swapped


@pytest.fixture
def working(tmp_path, no_training):
    """(settings, shelf) of a working folder with two fits and an ensemble; nothing may be trained."""
    return untrained(tmp_path / "out", TINY | {"groups": ["pinet", "ensemble"], "out": str(tmp_path / "out")})


@pytest.fixture
def shipped(working, elsewhere):
    """(settings, shelf) of the same as what is shipped."""
    options, _ = working
    ship(elsewhere, options)
    return options.override({"out": ""}), Shelf()


@pytest.mark.parametrize("change", [{"data.hollow": 0.5}, {"group.pinet.model.width": 5}, {"group.*.model.depth": 2}])
def test_results_of_other_settings_are_refused_with_the_remedy(shipped, change):
    message = refusal(collect, shipped[0].override(change))
    assert "computed with other data, model or training settings" in message and "RETRAIN=True" in message
    assert "OVERRIDES" in message and "pinet/0" in message
    assert collect(shipped[0])


def test_weights_of_other_settings_are_refused_with_the_remedy(shipped):
    options, shelf = shipped
    message = refusal(shelf.model, Fit("pinet", 0), options.override({"group.pinet.training.epochs": 7}))
    assert "pinet/0.safetensors was trained with other settings" in message and "RETRAIN=True" in message


@pytest.mark.parametrize("only_weights", [False, True])
def test_retraining_over_fits_of_other_settings_is_refused_before_anything_is_trained(working, only_weights):
    options, shelf = working
    if only_weights:  # a run that was cut off before its first record
        for path in shelf.results.rglob("*.json"):
            path.unlink()
    message = refusal(collect, options.override({"retrain": True, "group.*.training.epochs": 7}))
    assert "made with other data, model or training settings" in message
    assert "choose another folder with OUT" in message and str(shelf.weights.parent) in message


def test_results_of_another_test_set_are_refused_until_they_are_reevaluated(working):
    options, _ = working
    other = options.override({"test_images": 20})
    for gates in ({}, {"retrain": True}):
        message = refusal(collect, other.override(gates))
        assert "another test set" in message and message.endswith("run with REEVALUATE=True")
    again = collect(other.override({"retrain": True, "reevaluate": True}))
    assert again == collect(other) and [record["fit"] for record in again] == ["pinet/0", "pinet/1", "ensemble/0"]


def test_what_cannot_be_reevaluated_for_want_of_weights_says_so(working):
    options, shelf = working
    shelf.weights_path(Fit("pinet", 1)).unlink()
    kept = shelf.record("pinet/1")
    assert kept in collect(options.override({"reevaluate": True})), "the record stands as it is"
    message = refusal(collect, options.override({"reevaluate": True, "test_images": 20}))
    assert "pinet/1" in message and message.endswith("RETRAIN=True trains them, or take back the change")


@pytest.mark.parametrize("entry", ["scale", "curve"])
def test_a_record_from_before_its_report_had_an_entry_is_refused_until_it_is_reevaluated(working, entry):
    options, shelf = working
    truth = shelf.record("pinet/1")
    test = {name: value for name, value in truth["test"].items() if name != entry}
    artifacts.save_json(shelf.record_path("pinet/1"), truth | {"test": test})
    message = refusal(collect, options)
    assert "pinet/1" in message and "another version of the evaluation; run with REEVALUATE=True" in message
    assert truth in collect(options.override({"reevaluate": True}))


def test_results_of_other_weights_are_refused_until_they_are_reevaluated(working):
    options, shelf = working
    path = shelf.weights_path(Fit("pinet", 1))
    state, metadata = artifacts.load_tensors(path)
    state["aggregator.bias"] += 1
    artifacts.save_tensors(path, state, metadata)
    message = refusal(collect, options)
    assert "the results of pinet/1 were computed from other weights" in message and str(path) in message
    assert "REEVALUATE=True" in message
    assert collect(options.override({"reevaluate": True})) == collect(options)


def truncate(path, other):
    path.write_bytes(path.read_bytes()[:-20])


def swap(path, other):
    path.write_bytes(other.read_bytes())


def edit(path, other):
    path.write_text(path.read_text().replace('"training"', '"trianing"'))


@pytest.mark.parametrize("change", [truncate, swap, edit])
@pytest.mark.parametrize("retraining", [False, True])
def test_a_spoilt_record_of_the_working_folder_is_refused_by_name(working, change, retraining):
    options, shelf = working
    path = shelf.record_path("pinet/0")
    change(path, shelf.record_path("pinet/1"))
    message = refusal(collect, options.override({"retrain": retraining}))
    assert str(path) in message and "delete it" in message
    path.unlink()
    assert len(collect(options.override({"retrain": True}))) == 3, "the remedy works"


@pytest.mark.parametrize("change", [truncate, swap])
def test_spoilt_weights_of_the_working_folder_are_refused_by_name(working, change):
    options, shelf = working
    path = shelf.weights_path(Fit("pinet", 0))
    change(path, shelf.weights_path(Fit("pinet", 1)))
    reevaluated = options.override({"reevaluate": True})
    for call in (lambda: shelf.model(Fit("pinet", 0), options), lambda: collect(reevaluated)):
        message = refusal(call)
        assert str(path) in message and "delete it" in message


def flip(path, other):
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)


def change_a_number(path, other):
    record = json.loads(path.read_text())
    record["test"]["accuracy"] = 0.999
    artifacts.save_json(path, record)


def delete(path, other):
    path.unlink()


@pytest.mark.parametrize("change", [truncate, swap, flip, change_a_number, delete])
def test_a_spoilt_shipped_record_is_refused_by_name_with_the_remedy(shipped, change):
    options, shelf = shipped
    path = shelf.record_path("pinet/0")
    change(path, shelf.record_path("pinet/1"))
    message = refusal(collect, options)
    assert str(path) in message and "git checkout -- weights results" in message


@pytest.mark.parametrize("change", [truncate, swap, flip])
def test_spoilt_shipped_weights_are_refused_by_name_with_the_remedy(shipped, change):
    options, shelf = shipped
    path = shelf.weights / "pinet" / "0.safetensors"
    change(path, shelf.weights / "pinet" / "1.safetensors")
    for call in (lambda: shelf.model(Fit("pinet", 0), options), lambda: collect(options)):
        message = refusal(call)
        assert str(path) in message
    assert "git checkout -- weights results" in refusal(shelf.model, Fit("pinet", 0), options)


def test_a_shipped_record_that_nobody_vouches_for_is_not_read(shipped):
    options, shelf = shipped
    artifacts.save_json(shelf.record_path("pinet/7"), shelf.record("pinet/0") | {"fit": "pinet/7"})
    assert [record["fit"] for record in collect(options)] == ["pinet/0", "pinet/1", "ensemble/0"]


def test_results_without_a_manifest_are_not_read(shipped):
    options, shelf = shipped
    (shelf.results / artifacts.MANIFEST).unlink()
    assert "manifest.json is not there" in refusal(collect, options)


@pytest.mark.parametrize("gate", ["retrain", "reevaluate"])
def test_an_out_that_cannot_be_written_gives_one_clear_line(shipped, gate, tmp_path):
    """Below a file, and in /proc, nobody can write, root included."""
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "out", Path("/proc/sightline")):
        message = refusal(collect, shipped[0].override({"out": str(out), gate: True}))
        assert message.startswith(f"cannot write to {out} (") and message.endswith("choose another folder with OUT")


def test_a_device_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="DEVICE='cuda' is not available here; there are: cpu"):
        retrain(tmp_path, device="cuda")


def test_training_that_fails_leaves_what_was_done(tmp_path, trained_fits, monkeypatch):
    real = training.train

    def failing(*arguments, **options):
        if len(trained_fits) == 2:
            raise FloatingPointError("the loss is nan")
        return real(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(FloatingPointError):
        patch.setattr(training, "train", failing)
        retrain(tmp_path, groups=["pinet"])
    assert [path.name for path in (tmp_path / "results" / "fits" / "pinet").iterdir()] == ["0.json"]
    retrain(tmp_path, groups=["pinet"])
    assert trained_fits == ["pinet/0", "pinet/1", "pinet/1"]
