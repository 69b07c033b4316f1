"""Accuracy against receptive field: Pareto ranks, probes of all stages from one pass, records that are kept, and the
figure (spec pixpnet, section 10)."""

import logging
import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from sklearn.linear_model import LogisticRegression
from torch import nn

from helpers import artifacts, options, runtime
from helpers.config import ConfigError, read_parameters
from helpers.prototypes import goldilocks, goldilocks_figures, pareto, probes
from helpers.prototypes.goldilocks import Goldilocks, collect, cuts, members
from helpers.prototypes.goldilocks_tables import frame, summary
from helpers.prototypes.stage_features import averaging, stage_features

ORIGINAL = ["Test Accuracy Epoch", "Test Accuracy Top5 Epoch", "Dataset", "Height", "Width", "Stage #", "Stage Name",
            "Model"]  # fmt: skip
CPU = torch.device("cpu")

# ------------------------------------------------------------------------------------------------------ pareto


def peeled(accuracy, area):
    """The ranks the slow way: take off the front, again and again."""
    left = [i for i in range(len(accuracy)) if not (math.isnan(accuracy[i]) or math.isnan(area[i]))]
    found, rank = [0] * len(accuracy), 0
    while left:
        rank += 1
        front = [
            i for i in left
            if not any(
                accuracy[j] >= accuracy[i] and area[j] <= area[i] and (accuracy[j], area[j]) != (accuracy[i], area[i])
                for j in left
            )
        ]  # fmt: skip
        for i in front:
            found[i] = rank
        left = [i for i in left if i not in front]
    return found


@pytest.mark.parametrize(
    ("accuracy", "area", "expected"),
    [
        ([], [], []),
        ([0.5], [10.0], [1]),
        ([0.5, 0.9], [10.0, 50.0], [1, 1]),  # neither is better in both
        ([0.9, 0.5], [10.0, 50.0], [1, 2]),  # the first is
        ([0.9, 0.9], [10.0, 50.0], [1, 2]),  # as accurate, sees less
        ([0.9, 0.8], [10.0, 10.0], [1, 2]),  # sees as much, more accurate
        ([0.9, 0.9, 0.5], [10.0, 10.0, 10.0], [1, 1, 2]),  # equal ones share a rank
        ([0.9, 0.6, 0.8, 0.5], [10.0, 20.0, 30.0, 40.0], [1, 2, 2, 3]),
        ([math.nan, 0.1, 0.9], [0.0, 90.0, math.nan], [0, 1, 0]),  # NaN never dominates
    ],
)
def test_ranks_of_known_cases(accuracy, area, expected):
    assert pareto.ranks(accuracy, area).tolist() == expected


def test_ranks_are_those_of_taking_off_front_after_front():
    draw = np.random.default_rng(0)
    for _ in range(20):
        accuracy, area = draw.integers(0, 6, 25) / 5, draw.integers(0, 6, 25) * 20.0  # many ties
        accuracy[draw.integers(0, 25, 2)] = math.nan
        assert pareto.ranks(accuracy, area).tolist() == peeled(accuracy, area)


def test_ranks_refuse_columns_of_unequal_length():
    with pytest.raises(ValueError, match="must be"):
        pareto.ranks([0.1, 0.2], [1.0])


def test_the_front_rises_with_the_field():
    draw = np.random.default_rng(1)
    table = pd.DataFrame({"accuracy": draw.random(40), "mean_rf": draw.random(40)})
    front = pareto.front(table)
    assert front.mean_rf.is_monotonic_increasing and front.accuracy.is_monotonic_increasing
    assert front.accuracy.max() == table.accuracy.max() and front.mean_rf.min() == table.mean_rf.min()


# ------------------------------------------------------------------------------------------------------ probes


def blobs(n=150, dims=6, classes=3, seed=0):
    draw = runtime.generator(seed, "blobs")
    y = torch.arange(n) % classes
    centres = torch.randn(classes, dims, generator=draw)
    scale = torch.logspace(-2, 2, dims)  # features of very different sizes
    return (centres[y] + 1.5 * torch.randn(n, dims, generator=draw)) * scale + 3, y


def test_probes_are_the_minima_that_scikit_learn_finds():
    x, y = blobs()
    rows = torch.stack([torch.arange(len(y)) % 5 != k for k in (0, 1, 1)])
    strengths = (0.3, 0.03, 0.003)
    found = probes.fit(x, y, rows, strengths, 3)
    mean, deviation = x.mean(0), x.std(0, correction=0)
    standard = ((x - mean) / deviation).double().numpy()
    for p, (mask, strength) in enumerate(zip(rows, strengths, strict=True)):
        reference = LogisticRegression(C=1 / (strength * int(mask.sum())), tol=1e-9, max_iter=5000)
        reference.fit(standard[mask.numpy()], y[mask].numpy())
        expected = reference.predict_proba(standard)
        assert np.allclose(found(x)[p].softmax(1).numpy(), expected, atol=2e-3)


def test_a_problem_does_not_depend_on_those_beside_it():
    x, y = blobs()
    rows = torch.rand(3, len(y), generator=runtime.generator(0, "rows")) < 0.7
    together = probes.fit(x, y, rows, (0.1, 0.01, 1.0), 3)
    alone = probes.fit(x, y, rows[1:2], (0.01,), 3)
    assert torch.allclose(together(x)[1].softmax(1), alone(x)[0].softmax(1), atol=1e-3)


def test_probes_do_not_mind_the_scale_of_a_feature_nor_one_that_is_constant():
    x, y = blobs()
    rows, other = torch.ones(1, len(y), dtype=torch.bool), torch.cat([x * 1000 - 7, torch.full((len(x), 1), 2.5)], 1)
    one, same = probes.fit(x, y, rows, (0.01,), 3)(x), probes.fit(other, y, rows, (0.01,), 3)(other)
    assert torch.allclose(one.softmax(2), same.softmax(2), atol=1e-3)


def test_probes_have_a_minimum_where_there_are_more_features_than_images():
    x, y = blobs(n=20, dims=60)
    found = probes.fit(x, y, torch.ones(1, 20, dtype=torch.bool), (0.01,), 3)
    assert found.weight.isfinite().all() and (found(x)[0].argmax(1) == y).all()


@pytest.mark.parametrize(
    ("rows", "strengths"), [([[True, False]], (0.0,)), ([[False, False]], (1.0,)), ([[True] * 2], ())]
)
def test_probes_refuse_what_has_no_minimum(rows, strengths):
    with pytest.raises(ValueError, match="rows to learn from"):
        probes.fit(torch.eye(2), torch.tensor([0, 1]), torch.tensor(rows), strengths, 2)


def test_a_share_of_each_class_chooses_the_strength_the_same_in_every_run():
    y = torch.arange(10).repeat_interleave(torch.arange(3, 23, 2))
    learn = probes.folds(y, 0.2, seed=0)
    for label in range(10):
        assert int((~learn & (y == label)).sum()) == max(1, round(0.2 * int((y == label).sum())))
    assert torch.equal(learn, probes.folds(y, 0.2, seed=0)) and not torch.equal(learn, probes.folds(y, 0.2, seed=1))


# --------------------------------------------------------------------------------------------- features of stages


class Part:
    """Noise in the place of a split."""

    def __init__(self, n=7, size=16):
        self.labels, self.asked = torch.arange(n) % 2, []
        self.x = torch.randn(n, 3, size, size, generator=runtime.generator(0, "noise"))

    def inputs(self, rows):
        self.asked += rows.tolist()
        return self.x[rows]


@pytest.fixture
def network():
    with runtime.seeded(0, "network"):
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.ReLU(inplace=True)
        ).eval()  # fmt: skip


STAGES = {"first": "0", "norm": "2", "last": "4"}


def test_one_pass_gives_the_mean_of_every_stage_before_anything_writes_over_it(network, tmp_path):
    part = Part()
    found, seconds = stage_features(network, STAGES, part, tmp_path, CPU)
    for stage, path in STAGES.items():
        with torch.no_grad():
            value = network[: int(path) + 1](part.x)  # "0" alone: not rectified in place
        assert torch.allclose(found[stage], value.mean((2, 3)), atol=1e-6)
    assert seconds > 0


def test_mirror_images_have_features_of_their_own(network, tmp_path):
    part = Part()
    flipped, _ = stage_features(network, STAGES, part, tmp_path, CPU, flipped=True)
    part.x = part.x.flip(-1)
    assert torch.allclose(flipped["last"], stage_features(network, STAGES, part, tmp_path, CPU)[0]["last"], atol=1e-6)


def test_a_pass_that_was_cut_off_goes_on_where_it_stopped(network, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.prototypes.stage_features.SHARD", 3)
    part = Part()
    whole, _ = stage_features(network, STAGES, part, tmp_path, CPU)
    (tmp_path / "plain-000003.safetensors").unlink()
    part.asked.clear()
    again, _ = stage_features(network, STAGES, part, tmp_path, CPU)
    assert part.asked == [3, 4, 5]
    assert all(torch.equal(whole[stage], again[stage]) for stage in STAGES)


def test_a_stage_that_there_is_not_is_named(network):
    with pytest.raises(ConfigError, match="'9'"):
        averaging(network, ["9"])


def test_the_fingerprint_changes_with_a_weight(network):
    before = artifacts.fingerprint(network.state_dict())
    assert artifacts.fingerprint(network.state_dict()) == before
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] += 1e-3
    assert artifacts.fingerprint(network.state_dict()) != before


# ------------------------------------------------------------------------------------------------------ the study

TINY = {
    **Goldilocks.presets["quick"], "preset": "quick", "size": 32, "n_train": 40, "n_test": 20, "filter": "stage",
    "batch_size": 20, "finetune_seeds": 1, "seeds": 2, "strengths": (0.01, 0.1), "device": "cpu", "verbose": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(study, its table): two seeds of probes of a small backbone, and two of its cuts fine-tuned."""
    out = tmp_path_factory.mktemp("goldilocks")
    study = Goldilocks().override({**TINY, "out": str(out), "filter": "birdnet/stage1"})
    return study, goldilocks.accuracies(study)


def test_every_cut_has_a_row_with_the_columns_of_the_original(trained):
    _, table = trained
    assert list(table)[: len(ORIGINAL)] == ORIGINAL
    assert len(table) == 3 and set(table["Stage Name"]) == {"stage1"} and set(table["Stage #"]) == {1}
    assert list(table["Mode"]) == ["probe", "probe", "finetune"] and list(table["Seed"]) == [0, 1, 0]
    accuracy, top5 = table["Test Accuracy Epoch"], table["Test Accuracy Top5 Epoch"]
    assert accuracy.between(0, 1).all() and (top5 >= accuracy).all()
    assert (table["Height"] == 32).all() and (table["Test Images"] == 20).all()
    assert table["Mean RF %"].nunique() == 1 and 0 < table["Mean RF %"][0] < 100


def test_what_was_computed_is_read(trained, monkeypatch):
    study, table = trained
    monkeypatch.setattr(goldilocks, "measure", lambda member: pytest.fail("computed again"))
    pd.testing.assert_frame_equal(collect(study), table)
    pd.testing.assert_frame_equal(goldilocks.accuracies(study), table)


def test_probes_of_all_stages_come_from_one_pass_whatever_the_filter(trained, monkeypatch):
    study, _ = trained
    monkeypatch.setattr(goldilocks, "measure", lambda member: pytest.fail("computed again"))
    whole = collect(study.override({"filter": "", "modes": ("probe",)}))
    assert list(whole[whole.Seed == 0]["Stage Name"]) == cuts(study, "birdnet")
    assert whole[whole.Seed == 0]["Mean RF %"].is_monotonic_increasing


def test_a_record_that_is_lost_is_computed_anew_alone_and_comes_out_the_same(trained, monkeypatch):
    study, table = trained
    lost = next(member for member in members(study) if member.mode == "probe")
    goldilocks.Shelf(goldilocks.fits.working_folder(study)).record_path(lost).unlink()
    done, really = [], goldilocks.measure
    monkeypatch.setattr(goldilocks, "measure", lambda member: done.append(member.name) or really(member))
    again = goldilocks.accuracies(study)
    assert done == [lost.name]
    pd.testing.assert_frame_equal(again.drop(columns="Seconds"), table.drop(columns="Seconds"))


def test_networks_that_were_fine_tuned_are_not_kept(trained, tmp_path):
    study, _ = trained
    assert not list((goldilocks.fits.working_folder(study) / "fits").rglob("*.safetensors"))


def test_what_is_missing_or_of_other_settings_is_an_error_that_says_what_to_do(trained):
    study, _ = trained
    with pytest.raises(artifacts.ArtifactError, match="RETRAIN=True"):
        collect(study.override({"seeds": 3}))
    with pytest.raises(artifacts.ArtifactError, match="other training settings"):
        collect(study.override({"epochs": 2}))
    with pytest.raises(artifacts.ArtifactError, match="other training settings"):
        collect(study.override({"strengths": (0.5,), "modes": ("probe",)}))


def test_the_test_images_have_no_say_in_what_is_chosen(trained, tmp_path, monkeypatch):
    study, table = trained
    really = goldilocks.measure.__globals__["sets"]

    def shuffled(*arguments):
        found = really(*arguments)
        found.test.labels.copy_(found.test.labels.roll(1))
        return found

    monkeypatch.setitem(goldilocks.measure.__globals__, "sets", shuffled)
    other = goldilocks.accuracies(study.override({"out": str(tmp_path), "modes": ("probe",), "seeds": 1}))
    for column in ("Strength", "Validation Accuracy"):
        assert other[column][0] == table[column][0]


def test_reevaluating_probes_anew_and_keeps_what_was_fine_tuned(trained, monkeypatch):
    study, table = trained
    done, really = [], goldilocks.measure
    monkeypatch.setattr(goldilocks, "measure", lambda member: done.append(member.mode) or really(member))
    again = collect(study.override({"reevaluate": True}))
    assert set(done) == {"probe"}
    pd.testing.assert_frame_equal(again.drop(columns="Seconds"), table.drop(columns="Seconds"))


def test_cuts_are_those_of_the_original_and_end_with_the_weights():
    study = Goldilocks()
    assert cuts(study, "vgg16") == ["conv1", *(f"maxpool{k}" for k in range(1, 6))]
    assert cuts(study, "resnet50_v1")[-1] == "layer3"
    assert cuts(study.override({"weights": "none"}), "resnet50_v1")[-1] == "layer4"
    assert cuts(study, "efficientnet_lite0") == ["stem", *(f"stage{k}" for k in range(1, 8)), "top"]


def test_some_backbones_may_be_fine_tuned_alone():
    study = Goldilocks(backbones=("vgg16", "squeezenet1_1"), finetuned=("squeezenet1_1",), seeds=1)
    asked = [(member.mode, member.backbone) for member in members(study)]
    assert asked[:2] == [("probe", "vgg16"), ("probe", "squeezenet1_1")]
    assert set(asked[2:]) == {("finetune", "squeezenet1_1")} and len(asked) == 2 + len(cuts(study, "squeezenet1_1"))
    with pytest.raises(ConfigError, match="did you mean vgg16"):
        members(study.override({"finetuned": ("vgg_16",)}))


@pytest.mark.parametrize(
    "words",
    [
        "--backbones vgg16 resnet50_v1 --filter maxpool --epochs 10",  # the module's own
        "--backbones resnet18 densenet121 --modes probe",  # notebook 07's
    ],
)
def test_ones_own_backbones_need_not_be_those_that_the_preset_fine_tunes(words):
    study = options.resolve(options.options(words.split(), Goldilocks, goldilocks.OWN), Goldilocks)
    asked = members(study)
    assert {member.backbone for member in asked if member.mode == "probe"} <= set(study.backbones)
    tuned = {member.backbone for member in asked if member.mode == "finetune"}
    assert tuned == ({"vgg16", "resnet50_v1"} if "finetune" in study.modes else set())


def test_the_notebooks_example_of_backbones_is_possible():
    given = {"PRESET": "reduced", "BACKBONES": ["resnet18", "timm:resnet10t"]}
    assert {member.backbone for member in members(read_parameters(given, Goldilocks))} == set(given["BACKBONES"])


def test_a_filter_that_leaves_nothing_is_an_error_that_lists_what_there_is():
    with pytest.raises(ConfigError, match="vgg16/maxpool5"):
        members(Goldilocks(backbones=("vgg16",), filter="vgg16/maxpol5"))


def test_every_setting_is_a_parameter_with_a_description():
    assert all(field.description for field in Goldilocks.model_fields.values())
    study = read_parameters({"PRESET": "paper", "EPOCHS": 3, "BACKBONES": ["resnet18"]}, Goldilocks)
    assert (study.epochs, study.backbones, study.size, study.modes) == (3, ("resnet18",), 224, ("finetune",))
    assert len(Goldilocks.presets["paper"]["backbones"]) == 25


def test_fine_tuning_follows_the_protocol_of_the_original():
    fit = next(m for m in members(Goldilocks(backbones=("vgg16",))) if m.mode == "finetune").fit
    study, rates = fit.study, fit.study.optimizer
    assert (rates.name, rates.lr, rates.fine_tune_lr, rates.weight_decay) == ("adam", 1e-3, 1e-3, 0)
    assert (study.train.epochs, study.train.batch_size, study.dataset.val_size) == (10, 32, 0)
    assert [goldilocks.fits.optimisation.rate(epoch, rates, 10) for epoch in range(10)] == [1.0] * 10
    assert goldilocks.fits.optimisation.frozen_epochs(rates) == 0 and study.dataset.augment and study.model.pretrained


def test_the_command_line_writes_results_and_their_front(trained, monkeypatch, caplog):
    study, table = trained
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(goldilocks, "accuracies", lambda given: table)
    assert goldilocks.main(["--debug", "--filter", "stage1", "--epochs", "1", "--out", study.out]) == 0
    results, front = sorted((goldilocks.fits.working_folder(study) / "hackjob").glob("*.csv"))
    assert results.name.startswith("hackjob_results_") and front.name == f"{results.stem}_pareto.csv"
    assert list(pd.read_csv(results))[: len(ORIGINAL)] == ORIGINAL
    assert {"rank", "accuracy", "mean_rf"} <= set(pd.read_csv(front))
    assert goldilocks.main(["--epoch", "1"]) == 2 and "epochs" in caplog.messages[-1]


# ---------------------------------------------------------------------------------------------- summary and figure


def records():
    """Two seeds of a backbone with four cuts, probed, and one of them fine-tuned."""
    fields, found = [1.0, 10.0, 40.0, 100.0], []
    for mode, seed, accuracies in (
        ("probe", 0, [0.3, 0.6, 0.5, 0.8]), ("probe", 1, [0.4, 0.6, 0.5, 0.9]), ("finetune", 0, [0.35, 0.7, 0.8, 0.95]),
    ):  # fmt: skip
        rows = {
            "number": [0, 1, 2, 3], "stage": ["conv1", "layer1", "layer2", "layer3"], "mean_rf": fields,
            "channels": [8, 16, 32, 64], "accuracy": accuracies, "top5": [1.0] * 4, "seconds": [1.0] * 4,
        }  # fmt: skip
        facts = {
            "model": "net", "mode": mode, "seed": seed, "dataset": "Blobs", "images": {"train": 90, "test": 100},
            "classes": 10, "input_size": 64,
        }  # fmt: skip
        found.append({"rows": rows, "facts": facts})
    return found


def test_a_cut_is_the_mean_of_its_seeds_with_both_errors():
    table = summary(frame(records()))
    first = table[(table["mode"] == "probe") & (table.stage == "conv1")].iloc[0]
    assert first.accuracy == pytest.approx(35) and first.sd == pytest.approx(100 * np.std([0.3, 0.4], ddof=1))
    assert first.standard_error == pytest.approx(100 * math.sqrt(0.35 * 0.65 / 100))
    assert first.error == pytest.approx(math.hypot(first.standard_error, first.sd / math.sqrt(2)))
    assert list(table[table["mode"] == "probe"]["rank"]) == [1, 1, 2, 1]  # layer2 sees more and knows less
    assert list(table[table["mode"] == "finetune"]["rank"]) == [1, 1, 1, 1]
    alone = summary(frame(records()).query("Seed == 0"))
    assert alone.sd.isna().all() and alone.error.equals(alone.standard_error), "of one seed nothing is known"


def written(ax):
    """The names of points."""
    return [text for text in ax.texts if (text.get_gid() or "").startswith("name:")]


def test_the_figure_shows_every_cut_and_names_the_front():
    figure = goldilocks_figures.accuracy_against_field(summary(frame(records())))
    names = {artist.get_gid() for artist in figure.findobj() if artist.get_gid()}
    assert {f"{mode}:net:{stage}" for mode in ("probe", "finetune") for stage in ("conv1", "layer2", "layer3")} <= names
    assert {"front", "chance"} <= names
    left, right = figure.axes
    assert [name.get_text() for name in written(left)] == ["conv1", "layer1", "layer3"] and len(written(right)) == 4
    assert left.get_xscale() == "log"


def test_names_cover_neither_each_other_nor_a_point():
    draw = np.random.default_rng(3)
    rows = [
        {"mode": "probe", "model": f"net{i % 4}", "stage": f"maxpool{i}", "mean_rf": 10 ** (2 * i / 12),
         "accuracy": 30 + 5 * i + draw.random(), "error": 1.0, "rank": 1}
        for i in range(12)
    ]  # fmt: skip
    figure = goldilocks_figures.accuracy_against_field(pd.DataFrame(rows))
    figure.draw(figure.canvas.get_renderer())
    ax = figure.axes[0]
    boxes = [Text.get_window_extent(name) for name in written(ax)]  # without the line to the mark
    points = ax.transData.transform([(row["mean_rf"], row["accuracy"]) for row in rows])
    assert len(boxes) == 12
    for i, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:i])
        assert not any(box.contains(*point) for point in points)
    again = goldilocks_figures.accuracy_against_field(pd.DataFrame(rows))
    assert [t.get_position() for t in written(again.axes[0])] == [t.get_position() for t in written(ax)]
